//! Which process runs the queries: the one that holds the lease; the others stand by.
//!
//! On the embedded log there is one process and it holds the lease at once. On Kafka a standby waits for the lease, then
//! starts the program; a process that loses it, or whose queries another one has fenced, stops them and stands by again.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{Engine, EngineError, Place, Settings, Source};
use crate::log::{self, Lease, Log, LogError};
use crate::shutdown::Tasks;
use crate::sync::lock;

/// The name of the engine's lease.
const LEASE: &str = "engine";
/// Who waited longer for the lease stood by while another process ran the queries; a holder that died is waited for less.
const STOOD_BY: Duration = Duration::from_secs(15);
/// How long the queries may take to end. A commit under way is all that they wait for.
const END: Duration = Duration::from_secs(3);
/// Between attempts to start while the log does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// The place of the engine in this process: empty while another process holds the lease.
#[derive(Clone)]
pub struct Seat {
    engine: Arc<Mutex<Option<Arc<Engine>>>>,
    failure: watch::Receiver<Option<Arc<EngineError>>>,
}

impl Seat {
    /// Waits for the lease and runs the queries while it is held, until `tasks` end; then the lease is released at once.
    ///
    /// # Errors
    /// When the log does not let it ask for the lease.
    pub async fn take(
        log: &Arc<dyn Log>,
        place: Place,
        settings: &Settings,
        tasks: &Tasks,
    ) -> Result<Self, LogError> {
        let (tell, failure) = watch::channel(None);
        let seat = Self { engine: Arc::default(), failure };
        let (log, settings, tasks) = (Arc::clone(log), settings.clone(), tasks.clone());
        let first = log.lease(LEASE).await?;
        let candidate = Candidate { log, place, settings, tasks: tasks.clone() };
        let taken = seat.clone();
        tasks.spawn(async move {
            if let Err(error) = candidate.stand(&taken, first).await {
                tell.send_replace(Some(Arc::new(error)));
            }
        });
        Ok(seat)
    }

    /// Runs the queries at once, whoever ran them before, and stands by for nobody: for a process that is alone. When
    /// another one fences it, its queries stay so.
    ///
    /// # Errors
    /// When they cannot be started.
    pub async fn occupy(
        log: &Arc<dyn Log>,
        place: Place,
        settings: &Settings,
        tasks: &Tasks,
    ) -> Result<Self, EngineError> {
        let (lease, running) = (log::alone(), tasks.child());
        let engine = Engine::start(log, &lease, Source::Folder, place, settings, &running).await?;
        let (_, failure) = watch::channel(None);
        let seat = Self { engine: Arc::new(Mutex::new(Some(engine))), failure };
        let (occupied, token) = (seat.clone(), tasks.token());
        tasks.spawn(async move {
            token.cancelled().await;
            occupied.leave(&running).await;
        });
        Ok(seat)
    }

    /// Ends the queries.
    async fn leave(&self, running: &Tasks) {
        *lock(&self.engine) = None;
        if !running.stop(END).await {
            tracing::warn!("a query did not end in time; what it still tries is fenced");
        }
    }

    /// The engine, when this process runs the queries.
    pub fn engine(&self) -> Option<Arc<Engine>> {
        lock(&self.engine).clone()
    }

    /// The error for which this process can neither run the queries nor stand by.
    pub fn failure(&self) -> watch::Receiver<Option<Arc<EngineError>>> {
        self.failure.clone()
    }
}

/// What a process needs to run the queries.
struct Candidate {
    log: Arc<dyn Log>,
    place: Place,
    settings: Settings,
    tasks: Tasks,
}

impl Candidate {
    async fn stand(&self, seat: &Seat, first: Arc<dyn Lease>) -> Result<(), EngineError> {
        let (mut lease, mut was_here) = (first, false);
        loop {
            let began = Instant::now();
            let held = self.tasks.token().run_until_cancelled_owned(lease.held()).await;
            let run = match held {
                Some(()) => {
                    // Who had the lease before may have lost it to one that was told of edits since.
                    let follows = was_here || began.elapsed() > STOOD_BY;
                    was_here = true;
                    let source = if follows { Source::Log } else { Source::Folder };
                    self.run(seat, &lease, source).await
                }
                None => Ok(()),
            };
            lease.release().await;
            if run.is_err() || self.tasks.is_cancelled() {
                return run;
            }
            tracing::warn!("another process runs the queries now; this one stands by");
            let Some(again) = self.join_again().await? else { return Ok(()) };
            lease = again;
        }
    }

    /// Runs the queries until the lease is lost, another process fences one of them, or the process is to end.
    async fn run(&self, seat: &Seat, lease: &Arc<dyn Lease>, source: Source) -> Result<(), EngineError> {
        let running = self.tasks.child();
        let started = tokio::select! {
            () = lease.lost() => None,
            () = self.tasks.cancelled() => None,
            started = self.start(lease, source, &running) => Some(started?),
        };
        if let Some(engine) = started {
            *lock(&seat.engine) = Some(Arc::clone(&engine));
            tokio::select! {
                () = lease.lost() => {}
                () = engine.fenced() => {}
                () = self.tasks.cancelled() => {}
            }
        }
        seat.leave(&running).await;
        Ok(())
    }

    async fn start(
        &self,
        lease: &Arc<dyn Lease>,
        source: Source,
        tasks: &Tasks,
    ) -> Result<Arc<Engine>, EngineError> {
        loop {
            let place = self.place.clone();
            match Engine::start(&self.log, lease, source, place, &self.settings, tasks).await {
                Err(EngineError::Log(error @ (LogError::Unavailable(_) | LogError::Fenced(_)))) => {
                    tracing::warn!(%error, "the queries cannot be started yet; trying again");
                    tokio::time::sleep(RETRY).await;
                }
                started => return started,
            }
        }
    }

    /// `None` when the process is to end.
    async fn join_again(&self) -> Result<Option<Arc<dyn Lease>>, LogError> {
        loop {
            match self.log.lease(LEASE).await {
                Ok(lease) => return Ok(Some(lease)),
                Err(error @ LogError::Refused(_)) => return Err(error),
                Err(error) => tracing::warn!(%error, "the lease cannot be asked for yet; trying again"),
            }
            tokio::select! {
                () = self.tasks.cancelled() => return Ok(None),
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }
}

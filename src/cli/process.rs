//! What every long-running command does alike: settings, runtime, the log, listening, and ending in order.

use std::future::Future;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Failure;
use crate::config::{self, ConfigError, Loaded, Settings, Sources};
use crate::shutdown::Tasks;
use crate::telemetry;

/// How long connections may take to end: together with [`STAGES_END`] below the promised 10 s.
const CONNECTIONS_END: Duration = Duration::from_secs(6);
/// How long the stages may take to bring what they accepted into the log.
const STAGES_END: Duration = Duration::from_secs(3);

/// Where settings come from.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct SettingsArgs {
    /// Settings in TOML; the environment (EMOSTREAM__SECTION__KEY) and flags win over it
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Use Apache Kafka as the log, reached at these addresses (sets log.kind and log.kafka.bootstrap_servers)
    #[arg(long, value_name = "HOST:PORT[,…]")]
    pub(super) kafka: Option<String>,
}

impl SettingsArgs {
    /// The checked settings.
    ///
    /// # Errors
    /// When they are not valid: exit code 2.
    pub(super) fn load(&self) -> Result<Loaded, Failure> {
        self.load_with(&[])
    }

    /// The same with more flags: flag, key, value.
    ///
    /// # Errors
    /// As [`SettingsArgs::load`].
    pub(super) fn load_with(&self, flags: &[(&'static str, &'static str, &str)]) -> Result<Loaded, Failure> {
        let usage = |error: ConfigError| Failure::usage(error.to_string());
        let mut sources = Sources::of_process(self.config.as_deref()).map_err(usage)?;
        if let Some(servers) = &self.kafka {
            sources.flag("--kafka", "log.kind", "kafka");
            sources.flag("--kafka", "log.kafka.bootstrap_servers", servers);
        }
        for (flag, key, value) in flags {
            sources.flag(flag, key, *value);
        }
        config::load(&sources).map_err(usage)
    }
}

/// The tasks of one process, in the order in which they end.
#[derive(Clone, Debug, Default)]
pub(super) struct Process {
    /// Servers and clients' connections: end first, while the stages still answer them.
    pub(super) connections: Tasks,
    /// The stages: end when nobody asks anything any more.
    pub(super) stages: Tasks,
}

/// Starts logs and metrics, runs `start`, then waits for Ctrl-C, SIGTERM or a failure, and ends in order within 10 s.
///
/// # Errors
/// What `start` says, or what the future it returned says: then something outside failed while running.
pub(super) fn run<S, F, W>(settings: &Settings, start: S) -> Result<(), Failure>
where
    S: FnOnce(Process) -> F,
    F: Future<Output = Result<W, Failure>>,
    W: Future<Output = Failure>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::outside(format!("no runtime: {error}")))?;
    let ended = runtime.block_on(async {
        let process = Process::default();
        telemetry::start(&settings.telemetry, &process.stages).map_err(Failure::usage)?;
        let mut stop = Stop::new()?;
        let running = async {
            let failed = start(process.clone()).await?;
            Err(failed.await)
        };
        let outcome = tokio::select! {
            outcome = running => outcome,
            () = stop.asked() => {
                tracing::info!("asked to stop");
                Ok(())
            }
        };
        tokio::select! {
            () = end(&process) => {}
            () = stop.asked() => tracing::warn!("asked to stop again; ending at once"),
        }
        outcome
    });
    runtime.shutdown_timeout(Duration::from_millis(500));
    ended
}

/// Runs a command that handles signals itself and returns its exit code, having said what there is to say.
///
/// # Errors
/// That exit code, when it is not 0.
pub(super) fn run_alone(command: impl Future<Output = u8>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::outside(format!("no runtime: {error}")))?;
    match runtime.block_on(command) {
        0 => Ok(()),
        code => Err(Failure { code, message: String::new() }),
    }
}

async fn end(process: &Process) {
    if !process.connections.stop(CONNECTIONS_END).await {
        tracing::warn!("some connections did not end; closing them");
    }
    if !process.stages.stop(STAGES_END).await {
        tracing::warn!("some tasks did not end; leaving them");
    }
}

/// Ctrl-C and SIGTERM.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn new() -> Result<Self, Failure> {
        let of = |kind| signal(kind).map_err(|error| Failure::outside(format!("no signals: {error}")));
        Ok(Self { interrupt: of(SignalKind::interrupt())?, terminate: of(SignalKind::terminate())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Refuses an address that other machines reach, unless that is allowed.
///
/// # Errors
/// Exit code 2, naming the ways out.
pub(super) fn check_listen(address: &str, settings: &Settings) -> Result<(), Failure> {
    let resolved = address.to_socket_addrs().map_err(|error| {
        let port = if address.parse::<u16>().is_ok() { address } else { "8080" };
        Failure::usage(format!(
            "--listen {address} is no HOST:PORT of this machine ({error}); write 127.0.0.1:{port}, say"
        ))
    })?;
    let resolved: Vec<SocketAddr> = resolved.collect();
    if settings.http.allow_public || resolved.iter().all(|address| address.ip().is_loopback()) {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "--listen {address} can be reached by other machines, and nobody is asked who they are. Two ways out: listen \
         on 127.0.0.1 behind a proxy that asks (tokens of emostream's own are not built yet), or say --allow-public \
         (EMOSTREAM__HTTP__ALLOW_PUBLIC=true) where the network itself keeps strangers out"
    )))
}

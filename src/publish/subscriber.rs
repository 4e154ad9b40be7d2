//! A subscriber: reads its cluster's topic and holds clients' connections.
//!
//! Clients come and go through [`Subscriber::join`]; what the connection speaks (WebSocket, Server-Sent Events) is the
//! routes' business.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::cluster::topic_spec;
use super::hub::{Client, Hub, Joined};
use super::members::{self, Heart, MemberState, Members};
use super::message::Message;
use super::protocol::LiveRequest;
use super::queue::Delivery;
use super::tail::range;
use crate::clock;
use crate::log::{Log, LogError, Record, cluster_topic};
use crate::shutdown::Tasks;
use crate::sync::lock;

/// Bytes of one read, about.
const READ_BYTES: usize = 1 << 20;
/// How long one read waits for messages. It returns at once when some come.
const READ_WAIT: Duration = Duration::from_secs(5);
/// How long to wait before the log is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// Connections one subscriber holds at most; a process may open 20,000 files.
pub const MAX_CLIENTS: usize = 19_000;
/// Fronts whose clients are counted apart.
const MAX_FRONTS: usize = 64;
/// The longest name of a front.
const MAX_FRONT_BYTES: usize = 32;

/// One edge server.
pub struct Subscriber {
    log: Arc<dyn Log>,
    cluster: String,
    name: String,
    url: String,
    history: usize,
    tasks: Tasks,

    hub: Mutex<Hub>,
    is_live: AtomicBool,
    /// Its clients are to go elsewhere, and it takes no new ones.
    drains: watch::Sender<bool>,
    /// By front: the clients that it sent here.
    arrived: Mutex<BTreeMap<String, u64>>,

    deliveries: AtomicU64,
    last_word: Mutex<(u64, Instant)>,
    meters: Meters,
}

struct Meters {
    clients: metrics::Gauge,
    deliveries: metrics::Counter,
    skipped: metrics::Counter,
    lag_seconds: metrics::Histogram,
}

impl Subscriber {
    /// Joins `cluster` under that name, reachable at `url`, and reads its topic until the process stops.
    pub fn start(
        log: Arc<dyn Log>,
        cluster: &str,
        name: &str,
        url: &str,
        settings: &Settings,
        heart: &Heart,
        tasks: &Tasks,
    ) -> Arc<Self> {
        let subscriber = Arc::new(Self {
            log,
            cluster: cluster.to_owned(),
            name: name.to_owned(),
            url: url.to_owned(),
            history: settings.history,
            tasks: tasks.clone(),
            hub: Mutex::new(Hub::new(settings.history)),
            is_live: AtomicBool::new(false),
            drains: watch::Sender::new(false),
            arrived: Mutex::default(),
            deliveries: AtomicU64::new(0),
            last_word: Mutex::new((0, Instant::now())),
            meters: Meters::new(cluster, name),
        });
        let (reading, stop) = (Arc::clone(&subscriber), tasks.token());
        tasks.spawn(async move {
            while let Some(Err(error)) = stop.run_until_cancelled(reading.session()).await {
                tracing::warn!(cluster = reading.cluster, name = reading.name, %error, "a subscriber cannot read; trying again");
                stop.run_until_cancelled(tokio::time::sleep(RETRY)).await;
            }
        });
        let pulse = Arc::clone(&subscriber);
        heart.add(move || pulse.state());
        subscriber
    }

    /// Whether it has its history and takes clients.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn ready(&self) -> Result<(), String> {
        if self.is_live.load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err(format!("subscriber {} of cluster {} has not read its history yet", self.name, self.cluster))
        }
    }

    /// Sends its clients elsewhere and takes no new ones while somebody asks it to; see [`Members::set_drain`].
    pub fn drain_when_asked(self: &Arc<Self>, members: Members) {
        let (draining, stop) = (Arc::clone(self), self.tasks.token());
        self.tasks.spawn(async move {
            let Self { cluster, name, drains, .. } = draining.as_ref();
            let tell = |drain: bool| {
                if drains.send_replace(drain) != drain {
                    tracing::info!(
                        cluster,
                        name,
                        drain,
                        "somebody asked the subscriber to drain, or no longer to"
                    );
                }
            };
            stop.run_until_cancelled(members.each_drain(cluster, name, tell)).await;
        });
    }

    /// Whether it is to hold no clients.
    pub fn is_draining(&self) -> bool {
        *self.drains.borrow()
    }

    /// Open client connections.
    pub fn clients(&self) -> usize {
        lock(&self.hub).clients()
    }

    /// Takes a client in; `None` when it holds as many as it may, or drains.
    pub(super) fn join(self: &Arc<Self>, request: &LiveRequest) -> Option<Seat> {
        let mut hub = lock(&self.hub);
        if hub.clients() >= MAX_CLIENTS || self.is_draining() {
            return None;
        }
        let Joined { client, first } = hub.join(request);
        if let Some(front) = &request.via {
            self.note_arrival(front);
        }
        drop(hub);
        self.meters.clients.increment(1.0);
        Some(Seat { subscriber: Arc::clone(self), client, first })
    }

    /// Whoever calls itself a front is counted, up to a bound: what clients write here is theirs to write.
    fn note_arrival(&self, front: &str) {
        let mut arrived = lock(&self.arrived);
        if let Some(count) = arrived.get_mut(front) {
            *count += 1;
        } else if arrived.len() < MAX_FRONTS && front.len() <= MAX_FRONT_BYTES {
            arrived.insert(front.to_owned(), 1);
        }
    }

    /// Where its connections' tasks run.
    pub(super) fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// From the topic's end, back by the history, to the first failure. What was delivered before is known by id.
    async fn session(&self) -> Result<std::convert::Infallible, LogError> {
        let topic = cluster_topic(&self.cluster);
        self.log.create_topics(&[topic_spec(&self.cluster)]).await?;
        let range = range(self.log.as_ref(), &topic).await?;
        let back = i64::try_from(self.history).unwrap_or(i64::MAX);
        let from = range.start.max(range.end.saturating_sub(back));
        let mut reader = self.log.reader(&topic, 0, from).await?;
        if from >= range.end {
            self.is_live.store(true, Ordering::Relaxed);
        }
        loop {
            let batch = reader.read(READ_BYTES, READ_WAIT).await?;
            batch.records.into_iter().for_each(|record| self.deliver(record));
            if batch.next >= range.end || batch.complete_until_ms.is_some() {
                self.is_live.store(true, Ordering::Relaxed);
            }
        }
    }

    fn deliver(&self, record: Record) {
        match record.value.ok_or_else(|| "the record has no value".to_owned()).and_then(Message::parse) {
            Ok(message) => {
                let skipped = lock(&self.hub).deliver(Arc::new(message));
                if skipped > 0 {
                    self.meters.skipped.increment(skipped);
                }
            }
            Err(error) => {
                tracing::warn!(cluster = self.cluster, offset = record.offset, error, "a record is left out");
            }
        }
    }

    fn state_name(&self) -> &'static str {
        match (self.is_draining(), self.is_live.load(Ordering::Relaxed)) {
            (true, _) => "draining",
            (false, true) => "live",
            (false, false) => "starting",
        }
    }

    /// What the heartbeat says.
    fn state(&self) -> MemberState {
        // Under one lock: a client counts as arrived when it counts as there.
        let (clients, rooms, arrived) = {
            let hub = lock(&self.hub);
            (hub.clients() as u64, hub.rooms(members::MAX_ROOMS), lock(&self.arrived).clone())
        };
        let deliveries = self.deliveries.load(Ordering::Relaxed);
        let mut last_word = lock(&self.last_word);
        let (before, since) = std::mem::replace(&mut *last_word, (deliveries, Instant::now()));
        MemberState {
            subscriber: Some(self.name.clone()),
            url: Some(self.url.clone()),
            state: self.state_name().to_owned(),
            clients,
            arrived,
            deliveries_per_s: members::per_second(deliveries - before, since.elapsed()),
            rooms,
            ..MemberState::of_cluster(&self.cluster, self.is_live.load(Ordering::Relaxed))
        }
    }
}

impl Meters {
    fn new(cluster: &str, name: &str) -> Self {
        let labels = [("cluster", cluster.to_owned()), ("subscriber", name.to_owned())];
        Self {
            clients: metrics::gauge!("emostream_publish_clients", &labels),
            deliveries: metrics::counter!("emostream_publish_deliveries_total", &labels),
            skipped: metrics::counter!("emostream_publish_skipped_total", &labels),
            lag_seconds: metrics::histogram!("emostream_publish_delivery_lag_seconds"),
        }
    }
}

/// A client's place; given up when dropped.
pub(super) struct Seat {
    subscriber: Arc<Subscriber>,
    client: Arc<Client>,
    first: VecDeque<Delivery>,
}

/// Tells when a client is to go elsewhere.
pub(super) struct Leave(watch::Receiver<bool>);

impl Leave {
    /// Ends when the client is to go elsewhere. Cancel-safe.
    pub(super) async fn asked(&mut self) {
        if self.0.wait_for(|drains| *drains).await.is_err() {
            std::future::pending().await
        }
    }
}

impl Seat {
    /// What to send next, never empty, in order. Cancel-safe.
    pub(super) async fn next(&mut self) -> VecDeque<Delivery> {
        if self.first.is_empty() { self.client.next().await } else { std::mem::take(&mut self.first) }
    }

    /// Counts messages as written to the socket.
    pub(super) fn written<'a>(&self, deliveries: impl IntoIterator<Item = &'a Delivery>) {
        let meters = &self.subscriber.meters;
        let now_ns = clock::wall_ns();
        let mut count = 0;
        for delivery in deliveries {
            let Delivery::Window { message, .. } = delivery else { continue };
            count += 1;
            if message.is_final {
                #[allow(clippy::cast_precision_loss)] // nanoseconds of a lag
                meters.lag_seconds.record((now_ns - message.window.end) as f64 / 1e9);
            }
        }
        meters.deliveries.increment(count);
        self.subscriber.deliveries.fetch_add(count, Ordering::Relaxed);
    }

    /// What tells when the client is to go elsewhere.
    pub(super) fn leave(&self) -> Leave {
        Leave(self.subscriber.drains.subscribe())
    }

    /// Cancelled when the process stops.
    pub(super) fn stop(&self) -> CancellationToken {
        self.subscriber.tasks.token()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.subscriber.hub).leave(&self.client);
        self.subscriber.meters.clients.decrement(1.0);
    }
}

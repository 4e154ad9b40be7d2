//! A subscriber: reads its cluster's topic and holds clients' connections.
//!
//! Clients come and go through `Subscriber::reserve`; what the connection speaks (WebSocket, Server-Sent Events) is the
//! routes' business.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::client::Client;
use super::cluster::topic_spec;
use super::hub::{Hub, Joined};
use super::members::{self, Heart, MemberState, Members};
use super::message::Message;
use super::meters::Meters;
use super::protocol::{Filter, LiveRequest};
use super::queue::Delivery;
use super::shard::{self, Inbox};
use super::tail::range;
use crate::log::{Log, LogError, Record, cluster_topic};
use crate::reaction::live::LiveId;
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

/// Where a registered client goes on; the later, the more it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Since {
    /// With what comes from now on.
    Now,
    /// With the first message that there is.
    Start,
    /// After that one.
    After(LiveId),
}

impl Since {
    /// The last message it has.
    pub(super) fn id(self) -> Option<LiveId> {
        match self {
            Self::After(id) => Some(id),
            Self::Now | Self::Start => None,
        }
    }
}

/// One edge server.
pub struct Subscriber {
    log: Arc<dyn Log>,
    cluster: String,
    name: String,
    url: String,
    history: usize,
    tasks: Tasks,

    hub: Mutex<Hub>,
    /// Places that are taken, by clients that are there or on their way in.
    places: Mutex<Places>,
    shards: Vec<Arc<Inbox>>,
    is_live: AtomicBool,
    /// Registered clients among the hub's.
    registered: AtomicU64,
    /// Its clients are to go elsewhere, and it takes no new ones.
    drains: watch::Sender<bool>,

    last_word: Mutex<(u64, Instant)>,
    meters: Arc<Meters>,
    /// Cancelled when the process stops and its shards have handed out what they had.
    over: CancellationToken,
}

/// A client counts as arrived when it counts as there.
#[derive(Default)]
struct Places {
    taken: usize,
    /// By front: the clients that it sent here.
    arrived: BTreeMap<String, u64>,
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
        let workers = tokio::runtime::Handle::current().metrics().num_workers();
        let shards: Vec<Arc<Inbox>> = (0..workers).map(|_| Arc::default()).collect();
        let subscriber = Arc::new(Self {
            log,
            cluster: cluster.to_owned(),
            name: name.to_owned(),
            url: url.to_owned(),
            history: settings.history,
            tasks: tasks.clone(),
            hub: Mutex::new(Hub::new(settings.history, shards.clone())),
            places: Mutex::default(),
            shards,
            is_live: AtomicBool::new(false),
            registered: AtomicU64::new(0),
            drains: watch::Sender::new(false),
            last_word: Mutex::new((0, Instant::now())),
            meters: Arc::new(Meters::new(cluster, name)),
            over: CancellationToken::new(),
        });
        let handing_out = subscriber.shards.clone().into_iter().map(|inbox| {
            let (meters, stop) = (Arc::clone(&subscriber.meters), tasks.token());
            tasks.spawn(async move { shard::run(&inbox, &meters, stop).await })
        });
        let (handing_out, over) = (join_all(handing_out.collect::<Vec<_>>()), subscriber.over.clone());
        tasks.spawn(async move {
            drop(handing_out.await);
            over.cancel();
        });
        let (reading, stop) = (Arc::clone(&subscriber), tasks.token());
        tasks.spawn(async move {
            while let Some(Err(error)) = stop.run_until_cancelled(reading.session()).await {
                tracing::warn!(cluster = reading.cluster, name = reading.name, %error, "a subscriber cannot read; trying again");
                stop.run_until_cancelled(tokio::time::sleep(RETRY)).await;
            }
        });
        let (news, stop) = (heart.news(), tasks.token());
        tasks.spawn(async move {
            stop.cancelled().await;
            news.notify_one();
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

    /// Open client connections, and those about to open.
    pub fn clients(&self) -> usize {
        lock(&self.places).taken
    }

    /// Keeps a place for a client; `None` when there is none, or it drains.
    pub(super) fn reserve(self: &Arc<Self>, request: &LiveRequest) -> Option<Place> {
        let mut places = lock(&self.places);
        if places.taken >= MAX_CLIENTS || self.is_draining() {
            return None;
        }
        places.taken += 1;
        if let Some(front) = &request.via {
            places.note_arrival(front);
        }
        drop(places);
        self.meters.clients.increment(1.0);
        Some(Place { subscriber: Arc::clone(self), is_registered: false })
    }

    /// Gives a registered client its place, draining or not: the cluster says who serves it. Returns where it goes on, said in
    /// a way that another subscriber understands.
    pub(super) fn join_registered(self: &Arc<Self>, filter: Filter, since: Since) -> (Seat, Since) {
        self.registered.fetch_add(1, Ordering::Relaxed);
        self.meters.registered.increment(1.0);
        let place = Place { subscriber: Arc::clone(self), is_registered: true };
        let mut hub = lock(&self.hub);
        let newest = hub.newest();
        let after = match since {
            Since::Now => newest,
            Since::Start => newest.map(|newest| LiveId { sequence: 0, ..newest }),
            // Nothing is here to say that something is missing.
            Since::After(id) => newest.map(|_| id),
        };
        let request = LiveRequest { filter, after: after.map(|id| id.to_string()), last: false, via: None };
        let client = Arc::new(Client::waiting());
        let joined = hub.join(&request, &client);
        drop(hub);
        let since = match since {
            Since::Now => newest.map_or(Since::Start, Since::After),
            known => known,
        };
        (Seat { place, client, joined }, since)
    }

    /// Its cluster, and its name there.
    pub(super) fn key(&self) -> (&str, &str) {
        (&self.cluster, &self.name)
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
            for record in batch.records {
                self.deliver(record).await;
            }
            if batch.next >= range.end || batch.complete_until_ms.is_some() {
                self.is_live.store(true, Ordering::Relaxed);
            }
        }
    }

    async fn deliver(&self, record: Record) {
        match record.value.ok_or_else(|| "the record has no value".to_owned()).and_then(Message::parse) {
            Ok(message) => {
                for shard in &self.shards {
                    shard.room(&message).await;
                }
                lock(&self.hub).deliver(Arc::new(message));
            }
            Err(error) => {
                tracing::warn!(cluster = self.cluster, offset = record.offset, error, "a record is left out");
            }
        }
    }

    /// Once its tasks are to end it is reached no longer, though its heart may beat a while.
    fn state_name(&self) -> &'static str {
        match (self.is_draining() || self.tasks.is_cancelled(), self.is_live.load(Ordering::Relaxed)) {
            (true, _) => "draining",
            (false, true) => "live",
            (false, false) => "starting",
        }
    }

    /// What the heartbeat says.
    fn state(&self) -> MemberState {
        let (clients, arrived) = {
            let places = lock(&self.places);
            (places.taken as u64, places.arrived.clone())
        };
        let rooms = lock(&self.hub).rooms(members::MAX_ROOMS);
        let deliveries = self.meters.total();
        let mut last_word = lock(&self.last_word);
        let (before, since) = std::mem::replace(&mut *last_word, (deliveries, Instant::now()));
        MemberState {
            subscriber: Some(self.name.clone()),
            url: Some(self.url.clone()),
            state: self.state_name().to_owned(),
            clients,
            registered: self.registered.load(Ordering::Relaxed),
            arrived,
            deliveries_per_s: members::per_second(deliveries - before, since.elapsed()),
            rooms,
            ..MemberState::of_cluster(&self.cluster, self.is_live.load(Ordering::Relaxed))
        }
    }
}

impl Places {
    /// Whoever calls itself a front is counted, up to a bound: what clients write here is theirs to write.
    fn note_arrival(&mut self, front: &str) {
        if let Some(count) = self.arrived.get_mut(front) {
            *count += 1;
        } else if self.arrived.len() < MAX_FRONTS && front.len() <= MAX_FRONT_BYTES {
            self.arrived.insert(front.to_owned(), 1);
        }
    }
}

/// A place that is kept for a client; given up when dropped.
pub(super) struct Place {
    subscriber: Arc<Subscriber>,
    is_registered: bool,
}

impl Place {
    /// The client takes its place: from here on it is given what it wants.
    pub(super) fn join(self, request: &LiveRequest, client: Client) -> Seat {
        let client = Arc::new(client);
        let joined = lock(&self.subscriber.hub).join(request, &client);
        Seat { place: self, client, joined }
    }

    /// The same for a client that takes what waits for it with [`Seat::next`].
    pub(super) fn join_waiting(self, request: &LiveRequest) -> Seat {
        self.join(request, Client::waiting())
    }

    /// Where the subscriber's connections' tasks run.
    pub(super) fn tasks(&self) -> Tasks {
        self.subscriber.tasks.clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Self { subscriber, is_registered } = self;
        if *is_registered {
            subscriber.registered.fetch_sub(1, Ordering::Relaxed);
            subscriber.meters.registered.decrement(1.0);
        } else {
            lock(&subscriber.places).taken -= 1;
            subscriber.meters.clients.decrement(1.0);
        }
    }
}

/// A client in its place; it leaves when dropped.
pub(super) struct Seat {
    place: Place,
    client: Arc<Client>,
    joined: Joined,
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
    /// What to send next, never empty, in order, for a client without a socket. Cancel-safe.
    pub(super) async fn next(&mut self) -> VecDeque<Delivery> {
        self.client.next().await
    }

    /// The client.
    pub(super) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// What it wants.
    pub(super) fn filter(&self) -> &Filter {
        self.joined.filter()
    }

    /// Wants something else from here on, and, where `last`, the newest windows of what it did not want before. Ends when
    /// that is in force.
    pub(super) async fn change(&mut self, filter: Filter, last: bool) {
        let done = lock(&self.place.subscriber.hub).change(&mut self.joined, filter, last);
        // An error is a shard that stopped, with the process.
        drop(done.await);
    }

    /// Counts messages as written to the socket.
    pub(super) fn written<'a>(&self, deliveries: impl IntoIterator<Item = &'a Delivery>) {
        let mut windows = 0;
        let each = deliveries.into_iter().inspect(|delivery| windows += u64::from(delivery.id().is_some()));
        self.place.subscriber.meters.lag(each);
        self.place.subscriber.meters.delivered(windows);
    }

    /// What tells when the client is to go elsewhere.
    pub(super) fn leave(&self) -> Leave {
        Leave(self.place.subscriber.drains.subscribe())
    }

    /// Cancelled when the process stops and nothing is handed out any more.
    pub(super) fn stop(&self) -> CancellationToken {
        self.place.subscriber.over.clone()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.place.subscriber.hub).leave(&self.joined);
    }
}

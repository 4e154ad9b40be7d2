//! Who is there: every cluster and subscriber writes its state once a second to `emostream.members`.
//!
//! The key is `cluster/NAME` or `subscriber/CLUSTER/NAME`; a member unheard of for three seconds is dead. One
//! process writes the heartbeats of all its members with one append.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior};

use super::tail;
use crate::clock;
use crate::log::program::system_topics;
use crate::log::{Log, LogError, NewRecord, Record, TOPIC_MEMBERS};
use crate::reaction::time::rfc3339;
use crate::shutdown::Tasks;
use crate::sync::lock;

/// How often a member says that it is there.
pub const BEAT: Duration = Duration::from_secs(1);
/// How long after its last word a member is dead.
pub const DEAD_AFTER: Duration = Duration::from_secs(3);
/// Rooms a member names with their viewers: those with the most.
pub const MAX_ROOMS: usize = 100;

/// What a member says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberState {
    /// The cluster, or the one a subscriber belongs to.
    pub cluster: String,
    /// The subscriber's name; null for a cluster.
    pub subscriber: Option<String>,
    /// Where clients reach it; null for a cluster.
    pub url: Option<String>,
    /// `starting`, `live` or `draining`.
    pub state: String,
    /// Open client connections.
    pub clients: u64,
    /// Registered HTTP endpoints.
    #[serde(default)]
    pub registered: u64,
    /// By front: the clients that came from there since this subscriber started.
    #[serde(default)]
    pub arrived: BTreeMap<String, u64>,
    /// Messages written to clients per second, since the last word.
    pub deliveries_per_s: f64,
    /// Viewers by room, the [`MAX_ROOMS`] rooms with the most.
    pub rooms: BTreeMap<String, u64>,
    /// When it said so, by its own clock.
    #[serde(with = "rfc3339")]
    pub time: i64,
}

impl MemberState {
    /// A cluster's.
    pub fn of_cluster(name: &str, is_live: bool) -> Self {
        Self {
            cluster: name.to_owned(),
            subscriber: None,
            url: None,
            state: if is_live { "live" } else { "starting" }.to_owned(),
            clients: 0,
            registered: 0,
            arrived: BTreeMap::new(),
            deliveries_per_s: 0.0,
            rooms: BTreeMap::new(),
            time: clock::wall_ns(),
        }
    }

    fn key(&self) -> String {
        match &self.subscriber {
            None => format!("cluster/{}", self.cluster),
            Some(name) => subscriber_key(&self.cluster, name),
        }
    }
}

/// Before the key of a subscriber: that it is to drain.
pub(super) const DRAIN: &str = "drain/";

pub(super) fn subscriber_key(cluster: &str, name: &str) -> String {
    format!("subscriber/{cluster}/{name}")
}

type Pulse = Box<dyn Fn() -> MemberState + Send + Sync>;

/// The heartbeats of one process.
pub struct Heart {
    log: Arc<dyn Log>,
    pulses: Mutex<Vec<Pulse>>,
    /// There is news that does not wait for the next beat.
    news: Arc<Notify>,
    /// How many members the last successful beat had, and when it was.
    beaten: Mutex<Option<(usize, Instant)>>,
}

impl Heart {
    /// Beats until the process stops, then takes its members away.
    pub fn start(log: Arc<dyn Log>, tasks: &Tasks) -> Arc<Self> {
        let heart =
            Arc::new(Self { log, pulses: Mutex::default(), news: Arc::default(), beaten: Mutex::default() });
        let (beating, stop) = (Arc::clone(&heart), tasks.token());
        tasks.spawn(async move {
            stop.run_until_cancelled(beating.run()).await;
            let leaving = beating.log.append(TOPIC_MEMBERS, 0, beating.records(false));
            if let Ok(Err(error)) = tokio::time::timeout(BEAT, leaving).await {
                tracing::debug!(%error, "members leave without a word");
            }
        });
        heart
    }

    /// Adds a member; `pulse` says its state, and must not block.
    pub fn add(&self, pulse: impl Fn() -> MemberState + Send + Sync + 'static) {
        lock(&self.pulses).push(Box::new(pulse));
        self.news.notify_one();
    }

    /// Who notifies this has the members' states said at once.
    pub(super) fn news(&self) -> Arc<Notify> {
        Arc::clone(&self.news)
    }

    /// Whether all members of this process are known to be there.
    ///
    /// # Errors
    /// Says how many are not.
    pub fn ready(&self) -> Result<(), String> {
        let wanted = lock(&self.pulses).len();
        let beaten = lock(&self.beaten).filter(|(_, at)| at.elapsed() < DEAD_AFTER);
        match beaten.map_or(0, |(members, _)| members) {
            known if known >= wanted => Ok(()),
            known => Err(format!("{known} of {wanted} clusters and subscribers are members")),
        }
    }

    async fn run(&self) {
        let mut ticks = tokio::time::interval(BEAT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.news.notified() => {}
            }
            if let Err(error) = self.beat().await {
                tracing::warn!(%error, "members could not say that they are there");
            }
        }
    }

    async fn beat(&self) -> Result<(), LogError> {
        let records = self.records(true);
        let members = records.len();
        if members == 0 {
            return Ok(());
        }
        if lock(&self.beaten).is_none() {
            self.log.create_topics(&system_topics()).await?;
        }
        self.log.append(TOPIC_MEMBERS, 0, records).await?;
        *lock(&self.beaten) = Some((members, Instant::now()));
        Ok(())
    }

    fn records(&self, are_alive: bool) -> Vec<NewRecord> {
        let states: Vec<MemberState> = lock(&self.pulses).iter().map(|pulse| pulse()).collect();
        let record = |state: &MemberState| {
            let value = if are_alive { Some(Bytes::from(serde_json::to_vec(state).ok()?)) } else { None };
            Some(NewRecord::keyed(state.key(), value))
        };
        states.iter().filter_map(record).collect()
    }
}

/// Everyone's members as one process sees them. Clones share one view.
#[derive(Clone)]
pub struct Members {
    log: Arc<dyn Log>,
    view: watch::Receiver<View>,
}

#[derive(Default)]
struct View {
    seen: BTreeMap<Bytes, Seen>,
    /// Keys of subscribers that somebody asked to drain.
    drains: BTreeSet<Bytes>,
}

/// A member and when it was last heard of, by this process's clock.
#[derive(Clone, Debug)]
struct Seen {
    state: MemberState,
    at: Instant,
}

impl Members {
    /// Follows the members until the process stops.
    pub fn follow(log: Arc<dyn Log>, tasks: &Tasks) -> Self {
        let (sender, view) = watch::channel(View::default());
        let (stop, read) = (tasks.token(), Arc::clone(&log));
        tasks.spawn(async move {
            while let Some(Err(error)) = stop.run_until_cancelled(follow(read.as_ref(), &sender)).await {
                tracing::warn!(%error, "the members cannot be read; trying again");
                stop.run_until_cancelled(tokio::time::sleep(BEAT)).await;
            }
        });
        Self { log, view }
    }

    /// Those who are there, by key: clusters first, then subscribers by cluster and name.
    pub fn alive(&self) -> Vec<MemberState> {
        let view = self.view.borrow();
        let alive = view.seen.values().filter(|seen| seen.at.elapsed() < DEAD_AFTER);
        alive.map(|seen| seen.state.clone()).collect()
    }

    /// Whether that subscriber is there.
    pub(super) fn is_alive(&self, cluster: &str, subscriber: &str) -> bool {
        let view = self.view.borrow();
        let seen = view.seen.get(subscriber_key(cluster, subscriber).as_bytes());
        seen.is_some_and(|seen| seen.at.elapsed() < DEAD_AFTER)
    }

    /// Asks a subscriber to drain, or no longer to. It stays so until it is taken back, also when it starts again.
    ///
    /// # Errors
    /// When the log does not take it.
    pub async fn set_drain(&self, cluster: &str, subscriber: &str, drains: bool) -> Result<(), LogError> {
        let key = format!("{DRAIN}{}", subscriber_key(cluster, subscriber));
        let value = drains.then_some(Bytes::from_static(b"{}"));
        self.log.append(TOPIC_MEMBERS, 0, vec![NewRecord::keyed(key, value)]).await?;
        Ok(())
    }

    /// Tells, at once and with every change, whether that subscriber is to drain; until nobody follows any more.
    pub(super) async fn each_drain(&self, cluster: &str, subscriber: &str, mut tell: impl FnMut(bool)) {
        let (key, mut view) = (Bytes::from(subscriber_key(cluster, subscriber)), self.view.clone());
        loop {
            tell(view.borrow_and_update().drains.contains(&key));
            if view.changed().await.is_err() {
                return;
            }
        }
    }
}

async fn follow(log: &dyn Log, sender: &watch::Sender<View>) -> Result<std::convert::Infallible, LogError> {
    log.create_topics(&system_topics()).await?;
    let (latest, next) = tail::latest(log, TOPIC_MEMBERS).await?;
    for record in latest.into_values() {
        // Someone who was silent before is heard of again within a second, or is dead.
        let is_drain = record.key.as_ref().is_some_and(|key| key.starts_with(DRAIN.as_bytes()));
        if is_drain
            || clock::wall_ms() - record.timestamp_ms
                < i64::try_from(DEAD_AFTER.as_millis()).unwrap_or(i64::MAX)
        {
            note(sender, record);
        }
    }
    let mut reader = log.reader(TOPIC_MEMBERS, 0, next).await?;
    loop {
        let batch = reader.read(1 << 20, DEAD_AFTER).await?;
        batch.records.into_iter().for_each(|record| note(sender, record));
    }
}

fn note(sender: &watch::Sender<View>, record: Record) {
    let Some(key) = record.key else { return };
    if key.starts_with(DRAIN.as_bytes()) {
        let subscriber = key.slice(DRAIN.len()..);
        sender.send_modify(|view| {
            match record.value {
                Some(_) => view.drains.insert(subscriber),
                None => view.drains.remove(&subscriber),
            };
        });
        return;
    }
    let state = record.value.and_then(|value| serde_json::from_slice(&value).ok());
    sender.send_modify(|View { seen, .. }| {
        match state {
            Some(state) => seen.insert(key, Seen { state, at: Instant::now() }),
            None => seen.remove(&key),
        };
        seen.retain(|_, seen| seen.at.elapsed() < DEAD_AFTER);
    });
}

/// What `GET /v1/topology` answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Topology {
    /// By name.
    pub clusters: Vec<ClusterView>,
    /// The rooms with viewers, most first.
    pub rooms: Vec<RoomView>,
}

/// One cluster and its subscribers, by name.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClusterView {
    /// Its name.
    pub name: String,
    /// Those who are there.
    pub subscribers: Vec<SubscriberView>,
}

/// One subscriber.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SubscriberView {
    /// Its name.
    pub name: String,
    /// Where clients reach it.
    pub url: Option<String>,
    /// `starting`, `live` or `draining`.
    pub state: String,
    /// Open client connections.
    pub clients: u64,
    /// Registered HTTP endpoints.
    pub registered: u64,
    /// Messages written to clients per second.
    pub deliveries_per_s: f64,
}

/// One room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RoomView {
    /// Its name.
    pub room: String,
    /// Connections that asked for it.
    pub viewers: u64,
}

impl Topology {
    /// Puts members together.
    pub fn of(members: Vec<MemberState>) -> Self {
        let mut clusters: BTreeMap<String, Vec<SubscriberView>> = BTreeMap::new();
        let mut rooms: BTreeMap<String, u64> = BTreeMap::new();
        for member in members {
            let subscribers = clusters.entry(member.cluster).or_default();
            for (room, viewers) in member.rooms {
                *rooms.entry(room).or_default() += viewers;
            }
            let MemberState { url, state, clients, registered, deliveries_per_s, .. } = member;
            subscribers.extend(member.subscriber.map(|name| SubscriberView {
                name,
                url,
                state,
                clients,
                registered,
                deliveries_per_s,
            }));
        }
        let clusters = clusters.into_iter().map(|(name, subscribers)| ClusterView { name, subscribers });
        let mut rooms: Vec<_> = rooms.into_iter().map(|(room, viewers)| RoomView { room, viewers }).collect();
        rooms.sort_by_key(|room| std::cmp::Reverse(room.viewers));
        Self { clusters: clusters.collect(), rooms }
    }
}

/// A rate, to one digit.
pub(super) fn per_second(delta: u64, since: Duration) -> f64 {
    let seconds = since.as_secs_f64();
    #[allow(clippy::cast_precision_loss)] // a rate for people to read
    if seconds > 0.0 { (delta as f64 / seconds * 10.0).round() / 10.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topology_lists_subscribers_by_cluster_and_rooms_by_viewers() {
        let subscriber = |cluster: &str, name: &str, room: &str, viewers: u64| MemberState {
            subscriber: Some(name.to_owned()),
            url: Some("http://x".to_owned()),
            clients: viewers,
            rooms: BTreeMap::from([(room.to_owned(), viewers)]),
            ..MemberState::of_cluster(cluster, true)
        };
        let members = vec![
            MemberState::of_cluster("b", true),
            subscriber("a", "2", "main", 1),
            subscriber("b", "1", "goal", 5),
            subscriber("a", "1", "main", 2),
        ];
        let topology = Topology::of(members);
        let names: Vec<_> = topology
            .clusters
            .iter()
            .map(|cluster| (cluster.name.as_str(), cluster.subscribers.len()))
            .collect();
        assert_eq!(names, [("a", 2), ("b", 1)]);
        assert_eq!(topology.rooms[0], RoomView { room: "goal".to_owned(), viewers: 5 });
        assert_eq!(topology.rooms[1], RoomView { room: "main".to_owned(), viewers: 3 });
    }
}

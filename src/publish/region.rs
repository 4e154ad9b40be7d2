//! A cluster whose region has a log of its own: what members and registered clients say is carried between the two.
//!
//! Fronts, and the cluster itself, see the central log; subscribers see their region's. So the cluster carries
//!
//! - to the center: its subscribers' heartbeats, and what they say of registered clients;
//! - to the region: who is to drain, who is registered and where each is served.
//!
//! All of that is the latest value of a key, so that carrying one again changes nothing: it begins with what both logs
//! hold, and with what the region was given and the center no longer has, and goes on with what comes. A header says where
//! a carried record is from; it is not carried back there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::members;
use super::registrations::{Client, Registrations, acknowledged_id};
use super::tail;
use crate::log::program::system_topics;
use crate::log::{Log, LogError, NewRecord, Record, TOPIC_MEMBERS, TOPIC_REGISTRATIONS};
use crate::shutdown::Tasks;

/// Header of a carried record: the region it is from, `.` for the center (no cluster has that name).
const HEADER_CARRIED_FROM: &str = "carried-from";
const CENTER: &str = ".";
/// Bytes of one read, about.
const READ_BYTES: usize = 512 << 10;
/// How long one read waits for records. It returns at once when some come.
const READ_WAIT: Duration = Duration::from_secs(5);
/// How long to wait before a log is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Carries between the central log and that of a cluster's region as some of the process's tasks.
pub fn run(
    cluster: &str,
    center: &Arc<dyn Log>,
    region: &Arc<dyn Log>,
    registrations: &Registrations,
    tasks: &Tasks,
) {
    let own = |prefix: &str| format!("{prefix}{}", members::subscriber_key(cluster, ""));
    let up = |topic, begins| Way {
        topic,
        from: Arc::clone(region),
        to: Arc::clone(center),
        from_name: cluster.to_owned(),
        to_name: CENTER.to_owned(),
        begins,
    };
    let down = |topic| Way {
        topic,
        from: Arc::clone(center),
        to: Arc::clone(region),
        from_name: CENTER.to_owned(),
        to_name: cluster.to_owned(),
        begins: Begins::WithWhatIsThere,
    };
    // Who was there before says so again within a second, or is dead.
    let (beats, drains) = (own(""), own(members::DRAIN));
    up(TOPIC_MEMBERS, Begins::AtTheEnd).start(tasks, move |record| starts_with(record, &beats));
    down(TOPIC_MEMBERS).start(tasks, move |record| starts_with(record, &drains));
    // What a client acknowledged here counts while it is served here: later it may be elsewhere, and have more.
    let (served, name) = (registrations.clone(), cluster.to_owned());
    let is_served_here = move |record: &Record| {
        let Some(id) = record.key.as_deref().and_then(acknowledged_id) else { return true };
        let place = |client: &Client<'_>| client.place.map(|place| place.cluster == name);
        served.look(|view| view.client(id).as_ref().and_then(place)) == Some(true)
    };
    up(TOPIC_REGISTRATIONS, Begins::WithWhatIsThere).start(tasks, is_served_here);
    down(TOPIC_REGISTRATIONS).start(tasks, |_| true);
}

fn starts_with(record: &Record, prefix: &str) -> bool {
    record.key.as_ref().is_some_and(|key| key.starts_with(prefix.as_bytes()))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Begins {
    WithWhatIsThere,
    AtTheEnd,
}

/// One topic, one direction.
struct Way {
    topic: &'static str,
    from: Arc<dyn Log>,
    to: Arc<dyn Log>,
    from_name: String,
    to_name: String,
    begins: Begins,
}

impl Way {
    fn start(self, tasks: &Tasks, wanted: impl Fn(&Record) -> bool + Send + Sync + 'static) {
        let stop = tasks.token();
        tasks.spawn(async move {
            while let Some(Err(error)) = stop.run_until_cancelled(self.carry(&wanted)).await {
                let Self { topic, from_name, to_name, .. } = &self;
                tracing::warn!(topic, from_name, to_name, %error, "it is not carried; trying again");
                stop.run_until_cancelled(tokio::time::sleep(RETRY)).await;
            }
        });
    }

    /// From finding where to begin to the first failure.
    async fn carry(
        &self,
        wanted: &(impl Fn(&Record) -> bool + Sync),
    ) -> Result<std::convert::Infallible, LogError> {
        self.from.create_topics(&system_topics()).await?;
        self.to.create_topics(&system_topics()).await?;
        let (there, next) = tail::latest(self.from.as_ref(), self.topic).await?;
        if self.begins == Begins::WithWhatIsThere {
            let known = self.to.latest(self.topic).await?;
            let gone = self.gone(&there, &known);
            let news = there.into_values().filter(|record| is_news(record, &known));
            self.append(news.chain(gone).filter(wanted)).await?;
        }
        let mut reader = self.from.reader(self.topic, 0, next).await?;
        loop {
            let batch = reader.read(READ_BYTES, READ_WAIT).await?;
            self.append(batch.records.into_iter().filter(wanted)).await?;
        }
    }

    /// What the region was given and was removed at the center while nobody carried. The other way nothing is removed for
    /// good: who is registered at the center is served.
    fn gone(&self, there: &BTreeMap<Bytes, Record>, known: &BTreeMap<Bytes, Record>) -> Vec<Record> {
        let is_from_center = |record: &Record| record.header(HEADER_CARRIED_FROM) == Some(CENTER);
        let gone = known.iter().filter(|(key, record)| {
            self.from_name == CENTER && is_from_center(record) && !there.contains_key(*key)
        });
        let removal = |(key, record): (&Bytes, &Record)| Record {
            key: Some(key.clone()),
            value: None,
            headers: Vec::new(),
            ..record.clone()
        };
        gone.map(removal).collect()
    }

    /// Leaves out what is from there, and, towards the center, what is from anywhere: the region has it from the center.
    async fn append(&self, records: impl Iterator<Item = Record>) -> Result<(), LogError> {
        let may_go = |record: &Record| match record.header(HEADER_CARRIED_FROM) {
            Some(from) => self.to_name != CENTER && from != self.to_name,
            None => true,
        };
        let carried = |record: Record| {
            let Record { key, value, .. } = record;
            NewRecord { key, value, ..NewRecord::default() }
                .header(HEADER_CARRIED_FROM, self.from_name.clone())
        };
        let records: Vec<NewRecord> = records.filter(may_go).map(carried).collect();
        if !records.is_empty() {
            self.to.append(self.topic, 0, records).await?;
        }
        Ok(())
    }
}

fn is_news(record: &Record, known: &BTreeMap<Bytes, Record>) -> bool {
    let there = record.key.as_ref().and_then(|key| known.get(key));
    there.is_none_or(|there| there.value != record.value)
}

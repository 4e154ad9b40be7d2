//! Registered clients: HTTP endpoints that live messages are POSTed to. One topic says who they are, where each is served,
//! and what each has.
//!
//! Three keys a client, so that nobody overwrites what somebody else wrote:
//! - `client/ID`: what it asked for, written by the front that took it in;
//! - `place/ID`: the subscriber that serves it, written by that front, and from then on by the cluster alone;
//! - `acknowledged/ID`: up to where it has everything, written by the subscriber.
//!
//! Whoever ends a registration (a front that is asked to, a subscriber that gives up) removes all three.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::tail;
use crate::log::program::system_topics;
use crate::log::{Log, LogError, NewRecord, Record, TOPIC_REGISTRATIONS};
use crate::reaction::live::LiveId;
use crate::reaction::time::rfc3339;
use crate::shutdown::Tasks;

/// Bytes of one read, about.
const READ_BYTES: usize = 1 << 20;
/// How long one read waits for records. It returns at once when some come.
const READ_WAIT: Duration = Duration::from_secs(5);
/// How long to wait before the log is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// How long a writer waits until it reads what it wrote.
const READ_BACK: Duration = Duration::from_secs(2);

/// What a client asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The host as the client wrote it.
    pub host: String,
    /// The port messages are sent to.
    pub port: u16,
    /// The address that the host had, and that messages are sent to whatever becomes of the name.
    pub address: IpAddr,
    /// The only table it wants; all when null.
    pub table: Option<String>,
    /// The only room it wants; all when null.
    pub room: Option<String>,
    /// When it asked, by the front's clock.
    #[serde(with = "rfc3339")]
    pub time: i64,
}

impl Registration {
    /// Where messages are sent.
    pub fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }

    /// Host and port, as the `Host` header has them.
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

/// Who serves a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The cluster.
    pub cluster: String,
    /// Its subscriber.
    pub subscriber: String,
    /// Its how-manieth place it is, from 1.
    pub number: u64,
    /// The subscriber of the same cluster that served it before.
    pub from: Option<String>,
}

/// What a client has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledged {
    /// Everything up to this message; null when it is still to get the first one there is.
    pub id: Option<LiveId>,
    /// The number of the place that serves it no longer, said once its last message is answered.
    pub ended: Option<u64>,
}

/// The keys of one client.
#[derive(Clone, Debug, Default, PartialEq)]
struct Entry {
    registration: Option<Registration>,
    place: Option<Place>,
    acknowledged: Option<Acknowledged>,
}

/// One registered client.
#[derive(Clone, Copy, Debug)]
pub struct Client<'v> {
    /// Its id.
    pub id: &'v str,
    /// What it asked for.
    pub registration: &'v Registration,
    /// Who serves it.
    pub place: Option<&'v Place>,
    /// What it has.
    pub acknowledged: Option<Acknowledged>,
}

/// Everything the topic says. Pure.
#[derive(Debug, Default)]
pub struct View {
    entries: BTreeMap<String, Entry>,
    /// Rises with whatever changes what somebody has to do; messages acknowledged on the way do not.
    changes: u64,
    /// The topic is read up to here; none before all that it held at first is known.
    next: Option<i64>,
}

impl View {
    /// Takes one record in.
    fn apply(&mut self, record: &Record) {
        let Some(key) = record.key.as_deref().and_then(|key| std::str::from_utf8(key).ok()) else { return };
        let Some((kind, id)) = key.split_once('/') else { return };
        let value = record.value.as_deref();
        let entry = self.entries.entry(id.to_owned()).or_default();
        let ended = |entry: &Entry| entry.acknowledged.and_then(|known| known.ended);
        let before = ended(entry);
        match kind {
            "client" => entry.registration = value.and_then(|value| serde_json::from_slice(value).ok()),
            "place" => entry.place = value.and_then(|value| serde_json::from_slice(value).ok()),
            "acknowledged" => entry.acknowledged = value.and_then(|value| serde_json::from_slice(value).ok()),
            _ => {}
        }
        self.changes += u64::from(kind != "acknowledged" || ended(entry) != before);
        if *entry == Entry::default() {
            self.entries.remove(id);
        }
    }

    /// Takes records in as if they were read.
    #[cfg(test)]
    pub(super) fn take(&mut self, records: impl IntoIterator<Item = NewRecord>) {
        for NewRecord { key, value, headers, .. } in records {
            self.apply(&Record { offset: 0, timestamp_ms: 0, key, value, headers });
        }
    }

    /// Whether all registrations there were at first are known.
    pub fn is_loaded(&self) -> bool {
        self.next.is_some()
    }

    /// The client of that id, when it is registered.
    pub fn client(&self, id: &str) -> Option<Client<'_>> {
        self.entries.get_key_value(id).and_then(client)
    }

    /// All that are registered, by id.
    pub fn clients(&self) -> impl Iterator<Item = Client<'_>> {
        self.entries.iter().filter_map(client)
    }

    /// How many clients each subscriber serves, by cluster and name.
    pub fn loads(&self) -> BTreeMap<(&str, &str), u64> {
        let mut loads = BTreeMap::new();
        for place in self.clients().filter_map(|client| client.place) {
            *loads.entry((place.cluster.as_str(), place.subscriber.as_str())).or_default() += 1;
        }
        loads
    }
}

fn client<'v>((id, entry): (&'v String, &'v Entry)) -> Option<Client<'v>> {
    let registration = entry.registration.as_ref()?;
    Some(Client { id, registration, place: entry.place.as_ref(), acknowledged: entry.acknowledged })
}

/// What a client asked for, as a record; a new one has acknowledged nothing.
pub(super) fn record_of(id: &str, registration: &Registration) -> NewRecord {
    NewRecord::keyed(format!("client/{id}"), serde_json::to_vec(registration).ok().map(Bytes::from))
}

/// Who serves a client, as a record.
pub(super) fn place_record(id: &str, place: &Place) -> NewRecord {
    NewRecord::keyed(format!("place/{id}"), serde_json::to_vec(place).ok().map(Bytes::from))
}

/// What a client has, as a record; nothing is known of one that begins.
pub(super) fn acknowledged_record(id: &str, acknowledged: Option<&Acknowledged>) -> NewRecord {
    let value = acknowledged.and_then(|acknowledged| serde_json::to_vec(acknowledged).ok()).map(Bytes::from);
    NewRecord::keyed(format!("acknowledged/{id}"), value)
}

/// The client of which a key says what it has.
pub(super) fn acknowledged_id(key: &[u8]) -> Option<&str> {
    std::str::from_utf8(key).ok()?.strip_prefix("acknowledged/")
}

/// What ends a registration.
pub(super) fn removal(id: &str) -> Vec<NewRecord> {
    ["client", "place", "acknowledged"].map(|kind| NewRecord::keyed(format!("{kind}/{id}"), None)).into()
}

/// The topic as one process sees it. Clones share one view.
#[derive(Clone)]
pub struct Registrations {
    log: Arc<dyn Log>,
    view: watch::Receiver<View>,
}

impl Registrations {
    /// Follows the topic until the process stops.
    pub fn follow(log: Arc<dyn Log>, tasks: &Tasks) -> Self {
        let (sender, view) = watch::channel(View::default());
        let (stop, read) = (tasks.token(), Arc::clone(&log));
        tasks.spawn(async move {
            while let Some(Err(error)) = stop.run_until_cancelled(follow(read.as_ref(), &sender)).await {
                tracing::warn!(%error, "the registrations cannot be read; trying again");
                stop.run_until_cancelled(tokio::time::sleep(RETRY)).await;
            }
        });
        Self { log, view }
    }

    /// Whether all registrations there were at first are known.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn ready(&self) -> Result<(), String> {
        if self.view.borrow().is_loaded() {
            Ok(())
        } else {
            Err("the registrations have not been read yet".to_owned())
        }
    }

    /// Looks at what is known now; must not block.
    pub fn look<T>(&self, look: impl FnOnce(&View) -> T) -> T {
        look(&self.view.borrow())
    }

    /// Waits until there is more to do than what `seen` counts, from 0; returns the new count. Cancel-safe.
    pub(super) async fn changed(&self, seen: u64) -> u64 {
        let mut view = self.view.clone();
        let changed = view.wait_for(|view| view.is_loaded() && view.changes != seen).await;
        match changed.map(|view| view.changes) {
            Ok(changes) => changes,
            Err(_) => std::future::pending().await,
        }
    }

    /// Writes records, in order, and waits a moment until they are read here.
    ///
    /// # Errors
    /// When the log does not take them.
    pub(super) async fn write(&self, records: Vec<NewRecord>) -> Result<(), LogError> {
        let last = self.log.append(TOPIC_REGISTRATIONS, 0, records).await?;
        let mut view = self.view.clone();
        let read_back = view.wait_for(|view| view.next.is_some_and(|next| next > last));
        if tokio::time::timeout(READ_BACK, read_back).await.is_err() {
            tracing::debug!("registrations are written and not read back yet");
        }
        Ok(())
    }
}

async fn follow(log: &dyn Log, sender: &watch::Sender<View>) -> Result<std::convert::Infallible, LogError> {
    log.create_topics(&system_topics()).await?;
    let (latest, next) = tail::latest(log, TOPIC_REGISTRATIONS).await?;
    sender.send_modify(|view| {
        let changes = view.changes + 1;
        *view = View { changes, next: Some(next), ..View::default() };
        latest.values().for_each(|record| view.apply(record));
    });
    let mut reader = log.reader(TOPIC_REGISTRATIONS, 0, next).await?;
    loop {
        let batch = reader.read(READ_BYTES, READ_WAIT).await?;
        sender.send_modify(|view| {
            batch.records.iter().for_each(|record| view.apply(record));
            view.next = Some(batch.next);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registration(host: &str) -> Registration {
        let address = IpAddr::from([127, 0, 0, 1]);
        Registration { host: host.to_owned(), port: 9000, address, table: None, room: None, time: 0 }
    }

    fn place(subscriber: &str, number: u64) -> Place {
        Place { cluster: "a".to_owned(), subscriber: subscriber.to_owned(), number, from: None }
    }

    #[test]
    fn a_client_is_there_from_its_registration_to_its_removal_in_whatever_order_keys_come() {
        let mut view = View::default();
        let acknowledged = Acknowledged { id: Some(LiveId { epoch: 1, sequence: 2 }), ended: None };
        view.take([acknowledged_record("x", Some(&acknowledged)), place_record("x", &place("1", 1))]);
        assert!(view.client("x").is_none() && view.clients().next().is_none() && view.loads().is_empty());
        view.take([record_of("x", &registration("localhost"))]);
        let client = view.client("x").unwrap();
        assert_eq!((client.registration, client.place), (&registration("localhost"), Some(&place("1", 1))));
        assert_eq!(client.acknowledged, Some(acknowledged));
        assert_eq!(view.loads(), BTreeMap::from([(("a", "1"), 1)]));
        view.take(removal("x"));
        assert!(view.client("x").is_none() && view.entries.is_empty());
    }

    #[test]
    fn what_is_acknowledged_on_the_way_is_no_news_and_the_end_of_a_place_is() {
        let mut view = View::default();
        view.take([record_of("x", &registration("h")), place_record("x", &place("1", 1))]);
        let mut changes = view.changes;
        let mut acknowledge = |sequence, ended| {
            let id = Some(LiveId { epoch: 1, sequence });
            view.take([acknowledged_record("x", Some(&Acknowledged { id, ended }))]);
            let before = std::mem::replace(&mut changes, view.changes);
            view.changes > before
        };
        assert_eq!(
            [acknowledge(1, None), acknowledge(2, None), acknowledge(2, Some(1))],
            [false, false, true]
        );
        view.take([record_of("x", &registration("h"))]);
        assert!(view.changes > changes, "it asked again");
    }

    #[test]
    fn what_is_no_registration_is_passed_over() {
        let mut view = View::default();
        let junk = |key: &str, value: &str| NewRecord::keyed(key.to_owned(), Some(value.to_owned().into()));
        view.take([junk("x", "{}"), junk("client/x", "junk"), junk("other/x", "{}")]);
        assert!(view.entries.is_empty());
    }

    #[test]
    fn the_host_header_is_what_the_client_wrote() {
        assert_eq!(registration("board.example").authority(), "board.example:9000");
        assert_eq!(registration("::1").authority(), "[::1]:9000");
    }
}

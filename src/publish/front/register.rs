//! Taking clients in that have an HTTP endpoint of their own: what they may ask for, where they may be, who serves them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::net::lookup_host;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Front;
use crate::clock;
use crate::log::LogError;
use crate::publish::placement::Refused;
use crate::publish::protocol::LiveRequest;
use crate::publish::registrations::{
    Place, Registration, View, acknowledged_record, place_record, record_of, removal,
};
use crate::shutdown::Tasks;
use crate::sync::lock;

/// The longest id of a client, in bytes.
const MAX_ID_BYTES: usize = 128;
/// The longest name of a host, in bytes (RFC 1035).
const MAX_HOST_BYTES: usize = 253;
/// How long a request waits for a name to be looked up.
const LOOKUP: Duration = Duration::from_secs(3);
/// Names that are looked up at a time. Each holds a thread until the system gives up, however long the request waited.
const MAX_LOOKUPS: usize = 16;

/// What a registration looks like, for who sent none.
const EXAMPLE: &str = r#"write {"client_id": "board-1", "host": "127.0.0.1", "port": 9000}, and "table" or "room" to get only one"#;

/// Why a client is not taken in.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The request is wrong; says what to write.
    Wrong(String),
    /// The endpoint is where none may be; says which networks may.
    Outside(String),
    /// As many are registered as may be.
    Full(usize),
    /// As many names are being looked up as may be.
    LooksUp,
    /// Nobody can serve it now.
    NotPlaced(Refused),
    /// This front does not know yet who is registered.
    NotReady(String),
    /// The log does not take it.
    Log(LogError),
}

/// A client as it asks for itself.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    client_id: String,
    host: String,
    port: i64,
    table: Option<String>,
    room: Option<String>,
}

/// The same, checked.
#[derive(Debug, PartialEq)]
struct Checked {
    client_id: String,
    host: String,
    port: u16,
    table: Option<String>,
    room: Option<String>,
}

/// A client that is taken in.
#[derive(Debug)]
pub(super) struct TakenIn {
    pub(super) client_id: String,
    pub(super) cluster: String,
    pub(super) subscriber: String,
    /// It was registered before: its endpoint is replaced and its place kept.
    pub(super) was_known: bool,
}

impl Front {
    /// Registers the client of that body, or replaces its endpoint.
    pub(super) async fn register(&self, body: &[u8]) -> Result<TakenIn, Refusal> {
        let checked = Checked::read(body).map_err(Refusal::Wrong)?;
        let address = self.pin(&checked.host, checked.port).await?;
        self.registrations.ready().map_err(Refusal::NotReady)?;
        let Checked { client_id, host, port, table, room } = checked;
        let registration = Registration { host, port, address, table, room, time: clock::wall_ns() };
        // One at a time: the next one sees where this one went.
        let _writing = self.registering.lock().await;
        let (was_known, place) = self.registrations.look(|view| self.place_registered(view, &client_id))?;
        let mut records = vec![record_of(&client_id, &registration)];
        if !was_known {
            records.push(acknowledged_record(&client_id, None));
        }
        records.extend(place.map(|place| place_record(&client_id, &place)));
        self.registrations.write(records).await.map_err(Refusal::Log)?;
        // Another front may have placed it at the same moment: what the log says last counts.
        let place = self.registrations.look(|view| view.client(&client_id)?.place.cloned());
        let Some(Place { cluster, subscriber, .. }) = place else {
            return Err(Refusal::NotReady(
                "the registration is written and was not read back yet".to_owned(),
            ));
        };
        Ok(TakenIn { client_id, cluster, subscriber, was_known })
    }

    /// Ends a registration; false when there is none.
    pub(super) async fn unregister(&self, client_id: &str) -> Result<bool, Refusal> {
        self.registrations.ready().map_err(Refusal::NotReady)?;
        let _writing = self.registering.lock().await;
        let is_known = self.registrations.look(|view| view.client(client_id).is_some());
        if is_known {
            self.registrations.write(removal(client_id)).await.map_err(Refusal::Log)?;
        }
        Ok(is_known)
    }

    /// Whether the client is known, and its new place if it needs one: when it has none, or nobody of its cluster is there
    /// to give it another.
    fn place_registered(&self, view: &View, client_id: &str) -> Result<(bool, Option<Place>), Refusal> {
        let members = self.alive(view);
        let known = view.client(client_id);
        let before = known.and_then(|client| client.place);
        let has_place = before.is_some_and(|place| {
            members.iter().any(|member| member.subscriber.is_some() && member.cluster == place.cluster)
        });
        if has_place {
            return Ok((true, None));
        }
        if known.is_none() && view.clients().count() >= self.max_registered {
            return Err(Refusal::Full(self.max_registered));
        }
        let chosen = lock(&self.placement).choose(&members, None, self.now_ms());
        let chosen = chosen.map_err(Refusal::NotPlaced)?;
        let place = Place {
            cluster: chosen.cluster.clone(),
            subscriber: chosen.subscriber.clone().unwrap_or_default(),
            number: before.map_or(1, |place| place.number + 1),
            from: None,
        };
        Ok((known.is_some(), Some(place)))
    }

    /// The address of an endpoint, if it may be there.
    async fn pin(&self, host: &str, port: u16) -> Result<IpAddr, Refusal> {
        let unknown = |why: &str| {
            Refusal::Wrong(format!(
                "the host '{host}' has no address ({why}); write a name that this server can look up, or an address"
            ))
        };
        let found = match host.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => {
                let asked = (host.to_owned(), port);
                let looking = async move { lookup_host(asked).await.map(Vec::from_iter) };
                let found = match self.lookups.look_up(LOOKUP, looking).await {
                    LookedUp::TooMany => return Err(Refusal::LooksUp),
                    LookedUp::TooSlow => return Err(unknown("nobody answered in time")),
                    LookedUp::Done(found) => found.map_err(|error| unknown(&error.to_string()))?,
                };
                found.into_iter().map(|address| address.ip()).collect()
            }
        };
        self.register_allow.choose(found).ok_or_else(|| {
            Refusal::Outside(format!(
                "'{host}' is outside of the networks where endpoints may be ({}); [publish] register_allow names them",
                self.register_allow
            ))
        })
    }
}

/// Names being looked up, of all requests together.
#[derive(Debug)]
pub(super) struct Lookups {
    free: Arc<Semaphore>,
    tasks: Tasks,
}

/// What became of looking a name up.
#[derive(Debug, PartialEq)]
enum LookedUp<T> {
    /// Too many others are at it.
    TooMany,
    /// It goes on, and nobody waits for it.
    TooSlow,
    Done(T),
}

impl Default for Lookups {
    fn default() -> Self {
        Self { free: Arc::new(Semaphore::new(MAX_LOOKUPS)), tasks: Tasks::new() }
    }
}

impl Lookups {
    /// Waits for `looking` at most so long; it counts until it ends by itself.
    async fn look_up<T: Send + 'static>(
        &self,
        limit: Duration,
        looking: impl Future<Output = T> + Send + 'static,
    ) -> LookedUp<T> {
        let Ok(place) = Arc::clone(&self.free).try_acquire_owned() else { return LookedUp::TooMany };
        let looking = self.tasks.spawn(async move {
            let found = looking.await;
            drop(place);
            found
        });
        match timeout(limit, looking).await {
            Ok(Ok(found)) => LookedUp::Done(found),
            Ok(Err(_)) | Err(_) => LookedUp::TooSlow,
        }
    }
}

impl Checked {
    fn read(body: &[u8]) -> Result<Self, String> {
        let asked = serde_json::from_slice(body);
        let Asked { client_id, host, port, table, room } =
            asked.map_err(|error| format!("that is no registration ({error}); {EXAMPLE}"))?;
        let is_of_id = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:@".contains(&byte);
        if client_id.is_empty() || client_id.len() > MAX_ID_BYTES || !client_id.bytes().all(is_of_id) {
            return Err(format!(
                "client_id is 1 to {MAX_ID_BYTES} of the letters a-z and A-Z, digits and . _ - : @, such as \"board-1\""
            ));
        }
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&host);
        let is_of_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
        if bare.is_empty() || bare.len() > MAX_HOST_BYTES || !bare.bytes().all(is_of_host) {
            let hint = "host is a name or an address alone, such as \"127.0.0.1\", without http:// and path";
            return Err(hint.to_owned());
        }
        if bare.contains(':') && bare.parse::<IpAddr>().is_err() {
            return Err("host is a name or an address alone; write the port as \"port\"".to_owned());
        }
        let port = u16::try_from(port).ok().filter(|port| *port > 0);
        let port = port.ok_or("port is a number from 1 to 65535, such as 9000")?;
        let wanted = [("table", &table), ("room", &room)];
        let wanted = wanted.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?)));
        LiveRequest::parse(wanted, None)?;
        Ok(Self { host: bare.to_owned(), client_id, port, table, room })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_is_read() {
        let read = |text: &str| Checked::read(text.as_bytes()).unwrap();
        let plain = read(r#"{"client_id": "a.b_c-d:e@f", "host": "127.0.0.1", "port": 9000}"#);
        assert_eq!(
            (plain.client_id.as_str(), plain.host.as_str(), plain.port),
            ("a.b_c-d:e@f", "127.0.0.1", 9000)
        );
        assert_eq!((plain.table, plain.room), (None, None));
        let full = r#"{"client_id": "x", "host": "[::1]", "port": 65535, "table": "t", "room": "r"}"#;
        let full = read(full);
        assert_eq!(
            (full.host.as_str(), full.table.as_deref(), full.room.as_deref()),
            ("::1", Some("t"), Some("r"))
        );
    }

    #[tokio::test]
    async fn names_that_nobody_answers_for_hold_no_more_places_than_there_are() {
        let lookups = Lookups::default();
        let (answer, _) = tokio::sync::watch::channel(());
        let look_up = async |limit| {
            let mut answered = answer.subscribe();
            lookups.look_up(limit, async move { answered.changed().await.is_ok() }).await
        };
        for _ in 0..MAX_LOOKUPS {
            assert_eq!(look_up(Duration::ZERO).await, LookedUp::TooSlow);
        }
        assert_eq!(look_up(LOOKUP).await, LookedUp::TooMany);
        answer.send_replace(());
        while lookups.free.available_permits() < MAX_LOOKUPS {
            tokio::task::yield_now().await;
        }
        assert_eq!(lookups.look_up(LOOKUP, async {}).await, LookedUp::Done(()));
    }

    #[test]
    fn what_is_wrong_is_told_with_what_to_write() {
        let check = |text: &str, said: &str| {
            let told = Checked::read(text.as_bytes()).unwrap_err();
            assert!(told.contains(said), "{text}: {told}");
        };
        let with = |field: &str, value: &str| {
            let fields = [("client_id", "\"x\""), ("host", "\"h\""), ("port", "1")];
            let fields = fields
                .map(|(name, known)| format!("\"{name}\": {}", if name == field { value } else { known }));
            format!("{{{}}}", fields.join(", "))
        };
        check("", "\"client_id\": \"board-1\"");
        check("[]", "board-1");
        check(r#"{"client_id": "x", "host": "h"}"#, "`port`");
        check(r#"{"client_id": "x", "host": "h", "port": 1, "prot": 2}"#, "`prot`");
        for id in ["\"\"", "\"a b\"", "\"a/b\"", "\"ä\"", &format!("\"{}\"", "x".repeat(129))] {
            check(&with("client_id", id), "client_id is 1 to 128");
        }
        for host in ["\"\"", "\"http://h\"", "\"h/path\"", "\"user@h\"", &format!("\"{}\"", "x".repeat(254))]
        {
            check(&with("host", host), "a name or an address alone");
        }
        check(&with("host", "\"h:80\""), "\"port\"");
        for port in ["0", "65536", "-1"] {
            check(&with("port", port), "1 to 65535");
        }
        check(&with("port", "\"80\""), "board-1");
        check(r#"{"client_id": "x", "host": "h", "port": 1, "room": ""}"#, "room takes a name");
    }
}

//! What clients of `/v1/live` say and hear, apart from the windows themselves (those are [`super::message`]).
//!
//! Pure: no async, no clock, no I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;

use super::message::Message;
use crate::reaction::live::{DEFAULT_ROOM, LiveId, MAX_ROOM_BYTES};

/// Rooms one connection may ask for.
pub const MAX_ROOMS: usize = 16;
/// Tables one connection may ask for.
pub const MAX_TABLES: usize = 16;
/// The longest name of a table or room in a request, in bytes.
const MAX_NAME_BYTES: usize = MAX_ROOM_BYTES;
/// The comment that keeps an idle event stream alive.
pub const SSE_HEARTBEAT: Bytes = Bytes::from_static(b": still here\n\n");

/// Which messages a client wants.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Filter {
    /// The same of every room; who asks by `/v1/live` names rooms.
    EveryRoom(Wanted),
    /// Of each of these rooms, what is beside it.
    Rooms(BTreeMap<Arc<str>, Wanted>),
}

/// What a client wants of a room.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// None means every table.
    pub tables: BTreeSet<Arc<str>>,
    /// Windows that are still open too.
    pub early: bool,
}

impl Filter {
    /// The same of each of these rooms.
    pub fn of_rooms(rooms: impl IntoIterator<Item = Arc<str>>, wanted: &Wanted) -> Self {
        Self::Rooms(rooms.into_iter().map(|room| (room, wanted.clone())).collect())
    }

    /// Whether the client wants that message.
    pub fn wants(&self, message: &Message) -> bool {
        let wanted = match self {
            Self::EveryRoom(wanted) => Some(wanted),
            Self::Rooms(rooms) => rooms.get(&message.room),
        };
        wanted.is_some_and(|wanted| wanted.includes(message))
    }
}

impl Wanted {
    /// Wants that too.
    pub fn add(&mut self, other: &Self) {
        if self.tables.is_empty() || other.tables.is_empty() {
            self.tables.clear();
        } else {
            self.tables.extend(other.tables.iter().cloned());
        }
        self.early |= other.early;
    }

    /// Whether that message is wanted, given that it is of the room.
    pub fn includes(&self, message: &Message) -> bool {
        let is_of_table = self.tables.is_empty() || self.tables.contains(&message.table);
        is_of_table && (message.is_final || self.early)
    }
}

/// A request for `/v1/live`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveRequest {
    /// Which messages.
    pub filter: Filter,
    /// The cursor as the client sent it.
    pub after: Option<String>,
    /// Send the newest closed windows first.
    pub last: bool,
    /// The front that sent the client here.
    pub via: Option<String>,
}

impl LiveRequest {
    /// Reads the query's parameters in their order; `last_event_id` is the header of that name, which goes before
    /// `after` because a browser that reconnects repeats the address it was given at first.
    ///
    /// # Errors
    /// Says which parameter is wrong, and what it takes.
    pub fn parse<'a>(
        parameters: impl IntoIterator<Item = (&'a str, &'a str)>,
        last_event_id: Option<&str>,
    ) -> Result<Self, String> {
        let (mut tables, mut rooms) = (BTreeSet::new(), BTreeSet::new());
        let mut after = None;
        let (mut last, mut early) = (false, false);
        let mut via = None;
        for (name, value) in parameters {
            match name {
                "table" => add_name(&mut tables, name, value, MAX_TABLES)?,
                "room" => add_name(&mut rooms, name, value, MAX_ROOMS)?,
                "after" => after = Some(value.to_owned()),
                "last" => last = flag(name, value)?,
                "early" => early = flag(name, value)?,
                "via" => via = Some(value.to_owned()),
                "cluster" => {} // where to connect; here the client is connected already
                _ => {
                    return Err(format!(
                        "there is no parameter '{name}'; there are table, room, after, last, early, cluster"
                    ));
                }
            }
        }
        if rooms.is_empty() {
            rooms.insert(DEFAULT_ROOM.into());
        }
        let after = last_event_id.map(str::to_owned).or(after).filter(|cursor| !cursor.is_empty());
        let filter = Filter::of_rooms(rooms, &Wanted { tables, early });
        Ok(Self { filter, after, last, via })
    }

    /// The cursor: `Err` when it is no live id.
    pub fn cursor(&self) -> Option<Result<LiveId, String>> {
        self.after.as_ref().map(|text| text.parse())
    }
}

/// Adds the name of a room or table that a client wants.
///
/// # Errors
/// When it is no name, or one too many.
pub fn add_name(
    names: &mut BTreeSet<Arc<str>>,
    parameter: &str,
    value: &str,
    limit: usize,
) -> Result<(), String> {
    if value.is_empty() || value.len() > MAX_NAME_BYTES {
        return Err(format!("{parameter} takes a name of 1 to {MAX_NAME_BYTES} bytes"));
    }
    names.insert(value.into());
    if names.len() > limit {
        return Err(format!("at most {limit} times {parameter} in one connection; open another one"));
    }
    Ok(())
}

fn flag(parameter: &str, value: &str) -> Result<bool, String> {
    match value {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(format!("{parameter}= takes 1 or 0, not '{value}'")),
    }
}

/// The event that says that messages may be missing; `after` is the cursor that could not be found.
pub fn gap_event(after: Option<&str>) -> Bytes {
    format!("event: gap\ndata: {}\n\n", json!({ "after": after })).into()
}

/// How long a client that is to go elsewhere waits before it connects again, and is still served here, in
/// milliseconds: each another time, so that they do not all come at once.
pub const DRAIN_RETRY_MS: std::ops::RangeInclusive<u64> = 1_000..=10_000;

/// How much longer than that it is served, so that one that leaves in time misses nothing.
pub const LEAVING_MS: u64 = 1_000;

/// The event that says that the client is to connect again after so many milliseconds, elsewhere.
pub fn drain_event(retry_ms: u64) -> Bytes {
    format!("retry: {retry_ms}\nevent: drain\ndata: {}\n\n", json!({ "retry": retry_ms })).into()
}

/// [`drain_event`] as a WebSocket message.
pub fn drain_message(retry_ms: u64) -> String {
    json!({"type": "drain", "retry": retry_ms}).to_string()
}

/// [`gap_event`] as a WebSocket message.
pub fn gap_message(after: Option<&str>) -> String {
    json!({"type": "gap", "after": after}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::message::{early, message};

    fn parse(parameters: &[(&str, &str)]) -> Result<LiveRequest, String> {
        LiveRequest::parse(parameters.iter().copied(), None)
    }

    #[test]
    fn no_room_means_main_and_no_table_means_all() {
        let filter = parse(&[]).unwrap().filter;
        assert!(filter.wants(&message(1, "any", "main")));
        assert!(!filter.wants(&message(1, "any", "other")));
    }

    #[test]
    fn every_room_is_no_name_of_a_room() {
        let wanted = Wanted { tables: BTreeSet::from(["t".into()]), early: false };
        let everywhere = Filter::EveryRoom(wanted);
        assert!(everywhere.wants(&message(1, "t", "main")) && everywhere.wants(&message(1, "t", "any")));
        assert!(!everywhere.wants(&message(1, "u", "main")) && !everywhere.wants(&early(1, "t", "main", 0)));
        for name in ["", "*", "every"] {
            let asked =
                parse(&[("room", name)]).map(|request| request.filter.wants(&message(1, "t", "main")));
            assert!(asked != Ok(true), "room={name}");
        }
    }

    #[test]
    fn tables_and_rooms_repeat() {
        let filter = parse(&[("table", "t"), ("room", "a"), ("room", "b"), ("table", "u")]).unwrap().filter;
        assert!(filter.wants(&message(1, "u", "b")) && filter.wants(&message(1, "t", "a")));
        assert!(!filter.wants(&message(1, "v", "b")) && !filter.wants(&message(1, "t", "main")));
    }

    #[test]
    fn only_who_asks_for_them_gets_early_results() {
        let early = early(1, "t", "main", 0);
        let wants = |parameters: &[(&str, &str)]| parse(parameters).unwrap().filter.wants(&early);
        assert!(wants(&[("early", "1")]) && !wants(&[]) && !wants(&[("early", "0")]));
        assert!(!wants(&[("early", "1"), ("table", "u")]));
    }

    #[test]
    fn the_header_goes_before_the_parameter() {
        let both = LiveRequest::parse([("after", "e1-1")], Some("e1-2")).unwrap();
        assert_eq!(both.cursor(), Some(Ok(LiveId { epoch: 1, sequence: 2 })));
        assert!(matches!(parse(&[("after", "4711")]).unwrap().cursor(), Some(Err(_))));
        assert_eq!(parse(&[("after", "")]).unwrap().cursor(), None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(parse(&[("rooms", "a")]).unwrap_err().contains("room, after"));
        assert!(parse(&[("last", "yes")]).unwrap_err().contains("last="));
        assert!(parse(&[("early", "often")]).unwrap_err().contains("early="));
        assert!(parse(&[("room", "")]).is_err());
        let rooms: Vec<String> = (0..17).map(|n| n.to_string()).collect();
        let asked: Vec<(&str, &str)> = rooms.iter().map(|room| ("room", room.as_str())).collect();
        assert!(parse(&asked[..16]).is_ok());
        assert!(parse(&asked).unwrap_err().contains("16"));
    }
}

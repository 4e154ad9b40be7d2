//! What a client says over its WebSocket, and what it is answered.
//!
//! Pure: no async, no clock, no I/O.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use super::protocol::{Filter, MAX_ROOMS, MAX_TABLES, Wanted, add_name};
use crate::http::Problem;
use crate::reaction::live::DEFAULT_ROOM;

/// The longest `ref` of a command, in bytes of JSON.
const MAX_REF_BYTES: usize = 64;
/// The table that rows go into when none is named.
const DEFAULT_TABLE: &str = "reactions";

/// What one message of a client says.
#[derive(Debug)]
pub struct Said {
    /// What is to be done, or why nothing can be.
    pub command: Result<Command, String>,
    /// What the client calls it; in every answer to it.
    pub reference: Option<Box<RawValue>>,
}

/// What a client wants done.
#[derive(Debug)]
pub enum Command {
    /// It wants these too; with `last` their newest windows first.
    Subscribe {
        /// Rooms and tables.
        asked: Asked,
        /// Whether their newest windows come first.
        last: bool,
    },
    /// It wants these no longer.
    Unsubscribe(Asked),
    /// It sends rows.
    Send {
        /// The table they go into.
        table: String,
        /// The rows: an array, or one object.
        rows: Box<RawValue>,
    },
}

/// Rooms and tables, as a command names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    rooms: BTreeSet<Arc<str>>,
    wanted: Wanted,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    subscribe: Option<Names>,
    unsubscribe: Option<Names>,
    send: Option<Box<RawValue>>,
    table: Option<String>,
    #[serde(rename = "ref")]
    reference: Option<Box<RawValue>>,
}

/// Only what a message that is wrong may be called.
#[derive(Deserialize)]
struct Reference {
    #[serde(rename = "ref")]
    reference: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Names {
    #[serde(default)]
    room: OneOrMore,
    #[serde(default)]
    table: OneOrMore,
    early: Option<Flag>,
    last: Option<Flag>,
}

#[derive(Default)]
struct OneOrMore(Vec<String>);

impl<'de> Deserialize<'de> for OneOrMore {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = OneOrMore;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name or an array of names")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<OneOrMore, E> {
                Ok(OneOrMore(vec![name.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<OneOrMore, A::Error> {
                let mut all = Vec::new();
                while let Some(name) = names.next_element()? {
                    all.push(name);
                }
                if all.is_empty() {
                    return Err(Error::custom("an empty array names nothing: leave it out, or name some"));
                }
                Ok(OneOrMore(all))
            }
        }
        from.deserialize_any(Names)
    }
}

/// `true` or `false`, or 1 or 0 as in the address.
struct Flag(bool);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(from)? {
            serde_json::Value::Bool(flag) => Ok(Self(flag)),
            number if number == 1 => Ok(Self(true)),
            number if number == 0 => Ok(Self(false)),
            other => Err(Error::custom(format!("{other} is neither true nor false"))),
        }
    }
}

impl Said {
    /// Reads a text message.
    pub fn parse(text: &str) -> Self {
        match serde_json::from_str::<Message>(text) {
            Ok(mut message) => {
                let reference = message.reference.take();
                match reference {
                    Some(long) if long.get().len() > MAX_REF_BYTES => {
                        let detail = format!("ref takes at most {MAX_REF_BYTES} bytes of JSON");
                        Self { command: Err(detail), reference: None }
                    }
                    reference => Self { command: message.command(), reference },
                }
            }
            Err(error) => {
                let named = serde_json::from_str::<Reference>(text).ok().and_then(|named| named.reference);
                let reference = named.filter(|reference| reference.get().len() <= MAX_REF_BYTES);
                Self { command: Err(format!("{error}; {SHAPES}")), reference }
            }
        }
    }
}

/// What a client may say.
const SHAPES: &str = r#"a message is {"subscribe":{"room":…,"table":…,"early":…,"last":…}}, {"unsubscribe":{"room":…,"table":…}} or {"send":[rows],"table":…}, each with "ref" if you like"#;

impl Message {
    fn command(self) -> Result<Command, String> {
        let is_send = self.send.is_some();
        if self.table.is_some() && !is_send {
            return Err(format!("table belongs inside of subscribe, or beside send; {SHAPES}"));
        }
        match (self.subscribe, self.unsubscribe, self.send) {
            (Some(names), None, None) => {
                let last = names.last.as_ref().is_some_and(|flag| flag.0);
                Ok(Command::Subscribe { asked: names.asked()?, last })
            }
            (None, Some(names), None) => {
                if names.early.is_some() || names.last.is_some() {
                    return Err(
                        "unsubscribe takes room and table; early and last belong to subscribe".to_owned()
                    );
                }
                Ok(Command::Unsubscribe(names.asked()?))
            }
            (None, None, Some(rows)) => {
                Ok(Command::Send { table: self.table.unwrap_or_else(|| DEFAULT_TABLE.to_owned()), rows })
            }
            (None, None, None) => Err(SHAPES.to_owned()),
            _ => Err(format!("one message says one thing; {SHAPES}")),
        }
    }
}

impl Names {
    fn asked(self) -> Result<Asked, String> {
        let (mut rooms, mut tables) = (BTreeSet::new(), BTreeSet::new());
        for room in &self.room.0 {
            add_name(&mut rooms, "room", room, MAX_ROOMS)?;
        }
        for table in &self.table.0 {
            add_name(&mut tables, "table", table, MAX_TABLES)?;
        }
        if rooms.is_empty() {
            rooms.insert(DEFAULT_ROOM.into());
        }
        Ok(Asked { rooms, wanted: Wanted { tables, early: self.early.is_some_and(|flag| flag.0) } })
    }
}

impl Asked {
    /// What a client wants that wants these too.
    ///
    /// # Errors
    /// Says which bound that goes beyond.
    pub fn added_to(&self, filter: &Filter) -> Result<Filter, String> {
        let Filter::Rooms(rooms) = filter else { return Ok(filter.clone()) };
        let mut rooms = rooms.clone();
        for room in &self.rooms {
            match rooms.get_mut(room) {
                Some(wanted) => wanted.add(&self.wanted),
                None => drop(rooms.insert(Arc::clone(room), self.wanted.clone())),
            }
        }
        if rooms.len() > MAX_ROOMS {
            return Err(format!("one connection watches at most {MAX_ROOMS} rooms; open another one"));
        }
        if rooms.values().any(|wanted| wanted.tables.len() > MAX_TABLES) {
            return Err(format!(
                "one connection watches at most {MAX_TABLES} tables of a room; open another one"
            ));
        }
        Ok(Filter::Rooms(rooms))
    }

    /// What a client wants that wants these no longer.
    ///
    /// # Errors
    /// When a table is to be taken from a room of which every table is watched.
    pub fn taken_from(&self, filter: &Filter) -> Result<Filter, String> {
        let Filter::Rooms(rooms) = filter else { return Ok(filter.clone()) };
        let mut rooms = rooms.clone();
        for room in &self.rooms {
            let Some(wanted) = rooms.get_mut(room) else { continue };
            if !self.wanted.tables.is_empty() && wanted.tables.is_empty() {
                return Err(format!(
                    "every table of room '{room}' is watched; unsubscribe from the room, then subscribe to the tables \
                     that are to stay"
                ));
            }
            wanted.tables.retain(|table| !self.wanted.tables.contains(table));
            if self.wanted.tables.is_empty() || wanted.tables.is_empty() {
                rooms.remove(room);
            }
        }
        Ok(Filter::Rooms(rooms))
    }
}

/// Rows that were taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Accepted {
    /// How many.
    pub accepted: usize,
    /// What is odd about some of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The answer to `subscribe` and `unsubscribe`: what the connection watches now.
pub fn watching(filter: &Filter, reference: Option<&RawValue>) -> String {
    let watching: serde_json::Map<_, _> = match filter {
        Filter::EveryRoom(_) => serde_json::Map::new(),
        Filter::Rooms(rooms) => rooms
            .iter()
            .map(|(room, Wanted { tables, early })| {
                let tables: Vec<&str> = tables.iter().map(|table| &**table).collect();
                (room.to_string(), json!({"table": tables, "early": early}))
            })
            .collect(),
    };
    answer("watching", &json!({ "room": watching }), reference)
}

/// The answer to `send`.
pub fn accepted(accepted: &Accepted, reference: Option<&RawValue>) -> String {
    answer("accepted", &json!(accepted), reference)
}

/// The answer to what cannot be done. `type` is taken, so the problem's own is `kind`.
pub fn problem(problem: &Problem, reference: Option<&RawValue>) -> String {
    let mut fields = json!(problem);
    if let Some(kind) = fields.as_object_mut().and_then(|fields| fields.shift_remove("type")) {
        fields["kind"] = kind;
    }
    if let Some(seconds) = problem.retry_after_s {
        fields["retry_after"] = seconds.into();
    }
    answer("problem", &fields, reference)
}

fn answer(kind: &str, fields: &serde_json::Value, reference: Option<&RawValue>) -> String {
    let mut answer = serde_json::Map::from_iter([("type".to_owned(), kind.into())]);
    answer.extend(fields.as_object().cloned().unwrap_or_default());
    if let Some(reference) = reference.and_then(|reference| serde_json::from_str(reference.get()).ok()) {
        answer.insert("ref".to_owned(), reference);
    }
    serde_json::Value::Object(answer).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::protocol::LiveRequest;

    fn filter(parameters: &[(&str, &str)]) -> Filter {
        LiveRequest::parse(parameters.iter().copied(), None).unwrap().filter
    }

    /// The command, and its text.
    fn parse(text: &str) -> Command {
        Said::parse(text).command.unwrap_or_else(|detail| panic!("{text}: {detail}"))
    }

    fn wrong(text: &str) -> String {
        Said::parse(text).command.expect_err(text)
    }

    /// What is watched after these commands, as the client is told.
    fn after(start: &[(&str, &str)], commands: &[&str]) -> serde_json::Value {
        let mut filter = filter(start);
        for text in commands {
            filter = match parse(text) {
                Command::Subscribe { asked, .. } => asked.added_to(&filter).unwrap(),
                Command::Unsubscribe(asked) => asked.taken_from(&filter).unwrap(),
                Command::Send { .. } => panic!("{text}"),
            };
        }
        serde_json::from_str::<serde_json::Value>(&watching(&filter, None)).unwrap()["room"].take()
    }

    #[test]
    fn rooms_and_tables_come_and_go() {
        let room = |tables: &[&str]| json!({"table": tables, "early": false});
        assert_eq!(
            after(&[], &[r#"{"subscribe":{"room":["a","b"],"table":"t"}}"#]),
            json!({"a": room(&["t"]), "b": room(&["t"]), "main": room(&[])})
        );
        assert_eq!(
            after(
                &[("room", "a"), ("table", "t")],
                &[
                    r#"{"subscribe":{"room":"a","table":["u","t"]}}"#,
                    r#"{"unsubscribe":{"room":"a","table":"t"}}"#
                ]
            ),
            json!({"a": room(&["u"])})
        );
        assert_eq!(
            after(&[("table", "t")], &[r#"{"subscribe":{}}"#]),
            json!({"main": room(&[])}),
            "no table means every table"
        );
        assert_eq!(after(&[], &[r#"{"unsubscribe":{}}"#]), json!({}), "no room means main");
        assert_eq!(
            after(
                &[("table", "t")],
                &[r#"{"unsubscribe":{"table":"t"}}"#, r#"{"unsubscribe":{"room":"x"}}"#]
            ),
            json!({})
        );
        assert_eq!(
            after(&[], &[r#"{"subscribe":{"room":"main","early":1}}"#]),
            json!({"main": {"table": [], "early": true}})
        );
    }

    #[test]
    fn bounds_hold_for_the_whole_connection() {
        let rooms: Vec<String> = (0..MAX_ROOMS).map(|n| format!("\"r{n}\"")).collect();
        let all = format!(r#"{{"subscribe":{{"room":[{}]}}}}"#, rooms.join(","));
        let Command::Subscribe { asked, .. } = parse(&all) else { panic!() };
        assert!(asked.added_to(&filter(&[])).unwrap_err().contains("at most 16 rooms"));
        assert!(asked.added_to(&Filter::Rooms([].into())).is_ok());
        assert!(wrong(&all.replace("\"r0\"", "\"r0\",\"r16\"")).contains("16"));
        let Command::Unsubscribe(asked) = parse(r#"{"unsubscribe":{"table":"t"}}"#) else { panic!() };
        assert!(asked.taken_from(&filter(&[])).unwrap_err().contains("every table of room 'main'"));
    }

    #[test]
    fn rows_go_to_reactions_unless_another_table_is_named() {
        for (text, table, rows) in [
            (r#"{"send":[{"a":1.0}]}"#, "reactions", r#"[{"a":1.0}]"#),
            (r#"{"table":"t","send":{"a": 1}}"#, "t", r#"{"a": 1}"#),
        ] {
            match parse(text) {
                Command::Send { table: to, rows: sent } => {
                    assert_eq!((to.as_str(), sent.get()), (table, rows))
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_what_to_write() {
        for (text, part) in [
            ("hello", "a message is {\"subscribe\""),
            ("{}", "a message is"),
            ("[]", "a message is"),
            (r#"{"watch":{"room":"a"}}"#, "unknown field `watch`"),
            (r#"{"subscribe":{"rooms":"a"}}"#, "unknown field `rooms`, expected one of `room`, `table`"),
            (r#"{"subscribe":{"room":7}}"#, "a name or an array of names"),
            (r#"{"subscribe":{"room":[]}}"#, "an empty array names nothing"),
            (r#"{"subscribe":{"room":""}}"#, "1 to 256 bytes"),
            (r#"{"subscribe":{"early":"often"}}"#, "neither true nor false"),
            (r#"{"subscribe":{},"send":[]}"#, "one message says one thing"),
            (r#"{"subscribe":{},"table":"t"}"#, "inside of subscribe"),
            (r#"{"unsubscribe":{"last":true}}"#, "early and last belong to subscribe"),
        ] {
            let detail = wrong(text);
            assert!(detail.contains(part), "{text}: {detail}");
        }
    }

    #[test]
    fn every_answer_says_what_the_command_was_called() {
        let said = Said::parse(r#"{"send":[],"ref":{"n":[1,"é"]}}"#);
        let reference = said.reference.as_deref();
        assert_eq!(
            accepted(&Accepted { accepted: 3, warnings: Vec::new() }, reference),
            r#"{"type":"accepted","accepted":3,"ref":{"n":[1,"é"]}}"#
        );
        let wrong = Said::parse(r#"{"sned":[],"ref":7}"#);
        let busy =
            Problem::new(crate::http::StatusCode::SERVICE_UNAVAILABLE, "full", "try again").retry_after(1);
        assert_eq!(
            problem(&Problem { row: Some(2), ..busy }, wrong.reference.as_deref()),
            r#"{"type":"problem","title":"full","status":503,"detail":"try again","row":2,"kind":"about:blank#full","retry_after":1,"ref":7}"#
        );
        let long = format!(r#"{{"send":[],"ref":"{}"}}"#, "x".repeat(MAX_REF_BYTES));
        assert!(Said::parse(&long).command.unwrap_err().contains("at most 64 bytes"));
    }
}

//! A command's own connection to `/v1/live`: Server-Sent Events, by way of a front's redirect where there is one.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use reqwest::{Url, header};
use serde::Deserialize;
use tokio::time::timeout;

use crate::reaction::table::TableKind;
use crate::simulate::sse::{Event, Parser};
use crate::simulate::{endpoint, with_causes};

/// How long a server may take to begin its answer.
const BEGIN: Duration = Duration::from_secs(10);
/// After so long without a byte the connection is taken for dead; the server sends a comment every 20 s.
const SILENT: Duration = Duration::from_secs(60);

/// How long a server may take to say which tables there are.
const ASK: Duration = Duration::from_secs(2);

/// What `--url` and its like take.
///
/// # Errors
/// Says what to write.
pub(super) fn server_url(text: &str) -> Result<Url, String> {
    let of = |text: &str| Url::parse(text).ok().filter(|url| url.scheme() == "http" && url.has_host());
    of(text).ok_or_else(|| {
        let name = text.split_once("://").map_or(text, |(_, name)| name);
        let meant = format!("http://{name}");
        let meant = if of(&meant).is_some() { meant } else { "http://127.0.0.1:8080".to_owned() };
        format!("write {meant} (TLS is not built in)")
    })
}

/// A table as `/v1/tables` has it.
#[derive(Debug, Deserialize)]
struct Listed {
    name: String,
    #[serde(rename = "type")]
    kind: TableKind,
}

/// What keeps windows of these tables from coming as far as that server knows, each in words. Nothing where it does not know:
/// a subscriber has no tables.
pub(super) async fn unheard_of(url: &Url, wanted: &[String]) -> Vec<String> {
    #[derive(Deserialize)]
    struct Tables {
        tables: Vec<Listed>,
    }
    let Ok(client) = reqwest::Client::builder().http1_only().timeout(ASK).build() else { return Vec::new() };
    let asked = client.get(endpoint(url, &["v1", "tables"])).send().await;
    let Ok(answer) = asked.and_then(reqwest::Response::error_for_status) else { return Vec::new() };
    let Ok(Tables { tables }) = answer.json().await else { return Vec::new() };
    wanted.iter().filter_map(|name| unheard(name, &tables)).collect()
}

fn unheard(wanted: &str, tables: &[Listed]) -> Option<String> {
    let of = |kind| {
        let names = tables.iter().filter(|table| table.kind == kind).map(|table| table.name.as_str());
        names.collect::<Vec<_>>().join(", ")
    };
    let sinks = of(TableKind::Sink);
    match tables.iter().find(|table| table.name == wanted).map(|table| table.kind) {
        Some(TableKind::Sink) => None,
        Some(TableKind::Source) => {
            Some(format!("{wanted} is a source table, and windows come from sinks: {sinks}"))
        }
        None => Some(format!("there is no table {wanted} yet; windows come from: {sinks}")),
    }
}

/// Why there are no more events.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The request is wrong: the same again would be answered the same.
    Refused(String),
    /// The server does not answer, or does not go on.
    Outside(String),
}

/// An open stream of events.
pub(super) struct Live {
    chunks: Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>,
    parser: Parser,
    events: VecDeque<Event>,
}

impl Live {
    /// Asks the server at `url` with these parameters.
    pub(super) async fn open(url: &Url, parameters: &[(&str, &str)]) -> Result<Self, Trouble> {
        let mut live = endpoint(url, &["v1", "live"]);
        live.query_pairs_mut().extend_pairs(parameters);
        let client = reqwest::Client::builder().http1_only().build().map_err(|error| outside(url, error))?;
        let request = client.get(live).header(header::ACCEPT, "text/event-stream").send();
        let response = match timeout(BEGIN, request).await {
            Ok(response) => response.map_err(|error| outside(url, error))?,
            Err(_) => return Err(Trouble::Outside(format!("{url}: no answer within {} s", BEGIN.as_secs()))),
        };
        let status = response.status();
        if status.is_success() {
            return Ok(Self {
                chunks: Box::pin(response.bytes_stream()),
                parser: Parser::default(),
                events: VecDeque::new(),
            });
        }
        let problem = response.text().await.map_err(|error| outside(url, error))?;
        match status.is_client_error() {
            true => Err(Trouble::Refused(problem)),
            false => Err(Trouble::Outside(format!("{url}: {status}: {problem}"))),
        }
    }

    /// The next event; `None` when the server closed the stream. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Option<Event>, Trouble> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            let chunk = match timeout(SILENT, self.chunks.next()).await {
                Ok(Some(Ok(chunk))) => chunk,
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => return Err(Trouble::Outside(with_causes(&error.without_url()))),
                Err(_) => return Err(Trouble::Outside(format!("silent for {} s", SILENT.as_secs()))),
            };
            let keep = |event| {
                self.events.push_back(event);
                Ok(())
            };
            self.parser.feed(&chunk, keep).map_err(Trouble::Outside)?;
        }
    }
}

fn outside(url: &Url, error: reqwest::Error) -> Trouble {
    Trouble::Outside(format!("{url}: {}; is `emostream up` running?", with_causes(&error.without_url())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_http_is_refused_with_what_to_write() {
        assert_eq!(server_url("http://127.0.0.1:8080").unwrap().port(), Some(8080));
        for (text, meant) in [
            ("127.0.0.1:8080", "write http://127.0.0.1:8080 "),
            ("localhost:8080", "write http://localhost:8080 "),
            ("https://board.example", "write http://board.example "),
            ("", "write http://127.0.0.1:8080 "),
        ] {
            let said = server_url(text).unwrap_err();
            assert!(said.starts_with(meant), "{text}: {said}");
        }
    }

    #[test]
    fn a_table_that_no_window_comes_from_is_named_with_those_that_do() {
        let tables = serde_json::json!([
            {"name": "emoji_counts", "type": "sink"}, {"name": "reactions", "type": "source", "topic": "r"},
        ]);
        let tables: Vec<Listed> = serde_json::from_value(tables).unwrap();
        let said = |wanted| unheard(wanted, &tables).unwrap_or_default();
        assert_eq!(said("emoji_counts"), "");
        assert_eq!(said("nosuch"), "there is no table nosuch yet; windows come from: emoji_counts");
        assert_eq!(
            said("reactions"),
            "reactions is a source table, and windows come from sinks: emoji_counts"
        );
    }
}

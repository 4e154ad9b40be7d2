//! A command's own connection to `/v1/live`: Server-Sent Events, by way of a front's redirect where there is one.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use reqwest::{Url, header};
use tokio::time::timeout;

use crate::simulate::sse::{Event, Parser};
use crate::simulate::{endpoint, with_causes};

/// How long a server may take to begin its answer.
const BEGIN: Duration = Duration::from_secs(10);
/// After so long without a byte the connection is taken for dead; the server sends a comment every 20 s.
const SILENT: Duration = Duration::from_secs(60);

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

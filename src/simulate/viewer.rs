//! Viewers: each holds one live connection, measures how long after a window's end it arrives, and checks the ids.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures::StreamExt;
use rand::Rng;
use reqwest::{StatusCode, Url, header};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::{Message, protocol::WebSocketConfig};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::tally::Tally;
use super::{Plan, Transport, endpoint, room_name, sse, with_causes};
use crate::clock::wall_ns;
use crate::reaction::live::LiveId;
use crate::reaction::time::Window;
use crate::shutdown::Tasks;

/// Connecting and the handshake end by then, or count as failed.
const JOIN_LIMIT: Duration = Duration::from_secs(10);
/// Read buffer of one WebSocket: windows are small, viewers are many.
const BUFFER_BYTES: usize = 4 << 10;
/// The largest message a viewer takes.
const MOST_BYTES: usize = 4 << 20;

/// Lets viewers join at the plan's rate; they stay until `tasks` is cancelled.
pub(super) fn join_all(
    plan: &Arc<Plan>,
    addresses: &[SocketAddr],
    client: &reqwest::Client,
    tally: &Arc<Tally>,
    tasks: &Tasks,
) {
    let start = Instant::now();
    let (plan, addresses) = (Arc::clone(plan), Arc::<[SocketAddr]>::from(addresses));
    let (client, tally, spawner) = (client.clone(), Arc::clone(tally), tasks.clone());
    tasks.spawn(async move {
        for number in 0..plan.viewers {
            tokio::select! {
                () = tokio::time::sleep_until(start + Duration::from_secs_f64(number as f64 / plan.ramp)) => {}
                () = spawner.cancelled() => return,
            }
            let viewer = Viewer {
                room: room_name(number % plan.rooms),
                by_sse: match plan.transport {
                    Transport::WebSocket => false,
                    Transport::Sse => true,
                    Transport::Both => number % 2 == 1,
                },
                live_url: endpoint(&plan.live_url, &["v1", "live"]),
                addresses: Arc::clone(&addresses),
                client: client.clone(),
                tally: Arc::clone(&tally),
                last_id: None,
                has_joined: false,
            };
            let tasks = spawner.clone();
            spawner.spawn(async move {
                tokio::select! {
                    () = viewer.run() => {}
                    () = tasks.cancelled() => {}
                }
            });
        }
    });
}

struct Viewer {
    room: String,
    by_sse: bool,
    live_url: Url,
    addresses: Arc<[SocketAddr]>,
    client: reqwest::Client,
    tally: Arc<Tally>,

    last_id: Option<LiveId>,
    has_joined: bool,
}

/// One message as a viewer needs it; the rows are skipped unread.
#[derive(Deserialize)]
struct Heard<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
    id: Option<LiveId>,
    window: Option<Window>,
    skipped: Option<u64>,
    retry: Option<u64>,
}

/// One less is watching when it goes.
struct Watching<'a>(&'a Tally);

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        self.0.watching.fetch_sub(1, Relaxed);
    }
}

impl Viewer {
    /// Watches for ever, coming back after each end of a connection.
    async fn run(mut self) {
        let tally = Arc::clone(&self.tally);
        loop {
            let joined_before = self.has_joined;
            let mut again_after = None;
            let outcome = if self.by_sse {
                self.watch_sse(&tally, &mut again_after).await
            } else {
                self.watch_websocket(&tally, &mut again_after).await
            };
            if let Err(trouble) = outcome {
                tally.record_trouble(&trouble);
                // Never connected this time: a failed join, not a lost connection.
                if self.has_joined == joined_before {
                    tally.failed_joins.fetch_add(1, Relaxed);
                }
            }
            let default_wait = Duration::from_millis(rand::rng().random_range(500..2_000));
            tokio::time::sleep(again_after.unwrap_or(default_wait)).await;
        }
    }

    /// The address with the room and, after the first window, where to go on.
    fn address(&self) -> Url {
        let mut url = self.live_url.clone();
        url.query_pairs_mut().append_pair("room", &self.room);
        if let Some(id) = self.last_id {
            url.query_pairs_mut().append_pair("after", &id.to_string());
        }
        url
    }

    fn join<'a>(&mut self, tally: &'a Tally) -> Watching<'a> {
        tally.watching.fetch_add(1, Relaxed);
        let counter = if self.has_joined { &tally.reconnects } else { &tally.joined };
        counter.fetch_add(1, Relaxed);
        self.has_joined = true;
        Watching(tally)
    }

    async fn watch_websocket(
        &mut self,
        tally: &Tally,
        again_after: &mut Option<Duration>,
    ) -> Result<(), String> {
        let mut url = self.address();
        url.set_scheme("ws").map_err(|()| format!("{url} cannot be a WebSocket address"))?;
        let connecting = connect(url.as_str(), &self.addresses);
        let mut socket = tokio::time::timeout(JOIN_LIMIT, connecting)
            .await
            .map_err(|_| format!("no WebSocket handshake within {} s", JOIN_LIMIT.as_secs()))??;
        let _watching = self.join(tally);
        while let Some(message) = socket.next().await {
            match message.map_err(|error| format!("live connection: {error}"))? {
                Message::Text(text) => self.hear(tally, text.as_str(), again_after)?,
                Message::Close(_) => break,
                // Pings are answered by the library.
                _ => {}
            }
        }
        Ok(())
    }

    async fn watch_sse(&mut self, tally: &Tally, again_after: &mut Option<Duration>) -> Result<(), String> {
        let request = self.client.get(self.address()).header(header::ACCEPT, "text/event-stream");
        let response = tokio::time::timeout(JOIN_LIMIT, request.send())
            .await
            .map_err(|_| format!("no answer to a live request within {} s", JOIN_LIMIT.as_secs()))?
            .map_err(|error| with_causes(&error.without_url()))?;
        if response.status() != StatusCode::OK {
            return Err(format!("live request: {}", response.status()));
        }
        let _watching = self.join(tally);
        let (mut stream, mut parser, mut events) =
            (response.bytes_stream(), sse::Parser::default(), Vec::new());
        while let Some(bytes) = stream.next().await {
            let bytes = bytes.map_err(|error| with_causes(&error.without_url()))?;
            parser.feed(&bytes, |event| events.push(event))?;
            for event in events.drain(..) {
                match event.name.as_str() {
                    "" => self.hear(tally, &event.data, again_after)?,
                    "gap" => note_gap(tally),
                    _ => {}
                }
                if let Some(retry_ms) = event.retry_ms {
                    *again_after = Some(Duration::from_millis(retry_ms.min(10_000)));
                }
            }
        }
        Ok(())
    }

    /// Takes note of one message.
    fn hear(&mut self, tally: &Tally, text: &str, again_after: &mut Option<Duration>) -> Result<(), String> {
        let heard: Heard<'_> = serde_json::from_str(text)
            .map_err(|error| format!("a live message that cannot be read: {error}"))?;
        match heard.kind.as_deref() {
            None => {}
            Some("gap") => note_gap(tally),
            Some(_) => *again_after = heard.retry.map(|ms| Duration::from_millis(ms.min(10_000))),
        }
        let (Some(id), Some(window)) = (heard.id, heard.window) else { return Ok(()) };
        match self.last_id {
            Some(last) if id == last => tally.duplicates.fetch_add(1, Relaxed),
            Some(last) if id < last => tally.disordered.fetch_add(1, Relaxed),
            _ => 0,
        };
        self.last_id = self.last_id.max(Some(id));
        tally.skipped.fetch_add(heard.skipped.unwrap_or_default(), Relaxed);
        let since_end_ns = u64::try_from(wall_ns().saturating_sub(window.end)).unwrap_or_default();
        tally.record_delivery(Duration::from_nanos(since_end_ns));
        Ok(())
    }
}

fn note_gap(tally: &Tally) {
    tally.gaps.fetch_add(1, Relaxed);
}

async fn connect(url: &str, addresses: &[SocketAddr]) -> Result<WebSocketStream<TcpStream>, String> {
    let stream = TcpStream::connect(addresses).await.map_err(|error| format!("live connection: {error}"))?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(MOST_BYTES))
        .max_frame_size(Some(MOST_BYTES));
    let (socket, _) = client_async_with_config(url, stream, Some(config))
        .await
        .map_err(|error| format!("WebSocket handshake: {error}"))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn viewer() -> Viewer {
        Viewer {
            room: "main".to_owned(),
            by_sse: false,
            live_url: "http://127.0.0.1:8080/v1/live".parse().unwrap(),
            addresses: Arc::from([]),
            client: reqwest::Client::new(),
            tally: Arc::new(Tally::new(0)),
            last_id: None,
            has_joined: false,
        }
    }

    fn window(id: &str) -> String {
        format!(
            r#"{{"id":"{id}","table":"t","room":"main","window":{{"start":"2026-01-01T00:00:00Z","end":"2026-01-01T00:00:02Z"}},"final":true,"pace_ms":2000,"rows":[{{"a":1}}]}}"#
        )
    }

    #[test]
    fn an_id_heard_twice_or_a_lower_one_is_noticed() {
        let (mut viewer, mut again) = (viewer(), None);
        let tally = Arc::clone(&viewer.tally);
        for id in ["e1-1", "e1-3", "e1-3", "e1-2", "e2-1"] {
            viewer.hear(&tally, &window(id), &mut again).unwrap();
        }
        assert_eq!(tally.deliveries(), 5);
        assert_eq!(tally.duplicates.load(Relaxed), 1);
        assert_eq!(tally.disordered.load(Relaxed), 1);
        assert_eq!(viewer.address().query(), Some("room=main&after=e2-1"));
    }

    #[test]
    fn a_gap_a_drain_and_what_was_skipped_are_noticed() {
        let (mut viewer, mut again) = (viewer(), None);
        let tally = Arc::clone(&viewer.tally);
        viewer.hear(&tally, r#"{"type":"gap"}"#, &mut again).unwrap();
        viewer.hear(&tally, r#"{"type":"drain","retry":3000}"#, &mut again).unwrap();
        viewer.hear(&tally, &window("e1-1").replace("true", r#"true,"skipped":4"#), &mut again).unwrap();
        assert_eq!(tally.gaps.load(Relaxed), 1);
        assert_eq!(tally.skipped.load(Relaxed), 4);
        assert_eq!(again, Some(Duration::from_secs(3)));
        assert_eq!(tally.deliveries(), 1);
        assert!(viewer.hear(&tally, "no JSON", &mut again).is_err());
    }
}

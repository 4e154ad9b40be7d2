//! Rows over a WebSocket: a text message is a row, or an array of rows, taken or refused as a POST of it would be, and
//! answered before the next one is read. So a connection has one message in memory, and who sends faster than the log
//! takes it waits in its own connection.

use std::sync::Arc;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::Ingest;
use super::routes::{accepted, take_json};
use crate::http::upgrade::{FAREWELL, Patience, close_of, config};
use crate::http::{Problem, StatusCode};

/// What one connection reads at a time.
const READ_BUFFER: usize = 4 << 10;

/// Takes rows into that table until the client goes or the process stops.
pub(super) async fn serve((socket, early): (TcpStream, Bytes), ingest: Arc<Ingest>, table: String) {
    let config = Some(config(READ_BUFFER));
    let mut socket = WebSocketStream::from_partially_read(socket, early.into(), Role::Server, config).await;
    let Some((code, reason)) = converse(&mut socket, &ingest, &table).await else { return };
    let farewell = async {
        let frame = CloseFrame { code, reason: Utf8Bytes::from_static(reason) };
        if let Err(error) = socket.close(Some(frame)).await {
            tracing::debug!(%error, "a sender was gone before it could be told");
        }
        while let Some(Ok(_)) = socket.next().await {}
    };
    // Whether it took its leave in time or not: the connection ends.
    drop(timeout(FAREWELL, farewell).await);
}

/// Returns how the connection is to be closed; `None` when it is over already.
async fn converse(
    socket: &mut WebSocketStream<TcpStream>,
    ingest: &Ingest,
    table: &str,
) -> Option<(CloseCode, &'static str)> {
    let (stop, patience) = (ingest.tasks.token(), Patience::default());
    let mut last_word = Instant::now();
    let mut pings = interval_at(last_word + patience.ping_every, patience.ping_every);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let answer = tokio::select! {
            // What was said counts before the silence: on a busy machine an answer may wait in the socket.
            biased;
            () = stop.cancelled() => return Some((CloseCode::Away, "going away")),
            said = socket.next() => {
                let message = match said? {
                    Ok(message) => message,
                    Err(error) => return close_of(&error),
                };
                let answer = match message {
                    Message::Text(rows) => Some(take(ingest, table, rows.into()).await),
                    Message::Binary(_) => Some(refuse("a message is text: one row as JSON, or an array of rows")),
                    _ => None,
                };
                last_word = Instant::now();
                match answer {
                    Some(answer) => Message::text(answer),
                    None => continue,
                }
            }
            () = sleep_until(last_word + patience.silent_for) => {
                return Some((CloseCode::Policy, "no answer to pings"));
            }
            _ = pings.tick() => Message::Ping(Bytes::new()),
        };
        // Who does not read its answers is not heard any longer.
        if !matches!(timeout(patience.stalled_for, socket.send(answer)).await, Ok(Ok(()))) {
            return None;
        }
    }
}

async fn take(ingest: &Ingest, table: &str, rows: Bytes) -> String {
    match take_json(ingest, table, rows).await {
        Ok((count, warnings)) => accepted(count, &warnings),
        Err(problem) => problem.to_json(),
    }
}

fn refuse(detail: &str) -> String {
    Problem::new(StatusCode::BAD_REQUEST, "bad-message", detail).to_json()
}

//! `GET /v1/live`: who asks is given to a subscriber, by WebSocket when upgraded, else as
//! Server-Sent Events.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::SinkExt;
use tokio::time::{Instant, sleep_until, timeout};
use tower_http::cors::{Any, CorsLayer};

use super::gzip;
use super::protocol::{DRAIN_RETRY_MS, LEAVING_MS, LiveRequest, answer, drain_message, gap_message};
use super::queue::Delivery;
use super::sse;
use super::subscriber::{Seat, Subscriber};
use crate::http::{Problem, STALLED_FOR};

/// How often a WebSocket client is pinged.
const PING_EVERY: Duration = Duration::from_secs(25);
/// After so long without a word, pongs included, a WebSocket client is taken for gone.
const SILENT_FOR: Duration = Duration::from_secs(60);
/// How long saying goodbye may take.
const FAREWELL: Duration = Duration::from_secs(2);
/// The longest message a client may send.
const MAX_CLIENT_MESSAGE: usize = 64 << 10;
/// What one connection reads at a time; the library's default of 128 KiB would be the most of an idle one's memory.
const READ_BUFFER: usize = 4 << 10;
/// What is gathered before it is written to the socket, when several messages wait.
const WRITE_BUFFER: usize = 16 << 10;

/// `GET /v1/live`, served by whichever of these subscribers has the fewest clients.
pub fn live_router(subscribers: Vec<Arc<Subscriber>>) -> Router {
    let anywhere = CorsLayer::new().allow_origin(Any).allow_methods([Method::GET]).allow_headers(Any);
    Router::new().route("/v1/live", get(live)).with_state(subscribers.into()).layer(anywhere)
}

async fn live(
    State(subscribers): State<Arc<[Arc<Subscriber>]>>,
    headers: HeaderMap,
    parameters: Result<Query<Vec<(String, String)>>, QueryRejection>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let request = match read_request(&headers, parameters) {
        Ok(request) => request,
        Err(detail) => return Problem::new(StatusCode::BAD_REQUEST, "bad-parameter", detail).into_response(),
    };
    let upgrade = match upgrade {
        Ok(upgrade) => Some(upgrade),
        Err(rejection) if headers.contains_key(header::UPGRADE) => return rejection.into_response(),
        Err(_) => None,
    };
    let Some((subscriber, seat)) = place(&subscribers, &request) else {
        let detail = "no subscriber takes clients now; try again";
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, "full", detail).retry_after(1).into_response();
    };
    match upgrade {
        Some(upgrade) => by_socket(upgrade, subscriber, seat, request.after),
        None => by_events(seat, request.after, accepts_gzip(&headers)),
    }
}

/// The parameters of a request for live windows.
pub(super) fn read_request(
    headers: &HeaderMap,
    parameters: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<LiveRequest, String> {
    let Query(parameters) = parameters.map_err(|rejection| rejection.body_text())?;
    let parameters = parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let last_event_id =
        headers.get("last-event-id").map(|value| value.to_str().map_or(Cow::Borrowed("?"), Cow::Borrowed));
    LiveRequest::parse(parameters, last_event_id.as_deref())
}

/// A seat at the subscriber with the fewest clients that takes one.
fn place<'a>(
    subscribers: &'a [Arc<Subscriber>],
    request: &LiveRequest,
) -> Option<(&'a Arc<Subscriber>, Seat)> {
    let mut by_load: Vec<_> = subscribers.iter().filter(|subscriber| subscriber.ready().is_ok()).collect();
    by_load.sort_by_cached_key(|subscriber| subscriber.clients());
    by_load.into_iter().find_map(|subscriber| Some((subscriber, subscriber.join(request)?)))
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    gzip::accepts(&accepted.collect::<Vec<_>>().join(","))
}

fn by_events(seat: Seat, after: Option<String>, compressed: bool) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        (header::VARY, "accept-encoding"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    let encoding = compressed.then_some([(header::CONTENT_ENCODING, "gzip")]);
    (headers, encoding, Body::from_stream(sse::stream(seat, after, compressed))).into_response()
}

fn by_socket(
    upgrade: WebSocketUpgrade,
    subscriber: &Subscriber,
    seat: Seat,
    after: Option<String>,
) -> Response {
    let tasks = subscriber.tasks().clone();
    upgrade
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_message_size(MAX_CLIENT_MESSAGE)
        .max_frame_size(MAX_CLIENT_MESSAGE)
        .on_upgrade(async move |socket| {
            tasks.spawn(serve_socket(socket, seat, after));
        })
}

/// Why a WebSocket connection ends.
enum End {
    /// The client closed it, or it broke.
    Gone,
    /// The client does not read.
    Stalled,
    /// To be closed with this code and reason.
    Close(u16, &'static str),
}

async fn serve_socket(mut socket: WebSocket, seat: Seat, after: Option<String>) {
    let end = Conversation { socket: &mut socket, seat, after, last_word: Instant::now(), ends_at: None }
        .run()
        .await;
    let farewell = async {
        if let End::Close(code, reason) = end {
            let frame = CloseFrame { code, reason: Utf8Bytes::from_static(reason) };
            socket.send(Message::Close(Some(frame))).await?;
        }
        while let Some(Ok(_)) = socket.recv().await {}
        Ok::<(), axum::Error>(())
    };
    if !matches!(end, End::Stalled)
        && let Ok(Err(error)) = timeout(FAREWELL, farewell).await
    {
        tracing::debug!(%error, "a client left without goodbye");
    }
}

struct Conversation<'a> {
    socket: &'a mut WebSocket,
    seat: Seat,
    /// The cursor the client came with, for the gap it may have missed.
    after: Option<String>,
    /// When the client was last heard.
    last_word: Instant,
    /// The client was told to go elsewhere; then the connection is closed.
    ends_at: Option<Instant>,
}

impl Conversation<'_> {
    async fn run(mut self) -> End {
        let (stop, mut leave) = (self.seat.stop(), self.seat.leave());
        let mut next_ping = Instant::now() + PING_EVERY;
        loop {
            let silent_at = self.last_word + SILENT_FOR;
            let ends_at = self.ends_at.unwrap_or(silent_at);
            let is_told = self.ends_at.is_some();
            let said = tokio::select! {
                deliveries = self.seat.next() => self.deliver(deliveries).await,
                heard = self.socket.recv() => self.hear(heard).await,
                () = stop.cancelled() => {
                    let told = if is_told { Ok(()) } else { self.send_away().await };
                    told.and(Err(End::Close(close_code::AWAY, "going away")))
                }
                () = leave.asked(), if !is_told => self.send_away().await,
                () = sleep_until(next_ping.min(silent_at).min(ends_at)) => {
                    if is_told && Instant::now() >= ends_at {
                        Err(End::Close(close_code::AWAY, "going away"))
                    } else if Instant::now() >= silent_at {
                        Err(End::Close(close_code::POLICY, "no answer to pings"))
                    } else {
                        next_ping = Instant::now() + PING_EVERY;
                        self.say([Message::Ping(Bytes::new())]).await
                    }
                }
            };
            if let Err(end) = said {
                return end;
            }
        }
    }

    async fn deliver(&mut self, deliveries: VecDeque<Delivery>) -> Result<(), End> {
        let mut messages = Vec::with_capacity(deliveries.len());
        for delivery in &deliveries {
            messages.push(match delivery {
                Delivery::Window { message, skipped } => {
                    let text = Utf8Bytes::try_from(message.json(*skipped)).map_err(|_| End::Gone)?;
                    Message::Text(text)
                }
                Delivery::Gap => Message::Text(gap_message(self.after.take().as_deref()).into()),
            });
        }
        self.say(messages).await?;
        self.seat.written(&deliveries);
        Ok(())
    }

    /// Tells the client to connect again elsewhere after a random time, until which it is served.
    async fn send_away(&mut self) -> Result<(), End> {
        let retry_ms = rand::random_range(DRAIN_RETRY_MS);
        self.ends_at = Some(Instant::now() + Duration::from_millis(retry_ms + LEAVING_MS));
        self.say([Message::Text(drain_message(retry_ms).into())]).await
    }

    async fn hear(&mut self, heard: Option<Result<Message, axum::Error>>) -> Result<(), End> {
        self.last_word = Instant::now();
        match heard {
            None | Some(Err(_) | Ok(Message::Close(_))) => Err(End::Gone),
            Some(Ok(Message::Text(text))) => self.say([Message::Text(answer(&text).into())]).await,
            Some(Ok(Message::Binary(_))) => self.say([Message::Text(answer("").into())]).await,
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(()),
        }
    }

    /// Writes messages with as few writes to the socket as they fit in.
    async fn say(&mut self, messages: impl IntoIterator<Item = Message>) -> Result<(), End> {
        let saying = async {
            for message in messages {
                self.socket.feed(message).await?;
            }
            self.socket.flush().await
        };
        match timeout(STALLED_FOR, saying).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Gone),
            Err(_) => Err(End::Stalled),
        }
    }
}

/// Serves on a free port of loopback until `tasks` stop; for tests. Returns host and port.
#[cfg(test)]
pub(super) async fn serve_on_loopback(router: Router, tasks: &crate::shutdown::Tasks) -> String {
    let listener = crate::http::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    crate::http::serve(listener, router, tasks);
    address
}

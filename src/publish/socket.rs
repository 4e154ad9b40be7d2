//! A client's WebSocket after the handshake: one task hears what it says, and writes what waits when it is behind.
//!
//! Windows are written by the client's shard (see [`super::client`]); this task sleeps meanwhile. What the client sends
//! is read and judged by the library, and its answers are the library's frames.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use serde_json::value::RawValue;
use tokio::net::TcpStream;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until, timeout};
use tungstenite::error::Error;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role};
use tungstenite::{Message, Utf8Bytes, WebSocket};

use super::client::{Client, Flushed};
use super::command::{self, Asked, Command, Said};
use super::live::{Live, Patience, TakeRows};
use super::protocol::{DRAIN_RETRY_MS, Filter, LEAVING_MS, LiveRequest, drain_message};
use super::subscriber::{Place, Seat};
use super::wire::Wire;
use crate::http::upgrade::{FAREWELL, close_of, config, say_no_more};
use crate::http::{Problem, StatusCode};

/// What one connection reads at a time; the library's default of 128 KiB would be the most of an idle one's memory.
const READ_BUFFER: usize = 1 << 10;
/// Answers that are put together before they are sent; a client that does not read them is not heard.
const ANSWER_BYTES: usize = 4 << 10;
/// Rows that one client may have under way at once, in messages; more are not read before.
const MAX_SENDS: usize = 4;
/// How much of what a client still sends is thrown away when it is closed.
const DISCARD_BYTES: usize = 1 << 20;

/// Why a connection ends.
#[derive(Debug)]
enum End {
    /// It broke.
    Gone,
    /// The client does not read.
    Stalled,
    /// The client closed it; the answer to that is said.
    Closed,
    /// To be closed with this code and reason.
    Close(CloseCode, &'static str),
}

/// Serves one client until it goes.
pub(super) async fn serve(
    (socket, early): (TcpStream, Bytes),
    place: Place,
    request: LiveRequest,
    live: Arc<Live>,
    may_send: Result<(), Problem>,
) {
    let seat = place.join(&request, Client::on(socket));
    drop(request);
    let mut conversation = Conversation::new(seat, early, &live, may_send);
    let end = conversation.run().await;
    let Conversation { mut websocket, seat, .. } = conversation;
    let client = Arc::clone(seat.client());
    drop(seat);
    client.end();
    if let End::Close(code, reason) = end {
        let frame = CloseFrame { code, reason: Utf8Bytes::from_static(reason) };
        if let Err(error) = websocket.close(Some(frame)) {
            tracing::debug!(%error, "a client was gone before it could be told");
        }
    }
    if matches!(end, End::Stalled)
        && let Some(Err(error)) = client.socket().map(TcpStream::set_zero_linger)
    {
        // Otherwise the kernel goes on for minutes to send what nobody reads.
        tracing::debug!(%error, "SO_LINGER could not be set");
    }
    if matches!(end, End::Closed | End::Close(..)) {
        websocket.get_mut().send();
        drop(websocket);
        // Whether it took its leave in time or not: the connection ends.
        drop(timeout(FAREWELL, farewell(&client)).await);
    }
}

/// Writes the last words, and waits for the client to have read them: a connection that is closed while something of
/// the client is unread is reset, and takes with it what was on the way.
async fn farewell(client: &Client) -> std::io::Result<()> {
    let Some(socket) = client.socket() else { return Ok(()) };
    while client.flush()?.is_blocked {
        socket.writable().await?;
    }
    say_no_more(socket)?;
    let mut discarded = 0;
    while discarded < DISCARD_BYTES {
        socket.readable().await?;
        match discard(socket) {
            Ok(0) => break,
            Ok(length) => discarded += length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn discard(socket: &TcpStream) -> std::io::Result<usize> {
    let mut unread = [0; 4 << 10];
    socket.try_read(&mut unread)
}

struct Conversation {
    seat: Seat,
    websocket: WebSocket<Wire>,
    patience: Patience,
    take_rows: Result<TakeRows, Box<Problem>>,

    /// Answers to rows that were sent and are on their way into the log.
    sends: FuturesUnordered<BoxFuture<'static, String>>,
    /// There may be something to read that does not wait in the socket.
    has_more: bool,
    /// When the client was last heard.
    last_word: Instant,
    next_ping: Instant,
    /// When its patience ends who waits for the client to read.
    stalls_at: Option<Instant>,
    /// The client was told to go elsewhere; then the connection is closed.
    ends_at: Option<Instant>,
}

impl Conversation {
    fn new(seat: Seat, early: Bytes, live: &Live, may_send: Result<(), Problem>) -> Self {
        let now = Instant::now();
        let config = config(READ_BUFFER);
        let wire = Wire::new(Arc::clone(seat.client()), now);
        let nowhere = || {
            let detail = "this process takes no rows; use POST /v1/tables/{table}";
            Problem::new(StatusCode::NOT_IMPLEMENTED, "takes-no-rows", detail)
        };
        let take_rows = may_send.and_then(|()| live.take_rows.clone().ok_or_else(nowhere)).map_err(Box::new);
        Self {
            seat,
            websocket: WebSocket::from_partially_read(wire, early.into(), Role::Server, Some(config)),
            patience: live.patience,
            take_rows,
            sends: FuturesUnordered::new(),
            has_more: true,
            last_word: now,
            next_ping: now + live.patience.ping_every,
            stalls_at: None,
            ends_at: None,
        }
    }

    async fn run(&mut self) -> End {
        let (stop, mut leave) = (self.seat.stop(), self.seat.leave());
        let client = Arc::clone(self.seat.client());
        let Some(socket) = client.socket() else { return End::Gone };
        loop {
            let Ok(flushed) = self.flush() else { return End::Gone };
            let full_until = self.websocket.get_ref().full_until();
            let hears = !flushed.answers_wait && self.sends.len() < MAX_SENDS;
            let is_told = self.ends_at.is_some();
            let deadline = self.next_deadline(full_until);
            let went = tokio::select! {
                () = client.woken() => Ok(()),
                can = socket.writable(), if flushed.is_blocked => can.map_err(|_| End::Gone),
                () = readable(socket, self.has_more), if hears && full_until.is_none() => self.hear().await,
                Some(answer) = self.sends.next(), if !self.sends.is_empty() => self.say(answer),
                () = stop.cancelled() => {
                    let told = if is_told { Ok(()) } else { self.send_away() };
                    told.and(Err(End::Close(CloseCode::Away, "going away")))
                }
                () = leave.asked(), if !is_told => self.send_away(),
                () = sleep_until(deadline) => self.look_at_the_clock().await,
            };
            self.websocket.get_mut().send();
            if let Err(end) = went {
                return end;
            }
        }
    }

    /// Writes what waits.
    fn flush(&mut self) -> std::io::Result<Flushed> {
        let flushed = self.seat.client().flush()?;
        if !flushed.deliveries.is_empty() {
            self.seat.written(&flushed.deliveries);
        }
        if !flushed.is_blocked {
            self.stalls_at = None;
        } else if flushed.moved || self.stalls_at.is_none() {
            self.stalls_at = Some(Instant::now() + self.patience.stalled_for);
        }
        Ok(flushed)
    }

    fn silent_at(&self) -> Instant {
        self.last_word + self.patience.silent_for
    }

    fn next_deadline(&self, full_until: Option<Instant>) -> Instant {
        let others = [full_until, self.stalls_at, self.ends_at];
        others.into_iter().flatten().fold(self.next_ping.min(self.silent_at()), Instant::min)
    }

    async fn look_at_the_clock(&mut self) -> Result<(), End> {
        let now = Instant::now();
        let is_over = |at: Option<Instant>| at.is_some_and(|at| now >= at);
        self.websocket.get_mut().refill(now);
        if is_over(self.ends_at) {
            return Err(End::Close(CloseCode::Away, "going away"));
        }
        if is_over(self.stalls_at) {
            return Err(End::Stalled);
        }
        if now >= self.silent_at() {
            // On a busy machine the answer may wait in the socket.
            self.hear().await?;
            if now >= self.silent_at() {
                return Err(End::Close(CloseCode::Policy, "no answer to pings"));
            }
        }
        if now >= self.next_ping {
            self.next_ping = now + self.patience.ping_every;
            return self.tell(Message::Ping(Bytes::new()));
        }
        Ok(())
    }

    /// Tells the client to connect again elsewhere after a random time, until which it is served.
    fn send_away(&mut self) -> Result<(), End> {
        let retry_ms = rand::random_range(DRAIN_RETRY_MS);
        self.ends_at = Some(Instant::now() + Duration::from_millis(retry_ms + LEAVING_MS));
        self.say(drain_message(retry_ms))
    }

    fn say(&mut self, text: String) -> Result<(), End> {
        self.tell(Message::text(text))
    }

    fn tell(&mut self, message: Message) -> Result<(), End> {
        self.websocket.write(message).map_err(ended)
    }

    /// Hears what there is, as far as the answers are not too many.
    async fn hear(&mut self) -> Result<(), End> {
        let now = Instant::now();
        self.websocket.get_mut().refill(now);
        while self.websocket.get_ref().said() < ANSWER_BYTES && self.sends.len() < MAX_SENDS {
            let message = match self.websocket.read() {
                Ok(message) => message,
                Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                    self.has_more = self.websocket.get_ref().full_until().is_some();
                    return Ok(());
                }
                Err(error) => return Err(ended(error)),
            };
            self.last_word = now;
            match message {
                Message::Text(text) => self.obey(Said::parse(&text)).await?,
                Message::Binary(_) => self.refuse("a message is text, not bytes", None)?,
                Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => {}
            }
        }
        self.has_more = true;
        Ok(())
    }

    async fn obey(&mut self, said: Said) -> Result<(), End> {
        let reference = said.reference.as_deref();
        match said.command {
            Err(detail) => self.refuse(detail, reference),
            Ok(Command::Subscribe { asked, last }) => {
                self.watch(&asked, Asked::added_to, last, reference).await
            }
            Ok(Command::Unsubscribe(asked)) => self.watch(&asked, Asked::taken_from, false, reference).await,
            Ok(Command::Send { table, rows }) => match &self.take_rows {
                Err(problem) => self.say(command::problem(problem, reference)),
                Ok(take_rows) => {
                    let taking = take_rows(table, Box::<str>::from(rows).into_boxed_bytes().into());
                    let reference = said.reference;
                    let answer = async move {
                        match taking.await {
                            Ok(accepted) => command::accepted(&accepted, reference.as_deref()),
                            Err(problem) => command::problem(&problem, reference.as_deref()),
                        }
                    };
                    self.sends.push(answer.boxed());
                    Ok(())
                }
            },
        }
    }

    async fn watch(
        &mut self,
        asked: &Asked,
        change: fn(&Asked, &Filter) -> Result<Filter, String>,
        last: bool,
        reference: Option<&RawValue>,
    ) -> Result<(), End> {
        match change(asked, self.seat.filter()) {
            Ok(filter) => {
                let stop = self.seat.stop();
                stop.run_until_cancelled(self.seat.change(filter, last)).await;
                let answer = command::watching(self.seat.filter(), reference);
                self.say(answer)
            }
            Err(detail) => self.refuse(detail, reference),
        }
    }

    fn refuse(&mut self, detail: impl Into<String>, reference: Option<&RawValue>) -> Result<(), End> {
        let problem = Problem::new(StatusCode::BAD_REQUEST, "bad-command", detail);
        self.say(command::problem(&problem, reference))
    }
}

/// Ends when there may be something to read. Cancel-safe.
async fn readable(socket: &TcpStream, has_more: bool) {
    if has_more {
        yield_now().await;
    } else if let Err(error) = socket.readable().await {
        tracing::debug!(%error, "a connection broke");
    }
}

/// What the library's error means for the connection.
fn ended(error: Error) -> End {
    match (&error, close_of(&error)) {
        (Error::ConnectionClosed | Error::AlreadyClosed, _) => End::Closed,
        (_, Some((code, reason))) => End::Close(code, reason),
        (_, None) => End::Gone,
    }
}

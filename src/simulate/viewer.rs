//! Viewers: each holds one live connection, measures how long after a window's end it arrives, and checks the ids.
//!
//! All of them live on one thread with one buffer to read into, so that one that waits costs little more than its
//! socket, and a delivery little more than the system's read.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rand::Rng;
use reqwest::Url;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::sync::CancellationToken;

use super::answer::{Answer, Chunks};
use super::frames::{Frames, Said, pong};
use super::hearing::{Heard, Order, Texts, follow};
use super::tally::Tally;
use super::{Failure, Plan, Transport, endpoint, resolve, room_name, sse};
use crate::clock::wall_ns;
use crate::reaction::live::LiveId;
use crate::sync::lock;

/// Connecting and the handshake end by then, or count as failed.
const JOIN_LIMIT: Duration = Duration::from_secs(10);
/// The longest that a server may ask a viewer to stay away.
const LONGEST_AWAY: Duration = Duration::from_secs(10);
/// How often a viewer is sent on before it gives up.
const MOST_REDIRECTS: usize = 4;
/// What is read at once, of whichever connection.
const READ_BYTES: usize = 64 << 10;

/// The viewers of one run.
pub(super) struct Viewers {
    stop: CancellationToken,
    ended: oneshot::Receiver<Option<Duration>>,
}

impl Viewers {
    /// Lets viewers join at the plan's rate; they stay until [`Viewers::stop`].
    pub(super) fn start(plan: &Plan, addresses: &[SocketAddr], tally: &Arc<Tally>) -> Result<Self, Failure> {
        let audience = Arc::new(Audience {
            viewers: plan.viewers,
            ramp: plan.ramp,
            rooms: plan.rooms,
            transport: plan.transport,
            live_url: endpoint(&plan.live_url, &["v1", "live"]),
            addresses: addresses.into(),
            tally: Arc::clone(tally),
            desk: Mutex::new(Desk { buffer: vec![0; READ_BYTES].into(), texts: Texts::default() }),
        });
        let failed = |error: std::io::Error| Failure::Outside(format!("cannot start a thread: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (end, ended) = oneshot::channel();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("viewers".to_owned());
        let run = move || {
            runtime.block_on(stopped.run_until_cancelled(audience.join_all()));
            drop(runtime);
            // Nobody listens any more when the run was given up.
            end.send(cpu_time_of_this_thread()).ok();
        };
        thread.spawn(run).map_err(failed)?;
        Ok(Self { stop, ended })
    }

    /// Everyone leaves. Returns the CPU time that the viewers took, where the system tells.
    pub(super) async fn stop(self, limit: Duration) -> Option<Duration> {
        self.stop.cancel();
        tokio::time::timeout(limit, self.ended).await.ok()?.ok()?
    }
}

fn cpu_time_of_this_thread() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

/// What all viewers share.
struct Audience {
    viewers: u64,
    ramp: f64,
    rooms: u64,
    transport: Transport,
    live_url: Url,
    addresses: Box<[SocketAddr]>,
    tally: Arc<Tally>,
    desk: Mutex<Desk>,
}

/// What whoever reads works with.
struct Desk {
    buffer: Box<[u8]>,
    texts: Texts,
}

impl Audience {
    async fn join_all(self: Arc<Self>) {
        let (start, mut watching) = (Instant::now(), JoinSet::new());
        for number in 0..self.viewers {
            tokio::time::sleep_until(start + Duration::from_secs_f64(number as f64 / self.ramp)).await;
            let viewer = Viewer {
                by_sse: match self.transport {
                    Transport::WebSocket => false,
                    Transport::Sse => true,
                    Transport::Both => number % 2 == 1,
                },
                room: number % self.rooms,
                audience: Arc::clone(&self),
                last_id: None,
                has_joined: false,
                again_after: None,
            };
            watching.spawn(viewer.run());
        }
        std::future::pending().await
    }
}

struct Viewer {
    audience: Arc<Audience>,
    room: u64,
    by_sse: bool,

    last_id: Option<LiveId>,
    has_joined: bool,
    /// When the server wants to see it again.
    again_after: Option<Duration>,
}

/// One less is watching when it goes.
struct Watching(Arc<Audience>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.tally.watching.fetch_sub(1, Relaxed);
    }
}

/// An open live stream.
struct Connection {
    stream: TcpStream,
    body: Body,
    /// What came with the answer's head.
    first: Vec<u8>,
}

/// What has been read of a stream's message under way.
enum Body {
    Frames(Frames),
    Events { chunks: Option<Chunks>, events: sse::Parser },
}

/// What is to be done after a read.
#[derive(Default)]
struct Next {
    pong: Option<Vec<u8>>,
    is_over: bool,
}

impl Viewer {
    /// Watches for ever, coming back after each end of a connection.
    async fn run(mut self) {
        loop {
            self.again_after = None;
            // Apart, so that a viewer that watches does not carry what joining takes.
            let joined = Box::pin(tokio::time::timeout(JOIN_LIMIT, self.join())).await;
            let joined = joined.unwrap_or_else(|_| Err(format!("not joined within {JOIN_LIMIT:?}")));
            if joined.is_err() {
                self.audience.tally.failed_joins.fetch_add(1, Relaxed);
            }
            let outcome = match joined {
                Ok(connection) => self.watch(connection).await,
                Err(trouble) => Err(trouble),
            };
            if let Err(trouble) = outcome {
                self.audience.tally.record_trouble(&trouble);
            }
            let default_wait = Duration::from_millis(rand::rng().random_range(500..2_000));
            tokio::time::sleep(self.again_after.unwrap_or(default_wait).min(LONGEST_AWAY)).await;
        }
    }

    /// The address with the room and, after the first window, where to go on.
    fn address(&self) -> Url {
        let mut url = self.audience.live_url.clone();
        url.query_pairs_mut().append_pair("room", &room_name(self.room));
        if let Some(id) = self.last_id {
            url.query_pairs_mut().append_pair("after", &id.to_string());
        }
        url
    }

    /// Connects, and again where the server sends it.
    async fn join(&mut self) -> Result<Connection, String> {
        let audience = Arc::clone(&self.audience);
        let (mut url, mut addresses) = (self.address(), Cow::Borrowed(&*audience.addresses));
        for _ in 0..=MOST_REDIRECTS {
            let stream = TcpStream::connect(&*addresses).await;
            let mut stream = stream.map_err(|error| format!("live connection: {error}"))?;
            stream.set_nodelay(true).map_err(|error| format!("live connection: {error}"))?;
            let key = BASE64_STANDARD.encode(rand::random::<[u8; 16]>());
            let (answer, first) = ask(&mut stream, &request(&url, self.by_sse, &key)).await?;
            let body = match answer.status {
                101 if !self.by_sse => {
                    if answer.accept != Some(derive_accept_key(key.as_bytes())) {
                        return Err("a WebSocket handshake with a wrong Sec-WebSocket-Accept".to_owned());
                    }
                    Body::Frames(Frames::default())
                }
                200 if self.by_sse => {
                    let chunks = answer.is_chunked.then(Chunks::default);
                    Body::Events { chunks, events: sse::Parser::default() }
                }
                status => {
                    let location = answer.location.filter(|_| matches!(status, 301..=303 | 307 | 308));
                    let Some(location) = location else {
                        self.again_after = answer.retry_after_s.map(Duration::from_secs);
                        return Err(format!("live request: {status}"));
                    };
                    url = url.join(&location).map_err(|error| format!("sent to '{location}': {error}"))?;
                    addresses = Cow::Owned(resolve(&url).await.map_err(|error| error.to_string())?);
                    continue;
                }
            };
            return Ok(Connection { stream, body, first });
        }
        Err(format!("sent on more than {MOST_REDIRECTS} times"))
    }

    async fn watch(&mut self, connection: Connection) -> Result<(), String> {
        let Connection { mut stream, mut body, first } = connection;
        let tally = &self.audience.tally;
        tally.watching.fetch_add(1, Relaxed);
        let counter = if self.has_joined { &tally.reconnects } else { &tally.joined };
        counter.fetch_add(1, Relaxed);
        self.has_joined = true;
        let _watching = Watching(Arc::clone(&self.audience));
        let mut next = {
            let audience = Arc::clone(&self.audience);
            let mut desk = lock(&audience.desk);
            self.take(&mut body, &first, &mut desk.texts)?
        };
        drop(first);
        loop {
            if let Some(pong) = next.pong.take() {
                stream.write_all(&pong).await.map_err(|error| format!("live connection: {error}"))?;
            }
            if next.is_over {
                return Ok(());
            }
            next = std::future::poll_fn(|context| self.read(&mut stream, &mut body, context)).await?;
        }
    }

    /// Reads once. A read that does not fill the buffer has emptied the socket, and needs no second one to know it.
    fn read(
        &mut self,
        stream: &mut TcpStream,
        body: &mut Body,
        context: &mut Context<'_>,
    ) -> Poll<Result<Next, String>> {
        let audience = Arc::clone(&self.audience);
        let mut desk = lock(&audience.desk);
        let Desk { buffer, texts } = &mut *desk;
        let mut buffer = ReadBuf::new(buffer);
        let outcome = ready!(Pin::new(stream).poll_read(context, &mut buffer));
        Poll::Ready(match (outcome, &body) {
            (Err(error), _) => Err(format!("live connection: {error}")),
            (Ok(()), Body::Frames(_)) if buffer.filled().is_empty() => {
                Err("live connection: ended without goodbye".to_owned())
            }
            (Ok(()), Body::Events { .. }) if buffer.filled().is_empty() => {
                Ok(Next { is_over: true, ..Next::default() })
            }
            (Ok(()), _) => self.take(body, buffer.filled(), texts),
        })
    }

    /// Takes note of what came.
    fn take(&mut self, body: &mut Body, bytes: &[u8], texts: &mut Texts) -> Result<Next, String> {
        let now_ns = wall_ns();
        let mut next = Next::default();
        match body {
            Body::Frames(frames) => frames.feed(bytes, |said| {
                match said {
                    Said::Message(text) => self.hear(texts.read(text)?, now_ns),
                    Said::Ping(payload) => next.pong = Some(pong(payload, rand::random())),
                    Said::Close => next.is_over = true,
                }
                Ok(())
            })?,
            Body::Events { chunks, events } => {
                let mut take = |bytes: &[u8]| {
                    events.feed(bytes, |event| {
                        match event.name.as_str() {
                            "" => self.hear(texts.read(event.data.as_bytes())?, now_ns),
                            "gap" => self.hear(Heard::Gap, now_ns),
                            _ => {}
                        }
                        if let Some(retry_ms) = event.retry_ms {
                            self.hear(Heard::Drain(retry_ms), now_ns);
                        }
                        Ok(())
                    })
                };
                match chunks {
                    Some(chunks) => {
                        chunks.feed(bytes, take)?;
                        next.is_over = matches!(chunks, Chunks::End);
                    }
                    None => take(bytes)?,
                }
            }
        }
        Ok(next)
    }

    fn hear(&mut self, heard: Heard, now_ns: i64) {
        let tally = &self.audience.tally;
        match heard {
            Heard::Window { id, end, skipped } => {
                match follow(&mut self.last_id, id) {
                    Order::Next => 0,
                    Order::Again => tally.duplicates.fetch_add(1, Relaxed),
                    Order::Back => tally.disordered.fetch_add(1, Relaxed),
                };
                if skipped > 0 {
                    tally.skipped.fetch_add(skipped, Relaxed);
                }
                let since_end_ns = u64::try_from(now_ns.saturating_sub(end)).unwrap_or_default();
                tally.record_delivery(Duration::from_nanos(since_end_ns));
            }
            Heard::Gap => {
                tally.gaps.fetch_add(1, Relaxed);
            }
            Heard::Drain(retry_ms) => self.again_after = Some(Duration::from_millis(retry_ms)),
            Heard::Other => {}
        }
    }
}

/// The request for a live stream. `key` is for the WebSocket handshake.
fn request(url: &Url, by_sse: bool, key: &str) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
    let how = if by_sse {
        "Accept: text/event-stream\r\n".to_owned()
    } else {
        format!(
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
        )
    };
    let agent = concat!("emostream-simulate/", env!("CARGO_PKG_VERSION"));
    let path = url.path();
    format!("GET {path}{query} HTTP/1.1\r\nHost: {host}{port}\r\nUser-Agent: {agent}\r\n{how}\r\n")
}

/// Sends a request; returns the answer's head and what came after it.
async fn ask(stream: &mut TcpStream, request: &str) -> Result<(Answer, Vec<u8>), String> {
    let broken = |error: std::io::Error| format!("live connection: {error}");
    stream.write_all(request.as_bytes()).await.map_err(broken)?;
    let mut bytes = Vec::with_capacity(512);
    loop {
        if stream.read_buf(&mut bytes).await.map_err(broken)? == 0 {
            return Err("live connection: ended before an answer".to_owned());
        }
        if let Some((answer, length)) = Answer::read(&bytes)? {
            bytes.drain(..length);
            return Ok((answer, bytes));
        }
    }
}

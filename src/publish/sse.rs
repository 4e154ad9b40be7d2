//! A client's connection as Server-Sent Events: the body of an endless answer.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::gzip::{self, Block};
use super::protocol::{DRAIN_RETRY_MS, LEAVING_MS, SSE_HEARTBEAT, drain_event, gap_event};
use super::queue::Delivery;
use super::subscriber::{Leave, Seat};

/// After so long without a message a comment is sent, so that nothing between takes the connection for dead.
const HEARTBEAT: Duration = Duration::from_secs(20);

struct Connection {
    seat: Seat,
    leave: Leave,
    stop: CancellationToken,
    /// The cursor the client came with, for the gap it may have missed.
    after: Option<String>,
    waiting: VecDeque<Delivery>,
    /// The client was told to go elsewhere; then it is served no longer.
    ends_at: Option<Instant>,
    /// The client takes its events compressed.
    gzip: Option<gzip::Stream>,
}

/// The stream of one client; ends when the process stops, after what waits already, or when the client is to be
/// elsewhere.
pub(super) fn stream(
    seat: Seat,
    after: Option<String>,
    compressed: bool,
) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
    let mut connection = Connection {
        leave: seat.leave(),
        stop: seat.stop(),
        seat,
        after,
        waiting: VecDeque::new(),
        ends_at: None,
        gzip: compressed.then(gzip::Stream::default),
    };
    async_stream::stream! {
        if let Some(gzip) = &connection.gzip {
            yield Ok(gzip.begin());
        }
        while let Some(event) = connection.event().await {
            yield Ok(event);
        }
        if let Some(gzip) = &connection.gzip {
            yield Ok(gzip.end());
        }
    }
}

impl Connection {
    /// The next event; `None` when the client is to be elsewhere.
    async fn event(&mut self) -> Option<Bytes> {
        if self.waiting.is_empty() {
            let is_told = self.ends_at.is_some();
            let heartbeat = Instant::now() + HEARTBEAT;
            tokio::select! {
                // Before what waits: for a client that is always behind, something always does.
                biased;
                () = self.leave.asked(), if !is_told => return Some(self.send_away(true)),
                () = sleep_until(self.ends_at.unwrap_or(heartbeat).min(heartbeat)) => {
                    let is_over = self.ends_at.is_some_and(|at| at < heartbeat);
                    return if is_over { None } else { Some(self.say(SSE_HEARTBEAT)) };
                }
                taken = self.seat.next() => self.waiting = taken,
                () = self.stop.cancelled() => return if is_told { None } else { Some(self.send_away(false)) },
            }
        }
        let delivery = self.waiting.pop_front()?;
        self.seat.written([&delivery]);
        Some(match (delivery, &mut self.gzip) {
            (Delivery::Window { message, skipped: 0 }, Some(gzip)) => gzip.next(message.block()),
            (Delivery::Window { message, skipped }, _) => self.say(message.sse(skipped)),
            (Delivery::Gap, _) => {
                let event = gap_event(self.after.take().as_deref());
                self.say(event)
            }
        })
    }

    /// An event of this client alone, as it is sent.
    fn say(&mut self, event: Bytes) -> Bytes {
        match &mut self.gzip {
            Some(gzip) => gzip.next(&Block::new(&event)),
            None => event,
        }
    }

    /// Tells the client to connect again elsewhere after a random time; `stays` is whether it is served until then.
    fn send_away(&mut self, stays: bool) -> Bytes {
        let retry_ms = rand::random_range(DRAIN_RETRY_MS);
        let served_ms = if stays { retry_ms + LEAVING_MS } else { 0 };
        self.ends_at = Some(Instant::now() + Duration::from_millis(served_ms));
        self.say(drain_event(retry_ms))
    }
}

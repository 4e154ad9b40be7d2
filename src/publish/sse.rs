//! A client's connection as Server-Sent Events: the body of an endless answer.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::stream::unfold;
use tokio_util::sync::CancellationToken;

use super::protocol::{SSE_HEARTBEAT, gap_event};
use super::queue::Delivery;
use super::subscriber::Seat;

/// After so long without a message a comment is sent, so that nothing between takes the connection for dead.
const HEARTBEAT: Duration = Duration::from_secs(20);

struct Connection {
    seat: Seat,
    stop: CancellationToken,
    /// The cursor the client came with, for the gap it may have missed.
    after: Option<String>,
    waiting: VecDeque<Delivery>,
}

/// The stream of one client; ends when the process stops, after what waits already.
pub(super) fn stream(
    seat: Seat,
    after: Option<String>,
) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
    let connection = Connection { stop: seat.stop(), seat, after, waiting: VecDeque::new() };
    unfold(connection, async |mut connection| Some((Ok(connection.next().await?), connection)))
}

impl Connection {
    async fn next(&mut self) -> Option<Bytes> {
        if self.waiting.is_empty() {
            tokio::select! {
                biased;
                taken = self.seat.next() => self.waiting = taken,
                () = self.stop.cancelled() => return None,
                () = tokio::time::sleep(HEARTBEAT) => return Some(SSE_HEARTBEAT),
            }
        }
        let delivery = self.waiting.pop_front()?;
        self.seat.written([&delivery]);
        Some(match delivery {
            Delivery::Window { message, skipped } => message.sse(skipped),
            Delivery::Gap => gap_event(self.after.take().as_deref()),
        })
    }
}

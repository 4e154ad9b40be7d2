//! One connection as its shard knows it: what waits for it, and, where it has a socket of its own, the way out.
//!
//! A client with a socket that takes what it is given is written to by the shard itself: no task is woken, nothing is
//! copied but into the kernel. Only when the socket is full does something wait here; then the connection's own task
//! writes it out, and until that is done the shard adds to what waits. A client without a socket (its bytes go through
//! an HTTP body, or a request of ours) takes everything that waits. Frames never interleave: whatever is begun is
//! written to its end before anything else, all under one lock that is never held across a wait.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::{Mutex, OnceLock};

use bytes::{Buf, Bytes, BytesMut};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::protocol::gap_message;
use super::queue::{Delivery, Queue};
use crate::reaction::live::LiveId;
use crate::sync::lock;

/// How much of what waits is written at once.
const WRITE_BYTES: usize = 16 << 10;

/// One connection.
#[derive(Debug, Default)]
pub(super) struct Client {
    socket: Option<TcpStream>,
    waiting: Mutex<Waiting>,
    woken: Notify,
}

/// What waits for a client, in the order in which it is written.
#[derive(Debug, Default)]
struct Waiting {
    /// The rest of frames that were begun.
    begun: Bytes,
    /// Frames that answer what this client said.
    said: BytesMut,
    /// What it resumes with: nothing of that is left out.
    first: VecDeque<Delivery>,
    /// What came since.
    queue: Queue,
    /// The cursor that could not be found, until the gap that says so.
    after: Option<Box<str>>,
    /// It is given nothing any more.
    is_over: bool,
}

/// Messages for every client of a group, framed once.
#[derive(Debug)]
pub(super) struct Batch {
    deliveries: Vec<Delivery>,
    frames: OnceLock<Frames>,
}

#[derive(Debug)]
struct Frames {
    bytes: Bytes,
    /// Where each delivery's frame ends.
    ends: Vec<usize>,
}

/// What became of messages that a client was given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Given {
    /// Windows written to its socket.
    pub(super) written: u64,
    /// Closed windows left out because the client is behind.
    pub(super) skipped: u64,
}

/// What became of what waited.
#[derive(Debug, Default)]
pub(super) struct Flushed {
    /// What was begun.
    pub(super) deliveries: Vec<Delivery>,
    /// The socket took something.
    pub(super) moved: bool,
    /// The socket is full, and something waits.
    pub(super) is_blocked: bool,
    /// Among that are answers.
    pub(super) answers_wait: bool,
}

impl Batch {
    /// `deliveries` in the order of their ids.
    pub(super) fn new(deliveries: impl IntoIterator<Item = Delivery>) -> Self {
        Self { deliveries: deliveries.into_iter().collect(), frames: OnceLock::new() }
    }

    pub(super) fn deliveries(&self) -> &[Delivery] {
        &self.deliveries
    }

    /// How many of its first deliveries somebody has who has everything up to `have`.
    pub(super) fn known_to(&self, have: Option<LiveId>) -> usize {
        let is_known = |delivery: &Delivery| delivery.id().is_some_and(|id| Some(id) <= have);
        self.deliveries.iter().rposition(is_known).map_or(0, |last| last + 1)
    }

    /// The id of its last window.
    pub(super) fn last_id(&self) -> Option<LiveId> {
        self.deliveries.iter().rev().find_map(Delivery::id)
    }

    fn frames(&self) -> &Frames {
        self.frames.get_or_init(|| {
            let frames: Vec<Bytes> = self.deliveries.iter().map(|delivery| frame(delivery, None)).collect();
            let mut end = 0;
            let ends = frames.iter().map(|frame| {
                end += frame.len();
                end
            });
            let ends = ends.collect();
            let bytes = if let [only] = frames.as_slice() { only.clone() } else { frames.concat().into() };
            Frames { bytes, ends }
        })
    }
}

/// `after` is the cursor that could not be found.
pub(super) fn frame(delivery: &Delivery, after: Option<&str>) -> Bytes {
    match delivery {
        Delivery::Window { message, skipped } => message.ws(*skipped),
        Delivery::Gap => super::frame::text_frame(gap_message(after).as_bytes()),
    }
}

impl Frames {
    fn start(&self, of: usize) -> usize {
        if of == 0 { 0 } else { self.ends[of - 1] }
    }

    /// The deliveries whose frames begin before `at`.
    fn begun(&self, at: usize) -> usize {
        self.ends.partition_point(|end| *end < at) + 1
    }
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.begun.is_empty() && self.said.is_empty() && self.first.is_empty() && self.queue.is_empty()
    }

    /// What is to be written next; moves deliveries that it takes to `taken`.
    fn next_bytes(&mut self, taken: &mut Vec<Delivery>) -> Option<&mut Bytes> {
        if self.begun.is_empty() {
            if self.said.is_empty() {
                self.begun = self.next_frames(taken);
            } else {
                self.begun = self.said.split().freeze();
                // Otherwise the buffer of a long talk would stay.
                self.said = BytesMut::new();
            }
        }
        (!self.begun.is_empty()).then_some(&mut self.begun)
    }

    fn next_frames(&mut self, taken: &mut Vec<Delivery>) -> Bytes {
        let mut frames = Vec::new();
        let mut length = 0;
        while length < WRITE_BYTES
            && let Some(delivery) = self.first.pop_front().or_else(|| self.queue.pop())
        {
            let after = if delivery.id().is_some() { None } else { self.after.take() };
            let frame = frame(&delivery, after.as_deref());
            length += frame.len();
            frames.push(frame);
            taken.push(delivery);
        }
        if frames.len() == 1 { frames.remove(0) } else { frames.concat().into() }
    }
}

impl Client {
    /// A client that takes what waits for it.
    pub(super) fn waiting() -> Self {
        Self::default()
    }

    /// A client that is written to.
    pub(super) fn on(socket: TcpStream) -> Self {
        Self { socket: Some(socket), ..Self::default() }
    }

    /// Its socket.
    pub(super) fn socket(&self) -> Option<&TcpStream> {
        self.socket.as_ref()
    }

    /// What it is sent before anything else, and the cursor it came with.
    pub(super) fn begin(&self, first: VecDeque<Delivery>, after: Option<&str>) {
        if !first.is_empty() {
            let mut waiting = lock(&self.waiting);
            (waiting.first, waiting.after) = (first, after.map(Box::from));
            self.woken.notify_one();
        }
    }

    /// Gives it what follows the first `from` deliveries of a batch.
    pub(super) fn give(&self, batch: &Batch, mut from: usize) -> Given {
        let mut given = Given::default();
        let mut waiting = lock(&self.waiting);
        if waiting.is_over || from == batch.deliveries.len() {
            return given;
        }
        if let Some(socket) = &self.socket
            && waiting.is_empty()
        {
            let frames = batch.frames();
            let start = frames.start(from);
            match socket.try_write(&frames.bytes[start..]) {
                Ok(written @ 1..) => {
                    let (at, begun) = (start + written, frames.begun(start + written));
                    let windows = batch.deliveries[from..begun].iter().filter_map(Delivery::id);
                    given.written = windows.count() as u64;
                    if at == frames.bytes.len() {
                        return given;
                    }
                    // Of the shared bytes only the frame that was begun is kept: the others may be left out yet.
                    waiting.begun = Bytes::copy_from_slice(&frames.bytes[at..frames.ends[begun - 1]]);
                    from = begun;
                }
                Err(error) if !is_full(&error) => {
                    // Whoever reads from the connection finds that it is broken.
                    waiting.is_over = true;
                    return given;
                }
                Ok(_) | Err(_) => {}
            }
        }
        let queue = &mut waiting.queue;
        given.skipped = batch.deliveries[from..].iter().map(|delivery| queue.add(delivery.clone())).sum();
        drop(waiting);
        self.woken.notify_one();
        given
    }

    /// Ends when something waits, or the client is over. Cancel-safe.
    pub(super) async fn woken(&self) {
        self.woken.notified().await;
    }

    /// Everything that waits, for a client without a socket; waits until there is something. Cancel-safe.
    pub(super) async fn next(&self) -> VecDeque<Delivery> {
        loop {
            let taken = self.take();
            if !taken.is_empty() {
                return taken;
            }
            self.woken.notified().await;
        }
    }

    pub(super) fn take(&self) -> VecDeque<Delivery> {
        let mut waiting = lock(&self.waiting);
        if waiting.first.is_empty() { waiting.queue.take() } else { std::mem::take(&mut waiting.first) }
    }

    /// Puts an answer behind what is begun.
    pub(super) fn say(&self, frames: &[u8]) {
        lock(&self.waiting).said.extend_from_slice(frames);
    }

    /// Gives it nothing any more, and forgets what waits that is no answer.
    pub(super) fn end(&self) {
        let mut waiting = lock(&self.waiting);
        waiting.is_over = true;
        (waiting.first, waiting.queue) = (VecDeque::new(), Queue::default());
    }

    /// Writes what waits, as much as the socket takes.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(super) fn flush(&self) -> io::Result<Flushed> {
        let mut flushed = Flushed::default();
        let Some(socket) = &self.socket else { return Ok(flushed) };
        let mut waiting = lock(&self.waiting);
        while let Some(bytes) = waiting.next_bytes(&mut flushed.deliveries) {
            match socket.try_write(bytes) {
                Ok(written) => {
                    bytes.advance(written);
                    flushed.moved |= written > 0;
                }
                Err(error) if is_full(&error) => {
                    flushed.is_blocked = true;
                    break;
                }
                Err(error) => {
                    waiting.is_over = true;
                    return Err(error);
                }
            }
        }
        flushed.answers_wait = !waiting.said.is_empty();
        Ok(flushed)
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

impl std::ops::AddAssign for Given {
    fn add_assign(&mut self, other: Self) {
        self.written += other.written;
        self.skipped += other.skipped;
    }
}

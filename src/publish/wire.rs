//! The reading side of a client's WebSocket: the library reads from the socket and writes into a buffer, from where
//! what it says goes out between the frames of windows.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::client::Client;

/// How much is read of one client in [`PERIOD`]; what it sends beyond that waits in its own connection. So a flood of
/// whatever costs others no more than this.
const READ_BYTES: usize = 64 << 10;
const PERIOD: Duration = Duration::from_secs(1);

/// What the library takes for the connection. Reading never waits.
#[derive(Debug)]
pub(super) struct Wire {
    client: Arc<Client>,
    out: Vec<u8>,
    left: usize,
    period_began: Instant,
}

impl Wire {
    pub(super) fn new(client: Arc<Client>, now: Instant) -> Self {
        Self { client, out: Vec::new(), left: READ_BYTES, period_began: now }
    }

    /// Begins another period if it is time.
    pub(super) fn refill(&mut self, now: Instant) {
        if now >= self.period_began + PERIOD {
            (self.left, self.period_began) = (READ_BYTES, now);
        }
    }

    /// When more may be read, if not now.
    pub(super) fn full_until(&self) -> Option<Instant> {
        (self.left == 0).then_some(self.period_began + PERIOD)
    }

    /// Bytes that were said and not sent yet.
    pub(super) fn said(&self) -> usize {
        self.out.len()
    }

    /// Sends what was said, behind the frame that is being written.
    pub(super) fn send(&mut self) {
        if !self.out.is_empty() {
            self.client.say(&std::mem::take(&mut self.out));
        }
    }
}

impl Read for Wire {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = into.len().min(self.left);
        let Some(socket) = self.client.socket().filter(|_| length > 0) else {
            return Err(ErrorKind::WouldBlock.into());
        };
        let read = socket.try_read(&mut into[..length])?;
        self.left -= read;
        Ok(read)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

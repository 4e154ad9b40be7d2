//! A share of a subscriber's clients, and the one task that writes to them.
//!
//! A crowd costs what its writes cost: one task takes everything that came meanwhile, and each client gets all of it
//! with one write. There are as many shards as the runtime has workers.

use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;

use super::audience::{Audience, Item};
use super::client::Given;
use super::message::Message;
use super::meters::Meters;
use super::queue::{MAX_WAITING, MAX_WAITING_BYTES};
use crate::sync::lock;

/// Clients that are written to before other tasks of the worker have their turn.
const TURN: usize = 64;

/// What waits for a shard. Messages are bounded: who brings them waits for [`Inbox::room`], so that a burst delays
/// messages and leaves none out. The rest is bounded by the clients, each of which comes, changes and goes in turn.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    waiting: Mutex<Waiting>,
    filled: Notify,
    emptied: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    items: VecDeque<Item>,
    messages: usize,
    bytes: usize,
}

impl Inbox {
    /// Puts something behind what waits.
    pub(super) fn push(&self, item: Item) {
        let mut waiting = lock(&self.waiting);
        if let Item::Message { message, .. } = &item {
            waiting.messages += 1;
            waiting.bytes += message.json.len();
        }
        waiting.items.push_back(item);
        drop(waiting);
        self.filled.notify_one();
    }

    /// Ends when there is room for that message. For the one who brings them.
    pub(super) async fn room(&self, message: &Message) {
        loop {
            let has_room = {
                let Waiting { messages, bytes, .. } = *lock(&self.waiting);
                messages == 0 || messages < MAX_WAITING && bytes + message.json.len() <= MAX_WAITING_BYTES
            };
            if has_room {
                return;
            }
            self.emptied.notified().await;
        }
    }

    /// Takes everything that waits.
    pub(super) fn take(&self) -> VecDeque<Item> {
        let taken = std::mem::take(&mut *lock(&self.waiting)).items;
        self.emptied.notify_one();
        taken
    }

    async fn next(&self) -> VecDeque<Item> {
        loop {
            let taken = self.take();
            if !taken.is_empty() {
                return taken;
            }
            self.filled.notified().await;
        }
    }
}

/// Hands out what comes into the inbox until the process stops, and then what is in it.
pub(super) async fn run(inbox: &Inbox, meters: &Meters, stop: CancellationToken) {
    let mut audience = Audience::default();
    loop {
        let came = stop.run_until_cancelled(inbox.next()).await;
        let is_last = came.is_none();
        let mut given = Given::default();
        for item in came.unwrap_or_else(|| inbox.take()) {
            given += audience.note(item);
        }
        count(meters, given);
        hand_out(&mut audience, meters).await;
        if is_last {
            return;
        }
    }
}

async fn hand_out(audience: &mut Audience, meters: &Meters) {
    let mut turn = 0;
    while let Some((batch, members)) = audience.next_due() {
        let mut given = Given::default();
        let mut lag_taken = false;
        for member in members {
            given += member.give(&batch);
            turn += 1;
            if turn % TURN == 0 {
                // One clock reading for so many clients; a window's lag is not the same for the first and the last.
                if given.written > 0 {
                    meters.lag(batch.deliveries());
                    lag_taken = true;
                }
                count(meters, std::mem::take(&mut given));
                yield_now().await;
            }
        }
        if given.written > 0 && !lag_taken {
            meters.lag(batch.deliveries());
        }
        count(meters, given);
    }
    yield_now().await;
}

fn count(meters: &Meters, given: Given) {
    if given.written > 0 {
        meters.delivered(given.written);
    }
    meters.skipped(given.skipped);
}

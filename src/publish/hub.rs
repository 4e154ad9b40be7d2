//! Where a subscriber's messages meet its clients: the history, and who wants which room.
//!
//! A message goes only to the clients of its room, so that a crowd in one room costs the others nothing. Joining and
//! delivering take the same lock: between what a client resumes from the history and what it gets live, nothing is
//! missing and nothing comes twice.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::history::{Follows, History, Resume};
use super::message::Message;
use super::protocol::{Filter, LiveRequest};
use super::queue::{Delivery, Queue};
use crate::reaction::live::LiveId;
use crate::sync::lock;

/// One connection, as the hub knows it.
#[derive(Debug)]
pub(super) struct Client {
    number: u64,
    filter: Filter,
    /// The client has everything up to here already, from a subscriber that was ahead of this one.
    floor: Option<LiveId>,
    queue: Mutex<Queue>,
    woken: Notify,
}

impl Client {
    /// Everything that waits; waits until there is something. Cancel-safe.
    pub(super) async fn next(&self) -> VecDeque<Delivery> {
        loop {
            let taken = lock(&self.queue).take();
            if !taken.is_empty() {
                return taken;
            }
            self.woken.notified().await;
        }
    }

    fn push(&self, message: &Arc<Message>) -> u64 {
        if !self.filter.wants_of_room(message) || self.floor.is_some_and(|floor| message.id <= floor) {
            return 0;
        }
        let skipped = lock(&self.queue).push(Arc::clone(message));
        self.woken.notify_one();
        skipped
    }

    fn push_gap(&self) {
        lock(&self.queue).push_gap();
        self.woken.notify_one();
    }
}

/// What a client gets when it joins.
pub(super) struct Joined {
    /// Its place in the hub.
    pub client: Arc<Client>,
    /// What it is sent before anything that comes later.
    pub first: VecDeque<Delivery>,
}

/// History and clients of one subscriber.
#[derive(Debug)]
pub(super) struct Hub {
    history: History,
    rooms: HashMap<Arc<str>, HashMap<u64, Arc<Client>>>,
    clients: usize,
    next_number: u64,
}

impl Hub {
    /// Keeps so many messages for clients that resume.
    pub(super) fn new(history: usize) -> Self {
        Self { history: History::new(history), rooms: HashMap::new(), clients: 0, next_number: 0 }
    }

    /// Gives a message to those who want it. Returns how many older ones were left out because clients are behind.
    pub(super) fn deliver(&mut self, message: Arc<Message>) -> u64 {
        match self.history.push(Arc::clone(&message)) {
            Follows::Again => return 0,
            Follows::Gap => {
                self.rooms.values().flat_map(HashMap::values).for_each(|client| client.push_gap())
            }
            Follows::Next => {}
        }
        let clients = self.rooms.get(&message.room).into_iter().flat_map(HashMap::values);
        clients.map(|client| client.push(&message)).sum()
    }

    /// Takes a client in.
    pub(super) fn join(&mut self, request: &LiveRequest) -> Joined {
        let (first, floor) = self.first(request);
        let number = self.next_number;
        self.next_number += 1;
        let client = Arc::new(Client {
            number,
            filter: request.filter.clone(),
            floor,
            queue: Mutex::default(),
            woken: Notify::new(),
        });
        for room in &client.filter.rooms {
            self.rooms.entry(Arc::clone(room)).or_default().insert(number, Arc::clone(&client));
        }
        self.clients += 1;
        Joined { client, first }
    }

    /// Lets a client go.
    pub(super) fn leave(&mut self, client: &Client) {
        for room in &client.filter.rooms {
            if let Some(clients) = self.rooms.get_mut(room) {
                clients.remove(&client.number);
                if clients.is_empty() {
                    self.rooms.remove(room);
                }
            }
        }
        self.clients -= 1;
    }

    /// How many clients there are.
    pub(super) fn clients(&self) -> usize {
        self.clients
    }

    /// The rooms with the most viewers, at most `limit`.
    pub(super) fn rooms(&self, limit: usize) -> BTreeMap<String, u64> {
        let mut rooms: Vec<_> =
            self.rooms.iter().map(|(room, clients)| (clients.len() as u64, room)).collect();
        rooms.sort_unstable_by(|a, b| b.cmp(a));
        rooms.into_iter().take(limit).map(|(viewers, room)| (room.to_string(), viewers)).collect()
    }

    fn first(&self, request: &LiveRequest) -> (VecDeque<Delivery>, Option<LiveId>) {
        let window = |message| Delivery::Window { message, skipped: 0 };
        let resumed = request.cursor().map(|cursor| match cursor {
            Ok(cursor) => (Some(cursor), self.history.after(cursor)),
            Err(_) => (None, Resume::Gap),
        });
        let mut first = VecDeque::new();
        match resumed {
            Some((cursor, Resume::After(messages))) => {
                first
                    .extend(messages.into_iter().filter(|message| request.filter.wants(message)).map(window));
                return (first, cursor);
            }
            Some((_, Resume::Gap)) => first.push_back(Delivery::Gap),
            None => {}
        }
        if request.last {
            first.extend(
                self.history.newest_of_each(|message| request.filter.wants(message)).into_iter().map(window),
            );
        }
        (first, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::message::message;

    fn request(parameters: &[(&str, &str)]) -> LiveRequest {
        LiveRequest::parse(parameters.iter().copied(), None).unwrap()
    }

    fn ids(deliveries: impl IntoIterator<Item = Delivery>) -> Vec<u64> {
        let id = |delivery| match delivery {
            Delivery::Window { message, .. } => message.id.sequence,
            Delivery::Gap => 0,
        };
        deliveries.into_iter().map(id).collect()
    }

    fn waiting(joined: &Joined) -> Vec<u64> {
        ids(lock(&joined.client.queue).take())
    }

    #[test]
    fn a_client_gets_its_rooms_and_tables_from_its_cursor_on() {
        let mut hub = Hub::new(100);
        for (sequence, room) in [(1, "main"), (2, "a"), (3, "main")] {
            hub.deliver(message(sequence, "t", room));
        }
        let main = hub.join(&request(&[("after", "e1-1")]));
        let both = hub.join(&request(&[("room", "a"), ("room", "main"), ("after", "e1-0")]));
        let other = hub.join(&request(&[("table", "u")]));
        assert_eq!(ids(main.first.clone()), [3]);
        assert_eq!(ids(both.first.clone()), [1, 2, 3]);
        hub.deliver(message(4, "t", "a"));
        hub.deliver(message(5, "t", "main"));
        assert_eq!((waiting(&main), waiting(&both), waiting(&other)), (vec![5], vec![4, 5], vec![]));
    }

    #[test]
    fn a_client_from_a_subscriber_ahead_gets_nothing_twice() {
        let mut hub = Hub::new(100);
        hub.deliver(message(1, "t", "main"));
        let ahead = hub.join(&request(&[("after", "e1-3")]));
        for sequence in 2..=4 {
            hub.deliver(message(sequence, "t", "main"));
        }
        assert_eq!((ids(ahead.first.clone()), waiting(&ahead)), (vec![], vec![4]));
    }

    #[test]
    fn a_lost_cursor_hears_of_a_gap_and_goes_on() {
        let mut hub = Hub::new(1);
        for sequence in 1..=5 {
            hub.deliver(message(sequence, "t", "main"));
        }
        for after in ["e1-1", "e9-1", "nonsense"] {
            let joined = hub.join(&request(&[("after", after)]));
            assert_eq!(ids(joined.first.clone()), [0], "{after}");
        }
        let joined = hub.join(&request(&[("after", "e1-1"), ("last", "1")]));
        assert_eq!(ids(joined.first.clone()), [0, 5]);
    }

    #[test]
    fn a_hole_in_the_topic_is_told_to_everyone() {
        let mut hub = Hub::new(10);
        hub.deliver(message(1, "t", "main"));
        let joined = hub.join(&request(&[("room", "elsewhere")]));
        hub.deliver(message(3, "t", "main"));
        assert_eq!(waiting(&joined), [0]);
    }

    #[test]
    fn who_leaves_gets_nothing_and_counts_no_more() {
        let mut hub = Hub::new(10);
        let (one, two) = (hub.join(&request(&[])), hub.join(&request(&[("room", "a")])));
        assert_eq!((hub.clients(), hub.rooms(1).len(), hub.rooms(9).len()), (2, 1, 2));
        hub.leave(&one.client);
        hub.deliver(message(1, "t", "main"));
        assert_eq!((waiting(&one), hub.clients()), (vec![], 1));
        hub.leave(&two.client);
        assert_eq!(hub.rooms(9).len(), 0);
    }
}

//! Where a subscriber's messages meet its clients: the history, and the shards that hold the clients.
//!
//! Joining and delivering take the same lock, and what happens goes to the shards in that order: between what a client
//! resumes from the history and what it gets live, nothing is missing and nothing comes twice.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::audience::{Item, Member};
use super::client::Client;
use super::history::{Follows, History, Resume};
use super::message::Message;
use super::protocol::{Filter, LiveRequest};
use super::queue::Delivery;
use super::shard::Inbox;
use crate::reaction::live::LiveId;

/// History and clients of one subscriber.
#[derive(Debug)]
pub(super) struct Hub {
    history: History,
    shards: Vec<Arc<Inbox>>,
    /// What clients want, each once, and how many want it.
    filters: HashMap<Arc<Filter>, u64>,
    next_number: u64,
}

/// A client's place in the hub.
#[derive(Debug)]
pub(super) struct Joined {
    number: u64,
    filter: Arc<Filter>,
}

impl Joined {
    /// What the client wants.
    pub(super) fn filter(&self) -> &Filter {
        &self.filter
    }
}

impl Hub {
    /// Keeps so many messages for clients that resume.
    pub(super) fn new(history: usize, shards: Vec<Arc<Inbox>>) -> Self {
        Self { history: History::new(history), shards, filters: HashMap::new(), next_number: 0 }
    }

    /// Gives a message to those who want it.
    pub(super) fn deliver(&mut self, message: Arc<Message>) {
        let after_gap = match self.history.push(Arc::clone(&message)) {
            Follows::Again => return,
            Follows::Gap => true,
            Follows::Next => false,
        };
        for shard in &self.shards {
            shard.push(Item::Message { message: Arc::clone(&message), after_gap });
        }
    }

    /// Takes a client in, which begins with what it missed.
    pub(super) fn join(&mut self, request: &LiveRequest, client: &Arc<Client>) -> Joined {
        let (first, floor) = self.first(request);
        let given = first.iter().rev().find_map(Delivery::id);
        client.begin(first, request.after.as_deref());
        let number = self.next_number;
        self.next_number += 1;
        let filter = self.take_filter(request.filter.clone());
        let floor = floor.max(self.history.newest());
        let member = Member { client: Arc::clone(client), floor, given };
        self.shard(number).push(Item::Join { number, filter: Arc::clone(&filter), member });
        Joined { number, filter }
    }

    /// A client wants something else from here on, and, where `last`, the newest windows of what it did not want before.
    /// What is returned ends when that is in force.
    pub(super) fn change(
        &mut self,
        joined: &mut Joined,
        filter: Filter,
        last: bool,
    ) -> oneshot::Receiver<()> {
        let new = |message: &Message| last && filter.wants(message) && !joined.filter.wants(message);
        let last = self.history.newest_of_each(new);
        let filter = self.take_filter(filter);
        self.drop_filter(&joined.filter);
        joined.filter = Arc::clone(&filter);
        let (done, is_done) = oneshot::channel();
        let (number, newest) = (joined.number, self.history.newest());
        self.shard(number).push(Item::Change { number, filter, newest, last, done });
        is_done
    }

    /// Lets a client go.
    pub(super) fn leave(&mut self, joined: &Joined) {
        self.drop_filter(&joined.filter);
        self.shard(joined.number).push(Item::Leave(joined.number));
    }

    /// The newest message that was seen.
    pub(super) fn newest(&self) -> Option<LiveId> {
        self.history.newest()
    }

    /// The rooms with the most viewers, at most `limit`.
    pub(super) fn rooms(&self, limit: usize) -> BTreeMap<String, u64> {
        let mut viewers: HashMap<&Arc<str>, u64> = HashMap::new();
        for (filter, clients) in &self.filters {
            if let Filter::Rooms(rooms) = &**filter {
                rooms.keys().for_each(|room| *viewers.entry(room).or_default() += clients);
            }
        }
        let mut rooms: Vec<_> = viewers.into_iter().map(|(room, viewers)| (viewers, room)).collect();
        rooms.sort_unstable_by(|a, b| b.cmp(a));
        rooms.into_iter().take(limit).map(|(viewers, room)| (room.to_string(), viewers)).collect()
    }

    fn shard(&self, number: u64) -> &Inbox {
        #[allow(clippy::cast_possible_truncation)] // which of a few
        &self.shards[number as usize % self.shards.len()]
    }

    /// The one copy of a filter.
    fn take_filter(&mut self, filter: Filter) -> Arc<Filter> {
        if let Some((known, _)) = self.filters.get_key_value(&filter) {
            let known = Arc::clone(known);
            *self.filters.entry(Arc::clone(&known)).or_default() += 1;
            return known;
        }
        let filter = Arc::new(filter);
        self.filters.insert(Arc::clone(&filter), 1);
        filter
    }

    fn drop_filter(&mut self, filter: &Filter) {
        if let Some(clients) = self.filters.get_mut(filter) {
            *clients -= 1;
            if *clients == 0 {
                self.filters.remove(filter);
            }
        }
    }

    /// What a client gets before what comes later, and up to where it has everything.
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
    use crate::publish::audience::Audience;
    use crate::publish::message::message;
    use crate::publish::protocol::Wanted;

    fn request(parameters: &[(&str, &str)]) -> LiveRequest {
        LiveRequest::parse(parameters.iter().copied(), None).unwrap()
    }

    /// A hub with two shards, whose tasks run when somebody looks.
    struct Bench {
        hub: Hub,
        shards: [(Arc<Inbox>, Audience); 2],
    }

    struct Guest(Joined, Arc<Client>);

    impl Bench {
        fn new(history: usize) -> Self {
            let shards: [(Arc<Inbox>, Audience); 2] = Default::default();
            let hub = Hub::new(history, shards.iter().map(|(inbox, _)| Arc::clone(inbox)).collect());
            Self { hub, shards }
        }

        fn deliver(&mut self, sequence: u64, room: &str) {
            self.hub.deliver(message(sequence, "t", room));
        }

        fn join(&mut self, request: &LiveRequest) -> Guest {
            let client = Arc::new(Client::waiting());
            Guest(self.hub.join(request, &client), client)
        }

        /// What came to a client since somebody looked; 0 is a gap.
        fn came(&mut self, guest: &Guest) -> Vec<u64> {
            let mut came = Vec::from(guest.1.take());
            for (inbox, audience) in &mut self.shards {
                inbox.take().into_iter().for_each(|item| assert_eq!(audience.note(item).skipped, 0));
                while let Some((batch, members)) = audience.next_due() {
                    members.for_each(|member| assert_eq!(member.give(&batch).skipped, 0));
                }
            }
            came.extend(guest.1.take());
            came.iter().map(|delivery| delivery.id().map_or(0, |id| id.sequence)).collect()
        }
    }

    #[test]
    fn a_client_gets_its_rooms_and_tables_from_its_cursor_on() {
        let mut bench = Bench::new(100);
        for (sequence, room) in [(1, "main"), (2, "a"), (3, "main")] {
            bench.deliver(sequence, room);
        }
        let main = bench.join(&request(&[("after", "e1-1")]));
        let both = bench.join(&request(&[("room", "a"), ("room", "main"), ("after", "e1-0")]));
        let other = bench.join(&request(&[("table", "u")]));
        bench.deliver(4, "a");
        bench.deliver(5, "main");
        assert_eq!(bench.came(&main), [3, 5]);
        assert_eq!(bench.came(&both), [1, 2, 3, 4, 5]);
        assert_eq!(bench.came(&other), [0_u64; 0]);
    }

    #[test]
    fn who_wants_every_room_gets_each_message_once() {
        let mut bench = Bench::new(10);
        bench.deliver(1, "main");
        let request =
            LiveRequest { filter: Filter::EveryRoom(Wanted::default()), ..request(&[("after", "e1-0")]) };
        let everywhere = bench.join(&request);
        for (sequence, room) in [(2, "main"), (3, "a"), (5, "b")] {
            bench.deliver(sequence, room);
        }
        assert_eq!(bench.came(&everywhere), [1, 2, 3, 0, 5]);
        assert_eq!(bench.hub.rooms(9).len(), 0);
    }

    #[test]
    fn a_client_from_a_subscriber_ahead_gets_nothing_twice() {
        let mut bench = Bench::new(100);
        bench.deliver(1, "main");
        let ahead = bench.join(&request(&[("after", "e1-3")]));
        for sequence in 2..=4 {
            bench.deliver(sequence, "main");
        }
        assert_eq!(bench.came(&ahead), [4]);
    }

    #[test]
    fn a_lost_cursor_hears_of_a_gap_and_goes_on() {
        let mut bench = Bench::new(1);
        for sequence in 1..=5 {
            bench.deliver(sequence, "main");
        }
        for after in ["e1-1", "e9-1", "nonsense"] {
            let joined = bench.join(&request(&[("after", after)]));
            assert_eq!(bench.came(&joined), [0], "{after}");
        }
        let joined = bench.join(&request(&[("after", "e1-1"), ("last", "1")]));
        assert_eq!(bench.came(&joined), [0, 5]);
    }

    #[test]
    fn a_hole_in_the_topic_is_told_to_everyone() {
        let mut bench = Bench::new(10);
        bench.deliver(1, "main");
        let joined = bench.join(&request(&[("room", "elsewhere")]));
        bench.deliver(3, "main");
        assert_eq!(bench.came(&joined), [0]);
    }

    #[test]
    fn who_leaves_gets_nothing_and_counts_no_more() {
        let mut bench = Bench::new(10);
        let (one, two) = (bench.join(&request(&[])), bench.join(&request(&[("room", "a")])));
        assert_eq!((bench.hub.rooms(1).len(), bench.hub.rooms(9).len()), (1, 2));
        bench.hub.leave(&one.0);
        bench.deliver(1, "main");
        assert_eq!(bench.came(&one), [0_u64; 0]);
        bench.hub.leave(&two.0);
        assert_eq!((bench.hub.rooms(9).len(), bench.hub.filters.len()), (0, 0));
    }

    #[test]
    fn a_client_that_asks_for_another_room_gets_its_newest_window_and_what_follows() {
        let mut bench = Bench::new(10);
        for (sequence, room) in [(1, "b"), (2, "b"), (3, "main")] {
            bench.deliver(sequence, room);
        }
        let mut guest = bench.join(&request(&[]));
        let both = request(&[("room", "main"), ("room", "b")]).filter;
        let mut done = bench.hub.change(&mut guest.0, both, true);
        bench.deliver(4, "b");
        assert_eq!((bench.came(&guest), done.try_recv()), (vec![2, 4], Ok(())));
        assert_eq!(bench.hub.rooms(9), BTreeMap::from([("b".to_owned(), 1), ("main".to_owned(), 1)]));
        let mut done = bench.hub.change(&mut guest.0, request(&[("room", "b")]).filter, true);
        bench.deliver(5, "main");
        assert_eq!((bench.came(&guest), done.try_recv()), (vec![], Ok(())));
        assert_eq!(bench.hub.filters.len(), 1);
    }
}

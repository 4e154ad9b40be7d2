//! Who of a shard's clients wants which message.
//!
//! Clients that want the same are a group: what waits for a group is put together and framed once, however many they
//! are. A message is looked up by its room, so that a crowd in one room costs the others nothing.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::client::{Batch, Client, Given};
use super::message::Message;
use super::protocol::Filter;
use super::queue::{Delivery, Queue};
use crate::reaction::live::LiveId;

/// What a shard is told, in the order in which it happened at the hub.
#[derive(Debug)]
pub(super) enum Item {
    /// A message came.
    Message {
        /// The message.
        message: Arc<Message>,
        /// Messages just before it are missing.
        after_gap: bool,
    },
    /// A client came.
    Join {
        /// Its number at the hub.
        number: u64,
        /// What it wants.
        filter: Arc<Filter>,
        /// The client with its place in the order.
        member: Member,
    },
    /// A client wants something else from here on.
    Change {
        /// Its number at the hub.
        number: u64,
        /// What it wants now.
        filter: Arc<Filter>,
        /// The newest message before the change.
        newest: Option<LiveId>,
        /// The newest windows of what it did not want before, if it asked for them.
        last: Vec<Arc<Message>>,
        /// Told when it is done.
        done: oneshot::Sender<()>,
    },
    /// A client went.
    Leave(u64),
}

/// A client in its group.
#[derive(Debug)]
pub(super) struct Member {
    /// The connection.
    pub(super) client: Arc<Client>,
    /// It is given nothing up to here: it came after that, or has it from elsewhere.
    pub(super) floor: Option<LiveId>,
    /// The newest window it was given.
    pub(super) given: Option<LiveId>,
}

/// Clients that want the same.
#[derive(Debug)]
struct Group {
    filter: Arc<Filter>,
    members: HashMap<u64, Member>,
    /// What came and was not handed to them yet.
    pending: Queue,
}

/// All clients of a shard.
#[derive(Debug, Default)]
pub(super) struct Audience {
    groups: HashMap<u64, Group>,
    by_filter: HashMap<Arc<Filter>, u64>,
    by_room: HashMap<Arc<str>, BTreeSet<u64>>,
    everywhere: BTreeSet<u64>,
    /// By client: its group.
    places: HashMap<u64, u64>,
    next_group: u64,
    /// Groups for which something is pending, in the order in which that began.
    due: VecDeque<u64>,
}

impl Member {
    /// Gives it what of a batch it does not have yet.
    pub(super) fn give(&mut self, batch: &Batch) -> Given {
        let given = self.client.give(batch, batch.known_to(self.have()));
        self.given = self.given.max(batch.last_id());
        given
    }

    fn have(&self) -> Option<LiveId> {
        self.floor.max(self.given)
    }
}

impl Audience {
    /// Takes note of what happened. What follows from it for clients other than those named is pending then.
    pub(super) fn note(&mut self, item: Item) -> Given {
        match item {
            Item::Message { message, after_gap } => return self.post(&message, after_gap),
            Item::Join { number, filter, member } => self.enter(number, filter, member),
            Item::Leave(number) => drop(self.leave(number)),
            Item::Change { number, filter, newest, last, done } => {
                let given = self.change(number, filter, newest, last);
                if done.send(()).is_err() {
                    tracing::trace!(number, "a client went before its change was in force");
                }
                return given;
            }
        }
        Given::default()
    }

    /// The next group for which something is pending: that, and its members.
    pub(super) fn next_due(&mut self) -> Option<(Batch, impl Iterator<Item = &mut Member>)> {
        let number = self.due.pop_front()?;
        let group = self.groups.get_mut(&number)?;
        Some((Batch::new(group.pending.take()), group.members.values_mut()))
    }

    fn post(&mut self, message: &Arc<Message>, after_gap: bool) -> Given {
        let mut given = Given::default();
        if after_gap {
            for (number, group) in &mut self.groups {
                if group.pending.is_empty() {
                    self.due.push_back(*number);
                }
                group.pending.push_gap();
            }
        }
        let of_room = self.by_room.get(&message.room).into_iter().flatten();
        for number in of_room.chain(&self.everywhere) {
            let Some(group) = self.groups.get_mut(number).filter(|group| group.filter.wants(message)) else {
                continue;
            };
            if group.pending.is_empty() {
                self.due.push_back(*number);
            }
            given.skipped += group.pending.push(Arc::clone(message)) * group.members.len() as u64;
        }
        given
    }

    fn enter(&mut self, number: u64, filter: Arc<Filter>, member: Member) {
        let known = self.by_filter.get(&filter).copied();
        let group = known.unwrap_or_else(|| self.open(filter));
        self.places.insert(number, group);
        if let Some(group) = self.groups.get_mut(&group) {
            group.members.insert(number, member);
        }
    }

    fn open(&mut self, filter: Arc<Filter>) -> u64 {
        let number = self.next_group;
        self.next_group += 1;
        match &*filter {
            Filter::EveryRoom(_) => drop(self.everywhere.insert(number)),
            Filter::Rooms(rooms) => {
                for room in rooms.keys() {
                    self.by_room.entry(Arc::clone(room)).or_default().insert(number);
                }
            }
        }
        self.by_filter.insert(Arc::clone(&filter), number);
        self.groups.insert(number, Group { filter, members: HashMap::new(), pending: Queue::default() });
        number
    }

    /// Takes a client out, and closes its group when it was the last there.
    fn leave(&mut self, number: u64) -> Option<Member> {
        let place = self.places.remove(&number)?;
        let group = self.groups.get_mut(&place)?;
        let member = group.members.remove(&number);
        if group.members.is_empty() {
            let filter = Arc::clone(&group.filter);
            self.groups.remove(&place);
            self.by_filter.remove(&filter);
            self.everywhere.remove(&place);
            self.due.retain(|due| *due != place);
            if let Filter::Rooms(rooms) = &*filter {
                for room in rooms.keys() {
                    if let Some(groups) = self.by_room.get_mut(room) {
                        groups.remove(&place);
                        if groups.is_empty() {
                            self.by_room.remove(room);
                        }
                    }
                }
            }
        }
        member
    }

    /// Moves a client to another group. It is given at once what was pending for it where it was.
    fn change(
        &mut self,
        number: u64,
        filter: Arc<Filter>,
        newest: Option<LiveId>,
        last: Vec<Arc<Message>>,
    ) -> Given {
        let pending = self
            .places
            .get(&number)
            .and_then(|place| self.groups.get(place))
            .map(|group| group.pending.clone());
        let Some(mut member) = self.leave(number) else { return Given::default() };
        let mut given = member.give(&Batch::new(pending.unwrap_or_default().take()));
        let newer = last.into_iter().filter(|message| Some(message.id) > member.given);
        let last = Batch::new(newer.map(|message| Delivery::Window { message, skipped: 0 }));
        // Not by what it has: these are older than the place from which on it is given what comes.
        given += member.client.give(&last, 0);
        member.given = member.given.max(last.last_id());
        member.floor = member.floor.max(newest);
        self.enter(number, filter, member);
        given
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::message::message;
    use crate::publish::protocol::LiveRequest;

    fn filter(rooms: &[&str]) -> Arc<Filter> {
        let parameters = rooms.iter().map(|room| ("room", *room));
        Arc::new(LiveRequest::parse(parameters, None).unwrap().filter)
    }

    /// An audience, and what its clients were given.
    #[derive(Default)]
    struct Hall(Audience);

    impl Hall {
        fn join(&mut self, number: u64, rooms: &[&str], floor: u64) -> Arc<Client> {
            let client = Arc::new(Client::waiting());
            let floor = (floor > 0).then_some(LiveId { epoch: 1, sequence: floor });
            let member = Member { client: Arc::clone(&client), floor, given: None };
            self.0.note(Item::Join { number, filter: filter(rooms), member });
            client
        }

        fn post(&mut self, sequence: u64, room: &str) {
            self.0.note(Item::Message { message: message(sequence, "t", room), after_gap: false });
        }

        fn change(&mut self, number: u64, rooms: &[&str], newest: u64, last: &[(u64, &str)]) {
            let last = last.iter().map(|(sequence, room)| message(*sequence, "t", room)).collect();
            let newest = Some(LiveId { epoch: 1, sequence: newest });
            let (done, mut is_done) = oneshot::channel();
            self.0.note(Item::Change { number, filter: filter(rooms), newest, last, done });
            assert_eq!(is_done.try_recv(), Ok(()));
        }

        fn hand_out(&mut self) {
            while let Some((batch, members)) = self.0.next_due() {
                members.for_each(|member| assert_eq!(member.give(&batch).skipped, 0));
            }
        }
    }

    fn ids(client: &Client) -> Vec<u64> {
        client.take().iter().map(|delivery| delivery.id().map_or(0, |id| id.sequence)).collect()
    }

    #[test]
    fn who_wants_the_same_shares_a_group_and_who_leaves_last_closes_it() {
        let mut hall = Hall::default();
        let clients = [hall.join(1, &["a", "b"], 0), hall.join(2, &["b", "a"], 0), hall.join(3, &["b"], 0)];
        assert_eq!(hall.0.groups.len(), 2);
        hall.post(1, "a");
        hall.post(2, "b");
        hall.hand_out();
        assert_eq!(clients.each_ref().map(|client| ids(client)), [vec![1, 2], vec![1, 2], vec![2]]);
        hall.post(3, "a");
        for number in 1..=3 {
            hall.0.note(Item::Leave(number));
        }
        let Audience { groups, by_filter, by_room, places, due, .. } = &hall.0;
        assert!(groups.is_empty() && by_filter.is_empty() && by_room.is_empty());
        assert!(places.is_empty() && due.is_empty());
    }

    #[test]
    fn who_comes_in_the_middle_gets_what_follows() {
        let mut hall = Hall::default();
        let first = hall.join(1, &["a"], 0);
        hall.post(1, "a");
        hall.post(2, "a");
        let second = hall.join(2, &["a"], 2);
        let ahead = hall.join(3, &["a"], 3);
        hall.post(3, "a");
        hall.post(4, "a");
        hall.hand_out();
        assert_eq!((ids(&first), ids(&second), ids(&ahead)), (vec![1, 2, 3, 4], vec![3, 4], vec![4]));
    }

    #[test]
    fn who_changes_rooms_misses_nothing_and_hears_nothing_twice() {
        let mut hall = Hall::default();
        let client = hall.join(1, &["a"], 0);
        let other = hall.join(2, &["a", "b"], 0);
        for (sequence, room) in [(1, "a"), (2, "b"), (3, "a")] {
            hall.post(sequence, room);
        }
        // The newest of b is older than what the client has: ids never go back.
        hall.change(1, &["a", "b"], 3, &[(2, "b")]);
        hall.post(4, "b");
        hall.post(5, "a");
        hall.change(1, &["b"], 5, &[]);
        hall.post(6, "a");
        hall.post(7, "b");
        hall.hand_out();
        assert_eq!(ids(&client), [1, 3, 4, 5, 7]);
        assert_eq!(ids(&other), [1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn the_newest_window_of_a_new_room_comes_first_when_nothing_newer_came_before() {
        let mut hall = Hall::default();
        let client = hall.join(1, &["a"], 9);
        hall.change(1, &["a", "b", "c"], 9, &[(7, "b"), (8, "c")]);
        hall.post(10, "b");
        hall.hand_out();
        assert_eq!(ids(&client), [7, 8, 10]);
        hall.change(1, &["a", "b", "c", "d"], 10, &[(9, "d")]);
        hall.hand_out();
        assert_eq!(ids(&client), [0_u64; 0]);
    }
}

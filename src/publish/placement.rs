//! Which subscriber a client is sent to: the live one with the fewest clients, of the region it names first. Pure.
//!
//! Members say how many clients they have once a second, so a front adds those that it has sent and that have not
//! arrived yet. It tells them apart from other fronts' by its name, which the client carries (`via=NAME`): a subscriber
//! says how many came from each front. One front so places evenly; several do not know of each other's clients on the way,
//! which is a beat's joins at most.

use std::collections::{BTreeMap, VecDeque};

use super::members::MemberState;

/// A client that was sent somewhere and has not arrived after so long is not coming.
const ON_THE_WAY_MS: i64 = 5_000;
/// Joins are counted over so long, so that a burst of a moment is no reason to refuse.
const RATE_WINDOW_MS: i64 = 1_000;

/// Why a client is not placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No subscriber is live.
    Nobody,
    /// More joins than the settings allow; try again after so many seconds.
    TooMany {
        /// Seconds.
        retry_s: u64,
    },
}

/// One front's memory of where it sent clients.
#[derive(Debug)]
pub struct Placement {
    front: String,
    joins_per_second: usize,
    /// When the last joins were placed, in milliseconds of a clock that never goes back; at most `joins_per_second`.
    recent_ms: VecDeque<i64>,
    by_subscriber: BTreeMap<(String, String), Sent>,
}

/// What was sent to one subscriber.
#[derive(Debug, Default)]
struct Sent {
    /// When, for those on the way; oldest first.
    on_the_way_ms: VecDeque<i64>,
    /// How many of this front's clients it had seen when it last said so.
    arrived: u64,
}

impl Placement {
    /// Of a front of that name, which must be its own.
    pub fn new(front: String, joins_per_second: usize) -> Self {
        Self {
            front,
            joins_per_second: joins_per_second.max(1),
            recent_ms: VecDeque::new(),
            by_subscriber: BTreeMap::new(),
        }
    }

    /// The front's name, as clients carry it.
    pub fn front(&self) -> &str {
        &self.front
    }

    /// Chooses for one client that will come by itself, and counts it as on the way; `members` are those who are there,
    /// `cluster` is the region that the client names.
    ///
    /// # Errors
    /// When nobody takes clients, or too many come at once.
    pub fn place<'m>(
        &mut self,
        members: &'m [MemberState],
        cluster: Option<&str>,
        now_ms: i64,
    ) -> Result<&'m MemberState, Refused> {
        let chosen = self.choose(members, cluster, now_ms)?;
        self.by_subscriber.entry(key(chosen)).or_default().on_the_way_ms.push_back(now_ms);
        Ok(chosen)
    }

    /// Chooses for one client that `members` will say to be registered there.
    ///
    /// # Errors
    /// As [`Placement::place`].
    pub fn choose<'m>(
        &mut self,
        members: &'m [MemberState],
        cluster: Option<&str>,
        now_ms: i64,
    ) -> Result<&'m MemberState, Refused> {
        self.forget(members, now_ms);
        let live = || members.iter().filter(|member| member.subscriber.is_some() && member.state == "live");
        let load = |member: &&MemberState| {
            let on_the_way = self.by_subscriber.get(&key(member)).map_or(0, |sent| sent.on_the_way_ms.len());
            (member.clients + member.registered + on_the_way as u64, key(member))
        };
        let of_region = live().filter(|member| Some(member.cluster.as_str()) == cluster).min_by_key(load);
        let chosen = of_region.or_else(|| live().min_by_key(load)).ok_or(Refused::Nobody)?;
        if self.recent_ms.len() >= self.joins_per_second {
            return Err(Refused::TooMany { retry_s: 1 });
        }
        self.recent_ms.push_back(now_ms);
        Ok(chosen)
    }

    /// Forgets who has arrived, who will not, and subscribers that are gone.
    fn forget(&mut self, members: &[MemberState], now_ms: i64) {
        while self.recent_ms.front().is_some_and(|&at| at <= now_ms - RATE_WINDOW_MS) {
            self.recent_ms.pop_front();
        }
        let mut known = BTreeMap::new();
        for member in members.iter().filter(|member| member.subscriber.is_some()) {
            let mut sent = self.by_subscriber.remove(&key(member)).unwrap_or_default();
            let arrived = member.arrived.get(&self.front).copied().unwrap_or(0);
            // One that counts less than before has started again: who was on the way to it comes back here.
            let new = arrived.saturating_sub(sent.arrived);
            sent.arrived = arrived;
            sent.on_the_way_ms
                .drain(..usize::try_from(new).unwrap_or(usize::MAX).min(sent.on_the_way_ms.len()));
            while sent.on_the_way_ms.front().is_some_and(|&at| at <= now_ms - ON_THE_WAY_MS) {
                sent.on_the_way_ms.pop_front();
            }
            known.insert(key(member), sent);
        }
        self.by_subscriber = known;
    }
}

fn key(member: &MemberState) -> (String, String) {
    (member.cluster.clone(), member.subscriber.clone().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscriber(cluster: &str, name: &str) -> MemberState {
        MemberState { subscriber: Some(name.to_owned()), ..MemberState::of_cluster(cluster, true) }
    }

    /// Three clusters of three, and one of one.
    fn tier() -> Vec<MemberState> {
        let names =
            ["a", "b", "c"].into_iter().flat_map(|cluster| ["1", "2", "3"].map(|name| (cluster, name)));
        names.chain([("d", "1")]).map(|(cluster, name)| subscriber(cluster, name)).collect()
    }

    /// The client arrives, as the subscriber will say with its next word.
    fn arrive(members: &mut [MemberState], at: &(String, String), front: &str) {
        let member = members.iter_mut().find(|member| key(member) == *at).unwrap();
        member.clients += 1;
        *member.arrived.entry(front.to_owned()).or_default() += 1;
    }

    fn spread(members: &[MemberState]) -> (u64, u64) {
        let clients = || members.iter().map(|member| member.clients);
        (clients().min().unwrap(), clients().max().unwrap())
    }

    #[test]
    fn one_front_places_exactly_evenly_whenever_clients_arrive_and_members_speak() {
        let (mut members, mut front) = (tier(), Placement::new("f".to_owned(), 1_000_000));
        let (mut heard, mut on_the_way) = (members.clone(), VecDeque::new());
        for join in 0..1_000 {
            let chosen = key(front.place(&heard, None, join).unwrap());
            on_the_way.push_back(chosen);
            // They arrive some time later, and are heard of later still.
            if join % 7 < 5 {
                let arriving = on_the_way.pop_front().unwrap();
                arrive(&mut members, &arriving, "f");
            }
            if join % 90 == 0 {
                heard = members.clone();
            }
        }
        on_the_way.iter().for_each(|at| arrive(&mut members, at, "f"));
        assert_eq!(spread(&members), (100, 100));
    }

    #[test]
    fn several_fronts_place_within_a_tenth() {
        let mut members = tier();
        let mut fronts: Vec<_> =
            ["f", "g", "h"].map(|name| Placement::new(name.to_owned(), 1_000_000)).into();
        for beat in 0..50 {
            let heard = members.clone();
            for join in 0..60 {
                let front = &mut fronts[(beat * 7 + join) % 3];
                let at = key(front.place(&heard, None, (beat * 1_000 + join) as i64).unwrap());
                let name = front.front().to_owned();
                arrive(&mut members, &at, &name);
            }
        }
        let (least, most) = spread(&members);
        assert!(most - least <= least / 10, "{least} … {most}");
    }

    #[test]
    fn the_region_goes_first_while_one_of_it_is_live() {
        let (mut members, mut front) = (tier(), Placement::new("f".to_owned(), 100));
        members[9].clients = 500;
        assert_eq!(front.place(&members, Some("d"), 0).unwrap().cluster, "d");
        members[9].state = "draining".to_owned();
        assert_eq!(front.place(&members, Some("d"), 0).unwrap().cluster, "a");
        assert_eq!(front.place(&members, Some("nowhere"), 0).unwrap().cluster, "a");
    }

    #[test]
    fn who_never_arrives_is_forgotten() {
        let (members, mut front) =
            (vec![subscriber("a", "1"), subscriber("a", "2")], Placement::new("f".to_owned(), 100));
        for now_ms in [0, 0, 1, 2] {
            front.place(&members, None, now_ms).unwrap();
        }
        assert_eq!(front.place(&members, None, 4).unwrap().subscriber.as_deref(), Some("1"));
        // All but the last are given up; "2" has nobody on the way.
        assert_eq!(front.place(&members, None, 5_003).unwrap().subscriber.as_deref(), Some("2"));
    }

    #[test]
    fn more_joins_than_allowed_wait_a_second() {
        let (members, mut front) = (tier(), Placement::new("f".to_owned(), 3));
        assert!((0..3).all(|now_ms| front.place(&members, None, now_ms).is_ok()));
        assert_eq!(front.place(&members, None, 900), Err(Refused::TooMany { retry_s: 1 }));
        assert!(front.place(&members, None, 1_000).is_ok());
        assert_eq!(Placement::new("f".to_owned(), 3).place(&[], None, 0), Err(Refused::Nobody));
    }
}

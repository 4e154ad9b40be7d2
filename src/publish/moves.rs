//! Registered clients of a subscriber that died or drains go to the live ones of its cluster, evenly. The cluster alone does
//! it, so that each client has one place.
//!
//! While no subscriber of a cluster is live, its clients wait; when none is there at all, the front that such a client asks
//! again finds it another cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::members::{BEAT, DEAD_AFTER, MemberState, Members};
use super::registrations::{Place, Registrations, View, place_record};
use crate::shutdown::Tasks;

/// How often is looked who is there.
const LOOK: Duration = Duration::from_millis(250);
/// So long the cluster must have been heard of itself, without a pause, before somebody who is not counts as dead: members
/// speak through the log, and when it was silent, so were they.
const STEADY: Duration = DEAD_AFTER.saturating_add(BEAT);

/// Moves the clients of that cluster as one of the process's tasks.
pub(super) fn run(cluster: String, members: Members, registrations: Registrations, tasks: &Tasks) {
    let stop = tasks.token();
    tasks.spawn(async move {
        stop.run_until_cancelled(moving(&cluster, &members, &registrations)).await;
    });
}

async fn moving(cluster: &str, members: &Members, registrations: &Registrations) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard_since = None;
    loop {
        looks.tick().await;
        let alive = members.alive();
        let is_heard = alive.iter().any(|member| member.subscriber.is_none() && member.cluster == cluster);
        heard_since = is_heard.then(|| heard_since.unwrap_or_else(Instant::now));
        let is_steady = heard_since.is_some_and(|since: Instant| since.elapsed() > STEADY);
        if !is_steady || registrations.ready().is_err() {
            continue;
        }
        let moves = registrations.look(|view| moves(cluster, &alive, view));
        if moves.is_empty() {
            continue;
        }
        let records = moves.iter().map(|(id, place)| place_record(id, place)).collect();
        match registrations.write(records).await {
            Ok(()) => {
                tracing::info!(cluster, clients = moves.len(), "registered clients move to live subscribers")
            }
            Err(error) => {
                tracing::warn!(cluster, %error, "registered clients could not be moved; trying again")
            }
        }
    }
}

/// Who goes where, by id; `alive` are the members who are there. Pure.
fn moves(cluster: &str, alive: &[MemberState], view: &View) -> Vec<(String, Place)> {
    let placed = view.loads();
    let own = || alive.iter().filter(|member| member.cluster == cluster);
    let name = |member: &MemberState| member.subscriber.clone();
    let may_stay: Vec<String> = own().filter(|member| member.state != "draining").filter_map(name).collect();
    let mut live: BTreeMap<String, u64> = BTreeMap::new();
    for member in own().filter(|member| member.state == "live") {
        if let Some(name) = name(member) {
            let registered = placed.get(&(cluster, name.as_str())).copied().unwrap_or(0);
            live.insert(name, member.clients + registered);
        }
    }
    let mut moves = Vec::new();
    for client in view.clients() {
        let Some(place) = client.place.filter(|place| place.cluster == cluster) else { continue };
        if may_stay.contains(&place.subscriber) {
            continue;
        }
        let Some((name, load)) = live.iter_mut().min_by_key(|(name, load)| (**load, (*name).clone())) else {
            continue;
        };
        *load += 1;
        let place = Place {
            cluster: cluster.to_owned(),
            subscriber: name.clone(),
            number: place.number + 1,
            from: Some(place.subscriber.clone()),
        };
        moves.push((client.id.to_owned(), place));
    }
    moves
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::publish::registrations::{Registration, record_of};

    fn subscriber(cluster: &str, name: &str, state: &str, clients: u64) -> MemberState {
        let member = MemberState::of_cluster(cluster, true);
        MemberState { subscriber: Some(name.to_owned()), state: state.to_owned(), clients, ..member }
    }

    /// Clients by number, at these subscribers.
    fn view(places: &[(&str, &str)]) -> View {
        let address = IpAddr::from([127, 0, 0, 1]);
        let registration =
            Registration { host: "h".to_owned(), port: 1, address, table: None, room: None, time: 0 };
        let mut view = View::default();
        for (number, &(cluster, subscriber)) in places.iter().enumerate() {
            let id = format!("{number:02}");
            let (cluster, subscriber) = (cluster.to_owned(), subscriber.to_owned());
            let place = Place { cluster, subscriber, number: 1, from: None };
            view.take([record_of(&id, &registration), place_record(&id, &place)]);
        }
        view
    }

    fn went(moves: &[(String, Place)]) -> Vec<(&str, &str)> {
        moves.iter().map(|(id, place)| (id.as_str(), place.subscriber.as_str())).collect()
    }

    #[test]
    fn clients_of_who_died_or_drains_go_evenly_to_the_live_ones_of_the_cluster() {
        let alive = [
            subscriber("a", "1", "live", 0),
            subscriber("a", "2", "live", 1),
            subscriber("a", "3", "draining", 0),
            subscriber("a", "4", "starting", 0),
            subscriber("b", "1", "live", 0),
        ];
        let view = view(&[("a", "3"), ("a", "dead"), ("a", "1"), ("a", "4"), ("b", "dead"), ("a", "dead")]);
        let moved = moves("a", &alive, &view);
        // "1" has one registered, "2" one connected.
        assert_eq!(went(&moved), [("00", "1"), ("01", "2"), ("05", "1")]);
        let from = |at: usize| moved[at].1.from.as_deref();
        assert_eq!((from(0), from(1), moved[0].1.number), (Some("3"), Some("dead"), 2));
    }

    #[test]
    fn while_nobody_is_live_clients_wait() {
        let alive = [subscriber("a", "1", "draining", 0), subscriber("b", "1", "live", 0)];
        assert!(moves("a", &alive, &view(&[("a", "1"), ("a", "dead")])).is_empty());
    }
}

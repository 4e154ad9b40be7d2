//! The registered clients of one subscriber: a task for each, started and ended as the log says, and what they have, written
//! down about once a second.
//!
//! A client that moves here from a subscriber that is still there is served once that one has said up to where it came:
//! then nothing comes twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Members;
use super::endpoint::{Endpoint, Order, Outbox, Poster, Said};
use super::registrations::{Acknowledged, Place, Registrations, View, acknowledged_record, removal};
use super::subscriber::{Since, Subscriber};
use crate::log::NewRecord;
use crate::shutdown::Tasks;
use crate::sync::lock;

/// How often what clients have is written down.
const ROUND: Duration = Duration::from_secs(1);
/// How long the subscriber that served a client before may take to say up to where, besides the last answer it waits for.
const HANDOVER: Duration = Duration::from_secs(3);
/// How often is looked whether it did.
const LOOK: Duration = Duration::from_millis(50);
/// How long the last messages may take when the process stops.
const LAST: Duration = Duration::from_secs(4);

/// Serves the clients that the log gives to this subscriber, until the process stops.
pub fn serve_registered(
    subscriber: &Arc<Subscriber>,
    registrations: &Registrations,
    members: &Members,
    poster: &Arc<Poster>,
    tasks: &Tasks,
) {
    let endpoints = Endpoints {
        subscriber: Arc::clone(subscriber),
        registrations: registrations.clone(),
        members: members.clone(),
        poster: Arc::clone(poster),
        outbox: Arc::default(),
        tasks: tasks.clone(),
        running: BTreeMap::new(),
    };
    tasks.spawn(endpoints.run());
}

struct Endpoints {
    subscriber: Arc<Subscriber>,
    registrations: Registrations,
    members: Members,
    poster: Arc<Poster>,
    outbox: Arc<Outbox>,
    tasks: Tasks,
    /// By id; also those that are told to end and have not ended yet.
    running: BTreeMap<String, Running>,
}

/// One client's task.
struct Running {
    order: watch::Sender<Option<Order>>,
    task: JoinHandle<Since>,
}

impl Endpoints {
    async fn run(mut self) {
        let stop = self.tasks.token();
        if stop.run_until_cancelled(self.history_is_read()).await.is_none() {
            return;
        }
        let mut seen = 0;
        let mut rounds = interval(ROUND);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                changes = self.registrations.changed(seen) => {
                    seen = changes;
                    self.follow_orders();
                }
                _ = rounds.tick() => self.write_down().await,
                () = self.outbox.urgent.notified() => self.write_down().await,
            }
        }
        let ending = std::mem::take(&mut self.running).into_values().map(|running| running.task);
        if timeout(LAST, futures::future::join_all(ending)).await.is_err() {
            tracing::debug!("some endpoints did not answer before the end");
        }
        self.write_down().await;
    }

    /// Nobody resumes from a history that is not there yet.
    async fn history_is_read(&self) {
        while self.subscriber.ready().is_err() {
            sleep(LOOK).await;
        }
    }

    /// Starts, tells and ends tasks, as the log has it now.
    fn follow_orders(&mut self) {
        let mut wanted = self.registrations.look(|view| orders(view, self.subscriber.key()));
        for (id, running) in &self.running {
            if !wanted.contains_key(id) {
                running.order.send_if_modified(|order| order.take().is_some());
            }
        }
        self.running.retain(|id, running| wanted.contains_key(id) || !running.task.is_finished());
        for (id, running) in &self.running {
            let Some((order, _)) = wanted.get(id) else { continue };
            let is_new = running.order.borrow().as_ref() != Some(order);
            let goes_on = running.order.borrow().is_some() && !running.task.is_finished();
            if goes_on && is_new {
                running.order.send_replace(Some(order.clone()));
            }
            if goes_on || !is_new {
                wanted.remove(id);
            }
        }
        for (id, (order, since)) in wanted {
            let before = self.running.remove(&id).map(|running| running.task);
            let running = self.start(id.clone(), order, since, before);
            self.running.insert(id, running);
        }
    }

    /// A task for that client; `before` is the one that serves it here until now and was told to end.
    fn start(&self, id: String, order: Order, since: Since, before: Option<JoinHandle<Since>>) -> Running {
        let (sender, receiver) = watch::channel(Some(order.clone()));
        let stop = self.tasks.token();
        let mut endpoint = Endpoint {
            id,
            subscriber: Arc::clone(&self.subscriber),
            poster: Arc::clone(&self.poster),
            outbox: Arc::clone(&self.outbox),
            order: receiver,
            stop: stop.clone(),
            since,
            number: order.place.number,
            failures: 0,
        };
        let handover = Handover {
            registrations: self.registrations.clone(),
            members: self.members.clone(),
            limit: self.poster.timeout + HANDOVER,
            place: order.place,
            stop,
        };
        let task = self.tasks.spawn(async move {
            let until = match before {
                Some(before) => before.await.unwrap_or(Since::Now),
                None => Since::Now,
            };
            // A client that the log knows nothing of has registered anew, and begins anew.
            if endpoint.since != Since::Now {
                endpoint.since = endpoint.since.max(until);
            }
            endpoint.since = endpoint.since.max(handover.wait(&endpoint.id).await);
            endpoint.run().await
        });
        Running { order: sender, task }
    }

    /// Writes down what there is; what the log does not take is tried again with the next round.
    async fn write_down(&self) {
        let said = std::mem::take(&mut *lock(&self.outbox.said));
        let records = self.registrations.look(|view| self.records(view, &said));
        if records.is_empty() {
            return;
        }
        if let Err(error) = self.registrations.write(records).await {
            let (cluster, name) = self.subscriber.key();
            tracing::warn!(cluster, name, %error, "what registered clients have is not written down yet");
            let mut newer = lock(&self.outbox.said);
            for (id, known) in said.acknowledged {
                newer.acknowledged.entry(id).or_insert(known);
            }
            newer.given_up.extend(said.given_up);
        }
    }

    fn records(&self, view: &View, said: &Said) -> Vec<NewRecord> {
        let mut records = Vec::new();
        for (id, acknowledged) in &said.acknowledged {
            // A client that is gone, or that somebody else serves by now, is not this subscriber's to write about.
            let Some(client) = view.client(id) else { continue };
            let Some(place) = client.place else { continue };
            let is_here = (place.cluster.as_str(), place.subscriber.as_str()) == self.subscriber.key();
            if is_here || is_awaited(client.acknowledged, acknowledged, place) {
                records.push(acknowledged_record(id, Some(acknowledged)));
            }
        }
        for (id, registration) in &said.given_up {
            // Unless it registered again meanwhile.
            if view.client(id).is_some_and(|client| client.registration == registration) {
                records.extend(removal(id));
            }
        }
        records
    }
}

/// What the log gives to a subscriber, and where each client goes on.
fn orders(view: &View, subscriber: (&str, &str)) -> BTreeMap<String, (Order, Since)> {
    let mut orders = BTreeMap::new();
    for client in view.clients() {
        let Some(place) = client.place else { continue };
        if (place.cluster.as_str(), place.subscriber.as_str()) == subscriber {
            let order = Order { registration: client.registration.clone(), place: place.clone() };
            orders.insert(client.id.to_owned(), (order, since(client.acknowledged)));
        }
    }
    orders
}

/// Where a client goes on that has that.
fn since(acknowledged: Option<Acknowledged>) -> Since {
    acknowledged.map_or(Since::Now, |acknowledged| acknowledged.id.map_or(Since::Start, Since::After))
}

/// Whether somebody may wait for that word: the end of a place, and nobody who serves a later one has spoken yet.
fn is_awaited(known: Option<Acknowledged>, said: &Acknowledged, place: &Place) -> bool {
    let known = known.and_then(|known| known.ended).unwrap_or(0);
    said.ended.is_some_and(|ended| known < ended && ended < place.number)
}

/// Waits for the subscriber that served a client before; also when somebody else is to serve it by now: that one waits for
/// this one's word, which says that both are done.
struct Handover {
    registrations: Registrations,
    members: Members,
    place: Place,
    limit: Duration,
    stop: CancellationToken,
}

impl Handover {
    /// Returns where the client goes on.
    async fn wait(self, id: &str) -> Since {
        let is_over = async {
            while !self.is_over(id) {
                sleep(LOOK).await;
            }
        };
        tokio::select! {
            waited = timeout(self.limit, is_over) => if waited.is_err() {
                tracing::warn!(id, "a subscriber did not say up to where it served a client; some messages may come twice");
            },
            () = self.stop.cancelled() => {}
        }
        self.registrations.look(|view| since(view.client(id).and_then(|client| client.acknowledged)))
    }

    fn is_over(&self, id: &str) -> bool {
        let Place { cluster, number, from, .. } = &self.place;
        let Some(from) = from else { return true };
        let ended = |view: &View| view.client(id)?.acknowledged?.ended;
        let is_ended = self.registrations.look(ended).is_some_and(|ended| ended + 1 >= *number);
        is_ended || !self.members.is_alive(cluster, from)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::log::{Log, TOPIC_REGISTRATIONS};
    use crate::publish::members::MemberState;
    use crate::publish::memory_log::MemoryLog;
    use crate::publish::registrations::{Registration, place_record, record_of};
    use crate::publish::tests::until;
    use crate::publish::{Heart, Settings};
    use crate::reaction::live::LiveId;

    fn place(number: u64, subscriber: &str, from: Option<&str>) -> Place {
        let (subscriber, from) = (subscriber.to_owned(), from.map(str::to_owned));
        Place { cluster: "a".to_owned(), subscriber, number, from }
    }

    fn said(sequence: u64, ended: u64) -> Acknowledged {
        Acknowledged { id: Some(LiveId { epoch: 1, sequence }), ended: Some(ended) }
    }

    #[test]
    fn the_end_of_a_place_is_said_until_a_later_one_speaks() {
        let now = place(3, "2", Some("1"));
        assert!(
            is_awaited(Some(said(5, 0)), &said(6, 1), &now),
            "the first one's, for which the second waits"
        );
        assert!(is_awaited(Some(said(6, 1)), &said(6, 2), &now) && is_awaited(None, &said(6, 2), &now));
        assert!(!is_awaited(Some(said(7, 2)), &said(6, 1), &now), "the third one serves");
        assert!(!is_awaited(Some(said(5, 1)), &said(6, 1), &now), "on the way");
        assert!(!is_awaited(None, &said(6, 3), &now) && !is_awaited(None, &said(6, 0), &now));
    }

    /// The subscriber "1" of cluster "a", and another one, "0", that is alive and is the test itself.
    struct House {
        log: MemoryLog,
        registrations: Registrations,
        tasks: Tasks,
    }

    impl House {
        async fn start() -> Self {
            let (log, tasks, settings) = (MemoryLog::default(), Tasks::new(), Settings::default());
            let shared: Arc<dyn Log> = Arc::new(log.clone());
            let heart = Heart::start(Arc::clone(&shared), &tasks);
            heart.add(|| MemberState {
                subscriber: Some("0".to_owned()),
                ..MemberState::of_cluster("a", true)
            });
            let members = Members::follow(Arc::clone(&shared), &tasks);
            let registrations = Registrations::follow(Arc::clone(&shared), &tasks);
            let subscriber = Subscriber::start(shared, "a", "1", "http://1", &settings, &heart, &tasks);
            let is_ready = || subscriber.ready().is_ok() && registrations.ready().is_ok();
            until(|| members.is_alive("a", "0") && is_ready()).await;
            serve_registered(&subscriber, &registrations, &members, &Poster::new(&settings), &tasks);
            Self { log, registrations, tasks }
        }

        async fn write(&self, records: Vec<NewRecord>) {
            self.registrations.write(records).await.unwrap();
        }

        /// What was ever said of the client, by the number of the place that had ended.
        fn ended(&self) -> Vec<Option<u64>> {
            let records = self.log.records(TOPIC_REGISTRATIONS, 0).into_iter();
            let said = records.filter(|record| record.key.as_deref() == Some(b"acknowledged/x"));
            let ended = |value: &[u8]| serde_json::from_slice::<Acknowledged>(value).unwrap().ended;
            said.map(|record| ended(&record.value.unwrap())).collect()
        }
    }

    fn registration() -> NewRecord {
        let address = IpAddr::from([127, 0, 0, 1]);
        let asked = Registration { host: "h".to_owned(), port: 1, address, table: None, room: None, time: 0 };
        record_of("x", &asked)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_is_to_hand_a_client_on_waits_for_the_one_before_first() {
        let house = House::start().await;
        house.write(vec![registration(), place_record("x", &place(1, "0", None))]).await;
        house.write(vec![acknowledged_record("x", Some(&said(5, 0)))]).await;
        // It is not to speak before the first one has, so there is nothing to wait for but time.
        house.write(vec![place_record("x", &place(2, "1", Some("0")))]).await;
        sleep(4 * LOOK).await;
        house.write(vec![place_record("x", &place(3, "2", Some("1")))]).await;
        sleep(4 * LOOK).await;
        assert_eq!(house.ended(), [Some(0)]);
        house.write(vec![acknowledged_record("x", Some(&said(6, 1)))]).await;
        until(|| house.ended() == [Some(0), Some(1), Some(2)]).await;
        house.tasks.stop(Duration::from_secs(5)).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_serves_a_client_says_that_nobody_before_does() {
        let house = House::start().await;
        house.write(vec![registration(), acknowledged_record("x", Some(&said(5, 1)))]).await;
        house.write(vec![place_record("x", &place(2, "1", Some("0")))]).await;
        until(|| house.ended().len() == 2).await;
        assert_eq!(house.ended(), [Some(1), Some(1)]);
        house.tasks.stop(Duration::from_secs(5)).await;
    }
}

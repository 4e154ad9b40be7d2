//! A crowd that comes and goes while windows flow, by WebSocket and by events, fresh or with a cursor, and over a `kill -9`
//! of everything: whoever stays sees every window of its rooms from then on, once and in order.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use emostream::reaction::live::{LiveId, LiveMessage};
use futures::{SinkExt, StreamExt};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use crate::support::binary::Running;
use crate::support::by_request;
use crate::support::kafka::Broker;
use crate::support::load::Load;
use crate::support::patient::Patient;
use crate::support::viewer::Viewer;
use crate::support::waiting::until;

/// How long a step of a test may take.
const LIMIT: Duration = Duration::from_secs(60);
const ROOMS: [&str; 2] = ["left", "right"];
const GUESTS: u64 = 40;
/// How long windows flow before the kill, and after it.
const STORM: Duration = Duration::from_secs(3);

/// A guest that came, and went.
#[derive(Debug)]
struct Stay {
    rooms: Vec<&'static str>,
    after: Option<LiveId>,
    heard: Vec<LiveId>,
    /// What should not have come.
    wrong: Vec<String>,
}

impl Stay {
    /// Against all that was told in its rooms, in order: nothing of it is missing between its cursor, or what it heard
    /// first, and what it heard last.
    fn check(&self, told: &[(LiveId, String)]) {
        assert!(self.wrong.is_empty(), "{self:?}");
        let Some(first) = self.heard.first() else { return };
        let ids = told.iter().filter(|(_, room)| self.rooms.contains(&room.as_str())).map(|(id, _)| *id);
        let to_come = ids.filter(|id| self.after.map_or(id >= first, |after| *id > after));
        let to_come: Vec<LiveId> = to_come.take(self.heard.len()).collect();
        assert_eq!(self.heard, to_come, "{self:?}");
    }
}

/// The stays of all guests.
type Book = Arc<Mutex<Vec<Stay>>>;

/// Comes and goes until `stop`, each time another way.
async fn come_and_go(
    seed: u64,
    address: watch::Receiver<Option<String>>,
    book: Book,
    stop: CancellationToken,
) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut cursor = None;
    while !stop.is_cancelled() {
        let rooms = match random.random_range(0..3) {
            0 => ROOMS.to_vec(),
            _ => vec![*ROOMS.choose(&mut random).unwrap()],
        };
        let after = cursor.filter(|_| random.random_bool(0.7));
        let stays = Duration::from_millis(random.random_range(0..700));
        let stay = if random.random_bool(0.5) {
            stay_by_socket(&address, rooms, after, stays, random.random_bool(0.5)).await
        } else {
            stay_by_events(&address, rooms, after, stays).await
        };
        cursor = stay.heard.last().copied().or(after).max(cursor);
        book.lock().unwrap().push(stay);
    }
}

async fn stay_by_events(
    address: &watch::Receiver<Option<String>>,
    rooms: Vec<&'static str>,
    after: Option<LiveId>,
    stays: Duration,
) -> Stay {
    let more = after.map(|after| format!("&after={after}")).unwrap_or_default();
    let viewer = Viewer::start_asking(address.clone(), &rooms, &more);
    sleep(stays).await;
    viewer.shown(|shown| {
        let mut wrong = shown.wrong.clone();
        wrong.extend((shown.gaps > 0).then(|| "a gap".to_owned()));
        wrong.extend(shown.messages.iter().filter(|(_, skipped)| *skipped > 0).map(|m| format!("{m:?}")));
        let heard = shown.messages.iter().map(|(message, _)| message.id).collect();
        Stay { rooms, after, heard, wrong }
    })
}

async fn stay_by_socket(
    address: &watch::Receiver<Option<String>>,
    rooms: Vec<&'static str>,
    after: Option<LiveId>,
    stays: Duration,
    says_goodbye: bool,
) -> Stay {
    let mut query: Vec<String> = rooms.iter().map(|room| format!("room={room}")).collect();
    query.extend(after.map(|after| format!("after={after}")));
    let mut stay = Stay { rooms, after, heard: Vec::new(), wrong: Vec::new() };
    let Some(base) = address.borrow().clone() else {
        sleep(Duration::from_millis(20)).await;
        return stay;
    };
    let url = format!("{}/v1/live?{}", base.replace("http:", "ws:"), query.join("&"));
    let Ok((mut socket, _)) = tokio_tungstenite::connect_async(url).await else { return stay };
    let until = Instant::now() + stays;
    while let Ok(Some(Ok(message))) = tokio::time::timeout_at(until, socket.next()).await {
        let Message::Text(text) = message else { continue };
        match serde_json::from_str::<LiveMessage>(&text) {
            Ok(message) if !text.contains("\"skipped\"") => stay.heard.push(message.id),
            _ => stay.wrong.push(text.to_string()),
        }
    }
    if says_goodbye {
        // An error means that the server went first.
        socket.send(Message::Close(None)).await.ok();
    }
    stay
}

async fn who_stays_sees_every_window_once(args: &[&str]) {
    let query = by_request::QUERY.replace("500 milliseconds", "100 milliseconds");
    let patient = Patient::new(args, &[("tables.sql", by_request::TABLES), ("by_request.sql", &query)]);
    let mut process = Running::start(&mut patient.command());
    process.ready().await;
    let (tell, address) = watch::channel(Some(process.url("")));
    // Sees everything that any guest sees.
    let stayer = Viewer::start(address.clone(), &ROOMS);
    let load = Load::start(&address, "/v1/tables/reactions", &ROOMS);
    let shown = || stayer.shown(|shown| shown.messages.len());
    until("windows are shown", LIMIT, || shown() > 0).await;

    let (book, stop, mut guests) = (Book::default(), CancellationToken::new(), JoinSet::new());
    for seed in 0..GUESTS {
        guests.spawn(come_and_go(seed, address.clone(), Arc::clone(&book), stop.clone()));
    }
    sleep(STORM).await;
    process.kill();
    tell.send_replace(None);
    let process = Running::start(&mut patient.command());
    tell.send_replace(Some(process.url("")));
    let before = shown();
    until("windows are shown again", LIMIT, || shown() > before).await;
    sleep(STORM).await;
    stop.cancel();
    while let Some(ended) = guests.join_next().await {
        ended.unwrap();
    }
    load.stop().await;

    let stays = std::mem::take(&mut *book.lock().unwrap());
    let newest = stays.iter().filter_map(|stay| stay.heard.last()).max().copied();
    let told = || stayer.shown(|shown| shown.messages.iter().map(|(m, _)| (m.id, m.room.clone())).collect());
    until("who stays hears it too", LIMIT, || {
        let told: Vec<_> = told();
        told.last().map(|(id, _)| *id) >= newest
    })
    .await;
    let told: Vec<(LiveId, String)> = told();
    stayer.shown(|shown| assert!(shown.wrong.is_empty() && shown.gaps == 0, "{:?}", shown.wrong));
    stays.iter().for_each(|stay| stay.check(&told));
    let resumed = stays.iter().filter(|stay| stay.after.is_some() && !stay.heard.is_empty()).count();
    let heard: usize = stays.iter().map(|stay| stay.heard.len()).sum();
    eprintln!("{} stays, {resumed} with a cursor; {} windows, heard {heard} times", stays.len(), told.len());
    assert!(resumed > 100 && heard > told.len(), "{resumed} resumed, {heard} heard: no storm");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stays_sees_every_window_once_while_a_crowd_comes_and_goes_on_the_embedded_log() {
    who_stays_sees_every_window_once(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stays_sees_every_window_once_while_a_crowd_comes_and_goes_on_kafka() {
    let broker = Broker::start();
    who_stays_sees_every_window_once(&["--kafka", &broker.address]).await;
}

//! The real binary is killed under load, at named points and at random moments, and started again on the same log. At
//! the end the books are closed: what was answered 202 is counted once, whichever outlet is asked.

use std::collections::BTreeMap;
use std::time::Duration;

use emostream::log::kafka::{KafkaLog, KafkaSettings};
use rand::seq::SliceRandom;
use tokio::sync::watch;

use crate::support::binary::Running;
use crate::support::kafka::Broker;
use crate::support::load::{Ledger, Load, Outcome};
use crate::support::patient::{End, Patient, ends, moment, seeded};
use crate::support::viewer::Viewer;
use crate::support::waiting::{is_soon, until};
use crate::support::{books, by_request};

/// How long a step may take.
const LIMIT: Duration = Duration::from_secs(60);
const ROOMS: [&str; 4] = ["main", "hidden", "left", "right"];

const SHOWN_TABLE: &str = "
CREATE TABLE shown (window_start TIMESTAMP, window_end TIMESTAMP, count BIGINT)
WITH (connector = 'kafka', type = 'sink', topic = 'shown', format = 'json');
";

const SHOWN: &str = "
INSERT INTO shown
SELECT window.start, window.end, count
FROM (
  SELECT tumble(INTERVAL '1 second') AS window, count(*) AS count
  FROM reactions WHERE room <> 'hidden' GROUP BY window
);
";

fn patient(args: &[&str]) -> Patient {
    let tables = format!("{}{SHOWN_TABLE}", by_request::TABLES);
    Patient::new(
        args,
        &[("tables.sql", &tables), ("by_request.sql", by_request::QUERY), ("shown.sql", SHOWN)],
    )
}

/// What is left when everything was sent and counted.
struct Survivor {
    process: Running,
    ledger: Ledger,
    rows: u64,
    results: usize,
}

/// Ends the process in all these ways under load, and closes the books on what it serves.
async fn survive(patient: &Patient, ends: &[End]) -> Survivor {
    let (tell, address) = watch::channel(None);
    let load = Load::start(&address, "/v1/tables/reactions", &ROOMS);
    let viewer = Viewer::start(address, &ROOMS);
    first_windows(patient, &tell, &viewer).await;
    for end in ends {
        let before = (load.accepted(), viewer.shown(|shown| shown.messages.len()));
        patient.run_to(end, &tell).await;
        let after = (load.accepted(), viewer.shown(|shown| shown.messages.len()));
        eprintln!("{end:?}: {} requests accepted, {} windows shown", after.0 - before.0, after.1 - before.1);
    }
    let process = Running::start(&mut patient.command());
    tell.send_replace(Some(process.url("")));
    process.ready().await;
    let ready = load.accepted();
    until("requests are accepted again", LIMIT, || load.accepted() > ready + 10).await;
    let ledger = load.stop().await;
    let (rows, results) = close_books(&process, &ledger, &viewer).await;
    Survivor { process, ledger, rows, results }
}

/// A first run, until the viewer has an id to go on from; then `kill -9`.
async fn first_windows(patient: &Patient, tell: &watch::Sender<Option<String>>, viewer: &Viewer) {
    let mut process = Running::start(&mut patient.command());
    tell.send_replace(Some(process.url("")));
    until("windows are shown", LIMIT, || viewer.shown(|shown| shown.messages.len() > ROOMS.len())).await;
    process.kill();
    tell.send_replace(None);
}

/// Figures, results and live windows agree with the ledger. Returns the rows accepted and the rows of results.
async fn close_books(process: &Running, ledger: &Ledger, viewer: &Viewer) -> (u64, usize) {
    let of = |outcome| ledger.values().filter(|sent| sent.outcome == outcome).count();
    let (accepted, unknown) = (of(Outcome::Accepted), of(Outcome::Unknown));
    eprintln!("{} requests: {accepted} accepted, {unknown} with unknown outcome", ledger.len());
    let by_request = books::settle(process, "by_request", ledger).await;
    let shown = books::settle(process, "shown", ledger).await;
    eprintln!("by_request: {by_request:?}; shown: {shown:?}");
    assert_eq!(by_request.accepted, shown.accepted);
    assert_eq!((by_request.filtered, by_request.counted), (0, by_request.accepted));

    let requests = books::all_results(process, "by_request").await;
    let sums = books::all_results(process, "shown").await;
    books::check_requests(ledger, &requests);
    assert_eq!(books::total(&requests, "count"), by_request.counted);
    assert_eq!(books::total(&sums, "count"), shown.counted);
    let hidden = requests.iter().flat_map(|window| &window.rows).filter(|row| row["room"] == "hidden");
    assert_eq!(hidden.map(|row| row["count"].as_u64().unwrap()).sum::<u64>(), shown.filtered);

    let sinks = [("by_request", requests.as_slice()), ("shown", sums.as_slice())];
    // Whether it is so in time or not: the check says what is missing.
    is_soon(LIMIT, || viewer.shown(|shown| books::is_shown(shown, &sinks))).await;
    viewer.shown(|shown| books::check_shown(shown, &sinks));
    (by_request.accepted, requests.iter().map(|window| window.rows.len()).sum())
}

/// The points of the stages, which are the same on both logs, and at which hit to die at the latest.
const STAGES: [(&str, u32); 8] = [
    ("engine.read", 60),
    ("engine.hand_over", 6),
    ("engine.commit.before", 4),
    ("engine.commit.after", 4),
    ("publish.commit.before", 4),
    ("publish.commit.after", 4),
    ("cluster.append.before", 6),
    ("cluster.append.after", 6),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_202_is_counted_once_however_the_process_ends_on_the_embedded_log() {
    let points = [
        ("embedded.append.before_commit", 30),
        ("embedded.append.after_commit", 30),
        ("embedded.commit.before", 8),
        ("embedded.commit.after", 8),
    ];
    let patient = patient(&[]);
    let mut survivor = survive(&patient, &ends(&[&points[..], &STAGES].concat(), 6)).await;
    assert_eq!(survivor.process.terminate().await, Some(0));
    let log = patient.embedded_log().await;
    assert_eq!(books::rows_in_log(log.as_ref(), "reactions").await, survivor.rows);
    assert_eq!(books::check_sink_topic(log.as_ref(), "by_request").await, survivor.results);
    books::check_sink_topic(log.as_ref(), "shown").await;
    assert!(books::check_live_topics(log.as_ref(), &["cluster-1", "cluster-2", "cluster-3"]).await > 0);
    assert!(survivor.ledger.len() > 500, "{} requests are no load", survivor.ledger.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_202_is_counted_once_however_the_process_ends_on_kafka() {
    let points = [
        ("kafka.append.before", 30),
        ("kafka.append.after", 30),
        ("kafka.commit.before", 6),
        ("kafka.commit.after_send", 6),
        ("kafka.commit.after", 6),
    ];
    let broker = Broker::start();
    let patient = patient(&["--kafka", &broker.address]);
    let mut survivor = survive(&patient, &ends(&[&points[..], &STAGES].concat(), 4)).await;
    assert_eq!(survivor.process.terminate().await, Some(0));
    check_topics(&broker, survivor.rows, survivor.results, &["cluster-1", "cluster-2", "cluster-3"]).await;
}

/// What a committed reader finds on the broker.
async fn check_topics(broker: &Broker, rows: u64, results: usize, clusters: &[&str]) {
    let log = KafkaLog::connect(KafkaSettings::new(broker.address.clone())).await.unwrap();
    assert_eq!(books::rows_in_log(log.as_ref(), "reactions").await, rows);
    assert_eq!(books::check_sink_topic(log.as_ref(), "by_request").await, results);
    books::check_sink_topic(log.as_ref(), "shown").await;
    assert!(books::check_live_topics(log.as_ref(), clusters).await > 0);
}

/// The engine first: the others learn the tables from what it writes.
const ROLES: [&[&str]; 6] = [
    &["engine"],
    &["ingest"],
    &["publish"],
    &["cluster", "eu"],
    &["subscribe", "--cluster", "eu"],
    &["query"],
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_is_killed_once_and_the_others_and_the_books_do_not_suffer() {
    let broker = Broker::start();
    let patient = patient(&["--kafka", &broker.address]);
    let (tell_senders, ingest) = watch::channel(None);
    let (tell_viewer, subscribe) = watch::channel(None);
    let tell = |role: &[&str], address: Option<String>| match role[0] {
        "ingest" => drop(tell_senders.send_replace(address)),
        "subscribe" => drop(tell_viewer.send_replace(address)),
        _ => {}
    };
    let mut running = BTreeMap::new();
    let viewer = Viewer::start(subscribe, &ROOMS);
    for role in ROLES {
        let process = Running::start(&mut patient.role(role));
        process.ready().await;
        tell(role, Some(process.url("")));
        running.insert(role[0], process);
    }
    let load = Load::start(&ingest, "/v1/tables/reactions", &ROOMS);
    until("windows are shown", LIMIT, || viewer.shown(|shown| shown.messages.len() > ROOMS.len())).await;

    let mut random = seeded();
    let mut order = ROLES;
    order.shuffle(&mut random);
    for role in order {
        tokio::time::sleep(moment(&mut random)).await;
        running.get_mut(role[0]).unwrap().kill();
        tell(role, None);
        let process = Running::start(&mut patient.role(role));
        tell(role, Some(process.url("")));
        running.insert(role[0], process);
        let seen = viewer.shown(|shown| shown.messages.len());
        let accepted = load.accepted();
        until("senders and viewers go on", LIMIT, || {
            load.accepted() > accepted + 10 && viewer.shown(|shown| shown.messages.len()) > seen + ROOMS.len()
        })
        .await;
        eprintln!("{role:?} was killed");
    }
    let ledger = load.stop().await;
    let (rows, results) = close_books(&running["query"], &ledger, &viewer).await;
    for role in ROLES.iter().rev() {
        assert_eq!(running.get_mut(role[0]).unwrap().terminate().await, Some(0), "{role:?}");
    }
    check_topics(&broker, rows, results, &["eu"]).await;
}

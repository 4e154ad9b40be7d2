//! Two engines on one Kafka: one runs the queries, the other stands by and takes over when the first is killed, stopped
//! past its lease, or asked to end; and whatever happens to them, every row is counted once.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use emostream::log::kafka::{KafkaLog, KafkaSettings};
use emostream::reaction::time::parse_rfc3339;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::support::binary::{Running, emostream};
use crate::support::kafka::Broker;
use crate::support::load::Load;
use crate::support::{books, by_request};

/// From the death of one engine to the first answer of the next: 10 s, and half as much again because the tests share the
/// machine.
const TAKEOVER: Duration = Duration::from_secs(15);

/// A standby that waited so long runs what ran before, whatever its own folder says.
const STOOD_BY: Duration = Duration::from_secs(15);

/// A broker, ingest, query, and the folders in which the two engines find the SQL.
struct House {
    broker: Broker,
    dirs: [TempDir; 2],
    query: Running,
    load: Load,
    /// Ends ingest when dropped.
    _ingest: Running,
}

impl House {
    /// With two engines, of which the first one runs the queries.
    async fn with_two_engines() -> (Self, Running, Running) {
        let (broker, dirs) = (Broker::start(), [program(), program()]);
        let [one, other] = [dirs[0].path(), dirs[1].path()];
        let first = role(one, &broker, "engine");
        active(&first).await;
        let second = role(other, &broker, "engine");
        stands_by(&second).await;
        let (ingest, query) = (role(one, &broker, "ingest"), role(one, &broker, "query"));
        ingest.ready().await;
        query.ready().await;
        let (_, address) = watch::channel(Some(ingest.url("")));
        let load = Load::start(&address, "/v1/tables/reactions", &["left", "right"]);
        let house = Self { broker, dirs, query, load, _ingest: ingest };
        house.go_on().await;
        (house, first, second)
    }

    /// Until a window is closed that is open now.
    async fn go_on(&self) {
        let now = emostream::clock::wall_ns();
        let end = |window: &Value| parse_rfc3339(window["end"].as_str().unwrap()).unwrap();
        self.query
            .windows("by_request", |windows| windows.first().is_some_and(|newest| end(newest) > now))
            .await;
    }

    /// Every request is in one window of the results, and every row once on the topic.
    async fn close_books(self) {
        let ledger = self.load.stop().await;
        let figures = books::settle(&self.query, "by_request", &ledger).await;
        let windows = books::all_results(&self.query, "by_request").await;
        books::check_requests(&ledger, &windows);
        assert_eq!(books::total(&windows, "count"), figures.counted);
        let log = KafkaLog::connect(KafkaSettings::new(self.broker.address.clone())).await.unwrap();
        let rows: usize = windows.iter().map(|window| window.rows.len()).sum();
        assert_eq!(books::check_sink_topic(log.as_ref(), "by_request").await, rows);
        assert_eq!(books::rows_in_log(log.as_ref(), "reactions").await, figures.accepted);
    }
}

/// A folder with the program.
pub(crate) fn program() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("sql")).unwrap();
    std::fs::write(dir.path().join("sql/tables.sql"), by_request::TABLES).unwrap();
    std::fs::write(dir.path().join("sql/by_request.sql"), by_request::QUERY).unwrap();
    dir
}

pub(crate) fn role(dir: &Path, broker: &Broker, role: &str) -> Running {
    Running::start(emostream(dir).args([role, "--kafka", &broker.address, "--listen", "127.0.0.1:0"]))
}

/// Waits until it runs the queries.
async fn active(engine: &Running) {
    let runs = |answer: &Value| answer["queries"][0]["state"] == "running";
    engine.poll("/v1/queries", runs).await;
}

/// Waits until it says that it is ready, as a standby.
async fn stands_by(engine: &Running) {
    let note = |answer: &Value| answer["notes"][0].as_str().is_some_and(|note| note.contains("standby"));
    engine.poll("/readyz", |answer| answer["ready"] == true && note(answer)).await;
    assert_eq!(engine.json("/v1/queries").await["status"], 503);
}

fn signal(process: &Running, name: &str) {
    let sent = Command::new("kill").args([name, &process.id().to_string()]).status();
    assert!(sent.expect("kill runs").success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_takes_over_when_the_engine_is_killed_and_at_once_when_it_is_asked_to_end() {
    let (house, mut first, mut second) = House::with_two_engines().await;
    let stands = Instant::now();
    let edited = by_request::QUERY.replace("count, people\nFROM", "count, people * 1\nFROM");
    assert_ne!(edited, by_request::QUERY);
    let put = reqwest::Client::new().put(first.url("/v1/queries/by_request")).body(edited.clone());
    assert_eq!(put.send().await.unwrap().status(), 200);
    active(&first).await;
    while stands.elapsed() < STOOD_BY {
        house.go_on().await;
    }
    first.kill();
    let killed = Instant::now();
    active(&second).await;
    eprintln!("taken over {:?} after kill -9", killed.elapsed());
    assert!(killed.elapsed() < TAKEOVER, "{:?}", killed.elapsed());
    let taken = second.json("/v1/queries/by_request").await;
    assert_eq!(
        (&taken["version"], &taken["text"]),
        (&Value::from(2), &Value::from(edited)),
        "not its own file"
    );
    house.go_on().await;

    let third = role(house.dirs[0].path(), &house.broker, "engine");
    stands_by(&third).await;
    let asked = Instant::now();
    assert_eq!(second.terminate().await, Some(0));
    active(&third).await;
    eprintln!("taken over {:?} after SIGTERM", asked.elapsed());
    // Sooner than any session could time out.
    assert!(asked.elapsed() < Duration::from_millis(5_500), "{:?}", asked.elapsed());
    house.go_on().await;
    house.close_books().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_stopped_past_its_lease_commits_nothing_when_it_is_woken_and_stands_by() {
    let (house, first, mut second) = House::with_two_engines().await;
    signal(&first, "-STOP");
    active(&second).await;
    house.go_on().await;
    signal(&first, "-CONT");
    stands_by(&first).await;
    // It fenced nobody on its way back: the other one goes on as it was.
    house.go_on().await;
    let query = &second.json("/v1/queries").await["queries"][0];
    assert_eq!((&query["state"], &query["last_error"]), (&Value::from("running"), &Value::Null), "{query}");
    stands_by(&first).await;
    assert_eq!(second.terminate().await, Some(0));
    active(&first).await;
    house.go_on().await;
    house.close_books().await;
}

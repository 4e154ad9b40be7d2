//! Windows that do not fit in memory: they go to disk, and everything is told as it would be without. The real engine on
//! the embedded log, and the real process.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use emostream::clock::wall_ns;
use emostream::engine::worker::{QueryReport, State};
use emostream::engine::{OnFull, Settings};
use emostream::log::codec::RecordCodec;
use emostream::log::embedded::{self, EmbeddedLog};
use emostream::log::{Log, Retention, TopicSpec};
use emostream::reaction::time::{NS_PER_MS, format_rfc3339};
use emostream::sql::{SqlFile, plan_program};
use serde_json::{Value, json};

use crate::support::binary::{Running, emostream};
use crate::support::house::{HOUR_NS, House, QUERY, WINDOWS, row, tables};
use crate::support::rows;

/// A house that spills into a folder of its own.
async fn house(window: &str) -> (House, Settings) {
    let query = QUERY.replace(WINDOWS[0].0, window);
    let house = House::new(&[("tables.sql", &tables("")), ("counts.sql", &query)]).await;
    let aside = Some(house.dir.path().join("aside"));
    let settings = Settings {
        max_state_bytes: Some(200_000),
        on_full: OnFull::Spill,
        spill_dir: aside,
        ..Settings::default()
    };
    (house, settings)
}

/// 400 rooms with long names, over both partitions.
async fn flood(house: &House) {
    let record = |part: i32| -> Bytes {
        let room = |n: i32| format!("room{part}/{n:01000}");
        let rows: Vec<String> = (0..40).map(|n| row("ann", &room(n), 100 * NS_PER_MS)).collect();
        rows.join("\n").into()
    };
    house.append(0, (0..5).map(record).collect()).await;
    house.append(1, (5..10).map(record).collect()).await;
}

fn has_failed(report: &QueryReport) -> bool {
    report.state == State::Failed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_goes_to_disk_and_every_window_is_told_exactly() {
    for (window, windows) in WINDOWS.into_iter().filter(|(window, _)| !window.starts_with("session")) {
        let (mut house, settings) = house(window).await;
        let few_groups = Settings { max_groups: 50, max_state_bytes: None, ..settings.clone() };
        let mut accepted = 0;
        for settings in [settings, few_groups] {
            house.restart(&settings).await;
            flood(&house).await;
            house.until("counts", |report| report.spilled_bytes > 0).await;
            accepted += 400;
            let report = house.until_done("counts", accepted).await;
            assert_eq!((report.figures.counted, report.last_error), (accepted, None), "{window}");
            assert_eq!(house.sum_of("counts").await, accepted * windows, "{window}");
            house.until("counts", |report| report.spilled_bytes == 0).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_stay_in_memory_and_stop_their_query_as_they_did() {
    let (mut house, settings) = house(WINDOWS[2].0).await;
    house.restart(&settings).await;
    flood(&house).await;
    let error = house.until("counts", has_failed).await.last_error.unwrap();
    assert!(error.contains("cannot be put on disk: sessions") && error.contains("raise it"), "{error}");
    house.restart(&Settings { max_state_bytes: None, ..settings }).await;
    house.until_done("counts", 400).await;
    assert_eq!(house.sum_of("counts").await, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_the_query_and_with_more_room_it_goes_on_exactly() {
    for (window, windows) in &WINDOWS[..2] {
        let (mut house, settings) = house(window).await;
        house.restart(&Settings { max_spill_bytes: 300_000, ..settings.clone() }).await;
        house.append(0, vec![Bytes::from(row("ann", "main", 0))]).await;
        house.until_done("counts", 1).await;
        flood(&house).await;
        let report = house.until("counts", has_failed).await;
        let error = report.last_error.unwrap();
        assert!(error.contains("max_spill_bytes allows") && error.contains("raise it"), "{error}");
        house.until("counts", |report| report.spilled_bytes == 0).await;
        assert_eq!(house.sum_of("counts").await, *windows, "{window}: what was committed stays");
        house.restart(&settings).await;
        let figures = house.until_done("counts", 401).await.figures;
        assert_eq!(figures.counted, 401, "{window}");
        assert_eq!(house.sum_of("counts").await, 401 * windows, "{window}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_cannot_be_written_is_named_at_the_start_and_while_a_query_runs() {
    let (mut house, settings) = house(WINDOWS[0].0).await;
    let aside = house.dir.path().join("aside");
    std::fs::write(&aside, "a file").unwrap();
    let refused = house.start(&settings).await.err().expect("it does not start").to_string();
    assert!(refused.contains("aside") && refused.contains("spill_dir"), "{refused}");

    std::fs::remove_file(&aside).unwrap();
    house.restart(&settings).await;
    // A query looks for the folder when it starts.
    house.until("counts", |report| report.state == State::Running).await;
    std::fs::remove_dir(&aside).unwrap();
    flood(&house).await;
    let error = house.until("counts", has_failed).await.last_error.unwrap();
    assert!(error.contains("aside") && error.contains("Make room there"), "{error}");
    house.restart(&settings).await;
    house.until_done("counts", 400).await;
    assert_eq!(house.sum_of("counts").await, 400);
}

const TOP: &str = "
CREATE TABLE plays (
  user_id TEXT NOT NULL, points BIGINT NOT NULL, at TIMESTAMP NOT NULL, WATERMARK FOR at AS (at - INTERVAL '1 second')
) WITH (connector = 'kafka', type = 'source', format = 'arrow');
CREATE TABLE best (window_start TIMESTAMP, user_id TEXT, plays BIGINT, points BIGINT, least BIGINT)
WITH (connector = 'kafka', type = 'sink');
INSERT INTO best SELECT window.start, user_id, plays, points, least FROM (
  SELECT *, row_number() OVER (PARTITION BY window ORDER BY plays DESC, points DESC, user_id) AS place FROM (
    SELECT tumble(INTERVAL '1 hour') AS window, user_id, count(*) AS plays, sum(points) AS points,
           min(points) AS least
    FROM plays GROUP BY window, user_id))
WHERE place <= 3;";

const USERS: u64 = 300_000;
const RECORD: u64 = 5_000;
/// Half of them play within ten seconds: one pane.
const RUSH: u64 = USERS / 2;

/// An hour with a play of each user and a few of three of them, and a row long after it.
async fn fill(dir: &Path, hour_ns: i64) {
    let planned = plan_program(&[SqlFile { name: "top.sql".into(), text: TOP.into() }]).unwrap();
    let table = planned.tables.iter().find(|table| table.name == "plays").unwrap();
    let (data, codec) = (dir.join("data"), RecordCodec::new(table));
    let opened = tokio::task::spawn_blocking(move || EmbeddedLog::open(&data, embedded::Settings::default()));
    let log = opened.await.unwrap().unwrap();
    let retention = Retention::Age(Duration::from_secs(24 * 3600));
    let topic = TopicSpec { name: "plays".into(), partitions: 3, retention, log_append_time: false };
    log.create_topics(&[topic]).await.unwrap();
    let row = |user: u64, points: u64, at_ns: i64| -> rows::Row {
        vec![format!("a-user-with-a-rather-long-name-{user:09}").into(), points.into(), at_ns.into()]
    };
    for first in (0..USERS).step_by(RECORD as usize) {
        let at_ns = |user: u64| {
            let ms =
                if user < RUSH { user * 9_000 / RUSH } else { 10_000 + (user - RUSH) * 3_500_000 / RUSH };
            hour_ns + ms as i64 * NS_PER_MS
        };
        let mut batch: Vec<rows::Row> =
            (first..first + RECORD).map(|user| row(user, user % 10, at_ns(user))).collect();
        // Seen in every record, so in every piece.
        batch.extend((0..3).map(|star| row(star, first / RECORD, at_ns(first + star))));
        let records = codec.encode_all(&rows::batch(table, &batch)).unwrap();
        let partition = (first / RECORD % 3) as u32;
        log.append("plays", partition, records).await.unwrap();
    }
    for partition in 0..3 {
        let last = rows::batch(table, &[row(0, 0, hour_ns + 2 * HOUR_NS)]);
        log.append("plays", partition, codec.encode_all(&last).unwrap()).await.unwrap();
    }
}

/// The most memory that a process has had, in megabytes.
fn peak_mb(process: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_of_an_hour_fit_in_little_memory_and_a_killed_process_loses_none() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("sql")).unwrap();
    std::fs::write(dir.path().join("sql/top.sql"), TOP).unwrap();
    let hour_ns = (wall_ns() / HOUR_NS - 3) * HOUR_NS;
    fill(dir.path(), hour_ns).await;
    let start = || {
        let mut command = emostream(dir.path());
        command.args(["up", "--listen", "127.0.0.1:0", "--sql", "sql"]);
        for (name, value) in
            [("ON_FULL", "spill"), ("MAX_STATE_BYTES", "8000000"), ("MAX_GROUPS", "10000000")]
        {
            command.env(format!("EMOSTREAM__ENGINE__{name}"), value);
        }
        Running::start(&mut command)
    };
    let accepted = |answer: &Value| answer["accepted"].as_u64().unwrap_or_default();
    let mut peaks = Vec::new();
    for share in [3, 2] {
        let mut process = start();
        let far = |answer: &Value| {
            accepted(answer) > USERS / share
                && answer["spilled_bytes"].as_u64().is_some_and(|bytes| bytes > 0)
        };
        process.poll("/v1/queries/top", far).await;
        peaks.push(peak_mb(&process));
        process.kill();
    }
    let process = start();
    // One after the other, so that a slow machine has time for each.
    process.ready().await;
    process.poll("/v1/queries/top", |answer| accepted(answer) > USERS * 3 / 4).await;
    process.poll("/v1/queries/top", |answer| accepted(answer) > USERS + 3 * USERS / RECORD).await;
    // The row that moves time on has a window too, which the clock closes.
    let of_the_hour = |window: &&Value| window["start"] == format_rfc3339(hour_ns);
    let told = process.windows("best", |windows| windows.iter().any(|window| of_the_hour(&window))).await;
    peaks.push(peak_mb(&process));
    let stars = USERS / RECORD;
    let rows: Vec<Value> = (0..3)
        .map(|star: u64| {
            json!({
                "user_id": format!("a-user-with-a-rather-long-name-{star:09}"),
                "plays": stars + 1, "points": stars * (stars - 1) / 2 + star, "least": 0,
            })
        })
        .collect();
    let told: Vec<&Value> = told.iter().filter(of_the_hour).collect();
    let mut found = told[0]["rows"].as_array().unwrap().clone();
    found.sort_by_key(|row| row["user_id"].to_string());
    assert_eq!((told.len(), found), (1, rows));
    let report = process.json("/v1/queries/top").await;
    let all = USERS + 3 * stars;
    let figure = |name: &str| report[name].as_u64().unwrap();
    assert_eq!((figure("counted") + figure("open"), figure("accepted")), (all + 3, all + 3));
    assert!(figure("counted") >= all, "{report}");
    eprintln!("the most memory, of three processes: {peaks:?} MB");
    assert!(peaks.iter().all(|peak| *peak < 300), "{peaks:?}");
}

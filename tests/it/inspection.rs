//! What cannot be counted: bad records, late rows, more groups than may be held. The real engine on the embedded log.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use emostream::engine::Settings;
use emostream::engine::worker::State;
use emostream::log::embedded::{self, EmbeddedLog};
use emostream::log::failpoint::CRASH_AT;
use emostream::log::{Log, Record, Retention, TOPIC_BAD, TopicSpec};
use emostream::reaction::time::NS_PER_MS;
use serde_json::Value;

use crate::support::binary::{Running, emostream};
use crate::support::house::{HOUR_NS, House, QUERY, WINDOWS, record, records, row, tables, value};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_record_costs_itself_only_and_is_kept_once_with_its_place_and_reason() {
    let mut house = House::new(&[("tables.sql", &tables("")), ("counts.sql", QUERY)]).await;
    let good = |user| Bytes::from(row(user, "main", 0));
    house.append(0, vec![good("ann"), Bytes::from_static(b"{\"user_id\": 3}"), good("bob")]).await;
    house.append(1, vec![Bytes::from(vec![b'{'; 100_000])]).await;
    let report = house.until_done("counts", 4).await;
    assert_eq!((report.figures.counted, report.figures.bad, report.last_error), (2, 2, None));
    for _ in 0..2 {
        let mut kept = house.until_kept(2).await;
        kept.sort_by_key(|kept| kept.partition);
        let places: Vec<_> =
            kept.iter().map(|kept| (kept.topic.as_str(), kept.partition, kept.offset, kept.bytes)).collect();
        assert_eq!(
            places,
            [("given", Some(0), Some(1), Some(14)), ("given", Some(1), Some(0), Some(100_000))]
        );
        assert!(kept[0].reason.contains("user_id"), "{}", kept[0].reason);
        let bad = records(house.log.as_ref(), TOPIC_BAD).await;
        let sizes: BTreeSet<usize> =
            bad.iter().map(|record| record.value.as_ref().map_or(0, Bytes::len)).collect();
        assert_eq!((bad.len(), sizes), (2, BTreeSet::from([14, 64 << 10])), "cut off");
        house.restart(&Settings::default()).await;
        house.until_done("counts", 4).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_a_bad_record_stops_the_query_nothing_after_it_is_committed_and_drop_goes_on_from_there() {
    let mut house =
        House::new(&[("tables.sql", &tables(", bad_data = 'fail'")), ("counts.sql", QUERY)]).await;
    house.append(0, vec![Bytes::from(row("ann", "main", 0))]).await;
    house.until_done("counts", 1).await;
    let good = |user| Bytes::from(row(user, "main", 0));
    house.append(0, vec![good("bob"), Bytes::from_static(b"no JSON"), good("cleo")]).await;
    for _ in 0..2 {
        let report = house.until("counts", |report| report.state == State::Failed).await;
        let error = report.last_error.unwrap();
        assert!(error.starts_with("given, partition 0, offset 2: ") && error.contains("'drop'"), "{error}");
        assert_eq!(house.sum_of("counts").await, 1, "what came before it is committed, and no more");
        assert!(records(house.log.as_ref(), TOPIC_BAD).await.is_empty());
        let missing = house.engine().restored().unwrap_err();
        assert_eq!(missing, "query counts failed: see last_error in /v1/queries");
        house.restart(&Settings::default()).await;
    }
    house.save("tables.sql", &tables(", bad_data = 'drop'"));
    let report = house.until_done("counts", 4).await;
    assert_eq!((report.figures.counted, report.figures.bad), (3, 1));
    assert_eq!(house.sum_of("counts").await, 3);
    assert_eq!(house.until_kept(1).await[0].offset, Some(2));
    // What was left out before is left out for good.
    house.save("tables.sql", &tables(", bad_data = 'fail'"));
    house.restart(&Settings::default()).await;
    house.append(0, vec![good("dora")]).await;
    assert_eq!(house.until_done("counts", 5).await.figures.counted, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_and_future_rows_are_written_whole_to_a_table_of_their_own() {
    let tables = tables(", late_rows = 'table'");
    let mut house = House::new(&[("tables.sql", &tables), ("counts.sql", QUERY)]).await;
    house.append(0, vec![Bytes::from(row("ann", "main", 0))]).await;
    house.until_done("counts", 1).await;
    let rows = [
        row("ghost", "main", -HOUR_NS),
        row("bob", "main", 0),
        row("cleo", "side", -HOUR_NS),
        row("dora", "main", HOUR_NS),
    ];
    house.append(0, vec![Bytes::from(rows.join("\n"))]).await;
    let figures = house.until_done("counts", 5).await.figures;
    assert_eq!((figures.counted, figures.filtered, figures.late, figures.future), (2, 1, 1, 1));
    for _ in 0..2 {
        house.until_kept(2).await;
        let late = records(house.log.as_ref(), "given_late").await;
        let told: Vec<(Value, &str)> = late
            .iter()
            .map(|record| {
                let header = |name| record.header(name).unwrap();
                assert_eq!((header("query"), header("partition"), header("offset")), ("counts", "0", "1"));
                (value(record), header("reason"))
            })
            .collect();
        let json = |row: &String| serde_json::from_str::<Value>(row).unwrap();
        assert_eq!(told, [(json(&rows[2]), "late"), (json(&rows[3]), "future")]);
        house.restart(&Settings::default()).await;
        house.until_done("counts", 5).await;
    }
    let flood: Vec<String> = (0..300).map(|n| row(&n.to_string(), "main", -HOUR_NS)).collect();
    house.append(0, vec![Bytes::from(flood.join("\n"))]).await;
    assert_eq!(house.until_done("counts", 305).await.figures.late, 301, "all are counted");
    house.until_kept(102).await;
    assert_eq!(records(house.log.as_ref(), "given_late").await.len(), 102, "and a hundred kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_keys_stops_its_query_only_and_a_higher_limit_goes_on_exactly() {
    let limited = Settings { max_groups: 50, ..Settings::default() };
    flooded(&limited, &Settings { max_groups: 5_000, ..Settings::default() }, "max_groups allows 50").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_fill_the_memory_stop_their_query_only_and_a_higher_limit_goes_on_exactly() {
    let limited = Settings { max_state_bytes: Some(300_000), ..Settings::default() };
    flooded(&limited, &Settings::default(), "max_state_bytes allows 300000").await;
}

/// Within the first limits a query stops, within the others it does not.
async fn flooded(limited: &Settings, enough: &Settings, said: &str) {
    let totals = "INSERT INTO totals SELECT window.start, count FROM (
      SELECT tumble(INTERVAL '100 milliseconds') AS window, count(*) AS count FROM reactions GROUP BY window);";
    for (window, windows) in WINDOWS {
        let query = QUERY.replace(WINDOWS[0].0, window);
        let files = [("tables.sql", tables("")), ("counts.sql", query), ("totals.sql", totals.to_owned())];
        let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
        let mut house = House::new(&files).await;
        house.restart(limited).await;
        house.append(0, vec![Bytes::from(row("ann", "main", 0))]).await;
        house.until_done("counts", 1).await;
        let flood = |part: i32| -> Bytes {
            let rows: Vec<String> =
                (0..40).map(|n| row("ann", &format!("room{part}/{n:01000}"), 100 * NS_PER_MS)).collect();
            rows.join("\n").into()
        };
        house.append(0, (0..5).map(flood).collect()).await;
        house.append(1, (5..10).map(flood).collect()).await;
        let report = house.until("counts", |report| report.state == State::Failed).await;
        let error = report.last_error.unwrap();
        assert!(error.contains(said) && error.contains("raise it"), "{error}");
        assert_eq!(house.sum_of("counts").await, windows, "{window}: what was committed stays");
        house.until_done("totals", 401).await;
        // The same limit stops it again, at the same place.
        house.restart(limited).await;
        house.until("counts", |report| report.state == State::Failed).await;
        house.restart(enough).await;
        let figures = house.until_done("counts", 401).await.figures;
        assert_eq!(figures.counted, 401, "{window}");
        assert_eq!(house.sum_of("counts").await, 401 * windows, "{window}");
        assert_eq!(house.sum_of("totals").await, 401);
    }
}

/// Puts bad records and a good one into the log of a process that does not run.
async fn put_in(dir: &Path, bad: usize) {
    let data = dir.join("data");
    let opened = tokio::task::spawn_blocking(move || EmbeddedLog::open(&data, embedded::Settings::default()));
    let log = opened.await.unwrap().unwrap();
    let retention = Retention::Age(Duration::from_secs(3600));
    let topic = TopicSpec { name: "given".to_owned(), partitions: 8, retention, log_append_time: false };
    log.create_topics(&[topic]).await.unwrap();
    for partition in 0..2 {
        let mut records: Vec<_> = (0..bad).map(|_| record(&b"torn"[..])).collect();
        records.push(record(row("ann", "main", 0)));
        log.append("given", partition, records).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_neither_loses_nor_doubles_what_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("sql")).unwrap();
    std::fs::write(dir.path().join("sql/tables.sql"), tables("")).unwrap();
    std::fs::write(dir.path().join("sql/counts.sql"), QUERY).unwrap();
    let points =
        ["engine.hand_over:2", "engine.commit.before", "engine.commit.after", "engine.commit.before:2"];
    for point in points {
        put_in(dir.path(), 5).await;
        let mut command = emostream(dir.path());
        command.args(["up", "--listen", "127.0.0.1:0"]).env(CRASH_AT, point);
        if let Ok(mut up) = Running::begin(&mut command) {
            assert!(!up.ended().await.expect("it dies there").success());
        }
    }
    let mut up = Running::up(dir.path(), &[]);
    let query = "/v1/queries/counts";
    let bad = 10 * points.len();
    up.poll(query, |query| query["bad"] == bad && query["open"] == 0).await;
    let kept = |answer: &Value| answer["kept"].as_array().map_or(0, Vec::len);
    up.poll(&format!("{query}/kept"), |answer| kept(answer) == bad).await;
    assert_eq!(up.terminate().await, Some(0));
    let log = EmbeddedLog::open(&dir.path().join("data"), embedded::Settings::default()).unwrap();
    let records = records(log.as_ref(), TOPIC_BAD).await;
    let place = |record: &Record| {
        ["query", "topic", "partition", "offset"].map(|name| record.header(name).unwrap().to_owned())
    };
    let places: BTreeSet<_> = records.iter().map(place).collect();
    assert_eq!((records.len(), places.len()), (bad, bad));
}

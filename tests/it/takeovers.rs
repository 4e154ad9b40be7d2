//! A version of a query that takes over from another at whatever moment that one stopped, as after a failure: no window is
//! lost, and none comes twice.

use std::collections::BTreeMap;

use emostream::reaction::time::Window;
use serde_json::{Map, Value, json};

use crate::support::rows;
use crate::support::stage::{Emitted, MS, Prepared, Stage, compile};

const TABLES: &str = "
CREATE TABLE reactions (n BIGINT NOT NULL, at TIMESTAMP NOT NULL, WATERMARK FOR at)
WITH (connector = 'kafka', type = 'source');
CREATE TABLE short (window_start TIMESTAMP, window_end TIMESTAMP, n BIGINT) WITH (connector = 'kafka', type = 'sink');
CREATE TABLE long (window_start TIMESTAMP, window_end TIMESTAMP, n BIGINT) WITH (connector = 'kafka', type = 'sink');
CREATE TABLE passed (n BIGINT, at TIMESTAMP) WITH (connector = 'kafka', type = 'sink');";
const SECOND: i64 = 1_000 * MS;

/// Counts into a sink by windows of so many seconds; `more` makes it another plan.
fn counts(sink: &str, seconds: i64, more: &str) -> String {
    format!(
        "INSERT INTO {sink} SELECT window.start, window.end, n FROM (
           SELECT tumble(INTERVAL '{seconds} seconds') AS window, count(*) AS n FROM reactions {more} GROUP BY 1);"
    )
}

fn query(inserts: &[String]) -> Prepared {
    compile(TABLES, &inserts.join("\n"))
}

/// A row a second, closed as they come.
fn send(stage: &mut Stage, seconds: std::ops::Range<i64>) {
    for second in seconds {
        let batch = rows::batch(stage.query().source(), &[vec![json!(second), json!(second * SECOND)]]);
        stage.append(0, &batch, second * 1_000);
    }
    stage.read_all();
}

/// Commits what is known, as it is every few seconds.
fn commit(stage: &mut Stage) {
    let due = stage.hand_over(true).unwrap();
    stage.commit(&due);
}

/// By sink: every window with its count; none twice.
#[derive(Default)]
struct Told(BTreeMap<(String, Window), i64>);

impl Told {
    fn add(&mut self, emitted: &[Emitted]) {
        for Emitted { sink, window, rows } in emitted {
            let count = rows.iter().map(|row| row["n"].as_i64().unwrap()).sum();
            let before = self.0.insert((sink.clone(), *window), count);
            assert_eq!(before, None, "{sink} {window:?} comes twice");
        }
    }

    /// Where the windows of a sink begin and end in seconds, and how many rows each has.
    fn of(&self, sink: &str) -> Vec<(i64, i64, i64)> {
        let own = self.0.iter().filter(|((of, _), _)| of == sink);
        own.map(|((_, window), count)| (window.start / SECOND, window.end / SECOND, *count)).collect()
    }
}

/// Windows of so many seconds from one second to another, each whole.
fn whole(seconds: i64, from: i64, to: i64) -> Vec<(i64, i64, i64)> {
    (from / seconds..to / seconds).map(|n| (n * seconds, (n + 1) * seconds, seconds)).collect()
}

#[test]
fn windows_of_two_lengths_go_on_each_from_its_own_last_end() {
    let both = |more: &str| query(&[counts("short", 10, more), counts("long", 15, more)]);
    for stopped_at in [61, 71, 76, 89] {
        let (mut stage, mut told) = (Stage::new(&both(""), 1), Told::default());
        send(&mut stage, 0..stopped_at);
        commit(&mut stage);
        told.add(stage.emitted());
        stage.go_on_as(&both("WHERE n >= 0"));
        send(&mut stage, stopped_at..151);
        told.add(stage.emitted());
        assert_eq!(
            (told.of("short"), told.of("long")),
            (whole(10, 0, 150), whole(15, 0, 150)),
            "{stopped_at}"
        );
    }
}

#[test]
fn what_a_long_window_holds_when_its_query_stops_is_told_by_the_next_one() {
    let (mut stage, mut told) = (Stage::new(&query(&[counts("long", 120, "")]), 1), Told::default());
    send(&mut stage, 0..356);
    commit(&mut stage);
    told.add(stage.emitted());
    stage.go_on_as(&query(&[counts("short", 30, "")]));
    send(&mut stage, 356..421);
    told.add(stage.emitted());
    assert_eq!((told.of("long"), told.of("short")), (whole(120, 0, 240), whole(30, 240, 420)));
}

#[test]
fn a_version_that_fails_before_its_first_window_leaves_nothing_untold_and_nothing_told_twice() {
    let (short, long) = (query(&[counts("short", 2, "")]), query(&[counts("long", 600, "")]));
    let (mut stage, mut told) = (Stage::new(&short, 1), Told::default());
    send(&mut stage, 0..755);
    told.add(stage.emitted());
    stage.go_on_as(&long);
    send(&mut stage, 755..871);
    commit(&mut stage);
    // As a crash leaves it, too.
    stage.restart();
    send(&mut stage, 871..881);
    commit(&mut stage);
    assert!(stage.emitted().is_empty(), "its first window is open");
    stage.go_on_as(&short);
    send(&mut stage, 881..901);
    told.add(stage.emitted());
    assert_eq!(told.of("short"), whole(2, 0, 900));
}

#[test]
fn rows_that_were_passed_on_are_not_passed_on_again_when_windows_are_added() {
    let passing = "INSERT INTO passed SELECT n, at FROM reactions WHERE n >= 10;".to_owned();
    let mut stage = Stage::new(&query(std::slice::from_ref(&passing)), 1);
    send(&mut stage, 0..50);
    commit(&mut stage);
    stage.go_on_as(&query(&[passing, counts("short", 20, "")]));
    send(&mut stage, 50..101);
    let passed: Vec<i64> =
        stage.row_wise().iter().map(|row: &Map<String, Value>| row["n"].as_i64().unwrap()).collect();
    assert_eq!(passed, (10..101).collect::<Vec<_>>());
    let mut told = Told::default();
    told.add(stage.emitted());
    assert_eq!(told.of("short"), whole(20, 0, 100), "the windows hold what is there");
}

#[test]
fn a_record_that_cannot_be_read_may_declare_any_number_of_rows() {
    let mut stage = Stage::new(&query(&[counts("short", 10, "")]), 1);
    for _ in 0..3 {
        stage.append_bytes(0, "junk".into(), usize::MAX, 1_000);
    }
    send(&mut stage, 2..12);
    let figures = stage.figures();
    assert!(
        figures.is_conserved() && figures.bad == 3 << 20 && figures.accepted == figures.bad + 10,
        "{figures:?}"
    );
}

/// Every reaction of another user: no pane shares a group with another.
#[test]
fn hopping_windows_of_keys_that_differ_are_held_a_few_times_and_not_once_per_slide() {
    let text = "INSERT INTO long SELECT window.start, window.end, sum(k) FROM (
        SELECT hop(INTERVAL '1 second', INTERVAL '60 seconds') AS window, n, count(*) AS k FROM reactions GROUP BY 1, 2
      ) GROUP BY window;";
    let mut stage = Stage::new(&compile(TABLES, text), 1);
    let (mut told, mut most) = (Told::default(), 0);
    for second in 0..200 {
        let rows: Vec<rows::Row> =
            (0..20).map(|n| vec![json!(second * 20 + n), json!(second * SECOND)]).collect();
        let batch = rows::batch(stage.query().source(), &rows);
        stage.append(0, &batch, second * 1_000);
        stage.read_all();
        most = most.max(stage.held().groups);
    }
    told.add(stage.emitted());
    assert!(
        told.of("long").iter().all(|(start, end, n)| *n == (end - (*start).max(0)) * 20),
        "{:?}",
        told.of("long")
    );
    assert!(most < 60 * 20 * 4, "{most} groups held of {}", 60 * 20);
}

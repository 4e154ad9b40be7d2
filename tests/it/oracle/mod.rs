//! The oracle: random queries of the dialect over random events, against a batch DataFusion query over the same rows.
//!
//! One query is planned once and run over several sets of events, each with its own partitions, records, order of
//! reading and kills, every other one with open windows put on disk at random places. What fails is made small before it is shown. `EMOSTREAM_ORACLE_CASES=N` tries N queries.

mod events;
mod query;

use std::panic::AssertUnwindSafe;

use datafusion::prelude::{SessionConfig, SessionContext};
use emostream::reaction::time::parse_rfc3339;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value};

use crate::support::stage::{MS, Prepared, Stage, prepare};
use crate::support::{rows, seeds};
use events::Events;
use query::{For, Query, SOURCE};

type Rows = Vec<Map<String, Value>>;

/// How often a failing case is tried again to make it smaller.
const SHRINKS: usize = 400;

fn plan(query: &Query) -> Result<Prepared, String> {
    let file = |name: &str, text: String| emostream::sql::SqlFile { name: name.into(), text };
    let files = [file("tables.sql", SOURCE.to_owned()), file("query.sql", query.sql(For::Engine))];
    prepare(&files)
}

fn batch_answer(query: &Prepared, sql: &str, events: &[Events]) -> Result<Rows, String> {
    let config = SessionConfig::new()
        .set_bool("datafusion.sql_parser.map_string_types_to_utf8view", false)
        .with_target_partitions(1);
    let context = SessionContext::new_with_config(config);
    let all: Vec<rows::Row> = events.iter().flat_map(|events| events.rows.clone()).collect();
    let answer = async {
        context.register_batch("events", rows::batch(query.source(), &all))?;
        context.sql(sql).await?.collect().await
    };
    // A union starts tasks.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let answer = runtime.block_on(answer).map_err(|error| format!("the batch query: {error}"))?;
    Ok(rows::as_written(query.sink(), &answer))
}

/// What the engine answers.
fn engine_answer(query: &Prepared, events: &Events) -> Rows {
    let mut random = StdRng::seed_from_u64(events.seed);
    let mut stage = Stage::new(query, events.partitions);
    let mut rest = events.rows.as_slice();
    while !rest.is_empty() {
        let (record, after) = rest.split_at(random.random_range(1..=rest.len().min(40)));
        let partition = random.random_range(0..events.partitions);
        stage.append(partition, &rows::batch(query.source(), record), Events::latest_ms(record) + 500);
        rest = after;
    }
    let mut restarts = events.restarts;
    let spills = random.random_bool(0.5);
    while (0..events.partitions).any(|partition| stage.unread(partition) > 0) {
        let partition = random.random_range(0..events.partitions);
        stage.read(partition);
        if spills && random.random_ratio(1, 3) {
            stage.spill();
        }
        if spills && restarts > 0 && random.random_ratio(1, 6) {
            restarts -= 1;
            stage.die_ahead();
        }
        if random.random_bool(0.7) {
            stage.close();
        }
        if restarts > 0 && random.random_ratio(1, 6) {
            restarts -= 1;
            stage.restart();
        }
    }
    stage.end(i64::MAX / MS - 1_000);
    let figures = stage.checkpoint().unwrap().figures;
    assert_eq!((figures.late, figures.future, figures.bad, figures.open), (0, 0, 0, 0), "{figures:?}");
    // Once for every input of the query.
    let rows = events.rows.len() as u64;
    assert!(figures.accepted >= rows && figures.accepted.is_multiple_of(rows), "{figures:?}");
    stage.rows().cloned().collect()
}

/// Rows in an order of their own, whatever order they came in: floats are last in doubt.
fn in_order(mut rows: Rows) -> Rows {
    let key = |row: &Map<String, Value>| {
        let exact =
            row.iter().map(|(_, value)| if value.is_f64() { String::new() } else { value.to_string() });
        exact.collect::<Vec<_>>().join("\u{1}")
    };
    rows.sort_by_cached_key(key);
    rows
}

fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(x), Some(y)) if a.is_f64() || b.is_f64() => {
            (x - y).abs() <= 1e-9 * x.abs().max(y.abs()).max(1.0)
        }
        _ => a == b,
    }
}

fn differ(found: Rows, expected: Rows) -> Option<String> {
    let (found, expected) = (in_order(found), in_order(expected));
    let equal = |(a, b): (&Map<String, Value>, &Map<String, Value>)| {
        a.values().zip(b.values()).all(|(a, b)| same(a, b))
    };
    let first = found.iter().zip(&expected).position(|pair| !equal(pair));
    let at = first.or((found.len() != expected.len()).then_some(found.len().min(expected.len())))?;
    let show = |rows: &Rows| {
        rows.get(at).map_or("no more rows".to_owned(), |row| Value::from(row.clone()).to_string())
    };
    Some(format!(
        "of {} rows and {} expected, row {at}:\n  engine: {}\n  batch:  {}",
        found.len(),
        expected.len(),
        show(&found),
        show(&expected)
    ))
}

/// What is wrong with a case, if anything. Returns how many rows were compared; none where DataFusion itself has a
/// defect, of which the optimiser of the batch query has some.
fn failure(query: &Query, events: &[Events]) -> Result<Option<usize>, String> {
    let attempt = || {
        let planned = plan(query)?;
        let expected = match batch_answer(&planned, &query.sql(For::Batch), events) {
            Err(error) if error.contains("likely caused by a bug in DataFusion") => return Ok(None),
            expected => expected?,
        };
        for set in events {
            let of_set = expected.iter().filter(|row| {
                let start = row["window_start"].as_str().and_then(|text| parse_rfc3339(text).ok());
                set.holds(start.expect("a window has a start"))
            });
            if let Some(difference) = differ(engine_answer(&planned, set), of_set.cloned().collect()) {
                return Err(difference);
            }
        }
        Ok(Some(expected.len()))
    };
    std::panic::catch_unwind(AssertUnwindSafe(attempt)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        Err(format!(
            "panic: {}",
            said.or(panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
        ))
    })
}

/// A case as small as it gets, with what is wrong with it.
fn shrunk(mut query: Query, mut events: Vec<Events>, mut wrong: String) -> String {
    let mut tries = 0;
    'smaller: loop {
        let fewer_sets = (0..events.len()).filter(|_| events.len() > 1).map(|i| vec![events[i].clone()]);
        let fewer_rows = events[0].smaller().into_iter().filter(|_| events.len() == 1).map(|set| vec![set]);
        let by_events = fewer_sets.chain(fewer_rows).map(|events| (query.clone(), events));
        let by_query = query.smaller().into_iter().map(|query| (query, events.clone()));
        for (less, fewer) in by_query.chain(by_events).collect::<Vec<_>>() {
            tries += 1;
            if tries > SHRINKS {
                break 'smaller;
            }
            if let Err(still) = failure(&less, &fewer) {
                (query, events, wrong) = (less, fewer, still);
                continue 'smaller;
            }
        }
        break;
    }
    let rows: Vec<String> = events.iter().flat_map(|set| &set.rows).map(|row| format!("{row:?}")).collect();
    format!(
        "{wrong}\n\n{}\n\n-- batch\n{}\n\n{} partitions, {} restarts, seed {}; rows:\n{}",
        query.sql(For::Engine),
        query.sql(For::Batch),
        events[0].partitions,
        events[0].restarts,
        events[0].seed,
        rows[..rows.len().min(20)].join("\n")
    )
}

#[test]
fn a_random_query_over_random_events_gives_the_batch_answer() {
    let (mut compared, mut cases, mut without_answer) = (0, 0, 0);
    seeds::each("EMOSTREAM_ORACLE_CASES", 250, |_, mut random| {
        let query = Query::random(&mut random);
        let events: Vec<Events> = (0..6).map(|index| Events::random(index, &mut random)).collect();
        cases += 1;
        match failure(&query, &events) {
            Ok(Some(rows)) => compared += rows,
            Ok(None) => without_answer += 1,
            Err(wrong) => panic!("{}", shrunk(query, events, wrong)),
        }
    });
    assert!(without_answer <= 1 + cases / 50, "{without_answer} of {cases} batch queries have no answer");
    assert!(compared >= cases, "{compared} rows in {cases} cases");
    assert!(Stage::spilled() > 1_000, "{} bytes were on disk at most", Stage::spilled());
}

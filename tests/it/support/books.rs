//! Closing the books: what senders were answered, against what every outlet of the program says.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use emostream::log::{
    HEADER_FINAL, HEADER_REVISION, HEADER_ROWS, HEADER_WINDOW_ROWS, HEADER_WINDOW_START, Log, Record,
    TOPIC_LIVE, cluster_topic,
};
use emostream::reaction::figures::Figures;
use emostream::reaction::live::LiveMessage;
use emostream::reaction::time::{Window, parse_rfc3339};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::binary::Running;
use super::load::{Ledger, Outcome};
use super::viewer::Shown;

/// How long everything that was sent may take to be counted.
const DRAIN: Duration = Duration::from_secs(30);

/// A window as `/v1/results` answers it.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub(crate) struct ClosedWindow {
    #[serde(flatten)]
    pub(crate) window: Window,
    pub(crate) rows: Vec<Map<String, Value>>,
}

#[derive(Deserialize)]
struct Page {
    windows: Vec<ClosedWindow>,
    next: Option<String>,
}

/// Rows answered 202, and rows of which nobody was told.
pub(crate) fn sent(ledger: &Ledger) -> (u64, u64) {
    let rows =
        |outcome| ledger.values().filter(|sent| sent.outcome == outcome).map(|sent| sent.rows).sum::<u64>();
    (rows(Outcome::Accepted), rows(Outcome::Unknown))
}

/// The figures of a query once no row is open any more, having checked that every row is accounted once, that none
/// was late, and that there are as many as the senders know of.
pub(crate) async fn settle(process: &Running, query: &str, ledger: &Ledger) -> Figures {
    let (accepted, unknown) = sent(ledger);
    let path = format!("/v1/queries/{query}");
    let deadline = tokio::time::Instant::now() + DRAIN;
    loop {
        let answer = process.json(&path).await;
        let figures: Figures = serde_json::from_value(answer.clone()).unwrap_or_default();
        assert!(figures.is_conserved(), "{query}: {answer}");
        let is_done = answer["state"] == "running" && answer["lag_records"] == 0 && figures.open == 0;
        if is_done && figures.accepted >= accepted {
            assert!(figures.accepted <= accepted + unknown, "{query}: {accepted} + {unknown}: {answer}");
            assert_eq!((figures.late, figures.future, figures.bad), (0, 0, 0), "{query}: {answer}");
            return figures;
        }
        let patience = tokio::time::Instant::now() < deadline;
        assert!(patience, "{query}: {accepted} rows were answered 202 (and {unknown} unknown): {answer}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// All windows of a sink, read page by page in both directions, having checked that none comes twice.
pub(crate) async fn all_results(process: &Running, sink: &str) -> Vec<ClosedWindow> {
    let mut forwards = pages(process, sink, "asc", 7).await;
    let backwards = pages(process, sink, "desc", 1000).await;
    let windows: BTreeSet<_> = forwards.iter().map(|w| (w.window.start, w.window.end)).collect();
    assert_eq!(windows.len(), forwards.len(), "{sink}: a window comes twice");
    assert!(forwards.is_sorted_by_key(|w| w.window.start), "{sink}: not in order");
    forwards.reverse();
    assert!(forwards == backwards, "{sink}: pages of 7 and pages of 1000 differ");
    backwards
}

async fn pages(process: &Running, sink: &str, order: &str, limit: usize) -> Vec<ClosedWindow> {
    let (mut windows, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/v1/results/{sink}?order={order}&limit={limit}{cursor}");
        let page: Page = serde_json::from_value(process.json(&path).await).expect("a page");
        assert!(page.windows.len() <= limit);
        windows.extend(page.windows);
        match page.next {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return windows,
        }
    }
}

/// The sum of a column over all rows.
pub(crate) fn total(windows: &[ClosedWindow], column: &str) -> u64 {
    windows.iter().flat_map(|window| &window.rows).map(|row| row[column].as_u64().expect("a number")).sum()
}

/// Every request is in one window with all its rows when it was answered 202, there or nowhere when its outcome is
/// unknown, and nowhere when it was refused. `windows` are of a query that groups by room and tag and counts rows
/// (`count`) and their distinct users (`people`).
pub(crate) fn check_requests(ledger: &Ledger, windows: &[ClosedWindow]) {
    let mut found: BTreeMap<&str, Vec<&Map<String, Value>>> = BTreeMap::new();
    for row in windows.iter().flat_map(|window| &window.rows) {
        found.entry(row["emoji_type"].as_str().expect("a tag")).or_default().push(row);
    }
    for (tag, rows) in &found {
        let Some(sent) = ledger.get(*tag) else { panic!("{tag} was never sent: {rows:?}") };
        assert_ne!(sent.outcome, Outcome::Refused, "{tag} was refused, and counted: {rows:?}");
        assert_eq!(rows.len(), 1, "{tag} is counted more than once: {rows:?}");
        let counts = (rows[0]["count"].as_u64(), rows[0]["people"].as_u64());
        assert_eq!(counts, (Some(sent.rows), Some(sent.rows)), "{tag}: {sent:?}");
        assert_eq!(rows[0]["room"], sent.room, "{tag}");
    }
    for (tag, sent) in ledger.iter().filter(|(_, sent)| sent.outcome == Outcome::Accepted) {
        assert!(found.contains_key(tag.as_str()), "{tag} was answered 202 and is not counted: {sent:?}");
    }
}

/// The windows and rows that viewers of these rooms have to be shown, from the results.
fn to_be_shown(sinks: &[(&str, &[ClosedWindow])]) -> BTreeMap<(String, String, i64, i64), usize> {
    let mut windows = BTreeMap::new();
    for (sink, closed) in sinks {
        for window in *closed {
            for row in &window.rows {
                let room = row.get("room").map_or("main", |room| room.as_str().expect("a room"));
                let key = ((*sink).to_owned(), room.to_owned(), window.window.start, window.window.end);
                *windows.entry(key).or_default() += 1;
            }
        }
    }
    windows
}

/// A viewer that was there from the first window on was shown every window once, whole and in order; a burst that its
/// queue did not hold was conflated, and then it was told exactly how many windows were left out and where.
pub(crate) fn check_shown(shown: &Shown, sinks: &[(&str, &[ClosedWindow])]) {
    assert!(shown.wrong.is_empty() && shown.gaps == 0, "{} gaps; wrong: {:#?}", shown.gaps, shown.wrong);
    let mut to_come: BTreeMap<(String, String), VecDeque<(i64, usize)>> = BTreeMap::new();
    for ((sink, room, _, end), rows) in to_be_shown(sinks) {
        to_come.entry((sink, room)).or_default().push_back((end, rows));
    }
    for (LiveMessage { id, table, room, window, rows, .. }, skipped) in &shown.messages {
        let Some(to_come) = to_come.get_mut(&(table.clone(), room.clone())) else {
            panic!("{id}: no results in {table} {room}")
        };
        let before = to_come.iter().take_while(|(end, _)| *end < window.end).count();
        assert_eq!(before as u64, *skipped, "{id}: windows left out before {table} {room} {window:?}");
        to_come.drain(..before);
        assert_eq!(to_come.pop_front(), Some((window.end, rows.len())), "{id}: {table} {room} {window:?}");
    }
    to_come.retain(|_, to_come| !to_come.is_empty());
    assert!(to_come.is_empty(), "never shown: {to_come:?}");
}

/// Whether a viewer was shown, or told of, as many windows as there are.
pub(crate) fn is_shown(shown: &Shown, sinks: &[(&str, &[ClosedWindow])]) -> bool {
    let told: u64 = shown.messages.iter().map(|(_, skipped)| skipped + 1).sum();
    told >= to_be_shown(sinks).len() as u64
}

/// All committed records of a topic, by partition.
pub(crate) async fn committed(log: &dyn Log, topic: &str) -> Vec<Vec<Record>> {
    let ranges = log.describe(topic).await.unwrap().unwrap_or_else(|| panic!("no topic {topic}"));
    let mut partitions = Vec::new();
    for (range, partition) in ranges.iter().zip(0..) {
        let mut reader = log.reader(topic, partition, range.start).await.unwrap();
        let (mut next, mut records) = (range.start, Vec::new());
        let deadline = tokio::time::Instant::now() + DRAIN;
        while next < range.end {
            let in_time = tokio::time::Instant::now() < deadline;
            assert!(in_time, "a reader of {topic}/{partition} stays at {next} of {range:?}");
            let batch = reader.read(1 << 20, Duration::from_secs(1)).await.unwrap();
            next = batch.next;
            records.extend(batch.records);
        }
        partitions.push(records);
    }
    partitions
}

/// Rows on a source's topic, by the records' headers.
pub(crate) async fn rows_in_log(log: &dyn Log, topic: &str) -> u64 {
    let records = committed(log, topic).await.into_iter().flatten();
    records.map(|record| record.header(HEADER_ROWS).and_then(|rows| rows.parse::<u64>().ok()).unwrap()).sum()
}

/// A committed reader of a sink's topic, ours or another, finds every row of every window once and each window whole; and
/// every early result whole, with a lower revision than the window. Returns how many rows there are, without those.
pub(crate) async fn check_sink_topic(log: &dyn Log, topic: &str) -> usize {
    let mut rows = BTreeSet::new();
    let mut windows: BTreeMap<(i64, String, u64), Vec<u64>> = BTreeMap::new();
    let (mut early, mut last) = (BTreeSet::new(), BTreeMap::new());
    for record in committed(log, topic).await.into_iter().flatten() {
        let row: Map<String, Value> = serde_json::from_slice(&record.value.clone().unwrap()).unwrap();
        let start = parse_rfc3339(record.header(HEADER_WINDOW_START).unwrap()).unwrap();
        let text = |column| row.get(column).and_then(Value::as_str).unwrap_or_default().to_owned();
        let revision: u64 = record.header(HEADER_REVISION).unwrap().parse().unwrap();
        if record.header(HEADER_FINAL) == Some("false") {
            early.insert((start, text("room"), revision));
        } else {
            let key = (start, text("room"), text("emoji_type"));
            assert!(rows.insert(key.clone()), "{topic}: a row comes twice: {key:?}");
            last.insert((start, text("room")), revision);
        }
        let announced = record.header(HEADER_WINDOW_ROWS).unwrap().parse().unwrap();
        windows.entry((start, text("room"), revision)).or_default().push(announced);
    }
    for (window, announced) in windows {
        let whole = announced.iter().all(|rows| *rows == announced.len() as u64);
        assert!(whole, "{topic}: {window:?} announces {announced:?}");
    }
    for (start, room, revision) in early {
        let last = last.get(&(start, room.clone()));
        assert!(
            last.is_some_and(|last| *last > revision),
            "{topic}: {start} {room}: {revision} before {last:?}"
        );
    }
    rows.len()
}

/// The live topic numbers its messages without a hole, and every cluster has a true copy, of which the process's end
/// may have cut off the last ones. Returns their number.
pub(crate) async fn check_live_topics(log: &dyn Log, clusters: &[&str]) -> usize {
    let live = messages(log, TOPIC_LIVE).await;
    for (before, after) in live.iter().zip(live.iter().skip(1)) {
        let expected = (before.id.epoch, before.id.sequence + 1);
        assert_eq!((after.id.epoch, after.id.sequence), expected, "on the live topic");
    }
    for cluster in clusters {
        let copied = messages(log, &cluster_topic(cluster)).await;
        let (length, all) = (copied.len(), live.len());
        assert!(live.starts_with(&copied) && length + 10 > all, "{cluster} has {length} of {all} messages");
    }
    live.len()
}

async fn messages(log: &dyn Log, topic: &str) -> Vec<LiveMessage> {
    let records = committed(log, topic).await.into_iter().flatten();
    records.map(|record| serde_json::from_slice(&record.value.unwrap()).unwrap()).collect()
}

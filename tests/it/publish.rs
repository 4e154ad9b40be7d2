//! The publisher tier on real logs: windows go in as the engine writes them, clients read real sockets, and
//! everything is stopped and started again meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use emostream::http;
use emostream::log::embedded::{self, EmbeddedLog};
use emostream::log::program::ProgramView;
use emostream::log::{
    HEADER_FINAL, HEADER_REVISION, HEADER_WINDOW_END, HEADER_WINDOW_ROWS, HEADER_WINDOW_START, Log,
    NewRecord, Retention, TopicSpec, Transaction,
};
use emostream::publish::{Settings, Tier, live_router};
use emostream::reaction::table::{Column, ColumnSource, ColumnType, Format, Table, TableKind, TableOptions};
use emostream::reaction::time::format_rfc3339;
use emostream::shutdown::Tasks;
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use crate::support::kafka::{connect, fresh};
use crate::support::scoped::Scoped;

const LIMIT: Duration = Duration::from_secs(60);
const SINK: &str = "emoji_counts";
const PARTITIONS: u32 = 3;
const SECOND_NS: i64 = 1_000_000_000;

fn sink() -> Table {
    let column = |name: &str, data_type| Column {
        name: name.to_owned(),
        data_type,
        nullable: true,
        default: None,
        source: ColumnSource::Record,
    };
    Table {
        name: SINK.to_owned(),
        kind: TableKind::Sink,
        topic: SINK.to_owned(),
        format: Format::Json,
        columns: vec![column("room", ColumnType::Text), column("count", ColumnType::Bigint)],
        watermark: None,
        key_field: None,
        options: BTreeMap::new(),
        with: TableOptions::default(),
    }
}

/// A program with that sink.
pub(crate) fn program() -> watch::Sender<Arc<ProgramView>> {
    let tables = BTreeMap::from([(SINK.to_owned(), sink())]);
    watch::Sender::new(Arc::new(ProgramView { tables, ..ProgramView::default() }))
}

/// Its topic.
pub(crate) async fn create_sink(log: &dyn Log) {
    let retention = Retention::Age(Duration::from_secs(3600));
    let spec = TopicSpec { name: SINK.to_owned(), partitions: PARTITIONS, retention, log_append_time: true };
    log.create_topics(&[spec]).await.unwrap();
}

/// Commits one window of room `main` that has a row on every partition.
async fn close(writer: &mut dyn emostream::log::Writer, end_s: i64) {
    close_in(writer, "main", end_s).await;
}

/// The same of any room.
pub(crate) async fn close_in(writer: &mut dyn emostream::log::Writer, room: &str, end_s: i64) {
    let record = |partition: u32| {
        let row = json!({"room": room, "count": end_s * 10 + i64::from(partition)});
        let record = NewRecord { value: Some(row.to_string().into()), ..NewRecord::default() }
            .header(HEADER_WINDOW_START, format_rfc3339((end_s - 1) * SECOND_NS))
            .header(HEADER_WINDOW_END, format_rfc3339(end_s * SECOND_NS))
            .header(HEADER_FINAL, "true")
            .header(HEADER_REVISION, "0")
            .header(HEADER_WINDOW_ROWS, PARTITIONS.to_string());
        (SINK.to_owned(), partition, record)
    };
    let records = (0..PARTITIONS).map(record).collect();
    writer.commit(Transaction { records, consumed: Vec::new() }).await.unwrap();
}

struct Running {
    tasks: Tasks,
    address: String,
    _program: watch::Sender<Arc<ProgramView>>,
}

impl Running {
    async fn start(log: &Arc<dyn Log>, clusters: usize) -> Self {
        let (tasks, program) = (Tasks::new(), program());
        let settings = Settings { clusters, subscribers_per_cluster: 2, ..Settings::default() };
        let tier = Tier::start(log, program.subscribe(), "http://127.0.0.1", &settings, &tasks);
        let begun = Instant::now();
        while let Err(missing) = tier.ready() {
            assert!(begun.elapsed() < LIMIT, "{missing}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let listener = http::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        http::serve(listener, live_router(tier.subscribers()), &tasks);
        Self { tasks, address, _program: program }
    }

    async fn stop(self) {
        assert!(self.tasks.stop(Duration::from_secs(8)).await, "the tier stops in time");
    }
}

/// A viewer that connects again with its cursor whenever it is cut off.
struct Viewer {
    cursor: Option<String>,
    seen: Vec<(String, i64)>,
}

impl Viewer {
    /// By WebSocket, until the connection ends or the window that ends at `until_s` came.
    async fn watch(&mut self, address: &str, until_s: i64) {
        let query = self.cursor.as_ref().map_or("last=1".to_owned(), |cursor| format!("after={cursor}"));
        let connected = tokio_tungstenite::connect_async(format!("ws://{address}/v1/live?{query}")).await;
        let Ok((mut socket, _)) = connected else { return };
        let deadline = Instant::now() + LIMIT;
        while let Some(Ok(message)) =
            tokio::time::timeout_at(deadline, socket.next()).await.expect("the window in time")
        {
            match message {
                Message::Text(text) => {
                    let window: Value = serde_json::from_str(&text).unwrap();
                    if window["type"] == "drain" {
                        continue;
                    }
                    assert!(window.get("type").is_none(), "no gap: {text}");
                    let id = window["id"].as_str().unwrap().to_owned();
                    assert_eq!(window["rows"].as_array().unwrap().len(), PARTITIONS as usize);
                    let end_s = window["rows"][0]["count"].as_i64().unwrap() / 10;
                    self.cursor = Some(id.clone());
                    self.seen.push((id, end_s));
                    if end_s >= until_s {
                        return;
                    }
                }
                Message::Close(_) => return,
                _ => {}
            }
        }
    }
}

/// Windows close all the time while the tier is stopped and started again; one viewer follows with its cursor.
async fn restarts_lose_no_window_and_tell_none_twice(log: Arc<dyn Log>) {
    const WINDOWS: i64 = 60;
    const ROUNDS: i64 = 4;
    create_sink(log.as_ref()).await;
    let closed = Arc::new(AtomicI64::new(0));
    let closing = Tasks::new().spawn({
        let (log, closed) = (Arc::clone(&log), Arc::clone(&closed));
        async move {
            let mut writer = log.fence("engine").await.unwrap();
            for end_s in 1..=WINDOWS {
                close(writer.as_mut(), end_s).await;
                closed.store(end_s, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    // The first window gives the viewer its cursor: from there on nothing may be missing.
    let first = Running::start(&log, 1).await;
    let mut viewer = Viewer { cursor: None, seen: Vec::new() };
    let mut running = Some(first);
    for round in 1..=ROUNDS {
        let tier = running.take().unwrap();
        let address = tier.address.clone();
        let watching = viewer.watch(&address, WINDOWS);
        if round == ROUNDS {
            watching.await;
            tier.stop().await;
            break;
        }
        let stopping = async {
            let target = (round * WINDOWS / (ROUNDS + 1)).max(closed.load(Ordering::SeqCst) + 3).min(WINDOWS);
            while closed.load(Ordering::SeqCst) < target {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tier.stop().await;
        };
        tokio::join!(watching, stopping);
        running = Some(Running::start(&log, 1).await);
    }
    closing.await.unwrap();
    let ends: Vec<i64> = viewer.seen.iter().map(|(_, end_s)| *end_s).collect();
    assert_eq!(ends, (ends[0]..=WINDOWS).collect::<Vec<_>>(), "every window once and in order");
    assert!(ends.len() > 5, "the viewer saw more than the end: {ends:?}");
}

/// How long a committed window takes to a viewer, through publisher, cluster and subscriber.
async fn a_window_is_quickly_at_the_viewer(log: Arc<dyn Log>, limit: Duration) {
    create_sink(log.as_ref()).await;
    let tier = Running::start(&log, 3).await;
    let (mut socket, _) =
        tokio_tungstenite::connect_async(format!("ws://{}/v1/live", tier.address)).await.unwrap();
    let mut writer = log.fence("engine").await.unwrap();
    let mut times = Vec::new();
    for end_s in 1..=40 {
        close(writer.as_mut(), end_s).await;
        let committed = Instant::now();
        tokio::time::timeout(LIMIT, socket.next()).await.unwrap().unwrap().unwrap();
        times.push(committed.elapsed());
    }
    times.sort();
    eprintln!("commit to viewer: p50 {:?}, max {:?}", times[20], times[39]);
    assert!(times[20] < limit, "p50 {:?}", times[20]);
    tier.stop().await;
}

fn embedded(folder: &tempfile::TempDir) -> Arc<dyn Log> {
    EmbeddedLog::open(folder.path(), embedded::Settings::default()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_restarts_lose_no_window_and_tell_none_twice() {
    let folder = tempfile::tempdir().unwrap();
    restarts_lose_no_window_and_tell_none_twice(embedded(&folder)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_a_window_is_quickly_at_the_viewer() {
    let folder = tempfile::tempdir().unwrap();
    a_window_is_quickly_at_the_viewer(embedded(&folder), Duration::from_millis(100)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_retention_spares_what_is_not_published_yet() {
    let folder = tempfile::tempdir().unwrap();
    let embedded = EmbeddedLog::open(folder.path(), embedded::Settings::default()).unwrap();
    let log: Arc<dyn Log> = Arc::clone(&embedded) as Arc<dyn Log>;
    create_sink(log.as_ref()).await;
    let mut writer = log.fence("engine").await.unwrap();
    let mut viewer = Viewer { cursor: None, seen: Vec::new() };
    let tier = Running::start(&log, 1).await;
    close(writer.as_mut(), 1).await;
    viewer.watch(&tier.address, 1).await;
    tier.stop().await;
    for end_s in 2..=5 {
        close(writer.as_mut(), end_s).await;
    }
    // Beyond what sinks and the live topic keep, within what clusters keep: the viewer's cursor is still known.
    embedded.apply_retention(emostream::clock::wall_ms() + 30 * 3_600_000).await.unwrap();

    let tier = Running::start(&log, 1).await;
    viewer.watch(&tier.address, 5).await;
    assert_eq!(viewer.seen.iter().map(|(_, end_s)| *end_s).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    tier.stop().await;
}

async fn on_kafka() -> Arc<dyn Log> {
    Scoped::new(connect().await, fresh("publish"))
}

#[tokio::test(flavor = "multi_thread")]
async fn on_kafka_restarts_lose_no_window_and_tell_none_twice() {
    restarts_lose_no_window_and_tell_none_twice(on_kafka().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_kafka_a_window_is_quickly_at_the_viewer() {
    a_window_is_quickly_at_the_viewer(on_kafka().await, Duration::from_millis(500)).await;
}

//! The publisher tier on a log, served on loopback; windows go in as the engine writes them.

use std::sync::Arc;
use std::time::Duration;

use emostream::http;
use emostream::log::embedded::{self, EmbeddedLog};
use emostream::log::program::ProgramView;
use emostream::log::{
    HEADER_FINAL, HEADER_REVISION, HEADER_WINDOW_END, HEADER_WINDOW_ROWS, HEADER_WINDOW_START, Log,
    NewRecord, Retention, TopicSpec, Transaction, Writer,
};
use emostream::publish::{Live, Settings, Subscriber, Tier, live_router_with};
use emostream::reaction::time::format_rfc3339;
use emostream::shutdown::Tasks;
use emostream::sql::{SqlFile, plan_program};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long anything may take before a test fails.
const LIMIT: Duration = Duration::from_secs(60);
/// The one sink.
pub(crate) const SINK: &str = "emoji_counts";
/// Its topic's partitions; a window has a row on each.
pub(crate) const PARTITIONS: u32 = 3;
const SECOND_NS: i64 = 1_000_000_000;

const TABLES: &str =
    "CREATE TABLE emoji_counts (room TEXT, count BIGINT) WITH (connector = 'kafka', type = 'sink');";

/// A program with the sink.
pub(crate) fn program() -> watch::Sender<Arc<ProgramView>> {
    let planned = plan_program(&[SqlFile { name: "tables.sql".into(), text: TABLES.into() }]).unwrap();
    let tables = planned.tables.into_iter().map(|table| (table.name.clone(), table)).collect();
    watch::Sender::new(Arc::new(ProgramView { tables, ..ProgramView::default() }))
}

/// Creates the sink's topic.
pub(crate) async fn create_sink(log: &dyn Log) {
    let retention = Retention::Age(Duration::from_secs(3600));
    let spec = TopicSpec { name: SINK.to_owned(), partitions: PARTITIONS, retention, log_append_time: true };
    log.create_topics(&[spec]).await.unwrap();
}

/// Commits one window of that room, with a row on every partition.
pub(crate) async fn close(writer: &mut dyn Writer, end_s: i64, room: &str) {
    close_with(writer, end_s, room, "").await;
}

/// The same with a text in each row.
pub(crate) async fn close_with(writer: &mut dyn Writer, end_s: i64, room: &str, text: &str) {
    let record = |partition: u32| {
        let row = json!({"room": room, "count": end_s * 10 + i64::from(partition), "text": text});
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

/// A running tier.
pub(crate) struct Running {
    tasks: Tasks,
    pub(crate) address: String,
    subscribers: Vec<Arc<Subscriber>>,
    _program: watch::Sender<Arc<ProgramView>>,
}

impl Running {
    /// Clusters of two subscribers each.
    pub(crate) async fn start(log: &Arc<dyn Log>, clusters: usize) -> Self {
        let settings = Settings { clusters, subscribers_per_cluster: 2, ..Settings::default() };
        Self::start_with(log, &settings, Live::default()).await
    }

    /// One subscriber, with what its clients may do.
    pub(crate) async fn start_small(log: &Arc<dyn Log>, live: Live) -> Self {
        let settings = Settings { clusters: 1, subscribers_per_cluster: 1, ..Settings::default() };
        Self::start_with(log, &settings, live).await
    }

    async fn start_with(log: &Arc<dyn Log>, settings: &Settings, live: Live) -> Self {
        let (tasks, program) = (Tasks::new(), program());
        let tier = Tier::start(log, program.subscribe(), "http://127.0.0.1", settings, &tasks);
        let begun = Instant::now();
        while let Err(missing) = tier.ready() {
            assert!(begun.elapsed() < LIMIT, "{missing}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let listener = http::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        http::serve(listener, live_router_with(tier.subscribers(), live), &tasks);
        Self { tasks, address, subscribers: tier.subscribers(), _program: program }
    }

    /// Waits until so many clients are there.
    pub(crate) async fn until_clients(&self, count: usize) {
        let begun = Instant::now();
        while self.clients() != count {
            assert!(begun.elapsed() < LIMIT, "{} clients, not {count}", self.clients());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// How many clients there are.
    pub(crate) fn clients(&self) -> usize {
        self.subscribers.iter().map(|subscriber| subscriber.clients()).sum()
    }

    /// Stops it.
    pub(crate) async fn stop(self) {
        assert!(self.tasks.stop(Duration::from_secs(8)).await, "the tier stops in time");
    }
}

/// A log in that folder.
pub(crate) fn embedded(folder: &tempfile::TempDir) -> Arc<dyn Log> {
    EmbeddedLog::open(folder.path(), embedded::Settings::default()).unwrap()
}

//! The tier from end to end, on a log in memory and on the embedded one: results in, real sockets out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_tungstenite::tungstenite;

use super::memory_log::{Fault, MemoryLog};
use super::routes::serve_on_loopback;
use super::{Publisher, Settings, Tier, live_router};
use crate::log::program::ProgramView;
use crate::log::result_row::{emoji_counts, result_record};
use crate::log::{Log, LogError, NewRecord, Retention, TOPIC_LIVE, TopicSpec, Transaction, cluster_topic};
use crate::shutdown::Tasks;

pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A log with the sink's topic, and who writes to it in the engine's place.
pub(super) struct Bench {
    pub(super) log: Arc<dyn Log>,
    program: watch::Sender<Arc<ProgramView>>,
}

impl Bench {
    async fn new(log: Arc<dyn Log>) -> Self {
        let retention = Retention::Age(Duration::from_secs(3600));
        let topic =
            TopicSpec { name: "emoji_counts".to_owned(), partitions: 2, retention, log_append_time: true };
        log.create_topics(&[topic]).await.unwrap();
        let tables = BTreeMap::from([("emoji_counts".to_owned(), emoji_counts())]);
        let program = ProgramView { tables, ..ProgramView::default() };
        Self { log, program: watch::Sender::new(Arc::new(program)) }
    }

    pub(super) async fn in_memory() -> (MemoryLog, Self) {
        let log = MemoryLog::default();
        (log.clone(), Self::new(Arc::new(log)).await)
    }

    /// Commits windows (end in seconds, room) of two rows each, one per partition.
    pub(super) async fn close(&self, windows: &[(i64, &str)]) {
        let mut writer = self.log.fence("engine").await.unwrap();
        let mut records = Vec::new();
        for &(end, room) in windows {
            for partition in 0..2 {
                let row = json!({"room": room, "emoji_type": format!("e{partition}"), "count": end});
                let record = result_record(((end - 2) * 1000, end * 1000), 2, row);
                records.push(("emoji_counts".to_owned(), partition, record));
            }
        }
        writer.commit(Transaction { records, consumed: Vec::new() }).await.unwrap();
    }

    pub(super) fn publisher(&self, tasks: &Tasks) -> watch::Receiver<Option<LogError>> {
        let publisher = Publisher::new(Arc::clone(&self.log), self.program.subscribe());
        super::tier::run_publisher(publisher, tasks)
    }

    /// The whole tier with these settings, and where it is served.
    async fn tier(&self, settings: &Settings, tasks: &Tasks) -> (Tier, String) {
        let tier = Tier::start(&self.log, self.program.subscribe(), "http://here", settings, tasks);
        until(|| tier.ready().is_ok()).await;
        let address = serve_on_loopback(live_router(tier.subscribers()), tasks).await;
        (tier, address)
    }
}

fn small() -> Settings {
    Settings { clusters: 1, subscribers_per_cluster: 1, ..Settings::default() }
}

/// Waits for a condition that tasks bring about.
pub(super) async fn until(mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("the condition holds in time");
}

fn ends(messages: &[Value]) -> Vec<String> {
    let end = |m: &Value| format!("{} {}", m["window"]["end"].as_str().unwrap(), m["room"].as_str().unwrap());
    messages.iter().map(end).collect()
}

fn sequences(messages: &[Value]) -> Vec<u64> {
    let sequence = |m: &Value| m["id"].as_str().unwrap().split_once('-').unwrap().1.parse().unwrap();
    messages.iter().map(sequence).collect()
}

fn live(log: &MemoryLog, topic: &str) -> Vec<Value> {
    let value = |record: crate::log::Record| serde_json::from_slice(&record.value.unwrap()).unwrap();
    log.records(topic, 0).into_iter().map(value).collect()
}

fn end_text(end: i64) -> String {
    format!("1970-01-01T00:{:02}:{:02}Z main", end / 60, end % 60)
}

/// A client over Server-Sent Events: each item an event's lines.
pub(super) struct Events(futures::stream::BoxStream<'static, reqwest::Result<bytes::Bytes>>, String);

impl Events {
    pub(super) async fn open(address: &str, query: &str, cursor: Option<&str>) -> Self {
        let mut request = reqwest::Client::new().get(format!("http://{address}/v1/live{query}"));
        if let Some(cursor) = cursor {
            request = request.header("Last-Event-ID", cursor);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["access-control-allow-origin"], "*");
        Self(response.bytes_stream().boxed(), String::new())
    }

    /// The next event's text; `None` when the stream ended.
    pub(super) async fn event(&mut self) -> Option<String> {
        loop {
            if let Some((event, rest)) = self.1.split_once("\n\n") {
                let event = event.to_owned();
                self.1 = rest.to_owned();
                if !event.starts_with(':') {
                    return Some(event);
                }
                continue;
            }
            let chunk = tokio::time::timeout(PATIENCE, self.0.next()).await.expect("an event in time")?;
            self.1.push_str(std::str::from_utf8(&chunk.ok()?).unwrap());
        }
    }

    pub(super) async fn window(&mut self) -> Value {
        let event = self.event().await.unwrap();
        let (id, data) = event.split_once('\n').unwrap();
        let value: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(id.strip_prefix("id: ").unwrap(), value["id"].as_str().unwrap());
        value
    }

    async fn windows(&mut self, count: usize) -> Vec<Value> {
        let mut windows = Vec::new();
        while windows.len() < count {
            windows.push(self.window().await);
        }
        windows
    }
}

pub(super) type Socket =
    tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

pub(super) async fn connect(address: &str, query: &str) -> Socket {
    tokio_tungstenite::connect_async(format!("ws://{address}/v1/live{query}")).await.unwrap().0
}

pub(super) async fn heard(socket: &mut Socket) -> Value {
    loop {
        let message = tokio::time::timeout(PATIENCE, socket.next()).await.expect("a message in time");
        match message.unwrap().unwrap() {
            tungstenite::Message::Text(text) => return serde_json::from_str(&text).unwrap(),
            tungstenite::Message::Ping(_) => {}
            other => panic!("not a text: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_reaches_clients_of_both_kinds_through_three_clusters_of_three() {
    let (log, bench) = Bench::in_memory().await;
    let tasks = Tasks::new();
    let (tier, address) = bench.tier(&Settings::default(), &tasks).await;
    let mut sockets = Vec::new();
    for _ in 0..9 {
        sockets.push(connect(&address, "").await);
    }
    let mut events = Events::open(&address, "?table=emoji_counts&room=a&room=main", None).await;
    until(|| tier.subscribers().iter().map(|subscriber| subscriber.clients()).sum::<usize>() == 10).await;
    assert!(tier.subscribers().iter().all(|subscriber| (1..=2).contains(&subscriber.clients())));

    bench.close(&[(2, "main"), (2, "a"), (2, "elsewhere")]).await;
    for socket in &mut sockets {
        let message = heard(socket).await;
        assert_eq!(
            (&message["table"], &message["room"], &message["final"], &message["pace_ms"]),
            (&json!("emoji_counts"), &json!("main"), &json!(true), &json!(2000))
        );
        assert_eq!(
            message["rows"],
            json!([{"emoji_type": "e0", "count": 2}, {"emoji_type": "e1", "count": 2}])
        );
    }
    let windows = events.windows(2).await;
    assert_eq!(ends(&windows), ["1970-01-01T00:00:02Z a", "1970-01-01T00:00:02Z main"]);
    for n in 1..=3 {
        assert_eq!(live(&log, &cluster_topic(&format!("cluster-{n}"))), live(&log, TOPIC_LIVE));
    }

    assert!(tasks.stop(Duration::from_secs(5)).await, "everything ends in time");
    for socket in &mut sockets {
        assert_eq!(heard(socket).await["type"], "drain");
        match socket.next().await.unwrap().unwrap() {
            tungstenite::Message::Close(Some(frame)) => {
                assert_eq!((u16::from(frame.code), frame.reason.as_str()), (1001, "going away"));
            }
            other => panic!("no goodbye: {other:?}"),
        }
    }
    assert!(events.event().await.unwrap().contains("event: drain"));
    assert_eq!(events.event().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_publisher_loses_no_window_and_tells_none_twice() {
    let (log, bench) = Bench::in_memory().await;
    for round in 0..20 {
        let tasks = Tasks::new();
        bench.publisher(&tasks);
        bench.close(&[(round * 4 + 2, "main"), (round * 4 + 2, "a")]).await;
        if round % 3 == 0 {
            log.fail(TOPIC_LIVE, [Fault::Written, Fault::Lost]);
        }
        bench.close(&[(round * 4 + 4, "main"), (round * 4 + 4, "a")]).await;
        // Cut off wherever it is just now.
        for _ in 0..round * 3 {
            tokio::task::yield_now().await;
        }
        tasks.stop(Duration::from_secs(5)).await;
    }
    let tasks = Tasks::new();
    bench.publisher(&tasks);
    until(|| live(&log, TOPIC_LIVE).len() >= 80).await;
    let messages = live(&log, TOPIC_LIVE);
    assert_eq!(sequences(&messages), (1..=80).collect::<Vec<_>>());
    let mut told = ends(&messages);
    told.sort();
    told.dedup();
    assert_eq!(told.len(), 80);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_waits_for_a_log_that_takes_nothing_and_recovers_after_an_unknown_outcome() {
    let (log, bench) = Bench::in_memory().await;
    let tasks = Tasks::new();
    bench.publisher(&tasks);
    log.fail(TOPIC_LIVE, [Fault::Unavailable, Fault::Written, Fault::Unavailable, Fault::Lost]);
    for end in 1..=10 {
        bench.close(&[(end * 2, "main")]).await;
    }
    until(|| live(&log, TOPIC_LIVE).len() >= 10).await;
    assert_eq!(sequences(&live(&log, TOPIC_LIVE)), (1..=10).collect::<Vec<_>>());
    assert_eq!(ends(&live(&log, TOPIC_LIVE)), (1..=10).map(|n| end_text(n * 2)).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_that_another_one_replaced_stops() {
    let (log, bench) = Bench::in_memory().await;
    let tasks = Tasks::new();
    let mut failure = bench.publisher(&tasks);
    bench.close(&[(2, "main")]).await;
    until(|| live(&log, TOPIC_LIVE).len() == 1).await;
    bench.publisher(&tasks);
    until(|| log.epoch("emostream.publish") >= 2).await;
    bench.close(&[(4, "main")]).await;
    tokio::time::timeout(PATIENCE, failure.changed()).await.unwrap().unwrap();
    assert!(matches!(&*failure.borrow(), Some(LogError::Fenced(_))));
    until(|| live(&log, TOPIC_LIVE).len() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_copies_each_message_once_whatever_becomes_of_its_appends() {
    let (log, bench) = Bench::in_memory().await;
    let topic = cluster_topic("cluster-1");
    for round in 0..10 {
        let tasks = Tasks::new();
        log.fail(&topic, [Fault::Written, Fault::Unavailable, Fault::Lost]);
        let tier = Tier::start(&bench.log, bench.program.subscribe(), "http://here", &small(), &tasks);
        bench.close(&[(round * 4 + 2, "main")]).await;
        bench.close(&[(round * 4 + 4, "main")]).await;
        if round % 2 == 0 {
            until(|| tier.ready().is_ok()).await;
        }
        tasks.stop(Duration::from_secs(5)).await;
    }
    let tasks = Tasks::new();
    let _tier = Tier::start(&bench.log, bench.program.subscribe(), "http://here", &small(), &tasks);
    until(|| live(&log, &topic).len() >= 20).await;
    assert_eq!(live(&log, &topic), live(&log, TOPIC_LIVE));
    assert_eq!(sequences(&live(&log, &topic)), (1..=20).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_resumes_after_its_cursor_across_a_restart_of_everything() {
    let (_, bench) = Bench::in_memory().await;
    let tasks = Tasks::new();
    let (_, address) = bench.tier(&small(), &tasks).await;
    let mut events = Events::open(&address, "", None).await;
    for end in 1..=3 {
        bench.close(&[(end * 2, "main")]).await;
    }
    let seen = events.windows(3).await;
    let cursor = seen[1]["id"].as_str().unwrap().to_owned();
    tasks.stop(Duration::from_secs(5)).await;
    bench.close(&[(8, "main")]).await;

    let tasks = Tasks::new();
    let (_, address) = bench.tier(&small(), &tasks).await;
    let mut events = Events::open(&address, "", Some(&cursor)).await;
    let mut socket = connect(&address, &format!("?after={cursor}")).await;
    let first = events.windows(2).await;
    assert_eq!((&first[0], heard(&mut socket).await), (&seen[2], seen[2].clone()));
    assert_eq!(ends(&first), [end_text(6), end_text(8)]);
    assert_eq!(heard(&mut socket).await, first[1]);
    bench.close(&[(10, "main")]).await;
    assert_eq!(ends(&events.windows(1).await), [end_text(10)]);
    assert_eq!(ends(&[heard(&mut socket).await]), [end_text(10)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_cursor_gets_a_gap_and_the_stream_goes_on() {
    let (log, bench) = Bench::in_memory().await;
    let tasks = Tasks::new();
    let (_, address) = bench.tier(&Settings { history: 2, ..small() }, &tasks).await;
    for end in 1..=5 {
        bench.close(&[(end * 2, "main")]).await;
    }
    let mut newest = Events::open(&address, "?last=1", None).await;
    while sequences(&newest.windows(1).await) != [5] {}
    let first = live(&log, TOPIC_LIVE)[0]["id"].as_str().unwrap().to_owned();
    for after in [first.as_str(), "e1-1", "nonsense"] {
        let mut events = Events::open(&address, &format!("?after={after}&last=1"), None).await;
        let mut socket = connect(&address, &format!("?after={after}")).await;
        assert_eq!(events.event().await.unwrap(), format!("event: gap\ndata: {{\"after\":\"{after}\"}}"));
        assert_eq!(heard(&mut socket).await, json!({"type": "gap", "after": after}));
        assert_eq!(sequences(&events.windows(1).await), [5]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_gets_the_newest_window_and_how_many_it_skipped() {
    const WINDOWS: i64 = 1200;
    let (_, bench) = Bench::in_memory().await;
    let tasks = Tasks::new();
    let (_, address) = bench.tier(&small(), &tasks).await;
    let mut slow = connect(&address, "").await;
    let mut fast = connect(&address, "").await;
    let reading = tasks.spawn(async move {
        let mut count = 0;
        while heard(&mut fast).await["window"]["end"] != end_text(WINDOWS).trim_end_matches(" main") {
            count += 1;
        }
        count
    });
    let long = "x".repeat(20_000);
    for end in 1..=WINDOWS {
        let row = json!({"emoji_type": long, "count": end});
        let record = result_record((end * 1000 - 1000, end * 1000), 1, row);
        bench.log.append("emoji_counts", 0, vec![record]).await.unwrap();
    }
    reading.await.unwrap();
    let (mut got, mut skipped, mut last) = (0, 0, 0);
    while last < WINDOWS as u64 {
        let message = heard(&mut slow).await;
        let sequence = sequences(std::slice::from_ref(&message))[0];
        assert!(sequence > last, "ids rise");
        let stood_for = message["skipped"].as_u64().unwrap_or(0);
        assert_eq!(sequence, last + 1 + stood_for, "what is missing is said");
        (got, skipped, last) = (got + 1, skipped + stood_for, sequence);
    }
    assert!(skipped > 0, "{got} messages of 20 KB fit into buffers");
    assert_eq!(got + skipped, WINDOWS as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_wrong_is_told_what_is_wrong() {
    let (_, bench) = Bench::in_memory().await;
    let tasks = Tasks::new();
    let (_, address) = bench.tier(&small(), &tasks).await;
    let response = reqwest::get(format!("http://{address}/v1/live?rooms=a")).await.unwrap();
    assert_eq!(response.status(), 400);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    assert_eq!(response.headers()["access-control-allow-origin"], "*");
    let mut socket = connect(&address, "").await;
    for (said, part) in [
        (r#"{"subscribe":{"rooms":"a"}}"#, "unknown field `rooms`"),
        (r#"{"send":[]}"#, "use POST /v1/tables/{table}"),
        ("what?", "a message is {\"subscribe\""),
    ] {
        socket.send(tungstenite::Message::text(said)).await.unwrap();
        let answer = heard(&mut socket).await;
        assert_eq!(answer["type"], "problem", "{said}");
        assert!(answer["detail"].as_str().unwrap().contains(part), "{answer}");
    }
    bench.close(&[(2, "main")]).await;
    assert_eq!(ends(&[heard(&mut socket).await]), [end_text(2)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_belong_to_no_window_stop_nothing() {
    let (log, bench) = Bench::in_memory().await;
    let tasks = Tasks::new();
    let junk = NewRecord { value: Some("junk".into()), ..NewRecord::default() };
    bench.log.append("emoji_counts", 0, vec![junk.clone(), NewRecord::default()]).await.unwrap();
    let (_, address) = bench.tier(&small(), &tasks).await;
    let mut events = Events::open(&address, "", None).await;
    bench.log.append(TOPIC_LIVE, 0, vec![junk.clone()]).await.unwrap();
    bench.log.append(&cluster_topic("cluster-1"), 0, vec![junk]).await.unwrap();
    bench.close(&[(2, "main")]).await;
    assert_eq!(ends(&events.windows(1).await), [end_text(2)]);
    assert_eq!(log.records(&cluster_topic("cluster-1"), 0).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_took_from_the_live_topic_is_a_gap() {
    let (log, bench) = Bench::in_memory().await;
    let tasks = Tasks::new();
    let (_, address) = bench.tier(&small(), &tasks).await;
    let mut events = Events::open(&address, "", None).await;
    bench.close(&[(2, "main")]).await;
    let cursor = events.window().await["id"].as_str().unwrap().to_owned();
    tasks.stop(Duration::from_secs(5)).await;

    let tasks = Tasks::new();
    bench.publisher(&tasks);
    for end in 2..=4 {
        bench.close(&[(end * 2, "main")]).await;
    }
    until(|| live(&log, TOPIC_LIVE).len() == 4).await;
    tasks.stop(Duration::from_secs(5)).await;
    log.cut(TOPIC_LIVE, 0, log.records(TOPIC_LIVE, 0)[3].offset);

    let tasks = Tasks::new();
    let (_, address) = bench.tier(&small(), &tasks).await;
    let mut events = Events::open(&address, "?last=1", Some(&cursor)).await;
    assert!(events.event().await.unwrap().starts_with("event: gap\n"));
    assert_eq!(ends(&events.windows(1).await), [end_text(8)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_took_from_a_sink_does_not_stop_the_windows_after_it() {
    let (log, bench) = Bench::in_memory().await;
    let tasks = Tasks::new();
    bench.publisher(&tasks);
    bench.close(&[(2, "main")]).await;
    until(|| live(&log, TOPIC_LIVE).len() == 1).await;
    tasks.stop(Duration::from_secs(5)).await;
    for end in 2..=4 {
        bench.close(&[(end * 2, "main")]).await;
    }
    log.cut("emoji_counts", 0, log.records("emoji_counts", 0)[3].offset);

    let tasks = Tasks::new();
    bench.publisher(&tasks);
    bench.close(&[(10, "main")]).await;
    until(|| live(&log, TOPIC_LIVE).len() >= 3).await;
    assert_eq!(ends(&live(&log, TOPIC_LIVE)), [end_text(2), end_text(8), end_text(10)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_comes_while_it_runs_is_published_too() {
    let (log, bench) = Bench::in_memory().await;
    let tasks = Tasks::new();
    bench.publisher(&tasks);
    let program = Arc::clone(&*bench.program.borrow());
    let mut tables = program.tables.clone();
    let second = crate::reaction::table::Table {
        name: "second".to_owned(),
        topic: "second".to_owned(),
        ..tables["emoji_counts"].clone()
    };
    tables.insert(second.name.clone(), second);
    bench.program.send_replace(Arc::new(ProgramView { tables, ..ProgramView::default() }));
    bench.close(&[(2, "main")]).await;
    until(|| live(&log, TOPIC_LIVE).len() == 1).await;
    let retention = Retention::Age(Duration::from_secs(3600));
    let topic = TopicSpec { name: "second".to_owned(), partitions: 1, retention, log_append_time: true };
    bench.log.create_topics(&[topic]).await.unwrap();
    bench.log.append("second", 0, vec![result_record((0, 2000), 1, json!({"count": 1}))]).await.unwrap();
    until(|| live(&log, TOPIC_LIVE).len() == 2).await;
    assert_eq!(live(&log, TOPIC_LIVE)[1]["table"], "second");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_gzip_gets_the_same_events_in_fewer_bytes_to_the_streams_end() {
    let (_log, bench) = Bench::in_memory().await;
    let tasks = Tasks::new();
    // One subscriber: what one client has, the other has or has waiting.
    let settings = Settings { clusters: 1, subscribers_per_cluster: 1, ..Settings::default() };
    let (_tier, address) = bench.tier(&settings, &tasks).await;
    let open = async |encoding: &str| {
        let request = reqwest::Client::new().get(format!("http://{address}/v1/live"));
        request.header("accept-encoding", encoding).send().await.unwrap()
    };
    let (plain, packed) = (open("gzip;q=0").await, open("deflate, gzip").await);
    assert_eq!(
        (plain.headers().get("content-encoding"), &packed.headers()["content-encoding"]),
        (None, &"gzip".parse().unwrap())
    );
    let mut plain = Events(plain.bytes_stream().boxed(), String::new());
    for end in (2..=60).step_by(2) {
        bench.close(&[(end, "main")]).await;
    }
    let windows = plain.windows(30).await;
    assert!(tasks.stop(Duration::from_secs(5)).await, "everything ends in time");

    let packed = packed.bytes().await.unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&packed[..]), &mut text).unwrap();
    let heard: Vec<Value> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: {\"id\""))
        .map(|rest| serde_json::from_str(&format!("{{\"id\"{rest}")).unwrap())
        .collect();
    assert_eq!(heard, windows);
    assert!(packed.len() < text.len() * 9 / 10, "{} of {} bytes", packed.len(), text.len());
}

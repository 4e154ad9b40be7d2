//! Ingest over HTTP: what it takes, what it refuses and with which words, and that it never lies about an outcome.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int32Type, Schema};
use arrow::ipc::writer::StreamWriter;
use axum::Router;
use axum::routing::get;
use emostream::http;
use emostream::http::Origins;
use emostream::ingest::{Ingest, Settings, routes};
use emostream::log::codec::RecordCodec;
use emostream::log::program::ProgramView;
use emostream::log::{ARROW_STREAM, HEADER_CONTENT_TYPE, HEADER_ROWS, NewRecord, Record};
use emostream::reaction::table::{
    Column, ColumnSource, ColumnType, DefaultValue, Format, Table, TableKind, TableOptions, Watermark,
};
use emostream::shutdown::Tasks;
use futures::future::join_all;
use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::support::raw_socket::{BINARY, FIN, RawSocket};
use crate::support::scripted_log::{Mode, ScriptedLog};

/// Ingest on a port of its own, over a scripted log.
struct House {
    log: Arc<ScriptedLog>,
    ingest: Arc<Ingest>,
    program: watch::Sender<Arc<ProgramView>>,
    tasks: Tasks,
    url: String,
    client: reqwest::Client,
}

impl House {
    async fn new(partitions: usize, settings: Settings) -> Self {
        let log = Arc::new(ScriptedLog::new(partitions));
        let (program, tables) = watch::channel(Arc::new(program(&[reactions(), counts()])));
        let tasks = Tasks::new();
        let ingest = Ingest::start(Arc::<ScriptedLog>::clone(&log), tables, settings, &tasks);
        // As under `up`, where another stage answers GET on the same path.
        let router = routes::router(Arc::clone(&ingest))
            .merge(Router::new().route("/v1/tables/{table}", get(|| async { "a table" })));
        let router = routes::with_sockets(router, Arc::clone(&ingest), Origins::default());
        let listener = http::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        http::serve(listener, router, &tasks);
        Self { log, ingest, program, tasks, url, client: reqwest::Client::new() }
    }

    fn post(&self, path: &str) -> RequestBuilder {
        self.client.post(format!("{}{path}", self.url))
    }

    async fn send(&self, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        answer(self.post(path).header("content-type", "application/json").body(body)).await
    }

    /// One row from that user.
    async fn react(&self, user: &str) -> Answer {
        self.send("/emoji", row(user)).await
    }

    /// The users of all records, with the record's number.
    fn users(&self) -> Vec<(usize, String)> {
        let codec = RecordCodec::new(&reactions());
        let mut users = Vec::new();
        for (number, (_, record)) in self.log.records().into_iter().enumerate() {
            let batch = codec.decode(0, &read(record), &[0]).unwrap();
            users.extend(text(&batch, 0).into_iter().map(|user| (number, user)));
        }
        users
    }

    async fn stop(self) {
        assert!(self.tasks.stop(Duration::from_secs(10)).await, "some task did not end");
    }
}

/// As a reader gets it.
fn read(new: NewRecord) -> Record {
    Record { offset: 0, timestamp_ms: 0, key: new.key, value: new.value, headers: new.headers }
}

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    retry_after: Option<String>,
    content_type: String,
    body: Value,
}

impl Answer {
    fn is_unknown(&self) -> bool {
        self.body["outcome"] == "unknown"
    }

    fn detail(&self) -> &str {
        self.body["detail"].as_str().unwrap_or_default()
    }
}

async fn answer(request: RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let (status, retry_after) = (response.status(), header("retry-after"));
    let content_type = header("content-type").unwrap_or_default();
    let body = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or_default();
    Answer { status, retry_after, content_type, body }
}

fn row(user: &str) -> String {
    json!({"user_id": user, "emoji_type": "😀"}).to_string()
}

fn text(batch: &RecordBatch, column: usize) -> Vec<String> {
    let column = batch.column(column);
    match column.data_type() {
        DataType::Dictionary(..) => {
            let dictionary = column.as_dictionary::<Int32Type>();
            let values = dictionary.values().as_string::<i32>();
            dictionary.keys().values().iter().map(|key| values.value(*key as usize).to_owned()).collect()
        }
        _ => column.as_string::<i32>().iter().map(|text| text.unwrap().to_owned()).collect(),
    }
}

fn column(name: &str, data_type: ColumnType, default: Option<DefaultValue>) -> Column {
    Column { name: name.to_owned(), data_type, nullable: false, default, source: ColumnSource::Record }
}

fn table(name: &str, kind: TableKind, columns: Vec<Column>) -> Table {
    Table {
        name: name.to_owned(),
        kind,
        topic: name.to_owned(),
        format: if kind == TableKind::Source { Format::Arrow } else { Format::Json },
        columns,
        watermark: None,
        key_field: None,
        options: BTreeMap::new(),
        with: TableOptions::default(),
    }
}

fn reactions() -> Table {
    let columns = vec![
        column("user_id", ColumnType::Text, None),
        column("emoji_type", ColumnType::Text, None),
        column("room", ColumnType::Text, Some(DefaultValue::Literal(json!("main")))),
        column("timestamp", ColumnType::Timestamp, Some(DefaultValue::Now)),
    ];
    let watermark = Some(Watermark { column: "timestamp".to_owned(), delay_ns: 500_000_000 });
    Table { watermark, ..table("reactions", TableKind::Source, columns) }
}

fn counts() -> Table {
    table("counts", TableKind::Sink, vec![column("count", ColumnType::Bigint, None)])
}

fn program(tables: &[Table]) -> ProgramView {
    let tables = tables.iter().map(|table| (table.name.clone(), table.clone())).collect();
    ProgramView { tables, ..ProgramView::default() }
}

/// Waits, within a limit, for what another task is about to do.
async fn until<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    let waiting = async {
        while !check().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// A zstd frame (RFC 8878) of raw blocks, or of `repeat` blocks of 128 KB of one byte.
fn zstd(data: &[u8], repeat: usize) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x50];
    let mut block = |kind: u32, size: usize, content: &[u8], last: bool| {
        let header = u32::from(last) | kind << 1 | u32::try_from(size).unwrap() << 3;
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.extend_from_slice(content);
    };
    for _ in 0..repeat {
        block(1, 128 << 10, b" ", false);
    }
    block(0, data.len(), data, true);
    frame
}

/// A gzip member (RFC 1952) with one stored block.
fn gzip(data: &[u8]) -> Vec<u8> {
    let crc = !data.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    });
    let length = u16::try_from(data.len()).unwrap();
    let mut member = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff, 1];
    member.extend_from_slice(&length.to_le_bytes());
    member.extend_from_slice(&(!length).to_le_bytes());
    member.extend_from_slice(data);
    member.extend_from_slice(&crc.to_le_bytes());
    member.extend_from_slice(&u32::from(length).to_le_bytes());
    member
}

fn arrow_stream(users: Vec<&str>) -> Vec<u8> {
    let emojis = StringArray::from(vec!["🎉"; users.len()]);
    let schema = Arc::new(Schema::new(vec![
        Field::new("user_id", DataType::Utf8, false),
        Field::new("emoji_type", DataType::Utf8, false),
    ]));
    let columns = vec![Arc::new(StringArray::from(users)) as _, Arc::new(emojis) as _];
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns).unwrap();
    let mut writer = StreamWriter::try_new(Vec::new(), &schema).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

#[tokio::test]
async fn every_format_and_both_aliases_bring_rows_into_the_log() {
    let house = House::new(2, Settings::default()).await;
    let array = format!("[{},{}]", row("b1"), row("b2"));
    let lines = format!("{}\n{}\n", row("c1"), row("c2"));
    let json = "application/json";
    let sent = [
        ("/v1/tables/reactions", Some(json), None, row("a").into_bytes(), 1),
        ("/v1/tables/reactions", Some("Application/JSON; charset=utf-8"), None, array.into_bytes(), 2),
        ("/v1/tables/reactions", Some("application/x-ndjson"), None, lines.clone().into_bytes(), 2),
        ("/v1/tables/reactions", Some(ARROW_STREAM), None, arrow_stream(vec!["d1", "d2", "d3"]), 3),
        ("/emoji", None, None, row("e").into_bytes(), 1),
        ("/api", Some(json), Some("identity"), row("f").into_bytes(), 1),
        ("/api", Some(json), Some("gzip"), gzip(row("g").as_bytes()), 1),
        ("/api", Some(json), Some("zstd"), zstd(row("h").as_bytes(), 3), 1),
        ("/api", Some(json), None, b"[]".to_vec(), 0),
    ];
    for (path, content_type, encoding, body, rows) in sent {
        let mut request = house.post(path).body(body);
        for (name, value) in [("content-type", content_type), ("content-encoding", encoding)] {
            request = value.into_iter().fold(request, |request, value| request.header(name, value));
        }
        let answer = answer(request).await;
        assert_eq!(
            (answer.status, &answer.body),
            (StatusCode::ACCEPTED, &json!({"accepted": rows})),
            "{path}"
        );
        assert_eq!(answer.content_type, "application/json");
    }
    let users: Vec<String> = house.users().into_iter().map(|(_, user)| user).collect();
    assert_eq!(users, ["a", "b1", "b2", "c1", "c2", "d1", "d2", "d3", "e", "f", "g", "h"]);
    let records = house.log.records();
    let partitions: Vec<u32> = records.iter().map(|(partition, _)| *partition).collect();
    assert_eq!(partitions, [0, 1, 0, 1, 0, 1, 0, 1]);
    for (_, record) in records {
        let header = |name: &str| record.headers.iter().find(|(header, _)| header == name).unwrap().1.clone();
        assert_eq!(header(HEADER_CONTENT_TYPE), ARROW_STREAM);
        assert!(header(HEADER_ROWS) != "0");
    }
    house.stop().await;
}

#[tokio::test]
async fn what_is_refused_says_why_and_leaves_nothing() {
    let settings = Settings { max_body_bytes: 4 << 20, ..Settings::default() };
    let house = House::new(1, settings).await;
    let post =
        |path: &str, body: Vec<u8>| house.post(path).header("content-type", "application/json").body(body);
    let emoji = |body: &str| post("/emoji", body.as_bytes().to_vec());
    let typed = |name: &str, value: &str| house.post("/emoji").header(name, value).body(row("u"));
    let large = vec![b' '; (4 << 20) + 1];
    let streamed = reqwest::Body::wrap_stream(futures::stream::iter(
        large.chunks(60_000).map(<[u8]>::to_vec).map(Ok::<_, String>).collect::<Vec<_>>(),
    ));
    let rows = |count: usize, user: &str| format!("[{}]", vec![row(user); count].join(",")).into_bytes();
    let distinct: Vec<String> = (0..10_000).map(|n| row(&format!("{n:0100}"))).collect();
    let cases = [
        (post("/v1/tables/nowhere", b"{}".to_vec()), 404, "unknown-table", "no table nowhere"),
        (post("/v1/tables/counts", b"{}".to_vec()), 404, "not-a-source", "is a sink"),
        (emoji(r#"{"user_id":"u"}"#), 400, "bad-row", "emoji_type is missing"),
        (emoji("{"), 400, "unreadable-body", "no valid JSON"),
        (emoji(""), 400, "unreadable-body", "empty"),
        (
            emoji(r#"{"user_id":"u","emoji_type":"x","timestamp":"2261-01-01T00:00:00Z"}"#),
            400,
            "bad-row",
            "years ahead",
        ),
        (typed("content-type", "text/plain"), 415, "unsupported-media-type", "application/x-ndjson"),
        (typed("content-type", ""), 415, "unsupported-media-type", "application/json"),
        (typed("content-encoding", "br"), 415, "unsupported-media-type", "gzip and zstd"),
        (typed("content-encoding", "gzip"), 400, "unreadable-body", "could not be read"),
        (typed("idempotency-key", "k"), 501, "not-built-yet", "Idempotency-Key"),
        (post("/emoji", large), 413, "too-large", "split it"),
        (house.post("/emoji").body(streamed), 413, "too-large", "split it"),
        (post("/emoji", zstd(b"", 40)).header("content-encoding", "zstd"), 413, "too-large", "4194304 bytes"),
        (post("/emoji", rows(20_001, "u")), 413, "too-large", "20000 rows"),
        (post("/emoji", format!("[{}]", distinct.join(",")).into_bytes()), 413, "too-large", "bytes encoded"),
    ];
    for (request, status, kind, words) in cases {
        let answer = answer(request).await;
        assert_eq!(answer.status.as_u16(), status, "{answer:?}");
        assert_eq!(answer.content_type, "application/problem+json");
        assert_eq!(answer.body["type"], format!("about:blank#{kind}"));
        assert!(answer.detail().contains(words), "'{}' does not say '{words}'", answer.detail());
    }
    let bad = house.send("/emoji", format!("[{},{}]", row("u"), r#"{"user_id":5}"#)).await;
    assert_eq!((&bad.body["row"], &bad.body["column"]), (&json!(1), &json!("user_id")));
    assert!(house.log.records().is_empty());
    assert_eq!(house.ingest.pending_bytes(), 0);

    // The largest that fits goes through: many rows, of few different texts.
    let most = answer(post("/emoji", rows(20_000, &"u".repeat(40)))).await;
    assert_eq!(most.body, json!({"accepted": 20_000}));
    house.stop().await;
}

#[tokio::test]
async fn other_methods_are_left_to_others() {
    let house = House::new(1, Settings::default()).await;
    let path = format!("{}/v1/tables/reactions", house.url);
    assert_eq!(house.client.get(&path).send().await.unwrap().text().await.unwrap(), "a table");
    let put = answer(house.client.put(&path).body("{}")).await;
    assert_eq!((put.status, put.body["status"].as_u64()), (StatusCode::METHOD_NOT_ALLOWED, Some(405)));
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_message_of_a_socket_is_answered_as_a_post_of_it_would_be() {
    let house = House::new(1, Settings::default()).await;
    let address = house.url.strip_prefix("http://").unwrap();
    let mut socket = RawSocket::open(address, "/v1/tables/reactions").await;
    socket.say(&row("ada")).await;
    assert_eq!(socket.json().await, json!({"accepted": 1}));
    socket.say(&format!("[{}, {}]", row("bob"), row("eve"))).await;
    assert_eq!(socket.json().await, json!({"accepted": 2}));
    socket.say(&format!("[{}, {{\"user_id\": \"x\"}}]", row("lost"))).await;
    let refused = socket.json().await;
    assert_eq!(
        (&refused["status"], &refused["row"], &refused["column"]),
        (&json!(400), &json!(1), &json!("emoji_type")),
        "{refused}"
    );
    socket.send_frame(FIN | BINARY, row("lost").as_bytes()).await;
    assert_eq!(socket.json().await["type"], "about:blank#bad-message");
    // One message after another, sent without waiting: answered in order, every row in the log once.
    for number in 0..100 {
        socket.say(&row(&format!("user{number}"))).await;
    }
    for _ in 0..100 {
        assert_eq!(socket.json().await, json!({"accepted": 1}));
    }
    let mut users: Vec<String> = house.users().into_iter().map(|(_, user)| user).collect();
    users.sort();
    let mut sent: Vec<String> = (0..100).map(|number| format!("user{number}")).collect();
    sent.extend(["ada", "bob", "eve"].map(str::to_owned));
    sent.sort();
    assert_eq!(users, sent);

    socket.say(&"x".repeat(70_000)).await;
    assert_eq!(socket.frame().await.unwrap().code(), Some(1009), "more than a message may hold");
    let upgrade = |path: &str| {
        let request = house.client.get(format!("{}{path}", house.url)).header("connection", "upgrade");
        request.header("upgrade", "websocket").header("sec-websocket-version", "13")
    };
    assert_eq!(answer(upgrade("/v1/tables/nowhere")).await.status, StatusCode::NOT_FOUND);
    assert_eq!(answer(upgrade("/v1/tables/reactions")).await.status, StatusCode::BAD_REQUEST, "no key");
    let foreign = upgrade("/v1/tables/reactions").header("origin", "http://evil.example");
    assert_eq!(answer(foreign).await.status, StatusCode::FORBIDDEN);
    let mut told = RawSocket::open(address, "/v1/tables/reactions").await;
    let (code, ()) = tokio::join!(async { told.frame().await.unwrap().code() }, house.stop());
    assert_eq!(code, Some(1001), "going away");
}

#[tokio::test]
async fn a_row_far_behind_is_taken_with_a_warning() {
    let house = House::new(1, Settings::default()).await;
    let old = r#"{"user_id":"u","emoji_type":"x","timestamp":"2020-01-01T00:00:00"}"#;
    let answer = house.send("/emoji", old).await;
    assert_eq!((answer.status, &answer.body["accepted"]), (StatusCode::ACCEPTED, &json!(1)));
    let warning = answer.body["warnings"][0].as_str().unwrap();
    assert!(
        warning.starts_with("row 0: timestamp is ")
            && warning.ends_with("years behind; its window has closed")
    );
    house.stop().await;
}

#[tokio::test]
async fn tables_are_learnt_from_the_program_as_it_changes() {
    let house = House::new(1, Settings::default()).await;
    house.program.send_replace(Arc::default());
    let none = house.react("a").await;
    assert_eq!(none.status, StatusCode::NOT_FOUND);
    assert!(none.detail().contains("has not been stored"));
    assert!(house.ingest.not_ready().is_some());

    house.program.send_replace(Arc::new(program(&[reactions()])));
    assert_eq!(house.react("b").await.status, StatusCode::ACCEPTED);
    assert_eq!(house.ingest.not_ready(), None);

    let in_country = r#"{"user_id":"c","emoji_type":"x","country":"NZ"}"#;
    assert_eq!(house.send("/emoji", in_country).await.body["column"], "country");
    let mut wider = reactions();
    wider.columns.push(Column { nullable: true, ..column("country", ColumnType::Text, None) });
    house.program.send_replace(Arc::new(program(&[wider])));
    assert_eq!(house.send("/emoji", in_country).await.status, StatusCode::ACCEPTED);
    assert_eq!(house.users(), [(0, "b".to_owned()), (1, "c".to_owned())]);

    let json_source = Table { format: Format::Json, ..reactions() };
    house.program.send_replace(Arc::new(program(&[json_source])));
    assert_eq!(house.react("d").await.status, StatusCode::NOT_IMPLEMENTED);
    house.stop().await;
}

#[tokio::test]
async fn a_topic_that_does_not_exist_yet_is_waited_for_within_the_limit() {
    let house =
        House::new(0, Settings { max_wait_ms: 300, flush_interval_ms: 50, ..Settings::default() }).await;
    let early = house.react("a").await;
    assert_eq!((early.status, early.is_unknown()), (StatusCode::SERVICE_UNAVAILABLE, false));
    house.log.set_partitions(1);
    until("the topic is found", || async { house.react("b").await.status == StatusCode::ACCEPTED }).await;
    house.log.set_partitions(0);
    let gone = house.react("c").await;
    assert_eq!((gone.status, gone.is_unknown()), (StatusCode::SERVICE_UNAVAILABLE, false));
    house.log.set_partitions(2);
    until("the topic is found again", || async { house.react("d").await.status == StatusCode::ACCEPTED })
        .await;
    let users: BTreeSet<String> = house.users().into_iter().map(|(_, user)| user).collect();
    assert_eq!(users, BTreeSet::from(["b".to_owned(), "d".to_owned()]));
    house.stop().await;
}

#[tokio::test]
async fn a_stalled_log_is_answered_with_503_and_holds_no_more_than_its_memory() {
    let limit = 1 << 20;
    let settings = Settings { max_body_bytes: 64 << 10, max_pending_bytes: limit, ..Settings::default() };
    let house = House::new(3, settings).await;
    house.log.set_mode(Mode::Stalled);
    let body = |user: usize| format!("[{}]", vec![row(&format!("user-{user}")); 500].join(","));
    let crowd = join_all((0..200).map(|user| {
        let body = body(user);
        let house = &house;
        async move { house.send("/emoji", body).await }
    }));
    let watching = async {
        let mut most = 0;
        for _ in 0..100 {
            most = most.max(house.ingest.pending_bytes());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        house.log.set_mode(Mode::Working);
        most
    };
    let (answers, most) = tokio::join!(crowd, watching);
    assert!(most > limit / 2 && most <= limit, "{most} bytes");
    let (accepted, refused): (Vec<_>, Vec<_>) =
        answers.iter().partition(|answer| answer.status == StatusCode::ACCEPTED);
    assert!(
        !accepted.is_empty() && refused.len() > 50,
        "{} accepted, {} refused",
        accepted.len(),
        refused.len()
    );
    for answer in refused {
        assert_eq!((answer.status, answer.is_unknown()), (StatusCode::SERVICE_UNAVAILABLE, false));
        assert_eq!(answer.retry_after.as_deref(), Some("1"));
        assert_eq!(answer.body["type"], "about:blank#full");
    }
    assert_eq!(house.users().len(), accepted.len() * 500);
    assert_eq!(house.ingest.pending_bytes(), 0);
    house.stop().await;
}

#[tokio::test]
async fn a_request_whose_write_does_not_begin_in_time_is_withdrawn_for_good() {
    let settings = Settings { max_wait_ms: 200, flush_interval_ms: 10, ..Settings::default() };
    let house = House::new(2, settings).await;
    house.log.set_mode(Mode::Stalled);
    let one = async { house.react("one").await.status };
    let two = async {
        until("the first write is under way", || async { house.log.running() == 1 }).await;
        house.react("two").await.status
    };
    let begun = async { <[StatusCode; 2]>::from(tokio::join!(one, two)) };
    let waiting = async {
        until("both partitions are busy", || async { house.log.running() == 2 }).await;
        let withdrawn = join_all((0..5).map(|n| house.send("/emoji", row(&format!("late-{n}"))))).await;
        house.log.set_mode(Mode::Working);
        withdrawn
    };
    let (begun, withdrawn) = tokio::join!(begun, waiting);
    assert_eq!(begun, [StatusCode::ACCEPTED; 2]);
    for answer in withdrawn {
        assert_eq!((answer.status, answer.is_unknown()), (StatusCode::SERVICE_UNAVAILABLE, false));
        assert!(answer.detail().contains("nothing of this request was kept"), "{answer:?}");
    }
    assert_eq!(house.react("after").await.status, StatusCode::ACCEPTED);
    let users: BTreeSet<String> = house.users().into_iter().map(|(_, user)| user).collect();
    assert_eq!(users, ["after", "one", "two"].map(str::to_owned).into());
    assert_eq!(house.log.most_running(), 2);
    house.stop().await;
}

#[tokio::test]
async fn the_logs_errors_are_answered_as_what_they_are() {
    let house = House::new(1, Settings::default()).await;
    for (mode, unknown) in [(Mode::Unavailable, false), (Mode::LostAnswer, true), (Mode::LostRequest, true)] {
        house.log.set_mode(mode);
        let answer = house.react(&format!("{mode:?}")).await;
        assert_eq!(
            (answer.status, answer.is_unknown()),
            (StatusCode::SERVICE_UNAVAILABLE, unknown),
            "{mode:?}"
        );
        assert_eq!(answer.retry_after.as_deref(), Some("1"));
    }
    house.stop().await;
}

#[tokio::test]
async fn a_sender_that_hangs_up_does_not_take_its_rows_back() {
    let house = House::new(1, Settings::default()).await;
    house.log.set_mode(Mode::Stalled);
    let hasty = house.post("/emoji").body(row("hasty")).timeout(Duration::from_millis(100));
    assert!(hasty.send().await.unwrap_err().is_timeout());
    house.log.set_mode(Mode::Working);
    until("the row is in the log", || async { house.users() == [(0, "hasty".to_owned())] }).await;
    until("its memory is given back", || async { house.ingest.pending_bytes() == 0 }).await;
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_log_does_202_is_in_it_once_and_what_was_not_kept_is_not() {
    let settings = Settings { max_wait_ms: 40, flush_interval_ms: 10, flush_rows: 50, ..Settings::default() };
    let house = House::new(3, settings).await;
    let senders = join_all((0..40).map(|sender| {
        let house = &house;
        async move {
            let mut answers = Vec::new();
            for n in 0..50 {
                // One to three rows; the last one of every seventh request is bad.
                let mut rows: Vec<String> =
                    (0..1 + n % 3).map(|part| row(&format!("{sender}/{n}/{part}"))).collect();
                if n % 7 == 0 {
                    rows.push("{}".to_owned());
                }
                let answer = house.send("/emoji", format!("[{}]", rows.join(","))).await;
                answers.push((format!("{sender}/{n}/"), 1 + n % 3, answer));
            }
            answers
        }
    }));
    let weather = async {
        use Mode::{LostAnswer, LostRequest, Stalled, Unavailable, Working};
        for mode in
            [Working, Stalled, Working, Unavailable, LostAnswer, Working, LostRequest, Stalled].iter().cycle()
        {
            house.log.set_mode(*mode);
            tokio::time::sleep(Duration::from_millis(if *mode == Stalled { 60 } else { 15 })).await;
        }
    };
    let answers = tokio::select! {
        answers = senders => answers,
        () = weather => unreachable!("the weather never ends"),
    };
    house.log.set_mode(Mode::Working);

    let mut found: BTreeMap<String, Vec<(usize, String)>> = BTreeMap::new();
    for (record, user) in house.users() {
        let request = user[..=user.rfind('/').unwrap()].to_owned();
        found.entry(request).or_default().push((record, user));
    }
    let mut seen = BTreeMap::new();
    for (request, rows, answer) in answers.into_iter().flatten() {
        let kept = found.remove(&request).unwrap_or_default();
        let whole = kept.len() == rows
            && kept
                .iter()
                .enumerate()
                .all(|(part, (record, user))| *record == kept[0].0 && *user == format!("{request}{part}"));
        let outcome = match answer.status {
            StatusCode::ACCEPTED => "accepted",
            StatusCode::BAD_REQUEST => "bad",
            StatusCode::SERVICE_UNAVAILABLE if answer.is_unknown() => "unknown",
            StatusCode::SERVICE_UNAVAILABLE => "not kept",
            other => panic!("{other}: {answer:?}"),
        };
        match outcome {
            "accepted" => assert!(whole, "{request} was answered 202 and is in the log as {kept:?}"),
            "unknown" => assert!(whole || kept.is_empty(), "{request} is in the log in part: {kept:?}"),
            _ => assert!(kept.is_empty(), "{request} was refused and is in the log: {kept:?}"),
        }
        *seen.entry(outcome).or_insert(0) += 1;
    }
    assert!(found.is_empty(), "never sent: {found:?}");
    assert_eq!(seen.len(), 4, "not every outcome came up: {seen:?}");
    assert_eq!(house.ingest.pending_bytes(), 0);
    house.stop().await;
}

#[tokio::test]
async fn a_stop_writes_what_waits_and_answers_everybody() {
    let house = House::new(1, Settings::default()).await;
    house.log.set_mode(Mode::Stalled);
    let crowd = join_all((10..40).map(|n| {
        let house = &house;
        async move {
            if n > 10 {
                until("the first is being written", || async { house.log.running() == 1 }).await;
            }
            house.react(&format!("user-{n}")).await.status
        }
    }));
    let stopping = async {
        until("the first is being written", || async { house.log.running() == 1 }).await;
        let each = house.ingest.pending_bytes();
        until("all are waiting", || async { house.ingest.pending_bytes() == 30 * each }).await;
        house.tasks.cancel();
        house.log.set_mode(Mode::Working);
    };
    let (answers, ()) = tokio::join!(crowd, stopping);
    assert_eq!(answers, [StatusCode::ACCEPTED; 30]);
    assert_eq!(house.users().len(), 30);
    house.stop().await;
}

#[tokio::test]
async fn a_stop_while_the_log_stalls_answers_everybody_in_time() {
    let house = House::new(1, Settings::default()).await;
    house.log.set_mode(Mode::Stalled);
    let first = async {
        let answer = house.react("user-1").await;
        (answer.status, answer.is_unknown())
    };
    let second = async {
        until("the first is being written", || async { house.log.running() == 1 }).await;
        let each = house.ingest.pending_bytes();
        let stopping = async {
            until("the second waits", || async { house.ingest.pending_bytes() == 2 * each }).await;
            house.tasks.cancel();
        };
        let (answer, ()) = tokio::join!(house.react("user-2"), stopping);
        (answer.status, answer.is_unknown())
    };
    let began = tokio::time::Instant::now();
    let (first, second) = tokio::join!(first, second);
    assert_eq!(first, (StatusCode::SERVICE_UNAVAILABLE, true));
    assert_eq!(second, (StatusCode::SERVICE_UNAVAILABLE, false));
    assert!(began.elapsed() < Duration::from_secs(9));
    house.stop().await;
}

//! A page in Chromium: its own `EventSource` and `WebSocket`, and the client file as a module, against the real program that
//! is killed and started again.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::binary::{Running, emostream, post_json};
use crate::support::books::{self, ClosedWindow};
use crate::support::browser::Browser;

const TABLES: &str = include_str!("../../sql/tables.sql");
const EMOJI_COUNTS: &str = include_str!("../../sql/emoji_counts.sql");

/// What the page hears, by whom.
const WATCH: &str = "
    const { Live, Sender } = await import('/client.js');
    const seen = { socket: [], events: [], module: [], byEvents: [], rows: 0, echoed: 0, accepted: 0, refused: [], gaps: 0, states: [] };
    const live = (name, by) => new Live({
        by, last: false, onWindow: (window) => seen[name].push(window), onGap: () => { seen.gaps += 1; },
        onRow: () => { seen.rows += by === 'websocket' ? 1 : 0; },
        onState: (state) => seen.states.push(`${name} ${state}`),
    });
    live('module', 'websocket');
    live('byEvents', 'events');
    const events = new EventSource('/v1/live?room=main');
    events.onmessage = ({ data, lastEventId }) => {
        const window = JSON.parse(data);
        if (window.id !== lastEventId) seen.refused.push(`${window.id} came as ${lastEventId}`);
        seen.events.push(window);
    };
    events.addEventListener('gap', () => { seen.gaps += 1; });
    const socket = new WebSocket(`ws://${location.host}/v1/live?room=main`);
    socket.onmessage = ({ data }) => seen.socket.push(JSON.parse(data));
    const open = (source) => new Promise((resolve, reject) => { source.onopen = resolve; source.onerror = reject; });
    await Promise.all([open(socket), open(events)]);
    events.onerror = null;
    window.seen = seen;
    window.socket = socket;
    window.sender = new Sender({
        onEcho: () => { seen.echoed += 1; }, onAccepted: (rows) => { seen.accepted += rows; },
        onRefused: (error) => seen.refused.push(error),
    });
";

const SEEN: &str = "return { ...seen, socketState: socket.readyState };";

fn total(seen: &Value, by: &str) -> u64 {
    let windows = seen[by].as_array().unwrap().iter();
    let rows = windows.flat_map(|window| window["rows"].as_array().unwrap());
    rows.map(|row| row["count"].as_u64().unwrap()).sum()
}

/// Every window of `closed` once and in order, the newest first there.
fn check(seen: &Value, by: &str, closed: &[ClosedWindow]) {
    let shown = seen[by].as_array().unwrap().iter();
    let shown: Vec<_> = shown.map(|window| (window["window"].clone(), window["rows"].clone())).collect();
    let expected = closed.iter().rev().map(|closed| {
        let mut rows = closed.rows.clone();
        rows.iter_mut().for_each(|row| drop(row.remove("room")));
        (serde_json::to_value(closed.window).unwrap(), json!(rows))
    });
    assert_eq!(shown, expected.collect::<Vec<_>>(), "by {by}");
}

/// The results once so many reactions are in them, and no more.
async fn results(server: &Running, count: u64) -> Vec<ClosedWindow> {
    let counts = |window: &Value| {
        let rows = window["rows"].as_array().unwrap().iter();
        rows.map(|row| row["count"].as_u64().unwrap()).sum::<u64>()
    };
    server.windows("emoji_counts", |windows| windows.iter().map(counts).sum::<u64>() >= count).await;
    let closed = books::all_results(server, "emoji_counts").await;
    assert_eq!(books::total(&closed, "count"), count);
    closed
}

fn up(dir: &Path, listen: &str) -> Running {
    Running::start(emostream(dir).args(["up", "--listen", listen]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_sends_sees_every_window_and_goes_on_after_the_server_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("sql")).unwrap();
    std::fs::write(dir.path().join("sql/tables.sql"), TABLES).unwrap();
    let query = EMOJI_COUNTS.replace("2 seconds", "500 milliseconds");
    std::fs::write(dir.path().join("sql/emoji_counts.sql"), query).unwrap();
    let mut server = up(dir.path(), "127.0.0.1:0");
    server.ready().await;
    let address = server.url("").trim_start_matches("http://").to_owned();

    let browser = Browser::start().await;
    browser.open(&server.url("/readyz")).await;
    browser.run(WATCH).await;
    let is_open = |seen: &Value| {
        let states = seen["states"].as_array().unwrap();
        ["module open", "byEvents open"].iter().all(|state| states.contains(&json!(state)))
    };
    browser.poll(SEEN, is_open).await;
    browser.run("for (const emoji of ['🎉', '🎉', '🔥', '🎉', '😀']) sender.send(emoji);").await;
    let all = |sources: &'static [&str], count: u64| {
        move |seen: &Value| sources.iter().all(|by| total(seen, by) >= count)
    };
    let seen = browser.poll(SEEN, all(&["socket", "events", "module", "byEvents"], 5)).await;
    assert_eq!((&seen["echoed"], &seen["accepted"]), (&json!(5), &json!(5)));
    let closed = results(&server, 5).await;
    for by in ["socket", "events", "module", "byEvents"] {
        check(&seen, by, &closed);
    }

    server.kill();
    // The reaction waits in the page; nobody is there to take it.
    browser.run("sender.send('💪');").await;
    let server = up(dir.path(), &address);
    server.ready().await;
    // Windows that close before the page is back.
    for _ in 0..2 {
        let before = books::all_results(&server, "emoji_counts").await.len();
        let row = r#"{"user_id": "u", "emoji_type": "👏"}"#;
        assert_eq!(post_json(&server.url("/v1/tables/reactions"), row).await.0, 202);
        server.windows("emoji_counts", |windows| windows.len() > before).await;
    }
    let seen = browser.poll(SEEN, all(&["events", "module", "byEvents"], 8)).await;
    let closed = results(&server, 8).await;
    for by in ["events", "module", "byEvents"] {
        check(&seen, by, &closed);
    }
    assert_eq!((&seen["gaps"], &seen["refused"], &seen["accepted"]), (&json!(0), &json!([]), &json!(6)));
    assert_eq!(
        (total(&seen, "socket"), &seen["socketState"]),
        (5, &json!(3)),
        "it does not connect again by itself"
    );
    let rows = closed.iter().map(|window| window.rows.len()).sum::<usize>() as u64;
    browser.poll(SEEN, |seen| seen["rows"] == rows).await;
}

/// The client file with a network and a clock that the page makes up: what goes in, and what comes out.
const ALONE: &str = "
    const { Live, Sender } = await import('/client.js');
    const out = {};
    const answers = [], calls = [], timers = [], sockets = [];
    const answer = (status, body = {}, headers = {}) =>
        ({ ok: status < 300, status, json: async () => body, headers: { get: (name) => headers[name] ?? null } });
    const soon = globalThis.setTimeout.bind(globalThis);
    const turn = () => new Promise((resolve) => soon(resolve, 5));
    globalThis.fetch = async (url, init) => {
        calls.push(init);
        const next = answers.shift();
        if (next instanceof Error) throw next;
        return next;
    };
    globalThis.WebSocket = class { constructor(address) { this.address = address; sockets.push(this); } close() {} };
    globalThis.setTimeout = (run, ms) => timers.push({ run, ms });
    globalThis.clearTimeout = (number) => { if (number) timers[number - 1].cleared = true; };
    const last = () => timers[timers.length - 1];

    const errors = [];
    const sender = new Sender({ url: 'http://there', onError: (error) => errors.push(error) });
    const send = (count) => { for (let n = 0; n < count; n += 1) sender.send('😀'); };
    send(1200);
    answers.push(answer(202, { accepted: 300 }), new TypeError('Failed to fetch'), new TypeError('Failed to fetch'));
    await sender.flush();
    out.first = { rows: JSON.parse(calls[0].body).length, keepalive: calls[0].keepalive, wait: sender.waiting.length };
    await sender.flush();
    out.failed = { errors: errors.length, waiting: errors[0].waiting, again: last().ms >= 250 && !last().cleared };
    send(300);
    const flushing = sender.flush();
    send(300);
    await flushing;
    out.most = sender.waiting.length;
    sender.waiting = [];
    send(1);
    answers.push(answer(202));
    await sender.flush();
    out.small = calls[calls.length - 1].keepalive;

    answers.push(answer(200, { connect: 'http://subscriber/v1/live' }), answer(503, {}, { 'retry-after': '3' }), answer(404));
    new Live({ url: 'http://front' });
    await turn();
    sockets[0].onopen();
    sockets[0].onmessage({ data: '{\"type\":\"drain\",\"retry\":7000}' });
    sockets[0].onclose();
    out.drain = { ms: last().ms, cleared: last().cleared ?? false };
    last().run();
    await turn();
    out.waits = last().ms >= 3000 && last().ms < 5000;
    last().run();
    await turn();
    out.itself = sockets[1].address.startsWith('ws://front/v1/live?');
    return out;
";

#[tokio::test(flavor = "multi_thread")]
async fn the_client_file_sends_in_parts_and_waits_as_long_as_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let server = up(dir.path(), "127.0.0.1:0");
    server.ready().await;
    let browser = Browser::start().await;
    browser.open(&server.url("/readyz")).await;
    assert_eq!(
        browser.run(ALONE).await,
        json!({
            "first": {"rows": 300, "keepalive": false, "wait": 700},
            "failed": {"errors": 1, "waiting": 700, "again": true},
            "most": 1000,
            "small": true,
            "drain": {"ms": 7000, "cleared": false},
            "waits": true,
            "itself": true,
        })
    );
}

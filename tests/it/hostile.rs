//! Clients that are slow, silent, many or malicious: the server's memory stays bounded, and others hear of windows in
//! time.

use std::sync::Arc;
use std::time::Duration;

use emostream::http;
use emostream::log::Log;
use emostream::publish::{Live, Patience};
use emostream::shutdown::Tasks;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::binary::{Running as Process, post_json};
use crate::support::raw_socket::{FIN, PING, PONG, RawSocket, TEXT, header, masked, proper};
use crate::support::tier::{Running, close, close_with, create_sink, embedded};

/// From a window's commit to its viewer, beside all that the test does to the server: half of the windows, and each. The
/// tests share two cores, with compilers too.
const MEDIAN: Duration = Duration::from_secs(1);
const IN_TIME: Duration = Duration::from_secs(10);
/// Resident memory of an idle WebSocket connection, in KB. Measured in a release build: 10.
const KB_PER_CONNECTION: u64 = 12;

/// A tier with that patience, and its log.
async fn tier(patience: Patience) -> (Running, Arc<dyn Log>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let log = embedded(&folder);
    create_sink(log.as_ref()).await;
    (Running::start_small(&log, Live { patience, ..Live::default() }).await, log, folder)
}

fn sequence(window: &Value) -> u64 {
    window["id"].as_str().unwrap().rsplit('-').next().unwrap().parse().unwrap()
}

/// Closes a window again and again and measures what it takes to the viewer, until `is_over`.
async fn windows_come_in_time(log: &dyn Log, viewer: &mut RawSocket, mut is_over: impl FnMut(i64) -> bool) {
    let mut writer = log.fence("engine").await.unwrap();
    let filler = "x".repeat(50_000);
    let mut took = Vec::new();
    for end_s in 1.. {
        close_with(writer.as_mut(), end_s, "main", &filler).await;
        let committed = Instant::now();
        assert_eq!(viewer.json().await.get("skipped"), None);
        took.push(committed.elapsed());
        if is_over(end_s) {
            break;
        }
    }
    took.sort_unstable();
    let (median, most) = (took[took.len() / 2], took[took.len() - 1]);
    assert!(median < MEDIAN && most < IN_TIME, "half took {median:?}, one {most:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_is_closed_and_holds_nobody() {
    let stalled_for = Duration::from_secs(2);
    let (tier, log, _folder) = tier(Patience { stalled_for, ..Patience::default() }).await;
    let mut viewer = RawSocket::open(&tier.address, "/v1/live").await;
    let mut stalled = Vec::new();
    for _ in 0..20 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(tier.address.parse().unwrap()).await.unwrap();
        let head: String = proper().iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        stream.write_all(format!("GET /v1/live HTTP/1.1\r\n{head}\r\n").as_bytes()).await.unwrap();
        stalled.push(stream);
    }
    tier.until_clients(21).await;
    let began = Instant::now();
    windows_come_in_time(log.as_ref(), &mut viewer, |_| tier.clients() == 1).await;
    let took = began.elapsed();
    assert!(took >= stalled_for, "closed after {took:?}, before its time");
    for mut stream in stalled {
        // What was on the way, then the end: nobody said goodbye to who does not listen.
        let mut rest = Vec::new();
        drop(tokio::time::timeout(IN_TIME, stream.read_to_end(&mut rest)).await.expect("it is closed"));
    }
    tier.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_silent_is_pinged_and_then_closed() {
    let patience = Patience {
        ping_every: Duration::from_millis(500),
        silent_for: Duration::from_millis(1_750),
        ..Patience::default()
    };
    let (tier, _log, _folder) = tier(patience).await;
    let began = Instant::now();
    let mut silent = RawSocket::open(&tier.address, "/v1/live").await;
    let mut answering = RawSocket::open(&tier.address, "/v1/live").await;
    let being_silent = async {
        let mut pings = 0;
        loop {
            let frame = silent.frame().await.unwrap();
            if frame.opcode != PING {
                return (frame.code(), pings, began.elapsed());
            }
            pings += 1;
        }
    };
    let being_there = async {
        for _ in 0..8 {
            let frame = answering.frame().await.unwrap();
            assert_eq!(frame.opcode, PING, "{frame:?}");
            answering.send_frame(FIN | PONG, &frame.payload).await;
        }
    };
    let ((code, pings, ended), ()) = tokio::join!(being_silent, being_there);
    assert_eq!(code, Some(1008));
    assert!((1..=3).contains(&pings) && ended >= patience.silent_for, "{pings} pings, {ended:?}");
    assert!(began.elapsed() > 2 * patience.silent_for, "who answers stays");
    tier.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_pings_and_commands_and_fragments_hold_nobody() {
    let (tier, log, _folder) = tier(Patience::default()).await;
    let mut viewer = RawSocket::open(&tier.address, "/v1/live").await;
    let ping = masked(FIN | PING, &[b'x'; 125]);
    let kinds = [ping, masked(FIN | TEXT, b"{}"), masked(0, b""), masked(FIN | PONG, b"")];
    let mut floods = JoinSet::new();
    for number in 0..40 {
        let mut socket = RawSocket::open(&tier.address, "/v1/live?room=nobody").await;
        let flood = kinds[number % kinds.len()].repeat(100);
        if number % kinds.len() == 2 {
            // An endless message of empty fragments.
            socket.send_frame(TEXT, b"").await;
        }
        floods.spawn(async move {
            // They never read what they are answered.
            while socket.stream.write_all(&flood).await.is_ok() {}
        });
    }
    let began = Instant::now();
    windows_come_in_time(log.as_ref(), &mut viewer, |end_s| {
        end_s >= 50 && began.elapsed() > Duration::from_secs(5)
    })
    .await;
    assert_eq!(tier.clients(), 41, "a flood costs its sender time, nobody else");
    floods.abort_all();
    tier.stop().await;
}

/// Viewers come, stay a while and go, most in the middle of the stream and some without a word; each comes back with its
/// cursor.
#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_joins_and_leaves_loses_no_window_and_tells_none_twice() {
    const VIEWERS: usize = 60;
    const WINDOWS: u64 = 300;
    let (tier, log, _folder) = tier(Patience::default()).await;
    let mut writer = log.fence("engine").await.unwrap();
    close(writer.as_mut(), 1, "main").await;
    // An id to begin with.
    let first = RawSocket::open(&tier.address, "/v1/live?last=1").await.json().await;
    let (epoch, sequence_of_first) = first["id"].as_str().unwrap().rsplit_once('-').unwrap();
    assert_eq!(sequence_of_first, "1");
    let mut viewers = JoinSet::new();
    for number in 0..VIEWERS {
        let (address, epoch) = (tier.address.clone(), epoch.to_owned());
        viewers.spawn(async move {
            let (mut last, mut connections) = (1, 0);
            while last < WINDOWS {
                let mut socket = RawSocket::open(&address, &format!("/v1/live?after={epoch}-{last}")).await;
                connections += 1;
                let stays = 1 + (number * 7 + connections * 13) % 9;
                for _ in 0..stays {
                    let window = socket.json().await;
                    assert_eq!(window.get("type"), None, "no gap: {window}");
                    let skipped = window["skipped"].as_u64().unwrap_or(0);
                    assert_eq!(sequence(&window), last + 1 + skipped, "viewer {number}");
                    last = sequence(&window);
                    if last == WINDOWS {
                        break;
                    }
                }
                if connections % 3 == 0 {
                    socket.send_frame(FIN | 0x8, b"").await;
                }
            }
            connections
        });
    }
    for end_s in 2..=WINDOWS {
        close(writer.as_mut(), end_s as i64, "main").await;
    }
    let mut connections = 0;
    while let Some(viewer) = viewers.join_next().await {
        connections += viewer.unwrap();
    }
    assert!(connections > VIEWERS * 20, "{connections} connections");
    tier.until_clients(0).await;
    tier.stop().await;
}

/// KB of a process that are resident.
fn resident_kb(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_idle_connections_take_little_memory_and_give_it_back_in_use() {
    const MANY: u64 = 2_000;
    let dir = tempfile::tempdir().unwrap();
    let up = Process::up(dir.path(), &[]);
    up.ready().await;
    let address = up.url("").strip_prefix("http://").unwrap().to_owned();
    // What the first ones bring with them is the process's.
    let mut sockets = Vec::new();
    for _ in 0..100 {
        sockets.push(RawSocket::open(&address, "/v1/live").await);
    }
    let before = resident_kb(&up);
    for _ in 0..MANY {
        sockets.push(RawSocket::open(&address, "/v1/live").await);
    }
    let grown = resident_kb(&up).saturating_sub(before);
    eprintln!("{:.1} KB for each idle connection", grown as f64 / MANY as f64);
    assert!(grown < MANY * KB_PER_CONNECTION, "{grown} KB for {MANY} connections");

    // They are served, all of them.
    let (status, _) = post_json(&up.url("/emoji"), r#"{"user_id":"u","emoji_type":"🎉"}"#).await;
    assert_eq!(status, 202);
    for socket in &mut sockets {
        assert_eq!(socket.json().await["rows"], json!([{"emoji_type": "🎉", "count": 1, "scaled": 1}]));
    }
    // Each begins a message as long as may be, and stops before its first byte.
    for socket in &mut sockets {
        socket.send(&header(FIN | TEXT, 64 << 10, true)).await;
        socket.send(&[0; 4]).await;
    }
    up.ready().await;
    let grown = resident_kb(&up).saturating_sub(before);
    eprintln!("{:.1} KB with a message begun", grown as f64 / MANY as f64);
    assert!(grown < MANY * 2 * KB_PER_CONNECTION, "{grown} KB for {MANY} connections");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_a_request_byte_by_byte_is_cut_off() {
    let head_within = Duration::from_secs(1);
    let tasks = Tasks::new();
    let listener = http::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = http::role_router(http::Router::new(), http::Readiness::new());
    http::serve_within(listener, router, &tasks, head_within);
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut slow = TcpStream::connect(address).await.unwrap();
    let began = Instant::now();
    slow.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ").await.unwrap();
    while slow.write_all(b"x").await.is_ok() {
        assert!(began.elapsed() < IN_TIME + head_within, "it may go on for ever");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(began.elapsed() >= head_within, "{:?}", began.elapsed());
    let mut answer = Vec::new();
    drop(tokio::time::timeout(IN_TIME, silent.read_to_end(&mut answer)).await.expect("it is closed"));
    assert!(answer.is_empty(), "nobody asked");
    let proper = reqwest::get(format!("http://{address}/healthz")).await.unwrap();
    assert_eq!(proper.status(), 200);
    assert!(tasks.stop(Duration::from_secs(5)).await);
}

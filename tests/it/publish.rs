//! The publisher tier on real logs: windows go in as the engine writes them, clients read real sockets, and
//! everything is stopped and started again meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use emostream::log::Log;
use emostream::log::embedded::EmbeddedLog;
use emostream::shutdown::Tasks;
use futures::StreamExt;
use serde_json::Value;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use crate::support::kafka::{connect, fresh};
use crate::support::scoped::Scoped;
use crate::support::tier::{PARTITIONS, Running, close, create_sink, embedded};

const LIMIT: Duration = Duration::from_secs(60);
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
                close(writer.as_mut(), end_s, "main").await;
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
        close(writer.as_mut(), end_s, "main").await;
        let committed = Instant::now();
        tokio::time::timeout(LIMIT, socket.next()).await.unwrap().unwrap().unwrap();
        times.push(committed.elapsed());
    }
    times.sort();
    eprintln!("commit to viewer: p50 {:?}, max {:?}", times[20], times[39]);
    assert!(times[20] < limit, "p50 {:?}", times[20]);
    tier.stop().await;
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
    let embedded = EmbeddedLog::open(folder.path(), emostream::log::embedded::Settings::default()).unwrap();
    let log: Arc<dyn Log> = Arc::clone(&embedded) as Arc<dyn Log>;
    create_sink(log.as_ref()).await;
    let mut writer = log.fence("engine").await.unwrap();
    let mut viewer = Viewer { cursor: None, seen: Vec::new() };
    let tier = Running::start(&log, 1).await;
    close(writer.as_mut(), 1, "main").await;
    viewer.watch(&tier.address, 1).await;
    tier.stop().await;
    for end_s in 2..=5 {
        close(writer.as_mut(), end_s, "main").await;
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

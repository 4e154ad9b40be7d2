//! Two fronts, a region and two subscribers on one Kafka, under load: the sequencer is killed, then a subscriber, then
//! another one starts; viewers come through the fronts and see every window once.

use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::standby::{program, role};
use crate::support::binary::{Running, emostream};
use crate::support::books;
use crate::support::kafka::Broker;
use crate::support::load::Load;
use crate::support::viewer::Viewer;

/// From the death of the sequencer to the first window that another one tells: 6 s for the broker to miss it, and what a
/// takeover of the engine is given.
const TAKEOVER: Duration = Duration::from_secs(15);
/// From the death of a subscriber until the fronts have noticed.
const NOTICED: Duration = Duration::from_secs(4);
/// From the death of a subscriber to its viewers' next window: that, and to connect again.
const MOVED: Duration = Duration::from_secs(10);
const ROOMS: [&str; 2] = ["left", "right"];

/// Waits until a viewer has been shown more windows than `seen`.
async fn shown_more(viewers: &[Viewer], limit: Duration) {
    let count = |viewer: &Viewer| viewer.shown(|shown| shown.messages.len());
    let before: Vec<usize> = viewers.iter().map(count).collect();
    let began = Instant::now();
    while viewers.iter().zip(&before).any(|(viewer, before)| count(viewer) <= *before + ROOMS.len()) {
        assert!(began.elapsed() < limit, "no window for {limit:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Of the live subscribers.
fn clients(topology: &Value) -> Vec<u64> {
    let subscribers = topology["clusters"][0]["subscribers"].as_array().into_iter().flatten();
    let live = subscribers.filter(|one| one["state"] == "live");
    live.map(|one| one["clients"].as_u64().unwrap()).collect()
}

async fn notes(front: &Running) -> String {
    front.json("/readyz").await["notes"].to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn viewers_see_every_window_once_whichever_front_or_subscriber_dies() {
    let (broker, dir) = (Broker::start(), program());
    let start = |args: &[&str]| {
        let common = ["--kafka", &broker.address, "--listen", "127.0.0.1:0"];
        Running::start(emostream(dir.path()).args(args).args(common))
    };
    let engine = role(dir.path(), &broker, "engine");
    let (ingest, query) = (start(&["ingest"]), start(&["query"]));
    let mut sequencer = start(&["publish"]);
    sequencer.ready().await;
    let front = start(&["publish"]);
    let cluster = start(&["cluster", "west"]);
    let subscribe = ["subscribe", "--cluster", "west"];
    let (mut doomed, survivor) = (start(&subscribe), start(&subscribe));
    for process in [&engine, &ingest, &query, &front, &cluster, &doomed, &survivor] {
        process.ready().await;
    }
    assert!(notes(&front).await.contains("stands by") && !notes(&sequencer).await.contains("stands by"));

    let (_ingest_address, address) = watch::channel(Some(ingest.url("")));
    let (_front_address, through) = watch::channel(Some(front.url("")));
    front.poll("/v1/topology", |topology| clients(topology) == [0, 0]).await;
    let viewers: Vec<Viewer> = (0..8).map(|_| Viewer::start(through.clone(), &ROOMS)).collect();
    front.poll("/v1/topology", |topology| clients(topology) == [4, 4]).await;
    let load = Load::start(&address, "/v1/tables/reactions", &ROOMS);
    shown_more(&viewers, TAKEOVER).await;

    sequencer.kill();
    shown_more(&viewers, TAKEOVER).await;
    assert!(!notes(&front).await.contains("stands by"), "the other front puts windows into order now");

    doomed.kill();
    let killed = Instant::now();
    front.poll("/v1/topology", |topology| clients(topology).len() == 1).await;
    assert!(killed.elapsed() < NOTICED, "noticed after {:?}", killed.elapsed());
    shown_more(&viewers, MOVED).await;
    front.poll("/v1/topology", |topology| clients(topology) == [8]).await;

    // One that starts while windows flow joins by itself, and whoever comes is sent there.
    let late = start(&subscribe);
    late.ready().await;
    front.poll("/v1/topology", |topology| clients(topology).len() == 2).await;
    let late_viewers: Vec<Viewer> = (0..8).map(|_| Viewer::start(through.clone(), &ROOMS)).collect();
    shown_more(&late_viewers, MOVED).await;
    front.poll("/v1/topology", |topology| clients(topology) == [8, 8]).await;

    let ledger = load.stop().await;
    let figures = books::settle(&query, "by_request", &ledger).await;
    let windows = books::all_results(&query, "by_request").await;
    books::check_requests(&ledger, &windows);
    assert_eq!(books::total(&windows, "count"), figures.counted);
    let sinks = [("by_request", windows.as_slice())];
    let began = Instant::now();
    while !viewers.iter().all(|viewer| viewer.shown(|shown| books::is_shown(shown, &sinks))) {
        assert!(began.elapsed() < TAKEOVER, "windows are missing at a viewer");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    viewers.iter().for_each(|viewer| viewer.shown(|shown| books::check_shown(shown, &sinks)));
}

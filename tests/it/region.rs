//! A region with a Kafka of its own: clusters copy between two brokers, two of one name at a time, none, and one again; whoever
//! is served there misses nothing and is told nothing twice.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;

use crate::register::{assert_ids_rise, register, windows_of};
use crate::register_kafka::closed;
use crate::standby::program;
use crate::support::binary::{Running, emostream};
use crate::support::books;
use crate::support::endpoint::Endpoint;
use crate::support::kafka::Broker;
use crate::support::load::Load;
use crate::support::viewer::Viewer;
use crate::support::waiting::until;

/// How long a step may take.
const LIMIT: Duration = Duration::from_secs(40);
const ROOMS: [&str; 2] = ["left", "right"];
/// Subscribers of the center; every front places evenly, so that one more endpoint comes to the region.
const AT_THE_CENTER: usize = 9;

/// States of the region's subscribers, as a front shows them.
fn states(topology: &Value) -> Vec<&str> {
    let clusters = topology["clusters"].as_array().into_iter().flatten();
    let far = clusters.filter(|cluster| cluster["name"] == "far");
    far.flat_map(|far| far["subscribers"].as_array().into_iter().flatten())
        .filter_map(|subscriber| subscriber["state"].as_str())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_on_a_broker_of_its_own_gets_every_window_once_while_its_clusters_die_and_come_back() {
    let (center, region, dir) = (Broker::start(), Broker::start(), program());
    let start =
        |args: &[&str]| Running::start(emostream(dir.path()).args(args).args(["--listen", "127.0.0.1:0"]));
    let up = start(&["up", "--kafka", &center.address]);
    let copying = ["cluster", "far", "--kafka", &center.address, "--region-kafka", &region.address];
    let (mut cluster, mut twin) = (start(&copying), start(&copying));
    let subscriber = start(&["subscribe", "--cluster", "far", "--kafka", &region.address]);
    for process in [&up, &cluster, &twin, &subscriber] {
        process.ready().await;
    }
    up.poll("/v1/topology", |topology| states(topology) == ["live"]).await;

    let mut far = None;
    for number in 0..=AT_THE_CENTER {
        let endpoint = Endpoint::start().await;
        let body =
            json!({"client_id": format!("board-{number}"), "host": "127.0.0.1", "port": endpoint.port});
        let (status, answer) = register(&up.url("/register"), &body).await;
        assert_eq!(status, 201, "{answer}");
        if answer["cluster"] == "far" {
            assert!(far.replace(endpoint).is_none(), "one of ten");
        }
    }
    let endpoint = far.expect("one of ten is placed in the region");
    let asked = up.json("/v1/live/address?cluster=far").await;
    assert_eq!((&asked["cluster"], &asked["url"]), (&json!("far"), &json!(subscriber.url(""))), "{asked}");
    let (_tell, address) = watch::channel(Some(subscriber.url("")));
    let viewer = Viewer::start(address, &ROOMS);
    let (_tell, address) = watch::channel(Some(up.url("")));
    let load = Load::start(&address, "/v1/tables/reactions", &ROOMS);
    let shown = || viewer.shown(|shown| shown.messages.len());
    until("windows come to the region", LIMIT, || shown() > 4).await;

    cluster.kill();
    let before = shown();
    until("the other one copies", LIMIT, || shown() > before + 8).await;
    twin.kill();
    let before = shown();
    up.windows("by_request", |windows| windows.len() > before + 8).await;
    let cluster = start(&copying);
    cluster.ready().await;
    until("windows come again", LIMIT, || shown() > before + 8).await;

    books::settle(&up, "by_request", &load.stop().await).await;
    let windows = books::all_results(&up, "by_request").await;
    let sinks = [("by_request", windows.as_slice())];
    until("all is shown", LIMIT, || viewer.shown(|shown| books::is_shown(shown, &sinks))).await;
    viewer.shown(|shown| books::check_shown(shown, &sinks));
    let closed = closed(&up).await;
    let told = |endpoint: &Endpoint| windows_of(&endpoint.windows()).into_iter().collect::<BTreeSet<_>>();
    endpoint.until("every window is told", |endpoint| told(endpoint) == closed).await;
    assert_ids_rise(&endpoint.posted());

    // What an operator says at the center is heard in the region.
    let name = subscriber.url("").replace("http://", "");
    let drain = reqwest::Client::new().put(up.url(&format!("/v1/topology/far/{name}/drain")));
    assert_eq!(drain.send().await.unwrap().status(), 204);
    up.poll("/v1/topology", |topology| states(topology) == ["draining"]).await;
}

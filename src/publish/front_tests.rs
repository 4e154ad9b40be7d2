//! Fronts, drains and standbys, on a log in memory: what members say in, where clients are sent out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use serde_json::{Value, json};

use super::members::MemberState;
use super::protocol::LiveRequest;
use super::routes::serve_on_loopback;
use super::tests::{Bench, Events, connect, heard, until};
use super::{
    Front, Heart, Live, Members, Placement, Registrations, Settings, Subscriber, live_router, publish_router,
    sse, subscriber_router,
};
use crate::http::Origins;
use crate::shutdown::Tasks;

/// Subscribers in processes of their own (one address each), and a front.
struct Region {
    bench: Bench,
    tasks: Tasks,
    members: Members,
    subscribers: Vec<Arc<Subscriber>>,
    front: String,
}

impl Region {
    async fn start(names: &[(&str, &str)], settings: &Settings) -> Self {
        let (_, bench) = Bench::in_memory().await;
        let tasks = Tasks::new();
        bench.publisher(&tasks);
        let members = Members::follow(Arc::clone(&bench.log), &tasks);
        let heart = Heart::start(Arc::clone(&bench.log), &tasks);
        let mut subscribers = Vec::new();
        for &(cluster, name) in names {
            let own = super::Cluster::new(Arc::clone(&bench.log), cluster);
            if !subscribers.iter().any(|(known, _)| *known == cluster) {
                super::tier::run_cluster(own, &heart, &tasks);
            }
            // The address is known only once it serves.
            let listener = crate::http::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let log = Arc::clone(&bench.log);
            let subscriber = Subscriber::start(log, cluster, name, &url, settings, &heart, &tasks);
            subscriber.drain_when_asked(members.clone());
            crate::http::serve(listener, live_router(vec![Arc::clone(&subscriber)]), &tasks);
            subscribers.push((cluster, subscriber));
        }
        let subscribers: Vec<_> = subscribers.into_iter().map(|(_, subscriber)| subscriber).collect();
        until(|| subscribers.iter().all(|one| one.ready().is_ok()) && heart.ready().is_ok()).await;
        let is_live = |member: &&MemberState| member.state == "live" && member.subscriber.is_some();
        until(|| members.alive().iter().filter(is_live).count() == names.len()).await;
        let registrations = Registrations::follow(Arc::clone(&bench.log), &tasks);
        let front = Front::new(members.clone(), registrations, settings, Origins::default());
        let front = serve_on_loopback(publish_router(front), &tasks).await;
        Self { bench, tasks, members, subscribers, front }
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        let response = client.get(format!("http://{}{path}", self.front)).send().await.unwrap();
        let (status, location) = (response.status(), response.headers().get("location").cloned());
        let body: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or_default();
        (status.as_u16(), location.map_or(body, |location| json!(location.to_str().unwrap())))
    }

    async fn drain(&self, method: reqwest::Method, cluster: &str, name: &str) -> u16 {
        let url = format!("http://{}/v1/topology/{cluster}/{name}/drain", self.front);
        reqwest::Client::new().request(method, url).send().await.unwrap().status().as_u16()
    }

    async fn stop(self) {
        assert!(self.tasks.stop(Duration::from_secs(5)).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_front_spreads_clients_exactly_evenly_while_windows_flow() {
    let names = [("a", "1"), ("a", "2"), ("b", "1"), ("b", "2"), ("c", "1")];
    let region = Region::start(&names, &Settings::default()).await;
    let mut clients = Vec::new();
    for round in 0..10 {
        region.bench.close(&[(2 * (round + 1), "main")]).await;
        for _ in 0..5 {
            // The client follows the redirect as EventSource does.
            clients.push(Events::open(&region.front, "?last=1", None).await);
        }
    }
    let spread: Vec<usize> = region.subscribers.iter().map(|subscriber| subscriber.clients()).collect();
    assert_eq!(spread, [10; 5]);
    for client in &mut clients {
        while client.window().await["window"]["end"] != "1970-01-01T00:00:20Z" {}
    }
    drop(clients);
    region.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_front_says_where_to_connect_and_the_region_goes_first() {
    let region = Region::start(&[("east", "1"), ("west", "1")], &Settings::default()).await;
    for _ in 0..3 {
        let (status, address) = region.get("/v1/live/address?room=goal&cluster=west").await;
        assert_eq!((status, &address["cluster"], &address["subscriber"]), (200, &json!("west"), &json!("1")));
        let (url, connect) = (address["url"].as_str().unwrap(), address["connect"].as_str().unwrap());
        let start = format!("{url}/v1/live?room=goal&cluster=west&via=");
        assert!(connect.starts_with(&start), "{connect}");
        let (status, location) = region.get("/v1/live?cluster=west&table=t").await;
        assert_eq!(status, 307);
        assert!(location.as_str().unwrap().starts_with(&format!("{url}/v1/live?cluster=west&table=t&via=")));
    }
    let (status, problem) = region.get("/v1/live/address?romm=goal").await;
    assert_eq!((status, problem["detail"].as_str().unwrap().contains("romm")), (400, true));
    region.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn joins_above_the_limit_are_told_to_try_again() {
    let settings = Settings { joins_per_second: 2, ..Settings::default() };
    let region = Region::start(&[("a", "1")], &settings).await;
    let mut statuses = BTreeMap::new();
    for _ in 0..10 {
        *statuses.entry(region.get("/v1/live").await.0).or_insert(0) += 1;
    }
    assert!(statuses[&307] >= 2 && statuses[&503] >= 1, "{statuses:?}");
    region.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_subscriber_sends_its_clients_away_and_gets_no_new_ones() {
    let region = Region::start(&[("a", "1"), ("a", "2")], &Settings::default()).await;
    let at = |name: &str| region.members.alive().into_iter().find(|m| m.subscriber.as_deref() == Some(name));
    let first = at("1").unwrap().url.unwrap().replace("http://", "");
    let (mut socket, mut events) = (connect(&first, "").await, Events::open(&first, "", None).await);
    assert_eq!(region.drain(reqwest::Method::PUT, "a", "nobody").await, 404);
    assert_eq!(region.drain(reqwest::Method::PUT, "a", "1").await, 204);
    let told = heard(&mut socket).await;
    assert_eq!(told["type"], "drain");
    assert!((1_000..=10_000).contains(&told["retry"].as_u64().unwrap()), "{told}");
    let event = events.event().await.unwrap();
    assert!(event.starts_with("retry: ") && event.contains("\nevent: drain\ndata: {\"retry\":"), "{event}");
    // They are served until they are to be elsewhere.
    region.bench.close(&[(2, "main")]).await;
    assert_eq!(heard(&mut socket).await["window"]["end"], "1970-01-01T00:00:02Z");
    assert_eq!(events.window().await["window"]["end"], "1970-01-01T00:00:02Z");
    until(|| at("1").is_some_and(|member| member.state == "draining")).await;
    for _ in 0..4 {
        assert_eq!(region.get("/v1/live/address").await.1["subscriber"], "2");
    }
    let (status, _) = tokio::join!(reqwest::get(format!("http://{first}/v1/live")), async {});
    assert_eq!(status.unwrap().status(), 503);
    assert_eq!(region.drain(reqwest::Method::DELETE, "a", "1").await, 204);
    until(|| at("1").is_some_and(|member| member.state == "live")).await;
    assert_eq!(
        Events::open(&first, "?last=1", None).await.window().await["window"]["end"],
        "1970-01-01T00:00:02Z"
    );
    region.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_topology_lists_who_is_there_and_forgets_who_left() {
    let settings = Settings { placement: Placement::None, ..Settings::default() };
    let region = Region::start(&[("west", "one")], &settings).await;
    let (_, topology) = region.get("/v1/topology").await;
    let listed = &topology["clusters"][0];
    assert_eq!((&listed["name"], &listed["subscribers"][0]["name"]), (&json!("west"), &json!("one")));
    assert_eq!(region.get("/v1/live").await.0, 404);
    let (_, bench) = Bench::in_memory().await;
    let (tasks, leaving) = (Tasks::new(), Tasks::new());
    let members = Members::follow(Arc::clone(&bench.log), &tasks);
    let heart = Heart::start(Arc::clone(&bench.log), &leaving);
    let log = Arc::clone(&bench.log);
    let subscriber = Subscriber::start(log, "west", "one", "http://there", &settings, &heart, &leaving);
    until(|| subscriber.ready().is_ok() && heart.ready().is_ok() && members.alive().len() == 1).await;
    leaving.stop(Duration::from_secs(5)).await;
    until(|| members.alive().is_empty()).await;
    region.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_subscriber_says_so_while_its_heart_still_beats() {
    let region = Region::start(&[], &Settings::default()).await;
    let log = || Arc::clone(&region.bench.log);
    let (connections, settings) = (Tasks::new(), Settings::default());
    let heart = Heart::start(log(), &region.tasks);
    let _stopping = Subscriber::start(log(), "west", "1", "http://there", &settings, &heart, &connections);
    let says = |state: &str| region.members.alive().iter().any(|member| member.state == state);
    until(|| says("live")).await;
    connections.cancel();
    until(|| says("draining") && !says("live")).await;
    assert_eq!(region.get("/v1/live/address").await.0, 503);
    connections.stop(Duration::from_secs(5)).await;
    region.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_tells_pages_of_any_origin_that_it_places_nobody() {
    let tasks = Tasks::new();
    let address = serve_on_loopback(subscriber_router(Vec::new(), Live::default()), &tasks).await;
    let answer = reqwest::get(format!("http://{address}/v1/live/address?room=main")).await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["access-control-allow-origin"]), (404, &any()));
    let answer = reqwest::get(format!("http://{address}/v1/live")).await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["access-control-allow-origin"]), (503, &any()));
    assert_eq!(answer.headers()["access-control-expose-headers"], "retry-after");
    tasks.stop(Duration::from_secs(5)).await;
}

fn any() -> reqwest::header::HeaderValue {
    reqwest::header::HeaderValue::from_static("*")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_always_behind_is_told_to_leave_all_the_same() {
    let region = Region::start(&[("a", "1")], &Settings::default()).await;
    region.bench.close(&[(2, "main")]).await;
    Events::open(&region.front, "?last=1", None).await.window().await;
    // A window waits for it from the start.
    let request = LiveRequest::parse([("last", "1")], None).unwrap();
    let seat = region.subscribers[0].reserve(&request).unwrap().join_waiting(&request);
    region.drain(reqwest::Method::PUT, "a", "1").await;
    until(|| region.subscribers[0].is_draining()).await;
    let mut events = Box::pin(sse::stream(seat, None, false));
    for said in ["event: drain", "\"rows\""] {
        let event = events.next().await.unwrap().unwrap();
        assert!(std::str::from_utf8(&event).unwrap().contains(said), "{event:?}");
    }
    drop(events);
    region.stop().await;
}

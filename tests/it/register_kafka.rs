//! Registered clients on Kafka, every role a process: a subscriber is killed, another one drains, and what each client has
//! goes with it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::register::{assert_ids_rise, register, windows_of};
use crate::standby::{program, role};
use crate::support::binary::{Running, emostream};
use crate::support::books;
use crate::support::endpoint::{Endpoint, Posted};
use crate::support::kafka::Broker;
use crate::support::load::Load;
use crate::watch::Watching;

/// From the death of a subscriber to its clients' next window: 3 s until it is missed, and as much again because the tests
/// share the machine.
const MOVED: Duration = Duration::from_secs(8);
/// How long any other step may take.
const LIMIT: Duration = Duration::from_secs(30);
const CLIENTS: usize = 6;

/// By subscriber: its state, and how many clients are registered there.
fn registered(topology: &Value) -> BTreeMap<String, (String, u64)> {
    let subscribers = topology["clusters"][0]["subscribers"].as_array().into_iter().flatten();
    let one = |subscriber: &Value| {
        let text = |field: &str| subscriber[field].as_str().unwrap().to_owned();
        (text("name"), (text("state"), subscriber["registered"].as_u64().unwrap()))
    };
    subscribers.map(one).collect()
}

/// Waits until every endpoint got more windows than it has now.
async fn more(endpoints: &[&Endpoint], limit: Duration) {
    let before: Vec<usize> = endpoints.iter().map(|endpoint| endpoint.windows().len()).collect();
    let began = Instant::now();
    while endpoints.iter().zip(&before).any(|(endpoint, before)| endpoint.windows().len() <= before + 2) {
        assert!(began.elapsed() < limit, "no window for {limit:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// How many windows came more than once.
fn twice(posted: &[Posted]) -> usize {
    posted.len() - windows_of(posted).into_iter().collect::<BTreeSet<_>>().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn registered_clients_move_from_who_dies_or_drains_and_go_on_where_they_were() {
    let (broker, dir) = (Broker::start(), program());
    let start = |args: &[&str]| {
        let common = ["--kafka", &broker.address, "--listen", "127.0.0.1:0"];
        Running::start(emostream(dir.path()).args(args).args(common))
    };
    let engine = role(dir.path(), &broker, "engine");
    let (ingest, query, front) = (start(&["ingest"]), start(&["query"]), start(&["publish"]));
    let cluster = start(&["cluster", "west"]);
    let mut subscribers: BTreeMap<String, Running> = BTreeMap::new();
    for _ in 0..3 {
        let subscriber = start(&["subscribe", "--cluster", "west"]);
        subscribers.insert(subscriber.url("").replace("http://", ""), subscriber);
    }
    for process in [&engine, &ingest, &query, &front, &cluster].into_iter().chain(subscribers.values()) {
        process.ready().await;
    }
    let live = |topology: &Value| registered(topology).values().filter(|one| one.0 == "live").count();
    front.poll("/v1/topology", |topology| live(topology) == 3).await;

    let mut endpoints = Vec::new();
    for number in 0..CLIENTS {
        let endpoint = Endpoint::start().await;
        let body =
            json!({"client_id": format!("board-{number}"), "host": "localhost", "port": endpoint.port});
        let (status, answer) = register(&front.url("/register"), &body).await;
        assert_eq!((status, &answer["cluster"]), (201, &json!("west")), "{answer}");
        endpoints.push((answer["subscriber"].as_str().unwrap().to_owned(), endpoint));
    }
    let counts = |topology: &Value| registered(topology).into_values().map(|one| one.1).collect::<Vec<_>>();
    front.poll("/v1/topology", |topology| counts(topology) == [2, 2, 2]).await;
    let (_address, address) = watch::channel(Some(ingest.url("")));
    let load = Load::start(&address, "/v1/tables/reactions", &["left", "right"]);
    let all: Vec<&Endpoint> = endpoints.iter().map(|(_, endpoint)| endpoint).collect();
    more(&all, LIMIT).await;
    // By way of the front's redirect.
    let watching = Watching::start(&front.url(""), &["--room", "right"]);
    assert!(watching.line().contains("right-"));

    let doomed = endpoints[0].0.clone();
    subscribers.get_mut(&doomed).unwrap().kill();
    let began = Instant::now();
    let orphans: Vec<&Endpoint> =
        endpoints.iter().filter(|(name, _)| *name == doomed).map(|(_, endpoint)| endpoint).collect();
    assert_eq!(orphans.len(), 2);
    more(&orphans, MOVED).await;
    eprintln!("clients of a dead subscriber were served again after {:?}", began.elapsed());
    front.poll("/v1/topology", |topology| counts(topology) == [3, 3]).await;

    let drained = subscribers.keys().find(|name| **name != doomed).unwrap().clone();
    let drain = front.url(&format!("/v1/topology/west/{drained}/drain"));
    assert_eq!(reqwest::Client::new().put(drain).send().await.unwrap().status(), 204);
    front
        .poll("/v1/topology", |topology| {
            registered(topology).get(&drained) == Some(&("draining".to_owned(), 0))
        })
        .await;
    front.poll("/v1/topology", |topology| counts(topology).iter().sum::<u64>() == CLIENTS as u64).await;
    more(&all, LIMIT).await;

    books::settle(&query, "by_request", &load.stop().await).await;
    let closed = closed(&query).await;
    for (name, endpoint) in &endpoints {
        let told = |endpoint: &Endpoint| windows_of(&endpoint.windows()).into_iter().collect::<BTreeSet<_>>();
        endpoint.until("every window is told", |endpoint| told(endpoint) == closed).await;
        let posted = endpoint.posted();
        assert!(posted.iter().all(|one| one.message.get("type").is_none()), "no gap");
        if *name == doomed {
            // What was acknowledged and not written down yet: a second's windows of two rooms, and one on its way.
            assert!(twice(&posted) <= 6, "{} came twice", twice(&posted));
        } else {
            assert_eq!(twice(&posted), 0, "nothing comes twice when a subscriber drains");
            assert_ids_rise(&posted);
        }
    }
}

/// Room and start of every window that closed.
pub(crate) async fn closed(query: &Running) -> BTreeSet<(String, String)> {
    let windows = books::all_results(query, "by_request").await;
    windows
        .iter()
        .flat_map(|window| {
            let start = emostream::reaction::time::format_rfc3339(window.window.start);
            window.rows.iter().map(move |row| (row["room"].as_str().unwrap().to_owned(), start.clone()))
        })
        .collect()
}

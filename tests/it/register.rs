//! Clients with an HTTP endpoint of their own: real ones, that answer, do not answer, or are where none may be.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use emostream::http::{self, Origins};
use emostream::log::Log;
use emostream::log::embedded::{self, EmbeddedLog};
use emostream::log::program::ProgramView;
use emostream::publish::{AllowList, Front, Settings, Tier, front_router, live_router, register_router};
use emostream::shutdown::Tasks;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::support::binary::Running;
use crate::support::by_request;
use crate::support::endpoint::{Answer, Endpoint, Posted};
use crate::support::load::Load;
use crate::support::tier::{close, create_sink, program};

const LIMIT: Duration = Duration::from_secs(60);

/// A log, and the tier on it that is started and stopped.
struct House {
    log: Arc<dyn Log>,
    settings: Settings,
    closed_s: i64,
    tier: Option<Started>,
    _folder: TempDir,
}

struct Started {
    tasks: Tasks,
    url: String,
    _program: watch::Sender<Arc<ProgramView>>,
}

impl House {
    async fn new(settings: Settings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log: Arc<dyn Log> = EmbeddedLog::open(folder.path(), embedded::Settings::default()).unwrap();
        create_sink(log.as_ref()).await;
        let mut house = Self { log, settings, closed_s: 0, tier: None, _folder: folder };
        house.start().await;
        house
    }

    async fn small() -> Self {
        Self::new(Settings { clusters: 1, subscribers_per_cluster: 1, ..Settings::default() }).await
    }

    async fn start(&mut self) {
        let (tasks, program) = (Tasks::new(), program());
        let tier = Tier::start(&self.log, program.subscribe(), "http://127.0.0.1", &self.settings, &tasks);
        let begun = Instant::now();
        while tier.ready().is_err() {
            assert!(begun.elapsed() < LIMIT, "{:?}", tier.ready());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let front = Front::new(tier.members(), tier.registrations(), &self.settings, Origins::default());
        let listener = http::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = live_router(tier.subscribers())
            .merge(front_router(Arc::clone(&front)))
            .merge(register_router(front));
        http::serve(listener, router, &tasks);
        self.tier = Some(Started { tasks, url, _program: program });
    }

    async fn stop(&mut self) {
        let tier = self.tier.take().unwrap();
        assert!(tier.tasks.stop(Duration::from_secs(8)).await, "the tier stops in time");
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.tier.as_ref().unwrap().url)
    }

    /// Status and body of a registration.
    async fn register(&self, body: Value) -> (u16, Value) {
        register(&self.url("/register"), &body).await
    }

    async fn delete(&self, client_id: &str) -> u16 {
        let request = reqwest::Client::new().delete(self.url(&format!("/register/{client_id}")));
        request.send().await.unwrap().status().as_u16()
    }

    /// Commits the next window of each of these rooms.
    async fn close(&mut self, rooms: &[&str]) {
        self.closed_s += 1;
        let mut writer = self.log.fence("engine").await.unwrap();
        for room in rooms {
            close(writer.as_mut(), self.closed_s, room).await;
        }
    }

    /// How many clients each subscriber says to have registered, once they are `count` together.
    async fn registered(&self, count: u64) -> Vec<u64> {
        let begun = Instant::now();
        loop {
            let topology: Value = reqwest::get(self.url("/v1/topology")).await.unwrap().json().await.unwrap();
            let clusters = topology["clusters"].as_array().unwrap().iter();
            let subscribers = clusters.flat_map(|cluster| cluster["subscribers"].as_array().unwrap());
            let registered: Vec<u64> = subscribers.map(|one| one["registered"].as_u64().unwrap()).collect();
            if registered.iter().sum::<u64>() == count {
                return registered;
            }
            assert!(begun.elapsed() < LIMIT, "{topology}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Status and body of a registration.
pub(crate) async fn register(url: &str, body: &Value) -> (u16, Value) {
    let answer = reqwest::Client::new().post(url).json(body).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

fn at(endpoint: &Endpoint, client_id: &str) -> Value {
    json!({"client_id": client_id, "host": "127.0.0.1", "port": endpoint.port})
}

/// Room and end of each window, in the order in which it came.
fn told(posted: &[Posted]) -> Vec<String> {
    let one = |posted: &Posted| {
        let (room, count) = (posted.message["room"].as_str().unwrap(), &posted.message["rows"][0]["count"]);
        format!("{room} {}", count.as_i64().unwrap() / 10)
    };
    posted.iter().map(one).collect()
}

#[track_caller]
pub(crate) fn assert_ids_rise(posted: &[Posted]) {
    let sequence = |posted: &Posted| posted.id().split_once('-').unwrap().1.parse::<u64>().unwrap();
    let ids: Vec<u64> = posted.iter().map(sequence).collect();
    assert!(ids.windows(2).all(|two| two[0] < two[1]), "{ids:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_registers_gets_every_window_once_and_in_order() {
    let mut house =
        House::new(Settings { clusters: 2, subscribers_per_cluster: 2, ..Settings::default() }).await;
    let endpoints = [Endpoint::start().await, Endpoint::start().await, Endpoint::start().await];
    let [all, of_room, of_table] = &endpoints;
    let (status, answer) = house.register(at(all, "all")).await;
    let place = json!({"client_id": "all", "cluster": "cluster-1", "subscriber": "subscriber-1"});
    assert_eq!((status, answer), (201, place));
    let mut of_other = at(of_room, "room");
    of_other["room"] = json!("other");
    of_other["host"] = json!("localhost");
    assert_eq!(house.register(of_other).await.1["subscriber"], "subscriber-2");
    let mut of_none = at(of_table, "table");
    of_none["table"] = json!("elsewhere");
    assert_eq!(house.register(of_none).await.1["cluster"], "cluster-2");
    assert_eq!(house.registered(3).await, [1, 1, 1, 0]);

    for _ in 0..30 {
        house.close(&["main", "other", "third"]).await;
    }
    all.until("every window comes", |all| all.windows().len() >= 90).await;
    of_room.until("every window of the room comes", |one| one.windows().len() >= 30).await;
    let expected: Vec<String> =
        (1..31).flat_map(|end| ["main", "other", "third"].map(|room| format!("{room} {end}"))).collect();
    assert_eq!(told(&all.posted()), expected);
    let expected: Vec<String> = (1..31).map(|end| format!("other {end}")).collect();
    assert_eq!(told(&of_room.posted()), expected);
    assert!(of_table.posted().is_empty());
    assert_ids_rise(&all.posted());
    assert_eq!(all.most_under_way(), 1);
    assert!(all.posted().iter().all(|one| one.host == format!("127.0.0.1:{}", all.port)));
    assert!(of_room.posted().iter().all(|one| one.host == format!("localhost:{}", of_room.port)));
    let first = &all.posted()[0].message;
    assert_eq!(
        (&first["table"], &first["final"], &first["pace_ms"]),
        (&json!("emoji_counts"), &json!(true), &json!(1000))
    );
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_registers_again_keeps_the_place_and_moves_the_endpoint_and_who_leaves_is_gone() {
    let mut house = House::new(Settings { clusters: 1, ..Settings::default() }).await;
    let (one, other) = (Endpoint::start().await, Endpoint::start().await);
    let (_, first) = house.register(at(&one, "a")).await;
    house.register(at(&one, "b")).await;
    house.registered(2).await;
    house.close(&["main"]).await;
    one.until("both get it", |one| one.windows().len() == 2).await;
    assert_eq!(house.register(at(&other, "a")).await, (200, first));
    house.close(&["main"]).await;
    other.until("it goes to the new endpoint", |other| other.windows().len() == 1).await;
    assert_eq!(told(&other.posted()), ["main 2"]);
    one.until("the other client stays where it is", |one| one.windows().len() == 3).await;
    assert_eq!(house.registered(2).await, [1, 1, 0]);

    assert_eq!(
        (house.delete("a").await, house.delete("a").await, house.delete("nobody").await),
        (204, 404, 404)
    );
    assert_eq!(house.registered(1).await, [0, 1, 0]);
    house.close(&["main"]).await;
    one.until("the other client is served on", |one| one.windows().len() == 4).await;
    assert_eq!(other.posted().len(), 1);
    // Who comes back is new, and begins with what comes.
    assert_eq!(house.register(at(&other, "a")).await.0, 201);
    house.registered(2).await;
    house.close(&["main"]).await;
    let ends = |other: &Endpoint| told(&other.windows());
    other.until("it is served again", |other| ends(other).last().is_some_and(|last| last == "main 4")).await;
    // Its subscriber may have read the window before only then.
    assert!(
        [vec!["main 2", "main 4"], vec!["main 2", "main 3", "main 4"]].iter().any(|one| *one == ends(&other))
    );
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_outside_the_allowed_networks_is_refused_by_address_and_by_name() {
    let mut house = House::small().await;
    for host in ["10.0.0.1", "169.254.169.254", "0.0.0.0", "::ffff:10.0.0.1", "[fe80::1]", "2130706434.0.0.1"]
    {
        let (status, problem) = house.register(json!({"client_id": "a", "host": host, "port": 80})).await;
        assert!(status == 403 || host.starts_with('2') && status == 400, "{host}: {status} {problem}");
    }
    let (status, problem) = house.register(json!({"client_id": "a", "host": "10.0.0.1", "port": 80})).await;
    assert_eq!((status, &problem["type"]), (403, &json!("about:blank#outside-allowed-networks")));
    assert!(problem["detail"].as_str().unwrap().contains("127.0.0.0/8"), "{problem}");
    house.stop().await;

    // A name is judged by the address it has.
    house.settings.register_allow = AllowList::try_from(vec!["192.0.2.0/24".to_owned()]).unwrap();
    house.start().await;
    let (status, _) = house.register(json!({"client_id": "a", "host": "localhost", "port": 80})).await;
    assert_eq!(status, 403);
    let (status, problem) =
        house.register(json!({"client_id": "a", "host": "no-such-name.invalid", "port": 80})).await;
    assert_eq!(status, 400, "{problem}");
    assert_eq!(house.registered(0).await, [0]);
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_that_is_wrong_foreign_or_one_too_many_is_told_why() {
    let mut house = House::new(Settings {
        clusters: 1,
        subscribers_per_cluster: 1,
        max_registered: 1,
        ..Settings::default()
    })
    .await;
    let endpoint = Endpoint::start().await;
    let (status, problem) = house.register(json!({"client_id": "a", "host": "127.0.0.1"})).await;
    assert_eq!((status, problem["detail"].as_str().unwrap().contains("`port`")), (400, true));
    let long = json!({"client_id": "a", "host": "127.0.0.1", "port": 1, "room": "x".repeat(20_000)});
    assert_eq!(house.register(long).await.0, 413);
    let foreign =
        reqwest::Client::new().post(house.url("/register")).header("origin", "https://evil.example");
    assert_eq!(foreign.json(&at(&endpoint, "a")).send().await.unwrap().status(), 403);
    let foreign =
        reqwest::Client::new().delete(house.url("/register/a")).header("origin", "https://evil.example");
    assert_eq!(foreign.send().await.unwrap().status(), 403);
    assert_eq!(house.register(at(&endpoint, "a")).await.0, 201);
    let request = reqwest::Client::new().post(house.url("/register")).json(&at(&endpoint, "b"));
    let answer = request.send().await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &"60".parse().unwrap()));
    assert_eq!(house.register(at(&endpoint, "a")).await.0, 200);
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_not_followed() {
    let mut house = House::small().await;
    let (endpoint, elsewhere) = (Endpoint::start().await, Endpoint::start().await);
    endpoint.answer(Answer::Elsewhere(format!("http://127.0.0.1:{}/", elsewhere.port)));
    house.register(at(&endpoint, "a")).await;
    house.registered(1).await;
    house.close(&["main"]).await;
    endpoint.until("it is tried again", |endpoint| endpoint.posted().len() >= 2).await;
    assert!(elsewhere.posted().is_empty());
    endpoint.answer(Answer::Status(204));
    endpoint.until("it is taken", |endpoint| endpoint.windows().len() == 1).await;
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_everything_keeps_registrations_and_what_each_has() {
    let mut house = House::new(Settings { clusters: 2, ..Settings::default() }).await;
    let (one, other) = (Endpoint::start().await, Endpoint::start().await);
    house.register(at(&one, "one")).await;
    let (_, place) = house.register(at(&other, "other")).await;
    house.registered(2).await;
    for round in 0..4 {
        house.close(&["main", "second"]).await;
        if round % 2 == 0 {
            one.until("it comes", |one| one.windows().len() >= round * 4 + 2).await;
        }
        house.stop().await;
        house.close(&["main", "second"]).await;
        house.start().await;
    }
    assert_eq!(house.register(at(&other, "other")).await, (200, place));
    let expected: Vec<String> =
        (1..=8).flat_map(|end| ["main", "second"].map(|room| format!("{room} {end}"))).collect();
    for endpoint in [&one, &other] {
        endpoint.until("nothing is missing", |endpoint| endpoint.windows().len() >= 16).await;
        assert_eq!(told(&endpoint.posted()), expected);
    }
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_again_while_nobody_of_its_cluster_is_there_gets_another_place_and_goes_on() {
    let settings = Settings { clusters: 2, subscribers_per_cluster: 1, ..Settings::default() };
    let mut house = House::new(settings).await;
    let (one, other) = (Endpoint::start().await, Endpoint::start().await);
    assert_eq!(house.register(at(&one, "one")).await.1["cluster"], "cluster-1");
    assert_eq!(house.register(at(&other, "other")).await.1["cluster"], "cluster-2");
    house.registered(2).await;
    house.close(&["main"]).await;
    other.until("the first window comes", |other| other.windows().len() == 1).await;
    house.stop().await;
    house.close(&["main"]).await;
    house.settings.clusters = 1;
    house.start().await;
    one.until("the cluster that is there goes on", |one| one.windows().len() == 2).await;
    assert_eq!(told(&other.posted()), ["main 1"]);
    let begun = Instant::now();
    while house.register(at(&other, "other")).await.1["cluster"] != "cluster-1" {
        assert!(begun.elapsed() < LIMIT, "a dead cluster keeps its client");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    other.until("it goes on where it was", |other| other.windows().len() == 2).await;
    assert_eq!(told(&other.posted()), ["main 1", "main 2"]);
    assert_eq!(house.registered(2).await, [2]);
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_fails_is_tried_again_and_given_up_and_others_do_not_notice() {
    let settings = Settings {
        clusters: 1,
        subscribers_per_cluster: 1,
        endpoint_timeout_ms: 300,
        endpoint_failures: 4,
        ..Settings::default()
    };
    let mut house = House::new(settings).await;
    let [good, failing, hanging, gone, recovering] = [
        Endpoint::start().await,
        Endpoint::start().await,
        Endpoint::start().await,
        Endpoint::start().await,
        Endpoint::start().await,
    ];
    for (endpoint, id, answer) in [
        (&good, "good", Answer::Status(200)),
        (&failing, "failing", Answer::Status(500)),
        (&hanging, "hanging", Answer::Nothing),
        (&gone, "gone", Answer::Status(410)),
        (&recovering, "recovering", Answer::Status(503)),
    ] {
        endpoint.answer(answer);
        assert_eq!(house.register(at(endpoint, id)).await.0, 201);
    }
    house.registered(5).await;
    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    for _ in 0..100 {
        house.close(&["main"]).await;
        let closed = Instant::now();
        let count = usize::try_from(house.closed_s).unwrap();
        good.until("the good one gets every window", |good| good.windows().len() == count).await;
        slowest = slowest.max(closed.elapsed());
        if recovering.posted().len() == 2 {
            recovering.answer(Answer::Status(200));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    for (endpoint, posts) in [(&failing, 4), (&hanging, 4), (&gone, 1)] {
        endpoint.until("it is tried as often as is said", |endpoint| endpoint.posted().len() >= posts).await;
    }
    assert!(begun.elapsed() > Duration::from_millis(250 + 500 + 1_000), "the waits between are kept");
    house.registered(2).await;
    for (endpoint, posts) in [(&failing, 4), (&hanging, 4), (&gone, 1)] {
        assert_eq!(endpoint.posted().len(), posts);
        assert_eq!(told(&endpoint.posted()), vec!["main 1"; posts], "the same message again and again");
    }
    assert_eq!(
        (house.delete("failing").await, house.delete("hanging").await, house.delete("gone").await),
        (404, 404, 404)
    );
    // What waited for the one that came back is bounded, and nothing is passed over in silence.
    recovering
        .until("it is up to date", |one| {
            one.windows().last().is_some_and(|last| told(std::slice::from_ref(last)) == ["main 100"])
        })
        .await;
    let windows = recovering.windows();
    assert_ids_rise(&windows);
    let skipped: u64 = windows.iter().map(|one| one.message["skipped"].as_u64().unwrap_or(0)).sum();
    assert_eq!(windows.len() as u64 + skipped, 100);
    house.stop().await;
}

/// `emostream up` on its own folder, with a query that closes windows every half second.
fn up(dir: &TempDir) -> Running {
    Running::up(dir.path(), &["--sql", "sql"])
}

/// The windows that are readable, by room and start.
async fn results(process: &Running) -> BTreeSet<(String, String)> {
    let windows = process.windows("by_request", |windows| !windows.is_empty()).await;
    let mut found = BTreeSet::new();
    for window in windows {
        for row in window["rows"].as_array().unwrap() {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            found.insert((text(&row["room"]), text(&window["start"])));
        }
    }
    found
}

/// Room and start of each window, in the order in which it came.
pub(crate) fn windows_of(posted: &[Posted]) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    posted.iter().map(|one| (text(&one.message["room"]), text(&one.message["window"]["start"]))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn up_posts_on_after_it_was_stopped_and_after_it_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("sql")).unwrap();
    std::fs::write(dir.path().join("sql/tables.sql"), by_request::TABLES).unwrap();
    std::fs::write(dir.path().join("sql/by_request.sql"), by_request::QUERY).unwrap();
    let (endpoint, address) = (Endpoint::start().await, watch::Sender::new(None));
    let mut process = up(&dir);
    process.ready().await;
    let (status, answer) = register(&process.url("/register"), &at(&endpoint, "board")).await;
    assert_eq!(status, 201, "{answer}");
    let load = Load::start(&address.subscribe(), "/v1/tables/reactions", &["left", "right"]);
    let more = |count: usize| {
        let before = endpoint.windows().len();
        endpoint.until("windows come", move |endpoint| endpoint.windows().len() >= before + count)
    };
    address.send_replace(Some(process.url("")));
    more(6).await;
    address.send_replace(None);
    assert_eq!(process.terminate().await, Some(0));
    let stopped = endpoint.posted();
    assert_eq!(windows_of(&stopped).len(), windows_of(&stopped).into_iter().collect::<BTreeSet<_>>().len());

    process = up(&dir);
    process.ready().await;
    let after_stop = endpoint.posted();
    address.send_replace(Some(process.url("")));
    more(6).await;
    assert_ids_rise(&endpoint.windows());
    assert!(endpoint.posted().len() >= after_stop.len() + 6);
    address.send_replace(None);
    process.kill();

    process = up(&dir);
    process.ready().await;
    address.send_replace(Some(process.url("")));
    more(6).await;
    load.stop().await;
    // Everything that closed was told, and what was told twice was told around the kill.
    let all = results(&process).await;
    endpoint
        .until("nothing is missing", |endpoint| {
            let told: BTreeSet<_> = windows_of(&endpoint.windows()).into_iter().collect();
            all.is_subset(&told)
        })
        .await;
    let posted = endpoint.posted();
    assert!(posted.iter().all(|one| one.is_acknowledged && one.message.get("type").is_none()));
    let twice = posted.len() - windows_of(&posted).into_iter().collect::<BTreeSet<_>>().len();
    assert!(twice <= 8, "{twice} windows of a second came twice");
}

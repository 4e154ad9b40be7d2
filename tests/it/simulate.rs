//! The simulated crowd against a small server that is honest, or is not: what it must notice, it notices.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::extract::{FromRequestParts, Request, State};
use axum::http::{StatusCode, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use emostream::clock::wall_ns;
use emostream::reaction::time::format_rfc3339;
use emostream::shutdown::Tasks;
use emostream::simulate::crowd::{Crowd, Shape};
use emostream::simulate::tally::Tally;
use emostream::simulate::{self, Failure, Plan, Report, Transport};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

/// What the server does wrong.
#[derive(Clone, Copy, Default)]
struct Faults {
    /// Every so many requests one is asked to come back later.
    busy_every: Option<u64>,
    /// Every so many requests one is accepted and forgotten.
    loses_every: Option<u64>,
    /// Every window is sent twice.
    sends_twice: bool,
    /// It has live streams and nothing else, at another place than is asked for.
    only_sends_on: bool,
}

struct Server {
    faults: Faults,
    requests: AtomicU64,
    rows: AtomicU64,
    windows: broadcast::Sender<String>,
}

async fn take_rows(State(server): State<Arc<Server>>, Json(rows): Json<Vec<Value>>) -> Response {
    let number = server.requests.fetch_add(1, SeqCst);
    let hits = |every: Option<u64>| every.is_some_and(|every| number % every == every - 1);
    if hits(server.faults.busy_every) {
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "0")], "{}").into_response();
    }
    assert!(rows.iter().all(|row| row["emoji_type"].is_string() && row["room"].is_string()));
    let count = rows.len() as u64;
    if !hits(server.faults.loses_every) {
        server.rows.fetch_add(count, SeqCst);
    }
    (StatusCode::ACCEPTED, Json(json!({"accepted": count}))).into_response()
}

async fn queries(State(server): State<Arc<Server>>) -> Json<Value> {
    let rows = server.rows.load(SeqCst);
    Json(json!({"queries": [{
        "name": "emoji_counts", "text": "INSERT INTO emoji_counts SELECT count(*) FROM reactions", "version": 1,
        "state": "running", "watermark": null, "lag_records": 0, "accepted": rows, "counted": rows, "filtered": 0,
        "late": 0, "future": 0, "bad": 0, "open": 0, "last_error": null,
    }]}))
}

async fn send_on(request: Request) -> Response {
    let location = format!("/elsewhere?{}", request.uri().query().unwrap_or_default());
    (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, location)]).into_response()
}

async fn live(State(server): State<Arc<Server>>, request: Request) -> Response {
    let mut windows = server.windows.subscribe();
    let (mut parts, _) = request.into_parts();
    if let Ok(upgrade) = WebSocketUpgrade::from_request_parts(&mut parts, &()).await {
        return upgrade.on_upgrade(async move |mut socket| {
            while let Ok(window) = windows.recv().await {
                if socket.send(Message::Text(window.into())).await.is_err() {
                    return;
                }
            }
        });
    }
    let events = futures::stream::unfold(windows, |mut windows| async {
        let window = windows.recv().await.ok()?;
        Some((Ok::<_, Infallible>(Event::default().data(window)), windows))
    });
    Sse::new(events.boxed()).into_response()
}

/// Starts the server on a free port; it ends with `tasks`.
async fn serve(faults: Faults, tasks: &Tasks) -> String {
    let (windows, _) = broadcast::channel(100);
    let server =
        Arc::new(Server { faults, requests: AtomicU64::default(), rows: AtomicU64::default(), windows });
    let routes = match faults.only_sends_on {
        true => Router::new().route("/v1/live", get(send_on)).route("/elsewhere", get(live)),
        false => Router::new()
            .route("/v1/tables/reactions", post(take_rows))
            .route("/v1/queries", get(queries))
            .route("/v1/live", get(live)),
    };
    let routes = routes.with_state(Arc::clone(&server));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stopped = tasks.token();
    tasks.spawn(async move {
        tokio::select! {
            served = axum::serve(listener, routes) => served.unwrap(),
            () = stopped.cancelled() => {}
        }
    });
    let ticking = tasks.token();
    tasks.spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        for sequence in 0_u64.. {
            tokio::select! {
                _ = ticks.tick() => {}
                () = ticking.cancelled() => return,
            }
            let (start, end) = (format_rfc3339(wall_ns() - 100_000_000), format_rfc3339(wall_ns()));
            let window = json!({
                "id": format!("e1-{sequence}"), "table": "emoji_counts", "room": "main",
                "window": {"start": start, "end": end}, "final": true, "pace_ms": 100, "rows": [],
            });
            for _ in 0..=u8::from(faults.sends_twice) {
                // An error says that nobody watches yet.
                server.windows.send(window.to_string()).ok();
            }
        }
    });
    format!("http://{address}")
}

fn plan(url: &str) -> Plan {
    let url: reqwest::Url = url.parse().unwrap();
    Plan {
        senders: 10,
        viewers: 20,
        rate: 5_000.0,
        ramp: 100.0,
        duration: Duration::from_secs(1),
        rooms: 2,
        shape: Shape::Match,
        batch: None,
        transport: Transport::Both,
        settle: Duration::from_millis(300),
        seed: 1,
        live_url: url.clone(),
        query_url: url.clone(),
        url,
    }
}

async fn simulate_against(faults: Faults) -> Report {
    let tasks = Tasks::new();
    let plan = plan(&serve(faults, &tasks).await);
    let report = run(plan).await.unwrap();
    assert!(tasks.stop(Duration::from_secs(5)).await);
    report
}

async fn run(plan: Plan) -> Result<Report, Failure> {
    let crowd = Arc::new(Crowd::new(plan.shape, plan.rate, plan.duration, plan.seed).unwrap());
    let tally = Arc::new(Tally::new(plan.senders));
    simulate::run(plan, crowd, tally, CancellationToken::new()).await
}

#[tokio::test]
async fn an_honest_server_is_verified() {
    let report = simulate_against(Faults { busy_every: Some(7), ..Faults::default() }).await;
    assert!(report.verified, "{report}");
    let sent = report.sent.as_ref().unwrap();
    assert_eq!(sent.accepted, 5_000, "{report}");
    assert!(sent.busy > 0, "refused requests are sent again: {report}");
    assert_eq!((report.watched.joined, report.watched.failed_joins), (20, 0), "{report}");
    assert!(report.watched.deliveries >= 20, "{report}");
    assert_eq!(report.queries[0].by_others, 0, "{report}");
}

#[tokio::test]
async fn without_senders_it_watches_and_goes_where_it_is_sent() {
    let tasks = Tasks::new();
    let url = serve(Faults { only_sends_on: true, ..Faults::default() }, &tasks).await;
    let report = run(Plan { senders: 0, ..plan(&url) }).await.unwrap();
    assert!(tasks.stop(Duration::from_secs(5)).await);
    assert!(report.verified && report.sent.is_none() && report.queries.is_empty(), "{report}");
    assert_eq!((report.watched.joined, report.watched.failed_joins), (20, 0), "{report}");
    assert!(report.watched.deliveries >= 20 && report.watched.deliveries_per_s > 0.0, "{report}");
    let latency_ms = report.watched.latency_ms.unwrap();
    assert!(latency_ms.p50 <= latency_ms.p99 && latency_ms.p99 <= latency_ms.max, "{report}");
}

#[tokio::test]
async fn more_connections_than_a_process_may_have_are_refused() {
    match run(Plan { viewers: 19_000, ..plan("http://127.0.0.1:1") }).await {
        Err(Failure::Plan(detail)) => assert!(detail.contains("start several"), "{detail}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_server_that_forgets_accepted_reactions_is_caught() {
    let report = simulate_against(Faults { loses_every: Some(40), ..Faults::default() }).await;
    assert!(!report.verified, "{report}");
    assert!(report.problems[0].contains("were answered 202, but it knows of"), "{report}");
}

#[tokio::test]
async fn a_server_that_delivers_twice_is_caught() {
    let report = simulate_against(Faults { sends_twice: true, ..Faults::default() }).await;
    assert!(!report.verified, "{report}");
    assert!(report.problems[0].contains("reached a viewer twice"), "{report}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    match run(plan(&url)).await {
        Err(Failure::Outside(detail)) => assert!(detail.contains("refused"), "{detail}"),
        other => panic!("{other:?}"),
    }
}

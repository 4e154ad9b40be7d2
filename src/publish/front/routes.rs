//! What a front answers: who is there, where to connect, who is registered, who is to leave.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, delete, get, post, put};
use axum::{Json, Router};
use serde_json::json;

use super::register::{Refusal, TakenIn};
use super::{Front, Mode};
use crate::http::{Problem, TimelyBody, shown_anywhere};
use crate::log::LogError;
use crate::publish::members::{MemberState, Topology};
use crate::publish::placement::Refused;
use crate::publish::routes::read_request;

/// The longest registration; an id, a host and two names fit many times.
const MAX_REGISTRATION_BYTES: usize = 16 << 10;

fn refused(refused: Refused) -> Problem {
    let (kind, detail, retry_s) = match refused {
        Refused::Nobody => ("nobody-there", "no subscriber is live; try again", 1),
        Refused::TooMany { retry_s } => {
            ("too-many-joins", "more clients join than [publish] joins_per_second allows; try again", retry_s)
        }
    };
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, kind, detail).retry_after(retry_s)
}

/// What a front answers besides live streams: who is there, where to connect, who is to leave.
pub fn front_router(front: Arc<Front>) -> Router {
    let for_pages = Router::new()
        .route("/v1/topology", get(topology))
        .route("/v1/live/address", get(address))
        .route("/client.js", get(client_js))
        .layer(shown_anywhere());
    for_pages.route("/v1/topology/{cluster}/{subscriber}/drain", put(drain).delete(undrain)).with_state(front)
}

/// Registrations of clients with an HTTP endpoint of their own.
pub fn register_router(front: Arc<Front>) -> Router {
    Router::new()
        .route("/register", post(register))
        .route("/register/{client_id}", delete(unregister))
        .layer(DefaultBodyLimit::max(MAX_REGISTRATION_BYTES))
        .with_state(front)
}

/// What the `publish` role answers: all of the above, and live streams with the address of a subscriber.
pub fn publish_router(front: Arc<Front>) -> Router {
    let live =
        Router::new().route("/v1/live", any(redirect)).layer(shown_anywhere()).with_state(Arc::clone(&front));
    front_router(Arc::clone(&front)).merge(register_router(front)).merge(live)
}

async fn register(
    State(front): State<Arc<Front>>,
    headers: HeaderMap,
    TimelyBody(body): TimelyBody,
) -> Result<Response, Problem> {
    front.origins.check(&headers)?;
    let body = body.map_err(|rejection| {
        let detail =
            format!("{}; a registration has at most {MAX_REGISTRATION_BYTES} bytes", rejection.body_text());
        Problem::new(rejection.status(), "bad-registration", detail)
    })?;
    let TakenIn { client_id, cluster, subscriber, was_known } =
        front.register(&body).await.map_err(not_registered)?;
    let status = if was_known { StatusCode::OK } else { StatusCode::CREATED };
    let answer = json!({"client_id": client_id, "cluster": cluster, "subscriber": subscriber});
    Ok((status, Json(answer)).into_response())
}

async fn unregister(
    State(front): State<Arc<Front>>,
    headers: HeaderMap,
    Path(client_id): Path<String>,
) -> Result<StatusCode, Problem> {
    front.origins.check(&headers)?;
    if front.unregister(&client_id).await.map_err(not_registered)? {
        return Ok(StatusCode::NO_CONTENT);
    }
    let detail = format!("no client '{client_id}' is registered");
    Err(Problem::new(StatusCode::NOT_FOUND, "unknown-client", detail))
}

fn not_registered(refusal: Refusal) -> Problem {
    let later = |kind, detail| Problem::new(StatusCode::SERVICE_UNAVAILABLE, kind, detail).retry_after(1);
    match refusal {
        Refusal::Wrong(detail) => Problem::new(StatusCode::BAD_REQUEST, "bad-registration", detail),
        Refusal::Outside(detail) => Problem::new(StatusCode::FORBIDDEN, "outside-allowed-networks", detail),
        Refusal::Full(most) => {
            let detail = format!("{most} clients are registered, as many as [publish] max_registered allows");
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too-many-registered", detail).retry_after(60)
        }
        Refusal::LooksUp => {
            let detail =
                "as many names are being looked up as may be; try again, or write the host's address";
            later("too-many-lookups", detail.to_owned())
        }
        Refusal::NotPlaced(nobody) => refused(nobody),
        Refusal::NotReady(detail) => later("not-ready", detail),
        Refusal::Log(LogError::Refused(reason)) => Problem::new(StatusCode::BAD_REQUEST, "refused", reason),
        Refusal::Log(error) => later("log-unavailable", error.to_string()),
    }
}

async fn topology(State(front): State<Arc<Front>>) -> Json<Topology> {
    Json(Topology::of(front.members.alive()))
}

type Parameters = Result<Query<Vec<(String, String)>>, QueryRejection>;

/// That the question could be asked of a subscriber, and the region it names.
fn region(headers: &HeaderMap, parameters: Parameters) -> Result<Option<String>, Problem> {
    let cluster = parameters.as_ref().ok().and_then(|Query(parameters)| {
        parameters.iter().find(|(name, _)| name == "cluster").map(|(_, value)| value.clone())
    });
    match read_request(headers, parameters) {
        Ok(_) => Ok(cluster),
        Err(detail) => Err(Problem::new(StatusCode::BAD_REQUEST, "bad-parameter", detail)),
    }
}

async fn address(
    State(front): State<Arc<Front>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
    parameters: Parameters,
) -> Result<Response, Problem> {
    let cluster = region(&headers, parameters)?;
    let address = front.place(cluster.as_deref(), query.as_deref()).map_err(refused)?;
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(address)).into_response())
}

/// 307 for event streams. WebSocket clients mostly do not follow it; those ask for the address.
async fn redirect(
    State(front): State<Arc<Front>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
    parameters: Parameters,
) -> Result<Response, Problem> {
    if front.mode == Mode::None {
        let detail = "this front places no clients; GET /v1/topology lists the subscribers to connect to";
        return Err(Problem::new(StatusCode::NOT_FOUND, "no-streams-here", detail));
    }
    let cluster = region(&headers, parameters)?;
    let address = front.place(cluster.as_deref(), query.as_deref()).map_err(refused)?;
    let location = HeaderValue::from_str(&address.connect).map_err(|_| {
        let detail = format!("subscriber {} says an address that is none", address.subscriber);
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "bad-address", detail).retry_after(1)
    })?;
    let told = [(header::LOCATION, location), (header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    let hint = "connect to the Location; a WebSocket client asks GET /v1/live/address first\n";
    Ok((StatusCode::TEMPORARY_REDIRECT, told, hint).into_response())
}

async fn drain(front: State<Arc<Front>>, headers: HeaderMap, path: Path<(String, String)>) -> Response {
    set_drain(&front, &headers, &path, true).await
}

async fn undrain(front: State<Arc<Front>>, headers: HeaderMap, path: Path<(String, String)>) -> Response {
    set_drain(&front, &headers, &path, false).await
}

async fn set_drain(
    front: &Front,
    headers: &HeaderMap,
    (cluster, subscriber): &(String, String),
    drains: bool,
) -> Response {
    if let Err(problem) = front.origins.check(headers) {
        return problem.into_response();
    }
    let named =
        |member: &MemberState| member.cluster == *cluster && member.subscriber.as_ref() == Some(subscriber);
    if drains && !front.members.alive().iter().any(named) {
        let detail = format!("no subscriber {subscriber} of cluster {cluster}; GET /v1/topology lists them");
        return Problem::new(StatusCode::NOT_FOUND, "unknown-subscriber", detail).into_response();
    }
    match front.members.set_drain(cluster, subscriber, drains).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(LogError::Refused(reason)) => {
            Problem::new(StatusCode::BAD_REQUEST, "refused", reason).into_response()
        }
        Err(error) => Problem::new(StatusCode::SERVICE_UNAVAILABLE, "log-unavailable", error.to_string())
            .retry_after(1)
            .into_response(),
    }
}

async fn client_js() -> Response {
    let told = [
        (header::CONTENT_TYPE, "text/javascript; charset=utf-8"),
        (header::CACHE_CONTROL, "public, max-age=300"),
    ];
    (told, include_str!("../client.js")).into_response()
}

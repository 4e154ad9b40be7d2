//! `GET /v1/live`: who asks is given to a subscriber, by WebSocket when upgraded, else as
//! Server-Sent Events.

use std::borrow::Cow;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::live::Live;
use super::protocol::LiveRequest;
use super::subscriber::{Place, Seat, Subscriber};
use super::{gzip, socket, sse};
use crate::http::{Problem, shown_anywhere, upgrade};

/// `GET /v1/live`, served by whichever of these subscribers has the fewest clients; those may only watch.
pub fn live_router(subscribers: Vec<Arc<Subscriber>>) -> Router {
    live_router_with(subscribers, Live::default())
}

/// The same with what clients may do besides watching.
pub fn live_router_with(subscribers: Vec<Arc<Subscriber>>, live: Live) -> Router {
    let stage = Stage { subscribers: subscribers.into(), live: Arc::new(live) };
    Router::new().route("/v1/live", get(live_windows)).with_state(stage).layer(shown_anywhere())
}

/// The same of a process that places nobody: who asks where to connect is told that this is the address.
pub fn subscriber_router(subscribers: Vec<Arc<Subscriber>>, live: Live) -> Router {
    let no_address = || async {
        let detail = "a subscriber places nobody; connect to /v1/live here, or ask a front for an address";
        Problem::new(StatusCode::NOT_FOUND, "no-placement-here", detail)
    };
    let address = Router::new().route("/v1/live/address", get(no_address)).layer(shown_anywhere());
    live_router_with(subscribers, live).merge(address)
}

#[derive(Clone)]
struct Stage {
    subscribers: Arc<[Arc<Subscriber>]>,
    live: Arc<Live>,
}

async fn live_windows(
    State(stage): State<Stage>,
    parameters: Result<Query<Vec<(String, String)>>, QueryRejection>,
    mut request: Request,
) -> Response {
    let asked = match read_request(request.headers(), parameters) {
        Ok(asked) => asked,
        Err(detail) => return Problem::new(StatusCode::BAD_REQUEST, "bad-parameter", detail).into_response(),
    };
    let upgraded = match upgrade::is_asked_for(request.headers()).then(|| upgrade::accept(&mut request)) {
        Some(Err(refused)) => return *refused,
        Some(Ok(accepted)) => Some(accepted),
        None => None,
    };
    let Some(place) = place(&stage.subscribers, &asked) else {
        let detail = "no subscriber takes clients now; try again";
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, "full", detail).retry_after(1).into_response();
    };
    let Some((answer, upgrading)) = upgraded else {
        let compressed = accepts_gzip(request.headers());
        return by_events(place.join_waiting(&asked), asked.after, compressed);
    };
    let may_send = stage.live.origins.check(request.headers());
    place.tasks().spawn(async move {
        upgrading.hand_to(|opened| socket::serve(opened, place, asked, stage.live, may_send)).await;
    });
    answer
}

/// The parameters of a request for live windows.
pub(super) fn read_request(
    headers: &HeaderMap,
    parameters: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<LiveRequest, String> {
    let Query(parameters) = parameters.map_err(|rejection| rejection.body_text())?;
    let parameters = parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let last_event_id =
        headers.get("last-event-id").map(|value| value.to_str().map_or(Cow::Borrowed("?"), Cow::Borrowed));
    LiveRequest::parse(parameters, last_event_id.as_deref())
}

/// A place at the subscriber with the fewest clients that has one.
fn place(subscribers: &[Arc<Subscriber>], request: &LiveRequest) -> Option<Place> {
    let mut by_load: Vec<_> = subscribers.iter().filter(|subscriber| subscriber.ready().is_ok()).collect();
    by_load.sort_by_cached_key(|subscriber| subscriber.clients());
    by_load.into_iter().find_map(|subscriber| subscriber.reserve(request))
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    gzip::accepts(&accepted.collect::<Vec<_>>().join(","))
}

fn by_events(seat: Seat, after: Option<String>, compressed: bool) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        (header::VARY, "accept-encoding"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    let encoding = compressed.then_some([(header::CONTENT_ENCODING, "gzip")]);
    (headers, encoding, Body::from_stream(sse::stream(seat, after, compressed))).into_response()
}

/// Serves on a free port of loopback until `tasks` stop; for tests. Returns host and port.
#[cfg(test)]
pub(super) async fn serve_on_loopback(router: Router, tasks: &crate::shutdown::Tasks) -> String {
    let listener = crate::http::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    crate::http::serve(listener, router, tasks);
    address
}

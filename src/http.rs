//! What every HTTP role shares: problem details (RFC 9457), health, metrics, serving until shutdown.

mod connection;
mod stall;
pub mod upgrade;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Json;
pub use axum::Router;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
pub use axum::http::StatusCode;
use axum::http::{HeaderMap, HeaderValue, Method, Uri, header};
use axum::response::{IntoResponse, Response};
pub use axum::routing::MethodFilter;
use axum::routing::{get, on};
use bytes::Bytes;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tower_http::cors::{AllowOrigin, Any, CorsLayer};

use crate::shutdown::Tasks;
use crate::sync::lock;
use crate::telemetry;

/// A connection whose client reads nothing for so long while it is sent something is closed.
pub const STALLED_FOR: Duration = Duration::from_secs(30);
/// How long the head of a request may take to arrive, and a connection may wait for its next request: longer than proxies
/// keep connections that they may use again (60 s mostly), so that it is they who close those.
const HEAD_WITHIN: Duration = Duration::from_secs(75);

/// How long the body of a request may take to arrive.
const BODY_WITHIN: Duration = Duration::from_secs(30);

/// A small body that arrives in time; 408 otherwise, so that one that never comes holds no connection.
pub struct TimelyBody(pub Result<Bytes, BytesRejection>);

impl<S: Send + Sync> FromRequest<S> for TimelyBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        Self::within(BODY_WITHIN, request, state).await
    }
}

impl TimelyBody {
    async fn within<S: Send + Sync>(limit: Duration, request: Request, state: &S) -> Result<Self, Problem> {
        let body = tokio::time::timeout(limit, Bytes::from_request(request, state)).await;
        body.map(Self).map_err(|_| {
            let detail = format!("the body did not arrive within {} s", limit.as_secs());
            Problem::new(StatusCode::REQUEST_TIMEOUT, "body-too-slow", detail)
        })
    }
}

/// An error as `application/problem+json`. The `detail` is for the client: it says what to do instead.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Problem {
    /// A stable name of the kind of problem, `about:blank#unknown-table`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong with this request, and what to do.
    pub detail: String,
    /// The row that is wrong, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row: Option<usize>,
    /// The column that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// `unknown` when a write began and its end is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<&'static str>,
    /// Seconds for `Retry-After`.
    #[serde(skip)]
    pub retry_after_s: Option<u64>,
}

impl Problem {
    /// A problem of that status; `kind` is a short hyphenated name.
    pub fn new(status: StatusCode, kind: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("about:blank#{kind}"),
            title: kind.replace('-', " "),
            status: status.as_u16(),
            detail: detail.into(),
            row: None,
            column: None,
            outcome: None,
            retry_after_s: None,
        }
    }

    /// 501: described in the interface, not built yet.
    pub fn not_built(what: &str) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, "not-built-yet", format!("{what} is not built yet"))
    }

    /// As the text of a message.
    pub fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }

    /// Adds `Retry-After`.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after_s = self.retry_after_s;
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// From which pages a browser may change things: of the same origin, of `http://localhost` on any port, and of those
/// that the settings name. Programs that are no browsers send no `Origin`.
#[derive(Clone, Debug, Default)]
pub struct Origins {
    allowed: Arc<Vec<String>>,
}

impl Origins {
    /// `allowed` as a browser writes them: `https://dashboard.example`.
    pub fn new(allowed: &[String]) -> Self {
        let allowed = allowed.iter().map(|origin| origin.trim_end_matches('/').to_ascii_lowercase());
        Self { allowed: Arc::new(allowed.collect()) }
    }

    /// Whether a request that changes something may be answered.
    ///
    /// # Errors
    /// 403 for another origin; and for a `Host` that is a foreign name, because a page whose name was made to point
    /// here would be of the same origin.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let host = text(header::HOST).unwrap_or_default().to_ascii_lowercase();
        let refused = |what: String| {
            let detail = format!("{what} may not change anything here; [http] origins allows more");
            Err(Problem::new(StatusCode::FORBIDDEN, "foreign-origin", detail))
        };
        let named =
            self.allowed.iter().any(|origin| origin.split_once("://").is_some_and(|(_, name)| name == host));
        if !named && !is_own_name(&host) {
            return refused(format!("a request to the host '{host}'"));
        }
        let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
        let origin = origin.to_str().unwrap_or_default().to_ascii_lowercase();
        let is_same = origin.split_once("://").is_some_and(|(_, name)| name == host);
        if is_same || self.allows(&origin) {
            return Ok(());
        }
        refused(format!("a page of '{origin}'"))
    }

    /// Whether pages of another origin are let in.
    fn allows(&self, origin: &str) -> bool {
        let is_local = origin == "http://localhost" || origin.starts_with("http://localhost:");
        is_local || self.allowed.iter().any(|allowed| allowed == origin)
    }

    /// Lets their pages POST: what a browser asks before it does.
    pub fn cors(&self) -> CorsLayer {
        let own = self.clone();
        let allowed = AllowOrigin::predicate(move |origin: &HeaderValue, _| {
            origin.to_str().is_ok_and(|origin| own.allows(&origin.to_ascii_lowercase()))
        });
        CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::POST])
            .allow_headers(Any)
            .expose_headers([header::RETRY_AFTER])
    }
}

/// Lets pages of any origin GET: what is shown to everyone. They may read when to try again.
pub fn shown_anywhere() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::GET])
        .allow_headers(Any)
        .expose_headers([header::RETRY_AFTER])
}

/// An address, or the name that every machine has for itself: what no foreign page can be served under.
fn is_own_name(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    name == "localhost" || name.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok()
}

/// One reason why a role is able to serve, or not yet: a name, and a closure that says what is missing.
type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What `/readyz` answers: ready when every check says so. Clones share one list.
#[derive(Clone, Default)]
pub struct Readiness {
    checks: Arc<Mutex<Vec<(&'static str, Check)>>>,
    notes: Arc<Mutex<Vec<Note>>>,
}

/// Something worth saying beside whether it is ready.
type Note = Arc<dyn Fn() -> Option<String> + Send + Sync>;

impl Readiness {
    /// A list without checks: ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a check; `check` says what is missing, and must not block.
    pub fn add(&self, name: &'static str, check: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        lock(&self.checks).push((name, Arc::new(check)));
    }

    /// Adds what `/readyz` also says, when there is something to say; must not block.
    pub fn say(&self, note: impl Fn() -> Option<String> + Send + Sync + 'static) {
        lock(&self.notes).push(Arc::new(note));
    }

    fn notes(&self) -> Vec<String> {
        let notes = lock(&self.notes).clone();
        notes.iter().filter_map(|note| note()).collect()
    }

    /// What is missing, as `name: reason`; empty when ready.
    pub fn missing(&self) -> Vec<String> {
        let checks = lock(&self.checks).clone();
        let missing =
            checks.into_iter().filter_map(|(name, check)| Some(format!("{name}: {}", check().err()?)));
        missing.collect()
    }
}

/// What a role serves: its own calls, and what every role answers: `/metrics`, `/healthz`, `/readyz`, and problems for
/// paths and methods that nobody takes.
pub fn role_router(calls: Router, readiness: Readiness) -> Router {
    let ready = move || async move {
        let missing = readiness.missing();
        let status = if missing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (
            status,
            Json(
                serde_json::json!({"ready": missing.is_empty(), "missing": missing, "notes": readiness.notes()}),
            ),
        )
    };
    let metrics =
        || async { ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], telemetry::metrics_text()) };
    let router = calls
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { Json(serde_json::json!({"alive": true})) }))
        .route("/readyz", get(ready));
    router
        .fallback(|method: Method, uri: Uri| async move {
            let detail = format!("there is no {method} {} here; README.md lists the calls", uri.path());
            Problem::new(StatusCode::NOT_FOUND, "unknown-path", detail)
        })
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            let detail = format!("{} does not take {method}", uri.path());
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", detail)
        })
}

/// Calls of the interface that are still to come: each answers 501.
pub fn not_built_router(calls: &[(MethodFilter, &'static str)]) -> Router {
    let answer = |uri: Uri| async move { Problem::not_built(uri.path()) };
    calls.iter().fold(Router::new(), |router, (method, path)| router.route(path, on(*method, answer)))
}

/// Binds `address` (host:port).
///
/// # Errors
/// Says what to do when the port is taken or the address is not this machine's.
pub async fn bind(address: &str) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            format!("{address} is in use by another process; stop it or choose another --listen")
        }
        _ => format!("cannot listen on {address}: {error}"),
    })
}

/// Serves until `tasks` are cancelled; then takes no new connection, lets running requests end, and closes. Long
/// answers (live streams) end by watching the same tasks.
pub fn serve(listener: TcpListener, router: Router, tasks: &Tasks) -> JoinHandle<()> {
    serve_within(listener, router, tasks, HEAD_WITHIN)
}

/// The same with another limit for the head of a request to arrive, and for a connection to wait for its next request.
pub fn serve_within(
    listener: TcpListener,
    router: Router,
    tasks: &Tasks,
    head_within: Duration,
) -> JoinHandle<()> {
    tasks.spawn(connection::serve(listener, router, tasks.token(), head_within))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(host: &str, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, HeaderValue::from_str(origin).unwrap());
        }
        Origins::new(&["https://board.example/".to_owned()]).check(&headers).is_ok()
    }

    #[test]
    fn a_page_may_change_something_only_where_it_was_served_or_is_allowed() {
        assert!(check("127.0.0.1:8080", None) && check("localhost:8080", None) && check("[::1]:8080", None));
        assert!(check("127.0.0.1:8080", Some("http://127.0.0.1:8080")));
        assert!(check("127.0.0.1:8080", Some("http://localhost:3000")));
        assert!(check("127.0.0.1:8080", Some("https://board.example")));
        assert!(!check("127.0.0.1:8080", Some("https://evil.example")));
        assert!(!check("127.0.0.1:8080", Some("http://localhost.evil.example")));
        assert!(!check("127.0.0.1:8080", Some("null")));
    }

    #[tokio::test]
    async fn a_body_that_never_arrives_is_waited_for_so_long() {
        let never = futures::stream::pending::<Result<Bytes, std::convert::Infallible>>();
        let request = Request::new(axum::body::Body::from_stream(never));
        let waited = TimelyBody::within(Duration::from_millis(1), request, &()).await;
        assert_eq!(waited.err().map(|problem| problem.status), Some(408));
        let request = Request::new(axum::body::Body::from("here"));
        let body = TimelyBody::from_request(request, &()).await.unwrap().0.unwrap();
        assert_eq!(body, "here");
    }

    #[test]
    fn a_foreign_name_that_points_here_is_refused() {
        assert!(check("board.example", Some("https://board.example")));
        assert!(!check("evil.example:8080", Some("http://evil.example:8080")));
        assert!(
            !check("evil.example", None) && !check("127.0.0.1.evil.example:80", None) && !check("", None)
        );
    }
}

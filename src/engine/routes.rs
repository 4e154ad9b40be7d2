//! `/v1/queries`: what the engine's queries are doing, with their figures; and changing them while they run.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query as Parameters, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::edit::{ChangeError, MAX_TEXT_BYTES, Verdict};
use super::worker::QueryReport;
use super::{Engine, Seat};
use crate::http::{Origins, Problem, TimelyBody};
use crate::log::LogError;

/// Ends when everything that is committed now can be read at `/v1/results`, so that `counted` never runs ahead of it.
pub type ResultsRead = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

#[derive(Clone)]
struct Served {
    seat: Seat,
    results_read: ResultsRead,
    origins: Origins,
}

#[derive(Serialize)]
struct Queries {
    queries: Vec<QueryReport>,
}

/// The engine's routes. Changes are taken from `origins` only.
pub fn router(seat: Seat, results_read: ResultsRead, origins: Origins) -> Router {
    let one = get(one).put(put).delete(delete);
    Router::new()
        .route("/v1/queries", get(list))
        .route("/v1/queries/check", post(check))
        .route("/v1/queries/{name}", one)
        .route("/v1/queries/{name}/versions", get(versions))
        .route("/v1/queries/{name}/kept", get(kept))
        // JSON may write every character as six.
        .layer(DefaultBodyLimit::max(6 * MAX_TEXT_BYTES + 1024))
        .with_state(Served { seat, results_read, origins })
}

impl Served {
    fn engine(&self) -> Result<Arc<Engine>, Problem> {
        self.seat.engine().ok_or_else(|| {
            let detail = "the queries do not run in this process (yet); another one may hold the lease";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "standby", detail).retry_after(1)
        })
    }
}

async fn list(State(served): State<Served>) -> Result<Json<Queries>, Problem> {
    let engine = served.engine()?;
    let mut queries = Vec::new();
    for name in engine.names() {
        queries.extend(engine.report(&name).await.map_err(|error| no_figures(&error))?);
    }
    (served.results_read)().await;
    Ok(Json(Queries { queries }))
}

async fn one(State(served): State<Served>, Path(name): Path<String>) -> Result<Response, Problem> {
    let engine = served.engine()?;
    let report = engine.report(&name).await.map_err(|error| no_figures(&error))?;
    let report = report.ok_or_else(|| problem(engine.unknown(&name)))?;
    (served.results_read)().await;
    Ok(tagged(StatusCode::OK, report))
}

/// A text to be judged.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    #[serde(default)]
    name: Option<String>,
    text: String,
}

async fn check(
    State(served): State<Served>,
    headers: HeaderMap,
    TimelyBody(body): TimelyBody,
) -> Result<Json<Verdict>, Problem> {
    served.origins.check(&headers)?;
    let Text { name, text } = from_json(&taken(body)?)?;
    let Some(name) = name else {
        return Err(bad_body("'name' is missing: the name that the query has or is to have"));
    };
    Ok(Json(served.engine()?.check(&name, &text).await))
}

/// `PUT` takes a text, or with `?version=N` puts that version back.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PutParameters {
    version: Option<u64>,
}

async fn put(
    State(served): State<Served>,
    Path(name): Path<String>,
    parameters: Result<Parameters<PutParameters>, QueryRejection>,
    headers: HeaderMap,
    TimelyBody(body): TimelyBody,
) -> Result<Response, Problem> {
    served.origins.check(&headers)?;
    let bad = |_: QueryRejection| {
        let detail = "PUT takes one parameter, the number of a version to put back: ?version=1";
        Problem::new(StatusCode::BAD_REQUEST, "bad-parameter", detail)
    };
    let Parameters(PutParameters { version }) = parameters.map_err(bad)?;
    let (expected, body) = (expected(&headers)?, taken(body)?);
    let engine = served.engine()?;
    let put = match version {
        Some(version) => engine.restore(&name, version, expected).await,
        None => engine.put(&name, text_of(&headers, &body)?, expected).await,
    };
    match put {
        Ok((report, is_new)) => Ok(tagged(if is_new { StatusCode::CREATED } else { StatusCode::OK }, report)),
        Err(ChangeError::Refused(diagnostics)) => Ok(refused(diagnostics)),
        Err(error) => Err(problem(error)),
    }
}

async fn delete(
    State(served): State<Served>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    served.origins.check(&headers)?;
    match served.engine()?.delete(&name, expected(&headers)?).await {
        Ok(()) => Ok(StatusCode::NO_CONTENT.into_response()),
        Err(ChangeError::Refused(diagnostics)) => Ok(refused(diagnostics)),
        Err(error) => Err(problem(error)),
    }
}

async fn versions(State(served): State<Served>, Path(name): Path<String>) -> Result<Response, Problem> {
    let versions = served.engine()?.versions(&name).map_err(problem)?;
    Ok(Json(json!({"versions": versions})).into_response())
}

async fn kept(State(served): State<Served>, Path(name): Path<String>) -> Result<Response, Problem> {
    let engine = served.engine()?;
    let kept = engine.kept(&name).await.map_err(|error| no_figures(&error))?;
    let kept = kept.ok_or_else(|| problem(engine.unknown(&name)))?;
    Ok(Json(json!({"kept": kept})).into_response())
}

/// The query's report, with its version as the tag that `If-Match` compares.
fn tagged(status: StatusCode, report: QueryReport) -> Response {
    let tag = HeaderValue::try_from(format!("\"{}\"", report.version));
    let mut response = (status, Json(report)).into_response();
    if let Ok(tag) = tag {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// 422 with the verdict, which is also a problem in itself.
fn refused(diagnostics: Vec<crate::sql::Diagnostic>) -> Response {
    let detail = diagnostics.first().map(|found| found.message.clone()).unwrap_or_default();
    let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "refused", detail);
    let verdict = Verdict { ok: false, diagnostics, plan: None, compatibility: None };
    let mut body = json!(problem);
    if let (Some(body), serde_json::Value::Object(verdict)) = (body.as_object_mut(), json!(verdict)) {
        body.extend(verdict);
    }
    let content = [(header::CONTENT_TYPE, "application/problem+json")];
    (StatusCode::UNPROCESSABLE_ENTITY, content, body.to_string()).into_response()
}

fn problem(error: ChangeError) -> Problem {
    let detail = error.to_string();
    let of = |status, kind| Problem::new(status, kind, detail);
    match error {
        ChangeError::Refused(_) => of(StatusCode::UNPROCESSABLE_ENTITY, "refused"),
        ChangeError::Unknown(_) => of(StatusCode::NOT_FOUND, "unknown-query"),
        ChangeError::Name(_) => of(StatusCode::BAD_REQUEST, "bad-name"),
        ChangeError::Outdated(_) => of(StatusCode::PRECONDITION_FAILED, "outdated"),
        ChangeError::ReadOnly(_) => of(StatusCode::CONFLICT, "read-only"),
        ChangeError::Outside(_) => of(StatusCode::SERVICE_UNAVAILABLE, "not-changed").retry_after(1),
    }
}

fn no_figures(error: &LogError) -> Problem {
    tracing::warn!(%error, "the figures cannot be told");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "log-unavailable", "the log does not answer; try again")
        .retry_after(1)
}

fn bad_body(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad-body", detail)
}

fn taken(body: Result<Bytes, BytesRejection>) -> Result<Bytes, Problem> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => too_long(),
        _ => bad_body(rejection.body_text()),
    })
}

fn too_long() -> Problem {
    let detail = format!("a query's text has at most {MAX_TEXT_BYTES} bytes");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-long", detail)
}

fn from_json(body: &[u8]) -> Result<Text, Problem> {
    let text: Text = serde_json::from_slice(body).map_err(|error| bad_body(error.to_string()))?;
    if text.text.len() > MAX_TEXT_BYTES { Err(too_long()) } else { Ok(text) }
}

/// The SQL of a `PUT`: the body itself, or `{"text"}`.
fn text_of(headers: &HeaderMap, body: &[u8]) -> Result<String, Problem> {
    let content_type = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
    let kind = content_type.unwrap_or("text/plain").split(';').next().unwrap_or_default().trim();
    match kind.to_ascii_lowercase().as_str() {
        "text/plain" | "application/sql" => {
            let text = std::str::from_utf8(body).map_err(|_| bad_body("the text is not UTF-8"))?;
            if text.len() > MAX_TEXT_BYTES { Err(too_long()) } else { Ok(text.to_owned()) }
        }
        "application/json" => Ok(from_json(body)?.text),
        other => {
            let detail = format!(
                "'{other}' is no SQL; send text/plain, application/sql, or application/json with 'text'"
            );
            Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-type", detail))
        }
    }
}

/// The version in `If-Match`; `*` and no header expect nothing.
fn expected(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(tag) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let tag = tag.to_str().unwrap_or_default().trim();
    if tag == "*" {
        return Ok(None);
    }
    let number = tag.trim_start_matches("W/").trim_matches('"').parse();
    number.map(Some).map_err(|_| {
        let detail = format!("If-Match: {tag} is no version; send the ETag that GET answered");
        Problem::new(StatusCode::BAD_REQUEST, "bad-header", detail)
    })
}

//! Ingest over HTTP: `POST /v1/tables/{source}`, a WebSocket there, and `/emoji` and `/api` for the table `reactions`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::BodyDataStream;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{RequestExt, Router};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tower_http::decompression::RequestDecompressionLayer;

use super::batcher::Refusal;
use super::budget::Charge;
use super::decode::{BodyFormat, DecodeError, Decoded};
use super::{Ingest, Lookup, Source, socket};
use crate::clock;
use crate::http::{Origins, Problem, upgrade};
use crate::log::ARROW_STREAM;
use crate::reaction::table::TableKind;
use crate::reaction::time::NS_PER_MS;

/// The table of `/emoji` and `/api`.
const DEFAULT_TABLE: &str = "reactions";
/// What a request is charged besides its bytes: its task, its place in the queue, its answer.
const REQUEST_BYTES: usize = 1024;
/// Seconds after which a sender that got 503 should try again.
const RETRY_AFTER_S: u64 = 1;
/// How long an unread body is read and thrown away, so that the sender sees the answer and no broken connection.
const DISCARD: Duration = Duration::from_secs(1);

/// Ingest's routes. Only POST is served here: GET of the same paths belongs to another stage.
pub fn router(ingest: Arc<Ingest>) -> Router {
    let table = post(post_table).fallback(other_method);
    Router::new()
        .route("/v1/tables/{table}", table)
        .route("/emoji", post(post_reactions))
        .route("/api", post(post_reactions))
        .layer(RequestDecompressionLayer::new().pass_through_unaccepted(true))
        .with_state(ingest)
}

/// `router`, where rows may also come over a WebSocket, to the path that they are POSTed to. It goes around whatever else
/// is served: GET of that path belongs to another stage. Pages may send that may POST.
pub fn with_sockets(router: Router, ingest: Arc<Ingest>, origins: Origins) -> Router {
    router.layer(from_fn_with_state((ingest, origins), take_socket))
}

async fn take_socket(
    State((ingest, origins)): State<(Arc<Ingest>, Origins)>,
    mut request: Request,
    next: Next,
) -> Response {
    let is_asked_for = upgrade::is_asked_for(request.headers());
    if !is_asked_for || !request.uri().path().starts_with("/v1/tables/") {
        return next.run(request).await;
    }
    let Ok(Path(table)) = request.extract_parts::<Path<String>>().await else {
        return next.run(request).await;
    };
    // Programs that are no browsers say no origin, and may send as they may POST.
    let is_page = request.headers().contains_key(header::ORIGIN);
    let may_send = if is_page { origins.check(request.headers()) } else { Ok(()) };
    if let Err(problem) = may_send.and_then(|()| find(&ingest, &table).map(drop)) {
        return problem.into_response();
    }
    match upgrade::accept(&mut request) {
        Err(refused) => *refused,
        Ok((answer, upgrading)) => {
            let tasks = ingest.tasks.clone();
            tasks.spawn(upgrading.hand_to(|opened| socket::serve(opened, ingest, table)));
            answer
        }
    }
}

async fn post_table(
    State(ingest): State<Arc<Ingest>>,
    Path(table): Path<String>,
    request: Request,
) -> Response {
    answer(&ingest, &table, request).await
}

async fn post_reactions(State(ingest): State<Arc<Ingest>>, request: Request) -> Response {
    answer(&ingest, DEFAULT_TABLE, request).await
}

async fn other_method(method: Method) -> Response {
    let detail = format!("{method} is not served here; send rows with POST");
    let mut response =
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", detail).into_response();
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
    response
}

async fn answer(ingest: &Ingest, table: &str, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let mut body = Some(body.into_data_stream());
    let taken = take(ingest, table, &head.headers, &mut body).await;
    ingest.count(&taken);
    match taken {
        Ok((count, warnings)) => {
            let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
            (StatusCode::ACCEPTED, json, accepted(count, &warnings)).into_response()
        }
        Err(problem) => {
            if let Some(unread) = body {
                discard(unread, ingest.settings.max_body_bytes).await;
            }
            problem.into_response()
        }
    }
}

/// What who sent rows is told when they are taken.
pub(super) fn accepted(count: usize, warnings: &[String]) -> String {
    if warnings.is_empty() {
        format!("{{\"accepted\":{count}}}")
    } else {
        serde_json::json!({ "accepted": count, "warnings": warnings }).to_string()
    }
}

/// Takes rows that came otherwise than as a request's body: JSON, an array or one object. Returns how many they were,
/// and what is odd about some.
///
/// # Errors
/// As a POST of them would be answered; then none was taken.
pub async fn take_json(ingest: &Ingest, table: &str, rows: Bytes) -> Result<(usize, Vec<String>), Problem> {
    let taking = async {
        let source = find(ingest, table)?;
        let charge =
            ingest.budget.charge(REQUEST_BYTES + rows.len()).ok_or_else(|| refused(Refusal::Full))?;
        write(ingest, &source, BodyFormat::Json, rows, charge).await
    };
    let taken = taking.await;
    ingest.count(&taken);
    taken
}

/// Takes a request whole, or refuses it whole. `body` is left there when it was not read to its end.
async fn take(
    ingest: &Ingest,
    table: &str,
    headers: &HeaderMap,
    body: &mut Option<BodyDataStream>,
) -> Result<(usize, Vec<String>), Problem> {
    let source = find(ingest, table)?;
    // Taking the rows and ignoring the key would count a repeated request twice.
    if headers.contains_key("idempotency-key") {
        return Err(Problem::not_built("Idempotency-Key"));
    }
    let format = body_format(headers)?;
    let (bytes, charge) = read_body(ingest, headers, body).await?;
    write(ingest, &source, format, bytes, charge).await
}

/// The source of that name.
fn find(ingest: &Ingest, table: &str) -> Result<Arc<Source>, Problem> {
    let no_source = |detail| Err(Problem::new(StatusCode::NOT_FOUND, "not-a-source", detail));
    match ingest.lookup(table) {
        Lookup::Source(source) => Ok(source),
        Lookup::Sink => {
            no_source(format!("{table} is a sink: the engine writes it; rows go into source tables"))
        }
        Lookup::Fed => no_source(format!("{table} takes no rows: a file or an impulse brings them")),
        Lookup::Unusable(what) => Err(Problem::not_built(what)),
        Lookup::Unknown => {
            let program = Arc::clone(&ingest.tables.borrow());
            let sources: Vec<&str> =
                program.tables_of(TableKind::Source).map(|table| table.name.as_str()).collect();
            let detail = match ingest.not_ready() {
                Some(missing) => format!("no table {table}; {missing}"),
                None => format!("no table {table}; the source tables are: {}", sources.join(", ")),
            };
            Err(Problem::new(StatusCode::NOT_FOUND, "unknown-table", detail))
        }
    }
}

/// Decodes rows and has them written.
async fn write(
    ingest: &Ingest,
    source: &Source,
    format: BodyFormat,
    bytes: Bytes,
    mut charge: Charge,
) -> Result<(usize, Vec<String>), Problem> {
    let rule = ingest.settings.event_time_rule();
    let receipt_ns = clock::wall_ns();
    let Decoded { rows, warnings } =
        source.decoder.decode(format, &bytes, receipt_ns, rule).map_err(undecodable)?;
    drop(bytes);
    let count = rows.count;
    if count > 0 {
        if !charge.resize(REQUEST_BYTES + rows.data_bytes()) {
            return Err(refused(Refusal::Full));
        }
        source.batcher.submit(rows, charge, receipt_ns / NS_PER_MS).await.map_err(refused)?;
    }
    Ok((count, warnings))
}

impl Ingest {
    fn count(&self, taken: &Result<(usize, Vec<String>), Problem>) {
        match taken {
            Ok((count, _)) => self.metrics.accepted.increment(*count as u64),
            Err(problem) => self.metrics.refused(problem.kind.rsplit('#').next().unwrap_or_default()),
        }
    }
}

/// The format that `Content-Type` names; JSON when there is none.
fn body_format(headers: &HeaderMap) -> Result<BodyFormat, Problem> {
    // What could be decompressed has lost this header on the way here.
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
        let detail = format!("Content-Encoding {} is not accepted; gzip and zstd are", lossy(encoding));
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", detail));
    }
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(BodyFormat::Json) };
    let essence = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let formats = [
        ("application/json", BodyFormat::Json),
        ("application/x-ndjson", BodyFormat::Ndjson),
        (ARROW_STREAM, BodyFormat::ArrowStream),
    ];
    let known = formats.iter().find(|(name, _)| essence.eq_ignore_ascii_case(name.as_bytes()));
    known.map(|(_, format)| *format).ok_or_else(|| {
        let names = formats.map(|(name, _)| name).join(", ");
        let detail = format!("Content-Type {} is not accepted; these are: {names}", lossy(value));
        Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", detail)
    })
}

fn lossy(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// The body, within the limits of size, time and memory. A body of one piece is not copied.
async fn read_body(
    ingest: &Ingest,
    headers: &HeaderMap,
    body: &mut Option<BodyDataStream>,
) -> Result<(Bytes, Charge), Problem> {
    let limit = ingest.settings.max_body_bytes;
    let announced =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(body_too_large(limit));
    }
    let timeout = Duration::from_millis(ingest.settings.body_timeout_ms);
    let mut charge = ingest.budget.charge(REQUEST_BYTES).ok_or_else(|| refused(Refusal::Full))?;
    let Some(stream) = body.as_mut() else { return Ok((Bytes::new(), charge)) };
    let read =
        tokio::time::timeout(timeout, collect(stream, limit, &mut charge)).await.unwrap_or_else(|_| {
            let detail = format!("the body did not arrive within {} ms", timeout.as_millis());
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body-too-slow", detail))
        })?;
    *body = None;
    Ok((read, charge))
}

/// Charges every piece as it comes, so that a sender holds only what it has sent.
async fn collect(stream: &mut BodyDataStream, limit: usize, charge: &mut Charge) -> Result<Bytes, Problem> {
    let mut first = Bytes::new();
    let mut all: Option<BytesMut> = None;
    let mut length = 0;
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|error| {
            let detail = format!("the body could not be read to its end: {error}");
            Problem::new(StatusCode::BAD_REQUEST, "unreadable-body", detail)
        })?;
        length += piece.len();
        if length > limit {
            return Err(body_too_large(limit));
        }
        if !charge.resize(charge.bytes() + piece.len()) {
            return Err(refused(Refusal::Full));
        }
        match &mut all {
            Some(all) => all.extend_from_slice(&piece),
            None if first.is_empty() => first = piece,
            None => {
                let mut joined = BytesMut::with_capacity(length * 2);
                joined.extend_from_slice(&first);
                joined.extend_from_slice(&piece);
                all = Some(joined);
            }
        }
    }
    Ok(all.map_or(first, BytesMut::freeze))
}

async fn discard(mut unread: BodyDataStream, limit: usize) {
    let reading = async {
        let mut length = 0;
        while let Some(Ok(piece)) = unread.next().await {
            length += piece.len();
            if length > limit {
                break;
            }
        }
    };
    // Whether it came to its end or not: the answer is the same.
    drop(tokio::time::timeout(DISCARD, reading).await);
}

fn body_too_large(limit: usize) -> Problem {
    let detail = format!("the body has more than {limit} bytes; split it");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail)
}

fn undecodable(error: DecodeError) -> Problem {
    match error {
        DecodeError::Syntax { row, detail } => {
            Problem { row, ..Problem::new(StatusCode::BAD_REQUEST, "unreadable-body", detail) }
        }
        DecodeError::Row { row, column, detail } => {
            Problem { row: Some(row), column, ..Problem::new(StatusCode::BAD_REQUEST, "bad-row", detail) }
        }
        DecodeError::TooLarge(what) => {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", format!("{what}; split it"))
        }
    }
}

fn refused(refusal: Refusal) -> Problem {
    let busy = |kind: &str, detail: String| {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, kind, detail).retry_after(RETRY_AFTER_S)
    };
    match refusal {
        Refusal::Full => {
            busy("full", format!("{refusal}; nothing of this request was kept, try again later"))
        }
        Refusal::Closed => busy("closed", format!("{refusal}; nothing of this request was kept, try again")),
        Refusal::Withdrawn(_) | Refusal::Unavailable(_) => {
            busy("log-unavailable", format!("{refusal}; nothing of this request was kept, try again later"))
        }
        Refusal::Unknown(why) => {
            let detail =
                format!("{why}; the rows may be in the log or not: sent again, they may be counted twice");
            Problem { outcome: Some("unknown"), ..busy("outcome-unknown", detail) }
        }
        Refusal::Impossible(why) => {
            let detail = format!("the log refuses the rows: {why}; nothing of this request was kept");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "log-refused", detail)
        }
        Refusal::TooLarge(bytes) => {
            let most = crate::log::codec::MAX_BYTES;
            let detail =
                format!("the rows take {bytes} bytes encoded, and a request may take {most}; split it");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail)
        }
    }
}

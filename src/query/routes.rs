//! `/v1/results`, `/v1/tables`, and on the role of its own `/v1/queries`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query as Parameters, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

use super::results::ResultsQuery;
use super::{PAGE_WAIT, Query};
use crate::http::Problem;
use crate::log::program::QueryEntry;
use crate::log::{LogError, TOPIC_CHECKPOINTS};
use crate::reaction::checkpoint::{Checkpoint, Gap};
use crate::reaction::figures::Figures;
use crate::reaction::table::{ColumnType, DefaultValue, Table, TableKind};
use crate::reaction::time::format_rfc3339;

/// The formats of results that are described and come later.
const LATER_FORMATS: [&str; 4] = [
    "text/csv",
    "application/x-ndjson",
    "application/vnd.apache.arrow.stream",
    "application/vnd.apache.parquet",
];

/// Results and tables. GET on the tables' path only: rows are posted to another stage under the same path.
pub fn router(query: Arc<Query>) -> Router {
    Router::new()
        .route("/v1/results/{sink}", get(results))
        .route("/v1/tables", get(tables))
        .route("/v1/tables/{table}", get(table))
        .with_state(query)
}

/// The queries as their committed checkpoints say, for a process without an engine.
pub fn queries_router(query: Arc<Query>) -> Router {
    Router::new()
        .route("/v1/queries", get(queries))
        .route("/v1/queries/{name}", get(one_query))
        .with_state(query)
}

async fn results(
    State(query): State<Arc<Query>>,
    Path(sink): Path<String>,
    parameters: Result<Parameters<Vec<(String, String)>>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let program = query.program();
    let table = match program.tables.get(&sink) {
        Some(table) if table.kind == TableKind::Sink && table.is_in_the_log() => table.clone(),
        known => return Err(unknown_sink(&sink, known, program.result_tables())),
    };
    accepts_json(&headers)?;
    let bad = |detail: String| Problem::new(StatusCode::BAD_REQUEST, "bad-parameter", detail);
    let Parameters(parameters) = parameters.map_err(|rejection| bad(rejection.body_text()))?;
    let asked = ResultsQuery::parse(&table, &parameters).map_err(bad)?;
    if !query.store.is_read_back(&sink) {
        return Err(not_yet("results are being read back from the log"));
    }
    let turn = tokio::time::timeout(PAGE_WAIT, Arc::clone(&query.pages).acquire_owned()).await;
    let Ok(Ok(turn)) = turn else { return Err(not_yet("too many pages are asked for at once")) };
    let store = Arc::clone(&query.store);
    let answer = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let page = asked.page(&table, &store).map_err(|error| error.to_string())?;
        page.map(|page| serde_json::to_vec(&page).map_err(|error| error.to_string())).transpose()
    });
    let body = match answer.await.map_err(|error| error.to_string()) {
        Ok(Ok(Some(body))) => Bytes::from(body),
        Ok(Ok(None)) => return Err(not_yet("results are not read yet")),
        Ok(Err(error)) | Err(error) => {
            tracing::error!(sink, error, "results could not be answered");
            return Err(Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "this is a bug; see the log",
            ));
        }
    };
    Ok(([(header::CONTENT_TYPE, "application/json")], Body::from(body)).into_response())
}

fn unknown_sink<'a>(name: &str, known: Option<&Table>, sinks: impl Iterator<Item = &'a Table>) -> Problem {
    let what = match known.map(|table| table.kind) {
        Some(TableKind::Source) => "is a source",
        Some(TableKind::Sink) => "is a blackhole, which keeps no rows",
        None => "is unknown",
    };
    let sinks: Vec<&str> = sinks.map(|sink| sink.name.as_str()).collect();
    let detail = format!("{name} {what}; the tables with results are: {}", sinks.join(", "));
    Problem::new(StatusCode::NOT_FOUND, "unknown-table", detail)
}

fn not_yet(what: &str) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", format!("{what}; /readyz says why"))
        .retry_after(1)
}

/// JSON is what there is; the other formats of the interface come later, and the rest never.
fn accepts_json(headers: &HeaderMap) -> Result<(), Problem> {
    let accept: Vec<&str> =
        headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let accept = accept.join(",").to_ascii_lowercase();
    let ranges: Vec<&str> =
        accept.split(',').filter_map(|part| part.split(';').next()).map(str::trim).collect();
    let is_json = |range: &&str| matches!(*range, "" | "*/*" | "application/*" | "application/json");
    if ranges.iter().any(is_json) {
        return Ok(());
    }
    if let Some(later) = ranges.iter().find(|range| LATER_FORMATS.contains(range)) {
        return Err(Problem::not_built(&format!("{later}, instead of application/json,")));
    }
    let detail = format!("results come as application/json, not as {accept}");
    Err(Problem::new(StatusCode::NOT_ACCEPTABLE, "not-acceptable", detail))
}

/// A table as it is answered.
#[derive(Serialize)]
struct TableAnswer<'a> {
    name: &'a str,
    r#type: TableKind,
    topic: &'a str,
    format: crate::reaction::table::Format,
    columns: Vec<Value>,
    partitions: Vec<Value>,
}

async fn tables(State(query): State<Arc<Query>>) -> Result<Json<Value>, Problem> {
    let program = query.program();
    let mut answers = Vec::with_capacity(program.tables.len());
    for table in program.tables.values() {
        answers.push(json!(describe(&query, table).await?));
    }
    Ok(Json(json!({"tables": answers})))
}

async fn table(State(query): State<Arc<Query>>, Path(name): Path<String>) -> Result<Json<Value>, Problem> {
    let program = query.program();
    let Some(table) = program.tables.get(&name) else {
        let names: Vec<&str> = program.tables.keys().map(String::as_str).collect();
        let detail = format!("{name} is unknown; the tables are: {}", names.join(", "));
        return Err(Problem::new(StatusCode::NOT_FOUND, "unknown-table", detail));
    };
    Ok(Json(json!(describe(&query, table).await?)))
}

async fn describe<'a>(query: &Query, table: &'a Table) -> Result<TableAnswer<'a>, Problem> {
    let ranges = query.log.describe(&table.topic).await.map_err(log_problem)?.unwrap_or_default();
    let partitions = ranges.iter().enumerate();
    let columns = table.columns.iter().map(|column| {
        json!({
            "name": column.name,
            "type": column.data_type.sql_name(),
            "nullable": column.nullable,
            "default": column.default.as_ref().map(|default| default_sql(default, column.data_type)),
            "source": column.source,
        })
    });
    Ok(TableAnswer {
        name: &table.name,
        r#type: table.kind,
        topic: &table.topic,
        format: table.format,
        columns: columns.collect(),
        partitions: partitions
            .map(|(partition, range)| json!({"partition": partition, "start": range.start, "end": range.end}))
            .collect(),
    })
}

/// As the DDL writes it: `now()`, `'main'`, `0`, `X'00ff'`, `ARRAY[1, 2]`.
fn default_sql(default: &DefaultValue, data_type: ColumnType) -> String {
    match default {
        DefaultValue::Now => "now()".to_owned(),
        DefaultValue::Literal(value) => literal_sql(value, data_type),
    }
}

fn literal_sql(value: &Value, data_type: ColumnType) -> String {
    match (value, data_type) {
        (Value::Array(items), ColumnType::Array(item)) => {
            let items: Vec<String> = items.iter().map(|value| literal_sql(value, *item)).collect();
            format!("ARRAY[{}]", items.join(", "))
        }
        (Value::Null, _) => "NULL".to_owned(),
        (Value::String(digits), ColumnType::Decimal { .. }) => digits.clone(),
        (Value::String(text), ColumnType::Bytea) => {
            let bytes = STANDARD.decode(text).unwrap_or_default();
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("X'{digits}'")
        }
        (Value::String(text), _) => format!("'{}'", text.replace('\'', "''")),
        (value, _) => value.to_string(),
    }
}

/// A query as it is answered.
#[derive(Serialize)]
struct QueryAnswer<'a> {
    name: &'a str,
    text: &'a str,
    version: u64,
    state: &'static str,
    watermark: Option<String>,
    lag_records: i64,
    #[serde(flatten)]
    figures: Figures,
    last_error: Option<String>,
    gap: Option<Gap>,
}

async fn queries(State(query): State<Arc<Query>>) -> Result<Json<Value>, Problem> {
    let program = query.program();
    let names: Vec<&QueryEntry> = program.queries.values().collect();
    Ok(Json(json!({"queries": answers(&query, &names).await?})))
}

async fn one_query(
    State(query): State<Arc<Query>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Problem> {
    let program = query.program();
    let Some(entry) = program.queries.get(&name) else {
        let names: Vec<&str> = program.queries.keys().map(String::as_str).collect();
        let detail = format!("{name} is unknown; the queries are: {}", names.join(", "));
        return Err(Problem::new(StatusCode::NOT_FOUND, "unknown-query", detail));
    };
    Ok(Json(answers(&query, &[entry]).await?.pop().unwrap_or_default()))
}

/// What the checkpoints say, once the results committed with them can be read.
async fn answers(query: &Query, entries: &[&QueryEntry]) -> Result<Vec<Value>, Problem> {
    let checkpoints = query.log.latest(TOPIC_CHECKPOINTS).await.map_err(log_problem)?;
    let mut answers = Vec::with_capacity(entries.len());
    for entry in entries {
        let record = checkpoints.get(entry.name.as_bytes()).and_then(|record| record.value.as_ref());
        let checkpoint = record.map(|value| serde_json::from_slice::<Checkpoint>(value)).transpose();
        let (checkpoint, last_error) = match checkpoint {
            Ok(checkpoint) => (checkpoint, None),
            Err(error) => (None, Some(format!("its checkpoint is not readable: {error}"))),
        };
        let lag_records = match &checkpoint {
            Some(checkpoint) => lag(query, checkpoint).await?,
            None => 0,
        };
        answers.push(json!(QueryAnswer {
            name: &entry.name,
            text: &entry.text,
            version: entry.version,
            state: if checkpoint.is_some() { "running" } else { "starting" },
            watermark: checkpoint.as_ref().and_then(|checkpoint| checkpoint.emitted).map(format_rfc3339),
            lag_records,
            gap: checkpoint.as_ref().and_then(|checkpoint| checkpoint.gap),
            figures: checkpoint.map(|checkpoint| checkpoint.figures).unwrap_or_default(),
            last_error,
        }));
    }
    if !query.caught_up().await {
        return Err(not_yet("the results of these figures are committed and not read yet"));
    }
    Ok(answers)
}

/// How many offsets the sources' ends are ahead of the checkpoint.
async fn lag(query: &Query, checkpoint: &Checkpoint) -> Result<i64, Problem> {
    let mut behind = 0;
    for (topic, positions) in &checkpoint.sources {
        let ranges = query.log.describe(topic).await.map_err(log_problem)?.unwrap_or_default();
        let of_partition =
            ranges.iter().zip(positions).map(|(range, position)| (range.end - position.seen).max(0));
        behind += of_partition.sum::<i64>();
    }
    Ok(behind)
}

fn log_problem(error: LogError) -> Problem {
    tracing::warn!(%error, "the log did not answer");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "log-unavailable", "the log did not answer; try again")
        .retry_after(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_is_shown_as_the_ddl_writes_it() {
        let decimal = ColumnType::Decimal { precision: 4, scale: 2 };
        for (value, data_type, written) in [
            (json!("it's"), ColumnType::Text, "'it''s'"),
            (json!(-3), ColumnType::Int, "-3"),
            (json!(true), ColumnType::Boolean, "true"),
            (json!("1.50"), decimal, "1.50"),
            (json!("AP8="), ColumnType::Bytea, "X'00ff'"),
            (json!(["a", null]), ColumnType::Array(&ColumnType::Text), "ARRAY['a', NULL]"),
        ] {
            assert_eq!(default_sql(&DefaultValue::Literal(value), data_type), written);
        }
        assert_eq!(default_sql(&DefaultValue::Now, ColumnType::Timestamp), "now()");
    }
}

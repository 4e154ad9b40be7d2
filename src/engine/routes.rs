//! `GET /v1/queries`: what the engine's queries are doing, with their figures.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use futures::future::BoxFuture;
use serde::Serialize;

use super::Engine;
use super::worker::{QueryReport, RunningQuery};
use crate::http::Problem;
use crate::log::LogError;

/// Ends when everything that is committed now can be read at `/v1/results`, so that `counted` never runs ahead of it.
pub type ResultsRead = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

#[derive(Clone)]
struct Served {
    engine: Arc<Engine>,
    results_read: ResultsRead,
}

#[derive(Serialize)]
struct Queries {
    queries: Vec<QueryReport>,
}

/// The engine's routes.
pub fn router(engine: Arc<Engine>, results_read: ResultsRead) -> Router {
    let served = Served { engine, results_read };
    Router::new().route("/v1/queries", get(list)).route("/v1/queries/{name}", get(one)).with_state(served)
}

async fn list(State(served): State<Served>) -> Result<Json<Queries>, Problem> {
    let mut queries = Vec::new();
    for query in served.engine.queries().values() {
        queries.push(report(query).await?);
    }
    (served.results_read)().await;
    Ok(Json(Queries { queries }))
}

async fn one(State(served): State<Served>, Path(name): Path<String>) -> Result<Json<QueryReport>, Problem> {
    let Some(query) = served.engine.queries().get(&name) else {
        let known: Vec<_> = served.engine.queries().keys().map(String::as_str).collect();
        let detail = format!("there is no query '{name}'; there are: {}", known.join(", "));
        return Err(Problem::new(StatusCode::NOT_FOUND, "unknown-query", detail));
    };
    let report = report(query).await?;
    (served.results_read)().await;
    Ok(Json(report))
}

async fn report(query: &RunningQuery) -> Result<QueryReport, Problem> {
    query.report().await.map_err(|error: LogError| {
        tracing::warn!(%error, "the figures cannot be told");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "log-unavailable", "the log does not answer; try again")
            .retry_after(1)
    })
}

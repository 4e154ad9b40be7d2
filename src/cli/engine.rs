//! `emostream engine`: the SQL, planned and run, on Kafka.

use std::path::PathBuf;
use std::sync::Arc;

use super::serve::{ServeArgs, never};
use super::{Failure, program, role};
use crate::engine::{self, Engine};
use crate::http::{MethodFilter, not_built_router};

/// Run the SQL: count reactions into windows (one role of `up`, on Kafka)
///
/// Creates the tables' topics and makes the SQL the running program, from which the other roles learn the tables.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder of SQL files [default: ./sql, written when there is none]
    #[arg(long, value_name = "DIR")]
    sql: Option<PathBuf>,
    #[command(flatten)]
    serve: ServeArgs,
}

/// What `engine` will answer later.
pub(super) const LATER_CALLS: [(MethodFilter, &str); 2] = [
    (MethodFilter::PUT.or(MethodFilter::DELETE), "/v1/queries/{name}"),
    (MethodFilter::POST, "/v1/queries/check"),
];

/// Runs stage 2.
///
/// # Errors
/// 1 when the SQL does not plan; otherwise as every role.
pub fn run(args: Args) -> Result<(), Failure> {
    let settings = args.serve.settings.load()?.settings;
    let planned = program::load(args.sql.as_deref())?;
    role::run(args.serve, settings.clone(), "127.0.0.1:8082", "engine", |start| async move {
        let running = program::store(&start.log, &planned, &settings).await?;
        let engine = Engine::start(&start.log, &planned, &running, &settings.engine, &start.process.stages);
        let engine = engine.map_err(|error| Failure::input(error.to_string()))?;
        let ready = Arc::clone(&engine);
        start.readiness.add("engine", move || program::restored(&ready));
        // Where the results are read is another process: its own /v1/queries waits for them.
        let results_read = Arc::new(|| -> futures::future::BoxFuture<'static, ()> { Box::pin(async {}) });
        let router = engine::routes::router(engine, results_read).merge(not_built_router(&LATER_CALLS));
        Ok((router, never()))
    })
}

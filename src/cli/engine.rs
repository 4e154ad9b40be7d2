//! `emostream engine`: the SQL, planned and run, on Kafka.

use std::path::PathBuf;
use std::sync::Arc;

use super::serve::{ServeArgs, log_failure};
use super::{Failure, program, role};
use crate::engine::{self, Seat};
use crate::http::Origins;

/// Run the SQL: count reactions into windows (one role of `up`, on Kafka)
///
/// Creates the tables' topics and makes the SQL the running program, from which the other roles learn the tables. A
/// second process stands by: it takes over within 10 seconds when the first one dies, and at once when that is stopped.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder of SQL files [default: ./sql, written when there is none]
    #[arg(long, value_name = "DIR")]
    sql: Option<PathBuf>,
    #[command(flatten)]
    serve: ServeArgs,
}

/// Runs stage 2, or stands by while another process does.
///
/// # Errors
/// 1 when the SQL does not plan; otherwise as every role.
pub fn run(args: Args) -> Result<(), Failure> {
    let loaded = args.serve.load()?;
    let settings = program::with_log_of(&program::load(args.sql.as_deref())?, loaded);
    let place = program::place(args.sql.as_deref(), &settings, true);
    role::run(args.serve, settings.clone(), "127.0.0.1:8082", "engine", |start| async move {
        let seat = Seat::take(&start.log, place, &settings.engine, &start.process.stages);
        let seat = seat.await.map_err(log_failure)?;
        let (ready, noted) = (seat.clone(), seat.clone());
        start.readiness.add("engine", move || program::ready(&ready, true));
        start.readiness.say(move || match noted.engine() {
            Some(_) => None,
            None => Some("engine: standby, another process runs the queries".to_owned()),
        });
        // Where the results are read is another process: its own /v1/queries waits for them.
        let results_read = Arc::new(|| -> futures::future::BoxFuture<'static, ()> { Box::pin(async {}) });
        let failed = program::when_stopped(&seat);
        let router = engine::routes::router(seat, results_read, Origins::new(&settings.http.origins));
        Ok((router, failed))
    })
}

//! `emostream up`: every stage in one process, on one port.

use std::path::PathBuf;
use std::sync::Arc;

use super::role::LATER_QUERY_CALLS;
use super::serve::{self, LogPlace, ServeArgs, Serving, Start, log_failure, when_fenced};
use super::{Failure, program, rows};
use crate::config::{LogKind, Settings};
use crate::engine::{self, Place, Seat};
use crate::http::{Origins, not_built_router};
use crate::ingest::{self, Ingest};
use crate::log::program as running_program;
use crate::publish::{self, Front, Tier};
use crate::query::{self, Query};
use crate::reaction::table::{Connector, Table, TableKind};
use crate::sql::Program;

/// Run everything in one process, on one port
///
/// Without Kafka the log is a file in the data directory. Ctrl-C ends it within 10 seconds; what was answered 202 is
/// in the log then.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the embedded log is kept, and windows that memory does not hold
    #[arg(long, value_name = "DIR", default_value = "./data")]
    data_dir: PathBuf,
    /// The folder of SQL files [default: ./sql, written when there is none]
    #[arg(long, value_name = "DIR")]
    sql: Option<PathBuf>,
    #[command(flatten)]
    serve: ServeArgs,
}

/// Runs all stages.
///
/// # Errors
/// 1 when the SQL does not plan, 2 for wrong settings or a public address, 3 when the port or the data directory is
/// taken, or the log fails.
pub fn run(args: Args) -> Result<(), Failure> {
    let loaded = args.serve.load()?;
    let listen = args.serve.listen.unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    super::process::check_listen(&listen, &loaded.settings)?;
    let planned = program::load(args.sql.as_deref())?;
    let mut settings = program::with_log_of(&planned, loaded);
    settings.engine.spill_dir.get_or_insert_with(|| args.data_dir.join("spill"));
    let place = match settings.log.kind {
        LogKind::Embedded => LogPlace::Embedded(args.data_dir.clone()),
        LogKind::Kafka => LogPlace::Kafka,
    };
    let kept = match settings.log.kind {
        LogKind::Embedded => format!("data in {}", args.data_dir.display()),
        LogKind::Kafka => format!("Kafka at {}", settings.log.kafka.bootstrap_servers),
    };
    let sql = program::place(args.sql.as_deref(), &settings, settings.log.kind == LogKind::Kafka);
    serve::run(settings.clone(), &listen, place, |start| async move {
        start_all(&start, &planned, sql, &settings, &kept).await
    })
}

async fn start_all(
    start: &Start,
    planned: &Program,
    sql: Place,
    settings: &Settings,
    kept: &str,
) -> Result<Serving, Failure> {
    let Start { log, process, readiness, url } = start;
    // First, so that the others know the tables when they begin to serve.
    let seat = Seat::occupy(log, sql, &settings.engine, &process.stages);
    let seat = seat.await.map_err(|error| program::engine_failure(&error))?;
    let follow = running_program::follow(Arc::clone(log), &process.stages);
    let running = follow.await.map_err(log_failure)?;

    let query = Query::start(Arc::clone(log), running.clone(), &settings.query, &process.stages);
    let tier = Tier::start(log, running.clone(), url, &settings.publish, &process.connections);
    let ingest = Ingest::start(Arc::clone(log), running, settings.ingest.clone(), &process.stages);
    let origins = Origins::new(&settings.http.origins);
    let front = Front::new(tier.members(), tier.registrations(), &settings.publish, origins.clone());

    let live = publish::live_router_with(tier.subscribers(), rows::taken_by(&ingest, &origins));
    let failed = when_fenced(tier.failure());
    let results = Arc::clone(&query);
    let results_read = Arc::new(move || -> futures::future::BoxFuture<'static, ()> {
        let results = Arc::clone(&results);
        Box::pin(async move {
            if !results.caught_up().await {
                tracing::warn!("figures are told before their results could be read");
            }
        })
    });
    let ready = (Arc::clone(&ingest), seat.clone(), Arc::clone(&query));
    readiness.add("ingest", move || ready.0.not_ready().map_or(Ok(()), Err));
    readiness.add("engine", move || program::ready(&ready.1, false));
    readiness.add("query", move || ready.2.ready());
    readiness.add("publish", move || tier.ready());
    let router = ingest::routes::router(Arc::clone(&ingest))
        .layer(origins.cors())
        .merge(engine::routes::router(seat, results_read, origins.clone()))
        .merge(live)
        .merge(publish::front_router(Arc::clone(&front)))
        .merge(publish::register_router(front))
        .merge(query::routes::router(query))
        .merge(not_built_router(&LATER_QUERY_CALLS));
    let router = ingest::routes::with_sockets(router, ingest, origins);
    Ok(Serving { router, failed, banner: banner(url, planned, kept) })
}

/// Where it is, and the lines to try.
fn banner(url: &str, planned: &Program, kept: &str) -> String {
    let of =
        |is_wanted: &dyn Fn(&&Table) -> bool| planned.tables.iter().find(is_wanted).map(|table| &table.name);
    let is_posted =
        |table: &&Table| table.kind == TableKind::Source && table.with.connector == Connector::Kafka;
    let mut lines = vec![format!("emostream is running at {url} ({kept})"), String::new()];
    lines.extend(of(&is_posted).map(|source| match source.as_str() {
        "reactions" => format!(
            "send:  curl {url}/emoji -H 'content-type: application/json' -d '{{\"user_id\":\"me\",\"emoji_type\":\"😀\"}}'"
        ),
        source => format!("send:  curl {url}/v1/tables/{source} -H 'content-type: application/json' -d '[]'"),
    }));
    if let Some(sink) = of(&|table| table.kind == TableKind::Sink && table.is_in_the_log()) {
        lines.push(format!("watch: curl -N '{url}/v1/live?table={sink}'"));
        lines.push(format!("read:  curl '{url}/v1/results/{sink}?limit=5'"));
    }
    lines.push(format!(
        "more:  {url}/v1/queries, {url}/v1/tables, {url}/readyz, {url}/metrics; Ctrl-C stops it"
    ));
    lines.join("\n")
}

//! One process that serves HTTP: bind, open the log, start stages, serve, say where.

use std::io::Write;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;

use super::process::{self, Process, SettingsArgs};
use super::{Failure, logs};
use crate::config::{Loaded, Settings};
use crate::http::{self, Readiness, Router};
use crate::log::{Log, LogError};

/// Flags of every process that serves.
#[derive(Debug, clap::Args)]
pub(super) struct ServeArgs {
    /// Where to listen; port 0 takes a free one [default: 127.0.0.1 and a port of the command's own: up 8080, ingest 8081,
    /// engine 8082, publish 8083, cluster 8084, subscribe 8085, query 8086]
    #[arg(long, value_name = "HOST:PORT")]
    pub(super) listen: Option<String>,
    /// Listen on an address that other machines reach although nobody is asked who they are (sets http.allow_public)
    #[arg(long)]
    allow_public: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

impl ServeArgs {
    /// The checked settings.
    ///
    /// # Errors
    /// When they are not valid: exit code 2.
    pub(super) fn load(&self) -> Result<Loaded, Failure> {
        let public = ("--allow-public", "http.allow_public", "true");
        self.settings.load_with(if self.allow_public { std::slice::from_ref(&public) } else { &[] })
    }
}

/// Which log a process opens.
pub(super) enum LogPlace {
    /// The embedded one, in that folder.
    Embedded(PathBuf),
    /// Kafka, as the settings say.
    Kafka,
}

/// What a stage is started with.
pub(super) struct Start {
    /// The log.
    pub(super) log: Arc<dyn Log>,
    /// The process's tasks.
    pub(super) process: Process,
    /// What is missing before it can serve: stages add to it.
    pub(super) readiness: Readiness,
    /// Where it listens: `http://127.0.0.1:8080`.
    pub(super) url: String,
}

/// Why a process ends by itself.
pub(super) type Failed = Pin<Box<dyn Future<Output = Failure> + Send>>;

/// What a started process serves.
pub(super) struct Serving {
    /// Its calls.
    pub(super) router: Router,
    /// Ends when the process can no longer do its work; [`never()`] when that cannot be.
    pub(super) failed: Failed,
    /// What is said on standard output once it serves.
    pub(super) banner: String,
}

/// Starts what `build` puts together and serves it until the process is asked to stop.
///
/// # Errors
/// 2 for a public address, 3 when the port is taken or the log does not open, and what `build` says.
pub(super) fn run<F>(
    settings: Settings,
    listen: &str,
    place: LogPlace,
    build: impl FnOnce(Start) -> F,
) -> Result<(), Failure>
where
    F: Future<Output = Result<Serving, Failure>>,
{
    process::check_listen(listen, &settings)?;
    process::run(&settings.clone(), |process| async move {
        let listener = http::bind(listen).await.map_err(Failure::outside)?;
        let url = format!("http://{}", address(&listener)?);
        let log = match place {
            LogPlace::Embedded(dir) => logs::open_embedded(&dir, &settings).await?,
            LogPlace::Kafka => logs::connect_kafka(&settings).await?,
        };
        let readiness = Readiness::new();
        let start = Start { log, process: process.clone(), readiness: readiness.clone(), url };
        let Serving { router, failed, banner } = build(start).await?;
        http::serve(listener, http::role_router(router, readiness), &process.connections);
        // Who started it may have closed standard output; it serves all the same.
        if let Err(error) = writeln!(std::io::stdout(), "{banner}") {
            tracing::debug!(%error, "nobody reads where it serves");
        }
        Ok(failed)
    })
}

fn address(listener: &TcpListener) -> Result<String, Failure> {
    let address =
        listener.local_addr().map_err(|error| Failure::outside(format!("no local address: {error}")))?;
    Ok(address.to_string())
}

/// A process that only ends when it is asked to.
pub(super) fn never() -> Failed {
    Box::pin(std::future::pending())
}

/// Ends when a publisher stopped because another took over.
pub(super) fn when_fenced(mut failure: watch::Receiver<Option<LogError>>) -> Failed {
    Box::pin(async move {
        let stopped = failure.wait_for(Option::is_some).await.ok().and_then(|error| error.clone());
        match stopped {
            Some(error) => {
                Failure::outside(format!("the publisher stopped: {error}; another process publishes now"))
            }
            None => std::future::pending().await,
        }
    })
}

/// A log's error while a process starts.
pub(super) fn log_failure(error: LogError) -> Failure {
    Failure::outside(format!("the log: {error}"))
}

//! A crowd for trying emostream out and for measuring it: senders, viewers, and the check that nothing was lost.
//!
//! Open loop: each request has a time at which it should leave, given by the [`crowd`] alone, and its latency
//! counts from then; a server that falls behind shows it. Viewers join at a real rate and stay. At the end the
//! figures of every query over the table must have grown by at least what was answered 202, and add up. Without
//! senders nothing but the live streams is asked for: then it is the load client of a subscriber.
//!
//! A client like any other: it knows the interface over HTTP and nothing of the stages behind it.

mod account;
mod answer;
pub mod crowd;
mod frames;
mod hearing;
mod report;
mod sender;
pub mod sse;
pub mod tally;
mod viewer;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::shutdown::Tasks;
pub use account::QueryAccount;
use crowd::{Crowd, Shape};
pub use report::{Report, progress};
use tally::Tally;
use viewer::Viewers;

/// The source table that reactions go to.
const TABLE: &str = "reactions";
/// Connections of one process; it may often have 20,000 files open and no more.
const MOST_CONNECTIONS: u64 = 19_000;
/// How long requests that are due when the time is over may still take.
const GRACE: Duration = Duration::from_secs(10);

/// What to simulate.
#[derive(Clone, Debug)]
pub struct Plan {
    /// People who send; each has one connection and one request under way. Without any, viewers watch for the duration.
    pub senders: u64,
    /// People who watch.
    pub viewers: u64,
    /// Reactions a second, all senders together, on average over the duration.
    pub rate: f64,
    /// Viewers joining a second.
    pub ramp: f64,
    /// How long reactions are sent, and watched when nobody sends.
    pub duration: Duration,
    /// Rooms that senders and viewers spread over.
    pub rooms: u64,
    /// How the rate changes over time.
    pub shape: Shape,
    /// Reactions in a request. None: a tenth of a second's worth, and more in one request when behind.
    pub batch: Option<u64>,
    /// How viewers watch.
    pub transport: Transport,
    /// How long the windows get to close after the last reaction.
    pub settle: Duration,
    /// The same seed sends the same reactions at the same times.
    pub seed: u64,
    /// Where reactions go.
    pub url: Url,
    /// Where viewers watch.
    pub live_url: Url,
    /// Where the figures are read.
    pub query_url: Url,
}

/// How viewers watch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// WebSocket.
    #[default]
    WebSocket,
    /// Server-Sent Events.
    Sse,
    /// Every second viewer each.
    Both,
}

/// Why a simulation could not be run.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The plan makes no sense; the user should change it.
    #[error("{0}")]
    Plan(String),
    /// The server does not answer; the user should see to it.
    #[error("{0}")]
    Outside(String),
}

/// Runs the plan to its end, or until `stop`; either way windows get their time to close and the figures are
/// checked. `tally` shows what happens meanwhile.
///
/// # Errors
/// [`Failure::Plan`] for a plan that makes no sense, [`Failure::Outside`] when the server cannot be reached at all.
pub async fn run(
    plan: Plan,
    crowd: Arc<Crowd>,
    tally: Arc<Tally>,
    stop: CancellationToken,
) -> Result<Report, Failure> {
    check(&plan)?;
    let client = client(plan.senders)?;
    let live_addresses = resolve(&plan.live_url).await?;
    let sends = plan.senders > 0;
    let mut accounts = match sends {
        true => {
            Some(account::Accounts::open(&client, &plan.query_url, TABLE).await.map_err(Failure::Outside)?)
        }
        false => None,
    };

    let senders = Tasks::new();
    let start = Instant::now();
    tally.begin(start);
    let viewers = Viewers::start(&plan, &live_addresses, &tally)?;
    let sending =
        if sends { sender::send_all(&plan, &crowd, &client, &tally, start, &senders) } else { Vec::new() };

    let (duration, grace) = (plan.duration, if sends { GRACE } else { Duration::ZERO });
    tokio::select! {
        () = all_ended(sending), if sends => {}
        () = stop.cancelled() => {}
        () = tokio::time::sleep_until(start + duration + grace) => {}
    }
    // A request under way ends within its own limit, which counts it as unknown.
    senders.stop(sender::REQUEST_LIMIT + Duration::from_secs(1)).await;
    tally.end();

    if let Some(accounts) = &mut accounts {
        accounts.settle(&client, tally.accepted(), plan.settle).await;
    }
    let watched_for = start.elapsed();
    let viewers_cpu = viewers.stop(Duration::from_secs(5)).await;
    let verdict = accounts.map(|accounts| accounts.verdict(tally.accepted(), tally.unknown()));
    Ok(Report::new(&plan, &crowd, &tally, verdict, watched_for, viewers_cpu))
}

/// A sender that panicked has ended too: what it did not send shows in the report.
async fn all_ended(tasks: Vec<JoinHandle<()>>) {
    for task in tasks {
        if let Err(error) = task.await {
            tracing::error!(%error, "a sender failed");
        }
    }
}

fn check(plan: &Plan) -> Result<(), Failure> {
    let wrong = |what: &str| Err(Failure::Plan(what.to_owned()));
    for url in [&plan.url, &plan.live_url, &plan.query_url] {
        if url.scheme() != "http" || url.host_str().is_none() {
            return Err(Failure::Plan(format!("'{url}' should be http://HOST:PORT (TLS is not built in)")));
        }
    }
    match plan {
        Plan { senders: 0, viewers: 0, .. } => wrong("there must be --senders or --viewers"),
        Plan { senders, viewers, .. } if senders.saturating_add(*viewers) > MOST_CONNECTIONS => {
            wrong(&format!(
                "--senders and --viewers together may be {MOST_CONNECTIONS} at most: a process may have 20,000 files open; \
                 start several for more"
            ))
        }
        Plan { rooms: 0, .. } => wrong("--rooms must be at least 1"),
        Plan { batch: Some(0), .. } => wrong("--batch must be at least 1"),
        Plan { ramp, .. } if !(*ramp > 0.0 && ramp.is_finite()) => wrong("--ramp must be above zero"),
        _ => Ok(()),
    }
}

fn client(senders: u64) -> Result<reqwest::Client, Failure> {
    reqwest::Client::builder()
        .http1_only()
        .tcp_nodelay(true)
        .pool_max_idle_per_host(usize::try_from(senders).unwrap_or(usize::MAX))
        .connect_timeout(Duration::from_secs(5))
        .user_agent(concat!("emostream-simulate/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| Failure::Outside(format!("cannot make an HTTP client: {error}")))
}

/// Resolved once, so that thousands of viewers do not ask the resolver each.
async fn resolve(url: &Url) -> Result<Vec<SocketAddr>, Failure> {
    let outside = |error: String| Failure::Outside(format!("cannot resolve {url}: {error}"));
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let port = url.port_or_known_default().unwrap_or(80);
    let found = tokio::net::lookup_host((host, port)).await.map_err(|error| outside(error.to_string()))?;
    let addresses: Vec<SocketAddr> = found.collect();
    if addresses.is_empty() { Err(outside("no address".to_owned())) } else { Ok(addresses) }
}

/// `path` under the base address, which may have a path of its own.
pub fn endpoint(base: &Url, path: &[&str]) -> Url {
    let mut url = base.clone();
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(path);
    }
    url
}

/// The rooms' names: `main` alone, otherwise `main`, `room-2`, `room-3`, ….
fn room_name(room: u64) -> String {
    match room {
        0 => crate::reaction::live::DEFAULT_ROOM.to_owned(),
        room => format!("room-{}", room + 1),
    }
}

/// `error` with its causes: reqwest's own text leaves out why.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

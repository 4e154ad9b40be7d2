//! Accepting connections and speaking HTTP on them, within limits of time.
//!
//! `axum::serve` would do, but sets no limit on how long a client may take to send the head of a request: a few
//! thousand that send a byte a minute would hold every file that the process may open.

use std::pin::pin;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::STALLED_FOR;
use super::stall::Unstalled;

/// How long to wait when no connection can be accepted, for want of files mostly.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// What HTTP is spoken on.
pub(super) type Connection = TokioIo<Unstalled<TcpStream>>;

/// Serves until `stop`; ends when the last connection has. The head of a request arrives within `head_within`, from the end
/// of the one before, or the connection is closed.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
    head_within: Duration,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(head_within);
    let open = TaskTracker::new();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((connection, _)) => {
                let (http, router, stop) = (http.clone(), router.clone(), stop.clone());
                open.spawn(async move { speak(&http, guarded(connection), router, &stop).await });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                stop.run_until_cancelled(tokio::time::sleep(ACCEPT_AGAIN)).await;
            }
        }
    }
    drop(listener);
    open.close();
    open.wait().await;
}

/// Answers the requests of one connection; once asked to stop, the one that runs.
async fn speak(http: &http1::Builder, connection: Connection, router: Router, stop: &CancellationToken) {
    let serving = http.serve_connection(connection, TowerToHyperService::new(router)).with_upgrades();
    let mut serving = pin!(serving);
    let served = tokio::select! {
        served = serving.as_mut() => served,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended");
    }
}

/// The connection, whose writes may not stall.
fn guarded(connection: TcpStream) -> Connection {
    if let Err(error) = connection.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    TokioIo::new(Unstalled::new(connection, STALLED_FOR))
}

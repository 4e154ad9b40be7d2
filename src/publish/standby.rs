//! Which of several publish processes puts windows into order: the one that holds the lease; the others stand by.
//!
//! The lease only chooses who tries; that two of them never publish is the fence's doing. While nobody holds it windows are
//! committed and readable, and live ones come late, in order, none lost.

use std::sync::Arc;
use std::time::Duration;

use super::publisher::Publisher;
use crate::log::{Lease, Log, LogError};
use crate::shutdown::Tasks;

/// The name of the sequencer's lease.
const LEASE: &str = "publish";
/// How long publishing may take to end. A commit under way is all that it waits for.
const END: Duration = Duration::from_secs(3);
/// Between attempts to ask for the lease while the log does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// Publishes while this process holds the lease, stands by otherwise, until `tasks` end; then the lease is released at
/// once.
pub fn stand(publisher: Arc<Publisher>, log: Arc<dyn Log>, tasks: &Tasks) {
    let own = tasks.clone();
    tasks.spawn(async move {
        let stop = own.token();
        while !own.is_cancelled() {
            let Some(lease) = stop.run_until_cancelled(log.lease(LEASE)).await else { return };
            match lease {
                Ok(lease) => {
                    hold(&publisher, Arc::clone(&lease), &own).await;
                    lease.release().await;
                }
                Err(error) => {
                    tracing::warn!(%error, "the sequencer's lease cannot be asked for; trying again");
                    stop.run_until_cancelled(tokio::time::sleep(RETRY)).await;
                }
            }
        }
    });
}

/// From waiting for the lease to losing it.
async fn hold(publisher: &Arc<Publisher>, lease: Arc<dyn Lease>, tasks: &Tasks) {
    publisher.stand_by(true);
    if tasks.token().run_until_cancelled(lease.held()).await.is_none() {
        return;
    }
    publisher.stand_by(false);
    tracing::info!("this process puts windows into order");
    let running = tasks.child();
    let (publishing, held, inner) = (Arc::clone(publisher), Arc::clone(&lease), running.clone());
    let mut ended = running.spawn(async move { publishing.run(held.as_ref(), &inner).await });
    tokio::select! {
        () = tasks.cancelled() => {}
        () = lease.lost() => tracing::warn!("the sequencer's lease is lost; this process stands by"),
        ended = &mut ended => match ended {
            Ok(Err(LogError::Fenced(reason))) => {
                tracing::warn!(reason, "another process puts windows into order now; this one stands by");
            }
            Ok(Err(error)) => tracing::error!(%error, "publishing ended; trying again"),
            Ok(Ok(())) | Err(_) => {}
        },
    }
    if !running.stop(END).await {
        tracing::warn!("publishing did not end in time; what it still tries is fenced");
    }
}

//! Stage 3a: from a closed window to everyone's screen.
//!
//! ```text
//!  sinks ──▶ publisher ──▶ emostream.live ──┬─▶ cluster ──▶ emostream.cluster.NAME ──┬─▶ subscriber ──▶ clients
//!            one order,                     ├─▶ cluster …    a region's own copy     ├─▶ subscriber …
//!            each window once               └─▶ …                                    └─▶ …
//! ```
//!
//! The parts never call one another; they meet on topics of the log, so each starts, fails and scales alone. In the
//! order a window passes them:
//!
//! - [`gather`], [`sequence`]: results records become whole windows, and those one numbered order (pure);
//! - [`publisher`] runs that against the log, [`cluster`] copies it to a region;
//! - [`message`], [`history`], [`queue`], [`protocol`], [`gzip`]: what a subscriber keeps and what it says (pure);
//! - [`subscriber`] reads its cluster and holds the clients that [`routes`] lets in;
//! - [`front`] sends clients to the subscriber that [`placement`] chooses (pure) among the [`members`];
//! - [`standby`]: which of several publishers puts windows into order; [`tier`]: all of it in one process.
//!
//! Still to come: registered HTTP endpoints, commands over the WebSocket.

pub mod cluster;
pub mod front;
pub mod gather;
pub mod gzip;
pub mod history;
pub mod members;
pub mod message;
pub mod placement;
pub mod protocol;
pub mod publisher;
pub mod queue;
pub mod routes;
pub mod sequence;
pub mod subscriber;
pub mod tier;

mod feeds;
mod hub;
mod sse;
pub mod standby;
mod tail;

#[cfg(test)]
mod front_tests;
#[cfg(test)]
mod memory_log;
#[cfg(test)]
mod tests;

pub use cluster::Cluster;
pub use front::Front;
pub use front::routes::{front_router, publish_router};
pub use members::{Heart, Members};
pub use publisher::Publisher;
pub use routes::live_router;
pub use subscriber::Subscriber;
pub use tier::Tier;

use serde::{Deserialize, Serialize};

/// Section `[publish]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How many clusters `up` runs.
    pub clusters: usize,
    /// How many subscribers each of them has under `up`.
    pub subscribers_per_cluster: usize,
    /// What a front (`publish`) answers to `GET /v1/live`.
    pub placement: Placement,
    /// Clients that one front places in a second; those above it are told to try again.
    pub joins_per_second: usize,
    /// How many messages a subscriber keeps for clients that resume; never more than 16 MB of them.
    pub history: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            clusters: 3,
            subscribers_per_cluster: 3,
            placement: Placement::Redirect,
            joins_per_second: 500,
            history: 1_000,
        }
    }
}

/// What a front does with a client that asks it for a live stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// It sends the client to a subscriber.
    Redirect,
    /// It answers that it holds no streams.
    None,
}

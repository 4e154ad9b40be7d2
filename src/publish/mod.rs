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
//! - [`publisher`] runs that against the log, [`cluster`] copies it to a region, which may be on a log of its own ([`region`]);
//! - [`message`], [`history`], [`queue`], [`protocol`], [`frame`], [`gzip`], [`command`]: what a subscriber
//!   keeps, says and hears (pure);
//! - [`subscriber`] reads its cluster and holds the clients that [`routes`] lets in: `hub.rs` puts what happens into
//!   one order, `shard.rs` hands it out to `audience.rs`, `client.rs` writes; `socket.rs` and `sse.rs` are the two ways
//!   to talk with one client;
//! - [`front`] sends clients to the subscriber that [`placement`] chooses (pure) among the [`members`];
//! - it also takes in [`registrations`] of clients' own HTTP endpoints, where [`allow`] lets them be: a subscriber POSTs each
//!   message there ([`endpoints`], [`endpoint`]), and the cluster [`moves`] them away from one that dies or drains;
//! - [`standby`]: which of several publishers puts windows into order; [`tier`]: all of it in one process.

pub mod allow;
pub mod cluster;
pub mod command;
pub mod frame;
pub mod front;
pub mod gather;
pub mod gzip;
pub mod history;
pub mod live;
pub mod members;
pub mod message;
pub mod placement;
pub mod protocol;
pub mod publisher;
pub mod queue;
pub mod region;
pub mod registrations;
pub mod routes;
pub mod sequence;
pub mod subscriber;
pub mod tier;

mod audience;
mod client;
mod endpoint;
mod endpoints;
mod feeds;
mod hub;
mod meters;
mod moves;
mod shard;
mod socket;
mod sse;
pub mod standby;
mod tail;
mod wire;

#[cfg(test)]
mod front_tests;
#[cfg(test)]
mod memory_log;
#[cfg(test)]
mod region_tests;
#[cfg(test)]
mod tests;

pub use allow::AllowList;
pub use cluster::Cluster;
pub use endpoint::Poster;
pub use endpoints::serve_registered;
pub use front::Front;
pub use front::routes::{front_router, publish_router, register_router};
pub use live::{Live, Patience};
pub use members::{Heart, Members};
pub use publisher::Publisher;
pub use registrations::Registrations;
pub use routes::{live_router, live_router_with, subscriber_router};
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
    /// Networks in which clients may register an endpoint; fronts and subscribers need the same.
    pub register_allow: AllowList,
    /// Clients that may be registered at a time, of all clusters together.
    pub max_registered: usize,
    /// How long an endpoint may take to answer one message.
    pub endpoint_timeout_ms: u64,
    /// After so many failures in a row an endpoint's registration is given up.
    pub endpoint_failures: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            clusters: 3,
            subscribers_per_cluster: 3,
            placement: Placement::Redirect,
            joins_per_second: 500,
            history: 1_000,
            register_allow: AllowList::default(),
            max_registered: 1_000,
            endpoint_timeout_ms: 5_000,
            endpoint_failures: 10,
        }
    }
}

impl Settings {
    /// What types cannot say.
    ///
    /// # Errors
    /// Names the setting that is out of range.
    pub fn validate(&self) -> Result<(), String> {
        if !(1..=60_000).contains(&self.endpoint_timeout_ms) {
            return Err(format!(
                "publish.endpoint_timeout_ms = {}: between 1 and 60000",
                self.endpoint_timeout_ms
            ));
        }
        if self.endpoint_failures == 0 {
            return Err("publish.endpoint_failures = 0: at least 1".to_owned());
        }
        Ok(())
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

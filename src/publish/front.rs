//! A front: tells clients which subscriber to go to, and everyone who is there.

pub mod routes;

use std::sync::{Arc, Mutex};

use serde::Serialize;

use super::members::{MemberState, Members};
use super::placement::{Placement, Refused};
use super::{Placement as Mode, Settings};
use crate::clock;
use crate::http::Origins;
use crate::sync::lock;

/// One front process.
pub struct Front {
    members: Members,
    mode: Mode,
    origins: Origins,
    placement: Mutex<Placement>,
}

/// What `GET /v1/live/address` answers.
#[derive(Debug, Serialize)]
struct Address {
    /// The subscriber's own address.
    url: String,
    cluster: String,
    subscriber: String,
    /// Where to open the stream: the parameters of the question, and what tells the subscriber who sent the client.
    connect: String,
}

impl Front {
    /// Places clients among those members; `origins` are the pages that may change things.
    pub fn new(members: Members, settings: &Settings, origins: Origins) -> Arc<Self> {
        let name = format!("{:08x}", rand::random::<u32>());
        let placement = Mutex::new(Placement::new(name, settings.joins_per_second));
        Arc::new(Self { members, mode: settings.placement, origins, placement })
    }

    /// The subscriber for one more client, and where to connect.
    fn place(&self, cluster: Option<&str>, query: Option<&str>) -> Result<Address, Refused> {
        let mut placement = lock(&self.placement);
        let members = self.members.alive();
        let MemberState { cluster, subscriber, url, .. } =
            placement.place(&members, cluster, clock::wall_ms())?.clone();
        let url = url.unwrap_or_default();
        let separator = if query.is_some_and(|query| !query.is_empty()) { "&" } else { "" };
        let query = query.unwrap_or_default();
        let connect = format!("{url}/v1/live?{query}{separator}via={}", placement.front());
        Ok(Address { url, cluster, subscriber: subscriber.unwrap_or_default(), connect })
    }
}

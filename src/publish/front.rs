//! A front: tells clients which subscriber to go to, takes in those that have an endpoint of their own, and says who is there.

mod register;
pub mod routes;

use std::sync::{Arc, Mutex};

use serde::Serialize;
use tokio::time::Instant;

use self::register::Lookups;
use super::members::{MemberState, Members};
use super::placement::{Placement, Refused};
use super::registrations::View;
use super::{AllowList, Placement as Mode, Registrations, Settings};
use crate::http::Origins;
use crate::sync::lock;

/// One front process.
pub struct Front {
    members: Members,
    registrations: Registrations,
    mode: Mode,
    register_allow: AllowList,
    max_registered: usize,
    origins: Origins,
    placement: Mutex<Placement>,
    started: Instant,
    lookups: Lookups,
    /// Held by whoever changes the registrations.
    registering: tokio::sync::Mutex<()>,
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
    pub fn new(
        members: Members,
        registrations: Registrations,
        settings: &Settings,
        origins: Origins,
    ) -> Arc<Self> {
        let name = format!("{:08x}", rand::random::<u32>());
        let placement = Mutex::new(Placement::new(name, settings.joins_per_second));
        Arc::new(Self {
            members,
            registrations,
            mode: settings.placement,
            register_allow: settings.register_allow.clone(),
            max_registered: settings.max_registered,
            origins,
            placement,
            lookups: Lookups::default(),
            started: Instant::now(),
            registering: tokio::sync::Mutex::default(),
        })
    }

    /// Who is there, with as many registered clients as the log gives them: newer than what they said last.
    fn alive(&self, registrations: &View) -> Vec<MemberState> {
        let mut members = self.members.alive();
        if !registrations.is_loaded() {
            return members;
        }
        let loads = registrations.loads();
        for MemberState { cluster, subscriber, registered, .. } in &mut members {
            let name = subscriber.as_deref().unwrap_or_default();
            *registered = loads.get(&(cluster.as_str(), name)).copied().unwrap_or(0);
        }
        members
    }

    /// By a clock that nobody sets, so that joins neither count for ever nor all at once.
    fn now_ms(&self) -> i64 {
        i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    /// The subscriber for one more client, and where to connect.
    fn place(&self, cluster: Option<&str>, query: Option<&str>) -> Result<Address, Refused> {
        let members = self.registrations.look(|view| self.alive(view));
        let mut placement = lock(&self.placement);
        let MemberState { cluster, subscriber, url, .. } =
            placement.place(&members, cluster, self.now_ms())?.clone();
        let url = url.unwrap_or_default();
        let separator = if query.is_some_and(|query| !query.is_empty()) { "&" } else { "" };
        let query = query.unwrap_or_default();
        let connect = format!("{url}/v1/live?{query}{separator}via={}", placement.front());
        Ok(Address { url, cluster, subscriber: subscriber.unwrap_or_default(), connect })
    }
}

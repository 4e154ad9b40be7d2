//! One registered client: every live message POSTed to its endpoint, in order, one at a time.
//!
//! A message is acknowledged by a 2xx and sent again until it is; so after a crash, or an answer that came too late, the
//! endpoint gets one twice, and tells by its `id`. While it does not answer, what waits for it is bounded like any client's:
//! it gets what waited when it stopped, then the newest window of each room with `skipped`. Redirects are not followed, and
//! no proxy is asked: messages go to the address that was judged when the client registered.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use reqwest::{StatusCode, header};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::protocol::{Filter, Wanted, gap_message};
use super::queue::Delivery;
use super::registrations::{Acknowledged, Place, Registration};
use super::subscriber::{Since, Subscriber};
use super::{AllowList, Settings};
use crate::sync::lock;

/// How long to wait after the first failure, and at most; doubled by each, and up to half of it left to chance.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// How long a message under way may take when the process stops.
const LAST_ANSWER: Duration = Duration::from_secs(3);
/// Messages under way at a time, of all endpoints of the process whose last one was answered.
const UNDER_WAY: usize = 256;
/// The same of those whose last one was not: so that endpoints that hang keep no others waiting.
const UNDER_WAY_FAILING: usize = 32;
/// Connections that nothing is sent over are closed after so long.
const IDLE: Duration = Duration::from_secs(20);
/// The longest answer that is read, so that its connection can be used again.
const MAX_ANSWER_BYTES: u64 = 4 << 10;

/// What all endpoints of one process share.
pub struct Poster {
    /// Or why there is none.
    client: Result<reqwest::Client, String>,
    allow: AllowList,
    /// How long an endpoint may take to answer one message.
    pub(super) timeout: Duration,
    /// After so many in a row the registration is given up.
    failures: u32,
    answering: Semaphore,
    failing: Semaphore,
}

/// What became of one message.
enum Answer {
    Acknowledged,
    /// The endpoint wants no more.
    Gone,
    Failed(String),
}

impl Poster {
    /// As the settings say.
    pub fn new(settings: &Settings) -> Arc<Self> {
        let timeout = Duration::from_millis(settings.endpoint_timeout_ms);
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .http1_only()
            .tcp_nodelay(true)
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(IDLE)
            .timeout(timeout)
            .user_agent(concat!("emostream/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| format!("no HTTP client: {error}"));
        Arc::new(Self {
            client,
            allow: settings.register_allow.clone(),
            timeout,
            failures: settings.endpoint_failures,
            answering: Semaphore::new(UNDER_WAY),
            failing: Semaphore::new(UNDER_WAY_FAILING),
        })
    }

    async fn post(&self, to: &Registration, body: Bytes, has_failed: bool) -> Answer {
        let under_way = if has_failed { &self.failing } else { &self.answering };
        let Ok(_one) = under_way.acquire().await else {
            return Answer::Failed("the process stops".to_owned());
        };
        let client = match &self.client {
            Ok(client) => client,
            Err(error) => return Answer::Failed(error.clone()),
        };
        let request = client
            .post(format!("http://{}/", to.socket()))
            .header(header::HOST, to.authority())
            .header(header::CONTENT_TYPE, "application/json")
            .body(body);
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Answer::Failed(self.why(error)),
        };
        let status = response.status();
        if response.content_length().is_some_and(|length| length <= MAX_ANSWER_BYTES) {
            drop(response.bytes().await);
        }
        match status {
            StatusCode::GONE => Answer::Gone,
            status if status.is_success() => Answer::Acknowledged,
            status => Answer::Failed(format!("it answered {status}")),
        }
    }

    fn why(&self, error: reqwest::Error) -> String {
        match &error {
            error if error.is_timeout() => format!("no answer within {:?}", self.timeout),
            error if error.is_connect() => "no connection".to_owned(),
            _ => error.without_url().to_string(),
        }
    }
}

/// What a subscriber has to write down of its endpoints: the newest word of each, so never more than there are.
#[derive(Default)]
pub(super) struct Outbox {
    pub(super) said: Mutex<Said>,
    /// Something that should not wait until the next round.
    pub(super) urgent: Notify,
}

/// See [`Outbox`].
#[derive(Default)]
pub(super) struct Said {
    pub(super) acknowledged: BTreeMap<String, Acknowledged>,
    /// Registrations that are given up.
    pub(super) given_up: BTreeMap<String, Registration>,
}

/// What an endpoint's task is to do.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Order {
    pub(super) registration: Registration,
    pub(super) place: Place,
}

/// One client at the subscriber that serves it.
pub(super) struct Endpoint {
    pub(super) id: String,
    pub(super) subscriber: Arc<Subscriber>,
    pub(super) poster: Arc<Poster>,
    pub(super) outbox: Arc<Outbox>,
    /// None: it is served here no longer.
    pub(super) order: watch::Receiver<Option<Order>>,
    pub(super) stop: CancellationToken,
    /// Where to go on.
    pub(super) since: Since,
    /// The number of the place that is served.
    pub(super) number: u64,
    /// Failures in a row.
    pub(super) failures: u32,
}

/// Why a connection to the stream of messages ends.
enum End {
    /// Something else was asked for, or the client is served elsewhere.
    Changed,
    /// The process stops.
    Stopped,
    /// The client is gone, as far as can be told.
    GivenUp(String),
}

impl Endpoint {
    /// Serves the client until it is served elsewhere, gone, or the process stops; returns where to go on.
    pub(super) async fn run(mut self) -> Since {
        while let Some(order) = self.asked() {
            self.number = order.place.number;
            match self.serve(&order.registration).await {
                End::Changed => self.failures = 0,
                End::Stopped => return self.since,
                End::GivenUp(reason) => {
                    let (cluster, name) = self.subscriber.key();
                    let (client_id, to) = (&self.id, order.registration.authority());
                    tracing::warn!(cluster, name, client_id, to, reason, "a registered client is given up");
                    lock(&self.outbox.said).given_up.insert(self.id, order.registration);
                    self.outbox.urgent.notify_one();
                    return self.since;
                }
            }
        }
        self.acknowledge(self.number);
        self.outbox.urgent.notify_one();
        self.since
    }

    fn asked(&mut self) -> Option<Order> {
        self.order.borrow_and_update().clone()
    }

    /// Says what the client has; `ended`: the number of the place that is served no longer. While this one is served that is
    /// the one before: who serves this one after a crash waits for nobody.
    fn acknowledge(&self, ended: u64) {
        let ended = Some(ended);
        let id = match self.since {
            Since::Now => return,
            Since::Start => None,
            Since::After(id) => Some(id),
        };
        lock(&self.outbox.said).acknowledged.insert(self.id.clone(), Acknowledged { id, ended });
    }

    async fn serve(&mut self, registration: &Registration) -> End {
        if !self.poster.allow.allows(registration.address) {
            let allowed = &self.poster.allow;
            return End::GivenUp(format!("{} is outside of {allowed}", registration.address));
        }
        let (mut seat, since) = self.subscriber.join_registered(filter(registration), self.since);
        self.since = since;
        // Written at once: whatever happens from now on, it goes on from here.
        self.acknowledge(self.number.saturating_sub(1));
        self.outbox.urgent.notify_one();
        loop {
            let deliveries = tokio::select! {
                biased;
                () = self.stop.cancelled() => return End::Stopped,
                _ = self.order.changed() => return End::Changed,
                deliveries = seat.next() => deliveries,
            };
            for delivery in &deliveries {
                let body = match delivery {
                    Delivery::Window { message, .. } if self.since >= Since::After(message.id) => continue,
                    Delivery::Window { message, skipped } => message.json(*skipped),
                    Delivery::Gap => gap_message(self.since.id().map(|id| id.to_string()).as_deref()).into(),
                };
                if let Err(end) = self.deliver(registration, body).await {
                    return end;
                }
                seat.written([delivery]);
                if let Delivery::Window { message, .. } = delivery {
                    self.since = Since::After(message.id);
                    self.acknowledge(self.number.saturating_sub(1));
                }
            }
        }
    }

    /// Sends one message until it is acknowledged.
    async fn deliver(&mut self, to: &Registration, body: Bytes) -> Result<(), End> {
        loop {
            if self.stop.is_cancelled() {
                return Err(End::Stopped);
            }
            if self.order.has_changed().unwrap_or(true) {
                return Err(End::Changed);
            }
            let answer = tokio::select! {
                answer = self.poster.post(to, body.clone(), self.failures > 0) => answer,
                () = after_stop(&self.stop) => return Err(End::Stopped),
            };
            let reason = match answer {
                Answer::Acknowledged => {
                    self.failures = 0;
                    return Ok(());
                }
                Answer::Gone => return Err(End::GivenUp("it answered 410 Gone".to_owned())),
                Answer::Failed(reason) => reason,
            };
            self.failures += 1;
            if self.failures >= self.poster.failures {
                return Err(End::GivenUp(format!("{} failures in a row; the last: {reason}", self.failures)));
            }
            tracing::debug!(
                client_id = self.id,
                failures = self.failures,
                reason,
                "an endpoint does not take messages"
            );
            tokio::select! {
                () = sleep(backoff(self.failures, rand::random_range(0.5..=1.0))) => {}
                () = self.stop.cancelled() => {}
                // Who registers again is there again.
                _ = self.order.changed() => return Err(End::Changed),
            }
        }
    }
}

/// Ends some time after the process was asked to stop.
async fn after_stop(stop: &CancellationToken) {
    stop.cancelled().await;
    sleep(LAST_ANSWER).await;
}

/// How long to wait after so many failures; `part` between a half and one.
fn backoff(failures: u32, part: f64) -> Duration {
    let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
    BACKOFF.0.saturating_mul(doubled).min(BACKOFF.1).mul_f64(part)
}

fn filter(registration: &Registration) -> Filter {
    let name = |name: &Option<String>| name.as_deref().map(Arc::<str>::from);
    let wanted = Wanted { tables: name(&registration.table).into_iter().collect(), early: false };
    match name(&registration.room) {
        None => Filter::EveryRoom(wanted),
        Some(room) => Filter::of_rooms([room], &wanted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_doubles_the_wait_up_to_half_a_minute() {
        let waits: Vec<u128> = (1..=10).map(|failures| backoff(failures, 1.0).as_millis()).collect();
        assert_eq!(waits, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000, 30_000]);
        assert_eq!(backoff(1, 0.5), Duration::from_millis(250));
        assert_eq!(backoff(u32::MAX, 1.0), BACKOFF.1);
    }
}

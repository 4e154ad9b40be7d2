//! The lease: the one partition of a topic, assigned by Kafka's group protocol to one member at a time.
//!
//! The broker gives it to another member when this one sent no heartbeat for the session's time. A process that was
//! stopped for so long does not know it yet when it goes on: so a lease counts as held only while the thread that polls
//! the group has been on time, and one that was late gives it up and joins anew.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;
use tokio::sync::watch;
use tokio::time::Instant;

use super::settings::{Context, KafkaSettings};
use super::{blocking, create};
use crate::log::{Lease, LogError};
use crate::sync::lock;

/// How often the group is polled.
const POLL: Duration = Duration::from_millis(100);
/// A poll that took longer is too late. With a heartbeat's interval it is below the session's time, so that nobody else
/// has the lease yet.
const ON_TIME: Duration = Duration::from_secs(3);

/// What the polling thread and the holder share.
struct Standing {
    /// When the lease was last known to be ours; `None` when it is not.
    held: watch::Sender<Option<Instant>>,
    released: AtomicBool,
}

pub(super) struct KafkaLease {
    standing: Arc<Standing>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// Joins the group; returns at once, whether or not the lease is free.
pub(super) fn join(settings: &KafkaSettings, group: &str, topic: &str) -> Result<KafkaLease, LogError> {
    let standing = Arc::new(Standing { held: watch::Sender::new(None), released: AtomicBool::new(false) });
    let member = Member { settings: settings.clone(), group: group.to_owned(), topic: topic.to_owned() };
    let first = member.join(&standing)?;
    let polled = Arc::clone(&standing);
    let thread = std::thread::Builder::new().name("kafka-lease".to_owned());
    let thread = thread.spawn(move || member.poll(first, &polled));
    let thread = thread.map_err(|error| LogError::Refused(format!("no thread for the lease: {error}")))?;
    Ok(KafkaLease { standing, thread: Mutex::new(Some(thread)) })
}

#[async_trait]
impl Lease for KafkaLease {
    fn is_held(&self) -> bool {
        self.standing.held.borrow().is_some_and(|at| at.elapsed() < ON_TIME)
    }

    async fn held(&self) {
        // The sender lives as long as this does.
        self.standing.held.subscribe().wait_for(Option::is_some).await.ok();
    }

    async fn lost(&self) {
        self.standing.held.subscribe().wait_for(Option::is_none).await.ok();
    }

    async fn release(&self) {
        self.standing.released.store(true, Ordering::Release);
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            let joined = blocking(move || Ok(thread.join().is_ok())).await;
            if !matches!(joined, Ok(true)) {
                tracing::warn!("the lease's thread did not end in order; the session's time frees the lease");
            }
        }
    }
}

impl Drop for KafkaLease {
    fn drop(&mut self) {
        self.standing.released.store(true, Ordering::Release);
    }
}

/// How to be a member of the group.
struct Member {
    settings: KafkaSettings,
    group: String,
    topic: String,
}

impl Member {
    fn join(&self, standing: &Arc<Standing>) -> Result<BaseConsumer<Assigned>, LogError> {
        let consumer: BaseConsumer<Assigned> =
            create(&self.settings.lease(&self.group), Assigned(Arc::clone(standing)))?;
        let subscribed = consumer.subscribe(&[self.topic.as_str()]);
        subscribed.map_err(|error| LogError::Unavailable(format!("{}: {error}", self.topic)))?;
        Ok(consumer)
    }

    /// Polls until released; joins anew after a poll that was too late.
    fn poll(&self, first: BaseConsumer<Assigned>, standing: &Arc<Standing>) {
        let mut consumer = Some(first);
        while !standing.released.load(Ordering::Acquire) {
            let Some(member) = &consumer else {
                match self.join(standing) {
                    Ok(joined) => consumer = Some(joined),
                    Err(error) => {
                        tracing::warn!(%error, "the lease's group cannot be joined; trying again");
                        std::thread::park_timeout(POLL);
                    }
                }
                continue;
            };
            let began = Instant::now();
            if let Some(Err(error)) = member.poll(POLL) {
                tracing::debug!("the lease's group: {error}");
            }
            if began.elapsed() >= ON_TIME {
                standing.held.send_replace(None);
                tracing::error!("this process stood still for {:?}; the lease is given up", began.elapsed());
                // Closing it leaves the group, if the group still knows it.
                drop(consumer.take());
                continue;
            }
            standing.held.send_if_modified(|held| {
                let is_held = held.is_some();
                *held = held.map(|_| Instant::now());
                // Only getting and losing it are news.
                !is_held && held.is_some()
            });
        }
        standing.held.send_replace(None);
        // Leaves the group, so that the next member need not wait for the session's time.
        drop(consumer);
    }
}

/// Follows what the group assigns.
struct Assigned(Arc<Standing>);

impl ClientContext for Assigned {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        Context.log(level, facility, message);
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        Context.error(error, reason);
    }
}

impl ConsumerContext for Assigned {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, change: &Rebalance<'_>) {
        if matches!(change, Rebalance::Revoke(_) | Rebalance::Error(_)) {
            self.0.held.send_replace(None);
        }
    }

    fn post_rebalance(&self, _: &BaseConsumer<Self>, change: &Rebalance<'_>) {
        if let Rebalance::Assign(partitions) = change
            && partitions.count() > 0
        {
            self.0.held.send_replace(Some(Instant::now()));
        }
    }
}

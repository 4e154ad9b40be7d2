//! What a subscriber counts.

use std::sync::atomic::{AtomicU64, Ordering};

use super::queue::Delivery;
use crate::clock;

/// A subscriber's metrics; the heartbeat tells of them too.
pub(super) struct Meters {
    /// Connections.
    pub(super) clients: metrics::Gauge,
    /// Registered endpoints.
    pub(super) registered: metrics::Gauge,
    deliveries: metrics::Counter,
    skipped: metrics::Counter,
    lag_seconds: metrics::Histogram,
    total: AtomicU64,
}

impl Meters {
    pub(super) fn new(cluster: &str, name: &str) -> Self {
        let labels = [("cluster", cluster.to_owned()), ("subscriber", name.to_owned())];
        Self {
            clients: metrics::gauge!("emostream_publish_clients", &labels),
            registered: metrics::gauge!("emostream_publish_registered", &labels),
            deliveries: metrics::counter!("emostream_publish_deliveries_total", &labels),
            skipped: metrics::counter!("emostream_publish_skipped_total", &labels),
            lag_seconds: metrics::histogram!("emostream_publish_delivery_lag_seconds"),
            total: AtomicU64::new(0),
        }
    }

    /// Windows written to sockets.
    pub(super) fn delivered(&self, windows: u64) {
        self.deliveries.increment(windows);
        self.total.fetch_add(windows, Ordering::Relaxed);
    }

    /// Closed windows left out for clients that are behind.
    pub(super) fn skipped(&self, windows: u64) {
        if windows > 0 {
            self.skipped.increment(windows);
        }
    }

    /// Takes the time from each window's end to now.
    pub(super) fn lag<'a>(&self, deliveries: impl IntoIterator<Item = &'a Delivery>) {
        let now_ns = clock::wall_ns();
        for delivery in deliveries {
            let Delivery::Window { message, .. } = delivery else { continue };
            if message.is_final {
                #[allow(clippy::cast_precision_loss)] // nanoseconds of a lag
                self.lag_seconds.record((now_ns - message.window.end) as f64 / 1e9);
            }
        }
    }

    /// Windows written to sockets since the start.
    pub(super) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

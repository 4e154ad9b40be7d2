//! The watermark: the event time before which a partition is taken to be complete. Monotonic.

/// The watermark of one partition: largest event time − delay, or, while the partition is proved idle, the time of
/// the proof − delay, whichever is later.
#[derive(Clone, Copy, Debug)]
pub struct Watermark {
    delay_ns: i64,
    /// Nothing above it is known yet; a checkpoint's watermark after recovery.
    floor: Option<i64>,
    largest_event_ns: Option<i64>,
    proved_ns: Option<i64>,
}

impl Watermark {
    /// Of a partition that has shown nothing yet beyond `floor`.
    pub fn new(delay_ns: i64, floor: Option<i64>) -> Self {
        Self { delay_ns, floor, largest_event_ns: None, proved_ns: None }
    }

    /// A record was read whose largest (not future) event time this is.
    pub fn advance(&mut self, event_ns: i64) {
        self.largest_event_ns = self.largest_event_ns.max(Some(event_ns));
    }

    /// The partition is idle and complete up to that wall-clock time.
    pub fn prove_idle(&mut self, wall_ns: i64) {
        self.proved_ns = self.proved_ns.max(Some(wall_ns));
    }

    /// The input has ended: it is complete for all time.
    pub fn end(&mut self) {
        self.floor = Some(i64::MAX);
    }

    /// The watermark, `None` when nothing is known.
    pub fn value(&self) -> Option<i64> {
        let reached = self.largest_event_ns.max(self.proved_ns);
        self.floor.max(reached.map(|ns| ns.saturating_sub(self.delay_ns)))
    }
}

/// A query's watermark: the minimum over its partitions; `None` while one of them knows nothing.
pub fn minimum(partitions: impl IntoIterator<Item = Option<i64>>) -> Option<i64> {
    partitions.into_iter().min().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_steps_back() {
        let mut watermark = Watermark::new(500, Some(100));
        assert_eq!(watermark.value(), Some(100));
        watermark.advance(400);
        assert_eq!(watermark.value(), Some(100));
        watermark.advance(2000);
        watermark.advance(1000);
        assert_eq!(watermark.value(), Some(1500));
        watermark.prove_idle(1800);
        assert_eq!(watermark.value(), Some(1500));
        watermark.prove_idle(2600);
        assert_eq!(watermark.value(), Some(2100));
    }

    #[test]
    fn a_partition_that_knows_nothing_holds_the_query() {
        assert_eq!(minimum([Some(3), None, Some(9)]), None);
        assert_eq!(minimum([Some(3), Some(2)]), Some(2));
        assert_eq!(minimum([]), None);
    }
}

//! When early results are due: each sink at its own pace (`emit_every`), and never without a pause.

use std::time::Duration;

use tokio::time::Instant;

use super::compile::CompiledQuery;

/// The ticks of a query's outputs.
pub(super) struct Ticks(Vec<Tick>);

struct Tick {
    output: usize,
    every: Duration,
    next: Instant,
}

impl Ticks {
    /// Those of the outputs whose sinks want early results, the first ones a full interval from now.
    pub(super) fn new(query: &CompiledQuery, now: Instant) -> Self {
        let ticks = query.outputs.iter().enumerate().filter_map(|(output, compiled)| {
            let every = Duration::from_nanos(u64::try_from(compiled.sink.with.emit_every_ns?).ok()?);
            Some(Tick { output, every, next: now + every })
        });
        Self(ticks.collect())
    }

    /// The outputs whose time has come.
    pub(super) fn due(&self, now: Instant) -> Vec<usize> {
        self.0.iter().filter(|tick| tick.next <= now).map(|tick| tick.output).collect()
    }

    /// What was due at `began` is done with at `now`. Ticks that were missed meanwhile are left out, and before the next
    /// one there is as much time for other work as this one took.
    pub(super) fn done(&mut self, began: Instant, now: Instant) {
        for tick in self.0.iter_mut().filter(|tick| tick.next <= began) {
            let missed = (now - tick.next).as_nanos() / tick.every.as_nanos().max(1);
            let later = tick.every.saturating_mul(u32::try_from(missed + 1).unwrap_or(u32::MAX));
            tick.next = (tick.next + later).max(now + (now - began));
        }
    }

    /// When something is due next.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.iter().map(|tick| tick.next).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn ticks_keep_their_pace_leave_out_what_was_missed_and_leave_time_for_other_work() {
        let start = Instant::now();
        let mut ticks = Ticks(vec![
            Tick { output: 0, every: 100 * MS, next: start + 100 * MS },
            Tick { output: 2, every: 70 * MS, next: start + 70 * MS },
        ]);
        assert_eq!(ticks.due(start + 69 * MS), Vec::<usize>::new());
        assert_eq!((ticks.due(start + 70 * MS), ticks.due(start + 100 * MS)), (vec![2], vec![0, 2]));
        ticks.done(start + 75 * MS, start + 80 * MS);
        assert_eq!(ticks.next(), Some(start + 100 * MS));
        assert_eq!(ticks.due(start + 140 * MS), [0, 2]);
        // Several are missed, and the next ones follow no sooner than these took.
        ticks.done(start + 141 * MS, start + 320 * MS);
        assert_eq!((ticks.due(start + 498 * MS), ticks.due(start + 499 * MS)), (vec![], vec![0, 2]));
        ticks.done(start + 500 * MS, start + 505 * MS);
        assert_eq!((ticks.due(start + 569 * MS), ticks.due(start + 599 * MS)), (vec![2], vec![0, 2]));
    }
}

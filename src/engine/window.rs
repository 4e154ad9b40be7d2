//! Event time divided into panes. A tumbling window is one pane; panes align to the Unix epoch.

use crate::reaction::time::Window;

/// Panes of one width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panes {
    width_ns: i64,
}

impl Panes {
    /// Panes of that width; at least a nanosecond.
    pub fn new(width_ns: i64) -> Self {
        Self { width_ns: width_ns.max(1) }
    }

    /// The width in nanoseconds.
    pub fn width_ns(self) -> i64 {
        self.width_ns
    }

    /// The pane that holds this event time; `None` where its bounds do not fit 64 bits.
    pub fn containing(self, event_ns: i64) -> Option<Window> {
        let start = event_ns.checked_sub(event_ns.rem_euclid(self.width_ns))?;
        Some(Window { start, end: start.checked_add(self.width_ns)? })
    }

    /// The last boundary at or before this time: every pane up to it is over.
    pub fn boundary_at_or_before(self, ns: i64) -> i64 {
        ns.saturating_sub(ns.rem_euclid(self.width_ns))
    }

    /// The first boundary at or after this time.
    pub fn boundary_at_or_after(self, ns: i64) -> i64 {
        let before = self.boundary_at_or_before(ns);
        if before == ns { ns } else { before.saturating_add(self.width_ns) }
    }
}

/// A run of consecutive rows that belong to one pane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The pane.
    pub pane: Window,
    /// The first row.
    pub from: usize,
    /// How many rows.
    pub rows: usize,
}

/// Divides rows by pane, as runs of consecutive rows: rows of live traffic come almost sorted, so that a record has
/// a run or two and is sliced, not gathered. Rows whose pane does not fit 64 bits are left out; their number is the
/// second value.
pub fn runs(panes: Panes, event_ns: &[i64]) -> (Vec<Run>, usize) {
    let mut runs: Vec<Run> = Vec::with_capacity(2);
    let mut left_out = 0;
    for (row, &ns) in event_ns.iter().enumerate() {
        if let Some(last) = runs.last_mut()
            && last.from + last.rows == row
            && last.pane.start <= ns
            && ns < last.pane.end
        {
            last.rows += 1;
            continue;
        }
        match panes.containing(ns) {
            Some(pane) => runs.push(Run { pane, from: row, rows: 1 }),
            None => left_out += 1,
        }
    }
    (runs, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panes_divide_by_floor_also_before_the_epoch() {
        let panes = Panes::new(2000);
        assert_eq!(panes.containing(3999), Some(Window { start: 2000, end: 4000 }));
        assert_eq!(panes.containing(4000), Some(Window { start: 4000, end: 6000 }));
        assert_eq!(panes.containing(-1), Some(Window { start: -2000, end: 0 }));
        assert_eq!(panes.containing(i64::MAX), None);
        assert_eq!(panes.containing(i64::MIN), None);
        assert_eq!(panes.boundary_at_or_before(-1), -2000);
        assert_eq!(panes.boundary_at_or_after(-1), 0);
        assert_eq!(panes.boundary_at_or_after(4000), 4000);
    }

    #[test]
    fn rows_are_divided_into_runs() {
        let (found, left_out) = runs(Panes::new(10), &[1, 2, 11, 12, 3, i64::MAX, 4]);
        let brief: Vec<_> = found.iter().map(|run| (run.pane.start, run.from, run.rows)).collect();
        assert_eq!(brief, [(0, 0, 2), (10, 2, 2), (0, 4, 1), (0, 6, 1)]);
        assert_eq!(left_out, 1);
    }
}

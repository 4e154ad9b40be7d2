//! Event time divided into panes, the parts that windows share. Pure.
//!
//! A window is a whole number of panes, side by side. A short tumbling window is one pane; hopping windows share theirs,
//! so that a row costs the same however many windows it is in; long windows have panes of at most ten seconds, because
//! each pane is saved once, when it is over. Panes and windows align to the Unix epoch.

use super::change::Rhythm;
use crate::reaction::time::{NS_PER_MS, Window};
use crate::sql::cut::Windowing;

/// Windows longer than this restart from saved panes instead of the log.
const REPLAYED_NS: i64 = 60_000 * NS_PER_MS;
/// The longest pane of a window that is saved.
const SAVED_PANE_NS: i64 = 10_000 * NS_PER_MS;
/// Sessions are closed in steps of a tenth of their gap, within these bounds: a session's last row is the only sign of
/// its end, and every look costs.
const SESSION_STEP_NS: (i64, i64) = (10 * NS_PER_MS, 1_000 * NS_PER_MS);

/// Tumbling or hopping windows, by their panes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panes {
    pane_ns: i64,
    slide_ns: i64,
    width_ns: i64,
}

impl Panes {
    /// Of tumbling and hopping windows; `None` for sessions.
    pub fn of(windowing: Windowing) -> Option<Self> {
        let (slide_ns, width_ns) = match windowing {
            Windowing::Tumble { width_ns } => (width_ns, width_ns),
            Windowing::Hop { slide_ns, width_ns } => (slide_ns, width_ns),
            Windowing::Session { .. } => return None,
        };
        let pane_ns = if width_ns > REPLAYED_NS { divisor(slide_ns, SAVED_PANE_NS) } else { slide_ns };
        Some(Self { pane_ns, slide_ns, width_ns })
    }

    /// A pane's length in nanoseconds.
    pub fn pane_ns(self) -> i64 {
        self.pane_ns
    }

    /// A window's length in nanoseconds.
    pub fn width_ns(self) -> i64 {
        self.width_ns
    }

    /// Whether a window is one pane.
    pub fn is_single(self) -> bool {
        self.pane_ns == self.width_ns
    }

    /// Whether a pane is part of one window only.
    pub fn is_tumbling(self) -> bool {
        self.slide_ns == self.width_ns
    }

    /// Whether panes are saved with the checkpoint, because reading them again from the log would take too long.
    pub fn is_saved(self) -> bool {
        self.width_ns > REPLAYED_NS
    }

    /// The pane that holds this event time; `None` where its windows do not fit 64 bits.
    pub fn containing(self, event_ns: i64) -> Option<Window> {
        let start = event_ns.checked_sub(event_ns.rem_euclid(self.pane_ns))?;
        start.checked_sub(self.width_ns)?;
        start.checked_add(self.width_ns.checked_add(self.slide_ns)?)?;
        Some(Window { start, end: start + self.pane_ns })
    }

    /// The last pane's end at or before this time.
    pub fn boundary_at_or_before(self, ns: i64) -> i64 {
        floor(ns, self.pane_ns)
    }

    /// The first window end after this time.
    pub fn window_end_after(self, ns: i64) -> i64 {
        floor(ns, self.slide_ns).saturating_add(self.slide_ns)
    }

    /// The start of the first window that is open once all that end at or before `closed_to` are closed. A row before it
    /// is late.
    pub fn first_open_start(self, closed_to: i64) -> i64 {
        floor(closed_to.saturating_sub(self.width_ns), self.slide_ns).saturating_add(self.slide_ns)
    }

    /// The last start of a window at or before this time.
    pub fn slide_start(self, ns: i64) -> i64 {
        floor(ns, self.slide_ns)
    }

    /// The end of the last window that holds a pane.
    pub fn last_window_end(self, pane_start: i64) -> i64 {
        floor(pane_start, self.slide_ns).saturating_add(self.width_ns)
    }
}

/// The instants at which windows of that kind may close: the last one at or before this time.
pub fn boundary_at_or_before(windowing: Windowing, ns: i64) -> i64 {
    match Panes::of(windowing) {
        Some(panes) => panes.boundary_at_or_before(ns),
        None => floor(ns, session_step_ns(windowing)),
    }
}

/// How the windows lie in event time. Sessions have no common ends: they are looked at in steps.
pub fn rhythm(windowing: Windowing) -> Rhythm {
    match Panes::of(windowing) {
        Some(panes) => Rhythm { slide_ns: panes.slide_ns, width_ns: panes.width_ns },
        None => {
            let step = session_step_ns(windowing);
            Rhythm { slide_ns: step, width_ns: step }
        }
    }
}

fn session_step_ns(windowing: Windowing) -> i64 {
    match windowing {
        Windowing::Session { gap_ns } => (gap_ns / 10).clamp(SESSION_STEP_NS.0, SESSION_STEP_NS.1),
        _ => 1,
    }
}

fn floor(ns: i64, step: i64) -> i64 {
    ns.saturating_sub(ns.rem_euclid(step))
}

/// The largest divisor of `span` that is at most `limit`.
fn divisor(span: i64, limit: i64) -> i64 {
    let parts = (span.saturating_add(limit - 1) / limit).max(1);
    (parts..=span).find(|parts| span % parts == 0).map_or(1, |parts| span / parts)
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
    let mut from = 0;
    while let Some(&ns) = event_ns.get(from) {
        let Some(pane) = panes.containing(ns) else {
            (left_out, from) = (left_out + 1, from + 1);
            continue;
        };
        let rest = &event_ns[from..];
        let rows = rest.iter().position(|&ns| ns < pane.start || pane.end <= ns).unwrap_or(rest.len());
        runs.push(Run { pane, from, rows });
        from += rows;
    }
    (runs, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tumble(width_ns: i64) -> Panes {
        Panes::of(Windowing::Tumble { width_ns }).unwrap()
    }

    #[test]
    fn panes_divide_by_floor_also_before_the_epoch() {
        let panes = tumble(2000);
        assert_eq!(panes.containing(3999), Some(Window { start: 2000, end: 4000 }));
        assert_eq!(panes.containing(4000), Some(Window { start: 4000, end: 6000 }));
        assert_eq!(panes.containing(-1), Some(Window { start: -2000, end: 0 }));
        assert_eq!(panes.containing(i64::MAX), None);
        assert_eq!(panes.containing(i64::MIN), None);
        assert_eq!(panes.boundary_at_or_before(-1), -2000);
    }

    #[test]
    fn windows_of_a_hop_share_panes() {
        let panes = Panes::of(Windowing::Hop { slide_ns: 10, width_ns: 30 }).unwrap();
        assert_eq!(panes.containing(25), Some(Window { start: 20, end: 30 }));
        assert_eq!((panes.window_end_after(25), panes.window_end_after(30)), (30, 40));
        assert_eq!(panes.last_window_end(20), 50);
        // [0, 30) is closed at 30, so that [10, 40) is the first one open.
        assert_eq!((panes.first_open_start(30), panes.first_open_start(39)), (10, 10));
    }

    #[test]
    fn a_long_window_has_panes_of_ten_seconds_at_most() {
        let second = 1_000 * NS_PER_MS;
        assert_eq!(tumble(60 * second).pane_ns(), 60 * second);
        assert_eq!(tumble(3600 * second).pane_ns(), 10 * second);
        assert_eq!(tumble(61 * second).pane_ns(), 61 * second / 8);
        let hop = Panes::of(Windowing::Hop { slide_ns: 4 * second, width_ns: 300 * second }).unwrap();
        assert_eq!((hop.pane_ns(), hop.is_saved(), hop.is_single()), (4 * second, true, false));
    }

    #[test]
    fn rows_are_divided_into_runs() {
        let (found, left_out) = runs(tumble(10), &[1, 2, 11, 12, 3, i64::MAX, 4]);
        let brief: Vec<_> = found.iter().map(|run| (run.pane.start, run.from, run.rows)).collect();
        assert_eq!(brief, [(0, 0, 2), (10, 2, 2), (0, 4, 1), (0, 6, 1)]);
        assert_eq!(left_out, 1);
    }
}

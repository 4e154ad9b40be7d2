//! How sessions go on in a version of a query with another plan. Pure.
//!
//! ```text
//!  old   ──[a  a]──────[b   b    ┊                 B: the old version emits the sessions that end at or before it
//!                      S         B
//!  new                 [b   b    ┊  b]──           the new one those that end later: read again from S, where the first
//!      ┊W   [·    ·    ·    ·    ┊  ·]             open one began, and further back where rows make other sessions
//! ```
//!
//! Where rows make the same sessions as before (only what is kept of them changed), none is lost and none comes twice. Where
//! they make others, a row may be in sessions of both versions; one from S on may be in none, when it was in an open
//! session of the old version and that of the new one ended before B: a gap. A session that may lack rows, because they are
//! gone or lie further back than is read (it began before W), is not emitted. A row that was late for the old version is not
//! late for the new one: where it joins a session that was emitted to one that was open, both are emitted as one.

use crate::reaction::checkpoint::{Gap, OpenSessions};

/// Where sessions are others than before, this many gaps are read back before the first row that was not emitted.
const GAPS_BACK: i64 = 10;

/// What makes rows one session in a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionKind {
    /// The same where the same rows make the same sessions.
    pub definition: String,
    /// The longest gap.
    pub gap_ns: i64,
}

/// From where a version emits sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionSwitch {
    /// Rows dated from here on are filled in again.
    pub rows_from: Option<i64>,
    /// Sessions that end at or before this were emitted by the version before.
    pub emitted: i64,
    /// A session that began before this may lack rows.
    pub whole_from: i64,
}

impl Default for SessionSwitch {
    /// Every session is emitted.
    fn default() -> Self {
        Self { rows_from: None, emitted: i64::MIN, whole_from: i64::MIN }
    }
}

impl SessionSwitch {
    /// After a restart of the same plan.
    pub fn resumed(open: Option<&OpenSessions>) -> Self {
        Self { whole_from: left_out_before(open), ..Self::default() }
    }

    /// After another plan has emitted everything up to `boundary`.
    pub fn after(before: Option<&OpenSessions>, kind: &SessionKind, boundary: i64) -> Self {
        let open_from = first_open(before, boundary);
        let whole_from = left_out_before(before);
        if before.is_some_and(|before| before.definition == kind.definition) {
            return Self { rows_from: Some(open_from), emitted: boundary, whole_from };
        }
        let back = kind.gap_ns.saturating_mul(GAPS_BACK);
        let rows_from = open_from.saturating_sub(back);
        let whole_from = whole_from.max(rows_from.saturating_add(kind.gap_ns));
        Self { rows_from: Some(rows_from), emitted: boundary, whole_from }
    }

    /// The same when rows from before `gone_to` are gone from the log.
    #[must_use]
    pub fn without_rows_before(self, kind: &SessionKind, gone_to: i64) -> Self {
        match self.rows_from {
            Some(rows_from) if gone_to > rows_from => {
                let whole_from = self.whole_from.max(gone_to.saturating_add(kind.gap_ns));
                Self { rows_from: Some(gone_to), whole_from, ..self }
            }
            _ => self,
        }
    }

    /// The same when the log holds no row from before those that are read, and never did: nothing is lacking, but what
    /// `before` lacked.
    #[must_use]
    pub fn with_all_rows(self, before: Option<&OpenSessions>) -> Self {
        Self { whole_from: left_out_before(before), ..self }
    }

    /// Event time whose rows may be in no session of either version; `None` when there are no such rows.
    pub fn gap(self, before: Option<&OpenSessions>, kind: &SessionKind, boundary: i64) -> Option<Gap> {
        let open_from = first_open(before, boundary);
        let is_other = before.is_some_and(|before| before.definition != kind.definition);
        let other = (is_other && open_from < boundary).then_some(Gap { from: open_from, to: boundary });
        let read_from = self.rows_from.unwrap_or(open_from).min(open_from).min(self.whole_from);
        let lacks = self.whole_from > left_out_before(before);
        let lacking = lacks.then_some(Gap { from: read_from, to: self.whole_from });
        other.into_iter().chain(lacking).reduce(Gap::with)
    }
}

/// Where the first row lies that a version did not emit because its session is open at `boundary`.
pub fn first_open(before: Option<&OpenSessions>, boundary: i64) -> i64 {
    before.and_then(|before| before.from).map_or(boundary, |from| from.min(boundary))
}

fn left_out_before(open: Option<&OpenSessions>) -> i64 {
    open.and_then(|open| open.whole_from).unwrap_or(i64::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(definition: &str) -> SessionKind {
        SessionKind { definition: definition.to_owned(), gap_ns: 30 }
    }

    fn open(from: Option<i64>, whole_from: Option<i64>) -> OpenSessions {
        OpenSessions { definition: "same".to_owned(), from, whole_from }
    }

    fn switch(rows_from: i64, emitted: i64, whole_from: i64) -> SessionSwitch {
        SessionSwitch { rows_from: Some(rows_from), emitted, whole_from }
    }

    #[test]
    fn the_same_sessions_are_read_again_from_the_first_open_one_and_go_on() {
        let before = open(Some(900), None);
        let after = SessionSwitch::after(Some(&before), &kind("same"), 1000);
        assert_eq!(
            (after, after.gap(Some(&before), &kind("same"), 1000)),
            (switch(900, 1000, i64::MIN), None)
        );
        let none_open = SessionSwitch::after(Some(&open(None, None)), &kind("same"), 1000);
        assert_eq!(none_open, switch(1000, 1000, i64::MIN));
    }

    #[test]
    fn other_sessions_are_read_further_back_and_only_whole_ones_count() {
        let (before, other) = (open(Some(900), None), kind("other"));
        let after = SessionSwitch::after(Some(&before), &other, 1000);
        assert_eq!(after, switch(600, 1000, 630));
        assert_eq!(after.gap(Some(&before), &other, 1000), Some(Gap { from: 600, to: 1000 }));
        let all = after.with_all_rows(Some(&before));
        assert_eq!(all, switch(600, 1000, i64::MIN));
        assert_eq!(all.gap(Some(&before), &other, 1000), Some(Gap { from: 900, to: 1000 }));
        let none_open = open(None, None);
        let after = SessionSwitch::after(Some(&none_open), &other, 1000).with_all_rows(Some(&none_open));
        assert_eq!(after.gap(Some(&none_open), &other, 1000), None);
        // The version before had no sessions: all its rows are emitted.
        let first = SessionSwitch::after(None, &other, 1000);
        assert_eq!(
            (first, first.gap(None, &other, 1000)),
            (switch(700, 1000, 730), Some(Gap { from: 700, to: 730 }))
        );
        assert_eq!(first.with_all_rows(None).gap(None, &other, 1000), None);
    }

    #[test]
    fn what_is_gone_is_a_gap_and_stays_left_out_in_the_next_version() {
        let (before, same) = (open(Some(900), None), kind("same"));
        let after = SessionSwitch::after(Some(&before), &same, 1000);
        let without = after.without_rows_before(&same, 950);
        assert_eq!(without, switch(950, 1000, 980));
        assert_eq!(without.gap(Some(&before), &same, 1000), Some(Gap { from: 900, to: 980 }));
        assert_eq!(after.without_rows_before(&same, 900), after);
        let next = open(Some(970), Some(980));
        assert_eq!(SessionSwitch::resumed(Some(&next)).whole_from, 980);
        let again = SessionSwitch::after(Some(&next), &same, 1010).with_all_rows(Some(&next));
        assert_eq!((again, again.gap(Some(&next), &same, 1010)), (switch(970, 1010, 980), None));
    }
}

//! What a new version of a query changes, and at which instant it takes over. Pure: plans are identities and numbers.
//!
//! ```text
//!  old  ──┤2 s├──┤──┤──┤──┤──┤
//!                          B          B: a window of the old version ends and one of the new begins
//!  new                     ├── 4 s ──┤───────┤──
//! ```
//!
//! The old version emits every window that ends at or before B, the new one every window that ends after it; both whole,
//! the new ones rebuilt from the log. When such an instant is too far away, B is the old version's next boundary: then
//! the new version's first windows also hold rows that the old one has emitted, which the verdict says.

use serde::Serialize;

use crate::reaction::checkpoint::optional_rfc3339;
use crate::reaction::time::{NS_PER_MS, format_rfc3339};

/// A common boundary further away than this is not waited for.
const PATIENCE_NS: i64 = 60_000 * NS_PER_MS;

/// How a version's windows lie in event time: they end at every multiple of `slide_ns` since the Unix epoch and are
/// `width_ns` long, which is a multiple of it. Tumbling windows have both equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rhythm {
    /// From one window's end to the next one's, nanoseconds, above 0.
    pub slide_ns: i64,
    /// From a window's start to its end, nanoseconds.
    pub width_ns: i64,
}

impl Rhythm {
    /// Of windows of both kinds: they end together at every multiple of the slide, and none is longer than the width.
    #[must_use]
    pub fn together(self, other: Self) -> Self {
        let slide_ns = least_common_multiple(self.slide_ns, other.slide_ns).unwrap_or(i64::MAX);
        Self { slide_ns, width_ns: self.width_ns.max(other.width_ns) }
    }

    /// The last end at or before that time.
    pub fn end_at_or_before(self, ns: i64) -> i64 {
        ns.saturating_sub(ns.rem_euclid(self.slide_ns.max(1)))
    }

    /// The first end at or after that time.
    pub fn end_at_or_after(self, ns: i64) -> i64 {
        multiple_at_or_after(ns, self.slide_ns.max(1))
    }

    /// The first end of a window that starts at or after that time.
    pub fn first_end_from(self, ns: i64) -> i64 {
        self.end_at_or_after(ns).saturating_add(self.width_ns)
    }

    /// The start of the first window that ends after that time.
    pub fn first_start_of_later(self, ns: i64) -> i64 {
        self.end_at_or_before(ns.saturating_sub(self.width_ns)).saturating_add(self.slide_ns)
    }
}

fn multiple_at_or_after(ns: i64, step: i64) -> i64 {
    match ns.rem_euclid(step) {
        0 => ns,
        past => ns.saturating_add(step - past),
    }
}

/// The instant up to which the old version emits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boundary {
    /// Nanoseconds since the Unix epoch.
    pub at: i64,
    /// Whether the new version's windows begin there too, so that no row is in windows of both.
    pub is_common: bool,
}

/// Where the old version is to stop: the first common boundary at or after `after` if that is within a minute, else the
/// old version's own next one.
pub fn boundary(old: Rhythm, new: Rhythm, after: i64) -> Boundary {
    let common = least_common_multiple(old.slide_ns, new.slide_ns);
    let common = common.map(|common| multiple_at_or_after(after, common));
    match common.filter(|at| at.saturating_sub(after) <= PATIENCE_NS) {
        Some(at) => Boundary { at, is_common: true },
        None => Boundary { at: old.end_at_or_after(after), is_common: false },
    }
}

fn least_common_multiple(a: i64, b: i64) -> Option<i64> {
    let (a, b) = (a.max(1), b.max(1));
    let (mut divisor, mut rest) = (a, b);
    while rest != 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    (a / divisor).checked_mul(b)
}

/// Where a version goes on after another one that has emitted up to an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Takeover {
    /// The new version emits every window that ends after this.
    pub emitted: i64,
    /// The earliest row that one of those windows can hold.
    pub rows_from: i64,
}

impl Takeover {
    /// After everything up to `emitted` was emitted by another version; `new` are the new one's windows, of each kind.
    pub fn after(new: &[Rhythm], emitted: i64) -> Self {
        let starts = new.iter().map(|windows| windows.first_start_of_later(emitted));
        Self { emitted, rows_from: starts.min().unwrap_or(emitted) }
    }

    /// The same when rows from before `whole_from` are gone: only windows that start at or after it are emitted.
    #[must_use]
    pub fn without_rows_before(self, new: &[Rhythm], whole_from: i64) -> Self {
        if whole_from <= self.rows_from {
            return self;
        }
        // Windows of one kind end as late as that which start too early.
        let ends =
            new.iter().map(|windows| windows.first_end_from(whole_from).saturating_sub(windows.slide_ns));
        Self::after(new, ends.fold(self.emitted, i64::max))
    }
}

/// What the comparison needs to know of a version.
#[derive(Clone, Copy, Debug)]
pub struct Version<'a> {
    /// Its text, tables and whole plan, as one text.
    pub plan: &'a str,
    /// Identity of the plan at and below the cut.
    pub fingerprint: &'a str,
    /// The sources' topics, as one text.
    pub topic: &'a str,
    /// Its windows, all kinds together.
    pub rhythm: Rhythm,
    /// And each kind by itself.
    pub windows: &'a [Rhythm],
    /// What makes rows one session, where it has any.
    pub sessions: Option<&'a str>,
}

/// How a new version relates to the running one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Nothing of that name runs.
    New,
    /// It does the same.
    Unchanged,
    /// Only what happens above the cut changes: it goes on with the open windows.
    Continues,
    /// It takes over at a boundary of both.
    Switches,
    /// There is no such boundary within a minute, or rows make other sessions: its first windows hold rows that were
    /// emitted before.
    Overlaps,
    /// It reads another topic: what it was not told yet is not emitted by either.
    Gap,
}

/// The verdict on a new version, as `POST /v1/queries/check` tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Compatibility {
    /// How it relates to the running version.
    pub kind: Kind,
    /// The end of the old version's last window, if it were put now; RFC 3339, null when nothing ends.
    #[serde(with = "optional_rfc3339")]
    pub at: Option<i64>,
    /// The same for people.
    pub detail: String,
}

impl Compatibility {
    /// Compares; `now` is event time: the wall clock, or the watermark when that is later.
    pub fn of(running: Option<Version<'_>>, new: Version<'_>, now: i64) -> Self {
        let without_time = |kind, detail: &str| Self { kind, at: None, detail: detail.to_owned() };
        let Some(old) = running else {
            return without_time(Kind::New, "no query of that name runs: it starts with what the log holds");
        };
        if old.plan == new.plan {
            return without_time(Kind::Unchanged, "it does what the running version does");
        }
        if old.topic != new.topic {
            let detail = "it reads another topic: it starts there anew, and windows of the old one that are open are not emitted";
            return without_time(Kind::Gap, detail);
        }
        if old.fingerprint == new.fingerprint {
            return without_time(Kind::Continues, "it goes on with the windows that are open now");
        }
        let Boundary { at, is_common } = boundary(old.rhythm, new.rhythm, now);
        let at_text = format_rfc3339(at);
        if old.sessions != new.sessions {
            let detail = format!(
                "rows make other sessions than before: the running version emits those that end up to {at_text}, this \
                 one those that end later, whole; a row of one that is open then may be in sessions of both, or of none: the \
                 gap"
            );
            return Self { kind: Kind::Overlaps, at: Some(at), detail };
        }
        if is_common {
            let whole = if new.sessions.is_some() { ", whole: their rows are read again" } else { "" };
            let detail = format!(
                "the running version emits the windows that end up to {at_text}, this one those that end later{whole}"
            );
            return Self { kind: Kind::Switches, at: Some(at), detail };
        }
        let from = Takeover::after(new.windows, at).rows_from;
        let detail = format!(
            "the windows of the two have no common boundary within a minute: the running version emits up to {}, and \
             this one's first windows begin at {}, so that rows between the two are in windows of both",
            at_text,
            format_rfc3339(from),
        );
        Self { kind: Kind::Overlaps, at: Some(at), detail }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: i64 = 1_000_000_000;

    fn tumble(seconds: i64) -> Rhythm {
        Rhythm { slide_ns: seconds * S, width_ns: seconds * S }
    }

    fn hop(slide: i64, width: i64) -> Rhythm {
        Rhythm { slide_ns: slide * S, width_ns: width * S }
    }

    #[track_caller]
    fn check(old: Rhythm, new: Rhythm, after: i64, at: i64, is_common: bool) {
        assert_eq!(boundary(old, new, after * S), Boundary { at: at * S, is_common });
    }

    #[test]
    fn the_boundary_is_the_next_instant_at_which_one_ends_and_the_other_begins() {
        check(tumble(2), tumble(4), 101, 104, true);
        check(tumble(4), tumble(2), 101, 104, true);
        check(tumble(2), tumble(2), 101, 102, true);
        check(tumble(2), tumble(3), 102, 102, true);
        check(tumble(2), tumble(3), 103, 108, true);
        check(hop(2, 10), hop(3, 9), 103, 108, true);
        check(tumble(2), tumble(4), -3, 0, true);
    }

    #[test]
    fn without_one_within_a_minute_the_old_version_stops_at_its_own_next_end() {
        check(tumble(2), tumble(60), 119, 120, true);
        check(tumble(2), tumble(120), 1, 2, false);
        check(tumble(2), tumble(120), 60, 120, true);
        check(tumble(7), tumble(61), 430, 434, false);
        let huge = Rhythm { slide_ns: i64::MAX - 1, width_ns: i64::MAX - 1 };
        assert_eq!(boundary(tumble(2), huge, 3 * S), Boundary { at: 4 * S, is_common: false });
    }

    #[test]
    fn the_new_version_emits_what_ends_later_and_reads_from_the_first_row_of_it() {
        let rows_from = |new: &[Rhythm], emitted: i64| Takeover::after(new, emitted * S).rows_from / S;
        assert_eq!(rows_from(&[tumble(4)], 104), 104);
        assert_eq!(rows_from(&[tumble(4)], 102), 100);
        assert_eq!(rows_from(&[hop(2, 10)], 104), 96);
        assert_eq!(rows_from(&[tumble(4)], -2), -4);
        // Each kind from its own next window: not where all of them begin together.
        assert_eq!(rows_from(&[tumble(10), tumble(15)], 60), 60);
        assert_eq!(rows_from(&[tumble(10), tumble(15)], 70), 60);
        assert_eq!(rows_from(&[tumble(2), tumble(60)], 118), 60);
        assert_eq!(rows_from(&[], 118), 118);
    }

    #[test]
    fn windows_of_rows_that_are_gone_are_not_emitted() {
        let cut_of = |new: &[Rhythm], emitted: i64, whole: i64| {
            Takeover::after(new, emitted * S).without_rows_before(new, whole * S)
        };
        let cut = |new, emitted, whole| cut_of(&[new], emitted, whole);
        let expected =
            |emitted: i64, rows_from: i64| Takeover { emitted: emitted * S, rows_from: rows_from * S };
        assert_eq!(cut(tumble(4), 104, 104), expected(104, 104));
        assert_eq!(cut(tumble(4), 104, 105), expected(108, 108));
        assert_eq!(cut(tumble(4), 104, 3), expected(104, 104));
        assert_eq!(cut(hop(2, 10), 104, 97), expected(106, 98));
        // [104, 106) lacks rows, [105, 112) does not.
        assert_eq!(cut_of(&[tumble(2), tumble(7)], 104, 105), expected(106, 105));
        assert_eq!(cut_of(&[tumble(2), tumble(7)], 104, 106), expected(112, 112));
    }

    #[test]
    fn the_verdict_says_what_happens() {
        let version = |plan, fingerprint, rhythm| Version {
            plan,
            fingerprint,
            topic: "reactions",
            rhythm,
            windows: &[],
            sessions: None,
        };
        let old = version("a", "f", tumble(2));
        let of = |new: Version<'_>| Compatibility::of(Some(old), new, 101 * S);
        assert_eq!(Compatibility::of(None, old, 0).kind, Kind::New);
        assert_eq!(of(old).kind, Kind::Unchanged);
        assert_eq!(of(version("b", "f", tumble(2))).kind, Kind::Continues);
        let switches = of(version("b", "g", tumble(4)));
        assert_eq!((switches.kind, switches.at), (Kind::Switches, Some(104 * S)));
        assert!(switches.detail.contains("1970-01-01T00:01:44Z"), "{}", switches.detail);
        let overlaps = of(version("b", "g", tumble(6000)));
        assert_eq!((overlaps.kind, overlaps.at), (Kind::Overlaps, Some(102 * S)));
        let sessions =
            |plan, sessions| Version { sessions: Some(sessions), ..version(plan, plan, tumble(1)) };
        let changed = |new| Compatibility::of(Some(sessions("a", "by room")), new, 101 * S);
        let same = changed(sessions("b", "by room"));
        assert!(same.kind == Kind::Switches && same.detail.ends_with("read again"), "{}", same.detail);
        assert_eq!(changed(sessions("b", "by emoji")).kind, Kind::Overlaps);
        assert_eq!(changed(version("b", "g", tumble(2))).kind, Kind::Overlaps);
        assert_eq!(of(Version { topic: "other", ..version("b", "g", tumble(2)) }).kind, Kind::Gap);
    }
}

//! Named points at which a crash test kills this process: `EMOSTREAM_CRASH_AT="name"` or `"name:n"` (the n-th hit,
//! from 1) makes [`hit`] abort there, as `kill -9` would at the worst moment. Without the variable a hit costs one
//! load and one comparison.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The environment variable that names the point.
pub const CRASH_AT: &str = "EMOSTREAM_CRASH_AT";

struct Point {
    name: String,
    hits_left: AtomicU64,
}

impl Point {
    /// `name` or `name:n`; a suffix that is no positive number belongs to the name.
    fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return None;
        }
        let counted =
            text.rsplit_once(':').and_then(|(name, n)| Some((name, n.parse().ok().filter(|n| *n > 0)?)));
        let (name, hits) = counted.unwrap_or((text, 1));
        Some(Self { name: name.to_owned(), hits_left: AtomicU64::new(hits) })
    }

    /// True once: at the n-th hit of this name.
    fn is_due(&self, name: &str) -> bool {
        self.name == name && self.hits_left.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

/// Ends the process at once, without any clean-up, when this is the point and the hit that the environment names.
pub fn hit(name: &str) {
    static POINT: OnceLock<Option<Point>> = OnceLock::new();
    let point = POINT.get_or_init(|| std::env::var(CRASH_AT).ok().as_deref().and_then(Point::parse));
    if point.as_ref().is_some_and(|point| point.is_due(name)) {
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::Point;

    #[test]
    fn a_point_is_due_at_its_own_hit_only() {
        let point = Point::parse("embedded.commit.before:2").unwrap();
        assert!(!point.is_due("embedded.commit.after"));
        assert!(!point.is_due("embedded.commit.before"));
        assert!(point.is_due("embedded.commit.before"));
        assert!(!point.is_due("embedded.commit.before"));
    }

    #[test]
    fn without_a_number_the_first_hit_counts() {
        assert!(Point::parse("engine.read").unwrap().is_due("engine.read"));
        assert!(Point::parse("").is_none());
    }
}

//! Something that may be told ten thousand times a second is told once a second, with how often it was not.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::sync::lock;

/// The least time between two tellings.
const APART: Duration = Duration::from_secs(1);

/// One thing to tell, of one query.
#[derive(Debug, Default)]
pub(super) struct Seldom(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    untold: u64,
}

impl Seldom {
    /// It happened: how often it was not told since it last was, when it is to be told now.
    pub(super) fn say(&self, now: Instant) -> Option<u64> {
        let mut state = lock(&self.0);
        if state.last.is_some_and(|last| now.duration_since(last) < APART) {
            state.untold += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.untold))
    }

    /// How often it was not told, when it was not; for one who asks seldom.
    pub(super) fn rest(&self) -> Option<u64> {
        let untold = std::mem::take(&mut lock(&self.0).untold);
        (untold > 0).then_some(untold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_often_is_told_once_a_second_and_none_of_it_is_lost() {
        let (seldom, start) = (Seldom::default(), Instant::now());
        let said: Vec<_> = (0..2_500)
            .map(|ms| seldom.say(start + Duration::from_millis(ms)))
            .filter(Option::is_some)
            .collect();
        assert_eq!(said, [Some(0), Some(999), Some(999)]);
        assert_eq!((seldom.rest(), seldom.rest()), (Some(499), None));
    }
}

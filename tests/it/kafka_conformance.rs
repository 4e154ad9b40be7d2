//! What every log must do, on the real broker; and processes that are killed at named points and at any moment.

use std::ffi::OsStr;
use std::sync::Arc;

use emostream::log::Log;

use crate::log_conformance::{self as conformance, Doomed};
use crate::support::dying::{CHILD_PLACE, die};
use crate::support::kafka::{connect, fresh};

/// One test per function, each with topics of its own. Not `a_trim_removes_what_is_below`: a reader that is already
/// there may go on with what it had fetched; what holds here is in `kafka.rs`.
macro_rules! conforms {
    ($($test:ident $(($argument:expr))?),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $test() {
            let log: Arc<dyn Log> = connect().await;
            conformance::$test(log $(, $argument)?).await;
        }
    )*};
}

conforms!(
    records_come_back_in_order,
    a_record_keeps_the_stamp_it_brings,
    a_reader_goes_on_from_any_offset,
    a_time_is_found_as_an_offset,
    a_dropped_read_loses_nothing,
    topics_are_created_once,
    a_transaction_is_seen_as_a_whole(false),
    a_refused_transaction_leaves_nothing,
    an_old_writer_is_fenced,
    the_latest_value_per_key_is_exact,
    a_proof_of_completeness_holds(false),
);

/// The life of a child process, if this is one.
async fn live_as_a_child() {
    let Ok(prefix) = std::env::var(CHILD_PLACE) else { return };
    Doomed::new(&prefix).work(connect().await, |step| eprintln!("{step}")).await;
}

/// Lets a process of that test die; what it reported, and the appends and commits that are there.
async fn dead(
    test: &'static str,
    crash_at: &'static str,
    kill_after: Option<usize>,
) -> (Vec<String>, (usize, usize)) {
    let prefix = fresh("doomed");
    let place = prefix.clone();
    let dying = move || die(test, OsStr::new(&place), crash_at, kill_after);
    let reported = tokio::task::spawn_blocking(dying).await.unwrap();
    let found = Doomed::new(&prefix).inspect(connect().await, &reported).await;
    (reported, found)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_before_a_commit_leaves_no_part_of_it_and_one_after_it_the_whole() {
    live_as_a_child().await;
    let test = "kafka_conformance::a_crash_before_a_commit_leaves_no_part_of_it_and_one_after_it_the_whole";
    for (point, expected) in [
        ("kafka.append.before:3", (2, 2)),
        ("kafka.append.after:3", (3, 2)),
        ("kafka.commit.before:3", (3, 2)),
        ("kafka.commit.after_send:3", (3, 2)),
        ("kafka.commit.after:3", (3, 3)),
    ] {
        let (reported, found) = dead(test, point, None).await;
        assert_eq!(found, expected, "{point}: {reported:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_moment_loses_nothing_that_was_answered() {
    live_as_a_child().await;
    let test = "kafka_conformance::a_kill_at_any_moment_loses_nothing_that_was_answered";
    for steps in [1, 7, 40] {
        let (reported, _) = dead(test, "", Some(steps)).await;
        assert!(reported.len() >= steps);
    }
}

//! The embedded log: conformance, reopening, and processes of this very binary that are killed at named points and
//! at any moment.

use std::path::Path;
use std::sync::Arc;

use emostream::log::embedded::{EmbeddedLog, OpenError, Settings};
use emostream::log::{Log, LogError, Retention};
use tempfile::TempDir;

use crate::log_conformance::{self as conformance, DAY, Doomed, keyed, read_all, record, texts};
use crate::support::dying::{CHILD_PLACE, die};

fn open(dir: &Path) -> Arc<EmbeddedLog> {
    EmbeddedLog::open(dir, Settings::default()).unwrap()
}

/// One test per function, each on a log of its own, once with the newest records in memory and once without.
macro_rules! conforms {
    ($($test:ident $(($argument:expr))?),* $(,)?) => {$(
        #[tokio::test]
        async fn $test() {
            for tail_bytes in [Settings::default().tail_bytes, 0] {
                let dir = TempDir::new().unwrap();
                let settings = Settings { tail_bytes, ..Settings::default() };
                let log = EmbeddedLog::open(dir.path(), settings).unwrap();
                conformance::$test(Arc::clone(&log) as Arc<dyn Log> $(, $argument)?).await;
                log.close().await;
            }
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
    a_transaction_is_seen_as_a_whole(true),
    a_refused_transaction_leaves_nothing,
    an_old_writer_is_fenced,
    the_latest_value_per_key_is_exact,
    a_trim_removes_what_is_below,
    a_proof_of_completeness_holds(true),
);

#[tokio::test]
async fn a_reopened_log_has_everything_and_goes_on() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    let all: Arc<dyn Log> = Arc::clone(&log) as _;
    conformance::create(&all, "plain", 2, DAY).await;
    conformance::create(&all, "compacted", 1, Retention::LatestPerKey).await;
    all.append("plain", 1, (0..10).map(record).collect()).await.unwrap();
    all.append("compacted", 0, vec![keyed("a", Some("1")), keyed("a", Some("2"))]).await.unwrap();
    all.trim("plain", 1, 10).await.unwrap();
    let mut old = all.fence("writer").await.unwrap();
    conformance::commit(&mut *old, vec![("plain", 0, record("committed"))]).await.unwrap();
    let (plain, latest) = (read_all(&all, "plain", 0).await, all.latest("compacted").await.unwrap());
    let ranges = all.describe("plain").await.unwrap();
    log.close().await;
    assert!(matches!(all.append("plain", 0, vec![record(1)]).await, Err(LogError::Unavailable(_))));

    let log = open(dir.path());
    let all: Arc<dyn Log> = Arc::clone(&log) as _;
    assert_eq!(all.describe("plain").await.unwrap(), ranges);
    assert_eq!(read_all(&all, "plain", 0).await, plain);
    assert_eq!(all.latest("compacted").await.unwrap(), latest);
    assert_eq!(
        all.append("plain", 1, vec![record("next")]).await.unwrap(),
        10,
        "an offset is never taken twice"
    );
    let mut new = all.fence("writer").await.unwrap();
    conformance::commit(&mut *new, vec![("plain", 0, record("new"))]).await.unwrap();
    assert_eq!(texts(&read_all(&all, "plain", 0).await), ["committed", "new"]);
    drop((all, new, log));
    open(dir.path()).close().await;
}

#[tokio::test]
async fn a_second_log_on_the_folder_is_told_who_has_it() {
    let dir = TempDir::new().unwrap();
    let first = open(dir.path());
    match EmbeddedLog::open(dir.path(), Settings::default()).map(|_| ()) {
        Err(OpenError::Held { pid, .. }) => assert_eq!(pid, std::process::id().to_string()),
        other => panic!("{other:?}"),
    }
    first.close().await;
    open(dir.path()).close().await;
}

/// The life of a child process, if this is one.
async fn live_as_a_child() {
    let Some(dir) = std::env::var_os(CHILD_PLACE) else { return };
    let log = open(Path::new(&dir));
    Doomed::new("doomed").work(log, |step| eprintln!("{step}")).await;
}

async fn inspect(dir: &Path, reported: &[String]) -> (usize, usize) {
    let log = open(dir);
    let found = Doomed::new("doomed").inspect(Arc::clone(&log) as _, reported).await;
    log.close().await;
    found
}

#[tokio::test]
async fn a_crash_before_a_commit_leaves_no_part_of_it_and_one_after_it_the_whole() {
    live_as_a_child().await;
    for (point, expected) in [
        ("embedded.append.before_commit:3", (2, 2)),
        ("embedded.append.after_commit:3", (3, 2)),
        ("embedded.commit.before:3", (3, 2)),
        ("embedded.commit.after:3", (3, 3)),
    ] {
        let dir = TempDir::new().unwrap();
        let test = "embedded_log::a_crash_before_a_commit_leaves_no_part_of_it_and_one_after_it_the_whole";
        let reported = die(test, dir.path().as_os_str(), point, None);
        assert_eq!(inspect(dir.path(), &reported).await, expected, "{point}: {reported:?}");
    }
}

#[tokio::test]
async fn a_kill_at_any_moment_loses_nothing_that_was_answered() {
    live_as_a_child().await;
    for steps in [1, 2, 7, 40, 101] {
        let dir = TempDir::new().unwrap();
        let test = "embedded_log::a_kill_at_any_moment_loses_nothing_that_was_answered";
        let reported = die(test, dir.path().as_os_str(), "", Some(steps));
        assert!(reported.len() >= steps);
        inspect(dir.path(), &reported).await;
    }
}

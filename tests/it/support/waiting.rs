//! Waiting for something to be so.

use std::time::Duration;

/// Whether it is so within that time.
pub(crate) async fn is_soon(limit: Duration, is_so: impl Fn() -> bool) -> bool {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(limit, waiting).await.is_ok()
}

/// Waits until it is so; the test fails when it is not within that time.
pub(crate) async fn until(what: &str, limit: Duration, is_so: impl Fn() -> bool) {
    assert!(is_soon(limit, is_so).await, "{what}: not within {limit:?}");
}

//! The real broker that `./test` starts for the whole run.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use emostream::clock;
use emostream::log::kafka::{KafkaLog, KafkaSettings};

/// The variable in which `./test` names its broker.
pub(crate) const BROKER: &str = "EMOSTREAM_TEST_KAFKA";

/// `HOST:PORT` of the broker; the test fails when there is none.
pub(crate) fn bootstrap_servers() -> String {
    match std::env::var(BROKER) {
        Ok(address) if !address.is_empty() => address,
        _ => panic!(
            "this test needs a Kafka broker: run `./test`, which starts one, or start one with \
             `deploy/local/kafka start DIR` and set {BROKER} to the address it prints"
        ),
    }
}

/// A connection to it.
pub(crate) async fn connect() -> Arc<KafkaLog> {
    KafkaLog::connect(KafkaSettings::new(bootstrap_servers())).await.expect("the broker answers")
}

/// A name no other test and no earlier run has used: brokers keep topics.
pub(crate) fn fresh(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let (run, next) = (clock::wall_ms(), NEXT.fetch_add(1, Ordering::Relaxed));
    format!("{name}-{run}-{}-{next}", std::process::id())
}

/// A broker of a test's own, whose system topics nobody else uses; stopped when dropped.
pub(crate) struct Broker {
    dir: tempfile::TempDir,
    pub(crate) address: String,
}

impl Broker {
    /// Starts it through `deploy/local/kafka`.
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let output = Self::script("start", dir.path()).stderr(Stdio::inherit()).output().expect("it runs");
        let address = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert!(output.status.success(), "the broker does not start: {}", output.status);
        Self { dir, address }
    }

    fn script(action: &str, dir: &Path) -> Command {
        let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/local/kafka"));
        command.arg(action).arg(dir).env("EMOSTREAM_KAFKA_HEAP", "320m").stdin(Stdio::null());
        command
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let stopped = Self::script("stop", self.dir.path()).status();
        if !stopped.is_ok_and(|status| status.success()) {
            eprintln!("the broker in {} was not stopped", self.dir.path().display());
        }
    }
}

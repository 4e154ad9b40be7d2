//! Opening the log that the settings name.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::Failure;
use crate::config::Settings;
use crate::log::embedded::{EmbeddedLog, OpenError};
use crate::log::kafka::KafkaLog;
use crate::log::{Log, LogError};

/// How often a process tries again to reach a broker, and how long it waits before each time.
const RETRIES: u32 = 10;
const RETRY: Duration = Duration::from_secs(1);

/// Connects to Kafka.
///
/// # Errors
/// Exit code 2 when the settings name no broker, 3 when none answers.
pub(super) async fn connect_kafka(settings: &Settings) -> Result<Arc<dyn Log>, Failure> {
    let kafka = &settings.log.kafka;
    kafka
        .check()
        .map_err(|error| Failure::usage(format!("{error}; --kafka HOST:PORT says where Kafka is")))?;
    let advice = format!(
        "is a broker running at {}, and is that where it says that it is (advertised.listeners)?",
        kafka.bootstrap_servers
    );
    let mut left = RETRIES;
    loop {
        match KafkaLog::connect(kafka.clone()).await {
            Ok(log) => return Ok(log),
            Err(error @ LogError::Unavailable(_)) if left > 0 => {
                tracing::warn!(%error, attempts_left = left, "waiting for Kafka: {advice}");
                tokio::time::sleep(RETRY).await;
                left -= 1;
            }
            Err(error @ LogError::Unavailable(_)) => {
                return Err(Failure::outside(format!("{error}; {advice}")));
            }
            Err(error) => return Err(Failure::outside(error.to_string())),
        }
    }
}

/// Opens the embedded log in `dir`, which no other process may use meanwhile.
///
/// # Errors
/// Exit code 2 when it is no folder, 3 when another process holds it, or the disk fails.
pub(super) async fn open_embedded(dir: &Path, settings: &Settings) -> Result<Arc<dyn Log>, Failure> {
    if dir.is_file() {
        let message =
            format!("--data-dir {} is a file; name a folder, or one that is to be made", dir.display());
        return Err(Failure::usage(message));
    }
    let (dir, bounds) = (dir.to_path_buf(), settings.log.embedded.clone());
    let opened = tokio::task::spawn_blocking(move || EmbeddedLog::open(&dir, bounds)).await;
    match opened {
        Ok(Ok(log)) => Ok(log),
        Ok(Err(error @ OpenError::Held { .. })) => {
            Err(Failure::outside(format!("{error}; stop it, or choose another --data-dir")))
        }
        Ok(Err(error)) => Err(Failure::outside(error.to_string())),
        Err(error) => Err(Failure::outside(format!("the log did not open: {error}"))),
    }
}

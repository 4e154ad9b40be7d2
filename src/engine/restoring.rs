//! Taking up what was saved beside a checkpoint: read again some records at a time, so that as much of it is in memory as
//! the query may hold.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::bounds::Bounds;
use super::closing::{Closer, Start};
use super::failure::Failure;
use super::saved::SavedKey;
use super::spill::Spill;
use crate::log::{Log, Record, TOPIC_CHECKPOINTS};

/// As many bytes are read at a time.
const READ_BYTES: usize = 1 << 20;
/// How long one read waits, and how long records that are known to be there may not come.
const WAIT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// Gives a closer what was saved. `latest` names the newest record of every key of the checkpoints topic.
pub(super) async fn restore(
    log: &dyn Log,
    closer: &mut Closer,
    start: &Start,
    latest: &BTreeMap<Bytes, Record>,
    bounds: Bounds,
    spill: Option<&Arc<Spill>>,
) -> Result<(), Failure> {
    let keys = closer.find_saved(start, latest.keys().map(AsRef::as_ref))?;
    let offset = |key: SavedKey| Some((latest.get(key.key.as_bytes())?.offset, key));
    let mut wanted: BTreeMap<i64, SavedKey> = keys.into_iter().filter_map(offset).collect();
    if let Some(&first) = wanted.keys().next() {
        let mut reader = log.reader(TOPIC_CHECKPOINTS, 0, first).await?;
        let mut heard = Instant::now();
        while !wanted.is_empty() {
            let batch = reader.read(READ_BYTES, WAIT.0).await?;
            if !batch.records.is_empty() {
                heard = Instant::now();
            } else if heard.elapsed() > WAIT.1 {
                return Err(Failure::Recover(
                    "what was saved beside the checkpoint does not come".to_owned(),
                ));
            }
            for record in batch.records {
                let Some((key, value)) = wanted.remove(&record.offset).zip(record.value) else { continue };
                closer.restore(&key, &value)?;
                if let Some(spill) = spill.filter(|_| bounds.exceeded_by(closer.size()).is_some()) {
                    closer.spill(spill)?;
                }
            }
        }
    }
    Ok(closer.restored(start)?)
}

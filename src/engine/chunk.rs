//! The records of one read, decoded once for all queries that read them together.
//!
//! Whoever needs a part first decodes it, and what the queries have in common of its panes with it; the others wait for
//! that without holding a worker. A query that does not find in it what it would see alone decodes for itself: one that
//! reads a column which the others did not when the chunk was read, or any in a part with a record that is bad because of
//! a column that another one reads.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::{OnceCell, Semaphore};

use super::decode::{Columns, Decoded, decode};
use super::sharing::{Common, SourceOf};
use crate::log::codec::RecordCodec;
use crate::log::{ReadBatch, Record};
use crate::sync::lock;

/// The records of one read.
pub(super) struct Chunk {
    pub(super) records: Vec<Record>,
    /// Where the read after it goes on.
    pub(super) next: i64,
    /// See [`ReadBatch::complete_until_ms`].
    pub(super) complete_until_ms: Option<i64>,
    /// When it was read.
    pub(super) read_ms: i64,
    common: Arc<Common>,
    /// By the place of a part's first record.
    parts: Mutex<BTreeMap<usize, Arc<OnceCell<Arc<Decoded>>>>>,
}

/// How the records of a partition are decoded.
pub(super) struct Decoder {
    pub(super) codec: RecordCodec,
    pub(super) partition: u32,
    /// The topic, for those who watch.
    pub(super) topic: String,
}

impl Decoder {
    /// Counts what was read.
    pub(super) fn observe(&self, records: &[Record]) {
        let counter = metrics::counter!("emostream_engine_read_records_total", "topic" => self.topic.clone());
        counter.increment(records.len() as u64);
    }

    fn decode(&self, columns: &Columns, records: &[Record]) -> Decoded {
        let decoded = decode(&self.codec, columns, records, self.partition);
        let counter =
            metrics::counter!("emostream_engine_decoded_records_total", "topic" => self.topic.clone());
        counter.increment(decoded.spans.len() as u64);
        decoded
    }
}

impl Chunk {
    /// `common` is what those have in common for whom it was read.
    pub(super) fn new(batch: ReadBatch, read_ms: i64, common: Arc<Common>) -> Self {
        let ReadBatch { records, next, complete_until_ms } = batch;
        Self { records, next, complete_until_ms, read_ms, common, parts: Mutex::default() }
    }

    /// About how many bytes of memory its records take.
    pub(super) fn bytes(&self) -> usize {
        let of_record = |record: &Record| {
            let headers = record.headers.iter().map(|(name, value)| name.len() + value.len());
            size_of::<Record>()
                + record.key.as_ref().map_or(0, bytes::Bytes::len)
                + record.value.as_ref().map_or(0, bytes::Bytes::len)
                + headers.sum::<usize>()
        };
        self.records.iter().map(of_record).sum()
    }

    /// What the query reads of the records from the one at `place` on: at least of one. `made` is told of memory that is
    /// taken for all. Cancel-safe.
    pub(super) async fn part(
        &self,
        place: usize,
        decoder: &Decoder,
        reader: &SourceOf,
        workers: &Semaphore,
        made: impl FnOnce(usize),
    ) -> Arc<Decoded> {
        let mine = reader.columns();
        let rest = &self.records[place..];
        let Some(places) = self.common.columns.places_of(mine) else {
            return alone(decoder, mine, rest, workers).await;
        };
        let cell = Arc::clone(lock(&self.parts).entry(place).or_default());
        let decode = || async {
            let _permit = workers.acquire().await;
            let mut decoded = decoder.decode(&self.common.columns, rest);
            decoded.in_panes = self.common.in_panes(&decoded);
            made(decoded.bytes());
            Arc::new(decoded)
        };
        let decoded = cell.get_or_init(decode).await;
        if self.common.columns == *mine {
            return Arc::clone(decoded);
        }
        if decoded.bad.is_empty()
            && let Ok(decoded) = decoded.project(&places)
        {
            return Arc::new(decoded);
        }
        alone(decoder, mine, &rest[..decoded.spans.len()], workers).await
    }
}

async fn alone(
    decoder: &Decoder,
    columns: &Columns,
    records: &[Record],
    workers: &Semaphore,
) -> Arc<Decoded> {
    let _permit = workers.acquire().await;
    Arc::new(decoder.decode(columns, records))
}

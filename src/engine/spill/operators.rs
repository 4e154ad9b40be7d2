//! The place of DataFusion's operators above a cut: so much memory, and what they cannot hold on the query's shelf.

use std::io::{self, Write};
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use datafusion::common::Result;
use datafusion::execution::TaskContext;
use datafusion::execution::disk_manager::DiskManagerBuilder;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::spill_file::{SpillFile, SpillWriter, TempFileFactory};
use datafusion::prelude::SessionConfig;
use futures::Stream;

use super::{BATCH_ROWS, Parcel, Shelf, ShelfError};
use crate::sync::lock;

/// As much is put aside together.
const PARCEL_BYTES: usize = 256 << 10;

/// A context whose operators hold at most so many bytes.
pub(super) fn context(shelf: &Arc<dyn Shelf>, memory: usize) -> Result<Arc<TaskContext>> {
    let files = Arc::new(Files { shelf: Arc::clone(shelf) });
    // The shelf has the bound.
    let disk =
        DiskManagerBuilder::default().with_max_temp_directory_size(u64::MAX).with_temp_file_factory(files);
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(FairSpillPool::new(memory)))
        .with_disk_manager_builder(disk)
        .build_arc()?;
    // Rows in memory are always sorted in one piece: merging sorted batches of them takes as much memory again, for which
    // nothing is kept. Small batches, because each run that is merged from the shelf has one in memory.
    let config = SessionConfig::new()
        .with_target_partitions(1)
        .with_batch_size(BATCH_ROWS)
        .with_sort_spill_reservation_bytes(memory / 8)
        .with_sort_in_place_threshold_bytes(memory);
    Ok(Arc::new(TaskContext::default().with_session_config(config).with_runtime(runtime)))
}

struct Files {
    shelf: Arc<dyn Shelf>,
}

impl TempFileFactory for Files {
    fn create_temp_file(&self, _description: &str) -> Result<Arc<dyn SpillFile>> {
        Ok(Arc::new(OnShelf { shelf: Arc::clone(&self.shelf), written: Arc::default() }))
    }
}

/// A file of an operator's, as parcels.
struct OnShelf {
    shelf: Arc<dyn Shelf>,
    written: Arc<Mutex<Written>>,
}

#[derive(Default)]
struct Written {
    parcels: Vec<Arc<dyn Parcel>>,
    bytes: u64,
}

impl SpillFile for OnShelf {
    fn size(&self) -> Option<u64> {
        Some(lock(&self.written).bytes)
    }

    fn read_stream(&self) -> Result<Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>> {
        let parcels = lock(&self.written).parcels.clone();
        let read = |parcel: Arc<dyn Parcel>| Ok(Bytes::from(parcel.read()?));
        Ok(Box::pin(futures::stream::iter(parcels.into_iter().map(read))))
    }

    fn open_writer(&self) -> Result<Box<dyn SpillWriter>> {
        let (shelf, written) = (Arc::clone(&self.shelf), Arc::clone(&self.written));
        Ok(Box::new(Writer { shelf, written, waiting: Vec::new() }))
    }
}

struct Writer {
    shelf: Arc<dyn Shelf>,
    written: Arc<Mutex<Written>>,
    waiting: Vec<u8>,
}

impl Writer {
    fn put(&mut self) -> Result<(), ShelfError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let parcel = self.shelf.put(&self.waiting)?;
        let mut written = lock(&self.written);
        written.bytes += self.waiting.len() as u64;
        written.parcels.push(Arc::from(parcel));
        self.waiting.clear();
        Ok(())
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.waiting.extend_from_slice(bytes);
        if self.waiting.len() >= PARCEL_BYTES {
            self.put().map_err(io::Error::other)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.put().map_err(io::Error::other)
    }
}

impl SpillWriter for Writer {
    fn finish(&mut self) -> Result<()> {
        Ok(self.put()?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
    use arrow::datatypes::Int64Type;
    use datafusion::prelude::SessionContext;

    use super::*;
    use crate::engine::spill::Disk;

    /// A disk that counts what was ever put there.
    #[derive(Debug)]
    struct Counting(Disk, AtomicU64);

    impl Shelf for Counting {
        fn put(&self, bytes: &[u8]) -> Result<Box<dyn Parcel>, ShelfError> {
            self.1.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            self.0.put(bytes)
        }

        fn used(&self) -> u64 {
            self.0.used()
        }

        fn clear(&self) {
            self.0.clear();
        }
    }

    async fn sorted(limit: u64) -> (Result<Vec<RecordBatch>>, Arc<Counting>) {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Arc::new(Counting(Disk::new(dir.path(), limit).unwrap(), AtomicU64::new(0)));
        let place = context(&(Arc::clone(&shelf) as Arc<dyn Shelf>), 4 << 20).unwrap();
        let session = SessionContext::new_with_config_rt(place.session_config().clone(), place.runtime_env());
        let batches = (0..60_i64).map(|batch| {
            let numbers: Int64Array =
                (0..5_000).map(|n| Some((batch * 5_000 + n) * 7_919 % 300_000)).collect();
            let texts: StringArray = (0..5_000).map(|n| Some(format!("some text of row {n}"))).collect();
            RecordBatch::try_from_iter([("n", Arc::new(numbers) as ArrayRef), ("text", Arc::new(texts))])
                .unwrap()
        });
        let batches: Vec<RecordBatch> = batches.collect();
        let rows = datafusion::datasource::MemTable::try_new(batches[0].schema(), vec![batches]).unwrap();
        session.register_table("rows", Arc::new(rows)).unwrap();
        let all = session.sql("SELECT n, text FROM rows ORDER BY n").await.unwrap();
        (all.collect().await, shelf)
    }

    #[tokio::test]
    async fn a_sort_that_does_not_fit_goes_over_the_shelf_and_leaves_nothing_there() {
        let (found, shelf) = sorted(1 << 30).await;
        let found = found.unwrap();
        let numbers =
            found.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec());
        assert!(numbers.eq(0..300_000));
        assert!(shelf.1.load(Ordering::Relaxed) > 4 << 20, "{shelf:?}");
        assert_eq!(shelf.used(), 0);
    }

    #[tokio::test]
    async fn a_shelf_that_is_full_is_what_a_sort_fails_of() {
        let (found, _) = sorted(1 << 20).await;
        let error = found.unwrap_err().to_string();
        assert!(error.contains("max_spill_bytes"), "{error}");
    }
}

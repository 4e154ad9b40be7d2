//! Sinks that are no topics of their own accord, a file or standard output: their rows are committed to the topic of
//! the table like all results, and written out from there.
//!
//! A file holds each row once however the process ends: its length goes with the position, and what was written after
//! that is cut off at the start. On standard output the rows since the last position come again after a kill.

use std::fs::File;
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::connector::output::following;
use super::connector::resolve;
use super::failure::Failure;
use super::feed::{commit, ended};
use super::outside::to_the_end;
use super::shared::Shared;
use crate::log::result_row::batch_of;
use crate::log::{HEADER_FINAL, Log, NewRecord, Record, TOPIC_CHECKPOINTS, Transaction, failpoint};
use crate::reaction::table::{Connector, Table};
use crate::shutdown::Tasks;

/// One read brings about this many bytes, or waits so long.
const READ_BYTES: usize = 1 << 20;
const READ_WAIT: Duration = Duration::from_secs(1);

/// How far a sink is written out, as it lies beside the checkpoints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Position {
    /// The file; empty for standard output.
    path: String,
    /// How many bytes of the file are ours.
    bytes: u64,
    /// The record to go on with.
    offset: i64,
}

/// A sink that is written out of its topic.
pub(super) struct Outlet {
    pub(super) shared: Arc<Shared>,
    pub(super) log: Arc<dyn Log>,
    pub(super) table: Table,
    /// Where its SQL is.
    pub(super) folder: PathBuf,
}

/// Where the rows go.
enum To {
    File(File),
    Stdout,
}

impl Outlet {
    /// Under which it writes its position, and holds its topic.
    fn id(&self) -> String {
        format!("emostream.sink.{}", self.table.name)
    }

    /// Writes rows out as they come, until it is stopped.
    pub(super) async fn run(self, tasks: Tasks) {
        let table = &self.table.name;
        if to_the_end(&self.shared, table, &tasks, || self.write(&tasks)).await {
            tracing::warn!(table, "nobody reads standard output any more");
        }
    }

    /// Goes on from the last position; ends when nobody reads what is written.
    async fn write(&self, tasks: &Tasks) -> Result<(), Failure> {
        let (log, topic) = (self.log.as_ref(), self.table.topic.as_str());
        let mut writer = log.fence(&self.id()).await?;
        let known = self.position().await?;
        let (path, place) = (self.path().to_owned(), resolve(self.path(), &self.folder));
        let opened = tasks.spawn_blocking(move || open(&path, &place, known)).await;
        let (mut to, mut position) = ended(opened)?.map_err(|error| self.failed(&error))?;
        let start = log.describe(topic).await?.and_then(|ranges| ranges.first().map(|range| range.start));
        if let Some(start) = start.filter(|start| *start > position.offset) {
            tracing::warn!(table = self.table.name, position.offset, start, "rows are no longer in the log");
            position.offset = start;
        }
        log.hold(&self.id(), topic, 0, Some(position.offset)).await?;
        let mut reader = log.reader(topic, 0, position.offset).await?;
        loop {
            let batch = reader.read(READ_BYTES, READ_WAIT).await?;
            if batch.records.is_empty() {
                continue;
            }
            let rows = self.rows(&batch.records, position.bytes == 0)?;
            let written = rows.len() as u64;
            failpoint::hit("engine.outlet.before");
            let writing = tasks.spawn_blocking(move || (put(&mut to, &rows), to)).await;
            let (outcome, back) = ended(writing)?;
            to = back;
            match outcome {
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                outcome => outcome.map_err(|error| self.failed(&error))?,
            }
            failpoint::hit("engine.outlet.after");
            position.bytes += written;
            position.offset = batch.next;
            let value = serde_json::to_vec(&position).map_err(|error| Failure::Stop(error.to_string()))?;
            let record = NewRecord::keyed(self.id(), Some(value.into()));
            let records = vec![(TOPIC_CHECKPOINTS.to_owned(), 0, record)];
            commit(writer.as_mut(), &Transaction { records, consumed: Vec::new() }).await?;
            log.hold(&self.id(), topic, 0, Some(position.offset)).await?;
        }
    }

    /// Where it stood; `None` when it was never written, or elsewhere.
    async fn position(&self) -> Result<Option<Position>, Failure> {
        let latest = self.log.latest(TOPIC_CHECKPOINTS).await?;
        let value = latest.get(self.id().as_bytes()).and_then(|record| record.value.as_ref());
        let position: Option<Position> = value
            .map(|value| serde_json::from_slice(value))
            .transpose()
            .map_err(|error| Failure::Stop(format!("its position is damaged: {error}")))?;
        Ok(position.filter(|position| position.path == self.path()))
    }

    fn path(&self) -> &str {
        match &self.table.with.connector {
            Connector::SingleFile { path } => path,
            _ => "",
        }
    }

    fn rows(&self, records: &[Record], is_first: bool) -> Result<Vec<u8>, Failure> {
        let mut rows = Vec::new();
        // What an open window holds so far is for those who watch it.
        for record in records.iter().filter(|record| record.header(HEADER_FINAL) != Some("false")) {
            let batch = batch_of(&self.table, record).map_err(Failure::Stop)?;
            rows.extend(following(&self.table, &batch, is_first && rows.is_empty())?);
        }
        Ok(rows)
    }

    fn failed(&self, error: &std::io::Error) -> Failure {
        let shown = if self.path().is_empty() { "standard output" } else { self.path() };
        Failure::Stop(format!("{shown}: {error}"))
    }
}

/// The file as it was at that position, or made anew where it is not that file any more; standard output as it is.
fn open(path: &str, place: &Path, known: Option<Position>) -> std::io::Result<(To, Position)> {
    let begun = known.is_some();
    let mut position = known.unwrap_or_else(|| Position { path: path.to_owned(), ..Position::default() });
    if path.is_empty() {
        return Ok((To::Stdout, position));
    }
    let mut file = File::options().create(true).truncate(false).write(true).open(place)?;
    if begun && file.metadata()?.len() < position.bytes {
        tracing::warn!(path, "the file was removed or cut; it is written anew with what the log still holds");
        position = Position { path: path.to_owned(), ..Position::default() };
    }
    file.set_len(position.bytes)?;
    file.seek(SeekFrom::Start(position.bytes))?;
    Ok((To::File(file), position))
}

/// Hands rows to the system for good.
fn put(to: &mut To, rows: &[u8]) -> std::io::Result<()> {
    match to {
        To::File(file) => {
            file.write_all(rows)?;
            file.sync_data()
        }
        To::Stdout => {
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(rows)?;
            stdout.flush()
        }
    }
}

//! Sources that are no topics of their own accord, a file or an impulse: their rows are appended to the topic of the
//! table, and everything behind that is as if they had been posted.
//!
//! Rows and how far the source is read are one transaction of one writer, so each row is in the topic once however the
//! process ends. A file is read to its end; what is added to it later is read at the next start.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::committing::RETRY;
use super::connector::{ConnectorError, Cursor, Input, Piece, file, impulse, lines_of, resolve};
use super::failure::Failure;
use super::outside::to_the_end;
use super::shared::Shared;
use crate::clock;
use crate::log::codec::{MAX_BYTES, RecordCodec};
use crate::log::{Log, LogError, NewRecord, TOPIC_CHECKPOINTS, Transaction, Writer, failpoint};
use crate::reaction::table::{Connector, Table};
use crate::shutdown::Tasks;
use crate::sync::lock;

/// One transaction has about this many bytes of rows, and so many records at most.
const COMMIT_BYTES: usize = 1 << 20;
const COMMIT_RECORDS: usize = 1_000;
/// How often an impulse's rows are written.
const BEAT: Duration = Duration::from_millis(20);
/// As much is kept of a line that no record holds; with the byte that no text ends in, it is a bad record.
const CUT_BYTES: usize = 64 << 10;
const NO_TEXT: u8 = 0xff;

/// Topics that files are read into by this process. A quiet one says nothing of the time before its file was read: the
/// rows to come are as old as the file says.
#[derive(Debug, Default)]
pub(super) struct Fed(Mutex<BTreeMap<String, Option<i64>>>);

impl Fed {
    /// A file is about to be read into the topic.
    pub(super) fn begin(&self, topic: &str) {
        lock(&self.0).insert(topic.to_owned(), None);
    }

    /// It was, by this time in milliseconds; or it is not any more.
    fn end(&self, topic: &str, now_ms: i64) {
        lock(&self.0).insert(topic.to_owned(), Some(now_ms));
    }

    /// Whether having read every record that was appended before that time says that nothing older comes.
    pub(super) fn is_complete(&self, topic: &str, until_ms: i64) -> bool {
        lock(&self.0).get(topic).is_none_or(|ended_ms| ended_ms.is_some_and(|ended_ms| ended_ms <= until_ms))
    }
}

/// How far a source is read, as it lies beside the checkpoints.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Position {
    /// The file; empty for an impulse.
    path: String,
    #[serde(flatten)]
    cursor: Cursor,
}

/// A source that is read into its topic.
pub(super) struct Feed {
    pub(super) shared: Arc<Shared>,
    pub(super) log: Arc<dyn Log>,
    pub(super) table: Table,
    /// Where its SQL is.
    pub(super) folder: PathBuf,
}

impl Feed {
    /// Whether its rows have times of their own, so that the topic is not complete before they are in it.
    pub(super) fn is_file(table: &Table) -> bool {
        matches!(table.with.connector, Connector::SingleFile { .. })
    }

    /// Under which it writes, and its position lies.
    fn id(&self) -> String {
        format!("emostream.source.{}", self.table.name)
    }

    /// Reads the source to its end, however often that takes.
    pub(super) async fn run(self, tasks: Tasks) {
        let table = &self.table.name;
        if to_the_end(&self.shared, table, &tasks, || self.read(&tasks)).await {
            self.shared.fed.end(&self.table.topic, clock::wall_ms());
            tracing::info!(table, "all of its rows are in the log");
        }
    }

    async fn read(&self, tasks: &Tasks) -> Result<(), Failure> {
        let mut writer = self.log.fence(&self.id()).await?;
        let from = self.position().await?;
        match self.table.with.connector.clone() {
            Connector::SingleFile { path } => self.read_file(tasks, writer.as_mut(), &path, from).await,
            Connector::Impulse { event_rate, message_count } => {
                self.beat(writer.as_mut(), event_rate, message_count.unwrap_or(u64::MAX), from).await
            }
            _ => Ok(()),
        }
    }

    /// How far it was read. Another file than before is read from its beginning.
    async fn position(&self) -> Result<Cursor, Failure> {
        let latest = self.log.latest(TOPIC_CHECKPOINTS).await?;
        let value = latest.get(self.id().as_bytes()).and_then(|record| record.value.as_ref());
        let Some(value) = value else { return Ok(Cursor::default()) };
        let position: Position = serde_json::from_slice(value)
            .map_err(|error| Failure::Stop(format!("its position is damaged: {error}")))?;
        Ok(if position.path == self.path() { position.cursor } else { Cursor::default() })
    }

    fn path(&self) -> &str {
        match &self.table.with.connector {
            Connector::SingleFile { path } => path,
            _ => "",
        }
    }

    async fn read_file(
        &self,
        tasks: &Tasks,
        writer: &mut dyn Writer,
        path: &str,
        from: Cursor,
    ) -> Result<(), Failure> {
        let (table, place, shown) = (self.table.clone(), resolve(path, &self.folder), path.to_owned());
        let opened = tasks.spawn_blocking(move || file::read(&table, &place, &shown, from)).await;
        let mut input = ended(opened)??;
        let codec = Arc::new(RecordCodec::new(&self.table));
        loop {
            let codec = Arc::clone(&codec);
            let read = tasks.spawn_blocking(move || (some(&mut input, &codec), input)).await;
            let (some, rest) = ended(read)?;
            input = rest;
            let Some((records, after)) = some? else { return Ok(()) };
            self.append(writer, records, after).await?;
        }
    }

    /// Writes the rows that are due, from beat to beat.
    async fn beat(
        &self,
        writer: &mut dyn Writer,
        event_rate: f64,
        message_count: u64,
        from: Cursor,
    ) -> Result<(), Failure> {
        let mut input = impulse::impulse(&self.table, event_rate, message_count, from).peekable();
        let (began, first_ms) = (Instant::now(), impulse::written_ms(from.next, event_rate));
        loop {
            let now_ms =
                first_ms.saturating_add(i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX));
            let (mut records, mut after) = (Vec::new(), from);
            let is_due = |piece: &Result<Piece, ConnectorError>| {
                piece.as_ref().map_or(true, |piece| piece.record.timestamp_ms <= now_ms)
            };
            while let Some(piece) = (records.len() < COMMIT_RECORDS).then(|| input.next_if(is_due)).flatten()
            {
                let piece = piece?;
                after = piece.after;
                records.push(new_record(piece));
            }
            if !records.is_empty() {
                self.append(writer, records, after).await?;
            } else if input.peek().is_none() {
                return Ok(());
            }
            tokio::time::sleep(BEAT).await;
        }
    }

    /// Appends rows together with how far they bring the source.
    async fn append(
        &self,
        writer: &mut dyn Writer,
        records: Vec<NewRecord>,
        after: Cursor,
    ) -> Result<(), Failure> {
        let position = Position { path: self.path().to_owned(), cursor: after };
        let position = serde_json::to_vec(&position).map_err(|error| Failure::Stop(error.to_string()))?;
        let topic = &self.table.topic;
        let mut all: Vec<_> = records.into_iter().map(|record| (topic.clone(), 0, record)).collect();
        all.push((TOPIC_CHECKPOINTS.to_owned(), 0, NewRecord::keyed(self.id(), Some(position.into()))));
        let transaction = Transaction { records: all, consumed: Vec::new() };
        failpoint::hit("engine.feed.before");
        commit(writer, &transaction).await?;
        failpoint::hit("engine.feed.after");
        Ok(())
    }
}

/// Commits; while nothing was written because the log is not available, tries again with the same.
pub(super) async fn commit(writer: &mut dyn Writer, transaction: &Transaction) -> Result<(), Failure> {
    let mut wait = RETRY.0;
    loop {
        match writer.commit(transaction.clone()).await {
            Err(LogError::Unavailable(reason)) => tracing::warn!(reason, "rows wait for the log"),
            outcome => return outcome.map_err(Failure::from),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY.1);
    }
}

/// What a blocking task brought.
pub(super) fn ended<T>(task: Result<T, tokio::task::JoinError>) -> Result<T, Failure> {
    task.map_err(|error| Failure::Stop(format!("a thread ended: {error}")))
}

impl From<ConnectorError> for Failure {
    fn from(error: ConnectorError) -> Self {
        Self::Stop(error.to_string())
    }
}

/// The records of the next pieces, about as many as one transaction should have; `None` at the end. A piece that cannot
/// be read becomes a record a line, so that it costs no more than the lines that are wrong.
fn some(input: &mut Input, codec: &RecordCodec) -> Result<Option<(Vec<NewRecord>, Cursor)>, ConnectorError> {
    let (mut records, mut bytes, mut after) = (Vec::new(), 0, None);
    let columns: Vec<usize> = (0..codec.schema().fields().len()).collect();
    while bytes < COMMIT_BYTES && records.len() < COMMIT_RECORDS {
        let Some(piece) = input.next().transpose()? else { break };
        after = Some(piece.after);
        let size = piece.record.value.as_ref().map_or(0, bytes::Bytes::len);
        bytes += size;
        if size <= MAX_BYTES && codec.decode(0, &piece.record, &columns).is_ok() {
            records.push(new_record(piece));
        } else {
            records.extend(lines_of(&piece).into_iter().filter(has_text).map(new_record));
        }
    }
    Ok(after.map(|after| (records, after)))
}

fn has_text(line: &Piece) -> bool {
    line.record.value.as_ref().is_some_and(|value| !value.trim_ascii().is_empty())
}

fn new_record(piece: Piece) -> NewRecord {
    let value = piece.record.value.map(|value| {
        if value.len() <= MAX_BYTES {
            return value;
        }
        let mut cut = BytesMut::from(&value[..CUT_BYTES]);
        cut.put_u8(NO_TEXT);
        cut.freeze()
    });
    NewRecord { value, headers: piece.record.headers, ..NewRecord::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_topic_says_nothing_before_its_file_is_read() {
        let fed = Fed::default();
        assert!(fed.is_complete("posted", 5));
        fed.begin("read");
        assert!(!fed.is_complete("read", i64::MAX));
        fed.end("read", 10);
        assert!(!fed.is_complete("read", 9) && fed.is_complete("read", 10) && fed.is_complete("posted", 9));
    }
}

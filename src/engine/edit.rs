//! Changing the running program: checked first, then the file, then the log, then what runs.
//!
//! A change is planned whole against the running tables and refused whole. The file is written before the log, so that a
//! crash between the two leaves an edit that the next start takes up, never a program that the folder would take back.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::mpsc;

use super::change::Compatibility;
use super::committing::writer_id;
use super::planned::{Files, Planned, at_start, file_of};
use super::slot::{Failed, Slot};
use super::worker::QueryReport;
use super::{Engine, Place, Running, blocking, folder, outside, plan};
use crate::clock;
use crate::log::program::{self, VersionEntry};
use crate::log::{LogError, TopicSpec};
use crate::reaction::table::{Connector, TableKind};
use crate::sql::Diagnostic;
use crate::sync::lock;

/// The longest text of a query.
pub(super) const MAX_TEXT_BYTES: usize = 256 << 10;

/// Why a change was not made, by what the caller must do.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// Write something else: it does not plan, or breaks what runs.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Refused(Vec<Diagnostic>),
    /// There is no such query, or no such version of it.
    #[error("{0}")]
    Unknown(String),
    /// No name for a query.
    #[error("'{0}' is no name for a query: 1 to 100 letters, digits, '_', '-' and '.', the first no '.'")]
    Name(String),
    /// Somebody else changed it first: read it again.
    #[error("version {0} runs, which is not the one that was to be changed")]
    Outdated(u64),
    /// The folder takes no file.
    #[error("{0}")]
    ReadOnly(String),
    /// Try again later: nothing was changed.
    #[error("{0}")]
    Outside(String),
}

impl From<LogError> for ChangeError {
    fn from(error: LogError) -> Self {
        Self::Outside(format!("the log: {error}"))
    }
}

/// What would become of a text, as `POST /v1/queries/check` answers it.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Whether it plans.
    pub ok: bool,
    /// Errors, or warnings when it plans.
    pub diagnostics: Vec<Diagnostic>,
    /// What lies below, at and above the cut.
    pub plan: Option<String>,
    /// How it relates to the running version.
    pub compatibility: Option<Compatibility>,
}

/// A version of a query, as `GET /v1/queries/{name}/versions` lists it.
#[derive(Clone, Debug, Serialize)]
pub struct VersionReport {
    /// Its number, its text, since when, and why it was rolled back.
    #[serde(flatten)]
    pub entry: VersionEntry,
    /// Whether it runs.
    pub state: VersionState,
}

/// What became of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VersionState {
    /// It runs, or will at the next boundary.
    Running,
    /// Another one followed.
    Replaced,
    /// It failed and was rolled back.
    Failed,
}

/// What an editor wants of a query's file.
pub(super) enum Edit {
    Write(String),
    Remove,
}

impl Engine {
    /// What would become of that text; changes nothing.
    pub async fn check(&self, name: &str, text: &str) -> Verdict {
        let program = self.program();
        let refused = |diagnostics| Verdict { ok: false, diagnostics, plan: None, compatibility: None };
        match self.prepare(&with_text(&program, name, text), Some(name)).await {
            Err(diagnostics) => refused(diagnostics),
            Ok(mut planned) => {
                let Some(query) = planned.queries.remove(name) else { return refused(Vec::new()) };
                let slot = self.slot(name);
                let (wanted, running) =
                    (slot.as_ref().map(|slot| slot.wanted()), slot.map(|slot| slot.running()));
                let now = running.and_then(|running| running.watermark()).unwrap_or_else(clock::wall_ns);
                let running = wanted.as_ref().map(|version| version.as_compared());
                let compatibility = Compatibility::of(running, query.as_compared(), now);
                let (plan, diagnostics) = (Some(query.plan), planned.warnings);
                Verdict { ok: true, diagnostics, plan, compatibility: Some(compatibility) }
            }
        }
    }

    /// Makes that text the query: its report, and whether the query is new. `expected` is the version that the editor has seen.
    ///
    /// # Errors
    /// When it is refused, was changed by another editor first, or cannot be stored; then nothing has changed.
    pub async fn put(
        &self,
        name: &str,
        text: String,
        expected: Option<u64>,
    ) -> Result<(QueryReport, bool), ChangeError> {
        if !is_name(name) {
            return Err(ChangeError::Name(name.to_owned()));
        }
        let mut seen = self.changing.lock().await;
        let is_new = self.expect(name, expected)?.is_none();
        let planned = self.prepare(&with_text(&self.program(), name, &text), Some(name)).await;
        let planned = planned.map_err(ChangeError::Refused)?;
        self.make(planned, Some((name, Edit::Write(text))), &mut seen).await?;
        drop(seen);
        let slot = self.slot(name).ok_or_else(|| self.unknown(name))?;
        slot.note(None);
        Ok((slot.report().await?, is_new))
    }

    /// Puts an earlier version back as a new one.
    ///
    /// # Errors
    /// As [`Engine::put`], and when there is no such version.
    pub async fn restore(
        &self,
        name: &str,
        version: u64,
        expected: Option<u64>,
    ) -> Result<(QueryReport, bool), ChangeError> {
        let versions = self.versions(name)?;
        let found = versions.into_iter().find(|report| report.entry.version == version);
        let Some(found) = found else {
            return Err(ChangeError::Unknown(format!("query '{name}' has no version {version} any more")));
        };
        self.put(name, found.entry.text, expected).await
    }

    /// Stops a query for good. What it has emitted stays.
    ///
    /// # Errors
    /// As [`Engine::put`].
    pub async fn delete(&self, name: &str, expected: Option<u64>) -> Result<(), ChangeError> {
        let mut seen = self.changing.lock().await;
        self.expect(name, expected)?.ok_or_else(|| self.unknown(name))?;
        let mut files = self.program().planned.files.clone();
        files.remove(&file_of(name));
        let planned = self.prepare(&files, None).await.map_err(ChangeError::Refused)?;
        self.make(planned, Some((name, Edit::Remove)), &mut seen).await
    }

    /// The versions of a query that are kept, the oldest first.
    ///
    /// # Errors
    /// When there is no such query.
    pub fn versions(&self, name: &str) -> Result<Vec<VersionReport>, ChangeError> {
        let program = self.program();
        let Some(running) = program.view.queries.get(name) else { return Err(self.unknown(name)) };
        let report = |entry: &VersionEntry| VersionReport {
            state: match entry {
                entry if entry.version == running.version => VersionState::Running,
                entry if entry.failed.is_some() => VersionState::Failed,
                _ => VersionState::Replaced,
            },
            entry: entry.clone(),
        };
        Ok(program.view.versions.get(name).into_iter().flatten().map(|(_, entry)| report(entry)).collect())
    }

    /// That nobody else names.
    pub fn unknown(&self, name: &str) -> ChangeError {
        ChangeError::Unknown(format!("there is no query '{name}'; there are: {}", self.names().join(", ")))
    }

    fn expect(&self, name: &str, expected: Option<u64>) -> Result<Option<Arc<Slot>>, ChangeError> {
        let slot = self.slot(name);
        let running = slot.as_ref().map_or(0, |slot| slot.wanted().number);
        match expected.filter(|expected| *expected != running) {
            Some(_) => Err(ChangeError::Outdated(running)),
            None => Ok(slot),
        }
    }

    /// Plans against what runs. `must` is the query that has to come out of it.
    pub(super) async fn prepare(
        &self,
        files: &Files,
        must: Option<&str>,
    ) -> Result<Planned, Vec<Diagnostic>> {
        let planned = plan(&self.place, self.shared.rules, files.clone()).await?;
        if let Some(name) = must.filter(|name| !planned.queries.contains_key(*name)) {
            let file = self.place.folder.join(file_of(name)).display().to_string();
            let message = "the text holds no INSERT INTO a sink SELECT …, so there is no query";
            return Err(vec![at_start(file, message, "")]);
        }
        planned.refuse_table_changes(&self.program().planned, &self.place.folder)?;
        Ok(planned)
    }

    /// Makes a prepared program the running one.
    pub(super) async fn make(
        &self,
        planned: Planned,
        edit: Option<(&str, Edit)>,
        seen: &mut Files,
    ) -> Result<(), ChangeError> {
        if !self.shared.is_leader() {
            return Err(ChangeError::Outside("another process runs the queries now".to_owned()));
        }
        self.log.create_topics(&topics(&planned, &self.place)).await?;
        let slots = lock(&self.slots).clone();
        let gone: Vec<_> =
            slots.into_iter().filter(|(name, _)| !planned.queries.contains_key(name)).collect();
        let made = self.store(planned, edit, &gone, seen).await;
        if made.is_err() && !gone.is_empty() {
            // What was ended goes on: the program is still the old one.
            for (name, _) in &gone {
                lock(&self.slots).remove(name);
            }
            self.reconcile(BTreeMap::new());
        }
        made
    }

    async fn store(
        &self,
        planned: Planned,
        edit: Option<(&str, Edit)>,
        gone: &[(String, Arc<Slot>)],
        seen: &mut Files,
    ) -> Result<(), ChangeError> {
        for (name, slot) in gone {
            slot.end().await;
            self.retire(name, slot).await?;
        }
        let undo = match edit {
            Some((name, edit)) => {
                let file = file_of(name);
                let before = seen.get(&file).cloned();
                self.write(&file, edit, seen).await?;
                Some((file, before.map_or(Edit::Remove, Edit::Write)))
            }
            None => None,
        };
        match program::store(self.log.as_ref(), &planned.view(), clock::wall_ns()).await {
            Ok(view) => {
                for (name, _) in gone {
                    lock(&self.slots).remove(name);
                }
                *lock(&self.program) = Arc::new(Running { planned, view });
                self.reconcile(BTreeMap::new());
                Ok(())
            }
            Err(error) => {
                if let Some((file, before)) = undo {
                    self.write(&file, before, seen).await?;
                }
                Err(error.into())
            }
        }
    }

    /// Nothing of an ended query commits any more, in whatever process, and it holds no records.
    async fn retire(&self, name: &str, slot: &Slot) -> Result<(), LogError> {
        let writer = writer_id(name);
        drop(self.log.fence(&writer).await?);
        let compiled = Arc::clone(&slot.wanted().query.compiled);
        for source in &compiled.sources {
            let topic = &source.table.topic;
            let partitions = self.log.describe(topic).await?.unwrap_or_default().len();
            for partition in 0..u32::try_from(partitions).unwrap_or(u32::MAX) {
                self.log.hold(&writer, topic, partition, None).await?;
            }
        }
        Ok(())
    }

    async fn write(&self, file: &str, edit: Edit, seen: &mut Files) -> Result<(), ChangeError> {
        let (folder, name) = (self.place.folder.clone(), file.to_owned());
        let written = match edit {
            Edit::Write(text) => {
                let copy = text.clone();
                let written = blocking(move || folder::write(&folder, &name, &copy)).await;
                written.map(|()| drop(seen.insert(file.to_owned(), text)))
            }
            Edit::Remove => {
                let removed = blocking(move || folder::remove(&folder, &name)).await;
                removed.map(|()| drop(seen.remove(file)))
            }
        };
        written.map_err(|error| not_written(&self.place.folder.join(file), &error))
    }

    /// Puts back the versions that ran before those that fail, for as long as it runs.
    pub(super) async fn roll_back_what_fails(&self, mut failed: mpsc::Receiver<Failed>) {
        while let Some(failed) = failed.recv().await {
            while let Err(error) = self.roll_back(&failed).await {
                tracing::error!(query = failed.query, %error, "a failed version is not rolled back yet");
                tokio::time::sleep(folder::LOOK_EVERY).await;
            }
        }
    }

    async fn roll_back(&self, failed: &Failed) -> Result<(), LogError> {
        let Failed { query: name, version, to, reason } = failed;
        if !self.shared.is_leader() {
            return Ok(());
        }
        let _alone = self.changing.lock().await;
        let Some(slot) = self.slot(name).filter(|slot| slot.wanted().number == *version) else {
            return Ok(());
        };
        let files = with_text(&self.program(), name, &to.query.text);
        let planned = match self.prepare(&files, Some(name)).await {
            Ok(planned) => planned,
            Err(diagnostics) => {
                let first = diagnostics.first().map(ToString::to_string).unwrap_or_default();
                slot.note(Some(format!("{reason}; version {} does not plan any more: {first}", to.number)));
                return Ok(());
            }
        };
        let note = format!("version {version} failed and was rolled back to version {}: {reason}", to.number);
        tracing::error!(query = name, "{note}");
        let view = program::roll_back(self.log.as_ref(), name, *version, to.number, reason).await?;
        *lock(&self.program) = Arc::new(Running { planned, view });
        self.reconcile(BTreeMap::new());
        slot.note(Some(note));
        Ok(())
    }
}

fn not_written(path: &Path, error: &std::io::Error) -> ChangeError {
    use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    let message = format!("{}: {error}", path.display());
    match error.kind() {
        PermissionDenied | ReadOnlyFilesystem => ChangeError::ReadOnly(message),
        _ => ChangeError::Outside(message),
    }
}

/// The topics of all tables. What is carried in or out keeps its order, in one partition; a source that no query reads
/// needs no topic.
pub(super) fn topics(planned: &Planned, place: &Place) -> Vec<TopicSpec> {
    let (mut topics, carried) = (program::system_topics(), outside::carried(planned));
    for table in planned.tables.iter().filter(|table| table.is_in_the_log()) {
        let partitions = match table.with.connector {
            Connector::Kafka => place.partitions,
            _ if table.kind == TableKind::Source && !carried.contains_key(&table.name) => continue,
            _ => 1,
        };
        topics.push(program::table_topic(table, partitions, place.retention));
        topics.extend(program::late_table_topic(table, place.partitions, place.retention));
    }
    topics
}

fn with_text(running: &Running, name: &str, text: &str) -> Files {
    let mut files = running.planned.files.clone();
    files.insert(file_of(name), text.to_owned());
    files
}

/// It becomes a file's name, and part of addresses and transactional ids.
fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (1..=100).contains(&name.len()) && !name.starts_with('.') && name.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    #[test]
    fn a_folder_that_takes_no_file_is_told_from_a_full_disk() {
        let error = |kind: ErrorKind| not_written(Path::new("sql/a.sql"), &kind.into());
        for kind in [ErrorKind::PermissionDenied, ErrorKind::ReadOnlyFilesystem] {
            assert!(matches!(error(kind), ChangeError::ReadOnly(message) if message.contains("sql/a.sql")));
        }
        assert!(matches!(error(ErrorKind::StorageFull), ChangeError::Outside(_)));
    }

    #[test]
    fn a_name_is_fit_for_a_file_and_an_address() {
        assert!(is_name("emoji_counts") && is_name("a.b-c") && is_name(&"x".repeat(100)));
        for name in ["", ".", "..", ".hidden", "a/b", "a b", "ä", &"x".repeat(101)] {
            assert!(!is_name(name), "{name}");
        }
    }
}

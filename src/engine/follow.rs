//! Saved files become the running program: the folder is looked at, what changed in it is planned, and what does not plan
//! is told where it belongs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::planned::{Files, Planned, file_of};
use super::{ChangeError, Engine, blocking, folder};
use crate::log::program::ProgramView;
use crate::sql::Diagnostic;

impl Engine {
    /// Takes up what is saved in the folder, for as long as it runs.
    pub(super) async fn follow_folder(&self) {
        let (mut taken, mut pending) = (folder::Stamps::new(), None);
        loop {
            tokio::time::sleep(folder::LOOK_EVERY).await;
            let looked = self.place.folder.clone();
            let Ok(now) = blocking(move || folder::stamps(&looked)).await else { continue };
            if now == taken {
                continue;
            }
            if pending.as_ref() != Some(&now) {
                pending = Some(now);
                continue;
            }
            match self.take_up_folder().await {
                Ok(()) => taken = now,
                Err(error) => tracing::warn!(%error, "an edit in the SQL folder waits"),
            }
        }
    }

    /// Applies what was edited since the last look: the folder as a whole if that plans, else what changed in it.
    ///
    /// # Errors
    /// When it has to be tried again. An edit that does not plan is no error: it is reported where it belongs.
    async fn take_up_folder(&self) -> Result<(), ChangeError> {
        let mut seen = self.changing.lock().await;
        let read = self.place.folder.clone();
        let now = blocking(move || folder::read(&read)).await;
        let now = now.map_err(|error| ChangeError::Outside(error.to_string()))?;
        let program = self.program();
        // A file that was saved as it was is a word to read static tables again.
        if now == *seen && !program.planned.joins_files() {
            return Ok(());
        }
        let whole = without_rolled_back(&program.view, &now);
        let changed = folder::edited(&program.planned.files, &seen, &now);
        let planned = match self.prepare(&whole, None).await {
            Err(_) if changed != whole => self.prepare(&changed, None).await,
            planned => planned,
        };
        match planned {
            Ok(planned) => {
                for warning in &planned.warnings {
                    tracing::warn!("{warning}");
                }
                let [changed, new, gone] = differences(&program.planned, &planned);
                self.make(planned, None, &mut seen).await?;
                tracing::info!(folder = %self.place.folder.display(), changed, new, gone, "the SQL was edited");
            }
            Err(diagnostics) => self.tell_refused(&diagnostics, &seen, &now),
        }
        self.forget_notes(&now);
        *seen = now;
        Ok(())
    }

    /// An edit that is not taken up is told in the log and at the queries it is about.
    fn tell_refused(&self, diagnostics: &[Diagnostic], seen: &Files, now: &Files) {
        let all: Vec<String> = diagnostics.iter().map(ToString::to_string).collect();
        let message = format!("an edit is not taken up:\n{}", all.join("\n"));
        tracing::error!("{message}");
        for name in self.names() {
            let file = file_of(&name);
            let is_edited = now.get(&file) != seen.get(&file);
            let is_named = diagnostics.iter().any(|found| found.file.ends_with(&file));
            if let Some(slot) = self.slot(&name).filter(|_| is_edited || is_named) {
                slot.note(Some(message.clone()));
            }
        }
    }

    /// A query whose file is what runs has nothing to tell any more.
    fn forget_notes(&self, now: &Files) {
        let running = self.program();
        for name in self.names() {
            let file = file_of(&name);
            let is_as_it_runs = now.get(&file) == running.planned.files.get(&file);
            if let Some(slot) = self.slot(&name).filter(|_| is_as_it_runs) {
                slot.note(None);
            }
        }
    }
}

/// What an edit changed, brought and took away: queries by their names, tables as `table NAME`; `None` where that is nothing.
fn differences(before: &Planned, now: &Planned) -> [Option<String>; 3] {
    let parts = |planned: &Planned| -> BTreeMap<String, String> {
        let queries = planned.queries.iter().map(|(name, query)| (name.clone(), query.identity.clone()));
        let tables = planned.tables.iter();
        queries.chain(tables.map(|table| (format!("table {}", table.name), format!("{table:?}")))).collect()
    };
    let (before, now) = (parts(before), parts(now));
    let listed = |names: Vec<&str>| (!names.is_empty()).then(|| names.join(", "));
    let missing_in = |those: &BTreeMap<String, String>, all: &BTreeMap<String, String>| {
        listed(all.keys().filter(|name| !those.contains_key(*name)).map(String::as_str).collect())
    };
    let changed = now.iter().filter(|(name, part)| before.get(*name).is_some_and(|before| before != *part));
    let changed = changed.map(|(name, _)| name.as_str()).collect();
    [listed(changed), missing_in(&before, &now), missing_in(&now, &before)]
}

/// The files, but where the last edit of a query failed and is still there, with the text that runs.
pub(super) fn without_rolled_back(view: &ProgramView, files: &Files) -> Files {
    let mut files = files.clone();
    for (name, running) in &view.queries {
        if let Some(text) = files.get_mut(&file_of(name))
            && view.rolled_back(name).is_some_and(|failed| failed.text == *text)
        {
            running.text.clone_into(text);
        }
    }
    files
}

/// A folder that is not what runs is worth a word: it counts only from its next edit on.
pub(super) fn warn_of_differences(folder: &Path, here: &Files, running: &Files) {
    let names: BTreeSet<&String> = here.keys().chain(running.keys()).collect();
    let differing: Vec<&str> =
        names.into_iter().filter(|name| here.get(*name) != running.get(*name)).map(String::as_str).collect();
    if !differing.is_empty() {
        let (folder, files) = (folder.display(), differing.join(", "));
        tracing::warn!(%folder, files, "the program that ran before goes on; these files here differ from it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edit_is_told_by_what_it_changed_brought_and_took_away() {
        const TABLES: &str = include_str!("../../sql/tables.sql");
        const COUNTS: &str = include_str!("../../sql/emoji_counts.sql");
        let planned = |files: [(&str, &str); 2]| {
            let files = files.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
            Planned::of(Path::new("sql"), &[], 5000, &files).unwrap()
        };
        let check = |before: &Planned, now: &Planned, expected: [Option<&str>; 3]| {
            assert_eq!(differences(before, now).each_ref().map(Option::as_deref), expected);
        };
        let before = planned([("tables.sql", TABLES), ("emoji_counts.sql", COUNTS)]);
        check(&before, &before, [None; 3]);
        let another = planned([("tables.sql", TABLES), ("emoji_counts.sql", &COUNTS.replace("1000", "500"))]);
        check(&before, &another, [Some("emoji_counts"), None, None]);
        let more =
            format!("{TABLES}\nCREATE TABLE more (room TEXT) WITH (connector = 'kafka', type = 'sink');");
        let renamed = planned([("tables.sql", &more), ("counts.sql", COUNTS)]);
        check(&before, &renamed, [None, Some("counts, table more"), Some("emoji_counts")]);
    }
}

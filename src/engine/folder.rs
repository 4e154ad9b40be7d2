//! The folder of SQL files on disk: read, written so that a crash leaves the old text or the new one, and compared.
//!
//! It is looked at every half second instead of being watched by the operating system: a few small files cost nothing to
//! look at, an editor that saves by renaming looks like any other, and it works on network and container mounts, where
//! notifications do not.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::planned::Files;
use crate::sql;

/// How often the folder is looked at. What was saved must stay as it is for one look, so that several files saved
/// together, or one saved in two steps, are one change.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What tells one state of the folder from another without reading the files.
pub(super) type Stamps = BTreeMap<PathBuf, (Option<SystemTime>, u64)>;

/// The stamps of the `*.sql` files.
pub(super) fn stamps(folder: &Path) -> io::Result<Stamps> {
    let mut stamps = Stamps::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "sql") {
            // One that went away meanwhile is seen so at the next look.
            if let Ok(metadata) = std::fs::metadata(&path) {
                stamps.insert(path, (metadata.modified().ok(), metadata.len()));
            }
        }
    }
    Ok(stamps)
}

/// The texts of the `*.sql` files.
pub(super) fn read(folder: &Path) -> io::Result<Files> {
    let named = |file: sql::SqlFile| {
        let name = Path::new(&file.name).file_name().map(|name| name.to_string_lossy().into_owned());
        (name.unwrap_or_default(), file.text)
    };
    Ok(sql::load_folder(folder)?.into_iter().map(named).collect())
}

/// Writes a file whole: a temporary one beside it, synced, then renamed.
pub(super) fn write(folder: &Path, name: &str, text: &str) -> io::Result<()> {
    let temporary = folder.join(format!(".{name}.{}.tmp", std::process::id()));
    let written = (|| {
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, folder.join(name))?;
        std::fs::File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        // What is left of the attempt is of no use; the first error is the one to tell.
        std::fs::remove_file(&temporary).unwrap_or_default();
    }
    written
}

/// Removes a file; one that is gone already is no error.
pub(super) fn remove(folder: &Path, name: &str) -> io::Result<()> {
    match std::fs::remove_file(folder.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => std::fs::File::open(folder)?.sync_all(),
    }
}

/// `running` with what changed from `seen` to `now`: files whose last edit does not run stay as they run.
pub(super) fn edited(running: &Files, seen: &Files, now: &Files) -> Files {
    let mut files = running.clone();
    for (name, text) in now {
        if seen.get(name) != Some(text) {
            files.insert(name.clone(), text.clone());
        }
    }
    files.retain(|name, _| now.contains_key(name) || !seen.contains_key(name));
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(of: &[(&str, &str)]) -> Files {
        of.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn a_file_is_written_whole_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "a.sql", "SELECT 1").unwrap();
        write(dir.path(), "a.sql", "SELECT 2").unwrap();
        assert_eq!(read(dir.path()).unwrap(), files(&[("a.sql", "SELECT 2")]));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        remove(dir.path(), "a.sql").unwrap();
        remove(dir.path(), "a.sql").unwrap();
        assert_eq!(read(dir.path()).unwrap(), Files::new());
    }

    #[test]
    fn only_what_was_edited_changes_and_a_refused_edit_stays_out() {
        let running = files(&[("a.sql", "1"), ("b.sql", "1"), ("c.sql", "1")]);
        let seen = files(&[("a.sql", "refused"), ("b.sql", "1"), ("c.sql", "1")]);
        let now = files(&[("a.sql", "refused"), ("b.sql", "2"), ("d.sql", "1")]);
        let expected = files(&[("a.sql", "1"), ("b.sql", "2"), ("d.sql", "1")]);
        assert_eq!(edited(&running, &seen, &now), expected);
    }
}

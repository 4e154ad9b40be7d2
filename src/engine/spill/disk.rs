//! The shelf that is a folder: files without a name, which are gone with the process however it ends.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use super::{Parcel, Shelf, ShelfError};
use crate::sync::lock;

/// A file that is this large takes nothing more, so that its space comes back when what it holds is over. A larger share
/// of what may be there keeps the number of open files small.
const FILE_BYTES: u64 = 64 << 20;
const FILES: u64 = 256;

/// Numbers the files of this process, so that no two have the same name while they have one.
static NAMES: AtomicU64 = AtomicU64::new(0);

/// A folder, and how much may be there for one query.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
    limit: u64,
    used: Arc<AtomicU64>,
    files: Mutex<Vec<Weak<Scratch>>>,
}

/// One file, gone with the last parcel in it.
#[derive(Debug)]
struct Scratch {
    dir: PathBuf,
    file: File,
    /// Of the whole disk.
    used: Arc<AtomicU64>,
    /// Its length. Only who holds the lock on the files writes.
    end: AtomicU64,
}

#[derive(Debug)]
struct InFile {
    file: Arc<Scratch>,
    at: u64,
    bytes: usize,
}

impl Disk {
    /// Makes the folder when it is not there, and tries it.
    ///
    /// # Errors
    /// When files cannot be written there.
    pub fn new(dir: &Path, limit: u64) -> Result<Self, ShelfError> {
        let disk = Self { dir: dir.to_owned(), limit, used: Arc::default(), files: Mutex::default() };
        std::fs::create_dir_all(dir).map_err(|error| failed(dir, error))?;
        disk.create().map_err(|error| failed(dir, error))?;
        Ok(disk)
    }

    fn create(&self) -> std::io::Result<Arc<Scratch>> {
        let number = NAMES.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("emostream-{}-{number}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        // Open files without a name take their space until they are closed, and the system closes them for a process
        // that is killed.
        std::fs::remove_file(&path)?;
        Ok(Arc::new(Scratch {
            dir: self.dir.clone(),
            file,
            used: Arc::clone(&self.used),
            end: AtomicU64::new(0),
        }))
    }

    /// The file to write into now.
    fn open(&self, files: &mut Vec<Weak<Scratch>>) -> std::io::Result<Arc<Scratch>> {
        let enough = (self.limit / FILES).max(FILE_BYTES);
        let last = files.last().and_then(Weak::upgrade);
        if let Some(last) = last.filter(|last| last.end.load(Ordering::Relaxed) < enough) {
            return Ok(last);
        }
        files.retain(|file| file.strong_count() > 0);
        let file = self.create()?;
        files.push(Arc::downgrade(&file));
        Ok(file)
    }
}

fn failed(dir: &Path, error: std::io::Error) -> ShelfError {
    ShelfError::Disk { dir: dir.display().to_string(), error }
}

impl Shelf for Disk {
    fn put(&self, bytes: &[u8]) -> Result<Box<dyn Parcel>, ShelfError> {
        let mut files = lock(&self.files);
        let more = bytes.len() as u64;
        if self.used() + more > self.limit {
            return Err(ShelfError::Full { limit: self.limit });
        }
        let file = self.open(&mut files).map_err(|error| failed(&self.dir, error))?;
        let at = file.end.load(Ordering::Relaxed);
        file.file.write_all_at(bytes, at).map_err(|error| failed(&self.dir, error))?;
        file.end.store(at + more, Ordering::Relaxed);
        self.used.fetch_add(more, Ordering::Relaxed);
        Ok(Box::new(InFile { file, at, bytes: bytes.len() }))
    }

    fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn clear(&self) {
        for file in lock(&self.files).drain(..).filter_map(|file| file.upgrade()) {
            file.empty();
        }
    }
}

impl Scratch {
    fn empty(&self) {
        if let Err(error) = self.file.set_len(0) {
            tracing::warn!(%error, dir = %self.dir.display(), "what was put aside takes its space until the process ends");
        }
        self.used.fetch_sub(self.end.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.used.fetch_sub(self.end.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl Parcel for InFile {
    fn read(&self) -> Result<Vec<u8>, ShelfError> {
        let mut bytes = vec![0; self.bytes];
        self.file.file.read_exact_at(&mut bytes, self.at).map_err(|error| failed(&self.file.dir, error))?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_aside_comes_back_takes_its_space_as_long_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(&dir.path().join("spill"), 10 << 20).unwrap();
        let parcels: Vec<_> =
            (0..100_u8).map(|n| disk.put(&vec![n; 1000 + usize::from(n)]).unwrap()).collect();
        for (n, parcel) in (0..100_u8).zip(&parcels) {
            assert_eq!(parcel.read().unwrap(), vec![n; 1000 + usize::from(n)]);
        }
        assert_eq!(disk.used(), (0..100).map(|n| 1000 + n).sum::<u64>());
        assert_eq!(std::fs::read_dir(dir.path().join("spill")).unwrap().count(), 0);
        drop(parcels);
        assert_eq!(disk.used(), 0);
    }

    #[test]
    fn more_than_the_limit_is_refused_until_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(dir.path(), 1000).unwrap();
        let first = disk.put(&[1; 900]).unwrap();
        let full = disk.put(&[2; 101]).unwrap_err().to_string();
        assert!(full.contains("max_spill_bytes") && full.contains("raise it"), "{full}");
        disk.put(&[2; 100]).unwrap();
        drop(first);
        disk.put(&[2; 1000]).unwrap();
    }

    #[test]
    fn what_is_cleared_gives_its_space_back_although_somebody_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(dir.path(), 1000).unwrap();
        let parcel = disk.put(&[1; 900]).unwrap();
        disk.clear();
        assert_eq!(disk.used(), 0);
        assert!(parcel.read().is_err());
        disk.put(&[2; 1000]).unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("taken"), "").unwrap();
        let error = Disk::new(&dir.path().join("taken"), 1000).unwrap_err().to_string();
        assert!(error.contains("taken") && error.contains("spill_dir"), "{error}");
    }
}

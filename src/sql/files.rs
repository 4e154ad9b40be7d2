//! The folder of SQL files.

use std::io;
use std::path::Path;

use super::SqlFile;

/// The file that declares tables by convention; `check` reads it beside the files it is given.
pub const TABLES_FILE: &str = "tables.sql";

/// The `*.sql` files of a folder, by name. Sub-folders are not read: examples live there.
///
/// # Errors
/// When the folder or a file in it cannot be read, or a file is not UTF-8; the message names it.
pub fn load_folder(dir: &Path) -> io::Result<Vec<SqlFile>> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", dir.display()));
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(named)? {
        let path = entry.map_err(named)?.path();
        if path.extension().is_some_and(|extension| extension == "sql") && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    paths.iter().map(|path| load_file(path)).collect()
}

/// One SQL file, named as the path was given.
///
/// # Errors
/// When it cannot be read or is not UTF-8; the message names it.
pub fn load_file(path: &Path) -> io::Result<SqlFile> {
    let name = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(SqlFile { name, text }),
        Err(error) => Err(io::Error::new(error.kind(), format!("{name}: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_read_in_order_of_names_and_without_its_sub_folders() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.sql", "a.sql", "notes.txt", "examples/c.sql"] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, name).unwrap();
        }
        let files = load_folder(folder.path()).unwrap();
        let texts: Vec<_> = files.iter().map(|file| file.text.as_str()).collect();
        assert_eq!(texts, ["a.sql", "b.sql"]);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = load_folder(Path::new("no/such/folder")).unwrap_err();
        assert!(error.to_string().contains("no/such/folder"), "{error}");
    }
}

//! The book on disk: `<namespace>/<id>.json`, each replaced whole or not at all.
//!
//! Not synced: after a power cut there is no container to find again.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Entry, Name};

/// Where a new entry is written before it takes the old one's place. No entry's name: those end in `.json`.
const NEW: &str = "json.new";
/// What an entry is called that cannot be read.
const ASIDE: &str = "unreadable";

/// Writes an entry.
pub(super) fn write(book: &Path, name: &Name, entry: &Entry) -> io::Result<()> {
    let folder = book.join(&*name.namespace);
    let (new, path) = (folder.join(format!("{}.{NEW}", name.id)), path(book, name));
    let json = serde_json::to_vec(entry)?;
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let opened = match options.open(&new) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
            options.open(&new)
        }
        opened => opened,
    };
    opened.and_then(|mut file| file.write_all(&json)).and_then(|()| fs::rename(&new, &path))
}

/// Removes an entry; and the folder of its namespace, if it was the last one there.
pub(super) fn remove(book: &Path, name: &Name) -> io::Result<()> {
    match fs::remove_file(path(book, name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match fs::remove_dir(book.join(&*name.namespace)) {
        // There are others.
        Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty && error.kind() != io::ErrorKind::NotFound => {
            Err(error)
        }
        _ => Ok(()),
    }
}

fn path(book: &Path, name: &Name) -> PathBuf {
    book.join(&*name.namespace).join(format!("{}.json", name.id))
}

/// Entries that can be read, and a text for each that cannot.
type Read = (BTreeMap<Arc<Name>, Entry>, Vec<String>);

/// Reads the book, and makes an empty one if there is none.
///
/// An entry that cannot be read stays under another name, for somebody to look at.
pub(super) fn read(book: &Path) -> io::Result<Read> {
    DirBuilder::new().recursive(true).mode(0o700).create(book)?;
    let (mut entries, mut unreadable) = Read::default();
    for namespace in fs::read_dir(book)? {
        let namespace = namespace?;
        for file in fs::read_dir(namespace.path())? {
            let path = file?.path();
            let (Some(stem), Some(kind)) = (path.file_stem(), path.extension()) else { continue };
            if path.to_string_lossy().ends_with(NEW) {
                // Somebody was killed before it replaced the old one, which counts.
                fs::remove_file(&path)?;
            } else if kind == ASIDE {
                unreadable.push(told(&path, "it could not be read at an earlier start"));
            } else if kind == "json" {
                match read_entry(&path, &namespace.file_name().to_string_lossy(), &stem.to_string_lossy()) {
                    Ok((name, entry)) => drop(entries.insert(name, entry)),
                    Err(why) => {
                        let aside = path.with_extension(ASIDE);
                        fs::rename(&path, &aside)?;
                        unreadable.push(told(&aside, &why));
                    }
                }
            }
        }
    }
    Ok((entries, unreadable))
}

fn read_entry(path: &Path, namespace: &str, id: &str) -> Result<(Arc<Name>, Entry), String> {
    let name = Name::new(namespace, id)?;
    let json = fs::read(path).map_err(|error| error.to_string())?;
    let entry = serde_json::from_slice(&json).map_err(|error| error.to_string())?;
    Ok((name, entry))
}

fn told(path: &Path, why: &str) -> String {
    format!(
        "{}: an entry of the address book that is not readable ({why}); its container, if it still runs, is not looked \
         after: end its shim and remove its bundle, then this file",
        path.display()
    )
}

//! A client that stays with a container to its end, as `dunnage run --rm` does: it is still to read what the container wrote,
//! and to ask how it ended. So a container that is to be removed by itself is not removed before that client is gone.
//!
//! It says so by a lock on the folder of the log (flock(2)). The kernel takes that back from a client that is killed, and it
//! is there for the next supervisor when one is killed; a connection would have to be made anew, and be waited for.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use runtime_v2_api::supervisor::Container;

/// A client that stays, for as long as this lives.
#[derive(Debug)]
pub struct Attendant(#[expect(dead_code, reason = "the lock is held, and given back with it")] Flock<File>);

impl Attendant {
    /// Stays with the container.
    ///
    /// # Errors
    /// When the folder of its log cannot be locked; with the folder, for the caller's text.
    pub fn stay(container: &Container) -> Result<Self, (PathBuf, io::Error)> {
        let log = Path::new(&container.log);
        let folder = log.parent().unwrap_or(log);
        // Shared, as several may stay; and waiting, as the supervisor has it for the moment in which it looks.
        let locked = File::open(folder).and_then(|file| Ok(Flock::lock(file, FlockArg::LockShared).map_err(errno)?));
        locked.map(Self).map_err(|error| (folder.to_owned(), error))
    }
}

/// Whether somebody stays with the container whose log is in this folder.
pub(crate) fn is_attended(folder: &Path) -> bool {
    let lock = |file| Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(errno);
    // Where nothing can be locked, nobody has.
    matches!(File::open(folder).map(lock), Ok(Err(Errno::EWOULDBLOCK)))
}

fn errno((_, errno): (File, Errno)) -> Errno {
    errno
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_attended_as_long_as_anybody_stays() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log").display().to_string();
        let container = Container { log, ..Container::default() };
        assert!(!is_attended(folder.path()));
        let (first, second) = (Attendant::stay(&container).unwrap(), Attendant::stay(&container).unwrap());
        drop(first);
        assert!(is_attended(folder.path()));
        drop(second);
        assert!(!is_attended(folder.path()));
        let gone = folder.path().to_owned();
        drop(folder);
        assert!(!is_attended(&gone));
        assert_eq!(Attendant::stay(&container).unwrap_err().0, gone);
    }
}

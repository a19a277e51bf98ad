//! A client that stays with a container to its end, as `dunnage run --rm` does: it is still to read what the container wrote,
//! and to ask how it ended. So a container that is to be removed by itself is not removed before that client is gone.
//!
//! It says so by reading from a FIFO beside the log, which nobody ever writes to. The kernel tells who has the other end open
//! when the last reader is gone, whatever became of it; and the next supervisor, when one is killed, finds the reader there.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    libc::{O_NOFOLLOW, O_NONBLOCK},
    sys::stat::Mode,
    unistd::mkfifo,
};
use runtime_v2_api::supervisor::Container;
use tokio::io::{Interest, unix::AsyncFd};

use crate::sys;

/// The FIFO, in the folder of the log.
const NAME: &str = "attended";

/// A client that stays, for as long as this lives.
#[derive(Debug)]
pub struct Attendant(#[expect(dead_code, reason = "it is open, and that is all")] File);

impl Attendant {
    /// Stays with the container.
    ///
    /// # Errors
    /// When there can be no such FIFO; with its path, for the caller's text.
    pub fn stay(container: &Container) -> Result<Self, (PathBuf, io::Error)> {
        let log = Path::new(&container.log);
        let fifo = log.with_file_name(NAME);
        let opened = match mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR) {
            // Another stays as well, or did.
            Ok(()) | Err(Errno::EEXIST) => open(OpenOptions::new().read(true), &fifo),
            Err(errno) => Err(errno.into()),
        };
        opened.map(Self).map_err(|error| (fifo, error))
    }
}

/// Whoever stays with a container, seen from the supervisor.
#[derive(Debug)]
pub(crate) struct Attended(AsyncFd<std::os::fd::OwnedFd>);

impl Attended {
    /// Those who stay with the container whose log is in this folder, if anybody does.
    pub(crate) fn by_anybody(folder: &Path) -> io::Result<Option<Self>> {
        match open(OpenOptions::new().write(true), &folder.join(NAME)) {
            Ok(fifo) => sys::watch(fifo.into(), Interest::ERROR).map(|fifo| Some(Self(fifo))),
            // Without a reader it cannot be opened (fifo(7)).
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENOENT)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits until nobody stays any more.
    pub(crate) async fn left(self) -> io::Result<()> {
        self.0.ready(Interest::ERROR).await.map(drop)
    }
}

fn open(how: &mut OpenOptions, fifo: &Path) -> io::Result<File> {
    how.custom_flags(O_NONBLOCK | O_NOFOLLOW).open(fifo)
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, time::Duration};

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_container_is_attended_as_long_as_anybody_stays() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log").display().to_string();
        let container = Container { log, ..Container::default() };
        assert!(Attended::by_anybody(folder.path()).unwrap().is_none());
        let (first, second) = (Attendant::stay(&container).unwrap(), Attendant::stay(&container).unwrap());
        let mut left = pin!(Attended::by_anybody(folder.path()).unwrap().unwrap().left());
        drop(first);
        assert!(timeout(Duration::from_millis(20), &mut left).await.is_err());
        assert!(Attended::by_anybody(folder.path()).unwrap().is_some());
        drop(second);
        timeout(Duration::from_secs(60), left).await.unwrap().unwrap();
        assert!(Attended::by_anybody(folder.path()).unwrap().is_none());
        let fifo = folder.path().join(NAME);
        drop(folder);
        assert_eq!(Attendant::stay(&container).unwrap_err().0, fifo);
    }
}

//! Waiting for something to happen in a folder or to a file (inotify(7)).

use std::{io, os::fd::OwnedFd, path::Path};

use nix::{
    errno::Errno,
    sys::inotify::{InitFlags, Inotify},
    unistd::read,
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::sys;

pub use nix::sys::inotify::AddWatchFlags;

/// Tells that something happened, and never what: that is seen by looking.
#[derive(Debug)]
pub struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    /// Watches each of `paths` for `what` from now on. One that does not exist is passed over.
    ///
    /// # Errors
    /// When the kernel has no watch to give (`fs.inotify.max_user_instances` and `max_user_watches`).
    pub fn new<'a>(paths: impl IntoIterator<Item = &'a Path>, what: AddWatchFlags) -> io::Result<Watch> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        for path in paths {
            match inotify.add_watch(path, what) {
                Ok(_) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        sys::watch(inotify.into(), Interest::READABLE).map(Watch)
    }

    /// Waits until something happens, or has happened since the last time.
    ///
    /// # Errors
    /// When the watch itself cannot be read.
    pub async fn changed(&mut self) -> io::Result<()> {
        // Any one event fits (inotify(7)); what came together is one.
        let mut events = [0; 4096];
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|fd| read(fd, &mut events).map_err(io::Error::from)) {
                Ok(read) => return read.map(drop),
                Err(_would_block) => {}
            }
        }
    }
}

//! Descriptors in the event loop.
#![expect(unsafe_code, reason = "tokio wants a promise about descriptors")]

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use tokio::io::{Interest, unix::AsyncFd};

/// Has the event loop watch `fd`, which epoll must be able to.
///
/// # Errors
/// When it is not (EPERM: a regular file), or too many are watched.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open as long as it lives, and is one and the same descriptor all the time.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// As [`watch`], on a copy of `fd`: nobody has to hold the original meanwhile.
pub(crate) fn watch_copy(fd: BorrowedFd<'_>, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    watch(fd.try_clone_to_owned()?, interest)
}

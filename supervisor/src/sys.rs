//! What needs `unsafe`, one thin function each.
#![expect(
    unsafe_code,
    reason = "descriptors that only their numbers name, code between fork and exec, and a promise that tokio wants"
)]

use std::{
    io,
    os::{
        fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::process::CommandExt as _,
    },
    process::Command,
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::resource::{Resource, setrlimit},
};
use tokio::io::{Interest, unix::AsyncFd};

/// Takes over the open descriptor `number`, which our parent or our former self left to us, and keeps it from whom we
/// execute. To be called once for each.
///
/// # Errors
/// EBADF when it is not open.
pub(crate) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number < 3 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: it is not closed meanwhile; and should it not be open at all, the kernel says so.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: it is open, and by agreement with who started us it is ours; the caller takes it once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Lets what `command` executes open only as many files as `soft` says (`RLIMIT_NOFILE`, getrlimit(2)), and raise that
/// itself up to `hard`.
pub(crate) fn limit_files(command: &mut Command, soft: u64, hard: u64) {
    let limit = move || setrlimit(Resource::RLIMIT_NOFILE, soft, hard).map_err(io::Error::from);
    // SAFETY: setrlimit is a bare system call, which the child may make between fork and exec.
    unsafe { command.pre_exec(limit) };
}

/// Has the event loop watch `fd`, which epoll must be able to.
///
/// # Errors
/// When it is not (EPERM: a regular file), or too many are watched.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open as long as it lives, and is one and the same descriptor all the time.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// Gives the heap's free pages back to the kernel: a thousand shims that were asked at a start leave many.
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number and is always allowed.
    unsafe {
        libc::malloc_trim(0);
    }
}

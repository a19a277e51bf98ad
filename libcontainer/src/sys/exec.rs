//! Executing a file by descriptor, and making the detached, read-only view of one.
#![expect(unsafe_code, reason = "raw system calls that nix has no wrapper for")]

use super::{Call, Failed, check};
use nix::errno::Errno;
use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// A read-only view of the file or directory at `path`, on a mount that is in no namespace: nobody can find it to make it
/// writable again, and it is gone with its last user. Close-on-exec. Linux 5.12 (`open_tree(2)`, `mount_setattr(2)`).
pub fn read_only_view(path: &CStr) -> Result<OwnedFd, Failed> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: `path` is a live C string, which the kernel only reads.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    // SAFETY: the kernel returned a new descriptor, which nobody else knows.
    let view = unsafe { OwnedFd::from_raw_fd(check(Call::OpenTree, fd)? as RawFd) };
    let attr = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let (fd, here, size) = (view.as_raw_fd(), c"".as_ptr(), size_of_val(&attr));
    let nr = libc::SYS_mount_setattr;
    // SAFETY: the path is a static C string; `attr` is live and of the given size, and only read.
    check(Call::MountSetattr, unsafe { libc::syscall(nr, fd, here, libc::AT_EMPTY_PATH, &raw const attr, size) })?;
    Ok(view)
}

/// `execveat(2)` of the file behind `fd`, for whom the process's name is then to be set: the kernel calls it by number.
/// Returns only if it failed. Linux 3.19.
pub fn execute(fd: BorrowedFd<'_>, argv: &[CString], env: &[CString]) -> Result<Infallible, Failed> {
    let (argv, env) = (pointers(argv), pointers(env));
    let (nr, fd, here) = (libc::SYS_execveat, fd.as_raw_fd(), c"".as_ptr());
    // SAFETY: both lists are null-terminated arrays of pointers to C strings that outlive the call.
    unsafe { libc::syscall(nr, fd, here, argv.as_ptr(), env.as_ptr(), libc::AT_EMPTY_PATH) };
    Err(Call::Execveat.failed()(Errno::last()))
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

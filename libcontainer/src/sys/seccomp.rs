//! `seccomp(2)`, which libc leaves to `syscall(2)`.
#![expect(unsafe_code, reason = "a raw system call whose arguments the kernel reads through a pointer")]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use seccompiler::sock_filter;

/// Operations of `seccomp(2)`.
const SET_MODE_FILTER: libc::c_uint = 1;
const ACTION_AVAIL: libc::c_uint = 2;

/// `struct sock_fprog` of <linux/filter.h>.
#[repr(C)]
struct Program {
    len: libc::c_ushort,
    instructions: *const sock_filter,
}

/// Puts `program` on the calling thread. Gives the listener's descriptor, close-on-exec, when `flags` ask for one.
///
/// # Errors
/// What the kernel answers: `EINVAL` for a program it does not like, `EACCES` without no_new_privs and CAP_SYS_ADMIN,
/// `EBUSY` when a filter of this process already has a listener.
pub(crate) fn load(program: &[sock_filter], flags: libc::c_ulong) -> Result<Option<OwnedFd>, Errno> {
    let len = libc::c_ushort::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    let program = Program { len, instructions: program.as_ptr() };
    // SAFETY: `program` points to `len` live instructions laid out as the kernel's; the kernel copies them.
    let rc = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, ptr::from_ref(&program)) };
    let rc = Errno::result(rc)?;
    if flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER == 0 {
        return Ok(None);
    }
    let fd = RawFd::try_from(rc).map_err(|_| Errno::EBADF)?;
    // SAFETY: with this flag a success is a descriptor the kernel has just made for us alone.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Whether the kernel knows the action (`SECCOMP_RET_*`). Linux 4.14.
pub(crate) fn action_available(action: u32) -> bool {
    // SAFETY: the kernel reads one `u32` through a live reference.
    let rc = unsafe { libc::syscall(libc::SYS_seccomp, ACTION_AVAIL, 0 as libc::c_uint, ptr::from_ref(&action)) };
    rc == 0
}

/// Whether the kernel knows all of `flags`: it looks at them before the program, and no program at all is a bad address.
pub(crate) fn flags_available(flags: libc::c_ulong) -> bool {
    // SAFETY: the null program is never read; copying from it is the failure asked for.
    let rc = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, ptr::null::<Program>()) };
    Errno::result(rc) == Err(Errno::EFAULT)
}

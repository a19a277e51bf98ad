//! How the daemon comes into being: started by `start`, with its socket in descriptor 3.
#![expect(unsafe_code, reason = "code between fork and exec, and a descriptor that is ours by agreement")]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::{net::UnixListener, process::CommandExt as _},
    },
    process::{Child, Command, Stdio},
};

use libcontainer::sys::{Failed, exec, process};
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::socket::{getsockopt, sockopt},
};

/// The descriptor in which a daemon finds its listening socket.
const LISTENER: i32 = 3;

/// Executes `program` in a process group of its own, with `listener` in descriptor 3, nothing in 0 to 2, and no other
/// descriptor of ours. When this returns, it has been executed.
///
/// Descriptor 3 must not be `program` itself, nor may it be free: either could put something we still need there.
pub(crate) fn daemon(
    program: &OwnedFd,
    argv: Vec<CString>,
    env: Vec<CString>,
    listener: &UnixListener,
) -> io::Result<Child> {
    let (program, listener) = (program.try_clone()?, OwnedFd::from(listener.try_clone()?));
    // The standard library sets up the rest, and brings the reason back if any of it fails; its own exec never happens.
    let mut command = Command::new("/proc/self/exe");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let become_daemon = move || {
        process::dup_to(listener.as_fd(), LISTENER).map_err(to_io)?;
        process::close_range(LISTENER.cast_unsigned() + 1, u32::MAX, libc::CLOSE_RANGE_CLOEXEC).map_err(to_io)?;
        match exec::execute(program.as_fd(), &argv, &env).map_err(to_io)? {}
    };
    // SAFETY: we have one thread, so that the child may do what we may, and what it does touches only itself.
    unsafe { command.pre_exec(become_daemon) };
    command.spawn()
}

/// The listening socket that this process was started with. To be called once.
pub(crate) fn inherited_listener() -> io::Result<UnixListener> {
    // SAFETY: nothing is closed meanwhile; and should it not be open at all, the kernel says so.
    let fd = unsafe { BorrowedFd::borrow_raw(LISTENER) };
    if !getsockopt(&fd, sockopt::AcceptConn)? {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: we have made no listening socket ourselves, so it is the one that was handed to us, and this takes it once.
    Ok(unsafe { UnixListener::from_raw_fd(fd.as_raw_fd()) })
}

fn to_io(failed: Failed) -> io::Error {
    failed.errno.into()
}

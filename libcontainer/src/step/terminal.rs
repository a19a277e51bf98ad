//! Standard streams.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::stat::{fstat, major};
use nix::unistd::{Uid, fchown};

use super::mount::device::open_ptmx;
use crate::run::{Fds, Message};
use crate::sys::process::{dup_to, open_pty_peer, set_controlling_terminal, set_window_size};
use crate::sys::{Call, Failed};

/// A pty of the container's own devpts. The other end is opened by descriptor, so no path inside is trusted; the
/// master goes to the runtime.
pub(super) fn console(width: u16, height: u16, uid: u32, fds: &mut Fds) -> Result<(), Failed> {
    let master = open_ptmx(fds.root()?)?;
    let terminal = open_pty_peer(master.as_fd())?;
    if (width, height) != (0, 0) {
        set_window_size(terminal.as_fd(), width, height)?;
    }
    fchown(&terminal, Some(Uid::from_raw(uid)), None).map_err(Call::Fchown.failed())?;
    Message::Console.send(fds.wire.as_fd(), Some(master.as_fd()))?;
    drop(master);
    set_controlling_terminal(terminal.as_fd())?;
    for number in 0..3 {
        dup_to(terminal.as_fd(), number)?;
    }
    fds.terminal = Some(terminal);
    Ok(())
}

/// The caller's streams, owned by the process's user, who could otherwise not open /dev/stdout.
pub(super) fn stdio(uid: u32, fds: &mut Fds) -> Result<(), Failed> {
    for (number, fd) in fds.stdio.iter_mut().enumerate() {
        // Never the runtime's own, which are there until they are covered.
        let fd = Fds::have(fd.take())?;
        give(fd.as_fd(), uid)?;
        dup_to(fd.as_fd(), number as i32)?;
    }
    Ok(())
}

fn give(fd: BorrowedFd<'_>, uid: u32) -> Result<(), Failed> {
    const MEMORY_DEVICES: u64 = 1; // /dev/null belongs to everybody
    let stat = fstat(fd).map_err(Call::Fstat.failed())?;
    if stat.st_uid == uid || (stat.st_rdev != 0 && major(stat.st_rdev) == MEMORY_DEVICES) {
        return Ok(());
    }
    match fchown(fd, Some(Uid::from_raw(uid)), None) {
        // A file system without owners, or a stream whose owner is not mapped here: reading and writing work all the same.
        Ok(()) | Err(Errno::EPERM | Errno::EINVAL | Errno::EROFS) => Ok(()),
        Err(errno) => Err(Failed { call: Call::Fchown, errno }),
    }
}

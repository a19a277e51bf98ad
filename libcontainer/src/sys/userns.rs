//! A user namespace nobody lives in: the kernel takes id mappings for mounts only in this form.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, pipe2};

use super::process::{CloneOptions, Cloned, clone3, exit_now, pidfd_send_signal};
use super::{Call, Failed, io_failed};

/// A user namespace with these lines in its `uid_map` and `gid_map` (user_namespaces(7)).
///
/// It is born with a process, which is ended and reaped before this returns; the descriptor keeps the namespace.
/// Only for a process with one thread.
pub(crate) fn with_ids(uids: &str, gids: &str) -> Result<OwnedFd, Failed> {
    let (hold, release) = pipe2(OFlag::O_CLOEXEC).map_err(Call::Pipe.failed())?;
    let (pid, pidfd) = match clone3(&CloneOptions { flags: libc::CLONE_NEWUSER as u64, cgroup: None })? {
        Cloned::Parent(pid, pidfd) => (pid, pidfd),
        Cloned::Child => {
            drop(release);
            // Nobody writes: this ends when the parent kills us, or when the parent is gone.
            while nix::unistd::read(&hold, &mut [0]) == Err(Errno::EINTR) {}
            exit_now(0);
        }
    };
    let namespace = map_and_open(pid, uids, gids);
    let ended = pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL)
        .and_then(|()| waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED).map(drop).map_err(Call::Waitid.failed()));
    let namespace = namespace?;
    ended.map(|()| namespace)
}

fn map_and_open(pid: Pid, uids: &str, gids: &str) -> Result<OwnedFd, Failed> {
    for (file, lines) in [("uid_map", uids), ("gid_map", gids)] {
        let path = format!("/proc/{pid}/{file}");
        let mut map = OpenOptions::new().write(true).open(path).map_err(io_failed(Call::Open))?;
        // The kernel wants it all in one write.
        map.write_all(lines.as_bytes()).map_err(io_failed(Call::Write))?;
    }
    Ok(File::open(format!("/proc/{pid}/ns/user")).map_err(io_failed(Call::Open))?.into())
}

//! How processes ended. Statuses are decoded by hand because `nix` refuses those of real-time signals.
#![expect(unsafe_code, reason = "waitid with its siginfo, whose fields nix cannot represent")]

use super::{Call, Failed};
use nix::errno::Errno;

use nix::unistd::Pid;
use std::fmt;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this status (0–255).
    Code(i32),
    /// Killed by the signal of this number.
    Signal(i32),
}

impl Exit {
    /// The status as shells and container engines count it: a signal is 128 + its number.
    pub fn status(self) -> i32 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128 + signal,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit status {code}"),
            Exit::Signal(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

/// Takes the status of a child that has ended, of any if there are several. `None`: no child has ended, or there is none.
pub fn any() -> Result<Option<(Pid, Exit)>, Failed> {
    waitid(libc::P_ALL, 0, libc::WNOHANG)
}

/// Waits until the child behind `pidfd` has ended and takes its status. Linux 5.4.
pub fn child(pidfd: BorrowedFd<'_>) -> Result<Exit, Failed> {
    let ended = waitid(libc::P_PIDFD, pidfd.as_raw_fd().cast_unsigned(), 0)?;
    ended.map(|(_, exit)| exit).ok_or(Call::Waitid.failed()(Errno::ECHILD))
}

fn waitid(kind: libc::idtype_t, id: libc::id_t, flags: i32) -> Result<Option<(Pid, Exit)>, Failed> {
    // SAFETY: siginfo_t is plain data for which all zeroes is a value; the kernel leaves it so when nothing has ended.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    loop {
        // SAFETY: `info` is a live, writable siginfo_t.
        match Errno::result(unsafe { libc::waitid(kind, id, &raw mut info, libc::WEXITED | flags) }) {
            Ok(_) => break,
            Err(Errno::EINTR) => (),
            Err(Errno::ECHILD) => return Ok(None),
            Err(errno) => return Err(Call::Waitid.failed()(errno)),
        }
    }
    // SAFETY: waitid filled the SIGCHLD member of the union, or left it zero.
    let pid = unsafe { info.si_pid() };
    // SAFETY: as above.
    let status = unsafe { info.si_status() };
    let exit = if info.si_code == libc::CLD_EXITED { Exit::Code(status) } else { Exit::Signal(status) };
    Ok((pid != 0).then_some((Pid::from_raw(pid), exit)))
}

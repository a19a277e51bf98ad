//! Starting a helper process (an OCI hook) from a process with one thread.
#![expect(unsafe_code, reason = "clone with a pidfd, signal dispositions, and close_range have no wrapper")]

use super::{Call, Failed, process};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};

use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::stat::Mode;
use nix::unistd::{self, Pid};
use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::io::{self, Write as _};
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

/// What the new process executes and what it sees; nothing else of ours reaches it.
#[derive(Debug, Clone, Copy)]
pub struct Command<'a> {
    /// The executable, not searched for.
    pub path: &'a CStr,
    /// The arguments, the name it is called by first.
    pub argv: &'a [CString],
    /// The whole environment.
    pub env: &'a [CString],
    /// The working directory; ours if none is given.
    pub cwd: Option<&'a CStr>,
    /// Descriptor 0. Descriptor 1 is `/dev/null`.
    pub stdin: BorrowedFd<'a>,
    /// Descriptor 2. If the process cannot be set up or executed, the reason is written here and its exit status is 127.
    pub stderr: BorrowedFd<'a>,
}

/// Starts `command` in a session of its own, all signals unblocked and at their defaults.
///
/// The answer's second part is a pidfd. Nobody waits for the process: that is the caller's. The calling process must have
/// one thread, because the child allocates before it executes. Linux 5.11.
///
/// `clone` and not `clone3`: seccomp profiles in use refuse `clone3`, and a startContainer hook runs under them.
pub fn spawn(command: &Command<'_>) -> Result<(Pid, OwnedFd), Failed> {
    // Our handlers must not run in the child, which shares our signal pipe.
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK).map_err(Call::Sigprocmask.failed())?;
    let child = clone();
    if let Ok(None) = child {
        let Err(failed) = execute(command);
        die(command, failed);
    }
    mask.thread_set_mask().map_err(Call::Sigprocmask.failed())?;
    child?.ok_or(Call::Clone.failed()(Errno::EINVAL))
}

/// `fork`, with a pidfd of the child. `None` in the child.
fn clone() -> Result<Option<(Pid, OwnedFd)>, Failed> {
    let mut pidfd: libc::c_int = -1;
    let flags = libc::CLONE_PIDFD | libc::SIGCHLD;
    // SAFETY: without CLONE_VM the child gets a copy of our memory and stack; the kernel writes one int to `pidfd`. We have
    // one thread, so no lock is held by another. Flags come first and the pidfd third on every architecture we build for.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, &raw mut pidfd, 0, 0) };
    match Errno::result(pid).map_err(Call::Clone.failed())? {
        0 => Ok(None),
        // SAFETY: the kernel has just given us this descriptor (close-on-exec); nobody else knows it.
        pid => Ok(Some((Pid::from_raw(pid as libc::pid_t), unsafe { OwnedFd::from_raw_fd(pidfd) }))),
    }
}

/// In the child: becomes `command`, or says why not.
fn execute(command: &Command<'_>) -> Result<Infallible, Failed> {
    reset_signals()?;
    unistd::setsid().map_err(Call::Setsid.failed())?;
    unistd::dup2_stderr(command.stderr).map_err(Call::Dup.failed())?;
    unistd::dup2_stdin(command.stdin).map_err(Call::Dup.failed())?;
    let null = open(c"/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(Call::Open.failed())?;
    unistd::dup2_stdout(null).map_err(Call::Dup.failed())?;
    if let Some(cwd) = command.cwd {
        unistd::chdir(cwd).map_err(Call::Chdir.failed())?;
    }
    // Descriptors meant for the container (--preserve-fds) are not the hook's.
    process::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)?;
    unistd::execve(command.path, command.argv, command.env).map_err(Call::Execve.failed())
}

/// Sets every signal to its default and unblocks it: handlers do not survive an exec, but what is ignored (SIGPIPE, in
/// every Rust program) and what is blocked does.
///
/// By system call: glibc's `signal` refuses the two real-time signals it keeps for itself, and those may be ignored too.
pub fn reset_signals() -> Result<(), Failed> {
    // The kernel's struct sigaction: the default handler, no flags, no restorer, an empty mask.
    let default = [0_u64; 4];
    let old = ptr::null::<u64>();
    for signal in 1..=libc::SIGRTMAX() {
        // KILL and STOP cannot be set, which is no failure.
        // SAFETY: `default` is a live kernel sigaction (32 bytes), only read; no handler is installed.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), old, size_of::<u64>()) };
    }
    SigSet::empty().thread_set_mask().map_err(Call::Sigprocmask.failed())
}

/// Leaves the child without running anything of the parent's: no destructors, no `atexit`.
fn die(command: &Command<'_>, failed: Failed) -> ! {
    let mut reason = Vec::new();
    let written: io::Result<()> = writeln!(reason, "cannot run it: {failed}");
    // Nothing is left to tell anyone if even this fails: the exit status still says that the hook did not run.
    drop((written, unistd::write(command.stderr, &reason)));
    process::exit_now(127)
}

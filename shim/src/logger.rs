//! A `binary://` logger: a process of the client's choice that reads a container's output from its descriptors 3 and 4,
//! and says on descriptor 5 that it is ready.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use libcontainer::sys::process::dup_above;
use nix::{
    errno::Errno,
    fcntl::OFlag,
    spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn},
    sys::{
        signal::{SigSet, Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, pipe2, read},
};
use thiserror::Error;
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::timeout,
};

use crate::{
    flow::set_flag,
    reap::{Reaper, Watch},
    sys::ready,
};

/// How long a logger may take to write what it has after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(12);
/// Above the descriptors a logger is promised, so that moving one there cannot overwrite another.
const SAFE: i32 = 6;

/// Why there is no logger.
#[derive(Debug, Error)]
pub(crate) enum LoggerError {
    #[error("start logging binary {path:?}: {source}")]
    Start { path: PathBuf, source: io::Error },
    #[error("logging binary did not call ready")]
    NotReady,
    #[error("wait for the logging binary: {0}")]
    Wait(#[from] io::Error),
}

/// A logger that runs.
pub(crate) struct Logger {
    pid: Pid,
    exit: Watch,
    ready: Option<AsyncFd<OwnedFd>>,
}

impl Logger {
    /// Starts the program at `path` for the output of the container or exec `id`. Its environment is what the contract
    /// with such programs says, and no more.
    pub(crate) fn spawn(
        path: &Path,
        args: &[String],
        (id, namespace): (&str, &str),
        stdout: OwnedFd,
        stderr: OwnedFd,
        reaper: &Reaper,
    ) -> Result<Self, LoggerError> {
        let failed = |source: io::Error| LoggerError::Start { path: path.into(), source };
        let (ready, say_ready) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed(errno.into()))?;
        set_flag(&ready, OFlag::O_NONBLOCK, true)?;
        // All that can fail comes before it, or nobody would end it.
        let ready = Some(ready::watch(ready, Interest::READABLE)?);
        let pid = spawn(path, args, (id, namespace), [stdout, stderr, say_ready]).map_err(failed)?;
        Ok(Self { pid, exit: reaper.watch(pid), ready })
    }

    /// Waits until the logger says it is ready: a byte, or, unless `strict`, the end of the pipe as well.
    pub(crate) async fn ready(&mut self, strict: bool) -> Result<(), LoggerError> {
        let Some(ready) = self.ready.take() else { return Ok(()) };
        loop {
            let mut guard = ready.readable().await?;
            match read(ready.get_ref(), &mut [0]) {
                Ok(0) if strict => return Err(LoggerError::NotReady),
                Ok(_) => return Ok(()),
                Err(Errno::EAGAIN) => guard.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
    }

    /// Ends it: SIGTERM, and SIGKILL if that does not help. What it reads from must be closed already.
    pub(crate) async fn stop(self) {
        // Not reaped yet as far as `exit` knows, so the number is still its own.
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            if let Err(errno) = kill(self.pid, signal) {
                log::debug!("{signal} to the logging binary {}: {errno}", self.pid);
            }
            if timeout(STOP_TIMEOUT, self.exit.clone()).await.is_ok() {
                return;
            }
        }
    }
}

impl Drop for Logger {
    /// Whoever lets go of a logger without stopping it does not want its container any more.
    fn drop(&mut self) {
        if self.exit.known().is_none()
            && let Err(errno) = kill(self.pid, Signal::SIGKILL)
        {
            log::debug!("kill the logging binary {}: {errno}", self.pid);
        }
    }
}

fn spawn(path: &Path, args: &[String], (id, namespace): (&str, &str), fds: [OwnedFd; 3]) -> io::Result<Pid> {
    let program = CString::new(path.as_os_str().as_bytes())?;
    let mut argv = vec![program.clone()];
    for arg in args {
        argv.push(CString::new(arg.as_str())?);
    }
    let env = [CString::new(format!("CONTAINER_ID={id}"))?, CString::new(format!("CONTAINER_NAMESPACE={namespace}"))?];

    let mut actions = PosixSpawnFileActions::init()?;
    for fd in 0..3 {
        actions.add_open(fd, "/dev/null", OFlag::O_RDWR, Mode::empty())?;
    }
    let mut high = Vec::with_capacity(fds.len());
    for (fd, number) in fds.iter().zip(3..) {
        let copy = dup_above(fd.as_fd(), SAFE).map_err(|failed| failed.errno)?;
        actions.add_dup2(copy.as_raw_fd(), number)?;
        high.push(copy);
    }
    let mut attr = PosixSpawnAttr::init()?;
    attr.set_sigdefault(&SigSet::all())?;
    attr.set_sigmask(&SigSet::empty())?;
    attr.set_flags(PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK)?;
    Ok(posix_spawn(program.as_c_str(), &actions, &attr, &argv, &env)?)
}

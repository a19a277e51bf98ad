//! Waiting: for children, for messages of a container on its way, for deadlines, for what is typed. The only wait call of
//! the commands that make processes is here.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use libcontainer::run::{Launch, Launched, Progress, RunError, Wake};
use libcontainer::sys::process::pidfd_send_signal;
use libcontainer::sys::wait::{self, Exit};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use crate::terminal::Relay;

/// Turns signals into something to poll, and reaps.
pub(crate) struct Driver {
    signals: SignalFd,
    /// Children that ended, in case somebody asks later.
    ended: Vec<(Pid, Exit)>,
    /// Signals for a program that turned out to be executed already.
    early: Vec<i32>,
}

impl Driver {
    /// From now on signals wait until they are read here.
    pub(crate) fn new() -> anyhow::Result<Driver> {
        let all = SigSet::all();
        all.thread_block().context("cannot block signals")?;
        let signals = SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
        Ok(Driver { signals: signals.context("cannot read signals")?, ended: Vec::new(), early: Vec::new() })
    }

    /// Drives `launch` until it is at its gate or runs.
    pub(crate) fn drive(&mut self, launch: &mut Launch) -> Result<Progress, RunError> {
        self.drive_to(launch, |_| false)
    }

    /// Drives `launch` until it is at its gate, or runs, or has got far `enough`.
    pub(crate) fn drive_to(
        &mut self,
        launch: &mut Launch,
        enough: impl Fn(&Launch) -> bool,
    ) -> Result<Progress, RunError> {
        loop {
            let progress = launch.advance(Wake::Readable)?;
            if progress != Progress::Waiting || enough(launch) {
                return Ok(progress);
            }
            let wants = launch.wants();
            let deadline = wants.deadline;
            wait_for(&self.signals, [wants.readable, wants.systemd], deadline);
            while let Some(signal) = self.signal() {
                match signal {
                    libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT => {
                        // The program may run by now, and its first output may be why we are signalled.
                        let progress = launch.advance(Wake::Readable)?;
                        if progress == Progress::Running {
                            self.early.push(signal);
                            return Ok(progress);
                        }
                        launch.abandon("interrupted by a signal");
                    }
                    libc::SIGCHLD => {
                        while let Some((pid, exit)) = self.reap() {
                            launch.advance(Wake::Exited(pid, exit))?;
                        }
                    }
                    _ => {}
                }
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                launch.advance(Wake::Deadline)?;
            }
        }
    }

    /// Stays with a process that runs until it ends: passes signals on to it, and what is typed and printed.
    pub(crate) fn attend(&mut self, process: &Launched, mut relay: Option<Relay>) -> anyhow::Result<Exit> {
        loop {
            if let Some((_, exit)) = self.ended.iter().find(|(pid, _)| *pid == process.pid) {
                if let Some(relay) = &mut relay {
                    relay.finish();
                }
                return Ok(*exit);
            }
            let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            fds.extend(relay.iter().flat_map(Relay::wants));
            let timeout = if self.early.is_empty() { PollTimeout::NONE } else { PollTimeout::ZERO };
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).context("cannot wait for the container"),
            }
            if let Some(relay) = &mut relay {
                relay.pump();
            }
            while let Some(signal) = self.signal() {
                match signal {
                    libc::SIGCHLD => while self.reap().is_some() {},
                    libc::SIGWINCH if relay.is_some() => relay.iter().for_each(Relay::resize),
                    // Ours alone: a reader of our output that went away, news for our own sockets.
                    libc::SIGPIPE | libc::SIGURG => {}
                    signal => match pidfd_send_signal(process.pidfd.as_fd(), signal) {
                        Ok(()) => {}
                        Err(failed) if failed.errno == Errno::ESRCH => {}
                        Err(failed) => log::warn!("cannot pass signal {signal} on: {failed}"),
                    },
                }
            }
        }
    }

    fn signal(&mut self) -> Option<i32> {
        if let Some(signal) = self.early.pop() {
            return Some(signal);
        }
        // Not blocking; the only other failure is that of a descriptor that is not ours.
        self.signals.read_signal().ok().flatten().map(|info| info.ssi_signo.cast_signed())
    }

    fn reap(&mut self) -> Option<(Pid, Exit)> {
        let ended = wait::any().unwrap_or_else(|failed| {
            log::warn!("cannot reap: {failed}");
            None
        })?;
        self.ended.push(ended);
        Some(ended)
    }
}

/// Waits for a signal, for one of `readable`, or until `deadline`.
fn wait_for(signals: &SignalFd, readable: [Option<BorrowedFd<'_>>; 2], deadline: Option<Instant>) {
    let fds = [[Some(signals.as_fd()), None], readable].concat();
    let mut fds: Vec<PollFd<'_>> = fds.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    let timeout = deadline.map_or(PollTimeout::NONE, |deadline| {
        // Rounded up: waking early would be waking twice.
        let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    });
    if let Err(errno) = poll(&mut fds, timeout)
        && errno != Errno::EINTR
    {
        log::warn!("cannot wait: {}", io::Error::from(errno));
    }
}

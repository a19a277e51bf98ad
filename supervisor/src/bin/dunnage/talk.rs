//! Being connected to a process in a container, through whatever it is connected by: keys and bytes in, bytes out, signals
//! passed on, until it ends or we leave.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context;
use dunnage_supervisor::sys;
use nix::libc;
use nix::sys::signal::{SigSet, Signal as Known};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use runtime_v2_api::task::{KillRequest, ResizePtyRequest};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::attach::Keys;
use crate::complain;
use crate::session::Session;
use crate::streams::Stream;
use crate::terminal;

/// A process in a container, and how we are connected to it.
pub(crate) struct Talk<'a> {
    pub(crate) session: &'a Session,
    pub(crate) id: &'a str,
    /// Empty for the container's first process.
    pub(crate) exec: &'a str,
    /// It has a terminal.
    pub(crate) tty: bool,
    /// Our stdin is passed on.
    pub(crate) stdin: bool,
    pub(crate) keys: &'a Keys,
}

/// Where a process reads from.
pub(crate) trait Input {
    /// Passes bytes on.
    async fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// There will be no more.
    async fn end(&mut self) -> anyhow::Result<()>;
}

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// The process has ended, with this code.
    Ended(u32),
    /// By the keys for it. The process goes on.
    Detached,
    /// By a signal to us, or because nobody reads what the process says. It goes on.
    Interrupted(u8),
}

/// Signals that are passed on, unless the process has a terminal: then its keys do that, and these are ours.
const PASSED_ON: [Known; 7] =
    [Known::SIGHUP, Known::SIGINT, Known::SIGQUIT, Known::SIGTERM, Known::SIGUSR1, Known::SIGUSR2, Known::SIGALRM];

/// So many requests to end, and we leave a process that does not heed them, as Docker does.
const ENOUGH: u32 = 3;

/// Signals to us, from the moment this is made.
pub(crate) struct Signals(AsyncFd<OwnedFd>);

impl Signals {
    /// To be made before anything is started that should not be left alone.
    pub(crate) fn new() -> anyhow::Result<Signals> {
        Signals::of(PASSED_ON.into_iter().chain([Known::SIGWINCH]))
    }

    /// These, which from now on do nothing by themselves.
    pub(crate) fn of(signals: impl IntoIterator<Item = Known>) -> anyhow::Result<Signals> {
        let set: SigSet = signals.into_iter().collect();
        set.thread_block().context("cannot block signals")?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
        let fd = fd.context("cannot receive signals")?;
        Ok(Signals(sys::watch(fd.into(), Interest::READABLE).context("cannot wait for signals")?))
    }

    /// Waits for one, and tells its number.
    pub(crate) async fn next(&self) -> io::Result<i32> {
        // A signalfd_siginfo (signalfd(2)), which begins with the number.
        let mut info = [0; 128];
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|fd| nix::unistd::read(fd, &mut info).map_err(io::Error::from)) {
                Ok(read) => {
                    read?;
                    return Ok(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]));
                }
                Err(_would_block) => {}
            }
        }
    }
}

impl Talk<'_> {
    /// Stays until `ended` gives the process's exit code, or we leave. `ended` also passes on what the process says.
    pub(crate) async fn stay(
        &self,
        signals: &Signals,
        input: impl Input,
        ended: impl Future<Output = anyhow::Result<Left>>,
    ) -> anyhow::Result<Left> {
        let _raw = if self.tty && self.stdin { Some(terminal::Raw::set()?) } else { None };
        if self.tty {
            self.resize().await;
        }
        tokio::select! {
            biased;
            left = self.heed(signals) => left,
            left = ended => left,
            left = self.pass_on(input) => left,
        }
    }

    /// Passes our stdin on. Does not return once that has ended, for the process goes on.
    async fn pass_on(&self, mut input: impl Input) -> anyhow::Result<Left> {
        if !self.stdin {
            return std::future::pending().await;
        }
        let stdin = Stream::reader(io::stdin()).context("cannot read stdin")?;
        let mut watch = Escape::new(if self.tty { &self.keys.0 } else { &[] });
        let mut buffer = [0; 32 << 10];
        loop {
            let count = stdin.read(&mut buffer).await.context("cannot read stdin")?;
            let (bytes, detach) = watch.filter(&buffer[..count]);
            // Whoever does not read its stdin, or has ended, says so in other ways.
            let sent = input.write(&bytes).await;
            if detach {
                return Ok(Left::Detached);
            }
            if count == 0 || sent.is_err() {
                input.end().await?;
                return std::future::pending().await;
            }
        }
    }

    async fn heed(&self, signals: &Signals) -> anyhow::Result<Left> {
        let mut asked = 0;
        loop {
            let signal = signals.next().await.context("cannot wait for signals")?;
            match signal {
                libc::SIGWINCH if self.tty => self.resize().await,
                libc::SIGWINCH => {}
                _ if self.tty => return Ok(Left::Interrupted(128 + signal as u8)),
                _ => {
                    asked += u32::from(matches!(signal, libc::SIGINT | libc::SIGTERM));
                    if asked == ENOUGH {
                        complain(&format!("asked {ENOUGH} times to end; leaving {}, which goes on", self.id));
                        return Ok(Left::Interrupted(128 + signal as u8));
                    }
                    self.send(signal as u32).await;
                }
            }
        }
    }

    async fn send(&self, signal: u32) {
        let (id, exec_id) = (self.id.to_owned(), self.exec.to_owned());
        let request = KillRequest { id, exec_id, signal, ..KillRequest::default() };
        if let Err(error) = self.session.client.call(async |on, context| on.task.kill(context, &request).await).await
            && !error.is_not_found()
        {
            complain(&format!("cannot pass signal {signal} on: {error}"));
        }
    }

    /// Gives the process's terminal the size of ours.
    async fn resize(&self) {
        let Some((width, height)) = terminal::size() else { return };
        let (id, exec_id) = (self.id.to_owned(), self.exec.to_owned());
        let (width, height) = (width.into(), height.into());
        let request = ResizePtyRequest { id, exec_id, width, height, ..ResizePtyRequest::default() };
        let resized = self.session.client.call(async |on, context| on.task.resize_pty(context, &request).await).await;
        // It may have ended just now; and a size that is not right is no reason to leave.
        drop(resized);
    }
}

/// Copies what a process says to one of our own streams. Returns when `from` has ended.
pub(crate) async fn copy(from: &Stream, to: impl AsFd) -> anyhow::Result<()> {
    let to = Stream::writer(to).context("cannot write the output")?;
    let mut buffer = [0; 64 << 10];
    loop {
        match from.read(&mut buffer).await.context("cannot read the output")? {
            0 => return Ok(()),
            count => to.write_all(&buffer[..count]).await.map_err(|error| unheard(&error))?,
        }
    }
}

/// Nobody reads our stdout or stderr any more.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the output: {0}")]
pub(crate) struct Unheard(String);

/// What a failed write to our own streams means.
pub(crate) fn unheard(error: &io::Error) -> Unheard {
    Unheard(error.to_string())
}

/// Finds the detach keys among what is typed.
struct Escape<'a> {
    keys: &'a [u8],
    /// So many of them were typed, and held back.
    seen: usize,
}

impl<'a> Escape<'a> {
    fn new(keys: &'a [u8]) -> Escape<'a> {
        Escape { keys, seen: 0 }
    }

    /// What is to be passed on of `typed`, and whether it ended in the keys. Keys that turn out to be none are passed on
    /// after all.
    fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        if self.keys.is_empty() {
            return (typed.to_owned(), false);
        }
        let mut out = Vec::with_capacity(typed.len());
        for &byte in typed {
            if byte != self.keys[self.seen] && self.seen > 0 {
                out.extend_from_slice(&self.keys[..self.seen]);
                self.seen = 0;
            }
            if byte == self.keys[self.seen] {
                self.seen += 1;
                if self.seen == self.keys.len() {
                    return (out, true);
                }
            } else {
                out.push(byte);
            }
        }
        (out, false)
    }
}

/// The exit code for the shell.
pub(crate) fn code(left: Left) -> u8 {
    match left {
        // A shell has eight bits for it, as the kernel has.
        Left::Ended(status) => status as u8,
        Left::Detached => 0,
        Left::Interrupted(code) => code,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detach_keys_are_found_wherever_the_reads_end() {
        let keys = [16, 17];
        for (typed, passed, detach) in [
            (vec![&b"ab"[..]], &b"ab"[..], false),
            (vec![&[16, 17][..]], &[], true),
            (vec![&[b'a', 16], &[17, b'b']], b"a", true),
            (vec![&[16], &[16], &[17]], &[16], true),
            (vec![&[16], b"x", &[17]], &[16, b'x', 17], false),
            (vec![&[]], &[], false),
        ] {
            let mut escape = Escape::new(&keys);
            let (mut out, mut found) = (Vec::new(), false);
            for part in &typed {
                let (bytes, detach) = escape.filter(part);
                out.extend(bytes);
                found |= detach;
            }
            assert_eq!((out.as_slice(), found), (passed, detach), "{typed:?}");
        }
    }

    #[test]
    fn without_keys_everything_is_passed_on() {
        assert_eq!(Escape::new(&[]).filter(&[16, 17]), (vec![16, 17], false));
    }
}

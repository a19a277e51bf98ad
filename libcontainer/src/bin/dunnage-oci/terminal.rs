//! The other side of a container's terminal: handed to a socket, or joined with our own terminal.

use std::io::{self, IoSlice, Stdin, Stdout};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::Context;
use libcontainer::sys::process::set_window_size;
use libcontainer::sys::terminal::window_size;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{read, write};

/// Sends the master of a terminal to whoever listens at `socket`, as runc does: its name is the message.
pub(crate) fn hand_over(socket: &Path, master: &OwnedFd) -> anyhow::Result<()> {
    let stream = UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))?;
    let fds = [master.as_raw_fd()];
    let message = [IoSlice::new(b"/dev/ptmx")];
    sendmsg::<()>(stream.as_raw_fd(), &message, &[ControlMessage::ScmRights(&fds)], MsgFlags::MSG_NOSIGNAL, None)
        .with_context(|| format!("cannot send the terminal to {}", socket.display()))?;
    Ok(())
}

/// Joins a container's terminal with our standard streams.
pub(crate) struct Relay {
    master: OwnedFd,
    stdin: Stdin,
    stdout: Stdout,
    typed: Pipe,
    printed: Pipe,
    _raw: Option<Raw>,
}

/// One direction. Nothing is read before what was read earlier is written, so neither side is ever waited for.
#[derive(Default)]
struct Pipe {
    waiting: Vec<u8>,
    ended: bool,
}

impl Pipe {
    fn wants_to_read(&self) -> bool {
        self.waiting.is_empty() && !self.ended
    }

    fn read(&mut self, from: impl AsFd) {
        // A pipe that is ready takes this much (PIPE_BUF) without blocking.
        let mut buffer = [0; 4096];
        match read(from, &mut buffer) {
            Ok(0) => self.ended = true,
            Ok(count) => self.waiting.extend_from_slice(&buffer[..count]),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // A terminal whose other end is closed says EIO; whatever else it says, it will not say anything better.
            Err(_) => self.ended = true,
        }
    }

    fn write(&mut self, to: impl AsFd) {
        match write(to, &self.waiting) {
            Ok(count) => drop(self.waiting.drain(..count)),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // Its reader is gone: go on without, so that the container is not held up.
            Err(_) => self.waiting.clear(),
        }
    }
}

impl Relay {
    /// Takes our terminal, if stdin is one, out of line mode until this is dropped.
    pub(crate) fn new(master: OwnedFd) -> anyhow::Result<Relay> {
        let flags = fcntl(&master, FcntlArg::F_GETFL).context("cannot look at the terminal")?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(&master, FcntlArg::F_SETFL(flags)).context("cannot set up the terminal")?;
        let (stdin, stdout) = (io::stdin(), io::stdout());
        let raw = Raw::set()?;
        let relay = Relay { master, stdin, stdout, typed: Pipe::default(), printed: Pipe::default(), _raw: raw };
        relay.resize();
        Ok(relay)
    }

    /// Gives the container's terminal the size of ours.
    pub(crate) fn resize(&self) {
        // Our stdin need not be a terminal; then the container's keeps the size its spec gave it.
        if let Ok((width, height)) = window_size(self.stdin.as_fd())
            && let Err(failed) = set_window_size(self.master.as_fd(), width, height)
        {
            log::debug!("cannot resize the terminal: {failed}");
        }
    }

    /// What to wait for before the next [`Relay::pump`].
    pub(crate) fn wants(&self) -> impl Iterator<Item = PollFd<'_>> {
        let mut master = PollFlags::empty();
        master.set(PollFlags::POLLOUT, !self.typed.waiting.is_empty());
        master.set(PollFlags::POLLIN, self.printed.wants_to_read());
        let stdin = self.typed.wants_to_read().then(|| PollFd::new(self.stdin.as_fd(), PollFlags::POLLIN));
        let stdout = !self.printed.waiting.is_empty();
        let stdout = stdout.then(|| PollFd::new(self.stdout.as_fd(), PollFlags::POLLOUT));
        // A master whose other end is closed is always ready; asked for nothing, it would keep us awake.
        let master = (!master.is_empty()).then(|| PollFd::new(self.master.as_fd(), master));
        [stdin, stdout, master].into_iter().flatten()
    }

    /// Moves what can be moved without waiting.
    pub(crate) fn pump(&mut self) {
        if self.typed.wants_to_read() && is_ready(&self.stdin, PollFlags::POLLIN) {
            self.typed.read(&self.stdin);
        }
        if !self.typed.waiting.is_empty() {
            self.typed.write(&self.master);
        }
        if self.printed.wants_to_read() {
            self.printed.read(&self.master);
        }
        if !self.printed.waiting.is_empty() && is_ready(&self.stdout, PollFlags::POLLOUT) {
            self.printed.write(&self.stdout);
        }
    }

    /// Prints the rest of what the container printed.
    pub(crate) fn finish(&mut self) {
        loop {
            while !self.printed.waiting.is_empty() {
                self.printed.write(&self.stdout);
            }
            self.printed.read(&self.master);
            if self.printed.waiting.is_empty() {
                return;
            }
        }
    }
}

fn is_ready(fd: &impl AsFd, what: PollFlags) -> bool {
    poll(&mut [PollFd::new(fd.as_fd(), what)], PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Our terminal in raw mode: every key goes to the container, also the one that would interrupt us.
struct Raw(Termios);

impl Raw {
    fn set() -> anyhow::Result<Option<Raw>> {
        let Ok(before) = tcgetattr(io::stdin()) else { return Ok(None) };
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw).context("cannot set the terminal to raw mode")?;
        Ok(Some(Raw(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Err(errno) = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0) {
            log::warn!("cannot restore the terminal's mode: {errno}");
        }
    }
}

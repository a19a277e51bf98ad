//! Moves bytes from one descriptor to another without ever blocking: by `splice(2)`, which never brings them into the
//! shim's memory, or by a small buffer where the kernel will not.

use std::{
    future::Future,
    io,
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::{read, write},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::{JoinHandle, yield_now},
};

use crate::sys::ready;

/// How much one splice may move; a pipe holds 64 KiB.
const CHUNK: usize = 64 * 1024;
/// For the descriptors that splice does not take: files opened to append, terminals on kernels before 6.5.
const BUFFER: usize = 4096;

/// A descriptor that bytes come from, or go to.
pub(crate) enum End {
    /// A pipe, a FIFO or a terminal, and what must stay open as long as it does.
    Pollable { fd: AsyncFd<OwnedFd>, _spare: Option<OwnedFd> },
    /// A regular file or a device like /dev/null, which epoll does not take and which are always ready.
    Ready(OwnedFd),
}

impl End {
    pub(crate) fn source(fd: OwnedFd) -> io::Result<Self> {
        Self::pollable(fd, Interest::READABLE, None)
    }

    pub(crate) fn sink(fd: OwnedFd, spare: Option<OwnedFd>) -> io::Result<Self> {
        Self::pollable(fd, Interest::WRITABLE, spare)
    }

    pub(crate) fn both(fd: OwnedFd) -> io::Result<Self> {
        Self::pollable(fd, Interest::READABLE | Interest::WRITABLE, None)
    }

    fn pollable(fd: OwnedFd, interest: Interest, spare: Option<OwnedFd>) -> io::Result<Self> {
        set_flag(&fd, OFlag::O_NONBLOCK, true)?;
        Ok(Self::Pollable { fd: ready::watch(fd, interest)?, _spare: spare })
    }

    /// The descriptor itself.
    pub(crate) fn fd(&self) -> &OwnedFd {
        match self {
            Self::Pollable { fd, .. } => fd.get_ref(),
            Self::Ready(fd) => fd,
        }
    }
}

/// Moves bytes until there are no more, or until one end is gone. Whether that is an error is for the caller to say: the
/// end of a terminal is one (EIO), and so is the end of a process that did not read all of its input (EPIPE).
pub(crate) async fn flow(from: &End, to: &End) -> io::Result<()> {
    while step(from, to).await? == Step::Nothing {
        until(from, PollFlags::POLLIN).await?;
    }
    Ok(())
}

/// As [`flow`], but only what is there now.
pub(crate) async fn flow_now(from: &End, to: &End) -> io::Result<()> {
    step(from, to).await.map(drop)
}

/// Why moving bytes came to a halt.
#[derive(PartialEq, Eq)]
enum Step {
    /// There is nothing to move for now.
    Nothing,
    /// There will be no more.
    End,
}

async fn step(from: &End, to: &End) -> io::Result<Step> {
    loop {
        match splice(from.fd(), None, to.fd(), None, CHUNK, SpliceFFlags::SPLICE_F_NONBLOCK) {
            Ok(0) => return Ok(Step::End),
            Ok(_) => yield_now().await,
            // It does not say which of the two is not ready.
            Err(Errno::EAGAIN) if poll_now(from.fd(), PollFlags::POLLIN)?.is_empty() => return Ok(Step::Nothing),
            Err(Errno::EAGAIN) if poll_now(to.fd(), PollFlags::POLLOUT)?.is_empty() => {
                until(to, PollFlags::POLLOUT).await?;
            }
            // Something moved in between.
            Err(Errno::EAGAIN) => yield_now().await,
            Err(Errno::EINTR) => {}
            Err(Errno::EINVAL) => return step_by_hand(from, to).await,
            Err(errno) => return Err(errno.into()),
        }
    }
}

async fn step_by_hand(from: &End, to: &End) -> io::Result<Step> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let filled = match read(from.fd(), &mut buffer) {
            Ok(0) => return Ok(Step::End),
            Ok(filled) => filled,
            Err(Errno::EAGAIN) => return Ok(Step::Nothing),
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        let mut rest = &buffer[..filled];
        while !rest.is_empty() {
            match write(to.fd(), rest) {
                Ok(written) => rest = &rest[written..],
                Err(Errno::EAGAIN) => until(to, PollFlags::POLLOUT).await?,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        yield_now().await;
    }
}

/// Waits until `end` can be read from or written to, as `flag` says.
///
/// epoll reports edges, and tokio remembers what it reported. What it remembers is struck out only after the kernel has
/// been asked again, so that no edge is lost in between.
pub(crate) async fn until(end: &End, flag: PollFlags) -> io::Result<()> {
    let End::Pollable { fd, .. } = end else { return Ok(()) };
    loop {
        let mut guard = if flag == PollFlags::POLLIN { fd.readable().await? } else { fd.writable().await? };
        if !poll_now(fd.get_ref(), flag)?.is_empty() {
            return Ok(());
        }
        guard.clear_ready();
    }
}

/// What `poll(2)` says at once: `flag`, or that the other side is gone.
pub(crate) fn poll_now(fd: &impl AsFd, flag: PollFlags) -> io::Result<PollFlags> {
    let mut fds = [PollFd::new(fd.as_fd(), flag)];
    poll(&mut fds, PollTimeout::ZERO)?;
    Ok(fds[0].revents().unwrap_or(PollFlags::empty()))
}

/// Sets or clears a flag on this opening of whatever `fd` is.
pub(crate) fn set_flag(fd: &OwnedFd, flag: OFlag, on: bool) -> io::Result<()> {
    let mut flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    flags.set(flag, on);
    fcntl(fd, FcntlArg::F_SETFL(flags))?;
    Ok(())
}

/// A flow that goes on by itself. Dropping it closes what it holds.
pub(crate) struct Copy(JoinHandle<()>);

impl Copy {
    /// Lets `flow` run beside everything else.
    pub(crate) fn spawn(flow: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(flow))
    }

    /// Waits for its end.
    pub(crate) async fn done(&mut self) {
        if !self.0.is_finished()
            && let Err(error) = (&mut self.0).await
        {
            log::debug!("a copy of stdio ended early: {error}");
        }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::OpenOptions, io::Read as _, time::Duration};

    use nix::unistd::pipe2;
    use tokio::{runtime::Builder, time::timeout};

    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { timeout(Duration::from_secs(20), future).await.expect("must not hang") })
    }

    fn pipe() -> (OwnedFd, OwnedFd) {
        pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap()
    }

    #[test]
    fn a_full_sink_holds_the_flow_and_loses_nothing() {
        block_on(async {
            let (from_read, from_write) = pipe();
            let (to_read, to_write) = pipe();
            let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[n as usize % 4]).collect();
            let sent = bytes.clone();
            let copy = tokio::spawn(async move {
                let (from, to) = (End::source(from_read).unwrap(), End::sink(to_write, None).unwrap());
                flow(&from, &to).await.unwrap();
            });
            let feed = tokio::spawn(async move {
                let to = End::sink(from_write, None).unwrap();
                let mut rest = sent.as_slice();
                while !rest.is_empty() {
                    match write(to.fd(), rest) {
                        Ok(n) => rest = &rest[n..],
                        Err(_) => until(&to, PollFlags::POLLOUT).await.unwrap(),
                    }
                }
            });
            let from = End::source(to_read).unwrap();
            let (mut got, mut buffer) = (Vec::new(), [0; 1000]);
            loop {
                match read(from.fd(), &mut buffer) {
                    Ok(0) => break,
                    Ok(n) => got.extend_from_slice(&buffer[..n]),
                    Err(_) => until(&from, PollFlags::POLLIN).await.unwrap(),
                }
            }
            feed.await.unwrap();
            copy.await.unwrap();
            assert!(got == bytes, "{} of {} bytes arrived, or others", got.len(), bytes.len());
        });
    }

    #[test]
    fn a_file_opened_to_append_is_written_by_hand() {
        block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("log");
            std::fs::write(&path, "before ").unwrap();
            let (from, write_end) = pipe();
            write(&write_end, b"and after").unwrap();
            drop(write_end);
            let to = End::Ready(OpenOptions::new().append(true).open(&path).unwrap().into());
            flow(&End::source(from).unwrap(), &to).await.unwrap();
            let mut text = String::new();
            std::fs::File::open(&path).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, "before and after");
        });
    }
}

//! Our own standard streams in the event loop. They are shared with the shell and whoever else has them, so they are
//! never made non-blocking: instead nothing is read or written that would have to wait.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use dunnage_supervisor::sys;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What a pipe that is ready takes without making us wait (`PIPE_BUF`, pipe(7)).
const AT_ONCE: usize = 4096;

pub(crate) enum Stream {
    /// A pipe, a terminal, a socket.
    Awaited(AsyncFd<OwnedFd>),
    /// A regular file and the like, which epoll does not take because it never has to be waited for.
    Ready(OwnedFd),
}

impl Stream {
    /// One of our standard streams, or another descriptor, to read from.
    pub(crate) fn reader(fd: impl AsFd) -> io::Result<Stream> {
        Stream::new(fd.as_fd().try_clone_to_owned()?, Interest::READABLE)
    }

    /// The same to write to.
    pub(crate) fn writer(fd: impl AsFd) -> io::Result<Stream> {
        Stream::new(fd.as_fd().try_clone_to_owned()?, Interest::WRITABLE)
    }

    fn new(fd: OwnedFd, interest: Interest) -> io::Result<Stream> {
        let spare = fd.try_clone()?;
        match sys::watch(fd, interest) {
            Ok(fd) => Ok(Stream::Awaited(fd)),
            Err(error) if error.raw_os_error() == Some(Errno::EPERM as i32) => Ok(Stream::Ready(spare)),
            Err(error) => Err(error),
        }
    }

    /// Waits for something to read; 0 at the end.
    pub(crate) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let result = match self {
                Stream::Ready(fd) => {
                    // Others have their turn between two pieces of a long file.
                    tokio::task::yield_now().await;
                    nix::unistd::read(fd, buffer)
                }
                Stream::Awaited(fd) => {
                    let mut ready = fd.readable().await?;
                    if !is_ready(fd.get_ref().as_fd(), PollFlags::POLLIN) {
                        ready.clear_ready();
                        continue;
                    }
                    nix::unistd::read(fd.get_ref(), buffer)
                }
            };
            match result {
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                // A terminal that was hung up.
                Err(Errno::EIO) => return Ok(0),
                result => return Ok(result?),
            }
        }
    }

    /// Writes all of `bytes`, as fast as they are taken.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let result = match self {
                Stream::Ready(fd) => nix::unistd::write(fd, bytes),
                Stream::Awaited(fd) => {
                    let mut ready = fd.writable().await?;
                    if !is_ready(fd.get_ref().as_fd(), PollFlags::POLLOUT) {
                        ready.clear_ready();
                        continue;
                    }
                    nix::unistd::write(fd.get_ref(), &bytes[..bytes.len().min(AT_ONCE)])
                }
            };
            match result {
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                result => bytes = &bytes[result?..],
            }
        }
        Ok(())
    }
}

/// Waits until nobody reads our stdout any more, so that what waits for something to say does not wait for ever.
pub(crate) async fn reader_gone() -> io::Result<()> {
    match Stream::new(io::stdout().as_fd().try_clone_to_owned()?, Interest::ERROR)? {
        // Whose readers come and go.
        Stream::Ready(_) => std::future::pending().await,
        Stream::Awaited(fd) => loop {
            let mut ready = fd.ready(Interest::ERROR).await?;
            if is_ready(fd.get_ref().as_fd(), PollFlags::empty()) {
                return Ok(());
            }
            ready.clear_ready();
        },
    }
}

fn is_ready(fd: BorrowedFd<'_>, what: PollFlags) -> bool {
    poll(&mut [PollFd::new(fd, what)], PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap().block_on(future)
    }

    /// More than a pipe holds, through a pipe that was never made non-blocking, in one thread.
    #[test]
    fn neither_side_of_a_pipe_is_waited_for_with_the_thread() {
        block_on(async {
            let (read, write) = nix::unistd::pipe().unwrap();
            let (reader, writer) = (Stream::reader(&read).unwrap(), Stream::writer(&write).unwrap());
            drop((read, write));
            let sent: Vec<u8> = (0..1_000_000).map(|number: u32| number as u8).collect();
            let send = async {
                writer.write_all(&sent).await.unwrap();
                drop(writer);
            };
            let receive = async {
                let (mut received, mut buffer) = (Vec::new(), [0; 65536]);
                loop {
                    match reader.read(&mut buffer).await.unwrap() {
                        0 => return received,
                        count => received.extend_from_slice(&buffer[..count]),
                    }
                }
            };
            let ((), received) = futures::join!(send, receive);
            assert!(received == sent);
        });
    }

    #[test]
    fn files_and_dev_null_are_read_to_their_end() {
        block_on(async {
            let null = std::fs::File::open("/dev/null").unwrap();
            assert_eq!(Stream::reader(&null).unwrap().read(&mut [0; 8]).await.unwrap(), 0);
            let mut buffer = [0; 4];
            let file = std::fs::File::open("/proc/self/exe").unwrap();
            assert_eq!(Stream::reader(&file).unwrap().read(&mut buffer).await.unwrap(), 4);
            assert_eq!(&buffer, b"\x7fELF");
        });
    }
}

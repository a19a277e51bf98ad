//! Connections, as ttrpc takes them.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream};
use nix::errno::Errno;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::mpsc,
    time::sleep,
};

/// Until a descriptor may be free again, of which nobody tells.
const NO_DESCRIPTOR: Duration = Duration::from_secs(1);

/// The connections that clients make to `listener`: those that `admit` has nothing against.
pub fn connections(
    listener: UnixListener,
    admit: fn(&UnixStream) -> io::Result<()>,
) -> impl Stream<Item = io::Result<UnixStream>> + Send + 'static {
    let accepted = stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        let errno = accepted.as_ref().err().and_then(io::Error::raw_os_error).map(Errno::from_raw);
        if matches!(errno, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)) {
            // Who waits in the queue stays there, so that the next attempt would fail at once.
            sleep(NO_DESCRIPTOR).await;
        }
        Some((accepted, listener))
    });
    accepted.filter_map(move |stream| {
        let admitted = stream.and_then(|stream| admit(&stream).map(|()| stream));
        if let Err(error) = &admitted {
            log::warn!("refused a connection: {error}");
        }
        std::future::ready(admitted.ok().map(Ok))
    })
}

/// A client's connection. ttrpc reads and writes it through here, and nowhere else.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    /// Dropped with the connection, when everything has been written.
    _alive: mpsc::Sender<()>,
}

impl Connection {
    /// The receiver of `alive` learns when the last connection is closed and everything on it written.
    pub fn new(stream: UnixStream, alive: mpsc::Sender<()>) -> Self {
        Self { stream, _alive: alive }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{os::fd::AsRawFd as _, pin::pin};

    use nix::{
        sys::resource::{Resource, getrlimit, setrlimit},
        time::{ClockId, clock_gettime},
    };
    use tokio::{runtime::Builder, time::timeout};

    use super::*;

    #[test]
    fn without_a_descriptor_left_the_loop_does_not_spin() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let listener = UnixListener::bind(&path).unwrap();
            let _client = std::os::unix::net::UnixStream::connect(&path).unwrap();
            let mut arrivals = pin!(connections(listener, |_| Ok(())));
            let (files, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
            let next = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
            setrlimit(Resource::RLIMIT_NOFILE, next.cast_unsigned().into(), most).unwrap();

            let used = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
            let before = used();
            assert!(timeout(NO_DESCRIPTOR / 2, arrivals.next()).await.is_err());
            let used = used() - before;
            setrlimit(Resource::RLIMIT_NOFILE, files, most).unwrap();
            assert!(used < NO_DESCRIPTOR / 10, "{used:?} of work for nothing");
            assert!(arrivals.next().await.unwrap().is_ok(), "it was not forgotten");
        });
    }
}

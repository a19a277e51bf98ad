//! Connections, as ttrpc takes them.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use futures::{Stream, StreamExt as _, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::mpsc,
};

/// The connections that clients make to `listener`: those that `admit` has nothing against.
pub fn connections(
    listener: UnixListener,
    admit: fn(&UnixStream) -> io::Result<()>,
) -> impl Stream<Item = io::Result<UnixStream>> + Send + 'static {
    let accepted = stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
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

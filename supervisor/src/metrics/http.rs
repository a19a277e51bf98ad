//! As much of HTTP as a scraper needs: one GET a connection, whose answer ends with it.
//!
//! A scraper that hangs holds up none but itself, and not for ever.

use std::{io, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use httparse::{EMPTY_HEADER, Request, Status};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, UnixListener},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::Metrics;
use crate::{config::MetricsAddress, socket};

/// Scrapers served at the same time; more wait.
const AT_ONCE: usize = 4;
/// How long one may take in all.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the head of a request may be.
const HEAD: usize = 8 << 10;
/// After this, accepting is tried again that failed for want of descriptors; the kernel has no event for that.
const PAUSE: Duration = Duration::from_millis(100);

const PATH: &str = "/metrics";

/// Where scrapers come in. Dropped, it no longer does.
#[derive(Debug)]
pub struct Exporter(Listener);

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    /// With the file that is ours to remove.
    Unix(UnixListener, PathBuf),
}

/// Listens on this address. To be called in the event loop.
///
/// # Errors
/// When the address is not one of this machine only, or is in use.
pub async fn listen(address: &MetricsAddress) -> Result<Exporter> {
    let failed = || format!("serve metrics on {address}");
    let listener = match address {
        MetricsAddress::Tcp(at) => {
            anyhow::ensure!(
                at.ip().is_loopback(),
                "{}: other machines can reach it; use 127.0.0.1, [::1] or unix:/PATH",
                failed()
            );
            Listener::Tcp(TcpListener::bind(at).await.with_context(failed)?)
        }
        MetricsAddress::Unix(path) => {
            let listener = socket::listen(path).with_context(failed)?;
            listener.set_nonblocking(true).with_context(failed)?;
            Listener::Unix(UnixListener::from_std(listener).with_context(failed)?, path.clone())
        }
    };
    Ok(Exporter(listener))
}

impl Drop for Exporter {
    fn drop(&mut self) {
        if let Listener::Unix(_, path) = &self.0
            && let Err(error) = std::fs::remove_file(path)
        {
            log::debug!("remove {}: {error}", path.display());
        }
    }
}

impl Exporter {
    /// The port, where the address left it to the kernel (port 0).
    pub fn port(&self) -> Option<u16> {
        match &self.0 {
            Listener::Tcp(listener) => listener.local_addr().ok().map(|address| address.port()),
            Listener::Unix(..) => None,
        }
    }

    /// Serves until it is dropped, with all that it serves.
    pub async fn serve(self, metrics: Metrics) {
        let mut serving = JoinSet::new();
        loop {
            if serving.len() >= AT_ONCE {
                // How it ended concerns nobody but its client.
                drop(serving.join_next().await);
                continue;
            }
            let metrics = metrics.clone();
            let accepted = tokio::select! {
                Some(_) = serving.join_next() => continue,
                accepted = self.accept() => accepted,
            };
            match accepted {
                Ok(Connection::Tcp(stream)) => drop(serving.spawn(answer(stream, metrics))),
                Ok(Connection::Unix(stream)) => drop(serving.spawn(answer(stream, metrics))),
                Err(error) => {
                    log::warn!("accept a scraper of metrics: {error}");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn accept(&self) -> io::Result<Connection> {
        match &self.0 {
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| Connection::Tcp(stream)),
            Listener::Unix(listener, _) => listener.accept().await.map(|(stream, _)| Connection::Unix(stream)),
        }
    }
}

enum Connection {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, metrics: Metrics) {
    match timeout(PATIENCE, exchange(&mut stream, &metrics)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => log::debug!("a scraper of metrics: {error}"),
        Err(_) => log::info!("a scraper of metrics was cut off: it took more than {PATIENCE:?}"),
    }
}

async fn exchange(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), metrics: &Metrics) -> io::Result<()> {
    let asked = request(stream).await?;
    let (status, kind) = match asked {
        Asked::Metrics { .. } => ("200 OK", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        Asked::Wrong(status, _) => (status, "text/plain; charset=utf-8"),
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    match asked {
        Asked::Metrics { body: true } => metrics.scrape(stream).await?,
        Asked::Metrics { body: false } => {}
        Asked::Wrong(_, why) => stream.write_all(why.as_bytes()).await?,
    }
    stream.shutdown().await
}

/// What a request wants.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Metrics { body: bool },
    Wrong(&'static str, &'static str),
}

async fn request(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Asked> {
    let mut bytes = Vec::with_capacity(1024);
    while bytes.len() < HEAD {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(asked) = parse(&bytes) {
            return Ok(asked);
        }
    }
    Ok(Asked::Wrong("431 Request Header Fields Too Large", "more than 8 KiB of headers\n"))
}

/// What these bytes ask for; `None` if there must be more to it.
fn parse(bytes: &[u8]) -> Option<Asked> {
    let mut headers = [EMPTY_HEADER; 64];
    let mut request = Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(Status::Partial) => return None,
        Ok(Status::Complete(_)) => {}
        Err(_) => return Some(Asked::Wrong("400 Bad Request", "this is no HTTP/1 request\n")),
    }
    let path = request.path.map(|path| path.split_once('?').map_or(path, |(path, _)| path));
    Some(match (request.method, path) {
        (Some("GET"), Some(PATH)) => Asked::Metrics { body: true },
        (Some("HEAD"), Some(PATH)) => Asked::Metrics { body: false },
        (_, Some(PATH)) => Asked::Wrong("405 Method Not Allowed", "only GET\n"),
        _ => Asked::Wrong("404 Not Found", "there is only /metrics\n"),
    })
}

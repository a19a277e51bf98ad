//! The socket where clients attach to a process whose output is kept: they get its output from then on, and bring input.
//!
//! Each client is served on its own and can hold up nobody, but the process itself if it asks to get everything. What
//! clients cost is bounded: so many of them, so much that one may be behind.

use std::{
    future::Future,
    io,
    os::unix::net::UnixListener as StdUnixListener,
    path::{Path, PathBuf},
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use runtime_v2_server::connections;
use tokio::{
    net::{UnixListener, UnixStream},
    select,
    time::timeout,
};

pub(crate) mod frame;
mod hub;

pub(crate) use hub::Hub;

use self::{
    frame::{Flags, HEADER, Kind, Refused, Said, frame, header},
    hub::Client,
};
use crate::{address, flow::Copy, serve::admit};

/// Clients at a time.
const CLIENTS: usize = 64;
/// How long a client may take to say what it wants, and to read why it is sent away.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of input that are taken at a time.
const INPUT: usize = 4096;

/// An attach socket. It is gone when this is.
pub(crate) struct Attach {
    path: PathBuf,
    listener: Option<StdUnixListener>,
    hub: Arc<Hub>,
    serving: Option<Copy>,
}

impl Attach {
    /// Makes the socket at `path`, for its owner alone. Who connects waits until [`serve`](Self::serve).
    pub(crate) fn listen(path: &Path, hub: Arc<Hub>) -> anyhow::Result<Self> {
        match address::take(path)? {
            address::Socket::Ours(listener) => {
                listener.set_nonblocking(true)?;
                Ok(Self { path: path.to_owned(), listener: Some(listener), hub, serving: None })
            }
            address::Socket::Served => anyhow::bail!("somebody else listens on {}", path.display()),
        }
    }

    /// Lets clients in.
    pub(crate) fn serve(&mut self) -> io::Result<()> {
        if let Some(listener) = self.listener.take() {
            let listener = UnixListener::from_std(listener)?;
            self.serving = Some(Copy::spawn(serve(listener, self.hub.clone())));
        }
        Ok(())
    }

    /// The one all output goes through.
    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }
}

impl Drop for Attach {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            log::debug!("remove the attach socket {}: {error}", self.path.display());
        }
    }
}

type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

async fn serve(listener: UnixListener, hub: Arc<Hub>) {
    let mut clients: FuturesUnordered<Serving> = FuturesUnordered::new();
    let mut arrivals = pin!(connections(listener, admit));
    loop {
        let stream = select! {
            Some(Ok(stream)) = arrivals.next() => stream,
            Some(()) = clients.next() => continue,
        };
        if clients.len() < CLIENTS {
            clients.push(Box::pin(attend(hub.clone(), stream)));
        } else {
            // Nobody waits for this one to read it; it fits into a new socket.
            drop(stream.try_write(&frame(Kind::CutOff, Refused::TooMany(CLIENTS).to_string().as_bytes())));
        }
    }
}

/// One client, from its Hello to its end.
async fn attend(hub: Arc<Hub>, stream: UnixStream) {
    let hello = timeout(PATIENCE, hello(&stream)).await.unwrap_or(Ok(Err(Refused::Silent(PATIENCE.as_secs()))));
    let (flags, refused) = match hello {
        Ok(Ok(flags)) => (flags, None),
        Ok(Err(refused)) => (Flags::default(), Some(refused)),
        // It left before it said anything.
        Err(_) => return,
    };
    let client = hub.enter(stream, flags);
    let ended = match refused {
        None => converse(&hub, &client).await,
        Some(refused) => Err(refused),
    };
    if let Err(refused) = ended {
        log::info!("sent a client away that was attached: {refused}");
        client.cut_off(&refused);
        // What it did wrong is its own; that it does not read, too.
        drop(timeout(PATIENCE, hub.serve(&client)).await);
    }
    hub.leave(&client);
}

/// Passes on what comes from either side, until one of them is done.
async fn converse(hub: &Hub, client: &Client) -> Result<(), Refused> {
    let mut listening = pin!(listen(hub, &client.stream));
    select! {
        heard = &mut listening => heard,
        served = hub.serve(client) => match served {
            Ok(()) => Ok(()),
            // It is gone, but what it said before may still have to be read.
            Err(_) => listening.await,
        },
    }
}

/// Reads the first frame.
async fn hello(stream: &UnixStream) -> io::Result<Result<Flags, Refused>> {
    let mut bytes = [0; HEADER];
    fill(stream, &mut bytes).await?;
    Ok(match header(bytes) {
        Ok((Said::Hello, 1)) => {
            let mut flags = [0];
            fill(stream, &mut flags).await?;
            Flags::parse(flags[0])
        }
        Ok((Said::Hello, length)) => Err(Refused::Hello(length)),
        Ok(_) => Err(Refused::NoHello),
        Err(refused) => Err(refused),
    })
}

/// Takes a client's input, until it detaches.
async fn listen(hub: &Hub, stream: &UnixStream) -> Result<(), Refused> {
    loop {
        let mut bytes = [0; HEADER];
        if fill(stream, &mut bytes).await.is_err() {
            return Ok(());
        }
        let (said, mut length) = header(bytes)?;
        if said == Said::Hello {
            return Err(Refused::NoHello);
        }
        let mut input = [0; INPUT];
        while length > 0 {
            let part = &mut input[..length.min(INPUT)];
            let Ok(count) = some(stream, part).await else { return Ok(()) };
            if said == Said::Input {
                hub.input(&part[..count]).await;
            }
            length -= count;
        }
        if said == Said::InputEnd {
            hub.end_input().await;
        }
    }
}

/// Reads all of `bytes`. An error means that the client is gone.
async fn fill(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        filled += some(stream, &mut bytes[filled..]).await?;
    }
    Ok(())
}

/// Reads what there is, which is something.
async fn some(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        stream.readable().await?;
        match stream.try_read(bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read,
        }
    }
}

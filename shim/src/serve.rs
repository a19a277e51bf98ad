//! The long-running shim: builds the one-threaded runtime and owns the event loop. Requests, exits of children and the ends
//! of chores come in; `house` decides what follows, and nobody else holds a container.

use std::{
    io,
    os::unix::net::UnixListener as StdUnixListener,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::TryStreamExt as _;
use nix::{
    sys::{
        prctl::set_child_subreaper,
        socket::{getsockopt, sockopt::PeerCredentials},
    },
    unistd::{getegid, geteuid},
};
use runtime_v2_api::{shim_ttrpc::create_shim, task_services};
use runtime_v2_server::{Connection, connections, next_signal, signals};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use tokio::{
    io::AsyncReadExt as _,
    net::{UnixListener, UnixStream},
    runtime::Builder,
    sync::mpsc,
    time::{sleep_until, timeout},
};
use ttrpc::r#async::{Server, transport::Listener};

use crate::{
    house::House,
    ledger::Ledger,
    publish::Publisher,
    service::{Calls, ShimService, TaskService},
    sys::memory,
};

/// With nothing to look after for so long, nobody will come any more: containerd died between `start` and Create, or its
/// Shutdown was lost.
const IDLE: Duration = Duration::from_secs(300);
/// The same once a client has asked us to shut down while there still were containers: a pod's only Shutdown may come
/// early. Long enough for the last Delete's client to act on the reply before it sees the connection close.
const ASKED: Duration = Duration::from_secs(10);
/// When what was done is likely to be all for now, and the memory it took can go: not while a client waits.
const SETTLE: Duration = Duration::from_millis(100);
/// How long SIGTERM waits for events that are still to be delivered, and every shutdown for replies.
const HURRY: Duration = Duration::from_secs(5);

/// What the server is started with.
pub(crate) struct Config {
    /// containerd's namespace.
    pub(crate) namespace: String,
    /// The socket, bound and listening.
    pub(crate) listener: StdUnixListener,
    /// Where containerd takes events: what it gave us as `TTRPC_ADDRESS`.
    pub(crate) events: String,
    /// Where events that were not taken are written down, if we are supervised.
    pub(crate) ledger: Option<Ledger>,
}

/// Serves until a client or a signal says to stop, or until there has been nothing to do for long.
pub(crate) fn serve(config: Config) -> io::Result<()> {
    Builder::new_current_thread().enable_io().enable_time().build()?.block_on(run(config))
}

async fn run(config: Config) -> io::Result<()> {
    set_child_subreaper(true)?;
    let mut children = signals(&[SIGCHLD])?;
    let mut stop = signals(&[SIGTERM, SIGINT])?;
    let socket = config.listener.local_addr()?.as_pathname().map(PathBuf::from);
    config.listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(config.listener)?;

    let (calls, mut called) = mpsc::unbounded_channel();
    let calls = Calls(calls);
    let (alive, mut last_connection) = mpsc::channel(1);
    let connections = connections(listener, admit).map_ok(move |stream| Connection::new(stream, alive.clone()));
    let mut server = Server::new()
        .add_listener(Listener::new(connections))
        .register_service(task_services(Arc::new(TaskService(calls.clone()))))
        .register_service(create_shim(Arc::new(ShimService(calls))));
    server.start().await.map_err(io::Error::other)?;

    let supervised = config.ledger.is_some();
    let publisher = Publisher::new(&config.namespace, &config.events, config.ledger);
    let mut house = House::new(config.namespace, supervised, publisher.clone());
    let mut empty_since = Some(Instant::now());
    let mut settles_at = None;
    // What ended before the handler was there gave no signal.
    house.reap();
    loop {
        let idle = if house.asked_to_leave() { ASKED } else { IDLE };
        let leaves_at = empty_since.map(|since| since + idle);
        tokio::select! {
            biased;
            _ = stop.read_u8() => {
                if timeout(HURRY, publisher.drained()).await.is_err() {
                    log::warn!("told to stop");
                }
                break;
            }
            _ = next_signal(&mut children) => house.reap(),
            Some(call) = called.recv() => house.call(call),
            Some(done) = house.next_chore() => {
                house.done(done);
                settles_at = Some(Instant::now() + SETTLE);
            }
            () = publisher.drained(), if house.leaves_now() => break,
            () = sleep(leaves_at), if leaves_at.is_some() && !house.leaves_now() => {
                log::info!("nothing to look after for {idle:?}");
                house.leave();
            }
            () = sleep(settles_at), if settles_at.is_some() => {
                memory::trim();
                settles_at = None;
            }
        }
        empty_since = if house.is_empty() { empty_since.or_else(|| Some(Instant::now())) } else { None };
    }

    publisher.retire();
    if let Some(path) = socket
        && let Err(error) = std::fs::remove_file(&path)
    {
        log::debug!("remove socket {path:?}: {error}");
    }
    // Those who still wait get an error; then the connections close, each after what is to be written.
    drop((called, house));
    let closed = async {
        server.shutdown().await.map_err(io::Error::other)?;
        drop(server);
        while last_connection.recv().await.is_some() {}
        io::Result::Ok(())
    };
    timeout(HURRY, closed).await.unwrap_or(Ok(()))
}

async fn sleep(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}

/// Refuses clients of another user or group, as containerd does it too.
pub(crate) fn admit(stream: &UnixStream) -> io::Result<()> {
    let peer = getsockopt(stream, PeerCredentials)?;
    if (peer.uid(), peer.gid()) == (geteuid().as_raw(), getegid().as_raw()) {
        return Ok(());
    }
    Err(io::Error::other(format!("process {} is of user {}:{}", peer.pid(), peer.uid(), peer.gid())))
}

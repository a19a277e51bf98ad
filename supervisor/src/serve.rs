//! The daemon: takes its folders and its socket, and owns the event loop.

use std::{
    collections::HashMap,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::net::UnixListener as StdUnixListener,
    },
    path::Path,
    pin::pin,
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use nix::sys::{
    prctl,
    resource::{Resource, getrlimit, setrlimit},
    socket::{UnixAddr, getsockname},
};
use runtime_v2_server::{connections, next_signal, signals};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use tokio::{
    io::AsyncReadExt as _,
    net::{UnixListener, UnixStream},
    runtime::Builder,
    sync::mpsc,
    time::timeout,
};
use ttrpc::{
    Request,
    r#async::{Server, Service, transport::Listener},
};

use crate::{
    carry::{Carrier, is_event},
    config::{Config, Flags},
    fdstore::FdStore,
    logging, metrics,
    paths::Paths,
    service::{Life, Supervisor},
    socket::{self, Lock},
    sys,
    traffic::{LONG, Traffic},
    upgrade::{self, Facts, Inheritance, Possessions},
};

/// How long a stop waits for replies that are still to be written.
const HURRY: Duration = Duration::from_secs(5);
/// How long an upgrade waits for subscribers who read too slowly to be told that their streams end.
const LAG: Duration = Duration::from_millis(200);

/// Serves until a client or a signal says to stop.
///
/// # Errors
/// When the folders, the socket or the journal cannot be used; the text says what to do about it.
pub fn serve(flags: &Flags, paths: &Paths) -> Result<()> {
    let config = Config::read(flags, paths)?;
    logging::init(config.log_level)?;
    if let Some(score) = config.oom_score {
        set_oom_score(score);
    }
    prctl::set_child_subreaper(config.subreaper).context("become the reaper of orphans")?;
    Builder::new_current_thread().enable_io().enable_time().build()?.block_on(run(config, flags, paths))
}

/// What is open for as long as the process lives, whatever program it is.
struct Held {
    listener: StdUnixListener,
    /// On the state folder and the root folder.
    locks: [Lock; 2],
    /// Those that our former self served, until we do.
    connections: Vec<(OwnedFd, Vec<u8>)>,
    store: FdStore,
    facts: Facts,
}

impl Held {
    /// From our former self, from systemd, or made now.
    fn take(config: &Config) -> Result<Self> {
        let store = FdStore::default();
        if let Some(Inheritance { listener, locks, connections, facts }) = Inheritance::claim(&store)? {
            let locks = locks.map(Lock::inherited);
            return Ok(Self { listener: listener.into(), locks, connections, store, facts });
        }
        // Each container has a pidfd here, and its cgroup's files while somebody looks at them.
        let (files, most) = getrlimit(Resource::RLIMIT_NOFILE).context("read the limit of open files")?;
        setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raise the limit of open files")?;
        let locks = [Lock::take(&config.state)?, Lock::take(&config.root)?];
        let (listener, bound) = match activated(&config.address)? {
            Some(listener) => (listener.into(), false),
            None => (socket::listen(&config.address)?, true),
        };
        let facts = Facts { bound, files, upgrades: 0 };
        Ok(Self { listener, locks, connections: Vec::new(), store, facts })
    }
}

/// The socket that systemd listens on for us (sd_listen_fds(3)), which must be the one that shims and clients are told of.
fn activated(address: &Path) -> Result<Option<OwnedFd>> {
    let mut numbers = sd_notify::listen_fds().context("read $LISTEN_FDS")?;
    let Some(first) = numbers.next() else { return Ok(None) };
    anyhow::ensure!(
        numbers.next().is_none(),
        "systemd passes more than one socket: dunnaged.socket must name just one"
    );
    let listener = sys::inherited(first).context("take the socket from systemd")?;
    let own: UnixAddr = getsockname(listener.as_raw_fd()).context("take the socket from systemd: ask for its path")?;
    let own = own.path().unwrap_or(Path::new("a socket without a path"));
    // Perhaps by way of another name for one of the folders, such as /var/run.
    let same =
        own == address || fs::canonicalize(own).is_ok_and(|own| fs::canonicalize(address).is_ok_and(|it| it == own));
    anyhow::ensure!(
        same,
        "systemd listens on {} for us, and by the configuration our socket is {}: name the same in dunnaged.socket \
         (ListenStream=) and in the configuration (address, or state)",
        own.display(),
        address.display()
    );
    Ok(Some(listener))
}

async fn run(mut config: Config, flags: &Flags, paths: &Paths) -> Result<()> {
    let mut held = Held::take(&config)?;
    // Before anything is started whose end would be missed.
    let mut children = signals(&[SIGCHLD])?;
    let mut stop = signals(&[SIGTERM, SIGINT])?;
    let mut hangup = signals(&[SIGHUP])?;
    let supervisor = Supervisor::open(
        &config,
        Life { store: held.store.clone(), upgrades: held.facts.upgrades, files: held.facts.files },
    )?;
    supervisor.reap();
    if let (Some(address), Some(metrics)) = (&config.metrics, supervisor.metrics()) {
        match metrics::listen(address).await {
            Ok(exporter) => drop(tokio::spawn(exporter.serve(metrics.clone()))),
            // Too late to refuse: there is nobody to go back to.
            Err(error) if held.facts.upgrades > 0 => {
                log::error!("{error:#}; there are no metrics until the next start")
            }
            Err(error) => return Err(error),
        }
    }
    let open = Open::new(&mut held, supervisor.services()).await?;
    tell(&[NotifyState::Ready, NotifyState::MainPid(std::process::id())]);
    log::info!("supervising {} on {}", config.state.display(), config.address.display());
    loop {
        let binary = tokio::select! {
            biased;
            _ = stop.read_u8() => break,
            () = supervisor.asked_to_stop() => break,
            binary = supervisor.asked_to_upgrade() => binary,
            () = next_signal(&mut children) => {
                supervisor.reap();
                continue;
            }
            () = next_signal(&mut hangup) => {
                reload(&mut config, flags, paths, &supervisor);
                continue;
            }
        };
        log::info!("going on as {}", binary.display());
        reaping(&mut children, &supervisor, open.settle()).await;
        let error = open.hand_over(&held, &binary);
        log::error!("execute {}: {error}; this supervisor goes on", binary.display());
        supervisor.not_upgraded(&format!("execute {}: {error}", binary.display()));
    }
    reaping(&mut children, &supervisor, open.close()).await?;
    tell(&[NotifyState::Stopping]);
    if held.facts.bound
        && let Err(error) = fs::remove_file(&config.address)
    {
        log::debug!("remove {}: {error}", config.address.display());
    }
    Ok(())
}

/// The open door: as long as it lives, clients are served.
struct Open {
    server: Server,
    traffic: Traffic,
    carrier: Carrier,
    /// Closed when the last connection is.
    last: mpsc::Receiver<()>,
}

impl Open {
    async fn new(held: &mut Held, services: HashMap<String, Service>) -> Result<Self> {
        let listener = held.listener.try_clone().context("duplicate the socket")?;
        listener.set_nonblocking(true)?;
        let (alive, last) = mpsc::channel(1);
        let (traffic, services) = Traffic::through(services);
        let carrier = Carrier::default();
        let mut carried = Vec::new();
        for (fd, left) in held.connections.drain(..) {
            carried.push(Ok((UnixStream::from_std(fd.into())?, left)));
        }
        let accepted = connections(UnixListener::from_std(listener)?, socket::admit);
        let all = stream::iter(carried).chain(accepted.map_ok(|stream| (stream, Vec::new())));
        let carriers = carrier.clone();
        let carried = all.map_ok(move |(stream, left)| carriers.connection(stream, left, alive.clone()));
        let mut server = Server::new().add_listener(Listener::new(carried)).register_service(services);
        server.start().await.context("serve")?;
        Ok(Self { server, traffic, carrier, last })
    }

    /// Waits, though not for ever, until all answers are written and every connection is closed.
    async fn close(mut self) -> Result<()> {
        self.traffic.close();
        let closed = async {
            self.server.shutdown().await.context("stop serving")?;
            drop(self.server);
            while self.last.recv().await.is_some() {}
            Ok(())
        };
        timeout(HURRY, closed).await.unwrap_or(Ok(()))
    }

    /// Takes no more calls, and waits, though not for ever, until what does not take long is answered.
    async fn settle(&self) {
        self.carrier.halt();
        self.traffic.close_streams();
        if timeout(LAG, self.carrier.settled(outlasts, |_| false)).await.is_err()
            && timeout(HURRY, self.carrier.settled(outlasts, |request| request.method == "Subscribe")).await.is_err()
        {
            let calls = self.carrier.unsettled(outlasts).join(", ");
            log::warn!("not answered in {HURRY:?}, and so cut off: {calls}");
        }
    }

    /// Becomes `binary`, with all connections that have settled. Returns only if that fails, and then everything goes on.
    fn hand_over(&self, held: &Held, binary: &Path) -> io::Error {
        // By then it has been upgraded.
        let again = |request: &mut Request| {
            if request.method == "Upgrade" {
                request.method = "Version".to_owned();
            }
        };
        let error = self.carrier.with_all(outlasts, again, |connections| {
            held.store.with_all(|parked| {
                let possessions = Possessions {
                    listener: held.listener.as_fd(),
                    locks: held.locks.each_ref().map(AsFd::as_fd),
                    parked,
                    connections,
                    facts: Facts { upgrades: held.facts.upgrades + 1, ..held.facts },
                };
                upgrade::execute(binary, &possessions)
            })
        });
        self.traffic.open();
        self.carrier.resume();
        error
    }
}

/// Whether a call goes over to a successor that has not been answered. (The journal knows an event that comes again.)
fn outlasts(request: &Request) -> bool {
    LONG.contains(&&*request.method) || is_event(request)
}

/// Awaits what may wait for children to end.
async fn reaping<T>(children: &mut UnixStream, supervisor: &Supervisor, what: impl Future<Output = T>) -> T {
    let mut what = pin!(what);
    loop {
        tokio::select! {
            done = &mut what => return done,
            () = next_signal(children) => supervisor.reap(),
        }
    }
}

/// Reads the configuration again and takes over what can be.
fn reload(config: &mut Config, flags: &Flags, paths: &Paths, supervisor: &Supervisor) {
    let new = match Config::read(flags, paths) {
        Ok(new) => new,
        Err(error) => return log::error!("{error}; everything stays as it is"),
    };
    for key in config.reload(new) {
        log::warn!("{key} has changed in the configuration, which takes effect with the next start");
    }
    logging::set_level(config.log_level);
    if let Some(score) = config.oom_score {
        set_oom_score(score);
    }
    supervisor.reload(config);
    log::info!("read the configuration again");
}

/// Lower only with CAP_SYS_RESOURCE, and no reason not to start.
fn set_oom_score(score: i32) {
    let written = OpenOptions::new().write(true).open("/proc/self/oom_score_adj");
    if let Err(error) = written.and_then(|mut file| file.write_all(score.to_string().as_bytes())) {
        log::warn!("set oom_score_adj to {score}: {error}");
    }
}

/// Tells whoever started us, if it wants to know (sd_notify(3)).
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::warn!("notify the service manager: {error}");
    }
}

//! The supervisor as the daemon holds it, and its service as clients see it. Here requests are translated and handed on;
//! nothing is decided.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use runtime_v2_api::{
    Empty,
    supervisor::{self as wire, SubscribeResponse},
    supervisor_ttrpc, unheard,
};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use ttrpc::r#async::{ServerStreamSender, Service, TtrpcContext};

use crate::{
    book::{Book, Name, Places, now, timestamp},
    config::Config,
    fault::Fault,
    fdstore::FdStore,
    ground::Ground,
    journal::{Bounds, Journal, JournalError},
    launch,
    metrics::{Metrics, Sources},
    recover,
    relay::Relay,
    route,
    shims::Shims,
    upgrade,
    usage::Usages,
};

/// The namespace of a call, in ttrpc's metadata.
const NAMESPACE: &str = "containerd-namespace-ttrpc";
/// So long a List or a Get waits for shims that have not yet said how their container is.
const PATIENCE: Duration = Duration::from_secs(5);

/// Everything that `dunnaged` does for clients and shims. To be made and used inside one event loop.
pub struct Supervisor {
    ground: Arc<Ground>,
    usages: Usages,
    /// Once there is somewhere to serve them.
    metrics: Arc<OnceLock<Metrics>>,
    store: FdStore,
    upgrades: u32,
    started: u64,
    stop: watch::Sender<bool>,
    upgrade: watch::Sender<Upgrading>,
}

/// What has become of the latest request to go on as another binary.
#[derive(Clone, Debug, Default)]
enum Upgrading {
    #[default]
    No,
    To(PathBuf),
    Failed(String),
}

/// Why a supervisor cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A folder or file of ours.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done to what.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// What of the process's life goes on when the program is replaced.
#[derive(Clone, Debug, Default)]
pub struct Life {
    /// What is parked here.
    pub store: FdStore,
    /// How often the program has been replaced.
    pub upgrades: u32,
    /// The limit of open files for those whom we start; ours is higher.
    pub files: u64,
}

impl Supervisor {
    /// Reads the address book and finds the shims again; what a killed supervisor left half done goes on in the
    /// background. The caller holds the lock on the state folder, has made it and the root folder, and is in the event
    /// loop.
    ///
    /// # Errors
    /// When the folders cannot be used. An entry or an event that cannot be read is no such error: it is in the troubles.
    pub fn open(config: &Config, life: Life) -> Result<Self, OpenError> {
        let places = Places { state: config.state.clone(), root: config.root.clone() };
        for (folder, mode) in [(places.unheard(), 0o700), (places.sockets(), 0o700), (places.runtime(), 0o711)] {
            let made = DirBuilder::new().recursive(true).mode(mode).create(&folder);
            made.map_err(failed(&format!("make {}", folder.display())))?;
        }
        let (ended, mut to_remove) = mpsc::unbounded_channel();
        let book = Book::open(places.clone(), ended);
        let book = book.map_err(failed(&format!("read the address book {}", places.book().display())))?;

        let unheard = places.unheard();
        let may_send = move |source: &str| recover::may_send(&unheard, source);
        let (journal, damage) = Journal::open(&places.root.join("journal"), bounds(config), may_send)?;
        damage.iter().chain(&book.troubles()).for_each(|trouble| log::warn!("{trouble}"));
        let (usages, metrics) = (Usages::default(), Arc::new(OnceLock::<Metrics>::new()));
        let hears = (book.clone(), usages.clone(), metrics.clone());
        let relay = Relay::new(journal, places.root.join("cursors"), move |number, envelope| {
            let (book, usages, metrics) = &hears;
            // First, as the book forgets what is removed.
            metrics.get().inspect(|metrics| metrics.heard(envelope));
            usages.heard(envelope);
            book.heard(number, envelope);
        });

        let shims = Shims::new().map_err(failed("make an epoll"))?;
        let ground = Arc::new(Ground::new(config, life.files, book, relay, shims));
        recover::recover(&ground).map_err(failed("find the shims again"))?;
        let lost = ground.clone();
        tokio::spawn(ground.shims.clone().tend(move |name| recover::finish_lost(&lost, name)));
        let over = ground.clone();
        tokio::spawn(async move {
            while let Some(name) = to_remove.recv().await {
                recover::finish_ended(&over, name);
            }
        });
        let Life { store, upgrades, files: _ } = life;
        if config.metrics.is_some() {
            metrics.get_or_init(|| Metrics::new(sources(&ground, &usages, upgrades)));
        }
        let (stop, upgrade) = (watch::Sender::new(false), watch::Sender::default());
        Ok(Self { ground, usages, metrics, store, upgrades, started: now(), stop, upgrade })
    }

    /// All services on the socket: the supervisor's, the Task services and the shim's own (routed), and the one that takes
    /// the shims' events.
    pub fn services(&self) -> HashMap<String, Service> {
        let service = Door {
            ground: self.ground.clone(),
            usages: self.usages.clone(),
            store: self.store.clone(),
            upgrades: self.upgrades,
            started: self.started,
            stop: self.stop.clone(),
            upgrade: self.upgrade.clone(),
        };
        let mut services = supervisor_ttrpc::create_supervisor(Arc::new(service));
        services.extend(route::services(&self.ground.book, &self.ground.shims));
        services.extend(self.ground.relay.forward_service());
        services
    }

    /// Collects the children that have ended. To be called after every SIGCHLD, and once before the first.
    pub fn reap(&self) {
        self.ground.reaper.reap();
    }

    /// Resolves when a client has asked the supervisor to end; at once if one has before.
    pub async fn asked_to_stop(&self) {
        // Cannot fail: we hold the sender.
        drop(self.stop.subscribe().wait_for(|stop| *stop).await);
    }

    /// Resolves when a client has asked the supervisor to go on as another binary, which has been checked.
    pub async fn asked_to_upgrade(&self) -> PathBuf {
        let mut asked = self.upgrade.subscribe();
        loop {
            if let Upgrading::To(binary) = &*asked.borrow_and_update() {
                return binary.clone();
            }
            // Cannot fail: we hold the sender.
            drop(asked.changed().await);
        }
    }

    /// The supervisor goes on as it is, for this reason: whoever asked for something else is told.
    pub fn not_upgraded(&self, why: &str) {
        self.upgrade.send_replace(Upgrading::Failed(why.to_owned()));
    }

    /// Takes over what can be of a configuration that was read again.
    pub fn reload(&self, config: &Config) {
        self.ground.reload(config);
        self.ground.relay.keep(bounds(config));
    }

    /// What there is to count, if it was configured that anybody may ask.
    pub fn metrics(&self) -> Option<&Metrics> {
        self.metrics.get()
    }
}

/// What is kept of events.
fn bounds(config: &Config) -> Bounds {
    Bounds { size: config.journal.max_size, age: config.journal.max_age }
}

/// Where the metrics come from.
fn sources(ground: &Arc<Ground>, usages: &Usages, upgrades: u32) -> Sources {
    let (containers, state_dir, launched) = (ground.book.clone(), ground.book.clone(), ground.book.clone());
    let (book, relay, unheard) = (ground.book.clone(), ground.relay.clone(), ground.places().unheard());
    Sources {
        containers: Box::new(move || containers.containers(None)),
        state_dir: Box::new(move |namespace, id| state_dir.state_dir(namespace, id)),
        launched: Box::new(move |namespace, id| {
            launched.look(&Name { namespace: namespace.into(), id: id.into() }, |entry| entry.created)
        }),
        troubles: Box::new(move || [book.troubles(), relay.troubles()].concat()),
        unheard: Box::new(move || kept_events(&unheard)),
        relay: ground.relay.clone(),
        usages: usages.clone(),
        upgrades,
    }
}

/// How many events are in the files of shims. Such a file is empty for as long as all are taken.
fn kept_events(unheard: &Path) -> u64 {
    let files = fs::read_dir(unheard).into_iter().flatten().flatten();
    let full = files.filter(|file| file.metadata().is_ok_and(|meta| meta.len() > 0));
    full.map(|file| fs::read(file.path()).map_or(0, |bytes| unheard::read(&bytes).0.len() as u64)).sum()
}

fn failed(doing: &str) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io { doing: doing.to_owned(), source }
}

/// The namespace that a call is about.
pub(crate) fn namespace(context: &TtrpcContext) -> &str {
    context.metadata.get(NAMESPACE).and_then(|values| values.first()).map_or("default", String::as_str)
}

/// The service.
struct Door {
    ground: Arc<Ground>,
    usages: Usages,
    store: FdStore,
    upgrades: u32,
    started: u64,
    stop: watch::Sender<bool>,
    upgrade: watch::Sender<Upgrading>,
}

impl Door {
    fn troubles(&self) -> Vec<String> {
        let mut troubles = self.ground.book.troubles();
        troubles.extend(self.ground.relay.troubles());
        troubles
    }

    fn version(&self) -> wire::VersionResponse {
        let path = |path: &Path| path.to_string_lossy().into_owned();
        wire::VersionResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_at: timestamp(self.started),
            upgrades: self.upgrades,
            state: path(&self.ground.places().state),
            root: path(&self.ground.places().root),
            last_event: self.ground.relay.last(),
            troubles: self.troubles(),
            ..Default::default()
        }
    }
}

#[async_trait]
impl supervisor_ttrpc::Supervisor for Door {
    async fn launch(
        &self,
        context: &TtrpcContext,
        request: wire::LaunchRequest,
    ) -> ttrpc::Result<wire::LaunchResponse> {
        let limit = u64::try_from(context.timeout_nano).ok().filter(|nanos| *nanos > 0).map(Duration::from_nanos);
        let container = launch::launch(&self.ground, namespace(context), request, limit).await?;
        let container = protobuf::MessageField::some(container);
        Ok(wire::LaunchResponse { container, ..Default::default() })
    }

    async fn remove(&self, context: &TtrpcContext, request: wire::RemoveRequest) -> ttrpc::Result<Empty> {
        let name = Name::new(namespace(context), &request.id).map_err(Fault::Invalid)?;
        self.ground.remove(&name, request.force).await?;
        Ok(Empty::new())
    }

    async fn list(&self, context: &TtrpcContext, request: wire::ListRequest) -> ttrpc::Result<wire::ListResponse> {
        if timeout(PATIENCE, self.ground.book.all_known()).await.is_err() {
            log::debug!("not all shims have said how their containers are");
        }
        let namespace = (!request.all_namespaces).then(|| namespace(context));
        let containers = self.ground.book.containers(namespace);
        Ok(wire::ListResponse { containers, troubles: self.troubles(), ..Default::default() })
    }

    async fn get(&self, context: &TtrpcContext, request: wire::GetRequest) -> ttrpc::Result<wire::Container> {
        let name = Name::new(namespace(context), &request.id).map_err(Fault::Invalid)?;
        if timeout(PATIENCE, self.ground.book.known(&name)).await.is_err() {
            log::debug!("the shim of container {name} has not said how it is");
        }
        let container = self.ground.book.container(&name);
        container.ok_or_else(|| Fault::NotFound(name.to_string()).into())
    }

    async fn usage(&self, context: &TtrpcContext, request: wire::UsageRequest) -> ttrpc::Result<wire::UsageResponse> {
        let book = &self.ground.book;
        let mut containers = book.containers(Some(namespace(context)));
        if let Some(id) = request.ids.iter().find(|id| containers.iter().all(|container| container.id != **id)) {
            return Err(Fault::NotFound(format!("{}/{id}", namespace(context))).into());
        }
        containers.retain(|container| request.ids.is_empty() || request.ids.contains(&container.id));
        let usages = self.usages.of(&containers, |namespace, id| book.state_dir(namespace, id)).await;
        let usages = usages.into_iter().map(|(_, usage)| usage).collect();
        Ok(wire::UsageResponse { usages, ..Default::default() })
    }

    async fn subscribe(
        &self,
        context: &TtrpcContext,
        request: wire::SubscribeRequest,
        to: ServerStreamSender<SubscribeResponse>,
    ) -> ttrpc::Result<()> {
        self.ground.relay.subscribe(request, namespace(context), to).await
    }

    async fn ack(&self, _: &TtrpcContext, request: wire::AckRequest) -> ttrpc::Result<Empty> {
        self.ground.relay.ack(&request).map(|()| Empty::new())
    }

    async fn park(&self, _: &TtrpcContext, request: wire::ParkRequest) -> ttrpc::Result<Empty> {
        let parked = self.store.park(&request).map_err(|error| Fault::Precondition(error.to_string()));
        Ok(parked.map(|()| Empty::new())?)
    }

    async fn take(&self, _: &TtrpcContext, request: wire::TakeRequest) -> ttrpc::Result<wire::TakeResponse> {
        Ok(self.store.take(&request).map_err(|error| Fault::NotFound(error.to_string()))?)
    }

    async fn version(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<wire::VersionResponse> {
        Ok(self.version())
    }

    async fn upgrade(&self, _: &TtrpcContext, request: wire::UpgradeRequest) -> ttrpc::Result<wire::VersionResponse> {
        let binary = upgrade::check(&self.ground.reaper, &request.binary).await;
        let binary = binary.map_err(|error| Fault::Precondition(format!("{error:#}")))?;
        self.upgrade.send_replace(Upgrading::To(binary));
        // It is our successor who answers, unless there is none.
        let mut outcome = self.upgrade.subscribe();
        match outcome.wait_for(|outcome| matches!(outcome, Upgrading::Failed(_))).await.as_deref() {
            Ok(Upgrading::Failed(why)) => Err(Fault::Precondition(why.clone()).into()),
            _ => Err(Fault::Unavailable("the supervisor ends".to_owned()).into()),
        }
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        self.stop.send_replace(true);
        Ok(Empty::new())
    }
}

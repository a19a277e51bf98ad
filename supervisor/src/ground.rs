//! What every room of the supervisor works with.

use std::{
    collections::{HashMap, HashSet},
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use log::LevelFilter;
use nix::sys::resource::{Resource, getrlimit};
use runtime_v2_api::unheard;
use tokio::sync::{Semaphore, watch};

use crate::{
    book::{Book, Name, Places},
    children::Reaper,
    config::{Config, Log, Runtime},
    fault::Fault,
    relay::Relay,
    shims::Shims,
    sys,
};

/// The shim, by the name that containerd knows it by.
const SHIM: &str = "containerd-shim-dunnage-v2";
/// So many shims are asked, or cleaned up after, at the same time: more would only make each of them slower.
pub(crate) const AT_ONCE: usize = 16;

/// What every room of the supervisor works with.
pub(crate) struct Ground {
    pub(crate) book: Book,
    pub(crate) relay: Relay,
    pub(crate) shims: Shims,
    pub(crate) reaper: Reaper,
    /// Our own socket, as shims are told it: their own sockets are called after it.
    pub(crate) address: String,
    /// The limit of open files that shims and containers are started with (getrlimit(2)).
    files: u64,
    settings: Mutex<Settings>,
    /// The containers on their way in.
    launches: Mutex<HashSet<Arc<Name>>>,
    /// The containers on their way out, and what became of it once that is known.
    ends: Mutex<HashMap<Arc<Name>, watch::Receiver<Ended>>>,
    pub(crate) at_once: Semaphore,
}

/// What became of a container's way out, once that is known.
pub(crate) type Ended = Option<Result<(), Fault>>;

/// What a reload of the configuration may change.
#[derive(Clone)]
pub(crate) struct Settings {
    shim: Option<PathBuf>,
    debug: bool,
    pub(crate) log: Log,
    pub(crate) runtime: Runtime,
}

impl Settings {
    fn new(config: &Config) -> Self {
        Self {
            shim: config.shim.clone(),
            debug: config.log_level >= LevelFilter::Debug,
            log: config.log,
            runtime: config.runtime.clone(),
        }
    }
}

impl Ground {
    pub(crate) fn new(config: &Config, files: u64, book: Book, relay: Relay, shims: Shims) -> Self {
        Self {
            book,
            relay,
            shims,
            reaper: Reaper::default(),
            files,
            // Without `.` and double slashes, as the shim computes with it.
            address: config.address.components().collect::<PathBuf>().to_string_lossy().into_owned(),
            settings: Mutex::new(Settings::new(config)),
            launches: Mutex::default(),
            ends: Mutex::default(),
            at_once: Semaphore::new(AT_ONCE),
        }
    }

    fn settings_mut(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn settings(&self) -> Settings {
        self.settings_mut().clone()
    }

    pub(crate) fn reload(&self, config: &Config) {
        *self.settings_mut() = Settings::new(config);
    }

    pub(crate) fn launches(&self) -> MutexGuard<'_, HashSet<Arc<Name>>> {
        self.launches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ends(&self) -> MutexGuard<'_, HashMap<Arc<Name>, watch::Receiver<Ended>>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn places(&self) -> &Places {
        self.book.places()
    }

    /// The shim of a container in one of its actions, to be run in the bundle.
    pub(crate) fn shim(&self, name: &Name, action: &str) -> Result<Command, String> {
        let settings = self.settings();
        let program = match settings.shim {
            Some(path) => path,
            None => find_shim()?,
        };
        let bundle = self.places().bundle(name);
        let mut command = Command::new(program);
        command.args(["-namespace", &name.namespace, "-id", &name.id, "-address", &self.address]);
        command.arg("-bundle").arg(&bundle);
        if settings.debug {
            command.arg("-debug");
        }
        command.arg(action).current_dir(&bundle);
        let (_, most) =
            getrlimit(Resource::RLIMIT_NOFILE).map_err(|errno| format!("read the limit of open files: {errno}"))?;
        sys::limit_files(&mut command, self.files.min(most), most);
        command.env("TTRPC_ADDRESS", &self.address).env(unheard::VARIABLE, self.places().unheard());
        command.env(unheard::LOG, self.places().shim_log(name));
        Ok(command)
    }
}

/// The shim beside our own binary, or on the PATH.
fn find_shim() -> Result<PathBuf, String> {
    let ours = env::current_exe().ok();
    let beside = ours.as_deref().and_then(Path::parent).map(Path::to_owned);
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = beside.into_iter().chain(env::split_paths(&path));
    let found = folders.map(|folder| folder.join(SHIM)).find(|file| file.is_absolute() && file.is_file());
    found.ok_or_else(|| {
        let beside = ours.map_or("dunnaged".into(), |path| path.display().to_string());
        format!("there is no {SHIM} beside {beside} or on the PATH: install it there, or name it by `shim` in the configuration")
    })
}

//! The events that nobody has taken yet, on disk: so that they outlive a supervised shim that is killed. The format, and
//! who reads it, is in [`unheard`].

use std::{
    env,
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::Context as _;
use libcontainer::state::Init;
use nix::unistd::getpid;
use runtime_v2_api::unheard;

/// The file of this shim. It is made with the first event.
pub(crate) struct Ledger {
    path: PathBuf,
    source: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    file: Option<File>,
    /// The last attempt to write failed, and that was said.
    failing: bool,
}

impl Ledger {
    /// The ledger of this process, if it is supervised.
    pub(crate) fn of_this_process() -> anyhow::Result<Option<Self>> {
        let Some(folder) = env::var_os(unheard::VARIABLE).filter(|folder| !folder.is_empty()) else { return Ok(None) };
        let own = Init::of(getpid()).context("read when this process was started")?;
        Ok(Some(Self::new(Path::new(&folder), unheard::source(own.pid.cast_unsigned(), own.start_time))))
    }

    pub(crate) fn new(folder: &Path, source: String) -> Self {
        Self { path: folder.join(&source), source, state: Mutex::default() }
    }

    /// The name of this shim, as it goes with each event.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes an event down. One that cannot be is sent all the same: it is lost only if we are killed before it is taken.
    pub(crate) fn write(&self, number: u64, request: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let written = self.append(&mut state.file, unheard::Record { number, request });
        match written {
            Err(error) if !state.failing => {
                log::error!(
                    "write event {number} to {}: {error}; should this shim be killed, it is lost",
                    self.path.display()
                );
                state.failing = true;
            }
            Ok(()) if state.failing => {
                log::info!("events can be written to {} again", self.path.display());
                state.failing = false;
            }
            _ => {}
        }
    }

    fn append(&self, file: &mut Option<File>, record: unheard::Record<'_>) -> io::Result<()> {
        let file = match file {
            Some(file) => file,
            None => {
                let folder = self.path.parent().unwrap_or(Path::new("/"));
                DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
                file.insert(OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?)
            }
        };
        unheard::append(file, record)
    }

    /// All events are taken.
    pub(crate) fn clear(&self) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Err(error)) = state.file.as_ref().map(|file| file.set_len(0)) {
            log::warn!("truncate {}: {error}", self.path.display());
        }
    }

    /// All events are taken, and there will be no more.
    pub(crate) fn remove(&self) {
        if self.state.lock().unwrap_or_else(PoisonError::into_inner).file.take().is_some()
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::warn!("remove {}: {error}", self.path.display());
        }
    }
}

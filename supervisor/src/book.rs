//! The address book: which containers there are, where their shims are, and what was last heard of them. On disk one small
//! file an entry (`book/disk.rs`), in memory what is needed to answer for a thousand of them.
//!
//! An entry is on disk before anything of its container is made, and leaves it after all of it is gone. Whoever reads the
//! book after a kill therefore knows of everything that there may be.

mod disk;
mod heard;

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use libcontainer::state::Init;
use protobuf::MessageField;
use runtime_v2_api::{Timestamp, forward::Envelope, supervisor as wire};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

/// A container's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Name {
    pub(crate) namespace: Box<str>,
    pub(crate) id: Box<str>,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.id)
    }
}

impl Name {
    /// A name as containerd takes it: it becomes part of paths.
    ///
    /// # Errors
    /// A text that says what is wrong with it.
    pub(crate) fn new(namespace: &str, id: &str) -> Result<Arc<Self>, String> {
        for (what, text) in [("namespace", namespace), ("container id", id)] {
            if !is_identifier(text) {
                return Err(format!(
                    "{what} {text:?} is not a name: letters and digits, joined by single '-', '_' or '.', at most {LONGEST}"
                ));
            }
        }
        Ok(Arc::new(Self { namespace: namespace.into(), id: id.into() }))
    }
}

/// containerd's bound.
const LONGEST: usize = 76;

fn is_identifier(text: &str) -> bool {
    text.len() <= LONGEST
        && text.split(['-', '_', '.']).all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric()))
}

/// How far a container has come, as it must be known after a kill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stage {
    /// Not all of it is there yet. Found so after a restart, it is undone.
    Launching,
    /// It belongs to its shim.
    Live,
    /// On its way out. Found so after a restart, this goes on.
    Removing,
    /// Its shim is gone, for this reason, and all else but the log.
    Lost(Box<str>),
}

/// A step of a launch, as it is told by `dunnage trace`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Step {
    Record,
    Bundle,
    Scratch,
    StartShim,
    Connect,
    Create,
    /// Written by another version of us.
    #[serde(other)]
    Other,
}

impl Step {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Record => "write the entry",
            Self::Bundle => "make the bundle",
            Self::Scratch => "mount the scratch space",
            Self::StartShim => "start the shim",
            Self::Connect => "connect to the shim",
            Self::Create => "create the container",
            Self::Other => "another step",
        }
    }
}

/// A step, with its begin and end in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Span(pub(crate) Step, pub(crate) u64, pub(crate) u64);

/// The end of a container's first process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    /// As a shell tells it.
    pub(crate) status: u32,
    /// In nanoseconds since 1970.
    pub(crate) at: u64,
}

/// What is known of a container. Kept small: there may be thousands, for years.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) stage: Stage,
    /// In nanoseconds since 1970; no two entries have the same.
    pub(crate) created: u64,
    /// The last event before it.
    pub(crate) after: u64,
    /// Of the shim's socket, without `unix://`.
    pub(crate) address: Box<str>,
    /// None until it is known.
    pub(crate) shim: Option<Init>,
    pub(crate) terminal: bool,
    pub(crate) stdin: bool,
    pub(crate) auto_remove: bool,
    pub(crate) labels: Box<[(Box<str>, Box<str>)]>,
    pub(crate) launch: Box<[Span]>,
    /// Of the container's first process; 0 before there is one.
    pub(crate) pid: u32,
    /// In nanoseconds since 1970; 0 before it was.
    pub(crate) started: u64,
    pub(crate) exit: Option<Exit>,
    pub(crate) oom: bool,
    /// The shim has said that it is deleted.
    pub(crate) deleted: bool,
    /// Of a container that is live and has not exited: what its shim said last. UNKNOWN after a restart.
    #[serde(skip)]
    pub(crate) phase: wire::Phase,
}

impl Entry {
    /// As clients see it.
    fn phase(&self) -> wire::Phase {
        match (&self.stage, self.exit) {
            (Stage::Launching, _) => wire::Phase::LAUNCHING,
            (Stage::Lost(_), _) => wire::Phase::LOST,
            (Stage::Live | Stage::Removing, Some(_)) => wire::Phase::STOPPED,
            (Stage::Live | Stage::Removing, None) => self.phase,
        }
    }
}

/// Where things of a container are, by its name.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// What ends with the machine's uptime.
    pub(crate) state: PathBuf,
    /// What outlives it.
    pub(crate) root: PathBuf,
}

impl Places {
    pub(crate) fn book(&self) -> PathBuf {
        self.state.join("book")
    }

    pub(crate) fn bundle(&self, name: &Name) -> PathBuf {
        self.state.join("bundles").join(&*name.namespace).join(&*name.id)
    }

    /// The log's folder.
    pub(crate) fn logs(&self, name: &Name) -> PathBuf {
        self.root.join("logs").join(&*name.namespace).join(&*name.id)
    }

    pub(crate) fn log(&self, name: &Name) -> PathBuf {
        self.logs(name).join("log")
    }

    /// What the shim has to say for itself, if it ever did; one older file may be beside it.
    pub(crate) fn shim_log(&self, name: &Name) -> PathBuf {
        self.logs(name).join("shim.log")
    }

    /// Where libcontainer keeps its states: the `Root` of the runtime options.
    pub(crate) fn runtime(&self) -> PathBuf {
        self.state.join("runtime")
    }

    /// Sockets.
    pub(crate) fn sockets(&self) -> PathBuf {
        self.state.join("s")
    }

    /// Where clients attach. The path of a socket has room for 107 bytes, which two long names would not leave.
    pub(crate) fn attach(&self, created: u64) -> PathBuf {
        self.sockets().join(format!("attach-{created:x}"))
    }

    /// Where shims keep events that were not taken yet.
    pub(crate) fn unheard(&self) -> PathBuf {
        self.state.join("unheard")
    }
}

/// What becomes of an attempt to add an entry.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddError {
    #[error("container {0} exists already")]
    Exists(Arc<Name>),
    /// There is a container of that name, whose entry was damaged.
    #[error(
        "container {0} is not in the address book, yet its bundle {path} is there, and it may still run: choose another \
         name, or end its shim and remove the bundle (`dunnage version` names the entries that could not be read)",
        path = .1.display()
    )]
    Forgotten(Arc<Name>, PathBuf),
    #[error("write the entry of container {0}: {1}")]
    Io(Arc<Name>, io::Error),
}

/// The address book. Its copies are one and the same.
#[derive(Clone)]
pub(crate) struct Book(Arc<Shared>);

struct Shared {
    places: Places,
    pages: Mutex<Pages>,
    /// Containers that end by themselves when they have exited.
    ended: mpsc::UnboundedSender<Arc<Name>>,
    /// How many shims have yet to say how their container is.
    unknown: watch::Sender<usize>,
}

struct Pages {
    entries: BTreeMap<Arc<Name>, Entry>,
    /// What could not be read.
    unreadable: Vec<String>,
    /// What could not be written or done, by container, until it could.
    troubles: BTreeMap<Arc<Name>, String>,
}

impl Book {
    /// Reads the book in the state folder.
    ///
    /// Containers with `auto_remove` go to `ended` when they have exited.
    ///
    /// # Errors
    /// When the folder cannot be made or listed.
    pub(crate) fn open(places: Places, ended: mpsc::UnboundedSender<Arc<Name>>) -> io::Result<Self> {
        let (entries, unreadable) = disk::read(&places.book())?;
        let pages = Pages { entries, unreadable, troubles: BTreeMap::new() };
        let unknown = watch::Sender::new(0);
        Ok(Self(Arc::new(Shared { places, pages: Mutex::new(pages), ended, unknown })))
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        // Nothing that runs with the lock can panic half-way through a change.
        self.0.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn places(&self) -> &Places {
        &self.0.places
    }

    /// Adds a container, on disk first. `entry` gets the time of its creation, and makes its entry with it.
    ///
    /// Refused also where a bundle has its name: with an entry, whatever is in that bundle would be taken for what the launch
    /// has made, and be ended with it should it fail or we be killed. Entries outlive their bundles, so none is ours.
    pub(crate) fn add(&self, name: &Arc<Name>, entry: impl FnOnce(u64) -> Entry) -> Result<(), AddError> {
        let mut pages = self.pages();
        if pages.entries.contains_key(name) {
            return Err(AddError::Exists(name.clone()));
        }
        let bundle = self.places().bundle(name);
        match fs::symlink_metadata(&bundle) {
            Ok(_) => return Err(AddError::Forgotten(name.clone(), bundle)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(AddError::Io(name.clone(), error)),
        }
        let latest = pages.entries.values().map(|entry| entry.created).max().unwrap_or(0);
        let entry = entry(now().max(latest + 1));
        disk::write(&self.places().book(), name, &entry).map_err(|error| AddError::Io(name.clone(), error))?;
        pages.entries.insert(name.clone(), entry);
        Ok(())
    }

    /// Changes an entry, on disk first. Not that it is gone, which is not an error here, as nobody needs the change then.
    pub(crate) fn change(&self, name: &Arc<Name>, change: impl FnOnce(&mut Entry)) -> io::Result<()> {
        let mut pages = self.pages();
        let Some(entry) = pages.entries.get_mut(name) else { return Ok(()) };
        let mut changed = entry.clone();
        change(&mut changed);
        disk::write(&self.places().book(), name, &changed)?;
        *entry = changed;
        Ok(())
    }

    /// Takes an entry out, on disk first.
    pub(crate) fn forget(&self, name: &Arc<Name>) -> io::Result<()> {
        let mut pages = self.pages();
        disk::remove(&self.places().book(), name)?;
        pages.entries.remove(name);
        pages.troubles.remove(name);
        Ok(())
    }

    /// Looks at an entry; `None` if there is no such container.
    pub(crate) fn look<T>(&self, name: &Name, look: impl FnOnce(&Entry) -> T) -> Option<T> {
        self.pages().entries.get(name).map(look)
    }

    pub(crate) fn names(&self) -> Vec<Arc<Name>> {
        self.pages().entries.keys().cloned().collect()
    }

    /// As clients see it.
    pub(crate) fn container(&self, name: &Name) -> Option<wire::Container> {
        self.look(name, |entry| self.wire(name, entry))
    }

    /// The containers of one namespace or of all, by namespace and time of creation.
    pub(crate) fn containers(&self, namespace: Option<&str>) -> Vec<wire::Container> {
        let pages = self.pages();
        let wanted = |name: &Name| namespace.is_none_or(|namespace| *name.namespace == *namespace);
        let mut entries: Vec<_> = pages.entries.iter().filter(|(name, _)| wanted(name)).collect();
        entries.sort_by_key(|(name, entry)| (&name.namespace, entry.created));
        entries.into_iter().map(|(name, entry)| self.wire(name, entry)).collect()
    }

    /// The folder of libcontainer's state.json for a container that has one.
    pub(crate) fn state_dir(&self, namespace: &str, id: &str) -> Option<PathBuf> {
        let name = Name { namespace: namespace.into(), id: id.into() };
        self.look(&name, |_| self.places().runtime().join(namespace).join(id))
    }

    /// Takes note of an event. Called once for each, in order.
    pub(crate) fn heard(&self, number: u64, envelope: &Envelope) {
        self.note(number, envelope, |_| true, false);
    }

    /// Takes note again, or at last, of an event about one of the `wanted`: of what lasts. How a container is now is asked.
    /// What was heard before changes nothing.
    pub(crate) fn heard_again(&self, number: u64, envelope: &Envelope, wanted: impl FnOnce(&Name) -> bool) {
        self.note(number, envelope, wanted, true);
    }

    fn note(&self, number: u64, envelope: &Envelope, wanted: impl FnOnce(&Name) -> bool, again: bool) {
        let Some((name, news)) = heard::read(envelope).filter(|(name, _)| wanted(name)) else { return };
        let mut pages = self.pages();
        let Some((name, entry)) = pages.entries.get_key_value(&name) else { return };
        // Of an earlier container of that name.
        if number <= entry.after {
            return;
        }
        let (name, mut changed) = (name.clone(), entry.clone());
        let ends = changed.auto_remove && matches!(news, heard::News::Exited(_));
        let lasting = news.apply(&mut changed);
        if again {
            changed.phase = entry.phase;
        }
        if lasting
            && changed != *entry
            && let Err(error) = disk::write(&self.places().book(), &name, &changed)
        {
            // It is known as long as we live, and in the journal after that.
            pages.troubles.insert(name.clone(), format!("write the entry of container {name}: {error}"));
        }
        pages.entries.insert(name.clone(), changed);
        if ends && self.0.ended.send(name).is_err() {
            log::debug!("the event loop is over: nobody removes containers that have ended");
        }
    }

    /// Takes note of what a shim answered about its container, unless an event has told more since.
    /// Not its exit: the event that tells of it is on its way, and removes what is to be removed then.
    pub(crate) fn told(&self, name: &Arc<Name>, phase: wire::Phase, pid: u32) {
        let mut pages = self.pages();
        let Some(entry) = pages.entries.get_mut(name) else { return };
        // Until the event is there it counts as running: an end without its exit code would be taken for success.
        let phase = if phase == wire::Phase::STOPPED { wire::Phase::RUNNING } else { phase };
        if entry.phase == wire::Phase::UNKNOWN {
            (entry.phase, entry.pid) = (phase, pid);
        }
    }

    /// Takes note of what a shim has done for a client. It tells us of that by an event too, but that comes after its answer, and
    /// the client's next call is not to find the container as it was.
    pub(crate) fn became(&self, name: &Arc<Name>, phase: wire::Phase) {
        let mut pages = self.pages();
        let Some(entry) = pages.entries.get_mut(name) else { return };
        if entry.phase == wire::Phase::CREATED {
            entry.started = now();
        }
        entry.phase = phase;
    }

    /// Waits until every shim has said how its container is, or has let pass the time it had.
    pub(crate) async fn all_known(&self) {
        // Cannot fail: we hold the sender.
        drop(self.0.unknown.subscribe().wait_for(|unknown| *unknown == 0).await);
    }

    /// Waits until this container's shim has said how it is, or has let pass the time it had.
    pub(crate) async fn known(&self, name: &Name) {
        let mut changes = self.0.unknown.subscribe();
        let known = |unknown: &usize| {
            *unknown == 0 || self.look(name, |entry| entry.phase() != wire::Phase::UNKNOWN).unwrap_or(true)
        };
        drop(changes.wait_for(known).await);
    }

    /// Counts shims that have yet to say how their container is.
    pub(crate) fn ask(&self, more: usize) {
        self.0.unknown.send_modify(|unknown| *unknown += more);
    }

    /// One of them has, or will not.
    pub(crate) fn answered(&self) {
        self.0.unknown.send_modify(|unknown| *unknown -= 1);
    }

    /// What could not be done for a container, until it could.
    pub(crate) fn trouble(&self, name: &Arc<Name>, trouble: Option<String>) {
        let mut pages = self.pages();
        match trouble {
            Some(text) => {
                log::warn!("{text}");
                pages.troubles.insert(name.clone(), text);
            }
            None => drop(pages.troubles.remove(name)),
        }
    }

    /// What an operator should know.
    pub(crate) fn troubles(&self) -> Vec<String> {
        let pages = self.pages();
        pages.unreadable.iter().chain(pages.troubles.values()).cloned().collect()
    }

    fn wire(&self, name: &Name, entry: &Entry) -> wire::Container {
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let lost = matches!(entry.stage, Stage::Lost(_));
        let spans = entry.launch.iter().map(|&Span(step, begin, end)| wire::Span {
            name: step.text().to_owned(),
            begin,
            end,
            ..Default::default()
        });
        wire::Container {
            namespace: name.namespace.to_string(),
            id: name.id.to_string(),
            phase: entry.phase().into(),
            pid: if entry.exit.is_some() { 0 } else { entry.pid },
            shim_pid: entry.shim.filter(|_| !lost).map_or(0, |shim| shim.pid.cast_unsigned()),
            address: format!("unix://{}", entry.address),
            bundle: path(&self.places().bundle(name)),
            log: path(&self.places().log(name)),
            attach: path(&self.places().attach(entry.created)),
            terminal: entry.terminal,
            stdin: entry.stdin,
            auto_remove: entry.auto_remove,
            created_at: timestamp(entry.created),
            started_at: timestamp(entry.started),
            exited_at: timestamp(entry.exit.map_or(0, |exit| exit.at)),
            exit_status: entry.exit.map_or(0, |exit| exit.status),
            oom_killed: entry.oom,
            reason: if let Stage::Lost(reason) = &entry.stage { reason.to_string() } else { String::new() },
            labels: entry.labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            launch: spans.collect(),
            ..Default::default()
        }
    }
}

/// Now, in nanoseconds since 1970.
pub(crate) fn now() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Enough until the year 2554.
    u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX)
}

/// A time in nanoseconds as it goes over the wire; 0 is none.
pub(crate) fn timestamp(nanos: u64) -> MessageField<Timestamp> {
    let since_1970 = Duration::from_nanos(nanos);
    let time = (nanos != 0).then(|| Timestamp {
        seconds: since_1970.as_secs().cast_signed(),
        nanos: since_1970.subsec_nanos().cast_signed(),
        ..Timestamp::default()
    });
    MessageField::from_option(time)
}

/// A time from the wire in nanoseconds; what is before 1970 is none.
pub(crate) fn nanos(time: &Timestamp) -> u64 {
    let seconds = u64::try_from(time.seconds).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.nanos).unwrap_or(0))
}

#[cfg(test)]
mod tests;

//! What is remembered of a container from one command to the next: `state.json` in a folder of its own.
//!
//! The file is replaced whole or not at all, so a command that is killed leaves the old state or the new one. What can
//! be asked of the kernel (does it run, is it paused, was it started) is not recorded, because a record could be wrong.

use crate::cgroup;
use crate::hooks::Moment;
use crate::plan::{self, Request};
use crate::sys::process::pidfd_open;
use crate::sys::{Call, Failed, io_failed};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use oci_spec::runtime as oci;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const FILE: &str = "state.json";
const NEW_FILE: &str = "state.json.new";

/// What is known of a container for its whole life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The container's name.
    pub id: String,
    /// Its bundle, absolute.
    pub bundle: PathBuf,
    /// Its root directory, absolute.
    pub rootfs: PathBuf,
    /// When it was created, as RFC 3339 in UTC.
    pub created: String,
    /// The spec's annotations.
    #[serde(default, skip_serializing_if = "HashMap::is_empty")]
    pub annotations: HashMap<String, String>,
    /// It was made without `pivot_root(2)`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_pivot: bool,
    /// It was left in the runtime's session keyring.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_new_keyring: bool,
    /// Its first process; none before that exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<Init>,
    /// Still on the way to its gate.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub creating: bool,
    /// Its cgroup. Until there is an `init` it is the one that will be made, and may belong to somebody else.
    pub cgroup: cgroup::Saved,
    /// The hooks to run once it is deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub poststop: Vec<oci::Hook>,
}

impl State {
    /// What is known before the container exists. Its cgroup may turn out to be in use by another, which is why nothing
    /// is done to a cgroup that is recorded without a first process, except to remove it when it is empty.
    ///
    /// # Errors
    /// When `linux.cgroupsPath` names no cgroup of its own.
    pub fn planned(spec: &oci::Spec, layout: &cgroup::Layout, request: Request) -> Result<State, cgroup::Problem> {
        let (path, unit) = plan::cgroup_path(spec, &request, layout)?;
        let places = path.places(layout).into_iter();
        let groups = places.map(|place| cgroup::SavedGroup { made: vec![place.dir.clone()], place }).collect();
        let poststop = spec.hooks().as_ref().map(|hooks| Moment::Poststop.of(hooks).to_vec()).unwrap_or_default();
        Ok(State {
            id: request.id,
            bundle: request.bundle,
            rootfs: request.rootfs,
            created: now(),
            annotations: spec.annotations().clone().unwrap_or_default(),
            no_pivot: request.no_pivot,
            no_new_keyring: request.no_new_keyring,
            init: None,
            creating: true,
            cgroup: cgroup::Saved { groups, unit: unit.map(|unit| unit.saved()) },
            poststop,
        })
    }
}

/// A process that can be told from any later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Init {
    /// Its number in our pid namespace.
    pub pid: i32,
    /// When it was made, in clock ticks since boot (proc_pid_stat(5), field 22).
    pub start_time: u64,
}

impl Init {
    /// Of the process `pid`, which must not be reaped meanwhile.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of(pid: Pid) -> Result<Init, Failed> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(io_failed(Call::Read))?;
        let start_time = start_time(&stat).ok_or(Failed { call: Call::Read, errno: Errno::EBADMSG })?;
        Ok(Init { pid: pid.as_raw(), start_time })
    }

    /// A pidfd for it, unless it has ended.
    ///
    /// # Errors
    /// When the kernel gives no pidfd or `/proc` is not there to tell.
    pub fn open(self) -> Result<Option<OwnedFd>, Failed> {
        let pid = Pid::from_raw(self.pid);
        // Opened first: what has the right start time afterwards had the number before, so both are the same process.
        let pidfd = match pidfd_open(pid) {
            Ok(pidfd) => pidfd,
            Err(Failed { errno: Errno::ESRCH, .. }) => return Ok(None),
            Err(failed) => return Err(failed),
        };
        match Init::of(pid) {
            Ok(now) if now == self => Ok((!has_ended(pidfd.as_fd())?).then_some(pidfd)),
            Ok(_) | Err(Failed { errno: Errno::ENOENT | Errno::ESRCH, .. }) => Ok(None),
            Err(failed) => Err(failed),
        }
    }
}

/// A zombie has ended, even if its parent does not know yet.
fn has_ended(pidfd: BorrowedFd<'_>) -> Result<bool, Failed> {
    let ready = poll(&mut [PollFd::new(pidfd, PollFlags::POLLIN)], PollTimeout::ZERO);
    Ok(ready.map_err(Call::Poll.failed())? > 0)
}

/// Field 22; the second is a name in parentheses that may hold anything, a parenthesis too.
fn start_time(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

/// What is wrong with a state or its folder.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// No folder of that name.
    #[error("container does not exist")]
    Missing,
    /// The folder is there already.
    #[error("container with given ID already exists")]
    Exists,
    /// A folder without a state: somebody was killed while making or deleting the container.
    #[error("{}: no state recorded, making or deleting it was interrupted; delete it with --force", .0.display())]
    Unfinished(PathBuf),
    /// The file is not what we wrote.
    #[error("{}: not a state of ours: {error}; delete it with --force", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        error: serde_json::Error,
    },
    /// The file system refused.
    #[error("{doing} {}: {error}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Its answer.
        error: io::Error,
    },
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    move |error| StateError::Io { doing, path: path.to_owned(), error }
}

impl State {
    /// Reads the state in the folder `dir`, whoever may be changing it.
    ///
    /// # Errors
    /// [`StateError::Missing`], [`StateError::Unfinished`] or [`StateError::Corrupt`] where callers may want to clean up.
    pub fn load(dir: &Path) -> Result<State, StateError> {
        let path = dir.join(FILE);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(if dir.exists() { StateError::Unfinished(dir.to_owned()) } else { StateError::Missing });
            }
            text => text.map_err(failed("read", &path))?,
        };
        serde_json::from_slice(&text).map_err(|error| StateError::Corrupt { path, error })
    }
}

/// A container's folder, held against every other command until this is dropped.
///
/// The lock is one of `flock(2)`: it goes with its holder, however that ends.
#[derive(Debug)]
pub struct Dir {
    path: PathBuf,
    lock: Flock<File>,
}

impl Dir {
    /// Makes the folder (and those above it), for root only.
    ///
    /// # Errors
    /// [`StateError::Exists`] when it is there, even if nothing is in it.
    pub fn create(path: &Path) -> Result<Dir, StateError> {
        let make = || DirBuilder::new().mode(0o700).create(path);
        let made = match make() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let root = path.parent().unwrap_or(path);
                DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(failed("create", root))?;
                make()
            }
            made => made,
        };
        match made {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(StateError::Exists),
            made => made.map_err(failed("create", path)).and_then(|()| Dir::lock(path)),
        }
    }

    /// Waits until no other command has the folder.
    ///
    /// # Errors
    /// [`StateError::Missing`] when it is not there, or was removed by the one we waited for.
    pub fn lock(path: &Path) -> Result<Dir, StateError> {
        let missing = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => StateError::Missing,
            _ => failed("open", path)(error),
        };
        let folder = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(path).map_err(missing)?;
        let lock = Flock::lock(folder, FlockArg::LockExclusive);
        let lock = lock.map_err(|(_, errno)| failed("lock", path)(errno.into()))?;
        // Whoever had it may have removed it, and another one of the same name may be there by now.
        let ours = lock.metadata().map_err(failed("look at", path))?;
        let named = fs::metadata(path).map_err(missing)?;
        if (ours.dev(), ours.ino()) != (named.dev(), named.ino()) {
            return Err(StateError::Missing);
        }
        Ok(Dir { path: path.to_owned(), lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder itself.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Replaces what is recorded. Not synced: after a power cut there is no container to remember.
    ///
    /// # Errors
    /// When it cannot be written; the old state is then still there.
    pub fn save(&self, state: &State) -> Result<(), StateError> {
        let (new, file) = (self.path.join(NEW_FILE), self.path.join(FILE));
        let text = serde_json::to_vec(state).map_err(|error| failed("write", &new)(error.into()))?;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let written = options.open(&new).and_then(|mut file| file.write_all(&text));
        written.map_err(failed("write", &new))?;
        fs::rename(&new, &file).map_err(failed("rename to", &file))
    }

    /// Removes the folder with all that is in it, the state last: what is left of an interrupted removal still says
    /// what it was.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn remove(self) -> Result<(), StateError> {
        for entry in fs::read_dir(&self.path).map_err(failed("list", &self.path))? {
            let entry = entry.map_err(failed("list", &self.path))?;
            if entry.file_name() != FILE {
                fs::remove_file(entry.path()).map_err(failed("remove", &entry.path()))?;
            }
        }
        match fs::remove_file(self.path.join(FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(failed("remove", &self.path.join(FILE))),
        }?;
        fs::remove_dir(&self.path).map_err(failed("remove", &self.path))
    }
}

/// This moment as RFC 3339 in UTC, with nanoseconds.
pub fn now() -> String {
    // A clock before 1970 is wrong anyway; the time recorded is for people to read.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    rfc3339(since.as_secs(), since.subsec_nanos())
}

fn rfc3339(seconds: u64, nanos: u32) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Counted from 1 March of year 0, so that the leap day is a year's last; 146,097 days are 400 years.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + next;
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn state() -> State {
        State {
            id: "web-1".into(),
            bundle: "/bundle".into(),
            rootfs: "/bundle/rootfs".into(),
            created: now(),
            annotations: HashMap::from([("key".into(), "value".into())]),
            no_pivot: true,
            no_new_keyring: false,
            init: Some(Init { pid: 42, start_time: 4711 }),
            creating: true,
            cgroup: cgroup::Saved::default(),
            poststop: Vec::new(),
        }
    }

    #[test]
    fn a_state_is_read_as_it_was_saved() {
        let folder = tempfile::tempdir().unwrap();
        let dir = Dir::create(&folder.path().join("root/web-1")).unwrap();
        dir.save(&state()).unwrap();
        let saved = State::load(dir.path()).unwrap();
        assert_eq!(saved, State { created: saved.created.clone(), ..state() });
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_folder_is_made_once_and_gone_with_all_that_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web-1");
        assert!(matches!(State::load(&path), Err(StateError::Missing)));
        let dir = Dir::create(&path).unwrap();
        assert!(matches!(Dir::create(&path), Err(StateError::Exists)));
        assert!(matches!(State::load(&path), Err(StateError::Unfinished(_))));
        dir.save(&state()).unwrap();
        fs::write(path.join(NEW_FILE), "left by a killed command").unwrap();
        dir.remove().unwrap();
        assert!(matches!(Dir::lock(&path), Err(StateError::Missing)));
    }

    #[test]
    fn a_broken_file_is_named_with_what_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        for broken in ["", "{", "[]", r#"{"id":7}"#, r#"{"id":"x","bundle":"/"}"#] {
            fs::write(folder.path().join(FILE), broken).unwrap();
            let error = State::load(folder.path()).unwrap_err();
            assert!(matches!(error, StateError::Corrupt { .. }) && error.to_string().contains(FILE), "{error}");
        }
    }

    #[test]
    fn a_process_is_known_until_it_has_ended_even_unreaped() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let init = Init::of(Pid::from_raw(child.id() as i32)).unwrap();
        let pidfd = init.open().unwrap().expect("it runs");
        assert!(
            Init { start_time: init.start_time + 1, ..init }.open().unwrap().is_none(),
            "an older process's number"
        );
        child.kill().unwrap();
        poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
        assert!(init.open().unwrap().is_none(), "a zombie");
        child.wait().unwrap();
        assert!(init.open().unwrap().is_none(), "nothing at all");
    }

    #[test]
    fn a_name_with_parentheses_does_not_hide_the_start_time() {
        let numbers = (3..=52).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(start_time(&format!("7 (a) R 1 (b)) {numbers}")), Some(22));
        assert_eq!(start_time("7 (sh"), None);
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(rfc3339(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(rfc3339(951_782_400 + 86_399, 5), "2000-02-29T23:59:59.000000005Z");
        assert_eq!(rfc3339(1_709_251_199, 999_999_999), "2024-02-29T23:59:59.999999999Z");
        assert_eq!(rfc3339(4_107_542_400, 0), "2100-03-01T00:00:00.000000000Z");
    }
}

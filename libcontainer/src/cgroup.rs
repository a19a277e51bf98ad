//! One container's cgroup: made, limited, entered, read, frozen, killed and removed, with one face for v1, v2 and hybrid.
//!
//! What happens here is decided in two pure steps ([`CgroupPath::places`], [`Limits::compile`]) and done by [`Cgroup`].
//! Nothing here waits: what takes the kernel a while (freezing, the last process going away) hands the caller
//! something to poll.
//!
//! What is missing in `cgroups-rs` 0.5, the crate hidden behind this module, and therefore written here: it panics when
//! a mount or a file vanishes, opens every file by its path with several checks, has no way to enter a cgroup but a
//! pid written to `cgroup.procs` (see [`Entry`] for what that costs), no v2 freezer that says when it is done, no
//! `cgroup.kill`, no v2 device filter, no OOM notice without a thread, and parses `max` as an error. We use it for what
//! it knows about the machine: how the hugetlb controller names its files.

use std::borrow::Cow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{UnlinkatFlags, unlinkat, write};
use serde::{Deserialize, Serialize};

mod devices;
mod dir;
mod freeze;
mod layout;
mod limits;
mod make;
mod oom;
mod path;
pub mod stats;
pub mod systemd;

use dir::Dir;
pub use freeze::{EventState, Events, FreezerState, Freezing};
pub use layout::{Hierarchies, Hierarchy, Layout, LayoutError};
pub use limits::{Limits, Problem, Write};
pub use oom::{Hit, MemoryFacts, OomWatch};
pub use path::{CgroupPath, Place};

/// A container's cgroup, held open.
///
/// One from [`Cgroup::create`] is a guard: dropped, it removes the directories it made. [`Cgroup::keep`] ends that.
#[derive(Debug)]
pub struct Cgroup {
    groups: Vec<Group>,
    guard: bool,
    /// systemd made it.
    unit: Option<systemd::SavedUnit>,
    /// How often the memory limits above had been hit when it was made.
    above: Vec<oom::HitsAbove>,
}

/// What to remember of a cgroup to [open](Cgroup::open) it again, in this process or in another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// One for each hierarchy.
    pub groups: Vec<SavedGroup>,
    /// The unit it is, where systemd made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<systemd::SavedUnit>,
}

/// One directory of a [`Saved`] cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedGroup {
    /// Where it is.
    #[serde(flatten)]
    pub place: Place,
    /// The directories that did not exist before: the container's own and perhaps some above it, topmost first.
    pub made: Vec<PathBuf>,
}

#[derive(Debug)]
struct Group {
    place: Place,
    made: Vec<PathBuf>,
    /// `None` once the directory is gone, and for a saved one that was removed behind our back.
    dir: Option<Dir>,
    /// v2: the controllers that could not be handed down to it when it was made.
    withheld: Vec<Withheld>,
}

/// A controller that a cgroup above does not hand down.
#[derive(Debug)]
struct Withheld {
    controller: String,
    /// The cgroup above.
    level: PathBuf,
    errno: Errno,
}

/// What went wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A process is in the way of creating: another container has the same `cgroupsPath`.
    #[error(
        "create cgroup {}: it exists and holds {processes} process(es): \
         another container uses this path; choose another linux.cgroupsPath", dir.display()
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// How many processes are in it.
        processes: usize,
    },
    /// The cgroup exists and is frozen: nothing put into it would ever run.
    #[error("create cgroup {}: it exists and is frozen; thaw or remove it", dir.display())]
    Frozen {
        /// The directory.
        dir: PathBuf,
    },
    /// v2: only threads of processes that live elsewhere could enter it.
    #[error(
        "create cgroup {}: a cgroup above it is threaded (cgroup.type), and takes threads but no containers; \
         choose a linux.cgroupsPath elsewhere", dir.display()
    )]
    Threaded {
        /// The directory.
        dir: PathBuf,
    },
    /// Processes are still dying: [`Cgroup::remove`] again after [`Cgroup::events`] stirred or, where there is none (v1
    /// has no such notice), after a millisecond or two.
    #[error("remove cgroup {}: processes are still in it", dir.display())]
    Busy {
        /// The directory.
        dir: PathBuf,
    },
    /// The kernel refused a limit.
    #[error("{field}: write {value:?} to {}: {errno}{hint}", file.display())]
    Limit {
        /// The field of the OCI configuration.
        field: String,
        /// What was written.
        value: String,
        /// The cgroup file.
        file: PathBuf,
        /// The kernel's answer.
        errno: Errno,
        /// What to do, if we know: starts with a colon.
        hint: Cow<'static, str>,
    },
    /// The freezer did not settle; the cgroup was thawed again.
    #[error("freeze cgroup {}: still FREEZING after {tries} looks; thawed it again", dir.display())]
    NeverFroze {
        /// The directory.
        dir: PathBuf,
        /// How often we looked.
        tries: u32,
    },
    /// The cgroup has no such controller, so the request cannot be done.
    #[error("{doing}: the container has no {controller} cgroup")]
    NoController {
        /// What was to be done.
        doing: &'static str,
        /// The controller.
        controller: &'static str,
    },
    /// A system call failed.
    #[error("{doing} {}: {errno}{hint}", path.display())]
    Call {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// The kernel's answer.
        errno: Errno,
        /// What to do, if we know: starts with a colon.
        hint: &'static str,
    },
}

fn failed(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(Errno) -> CgroupError {
    move |errno| {
        let hint = match errno {
            Errno::EROFS => ": the cgroup file system is mounted read-only; mount it read-write",
            Errno::EACCES | Errno::EPERM => ": run as root, or have this subtree delegated to you",
            Errno::ENOSPC => ": the limit on the number of cgroups is reached (cgroup.max.descendants)",
            _ => "",
        };
        CgroupError::Call { doing, path: path.as_ref().to_owned(), errno, hint }
    }
}

impl CgroupError {
    /// The directory is not ours to change.
    fn is_refusal(&self) -> bool {
        matches!(self, CgroupError::Call { errno: Errno::EACCES | Errno::EPERM | Errno::EROFS, .. })
    }
}

impl Cgroup {
    /// Makes the directories, opens them and writes the limits.
    ///
    /// A directory that is already there (a crashed runtime leaves such) is refused if something lives in it, on every
    /// version: two containers in one cgroup could neither be limited nor killed apart. runc still only warns on v1. An
    /// empty one is made anew.
    ///
    /// # Errors
    /// Whatever was made is removed again.
    pub fn create(path: &CgroupPath, limits: &Limits, layout: &Layout) -> Result<Cgroup, CgroupError> {
        let mut cgroup = Cgroup { groups: Vec::new(), guard: true, unit: None, above: Vec::new() };
        for place in path.places(layout) {
            // Pushed before it is made, so that the guard knows of a half-made one.
            cgroup.groups.push(Group { place, made: Vec::new(), dir: None, withheld: Vec::new() });
            match cgroup.groups.last_mut().map(|group| group.make(limits)) {
                // A user whom no cgroups were delegated to goes without, but not without a limit that was asked for.
                Some(Err(error)) if layout.user_namespace && limits.writes().is_empty() && error.is_refusal() => {
                    drop(cgroup.groups.pop());
                }
                Some(made) => made?,
                None => {}
            }
        }
        cgroup.apply(limits)?;
        cgroup.note_hits_above();
        Ok(cgroup)
    }

    /// Opens a cgroup from what [`Cgroup::saved`] gave. Directories that are gone are no error: there is then nothing
    /// to freeze, to kill or to remove in them.
    ///
    /// # Errors
    /// When a directory is there but cannot be opened.
    pub fn open(saved: Saved) -> Result<Cgroup, CgroupError> {
        let mut groups = Vec::with_capacity(saved.groups.len());
        for SavedGroup { place, made } in saved.groups {
            let dir = match Dir::open(&place.dir) {
                Ok(dir) => Some(dir),
                Err(Errno::ENOENT) => None,
                Err(errno) => return Err(failed("open cgroup", &place.dir)(errno)),
            };
            groups.push(Group { place, made, dir, withheld: Vec::new() });
        }
        Ok(Cgroup { groups, guard: false, unit: saved.unit, above: Vec::new() })
    }

    /// Hands the directories over: from now on only [`Cgroup::remove`] removes them.
    pub fn keep(&mut self) {
        self.guard = false;
    }

    /// What to write to state.json.
    pub fn saved(&self) -> Saved {
        let groups = self.groups.iter();
        let groups = groups.map(|g| SavedGroup { place: g.place.clone(), made: g.made.clone() }).collect();
        Saved { groups, unit: self.unit.clone() }
    }

    /// The directories, in the order of [`CgroupPath::places`].
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        self.groups.iter().map(|group| &group.place)
    }

    /// It has no directory in any hierarchy, as for a user whom none was delegated to: nothing in it can be found by it.
    pub fn is_nowhere(&self) -> bool {
        self.groups.is_empty()
    }

    /// Opens the way in for a new process.
    ///
    /// # Errors
    /// When the cgroup is gone or we run out of descriptors.
    pub fn entry(&self) -> Result<Entry, CgroupError> {
        self.entry_or(|_| None)
    }

    /// `elsewhere` is the cgroup to enter in a hierarchy of v1 from which our own is gone.
    fn entry_or(&self, elsewhere: impl Fn(&Place) -> Option<PathBuf>) -> Result<Entry, CgroupError> {
        let mut entry = Entry { v2: None, tasks: Vec::new() };
        for group in &self.groups {
            let gone = || failed("enter cgroup", &group.place.dir)(Errno::ENOENT);
            let dir = group.dir.as_ref().ok_or_else(gone)?;
            if group.place.v2 {
                let fd = dir.as_fd().try_clone_to_owned();
                let errno = |e: std::io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EMFILE));
                entry.v2 = Some(fd.map_err(errno).map_err(failed("enter cgroup", &group.place.dir))?);
            } else {
                let mut place = &group.place.dir;
                let mut file = dir.open_file("tasks", OFlag::O_WRONLY);
                let other = if matches!(file, Err(Errno::ENOENT)) { elsewhere(&group.place) } else { None };
                if let Some(other) = &other {
                    log::warn!("{} is gone: its processes were moved to {}", place.display(), other.display());
                    (place, file) = (other, Dir::open(other).and_then(|dir| dir.open_file("tasks", OFlag::O_WRONLY)));
                }
                entry.tasks.push(file.map_err(failed("open tasks of cgroup", place))?);
            }
        }
        Ok(entry)
    }

    /// Opens the way in for one more process of a running container. On v2 that is where its init is now: an init that
    /// arranges cgroups of its own (systemd) moves down into one, after which the kernel takes no process (EBUSY) into
    /// those above. An init that is gone or elsewhere leaves the container's own directory. On v1 it is where the init is
    /// if the container's directory is gone: the host's systemd moves processes out of cgroups that it did not make and
    /// removes them when it begins to use their controller, and runc leaves such a hierarchy out.
    ///
    /// # Errors
    /// As [`Cgroup::entry`].
    pub fn entry_beside(&self, init: nix::unistd::Pid) -> Result<Entry, CgroupError> {
        let Ok(text) = std::fs::read_to_string(format!("/proc/{init}/cgroup")) else { return self.entry() };
        let mut entry = self.entry_or(|place| Some(place.mount.join(systemd::position(&text, place)?)))?;
        let Some(group) = self.groups.iter().find(|group| group.place.v2) else { return Ok(entry) };
        let Some(path) = text.lines().find_map(|line| line.strip_prefix("0::/")) else { return Ok(entry) };
        let dir = group.place.mount.join(path);
        // `..` in it: the init is outside of what our cgroup namespace shows.
        let plain = dir.components().all(|component| component != std::path::Component::ParentDir);
        if plain && dir != group.place.dir && dir.starts_with(&group.place.dir) {
            match Dir::open(&dir) {
                Ok(below) => entry.v2 = Some(below.into()),
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(failed("enter cgroup", dir)(errno)),
            }
        }
        Ok(entry)
    }

    /// Removes the cgroup and all those that the container made below it. A directory that is already gone counts as
    /// removed; so [`CgroupError::Busy`] can be followed by another call. Directories above the container's own are
    /// removed if this container made them and nothing else is in them.
    ///
    /// # Errors
    /// [`CgroupError::Busy`] while a process is in it. Every hierarchy is tried before an error is returned.
    pub fn remove(&mut self) -> Result<(), CgroupError> {
        let mut result = Ok(());
        for group in &mut self.groups {
            result = result.and(group.remove());
        }
        if result.is_ok() {
            self.guard = false;
        }
        result
    }

    fn with(&self, controller: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.place.controllers.iter().any(|name| name == controller))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if !self.guard {
            return;
        }
        for group in &mut self.groups {
            // What was there before us stays. Without its own directory there is nothing of ours below it either.
            if group.made.last() == Some(&group.place.dir) {
                if let Err(error) = group.remove() {
                    log::warn!("{error}");
                }
            } else {
                group.remove_parents();
            }
        }
    }
}

impl Group {
    fn remove(&mut self) -> Result<(), CgroupError> {
        let path = &self.place.dir;
        let mut removed = remove_dir(path);
        if matches!(removed, Err(Errno::EBUSY | Errno::ENOTEMPTY))
            && let Some(dir) = &self.dir
        {
            removed = match remove_children(dir) {
                // systemd removes a scope with its last process; should it only have been one below, it is still not empty.
                Ok(()) | Err(Errno::ENOENT | Errno::ENODEV) => remove_dir(path),
                failed => failed,
            };
        }
        match removed {
            Ok(()) => {}
            Err(Errno::EBUSY | Errno::ENOTEMPTY) => return Err(CgroupError::Busy { dir: path.clone() }),
            Err(errno) => return Err(failed("remove cgroup", path)(errno)),
        }
        self.dir = None;
        if self.made.last() == Some(path) {
            self.made.pop();
        }
        self.remove_parents();
        Ok(())
    }

    /// Removes the directories we made above the container's own, as long as nobody else is in them.
    fn remove_parents(&mut self) {
        while let Some(parent) = self.made.pop() {
            match remove_dir(&parent) {
                Ok(()) => {}
                Err(Errno::EBUSY | Errno::ENOTEMPTY) => break,
                Err(errno) => log::debug!("remove cgroup {}: {errno}", parent.display()),
            }
        }
    }
}

fn remove_dir(path: &Path) -> Result<(), Errno> {
    match unlinkat(nix::fcntl::AT_FDCWD, path, UnlinkatFlags::RemoveDir) {
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

/// Removes all cgroups below, deepest first. A container may nest them deeper than a path can be long and than we have
/// descriptors: this holds the names on the way and one descriptor, and climbs back by `..`, which is safe where
/// directories cannot be moved to another parent.
fn remove_children(top: &Dir) -> Result<(), Errno> {
    let mut here = top.open_below(".")?;
    let mut levels = vec![here.children()?];
    while let Some(names) = levels.last_mut() {
        let Some(name) = names.last() else {
            levels.pop();
            if let Some(names) = levels.last_mut() {
                here = here.open_below("..")?;
                // Emptied now; if it still cannot be removed, a process is in it.
                if let Some(name) = names.pop() {
                    remove_below(&here, &name)?;
                }
            }
            continue;
        };
        match remove_below(&here, name) {
            Ok(()) => drop(names.pop()),
            Err(Errno::EBUSY | Errno::ENOTEMPTY) => {
                here = here.open_below(name.as_c_str())?;
                let below = here.children()?;
                levels.push(below);
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn remove_below(dir: &Dir, name: &std::ffi::CStr) -> Result<(), Errno> {
    match unlinkat(dir, name, UnlinkatFlags::RemoveDir) {
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

/// The way into a cgroup, opened before the child exists.
///
/// v2 (and the v2 directory of a hybrid machine): the child is born there, by `CLONE_INTO_CGROUP` with
/// [`Entry::clone_into`]. v1: the child writes `0` to each hierarchy's `tasks` file itself, by [`Entry::enter_v1`].
/// The kernel moves a single thread that asks for itself without `cgroup_threadgroup_rwsem`; for a pid written to
/// `cgroup.procs` it takes that lock for writing, which waits for an RCU grace period. Measured over nine hierarchies on
/// an otherwise idle system (Linux 6.18, median of 60): 0.1 ms by `tasks`, 7.6 to 11.7 ms by `cgroup.procs` or a pid.
#[derive(Debug)]
pub struct Entry {
    v2: Option<OwnedFd>,
    tasks: Vec<OwnedFd>,
}

impl Entry {
    /// The directory for `clone_args.cgroup` (clone3(2), Linux 5.7), if there is a v2 one.
    pub fn clone_into(&self) -> Option<BorrowedFd<'_>> {
        self.v2.as_ref().map(AsFd::as_fd)
    }

    /// Puts the calling thread into the v1 cgroups; called by the child while it has one thread. Does nothing on v2.
    ///
    /// # Errors
    /// The index of the hierarchy (as in [`Cgroup::places`]) and the errno: EAGAIN is a pids limit, ENOSPC a cpuset
    /// without CPUs, EINVAL a realtime thread in a cgroup without realtime budget.
    pub fn enter_v1(&self) -> Result<(), (usize, Errno)> {
        for (index, tasks) in self.tasks.iter().enumerate() {
            write(tasks, b"0").map_err(|errno| (index, errno))?;
        }
        Ok(())
    }

    /// Every descriptor in here; all are close-on-exec.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.v2.iter().chain(&self.tasks).map(AsFd::as_fd)
    }
}

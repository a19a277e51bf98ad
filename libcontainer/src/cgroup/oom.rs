//! Notice of the kernel killing for lack of memory.

use std::fmt::{self, Display, Formatter};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::uio::pread;

use super::dir::Dir;
use super::path::Place;
use super::{Cgroup, CgroupError, failed};

/// A watch over one cgroup's out-of-memory kills. Poll it, [read](OomWatch::read) it when it stirs, and read it once more
/// when the container's init has exited and before the cgroup is removed: a kill may be counted just after its notice.
///
/// v1: an eventfd, to poll for reading (`EPOLLIN`). v2: the `memory.events` file itself, to poll for `EPOLLPRI` (see
/// [`super::Events`] for why it is not inotify); [`OomWatch::by_priority`] says which.
#[derive(Debug)]
pub struct OomWatch {
    /// v1 only.
    notices: Option<EventFd>,
    /// v1: `memory.oom_control`; v2: `memory.events`. Both have a line `oom_kill <count>`.
    counter: OwnedFd,
    /// Kills counted before the watch began.
    before: u64,
    noticed: u64,
    reported: u64,
    above: Vec<HitsAbove>,
    vanishing: Option<Vanishing>,
}

/// How a kill is known in a cgroup that is gone before its count could be read. systemd removes that of a unit as soon as
/// its last process is dead, and a notice of the kernel's may come 10 ms late (it gives no two within that time). What is
/// left is the count of the cgroup above.
#[derive(Debug)]
struct Vanishing {
    /// `memory.events` of the cgroup above.
    counter: OwnedFd,
    /// Kills there, when the count here was last read.
    before: u64,
    /// Kills here, then.
    here: u64,
}

impl Vanishing {
    fn above(place: &Place) -> Option<Vanishing> {
        let dir = Dir::open(place.dir.parent()?).ok()?;
        let counter = dir.open_file("memory.events", OFlag::O_RDONLY).ok()?;
        let before = kills(&counter).ok()??;
        Some(Vanishing { counter, before, here: 0 })
    }

    /// Remembers how it is now, while the count here can still be read: `above` was read before it.
    fn look(&mut self, above: Option<u64>, here: u64) {
        // What is new here is new above, and may not have been counted there yet.
        self.before = above.unwrap_or(self.before).max(self.before + (here - self.here.min(here)));
        self.here = here;
    }

    /// Whether a process was killed since, here or in a cgroup beside.
    fn has_killed(&self) -> Result<bool, Errno> {
        Ok(kills(&self.counter)?.is_some_and(|kills| kills > self.before))
    }
}

/// A cgroup above, and how often its own memory limit had been hit.
#[derive(Debug)]
pub(super) struct HitsAbove {
    dir: PathBuf,
    hits: u64,
}

impl Cgroup {
    /// Begins to watch; `None` where there is no memory controller.
    ///
    /// # Errors
    /// When the kernel refuses the watch.
    pub fn oom_watch(&self) -> Result<Option<OomWatch>, CgroupError> {
        let Some(group) = self.with("memory") else { return Ok(None) };
        let Some(dir) = &group.dir else { return Ok(None) };
        let doing = "watch for out-of-memory kills in";
        let failed = |errno| failed(doing, &group.place.dir)(errno);
        let file = if group.place.v2 { "memory.events" } else { "memory.oom_control" };
        let counter = match dir.open_file(file, OFlag::O_RDONLY) {
            Err(Errno::ENOENT) if group.place.v2 => return Ok(None), // the controller did not reach this level
            other => other.map_err(failed)?,
        };
        let notices = match group.place.v2 {
            true => None,
            false => {
                let notices = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
                let notices = notices.map_err(failed)?;
                let pair = format!("{} {}", notices.as_fd().as_raw_fd(), counter.as_raw_fd());
                dir.write("cgroup.event_control", &pair).map_err(failed)?;
                Some(notices)
            }
        };
        let before = kills(&counter).map_err(failed)?.unwrap_or(0);
        let above = if group.place.v2 { hits_above(&group.place) } else { Vec::new() };
        let vanishing = self.unit.as_ref().filter(|_| group.place.v2).and_then(|_| Vanishing::above(&group.place));
        Ok(Some(OomWatch { notices, counter, before, noticed: 0, reported: 0, above, vanishing }))
    }

    /// What the memory controller can say when a container has died of it since it was made; `None` where there is none. Of
    /// one that was [opened](Cgroup::open) again, a limit above that had been hit before counts as well.
    pub fn memory_facts(&self) -> Option<MemoryFacts> {
        self.facts(&self.above)
    }

    /// Notes how often the limits above had been hit when this container was made.
    pub(super) fn note_hits_above(&mut self) {
        self.above =
            self.with("memory").filter(|group| group.place.v2).map(|g| hits_above(&g.place)).unwrap_or_default();
    }

    fn facts(&self, before: &[HitsAbove]) -> Option<MemoryFacts> {
        let group = self.with("memory")?;
        let dir = group.dir.as_ref()?;
        let [limit, peak, events] = match group.place.v2 {
            true => ["memory.max", "memory.peak", "memory.events"],
            false => ["memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control"],
        };
        let buffer = &mut Vec::new();
        let mut number = |file| dir.read(file, buffer).ok()?.trim().parse::<u64>().ok();
        // v1 has no word for "no limit" but the largest multiple of the page size.
        let limit = number(limit).filter(|&limit| limit < 1 << 62);
        let peak = number(peak);
        let risen = || {
            let former = |now: &HitsAbove| before.iter().find(|then| then.dir == now.dir).map_or(0, |then| then.hits);
            hits_above(&group.place).into_iter().find(|now| now.hits > former(now)).map(|now| Hit::Above(now.dir))
        };
        let Ok(events) = dir.read(events, buffer) else {
            // systemd has removed it, with all that it could say of itself.
            let hit = if group.place.v2 { risen() } else { None };
            return hit.map(|hit| MemoryFacts { limit: None, peak: None, kills: 0, hit: Some(hit) });
        };
        let kills = count_of("oom_kill", events).unwrap_or(0);
        let hit = (group.place.v2 && kills > 0).then(|| match count_of("oom", events) {
            Some(1..) => Hit::Own,
            _ => risen().unwrap_or(Hit::Machine),
        });
        Some(MemoryFacts { limit, peak, kills, hit })
    }
}

impl OomWatch {
    /// How many kills there were since the last call (or since the watch began).
    ///
    /// v1 gives its notice just before it kills and counts only kills in this very cgroup, not in those below; v2 counts
    /// both. So on v1 a notice stands for a kill that is not counted yet or not here, and is not reported twice.
    ///
    /// # Errors
    /// When the kernel's count cannot be read. A removed cgroup is no error: nothing new happened in it.
    pub fn read(&mut self) -> Result<u64, Errno> {
        let notices = match self.notices.as_ref().map(EventFd::read) {
            None | Some(Err(Errno::EAGAIN)) => 0,
            Some(result) => result?,
        };
        self.noticed += notices;
        // First above: a kill between the two looks must not be taken for an older one.
        let above = self.vanishing.as_ref().map(|above| kills(&above.counter)).transpose()?.flatten();
        let total = match kills(&self.counter)? {
            Some(kills) => {
                self.vanishing.iter_mut().for_each(|vanishing| vanishing.look(above, kills));
                self.noticed.max(kills.saturating_sub(self.before))
            }
            // Removal stirs the watch, too; the count is then gone.
            None => return Ok(0),
        };
        let new = total - self.reported;
        self.reported = total;
        Ok(new)
    }

    /// The same at the end of the container, whose init died of a SIGKILL that nobody is known to have sent. Where the
    /// count went with the cgroup, a kill that was counted above since the last look is taken for this one.
    ///
    /// # Errors
    /// As [`OomWatch::read`].
    pub fn read_last(&mut self) -> Result<u64, Errno> {
        let new = self.read()?;
        match &self.vanishing {
            Some(above) if new == 0 && kills(&self.counter)?.is_none() => Ok(above.has_killed()?.into()),
            _ => Ok(new),
        }
    }

    /// The cgroup is gone: there will be no more, and what polls the watch would be woken for ever.
    pub fn is_over(&self) -> bool {
        matches!(kills(&self.counter), Ok(None))
    }

    /// What there is to say about the kills since the watch began; `cgroup` is the watched one.
    pub fn facts(&self, cgroup: &Cgroup) -> Option<MemoryFacts> {
        cgroup.facts(&self.above)
    }

    /// Whether to poll for `EPOLLPRI` (v2) rather than `EPOLLIN` (v1).
    pub fn by_priority(&self) -> bool {
        self.notices.is_none()
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notices.as_ref().map_or(self.counter.as_fd(), AsFd::as_fd)
    }
}

/// The count in an open file; `None` when its cgroup is gone.
fn kills(file: &OwnedFd) -> Result<Option<u64>, Errno> {
    let mut buffer = [0; 512];
    match pread(file, &mut buffer, 0) {
        Ok(count) => {
            let kills = count_of("oom_kill", &String::from_utf8_lossy(&buffer[..count]));
            Ok(kills.or(Some(0 /* v1 before Linux 4.13 */)))
        }
        Err(Errno::ENODEV) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn count_of(key: &str, events: &str) -> Option<u64> {
    events.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?.parse().ok()
}

/// The cgroups above that have a memory controller, the nearest first. A hit is counted by the cgroup whose limit it is
/// (`memory.events.local`, Linux 5.2) and by all above it; a kill by the cgroup of the victim and all above it.
fn hits_above(place: &Place) -> Vec<HitsAbove> {
    let above = place.dir.ancestors().skip(1).take_while(|dir| dir.starts_with(&place.mount));
    let hits = |dir: &Path| {
        let events = Dir::open(dir).ok()?;
        let hits = count_of("oom", events.read("memory.events.local", &mut Vec::new()).ok()?)?;
        Some(HitsAbove { dir: dir.to_owned(), hits })
    };
    above.filter_map(hits).collect()
}

/// The memory controller's account, for the message about a container that died of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryFacts {
    /// The limit in bytes, if there is one.
    pub limit: Option<u64>,
    /// The most that was ever in use, in bytes (v2: Linux 5.19).
    pub peak: Option<u64>,
    /// How many processes the kernel killed for it; 0 where the count went with the cgroup, and only `hit` is known.
    pub kills: u64,
    /// What they were killed for. v1 does not tell.
    pub hit: Option<Hit>,
}

/// What was short when the kernel killed for memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hit {
    /// The container's own limit, or that of a cgroup it made inside.
    Own,
    /// The limit of this cgroup above.
    Above(PathBuf),
    /// The machine's memory, or a limit above what we can see.
    Machine,
}

impl Display for MemoryFacts {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let (0, Some(Hit::Above(dir))) = (self.kills, &self.hit) {
            return write!(f, "killed for the memory limit of {}; its own numbers went with its cgroup", dir.display());
        }
        match self.limit {
            Some(limit) => write!(f, "memory limit {limit} bytes")?,
            None => f.write_str("no memory limit")?,
        }
        if let Some(peak) = self.peak {
            write!(f, ", at most {peak} in use")?;
        }
        write!(f, ", {} out-of-memory kill(s)", self.kills)?;
        match &self.hit {
            Some(Hit::Above(dir)) => write!(f, " for the memory limit of {}", dir.display()),
            Some(Hit::Machine) => f.write_str(" for lack of memory in the machine"),
            Some(Hit::Own) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found_in_both_forms() {
        assert_eq!(count_of("oom_kill", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), Some(3));
        let v2 = "low 0\nhigh 0\nmax 9\noom 4\noom_kill 2\noom_group_kill 0\n";
        assert_eq!((count_of("oom_kill", v2), count_of("oom", v2)), (Some(2), Some(4)));
        assert_eq!(count_of("oom_kill", "oom_kill_disable 0\nunder_oom 0\n"), None);
    }

    #[test]
    fn a_kill_in_a_cgroup_that_vanished_is_seen_above_it() {
        let above = tempfile::tempdir().unwrap();
        let file = above.path().join("memory.events");
        let count = |kills: u32| std::fs::write(&file, format!("oom_kill {kills}\n")).unwrap();
        count(3);
        let place = Place { v2: true, controllers: vec![], mount: "/".into(), dir: above.path().join("x.scope") };
        let mut here = Vanishing::above(&place).unwrap();
        assert!(!here.has_killed().unwrap());
        count(4);
        assert!(here.has_killed().unwrap());
        here.look(Some(4), 0);
        assert!(!here.has_killed().unwrap(), "that was before the last look");
        count(5);
        here.look(Some(4), 1);
        assert!(!here.has_killed().unwrap(), "that one was counted here");
    }

    /// A cgroup of v2 made of files.
    fn of_memory(mount: &Path, dir: &Path) -> Cgroup {
        let place = Place { v2: true, controllers: vec!["memory".into()], mount: mount.into(), dir: dir.into() };
        let group = super::super::Group { made: vec![], dir: Some(Dir::open(dir).unwrap()), place, withheld: vec![] };
        Cgroup { groups: vec![group], guard: false, unit: None, above: vec![] }
    }

    #[test]
    fn the_limit_above_is_named_when_the_cgroup_has_vanished() {
        let mount = tempfile::tempdir().unwrap();
        let slice = mount.path().join("x.slice");
        let dir = slice.join("x.scope");
        std::fs::create_dir_all(&dir).unwrap();
        let hits = |hits: u32| std::fs::write(slice.join("memory.events.local"), format!("oom {hits}\n")).unwrap();
        hits(2);
        let mut cgroup = of_memory(mount.path(), &dir);
        cgroup.note_hits_above();
        std::fs::remove_dir(&dir).unwrap();
        assert_eq!(cgroup.memory_facts(), None, "that was another one's");
        hits(3);
        let facts = cgroup.memory_facts().unwrap();
        assert_eq!(facts.hit, Some(Hit::Above(slice.clone())));
        let text = format!("killed for the memory limit of {}; its own numbers went with its cgroup", slice.display());
        assert_eq!(facts.to_string(), text);
    }

    #[test]
    fn a_limit_above_that_was_hit_before_is_not_blamed() {
        let mount = tempfile::tempdir().unwrap();
        let dir = mount.path().join("c");
        std::fs::create_dir(&dir).unwrap();
        let hits =
            |hits: u32| std::fs::write(mount.path().join("memory.events.local"), format!("oom {hits}\n")).unwrap();
        hits(1);
        std::fs::write(dir.join("memory.events"), "oom 0\noom_kill 1\n").unwrap();
        let mut cgroup = of_memory(mount.path(), &dir);
        cgroup.note_hits_above();
        assert_eq!(cgroup.memory_facts().unwrap().hit, Some(Hit::Machine));
        hits(2);
        assert_eq!(cgroup.memory_facts().unwrap().hit, Some(Hit::Above(mount.path().into())));
    }

    #[test]
    fn facts_read_as_a_sentence() {
        let facts = MemoryFacts { limit: Some(524_288), peak: Some(524_288), kills: 1, hit: Some(Hit::Own) };
        assert_eq!(facts.to_string(), "memory limit 524288 bytes, at most 524288 in use, 1 out-of-memory kill(s)");
        let above =
            MemoryFacts { limit: None, peak: None, kills: 2, hit: Some(Hit::Above("/sys/fs/cgroup/pod".into())) };
        let text = "no memory limit, 2 out-of-memory kill(s) for the memory limit of /sys/fs/cgroup/pod";
        assert_eq!(above.to_string(), text);
        let none = MemoryFacts { limit: None, peak: None, kills: 0, hit: None };
        assert_eq!(none.to_string(), "no memory limit, 0 out-of-memory kill(s)");
    }
}

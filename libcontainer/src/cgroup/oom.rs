//! Notice of the kernel killing for lack of memory.

use std::fmt::{self, Display, Formatter};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::uio::pread;

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
        Ok(Some(OomWatch { notices, counter, before, noticed: 0, reported: 0 }))
    }

    /// What the memory controller can say when a container has died of it; `None` where there is none.
    pub fn memory_facts(&self) -> Option<MemoryFacts> {
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
        let kills = dir.read(events, buffer).ok().and_then(kills_in).unwrap_or(0);
        Some(MemoryFacts { limit, peak, kills })
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
        // Removal stirs the watch, too; the count is then gone.
        let Some(kills) = kills(&self.counter)? else { return Ok(0) };
        self.noticed += notices;
        let total = self.noticed.max(kills.saturating_sub(self.before));
        let new = total - self.reported;
        self.reported = total;
        Ok(new)
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
        Ok(count) => Ok(kills_in(&String::from_utf8_lossy(&buffer[..count])).or(Some(0 /* v1 before Linux 4.13 */))),
        Err(Errno::ENODEV) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn kills_in(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.parse().ok()
}

/// The memory controller's account, for the message about a container that died of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryFacts {
    /// The limit in bytes, if there is one.
    pub limit: Option<u64>,
    /// The most that was ever in use, in bytes (v2: Linux 5.19).
    pub peak: Option<u64>,
    /// How many processes the kernel killed for it.
    pub kills: u64,
}

impl Display for MemoryFacts {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.limit {
            Some(limit) => write!(f, "memory limit {limit} bytes")?,
            None => f.write_str("no memory limit")?,
        }
        if let Some(peak) = self.peak {
            write!(f, ", at most {peak} in use")?;
        }
        write!(f, ", {} out-of-memory kill(s)", self.kills)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found_in_both_forms() {
        assert_eq!(kills_in("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), Some(3));
        assert_eq!(kills_in("low 0\nhigh 0\nmax 9\noom 4\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(kills_in("oom_kill_disable 0\nunder_oom 0\n"), None);
    }

    #[test]
    fn facts_read_as_a_sentence() {
        let facts = MemoryFacts { limit: Some(524_288), peak: Some(524_288), kills: 1 };
        assert_eq!(facts.to_string(), "memory limit 524288 bytes, at most 524288 in use, 1 out-of-memory kill(s)");
        let none = MemoryFacts { limit: None, peak: None, kills: 0 };
        assert_eq!(none.to_string(), "no memory limit, 0 out-of-memory kill(s)");
    }
}

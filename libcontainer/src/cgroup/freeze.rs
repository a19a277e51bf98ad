//! The processes inside: who they are, stopping them, ending them. Nothing here waits.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::uio::pread;
use nix::unistd::Pid;

use super::dir::Dir;
use super::{Cgroup, CgroupError, Group, failed};

/// What the freezer is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreezerState {
    /// Processes run.
    Thawed,
    /// Asked to freeze; some process still runs.
    Freezing,
    /// All are stopped.
    Frozen,
}

/// A freeze that has begun. The kernel needs a moment until the last process stands still; ask again with
/// [`Freezing::poll`], on v2 and hybrid when [`Cgroup::events`] stirs, on v1 (which has no notice) every millisecond or so.
#[derive(Debug)]
pub struct Freezing {
    looks: u32,
}

/// The `cgroup.events` file: poll it for `POLLPRI` (`EPOLLPRI`), read it, poll again.
///
/// A kernfs file is polled rather than watched by inotify because each inotify instance counts against a limit of 128 a
/// user, which a thousand shims would exceed.
#[derive(Debug)]
pub struct Events(OwnedFd);

/// What `cgroup.events` says of a cgroup and all below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventState {
    /// A process is in it. (A removed cgroup has none.)
    pub populated: bool,
    /// All of them are frozen.
    pub frozen: bool,
}

/// Where to freeze.
enum Freezer<'a> {
    V1(&'a Group, &'a Dir),
    V2(&'a Group, &'a Dir),
}

impl Cgroup {
    /// Every process inside and in the cgroups below, by its number in our pid namespace; those that have none there
    /// are left out.
    ///
    /// # Errors
    /// When a file cannot be read. A cgroup that is gone is empty.
    pub fn pids(&self) -> Result<Vec<Pid>, CgroupError> {
        // All hierarchies hold the same processes. The v1 freezer's is the one nobody inside has reason to rearrange.
        let open = |group: &&Group| group.dir.is_some();
        let v1 = self.groups.iter().filter(open).find(|group| !group.place.v2);
        let group = self.with("freezer").filter(open).or(v1).or(self.groups.iter().find(open));
        match group {
            Some(Group { place, dir: Some(dir), .. }) => pids(dir).map_err(failed("list the processes of", &place.dir)),
            _ => Ok(Vec::new()),
        }
    }

    /// Asks the kernel to stop every process inside.
    ///
    /// A hybrid machine's v2 freezer is used where there is one: unlike v1's it cannot get stuck halfway, and a frozen
    /// process can be killed.
    ///
    /// # Errors
    /// When there is no freezer or it refuses.
    pub fn freeze(&self) -> Result<Freezing, CgroupError> {
        self.freezer("freeze the container")?.set(true)?;
        Ok(Freezing { looks: 0 })
    }

    /// Lets them run again.
    ///
    /// # Errors
    /// As [`Cgroup::freeze`].
    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.freezer("thaw the container")?.set(false)
    }

    /// What the freezer is doing now. A cgroup that is gone is not frozen.
    ///
    /// # Errors
    /// As [`Cgroup::freeze`].
    pub fn freezer_state(&self) -> Result<FreezerState, CgroupError> {
        match self.freezer("look at the freezer of the container")?.state() {
            Err(CgroupError::Call { errno: Errno::ENOENT | Errno::ENODEV, .. }) => Ok(FreezerState::Thawed),
            found => found,
        }
    }

    /// The notices of the v2 directory, if there is one and the kernel gives them.
    ///
    /// # Errors
    /// When the file is there but cannot be opened.
    pub fn events(&self) -> Result<Option<Events>, CgroupError> {
        let Some((group, dir)) = self.v2() else { return Ok(None) };
        match dir.open_file("cgroup.events", OFlag::O_RDONLY) {
            Ok(fd) => Ok(Some(Events(fd))),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(failed("open cgroup.events of", &group.place.dir)(errno)),
        }
    }

    /// Kills everything inside, frozen or not, without waiting until it is dead.
    ///
    /// Complete on v2 and hybrid since Linux 5.14 (`cgroup.kill`). Elsewhere processes are stopped, signalled and let
    /// go; one that forks faster than that is followed for sixteen rounds, so call again if the cgroup stays populated.
    ///
    /// # Errors
    /// When the processes cannot be listed or the kernel refuses.
    pub fn kill(&self) -> Result<(), CgroupError> {
        if let Some((group, dir)) = self.v2() {
            match dir.write("cgroup.kill", "1") {
                // A process put into the v1 cgroups alone, by someone's hand, is the list's to find.
                Ok(()) if self.groups.iter().all(|group| group.place.v2) => return Ok(()),
                Ok(()) => return self.signal_each(Signal::SIGKILL),
                Err(Errno::ENOENT | Errno::ENODEV | Errno::EOPNOTSUPP) => {}
                Err(errno) => return Err(failed("kill all processes of", &group.place.dir)(errno)),
            }
        }
        let stopped = self.freezer("stop the container to kill it").and_then(|freezer| freezer.set(true));
        let signalled = self.signal_each(Signal::SIGKILL);
        // Frozen v1 processes die when they are thawed. Without a freezer the rounds alone must do.
        match stopped {
            Ok(()) => signalled.and(self.thaw()),
            Err(_) => signalled,
        }
    }

    /// Sends a signal to every process inside, each once. They are stopped meanwhile, so that no number can pass to a
    /// stranger between reading and using it; a container that was frozen stays so (and gets the signal when thawed).
    ///
    /// # Errors
    /// As [`Cgroup::kill`].
    pub fn signal_all(&self, signal: Signal) -> Result<(), CgroupError> {
        if signal == Signal::SIGKILL {
            return self.kill();
        }
        let freezer = self.freezer("stop the container to signal it").ok();
        let stop = match &freezer {
            Some(freezer) => freezer.state()? == FreezerState::Thawed,
            None => false,
        };
        if let (true, Some(freezer)) = (stop, &freezer) {
            freezer.set(true)?;
        }
        let signalled = self.signal_each(signal);
        match (stop, &freezer) {
            (true, Some(freezer)) => signalled.and(freezer.set(false)),
            _ => signalled,
        }
    }

    fn signal_each(&self, signal: Signal) -> Result<(), CgroupError> {
        let (me, mut seen) = (Pid::this(), Vec::new());
        for _ in 0..16 {
            let before = seen.len();
            for pid in self.pids()? {
                if pid == me || seen.contains(&pid) {
                    continue;
                }
                seen.push(pid);
                match kill(pid, signal) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(errno) => return Err(failed("signal a process of", &self.groups[0].place.dir)(errno)),
                }
            }
            if seen.len() == before {
                break;
            }
        }
        Ok(())
    }

    fn v2(&self) -> Option<(&Group, &Dir)> {
        self.groups.iter().find(|group| group.place.v2).and_then(|group| Some((group, group.dir.as_ref()?)))
    }

    fn freezer(&self, doing: &'static str) -> Result<Freezer<'_>, CgroupError> {
        // cgroup.freeze: Linux 5.2.
        if let Some((group, dir)) = self.v2().filter(|(_, dir)| dir.has("cgroup.freeze")) {
            return Ok(Freezer::V2(group, dir));
        }
        let v1 = self.with("freezer").filter(|group| !group.place.v2);
        match v1.and_then(|group| Some((group, group.dir.as_ref()?))) {
            Some((group, dir)) => Ok(Freezer::V1(group, dir)),
            None => Err(CgroupError::NoController { doing, controller: "freezer" }),
        }
    }
}

impl Freezing {
    /// Looks again. A v1 freezer can stay at FREEZING for ever while processes fork or wait on each other; letting them
    /// go for a moment, every 25th look, gets it past that.
    ///
    /// # Errors
    /// [`CgroupError::NeverFroze`] after a thousand looks; the cgroup is then thawed.
    pub fn poll(&mut self, cgroup: &Cgroup) -> Result<FreezerState, CgroupError> {
        let freezer = cgroup.freezer("look at the freezer of the container")?;
        let state = freezer.state()?;
        if state == FreezerState::Frozen {
            return Ok(state);
        }
        self.looks += 1;
        if self.looks >= 1000 {
            freezer.set(false)?;
            let (Freezer::V1(group, _) | Freezer::V2(group, _)) = freezer;
            return Err(CgroupError::NeverFroze { dir: group.place.dir.clone(), tries: self.looks });
        }
        if let Freezer::V1(..) = freezer {
            if self.looks.is_multiple_of(25) {
                freezer.set(false)?;
            }
            freezer.set(true)?;
        }
        Ok(state)
    }
}

impl Freezer<'_> {
    fn set(&self, frozen: bool) -> Result<(), CgroupError> {
        let (group, result) = match self {
            Freezer::V1(group, dir) => (group, dir.write("freezer.state", if frozen { "FROZEN" } else { "THAWED" })),
            Freezer::V2(group, dir) => (group, dir.write("cgroup.freeze", if frozen { "1" } else { "0" })),
        };
        result.map_err(failed(if frozen { "freeze" } else { "thaw" }, &group.place.dir))
    }

    fn state(&self) -> Result<FreezerState, CgroupError> {
        let (Freezer::V1(group, dir) | Freezer::V2(group, dir)) = self;
        let failed = |errno| failed("read the freezer of", &group.place.dir)(errno);
        let buffer = &mut Vec::new();
        match self {
            Freezer::V1(..) => Ok(match dir.read("freezer.state", buffer).map_err(failed)?.trim() {
                "FROZEN" => FreezerState::Frozen,
                "FREEZING" => FreezerState::Freezing,
                _ => FreezerState::Thawed,
            }),
            Freezer::V2(..) => {
                let events = dir.read("cgroup.events", buffer).map_err(failed)?;
                if EventState::parse(events).frozen {
                    return Ok(FreezerState::Frozen);
                }
                let asked = dir.read("cgroup.freeze", buffer).map_err(failed)?;
                Ok(if asked.trim() == "1" { FreezerState::Freezing } else { FreezerState::Thawed })
            }
        }
    }
}

impl Events {
    /// What holds now; arms the next notice.
    ///
    /// # Errors
    /// When the file cannot be read. A removed cgroup is no error: it is not populated.
    pub fn read(&self) -> Result<EventState, Errno> {
        let mut buffer = [0; 256];
        match pread(&self.0, &mut buffer, 0) {
            Ok(count) => Ok(EventState::parse(&String::from_utf8_lossy(&buffer[..count]))),
            Err(Errno::ENODEV) => Ok(EventState { populated: false, frozen: false }),
            Err(errno) => Err(errno),
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl EventState {
    fn parse(text: &str) -> EventState {
        let has = |line: &str| text.lines().any(|other| other == line);
        EventState { populated: has("populated 1"), frozen: has("frozen 1") }
    }
}

fn pids(top: &Dir) -> Result<Vec<Pid>, Errno> {
    let (mut pids, mut buffer) = (Vec::new(), Vec::new());
    top.walk(&mut |dir| {
        match dir.read("cgroup.procs", &mut buffer) {
            // 0 is a process that our pid namespace cannot see; as an argument of kill(2) it would be ourselves.
            Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|&pid| pid > 0)),
            // Removed meanwhile; or a threaded cgroup, whose processes are listed in the one above.
            Err(Errno::ENOENT | Errno::ENODEV | Errno::EOPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
        Ok(())
    })?;
    // The v1 list may name a process twice.
    pids.sort_unstable();
    pids.dedup();
    Ok(pids.into_iter().map(Pid::from_raw).collect())
}

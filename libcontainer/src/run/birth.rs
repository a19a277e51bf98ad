//! A process is born: what the runtime does before there is one, and the clone.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{Pid, Uid};

use super::{Cause, Fds, Into, Io, Launch, RunError, Timeline, child};
use crate::cgroup::{self, Cgroup, CgroupError};
use crate::hooks;
use crate::host::Host;
use crate::plan::{Entry, Plan};
use crate::step::{Chore, ClonedInto, Step, clone_child};
use crate::sys::process::{Cloned, block_signals, exit_now, namespace_kind, pidfd_pid, restore_signals};
use crate::sys::{Call, Failed, io_failed};

impl Launch {
    /// Carries out what comes before the child, and makes the child.
    ///
    /// # Errors
    /// The first step that failed. Everything made before it is gone again.
    pub fn begin(plan: Plan, io: Io, into: Into<'_>) -> Result<Launch, RunError> {
        let whole = |failed| plan.error(None, failed);
        one_thread(&plan)?;
        let timeline = Timeline::new(plan.entries.len()).map_err(whole)?;
        let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
        let (ours, theirs) = pair.map_err(Call::Socketpair.failed()).map_err(whole)?;
        let mut fds = Fds::new(theirs, plan.state.clone());
        fds.preserved = plan.preserve_fds;
        if plan.entries.iter().any(|entry| matches!(entry, Entry::Child(Step::Hook(_)))) {
            fds.hook_stderr = Some(hooks::stderr().map_err(whole)?);
        }
        let hook_stderr = fds.hook_stderr.as_ref().map(fs::File::try_clone).transpose();
        let hook_stderr = hook_stderr.map_err(io_failed(Call::Dup)).map_err(whole)?;
        if let Io::Fds { stdin, stdout, stderr } = io {
            for (place, fd) in fds.stdio.iter_mut().zip([stdin, stdout, stderr]) {
                *place = Some(above_stdio(fd).map_err(whole)?);
            }
        }
        let mut running = None;
        let gated = matches!(&into, Into::New { gate: Some(_), .. });
        let host = match into {
            Into::New { host, gate } => {
                fds.gate = gate;
                Some(host)
            }
            Into::Running { cgroup, init } => {
                let init = fds.container.insert(init);
                let beside = Beside { cgroup, init: pidfd_pid(init.as_fd()).map_err(whole)? };
                fds.cgroup = Some(beside.entry().map_err(|error| plan.error(None, error))?);
                running = Some(beside);
                None
            }
        };
        let mut cgroup = None;
        for (at, entry) in plan.entries.iter().enumerate() {
            let error = |cause: Cause| plan.error(Some(at), cause);
            match entry {
                Entry::Before(chore) => {
                    timeline.begin(at);
                    before(chore, host, &mut fds, &mut cgroup).map_err(error)?;
                    timeline.end(at);
                }
                Entry::Clone(clone) => {
                    timeline.begin(at);
                    let (pid, pidfd) = make_child(&plan, clone, fds, running.as_ref(), &timeline).map_err(error)?;
                    timeline.end(at);
                    let forks = plan.entries.iter().any(|entry| matches!(entry, Entry::Child(Step::Fork(_))));
                    return Ok(Launch {
                        at: at + 1,
                        forks,
                        cgroup,
                        hook_stderr,
                        gated,
                        ..Launch::of(plan, pid, pidfd, ours, timeline)
                    });
                }
                Entry::Parent(_) | Entry::Child(_) | Entry::Both(_) => {}
            }
        }
        Err(whole(Failed { call: Call::Clone3, errno: Errno::EINVAL }))
    }
}

/// A child of a process with threads could deadlock on a lock that a thread held: refuse.
fn one_thread(plan: &Plan) -> Result<(), RunError> {
    // The link count of the directory is two, and one for each thread (proc(5)).
    let threads = fs::metadata("/proc/self/task").map_err(io_failed(Call::Statx)).map_err(|f| plan.error(None, f))?;
    match threads.nlink().saturating_sub(2) {
        1 => Ok(()),
        threads => Err(plan.error(None, Cause::Threads(threads))),
    }
}

/// Descriptors below 3 would be in the way when the child arranges its own.
fn above_stdio(fd: OwnedFd) -> Result<OwnedFd, Failed> {
    if fd.as_raw_fd() > 2 { Ok(fd) } else { crate::sys::process::dup_above(fd.as_fd(), 3) }
}

/// What the runtime does before the child exists.
fn before(chore: &Chore, host: Option<&Host>, fds: &mut Fds, made: &mut Option<Cgroup>) -> Result<(), Cause> {
    // The path could name anything, a FIFO too: nothing here waits.
    let read = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    match chore {
        Chore::OpenNamespace { kind, flag, path, change } => {
            let fd = nix::fcntl::open(path, read, Mode::empty()).map_err(Call::Open.failed())?;
            match namespace_kind(fd.as_fd()) {
                Ok(kind) if kind == flag.bits() => {}
                // ENOTTY: no namespace at all.
                Ok(_) | Err(Failed { errno: Errno::ENOTTY, .. }) => {
                    return Err(Failed { call: Call::Setns, errno: Errno::EINVAL }.into());
                }
                Err(failed) => return Err(failed.into()),
            }
            let own = fs::metadata(format!("/proc/self/ns/{kind}")).map_err(io_failed(Call::Statx))?;
            if *change && fstat(&fd).map_err(Call::Fstat.failed())?.st_ino == own.ino() {
                return Err(Failed { call: Call::HostRule, errno: Errno::EPERM }.into());
            }
            fds.namespaces.push((*flag, fd));
        }
        Chore::Mount(mount) => mount.run(fds)?,
        Chore::Cgroup { path, limits } => {
            if let Some(host) = host {
                let cgroup = made.insert(Cgroup::create(path, limits, &host.cgroups)?);
                fds.cgroup = Some(cgroup.entry()?);
            }
        }
        Chore::DelegateCgroup(uid) => made.iter().try_for_each(|cgroup| cgroup.delegate(Uid::from_raw(*uid)))?,
        Chore::Unit { .. } | Chore::IdMaps { .. } | Chore::OomScoreAdj(_) | Chore::Rlimits(_) | Chore::Hook(_) => {}
    }
    Ok(())
}

/// The way into a container that runs.
struct Beside<'a> {
    cgroup: &'a Cgroup,
    init: Pid,
}

impl Beside<'_> {
    fn entry(&self) -> Result<cgroup::Entry, CgroupError> {
        self.cgroup.entry_beside(self.init)
    }
}

/// How often we look again where an init went that moved between our look and the birth of a process beside it. It does
/// so a few times in its life, when it starts and arranges its cgroups; nobody is told when.
const LOOKS: u32 = 8;

/// Makes the child, which never returns from here.
fn make_child(
    plan: &Plan,
    clone: &crate::step::Clone,
    mut fds: Fds,
    running: Option<&Beside<'_>>,
    timeline: &Timeline,
) -> Result<(Pid, OwnedFd), Cause> {
    // The child resets every handler before it unblocks them: ours would answer for the runtime.
    let mask = block_signals()?;
    let mut looks = 0;
    let cloned = loop {
        let into = ClonedInto {
            cgroup: fds.cgroup.as_ref().and_then(cgroup::Entry::clone_into),
            container: fds.container.as_ref().map(AsFd::as_fd),
        };
        match (clone_child(clone, &into, &fds), running) {
            // The cgroup hands controllers down now, and takes no process any more; or it is gone.
            (Err(Failed { errno: Errno::EBUSY | Errno::ENODEV, .. }), Some(beside)) if looks < LOOKS => {
                looks += 1;
                match beside.entry() {
                    Ok(entry) => fds.cgroup = Some(entry),
                    Err(error) => break Err(error.into()),
                }
            }
            (cloned, _) => break cloned.map_err(Cause::from),
        }
    };
    if matches!(cloned, Ok(Cloned::Child)) {
        child::live(plan, fds, timeline);
    }
    restore_signals(&mask)?;
    match cloned? {
        Cloned::Parent(pid, pidfd) => Ok((pid, pidfd)),
        Cloned::Child => exit_now(1), // it went another way above
    }
}

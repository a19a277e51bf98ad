//! The child's birth and its way into namespaces and cgroups.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid, setsid};

use super::{Clone, PidNamespace};
use crate::hooks::{Hook, Moment};
use crate::plan::CLONE_NEWTIME;
use crate::run::{Fds, Message};
use crate::sys::process::{CloneOptions, Cloned, clone3, close_range, exit_now, prctl, reset_signal, unblock_signals};
use crate::sys::{Call, Failed, io_failed};

/// What the child is born into besides new namespaces.
pub(crate) struct ClonedInto<'a> {
    /// cgroup v2 directory.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// A pidfd of the running container's init, for [`PidNamespace::Container`].
    pub(crate) container: Option<BorrowedFd<'a>>,
}

/// `clone3`, with what only a parent can arrange: a pid namespace to be born in and a time namespace with offsets.
///
/// Both change "for my children" settings of this process, which are put back before anything else happens. When
/// that fails, our later children would be born in the container: the caller must not go on.
pub(crate) fn clone_child(clone: &Clone, into: &ClonedInto<'_>, fds: &Fds) -> Result<Cloned, Failed> {
    let pid = match clone.pid {
        PidNamespace::ByFlags => None,
        PidNamespace::Opened => fds.namespace(CloneFlags::CLONE_NEWPID),
        PidNamespace::Container => into.container,
    };
    // The ways back first: nothing may fail between a change and its undoing.
    let mut restore = Vec::new();
    if pid.is_some() {
        restore.push((open_own("/proc/self/ns/pid")?, CloneFlags::CLONE_NEWPID));
    }
    if !clone.time_offsets.is_empty() {
        restore.push((open_own("/proc/self/ns/time")?, CLONE_NEWTIME));
    }
    if let Some(namespace) = pid {
        setns(namespace, CloneFlags::CLONE_NEWPID).map_err(Call::Setns.failed())?;
    }
    let cloned =
        unshare_time(clone).and_then(|()| clone3(&CloneOptions { flags: flags(clone.flags), cgroup: into.cgroup }));
    if matches!(cloned, Ok(Cloned::Child)) {
        return cloned;
    }
    for (namespace, flag) in restore {
        setns(namespace, flag).map_err(Call::Setns.failed())?;
    }
    cloned
}

fn flags(flags: CloneFlags) -> u64 {
    u64::from(flags.bits().cast_unsigned())
}

fn open_own(path: &str) -> Result<OwnedFd, Failed> {
    Ok(fs::File::open(path).map_err(io_failed(Call::Open))?.into())
}

/// A time namespace for our children, with its offsets: they cannot be written once somebody lives in it.
fn unshare_time(clone: &Clone) -> Result<(), Failed> {
    if clone.time_offsets.is_empty() {
        return Ok(());
    }
    nix::sched::unshare(CLONE_NEWTIME).map_err(Call::Unshare.failed())?;
    let lines = clone.time_offsets.iter().map(|o| format!("{} {} {}\n", o.clock, o.seconds, o.nanoseconds));
    fs::write("/proc/self/timens_offsets", lines.collect::<String>()).map_err(io_failed(Call::Write))
}

/// Nothing of the runtime's stays: no debugger may attach to this copy of it, no handler, no mask, no
/// descriptor.
pub(super) fn isolate(ignored_signals: u64, fds: &Fds) -> Result<(), Failed> {
    prctl(libc::PR_SET_DUMPABLE, [0; 4])?;
    // CLONE_CLEAR_SIGHAND has reset the handlers, but what is ignored stays ignored: Rust's SIGPIPE, for one.
    for signal in (1..=64).filter(|signal| ignored_signals & (1 << (signal - 1)) != 0) {
        reset_signal(signal)?;
    }
    unblock_signals()?;
    // The runtime's own could be anything. What is made on the way has the modes the plan says, and 0022 is what runc
    // leaves a process for which the spec says nothing.
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    let mut first = 3;
    for kept in fds.kept() {
        let kept = kept as u32;
        if kept > first {
            close_range(first, kept - 1, 0)?;
        }
        first = kept + 1;
    }
    close_range(first, u32::MAX, 0)
}

pub(super) fn enter_cgroups(fds: &mut Fds) -> Result<(), Failed> {
    match fds.cgroup.take() {
        Some(entry) => entry.enter_v1().map_err(|(_, errno)| Failed { call: Call::Write, errno }),
        None => Ok(()),
    }
}

pub(super) fn join(flag: CloneFlags, fds: &mut Fds) -> Result<(), Failed> {
    let namespace = fds.take_namespace(flag)?;
    setns(namespace, flag).map_err(Call::Setns.failed())
}

/// By the pidfd of its init: all kinds at once, or none. Linux 5.8.
pub(super) fn join_container(flags: CloneFlags, fds: &mut Fds) -> Result<(), Failed> {
    let init = Fds::have(fds.container.take())?;
    setns(init, flags).map_err(Call::Setns.failed())
}

/// Goes on in a copy that is born in new namespaces and is the runtime's own child (`CLONE_PARENT`). The copy tells
/// the runtime by the pid it has there.
pub(super) fn fork(new: CloneFlags, fds: &mut Fds) -> Result<(), Failed> {
    let parent = flags(new) | libc::CLONE_PARENT as u64;
    match clone3(&CloneOptions { flags: parent, cgroup: None })? {
        Cloned::Child => Ok(()),
        Cloned::Parent(pid, pidfd) => {
            let told = Message::Forked(pid.as_raw()).send(fds.wire.as_fd(), Some(pidfd.as_fd()));
            exit_now(i32::from(told.is_err()))
        }
    }
}

pub(super) fn become_root() -> Result<(), Failed> {
    let (root, wheel) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(wheel, wheel, wheel).map_err(Call::Setgid.failed())?;
    setresuid(root, root, root).map_err(Call::Setuid.failed())?;
    // A change of ids resets this to fs.suid_dumpable (prctl(2)).
    prctl(libc::PR_SET_DUMPABLE, [0; 4])?;
    match setgroups(&[]) {
        // Where the maps were written without privilege, groups may not be dropped, and nobody gained any.
        Ok(()) | Err(nix::errno::Errno::EPERM) => Ok(()),
        Err(errno) => Err(Failed { call: Call::Setgroups, errno }),
    }
}

pub(super) fn cgroup_namespace() -> Result<(), Failed> {
    nix::sched::unshare(CloneFlags::CLONE_NEWCGROUP).map_err(Call::Unshare.failed())
}

pub(super) fn session() -> Result<(), Failed> {
    setsid().map_err(Call::Setsid.failed())?;
    Ok(())
}

pub(super) fn loopback_up() -> Result<(), Failed> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
    let socket = socket.map_err(Call::Socket.failed())?;
    crate::sys::process::loopback_up(socket.as_fd())
}

/// The child may wait: it has nothing else to do.
pub(super) fn hook(hook: &Hook, fds: &mut Fds) -> Result<(), Failed> {
    // createContainer hooks are found by the runtime's paths, and run where its own hooks do: in the bundle.
    let bundle = (hook.moment() == Moment::CreateContainer).then(|| fds.state.bundle());
    let state = fds.state.json(hook.moment());
    crate::hooks::run_in_child(hook, bundle.as_deref(), &state, Fds::have(fds.hook_stderr.as_ref())?)
}

/// Writes the id maps of `pid`'s user namespace.
pub(crate) fn map_ids(pid: Pid, uids: &str, gids: &str, deny_setgroups: bool) -> Result<(), Failed> {
    let write = |name: &str, text: &str| fs::write(format!("/proc/{pid}/{name}"), text).map_err(io_failed(Call::Write));
    if deny_setgroups {
        write("setgroups", "deny")?;
    }
    write("uid_map", uids)?;
    write("gid_map", gids)
}

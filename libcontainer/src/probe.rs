//! Asks the kernel for what containers need by calling it, where the call changes nothing. A version number says little
//! of a kernel with backports, and nothing of a seccomp filter or a security module that stands around us.
//!
//! For reports about a machine. Making a container asks nothing beforehand: it does, and tells what the kernel answered.
//! Only for a process with one thread, because some questions are asked by a child.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Gid, Uid, getegid, geteuid, getpid, mkdir, setresgid, setresuid};

use crate::plan::KINDS;
use crate::sys::mount::{MountAttr, clone_tree, fsopen, idmap, mount_setattr};
use crate::sys::process::{
    CloneOptions, Cloned, clone3, close_range, exit_now, pidfd_getfd, pidfd_open, pidfd_send_signal,
};
use crate::sys::{self, Call, Failed, userns};

/// What the kernel answered: `ENOSYS` or `EINVAL` where it does not have the thing, `EPERM` where we may not have it.
pub type Answer = Result<(), Failed>;

/// A system call, or a flag of one, that making containers is built on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SystemCall {
    /// As in the man pages.
    pub name: &'static str,
    /// The Linux it came with.
    pub since: &'static str,
    /// What the kernel answered to a call that does nothing.
    pub answer: Answer,
}

/// The system calls newer than Linux 5.0 that a container is made with; one of a family stands for all of it.
pub fn system_calls() -> Vec<SystemCall> {
    let answers: [(_, _, fn() -> Answer); 8] = [
        ("fsopen", "5.2", || fsopen(c"tmpfs").map(drop)),
        // Of a file: below a directory there may be mounts that only the namespace above may uncover.
        ("open_tree", "5.2", || clone_tree(AT_FDCWD, c"/proc/self/exe", false).map(drop)),
        ("clone3", "5.5", || born(0)),
        ("openat2", "5.6", || {
            let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
            let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(resolve);
            openat2(AT_FDCWD, "/", how).map(drop).map_err(Call::Openat2.failed())
        }),
        ("pidfd_getfd", "5.6", || {
            let ourselves = pidfd_open(getpid())?;
            // Signal 0 is none: it only asks.
            pidfd_send_signal(ourselves.as_fd(), 0)?;
            pidfd_getfd(ourselves.as_fd(), ourselves.as_raw_fd()).map(drop)
        }),
        ("clone3 CLONE_INTO_CGROUP", "5.7", born_into_cgroup),
        // No process has descriptors that high.
        ("close_range CLOSE_RANGE_CLOEXEC", "5.11", || close_range(u32::MAX - 1, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)),
        ("mount_setattr", "5.12", || mount_setattr(root()?, false, &MountAttr::default())),
    ];
    answers.map(|(name, since, ask)| SystemCall { name, since, answer: ask() }).to_vec()
}

fn root() -> Result<OwnedFd, Failed> {
    open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(Call::Open.failed())
}

/// A child with these new namespaces, which ends at once.
fn born(flags: u64) -> Answer {
    match clone3(&CloneOptions { flags, cgroup: None })? {
        Cloned::Child => exit_now(0),
        Cloned::Parent(_, pidfd) => ended(pidfd.as_fd()).map(drop),
    }
}

fn ended(pidfd: BorrowedFd<'_>) -> Result<WaitStatus, Failed> {
    waitid(Id::PIDFd(pidfd), WaitPidFlag::WEXITED).map_err(Call::Waitid.failed())
}

/// Into something that is no cgroup, which the kernel notices only if it knows the flag: no child is made.
fn born_into_cgroup() -> Answer {
    match clone3(&CloneOptions { flags: 0, cgroup: Some(root()?.as_fd()) }) {
        Err(Failed { errno: Errno::EBADF, .. }) => Ok(()),
        Err(failed) => Err(failed),
        Ok(Cloned::Child) => exit_now(0),
        Ok(Cloned::Parent(_, pidfd)) => ended(pidfd.as_fd()).map(drop),
    }
}

/// Whether we may make a namespace of each kind, named as in /proc/self/ns. `with_user`: each together with a user
/// namespace, which is the only way without `CAP_SYS_ADMIN`.
pub fn namespaces(with_user: bool) -> Vec<(&'static str, Answer)> {
    let bits = |flags: CloneFlags| u64::from(flags.bits().cast_unsigned());
    let user = if with_user { CloneFlags::CLONE_NEWUSER } else { CloneFlags::empty() };
    KINDS.iter().map(|(_, flag, name)| (*name, born(bits(*flag | user)))).collect()
}

/// Whether the user and group of this number may make a user namespace. The failure is of `setresuid(2)` if we cannot
/// become that user to try.
pub fn user_namespace_for(id: u32) -> Answer {
    // Higher than any errno.
    const COULD_NOT_BECOME: i32 = 255;
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    let pidfd = match clone3(&CloneOptions { flags: 0, cgroup: None })? {
        Cloned::Child => exit_now(match setresgid(gid, gid, gid).and_then(|()| setresuid(uid, uid, uid)) {
            Err(_) => COULD_NOT_BECOME,
            Ok(()) => unshare(CloneFlags::CLONE_NEWUSER).err().map_or(0, |errno| errno as i32),
        }),
        Cloned::Parent(_, pidfd) => pidfd,
    };
    match ended(pidfd.as_fd())? {
        WaitStatus::Exited(_, 0) => Ok(()),
        WaitStatus::Exited(_, COULD_NOT_BECOME) => Err(Call::Setuid.failed()(Errno::EPERM)),
        WaitStatus::Exited(_, errno) => Err(Call::Unshare.failed()(Errno::from_raw(errno))),
        // Only a seccomp filter around us kills for this.
        _ => Err(Call::Unshare.failed()(Errno::EPERM)),
    }
}

/// Whether the kernel has this kind of filesystem; it loads a module for one it has not met yet, as a mount would.
pub fn filesystem(kind: &str) -> Answer {
    let known = fs::read_to_string("/proc/filesystems").map_err(sys::io_failed(Call::Read))?;
    if known.lines().any(|line| line.rsplit('\t').next() == Some(kind)) {
        return Ok(());
    }
    fsopen(&c_string(kind.as_bytes(), Call::Fsopen)?).map(drop)
}

/// Whether `/` can be the lower layer of an overlay. It is for a caller with `CAP_SYS_ADMIN`; a child mounts one, in a
/// mount namespace of its own, and ends.
pub fn overlay_on_root() -> Answer {
    let pidfd = match clone3(&CloneOptions { flags: 0, cgroup: None })? {
        Cloned::Child => exit_now(mount_overlay_on_root().err().map_or(0, |errno| errno as i32)),
        Cloned::Parent(_, pidfd) => pidfd,
    };
    match ended(pidfd.as_fd())? {
        WaitStatus::Exited(_, 0) => Ok(()),
        WaitStatus::Exited(_, errno) => Err(Call::Mount.failed()(Errno::from_raw(errno))),
        _ => Err(Call::Mount.failed()(Errno::EPERM)),
    }
}

fn mount_overlay_on_root() -> nix::Result<()> {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    // Any folder will do, for nobody else sees it; this one is there.
    mount(Some("tmpfs"), "/proc", Some("tmpfs"), MsFlags::empty(), NONE)?;
    ["/proc/upper", "/proc/work", "/proc/root"].into_iter().try_for_each(|dir| mkdir(dir, Mode::S_IRWXU))?;
    let layers = "lowerdir=/,upperdir=/proc/upper,workdir=/proc/work";
    mount(Some("overlay"), "/proc/root", Some("overlay"), MsFlags::empty(), Some(layers))
}

/// Whether mounts of the filesystem that `path` is on can have an id mapping (`mount_setattr(2)`, `MOUNT_ATTR_IDMAP`).
pub fn idmapped_mount(path: &Path) -> Answer {
    let view = clone_tree(AT_FDCWD, &c_string(path.as_os_str().as_bytes(), Call::OpenTree)?, false)?;
    let ids = userns::with_ids(&format!("0 {} 1", geteuid()), &format!("0 {} 1", getegid()))?;
    idmap(view.as_fd(), false, ids.as_fd())
}

/// Whether we may load the program that cgroup v2 keeps devices away with (`bpf(2)`).
pub fn device_filter() -> Answer {
    /// `r0 = 1; exit` (bpf instruction set, RFC 9669).
    const ALLOW_ALL: [u64; 2] = [0x1_0000_00b7, 0x95];
    sys::cgroup::load_device_filter(&ALLOW_ALL).map(drop).map_err(Call::Bpf.failed())
}

fn c_string(bytes: &[u8], call: Call) -> Result<CString, Failed> {
    CString::new(bytes).map_err(|_| call.failed()(Errno::EINVAL))
}

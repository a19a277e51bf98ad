//! How what the plan says about mounts is done: with descriptors, inside the root, and shown to nobody before it is complete.

pub(crate) mod copy_up;
pub(crate) mod device;
pub(crate) mod hide;
#[cfg(test)]
mod tests;

use std::ffi::{CStr, CString};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::mount::MsFlags;
use nix::sys::stat::{SFlag, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use nix::sys::statvfs::{FsFlags, fstatvfs};

use crate::run::fds::Fds;
use crate::sys::in_root::{InRoot, Leaf, Links, Opened, open_in_root, open_or_make};
use crate::sys::mount::{self, MountAttr, attr};
use crate::sys::userns;
use crate::sys::{Call, Failed};

/// A step of the mount room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mount {
    /// Before: an id mapping that mounts can be given.
    IdMap(IdMap),
    /// Before: a detached copy of something on the host.
    Source(Source),
    /// Child: puts a [`Source`] where it belongs.
    Attach(Attach),
    /// Child: a new filesystem.
    Filesystem(Filesystem),
    /// Child: other options for what is mounted already.
    Remount(Remount),
    /// Child: a mount that had to be writable while it was filled becomes read-only.
    Seal(Seal),
    /// Child: device nodes.
    Nodes(device::Nodes),
    /// Child: symbolic links.
    Links(device::LinkSet),
    /// Child: the terminal as /dev/console.
    Console(device::Console),
    /// Child, after the pivot: nobody sees what is there.
    Mask(hide::Mask),
    /// Child, after the pivot: nobody writes what is there.
    ReadOnly(hide::ReadOnly),
}

impl Mount {
    /// Does it.
    pub(crate) fn run(&self, fds: &mut Fds) -> Result<(), Failed> {
        match self {
            Self::IdMap(step) => step.run(fds),
            Self::Source(step) => step.run(fds),
            Self::Attach(step) => step.run(fds),
            Self::Filesystem(step) => step.run(fds),
            Self::Remount(step) => step.run(fds),
            Self::Seal(step) => step.run(fds),
            Self::Nodes(step) => step.run(fds),
            Self::Links(step) => step.run(fds),
            Self::Console(step) => step.run(fds),
            Self::Mask(step) => step.run(fds),
            Self::ReadOnly(step) => step.run(fds),
        }
    }
}

impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IdMap(step) => step.fmt(f),
            Self::Source(step) => step.fmt(f),
            Self::Attach(step) => step.fmt(f),
            Self::Filesystem(step) => step.fmt(f),
            Self::Remount(step) => step.fmt(f),
            Self::Seal(step) => step.fmt(f),
            Self::Nodes(step) => step.fmt(f),
            Self::Links(step) => step.fmt(f),
            Self::Console(step) => step.fmt(f),
            Self::Mask(step) => step.fmt(f),
            Self::ReadOnly(step) => step.fmt(f),
        }
    }
}

/// The number of a descriptor in `Fds::sources`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot(pub(crate) usize);

/// A slot without its descriptor is a plan in the wrong order, not the world's doing.
const MISORDERED: Errno = Errno::EBADF;

impl Fds {
    /// The container's root directory.
    pub(crate) fn root(&self) -> Result<BorrowedFd<'_>, Failed> {
        self.root.as_ref().map(AsFd::as_fd).ok_or(Failed { call: Call::Openat2, errno: MISORDERED })
    }

    fn put(&mut self, slot: Slot, fd: OwnedFd) {
        if self.sources.len() <= slot.0 {
            self.sources.resize_with(slot.0 + 1, || None);
        }
        self.sources[slot.0] = Some(fd);
    }

    fn held(&self, slot: Slot) -> Option<BorrowedFd<'_>> {
        self.sources.get(slot.0)?.as_ref().map(AsFd::as_fd)
    }

    fn take(&mut self, slot: Slot) -> Result<OwnedFd, Failed> {
        let held = self.sources.get_mut(slot.0).and_then(Option::take);
        held.ok_or(Failed { call: Call::MoveMount, errno: MISORDERED })
    }
}

/// How mounts and unmounts in one copy of a mount show in the others (mount_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Propagation {
    pub(crate) kind: PropagationKind,
    pub(crate) recursive: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PropagationKind {
    Private,
    Slave,
    Shared,
    Unbindable,
}

impl Propagation {
    fn attr(self) -> MountAttr {
        let flag = match self.kind {
            PropagationKind::Private => MsFlags::MS_PRIVATE,
            PropagationKind::Slave => MsFlags::MS_SLAVE,
            PropagationKind::Shared => MsFlags::MS_SHARED,
            PropagationKind::Unbindable => MsFlags::MS_UNBINDABLE,
        };
        MountAttr { propagation: flag.bits(), ..MountAttr::default() }
    }

    pub(crate) fn apply(self, mount: impl AsFd) -> Result<(), Failed> {
        mount::mount_setattr(mount, self.recursive, &self.attr())
    }
}

impl fmt::Display for Propagation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            PropagationKind::Private => "private",
            PropagationKind::Slave => "slave",
            PropagationKind::Shared => "shared",
            PropagationKind::Unbindable => "unbindable",
        };
        write!(f, "{}{kind}", if self.recursive { "r" } else { "" })
    }
}

/// The attributes of one mount, named in full: what is not in `set` is cleared, as `mount --bind -o` does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    /// `MOUNT_ATTR_*`.
    pub(crate) set: u64,
    /// What an option asked to clear by its name (`rw`, `dev`, …).
    pub(crate) cleared: u64,
    /// An option about access times was given; without one they stay as they are.
    pub(crate) atime: bool,
}

/// What a mount may be locked in when it comes from another user namespace (mount_namespaces(7)).
const ORDINARY: u64 = attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC;
const ATIMES: u64 = attr::ATIME | attr::NODIRATIME;

impl Flags {
    /// Gives `mount` exactly these attributes. With `keep`, or where the kernel has locked them, it keeps those it has;
    /// to have asked for one of them to be cleared is then an error.
    fn apply(self, mount: BorrowedFd<'_>, keep: bool) -> Result<(), Failed> {
        let atimes = if self.atime { ATIMES } else { 0 };
        let exact = MountAttr { set: self.set, clear: ORDINARY | attr::NOSYMFOLLOW | atimes, ..MountAttr::default() };
        let refused = Call::MountSetattr.failed()(Errno::EPERM);
        if !keep {
            let done = mount::mount_setattr(mount, false, &exact);
            if done != Err(refused) {
                return done;
            }
        }
        let has = attributes_of(mount)?;
        if has & self.cleared & ORDINARY != 0 || (self.atime && (has ^ self.set) & ATIMES != 0) {
            return Err(refused);
        }
        let more = MountAttr { set: self.set & !ATIMES, ..MountAttr::default() };
        mount::mount_setattr(mount, false, &more)
    }
}

/// The attributes `mount` has, read back (statvfs(3)).
fn attributes_of(mount: BorrowedFd<'_>) -> Result<u64, Failed> {
    let flags = fstatvfs(mount).map_err(Call::Fstatfs.failed())?.flags();
    let mut has = 0;
    for (flag, bit) in [
        (FsFlags::ST_RDONLY, attr::RDONLY),
        (FsFlags::ST_NOSUID, attr::NOSUID),
        (FsFlags::ST_NODEV, attr::NODEV),
        (FsFlags::ST_NOEXEC, attr::NOEXEC),
        (FsFlags::ST_NODIRATIME, attr::NODIRATIME),
    ] {
        has |= if flags.contains(flag) { bit } else { 0 };
    }
    // Three ways to keep access times, of which relatime is 0 here and strictatime has no flag there.
    has |= match (flags.contains(FsFlags::ST_NOATIME), flags.contains(FsFlags::ST_RELATIME)) {
        (true, _) => attr::NOATIME,
        (false, true) => 0,
        (false, false) => attr::STRICTATIME,
    };
    Ok(has)
}

/// Where a mount goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) path: InRoot,
    pub(crate) links: Links,
}

/// How a path relates to the container's /proc, which the runtime itself relies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NearProc {
    /// It has nothing to do with it.
    Outside,
    /// It is /proc: only a procfs may go there.
    Itself,
    /// One of the few files below it that lxcfs and the like stand in for.
    StandIn,
    /// Anything else below it: a mount there would let the image forge what the runtime reads.
    Below,
}

impl NearProc {
    pub(crate) fn of(path: &Path) -> Self {
        /// The same as runc's.
        const STAND_INS: [&str; 11] = [
            "cpuinfo",
            "diskstats",
            "meminfo",
            "stat",
            "swaps",
            "uptime",
            "loadavg",
            "slabinfo",
            "net/dev",
            "sys/kernel/ns_last_pid",
            "sys/crypto/fips_enabled",
        ];
        match path.strip_prefix("/proc") {
            Err(_) => Self::Outside,
            Ok(rest) if rest.as_os_str().is_empty() => Self::Itself,
            Ok(rest) if STAND_INS.iter().any(|name| rest == Path::new(name)) => Self::StandIn,
            Ok(_) => Self::Below,
        }
    }
}

impl Target {
    /// Opens it, making what is missing, and checks that nothing is hidden that must not be.
    fn open(
        &self,
        root: BorrowedFd<'_>,
        leaf: impl FnOnce() -> Result<Leaf, Failed>,
        is_proc: impl FnOnce() -> Result<bool, Failed>,
    ) -> Result<Opened, Failed> {
        let opened = open_or_make(root, &self.path, self.links, leaf)?;
        if opened.path == Path::new("/") {
            return Err(Call::RootRule.failed()(Errno::EPERM));
        }
        let allowed = match NearProc::of(&opened.path) {
            NearProc::Outside | NearProc::StandIn => true,
            NearProc::Itself => is_proc()?,
            NearProc::Below => false,
        };
        if allowed { Ok(opened) } else { Err(Call::ProcRule.failed()(Errno::EPERM)) }
    }
}

/// A user namespace made only to carry an id mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdMap {
    pub(crate) slot: Slot,
    pub(crate) from: IdMapFrom,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum IdMapFrom {
    /// Lines for `uid_map` and `gid_map` (user_namespaces(7)).
    Ids { uids: String, gids: String },
    /// A user namespace that exists.
    Namespace(CString),
}

impl IdMap {
    fn run(&self, fds: &mut Fds) -> Result<(), Failed> {
        let namespace = match &self.from {
            IdMapFrom::Ids { uids, gids } => userns::with_ids(uids, gids)?,
            IdMapFrom::Namespace(path) => {
                let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
                nix::fcntl::open(path.as_c_str(), flags, nix::sys::stat::Mode::empty()).map_err(Call::Open.failed())?
            }
        };
        fds.put(self.slot, namespace);
        Ok(())
    }
}

impl fmt::Display for IdMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.from {
            IdMapFrom::Ids { uids, gids } => {
                write!(f, "make id mapping, uids {}, gids {}", uids.trim_end(), gids.trim_end())
            }
            IdMapFrom::Namespace(path) => write!(f, "open id mapping {}", path.to_string_lossy()),
        }
    }
}

/// A detached copy of a path of the runtime's own namespace, complete but for its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) slot: Slot,
    pub(crate) path: CString,
    /// Where it will be, for messages.
    pub(crate) place: InRoot,
    /// With what is mounted below it.
    pub(crate) recursive: bool,
    /// The attributes of the top mount; `None` keeps those of the original.
    pub(crate) flags: Option<Flags>,
    /// The container has a user namespace: attributes of the original are as good as locked.
    pub(crate) keep: bool,
    /// Attributes of the whole tree, on top of `flags`.
    pub(crate) all: Option<MountAttr>,
    /// The id mapping, and whether the whole tree gets it.
    pub(crate) ids: Option<(Slot, bool)>,
    pub(crate) propagation: Vec<Propagation>,
}

impl Source {
    fn run(&self, fds: &mut Fds) -> Result<(), Failed> {
        let tree = mount::clone_tree(AT_FDCWD, &self.path, self.recursive)?;
        if let Some((slot, recursive)) = self.ids {
            let namespace = fds.held(slot).ok_or(Failed { call: Call::MountSetattr, errno: MISORDERED })?;
            mount::idmap(tree.as_fd(), recursive, namespace)?;
        }
        if let Some(flags) = self.flags {
            flags.apply(tree.as_fd(), self.keep)?;
        }
        if let Some(all) = &self.all {
            mount::mount_setattr(&tree, true, all)?;
        }
        for propagation in &self.propagation {
            propagation.apply(&tree)?;
        }
        fds.put(self.slot, tree);
        Ok(())
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tree = if self.recursive { "tree " } else { "" };
        write!(f, "open {tree}{} for {}", self.path.to_string_lossy(), self.place)?;
        if let Some(flags) = self.flags {
            write!(f, " {}", Names(flags.set))?;
        }
        if let Some(all) = &self.all {
            write!(f, "{} {}", if self.recursive { " recursively" } else { "" }, Names(all.set))?;
        }
        if self.ids.is_some() {
            write!(f, " idmap")?;
        }
        self.propagation.iter().try_for_each(|p| write!(f, " {p}"))
    }
}

/// `MOUNT_ATTR_*` bits as their options are called.
struct Names(u64);

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", if self.0 & attr::RDONLY != 0 { "ro" } else { "rw" })?;
        for (bit, name) in [
            (attr::NOSUID, "nosuid"),
            (attr::NODEV, "nodev"),
            (attr::NOEXEC, "noexec"),
            (attr::NOATIME, "noatime"),
            (attr::STRICTATIME, "strictatime"),
            (attr::NODIRATIME, "nodiratime"),
            (attr::NOSYMFOLLOW, "nosymfollow"),
        ] {
            if self.0 & bit != 0 {
                write!(f, ",{name}")?;
            }
        }
        Ok(())
    }
}

/// Puts a [`Source`] where it belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attach {
    pub(crate) slot: Slot,
    /// The source, for messages.
    pub(crate) from: CString,
    pub(crate) target: Target,
}

impl Attach {
    fn run(&self, fds: &mut Fds) -> Result<(), Failed> {
        let tree = fds.take(self.slot)?;
        let is_proc = || Ok(fstatfs(&tree).map_err(Call::Fstatfs.failed())?.filesystem_type() == PROC_SUPER_MAGIC);
        let target = self.target.open(fds.root()?, || leaf_like(tree.as_fd()), is_proc)?;
        mount::move_mount(&tree, &target.fd)
    }
}

/// A directory goes on a directory, anything else on a file.
fn leaf_like(source: BorrowedFd<'_>) -> Result<Leaf, Failed> {
    let mode = fstat(source).map_err(Call::Fstat.failed())?.st_mode & SFlag::S_IFMT.bits();
    Ok(if mode == SFlag::S_IFDIR.bits() { Leaf::Directory } else { Leaf::File })
}

impl fmt::Display for Attach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mount {} at {}", self.from.to_string_lossy(), self.target.path)
    }
}

/// One option of a filesystem: `key` or `key=value`.
pub(crate) type Param = (CString, Option<CString>);

/// A new filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filesystem {
    pub(crate) kind: CString,
    pub(crate) source: CString,
    pub(crate) params: Vec<Param>,
    /// `MOUNT_ATTR_*`.
    pub(crate) attrs: u64,
    pub(crate) propagation: Vec<Propagation>,
    pub(crate) target: Target,
    /// tmpfs without a mode of its own takes that of the directory it covers, if there is one.
    pub(crate) mode_of_target: bool,
    /// tmpfs starts with a copy of what it covers (`tmpcopyup`).
    pub(crate) copy_up: bool,
    /// Kept open here, to be sealed later.
    pub(crate) keep: Option<Slot>,
    /// What `fsconfig` cannot say makes this a job for `mount(2)`: the data as one string, and the `MS_*` flags.
    pub(crate) old: Option<(CString, u64)>,
}

impl Filesystem {
    fn run(&self, fds: &mut Fds) -> Result<(), Failed> {
        let root = fds.root()?;
        let is_proc = || Ok(self.kind.as_c_str() == c"proc");
        let target = self.target.open(root, || Ok(Leaf::Directory), is_proc)?;
        let mount = match &self.old {
            None => {
                let mut complaint = None;
                let mount = self.make(&target, &mut complaint);
                if mount.is_err() {
                    fds.complaint = complaint;
                }
                let mount = mount?;
                if self.copy_up {
                    copy_up::copy(target.fd.as_fd(), mount.as_fd())?;
                }
                mount::move_mount(&mount, &target.fd)?;
                mount
            }
            Some((data, flags)) => self.mount_2(root, &target, data, MsFlags::from_bits_retain(*flags))?,
        };
        for propagation in &self.propagation {
            propagation.apply(&mount)?;
        }
        if let Some(slot) = self.keep {
            fds.put(slot, mount);
        }
        Ok(())
    }

    /// The filesystem, mounted nowhere yet.
    fn make(&self, target: &Opened, complaint: &mut Option<String>) -> Result<OwnedFd, Failed> {
        let fs = mount::fsopen(&self.kind)?;
        let configured = self.configure(fs.as_fd(), target);
        if configured.is_err() {
            *complaint = mount::fs_complaint(fs.as_fd());
        }
        configured?;
        mount::fsmount(fs.as_fd(), self.attrs)
    }

    fn configure(&self, fs: BorrowedFd<'_>, target: &Opened) -> Result<(), Failed> {
        if !self.source.is_empty() {
            mount::fsconfig_set(fs, c"source", Some(&self.source))?;
        }
        if self.mode_of_target && !target.made {
            let mode = fstat(&target.fd).map_err(Call::Fstat.failed())?.st_mode & 0o7777;
            let mode = CString::new(format!("{mode:o}")).map_err(|_| Call::Fsconfig.failed()(Errno::EINVAL))?;
            mount::fsconfig_set(fs, c"mode", Some(&mode))?;
        }
        for (key, value) in &self.params {
            mount::fsconfig_set(fs, key, value.as_deref())?;
        }
        mount::fsconfig_create(fs)
    }

    /// The call of old, on the directory we stand in: no path that anybody could exchange.
    fn mount_2(&self, root: BorrowedFd<'_>, target: &Opened, data: &CStr, flags: MsFlags) -> Result<OwnedFd, Failed> {
        nix::unistd::fchdir(&target.fd).map_err(Call::Fchdir.failed())?;
        let (source, kind) = (self.source.as_c_str(), self.kind.as_c_str());
        nix::mount::mount(Some(source), c".", Some(kind), flags, Some(data)).map_err(Call::Mount.failed())?;
        let path = InRoot::new(&target.path).ok_or(Failed { call: Call::Openat2, errno: Errno::EINVAL })?;
        open_in_root(root, &path, OFlag::O_PATH)
    }
}

impl fmt::Display for Filesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mount {} at {} {}", self.kind.to_string_lossy(), self.target.path, Names(self.attrs))?;
        // `ro` is said above already.
        for (key, value) in self.params.iter().filter(|(key, _)| key.as_c_str() != c"ro") {
            write!(f, ",{}", key.to_string_lossy())?;
            if let Some(value) = value {
                write!(f, "={}", value.to_string_lossy())?;
            }
        }
        Ok(())
    }
}

/// Other options for what is mounted already (`remount`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remount {
    pub(crate) target: InRoot,
    pub(crate) flags: Flags,
    /// Options for the filesystem; `None` for `bind,remount`, which is about the mount alone.
    pub(crate) params: Option<Vec<Param>>,
    pub(crate) propagation: Vec<Propagation>,
}

impl Remount {
    fn run(&self, fds: &mut Fds) -> Result<(), Failed> {
        let mount = open_in_root(fds.root()?, &self.target, OFlag::O_PATH)?;
        if let Some(params) = &self.params {
            let fs = mount::fspick(&mount)?;
            let mut told = params.iter().try_for_each(|(k, v)| mount::fsconfig_set(fs.as_fd(), k, v.as_deref()));
            told = told.and_then(|()| mount::fsconfig_reconfigure(fs.as_fd()));
            if told.is_err() {
                fds.complaint = mount::fs_complaint(fs.as_fd());
            }
            told?;
        }
        self.flags.apply(mount.as_fd(), false)?;
        self.propagation.iter().try_for_each(|p| p.apply(&mount))
    }
}

impl fmt::Display for Remount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "remount {} {}", self.target, Names(self.flags.set))
    }
}

/// A mount that had to be writable while it was filled becomes read-only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seal {
    pub(crate) slot: Slot,
    /// For messages.
    pub(crate) path: InRoot,
}

impl Seal {
    fn run(&self, fds: &mut Fds) -> Result<(), Failed> {
        let mount = fds.take(self.slot)?;
        mount::mount_setattr(&mount, false, &MountAttr { set: attr::RDONLY, ..MountAttr::default() })
    }
}

impl fmt::Display for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "make {} read-only", self.path)
    }
}

//! Device nodes, the links beside them, and the terminal.

use std::ffi::{CStr, CString};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, fstatat, mknodat, umask};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};

use super::{Fds, MISORDERED};
use crate::sys::in_root::{InRoot, Leaf, Links, open_no_links, open_or_make};
use crate::sys::{Call, Failed, mount};

/// Device nodes in one directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nodes {
    pub(crate) directory: InRoot,
    pub(crate) nodes: Vec<Node>,
}

/// One device node or FIFO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) name: CString,
    /// `S_IFCHR`, `S_IFBLK` or `S_IFIFO`.
    pub(crate) kind: SFlag,
    pub(crate) device: libc::dev_t,
    pub(crate) mode: Mode,
    /// Owner and group as the container sees them.
    pub(crate) owner: (u32, u32),
}

impl Nodes {
    pub(super) fn run(&self, fds: &mut Fds) -> Result<(), Failed> {
        let directory = open_or_make(fds.root()?, &self.directory, Links::Follow, || Ok(Leaf::Directory))?.fd;
        // A mode is a promise, not a wish: without this each node would need a chmod.
        let old = umask(Mode::empty());
        let made = self.nodes.iter().try_for_each(|node| node.make(directory.as_fd()));
        umask(old);
        made
    }
}

impl Node {
    fn make(&self, directory: BorrowedFd<'_>) -> Result<(), Failed> {
        match mknodat(directory, self.name.as_c_str(), self.kind, self.mode, self.device) {
            Ok(()) => {}
            Err(Errno::EEXIST) => self.check(directory)?,
            Err(errno) => return Err(Call::Mknod.failed()(errno)),
        }
        if self.owner == (0, 0) {
            return Ok(()); // as made
        }
        let (uid, gid) = (Uid::from_raw(self.owner.0), Gid::from_raw(self.owner.1));
        fchownat(directory, self.name.as_c_str(), Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(Call::Fchown.failed())
    }

    /// What the image brings under this name must be the very device; a link or file would be written to in its place.
    fn check(&self, directory: BorrowedFd<'_>) -> Result<(), Failed> {
        let found = fstatat(directory, self.name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
        let found = found.map_err(Call::Fstat.failed())?;
        let same = found.st_mode & SFlag::S_IFMT.bits() == self.kind.bits() && found.st_rdev == self.device;
        if same { Ok(()) } else { Err(Call::Mknod.failed()(Errno::EEXIST)) }
    }
}

impl fmt::Display for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "make devices in {}:", self.directory)?;
        self.nodes.iter().try_for_each(|node| write!(f, " {}", node.name.to_string_lossy()))
    }
}

/// Symbolic links in one directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LinkSet {
    pub(crate) directory: InRoot,
    pub(crate) links: Vec<Link>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) name: CString,
    pub(crate) to: CString,
    /// Whatever the image has there gives way; else it stays.
    pub(crate) replace: bool,
}

impl LinkSet {
    pub(super) fn run(&self, fds: &mut Fds) -> Result<(), Failed> {
        let directory = open_or_make(fds.root()?, &self.directory, Links::Follow, || Ok(Leaf::Directory))?.fd;
        self.links.iter().try_for_each(|link| link.make(directory.as_fd()))
    }
}

impl Link {
    fn make(&self, directory: BorrowedFd<'_>) -> Result<(), Failed> {
        let (to, name): (&CStr, &CStr) = (&self.to, &self.name);
        match symlinkat(to, directory, name) {
            Err(Errno::EEXIST) if self.replace => {
                unlinkat(directory, name, UnlinkatFlags::NoRemoveDir).map_err(Call::Unlink.failed())?;
                symlinkat(to, directory, name).map_err(Call::Symlink.failed())
            }
            Err(Errno::EEXIST) => Ok(()),
            done => done.map_err(Call::Symlink.failed()),
        }
    }
}

impl fmt::Display for LinkSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "link in {}:", self.directory)?;
        self.links.iter().try_for_each(|l| write!(f, " {}→{}", l.name.to_string_lossy(), l.to.to_string_lossy()))
    }
}

/// The container's end of its terminal (`Fds::terminal`) as /dev/console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Console {
    pub(crate) path: InRoot,
}

impl Console {
    pub(super) fn run(&self, fds: &mut Fds) -> Result<(), Failed> {
        let terminal = fds.terminal.as_ref().ok_or(Failed { call: Call::OpenTree, errno: MISORDERED })?;
        let target = open_or_make(fds.root()?, &self.path, Links::Refuse, || Ok(Leaf::File))?;
        let tree = mount::clone_tree(terminal.as_fd(), c"", false)?;
        mount::move_mount(&tree, &target.fd)
    }
}

impl fmt::Display for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mount terminal at {}", self.path)
    }
}

/// Opens the multiplexer of the container's own devpts: what comes from it is a terminal of the container's, never one of
/// the host's.
pub(crate) fn open_ptmx(root: BorrowedFd<'_>) -> Result<OwnedFd, Failed> {
    let path = InRoot::new("/dev/pts/ptmx").ok_or(Failed { call: Call::Openat2, errno: Errno::EINVAL })?;
    open_no_links(root, &path, OFlag::O_RDWR | OFlag::O_NOCTTY)
}

//! Paths of the container that nobody may see, and paths that nobody may write.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::{Fds, Slot, leaf_like};
use crate::sys::in_root::{InRoot, Leaf, open_in_root};
use crate::sys::mount::{self, MountAttr, attr};
use crate::sys::{Call, Failed};

/// Hides what is at `path`: a file behind the host's /dev/null, a directory behind one that is empty and read-only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mask {
    pub(crate) path: InRoot,
    /// Where the parent left a detached copy of its /dev/null. The container's own could be anything by now.
    pub(crate) null: Slot,
    /// Where the masks already in place are kept: copies of them serve the paths that follow.
    pub(crate) over_file: Slot,
    /// The same for directories.
    pub(crate) over_directory: Slot,
}

impl Mask {
    pub(super) fn run(&self, fds: &mut Fds) -> Result<(), Failed> {
        let Some(target) = open_if_there(fds.root()?, &self.path)? else { return Ok(()) };
        let slot = match leaf_like(target.as_fd())? {
            Leaf::File => self.over_file,
            Leaf::Directory => self.over_directory,
        };
        // Only a mount that is attached in our own namespace can be copied, before Linux 6.15: the first one goes where
        // it is needed and is the mould for the rest.
        if let Some(mould) = fds.held(slot) {
            return mount::move_mount(mount::clone_tree(mould, c"", false)?, &target);
        }
        let mask = if slot == self.over_file { fds.take(self.null)? } else { empty_directory()? };
        mount::move_mount(&mask, &target)?;
        fds.put(slot, mask);
        Ok(())
    }
}

/// A directory with no room for anything.
pub(crate) fn empty_directory() -> Result<OwnedFd, Failed> {
    let fs = mount::fsopen(c"tmpfs")?;
    let params = [(c"source", c"tmpfs"), (c"nr_blocks", c"1"), (c"nr_inodes", c"1"), (c"mode", c"755")];
    params.iter().try_for_each(|(key, value)| mount::fsconfig_set(fs.as_fd(), key, Some(value)))?;
    mount::fsconfig_set(fs.as_fd(), c"ro", None)?;
    mount::fsconfig_create(fs.as_fd())?;
    mount::fsmount(fs.as_fd(), attr::RDONLY)
}

/// `None` if there is nothing to hide. Any other failure to look is a failure: what cannot be seen to be absent is not
/// left open.
fn open_if_there(root: BorrowedFd<'_>, path: &InRoot) -> Result<Option<OwnedFd>, Failed> {
    match open_in_root(root, path, OFlag::O_PATH) {
        Ok(found) => Ok(Some(found)),
        Err(Failed { errno: Errno::ENOENT | Errno::ENOTDIR, .. }) => Ok(None),
        Err(failed) => Err(failed),
    }
}

impl fmt::Display for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mask {}", self.path)
    }
}

/// Makes what is at `path` read-only, but not what is mounted below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReadOnly {
    pub(crate) path: InRoot,
}

impl ReadOnly {
    pub(super) fn run(&self, fds: &mut Fds) -> Result<(), Failed> {
        let Some(target) = open_if_there(fds.root()?, &self.path)? else { return Ok(()) };
        let tree = mount::clone_tree(target.as_fd(), c"", true)?;
        // Adding an attribute keeps the others, locked ones too.
        mount::mount_setattr(&tree, false, &MountAttr { set: attr::RDONLY, ..MountAttr::default() })?;
        mount::move_mount(&tree, &target)
    }
}

impl fmt::Display for ReadOnly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "make {} read-only", self.path)
    }
}

/// The container's procfs, checked to be one: its magic number, and the inode that only a procfs's root has.
///
/// # Errors
/// ENOTSUP when something else is mounted there.
pub(crate) fn open_proc(root: BorrowedFd<'_>) -> Result<OwnedFd, Failed> {
    use nix::sys::stat::fstat;
    use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
    /// `PROC_ROOT_INO` (include/linux/proc_ns.h).
    const PROC_ROOT: libc::ino_t = 1;

    let path = InRoot::new("/proc").ok_or(Failed { call: Call::Openat2, errno: Errno::EINVAL })?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let proc = crate::sys::in_root::open_no_links(root, &path, flags)?;
    let magic = fstatfs(&proc).map_err(Call::Fstatfs.failed())?.filesystem_type();
    let inode = fstat(&proc).map_err(Call::Fstat.failed())?.st_ino;
    if magic == PROC_SUPER_MAGIC && inode == PROC_ROOT { Ok(proc) } else { Err(Call::Fstatfs.failed()(Errno::ENOTSUP)) }
}

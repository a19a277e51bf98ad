//! How the container gets its root directory: before the mounts a place to put them, after them the only place there is.

use std::ffi::CString;
use std::fmt;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, chroot, fchdir, pivot_root};

use super::mount::{Propagation, PropagationKind, hide};
use crate::run::fds::Fds;
use crate::sys::mount::{self, MountAttr, attr};
use crate::sys::{Call, Failed, io_failed};

/// A step of the root room; all of them are the child's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Root {
    /// The new mount namespace stops telling the host what happens in it.
    Detach,
    /// A copy of the root filesystem is mounted over itself and kept as `Fds::root`.
    Clone {
        /// Where containerd, or the caller of the command line, has it.
        rootfs: CString,
        /// What happens on the host below `rootfs` is not shown in the container.
        private: bool,
    },
    /// Without a mount namespace: `Fds::root` is simply the directory.
    Open {
        /// As for `Clone`.
        rootfs: CString,
    },
    /// pivot_root(2); the host's filesystems are gone from the namespace.
    Pivot,
    /// The root is moved over `/`: where `/` is an initramfs, which cannot be pivoted away.
    Move,
    /// Without a mount namespace: chroot(2).
    Chroot,
    /// The mount of the root, and none below it, becomes read-only.
    ReadOnly,
    /// `linux.rootfsPropagation`.
    Propagate(Propagation),
    /// A checked procfs is kept as `Fds::proc`: the container's own, or one mounted nowhere.
    Proc {
        /// The spec mounts a procfs on /proc.
        mounted: bool,
    },
}

impl Root {
    /// Does it.
    pub(crate) fn run(&self, fds: &mut Fds) -> Result<(), Failed> {
        match self {
            Self::Detach => {
                // Slaves still hear of unmounts on the host, so nothing is kept busy while we work.
                let flags = MsFlags::MS_SLAVE | MsFlags::MS_REC;
                nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).map_err(Call::Mount.failed())
            }
            Self::Clone { rootfs, private } => {
                let root = mount::clone_tree(AT_FDCWD, rootfs, true)?;
                if *private {
                    Propagation { kind: PropagationKind::Private, recursive: true }.apply(&root)?;
                }
                mount::move_mount_to_path(&root, rootfs)?;
                fds.root = Some(root);
                Ok(())
            }
            Self::Open { rootfs } => {
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                let root = nix::fcntl::open(rootfs.as_c_str(), flags, Mode::empty()).map_err(Call::Open.failed())?;
                fds.root = Some(root);
                Ok(())
            }
            Self::Pivot => {
                fchdir(fds.root()?).map_err(Call::Fchdir.failed())?;
                // With both names equal the old root ends up on top of the new one, with no directory needed for it.
                pivot_root(".", ".").map_err(Call::PivotRoot.failed())?;
                umount2(".", MntFlags::MNT_DETACH).map_err(Call::Umount.failed())?;
                chdir("/").map_err(Call::Chdir.failed())
            }
            Self::Move => {
                hide_kernel_filesystems(fds)?;
                let root = fds.root()?;
                mount::move_mount_to_path(root, c"/")?;
                fchdir(root).map_err(Call::Fchdir.failed())?;
                enter_cwd()
            }
            Self::Chroot => {
                fchdir(fds.root()?).map_err(Call::Fchdir.failed())?;
                enter_cwd()
            }
            Self::ReadOnly => {
                let attr = MountAttr { set: attr::RDONLY, ..MountAttr::default() };
                mount::mount_setattr(fds.root()?, false, &attr)
            }
            Self::Propagate(propagation) => propagation.apply(fds.root()?),
            Self::Proc { mounted } => {
                let proc = if *mounted { hide::open_proc(fds.root()?)? } else { own_proc()? };
                fds.proc = Some(proc);
                Ok(())
            }
        }
    }
}

fn enter_cwd() -> Result<(), Failed> {
    chroot(".").map_err(Call::Chroot.failed())?;
    chdir("/").map_err(Call::Chdir.failed())
}

/// A procfs of our pid namespace that nobody can reach by a path.
fn own_proc() -> Result<std::os::fd::OwnedFd, Failed> {
    let fs = mount::fsopen(c"proc")?;
    mount::fsconfig_create(fs.as_fd())?;
    mount::fsmount(fs.as_fd(), attr::NOSUID | attr::NODEV | attr::NOEXEC)
}

/// A moved root leaves the host's mounts reachable for the kernel, if for nobody else: with an unmasked procfs or sysfs
/// among them it would let the container mount an unmasked one of its own (`mount_too_revealing`, fs/namespace.c).
/// So they go, or are covered where they are locked.
fn hide_kernel_filesystems(fds: &Fds) -> Result<(), Failed> {
    let root = format!("/proc/self/fd/{}", fds.root()?.as_raw_fd());
    let root = fs::read_link(root).map_err(io_failed(Call::Readlink))?;
    let table = fs::read("/proc/self/mountinfo").map_err(io_failed(Call::Read))?;
    let mut outside: Vec<PathBuf> = crate::sys::mount::mountpoints(&table)
        .filter(|m| matches!(m.kind, b"proc" | b"sysfs") && !m.path.starts_with(&root))
        .map(|m| m.path)
        .collect();
    // The innermost first: /sys/kernel/… before /sys.
    outside.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    for path in &outside {
        match umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            // Locked, or already gone together with the one it was on.
            Err(Errno::EINVAL | Errno::EPERM) if path.exists() => {
                let path =
                    CString::new(path.as_os_str().as_bytes()).map_err(|_| Call::MoveMount.failed()(Errno::EINVAL))?;
                mount::move_mount_to_path(hide::empty_directory()?, &path)?;
            }
            Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(Call::Umount.failed()(errno)),
        }
    }
    Ok(())
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Detach => write!(f, "make / rslave"),
            Self::Clone { rootfs, private } => {
                write!(f, "mount root {}{}", rootfs.to_string_lossy(), if *private { " rprivate" } else { "" })
            }
            Self::Open { rootfs } => write!(f, "open root {}", rootfs.to_string_lossy()),
            Self::Pivot => write!(f, "pivot root"),
            Self::Move => write!(f, "move root over /"),
            Self::Chroot => write!(f, "chroot"),
            Self::ReadOnly => write!(f, "make / read-only"),
            Self::Propagate(propagation) => write!(f, "make / {propagation}"),
            Self::Proc { mounted: true } => write!(f, "check /proc"),
            Self::Proc { mounted: false } => write!(f, "open a procfs of our own"),
        }
    }
}

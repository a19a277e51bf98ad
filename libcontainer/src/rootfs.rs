//! The root filesystem as containerd describes it in Create: mounted for the container, in the runtime's own namespace.

mod overlay;

use std::ffi::CString;
use std::fs::{self, DirBuilder};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::sys::statvfs::{FsFlags, statvfs};

use crate::sys::in_root::{InRoot, open_in_root};
use crate::sys::mount::{clone_tree, idmap, mountpoints, move_mount};
use crate::sys::{Call, Failed, io_failed, loopdev, userns};

/// One mount, as containerd passes it (`containerd.types.Mount`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootfsMount {
    /// The filesystem type, such as `overlay`; of no meaning for bind mounts.
    pub kind: String,
    /// A device, a directory, or just a word.
    pub source: String,
    /// Where below the rootfs directory; empty for the directory itself.
    pub target: String,
    /// Options as in fstab, one a string.
    pub options: Vec<String>,
}

/// Why a root filesystem could not be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// The request asks for something that is never possible.
    #[error("rootfs mount {index}: {what}")]
    Refused {
        /// Which of the mounts, from 0.
        index: usize,
        /// Why.
        what: String,
    },
    /// A system call failed.
    #[error("{doing}: {source}")]
    Call {
        /// What was being done to what.
        doing: String,
        /// The kernel's answer.
        source: Failed,
    },
}

fn doing(what: impl FnOnce() -> String) -> impl FnOnce(Failed) -> RootfsError {
    move |source| RootfsError::Call { doing: what(), source }
}

/// Mounts that are undone when this is dropped, unless [`Mounted::keep`] was called.
#[derive(Debug, Default)]
#[must_use = "dropped, it unmounts again"]
pub struct Mounted {
    /// In the order they were made.
    at: Vec<PathBuf>,
}

impl Mounted {
    /// From now on only [`unmount_all`] undoes them.
    pub fn keep(mut self) {
        self.at.clear();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for path in self.at.iter().rev() {
            if let Err(errno) = umount2(path, MntFlags::UMOUNT_NOFOLLOW) {
                log::warn!("unmount {} after a failure: {errno}", path.display());
            }
        }
    }
}

/// Mounts `mounts`, in order, on the absolute path `dir`, which is made (mode 711) if it is missing.
///
/// # Errors
/// What was mounted before the one that failed is unmounted again.
pub fn mount_all(mounts: &[RootfsMount], dir: &Path) -> Result<Mounted, RootfsError> {
    let mut mounted = Mounted::default();
    if mounts.is_empty() {
        return Ok(mounted);
    }
    match DirBuilder::new().mode(0o711).create(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(doing(|| format!("make {}", dir.display()))(io_failed(Call::Mkdir)(error)));
        }
        _ => {}
    }
    for (index, wanted) in mounts.iter().enumerate() {
        let options = Options::read(&wanted.options).map_err(|what| RootfsError::Refused { index, what })?;
        options.check(wanted).map_err(|what| RootfsError::Refused { index, what })?;
        let at = place(dir, &wanted.target)
            .map_err(doing(|| format!("find {} of rootfs mount {index} in {}", wanted.target, dir.display())))?;
        mount_one(wanted, options, &at, &mut mounted)
            .map_err(doing(|| format!("mount {} {} at {}", wanted.kind, wanted.source, at.display())))?;
    }
    Ok(mounted)
}

/// Where one mount goes. The links of the tree below `dir` are resolved inside it; nobody runs there yet to exchange them.
fn place(dir: &Path, target: &str) -> Result<PathBuf, Failed> {
    let path = InRoot::new(target).ok_or(Failed { call: Call::Openat2, errno: Errno::EINVAL })?;
    if path.as_path() == Path::new("/") {
        return Ok(dir.to_owned());
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let top = nix::fcntl::open(dir, flags, Mode::empty()).map_err(Call::Open.failed())?;
    let found = open_in_root(top.as_fd(), &path, OFlag::O_PATH)?;
    fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).map_err(io_failed(Call::Readlink))
}

/// containerd's reading of the options: a list of flags, and all others are data.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    flags: Flags,
    propagation: Flags,
    data: Vec<String>,
    loop_device: bool,
    direct_io: bool,
    /// `uidmap=` and `gidmap=`, as the kernel's files want them.
    ids: Option<(String, String)>,
}

/// `MsFlags` has no default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flags(MsFlags);

impl Default for Flags {
    fn default() -> Self {
        Self(MsFlags::empty())
    }
}

/// The names containerd takes for flags. `defaults` is not among them: it goes to the filesystem.
#[rustfmt::skip]
const FLAGS: &[(&str, bool, MsFlags)] = &[
    ("async", false, MsFlags::MS_SYNCHRONOUS),
    ("atime", false, MsFlags::MS_NOATIME),
    ("bind", true, MsFlags::MS_BIND),
    ("dev", false, MsFlags::MS_NODEV),
    ("diratime", false, MsFlags::MS_NODIRATIME),
    ("dirsync", true, MsFlags::MS_DIRSYNC),
    ("exec", false, MsFlags::MS_NOEXEC),
    ("mand", true, MsFlags::MS_MANDLOCK),
    ("noatime", true, MsFlags::MS_NOATIME),
    ("nodev", true, MsFlags::MS_NODEV),
    ("nodiratime", true, MsFlags::MS_NODIRATIME),
    ("noexec", true, MsFlags::MS_NOEXEC),
    ("nomand", false, MsFlags::MS_MANDLOCK),
    ("norelatime", false, MsFlags::MS_RELATIME),
    ("nostrictatime", false, MsFlags::MS_STRICTATIME),
    ("nosuid", true, MsFlags::MS_NOSUID),
    ("rbind", true, MsFlags::MS_BIND.union(MsFlags::MS_REC)),
    ("relatime", true, MsFlags::MS_RELATIME),
    ("remount", true, MsFlags::MS_REMOUNT),
    ("ro", true, MsFlags::MS_RDONLY),
    ("rw", false, MsFlags::MS_RDONLY),
    ("strictatime", true, MsFlags::MS_STRICTATIME),
    ("suid", false, MsFlags::MS_NOSUID),
    ("sync", true, MsFlags::MS_SYNCHRONOUS),
];

/// As in mount(8); no filesystem has options of these names.
const PROPAGATION: &[(&str, MsFlags)] = &[
    ("private", MsFlags::MS_PRIVATE),
    ("rprivate", MsFlags::MS_PRIVATE.union(MsFlags::MS_REC)),
    ("rshared", MsFlags::MS_SHARED.union(MsFlags::MS_REC)),
    ("rslave", MsFlags::MS_SLAVE.union(MsFlags::MS_REC)),
    ("runbindable", MsFlags::MS_UNBINDABLE.union(MsFlags::MS_REC)),
    ("shared", MsFlags::MS_SHARED),
    ("slave", MsFlags::MS_SLAVE),
    ("unbindable", MsFlags::MS_UNBINDABLE),
];

impl Options {
    fn read(words: &[String]) -> Result<Self, String> {
        let mut options = Self::default();
        let (mut uids, mut gids) = (None, None);
        for word in words {
            if let Some((_, set, flags)) = FLAGS.iter().find(|(name, ..)| name == word) {
                options.flags.0.set(*flags, *set);
            } else if let Some((_, flags)) = PROPAGATION.iter().find(|(name, _)| name == word) {
                options.propagation = Flags(*flags);
            } else if word == "loop" {
                options.loop_device = true;
            } else if word == "direct-io" {
                options.direct_io = true;
            } else if let Some(ids) = word.strip_prefix("uidmap=") {
                uids = Some(id_lines(ids)?);
            } else if let Some(ids) = word.strip_prefix("gidmap=") {
                gids = Some(id_lines(ids)?);
            } else if word.starts_with("X-containerd.") {
                return Err(format!("option {word:?} is for containerd's mount manager, which should have used it up"));
            } else {
                options.data.push(word.clone());
            }
        }
        if !options.loop_device && options.direct_io {
            options.data.push("direct-io".to_owned());
        }
        options.ids = match (uids, gids) {
            (Some(uids), Some(gids)) => Some((uids, gids)),
            (None, None) => None,
            _ => return Err("uidmap= and gidmap= are given together or not at all".to_owned()),
        };
        Ok(options)
    }

    fn check(&self, wanted: &RootfsMount) -> Result<(), String> {
        let fuse = ["fuse.", "fuse3."].iter().any(|kind| wanted.kind.starts_with(kind));
        match () {
            () if fuse => Err(format!("{} needs a mount helper, which this runtime does not run", wanted.kind)),
            () if [&wanted.kind, &wanted.source, &wanted.target]
                .into_iter()
                .chain(&self.data)
                .any(|t| t.contains('\0')) =>
            {
                Err("has a NUL byte".to_owned())
            }
            () => Ok(()),
        }
    }
}

/// `container:host:size`, several separated by commas, as lines for `uid_map`.
fn id_lines(text: &str) -> Result<String, String> {
    let wrong = || format!("{text:?} is not a list of container:host:size");
    let mut lines = String::new();
    for entry in text.split(',') {
        let numbers: Result<Vec<u32>, _> = entry.split(':').map(str::parse).collect();
        match numbers.as_deref() {
            Ok([container, host, size]) => lines.push_str(&format!("{container} {host} {size}\n")),
            _ => return Err(wrong()),
        }
    }
    Ok(lines)
}

fn mount_one(wanted: &RootfsMount, mut options: Options, at: &Path, mounted: &mut Mounted) -> Result<(), Failed> {
    let flags = options.flags.0;
    let read_only = flags.contains(MsFlags::MS_RDONLY);
    let mut source = PathBuf::from(&wanted.source);
    // Held until the mount holds the device.
    let mut _device = None;
    if options.loop_device {
        let (path, device) = loopdev::attach(&source, read_only, options.direct_io)?;
        (source, _device) = (path, Some(device));
    }
    let ids = match &options.ids {
        Some((uids, gids)) => Some(userns::with_ids(uids, gids)?),
        None => None,
    };
    // An overlay's layers are mapped below it; it shows what it is given.
    let mut _lower = None;
    let ids = match ids {
        Some(ids) if wanted.kind == "overlay" => {
            _lower = Some(overlay::map_lower(&mut options.data, ids.as_fd(), at)?);
            None
        }
        ids => ids,
    };
    // A remount without data is about the flags of the mount alone, below.
    if !flags.contains(MsFlags::MS_REMOUNT) || !options.data.is_empty() {
        overlay::with_short_data(&wanted.kind, &options.data, |data| {
            mount(Some(source.as_path()), at, Some(wanted.kind.as_str()), flags, Some(data))
                .map_err(Call::Mount.failed())
        })?;
        mounted.at.push(at.to_owned());
    }
    if !options.propagation.0.is_empty() {
        change(at, options.propagation.0)?;
    }
    // The first call does not look at the flags of a bind mount.
    if flags.contains(MsFlags::MS_BIND | MsFlags::MS_RDONLY) {
        let flags = flags | MsFlags::MS_REMOUNT;
        match change(at, flags) {
            // In a user namespace some flags are locked.
            Err(Failed { errno: Errno::EPERM, .. }) => change(at, flags | locked(at)?)?,
            done => done?,
        }
    }
    if let Some(ids) = ids {
        let path = CString::new(at.as_os_str().as_bytes()).map_err(|_| Call::OpenTree.failed()(Errno::EINVAL))?;
        let tree = clone_tree(AT_FDCWD, &path, false)?;
        idmap(tree.as_fd(), false, ids.as_fd())?;
        // The mapped copy takes the place of the original.
        umount2(at, MntFlags::UMOUNT_NOFOLLOW).map_err(Call::Umount.failed())?;
        mounted.at.pop();
        let place =
            nix::fcntl::open(at, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(Call::Open.failed())?;
        move_mount(&tree, &place)?;
        mounted.at.push(at.to_owned());
    }
    Ok(())
}

fn change(at: &Path, flags: MsFlags) -> Result<(), Failed> {
    mount(None::<&Path>, at, None::<&Path>, flags, None::<&Path>).map_err(Call::Mount.failed())
}

fn locked(at: &Path) -> Result<MsFlags, Failed> {
    let has = statvfs(at).map_err(Call::Fstatfs.failed())?.flags();
    let mut flags = MsFlags::empty();
    for (is, flag) in [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ] {
        flags.set(flag, has.contains(is));
    }
    Ok(flags)
}

/// How an unmount ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmounted {
    /// Nothing is mounted on the directory or below it any more.
    Done,
    /// Something is in use: try again later. It is not detached, as its owner must not believe it gone.
    Busy,
}

/// Unmounts everything on `dir` and below it, the deepest first. Nothing mounted is no error, nor is a missing `dir`.
///
/// # Errors
/// Any answer of the kernel but EBUSY.
pub fn unmount_all(dir: &Path) -> Result<Unmounted, RootfsError> {
    // As a rule there is one mount and nothing below it: two calls, and no look at a table of a thousand containers.
    match unmount(dir)? {
        Peeled::Some => return Ok(Unmounted::Done),
        Peeled::None | Peeled::Busy => {}
    }
    let real = match fs::canonicalize(dir) {
        Ok(real) => real,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Unmounted::Done),
        Err(error) => return Err(doing(|| format!("resolve {}", dir.display()))(io_failed(Call::Readlink)(error))),
    };
    let table = fs::read("/proc/self/mountinfo")
        .map_err(io_failed(Call::Read))
        .map_err(doing(|| "read /proc/self/mountinfo".to_owned()))?;
    let mut below: Vec<PathBuf> = mountpoints(&table).map(|m| m.path).filter(|path| path.starts_with(&real)).collect();
    below.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    for path in below {
        if unmount(&path)? == Peeled::Busy {
            return Ok(Unmounted::Busy);
        }
    }
    Ok(Unmounted::Done)
}

#[derive(PartialEq, Eq)]
enum Peeled {
    None,
    Some,
    Busy,
}

/// Takes off all mounts that are on `path`, one on the other.
fn unmount(path: &Path) -> Result<Peeled, RootfsError> {
    let mut peeled = Peeled::None;
    loop {
        match umount2(path, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => peeled = Peeled::Some,
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(peeled),
            Err(Errno::EBUSY) => return Ok(Peeled::Busy),
            Err(errno) => {
                return Err(doing(|| format!("unmount {}", path.display()))(Call::Umount.failed()(errno)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Result<Options, String> {
        Options::read(&words.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn flags_are_told_from_data() {
        let options =
            read(&["ro", "nosuid", "suid", "rbind", "defaults", "lowerdir=/a:/b", "context=\"a,b\""]).unwrap();
        assert_eq!(options.flags.0, MsFlags::MS_RDONLY | MsFlags::MS_BIND | MsFlags::MS_REC);
        assert_eq!(options.data, ["defaults", "lowerdir=/a:/b", "context=\"a,b\""]);
    }

    #[test]
    fn what_containerd_should_have_used_up_is_refused() {
        assert!(read(&["X-containerd.mkfs.size=1"]).unwrap_err().contains("X-containerd.mkfs.size=1"));
    }

    #[test]
    fn id_maps_come_in_pairs() {
        let options = read(&["uidmap=0:1000:10,10:5:1", "gidmap=0:1:2"]).unwrap();
        assert_eq!(options.ids, Some(("0 1000 10\n10 5 1\n".into(), "0 1 2\n".into())));
        assert!(read(&["uidmap=0:1:2"]).is_err());
        assert!(read(&["uidmap=0:1", "gidmap=0:1:2"]).is_err());
    }
}

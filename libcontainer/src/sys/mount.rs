//! The mount calls of Linux 5.2 and later: a mount is a descriptor, complete before anybody can see it.
#![expect(unsafe_code, reason = "nix has no wrapper for these system calls")]

use std::ffi::{CStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::ptr;

use super::{Call, Failed, check};

/// Attributes of one mount: the `MOUNT_ATTR_*` bits of `mount_setattr(2)`.
pub(crate) mod attr {
    pub(crate) const RDONLY: u64 = 0x01;
    pub(crate) const NOSUID: u64 = 0x02;
    pub(crate) const NODEV: u64 = 0x04;
    pub(crate) const NOEXEC: u64 = 0x08;
    /// A field of three bits, not a flag: relatime is 0 in it. To change it, clear all of it.
    pub(crate) const ATIME: u64 = 0x70;
    pub(crate) const NOATIME: u64 = 0x10;
    pub(crate) const STRICTATIME: u64 = 0x20;
    pub(crate) const NODIRATIME: u64 = 0x80;
    pub(crate) const IDMAP: u64 = 0x0010_0000;
    /// Linux 5.14.
    pub(crate) const NOSYMFOLLOW: u64 = 0x0020_0000;
}

/// `struct mount_attr`, as `mount_setattr(2)` reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MountAttr {
    pub(crate) set: u64,
    pub(crate) clear: u64,
    /// One of `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, `MS_UNBINDABLE`, or 0 to leave it.
    pub(crate) propagation: u64,
    /// A user namespace, with [`attr::IDMAP`] in `set`.
    pub(crate) userns: u64,
}

const OPEN_TREE_CLONE: libc::c_uint = 1;
const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC as libc::c_uint;
const EMPTY_PATH: libc::c_uint = libc::AT_EMPTY_PATH as libc::c_uint;
const RECURSIVE: libc::c_uint = libc::AT_RECURSIVE as libc::c_uint;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x04;
const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;
const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSPICK_CLOEXEC: libc::c_uint = 1;
const FSPICK_EMPTY_PATH: libc::c_uint = 8;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const FSCONFIG_CMD_RECONFIGURE: libc::c_uint = 7;

fn owned(call: Call, answer: libc::c_long) -> Result<OwnedFd, Failed> {
    let fd = check(call, answer)?;
    // SAFETY: the kernel has just opened this descriptor for us; nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// `open_tree(2)` with `OPEN_TREE_CLONE`: a detached copy of the mount at `path`, with what is mounted below it if `recursive`.
/// An empty path copies the mount `dir` is open on, from that directory or file on. Linux 5.2.
pub(crate) fn clone_tree(dir: BorrowedFd<'_>, path: &CStr, recursive: bool) -> Result<OwnedFd, Failed> {
    let mut flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC;
    flags |= if recursive { RECURSIVE } else { 0 };
    flags |= if path.is_empty() { EMPTY_PATH } else { 0 };
    // SAFETY: the path is a live C string, which the kernel only reads.
    let answer = unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), path.as_ptr(), flags) };
    owned(Call::OpenTree, answer)
}

/// `move_mount(2)`: attaches the mount `mount` is open on to the file or directory `target` is open on. Linux 5.2.
pub(crate) fn move_mount(mount: impl AsFd, target: impl AsFd) -> Result<(), Failed> {
    let (from, to, empty) = (mount.as_fd().as_raw_fd(), target.as_fd().as_raw_fd(), c"".as_ptr());
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: both paths are static C strings.
    let answer = unsafe { libc::syscall(libc::SYS_move_mount, from, empty, to, empty, flags) };
    check(Call::MoveMount, answer).map(drop)
}

/// [`move_mount`] onto a path of the runtime's own namespace: never onto one inside a container.
pub(crate) fn move_mount_to_path(mount: impl AsFd, path: &CStr) -> Result<(), Failed> {
    let (from, empty) = (mount.as_fd().as_raw_fd(), c"".as_ptr());
    // SAFETY: both paths are live C strings, which the kernel only reads.
    let answer = unsafe {
        libc::syscall(libc::SYS_move_mount, from, empty, libc::AT_FDCWD, path.as_ptr(), MOVE_MOUNT_F_EMPTY_PATH)
    };
    check(Call::MoveMount, answer).map(drop)
}

/// `mount_setattr(2)` on the mount `mount` is open on, and on all below it if `recursive`. Linux 5.12.
pub(crate) fn mount_setattr(mount: impl AsFd, recursive: bool, attr: &MountAttr) -> Result<(), Failed> {
    let flags = EMPTY_PATH | if recursive { RECURSIVE } else { 0 };
    let (fd, size) = (mount.as_fd().as_raw_fd(), size_of::<MountAttr>());
    // SAFETY: the path is a static C string; `attr` is a live reference of `size` bytes, which the kernel only reads.
    let answer = unsafe { libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), flags, ptr::from_ref(attr), size) };
    check(Call::MountSetattr, answer).map(drop)
}

/// `fsopen(2)`: a filesystem about to be configured. Linux 5.2.
pub(crate) fn fsopen(kind: &CStr) -> Result<OwnedFd, Failed> {
    // SAFETY: the name is a live C string, which the kernel only reads.
    let answer = unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) };
    owned(Call::Fsopen, answer)
}

/// `fspick(2)`: the filesystem of the mount `mount` is open on, about to be reconfigured. Linux 5.2.
pub(crate) fn fspick(mount: impl AsFd) -> Result<OwnedFd, Failed> {
    let (fd, flags) = (mount.as_fd().as_raw_fd(), FSPICK_CLOEXEC | FSPICK_EMPTY_PATH);
    // SAFETY: the path is a static C string.
    let answer = unsafe { libc::syscall(libc::SYS_fspick, fd, c"".as_ptr(), flags) };
    owned(Call::Fspick, answer)
}

fn fsconfig(fs: BorrowedFd<'_>, command: libc::c_uint, key: Option<&CStr>, value: Option<&CStr>) -> Result<(), Failed> {
    let (key, value) = (key.map_or(ptr::null(), CStr::as_ptr), value.map_or(ptr::null(), CStr::as_ptr));
    // SAFETY: key and value are null where the command takes none, else live C strings, which the kernel only reads.
    let answer = unsafe { libc::syscall(libc::SYS_fsconfig, fs.as_raw_fd(), command, key, value, 0) };
    check(Call::Fsconfig, answer).map(drop)
}

/// The longest value `FSCONFIG_SET_STRING` takes, without its NUL (fs/fsopen.c).
pub(crate) const FSCONFIG_VALUE_MAX: usize = 255;

/// `fsconfig(2)`: one option, `key` or `key=value`.
pub(crate) fn fsconfig_set(fs: BorrowedFd<'_>, key: &CStr, value: Option<&CStr>) -> Result<(), Failed> {
    let command = if value.is_some() { FSCONFIG_SET_STRING } else { FSCONFIG_SET_FLAG };
    fsconfig(fs, command, Some(key), value)
}

/// `fsconfig(2)`: the options are complete, make (or find) the superblock.
pub(crate) fn fsconfig_create(fs: BorrowedFd<'_>) -> Result<(), Failed> {
    fsconfig(fs, FSCONFIG_CMD_CREATE, None, None)
}

/// `fsconfig(2)`: the options are complete, apply them to the superblock from [`fspick`].
pub(crate) fn fsconfig_reconfigure(fs: BorrowedFd<'_>) -> Result<(), Failed> {
    fsconfig(fs, FSCONFIG_CMD_RECONFIGURE, None, None)
}

/// `fsmount(2)`: a detached mount of a created filesystem, with `MOUNT_ATTR_*` bits. Linux 5.2.
pub(crate) fn fsmount(fs: BorrowedFd<'_>, attrs: u64) -> Result<OwnedFd, Failed> {
    // SAFETY: only numbers are passed.
    let answer = unsafe { libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), FSMOUNT_CLOEXEC, attrs as libc::c_uint) };
    owned(Call::Fsmount, answer)
}

/// What the filesystem said about its refusal, if anything: the first error in the log of its context,
/// like `tmpfs: Bad value for 'size'` (fsopen(2), "Message retrieval interface").
pub(crate) fn fs_complaint(fs: BorrowedFd<'_>) -> Option<String> {
    let mut message = [0; 256];
    // The log holds at most eight messages; it answers ENODATA after the last.
    std::iter::from_fn(|| nix::unistd::read(fs, &mut message).ok().map(|n| message[..n].to_vec()))
        .find_map(|m| m.strip_prefix(b"e ").map(|text| String::from_utf8_lossy(text).trim_end().to_owned()))
}

/// [`mount_setattr`] with the id mapping of `namespace`, on a mount that is not attached yet. Linux 5.12.
pub(crate) fn idmap(mount: BorrowedFd<'_>, recursive: bool, namespace: BorrowedFd<'_>) -> Result<(), Failed> {
    let userns = u64::from(namespace.as_raw_fd().unsigned_abs());
    mount_setattr(mount, recursive, &MountAttr { set: attr::IDMAP, userns, ..MountAttr::default() })
}

/// One line of `mountinfo` (proc_pid_mountinfo(5)), as far as we use it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mountpoint<'a> {
    pub(crate) path: PathBuf,
    pub(crate) kind: &'a [u8],
}

/// The mounts of a `mountinfo`. Of two that are on each other, either may come first.
pub(crate) fn mountpoints(table: &[u8]) -> impl Iterator<Item = Mountpoint<'_>> {
    table.split(|b| *b == b'\n').filter_map(|line| {
        let mut fields = line.split(|b| *b == b' ');
        let path = unescape(fields.nth(4)?);
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        Some(Mountpoint { path, kind })
    })
}

/// Blanks and backslashes stand there as `\040` and the like.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = || std::str::from_utf8(tail.get(..3)?).ok().and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match if *first == b'\\' { octal() } else { None } {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read_with_its_escapes_and_optional_fields() {
        let table = b"23 27 0:22 / /sys rw,relatime - sysfs sysfs rw\n\
            29 26 0:26 / /a\\040b\\134c rw shared:1 master:2 - tmpfs none rw\n";
        let mounts: Vec<_> = mountpoints(table).collect();
        assert_eq!(mounts[0], Mountpoint { path: "/sys".into(), kind: b"sysfs" });
        assert_eq!(mounts[1], Mountpoint { path: "/a b\\c".into(), kind: b"tmpfs" });
        assert_eq!(mounts.len(), 2);
    }
}

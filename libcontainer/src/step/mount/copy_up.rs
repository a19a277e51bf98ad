//! `tmpcopyup`: what a new tmpfs covers is copied into it first.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstatat, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, symlinkat};

use crate::sys::{Call, Failed, io_failed};

/// Copies the entries of the directory `from` into the directory `to`, with modes, owners and times.
pub(crate) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Failed> {
    let mut entries =
        Dir::from_fd(open(from, c".", OFlag::O_RDONLY | OFlag::O_DIRECTORY)?).map_err(Call::Open.failed())?;
    for entry in entries.iter() {
        let entry = entry.map_err(Call::Getdents.failed())?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            copy_entry(from, to, name)?;
        }
    }
    Ok(())
}

/// One name, and never a link: what the image puts in the way between two looks is an error (ELOOP).
fn open(at: BorrowedFd<'_>, name: &CStr, flags: OFlag) -> Result<std::os::fd::OwnedFd, Failed> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let how = OpenHow::new().flags(flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).resolve(resolve);
    openat2(at, name, how).map_err(Call::Openat2.failed())
}

fn copy_entry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> Result<(), Failed> {
    let stat = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(Call::Fstat.failed())?;
    let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
    match kind {
        SFlag::S_IFDIR => {
            mkdirat(to, name, Mode::S_IRWXU).map_err(Call::Mkdir.failed())?;
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
            copy(open(from, name, flags)?.as_fd(), open(to, name, flags)?.as_fd())?;
        }
        SFlag::S_IFREG => copy_file(from, to, name)?,
        SFlag::S_IFLNK => {
            let link = readlinkat(from, name).map_err(Call::Readlink.failed())?;
            symlinkat(link.as_os_str(), to, name).map_err(Call::Symlink.failed())?;
        }
        // A socket's other end is gone with the process that listened.
        SFlag::S_IFSOCK => return Ok(()),
        _ => mknodat(to, name, kind, Mode::S_IRUSR, stat.st_rdev).map_err(Call::Mknod.failed())?,
    }
    take_after(to, name, kind, &stat)
}

fn copy_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> Result<(), Failed> {
    // Not to hang on a FIFO that has just taken the file's place.
    let source = open(from, name, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let copy = nix::fcntl::openat(to, name, flags, Mode::S_IRWXU).map_err(Call::Open.failed())?;
    std::io::copy(&mut File::from(source), &mut File::from(copy)).map(drop).map_err(io_failed(Call::Write))
}

/// Owner, mode and times of the original; in this order, as a change of owner clears set-id bits.
fn take_after(to: BorrowedFd<'_>, name: &CStr, kind: SFlag, stat: &FileStat) -> Result<(), Failed> {
    let (uid, gid) = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    fchownat(to, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(Call::Fchown.failed())?;
    if kind != SFlag::S_IFLNK {
        let mode = Mode::from_bits_truncate(stat.st_mode);
        fchmodat(to, name, mode, nix::sys::stat::FchmodatFlags::FollowSymlink).map_err(Call::Fchmod.failed())?;
    }
    let (atime, mtime) =
        (TimeSpec::new(stat.st_atime, stat.st_atime_nsec), TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec));
    utimensat(to, name, &atime, &mtime, UtimensatFlags::NoFollowSymlink).map_err(Call::Utimens.failed())
}

//! A cgroup directory that is kept open: every file is reached from its descriptor, with no walk over a path.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, Uid, faccessat, fchownat, read, write};

#[derive(Debug)]
pub(super) struct Dir(OwnedFd);

impl Dir {
    pub(super) fn open(path: &Path) -> Result<Dir, Errno> {
        open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).map(Dir)
    }

    pub(super) fn open_below(&self, name: &(impl NixPath + ?Sized)) -> Result<Dir, Errno> {
        openat(&self.0, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).map(Dir)
    }

    pub(super) fn open_file(&self, file: &str, how: OFlag) -> Result<OwnedFd, Errno> {
        openat(&self.0, file, how | OFlag::O_CLOEXEC, Mode::empty())
    }

    /// Hands over a value in one write, as cgroup files want it.
    pub(super) fn write(&self, file: &str, value: &str) -> Result<(), Errno> {
        hand_over(&self.open_file(file, OFlag::O_WRONLY)?, value)
    }

    /// Reads a whole file into `buffer`, which is emptied first and kept by the caller to be used again.
    pub(super) fn read<'b>(&self, file: &str, buffer: &'b mut Vec<u8>) -> Result<&'b str, Errno> {
        let fd = self.open_file(file, OFlag::O_RDONLY)?;
        let mut filled = 0;
        loop {
            if buffer.len() < filled + 1024 {
                buffer.resize(filled + 4096, 0);
            }
            match read(&fd, &mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        // The kernel writes ASCII here, but device and interface names in it are the administrator's.
        std::str::from_utf8(&buffer[..filled]).map_err(|_| Errno::EILSEQ)
    }

    /// Changes the owner of a file, or (no name) of the directory itself.
    pub(super) fn give(&self, file: &str, user: Uid) -> Result<(), Errno> {
        fchownat(&self.0, file, Some(user), None, AtFlags::AT_EMPTY_PATH)
    }

    /// The names of the directories below.
    pub(super) fn children(&self) -> Result<Vec<std::ffi::CString>, Errno> {
        let mut names = Vec::new();
        // A fresh description, so that the kept one's read position stays untouched.
        for entry in nix::dir::Dir::from_fd(self.open_below(".")?.0)?.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if entry.file_type() == Some(nix::dir::Type::Directory) && name != c"." && name != c".." {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    pub(super) fn has(&self, file: &str) -> bool {
        faccessat(&self.0, file, AccessFlags::F_OK, AtFlags::empty()).is_ok()
    }

    /// Visits this directory and all below it. What vanishes on the way is passed over. A container may nest cgroups
    /// deeper than a path can be long and than we have descriptors: this holds names and one descriptor, and climbs
    /// back by `..`, which is safe where directories cannot be moved to another parent.
    pub(super) fn walk(&self, visit: &mut dyn FnMut(&Dir) -> Result<(), Errno>) -> Result<(), Errno> {
        visit(self)?;
        let mut here = match self.open_below(".") {
            Err(Errno::ENOENT) => return Ok(()),
            other => other?,
        };
        let mut levels = vec![here.children_or_none()?];
        while let Some(names) = levels.last_mut() {
            match names.pop().map(|name| here.open_below(name.as_c_str())) {
                Some(Ok(below)) => {
                    visit(&below)?;
                    levels.push(below.children_or_none()?);
                    here = below;
                }
                Some(Err(Errno::ENOENT)) => {}
                Some(Err(errno)) => return Err(errno),
                None => {
                    levels.pop();
                    if !levels.is_empty() {
                        here = here.open_below("..")?;
                    }
                }
            }
        }
        Ok(())
    }

    fn children_or_none(&self) -> Result<Vec<std::ffi::CString>, Errno> {
        match self.children() {
            Err(Errno::ENOENT | Errno::ENODEV) => Ok(Vec::new()),
            other => other,
        }
    }
}

/// Writes a value to an open cgroup file, which takes as many as one likes, one a write.
pub(super) fn hand_over(file: &OwnedFd, value: &str) -> Result<(), Errno> {
    loop {
        match write(file, value.as_bytes()) {
            Err(Errno::EINTR) => {}
            other => return other.map(drop),
        }
    }
}

impl From<Dir> for OwnedFd {
    fn from(dir: Dir) -> OwnedFd {
        dir.0
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

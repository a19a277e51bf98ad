//! Paths inside a container's root, and the only way to turn one into a descriptor.

use std::collections::VecDeque;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};

use super::{Call, Failed};

/// As many symbolic links as the kernel follows in one path (path_resolution(7)).
const MAX_LINKS: u32 = 40;

/// A path inside the container: absolute, without `.`, `..` and doubled slashes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct InRoot(CString);

impl InRoot {
    /// Cleans `path` as text; a relative path counts from the root. `None` if it holds a NUL byte.
    pub(crate) fn new(path: impl AsRef<Path>) -> Option<Self> {
        let mut clean = PathBuf::from("/");
        for part in path.as_ref().components() {
            match part {
                Component::Normal(name) => clean.push(name),
                Component::ParentDir => drop(clean.pop()),
                Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
            }
        }
        CString::new(clean.into_os_string().into_vec()).ok().map(Self)
    }

    pub(crate) fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(self.0.as_bytes()))
    }

    /// The directory it is in and its name there; `None` for the root.
    fn split(&self) -> Option<(InRoot, &OsStr)> {
        let path = self.as_path();
        Some((InRoot::new(path.parent()?)?, path.file_name()?))
    }

    fn names(&self) -> impl Iterator<Item = OsString> {
        self.as_path().iter().skip(1).map(OsStr::to_owned)
    }
}

impl fmt::Display for InRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.as_path().display())
    }
}

fn open_with(root: BorrowedFd<'_>, path: &CStr, flags: OFlag, resolve: ResolveFlag) -> Result<OwnedFd, Errno> {
    let resolve = resolve | ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
    loop {
        match openat2(root, path, how) {
            // A rename or a mount somewhere on the machine crossed the walk, and a `..` could not be vouched for.
            Err(Errno::EAGAIN) => {}
            done => return done,
        }
    }
}

/// Opens `path` as the container would see it if `root` were its `/`: links and `..` end at the root, and no link of
/// `/proc` leads out of it. Linux 5.6.
pub(crate) fn open_in_root(root: BorrowedFd<'_>, path: &InRoot, flags: OFlag) -> Result<OwnedFd, Failed> {
    open_with(root, &path.0, flags, ResolveFlag::empty()).map_err(Call::Openat2.failed())
}

/// As [`open_in_root`], but a symbolic link anywhere in `path` is an error (ELOOP).
pub(crate) fn open_no_links(root: BorrowedFd<'_>, path: &InRoot, flags: OFlag) -> Result<OwnedFd, Failed> {
    open_with(root, &path.0, flags, ResolveFlag::RESOLVE_NO_SYMLINKS).map_err(Call::Openat2.failed())
}

/// What to make of a path that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaf {
    Directory,
    File,
}

/// What a symbolic link in a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    /// A way to go on, inside the root.
    Follow,
    /// An error (ELOOP).
    Refuse,
}

/// What [`open_or_make`] found.
#[derive(Debug)]
pub(crate) struct Opened {
    /// Open with `O_PATH`.
    pub(crate) fd: OwnedFd,
    /// Where it is once all links are resolved.
    pub(crate) path: PathBuf,
    /// It was not there before.
    pub(crate) made: bool,
}

/// Opens `path` inside `root`, and makes what is missing of it: directories of mode 755, at the end what `leaf` says.
/// A link that points nowhere is resolved, and what it names is made, as `mkdir -p` would from inside the container.
/// All of it stays inside `root`, whoever renames things meanwhile.
pub(crate) fn open_or_make(
    root: BorrowedFd<'_>,
    path: &InRoot,
    links: Links,
    leaf: impl FnOnce() -> Result<Leaf, Failed>,
) -> Result<Opened, Failed> {
    let found = |fd, made| Opened { fd, path: path.as_path().to_owned(), made };
    match open_no_links(root, path, OFlag::O_PATH) {
        Ok(fd) => return Ok(found(fd, false)),
        Err(Failed { errno: Errno::ELOOP, .. }) if links == Links::Follow => return walk(root, path, leaf()?),
        // No link stood in the way as far as the path exists.
        Err(Failed { errno: Errno::ENOENT, .. }) => {}
        Err(error) => return Err(error),
    }
    let (parent, name) = path.split().ok_or(Call::Openat2.failed()(Errno::ENOENT))?;
    match open_no_links(root, &parent, OFlag::O_PATH | OFlag::O_DIRECTORY) {
        // As a rule only the last name is missing.
        Ok(parent) => {
            make(parent.as_fd(), name, leaf()?)?;
            open_no_links(root, path, OFlag::O_PATH).map(|fd| found(fd, true))
        }
        Err(_) => walk(root, path, leaf()?),
    }
}

/// One name at a time, and a link is just its text, one of procfs too: what it says is looked up inside. Every open
/// starts at `root` again with a path that had no links in it when it was checked; one that somebody slips in later is
/// an error (ELOOP), never followed.
fn walk(root: BorrowedFd<'_>, path: &InRoot, leaf: Leaf) -> Result<Opened, Failed> {
    let open = |at: &Path, flags| {
        // An empty path would not be opened at all.
        let at = CString::new(Path::new("/").join(at).into_os_string().into_vec())
            .map_err(|_| Call::Openat2.failed()(Errno::EINVAL))?;
        open_with(root, &at, flags, ResolveFlag::RESOLVE_NO_SYMLINKS).map_err(Call::Openat2.failed())
    };
    let mut todo: VecDeque<OsString> = path.names().collect();
    let mut at = PathBuf::from("/");
    let mut fd = open(&at, OFlag::O_PATH)?;
    let (mut made, mut links) = (false, 0);
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            at.pop();
            fd = open(&at, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
            continue;
        }
        let next = at.join(&name);
        match open(&next, OFlag::O_PATH | OFlag::O_NOFOLLOW) {
            Ok(found) => {
                let kind = fstat(&found).map_err(Call::Fstat.failed())?.st_mode & SFlag::S_IFMT.bits();
                if kind != SFlag::S_IFLNK.bits() {
                    (at, fd) = (next, found);
                    continue;
                }
                let link = PathBuf::from(readlinkat(&found, c"").map_err(Call::Readlink.failed())?);
                links += 1;
                if link.is_absolute() {
                    at = PathBuf::from("/");
                }
                let names = link.components().filter_map(|part| match part {
                    Component::Normal(name) => Some(name.to_owned()),
                    Component::ParentDir => Some(OsString::from("..")),
                    _ => None,
                });
                todo = names.chain(todo).collect();
            }
            Err(Failed { errno: Errno::ENOENT, .. }) => {
                let parent = open(&at, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
                make(parent.as_fd(), &name, if todo.is_empty() { leaf } else { Leaf::Directory })?;
                made = true;
                todo.push_front(name);
                // Whoever removes it as fast as we make it is not waited for.
                links += 1;
            }
            Err(error) => return Err(error),
        }
        if links > MAX_LINKS {
            return Err(Call::Openat2.failed()(Errno::ELOOP));
        }
    }
    Ok(Opened { fd, path: at, made })
}

fn make(parent: BorrowedFd<'_>, name: &OsStr, leaf: Leaf) -> Result<(), Failed> {
    let (call, done) = match leaf {
        Leaf::Directory => (Call::Mkdir, mkdirat(parent, name, Mode::from_bits_truncate(0o755))),
        Leaf::File => {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let file = nix::fcntl::openat(parent, name, flags, Mode::from_bits_truncate(0o644));
            (Call::Open, file.map(drop))
        }
    };
    match done {
        // Somebody else made it first; the walk looks at what it is.
        Err(Errno::EEXIST) => Ok(()),
        done => done.map_err(call.failed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_cleaned_as_text() {
        for (from, to) in [("/proc/", "/proc"), ("a//b/./c", "/a/b/c"), ("/a/../../b", "/b"), ("/..", "/"), ("", "/")] {
            assert_eq!(InRoot::new(from).expect("no NUL").as_path(), Path::new(to), "{from}");
        }
        assert_eq!(InRoot::new("/a\0b"), None);
    }

    /// A root with a folder beside it that nothing may reach.
    fn stage() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().expect("a folder");
        for name in ["root", "outside"] {
            std::fs::create_dir(dir.path().join(name)).expect("folder");
        }
        let root = std::fs::File::open(dir.path().join("root")).expect("root").into();
        (dir, root)
    }

    fn path(text: &str) -> InRoot {
        InRoot::new(text).expect("no NUL")
    }

    #[test]
    fn what_is_missing_is_made_and_what_is_there_is_found() {
        let (dir, root) = stage();
        let make = |text, leaf| open_or_make(root.as_fd(), &path(text), Links::Follow, || Ok(leaf)).expect(text);
        for (text, leaf) in [("/a/b/c", Leaf::Directory), ("/a/b/file", Leaf::File), ("/x", Leaf::File)] {
            assert!(make(text, leaf).made);
            let again = make(text, Leaf::Directory);
            assert_eq!((again.made, again.path.as_path()), (false, Path::new(text)));
        }
        assert!(dir.path().join("root/a/b/file").is_file() && dir.path().join("root/a/b/c").is_dir());
        let below_a_file = open_or_make(root.as_fd(), &path("/x/y"), Links::Follow, || Ok(Leaf::File));
        assert_eq!(below_a_file.map_err(|f| f.errno).err(), Some(Errno::ENOTDIR));
    }

    #[test]
    fn links_are_resolved_inside_or_refused() {
        let (dir, root) = stage();
        let link = |to: &str, at: &str| {
            std::os::unix::fs::symlink(to, dir.path().join("root").join(at)).expect("link");
        };
        link("/deep/er", "absolute");
        link("../../../outside/x", "relative");
        link("absolute/more", "chain");
        link("self", "self");
        for (text, real) in
            [("/absolute/f", "/deep/er/f"), ("/relative", "/outside/x"), ("/chain/g", "/deep/er/more/g")]
        {
            let made = open_or_make(root.as_fd(), &path(text), Links::Follow, || Ok(Leaf::File)).expect(text);
            assert_eq!(made.path, Path::new(real));
            let refused = open_or_make(root.as_fd(), &path(text), Links::Refuse, || Ok(Leaf::File));
            assert_eq!(refused.err().map(|f| f.errno), Some(Errno::ELOOP), "{text}");
        }
        let endless = open_or_make(root.as_fd(), &path("/self/x"), Links::Follow, || Ok(Leaf::File));
        assert_eq!(endless.err().map(|f| f.errno), Some(Errno::ELOOP));
        assert_eq!(std::fs::read_dir(dir.path().join("outside")).expect("outside").count(), 0);
    }

    /// Somebody in the root exchanges a directory for a link that leads out, as fast as they can.
    #[test]
    fn a_race_for_a_link_is_never_won() {
        let (dir, root) = stage();
        let outside = dir.path().join("outside");
        std::fs::create_dir(dir.path().join("root/dir")).expect("folder");
        std::os::unix::fs::symlink(&outside, dir.path().join("root/link")).expect("link");
        std::os::unix::fs::symlink("../outside", dir.path().join("root/link-2")).expect("link");
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                use nix::fcntl::{RenameFlags, renameat2};
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    for other in ["link", "link-2"] {
                        renameat2(&root, "dir", &root, other, RenameFlags::RENAME_EXCHANGE).expect("exchange");
                    }
                }
            });
            let (mut n, mut opened, mut refused) = (0, 0, 0);
            // Until both sides have had many turns.
            while opened < 1000 || refused < 1000 {
                n += 1;
                let (text, links) = (format!("/dir/{n}/x"), if n % 2 == 0 { Links::Follow } else { Links::Refuse });
                match open_or_make(root.as_fd(), &path(&text), links, || Ok(Leaf::File)) {
                    Ok(_) => opened += 1,
                    Err(_) => refused += 1,
                }
            }
            over.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert_eq!(std::fs::read_dir(&outside).expect("outside").count(), 0);
    }
}

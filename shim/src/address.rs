//! The socket a shim listens on: where containerd expects it, who may use it, and how two shims never share one.

use std::{
    fmt::Write as _,
    fs::{self, DirBuilder, File},
    io,
    os::unix::{fs::DirBuilderExt as _, net::UnixListener},
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::fcntl::{Flock, FlockArg};
use runtime_v2_server::{Listener, listen, listener};
use sha2::{Digest as _, Sha256};

/// Where sockets are when containerd does not say otherwise (2.3 and later may), whatever its own state folder is.
pub(crate) const SOCKET_DIR: &str = "/run/containerd/s";

/// The path of the socket for one shim: containerd's tests and tools compute it too, and connect.
///
/// `group` is the group's name, or the container's if it is alone.
pub(crate) fn socket_path(dir: &Path, containerd: &str, namespace: &str, group: &str) -> PathBuf {
    let joined = clean(&format!("{containerd}/{namespace}/{group}"));
    let mut name = String::with_capacity(64);
    for byte in Sha256::digest(joined.as_os_str().as_encoded_bytes()) {
        // Writing to a String cannot fail.
        write!(name, "{byte:02x}").unwrap_or_default();
    }
    dir.join(name)
}

/// The shortest spelling of a path, found without looking at files, as Go's `path.Join` makes it.
fn clean(path: &str) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => match clean.components().next_back() {
                Some(Component::Normal(_)) => drop(clean.pop()),
                Some(Component::RootDir) => {}
                _ => clean.push(".."),
            },
            _ => clean.push(part),
        }
    }
    clean
}

/// The socket of a shim.
pub(crate) enum Socket {
    /// Nobody served there; now we listen.
    Ours(UnixListener),
    /// A shim serves there already.
    Served,
}

/// Takes the socket at `path`, unless a shim is serving on it. What a shim that was killed left behind is replaced.
pub(crate) fn take(path: &Path) -> Result<Socket> {
    let dir = folder(path);
    DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(|| format!("make {}", dir.display()))?;
    let _lock = lock(dir)?;
    match listen(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if !remove_dead(path)? {
                return Ok(Socket::Served);
            }
            listen(path)
        }
        answer => answer,
    }
    .map(Socket::Ours)
    .with_context(|| format!("listen on {}", path.display()))
}

/// Removes the socket at `path` if the shim that served there is gone.
pub(crate) fn sweep(path: &Path) -> Result<()> {
    if path.try_exists().with_context(|| format!("look for {}", path.display()))? {
        let _lock = lock(folder(path))?;
        remove_dead(path)?;
    }
    Ok(())
}

/// Looking whether somebody serves and replacing the socket must be one step, or of two processes started at once, the
/// second could remove what the first has just made. So both are done under a lock on the folder, which leaves no file.
fn lock(dir: &Path) -> Result<Flock<File>> {
    let file = File::open(dir).with_context(|| format!("open {}", dir.display()))?;
    let locked = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno);
    locked.with_context(|| format!("lock {}", dir.display()))
}

fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// With the folder locked: makes sure that nothing is at `path`, unless somebody serves there.
fn remove_dead(path: &Path) -> Result<bool> {
    // Whoever called listen(2), `start`, has ended long ago.
    if listener(path).with_context(|| format!("connect to {}", path.display()))? != Listener::Nobody {
        return Ok(false);
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove the dead socket {}", path.display()))
        }
        _ => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use nix::sys::socket::Backlog;

    use super::*;

    #[test]
    fn the_path_is_the_hash_that_containerd_computes() {
        // From `echo -n /run/containerd/containerd.sock/k8s.io/web-1 | sha256sum`.
        let expected = "/run/containerd/s/f584ec2740b3f1866089a3d3cc055d405fab7e0faf16258890f45bf7d733bad4";
        let path = |containerd| socket_path(Path::new(SOCKET_DIR), containerd, "k8s.io", "web-1");
        assert_eq!(path("/run/containerd/containerd.sock"), Path::new(expected));
        assert_eq!(path("/run//containerd/./x/../containerd.sock/"), Path::new(expected));
        assert_ne!(path("/run/other/containerd.sock"), Path::new(expected));
    }

    #[test]
    fn cleaning_is_lexical() {
        for (path, expected) in
            [("/../a//b/./c/..", "/a/b"), ("a/../../b", "../b"), ("unix:///run/x/ns/id", "unix:/run/x/ns/id")]
        {
            assert_eq!(clean(path), Path::new(expected));
        }
    }

    #[test]
    fn only_a_dead_socket_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s/one");
        let Socket::Ours(first) = take(&path).unwrap() else { panic!("nobody served there") };
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(folder.path().join("s")).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(matches!(take(&path).unwrap(), Socket::Served));
        drop(first);
        assert!(matches!(take(&path).unwrap(), Socket::Ours(_)));
    }

    #[test]
    fn a_full_queue_is_a_live_shim() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("one");
        let Socket::Ours(listener) = take(&path).unwrap() else { panic!("nobody served there") };
        nix::sys::socket::listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let _waiting = std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert!(matches!(take(&path).unwrap(), Socket::Served));
    }
}

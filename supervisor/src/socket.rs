//! The supervisor's socket, and the folder that only one supervisor uses: who may come in, and how two never share.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
            net::UnixListener as StdUnixListener,
        },
    },
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::socket::{getsockopt, sockopt::PeerCredentials},
    unistd::geteuid,
};
use runtime_v2_server::is_served;
use tokio::net::UnixStream;

/// Holding this, we are the only supervisor of a state folder.
#[derive(Debug)]
pub(crate) enum Lock {
    /// Dropped, it is given up.
    Taken(Flock<fs::File>),
    /// The same lock, which is the open file's, by a descriptor that our former self left us.
    Inherited(OwnedFd),
}

impl Lock {
    /// Takes the folder, which is made if it is missing, for us alone.
    pub(crate) fn take(state: &Path) -> Result<Self> {
        make_private(state)?;
        let path = state.join("lock");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.with_context(|| format!("open {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Self::sign(lock).with_context(|| format!("write {}", path.display())),
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid).with_context(|| format!("read {}", path.display()))?;
                bail!(
                    "another supervisor, process {}, uses {}; stop it first, or give this one a --state and a --root of \
                     its own",
                    pid.trim(),
                    state.display()
                )
            }
            Err((_, errno)) => Err(errno).with_context(|| format!("lock {}", path.display())),
        }
    }

    /// Says who holds it, for the next who tries.
    fn sign(lock: Flock<fs::File>) -> io::Result<Self> {
        lock.set_len(0)?;
        (&*lock).write_all(format!("{}\n", std::process::id()).as_bytes())?;
        Ok(Self::Taken(lock))
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Taken(lock) => lock.as_fd(),
            Self::Inherited(fd) => fd.as_fd(),
        }
    }
}

/// A folder for us alone: what is kept there decides what is run, as whom.
pub(crate) fn make_private(folder: &Path) -> Result<()> {
    let named = || folder.display().to_string();
    DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(|| format!("make {}", named()))?;
    let meta = fs::metadata(folder).with_context(|| format!("look at {}", named()))?;
    if meta.uid() != geteuid().as_raw() || meta.mode() & 0o022 != 0 {
        bail!(
            "{} belongs to user {} with mode {:o}, and must be ours and writable for nobody else",
            named(),
            meta.uid(),
            meta.mode() & 0o7777
        );
    }
    Ok(())
}

/// Listens at `path`, in the place of a supervisor that was killed, but not of one that serves.
pub(crate) fn listen(path: &Path) -> Result<StdUnixListener> {
    match runtime_v2_server::listen(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if is_served(path).with_context(|| format!("connect to {}", path.display()))? {
                bail!("somebody serves on {} already; give this supervisor an --address of its own", path.display());
            }
            fs::remove_file(path).with_context(|| format!("remove the dead socket {}", path.display()))?;
            runtime_v2_server::listen(path)
        }
        answer => answer,
    }
    .with_context(|| format!("listen on {}", path.display()))
}

/// Refuses clients of another user.
pub(crate) fn admit(stream: &UnixStream) -> io::Result<()> {
    let peer = getsockopt(stream, PeerCredentials)?;
    if peer.uid() == geteuid().as_raw() {
        return Ok(());
    }
    Err(io::Error::other(format!("process {} is of user {}", peer.pid(), peer.uid())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_state_folder_has_one_supervisor() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("a/state");
        let first = Lock::take(&state).unwrap();
        let error = Lock::take(&state).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}, uses {}", std::process::id(), state.display())), "{error}");
        drop(first);
        Lock::take(&state).unwrap();
    }

    #[test]
    fn a_folder_that_others_may_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = Lock::take(folder.path()).unwrap_err().to_string();
        assert!(error.contains("with mode 777"), "{error}");
    }

    #[test]
    fn only_a_dead_socket_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let first = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(listen(&path).unwrap_err().to_string().contains("somebody serves on"));
        drop(first);
        listen(&path).unwrap();
    }
}

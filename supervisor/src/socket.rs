//! The supervisor's socket, and the folder that only one supervisor uses: who may come in, and how two never share.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Read as _},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _},
            net::UnixListener as StdUnixListener,
        },
    },
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::{
        signal::kill,
        socket::{getsockopt, sockopt::PeerCredentials},
    },
    unistd::{Pid, geteuid},
};
use runtime_v2_server::{Listener, listener};
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
        let failed = || format!("lock {}", path.display());
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid).with_context(|| format!("read {}", path.display()))?;
                let pid = pid.trim();
                if !pid.parse().is_ok_and(|pid| is_gone(Pid::from_raw(pid))) {
                    bail!(
                        "another supervisor, process {pid}, uses {}; stop it first, or give this one a --state and a \
                         --root of its own",
                        state.display()
                    );
                }
                // It was killed while it started a child, which has the lock as well until it executes its program.
                Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).with_context(failed)?
            }
            Err((_, errno)) => return Err(errno).with_context(failed),
        };
        Self::sign(lock).with_context(|| format!("write {}", path.display()))
    }

    /// Says who holds it, for the next who tries.
    fn sign(lock: Flock<fs::File>) -> io::Result<Self> {
        lock.set_len(0)?;
        lock.write_all_at(format!("{}\n", std::process::id()).as_bytes(), 0)?;
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

/// No process has this number any more.
fn is_gone(pid: Pid) -> bool {
    kill(pid, None) == Err(Errno::ESRCH)
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
            let there = match listener(path).with_context(|| format!("connect to {}", path.display()))? {
                Listener::Nobody => false,
                // As with the lock, a child of a killed supervisor may have the socket for a moment.
                Listener::There(who) => who.is_none_or(|who| !is_gone(who)),
            };
            if there {
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
    fn a_child_of_a_dead_supervisor_keeps_the_folder_only_until_it_executes_its_program() {
        let folder = tempfile::tempdir().unwrap();
        let Ok(Lock::Taken(lock)) = Lock::take(folder.path()) else { panic!("not taken") };
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        dead.wait().unwrap();
        lock.set_len(0).unwrap();
        lock.write_all_at(dead.id().to_string().as_bytes(), 0).unwrap();
        let (done, taken) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| done.send(Lock::take(folder.path()).map(drop)));
            assert!(taken.recv_timeout(std::time::Duration::from_millis(50)).is_err(), "it is not refused, and waits");
            drop(lock);
            taken.recv().unwrap().unwrap();
        });
    }

    #[test]
    fn a_folder_that_others_may_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = Lock::take(folder.path()).unwrap_err().to_string();
        assert!(error.contains("with mode 777"), "{error}");
    }

    /// Set for the process that is to listen there.
    const LISTEN: &str = "DUNNAGE_TEST_LISTEN";

    #[test]
    fn a_socket_that_only_a_child_of_a_dead_supervisor_has_is_replaced() {
        use std::process::{Command, Stdio};
        if let Some(path) = std::env::var_os(LISTEN) {
            let inherited = Stdio::from(OwnedFd::from(listen(path.as_ref()).unwrap()));
            let mut child = Command::new("sleep");
            child.arg("1000").stdin(inherited).stdout(Stdio::null()).stderr(Stdio::null());
            return println!("left to {}.", child.spawn().unwrap().id());
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let mut dies = Command::new(std::env::current_exe().unwrap());
        let name = "socket::tests::a_socket_that_only_a_child_of_a_dead_supervisor_has_is_replaced";
        let output = dies.args(["--exact", "--nocapture", name]).env(LISTEN, &path).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let heir = text.split_once("left to ").and_then(|(_, rest)| rest.split_once('.')).expect("an heir").0;
        let heir = Pid::from_raw(heir.parse().unwrap());
        assert_ne!(listener(&path).unwrap(), Listener::Nobody, "somebody has it");
        let replaced = listen(&path);
        kill(heir, nix::sys::signal::Signal::SIGKILL).unwrap();
        replaced.unwrap();
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

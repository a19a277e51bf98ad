//! The supervisor's socket, and the folder that only one supervisor uses: who may come in, and how two never share.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io,
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
    fcntl::{FcntlArg, fcntl},
    libc,
    sys::{
        signal::kill,
        socket::{getsockopt, sockopt::PeerCredentials},
    },
    unistd::{Pid, geteuid},
};
use runtime_v2_server::{Listener, listener};
use tokio::net::UnixStream;

/// Holding this, we are the only supervisor of a folder.
///
/// It is a record lock (fcntl(2)): an upgrade's execve(2) keeps it, a child does not get it, whatever becomes of us before it
/// executes its program, and the kernel knows who has it. The price is that it goes when *any* descriptor of the file is
/// closed here, so nothing else opens that file.
#[derive(Debug)]
pub(crate) struct Lock(OwnedFd);

impl Lock {
    /// Takes the folder, which is made if it is missing, for us alone.
    pub(crate) fn take(state: &Path) -> Result<Self> {
        make_private(state)?;
        let path = state.join("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.with_context(|| format!("open {}", path.display()))?;
        let failed = || format!("lock {}", path.display());
        loop {
            match fcntl(&file, FcntlArg::F_SETLK(&whole())) {
                Ok(_) => return Ok(Self(file.into())),
                Err(Errno::EAGAIN | Errno::EACCES) => {}
                Err(errno) => return Err(errno).with_context(failed),
            }
            // Who had it may have ended since.
            if let Some(holder) = holder(&file).with_context(failed)? {
                bail!(
                    "another supervisor, process {holder}, uses {}; stop it first, or give this one a --state and a \
                     --root of its own",
                    state.display()
                );
            }
        }
    }

    /// The same lock, by the descriptor that our former self left us.
    pub(crate) fn inherited(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The process that has the lock, if somebody has: 0 for one in another pid namespace.
pub(crate) fn holder(file: &fs::File) -> io::Result<Option<i32>> {
    let mut found = whole();
    fcntl(file, FcntlArg::F_GETLK(&mut found))?;
    Ok((i32::from(found.l_type) != libc::F_UNLCK).then_some(found.l_pid))
}

/// The whole file, for one alone.
fn whole() -> libc::flock {
    libc::flock { l_type: libc::F_WRLCK as _, l_whence: libc::SEEK_SET as _, l_start: 0, l_len: 0, l_pid: 0 }
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
    use std::os::{fd::AsRawFd as _, unix::fs::PermissionsExt as _};

    use nix::sys::socket::{Shutdown, shutdown};

    use super::*;

    /// Set for the process that is to take the folder.
    const TAKE: &str = "DUNNAGE_TEST_TAKE";

    #[test]
    fn a_state_folder_has_one_supervisor() {
        use std::process::Command;
        if let Some(state) = std::env::var_os(TAKE) {
            return println!(
                "{}",
                Lock::take(state.as_ref()).map_or_else(|error| error.to_string(), |_| "taken".into())
            );
        }
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("a/state");
        let other = || {
            let mut other = Command::new(std::env::current_exe().unwrap());
            let name = "socket::tests::a_state_folder_has_one_supervisor";
            let output = other.args(["--exact", "--nocapture", name]).env(TAKE, &state).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let first = Lock::take(&state).unwrap();
        let text = other();
        assert!(text.contains(&format!("process {}, uses {}", std::process::id(), state.display())), "{text}");
        // A child may outlive us, and has not executed its program yet: it does not have the lock.
        let mut child = Command::new("sleep");
        let inherited = std::process::Stdio::from(first.as_fd().try_clone_to_owned().unwrap());
        let mut child = child.arg("1000").stdin(inherited).spawn().unwrap();
        drop(first);
        assert!(other().contains("taken"));
        child.kill().unwrap();
        child.wait().unwrap();
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
        use nix::sys::signal::Signal;
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
        kill(heir, Signal::SIGKILL).unwrap();
        replaced.unwrap();
    }

    #[test]
    fn only_a_dead_socket_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let first = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(listen(&path).unwrap_err().to_string().contains("somebody serves on"));
        // Another test may just be starting a process, which has it too until it executes.
        shutdown(first.as_raw_fd(), Shutdown::Both).unwrap();
        drop(first);
        listen(&path).unwrap();
    }
}

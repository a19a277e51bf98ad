//! The gate of a container that is created by one command and started by another: a socket in its state folder.
//!
//! Init keeps the listening end and waits there; `start` connects, and the connection becomes their wire. The socket is
//! closed by init's exec, so whether somebody still listens is whether the container was started, whatever became of the
//! commands.

use crate::sys::{Call, Failed};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// Makes the gate in the state folder `dir`: the end that init listens on. Close-on-exec.
///
/// # Errors
/// The system call that failed.
pub fn make(dir: BorrowedFd<'_>) -> Result<OwnedFd, Failed> {
    let gate = unix(SockType::SeqPacket)?;
    bind(gate.as_raw_fd(), &address(dir)?).map_err(Call::Bind.failed())?;
    listen(&gate, Backlog::new(1).map_err(Call::Listen.failed())?).map_err(Call::Listen.failed())?;
    Ok(gate)
}

/// Connects to init at its gate. `None`: nobody listens any more.
///
/// # Errors
/// The system call that failed.
pub fn open(dir: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Failed> {
    let wire = unix(SockType::SeqPacket)?;
    match connect(wire.as_raw_fd(), &address(dir)?) {
        Ok(()) => Ok(Some(wire)),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(None),
        Err(errno) => Err(Call::Connect.failed()(errno)),
    }
}

/// Whether init waits at its gate, without knocking: a socket of another type is refused for its type if somebody
/// listens, and for that if nobody does.
///
/// # Errors
/// The system call that failed.
pub fn is_closed(dir: BorrowedFd<'_>) -> Result<bool, Failed> {
    match connect(unix(SockType::Datagram)?.as_raw_fd(), &address(dir)?) {
        Err(Errno::EPROTOTYPE) => Ok(true),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(false),
        Ok(()) => Err(Call::Connect.failed()(Errno::EISCONN)),
        Err(errno) => Err(Call::Connect.failed()(errno)),
    }
}

fn unix(kind: SockType) -> Result<OwnedFd, Failed> {
    socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).map_err(Call::Socket.failed())
}

/// Through the folder's descriptor: a state folder's own path may be longer than the 107 bytes of an address.
fn address(dir: BorrowedFd<'_>) -> Result<UnixAddr, Failed> {
    let path = format!("/proc/self/fd/{}/start.sock", dir.as_raw_fd());
    UnixAddr::new(path.as_str()).map_err(Call::Socket.failed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn a_gate_is_closed_as_long_as_somebody_listens() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("n".repeat(200));
        std::fs::create_dir(&long).unwrap();
        let dir = File::open(&long).unwrap();
        assert!(!is_closed(dir.as_fd()).unwrap() && open(dir.as_fd()).unwrap().is_none(), "no gate yet");
        let gate = make(dir.as_fd()).unwrap();
        assert!(is_closed(dir.as_fd()).unwrap());
        let wire = open(dir.as_fd()).unwrap();
        assert!(wire.is_some() && is_closed(dir.as_fd()).unwrap(), "asking did not take the only place in the queue");
        drop(gate);
        // Another test may just be starting a process, which has the gate too until it executes.
        while is_closed(dir.as_fd()).unwrap() {
            std::thread::yield_now();
        }
        assert!(open(dir.as_fd()).unwrap().is_none());
    }
}

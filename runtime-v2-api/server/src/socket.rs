//! Sockets, as files in a folder.

use std::{
    io,
    os::{fd::AsRawFd as _, unix::net::UnixListener},
    path::Path,
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, socket,
            sockopt::PeerCredentials,
        },
        stat::{Mode, fchmod},
    },
    unistd::Pid,
};

/// Listens on a new socket at `path` that only its owner may connect to.
///
/// # Errors
/// When the system refuses; `AddrInUse` if something is at `path` already.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // The file never exists with other rights: the kernel gives it those of the socket.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    nix::sys::socket::listen(&socket, Backlog::MAXCONN)?;
    Ok(socket.into())
}

/// Who accepts connections at `path`. Does not wait for them to.
///
/// # Errors
/// When connecting fails for another reason than that nobody does.
pub fn listener(path: &Path) -> Result<Listener, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match connect(socket.as_raw_fd(), &UnixAddr::new(path)?) {
        Ok(()) => {
            let pid = getsockopt(&socket, PeerCredentials)?.pid();
            Ok(Listener::There((pid != 0).then(|| Pid::from_raw(pid))))
        }
        // Its queue is full.
        Err(Errno::EAGAIN) => Ok(Listener::There(None)),
        // The latter: it has just stopped.
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(Listener::Nobody),
        Err(errno) => Err(errno),
    }
}

/// Who accepts connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// Nobody does.
    Nobody,
    /// Somebody does. The process that called listen(2) is this one, as far as can be told; others may have the socket from it.
    There(Option<Pid>),
}

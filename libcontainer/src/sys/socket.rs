//! Messages with a descriptor in tow (unix(7), `SCM_RIGHTS`).
#![expect(unsafe_code, reason = "received descriptors arrive as bare numbers")]

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, accept4, recvmsg,
    sendmsg,
};

use super::{Call, Failed};

/// Sends `bytes` as one message, with `fd` if given. A peer that is gone is `EPIPE`, never a signal.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<(), Failed> {
    let numbers = fd.map(|fd| [fd.as_raw_fd()]);
    let control = numbers.iter().map(|numbers| ControlMessage::ScmRights(numbers)).collect::<Vec<_>>();
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], &control, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(sent) if sent == bytes.len() => return Ok(()),
            // A stream that does not wait took only the beginning.
            Ok(_) => return Err(Failed { call: Call::Sendmsg, errno: Errno::EMSGSIZE }),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Failed { call: Call::Sendmsg, errno }),
        }
    }
}

/// Receives one message into `buffer`; returns its length (0: the peer is gone) and the descriptor it brought.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8], wait: bool) -> Result<(usize, Option<OwnedFd>), Failed> {
    let mut control = nix::cmsg_space!([i32; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | if wait { MsgFlags::empty() } else { MsgFlags::MSG_DONTWAIT };
    loop {
        let mut parts = [IoSliceMut::new(buffer)];
        let message = match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags) {
            Err(Errno::EINTR) => continue,
            message => message.map_err(Call::Recvmsg.failed())?,
        };
        let mut received = None;
        for part in message.cmsgs().map_err(Call::Recvmsg.failed())? {
            if let ControlMessageOwned::ScmRights(numbers) = part {
                for number in numbers {
                    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
                    received = Some(unsafe { OwnedFd::from_raw_fd(number) });
                }
            }
        }
        return Ok((message.bytes, received));
    }
}

/// Accepts a connection on a listening socket; waits for one.
pub fn accept(listener: BorrowedFd<'_>) -> Result<OwnedFd, Failed> {
    loop {
        match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
            Ok(number) => return Ok(unsafe { OwnedFd::from_raw_fd(number) }),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Failed { call: Call::Accept, errno }),
        }
    }
}

/// Connects to the stream socket at `path`, without waiting for a listener whose queue is full.
pub fn connect(path: &Path) -> Result<OwnedFd, Failed> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = nix::sys::socket::socket(AddressFamily::Unix, SockType::Stream, flags, None);
    let socket = socket.map_err(Call::Socket.failed())?;
    let address = UnixAddr::new(path).map_err(Call::Connect.failed())?;
    nix::sys::socket::connect(socket.as_raw_fd(), &address).map_err(Call::Connect.failed())?;
    Ok(socket)
}

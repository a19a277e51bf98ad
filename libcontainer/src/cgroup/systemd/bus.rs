//! A connection to systemd: over a message bus, or to its own socket where there is no bus. Nothing here waits.

use std::env;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket};

use super::unit::Manager;
use super::wire::{self, Message};

/// What the server says before the first message is some forty bytes long.
const LONGEST_GREETING: usize = 4096;

/// A socket on which systemd can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    path: String,
    /// The name is in the abstract namespace (unix(7)).
    hidden: bool,
    /// It is systemd's own: there is no bus between, which would want to know us first.
    pub(super) direct: bool,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.hidden { "@" } else { "" }, self.path)
    }
}

impl Address {
    pub(super) fn of_bus(path: impl Into<String>) -> Address {
        Address { path: path.into(), hidden: false, direct: false }
    }

    pub(super) fn of_systemd(path: impl Into<String>) -> Address {
        Address { path: path.into(), hidden: false, direct: true }
    }

    /// Where to try, in this order. systemd's own socket is there before any bus is, and when that is down.
    pub(super) fn all(manager: Manager) -> Vec<Address> {
        let (variable, folder) = match manager {
            Manager::System => ("DBUS_SYSTEM_BUS_ADDRESS", None),
            Manager::User => ("DBUS_SESSION_BUS_ADDRESS", Some(env::var("XDG_RUNTIME_DIR").unwrap_or_default())),
        };
        let named = env::var(variable).ok().filter(|value| !value.is_empty());
        if let Some(named) = named {
            let parsed = parse(&named);
            // Who names a bus means that one, but a form we cannot read is one that others can.
            if !parsed.is_empty() {
                return parsed;
            }
            log::warn!("{variable}={named} names no unix socket; trying the usual ones");
        }
        match folder.as_deref() {
            None => vec![Address::of_bus("/run/dbus/system_bus_socket"), Address::of_systemd("/run/systemd/private")],
            Some("") => Vec::new(),
            Some(folder) => {
                vec![Address::of_bus(format!("{folder}/bus")), Address::of_systemd(format!("{folder}/systemd/private"))]
            }
        }
    }
}

/// The unix sockets among the addresses of a bus (D-Bus Specification, "Server Addresses").
fn parse(addresses: &str) -> Vec<Address> {
    let unix = addresses.split(';').filter_map(|address| address.strip_prefix("unix:"));
    let found = unix.filter_map(|keys| {
        let value = |key: &str| keys.split(',').find_map(|pair| pair.strip_prefix(key)).and_then(unescape);
        let path = value("path=").map(|path| (path, false));
        let (path, hidden) = path.or_else(|| value("abstract=").map(|name| (name, true)))?;
        Some(Address { path, hidden, direct: false })
    });
    found.collect()
}

/// Undoes `%20` and the like.
fn unescape(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend(part[2..].bytes());
    }
    String::from_utf8(bytes).ok()
}

/// Why a connection is of no use.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// A system call.
    Call(&'static str, Errno),
    /// The other side has closed it.
    Closed,
    /// It does not take us for whom we are.
    Rejected,
    /// What it says cannot be understood.
    Nonsense(String),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Call(name, errno) => write!(f, "{name}: {errno}"),
            Broken::Closed => f.write_str("the connection was closed"),
            Broken::Rejected => f.write_str("it rejects this user"),
            Broken::Nonsense(what) => f.write_str(what),
        }
    }
}

/// An open connection.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    pub(super) address: Address,
    inbox: Vec<u8>,
    greeted: bool,
    serial: u32,
}

impl Connection {
    /// Connects and says who we are. `EAGAIN` when so many others want to connect that the server's queue is full, of
    /// whose end nobody gets to know.
    pub(super) fn open(address: &Address) -> Result<Connection, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        let name = match address.hidden {
            true => UnixAddr::new_abstract(address.path.as_bytes()),
            false => UnixAddr::new(address.path.as_str()),
        };
        connect(socket.as_raw_fd(), &name?)?;
        let mut connection = Connection { address: address.clone(), ..Connection::over(socket) };
        // Whoever the kernel says we are: the number may be another one in the server's user namespace.
        match connection.write(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n") {
            Ok(()) => Ok(connection),
            Err(Broken::Call(_, errno)) => Err(errno),
            Err(_) => Err(Errno::ECONNRESET),
        }
    }

    /// One that nothing was said on yet.
    pub(super) fn over(socket: OwnedFd) -> Connection {
        Connection { socket, address: Address::of_bus(""), inbox: Vec::new(), greeted: false, serial: 0 }
    }

    /// What to wait on.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether the server has answered who we are. Before that, it takes no messages.
    pub(super) fn is_greeted(&mut self) -> Result<bool, Broken> {
        while !self.greeted {
            let Some(end) = self.inbox.windows(2).position(|pair| pair == b"\r\n") else {
                match self.read()? {
                    true if self.inbox.len() <= LONGEST_GREETING => continue,
                    true => return Err(Broken::Nonsense("its greeting does not end".to_owned())),
                    false => return Ok(false),
                }
            };
            let line: Vec<u8> = self.inbox.drain(..end + 2).collect();
            match &line[..] {
                line if line.starts_with(b"OK") => self.greeted = true,
                line if line.starts_with(b"REJECTED") => return Err(Broken::Rejected),
                line if line.starts_with(b"DATA") => {}
                line => {
                    let line = String::from_utf8_lossy(line).trim_end().to_owned();
                    return Err(Broken::Nonsense(format!("its greeting is {line:?}")));
                }
            }
        }
        Ok(true)
    }

    /// The number of the next call.
    pub(super) fn next_serial(&mut self) -> u32 {
        self.serial += 1;
        self.serial
    }

    /// Hands over bytes. All that a call has to say fits many times into the socket's buffer.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        loop {
            match send(self.socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) {
                Ok(sent) if sent == bytes.len() => return Ok(()),
                Ok(_) => return Err(Broken::Call("send", Errno::EMSGSIZE)),
                Err(Errno::EINTR) => {}
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(Broken::Closed),
                Err(errno) => return Err(Broken::Call("send", errno)),
            }
        }
    }

    /// The next message, if one is there.
    pub(super) fn next(&mut self) -> Result<Option<Message>, Broken> {
        loop {
            if let Some(message) = wire::take(&mut self.inbox).map_err(Broken::Nonsense)? {
                return Ok(Some(message));
            }
            if !self.read()? {
                return Ok(None);
            }
        }
    }

    /// Reads what is there; false if that is nothing.
    fn read(&mut self) -> Result<bool, Broken> {
        let mut buffer = [0; 4096];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) | Err(Errno::ECONNRESET) => return Err(Broken::Closed),
                Ok(count) => {
                    self.inbox.extend_from_slice(&buffer[..count]);
                    return Ok(true);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(false),
                Err(errno) => return Err(Broken::Call("recv", errno)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_specification_writes_them() {
        assert_eq!(parse("unix:path=/run/a%20b,guid=1f"), [Address::of_bus("/run/a b")]);
        let hidden = Address { hidden: true, ..Address::of_bus("/tmp/dbus-x") };
        assert_eq!(parse("tcp:host=x;unix:guid=2,abstract=/tmp/dbus-x"), [hidden]);
        for none in ["", "tcp:host=x", "unix:dir=/tmp", "unix:path=/a%2", "unix:path=%ff"] {
            assert_eq!(parse(none), [], "{none}");
        }
    }
}

//! A terminal's shim side: bytes from the client's FIFO to the pty master, and from there to the client's other FIFO.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Weak},
};

use libcontainer::sys::process::{open_pty_peer, set_window_size};

use crate::{
    flow::{Copy, End, flow, flow_now},
    kept::Stream,
    outlet::Outlet,
};

/// What a terminal is connected with.
pub(crate) enum Wiring {
    /// Where its input comes from, and where its output goes.
    Client(Option<End>, End),
    /// A log, and who is attached; whether these may type.
    Outlet(Box<Outlet>, bool),
}

/// The pty master of one process.
pub(crate) struct Console {
    /// Owned by the copy alone: when that ends, the terminal is closed.
    master: Weak<End>,
    /// The terminal's other end, held open until the process has ended. With nobody there the master reads as hung up,
    /// for epoll for good; so it would before the process opens its terminal, and whenever it has closed it for a while.
    peer: Option<OwnedFd>,
    copy: Copy,
}

impl Console {
    /// Starts copying between `master` and what it is connected with.
    pub(crate) fn new(master: OwnedFd, wiring: Wiring) -> io::Result<Self> {
        let peer = open_pty_peer(master.as_fd()).map_err(|failed| failed.errno)?;
        let master = Arc::new(End::both(master)?);
        let weak = Arc::downgrade(&master);
        let (from, to) = match wiring {
            Wiring::Client(from, to) => (from, to),
            Wiring::Outlet(outlet, input) => {
                if input {
                    outlet.hub().feed_terminal(weak.clone());
                }
                let copy = Copy::spawn(outlet.run(vec![(Stream::Out, master)]));
                return Ok(Self { master: weak, peer: Some(peer), copy });
            }
        };
        let copy = Copy::spawn(async move {
            let input = async {
                match from {
                    Some(from) => flow(&from, &master).await,
                    None => std::future::pending().await,
                }
            };
            // When the client ends its input (CloseIO), the terminal hangs up, once what was said so far has been copied.
            // When all sides of it are closed, it reads as EIO: that is the end of the output. Both are as it should be.
            tokio::select! {
                ended = input => log::debug!("the input of a terminal ended: {ended:?}, {:?}", flow_now(&master, &to).await),
                ended = flow(&master, &to) => log::debug!("the output of a terminal ended: {ended:?}"),
            }
        });
        Ok(Self { master: weak, peer: Some(peer), copy })
    }

    /// Sets the terminal's size; of one that was closed there is nothing to set.
    pub(crate) fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        match self.master.upgrade() {
            Some(master) => Ok(set_window_size(master.fd().as_fd(), columns, rows).map_err(|failed| failed.errno)?),
            None => Ok(()),
        }
    }

    /// The process has ended: once the rest of its output is copied, the terminal is closed.
    pub(crate) fn exited(&mut self) {
        self.peer = None;
    }

    /// What ends when all output has reached the client.
    pub(crate) fn copy(&mut self) -> &mut Copy {
        &mut self.copy
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read as _, Write as _},
        time::Duration,
    };

    use nix::{fcntl::OFlag, pty::openpty, unistd::pipe2};
    use tokio::{runtime::Builder, time::timeout};

    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { timeout(Duration::from_secs(20), future).await.expect("must not hang") })
    }

    #[test]
    fn a_terminal_survives_having_nobody_on_it_and_ends_with_its_process() {
        block_on(async {
            let pty = openpty(None, None).unwrap();
            let (out_read, out_write) = pipe2(OFlag::O_CLOEXEC).unwrap();
            let to = End::sink(out_write, None).unwrap();
            let mut console = Console::new(pty.master, Wiring::Client(None, to)).unwrap();
            let slave = File::from(pty.slave);
            let name =
                std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&slave))).unwrap();
            drop(slave);
            tokio::task::yield_now().await;
            console.resize(100, 40).unwrap();
            let mut again = std::fs::OpenOptions::new().write(true).open(name).unwrap();
            again.write_all(b"line\n").unwrap();
            drop(again);
            console.exited();
            console.copy().done().await;
            let mut text = String::new();
            File::from(out_read).read_to_string(&mut text).unwrap();
            assert_eq!(text, "line\r\n");
            console.resize(1, 1).unwrap();
        });
    }
}

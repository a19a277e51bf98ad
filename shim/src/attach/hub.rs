//! Who is attached to a process: its output goes to all of them, and their input to it.

use std::{
    collections::VecDeque,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use nix::{errno::Errno, poll::PollFlags, unistd::write};
use tokio::{net::UnixStream, sync::Notify};

use super::frame::{Flags, Kind, Refused, frame};
use crate::flow::{End, until};

/// Bytes that a client may be behind, unless the process waits for it.
const BEHIND: usize = 1 << 20;
/// What a terminal takes for the end of input unless it is told otherwise: ^D.
const END_OF_FILE: u8 = 4;

/// Where input goes.
pub(super) enum Stdin {
    /// The pipe that the process reads, which ends when nobody holds this.
    Pipe(Arc<End>),
    /// The master of its terminal, which others own.
    Terminal(Weak<End>),
}

/// Everyone who is attached.
#[derive(Default)]
pub(crate) struct Hub {
    state: Mutex<State>,
    /// A client for which the process waits got on, or somebody left.
    stirred: Notify,
    /// Held by the client whose input is being written, so that no two are mixed.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    clients: Vec<Arc<Client>>,
    stdin: Option<Stdin>,
    /// There will be no more output.
    ended: bool,
}

/// One of those who are attached.
pub(super) struct Client {
    pub(super) stream: UnixStream,
    wants: Flags,
    output: Mutex<Output>,
    /// There is something to send again.
    more: Notify,
}

/// What a client has still to be sent.
#[derive(Default)]
struct Output {
    /// Frames, shared with others who are as far behind.
    frames: VecDeque<Arc<[u8]>>,
    /// Bytes of the first frame that are sent.
    sent: usize,
    /// Bytes of all of them.
    bytes: usize,
    /// Nothing comes after these.
    last: bool,
    /// The client is gone, as a write has shown.
    gone: bool,
}

/// How far sending got.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// All there is for now.
    All,
    /// All there will ever be.
    Last,
    /// The client does not read.
    Stuck,
}

impl Hub {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Input goes into this pipe from now on.
    pub(crate) fn feed_pipe(&self, pipe: OwnedFd) -> io::Result<()> {
        self.state().stdin = Some(Stdin::Pipe(Arc::new(End::sink(pipe, None)?)));
        Ok(())
    }

    /// Input goes to this terminal from now on.
    pub(crate) fn feed_terminal(&self, master: Weak<End>) {
        self.state().stdin = Some(Stdin::Terminal(master));
    }

    /// Sends output to everyone who wants it.
    pub(crate) fn send(&self, kind: Kind, payload: &[u8]) {
        let clients = &self.state().clients;
        if clients.iter().any(|client| client.wants.output) {
            let frame = frame(kind, payload);
            clients.iter().filter(|client| client.wants.output).for_each(|client| client.send(&frame));
        }
    }

    /// Waits until everybody has everything for whom the process is to wait.
    pub(crate) async fn unhindered(&self) {
        let hindered = |client: &Arc<Client>| client.wants.everything && !client.output().frames.is_empty();
        while self.state().clients.iter().any(hindered) {
            self.stirred.notified().await;
        }
    }

    /// There is no more output, and nobody to read input.
    pub(crate) fn end(&self) {
        let mut state = self.state();
        state.stdin = None;
        if !std::mem::replace(&mut state.ended, true) {
            state.clients.iter().for_each(|client| client.say_last(frame(Kind::End, b"")));
        }
    }

    /// Waits until nobody is attached.
    pub(crate) async fn deserted(&self) {
        while !self.state().clients.is_empty() {
            self.stirred.notified().await;
        }
    }

    /// Ends the process's stdin, once what was written to it has been read.
    pub(crate) async fn end_input(&self) {
        let _turn = self.turn.lock().await;
        let terminal = match &self.state().stdin {
            Some(Stdin::Terminal(master)) => master.upgrade(),
            _ => None,
        };
        match terminal {
            // Taking the terminal away would end more than the input.
            Some(master) => self.write(&master, &[END_OF_FILE]).await,
            None => self.close_input(),
        }
    }

    /// The same for who cannot wait, and not for a terminal.
    pub(crate) fn close_input(&self) {
        self.state().stdin.take_if(|stdin| matches!(stdin, Stdin::Pipe(_)));
    }

    /// Writes input, as fast as it is read. Without a stdin, or with one that was closed, it is dropped, as the process
    /// itself drops what it does not read.
    pub(super) async fn input(&self, bytes: &[u8]) {
        let _turn = self.turn.lock().await;
        let end = match &self.state().stdin {
            Some(Stdin::Pipe(end)) => Some(end.clone()),
            Some(Stdin::Terminal(master)) => master.upgrade(),
            None => None,
        };
        if let Some(end) = end {
            self.write(&end, bytes).await;
        }
    }

    async fn write(&self, end: &End, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let written = match write(end.fd(), bytes) {
                Ok(count) => {
                    bytes = &bytes[count..];
                    Ok(())
                }
                Err(Errno::EAGAIN) => until(end, PollFlags::POLLOUT).await,
                Err(Errno::EINTR) => Ok(()),
                Err(errno) => Err(errno.into()),
            };
            if let Err(error) = written {
                // Nobody reads it any more.
                log::debug!("write to an attached stdin: {error}");
                self.state().stdin = None;
                return;
            }
        }
    }

    pub(super) fn enter(&self, stream: UnixStream, wants: Flags) -> Arc<Client> {
        let client = Arc::new(Client { stream, wants, output: Mutex::default(), more: Notify::new() });
        let mut state = self.state();
        if state.ended {
            client.say_last(frame(Kind::End, b""));
        }
        state.clients.push(client.clone());
        client
    }

    pub(super) fn leave(&self, client: &Arc<Client>) {
        self.state().clients.retain(|other| !Arc::ptr_eq(other, client));
        self.stirred.notify_waiters();
    }

    /// Sends `client` what there is for it, until there will be no more or it is gone.
    pub(super) async fn serve(&self, client: &Client) -> io::Result<()> {
        loop {
            match client.flush()? {
                Sent::Last => return Ok(()),
                Sent::All => {
                    self.stirred.notify_waiters();
                    client.more.notified().await;
                }
                Sent::Stuck => client.stream.writable().await?,
            }
        }
    }
}

impl Client {
    fn output(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, frame: &Arc<[u8]>) {
        let mut output = self.output();
        if output.last {
            return;
        }
        if !self.wants.everything && output.bytes + frame.len() > BEHIND {
            drop(output);
            return self.cut_off(&Refused::Behind);
        }
        output.push(frame.clone());
        drop(output);
        // Mostly that is all; if not, or if it failed, the client's own loop goes on with it.
        if !matches!(self.flush(), Ok(Sent::All)) {
            self.more.notify_one();
        }
    }

    /// Sends the client away: it gets nothing more but the reason.
    pub(super) fn cut_off(&self, why: &Refused) {
        let mut output = self.output();
        if output.last {
            return;
        }
        // Of a frame that was begun, the rest has to come first.
        let begun = usize::from(output.sent > 0);
        output.frames.truncate(begun);
        output.bytes = output.frames.iter().map(|frame| frame.len()).sum();
        drop(output);
        self.say_last(frame(Kind::CutOff, why.to_string().as_bytes()));
    }

    fn say_last(&self, frame: Arc<[u8]>) {
        let mut output = self.output();
        if !std::mem::replace(&mut output.last, true) {
            output.push(frame);
        }
        self.more.notify_one();
    }

    fn flush(&self) -> io::Result<Sent> {
        let mut output = self.output();
        if output.gone {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        while let Some(frame) = output.frames.front() {
            match self.stream.try_write(&frame[output.sent..]) {
                Ok(count) => output.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Sent::Stuck),
                Err(error) => {
                    // Nobody will take it, and nobody shall wait for that.
                    *output = Output { last: true, gone: true, ..Output::default() };
                    return Err(error);
                }
            }
        }
        Ok(if output.last { Sent::Last } else { Sent::All })
    }
}

impl Output {
    fn push(&mut self, frame: Arc<[u8]>) {
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    fn advance(&mut self, count: usize) {
        self.sent += count;
        if let Some(frame) = self.frames.pop_front_if(|frame| frame.len() == self.sent) {
            self.sent = 0;
            self.bytes -= frame.len();
        }
    }
}

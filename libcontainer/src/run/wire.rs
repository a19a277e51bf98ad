//! What runtime and child say to each other: eight bytes a message, on a `SOCK_SEQPACKET` pair.

use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;

use crate::plan::Meeting;
use crate::sys::{Call, Failed, socket};

/// One message. A descriptor may travel with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message {
    /// Child: this step failed; it exits now.
    Failed { step: u16, failed: Failed },
    /// Child: it waits at a meeting.
    Arrived(Meeting),
    /// Child: the master of its terminal travels with this.
    Console,
    /// Child: its descriptor of this number listens for seccomp notifications; it waits until the runtime has it.
    Listener(i32),
    /// Child: it goes on in a copy of itself with this pid (in the runtime's pid namespace); its pidfd travels with this.
    Forked(i32),
    /// Child: only `execve(2)` is left; what follows is the end of the wire.
    Executing,
    /// Runtime: go on. Carries the child's pid as the runtime sees it.
    Go(i32),
}

const MEETINGS: [Meeting; 6] =
    [Meeting::Born, Meeting::Mapped, Meeting::Mounted, Meeting::HooksDone, Meeting::Start, Meeting::Placed];
/// No plan is that long: marks a message that is not a failure.
const NO_STEP: u16 = u16::MAX;

impl Message {
    fn encode(self) -> [u8; 8] {
        let (step, kind, value) = match self {
            Message::Failed { step, failed } => (step, failed.call as u16, failed.errno as i32),
            Message::Arrived(meeting) => {
                (NO_STEP, 1, MEETINGS.iter().position(|known| *known == meeting).unwrap_or_default() as i32)
            }
            Message::Console => (NO_STEP, 2, 0),
            Message::Listener(number) => (NO_STEP, 3, number),
            Message::Forked(pid) => (NO_STEP, 4, pid),
            Message::Executing => (NO_STEP, 5, 0),
            Message::Go(pid) => (NO_STEP, 6, pid),
        };
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&step.to_ne_bytes());
        bytes[2..4].copy_from_slice(&kind.to_ne_bytes());
        bytes[4..].copy_from_slice(&value.to_ne_bytes());
        bytes
    }

    fn decode(bytes: [u8; 8]) -> Option<Message> {
        let [a, b, c, d, e, f, g, h] = bytes;
        let (step, kind) = (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]));
        let value = i32::from_ne_bytes([e, f, g, h]);
        if step != NO_STEP {
            let failed = Failed { call: Call::from_number(kind)?, errno: Errno::from_raw(value) };
            return Some(Message::Failed { step, failed });
        }
        Some(match kind {
            1 => Message::Arrived(*MEETINGS.get(usize::try_from(value).ok()?)?),
            2 => Message::Console,
            3 => Message::Listener(value),
            4 => Message::Forked(value),
            5 => Message::Executing,
            6 => Message::Go(value),
            _ => return None,
        })
    }

    /// Sends it, with `fd` if given.
    pub(crate) fn send(self, wire: BorrowedFd<'_>, fd: Option<BorrowedFd<'_>>) -> Result<(), Failed> {
        socket::send(wire, &self.encode(), fd)
    }

    /// Sends it by write(2), as the child does: the call that a seccomp filter never holds up, and that a profile allows if
    /// it allows anything. A runtime that is gone ends the child by SIGPIPE, which is as good as any other way.
    pub(crate) fn write(self, wire: BorrowedFd<'_>) -> Result<(), Failed> {
        nix::unistd::write(wire, &self.encode()).map_err(Call::Write.failed())?;
        Ok(())
    }

    /// Waits for the next message by read(2), as the child does. `None` when the runtime is gone.
    pub(crate) fn wait(wire: BorrowedFd<'_>) -> Result<Option<Message>, Failed> {
        let mut bytes = [0; 8];
        loop {
            match nix::unistd::read(wire, &mut bytes) {
                Ok(0) => return Ok(None),
                Ok(8) if let Some(message) = Message::decode(bytes) => return Ok(Some(message)),
                Ok(_) => return Err(Failed { call: Call::Read, errno: Errno::EBADMSG }),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Failed { call: Call::Read, errno }),
            }
        }
    }

    /// The next message; `None` when the other side is gone. Without `wait`, `EAGAIN` when there is none yet.
    pub(crate) fn receive(wire: BorrowedFd<'_>, wait: bool) -> Result<Option<(Heard, Option<OwnedFd>)>, Failed> {
        let mut bytes = [0; MOST_WORDS];
        let (length, fd) = socket::receive(wire, &mut bytes, wait)?;
        let bytes = bytes.get(..length).unwrap_or_default();
        let heard = match (bytes, <[u8; 8]>::try_from(bytes)) {
            ([], _) => return Ok(None),
            ([0, 0, words @ ..], Err(_)) => Some(Heard::Words(String::from_utf8_lossy(words).into_owned())),
            (_, eight) => eight.ok().and_then(Message::decode).map(Heard::Message),
        };
        match heard {
            Some(heard) => Ok(Some((heard, fd))),
            None => Err(Failed { call: Call::Recvmsg, errno: Errno::EBADMSG }),
        }
    }
}

/// What came over the wire.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// A message.
    Message(Message),
    /// What the kernel said in words about the step that fails next.
    Words(String),
}

/// The longest text that is passed on, in bytes.
const MOST_WORDS: usize = 512;

/// Sends what the kernel said in words, before the failure it is about.
pub(crate) fn send_words(wire: BorrowedFd<'_>, words: &str) -> Result<(), Failed> {
    // Two zero bytes in front, and never eight bytes in all: that is a message.
    let mut bytes = vec![0, 0];
    bytes.extend(words.bytes().take(MOST_WORDS - 3));
    if bytes.len() == 8 {
        bytes.push(b' ');
    }
    socket::send(wire, &bytes, None)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn messages_survive_the_wire() {
        let failed = Failed { call: Call::Fsmount, errno: Errno::EPERM };
        let all = [
            Message::Failed { step: 7, failed },
            Message::Arrived(Meeting::Mapped),
            Message::Arrived(Meeting::Start),
            Message::Console,
            Message::Listener(9),
            Message::Forked(4_000_000),
            Message::Executing,
            Message::Go(1),
        ];
        for message in all {
            assert_eq!(Message::decode(message.encode()), Some(message));
        }
    }

    #[test]
    fn words_of_any_length_arrive_as_words() {
        let (ours, theirs) = nix::sys::socket::socketpair(
            nix::sys::socket::AddressFamily::Unix,
            nix::sys::socket::SockType::SeqPacket,
            None,
            nix::sys::socket::SockFlag::empty(),
        )
        .unwrap();
        for length in [1, 5, 6, 7, 500, 5000] {
            send_words(ours.as_fd(), &"w".repeat(length)).unwrap();
            let Ok(Some((Heard::Words(words), None))) = Message::receive(theirs.as_fd(), true) else {
                panic!("{length}")
            };
            assert_eq!(words.trim_end().len(), length.min(MOST_WORDS - 3));
        }
    }

    #[test]
    fn noise_is_refused() {
        assert_eq!(Message::decode([0xff; 8]), None);
        assert_eq!(Message::decode([0, 0, 0xff, 0xff, 0, 0, 0, 0]), None);
    }
}

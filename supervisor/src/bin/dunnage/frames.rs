//! What is said on a container's attach socket (the shim's `attach.rs` serves it): frames of a kind, a length (32 bits,
//! little-endian), and so many bytes.

use std::io;
use std::path::Path;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::talk::Input;

/// What a client wants, in its Hello.
pub(crate) const WANTS_OUTPUT: u8 = 1;
/// It brings stdin.
pub(crate) const BRINGS_STDIN: u8 = 2;
/// The container waits for it, as for the reader of a pipe.
pub(crate) const WANTS_EVERYTHING: u8 = 4;

const HELLO: u8 = 0;
const STDIN: u8 = 1;
const STDIN_ENDS: u8 = 2;
const STDOUT: u8 = 3;
const STDERR: u8 = 4;
const END: u8 = 5;
const CUT_OFF: u8 = 6;

/// The most bytes in a frame.
const MOST: usize = 64 << 10;
const HEADER: usize = 5;

/// What a container says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    /// All output has been sent.
    End,
    /// We were too slow, or something else is wrong.
    CutOff(String),
}

/// Connects to `socket` and says what is wanted.
pub(crate) async fn connect(socket: &Path, flags: u8) -> anyhow::Result<(Output, Stdin)> {
    let stream = UnixStream::connect(socket).await;
    let stream = stream.with_context(|| format!("cannot attach to the container at {}", socket.display()))?;
    greet(stream, flags).await.context("cannot attach to the container")
}

async fn greet(stream: UnixStream, flags: u8) -> io::Result<(Output, Stdin)> {
    let (read, write) = stream.into_split();
    let mut stdin = Stdin(write);
    match stdin.send(HELLO, &[flags]).await {
        // Sent away already, by a shim that has no room for us: what there is to read says why.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        sent => sent?,
    }
    Ok((Output { stream: read, unread: Vec::new() }, stdin))
}

/// The container's side of the connection.
pub(crate) struct Output {
    stream: OwnedReadHalf,
    unread: Vec<u8>,
}

impl Output {
    /// The next of what is said; `None` when the shim has closed the connection without a last word. Nothing is lost if
    /// this is dropped half-way.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Heard>> {
        loop {
            if let Some((heard, length)) = parse(&self.unread)? {
                self.unread.drain(..length);
                return Ok(Some(heard));
            }
            match self.stream.read_buf(&mut self.unread).await {
                Ok(0) => return Ok(None),
                // The shim was killed with something of ours unread.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                read => drop(read?),
            }
        }
    }
}

/// The first frame of `bytes` and its length, once all of it is there.
fn parse(bytes: &[u8]) -> io::Result<Option<(Heard, usize)>> {
    let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let Some((&[kind, a, b, c, d], rest)) = bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if length > MOST {
        return Err(wrong(format!("a frame of {length} bytes from the shim")));
    }
    let Some(payload) = rest.get(..length) else { return Ok(None) };
    let heard = match kind {
        STDOUT => Heard::Stdout(payload.to_owned()),
        STDERR => Heard::Stderr(payload.to_owned()),
        END => Heard::End,
        CUT_OFF => Heard::CutOff(String::from_utf8_lossy(payload).into_owned()),
        _ => return Err(wrong(format!("a frame of unknown kind {kind} from the shim"))),
    };
    Ok(Some((heard, HEADER + length)))
}

/// Our side of the connection.
pub(crate) struct Stdin(OwnedWriteHalf);

impl Stdin {
    async fn send(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        let mut frame = Vec::with_capacity(HEADER + payload.len());
        frame.push(kind);
        frame.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        frame.extend_from_slice(payload);
        self.0.write_all(&frame).await
    }
}

impl Input for Stdin {
    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        for part in bytes.chunks(MOST) {
            self.send(STDIN, part).await?;
        }
        Ok(())
    }

    async fn end(&mut self) -> anyhow::Result<()> {
        match self.send(STDIN_ENDS, &[]).await {
            // It has ended before its stdin.
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Ok(()),
            sent => sent.context("cannot end the container's stdin"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_once_they_are_whole() {
        let bytes = [3, 2, 0, 0, 0, b'h', b'i', 4, 0, 0, 0, 0, 5, 0, 0, 0, 0, 6, 1, 0, 0, 0, b'x'];
        let mut rest = &bytes[..];
        let mut heard = Vec::new();
        while let Some((one, length)) = parse(rest).unwrap() {
            assert!((0..length).all(|part| parse(&rest[..part]).unwrap().is_none()));
            heard.push(one);
            rest = &rest[length..];
        }
        let expected =
            [Heard::Stdout(b"hi".to_vec()), Heard::Stderr(Vec::new()), Heard::End, Heard::CutOff("x".to_owned())];
        assert_eq!((heard.as_slice(), rest.len()), (&expected[..], 0));
    }

    #[tokio::test]
    async fn who_is_sent_away_before_it_has_said_anything_hears_why() {
        let (ours, mut shims) = UnixStream::pair().unwrap();
        shims.write_all(&[CUT_OFF, 4, 0, 0, 0, b'f', b'u', b'l', b'l']).await.unwrap();
        drop(shims);
        let (mut output, _stdin) = greet(ours, WANTS_OUTPUT).await.unwrap();
        assert_eq!(output.next().await.unwrap(), Some(Heard::CutOff("full".to_owned())));
        assert_eq!(output.next().await.unwrap(), None);
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        assert!(parse(&[3, 1, 0, 1, 0]).is_err(), "too long");
        assert!(parse(&[9, 0, 0, 0, 0]).is_err(), "unknown");
    }
}

//! What a client and the shim say to each other over an attach socket: frames of a kind, a length (`u32`, little-endian)
//! and a payload.

use std::sync::Arc;

use thiserror::Error;

/// Bytes of a payload at most.
pub(crate) const LONGEST: usize = 64 * 1024;
/// Bytes in front of the payload.
pub(crate) const HEADER: usize = 5;

/// What a frame of a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// The first, with a byte of [`Flags`].
    Hello,
    /// Bytes for stdin.
    Input,
    /// There are no more.
    InputEnd,
}

/// What a frame of the shim is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Stdout = 3,
    Stderr = 4,
    /// All output has been sent.
    End = 5,
    /// The client gets nothing more, and this is why.
    CutOff = 6,
}

/// Why a client is sent away. It is told.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum Refused {
    #[error("frame of the unknown kind {0}")]
    Kind(u8),
    #[error("frame of {0} bytes; 65536 is the most")]
    TooLong(u32),
    #[error("the first frame must be a Hello, and no other")]
    NoHello,
    #[error("no Hello within {0} s")]
    Silent(u64),
    #[error("a Hello has one byte of flags, not {0}")]
    Hello(usize),
    #[error("Hello with the unknown flags {0:#04x}")]
    Flags(u8),
    #[error("{0} clients are attached, and that is the most")]
    TooMany(usize),
    #[error("more than 1 MiB of output behind; what is missing here is in the log")]
    Behind,
}

/// Takes the header of a client's frame: its kind, and the length of its payload.
pub(crate) fn header([kind, length @ ..]: [u8; HEADER]) -> Result<(Said, usize), Refused> {
    let said = match kind {
        0 => Said::Hello,
        1 => Said::Input,
        2 => Said::InputEnd,
        kind => return Err(Refused::Kind(kind)),
    };
    let length = u32::from_le_bytes(length);
    match usize::try_from(length) {
        Ok(fits) if fits <= LONGEST => Ok((said, fits)),
        _ => Err(Refused::TooLong(length)),
    }
}

/// What a client wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    /// The output.
    pub(crate) output: bool,
    /// The container to wait for it, as at a pipe, rather than be cut off.
    pub(crate) everything: bool,
}

impl Flags {
    /// That a client brings stdin (2) is said for whoever reads along; it shows when it does.
    pub(crate) fn parse(bits: u8) -> Result<Self, Refused> {
        match bits & !7 {
            0 => Ok(Self { output: bits & 1 != 0, everything: bits & 4 != 0 }),
            _ => Err(Refused::Flags(bits)),
        }
    }
}

/// A frame of the shim. `payload` is no longer than [`LONGEST`].
pub(crate) fn frame(kind: Kind, payload: &[u8]) -> Arc<[u8]> {
    let mut frame = Vec::with_capacity(HEADER + payload.len());
    frame.push(kind as u8);
    frame.extend(u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    frame.extend(payload);
    frame.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_of_a_client_is_one_of_three() {
        assert_eq!(header([0, 1, 0, 0, 0]), Ok((Said::Hello, 1)));
        assert_eq!(header([1, 0, 0, 1, 0]), Ok((Said::Input, 65536)));
        assert_eq!(header([2, 0, 0, 0, 0]), Ok((Said::InputEnd, 0)));
        assert_eq!(header([1, 1, 0, 1, 0]), Err(Refused::TooLong(65537)));
        assert_eq!(header([1, 255, 255, 255, 255]), Err(Refused::TooLong(u32::MAX)));
        for kind in 3..=255 {
            assert_eq!(header([kind, 0, 0, 0, 0]), Err(Refused::Kind(kind)), "the shim's own, or nobody's");
        }
    }

    #[test]
    fn flags_that_nobody_knows_are_refused() {
        assert_eq!(Flags::parse(0), Ok(Flags::default()));
        assert_eq!(Flags::parse(7), Ok(Flags { output: true, everything: true }));
        assert_eq!(Flags::parse(2), Ok(Flags::default()));
        assert_eq!(Flags::parse(9), Err(Refused::Flags(9)));
    }

    #[test]
    fn a_frame_says_how_long_it_is() {
        assert_eq!(*frame(Kind::Stderr, b"err"), *b"\x04\x03\0\0\0err");
        assert_eq!(*frame(Kind::End, b""), *b"\x05\0\0\0\0");
    }
}

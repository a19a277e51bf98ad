//! Records as bytes. One is a header of three little-endian `u32` (a mark, the length of the body, its CRC-32) and a body,
//! which begins with its kind. Whatever follows damaged bytes can be found again by its mark.

/// How much of a body there may be. Frames of ttrpc are smaller, so events are.
pub(super) const MAX_BODY: usize = 4 << 20;
/// The least bytes an event takes, which bounds how many were in a stretch that cannot be read.
pub(super) const MIN_EVENT: u64 = (HEADER + 1 + 8 + 8 + 8 + 1) as u64;

const HEADER: usize = 12;
const MARK: [u8; 4] = *b"DEj\x01";

/// What a segment is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record<'a> {
    /// The first of each segment.
    Head {
        /// The number before the segment's first event is this one, and what is between was never given to any.
        follows: u64,
        /// Of the boot the segment was begun in.
        boot: &'a str,
    },
    /// How far a source had come when the segment was begun.
    Source {
        /// Its name.
        source: &'a str,
        /// The last number of its own.
        number: u64,
    },
    /// An event.
    Event {
        /// Ours.
        number: u64,
        /// When it was appended, in nanoseconds since 1970.
        time: u64,
        /// Who sent it, under which number of its own.
        source: Option<(&'a str, u64)>,
        /// A serialized `Envelope`.
        envelope: &'a [u8],
    },
}

/// Why there is no record at the beginning of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// It would be so long as this in all.
    Short(usize),
    /// It was never written like this.
    Damaged,
}

impl<'a> Record<'a> {
    /// Appends the record to `bytes`.
    pub(super) fn write(&self, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        bytes.extend([0; HEADER]);
        match self {
            Self::Head { follows, boot } => {
                bytes.push(0);
                bytes.extend(follows.to_le_bytes());
                bytes.extend(boot.as_bytes());
            }
            Self::Source { source, number } => {
                bytes.push(1);
                bytes.extend(number.to_le_bytes());
                bytes.extend(source.as_bytes());
            }
            Self::Event { number, time, source, envelope } => {
                let (name, source) = source.unwrap_or_default();
                bytes.push(2);
                bytes.extend(number.to_le_bytes());
                bytes.extend(time.to_le_bytes());
                bytes.extend(source.to_le_bytes());
                // A name is at most `MAX_SOURCE` long.
                bytes.push(name.len().to_le_bytes()[0]);
                bytes.extend(name.as_bytes());
                bytes.extend(*envelope);
            }
        }
        let (length, sum) = (bytes.len() - start - HEADER, crc32fast::hash(&bytes[start + HEADER..]));
        // At most MAX_BODY, which the journal sees to.
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let header = [MARK, length.to_le_bytes(), sum.to_le_bytes()].concat();
        bytes[start..start + HEADER].copy_from_slice(&header);
    }

    /// The record that `bytes` begin with, and how many of them it takes.
    pub(super) fn read(bytes: &'a [u8]) -> Result<(Self, usize), Broken> {
        let known = MARK.len().min(bytes.len());
        if bytes[..known] != MARK[..known] {
            return Err(Broken::Damaged);
        }
        let Some((header, rest)) = bytes.split_at_checked(HEADER) else { return Err(Broken::Short(HEADER)) };
        let mut header = Fields(&header[MARK.len()..]);
        let (Some(length), Some(sum)) = (header.u32(), header.u32()) else { return Err(Broken::Damaged) };
        let length = length as usize;
        if length > MAX_BODY {
            return Err(Broken::Damaged);
        }
        let body = rest.get(..length).ok_or(Broken::Short(HEADER + length))?;
        if crc32fast::hash(body) != sum {
            return Err(Broken::Damaged);
        }
        let record = Fields(body).record().ok_or(Broken::Damaged)?;
        Ok((record, HEADER + length))
    }

    /// Where in `bytes`, not at their beginning, the next whole record begins.
    pub(super) fn find(bytes: &[u8]) -> Option<usize> {
        (1..bytes.len()).find(|&at| bytes[at..].starts_with(&MARK) && Record::read(&bytes[at..]).is_ok())
    }
}

/// What is left of a body.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn record(&mut self) -> Option<Record<'a>> {
        let text = |bytes| std::str::from_utf8(bytes).ok();
        match self.array()? {
            [0] => Some(Record::Head { follows: self.u64()?, boot: text(self.0)? }),
            [1] => Some(Record::Source { number: self.u64()?, source: text(self.0)? }),
            [2] => {
                let (number, time, source) = (self.u64()?, self.u64()?, self.u64()?);
                let [length] = self.array()?;
                let (name, envelope) = self.0.split_at_checked(length.into())?;
                let source = if name.is_empty() { None } else { Some((text(name)?, source)) };
                Some(Record::Event { number, time, source, envelope })
            }
            _ => None,
        }
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Record<'static>> {
        vec![
            Record::Head { follows: 7, boot: "b-1" },
            Record::Source { source: "1-2", number: u64::MAX },
            Record::Event { number: 8, time: 9, source: Some(("1-2", 3)), envelope: b"hello" },
            Record::Event { number: 9, time: 9, source: None, envelope: b"" },
        ]
    }

    #[test]
    fn records_are_read_as_they_were_written_and_not_from_less() {
        for record in samples() {
            let mut bytes = Vec::new();
            record.write(&mut bytes);
            assert_eq!(Record::read(&bytes), Ok((record, bytes.len())));
            for length in 0..bytes.len() {
                assert!(matches!(Record::read(&bytes[..length]), Err(Broken::Short(_))), "{length}");
            }
        }
    }

    #[test]
    fn no_flipped_bit_passes_for_a_record() {
        for record in samples() {
            let mut bytes = Vec::new();
            record.write(&mut bytes);
            for bit in 0..8 * bytes.len() {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(Record::read(&bytes).is_err(), "{record:?} {bit}");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    #[test]
    fn the_smallest_event_is_as_small_as_said() {
        let mut bytes = Vec::new();
        Record::Event { number: 1, time: 1, source: None, envelope: b"" }.write(&mut bytes);
        assert_eq!(bytes.len() as u64, MIN_EVENT);
    }

    #[test]
    fn a_record_is_found_behind_any_rubbish() {
        let mut bytes = b"DEj\x01 DEj".to_vec();
        let at = bytes.len();
        samples()[2].write(&mut bytes);
        assert_eq!(Record::find(&bytes), Some(at));
        assert_eq!(Record::find(&bytes[..bytes.len() - 1]), None);
    }
}

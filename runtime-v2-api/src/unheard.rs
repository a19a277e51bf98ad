//! The file in which a supervised shim keeps the events that the supervisor has not taken yet, so that they outlive it.
//!
//! A record for each event: its number and its length, both little-endian (`u64`, `u32`), and the `ForwardRequest`. A shim
//! appends one before it first sends the event, truncates the file when all are taken, and removes it when it leaves. What
//! a shim that was killed has left there may have been taken already: the same numbers went with the events, as [`SOURCE`]
//! and [`NUMBER`] beside each of them.

use std::{
    fs::File,
    io::{self, Write as _},
};

/// The environment variable that names the folder of these files. A shim that has it is supervised.
pub const VARIABLE: &str = "DUNNAGE_UNHEARD";
/// The environment variable that names the file where a supervised shim logs, for want of containerd's FIFO in the bundle.
pub const LOG: &str = "DUNNAGE_SHIM_LOG";
/// ttrpc metadata of an event: which shim it is of, which is also the name of that shim's file; see [`source`].
pub const SOURCE: &str = "dunnage-source";
/// ttrpc metadata of an event: its number among that shim's, counted from 1, in decimal.
pub const NUMBER: &str = "dunnage-number";
/// Bytes of an event at most. What claims to be longer is no record.
pub const LONGEST: usize = 16 << 20;

/// Bytes in front of an event.
const HEADER: usize = 12;

/// The name of the shim that runs as `pid` and was started `start_time` clock ticks after the machine (field 22 of
/// proc_pid_stat(5)): no other process ever has both, until the next boot.
pub fn source(pid: u32, start_time: u64) -> String {
    format!("{pid}-{start_time}")
}

/// An event in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its number among the shim's.
    pub number: u64,
    /// The `ForwardRequest`, as it was or will be sent.
    pub request: &'a [u8],
}

/// What is in a file: the whole records in front, and how many bytes follow that are none. A shim that was killed while it
/// wrote leaves such a rest; that event was sent to nobody.
pub fn read(mut bytes: &[u8]) -> (Vec<Record<'_>>, usize) {
    let mut records = Vec::new();
    while let Some((number, rest)) = bytes.split_first_chunk()
        && let Some((length, rest)) = rest.split_first_chunk()
        && let Ok(length) = usize::try_from(u32::from_le_bytes(*length))
        && length <= LONGEST
        && let Some((request, rest)) = rest.split_at_checked(length)
    {
        records.push(Record { number: u64::from_le_bytes(*number), request });
        bytes = rest;
    }
    (records, bytes.len())
}

/// Adds a record to `file`, which is open for appending and has no other writer.
///
/// # Errors
/// When the record is too long, or the disk is full; the file is then as it was.
pub fn append(mut file: &File, record: Record<'_>) -> io::Result<()> {
    let length = u32::try_from(record.request.len()).ok().filter(|_| record.request.len() <= LONGEST);
    let length = length.ok_or(io::ErrorKind::FileTooLarge)?;
    let mut bytes = Vec::with_capacity(HEADER + record.request.len());
    bytes.extend(record.number.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(record.request);
    let before = file.metadata()?.len();
    file.write_all(&bytes).inspect_err(|_| {
        // Half a record would hide those that follow. If this fails too, the reader finds the rest.
        drop(file.set_len(before));
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> (Vec<u8>, [usize; 4]) {
        let mut file = tempfile::tempfile().unwrap();
        let mut ends = [0; 4];
        for (at, request) in [&b"one"[..], b"", &[7; 300]].into_iter().enumerate() {
            append(&file, Record { number: at as u64 + 1, request }).unwrap();
            ends[at + 1] = file.metadata().unwrap().len() as usize;
        }
        let mut bytes = Vec::new();
        io::Seek::rewind(&mut file).unwrap();
        io::Read::read_to_end(&mut file, &mut bytes).unwrap();
        (bytes, ends)
    }

    #[test]
    fn a_file_that_is_cut_anywhere_has_every_record_before_the_cut() {
        let (bytes, ends) = three();
        for cut in 0..=bytes.len() {
            let whole = ends.iter().filter(|end| **end > 0 && **end <= cut).count();
            let (records, rest) = read(&bytes[..cut]);
            let numbers: Vec<u64> = records.iter().map(|record| record.number).collect();
            assert_eq!(numbers, (1..=whole as u64).collect::<Vec<_>>(), "cut at {cut}");
            assert_eq!(rest, cut - ends[whole], "cut at {cut}");
        }
        assert_eq!(read(&bytes).0[2], Record { number: 3, request: &[7; 300] });
    }

    #[test]
    fn what_is_no_record_is_left_and_counted() {
        let (mut bytes, ends) = three();
        bytes[ends[1] + 8..ends[1] + 12].copy_from_slice(&u32::MAX.to_le_bytes());
        let (records, rest) = read(&bytes);
        assert_eq!((records.len(), rest), (1, bytes.len() - ends[1]));
    }

    #[test]
    fn a_full_disk_leaves_the_file_as_it_was() {
        // /dev/full takes no byte; it is no regular file, so what matters here is that the error comes out.
        let full = std::fs::OpenOptions::new().append(true).open("/dev/full").unwrap();
        let error = append(&full, Record { number: 1, request: b"x" }).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        let file = tempfile::tempfile().unwrap();
        let long = vec![0; LONGEST + 1];
        assert!(append(&file, Record { number: 1, request: &long }).is_err());
        assert_eq!(file.metadata().unwrap().len(), 0);
    }
}

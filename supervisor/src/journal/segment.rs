//! One file of the journal, and reading it in small pieces.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use super::record::Record;

/// How much is read at once, if one record is not longer.
pub(super) const CHUNK: usize = 64 << 10;

const SUFFIX: &str = ".journal";

/// What is known of one file.
#[derive(Clone, Debug, Default)]
pub(super) struct Segment {
    /// The number of its first event, whether that was written yet or not; it gives the file its name.
    pub first: u64,
    /// See [`Record::Head`].
    pub follows: u64,
    /// The number of its last event; `first - 1` if there is none.
    pub last: u64,
    /// Of its first event and of its last; 0 if there is none. In nanoseconds since 1970.
    pub oldest: u64,
    pub newest: u64,
    /// Where its events begin, and where what can be read of it ends.
    pub begin: u64,
    pub end: u64,
}

impl Segment {
    pub(super) fn new(first: u64, follows: u64) -> Self {
        Self { first, follows, last: first - 1, ..Self::default() }
    }

    pub(super) fn path(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{:020}{SUFFIX}", self.first))
    }

    /// What [`Segment::path`] made a name of.
    pub(super) fn first_of(name: &str) -> Option<u64> {
        let digits = name.strip_suffix(SUFFIX).filter(|digits| digits.len() == 20)?;
        digits.parse().ok().filter(|first| *first > 0)
    }

    pub(super) fn note(&mut self, number: u64, time: u64) {
        self.last = number;
        self.newest = time;
        if self.oldest == 0 {
            self.oldest = time;
        }
    }
}

/// Reads the records of one file, and on behind what is damaged.
pub(super) struct Reader<'f> {
    file: &'f File,
    /// Where to stop.
    end: u64,
    /// Where in the file `bytes` are from.
    base: u64,
    bytes: Vec<u8>,
    /// Where in `bytes` the next record begins.
    at: usize,
    /// Bytes passed over so far, being no records.
    pub damaged: u64,
    /// Set at the end, if no whole record ends there.
    pub rest: Option<Rest>,
}

/// What stands behind the last whole record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// The beginning of a record: its writer was killed.
    Torn,
    /// So many bytes that were never written like this.
    Damaged(u64),
}

impl<'f> Reader<'f> {
    /// Reads from one place, where a record begins, to another.
    pub(super) fn new(file: &'f File, from: u64, end: u64) -> Self {
        Self { file, end, base: from, bytes: Vec::new(), at: 0, damaged: 0, rest: None }
    }

    /// The next record, or `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Record<'_>>> {
        let range = self.advance()?;
        Ok(range.and_then(|range| Record::read(&self.bytes[range]).ok()).map(|(record, _)| record))
    }

    /// Where the next record begins.
    pub(super) fn offset(&self) -> u64 {
        self.base + self.at as u64
    }

    /// Where in `bytes` the next record is.
    fn advance(&mut self) -> io::Result<Option<Range<usize>>> {
        loop {
            let broken = match Record::read(&self.bytes[self.at..]) {
                Ok((_, length)) => {
                    self.at += length;
                    return Ok(Some(self.at - length..self.at));
                }
                Err(broken) => broken,
            };
            let left = self.end - self.offset();
            match broken {
                super::record::Broken::Short(_) if left == 0 => return Ok(None),
                super::record::Broken::Short(length) if length as u64 <= left => self.fill(length.max(CHUNK))?,
                broken => {
                    // A segment is small enough to be looked through at once.
                    self.fill(usize::try_from(left).unwrap_or(usize::MAX))?;
                    let Some(skipped) = Record::find(&self.bytes[self.at..]) else {
                        let torn = matches!(broken, super::record::Broken::Short(_));
                        self.rest = Some(if torn { Rest::Torn } else { Rest::Damaged(left) });
                        return Ok(None);
                    };
                    self.damaged += skipped as u64;
                    self.at += skipped;
                }
            }
        }
    }

    /// Sees to it that there are `wanted` bytes from the next record on, or all up to the end.
    fn fill(&mut self, wanted: usize) -> io::Result<()> {
        self.base = self.offset();
        self.bytes.drain(..self.at);
        self.at = 0;
        let left = self.end - self.base;
        let wanted = usize::try_from(left).map_or(wanted, |left| left.min(wanted));
        let mut filled = self.bytes.len();
        self.bytes.resize(wanted.max(filled), 0);
        while filled < self.bytes.len() {
            match self.file.read_at(&mut self.bytes[filled..], self.base + filled as u64) {
                Ok(0) => {
                    // Somebody has cut the file.
                    self.bytes.truncate(filled);
                    self.end = self.base + filled as u64;
                }
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

//! Events on disk, with numbers: appended, read from any number on, dropped when there are too many or they are too old.
//!
//! The journal is a folder of files, each named by the number of its first event. Only whole files are dropped, the oldest
//! first. Every file begins with how far each source had come by then, so that an event which its source sends a second
//! time is known as long as the source lives, however long ago the first time was.
//!
//! Nothing is kept in memory but a line for each file and for each source: whoever reads, reads from the files, in small
//! pieces, by a [`Cursor`] of two numbers.
//!
//! **What a crash costs.** Being killed, at whatever instruction, costs nothing that was appended: it is the kernel's by
//! then, and the torn record that may be at the end is cut. Nothing is ever synced to the disk, because that would hold up
//! the one event loop for as long as the disk likes. So when the *machine* dies, what was appended in the last half
//! minute or so may be gone. Its containers are gone too then; what must not happen is that a number is given twice, to
//! an event that a subscriber has seen and to one that it then never gets. So the numbers of another boot begin at a
//! round one, at least a million on.
//!
//! **Damage** costs the records it hits: what stands behind them is found again, the events that are missing are counted
//! as lost to whoever reads over them, and the file stays as it is until it is dropped.

use std::{
    collections::{HashMap, VecDeque},
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

mod record;
mod segment;
#[cfg(test)]
mod tests;

use record::{MIN_EVENT, Record};
use segment::{Reader, Rest, Segment};

/// The longest name of a source.
pub const MAX_SOURCE: usize = 64;
/// The largest event, in bytes: with what ttrpc puts around it, it must fit into one of its messages.
pub const MAX_EVENT: usize = (4 << 20) - (64 << 10);

/// Between the last number of one boot and the first of the next; more than any machine appends in the half minute
/// that the kernel keeps to itself.
const BOOT_STEP: u64 = 1_000_000;
/// A batch that is read is so large, or one event.
const BATCH: usize = 64 << 10;
/// A file is ended when it has this part of the bytes, or of the age, that the whole journal may have, or is so large.
const SEGMENTS: u32 = 16;
const SEGMENT: u64 = 1 << 20;

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of all files together. The file being written is always kept.
    pub size: u64,
    /// Of an event; a sixteenth more, as whole files are dropped, and as long as nothing happens.
    pub age: Duration,
}

/// The event journal.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    bounds: Bounds,
    boot: String,
    live: Live,
    /// Oldest first.
    segments: VecDeque<Segment>,
    /// The last of the segments; `None` if the next event begins a new one.
    active: Option<File>,
    /// The last number that was given, and the next one.
    given: u64,
    next: u64,
    sources: HashMap<String, u64>,
    damage: Vec<String>,
    failure: Option<String>,
    buffer: Vec<u8>,
}

/// Tells whether a source can still send.
struct Live(Box<dyn Fn(&str) -> bool + Send>);

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Live")
    }
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It has this number.
    New(u64),
    /// It was there before.
    Known,
}

/// Why there is no journal: its folder cannot be made or read.
#[derive(Debug, thiserror::Error)]
#[error("{doing} the journal {}: {source}", dir.display())]
pub struct JournalError {
    /// What was done.
    doing: &'static str,
    /// The folder.
    dir: PathBuf,
    /// Why it failed.
    source: io::Error,
}

/// Why an event was not appended, and never will be.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// It is too large.
    #[error("an event of {0} bytes; {MAX_EVENT} is the most")]
    Size(usize),
    /// Its source has an odd name.
    #[error("{0:?} as the name of a source: it takes 1 to {MAX_SOURCE} letters, digits, '-' and '_'")]
    Source(String),
}

/// An event as it was appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its number.
    pub number: u64,
    /// When it was appended, in nanoseconds since 1970.
    pub time: u64,
    /// The serialized `Envelope`.
    pub envelope: Vec<u8>,
}

/// How far a reader has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    after: u64,
    /// The first number of a segment, and where in it the next record begins.
    place: Option<(u64, u64)>,
}

impl Cursor {
    /// Behind the event of this number.
    pub fn after(number: u64) -> Self {
        Self { after: number, place: None }
    }

    /// The last number that is behind it.
    pub fn number(&self) -> u64 {
        self.after
    }
}

/// Some of what follows a cursor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// So many events, before those in here, can no longer be read.
    pub lost: u64,
    /// Empty only at the end, or if something is lost.
    pub events: Vec<Event>,
}

impl Journal {
    /// Opens the journal in this folder, which is made if it is not there, and which nobody else may use: the supervisor
    /// locks the folder around it. `live` tells whether a source can still send
    /// something. The strings name what could not be read; they are among the [`Journal::troubles`] too.
    ///
    /// # Errors
    /// When the folder cannot be used at all.
    pub fn open(
        dir: &Path,
        bounds: Bounds,
        live: impl Fn(&str) -> bool + Send + 'static,
    ) -> Result<(Self, Vec<String>), JournalError> {
        let failed = |doing| move |source| JournalError { doing, dir: dir.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("make"))?;
        let mut firsts = Vec::new();
        for entry in fs::read_dir(dir).map_err(failed("list"))? {
            firsts.extend(entry.map_err(failed("list"))?.file_name().to_str().and_then(Segment::first_of));
        }
        firsts.sort_unstable();

        let mut journal = Self {
            dir: dir.to_owned(),
            bounds,
            // Without one, no boot is ever another.
            boot: fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned(),
            live: Live(Box::new(live)),
            segments: VecDeque::new(),
            active: None,
            given: 0,
            next: 1,
            sources: HashMap::new(),
            damage: Vec::new(),
            failure: None,
            buffer: Vec::new(),
        };
        for first in &firsts {
            journal.load(*first, Some(first) == firsts.last());
        }
        journal.trim();
        let damage = journal.damage.clone();
        Ok((journal, damage))
    }

    /// Appends an event, a serialized `Envelope`. `source` is who sent it and its own number of it, which grows; one that
    /// was appended before is `Known`.
    ///
    /// # Errors
    /// When it cannot be written: nothing has changed, and it can be tried again. [`Unfit`] inside an error of the kind
    /// `InvalidInput` when it never will be.
    pub fn append(&mut self, source: Option<(&str, u64)>, envelope: &[u8]) -> io::Result<Appended> {
        check(source, envelope).map_err(|unfit| io::Error::new(io::ErrorKind::InvalidInput, unfit))?;
        if let Some((name, number)) = source
            && self.sources.get(name).is_some_and(|last| number <= *last)
        {
            return Ok(Appended::Known);
        }
        let written = self.write(source, envelope);
        self.failure = written.as_ref().err().map(|error| {
            format!("the journal {} takes no events: {error}; shims keep theirs until it does", self.dir.display())
        });
        let number = written?;
        if let Some((name, of_source)) = source {
            match self.sources.get_mut(name) {
                Some(last) => *last = of_source,
                None => drop(self.sources.insert(name.to_owned(), of_source)),
            }
        }
        Ok(Appended::New(number))
    }

    /// The last number that was given.
    pub fn last(&self) -> u64 {
        self.next - 1
    }

    /// How many bytes the files have.
    pub fn size(&self) -> u64 {
        self.segments.iter().map(|segment| segment.end).sum()
    }

    /// What is wrong with it, for an operator.
    pub fn troubles(&self) -> Vec<String> {
        self.failure.iter().chain(&self.damage).cloned().collect()
    }

    /// Keeps so much from now on, and drops what is over that.
    pub fn keep(&mut self, bounds: Bounds) {
        self.bounds = bounds;
        self.trim();
    }

    /// Drops what is over the bounds.
    pub fn trim(&mut self) {
        let now = now();
        let age = |part| u64::try_from((self.bounds.age / part).as_nanos()).unwrap_or(u64::MAX);
        let old = now.saturating_sub(age(1));
        // The last segment is never dropped, as it says where the numbers are. So that it does not grow old for ever, it
        // is followed by another when it is of a certain age, whatever its size.
        let aged = now.saturating_sub(age(SEGMENTS));
        if self.segments.back().is_some_and(|last| last.oldest != 0 && last.oldest < aged) {
            self.active = None;
            if self.segments.back().is_some_and(|last| last.newest < old)
                && let Err(error) = self.begin()
            {
                log::warn!("begin a new file of the journal {}: {error}", self.dir.display());
            }
        }
        while self.segments.len() > 1 {
            let Some(oldest) = self.segments.front() else { return };
            if self.size() <= self.bounds.size && oldest.newest >= old {
                return;
            }
            if let Err(error) = fs::remove_file(oldest.path(&self.dir))
                && error.kind() != io::ErrorKind::NotFound
            {
                log::warn!("drop a file of the journal {}: {error}", self.dir.display());
                return;
            }
            let first = self.segments.pop_front().map_or(0, |segment| segment.first);
            self.damage.retain(|what| !what.contains(&format!("{first:020}")));
        }
    }

    /// The cursor behind this number, and how many events after it are no longer kept.
    pub fn cursor(&self, after: u64) -> (Cursor, u64) {
        match self.segments.front() {
            Some(oldest) if after < oldest.follows => (Cursor::after(oldest.first - 1), oldest.follows - after),
            _ => (Cursor::after(after), 0),
        }
    }

    /// Some of the events behind the cursor, which moves behind them.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn read(&self, cursor: &mut Cursor) -> io::Result<Batch> {
        let mut batch = Batch::default();
        let mut size = 0;
        // Where the cursor is, if that is still kept; else the first segment that goes beyond it.
        let placed = |segment: &Segment| cursor.place.is_some_and(|(first, _)| first == segment.first);
        let index = self.segments.iter().position(placed);
        let index = index.or_else(|| self.segments.iter().position(|segment| segment.last > cursor.after));
        for segment in self.segments.iter().skip(index.unwrap_or(self.segments.len())) {
            let mut offset = match cursor.place {
                Some((first, offset)) if first == segment.first => offset,
                _ => {
                    if cursor.after < segment.follows {
                        if !batch.events.is_empty() {
                            return Ok(batch);
                        }
                        batch.lost += segment.follows - cursor.after;
                    }
                    // Also over the numbers that nobody was given.
                    cursor.after = cursor.after.max(segment.first - 1);
                    segment.begin
                }
            };
            if offset < segment.end {
                let file = File::open(segment.path(&self.dir))?;
                let mut reader = Reader::new(&file, offset, segment.end);
                while let Some(record) = reader.next()? {
                    if let Record::Event { number, time, envelope, .. } = record
                        && number > cursor.after
                    {
                        let missing = number - cursor.after - 1;
                        if size >= BATCH || (missing > 0 && !batch.events.is_empty()) {
                            cursor.place = Some((segment.first, offset));
                            return Ok(batch);
                        }
                        batch.lost += missing;
                        cursor.after = number;
                        size += envelope.len();
                        batch.events.push(Event { number, time, envelope: envelope.to_owned() });
                    }
                    offset = reader.offset();
                }
            }
            cursor.place = Some((segment.first, segment.end));
        }
        Ok(batch)
    }

    /// Takes over a file from an earlier run.
    fn load(&mut self, first: u64, is_last: bool) {
        let mut segment = Segment::new(first, first - 1);
        let path = segment.path(&self.dir);
        let mut damage = |what: String| self.damage.push(format!("{} {what}", path.display()));
        self.next = self.next.max(first);
        let opened = OpenOptions::new().read(true).write(true).open(&path);
        let (file, length) = match opened.and_then(|file| file.metadata().map(|data| (file, data.len()))) {
            Ok(opened) => opened,
            Err(error) => return damage(format!("cannot be opened: {error}")),
        };
        let mut reader = Reader::new(&file, 0, length);
        let (mut boot, mut headed, mut failed) = (None, false, None);
        loop {
            match reader.next() {
                Ok(Some(Record::Head { follows, boot: of })) => {
                    headed = true;
                    segment.follows = follows.min(first - 1);
                    boot = Some(of.to_owned());
                }
                Ok(Some(Record::Source { source, number })) => {
                    let last = self.sources.entry(source.to_owned()).or_default();
                    *last = number.max(*last);
                }
                Ok(Some(Record::Event { number, time, source, .. })) => {
                    if let Some((source, number)) = source {
                        let last = self.sources.entry(source.to_owned()).or_default();
                        *last = number.max(*last);
                    }
                    segment.note(number, time);
                }
                Ok(None) => break,
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
            if segment.oldest == 0 {
                segment.begin = reader.offset();
            }
        }
        segment.end = reader.offset();
        let (skipped, rest) = (reader.damaged, reader.rest);
        if is_last && !headed && segment.oldest == 0 && rest == Some(Rest::Torn) || length == 0 {
            // Killed while it was begun: it is begun again, under the same name.
            if self.segments.is_empty() {
                self.given = first - 1;
            }
            return;
        }
        self.given = self.given.max(if segment.oldest == 0 { segment.follows } else { segment.last });
        if let Some(error) = &failed {
            damage(format!("cannot be read behind event {}: {error}", segment.last));
        } else if skipped > 0 {
            damage(format!("is damaged: {skipped} bytes of it are no events; those behind were saved"));
        }
        let mut whole = failed.is_none();
        match rest {
            Some(Rest::Torn) if is_last => {
                log::info!("{}: cut the record that was being written when the supervisor was killed", path.display());
                if let Err(error) = file.set_len(segment.end) {
                    // Then the next one is written over it.
                    log::warn!("cut {}: {error}", path.display());
                }
            }
            Some(Rest::Torn) => damage(format!("ends within the record behind event {}", segment.last)),
            Some(Rest::Damaged(bytes)) => {
                whole = false;
                damage(format!("is damaged behind event {}: its last {bytes} bytes are no events", segment.last));
                // Numbers that may have been given are not given again.
                self.given += bytes / MIN_EVENT + 1;
            }
            None => {}
        }
        self.next = self.next.max(self.given + 1);
        let same_boot = boot.is_none_or(|boot| boot == self.boot || boot.is_empty() || self.boot.is_empty());
        if is_last && !same_boot {
            // Their names are process ids and times since boot, and may come again.
            self.sources.clear();
            self.next = self.next.max((self.given / BOOT_STEP + 2) * BOOT_STEP + 1);
        } else if is_last && whole {
            self.active = Some(file);
        }
        self.segments.push_back(segment);
    }

    fn write(&mut self, source: Option<(&str, u64)>, envelope: &[u8]) -> io::Result<u64> {
        self.trim();
        let most = SEGMENT.min(self.bounds.size / u64::from(SEGMENTS));
        let full = |segment: &Segment| segment.end - segment.begin >= most;
        if self.active.is_none() || self.segments.back().is_none_or(full) {
            self.begin()?;
        }
        let (Some(file), Some(segment)) = (&self.active, self.segments.back_mut()) else {
            return Err(io::Error::other("no file"));
        };
        let (number, time) = (self.next, now());
        self.buffer.clear();
        // One large event does not cost its size for ever.
        self.buffer.shrink_to(BATCH);
        Record::Event { number, time, source, envelope }.write(&mut self.buffer);
        if let Err(error) = file.write_all_at(&self.buffer, segment.end) {
            // Where this fails too, the next event is written over it, and the next run cuts it.
            if let Err(error) = file.set_len(segment.end) {
                log::debug!("cut a record of {}: {error}", self.dir.display());
            }
            return Err(error);
        }
        segment.end += self.buffer.len() as u64;
        segment.note(number, time);
        self.given = number;
        self.next = number + 1;
        Ok(number)
    }

    /// Begins a new file, with all that is to be remembered of the older ones.
    fn begin(&mut self) -> io::Result<()> {
        let (live, sources) = (&self.live.0, &mut self.sources);
        sources.retain(|source, _| live(source));
        sources.shrink_to_fit();
        let mut head = Vec::new();
        Record::Head { follows: self.given, boot: &self.boot }.write(&mut head);
        for (source, number) in sources {
            Record::Source { source, number: *number }.write(&mut head);
        }
        let mut segment = Segment::new(self.next, self.given);
        segment.begin = head.len() as u64;
        segment.end = segment.begin;
        let path = segment.path(&self.dir);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        if let Err(error) = file.write_all_at(&head, 0) {
            if let Err(error) = fs::remove_file(&path) {
                log::debug!("remove {}: {error}", path.display());
            }
            return Err(error);
        }
        self.active = Some(file);
        self.segments.retain(|other| other.first != segment.first);
        self.segments.push_back(segment);
        Ok(())
    }
}

fn check(source: Option<(&str, u64)>, envelope: &[u8]) -> Result<(), Unfit> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    match source {
        Some((name, _)) if name.is_empty() || name.len() > MAX_SOURCE || !name.bytes().all(plain) => {
            Err(Unfit::Source(name.to_owned()))
        }
        _ if envelope.len() > MAX_EVENT => Err(Unfit::Size(envelope.len())),
        _ => Ok(()),
    }
}

fn now() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX)
}

//! The log file in which a container's output is kept, in CRI's format, rotated by size.
//!
//! A record is a line, `2026-01-31T10:20:30.123456789Z stdout F text`; a `P` instead of the `F` says that the line goes on
//! in the stream's next record, so that a prompt is there before its answer. What was read at once is written at once.
//!
//! One who reads along keeps the file open: when a new one is at the path, the old one gets no more, and is whole. A log
//! that cannot be written, the disk being full, holds up neither the container nor who is attached to it: what is missing
//! is counted, and said in the log itself as soon as that works again.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, Metadata, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::log::Rfc3339;

/// Bytes of records that are written at once: many more than were read at once only if all lines are empty.
const BATCH: usize = 256 * 1024;
/// Bytes of a record in front of the text: the time, the stream and the tag, each with a space behind it.
const HEADER: usize = 40;

/// Which of its two outputs a process wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Out,
    Err,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Out => "stdout",
            Self::Err => "stderr",
        }
    }
}

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Bytes of a file at most, unless one record has more; None for no limit.
    pub(crate) size: Option<u64>,
    /// Files at most, the current one among them; at least 1.
    pub(crate) files: u32,
}

/// The log of one process.
pub(crate) struct Kept {
    path: PathBuf,
    bounds: Bounds,
    /// None after a failure that left half a record, or no file.
    file: Option<File>,
    batch: Vec<u8>,
    lost: Option<Lost>,
    /// It could not be rotated, and that was said.
    overdue: bool,
}

/// Output that the log should have and has not.
struct Lost {
    bytes: u64,
    since: SystemTime,
    why: io::Error,
}

impl Kept {
    /// Goes on with the log at `path`, or begins it.
    pub(crate) fn open(path: &Path, bounds: Bounds) -> io::Result<Self> {
        let file = Some(open(path)?);
        Ok(Self { path: path.to_owned(), bounds, file, batch: Vec::new(), lost: None, overdue: false })
    }

    /// Keeps what a process wrote. If that fails, it is said in our own log.
    pub(crate) fn write(&mut self, stream: Stream, bytes: &[u8], now: SystemTime) {
        let mut batch = std::mem::take(&mut self.batch);
        let stamp = Rfc3339(now).to_string();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (tag, text) = piece.strip_suffix(b"\n").map_or(("P", piece), |line| ("F", line));
            record(&mut batch, &stamp, stream, tag, text);
            if batch.len() > BATCH {
                self.put(&batch, now);
                batch.clear();
            }
        }
        self.put(&batch, now);
        batch.clear();
        self.batch = batch;
    }

    /// There will be nothing to write for a while: lets go of memory.
    pub(crate) fn rest(&mut self) {
        self.batch = Vec::new();
    }

    /// There will be nothing to write any more.
    pub(crate) fn finish(&mut self) {
        self.put(&[], SystemTime::now());
        if let Some(lost) = &self.lost {
            log::error!("{} bytes of output are not in {}: {}", lost.bytes, self.path.display(), lost.why);
        }
    }

    /// Writes whole records.
    fn put(&mut self, records: &[u8], now: SystemTime) {
        let mut written = 0;
        let result = self.own_up(now).and_then(|()| self.put_all(records, &mut written));
        let Err(why) = result else { return };
        let bytes = texts(&records[written..]);
        match &mut self.lost {
            Some(lost) => lost.bytes += bytes,
            None => {
                log::error!("output cannot be kept in {}: {why}; the container goes on", self.path.display());
                self.lost = Some(Lost { bytes, since: now, why });
            }
        }
    }

    /// Says what is missing before anything comes after it.
    fn own_up(&mut self, now: SystemTime) -> io::Result<()> {
        let Some(Lost { bytes, since, why }) = &self.lost else { return Ok(()) };
        let text = format!("dunnage: {bytes} bytes of output since {} are missing here: {why}", Rfc3339(*since));
        let mut notice = Vec::new();
        record(&mut notice, &Rfc3339(now).to_string(), Stream::Err, "F", text.as_bytes());
        let bytes = *bytes;
        self.put_all(&notice, &mut 0)?;
        log::info!("output is kept in {} again; {bytes} bytes of it are missing", self.path.display());
        self.lost = None;
        Ok(())
    }

    fn put_all(&mut self, records: &[u8], written: &mut usize) -> io::Result<()> {
        while *written < records.len() {
            let rest = &records[*written..];
            let current = self.current()?;
            let fits = match self.bounds.size {
                Some(size) => whole(rest, size.saturating_sub(current.len())),
                None => rest.len(),
            };
            let part = match fits {
                // One record may be larger than any file.
                0 if current.len() == 0 => first(rest),
                0 if self.rotate() => continue,
                0 => rest.len(),
                part => part,
            };
            let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
            let (done, result) = append(file, &rest[..part]);
            // Half a record would spoil the next one.
            let kept = whole(rest, done as u64);
            *written += kept;
            if kept < done && file.set_len(current.len() + kept as u64).is_err() {
                // Opening it again ends the line.
                self.file = None;
            }
            result?;
        }
        Ok(())
    }

    /// What the file at the path is, which is ours again if somebody removed or replaced it.
    fn current(&mut self) -> io::Result<Metadata> {
        if let Some(file) = &self.file
            && let Ok(there) = fs::symlink_metadata(&self.path)
        {
            let ours = file.metadata()?;
            if (ours.dev(), ours.ino()) == (there.dev(), there.ino()) {
                return Ok(ours);
            }
        }
        self.file.insert(open(&self.path)?).metadata()
    }

    /// Sets the file aside for a new one, and those set aside before it one further. If there can be no new one, this one
    /// goes on beyond its size: that loses nothing.
    fn rotate(&mut self) -> bool {
        let rotated = self.try_rotate();
        match &rotated {
            Err(error) if !self.overdue => log::error!("{} cannot be rotated: {error}", self.path.display()),
            _ => {}
        }
        self.overdue = rotated.is_err();
        rotated.is_ok()
    }

    /// Whoever is killed in the middle leaves a gap in the numbers at worst, which the next rotation closes.
    fn try_rotate(&mut self) -> io::Result<()> {
        let aside = |number: u32| with_suffix(&self.path, &number.to_string());
        let next = with_suffix(&self.path, "new");
        // The new one first: it is what can fail.
        let options =
            OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).to_owned();
        let file = options.open(&next)?;
        file.set_len(0)?;
        for number in (1..self.bounds.files).rev() {
            let from = if number == 1 { self.path.clone() } else { aside(number - 1) };
            match fs::rename(from, aside(number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(next, &self.path)?;
        self.file = Some(file);
        Ok(())
    }
}

fn record(batch: &mut Vec<u8>, stamp: &str, stream: Stream, tag: &str, text: &[u8]) {
    for part in [stamp, " ", stream.name(), " ", tag, " "] {
        batch.extend(part.as_bytes());
    }
    batch.extend(text);
    batch.push(b'\n');
}

/// Bytes of whole records among the first `limit`.
fn whole(records: &[u8], limit: u64) -> usize {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(records.len());
    records[..limit].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1)
}

/// Bytes of the first record.
fn first(records: &[u8]) -> usize {
    records.iter().position(|byte| *byte == b'\n').map_or(records.len(), |end| end + 1)
}

/// Bytes that a process wrote for these records to be made of.
fn texts(records: &[u8]) -> u64 {
    let lines = records.split_inclusive(|byte| *byte == b'\n');
    // The end of a line was written by the process if the record is a full one.
    let text = |line: &[u8]| line.len().saturating_sub(HEADER + usize::from(line.get(HEADER - 2) == Some(&b'P')));
    lines.map(|line| text(line) as u64).sum()
}

/// How much of `bytes` was written, and what came in the way of the rest.
fn append(file: &mut File, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut done = 0;
    while done < bytes.len() {
        match file.write(&bytes[done..]) {
            Ok(0) => return (done, Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (done, Err(error)),
        }
    }
    (done, Ok(()))
}

/// Opens the log at its end. If that is in the middle of a record (we were killed, and then somebody started us again),
/// the record ends there.
fn open(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    // Of a FIFO, opening would not wait for the other end.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut file =
        OpenOptions::new().read(true).append(true).create(true).mode(0o600).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut last = [b'\n'];
    if file.seek(SeekFrom::End(0))? > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    if last != *b"\n" {
        file.write_all(b"\n")?;
    }
    Ok(file)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".");
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use std::{
        fmt::Write as _,
        time::{Duration, UNIX_EPOCH},
    };

    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use tempfile::TempDir;

    use super::*;

    const NOW: &str = "1970-01-01T00:00:01.000000000Z";

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1)
    }

    fn log(size: Option<u64>, files: u32) -> (TempDir, PathBuf, Kept) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/log");
        let kept = Kept::open(&path, Bounds { size, files }).unwrap();
        (folder, path, kept)
    }

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap_or_default().replace(NOW, "T")
    }

    /// What processes wrote, as the records of a file say it.
    fn replay(text: &str) -> String {
        text.lines().fold(String::new(), |mut all, line| {
            let [_, _, tag, text] = line.splitn(4, ' ').collect::<Vec<_>>().try_into().unwrap();
            write!(all, "{text}{}", if tag == "F" { "\n" } else { "" }).unwrap();
            all
        })
    }

    #[test]
    fn lines_are_full_and_what_is_no_line_yet_is_partial() {
        let (_folder, path, mut kept) = log(None, 1);
        kept.write(Stream::Out, b"one\ntwo\n\nname? ", now());
        kept.write(Stream::Err, b"err\n", now());
        kept.write(Stream::Out, b"you\r\n", now());
        assert_eq!(
            read(&path),
            "T stdout F one\nT stdout F two\nT stdout F \nT stdout P name? \nT stderr F err\nT stdout F you\r\n"
        );
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn rotation_keeps_every_record_whole_and_in_order() {
        for files in [1, 2, 4, 40] {
            let (folder, path, mut kept) = log(Some(200), files);
            let mut all = String::new();
            for number in 0..100 {
                let text = format!("{}\n", "x".repeat(number % 50) + &number.to_string());
                all.push_str(&text);
                kept.write(Stream::Out, text.as_bytes(), now());
            }
            let mut found = String::new();
            let mut count = 0;
            for number in (0..files).rev() {
                let path = if number == 0 { path.clone() } else { with_suffix(&path, &number.to_string()) };
                let size = fs::metadata(&path).map_or(0, |file| file.len());
                assert!(size <= 200, "{size}");
                count += u32::from(size > 0);
                found.push_str(&replay(&read(&path)));
            }
            assert!(count == files || found == all);
            assert!(all.ends_with(&found), "{files} files: {found}");
            assert!(!with_suffix(&path, &files.to_string()).exists());
            drop(folder);
        }
    }

    #[test]
    fn one_burst_may_fill_several_files_and_one_record_be_larger_than_any() {
        let (_folder, path, mut kept) = log(Some(150), 100);
        let burst: String = (0..30).map(|number| format!("line {number}\n")).collect();
        kept.write(Stream::Out, burst.as_bytes(), now());
        let long = "y".repeat(1000);
        kept.write(Stream::Out, long.as_bytes(), now());
        kept.write(Stream::Out, b" end\n", now());
        let aside: Vec<_> = (1..100).rev().map(|number| with_suffix(&path, &number.to_string())).collect();
        let found: String = aside.iter().chain([&path]).map(|path| replay(&read(path))).collect();
        assert_eq!(found, burst + &long + " end\n");
    }

    #[test]
    fn a_reader_of_the_old_file_reads_it_to_its_end_and_finds_the_new_one() {
        let (_folder, path, mut kept) = log(Some(100), 2);
        kept.write(Stream::Out, b"first\n", now());
        let mut reader = File::open(&path).unwrap();
        kept.write(Stream::Out, b"second\n", now());
        kept.write(Stream::Out, b"third\n", now());
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(replay(&text), "first\nsecond\n");
        assert_ne!(reader.metadata().unwrap().ino(), fs::metadata(&path).unwrap().ino());
        assert_eq!(replay(&read(&path)), "third\n");
    }

    #[test]
    fn a_log_that_was_removed_or_renamed_is_begun_again() {
        let (folder, path, mut kept) = log(None, 1);
        kept.write(Stream::Out, b"one\n", now());
        fs::rename(&path, folder.path().join("mine")).unwrap();
        kept.write(Stream::Out, b"two\n", now());
        assert_eq!(replay(&read(&path)), "two\n");
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        kept.write(Stream::Out, b"three\n", now());
        assert_eq!(replay(&read(&path)), "three\n");
        fs::write(&path, "").unwrap();
        kept.write(Stream::Out, b"four\n", now());
        assert_eq!(replay(&read(&path)), "four\n", "truncated by somebody");
    }

    #[test]
    fn half_a_record_of_an_earlier_life_ends_where_it_ends() {
        let (_folder, path, mut kept) = log(None, 1);
        kept.write(Stream::Out, b"one\n", now());
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"1970-01-01T00:0").unwrap();
        let mut again = Kept::open(&path, kept.bounds).unwrap();
        again.write(Stream::Out, b"two\n", now());
        assert_eq!(read(&path), "T stdout F one\n1970-01-01T00:0\nT stdout F two\n");
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let bounds = Bounds { size: None, files: 1 };
        assert!(Kept::open(folder.path(), bounds).is_err());
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("link")).unwrap();
        assert!(Kept::open(&folder.path().join("link"), bounds).is_err());
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(Kept::open(&fifo, bounds).is_err());
    }

    /// A file system of 64 KiB, gone with this.
    struct Small(TempDir);

    impl Small {
        fn mount() -> Option<Self> {
            let folder = tempfile::tempdir().unwrap();
            let mounted = mount(Some("none"), folder.path(), Some("tmpfs"), MsFlags::empty(), Some("size=64k")).is_ok();
            let must = std::env::var_os("ROOT_TESTS").is_some_and(|must| must == "must");
            assert!(mounted || !must, "cannot be tested: it needs to mount a tmpfs");
            if !mounted {
                eprintln!("skipped: it needs to mount a tmpfs");
            }
            mounted.then_some(Self(folder))
        }
    }

    impl Drop for Small {
        fn drop(&mut self) {
            // Lazily: a child that another test makes has our files open until it executes its program.
            umount2(self.0.path(), MntFlags::MNT_DETACH).unwrap();
        }
    }

    #[test]
    fn a_full_disk_loses_output_and_says_how_much() {
        let Some(small) = Small::mount() else { return };
        let path = small.0.path().join("log");
        let filler = small.0.path().join("filler");
        fs::write(&filler, [0; 30000]).unwrap();
        let mut kept = Kept::open(&path, Bounds { size: None, files: 1 }).unwrap();
        let mut wrote = String::new();
        for number in 0..3000 {
            let text = format!("line {number}\nand part");
            wrote.push_str(&text);
            kept.write(Stream::Out, text.as_bytes(), now());
        }
        let before = read(&path);
        assert!(before.ends_with('\n'), "no half record: {:?}", &before[before.len() - 60..]);
        fs::remove_file(&filler).unwrap();
        kept.write(Stream::Out, b"again\n", now());
        let text = read(&path);
        let mut after = text.strip_prefix(&before).unwrap().lines();
        let notice = after.next().unwrap();
        let said = notice.strip_prefix("T stderr F dunnage: ").unwrap();
        assert!(
            said.ends_with(" bytes of output since T are missing here: No space left on device (os error 28)"),
            "{said}"
        );
        let said: usize = said.split(' ').next().unwrap().parse().unwrap();
        assert_eq!(said, wrote.len() - replay(&before).len());
        assert!(said > 0);
        assert_eq!(after.collect::<Vec<_>>(), ["T stdout F again"]);
    }
}

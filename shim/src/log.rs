//! What we have to say, to containerd's log: lines as its own shims write them, into the FIFO `log` in the bundle. Dunnage's
//! supervisor makes none, because we outlive it: there the same lines go to a file beside the container's log.
//!
//! A log line is never worth waiting for. While nobody reads, and while containerd is down, lines are dropped; the next one
//! that gets through says how many. The same goes for a full disk.

use std::{
    env,
    fmt::{self, Display, Write as _},
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    panic,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use env_logger::{Builder, Target};
use log::{Level, LevelFilter};
use nix::unistd::dup2_stderr;
use runtime_v2_api::unheard;

use crate::args::Args;

/// A line of up to `PIPE_BUF` bytes arrives in one piece or not at all. The rest of the line fits into what is left.
const LONGEST_MESSAGE: usize = libc::PIPE_BUF - 1024;

/// A file of a supervised shim is set aside when it would become larger, and takes the place of the one before.
const LARGEST: u64 = 128 << 10;

/// Sends everything logged from now on to the FIFO in `bundle`, or to the file that the supervisor names.
///
/// With `stderr`, descriptor 2 becomes the FIFO too: all that is ever written there is a panic's last words, which are
/// worth reading, and the FIFO does not block either. Not for `start`, whose stderr containerd takes for its answer.
pub(crate) fn init(args: &Args, bundle: &Path, stderr: bool) -> Result<(), log::SetLoggerError> {
    if let Some(path) = env::var_os(unheard::LOG).filter(|path| !path.is_empty()) {
        if stderr {
            tell_of_panics();
        }
        let file = Pages { path: path.into(), source: source(args), dropped: 0 };
        return builder(args).target(Target::Pipe(Box::new(file))).try_init();
    }
    let mut fifo = Fifo { path: bundle.join("log"), source: source(args), stderr, open: None, dropped: 0 };
    // Without a reader it is tried again with every line.
    fifo.open = fifo.open().ok();
    builder(args).target(Target::Pipe(Box::new(fifo))).try_init()
}

/// Has the last words of a panic logged: there is no file as long as nothing is, so none can be descriptor 2.
fn tell_of_panics() {
    let (own, usual) = (std::process::id(), panic::take_hook());
    panic::set_hook(Box::new(move |info| {
        // A container's first process is a copy of us until it executes its program, and does not log.
        if std::process::id() == own { log::error!("{info}") } else { usual(info) }
    }));
}

/// The same for `delete`, whose stderr containerd reads as a log.
pub(crate) fn to_stderr(args: &Args) -> Result<(), log::SetLoggerError> {
    builder(args).target(Target::Stderr).try_init()
}

fn builder(args: &Args) -> Builder {
    let source = source(args);
    let mut builder = Builder::new();
    builder
        .filter_level(if args.debug { LevelFilter::Debug } else { LevelFilter::Info })
        // At any lower level it tells of every connection that was closed.
        .filter_module("ttrpc", LevelFilter::Warn)
        .format(move |out, record| line(out, SystemTime::now(), record.level(), record.args(), &source));
    builder
}

/// Which shim says it: all of them write to one log.
fn source(args: &Args) -> String {
    format!("namespace={} id={}", args.namespace, args.id)
}

/// Writes a line as logrus does, which is what containerd's own shims log with.
fn line(
    out: &mut dyn Write,
    time: SystemTime,
    level: Level,
    message: &dyn Display,
    source: &dyn Display,
) -> io::Result<()> {
    let level = match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    let mut quoted = Quoted(String::new());
    if write!(quoted, "{message}").is_err() {
        quoted.0.push('…');
    }
    writeln!(out, "time=\"{}\" level={level} msg=\"{}\" {source}", Rfc3339(time), quoted.0)
}

/// The inside of a Go string; ends with an error where it gets too long.
struct Quoted(String);

impl fmt::Write for Quoted {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            match char {
                '"' | '\\' => self.0.extend(['\\', char]),
                '\n' => self.0.push_str("\\n"),
                '\t' => self.0.push_str("\\t"),
                char if char.is_control() => write!(self.0, "\\u{:04x}", u32::from(char))?,
                char => self.0.push(char),
            }
            if self.0.len() > LONGEST_MESSAGE {
                return Err(fmt::Error);
            }
        }
        Ok(())
    }
}

/// A time in UTC with nanoseconds, as `2026-11-21T03:17:34.000000042Z`.
pub(crate) struct Rfc3339(pub(crate) SystemTime);

impl Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since_1970 = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = since_1970.as_secs();
        // Counted in years that begin in March, the leap day is the last of its year, and of its four centuries.
        let days = seconds / 86400 + 719_468;
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
        let (year, second) = (400 * era + year + next, seconds % 86400);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let nanos = since_1970.subsec_nanos();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
    }
}

/// The writing end of a FIFO that may have no reader, or one that does not read.
struct Fifo {
    /// Absolute: our working directory goes away with the first container of a group.
    path: PathBuf,
    source: String,
    stderr: bool,
    open: Option<File>,
    /// Lines since the last one that got through.
    dropped: u64,
}

impl Fifo {
    /// Never creates it: a file in its place would grow for ever.
    fn open(&self) -> io::Result<File> {
        let file = OpenOptions::new().append(true).custom_flags(libc::O_NONBLOCK).open(&self.path)?;
        if self.stderr {
            dup2_stderr(&file)?;
        }
        Ok(file)
    }

    fn send(&mut self, line: &[u8]) -> io::Result<()> {
        let mut file = match self.open.take() {
            Some(file) => file,
            None => self.open()?,
        };
        let sent = if self.dropped == 0 {
            file.write_all(line)
        } else {
            let mut lines = Vec::with_capacity(line.len() + 128);
            let lost = format_args!("{} log lines were dropped, because nobody read them", self.dropped);
            self::line(&mut lines, SystemTime::now(), Level::Warn, &lost, &self.source)?;
            lines.extend_from_slice(line);
            file.write_all(&lines)
        };
        // With a reader that is only slow it stays open. Without one it may be another FIFO by the time there is one again.
        if !sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            self.open = Some(file);
        }
        sent
    }
}

impl Write for Fifo {
    /// Takes one line. Dropping it is no error: nobody could be told.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.dropped = if self.send(line).is_ok() { 0 } else { self.dropped + 1 };
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file that is made with the first line, and opened for each: most shims never have anything to say, and it may be
/// removed, or set aside by `start`, at any time.
struct Pages {
    path: PathBuf,
    source: String,
    /// Lines since the last one that was written.
    dropped: u64,
}

impl Pages {
    fn append(&self, line: &[u8]) -> io::Result<()> {
        let open = || OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path);
        let mut file = open()?;
        if file.metadata()?.len() + line.len() as u64 > LARGEST {
            fs::rename(&self.path, self.path.with_added_extension("1"))?;
            file = open()?;
        }
        if self.dropped > 0 {
            let lost = format_args!("{} log lines were dropped, because they could not be written", self.dropped);
            self::line(&mut file, SystemTime::now(), Level::Warn, &lost, &self.source)?;
        }
        file.write_all(line)
    }
}

impl Write for Pages {
    /// As that of [`Fifo`].
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.dropped = if self.append(line).is_ok() { 0 } else { self.dropped + 1 };
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, time::Duration};

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    fn reader(path: &Path) -> File {
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap()
    }

    /// All that is in the FIFO.
    fn drain(reader: &mut File) -> String {
        let mut bytes = vec![];
        match reader.read_to_end(&mut bytes) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => panic!("{error}"),
            _ => String::from_utf8(bytes).unwrap(),
        }
    }

    fn fifo() -> (tempfile::TempDir, Fifo) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        (folder, Fifo { path, source: "id=web-1".into(), stderr: false, open: None, dropped: 0 })
    }

    fn dropped(text: &str) -> bool {
        let (note, rest) = text.split_once('\n').unwrap();
        assert_eq!(rest, "back\n");
        note.contains("level=warning msg=\"3 log lines were dropped, because nobody read them\" id=web-1")
    }

    #[test]
    fn a_line_is_one_that_logrus_could_have_written() {
        let mut out = vec![];
        let time = UNIX_EPOCH + Duration::new(1_795_232_254, 42);
        line(&mut out, time, Level::Warn, &"say \"hi\"\\\n\u{1b}ö", &"namespace=default id=web-1").unwrap();
        let expected = "time=\"2026-11-21T03:37:34.000000042Z\" level=warning msg=\"say \\\"hi\\\"\\\\\\n\\u001bö\" \
                        namespace=default id=web-1\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn dates_know_of_leap_days() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00"),
            (951_782_400, "2000-02-29T00:00:00"),
            (951_868_799, "2000-02-29T23:59:59"),
            (1_709_251_199, "2024-02-29T23:59:59"),
            (1_709_251_200, "2024-03-01T00:00:00"),
            (1_735_689_599, "2024-12-31T23:59:59"),
            (4_107_542_400, "2100-03-01T00:00:00"),
        ] {
            let text = Rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)).to_string();
            assert_eq!(text, format!("{date}.000000000Z"));
        }
    }

    #[test]
    fn a_long_message_still_arrives_in_one_piece() {
        let mut out = vec![];
        let long = "\u{1}".repeat(5000);
        line(&mut out, SystemTime::now(), Level::Info, &long, &"namespace=default id=web-1").unwrap();
        assert!(out.len() < libc::PIPE_BUF && out.len() > LONGEST_MESSAGE, "{}", out.len());
        assert!(out.ends_with("…\" namespace=default id=web-1\n".as_bytes()));
    }

    #[test]
    fn a_full_fifo_drops_lines_and_says_so() {
        let (_folder, mut fifo) = fifo();
        let mut reader = reader(&fifo.path);
        let line = [b'x'; 1000];
        while fifo.dropped < 3 {
            fifo.write_all(&line).unwrap();
        }
        let before = drain(&mut reader);
        assert_eq!(before.len() % line.len(), 0, "a line was cut");
        fifo.write_all(b"back\n").unwrap();
        assert!(dropped(&drain(&mut reader)));
        fifo.write_all(b"and on\n").unwrap();
        assert_eq!(drain(&mut reader), "and on\n");
    }

    #[test]
    fn a_file_is_made_when_there_is_something_to_say_and_has_its_bounds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c/shim.log");
        let mut pages = Pages { path: path.clone(), source: "id=web-1".into(), dropped: 0 };
        pages.write_all(b"nowhere\n").unwrap();
        assert!(!path.exists(), "it makes no folder, which somebody would have to remove");
        fs::create_dir(folder.path().join("c")).unwrap();
        pages.write_all(b"here\n").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let (note, rest) = text.split_once('\n').unwrap();
        assert!(note.contains("1 log lines were dropped, because they could not be written\" id=web-1"), "{text}");
        assert_eq!(rest, "here\n");

        let line = [&[b'x'; 999][..], b"\n"].concat();
        for _ in 0..3 * LARGEST / 1000 {
            pages.write_all(&line).unwrap();
        }
        pages.write_all(b"last\n").unwrap();
        let mut sizes = Vec::new();
        for file in fs::read_dir(folder.path().join("c")).unwrap() {
            sizes.push((file.as_ref().unwrap().file_name(), file.unwrap().metadata().unwrap().len()));
        }
        assert!(sizes.len() == 2 && sizes.iter().all(|(_, size)| *size <= LARGEST), "{sizes:?}");
        assert!(fs::read_to_string(&path).unwrap().ends_with("x\nlast\n"));
        assert!(fs::read(path.with_extension("log.1")).unwrap().ends_with(&line), "and whole lines");
    }

    #[test]
    fn a_reader_that_was_away_hears_how_much_it_missed() {
        let (_folder, mut fifo) = fifo();
        fifo.write_all(b"nobody yet\n").unwrap();
        let first = reader(&fifo.path);
        drop(first);
        fifo.write_all(b"nobody any more\n").unwrap();
        std::fs::remove_file(&fifo.path).unwrap();
        fifo.write_all(b"nowhere\n").unwrap();
        assert!(!fifo.path.exists(), "a log must not become a file");
        mkfifo(&fifo.path, Mode::S_IRWXU).unwrap();
        let mut second = reader(&fifo.path);
        fifo.write_all(b"back\n").unwrap();
        assert!(dropped(&drain(&mut second)));
    }
}

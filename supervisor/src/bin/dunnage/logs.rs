//! `logs`.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Error, bail};
use dunnage_supervisor::watch::{AddWatchFlags, Watch};
use runtime_v2_api::supervisor::Container;
use serde::Serialize;
use tokio::time::sleep;

use self::files::Files;
use self::line::Record;
use crate::args::{Format, Global};
use crate::frames::{self, Heard};
use crate::record;
use crate::session::Session;

mod files;
mod line;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Go on as the container writes more, until it ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only what was written since: a time (2026-01-31T12:00:00Z), or so long ago (10m)
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// Only what was written until; with --follow, end then
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<String>,
    /// Only so many of the last lines, or all
    #[arg(short = 'n', long, value_name = "LINES", default_value = "all", allow_hyphen_values = true)]
    pub(crate) tail: Tail,
    /// The time of each line before it
    #[arg(short, long)]
    pub(crate) timestamps: bool,
    /// How to print it; as JSON, each line is a document on a line of its own, on stdout
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
    /// The container
    #[arg(value_name = "CONTAINER")]
    pub(crate) id: String,
}

/// How many of the last lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tail(Option<usize>);

impl FromStr for Tail {
    type Err = String;

    fn from_str(text: &str) -> Result<Tail, String> {
        match (text, text.parse::<i64>()) {
            ("all", _) => Ok(Tail(None)),
            // Docker's, too: less than none is all.
            (_, Ok(number)) => Ok(Tail(usize::try_from(number).ok())),
            _ => Err("neither a number of lines nor `all`".to_owned()),
        }
    }
}

pub(crate) async fn logs(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let session = Session::open(global).await?;
    let container = session.find(&args.id).await?;
    if container.log.is_empty() {
        bail!("{} keeps no log", container.id);
    }
    let log = Path::new(&container.log);
    let now = SystemTime::now();
    let bound = |text: &Option<String>| text.as_deref().map(|text| line::time(text, now)).transpose();
    let mut printer = Printer {
        since: bound(&args.since).map_err(Error::msg)?,
        until: bound(&args.until).map_err(Error::msg)?,
        timestamps: args.timestamps,
        format: args.format,
        middle: [false; 2],
        out: [Box::new(io::stdout()), Box::new(io::stderr())],
    };
    // Watched before it is read, so that nothing is written unseen between the two.
    let changes = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
    let mut watch = Watch::new(log.parent(), changes).context("cannot watch the log")?;
    let mut files = Files::open(log).with_context(|| format!("cannot read the log {}", log.display()))?;
    let cannot = || format!("cannot print the log {}", log.display());
    printer.first(&mut files, args.tail.0).with_context(cannot)?;
    if !args.follow {
        return Ok(ExitCode::SUCCESS);
    }
    let until = printer.until;
    let (ended, over) = (all_said(&container), passed(until));
    tokio::pin!(ended, over);
    loop {
        let over = tokio::select! {
            biased;
            () = &mut over => true,
            changed = watch.changed() => changed.map(|()| false).context("cannot watch the log")?,
            () = &mut ended => true,
        };
        printer.more(&mut files).with_context(cannot)?;
        if over {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// Waits until it is later than this by the clock that the records' times are from, which may be set meanwhile.
async fn passed(until: Option<SystemTime>) {
    let Some(until) = until else { return std::future::pending().await };
    while let Ok(left) = until.duration_since(SystemTime::now()) {
        sleep(left.clamp(Duration::from_millis(1), LOOK_AT_THE_CLOCK)).await;
    }
}

const LOOK_AT_THE_CLOCK: Duration = Duration::from_secs(10);

/// Waits until there will be no more: the shim tells that to who is attached, and closes the connection when it ends.
async fn all_said(container: &Container) {
    // Who cannot be connected to says nothing any more.
    let Ok((mut output, _stdin)) = frames::connect(Path::new(&container.attach), 0).await else { return };
    while let Ok(Some(heard)) = output.next().await {
        if heard == Heard::End {
            return;
        }
    }
}

/// A line as programs read it, or a part of one. What is not UTF-8 in it is replaced by U+FFFD, which JSON has no way around.
#[derive(Debug, Serialize)]
struct Document<'a> {
    /// Null for what was not written by a shim.
    time: Option<&'a str>,
    stream: &'static str,
    text: Cow<'a, str>,
    /// The line goes on in the next document of its stream.
    partial: bool,
}

impl<'a> Document<'a> {
    fn of(record: Option<Record<'a>>, line: &'a [u8]) -> Document<'a> {
        let stderr = record.is_some_and(|record| record.stderr);
        Document {
            time: record.map(|record| record.time),
            stream: if stderr { "stderr" } else { "stdout" },
            text: String::from_utf8_lossy(record.map_or(line, |record| record.text)),
            partial: record.is_some_and(|record| record.partial),
        }
    }
}

/// Chooses what of the log is printed, and how. Nothing else waits while it prints.
struct Printer {
    since: Option<SystemTime>,
    until: Option<SystemTime>,
    timestamps: bool,
    format: Format,
    /// Of stdout and stderr: the line that was printed last goes on.
    middle: [bool; 2],
    out: [Box<dyn Write>; 2],
}

impl Printer {
    /// Prints what is there at first; with `tail`, so many lines of it.
    fn first(&mut self, files: &mut Files, tail: Option<usize>) -> io::Result<()> {
        let Some(tail) = tail else { return self.more(files) };
        let mut last: VecDeque<Vec<u8>> = VecDeque::new();
        let mut whole = 0;
        let is_whole = |line: &[u8]| Record::parse(line).is_none_or(|record| !record.partial);
        files.lines(|line| {
            if self.wants(line) {
                whole += usize::from(is_whole(line));
                last.push_back(line.to_owned());
            }
            // Down to the records that end the lines before.
            while whole > tail {
                whole -= usize::from(last.pop_front().is_some_and(|line| is_whole(&line)));
            }
            Ok(())
        })?;
        if tail == 0 {
            last.clear();
        }
        last.iter().try_for_each(|line| self.print(line))?;
        self.out.iter_mut().try_for_each(|out| out.flush())
    }

    /// Prints what has been written since.
    fn more(&mut self, files: &mut Files) -> io::Result<()> {
        files.lines(|line| if self.wants(line) { self.print(line) } else { Ok(()) })?;
        self.out.iter_mut().try_for_each(|out| out.flush())
    }

    fn wants(&self, line: &[u8]) -> bool {
        let bounded = self.since.is_some() || self.until.is_some();
        match Record::parse(line).filter(|_| bounded).and_then(|record| record.when()) {
            Some(time) => self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time <= until),
            None => true,
        }
    }

    fn print(&mut self, line: &[u8]) -> io::Result<()> {
        // What is no record was not written by a shim; it is shown as it is.
        let record = Record::parse(line);
        if self.format == Format::Json {
            return self.out[0].write_all(record::line(&Document::of(record, line))?.as_bytes());
        }
        let Some(record) = record else { return self.out[0].write_all(&[line, b"\n"].concat()) };
        let stream = usize::from(record.stderr);
        let mut piece = Vec::with_capacity(line.len() + 1);
        if self.timestamps && !self.middle[stream] {
            piece.extend_from_slice(record.time.as_bytes());
            piece.push(b' ');
        }
        piece.extend_from_slice(record.text);
        if !record.partial {
            piece.push(b'\n');
        }
        self.middle[stream] = record.partial;
        self.out[stream].write_all(&piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    const LOG: &str = "\
2026-01-01T00:00:01.000000000Z stdout F one
2026-01-01T00:00:02.000000000Z stderr F oops
2026-01-01T00:00:03.000000000Z stdout P tw
2026-01-01T00:00:04.000000000Z stdout F o
not a record
2026-01-01T00:00:05.000000000Z stdout P rest
";

    /// Where a test looks at what was printed.
    #[derive(Clone, Default)]
    struct Paper(Rc<RefCell<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn printed(since: Option<&str>, until: Option<&str>, tail: Option<usize>, timestamps: bool) -> [String; 2] {
        printed_as(Format::Table, since, until, tail, timestamps)
    }

    fn printed_as(
        format: Format,
        since: Option<&str>,
        until: Option<&str>,
        tail: Option<usize>,
        timestamps: bool,
    ) -> [String; 2] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, LOG).unwrap();
        let bound = |text: Option<&str>| text.map(|text| line::time(text, SystemTime::now()).unwrap());
        let paper = [Paper::default(), Paper::default()];
        let out: [Box<dyn Write>; 2] = paper.clone().map(|paper| Box::new(paper) as Box<dyn Write>);
        let (since, until) = (bound(since), bound(until));
        let mut printer = Printer { since, until, timestamps, format, middle: [false; 2], out };
        printer.first(&mut Files::open(&path).unwrap(), tail).unwrap();
        paper.map(|paper| String::from_utf8(paper.0.take()).unwrap())
    }

    #[test]
    fn lines_are_put_together_again_and_go_where_they_were_written() {
        assert_eq!(printed(None, None, None, false), ["one\ntwo\nnot a record\nrest", "oops\n"]);
    }

    #[test]
    fn times_stand_once_before_a_line() {
        let [stdout, stderr] = printed(None, None, None, true);
        assert_eq!(stderr, "2026-01-01T00:00:02.000000000Z oops\n");
        assert!(stdout.contains("\n2026-01-01T00:00:03.000000000Z two\n"), "{stdout}");
    }

    #[test]
    fn programs_read_every_record_with_what_it_says() {
        let [stdout, stderr] = printed_as(Format::Json, None, None, Some(4), false);
        assert_eq!(stderr, "");
        let documents: Vec<serde_json::Value> =
            stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let record = |time: Option<u32>, stream: &str, text: &str, partial: bool| {
            let time = time.map(|second| format!("2026-01-01T00:00:0{second}.000000000Z"));
            serde_json::json!({"time": time, "stream": stream, "text": text, "partial": partial})
        };
        let expected = [
            record(Some(2), "stderr", "oops", false),
            record(Some(3), "stdout", "tw", true),
            record(Some(4), "stdout", "o", false),
            record(None, "stdout", "not a record", false),
            record(Some(5), "stdout", "rest", true),
        ];
        assert_eq!(documents[documents.len() - 5..], expected);
        let broken = Document::of(None, b"a\xffb\n\"");
        assert_eq!(broken.text, "a\u{fffd}b\n\"");
        assert_eq!(record::line(&broken).unwrap().lines().count(), 1);
    }

    #[test]
    fn all_and_less_than_none_are_all_lines_as_for_docker() {
        for (text, tail) in [("all", Some(None)), ("-1", Some(None)), ("0", Some(Some(0))), ("7", Some(Some(7)))] {
            assert_eq!(text.parse().ok(), tail.map(Tail), "{text}");
        }
        for text in ["", "some", "1.5"] {
            assert!(text.parse::<Tail>().is_err(), "{text}");
        }
    }

    #[test]
    fn bounds_of_time_and_number_are_kept() {
        let since = printed(Some("2026-01-01T00:00:02Z"), Some("2026-01-01T00:00:04Z"), None, false);
        assert_eq!(since, ["two\nnot a record\n", "oops\n"]);
        assert_eq!(printed(None, None, Some(2), false), ["two\nnot a record\nrest", ""]);
        assert_eq!(printed(None, None, Some(4), false), printed(None, None, None, false));
        assert_eq!(printed(None, None, Some(0), false), ["", ""]);
    }
}

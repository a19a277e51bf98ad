//! A log that is rotated while it is read: LOG is set aside as LOG.1, what was LOG.1 as LOG.2, and so on.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Reads a log from its oldest file on, and on into files that are begun while it reads.
pub(crate) struct Files {
    log: PathBuf,
    current: Option<File>,
    /// Read, and not yet a whole line.
    rest: Vec<u8>,
}

impl Files {
    /// Begins with the oldest file there is.
    pub(crate) fn open(log: &Path) -> io::Result<Files> {
        let mut files = Files { log: log.to_owned(), current: None, rest: Vec::new() };
        files.current = files.oldest()?;
        Ok(files)
    }

    /// Passes on every whole line there is by now, without its newline.
    pub(crate) fn lines(&mut self, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        loop {
            let Some(mut file) = self.current.take() else {
                self.current = self.oldest()?;
                match self.current {
                    Some(_) => continue,
                    None => return Ok(()),
                }
            };
            // Who follows it is looked for first: nothing is written to a file that was set aside.
            let next = self.after(&file)?;
            self.drain(&mut file, &mut each)?;
            match next {
                Next::None => {
                    self.current = Some(file);
                    return Ok(());
                }
                Next::File(next) => self.current = Some(next),
                // So many were begun meanwhile that this one is gone, and some that nobody read.
                Next::Lost => self.current = self.oldest()?,
            }
        }
    }

    fn drain(&mut self, file: &mut File, each: &mut impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut buffer = [0; 64 << 10];
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            self.rest.extend_from_slice(&buffer[..count]);
            let mut from = 0;
            while let Some(length) = self.rest[from..].iter().position(|byte| *byte == b'\n') {
                each(&self.rest[from..from + length])?;
                from += length + 1;
            }
            self.rest.drain(..from);
        }
    }

    /// The file with number `number`; 0 is the one that is written to.
    fn nth(&self, number: u32) -> io::Result<Option<File>> {
        let mut path = OsString::from(&self.log);
        if number > 0 {
            path.push(format!(".{number}"));
        }
        match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            file => file.map(Some),
        }
    }

    fn oldest(&self) -> io::Result<Option<File>> {
        let (mut oldest, mut number) = (None, 0);
        // The current one may be missing for a moment, between being set aside and being begun anew.
        while let Some(file) = self.nth(number)?.or(if number == 0 { self.nth(1)? } else { None }) {
            oldest = Some(file);
            number += 1;
        }
        Ok(oldest)
    }

    /// The file that was begun after `file` was full.
    fn after(&self, file: &File) -> io::Result<Next> {
        let own = identity(&file.metadata()?);
        let mut newer = None;
        for number in 0.. {
            match self.nth(number)? {
                Some(found) if identity(&found.metadata()?) == own => return Ok(newer.map_or(Next::None, Next::File)),
                Some(found) => newer = Some(found),
                None if number == 0 => {}
                None => return Ok(if file.metadata()?.nlink() == 0 { Next::Lost } else { Next::None }),
            }
        }
        Ok(Next::None)
    }
}

enum Next {
    None,
    File(File),
    Lost,
}

fn identity(file: &fs::Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    struct Log(tempfile::TempDir);

    impl Log {
        fn path(&self) -> PathBuf {
            self.0.path().join("log")
        }

        fn write(&self, text: &str) {
            fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(self.path())
                .unwrap()
                .write_all(text.as_bytes())
                .unwrap();
        }

        fn rotate(&self, most: u32) {
            let name =
                |number: u32| if number == 0 { self.path() } else { self.0.path().join(format!("log.{number}")) };
            for number in (0..most - 1).rev() {
                fs::rename(name(number), name(number + 1)).ok();
            }
        }
    }

    fn read(files: &mut Files) -> Vec<String> {
        let mut lines = Vec::new();
        let mut keep = |line: &[u8]| {
            lines.push(String::from_utf8_lossy(line).into_owned());
            Ok(())
        };
        files.lines(&mut keep).unwrap();
        lines
    }

    #[test]
    fn all_files_are_read_in_the_order_they_were_written() {
        let log = Log(tempfile::tempdir().unwrap());
        for text in ["a\n", "b\n", "c\nd\n"] {
            log.rotate(3);
            log.write(text);
        }
        assert_eq!(read(&mut Files::open(&log.path()).unwrap()), ["a", "b", "c", "d"]);
    }

    #[test]
    fn no_line_is_lost_or_repeated_when_files_change_places_while_they_are_read() {
        let log = Log(tempfile::tempdir().unwrap());
        let mut files = Files::open(&log.path()).unwrap();
        assert_eq!(read(&mut files), [""; 0]);
        log.write("1\n2");
        assert_eq!(read(&mut files), ["1"]);
        log.write("\n");
        log.rotate(4);
        assert_eq!(read(&mut files), ["2"]);
        log.write("3\n");
        log.rotate(4);
        log.write("4\n");
        log.rotate(4);
        log.write("5\n");
        assert_eq!(read(&mut files), ["3", "4", "5"]);
        assert_eq!(read(&mut files), [""; 0]);
    }

    #[test]
    fn who_is_too_slow_goes_on_with_the_oldest_there_is() {
        let log = Log(tempfile::tempdir().unwrap());
        log.write("1\n");
        let mut files = Files::open(&log.path()).unwrap();
        assert_eq!(read(&mut files), ["1"]);
        for text in ["2\n", "3\n", "4\n"] {
            log.rotate(2);
            log.write(text);
        }
        assert_eq!(read(&mut files), ["3", "4"]);
    }
}

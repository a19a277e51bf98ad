//! The records of a log, in the format that Kubernetes' CRI has for them: time, stream, tag, text.

use std::time::{Duration, SystemTime};

/// A record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    /// As it is written.
    pub(crate) time: &'a str,
    pub(crate) stderr: bool,
    /// The line goes on in the stream's next record.
    pub(crate) partial: bool,
    pub(crate) text: &'a [u8],
}

impl Record<'_> {
    /// Reads a record, without the newline behind it.
    pub(crate) fn parse(line: &[u8]) -> Option<Record<'_>> {
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(fields.next()?).ok()?;
        let stderr = match fields.next()? {
            b"stdout" => false,
            b"stderr" => true,
            _ => return None,
        };
        let partial = match fields.next()? {
            b"F" => false,
            b"P" => true,
            _ => return None,
        };
        Some(Record { time, stderr, partial, text: fields.next()? })
    }

    /// When it was written.
    pub(crate) fn when(&self) -> Option<SystemTime> {
        humantime::parse_rfc3339(self.time).ok()
    }
}

/// A time, or so long before `now`: `2026-01-31T12:00:00Z`, `2026-01-31`, `1769860800`, `10m`.
pub(crate) fn time(text: &str, now: SystemTime) -> Result<SystemTime, String> {
    let seconds = text.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let absolute =
        humantime::parse_rfc3339_weak(text).or_else(|_| humantime::parse_rfc3339_weak(&format!("{text}T00:00:00")));
    let long = || humantime::parse_duration(text).ok().and_then(|long| now.checked_sub(long));
    absolute
        .ok()
        .or_else(|| seconds.and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(seconds)))
        .or_else(long)
        .filter(|time| *time >= SystemTime::UNIX_EPOCH)
        .ok_or_else(|| format!("{text:?} is neither a time such as 2026-01-31T12:00:00Z nor so long ago such as 10m"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_with_whatever_is_in_their_text() {
        let record = |text: &'static [u8]| Record::parse(text);
        let time = "2026-11-21T06:17:14.000000001Z";
        let full = Record { time, stderr: false, partial: false, text: b"a b  c" };
        assert_eq!(record(b"2026-11-21T06:17:14.000000001Z stdout F a b  c"), Some(full));
        let partial = Record { time, stderr: true, partial: true, text: b"" };
        assert_eq!(record(b"2026-11-21T06:17:14.000000001Z stderr P "), Some(partial));
        assert_eq!(partial.when(), full.when());
        assert!(full.when().is_some());
        for broken in [&b""[..], b"x", b"t stdout F", b"t stdin F x", b"t stdout X y", b"\xff stdout F x"] {
            assert_eq!(Record::parse(broken), None);
        }
    }

    #[test]
    fn times_are_read_as_docker_reads_them() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let seconds =
            |text: &str| time(text, now).map(|time| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64());
        assert_eq!(seconds("1970-01-02T00:00:01Z"), Ok(86401.0));
        assert_eq!(seconds("1970-01-02T00:00:01"), Ok(86401.0));
        assert_eq!(seconds("1970-01-02"), Ok(86400.0));
        assert_eq!(seconds("12.5"), Ok(12.5));
        assert_eq!(seconds("10m"), Ok(999_400.0));
        for text in ["", "yesterday", "-1", "1e300", "9999999y"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}

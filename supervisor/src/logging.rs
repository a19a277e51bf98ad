//! What the daemon has to say: lines on stderr, with systemd's priorities where systemd reads them.

use std::{env, io::Write as _, time::SystemTime};

use env_logger::{Builder, Target};
use log::{Level, LevelFilter};

/// Logs from now on. The level can be changed at any time by [`set_level`].
pub(crate) fn init(level: LevelFilter) -> Result<(), log::SetLoggerError> {
    // sd-daemon(3): the journal takes the priority from a prefix, and knows the time.
    let journal = env::var_os("JOURNAL_STREAM").is_some();
    Builder::new()
        .filter_level(LevelFilter::Trace)
        // At any lower level it tells of every connection that was closed.
        .filter_module("ttrpc", LevelFilter::Warn)
        .target(Target::Stderr)
        .format(move |out, record| {
            let (level, message) = (record.level(), record.args());
            if journal {
                return writeln!(out, "<{}>{message}", priority(level));
            }
            let now = humantime::format_rfc3339_millis(SystemTime::now());
            writeln!(out, "{now} {} {message}", level.as_str().to_ascii_lowercase())
        })
        .try_init()?;
    set_level(level);
    Ok(())
}

/// Logs what is at least as important as `level`.
pub(crate) fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

/// syslog(3)'s.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

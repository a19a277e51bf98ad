//! What went wrong, for people on stderr and for engines in the file of `--log`: they read its last line of level error.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use libcontainer::state;
use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::args::{Global, LogFormat};

struct Lines {
    file: Option<PathBuf>,
    format: LogFormat,
}

/// Sends log lines where the command line says.
pub(crate) fn init(global: &Global) -> anyhow::Result<()> {
    log::set_boxed_logger(Box::new(Lines { file: global.log.clone(), format: global.log_format }))?;
    log::set_max_level(if global.debug { LevelFilter::Debug } else { LevelFilter::Info });
    Ok(())
}

/// Reports why the command failed.
pub(crate) fn failure(error: &anyhow::Error) {
    log::error!("{error:#}");
}

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let (time, message) = (state::now(), record.args().to_string());
        let level = match record.level() {
            Level::Error => "error",
            Level::Warn => "warning",
            Level::Info => "info",
            Level::Debug | Level::Trace => "debug",
        };
        let line = match self.format {
            LogFormat::Text => format!("time={time:?} level={level} msg={message:?}\n"),
            LogFormat::Json => serde_json::json!({"level": level, "msg": message, "time": time}).to_string() + "\n",
        };
        let Some(file) = &self.file else { return to_stderr(&line) };
        // Opened for each line, of which there are few: a descriptor kept open would stand where --preserve-fds may look.
        let file = OpenOptions::new().append(true).create(true).open(file);
        if file.and_then(|mut file| file.write_all(line.as_bytes())).is_err() {
            to_stderr(&line);
        } else if record.level() == Level::Error {
            to_stderr(&format!("{message}\n"));
        }
    }

    fn flush(&self) {}
}

fn to_stderr(line: &str) {
    // There is nobody left to tell when this fails.
    drop(std::io::stderr().write_all(line.as_bytes()));
}

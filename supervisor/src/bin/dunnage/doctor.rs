//! `doctor`: what this host has and lacks for containers. [`facts`] are gathered first, then judged ([`judge`], which
//! touches nothing), then shown ([`report`]).

use std::process::ExitCode;

use self::facts::Facts;
use self::judge::{Verdict, judge};
use crate::args::{Format, Global};
use crate::paper::Paper;

mod elf;
mod facts;
mod judge;
mod programs;
mod report;

/// Prints the findings. Failure only where no container can run.
pub(crate) fn doctor(global: &Global, format: Format) -> anyhow::Result<ExitCode> {
    let findings = judge(&Facts::gather(global.socket().map_err(|error| format!("{error:#}")))?);
    let text = match format {
        Format::Json => report::json(&findings)?,
        Format::Table => report::table(&findings, Paper::of_stdout()),
    };
    crate::print(text.as_bytes())?;
    Ok(match Verdict::of(&findings) {
        Verdict::Ok | Verdict::Limited => ExitCode::SUCCESS,
        Verdict::Broken => ExitCode::FAILURE,
    })
}

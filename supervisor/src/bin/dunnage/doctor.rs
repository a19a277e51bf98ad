//! `doctor`: what this host has and lacks for containers. [`facts`] are gathered first, then judged ([`judge`], which
//! touches nothing), then shown ([`report`]).

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use self::facts::Facts;
use self::judge::{Verdict, judge};
use crate::args::Format;

mod elf;
mod facts;
mod judge;
mod programs;
mod report;

/// Prints the findings. Failure only where no container can run.
pub(crate) fn doctor(format: Format) -> anyhow::Result<ExitCode> {
    let findings = judge(&Facts::gather()?);
    let text = match format {
        Format::Json => report::json(&findings)?,
        Format::Table => report::table(&findings, io::stdout().is_terminal() && wants_colours()),
    };
    crate::print(text.as_bytes())?;
    Ok(match Verdict::of(&findings) {
        Verdict::Ok | Verdict::Limited => ExitCode::SUCCESS,
        Verdict::Broken => ExitCode::FAILURE,
    })
}

/// <https://no-color.org>, and terminals that know no colours.
fn wants_colours() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_some_and(|kind| kind != "dumb")
}

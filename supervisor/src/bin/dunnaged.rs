//! `dunnaged`, the supervisor.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Parser;
use dunnage_supervisor::{
    command::Args,
    config::{Config, Flags},
    paths::Paths,
    rootless, serve,
};

fn main() -> ExitCode {
    let args = Args::parse();
    if rootless::is_needed() && !args.check {
        let Err(error) = rootless::enter();
        // Nobody is left to tell if this fails.
        drop(writeln!(io::stderr(), "dunnaged: {error:#}"));
        return ExitCode::FAILURE;
    }
    // After the way there, it is `exe`, which tells nobody anything.
    if let Err(errno) = nix::sys::prctl::set_name(c"dunnaged") {
        log::debug!("name this process: {errno}");
    }
    let done = Paths::of_this_user()
        .map_err(anyhow::Error::from)
        .and_then(|paths| if args.check { check(&args.flags, &paths) } else { serve::serve(&args.flags, &paths) });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell if this fails.
            drop(writeln!(io::stderr(), "dunnaged: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// An upgrade asks this of the new binary before it becomes it.
fn check(flags: &Flags, paths: &Paths) -> anyhow::Result<()> {
    Config::read(flags, paths)?;
    writeln!(io::stdout(), "dunnaged {}: the configuration is fine", env!("CARGO_PKG_VERSION"))
        .context("write to stdout")
}

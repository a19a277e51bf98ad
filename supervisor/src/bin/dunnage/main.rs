//! `dunnage`, the command line that people type.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser};
use serde_json::json;

use args::{Args, Command, Format};

mod args;
mod doctor;

fn main() -> ExitCode {
    // Help and mistakes end here, with exit code 0 and 2.
    let args = Args::parse();
    let done = match args.command {
        Command::Doctor { format } => doctor::doctor(format),
        Command::Version { format } => version(format).map(|()| ExitCode::SUCCESS),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "dunnage", &mut script);
            print(&script).map(|()| ExitCode::SUCCESS)
        }
    };
    done.unwrap_or_else(|error| {
        // There is nobody left to tell when this fails.
        drop(writeln!(io::stderr(), "dunnage: {error:#}"));
        ExitCode::FAILURE
    })
}

fn version(format: Format) -> anyhow::Result<()> {
    let (version, spec) = (env!("CARGO_PKG_VERSION"), libcontainer::OCI_VERSION);
    let text = match format {
        Format::Json => json!({"version": version, "ociVersion": spec}).to_string(),
        Format::Table => format!("dunnage {version} (OCI runtime-spec {spec})"),
    };
    print(format!("{text}\n").as_bytes())
}

/// To stdout, and an error if nobody can read it: a script must not take half an answer for the whole.
fn print(text: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text).and_then(|()| stdout.flush()).context("cannot write to stdout")
}

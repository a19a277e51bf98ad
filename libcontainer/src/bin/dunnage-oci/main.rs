//! `dunnage-oci`: an OCI runtime command line with runc's commands, flags and output, over libcontainer.

use std::process::ExitCode;

use anyhow::Context;
use args::{Args, Command};
use clap::Parser;
use libcontainer::sealed;

mod args;
mod drive;
mod end;
mod exec;
mod inform;
mod list;
mod lives;
mod report;
mod terminal;

fn main() -> ExitCode {
    // First of all, since what was done before is done again. Words that only look like these commands cost one exec.
    let makes_processes =
        std::env::args_os().any(|word| ["run", "create", "exec"].iter().any(|command| word == *command));
    let sealed = if makes_processes { sealed::ensure() } else { Ok(()) };
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(usage) => {
            // Help and version come this way too. If even this cannot be printed there is nobody to tell.
            drop(usage.print());
            return if usage.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    if let Err(error) = report::init(&args.global) {
        eprintln!("dunnage-oci: {error:#}");
        return ExitCode::FAILURE;
    }
    // An exec's own exit codes are the program's; runc answers with the last one when it is ours.
    let failure = if matches!(args.command, Command::Exec(_)) { 255 } else { 1 };
    let sealed = sealed.context("cannot protect our own binary from containers");
    match sealed.and_then(|()| dispatch(args)) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            report::failure(&error);
            ExitCode::from(failure)
        }
    }
}

fn dispatch(args: Args) -> anyhow::Result<u8> {
    let global = &args.global;
    let done = match &args.command {
        Command::Run(options) => return lives::run(global, options),
        Command::Exec(options) => return exec::exec(global, options),
        Command::Create(options) => lives::create(global, options),
        Command::Start(of) => lives::start(global, &of.id),
        Command::Kill(options) => end::kill(global, options),
        Command::Delete(options) => end::delete(global, options),
        Command::State(of) => list::state(global, &of.id),
        Command::List(options) => list::list(global, options),
        Command::Ps(options) => list::ps(global, options),
        Command::Spec(options) => inform::spec(options),
        Command::Features => inform::features(),
        Command::Plan(options) => inform::plan(global, options),
    };
    done.map(|()| 0)
}

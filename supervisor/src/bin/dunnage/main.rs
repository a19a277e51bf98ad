//! `dunnage`, the command line that people type.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;

use args::{Args, Command};
use session::block_on;

mod args;
mod attach;
mod doctor;
mod events;
mod exec;
mod frames;
mod inspect;
mod kill;
mod limits;
mod logs;
mod man;
mod paper;
mod pause;
mod ps;
mod record;
mod rm;
mod run;
mod session;
mod signal;
mod stats;
mod stop;
mod streams;
mod swap;
mod table;
mod talk;
mod terminal;
mod top;
mod trace;
mod update;
mod upgrade;
mod usage;
mod version;
mod wait;
mod words;

fn main() -> ExitCode {
    let Args { global, command } = match args::parse() {
        Ok(args) => args,
        Err(code) => return code,
    };
    let code = command.code_of_errors();
    let done = match command {
        Command::Run(args) => block_on(run::run(&global, args)),
        Command::Exec(args) => block_on(exec::exec(&global, args)),
        Command::Logs(args) => block_on(logs::logs(&global, args)),
        Command::Attach(args) => block_on(attach::attach(&global, args)),
        Command::Stop(args) => block_on(stop::stop(&global, args)),
        Command::Kill(args) => block_on(kill::kill(&global, args)),
        Command::Pause(args) => block_on(pause::pause(&global, args)),
        Command::Resume(args) => block_on(pause::resume(&global, args)),
        Command::Wait(args) => block_on(wait::wait(&global, args)),
        Command::Rm(args) => block_on(rm::rm(&global, args)),
        Command::Update(args) => block_on(update::update(&global, args)),
        Command::Ps(args) => block_on(ps::ps(&global, args)),
        Command::Inspect(args) => block_on(inspect::inspect(&global, args)),
        Command::Stats(args) => block_on(stats::stats(&global, args)),
        Command::Top(args) => block_on(top::top(&global, args)),
        Command::Events(args) => block_on(events::events(&global, args)),
        Command::Trace(args) => block_on(trace::trace(&global, args)),
        Command::Upgrade(args) => block_on(upgrade::upgrade(&global, args)),
        Command::Doctor { format } => doctor::doctor(&global, format),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "dunnage", &mut script);
            print(&script).map(|()| ExitCode::SUCCESS)
        }
        Command::Version(args) => block_on(version::version(&global, args)),
        Command::Man(args) => man::man(&args),
    };
    done.unwrap_or_else(|error| {
        if error.is::<ReaderGone>() {
            return ExitCode::from(SIGPIPE_CODE);
        }
        complain(&error);
        ExitCode::from(code)
    })
}

/// To stdout, and an error if nobody can read it: a script must not take half an answer for the whole.
fn print(text: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ReaderGone.into()),
        done => done.context("cannot write to stdout"),
    }
}

/// Whoever read our stdout has read enough (`| head`), and there is nobody to tell.
#[derive(Debug, thiserror::Error)]
#[error("stdout is closed")]
struct ReaderGone;

/// As a shell tells it of programs that SIGPIPE ends, which most are.
const SIGPIPE_CODE: u8 = 128 + 13;

/// To stderr, with our name.
fn complain(what: &dyn std::fmt::Display) {
    // There is nobody left to tell when this fails.
    drop(writeln!(io::stderr(), "dunnage: {what:#}"));
}

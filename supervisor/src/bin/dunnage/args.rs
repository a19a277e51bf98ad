//! The command line: what is the same for all commands. The arguments of each stand in its own file.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::{
    attach, events, exec, inspect, kill, logs, man, pause, ps, rm, run, stats, stop, top, trace, update, upgrade,
    version, wait,
};

/// Runs Linux containers.
#[derive(Debug, Parser)]
#[command(name = "dunnage", version)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which supervisor, and which of its containers.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Supervisor")]
pub(crate) struct Global {
    /// Socket of a supervisor that runs already; without it, one is started if none runs
    #[arg(long, global = true, value_name = "PATH", env = "DUNNAGE_ADDRESS")]
    pub(crate) address: Option<PathBuf>,
    /// Folder of the supervisor's state, if not the usual one
    #[arg(long, global = true, value_name = "DIR", env = "DUNNAGE_STATE")]
    pub(crate) state: Option<PathBuf>,
    /// Folder of the supervisor's journal and logs, if not the usual one
    #[arg(long, global = true, value_name = "DIR", env = "DUNNAGE_ROOT")]
    pub(crate) root: Option<PathBuf>,
    /// Containers of one namespace do not see those of another
    #[arg(long, global = true, value_name = "NAME", env = "DUNNAGE_NAMESPACE", default_value = "default")]
    pub(crate) namespace: String,
}

/// The rule of all commands that do something to each of several containers.
const DONE_TO_EACH: &str = "Prints, one a line, the names of the containers that it was done to, as they were typed. What failed \
                            for others is told on stderr, and the exit code is 1.";

/// In the order in which they are listed.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command in a new container
    Run(Box<run::Args>),
    /// List containers
    Ps(ps::Args),
    /// Run a further command in a running container
    Exec(exec::Args),
    /// Print what a container has written
    Logs(logs::Args),
    /// Connect the terminal to a running container
    Attach(attach::Args),
    /// Ask containers to end, and kill those that do not
    #[command(after_help = DONE_TO_EACH)]
    Stop(stop::Args),
    /// Send a signal to containers
    #[command(after_help = DONE_TO_EACH)]
    Kill(kill::Args),
    /// Freeze all processes of containers
    #[command(after_help = DONE_TO_EACH)]
    Pause(pause::Args),
    /// Let paused containers go on
    #[command(after_help = DONE_TO_EACH)]
    Resume(pause::Args),
    /// Wait until containers have ended, and print their exit codes
    Wait(wait::Args),
    /// Remove containers with their logs
    #[command(after_help = DONE_TO_EACH)]
    Rm(rm::Args),
    /// Change the limits of running containers
    #[command(after_help = DONE_TO_EACH)]
    Update(update::Args),
    /// Tell everything about containers
    Inspect(inspect::Args),
    /// Show what containers use, as it changes
    Stats(stats::Args),
    /// Show all containers on the whole screen, as they change
    Top(top::Args),
    /// Print what has happened to containers, and what happens
    Events(events::Args),
    /// Show where the time of a container's start went
    Trace(trace::Args),
    /// Tell what this host has and lacks for containers, why it matters, and how to fix it
    ///
    /// Exit code 1 if no container can run, else 0. Changes nothing on the host.
    Doctor {
        /// How to print it
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
    /// Print a script that completes this command line in a shell
    #[command(after_help = "bash, in ~/.bashrc:            source <(dunnage completion bash)\n\
                      zsh, in a folder of $fpath:    dunnage completion zsh > ~/.zfunc/_dunnage\n\
                      fish:                          dunnage completion fish > ~/.config/fish/completions/dunnage.fish")]
    Completion {
        /// The shell
        shell: Shell,
    },
    /// Replace the running supervisor by another binary; the containers go on
    Upgrade(upgrade::Args),
    /// Print the versions of this program and of the supervisor that runs
    Version(version::Args),
    /// Print or write manual pages
    Man(man::Args),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

/// Containers that are named on the command line.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Ids {
    /// Names, or the beginnings of names if they are unique
    #[arg(required = true, value_name = "CONTAINER")]
    pub(crate) ids: Vec<String>,
}

/// Reads our command line. Help and mistakes end here, with their exit code.
pub(crate) fn parse() -> Result<Args, ExitCode> {
    Args::try_parse().map_err(|mistake| {
        // Nobody is left to tell when this fails.
        drop(mistake.print());
        if mistake.use_stderr() { ExitCode::from(MISTAKE) } else { ExitCode::SUCCESS }
    })
}

/// Docker's exit code for a mistake of any command's line, and for what fails of `run` before there is a program that could
/// end with a code of its own: one they hardly use.
const MISTAKE: u8 = 125;

impl Command {
    /// The exit code of a command that failed by itself, which for `exec` is Docker's too.
    pub(crate) fn code_of_errors(&self) -> u8 {
        match self {
            Command::Run(_) => MISTAKE,
            _ => 1,
        }
    }
}

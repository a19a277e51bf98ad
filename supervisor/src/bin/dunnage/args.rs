//! The command line.

use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// Runs Linux containers.
#[derive(Debug, Parser)]
#[command(name = "dunnage", version)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Tell what this host has and lacks for containers, why it matters, and how to fix it
    ///
    /// Exit code 1 if no container can run, else 0. Changes nothing on the host.
    Doctor {
        /// How to print it
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
    /// Print the version
    Version {
        /// How to print it
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
    /// Print a script that completes this command line in a shell
    #[command(after_help = "For bash: source <(dunnage completion bash)")]
    Completion {
        /// The shell
        shell: Shell,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

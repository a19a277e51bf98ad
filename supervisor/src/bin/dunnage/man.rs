//! `man`: the manual pages, made from the command line so that they cannot fall behind it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::{args, print};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "To read one: dunnage man run | man -l -\nTo install all: dunnage man --dir /usr/local/share/man/man1"
)]
pub(crate) struct Args {
    /// Write the pages of all commands to this folder
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    dir: Option<PathBuf>,
    /// Print the page of this command [default: the overview]
    command: Option<String>,
}

pub(crate) fn man(args: &Args) -> anyhow::Result<ExitCode> {
    let mut whole = args::Args::command();
    whole.build();
    match (&args.dir, &args.command) {
        (Some(dir), _) => install(&whole, dir)?,
        (None, None) => print(&page(&whole)?)?,
        (None, Some(name)) => {
            let found = whole.find_subcommand(name);
            print(&page(found.with_context(|| format!("there is no command {name}; `dunnage help` lists them"))?)?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// As `git-commit.1` is the page of `git commit`.
fn install(whole: &Command, dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("make the folder {}", dir.display()))?;
    let commands = whole.get_subcommands().filter(|command| command.get_name() != "help");
    for command in [whole].into_iter().chain(commands) {
        let file = dir.join(Man::new(command.clone()).get_filename());
        fs::write(&file, page(command)?).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

fn page(command: &Command) -> anyhow::Result<Vec<u8>> {
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page).context("make a manual page")?;
    Ok(page)
}

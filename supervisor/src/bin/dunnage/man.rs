//! `man`: the manual pages, made from the command line so that they cannot fall behind it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_mangen::Man;
use dunnage_supervisor::command;

use crate::{args, print};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "To read one: dunnage man run | man -l -\nTo install all: dunnage man --dir /usr/local/share/man/man1\n\
                  (that of dunnaged goes to man8 beside a folder called man1)"
)]
pub(crate) struct Args {
    /// Write the pages of all commands to this folder
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    dir: Option<PathBuf>,
    /// Print the page of this command, or of dunnaged [default: the overview]
    command: Option<String>,
}

/// The supervisor, whose manual pages are among ours.
const DAEMON: &str = "dunnaged";

pub(crate) fn man(args: &Args) -> anyhow::Result<ExitCode> {
    let mut whole = args::Args::command();
    whole.build();
    match (&args.dir, &args.command) {
        (Some(dir), _) => install(&whole, dir)?,
        (None, None) => print(&page(&whole)?)?,
        (None, Some(name)) if name == DAEMON => print(&daemon()?)?,
        (None, Some(name)) => {
            let found = whole.find_subcommand(name);
            print(&page(found.with_context(|| format!("there is no command {name}; `dunnage help` lists them"))?)?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// As `git-commit.1` is the page of `git commit`.
fn install(whole: &Command, dir: &Path) -> anyhow::Result<()> {
    let commands = whole.get_subcommands().filter(|command| command.get_name() != "help");
    for command in [whole].into_iter().chain(commands) {
        let file = dir.join(Man::new(command.clone()).get_filename());
        write(&file, &page(command)?)?;
    }
    // man(1) looks for the eighth section only where its name says so.
    let eighth = if dir.file_name() == Some("man1".as_ref()) { dir.with_file_name("man8") } else { dir.to_owned() };
    write(&eighth.join(format!("{DAEMON}.8")), &daemon()?)
}

fn write(file: &Path, page: &[u8]) -> anyhow::Result<()> {
    let dir = file.parent().unwrap_or(file);
    fs::create_dir_all(dir).with_context(|| format!("make the folder {}", dir.display()))?;
    fs::write(file, page).with_context(|| format!("write {}", file.display()))
}

fn page(command: &Command) -> anyhow::Result<Vec<u8>> {
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page).context("make a manual page")?;
    Ok(page)
}

/// dunnaged(8): beside its flags, the configuration file as it is shipped.
fn daemon() -> anyhow::Result<Vec<u8>> {
    let man = Man::new(command::Args::command()).section("8");
    let mut page = Vec::new();
    let mut parts = || {
        man.render_title(&mut page)?;
        man.render_name_section(&mut page)?;
        man.render_synopsis_section(&mut page)?;
        man.render_description_section(&mut page)?;
        man.render_options_section(&mut page)?;
        page.extend_from_slice(b".SH CONFIGURATION\n.nf\n");
        // An empty string keeps what begins a line from being taken for a request.
        for line in command::SAMPLE.lines() {
            page.extend_from_slice(format!("\\&{}\n", line.replace('\\', "\\e").replace('-', "\\-")).as_bytes());
        }
        page.extend_from_slice(b".fi\n");
        man.render_version_section(&mut page)
    };
    parts().context("make a manual page")?;
    Ok(page)
}

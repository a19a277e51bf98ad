//! The command line of `run`.

use std::path::PathBuf;

use clap::ValueEnum;

use super::mounts::{Mount, Volume, Wanted};
use crate::limits::Limits;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave it in the background and print its name
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Remove the container once it has ended
    #[arg(long)]
    pub(crate) rm: bool,
    /// Name of the container, in place of twelve random digits
    #[arg(long)]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) setting: Setting,
    /// Name of the host, as the container sees it
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// Keys that disconnect from a terminal, and leave the container running
    #[arg(long, value_name = "KEYS", default_value = crate::attach::KEYS)]
    pub(crate) detach_keys: crate::attach::Keys,
    #[command(flatten)]
    pub(crate) root: Root,
    #[command(flatten)]
    pub(crate) limits: Limits,
    #[command(flatten)]
    pub(crate) confinement: Confinement,
    /// The command; with --bundle, that of its config.json if none is given
    #[arg(required_unless_present = "bundle", trailing_var_arg = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// What a command finds around itself, be it a container's first or a further one.
#[derive(Debug, clap::Args)]
pub(crate) struct Setting {
    /// Pass stdin on
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Variables of the environment; without a value, it is the one they have here
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = variable)]
    pub(crate) env: Vec<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR", value_parser = absolute)]
    pub(crate) workdir: Option<PathBuf>,
    /// User and group, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
}

fn variable(text: &str) -> Result<String, String> {
    let named = !text.is_empty() && !text.starts_with('=');
    named.then(|| text.to_owned()).ok_or_else(|| "a variable has a name, as in NAME=VALUE".to_owned())
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let folder = PathBuf::from(text);
    if folder.is_absolute() { Ok(folder) } else { Err("it must be an absolute path".to_owned()) }
}

/// What the container sees as /. Without a word, the machine's own root, which it may write to as it likes: nothing of
/// that reaches the machine, and all of it goes with the container.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Files")]
pub(crate) struct Root {
    /// Folder to use as the root, in place of the machine's own
    #[arg(long, value_name = "DIR", conflicts_with = "bundle")]
    pub(crate) rootfs: Option<PathBuf>,
    /// Folder with a config.json of OCI's, which the other options change
    #[arg(long, value_name = "DIR")]
    pub(crate) bundle: Option<PathBuf>,
    /// The root cannot be written to
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Show a folder or file of the host, which must be there: /data:/data:ro
    #[arg(short, long, value_name = "SOURCE:DESTINATION[:OPTIONS]")]
    pub(crate) volume: Vec<Volume>,
    /// The same in longer words, or a folder in memory: type=tmpfs,dst=/cache,tmpfs-size=64m
    #[arg(long, value_name = "FIELDS")]
    pub(crate) mount: Vec<Mount>,
}

impl Root {
    /// All mounts that were asked for.
    pub(super) fn wanted(&self) -> impl Iterator<Item = &Wanted> {
        self.volume.iter().map(|volume| &volume.0).chain(self.mount.iter().map(|mount| &mount.0))
    }
}

/// What the container may do.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Rights")]
pub(crate) struct Confinement {
    /// Capabilities beyond the usual ones, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) cap_add: Vec<String>,
    /// Capabilities to go without, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) cap_drop: Vec<String>,
    /// File with a seccomp profile in OCI's JSON, or `unconfined`
    #[arg(long, value_name = "FILE")]
    pub(crate) seccomp: Option<PathBuf>,
    /// none: a network with nothing but the container's own loopback (usual). host: the machine's
    #[arg(long, value_enum)]
    pub(crate) network: Option<Network>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Network {
    /// Its own, with a loopback only
    None,
    /// The machine's
    Host,
}

//! The command line, as runc has it.

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::{ArgAction, Parser, Subcommand, ValueEnum};
use libcontainer::cgroup::systemd::Manager;
use libcontainer::host::Host;

/// As engines look for it.
const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.2.0");

/// Runs OCI containers.
#[derive(Debug, Parser)]
#[command(name = "dunnage-oci", version = VERSION, disable_version_flag = true, disable_help_subcommand = true)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Print the version
    #[arg(short, long, action = ArgAction::Version)]
    version: Option<bool>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Global {
    /// Folder of the containers' states; better one that does not survive a reboot
    #[arg(long, default_value_os_t = usual_root())]
    pub(crate) root: PathBuf,
    /// File to append log lines to, instead of stderr
    #[arg(long)]
    pub(crate) log: Option<PathBuf>,
    /// Format of log lines
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    /// Log what is done, not only what went wrong
    #[arg(long)]
    pub(crate) debug: bool,
    /// Let systemd make the cgroups: linux.cgroupsPath is then slice:prefix:name
    #[arg(long)]
    pub(crate) systemd_cgroup: bool,
    /// Accepted for runc's sake: what this user may not do is an error either way
    #[arg(long, value_name = "true|false|auto", default_value = "auto", value_parser = ["true", "false", "auto"])]
    rootless: String,
}

/// Root's, or an ordinary user's own.
fn usual_root() -> PathBuf {
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|folder| folder.is_absolute());
    let own = own.filter(|_| !nix::unistd::geteuid().is_root());
    own.unwrap_or_else(|| "/run".into()).join("dunnage-oci")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

impl Global {
    /// The folder of the container `id`.
    pub(crate) fn folder(&self, id: &str) -> anyhow::Result<PathBuf> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
        if id.is_empty() || id.len() > 1024 || id == "." || id == ".." || !id.bytes().all(allowed) {
            bail!("invalid container id {id:?}: letters, digits and _ + - . only, at most 1024");
        }
        Ok(self.root.join(id))
    }

    /// Which systemd is to make the cgroups, if one is.
    pub(crate) fn systemd(&self, host: &Host) -> Option<Manager> {
        self.systemd_cgroup.then(|| Manager::of(host))
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create and start a container
    Run(Run),
    /// Create a container; its program waits for `start`
    Create(Create),
    /// Start the program of a created container
    Start(Of),
    /// Print the state of a container
    State(Of),
    /// Send a signal to a container
    Kill(Kill),
    /// Delete a container that has stopped
    Delete(Delete),
    /// Run a further process in a container
    Exec(Exec),
    /// List the containers
    List(List),
    /// List the processes of a container
    Ps(Ps),
    /// Write a config.json to begin with
    Spec(Spec),
    /// Print what this runtime supports
    Features,
    /// Print what would be done to create a container, without doing it
    Plan(Create),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Of {
    /// The container
    #[arg(value_name = "container-id")]
    pub(crate) id: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    #[command(flatten)]
    pub(crate) of: Of,
    /// Folder with config.json
    #[arg(short, long, default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// Do not pivot_root: for a root on a ramdisk
    #[arg(long)]
    pub(crate) no_pivot: bool,
    /// Keep the session keyring of this process
    #[arg(long)]
    pub(crate) no_new_keyring: bool,
    #[command(flatten)]
    pub(crate) streams: Streams,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) create: Create,
    /// Leave the container to itself once it runs
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Do not delete the container after it ended
    #[arg(long)]
    pub(crate) keep: bool,
    /// Do not reap the processes the container leaves behind
    #[arg(long)]
    pub(crate) no_subreaper: bool,
}

/// What connects a new process to this one.
#[derive(Debug, clap::Args)]
pub(crate) struct Streams {
    /// Unix socket that gets the master of the terminal
    #[arg(long, value_name = "path")]
    pub(crate) console_socket: Option<PathBuf>,
    /// File to write the process's number to
    #[arg(long, value_name = "path")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Pass this many descriptors from 3 on, beside those in $LISTEN_FDS
    #[arg(long, value_name = "n", default_value_t = 0)]
    pub(crate) preserve_fds: u32,
}

impl Streams {
    /// A terminal's master has exactly one taker: a socket, or this process as long as it stays.
    pub(crate) fn check(&self, terminal: bool, detach: bool) -> anyhow::Result<()> {
        match (terminal && detach, &self.console_socket) {
            (true, None) => bail!("a terminal of a detached process needs --console-socket"),
            (false, Some(_)) => bail!("--console-socket is for a detached process with a terminal"),
            _ => Ok(()),
        }
    }

    /// How many descriptors from 3 on go to the process. Each must be there: one that is not could turn out to be one
    /// that we open for ourselves.
    pub(crate) fn preserved(&self) -> anyhow::Result<(u32, u32)> {
        let listen = match std::env::var("LISTEN_FDS") {
            Ok(count) => count.parse().map_err(|_| anyhow::anyhow!("LISTEN_FDS is no number: {count:?}"))?,
            Err(_) => 0,
        };
        let count = self.preserve_fds.saturating_add(listen);
        for number in 3..count.saturating_add(3) {
            if Path::new(&format!("/proc/self/fd/{number}")).symlink_metadata().is_err() {
                bail!("descriptor {number} is to be passed on, but is not open");
            }
        }
        Ok((count, listen))
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct Kill {
    /// Send it to every process in the container
    #[arg(short, long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) of: Of,
    /// Number or name, with or without SIG
    #[arg(default_value = "SIGTERM")]
    pub(crate) signal: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Delete {
    /// Kill it first if it runs, clean up what is left of it, and be content if there is nothing
    #[arg(short, long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) of: Of,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Exec {
    #[command(flatten)]
    pub(crate) streams: Streams,
    /// Leave the process to itself once it runs
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// JSON file with the process; nothing else may then be said of it
    #[arg(short, long, value_name = "path")]
    pub(crate) process: Option<PathBuf>,
    /// With a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// uid[:gid]
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Further groups
    #[arg(short = 'g', long, value_name = "gid")]
    pub(crate) additional_gids: Vec<u32>,
    /// Working directory
    #[arg(long, value_name = "path")]
    pub(crate) cwd: Option<PathBuf>,
    /// Environment variable
    #[arg(short, long, value_name = "name=value")]
    pub(crate) env: Vec<String>,
    /// Capability to add to all its sets
    #[arg(short, long, value_name = "CAP_name")]
    pub(crate) cap: Vec<String>,
    /// AppArmor profile
    #[arg(long, value_name = "profile")]
    pub(crate) apparmor: Option<String>,
    /// SELinux label
    #[arg(long, value_name = "label")]
    pub(crate) process_label: Option<String>,
    /// Set no_new_privs
    #[arg(long)]
    pub(crate) no_new_privs: bool,
    /// Even if the container is paused; it will then run when the container does
    #[arg(long)]
    pub(crate) ignore_paused: bool,
    #[command(flatten)]
    pub(crate) of: Of,
    /// Program and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) args: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
    /// Only ids
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Ps {
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) of: Of,
    /// Options for ps(1), instead of -ef; they must make a PID column
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) options: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Spec {
    /// Folder to write config.json to
    #[arg(short, long, default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// For a user other than root
    #[arg(long)]
    pub(crate) rootless: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Args {
        Args::try_parse_from(line.split(' ')).unwrap()
    }

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_version_names_the_spec_we_write() {
        assert!(VERSION.ends_with(libcontainer::OCI_VERSION));
    }

    #[test]
    fn the_lines_engines_write_are_understood() {
        let args = parse(
            "dunnage-oci --root /r --log /l --log-format json --systemd-cgroup create --bundle /b --pid-file /p \
             --console-socket /c --no-pivot web-1",
        );
        assert!(args.global.systemd_cgroup && args.global.log_format == LogFormat::Json);
        assert!(matches!(args.command, Command::Create(create) if create.no_pivot && create.of.id == "web-1"));
        let args = parse("dunnage-oci --rootless=true exec --process /p.json --detach --pid-file /p web-1");
        assert!(matches!(args.command, Command::Exec(exec) if exec.detach && exec.args.is_empty()));
        let args = parse("dunnage-oci kill --all web-1 9");
        assert!(matches!(args.command, Command::Kill(kill) if kill.all && kill.signal == "9"));
    }

    #[test]
    fn an_execs_arguments_are_not_ours() {
        let args = parse("dunnage-oci exec -t -e A=1 -u 1:2 web-1 ls -l --tty");
        assert!(matches!(args.command, Command::Exec(exec) if exec.tty && exec.args == ["ls", "-l", "--tty"]));
    }

    #[test]
    fn ids_stay_inside_the_root() {
        let global = parse("dunnage-oci --root /r features").global;
        assert_eq!(global.folder("a.b_c+d-1").unwrap(), Path::new("/r/a.b_c+d-1"));
        for bad in ["", ".", "..", "a/b", "../x", "a b", "ä", &"x".repeat(1025)] {
            assert!(global.folder(bad).is_err(), "{bad:?}");
        }
    }
}

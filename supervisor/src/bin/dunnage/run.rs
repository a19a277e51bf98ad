//! `run`: look around ([`facts`]), decide ([`spec`]), have it launched, and stay with it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use dunnage_supervisor::attend::Attendant;
use libcontainer::cgroup::Layout;
use oci_spec::runtime::Spec;
use runtime_v2_api::Empty;
use runtime_v2_api::supervisor::{Container, LaunchRequest, MachineRoot};
use runtime_v2_api::types::Mount;

use self::spec::{Facts, Machine};
use self::user::Names;
use crate::args::Global;
use crate::frames::{self, BRINGS_STDIN, WANTS_EVERYTHING, WANTS_OUTPUT};
use crate::session::{self, Session};
use crate::talk::{self, Signals, Unheard};
use crate::{attach, complain, rm, swap, terminal};

mod args;
mod machine;
mod mounts;
mod seccomp;
pub(crate) mod spec;
pub(crate) mod user;

pub(crate) use args::{Args, Setting};

pub(crate) async fn run(global: &Global, args: Box<Args>) -> anyhow::Result<ExitCode> {
    terminal::check(args.setting.interactive && !args.detach, args.setting.tty)?;
    let bundle = args.root.bundle.as_deref().map(libcontainer::spec::read).transpose()?;
    let session = Session::open(global).await?;
    let facts = facts(&session, &args).await?;
    let spec = spec::spec(&args, &facts, bundle)?;
    args.limits.without_swap().filter(|_| !facts.swap_counted).iter().for_each(|what| complain(what));
    // Before there is a container that a signal could leave behind.
    let signals = if args.detach { None } else { Some(Signals::new()?) };
    let container = match launch(&session, &args, &facts, &spec).await {
        Ok(container) => container,
        Err(error) => return refused(without_source(error, &args, &facts)),
    };
    let done = match &signals {
        None => background(&session, &container).await,
        Some(signals) => foreground(&session, &container, &args, signals).await,
    };
    match done {
        Ok(code) => Ok(code),
        Err(error) => {
            if error.is::<NotStarted>() {
                give_up(&session, &container).await;
                return refused(error);
            }
            Err(error)
        }
    }
}

/// The container never ran its command.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotStarted(String);

/// Tells why, by the exit code too: 126 and 127 are a shell's for a command that cannot be executed, or is not there.
pub(crate) fn refused(error: anyhow::Error) -> anyhow::Result<ExitCode> {
    let text = format!("{error:#}");
    // How the shim words it, for Docker and containerd look for the same texts.
    let of_the_command = text.contains("exec: \"");
    let missing = text.contains("executable file not found") || text.contains("no such file or directory");
    match (of_the_command, missing) {
        (false, _) => Err(error),
        (true, missing) => {
            complain(&error);
            Ok(ExitCode::from(if missing { 127 } else { 126 }))
        }
    }
}

/// Tells what to do where the folder of a `-v` is what is missing. Docker makes one then, as it does not for `--mount`; made by
/// root from a name that was mistyped, it is in the way later.
fn without_source(error: anyhow::Error, args: &Args, facts: &Facts) -> anyhow::Error {
    let text = format!("{error:#}");
    let sources = args.root.wanted().filter_map(|wanted| wanted.source(&facts.cwd));
    let missing = sources.map(|source| source.display().to_string());
    let missing = missing.filter(|source| text.contains(source)).find(|source| !Path::new(source).exists());
    match missing {
        Some(source) => error.context(format!("there is no {source} to show; `mkdir -p {source}` makes a folder")),
        None => error,
    }
}

async fn launch(session: &Session, args: &Args, facts: &Facts, spec: &Spec) -> anyhow::Result<Container> {
    let machine_root = (facts.machine.is_some() && facts.rootless.is_none()).then(MachineRoot::default);
    let root = if facts.machine.is_some() && facts.rootless.is_some() { vec![empty_root()] } else { Vec::new() };
    let labels = [("dunnage.command", args.command.join(" ")), ("dunnage.root", root_label(args, facts))];
    let request = LaunchRequest {
        id: facts.id.clone(),
        spec: serde_json::to_vec(spec)?,
        machine_root: machine_root.into(),
        rootfs: root,
        terminal: args.setting.tty,
        stdin: args.setting.interactive,
        labels: labels.map(|(name, value)| (name.to_owned(), value)).into(),
        auto_remove: args.rm,
        ..LaunchRequest::default()
    };
    // Never twice: had the first one been heard, the second would be refused for the name.
    let launched = session.client.call(async |on, context| on.supervisor.launch(context, &request).await).await?;
    launched.container.into_option().context("the supervisor launched a container and does not say which")
}

/// A folder in memory, in which an ordinary user's container sees the machine's.
fn empty_root() -> Mount {
    let text = |text: &str| text.to_owned();
    let options = vec![text("mode=755"), text("nosuid"), text("nodev")];
    Mount { type_: text("tmpfs"), source: text("tmpfs"), options, ..Mount::default() }
}

fn root_label(args: &Args, facts: &Facts) -> String {
    let absolute = |folder: &Path| facts.cwd.join(folder).display().to_string();
    match (&args.root.rootfs, &args.root.bundle) {
        (Some(folder), _) => format!("rootfs {}", absolute(folder)),
        (None, Some(folder)) => format!("bundle {}", absolute(folder)),
        (None, None) => "machine".to_owned(),
    }
}

async fn start(session: &Session, container: &Container) -> anyhow::Result<()> {
    session::start_task(&session.client, &container.id, "").await.map_err(|error| NotStarted(error.to_string()).into())
}

async fn background(session: &Session, container: &Container) -> anyhow::Result<ExitCode> {
    start(session, container).await?;
    crate::print(format!("{}\n", container.id).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

async fn foreground(
    session: &Session,
    container: &Container,
    args: &Args,
    signals: &Signals,
) -> anyhow::Result<ExitCode> {
    let flags = WANTS_OUTPUT | WANTS_EVERYTHING | if args.setting.interactive { BRINGS_STDIN } else { 0 };
    let connection = frames::connect(Path::new(&container.attach), flags).await;
    let connection = connection.map_err(|error| NotStarted(format!("{error:#}")))?;
    // Whatever becomes of us, the supervisor removes the container, but not before we know all of it.
    let _attendant = if args.rm { Some(stay(container)?) } else { None };
    start(session, container).await?;
    let left = attach::stay(session, container, connection, args.setting.interactive, &args.detach_keys, signals).await;
    match left {
        Ok(left) => {
            if args.rm && matches!(left, talk::Left::Ended(_)) {
                rm::remove(session, container, false).await.context("the container has ended, but is not removed")?;
            }
            Ok(ExitCode::from(talk::code(left)))
        }
        Err(error) if error.is::<Unheard>() && args.rm => {
            // A container that is gone when nobody looks any more, as a program in a pipe line would be.
            rm::remove(session, container, true).await?;
            Err(error)
        }
        Err(error) => Err(error.context(format!("{} goes on", container.id))),
    }
}

fn stay(container: &Container) -> Result<Attendant, NotStarted> {
    Attendant::stay(container)
        .map_err(|(fifo, error)| NotStarted(format!("cannot read from {}: {error}", fifo.display())))
}

/// Removes a container that never ran.
async fn give_up(session: &Session, container: &Container) {
    if let Err(error) = rm::remove(session, container, true).await {
        complain(&format!("{} did not start, and cannot be removed: {error:#}", container.id));
    }
}

/// Looks at all that the decision needs to know.
async fn facts(session: &Session, args: &Args) -> anyhow::Result<Facts> {
    let cwd = std::env::current_dir().context("cannot tell the working directory")?;
    let id = match &args.name {
        Some(name) => name.clone(),
        None => random_id()?,
    };
    let machine =
        if args.root.rootfs.is_none() && args.root.bundle.is_none() { Some(machine(session).await?) } else { None };
    let root = match (&args.root.rootfs, &args.root.bundle) {
        (Some(folder), _) => cwd.join(folder),
        (None, Some(folder)) => cwd.join(folder).join("rootfs"),
        (None, None) => PathBuf::from("/"),
    };
    let user = match &args.setting.user {
        None if args.root.bundle.is_some() => Default::default(),
        user => Names::read(&root)?.find(user.as_deref().unwrap_or("0"))?,
    };
    let seccomp = match args.confinement.seccomp.as_deref() {
        Some(file) if file != Path::new("unconfined") => Some(profile(file)?),
        _ => None,
    };
    let hostname = nix::unistd::gethostname().context("cannot tell the machine's name")?;
    let layout = Layout::detect().context("cannot tell how this machine has its cgroups")?;
    let capabilities = caps::runtime::procfs_all_supported(None).context("cannot tell the kernel's capabilities")?;
    let environment =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    Ok(Facts {
        id,
        namespace: session.client.namespace().to_owned(),
        network_files: network_files(&root, machine.is_some()),
        cwd,
        user,
        environment: environment.collect(),
        cgroup_v2: layout.is_v2(),
        swap_counted: swap::is_counted(&layout.hierarchies),
        window: terminal::size(),
        hostname: hostname.to_string_lossy().into_owned(),
        capabilities: capabilities.iter().map(ToString::to_string).collect(),
        machine,
        rootless: if nix::unistd::geteuid().is_root() { None } else { Some(entries_of_the_root()?) },
        seccomp,
    })
}

/// What is in `/` and is shown to a container as it is.
fn entries_of_the_root() -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir("/")
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>());
    let mut entries = entries.context("cannot read /")?;
    entries.retain(|entry| {
        !machine::OWN.iter().any(|own| Path::new(own) == entry) && entry.metadata().is_ok_and(|meta| meta.is_dir())
    });
    entries.sort();
    Ok(entries)
}

async fn machine(session: &Session) -> anyhow::Result<Machine> {
    let version = session.client.repeat(async |on, context| on.supervisor.version(context, &Empty::default()).await);
    let version = version.await.context("ask the supervisor for its folders")?;
    // Logs of all containers, and sockets to all of them.
    let ours = vec![PathBuf::from(version.root), PathBuf::from(version.state)];
    let table = std::fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    Ok(Machine { disks: machine::disks(&table, &ours), ours })
}

/// What names are looked up by. With the machine's own root, only where links lead to files that the container does not
/// have, as systemd-resolved's; else over those that the root has.
fn network_files(root: &Path, machine: bool) -> Vec<(PathBuf, PathBuf)> {
    let files = ["/etc/resolv.conf", "/etc/hosts"].map(PathBuf::from).into_iter();
    let found = files.filter_map(|file| Some((std::fs::canonicalize(&file).ok()?, file)));
    let seen = found.filter_map(|(real, file)| match machine {
        true => real.starts_with("/run").then(|| (real.clone(), real)),
        // Nothing is put into somebody's folder.
        false => root
            .join(file.strip_prefix("/").unwrap_or(&file))
            .symlink_metadata()
            .ok()?
            .is_file()
            .then_some((real, file)),
    });
    seen.collect()
}

fn profile(file: &Path) -> anyhow::Result<oci_spec::runtime::LinuxSeccomp> {
    let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{} is no seccomp profile as the runtime-spec has it", file.display()))
}

/// Twelve hexadecimal digits.
pub(crate) fn random_id() -> anyhow::Result<String> {
    let mut bytes = [0; 6];
    let random = std::fs::File::open("/dev/urandom").and_then(|mut file| io::Read::read_exact(&mut file, &mut bytes));
    random.context("cannot read /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

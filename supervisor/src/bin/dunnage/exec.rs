//! `exec`.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use oci_spec::runtime::Process;
use runtime_v2_api::supervisor::{Container, Phase};
use runtime_v2_api::task::{CloseIORequest, DeleteRequest, ExecProcessRequest, WaitRequest};
use runtime_v2_api::{Any, json};

use crate::args::Global;
use crate::run::spec;
use crate::run::user::Names;
use crate::run::{self, random_id};
use crate::session::{self, Session};
use crate::streams::Stream;
use crate::talk::{self, Input, Left, Signals, Talk};
use crate::{attach, complain, terminal};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Do not wait for the command
    #[arg(short, long)]
    pub(crate) detach: bool,
    #[command(flatten)]
    pub(crate) setting: run::Setting,
    /// Keys that disconnect from a terminal, and leave the command running
    #[arg(long, value_name = "KEYS", default_value = attach::KEYS)]
    pub(crate) detach_keys: attach::Keys,
    /// The container
    #[arg(value_name = "CONTAINER")]
    pub(crate) id: String,
    /// The command
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

pub(crate) async fn exec(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    terminal::check(args.setting.interactive && !args.detach, args.setting.tty)?;
    let session = Session::open(global).await?;
    let container = session.find(&args.id).await?;
    // Its shim decides where it has not said yet how the container is.
    if !matches!(container.phase.enum_value_or_default(), Phase::RUNNING | Phase::UNKNOWN) {
        let phase = format!("{:?}", container.phase.enum_value_or_default()).to_lowercase();
        bail!("{} is {phase}; a command can be run in a running container only", container.id);
    }
    let process = process(&args, &container)?;
    let signals = Signals::new()?;
    let exec = Exec { session: &session, id: &container.id, exec: random_id()? };
    let pipes =
        if args.detach { None } else { Some(Pipes::make(&global.socket()?, &exec.exec, args.setting.interactive)?) };
    if let Err(error) = exec.start(&process, args.setting.tty, pipes.as_ref()).await {
        return run::refused(error);
    }
    match pipes {
        None => Ok(ExitCode::SUCCESS),
        Some(pipes) => exec.stay(pipes, &args, &signals).await,
    }
}

/// The process to run: the container's own, but for what the command line says.
fn process(args: &Args, container: &Container) -> anyhow::Result<Process> {
    let spec = libcontainer::spec::read(Path::new(&container.bundle))?;
    let mut process = spec.process().clone().context("the container's config.json has no process")?;
    process.set_args(Some(args.command.clone()));
    let mut environment = process.env().clone().unwrap_or_default();
    if let Some(user) = &args.setting.user {
        let root = format!("/proc/{}/root", container.pid);
        let user = Names::read(Path::new(&root))?.find(user)?;
        spec::merge(&mut environment, &[format!("HOME={}", user.home)], &[]);
        spec::become_user(&mut process, &user);
        if user.uid != 0 {
            let mut sets = process.capabilities().clone().unwrap_or_default();
            sets.set_effective(None).set_permitted(None).set_inheritable(None).set_ambient(None);
            process.set_capabilities(Some(sets));
        }
    }
    if args.setting.tty {
        let known = environment.iter().any(|variable| variable.starts_with("TERM="));
        environment.extend((!known).then(|| "TERM=xterm".to_owned()));
    }
    let ours: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    spec::merge(&mut environment, &args.setting.env, &ours);
    process.set_env(Some(environment));
    if let Some(folder) = &args.setting.workdir {
        process.set_cwd(folder.into());
    }
    spec::shape(&mut process, args.setting.tty, terminal::size());
    Ok(process)
}

/// A further process in a container.
struct Exec<'a> {
    session: &'a Session,
    id: &'a str,
    exec: String,
}

impl Exec<'_> {
    async fn start(&self, process: &Process, tty: bool, pipes: Option<&Pipes>) -> anyhow::Result<()> {
        let path = |path: Option<&Path>| path.map(|path| path.display().to_string()).unwrap_or_default();
        let spec = Any { type_url: json::PROCESS.to_owned(), value: serde_json::to_vec(process)?, ..Any::default() };
        let request = ExecProcessRequest {
            id: self.id.to_owned(),
            exec_id: self.exec.clone(),
            terminal: tty,
            stdin: path(pipes.and_then(|pipes| pipes.stdin.as_ref()).map(|stdin| stdin.path.as_path())),
            stdout: path(pipes.map(|pipes| pipes.stdout.0.as_path())),
            // A terminal has one output.
            stderr: path(pipes.filter(|_| !tty).map(|pipes| pipes.stderr.0.as_path())),
            spec: Some(spec).into(),
            ..ExecProcessRequest::default()
        };
        session::add_exec(&self.session.client, &request).await?;
        let started = session::start_task(&self.session.client, self.id, &self.exec).await;
        if started.is_err() {
            // Why it did not start says more than why this fails; what is left of it goes with the container.
            drop(self.delete().await);
        }
        Ok(started?)
    }

    async fn stay(&self, mut pipes: Pipes, args: &Args, signals: &Signals) -> anyhow::Result<ExitCode> {
        let input = pipes.writer(self.session, self.id, &self.exec)?;
        let (stdout, stderr) = (Stream::reader(&pipes.stdout.1), Stream::reader(&pipes.stderr.1));
        let (stdout, stderr) = (stdout.context("cannot read the output")?, stderr.context("cannot read the output")?);
        // Both sides have them open: nobody needs the names any more, and nobody is left to remove them if we are killed.
        drop(pipes.folder);
        let talk = Talk {
            session: self.session,
            id: self.id,
            exec: &self.exec,
            tty: args.setting.tty,
            stdin: args.setting.interactive,
            keys: &args.detach_keys,
        };
        let ended = async {
            let errors = async { if args.setting.tty { Ok(()) } else { talk::copy(&stderr, io::stderr()).await } };
            futures::try_join!(talk::copy(&stdout, io::stdout()), errors)?;
            let request = WaitRequest { id: self.id.to_owned(), exec_id: self.exec.clone(), ..WaitRequest::default() };
            let ended = self.session.client.repeat(async |on, context| on.task.wait(context, &request).await).await?;
            self.delete().await?;
            Ok(Left::Ended(ended.exit_status))
        };
        let left = talk.stay(signals, input, ended).await?;
        Ok(ExitCode::from(talk::code(left)))
    }

    async fn delete(&self) -> anyhow::Result<()> {
        let request = DeleteRequest { id: self.id.to_owned(), exec_id: self.exec.clone(), ..DeleteRequest::default() };
        match self.session.client.repeat(async |on, context| on.task.delete(context, &request).await).await {
            // By a call whose answer was lost, or with its container.
            Err(error) if error.is_not_found() => Ok(()),
            deleted => deleted.map(drop).context("cannot forget the command that has ended"),
        }
    }
}

/// FIFOs, in a folder that only we may enter.
struct Pipes {
    stdin: Option<StdinPipe>,
    stdout: (PathBuf, OwnedFd),
    stderr: (PathBuf, OwnedFd),
    folder: Folder,
}

struct StdinPipe {
    path: PathBuf,
    /// Both ends, so that it can be opened before there is a reader.
    both: OwnedFd,
}

/// Removed with everything in it when this is dropped.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            complain(&format!("cannot remove {}: {error}", self.0.display()));
        }
    }
}

impl Pipes {
    /// Makes them beside the supervisor's socket, where only its user has a say.
    fn make(socket: &Path, exec: &str, stdin: bool) -> anyhow::Result<Pipes> {
        let path = socket.with_file_name(format!("exec-{exec}"));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("cannot make the folder {}", path.display()))?;
        let folder = Folder(path);
        let fifo = |name: &str, access: OFlag| {
            let path = folder.0.join(name);
            let cannot = || format!("cannot make the FIFO {}", path.display());
            mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).with_context(cannot)?;
            // Without waiting for the shim, which opens them later.
            let fd = open(&path, access | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty()).with_context(cannot)?;
            anyhow::Ok((path, fd))
        };
        let stdin = if stdin { Some(fifo("stdin", OFlag::O_RDWR)?) } else { None };
        Ok(Pipes {
            stdin: stdin.map(|(path, both)| StdinPipe { path, both }),
            stdout: fifo("stdout", OFlag::O_RDONLY)?,
            stderr: fifo("stderr", OFlag::O_RDONLY)?,
            folder,
        })
    }

    /// Our end of stdin, once the shim has opened its own.
    fn writer<'a>(&mut self, session: &'a Session, id: &'a str, exec: &'a str) -> anyhow::Result<Fifo<'a>> {
        let Some(StdinPipe { path, both }) = self.stdin.take() else {
            return Ok(Fifo { session, id, exec, pipe: None });
        };
        let end = match open(&path, OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty()) {
            // It does not read any more.
            Err(Errno::ENXIO) => None,
            end => Some(end.with_context(|| format!("cannot open {}", path.display()))?),
        };
        drop(both);
        let pipe = end.map(Stream::writer).transpose().context("cannot write to the command's stdin")?;
        Ok(Fifo { session, id, exec, pipe })
    }
}

/// The stdin of an exec.
struct Fifo<'a> {
    session: &'a Session,
    id: &'a str,
    exec: &'a str,
    pipe: Option<Stream>,
}

impl Input for Fifo<'_> {
    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &self.pipe {
            Some(pipe) => pipe.write_all(bytes).await,
            None => Ok(()),
        }
    }

    async fn end(&mut self) -> anyhow::Result<()> {
        self.pipe = None;
        let (id, exec_id) = (self.id.to_owned(), self.exec.to_owned());
        let request = CloseIORequest { id, exec_id, stdin: true, ..CloseIORequest::default() };
        match self.session.client.repeat(async |on, context| on.task.close_io(context, &request).await).await {
            Err(error) if error.is_not_found() => Ok(()),
            closed => closed.map(drop).context("cannot end the command's stdin"),
        }
    }
}

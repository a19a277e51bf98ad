//! create, start, run: a container's way from its bundle to its end.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use libcontainer::container::{self, Container, ContainerError, Status};
use libcontainer::host::Host;
use libcontainer::plan::{Plan, Request};
use libcontainer::run::{Into, Io, Launch, Launched};
use libcontainer::state::{Dir, Init, State, StateError};
use libcontainer::{gate, spec};
use nix::sys::prctl;
use nix::unistd::Pid;
use oci_spec::runtime::Spec;

use crate::args::{Create, Global, Run, Streams};
use crate::drive::Driver;
use crate::terminal::{self, Relay};

/// A container at its gate.
struct Made {
    dir: Dir,
    driver: Driver,
    launch: Launch,
}

/// `create`: the container waits for `start`, and we do not.
pub(crate) fn create(global: &Global, options: &Create) -> anyhow::Result<()> {
    let mut made = make(global, options, Stay::Created)?;
    let handed_out = hand_out(&options.streams, &mut made.launch);
    if let Err(error) = handed_out.and_then(|_| Ok(made.launch.entrust()?)) {
        made.give_up();
        return Err(error);
    }
    made.launch.into_launched()?;
    Ok(())
}

/// `start`: the program of a created container.
pub(crate) fn start(global: &Global, id: &str) -> anyhow::Result<()> {
    let dir = Dir::lock(&global.folder(id)?)?;
    let container = Container::load(dir.path())?;
    match container.status()? {
        Status::Created => {}
        Status::Stopped => bail!("cannot start a container that has stopped"),
        Status::Running => bail!("cannot start an already running container"),
        status => bail!("cannot start a container that is {status}"),
    }
    let state = container.state();
    let init = state.init.context("cannot start a container without a first process")?;
    let spec = spec::read(dir.path())?;
    let request = Request {
        id: state.id.clone(),
        bundle: state.bundle.clone(),
        rootfs: state.rootfs.clone(),
        no_pivot: state.no_pivot,
        no_new_keyring: state.no_new_keyring,
        preserve_fds: 0,
        systemd: state.cgroup.unit.as_ref().map(|unit| unit.manager),
    };
    let plan = Plan::create(&spec, &Host::detect()?, &request)?;
    let mut driver = Driver::new()?;
    let wire = gate::open(dir.fd())?.context("cannot start an already running container")?;
    let mut launch = Launch::resume(plan, Pid::from_raw(init.pid), wire)?;
    launch.start();
    driver.drive(&mut launch)?;
    launch.into_launched()?;
    Ok(())
}

/// `run`: both, and unless detached we stay until the program ends, and end as it does.
pub(crate) fn run(global: &Global, options: &Run) -> anyhow::Result<u8> {
    let create = &options.create;
    if !options.detach && !options.no_subreaper {
        prctl::set_child_subreaper(true).context("cannot become the reaper of what the container leaves")?;
    }
    let how_long = if options.detach { Stay::Started } else { Stay::Ended };
    let mut made = make(global, create, how_long)?;
    let started = hand_out(&create.streams, &mut made.launch).and_then(|master| {
        made.launch.start();
        made.driver.drive(&mut made.launch)?;
        Ok(master)
    });
    let master = match started {
        Ok(master) => master,
        Err(error) => {
            made.give_up();
            return Err(error);
        }
    };
    let Made { dir, mut driver, launch } = made;
    let process = launch.into_launched()?;
    if options.detach {
        return Ok(0);
    }
    let path = dir.path().to_owned();
    // Others may now do things with it.
    drop(dir);
    let status = stay(&mut driver, &process, master)?;
    if !options.keep {
        match Dir::lock(&path).map_err(ContainerError::from).and_then(|dir| container::delete(dir, true)) {
            // Somebody else deleted it.
            Err(ContainerError::State(StateError::Missing)) => {}
            deleted => deleted.context("cannot delete the container after its end")?,
        }
    }
    Ok(status)
}

/// Stays with a running process until its end; its exit status as shells count it.
pub(crate) fn stay(driver: &mut Driver, process: &Launched, master: Option<OwnedFd>) -> anyhow::Result<u8> {
    let relay = master.map(Relay::new).transpose()?;
    let exit = driver.attend(process, relay)?;
    Ok(u8::try_from(exit.status()).unwrap_or(u8::MAX))
}

/// How long the command stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stay {
    /// Until the container waits at its gate.
    Created,
    /// Until its program was executed.
    Started,
    /// Until its program has ended.
    Ended,
}

/// Makes the container and brings it to its gate. If that fails nothing is left of it.
fn make(global: &Global, options: &Create, stay: Stay) -> anyhow::Result<Made> {
    let (preserve_fds, listen_fds) = options.streams.preserved()?;
    let path = global.folder(&options.of.id)?;
    let bundle = bundle(&options.bundle)?;
    let mut spec = spec::read(&bundle)?;
    options.streams.check(is_terminal(&spec), stay != Stay::Ended)?;
    pass_listen_fds(&mut spec, listen_fds);
    let host = Host::detect()?;
    let request = Request { systemd: global.systemd(&host), ..request(options, &bundle, &spec, preserve_fds)? };
    let plan = Plan::create(&spec, &host, &request)?;
    let dir = Dir::create(&path)?;
    match launch(&dir, &spec, &host, request, plan, stay) {
        Ok((driver, launch)) => Ok(Made { dir, driver, launch }),
        Err(error) => {
            if let Err(left) = dir.remove() {
                log::warn!("{left}");
            }
            Err(error)
        }
    }
}

/// Carries out `plan` up to the gate, recording in `dir` what a later command would need to clean up after us.
fn launch(
    dir: &Dir,
    spec: &Spec,
    host: &Host,
    request: Request,
    plan: Plan,
    stay: Stay,
) -> anyhow::Result<(Driver, Launch)> {
    let mut state = State::planned(spec, &host.cgroups, request).map_err(anyhow::Error::msg)?;
    dir.save(&state)?;
    let mut driver = Driver::new()?;
    let gate = (stay == Stay::Created)
        .then(|| gate::make(dir.fd()))
        .transpose()
        .context("cannot make the container's gate")?;
    let mut launch = Launch::begin(plan, io_of(is_terminal(spec))?, Into::New { host, gate })?;
    let bundle = state.bundle.clone();
    let mut record = |launch: &Launch, creating| -> anyhow::Result<()> {
        state.init = Some(Init::of(launch.pid())?);
        state.creating = creating;
        state.cgroup = launch.cgroup().map(|cgroup| cgroup.saved()).unwrap_or_default();
        Ok(dir.save(&state)?)
    };
    // If we are killed, the child ends by itself when it comes to its gate: only a hook of its own can keep it from there.
    // It is recorded with its cgroup: before that is its own, the child is not at its hooks.
    let hooked = spec.hooks().is_some();
    let placed = if hooked { driver.drive_to(&mut launch, Launch::is_placed).map(drop) } else { Ok(()) };
    let placed = placed.map_err(anyhow::Error::from);
    let recorded = placed.and_then(|()| if hooked { record(&launch, true) } else { Ok(()) });
    let made = recorded.and_then(|()| {
        // What the container is made from, because later commands must not read another spec than this one did; written
        // while the child is at work.
        let config = dir.path().join("config.json");
        fs::copy(bundle.join("config.json"), &config).with_context(|| format!("cannot write {}", config.display()))?;
        driver.drive(&mut launch)?;
        record(&launch, false)
    });
    match made {
        Ok(()) => Ok((driver, launch)),
        Err(error) => {
            abandon(&mut driver, launch);
            Err(error)
        }
    }
}

impl Made {
    /// Leaves nothing of it.
    fn give_up(mut self) {
        abandon(&mut self.driver, self.launch);
        if let Err(left) = self.dir.remove() {
            log::warn!("{left}");
        }
    }
}

/// Gives up a container on its way, and stays until nothing of it is left but its folder.
fn abandon(driver: &mut Driver, mut launch: Launch) {
    launch.abandon("given up");
    // The error is the reason that the caller has already, or that it was given up.
    drop(driver.drive(&mut launch));
}

/// Makes the container known outside: its pid in a file, its terminal to a socket. Returns the terminal's master if it is
/// ours to serve.
pub(crate) fn hand_out(streams: &Streams, launch: &mut Launch) -> anyhow::Result<Option<OwnedFd>> {
    let mut master = launch.console();
    if let (Some(socket), Some(fd)) = (&streams.console_socket, &master) {
        terminal::hand_over(socket, fd)?;
        master = None;
    }
    if let Some(file) = &streams.pid_file {
        write_pid(file, launch.pid()).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(master)
}

/// Whole or not at all, for whoever watches the file.
fn write_pid(file: &Path, pid: Pid) -> io::Result<()> {
    let name = file.file_name().ok_or(io::ErrorKind::InvalidFilename)?.to_string_lossy();
    let new = file.with_file_name(format!(".{name}.{}", std::process::id()));
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o644);
    options.open(&new)?.write_all(pid.to_string().as_bytes())?;
    fs::rename(new, file)
}

/// The plan of `create`, for `plan`.
pub(crate) fn plan(global: &Global, options: &Create) -> anyhow::Result<Plan> {
    let bundle = bundle(&options.bundle)?;
    let spec = spec::read(&bundle)?;
    let request = request(options, &bundle, &spec, options.streams.preserve_fds)?;
    let host = Host::detect()?;
    Ok(Plan::create(&spec, &host, &Request { systemd: global.systemd(&host), ..request })?)
}

fn request(options: &Create, bundle: &Path, spec: &Spec, preserve_fds: u32) -> anyhow::Result<Request> {
    let root = spec.root().as_ref().context("config.json: root: missing")?.path();
    let rootfs = bundle.join(root);
    Ok(Request {
        id: options.of.id.clone(),
        bundle: bundle.to_owned(),
        rootfs: rootfs.canonicalize().with_context(|| format!("config.json: root.path: {}", rootfs.display()))?,
        no_pivot: options.no_pivot,
        no_new_keyring: options.no_new_keyring,
        preserve_fds,
        systemd: None,
    })
}

fn bundle(path: &Path) -> anyhow::Result<PathBuf> {
    path.canonicalize().with_context(|| format!("bundle {}", path.display()))
}

fn is_terminal(spec: &Spec) -> bool {
    spec.process().as_ref().and_then(|process| process.terminal()).unwrap_or(false)
}

/// A terminal of its own, or our standard streams as they are.
pub(crate) fn io_of(terminal: bool) -> anyhow::Result<Io> {
    if terminal {
        return Ok(Io::Terminal);
    }
    let stdin = io::stdin().as_fd().try_clone_to_owned();
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    let stderr = io::stderr().as_fd().try_clone_to_owned();
    let none = "cannot pass our standard streams on";
    Ok(Io::Fds { stdin: stdin.context(none)?, stdout: stdout.context(none)?, stderr: stderr.context(none)? })
}

/// Tells a program that takes sockets from its manager (sd_listen_fds(3)) how many there are. `LISTEN_PID` is its own
/// number, which it will be only in a pid namespace of its own.
fn pass_listen_fds(spec: &mut Spec, count: u32) {
    if count == 0 {
        return;
    }
    if let Some(process) = spec.process_mut() {
        let mut env = process.env().clone().unwrap_or_default();
        env.extend([format!("LISTEN_FDS={count}"), "LISTEN_PID=1".to_owned()]);
        process.set_env(Some(env));
    }
}

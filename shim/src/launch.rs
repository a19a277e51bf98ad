//! Processes on their way: from the request to the gate, from the gate to the program, through changes of their limits, and
//! at last the removal of what they left. Only here the shim drives libcontainer: it waits for what a [`Launch`] names, and
//! hands it what came.
//!
//! Each of these is a future of its own that shares the container's [`Body`] and never holds it while it waits.

use std::{
    cell::{OnceCell, RefCell},
    fs::OpenOptions,
    future::{Future, pending, poll_fn},
    io::{self, Write as _},
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::{Path, PathBuf},
    pin::{Pin, pin},
    rc::Rc,
    task::Poll,
    time::{Instant, SystemTime},
};

use libcontainer::{
    cgroup::{
        Cgroup, Saved,
        systemd::{self, Manager, SystemdError},
    },
    host::{Host, HostError},
    plan::{ExecRequest, Plan, Request},
    rootfs::{self, Mounted, RootfsMount},
    run::{Into, Io, Launch, Progress, RunError, Wake},
    spec,
    state::{self, Init, State},
    sys::{Failed, process::pidfd_open},
};
use nix::{
    errno::Errno,
    unistd::{Gid, Pid, Uid},
};
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Process, Spec};
use runtime_v2_api::{task as wire, types};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::sleep_until,
};

use crate::{
    options::Options,
    reap::{Exit, Reaper, Watch},
    service::Fault,
    stdio::{Stdio, User, Wanted},
    sys::ready,
    trace::Trace,
};

pub(crate) mod freezer;
mod remains;
mod update;

pub(crate) use remains::{Remains, remove};
pub(crate) use update::{Update, update};

/// What every container of this shim is made with.
pub(crate) struct Ground {
    pub(crate) namespace: String,
    pub(crate) reaper: Reaper,
    /// A supervisor started us: it asks how containers were started, and nobody deletes every exec.
    pub(crate) supervised: bool,
    /// Looked at once: a host with a thousand mounts takes its time to list them, and exec probes come every second.
    host: OnceCell<Host>,
}

impl Ground {
    pub(crate) fn new(namespace: String, supervised: bool) -> Self {
        Self { namespace, reaper: Reaper::default(), supervised, host: OnceCell::new() }
    }

    /// What this machine can do.
    pub(crate) fn host(&self) -> Result<&Host, HostError> {
        if let Some(host) = self.host.get() {
            return Ok(host);
        }
        let host = Host::detect()?;
        Ok(self.host.get_or_init(|| host))
    }
}

/// A container as libcontainer holds it.
pub(crate) enum Body {
    /// Until its program runs.
    Launch(Box<Launch>),
    /// Its cgroup, held open.
    Running(Option<Cgroup>),
    /// Its start failed, and libcontainer has removed it.
    Gone,
}

impl Body {
    /// The launch, while it is one.
    pub(crate) fn launch(&self) -> Option<&Launch> {
        match self {
            Self::Launch(launch) => Some(launch),
            Self::Running(_) | Self::Gone => None,
        }
    }

    /// Its cgroup, as long as there is one.
    pub(crate) fn cgroup(&self) -> Option<&Cgroup> {
        match self {
            Self::Launch(launch) => launch.cgroup(),
            Self::Running(cgroup) => cgroup.as_ref(),
            Self::Gone => None,
        }
    }
}

/// A process of ours, and how to signal it and hear of its end.
pub(crate) struct Child {
    pub(crate) pid: Pid,
    /// Means this process and no other, reaped or not.
    pub(crate) pidfd: OwnedFd,
    pub(crate) exit: Watch,
}

/// A container at its gate.
pub(crate) struct Created {
    pub(crate) body: Rc<RefCell<Body>>,
    pub(crate) child: Child,
    pub(crate) stdio: Stdio,
    pub(crate) remains: Remains,
    /// Its init is pid 1 of a pid namespace of its own.
    pub(crate) own_pids: bool,
    /// As the options say; 0 and 0 for whoever the process is.
    pub(crate) io_owner: (Uid, Gid),
    /// What runs in it later keeps our session keyring, as it did.
    pub(crate) no_new_keyring: bool,
    pub(crate) trace: Trace,
}

/// Makes a container and drives it to its gate. What was made is gone again when this fails, and it fails when `given_up`
/// comes first.
pub(crate) async fn create(
    ground: &Ground,
    request: &wire::CreateTaskRequest,
    given_up: impl Future<Output = ()>,
) -> Result<Created, Fault> {
    let (begin, mut trace) = (SystemTime::now(), Trace::new(ground.supervised));
    if !request.checkpoint.is_empty() {
        return Err(Fault::Unimplemented("restore from a checkpoint"));
    }
    let options = Options::read(&request.options)?;
    let bundle = Path::new(&request.bundle);
    options.save(bundle).map_err(failed(&format!("save the options in {}", bundle.display())))?;
    let remains = Remains {
        bundle: bundle.to_owned(),
        state: options.state_root(&ground.namespace).join(&request.id),
        rootfs_mounted: !request.rootfs.is_empty(),
    };
    let mounting = SystemTime::now();
    let created = match mount(bundle, &request.rootfs) {
        Ok(()) => {
            trace.done("mount the root filesystem", mounting);
            create_mounted(ground, request, &options, &remains, trace, given_up).await
        }
        Err(error) => Err(error),
    };
    let created = created.map(|mut created| {
        created.trace.done("create", begin);
        created
    });
    if created.is_err()
        && let Err(error) = remains.unmount().await
    {
        log::warn!("container {} was not made, and something of it is left: {error}", request.id);
    }
    created
}

async fn create_mounted(
    ground: &Ground,
    request: &wire::CreateTaskRequest,
    options: &Options,
    remains: &Remains,
    mut trace: Trace,
    given_up: impl Future<Output = ()>,
) -> Result<Created, Fault> {
    let planning = SystemTime::now();
    let runtime = |error: &dyn std::fmt::Display| Fault::Failed(format!("OCI runtime create failed: {error}"));
    let mut given_up = pin!(given_up);
    let mut spec = spec::read(&remains.bundle).map_err(|error| runtime(&error))?;
    // The request knows better.
    if let Some(process) = spec.process_mut() {
        process.set_terminal(Some(request.terminal));
    }
    let rootfs = match spec.root() {
        Some(root) if request.rootfs.is_empty() => remains.bundle.join(root.path()),
        _ => remains.bundle.join("rootfs"),
    };
    let host = ground.host().map_err(|error| runtime(&error))?;
    let asked = Request {
        id: request.id.clone(),
        bundle: remains.bundle.clone(),
        rootfs,
        no_pivot: options.no_pivot_root,
        no_new_keyring: options.no_new_keyring,
        preserve_fds: 0,
        systemd: options.systemd_cgroup.then(|| Manager::of(host)),
    };
    let plan = Plan::create(&spec, host, &asked).map_err(|error| runtime(&error))?;
    trace.done("read config.json and make the plan", planning);

    let io_owner = (Uid::from_raw(options.io_uid), Gid::from_raw(options.io_gid));
    let wanted = Wanted {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        terminal: request.terminal,
    };
    let user = user(&spec, spec.process().as_ref(), io_owner, false);
    let opening = SystemTime::now();
    let open = Stdio::open(&wanted, user, (&request.id, &ground.namespace), &ground.reaper);
    let (mut stdio, ends) = tokio::select! {
        opened = open => opened.map_err(|error| Fault::Failed(error.to_string()))?,
        () = &mut given_up => return Err(Fault::Failed("the client gave up".into())),
    };
    trace.done("open the stdio", opening);
    let io = match ends {
        Some(ends) => Io::Fds { stdin: ends.stdin, stdout: ends.stdout, stderr: ends.stderr },
        None => Io::Terminal,
    };

    let mut record = Record::begin(remains, &spec, host, asked)?;
    let launch = match Launch::begin(plan, io, Into::New { host, gate: None }) {
        Ok(launch) => launch,
        Err(error) => {
            record.forget();
            return Err(runtime(&error));
        }
    };
    let body = Rc::new(RefCell::new(Body::Launch(Box::new(launch))));
    let mut children = Children::new(&ground.reaper);
    let made = match drive(&body, &mut children, Progress::AtGate, given_up).await {
        Ok(()) => settle_at_gate(&body, &children, &mut stdio, |pid, cgroup| record.made(pid, cgroup)),
        Err(error) => Err(runtime(&error)),
    };
    match made {
        Ok(child) => Ok(Created {
            body,
            child,
            stdio,
            remains: remains.clone(),
            own_pids: own_pids(&spec),
            io_owner,
            no_new_keyring: options.no_new_keyring,
            trace,
        }),
        Err(fault) => {
            undo(&body, &mut children).await;
            record.forget();
            stdio.close().await;
            Err(fault)
        }
    }
}

/// A process waits at its gate, or runs: connects its terminal, and has it recorded.
fn settle_at_gate(
    body: &RefCell<Body>,
    children: &Children,
    stdio: &mut Stdio,
    record: impl FnOnce(Pid, Option<Saved>) -> Result<(), Fault>,
) -> Result<Child, Fault> {
    let mut body = body.borrow_mut();
    let Body::Launch(launch) = &mut *body else { return Err(Fault::NoContainer) };
    if let Some(master) = launch.console() {
        stdio.attach(master).map_err(|error| Fault::Failed(error.to_string()))?;
    }
    let child = children.child(launch.pid())?;
    record(child.pid, launch.cgroup().map(Cgroup::saved))?;
    Ok(child)
}

/// Ends a launch that has got on, and waits until all it made is gone.
async fn undo(body: &RefCell<Body>, children: &mut Children) {
    if let Body::Launch(launch) = &mut *body.borrow_mut() {
        launch.abandon("what came after it failed");
    }
    // The reason is known already.
    drop(drive(body, children, Progress::Running, pending()).await);
    body.replace(Body::Gone);
}

/// What `delete` must know to clean up when we are gone: written before anything is made, and again once it is.
struct Record {
    dir: state::Dir,
    state: State,
    pid_file: PathBuf,
}

impl Record {
    fn begin(remains: &Remains, spec: &Spec, host: &Host, asked: Request) -> Result<Self, Fault> {
        let state = State::planned(spec, &host.cgroups, asked).map_err(|problem| Fault::Failed(problem.to_string()))?;
        let dir = state::Dir::create(&remains.state).map_err(unrecorded)?;
        let record = Self { dir, state, pid_file: remains.bundle.join("init.pid") };
        match record.dir.save(&record.state) {
            Ok(()) => Ok(record),
            Err(error) => {
                record.forget();
                Err(unrecorded(error))
            }
        }
    }

    /// The container is at its gate.
    fn made(&mut self, pid: Pid, cgroup: Option<Saved>) -> Result<(), Fault> {
        let pid_file = &self.pid_file;
        let written = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(pid_file);
        written
            .and_then(|mut file| file.write_all(pid.to_string().as_bytes()))
            .map_err(failed(&format!("write {}", pid_file.display())))?;
        self.state.init = Some(Init::of(pid).map_err(|error| Fault::Failed(error.to_string()))?);
        self.state.creating = false;
        self.state.cgroup = cgroup.unwrap_or_default();
        self.dir.save(&self.state).map_err(unrecorded)
    }

    /// There is nothing to clean up.
    fn forget(self) {
        if let Err(error) = self.dir.remove() {
            log::warn!("forget container {}, which was not made: {error}", self.state.id);
        }
    }
}

fn unrecorded(error: state::StateError) -> Fault {
    Fault::Failed(format!("record the container: {error}"))
}

/// Lets a container at its gate go on, until its program runs. When this fails, the process has ended. Either way the time
/// line says how far it came.
pub(crate) async fn start(
    ground: &Ground,
    body: &RefCell<Body>,
    init: (Pid, Watch),
    mut trace: Trace,
) -> (Trace, Result<(), Fault>) {
    let begin = SystemTime::now();
    let runtime = |error: &dyn std::fmt::Display| Fault::Failed(format!("OCI runtime start failed: {error}"));
    if let Body::Launch(launch) = &mut *body.borrow_mut() {
        launch.start();
    }
    let mut children = Children::new(&ground.reaper);
    children.known(init);
    let driven = drive(body, &mut children, Progress::Running, pending()).await;
    trace.done("start", begin);
    if let Body::Launch(launch) = &*body.borrow() {
        trace.keep_steps(launch);
    }
    let started = match driven {
        Ok(()) => settle(body),
        Err(error) => {
            // Nothing is left of it.
            body.replace(Body::Gone);
            Err(error)
        }
    };
    (trace, started.map_err(|error| runtime(&error)))
}

/// A process that was exec'ed.
pub(crate) struct Executed {
    pub(crate) child: Child,
    pub(crate) stdio: Stdio,
}

/// What is to be exec'ed, and into what.
pub(crate) struct Execution {
    pub(crate) container: String,
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) body: Rc<RefCell<Body>>,
    pub(crate) init: OwnedFd,
    pub(crate) process: Rc<Process>,
    pub(crate) wanted: Wanted,
    pub(crate) io_owner: (Uid, Gid),
    pub(crate) no_new_keyring: bool,
}

/// Runs a further process in a container.
pub(crate) async fn exec(ground: &Ground, exec: Execution) -> Result<Executed, Fault> {
    let runtime = |error: &dyn std::fmt::Display| Fault::Failed(format!("OCI runtime exec failed: {error}"));
    // Read again each time: with its seccomp profile it is the largest thing we could keep in memory.
    let spec = spec::read(&exec.bundle).map_err(|error| runtime(&error))?;
    let user = user(&spec, Some(&exec.process), exec.io_owner, true);
    let host = ground.host().map_err(|error| runtime(&error))?;
    let request = ExecRequest {
        id: &exec.container,
        spec: &spec,
        process: &exec.process,
        no_new_keyring: exec.no_new_keyring,
        preserve_fds: 0,
    };
    let plan = Plan::exec(&request, host).map_err(|error| runtime(&error))?;
    drop(spec);

    let opened = Stdio::open(&exec.wanted, user, (&exec.id, &ground.namespace), &ground.reaper).await;
    let (mut stdio, ends) = opened.map_err(|error| Fault::Failed(error.to_string()))?;
    let io = match ends {
        Some(ends) => Io::Fds { stdin: ends.stdin, stdout: ends.stdout, stderr: ends.stderr },
        None => Io::Terminal,
    };
    let launch = {
        let body = exec.body.borrow();
        let cgroup = body.cgroup().ok_or(Fault::NoCgroup)?;
        Launch::begin(plan, io, Into::Running { cgroup, init: exec.init }).map_err(|error| runtime(&error))?
    };
    let body = RefCell::new(Body::Launch(Box::new(launch)));
    let mut children = Children::new(&ground.reaper);
    let made = match drive(&body, &mut children, Progress::Running, pending()).await {
        Ok(()) => settle_at_gate(&body, &children, &mut stdio, |_, _| Ok(())),
        Err(error) => Err(runtime(&error)),
    };
    let made = made.and_then(|child| settle(&body).map(|()| child).map_err(|error| runtime(&error)));
    match made {
        Ok(child) => Ok(Executed { child, stdio }),
        Err(fault) => {
            undo(&body, &mut children).await;
            stdio.close().await;
            Err(fault)
        }
    }
}

/// The program runs: the launch is over.
pub(crate) fn settle(body: &RefCell<Body>) -> Result<(), RunError> {
    match body.replace(Body::Gone) {
        Body::Launch(launch) => {
            body.replace(Body::Running(launch.into_launched()?.cgroup));
        }
        other => {
            body.replace(other);
        }
    }
    Ok(())
}

/// The children of one launch, each watched from before it could be reaped.
struct Children {
    reaper: Reaper,
    watched: Vec<Watched>,
}

struct Watched {
    pid: Pid,
    pidfd: Option<OwnedFd>,
    exit: Watch,
    /// A copy to wait on; none once it has told.
    waited: Option<Watch>,
}

impl Children {
    fn new(reaper: &Reaper) -> Self {
        Self { reaper: reaper.clone(), watched: Vec::new() }
    }

    /// Adds one that is being watched already.
    fn known(&mut self, (pid, exit): (Pid, Watch)) {
        self.watched.push(Watched { pid, pidfd: None, waited: Some(exit.clone()), exit });
    }

    /// Watches those that are new. To be called before the event loop gets a chance to reap them.
    fn watch(&mut self, pids: &[Pid]) -> Result<(), Failed> {
        let mut watched = Ok(());
        for &pid in pids {
            if !self.watched.iter().any(|child| child.pid == pid && child.waited.is_some()) {
                let exit = self.reaper.watch(pid);
                let pidfd = match pidfd_open(pid) {
                    Ok(pidfd) => Some(pidfd),
                    // A copy that was reaped before we heard of it.
                    Err(Failed { errno: Errno::ESRCH, .. }) => None,
                    Err(failed) => {
                        watched = Err(failed);
                        None
                    }
                };
                // Without a descriptor, too: what was made for it can go only once its end has come.
                self.watched.push(Watched { pid, pidfd, waited: Some(exit.clone()), exit });
            }
        }
        watched
    }

    /// The next of them to end.
    async fn next(&mut self) -> (Pid, Exit) {
        poll_fn(|context| {
            for child in &mut self.watched {
                if let Some(waited) = &mut child.waited
                    && let Poll::Ready(exit) = Pin::new(waited).poll(context)
                {
                    child.waited = None;
                    return Poll::Ready((child.pid, exit));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// The process of that number.
    fn child(&self, pid: Pid) -> Result<Child, Fault> {
        let child = self.watched.iter().rfind(|child| child.pid == pid);
        let pidfd = child.and_then(|child| child.pidfd.as_ref()).map(OwnedFd::try_clone);
        match (child, pidfd) {
            (Some(child), Some(Ok(pidfd))) => Ok(Child { pid, pidfd, exit: child.exit.clone() }),
            (_, pidfd) => Err(Fault::Failed(format!("no descriptor of process {pid}: {pidfd:?}"))),
        }
    }
}

/// Waits for what the launch names and hands it what came, until it has got as far as `goal`; gives it up when `given_up`
/// comes first. An error comes when all that was made is gone.
async fn drive(
    body: &RefCell<Body>,
    children: &mut Children,
    goal: Progress,
    given_up: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let mut given_up = pin!(given_up);
    let mut patient = true;
    let mut wire = None;
    // The first look is for what came before we were here.
    let mut wake = Wake::Readable;
    loop {
        let (systemd, deadline) = {
            let mut body = body.borrow_mut();
            let Body::Launch(launch) = &mut *body else { return Ok(()) };
            let progress = launch.advance(wake)?;
            let wants = launch.wants();
            // Also of one who is there already: this is the last moment at which none of them can have been reaped.
            let watched = children.watch(&wants.exits);
            if progress == goal && watched.is_ok() {
                return Ok(());
            }
            wire = match (wants.readable, wire) {
                (None, _) => None,
                (Some(_), Some(wire)) => Some(wire),
                (Some(fd), None) => Some(readable(fd)),
            };
            // Not kept: the next one may be another that has the same number.
            let systemd = wants.systemd.map(readable);
            let deadline = wants.deadline;
            if watched.is_err() || matches!(wire, Some(Err(_))) || matches!(systemd, Some(Err(_))) {
                launch.abandon("no descriptor left to watch it with");
            }
            (systemd, deadline)
        };
        let readiness = async {
            match &wire {
                Some(Ok(wire)) => wire.readable().await.map(|mut guard| guard.clear_ready()),
                _ => pending().await,
            }
        };
        wake = tokio::select! {
            (pid, exit) = children.next() => Wake::Exited(pid, exit.end),
            _ = readiness => Wake::Readable,
            () = stirs(systemd.as_ref().and_then(|fd| fd.as_ref().ok())) => Wake::Readable,
            () = sleep_to(deadline) => Wake::Deadline,
            () = &mut given_up, if patient => {
                patient = false;
                if let Body::Launch(launch) = &mut *body.borrow_mut() {
                    launch.abandon("the client gave up");
                }
                Wake::Readable
            }
        };
    }
}

/// Something is to be read; never, if there is nothing to read it from.
async fn stirs(fd: Option<&AsyncFd<OwnedFd>>) {
    match fd {
        Some(fd) => drop(fd.readable().await),
        None => pending().await,
    }
}

/// Asks systemd for something, and waits for its answer.
async fn ask(mut call: systemd::Call) -> Result<(), SystemdError> {
    while !call.advance()? {
        let deadline = call.deadline();
        // Without a descriptor left to wait on, there is still the deadline.
        let socket = call.fd().map(readable).transpose().unwrap_or_default();
        tokio::select! {
            () = stirs(socket.as_ref()) => {}
            () = sleep_to(Some(deadline)) => {}
        }
    }
    Ok(())
}

/// A copy of `fd` to wait on, so that nobody has to hold the launch meanwhile.
fn readable(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<OwnedFd>> {
    ready::watch_copy(fd, Interest::READABLE)
}

async fn sleep_to(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => pending().await,
    }
}

/// Mounts what containerd wants on the bundle's `rootfs`.
fn mount(bundle: &Path, mounts: &[types::Mount]) -> Result<(), Fault> {
    if mounts.is_empty() {
        return Ok(());
    }
    let mounts: Vec<RootfsMount> = mounts
        .iter()
        .map(|mount| RootfsMount {
            kind: mount.type_.clone(),
            source: mount.source.clone(),
            target: mount.target.clone(),
            options: mount.options.clone(),
        })
        .collect();
    let mounted = rootfs::mount_all(&mounts, &bundle.join("rootfs"));
    mounted.map(Mounted::keep).map_err(|error| Fault::Failed(format!("failed to mount rootfs component: {error}")))
}

/// Whom a process will be, seen from here, and what that means for its stdio.
fn user(spec: &Spec, process: Option<&Process>, (uid, gid): (Uid, Gid), exec: bool) -> User {
    let linux = spec.linux().as_ref();
    let host = |id: u32, maps: Option<&Vec<LinuxIdMapping>>| {
        let map = maps
            .into_iter()
            .flatten()
            .find(|map| (map.container_id()..map.container_id().saturating_add(map.size())).contains(&id));
        map.map_or(id, |map| map.host_id().saturating_add(id - map.container_id()))
    };
    let user = process.map(Process::user);
    let own_uid = host(user.map_or(0, |user| user.uid()), linux.and_then(|linux| linux.uid_mappings().as_ref()));
    let own_gid = host(user.map_or(0, |user| user.gid()), linux.and_then(|linux| linux.gid_mappings().as_ref()));
    User {
        uid: if uid.is_root() { Uid::from_raw(own_uid) } else { uid },
        gid: if gid.as_raw() == 0 { Gid::from_raw(own_gid) } else { gid },
        confined: process
            .is_some_and(|process| process.selinux_label().as_ref().is_some_and(|label| !label.is_empty())),
        exec,
    }
}

/// Whether the container has a pid namespace of its own, in which nothing outlives init.
fn own_pids(spec: &Spec) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    namespaces.into_iter().flatten().any(|ns| ns.typ() == LinuxNamespaceType::Pid && ns.path().is_none())
}

fn failed(step: &str) -> impl Fn(io::Error) -> Fault {
    move |error| Fault::Failed(format!("{step}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_ended_before_we_heard_of_it_is_no_error_and_is_waited_for() {
        let mut children = Children::new(&Reaper::default());
        // A number that the kernel gives to nobody.
        let gone = Pid::from_raw(i32::MAX);
        children.watch(&[gone]).unwrap();
        assert!(children.watched.iter().any(|child| child.pid == gone && child.waited.is_some()));
    }
}

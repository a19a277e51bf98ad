//! The owner of every container of this shim: takes requests, exits and the ends of chores one after the other, has each
//! container's [`Life`] decide, and carries its actions out. Whatever takes time is a chore, which reports back when done.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap, VecDeque},
    future::Future,
    os::fd::{AsFd as _, OwnedFd},
    pin::Pin,
    rc::Rc,
};

use futures::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use libcontainer::{
    cgroup::{Cgroup, CgroupError, Events, Freezing},
    sys::process::{pidfd_open, pidfd_send_signal},
};
use nix::{
    errno::Errno,
    sys::signal::Signal,
    unistd::{Gid, Pid, Uid},
};
use oci_spec::runtime::Process as Spec;
use protobuf::MessageField;
use runtime_v2_api::{Empty, pack, runc, shim::TraceResponse, task as wire, topic, types};
use tokio::{join, sync::Mutex};

mod execs;
mod news;
mod oom;
mod pause;
mod update;

use self::{news::create_event, oom::Oom};
use crate::{
    launch::{self, Body, Created, Executed, Execution, Ground, Remains},
    publish::Publisher,
    reap::{Exit, Watch},
    service::{Call, Fault, Reply, timestamp},
    stats,
    stdio::{Stdio, Wanted},
    task::{Action, Event, Life, Refused, Seen, Status},
    trace::Trace,
};

/// How many answers to a Delete we keep whose client was gone: it may ask again.
const REMEMBERED: usize = 16;

type Chore = Pin<Box<dyn Future<Output = Done>>>;

/// A chore that is done.
pub(crate) enum Done {
    Created(Box<(wire::CreateTaskRequest, Reply<wire::CreateTaskResponse>, Result<Created, Fault>)>),
    Started(String, (Trace, Result<(), Fault>)),
    Executed(String, String, Box<Result<Executed, Fault>>),
    /// Init or an exec was reaped.
    Exited(String, Option<String>, Exit),
    /// The freezer may have got further.
    FreezerStirred(String),
    /// The kernel may have killed for memory.
    MemoryStirred(String),
    /// A container has other limits, or not; it may have been frozen for it.
    Updated(String, bool, Reply<Empty>, Result<(), Fault>),
    Removed(String, Result<(), Fault>),
    ExecRemoved(String, String),
    /// There is nothing more to do about it.
    Moot,
}

/// All containers of this shim.
pub(crate) struct House {
    ground: Rc<Ground>,
    publisher: Publisher,
    /// None while it is being made.
    tasks: HashMap<String, Option<Task>>,
    chores: FuturesUnordered<Chore>,
    shutdown: Shutdown,
    /// Of containers that are gone, answers to a Delete that reached nobody, the oldest first.
    unheard: VecDeque<(String, wire::DeleteResponse)>,
}

/// Whether a client has asked us to leave.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shutdown {
    No,
    /// While there still were containers.
    Early,
    Now,
}

/// A container that was made.
struct Task {
    life: Life,
    body: Rc<RefCell<Body>>,
    remains: Remains,
    exit: Watch,
    init: Process,
    execs: BTreeMap<String, Process>,
    /// Execs that have ended and are not deleted, the oldest first; only where a supervisor started us.
    ended: VecDeque<String>,
    io_owner: (Uid, Gid),
    no_new_keyring: bool,
    oom: Option<Oom>,
    /// Held by an update on its way.
    update: Rc<Mutex<()>>,
    freezing: Option<(Freezing, Option<Events>)>,
    pause: Option<Reply<Empty>>,
    trace: Trace,
}

/// What the house knows of a process, running or not.
#[derive(Default)]
struct Process {
    wanted: Wanted,
    /// What an exec is to run.
    spec: Option<Rc<Spec>>,
    pidfd: Option<OwnedFd>,
    stdio: Option<Stdio>,
    /// The terminal's size and the end of stdin, in case a client names them before there is a terminal or a stdin.
    size: Option<(u16, u16)>,
    stdin_closed: bool,
    waits: Vec<Reply<wire::WaitResponse>>,
    starts: Vec<Reply<wire::StartResponse>>,
    deletes: Vec<Reply<wire::DeleteResponse>>,
}

impl Process {
    /// It runs, with this to talk to it.
    fn settle(&mut self, pidfd: OwnedFd, stdio: Stdio) {
        self.pidfd = Some(pidfd);
        let stdio = self.stdio.insert(stdio);
        if self.stdin_closed {
            stdio.close_stdin();
        }
        if let Some((columns, rows)) = self.size
            && let Err(error) = stdio.resize(columns, rows)
        {
            log::debug!("set the size of a terminal: {error}");
        }
    }

    fn answer_starts(&mut self, started: Result<Pid, Fault>) {
        let response = |pid| wire::StartResponse { pid: number(pid), ..Default::default() };
        let Some(first) = self.starts.pop() else { return };
        for reply in self.starts.drain(..) {
            let shared = started.as_ref().map(|pid| response(*pid));
            answer(reply, shared.map_err(|fault| Fault::Failed(fault.to_string())));
        }
        answer(first, started.map(response));
    }

    fn signal(&self, signal: i32) -> Result<(), Fault> {
        let Some(pidfd) = &self.pidfd else { return Err(Refused::NotStarted.into()) };
        match pidfd_send_signal(pidfd.as_fd(), signal) {
            Ok(()) => Ok(()),
            Err(failed) if failed.errno == Errno::ESRCH => Err(Refused::Finished.into()),
            Err(failed) => Err(Fault::Failed(format!("unknown error after kill: {failed}"))),
        }
    }
}

impl Task {
    fn process(&mut self, exec: Option<&str>) -> Result<&mut Process, Fault> {
        match exec {
            None => Ok(&mut self.init),
            Some(id) => self.execs.get_mut(id).ok_or_else(|| Refused::NoProcess(id.to_owned()).into()),
        }
    }

    /// What it takes to run an exec that was added.
    fn execution(&self, id: &str, exec: &str) -> Result<Execution, Fault> {
        let process = self.execs.get(exec).ok_or_else(|| Refused::NoProcess(exec.to_owned()))?;
        let spec = process.spec.clone().ok_or_else(|| Refused::NoProcess(exec.to_owned()))?;
        let init = self.init.pidfd.as_ref().ok_or(Fault::NoContainer)?;
        Ok(Execution {
            container: id.to_owned(),
            id: exec.to_owned(),
            bundle: self.remains.bundle.clone(),
            body: self.body.clone(),
            init: init.try_clone().map_err(|error| Fault::Failed(error.to_string()))?,
            process: spec,
            wanted: process.wanted.clone(),
            io_owner: self.io_owner,
            no_new_keyring: self.no_new_keyring,
        })
    }

    /// What `look` makes of the container's cgroup.
    fn with_cgroup<T>(&self, look: impl FnOnce(&Cgroup) -> Result<T, CgroupError>) -> Result<T, Fault> {
        let body = self.body.borrow();
        let cgroup = body.cgroup().ok_or(Fault::NoCgroup)?;
        look(cgroup).map_err(|error| Fault::Failed(error.to_string()))
    }
}

impl House {
    pub(crate) fn new(namespace: String, supervised: bool, publisher: Publisher) -> Self {
        Self {
            ground: Rc::new(Ground::new(namespace, supervised)),
            publisher,
            tasks: HashMap::new(),
            chores: FuturesUnordered::new(),
            shutdown: Shutdown::No,
            unheard: VecDeque::new(),
        }
    }

    /// Collects the children that have ended.
    pub(crate) fn reap(&self) {
        self.ground.reaper.reap();
    }

    /// The next chore that is done; none at once when there is none at all.
    pub(crate) async fn next_chore(&mut self) -> Option<Done> {
        self.chores.next().await
    }

    /// No container is here, nor on its way.
    pub(crate) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// A client has asked us to leave, and nothing keeps us.
    pub(crate) fn leaves_now(&self) -> bool {
        self.shutdown == Shutdown::Now && self.is_empty()
    }

    /// A client has asked us to leave, if only too early.
    pub(crate) fn asked_to_leave(&self) -> bool {
        self.shutdown != Shutdown::No
    }

    /// Nobody will ask any more: as if one had.
    pub(crate) fn leave(&mut self) {
        self.shutdown = Shutdown::Now;
    }

    /// Takes a request.
    pub(crate) fn call(&mut self, call: Call) {
        match call {
            Call::State(request, reply) => answer(reply, self.state(&request)),
            Call::Create(request, reply) => self.create(request, reply),
            Call::Start(request, reply) => self.start(&request, reply),
            Call::Delete(request, reply) => self.delete(&request, reply),
            Call::Pids(request, reply) => answer(reply, self.pids(&request.id)),
            Call::Pause(request, reply) => self.pause(&request.id, reply),
            Call::Resume(request, reply) => answer(reply, self.resume(&request.id)),
            Call::Checkpoint(request, reply) => {
                let task = self.task(&request.id);
                answer(reply, task.and(Err(Fault::Unimplemented("checkpoint"))));
            }
            Call::Kill(request, reply) => answer(reply, self.kill(&request)),
            Call::Exec(request, reply) => answer(reply, self.exec(request)),
            Call::ResizePty(request, reply) => answer(reply, self.resize(&request)),
            Call::CloseIo(request, reply) => answer(reply, self.close_io(&request)),
            Call::Update(request, reply) => self.update(&request, reply),
            Call::Wait(request, reply) => self.wait(&request, reply),
            Call::Stats(request, reply) => answer(reply, self.stats(&request.id)),
            Call::Connect(request, reply) => answer(reply, Ok(self.connect(&request.id))),
            Call::Shutdown(request, reply) => {
                log::debug!("asked to shut down, for {}; containers here: {}", request.id, self.tasks.len());
                self.shutdown = if self.is_empty() { Shutdown::Now } else { Shutdown::Early };
                answer(reply, Ok(Empty::new()));
            }
            Call::Trace(request, reply) => answer(reply, self.trace(&request.id)),
        }
    }

    /// Takes what a chore has come to.
    pub(crate) fn done(&mut self, done: Done) {
        let result = match done {
            Done::Created(done) => {
                let (request, reply, created) = *done;
                self.created(&request, reply, created);
                Ok(())
            }
            Done::Started(id, (trace, started)) => self.started(&id, trace, started),
            Done::Executed(id, exec, executed) => self.executed(&id, &exec, *executed),
            Done::Exited(id, exec, exit) => self.exited(&id, exec.as_deref(), exit),
            Done::FreezerStirred(id) => self.look_at_freezer(&id),
            Done::MemoryStirred(id) => {
                let looked = self.look_for_oom(&id);
                self.wait_for_oom(&id);
                looked
            }
            Done::Updated(id, frozen, reply, updated) => self.updated(&id, frozen, reply, updated),
            Done::Removed(id, removed) => self.removed(&id, removed),
            Done::ExecRemoved(id, exec) => self.exec_removed(&id, &exec),
            Done::Moot => Ok(()),
        };
        if let Err(fault) = result {
            log::warn!("{fault}");
        }
    }

    fn task(&mut self, id: &str) -> Result<&mut Task, Fault> {
        self.tasks.get_mut(id).and_then(Option::as_mut).ok_or(Fault::NoContainer)
    }

    fn chore(&mut self, chore: impl Future<Output = Done> + 'static) {
        self.chores.push(Box::pin(chore));
    }

    /// Tells a container what happens, and does what it decides. Everything is done even if one thing fails.
    fn happen(&mut self, id: &str, event: Event<'_>) -> Result<(), Fault> {
        let actions = self.task(id)?.life.on(event)?;
        actions.into_iter().map(|action| self.act(id, action)).fold(Ok(()), Result::and)
    }

    fn act(&mut self, id: &str, action: Action) -> Result<(), Fault> {
        let ground = self.ground.clone();
        let task = self.task(id)?;
        let id = id.to_owned();
        match action {
            Action::Release => {
                let (body, init) = (task.body.clone(), (task.life.pid(), task.exit.clone()));
                let trace = task.trace.clone();
                self.chore(async move {
                    let started = launch::start(&ground, &body, init, trace).await;
                    Done::Started(id, started)
                });
            }
            Action::Enter(exec) => {
                let execution = task.execution(&id, &exec);
                self.chore(async move {
                    let executed = match execution {
                        Ok(execution) => launch::exec(&ground, execution).await,
                        Err(fault) => Err(fault),
                    };
                    Done::Executed(id, exec, Box::new(executed))
                });
            }
            Action::Freeze => {
                let begun = task.with_cgroup(|cgroup| Ok((cgroup.freeze()?, cgroup.events()?)));
                return self.freezing(&id, begun);
            }
            Action::Thaw => {
                // If a freeze is under way, the container has ended over it.
                task.freezing = None;
                if let Some(reply) = task.pause.take() {
                    answer(reply, Err(Refused::Finished.into()));
                }
                return task.with_cgroup(Cgroup::thaw);
            }
            Action::Signal(exec, signal) => return task.process(exec.as_deref())?.signal(signal),
            // An ordinary user's container may have no cgroup: its first process takes its pid namespace along.
            Action::SignalAll(signal) if task.with_cgroup(|cgroup| Ok(cgroup.is_nowhere()))? => {
                return task.process(None)?.signal(signal);
            }
            Action::SignalAll(signal) => return task.with_cgroup(|cgroup| signal_all(cgroup, signal)),
            Action::KillAll => return task.with_cgroup(Cgroup::kill),
            Action::LookForOom => {
                let looked = self.look_for_oom(&id);
                // What comes after the exit interests nobody, and a cgroup that is removed stirs for ever.
                self.task(&id)?.oom = None;
                return looked;
            }
            Action::Wake(exec, exit) => {
                for wait in task.process(exec.as_deref())?.waits.drain(..) {
                    answer(wait, Ok(waited(Some(exit))));
                }
            }
            Action::WakeUnstarted(exec) => {
                for wait in task.process(Some(&exec))?.waits.drain(..) {
                    answer(wait, Ok(waited(None)));
                }
            }
            Action::Publish(news) => self.publish(id, news),
            Action::Remove => {
                // Execs that nobody deleted go with their container.
                let processes = std::iter::once(&mut task.init).chain(task.execs.values_mut());
                let stdio: Vec<Stdio> = processes.filter_map(|process| process.stdio.take()).collect();
                let (body, remains) = (task.body.clone(), task.remains.clone());
                self.chore(async move {
                    let closed = join_all(stdio.into_iter().map(Stdio::close));
                    let (_, removed) = join!(closed, launch::remove(&ground, &body, &remains));
                    Done::Removed(id, removed)
                });
            }
            Action::RemoveExec(exec) => {
                let stdio = task.process(Some(&exec))?.stdio.take();
                self.chore(async move {
                    if let Some(stdio) = stdio {
                        stdio.close().await;
                    }
                    Done::ExecRemoved(id, exec)
                });
            }
        }
        Ok(())
    }

    fn create(&mut self, request: wire::CreateTaskRequest, mut reply: Reply<wire::CreateTaskResponse>) {
        if self.tasks.contains_key(&request.id) {
            return answer(reply, Err(Fault::Exists(request.id)));
        }
        self.shutdown = Shutdown::No;
        self.unheard.retain(|(id, _)| *id != request.id);
        self.tasks.insert(request.id.clone(), None);
        let ground = self.ground.clone();
        self.chore(async move {
            let created = launch::create(&ground, &request, reply.abandoned()).await;
            Done::Created(Box::new((request, reply, created)))
        });
    }

    fn created(
        &mut self,
        request: &wire::CreateTaskRequest,
        reply: Reply<wire::CreateTaskResponse>,
        created: Result<Created, Fault>,
    ) {
        let id = &request.id;
        let Created { body, child, stdio, remains, own_pids, io_owner, no_new_keyring, trace } = match created {
            Ok(created) => created,
            Err(fault) => {
                self.tasks.remove(id);
                return answer(reply, Err(fault));
            }
        };
        let wanted = Wanted {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let mut init = Process { wanted, ..Process::default() };
        init.settle(child.pidfd, stdio);
        let task = Task {
            life: Life::created(id, child.pid, own_pids),
            body,
            remains,
            exit: child.exit.clone(),
            init,
            execs: BTreeMap::new(),
            io_owner,
            no_new_keyring,
            ended: VecDeque::new(),
            oom: None,
            update: Rc::default(),
            freezing: None,
            pause: None,
            trace,
        };
        self.tasks.insert(id.clone(), Some(task));
        self.watch_for_oom(id);
        self.publisher.publish(topic::TASK_CREATE, &create_event(request, child.pid));
        answer(reply, Ok(wire::CreateTaskResponse { pid: number(child.pid), ..Default::default() }));
        let id = id.clone();
        self.chore(async move { Done::Exited(id, None, child.exit.await) });
    }

    fn start(&mut self, request: &wire::StartRequest, reply: Reply<wire::StartResponse>) {
        let exec = named(&request.exec_id);
        let begun = self.happen(&request.id, exec.map_or(Event::Start, Event::ExecStart));
        match begun.and_then(|()| self.task(&request.id)?.process(exec)) {
            Ok(process) => process.starts.push(reply),
            Err(fault) => answer(reply, Err(fault)),
        }
    }

    fn started(&mut self, id: &str, trace: Trace, started: Result<(), Fault>) -> Result<(), Fault> {
        let task = self.task(id)?;
        task.trace = trace;
        let pid = task.life.pid();
        let fine = started.is_ok();
        // The reply first: no exit may come before it.
        task.init.answer_starts(started.map(|()| pid));
        self.happen(id, if fine { Event::Started } else { Event::StartFailed })
    }

    fn exited(&mut self, id: &str, exec: Option<&str>, exit: Exit) -> Result<(), Fault> {
        let process = self.task(id)?.process(exec)?;
        if let Some(stdio) = &mut process.stdio {
            stdio.exited();
        }
        let Some(exec) = exec else { return self.happen(id, Event::Exited(exit)) };
        // Init's leads its execs into their namespaces; this one is of no use to anybody.
        process.pidfd = None;
        self.happen(id, Event::ExecExited(exec, exit))?;
        self.forget_an_exec(id, exec)
    }

    fn delete(&mut self, request: &wire::DeleteRequest, reply: Reply<wire::DeleteResponse>) {
        let exec = named(&request.exec_id);
        if exec.is_none()
            && let Some(at) = self.unheard.iter().position(|(id, _)| *id == request.id)
            && let Some((_, response)) = self.unheard.remove(at)
        {
            return answer(reply, Ok(response));
        }
        let begun = self.happen(&request.id, exec.map_or(Event::Delete, Event::ExecDelete));
        match begun.and_then(|()| self.task(&request.id)?.process(exec)) {
            Ok(process) => process.deletes.push(reply),
            Err(fault) => answer(reply, Err(fault)),
        }
    }

    fn removed(&mut self, id: &str, removed: Result<(), Fault>) -> Result<(), Fault> {
        let task = self.task(id)?;
        let response = deleted(task.life.seen(None)?);
        let deletes = std::mem::take(&mut task.init.deletes);
        let text = removed.as_ref().err().map(ToString::to_string);
        let mut heard = false;
        for reply in deletes {
            heard |= match &text {
                None => reply.send(Ok(response.clone())),
                Some(text) => reply.send(Err(Fault::Failed(text.clone()))),
            };
        }
        self.happen(id, Event::Deleted(removed.is_ok()))?;
        removed?;
        self.tasks.remove(id);
        if !heard {
            self.unheard.truncate(REMEMBERED - 1);
            self.unheard.push_front((id.to_owned(), response));
        }
        Ok(())
    }

    fn state(&mut self, request: &wire::StateRequest) -> Result<wire::StateResponse, Fault> {
        let task = self.task(&request.id)?;
        let exec = named(&request.exec_id);
        let Seen { status, pid, exit } = task.life.seen(exec)?;
        let bundle = task.remains.bundle.to_string_lossy().into_owned();
        let wanted = &task.process(exec)?.wanted;
        Ok(wire::StateResponse {
            id: exec.unwrap_or(&request.id).to_owned(),
            bundle,
            pid: pid.map_or(0, number),
            status: wire_status(status).into(),
            stdin: wanted.stdin.clone(),
            stdout: wanted.stdout.clone(),
            stderr: wanted.stderr.clone(),
            terminal: wanted.terminal,
            exit_status: exit.map_or(0, |exit| exit.status()),
            exited_at: timestamp(exit),
            ..Default::default()
        })
    }

    fn kill(&mut self, request: &wire::KillRequest) -> Result<Empty, Fault> {
        let signal = i32::try_from(request.signal).ok().filter(|signal| (0..=libc::SIGRTMAX()).contains(signal));
        let signal = signal.ok_or_else(|| Fault::Invalid(format!("{} is not a signal", request.signal)))?;
        let exec = named(&request.exec_id);
        if signal == libc::SIGKILL
            && let Err(fault) = self.look_for_oom_before_kill(&request.id, exec.is_none())
        {
            log::debug!("{fault}");
        }
        let event = if request.all && exec.is_none() { Event::KillAll(signal) } else { Event::Kill(exec, signal) };
        self.happen(&request.id, event)?;
        Ok(Empty::new())
    }

    fn wait(&mut self, request: &wire::WaitRequest, reply: Reply<wire::WaitResponse>) {
        let exec = named(&request.exec_id);
        let task = match self.task(&request.id) {
            Ok(task) => task,
            Err(fault) => return answer(reply, Err(fault)),
        };
        match (task.life.seen(exec), task.process(exec)) {
            (Ok(Seen { exit: Some(exit), .. }), _) => answer(reply, Ok(waited(Some(exit)))),
            (Ok(_), Ok(process)) => {
                // Clients come and go over the years of a container.
                process.waits.retain(|wait| !wait.is_abandoned());
                process.waits.push(reply);
            }
            (Err(refused), _) => answer(reply, Err(refused.into())),
            (_, Err(fault)) => answer(reply, Err(fault)),
        }
    }

    fn pids(&mut self, id: &str) -> Result<wire::PidsResponse, Fault> {
        let task = self.task(id)?;
        let mut pids = match task.with_cgroup(Cgroup::pids) {
            Ok(pids) => pids,
            Err(Fault::NoCgroup) => Vec::new(),
            Err(fault) => return Err(fault),
        };
        if pids.is_empty() {
            // containerd takes a container without any for a leftover, and deletes it.
            pids.push(task.life.pid());
        }
        let execs: HashMap<Pid, &str> = task.life.execs_running().map(|(id, pid)| (pid, id)).collect();
        let processes = pids.into_iter().map(|pid| {
            let info = execs.get(&pid).and_then(|exec_id| {
                pack(&runc::ProcessDetails { exec_id: (*exec_id).to_owned(), ..Default::default() }).ok()
            });
            types::ProcessInfo { pid: number(pid), info: MessageField::from_option(info), ..Default::default() }
        });
        Ok(wire::PidsResponse { processes: processes.collect(), ..Default::default() })
    }

    fn resize(&mut self, request: &wire::ResizePtyRequest) -> Result<Empty, Fault> {
        let process = self.task(&request.id)?.process(named(&request.exec_id))?;
        // More than that no terminal has.
        let (columns, rows) = (request.width.min(u16::MAX.into()) as u16, request.height.min(u16::MAX.into()) as u16);
        process.size = Some((columns, rows));
        if let Some(stdio) = &process.stdio {
            stdio.resize(columns, rows).map_err(|error| Fault::Failed(format!("resize the terminal: {error}")))?;
        }
        Ok(Empty::new())
    }

    fn close_io(&mut self, request: &wire::CloseIORequest) -> Result<Empty, Fault> {
        let process = self.task(&request.id)?.process(named(&request.exec_id))?;
        process.stdin_closed = true;
        if let Some(stdio) = &mut process.stdio {
            stdio.close_stdin();
        }
        Ok(Empty::new())
    }

    fn stats(&mut self, id: &str) -> Result<wire::StatsResponse, Fault> {
        let stats = stats::message(self.task(id)?.with_cgroup(Cgroup::stats)?);
        let stats = stats.map_err(|error| Fault::Failed(format!("encode the metrics: {error}")))?;
        Ok(wire::StatsResponse { stats: MessageField::some(stats), ..Default::default() })
    }

    fn trace(&mut self, id: &str) -> Result<TraceResponse, Fault> {
        let task = self.task(id)?;
        let told = task.trace.told(task.body.borrow().launch()).ok_or_else(|| Fault::Untraced(id.to_owned()))?;
        told.map_err(|error| Fault::Failed(format!("decode the time line of a start: {error}")))
    }

    fn connect(&mut self, id: &str) -> wire::ConnectResponse {
        wire::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: self.task(id).map_or(0, |task| number(task.life.pid())),
            ..Default::default()
        }
    }
}

fn answer<T>(reply: Reply<T>, answer: Result<T, Fault>) {
    if !reply.send(answer) {
        log::debug!("a client did not wait for its answer");
    }
}

/// An exec by its name; an empty one means init.
fn named(exec_id: &str) -> Option<&str> {
    (!exec_id.is_empty()).then_some(exec_id)
}

fn number(pid: Pid) -> u32 {
    pid.as_raw().cast_unsigned()
}

fn waited(exit: Option<Exit>) -> wire::WaitResponse {
    wire::WaitResponse {
        exit_status: exit.map_or(0, |exit| exit.status()),
        exited_at: timestamp(exit),
        ..Default::default()
    }
}

fn deleted(seen: Seen) -> wire::DeleteResponse {
    wire::DeleteResponse {
        pid: seen.pid.map_or(0, number),
        exit_status: seen.exit.map_or(0, |exit| exit.status()),
        exited_at: timestamp(seen.exit),
        ..Default::default()
    }
}

fn wire_status(status: Status) -> types::Status {
    match status {
        Status::Created => types::Status::CREATED,
        Status::Running => types::Status::RUNNING,
        Status::Pausing => types::Status::PAUSING,
        Status::Paused => types::Status::PAUSED,
        Status::Stopped => types::Status::STOPPED,
    }
}

/// Signals every process in the cgroup; signals that nix has no name for, one process after the other.
fn signal_all(cgroup: &Cgroup, signal: i32) -> Result<(), CgroupError> {
    if let Ok(signal) = Signal::try_from(signal) {
        return cgroup.signal_all(signal);
    }
    for pid in cgroup.pids()? {
        if let Err(failed) = pidfd_open(pid).and_then(|pidfd| pidfd_send_signal(pidfd.as_fd(), signal)) {
            log::debug!("signal {signal} to {pid}: {failed}");
        }
    }
    Ok(())
}

//! A [`Plan`] is carried out: by the runtime in [`Launch`], by the child in `child`.
//!
//! Nothing here waits. [`Launch`] names what it waits for ([`Wants`]) and is woken with what came ([`Wake`]): by the
//! shim's event loop, or by the poll loop of a command line. The one who drives it also does the waiting for children;
//! no other call of the process may.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::unistd::{Pid, Uid};

use crate::cgroup::systemd::{Call as Systemd, SavedUnit};
use crate::cgroup::{Cgroup, MemoryFacts};
use crate::hooks;
use crate::host::Host;
use crate::plan::{Entry, Meeting, Plan, Who};
use crate::seccomp::Listener;
use crate::step::{Chore, Step};
use crate::sys::process::{pidfd_getfd, pidfd_open, pidfd_send_signal};
use crate::sys::wait::Exit;
use crate::sys::{Call, Failed, io_failed};

mod birth;
mod child;
mod error;
pub(crate) mod fds;
mod timeline;
mod undo;
mod wire;

pub use error::{Cause, RunError};
pub use fds::Fds;
pub use timeline::{Span, Timeline};
pub(crate) use wire::{Heard, Message};

/// The standard streams of a new process.
#[derive(Debug)]
pub enum Io {
    /// These descriptors.
    Fds {
        /// Standard input.
        stdin: OwnedFd,
        /// Standard output.
        stdout: OwnedFd,
        /// Standard error.
        stderr: OwnedFd,
    },
    /// A terminal of the container's own; [`Launch::console`] has its master.
    Terminal,
}

/// What a new process is put into.
pub enum Into<'a> {
    /// A container of its own, on this host. With a gate, a listening `SOCK_SEQPACKET` socket, the child waits there
    /// for a [`Launch::resume`], so that the runtime need not stay.
    New {
        /// The facts the plan was made from.
        host: &'a Host,
        /// The gate.
        gate: Option<OwnedFd>,
    },
    /// A container that runs.
    Running {
        /// Its cgroup.
        cgroup: &'a Cgroup,
        /// A pidfd of its init.
        init: OwnedFd,
    },
}

/// What a [`Launch`] waits for. Any of them may come.
#[derive(Debug, Default)]
pub struct Wants<'a> {
    /// This descriptor becomes readable.
    pub readable: Option<BorrowedFd<'a>>,
    /// Or this one does: a connection to systemd. It is another one each time there is one after there was none.
    pub systemd: Option<BorrowedFd<'a>>,
    /// One of these children ends. They are known here before they can be reaped; register them at once.
    pub exits: Vec<Pid>,
    /// This moment passes.
    pub deadline: Option<Instant>,
}

/// What came.
#[derive(Debug, Clone, Copy)]
pub enum Wake {
    /// A descriptor is readable.
    Readable,
    /// This child was reaped.
    Exited(Pid, Exit),
    /// The moment has passed.
    Deadline,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It waits for what [`Launch::wants`] says.
    Waiting,
    /// Created. It waits for [`Launch::start`].
    AtGate,
    /// The program was executed. If the child's exit was what woke us, it has ended since.
    Running,
}

/// A process on its way: from clone3 to exec.
///
/// Dropped on the way, it kills the child and removes what it made, as far as that goes without waiting; a driver that
/// wants to see it gone calls [`Launch::abandon`] and goes on driving.
#[derive(Debug)]
pub struct Launch {
    plan: Plan,
    /// The entry the runtime is at.
    at: usize,
    pid: Pid,
    /// Before `wire`, so that a drop kills it before it can hear that nobody is left and do something about it.
    child: Child,
    wire: Option<OwnedFd>,
    /// The child is yet to go on in a copy of itself.
    forks: bool,
    arrived: Option<Meeting>,
    /// `start` was called.
    started: bool,
    /// The child said that only execve is left.
    executing: bool,
    exit: Option<Exit>,
    /// It is another process's child: its exit never comes to us.
    adopted: bool,
    /// It has a gate of its own.
    gated: bool,
    console: Option<OwnedFd>,
    cgroup: Option<Cgroup>,
    /// What systemd is asked for.
    systemd: Option<Systemd>,
    /// The unit that it has begun to start.
    unit: Option<SavedUnit>,
    hook: Option<hooks::Run>,
    hook_stderr: Option<fs::File>,
    /// What the kernel said about the step that fails next.
    words: Option<String>,
    failure: Option<RunError>,
    /// What was known of memory when it failed.
    oom: Option<MemoryFacts>,
    /// When to try again to remove a cgroup in which processes were still dying, and how often yet.
    sweep: Option<(Instant, u32)>,
    timeline: Option<Timeline>,
}

/// The child, which does not outlive a launch that failed.
#[derive(Debug)]
struct Child(Option<OwnedFd>);

impl Child {
    fn kill(&self) {
        let killed = self.0.as_ref().map_or(Ok(()), |pidfd| pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL));
        if let Err(failed) = killed
            && failed.errno != Errno::ESRCH
        {
            log::warn!("cannot kill a container that could not be started: {failed}");
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A process that runs, or waits at its gate, without a launch.
#[derive(Debug)]
pub struct Launched {
    /// Its pid, as we see it.
    pub pid: Pid,
    /// A descriptor for it that cannot mean another process.
    pub pidfd: OwnedFd,
    /// The cgroup that was made for it.
    pub cgroup: Option<Cgroup>,
    /// When each step began and ended.
    pub timeline: Option<Timeline>,
}

impl Launch {
    /// Goes on with a child that waits at its gate: `wire` is a connection to it.
    ///
    /// # Errors
    /// When its pid is no process any more.
    pub fn resume(plan: Plan, pid: Pid, wire: OwnedFd) -> Result<Launch, RunError> {
        let whole = |failed| plan.error(None, failed);
        let pidfd = pidfd_open(pid).map_err(whole)?;
        let timeline = Timeline::new(plan.entries.len()).map_err(whole)?;
        let gate = plan.entries.iter().position(|entry| matches!(entry, Entry::Both(Meeting::Start)));
        let at = gate.unwrap_or(plan.entries.len());
        Ok(Launch { at, arrived: Some(Meeting::Start), adopted: true, ..Launch::of(plan, pid, pidfd, wire, timeline) })
    }

    fn of(mut plan: Plan, pid: Pid, pidfd: OwnedFd, wire: OwnedFd, timeline: Timeline) -> Launch {
        plan.state.pid = pid.as_raw();
        Launch {
            plan,
            at: 0,
            wire: Some(wire),
            pid,
            child: Child(Some(pidfd)),
            forks: false,
            arrived: None,
            started: false,
            executing: false,
            exit: None,
            adopted: false,
            gated: false,
            console: None,
            cgroup: None,
            systemd: None,
            unit: None,
            hook: None,
            hook_stderr: None,
            words: None,
            failure: None,
            oom: None,
            sweep: None,
            timeline: Some(timeline),
        }
    }

    /// The child's pid, as we see it. It may change once, before the first meeting, where a plan goes on in a copy.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// What to wait for.
    pub fn wants(&self) -> Wants<'_> {
        let mut exits = Vec::new();
        if self.exit.is_none() && !self.adopted {
            exits.push(self.pid);
        }
        exits.extend(self.hook.as_ref().map(hooks::Run::pid));
        let readable = self.wire.as_ref().filter(|_| self.failure.is_none()).map(AsFd::as_fd);
        let hook = self.hook.as_ref().and_then(hooks::Run::deadline);
        let systemd = self.systemd.as_ref();
        let deadline = self.sweep.map(|(when, _)| when).or(hook).or(systemd.map(Systemd::deadline));
        Wants { readable, systemd: systemd.and_then(Systemd::fd), exits, deadline }
    }

    /// The master of the container's terminal, once.
    pub fn console(&mut self) -> Option<OwnedFd> {
        self.console.take()
    }

    /// The cgroup this launch made.
    pub fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    /// When each step began and ended.
    pub fn timeline(&self) -> Option<&Timeline> {
        self.timeline.as_ref()
    }

    /// The steps that have begun, in the order of the plan: who does each, its text, and its time.
    pub fn steps(&self) -> impl Iterator<Item = (Who, String, Span)> + '_ {
        self.timeline.iter().flat_map(Timeline::spans).filter_map(|span| {
            let entry = self.plan.entries.get(span.step)?;
            Some((entry.who(), entry.what(), span))
        })
    }

    /// The child is in the container's cgroup; before, if systemd makes that, it gets no further by itself.
    pub fn is_placed(&self) -> bool {
        let left = self.plan.entries.iter().skip(self.at);
        !left.into_iter().any(|entry| matches!(entry, Entry::Parent(Chore::Unit { .. })))
    }

    /// The plan that is carried out.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Lets the child live without us: it runs, or waits at a gate of its own. Whoever is to find it there must know of
    /// it by now: a child at its gate that this process does not let go ends with this process.
    ///
    /// # Errors
    /// When there is no descriptor left for it, or it ended at its gate.
    pub fn into_launched(mut self) -> Result<Launched, RunError> {
        self.entrust()?;
        let missing = Failed { call: Call::PidfdOpen, errno: Errno::EBADF };
        let pidfd = self.child.0.take().ok_or_else(|| self.plan.error(None, missing))?;
        if let Some(cgroup) = &mut self.cgroup {
            cgroup.keep();
        }
        Ok(Launched { pid: self.pid, pidfd, cgroup: self.cgroup, timeline: self.timeline })
    }

    /// Tells a child at a gate of its own that it is on record, so that it waits there without us.
    ///
    /// # Errors
    /// When it ended there. What was made for it goes with [`Launch::abandon`].
    pub fn entrust(&mut self) -> Result<(), RunError> {
        if self.gated && self.arrived == Some(Meeting::Start) {
            self.go()?;
            self.arrived = None;
        }
        Ok(())
    }

    /// Opens the gate. Only once it is there: [`Progress::AtGate`].
    pub fn start(&mut self) {
        self.started = true;
    }

    /// Gives up: the child is killed; drive on until [`Launch::advance`] returns the error.
    pub fn abandon(&mut self, why: &'static str) {
        self.fail(self.plan.error(None, Cause::Abandoned(why)));
    }

    /// Goes on as far as it can without waiting.
    ///
    /// # Errors
    /// The first step that failed, once the child is gone and everything made for it.
    pub fn advance(&mut self, wake: Wake) -> Result<Progress, RunError> {
        if self.failure.is_none()
            && let Err(error) = self.listen()
        {
            self.fail(error);
        }
        match wake {
            Wake::Readable => {}
            Wake::Exited(pid, exit) if pid == self.pid => {
                self.exit = Some(exit);
                // Somebody else may hold its end for a moment: a hook before its exec, a copy it made before it was killed.
                self.wire = None;
            }
            Wake::Exited(pid, exit) => self.hook_ended(pid, exit),
            Wake::Deadline => self.hook_is_late(),
        }
        if self.failure.is_none() {
            match self.walk() {
                Ok(progress) => return Ok(progress),
                Err(error) => self.fail(error),
            }
        }
        self.undo()
    }

    /// Takes in what the child has said.
    fn listen(&mut self) -> Result<(), RunError> {
        while let Some(wire) = &self.wire {
            match Message::receive(wire.as_fd(), false) {
                Ok(Some((Heard::Message(message), fd))) => self.heard(message, fd)?,
                Ok(Some((Heard::Words(words), _))) => self.words = Some(words),
                Ok(None) => self.wire = None,
                Err(Failed { errno: Errno::EAGAIN, .. }) => break,
                // The child ended with words of ours unread.
                Err(Failed { errno: Errno::ECONNRESET, .. }) => self.wire = None,
                Err(failed) => return Err(self.plan.error(None, failed)),
            }
        }
        Ok(())
    }

    fn heard(&mut self, message: Message, fd: Option<OwnedFd>) -> Result<(), RunError> {
        match message {
            Message::Failed { step, failed } => {
                let stderr = self.hook_stderr.as_ref().filter(|_| failed.call == Call::Hook).map(hooks::tail);
                let words = stderr.or(self.words.take());
                let cause = words.map_or(Cause::Failed(failed), |words| Cause::Explained { failed, words });
                return Err(self.plan.error(Some(usize::from(step)), cause));
            }
            Message::Arrived(meeting) => self.arrived = Some(meeting),
            Message::Console => self.console = fd,
            Message::Listener(number) => {
                let sent = self.pass_listener(number).and_then(|()| self.say_go());
                sent.map_err(|failed| self.plan.error(None, Cause::Agent(failed)))?;
            }
            Message::Forked(pid) => {
                self.pid = Pid::from_raw(pid);
                self.plan.state.pid = pid;
                self.exit = None;
                self.forks = false;
                // The one before it ends by itself, and need not be killed.
                drop(std::mem::replace(&mut self.child, Child(fd)).0.take());
            }
            Message::Executing => self.executing = true,
            Message::Go(_) => {}
        }
        Ok(())
    }

    /// Goes through the runtime's part of the list.
    fn walk(&mut self) -> Result<Progress, RunError> {
        loop {
            let Some(entry) = self.plan.entries.get(self.at) else { return Ok(Progress::Running) };
            match entry {
                Entry::Child(Step::Exec { .. }) => {
                    if self.wire.is_some() {
                        return Ok(Progress::Waiting);
                    }
                    if !self.executing {
                        return Err(self.died());
                    }
                    // The child has nothing left to say so with.
                    self.stamp(Timeline::end);
                }
                Entry::Both(meeting) => {
                    // The copy may be here before the word that it is the child now.
                    let other = self.forks && *meeting != Meeting::Placed;
                    if self.arrived != Some(*meeting) || other {
                        return if self.wire.is_none() { Err(self.died()) } else { Ok(Progress::Waiting) };
                    }
                    if *meeting == Meeting::Start && !self.started {
                        return Ok(Progress::AtGate);
                    }
                    self.arrived = None;
                    self.go()?;
                }
                Entry::Parent(Chore::Hook(_)) if self.hook.is_some() => return Ok(Progress::Waiting),
                Entry::Parent(Chore::Unit { .. }) if self.systemd.is_some() => {
                    if self.wire.is_none() {
                        return Err(self.died());
                    }
                    if !self.place().map_err(|cause| self.plan.error(Some(self.at), cause))? {
                        return Ok(Progress::Waiting);
                    }
                    self.stamp(Timeline::end);
                }
                Entry::Parent(_) => {
                    self.stamp(Timeline::begin);
                    let waits = self.chore().map_err(|cause| self.plan.error(Some(self.at), cause))?;
                    if waits {
                        continue;
                    }
                    self.stamp(Timeline::end);
                }
                Entry::Before(_) | Entry::Clone(_) | Entry::Child(_) => {}
            }
            self.at += 1;
        }
    }

    fn stamp(&self, stamp: fn(&Timeline, usize)) {
        if let Some(timeline) = &self.timeline {
            stamp(timeline, self.at);
        }
    }

    fn go(&mut self) -> Result<(), RunError> {
        match self.say_go() {
            Ok(()) => Ok(()),
            Err(Failed { errno: Errno::EPIPE | Errno::ECONNRESET, .. }) => Err(self.died()),
            Err(failed) => Err(self.plan.error(Some(self.at), failed)),
        }
    }

    /// Goes on with the unit the runtime is at; true when it is there, with the child in it and the limits in force.
    fn place(&mut self) -> Result<bool, Cause> {
        let Some(Entry::Parent(Chore::Unit { unit, places, limits })) = self.plan.entries.get(self.at) else {
            return Ok(true);
        };
        let Some(systemd) = &mut self.systemd else { return Ok(true) };
        let started = systemd.advance();
        if systemd.has_begun() {
            self.unit = Some(unit.saved());
        }
        if !started? {
            return Ok(false);
        }
        self.systemd = None;
        let cgroup = self.cgroup.get_or_insert_with(|| Cgroup::of_unit(unit.saved()));
        cgroup.adopt(unit, places, limits, self.pid)?;
        Ok(true)
    }

    /// Does the chore the runtime is at; true if it is one to wait for.
    fn chore(&mut self) -> Result<bool, Cause> {
        let Some(Entry::Parent(chore)) = self.plan.entries.get(self.at) else { return Ok(false) };
        if self.exit.is_some() && !matches!(chore, Chore::Hook(_)) {
            // It was reaped: its number may be a stranger's by now.
            return Err(Cause::Died { exit: None, oom: None });
        }
        match chore {
            Chore::IdMaps { uids, gids, deny_setgroups } => {
                crate::step::map_ids(self.pid, uids, gids, *deny_setgroups)?;
            }
            Chore::OomScoreAdj(score) => {
                let path = format!("/proc/{}/oom_score_adj", self.pid);
                fs::write(path, score.to_string()).map_err(io_failed(Call::Write))?;
            }
            Chore::Rlimits(limits) => limits.iter().try_for_each(|limit| limit.set(self.pid))?,
            Chore::Hook(hook) => {
                let state = &self.plan.state;
                self.hook = Some(hooks::Run::spawn(hook, &state.bundle(), &state.json(hook.moment()))?);
                return Ok(true);
            }
            Chore::Unit { unit, .. } => {
                self.systemd = Some(Systemd::start(unit, self.pid));
                return Ok(true);
            }
            Chore::DelegateCgroup(uid) => {
                self.cgroup.iter().try_for_each(|cgroup| cgroup.delegate(Uid::from_raw(*uid)))?;
            }
            Chore::OpenNamespace { .. } | Chore::Mount(_) | Chore::Cgroup { .. } => {}
        }
        Ok(false)
    }

    fn hook_ended(&mut self, pid: Pid, exit: Exit) {
        let Some(hook) = self.hook.take_if(|hook| hook.pid() == pid) else { return };
        match hook.finish(exit) {
            Ok(()) => {
                self.stamp(Timeline::end);
                self.at += 1;
            }
            Err(error) => self.fail(self.plan.error(Some(self.at), error)),
        }
    }

    fn hook_is_late(&mut self) {
        if let Some(hook) = self.hook.as_mut().filter(|hook| hook.deadline().is_some_and(|when| when <= Instant::now()))
            && let Err(failed) = hook.kill()
        {
            log::warn!("cannot kill a hook whose time is up: {failed}");
        }
    }

    /// The child's end of the wire is closed, and it did not say why.
    fn died(&self) -> RunError {
        let step = self.timeline.as_ref().and_then(Timeline::unfinished).or(Some(self.at));
        self.plan.error(step, Cause::Died { exit: None, oom: None }) // `undo` knows more
    }

    /// Hands the seccomp agent its descriptor, with the state document.
    fn pass_listener(&self, number: i32) -> Result<(), Failed> {
        let filter = self.plan.entries.iter().find_map(|entry| match entry {
            Entry::Child(Step::Seccomp(filter)) => filter.listener.as_ref(),
            _ => None,
        });
        let (Some(Listener { path, metadata }), Some(child)) = (filter, &self.child.0) else { return Ok(()) };
        let listener = pidfd_getfd(child.as_fd(), number)?;
        let agent = crate::sys::socket::connect(path)?;
        crate::sys::socket::send(agent.as_fd(), &self.plan.state.seccomp_json(metadata), Some(listener.as_fd()))
    }

    fn say_go(&self) -> Result<(), Failed> {
        let wire = self.wire.as_ref().ok_or(Failed { call: Call::Sendmsg, errno: Errno::EPIPE })?;
        Message::Go(self.pid.as_raw()).send(wire.as_fd(), None)
    }
}

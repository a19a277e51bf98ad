//! The life of one container and of what is exec'ed into it, as a pure machine: events in, actions out.
//!
//! Nothing here acts, waits or knows a file descriptor; `serve` owns every [`Life`] and carries its actions out in order.
//! What the order is for is in containerd's contract: an exec's exit comes before its container's, no exit overtakes the
//! event or the reply of the request that started the process, and every exit is told once.

use std::collections::BTreeMap;

use nix::unistd::Pid;
use thiserror::Error;

use crate::reap::Exit;

/// One container: its init process and what was exec'ed into it.
#[derive(Debug)]
pub(crate) struct Life {
    id: String,
    init: Init,
    execs: BTreeMap<String, Exec>,
    /// Whether the kernel kills the rest of the container when init ends, because init is pid 1 of a namespace of its own.
    own_pids: bool,
    /// It was killed only to be deleted.
    doomed: bool,
}

/// The init process.
#[derive(Clone, Copy, Debug)]
enum Init {
    /// Made, waiting for its Start.
    Created(Pid),
    /// Let go, and not yet known to have become the program. An exit seen meanwhile is held back.
    Starting(Pid, Option<Exit>),
    Running(Pid),
    Freezing(Pid),
    Paused(Pid),
    Thawing(Pid),
    /// Reaped, but execs of it are still out: clients see it running until their exits have been told.
    Dying(Pid, Exit),
    Stopped(Pid, Exit),
    /// Its remains are being removed.
    Deleting(Pid, Exit),
}

/// A process exec'ed into the container.
#[derive(Clone, Copy, Debug)]
enum Exec {
    Added,
    /// Its Start is under way. An exit seen meanwhile is held back.
    Starting(Option<Exit>),
    Running(Pid),
    Stopped(Pid, Exit),
    Deleting(Pid, Option<Exit>),
}

/// What happens to a container.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event<'a> {
    /// A client asks to start init.
    Start,
    /// Init runs the container's program.
    Started,
    /// Init was let go and could not become the program. It has ended, or is about to.
    StartFailed,
    /// A client asks to pause, or the outcome of that.
    Pause,
    Frozen(bool),
    /// A client asks to resume, or the outcome of that.
    Resume,
    Thawed(bool),
    /// A client asks to change limits.
    Update,
    /// A client asks to signal a process: init, or the exec of that name.
    Kill(Option<&'a str>, i32),
    /// A client asks to signal every process of the container.
    KillAll(i32),
    /// Init was reaped.
    Exited(Exit),
    /// A client asks to remove the container, or the outcome of that.
    Delete,
    Deleted(bool),
    /// A client names a process to exec.
    ExecAdd(&'a str),
    /// A client asks to start it.
    ExecStart(&'a str),
    /// It runs, or could not be started.
    ExecStarted(&'a str, Pid),
    ExecFailed(&'a str),
    /// It was reaped.
    ExecExited(&'a str, Exit),
    /// A client asks to forget it; afterwards, when its output has been dealt with, it is gone.
    ExecDelete(&'a str),
    ExecDeleted(&'a str),
}

/// What is to be done about it, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Let init go on to its program.
    Release,
    /// Run an exec.
    Enter(String),
    /// Stop or continue the container's cgroup.
    Freeze,
    Thaw,
    /// Send a signal to init or to an exec.
    Signal(Option<String>, i32),
    /// Send a signal to every process in the cgroup.
    SignalAll(i32),
    /// Kill whatever is left in the cgroup.
    KillAll,
    /// Look whether the kernel killed for memory, while the cgroup can still tell.
    LookForOom,
    /// Tell those who wait for this process; then nobody waits for it any more.
    Wake(Option<String>, Exit),
    /// Tell those who wait for an exec that it never ran.
    WakeUnstarted(String),
    /// Publish an event.
    Publish(News),
    /// Remove what is left of the container, or of an exec.
    Remove,
    RemoveExec(String),
}

/// The events that containerd hears of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    Start(Pid),
    Exit(Option<String>, Pid, Exit),
    Delete(Pid, Exit),
    ExecAdded(String),
    ExecStarted(String, Pid),
    Paused,
    Resumed,
}

/// Why a request cannot be met in the present state. Clients compare some of these texts.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum Refused {
    #[error("cannot {verb} a {state} process")]
    State { verb: &'static str, state: &'static str },
    #[error("cannot {verb} in a {state} state")]
    ContainerState { verb: &'static str, state: &'static str },
    #[error("process already finished: not found")]
    Finished,
    #[error("process not created: failed precondition")]
    NotStarted,
    #[error("container {0} init process is not running: failed precondition")]
    NoInit(String),
    #[error("id {0}: already exists")]
    Exists(String),
    #[error("process does not exist {0}: not found")]
    NoProcess(String),
}

/// What containerd calls the status of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Created,
    Running,
    Pausing,
    Paused,
    Stopped,
}

/// A process as clients see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) status: Status,
    /// None before an exec's Start.
    pub(crate) pid: Option<Pid>,
    /// Only of a stopped process.
    pub(crate) exit: Option<Exit>,
}

type Decided = Result<Vec<Action>, Refused>;

impl Life {
    /// A container was made, and init waits for its Start.
    pub(crate) fn created(id: &str, pid: Pid, own_pids: bool) -> Self {
        Self { id: id.to_owned(), init: Init::Created(pid), execs: BTreeMap::new(), own_pids, doomed: false }
    }

    /// The process id of init, dead or alive.
    pub(crate) fn pid(&self) -> Pid {
        match self.init {
            Init::Created(pid)
            | Init::Starting(pid, _)
            | Init::Running(pid)
            | Init::Freezing(pid)
            | Init::Paused(pid)
            | Init::Thawing(pid)
            | Init::Dying(pid, _)
            | Init::Stopped(pid, _)
            | Init::Deleting(pid, _) => pid,
        }
    }

    /// The processes that were exec'ed and are alive, by name.
    pub(crate) fn execs_running(&self) -> impl Iterator<Item = (&str, Pid)> {
        self.execs.iter().filter_map(|(id, exec)| match exec {
            Exec::Running(pid) => Some((id.as_str(), *pid)),
            _ => None,
        })
    }

    /// Init, or the exec of that name, as clients see it.
    pub(crate) fn seen(&self, exec: Option<&str>) -> Result<Seen, Refused> {
        let init = match self.init {
            Init::Created(pid) | Init::Starting(pid, _) => Seen { status: Status::Created, pid: Some(pid), exit: None },
            Init::Running(pid) | Init::Dying(pid, _) => Seen { status: Status::Running, pid: Some(pid), exit: None },
            Init::Freezing(pid) => Seen { status: Status::Pausing, pid: Some(pid), exit: None },
            Init::Paused(pid) | Init::Thawing(pid) => Seen { status: Status::Paused, pid: Some(pid), exit: None },
            Init::Stopped(pid, exit) | Init::Deleting(pid, exit) => {
                Seen { status: Status::Stopped, pid: Some(pid), exit: Some(exit) }
            }
        };
        let Some(id) = exec else { return Ok(init) };
        Ok(match *self.exec(id)? {
            Exec::Added | Exec::Starting(_) | Exec::Deleting(_, None) => {
                Seen { status: Status::Created, pid: None, exit: None }
            }
            // A frozen cgroup freezes them all.
            Exec::Running(pid) => match init.status {
                status @ (Status::Pausing | Status::Paused) => Seen { status, pid: Some(pid), exit: None },
                _ => Seen { status: Status::Running, pid: Some(pid), exit: None },
            },
            Exec::Stopped(pid, exit) | Exec::Deleting(pid, Some(exit)) => {
                Seen { status: Status::Stopped, pid: Some(pid), exit: Some(exit) }
            }
        })
    }

    /// Decides and never acts. When it refuses, nothing has changed.
    pub(crate) fn on(&mut self, event: Event<'_>) -> Decided {
        match event {
            Event::Start => match self.init {
                Init::Created(pid) if !self.doomed => self.turn(Init::Starting(pid, None), vec![Action::Release]),
                // Whoever asks again, after a connection that was lost, shares the answer.
                Init::Starting(..) => Ok(vec![]),
                _ => self.refuse("start"),
            },
            Event::Started => match self.init {
                Init::Starting(pid, exit) => {
                    self.init = Init::Running(pid);
                    let mut actions = vec![Action::Publish(News::Start(pid))];
                    if let Some(exit) = exit {
                        actions.extend(self.exited(exit));
                    }
                    Ok(actions)
                }
                _ => self.refuse("start"),
            },
            Event::StartFailed => Ok(match self.init {
                Init::Starting(pid, exit) => {
                    self.init = Init::Running(pid);
                    exit.map_or(vec![], |exit| self.exited(exit))
                }
                _ => vec![],
            }),
            Event::Pause => match self.init {
                Init::Running(pid) => self.turn(Init::Freezing(pid), vec![Action::Freeze]),
                _ => self.refuse("pause"),
            },
            Event::Frozen(done) => Ok(match self.init {
                Init::Freezing(pid) if done => {
                    self.init = Init::Paused(pid);
                    vec![Action::Publish(News::Paused)]
                }
                Init::Freezing(pid) => {
                    self.init = Init::Running(pid);
                    vec![]
                }
                // It died meanwhile, perhaps killed; nothing is left to be paused.
                _ => vec![Action::Thaw],
            }),
            Event::Resume => match self.init {
                Init::Paused(pid) => self.turn(Init::Thawing(pid), vec![Action::Thaw]),
                _ => self.refuse("resume"),
            },
            Event::Thawed(done) => Ok(match self.init {
                Init::Thawing(pid) if done => {
                    self.init = Init::Running(pid);
                    vec![Action::Publish(News::Resumed)]
                }
                Init::Thawing(pid) => {
                    self.init = Init::Paused(pid);
                    vec![]
                }
                _ => vec![],
            }),
            Event::Update => match self.init {
                Init::Dying(..) | Init::Stopped(..) | Init::Deleting(..) => self.refuse("update"),
                _ => Ok(vec![]),
            },
            Event::Kill(None, signal) => match self.init {
                Init::Dying(..) | Init::Stopped(..) | Init::Deleting(..) => Err(Refused::Finished),
                // A v1 freezer holds back even SIGKILL.
                Init::Paused(_) | Init::Freezing(_) if signal == libc::SIGKILL => {
                    Ok(vec![Action::Signal(None, signal), Action::Thaw])
                }
                _ => Ok(vec![Action::Signal(None, signal)]),
            },
            Event::KillAll(signal) => match self.init {
                Init::Dying(..) | Init::Stopped(..) | Init::Deleting(..) => Err(Refused::Finished),
                Init::Paused(_) | Init::Freezing(_) if signal == libc::SIGKILL => {
                    Ok(vec![Action::SignalAll(signal), Action::Thaw])
                }
                _ => Ok(vec![Action::SignalAll(signal)]),
            },
            Event::Kill(Some(id), signal) => match self.exec(id)? {
                Exec::Added | Exec::Starting(_) => Err(Refused::NotStarted),
                Exec::Running(_) => Ok(vec![Action::Signal(Some(id.to_owned()), signal)]),
                Exec::Stopped(..) | Exec::Deleting(..) => Err(Refused::Finished),
            },
            Event::Exited(exit) => Ok(match self.init {
                // Its Start has not been answered yet, and comes first.
                Init::Starting(pid, None) => {
                    self.init = Init::Starting(pid, Some(exit));
                    vec![]
                }
                _ => self.exited(exit),
            }),
            Event::Delete => match self.init {
                Init::Created(_) => {
                    self.doomed = true;
                    Ok(vec![Action::Signal(None, libc::SIGKILL)])
                }
                Init::Stopped(pid, exit) => self.turn(Init::Deleting(pid, exit), vec![Action::Remove]),
                // Whoever asks again shares the answer.
                Init::Deleting(..) => Ok(vec![]),
                Init::Dying(..) if self.doomed => Ok(vec![]),
                _ => self.refuse("delete"),
            },
            Event::Deleted(done) => Ok(match self.init {
                Init::Deleting(pid, exit) if done => vec![Action::Publish(News::Delete(pid, exit))],
                Init::Deleting(pid, exit) => {
                    self.init = Init::Stopped(pid, exit);
                    vec![]
                }
                _ => vec![],
            }),
            Event::ExecAdd(id) => match self.init {
                Init::Created(_) | Init::Starting(..) | Init::Running(_) if self.execs.contains_key(id) => {
                    Err(Refused::Exists(id.to_owned()))
                }
                Init::Created(_) | Init::Starting(..) | Init::Running(_) => {
                    self.execs.insert(id.to_owned(), Exec::Added);
                    Ok(vec![Action::Publish(News::ExecAdded(id.to_owned()))])
                }
                _ => Err(Refused::ContainerState { verb: "exec", state: self.state() }),
            },
            Event::ExecStart(id) => match (*self.exec(id)?, self.init) {
                (Exec::Added, Init::Dying(..) | Init::Stopped(..) | Init::Deleting(..)) => {
                    Err(Refused::NoInit(self.id.clone()))
                }
                (Exec::Added, Init::Freezing(_) | Init::Paused(_) | Init::Thawing(_)) => {
                    Err(Refused::ContainerState { verb: "exec", state: "paused" })
                }
                (Exec::Added, _) => {
                    self.execs.insert(id.to_owned(), Exec::Starting(None));
                    Ok(vec![Action::Enter(id.to_owned())])
                }
                (Exec::Starting(_), _) => Ok(vec![]),
                (exec, _) => Err(Refused::State { verb: "start", state: exec.state() }),
            },
            Event::ExecStarted(id, pid) => Ok(match *self.exec(id)? {
                Exec::Starting(exit) => {
                    self.execs.insert(id.to_owned(), Exec::Running(pid));
                    let mut actions = vec![Action::Publish(News::ExecStarted(id.to_owned(), pid))];
                    if let Some(exit) = exit {
                        actions.extend(self.exec_exited(id, pid, exit));
                    }
                    actions
                }
                _ => vec![],
            }),
            Event::ExecFailed(id) => Ok(match *self.exec(id)? {
                Exec::Starting(_) => {
                    self.execs.insert(id.to_owned(), Exec::Added);
                    let mut actions = vec![Action::WakeUnstarted(id.to_owned())];
                    actions.extend(self.last_exec_gone());
                    actions
                }
                _ => vec![],
            }),
            Event::ExecExited(id, exit) => Ok(match *self.exec(id)? {
                Exec::Starting(None) => {
                    self.execs.insert(id.to_owned(), Exec::Starting(Some(exit)));
                    vec![]
                }
                Exec::Running(pid) => self.exec_exited(id, pid, exit),
                _ => vec![],
            }),
            Event::ExecDelete(id) => match *self.exec(id)? {
                Exec::Added => {
                    self.execs.insert(id.to_owned(), Exec::Deleting(Pid::from_raw(0), None));
                    Ok(vec![Action::WakeUnstarted(id.to_owned()), Action::RemoveExec(id.to_owned())])
                }
                Exec::Stopped(pid, exit) => {
                    self.execs.insert(id.to_owned(), Exec::Deleting(pid, Some(exit)));
                    Ok(vec![Action::RemoveExec(id.to_owned())])
                }
                // Whoever asks again shares the answer.
                Exec::Deleting(..) => Ok(vec![]),
                exec @ (Exec::Starting(_) | Exec::Running(_)) => {
                    Err(Refused::State { verb: "delete", state: exec.state() })
                }
            },
            Event::ExecDeleted(id) => {
                self.exec(id)?;
                self.execs.remove(id);
                Ok(vec![])
            }
        }
    }

    /// Init was reaped. From now on no exec may start; the exits of those that run are told first.
    fn exited(&mut self, exit: Exit) -> Vec<Action> {
        let mut actions = vec![];
        match self.init {
            Init::Dying(..) | Init::Stopped(..) | Init::Deleting(..) => return actions,
            Init::Freezing(_) | Init::Paused(_) | Init::Thawing(_) => actions.push(Action::Thaw),
            Init::Created(_) | Init::Starting(..) | Init::Running(_) => {}
        }
        self.init = Init::Dying(self.pid(), exit);
        if !self.own_pids {
            actions.push(Action::KillAll);
        }
        actions.extend(self.last_exec_gone());
        actions
    }

    fn exec_exited(&mut self, id: &str, pid: Pid, exit: Exit) -> Vec<Action> {
        self.execs.insert(id.to_owned(), Exec::Stopped(pid, exit));
        let id = Some(id.to_owned());
        let mut actions = vec![Action::Wake(id.clone(), exit), Action::Publish(News::Exit(id, pid, exit))];
        actions.extend(self.last_exec_gone());
        actions
    }

    /// Tells of init's exit, if it waited only for the exits of execs.
    fn last_exec_gone(&mut self) -> Vec<Action> {
        let Init::Dying(pid, exit) = self.init else { return vec![] };
        if self.execs.values().any(|exec| matches!(exec, Exec::Starting(_) | Exec::Running(_))) {
            return vec![];
        }
        let mut actions =
            vec![Action::LookForOom, Action::Wake(None, exit), Action::Publish(News::Exit(None, pid, exit))];
        self.init = Init::Stopped(pid, exit);
        if self.doomed {
            self.init = Init::Deleting(pid, exit);
            actions.push(Action::Remove);
        }
        actions
    }

    fn exec(&self, id: &str) -> Result<&Exec, Refused> {
        self.execs.get(id).ok_or_else(|| Refused::NoProcess(id.to_owned()))
    }

    fn turn(&mut self, init: Init, actions: Vec<Action>) -> Decided {
        self.init = init;
        Ok(actions)
    }

    fn refuse(&self, verb: &'static str) -> Decided {
        Err(Refused::State { verb, state: self.state() })
    }

    fn state(&self) -> &'static str {
        match self.init {
            Init::Created(_) | Init::Starting(..) => "created",
            Init::Running(_) | Init::Dying(..) => "running",
            Init::Freezing(_) | Init::Paused(_) | Init::Thawing(_) => "paused",
            Init::Stopped(..) | Init::Deleting(..) => "stopped",
        }
    }
}

impl Exec {
    fn state(self) -> &'static str {
        match self {
            Self::Added | Self::Starting(_) => "created",
            Self::Running(_) => "running",
            Self::Stopped(..) | Self::Deleting(..) => "stopped",
        }
    }
}

#[cfg(test)]
mod tests;

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
mod tests {
    use std::time::SystemTime;

    use libcontainer::sys::wait::Exit as End;

    use super::*;

    const INIT: Pid = Pid::from_raw(100);

    fn exit(code: i32) -> Exit {
        Exit { end: End::Code(code), at: SystemTime::UNIX_EPOCH }
    }

    fn created() -> Life {
        Life::created("c", INIT, true)
    }

    fn running() -> Life {
        let mut life = created();
        life.on(Event::Start).unwrap();
        life.on(Event::Started).unwrap();
        life
    }

    fn with_exec(life: &mut Life, id: &str, pid: i32) {
        life.on(Event::ExecAdd(id)).unwrap();
        life.on(Event::ExecStart(id)).unwrap();
        life.on(Event::ExecStarted(id, Pid::from_raw(pid))).unwrap();
    }

    fn published(actions: &[Action]) -> Vec<&News> {
        actions.iter().filter_map(|action| if let Action::Publish(news) = action { Some(news) } else { None }).collect()
    }

    #[test]
    fn an_exit_during_start_is_told_after_the_start() {
        let mut life = created();
        assert_eq!(life.on(Event::Start).unwrap(), [Action::Release]);
        assert_eq!(life.on(Event::Exited(exit(3))).unwrap(), []);
        assert_eq!(life.seen(None).unwrap().status, Status::Created);
        let actions = life.on(Event::Started).unwrap();
        assert_eq!(published(&actions), [&News::Start(INIT), &News::Exit(None, INIT, exit(3))]);
        assert_eq!(life.seen(None).unwrap(), Seen { status: Status::Stopped, pid: Some(INIT), exit: Some(exit(3)) });
    }

    #[test]
    fn a_start_that_is_asked_for_again_is_made_once() {
        let mut life = created();
        assert_eq!(life.on(Event::Start).unwrap(), [Action::Release]);
        assert_eq!(life.on(Event::Start).unwrap(), []);
        life.on(Event::Started).unwrap();
        assert!(life.on(Event::Start).is_err(), "it is over");
        life.on(Event::ExecAdd("e")).unwrap();
        assert_eq!(life.on(Event::ExecStart("e")).unwrap(), [Action::Enter("e".into())]);
        assert_eq!(life.on(Event::ExecStart("e")).unwrap(), []);
    }

    #[test]
    fn the_exits_of_execs_come_first() {
        let mut life = running();
        with_exec(&mut life, "e", 101);
        assert_eq!(life.on(Event::Exited(exit(0))).unwrap(), []);
        assert_eq!(life.seen(None).unwrap().status, Status::Running, "until its exit has been told");
        assert_eq!(life.on(Event::Kill(None, 15)), Err(Refused::Finished));
        let actions = life.on(Event::ExecExited("e", exit(9))).unwrap();
        let exec = News::Exit(Some("e".into()), Pid::from_raw(101), exit(9));
        assert_eq!(published(&actions), [&exec, &News::Exit(None, INIT, exit(0))]);
    }

    #[test]
    fn no_exec_starts_once_init_is_reaped() {
        let mut life = running();
        with_exec(&mut life, "running", 101);
        life.on(Event::ExecAdd("late")).unwrap();
        life.on(Event::Exited(exit(0))).unwrap();
        let refused = life.on(Event::ExecStart("late")).unwrap_err();
        assert_eq!(refused.to_string(), "container c init process is not running: failed precondition");
    }

    #[test]
    fn an_exec_that_fails_to_start_lets_inits_exit_through() {
        let mut life = running();
        life.on(Event::ExecAdd("e")).unwrap();
        life.on(Event::ExecStart("e")).unwrap();
        assert_eq!(life.on(Event::Exited(exit(1))).unwrap(), []);
        let actions = life.on(Event::ExecFailed("e")).unwrap();
        assert_eq!(actions[0], Action::WakeUnstarted("e".into()));
        assert_eq!(published(&actions), [&News::Exit(None, INIT, exit(1))]);
        assert_eq!(life.seen(Some("e")).unwrap().status, Status::Created);
    }

    #[test]
    fn shared_pids_are_killed_and_an_oom_is_looked_for_before_the_exit_is_told() {
        let mut life = Life::created("c", INIT, false);
        let actions = life.on(Event::Exited(exit(0))).unwrap();
        let expected = [
            Action::KillAll,
            Action::LookForOom,
            Action::Wake(None, exit(0)),
            Action::Publish(News::Exit(None, INIT, exit(0))),
        ];
        assert_eq!(actions, expected);
    }

    #[test]
    fn a_created_container_is_killed_to_be_deleted() {
        let mut life = created();
        assert_eq!(life.on(Event::Delete).unwrap(), [Action::Signal(None, libc::SIGKILL)]);
        let actions = life.on(Event::Exited(exit(137))).unwrap();
        assert_eq!(actions.last(), Some(&Action::Remove));
        assert_eq!(published(&life.on(Event::Deleted(true)).unwrap()), [&News::Delete(INIT, exit(137))]);
    }

    #[test]
    fn a_failed_delete_can_be_tried_again() {
        let mut life = running();
        life.on(Event::Exited(exit(0))).unwrap();
        assert_eq!(life.on(Event::Delete).unwrap(), [Action::Remove]);
        assert_eq!(life.on(Event::Delete).unwrap(), [], "under way");
        assert_eq!(life.on(Event::Deleted(false)).unwrap(), []);
        assert_eq!(life.on(Event::Delete).unwrap(), [Action::Remove]);
    }

    #[test]
    fn refusals_read_as_clients_expect() {
        let mut life = running();
        let text = |refused: Decided| refused.unwrap_err().to_string();
        assert_eq!(text(life.on(Event::Start)), "cannot start a running process");
        assert_eq!(text(life.on(Event::Delete)), "cannot delete a running process");
        assert_eq!(text(life.on(Event::ExecStart("x"))), "process does not exist x: not found");
        life.on(Event::ExecAdd("x")).unwrap();
        assert_eq!(text(life.on(Event::ExecAdd("x"))), "id x: already exists");
        assert_eq!(text(life.on(Event::Kill(Some("x"), 9))), "process not created: failed precondition");
        life.on(Event::Pause).unwrap();
        assert_eq!(life.seen(None).unwrap().status, Status::Pausing);
        life.on(Event::Frozen(true)).unwrap();
        assert_eq!(text(life.on(Event::ExecAdd("y"))), "cannot exec in a paused state");
        life.on(Event::Exited(exit(0))).unwrap();
        assert_eq!(text(life.on(Event::ExecAdd("y"))), "cannot exec in a stopped state");
        assert_eq!(text(life.on(Event::Start)), "cannot start a stopped process");
        assert_eq!(text(life.on(Event::Kill(None, 9))), "process already finished: not found");
    }

    /// Numbers that look random and are the same every time (xorshift).
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % sides
        }
    }

    /// Whatever happens in whatever order: no panic, the grammar of events holds, and every exit is told once.
    #[test]
    fn any_order_of_events_keeps_the_grammar() {
        for seed in 1..20_000 {
            let mut dice = Dice(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
            let (mut life, mut actions) = (Life::created("c", INIT, dice.roll(2) == 0), Vec::new());
            // What the world may still report: the machine is only told of what it asked for, and of each exit once.
            let mut init_alive = true;
            let mut execs_alive = std::collections::BTreeSet::new();
            let mut told = Vec::new();
            for _ in 0..60 {
                let id = ["a", "b"][usize::try_from(dice.roll(2)).unwrap()];
                let event = match dice.roll(18) {
                    0 => Event::Start,
                    1 => Event::Started,
                    2 => Event::Pause,
                    3 => Event::Frozen(dice.roll(2) == 0),
                    4 => Event::Resume,
                    5 => Event::Thawed(dice.roll(2) == 0),
                    6 => Event::Update,
                    7 => Event::Kill(None, 9),
                    8 => Event::Kill(Some(id), 15),
                    9 | 10 if init_alive && dice.roll(4) == 0 => {
                        init_alive = false;
                        Event::Exited(exit(7))
                    }
                    11 => Event::Delete,
                    12 => Event::Deleted(dice.roll(2) == 0),
                    13 => Event::ExecAdd(id),
                    14 => Event::ExecStart(id),
                    15 if execs_alive.contains(id) => Event::ExecStarted(id, Pid::from_raw(200)),
                    16 if execs_alive.remove(id) => Event::ExecExited(id, exit(8)),
                    17 => Event::ExecDelete(id),
                    _ => continue,
                };
                if let Ok(more) = life.on(event) {
                    for action in &more {
                        if let Action::Enter(id) = action {
                            execs_alive.insert(if id == "a" { "a" } else { "b" });
                        }
                    }
                    actions.extend(more);
                }
            }
            for action in &actions {
                match action {
                    Action::Publish(news) => told.push(news),
                    Action::Wake(None, _) => {
                        assert!(
                            !told.iter().any(|news| matches!(news, News::Exit(None, ..))),
                            "seed {seed}: woken late"
                        );
                    }
                    _ => {}
                }
            }
            let place = |wanted: fn(&News) -> bool| {
                let places: Vec<usize> = (0..told.len()).filter(|&at| wanted(told[at])).collect();
                places
            };
            let starts = place(|news| matches!(news, News::Start(_)));
            let exits = place(|news| matches!(news, News::Exit(None, ..)));
            let deletes = place(|news| matches!(news, News::Delete(..)));
            assert!(starts.len() <= 1 && exits.len() <= 1, "seed {seed}: {told:?}");
            assert!(starts.iter().all(|start| exits.iter().all(|exit| start < exit)), "seed {seed}: {told:?}");
            assert!(
                deletes.iter().all(|delete| exits.first().is_some_and(|exit| exit < delete)),
                "seed {seed}: {told:?}"
            );
            let after_exit = exits.first().map_or(&[][..], |&exit| &told[exit + 1..]);
            assert!(after_exit.iter().all(|news| matches!(news, News::Delete(..))), "seed {seed}: {told:?}");
        }
    }
}

//! The life of a container, event by event.

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
                    assert!(!told.iter().any(|news| matches!(news, News::Exit(None, ..))), "seed {seed}: woken late");
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
        assert!(deletes.iter().all(|delete| exits.first().is_some_and(|exit| exit < delete)), "seed {seed}: {told:?}");
        let after_exit = exits.first().map_or(&[][..], |&exit| &told[exit + 1..]);
        assert!(after_exit.iter().all(|news| matches!(news, News::Delete(..))), "seed {seed}: {told:?}");
    }
}

//! The child between clone3 and exec: one function that never returns.
//!
//! It leaves by exec or `_exit`, never by return or unwind: dropping what it inherited from the runtime would undo it
//! there. It does not log. Failing, it writes eight bytes; the runtime holds the same plan and does the talking.

use std::os::fd::AsFd;

use super::wire::send_words;
use super::{Fds, Message, Timeline};
use crate::plan::{Entry, Meeting, Plan};
use crate::step::Step;
use crate::sys::process::exit_now;
use crate::sys::{Failed, socket};

pub(super) fn live(plan: &Plan, mut fds: Fds, timeline: &Timeline) -> ! {
    // A filter before the last meeting allows far more than what follows one after it needs; there, the times matter.
    let last_meeting = plan.entries.iter().rposition(|entry| matches!(entry, Entry::Both(_)));
    for (number, entry) in plan.entries.iter().enumerate() {
        let done = match entry {
            Entry::Before(_) | Entry::Clone(_) | Entry::Parent(_) => continue,
            Entry::Child(step) => {
                timeline.begin(number);
                if matches!(step, Step::Seccomp(_)) && last_meeting.is_none_or(|meeting| meeting < number) {
                    timeline.stop();
                }
                step.run(&mut fds)
            }
            Entry::Both(meeting) => {
                timeline.begin(number);
                meet(*meeting, &mut fds)
            }
        };
        if let Err(failed) = done {
            let words = fds.complaint.take().map_or(Ok(()), |words| send_words(fds.wire.as_fd(), &words));
            let told = Message::Failed { step: number as u16, failed }.write(fds.wire.as_fd());
            exit_now(1 + i32::from(words.and(told).is_err()));
        }
        timeline.end(number);
    }
    exit_now(1)
}

/// Says that we are here and waits for the runtime. Without a runtime there is nothing to live for.
///
/// A gate is waited at only after the runtime has said that we are on record: one that is killed before that leaves
/// nobody behind whom it alone knew of.
fn meet(meeting: Meeting, fds: &mut Fds) -> Result<(), Failed> {
    Message::Arrived(meeting).write(fds.wire.as_fd())?;
    let gate = if meeting == Meeting::Start { fds.gate.take() } else { None };
    if gate.is_some() && !matches!(Message::wait(fds.wire.as_fd())?, Some(Message::Go(_))) {
        exit_now(1);
    }
    loop {
        if let Some(gate) = &gate {
            fds.wire = socket::accept(gate.as_fd())?;
        }
        match Message::wait(fds.wire.as_fd())? {
            Some(Message::Go(pid)) => {
                fds.state.pid = pid;
                return Ok(());
            }
            // A `start` that was killed before it said go: wait for the next one.
            None if gate.is_some() => {}
            _ => exit_now(1),
        }
    }
}

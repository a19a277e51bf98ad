//! Pausing, which ends when the kernel says that all is frozen, and resuming.

use libcontainer::cgroup::{Events, FreezerState, Freezing};
use runtime_v2_api::Empty;

use super::{Done, House, answer};
use crate::{
    launch::freezer,
    service::{Fault, Reply},
    task::Event,
};

impl House {
    pub(super) fn pause(&mut self, id: &str, reply: Reply<Empty>) {
        match self.happen(id, Event::Pause).and_then(|()| self.task(id)) {
            Ok(task) => task.pause = Some(reply),
            Err(fault) => answer(reply, Err(fault)),
        }
    }

    /// The freezer was told, unless it refused. The kernel may need a moment.
    pub(super) fn freezing(&mut self, id: &str, begun: Result<(Freezing, Option<Events>), Fault>) -> Result<(), Fault> {
        match begun {
            Ok((freezing, events)) => {
                self.task(id)?.freezing = Some((freezing, events));
                self.wait_for_freezer(id)
            }
            Err(fault) => {
                self.happen(id, Event::Frozen(false))?;
                Err(fault)
            }
        }
    }

    fn wait_for_freezer(&mut self, id: &str) -> Result<(), Fault> {
        let Some((_, events)) = &self.task(id)?.freezing else { return Ok(()) };
        let stirs = freezer::stirs(events.as_ref());
        let id = id.to_owned();
        self.chore(async move {
            stirs.await;
            Done::FreezerStirred(id)
        });
        Ok(())
    }

    pub(super) fn look_at_freezer(&mut self, id: &str) -> Result<(), Fault> {
        let task = self.task(id)?;
        // If it is gone, the container has ended meanwhile.
        let Some((mut freezing, events)) = task.freezing.take() else { return Ok(()) };
        if let Some(events) = &events {
            // Arms the next notice, before the look that decides whether there needs to be one.
            events.read().map_err(|errno| Fault::Failed(format!("read cgroup.events: {errno}")))?;
        }
        match task.with_cgroup(|cgroup| freezing.poll(cgroup)) {
            Ok(FreezerState::Frozen) => self.frozen(id, Ok(())),
            Ok(FreezerState::Freezing | FreezerState::Thawed) => {
                task.freezing = Some((freezing, events));
                self.wait_for_freezer(id)
            }
            Err(fault) => self.frozen(id, Err(fault)),
        }
    }

    fn frozen(&mut self, id: &str, frozen: Result<(), Fault>) -> Result<(), Fault> {
        let fine = frozen.is_ok();
        if let Some(reply) = self.task(id)?.pause.take() {
            answer(reply, frozen.map(|()| Empty::new()));
        }
        self.happen(id, Event::Frozen(fine))
    }

    pub(super) fn resume(&mut self, id: &str) -> Result<Empty, Fault> {
        let thawed = self.happen(id, Event::Resume);
        if let Err(Fault::Refused(_) | Fault::NoContainer) = thawed {
            return thawed.map(|()| Empty::new());
        }
        self.happen(id, Event::Thawed(thawed.is_ok()))?;
        thawed.map(|()| Empty::new())
    }
}

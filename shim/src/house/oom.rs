//! What the kernel kills for memory, told once for each look that finds more.

use std::os::fd::AsFd as _;

use libcontainer::{
    cgroup::{Cgroup, OomWatch},
    sys::wait::Exit as End,
};
use runtime_v2_api::{events, topic};
use tokio::{io::Interest, sync::oneshot};

use super::{Done, House};
use crate::{service::Fault, sys::ready};

pub(super) struct Oom {
    watch: OomWatch,
    /// A client had its first process killed. That was looked for before, so that its end says nothing more.
    sent: bool,
    /// Dropped with the container, which ends the chore that waits for the watch to stir.
    alive: Option<oneshot::Sender<()>>,
}

impl House {
    /// Begins to listen for what the kernel kills for memory.
    pub(super) fn watch_for_oom(&mut self, id: &str) {
        let Ok(task) = self.task(id) else { return };
        match task.with_cgroup(Cgroup::oom_watch) {
            Ok(watch) => task.oom = watch.map(|watch| Oom { watch, sent: false, alive: None }),
            Err(fault) => log::warn!("container {id}: its out-of-memory kills will not be told: {fault}"),
        }
        self.wait_for_oom(id);
    }

    pub(super) fn wait_for_oom(&mut self, id: &str) {
        let Ok(task) = self.task(id) else { return };
        // Init may have been moved out of a cgroup that was then removed.
        let Some(oom) = task.oom.as_mut().filter(|oom| !oom.watch.is_over()) else { return };
        let interest = if oom.watch.by_priority() { Interest::PRIORITY } else { Interest::READABLE };
        let stirs = match ready::watch_copy(oom.watch.as_fd(), interest) {
            Ok(stirs) => stirs,
            Err(error) => return log::warn!("container {id}: its out-of-memory kills will not be told: {error}"),
        };
        let (alive, gone) = oneshot::channel();
        oom.alive = Some(alive);
        let id = id.to_owned();
        self.chore(async move {
            tokio::select! {
                _ = stirs.ready(interest) => Done::MemoryStirred(id),
                _ = gone => Done::Moot,
            }
        });
    }

    /// The same before a client's own SIGKILL, so that the two are told apart.
    pub(super) fn look_for_oom_before_kill(&mut self, id: &str, init: bool) -> Result<(), Fault> {
        self.look_for_oom(id)?;
        if let (Some(oom), true) = (&mut self.task(id)?.oom, init) {
            oom.sent = true;
        }
        Ok(())
    }

    /// Publishes what the kernel killed for memory since the last look.
    pub(super) fn look_for_oom(&mut self, id: &str) -> Result<(), Fault> {
        let task = self.task(id)?;
        let exit = task.life.seen(None)?.exit;
        let Some(oom) = &mut task.oom else { return Ok(()) };
        let kills = match exit {
            Some(exit) if is_by_the_kernel(exit.end, oom.sent) => oom.watch.read_last(),
            _ => oom.watch.read(),
        };
        let kills = kills.map_err(|errno| Fault::Failed(format!("look for out-of-memory kills: {errno}")))?;
        if kills > 0 {
            let task = self.task(id)?;
            let facts = |watch: &OomWatch| task.with_cgroup(|cgroup| Ok(watch.facts(cgroup))).ok().flatten();
            match task.oom.as_ref().and_then(|oom| facts(&oom.watch)) {
                Some(facts) => log::info!("container {id}: {facts}"),
                None => log::info!("container {id}: killed for lack of memory; the numbers went with its cgroup"),
            }
            let event = events::TaskOOM { container_id: id.to_owned(), ..Default::default() };
            self.publisher.publish(topic::TASK_OOM, &event);
        }
        Ok(())
    }
}

/// Whether it can be that the kernel killed what has ended so, after a client has had it killed or not.
fn is_by_the_kernel(end: End, sent: bool) -> bool {
    end == End::Signal(libc::SIGKILL) && !sent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_ends_by_himself_or_by_a_client_was_not_killed_for_memory() {
        assert!(is_by_the_kernel(End::Signal(libc::SIGKILL), false));
        assert!(!is_by_the_kernel(End::Code(128 + libc::SIGKILL), false), "it only says so");
        assert!(!is_by_the_kernel(End::Signal(libc::SIGTERM), false));
        assert!(!is_by_the_kernel(End::Signal(libc::SIGKILL), true));
    }
}

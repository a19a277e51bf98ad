//! What the kernel kills for memory, told once for each look that finds more.

use std::os::fd::AsFd as _;

use libcontainer::cgroup::{Cgroup, OomWatch};
use runtime_v2_api::{events, topic};
use tokio::{io::Interest, sync::oneshot};

use super::{Done, House, watch};
use crate::service::Fault;

/// The exit status of a process that SIGKILL ended.
const KILLED: u32 = 128 + libc::SIGKILL.cast_unsigned();

pub(super) struct Oom {
    watch: OomWatch,
    /// Dropped with the container, which ends the chore that waits for the watch to stir.
    alive: Option<oneshot::Sender<()>>,
}

impl House {
    /// Begins to listen for what the kernel kills for memory.
    pub(super) fn watch_for_oom(&mut self, id: &str) {
        let Ok(task) = self.task(id) else { return };
        match task.with_cgroup(Cgroup::oom_watch) {
            Ok(watch) => task.oom = watch.map(|watch| Oom { watch, alive: None }),
            Err(fault) => log::warn!("container {id}: its out-of-memory kills will not be told: {fault}"),
        }
        self.wait_for_oom(id);
    }

    pub(super) fn wait_for_oom(&mut self, id: &str) {
        let Ok(task) = self.task(id) else { return };
        // Init may have been moved out of a cgroup that was then removed.
        let Some(oom) = task.oom.as_mut().filter(|oom| !oom.watch.is_over()) else { return };
        let interest = if oom.watch.by_priority() { Interest::PRIORITY } else { Interest::READABLE };
        let Some(stirs) = watch(oom.watch.as_fd(), interest) else { return };
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

    /// Publishes what the kernel killed for memory since the last look.
    pub(super) fn look_for_oom(&mut self, id: &str) -> Result<(), Fault> {
        let task = self.task(id)?;
        let exit = task.life.seen(None)?.exit;
        let Some(oom) = &mut task.oom else { return Ok(()) };
        let kills = match exit {
            Some(exit) if exit.status() == KILLED => oom.watch.read_last(),
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

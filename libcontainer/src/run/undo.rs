//! A launch that failed: what was made goes again, and the failure comes when it is gone.

use std::time::{Duration, Instant};

use super::{Cause, Launch, Progress, RunError, Timeline};
use crate::cgroup::systemd::{Call as Systemd, Why};
use crate::cgroup::{Cgroup, CgroupError, MemoryFacts};
use crate::plan::Entry;
use crate::sys::wait::Exit;

/// How often, and how far apart, we try to remove the cgroup of a container that failed: what its hooks left there is
/// killed, and cgroup v1 tells nobody when it is gone.
const SWEEPS: u32 = 500;
const SWEEP_AFTER: Duration = Duration::from_millis(10);

impl Launch {
    pub(super) fn fail(&mut self, error: RunError) {
        // Now, because the cgroup goes with its last process where it is systemd's.
        self.oom = self.oom.take().or(self.oom());
        self.child.kill();
        if let Some(hook) = &mut self.hook
            && let Err(failed) = hook.kill()
        {
            log::debug!("cannot kill a hook of a container that failed: {failed}");
        }
        self.systemd = None;
        // Who did not answer once will not do so now. The unit ends with the child.
        if matches!(error.cause(), Cause::Systemd(error) if matches!(error.why(), Why::Stalled { .. })) {
            self.unit = None;
        }
        self.failure.get_or_insert(error);
    }

    /// What the memory controller says, if it has killed.
    fn oom(&self) -> Option<MemoryFacts> {
        self.cgroup.as_ref().and_then(Cgroup::memory_facts).filter(|facts| facts.kills > 0)
    }

    /// Once child and hook are reaped, removes the cgroup and returns the failure.
    pub(super) fn undo(&mut self) -> Result<Progress, RunError> {
        if (self.exit.is_none() && !self.adopted) || self.hook.is_some() {
            return Ok(Progress::Waiting);
        }
        let oom = self.oom().or(self.oom.take());
        if let Some(failure) = &mut self.failure {
            failure.child_ended(self.exit, oom);
            let child = |at| matches!(self.plan.entries.get(at), Some(Entry::Child(_)));
            if self.exit == Some(Exit::Signal(libc::SIGKILL))
                && !self.timeline.iter().flat_map(Timeline::spans).any(|span| child(span.step))
            {
                failure.child_was_born_dead();
            }
        }
        if let Some(cgroup) = &mut self.cgroup {
            let (_, left) = self.sweep.unwrap_or((Instant::now(), SWEEPS));
            match cgroup.kill().and_then(|()| cgroup.remove()) {
                Ok(()) => {}
                Err(CgroupError::Busy { .. }) if left > 0 => {
                    self.sweep = Some((Instant::now() + SWEEP_AFTER, left - 1));
                    return Ok(Progress::Waiting);
                }
                Err(error) => log::warn!("cannot remove the cgroup of a container that failed: {error}"),
            }
            (self.cgroup, self.sweep) = (None, None);
        }
        if let Some(unit) = self.unit.take() {
            self.systemd = Some(Systemd::stop(&unit));
        }
        if let Some(systemd) = &mut self.systemd {
            match systemd.advance() {
                Ok(false) => return Ok(Progress::Waiting),
                Ok(true) => {}
                Err(error) => log::warn!("after a container that failed: {error}"),
            }
            self.systemd = None;
        }
        self.child.0 = None;
        let unknown = Cause::Died { exit: self.exit, oom: None };
        Err(self.failure.take().unwrap_or_else(|| self.plan.error(None, unknown)))
    }
}

//! Waiting for a freezer, which may need a moment to stop everybody.

use std::{cell::RefCell, os::fd::AsFd as _, time::Duration};

use libcontainer::cgroup::{CgroupError, Events, FreezerState};
use tokio::{io::Interest, time::sleep};

use super::Body;
use crate::sys::ready;

/// How often to look at a freezer that tells nobody when it is done: that of cgroup v1.
const LOOK: Duration = Duration::from_millis(1);

/// Freezes a container and waits until it stands still; false if it was frozen before, or has ended.
pub(super) async fn freeze(body: &RefCell<Body>) -> Result<bool, CgroupError> {
    let (mut freezing, events) = match body.borrow().cgroup() {
        Some(cgroup) if cgroup.freezer_state()? == FreezerState::Thawed => (cgroup.freeze()?, cgroup.events()?),
        _ => return Ok(false),
    };
    loop {
        // Arms the next notice, before the look that decides whether there needs to be one.
        if let Some(Err(errno)) = events.as_ref().map(Events::read) {
            log::debug!("read cgroup.events: {errno}");
        }
        match body.borrow().cgroup() {
            Some(cgroup) if freezing.poll(cgroup)? != FreezerState::Frozen => {}
            found => return Ok(found.is_some()),
        }
        stirs(events.as_ref()).await;
    }
}

/// Waits until a freezer may have got further since `events` were last read. It does not hold them meanwhile.
pub(crate) fn stirs(events: Option<&Events>) -> impl Future<Output = ()> + use<> {
    let notice = events.and_then(|events| {
        let watched = ready::watch_copy(events.as_fd(), Interest::PRIORITY);
        watched.inspect_err(|error| log::warn!("watch a cgroup: {error}")).ok()
    });
    async move {
        match notice {
            Some(notice) => drop(notice.ready(Interest::PRIORITY).await),
            None => sleep(LOOK).await,
        }
    }
}

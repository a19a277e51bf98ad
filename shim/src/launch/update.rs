//! New limits for a container that runs.

use std::cell::RefCell;

use libcontainer::cgroup::{CgroupError, Limits};

use super::{Body, Ground, ask, freezer::freeze};
use crate::service::Fault;

/// A change of a container's limits.
pub(crate) struct Update {
    pub(crate) limits: Limits,
    /// Those of the container, where systemd would change them by the way.
    pub(crate) devices: Limits,
}

/// Changes the limits of a container. systemd, if it made the cgroup, is told what they are once the kernel has taken them,
/// and then kept from changing others. True when the container had to be frozen for it, and is to go on now.
pub(crate) async fn update(ground: &Ground, body: &RefCell<Body>, update: Update) -> (bool, Result<(), Fault>) {
    let Update { limits, devices } = update;
    let begin = || -> Result<_, Fault> {
        let body = body.borrow();
        let cgroup = body.cgroup().ok_or(Fault::NoCgroup)?;
        cgroup.update(&limits).map_err(failed_cgroup)?;
        let layout = &ground.host().map_err(|error| Fault::Failed(error.to_string()))?.cgroups;
        let Some(tell) = cgroup.tell_systemd(&limits, layout).map_err(failed_cgroup)? else { return Ok(None) };
        Ok(Some((tell, cgroup.in_force(devices).map_err(failed_cgroup)?)))
    };
    let (tell, in_force) = match begin() {
        Ok(Some(begun)) => begun,
        Ok(None) => return (false, Ok(())),
        Err(fault) => return (false, Err(fault)),
    };
    // Or it would be refused its devices while systemd writes the list.
    let frozen = match in_force.has_devices() {
        true => freeze(body).await.unwrap_or_else(|error| {
            log::warn!("a container runs on while systemd writes its devices again: {error}");
            false
        }),
        false => false,
    };
    let told = ask(tell).await.map_err(|error| {
        Fault::Failed(format!("the limits are in force, but not after systemd was reloaded: {error}; update again"))
    });
    let body = body.borrow();
    let held = body.cgroup().map_or(Ok(()), |cgroup| cgroup.hold(&in_force).map_err(failed_cgroup));
    (frozen, told.and(held))
}

fn failed_cgroup(error: CgroupError) -> Fault {
    Fault::Failed(error.to_string())
}

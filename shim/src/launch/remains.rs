//! What a container leaves when it has ended, and its removal.

use std::{cell::RefCell, fs, io, path::PathBuf, time::Duration};

use libcontainer::{
    cgroup::{Cgroup, CgroupError, systemd},
    container, hooks,
    rootfs::{self, Unmounted},
    state::State,
};
use tokio::time::sleep;

use super::{Body, Ground, ask, settle, sleep_to};
use crate::{reap::Reaper, service::Fault};

/// How often, and how far apart, we try what processes on their way out of the kernel may still be in the way of: the
/// kernel tells nobody when a mount or a v1 cgroup is no longer busy.
const TRIES: u32 = 250;
const PAUSE: Duration = Duration::from_millis(20);

/// What Delete must remove, and where it is recorded.
#[derive(Clone)]
pub(crate) struct Remains {
    pub(crate) bundle: PathBuf,
    /// The folder of state.json.
    pub(super) state: PathBuf,
    pub(super) rootfs_mounted: bool,
}

/// Removes what a container leaves when it has ended: its processes, its cgroup, its mounts, its records. What is gone
/// already is no obstacle, so that this can be tried again.
pub(crate) async fn remove(ground: &Ground, body: &RefCell<Body>, remains: &Remains) -> Result<(), Fault> {
    // It may have been killed at its gate.
    settle(body).map_err(|error| Fault::Failed(format!("failed to delete task: {error}")))?;
    let mut tries = TRIES;
    loop {
        let removed = match &mut *body.borrow_mut() {
            Body::Running(Some(cgroup)) => cgroup.kill().and_then(|()| cgroup.remove()),
            _ => Ok(()),
        };
        match removed {
            Ok(()) => break,
            Err(CgroupError::Busy { .. }) if tries > 0 => tries -= 1,
            Err(error) => return Err(Fault::Failed(format!("failed to delete task: {error}"))),
        }
        sleep(PAUSE).await;
    }
    let unit = body.borrow().cgroup().and_then(Cgroup::unit).map(systemd::Call::stop);
    if let Some(stop) = unit
        && let Err(error) = ask(stop).await
    {
        // It is empty, so systemd will come to it by itself.
        log::warn!("{error}");
    }
    remains.remove(&ground.reaper).await
}

impl Remains {
    /// Runs the poststop hooks, unmounts the root filesystem, and strikes the container from the records.
    async fn remove(&self, reaper: &Reaper) -> Result<(), Fault> {
        if let Ok(state) = State::load(&self.state) {
            for hook in container::poststop(&state) {
                let ran = match hook {
                    Ok(run) => finish(run, reaper).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = ran {
                    log::warn!("container {}: {error}", state.id);
                }
            }
        }
        self.unmount().await?;
        match fs::remove_dir_all(&self.state) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Fault::Failed(format!("failed to delete task: remove {}: {error}", self.state.display())))
            }
            _ => Ok(()),
        }
    }

    pub(super) async fn unmount(&self) -> Result<(), Fault> {
        let rootfs = self.bundle.join("rootfs");
        let mut tries = if self.rootfs_mounted { TRIES } else { return Ok(()) };
        loop {
            match rootfs::unmount_all(&rootfs) {
                Ok(Unmounted::Done) => return Ok(()),
                Ok(Unmounted::Busy) if tries > 0 => tries -= 1,
                Ok(Unmounted::Busy) => {
                    return Err(Fault::Failed(format!("failed rootfs umount: {} is busy", rootfs.display())));
                }
                Err(error) => return Err(Fault::Failed(format!("failed rootfs umount: {error}"))),
            }
            sleep(PAUSE).await;
        }
    }
}

/// Waits for a hook, within its time.
async fn finish(mut run: hooks::Run, reaper: &Reaper) -> Result<(), hooks::HookError> {
    let exit = reaper.watch(run.pid());
    let in_time = tokio::select! {
        exit = exit.clone() => Some(exit),
        () = sleep_to(run.deadline()) => None,
    };
    let exit = match in_time {
        Some(exit) => exit,
        None => {
            if let Err(error) = run.kill() {
                log::warn!("cannot kill a hook whose time is up: {error}");
            }
            exit.await
        }
    };
    run.finish(exit.end)
}

//! An ordinary user's place among the cgroups (v2): one that is theirs, where the supervisor makes the cgroups of its
//! containers beside its own. Processes and cgroups with limits cannot be in one directory (cgroups(7), "no internal
//! processes"), so the supervisor and the shims are in one of their own there, and a relative `cgroupsPath` counts from
//! its parent.
//!
//! A user who has just logged in is in a cgroup of root's. Only that user's systemd can take a process out of it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use libcontainer::cgroup::{Hierarchies, Layout, systemd};
use nix::unistd::{AccessFlags, Pid, access, getpid};

/// The cgroup of the supervisor and the shims.
const OWN: &str = "supervisor";

/// Goes there, unless we are there already. Nothing is done on cgroup v1, which cannot be given to users.
///
/// # Errors
/// When there is no such place, and no systemd that makes one.
pub(crate) fn take() -> Result<()> {
    let Some(mut dir) = directory_of(getpid())? else { return Ok(()) };
    if given(&dir).is_some() {
        return Ok(());
    }
    // Started as a unit of its own, or asked to be put into one.
    if !is_writable(&dir) || !is_alone_in(&dir)? {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // The scope of one that was killed lives on with its containers, and our number may have been its.
        let name = format!("dunnaged-{}-{}.scope", getpid(), now.as_secs());
        systemd::Call::enclose(&name, "dunnaged and its containers", getpid()).wait()?;
        dir = directory_of(getpid())?.context("the cgroup hierarchy is gone")?;
    }
    let own = dir.join(OWN);
    match fs::create_dir(&own) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("make cgroup {}", own.display()));
        }
        _ => {}
    }
    fs::write(own.join("cgroup.procs"), "0").with_context(|| format!("enter cgroup {}", own.display()))
}

/// The controllers of which the containers of a supervisor can have limits, by its pid; none if it has no such place.
pub(crate) fn controllers(supervisor: Pid) -> Option<String> {
    let dir = directory_of(supervisor).ok()??;
    fs::read_to_string(given(&dir)?.join("cgroup.controllers")).ok()
}

/// The directory of a process's cgroup; none on v1.
fn directory_of(pid: Pid) -> Result<Option<PathBuf>> {
    let Hierarchies::V2(hierarchy) = Layout::detect().context("find the cgroups")?.hierarchies else { return Ok(None) };
    let path = format!("/proc/{pid}/cgroup");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::/"));
    Ok(own.map(|own| hierarchy.mount.join(own)))
}

/// The place that a supervisor in the cgroup `dir` has, if it has one.
fn given(dir: &Path) -> Option<&Path> {
    dir.parent().filter(|parent| dir.ends_with(OWN) && is_writable(parent))
}

/// Cgroups can be made in it, and processes moved into them.
fn is_writable(dir: &Path) -> bool {
    [dir, &dir.join("cgroup.procs")].into_iter().all(|path| access(path, AccessFlags::W_OK).is_ok())
}

fn is_alone_in(dir: &Path) -> Result<bool> {
    let path = dir.join("cgroup.procs");
    let pids = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(pids.lines().eq([getpid().to_string()]))
}

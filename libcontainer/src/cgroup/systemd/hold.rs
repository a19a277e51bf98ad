//! What systemd must not change by the way. Told of one property, it writes all that it knows of the unit to the cgroup's
//! files (`cgroup_context_apply` in its cgroup.c): a quota in whole percents, and its defaults in the place of what it has
//! no property for, or was never told.

use super::{Cgroup, CgroupError};
use crate::cgroup::Limits;

/// The files that it writes, in both versions of cgroups. Those with one line for each device it writes for the devices
/// alone that it was told of, which are none. Idle comes before the weight, which only what is not idle has.
const FILES: [&str; 22] = [
    "cpu.idle",
    "cpu.weight",
    "cpu.max",
    "cpu.shares",
    "cpu.cfs_period_us",
    "cpu.cfs_quota_us",
    "cpuset.cpus",
    "cpuset.mems",
    "io.weight",
    "io.bfq.weight",
    "blkio.weight",
    "blkio.bfq.weight",
    "memory.min",
    "memory.low",
    "memory.high",
    "memory.max",
    "memory.swap.max",
    "memory.zswap.max",
    "memory.zswap.writeback",
    "memory.oom.group",
    "memory.limit_in_bytes",
    "pids.max",
];

/// What is in force in the files that systemd writes, and is to stay so.
#[derive(Debug)]
pub struct InForce {
    files: Vec<(&'static str, String)>,
    /// Of v1, where the kernel does not tell all that is in force.
    devices: Limits,
}

impl InForce {
    /// systemd takes the devices away for a moment, and does not give all of them back.
    pub fn has_devices(&self) -> bool {
        self.devices.devices.is_some()
    }
}

impl Cgroup {
    /// Looks at what is in force, before systemd is told of a change; `devices` are those of the container, from
    /// [`Limits::of_devices`].
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn in_force(&self, devices: Limits) -> Result<InForce, CgroupError> {
        let mut files = Vec::new();
        for file in FILES {
            if let Some(value) = self.value(file)? {
                files.push((file, value));
            }
        }
        let idle = files.contains(&("cpu.idle", "1".to_owned()));
        files.retain(|(file, _)| !idle || !matches!(*file, "cpu.weight" | "cpu.shares"));
        Ok(InForce { files, devices })
    }

    /// Writes again what systemd has changed of it.
    ///
    /// # Errors
    /// As [`Cgroup::update`].
    pub fn hold(&self, in_force: &InForce) -> Result<(), CgroupError> {
        let mut again = in_force.devices.clone();
        for (file, before) in &in_force.files {
            let Some(now) = self.value(file)? else { continue };
            let changed = before.lines().filter(|line| !now.lines().any(|other| other == *line));
            changed.for_each(|line| again.write(file, line));
        }
        self.update(&again)
    }
}

//! What containers use, read from their cgroups without asking anybody.
//!
//! A cgroup's directories are opened when its container is asked about for the first time, and kept: one descriptor on
//! v2, one for each of four or five hierarchies on v1. Files are opened below them at each reading. To keep the files
//! would save two short system calls for each, and cost a dozen descriptors and, for each file, a page of the kernel's
//! memory (seq_file) for every container.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use libcontainer::{
    cgroup::{
        Cgroup, CgroupError, Saved,
        stats::{Stats, v1, v2},
    },
    state::{State, StateError},
};
use nix::sys::resource::{Resource, getrlimit};
use runtime_v2_api::{
    events::{TaskDelete, TaskExit},
    forward::Envelope,
    supervisor::{Container, Phase, Usage},
    topic, unpack,
};

#[cfg(test)]
mod tests;

/// The controllers that are read; cgroup v1 has a directory for each.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuacct", "memory", "pids", "blkio"];

/// The cgroups of the containers that somebody has asked about.
#[derive(Clone, Default)]
pub struct Usages(Arc<Mutex<HashMap<Name, Arc<Cgroup>>>>);

/// Namespace and id.
type Name = (String, String);

/// Why there are no numbers of a container.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// It has not said where its cgroup is.
    #[error(transparent)]
    State(#[from] StateError),
    /// Its cgroup cannot be read.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

impl Usages {
    /// The numbers of those of the containers that live, each with its place in `containers`; `state_dir` says where
    /// libcontainer's `state.json` of one is. What cannot be read is left out and logged: it may just have ended.
    pub async fn of(
        &self,
        containers: &[Container],
        state_dir: impl Fn(&str, &str) -> Option<PathBuf>,
    ) -> Vec<(usize, Usage)> {
        let mut usages = Vec::with_capacity(containers.len());
        for (index, container) in containers.iter().enumerate() {
            let (namespace, id) = (&*container.namespace, &*container.id);
            let lives = matches!(container.phase.enum_value(), Ok(Phase::CREATED | Phase::RUNNING | Phase::PAUSED));
            if !lives {
                self.forget(namespace, id);
                continue;
            }
            let Some(dir) = state_dir(namespace, id) else { continue };
            match self.read(namespace, id, &dir) {
                Ok(usage) => usages.push((index, usage)),
                Err(error) => log::debug!("the usage of {namespace}/{id}: {error}"),
            }
            // A thousand of them take a tenth of a second.
            tokio::task::yield_now().await;
        }
        usages
    }

    /// The numbers of a container whose `state.json` is in this folder.
    ///
    /// # Errors
    /// When it has no cgroup yet or no more, or that cannot be read.
    pub fn read(&self, namespace: &str, id: &str, state_dir: &Path) -> Result<Usage, UsageError> {
        let cgroup = self.open(namespace, id, state_dir)?;
        let mut usage = match cgroup.stats()? {
            Stats::V1(metrics) => usage_v1(&metrics),
            Stats::V2(metrics) => usage_v2(&metrics),
        };
        id.clone_into(&mut usage.id);
        usage.time = now();
        Ok(usage)
    }

    /// Closes what is kept for a container.
    pub fn forget(&self, namespace: &str, id: &str) {
        let mut kept = self.kept();
        if !kept.is_empty() {
            kept.remove(&(namespace.to_owned(), id.to_owned()));
        }
    }

    /// Is told each event, to close what is kept for containers that have ended.
    pub fn heard(&self, envelope: &Envelope) {
        if self.kept().is_empty() {
            return;
        }
        let Some(event) = envelope.event.as_ref() else { return };
        let id = match &*envelope.topic {
            topic::TASK_EXIT => {
                let exit = unpack::<TaskExit>(event).ok().flatten();
                exit.filter(|exit| exit.id == exit.container_id).map(|exit| exit.container_id)
            }
            topic::TASK_DELETE => unpack::<TaskDelete>(event).ok().flatten().map(|delete| delete.container_id),
            _ => None,
        };
        if let Some(id) = id {
            self.forget(&envelope.namespace, &id);
        }
    }

    fn open(&self, namespace: &str, id: &str, state_dir: &Path) -> Result<Arc<Cgroup>, UsageError> {
        let name = (namespace.to_owned(), id.to_owned());
        if let Some(cgroup) = self.kept().get(&name) {
            return Ok(cgroup.clone());
        }
        let state = State::load(state_dir)?;
        if state.init.is_none() {
            // Until then the cgroup that is recorded may be somebody else's.
            return Err(StateError::Unfinished(state_dir.to_owned()).into());
        }
        let cgroup = Arc::new(Cgroup::open(only_what_is_read(state.cgroup))?);
        let mut kept = self.kept();
        // Half of our descriptors are for clients and shims. A container too many is opened anew each time.
        let (descriptors, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
        if (kept.len() as u64 + 1) * CONTROLLERS.len() as u64 <= descriptors / 2 {
            kept.insert(name, cgroup.clone());
        }
        Ok(cgroup)
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<Name, Arc<Cgroup>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Only the directories that are read: on a hybrid machine there are numbers in none of v2's.
fn only_what_is_read(mut saved: Saved) -> Saved {
    let wanted = |controllers: &[String]| controllers.iter().any(|name| CONTROLLERS.contains(&&**name));
    if saved.groups.iter().any(|group| !group.place.v2) {
        saved.groups.retain(|group| wanted(&group.place.controllers));
    }
    saved
}

fn usage_v1(metrics: &v1::Metrics) -> Usage {
    let mut usage = Usage::default();
    if let Some(cpu) = &metrics.cpu {
        usage.cpu_total = cpu.usage.total;
        usage.cpu_user = cpu.usage.user;
        usage.cpu_system = cpu.usage.kernel;
        usage.cpu_throttled = cpu.throttling.throttled_time;
    }
    if let Some(memory) = &metrics.memory {
        usage.memory = memory.usage.usage;
        usage.memory_working_set = memory.usage.usage.saturating_sub(memory.stat.total_inactive_file);
        usage.memory_limit = limit(memory.usage.limit);
        // Where swap is not accounted there is no such file, and a zero.
        usage.memory_swap = memory.swap.usage.saturating_sub(memory.usage.usage);
    }
    if let Some(pids) = &metrics.pids {
        (usage.pids, usage.pids_limit) = (pids.current, pids.limit);
    }
    if let Some(oom) = &metrics.memory_oom_control {
        usage.oom_kills = oom.oom_kill;
    }
    if let Some(blkio) = &metrics.blkio {
        let sum = |list: &[v1::BlkioEntry], op: &str| {
            list.iter().filter(|entry| entry.op.eq_ignore_ascii_case(op)).map(|entry| entry.value).sum()
        };
        usage.io_read_bytes = sum(&blkio.io_service_bytes_recursive, "read");
        usage.io_write_bytes = sum(&blkio.io_service_bytes_recursive, "write");
        usage.io_reads = sum(&blkio.io_serviced_recursive, "read");
        usage.io_writes = sum(&blkio.io_serviced_recursive, "write");
    }
    usage
}

fn usage_v2(metrics: &v2::Metrics) -> Usage {
    let some = |psi: Option<v2::Psi>| psi.map(|psi| psi.some.total);
    let full = |psi: Option<v2::Psi>| psi.map(|psi| psi.full.total);
    let io = |of: fn(&v2::IoEntry) -> u64| metrics.io.usage.iter().map(of).sum();
    let memory = &metrics.memory;
    Usage {
        cpu_total: metrics.cpu.stat.usage_usec * 1000,
        cpu_user: metrics.cpu.stat.user_usec * 1000,
        cpu_system: metrics.cpu.stat.system_usec * 1000,
        cpu_throttled: metrics.cpu.stat.throttled_usec * 1000,
        memory: memory.usage,
        memory_working_set: memory.usage.saturating_sub(memory.stat.inactive_file),
        memory_limit: limit(memory.usage_limit),
        memory_swap: memory.swap_usage,
        pids: metrics.pids.current,
        pids_limit: limit(metrics.pids.limit),
        io_read_bytes: io(|entry| entry.rbytes),
        io_write_bytes: io(|entry| entry.wbytes),
        io_reads: io(|entry| entry.rios),
        io_writes: io(|entry| entry.wios),
        oom_kills: metrics.memory_events.map_or(0, |events| events.oom_kill),
        cpu_some: some(metrics.cpu.psi),
        memory_some: some(memory.psi),
        memory_full: full(memory.psi),
        io_some: some(metrics.io.psi),
        io_full: full(metrics.io.psi),
        ..Usage::default()
    }
}

/// No limit is 0. v2 writes `max`, read as the largest number; v1 writes the largest that is whole pages.
fn limit(value: u64) -> u64 {
    if value >= i64::MAX.cast_unsigned() - 0xffff { 0 } else { value }
}

fn now() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX)
}

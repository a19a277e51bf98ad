//! The numbers of cgroup v2.

use super::{Rdma, Reader, device, keyed, number};
use crate::cgroup::layout::hugepage_sizes;
use crate::cgroup::{Cgroup, CgroupError};

/// All of them. A controller that is not there leaves zeros.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    /// Processes.
    pub pids: Pids,
    /// Processor time.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// RDMA devices.
    pub rdma: Rdma,
    /// Block devices.
    pub io: Io,
    /// One for each huge page size.
    pub hugetlb: Vec<Hugetlb>,
    /// `memory.events`; `None` where there is no such file.
    pub memory_events: Option<MemoryEvents>,
}

/// Pressure: the part of the time that some or all processes stood still for lack of a resource.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Psi {
    /// Some process waited.
    pub some: PsiData,
    /// All of them did.
    pub full: PsiData,
}

/// One line of a pressure file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PsiData {
    /// Percent of the last 10 seconds.
    pub avg10: f64,
    /// Percent of the last minute.
    pub avg60: f64,
    /// Percent of the last five minutes.
    pub avg300: f64,
    /// Microseconds in all.
    pub total: u64,
}

/// Processes and threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pids {
    /// How many there are.
    pub current: u64,
    /// How many there may be; `u64::MAX` is unlimited.
    pub limit: u64,
}

numbers! {
    /// `cpu.stat`, times in microseconds.
    CpuStat {
        usage_usec = "usage_usec",
        user_usec = "user_usec",
        system_usec = "system_usec",
        nr_periods = "nr_periods",
        nr_throttled = "nr_throttled",
        throttled_usec = "throttled_usec",
        nr_bursts = "nr_bursts",
        burst_usec = "burst_usec",
    }
}

/// Processor time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cpu {
    /// `cpu.stat`.
    pub stat: CpuStat,
    /// `cpu.pressure`.
    pub psi: Option<Psi>,
}

numbers! {
    /// `memory.stat`, in bytes and counts.
    MemoryStat {
        anon = "anon",
        file = "file",
        kernel_stack = "kernel_stack",
        slab = "slab",
        sock = "sock",
        shmem = "shmem",
        file_mapped = "file_mapped",
        file_dirty = "file_dirty",
        file_writeback = "file_writeback",
        anon_thp = "anon_thp",
        inactive_anon = "inactive_anon",
        active_anon = "active_anon",
        inactive_file = "inactive_file",
        active_file = "active_file",
        unevictable = "unevictable",
        slab_reclaimable = "slab_reclaimable",
        slab_unreclaimable = "slab_unreclaimable",
        pgfault = "pgfault",
        pgmajfault = "pgmajfault",
        /// Linux 5.9 split the three into anonymous and file pages; together they are what they were.
        workingset_refault = "workingset_refault" | "workingset_refault_anon" | "workingset_refault_file",
        workingset_activate = "workingset_activate" | "workingset_activate_anon" | "workingset_activate_file",
        workingset_nodereclaim = "workingset_nodereclaim",
        pgrefill = "pgrefill",
        pgscan = "pgscan",
        pgsteal = "pgsteal",
        pgactivate = "pgactivate",
        pgdeactivate = "pgdeactivate",
        pglazyfree = "pglazyfree",
        pglazyfreed = "pglazyfreed",
        thp_fault_alloc = "thp_fault_alloc",
        thp_collapse_alloc = "thp_collapse_alloc",
    }
}

/// Memory, in bytes; a limit of `u64::MAX` is none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    /// `memory.stat`.
    pub stat: MemoryStat,
    /// In use.
    pub usage: u64,
    /// The limit.
    pub usage_limit: u64,
    /// Swap in use.
    pub swap_usage: u64,
    /// The limit on swap alone.
    pub swap_limit: u64,
    /// The most that was in use.
    pub max_usage: u64,
    /// The most swap that was in use.
    pub swap_max_usage: u64,
    /// `memory.pressure`.
    pub psi: Option<Psi>,
}

numbers! {
    /// `memory.events`.
    MemoryEvents {
        low = "low",
        high = "high",
        max = "max",
        oom = "oom",
        oom_kill = "oom_kill",
        oom_group_kill = "oom_group_kill",
    }
}

/// Block devices.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Io {
    /// One for each device used.
    pub usage: Vec<IoEntry>,
    /// `io.pressure`.
    pub psi: Option<Psi>,
}

/// One device of `io.stat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoEntry {
    /// Its major number.
    pub major: u64,
    /// Its minor number.
    pub minor: u64,
    /// Bytes read.
    pub rbytes: u64,
    /// Bytes written.
    pub wbytes: u64,
    /// Reads.
    pub rios: u64,
    /// Writes.
    pub wios: u64,
}

/// Huge pages of one size, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hugetlb {
    /// In use.
    pub current: u64,
    /// The limit; `u64::MAX` is none.
    pub max: u64,
    /// As the kernel writes it: `2MB`.
    pub pagesize: String,
    /// How often the limit was hit.
    pub failcnt: u64,
}

impl Cgroup {
    pub(super) fn stats_v2(&self) -> Result<Metrics, CgroupError> {
        let mut metrics = Metrics::default();
        let Some(group) = self.groups.first() else { return Ok(metrics) };
        let mut files = Reader { dir: group.dir.as_ref(), path: &group.place.dir, buffer: Vec::new() };
        metrics.pids = Pids { current: files.number("pids.current")?, limit: files.number("pids.max")? };
        metrics.cpu.stat.read(files.text("cpu.stat")?);
        metrics.cpu.psi = pressure(files.text("cpu.pressure")?);
        let memory = &mut metrics.memory;
        memory.stat.read(files.text("memory.stat")?);
        memory.usage = files.number("memory.current")?;
        memory.usage_limit = files.number("memory.max")?;
        memory.max_usage = files.number("memory.peak")?;
        memory.swap_usage = files.number("memory.swap.current")?;
        memory.swap_limit = files.number("memory.swap.max")?;
        memory.swap_max_usage = files.number("memory.swap.peak")?;
        memory.psi = pressure(files.text("memory.pressure")?);
        let events = files.text("memory.events")?;
        if !events.is_empty() {
            metrics.memory_events.get_or_insert_default().read(events);
        }
        metrics.io = Io { usage: io_stat(files.text("io.stat")?), psi: pressure(files.text("io.pressure")?) };
        // The files of these two are asked for only where there is such a controller at all.
        if self.with("rdma").is_some() {
            metrics.rdma = files.rdma()?;
        }
        if self.with("hugetlb").is_some() {
            for pagesize in hugepage_sizes() {
                let events = files.text(&format!("hugetlb.{pagesize}.events"))?;
                let failcnt = keyed(events).find(|&(key, _)| key == "max").map_or(0, |(_, count)| count);
                metrics.hugetlb.push(Hugetlb {
                    current: files.number(&format!("hugetlb.{pagesize}.current"))?,
                    max: files.number(&format!("hugetlb.{pagesize}.max"))?,
                    failcnt,
                    pagesize,
                });
            }
        }
        Ok(metrics)
    }
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`
fn io_stat(text: &str) -> Vec<IoEntry> {
    let entry = |line: &str| {
        let mut fields = line.split_whitespace();
        let (major, minor) = device(fields.next()?)?;
        let mut entry = IoEntry { major, minor, ..IoEntry::default() };
        for (key, value) in fields.filter_map(|field| field.split_once('=')) {
            match key {
                "rbytes" => entry.rbytes = number(value),
                "wbytes" => entry.wbytes = number(value),
                "rios" => entry.rios = number(value),
                "wios" => entry.wios = number(value),
                _ => {}
            }
        }
        Some(entry)
    };
    text.lines().filter_map(entry).collect()
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same of `full`.
fn pressure(text: &str) -> Option<Psi> {
    let mut psi = Psi::default();
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let data = match fields.next() {
            Some("some") => &mut psi.some,
            Some("full") => &mut psi.full,
            _ => continue,
        };
        for (key, value) in fields.filter_map(|field| field.split_once('=')) {
            match key {
                "avg10" => data.avg10 = value.parse().unwrap_or(0.0),
                "avg60" => data.avg60 = value.parse().unwrap_or(0.0),
                "avg300" => data.avg300 = value.parse().unwrap_or(0.0),
                "total" => data.total = number(value),
                _ => {}
            }
        }
    }
    (!text.is_empty()).then_some(psi)
}

#[cfg(test)]
mod tests {
    use super::super::{RdmaEntry, rdma};
    use super::*;

    #[test]
    fn v2_keys_reach_their_fields_and_split_ones_add_up() {
        let mut stat = MemoryStat::default();
        stat.read("anon 7\nworkingset_refault_anon 2\nworkingset_refault_file 3\nworkingset_nodereclaim 1\npgscan 9\n");
        let expected = MemoryStat {
            anon: 7,
            workingset_refault: 5,
            workingset_nodereclaim: 1,
            pgscan: 9,
            ..MemoryStat::default()
        };
        assert_eq!(stat, expected);
        let mut events = MemoryEvents::default();
        events.read("low 0\nhigh 1\nmax 22\noom 3\noom_kill 2\noom_group_kill 1\nsock_throttled 4\n");
        let expected = MemoryEvents { low: 0, high: 1, max: 22, oom: 3, oom_kill: 2, oom_group_kill: 1 };
        assert_eq!(events, expected);
    }

    #[test]
    fn io_rdma_and_pressure_lines() {
        let text = "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n7:0 \n";
        let used = IoEntry { major: 254, minor: 0, rbytes: 1, wbytes: 2, rios: 3, wios: 4 };
        assert_eq!(io_stat(text), [used, IoEntry { major: 7, ..IoEntry::default() }]);
        let device = RdmaEntry { device: "mlx4_0".into(), hca_handles: 2, hca_objects: u32::MAX };
        assert_eq!(rdma("mlx4_0 hca_handle=2 hca_object=max\n"), [device]);
        let psi = pressure(
            "some avg10=1.50 avg60=0.00 avg300=0.25 total=42\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
        );
        let some = PsiData { avg10: 1.5, avg60: 0.0, avg300: 0.25, total: 42 };
        assert_eq!(psi, Some(Psi { some, full: PsiData { total: 7, ..PsiData::default() } }));
        assert_eq!(pressure(""), None);
    }
}

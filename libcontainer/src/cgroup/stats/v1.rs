//! The numbers of cgroup v1.

use std::fs;

use super::{Rdma, Reader, device, keyed};
use crate::cgroup::layout::hugepage_sizes;
use crate::cgroup::{Cgroup, CgroupError};

/// All of them. A part is `None` where its controller is not mounted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    /// One for each huge page size.
    pub hugetlb: Vec<Hugetlb>,
    /// Processes.
    pub pids: Option<Pids>,
    /// Processor time, from the controllers cpu and cpuacct.
    pub cpu: Option<Cpu>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Block devices.
    pub blkio: Option<Blkio>,
    /// RDMA devices.
    pub rdma: Option<Rdma>,
    /// Out of memory.
    pub memory_oom_control: Option<OomControl>,
}

/// Huge pages of one size, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hugetlb {
    /// In use.
    pub usage: u64,
    /// The most that was in use.
    pub max: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
    /// As the kernel writes it: `2MB`.
    pub pagesize: String,
}

/// Processes and threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pids {
    /// How many there are.
    pub current: u64,
    /// How many there may be; 0 is unlimited.
    pub limit: u64,
}

/// Processor time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// Used.
    pub usage: CpuUsage,
    /// Withheld by the quota.
    pub throttling: Throttling,
}

/// Processor time used, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuUsage {
    /// In all.
    pub total: u64,
    /// In the kernel.
    pub kernel: u64,
    /// In user space.
    pub user: u64,
    /// By CPU.
    pub per_cpu: Vec<u64>,
}

numbers! {
    /// What the quota withheld.
    Throttling {
        periods = "nr_periods",
        throttled_periods = "nr_throttled",
        /// In nanoseconds.
        throttled_time = "throttled_time",
    }
}

numbers! {
    /// `memory.stat`, in bytes and counts.
    MemoryStat {
        cache = "cache",
        rss = "rss",
        rss_huge = "rss_huge",
        mapped_file = "mapped_file",
        dirty = "dirty",
        writeback = "writeback",
        pg_pg_in = "pgpgin",
        pg_pg_out = "pgpgout",
        pg_fault = "pgfault",
        pg_maj_fault = "pgmajfault",
        inactive_anon = "inactive_anon",
        active_anon = "active_anon",
        inactive_file = "inactive_file",
        active_file = "active_file",
        unevictable = "unevictable",
        hierarchical_memory_limit = "hierarchical_memory_limit",
        hierarchical_swap_limit = "hierarchical_memsw_limit",
        total_cache = "total_cache",
        total_rss = "total_rss",
        total_rss_huge = "total_rss_huge",
        total_mapped_file = "total_mapped_file",
        total_dirty = "total_dirty",
        total_writeback = "total_writeback",
        total_pg_pg_in = "total_pgpgin",
        total_pg_pg_out = "total_pgpgout",
        total_pg_fault = "total_pgfault",
        total_pg_maj_fault = "total_pgmajfault",
        total_inactive_anon = "total_inactive_anon",
        total_active_anon = "total_active_anon",
        total_inactive_file = "total_inactive_file",
        total_active_file = "total_active_file",
        total_unevictable = "total_unevictable",
    }
}

/// Memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// `memory.stat`.
    pub stat: MemoryStat,
    /// Memory.
    pub usage: MemoryEntry,
    /// Memory and swap together.
    pub swap: MemoryEntry,
    /// Of it the kernel's.
    pub kernel: MemoryEntry,
    /// Of it for TCP.
    pub kernel_tcp: MemoryEntry,
}

/// One counter of the memory controller, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryEntry {
    /// The limit.
    pub limit: u64,
    /// In use.
    pub usage: u64,
    /// The most that was in use.
    pub max: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

numbers! {
    /// `memory.oom_control`.
    OomControl {
        oom_kill_disable = "oom_kill_disable",
        under_oom = "under_oom",
        oom_kill = "oom_kill",
    }
}

/// Block devices. Of the eight lists the kernel fills those its scheduler keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as the kernel's files blkio.<name>_recursive are")]
pub struct Blkio {
    pub io_service_bytes_recursive: Vec<BlkioEntry>,
    pub io_serviced_recursive: Vec<BlkioEntry>,
    pub io_queued_recursive: Vec<BlkioEntry>,
    pub io_service_time_recursive: Vec<BlkioEntry>,
    pub io_wait_time_recursive: Vec<BlkioEntry>,
    pub io_merged_recursive: Vec<BlkioEntry>,
    pub io_time_recursive: Vec<BlkioEntry>,
    pub sectors_recursive: Vec<BlkioEntry>,
}

/// One number of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlkioEntry {
    /// `Read`, `Write`, …; empty in files that do not tell them apart.
    pub op: String,
    /// `/dev/<name>`; empty if the kernel lists no such device.
    pub device: String,
    /// Its major number.
    pub major: u64,
    /// Its minor number.
    pub minor: u64,
    /// The number.
    pub value: u64,
}

impl Cgroup {
    pub(super) fn stats_v1(&self) -> Result<Metrics, CgroupError> {
        let mut metrics = Metrics::default();
        if let Some(mut files) = self.reader("pids") {
            let limit = files.text("pids.max")?.trim().parse().unwrap_or(0);
            metrics.pids = Some(Pids { current: files.number("pids.current")?, limit });
        }
        if let Some(mut files) = self.reader("cpu") {
            metrics.cpu.get_or_insert_default().throttling.read(files.text("cpu.stat")?);
        }
        if let Some(mut files) = self.reader("cpuacct") {
            let usage = &mut metrics.cpu.get_or_insert_default().usage;
            usage.total = files.number("cpuacct.usage")?;
            for (key, ticks) in keyed(files.text("cpuacct.stat")?) {
                // The kernel's clock tick in what it shows to programs is 1/100 s everywhere (USER_HZ, time(7)).
                match key {
                    "user" => usage.user = ticks * 10_000_000,
                    "system" => usage.kernel = ticks * 10_000_000,
                    _ => {}
                }
            }
            let per_cpu = files.text("cpuacct.usage_percpu")?;
            usage.per_cpu = per_cpu.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        }
        if let Some(mut files) = self.reader("memory") {
            let memory = metrics.memory.insert(Memory::default());
            memory.stat.read(files.text("memory.stat")?);
            memory.usage = files.memory("memory")?;
            memory.swap = files.memory("memory.memsw")?;
            memory.kernel = files.memory("memory.kmem")?;
            memory.kernel_tcp = files.memory("memory.kmem.tcp")?;
            metrics.memory_oom_control.get_or_insert_default().read(files.text("memory.oom_control")?);
        }
        if let Some(mut files) = self.reader("blkio") {
            metrics.blkio = Some(files.blkio()?);
        }
        if let Some(mut files) = self.reader("hugetlb") {
            for pagesize in hugepage_sizes() {
                metrics.hugetlb.push(Hugetlb {
                    usage: files.number(&format!("hugetlb.{pagesize}.usage_in_bytes"))?,
                    max: files.number(&format!("hugetlb.{pagesize}.max_usage_in_bytes"))?,
                    failcnt: files.number(&format!("hugetlb.{pagesize}.failcnt"))?,
                    pagesize,
                });
            }
        }
        if let Some(mut files) = self.reader("rdma") {
            metrics.rdma = Some(files.rdma()?);
        }
        Ok(metrics)
    }
}

impl Reader<'_> {
    fn memory(&mut self, prefix: &str) -> Result<MemoryEntry, CgroupError> {
        Ok(MemoryEntry {
            limit: self.number(&format!("{prefix}.limit_in_bytes"))?,
            usage: self.number(&format!("{prefix}.usage_in_bytes"))?,
            max: self.number(&format!("{prefix}.max_usage_in_bytes"))?,
            failcnt: self.number(&format!("{prefix}.failcnt"))?,
        })
    }

    /// The CFQ scheduler's files (Linux before 5.0) where they say something, else those of the throttling policy.
    fn blkio(&mut self) -> Result<Blkio, CgroupError> {
        let mut blkio = Blkio::default();
        for (list, name) in [
            (&mut blkio.io_serviced_recursive, "io_serviced"),
            (&mut blkio.io_service_bytes_recursive, "io_service_bytes"),
            (&mut blkio.io_queued_recursive, "io_queued"),
            (&mut blkio.io_service_time_recursive, "io_service_time"),
            (&mut blkio.io_wait_time_recursive, "io_wait_time"),
            (&mut blkio.io_merged_recursive, "io_merged"),
            (&mut blkio.io_time_recursive, "time"),
            (&mut blkio.sectors_recursive, "sectors"),
        ] {
            // A kernel without CFQ has none of them: one look is enough.
            if !self.dir.is_some_and(|dir| dir.has(&format!("blkio.{name}_recursive"))) {
                break;
            }
            *list = blkio_entries(self.text(&format!("blkio.{name}_recursive"))?);
        }
        if blkio == Blkio::default() {
            blkio.io_serviced_recursive = blkio_entries(self.text("blkio.throttle.io_serviced")?);
            blkio.io_service_bytes_recursive = blkio_entries(self.text("blkio.throttle.io_service_bytes")?);
        }
        if blkio != Blkio::default() {
            // Absent where procfs is; the devices then have numbers and no names.
            let partitions = fs::read_to_string("/proc/partitions").unwrap_or_default();
            for list in [
                &mut blkio.io_serviced_recursive,
                &mut blkio.io_service_bytes_recursive,
                &mut blkio.io_queued_recursive,
                &mut blkio.io_service_time_recursive,
                &mut blkio.io_wait_time_recursive,
                &mut blkio.io_merged_recursive,
                &mut blkio.io_time_recursive,
                &mut blkio.sectors_recursive,
            ] {
                for entry in list {
                    entry.device = device_name(&partitions, entry.major, entry.minor);
                }
            }
        }
        Ok(blkio)
    }
}

/// `8:0 Read 4096` or, in files that know no operations, `8:0 4096`; the sum at the end is left out.
fn blkio_entries(text: &str) -> Vec<BlkioEntry> {
    let entry = |line: &str| {
        let mut fields = line.split_whitespace();
        let (major, minor) = device(fields.next()?)?;
        let (op, value) = match (fields.next()?, fields.next()) {
            (op, Some(value)) => (op, value),
            (value, None) => ("", value),
        };
        Some(BlkioEntry { op: op.to_owned(), device: String::new(), major, minor, value: value.parse().ok()? })
    };
    text.lines().filter_map(entry).collect()
}

/// The device's file by /proc/partitions (`major minor #blocks name`).
fn device_name(partitions: &str, major: u64, minor: u64) -> String {
    let name = partitions.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let this = fields.next()?.parse() == Ok(major) && fields.next()?.parse() == Ok(minor);
        this.then(|| fields.nth(1)).flatten()
    });
    name.map(|name| format!("/dev/{name}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_keys_reach_their_fields() {
        let mut stat = MemoryStat::default();
        stat.read(
            "cache 1\npgpgin 2\nhierarchical_memsw_limit 3\ntotal_pgmajfault 4\ntotal_unevictable 5\nnew_key 6\n",
        );
        let expected = MemoryStat {
            cache: 1,
            pg_pg_in: 2,
            hierarchical_swap_limit: 3,
            total_pg_maj_fault: 4,
            total_unevictable: 5,
            ..MemoryStat::default()
        };
        assert_eq!(stat, expected);
        let mut throttling = Throttling::default();
        throttling.read("nr_periods 10\nnr_throttled 3\nthrottled_time 123456789\n");
        assert_eq!(throttling, Throttling { periods: 10, throttled_periods: 3, throttled_time: 123_456_789 });
    }

    #[test]
    fn blkio_lines_with_and_without_an_operation() {
        let entry = |op: &str, value| BlkioEntry { op: op.into(), device: String::new(), major: 8, minor: 16, value };
        let expected = [entry("Read", 4096), entry("Total", 4096), entry("", 77)];
        assert_eq!(blkio_entries("8:16 Read 4096\n8:16 Total 4096\n8:16 77\nTotal 4096\n"), expected);
        let partitions = "major minor  #blocks  name\n\n   8       16  1048576 sdb\n 254        0  8388608 vda\n";
        assert_eq!(device_name(partitions, 254, 0), "/dev/vda");
        assert_eq!(device_name(partitions, 8, 17), "");
    }
}

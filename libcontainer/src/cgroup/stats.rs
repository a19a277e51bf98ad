//! What a container uses, read from the kernel's files: the numbers of containerd's cgroup metrics, v1 and v2, field by
//! field under the same names.
//!
//! Files that are not there leave their fields at zero (or their part at `None`), so a cgroup that is gone yields zeros
//! and no error.

use std::fs;

use nix::errno::Errno;

use super::dir::Dir;
use super::layout::hugepage_sizes;
use super::{Cgroup, CgroupError, failed};

/// What one container uses.
#[derive(Clone, Debug, PartialEq)]
pub enum Stats {
    /// As `io.containerd.cgroups.v1.Metrics` has it.
    V1(Box<v1::Metrics>),
    /// As `io.containerd.cgroups.v2.Metrics` has it.
    V2(Box<v2::Metrics>),
}

/// Declares a struct of numbers and, for those that stand in a keyed file (`<key> <number>` a line), which key sets them.
macro_rules! numbers {
    ($(#[$attribute:meta])* $name:ident { $($(#[$field_attribute:meta])* $field:ident $(= $($key:literal)|+)?,)* }) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_attribute])* #[allow(missing_docs, reason = "named by the kernel's key")]
            pub $field: u64,)*
        }

        impl $name {
            /// Several keys add up.
            pub(super) fn read(&mut self, text: &str) {
                for (key, value) in keyed(text) {
                    match key {
                        $($($($key)|+ => self.$field += value,)?)*
                        _ => {}
                    }
                }
            }
        }
    };
}

/// The numbers of cgroup v1.
pub mod v1 {
    use super::keyed;

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
        pub rdma: Option<super::Rdma>,
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
}

/// The numbers of cgroup v2.
pub mod v2 {
    use super::keyed;

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
        pub rdma: super::Rdma,
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
}

/// RDMA devices: what is in use and what may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rdma {
    /// `rdma.current`.
    pub current: Vec<RdmaEntry>,
    /// `rdma.max`.
    pub limit: Vec<RdmaEntry>,
}

/// One RDMA device; `u32::MAX` is unlimited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RdmaEntry {
    /// Its name.
    pub device: String,
    /// Handles.
    pub hca_handles: u32,
    /// Objects.
    pub hca_objects: u32,
}

impl Cgroup {
    /// Reads all numbers.
    ///
    /// # Errors
    /// When a file that is there cannot be read.
    pub fn stats(&self) -> Result<Stats, CgroupError> {
        match self.groups.iter().all(|group| group.place.v2) {
            true => Ok(Stats::V2(Box::new(self.stats_v2()?))),
            false => Ok(Stats::V1(Box::new(self.stats_v1()?))),
        }
    }

    fn reader(&self, controller: &str) -> Option<Reader<'_>> {
        let group = self.with(controller)?;
        Some(Reader { dir: group.dir.as_ref(), path: &group.place.dir, buffer: Vec::new() })
    }

    fn stats_v1(&self) -> Result<v1::Metrics, CgroupError> {
        let mut metrics = v1::Metrics::default();
        if let Some(mut files) = self.reader("pids") {
            let limit = files.text("pids.max")?.trim().parse().unwrap_or(0);
            metrics.pids = Some(v1::Pids { current: files.number("pids.current")?, limit });
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
            let memory = metrics.memory.insert(v1::Memory::default());
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
                metrics.hugetlb.push(v1::Hugetlb {
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

    fn stats_v2(&self) -> Result<v2::Metrics, CgroupError> {
        let mut metrics = v2::Metrics::default();
        let Some(group) = self.groups.first() else { return Ok(metrics) };
        let mut files = Reader { dir: group.dir.as_ref(), path: &group.place.dir, buffer: Vec::new() };
        metrics.pids = v2::Pids { current: files.number("pids.current")?, limit: files.number("pids.max")? };
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
        metrics.io = v2::Io { usage: io_stat(files.text("io.stat")?), psi: pressure(files.text("io.pressure")?) };
        // The files of these two are asked for only where there is such a controller at all.
        if self.with("rdma").is_some() {
            metrics.rdma = files.rdma()?;
        }
        if self.with("hugetlb").is_some() {
            for pagesize in hugepage_sizes() {
                let events = files.text(&format!("hugetlb.{pagesize}.events"))?;
                let failcnt = keyed(events).find(|&(key, _)| key == "max").map_or(0, |(_, count)| count);
                metrics.hugetlb.push(v2::Hugetlb {
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

/// Reads the files of one directory into one buffer.
struct Reader<'a> {
    dir: Option<&'a Dir>,
    path: &'a std::path::Path,
    buffer: Vec<u8>,
}

impl Reader<'_> {
    /// A whole file; nothing if it is not there, or no more, or (pressure) switched off.
    fn text(&mut self, file: &str) -> Result<&str, CgroupError> {
        let Some(dir) = self.dir else { return Ok("") };
        match dir.read(file, &mut self.buffer) {
            Ok(text) => Ok(text),
            Err(Errno::ENOENT | Errno::ENODEV | Errno::EOPNOTSUPP) => Ok(""),
            Err(errno) => Err(failed("read the statistics of", self.path.join(file))(errno)),
        }
    }

    fn number(&mut self, file: &str) -> Result<u64, CgroupError> {
        Ok(number(self.text(file)?.trim()))
    }

    fn memory(&mut self, prefix: &str) -> Result<v1::MemoryEntry, CgroupError> {
        Ok(v1::MemoryEntry {
            limit: self.number(&format!("{prefix}.limit_in_bytes"))?,
            usage: self.number(&format!("{prefix}.usage_in_bytes"))?,
            max: self.number(&format!("{prefix}.max_usage_in_bytes"))?,
            failcnt: self.number(&format!("{prefix}.failcnt"))?,
        })
    }

    fn rdma(&mut self) -> Result<Rdma, CgroupError> {
        Ok(Rdma { current: rdma(self.text("rdma.current")?), limit: rdma(self.text("rdma.max")?) })
    }

    /// The CFQ scheduler's files (Linux before 5.0) where they say something, else those of the throttling policy.
    fn blkio(&mut self) -> Result<v1::Blkio, CgroupError> {
        let mut blkio = v1::Blkio::default();
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
        if blkio == v1::Blkio::default() {
            blkio.io_serviced_recursive = blkio_entries(self.text("blkio.throttle.io_serviced")?);
            blkio.io_service_bytes_recursive = blkio_entries(self.text("blkio.throttle.io_service_bytes")?);
        }
        if blkio != v1::Blkio::default() {
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

/// The lines `<key> <number>` of a text.
fn keyed(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}

/// A number, or `max`; what is neither is taken as absent, 0.
fn number(text: &str) -> u64 {
    match text {
        "max" => u64::MAX,
        text => text.parse().unwrap_or(0),
    }
}

fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// `8:0 Read 4096` or, in files that know no operations, `8:0 4096`; the sum at the end is left out.
fn blkio_entries(text: &str) -> Vec<v1::BlkioEntry> {
    let entry = |line: &str| {
        let mut fields = line.split_whitespace();
        let (major, minor) = device(fields.next()?)?;
        let (op, value) = match (fields.next()?, fields.next()) {
            (op, Some(value)) => (op, value),
            (value, None) => ("", value),
        };
        Some(v1::BlkioEntry { op: op.to_owned(), device: String::new(), major, minor, value: value.parse().ok()? })
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

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`
fn io_stat(text: &str) -> Vec<v2::IoEntry> {
    let entry = |line: &str| {
        let mut fields = line.split_whitespace();
        let (major, minor) = device(fields.next()?)?;
        let mut entry = v2::IoEntry { major, minor, ..v2::IoEntry::default() };
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

/// `mlx4_0 hca_handle=2 hca_object=max`
fn rdma(text: &str) -> Vec<RdmaEntry> {
    let number = |value: &str| if value == "max" { u32::MAX } else { value.parse().unwrap_or(0) };
    let entry = |line: &str| {
        let mut fields = line.split_whitespace();
        let mut entry = RdmaEntry { device: fields.next()?.to_owned(), ..RdmaEntry::default() };
        for (key, value) in fields.filter_map(|field| field.split_once('=')) {
            match key {
                "hca_handle" => entry.hca_handles = number(value),
                "hca_object" => entry.hca_objects = number(value),
                _ => {}
            }
        }
        Some(entry)
    };
    text.lines().filter_map(entry).collect()
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same of `full`.
fn pressure(text: &str) -> Option<v2::Psi> {
    let mut psi = v2::Psi::default();
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
    use super::*;

    #[test]
    fn v1_keys_reach_their_fields() {
        let mut stat = v1::MemoryStat::default();
        stat.read(
            "cache 1\npgpgin 2\nhierarchical_memsw_limit 3\ntotal_pgmajfault 4\ntotal_unevictable 5\nnew_key 6\n",
        );
        let expected = v1::MemoryStat {
            cache: 1,
            pg_pg_in: 2,
            hierarchical_swap_limit: 3,
            total_pg_maj_fault: 4,
            total_unevictable: 5,
            ..v1::MemoryStat::default()
        };
        assert_eq!(stat, expected);
        let mut throttling = v1::Throttling::default();
        throttling.read("nr_periods 10\nnr_throttled 3\nthrottled_time 123456789\n");
        assert_eq!(throttling, v1::Throttling { periods: 10, throttled_periods: 3, throttled_time: 123_456_789 });
    }

    #[test]
    fn v2_keys_reach_their_fields_and_split_ones_add_up() {
        let mut stat = v2::MemoryStat::default();
        stat.read("anon 7\nworkingset_refault_anon 2\nworkingset_refault_file 3\nworkingset_nodereclaim 1\npgscan 9\n");
        let expected = v2::MemoryStat {
            anon: 7,
            workingset_refault: 5,
            workingset_nodereclaim: 1,
            pgscan: 9,
            ..v2::MemoryStat::default()
        };
        assert_eq!(stat, expected);
        let mut events = v2::MemoryEvents::default();
        events.read("low 0\nhigh 1\nmax 22\noom 3\noom_kill 2\noom_group_kill 1\nsock_throttled 4\n");
        let expected = v2::MemoryEvents { low: 0, high: 1, max: 22, oom: 3, oom_kill: 2, oom_group_kill: 1 };
        assert_eq!(events, expected);
    }

    #[test]
    fn blkio_lines_with_and_without_an_operation() {
        let entry =
            |op: &str, value| v1::BlkioEntry { op: op.into(), device: String::new(), major: 8, minor: 16, value };
        let expected = [entry("Read", 4096), entry("Total", 4096), entry("", 77)];
        assert_eq!(blkio_entries("8:16 Read 4096\n8:16 Total 4096\n8:16 77\nTotal 4096\n"), expected);
        let partitions = "major minor  #blocks  name\n\n   8       16  1048576 sdb\n 254        0  8388608 vda\n";
        assert_eq!(device_name(partitions, 254, 0), "/dev/vda");
        assert_eq!(device_name(partitions, 8, 17), "");
    }

    #[test]
    fn io_rdma_and_pressure_lines() {
        let text = "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n7:0 \n";
        let used = v2::IoEntry { major: 254, minor: 0, rbytes: 1, wbytes: 2, rios: 3, wios: 4 };
        assert_eq!(io_stat(text), [used, v2::IoEntry { major: 7, ..v2::IoEntry::default() }]);
        let device = RdmaEntry { device: "mlx4_0".into(), hca_handles: 2, hca_objects: u32::MAX };
        assert_eq!(rdma("mlx4_0 hca_handle=2 hca_object=max\n"), [device]);
        let psi = pressure(
            "some avg10=1.50 avg60=0.00 avg300=0.25 total=42\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
        );
        let some = v2::PsiData { avg10: 1.5, avg60: 0.0, avg300: 0.25, total: 42 };
        assert_eq!(psi, Some(v2::Psi { some, full: v2::PsiData { total: 7, ..v2::PsiData::default() } }));
        assert_eq!(pressure(""), None);
    }

    #[test]
    fn max_is_the_largest_number_and_nonsense_is_none() {
        assert_eq!([number("max"), number("12"), number(""), number("-1")], [u64::MAX, 12, 0, 0]);
    }
}

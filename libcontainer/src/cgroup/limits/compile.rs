//! `linux.resources` -> the values to write, in the order they are written. Nothing is touched here.
//!
//! The numbers are those of the OCI runtime specification, which speaks cgroup v1; on v2 they are converted as runc
//! converts them, each conversion with its reason beside it.

use std::borrow::Cow;

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxNetwork, LinuxPids, LinuxResources,
    LinuxThrottleDevice,
};

use super::{Absent, Limits, Problem, Rest, Write};
use crate::cgroup::devices::Devices;
use crate::cgroup::layout::Layout;

pub(super) struct Compiler<'a> {
    layout: &'a Layout,
    v2: bool,
    /// Of something that is there: what is not given has a value already.
    update: bool,
    writes: Vec<Write>,
    refuse_above: Option<(Option<i64>, Option<i64>)>,
    problems: Vec<Problem>,
}

impl<'a> Compiler<'a> {
    pub(super) fn new(layout: &'a Layout, update: bool) -> Self {
        let (writes, problems) = (Vec::new(), Vec::new());
        Compiler { layout, v2: layout.is_v2(), update, writes, refuse_above: None, problems }
    }

    pub(super) fn finish(self, devices: Option<Devices>) -> Result<Limits, Vec<Problem>> {
        match self.problems.is_empty() {
            true => Ok(Limits { writes: self.writes, devices, refuse_above: self.refuse_above }),
            false => Err(self.problems),
        }
    }

    fn problem(&mut self, field: impl Into<Cow<'static, str>>, text: impl Into<String>) {
        self.problems.push(Problem { field: field.into(), text: text.into() });
    }

    /// Notes a value; or, if the machine lacks the controller, that this is so.
    fn write(&mut self, field: &'static str, file: impl Into<Cow<'static, str>>, value: impl ToString) {
        self.write_or(field, file, value, Absent::Refuse);
    }

    fn write_or(
        &mut self,
        field: &'static str,
        file: impl Into<Cow<'static, str>>,
        value: impl ToString,
        absent: Absent,
    ) {
        let file = file.into();
        let controller: Cow<'static, str> = match &file {
            Cow::Borrowed(file) => controller_of(file).into(),
            Cow::Owned(file) => controller_of(file).to_owned().into(),
        };
        if self.needs(&controller, field) {
            let (value, field, rest) = (value.to_string(), field.into(), Rest::None);
            self.writes.push(Write { controller, file, value, field, absent, rest });
        }
    }

    /// The value noted last is to be completed when it is written.
    fn complete(&mut self, with: Rest) {
        if let Some(write) = self.writes.last_mut() {
            write.rest = with;
        }
    }

    fn needs(&mut self, controller: &str, field: &'static str) -> bool {
        let there = self.layout.has(controller);
        if !there {
            let how = match self.v2 {
                true => "cgroup v2 offers it if the kernel has it and no v1 hierarchy holds it".to_owned(),
                false => format!("mount it (mount -t cgroup -o {controller} none /sys/fs/cgroup/{controller})"),
            };
            let text = format!("no {controller} controller on this host: remove the field, or {how}");
            self.problem(field, text);
        }
        there
    }

    /// For what v2 has nothing like: says so and returns true.
    fn only_v1(&mut self, field: &'static str) -> bool {
        if self.v2 {
            self.problem(field, "cgroup v2 has no such setting: remove the field");
        }
        self.v2
    }

    pub(super) fn devices(&mut self, resources: &LinuxResources) -> Option<Devices> {
        let rules = resources.devices().as_deref().unwrap_or_default();
        let devices = Devices::compile(rules, self.v2, &mut self.problems);
        // On v2 the filter needs no controller.
        if !self.v2 && !self.needs("devices", "linux.resources.devices") {
            return None;
        }
        Some(devices)
    }

    pub(super) fn all(&mut self, resources: &LinuxResources) {
        // cpuset first: without CPUs and nodes no process can enter it.
        if let Some(cpu) = resources.cpu() {
            self.cpuset(cpu);
            self.cpu(cpu);
        }
        if let Some(memory) = resources.memory() {
            self.memory(memory);
        }
        if let Some(pids) = resources.pids() {
            self.pids(pids);
        }
        if let Some(io) = resources.block_io() {
            self.io(io);
        }
        for limit in resources.hugepage_limits().iter().flatten() {
            self.hugepages(limit);
        }
        self.rdma(resources);
        if let Some(network) = resources.network() {
            self.network(network);
        }
        self.unified(resources);
    }

    fn cpuset(&mut self, cpu: &LinuxCpu) {
        for (field, file, list) in [
            ("linux.resources.cpu.cpus", "cpuset.cpus", cpu.cpus()),
            ("linux.resources.cpu.mems", "cpuset.mems", cpu.mems()),
        ] {
            if let Some(list) = list.as_deref().filter(|list| !list.is_empty()) {
                self.write(field, file, list);
            }
        }
    }

    fn cpu(&mut self, cpu: &LinuxCpu) {
        // The kernel refuses a share for what is to run only when nobody else wants to.
        if let Some(shares) = cpu.shares().filter(|&shares| shares != 0 && cpu.idle() != Some(1)) {
            let field = "linux.resources.cpu.shares";
            if self.v2 {
                self.write(field, "cpu.weight", weight_of_shares(shares));
            } else if (2..=262_144).contains(&shares) {
                self.write(field, "cpu.shares", shares);
            } else {
                // The kernel would quietly take the nearest.
                self.problem(field, format!("{shares} is outside of 2..262144"));
            }
        }
        if let Some(idle) = cpu.idle() {
            self.write("linux.resources.cpu.idle", "cpu.idle", idle);
        }
        let period = cpu.period().filter(|&period| period != 0);
        let quota = cpu.quota().filter(|&quota| quota != 0);
        let burst = cpu.burst();
        let (quota_field, period_field) = ("linux.resources.cpu.quota", "linux.resources.cpu.period");
        if !self.v2 {
            if let Some(period) = period {
                self.write(period_field, "cpu.cfs_period_us", period);
            }
            if let Some(quota) = quota {
                self.write(quota_field, "cpu.cfs_quota_us", quota);
            }
        } else if let (Some(period), None, true) = (period, quota, self.update) {
            self.write(period_field, "cpu.max", period);
            self.complete(Rest::Quota);
        } else if period.is_some() || quota.is_some() {
            let field = if quota.is_some() { quota_field } else { period_field };
            let quota = quota.filter(|&quota| quota > 0).map_or("max".to_owned(), |quota| quota.to_string());
            // Without a period the kernel keeps that which is in force.
            let period = period.map(|period| format!(" {period}")).unwrap_or_default();
            self.write(field, "cpu.max", format!("{quota}{period}"));
        }
        if let Some(burst) = burst {
            let file = if self.v2 { "cpu.max.burst" } else { "cpu.cfs_burst_us" };
            self.write("linux.resources.cpu.burst", file, burst);
        }
        for (field, file, value) in [
            (
                "linux.resources.cpu.realtimePeriod",
                "cpu.rt_period_us",
                cpu.realtime_period().filter(|&p| p != 0).map(|p| p.to_string()),
            ),
            (
                "linux.resources.cpu.realtimeRuntime",
                "cpu.rt_runtime_us",
                cpu.realtime_runtime().filter(|&r| r != 0).map(|r| r.to_string()),
            ),
        ] {
            if let Some(value) = value
                && !self.only_v1(field)
            {
                self.write(field, file, value);
            }
        }
    }

    fn memory(&mut self, memory: &LinuxMemory) {
        let limit = memory.limit().filter(|&limit| limit != 0);
        let swap = memory.swap().filter(|&swap| swap != 0);
        let (limit_field, swap_field) = ("linux.resources.memory.limit", "linux.resources.memory.swap");
        // No limit on memory means none on memory and swap, unless that is said; v1 would refuse the one below the other.
        let swap = swap.or(limit.filter(|&limit| limit == -1));
        if self.v2 {
            if let (None, Some(swap), true) = (limit, swap.filter(|&swap| swap > 0), self.update) {
                self.write(swap_field, "memory.swap.max", swap);
                self.complete(Rest::MemoryLimit);
            } else if let Some(swap) = self.swap_alone(limit, swap) {
                // Without swap in the kernel there is nothing to switch off or to leave open.
                let absent = if matches!(swap, -1 | 0) { Absent::Skip } else { Absent::Refuse };
                self.write_or(swap_field, "memory.swap.max", max_or(swap), absent);
            }
            if let Some(limit) = limit {
                self.write(limit_field, "memory.max", max_or(limit));
            }
            if memory.check_before_update() == Some(true) {
                // On v1 the kernel itself refuses a limit below what is in use; on v2 it kills.
                self.refuse_above = Some((limit, swap));
            }
        } else {
            if let Some(limit) = limit {
                self.write(limit_field, "memory.limit_in_bytes", limit);
            }
            if let Some(swap) = swap {
                // Lifting a limit is all the same without swap accounting.
                let absent = if swap == -1 { Absent::Skip } else { Absent::Refuse };
                self.write_or(swap_field, "memory.memsw.limit_in_bytes", swap, absent);
            }
        }
        if let Some(low) = memory.reservation().filter(|&low| low != 0) {
            let field = "linux.resources.memory.reservation";
            match self.v2 {
                true => self.write(field, "memory.low", max_or(low)),
                false => self.write(field, "memory.soft_limit_in_bytes", low),
            }
        }
        // `kernel` is ignored: Linux 5.16 removed that limit, and runc ignores it on every kernel.
        if let Some(tcp) = memory.kernel_tcp().filter(|&tcp| tcp != 0) {
            let field = "linux.resources.memory.kernelTCP";
            if !self.only_v1(field) {
                self.write(field, "memory.kmem.tcp.limit_in_bytes", tcp);
            }
        }
        // Docker says "not set" with all bits set.
        if let Some(swappiness) = memory.swappiness().filter(|&swappiness| swappiness != u64::MAX) {
            let field = "linux.resources.memory.swappiness";
            if swappiness > 100 {
                self.problem(field, format!("{swappiness} is outside of 0..100"));
            } else if !self.only_v1(field) {
                self.write(field, "memory.swappiness", swappiness);
            }
        }
        if memory.disable_oom_killer() == Some(true) {
            let field = "linux.resources.memory.disableOOMKiller";
            if !self.only_v1(field) {
                self.write(field, "memory.oom_control", 1);
            }
        }
    }

    /// v1 limits memory and swap together, v2 swap alone: the difference of the two. -1 is unlimited.
    fn swap_alone(&mut self, memory: Option<i64>, with_swap: Option<i64>) -> Option<i64> {
        let field = "linux.resources.memory.swap";
        match (memory, with_swap?) {
            (_, -1) => Some(-1),
            // Nothing to take away from.
            (Some(-1), with_swap) => Some(with_swap),
            (None, _) => {
                self.problem(field, "without linux.resources.memory.limit it cannot be told how much of it is swap");
                None
            }
            (Some(memory), with_swap) if memory < 0 || with_swap < memory => {
                let text = format!("{with_swap} counts memory and swap, so it must not be below the limit of {memory}");
                self.problem(field, text);
                None
            }
            (Some(memory), with_swap) => Some(with_swap - memory),
        }
    }

    fn pids(&mut self, pids: &LinuxPids) {
        // 0 is "not given": no process at all could enter such a cgroup.
        if pids.limit() != 0 {
            self.write("linux.resources.pids.limit", "pids.max", max_or(pids.limit()));
        }
    }

    fn io(&mut self, io: &LinuxBlockIo) {
        if let Some(weight) = io.weight().filter(|&weight| weight != 0) {
            self.weight("linux.resources.blockIO.weight", "", weight);
        }
        if let Some(weight) = io.leaf_weight().filter(|&weight| weight != 0) {
            let field = "linux.resources.blockIO.leafWeight";
            if !self.only_v1(field) {
                self.write(field, "blkio.leaf_weight", weight);
            }
        }
        for device in io.weight_device().iter().flatten() {
            let name = format!("{}:{} ", device.major(), device.minor());
            if let Some(weight) = device.weight().filter(|&weight| weight != 0) {
                self.weight("linux.resources.blockIO.weightDevice", &name, weight);
            }
            if let Some(weight) = device.leaf_weight().filter(|&weight| weight != 0) {
                let field = "linux.resources.blockIO.weightDevice.leafWeight";
                if !self.only_v1(field) {
                    self.write(field, "blkio.leaf_weight_device", format!("{name}{weight}"));
                }
            }
        }
        let read_bps = io.throttle_read_bps_device();
        let write_bps = io.throttle_write_bps_device();
        let read_iops = io.throttle_read_iops_device();
        let write_iops = io.throttle_write_iops_device();
        self.throttle("linux.resources.blockIO.throttleReadBpsDevice", "read_bps", "rbps", read_bps);
        self.throttle("linux.resources.blockIO.throttleWriteBpsDevice", "write_bps", "wbps", write_bps);
        self.throttle("linux.resources.blockIO.throttleReadIOPSDevice", "read_iops", "riops", read_iops);
        self.throttle("linux.resources.blockIO.throttleWriteIOPSDevice", "write_iops", "wiops", write_iops);
    }

    /// A share of the disk, for all devices or for one. Two schedulers can divide it: BFQ, which has files of its own
    /// while it is loaded, and CFQ (v1, until Linux 5.0) or io.cost (v2).
    fn weight(&mut self, field: &'static str, device: &str, weight: u16) {
        if !(10..=1000).contains(&weight) {
            return self.problem(field, format!("{weight} is outside of 10..1000"));
        }
        let value = format!("{device}{weight}");
        let (file, other, converted) = match (self.v2, device.is_empty()) {
            (true, _) => ("io.bfq.weight", "io.weight", format!("{device}{}", io_weight(weight))),
            (false, true) => ("blkio.weight", "blkio.bfq.weight", value.clone()),
            (false, false) => ("blkio.weight_device", "blkio.bfq.weight_device", value.clone()),
        };
        self.write_or(field, file, value, Absent::Instead(other, converted));
    }

    fn throttle(&mut self, field: &'static str, v1: &str, v2: &str, devices: &Option<Vec<LinuxThrottleDevice>>) {
        for device in devices.iter().flatten() {
            let (major, minor, rate) = (device.major(), device.minor(), device.rate());
            match self.v2 {
                true => self.write(field, "io.max", format!("{major}:{minor} {v2}={rate}")),
                false => self.write(field, format!("blkio.throttle.{v1}_device"), format!("{major}:{minor} {rate}")),
            }
        }
    }

    fn hugepages(&mut self, limit: &LinuxHugepageLimit) {
        let field = "linux.resources.hugepageLimits";
        let size = limit.page_size();
        if self.layout.has("hugetlb") && !self.layout.hugepage_sizes.iter().any(|known| known == size) {
            let known = self.layout.hugepage_sizes.join(", ");
            return self.problem(field, format!("this machine has no huge pages of {size} (it has {known})"));
        }
        let (file, value) = match self.v2 {
            true => ("max", max_or(limit.limit())),
            false => ("limit_in_bytes", limit.limit().to_string()),
        };
        self.write(field, format!("hugetlb.{size}.{file}"), &value);
        // Reservations are counted apart since Linux 5.7; without a limit they would be a way around the first.
        if self.layout.has("hugetlb") {
            self.write_or(field, format!("hugetlb.{size}.rsvd.{file}"), value, Absent::Skip);
        }
    }

    fn rdma(&mut self, resources: &LinuxResources) {
        let mut devices: Vec<_> = resources.rdma().iter().flatten().collect();
        devices.sort_by_key(|(name, _)| *name);
        for (name, limit) in devices {
            let handles = limit.hca_handles().map(|n| format!(" hca_handle={n}")).unwrap_or_default();
            let objects = limit.hca_objects().map(|n| format!(" hca_object={n}")).unwrap_or_default();
            self.write("linux.resources.rdma", "rdma.max", format!("{name}{handles}{objects}"));
        }
    }

    fn network(&mut self, network: &LinuxNetwork) {
        if let Some(class) = network.class_id().filter(|&class| class != 0) {
            let field = "linux.resources.network.classID";
            if !self.only_v1(field) {
                self.write(field, "net_cls.classid", class);
            }
        }
        for entry in network.priorities().iter().flatten() {
            let field = "linux.resources.network.priorities";
            if !self.only_v1(field) {
                self.write(field, "net_prio.ifpriomap", format!("{} {}", entry.name(), entry.priority()));
            }
        }
    }

    /// Values by the names of v2 files; written last, so that they win over what was converted. A file like `io.max` takes
    /// one device a write: a value of several lines is as many writes.
    fn unified(&mut self, resources: &LinuxResources) {
        let mut entries: Vec<_> = resources.unified().iter().flatten().collect();
        entries.sort();
        for (file, value) in entries {
            let field = format!("linux.resources.unified[{file}]");
            let controller = controller_of(file);
            if !self.v2 {
                self.problem(
                    field,
                    "this host has its controllers in cgroup v1: use the other fields of linux.resources",
                );
            } else if file.contains('/') || !file.contains('.') {
                self.problem(field, "not the name of a cgroup v2 file (controller.setting)");
            } else if controller == "cgroup" && !SETTINGS_OF_THE_CORE.contains(&file.as_str()) {
                let text = format!("not a limit but the runtime's own; of these files use {SETTINGS_OF_THE_CORE:?}");
                self.problem(field, text);
            } else if controller != "cgroup" && !self.layout.has(controller) {
                self.problem(field, format!("no {controller} controller on this host: remove the field"));
            } else {
                self.writes.extend(value.lines().map(|line| Write {
                    controller: controller.to_owned().into(),
                    file: file.clone().into(),
                    value: line.to_owned(),
                    field: field.clone().into(),
                    absent: Absent::Refuse,
                    rest: Rest::None,
                }));
            }
        }
    }
}

/// The files of cgroup v2 itself that limit something. The others move, stop and kill processes.
const SETTINGS_OF_THE_CORE: [&str; 3] = ["cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure"];

/// The kernel names every file by its controller (cgroup v2's interface file conventions; v1 does the same).
pub(super) fn controller_of(file: &str) -> &str {
    file.split_once('.').map_or(file, |(controller, _)| controller)
}

/// v2 says `max` where v1 and OCI say -1.
fn max_or(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

/// CPU shares (2..262144, default 1024) as a v2 weight (1..10000, default 100).
///
/// This is the newer of the two formulas in use (runc since 1.3.2, crun since 1.23): a curve through both ends *and*
/// both defaults. The older one, a straight line, turned the default of 1024 into 39, so that a container that asked
/// for nothing special got 39% of what its neighbours outside of containers had.
pub(super) fn weight_of_shares(shares: u64) -> u64 {
    let log = (shares.clamp(2, 262_144) as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    // 2 shares are 10^0 and 1024 are 10^2, which must not become more by an error in the last digit.
    let weight = 10f64.powf(exponent);
    let nearest = weight.round();
    let weight = if (weight - nearest).abs() < 1e-6 { nearest } else { weight.ceil() };
    (weight as u64).clamp(1, 10_000)
}

/// A blkio weight (10..1000) as an io.weight (1..10000), along a straight line.
pub(super) fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight) - 10) * 9999 / 990
}

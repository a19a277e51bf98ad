//! `linux.resources` -> the values to write, in the order they are written. Nothing is touched here.
//!
//! The numbers are those of the OCI runtime specification, which speaks cgroup v1; on v2 they are converted as runc
//! converts them, each conversion with its reason beside it.

use std::borrow::Cow;
use std::fmt::{self, Display, Formatter};

use nix::errno::Errno;
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxNetwork, LinuxPids, LinuxResources,
    LinuxThrottleDevice,
};

use super::devices::Devices;
use super::layout::Layout;
use super::{Cgroup, CgroupError};

/// The limits of one container, ready to be written. `Display` prints one line for each value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    writes: Vec<Write>,
    /// `None` leaves the devices as they are.
    devices: Option<Devices>,
    /// v2, `checkBeforeUpdate`: refuse when more than so many bytes are in use (memory, memory + swap).
    refuse_above: Option<(Option<i64>, Option<i64>)>,
}

/// One value for one cgroup file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Whose file it is.
    pub controller: Cow<'static, str>,
    /// Its name in the container's directory of that controller.
    pub file: Cow<'static, str>,
    /// What is written.
    pub value: String,
    /// The field of the configuration that asks for it.
    pub field: Cow<'static, str>,
    absent: Absent,
}

/// What it means when a file is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Absent {
    /// The limit cannot be set.
    Refuse,
    /// The kernel lacks what the value would switch off anyway.
    Skip,
    /// This kernel has it under another name and in another range.
    Instead(&'static str, String),
}

/// Something in the configuration that cannot be done here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {text}")]
pub struct Problem {
    /// The field, as a path: `linux.resources.memory.limit`.
    pub field: Cow<'static, str>,
    /// What is wrong with it and what to do.
    pub text: String,
}

impl Limits {
    /// The limits of a new container. Devices are always restricted: to those the configuration lists and the few that
    /// every container has; unless the runtime is in a user namespace, where the kernel lets no one set device rules.
    ///
    /// # Errors
    /// Everything that cannot be done on this machine, all at once.
    pub fn compile(resources: &LinuxResources, layout: &Layout) -> Result<Limits, Vec<Problem>> {
        let mut compiler = Compiler::new(layout);
        let devices = match layout.user_namespace {
            true => None,
            false => compiler.devices(resources),
        };
        compiler.all(resources);
        compiler.finish(devices)
    }

    /// The limits of an update: only what is given, and never devices (as runc has it).
    ///
    /// # Errors
    /// As [`Limits::compile`].
    pub fn compile_update(resources: &LinuxResources, layout: &Layout) -> Result<Limits, Vec<Problem>> {
        let mut compiler = Compiler::new(layout);
        compiler.all(resources);
        compiler.finish(None)
    }

    /// The values, in the order they are written.
    pub fn writes(&self) -> &[Write] {
        &self.writes
    }

    pub(super) fn sets(&self, file: &str) -> bool {
        self.writes.iter().any(|write| write.file == file)
    }
}

impl Display for Limits {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for write in &self.writes {
            writeln!(f, "{write}")?;
        }
        if let Some(devices) = &self.devices {
            write!(f, "{devices}")?;
        }
        Ok(())
    }
}

impl Display for Write {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.file, self.value)?;
        match &self.absent {
            Absent::Refuse => Ok(()),
            Absent::Skip => f.write_str(" (if there)"),
            Absent::Instead(file, value) => write!(f, " (or {file} = {value})"),
        }
    }
}

impl Cgroup {
    /// Changes the limits of a container that may be running.
    ///
    /// # Errors
    /// The first value the kernel refused. Those before it are in force: to undo them, update with the limits from
    /// before.
    pub fn update(&self, limits: &Limits) -> Result<(), CgroupError> {
        if let Some((memory, with_swap)) = limits.refuse_above {
            self.refuse_above(memory, with_swap)?;
        }
        self.apply(limits)
    }

    pub(super) fn apply(&self, limits: &Limits) -> Result<(), CgroupError> {
        // Some pairs (limit and memory+swap, quota and period, shares and idle) must be raised in one order and lowered
        // in the other, which depends on what is in force. The kernel is asked rather than second-guessed: what it
        // calls invalid is tried again after the others, as long as that gets anywhere.
        let mut pending: Vec<&Write> = limits.writes.iter().collect();
        while !pending.is_empty() {
            let before = pending.len();
            let (mut refused, mut first) = (Vec::new(), None);
            for write in pending {
                match self.write(write) {
                    Ok(()) => {}
                    Err(error @ CgroupError::Limit { errno: Errno::EINVAL, .. }) => {
                        first.get_or_insert(error);
                        refused.push(write);
                    }
                    Err(error) => return Err(error),
                }
            }
            match first {
                Some(error) if refused.len() == before => return Err(error),
                _ => pending = refused,
            }
        }
        match &limits.devices {
            Some(devices) => devices.apply(self),
            None => Ok(()),
        }
    }

    fn write(&self, write: &Write) -> Result<(), CgroupError> {
        let mut file = write.file.as_ref();
        let mut value = write.value.as_str();
        let refused = |file: &str, value: &str, errno| {
            let dir = self.with(&write.controller).map(|group| group.place.dir.clone()).unwrap_or_default();
            let hint = match (errno, write.controller.as_ref()) {
                (Errno::ENOENT, _) => ": this kernel or this cgroup does not offer it; remove the field",
                (Errno::EBUSY, "memory") => {
                    ": more than this is in use and could not be reclaimed; choose a higher limit"
                }
                (Errno::EINVAL, "memory") => ": the limit must not be above memory+swap",
                (Errno::EINVAL, "cpu") => ": outside of what the parent cgroup or the kernel allows",
                (Errno::EINVAL | Errno::EACCES | Errno::ERANGE, "cpuset") => {
                    ": these CPUs or nodes do not exist or the parent cgroup lacks them"
                }
                (Errno::ENODEV, "blkio" | "io") => ": no such block device; give a whole disk, not a partition",
                _ => "",
            };
            let field = write.field.to_string();
            CgroupError::Limit { field, value: value.to_owned(), file: dir.join(file), errno, hint }
        };
        let group = self.with(&write.controller).and_then(|group| group.dir.as_ref());
        let Some(dir) = group else { return Err(refused(file, value, Errno::ENOENT)) };
        let mut result = dir.write(file, value);
        match (&write.absent, result) {
            (Absent::Skip, Err(Errno::ENOENT)) => result = Ok(()),
            (Absent::Instead(other, converted), Err(Errno::ENOENT)) => {
                (file, value) = (other, converted);
                result = dir.write(file, value);
            }
            _ => {}
        }
        result.map_err(|errno| refused(file, value, errno))
    }

    fn refuse_above(&self, memory: Option<i64>, with_swap: Option<i64>) -> Result<(), CgroupError> {
        let Some(group) = self.with("memory") else { return Ok(()) };
        let (Some(dir), file) = (&group.dir, "memory.current") else { return Ok(()) };
        let path = group.place.dir.join(file);
        let buffer = &mut Vec::new();
        let text = dir.read(file, buffer).map_err(super::failed("read", &path))?;
        let used: i64 = text.trim().parse().map_err(|_| super::failed("read", &path)(Errno::ERANGE))?;
        for (limit, field) in [(with_swap, "linux.resources.memory.swap"), (memory, "linux.resources.memory.limit")] {
            if let Some(limit) = limit.filter(|&limit| limit > 0 && used > limit) {
                return Err(CgroupError::Limit {
                    field: field.to_owned(),
                    value: limit.to_string(),
                    file: path,
                    errno: Errno::EBUSY,
                    hint: ": more than this is in use, and checkBeforeUpdate asks not to kill for it",
                });
            }
        }
        Ok(())
    }
}

struct Compiler<'a> {
    layout: &'a Layout,
    v2: bool,
    writes: Vec<Write>,
    refuse_above: Option<(Option<i64>, Option<i64>)>,
    problems: Vec<Problem>,
}

impl<'a> Compiler<'a> {
    fn new(layout: &'a Layout) -> Self {
        Compiler { layout, v2: layout.is_v2(), writes: Vec::new(), refuse_above: None, problems: Vec::new() }
    }

    fn finish(self, devices: Option<Devices>) -> Result<Limits, Vec<Problem>> {
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
            self.writes.push(Write { controller, file, value: value.to_string(), field: field.into(), absent });
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

    fn devices(&mut self, resources: &LinuxResources) -> Option<Devices> {
        let rules = resources.devices().as_deref().unwrap_or_default();
        let devices = Devices::compile(rules, self.v2, &mut self.problems);
        // On v2 the filter needs no controller.
        if !self.v2 && !self.needs("devices", "linux.resources.devices") {
            return None;
        }
        Some(devices)
    }

    fn all(&mut self, resources: &LinuxResources) {
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
        if let Some(shares) = cpu.shares().filter(|&shares| shares != 0) {
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
        } else if period.is_some() || quota.is_some() {
            let field = if quota.is_some() { quota_field } else { period_field };
            let quota = quota.filter(|&quota| quota > 0).map_or("max".to_owned(), |quota| quota.to_string());
            self.write(field, "cpu.max", format!("{quota} {}", period.unwrap_or(100_000 /* the kernel's own */)));
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
            if let Some(swap) = self.swap_alone(limit, swap) {
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

    /// Values by the names of v2 files; written last, so that they win over what was converted.
    fn unified(&mut self, resources: &LinuxResources) {
        let mut entries: Vec<_> = resources.unified().iter().flatten().collect();
        entries.sort();
        for (file, value) in entries {
            let field = format!("linux.resources.unified[{file}]");
            let controller = controller_of(file).to_owned();
            if !self.v2 {
                self.problem(
                    field,
                    "this host has its controllers in cgroup v1: use the other fields of linux.resources",
                );
            } else if file.contains('/') || !file.contains('.') {
                self.problem(field, "not the name of a cgroup v2 file (controller.setting)");
            } else if controller != "cgroup" && !self.layout.has(&controller) {
                self.problem(field, format!("no {controller} controller on this host: remove the field"));
            } else {
                let (file, absent) = (file.clone().into(), Absent::Refuse);
                let controller = controller.into();
                self.writes.push(Write { controller, file, value: value.clone(), field: field.into(), absent });
            }
        }
    }
}

/// The kernel names every file by its controller (cgroup v2's interface file conventions; v1 does the same).
fn controller_of(file: &str) -> &str {
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
fn weight_of_shares(shares: u64) -> u64 {
    let log = (shares.clamp(2, 262_144) as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    // 2 shares are 10^0 and 1024 are 10^2, which must not become more by an error in the last digit.
    let weight = 10f64.powf(exponent);
    let nearest = weight.round();
    let weight = if (weight - nearest).abs() < 1e-6 { nearest } else { weight.ceil() };
    (weight as u64).clamp(1, 10_000)
}

/// A blkio weight (10..1000) as an io.weight (1..10000), along a straight line.
fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight) - 10) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use super::super::layout::{Hierarchies, Hierarchy};
    use super::*;

    fn hierarchy(controllers: &[&str]) -> Hierarchy {
        let controllers = controllers.iter().map(|&name| name.to_owned()).collect();
        Hierarchy { controllers, mount: "/m".into(), own: "".into() }
    }

    fn layout(hierarchies: Hierarchies) -> Layout {
        Layout { hierarchies, hugepage_sizes: vec!["2MB".into(), "1GB".into()], user_namespace: false }
    }

    fn v1() -> Layout {
        let all = "cpu cpuset memory pids blkio hugetlb rdma net_cls net_prio devices".split(' ');
        layout(Hierarchies::V1 { controllers: all.map(|name| hierarchy(&[name])).collect(), unified: None })
    }

    fn v2() -> Layout {
        layout(Hierarchies::V2(hierarchy(&["cpu", "cpuset", "memory", "pids", "io", "hugetlb", "rdma"])))
    }

    fn compile(json: &str, layout: &Layout) -> Result<Vec<String>, Vec<String>> {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        match Limits::compile_update(&resources, layout) {
            Ok(limits) => Ok(limits.to_string().lines().map(str::to_owned).collect()),
            Err(problems) => Err(problems.iter().map(Problem::to_string).collect()),
        }
    }

    #[test]
    fn each_field_becomes_the_file_of_its_version() {
        for (json, on_v1, on_v2) in [
            (r#"{"cpu":{"shares":1024}}"#, &["cpu.shares = 1024"][..], &["cpu.weight = 100"][..]),
            (r#"{"cpu":{"shares":0,"quota":0,"period":0}}"#, &[], &[]),
            (
                r#"{"cpu":{"quota":20000,"period":50000}}"#,
                &["cpu.cfs_period_us = 50000", "cpu.cfs_quota_us = 20000"],
                &["cpu.max = 20000 50000"],
            ),
            (r#"{"cpu":{"quota":-1}}"#, &["cpu.cfs_quota_us = -1"], &["cpu.max = max 100000"]),
            (
                r#"{"cpu":{"idle":1,"burst":5000}}"#,
                &["cpu.idle = 1", "cpu.cfs_burst_us = 5000"],
                &["cpu.idle = 1", "cpu.max.burst = 5000"],
            ),
            (
                r#"{"cpu":{"cpus":"0-3","mems":"0"}}"#,
                &["cpuset.cpus = 0-3", "cpuset.mems = 0"],
                &["cpuset.cpus = 0-3", "cpuset.mems = 0"],
            ),
            (
                r#"{"memory":{"limit":100,"swap":250,"reservation":50}}"#,
                &[
                    "memory.limit_in_bytes = 100",
                    "memory.memsw.limit_in_bytes = 250",
                    "memory.soft_limit_in_bytes = 50",
                ],
                &["memory.swap.max = 150", "memory.max = 100", "memory.low = 50"],
            ),
            (
                r#"{"memory":{"limit":100,"swap":100}}"#,
                &["memory.limit_in_bytes = 100", "memory.memsw.limit_in_bytes = 100"],
                &["memory.swap.max = 0 (if there)", "memory.max = 100"],
            ),
            (
                r#"{"memory":{"limit":-1}}"#,
                &["memory.limit_in_bytes = -1", "memory.memsw.limit_in_bytes = -1 (if there)"],
                &["memory.swap.max = max (if there)", "memory.max = max"],
            ),
            (
                r#"{"memory":{"limit":100,"swap":-1}}"#,
                &["memory.limit_in_bytes = 100", "memory.memsw.limit_in_bytes = -1 (if there)"],
                &["memory.swap.max = max (if there)", "memory.max = 100"],
            ),
            (r#"{"memory":{"kernel":4096,"swappiness":18446744073709551615,"disableOOMKiller":false}}"#, &[], &[]),
            (r#"{"pids":{"limit":32}}"#, &["pids.max = 32"], &["pids.max = 32"]),
            (r#"{"pids":{"limit":-1}}"#, &["pids.max = max"], &["pids.max = max"]),
            (r#"{"pids":{"limit":0}}"#, &[], &[]),
            (
                r#"{"blockIO":{"weight":500,"weightDevice":[{"major":8,"minor":0,"weight":10}],
                    "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1048576}],
                    "throttleWriteIOPSDevice":[{"major":8,"minor":16,"rate":20}]}}"#,
                &[
                    "blkio.weight = 500 (or blkio.bfq.weight = 500)",
                    "blkio.weight_device = 8:0 10 (or blkio.bfq.weight_device = 8:0 10)",
                    "blkio.throttle.read_bps_device = 8:0 1048576",
                    "blkio.throttle.write_iops_device = 8:16 20",
                ],
                &[
                    "io.bfq.weight = 500 (or io.weight = 4950)",
                    "io.bfq.weight = 8:0 10 (or io.weight = 8:0 1)",
                    "io.max = 8:0 rbps=1048576",
                    "io.max = 8:16 wiops=20",
                ],
            ),
            (
                r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#,
                &["hugetlb.2MB.limit_in_bytes = 4194304", "hugetlb.2MB.rsvd.limit_in_bytes = 4194304 (if there)"],
                &["hugetlb.2MB.max = 4194304", "hugetlb.2MB.rsvd.max = 4194304 (if there)"],
            ),
            (
                r#"{"rdma":{"mlx5_1":{"hcaHandles":3,"hcaObjects":10000},"mlx4_0":{"hcaObjects":7}}}"#,
                &["rdma.max = mlx4_0 hca_object=7", "rdma.max = mlx5_1 hca_handle=3 hca_object=10000"],
                &["rdma.max = mlx4_0 hca_object=7", "rdma.max = mlx5_1 hca_handle=3 hca_object=10000"],
            ),
        ] {
            assert_eq!(compile(json, &v1()).as_deref(), Ok(on_v1.map_owned().as_slice()), "v1: {json}");
            assert_eq!(compile(json, &v2()).as_deref(), Ok(on_v2.map_owned().as_slice()), "v2: {json}");
        }
    }

    trait MapOwned {
        fn map_owned(&self) -> Vec<String>;
    }

    impl MapOwned for [&str] {
        fn map_owned(&self) -> Vec<String> {
            self.iter().map(|&line| line.to_owned()).collect()
        }
    }

    #[test]
    fn what_only_v1_has() {
        for (json, on_v1, field) in [
            (r#"{"cpu":{"realtimePeriod":1000000}}"#, "cpu.rt_period_us = 1000000", "cpu.realtimePeriod"),
            (r#"{"cpu":{"realtimeRuntime":950000}}"#, "cpu.rt_runtime_us = 950000", "cpu.realtimeRuntime"),
            (r#"{"memory":{"kernelTCP":4096}}"#, "memory.kmem.tcp.limit_in_bytes = 4096", "memory.kernelTCP"),
            (r#"{"memory":{"swappiness":0}}"#, "memory.swappiness = 0", "memory.swappiness"),
            (r#"{"memory":{"disableOOMKiller":true}}"#, "memory.oom_control = 1", "memory.disableOOMKiller"),
            (r#"{"blockIO":{"leafWeight":300}}"#, "blkio.leaf_weight = 300", "blockIO.leafWeight"),
            (r#"{"network":{"classID":1048577}}"#, "net_cls.classid = 1048577", "network.classID"),
            (
                r#"{"network":{"priorities":[{"name":"eth0","priority":5}]}}"#,
                "net_prio.ifpriomap = eth0 5",
                "network.priorities",
            ),
        ] {
            assert_eq!(compile(json, &v1()), Ok(vec![on_v1.to_owned()]));
            let text = format!("linux.resources.{field}: cgroup v2 has no such setting: remove the field");
            assert_eq!(compile(json, &v2()), Err(vec![text]));
        }
    }

    #[test]
    fn unified_is_written_last_and_only_on_v2() {
        let json = r#"{"unified":{"pids.max":"9","memory.high":"100","cgroup.max.depth":"3"},"pids":{"limit":5}}"#;
        let lines = ["pids.max = 5", "cgroup.max.depth = 3", "memory.high = 100", "pids.max = 9"];
        assert_eq!(compile(json, &v2()), Ok(lines.map(str::to_owned).to_vec()));
        assert_eq!(compile(json, &v1()).unwrap_err().len(), 3);
        for bad in
            [r#"{"unified":{"../pids.max":"9"}}"#, r#"{"unified":{"pids":"9"}}"#, r#"{"unified":{"misc.max":"9"}}"#]
        {
            assert_eq!(compile(bad, &v2()).unwrap_err().len(), 1, "{bad}");
        }
    }

    #[test]
    fn a_missing_controller_is_named_and_only_when_asked_for() {
        let bare = layout(Hierarchies::V1 { controllers: vec![hierarchy(&["devices"])], unified: None });
        let nothing = r#"{"pids":{"limit":0},"memory":{"limit":0},"hugepageLimits":[],"cpu":{"cpus":""}}"#;
        assert_eq!(compile(nothing, &bare), Ok(vec![]));
        let problems = compile(r#"{"pids":{"limit":1},"hugepageLimits":[{"pageSize":"2MB","limit":0}]}"#, &bare);
        let expected = "linux.resources.hugepageLimits: no hugetlb controller on this host: remove the field, \
                        or mount it (mount -t cgroup -o hugetlb none /sys/fs/cgroup/hugetlb)";
        let problems = problems.unwrap_err();
        assert_eq!(problems.len(), 2, "all at once: {problems:?}");
        assert_eq!(problems[1], expected);
    }

    #[test]
    fn values_the_kernel_would_misread_are_refused() {
        for (json, layout, field) in [
            (r#"{"cpu":{"shares":1}}"#, v1(), "cpu.shares: 1 is outside of 2..262144"),
            (r#"{"memory":{"swappiness":101}}"#, v1(), "memory.swappiness: 101 is outside of 0..100"),
            (r#"{"blockIO":{"weight":5}}"#, v1(), "blockIO.weight: 5 is outside of 10..1000"),
            (
                r#"{"hugepageLimits":[{"pageSize":"3MB","limit":1}]}"#,
                v2(),
                "hugepageLimits: this machine has no huge pages of 3MB (it has 2MB, 1GB)",
            ),
            (
                r#"{"memory":{"swap":100}}"#,
                v2(),
                "memory.swap: without linux.resources.memory.limit it cannot be told how much of it is swap",
            ),
            (
                r#"{"memory":{"limit":100,"swap":50}}"#,
                v2(),
                "memory.swap: 50 counts memory and swap, so it must not be below the limit of 100",
            ),
        ] {
            assert_eq!(compile(json, &layout), Err(vec![format!("linux.resources.{field}")]));
        }
    }

    #[test]
    fn shares_meet_both_ends_and_both_defaults() {
        for (shares, weight) in [(0, 1), (1, 1), (2, 1), (1024, 100), (262_144, 10_000), (u64::MAX, 10_000)] {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
        let weights: Vec<u64> = (2..=262_144).step_by(7).map(weight_of_shares).collect();
        assert!(weights.is_sorted());
        assert_eq!([10, 55, 1000].map(io_weight), [1, 455, 10_000]);
    }

    #[test]
    fn a_new_container_always_has_device_rules_an_update_none() {
        let resources = LinuxResources::default();
        assert!(Limits::compile(&resources, &v1()).unwrap().to_string().starts_with("devices.deny = a\n"));
        assert!(Limits::compile(&resources, &v2()).unwrap().to_string().starts_with("device filter of "));
        assert_eq!(Limits::compile_update(&resources, &v1()).unwrap().to_string(), "");
        let nested = Layout { user_namespace: true, ..v1() };
        assert_eq!(Limits::compile(&resources, &nested).unwrap().to_string(), "");
    }
}

//! What systemd is told of a container's limits: read off the very values that are written to the cgroup's files, so that
//! the two cannot disagree. What systemd has no property for is in the files alone, where it leaves it.
//!
//! The names and types are those of `org.freedesktop.systemd1.Scope` (org.freedesktop.systemd1(5)), the meaning that of
//! systemd.resource-control(5).

use std::fmt;

use zbus::Variant;

use super::Unit;
use crate::cgroup::devices::Allowed;
use crate::cgroup::{Layout, Limits};

/// Infinity, to systemd.
const INFINITY: u64 = u64::MAX;

/// One property of a unit.
#[derive(Clone, Debug, PartialEq)]
pub struct Property {
    /// Its name.
    pub(super) name: String,
    /// Its value, of the type that systemd expects.
    pub(super) value: Variant<'static>,
    /// The version of systemd that knows it; an older one is not told.
    pub(super) since: u16,
}

impl Property {
    pub(super) fn new(name: impl Into<String>, value: impl Into<Variant<'static>>) -> Property {
        Property { name: name.into(), value: value.into(), since: 0 }
    }

    fn since(self, since: u16) -> Property {
        Property { since, ..self }
    }
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.value)?;
        if self.since > 0 {
            write!(f, " (systemd {})", self.since)?;
        }
        Ok(())
    }
}

/// What a new unit has. The process is not known yet.
pub(super) fn of_new(id: &str, unit: &Unit, limits: &Limits, layout: &Layout) -> Vec<Property> {
    let mut all = vec![Property::new("Description", format!("dunnage container {id}"))];
    match unit.is_slice() {
        true => all.push(Property::new("Wants", vec![unit.slice().to_owned()])),
        false => all.extend(of_scope(unit.slice())),
    }
    let io = if layout.is_v2() { "IOAccounting" } else { "BlockIOAccounting" };
    let counted = ["MemoryAccounting", "CPUAccounting", io, "TasksAccounting"];
    all.extend(counted.map(|name| Property::new(name, true)));
    // At shutdown whoever runs the containers stops them, in his own order.
    all.push(Property::new("DefaultDependencies", false));
    all.extend(changes(limits, layout));
    if !unit.is_slice() {
        all.extend(oom_policy(limits));
    }
    if limits.allowed_devices().is_some() {
        all.push(Property::new("DevicePolicy", "strict"));
    }
    all
}

/// What each of our scopes has.
fn of_scope(slice: &str) -> [Property; 3] {
    [
        Property::new("Slice", slice.to_owned()),
        Property::new("Delegate", true),
        // A unit that has failed is forgotten like any other.
        Property::new("CollectMode", "inactive-or-failed").since(236),
    ]
}

/// What a scope has in which a process makes cgroups by itself.
pub(super) fn of_enclosure(description: &str, slice: &str) -> Vec<Property> {
    let mut all = vec![Property::new("Description", description.to_owned())];
    all.extend(of_scope(slice));
    all
}

/// The devices that may be used, by the names that systemd takes for them. All of one major number go by the name that the
/// kernel has for it, which `devices`, the text of `/proc/devices`, tells.
pub(super) fn devices(allowed: &[Allowed], devices: &str) -> Property {
    let (chars, blocks) = devices.split_once("Block devices:").unwrap_or((devices, ""));
    let name_of = |char: bool, major: u32| {
        let lines = if char { chars } else { blocks }.lines();
        let numbered = lines.filter_map(|line| line.trim().split_once(' '));
        numbered.filter(|(number, _)| number.parse() == Ok(major)).map(|(_, name)| name.trim().to_owned()).next()
    };
    let mut list: Vec<(String, String)> = Vec::new();
    for (char, major, minor, access) in allowed {
        let kind = if *char { "char" } else { "block" };
        let name = match (major, minor) {
            (Some(major), Some(minor)) => Some(format!("/dev/{kind}/{major}:{minor}")),
            (Some(major), None) => name_of(*char, *major).map(|name| format!("{kind}-{name}")),
            (None, _) => Some(format!("{kind}-*")),
        };
        match name {
            Some(name) => list.push((name, access.clone())),
            // No driver has it, so there is nothing to open; the files allow it, for a driver that comes later.
            None => log::debug!("systemd cannot be told of {kind} devices with the major number {major:?}"),
        }
    }
    Property::new("DeviceAllow", list)
}

/// What changes with these limits.
pub fn changes(limits: &Limits, layout: &Layout) -> Vec<Property> {
    let mut all = Vec::new();
    let mut set = |property: Property| {
        // Later ones win, as later writes do.
        all.retain(|other: &Property| other.name != property.name);
        all.push(property);
    };
    let (mut quota, mut period) = (None, None);
    for write in limits.writes() {
        // Where there are two files for one thing, the second has the range of values that systemd's property has.
        let (file, value) = write.instead().filter(|_| layout.is_v2()).unwrap_or((&write.file, &write.value));
        let value = value.trim();
        match (file, number(value)) {
            ("cpu.weight", Some(weight)) => set(Property::new("CPUWeight", weight)),
            ("cpu.shares", Some(shares)) => set(Property::new("CPUShares", shares)),
            // That it is no longer idle is in the weight it has then. To cgroup v1 systemd takes this for the least share.
            ("cpu.idle", Some(1)) if layout.is_v2() => set(Property::new("CPUWeight", 0_u64).since(252)),
            ("cpu.max", _) => {
                let mut words = value.split_whitespace().map(number);
                (quota, period) = (words.next().flatten(), words.next().flatten());
            }
            ("cpu.cfs_quota_us", number) => quota = number,
            ("cpu.cfs_period_us", number) => period = number,
            ("cpuset.cpus", _) if layout.is_v2() => mask("AllowedCPUs", value).into_iter().for_each(&mut set),
            ("cpuset.mems", _) if layout.is_v2() => mask("AllowedMemoryNodes", value).into_iter().for_each(&mut set),
            ("memory.max", Some(bytes)) => set(Property::new("MemoryMax", bytes)),
            ("memory.high", Some(bytes)) => set(Property::new("MemoryHigh", bytes)),
            ("memory.low", Some(bytes)) => set(Property::new("MemoryLow", bytes)),
            ("memory.min", Some(bytes)) => set(Property::new("MemoryMin", bytes)),
            ("memory.swap.max", Some(bytes)) => set(Property::new("MemorySwapMax", bytes)),
            ("memory.zswap.max", Some(bytes)) => set(Property::new("MemoryZSwapMax", bytes).since(253)),
            ("memory.zswap.writeback", Some(on)) => set(Property::new("MemoryZSwapWriteback", on != 0).since(256)),
            ("memory.limit_in_bytes", Some(bytes)) => set(Property::new("MemoryLimit", bytes)),
            ("pids.max", Some(tasks)) => set(Property::new("TasksMax", tasks)),
            ("io.weight", _) => {
                if let Some(weight) = number(value.trim_start_matches("default ")) {
                    set(Property::new("IOWeight", weight));
                }
            }
            ("blkio.weight", Some(weight)) => set(Property::new("BlockIOWeight", weight)),
            _ => {}
        }
    }
    if let Some(period) = period {
        set(Property::new("CPUQuotaPeriodUSec", period).since(242));
    }
    match quota {
        Some(INFINITY) => set(Property::new("CPUQuotaPerSecUSec", INFINITY)),
        Some(quota) => set(Property::new("CPUQuotaPerSecUSec", per_second(quota, period.unwrap_or(100_000)))),
        None => {}
    }
    all
}

/// Microseconds of CPU time in a second. systemd counts whole percents, so what is less than one more is rounded up: the
/// container's cgroup must not get less than those below it may be given.
fn per_second(quota: u64, period: u64) -> u64 {
    let percents = (u128::from(quota) * 100).div_ceil(u128::from(period.max(1)));
    u64::try_from(percents.saturating_mul(10_000)).unwrap_or(INFINITY)
}

/// What a unit does when the kernel kills one of its processes for memory.
fn oom_policy(limits: &Limits) -> Option<Property> {
    let group = limits.writes().iter().rfind(|write| write.file == "memory.oom.group")?;
    let policy = if group.value.trim() == "1" { "kill" } else { "continue" };
    Some(Property::new("OOMPolicy", policy).since(253))
}

/// A number; `max` and everything negative is infinity.
fn number(text: &str) -> Option<u64> {
    match text {
        "max" => Some(INFINITY),
        text if text.starts_with('-') => Some(INFINITY),
        text => text.parse().ok(),
    }
}

/// A list such as `0-3,7` as a bit mask in bytes, the lowest first. One that is none the kernel refuses, when it comes to
/// the file.
fn mask(name: &str, list: &str) -> Option<Property> {
    let mut mask: Vec<u8> = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u16, u16) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        for bit in usize::from(first)..=usize::from(last) {
            if mask.len() <= bit / 8 {
                mask.resize(bit / 8 + 1, 0);
            }
            mask[bit / 8] |= 1 << (bit % 8);
        }
    }
    Some(Property::new(name, mask).since(244))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::{Hierarchies, Hierarchy};
    use oci_spec::runtime::LinuxResources;

    fn layout(v2: bool) -> Layout {
        let names = ["cpu", "cpuset", "memory", "pids", "io", "blkio", "devices"];
        let hierarchy =
            Hierarchy { controllers: names.map(str::to_owned).to_vec(), mount: "/m".into(), own: "".into() };
        let hierarchies = match v2 {
            true => Hierarchies::V2(hierarchy),
            false => Hierarchies::V1 { controllers: vec![hierarchy], unified: None },
        };
        Layout { hierarchies, hugepage_sizes: vec![], user_namespace: false }
    }

    fn told(v2: bool, resources: &str) -> Vec<String> {
        let resources: LinuxResources = serde_json::from_str(resources).unwrap();
        let limits = Limits::compile(&resources, &layout(v2)).unwrap();
        let mut told: Vec<_> = changes(&limits, &layout(v2)).iter().map(Property::to_string).collect();
        told.sort();
        told
    }

    const RESOURCES: &str = r#"{"cpu":{"shares":1024,"quota":50500,"period":100000,"cpus":"0-1,9"},
        "memory":{"limit":1048576,"swap":2097152,"reservation":524288},"pids":{"limit":7},"blockIO":{"weight":500}}"#;

    #[test]
    fn systemd_is_told_what_the_files_are() {
        assert_eq!(
            told(true, RESOURCES),
            [
                "AllowedCPUs=[byte 0x03, 0x02] (systemd 244)",
                "CPUQuotaPerSecUSec=uint64 510000",
                "CPUQuotaPeriodUSec=uint64 100000 (systemd 242)",
                "CPUWeight=uint64 100",
                "IOWeight=uint64 4950",
                "MemoryLow=uint64 524288",
                "MemoryMax=uint64 1048576",
                "MemorySwapMax=uint64 1048576",
                "TasksMax=uint64 7",
            ]
        );
        assert_eq!(
            told(false, RESOURCES),
            [
                "BlockIOWeight=uint64 500",
                "CPUQuotaPerSecUSec=uint64 510000",
                "CPUQuotaPeriodUSec=uint64 100000 (systemd 242)",
                "CPUShares=uint64 1024",
                "MemoryLimit=uint64 1048576",
                "TasksMax=uint64 7",
            ]
        );
    }

    #[test]
    fn no_limit_is_infinity_and_the_last_word_counts() {
        let unified = r#"{"memory":{"limit":-1},"pids":{"limit":-1},"cpu":{"quota":-1},
            "unified":{"cpu.max":"max 50000","memory.high":"4096","cpu.weight":"7","pids.max":"9"}}"#;
        assert_eq!(
            told(true, unified),
            [
                "CPUQuotaPerSecUSec=uint64 18446744073709551615",
                "CPUQuotaPeriodUSec=uint64 50000 (systemd 242)",
                "CPUWeight=uint64 7",
                "MemoryHigh=uint64 4096",
                "MemoryMax=uint64 18446744073709551615",
                "MemorySwapMax=uint64 18446744073709551615",
                "TasksMax=uint64 9",
            ]
        );
    }

    #[test]
    fn what_is_given_in_the_words_of_the_kernel_is_understood() {
        assert_eq!(told(true, r#"{"unified":{"io.weight":"default 200"}}"#), ["IOWeight=uint64 200"]);
        assert_eq!(told(true, r#"{"unified":{"io.weight":"8:0 200"}}"#), [""; 0]);
        assert_eq!(
            told(true, r#"{"unified":{"memory.zswap.max":"4096","memory.zswap.writeback":"0"}}"#),
            ["MemoryZSwapMax=uint64 4096 (systemd 253)", "MemoryZSwapWriteback=false (systemd 256)"]
        );
        assert_eq!(told(true, r#"{"cpu":{"idle":1}}"#), ["CPUWeight=uint64 0 (systemd 252)"]);
        assert_eq!(told(false, r#"{"cpu":{"idle":1}}"#), [""; 0], "it would take it for the least share");
    }

    #[test]
    fn devices_have_the_names_that_systemd_takes() {
        let text = "Character devices:\n  1 mem\n136 pts\n\nBlock devices:\n  8 sd\n";
        let access = |text: &str| text.to_owned();
        let allowed = [
            (true, None, None, access("m")),
            (true, Some(1), Some(3), access("rwm")),
            (true, Some(136), None, access("rw")),
            (false, Some(8), None, access("r")),
            (false, Some(136), None, access("r")),
        ];
        assert_eq!(
            devices(&allowed, text).to_string(),
            r#"DeviceAllow=[("char-*", "m"), ("/dev/char/1:3", "rwm"), ("char-pts", "rw"), ("block-sd", "r")]"#
        );
    }

    #[test]
    fn a_share_of_a_percent_is_rounded_up() {
        assert_eq!(per_second(100_000, 100_000), 1_000_000);
        assert_eq!(per_second(1_000, 100_000), 10_000);
        assert_eq!(per_second(1_001, 100_000), 20_000);
        assert_eq!(per_second(1, 1_000_000), 10_000);
        assert_eq!(per_second(INFINITY - 1, 1), INFINITY);
    }
}

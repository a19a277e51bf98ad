//! Which devices a container may use: the rules of the configuration, and how v1 (a list in files) and v2 (a BPF program)
//! are told.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::dir::{Dir, hand_over};
use super::limits::Problem;
use super::{Cgroup, CgroupError, Group, failed};
use crate::sys::cgroup as sys;

const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;

const FIELD: &str = "linux.resources.devices";

/// What every container may use, whatever its configuration says: the devices the OCI specification puts into its /dev,
/// making nodes (not using them), and tun, which has no place there, but which runc 1.2.4 and crun 1.20 had to give back
/// after they had taken it: too many rely on it who cannot ask for it.
const DEFAULTS: [Rule; 12] = [
    rule(Kind::Char, None, None, MKNOD),
    rule(Kind::Block, None, None, MKNOD),
    rule(Kind::Char, Some(1), Some(3), ALL),    // null
    rule(Kind::Char, Some(1), Some(5), ALL),    // zero
    rule(Kind::Char, Some(1), Some(7), ALL),    // full
    rule(Kind::Char, Some(1), Some(8), ALL),    // random
    rule(Kind::Char, Some(1), Some(9), ALL),    // urandom
    rule(Kind::Char, Some(5), Some(0), ALL),    // tty
    rule(Kind::Char, Some(5), Some(1), ALL),    // console
    rule(Kind::Char, Some(5), Some(2), ALL),    // ptmx
    rule(Kind::Char, Some(10), Some(200), ALL), // net/tun
    rule(Kind::Char, Some(136), None, ALL),     // pts/*
];

const fn rule(kind: Kind, major: Option<u32>, minor: Option<u32>, access: u8) -> Rule {
    Rule { allow: true, key: Key { kind, major, minor }, access }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Block = 1,
    Char = 2,
}

/// Which devices; `None` is every number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    kind: Kind,
    major: Option<u32>,
    minor: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    key: Key,
    access: u8,
}

/// The device rules of one container. A later rule wins over an earlier one, for each kind of access apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Devices {
    /// What v1 can hold: a default and its exceptions.
    List(List),
    /// A v2 filter: eBPF instructions.
    Filter(Vec<u64>),
}

/// A default, and the accesses for which the contrary holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct List {
    allow: bool,
    exceptions: BTreeMap<Key, u8>,
}

impl Devices {
    pub(super) fn compile(given: &[LinuxDeviceCgroup], v2: bool, problems: &mut Vec<Problem>) -> Devices {
        // Nothing is allowed until a rule allows it, as with runc.
        let (mut default, mut rules) = (false, Vec::new());
        for (index, given) in given.iter().enumerate() {
            match read(given) {
                // Everything: no earlier rule has a say any more.
                Ok(Read::Everything(allow)) => {
                    default = allow;
                    rules.clear();
                }
                Ok(Read::Rules(read)) => rules.extend(read),
                Err(text) => problems.push(Problem { field: format!("{FIELD}[{index}]").into(), text }),
            }
        }
        rules.extend(DEFAULTS);
        if v2 {
            return Devices::Filter(filter(default, &rules));
        }
        let mut list = List { allow: default, exceptions: BTreeMap::new() };
        for rule in rules {
            if let Err(text) = list.add(rule) {
                problems.push(Problem { field: FIELD.into(), text });
            }
        }
        Devices::List(list)
    }

    pub(super) fn apply(&self, cgroup: &Cgroup) -> Result<(), CgroupError> {
        match self {
            Devices::List(list) => list.apply(cgroup),
            Devices::Filter(filter) => attach(cgroup, filter),
        }
    }
}

enum Read {
    Everything(bool),
    Rules(Vec<Rule>),
}

fn read(given: &LinuxDeviceCgroup) -> Result<Read, String> {
    let number = |number: Option<i64>| match number {
        None | Some(-1) => Ok(None),
        Some(number) => u32::try_from(number).map(Some).map_err(|_| format!("{number} is no device number")),
    };
    let (major, minor) = (number(given.major())?, number(given.minor())?);
    let mut access = 0;
    for letter in given.access().as_deref().unwrap_or("rwm").chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            other => return Err(format!("access {other:?} is none of r, w and m")),
        };
    }
    let kinds = match given.typ().unwrap_or(LinuxDeviceType::A) {
        LinuxDeviceType::B => vec![Kind::Block],
        LinuxDeviceType::C | LinuxDeviceType::U => vec![Kind::Char],
        LinuxDeviceType::A if major.is_none() && minor.is_none() && access == ALL => {
            return Ok(Read::Everything(given.allow()));
        }
        LinuxDeviceType::A => vec![Kind::Block, Kind::Char],
        LinuxDeviceType::P => return Err("a FIFO is no device; its access cannot be restricted".to_owned()),
    };
    let rule = |kind| Rule { allow: given.allow(), key: Key { kind, major, minor }, access };
    Ok(Read::Rules(kinds.into_iter().map(rule).collect()))
}

impl Key {
    fn covers(&self, other: &Key) -> bool {
        let wider = |a: Option<u32>, b: Option<u32>| a.is_none() || a == b;
        self.kind == other.kind && wider(self.major, other.major) && wider(self.minor, other.minor)
    }

    fn overlaps(&self, other: &Key) -> bool {
        let meet = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        self.kind == other.kind && meet(self.major, other.major) && meet(self.minor, other.minor)
    }
}

impl List {
    /// Adds a rule behind those that are there.
    fn add(&mut self, rule: Rule) -> Result<(), String> {
        if rule.allow != self.allow {
            *self.exceptions.entry(rule.key).or_default() |= rule.access;
            return Ok(());
        }
        for (key, access) in &mut self.exceptions {
            if rule.key.covers(key) {
                *access &= !rule.access;
            } else if rule.key.overlaps(key) && *access & rule.access != 0 {
                let verb = if rule.allow { "allow" } else { "deny" };
                return Err(format!(
                    "cgroup v1 cannot {verb} {} again inside of {}: give the rules without the overlap",
                    Line(&rule.key, rule.access),
                    Line(key, *access)
                ));
            }
        }
        self.exceptions.retain(|_, access| *access != 0);
        Ok(())
    }

    fn apply(&self, cgroup: &Cgroup) -> Result<(), CgroupError> {
        let doing = "restrict devices of the container";
        let group = cgroup.with("devices").ok_or(CgroupError::NoController { doing, controller: "devices" })?;
        let dir = group.dir.as_ref().ok_or(CgroupError::NoController { doing, controller: "devices" })?;
        // A list that denies by default takes this from any state. One that allows by default can be lacking only under
        // a parent that denies, where the kernel then says so.
        match self.write(self.allow, group, dir, std::iter::once("a".to_owned())) {
            // With cgroups below, which the container made, the kernel takes no other list, from systemd neither.
            Err(CgroupError::Limit { errno: Errno::EINVAL, .. })
                if dir.children().is_ok_and(|children| !children.is_empty()) => {}
            written => written?,
        }
        self.write(!self.allow, group, dir, self.exceptions.iter().map(|(key, access)| Line(key, *access).to_string()))
    }

    fn write(
        &self,
        allow: bool,
        group: &Group,
        dir: &Dir,
        mut values: impl Iterator<Item = String>,
    ) -> Result<(), CgroupError> {
        let file = if allow { "devices.allow" } else { "devices.deny" };
        let path = group.place.dir.join(file);
        let fd = dir.open_file(file, OFlag::O_WRONLY).map_err(failed("open", &path))?;
        values.try_for_each(|value| {
            hand_over(&fd, &value).map_err(|errno| CgroupError::Limit {
                field: FIELD.to_owned(),
                value,
                file: path.clone(),
                errno,
                hint: match errno {
                    Errno::EPERM => {
                        ": the parent cgroup does not allow it; a nested runtime cannot give what it has not".into()
                    }
                    _ => "".into(),
                },
            })
        })
    }
}

/// A rule as devices.allow and devices.deny take it.
struct Line<'a>(&'a Key, u8);

impl Display for Line<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Line(Key { kind, major, minor }, access) = self;
        let number = |number: &Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        let kind = if *kind == Kind::Char { 'c' } else { 'b' };
        write!(f, "{kind} {}:{} {}", number(major), number(minor), Letters(*access))
    }
}

/// A device that may be used: whether it is a character device, its numbers if not all, and the access as letters.
pub(super) type Allowed = (bool, Option<u32>, Option<u32>, String);

impl Devices {
    /// What may be used, of a v1 list. One that allows all but some counts as allowing all.
    pub(super) fn allowed(&self) -> Option<Vec<Allowed>> {
        let Devices::List(list) = self else { return None };
        let all = |char| (char, None, None, "rwm".to_owned());
        let one =
            |(key, access): (&Key, &u8)| (key.kind == Kind::Char, key.major, key.minor, Letters(*access).to_string());
        match list.allow {
            true => Some(vec![all(true), all(false)]),
            false => Some(list.exceptions.iter().map(one).collect()),
        }
    }
}

/// An access as devices.allow and systemd have it.
struct Letters(u8);

impl Display for Letters {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        [(READ, "r"), (WRITE, "w"), (MKNOD, "m")]
            .into_iter()
            .try_for_each(|(bit, letter)| f.write_str(if self.0 & bit != 0 { letter } else { "" }))
    }
}

impl Display for Devices {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Devices::Filter(filter) => writeln!(f, "device filter of {} instructions", filter.len()),
            Devices::List(list) => {
                let (default, exception) = if list.allow { ("allow", "deny") } else { ("deny", "allow") };
                writeln!(f, "devices.{default} = a")?;
                list.exceptions
                    .iter()
                    .try_for_each(|(key, access)| writeln!(f, "devices.{exception} = {}", Line(key, *access)))
            }
        }
    }
}

/// Compiles rules to a `BPF_PROG_TYPE_CGROUP_DEVICE` program: 1 allows, 0 denies.
///
/// It is handed the accesses asked for at once (open for reading and writing is one question). The rules are asked from
/// the last to the first, and each settles the accesses it speaks of: one that denies an unsettled one ends it; one that
/// allows takes its own off the list; and when none is left, all were allowed. What no rule speaks of, the default settles.
fn filter(default: bool, rules: &[Rule]) -> Vec<u64> {
    // Registers: r1 the context, r2 kind, r3 accesses not settled yet, r4 major, r5 minor, r6 scratch.
    let mut program = vec![
        op(LOAD_WORD, 2, 1, 0, 0), // access_type: accesses << 16 | kind
        op(COPY, 3, 2, 0, 0),
        op(AND, 2, 0, 0, 0xffff),
        op(SHIFT_RIGHT, 3, 0, 0, 16),
        op(LOAD_WORD, 4, 1, 4, 0), // major
        op(LOAD_WORD, 5, 1, 8, 0), // minor
    ];
    for rule in rules.iter().rev() {
        let access = i32::from(rule.access);
        let mut block = match rule.allow {
            // r3 &= !access; if r3 == 0 return 1
            true => vec![op(AND, 3, 0, 0, !access), op(JUMP_NE, 3, 0, 2, 0), op(SET, 0, 0, 0, 1), op(EXIT, 0, 0, 0, 0)],
            // if r3 & access return 0
            false => vec![
                op(COPY, 6, 3, 0, 0),
                op(AND, 6, 0, 0, access),
                op(JUMP_EQ, 6, 0, 2, 0),
                op(SET, 0, 0, 0, 0),
                op(EXIT, 0, 0, 0, 0),
            ],
        };
        // Each test jumps over the rest of this rule. Device numbers are compared as 32-bit ones, hence no sign matters.
        for (register, number) in [(5, rule.key.minor), (4, rule.key.major), (2, Some(rule.key.kind as u32))] {
            if let Some(number) = number {
                block.insert(0, op(JUMP_NE, register, 0, block.len() as i16, number as i32));
            }
        }
        program.extend(block);
    }
    program.extend([op(SET, 0, 0, 0, i32::from(default)), op(EXIT, 0, 0, 0, 0)]);
    program
}

// eBPF opcodes (Documentation/bpf/standardization/instruction-set.rst). The 32-bit forms clear the upper half.
const LOAD_WORD: u8 = 0x61;
const COPY: u8 = 0xbc;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const SET: u8 = 0xb4;
const JUMP_EQ: u8 = 0x16;
const JUMP_NE: u8 = 0x56;
const EXIT: u8 = 0x95;

/// One instruction: opcode, destination, source, offset, immediate.
const fn op(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> u64 {
    let registers = if cfg!(target_endian = "little") { to | from << 4 } else { to << 4 | from };
    let [o0, o1] = offset.to_ne_bytes();
    let [i0, i1, i2, i3] = immediate.to_ne_bytes();
    u64::from_ne_bytes([code, registers, o0, o1, i0, i1, i2, i3])
}

/// Puts the filter in the place of the one that is there, in one step where the kernel can (Linux 5.6).
fn attach(cgroup: &Cgroup, filter: &[u64]) -> Result<(), CgroupError> {
    let doing = "attach the device filter to cgroup";
    let found = cgroup.groups.iter().find(|group| group.place.v2).and_then(|group| Some((group, group.dir.as_ref()?)));
    let (group, dir) = found.ok_or(CgroupError::NoController { doing, controller: "v2" })?;
    let path = &group.place.dir;
    let program = sys::load_device_filter(filter).map_err(failed("load the device filter of cgroup", path))?;
    let (cgroup, program) = (dir.as_fd(), program.as_fd());
    // Those of a new cgroup are none, or what a crashed runtime left.
    let old = sys::device_filters(cgroup).map_err(failed("list the device filters of cgroup", path))?;
    if let [only] = old.as_slice()
        && sys::attach_device_filter(cgroup, program, Some(only.as_fd())).is_ok()
    {
        return Ok(());
    }
    // Both must allow for a moment, so nothing is open that the new one closes.
    sys::attach_device_filter(cgroup, program, None).map_err(failed(doing, path))?;
    for old in old {
        sys::detach_device_filter(cgroup, old.as_fd())
            .map_err(failed("detach the former device filter of cgroup", path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(json: &str) -> Vec<LinuxDeviceCgroup> {
        serde_json::from_str(json).unwrap()
    }

    fn list(json: &str) -> Result<String, Vec<Problem>> {
        let mut problems = Vec::new();
        let devices = Devices::compile(&given(json), false, &mut problems);
        if problems.is_empty() { Ok(devices.to_string()) } else { Err(problems) }
    }

    /// As much of an eBPF machine as the filter uses: 32-bit arithmetic, three words of context.
    fn run(program: &[u64], kind: Kind, access: u8, major: u32, minor: u32) -> bool {
        let context = [u32::from(access) << 16 | kind as u32, major, minor];
        let (mut registers, mut at) = ([0u32; 7], 0usize);
        loop {
            let [code, pair, o0, o1, i0, i1, i2, i3] = program[at].to_ne_bytes();
            let (to, from) = ((pair & 15) as usize, (pair >> 4) as usize);
            let offset = usize::try_from(i16::from_ne_bytes([o0, o1])).unwrap();
            let immediate = u32::from_ne_bytes([i0, i1, i2, i3]);
            at += 1;
            match code {
                0x61 => registers[to] = context[offset / 4],
                0xbc => registers[to] = registers[from],
                0xb4 => registers[to] = immediate,
                0x54 => registers[to] &= immediate,
                0x74 => registers[to] >>= immediate,
                0x16 if registers[to] == immediate => at += offset,
                0x56 if registers[to] != immediate => at += offset,
                0x16 | 0x56 => {}
                0x95 => return registers[0] == 1,
                other => panic!("opcode {other:#x}"),
            }
        }
    }

    #[test]
    fn without_rules_only_what_every_container_has() {
        let expected = "devices.deny = a\ndevices.allow = b *:* m\ndevices.allow = c *:* m\n\
            devices.allow = c 1:3 rwm\ndevices.allow = c 1:5 rwm\ndevices.allow = c 1:7 rwm\ndevices.allow = c 1:8 rwm\n\
            devices.allow = c 1:9 rwm\ndevices.allow = c 5:0 rwm\ndevices.allow = c 5:1 rwm\ndevices.allow = c 5:2 rwm\n\
            devices.allow = c 10:200 rwm\ndevices.allow = c 136:* rwm\n";
        assert_eq!(list("[]").unwrap(), expected);
        assert_eq!(list(r#"[{"allow":true,"access":"rwm"},{"allow":false,"access":"rwm"}]"#).unwrap(), expected);
    }

    #[test]
    fn a_privileged_container_has_one_rule() {
        assert_eq!(list(r#"[{"allow":true,"access":"rwm"}]"#).unwrap(), "devices.allow = a\n");
    }

    #[test]
    fn rules_for_one_device_merge_and_a_denial_takes_back() {
        let rules = r#"[{"allow":true,"type":"b","major":8,"minor":0,"access":"r"},
            {"allow":true,"type":"b","major":8,"minor":0,"access":"wm"},
            {"allow":true,"type":"b","major":8,"minor":1,"access":"rw"},
            {"allow":true,"type":"b","major":9,"minor":1,"access":"rw"},
            {"allow":false,"type":"b","major":8,"access":"w"}]"#;
        let text = list(rules).unwrap();
        for line in ["b 8:0 rm", "b 8:1 r", "b 9:1 rw"] {
            assert!(text.contains(&format!("devices.allow = {line}\n")), "{line} in\n{text}");
        }
        assert!(!text.contains("b 8:0 rwm"));
    }

    #[test]
    fn what_v1_cannot_hold_and_what_is_no_rule_is_said() {
        let overlap = r#"[{"allow":true,"type":"b","major":8,"access":"rw"},
            {"allow":false,"type":"b","major":8,"minor":3,"access":"w"}]"#;
        assert_eq!(
            list(overlap).unwrap_err()[0].to_string(),
            "linux.resources.devices: cgroup v1 cannot deny b 8:3 w again inside of b 8:* rw: give the rules without the overlap"
        );
        for bad in [
            r#"[{"allow":true,"type":"c","major":1,"minor":3,"access":"rx"}]"#,
            r#"[{"allow":true,"type":"p","access":"rw"}]"#,
            r#"[{"allow":true,"type":"c","major":-7,"access":"rw"}]"#,
        ] {
            assert_eq!(list(bad).unwrap_err()[0].field, "linux.resources.devices[0]", "{bad}");
        }
    }

    /// What the rules mean, said plainly: for each access, the last rule that speaks of it.
    fn meaning(default: bool, rules: &[Rule], key: Key, access: u8) -> bool {
        [MKNOD, READ, WRITE].into_iter().filter(|bit| access & bit != 0).all(|bit| {
            let speaks = |rule: &&Rule| rule.key.covers(&key) && rule.access & bit != 0;
            rules.iter().rev().find(speaks).map_or(default, |rule| rule.allow)
        })
    }

    #[test]
    fn the_filter_does_what_the_rules_mean() {
        // Every combination of three rules out of these, under both defaults, asked everything that could matter.
        let mut rules = Vec::new();
        for (kind, major, minor) in [
            (Kind::Char, None, None),
            (Kind::Char, Some(1), None),
            (Kind::Char, Some(1), Some(3)),
            (Kind::Block, Some(1), Some(3)),
        ] {
            for access in [READ, WRITE | MKNOD, ALL] {
                rules.extend([true, false].map(|allow| Rule { allow, key: Key { kind, major, minor }, access }));
            }
        }
        let mut asked = 0;
        for first in &rules {
            for second in &rules {
                for default in [true, false] {
                    let chosen = [*first, *second, rules[asked % rules.len()]];
                    let program = filter(default, &chosen);
                    for (kind, major, minor) in [
                        (Kind::Char, 1, 3),
                        (Kind::Char, 1, 4),
                        (Kind::Char, 2, 3),
                        (Kind::Block, 1, 3),
                        (Kind::Block, 0, 0),
                    ] {
                        for access in 1..=ALL {
                            let key = Key { kind, major: Some(major), minor: Some(minor) };
                            let expected = meaning(default, &chosen, key, access);
                            assert_eq!(
                                run(&program, kind, access, major, minor),
                                expected,
                                "{chosen:?} {key:?} {access}"
                            );
                            asked += 1;
                        }
                    }
                }
            }
        }
        assert!(asked > 10_000);
    }

    #[test]
    fn the_filter_knows_large_device_numbers() {
        let rule =
            Rule { allow: true, key: Key { kind: Kind::Char, major: Some(u32::MAX), minor: None }, access: READ };
        let program = filter(false, &[rule]);
        assert!(run(&program, Kind::Char, READ, u32::MAX, 9));
        assert!(!run(&program, Kind::Char, READ, u32::MAX - 1, 9));
    }
}

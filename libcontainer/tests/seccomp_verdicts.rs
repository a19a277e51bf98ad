//! Our filters give the verdicts that runc's would, built from the same profile with libseccomp.
//!
//! Both programs run in the interpreter below, over every system call number of every ABI and over arguments around the
//! values that the rules test. Known and intended differences, each handled where it is named:
//! - NEWER: calls that the installed libseccomp has no number for; runc answers ENOSYS to them, we do what the profile says.
//! - MULTIPLEXED: runc does not count x86's socket and ipc calls among those a profile knows, so it can answer ENOSYS to calls
//!   the profile allows by name.
//! - CONTRADICTION: libseccomp refuses some rules that contradict earlier ones, and runc then does not start the container.
//!   We take the profile.
//! - TREE: libseccomp 2.5 merges all rules for one call into a tree, and loses matches there: where tests for ranges or with
//!   masks meet on the halves of a 64-bit argument, or rules on several arguments do. Such profiles are held against what
//!   their words say.
//! - LINEAR: its linear generator forgets to load the number in short filters with x32; runc takes the binary tree as well.
#![expect(clippy::unwrap_used, reason = "a test fails where it is surprised")]

use std::collections::BTreeMap;
use std::io::{Read, Seek};

use libcontainer::seccomp::{Abi, Filter, HostSeccomp};
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompFilterFlag as Flag, LinuxSeccompOperator as Op, LinuxSyscall, LinuxSyscallBuilder,
};

const DOCKER: &str = include_str!("profiles/docker.json");
const CONTAINERD: &str = include_str!("profiles/containerd.json");

const X86: [Abi; 3] = [Abi::X86_64, Abi::X86, Abi::X32];
const ARM: [Abi; 2] = [Abi::Aarch64, Abi::Arm];
const X32_BIT: u32 = 0x4000_0000;
const ENOSYS: u32 = 0x0005_0026;
const KILL_THREAD: u32 = 0;

/// `struct seccomp_data`.
#[derive(Debug, Clone, Copy)]
struct Call {
    nr: u32,
    arch: u32,
    args: [u64; 6],
}

/// One instruction: code, jt, jf, k.
type Instruction = (u16, u8, u8, u32);

/// Runs a classic BPF program as the kernel does. Gives its verdict and how many instructions it took.
fn run(program: &[Instruction], call: &Call) -> (u32, usize) {
    let word = |offset: u32| match offset {
        0 => call.nr,
        4 => call.arch,
        16..64 => (call.args[(offset as usize - 16) / 8] >> (offset % 8 * 8)) as u32,
        _ => panic!("load from {offset}"),
    };
    let (mut at, mut a) = (0, 0);
    for steps in 1.. {
        let (code, jt, jf, k) = program[at];
        let jump = |taken: bool| usize::from(if taken { jt } else { jf });
        at += 1;
        match code {
            0x20 => a = word(k),
            0x54 => a &= k,
            0x05 => at += k as usize,
            0x15 => at += jump(a == k),
            0x25 => at += jump(a > k),
            0x35 => at += jump(a >= k),
            0x45 => at += jump(a & k != 0),
            0x06 => return (k, steps),
            _ => panic!("instruction {code:#x}"),
        }
    }
    unreachable!()
}

fn audit_arch(abi: Abi) -> u32 {
    match abi {
        Abi::X86_64 | Abi::X32 => 0xc000_003e,
        Abi::X86 => 0x4000_0003,
        Abi::Aarch64 => 0xc000_00b7,
        Abi::Arm => 0x4000_0028,
    }
}

fn oci_arch(abi: Abi) -> Arch {
    match abi {
        Abi::X86_64 => Arch::ScmpArchX86_64,
        Abi::X86 => Arch::ScmpArchX86,
        Abi::X32 => Arch::ScmpArchX32,
        Abi::Aarch64 => Arch::ScmpArchAarch64,
        Abi::Arm => Arch::ScmpArchArm,
    }
}

fn scmp_arch(abi: Abi) -> ScmpArch {
    match abi {
        Abi::X86_64 => ScmpArch::X8664,
        Abi::X86 => ScmpArch::X86,
        Abi::X32 => ScmpArch::X32,
        Abi::Aarch64 => ScmpArch::Aarch64,
        Abi::Arm => ScmpArch::Arm,
    }
}

/// A machine whose kernel knows everything.
fn host(native: Abi) -> HostSeccomp {
    use Action::*;
    let actions = vec![
        ScmpActKill,
        ScmpActKillThread,
        ScmpActKillProcess,
        ScmpActTrap,
        ScmpActErrno,
        ScmpActNotify,
        ScmpActTrace,
        ScmpActLog,
        ScmpActAllow,
    ];
    HostSeccomp { native, actions, flags: vec![Flag::SeccompFilterFlagLog, Flag::SeccompFilterFlagSpecAllow] }
}

fn ours(profile: &LinuxSeccomp, native: Abi) -> Vec<Instruction> {
    let filter = Filter::compile(profile, &host(native)).expect("a good profile");
    filter.program.into_iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect()
}

fn scmp_action(action: Action, errno: Option<u32>) -> ScmpAction {
    match action {
        Action::ScmpActKill | Action::ScmpActKillThread => ScmpAction::KillThread,
        Action::ScmpActKillProcess => ScmpAction::KillProcess,
        Action::ScmpActTrap => ScmpAction::Trap,
        Action::ScmpActErrno => ScmpAction::Errno(errno.unwrap_or(1) as i32),
        Action::ScmpActTrace => ScmpAction::Trace(errno.unwrap_or(1) as u16),
        Action::ScmpActNotify => ScmpAction::Notify,
        Action::ScmpActLog => ScmpAction::Log,
        Action::ScmpActAllow => ScmpAction::Allow,
    }
}

fn scmp_compare(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    let (op, datum) = match arg.op() {
        Op::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        Op::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        Op::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        Op::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        Op::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        Op::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        Op::ScmpCmpMaskedEq => (ScmpCompareOp::MaskedEqual(arg.value()), arg.value_two().unwrap_or(0)),
    };
    ScmpArgCompare::new(arg.index() as u32, op, datum)
}

fn listed(profile: &LinuxSeccomp, family: &[Abi]) -> Vec<Abi> {
    let archs = profile.architectures().as_deref().unwrap_or_default();
    family.iter().copied().filter(|abi| archs.contains(&oci_arch(*abi))).collect()
}

/// The program runc would load but for its ENOSYS stub, or the index of the rule that libseccomp refuses.
fn theirs(profile: &LinuxSeccomp, family: &[Abi]) -> Result<Vec<Instruction>, usize> {
    let default = scmp_action(profile.default_action(), profile.default_errno_ret());
    let mut filter = ScmpFilterContext::new(default).unwrap();
    filter.set_ctl_optimize(2).unwrap(); // LINEAR
    if family[0] != Abi::X86_64 {
        filter.add_arch(scmp_arch(family[0])).unwrap();
        filter.remove_arch(ScmpArch::native()).unwrap();
    }
    for abi in listed(profile, family) {
        filter.add_arch(scmp_arch(abi)).unwrap();
    }
    for (i, rule) in profile.syscalls().iter().flatten().enumerate() {
        let action = scmp_action(rule.action(), rule.errno_ret());
        let args = rule.args().as_deref().unwrap_or_default();
        let repeats = (0..6).any(|index| args.iter().filter(|arg| arg.index() == index).count() > 1);
        let compares: Vec<_> = args.iter().map(scmp_compare).collect();
        for name in rule.names() {
            let Ok(call) = ScmpSyscall::from_name(name) else { continue };
            let conditions = if repeats { compares.chunks(1).collect() } else { vec![&compares[..]] };
            for condition in conditions.into_iter().filter(|_| action != default) {
                filter.add_rule_conditional(action, call, condition).map_err(|_| i)?;
            }
        }
    }
    let mut file = tempfile::tempfile().unwrap();
    filter.export_bpf(&file).unwrap();
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    let instructions = bytes.as_chunks::<8>().0.iter();
    Ok(instructions
        .map(|b| (u16::from_ne_bytes([b[0], b[1]]), b[2], b[3], u32::from_ne_bytes([b[4], b[5], b[6], b[7]])))
        .collect())
}

/// The number of a call's own, also where libseccomp only gives one that stands for socketcall or ipc.
fn direct(name: &str, abi: Abi) -> Option<u32> {
    let named = |nr: &u32| {
        let call = ScmpSyscall::from_raw_syscall(*nr as i32);
        call.get_name_by_arch(scmp_arch(abi)).is_ok_and(|found| found == name)
    };
    match pseudo(name, abi) {
        -299..=-100 if abi == Abi::X86 => (0..500).find(named),
        number => u32::try_from(number).ok(),
    }
}

/// libseccomp's number, which is negative for calls that the ABI has not, or not only, as a call of their own.
fn pseudo(name: &str, abi: Abi) -> i32 {
    ScmpSyscall::from_name_by_arch(name, scmp_arch(abi)).map_or(-1, |call| call.as_raw_syscall())
}

/// The x86 call that a call is made through, and its number there.
fn multiplexer(name: &str, abi: Abi) -> Option<(u32, u64)> {
    match pseudo(name, abi) {
        number @ -199..=-101 if abi == Abi::X86 => Some((102, -(number + 100) as u64)),
        number @ -299..=-201 if abi == Abi::X86 => Some((117, -(number + 200) as u64)),
        _ => None,
    }
}

/// runc's stub: the highest number a profile names, for each ABI it lists, if its default forbids.
fn newest_known(profile: &LinuxSeccomp, family: &[Abi]) -> BTreeMap<(u32, bool), u32> {
    let mut newest = BTreeMap::new();
    if matches!(profile.default_action(), Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace) {
        return newest;
    }
    for abi in listed(profile, family) {
        let names = profile.syscalls().iter().flatten().flat_map(|rule| rule.names());
        // MULTIPLEXED: ours counts the call, by its own number and by the one it can also be made through.
        let numbers =
            names.flat_map(|name| direct(name, abi).into_iter().chain(multiplexer(name, abi).map(|(nr, _)| nr)));
        if let Some(highest) = numbers.max().filter(|highest| *highest > 0) {
            newest.insert((audit_arch(abi), abi == Abi::X32), highest);
        }
    }
    newest
}

fn is_newer(newest: &BTreeMap<(u32, bool), u32>, call: &Call) -> bool {
    let x32 = call.arch == audit_arch(Abi::X86_64) && call.nr & X32_BIT != 0;
    newest.get(&(call.arch, x32)).is_some_and(|highest| call.nr > *highest)
}

/// What runc's filter says.
fn expected(program: &[Instruction], newest: &BTreeMap<(u32, bool), u32>, call: &Call) -> u32 {
    if is_newer(newest, call) { ENOSYS } else { run(program, call).0 }
}

/// Takes out the names libseccomp has no number for (NEWER).
fn without_newer(mut profile: LinuxSeccomp) -> LinuxSeccomp {
    let mut rules = profile.syscalls().clone().unwrap_or_default();
    for rule in &mut rules {
        let known = rule.names().iter().filter(|name| ScmpSyscall::from_name(name).is_ok());
        rule.set_names(known.cloned().collect());
    }
    profile.set_syscalls(Some(rules));
    profile
}

/// A small generator with a known seed: a failure is the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn one_of<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }
}

/// Calls to try a profile with: all numbers of all ABIs, those under rules with conditions many times.
fn calls(profile: &LinuxSeccomp, random: &mut Random) -> Vec<Call> {
    let args = profile.syscalls().iter().flatten().flat_map(|rule| rule.args().iter().flatten());
    let mut values = vec![0, 1, 2, 0xffff_ffff, 1 << 32, u64::MAX];
    for arg in args {
        for value in [arg.value(), arg.value_two().unwrap_or(0)] {
            values.extend([
                value,
                value.wrapping_add(1),
                value.wrapping_sub(1),
                value ^ (1 << 32),
                value & 0xffff_ffff,
            ]);
        }
    }
    let conditional = profile.syscalls().iter().flatten().filter(|rule| rule.args().is_some());
    let conditional: Vec<&String> = conditional.flat_map(|rule| rule.names()).collect();
    let mut calls = Vec::new();
    for abi in [Abi::X86_64, Abi::X86, Abi::X32, Abi::Aarch64, Abi::Arm] {
        let bit = if abi == Abi::X32 { X32_BIT } else { 0 };
        let conditional: Vec<u32> = conditional.iter().filter_map(|name| direct(name, abi)).collect();
        let tested = |nr: u32| conditional.contains(&nr) || (abi == Abi::X86 && [102, 117].contains(&nr));
        let numbers = (0..560).chain(983_036..983_050).chain([X32_BIT - 1, 0x7fff_ffff, u32::MAX - 1, u32::MAX]);
        for nr in numbers.map(|nr| nr | bit) {
            for _ in 0..if tested(nr) { 120 } else { 1 } {
                let mut args = [(); 6].map(|()| random.one_of(&values));
                if random.below(2) == 0 {
                    args[0] = random.below(26) as u64; // the calls inside socketcall and ipc
                }
                calls.push(Call { nr, arch: audit_arch(abi), args });
            }
        }
    }
    calls.push(Call { nr: 0, arch: 0xc000_00f3, args: [0; 6] }); // another machine's
    calls
}

/// A rule for one call of one ABI.
struct Sentence<'a> {
    abi: Abi,
    nr: u32,
    /// What argument 0 must be instead of what the rule says of it, inside `socketcall` and `ipc`.
    inner: Option<u64>,
    args: &'a [LinuxSeccompArg],
    action: u32,
}

/// What a profile says, word for word.
fn sentences<'a>(profile: &'a LinuxSeccomp, family: &[Abi]) -> Vec<Sentence<'a>> {
    let default = profile.default_action().as_u32(profile.default_errno_ret());
    let mut sentences = Vec::new();
    for rule in profile.syscalls().iter().flatten() {
        let action = rule.action().as_u32(rule.errno_ret());
        let args = rule.args().as_deref().unwrap_or_default();
        let repeats = (0..6).any(|index| args.iter().filter(|arg| arg.index() == index).count() > 1);
        for name in rule.names().iter().filter(|_| action != default) {
            for abi in family.iter().copied() {
                let through = multiplexer(name, abi).map(|(nr, inner)| (nr, Some(inner)));
                for (nr, inner) in direct(name, abi).map(|nr| (nr, None)).into_iter().chain(through) {
                    let each = if repeats { args.chunks(1).collect() } else { vec![args] };
                    sentences.extend(each.into_iter().map(|args| Sentence { abi, nr, inner, args, action }));
                }
            }
        }
    }
    sentences
}

impl Sentence<'_> {
    fn test(&self, arg: &LinuxSeccompArg, value: u64) -> bool {
        let width = if matches!(self.abi, Abi::X86_64 | Abi::Aarch64) { u64::MAX } else { 0xffff_ffff };
        let (value, than, two) = (value & width, arg.value() & width, arg.value_two().unwrap_or(0) & width);
        match arg.op() {
            Op::ScmpCmpNe => value != than,
            Op::ScmpCmpLt => value < than,
            Op::ScmpCmpLe => value <= than,
            Op::ScmpCmpEq => value == than,
            Op::ScmpCmpGe => value >= than,
            Op::ScmpCmpGt => value > than,
            Op::ScmpCmpMaskedEq => value & than == two & than,
        }
    }

    fn tests(&self) -> impl Iterator<Item = &LinuxSeccompArg> {
        self.args.iter().filter(|arg| !(self.inner.is_some() && arg.index() == 0))
    }

    fn holds(&self, call: &Call) -> bool {
        let is_inner = self.inner.is_none_or(|inner| call.args[0] & 0xffff_ffff == inner);
        is_inner && self.tests().all(|arg| self.test(arg, call.args[arg.index()]))
    }

    /// A mask of nothing is no condition.
    fn holds_always(&self) -> bool {
        let trivial =
            |arg: &LinuxSeccompArg| arg.op() == Op::ScmpCmpMaskedEq && self.test(arg, 0) && self.test(arg, u64::MAX);
        self.inner.is_none() && self.tests().all(trivial)
    }
}

/// All verdicts that the sentences can be read to give a call: several where rules that hold have different actions.
fn readings(sentences: &[Sentence<'_>], abi: Abi, call: &Call, default: u32) -> Vec<u32> {
    let about = sentences.iter().filter(|sentence| sentence.abi == abi && sentence.nr == call.nr);
    if let Some(always) = about.clone().find(|sentence| sentence.holds_always()) {
        return vec![always.action];
    }
    let holding: Vec<u32> = about.filter(|sentence| sentence.holds(call)).map(|sentence| sentence.action).collect();
    if holding.is_empty() { vec![default] } else { holding }
}

fn fail(profile: &LinuxSeccomp, call: &Call, verdict: u32, expected: &[u32]) -> ! {
    let profile = serde_json::to_string_pretty(profile).unwrap();
    panic!("{verdict:#x} instead of {expected:#x?} for {call:x?} under {profile}")
}

/// Holds our filter against libseccomp's.
fn compare(profile: &LinuxSeccomp, family: &[Abi], theirs: &[Instruction], random: &mut Random) {
    let ours = ours(profile, family[0]);
    let newest = newest_known(profile, family);
    for call in calls(profile, random) {
        let (expected, (verdict, _)) = (expected(theirs, &newest, &call), run(&ours, &call));
        if verdict != expected {
            fail(profile, &call, verdict, &[expected]);
        }
    }
}

fn parse(json: &str, family: &[Abi]) -> LinuxSeccomp {
    let mut profile: LinuxSeccomp = serde_json::from_str(json).unwrap();
    profile.set_architectures(Some(family.iter().copied().map(oci_arch).collect()));
    profile
}

#[test]
fn default_profiles_have_libseccomps_verdicts() {
    let mut random = Random(1);
    for (json, family) in [(DOCKER, &X86[..]), (CONTAINERD, &X86), (DOCKER, &ARM), (CONTAINERD, &ARM)] {
        let profile = without_newer(parse(json, family));
        let theirs = theirs(&profile, family).unwrap();
        compare(&profile, family, &theirs, &mut random);
    }
}

#[test]
fn calls_newer_than_libseccomp_follow_the_profile() {
    let program = ours(&parse(DOCKER, &X86), Abi::X86_64);
    let verdict = |nr| run(&program, &Call { nr, arch: audit_arch(Abi::X86_64), args: [0; 6] }).0;
    assert_eq!(verdict(458), 0x7fff_0000, "listmount");
    assert_eq!(verdict(467), ENOSYS, "open_tree_attr is newer than all that the profile names");
    assert_eq!(verdict(459), 0x0005_0001, "lsm_get_self_attr is not");
}

/// What random profiles may contain.
#[derive(Clone, Copy, PartialEq)]
enum Shape {
    /// One rule for a call, one condition for an argument.
    Apart,
    /// Rules that overlap, but have only one condition each, which tests for equality.
    Equal,
    Anything,
}

fn random_profile(random: &mut Random, family: &[Abi], shape: Shape) -> LinuxSeccomp {
    use Action::*;
    #[rustfmt::skip]
    const NAMES: [&str; 24] = [
        "read", "openat", "socket", "connect", "sendmsg", "recv", "accept", "semctl", "shmat", "clone", "ioctl", "personality",
        "prctl", "fcntl64", "mmap2", "time", "arm_sync_file_range", "cacheflush", "futex_time64", "execve", "close_range",
        "exit", "nothing_like_it", "kill",
    ];
    #[rustfmt::skip]
    const ACTIONS: [Action; 9] = [
        ScmpActKill, ScmpActKillThread, ScmpActKillProcess, ScmpActTrap, ScmpActErrno, ScmpActTrace, ScmpActLog, ScmpActAllow,
        ScmpActNotify,
    ];
    #[rustfmt::skip]
    const OPS: [Op; 7] = [
        Op::ScmpCmpEq, Op::ScmpCmpNe, Op::ScmpCmpLt, Op::ScmpCmpLe, Op::ScmpCmpGe, Op::ScmpCmpGt, Op::ScmpCmpMaskedEq,
    ];
    const VALUES: [u64; 10] = [0, 1, 2, 7, 0xff, 0x7e02_0000, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0007, u64::MAX];
    let mut rules: Vec<LinuxSyscall> = Vec::new();
    for _ in 0..random.below(24) {
        let mut names: Vec<String> = (0..=random.below(4)).map(|_| random.one_of(&NAMES).to_owned()).collect();
        if shape == Shape::Apart {
            names.sort();
            names.dedup();
            names.retain(|name| !rules.iter().any(|rule| rule.names().contains(name)));
        }
        let mut rule = LinuxSyscallBuilder::default().names(names).action(random.one_of(&ACTIONS));
        if random.below(3) == 0 {
            rule = rule.errno_ret(random.below(4000) as u32);
        }
        if random.below(4) > 0 {
            let args = (0..=random.below(3)).map(|_| {
                let indices = if random.below(3) == 0 { 6 } else { 2 };
                let arg = LinuxSeccompArgBuilder::default().index(random.below(indices)).value(random.one_of(&VALUES));
                let arg = arg.op(if shape == Shape::Equal { Op::ScmpCmpEq } else { random.one_of(&OPS) });
                arg.value_two(random.one_of(&VALUES)).build().unwrap()
            });
            let mut args = args.collect::<Vec<_>>();
            match shape {
                Shape::Apart => {
                    args.sort_by_key(LinuxSeccompArg::index);
                    args.dedup_by_key(|arg| arg.index());
                }
                Shape::Equal => args.truncate(1),
                Shape::Anything => {}
            }
            rule = rule.args(args);
        }
        rules.push(rule.build().unwrap());
    }
    let mut profile = LinuxSeccomp::default();
    profile.set_default_action(random.one_of(&ACTIONS[..8]));
    profile.set_default_errno_ret([None, Some(38), Some(1)][random.below(3)]);
    profile.set_architectures(Some(family.iter().copied().map(oci_arch).filter(|_| random.below(3) > 0).collect()));
    profile.set_listener_path(Some("agent.sock".into()));
    profile.set_syscalls(Some(rules));
    profile
}

#[test]
fn random_profiles_have_libseccomps_verdicts() {
    let mut random = Random(2);
    let (mut rules, mut refused) = (0, 0);
    for i in 0..1000 {
        let family = if random.below(3) == 0 { &ARM[..] } else { &X86[..] };
        let shape = if i % 2 == 0 { Shape::Apart } else { Shape::Equal }; // TREE
        let mut profile = random_profile(&mut random, family, shape);
        let theirs = loop {
            match theirs(&profile, family) {
                Ok(program) => break program,
                Err(contradiction) => {
                    // CONTRADICTION: leave the rule out for both.
                    let mut kept = profile.syscalls().clone().unwrap();
                    kept.remove(contradiction);
                    profile.set_syscalls(Some(kept));
                    refused += 1;
                }
            }
        };
        rules += profile.syscalls().as_ref().map_or(0, Vec::len);
        compare(&profile, family, &theirs, &mut random);
    }
    assert!(rules > 8000 && refused < rules / 10, "{rules} rules compared, {refused} refused");
}

#[test]
fn random_profiles_do_what_their_words_say() {
    let mut random = Random(3);
    for _ in 0..500 {
        let family = if random.below(3) == 0 { &ARM[..] } else { &X86[..] };
        let profile = random_profile(&mut random, family, Shape::Anything);
        let ours = ours(&profile, family[0]);
        let newest = newest_known(&profile, family);
        let sentences = sentences(&profile, family);
        let default = profile.default_action().as_u32(profile.default_errno_ret());
        let abis = [&family[..1], &listed(&profile, family)].concat();
        for call in calls(&profile, &mut random) {
            let x32 = call.arch == audit_arch(Abi::X86_64) && call.nr & X32_BIT != 0;
            let abi = abis.iter().find(|abi| audit_arch(**abi) == call.arch && (**abi == Abi::X32) == x32);
            let expected = match abi {
                _ if is_newer(&newest, &call) => vec![ENOSYS],
                Some(abi) => readings(&sentences, *abi, &call, default),
                // What a tracer makes of a call it skips.
                None if call.nr == u32::MAX && call.arch == audit_arch(family[0]) => vec![default],
                None => vec![KILL_THREAD],
            };
            let (verdict, _) = run(&ours, &call);
            if !expected.contains(&verdict) {
                fail(&profile, &call, verdict, &expected);
            }
        }
    }
}

#[test]
fn dockers_filter_is_short_on_every_path_without_arguments() {
    let profile = parse(DOCKER, &X86);
    let ours = ours(&profile, Abi::X86_64);
    let steps = |nr| run(&ours, &Call { nr, arch: audit_arch(Abi::X86_64), args: [0; 6] }).1;
    let conditional = ["socket", "personality", "clone"].map(|name| direct(name, Abi::X86_64));
    let longest = (0..600).filter(|nr| !conditional.contains(&Some(*nr))).map(steps).max();
    println!("{} instructions; read {}, openat {}, longest {longest:?}", ours.len(), steps(0), steps(257));
    assert!(longest <= Some(16), "{longest:?}");
}

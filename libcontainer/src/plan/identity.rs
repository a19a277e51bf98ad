//! Who the process is: arguments, environment, user, capabilities, limits, labels. Shared by create and exec.

use std::ffi::CString;
use std::str::FromStr;

use oci_spec::runtime::{
    Capabilities, IOPriorityClass, Linux, LinuxNamespaceType, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, MemoryPolicyFlagType, MemoryPolicyModeType, PosixRlimitType, Process, Scheduler, Spec,
};

use super::{Namespaces, Plan, Problems, absolute};
use crate::hooks::{self, Hook, Moment};
use crate::host::Host;
use crate::seccomp::Filter;
use crate::step::{Caps, Chore, Label, Rlimit, Step, User};
use crate::sys::process::SchedAttr;

/// A process as it will be, decided from an OCI `process` object.
#[derive(Debug)]
pub(super) struct Identity {
    args: Vec<CString>,
    env: Vec<CString>,
    pub(super) cwd: CString,
    user: User,
    umask: Option<u32>,
    caps: Caps,
    no_new_privileges: bool,
    rlimits: Vec<Rlimit>,
    oom_score_adj: Option<i32>,
    label: Option<Label>,
    io_priority: Option<i32>,
    scheduler: Option<SchedAttr>,
    personality: Option<u32>,
    memory_policy: Option<(i32, Vec<u64>)>,
    terminal: Option<(u16, u16)>,
    in_user_namespace: bool,
}

impl Identity {
    pub(super) fn read(
        spec: &Spec,
        linux: &Linux,
        host: &Host,
        namespaces: &Namespaces,
        bad: &mut Problems,
    ) -> Option<Identity> {
        let process = spec.process().as_ref()?;
        Some(Identity::of(process, linux, host, namespaces, bad))
    }

    /// `linux` is the container's: its execution domain and memory policy hold for every process in it.
    pub(super) fn of(
        process: &Process,
        linux: &Linux,
        host: &Host,
        namespaces: &Namespaces,
        bad: &mut Problems,
    ) -> Identity {
        let args = process.args().iter().flatten().enumerate();
        let args = args.map(|(i, arg)| c_string(&format!("process.args[{i}]"), arg, bad)).collect::<Vec<_>>();
        if args.first().is_none_or(|arg| arg.is_empty()) {
            bad.add("process.args", "is empty: it says what to run");
        }
        let cwd = process.cwd().to_string_lossy();
        absolute("process.cwd", process.cwd(), bad);
        let user = process.user();
        let oom_score_adj = process.oom_score_adj();
        if oom_score_adj.is_some_and(|score| !(-1000..=1000).contains(&score)) {
            bad.add("process.oomScoreAdj", "is not between -1000 and 1000");
        }
        let size = |length: u64| u16::try_from(length).unwrap_or(u16::MAX);
        let terminal = process
            .terminal()
            .unwrap_or_default()
            .then(|| process.console_size().map_or((0, 0), |s| (size(s.width()), size(s.height()))));
        Identity {
            args,
            env: environment(process, bad),
            cwd: c_string("process.cwd", &cwd, bad),
            user: User {
                uid: user.uid(),
                gid: user.gid(),
                groups: user.additional_gids().clone().unwrap_or_default(),
                // setgroups(2) is forbidden in a user namespace made without privilege (user_namespaces(7)).
                may_set_groups: host.may_set_groups && (host.privileged || !namespaces.has_user()),
            },
            umask: user.umask(),
            // A process for which nothing is said gets none, as with every other runtime: absent is not unlimited.
            caps: process.capabilities().as_ref().map_or(Caps::NONE, |caps| capabilities(caps, host, bad)),
            no_new_privileges: process.no_new_privileges().unwrap_or_default(),
            rlimits: rlimits(process, bad),
            oom_score_adj,
            label: label(process, host, bad),
            io_priority: process.io_priority().as_ref().map(|io| io_priority(io.class(), io.priority(), bad)),
            scheduler: process.scheduler().as_ref().map(|scheduler| schedule(scheduler, bad)),
            personality: personality(linux, bad),
            memory_policy: memory_policy(linux, bad),
            terminal,
            in_user_namespace: namespaces.has_user(),
        }
    }

    /// What needs rights outside the container's user namespace. A child born in a new one has them no more, so the
    /// runtime does it, before the two meet over the id maps. Any other child does it by itself before it joins: nobody
    /// need wait for the runtime, and nobody runs before it is done.
    pub(super) fn by_the_runtime(&self, p: &mut Plan) {
        if let Some(score) = self.oom_score_adj {
            p.parent(Chore::OomScoreAdj(score));
        }
        if !self.rlimits.is_empty() {
            p.parent(Chore::Rlimits(self.rlimits.clone()));
        }
    }

    /// As [`Identity::by_the_runtime`], by a child that still has the runtime's rights.
    pub(super) fn before_joining(&self, p: &mut Plan) {
        if let Some(score) = self.oom_score_adj {
            p.child(Step::OomScoreAdj(score));
        }
        if self.in_user_namespace {
            self.rlimits.iter().for_each(|limit| p.child(Step::Rlimit(limit.clone())));
        }
    }

    /// The three standard streams: a terminal of the container's own, or what the caller gave.
    pub(super) fn stdio(&self, p: &mut Plan) {
        let owner = (self.user.uid, self.user.gid);
        p.child(match self.terminal {
            Some((width, height)) => Step::Console { width, height, uid: owner.0 },
            None => Step::Stdio { uid: owner.0 },
        });
    }

    /// The process wants a terminal.
    pub(super) fn has_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// A security module is told what to call the program.
    pub(super) fn has_label(&self) -> bool {
        self.label.is_some()
    }

    /// From root with all rights to the process of the spec, then `gate`, then the program.
    ///
    /// Without no_new_privs, loading a filter needs `CAP_SYS_ADMIN`, which is dropped next: load it first. With it,
    /// load it last, so that the profile need not allow what only we do: from there on there is `execve(2)`, and
    /// `write(2)` to say that it failed.
    pub(super) fn become_it(self, p: &mut Plan, filter: Option<Filter>, gate: impl FnOnce(&mut Plan)) {
        if let Some(label) = self.label {
            p.child(Step::Label(label));
        }
        if !self.in_user_namespace {
            self.rlimits.iter().for_each(|limit| p.child(Step::Rlimit(limit.clone())));
        }
        if let Some(attr) = self.scheduler {
            p.child(Step::Scheduler(attr));
        }
        if let Some(value) = self.io_priority {
            p.child(Step::IoPriority(value));
        }
        if let Some((mode, nodes)) = self.memory_policy {
            p.child(Step::MemoryPolicy { mode, nodes });
        }
        if let Some(persona) = self.personality {
            p.child(Step::Personality(persona));
        }
        if self.no_new_privileges {
            p.child(Step::NoNewPrivileges);
        }
        let (early, late) = if self.no_new_privileges { (None, filter) } else { (filter, None) };
        p.entries.extend(early.map(|filter| super::Entry::Child(Step::Seccomp(filter))));
        p.child(Step::Bounding(self.caps.bounding));
        p.child(Step::Become { user: self.user, umask: self.umask, cwd: self.cwd });
        p.child(Step::Capabilities(self.caps));
        p.child(Step::FindProgram { program: self.args.first().cloned().unwrap_or_default(), env: self.env.clone() });
        gate(p);
        p.child(Step::Leave);
        p.entries.extend(late.map(|filter| super::Entry::Child(Step::Seccomp(filter))));
        p.child(Step::Exec { args: self.args, env: self.env });
    }
}

/// `text` as the kernel wants it.
pub(super) fn c_string(field: &str, text: &str, bad: &mut Problems) -> CString {
    CString::new(text).unwrap_or_else(|_| {
        bad.add(field, "has a NUL byte in it");
        CString::default()
    })
}

/// `process.env`; of several values for one name the last counts, as in a shell.
fn environment(process: &Process, bad: &mut Problems) -> Vec<CString> {
    let mut env: Vec<(&str, CString)> = Vec::new();
    for (index, line) in process.env().iter().flatten().enumerate() {
        let field = format!("process.env[{index}]");
        let Some((name, _)) = line.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            bad.add(field, "is not NAME=value");
            continue;
        };
        let value = c_string(&field, line, bad);
        match env.iter_mut().find(|(known, _)| *known == name) {
            Some(known) => known.1 = value,
            None => env.push((name, value)),
        }
    }
    env.into_iter().map(|(_, line)| line).collect()
}

/// The five sets as bit masks. A capability that this kernel does not know cannot be had and is left out.
fn capabilities(caps: &oci_spec::runtime::LinuxCapabilities, host: &Host, bad: &mut Problems) -> Caps {
    let known = 1u64.checked_shl(u32::from(host.last_capability) + 1).map_or(u64::MAX, |bit| bit - 1);
    let mask = |set: &Option<Capabilities>| {
        let names = set.iter().flatten().map(|cap| format!("CAP_{cap}"));
        let bits = names.filter_map(|name| caps::Capability::from_str(&name).ok()).map(|cap| cap.bitmask());
        bits.fold(0, |mask, bit| mask | bit) & known
    };
    let caps = Caps {
        bounding: mask(caps.bounding()),
        effective: mask(caps.effective()),
        inheritable: mask(caps.inheritable()),
        permitted: mask(caps.permitted()),
        ambient: mask(caps.ambient()),
    };
    if caps.effective & !caps.permitted != 0 {
        bad.add("process.capabilities.effective", "has capabilities that are not in permitted");
    }
    // The kernel raises only what is permitted and inheritable. Engines list more (`runc spec` does), and every runtime
    // gives them what can be had.
    Caps { ambient: caps.ambient & caps.permitted & caps.inheritable, ..caps }
}

fn rlimits(process: &Process, bad: &mut Problems) -> Vec<Rlimit> {
    let mut limits: Vec<Rlimit> = Vec::new();
    for (index, limit) in process.rlimits().iter().flatten().enumerate() {
        let field = format!("process.rlimits[{index}]");
        let resource = match limit.typ() {
            PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
            PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
            PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
            PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
            PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
            PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
            PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
            PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
            PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
            PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
            PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
            PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
            PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
            PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
            PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
            PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
        };
        if limit.soft() > limit.hard() {
            bad.add(&field, format!("the soft limit {} is above the hard limit {}", limit.soft(), limit.hard()));
        }
        if limits.iter().any(|known| known.resource == resource) {
            bad.add(&field, format!("a second {}", limit.typ()));
        }
        limits.push(Rlimit { resource, name: limit.typ().to_string(), soft: limit.soft(), hard: limit.hard() });
    }
    limits
}

fn label(process: &Process, host: &Host, bad: &mut Problems) -> Option<Label> {
    let set = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    let (apparmor, selinux) = (set(process.apparmor_profile()), set(process.selinux_label()));
    if apparmor.is_some() && !host.apparmor {
        bad.add("process.apparmorProfile", "AppArmor is not enabled on this host; remove the profile");
    }
    if selinux.is_some() && !host.selinux {
        bad.add("process.selinuxLabel", "SELinux is not enabled on this host; remove the label");
    }
    match (apparmor, selinux) {
        (Some(_), Some(_)) => {
            bad.add("process.selinuxLabel", "only one of apparmorProfile and selinuxLabel can apply");
            None
        }
        (Some(profile), None) => Some(Label::AppArmor(profile)),
        (None, label) => label.map(Label::SeLinux),
    }
}

/// The value of ioprio_set(2): class above bit 13, level below.
fn io_priority(class: IOPriorityClass, level: i64, bad: &mut Problems) -> i32 {
    if !(0..=7).contains(&level) {
        bad.add("process.ioPriority.priority", "is not between 0 and 7");
    }
    let class = match class {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    (class << 13) | (level.clamp(0, 7) as i32)
}

/// The attributes of sched_setattr(2).
fn schedule(scheduler: &Scheduler, bad: &mut Problems) -> SchedAttr {
    let real_time = matches!(scheduler.policy(), LinuxSchedulerPolicy::SchedFifo | LinuxSchedulerPolicy::SchedRr);
    let deadline = *scheduler.policy() == LinuxSchedulerPolicy::SchedDeadline;
    if scheduler.priority().is_some_and(|priority| priority != 0) && !real_time {
        bad.add("process.scheduler.priority", "is only for SCHED_FIFO and SCHED_RR");
    }
    let times = [scheduler.runtime(), scheduler.deadline(), scheduler.period()];
    if times.iter().any(|time| time.is_some_and(|time| time != 0)) && !deadline {
        bad.add("process.scheduler.runtime", "runtime, deadline and period are only for SCHED_DEADLINE");
    }
    let nice = scheduler.nice().unwrap_or_default();
    if !(-20..=19).contains(&nice) {
        bad.add("process.scheduler.nice", "is not between -20 and 19");
    }
    let policy = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let flags = scheduler.flags().iter().flatten().map(|flag| match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    });
    SchedAttr {
        size: 0, // filled in at the call
        policy,
        flags: flags.fold(0, |all, flag| all | flag),
        nice,
        priority: u32::try_from(scheduler.priority().unwrap_or_default()).unwrap_or_else(|_| {
            bad.add("process.scheduler.priority", "is negative");
            0
        }),
        runtime: scheduler.runtime().unwrap_or_default(),
        deadline: scheduler.deadline().unwrap_or_default(),
        period: scheduler.period().unwrap_or_default(),
    }
}

fn personality(linux: &Linux, bad: &mut Problems) -> Option<u32> {
    let personality = linux.personality().as_ref()?;
    if personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        bad.add("linux.personality.flags", "the specification defines no flags yet; remove them");
    }
    Some(match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0x0000,
        LinuxPersonalityDomain::PerLinux32 => 0x0008,
    })
}

/// The modes of `set_mempolicy(2)` and their numbers.
pub(crate) const MEMORY_POLICY_MODES: [(MemoryPolicyModeType, i32); 7] = [
    (MemoryPolicyModeType::MpolDefault, 0),
    (MemoryPolicyModeType::MpolPreferred, 1),
    (MemoryPolicyModeType::MpolBind, 2),
    (MemoryPolicyModeType::MpolInterleave, 3),
    (MemoryPolicyModeType::MpolLocal, 4),
    (MemoryPolicyModeType::MpolPreferredMany, 5),
    (MemoryPolicyModeType::MpolWeightedInterleave, 6),
];

/// The flags that may be added to a mode, and their bits.
pub(crate) const MEMORY_POLICY_FLAGS: [(MemoryPolicyFlagType, i32); 3] = [
    (MemoryPolicyFlagType::MpolFNumaBalancing, 1 << 13),
    (MemoryPolicyFlagType::MpolFRelativeNodes, 1 << 14),
    (MemoryPolicyFlagType::MpolFStaticNodes, 1 << 15),
];

/// Mode with its flags and the node mask of set_mempolicy(2).
fn memory_policy(linux: &Linux, bad: &mut Problems) -> Option<(i32, Vec<u64>)> {
    let policy = linux.memory_policy().as_ref()?;
    let mode = MEMORY_POLICY_MODES.iter().find(|(mode, _)| *mode == policy.mode()).map(|(_, number)| *number)?;
    let named = |flag| MEMORY_POLICY_FLAGS.iter().filter(move |(known, _)| known == flag).map(|(_, bit)| bit);
    let flags = policy.flags().iter().flatten().flat_map(named);
    let nodes = policy.nodes().as_deref().unwrap_or_default();
    Some((flags.fold(mode, |mode, flag| mode | flag), bit_list("linux.memoryPolicy.nodes", nodes, bad)))
}

/// A list like `0-3,7` as a bit mask in words of 64 (cpuset(7), "List format").
pub(super) fn bit_list(field: &str, list: &str, bad: &mut Problems) -> Vec<u64> {
    const MOST: usize = 8192; // CONFIG_NR_CPUS at its largest
    let mut words = Vec::new();
    for range in list.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        match (first.parse::<usize>(), last.parse::<usize>()) {
            (Ok(first), Ok(last)) if first <= last && last < MOST => {
                words.resize(words.len().max(last / 64 + 1), 0);
                (first..=last).for_each(|bit| words[bit / 64] |= 1 << (bit % 64));
            }
            _ => bad.add(field, format!("{range:?} is not a number or a range like 0-3")),
        }
    }
    words
}

/// The filter of `linux.seccomp`, compiled here to bytes; the child only loads it.
pub(super) fn seccomp(linux: &Linux, host: &Host, bad: &mut Problems) -> Option<Filter> {
    let profile = linux.seccomp().as_ref()?;
    Filter::compile(profile, &host.seccomp)
        .map_err(|error| error.problems.into_iter().for_each(|p| bad.add(p.field, p.reason)))
        .ok()
}

/// hostname and domainname.
pub(super) fn host_names(p: &mut Plan, spec: &Spec, namespaces: &Namespaces, bad: &mut Problems) {
    let own = namespaces.is_own(LinuxNamespaceType::Uts);
    let mut name = |field: &str, value: &Option<String>| {
        let value = value.clone().filter(|value| !value.is_empty())?;
        if !own {
            bad.add(field, "needs a uts namespace of the container's own; it would change the host");
        }
        if value.len() > 64 {
            bad.add(field, "is longer than the 64 bytes the kernel keeps");
        }
        Some(value)
    };
    let host = name("hostname", spec.hostname());
    let domain = name("domainname", spec.domainname());
    if let Some(name) = host {
        p.child(Step::Hostname(name));
    }
    if let Some(name) = domain {
        p.child(Step::Domainname(name));
    }
}

/// The hooks of a spec, in the places where they run.
#[derive(Debug, Default)]
pub(super) struct Hooks(Vec<Hook>);

impl Hooks {
    pub(super) fn read(spec: &Spec, bad: &mut Problems) -> Hooks {
        match spec.hooks().as_ref().map(hooks::check) {
            None => Hooks::default(),
            Some(Ok(hooks)) => Hooks(hooks),
            Some(Err(problems)) => {
                problems.into_iter().for_each(|(field, what)| bad.add(field, what));
                Hooks::default()
            }
        }
    }

    fn of(&self, moments: &[Moment]) -> impl Iterator<Item = Hook> {
        self.0.iter().filter(|hook| moments.contains(&hook.moment())).cloned()
    }

    /// Some run while the host's root is still reachable from the container's mount namespace.
    pub(super) fn need_the_host_root(&self) -> bool {
        self.of(&[Moment::Prestart, Moment::CreateRuntime, Moment::CreateContainer]).next().is_some()
    }

    pub(super) fn in_runtime(&self, p: &mut Plan) {
        self.of(&[Moment::Prestart, Moment::CreateRuntime]).for_each(|hook| p.parent(Chore::Hook(hook)));
    }

    pub(super) fn in_container(&self, p: &mut Plan) {
        self.of(&[Moment::CreateContainer]).for_each(|hook| p.child(Step::Hook(hook)));
    }

    pub(super) fn at_start(&self, p: &mut Plan) {
        self.of(&[Moment::StartContainer]).for_each(|hook| p.child(Step::Hook(hook)));
    }

    pub(super) fn after_start(&self, p: &mut Plan) {
        self.of(&[Moment::Poststart]).for_each(|hook| p.parent(Chore::Hook(hook)));
    }
}

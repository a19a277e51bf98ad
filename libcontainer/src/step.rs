//! What is done, one result a step. A step holds all it needs, decided by the plan; it never looks at the world to
//! choose the next one.

use std::ffi::{CStr, CString};
use std::fmt;
use std::path::PathBuf;

use nix::sched::CloneFlags;
use oci_spec::runtime::LinuxTimeOffset;

use crate::cgroup::systemd::Unit;
use crate::cgroup::{CgroupPath, Limits, Place};
use crate::hooks::Hook;
use crate::run::Fds;
use crate::seccomp::Filter;
use crate::sys::Failed;
use crate::sys::process::SchedAttr;

mod identity;
pub(crate) mod mount;
mod namespace;
pub(crate) mod root;
mod terminal;

pub(crate) use namespace::{ClonedInto, clone_child, map_ids};

/// What the runtime does, in its own namespaces.
#[derive(Debug)]
pub(crate) enum Chore {
    /// Opens a namespace to join; `kind` as in `/proc/<pid>/ns`.
    OpenNamespace {
        /// The kind's name.
        kind: &'static str,
        /// The kind's flag.
        flag: CloneFlags,
        /// Where it is.
        path: PathBuf,
        /// Its settings are going to be changed: it must not be the runtime's own.
        change: bool,
    },
    /// Opens the source of a mount as a detached copy, or what such a copy needs.
    Mount(mount::Mount),
    /// Makes the container's cgroup and sets its limits.
    Cgroup {
        /// Where.
        path: CgroupPath,
        /// Which.
        limits: Limits,
    },
    /// Has systemd start a unit with the child in it, puts that into the hierarchies which systemd leaves alone (v1), and
    /// sets the limits of its cgroup.
    Unit {
        /// Which.
        unit: Box<Unit>,
        /// Where its cgroup will be.
        places: Vec<Place>,
        /// The limits of the cgroup.
        limits: Limits,
    },
    /// Gives the container's cgroup to the user who is root inside (v2).
    DelegateCgroup(u32),
    /// Writes the id maps of the child's user namespace.
    IdMaps {
        /// Lines of `uid_map`.
        uids: String,
        /// Lines of `gid_map`.
        gids: String,
        /// An unprivileged writer must first forbid `setgroups(2)`.
        deny_setgroups: bool,
    },
    /// Writes the child's `oom_score_adj`.
    OomScoreAdj(i32),
    /// Sets the child's limits from outside its user namespace.
    Rlimits(Vec<Rlimit>),
    /// Runs a hook in the runtime's namespaces.
    Hook(Hook),
}

/// How the child is made.
#[derive(Debug)]
pub(crate) struct Clone {
    /// The namespaces that are made with it.
    pub flags: CloneFlags,
    /// The pid namespace it is born in.
    pub pid: PidNamespace,
    /// Offsets of a time namespace that must exist before anybody is born in it.
    pub time_offsets: Vec<TimeOffset>,
}

/// The pid namespace a child is born in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PidNamespace {
    /// Ours or a new one, as the flags say.
    ByFlags,
    /// One opened by path.
    Opened,
    /// That of the running container.
    Container,
}

/// One line of `/proc/<pid>/timens_offsets` (time_namespaces(7)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TimeOffset {
    /// `monotonic` or `boottime`.
    pub clock: String,
    /// Seconds.
    pub seconds: i64,
    /// Nanoseconds.
    pub nanoseconds: u32,
}

impl From<(&String, &LinuxTimeOffset)> for TimeOffset {
    fn from((clock, offset): (&String, &LinuxTimeOffset)) -> TimeOffset {
        TimeOffset {
            clock: clock.clone(),
            seconds: offset.secs().unwrap_or_default(),
            nanoseconds: offset.nanosecs().unwrap_or_default(),
        }
    }
}

/// What the child does.
#[derive(Debug)]
pub(crate) enum Step {
    /// No handler, no mask, no descriptor and no debugger of the runtime's is left.
    Isolate {
        /// Signals whose disposition the runtime inherited as ignored.
        ignored_signals: u64,
    },
    /// Enters the container's cgroups of the v1 hierarchies; on v2 it is born in its cgroup.
    EnterCgroups,
    /// Its `oom_score_adj`.
    OomScoreAdj(i32),
    /// Joins a namespace that was opened before.
    Join {
        /// The kind's name.
        kind: &'static str,
        /// The kind's flag.
        flag: CloneFlags,
    },
    /// Joins the namespaces of the running container in one call.
    JoinContainer(CloneFlags),
    /// Goes on in a copy of itself, born in new namespaces and in the pid namespace it has joined, as the runtime's child.
    Fork(CloneFlags),
    /// Root in the user namespace.
    BecomeRoot,
    /// A cgroup namespace whose root is the container's cgroup.
    CgroupNamespace,
    /// Leads a session of its own.
    Session,
    /// A session keyring of its own.
    Keyring {
        /// Its name.
        name: CString,
        /// Those in another user namespace than the keyring's owner may search it too.
        others: bool,
    },
    /// The loopback interface is up.
    LoopbackUp,
    /// Part of the root filesystem.
    Root(root::Root),
    /// Part of what is mounted in it.
    Mount(mount::Mount),
    /// A terminal of the container's own, its master with the runtime.
    Console {
        /// Characters.
        width: u16,
        /// Characters.
        height: u16,
        /// Owner.
        uid: u32,
    },
    /// The three streams the runtime gave.
    Stdio {
        /// Their owner, who may then reopen them through /dev/stdout.
        uid: u32,
    },
    /// Runs a hook in the container's namespaces.
    Hook(Hook),
    /// The working directory exists.
    MakeCwd(CString),
    /// A kernel setting of one of the container's namespaces.
    Sysctl {
        /// Below the procfs root.
        path: CString,
        /// The value.
        value: String,
    },
    /// Host name.
    Hostname(String),
    /// NIS domain name.
    Domainname(String),
    /// The label the program gets.
    Label(Label),
    /// A resource limit.
    Rlimit(Rlimit),
    /// Scheduling policy.
    Scheduler(SchedAttr),
    /// I/O priority, as ioprio_set(2) has it.
    IoPriority(i32),
    /// The CPUs it may run on, as a mask.
    Affinity(Vec<u64>),
    /// NUMA policy.
    MemoryPolicy {
        /// Mode and flags.
        mode: i32,
        /// Nodes, as a mask.
        nodes: Vec<u64>,
    },
    /// Execution domain.
    Personality(u32),
    /// No program it executes gains rights.
    NoNewPrivileges,
    /// A seccomp filter holds.
    Seccomp(Filter),
    /// The capability bounding set.
    Bounding(u64),
    /// User, groups, umask and working directory are the process's.
    Become {
        /// Ids.
        user: User,
        /// File mode creation mask.
        umask: Option<u32>,
        /// Inside the container.
        cwd: CString,
    },
    /// The other four capability sets.
    Capabilities(Caps),
    /// The program exists and may be executed.
    FindProgram {
        /// Name or path.
        program: CString,
        /// For its PATH.
        env: Vec<CString>,
    },
    /// Nothing but the program is left to come: no descriptor of ours will outlive it, and the runtime knows.
    Leave,
    /// The program runs.
    Exec {
        /// Arguments.
        args: Vec<CString>,
        /// Environment.
        env: Vec<CString>,
    },
}

/// `user` of a process.
#[derive(Debug, Clone)]
pub(crate) struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
    /// `setgroups(2)` is allowed.
    pub may_set_groups: bool,
}

/// The capability sets as bit masks (capabilities(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caps {
    /// Bounding.
    pub bounding: u64,
    /// Effective.
    pub effective: u64,
    /// Inheritable.
    pub inheritable: u64,
    /// Permitted.
    pub permitted: u64,
    /// Ambient.
    pub ambient: u64,
}

impl Caps {
    /// None at all.
    pub(crate) const NONE: Caps = Caps { bounding: 0, effective: 0, inheritable: 0, permitted: 0, ambient: 0 };
}

/// A resource limit.
#[derive(Debug, Clone)]
pub(crate) struct Rlimit {
    /// `RLIMIT_*`.
    pub resource: u32,
    /// Its name.
    pub name: String,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// What a security module calls the program.
#[derive(Debug, Clone)]
pub(crate) enum Label {
    /// An AppArmor profile.
    AppArmor(String),
    /// An SELinux context.
    SeLinux(String),
}

impl Step {
    /// Does it, in the child.
    pub(crate) fn run(&self, fds: &mut Fds) -> Result<(), Failed> {
        match self {
            Step::Isolate { ignored_signals } => namespace::isolate(*ignored_signals, fds),
            Step::EnterCgroups => namespace::enter_cgroups(fds),
            Step::OomScoreAdj(score) => identity::oom_score_adj(*score),
            Step::Join { flag, .. } => namespace::join(*flag, fds),
            Step::JoinContainer(flags) => namespace::join_container(*flags, fds),
            Step::Fork(flags) => namespace::fork(*flags, fds),
            Step::BecomeRoot => namespace::become_root(),
            Step::CgroupNamespace => namespace::cgroup_namespace(),
            Step::Session => namespace::session(),
            Step::Keyring { name, others } => identity::keyring(name, *others),
            Step::LoopbackUp => namespace::loopback_up(),
            Step::Root(root) => root.run(fds),
            Step::Mount(mount) => mount.run(fds),
            Step::Console { width, height, uid } => terminal::console(*width, *height, *uid, fds),
            Step::Stdio { uid } => terminal::stdio(*uid, fds),
            Step::Hook(hook) => namespace::hook(hook, fds),
            Step::MakeCwd(cwd) => identity::make_cwd(cwd),
            Step::Sysctl { path, value } => identity::write_proc(path, value, fds),
            Step::Hostname(name) => identity::hostname(name),
            Step::Domainname(name) => crate::sys::process::setdomainname(name),
            Step::Label(label) => identity::label(label, fds),
            Step::Rlimit(limit) => limit.set(nix::unistd::Pid::from_raw(0)),
            Step::Scheduler(attr) => crate::sys::process::sched_setattr(attr),
            Step::IoPriority(value) => crate::sys::process::ioprio_set(*value),
            Step::Affinity(cpus) => identity::affinity(cpus),
            Step::MemoryPolicy { mode, nodes } => crate::sys::process::set_mempolicy(*mode, nodes),
            Step::Personality(persona) => identity::personality(*persona),
            Step::NoNewPrivileges => identity::no_new_privileges(),
            Step::Seccomp(filter) => identity::seccomp(filter, fds),
            Step::Bounding(set) => identity::bounding(*set),
            Step::Become { user, umask, cwd } => identity::become_user(user, *umask, cwd),
            Step::Capabilities(caps) => identity::capabilities(caps),
            Step::FindProgram { program, env } => identity::find_program(program, env, fds),
            Step::Leave => identity::leave(fds),
            Step::Exec { args, env } => identity::exec(args, env, fds),
        }
    }
}

impl fmt::Display for Chore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Chore::OpenNamespace { kind, path, .. } => write!(f, "open {kind} namespace {}", path.display()),
            Chore::Mount(mount) => mount.fmt(f),
            Chore::Unit { unit, limits, .. } => {
                write!(f, "start unit {unit}")?;
                unit.properties().iter().try_for_each(|property| write!(f, ", {property}"))?;
                limits.to_string().lines().try_for_each(|limit| write!(f, ", {limit}"))
            }
            Chore::Cgroup { path, limits } => {
                let limits = limits.to_string();
                write!(f, "make cgroup {path}")?;
                limits.lines().try_for_each(|limit| write!(f, ", {limit}"))
            }
            Chore::DelegateCgroup(uid) => write!(f, "give the cgroup to user {uid}"),
            Chore::IdMaps { uids, gids, .. } => {
                write!(f, "map ids: uid {}; gid {}", uids.trim().replace('\n', ", "), gids.trim().replace('\n', ", "))
            }
            Chore::OomScoreAdj(score) => write!(f, "set oom_score_adj {score}"),
            Chore::Rlimits(limits) => {
                write!(f, "set {}", limits.iter().map(Rlimit::to_string).collect::<Vec<_>>().join(", "))
            }
            Chore::Hook(hook) => write!(f, "run {hook}"),
        }
    }
}

impl fmt::Display for Clone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "make the process")?;
        for offset in &self.time_offsets {
            write!(f, ", {} clock {:+}.{:09} s", offset.clock, offset.seconds, offset.nanoseconds)?;
        }
        match self.pid {
            PidNamespace::ByFlags => {}
            PidNamespace::Opened => write!(f, ", in the opened pid namespace")?,
            PidNamespace::Container => write!(f, ", in the container's pid namespace")?,
        }
        if !self.flags.is_empty() {
            write!(f, ", in new namespaces: {}", Kinds(self.flags))?;
        }
        Ok(())
    }
}

/// Namespace flags by name.
struct Kinds(CloneFlags);

impl fmt::Display for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (_, flag, name) in crate::plan::KINDS {
            if self.0.contains(flag) {
                write!(f, "{separator}{name}")?;
                separator = " ";
            }
        }
        Ok(())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Isolate { .. } => f.write_str("drop what belongs to the runtime"),
            Step::EnterCgroups => f.write_str("enter the container's cgroups"),
            Step::OomScoreAdj(score) => write!(f, "set oom_score_adj {score}"),
            Step::Join { kind, .. } => write!(f, "join the opened {kind} namespace"),
            Step::JoinContainer(flags) => write!(f, "join the container's namespaces: {}", Kinds(*flags)),
            Step::Fork(flags) if flags.is_empty() => f.write_str("go on in a copy, born in that pid namespace"),
            Step::Fork(flags) => write!(f, "go on in new namespaces: {}", Kinds(*flags)),
            Step::BecomeRoot => f.write_str("become root in the user namespace"),
            Step::CgroupNamespace => f.write_str("make a cgroup namespace of where it is"),
            Step::Session => f.write_str("lead a new session"),
            Step::Keyring { name, .. } => write!(f, "join session keyring {}", lossy(name)),
            Step::LoopbackUp => f.write_str("bring lo up"),
            Step::Root(root) => root.fmt(f),
            Step::Mount(mount) => mount.fmt(f),
            Step::Console { width, height, uid } => write!(f, "open a terminal, {width}x{height}, for uid {uid}"),
            Step::Stdio { uid } => write!(f, "take stdin, stdout and stderr, for uid {uid}"),
            Step::Hook(hook) => write!(f, "run {hook}"),
            Step::MakeCwd(cwd) => write!(f, "make working directory {}", lossy(cwd)),
            Step::Sysctl { path, value } => write!(f, "set /proc/{} to {value}", lossy(path)),
            Step::Hostname(name) => write!(f, "set hostname {name}"),
            Step::Domainname(name) => write!(f, "set domainname {name}"),
            Step::Label(Label::AppArmor(profile)) => write!(f, "set AppArmor profile {profile}"),
            Step::Label(Label::SeLinux(label)) => write!(f, "set SELinux label {label}"),
            Step::Rlimit(limit) => write!(f, "set {limit}"),
            Step::Scheduler(attr) => write!(f, "set scheduling policy {}, nice {}", attr.policy, attr.nice),
            Step::IoPriority(value) => write!(f, "set I/O priority class {} level {}", value >> 13, value & 7),
            Step::Affinity(cpus) => write!(f, "run on CPUs {cpus:x?}"),
            Step::MemoryPolicy { mode, nodes } => write!(f, "set memory policy {mode:#x} on nodes {nodes:x?}"),
            Step::Personality(persona) => write!(f, "set personality {persona:#x}"),
            Step::NoNewPrivileges => f.write_str("set no_new_privs"),
            Step::Seccomp(filter) => write!(f, "load a seccomp filter of {} instructions", filter.program.len()),
            Step::Bounding(set) => write!(f, "limit capabilities to {set:#x}"),
            Step::Become { user, umask, cwd } => {
                write!(f, "become uid {} gid {} groups {:?}", user.uid, user.gid, user.groups)?;
                if let Some(umask) = umask {
                    write!(f, " umask {umask:04o}")?;
                }
                write!(f, " in {}", lossy(cwd))
            }
            Step::Capabilities(caps) => write!(
                f,
                "set capabilities: effective {:#x} permitted {:#x} inheritable {:#x} ambient {:#x}",
                caps.effective, caps.permitted, caps.inheritable, caps.ambient
            ),
            Step::FindProgram { program, .. } => write!(f, "find program {}", lossy(program)),
            Step::Leave => f.write_str("leave the runtime"),
            Step::Exec { args, env } => {
                let words = |list: &[CString]| list.iter().map(|word| lossy(word)).collect::<Vec<_>>().join(" ");
                let names = env.iter().filter_map(|line| lossy(line).split('=').next().map(str::to_owned));
                write!(f, "execute {} with {}", words(args), names.collect::<Vec<_>>().join(" "))
            }
        }
    }
}

fn lossy(text: &CStr) -> String {
    text.to_string_lossy().into_owned()
}

impl fmt::Display for Rlimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}:{}", self.name, self.soft, self.hard)
    }
}

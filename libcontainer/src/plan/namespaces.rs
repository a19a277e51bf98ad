//! Which namespaces a container gets: new, somebody else's by path, or the runtime's own.

use std::path::PathBuf;

use nix::sched::CloneFlags;
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType};

use super::{Meeting, Plan, Problems, absolute};
use crate::host::Host;
use crate::step::{Chore, Clone, PidNamespace, Step, TimeOffset};

/// The kinds in the order in which they are joined: the user namespace first, for it gives the right to the others;
/// the mount namespace last, because the paths of the others are the runtime's.
pub(crate) const KINDS: [(LinuxNamespaceType, CloneFlags, &str); 8] = [
    (LinuxNamespaceType::User, CloneFlags::CLONE_NEWUSER, "user"),
    (LinuxNamespaceType::Ipc, CloneFlags::CLONE_NEWIPC, "ipc"),
    (LinuxNamespaceType::Uts, CloneFlags::CLONE_NEWUTS, "uts"),
    (LinuxNamespaceType::Network, CloneFlags::CLONE_NEWNET, "net"),
    (LinuxNamespaceType::Pid, CloneFlags::CLONE_NEWPID, "pid"),
    (LinuxNamespaceType::Cgroup, CloneFlags::CLONE_NEWCGROUP, "cgroup"),
    (LinuxNamespaceType::Time, CLONE_NEWTIME, "time"),
    (LinuxNamespaceType::Mount, CloneFlags::CLONE_NEWNS, "mnt"),
];

/// `CLONE_NEWTIME`, which nix does not name. Linux 5.6.
pub(crate) const CLONE_NEWTIME: CloneFlags = CloneFlags::from_bits_retain(libc::CLONE_NEWTIME);

/// The flag of a kind.
fn flag(kind: LinuxNamespaceType) -> CloneFlags {
    KINDS.iter().find(|(typ, ..)| *typ == kind).map_or(CloneFlags::empty(), |(_, flag, _)| *flag)
}

/// What the spec says of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Choice {
    Runtime,
    New,
    Join(PathBuf),
}

/// The container's namespaces, read from `linux.namespaces`.
#[derive(Debug)]
pub(crate) struct Namespaces {
    choices: [Choice; KINDS.len()],
    time_offsets: Vec<TimeOffset>,
    /// Kinds whose settings the spec changes; one joined by path must not be the runtime's own.
    changed: CloneFlags,
}

impl Namespaces {
    /// `renames`: the spec sets a host or domain name.
    pub(crate) fn read(linux: &Linux, renames: bool, bad: &mut Problems) -> Namespaces {
        let mut choices = [const { Choice::Runtime }; KINDS.len()];
        for (index, namespace) in linux.namespaces().iter().flatten().enumerate() {
            let field = format!("linux.namespaces[{index}]");
            let Some(kind) = KINDS.iter().position(|(typ, ..)| *typ == namespace.typ()) else {
                bad.add(field, format!("unknown type {:?}", namespace.typ()));
                continue;
            };
            if choices[kind] != Choice::Runtime {
                bad.add(&field, format!("a second {} namespace", KINDS[kind].2));
            }
            choices[kind] = match namespace.path() {
                Some(path) if !path.as_os_str().is_empty() => {
                    Choice::Join(absolute(&format!("{field}.path"), path, bad).to_owned())
                }
                _ => Choice::New,
            };
        }
        let time_offsets = linux.time_offsets().iter().flatten().map(TimeOffset::from).collect::<Vec<_>>();
        let mut changed = if renames { CloneFlags::CLONE_NEWUTS } else { CloneFlags::empty() };
        for key in linux.sysctl().iter().flat_map(|settings| settings.keys()) {
            changed |= super::sysctl::owner(key).map_or(CloneFlags::empty(), flag);
        }
        let namespaces = Namespaces { choices, time_offsets, changed };
        namespaces.check(linux, bad);
        namespaces
    }

    fn check(&self, linux: &Linux, bad: &mut Problems) {
        if self.of(LinuxNamespaceType::Mount) == &Choice::Runtime {
            bad.add("linux.namespaces", "a container needs a mount namespace of its own; add {\"type\": \"mount\"}");
        }
        let mapped = |maps: &Option<Vec<LinuxIdMapping>>| maps.as_ref().is_some_and(|maps| !maps.is_empty());
        let maps = mapped(linux.uid_mappings()) || mapped(linux.gid_mappings());
        match self.of(LinuxNamespaceType::User) {
            Choice::New if !mapped(linux.uid_mappings()) || !mapped(linux.gid_mappings()) => {
                bad.add("linux.uidMappings", "a new user namespace needs uidMappings and gidMappings");
            }
            Choice::Runtime if maps => bad.add("linux.uidMappings", "id mappings without a user namespace"),
            _ => {}
        }
        for offset in &self.time_offsets {
            if !matches!(offset.clock.as_str(), "monotonic" | "boottime") {
                bad.add("linux.timeOffsets", format!("unknown clock {:?}: monotonic or boottime", offset.clock));
            }
        }
        if !self.time_offsets.is_empty() && !self.is_new(LinuxNamespaceType::Time) {
            bad.add("linux.timeOffsets", "need a new time namespace");
        }
    }

    fn of(&self, kind: LinuxNamespaceType) -> &Choice {
        let index = KINDS.iter().position(|(typ, ..)| *typ == kind).unwrap_or_default();
        &self.choices[index]
    }

    fn is_new(&self, kind: LinuxNamespaceType) -> bool {
        self.of(kind) == &Choice::New
    }

    /// The container does not share this kind with the runtime.
    pub(crate) fn is_own(&self, kind: LinuxNamespaceType) -> bool {
        self.of(kind) != &Choice::Runtime
    }

    /// It is born in a pid namespace that is there already.
    pub(crate) fn joins_pid(&self) -> bool {
        matches!(self.of(LinuxNamespaceType::Pid), Choice::Join(_))
    }

    /// Its user namespace is made with it.
    pub(crate) fn user_is_new(&self) -> bool {
        self.is_new(LinuxNamespaceType::User)
    }

    /// The child is born in a new user namespace, and so without the runtime's rights. With a second clone it is that
    /// one's child which is; the first still has them.
    pub(crate) fn take_its_rights_at_birth(&self) -> bool {
        self.user_is_new() && !self.needs_middle()
    }

    /// It has a user namespace, new or joined.
    pub(crate) fn has_user(&self) -> bool {
        self.is_own(LinuxNamespaceType::User)
    }

    /// Its network namespace is made with it.
    pub(crate) fn network_is_new(&self) -> bool {
        self.is_new(LinuxNamespaceType::Network)
    }

    /// What is made by clone. A cgroup namespace is not: its root is the cgroup its maker is in at that moment, which at
    /// clone is still the runtime's, even with `CLONE_INTO_CGROUP` (cgroup_namespaces(7)).
    fn new_flags(&self) -> CloneFlags {
        let new = KINDS.iter().zip(&self.choices).filter(|(_, choice)| **choice == Choice::New);
        new.fold(CloneFlags::empty(), |flags, ((_, flag, _), _)| flags | *flag) - CloneFlags::CLONE_NEWCGROUP
    }

    /// A second clone is needed where namespaces are joined and a user namespace is part of it: what is made inside a
    /// joined one must be made by a process that is in it already, and the right to join others ends where a new one
    /// begins. The pid namespace is no reason: the child is born in it, with the runtime's rights.
    fn needs_middle(&self) -> bool {
        let joins = |choice: &Choice, kind| matches!(choice, Choice::Join(_)) && kind != LinuxNamespaceType::Pid;
        match self.of(LinuxNamespaceType::User) {
            Choice::Runtime => false,
            Choice::Join(_) => !self.new_flags().is_empty(),
            Choice::New => KINDS.iter().zip(&self.choices).any(|((kind, ..), choice)| joins(choice, *kind)),
        }
    }

    /// Opens the namespaces to join, by path, in the runtime's own mount namespace.
    pub(super) fn open(&self, p: &mut Plan) {
        for ((_, flag, name), choice) in KINDS.iter().zip(&self.choices) {
            if let Choice::Join(path) = choice {
                let change = self.changed.contains(*flag);
                p.before(Chore::OpenNamespace { kind: name, flag: *flag, path: path.clone(), change });
            }
        }
    }

    /// What `clone3` makes at once. A joined pid namespace is entered by being born in it; a time namespace with
    /// offsets must exist, with its offsets written, before anybody is born in it.
    pub(super) fn clone_flags(&self) -> Clone {
        let offsets = self.is_new(LinuxNamespaceType::Time) && !self.time_offsets.is_empty();
        let mut flags = if self.needs_middle() { CloneFlags::empty() } else { self.new_flags() };
        if offsets {
            flags.remove(CLONE_NEWTIME);
        }
        let pid = match self.of(LinuxNamespaceType::Pid) {
            Choice::Join(_) => PidNamespace::Opened,
            Choice::New | Choice::Runtime => PidNamespace::ByFlags,
        };
        Clone { flags, pid, time_offsets: if offsets { self.time_offsets.clone() } else { Vec::new() } }
    }

    /// The child's way into those that exist.
    ///
    /// The user namespace first only where it gives the right to the others; with the runtime's own rights all can be
    /// joined, whoever owns them, and they end with it.
    pub(super) fn enter(&self, p: &mut Plan, host: &Host) {
        let joined = KINDS.iter().zip(&self.choices).filter(|(_, choice)| matches!(choice, Choice::Join(_)));
        let (user, others): (Vec<_>, Vec<_>) = joined.partition(|((kind, ..), _)| *kind == LinuxNamespaceType::User);
        let join_user = |p: &mut Plan| {
            for ((_, flag, name), _) in &user {
                p.child(Step::Join { kind: name, flag: *flag });
                p.child(Step::BecomeRoot);
            }
        };
        if !host.privileged {
            join_user(p);
        }
        for ((kind, flag, name), _) in others {
            if *kind != LinuxNamespaceType::Pid {
                p.child(Step::Join { kind: name, flag: *flag });
            }
        }
        if host.privileged {
            join_user(p);
        }
        if self.needs_middle() {
            p.child(Step::Fork(self.fork_flags()));
        }
    }

    /// Root in the user namespace that was made with the child, once its ids are mapped: from outside, as only the
    /// runtime may.
    pub(super) fn become_root(&self, p: &mut Plan, linux: &Linux, host: &Host, bad: &mut Problems) {
        if self.user_is_new() {
            let uids = id_map("linux.uidMappings", linux.uid_mappings(), bad);
            let gids = id_map("linux.gidMappings", linux.gid_mappings(), bad);
            if self.needs_middle() {
                p.meet(Meeting::Born);
            }
            p.parent(Chore::IdMaps { uids, gids, deny_setgroups: !host.privileged });
            p.meet(Meeting::Mapped);
            p.child(Step::BecomeRoot);
        }
        if self.is_new(LinuxNamespaceType::Cgroup) {
            p.child(Step::CgroupNamespace);
        }
    }

    fn fork_flags(&self) -> CloneFlags {
        let mut flags = self.new_flags();
        if !self.clone_flags().time_offsets.is_empty() {
            flags.remove(CLONE_NEWTIME);
        }
        flags
    }

    /// The kinds a process must join to be in the container: all that are not the runtime's, but for pid, which somebody
    /// has to be born in.
    pub(crate) fn to_join(&self) -> CloneFlags {
        let own = KINDS.iter().zip(&self.choices).filter(|(_, choice)| **choice != Choice::Runtime);
        own.fold(CloneFlags::empty(), |flags, ((_, flag, _), _)| flags | *flag) - CloneFlags::CLONE_NEWPID
    }
}

/// The lines of `/proc/<pid>/uid_map` (user_namespaces(7)).
fn id_map(field: &str, maps: &Option<Vec<LinuxIdMapping>>, bad: &mut Problems) -> String {
    let mut text = String::new();
    if !maps.iter().flatten().any(|map| map.container_id() == 0) {
        bad.add(field, "maps no id 0: without a root inside nobody can set the container up");
    }
    for (index, map) in maps.iter().flatten().enumerate() {
        if map.size() == 0 {
            bad.add(format!("{field}[{index}].size"), "is 0: it maps nothing");
        }
        text.push_str(&format!("{} {} {}\n", map.container_id(), map.host_id(), map.size()));
    }
    text
}

//! Spec and host in, the whole set-up of a container out, in the order it happens. Nothing here touches the world.
//!
//! A [`Plan`] is one list. Each entry says who does it: the runtime before `clone3`, the runtime after it, the
//! container's init, or both, when they meet. The place in the list is the step number in every error.

use std::fmt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxResources, Spec};

use crate::cgroup::systemd::{Manager, Unit};
use crate::cgroup::{self, CgroupPath, Layout, Limits};
use crate::facts::StateFacts;
use crate::host::Host;
use crate::step::mount::Mount;
use crate::step::root::Root;
use crate::step::{Chore, Clone, Step};

mod exec;
mod identity;
pub(crate) mod mounts;
mod namespaces;
mod print;
mod sysctl;
#[cfg(test)]
mod tests;

pub use exec::ExecRequest;
pub(crate) use identity::{MEMORY_POLICY_FLAGS, MEMORY_POLICY_MODES};
pub use mounts::known_options as mount_options;
pub(crate) use namespaces::{CLONE_NEWTIME, KINDS, Namespaces};

/// What a caller decides beyond config.json.
#[derive(Debug, Clone)]
pub struct Request {
    /// The container's id; also its default cgroup name.
    pub id: String,
    /// The bundle folder, absolute.
    pub bundle: PathBuf,
    /// The root filesystem, absolute.
    pub rootfs: PathBuf,
    /// Move the root with `MS_MOVE` and `chroot` instead of `pivot_root(2)`: for a host that runs from an initramfs.
    pub no_pivot: bool,
    /// Keep the runtime's session keyring.
    pub no_new_keyring: bool,
    /// How many descriptors from 3 on are the caller's gift to the container.
    pub preserve_fds: u32,
    /// Which systemd makes the cgroup; without one we do.
    pub systemd: Option<Manager>,
}

/// Where the two processes wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meeting {
    /// systemd has put the child into its unit: its cgroup is the container's.
    Placed,
    /// The child goes on in a copy of itself: in a user namespace of its own, or in the container's pid namespace.
    Born,
    /// The id maps are written: the child may become root in its user namespace.
    Mapped,
    /// Everything is mounted, the host's root still reachable: the moment for the runtime's hooks.
    Mounted,
    /// The runtime's hooks have run.
    HooksDone,
    /// Created. Only `start` leads on from here.
    Start,
}

/// One entry of the list: who does what.
#[derive(Debug)]
pub(crate) enum Entry {
    /// The runtime, before the child exists. What it opens, the child inherits.
    Before(Chore),
    /// The child is made.
    Clone(Clone),
    /// The runtime, beside the child.
    Parent(Chore),
    /// The child.
    Child(Step),
    /// Both wait for each other.
    Both(Meeting),
}

/// Who takes the time that an entry takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The runtime.
    Parent,
    /// The child, which becomes the container's init; also where it waits for the runtime.
    Init,
}

impl Entry {
    pub(crate) fn who(&self) -> Who {
        match self {
            Entry::Before(_) | Entry::Clone(_) | Entry::Parent(_) => Who::Parent,
            Entry::Child(_) | Entry::Both(_) => Who::Init,
        }
    }
}

/// Everything that happens to a new process, in the order it happens.
#[derive(Debug)]
pub struct Plan {
    /// What the plan makes, for errors: `create`, `exec in`.
    pub(crate) verb: &'static str,
    pub(crate) entries: Vec<Entry>,
    /// What hooks and the seccomp agent are told about the container.
    pub(crate) state: StateFacts,
    /// How many descriptors from 3 on are the caller's gift.
    pub(crate) preserve_fds: u32,
}

/// One thing that is wrong with a spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where in config.json: `linux.namespaces[2].path`.
    pub field: String,
    /// What is wrong with it, and what would be right.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.what)
    }
}

/// Everything that is wrong with a spec, all at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid config.json: {}", .0.iter().map(Problem::to_string).collect::<Vec<_>>().join("; "))]
pub struct SpecError(pub Vec<Problem>);

/// Problems as they are found.
#[derive(Debug, Default)]
pub(crate) struct Problems(pub(crate) Vec<Problem>);

impl Problems {
    pub(crate) fn add(&mut self, field: impl Into<String>, what: impl Into<String>) {
        self.0.push(Problem { field: field.into(), what: what.into() });
    }

    fn none_or_err(self) -> Result<(), SpecError> {
        if self.0.is_empty() { Ok(()) } else { Err(SpecError(self.0)) }
    }
}

impl Plan {
    fn new(verb: &'static str, state: StateFacts, preserve_fds: u32) -> Plan {
        Plan { verb, entries: Vec::new(), state, preserve_fds }
    }

    fn before(&mut self, chore: Chore) {
        self.entries.push(Entry::Before(chore));
    }

    fn parent(&mut self, chore: Chore) {
        self.entries.push(Entry::Parent(chore));
    }

    fn child(&mut self, step: Step) {
        self.entries.push(Entry::Child(step));
    }

    fn root(&mut self, steps: Vec<Root>) {
        steps.into_iter().for_each(|step| self.child(Step::Root(step)));
    }

    fn mount(&mut self, steps: impl IntoIterator<Item = Mount>) {
        steps.into_iter().for_each(|step| self.child(Step::Mount(step)));
    }

    /// One entry for both sides, so that they cannot disagree about where they meet.
    fn meet(&mut self, meeting: Meeting) {
        self.entries.push(Entry::Both(meeting));
    }

    /// The plan for a new container.
    ///
    /// # Errors
    /// Everything in `spec` that is contradictory, unknown, or impossible on `host`.
    pub fn create(spec: &Spec, host: &Host, request: &Request) -> Result<Plan, SpecError> {
        let mut bad = Problems::default();
        let annotations = spec.annotations().clone().unwrap_or_default();
        let state = StateFacts::new(&request.id, &request.bundle, annotations);
        let mut p = Plan::new("create", state, request.preserve_fds);
        let none = Linux::default();
        let linux = spec.linux().as_ref().unwrap_or(&none);
        refuse_unsupported(spec, linux, &mut bad);
        let namespaces = Namespaces::read(linux, renames(spec), &mut bad);
        if namespaces.joins_pid() && !host.pid_namespace_returns {
            // The runtime enters it to have the child born there, and would not come back.
            bad.add("linux.namespaces", "only root can join a pid namespace by its path");
        }
        let hooks = identity::Hooks::read(spec, &mut bad);
        let Some(process) = identity::Identity::read(spec, linux, host, &namespaces, &mut bad) else {
            return Err(SpecError(bad.0));
        };
        let mut slots = mounts::Slots::default();
        let root = mounts::root(spec, request, &mut bad.0);
        let mounts = mounts::mounts(spec, host, request, &mut slots, &mut bad.0);
        let devices = mounts::devices(spec, host, &mut slots, &mut bad.0);
        let hidden = mounts::hide_paths(spec, &mut slots, &mut bad.0);
        let seccomp = identity::seccomp(linux, host, &mut bad);

        namespaces.open(&mut p);
        let (before, placed) = cgroup(spec, request, host, &mut bad);
        let enters = before.is_some();
        let owner = mounts::cgroup_owner(spec, host).map(Chore::DelegateCgroup);
        let (owner_before, owner_placed) = if placed.is_some() { (None, owner) } else { (owner, None) };
        p.entries.extend(before.into_iter().chain(owner_before).map(Entry::Before));
        for sources in [mounts.before, devices.before, hidden.before] {
            sources.into_iter().for_each(|source| p.before(Chore::Mount(source)));
        }
        p.entries.push(Entry::Clone(namespaces.clone_flags()));
        if namespaces.take_its_rights_at_birth() {
            process.by_the_runtime(&mut p);
        }
        let is_placed = placed.is_some();
        p.entries.extend(placed.into_iter().chain(owner_placed).map(Entry::Parent));

        p.child(Step::Isolate { ignored_signals: host.ignored_signals });
        if enters {
            p.child(Step::EnterCgroups);
        }
        if is_placed {
            p.meet(Meeting::Placed); // before anything that its cgroup is part of: its namespace, its mounts
        }
        p.mount(mounts.placed);
        if !namespaces.take_its_rights_at_birth() {
            process.before_joining(&mut p);
        }
        namespaces.enter(&mut p, host);
        p.root(root.prepare); // while we still own what is the host root's: the bundle may lie in a folder of mode 0700
        namespaces.become_root(&mut p, linux, host, &mut bad);
        p.child(Step::Session);
        if !request.no_new_keyring {
            p.child(keyring(&request.id, namespaces.user_is_new(), &mut bad));
        }
        if namespaces.network_is_new() {
            p.child(Step::LoopbackUp);
        }
        p.mount(mounts.child);
        p.mount(devices.child);
        if hooks.need_the_host_root() {
            p.meet(Meeting::Mounted);
            hooks.in_runtime(&mut p);
            p.meet(Meeting::HooksDone);
            hooks.in_container(&mut p);
        }
        p.root(root.enter); // from here on paths are the container's own
        process.stdio(&mut p);
        if process.has_terminal() {
            p.mount(mounts::console());
        }
        p.child(Step::MakeCwd(process.cwd.clone()));
        p.mount(mounts.finish);
        p.mount(devices.finish);
        p.root(root.finish);
        sysctl::plan(&mut p, linux, &namespaces, &mut bad);
        identity::host_names(&mut p, spec, &namespaces, &mut bad);
        p.mount(hidden.finish); // after sysctl: it hides /proc/sys
        process.become_it(&mut p, seccomp, |p| {
            p.meet(Meeting::Start);
            hooks.at_start(p);
        });
        hooks.after_start(&mut p);
        bad.none_or_err()?;
        Ok(p)
    }

    /// The first entry that `matches`, as its place in the list.
    #[cfg(test)]
    pub(crate) fn place(&self, matches: impl Fn(&Step) -> bool) -> Option<usize> {
        self.entries.iter().position(|entry| matches!(entry, Entry::Child(step) if matches(step)))
    }
}

/// The session keyring of a container: whoever joins by its name later gets the same one.
fn keyring(id: &str, others: bool, bad: &mut Problems) -> Step {
    Step::Keyring { name: identity::c_string("id", &format!("_ses.{id}"), bad), others }
}

/// The cgroup a container is to have, and under systemd the unit, of which nothing is decided yet but the name.
pub(crate) fn cgroup_path(
    spec: &Spec,
    request: &Request,
    layout: &Layout,
) -> Result<(CgroupPath, Option<Unit>), cgroup::Problem> {
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_deref());
    match request.systemd {
        None => Ok((CgroupPath::new(path, &request.id)?, None)),
        Some(manager) => {
            let unit = Unit::new(path, &request.id, manager, layout)?;
            Ok((unit.path().clone(), Some(unit)))
        }
    }
}

/// The container's cgroup and its limits: what is made before the child exists, and what needs the child.
fn cgroup(spec: &Spec, request: &Request, host: &Host, bad: &mut Problems) -> (Option<Chore>, Option<Chore>) {
    let layout = &host.cgroups;
    let limits = match spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()) {
        Some(resources) => Limits::compile(resources, layout),
        None => Limits::compile(&LinuxResources::default(), layout),
    };
    let path = cgroup_path(spec, request, layout).map_err(|problem| bad.add(problem.field, problem.text)).ok();
    let limits = limits.map_err(|problems| problems.into_iter().for_each(|p| bad.add(p.field, p.text))).ok();
    let (Some((path, unit)), Some(limits)) = (path, limits) else { return (None, None) };
    let Some(mut unit) = unit else { return (Some(Chore::Cgroup { path, limits }), None) };
    let annotations = spec.annotations().iter().flatten();
    if let Err(problems) = unit.compile(&request.id, annotations, &limits, layout) {
        problems.into_iter().for_each(|p| bad.add(p.field, p.text));
    }
    (None, Some(Chore::Unit { unit: Box::new(unit), places: path.places(layout), limits }))
}

fn renames(spec: &Spec) -> bool {
    [spec.hostname(), spec.domainname()].into_iter().flatten().any(|name| !name.is_empty())
}

/// Settings the spec knows and we do not have are refused, never ignored.
fn refuse_unsupported(spec: &Spec, linux: &Linux, bad: &mut Problems) {
    if !spec.version().starts_with("1.") {
        bad.add("ociVersion", format!("{:?} is not a version 1 of the runtime-spec", spec.version()));
    }
    if spec.windows().is_some() || spec.solaris().is_some() || spec.vm().is_some() || spec.zos().is_some() {
        bad.add("config.json", "is for another platform than Linux");
    }
    if spec.process().is_none() {
        bad.add("process", "is missing: it says what to run");
    }
    if linux.intel_rdt().is_some() {
        bad.add("linux.intelRdt", "cache allocation is not supported; remove it");
    }
    if linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()) {
        bad.add("linux.netDevices", "moving network devices is not supported; remove it");
    }
}

/// `path` must be absolute.
pub(crate) fn absolute<'a>(field: &str, path: &'a Path, bad: &mut Problems) -> &'a Path {
    if !path.is_absolute() {
        bad.add(field, format!("{path:?} is not an absolute path"));
    }
    path
}

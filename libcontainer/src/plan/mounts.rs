//! Decides about everything mounted in a container: the root, `mounts`, devices, and what is hidden. Touches nothing.

mod cgroup;
mod device;
mod options;
#[cfg(test)]
mod tests;

use std::ffi::CString;
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Mount as SpecMount, Spec};

use super::{Problem, Request};
use crate::cgroup::Place;
use crate::host::Host;
use crate::step::mount::{
    Attach, Filesystem, IdMap, IdMapFrom, Mount, NearProc, Param, Propagation, PropagationKind, Remount, Seal, Slot,
    Source, Target, hide,
};
use crate::step::root::Root;
use crate::sys::in_root::{InRoot, Links};
use crate::sys::mount::{MountAttr, attr};

pub(crate) use cgroup::owner as cgroup_owner;
pub(crate) use device::console;
pub use options::known_options;
use options::{FLAG_WORDS, Options};

/// The mount steps of a plan, by their place in it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct MountPlan {
    /// Before clone3, and after the container's cgroup is made: sources.
    pub(crate) before: Vec<Mount>,
    /// In the child, once its cgroup is made: sources again, of directories that systemd makes around the child.
    pub(crate) placed: Vec<Mount>,
    /// In the child, before the hooks that see the host's root: mounts in spec order, then devices.
    pub(crate) child: Vec<Mount>,
    /// In the child, after the pivot: what was left writable to be filled, then what is hidden.
    pub(crate) finish: Vec<Mount>,
}

/// The root steps of a plan, by their place in it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct RootPlan {
    /// In the child, before the mounts.
    pub(crate) prepare: Vec<Root>,
    /// In the child, after the createContainer hooks.
    pub(crate) enter: Vec<Root>,
    /// Right after, in this order.
    pub(crate) finish: Vec<Root>,
}

/// What the spec says about namespaces, as far as mounts depend on it.
#[derive(Clone, Debug)]
struct Namespaces {
    user: Namespace,
    mount: Namespace,
    network: Namespace,
    cgroup: Namespace,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Namespace {
    Host,
    New,
    Joined(PathBuf),
}

impl Namespaces {
    fn of(spec: &Spec) -> Self {
        let listed = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
        let find = |kind| match listed.into_iter().flatten().find(|ns| ns.typ() == kind) {
            None => Namespace::Host,
            Some(ns) => match ns.path() {
                Some(path) if !path.as_os_str().is_empty() => Namespace::Joined(path.clone()),
                _ => Namespace::New,
            },
        };
        Self {
            user: find(LinuxNamespaceType::User),
            mount: find(LinuxNamespaceType::Mount),
            network: find(LinuxNamespaceType::Network),
            cgroup: find(LinuxNamespaceType::Cgroup),
        }
    }

    fn has_user(&self) -> bool {
        self.user != Namespace::Host
    }
}

/// Decides about `root`, `linux.rootfsPropagation` and how the container enters its root.
pub(crate) fn root(spec: &Spec, request: &Request, problems: &mut Vec<Problem>) -> RootPlan {
    let Some(rootfs) = text(problems, "root.path", request.rootfs.as_os_str().as_encoded_bytes()) else {
        return RootPlan::default();
    };
    let namespaces = Namespaces::of(spec);
    let propagation = root_propagation(spec, problems);
    let private = is_private(propagation);
    let mut plan = RootPlan::default();
    if namespaces.mount == Namespace::Host {
        plan.prepare.push(Root::Open { rootfs });
        plan.enter.push(Root::Chroot);
        if spec.root().as_ref().and_then(|root| root.readonly()) == Some(true) {
            problem(
                problems,
                "root.readonly",
                "needs a mount namespace: add {\"type\": \"mount\"} to linux.namespaces",
            );
        }
    } else {
        plan.prepare.extend([Root::Detach, Root::Clone { rootfs, private }]);
        plan.enter.push(if request.no_pivot { Root::Move } else { Root::Pivot });
        if request.no_pivot && private {
            let what = "[r]private is not safe without pivot_root: unmounts on the host would never be seen here";
            problem(problems, "linux.rootfsPropagation", what);
        }
        if spec.root().as_ref().and_then(|root| root.readonly()) == Some(true) {
            plan.finish.push(Root::ReadOnly);
        }
        // Of the root alone, even for rshared and the like: the mounts below have their own options. For those it was
        // the starting point.
        let own = propagation.filter(|p| p.kind != PropagationKind::Private);
        plan.finish.extend(own.map(|p| Root::Propagate(Propagation { recursive: false, ..p })));
    }
    let mounted = spec.mounts().iter().flatten().any(|m| is_at(m, "/proc"));
    plan.finish.push(Root::Proc { mounted });
    plan
}

fn root_propagation(spec: &Spec, problems: &mut Vec<Problem>) -> Option<Propagation> {
    let word = spec.linux().as_ref()?.rootfs_propagation().as_ref().filter(|word| !word.is_empty())?;
    let options = Options::read(std::slice::from_ref(word));
    if options.propagation.is_empty() {
        let what = format!("{word:?} is not one of [r]private, [r]slave, [r]shared, [r]unbindable");
        problem(problems, "linux.rootfsPropagation", what);
    }
    options.propagation.first().copied()
}

fn is_private(propagation: Option<Propagation>) -> bool {
    // An unbindable root is as private, and more.
    matches!(propagation.map(|p| p.kind), Some(PropagationKind::Private | PropagationKind::Unbindable))
}

/// Hands out the slots of `Fds::sources`.
#[derive(Debug, Default)]
pub(crate) struct Slots(usize);

impl Slots {
    fn next(&mut self) -> Slot {
        self.0 += 1;
        Slot(self.0 - 1)
    }
}

/// Decides about `mounts`, in the order they are listed.
pub(crate) fn mounts(
    spec: &Spec,
    host: &Host,
    request: &Request,
    slots: &mut Slots,
    problems: &mut Vec<Problem>,
) -> MountPlan {
    let listed = spec.mounts().as_deref().unwrap_or_default();
    let namespaces = Namespaces::of(spec);
    if !listed.is_empty() && namespaces.mount == Namespace::Host {
        problem(problems, "mounts", "need a mount namespace: add {\"type\": \"mount\"} to linux.namespaces");
        return MountPlan::default();
    }
    // A bad path is a problem of the cgroup's own part of the plan.
    let cgroup = super::cgroup_path(spec, request, &host.cgroups);
    let mut planner = Planner {
        places: cgroup.map_or(Vec::new(), |(path, _)| path.places(&host.cgroups)),
        request,
        base: base_propagation(spec, &namespaces),
        label: spec.linux().as_ref().and_then(|l| l.mount_label().clone()).filter(|l| !l.is_empty()),
        spec,
        namespaces,
        maps: Vec::new(),
        plan: MountPlan::default(),
        slots,
        problems,
    };
    for (index, mount) in listed.iter().enumerate() {
        planner.mount(index, mount);
    }
    planner.plan
}

/// How a copy of a host's mount is related to the original unless its options say: as in runc, where every mount comes
/// from a namespace in which `linux.rootfsPropagation`, by default rslave, was set on all of it. With a user namespace
/// it is never a peer, as the kernel sees to when it copies a mount namespace into another user's.
fn base_propagation(spec: &Spec, namespaces: &Namespaces) -> Vec<Propagation> {
    let recursive = |kind| Propagation { kind, recursive: true };
    let slave = recursive(PropagationKind::Slave);
    match root_propagation(spec, &mut Vec::new()) {
        Some(Propagation { kind: PropagationKind::Private | PropagationKind::Unbindable, .. }) => {
            vec![recursive(PropagationKind::Private)]
        }
        Some(shared @ Propagation { kind: PropagationKind::Shared, recursive }) => {
            let mut base = if namespaces.has_user() { vec![slave] } else { vec![] };
            base.extend(recursive.then_some(shared));
            base
        }
        None | Some(Propagation { kind: PropagationKind::Slave, .. }) => vec![slave],
    }
}

/// The calls that bring the propagation from `base` to where `more`, one after the other, leads.
fn shortest(base: &[Propagation], more: &[Propagation]) -> Vec<Propagation> {
    let mut steps: Vec<Propagation> = Vec::new();
    for &next in base.iter().chain(more) {
        let ends_all = matches!(next.kind, PropagationKind::Private | PropagationKind::Unbindable) && next.recursive;
        if ends_all {
            steps.clear();
        }
        if steps.last() != Some(&next) {
            steps.push(next);
        }
    }
    steps
}

struct Planner<'a> {
    spec: &'a Spec,
    /// The directories of the container's cgroup.
    places: Vec<Place>,
    request: &'a Request,
    namespaces: Namespaces,
    base: Vec<Propagation>,
    /// `linux.mountLabel`.
    label: Option<String>,
    /// The id mappings planned so far.
    maps: Vec<IdMap>,
    plan: MountPlan,
    slots: &'a mut Slots,
    problems: &'a mut Vec<Problem>,
}

/// One entry of `mounts`, read.
struct Wanted<'a> {
    index: usize,
    spec: &'a SpecMount,
    kind: &'a str,
    options: Options,
    path: InRoot,
}

impl Wanted<'_> {
    fn field(&self, name: &str) -> String {
        format!("mounts[{}].{name}", self.index)
    }

    /// proc and sysfs are at the very path that is named, or nowhere: the runtime goes there itself.
    fn target(&self) -> Target {
        let exact = !self.options.is_bind() && matches!(self.kind, "proc" | "sysfs");
        Target { path: self.path.clone(), links: if exact { Links::Refuse } else { Links::Follow } }
    }
}

impl Planner<'_> {
    fn problem(&mut self, field: impl Into<String>, what: impl Into<String>) {
        problem(self.problems, field, what);
    }

    fn mount(&mut self, index: usize, spec: &SpecMount) {
        let options = Options::read(spec.options().as_deref().unwrap_or_default());
        let kind = spec.typ().as_deref().unwrap_or_default();
        let Some(path) = InRoot::new(spec.destination()) else {
            return self.problem(format!("mounts[{index}].destination"), "has a NUL byte");
        };
        let wanted = Wanted { index, spec, kind, options, path };
        if spec.destination().as_os_str().is_empty() {
            return self.problem(wanted.field("destination"), "is missing");
        }
        if wanted.path.as_path() == Path::new("/") {
            return self.problem(wanted.field("destination"), "is the root directory, which no mount may hide");
        }
        self.check_near_proc(&wanted);
        if wanted.options.idmap.is_some() || spec.uid_mappings().is_some() || spec.gid_mappings().is_some() {
            self.check_id_mapped(&wanted);
        }
        match kind {
            _ if wanted.options.is_remount() => self.remount(&wanted),
            _ if wanted.options.is_bind() => self.bind(&wanted),
            "" => self.problem(wanted.field("type"), "is missing; only a mount with the option bind or rbind has none"),
            "bind" => self.problem(wanted.field("options"), "have neither bind nor rbind, but the type is bind"),
            "cgroup" => self.cgroup(&wanted),
            "sysfs" if self.cannot_mount_sysfs() => self.host_sysfs(&wanted),
            _ => self.filesystem(&wanted, wanted.kind),
        }
    }

    fn check_near_proc(&mut self, wanted: &Wanted<'_>) {
        match NearProc::of(wanted.path.as_path()) {
            NearProc::Outside | NearProc::StandIn => {}
            // What a bind mount's source is will be seen when it is open.
            NearProc::Itself if wanted.kind == "proc" || wanted.options.is_bind() => {}
            NearProc::Itself => self.problem(wanted.field("destination"), "only a procfs may be mounted at /proc"),
            NearProc::Below => {
                let what = format!("{} is below /proc, where only stand-ins for single files may be", wanted.path);
                self.problem(wanted.field("destination"), what);
            }
        }
    }

    fn check_id_mapped(&mut self, wanted: &Wanted<'_>) {
        let (uids, gids) = (wanted.spec.uid_mappings(), wanted.spec.gid_mappings());
        if !wanted.options.is_bind() {
            self.problem(wanted.field("options"), "an id mapping is possible for bind mounts only");
        }
        if uids.is_some() != gids.is_some() {
            self.problem(wanted.field("uidMappings"), "uidMappings and gidMappings are given together or not at all");
        } else if uids.is_none() && !self.namespaces.has_user() {
            let what = "idmap needs uidMappings and gidMappings, or a user namespace to take them from";
            self.problem(wanted.field("options"), what);
        }
    }

    fn bind(&mut self, wanted: &Wanted<'_>) {
        let source = wanted.spec.source().as_deref().unwrap_or(Path::new(""));
        if source.as_os_str().is_empty() {
            return self.problem(wanted.field("source"), "is missing");
        }
        let Some(path) = self.text(&wanted.field("source"), self.request.bundle.join(source)) else { return };
        let ids = self.id_map(wanted);
        let slot = self.slots.next();
        self.plan.before.push(Mount::Source(Source {
            slot,
            path: path.clone(),
            place: wanted.path.clone(),
            recursive: wanted.options.is_recursive(),
            flags: wanted.options.flags(),
            keep: self.namespaces.has_user(),
            all: wanted.options.all,
            ids,
            propagation: shortest(&self.base, &wanted.options.propagation),
        }));
        self.plan.child.push(Mount::Attach(Attach { slot, from: path, target: wanted.target() }));
    }

    /// The slot of the id mapping a mount wants, and whether all of its tree gets it.
    fn id_map(&mut self, wanted: &Wanted<'_>) -> Option<(Slot, bool)> {
        let listed = wanted.spec.uid_mappings().as_deref().zip(wanted.spec.gid_mappings().as_deref());
        let linux = self.spec.linux().as_ref();
        let from = match (listed, &self.namespaces.user) {
            (Some((uids, gids)), _) => ids(uids, gids),
            (None, _) if wanted.options.idmap.is_none() => return None,
            (None, Namespace::Joined(path)) => {
                IdMapFrom::Namespace(text(self.problems, "linux.namespaces", path.as_os_str().as_encoded_bytes())?)
            }
            (None, _) => ids(
                linux?.uid_mappings().as_deref().unwrap_or_default(),
                linux?.gid_mappings().as_deref().unwrap_or_default(),
            ),
        };
        let recursive = wanted.options.idmap == Some(true);
        if let Some(map) = self.maps.iter().find(|map| map.from == from) {
            return Some((map.slot, recursive));
        }
        let map = IdMap { slot: self.slots.next(), from };
        self.maps.push(map.clone());
        let slot = map.slot;
        self.plan.before.push(Mount::IdMap(map));
        Some((slot, recursive))
    }

    fn remount(&mut self, wanted: &Wanted<'_>) {
        let Some(mut params) = self.params(wanted) else { return };
        if !wanted.options.is_read_only() {
            // Otherwise the filesystem stays what it was.
            params.push((c"rw".to_owned(), None));
        }
        self.plan.child.push(Mount::Remount(Remount {
            target: wanted.path.clone(),
            flags: wanted.options.flags().unwrap_or_default(),
            params: (!wanted.options.is_bind()).then_some(params),
            propagation: wanted.options.propagation.clone(),
        }));
    }

    /// The options a filesystem is given.
    fn params(&mut self, wanted: &Wanted<'_>) -> Option<Vec<Param>> {
        let params = wanted.options.params();
        if params.is_err() {
            self.problem(wanted.field("options"), "have a NUL byte");
        }
        params.ok()
    }

    /// A new filesystem.
    fn filesystem(&mut self, wanted: &Wanted<'_>, kind: &str) {
        let source = wanted.spec.source().clone().unwrap_or_default();
        let (Some(kind), Some(source), Some(mut params)) =
            (self.text(&wanted.field("type"), kind), self.text(&wanted.field("source"), source), self.params(wanted))
        else {
            return;
        };
        // Kernels with SELinux label neither procfs nor sysfs, and mqueue and cgroupfs by policy.
        let labelled = !matches!(kind.to_bytes(), b"proc" | b"sysfs" | b"mqueue" | b"cgroup" | b"cgroup2");
        if let Some(label) = self.label.clone().filter(|_| labelled && !has_key(&params, c"context")) {
            params.extend(self.text("linux.mountLabel", label).map(|label| (c"context".to_owned(), Some(label))));
        }
        let tmpfs = kind.as_c_str() == c"tmpfs";
        // What is mounted in it and the devices still need to be made.
        let later = wanted.options.is_read_only() && (tmpfs || wanted.path.as_path() == Path::new("/dev"));
        let mut attrs = wanted.options.attrs();
        let mut keep = None;
        if later {
            attrs &= !attr::RDONLY;
            params.retain(|(key, value)| !(key.as_c_str() == c"ro" && value.is_none()));
            let slot = self.slots.next();
            keep = Some(slot);
            self.plan.finish.push(Mount::Seal(Seal { slot, path: wanted.path.clone() }));
        }
        let old = wanted.options.needs_mount_2().map(|flags| {
            let flags = if later { flags - MsFlags::MS_RDONLY } else { flags };
            (data_of(&params), flags.bits())
        });
        if old.is_some() && wanted.options.copy_up {
            self.problem(
                wanted.field("options"),
                "tmpcopyup needs a mount that mount(2) cannot make, as iversion does",
            );
        }
        self.plan.child.push(Mount::Filesystem(Filesystem {
            kind,
            source,
            mode_of_target: tmpfs && !has_key(&params, c"mode"),
            params,
            attrs,
            propagation: shortest(&[], &wanted.options.propagation),
            target: wanted.target(),
            copy_up: tmpfs && wanted.options.copy_up,
            keep,
            old,
        }));
    }

    /// The kernel lets a user namespace mount the sysfs of a network namespace it owns, and no other.
    fn cannot_mount_sysfs(&self) -> bool {
        match (&self.namespaces.user, &self.namespaces.network) {
            (Namespace::Host, _) | (_, Namespace::New) => false,
            (Namespace::New, _) | (_, Namespace::Host) => true,
            // A pod's: it was made in the user namespace that is joined with it.
            (Namespace::Joined(_), Namespace::Joined(_)) => false,
        }
    }

    /// The host's sysfs in place of one that cannot be mounted, with the same attributes in all of its tree.
    fn host_sysfs(&mut self, wanted: &Wanted<'_>) {
        let slot = self.slots.next();
        let set = wanted.options.attrs() & !attr::ATIME;
        self.plan.before.push(Mount::Source(Source {
            slot,
            path: c"/sys".to_owned(),
            place: wanted.path.clone(),
            recursive: true,
            flags: None,
            keep: true,
            all: Some(MountAttr { set, ..MountAttr::default() }),
            ids: None,
            propagation: shortest(&self.base, &wanted.options.propagation),
        }));
        self.plan.child.push(Mount::Attach(Attach { slot, from: c"/sys".to_owned(), target: wanted.target() }));
    }

    fn text(&mut self, field: &str, value: impl AsRef<std::ffi::OsStr>) -> Option<CString> {
        text(self.problems, field, value.as_ref().as_encoded_bytes())
    }
}

/// Decides about `linux.readonlyPaths` and `linux.maskedPaths`.
pub(crate) fn hide_paths(spec: &Spec, slots: &mut Slots, problems: &mut Vec<Problem>) -> MountPlan {
    let mut plan = MountPlan::default();
    let Some(linux) = spec.linux() else { return plan };
    let read_only = linux.readonly_paths().as_deref().unwrap_or_default();
    let masked = linux.masked_paths().as_deref().unwrap_or_default();
    if Namespaces::of(spec).mount == Namespace::Host && !(read_only.is_empty() && masked.is_empty()) {
        let what = "need a mount namespace: add {\"type\": \"mount\"} to linux.namespaces";
        problem(problems, "linux.maskedPaths, linux.readonlyPaths", what);
        return plan;
    }
    let mut paths = |field: &str, paths: &[String]| -> Vec<InRoot> {
        let mut clean = Vec::with_capacity(paths.len());
        for (index, path) in paths.iter().enumerate() {
            match InRoot::new(path) {
                Some(path) if path.as_path() != Path::new("/") => clean.push(path),
                _ => problem(problems, format!("{field}[{index}]"), format!("{path:?} is not a path below /")),
            }
        }
        clean
    };
    let read_only = paths("linux.readonlyPaths", read_only);
    let masked = paths("linux.maskedPaths", masked);
    plan.finish.extend(read_only.into_iter().map(|path| Mount::ReadOnly(hide::ReadOnly { path })));
    if let Some(first) = masked.first() {
        let (null, over_file, over_directory) = (slots.next(), slots.next(), slots.next());
        plan.before.push(Mount::Source(lent_device(null, c"/dev/null".to_owned(), first.clone())));
        let mask = |path| Mount::Mask(hide::Mask { path, null, over_file, over_directory });
        plan.finish.extend(masked.into_iter().map(mask));
    }
    plan
}

/// A device of the host's, lent: with no relation to the original, and read-only. That leaves the device as usable as it
/// was, but keeps root in the container from changing mode or owner of the host's own node.
fn lent_device(slot: Slot, path: CString, place: InRoot) -> Source {
    let private = Propagation { kind: PropagationKind::Private, recursive: true };
    let all = MountAttr { set: attr::RDONLY | attr::NOSUID | attr::NOEXEC, ..MountAttr::default() };
    Source {
        slot,
        path,
        place,
        recursive: false,
        flags: None,
        keep: true,
        all: Some(all),
        ids: None,
        propagation: vec![private],
    }
}

pub(crate) use device::devices;

fn ids(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> IdMapFrom {
    let lines = |ids: &[LinuxIdMapping]| {
        ids.iter().map(|id| format!("{} {} {}\n", id.container_id(), id.host_id(), id.size())).collect()
    };
    IdMapFrom::Ids { uids: lines(uids), gids: lines(gids) }
}

fn is_at(mount: &SpecMount, path: &str) -> bool {
    InRoot::new(mount.destination()).is_some_and(|at| at.as_path() == Path::new(path))
}

/// Options as mount(2) reads them. Values with commas are quoted, which only SELinux contexts may be.
fn data_of(params: &[Param]) -> CString {
    let mut data = Vec::new();
    for (key, value) in params.iter().filter(|(key, _)| !FLAG_WORDS.contains(&key.as_c_str())) {
        data.extend((!data.is_empty()).then_some(b','));
        data.extend(key.to_bytes());
        if let Some(value) = value.as_ref().map(|value| value.to_bytes()) {
            let quote = value.contains(&b',').then_some(b'"');
            data.push(b'=');
            data.extend(quote.into_iter().chain(value.iter().copied()).chain(quote));
        }
    }
    // None of the parts has a NUL byte.
    CString::new(data).unwrap_or_default()
}

fn has_key(params: &[Param], key: &std::ffi::CStr) -> bool {
    params.iter().any(|(k, _)| k.as_c_str() == key)
}

fn problem(problems: &mut Vec<Problem>, field: impl Into<String>, what: impl Into<String>) {
    problems.push(Problem { field: field.into(), what: what.into() });
}

fn text(problems: &mut Vec<Problem>, field: &str, value: &[u8]) -> Option<CString> {
    let text = CString::new(value);
    if text.is_err() {
        problem(problems, field, "has a NUL byte");
    }
    text.ok()
}

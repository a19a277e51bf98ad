//! Decides about mounts of type `cgroup`: the container's view of the cgroups it is in.

use std::ffi::CString;
use std::path::Path;

use oci_spec::runtime::{LinuxIdMapping, Mount as SpecMount, Spec};

use super::{Namespace, Namespaces, Planner, Wanted, shortest};
use crate::cgroup::Place;
use crate::host::Host;
use crate::step::mount::device::{Link, LinkSet};
use crate::step::mount::{Attach, Filesystem, Flags, Mount, Param, Seal, Source, Target};
use crate::sys::in_root::{InRoot, Links};
use crate::sys::mount::attr;

const QUIET: u64 = attr::NOSUID | attr::NODEV | attr::NOEXEC;

impl Planner<'_> {
    pub(super) fn cgroup(&mut self, wanted: &Wanted<'_>) {
        let (v2, v1): (Vec<Place>, Vec<Place>) = self.places.clone().into_iter().partition(|place| place.v2);
        match v2.first() {
            Some(place) if v1.is_empty() => self.cgroup_2(wanted, place),
            // The v2 mount of a hybrid machine has no controllers; runc does not show it either.
            _ => self.cgroup_1(wanted, &v1),
        }
    }

    /// One hierarchy. Without a cgroup namespace the host's mount is shown: a mount of its own would be the same, but
    /// would set the options of the hierarchy (nsdelegate, memory_recursiveprot) anew, for the whole machine; and in a user
    /// namespace the kernel forbids it.
    fn cgroup_2(&mut self, wanted: &Wanted<'_>, place: &Place) {
        if self.namespaces.cgroup == Namespace::Host {
            let flags = wanted.options.flags();
            self.show(wanted, &place.mount, wanted.path.clone(), flags, false);
        } else {
            self.filesystem(wanted, "cgroup2");
        }
    }

    /// A tmpfs with a directory for each hierarchy: a mount of the hierarchy, which starts at the container's cgroup in a
    /// cgroup namespace, or else a bind mount of that cgroup's directory.
    fn cgroup_1(&mut self, wanted: &Wanted<'_>, places: &[Place]) {
        let read_only = wanted.options.is_read_only();
        let keep = read_only.then(|| self.slots.next());
        let propagation = shortest(&[], &wanted.options.propagation);
        self.plan.child.push(Mount::Filesystem(Filesystem {
            kind: c"tmpfs".to_owned(),
            source: c"tmpfs".to_owned(),
            params: vec![(c"mode".to_owned(), Some(c"755".to_owned()))],
            attrs: QUIET,
            propagation: propagation.clone(),
            target: wanted.target(),
            mode_of_target: false,
            copy_up: false,
            keep,
            old: None,
        }));
        let mut links = Vec::new();
        for place in places {
            let Some(name) = place.mount.file_name() else { continue };
            let Some(path) = InRoot::new(wanted.path.as_path().join(name)) else { continue };
            if self.namespaces.cgroup == Namespace::Host {
                let flags = Some(Flags { set: wanted.options.attrs(), cleared: 0, atime: false });
                self.show(wanted, &place.dir, path, flags, true);
            } else {
                let Ok(params) = place.controllers.iter().map(|c| param(c)).collect::<Result<_, _>>() else { continue };
                self.plan.child.push(Mount::Filesystem(Filesystem {
                    kind: c"cgroup".to_owned(),
                    source: c"cgroup".to_owned(),
                    params,
                    attrs: QUIET | if read_only { attr::RDONLY } else { 0 },
                    propagation: propagation.clone(),
                    target: Target { path, links: Links::Follow },
                    mode_of_target: false,
                    copy_up: false,
                    keep: None,
                    old: None,
                }));
            }
            // cpu and cpuacct are found under their own names too where they are mounted as cpu,cpuacct.
            if place.controllers.len() > 1 {
                links.extend(place.controllers.iter().filter(|c| c.as_str() != name).filter_map(|controller| {
                    let (name, to) =
                        (CString::new(controller.as_str()).ok()?, CString::new(name.as_encoded_bytes()).ok()?);
                    Some(Link { name, to, replace: false })
                }));
            }
        }
        if !links.is_empty() {
            self.plan.child.push(Mount::Links(LinkSet { directory: wanted.path.clone(), links }));
        }
        if let Some(slot) = keep {
            self.plan.child.push(Mount::Seal(Seal { slot, path: wanted.path.clone() }));
        }
    }

    /// Shows a directory of the host's cgroups.
    fn show(&mut self, wanted: &Wanted<'_>, dir: &Path, path: InRoot, flags: Option<Flags>, recursive: bool) {
        let Some(from) = self.text(&wanted.field("type"), dir) else { return };
        let slot = self.slots.next();
        let source = Mount::Source(Source {
            slot,
            path: from.clone(),
            place: path.clone(),
            recursive,
            flags,
            keep: self.namespaces.has_user(),
            all: wanted.options.all,
            ids: None,
            propagation: shortest(&self.base, &wanted.options.propagation),
        });
        // The mount of a hierarchy is there from the first.
        let is_made_by_then = self.request.systemd.is_none() || !self.places.iter().any(|place| place.dir == dir);
        if is_made_by_then { &mut self.plan.before } else { &mut self.plan.placed }.push(source);
        self.plan.child.push(Mount::Attach(Attach { slot, from, target: Target { path, links: Links::Follow } }));
    }
}

/// Who is to own the container's cgroup: on v2, root of the container's user namespace, if it sees the cgroup in a
/// namespace of its own and by a mount it may write to (runtime-spec, "Cgroup ownership").
pub(crate) fn owner(spec: &Spec, host: &Host) -> Option<u32> {
    let namespaces = Namespaces::of(spec);
    let own = namespaces.has_user() && namespaces.cgroup == Namespace::New;
    let writable = |mount: &SpecMount| {
        let read_only = mount.options().iter().flatten().any(|option| option == "ro" || option == "rro");
        mount.destination() == Path::new("/sys/fs/cgroup") && is_cgroup(mount) && !read_only
    };
    if !own || !host.privileged || !host.cgroups.is_v2() || !spec.mounts().iter().flatten().any(writable) {
        return None;
    }
    let maps = spec.linux().as_ref()?.uid_mappings().as_ref()?;
    maps.iter().find(|map| map.container_id() == 0).map(LinuxIdMapping::host_id).filter(|&uid| uid != 0)
}

fn is_cgroup(mount: &SpecMount) -> bool {
    matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2"))
}

/// `cpu`, or `name=systemd`.
fn param(controller: &str) -> Result<Param, std::ffi::NulError> {
    Ok(match controller.split_once('=') {
        Some((key, value)) => (CString::new(key)?, Some(CString::new(value)?)),
        None => (CString::new(controller)?, None),
    })
}

//! Decides about `linux.devices`, the devices and links every container has, and the terminal's node.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, makedev};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};

use super::{MountPlan, Namespace, Namespaces, Slots, is_at, lent_device, problem};
use crate::host::Host;
use crate::plan::Problem;
use crate::plan::mounts::options::Options;
use crate::step::mount::device::{Console, Link, LinkSet, Node, Nodes};
use crate::step::mount::{Attach, Mount, Target};
use crate::sys::in_root::{InRoot, Links};

/// What every container has in /dev (config-linux.md, "Default Devices"); all of them characters, open to everybody.
const DEFAULT: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Decides about devices and the links in /dev. Where /dev is bound from the host, nothing is done to it.
pub(crate) fn devices(spec: &Spec, host: &Host, slots: &mut Slots, problems: &mut Vec<Problem>) -> MountPlan {
    let mut plan = MountPlan::default();
    let bound = |m: &oci_spec::runtime::Mount| {
        is_at(m, "/dev") && Options::read(m.options().as_deref().unwrap_or_default()).is_bind()
    };
    if spec.mounts().iter().flatten().any(bound) {
        return plan;
    }
    let listed = spec.linux().as_ref().and_then(|linux| linux.devices().as_deref()).unwrap_or_default();
    let mut wanted: Vec<(InRoot, Node)> = Vec::new();
    for (name, major, minor) in DEFAULT {
        let (Some(path), Ok(name)) = (InRoot::new(Path::new("/dev").join(name)), CString::new(name)) else { continue };
        let mode = Mode::from_bits_truncate(0o666);
        let node = Node { name, kind: SFlag::S_IFCHR, device: makedev(major, minor), mode, owner: (0, 0) };
        wanted.push((path, node));
    }
    for (index, device) in listed.iter().enumerate() {
        match read(device) {
            Ok((path, node)) => {
                // The spec's own description of a default device takes its place.
                wanted.retain(|(other, _)| *other != path);
                // /dev/ptmx is a link, below.
                if path.as_path() != Path::new("/dev/ptmx") {
                    wanted.push((path, node));
                }
            }
            Err((name, what)) => problem(problems, format!("linux.devices[{index}].{name}"), what),
        }
    }
    let namespaces = Namespaces::of(spec);
    // The kernel allows device nodes, but not their use, to the initial user namespace alone.
    let borrowed = namespaces.user != Namespace::Host || !host.mknod;
    if borrowed && namespaces.mount == Namespace::Host {
        problem(
            problems,
            "linux.devices",
            "the runtime may not make devices, and without a mount namespace not bind them",
        );
        return plan;
    }
    for (path, node) in wanted {
        if borrowed && node.kind != SFlag::S_IFIFO {
            let Ok(from) = CString::new(path.as_path().as_os_str().as_bytes()) else { continue };
            let slot = slots.next();
            plan.before.push(Mount::Source(lent_device(slot, from.clone(), path.clone())));
            plan.child.push(Mount::Attach(Attach { slot, from, target: Target { path, links: Links::Follow } }));
        } else {
            make(&mut plan, &path, node);
        }
    }
    links(&mut plan, host);
    plan
}

/// Adds the node to the step before, if that is in the same directory.
fn make(plan: &mut MountPlan, path: &InRoot, node: Node) {
    let Some(directory) = path.as_path().parent().and_then(InRoot::new) else { return };
    match plan.child.last_mut() {
        Some(Mount::Nodes(nodes)) if nodes.directory == directory => nodes.nodes.push(node),
        _ => plan.child.push(Mount::Nodes(Nodes { directory, nodes: vec![node] })),
    }
}

fn links(plan: &mut MountPlan, host: &Host) {
    let link = |name: &std::ffi::CStr, to: &std::ffi::CStr, replace| Link { name: name.into(), to: to.into(), replace };
    let mut links = vec![
        link(c"fd", c"/proc/self/fd", false),
        link(c"stdin", c"/proc/self/fd/0", false),
        link(c"stdout", c"/proc/self/fd/1", false),
        link(c"stderr", c"/proc/self/fd/2", false),
        // Of the container's own devpts, whatever the image has there.
        link(c"ptmx", c"pts/ptmx", true),
    ];
    if host.kcore {
        links.push(link(c"core", c"/proc/kcore", false));
    }
    plan.child.extend(InRoot::new("/dev").map(|directory| Mount::Links(LinkSet { directory, links })));
}

/// The step that makes the container's terminal /dev/console.
pub(crate) fn console() -> Option<Mount> {
    InRoot::new("/dev/console").map(|path| Mount::Console(Console { path }))
}

fn read(device: &LinuxDevice) -> Result<(InRoot, Node), (&'static str, String)> {
    let path = InRoot::new(device.path()).ok_or(("path", "has a NUL byte".to_owned()))?;
    let name = path.as_path().file_name().ok_or(("path", format!("{} names no file", device.path().display())))?;
    let name = CString::new(name.as_bytes()).map_err(|_| ("path", "has a NUL byte".to_owned()))?;
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => SFlag::S_IFCHR,
        LinuxDeviceType::B => SFlag::S_IFBLK,
        LinuxDeviceType::P => SFlag::S_IFIFO,
        LinuxDeviceType::A => return Err(("type", "a device has a type: c, u, b or p".to_owned())),
    };
    let number = |name, n: i64, bits: u32| {
        u64::try_from(n).ok().filter(|n| n >> bits == 0).ok_or((name, format!("{n} is not a device number")))
    };
    // As wide as the kernel's (linux/kdev_t.h).
    let device_number = match kind {
        SFlag::S_IFIFO => 0,
        _ => makedev(number("major", device.major(), 12)?, number("minor", device.minor(), 20)?),
    };
    let mode = Mode::from_bits_truncate(device.file_mode().unwrap_or(0o666) & 0o7777);
    let owner = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
    Ok((path, Node { name, kind, device: device_number, mode, owner }))
}

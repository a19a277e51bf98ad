//! `linux.sysctl`: only what belongs to one of the container's own namespaces may be set.

use std::ffi::CString;

use oci_spec::runtime::{Linux, LinuxNamespaceType};

use super::{Namespaces, Plan, Problems};
use crate::step::Step;

/// The kernel.* keys that belong to an IPC namespace (ipc_namespaces(7)).
const IPC_KEYS: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

pub(super) fn plan(p: &mut Plan, linux: &Linux, namespaces: &Namespaces, bad: &mut Problems) {
    let mut settings = linux.sysctl().iter().flatten().collect::<Vec<_>>();
    settings.sort(); // a map has no order; a plan does
    for (key, value) in settings {
        let field = format!("linux.sysctl[{key:?}]");
        // Both spellings of sysctl(8): a/b and a.b; with slashes a dot is part of a name (net/ipv4/conf/eth0.1/…).
        let slashed = if key.contains('/') { key.clone() } else { key.replace('.', "/") };
        let dotted = slashed.replace('/', ".");
        if slashed.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            bad.add(field, "is not the name of a sysctl");
            continue;
        }
        if dotted == "kernel.hostname" {
            bad.add(field, "is set by the hostname field of config.json");
            continue;
        }
        let Some(owner) = owner(&dotted) else {
            bad.add(field, "belongs to no namespace: it would change the host");
            continue;
        };
        if !namespaces.is_own(owner) {
            bad.add(field, format!("needs a {owner:?} namespace of the container's own; it would change the host"));
            continue;
        }
        match CString::new(format!("sys/{slashed}")) {
            Ok(path) => p.child(Step::Sysctl { path, value: value.clone() }),
            Err(_) => bad.add(field, "has a NUL byte in its name"),
        }
    }
}

/// The kind of namespace that has a setting of its own by this name.
pub(super) fn owner(key: &str) -> Option<LinuxNamespaceType> {
    let dotted = key.replace('/', ".");
    if dotted.starts_with("net.") {
        Some(LinuxNamespaceType::Network)
    } else if dotted.starts_with("fs.mqueue.") || IPC_KEYS.contains(&dotted.as_str()) {
        Some(LinuxNamespaceType::Ipc)
    } else {
        (dotted == "kernel.domainname").then_some(LinuxNamespaceType::Uts)
    }
}

//! A host for tests that decide without a machine.

use oci_spec::runtime::LinuxSeccompAction;

use super::Host;
use crate::cgroup::{Hierarchies, Hierarchy, Layout};
use crate::seccomp::{Abi, HostSeccomp};

pub(crate) fn hierarchy(mount: &str, controllers: &[&str]) -> Hierarchy {
    let controllers = controllers.iter().map(ToString::to_string).collect();
    Hierarchy { controllers, mount: mount.into(), own: "".into() }
}

pub(crate) fn host(hierarchies: Hierarchies) -> Host {
    use LinuxSeccompAction as Action;
    let actions = vec![Action::ScmpActAllow, Action::ScmpActErrno, Action::ScmpActKillProcess, Action::ScmpActTrace];
    Host {
        cgroups: Layout { hierarchies, hugepage_sizes: vec!["2MB".to_owned()], user_namespace: false },
        seccomp: HostSeccomp { native: Abi::X86_64, actions, flags: vec![] },
        last_capability: 40,
        privileged: true,
        in_user_namespace: false,
        may_set_groups: true,
        pid_namespace_returns: true,
        mknod: true,
        kcore: true,
        ignored_signals: 0,
        apparmor: false,
        selinux: false,
    }
}

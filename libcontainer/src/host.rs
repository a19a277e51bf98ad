//! Facts about this machine and our rights on it, read once. Planning looks only here.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use nix::unistd::geteuid;

use crate::cgroup::Layout;
use crate::seccomp::HostSeccomp;
use crate::sys::process::namespace_is_below_us;

#[cfg(test)]
pub(crate) mod sample;

/// What planning needs to know of the machine.
#[derive(Debug, Clone)]
pub struct Host {
    /// Where the cgroup hierarchies are.
    pub cgroups: Layout,
    /// What the kernel's seccomp can do.
    pub seccomp: HostSeccomp,
    /// The highest capability number the kernel knows (`/proc/sys/kernel/cap_last_cap`).
    pub last_capability: u8,
    /// We are root in the initial user namespace's sense: we may map any ids.
    pub privileged: bool,
    /// We run in a user namespace.
    pub in_user_namespace: bool,
    /// Groups may be chosen in the user namespace we are in, which its maker may have had to give up.
    pub may_set_groups: bool,
    /// After another pid namespace we may enter our own again, which who entered one for its next child must.
    pub pid_namespace_returns: bool,
    /// We may make device nodes.
    pub mknod: bool,
    /// The kernel shows its memory in /proc/kcore.
    pub kcore: bool,
    /// Signals that this process ignores, as a bit mask; a child would inherit that.
    pub ignored_signals: u64,
    /// AppArmor is enabled.
    pub apparmor: bool,
    /// SELinux is enabled.
    pub selinux: bool,
}

/// A fact that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {fact}: {why}")]
pub struct HostError {
    fact: &'static str,
    why: String,
}

impl Host {
    /// Reads the facts from /proc and /sys.
    ///
    /// # Errors
    /// When /proc or the cgroup mounts are missing or not as the kernel makes them.
    pub fn detect() -> Result<Host, HostError> {
        let error = |fact, why: &dyn std::fmt::Display| HostError { fact, why: why.to_string() };
        let read = |path: &'static str| fs::read_to_string(path).map_err(|why| error(path, &why));
        let status = read("/proc/self/status")?;
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        let last = read("/proc/sys/kernel/cap_last_cap")?;
        let in_user_namespace = read("/proc/self/uid_map")?.split_whitespace().ne(["0", "0", "4294967295"]);
        let has = |capability| caps::has_cap(None, caps::CapSet::Effective, capability).is_ok_and(|has| has);
        let enabled = |path: &str| fs::read_to_string(path).is_ok_and(|value| value.starts_with('Y'));
        Ok(Host {
            cgroups: Layout::detect().map_err(|why| error("the cgroup layout", &why))?,
            seccomp: HostSeccomp::detect()
                .ok_or_else(|| error("what seccomp can do", &"this architecture has no system call table"))?,
            last_capability: last.trim().parse().map_err(|why| error("/proc/sys/kernel/cap_last_cap", &why))?,
            privileged: geteuid().is_root(),
            in_user_namespace,
            may_set_groups: !fs::read_to_string("/proc/self/setgroups").is_ok_and(|said| said.trim() == "deny"),
            pid_namespace_returns: has(caps::Capability::CAP_SYS_ADMIN)
                && fs::File::open("/proc/self/ns/pid").is_ok_and(|own| namespace_is_below_us(own.as_fd())),
            mknod: !in_user_namespace && has(caps::Capability::CAP_MKNOD),
            kcore: Path::new("/proc/kcore").exists(),
            ignored_signals: ignored.ok_or_else(|| error("/proc/self/status", &"it has no SigIgn line"))?,
            apparmor: enabled("/sys/module/apparmor/parameters/enabled"),
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
        })
    }
}

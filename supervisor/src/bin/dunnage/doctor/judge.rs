//! What the facts mean for whoever wants to run containers. Pure: same facts, same findings.

use caps::Capability;
use libcontainer::cgroup::{Hierarchies, Layout};
use libcontainer::host::Host;
use nix::errno::Errno;
use serde::Serialize;

use self::Verdict::{Broken, Limited};
use super::elf::Linkage;
use super::facts::Facts;
use super::programs::{Program, Shim};

/// How bad it is; a host is as bad as its worst finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// Nothing to do.
    Ok,
    /// Containers run, but something will not work.
    Limited,
    /// No container can run.
    Broken,
}

/// One thing there is to say about the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) verdict: Verdict,
    pub(super) subject: String,
    /// How it is here.
    pub(super) found: String,
    /// Always there when the verdict is not [`Verdict::Ok`].
    #[serde(flatten)]
    pub(super) advice: Option<Advice>,
}

/// Why a finding matters, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Advice {
    /// What does not work.
    pub(super) effect: String,
    pub(super) fix: String,
}

impl Verdict {
    /// The worst of them.
    pub(super) fn of(findings: &[Finding]) -> Verdict {
        findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Ok)
    }

    fn finding(
        self,
        subject: impl Into<String>,
        found: impl Into<String>,
        effect: impl Into<String>,
        fix: impl Into<String>,
    ) -> Finding {
        let advice = Some(Advice { effect: effect.into(), fix: fix.into() });
        Finding { verdict: self, subject: subject.into(), found: found.into(), advice }
    }
}

fn ok(subject: impl Into<String>, found: impl Into<String>) -> Finding {
    Finding { verdict: Verdict::Ok, subject: subject.into(), found: found.into(), advice: None }
}

/// What a finding says that leaves no container possible.
const NOTHING: &str = "any container";

/// Everything there is to say, in the order of a reader's interest: the kernel, our rights, limits, programs.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = kernel(facts);
    findings.extend(namespaces(facts));
    findings.push(ordinary_users(facts));
    match &facts.host {
        Ok(host) => {
            findings.extend(capabilities(facts, host));
            findings.extend(cgroups(facts, &host.cgroups));
            findings.push(seccomp(facts, host));
            findings.push(security_modules(host));
        }
        Err(error) => {
            let fix = "mount /proc, /sys and the cgroup hierarchies as an ordinary host has them";
            findings.push(Broken.finding("host", error, NOTHING, fix));
        }
    }
    findings.extend(filesystems(facts));
    findings.extend(idmapped_mounts(facts));
    findings.extend(limits(facts));
    findings.push(rootless(facts));
    findings.extend(machine_root(facts));
    findings.extend(standalone(facts));
    findings.push(containerd(facts));
    findings.push(shim(facts));
    findings.push(runtimes(facts));
    findings
}

fn capable(facts: &Facts) -> bool {
    facts.capabilities.contains(&Capability::CAP_SYS_ADMIN)
}

/// The first `major.minor` in a text, as in a kernel's release or what a program says of its version.
fn version(text: &str) -> Option<(u32, u32)> {
    text.split([' ', 'v']).find_map(|word| {
        let mut numbers = word.split(|c: char| !c.is_ascii_digit());
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    })
}

fn kernel(facts: &Facts) -> Vec<Finding> {
    let missing: Vec<Finding> = facts
        .system_calls
        .iter()
        .filter_map(|call| {
            let failed = call.answer.err()?;
            if failed.errno == Errno::EPERM && !capable(facts) {
                return None; // it is there, for root
            }
            let v2 = facts.host.as_ref().is_ok_and(|host| host.cgroups.is_v2());
            let (verdict, effect) = match call.name {
                "pidfd_getfd" => (Limited, "seccomp profiles with SCMP_ACT_NOTIFY"),
                "clone3 CLONE_INTO_CGROUP" if !v2 => return None, // v1 cgroups are entered another way
                _ => (Broken, NOTHING),
            };
            let fix = match version(&facts.kernel) < version(call.since) {
                true => format!("boot Linux {} or later; this is {}", call.since, facts.kernel),
                false => "allow it in the seccomp profile or security module around us, which forbids it".to_owned(),
            };
            Some(verdict.finding(call.name, failed.to_string(), effect, fix))
        })
        .collect();
    if !missing.is_empty() {
        return missing;
    }
    vec![ok("kernel", format!("Linux {}, with every system call we need", facts.kernel))]
}

fn namespaces(facts: &Facts) -> Vec<Finding> {
    let there: Vec<&str> =
        facts.namespaces.iter().filter(|(_, answer)| answer.is_ok()).map(|(name, _)| *name).collect();
    let mut findings = Vec::new();
    if !there.is_empty() {
        findings.push(ok("namespaces", there.join(" ")));
    }
    findings.extend(facts.namespaces.iter().filter_map(|(name, answer)| {
        let failed = answer.err()?;
        // Each container has these four, whichever engine asks for it.
        let verdict = if matches!(*name, "mnt" | "pid" | "ipc" | "uts") { Broken } else { Limited };
        let effect = match verdict {
            Broken => NOTHING.to_owned(),
            _ => format!("containers with a {name} namespace of their own"),
        };
        let fix = match failed.errno {
            Errno::ENOSPC | Errno::EUSERS => format!("raise the limit: sysctl -w user.max_{name}_namespaces=65536"),
            Errno::EPERM if !capable(facts) => "run as root, or let ordinary users make user namespaces".to_owned(),
            Errno::EPERM => "allow it in the seccomp profile or security module around us, which forbids it".to_owned(),
            _ => format!("boot a kernel with the configuration option {}", configuration(name)),
        };
        Some(verdict.finding(format!("{name} namespaces"), failed.to_string(), effect, fix))
    }));
    findings
}

/// init/Kconfig; mount namespaces are no option.
fn configuration(namespace: &str) -> String {
    match namespace {
        "mnt" => "CONFIG_NAMESPACES".to_owned(),
        "cgroup" => "CONFIG_CGROUPS".to_owned(),
        _ => format!("CONFIG_{}_NS", namespace.to_uppercase()),
    }
}

fn ordinary_users(facts: &Facts) -> Finding {
    let subject = "ordinary users";
    let on = |name| facts.settings.get(name) == Some(&1);
    let off = |name| facts.settings.get(name) == Some(&0);
    let switch = if off("kernel.unprivileged_userns_clone") {
        "sysctl -w kernel.unprivileged_userns_clone=1"
    } else if on("kernel.apparmor_restrict_unprivileged_userns") {
        "give dunnage an AppArmor profile with `userns,`, or sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
    } else if off("user.max_user_namespaces") {
        "sysctl -w user.max_user_namespaces=65536"
    } else {
        "see what the host's seccomp profile, security module or container forbids"
    };
    let effect = "containers without root (rootless)";
    match facts.ordinary_userns {
        Err(failed) if failed.call.name() == "setresuid" => {
            ok(subject, "cannot tell whether they may make user namespaces: we cannot become one to try")
        }
        Err(failed) => Limited.finding(subject, format!("may not make user namespaces: {failed}"), effect, switch),
        Ok(()) if on("kernel.apparmor_restrict_unprivileged_userns") => {
            Limited.finding(subject, "may make user namespaces, but AppArmor takes their rights away", effect, switch)
        }
        Ok(()) => ok(subject, "may make user namespaces"),
    }
}

/// What we ourselves need capabilities for.
const USES: [(Capability, &str); 10] = [
    (Capability::CAP_SETPCAP, "containers that give up capabilities, as nearly all do without a user namespace"),
    (Capability::CAP_SETUID, "containers whose program runs as another user"),
    (Capability::CAP_SETGID, "containers without a user namespace of their own: their groups cannot be set"),
    (Capability::CAP_NET_ADMIN, "containers with a net namespace: its loopback interface cannot be brought up"),
    (Capability::CAP_SYS_CHROOT, "exec: a running container's mnt namespace cannot be joined"),
    (Capability::CAP_SYS_RESOURCE, "raising rlimits above our own, lowering oom_score_adj below our own"),
    (Capability::CAP_MKNOD, "device nodes that the host's /dev lacks; the others are bind-mounted"),
    (Capability::CAP_CHOWN, "giving devices and standard streams to a container's user"),
    (Capability::CAP_DAC_OVERRIDE, "bundles and images that belong to another user"),
    (Capability::CAP_KILL, "signals to containers that run as another user"),
];

fn capabilities(facts: &Facts, host: &Host) -> Vec<Finding> {
    if !capable(facts) {
        let found = "no CAP_SYS_ADMIN";
        return vec![match facts.ordinary_userns {
            Ok(()) => {
                let fix = "run as root, or give each container a user namespace (dunnage-oci spec --rootless)";
                Limited.finding("capabilities", found, "containers without a user namespace of their own", fix)
            }
            Err(_) => {
                let found = format!("{found}, and no user namespace to have it in");
                Broken.finding("capabilities", found, NOTHING, "run as root")
            }
        }];
    }
    let missing = |capability: &Capability| {
        capability.index() <= host.last_capability && !facts.capabilities.contains(capability)
    };
    let fix = |capability: &str| {
        format!("run with it: --cap-add {capability} of the container, CapabilityBoundingSet= of the unit around us")
    };
    let mut findings = Vec::new();
    if host.in_user_namespace {
        let effect = "making device nodes, device rules, and whatever else only the initial user namespace may do";
        findings.push(Limited.finding("user namespace", "we are in one ourselves", effect, "run on the host itself"));
    }
    for (capability, effect) in USES.iter().filter(|(capability, _)| missing(capability)) {
        let effect = format!("{effect}; containers that ask for it");
        findings.push(Limited.finding(capability.to_string(), "not held", effect, fix(&capability.to_string())));
    }
    let used = |capability: &Capability| USES.iter().any(|(used, _)| used == capability);
    let mut others: Vec<Capability> = caps::all().into_iter().filter(|c| missing(c) && !used(c)).collect();
    others.sort_by_key(Capability::index);
    let names = others.iter().map(Capability::to_string).collect::<Vec<_>>().join(" ");
    if !others.is_empty() {
        let found = format!("not held: {names}");
        findings.push(Limited.finding("capabilities", found, "containers that ask for them", fix("ALL")));
    } else if findings.is_empty() {
        findings.push(ok("capabilities", "all held"));
    }
    findings
}

const DEVICE_RULES: &str = "device rules, which nearly every container has";

/// Controllers by their names in v1 and v2 (none: v2 has it built in) and what they are for.
const CONTROLLERS: [(&str, &str, &str); 8] = [
    ("cpu", "cpu", "cpu limits"),
    ("cpuset", "cpuset", "pinning to cpus"),
    ("memory", "memory", "memory limits and OOM events"),
    ("pids", "pids", "limits on processes"),
    ("blkio", "io", "limits on disks"),
    ("hugetlb", "hugetlb", "limits on huge pages"),
    ("devices", "", DEVICE_RULES),
    ("freezer", "", "pause"),
];

fn cgroups(facts: &Facts, layout: &Layout) -> Vec<Finding> {
    let mut findings = vec![match &layout.hierarchies {
        Hierarchies::V2(hierarchy) => ok("cgroups", format!("v2 on {}", hierarchy.mount.display())),
        Hierarchies::V1 { unified, .. } => {
            let found = match unified {
                Some(unified) => format!("hybrid: v1 controllers, v2 on {}", unified.mount.display()),
                None => "v1".to_owned(),
            };
            let effect = "linux.resources.unified, pressure (PSI) figures, limits without root";
            let fix = "boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2 alone on /sys/fs/cgroup";
            Limited.finding("cgroups", found, effect, fix)
        }
    }];
    if let Some((mount, errno)) = facts.closed_cgroups.first() {
        let fix = match errno {
            Errno::EROFS => format!("mount -o remount,rw {}", mount.display()),
            _ => "run as root, or have a subtree delegated to you (cgroup v2: by a systemd session of your own)"
                .to_owned(),
        };
        let found = format!("cannot make any in {}: {}", mount.display(), errno.desc());
        // An ordinary user's containers can do without.
        findings.push(match capable(facts) {
            true => Broken.finding("cgroups", found, NOTHING, fix),
            false => Limited.finding("cgroups", found, "limits, pause and stats", fix),
        });
    }
    let hybrid = matches!(layout.hierarchies, Hierarchies::V1 { unified: Some(_), .. });
    let named = CONTROLLERS.map(|(v1, v2, purpose)| (if layout.is_v2() { v2 } else { v1 }, purpose));
    let named = named.into_iter().filter(|(name, _)| !name.is_empty());
    // On a hybrid machine v2 freezes.
    let (have, lack): (Vec<_>, Vec<_>) =
        named.partition(|(name, _)| layout.has(name) || (*name == "freezer" && hybrid));
    if !have.is_empty() {
        findings.push(ok("controllers", have.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ")));
    }
    for (name, purpose) in lack {
        let fix = "boot a kernel that has it (CONFIG_CGROUPS; cgroup_enable= and cgroup_disable=), and mount it";
        findings.push(Limited.finding(format!("controller {name}"), "missing", purpose, fix));
    }
    if layout.has("memory") && !facts.swap_counted {
        let effect = "limits on swap: --memory limits memory only, and --memory-swap is refused";
        let fix = "boot with swapaccount=1, on a kernel that has swap and memory cgroups (CONFIG_SWAP, CONFIG_MEMCG)";
        findings.push(Limited.finding("swap", "not counted by this kernel", effect, fix));
    }
    if let Some(Err(failed)) = facts.device_filter {
        let fix = "run with CAP_BPF or CAP_SYS_ADMIN on a kernel with CONFIG_CGROUP_BPF";
        findings.push(Limited.finding("device filter", failed.to_string(), DEVICE_RULES, fix));
    }
    findings
}

fn seccomp(facts: &Facts, host: &Host) -> Finding {
    // As config.json writes them.
    let name = |action| serde_json::to_value(action).ok().and_then(|name| name.as_str().map(str::to_owned));
    let lack = facts.seccomp_actions.iter().filter(|action| !host.seccomp.actions.contains(action));
    let lack = lack.filter_map(name).collect::<Vec<_>>().join(" ");
    if host.seccomp.actions.is_empty() {
        let effect = "containers with a seccomp profile, as engines give to nearly all";
        Limited.finding("seccomp", "not in this kernel", effect, "boot a kernel with CONFIG_SECCOMP_FILTER")
    } else if !lack.is_empty() {
        let fix = "boot a newer kernel: Linux 5.0 has all actions";
        Limited.finding("seccomp", format!("without {lack}"), "profiles with these actions", fix)
    } else {
        ok("seccomp", "filters with every action")
    }
}

fn security_modules(host: &Host) -> Finding {
    let found = match (host.apparmor, host.selinux) {
        (true, true) => "AppArmor and SELinux",
        (true, false) => "AppArmor",
        (false, true) => "SELinux",
        (false, false) => "neither AppArmor nor SELinux; containers that name a profile or label are refused",
    };
    ok("security module", found)
}

fn filesystems(facts: &Facts) -> Vec<Finding> {
    let there: Vec<&str> =
        facts.filesystems.iter().filter(|(_, answer)| answer.is_ok()).map(|(kind, _)| *kind).collect();
    let missing = facts.filesystems.iter().filter_map(|(kind, answer)| {
        let failed = answer.err()?;
        let (verdict, effect) = match *kind {
            "overlay" => (Limited, "images in containerd's default snapshotter and in Docker (overlayfs)"),
            "mqueue" => (Limited, "containers with /dev/mqueue, which engines ask for"),
            _ => (Broken, NOTHING),
        };
        let fix = format!("modprobe {kind}, or boot a kernel that has it");
        Some(verdict.finding(format!("filesystem {kind}"), failed.to_string(), effect, fix))
    });
    let mut findings: Vec<Finding> = missing.collect();
    if !there.is_empty() {
        findings.insert(0, ok("filesystems", there.join(" ")));
    }
    findings
}

fn idmapped_mounts(facts: &Facts) -> Option<Finding> {
    let (subject, (path, answer)) = ("idmapped mounts", &facts.idmapped);
    let path = path.display();
    let Err(failed) = answer else { return Some(ok(subject, format!("on {path}"))) };
    let fix = match (failed.call.name(), failed.errno) {
        (_, Errno::EPERM) if !capable(facts) => return None, // root's to make
        ("mount_setattr", Errno::EINVAL) => {
            format!("put {path} on ext4, xfs or btrfs, or boot a kernel that can map its filesystem")
        }
        (_, Errno::ENOSYS) => "boot Linux 5.12 or later".to_owned(),
        _ => "run outside of what forbids it: a container, a user namespace, a seccomp profile".to_owned(),
    };
    let found = format!("not on {path}: {failed}");
    let effect = "mounts with uidMappings, and images shared by containers with user namespaces";
    Some(Limited.finding(subject, found, effect, fix))
}

/// As many containers as one host should hold.
const CONTAINERS: u64 = 1000;

fn limits(facts: &Facts) -> Vec<Finding> {
    let keys = if capable(facts) { "kernel.keys.root_maxkeys" } else { "kernel.keys.maxkeys" };
    let many = |name: &str, share: &str| {
        let value = *facts.settings.get(name)?;
        let effect = format!("more than {value} containers: each has {share}");
        let fix = format!("sysctl -w {name}=65536");
        (value < CONTAINERS).then(|| Limited.finding(name, value.to_string(), effect, fix))
    };
    let namespaces = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"].into_iter().filter_map(|kind| {
        let name = format!("user.max_{kind}_namespaces");
        // That none can be made has been said above.
        facts.settings.get(name.as_str()).filter(|value| **value > 0)?;
        many(&name, "one")
    });
    let watches = [("fs.inotify.max_user_instances", 512), ("fs.inotify.max_user_watches", 65_536)].into_iter();
    let watches = watches.filter_map(|(name, enough)| {
        let value = *facts.settings.get(name)?;
        let effect = "many programs that watch files: all containers' root users share this number";
        let fix = format!("sysctl -w {name}={enough}");
        (value < enough).then(|| Limited.finding(name, value.to_string(), effect, fix))
    });
    // A container is at least its init, and the shim that keeps it.
    let processes = ["kernel.pid_max", "kernel.threads-max"].into_iter().filter_map(|name| {
        let value = *facts.settings.get(name)?;
        let effect = format!("more than {value} processes on the whole host");
        (value < 8 * CONTAINERS)
            .then(|| Limited.finding(name, value.to_string(), effect, format!("sysctl -w {name}=4194304")))
    });
    let around = facts.pids_limit.filter(|limit| *limit < 8 * CONTAINERS).map(|limit| {
        let effect = format!("more than {limit} processes in all containers together");
        Limited.finding("pids.max", limit.to_string(), effect, "raise the pids limit of the container around us")
    });
    let mut findings: Vec<Finding> = namespaces.chain(many(keys, "a session keyring")).collect();
    findings.extend(processes.chain(around).chain(watches));
    if findings.is_empty() {
        findings.push(ok("limits", format!("namespaces, keys, pids and inotify suffice for {CONTAINERS} containers")));
    }
    findings
}

fn rootless(facts: &Facts) -> Finding {
    let parts = [
        (facts.rootless.newuidmap, "newuidmap"),
        (facts.rootless.newgidmap, "newgidmap"),
        (facts.rootless.ranges, "our ranges in /etc/subuid and /etc/subgid"),
    ];
    let list =
        |there: bool| parts.iter().filter(|(is, _)| *is == there).map(|(_, what)| *what).collect::<Vec<_>>().join(", ");
    let lack = list(false);
    if lack.is_empty() {
        return ok("rootless", list(true));
    }
    if capable(facts) {
        return ok("rootless", format!("without {lack}; not needed by root"));
    }
    let fix = "apt install uidmap; usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER";
    Limited.finding("rootless", format!("without {lack}"), "containers with more than one user", fix)
}

fn machine_root(facts: &Facts) -> Option<Finding> {
    let subject = "machine as root";
    Some(match facts.overlay_on_root? {
        Ok(()) => ok(subject, "an overlay on / can be mounted"),
        Err(failed) => {
            let effect = "dunnage run without --rootfs or --bundle";
            Limited.finding(subject, format!("no overlay on /: {failed}"), effect, "name a root: --rootfs DIR")
        }
    })
}

/// The supervisor, where there is none of containerd's.
fn standalone(facts: &Facts) -> Vec<Finding> {
    let subject = "dunnaged";
    let standalone = &facts.standalone;
    let there = match &standalone.dunnaged {
        Some(Program { path, version: Ok(said) }) => Ok(format!("{said} at {}", path.display())),
        Some(Program { path, version: Err(why) }) => Err(format!("{} does not run: {why}", path.display())),
        None if facts.containerd.is_some() => {
            return vec![ok(subject, "not installed, and not needed under containerd")];
        }
        None => Err("neither beside dunnage nor on our PATH".to_owned()),
    };
    let effect = "containers without containerd (dunnage run)";
    let there = match there {
        Ok(there) => there,
        Err(found) => return vec![Limited.finding(subject, found, effect, "install -m 755 dunnaged /usr/local/bin/")],
    };
    vec![match (&standalone.socket, standalone.listens) {
        (Err(why), _) => Limited.finding(subject, "no place to run in", effect, why),
        (Ok(socket), Ok(())) => ok(subject, format!("{there}, runs (listens at {})", socket.display())),
        (Ok(_), Err(Errno::ENOENT | Errno::ECONNREFUSED)) => {
            ok(subject, format!("{there}; none runs, and dunnage run starts one"))
        }
        (Ok(socket), Err(errno)) => {
            let found = format!("we cannot connect to {}: {}", socket.display(), errno.desc());
            Limited.finding(subject, found, effect, "be the user that it runs as, or name another with --state DIR")
        }
    }]
}

/// The oldest containerd whose contract our shim keeps.
const OLDEST_CONTAINERD: (u32, u32) = (1, 6);

fn containerd(facts: &Facts) -> Finding {
    let subject = "containerd";
    let Some(program) = &facts.containerd else {
        if facts.standalone.dunnaged.is_some() {
            return ok(subject, "not installed, and not needed by dunnaged");
        }
        let effect = "the shim: nobody calls it (dunnage-oci needs no containerd)";
        return Limited.finding(subject, "not installed", effect, "apt install containerd");
    };
    let said = match &program.version {
        Ok(said) => said.clone(),
        Err(why) => format!("{}: {why}", program.path.display()),
    };
    let found = match &facts.daemon {
        Some(daemon) => format!("{said} (pid {})", daemon.pid),
        None => format!("{said} (none seen running)"),
    };
    match program.version.as_deref().map(version) {
        Ok(Some(version)) if version < OLDEST_CONTAINERD => {
            let (major, minor) = OLDEST_CONTAINERD;
            let fix = format!("install containerd {major}.{minor} or later");
            Limited.finding(subject, found, "the shim: it was not made for one this old", fix)
        }
        Ok(_) => ok(subject, found),
        // Replaced on disk since it was started, for one.
        Err(_) if facts.daemon.is_some() => ok(subject, found),
        Err(_) => Limited.finding(subject, found, "the shim: nobody calls it", "install containerd again"),
    }
}

fn shim(facts: &Facts) -> Finding {
    let (subject, effect) = ("shim", "containers with the runtime io.containerd.dunnage.v2");
    let Some(shim) = &facts.shim else {
        let place = match &facts.daemon {
            Some(daemon) => format!("the PATH of containerd (pid {})", daemon.pid),
            None => "our PATH".to_owned(),
        };
        let fix = format!("install -m 755 {} /usr/local/bin/", Shim::NAME);
        return Limited.finding(subject, format!("{} is not on {place}", Shim::NAME), effect, fix);
    };
    let path = shim.program.path.display();
    match (&shim.program.version, shim.linkage) {
        _ if !shim.executable => {
            Limited.finding(subject, format!("{path} is not executable"), effect, format!("chmod 755 {path}"))
        }
        (Err(why), _) => {
            let fix = format!("install {} again, built for this machine", Shim::NAME);
            Limited.finding(subject, format!("{path} does not run: {why}"), effect, fix)
        }
        (Ok(said), Linkage::Dynamic) => {
            let effect = "copying it to a host that has not the same libraries";
            let fix = "build it with this project's .cargo/config.toml, which links it statically";
            Limited.finding(subject, format!("{said} at {path}, dynamically linked"), effect, fix)
        }
        (Ok(said), Linkage::Static) => ok(subject, format!("{said} at {path}, static")),
        // A wrapper, which is its owner's business.
        (Ok(said), Linkage::Foreign) => ok(subject, format!("{said} at {path}, not an ELF file")),
    }
}

fn runtimes(facts: &Facts) -> Finding {
    let there = facts.runtimes.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    ok("other runtimes", if there.is_empty() { "none, and none is needed".to_owned() } else { there + ", not used" })
}

#[cfg(test)]
mod tests;

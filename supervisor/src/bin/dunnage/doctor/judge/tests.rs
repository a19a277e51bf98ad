use std::collections::BTreeMap;

use libcontainer::cgroup::Hierarchy;
use libcontainer::probe::{Answer, SystemCall};
use libcontainer::seccomp::{Abi, HostSeccomp};
use libcontainer::sys::{Call, Failed};
use oci_spec::runtime::LinuxSeccompAction;

use super::super::facts::{Rootless, Standalone};
use super::super::programs::{Daemon, Program};
use super::super::report;
use super::*;
use crate::paper::Paper;

fn failed(call: Call, errno: Errno) -> Answer {
    Err(Failed { call, errno })
}

fn hierarchy(controllers: &[&str], mount: &str) -> Hierarchy {
    let controllers = controllers.iter().map(|&name| name.to_owned()).collect();
    Hierarchy { controllers, mount: mount.into(), own: "".into() }
}

fn v1(controllers: &[&str], unified: Option<&str>) -> Hierarchies {
    let mounts = controllers.iter().map(|name| hierarchy(&[name], &format!("/sys/fs/cgroup/{name}")));
    Hierarchies::V1 { controllers: mounts.collect(), unified: unified.map(|mount| hierarchy(&[], mount)) }
}

fn program(path: &str, version: &str) -> Program {
    Program { path: path.into(), version: Ok(version.to_owned()) }
}

/// A host on which everything is well.
fn fine() -> Facts {
    let actions = vec![LinuxSeccompAction::ScmpActErrno, LinuxSeccompAction::ScmpActNotify];
    let call = |name, since| SystemCall { name, since, answer: Ok(()) };
    let settings = [
        ("user.max_user_namespaces", 60_000),
        ("user.max_net_namespaces", 60_000),
        ("kernel.keys.maxkeys", 200),
        ("kernel.keys.root_maxkeys", 1_000_000),
        ("kernel.pid_max", 4_194_304),
        ("fs.inotify.max_user_instances", 8192),
    ];
    Facts {
        kernel: "6.1.0-27-amd64".to_owned(),
        system_calls: vec![
            call("clone3", "5.5"),
            call("pidfd_getfd", "5.6"),
            call("clone3 CLONE_INTO_CGROUP", "5.7"),
            call("mount_setattr", "5.12"),
        ],
        namespaces: vec![("user", Ok(())), ("net", Ok(())), ("pid", Ok(())), ("time", Ok(()))],
        ordinary_userns: Ok(()),
        filesystems: vec![("overlay", Ok(())), ("proc", Ok(()))],
        idmapped: ("/var/lib/containerd".into(), Ok(())),
        host: Ok(Host {
            may_set_groups: true,
            cgroups: Layout {
                hierarchies: Hierarchies::V2(hierarchy(
                    &["cpuset", "cpu", "io", "memory", "hugetlb", "pids"],
                    "/sys/fs/cgroup",
                )),
                hugepage_sizes: Vec::new(),
                user_namespace: false,
            },
            seccomp: HostSeccomp { native: Abi::X86_64, actions: actions.clone(), flags: Vec::new() },
            last_capability: 40,
            privileged: true,
            in_user_namespace: false,
            pid_namespace_returns: true,
            mknod: true,
            kcore: true,
            ignored_signals: 0,
            apparmor: true,
            selinux: false,
        }),
        seccomp_actions: actions,
        closed_cgroups: Vec::new(),
        pids_limit: None,
        swap_counted: true,
        device_filter: Some(Ok(())),
        capabilities: caps::all().into_iter().collect(),
        settings: BTreeMap::from(settings),
        rootless: Rootless { newuidmap: true, newgidmap: true, ranges: true },
        overlay_on_root: Some(Ok(())),
        standalone: Standalone {
            dunnaged: Some(program("/usr/bin/dunnaged", "dunnaged 0.1.0")),
            socket: Ok("/run/dunnage/supervisor/dunnaged.sock".into()),
            listens: Ok(()),
        },
        daemon: Some(Daemon { pid: 612, program: "/usr/bin/containerd".into(), path: "/usr/bin".into() }),
        containerd: Some(program("/usr/bin/containerd", "containerd github.com/containerd/containerd v1.7.24 88bf19b")),
        shim: Some(Shim {
            program: program("/usr/bin/containerd-shim-dunnage-v2", "containerd-shim-dunnage-v2 0.1.0"),
            executable: true,
            linkage: Linkage::Static,
        }),
        runtimes: vec!["/usr/sbin/runc".into()],
    }
}

fn host(facts: &mut Facts) -> &mut Host {
    facts.host.as_mut().unwrap()
}

fn without(facts: &mut Facts, capability: Capability) {
    facts.capabilities.retain(|held| *held != capability);
}

fn ordinary(facts: &mut Facts) {
    facts.capabilities.clear();
}

fn settings(facts: &mut Facts, changes: &[(&'static str, u64)]) {
    facts.settings.extend(changes.iter().copied());
}

#[test]
fn a_fine_host_has_nothing_to_fix() {
    let mut facts = fine();
    assert_eq!(Verdict::of(&judge(&facts)), Verdict::Ok);
    // It runs, whatever became of its file.
    facts.containerd.as_mut().unwrap().version = Err("not found".to_owned());
    let findings = judge(&facts);
    assert!(findings.iter().all(|finding| finding.verdict == Verdict::Ok && finding.advice.is_none()), "{findings:#?}");
}

/// What is changed on a fine host; the verdict, and what the one finding that is not ok has in its text.
type Case = (fn(&mut Facts), Verdict, &'static str, &'static str);

const CASES: &[Case] = &[
    (
        |f| {
            f.kernel = "5.4.0".to_owned();
            f.system_calls[3].answer = failed(Call::MountSetattr, Errno::ENOSYS);
        },
        Broken,
        "mount_setattr",
        "boot Linux 5.12 or later; this is 5.4.0",
    ),
    // Backports do not matter: what answers is there, whatever the version says.
    (|f| f.system_calls[0].answer = failed(Call::Clone3, Errno::ENOSYS), Broken, "clone3", "seccomp profile"),
    (|f| f.system_calls[3].answer = failed(Call::MountSetattr, Errno::EPERM), Broken, "mount_setattr", "allow it"),
    (|f| f.system_calls[1].answer = failed(Call::PidfdGetfd, Errno::ENOSYS), Limited, "pidfd_getfd", "NOTIFY"),
    (|f| f.system_calls[2].answer = failed(Call::Clone3, Errno::EINVAL), Broken, "CLONE_INTO_CGROUP", NOTHING),
    (|f| f.namespaces[2].1 = failed(Call::Clone3, Errno::ENOSPC), Broken, "pid", "user.max_pid_namespaces"),
    (|f| f.namespaces[3].1 = failed(Call::Clone3, Errno::EINVAL), Limited, "time", "CONFIG_TIME_NS"),
    (|f| f.namespaces[1].1 = failed(Call::Clone3, Errno::EPERM), Limited, "net", "allow it"),
    (
        |f| {
            f.ordinary_userns = failed(Call::Unshare, Errno::EPERM);
            settings(f, &[("kernel.unprivileged_userns_clone", 0)]);
        },
        Limited,
        "ordinary users",
        "kernel.unprivileged_userns_clone=1",
    ),
    (|f| settings(f, &[("kernel.apparmor_restrict_unprivileged_userns", 1)]), Limited, "ordinary", "AppArmor"),
    (|f| without(f, Capability::CAP_SYS_RESOURCE), Limited, "CAP_SYS_RESOURCE", "oom_score_adj"),
    (|f| without(f, Capability::CAP_SETPCAP), Limited, "CAP_SETPCAP", "give up"),
    (|f| without(f, Capability::CAP_NET_RAW), Limited, "capabilities", "CAP_NET_RAW"),
    (|f| host(f).in_user_namespace = true, Limited, "user namespace", "device nodes"),
    (|f| ordinary(f), Limited, "capabilities", "without a user namespace"),
    (|f| f.host = Err("cannot read the cgroup layout: none".to_owned()), Broken, "host", "cannot read"),
    (|f| f.closed_cgroups = vec![("/sys/fs/cgroup".into(), Errno::EROFS)], Broken, "cgroups", "remount,rw"),
    (|f| f.closed_cgroups = vec![("/sys/fs/cgroup".into(), Errno::EACCES)], Broken, "cgroups", "run as root"),
    (
        |f| host(f).cgroups.hierarchies = Hierarchies::V2(hierarchy(&["cpuset", "cpu", "io", "hugetlb", "pids"], "/c")),
        Limited,
        "controller memory",
        "OOM",
    ),
    (|f| f.swap_counted = false, Limited, "swap", "swapaccount=1"),
    (|f| f.device_filter = Some(failed(Call::Bpf, Errno::EPERM)), Limited, "device filter", "CAP_BPF"),
    (|f| host(f).seccomp.actions.clear(), Limited, "seccomp", "CONFIG_SECCOMP_FILTER"),
    (|f| host(f).seccomp.actions.truncate(1), Limited, "seccomp", "SCMP_ACT_NOTIFY"),
    (|f| f.filesystems[0].1 = failed(Call::Fsopen, Errno::ENODEV), Limited, "filesystem overlay", "modprobe overlay"),
    (|f| f.filesystems[1].1 = failed(Call::Fsopen, Errno::ENODEV), Broken, "filesystem proc", NOTHING),
    (|f| f.idmapped.1 = failed(Call::MountSetattr, Errno::EINVAL), Limited, "idmapped mounts", "/var/lib/containerd"),
    (|f| settings(f, &[("user.max_net_namespaces", 64)]), Limited, "user.max_net_namespaces", "more than 64"),
    (|f| settings(f, &[("kernel.keys.root_maxkeys", 200)]), Limited, "kernel.keys.root_maxkeys", "keyring"),
    (|f| settings(f, &[("kernel.pid_max", 4096)]), Limited, "kernel.pid_max", "4096"),
    (|f| f.pids_limit = Some(100), Limited, "pids.max", "around us"),
    (|f| settings(f, &[("fs.inotify.max_user_instances", 128)]), Limited, "fs.inotify.max_user_instances", "=512"),
    (|f| f.standalone.listens = Err(Errno::EACCES), Limited, "dunnaged", "be the user that it runs as"),
    (|f| f.standalone.socket = Err("$XDG_RUNTIME_DIR is not set".to_owned()), Limited, "dunnaged", "XDG_RUNTIME_DIR"),
    (|f| f.standalone.dunnaged.as_mut().unwrap().version = Err("a".to_owned()), Limited, "dunnaged", "does not run: a"),
    (|f| f.overlay_on_root = Some(failed(Call::Mount, Errno::EINVAL)), Limited, "machine as root", "--rootfs DIR"),
    (|f| f.containerd.as_mut().unwrap().version = Ok("containerd x 1.5.9 y".to_owned()), Limited, "containerd", "1.6"),
    (|f| f.shim = None, Limited, "shim", "PATH of containerd (pid 612)"),
    (|f| f.shim.as_mut().unwrap().executable = false, Limited, "shim", "chmod 755"),
    (|f| f.shim.as_mut().unwrap().linkage = Linkage::Dynamic, Limited, "shim", "dynamically"),
    (|f| f.shim.as_mut().unwrap().program.version = Err("exec format error".into()), Limited, "shim", "does not run"),
];

#[test]
fn each_lack_is_one_finding_with_its_reason() {
    for (change, verdict, subject, text) in CASES {
        let mut facts = fine();
        change(&mut facts);
        let findings: Vec<Finding> = judge(&facts).into_iter().filter(|f| f.verdict != Verdict::Ok).collect();
        // An ordinary user has fewer keys, too.
        let found = findings.iter().filter(|finding| finding.subject != "kernel.keys.maxkeys").collect::<Vec<_>>();
        let [finding] = found[..] else { panic!("{subject} {text}: {findings:#?}") };
        let Some(Advice { effect, fix }) = &finding.advice else { panic!("{finding:?} has no advice") };
        let all = format!("{} {effect} {fix}", finding.found);
        assert_eq!(finding.verdict, *verdict, "{finding:?}");
        assert!(finding.subject.contains(subject) && all.contains(text), "{subject} {text}: {finding:#?}");
        assert!(!all.contains('\n'), "{finding:?}");
        assert_eq!(Verdict::of(&judge(&facts)), *verdict);
    }
}

#[test]
fn one_way_to_run_containers_is_enough() {
    let lacks = |change: fn(&mut Facts)| {
        let mut facts = fine();
        change(&mut facts);
        judge(&facts).into_iter().filter(|f| f.verdict != Verdict::Ok).map(|f| f.subject).collect::<Vec<_>>()
    };
    assert_eq!(lacks(|f| f.containerd = None), [""; 0]);
    assert_eq!(lacks(|f| f.standalone.dunnaged = None), [""; 0]);
    let neither = lacks(|f| (f.containerd, f.standalone.dunnaged) = (None, None));
    assert_eq!(neither, ["dunnaged", "containerd"]);
    // It would be started, and is not missed.
    assert_eq!(lacks(|f| f.standalone.listens = Err(Errno::ENOENT)), [""; 0]);
}

#[test]
fn an_ordinary_user_is_not_told_what_only_root_may_ask() {
    let mut facts = fine();
    ordinary(&mut facts);
    facts.system_calls[3].answer = failed(Call::MountSetattr, Errno::EPERM);
    facts.idmapped.1 = failed(Call::OpenTree, Errno::EPERM);
    facts.rootless = Rootless::default();
    let findings = judge(&facts);
    let subjects: Vec<&str> =
        findings.iter().filter(|f| f.verdict != Verdict::Ok).map(|finding| finding.subject.as_str()).collect();
    assert_eq!(subjects, ["capabilities", "kernel.keys.maxkeys", "rootless"]);
    // Containers do without them.
    facts.closed_cgroups = vec![("/sys/fs/cgroup".into(), Errno::EACCES)];
    assert_eq!(Verdict::of(&judge(&facts)), Limited);
    facts.ordinary_userns = failed(Call::Clone3, Errno::EPERM);
    assert_eq!(Verdict::of(&judge(&facts)), Broken);
}

#[test]
fn versions_are_read_from_what_kernels_and_programs_say() {
    for (text, expected) in [
        ("6.18.44-fc-v657", Some((6, 18))),
        ("5.12-rc3", Some((5, 12))),
        ("containerd github.com/containerd/containerd v1.7.24 88bf19b", Some((1, 7))),
        ("containerd github.com/containerd/containerd/v2 2.1.4", Some((2, 1))),
        ("no number", None),
    ] {
        assert_eq!(version(text), expected, "{text}");
    }
}

#[test]
fn the_table_of_a_made_up_host() {
    let mut facts = fine();
    host(&mut facts).cgroups.hierarchies =
        v1(&["cpu", "cpuset", "memory", "pids", "blkio", "devices", "freezer"], Some("/sys/fs/cgroup/unified"));
    facts.device_filter = None;
    without(&mut facts, Capability::CAP_SYS_RESOURCE);
    facts.filesystems[1].1 = failed(Call::Fsopen, Errno::ENODEV);
    facts.shim = None;
    let findings = judge(&facts);
    assert_eq!(report::table(&findings, Paper::PLAIN), include_str!("made-up.txt"));
    let coloured = report::table(&findings, Paper { width: None, colours: true });
    assert!(coloured.starts_with("\x1b[32mok     \x1b[0m  kernel") && coloured.contains("\x1b[31mbroken \x1b[0m"));
}

#[test]
fn the_same_for_programs() {
    let mut facts = fine();
    facts.shim = None;
    let json: serde_json::Value = serde_json::from_str(&report::json(&judge(&facts)).unwrap()).unwrap();
    assert_eq!(json["verdict"], "limited");
    let find = |subject: &str| json["findings"].as_array().unwrap().iter().find(|f| f["subject"] == subject).unwrap();
    assert!(find("shim")["fix"].as_str().unwrap().starts_with("install -m 755"));
    assert_eq!(find("kernel").get("fix"), None);
}

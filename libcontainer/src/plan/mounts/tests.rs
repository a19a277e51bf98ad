//! What is decided, without a machine: spec in, steps or problems out.

use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::*;
use crate::cgroup::Hierarchies;
use crate::host::sample::{hierarchy, host};
use crate::step::mount::{Flags, NearProc};

fn v2() -> Host {
    host(Hierarchies::V2(hierarchy("/sys/fs/cgroup", &["cpu", "memory"])))
}

fn v1() -> Host {
    let controllers = vec![
        hierarchy("/sys/fs/cgroup/cpu,cpuacct", &["cpu", "cpuacct"]),
        hierarchy("/sys/fs/cgroup/systemd", &["name=systemd"]),
    ];
    host(Hierarchies::V1 { controllers, unified: Some(hierarchy("/sys/fs/cgroup/unified", &[])) })
}

fn spec(mounts: Value, linux: Value, namespaces: &[&str]) -> Spec {
    let namespaces: Vec<_> = namespaces
        .iter()
        .map(|name| match name.split_once('=') {
            Some((name, path)) => json!({"type": name, "path": path}),
            None => json!({"type": name}),
        })
        .collect();
    let mut spec = json!({"ociVersion": "1.2.0", "root": {"path": "rootfs"}, "mounts": mounts,
        "linux": {"namespaces": namespaces}});
    for (key, value) in linux.as_object().expect("an object") {
        spec["linux"][key] = value.clone();
    }
    serde_json::from_value(spec).expect("a spec")
}

fn request() -> Request {
    Request {
        id: "web-1".into(),
        bundle: "/bundle".into(),
        rootfs: "/bundle/rootfs".into(),
        no_pivot: false,
        no_new_keyring: false,
        preserve_fds: 0,
        systemd: None,
    }
}

fn plan(spec: &Spec, host: &Host) -> (MountPlan, Vec<Problem>) {
    let (mut slots, mut problems) = (Slots::default(), Vec::new());
    let plan = mounts(spec, host, &request(), &mut slots, &mut problems);
    (plan, problems)
}

/// One mount in a namespace of its own.
fn one(mount: Value) -> (MountPlan, Vec<Problem>) {
    plan(&spec(json!([mount]), json!({}), &["mount"]), &v2())
}

fn text(steps: &[Mount]) -> Vec<String> {
    steps.iter().map(ToString::to_string).collect()
}

#[test]
fn each_kind_of_mount_reads_as_it_is_done() {
    for (mount, before, child) in [
        (
            json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "hidepid=2"]}),
            &[][..],
            &["mount proc at /proc rw,nosuid,hidepid=2"][..],
        ),
        (
            json!({"destination": "data", "type": "bind", "source": "vol", "options": ["rbind", "ro"]}),
            &["open tree /bundle/vol for /data ro rslave"],
            &["mount /bundle/vol at /data"],
        ),
        (
            json!({"destination": "/a/../b//c", "source": "/x", "options": ["bind", "private"]}),
            &["open /x for /b/c rslave private"],
            &["mount /x at /b/c"],
        ),
        (
            json!({"destination": "/s", "type": "tmpfs", "source": "shm", "options": ["size=64k,mode=1777", "sync"]}),
            &[],
            &["mount tmpfs at /s rw,sync,size=64k,mode=1777"],
        ),
        (
            json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"]}),
            &["open /sys/fs/cgroup for /sys/fs/cgroup ro,nosuid rslave"],
            &["mount /sys/fs/cgroup at /sys/fs/cgroup"],
        ),
        (json!({"destination": "/t", "type": "tmpfs", "options": ["remount", "size=1"]}), &[], &["remount /t rw"]),
    ] {
        let (plan, problems) = one(mount.clone());
        assert_eq!(problems, [], "{mount}");
        assert_eq!(text(&plan.before), before, "{mount}");
        assert_eq!(text(&plan.child), child, "{mount}");
    }
}

#[test]
fn all_that_is_wrong_is_found_at_once_and_says_where() {
    let bad = [
        (json!({"destination": "/", "type": "tmpfs"}), "destination", "root directory"),
        (json!({"destination": "/x/..", "type": "tmpfs"}), "destination", "root directory"),
        (json!({"destination": "", "type": "tmpfs"}), "destination", "missing"),
        (json!({"destination": "/a\0b", "type": "tmpfs"}), "destination", "NUL"),
        (json!({"destination": "/x"}), "type", "missing"),
        (json!({"destination": "/x", "type": "bind", "source": "/y"}), "options", "neither bind nor rbind"),
        (json!({"destination": "/x", "type": "bind", "options": ["bind"]}), "source", "missing"),
        (json!({"destination": "/proc", "type": "tmpfs"}), "destination", "only a procfs"),
        (json!({"destination": "/proc/../proc/sys", "type": "tmpfs"}), "destination", "below /proc"),
        (json!({"destination": "/proc/self", "source": "/y", "options": ["bind"]}), "destination", "below /proc"),
        (json!({"destination": "/x", "source": "/y", "options": ["bind", "idmap"]}), "options", "user namespace"),
        (json!({"destination": "/x", "type": "tmpfs", "options": ["a\0=b"]}), "options", "NUL"),
        (
            json!({"destination": "/x", "source": "/y", "options": ["bind"],
                "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}),
            "uidMappings",
            "together",
        ),
        (
            json!({"destination": "/x", "type": "tmpfs",
                "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}],
                "gidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}),
            "options",
            "bind mounts only",
        ),
    ];
    let all: Vec<_> = bad.iter().map(|(mount, ..)| mount.clone()).collect();
    let (_, problems) = plan(&spec(json!(all), json!({}), &["mount"]), &v2());
    assert_eq!(problems.len(), bad.len(), "{problems:#?}");
    for (index, (problem, (mount, field, what))) in problems.iter().zip(&bad).enumerate() {
        assert_eq!(problem.field, format!("mounts[{index}].{field}"), "{mount}");
        assert!(problem.what.contains(what), "{mount}: {}", problem.what);
    }
}

#[test]
fn stand_ins_below_proc_are_those_of_runc() {
    for (path, near) in [
        ("/proc", NearProc::Itself),
        ("/proc/meminfo", NearProc::StandIn),
        ("/proc/net/dev", NearProc::StandIn),
        ("/proc/sys/kernel/ns_last_pid", NearProc::StandIn),
        ("/proc/meminfo/x", NearProc::Below),
        ("/proc/self/attr", NearProc::Below),
        ("/process", NearProc::Outside),
        ("/etc/proc", NearProc::Outside),
    ] {
        assert_eq!(NearProc::of(Path::new(path)), near, "{path}");
    }
}

#[test]
fn without_a_mount_namespace_nothing_is_mounted_in_the_hosts() {
    let spec = spec(json!([{"destination": "/x", "type": "tmpfs"}]), json!({"maskedPaths": ["/proc/kcore"]}), &["pid"]);
    let (plan, problems) = plan(&spec, &v2());
    assert_eq!((plan, problems[0].field.as_str()), (MountPlan::default(), "mounts"));
    let mut problems = Vec::new();
    assert_eq!(hide_paths(&spec, &mut Slots::default(), &mut problems), MountPlan::default());
    assert!(problems[0].field.contains("linux.maskedPaths"), "{problems:?}");
    let root = root(&spec, &request(), &mut problems);
    assert_eq!(root.enter, [Root::Chroot]);
    assert!(!root.prepare.iter().any(|step| matches!(step, Root::Clone { .. } | Root::Detach)), "{root:?}");
}

#[test]
fn a_private_root_needs_a_pivot() {
    let spec = spec(json!([]), json!({"rootfsPropagation": "rprivate"}), &["mount"]);
    let mut problems = Vec::new();
    root(&spec, &request(), &mut problems);
    assert_eq!(problems, []);
    let request = Request { no_pivot: true, ..request() };
    assert_eq!(root(&spec, &request, &mut problems).enter, [Root::Move]);
    assert_eq!(problems[0].field, "linux.rootfsPropagation");
}

#[test]
fn an_unknown_propagation_is_a_problem() {
    let mut problems = Vec::new();
    root(&spec(json!([]), json!({"rootfsPropagation": "noexec"}), &["mount"]), &request(), &mut problems);
    assert_eq!(problems[0].field, "linux.rootfsPropagation");
    assert!(problems[0].what.starts_with("\"noexec\" is not one of"), "{problems:?}");
}

#[test]
fn no_more_calls_for_propagation_than_needed() {
    use PropagationKind::{Private, Shared, Slave, Unbindable};
    let one = |kind, recursive| Propagation { kind, recursive };
    for (base, more, least) in [
        (one(Slave, true), &[][..], &[one(Slave, true)][..]),
        (one(Slave, true), &[one(Private, true)], &[one(Private, true)]),
        (one(Slave, true), &[one(Private, false)], &[one(Slave, true), one(Private, false)]),
        (one(Slave, true), &[one(Slave, true)], &[one(Slave, true)]),
        (one(Slave, true), &[one(Shared, true)], &[one(Slave, true), one(Shared, true)]),
        (one(Private, true), &[one(Shared, true), one(Unbindable, true)], &[one(Unbindable, true)]),
    ] {
        assert_eq!(shortest(&[base], more), least);
    }
}

#[test]
fn cgroups_of_version_1_are_one_mount_each_and_links_to_the_joint_ones() {
    let mount = json!([{"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
        "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}]);
    let (own, problems) = plan(&spec(mount.clone(), json!({}), &["mount", "cgroup"]), &v1());
    assert_eq!(problems, []);
    assert_eq!(text(&own.before), [""; 0]);
    assert_eq!(
        text(&own.child),
        [
            "mount tmpfs at /sys/fs/cgroup rw,nosuid,nodev,noexec,mode=755",
            "mount cgroup at /sys/fs/cgroup/cpu,cpuacct ro,nosuid,nodev,noexec,cpu,cpuacct",
            "mount cgroup at /sys/fs/cgroup/systemd ro,nosuid,nodev,noexec,name=systemd",
            "link in /sys/fs/cgroup: cpu→cpu,cpuacct cpuacct→cpu,cpuacct",
            "make /sys/fs/cgroup read-only",
        ]
    );
    let (hosts, problems) = plan(&spec(mount, json!({"cgroupsPath": "/pod/a"}), &["mount"]), &v1());
    assert_eq!(problems, []);
    assert_eq!(
        text(&hosts.before),
        [
            "open tree /sys/fs/cgroup/cpu,cpuacct/pod/a for /sys/fs/cgroup/cpu,cpuacct ro,nosuid,nodev,noexec rslave",
            "open tree /sys/fs/cgroup/systemd/pod/a for /sys/fs/cgroup/systemd ro,nosuid,nodev,noexec rslave",
        ]
    );
    assert_eq!(text(&hosts.child)[1], "mount /sys/fs/cgroup/cpu,cpuacct/pod/a at /sys/fs/cgroup/cpu,cpuacct");
}

#[test]
fn what_a_user_namespace_may_not_mount_is_shown_from_the_host() {
    let mounts = json!([
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro", "nosuid"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
    ]);
    for (namespaces, sysfs, cgroup) in [
        (&["mount", "user", "network", "cgroup"][..], false, false),
        (&["mount", "user"], true, true),
        (&["mount", "user", "network=/run/netns/x", "cgroup"], true, false),
        (&["mount", "user=/proc/1/ns/user", "network=/proc/1/ns/net", "cgroup"], false, false),
        (&["mount", "user=/proc/1/ns/user", "cgroup"], true, false),
        (&["mount", "network=/run/netns/x"], false, true),
        (&["mount", "network=/run/netns/x", "cgroup"], false, false),
    ] {
        let (plan, problems) = plan(&spec(mounts.clone(), json!({}), namespaces), &v2());
        assert_eq!(problems, []);
        let shown =
            |path: &str| plan.before.iter().any(|step| matches!(step, Mount::Source(s) if s.path.to_str() == Ok(path)));
        assert_eq!((shown("/sys"), shown("/sys/fs/cgroup")), (sysfs, cgroup), "{namespaces:?}");
        assert_eq!(plan.child.len(), 2);
    }
    // All of the host's tree gets the attributes, not its top alone.
    let (plan, _) = plan(&spec(mounts, json!({}), &["mount", "user"]), &v2());
    let Mount::Source(sys) = &plan.before[0] else { panic!("{plan:?}") };
    assert_eq!(sys.all.map(|all| all.set), Some(attr::RDONLY | attr::NOSUID));
}

#[test]
fn a_cgroup_is_given_to_root_of_a_user_namespace_that_may_write_to_it() {
    let maps = json!({"uidMappings": [{"containerID": 1, "hostID": 5, "size": 1},
        {"containerID": 0, "hostID": 100_000, "size": 1}]});
    let mount =
        |options: &serde_json::Value| json!([{"destination": "/sys/fs/cgroup", "type": "cgroup", "options": options}]);
    let new = &["mount", "user", "cgroup"][..];
    for (namespaces, options, host, owner) in [
        (new, json!(["rw", "nosuid"]), v2(), Some(100_000)),
        (&["mount", "user=/proc/1/ns/user", "cgroup"], json!([]), v2(), Some(100_000)),
        (new, json!(["ro"]), v2(), None),
        (&["mount", "user"], json!([]), v2(), None),
        (&["mount", "cgroup"], json!([]), v2(), None),
        (new, json!([]), Host { privileged: false, ..v2() }, None),
        (new, json!([]), v1(), None),
    ] {
        let spec = spec(mount(&options), maps.clone(), namespaces);
        assert_eq!(super::cgroup_owner(&spec, &host), owner, "{namespaces:?} {options}");
    }
}

#[test]
fn a_user_namespace_never_gets_a_peer_of_the_hosts() {
    let mount = json!([{"destination": "/x", "source": "/y", "options": ["rbind"]}]);
    for root in ["rshared", "shared", "rslave"] {
        let spec = spec(mount.clone(), json!({"rootfsPropagation": root}), &["mount", "user"]);
        let (plan, _) = plan(&spec, &v2());
        let Mount::Source(source) = &plan.before[0] else { panic!("{plan:?}") };
        assert_eq!(source.propagation[0], Propagation { kind: PropagationKind::Slave, recursive: true }, "{root}");
        assert!(source.keep);
    }
}

#[test]
fn a_read_only_dev_and_tmpfs_are_sealed_at_the_end() {
    let mounts = json!([
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["ro", "nosuid"]},
        {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["ro"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
    ]);
    let (plan, _) = plan(&spec(mounts, json!({}), &["mount"]), &v2());
    assert_eq!(
        text(&plan.child),
        ["mount tmpfs at /dev rw,nosuid", "mount tmpfs at /run rw", "mount sysfs at /sys ro"]
    );
    assert_eq!(text(&plan.finish), ["make /dev read-only", "make /run read-only"]);
}

#[test]
fn a_mount_label_is_given_to_filesystems_that_take_one() {
    let mounts = json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/run", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/own", "type": "tmpfs", "source": "tmpfs", "options": ["context=\"a:b,c\""]},
    ]);
    let (plan, _) = plan(&spec(mounts, json!({"mountLabel": "system_u:object_r:x:s0:c1,c2"}), &["mount"]), &v2());
    assert_eq!(
        text(&plan.child),
        [
            "mount proc at /proc rw",
            "mount tmpfs at /run rw,context=system_u:object_r:x:s0:c1,c2",
            "mount tmpfs at /own rw,context=a:b,c",
        ]
    );
}

#[test]
fn what_is_left_to_mount_2_reads_like_a_line_of_fstab() {
    let long = "x".repeat(256);
    let mounts = json!([
        {"destination": "/o", "type": "overlay", "source": "overlay",
         "options": ["ro", "nosuid", format!("lowerdir={long}"), "userxattr", "context=\"a:b,c\""]},
        {"destination": "/t", "type": "tmpfs", "options": ["iversion", "tmpcopyup"]},
    ]);
    let (plan, problems) = plan(&spec(mounts, json!({}), &["mount"]), &v2());
    let Mount::Filesystem(overlay) = &plan.child[0] else { panic!("{plan:?}") };
    let (data, flags) = overlay.old.as_ref().expect("mount(2)");
    assert_eq!(data.to_str(), Ok(format!("lowerdir={long},userxattr,context=\"a:b,c\"").as_str()));
    assert_eq!(*flags, (MsFlags::MS_RDONLY | MsFlags::MS_NOSUID).bits());
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].field, "mounts[1].options");
}

#[test]
fn devices_are_made_or_borrowed() {
    let linux = json!({"devices": [
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229},
        {"path": "/dev/pipe", "type": "p"},
        {"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200},
    ]});
    let plan = |host: &Host, namespaces: &[&str]| {
        let mut problems = Vec::new();
        let plan = devices(&spec(json!([]), linux.clone(), namespaces), host, &mut Slots::default(), &mut problems);
        assert_eq!(problems, []);
        plan
    };
    let made = plan(&v2(), &["mount"]);
    assert_eq!(made.before, []);
    assert_eq!(
        text(&made.child),
        [
            "make devices in /dev: null zero full random urandom tty fuse pipe",
            "make devices in /dev/net: tun",
            "link in /dev: fd→/proc/self/fd stdin→/proc/self/fd/0 stdout→/proc/self/fd/1 stderr→/proc/self/fd/2 \
         ptmx→pts/ptmx core→/proc/kcore",
        ]
    );
    for borrowed in [plan(&v2(), &["mount", "user"]), plan(&Host { mknod: false, ..v2() }, &["mount"])] {
        assert_eq!(borrowed.before.len(), 8, "all but the pipe");
        assert_eq!(text(&borrowed.child)[0], "mount /dev/null at /dev/null");
        assert!(text(&borrowed.child).contains(&"make devices in /dev: pipe".to_owned()));
    }
}

#[test]
fn a_dev_of_the_hosts_is_left_alone() {
    let spec = spec(json!([{"destination": "/dev/", "source": "/dev", "options": ["rbind"]}]), json!({}), &["mount"]);
    assert_eq!(devices(&spec, &v2(), &mut Slots::default(), &mut Vec::new()), MountPlan::default());
}

#[test]
fn a_device_that_cannot_be_is_a_problem() {
    for (device, field) in [
        (json!({"path": "/dev/x", "type": "c", "major": 4096, "minor": 0}), "major"),
        (json!({"path": "/dev/x", "type": "b", "major": 1, "minor": -1}), "minor"),
        (json!({"path": "/dev/x", "type": "a"}), "type"),
        (json!({"path": "/", "type": "p"}), "path"),
    ] {
        let spec = spec(json!([]), json!({"devices": [device]}), &["mount"]);
        let mut problems = Vec::new();
        devices(&spec, &v2(), &mut Slots::default(), &mut problems);
        assert_eq!(problems[0].field, format!("linux.devices[0].{field}"));
    }
}

#[test]
fn masks_share_their_moulds_and_come_after_read_only_paths() {
    let linux = json!({"maskedPaths": ["/proc/kcore", "/sys/firmware"], "readonlyPaths": ["/proc/sys"]});
    let (mut slots, mut problems) = (Slots::default(), Vec::new());
    let plan = hide_paths(&spec(json!([]), linux, &["mount"]), &mut slots, &mut problems);
    assert_eq!(problems, []);
    assert_eq!(text(&plan.before), ["open /dev/null for /proc/kcore ro,nosuid,noexec rprivate"]);
    assert_eq!(text(&plan.finish), ["make /proc/sys read-only", "mask /proc/kcore", "mask /sys/firmware"]);
    assert_eq!(slots.0, 3);
}

#[test]
fn slots_are_not_shared_by_accident() {
    let ids = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
    let mounts = json!([
        {"destination": "/a", "source": "/a", "options": ["bind"]},
        {"destination": "/b", "source": "/b", "options": ["bind", "idmap"], "uidMappings": ids, "gidMappings": ids},
        {"destination": "/c", "source": "/c", "options": ["bind", "ridmap"], "uidMappings": ids, "gidMappings": ids},
        {"destination": "/d", "type": "tmpfs", "options": ["ro"]},
    ]);
    let (plan, problems) = plan(&spec(mounts, json!({}), &["mount"]), &v2());
    assert_eq!(problems, []);
    let used: Vec<usize> = plan
        .before
        .iter()
        .filter_map(|step| match step {
            Mount::Source(source) => Some(source.slot.0),
            Mount::IdMap(map) => Some(map.slot.0),
            _ => None,
        })
        .chain(plan.finish.iter().filter_map(|s| if let Mount::Seal(seal) = s { Some(seal.slot.0) } else { None }))
        .collect();
    assert_eq!(used, [0, 1, 2, 3, 4], "the id mapping, like any other, is made once and first");
    assert_eq!(text(&plan.before)[1], "make id mapping, uids 0 1000 1, gids 0 1000 1");
}

#[test]
fn the_flags_of_a_bind_mount_are_those_named_and_no_others() {
    let (plan, _) = one(json!({"destination": "/a", "source": "/a", "options": ["bind", "nosuid", "rw"]}));
    let Mount::Source(source) = &plan.before[0] else { panic!("{plan:?}") };
    assert_eq!(source.flags, Some(Flags { set: attr::NOSUID, cleared: attr::RDONLY, atime: false }));
}

//! Command lines, and the containers that they mean. The expected texts are in `golden/`; after a wanted change,
//! `BLESS=1 cargo test -p dunnage-supervisor golden` writes them anew, to be read before they are committed.

use std::fs;

use clap::Parser;
use serde_json::Value;

use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

fn facts() -> Facts {
    Facts {
        id: "0123456789ab".to_owned(),
        namespace: "default".to_owned(),
        cwd: "/here".into(),
        user: User { uid: 0, gid: 0, groups: Vec::new(), home: "/root".to_owned() },
        environment: [("TERM", "xterm-256color"), ("EDITOR", "vi")].map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec(),
        cgroup_v2: true,
        swap_counted: true,
        window: Some((100, 40)),
        hostname: "machine".to_owned(),
        capabilities: ["CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_SYS_TIME"].map(ToOwned::to_owned).to_vec(),
        network_files: vec![("/run/resolv.conf".into(), "/run/resolv.conf".into())],
        machine: Some(Machine { disks: vec!["/home".into()], ours: vec!["/var/lib/dunnage".into()] }),
        rootless: None,
        seccomp: None,
    }
}

fn of(line: &str, facts: &Facts, bundle: Option<Spec>) -> anyhow::Result<Spec> {
    let words = std::iter::once("run").chain(line.split_whitespace());
    spec(&Line::try_parse_from(words)?.args, facts, bundle)
}

/// Sorted where the order means nothing, and without the long list that has tests of its own.
fn text(spec: &Spec) -> String {
    let mut value = serde_json::to_value(spec).unwrap();
    let sets = value.pointer("/process/capabilities/bounding").cloned().unwrap_or_default();
    if let Some(Value::Object(sets)) = value.pointer_mut("/process/capabilities") {
        for set in sets.values_mut().filter_map(Value::as_array_mut) {
            set.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        }
    }
    if let Some(calls) = value.pointer_mut("/linux/seccomp/syscalls").and_then(Value::as_array_mut) {
        let names = calls[0]["names"].as_array().unwrap();
        // It is there by way of a capability.
        assert_eq!(names.contains(&"chroot".into()), value_has(&sets, "CAP_SYS_CHROOT"));
        calls.clear();
    }
    serde_json::to_string_pretty(&value).unwrap() + "\n"
}

fn value_has(set: &Value, name: &str) -> bool {
    set.as_array().is_some_and(|names| names.contains(&name.into()))
}

#[track_caller]
fn golden(name: &str, spec: &Spec) {
    let path = format!("{}/src/bin/dunnage/run/spec/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, text(spec)).unwrap();
    }
    assert_eq!(text(spec), fs::read_to_string(&path).unwrap(), "{path}");
}

#[test]
fn golden_machine_root() {
    golden("machine", &of("-- sh -c true", &facts(), None).unwrap());
}

#[test]
fn golden_everything() {
    let user = User { uid: 1000, gid: 100, groups: vec![10], home: "/home/ann".to_owned() };
    let facts = Facts { user, machine: None, cgroup_v2: false, ..facts() };
    let line = "-it --name web-1 -e A=1 -e EDITOR -e PATH=/bin -e UNSET -w /srv -u ann --hostname web -v ./data:/data:ro \
                -v /dev/shm:/dev/shm --mount type=tmpfs,dst=/data/tmp --memory 64m --cpus 1.5 --pids 100 --read-only \
                --cap-add sys_time --cap-drop CAP_CHOWN --network host --rootfs root -- httpd -f";
    golden("everything", &of(line, &facts, None).unwrap());
}

#[test]
fn golden_rootless() {
    let entries = ["/etc", "/usr"].map(PathBuf::from).to_vec();
    let facts = Facts { rootless: Some(entries), cgroup_v2: false, ..facts() };
    golden("rootless", &of("--network host -- sh", &facts, None).unwrap());
}

#[test]
fn golden_bundle() {
    let config = serde_json::json!({
        "ociVersion": "1.0.2",
        "process": {"terminal": true, "args": ["old"], "env": ["A=0"], "cwd": "/", "user": {"uid": 5, "gid": 5},
            "capabilities": {"bounding": ["CAP_KILL"], "ambient": ["CAP_KILL"]}},
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "old",
        "linux": {"namespaces": [{"type": "mount"}, {"type": "network", "path": "/run/netns/x"}],
            "resources": {"memory": {"limit": 1}, "pids": {"limit": 7}}, "cgroupsPath": "/mine"},
    });
    let bundle = serde_json::from_value(config).unwrap();
    let facts = Facts { machine: None, ..facts() };
    let line = "--bundle b -e A=1 --memory 64m -v /a:/b";
    golden("bundle", &of(line, &facts, Some(bundle)).unwrap());
}

#[test]
fn all_capabilities_may_be_given_and_taken() {
    let bounding = |line: &str| {
        let spec = of(&format!("{line} -- x"), &facts(), None).unwrap();
        let sets = spec.process().as_ref().unwrap().capabilities().clone().unwrap();
        assert_eq!(sets.bounding(), sets.effective());
        let mut names: Vec<String> = sets.bounding().iter().flatten().map(|name| format!("CAP_{name}")).collect();
        names.sort();
        names
    };
    assert_eq!(bounding("--cap-add ALL"), ["CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_SYS_TIME"]);
    assert_eq!(bounding("--cap-add all --cap-drop SYS_ADMIN"), ["CAP_CHOWN", "CAP_SYS_TIME"]);
    assert_eq!(bounding("--cap-drop ALL --cap-add kill"), ["CAP_KILL"]);
    assert_eq!(bounding("--cap-drop ALL"), [""; 0]);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    for (line, part) in [
        ("--cap-add NOPE -- x", "no capability \"NOPE\""),
        ("-w here -- x", "'--workdir <DIR>': it must be an absolute path"),
        ("-e =x -- x", "'--env <NAME[=VALUE]>': a variable has a name"),
        ("--rootfs a --bundle b -- x", "cannot be used with"),
        ("--memory x -- x", "is no size"),
        ("--network bridge -- x", "invalid value 'bridge'"),
        ("-it", "required"),
    ] {
        let error = of(line, &facts(), None).unwrap_err().to_string();
        assert!(error.contains(part), "{line}: {error}");
    }
}

#[test]
fn a_profile_of_ones_own_takes_the_place_of_ours() {
    let own: LinuxSeccomp = serde_json::from_str(r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap();
    let facts = Facts { seccomp: Some(own.clone()), ..facts() };
    let seccomp = |line, facts: &Facts| of(line, facts, None).unwrap().linux().as_ref().unwrap().seccomp().clone();
    assert_eq!(seccomp("--seccomp file -- x", &facts), Some(own));
    let none = Facts { seccomp: None, ..facts };
    assert_eq!(seccomp("--seccomp unconfined -- x", &none), None);
}

/// What is decided here must be something that can be done.
#[test]
fn the_usual_container_can_be_planned() {
    let host = libcontainer::host::Host::detect().unwrap();
    let request = libcontainer::plan::Request {
        id: "x".to_owned(),
        bundle: "/b".into(),
        rootfs: "/b/rootfs".into(),
        no_pivot: false,
        no_new_keyring: false,
        preserve_fds: 0,
        systemd: None,
    };
    for line in ["-- sh", "-t --network host --memory 64m --cap-add ALL -- sh"] {
        let swap_counted = crate::swap::is_counted(&host.cgroups.hierarchies);
        let spec = of(line, &Facts { cgroup_v2: false, swap_counted, ..facts() }, None).unwrap();
        libcontainer::plan::Plan::create(&spec, &host, &request).unwrap();
    }
}

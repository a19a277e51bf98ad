//! Namespaces: new ones, mapped ones, and those of another container.

use std::fs;

use dunnage_tests::{case, namespace_of};
use serde_json::json;

const KINDS: [&str; 6] = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];

fn namespace(pid: &str, kind: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("a namespace").display().to_string()
}

#[test]
fn a_container_has_namespaces_of_its_own() {
    case(|c| {
        let root = c.root_folder("root");
        let mut spec = c.spec("alone", &root, &["sleep", "1000"]);
        let kinds = ["cgroup", "ipc", "mount", "network", "pid", "uts"];
        spec["linux"]["namespaces"] = kinds.iter().map(|kind| json!({ "type": kind })).collect();
        c.run_spec("alone", &spec).detached().ok();
        let pid = c.pid("alone").to_string();
        for kind in KINDS {
            assert_ne!(namespace(&pid, kind), namespace("self", kind), "{kind}");
        }
        let inside = c
            .exec("alone", "look", ["sh", "-c", "echo $$ > /dev/null; cat /proc/1/cmdline; cat /proc/self/cgroup"])
            .output();
        assert!(inside.ok().starts_with("sleep\x001000"), "{inside:?}");
        assert!(
            inside.ok().lines().skip(1).all(|line| line.ends_with(":/")),
            "the cgroup is the root of its own namespace: {inside:?}"
        );
    });
}

#[test]
fn a_container_joins_the_namespaces_of_another() {
    case(|c| {
        let pid = c.idle("host", &[]);
        let flags = [("network", "net"), ("ipc", "ipc"), ("pid", "pid"), ("uts", "uts")]
            .map(|(kind, file)| format!("--with-ns={kind}:{}", namespace_of(pid, file)));
        let guest = c.run("guest", ["sleep", "1000"]).flags(flags).detached();
        guest.ok();
        let guest = c.pid("guest").to_string();
        for kind in ["net", "ipc", "pid", "uts"] {
            assert_eq!(namespace(&guest, kind), namespace(&pid.to_string(), kind), "{kind}");
        }
        assert_ne!(namespace(&guest, "mnt"), namespace(&pid.to_string(), "mnt"));
        // Each sees the other's processes.
        let seen = c.exec("host", "look", ["ps", "-o", "args"]).output();
        assert!(seen.ok().lines().any(|line| line == "sleep 1000"), "{seen:?}");
        let seen = c.exec("guest", "look", ["ps", "-o", "pid,args"]).output();
        assert!(seen.ok().lines().any(|line| line.trim_start().starts_with("1 sh -c trap")), "{seen:?}");
        // It ends without taking its host along.
        c.ctr(["task", "kill", "--signal", "SIGKILL", "guest"]).ok();
        assert_eq!(c.exit_status("guest", "guest"), 137);
        assert_eq!(c.exec("host", "after", ["echo", "on"]).output().ok(), "on");
    });
}

#[test]
fn the_network_of_the_host_can_be_shared() {
    case(|c| {
        c.run("open", ["sleep", "1000"]).flags(["--net-host"]).detached().ok();
        assert_eq!(namespace(&c.pid("open").to_string(), "net"), namespace("self", "net"));
    });
}

#[test]
fn root_of_a_user_namespace_is_somebody_else_outside() {
    case(|c| {
        let flags = ["--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536"];
        let script = "id -u; cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '; touch /tmp/mine && stat -c %u:%g /tmp/mine /bin/sh; grep CapEff /proc/self/status; echo up; sleep 1000";
        let running = c.run("mapped", ["sh", "-c", script]).flags(flags).spawn();
        running.stdout().line("up");
        let pid = c.pid("mapped");
        let text = running.stdout().text();
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        assert_eq!(lines[..5], ["0", "0 100000 65536", "0 200000 65536", "0:0", "0:0"]);
        assert_eq!(lines[5], "CapEff:\t00000000a80425fb");
        assert_eq!(dunnage_tests::process::status(pid, "Uid"), "100000\t100000\t100000\t100000");
        assert_eq!(dunnage_tests::process::status(pid, "Gid"), "200000\t200000\t200000\t200000");
        assert_ne!(namespace(&pid.to_string(), "user"), namespace("self", "user"));
        // An exec is in it too, with the same ids.
        let exec = c.exec("mapped", "look", ["sh", "-c", "id -u; readlink /proc/self/ns/user"]).output();
        assert_eq!(exec.ok().lines().next(), Some("0"));
        assert_eq!(exec.ok().lines().nth(1), Some(&*namespace(&pid.to_string(), "user")));
        c.ctr(["task", "kill", "--signal", "SIGKILL", "mapped"]).ok();
        assert_eq!(running.wait().code, 137);
    });
}

#[test]
fn a_mapped_container_has_its_devices_and_its_stdio() {
    case(|c| {
        let flags = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"];
        let script = "cd /dev; for d in full null random tty urandom zero ptmx; do [ -c $d ] || echo no $d; done; head -c 3 zero | wc -c; echo x > null && echo written";
        assert_eq!(c.run("mapped", ["sh", "-c", script]).flags(flags).output().ok(), "3\nwritten");
    });
}

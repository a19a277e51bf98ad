//! Containers and their cgroup v2 directory: born in it, shown it, followed into it. A hybrid machine has such a directory
//! too, without controllers; what needs more says so by name.

use std::fs;
use std::path::{Path, PathBuf};

use libcontainer::cgroup::{CgroupPath, Layout, Place};
use libcontainer::run::Launched;
use libcontainer::sys::wait::Exit;
use serde_json::{Value, json};

use super::{Bundle, end};

/// Where this bundle's container has its v2 directory. `None`, and a word, where there is none.
fn place(bundle: &Bundle, test: &str) -> Option<Place> {
    let path = bundle.config["linux"]["cgroupsPath"].as_str().unwrap();
    let places = CgroupPath::new(Some(Path::new(path)), "").unwrap().places(&Layout::detect().unwrap());
    let place = places.into_iter().find(|place| place.v2);
    if place.is_none() {
        println!("  SKIPPED {test}: this machine has no cgroup v2");
    }
    place
}

/// The same, where the controllers are in v2.
fn only_v2(bundle: &Bundle, test: &str) -> Option<Place> {
    if !Layout::detect().unwrap().is_v2() {
        println!("  SKIPPED {test}: this machine has its controllers in cgroup v1");
        return None;
    }
    place(bundle, test)
}

fn process(script: &str) -> Value {
    json!({ "args": ["sh", "-c", script], "env": ["PATH=/bin"], "cwd": "/", "user": { "uid": 0, "gid": 0 } })
}

fn sleeper() -> Bundle {
    Bundle::new("exec sleep 1000")
}

/// A kernel that knows the count of kills would let nobody be born there again.
pub(crate) fn a_directory_that_was_killed_once_takes_a_container() {
    let bundle = Bundle::new("echo lives");
    let Some(place) = place(&bundle, "a_directory_that_was_killed_once_takes_a_container") else { return };
    fs::create_dir_all(place.dir.join("nested")).unwrap();
    fs::write(place.dir.join("cgroup.kill"), "1").expect("cgroup.kill: Linux 5.14");
    assert_eq!(bundle.says(), "lives\n");
    assert!(!place.dir.exists());
}

/// That kernel counts in the runtime's cgroup, too.
pub(crate) fn a_runtime_whose_own_cgroup_was_killed_says_what_to_do() {
    let bundle = Bundle::new("echo lives");
    let Some(place) = place(&bundle, "a_runtime_whose_own_cgroup_was_killed_says_what_to_do") else { return };
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = place.mount.join(own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap());
    let killed = place.mount.join(format!("killed-{}", bundle.id));
    fs::create_dir(&killed).unwrap();
    fs::write(killed.join("cgroup.kill"), "1").unwrap();
    fs::write(killed.join("cgroup.procs"), "0").unwrap();
    let ran = bundle.run();
    fs::write(own.join("cgroup.procs"), "0").unwrap();
    fs::remove_dir(&killed).unwrap();
    match ran {
        Ok(ran) => assert_eq!(ran.out, "lives\n"), // a kernel that compares like with like
        Err(error) => {
            println!("  {error}");
            assert!(error.contains("killed at its birth: if cgroup.kill was ever written"), "{error}");
        }
    }
}

/// As systemd does when it is a container's init.
pub(crate) fn a_further_process_follows_an_init_that_moved_down() {
    let bundle = sleeper();
    let Some(place) = place(&bundle, "a_further_process_follows_an_init_that_moved_down") else { return };
    let (launched, _reader) = bundle.start().unwrap();
    assert!(cgroup_of(&bundle, &launched).ends_with(&format!("/{}", bundle.id)));
    move_init(&launched, &place.dir.join("init.scope"));
    if place.controllers.iter().any(|name| name == "memory") {
        fs::write(place.dir.join("cgroup.subtree_control"), "+memory").unwrap(); // takes no process from now on
    }
    assert!(cgroup_of(&bundle, &launched).ends_with(&format!("/{}/init.scope", bundle.id)));
    // All of it still ends together.
    launched.cgroup.as_ref().unwrap().kill().unwrap();
    end(launched);
}

/// The line of the v2 hierarchy that a further process sees of itself.
fn cgroup_of(bundle: &Bundle, launched: &Launched) -> String {
    let ran = bundle.exec(launched, process("grep ^0:: /proc/self/cgroup"));
    assert_eq!(ran.exit, Exit::Code(0), "{}", ran.out);
    ran.out.trim().to_owned()
}

fn move_init(launched: &Launched, to: &PathBuf) {
    fs::create_dir(to).unwrap();
    fs::write(to.join("cgroup.procs"), launched.pid.to_string()).unwrap();
}

fn cgroup_mount(bundle: Bundle, options: Value) -> Bundle {
    let mut mounts = bundle.config["mounts"].as_array().unwrap().clone();
    mounts.push(json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options }));
    bundle.with("/mounts", json!(mounts))
}

fn namespaces(kinds: &[&str]) -> Value {
    kinds.iter().map(|kind| json!({ "type": kind })).collect()
}

pub(crate) fn a_cgroup_mount_shows_the_containers_own() {
    let own = namespaces(&["pid", "mount", "uts", "cgroup"]);
    let script = "grep ^0:: /proc/self/cgroup; cat /sys/fs/cgroup/pids.max; \
        mkdir /sys/fs/cgroup/x 2>/dev/null && echo made && rmdir /sys/fs/cgroup/x; exit 0";
    for (options, says) in [(json!(["ro", "nosuid"]), "0::/\n77\n"), (json!(["rw"]), "0::/\n77\nmade\n")] {
        let bundle = cgroup_mount(Bundle::new(script).with("/linux/namespaces", own.clone()), options);
        let bundle = bundle.also("/linux", "resources", json!({ "pids": { "limit": 77 } }));
        let Some(_) = only_v2(&bundle, "a_cgroup_mount_shows_the_containers_own") else { return };
        for name in ["mkdir", "rmdir"] {
            std::os::unix::fs::symlink("busybox", bundle.folder.path().join("rootfs/bin").join(name)).unwrap();
        }
        assert_eq!(bundle.says(), says);
    }
}

pub(crate) fn a_container_without_a_cgroup_namespace_leaves_the_hosts_options_alone() {
    const TEST: &str = "a_container_without_a_cgroup_namespace_leaves_the_hosts_options_alone";
    let script =
        "grep -c . /proc/self/cgroup; ls -d /sys/fs/cgroup/dunnage-test/launch-*; ! mkdir /sys/fs/cgroup/x 2>/dev/null";
    let bundle = cgroup_mount(Bundle::new(script), json!(["ro"]));
    let Some(place) = only_v2(&bundle, TEST) else { return };
    std::os::unix::fs::symlink("busybox", bundle.folder.path().join("rootfs/bin/mkdir")).unwrap();
    let options = || {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let host = format!(" {} ", place.mount.display());
        let line = mounts.lines().find(|line| line.contains(&host)).unwrap();
        line.rsplit_once(" - ").unwrap().1.to_owned()
    };
    let before = options();
    if !before.contains("nsdelegate") && !before.contains("memory_recursiveprot") {
        println!("  SKIPPED {TEST}: the hierarchy has no option to lose");
        return;
    }
    assert_eq!(bundle.says(), format!("1\n/sys/fs/cgroup/dunnage-test/{}\n", bundle.id));
    assert_eq!(options(), before);
}

pub(crate) fn root_of_a_user_namespace_arranges_its_own_cgroup() {
    let script = "mkdir /sys/fs/cgroup/mine && echo 0 >/sys/fs/cgroup/mine/cgroup.procs && \
        echo +pids >/sys/fs/cgroup/cgroup.subtree_control && grep ^0:: /proc/self/cgroup; \
        echo 5 2>/dev/null >/sys/fs/cgroup/pids.max || echo limited";
    let maps = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    let all = namespaces(&["pid", "mount", "uts", "network", "cgroup", "user"]);
    let bundle = cgroup_mount(Bundle::new(script).with("/linux/namespaces", all), json!(["rw", "nosuid"]));
    let bundle = bundle.also("/linux", "uidMappings", maps.clone()).also("/linux", "gidMappings", maps);
    let Some(_) = only_v2(&bundle, "root_of_a_user_namespace_arranges_its_own_cgroup") else { return };
    std::os::unix::fs::symlink("busybox", bundle.folder.path().join("rootfs/bin/mkdir")).unwrap();
    for path in [bundle.folder.path().to_owned(), bundle.folder.path().join("rootfs")] {
        std::os::unix::fs::chown(&path, Some(100_000), Some(100_000)).unwrap();
    }
    assert_eq!(bundle.says(), "0::/mine\nlimited\n");
}

pub(crate) fn a_container_without_a_way_in_says_why() {
    let bundle = sleeper();
    let Some(place) = only_v2(&bundle, "a_container_without_a_way_in_says_why") else { return };
    let (launched, _reader) = bundle.start().unwrap();
    move_init(&launched, &place.dir.join("init.scope"));
    fs::write(place.dir.join("cgroup.subtree_control"), "+memory").unwrap();
    // Out of the container: what is left of its cgroup takes no process.
    fs::write(place.mount.join("cgroup.procs"), launched.pid.to_string()).unwrap();
    let error = bundle.try_exec(&launched, process("true")).err().unwrap();
    assert!(error.contains("clone3: EBUSY") && error.contains("cgroup.subtree_control"), "{error}");
    end(launched);
}

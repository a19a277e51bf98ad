//! Whole containers: their devices, roots, user namespaces and cgroups.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use serde_json::json;

use super::alone::alone;
use super::stage::{Stage, bind, kinds, line, ordinary, ordinary_linux, proc, shared, spec, top, user_namespace};
use crate::cgroup::CgroupPath;
use crate::host::Host;
use crate::step::mount::Mount;
use crate::sys::process::{CloneOptions, Cloned, clone3, exit_now};
use crate::sys::{Call, Failed};

#[test]
fn an_ordinary_container_has_what_it_asked_for() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    let spec = spec(ordinary(), ordinary_linux());
    stage
        .run(&spec, |fds| {
            assert_eq!(line("/proc").0, "rw,nosuid,nodev,noexec,relatime");
            assert_eq!(line("/dev").0, "rw,nosuid");
            assert!(line("/dev").2.starts_with("tmpfs tmpfs rw,size=65536k,mode=755"), "{}", line("/dev").2);
            assert!(line("/dev/pts").2.contains("gid=5,mode=620,ptmxmode=666"), "{}", line("/dev/pts").2);
            assert!(line("/dev/shm").2.starts_with("tmpfs shm rw,size=65536k"), "{}", line("/dev/shm").2);
            assert_eq!(line("/sys"), ("ro,nosuid,nodev,noexec,relatime".into(), "".into(), "sysfs sysfs ro".into()));
            for (name, rdev) in
                [("null", (1, 3)), ("zero", (1, 5)), ("full", (1, 7)), ("tty", (5, 0)), ("random", (1, 8))]
            {
                let node = fs::symlink_metadata(Path::new("/dev").join(name)).expect(name);
                assert!(node.file_type().is_char_device());
                assert_eq!(node.permissions().mode() & 0o7777, 0o666);
                assert_eq!(node.rdev(), nix::sys::stat::makedev(rdev.0, rdev.1));
                assert_eq!((node.uid(), node.gid()), (0, 0));
            }
            for (link, to) in
                [("fd", "/proc/self/fd"), ("stderr", "/proc/self/fd/2"), ("ptmx", "pts/ptmx"), ("core", "/proc/kcore")]
            {
                assert_eq!(fs::read_link(Path::new("/dev").join(link)).expect(link), Path::new(to));
            }
            assert!(fs::write("/proc/sys/kernel/printk_ratelimit", "5").is_err(), "/proc/sys is read-only");
            assert_eq!(fs::read("/proc/keys").expect("/dev/null"), b"");
            assert_eq!(fs::metadata("/proc/version").expect("masked").rdev(), nix::sys::stat::makedev(1, 3));
            let host = fs::set_permissions("/proc/version", fs::Permissions::from_mode(0o000));
            assert_eq!(host.expect_err("the host's node").raw_os_error(), Some(libc::EROFS));
            fs::write("/proc/version", "x").expect("but /dev/null it is");
            assert_eq!(fs::read_dir("/sys/power").expect("masked").count(), 0);
            assert_eq!(fs::create_dir("/sys/power/x").expect_err("read-only").raw_os_error(), Some(libc::EROFS));
            assert_eq!(fs::read_dir("/proc/driver").expect("masked").count(), 0);
            assert!(fds.proc.is_some());
            // Nothing of the host is left: the root is the only mount that is on itself.
            assert_eq!(fs::read_dir("/").expect("root").count(), 6, "bin dev etc proc run sys");
            let tops = fs::read_to_string("/proc/self/mountinfo").expect("table");
            assert_eq!(tops.lines().filter(|l| l.split(' ').nth(4) == Some("/")).count(), 1, "{tops}");
        })
        .expect("steps");
}

#[test]
fn an_image_may_not_bring_its_own_devices() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    fs::create_dir(stage.root("dev")).expect("folder");
    fs::write(stage.root("dev/zero"), "not zero").expect("file");
    let failed = stage.run(&spec(json!([proc()]), json!({})), |_| unreachable!()).expect_err("a file");
    assert_eq!(failed, Failed { call: Call::Mknod, errno: Errno::EEXIST });
    fs::remove_file(stage.root("dev/zero")).expect("removed");
    symlink("/etc/passwd", stage.root("dev/full")).expect("link");
    let failed = stage.run(&spec(json!([proc()]), json!({})), |_| unreachable!()).expect_err("a link");
    assert_eq!(failed, Failed { call: Call::Mknod, errno: Errno::EEXIST });
}

#[test]
fn devices_of_the_spec_have_their_owner_and_mode() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    let linux = json!({"devices": [
        {"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o600, "uid": 5, "gid": 6},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o622},
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640},
        {"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2},
    ]});
    stage
        .run(&spec(ordinary(), linux), |_| {
            let tun = fs::metadata("/dev/net/tun").expect("tun");
            assert_eq!((tun.uid(), tun.gid(), tun.permissions().mode() & 0o7777), (5, 6, 0o600));
            assert_eq!(tun.rdev(), nix::sys::stat::makedev(10, 200));
            assert!(fs::metadata("/dev/pipe").expect("pipe").file_type().is_fifo());
            assert_eq!(fs::metadata("/dev/pipe").expect("pipe").permissions().mode() & 0o7777, 0o622);
            assert_eq!(fs::metadata("/dev/null").expect("null").permissions().mode() & 0o7777, 0o640);
            assert_eq!(fs::read_link("/dev/ptmx").expect("a link"), Path::new("pts/ptmx"));
        })
        .expect("steps");
}

#[test]
fn a_read_only_root_is_read_only_but_not_what_is_mounted_in_it() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    let mut spec = spec(ordinary(), json!({}));
    spec["root"]["readonly"] = json!(true);
    stage
        .run(&spec, |_| {
            assert_eq!(fs::create_dir("/new").expect_err("read-only").raw_os_error(), Some(libc::EROFS));
            fs::write("/run/x", "").expect("writable");
            fs::write("/dev/shm/x", "").expect("writable");
        })
        .expect("steps");
}

#[test]
fn a_root_may_be_moved_instead_of_pivoted_and_masks_hold_as_well() {
    if !alone() {
        return;
    }
    for (no_pivot, user, linux, revealed) in [
        (false, false, json!({}), true),
        (false, false, ordinary_linux(), false),
        (true, false, ordinary_linux(), false),
        // In a user namespace the host's mounts are locked: they cannot be unmounted, and are covered.
        (true, true, ordinary_linux(), false),
    ] {
        let mut stage = Stage::new();
        stage.no_pivot = no_pivot;
        fs::write(stage.root("etc/mark"), "x").expect("file");
        for dir in ["", "etc", "bin"] {
            std::os::unix::fs::chown(stage.root(dir), Some(100_000), Some(100_000)).expect("owner");
        }
        let spec = spec(ordinary(), linux);
        let spec = if user { user_namespace(spec) } else { spec };
        let done = stage.run(&spec, |_| {
            assert!(Path::new("/etc/mark").exists());
            assert_eq!(std::env::current_dir().expect("cwd"), Path::new("/"));
            assert_eq!(unmasked_proc(), revealed, "no pivot {no_pivot}, user namespace {user}");
        });
        done.expect("steps");
    }
}

/// Whether somebody in the container can get a procfs without masks by way of namespaces of their own. The kernel allows
/// it if one without masks is in sight, be it one of the host's that no path leads to.
fn unmasked_proc() -> bool {
    let flags = (libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID) as u64;
    match clone3(&CloneOptions { flags, cgroup: None }).expect("clone3") {
        Cloned::Child => {
            let fs = crate::sys::mount::fsopen(c"proc");
            let mounted = fs.and_then(|fs| {
                crate::sys::mount::fsconfig_create(fs.as_fd())?;
                crate::sys::mount::fsmount(fs.as_fd(), 0)
            });
            exit_now(match mounted {
                Ok(_) => 1,
                Err(failed) if failed.errno == Errno::EPERM => 0,
                Err(failed) => failed.errno as i32,
            });
        }
        Cloned::Parent(pid, pidfd) => {
            let status = waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED).expect("wait");
            match status {
                WaitStatus::Exited(_, code @ (0 | 1)) => code == 1,
                other => panic!("{pid}: {other:?}"),
            }
        }
    }
}

#[test]
fn without_a_procfs_of_the_container_we_have_our_own() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    stage
        .run(&spec(json!([]), json!({})), |fds| {
            assert!(!Path::new("/proc/self").exists());
            let proc = fds.proc.as_ref().expect("a procfs");
            let stat =
                nix::fcntl::openat(proc, "self/stat", nix::fcntl::OFlag::O_RDONLY, nix::sys::stat::Mode::empty());
            assert!(stat.is_ok());
        })
        .expect("steps");
}

#[test]
fn a_user_namespace_gets_mounts_and_devices_of_its_own() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    for dir in ["", "etc", "bin"] {
        std::os::unix::fs::chown(stage.root(dir), Some(100_000), Some(100_000)).expect("owner");
    }
    let source = shared(&stage);
    fs::write(source.join("file"), "x").expect("file");
    let mut mounts = ordinary();
    mounts.as_array_mut().expect("a list").extend([
        bind(&source, "/mnt", &["rbind"]),
        bind(&source, "/shared", &["rbind", "rshared"]),
        bind(&source.join("file"), "/etc/file", &["bind", "ro"]),
        bind(&source, "/mapped", &["bind", "idmap"]),
    ]);
    let spec = user_namespace(spec(mounts, ordinary_linux()));
    stage
        .run(&spec, |_| {
            assert!(fs::metadata("/dev/null").expect("null").file_type().is_char_device());
            fs::write("/dev/null", "x").expect("a device that works");
            assert_eq!(line("/mnt").0, "rw,relatime");
            assert_eq!(kinds(&line("/mnt").1), ["master"]);
            assert_eq!(kinds(&line("/shared").1), ["shared", "master"]);
            assert_eq!(line("/etc/file").0, "ro,relatime");
            assert_eq!(fs::metadata("/mapped/file").expect("file").uid(), 0);
            assert_eq!(fs::metadata("/mnt/file").expect("file").uid(), 65534);
            assert!(line("/sys").2.starts_with("sysfs"));
            assert_eq!(fs::read("/proc/version").expect("masked"), b"");
        })
        .expect("steps");
}

#[test]
fn a_user_namespace_keeps_the_attributes_of_the_source() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    std::os::unix::fs::chown(stage.root(""), Some(100_000), Some(100_000)).expect("owner");
    let source = shared(&stage).join("below");
    let with =
        |options| user_namespace(spec(json!([proc(), bind(&source, "/mnt", options)]), json!({"maskedPaths": []})));
    stage
        .run(&with(&["bind", "ro", "noexec"]), |_| assert_eq!(line("/mnt").0, "ro,nodev,noexec,relatime"))
        .expect("kept");
    let failed = stage.run(&with(&["bind", "dev"]), |_| unreachable!()).expect_err("asks to drop one");
    assert_eq!(failed, Failed { call: Call::MountSetattr, errno: Errno::EPERM });
}

#[test]
fn an_id_mapping_of_its_own_is_given_to_a_mount() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    let source = shared(&stage);
    for file in ["file", "below/file"] {
        fs::write(source.join(file), "x").expect("file");
        std::os::unix::fs::chown(source.join(file), Some(1), Some(2)).expect("owner");
    }
    let ids = |host: u32| json!([{"containerID": 0, "hostID": host, "size": 100}]);
    let mapped = |to: &str, word: &str| {
        let mut mount = bind(&source, to, &["rbind", word]);
        (mount["uidMappings"], mount["gidMappings"]) = (ids(5000), ids(6000));
        mount
    };
    let spec = spec(json!([proc(), mapped("/all", "ridmap"), mapped("/top", "idmap")]), json!({}));
    let (_, plan) = stage.plan(&spec);
    assert_eq!(plan.before.iter().filter(|step| matches!(step, Mount::IdMap(_))).count(), 1, "shared");
    stage
        .run(&spec, |_| {
            let owner = |path: &str| fs::metadata(path).map(|m| (m.uid(), m.gid())).expect(path);
            assert_eq!(owner("/all/file"), (5001, 6002));
            assert_eq!(owner("/all/below/file"), (5001, 6002));
            assert_eq!(owner("/top/file"), (5001, 6002));
            assert_eq!(owner("/top/below/file"), (1, 2));
        })
        .expect("steps");
}

/// A cgroup in every hierarchy for as long as a test runs.
struct TestCgroup(Vec<PathBuf>);

impl TestCgroup {
    fn new(path: &str) -> Self {
        let path = CgroupPath::new(Some(Path::new(path)), "test").expect("a path");
        let places = path.places(&Host::detect().expect("facts").cgroups);
        let dirs: Vec<_> = places.into_iter().filter(|place| !place.v2).map(|place| place.dir).collect();
        dirs.iter().for_each(|dir| fs::create_dir(dir).expect("cgroup"));
        Self(dirs)
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        self.0.iter().for_each(|dir| fs::remove_dir(dir).expect("cgroup is removed"));
    }
}

#[test]
fn cgroup_v1_hierarchies_are_shown_from_the_container_on() {
    if !alone() {
        return;
    }
    let path = format!("/dunnage-mounts-{}", std::process::id());
    let cgroup = TestCgroup::new(&path);
    if cgroup.0.is_empty() {
        eprintln!("SKIPPED: this machine has no v1 hierarchies");
        return;
    }
    let stage = Stage::new();
    for namespace in [true, false] {
        let mut mounts = ordinary();
        mounts.as_array_mut().expect("a list").push(json!({"destination": "/sys/fs/cgroup", "type": "cgroup",
            "source": "cgroup", "options": ["ro", "nosuid", "noexec", "nodev", "relatime"]}));
        let mut spec = spec(mounts, json!({"cgroupsPath": path}));
        if namespace {
            spec["linux"]["namespaces"].as_array_mut().expect("a list").push(json!({"type": "cgroup"}));
        }
        stage
            .run(&spec, |_| {
                for dir in &cgroup.0 {
                    let at = dir.parent().expect("a hierarchy").to_str().expect("UTF-8");
                    let (attrs, _, rest) = line(at);
                    assert_eq!(attrs, "ro,nosuid,nodev,noexec,relatime", "{at}");
                    assert!(rest.starts_with("cgroup "), "{rest}");
                    assert!(Path::new(at).join("tasks").exists());
                    // In a cgroup namespace all names are relative to it; otherwise just the container's directory is shown.
                    assert_eq!(top(at), if namespace { "/" } else { &path }, "{at}");
                }
                assert_eq!(line("/sys/fs/cgroup").0, "ro,nosuid,nodev,noexec,relatime");
            })
            .expect("steps");
    }
}

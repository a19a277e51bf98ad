//! Effects, seen from inside: each test plans from a spec, runs the steps in a child with its own namespaces, and looks.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use crate::cgroup::CgroupPath;
use crate::facts::StateFacts;
use crate::host::Host;
use crate::plan::mounts::{MountPlan, RootPlan, Slots, devices, hide_paths, mounts, root};
use crate::plan::{Problem, Request};
use crate::run::Fds;
use crate::sys::process::{CloneOptions, Cloned, clone3, exit_now};
use crate::sys::{Call, Failed};

/// True inside: the calling test runs again, alone, as the only one in a mount namespace of its own.
fn alone() -> bool {
    const INSIDE: &str = "DUNNAGE_TEST_ALONE";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let test = std::thread::current().name().expect("a test has a name").to_owned();
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("ROOT_TESTS").is_none_or(|v| v != "must"), "{test} needs root");
        eprintln!("SKIPPED {test}: needs root");
        return false;
    }
    let out = Command::new("unshare")
        .arg("--mount")
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", &test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare runs");
    let text = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(out.status.success() && text.contains("1 passed"), "{text}");
    false
}

struct Stage {
    /// A tmpfs of the test's own.
    top: PathBuf,
    no_pivot: bool,
    _keep: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let keep = tempfile::tempdir().expect("a folder");
        let top = keep.path().to_owned();
        mount(Some("stage"), &top, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).expect("tmpfs");
        for name in ["root", "root/etc", "root/bin", "data"] {
            fs::create_dir(top.join(name)).expect("folder");
        }
        Self { top, no_pivot: false, _keep: keep }
    }

    fn root(&self, path: &str) -> PathBuf {
        self.top.join("root").join(path)
    }

    fn data(&self, path: &str) -> PathBuf {
        self.top.join("data").join(path)
    }

    fn plan(&self, spec: &Value) -> (RootPlan, MountPlan) {
        let spec: Spec = serde_json::from_value(spec.clone()).expect("a spec");
        let host = Host { mknod: true, kcore: true, ..Host::detect().expect("facts") };
        let request = Request {
            id: "test".into(),
            bundle: self.top.clone(),
            rootfs: self.top.join("root"),
            no_pivot: self.no_pivot,
            no_new_keyring: false,
            preserve_fds: 0,
            systemd: None,
        };
        let mut problems: Vec<Problem> = Vec::new();
        let mut slots = Slots::default();
        let root = root(&spec, &request, &mut problems);
        let mut plan = mounts(&spec, &host, &request, &mut slots, &mut problems);
        for more in [devices(&spec, &host, &mut slots, &mut problems), hide_paths(&spec, &mut slots, &mut problems)] {
            plan.before.extend(more.before);
            plan.child.extend(more.child);
            plan.finish.extend(more.finish);
        }
        assert_eq!(problems, []);
        (root, plan)
    }

    /// Runs the steps the spec leads to, and then `look` inside the container.
    fn run(&self, spec: &Value, look: impl FnOnce(&Fds)) -> Result<(), Failed> {
        let (root, plan) = self.plan(spec);
        let mut fds = fds();
        plan.before.iter().try_for_each(|step| step.run(&mut fds))?;
        let mut flags = 0;
        for ns in spec["linux"]["namespaces"].as_array().expect("namespaces") {
            flags |= match ns["type"].as_str() {
                Some("mount") => libc::CLONE_NEWNS,
                Some("user") => libc::CLONE_NEWUSER,
                Some("pid") => libc::CLONE_NEWPID,
                Some("network") => libc::CLONE_NEWNET,
                Some("ipc") => libc::CLONE_NEWIPC,
                Some("cgroup") => libc::CLONE_NEWCGROUP,
                _ => 0,
            };
        }
        let (mapped, go) = nix::unistd::pipe().expect("pipe");
        let (answer, say) = nix::unistd::pipe().expect("pipe");
        match clone3(&CloneOptions { flags: flags as u64, cgroup: None }).expect("clone3") {
            Cloned::Child => {
                let lived = catch_unwind(AssertUnwindSafe(|| {
                    drop(go);
                    nix::unistd::read(&mapped, &mut [0]).expect("mapped");
                    if flags & libc::CLONE_NEWUSER != 0 {
                        nix::unistd::setgid(0.into()).expect("root");
                        nix::unistd::setuid(0.into()).expect("root");
                    }
                    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
                    let done = root
                        .prepare
                        .iter()
                        .try_for_each(|step| step.run(&mut fds))
                        .and_then(|()| {
                            plan.child.iter().try_for_each(|step| {
                                step.run(&mut fds).inspect_err(|e| eprintln!("{step}: {e} {:?}", fds.complaint))
                            })
                        })
                        .and_then(|()| root.enter.iter().try_for_each(|step| step.run(&mut fds)))
                        .and_then(|()| root.finish.iter().try_for_each(|step| step.run(&mut fds)))
                        .and_then(|()| plan.finish.iter().try_for_each(|step| step.run(&mut fds)));
                    match done {
                        Ok(()) => look(&fds),
                        Err(failed) => {
                            let bytes =
                                [(failed.call as u16 as i32).to_ne_bytes(), (failed.errno as i32).to_ne_bytes()];
                            nix::unistd::write(&say, bytes.as_flattened()).expect("write");
                        }
                    }
                }));
                exit_now(if lived.is_ok() { 0 } else { 101 });
            }
            Cloned::Parent(pid, pidfd) => {
                drop((mapped, say));
                if flags & libc::CLONE_NEWUSER != 0 {
                    for file in ["uid_map", "gid_map"] {
                        fs::write(format!("/proc/{pid}/{file}"), "0 100000 65536").expect("map");
                    }
                }
                drop(go);
                let status = waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED).expect("wait");
                assert_eq!(status, WaitStatus::Exited(pid, 0), "what the container saw is above");
                let mut bytes = [0; 8];
                if nix::unistd::read(&answer, &mut bytes).expect("read") == 0 {
                    return Ok(());
                }
                let number = |at: usize| i32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four"));
                let call = Call::from_number(number(0) as u16).expect("a call");
                Err(Failed { call, errno: Errno::from_raw(number(4)) })
            }
        }
    }
}

fn fds() -> Fds {
    let wire = fs::File::open("/dev/null").expect("a descriptor");
    Fds::new(wire.into(), StateFacts::new("test", Path::new("/"), Default::default()))
}

fn spec(mounts: Value, linux: Value) -> Value {
    let mut spec = json!({
        "ociVersion": "1.2.0",
        "root": {"path": "root"},
        "mounts": mounts,
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "ipc"}, {"type": "network"}]}
    });
    for (key, value) in linux.as_object().expect("an object") {
        spec["linux"][key] = value.clone();
    }
    spec
}

fn proc() -> Value {
    json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]})
}

/// The mount on `path` as mountinfo has it: its options, its optional fields, its type, source, and superblock options.
fn line(path: &str) -> (String, String, String) {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let line = table.lines().rfind(|l| l.split(' ').nth(4) == Some(path));
    let line = line.unwrap_or_else(|| panic!("{path} in\n{table}"));
    let (left, right) = line.split_once(" - ").expect("a separator");
    let left: Vec<_> = left.split(' ').collect();
    (left[5].to_owned(), left[6..].join(" "), right.to_owned())
}

/// What of its filesystem the mount on `path` shows.
fn top(path: &str) -> String {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let line = table.lines().rfind(|l| l.split(' ').nth(4) == Some(path)).expect("a mount");
    line.split(' ').nth(3).expect("a root").to_owned()
}

/// What `ctr run` asks for, without cgroups.
fn ordinary() -> Value {
    json!([
        proc(),
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
         "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/run", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}
    ])
}

fn ordinary_linux() -> Value {
    json!({
        "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
            "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
            "/proc/driver", "/sys/power", "/proc/version"],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
    })
}

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

fn bind(from: &Path, to: &str, options: &[&str]) -> Value {
    json!({"destination": to, "type": "bind", "source": from, "options": options})
}

#[test]
fn a_bind_mount_is_made_where_it_is_missing_as_file_or_directory() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    fs::write(stage.data("file"), "hello").expect("file");
    fs::create_dir(stage.data("dir")).expect("dir");
    let mounts = json!([
        proc(),
        bind(&stage.data("file"), "/etc/deep/down/file", &["bind", "ro"]),
        bind(&stage.data("dir"), "relative/../rel/dir", &["rbind", "nosuid", "noexec"]),
        bind(Path::new("data/file"), "/etc/from-bundle", &["bind"]),
    ]);
    stage
        .run(&spec(mounts, json!({})), |_| {
            assert_eq!(fs::read("/etc/deep/down/file").expect("file"), b"hello");
            assert_eq!(line("/etc/deep/down/file").0, "ro,relatime");
            assert_eq!(line("/rel/dir").0, "rw,nosuid,noexec,relatime");
            assert_eq!(line("/etc/from-bundle").0, "rw,relatime");
        })
        .expect("steps");
    assert_eq!(fs::metadata(stage.root("etc/deep/down")).expect("made").permissions().mode() & 0o7777, 0o755);
    assert!(stage.root("etc/deep/down/file").is_file());
}

#[test]
fn a_missing_source_is_an_error_of_the_source() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    let spec = spec(json!([bind(Path::new("/no/such/source"), "/x", &["bind"])]), json!({}));
    let failed = stage.run(&spec, |_| unreachable!()).expect_err("no source");
    assert_eq!(failed, Failed { call: Call::OpenTree, errno: Errno::ENOENT });
    let (_, plan) = stage.plan(&spec);
    assert_eq!(plan.before[0].to_string(), "open /no/such/source for /x rslave");
    assert!(!stage.root("x").exists(), "nothing was made");
}

#[test]
fn no_link_of_the_image_leads_out_of_it() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    fs::write(stage.data("file"), "hello").expect("file");
    let out = stage.top.join("outside");
    fs::create_dir(&out).expect("folder");
    symlink("../../../../../../../../..", stage.root("up")).expect("link");
    symlink(&out, stage.root("absolute")).expect("link");
    symlink("/proc/self/root", stage.root("magic")).expect("link");
    symlink("../run/resolve/conf", stage.root("etc/dangling")).expect("link");
    symlink("loop", stage.root("loop")).expect("link");
    let file = stage.data("file");
    let mounts = json!([
        proc(),
        bind(&file, "/up/a", &["bind"]),
        bind(&file, "/../../b", &["bind"]),
        bind(&file, "/absolute/c", &["bind"]),
        bind(&file, "/etc/dangling", &["bind"]),
        bind(&file, "/magic/d", &["bind"]),
        {"destination": "/up/up/new", "type": "tmpfs", "source": "tmpfs", "options": ["mode=700"]},
    ]);
    stage
        .run(&spec(mounts, json!({})), |_| {
            let inside = format!("{}/c", out.display());
            for path in ["/a", "/b", &inside, "/d", "/run/resolve/conf", "/etc/dangling"] {
                assert_eq!(fs::read(path).expect(path), b"hello");
            }
            assert_eq!(line("/new").0, "rw,relatime");
        })
        .expect("steps");
    assert_eq!(fs::read_dir(&out).expect("outside").count(), 0);
    for (target, errno) in [("/loop/x", Errno::ELOOP), ("/etc/dangling/x", Errno::ENOTDIR)] {
        fs::create_dir_all(stage.root("run/resolve")).expect("folder");
        fs::write(stage.root("run/resolve/conf"), "").expect("file");
        let failed = stage.run(&spec(json!([proc(), bind(&file, target, &["bind"])]), json!({})), |_| unreachable!());
        assert_eq!(failed.expect_err(target), Failed { call: Call::Openat2, errno }, "{target}");
    }
}

#[test]
fn proc_and_sysfs_are_at_their_very_path_or_nowhere() {
    if !alone() {
        return;
    }
    for (name, mount) in [("proc", proc()), ("sys", json!({"destination": "/sys", "type": "sysfs", "source": "sysfs"}))]
    {
        let stage = Stage::new();
        symlink("/etc", stage.root(name)).expect("link");
        let failed = stage.run(&spec(json!([mount]), json!({})), |_| unreachable!()).expect_err("a link");
        assert_eq!(failed, Failed { call: Call::Openat2, errno: Errno::ELOOP });
    }
}

#[test]
fn nothing_but_a_procfs_hides_proc_by_way_of_a_link_either() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    fs::create_dir_all(stage.root("proc/x")).expect("folder");
    for (link, to) in [("p", "/proc"), ("q", "proc/self/.."), ("r", "/")] {
        symlink(to, stage.root(link)).expect("link");
    }
    let data = stage.data("");
    let rule = |call| Failed { call, errno: Errno::EPERM };
    for (mount, answer) in [
        (bind(&data, "/p", &["rbind"]), rule(Call::ProcRule)),
        (bind(&data, "/proc", &["rbind"]), rule(Call::ProcRule)),
        (bind(&data, "/p/sys", &["rbind"]), rule(Call::ProcRule)),
        (json!({"destination": "/p/fs", "type": "tmpfs", "source": "x"}), rule(Call::ProcRule)),
        (json!({"destination": "/p", "type": "tmpfs", "source": "x"}), rule(Call::ProcRule)),
        (bind(&data, "/r", &["rbind"]), rule(Call::RootRule)),
    ] {
        let failed = stage.run(&spec(json!([proc(), mount]), json!({})), |_| unreachable!());
        assert_eq!(failed.expect_err("refused"), answer, "{mount}");
    }
    fs::write(stage.data("meminfo"), "mine").expect("file");
    let stand_in = bind(&stage.data("meminfo"), "/p/meminfo", &["bind"]);
    stage
        .run(&spec(json!([proc(), stand_in]), json!({})), |_| {
            assert_eq!(fs::read("/proc/meminfo").expect("meminfo"), b"mine");
        })
        .expect("allowed");
    let again = json!([bind(Path::new("/proc"), "/proc", &["rbind"])]);
    stage.run(&spec(again, json!({})), |fds| assert!(fds.proc.is_some())).expect("a procfs may");
}

/// A mount of the host that is shared, with one below it.
fn shared(stage: &Stage) -> PathBuf {
    let top = stage.data("shared");
    fs::create_dir(&top).expect("folder");
    mount(Some("a"), &top, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("tmpfs");
    mount(None::<&str>, &top, None::<&str>, MsFlags::MS_SHARED, None::<&str>).expect("shared");
    fs::create_dir(top.join("below")).expect("folder");
    mount(Some("b"), &top.join("below"), Some("tmpfs"), MsFlags::MS_NODEV, None::<&str>).expect("tmpfs");
    top
}

fn kinds(optional: &str) -> Vec<&str> {
    optional.split(' ').filter(|f| !f.is_empty()).map(|f| f.split(':').next().expect("a name")).collect()
}

/// As runc leaves them (looked at with runc 1.1.5 and the same specs), but for the last two: there runc makes only `/`
/// what the word says, and the container's mount remains a peer of the host's.
#[test]
fn propagation_ends_where_runc_has_it() {
    if !alone() {
        return;
    }
    for (root, options, top, below) in [
        (None, &["rbind"][..], &["master"][..], &["master"][..]),
        (None, &["rbind", "rprivate"], &[], &[]),
        (None, &["rbind", "private"], &[], &["master"]),
        (None, &["rbind", "rshared"], &["shared", "master"], &["shared", "master"]),
        (None, &["rbind", "rslave"], &["master"], &["master"]),
        (None, &["rbind", "runbindable"], &["unbindable"], &["unbindable"]),
        (None, &["rbind", "ro", "nosuid"], &["master"], &["master"]),
        (Some("rprivate"), &["rbind"], &[], &[]),
        (Some("rprivate"), &["rbind", "rshared"], &["shared"], &["shared"]),
        (Some("rshared"), &["rbind"], &["shared"], &["shared"]),
        (Some("rshared"), &["rbind", "rslave"], &["master"], &["master"]),
        (Some("rshared"), &["rbind", "rprivate"], &[], &[]),
        (Some("shared"), &["rbind"], &["shared"], &["shared"]),
        (Some("slave"), &["rbind"], &["master"], &["master"]),
        (Some("private"), &["rbind"], &[], &[]),
    ] {
        let stage = Stage::new();
        let source = shared(&stage);
        let mut linux = json!({});
        if let Some(root) = root {
            linux["rootfsPropagation"] = json!(root);
        }
        let spec = spec(json!([proc(), bind(&source, "/mnt", options)]), linux);
        stage
            .run(&spec, |_| {
                assert_eq!(kinds(&line("/mnt").1), top, "{root:?} {options:?}");
                assert_eq!(kinds(&line("/mnt/below").1), below, "{root:?} {options:?} below");
            })
            .expect("steps");
    }
}

#[test]
fn the_root_is_related_to_the_host_as_rootfs_propagation_says() {
    if !alone() {
        return;
    }
    for (root, kind) in [
        (None, &["master"][..]),
        (Some("rslave"), &["master"]),
        (Some("rprivate"), &[]),
        (Some("private"), &[]),
        (Some("rshared"), &["shared", "master"]),
        (Some("unbindable"), &["unbindable"]),
    ] {
        let stage = Stage::new();
        mount(None::<&str>, &stage.top, None::<&str>, MsFlags::MS_SHARED, None::<&str>).expect("shared");
        let linux = root.map_or(json!({}), |root| json!({"rootfsPropagation": root}));
        stage.run(&spec(json!([proc()]), linux), |_| assert_eq!(kinds(&line("/").1), kind, "{root:?}")).expect("steps");
    }
}

#[test]
fn what_the_container_mounts_is_not_seen_by_the_host() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    mount(None::<&str>, &stage.top, None::<&str>, MsFlags::MS_SHARED, None::<&str>).expect("shared");
    let before = fs::read_to_string("/proc/self/mountinfo").expect("table");
    stage.run(&spec(ordinary(), ordinary_linux()), |_| {}).expect("steps");
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").expect("table"), before);
}

#[test]
fn attributes_are_set_on_the_top_or_on_the_whole_tree() {
    if !alone() {
        return;
    }
    for (options, top, below) in [
        (&["rbind"][..], "rw,relatime", "rw,nodev,relatime"),
        (&["rbind", "ro"], "ro,relatime", "rw,nodev,relatime"),
        (&["rbind", "rro"], "ro,relatime", "ro,nodev,relatime"),
        (&["rbind", "ro", "rrw"], "rw,relatime", "rw,nodev,relatime"),
        (&["rbind", "rnosuid", "rnoexec", "rdev"], "rw,nosuid,noexec,relatime", "rw,nosuid,noexec,relatime"),
        (&["rbind", "rnoatime"], "rw,noatime", "rw,nodev,noatime"),
        (&["rbind", "strictatime", "nodiratime"], "rw,nodiratime", "rw,nodev,relatime"),
        (&["rbind", "nosymfollow"], "rw,relatime,nosymfollow", "rw,nodev,relatime"),
    ] {
        let stage = Stage::new();
        let source = shared(&stage);
        stage
            .run(&spec(json!([proc(), bind(&source, "/mnt", options)]), json!({})), |_| {
                assert_eq!(line("/mnt").0, top, "{options:?}");
                assert_eq!(line("/mnt/below").0, below, "{options:?} below");
            })
            .expect("steps");
    }
    // A bind mount with any attribute has no other than those named.
    let stage = Stage::new();
    let source = shared(&stage).join("below");
    for (options, is) in [
        (&["bind"][..], "rw,nodev,relatime"),
        (&["bind", "noexec"], "rw,noexec,relatime"),
        (&["bind", "rw"], "rw,relatime"),
    ] {
        stage
            .run(&spec(json!([proc(), bind(&source, "/mnt", options)]), json!({})), |_| {
                assert_eq!(line("/mnt").0, is, "{options:?}");
            })
            .expect("steps");
    }
}

#[test]
fn a_read_only_tmpfs_is_filled_first() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    fs::write(stage.data("file"), "hello").expect("file");
    let mounts = json!([
        proc(),
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["ro", "mode=755"]},
        {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["ro", "nosuid"]},
        bind(&stage.data("file"), "/run/secrets/file", &["bind"]),
    ]);
    stage
        .run(&spec(mounts, json!({})), |_| {
            assert_eq!(fs::read("/run/secrets/file").expect("file"), b"hello");
            assert!(fs::metadata("/dev/null").expect("null").file_type().is_char_device());
            for dir in ["/run", "/dev"] {
                assert!(line(dir).0.starts_with("ro,"));
                assert!(fs::write(Path::new(dir).join("x"), "").is_err());
            }
        })
        .expect("steps");
}

#[test]
fn a_tmpfs_takes_the_mode_of_what_it_covers_and_may_start_with_a_copy() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    fs::create_dir(stage.root("covered")).expect("folder");
    fs::set_permissions(stage.root("covered"), fs::Permissions::from_mode(0o2710)).expect("mode");
    fs::create_dir(stage.root("covered/sub")).expect("folder");
    fs::write(stage.root("covered/sub/file"), "hello").expect("file");
    fs::set_permissions(stage.root("covered/sub/file"), fs::Permissions::from_mode(0o4751)).expect("mode");
    std::os::unix::fs::chown(stage.root("covered/sub/file"), Some(7), Some(8)).expect("owner");
    fs::set_permissions(stage.root("covered/sub/file"), fs::Permissions::from_mode(0o4751)).expect("mode");
    symlink("/proc/self/root/etc", stage.root("covered/link")).expect("link");
    nix::unistd::mkfifo(&stage.root("covered/fifo"), nix::sys::stat::Mode::S_IRWXU).expect("fifo");
    let tmpfs = |path: &str, options: &[&str]| json!({"destination": path, "type": "tmpfs", "source": "tmpfs", "options": options});
    let mounts = json!([proc(), tmpfs("/covered", &["tmpcopyup"]), tmpfs("/new", &[]), tmpfs("/bin", &["mode=1700"])]);
    stage
        .run(&spec(mounts, json!({})), |_| {
            let mode = |path: &str| fs::symlink_metadata(path).expect(path).permissions().mode() & 0o7777;
            assert_eq!((mode("/covered"), mode("/new"), mode("/bin")), (0o2710, 0o1777, 0o1700));
            let file = fs::metadata("/covered/sub/file").expect("file");
            assert_eq!((file.uid(), file.gid(), file.permissions().mode() & 0o7777), (7, 8, 0o4751));
            assert_eq!(fs::read("/covered/sub/file").expect("file"), b"hello");
            assert_eq!(fs::read_link("/covered/link").expect("link"), Path::new("/proc/self/root/etc"));
            assert!(fs::metadata("/covered/fifo").expect("fifo").file_type().is_fifo());
            fs::remove_file("/covered/sub/file").expect("removed");
        })
        .expect("steps");
    assert_eq!(fs::read(stage.root("covered/sub/file")).expect("the original"), b"hello");
}

#[test]
fn a_filesystem_says_what_it_does_not_understand() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    for (options, call, says) in [
        (&["size=lots"][..], Call::Fsconfig, "tmpfs: Bad value for 'size'"),
        (&["colour=blue"], Call::Fsconfig, "tmpfs: Unknown parameter 'colour'"),
    ] {
        let mount = json!({"destination": "/x", "type": "tmpfs", "source": "tmpfs", "options": options});
        let (_, plan) = stage.plan(&spec(json!([mount]), json!({})));
        let root = fs::File::open(stage.root("")).expect("root");
        let mut fds = fds();
        fds.root = Some(root.into());
        let failed = plan.child[0].run(&mut fds).expect_err("refused");
        assert_eq!(failed.call, call);
        assert_eq!(fds.complaint.as_deref(), Some(says));
    }
    let mount = json!({"destination": "/x", "type": "nosuchfs", "source": "x"});
    let failed = stage.run(&spec(json!([mount]), json!({})), |_| unreachable!()).expect_err("unknown");
    assert_eq!(failed, Failed { call: Call::Fsopen, errno: Errno::ENODEV });
}

#[test]
fn what_fsconfig_cannot_say_is_mounted_the_old_way() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    let layers: Vec<PathBuf> = (0..8).map(|n| stage.data(&format!("a-layer-of-a-rather-long-name-{n}"))).collect();
    for layer in &layers {
        fs::create_dir(layer).expect("layer");
        fs::write(layer.join("who"), layer.to_str().expect("UTF-8")).expect("file");
    }
    let lower = layers.iter().map(|l| l.to_str().expect("UTF-8")).collect::<Vec<_>>().join(":");
    assert!(lower.len() > 255);
    let mounts = json!([
        proc(),
        {"destination": "/o", "type": "overlay", "source": "overlay", "options": ["ro", "rprivate", format!("lowerdir={lower}")]},
        {"destination": "/i", "type": "tmpfs", "source": "tmpfs", "options": ["iversion", "size=4k"]},
    ]);
    stage
        .run(&spec(mounts, json!({})), |_| {
            assert!(fs::read_to_string("/o/who").expect("who").ends_with("-0"));
            assert_eq!(line("/o").0, "ro,relatime");
            assert!(line("/i").2.contains("size=4k"));
        })
        .expect("steps");
}

#[test]
fn remount_changes_what_is_there() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    let mounts = json!([
        proc(),
        {"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k"]},
        {"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": ["remount", "size=128k", "noexec"]},
        {"destination": "/u", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k"]},
        {"destination": "/u", "type": "bind", "source": "tmpfs", "options": ["bind", "remount", "ro"]},
        {"destination": "/v", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/v", "type": "tmpfs", "source": "tmpfs", "options": ["remount", "ro"]},
        {"destination": "/w", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/w", "type": "tmpfs", "source": "tmpfs", "options": ["remount", "ro"]},
        {"destination": "/w", "type": "tmpfs", "source": "tmpfs", "options": ["remount", "rw"]},
    ]);
    stage
        .run(&spec(mounts, json!({})), |_| {
            assert_eq!(line("/t").0, "rw,noexec,relatime");
            assert!(line("/t").2.contains("size=128k"), "{}", line("/t").2);
            assert_eq!(line("/u").0, "ro,relatime");
            assert!(line("/u").2.starts_with("tmpfs tmpfs rw"), "a bind mount is not the filesystem");
            for (path, state) in [("/v", "ro"), ("/w", "rw")] {
                assert_eq!(line(path).0, format!("{state},relatime"));
                assert!(line(path).2.starts_with(&format!("tmpfs tmpfs {state}")), "{}", line(path).2);
            }
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

fn user_namespace(mut spec: Value) -> Value {
    spec["linux"]["namespaces"].as_array_mut().expect("a list").push(json!({"type": "user"}));
    spec["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
    spec["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
    spec
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
    assert_eq!(plan.before.iter().filter(|step| matches!(step, super::Mount::IdMap(_))).count(), 1, "shared");
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

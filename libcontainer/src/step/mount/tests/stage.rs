//! A root filesystem to be, and a child that carries the steps out in it.

use std::fs;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use crate::facts::StateFacts;
use crate::host::Host;
use crate::plan::mounts::{MountPlan, RootPlan, Slots, devices, hide_paths, mounts, root};
use crate::plan::{Problem, Request};
use crate::run::Fds;
use crate::sys::process::{CloneOptions, Cloned, clone3, exit_now};
use crate::sys::{Call, Failed};

pub(super) struct Stage {
    /// A tmpfs of the test's own.
    pub(super) top: PathBuf,
    pub(super) no_pivot: bool,
    _keep: tempfile::TempDir,
}

impl Stage {
    pub(super) fn new() -> Self {
        let keep = tempfile::tempdir().expect("a folder");
        let top = keep.path().to_owned();
        mount(Some("stage"), &top, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).expect("tmpfs");
        for name in ["root", "root/etc", "root/bin", "data"] {
            fs::create_dir(top.join(name)).expect("folder");
        }
        Self { top, no_pivot: false, _keep: keep }
    }

    pub(super) fn root(&self, path: &str) -> PathBuf {
        self.top.join("root").join(path)
    }

    pub(super) fn data(&self, path: &str) -> PathBuf {
        self.top.join("data").join(path)
    }

    pub(super) fn plan(&self, spec: &Value) -> (RootPlan, MountPlan) {
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
    pub(super) fn run(&self, spec: &Value, look: impl FnOnce(&Fds)) -> Result<(), Failed> {
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

pub(super) fn fds() -> Fds {
    let wire = fs::File::open("/dev/null").expect("a descriptor");
    Fds::new(wire.into(), StateFacts::new("test", Path::new("/"), Default::default()))
}

pub(super) fn spec(mounts: Value, linux: Value) -> Value {
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

pub(super) fn proc() -> Value {
    json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]})
}

/// The mount on `path` as mountinfo has it: its options, its optional fields, its type, source, and superblock options.
pub(super) fn line(path: &str) -> (String, String, String) {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let line = table.lines().rfind(|l| l.split(' ').nth(4) == Some(path));
    let line = line.unwrap_or_else(|| panic!("{path} in\n{table}"));
    let (left, right) = line.split_once(" - ").expect("a separator");
    let left: Vec<_> = left.split(' ').collect();
    (left[5].to_owned(), left[6..].join(" "), right.to_owned())
}

/// What of its filesystem the mount on `path` shows.
pub(super) fn top(path: &str) -> String {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let line = table.lines().rfind(|l| l.split(' ').nth(4) == Some(path)).expect("a mount");
    line.split(' ').nth(3).expect("a root").to_owned()
}

/// What `ctr run` asks for, without cgroups.
pub(super) fn ordinary() -> Value {
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

pub(super) fn ordinary_linux() -> Value {
    json!({
        "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
            "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
            "/proc/driver", "/sys/power", "/proc/version"],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
    })
}

pub(super) fn bind(from: &Path, to: &str, options: &[&str]) -> Value {
    json!({"destination": to, "type": "bind", "source": from, "options": options})
}

/// A mount of the host that is shared, with one below it.
pub(super) fn shared(stage: &Stage) -> PathBuf {
    let top = stage.data("shared");
    fs::create_dir(&top).expect("folder");
    mount(Some("a"), &top, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("tmpfs");
    mount(None::<&str>, &top, None::<&str>, MsFlags::MS_SHARED, None::<&str>).expect("shared");
    fs::create_dir(top.join("below")).expect("folder");
    mount(Some("b"), &top.join("below"), Some("tmpfs"), MsFlags::MS_NODEV, None::<&str>).expect("tmpfs");
    top
}

pub(super) fn kinds(optional: &str) -> Vec<&str> {
    optional.split(' ').filter(|f| !f.is_empty()).map(|f| f.split(':').next().expect("a name")).collect()
}

/// As runc leaves them (looked at with runc 1.1.5 and the same specs), but for the last two: there runc makes only `/`
/// what the word says, and the container's mount remains a peer of the host's.
pub(super) fn user_namespace(mut spec: Value) -> Value {
    spec["linux"]["namespaces"].as_array_mut().expect("a list").push(json!({"type": "user"}));
    spec["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
    spec["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
    spec
}

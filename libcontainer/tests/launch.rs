//! Containers made by the library alone, seen from inside. Needs root and busybox-static.
//!
//! Not a libtest: a process that makes containers has one thread.
#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::fs;
use std::io::{BufRead, BufReader, PipeReader, Read, pipe};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::time::Instant;

use libcontainer::host::Host;
use libcontainer::plan::{ExecRequest, Plan, Request};
use libcontainer::run::{Into, Io, Launch, Launched, Progress, RunError, Wake};
use libcontainer::sys::wait::{self, Exit};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

#[path = "launch/cgroup2.rs"]
mod cgroup2;
#[path = "launch/disasters.rs"]
mod disasters;

const TESTS: &[(&str, fn())] = &[
    ("a_program_runs_and_its_status_is_known", a_program_runs_and_its_status_is_known),
    ("a_missing_program_is_found_missing_at_create", a_missing_program_is_found_missing_at_create),
    (
        "every_kind_of_failure_names_its_step_and_leaves_nothing",
        every_kind_of_failure_names_its_step_and_leaves_nothing,
    ),
    ("the_process_is_what_the_spec_says", the_process_is_what_the_spec_says),
    ("ids_are_mapped_in_a_user_namespace", ids_are_mapped_in_a_user_namespace),
    ("namespaces_are_joined_by_path", namespaces_are_joined_by_path),
    ("time_is_shifted_in_a_time_namespace", time_is_shifted_in_a_time_namespace),
    ("a_joined_user_namespace_owns_what_is_made_in_it", a_joined_user_namespace_owns_what_is_made_in_it),
    ("a_new_user_namespace_joins_what_the_host_owns", a_new_user_namespace_joins_what_the_host_owns),
    ("a_further_process_joins_everything", a_further_process_joins_everything),
    ("a_terminal_is_the_containers_own", a_terminal_is_the_containers_own),
    ("hooks_run_in_order_where_the_spec_says", hooks_run_in_order_where_the_spec_says),
    ("a_failing_hook_undoes_the_container", a_failing_hook_undoes_the_container),
    ("a_gate_lets_another_process_start_it", a_gate_lets_another_process_start_it),
    ("a_filter_holds_for_the_program_and_what_joins_it", a_filter_holds_for_the_program_and_what_joins_it),
    ("a_seccomp_agent_gets_its_listener", a_seccomp_agent_gets_its_listener),
    ("a_child_killed_at_any_step_leaves_nothing", disasters::a_child_killed_at_any_step_leaves_nothing),
    ("a_dropped_launch_ends_its_child_and_its_hook", disasters::a_dropped_launch_ends_its_child_and_its_hook),
    ("an_orphan_ends_by_itself_before_its_program_runs", disasters::an_orphan_ends_by_itself_before_its_program_runs),
    ("two_hundred_at_once_are_made_and_gone", disasters::two_hundred_at_once_are_made_and_gone),
    ("a_profile_need_not_allow_what_only_we_do", a_profile_need_not_allow_what_only_we_do),
    ("a_further_process_inherits_what_it_does_not_say", a_further_process_inherits_what_it_does_not_say),
    ("a_further_process_has_the_containers_keyring", a_further_process_has_the_containers_keyring),
    ("limits_hold_before_a_further_process_runs", limits_hold_before_a_further_process_runs),
    ("a_cgroup_namespace_begins_at_the_containers_cgroup", a_cgroup_namespace_begins_at_the_containers_cgroup),
    ("a_process_without_capabilities_has_none", a_process_without_capabilities_has_none),
    ("a_directory_that_was_killed_once_takes_a_container", cgroup2::a_directory_that_was_killed_once_takes_a_container),
    ("a_further_process_follows_an_init_that_moved_down", cgroup2::a_further_process_follows_an_init_that_moved_down),
    ("a_cgroup_mount_shows_the_containers_own", cgroup2::a_cgroup_mount_shows_the_containers_own),
    (
        "a_container_without_a_cgroup_namespace_leaves_the_hosts_options_alone",
        cgroup2::a_container_without_a_cgroup_namespace_leaves_the_hosts_options_alone,
    ),
    ("root_of_a_user_namespace_arranges_its_own_cgroup", cgroup2::root_of_a_user_namespace_arranges_its_own_cgroup),
    (
        "a_runtime_whose_own_cgroup_was_killed_says_what_to_do",
        cgroup2::a_runtime_whose_own_cgroup_was_killed_says_what_to_do,
    ),
    ("a_container_without_a_way_in_says_why", cgroup2::a_container_without_a_way_in_says_why),
];

fn main() {
    if std::env::args().any(|arg| arg == "--list") {
        return TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
    }
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("ROOT_TESTS").is_none_or(|must| must != "must"), "ROOT_TESTS=must needs root");
        println!("SKIPPED, every one of {} tests: they need root", TESTS.len());
        return;
    }
    // Two hundred containers at once, on v1 with a descriptor for each hierarchy.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let wanted = std::env::args().nth(1).filter(|arg| !arg.starts_with('-')).unwrap_or_default();
    let mut passed = 0;
    for (name, test) in TESTS.iter().filter(|(name, _)| name.contains(&wanted)) {
        println!("test {name} ...");
        test();
        passed += 1;
    }
    println!("test result: ok. {passed} passed; 0 failed; 0 ignored");
}

/// A bundle with a busybox root, removed at the end.
struct Bundle {
    folder: tempfile::TempDir,
    id: String,
    config: Value,
}

/// What came of a container.
struct Ran {
    exit: Exit,
    out: String,
}

impl Bundle {
    fn new(script: &str) -> Bundle {
        let folder = tempfile::tempdir().unwrap();
        let bin = folder.path().join("rootfs/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::copy("/bin/busybox", bin.join("busybox")).expect("busybox-static is installed");
        for name in ["sh", "cat", "id", "sleep", "grep", "readlink", "ls", "stat", "true", "touch", "cut"] {
            symlink("busybox", bin.join(name)).unwrap();
        }
        let id = format!("launch-{}-{}", std::process::id(), folder.path().file_name().unwrap().to_string_lossy());
        let namespaces = ["pid", "ipc", "uts", "mount", "network"].map(|kind| json!({ "type": kind }));
        let config = json!({
            "ociVersion": "1.0.2",
            "root": { "path": "rootfs" },
            "hostname": "inside",
            "process": {
                "args": ["/bin/sh", "-c", script],
                "env": ["PATH=/bin"],
                "cwd": "/",
                "user": { "uid": 0, "gid": 0 },
                "noNewPrivileges": true,
            },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
            ],
            "linux": { "namespaces": namespaces, "cgroupsPath": format!("/dunnage-test/{id}") },
        });
        Bundle { folder, id, config }
    }

    fn with(mut self, pointer: &str, value: Value) -> Bundle {
        *self.config.pointer_mut(pointer).expect("the field exists") = value;
        self
    }

    fn also(mut self, object: &str, key: &str, value: Value) -> Bundle {
        self.config.pointer_mut(object).unwrap()[key] = value;
        self
    }

    fn begin(&self) -> Result<(Launch, PipeReader), String> {
        self.begin_with(None)
    }

    fn plan(&self, host: &Host) -> Result<Plan, String> {
        self.plan_of(self.config.clone(), host)
    }

    fn plan_of(&self, config: Value, host: &Host) -> Result<Plan, String> {
        let spec: Spec = serde_json::from_value(config).unwrap();
        let request = Request {
            id: self.id.clone(),
            bundle: self.folder.path().to_owned(),
            rootfs: self.folder.path().join("rootfs"),
            no_pivot: false,
            no_new_keyring: false,
            preserve_fds: 0,
            systemd: None,
        };
        Plan::create(&spec, host, &request).map_err(|error| error.to_string())
    }

    fn begin_with(&self, gate: Option<OwnedFd>) -> Result<(Launch, PipeReader), String> {
        let host = Host::detect().unwrap();
        let (io, reader) = streams();
        let launch = Launch::begin(self.plan(&host)?, io, Into::New { host: &host, gate });
        Ok((launch.map_err(|error| error.to_string())?, reader))
    }

    /// Runs a further process to its end.
    fn exec(&self, launched: &Launched, process: Value) -> Ran {
        self.try_exec(launched, process).unwrap_or_else(|error| panic!("{error}"))
    }

    fn try_exec(&self, launched: &Launched, process: Value) -> Result<Ran, String> {
        let spec: Spec = serde_json::from_value(self.config.clone()).unwrap();
        let process = serde_json::from_value(process).unwrap();
        let request =
            ExecRequest { id: &self.id, spec: &spec, process: &process, no_new_keyring: false, preserve_fds: 0 };
        let plan = Plan::exec(&request, &Host::detect().unwrap()).unwrap();
        let (io, mut reader) = streams();
        let init = launched.pidfd.try_clone().unwrap();
        let cgroup = launched.cgroup.as_ref().unwrap();
        let launch = Launch::begin(plan, io, Into::Running { cgroup, init });
        let mut launch = launch.map_err(|error| error.to_string())?;
        assert_eq!(drive(&mut launch).map_err(|error| error.to_string())?, Progress::Running);
        let further = launch.into_launched().unwrap();
        let exit = wait::child(further.pidfd.as_fd()).unwrap();
        let mut out = String::new();
        reader.read_to_string(&mut out).unwrap();
        Ok(Ran { exit, out })
    }

    fn start(&self) -> Result<(Launched, PipeReader), String> {
        let (mut launch, reader) = self.begin()?;
        assert_eq!(drive(&mut launch).map_err(|error| error.to_string())?, Progress::AtGate);
        launch.start();
        assert_eq!(drive(&mut launch).map_err(|error| error.to_string())?, Progress::Running);
        Ok((launch.into_launched().map_err(|error| error.to_string())?, reader))
    }

    fn run(&self) -> Result<Ran, String> {
        let (launched, mut reader) = self.start()?;
        let exit = wait::child(launched.pidfd.as_fd()).unwrap();
        let mut out = String::new();
        reader.read_to_string(&mut out).unwrap();
        launched.cgroup.expect("a cgroup").remove().unwrap();
        Ok(Ran { exit, out })
    }

    /// The output of a program that must succeed.
    fn says(&self) -> String {
        let ran = self.run().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(ran.exit, Exit::Code(0), "{}", ran.out);
        ran.out
    }
}

/// Where the tops of cgroup hierarchies may be: on v2 it is one, on v1 they are below.
fn hierarchies() -> impl Iterator<Item = std::path::PathBuf> {
    let top = std::path::PathBuf::from("/sys/fs/cgroup");
    let below = fs::read_dir(&top).unwrap().flatten().map(|entry| entry.path());
    below.chain([top])
}

fn streams() -> (Io, PipeReader) {
    let (reader, writer) = pipe().unwrap();
    let stdin = fs::File::open("/dev/null").unwrap().into();
    (Io::Fds { stdin, stdout: writer.try_clone().unwrap().into(), stderr: OwnedFd::from(writer) }, reader)
}

/// Ends a container that would not end by itself.
fn end(launched: Launched) {
    libcontainer::sys::process::pidfd_send_signal(launched.pidfd.as_fd(), 9).unwrap();
    assert_eq!(wait::child(launched.pidfd.as_fd()).unwrap(), Exit::Signal(9));
    launched.cgroup.unwrap().remove().unwrap();
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return; // the first complaint is the one to read
        }
        let left =
            hierarchies().map(|hierarchy| hierarchy.join("dunnage-test").join(&self.id)).filter(|dir| dir.exists());
        assert_eq!(left.collect::<Vec<_>>(), Vec::<std::path::PathBuf>::new(), "cgroups are left behind");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&*self.folder.path().to_string_lossy()), "mounts are left behind: {mounts}");
    }
}

/// The smallest driver: one launch, one process that waits.
fn drive(launch: &mut Launch) -> Result<Progress, RunError> {
    let mut wake = Wake::Readable;
    loop {
        match launch.advance(wake)? {
            Progress::Waiting => {}
            there => return Ok(there),
        }
        let wants = launch.wants();
        let pidfds = wants.exits.iter().map(|pid| libcontainer::sys::process::pidfd_open(*pid).unwrap());
        let pidfds = pidfds.collect::<Vec<_>>();
        let mut polled = pidfds.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect::<Vec<_>>();
        polled.extend(wants.readable.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let left = wants.deadline.map(|when| when.saturating_duration_since(Instant::now()));
        let timeout = left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap());
        let ready = poll(&mut polled, timeout).unwrap();
        let ended = polled.iter().take(pidfds.len()).position(|fd| fd.any() == Some(true));
        wake = match ended {
            _ if ready == 0 => Wake::Deadline,
            Some(place) if polled.last().is_none_or(|fd| wants.readable.is_none() || fd.any() != Some(true)) => {
                Wake::Exited(wants.exits[place], wait::child(pidfds[place].as_fd()).unwrap())
            }
            _ => Wake::Readable,
        };
    }
}

fn a_program_runs_and_its_status_is_known() {
    for status in [0, 1, 42, 255] {
        assert_eq!(Bundle::new(&format!("exit {status}")).run().unwrap().exit, Exit::Code(status));
    }
    // Init of a pid namespace is spared signals of its own making, so somebody else must send them.
    let bundle = Bundle::new("exec sleep 1000");
    let (launched, _reader) = bundle.start().unwrap();
    end(launched);
}

fn a_missing_program_is_found_missing_at_create() {
    let error = |args: Value| {
        let bundle = Bundle::new("").with("/process/args", args);
        let (mut launch, _reader) = bundle.begin().unwrap();
        drive(&mut launch).unwrap_err()
    };
    let missing = error(json!(["nowhere"]));
    assert!(missing.to_string().contains("exec: \"nowhere\": executable file not found in $PATH"), "{missing}");
    assert_eq!(missing.program_status(), Some(127));
    let missing = error(json!(["/bin/nowhere"])).to_string();
    assert!(missing.contains("exec: \"/bin/nowhere\": stat /bin/nowhere: no such file or directory"), "{missing}");
    let denied = error(json!(["/proc/version"]));
    assert!(denied.to_string().contains("permission denied"), "{denied}");
    assert_eq!(denied.program_status(), Some(126));
}

fn every_kind_of_failure_names_its_step_and_leaves_nothing() {
    let mount = |kind: &str, source: &str, options: Value| {
        json!([{ "destination": "/proc", "type": "proc", "source": "proc" },
               { "destination": "/mnt", "type": kind, "source": source, "options": options }])
    };
    let plain = || Bundle::new("true");
    let fifo = plain();
    let fifo_path = fifo.folder.path().join("fifo").to_string_lossy().into_owned();
    nix::unistd::mkfifo(fifo_path.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let namespace = |kind: &str, path: &str| json!([{ "type": "mount" }, { "type": kind, "path": path }]);
    let cases = [
        (plain().with("/mounts", mount("bind", "/nowhere", json!(["bind"]))), "/nowhere", "ENOENT"),
        (plain().with("/mounts", mount("nofs", "none", json!([]))), "nofs", "ENODEV"),
        (plain().with("/mounts", mount("tmpfs", "none", json!(["size=potato"]))), "tmpfs", "EINVAL"),
        (
            plain().with("/linux/namespaces", namespace("network", "/nowhere")).with("/hostname", json!("")),
            "net namespace /nowhere",
            "ENOENT",
        ),
        (
            plain().with("/linux/namespaces", namespace("network", "/proc/self/ns/pid")).with("/hostname", json!("")),
            "net namespace",
            "EINVAL",
        ),
        (
            plain()
                .with("/linux/namespaces", namespace("network", "/proc/self/ns/net"))
                .with("/hostname", json!(""))
                .also("/linux", "sysctl", json!({ "net.ipv4.ip_forward": "1" })),
            "net namespace /proc/self/ns/net",
            "the host's own",
        ),
        (
            // Its open would wait for a writer, and the runtime with it.
            fifo.with("/linux/namespaces", namespace("network", &fifo_path)).with("/hostname", json!("")),
            "net namespace",
            "EINVAL",
        ),
        (
            plain().with("/root/path", json!("rootfs")).with("/process/cwd", json!("/proc/self/exe")),
            "/proc/self/exe",
            "E",
        ),
        (
            plain().also(
                "/process",
                "rlimits",
                json!([{ "type": "RLIMIT_NOFILE", "soft": 1_u64 << 40, "hard": 1_u64 << 40 }]),
            ),
            "RLIMIT_NOFILE",
            "EPERM",
        ),
        (plain().also("/linux", "sysctl", json!({ "net.nowhere": "1" })), "/proc/sys/net/nowhere", "ENOENT"),
        (plain().also("/linux", "sysctl", json!({ "net.ipv4.ip_forward": "potato" })), "ip_forward", "EINVAL"),
        (plain().also("/linux", "resources", json!({ "memory": { "limit": 1 } })), "init ended", "memory limit"),
    ];
    for (number, (bundle, what, why)) in cases.iter().enumerate() {
        let failed = bundle.run().err().unwrap_or_else(|| panic!("case {number} does not fail"));
        println!("  {failed}");
        assert!(failed.contains(what), "case {number}: {failed}");
        assert!(failed.contains(why), "case {number}: {failed}");
        assert!(failed.contains(&format!("cannot create {}", bundle.id)) && failed.contains("(step "), "{failed}");
    }
}

fn the_process_is_what_the_spec_says() {
    let script = "id -u; id -g; id -G; umask; pwd; cat /proc/self/oom_score_adj; grep -E '^(Cap|NoNew|Seccomp:)' /proc/self/status;
        ulimit -n; cut -d' ' -f19 /proc/self/stat; echo $0 $HOME; ls /proc/self/fd; cat /proc/sys/kernel/hostname; cat /proc/sys/net/ipv4/ip_forward";
    let caps = json!(["CAP_NET_RAW", "CAP_CHOWN"]);
    let says = Bundle::new(script)
        .with("/process/user", json!({ "uid": 1000, "gid": 1001, "additionalGids": [7, 8], "umask": 0o27 }))
        .with("/process/cwd", json!("/made/here"))
        .also("/process", "oomScoreAdj", json!(77))
        .also("/process", "rlimits", json!([{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 }]))
        .also("/process", "scheduler", json!({ "policy": "SCHED_OTHER", "nice": 3 }))
        .also(
            "/process",
            "capabilities",
            json!({
                "bounding": caps, "effective": caps, "permitted": caps, "inheritable": caps, "ambient": ["CAP_CHOWN"],
            }),
        )
        .also("/linux", "sysctl", json!({ "net.ipv4.ip_forward": "1" }))
        .says();
    let lines = says.lines().collect::<Vec<_>>();
    let expected = [
        "1000",
        "1001",
        "1001 7 8",
        "0027",
        "/made/here",
        "77",
        "CapInh:\t0000000000002001",
        "CapPrm:\t0000000000000001",
        "CapEff:\t0000000000000001",
        "CapBnd:\t0000000000002001",
        "CapAmb:\t0000000000000001",
        "NoNewPrivs:\t1",
        "Seccomp:\t0",
        "100",
        "3",
        "/bin/sh /",
        "0",
        "1",
        "2",
        "3",
        "inside",
        "1",
    ];
    assert_eq!(lines, expected, "{says}");
}

fn ids_are_mapped_in_a_user_namespace() {
    let maps = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    let namespaces = ["pid", "ipc", "uts", "mount", "network", "user"].map(|kind| json!({ "type": kind }));
    let bundle = Bundle::new(
        "id -u; cat /proc/self/uid_map /proc/self/gid_map; touch /dev/x; stat -c %u /dev/x; echo hi >/dev/null",
    )
    .with("/linux/namespaces", json!(namespaces))
    .also("/linux", "uidMappings", maps.clone())
    .also("/linux", "gidMappings", maps);
    // The root is theirs; the bundle around it is ours alone, mode 0700.
    std::os::unix::fs::chown(bundle.folder.path().join("rootfs"), Some(100_000), Some(100_000)).unwrap();
    let says = bundle.says();
    let words = says.split_whitespace().collect::<Vec<_>>();
    assert_eq!(words, ["0", "0", "100000", "65536", "0", "100000", "65536", "0"], "{says}");
}

fn namespaces_are_joined_by_path() {
    let host = Bundle::new("").with("/process/args", json!(["sleep", "1000"]));
    let (launched, _reader) = host.start().unwrap();
    let path = |kind: &str| format!("/proc/{}/ns/{kind}", launched.pid);
    let namespaces = json!([
        { "type": "mount" }, { "type": "pid", "path": path("pid") }, { "type": "network", "path": path("net") },
        { "type": "ipc", "path": path("ipc") }, { "type": "uts", "path": path("uts") },
    ]);
    let script = "for kind in pid net ipc uts; do readlink /proc/self/ns/$kind; done; cat /proc/1/cmdline";
    let says = Bundle::new(script).with("/linux/namespaces", namespaces).with("/hostname", json!("")).says();
    let theirs = ["pid", "net", "ipc", "uts"].map(|kind| fs::read_link(path(kind)).unwrap());
    for (line, link) in says.lines().zip(&theirs) {
        assert_eq!(line, link.to_string_lossy());
    }
    assert!(says.ends_with("sleep\u{0}1000\u{0}"), "{says:?}");
    end(launched);
    // We ourselves are where we were: our next child is born in our own pid namespace.
    assert_eq!(fs::read_link("/proc/self/ns/pid").unwrap(), fs::read_link("/proc/self/ns/pid_for_children").unwrap());
}

fn time_is_shifted_in_a_time_namespace() {
    let namespaces = ["pid", "ipc", "uts", "mount", "network", "time"].map(|kind| json!({ "type": kind }));
    let offsets = json!({ "boottime": { "secs": 1_000_000, "nanosecs": 0 } });
    let bundle = Bundle::new("cat /proc/uptime").with("/linux/namespaces", json!(namespaces));
    let says = bundle.also("/linux", "timeOffsets", offsets).says();
    let seconds = says.split('.').next().and_then(|seconds| seconds.parse::<u64>().ok()).unwrap();
    assert!(seconds >= 1_000_000, "{says}");
    let own = Pid::this();
    assert_eq!(
        fs::read_link(format!("/proc/{own}/ns/time")).unwrap(),
        fs::read_link(format!("/proc/{own}/ns/time_for_children")).unwrap()
    );
}

fn a_joined_user_namespace_owns_what_is_made_in_it() {
    let maps = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    let all = ["pid", "ipc", "uts", "mount", "network", "user"].map(|kind| json!({ "type": kind }));
    let owned = |bundle: Bundle| {
        for path in [bundle.folder.path().to_owned(), bundle.folder.path().join("rootfs")] {
            std::os::unix::fs::chown(&path, Some(100_000), Some(100_000)).unwrap();
        }
        bundle
    };
    let host = owned(Bundle::new("exec sleep 1000").with("/linux/namespaces", json!(all)));
    let host = host.also("/linux", "uidMappings", maps.clone()).also("/linux", "gidMappings", maps);
    let (launched, _reader) = host.start().unwrap();
    let path = |kind: &str| format!("/proc/{}/ns/{kind}", launched.pid);
    let namespaces = json!([
        { "type": "user", "path": path("user") }, { "type": "network", "path": path("net") },
        { "type": "mount" }, { "type": "pid" }, { "type": "ipc" }, { "type": "uts" },
    ]);
    let script =
        "id -u; echo $$; readlink /proc/self/ns/user; readlink /proc/self/ns/net; cat /proc/sys/kernel/hostname";
    let says = owned(Bundle::new(script).with("/linux/namespaces", namespaces)).says();
    let (user, net) = (fs::read_link(path("user")).unwrap(), fs::read_link(path("net")).unwrap());
    let expected = ["0", "1", &user.to_string_lossy(), &net.to_string_lossy(), "inside"].map(str::to_owned);
    assert_eq!(says.lines().collect::<Vec<_>>(), expected);
    end(launched);
}

fn a_new_user_namespace_joins_what_the_host_owns() {
    let other = Bundle::new("exec sleep 1000");
    let (launched, _reader) = other.start().unwrap();
    let path = |kind: &str| format!("/proc/{}/ns/{kind}", launched.pid);
    let namespaces = json!([
        { "type": "user" }, { "type": "network", "path": path("net") }, { "type": "ipc", "path": path("ipc") },
        { "type": "mount" }, { "type": "pid" }, { "type": "uts" },
    ]);
    let maps = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    let script = "id -u; echo $$; readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; cat /proc/self/uid_map
        cat /proc/self/oom_score_adj; ulimit -n";
    let bundle = Bundle::new(script).with("/linux/namespaces", namespaces);
    let limits = json!([{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 }]);
    let bundle = bundle.also("/process", "oomScoreAdj", json!(77)).also("/process", "rlimits", limits);
    let bundle = bundle.also("/linux", "uidMappings", maps.clone()).also("/linux", "gidMappings", maps);
    std::os::unix::fs::chown(bundle.folder.path().join("rootfs"), Some(100_000), Some(100_000)).unwrap();
    let says = bundle.says();
    let (net, ipc) = (fs::read_link(path("net")).unwrap(), fs::read_link(path("ipc")).unwrap());
    let expected = format!("0 1 {} {} 0 100000 65536 77 100", net.display(), ipc.display());
    assert_eq!(says.split_whitespace().collect::<Vec<_>>().join(" "), expected);
    end(launched);
}

fn a_further_process_joins_everything() {
    let bundle = Bundle::new("").with("/process/args", json!(["sleep", "1000"]));
    let bundle = bundle.with("/process/user", json!({ "uid": 0, "gid": 0 }));
    let (launched, _reader) = bundle.start().unwrap();
    let script = "id -u; cat /proc/sys/kernel/hostname; cat /proc/1/cmdline; echo; cat /proc/self/cgroup; ls /proc/self/fd; exit 7";
    let process = json!({
        "args": ["sh", "-c", script], "env": ["PATH=/bin"], "cwd": "/bin", "user": { "uid": 1000, "gid": 1000 },
    });
    let ran = bundle.exec(&launched, process);
    assert_eq!(ran.exit, Exit::Code(7), "{}", ran.out);
    let lines = ran.out.lines().collect::<Vec<_>>();
    assert_eq!(lines[..3], ["1000", "inside", "sleep\u{0}1000\u{0}"]);
    let cgroups = lines[3..].iter().filter(|line| line.contains("/dunnage-test/")).count();
    let theirs = fs::read_to_string(format!("/proc/{}/cgroup", launched.pid)).unwrap();
    assert_eq!(cgroups, theirs.lines().filter(|line| line.contains("/dunnage-test/")).count());
    assert!(ran.out.ends_with("\n0\n1\n2\n3\n"), "{}", ran.out);
    assert_eq!(fs::read_link("/proc/self/ns/pid").unwrap(), fs::read_link("/proc/self/ns/pid_for_children").unwrap());
    end(launched);
}

fn a_terminal_is_the_containers_own() {
    let bundle =
        Bundle::new("readlink /proc/self/fd/0; stty size; stat -c %u $(readlink /proc/self/fd/0); ls -d /dev/console");
    symlink("busybox", bundle.folder.path().join("rootfs/bin/stty")).unwrap();
    let bundle = bundle
        .also("/process", "terminal", json!(true))
        .also("/process", "consoleSize", json!({ "width": 91, "height": 17 }))
        .with("/process/user", json!({ "uid": 1000, "gid": 1000 }))
        .with("/mounts", json!([
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666", "mode=0620"] },
        ]));
    let host = Host::detect().unwrap();
    let mut launch =
        Launch::begin(bundle.plan(&host).unwrap(), Io::Terminal, Into::New { host: &host, gate: None }).unwrap();
    assert_eq!(drive(&mut launch).unwrap(), Progress::AtGate);
    let mut master = fs::File::from(launch.console().expect("a terminal"));
    launch.start();
    assert_eq!(drive(&mut launch).unwrap(), Progress::Running);
    let launched = launch.into_launched().unwrap();
    let mut out = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = master.read(&mut buffer) {
        out.extend_from_slice(&buffer[..read]); // EIO: the last one in there has gone
    }
    assert_eq!(wait::child(launched.pidfd.as_fd()).unwrap(), Exit::Code(0));
    assert_eq!(String::from_utf8_lossy(&out), "/dev/pts/0\r\n17 91\r\n1000\r\n/dev/console\r\n");
    launched.cgroup.unwrap().remove().unwrap();
}

/// Hooks that append their name, their root's look and their state's status to a file outside the container.
fn hook(log: &std::path::Path, name: &str) -> Value {
    let script = format!(
        "s=$(cat); echo {name} $([ -e /bin/busybox-only ] && echo inside || echo outside) \
         $(echo \"$s\" | grep -o '\"status\":\"[a-z]*\"') $(echo \"$s\" | grep -o '\"pid\":[0-9]*') >>{}",
        log.display()
    );
    json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"] }])
}

fn hooks_run_in_order_where_the_spec_says() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let bundle = Bundle::new("cat /startlog; exec sleep 1000");
    let rootfs = bundle.folder.path().join("rootfs");
    fs::write(rootfs.join("bin/busybox-only"), "").unwrap();
    let bundle = bundle.also(
        "",
        "hooks",
        json!({
            "prestart": hook(log.path(), "prestart"),
            "createRuntime": hook(log.path(), "createRuntime"),
            "createContainer": hook(log.path(), "createContainer"),
            "startContainer": hook("/startlog".as_ref(), "startContainer"),
            "poststart": hook(log.path(), "poststart"),
        }),
    );
    let (launched, reader) = bundle.start().unwrap();
    let (pid, mut reader, mut inside) = (launched.pid, BufReader::new(reader), String::new());
    reader.read_line(&mut inside).unwrap();
    end(launched);
    reader.read_to_string(&mut inside).unwrap();
    assert_eq!(inside, format!("startContainer inside \"status\":\"created\" \"pid\":{pid}\n"));
    let outside = fs::read_to_string(log.path()).unwrap();
    let expected = [
        ("prestart", "creating"),
        ("createRuntime", "creating"),
        ("createContainer", "creating"),
        ("poststart", "running"),
    ]
    .map(|(name, status)| format!("{name} outside \"status\":\"{status}\" \"pid\":{pid}"));
    assert_eq!(outside.lines().collect::<Vec<_>>(), expected);
}

fn a_failing_hook_undoes_the_container() {
    for kind in ["prestart", "createRuntime", "createContainer", "startContainer", "poststart"] {
        let failing = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "echo because of $0 >&2; exit 3"] }]);
        let bundle = Bundle::new("exec sleep 1000").also("", "hooks", json!({ kind: failing }));
        let error = bundle.run().err().unwrap_or_else(|| panic!("{kind} must fail"));
        assert!(error.contains(&format!("{kind} hook /bin/sh")) && error.contains("because of sh"), "{error}");
        let late = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "exec sleep 1000"], "env": ["PATH=/bin:/usr/bin"], "timeout": 1 }]);
        let bundle = Bundle::new("exec sleep 1000").also("", "hooks", json!({ kind: late }));
        let error = bundle.run().err().unwrap_or_else(|| panic!("{kind} must time out"));
        assert!(error.contains("timeout") || error.contains("ETIMEDOUT"), "{error}");
    }
}

fn a_gate_lets_another_process_start_it() {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
    let bundle = Bundle::new("exit 9");
    let path = bundle.folder.path().join("start.sock");
    let new_socket = || socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let gate = new_socket();
    bind(gate.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    listen(&gate, Backlog::new(1).unwrap()).unwrap();
    let (mut launch, _reader) = bundle.begin_with(Some(gate)).unwrap();
    assert_eq!(drive(&mut launch).unwrap(), Progress::AtGate);
    let launched = launch.into_launched().unwrap();
    // A start that is killed before it says go changes nothing.
    let given_up = new_socket();
    connect(given_up.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    drop(given_up);
    let wire = new_socket();
    connect(wire.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    let plan = bundle.plan(&Host::detect().unwrap()).unwrap();
    let mut launch = Launch::resume(plan, launched.pid, wire).unwrap();
    launch.start();
    assert_eq!(drive(&mut launch).unwrap(), Progress::Running);
    let resumed = launch.into_launched().unwrap();
    assert_eq!(wait::child(resumed.pidfd.as_fd()).unwrap(), Exit::Code(9));
    launched.cgroup.unwrap().remove().unwrap();
}

fn a_filter_holds_for_the_program_and_what_joins_it() {
    let filter = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 71 }],
    });
    for no_new_privileges in [true, false] {
        let bundle = Bundle::new("mkdir /x; grep Seccomp: /proc/self/status; exec sleep 1000");
        symlink("busybox", bundle.folder.path().join("rootfs/bin/mkdir")).unwrap();
        let bundle =
            bundle.also("/linux", "seccomp", filter.clone()).with("/process/noNewPrivileges", json!(no_new_privileges));
        let (launched, mut reader) = bundle.start().unwrap();
        let process =
            json!({ "args": ["mkdir", "/x"], "env": ["PATH=/bin"], "cwd": "/", "user": { "uid": 0, "gid": 0 } });
        let ran = bundle.exec(&launched, process);
        let lines = std::io::BufReader::new(&mut reader).lines().take(2);
        let out = lines.collect::<Result<Vec<_>, _>>().unwrap().join("\n");
        end(launched);
        assert!(out.contains("Protocol error") && out.contains("Seccomp:\t2"), "{out}");
        assert!(ran.out.contains("Protocol error") && ran.exit == Exit::Code(1), "{}", ran.out);
    }
}

fn a_seccomp_agent_gets_its_listener() {
    for no_new_privileges in [true, false] {
        let bundle = Bundle::new("exec sleep 1000");
        let path = bundle.folder.path().join("agent.sock");
        let agent = std::os::unix::net::UnixListener::bind(&path).unwrap();
        // Nobody answers, so the profile must only hold up what this program does not call.
        let filter = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path, "listenerMetadata": "for the agent",
            "syscalls": [{ "names": ["swapoff"], "action": "SCMP_ACT_NOTIFY" }],
        });
        let bundle =
            bundle.also("/linux", "seccomp", filter).with("/process/noNewPrivileges", json!(no_new_privileges));
        let (launched, _reader) = bundle.start().unwrap();
        let (connection, _) = agent.accept().unwrap();
        let mut document = [0; 4096];
        let (length, listener) = libcontainer::sys::socket::receive(connection.as_fd(), &mut document, true).unwrap();
        let document: Value = serde_json::from_slice(&document[..length]).unwrap();
        assert_eq!(document["pid"], launched.pid.as_raw());
        assert_eq!(document["metadata"], "for the agent");
        assert_eq!(document["state"]["id"], bundle.id);
        let listener = listener.expect("the descriptor travels with the document");
        let link = fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap();
        assert_eq!(link.to_string_lossy(), "anon_inode:seccomp notify");
        end(launched);
    }
}

/// What a program says before a line with `done`.
fn said(reader: &mut PipeReader) -> String {
    let lines = std::io::BufReader::new(reader).lines().map(Result::unwrap).take_while(|line| line != "done");
    lines.map(|line| line + "\n").collect()
}

fn a_process_without_capabilities_has_none() {
    let bundle = Bundle::new("grep ^Cap /proc/self/status; echo done; exec sleep 1000");
    let (launched, mut reader) = bundle.start().unwrap();
    let process = json!({
        "args": ["grep", "^Cap", "/proc/self/status"], "env": ["PATH=/bin"], "cwd": "/", "user": { "uid": 0, "gid": 0 },
    });
    let ran = bundle.exec(&launched, process);
    let out = said(&mut reader);
    end(launched);
    for out in [out, ran.out] {
        let sets = out.lines().map(|line| line.split_whitespace().nth(1).unwrap_or(line));
        assert_eq!(sets.collect::<Vec<_>>(), ["0000000000000000"; 5], "{out}");
    }
}

fn a_cgroup_namespace_begins_at_the_containers_cgroup() {
    let maps = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    for kinds in [&["pid", "mount", "uts", "cgroup"][..], &["pid", "mount", "uts", "cgroup", "user"]] {
        let namespaces = kinds.iter().map(|kind| json!({ "type": kind })).collect::<Vec<_>>();
        let script = "cat /proc/self/cgroup; echo done; exec sleep 1000";
        let mut bundle = Bundle::new(script).with("/linux/namespaces", json!(namespaces));
        if kinds.contains(&"user") {
            bundle = bundle.also("/linux", "uidMappings", maps.clone()).also("/linux", "gidMappings", maps.clone());
            for path in [bundle.folder.path().to_owned(), bundle.folder.path().join("rootfs")] {
                std::os::unix::fs::chown(&path, Some(100_000), Some(100_000)).unwrap();
            }
        }
        let (launched, mut reader) = bundle.start().unwrap();
        let process = json!({
            "args": ["cat", "/proc/self/cgroup"], "env": ["PATH=/bin"], "cwd": "/", "user": { "uid": 0, "gid": 0 },
        });
        let ran = bundle.exec(&launched, process);
        let theirs = fs::read_to_string(format!("/proc/{}/cgroup", launched.pid)).unwrap();
        let out = said(&mut reader);
        end(launched);
        for out in [out, ran.out] {
            for (inside, outside) in out.lines().zip(theirs.lines()).filter(|(_, line)| line.contains(&bundle.id)) {
                assert!(inside.ends_with(":/"), "{outside} is {inside} inside");
            }
            assert_eq!(out.lines().count(), theirs.lines().count(), "{out} of {theirs}");
        }
    }
}

fn limits_hold_before_a_further_process_runs() {
    let maps = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    let all = ["pid", "ipc", "uts", "mount", "network", "user"].map(|kind| json!({ "type": kind }));
    let bundle = Bundle::new("exec sleep 1000").with("/linux/namespaces", json!(all));
    let bundle = bundle.also("/linux", "uidMappings", maps.clone()).also("/linux", "gidMappings", maps);
    for path in [bundle.folder.path().to_owned(), bundle.folder.path().join("rootfs")] {
        std::os::unix::fs::chown(&path, Some(100_000), Some(100_000)).unwrap();
    }
    let (launched, _reader) = bundle.start().unwrap();
    let process = json!({
        "args": ["sh", "-c", "cat /proc/self/oom_score_adj; ulimit -n"], "env": ["PATH=/bin"], "cwd": "/",
        "user": { "uid": 0, "gid": 0 }, "oomScoreAdj": 500,
        "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 77, "hard": 77 }],
    });
    // The runtime is not asked again between clone and exec: nothing it would do could come in time.
    for _ in 0..20 {
        assert_eq!(bundle.exec(&launched, process.clone()).out, "500\n77\n");
    }
    end(launched);
}

fn a_further_process_has_the_containers_keyring() {
    let bundle = Bundle::new("exec sleep 1000");
    let (launched, _reader) = bundle.start().unwrap();
    // To another user than their owner, session keyrings show only if they are its own. One who has no others.
    let process = json!({ "args": ["cat", "/proc/keys"], "env": ["PATH=/bin"], "cwd": "/", "user": { "uid": 54321, "gid": 54321 } });
    let ran = bundle.exec(&launched, process);
    end(launched);
    let keyrings = ran.out.lines().filter(|line| line.contains("_ses.")).collect::<Vec<_>>();
    assert!(keyrings.len() == 1 && keyrings[0].contains(&bundle.id), "{}", ran.out);
}

fn a_further_process_inherits_what_it_does_not_say() {
    let caps = json!(["CAP_NET_RAW"]);
    let bundle = Bundle::new("exec sleep 1000")
        .also("/process", "capabilities", json!({ "bounding": caps, "effective": caps, "permitted": caps }))
        .also("/process", "rlimits", json!([{ "type": "RLIMIT_NOFILE", "soft": 88, "hard": 88 }]))
        .also("/linux", "personality", json!({ "domain": "LINUX32" }));
    symlink("busybox", bundle.folder.path().join("rootfs/bin/uname")).unwrap();
    let (launched, _reader) = bundle.start().unwrap();
    let script = "grep -E '^(CapEff|NoNew)' /proc/self/status; ulimit -n; uname -m";
    let process =
        json!({ "args": ["sh", "-c", script], "env": ["PATH=/bin"], "cwd": "/", "user": { "uid": 0, "gid": 0 } });
    let ran = bundle.exec(&launched, process);
    end(launched);
    let machine = if cfg!(target_arch = "x86_64") { "i686" } else { "armv8l" };
    assert_eq!(ran.out, format!("CapEff:\t0000000000002000\nNoNewPrivs:\t1\n88\n{machine}\n"));
}

fn a_profile_need_not_allow_what_only_we_do() {
    // Enough for busybox to print a line, and nothing a container runtime could use.
    let names = [
        "execve",
        "write",
        "exit_group",
        "brk",
        "mmap",
        "munmap",
        "mprotect",
        "arch_prctl",
        "set_tid_address",
        "set_robust_list",
        "rseq",
        "prlimit64",
        "readlink",
        "readlinkat",
        "getrandom",
        "getuid",
        "prctl",
    ];
    let filter = json!({
        "defaultAction": "SCMP_ACT_KILL_PROCESS", "syscalls": [{ "names": names, "action": "SCMP_ACT_ALLOW" }],
    });
    let bundle = Bundle::new("").with("/process/args", json!(["/bin/busybox", "echo", "heard"]));
    let bundle = bundle.also("/linux", "seccomp", filter);
    assert_eq!(bundle.says(), "heard\n");
    // And what fails then is still heard of.
    let bundle = bundle.with("/process/args", json!(["/bin/script"]));
    let script = bundle.folder.path().join("rootfs/bin/script");
    fs::write(&script, "#!/nowhere\n").unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let error = bundle.run().err().expect("it has no interpreter");
    assert!(error.contains("exec: \"/bin/script\": no such file or directory"), "{error}");
}

//! Containers whose cgroups systemd makes. Most of this needs a host that systemd runs; `DUNNAGE_TEST_SYSTEMD=must` says
//! that this is one. What becomes of a container when systemd is not there, or does not answer, is seen anywhere.

use super::*;

/// Whether systemd runs this host; says so if that keeps a test from being run.
fn is_there(test: &str) -> bool {
    let there = Path::new("/run/systemd/system").is_dir();
    let must = std::env::var_os("DUNNAGE_TEST_SYSTEMD").is_some_and(|must| must == "must");
    assert!(there || !must, "DUNNAGE_TEST_SYSTEMD=must, and systemd does not run this host");
    if !there {
        eprintln!("SKIPPED: {test} needs a host that systemd runs");
    }
    there
}

fn systemctl(args: &[&str]) -> String {
    let output = Command::new("systemctl").args(args).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A bundle that is to be the unit `test-ID.scope` of `slice`.
struct Unit {
    bundle: Bundle,
    name: String,
}

impl Unit {
    fn new(args: &[&str], slice: &str) -> Unit {
        let bundle = Bundle::new(args);
        let path = format!("{slice}:test:{}", bundle.id);
        let name = format!("test-{}.scope", bundle.id);
        Unit { bundle: bundle.with("/linux", "cgroupsPath", json!(path)), name }
    }

    fn with(self, object: &str, key: &str, value: Value) -> Unit {
        Unit { bundle: self.bundle.with(object, key, value), ..self }
    }

    fn start(&self) {
        self.bundle.says(&["--systemd-cgroup", "run", "--detach", "ID"]);
    }

    fn property(&self, name: &str) -> String {
        systemctl(&["show", "--value", "-p", name, &self.name])
    }

    /// The folder of its cgroup, with this controller.
    fn folder(&self, controller: &str) -> PathBuf {
        let path = self.property("ControlGroup");
        assert!(path.ends_with(&self.name), "the unit has no cgroup: {path:?}");
        let v1 = Path::new("/sys/fs/cgroup").join(controller);
        let mount = if v1.is_dir() { v1 } else { "/sys/fs/cgroup".into() };
        mount.join(path.trim_start_matches('/'))
    }

    fn file(&self, controller: &str, v1: &str, v2: &str) -> String {
        let folder = self.folder(controller);
        let text = fs::read_to_string(folder.join(v1)).or_else(|_| fs::read_to_string(folder.join(v2)));
        text.unwrap_or_else(|error| panic!("{} {v1} {v2}: {error}", folder.display())).trim().to_owned()
    }

    /// Neither systemd, not even as failed, nor the kernel knows of it any more.
    fn is_gone(&self) {
        self.bundle.nothing_is_left();
        // Who deletes waits 2 s at most, and leaves an empty unit to systemd.
        let known = || systemctl(&["list-units", "--all", "--no-legend", "--plain", &self.name]);
        eventually("systemd forgets the unit", || known().is_empty());
        let found = Command::new("find").args(["/sys/fs/cgroup", "-name", &self.name]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    }
}

fn limits() -> Value {
    json!({
        "memory": { "limit": 33_554_432, "reservation": 16_777_216 },
        "cpu": { "shares": 512, "quota": 50_500, "period": 100_000, "cpus": "0" },
        "pids": { "limit": 50 },
    })
}

pub(super) fn a_container_is_a_scope_whose_limits_survive_a_reload() {
    if !is_there("a_container_is_a_scope_whose_limits_survive_a_reload") {
        return;
    }
    let slice = format!("test{}-below.slice", std::process::id());
    let annotations = json!({
        "org.systemd.property.TimeoutStopSec": "7",
        "org.systemd.property.CollectMode": "'inactive'",
    });
    let unit = Unit::new(&["sleep", "1000"], &slice).with("/linux", "resources", limits());
    let unit = unit.with("", "annotations", annotations);
    unit.start();
    for (property, value) in [
        ("Slice", slice.as_str()),
        ("Delegate", "yes"),
        ("DefaultDependencies", "no"),
        ("TasksMax", "50"),
        ("CPUQuotaPerSecUSec", "510ms"),
        ("TimeoutStopUSec", "7s"),
        ("CollectMode", "inactive"),
        ("ActiveState", "active"),
        ("Description", &format!("dunnage container {}", unit.bundle.id)),
    ] {
        assert_eq!(unit.property(property), value, "{property}");
    }
    let look = || {
        [
            unit.file("memory", "memory.limit_in_bytes", "memory.max"),
            unit.file("pids", "pids.max", "pids.max"),
            unit.file("cpuset", "cpuset.cpus", "cpuset.cpus"),
            unit.file("cpu", "cpu.shares", "cpu.weight"),
        ]
    };
    let weight = if Path::new("/sys/fs/cgroup/cpu").is_dir() { "512" } else { "59" };
    assert_eq!(look(), ["33554432", "50", "0", weight]);
    let quota = unit.file("cpu", "cpu.cfs_quota_us", "cpu.max");
    assert_eq!(quota.split(' ').next(), Some("50500"), "in the file it is exact");
    let pid = unit.bundle.state()["pid"].to_string();
    assert_eq!(unit.file("pids", "cgroup.procs", "cgroup.procs"), pid);
    systemctl(&["daemon-reload"]);
    assert_eq!(look(), ["33554432", "50", "0", weight]);
    unit.bundle.says(&["delete", "--force", "ID"]);
    unit.is_gone();
    systemctl(&["stop", &slice, &slice.replace("-below", "")]);
}

pub(super) fn a_unit_is_lived_with_as_any_container() {
    if !is_there("a_unit_is_lived_with_as_any_container") {
        return;
    }
    let unit = Unit::new(&["sleep", "1000"], "").with("/linux", "resources", limits());
    unit.bundle.says(&["--systemd-cgroup", "create", "ID"]);
    assert_eq!(unit.property("Slice"), "system.slice");
    assert_eq!(unit.bundle.status(), "created");
    unit.bundle.says(&["start", "ID"]);
    assert_eq!(unit.bundle.status(), "running");
    unit.bundle.says(&["exec", "--detach", "ID", "sleep", "1000"]);
    assert_eq!(unit.file("pids", "cgroup.procs", "cgroup.procs").lines().count(), 2);
    // Nothing is written to a device that it may not use.
    assert_eq!(unit.bundle.says(&["exec", "ID", "sh", "-c", "cat /dev/null && echo fine"]), "fine\n");
    unit.bundle.kill();
    // Its scope ends with it; or the other process keeps it.
    unit.bundle.says(&["delete", "ID"]);
    unit.is_gone();
}

pub(super) fn a_container_can_be_a_slice() {
    if !is_there("a_container_can_be_a_slice") {
        return;
    }
    let unit = Unit::new(&["sleep", "1000"], "");
    let name = format!("alone{}.slice", std::process::id());
    let bundle = unit.bundle.with("/linux", "cgroupsPath", json!(format!("::{name}")));
    let unit = Unit { bundle: bundle.with("/linux", "resources", limits()), name };
    unit.start();
    for (property, value) in [("ActiveState", "active"), ("TasksMax", "50"), ("CPUQuotaPerSecUSec", "510ms")] {
        assert_eq!(unit.property(property), value, "{property}");
    }
    assert_eq!(unit.file("pids", "pids.max", "pids.max"), "50");
    let pid = unit.bundle.state()["pid"].to_string();
    assert_eq!(unit.file("pids", "cgroup.procs", "cgroup.procs"), pid);
    unit.bundle.says(&["delete", "--force", "ID"]);
    unit.is_gone();
}

pub(super) fn a_name_can_be_used_again_at_once() {
    if !is_there("a_name_can_be_used_again_at_once") {
        return;
    }
    let unit = Unit::new(&["true"], "");
    for _ in 0..10 {
        assert!(unit.bundle.run(&["--systemd-cgroup", "run", "ID"]).status.success());
    }
    unit.is_gone();
    let unit = Unit::new(&["sleep", "1000"], "");
    for _ in 0..5 {
        unit.start();
        unit.bundle.says(&["delete", "--force", "ID"]);
    }
    unit.is_gone();
}

pub(super) fn a_unit_of_that_name_is_taken_only_if_it_has_failed() {
    if !is_there("a_unit_of_that_name_is_taken_only_if_it_has_failed") {
        return;
    }
    let unit = Unit::new(&["true"], "");
    let scope = |args: &[&str]| {
        let mut command = Command::new("systemd-run");
        command.args(["--scope", "--unit", &unit.name]).args(args).stderr(Stdio::null()).stdin(Stdio::null());
        command
    };
    scope(&["-p", "RuntimeMaxSec=1", "sleep", "100"]).status().unwrap();
    // It hears of the end from the kernel, as we do.
    eventually("the unit has failed", || systemctl(&["is-failed", &unit.name]) == "failed");
    assert!(unit.bundle.run(&["--systemd-cgroup", "run", "ID"]).status.success());
    unit.is_gone();
    let mut other = scope(&["sleep", "1000"]).stdout(Stdio::null()).spawn().unwrap();
    eventually("the other is there", || systemctl(&["is-active", &unit.name]) == "active");
    let (_, refused) = unit.bundle.refuses(&["--systemd-cgroup", "run", "ID"]);
    // On v1 the directories are found to be in use before systemd is asked.
    let v1 = refused.contains("it exists and holds 1 process(es)");
    assert!(v1 || refused.contains(&format!("start unit {} of systemd (step ", unit.name)), "{refused}");
    assert!(refused.contains("choose another linux.cgroupsPath"), "{refused}");
    unit.bundle.says(&["delete", "--force", "ID"]);
    assert_eq!(systemctl(&["is-active", &unit.name]), "active", "it is another's");
    other.kill().unwrap();
    other.wait().unwrap();
    eventually("the other is gone", || systemctl(&["is-active", &unit.name]) != "active");
    unit.is_gone();
}

pub(super) fn what_dies_of_memory_leaves_no_failed_unit() {
    if !is_there("what_dies_of_memory_leaves_no_failed_unit") {
        return;
    }
    let limit = json!({ "memory": { "limit": 8_388_608, "swap": 8_388_608 } });
    let unit = Unit::new(&["sh", "-c", "x=x; while :; do x=$x$x; done"], "").with("/linux", "resources", limit);
    assert_eq!(unit.bundle.run(&["--systemd-cgroup", "run", "ID"]).status.code(), Some(137));
    unit.is_gone();
    let tiny = json!({ "memory": { "limit": 4096 } });
    let unit = Unit::new(&["true"], "").with("/linux", "resources", tiny);
    let (_, died) = unit.bundle.refuses(&["--systemd-cgroup", "run", "ID"]);
    // Whether the memory is named depends on who is faster: systemd removes the cgroup with its last process.
    assert!(died.contains("killed by signal 9"), "{died}");
    unit.is_gone();
}

pub(super) fn without_a_bus_systemd_is_asked_directly() {
    if !is_there("without_a_bus_systemd_is_asked_directly") {
        return;
    }
    let unit = Unit::new(&["true"], "");
    // Hidden from this command alone.
    let hidden = "mount -t tmpfs none /run/dbus && exec \"$@\"";
    let mut run = Command::new("unshare");
    run.args(["--mount", "sh", "-c", hidden, "sh", OURS, "--systemd-cgroup", "--root"]).arg(unit.bundle.path("root"));
    let ran = run.args(["run", &unit.bundle.id]).current_dir(unit.bundle.folder.path()).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    unit.is_gone();
}

/// A bundle, and the bus that its commands are to use.
fn elsewhere() -> (Bundle, UnixListener, String) {
    let bundle = Bundle::new(&["true"]);
    let path = format!("system.slice:test:{}", bundle.id);
    let bundle = bundle.with("/linux", "cgroupsPath", json!(path));
    let socket = bundle.path("bus");
    let listener = UnixListener::bind(&socket).unwrap();
    (bundle, listener, format!("unix:path={}", socket.display()))
}

/// As `nothing_is_left`, for cgroups that would be where systemd has them.
fn no_cgroup_is_left(bundle: &Bundle) {
    bundle.nothing_is_left();
    let name = format!("test-{}.scope", bundle.id);
    let found = Command::new("find").args(["/sys/fs/cgroup", "-maxdepth", "4", "-name", &name]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}

pub(super) fn where_no_systemd_is_the_error_says_where_it_was_looked_for() {
    let (bundle, listener, address) = elsewhere();
    drop(listener);
    // A file refuses who connects, whoever else has the listener for a moment: a process that another test starts.
    fs::remove_file(bundle.path("bus")).unwrap();
    fs::write(bundle.path("bus"), "").unwrap();
    let mut run = bundle.command(&["--systemd-cgroup", "run", "ID"]);
    let output = run.env("DBUS_SYSTEM_BUS_ADDRESS", &address).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    for words in ["(step ", "there is no systemd to ask (", "/bus: ECONNREFUSED", "turn the systemd cgroup driver off"]
    {
        assert!(text.contains(words), "{text}");
    }
    no_cgroup_is_left(&bundle);
}

pub(super) fn a_bus_that_says_nothing_holds_nobody_for_ever_and_nothing_is_left() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let (bundle, listener, address) = elsewhere();
        let mut run = bundle.command(&["--systemd-cgroup", "run", "ID"]);
        let run = run.env("DBUS_SYSTEM_BUS_ADDRESS", &address).stderr(Stdio::piped());
        let mut run = run.spawn().unwrap();
        // Somebody connects, is not answered, and is told to end.
        let (mut connection, _) = listener.accept().unwrap();
        let mut greeting = [0; 20];
        connection.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"\0AUTH EXTERNAL\r\nDATA");
        kill(Pid::from_raw(run.id().cast_signed()), signal).unwrap();
        let status = run.wait().unwrap();
        if signal == Signal::SIGTERM {
            let mut text = String::new();
            run.stderr.take().unwrap().read_to_string(&mut text).unwrap();
            assert!(status.code() == Some(1) && text.contains("interrupted by a signal"), "{text}");
        }
        bundle.says(&["delete", "--force", "ID"]);
        no_cgroup_is_left(&bundle);
    }
}

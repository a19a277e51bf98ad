//! Containers whose cgroups systemd makes, under containerd. They run where systemd runs the host, and anywhere else say
//! that they do not: `scripts/vm systemd` is such a host.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use dunnage_tests::{Alone, Case, Run, alone, case_of_ours, case_under_systemd, eventually, process, under_systemd};
use serde_json::json;

/// A container that is to be a unit of systemd.
struct Unit<'c> {
    case: &'c Case,
    id: &'static str,
    name: String,
    flags: Vec<String>,
}

impl<'c> Unit<'c> {
    fn new(case: &'c Case, id: &'static str) -> Self {
        let options = case.file("options.toml", "SystemdCgroup = true");
        let path = format!("system.slice:{}:{id}", case.name);
        let name = format!("{}-{id}.scope", case.name);
        let flags = ["--runtime-config-path".into(), options.display().to_string(), "--cgroup".into(), path];
        Self { case, id, name, flags: flags.into() }
    }

    fn flags(&self) -> Vec<&str> {
        self.flags.iter().map(String::as_str).collect()
    }

    fn run(&self, command: &[&str]) -> Run<'c> {
        self.case.run(self.id, command).flags(self.flags())
    }

    fn property(&self, name: &str) -> String {
        property(&self.name, name)
    }

    /// The folder of its cgroup in the hierarchy by which systemd knows it.
    fn folder(&self) -> PathBuf {
        let path = self.property("ControlGroup");
        assert!(path.ends_with(&self.name), "the unit has no cgroup: {path:?}");
        let mounts = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup"];
        let mount = mounts.map(Path::new).into_iter().find(|mount| mount.is_dir()).expect("cgroups");
        mount.join(path.trim_start_matches('/'))
    }

    /// Neither systemd, not even as failed, nor the kernel knows of it.
    fn is_gone(&self) {
        is_gone(&self.name);
    }
}

fn property(unit: &str, name: &str) -> String {
    systemctl(&["show", "--value", "-p", name, unit])
}

fn is_gone(unit: &str) {
    // Who deletes waits 2 s at most, and leaves an empty unit to systemd, which may be reloading for another test.
    let known = || systemctl(&["list-units", "--all", "--no-legend", "--plain", unit]);
    eventually("systemd to forget a unit", || known().is_empty().then_some(()));
    let found = Command::new("find").args(["/sys/fs/cgroup", "-name", unit]).output().expect("find");
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}

fn systemctl(args: &[&str]) -> String {
    let output = Command::new("systemctl").args(args).output().expect("systemctl");
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

#[test]
fn a_container_lives_as_a_scope() {
    case_under_systemd(|c| {
        let unit = Unit::new(c, "scoped");
        let pid = c.idle("scoped", &[unit.flags(), vec!["--memory-limit", "67108864"]].concat());
        for (property, value) in
            [("ActiveState", "active"), ("Slice", "system.slice"), ("Delegate", "yes"), ("Result", "success")]
        {
            assert_eq!(unit.property(property), value, "{property}");
        }
        let limit = || format!("{}{}", unit.property("MemoryMax"), unit.property("MemoryLimit"));
        assert!(limit().contains("67108864"), "{}", limit());
        let inside = || fs::read_to_string(unit.folder().join("cgroup.procs")).expect("read cgroup.procs");
        assert!(inside().lines().any(|line| line == pid.to_string()), "{pid} is not among {}", inside());
        // As any container from here on.
        assert_eq!(c.exec("scoped", "look", ["echo", "on"]).output().ok(), "on");
        c.ctr(["task", "pause", "scoped"]).ok();
        c.ctr(["task", "resume", "scoped"]).ok();
        let shim = c.shim("scoped");
        shim.update("scoped", &json!({ "memory": { "limit": 50_331_648 }, "pids": { "limit": 40 } })).expect("update");
        assert!(limit().contains("50331648"), "{}", limit());
        assert_eq!(unit.property("TasksMax"), "40");
        {
            let _alone = reloads();
            systemctl(&["daemon-reload"]);
        }
        assert_eq!(fs::read_to_string(file(&unit, "pids", "pids.max")).expect("read pids.max").trim(), "40");
        let metrics = c.ctr(["task", "metrics", "scoped"]);
        assert!(metrics.ok().contains("memory"), "{metrics:?}");
        c.remove("scoped");
        unit.is_gone();
    });
}

/// A file of one controller, wherever that is.
fn file(unit: &Unit<'_>, controller: &str, name: &str) -> PathBuf {
    let v1 = Path::new("/sys/fs/cgroup").join(controller);
    let mount = if v1.is_dir() { v1 } else { "/sys/fs/cgroup".into() };
    mount.join(unit.property("ControlGroup").trim_start_matches('/')).join(name)
}

/// What the kernel says of a limit: the file of v1, or that of v2.
fn limit(unit: &Unit<'_>, controller: &str, v1: &str, v2: &str) -> String {
    let name = if v1_has(controller) { v1 } else { v2 };
    let file = file(unit, controller, name);
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())).trim().to_owned()
}

fn v1_has(controller: &str) -> bool {
    Path::new("/sys/fs/cgroup").join(controller).is_dir()
}

/// Held by a test that reloads systemd, or looks at what a reload changes: it writes the limits of every unit again.
fn reloads() -> MutexGuard<'static, ()> {
    static RELOADS: Mutex<()> = Mutex::new(());
    RELOADS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn half_an_update_keeps_the_other_half() {
    case_under_systemd(|c| {
        let unit = Unit::new(c, "halved");
        c.idle("halved", &unit.flags());
        let _alone = reloads();
        let shim = c.shim("halved");
        let quota = || {
            match v1_has("cpu") {
                true => format!(
                    "{} {}",
                    limit(&unit, "cpu", "cpu.cfs_quota_us", ""),
                    limit(&unit, "cpu", "cpu.cfs_period_us", "")
                ),
                false => limit(&unit, "cpu", "", "cpu.max"),
            }
            .replace("-1 ", "max ")
        };
        let per_second = || unit.property("CPUQuotaPerSecUSec");
        // Without a quota the period means nothing, and systemd takes the usual one when it is reloaded.
        for (update, file, reloaded, property) in [
            (json!({ "period": 50_000 }), "max 50000", "max 100000", "infinity"),
            (json!({ "quota": 20_000, "period": 50_000 }), "20000 50000", "20000 50000", "400ms"),
            (json!({ "quota": 25_000 }), "25000 50000", "25000 50000", "500ms"),
            (json!({ "period": 100_000 }), "25000 100000", "25000 100000", "250ms"),
            (json!({ "quota": -1 }), "max 100000", "max 100000", "infinity"),
        ] {
            shim.update("halved", &json!({ "cpu": update })).expect("update");
            assert_eq!((quota().as_str(), per_second().as_str()), (file, property), "{update}");
            systemctl(&["daemon-reload"]);
            assert_eq!((quota().as_str(), per_second().as_str()), (reloaded, property), "{update}, reloaded");
        }
        if v1_has("memory") {
            return c.remove("halved");
        }
        for (update, file, value, property) in [
            (
                json!({ "memory": { "limit": 67_108_864, "swap": 100_663_296 } }),
                "memory.swap.max",
                "33554432",
                "MemorySwapMax",
            ),
            (json!({ "memory": { "swap": 134_217_728 } }), "memory.swap.max", "67108864", "MemorySwapMax"),
            (json!({ "cpu": { "shares": 512 } }), "cpu.weight", "59", "CPUWeight"),
            (json!({ "cpu": { "idle": 0 } }), "cpu.weight", "59", "CPUWeight"),
            (json!({ "cpu": { "idle": 1 } }), "cpu.idle", "1", ""),
            (json!({ "pids": { "limit": 41 } }), "cpu.idle", "1", ""),
            (json!({ "cpu": { "idle": 0 } }), "cpu.idle", "0", ""),
            (json!({ "pids": { "limit": 42 } }), "cpu.weight", "100", "CPUWeight"),
        ] {
            shim.update("halved", &update).expect("update");
            for when in ["at once", "reloaded"] {
                if when == "reloaded" {
                    systemctl(&["daemon-reload"]);
                }
                let controller = file.split('.').next().expect("a controller");
                assert_eq!(limit(&unit, controller, "", file), value, "{update}, {when}");
                assert!(property.is_empty() || unit.property(property) == value, "{update}, {when}: {property}");
            }
        }
        c.remove("halved");
        unit.is_gone();
    });
}

#[test]
fn an_update_leaves_alone_what_systemd_does_not_know() {
    case_under_systemd(|c| {
        let unit = Unit::new(c, "exact");
        c.idle("exact", &unit.flags());
        let _alone = reloads();
        let shim = c.shim("exact");
        shim.update("exact", &json!({ "cpu": { "quota": 50_500, "period": 100_000 } })).expect("update cpu");
        let v2 = !v1_has("memory");
        if v2 {
            // One that it knows, in the words of the kernel, and one that it does not let us tell it of.
            let unified = json!({ "io.weight": "default 200", "memory.oom.group": "1", "memory.zswap.max": "4096" });
            let there = |name: &str| file(&unit, "memory", name).exists();
            let unified: serde_json::Map<_, _> =
                unified.as_object().expect("a map").clone().into_iter().filter(|(name, _)| there(name)).collect();
            assert!(unified.len() > 1, "{unified:?}");
            shim.update("exact", &json!({ "unified": unified })).expect("update unified");
        }
        let look = || {
            let names = ["cpu.max", "io.weight", "io.bfq.weight", "memory.oom.group", "memory.zswap.max"];
            let v1 = v1_has("cpu").then(|| limit(&unit, "cpu", "cpu.cfs_quota_us", ""));
            let v2 = names.map(|name| fs::read_to_string(file(&unit, "memory", name)).unwrap_or_default());
            (v1, v2)
        };
        let before = look();
        assert!(before.0.as_deref() == Some("50500") || before.1[0] == "50500 100000\n", "{before:?}");
        for tasks in [40, 41] {
            shim.update("exact", &json!({ "pids": { "limit": tasks } })).expect("update pids");
            assert_eq!((unit.property("TasksMax"), look()), (tasks.to_string(), before.clone()));
        }
        if v2 && !before.1[1].is_empty() {
            assert_eq!(unit.property("IOWeight"), "200");
            systemctl(&["daemon-reload"]);
            assert_eq!(look().1[1], before.1[1], "this one, systemd knows");
        }
        c.remove("exact");
        unit.is_gone();
    });
}

#[test]
fn a_container_is_not_refused_its_devices_while_it_is_updated() {
    case_under_systemd(|c| {
        let unit = Unit::new(c, "devices");
        let root = c.root_folder("root");
        // It says so when it may not use the one, or may use the other.
        let watch = "while cat /dev/null 2>/dev/null && ! (: </dev/denied) 2>/dev/null; do :; done; echo refused";
        let mut spec = c.spec("devices", &root, &["sh", "-c", watch]);
        let name = format!("system.slice:{}:devices", c.name);
        spec["linux"]["cgroupsPath"] = json!(name);
        spec["linux"]["resources"]["devices"] = json!([
            { "allow": true, "access": "rwm" },
            // loop-control, which asks for no right of its own when it is opened.
            { "allow": false, "type": "c", "major": 10, "minor": 237, "access": "rwm" },
        ]);
        spec["linux"]["devices"] = json!([{ "path": "/dev/denied", "type": "c", "major": 10, "minor": 237 }]);
        let options = unit.flags()[..2].to_vec();
        // On v1 a reload gives it all devices, until the next update.
        let _alone = reloads();
        c.run_spec("devices", &spec).flags(options).detached().ok();
        let shim = c.shim("devices");
        for tasks in 40..50 {
            shim.update("devices", &json!({ "pids": { "limit": tasks } })).expect("update pids");
        }
        assert_eq!(unit.property("TasksMax"), "49");
        let denied = c.exec("devices", "look", ["sh", "-c", "(: </dev/denied) 2>/dev/null; echo $?"]).output();
        assert_eq!(denied.stdout.trim(), "1", "{denied:?}");
        // It is still at it.
        c.ctr(["task", "pause", "devices"]).ok();
        shim.update("devices", &json!({ "pids": { "limit": 50 } })).expect("update one that is paused");
        assert!(c.ctr(["task", "ls"]).ok().contains("PAUSED"), "an update lets nobody go on");
        c.ctr(["task", "resume", "devices"]).ok();
        c.remove("devices");
        unit.is_gone();
    });
}

#[test]
fn the_limit_above_a_scope_is_named() {
    if v1_has("memory") {
        return; // v1 does not tell
    }
    case_under_systemd(|c| {
        let slice = format!("{}.slice", c.name);
        systemctl(&["start", &slice]);
        systemctl(&["set-property", "--runtime", &slice, "MemoryMax=24M"]);
        let options = c.file("options.toml", "SystemdCgroup = true");
        let options = options.display().to_string();
        for number in 0..2 {
            let (id, path) = (format!("greedy-{number}"), format!("{slice}:{}:greedy-{number}", c.name));
            let flags = ["--runtime-config-path", &options, "--cgroup", &path];
            let outcome = c.run(&id, ["sh", "-c", "tail /dev/zero"]).flags(flags).output();
            assert_eq!(outcome.code, 137, "{outcome:?}");
            // With its numbers, or without them if systemd was faster.
            let (words, above) = ("for the memory limit of /sys/fs/cgroup/", format!("/{slice}"));
            c.log().find("the limit above", |text| {
                text.lines()
                    .any(|line| line.contains(&id) && line.contains(words) && line.contains(&above))
                    .then_some(())
            });
        }
        systemctl(&["stop", &slice]);
        let _alone = reloads(); // as this does
        systemctl(&["revert", &slice]);
    });
}

#[test]
fn runcs_flags_mean_the_same() {
    case_under_systemd(|c| {
        let unit = Unit::new(c, "flagged");
        std::os::unix::fs::symlink(c.subject.shim(), c.path("bin/containerd-shim-runc-v2")).expect("a second name");
        let flags = ["--runtime", "io.containerd.runc.v2", "--runc-systemd-cgroup", "--cgroup", unit.flags()[3]];
        c.run("flagged", ["sleep", "1000"]).flags(flags).detached().ok();
        assert_eq!(unit.property("ActiveState"), "active");
        c.remove("flagged");
        unit.is_gone();
    });
}

#[test]
fn a_name_is_free_when_its_container_is_gone() {
    case_under_systemd(|c| {
        let unit = Unit::new(c, "again");
        for number in 0..5 {
            assert_eq!(unit.run(&["echo", &number.to_string()]).output().ok(), number.to_string());
            unit.is_gone();
        }
    });
}

#[test]
fn out_of_memory_in_a_scope_is_told_before_the_exit() {
    case_under_systemd(|c| {
        for _ in 0..5 {
            let unit = Unit::new(c, "greedy");
            // What is read stays in memory until its newline comes, which never does.
            let run = unit.run(&["sh", "-c", "tail /dev/zero"]).flags(["--memory-limit", "16777216"]);
            let outcome = run.output();
            assert_eq!(outcome.code, 137, "{outcome:?}");
            unit.is_gone();
        }
        let told = c.events().into_iter().filter(|event| event.topic == "/tasks/oom").count();
        // v1 gives notice of what it may kill for, of which there can be more than kills; each look that finds more is told.
        assert!(told == 5 || told > 5 && v1_has("memory"), "{told}");
    });
}

#[test]
fn a_scope_whose_shim_was_killed_is_gone_with_its_container() {
    case_under_systemd(|c| {
        let unit = Unit::new(c, "orphan");
        c.idle("orphan", &unit.flags());
        let shim = c.shim("orphan").identify("orphan").expect("identify").shim_pid;
        process::kill_hard(shim);
        c.exit_status("orphan", "orphan");
        eventually("the unit to be gone", || (unit.property("ActiveState") == "inactive").then_some(()));
        c.remove("orphan");
        unit.is_gone();
    });
}

#[test]
fn a_supervisors_containers_are_scopes_that_outlive_it() {
    if !under_systemd() {
        return;
    }
    alone(|world| {
        world.stop();
        let (config, bundle) = (world.path("dunnaged.toml"), world.path("bundle"));
        fs::write(&config, "[runtime]\nsystemd_cgroup = true\n").expect("write a file");
        world.flags(["--config".into(), config.into_os_string()]);
        world.start();
        fs::create_dir(&bundle).expect("make a folder");
        world.root_folder("bundle/rootfs");
        let spec = json!({
            "ociVersion": "1.2.0", "root": { "path": "rootfs" },
            "process": { "args": ["/bin/sleep", "1000"], "cwd": "/", "user": { "uid": 0, "gid": 0 } },
            "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
            "linux": {
                "namespaces": [{ "type": "mount" }, { "type": "pid" }],
                "cgroupsPath": format!("system.slice:{}:scoped", world.name),
            },
        });
        fs::write(bundle.join("config.json"), spec.to_string()).expect("write a file");
        world.dunnage(["run", "-d", "--name", "scoped", "--bundle", &bundle.to_string_lossy()]).ok();
        let unit = format!("{}-scoped.scope", world.name);
        let before = world.container("scoped").pid;
        world.kill();
        assert_eq!(property(&unit, "ActiveState"), "active");
        world.start();
        assert_eq!(world.container("scoped").pid, before, "the container never noticed");
        assert_eq!(world.dunnage(["exec", "scoped", "/bin/echo", "on"]).ok(), "on");
        world.dunnage(["update", "--memory", "48m", "--pids", "40", "scoped"]).ok();
        assert_eq!(property(&unit, "TasksMax"), "40");
        // To v1 systemd has another name for it.
        let name = if v1_has("memory") { "MemoryLimit" } else { "MemoryMax" };
        assert_eq!(property(&unit, name), (48 << 20).to_string());
        world.dunnage(["rm", "--force", "scoped"]).ok();
        is_gone(&unit);
    });
}

/// The shipped units under the name of the case, with a supervisor of its own.
struct Service<'w> {
    world: &'w Alone,
    folder: PathBuf,
}

impl<'w> Service<'w> {
    fn install(world: &'w Alone) -> Self {
        let service = Self { world, folder: "/run/systemd/system".into() };
        let command = world.daemon();
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let line: Vec<_> = words.map(|word| word.to_string_lossy().into_owned()).collect();
        let (own_socket, path) = (service.unit("socket"), world.socket().display().to_string());
        let changes = [
            ("/run/dunnage/supervisor/dunnaged.sock", path),
            ("dunnaged.socket", own_socket),
            ("ExecStart=/usr/local/bin/dunnaged", format!("ExecStart={}", line.join(" "))),
        ];
        let shipped = [
            ("service", include_str!("../../supervisor/systemd/dunnaged.service"), &changes[1..]),
            ("socket", include_str!("../../supervisor/systemd/dunnaged.socket"), &changes[..1]),
        ];
        for (kind, text, changes) in shipped {
            let changed = changes.iter().fold(text.to_owned(), |text, (old, new)| {
                assert!(text.contains(old), "no {old} in dunnaged.{kind}");
                text.replace(old, new)
            });
            fs::write(service.folder.join(service.unit(kind)), changed).expect("write a unit");
        }
        let _alone = reloads();
        systemctl(&["daemon-reload"]);
        service
    }

    fn unit(&self, kind: &str) -> String {
        format!("{}.{kind}", self.world.name)
    }

    fn property(&self, name: &str) -> String {
        property(&self.unit("service"), name)
    }

    fn act(&self, verb: &str, kind: &str) {
        let done = Command::new("systemctl").args([verb, &self.unit(kind)]).output().expect("systemctl");
        let status = || systemctl(&["status", "--no-pager", "--lines=40", &self.unit(kind)]);
        assert!(done.status.success(), "{}{}", String::from_utf8_lossy(&done.stderr), status());
    }
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        for kind in ["socket", "service"] {
            systemctl(&["stop", &self.unit(kind)]);
            drop(fs::remove_file(self.folder.join(self.unit(kind))));
        }
        let _alone = reloads();
        systemctl(&["daemon-reload"]);
        systemctl(&["reset-failed", &self.unit("service")]);
        drop(fs::remove_file(self.world.socket()));
    }
}

#[test]
fn the_shipped_units_start_reload_and_restart_a_supervisor_and_no_container_notices() {
    if !under_systemd() {
        return;
    }
    alone(|world| {
        world.stop();
        let (config, scopes) = (world.path("dunnaged.toml"), "[runtime]\nsystemd_cgroup = true\n");
        // On v1 systemd takes processes out of cgroups that it did not make, as soon as it has use for their controller.
        fs::write(&config, if v1_has("memory") { scopes } else { "" }).expect("write a file");
        world.flags(["--config".into(), config.clone().into_os_string()]);
        let service = Service::install(world);
        service.act("start", "socket");
        assert_eq!(service.property("ActiveState"), "inactive", "nobody has asked yet");
        world.idle("web");
        assert_eq!(service.property("ActiveState"), "active");
        let (main, pid) = (service.property("MainPID"), world.container("web").pid);
        let of = |pid: &str, file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).expect("read of a process");
        assert_eq!(of(&main, "oom_score_adj").trim(), "-999");
        assert_eq!(of(&pid.to_string(), "oom_score_adj").trim(), "0", "no container is what the kernel spares");
        let limits = of(&pid.to_string(), "limits");
        let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
        let files: Vec<u64> = files.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let own: [u64; 2] =
            ["LimitNOFILESoft", "LimitNOFILE"].map(|name| service.property(name).parse().expect("a number"));
        assert_eq!(files, own, "as any service");
        assert!(files[1] <= 1 << 20, "{files:?}");

        fs::write(&config, scopes).expect("write a file");
        service.act("reload", "service");
        assert_eq!(service.property("MainPID"), main);
        eventually("the configuration to be read", || {
            world.dunnage(["run", "-d", "--name", "scoped", "--", "sleep", "1000"]).ok();
            let scoped = property(&format!("dunnage-{}-scoped.scope", world.name), "ActiveState") == "active";
            world.dunnage(["rm", "--force", "scoped"]).ok();
            scoped.then_some(())
        });
        service.act("restart", "service");
        assert_ne!(service.property("MainPID"), main);
        process::kill_hard(service.property("MainPID").parse().expect("a number"));
        assert_eq!(world.container("web").pid, pid, "whoever asks has the next one started");
        assert_eq!(world.dunnage(["exec", "web", "echo", "on"]).ok(), "on");
        assert_eq!(service.property("ActiveState"), "active");
        world.dunnage(["rm", "--force", "web"]).ok();
        drop(service);
        world.flags::<std::ffi::OsString>([]);
        world.start();
    });
}

#[test]
fn a_start_that_fails_leaves_no_unit() {
    case_under_systemd(|c| {
        let unit = Unit::new(c, "missing");
        let outcome = unit.run(&["/no/such/program"]).output();
        assert!(outcome.refused().contains("/no/such/program"), "{outcome:?}");
        c.ctr(["container", "rm", "missing"]);
        unit.is_gone();
        // A name that is taken stays whose it is.
        let unit = Unit::new(c, "taken");
        let mut other = Command::new("systemd-run")
            .args(["--scope", "--unit", &unit.name, "sleep", "1000"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("systemd-run");
        eventually("the other unit", || (unit.property("ActiveState") == "active").then_some(()));
        let outcome = unit.run(&["true"]).output();
        assert!(outcome.refused().contains("choose another linux.cgroupsPath"), "{outcome:?}");
        assert_eq!(unit.property("ActiveState"), "active");
        other.kill().expect("kill");
        other.wait().expect("wait");
        c.ctr(["container", "rm", "taken"]);
        eventually("the other unit to be gone", || (unit.property("ActiveState") != "active").then_some(()));
    });
}

#[test]
fn where_systemd_does_not_run_the_host_its_cgroups_are_refused() {
    if Path::new("/run/systemd/system").is_dir() {
        return; // the tests above say what is there instead
    }
    case_of_ours(|c| {
        let unit = Unit::new(c, "alone");
        let outcome = unit.run(&["true"]).output();
        assert!(outcome.refused().contains("there is no systemd to ask ("), "{outcome:?}");
    });
}

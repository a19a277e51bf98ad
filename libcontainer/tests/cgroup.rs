//! Cgroups really made on this machine. Needs root; on a laptop each test skips and says so, under `ROOT_TESTS=must` it
//! may not.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use libcontainer::cgroup::stats::Stats;
use libcontainer::cgroup::{Cgroup, CgroupError, CgroupPath, FreezerState, Hierarchies, Layout, Limits};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, geteuid};
use oci_spec::runtime::LinuxResources;

/// A cgroup of one test, and the promise that nothing of it is left.
struct Bench {
    layout: Layout,
    path: CgroupPath,
    name: String,
}

impl Bench {
    fn new(test: &str) -> Option<Bench> {
        if !geteuid().is_root() {
            let must = std::env::var("ROOT_TESTS").is_ok_and(|value| value == "must");
            assert!(!must, "{test}: needs root, and ROOT_TESTS=must forbids to skip");
            eprintln!("SKIPPED {test}: needs root");
            return None;
        }
        let name = format!("cgrouptest-{}-{test}", std::process::id());
        let path = CgroupPath::new(Some(Path::new(&format!("/{name}/c"))), "").unwrap();
        Some(Bench { layout: Layout::detect().unwrap(), path, name })
    }

    /// The same machine as if it had no v2 mount, or nothing else. `None` where that would leave nothing.
    fn only(mut self, v2: bool) -> Option<Bench> {
        self.layout.hierarchies = match (self.layout.hierarchies, v2) {
            (Hierarchies::V1 { controllers, .. }, false) => Hierarchies::V1 { controllers, unified: None },
            (Hierarchies::V1 { unified: Some(unified), .. }, true) => Hierarchies::V2(unified),
            (hierarchies @ Hierarchies::V2(_), true) => hierarchies,
            _ => {
                eprintln!("SKIPPED {}: this machine has no such hierarchy", self.name);
                return None;
            }
        };
        Some(self)
    }

    /// The test on the machine as it is, and on each part of it alone.
    fn each(test: &str, run: impl Fn(Bench)) {
        Bench::new(test).into_iter().for_each(&run);
        Bench::new(&format!("{test}-v1")).and_then(|bench| bench.only(false)).into_iter().for_each(&run);
        Bench::new(&format!("{test}-v2")).and_then(|bench| bench.only(true)).into_iter().for_each(&run);
    }

    /// For what only a machine with v1 controllers can show.
    fn has_v1(self) -> Option<Bench> {
        if self.layout.is_v2() {
            eprintln!("SKIPPED {}: this machine has its controllers in cgroup v2", self.name);
            return None;
        }
        Some(self)
    }

    fn limits(&self, json: &str) -> Limits {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        Limits::compile(&resources, &self.layout).unwrap()
    }

    fn create(&self, json: &str) -> Cgroup {
        Cgroup::create(&self.path, &self.limits(json), &self.layout).unwrap()
    }

    fn dirs(&self) -> Vec<PathBuf> {
        self.path.places(&self.layout).into_iter().map(|place| place.dir).collect()
    }

    /// What exists of this test's directories in all hierarchies, those above the container's own included.
    fn left(&self) -> Vec<PathBuf> {
        let mounts = self.path.places(&self.layout).into_iter().map(|place| place.mount);
        mounts.map(|mount| mount.join(&self.name)).filter(|dir| dir.exists()).collect()
    }

    fn remove(&self, mut cgroup: Cgroup) {
        // The tests reap what they spawn, but a thread that spawned may still be on its way out.
        within_five_seconds(|| match cgroup.remove() {
            Ok(()) => true,
            Err(CgroupError::Busy { .. }) => false,
            Err(error) => panic!("{error}"),
        });
        assert_eq!(self.left(), Vec::<PathBuf>::new());
    }
}

fn within_five_seconds(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !done() {
        assert!(Instant::now() < deadline, "not done after five seconds");
        std::thread::yield_now();
    }
}

/// Starts a shell inside: the thread that forks has entered, and v1 cgroups are inherited from it. The shell stops itself
/// until it is in the v2 directory as well (a test has no clone3 to be born there).
fn spawn(cgroup: &Cgroup, script: &str) -> Inside {
    let entry = cgroup.entry().unwrap();
    let child = std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            entry.enter_v1().unwrap();
            let script = format!("kill -STOP $$; {script}");
            let mut shell = Command::new("sh");
            shell.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            Inside(shell.spawn().unwrap())
        });
        inside.join().unwrap()
    });
    for place in cgroup.places().filter(|place| place.v2) {
        fs::write(place.dir.join("cgroup.procs"), child.id().to_string()).unwrap();
    }
    let stat = format!("/proc/{}/stat", child.id());
    within_five_seconds(|| fs::read_to_string(&stat).unwrap().contains(") T "));
    nix::sys::signal::kill(Pid::from_raw(child.id() as i32), Signal::SIGCONT).unwrap();
    child
}

/// A process of a test, killed at the latest when the test fails.
struct Inside(Child);

impl std::ops::Deref for Inside {
    type Target = Child;
    fn deref(&self) -> &Child {
        &self.0
    }
}

impl std::ops::DerefMut for Inside {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // Not awaited: a frozen one would not die. It is an error only if it is gone, which is well.
        self.0.kill().ok();
    }
}

fn end(mut child: Inside) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_dropped_guard_leaves_nothing_and_a_kept_cgroup_stays() {
    let Some(bench) = Bench::new("guard") else { return };
    drop(bench.create("{}"));
    assert_eq!(bench.left(), Vec::<PathBuf>::new());
    let mut kept = bench.create("{}");
    kept.keep();
    let saved = kept.saved();
    drop(kept);
    assert!(bench.dirs().iter().all(|dir| dir.is_dir()));
    let text = serde_json::to_string(&saved).unwrap();
    let opened = Cgroup::open(serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(opened.saved(), saved);
    bench.remove(opened);
    bench.remove(Cgroup::open(saved).unwrap()); // a second delete finds nothing to do
}

#[test]
fn a_child_is_in_every_hierarchy_and_limits_are_in_the_files() {
    let Some(bench) = Bench::new("limits") else { return };
    let cgroup = bench.create(
        r#"{"memory":{"limit":33554432,"swap":67108864},"cpu":{"shares":512,"quota":20000,"period":50000},"pids":{"limit":7}}"#,
    );
    let child = spawn(&cgroup, "exec sleep 60");
    let seen = fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
    let inside = format!(":/{}/c", bench.name);
    let outside: Vec<&str> = seen.lines().filter(|line| !line.ends_with(&inside)).collect();
    assert_eq!(outside, Vec::<&str>::new());
    for place in cgroup.places().filter(|place| !place.v2) {
        let read = |file: &str| fs::read_to_string(place.dir.join(file)).unwrap().trim().to_owned();
        match place.controllers[0].as_str() {
            "memory" => {
                assert_eq!(read("memory.limit_in_bytes"), "33554432");
                assert_eq!(read("memory.memsw.limit_in_bytes"), "67108864");
            }
            "cpu" => {
                assert_eq!(read("cpu.shares"), "512");
                assert_eq!(read("cpu.cfs_quota_us"), "20000");
                assert_eq!(read("cpu.cfs_period_us"), "50000");
            }
            "pids" => assert_eq!(read("pids.max"), "7"),
            "devices" => assert!(read("devices.list").lines().any(|line| line == "c 1:3 rwm")),
            _ => {}
        }
    }
    end(child);
    bench.remove(cgroup);
}

fn freeze(cgroup: &Cgroup) {
    let mut freezing = cgroup.freeze().unwrap();
    within_five_seconds(|| freezing.poll(cgroup).unwrap() == FreezerState::Frozen);
}

/// Processor time a process has used, in clock ticks.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().unwrap()).sum()
}

#[test]
fn a_frozen_container_uses_no_time_and_goes_on_when_thawed() {
    Bench::each("freeze", |bench| {
        let cgroup = bench.create("{}");
        let child = spawn(&cgroup, "while :; do :; done");
        within_five_seconds(|| ticks(child.id()) > 0);
        assert_eq!(cgroup.freezer_state().unwrap(), FreezerState::Thawed);
        freeze(&cgroup);
        let (then, end_of_look) = (ticks(child.id()), Instant::now() + Duration::from_millis(100));
        while Instant::now() < end_of_look {
            std::thread::yield_now();
        }
        assert_eq!(ticks(child.id()), then);
        cgroup.thaw().unwrap();
        assert_eq!(cgroup.freezer_state().unwrap(), FreezerState::Thawed);
        within_five_seconds(|| ticks(child.id()) > then);
        end(child);
        bench.remove(cgroup);
    });
}

#[test]
fn kill_reaches_every_process_even_frozen_ones_and_those_in_cgroups_below() {
    Bench::each("kill", |bench| {
        for frozen in [false, true] {
            let cgroup = bench.create("{}");
            let mut child = spawn(&cgroup, "setsid sleep 60 & sleep 60 & sleep 60 & wait");
            within_five_seconds(|| cgroup.pids().unwrap().len() == 4);
            let below = cgroup.pids().unwrap()[3].to_string();
            for place in cgroup.places() {
                let dir = place.dir.join("nested").join("deeper");
                if place.controllers.iter().any(|name| name == "cpuset") {
                    continue; // would need CPUs and nodes first
                }
                fs::create_dir_all(&dir).unwrap();
                fs::write(dir.join("cgroup.procs"), &below).unwrap();
            }
            assert_eq!(cgroup.pids().unwrap().len(), 4);
            assert!(cgroup.pids().unwrap().contains(&Pid::from_raw(child.id() as i32)));
            if frozen {
                freeze(&cgroup);
            }
            cgroup.kill().unwrap();
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(9));
            within_five_seconds(|| cgroup.pids().unwrap().is_empty());
            bench.remove(cgroup);
        }
    });
}

#[test]
fn a_signal_reaches_every_process() {
    Bench::each("signal", |bench| {
        let cgroup = bench.create("{}");
        let mut child = spawn(&cgroup, "sleep 60 & sleep 60");
        within_five_seconds(|| cgroup.pids().unwrap().len() == 3);
        cgroup.signal_all(Signal::SIGTERM).unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(15));
        within_five_seconds(|| cgroup.pids().unwrap().is_empty());
        assert_eq!(cgroup.freezer_state().unwrap(), FreezerState::Thawed);
        bench.remove(cgroup);
    });
}

#[test]
fn a_cgroup_with_a_process_is_neither_shared_nor_removed() {
    Bench::each("inuse", |bench| {
        let mut cgroup = bench.create("{}");
        let child = spawn(&cgroup, "exec sleep 60");
        let again = Cgroup::create(&bench.path, &bench.limits("{}"), &bench.layout);
        assert!(matches!(again, Err(CgroupError::InUse { processes: 1, .. })), "{again:?}");
        assert!(matches!(cgroup.remove(), Err(CgroupError::Busy { .. })));
        assert_eq!(cgroup.pids().unwrap().len(), 1, "the failed attempts must not have harmed it");
        end(child);
        bench.remove(cgroup);
    });
}

#[test]
fn an_empty_leftover_is_taken_over() {
    Bench::each("leftover", |bench| {
        let mut crashed = bench.create("{}");
        crashed.keep();
        drop(crashed);
        let cgroup = bench.create("{}");
        end(spawn(&cgroup, "exec sleep 60"));
        let dirs = bench.dirs();
        // It made nothing, so as a guard it removes nothing; as the container's cgroup it removes its own.
        drop(cgroup);
        assert!(dirs.iter().all(|dir| dir.is_dir()));
        let mut cgroup = bench.create("{}");
        within_five_seconds(|| cgroup.remove().is_ok());
        assert!(!dirs.iter().any(|dir| dir.exists()));
        bench.left().iter().for_each(|dir| fs::remove_dir(dir).unwrap());
    });
}

#[test]
fn a_limit_the_kernel_refuses_is_named_and_leaves_nothing() {
    let Some(bench) = Bench::new("refused").and_then(Bench::has_v1) else { return };
    let limits = bench.limits(r#"{"cpu":{"cpus":"4000"}}"#);
    let error = Cgroup::create(&bench.path, &limits, &bench.layout).unwrap_err().to_string();
    let start = "linux.resources.cpu.cpus: write \"4000\" to /sys/fs/cgroup/cpuset/";
    assert!(error.starts_with(start) && error.contains("these CPUs or nodes do not exist"), "{error}");
    assert_eq!(bench.left(), Vec::<PathBuf>::new());
}

#[test]
fn an_update_raises_and_lowers_in_whichever_order_the_kernel_takes() {
    let Some(bench) = Bench::new("update").and_then(Bench::has_v1) else { return };
    let cgroup = bench.create(r#"{"memory":{"limit":8388608,"swap":16777216},"cpu":{"quota":50000,"period":100000}}"#);
    let read = |controller: &str, file: &str| {
        let place = cgroup.places().find(|place| place.controllers.iter().any(|name| name == controller)).unwrap();
        fs::read_to_string(place.dir.join(file)).unwrap().trim().parse::<i64>().unwrap()
    };
    for (limit, swap, quota, period) in [
        (33_554_432, 67_108_864, 400_000, 900_000),
        (4_194_304, 4_194_304, 2000, 5000),
        (8_388_608, 9_437_184, 100, 200),
    ] {
        let json =
            format!(r#"{{"memory":{{"limit":{limit},"swap":{swap}}},"cpu":{{"quota":{quota}0,"period":{period}}}}}"#);
        let resources: LinuxResources = serde_json::from_str(&json).unwrap();
        let result = cgroup.update(&Limits::compile_update(&resources, &bench.layout).unwrap());
        if period < 1000 {
            // The kernel's least period is a millisecond: refused for good, whatever the order.
            let error = result.unwrap_err().to_string();
            assert!(error.starts_with("linux.resources.cpu.period: write \"200\""), "{error}");
        } else {
            result.unwrap();
            assert_eq!((read("cpu", "cpu.cfs_quota_us"), read("cpu", "cpu.cfs_period_us")), (quota * 10, period));
        }
        let memory = (read("memory", "memory.limit_in_bytes"), read("memory", "memory.memsw.limit_in_bytes"));
        assert_eq!(memory, (limit, swap));
    }
    bench.remove(cgroup);
}

#[test]
fn no_more_processes_than_the_limit() {
    let Some(bench) = Bench::new("pids").and_then(Bench::has_v1) else { return };
    let cgroup = bench.create(r#"{"pids":{"limit":3}}"#);
    let mut child = spawn(&cgroup, "sleep 60 & sleep 60 & sleep 60 & sleep 60 & wait");
    within_five_seconds(|| child.try_wait().unwrap().is_some()); // the shell gives up when fork fails
    let Stats::V1(stats) = cgroup.stats().unwrap() else { panic!("v1") };
    assert_eq!(stats.pids.unwrap().limit, 3);
    assert!(stats.pids.unwrap().current <= 3);
    cgroup.kill().unwrap();
    bench.remove(cgroup);
}

#[test]
fn stats_say_what_the_files_say() {
    let Some(bench) = Bench::new("stats").and_then(Bench::has_v1) else { return };
    let cgroup =
        bench.create(r#"{"memory":{"limit":16777216},"cpu":{"quota":5000,"period":10000},"pids":{"limit":9}}"#);
    let child = spawn(&cgroup, "while :; do :; done");
    within_five_seconds(|| ticks(child.id()) > 20);
    freeze(&cgroup); // so that the numbers stand still
    let Stats::V1(stats) = cgroup.stats().unwrap() else { panic!("v1") };
    let read = |controller: &str, file: &str| {
        let place = cgroup.places().find(|place| place.controllers.iter().any(|name| name == controller)).unwrap();
        fs::read_to_string(place.dir.join(file)).unwrap()
    };
    let number = |controller: &str, file: &str| read(controller, file).trim().parse::<u64>().unwrap();
    let memory = stats.memory.unwrap();
    assert_eq!(memory.usage.limit, 16_777_216);
    assert_eq!(memory.usage.usage, number("memory", "memory.usage_in_bytes"));
    assert_eq!(memory.usage.max, number("memory", "memory.max_usage_in_bytes"));
    assert_eq!(memory.stat.hierarchical_memory_limit, 16_777_216);
    let cpu = stats.cpu.unwrap();
    assert_eq!(cpu.usage.total, number("cpuacct", "cpuacct.usage"));
    assert_eq!(cpu.usage.per_cpu.iter().sum::<u64>(), cpu.usage.total);
    assert!(cpu.usage.user + cpu.usage.kernel >= 200_000_000, "more than 20 ticks of 10 ms: {:?}", cpu.usage);
    let throttling = read("cpu", "cpu.stat");
    let lines = [
        format!("nr_periods {}", cpu.throttling.periods),
        format!("nr_throttled {}", cpu.throttling.throttled_periods),
        format!("throttled_time {}", cpu.throttling.throttled_time),
    ];
    assert!(cpu.throttling.throttled_periods > 0);
    assert_eq!(throttling.lines().take(3).collect::<Vec<_>>(), lines);
    assert_eq!(stats.pids.unwrap(), libcontainer::cgroup::stats::v1::Pids { current: 1, limit: 9 });
    assert_eq!(stats.memory_oom_control.unwrap().oom_kill, 0);
    cgroup.thaw().unwrap();
    end(child);
    bench.remove(cgroup);
}

#[test]
fn an_oom_kill_is_noticed_once_and_explained() {
    let Some(bench) = Bench::new("oom").and_then(Bench::has_v1) else { return };
    let cgroup = bench.create(r#"{"memory":{"limit":8388608,"swap":8388608}}"#);
    let mut watch = cgroup.oom_watch().unwrap().unwrap();
    assert!(!watch.by_priority());
    let mut child = spawn(&cgroup, "tail /dev/zero; exit 3");
    let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&watch), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(10_000u16)).unwrap(), 1);
    let mut kills = watch.read().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    kills += watch.read().unwrap(); // the last look, after the exit
    assert_eq!(kills, 1);
    assert_eq!(watch.read().unwrap(), 0);
    let facts = cgroup.memory_facts().unwrap();
    assert_eq!((facts.limit, facts.kills), (Some(8_388_608), 1));
    bench.remove(cgroup);
    assert_eq!(watch.read().unwrap(), 0, "removal is no kill");
}

#[test]
fn the_v2_directory_tells_when_the_last_process_is_gone() {
    Bench::each("events", |bench| {
        let cgroup = bench.create("{}");
        let Some(events) = cgroup.events().unwrap() else { return bench.remove(cgroup) };
        assert!(!events.read().unwrap().populated);
        let mut child = spawn(&cgroup, "exec sleep 60");
        assert!(events.read().unwrap().populated);
        cgroup.kill().unwrap();
        while events.read().unwrap().populated {
            let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&events), PollFlags::POLLPRI)];
            assert_eq!(poll(&mut fds, PollTimeout::from(5000u16)).unwrap(), 1, "populated, and no notice");
        }
        child.wait().unwrap();
        bench.remove(cgroup);
        assert!(!events.read().unwrap().populated);
    });
}

#[test]
fn device_rules_hold_inside() {
    Bench::each("devices", |bench| {
        // kmsg (c 1:11) is no device of every container; null is.
        let script = "true </dev/zero || exit 7; true </dev/kmsg && exit 1 || exit 0";
        for (rules, opens) in [
            ("[]", false),
            (r#"[{"allow":true,"access":"rwm"}]"#, true),
            (r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":11,"access":"rw"}]"#, true),
            (r#"[{"allow":true,"access":"rwm"},{"allow":false,"type":"c","major":1,"minor":11,"access":"r"}]"#, false),
        ] {
            let cgroup = bench.create(&format!(r#"{{"devices":{rules}}}"#));
            let mut child = spawn(&cgroup, script);
            assert_eq!(child.wait().unwrap().code(), Some(i32::from(opens)), "{rules}");
            bench.remove(cgroup);
        }
    });
}

#[test]
fn a_device_filter_takes_the_place_of_a_former_one() {
    let Some(bench) = Bench::new("filter").and_then(|bench| bench.only(true)) else { return };
    let mut first = bench.create(r#"{"devices":[]}"#);
    first.keep();
    // The second has the same directory, as after a crash; were the first's filter still there, kmsg would stay shut.
    let cgroup = bench.create(r#"{"devices":[{"allow":true,"access":"rwm"}]}"#);
    let mut child = spawn(&cgroup, ": </dev/kmsg");
    assert!(child.wait().unwrap().success());
    bench.remove(first);
}

#[test]
fn many_containers_share_a_parent_that_comes_and_goes() {
    let Some(bench) = Bench::new("race") else { return };
    std::thread::scope(|scope| {
        for container in 0..4 {
            let bench = &bench;
            scope.spawn(move || {
                let path = format!("/{}/{container}", bench.name);
                let path = CgroupPath::new(Some(Path::new(&path)), "").unwrap();
                for _ in 0..20 {
                    let mut cgroup = Cgroup::create(&path, &bench.limits("{}"), &bench.layout).unwrap();
                    cgroup.remove().unwrap();
                }
            });
        }
    });
    // Whoever made the parent may have left first; then the parent stayed for the others.
    bench.left().iter().for_each(|dir| fs::remove_dir(dir).unwrap());
}

#[test]
fn one_more_process_goes_where_the_init_went() {
    let Some(bench) = Bench::new("beside").and_then(|bench| bench.only(true)) else { return };
    let cgroup = bench.create("{}");
    let child = spawn(&cgroup, "exec sleep 60");
    let init = Pid::from_raw(child.id() as i32);
    let nested = bench.dirs()[0].join("init.scope");
    let leads_to = || {
        let entry = cgroup.entry_beside(init).unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&entry.clone_into().unwrap());
        fs::read_link(format!("/proc/self/fd/{fd}")).unwrap()
    };
    assert_eq!(leads_to(), bench.dirs()[0]);
    fs::create_dir(&nested).unwrap();
    fs::write(nested.join("cgroup.procs"), init.to_string()).unwrap();
    assert_eq!(leads_to(), nested);
    let top = &cgroup.places().next().unwrap().mount;
    fs::write(top.join("cgroup.procs"), init.to_string()).unwrap();
    assert_eq!(leads_to(), bench.dirs()[0], "the init left the container's cgroup");
    end(child);
    bench.remove(cgroup);
}

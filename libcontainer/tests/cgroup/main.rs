//! Cgroups really made on this machine. Needs root; on a laptop each test skips and says so, under `ROOT_TESTS=must` it
//! may not.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libcontainer::cgroup::stats::{Stats, v1, v2};
use libcontainer::cgroup::{Cgroup, CgroupError, CgroupPath, FreezerState, Hit, Limits, Place};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

mod bench;
mod v2_only;

use bench::{Bench, end, freeze, read, soon, spawn, ticks};

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
    assert_eq!(read(&cgroup, ("memory", "memory.limit_in_bytes"), "memory.max"), "33554432");
    if bench.layout.is_v2() {
        assert_eq!(read(&cgroup, ("", ""), "memory.swap.max"), "33554432"); // without the memory
        assert_eq!(read(&cgroup, ("", ""), "cpu.weight"), "59");
        assert_eq!(read(&cgroup, ("", ""), "cpu.max"), "20000 50000");
    } else {
        assert_eq!(read(&cgroup, ("memory", "memory.memsw.limit_in_bytes"), ""), "67108864");
        assert_eq!(read(&cgroup, ("cpu", "cpu.shares"), ""), "512");
        assert_eq!(read(&cgroup, ("cpu", "cpu.cfs_quota_us"), ""), "20000");
        assert_eq!(read(&cgroup, ("cpu", "cpu.cfs_period_us"), ""), "50000");
        assert!(read(&cgroup, ("devices", "devices.list"), "").lines().any(|line| line == "c 1:3 rwm"));
    }
    assert_eq!(read(&cgroup, ("pids", "pids.max"), "pids.max"), "7");
    end(child);
    bench.remove(cgroup);
}

#[test]
fn a_frozen_container_uses_no_time_and_goes_on_when_thawed() {
    Bench::each("freeze", |bench| {
        let cgroup = bench.create("{}");
        let child = spawn(&cgroup, "while :; do :; done");
        soon(|| ticks(child.id()) > 0);
        assert_eq!(cgroup.freezer_state().unwrap(), FreezerState::Thawed);
        freeze(&cgroup);
        // What it used last is counted when it has left its CPU, which is after the kernel's word that it stands still.
        let mut then = 0;
        soon(|| {
            let (before, end_of_look) = (then, Instant::now() + Duration::from_millis(100));
            while Instant::now() < end_of_look {
                std::thread::yield_now();
            }
            then = ticks(child.id());
            then == before
        });
        cgroup.thaw().unwrap();
        assert_eq!(cgroup.freezer_state().unwrap(), FreezerState::Thawed);
        soon(|| ticks(child.id()) > then);
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
            soon(|| cgroup.pids().unwrap().len() == 4);
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
            assert_eq!(child.wait().unwrap().signal(), Some(9));
            soon(|| cgroup.pids().unwrap().is_empty());
            bench.remove(cgroup);
        }
    });
}

#[test]
fn a_signal_reaches_every_process() {
    Bench::each("signal", |bench| {
        let cgroup = bench.create("{}");
        let mut child = spawn(&cgroup, "sleep 60 & sleep 60 & wait");
        soon(|| cgroup.pids().unwrap().len() == 3);
        cgroup.signal_all(Signal::SIGTERM).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(15));
        soon(|| cgroup.pids().unwrap().is_empty());
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
        for place in crashed.places().filter(|place| !place.controllers.iter().any(|name| name == "cpuset")) {
            fs::create_dir_all(place.dir.join("nested").join("deeper")).unwrap();
        }
        drop(crashed);
        let cgroup = bench.create("{}");
        end(spawn(&cgroup, "exec sleep 60"));
        soon(|| cgroup.pids().unwrap().is_empty()); // the thread that spawned may still be on its way out
        // It was made anew, so as a guard it is removed; the one above was there before.
        let dirs = bench.dirs();
        drop(cgroup);
        assert!(!dirs.iter().any(|dir| dir.exists()));
        bench.left().iter().for_each(|dir| fs::remove_dir(dir).unwrap());
    });
}

#[test]
fn a_limit_the_kernel_refuses_is_named_and_leaves_nothing() {
    let Some(bench) = Bench::new("refused") else { return };
    let limits = bench.limits(r#"{"cpu":{"cpus":"4000"}}"#);
    let error = Cgroup::create(&bench.path, &limits, &bench.layout).unwrap_err().to_string();
    let start = "linux.resources.cpu.cpus: write \"4000\" to /sys/fs/cgroup/";
    assert!(error.starts_with(start) && error.contains("these CPUs or nodes do not exist"), "{error}");
    assert_eq!(bench.left(), Vec::<PathBuf>::new());
}

#[test]
fn an_update_raises_and_lowers_in_whichever_order_the_kernel_takes() {
    let Some(bench) = Bench::new("update") else { return };
    let cgroup = bench.create(r#"{"memory":{"limit":8388608,"swap":16777216},"cpu":{"quota":50000,"period":100000}}"#);
    let numbers = |v1: (&str, &str), v2| -> Vec<i64> {
        read(&cgroup, v1, v2).split(' ').map(|number| number.parse().unwrap()).collect()
    };
    for (limit, swap, quota, period) in [
        (33_554_432, 67_108_864, 400_000, 900_000),
        (4_194_304, 4_194_304, 2000, 5000),
        (8_388_608, 9_437_184, 100, 200),
    ] {
        let json =
            format!(r#"{{"memory":{{"limit":{limit},"swap":{swap}}},"cpu":{{"quota":{quota}0,"period":{period}}}}}"#);
        let result = cgroup.update(&bench.update(&json));
        if period < 1000 {
            // The kernel's least period is a millisecond: refused for good, whatever the order.
            let error = result.unwrap_err().to_string();
            let (field, value) = if bench.layout.is_v2() { ("quota", "1000 200") } else { ("period", "200") };
            assert!(error.starts_with(&format!("linux.resources.cpu.{field}: write \"{value}\"")), "{error}");
        } else {
            result.unwrap();
            let mut cpu = numbers(("cpu", "cpu.cfs_quota_us"), "cpu.max");
            if !bench.layout.is_v2() {
                cpu.extend(numbers(("cpu", "cpu.cfs_period_us"), ""));
            }
            assert_eq!(cpu, [quota * 10, period]);
        }
        assert_eq!(numbers(("memory", "memory.limit_in_bytes"), "memory.max"), [limit]);
        let of_it = if bench.layout.is_v2() { limit } else { 0 };
        assert_eq!(numbers(("memory", "memory.memsw.limit_in_bytes"), "memory.swap.max"), [swap - of_it]);
    }
    bench.remove(cgroup);
}

#[test]
fn no_more_processes_than_the_limit() {
    let Some(bench) = Bench::new("pids") else { return };
    let cgroup = bench.create(r#"{"pids":{"limit":3}}"#);
    let mut child = spawn(&cgroup, "sleep 60 & sleep 60 & sleep 60 & sleep 60 & wait");
    soon(|| child.try_wait().unwrap().is_some()); // the shell gives up when fork fails
    let (limit, current) = match cgroup.stats().unwrap() {
        Stats::V1(stats) => stats.pids.map(|pids| (pids.limit, pids.current)).unwrap(),
        Stats::V2(stats) => (stats.pids.limit, stats.pids.current),
    };
    assert_eq!(limit, 3);
    assert!(current <= 3);
    cgroup.kill().unwrap();
    bench.remove(cgroup);
}

#[test]
fn stats_say_what_the_files_say() {
    let Some(bench) = Bench::new("stats") else { return };
    // Less than one tick of a kernel that does not preempt: who runs at all is throttled, however many run beside him.
    let cgroup =
        bench.create(r#"{"memory":{"limit":16777216},"cpu":{"quota":2000,"period":10000},"pids":{"limit":9}}"#);
    let child = spawn(&cgroup, "while :; do :; done");
    // More than is asked for below: what it used before it was inside is not counted there.
    soon(|| ticks(child.id()) > 40);
    freeze(&cgroup); // so that the numbers stand still
    // But for those of a throttling that was under way, which are counted at its end.
    let lines = || read(&cgroup, ("cpu", "cpu.stat"), "cpu.stat");
    let (mut before, mut stats) = (lines(), cgroup.stats().unwrap());
    soon(|| {
        (before, stats) = (lines(), cgroup.stats().unwrap());
        before == lines()
    });
    match stats {
        Stats::V1(stats) => v1_says_what_the_files_say(&cgroup, *stats, &before),
        Stats::V2(stats) => v2_says_what_the_files_say(&cgroup, *stats, &before),
    }
    cgroup.thaw().unwrap();
    end(child);
    bench.remove(cgroup);
}

fn v1_says_what_the_files_say(cgroup: &Cgroup, stats: v1::Metrics, cpu_stat: &str) {
    let number = |controller, file| read(cgroup, (controller, file), "").parse::<u64>().unwrap();
    let memory = stats.memory.unwrap();
    assert_eq!(memory.usage.limit, 16_777_216);
    assert_eq!(memory.usage.usage, number("memory", "memory.usage_in_bytes"));
    assert_eq!(memory.usage.max, number("memory", "memory.max_usage_in_bytes"));
    assert_eq!(memory.stat.hierarchical_memory_limit, 16_777_216);
    let cpu = stats.cpu.unwrap();
    assert_eq!(cpu.usage.total, number("cpuacct", "cpuacct.usage"));
    assert_eq!(cpu.usage.per_cpu.iter().sum::<u64>(), cpu.usage.total);
    assert!(cpu.usage.user + cpu.usage.kernel >= 200_000_000, "more than 20 ticks of 10 ms: {:?}", cpu.usage);
    assert!(cpu.throttling.throttled_periods > 0);
    let lines = [
        format!("nr_throttled {}", cpu.throttling.throttled_periods),
        format!("throttled_time {}", cpu.throttling.throttled_time),
    ];
    assert_eq!(cpu_stat.lines().skip(1).take(2).collect::<Vec<_>>(), lines);
    assert_eq!(stats.pids.unwrap(), v1::Pids { current: 1, limit: 9 });
    assert_eq!(stats.memory_oom_control.unwrap().oom_kill, 0);
}

fn v2_says_what_the_files_say(cgroup: &Cgroup, stats: v2::Metrics, cpu_stat: &str) {
    let text = |file| read(cgroup, ("", ""), file);
    assert_eq!(stats.memory.usage_limit, 16_777_216);
    assert_eq!(stats.memory.usage.to_string(), text("memory.current"));
    assert!(text("memory.stat").lines().any(|line| line == format!("anon {}", stats.memory.stat.anon)));
    let cpu = stats.cpu.stat;
    // Of its 200 ms those before it was moved in (a test has no clone3) are not counted here.
    assert!(cpu.usage_usec >= 100_000 && cpu.nr_throttled > 0, "{cpu:?}");
    for line in [format!("usage_usec {}", cpu.usage_usec), format!("throttled_usec {}", cpu.throttled_usec)] {
        assert!(cpu_stat.lines().any(|other| other == line), "{line} in {cpu_stat}");
    }
    assert_eq!(stats.pids, v2::Pids { current: 1, limit: 9 });
    assert_eq!(stats.memory_events.map(|events| events.oom_kill), Some(0));
    // A kernel without pressure (CONFIG_PSI, psi=0) has no such files anywhere.
    let pressure = Path::new("/proc/pressure/cpu").exists();
    for (psi, file) in [(stats.cpu.psi, "cpu"), (stats.memory.psi, "memory"), (stats.io.psi, "io")] {
        assert_eq!(psi.is_some(), pressure, "{file}.pressure");
    }
    if let Some(psi) = stats.cpu.psi {
        let total = format!("total={}", psi.some.total);
        assert!(psi.some.total > 0 && text("cpu.pressure").contains(&total), "it waited for its quota: {psi:?}");
    }
}

#[test]
fn an_oom_kill_is_noticed_once_and_explained() {
    let Some(bench) = Bench::new("oom") else { return };
    let cgroup = bench.create(r#"{"memory":{"limit":8388608,"swap":8388608}}"#);
    let mut watch = cgroup.oom_watch().unwrap().unwrap();
    assert_eq!(watch.by_priority(), bench.layout.is_v2());
    let mut child = spawn(&cgroup, "tail /dev/zero; exit 3");
    let interest = if watch.by_priority() { PollFlags::POLLPRI } else { PollFlags::POLLIN };
    let mut kills = 0;
    while kills == 0 {
        // v2 stirs for every pressure on the limit.
        let mut fds = [PollFd::new(watch.as_fd(), interest)];
        assert_eq!(poll(&mut fds, PollTimeout::from(60_000u16)).unwrap(), 1);
        kills += watch.read().unwrap();
    }
    assert_eq!(child.wait().unwrap().code(), Some(3));
    kills += watch.read().unwrap(); // the last look, after the exit
    // v1 gives notice each time the limit is hit, also while the victim is still dying.
    assert!(kills == 1 || kills > 1 && !bench.layout.is_v2(), "{kills}");
    assert_eq!(watch.read().unwrap(), 0);
    let facts = cgroup.memory_facts().unwrap();
    assert_eq!((facts.limit, facts.kills), (Some(8_388_608), 1));
    assert_eq!(facts.hit, bench.layout.is_v2().then_some(Hit::Own));
    assert!(!watch.is_over());
    bench.remove(cgroup);
    assert_eq!(watch.read().unwrap(), 0, "removal is no kill");
    assert!(watch.is_over());
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
            let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
            assert_eq!(poll(&mut fds, PollTimeout::from(60_000u16)).unwrap(), 1, "populated, and no notice");
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

/// As the host's systemd does with a cgroup of v1 that it did not make.
#[test]
fn where_a_v1_directory_is_gone_one_more_process_enters_where_the_init_was_moved() {
    let Some(bench) = Bench::new("moved") else { return };
    let cgroup = bench.create("{}");
    let Some(gone) = cgroup.places().find(|place| !place.v2).cloned() else { return bench.remove(cgroup) };
    let child = spawn(&cgroup, "exec sleep 1000");
    let init = Pid::from_raw(child.id() as i32);
    fs::write(gone.mount.join("cgroup.procs"), init.to_string()).unwrap();
    fs::remove_dir(&gone.dir).unwrap();
    assert!(cgroup.entry().is_err());
    let entry = cgroup.entry_beside(init).unwrap();
    let positions = std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            entry.enter_v1().unwrap();
            fs::read_to_string("/proc/thread-self/cgroup").unwrap()
        });
        inside.join().unwrap()
    });
    // Of v2 a process is born in, not moved.
    let v1 = |text: String| text.lines().filter(|line| !line.starts_with("0:")).map(str::to_owned).collect::<Vec<_>>();
    let theirs = fs::read_to_string(format!("/proc/{init}/cgroup")).unwrap();
    assert_eq!(v1(positions), v1(theirs));
    end(child);
    bench.remove(cgroup);
}

#[test]
fn what_somebody_writes_over_the_limits_is_written_back() {
    let Some(bench) = Bench::new("hold") else { return };
    let cgroup =
        bench.create(r#"{"cpu":{"quota":50500,"period":100000},"pids":{"limit":7},"memory":{"limit":33554432}}"#);
    let devices = Limits::of_devices(None, &bench.layout).unwrap();
    let in_force = cgroup.in_force(devices).unwrap();
    let write = |controller: &str, file: &str, value: &str| {
        let of = |place: &&Place| place.controllers.iter().any(|name| name == controller);
        let file = cgroup.places().find(of).unwrap().dir.join(file);
        fs::write(&file, value).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    };
    match bench.layout.is_v2() {
        true => write("cpu", "cpu.max", "51000 100000"),
        false => write("cpu", "cpu.cfs_quota_us", "51000"),
    }
    write("pids", "pids.max", "max");
    assert_eq!(in_force.has_devices(), !bench.layout.is_v2());
    if !bench.layout.is_v2() {
        write("devices", "devices.deny", "a");
    }
    cgroup.hold(&in_force).unwrap();
    assert!(["50500", "50500 100000"].contains(&read(&cgroup, ("cpu", "cpu.cfs_quota_us"), "cpu.max").as_str()));
    assert_eq!(read(&cgroup, ("pids", "pids.max"), "pids.max"), "7");
    if !bench.layout.is_v2() {
        assert!(read(&cgroup, ("devices", "devices.list"), "").contains("c 1:3 rwm"));
    }
    bench.remove(cgroup);
}

#[test]
fn devices_stay_as_they_are_where_the_container_has_cgroups_of_its_own() {
    let Some(bench) = Bench::new("devices-below").and_then(|bench| bench.only(false)) else { return };
    let cgroup = bench.create("{}");
    let dir = cgroup.places().find(|place| place.controllers.iter().any(|name| name == "devices")).unwrap().dir.clone();
    let list = || fs::read_to_string(dir.join("devices.list")).unwrap();
    let before = list();
    fs::create_dir(dir.join("below")).unwrap();
    let in_force = cgroup.in_force(Limits::of_devices(None, &bench.layout).unwrap()).unwrap();
    cgroup.hold(&in_force).unwrap();
    assert_eq!(list(), before);
    bench.remove(cgroup);
}

//! What only cgroup v2 has. A hybrid machine's v2 mount has no controllers, so most of this needs a machine with v2 alone.

use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use super::*;

/// Some block device, as `major:minor`.
fn disk() -> Option<String> {
    let disks = fs::read_dir("/sys/block").ok()?;
    let numbers = disks.filter_map(|disk| fs::read_to_string(disk.ok()?.path().join("dev")).ok());
    // The memory disks (major 1) do not all have a queue to throttle.
    numbers.map(|number| number.trim().to_owned()).find(|number| !number.starts_with("1:"))
}

#[test]
fn every_value_is_in_the_file_of_its_version() {
    let Some(bench) = Bench::new("files").and_then(|bench| bench.has_v2(&["cpu", "memory", "pids", "cpuset"])) else {
        return;
    };
    for (json, file, value) in [
        (r#"{"cpu":{"shares":1024}}"#, "cpu.weight", "100"),
        (r#"{"cpu":{"shares":2}}"#, "cpu.weight", "1"),
        (r#"{"cpu":{"shares":262144}}"#, "cpu.weight", "10000"),
        (r#"{"cpu":{"shares":1024,"idle":1}}"#, "cpu.idle", "1"),
        (r#"{"cpu":{"quota":20000}}"#, "cpu.max", "20000 100000"),
        (r#"{"cpu":{"period":50000}}"#, "cpu.max", "max 50000"),
        (r#"{"cpu":{"quota":20000,"burst":10000}}"#, "cpu.max.burst", "10000"),
        (r#"{"cpu":{"cpus":"0","mems":"0"}}"#, "cpuset.cpus", "0"),
        (r#"{"memory":{"limit":33554432}}"#, "memory.max", "33554432"),
        (r#"{"memory":{"limit":33554432,"swap":33554432}}"#, "memory.swap.max", "0"),
        (r#"{"memory":{"limit":33554432,"swap":-1}}"#, "memory.swap.max", "max"),
        (r#"{"memory":{"limit":-1,"swap":33554432}}"#, "memory.swap.max", "33554432"),
        (r#"{"memory":{"reservation":4194304}}"#, "memory.low", "4194304"),
        (r#"{"unified":{"memory.high":"8388608","memory.min":"1048576"}}"#, "memory.high", "8388608"),
        (r#"{"unified":{"memory.min":"1048576","memory.oom.group":"1"}}"#, "memory.min", "1048576"),
        (r#"{"unified":{"cgroup.max.depth":"3","pids.max":"9"},"pids":{"limit":5}}"#, "pids.max", "9"),
        (r#"{"unified":{"cgroup.max.depth":"3"}}"#, "cgroup.max.depth", "3"),
        (r#"{"pids":{"limit":-1}}"#, "pids.max", "max"),
    ] {
        let cgroup = bench.create(json);
        assert_eq!(read(&cgroup, ("", ""), file), value, "{json}");
        bench.remove(cgroup);
    }
}

#[test]
fn disks_are_throttled_and_weighed() {
    let Some(bench) = Bench::new("disks").and_then(|bench| bench.has_v2(&["io"])) else { return };
    let Some(disk) = disk() else {
        eprintln!("SKIPPED {}: this machine has no block device", bench.name);
        return;
    };
    let (major, minor) = disk.split_once(':').unwrap();
    let device = format!(r#""major":{major},"minor":{minor}"#);
    let cgroup = bench.create(&format!(
        r#"{{"blockIO":{{"weight":505,"throttleReadBpsDevice":[{{{device},"rate":1048576}}],
        "throttleWriteIOPSDevice":[{{{device},"rate":20}}]}}}}"#
    ));
    let line = format!("{disk} rbps=1048576 wbps=max riops=max wiops=20");
    assert_eq!(read(&cgroup, ("", ""), "io.max"), line);
    let bfq = bench.dirs()[0].join("io.bfq.weight").exists();
    let (file, weight) = if bfq { ("io.bfq.weight", "505") } else { ("io.weight", "5000") };
    assert_eq!(read(&cgroup, ("", ""), file).trim_start_matches("default "), weight);
    let lifted = format!(r#"{{"unified":{{"io.max":"{disk} rbps=max\n{disk} wiops=max"}}}}"#);
    cgroup.update(&bench.update(&lifted)).unwrap();
    assert_eq!(read(&cgroup, ("", ""), "io.max"), "");
    bench.remove(cgroup);
}

#[test]
fn huge_pages_are_limited_with_their_reservations() {
    let Some(bench) = Bench::new("huge").and_then(|bench| bench.has_v2(&["hugetlb"])) else { return };
    let Some(size) = bench.layout.hugepage_sizes.first() else {
        eprintln!("SKIPPED {}: this machine has no huge pages", bench.name);
        return;
    };
    let cgroup = bench.create(&format!(r#"{{"hugepageLimits":[{{"pageSize":"{size}","limit":0}}]}}"#));
    assert_eq!(read(&cgroup, ("", ""), &format!("hugetlb.{size}.max")), "0");
    assert_eq!(read(&cgroup, ("", ""), &format!("hugetlb.{size}.rsvd.max")), "0");
    let Stats::V2(stats) = cgroup.stats().unwrap() else { panic!("v2") };
    assert!(stats.hugetlb.iter().any(|pages| pages.pagesize == *size && pages.max == 0), "{:?}", stats.hugetlb);
    bench.remove(cgroup);
}

#[test]
fn half_an_update_keeps_the_other_half() {
    let Some(bench) = Bench::new("half").and_then(|bench| bench.has_v2(&["cpu", "memory"])) else { return };
    let cgroup = bench.create(r#"{"cpu":{"quota":20000,"period":50000},"memory":{"limit":33554432,"swap":33554432}}"#);
    for (json, file, value) in [
        (r#"{"cpu":{"period":80000}}"#, "cpu.max", "20000 80000"),
        (r#"{"cpu":{"quota":30000}}"#, "cpu.max", "30000 80000"),
        (r#"{"cpu":{"quota":-1}}"#, "cpu.max", "max 80000"),
        (r#"{"memory":{"swap":50331648}}"#, "memory.swap.max", "16777216"),
        (r#"{"memory":{"swap":-1}}"#, "memory.swap.max", "max"),
        (r#"{"memory":{"limit":16777216,"swap":33554432}}"#, "memory.max", "16777216"),
        (r#"{"cpu":{"idle":1,"shares":512}}"#, "cpu.idle", "1"),
        (r#"{"cpu":{"idle":0,"shares":512}}"#, "cpu.weight", "59"),
        // A burst above the quota, with a quota below the burst in force: one order works each time.
        (r#"{"cpu":{"quota":40000,"burst":30000}}"#, "cpu.max.burst", "30000"),
        (r#"{"cpu":{"quota":10000,"burst":5000}}"#, "cpu.max.burst", "5000"),
        (r#"{"cpu":{"quota":70000,"burst":60000}}"#, "cpu.max.burst", "60000"),
    ] {
        cgroup.update(&bench.update(json)).unwrap_or_else(|error| panic!("{json}: {error}"));
        assert_eq!(read(&cgroup, ("", ""), file), value, "{json}");
    }
    let below = cgroup.update(&bench.update(r#"{"memory":{"swap":4096}}"#)).unwrap_err().to_string();
    assert!(below.contains("linux.resources.memory.swap: write \"4096\""), "{below}");
    bench.remove(cgroup);
}

#[test]
fn a_limit_below_what_is_in_use_is_refused_if_asked_to() {
    let Some(bench) = Bench::new("check").and_then(|bench| bench.has_v2(&["memory"])) else { return };
    let cgroup = bench.create("{}");
    let child = spawn(&cgroup, "x=$(yes | head -c 1000000); sleep 60; echo $x");
    soon(|| read(&cgroup, ("", ""), "memory.current").parse::<u64>().unwrap() > 1_000_000);
    let refused = cgroup.update(&bench.update(r#"{"memory":{"limit":4096,"checkBeforeUpdate":true}}"#)).unwrap_err();
    assert!(refused.to_string().contains("checkBeforeUpdate asks not to kill for it"), "{refused}");
    assert_eq!(read(&cgroup, ("", ""), "memory.max"), "max");
    end(child);
    bench.remove(cgroup);
}

#[test]
fn controllers_reach_the_container_through_all_levels() {
    let Some(mut bench) = Bench::new("levels").and_then(|bench| bench.has_v2(&[])) else { return };
    let path = format!("/{}/a/b/c", bench.name);
    bench.path = CgroupPath::new(Some(Path::new(&path)), "").unwrap();
    let cgroup = bench.create("{}");
    let place = cgroup.places().next().unwrap();
    assert_eq!(read(&cgroup, ("", ""), "cgroup.controllers").split(' ').collect::<Vec<_>>(), place.controllers);
    assert_eq!(read(&cgroup, ("", ""), "cgroup.subtree_control"), "", "its own processes come in");
    bench.remove(cgroup);
}

#[test]
fn what_a_populated_parent_withholds_is_said_by_the_limit_that_wants_it() {
    let Some(bench) = Bench::new("withheld").and_then(|bench| bench.has_v2(&["pids"])) else { return };
    let parent = bench.dirs()[0].parent().unwrap().to_owned();
    fs::create_dir(&parent).unwrap();
    let mut process = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
    fs::write(parent.join("cgroup.procs"), process.id().to_string()).unwrap();
    let limits = bench.limits(r#"{"pids":{"limit":5}}"#);
    let error = Cgroup::create(&bench.path, &limits, &bench.layout).unwrap_err().to_string();
    let expected = format!("the pids controller could not be had from {}: EBUSY", parent.display());
    assert!(error.starts_with("linux.resources.pids.limit: write \"5\"") && error.contains(&expected), "{error}");
    assert!(!bench.dirs()[0].exists());
    // Who wants none of it is not in the way.
    let mut cgroup = bench.create("{}");
    end(spawn(&cgroup, "exec sleep 60"));
    soon(|| cgroup.remove().is_ok());
    process.kill().unwrap();
    process.wait().unwrap();
    soon(|| fs::remove_dir(&parent).is_ok());
}

#[test]
fn a_container_below_a_threaded_cgroup_is_refused() {
    let Some(bench) = Bench::new("threaded").and_then(|bench| bench.only(true)) else { return };
    let parent = bench.dirs()[0].parent().unwrap().to_owned();
    fs::create_dir(&parent).unwrap();
    fs::write(parent.join("cgroup.type"), "threaded").unwrap();
    let refused = Cgroup::create(&bench.path, &bench.limits("{}"), &bench.layout);
    assert!(matches!(refused, Err(CgroupError::Threaded { .. })), "{refused:?}");
    assert!(!bench.dirs()[0].exists());
    fs::remove_dir(&parent).unwrap();
}

#[test]
fn threads_of_a_container_in_cgroups_of_their_own_are_its_own() {
    let Some(bench) = Bench::new("threads").and_then(|bench| bench.only(true)) else { return };
    let cgroup = bench.create("{}");
    let mut child = spawn(&cgroup, "exec sleep 60");
    let below = bench.dirs()[0].join("threads");
    fs::create_dir(&below).unwrap();
    fs::write(below.join("cgroup.type"), "threaded").unwrap();
    fs::write(below.join("cgroup.threads"), child.id().to_string()).unwrap();
    assert_eq!(cgroup.pids().unwrap(), [Pid::from_raw(child.id() as i32)]);
    freeze(&cgroup);
    cgroup.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    bench.remove(cgroup);
}

#[test]
fn the_limit_above_that_was_hit_is_named() {
    let Some(bench) = Bench::new("above").and_then(|bench| bench.has_v2(&["memory"])) else { return };
    let cgroup = bench.create("{}");
    let parent = bench.dirs()[0].parent().unwrap().to_owned();
    fs::write(parent.join("memory.swap.max"), "0").unwrap();
    fs::write(parent.join("memory.max"), "16777216").unwrap();
    let mut watch = cgroup.oom_watch().unwrap().unwrap();
    let mut child = spawn(&cgroup, "tail /dev/zero; exit 3");
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert_eq!(watch.read().unwrap(), 1);
    let facts = watch.facts(&cgroup).unwrap();
    assert_eq!((facts.limit, facts.hit.clone()), (None, Some(Hit::Above(parent.clone()))));
    assert_eq!(cgroup.memory_facts(), Some(facts));
    // A later container is not told of what was before it.
    assert_eq!(cgroup.oom_watch().unwrap().unwrap().facts(&cgroup).unwrap().hit, Some(Hit::Machine));
    bench.remove(cgroup);
}

#[test]
fn a_group_that_dies_together_is_counted_process_by_process() {
    let Some(bench) = Bench::new("group").and_then(|bench| bench.has_v2(&["memory"])) else { return };
    let json = r#"{"memory":{"limit":16777216,"swap":16777216},"unified":{"memory.oom.group":"1"}}"#;
    let cgroup = bench.create(json);
    let mut watch = cgroup.oom_watch().unwrap().unwrap();
    let mut child = spawn(&cgroup, "sleep 60 & tail /dev/zero; exit 3");
    assert_eq!(child.wait().unwrap().signal(), Some(9), "the shell died with the culprit");
    soon(|| cgroup.pids().unwrap().is_empty());
    assert!(watch.read().unwrap() >= 3, "the kernel counts the first victim with the group once more");
    assert_eq!(watch.facts(&cgroup).unwrap().hit, Some(Hit::Own));
    bench.remove(cgroup);
}

#[test]
fn new_device_rules_take_the_place_of_the_former_in_one_step() {
    let Some(bench) = Bench::new("rules").and_then(|bench| bench.only(true)) else { return };
    let cgroup = bench.create(r#"{"devices":[]}"#);
    // zero is every container's at any time; kmsg only once the rules say so.
    let mut child = spawn(&cgroup, "while :; do : </dev/zero || exit 7; (: </dev/kmsg) && exit 0; done");
    for minor in 200..240 {
        let rule = format!(r#"{{"devices":[{{"allow":true,"type":"c","major":10,"minor":{minor},"access":"rw"}}]}}"#);
        cgroup.update(&bench.update(&rule)).unwrap();
    }
    assert!(child.try_wait().unwrap().is_none(), "zero was shut for a moment, or kmsg open");
    let open = r#"{"devices":[{"allow":true,"type":"c","major":1,"minor":11,"access":"r"}]}"#;
    cgroup.update(&bench.update(open)).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    bench.remove(cgroup);
}

#[test]
fn a_delegated_cgroup_has_another_owner_but_not_its_limits() {
    let Some(bench) = Bench::new("delegate").and_then(|bench| bench.only(true)) else { return };
    let cgroup = bench.create("{}");
    cgroup.delegate(nix::unistd::Uid::from_raw(12_345)).unwrap();
    let dir = &bench.dirs()[0];
    let owner = |file: &str| fs::metadata(dir.join(file)).unwrap().uid();
    assert_eq!(["", "cgroup.procs", "cgroup.subtree_control"].map(owner), [12_345; 3]);
    assert_eq!(owner("cgroup.max.depth"), 0);
    assert_eq!(fs::metadata(dir.parent().unwrap()).unwrap().uid(), 0);
    bench.remove(cgroup);
}

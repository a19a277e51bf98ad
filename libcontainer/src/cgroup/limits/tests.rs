use super::super::layout::{Hierarchies, Hierarchy};
use super::compile::{io_weight, weight_of_shares};
use super::*;

fn hierarchy(controllers: &[&str]) -> Hierarchy {
    let controllers = controllers.iter().map(|&name| name.to_owned()).collect();
    Hierarchy { controllers, mount: "/m".into(), own: "".into() }
}

fn layout(hierarchies: Hierarchies) -> Layout {
    Layout { hierarchies, hugepage_sizes: vec!["2MB".into(), "1GB".into()], user_namespace: false }
}

fn v1() -> Layout {
    let all = "cpu cpuset memory pids blkio hugetlb rdma net_cls net_prio devices".split(' ');
    layout(Hierarchies::V1 { controllers: all.map(|name| hierarchy(&[name])).collect(), unified: None })
}

fn v2() -> Layout {
    layout(Hierarchies::V2(hierarchy(&["cpu", "cpuset", "memory", "pids", "io", "hugetlb", "rdma"])))
}

/// Without devices, which every new container has.
fn compile(json: &str, layout: &Layout) -> Result<Vec<String>, Vec<String>> {
    let layout = Layout { user_namespace: true, ..layout.clone() };
    lines(Limits::compile(&serde_json::from_str(json).unwrap(), &layout))
}

fn update(json: &str, layout: &Layout) -> Result<Vec<String>, Vec<String>> {
    lines(Limits::compile_update(&serde_json::from_str(json).unwrap(), layout))
}

fn lines(limits: Result<Limits, Vec<Problem>>) -> Result<Vec<String>, Vec<String>> {
    match limits {
        Ok(limits) => Ok(limits.to_string().lines().map(str::to_owned).collect()),
        Err(problems) => Err(problems.iter().map(Problem::to_string).collect()),
    }
}

#[test]
fn each_field_becomes_the_file_of_its_version() {
    for (json, on_v1, on_v2) in [
        (r#"{"cpu":{"shares":1024}}"#, &["cpu.shares = 1024"][..], &["cpu.weight = 100"][..]),
        (r#"{"cpu":{"shares":0,"quota":0,"period":0}}"#, &[], &[]),
        (
            r#"{"cpu":{"quota":20000,"period":50000}}"#,
            &["cpu.cfs_period_us = 50000", "cpu.cfs_quota_us = 20000"],
            &["cpu.max = 20000 50000"],
        ),
        (r#"{"cpu":{"quota":-1}}"#, &["cpu.cfs_quota_us = -1"], &["cpu.max = max"]),
        (r#"{"cpu":{"period":50000}}"#, &["cpu.cfs_period_us = 50000"], &["cpu.max = max 50000"]),
        (
            r#"{"cpu":{"shares":512,"idle":1,"burst":5000}}"#,
            &["cpu.idle = 1", "cpu.cfs_burst_us = 5000"],
            &["cpu.idle = 1", "cpu.max.burst = 5000"],
        ),
        (
            r#"{"cpu":{"cpus":"0-3","mems":"0"}}"#,
            &["cpuset.cpus = 0-3", "cpuset.mems = 0"],
            &["cpuset.cpus = 0-3", "cpuset.mems = 0"],
        ),
        (
            r#"{"memory":{"limit":100,"swap":250,"reservation":50}}"#,
            &["memory.limit_in_bytes = 100", "memory.memsw.limit_in_bytes = 250", "memory.soft_limit_in_bytes = 50"],
            &["memory.swap.max = 150", "memory.max = 100", "memory.low = 50"],
        ),
        (
            r#"{"memory":{"limit":100,"swap":100}}"#,
            &["memory.limit_in_bytes = 100", "memory.memsw.limit_in_bytes = 100"],
            &["memory.swap.max = 0 (if there)", "memory.max = 100"],
        ),
        (
            r#"{"memory":{"limit":-1}}"#,
            &["memory.limit_in_bytes = -1", "memory.memsw.limit_in_bytes = -1 (if there)"],
            &["memory.swap.max = max (if there)", "memory.max = max"],
        ),
        (
            r#"{"memory":{"limit":100,"swap":-1}}"#,
            &["memory.limit_in_bytes = 100", "memory.memsw.limit_in_bytes = -1 (if there)"],
            &["memory.swap.max = max (if there)", "memory.max = 100"],
        ),
        // v1's kernel will refuse a sum below its part; on v2 there is no part to take away.
        (
            r#"{"memory":{"limit":-1,"swap":250}}"#,
            &["memory.limit_in_bytes = -1", "memory.memsw.limit_in_bytes = 250"],
            &["memory.swap.max = 250", "memory.max = max"],
        ),
        (r#"{"memory":{"kernel":4096,"swappiness":18446744073709551615,"disableOOMKiller":false}}"#, &[], &[]),
        (r#"{"pids":{"limit":32}}"#, &["pids.max = 32"], &["pids.max = 32"]),
        (r#"{"pids":{"limit":-1}}"#, &["pids.max = max"], &["pids.max = max"]),
        (r#"{"pids":{"limit":0}}"#, &[], &[]),
        (
            r#"{"blockIO":{"weight":500,"weightDevice":[{"major":8,"minor":0,"weight":10}],
                "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1048576}],
                "throttleWriteIOPSDevice":[{"major":8,"minor":16,"rate":20}]}}"#,
            &[
                "blkio.weight = 500 (or blkio.bfq.weight = 500)",
                "blkio.weight_device = 8:0 10 (or blkio.bfq.weight_device = 8:0 10)",
                "blkio.throttle.read_bps_device = 8:0 1048576",
                "blkio.throttle.write_iops_device = 8:16 20",
            ],
            &[
                "io.bfq.weight = 500 (or io.weight = 4950)",
                "io.bfq.weight = 8:0 10 (or io.weight = 8:0 1)",
                "io.max = 8:0 rbps=1048576",
                "io.max = 8:16 wiops=20",
            ],
        ),
        (
            r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#,
            &["hugetlb.2MB.limit_in_bytes = 4194304", "hugetlb.2MB.rsvd.limit_in_bytes = 4194304 (if there)"],
            &["hugetlb.2MB.max = 4194304", "hugetlb.2MB.rsvd.max = 4194304 (if there)"],
        ),
        (
            r#"{"rdma":{"mlx5_1":{"hcaHandles":3,"hcaObjects":10000},"mlx4_0":{"hcaObjects":7}}}"#,
            &["rdma.max = mlx4_0 hca_object=7", "rdma.max = mlx5_1 hca_handle=3 hca_object=10000"],
            &["rdma.max = mlx4_0 hca_object=7", "rdma.max = mlx5_1 hca_handle=3 hca_object=10000"],
        ),
    ] {
        assert_eq!(compile(json, &v1()).as_deref(), Ok(on_v1.map_owned().as_slice()), "v1: {json}");
        assert_eq!(compile(json, &v2()).as_deref(), Ok(on_v2.map_owned().as_slice()), "v2: {json}");
    }
}

trait MapOwned {
    fn map_owned(&self) -> Vec<String>;
}

impl MapOwned for [&str] {
    fn map_owned(&self) -> Vec<String> {
        self.iter().map(|&line| line.to_owned()).collect()
    }
}

#[test]
fn half_an_update_is_completed_with_what_is_in_force() {
    for (json, on_v1, on_v2) in [
        (r#"{"cpu":{"quota":20000}}"#, "cpu.cfs_quota_us = 20000", "cpu.max = 20000"),
        (r#"{"cpu":{"period":50000}}"#, "cpu.cfs_period_us = 50000", "cpu.max = (quota) 50000"),
        (r#"{"memory":{"swap":250}}"#, "memory.memsw.limit_in_bytes = 250", "memory.swap.max = 250 - (memory limit)"),
        (
            r#"{"memory":{"swap":-1}}"#,
            "memory.memsw.limit_in_bytes = -1 (if there)",
            "memory.swap.max = max (if there)",
        ),
    ] {
        assert_eq!(update(json, &v1()), Ok(vec![on_v1.to_owned()]), "v1: {json}");
        assert_eq!(update(json, &v2()), Ok(vec![on_v2.to_owned()]), "v2: {json}");
    }
}

#[test]
fn what_only_v1_has() {
    for (json, on_v1, field) in [
        (r#"{"cpu":{"realtimePeriod":1000000}}"#, "cpu.rt_period_us = 1000000", "cpu.realtimePeriod"),
        (r#"{"cpu":{"realtimeRuntime":950000}}"#, "cpu.rt_runtime_us = 950000", "cpu.realtimeRuntime"),
        (r#"{"memory":{"kernelTCP":4096}}"#, "memory.kmem.tcp.limit_in_bytes = 4096", "memory.kernelTCP"),
        (r#"{"memory":{"swappiness":0}}"#, "memory.swappiness = 0", "memory.swappiness"),
        (r#"{"memory":{"disableOOMKiller":true}}"#, "memory.oom_control = 1", "memory.disableOOMKiller"),
        (r#"{"blockIO":{"leafWeight":300}}"#, "blkio.leaf_weight = 300", "blockIO.leafWeight"),
        (r#"{"network":{"classID":1048577}}"#, "net_cls.classid = 1048577", "network.classID"),
        (
            r#"{"network":{"priorities":[{"name":"eth0","priority":5}]}}"#,
            "net_prio.ifpriomap = eth0 5",
            "network.priorities",
        ),
    ] {
        assert_eq!(compile(json, &v1()), Ok(vec![on_v1.to_owned()]));
        let text = format!("linux.resources.{field}: cgroup v2 has no such setting: remove the field");
        assert_eq!(compile(json, &v2()), Err(vec![text]));
    }
}

#[test]
fn unified_is_written_last_and_only_on_v2() {
    let json = r#"{"unified":{"pids.max":"9","memory.high":"100","cgroup.max.depth":"3"},"pids":{"limit":5}}"#;
    let lines = ["pids.max = 5", "cgroup.max.depth = 3", "memory.high = 100", "pids.max = 9"];
    assert_eq!(compile(json, &v2()), Ok(lines.map(str::to_owned).to_vec()));
    assert_eq!(compile(json, &v1()).unwrap_err().len(), 3);
    let devices = r#"{"unified":{"io.max":"8:0 rbps=1\n8:16 wbps=2"}}"#;
    assert_eq!(
        compile(devices, &v2()),
        Ok(["io.max = 8:0 rbps=1", "io.max = 8:16 wbps=2"].map(str::to_owned).to_vec())
    );
    for (bad, why) in [
        ("../pids.max", "not the name of a cgroup v2 file (controller.setting)"),
        ("pids", "not the name of a cgroup v2 file (controller.setting)"),
        ("misc.max", "no misc controller on this host: remove the field"),
        (
            "cgroup.procs",
            "not a limit but the runtime's own; of these files use \
             [\"cgroup.max.depth\", \"cgroup.max.descendants\", \"cgroup.pressure\"]",
        ),
    ] {
        let json = format!(r#"{{"unified":{{"{bad}":"9"}}}}"#);
        assert_eq!(compile(&json, &v2()), Err(vec![format!("linux.resources.unified[{bad}]: {why}")]));
    }
}

#[test]
fn a_missing_controller_is_named_and_only_when_asked_for() {
    let bare = layout(Hierarchies::V1 { controllers: vec![hierarchy(&["devices"])], unified: None });
    let nothing = r#"{"pids":{"limit":0},"memory":{"limit":0},"hugepageLimits":[],"cpu":{"cpus":""}}"#;
    assert_eq!(compile(nothing, &bare), Ok(vec![]));
    let problems = compile(r#"{"pids":{"limit":1},"hugepageLimits":[{"pageSize":"2MB","limit":0}]}"#, &bare);
    let expected = "linux.resources.hugepageLimits: no hugetlb controller on this host: remove the field, \
                    or mount it (mount -t cgroup -o hugetlb none /sys/fs/cgroup/hugetlb)";
    let problems = problems.unwrap_err();
    assert_eq!(problems.len(), 2, "all at once: {problems:?}");
    assert_eq!(problems[1], expected);
}

#[test]
fn values_the_kernel_would_misread_are_refused() {
    for (json, layout, field) in [
        (r#"{"cpu":{"shares":1}}"#, v1(), "cpu.shares: 1 is outside of 2..262144"),
        (r#"{"memory":{"swappiness":101}}"#, v1(), "memory.swappiness: 101 is outside of 0..100"),
        (r#"{"blockIO":{"weight":5}}"#, v1(), "blockIO.weight: 5 is outside of 10..1000"),
        (
            r#"{"hugepageLimits":[{"pageSize":"3MB","limit":1}]}"#,
            v2(),
            "hugepageLimits: this machine has no huge pages of 3MB (it has 2MB, 1GB)",
        ),
        (
            r#"{"memory":{"swap":100}}"#,
            v2(),
            "memory.swap: without linux.resources.memory.limit it cannot be told how much of it is swap",
        ),
        (
            r#"{"memory":{"limit":100,"swap":50}}"#,
            v2(),
            "memory.swap: 50 counts memory and swap, so it must not be below the limit of 100",
        ),
    ] {
        assert_eq!(compile(json, &layout), Err(vec![format!("linux.resources.{field}")]));
    }
}

#[test]
fn shares_meet_both_ends_and_both_defaults() {
    for (shares, weight) in [(0, 1), (1, 1), (2, 1), (1024, 100), (262_144, 10_000), (u64::MAX, 10_000)] {
        assert_eq!(weight_of_shares(shares), weight, "{shares}");
    }
    let weights: Vec<u64> = (2..=262_144).step_by(7).map(weight_of_shares).collect();
    assert!(weights.is_sorted());
    assert_eq!([10, 55, 1000].map(io_weight), [1, 455, 10_000]);
}

#[test]
fn a_new_container_always_has_device_rules_an_update_those_it_brings() {
    let resources = LinuxResources::default();
    assert!(Limits::compile(&resources, &v1()).unwrap().to_string().starts_with("devices.deny = a\n"));
    assert!(Limits::compile(&resources, &v2()).unwrap().to_string().starts_with("device filter of "));
    let some = r#"{"devices":[{"allow":true,"access":"rwm"}]}"#;
    assert!(update(some, &v2()).unwrap()[0].starts_with("device filter of "));
    for (json, layout) in [("{}", v1()), (some, v1()), ("{}", v2()), (r#"{"devices":[]}"#, v2())] {
        assert_eq!(update(json, &layout), Ok(vec![]), "{json}");
    }
    let nested = Layout { user_namespace: true, ..v1() };
    assert_eq!(Limits::compile(&resources, &nested).unwrap().to_string(), "");
}

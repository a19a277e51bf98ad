//! Whole plans, without a machine: the specs engines write and what becomes of them, the orders that matter, and what is
//! refused.
//!
//! The specs are `tests/plans/*.json`, the plans `tests/plans/*.txt`. Where a plan is meant to change,
//! `PLANS=write cargo test -p libcontainer plan::` writes them anew; read the difference.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use nix::sched::CloneFlags;
use nix::time::{ClockId, clock_gettime};
use oci_spec::runtime::{Process, Spec};
use serde_json::{Value, json};

use super::*;
use crate::cgroup::Hierarchies;
use crate::host::sample::{hierarchy, host};
use crate::step::PidNamespace;
use crate::step::mount::Mount;

const SAMPLES: [&str; 7] = [
    "ctr",
    "docker",
    "docker-privileged",
    "kubernetes-pause",
    "kubernetes-app",
    "kubernetes-userns-pause",
    "kubernetes-userns-app",
];

fn v2() -> Host {
    host(Hierarchies::V2(hierarchy("/sys/fs/cgroup", &["cpuset", "cpu", "io", "memory", "hugetlb", "pids"])))
}

fn v1() -> Host {
    let names = ["cpu,cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb", "name=systemd"];
    let controllers = names.map(|name| {
        let folder = format!("/sys/fs/cgroup/{}", name.trim_start_matches("name="));
        hierarchy(&folder, &name.split(',').collect::<Vec<_>>())
    });
    host(Hierarchies::V1 { controllers: controllers.to_vec(), unified: None })
}

/// The same in a user namespace of an ordinary user.
fn below(host: &Host) -> Host {
    Host { in_user_namespace: true, pid_namespace_returns: false, mknod: false, ..host.clone() }
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/plans")
}

/// The config.json of a sample; with `seccomp`, under Docker's default profile.
fn config(name: &str, seccomp: bool) -> Value {
    let read = |path: PathBuf| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let mut config = read(folder().join(format!("{name}.json")));
    if seccomp {
        config["linux"]["seccomp"] = read(folder().join("../profiles/docker.json"));
    }
    config
}

fn request() -> Request {
    Request {
        id: "web-1".into(),
        bundle: "/bundle".into(),
        rootfs: "/bundle/rootfs".into(),
        no_pivot: false,
        no_new_keyring: false,
        preserve_fds: 0,
        systemd: None,
    }
}

fn create(mut config: Value, host: &Host) -> Result<Plan, SpecError> {
    if matches!(host.cgroups.hierarchies, Hierarchies::V1 { .. })
        && let Some(resources) = config.pointer_mut("/linux/resources").and_then(Value::as_object_mut)
    {
        resources.remove("unified"); // engines send it to cgroup v2 only
    }
    Plan::create(&serde_json::from_value(config).unwrap(), host, &request())
}

/// Under systemd. The annotations are those of its properties.
fn create_unit(mut config: Value, host: &Host, path: &str, annotations: Value) -> Result<Plan, SpecError> {
    config["linux"]["cgroupsPath"] = json!(path);
    config["annotations"] = annotations;
    if matches!(host.cgroups.hierarchies, Hierarchies::V1 { .. }) {
        config["linux"]["resources"]["unified"] = Value::Null;
    }
    let request = Request { systemd: Some(Manager::of(host)), ..request() };
    Plan::create(&serde_json::from_value(config).unwrap(), host, &request)
}

fn exec(config: Value, process: Value, host: &Host) -> Result<Plan, SpecError> {
    let (spec, process): (Spec, Process) =
        (serde_json::from_value(config).unwrap(), serde_json::from_value(process).unwrap());
    let request = ExecRequest { id: "web-1", spec: &spec, process: &process, no_new_keyring: false, preserve_fds: 0 };
    Plan::exec(&request, host)
}

/// As `kubectl exec` and `docker exec` do: the container's own process with other arguments.
fn probe(config: &Value) -> Value {
    let mut process = config["process"].clone();
    process["args"] = json!(["/bin/true"]);
    process
}

/// Every plan that the orders below must hold for.
fn sample_plans() -> Vec<Plan> {
    let mut plans = Vec::new();
    for (name, seccomp) in SAMPLES.into_iter().flat_map(|name| [(name, false), (name, true)]) {
        for host in [v1(), v2()] {
            for no_new_privileges in [false, true] {
                let mut config = config(name, seccomp);
                config["process"]["noNewPrivileges"] = json!(no_new_privileges);
                config["hooks"]["createContainer"] = json!([{ "path": "/hook" }]);
                config["hooks"]["startContainer"] = json!([{ "path": "/hook" }]);
                let hooked = create(config.clone(), &host).unwrap_or_else(|error| panic!("{name}: {error}"));
                plans.push(hooked);
                plans.push(exec(config.clone(), probe(&config), &host).unwrap());
                plans.push(exec(config.clone(), probe(&config), &below(&host)).unwrap());
            }
        }
    }
    plans
}

fn compare(name: &str, plan: &Plan) {
    let path = folder().join(format!("{name}.txt"));
    let text = plan.to_string();
    if std::env::var_os("PLANS").is_some_and(|plans| plans == "write") {
        fs::write(&path, &text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    let differs = expected.lines().zip(text.lines()).position(|(expected, line)| expected != line);
    assert_eq!(expected, text, "{} differs from line {:?}", path.display(), differs.map(|line| line + 1));
}

#[test]
fn engines_specs_become_the_expected_plans() {
    for name in SAMPLES {
        compare(name, &create(config(name, name != "docker-privileged"), &v2()).unwrap());
    }
    for name in ["ctr", "docker", "kubernetes-app"] {
        compare(&format!("{name}-cgroup1"), &create(config(name, false), &v1()).unwrap());
    }
    for name in ["kubernetes-app", "kubernetes-userns-app"] {
        let config = config(name, true);
        compare(&format!("{name}-exec"), &exec(config.clone(), probe(&config), &v2()).unwrap());
    }
    let config = config("docker", false);
    compare("docker-exec-rootless", &exec(config.clone(), probe(&config), &below(&v2())).unwrap());
}

const POD: &str = "kubepods-burstable-poda1.slice:cri-containerd:app";

/// As Docker and `dunnage run` have it on cgroup v1.
fn without_cgroup_namespace(mut config: Value) -> Value {
    config["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "cgroup");
    config
}

#[test]
fn under_systemd_the_plan_starts_a_unit() {
    let annotations = json!({ "org.systemd.property.TimeoutStopSec": "90", "org.systemd.property.Delegate": "false" });
    let plan = create_unit(config("kubernetes-app", false), &v2(), POD, annotations).unwrap();
    compare("kubernetes-app-systemd", &plan);
    let plan = create_unit(config("kubernetes-userns-app", false), &v2(), POD, json!({})).unwrap();
    compare("kubernetes-userns-app-systemd", &plan);
    let plan = create_unit(config("kubernetes-app", false), &v1(), POD, json!({})).unwrap();
    compare("kubernetes-app-systemd-cgroup1", &plan);
    // Without a cgroup namespace, the unit's directories are shown.
    let plan = create_unit(without_cgroup_namespace(config("docker", false)), &v1(), POD, json!({})).unwrap();
    compare("docker-systemd-cgroup1", &plan);
}

#[test]
fn nothing_that_its_cgroup_is_part_of_is_done_before_systemd_has_placed_the_child() {
    for name in SAMPLES {
        let sample = config(name, true);
        let samples = [without_cgroup_namespace(sample.clone()), sample];
        for (host, config) in [v1(), v2()].iter().flat_map(|host| samples.iter().map(move |config| (host, config))) {
            let plan = create_unit(config.clone(), host, POD, json!({})).unwrap();
            let placed = meeting(&plan, Meeting::Placed).expect("a meeting");
            let unit = |entry: &Entry| matches!(entry, Entry::Parent(Chore::Unit { .. }));
            assert!(plan.entries[..placed].iter().any(unit), "{plan}");
            assert!(plan.place(|step| matches!(step, Step::Fork(_))).is_none_or(|fork| placed < fork), "{plan}");
            let first = plan.place(|step| matches!(step, Step::CgroupNamespace | Step::Mount(_) | Step::Root(_)));
            assert!(Some(placed) < first, "{plan}");
            let shown = |entry: &Entry| matches!(entry, Entry::Before(chore @ Chore::Mount(_)) if chore.to_string().contains(".scope"));
            assert!(!plan.entries[..placed].iter().any(shown), "{plan}");
        }
    }
}

#[test]
fn what_cannot_be_a_unit_is_found_before_anything_is_touched() {
    let bad = json!({ "org.systemd.property.TimeoutStopUSec": "uint64 x", "org.systemd.property.X": "1" });
    let SpecError(problems) = create_unit(config("ctr", false), &v2(), POD, bad).unwrap_err();
    let fields: Vec<_> = problems.iter().map(|problem| problem.field.as_str()).collect();
    let prefix = "annotations[org.systemd.property.";
    assert_eq!(fields, [format!("{prefix}TimeoutStopUSec]"), format!("{prefix}X]")]);
    let SpecError(problems) = create_unit(config("ctr", false), &v2(), "/default/web-1", json!({})).unwrap_err();
    assert!(problems.len() == 1 && problems[0].to_string().contains("slice:prefix:name"), "{problems:?}");
}

#[test]
fn the_same_spec_gives_the_same_plan() {
    for name in SAMPLES {
        let text = || create(config(name, true), &v2()).unwrap().to_string();
        assert!((0..5).all(|_| text() == text()), "{name}");
    }
}

/// The place of the last entry that matches.
fn last(plan: &Plan, matches: impl Fn(&Step) -> bool) -> Option<usize> {
    plan.entries.iter().rposition(|entry| matches!(entry, Entry::Child(step) if matches(step)))
}

fn meeting(plan: &Plan, meeting: Meeting) -> Option<usize> {
    plan.entries.iter().position(|entry| matches!(entry, Entry::Both(met) if *met == meeting))
}

/// Every entry that is `first` stands before every one that is `second`. Says whether there were both.
fn ordered(plan: &Plan, first: impl Fn(&Step) -> bool, second: impl Fn(&Step) -> bool) -> bool {
    match (last(plan, first), plan.place(second)) {
        (Some(first), Some(second)) => {
            assert!(first < second, "{plan}");
            true
        }
        _ => false,
    }
}

fn is_hidden(step: &Step) -> bool {
    matches!(step, Step::Mount(Mount::Mask(_) | Mount::ReadOnly(_)))
}

fn is_pivot(step: &Step) -> bool {
    matches!(step, Step::Root(Root::Pivot))
}

fn is_become(step: &Step) -> bool {
    matches!(step, Step::Become { .. })
}

fn is_filter(step: &Step) -> bool {
    matches!(step, Step::Seccomp(_))
}

/// `order` holds for every plan, and says at least once that it had something to hold for.
fn always(order: impl Fn(&Plan) -> bool) {
    let held = sample_plans().iter().filter(|plan| order(plan)).count();
    assert!(held > 0, "no sample has both");
}

#[test]
fn nothing_of_the_runtime_is_left_before_anything_of_the_container_is_touched() {
    for plan in sample_plans() {
        let steps =
            plan.entries.iter().filter_map(|entry| if let Entry::Child(step) = entry { Some(step) } else { None });
        assert!(matches!(steps.into_iter().next(), Some(Step::Isolate { .. })), "{plan}");
    }
}

#[test]
fn nothing_is_hidden_before_the_pivot() {
    always(|plan| ordered(plan, is_pivot, is_hidden));
}

#[test]
fn settings_are_made_before_their_files_become_read_only() {
    always(|plan| ordered(plan, |step| matches!(step, Step::Sysctl { .. }), is_hidden));
}

#[test]
fn hooks_that_need_the_hosts_root_run_before_the_pivot() {
    let create_container =
        |step: &Step| matches!(step, Step::Hook(hook) if hook.moment() == crate::hooks::Moment::CreateContainer);
    always(|plan| ordered(plan, create_container, is_pivot));
    for plan in sample_plans() {
        let hook = plan.entries.iter().position(|entry| matches!(entry, Entry::Parent(Chore::Hook(_))));
        let (met, done, pivot) =
            (meeting(&plan, Meeting::Mounted), meeting(&plan, Meeting::HooksDone), plan.place(is_pivot));
        assert!(hook.is_none() || (met < hook && hook < done && done < pivot), "{plan}");
    }
}

#[test]
fn start_hooks_run_in_the_container_after_start_as_the_process_itself() {
    let at_start =
        |step: &Step| matches!(step, Step::Hook(hook) if hook.moment() == crate::hooks::Moment::StartContainer);
    always(|plan| ordered(plan, |step| matches!(step, Step::Capabilities(_)), at_start));
    always(|plan| plan.place(at_start).is_some_and(|hook| meeting(plan, Meeting::Start) < Some(hook)));
}

#[test]
fn a_filter_is_early_only_without_no_new_privs() {
    always(|plan| {
        let Some(filter) = plan.place(is_filter) else { return false };
        let no_new_privileges = plan.place(|step| matches!(step, Step::NoNewPrivileges));
        match no_new_privileges {
            // Loading it needs CAP_SYS_ADMIN, which is dropped next.
            None => assert!(Some(filter) < plan.place(|step| matches!(step, Step::Bounding(_))), "{plan}"),
            // Nothing is called under it but execve.
            Some(set) => assert!(
                set < filter
                    && filter
                        == plan
                            .entries
                            .iter()
                            .rposition(|entry| matches!(entry, Entry::Child(Step::Exec { .. })))
                            .unwrap()
                            - 1,
                "{plan}"
            ),
        }
        true
    });
}

#[test]
fn rights_go_in_the_order_that_leaves_none() {
    for plan in sample_plans() {
        let bounding = plan.place(|step| matches!(step, Step::Bounding(_)));
        let ids = plan.place(is_become);
        let capabilities = plan.place(|step| matches!(step, Step::Capabilities(_)));
        let find = plan.place(|step| matches!(step, Step::FindProgram { .. }));
        let exec = plan.place(|step| matches!(step, Step::Exec { .. }));
        let all = [bounding, ids, capabilities, find, exec];
        assert!(all.iter().all(Option::is_some) && all.is_sorted(), "{plan}");
    }
    let privileged = |step: &Step| {
        matches!(
            step,
            Step::Mount(_)
                | Step::Root(_)
                | Step::Sysctl { .. }
                | Step::Hostname(_)
                | Step::Label(_)
                | Step::Rlimit(_)
                | Step::OomScoreAdj(_)
        )
    };
    always(|plan| ordered(plan, privileged, is_become));
}

#[test]
fn the_container_is_entered_in_the_order_that_the_rights_allow() {
    // cgroups and scores while the rights of the runtime are there, the cgroup namespace once its cgroup is entered.
    let enter = |step: &Step| matches!(step, Step::EnterCgroups);
    let join =
        |step: &Step| matches!(step, Step::Join { .. } | Step::JoinContainer(_) | Step::Fork(_) | Step::BecomeRoot);
    always(|plan| ordered(plan, enter, join));
    always(|plan| ordered(plan, enter, |step| matches!(step, Step::CgroupNamespace)));
    always(|plan| ordered(plan, |step| matches!(step, Step::OomScoreAdj(_)), join));
    for plan in sample_plans() {
        let Some(Entry::Clone(clone)) = plan.entries.iter().find(|entry| matches!(entry, Entry::Clone(_))) else {
            panic!("{plan}")
        };
        assert!(!clone.flags.contains(nix::sched::CloneFlags::CLONE_NEWCGROUP), "{plan}");
    }
}

#[test]
fn a_further_process_waits_for_nobody() {
    for name in SAMPLES {
        let config = config(name, true);
        let plan = exec(config.clone(), probe(&config), &v2()).unwrap();
        // What the runtime did beside it would come too late.
        assert!(!plan.entries.iter().any(|entry| matches!(entry, Entry::Parent(_) | Entry::Both(_))), "{plan}");
    }
}

#[test]
fn without_a_way_back_a_copy_is_born_in_the_containers_pid_namespace() {
    let config = config("docker", false);
    let plan = exec(config.clone(), probe(&config), &below(&v2())).unwrap();
    let clone = |entry: &Entry| matches!(entry, Entry::Clone(clone) if clone.pid == PidNamespace::ByFlags);
    assert!(plan.entries.iter().any(clone), "{plan}");
    let joins = |step: &Step| matches!(step, Step::JoinContainer(flags) if flags.contains(CloneFlags::CLONE_NEWPID));
    let fork = plan.place(|step| matches!(step, Step::Fork(_)));
    assert!(plan.place(joins) < fork && plan.place(joins).is_some(), "{plan}");
    // Else it could end, and be reaped, before the runtime knows that it is its child.
    assert_eq!(meeting(&plan, Meeting::Born), fork.map(|fork| fork + 1), "{plan}");
}

#[test]
fn the_environment_is_printed_by_name_only() {
    for name in SAMPLES {
        let mut config = config(name, false);
        config["process"]["env"] = json!(["TOKEN=hunter2", "PATH=/bin"]);
        let text = create(config, &v2()).unwrap().to_string();
        assert!(text.contains("TOKEN") && !text.contains("hunter2"), "{text}");
    }
}

/// `pointer` set to `value`, or taken away where it is null.
fn with(mut config: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = config.pointer_mut(parent).unwrap_or_else(|| panic!("{pointer}"));
    match parent {
        Value::Array(items) => items[key.parse::<usize>().unwrap()] = value,
        parent if value.is_null() => drop(parent.as_object_mut().unwrap().remove(key)),
        parent => parent[key] = value,
    }
    config
}

#[test]
fn every_refusal_names_its_field() {
    let namespaces = |kinds: &[&str]| json!(kinds.iter().map(|kind| json!({ "type": kind })).collect::<Vec<_>>());
    let cases = [
        ("/ociVersion", json!("2.0.0"), "ociVersion"),
        ("/process", Value::Null, "process"),
        ("/process/args", json!([]), "process.args"),
        ("/process/args", json!(["a", "b\0c"]), "process.args[1]"),
        ("/process/cwd", json!("relative"), "process.cwd"),
        ("/process/cwd", json!(""), "process.cwd"),
        ("/process/env", json!(["GOOD=1", "no-sign"]), "process.env[1]"),
        ("/process/env", json!(["=nameless"]), "process.env[0]"),
        ("/process/env", json!(["NUL=\0"]), "process.env[0]"),
        ("/process/oomScoreAdj", json!(1001), "process.oomScoreAdj"),
        ("/process/rlimits", json!([{ "type": "RLIMIT_CPU", "soft": 2, "hard": 1 }]), "process.rlimits[0]"),
        ("/process/capabilities", json!({ "effective": ["CAP_CHOWN"] }), "process.capabilities.effective"),
        ("/process/apparmorProfile", json!("web"), "process.apparmorProfile"),
        ("/process/selinuxLabel", json!("a:b:c"), "process.selinuxLabel"),
        ("/process/ioPriority", json!({ "class": "IOPRIO_CLASS_BE", "priority": 8 }), "process.ioPriority.priority"),
        ("/process/scheduler", json!({ "policy": "SCHED_OTHER", "nice": 20 }), "process.scheduler.nice"),
        ("/process/scheduler", json!({ "policy": "SCHED_OTHER", "priority": 1 }), "process.scheduler.priority"),
        ("/hostname", json!("h".repeat(65)), "hostname"),
        ("/linux/namespaces", namespaces(&["pid"]), "linux.namespaces"),
        ("/linux/namespaces", namespaces(&["mount", "uts", "mount"]), "linux.namespaces[2]"),
        ("/linux/namespaces", json!([{ "type": "mount" }, { "type": "pid", "path": "x" }]), "linux.namespaces[1].path"),
        ("/linux/namespaces", namespaces(&["mount", "uts", "user"]), "linux.uidMappings"),
        ("/linux/uidMappings", json!([{ "containerID": 0, "hostID": 0, "size": 1 }]), "linux.uidMappings"),
        ("/linux/timeOffsets", json!({ "sidereal": { "secs": 1 } }), "linux.timeOffsets"),
        ("/linux/sysctl", json!({ "kernel.panic": "1" }), "linux.sysctl[\"kernel.panic\"]"),
        ("/linux/sysctl", json!({ "net.a/../../kernel": "1" }), "linux.sysctl[\"net.a/../../kernel\"]"),
        ("/linux/intelRdt", json!({}), "linux.intelRdt"),
        ("/linux/personality", json!({ "domain": "LINUX", "flags": ["X"] }), "linux.personality.flags"),
        ("/linux/memoryPolicy", json!({ "mode": "MPOL_BIND", "nodes": "a-b" }), "linux.memoryPolicy.nodes"),
        ("/hooks", json!({ "prestart": [{ "path": "relative" }] }), "hooks.prestart[0]"),
    ];
    for (pointer, value, field) in cases {
        let base = with(config("ctr", false), "/hostname", json!("h"));
        let config = with(base, pointer, value.clone());
        let error = match serde_json::from_value::<Spec>(config.clone()) {
            Ok(_) => create(config, &v2()).err().unwrap_or_else(|| panic!("{pointer} {value} is accepted")),
            Err(why) => panic!("{pointer} {value} is not read: {why}"),
        };
        assert!(error.0.iter().any(|problem| problem.field == field), "{pointer} {value}: {error}");
        assert!(error.0.iter().all(|problem| !problem.what.is_empty()), "{error}");
    }
}

#[test]
fn all_problems_are_told_at_once() {
    let config = with(config("ctr", false), "/process/args", json!([]));
    let config = with(config, "/process/cwd", json!("here"));
    let config = with(config, "/linux/sysctl", json!({ "kernel.panic": "1" }));
    let error = create(with(config, "/mounts/0/destination", json!("a\0b")), &v2()).unwrap_err();
    let fields = error.0.iter().map(|problem| problem.field.as_str()).collect::<Vec<_>>();
    for field in ["process.args", "process.cwd", "linux.sysctl[\"kernel.panic\"]"] {
        assert!(fields.contains(&field), "{fields:?}");
    }
    assert!(fields.iter().any(|field| field.starts_with("mounts[0]")), "{fields:?}");
}

#[test]
fn what_engines_really_send_is_accepted() {
    let cases = [
        ("/ociVersion", json!("1.0.2-dev")),
        ("/ociVersion", json!("1.3.0")),
        ("/hostname", json!("")),
        ("/process/apparmorProfile", json!("")),
        ("/process/selinuxLabel", json!("")),
        ("/process/user/umask", json!(0o77)),
        ("/process/user/username", json!("root")),
        ("/process/capabilities", json!({ "bounding": ["CAP_CHOWN"], "ambient": ["CAP_CHOWN"] })),
        ("/process/env", json!(["A=1", "A=2", "B="])),
        ("/process/rlimits", json!([{ "type": "RLIMIT_CORE", "soft": u64::MAX, "hard": u64::MAX }])),
        ("/process/terminal", json!(false)),
        ("/process/consoleSize", json!({ "width": 0, "height": 0 })),
        ("/linux/namespaces/0/path", json!("")),
        ("/linux/rootfsPropagation", json!("")),
        ("/linux/mountLabel", json!("")),
        ("/linux/uidMappings", json!([])),
        ("/linux/cgroupsPath", Value::Null),
        ("/linux/devices", json!([])),
        ("/linux/maskedPaths", json!(["/proc/kcore", "/nowhere"])),
        (
            "/linux/resources",
            json!({ "memory": { "limit": -1, "swap": -1 }, "pids": { "limit": -1 }, "cpu": { "quota": -1, "cpus": "" } }),
        ),
        (
            "/linux/resources",
            json!({ "pids": { "limit": 0 }, "blockIO": { "weight": 0 }, "cpu": { "shares": 0 }, "hugepageLimits": [] }),
        ),
        ("/linux/resources/devices", json!([{ "allow": true, "access": "rwm" }])),
        ("/linux/seccomp", json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": null, "syscalls": null })),
        ("/linux/intelRdt", Value::Null),
        ("/annotations", json!({ "a": "b" })),
        ("/hooks", json!({ "prestart": null, "poststop": [] })),
    ];
    for (pointer, value) in cases {
        for host in [v1(), v2()] {
            let config = with(config("ctr", false), pointer, value.clone());
            if let Err(error) = create(config, &host) {
                panic!("{pointer} {value}: {error}");
            }
        }
    }
    // Maps beside a user namespace that is joined describe that namespace.
    assert!(create(config("kubernetes-userns-app", true), &v2()).is_ok());
}

#[test]
fn a_user_namespace_without_a_root_is_refused() {
    let maps = json!([{ "containerID": 1000, "hostID": 1000, "size": 1 }]);
    let config = with(config("kubernetes-userns-pause", false), "/linux/gidMappings", maps);
    let error = create(config, &v2()).unwrap_err();
    assert!(error.to_string().contains("linux.gidMappings: maps no id 0"), "{error}");
}

#[test]
fn who_could_not_leave_a_pid_namespace_does_not_enter_it() {
    let mut config = config("ctr", false);
    for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
        if namespace["type"] == "pid" {
            namespace["path"] = json!("/proc/4242/ns/pid");
        }
    }
    create(config.clone(), &v2()).unwrap();
    let error = create(config, &below(&v2())).unwrap_err();
    assert!(error.to_string().contains("only root can join a pid namespace"), "{error}");
}

#[test]
fn of_two_values_for_a_name_the_last_counts() {
    let config = with(config("ctr", false), "/process/env", json!(["A=1", "B=2", "A=3"]));
    let plan = create(config, &v2()).unwrap();
    let Some(Entry::Child(Step::Exec { env, .. })) = plan.entries.last() else { panic!("{plan}") };
    assert_eq!(env, &[c"A=3".to_owned(), c"B=2".to_owned()]);
}

/// xorshift64*: the same mutations every time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }

    fn value(&mut self) -> Value {
        match self.below(25) {
            0 => Value::Null,
            1 => json!(true),
            2 => json!(0),
            3 => json!(-1),
            4 => json!(i64::MIN),
            5 => json!(u64::MAX),
            6 => json!(1e308),
            7 => json!(""),
            8 => json!("\0"),
            9 => json!("/"),
            10 => json!("/proc/self/exe"),
            11 => json!("../../.."),
            12 => json!("a=b,c=d,\\,=,:"),
            13 => json!("0-18446744073709551615"),
            14 => json!("0-8191,7"),
            15 => json!("\u{202e}%s%n\n\u{1b}[2J"),
            16 => json!("x".repeat(70_000)),
            17 => json!([]),
            18 => json!({}),
            19 => json!([null]),
            20 => json!([{}]),
            21 => json!({ "": "" }),
            22 => json!(vec!["/proc/a"; 300]),
            23 => json!(vec![json!({ "type": "pid", "path": "/x" }); 50]),
            _ => (0..100).fold(json!(1), |inner, _| json!([inner])),
        }
    }

    /// One member somewhere in `value` is replaced, taken away, doubled, or swapped for another part of the spec.
    fn mutate(&mut self, value: &mut Value, whole: &Value) {
        let below = |value: &Value| matches!(value, Value::Object(_) | Value::Array(_));
        match value {
            Value::Object(members) if !members.is_empty() => {
                let key = members.keys().nth(self.below(members.len())).unwrap().clone();
                let member = &mut members[&key];
                match self.below(8) {
                    0 => drop(members.remove(&key)),
                    1 => *member = self.value(),
                    2 => {
                        *member = whole
                            .as_object()
                            .unwrap()
                            .values()
                            .nth(self.below(whole.as_object().unwrap().len()))
                            .unwrap()
                            .clone()
                    }
                    _ if below(member) => self.mutate(member, whole),
                    _ => *member = self.value(),
                }
            }
            Value::Array(items) if !items.is_empty() => {
                let place = self.below(items.len());
                match self.below(6) {
                    0 => drop(items.remove(place)),
                    1 => items.push(items[place].clone()),
                    2 => items[place] = self.value(),
                    _ if below(&items[place]) => self.mutate(&mut items[place], whole),
                    _ => items[place] = self.value(),
                }
            }
            other => *other = self.value(),
        }
    }
}

#[test]
fn a_hostile_spec_is_refused_or_planned_but_never_worse() {
    let bundle = tempfile::tempdir().unwrap();
    let mut random = Random(0x5eed_d00d);
    let (hosts, samples) = ([v1(), v2()], SAMPLES.map(|name| config(name, name == "kubernetes-app")));
    let (mut unread, mut refused, mut planned) = (0, 0, 0);
    let used = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
    for round in 0..3000 {
        let whole = &samples[round % samples.len()];
        let mut config = whole.clone();
        for _ in 0..=random.below(2) {
            random.mutate(&mut config, whole);
        }
        let text = config.to_string();
        fs::write(bundle.path().join("config.json"), &text).unwrap();
        let begun = used();
        match crate::spec::read(bundle.path()) {
            Err(error) => {
                unread += 1;
                assert!(!error.to_string().is_empty());
            }
            Ok(spec) => {
                let host = &hosts[round % 2];
                match Plan::create(&spec, host, &request()) {
                    Ok(plan) => {
                        planned += 1;
                        assert!(plan.to_string().lines().count() >= plan.entries.len());
                    }
                    Err(error) => {
                        refused += 1;
                        assert!(
                            !error.0.is_empty() && error.0.iter().all(|problem| !problem.field.is_empty()),
                            "{error}"
                        );
                    }
                }
                if let Some(process) = spec.process() {
                    let request =
                        ExecRequest { id: "web-1", spec: &spec, process, no_new_keyring: false, preserve_fds: 0 };
                    drop(Plan::exec(&request, host).map(|plan| plan.to_string()));
                }
            }
        }
        let took = used() - begun;
        assert!(took < Duration::from_secs(2), "{took:?} for {text}");
    }
    println!("{unread} not read, {refused} refused, {planned} planned");
    assert!(unread > 100 && refused > 100 && planned > 100, "{unread} {refused} {planned}");
}

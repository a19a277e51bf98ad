//! What a container may use at most: set at its start, changed while it runs, and felt.

use dunnage_tests::{case, cgroup};
use serde_json::json;

#[test]
fn limits_given_at_the_start_are_in_the_cgroup() {
    case(|c| {
        c.idle(
            "small",
            &["--memory-limit", "33554432", "--cpu-quota", "50000", "--cpu-period", "100000", "--cpu-shares", "512"],
        );
        let group = c.cgroup("small");
        assert_eq!(group.read("memory", "memory.limit_in_bytes", "memory.max"), "33554432");
        if cgroup::is_unified() {
            assert_eq!(group.read("cpu", "", "cpu.max"), "50000 100000");
        } else {
            assert_eq!(group.read("cpu", "cpu.cfs_quota_us", ""), "50000");
            assert_eq!(group.read("cpu", "cpu.cfs_period_us", ""), "100000");
            assert_eq!(group.read("cpu", "cpu.shares", ""), "512");
        }
    });
}

#[test]
fn an_update_changes_memory_pids_and_cpu_of_a_running_container() {
    case(|c| {
        c.idle("moved", &["--memory-limit", "33554432"]);
        let group = c.cgroup("moved");
        let shim = c.shim("moved");
        shim.update("moved", &json!({ "memory": { "limit": 67_108_864 } })).expect("update memory");
        assert_eq!(group.read("memory", "memory.limit_in_bytes", "memory.max"), "67108864");
        shim.update("moved", &json!({ "pids": { "limit": 17 } })).expect("update pids");
        assert_eq!(group.read("pids", "pids.max", "pids.max"), "17");
        shim.update("moved", &json!({ "cpu": { "quota": 20_000, "period": 50_000, "shares": 256 } }))
            .expect("update cpu");
        if cgroup::is_unified() {
            assert_eq!(group.read("cpu", "", "cpu.max"), "20000 50000");
        } else {
            assert_eq!(group.read("cpu", "cpu.cfs_quota_us", ""), "20000");
            assert_eq!(group.read("cpu", "cpu.cfs_period_us", ""), "50000");
            assert_eq!(group.read("cpu", "cpu.shares", ""), "256");
        }
        // What an update does not name stays.
        assert_eq!(group.read("memory", "memory.limit_in_bytes", "memory.max"), "67108864");
        assert_eq!(group.read("pids", "pids.max", "pids.max"), "17");
    });
}

#[test]
fn an_update_that_cannot_be_is_refused_and_the_container_goes_on() {
    case(|c| {
        c.idle("moved", &[]);
        let shim = c.shim("moved");
        let refused = shim.update("moved", &json!({ "cpu": { "cpus": "99999" } }));
        assert!(refused.is_err(), "{refused:?}");
        assert_eq!(dunnage_tests::shim::code(shim.update("nobody", &json!({}))), ttrpc::Code::NOT_FOUND);
        assert_eq!(c.exec("moved", "look", ["echo", "on"]).output().ok(), "on");
    });
}

#[test]
fn out_of_memory_is_told_before_the_exit() {
    case(|c| {
        // What is read stays in memory until its newline comes, which never does.
        let outcome = c.run("greedy", ["sh", "-c", "tail /dev/zero"]).flags(["--memory-limit", "16777216"]).output();
        assert_eq!(outcome.code, 137, "{outcome:?}");
        // Events come when the calls have been answered; this one is the last.
        c.event("the end", |event| event.topic == "/tasks/delete" && event.text("container_id") == "greedy");
        let topics: Vec<_> = c
            .events()
            .into_iter()
            .filter(|event| event.text("container_id") == "greedy")
            .map(|event| event.topic)
            .collect();
        let oom = topics.iter().position(|topic| topic == "/tasks/oom").expect("an oom event");
        let exit = topics.iter().position(|topic| topic == "/tasks/exit").expect("an exit event");
        assert!(oom < exit, "{topics:?}");
    });
}

#[test]
fn out_of_memory_of_many_at_once_is_told_of_each_before_its_exit() {
    const COUNT: usize = 8;
    case(|c| {
        let greedy: Vec<_> = (0..COUNT)
            .map(|number| {
                let run = c.run(&format!("greedy-{number}"), ["sh", "-c", "tail /dev/zero"]);
                run.flags(["--memory-limit", "16777216"]).spawn()
            })
            .collect();
        for container in greedy {
            assert_eq!(container.wait().code, 137);
        }
        for number in 0..COUNT {
            let id = format!("greedy-{number}");
            c.event("the end", |event| event.topic == "/tasks/delete" && event.text("container_id") == id);
        }
        // That it is before the exit is in the grammar, which is checked in any case.
        let told = c.events().into_iter().filter(|event| event.topic == "/tasks/oom");
        let ids: std::collections::BTreeSet<_> = told.map(|event| event.text("container_id").to_owned()).collect();
        assert_eq!(ids.len(), COUNT, "{ids:?}");
    });
}

#[test]
fn out_of_memory_of_an_exec_is_told_too() {
    case(|c| {
        c.idle("host", &["--memory-limit", "16777216"]);
        let outcome = c.exec("host", "greedy", ["sh", "-c", "tail /dev/zero; echo $?"]).output();
        assert_eq!(outcome.stdout.trim(), "137", "{outcome:?}");
        c.event("the oom", |event| event.topic == "/tasks/oom" && event.text("container_id") == "host");
    });
}

#[test]
fn a_container_cannot_have_more_processes_than_its_limit() {
    case(|c| {
        let root = c.root_folder("root");
        let fork = "i=0; while [ $i -lt 20 ]; do sleep 1000 & i=$((i+1)); done; echo all";
        let mut spec = c.spec("many", &root, &["sh", "-c", fork]);
        spec["linux"]["resources"]["pids"] = json!({ "limit": 10 });
        let outcome = c.run_spec("many", &spec).output();
        assert!(!outcome.stdout.contains("all"), "{outcome:?}");
        assert!(outcome.stderr.contains("can't fork"), "{outcome:?}");
    });
}

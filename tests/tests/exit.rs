//! How a process ends, and who is told.

use dunnage_tests::{case, eventually};

#[test]
fn each_exit_code_is_reported() {
    case(|c| {
        c.idle("host", &[]);
        // A container for a sample, execs in one container for all of them.
        for code in [0, 1, 2, 42, 126, 127, 128, 137, 254, 255] {
            let outcome = c.run("guest", ["sh", "-c", &format!("exit {code}")]).output();
            assert_eq!(outcome.code, code, "{outcome:?}");
        }
        for code in 0..=255 {
            let outcome = c.exec("host", &format!("code-{code}"), ["sh", "-c", &format!("exit {code}")]).output();
            assert_eq!(outcome.code, code, "{outcome:?}");
        }
    });
}

#[test]
fn death_by_signal_is_reported_as_128_and_the_signal() {
    case(|c| {
        // Process 1 of a pid namespace has no default action for a signal, so these are sent from outside.
        c.run("killed", ["sleep", "1000"]).detached().ok();
        c.ctr(["task", "kill", "--signal", "SIGKILL", "killed"]).ok();
        assert_eq!(c.exit_status("killed", "killed"), 137);

        c.idle("host", &[]);
        for (name, number) in [("HUP", 1), ("INT", 2), ("ABRT", 6), ("KILL", 9), ("SEGV", 11), ("TERM", 15)] {
            let exec = format!("by-{name}");
            let outcome = c.exec("host", &exec, ["sh", "-c", &format!("kill -{name} $$; sleep 1000")]).output();
            assert_eq!(outcome.code, 128 + number, "SIG{name}: {outcome:?}");
            assert_eq!(c.exit_status("host", &exec), 128 + number as u64);
        }
    });
}

#[test]
fn the_exit_is_the_same_in_the_event_in_state_in_wait_and_in_delete() {
    case(|c| {
        c.run("told", ["sh", "-c", "exit 33"]).detached().ok();
        let event = c.event("the exit", |event| event.is_exit_of("told", "told"));
        let shim = c.shim("told");
        let state = shim.state("told", "").expect("state");
        let wait = shim.wait("told", "").expect("wait");
        assert_eq!((event.number("exit_status"), state.exit_status, wait.exit_status), (33, 33, 33));
        assert_eq!(state.exited_at, wait.exited_at);
        assert!(state.exited_at.seconds > 1_000_000_000, "{:?}", state.exited_at);
        c.ctr(["task", "rm", "told"]);
        let deleted = c.event("the delete", |event| event.topic == "/tasks/delete");
        assert_eq!(deleted.number("exit_status"), 33);
        assert_eq!(deleted.text("exited_at"), event.text("exited_at"));
    });
}

#[test]
fn a_process_that_ends_at_once_is_reported_with_its_pid() {
    case(|c| {
        for round in 0..20 {
            let id = format!("short-{round}");
            c.run(&id, ["true"]).output().ok();
            let start = c.event("the start", |event| event.topic == "/tasks/start" && event.text("container_id") == id);
            assert!(start.number("pid") > 0);
        }
    });
}

#[test]
fn a_container_whose_first_process_ends_takes_its_other_processes_along() {
    case(|c| {
        c.run("parent", ["sh", "-c", "sleep 1000 & sleep 1000 & read line"]).detached().ok();
        let cgroup = c.cgroup("parent");
        let pids = eventually("three processes", || {
            let pids = cgroup.processes();
            (pids.len() == 3).then_some(pids)
        });
        c.ctr(["task", "kill", "--signal", "SIGKILL", "parent"]).ok();
        c.exit_status("parent", "parent");
        assert!(pids.iter().all(|&pid| !dunnage_tests::process::lives(pid)), "{pids:?}");
    });
}

#[test]
fn with_the_pid_namespace_of_the_host_the_other_processes_end_too() {
    case(|c| {
        let root = c.root_folder("root");
        let mut spec = c.spec("hosted", &root, &["sh", "-c", "sleep 1000 & sleep 1000 & wait"]);
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
        namespaces.retain(|namespace| namespace["type"] != "pid");
        c.run_spec("hosted", &spec).detached().ok();
        let cgroup = c.cgroup("hosted");
        let pids = eventually("three processes", || {
            let pids = cgroup.processes();
            (pids.len() == 3).then_some(pids)
        });
        c.ctr(["task", "kill", "--signal", "SIGKILL", "hosted"]).ok();
        assert_eq!(c.exit_status("hosted", "hosted"), 137);
        pids.iter().for_each(|&pid| dunnage_tests::process::wait_for_end(pid));
    });
}

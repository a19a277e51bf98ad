//! Containers that share one shim, as those of a pod do.

use dunnage_tests::{Case, case, process};

/// Starts a container in the group `pair`; the pid of its shim.
fn member(c: &Case, id: &str) -> u32 {
    c.may_leave_socket("pair");
    c.idle(id, &["--annotation", "io.containerd.runc.v2.group=pair"]);
    c.shim(id).identify(id).expect("connect").shim_pid
}

#[test]
fn two_containers_of_a_group_have_one_shim() {
    case(|c| {
        let shim = member(c, "first");
        assert_eq!(member(c, "second"), shim);
        assert!(c.socket("pair").exists() && !c.socket("first").exists() && !c.socket("second").exists());
        for id in ["first", "second"] {
            assert_eq!(c.exec(id, "look", ["echo", id]).output().ok(), id);
            assert!(c.task(id).is_some_and(|(_, status)| status == "RUNNING"));
        }
    });
}

#[test]
fn the_end_of_one_does_not_touch_the_other() {
    case(|c| {
        let shim = member(c, "first");
        member(c, "second");
        // The first, whose start made the shim, goes.
        c.remove("first");
        assert!(process::lives(shim));
        assert_eq!(c.exec("second", "look", ["echo", "on"]).output().ok(), "on");
        assert_eq!(member(c, "third"), shim);
        c.ctr(["task", "kill", "--signal", "SIGKILL", "second"]).ok();
        assert_eq!(c.exit_status("second", "second"), 137);
        assert_eq!(c.exec("third", "look", ["echo", "on"]).output().ok(), "on");
        c.remove("second");
        assert!(process::lives(shim));
        c.remove("third");
        process::wait_for_end(shim);
        assert!(!c.socket("pair").exists());
    });
}

#[test]
fn a_failed_start_in_a_group_leaves_the_others_alone() {
    case(|c| {
        let shim = member(c, "first");
        let flags = ["--annotation", "io.containerd.runc.v2.group=pair"];
        c.run("broken", ["/no/such/program"]).flags(flags).output().refused();
        assert!(process::lives(shim));
        assert_eq!(c.exec("first", "look", ["echo", "on"]).output().ok(), "on");
    });
}

#[test]
fn when_a_shared_shim_is_killed_both_containers_are_cleaned_up() {
    case(|c| {
        let shim = member(c, "first");
        member(c, "second");
        let pids = [c.pid("first"), c.pid("second")];
        process::kill_hard(shim);
        for id in ["first", "second"] {
            c.event("the delete", |event| event.topic == "/tasks/delete" && event.text("container_id") == id);
        }
        pids.iter().for_each(|&pid| process::wait_for_end(pid));
        if !c.subject.is_ours() {
            // The reference leaves the socket of a killed shim to the next start.
            std::fs::remove_file(c.socket("pair")).expect("remove the socket");
        }
    });
}

//! Signals.

use dunnage_tests::{case, eventually, process};

#[test]
fn sigterm_is_delivered_and_may_be_handled() {
    case(|c| {
        c.idle("polite", &[]);
        c.ctr(["task", "kill", "polite"]).ok();
        assert_eq!(c.exit_status("polite", "polite"), 15);
    });
}

#[test]
fn sigterm_to_a_first_process_without_a_handler_does_nothing_and_sigkill_ends_it() {
    case(|c| {
        let running = c.run("deaf", ["sh", "-c", "echo up; while :; do read line; done"]).spawn();
        running.stdout().line("up");
        c.ctr(["task", "kill", "--signal", "SIGTERM", "deaf"]).ok();
        assert_eq!(c.exec("deaf", "look", ["echo", "alive"]).output().ok(), "alive");
        c.ctr(["task", "kill", "--signal", "9", "deaf"]).ok();
        assert_eq!(running.wait().code, 137);
    });
}

#[test]
fn kill_all_reaches_every_process() {
    case(|c| {
        let heard = "trap 'echo heard' USR1; echo up; while :; do sleep 1000 & wait $!; done";
        let first = c.run("crew", ["sh", "-c", heard]).spawn();
        first.stdout().line("up");
        let second = c.exec("crew", "mate", ["sh", "-c", heard]).spawn();
        second.stdout().line("up");
        c.event("the exec's start", |event| event.topic == "/tasks/exec-started");
        c.ctr(["task", "kill", "--signal", "SIGUSR1", "--all", "crew"]).ok();
        second.stdout().line("heard");
        first.stdout().line("heard");
        c.ctr(["task", "kill", "--signal", "SIGKILL", "--all", "crew"]).ok();
        assert_eq!((first.wait().code, second.wait().code), (137, 137));
    });
}

#[test]
fn an_exec_is_killed_alone() {
    case(|c| {
        let pid = c.idle("crew", &[]);
        let exec = c.exec("crew", "mate", ["sh", "-c", "echo up; sleep 1000"]).spawn();
        exec.stdout().line("up");
        c.event("the exec's start", |event| event.topic == "/tasks/exec-started");
        c.ctr(["task", "kill", "--signal", "SIGKILL", "--exec-id", "mate", "crew"]).ok();
        assert_eq!(exec.wait().code, 137);
        assert!(process::lives(pid));
    });
}

#[test]
fn kill_after_exit_says_not_found() {
    case(|c| {
        c.run("ended", ["true"]).detached().ok();
        c.exit_status("ended", "ended");
        let shim = c.shim("ended");
        assert_eq!(dunnage_tests::shim::code(shim.kill("ended", "", 15, false)), ttrpc::Code::NOT_FOUND);
        assert_eq!(dunnage_tests::shim::code(shim.kill("nobody", "", 15, false)), ttrpc::Code::NOT_FOUND);
        assert_eq!(dunnage_tests::shim::code(shim.kill("ended", "nothing", 15, false)), ttrpc::Code::NOT_FOUND);
    });
}

#[test]
fn a_created_container_that_was_never_started_can_be_killed_and_deleted() {
    case(|c| {
        let root = c.root_folder("root");
        let spec = c.file("config.json", c.spec("waits", &root, &["sleep", "1000"]).to_string());
        let words =
            ["container", "create", "--runtime", &c.subject.runtime, "--config", &spec.to_string_lossy(), "waits"];
        c.ctr(words).ok();
        c.may_leave_socket("waits");
        // `ctr task start` creates and starts in one go, so the shim is asked by the one who created nothing yet.
        let started = c.ctr(["task", "start", "--null-io", "--detach", "waits"]);
        started.ok();
        let pid = c.pid("waits");
        c.ctr(["task", "rm", "--force", "waits"]);
        eventually("the process to end", || (!process::lives(pid)).then_some(()));
    });
}

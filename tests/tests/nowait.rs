//! One loop, never stopped: what hangs holds up itself alone.

use std::{
    fs::OpenOptions,
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
};

use dunnage_tests::{case, case_of_ours, process};
use nix::{fcntl::OFlag, sys::signal::Signal};
use serde_json::json;

#[test]
fn a_hook_that_hangs_holds_up_only_its_own_container() {
    case_of_ours(|c| {
        c.may_leave_socket("pair");
        c.idle("first", &["--annotation", "io.containerd.runc.v2.group=pair"]);
        let root = c.root_folder("root");
        let gate = c.path("gate");
        nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).expect("make a fifo");
        let mut spec = c.spec("second", &root, &["echo", "started"]);
        let wait = format!("echo > {0}.reached; read line < {0}", gate.display());
        spec["hooks"] = json!({ "createRuntime": [{ "path": "/bin/sh", "args": ["sh", "-c", wait] }] });
        spec["annotations"] = json!({ "io.containerd.runc.v2.group": "pair" });
        let second = c.run_spec("second", &spec).spawn();
        let reached = gate.with_extension("reached");
        dunnage_tests::eventually("the hook to run", || reached.exists().then_some(()));

        let shim = c.shim("first");
        for _ in 0..100 {
            shim.state("first", "").expect("state");
            shim.stats("first").expect("stats");
        }
        assert_eq!(c.exec("first", "look", ["echo", "on"]).output().ok(), "on");
        c.ctr(["task", "pause", "first"]).ok();
        c.ctr(["task", "resume", "first"]).ok();
        c.ctr(["task", "kill", "--signal", "SIGKILL", "first"]).ok();
        assert_eq!(c.exit_status("first", "first"), 137);
        c.remove("first");

        OpenOptions::new().write(true).open(&gate).expect("open the gate").write_all(b"go\n").expect("open the gate");
        assert_eq!(second.wait().ok(), "started");
    });
}

#[test]
fn a_reader_that_stops_holds_up_only_the_writer() {
    case(|c| {
        let running = c.run("writer", ["sh", "-c", "echo up; cat /dev/zero"]).spawn_to(std::process::Stdio::null());
        c.event("the start", |event| event.topic == "/tasks/start");
        process::signal(running.pid(), Signal::SIGSTOP);
        let shim = c.shim("writer");
        let pid = c.pid("writer");
        // The writer waits for the pipe when it is full.
        dunnage_tests::eventually("the writer to wait", || (process::state(pid) == Some('S')).then_some(()));
        shim.state("writer", "").expect("state");
        assert_eq!(c.exec("writer", "look", ["echo", "on"]).output().ok(), "on");
        c.ctr(["task", "kill", "--signal", "SIGKILL", "writer"]).ok();
        assert_eq!(shim.wait("writer", "").expect("wait").exit_status, 137);
        process::signal(running.pid(), Signal::SIGCONT);
        assert_eq!(running.wait().code, 137);
    });
}

#[test]
fn a_full_log_holds_up_nothing() {
    case(|c| {
        c.idle("steady", &[]);
        let shim = c.shim("steady");
        // containerd stands still: nobody reads the log, and nobody acknowledges an event.
        process::signal(c.containerd(), Signal::SIGSTOP);
        let options = OpenOptions::new().write(true).custom_flags(OFlag::O_NONBLOCK.bits()).to_owned();
        let mut log = options.open(c.bundle("steady").join("log")).expect("open the log");
        let full = loop {
            match log.write(&[b'\n'; 4096]) {
                Ok(count) => assert!(count > 0),
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
        // Things a shim has something to say about.
        let process = json!({ "args": ["/no/such/program"], "cwd": "/", "env": [], "user": { "uid": 0, "gid": 0 } });
        for number in 0..20 {
            let exec = format!("missing-{number}");
            shim.exec("steady", &exec, &process).expect("exec");
            shim.start("steady", &exec).expect_err("a start of nothing");
            shim.delete("steady", &exec).expect("delete the exec");
            shim.kill("steady", "nothing", 9, false).expect_err("a kill of nothing");
            shim.state("steady", "").expect("state");
        }
        process::signal(c.containerd(), Signal::SIGCONT);
        assert_eq!(c.exec("steady", "look", ["echo", "on"]).output().ok(), "on");
    });
}

#[test]
fn a_containerd_that_stands_still_holds_up_no_exit() {
    case(|c| {
        let pid = c.idle("steady", &[]);
        let shim = c.shim("steady");
        process::signal(c.containerd(), Signal::SIGSTOP);
        shim.pause("steady").expect("pause");
        shim.resume("steady").expect("resume");
        shim.kill("steady", "", 9, false).expect("kill");
        assert_eq!(shim.wait("steady", "").expect("wait").exit_status, 137);
        process::wait_for_end(pid);
        process::signal(c.containerd(), Signal::SIGCONT);
        assert_eq!(c.exit_status("steady", "steady"), 137);
    });
}

//! Daemons that are killed: containers go on, and what happened meanwhile is told.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    time::Duration,
};

use dunnage_tests::{case, case_of_ours, eventually, process, shim::Receiver};
use serde_json::json;

#[test]
fn containers_outlive_containerd_and_their_exits_are_told() {
    case(|c| {
        let pid = c.idle("stays", &[]);
        let file = c.path("go");
        let mount = format!("type=bind,src={},dst=/mnt,options=rbind:ro", file.parent().expect("a folder").display());
        let wait = "until [ -e /mnt/go ]; do usleep 1000; done; exit 5";
        c.run("ends", ["sh", "-c", wait]).flags(["--mount", &mount]).detached().ok();
        let ends = c.pid("ends");
        let shim = c.shim("ends");

        c.kill_containerd();
        fs::write(&file, "").expect("write");
        assert_eq!(shim.wait("ends", "").expect("wait").exit_status, 5);
        process::wait_for_end(ends);
        assert!(process::lives(pid));

        c.start_containerd();
        assert_eq!(c.task("stays"), Some((pid, "RUNNING".to_owned())));
        assert_eq!(c.exec("stays", "look", ["echo", "on"]).output().ok(), "on");
        assert_eq!(c.task("ends"), Some((ends, "STOPPED".to_owned())));
        let removed = c.ctr(["task", "rm", "ends"]);
        assert!(removed.stderr.contains("exit code 5"), "{removed:?}");
        // And it can be managed as before.
        c.ctr(["task", "kill", "--signal", "SIGKILL", "stays"]).ok();
        assert_eq!(c.exit_status("stays", "stays"), 137);
    });
}

#[test]
fn output_goes_on_while_containerd_is_killed_and_comes_back() {
    case(|c| {
        c.run("counter", ["sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; done"]).detached().ok();
        let fifo = c.shim("counter").state("counter", "").expect("state").stdout;
        let mut reader = BufReader::new(fs::File::open(&fifo).expect("open the fifo"));
        let mut lines = Vec::new();
        // The client that started the container read until it ended, perhaps in the middle of a line.
        reader.read_line(&mut String::new()).expect("read the output");
        let mut read = |count: usize| {
            for line in reader.by_ref().lines().take(count) {
                lines.push(line.expect("read the output").parse::<u64>().expect("a number"));
            }
        };
        // More than a pipe holds, so that each part was written when it is read.
        read(50_000);
        c.kill_containerd();
        read(50_000);
        c.start_containerd();
        read(50_000);
        assert!(lines.windows(2).all(|pair| pair[1] == pair[0] + 1));
    });
}

#[test]
fn containerd_may_be_killed_again_and_again() {
    case(|c| {
        let pids: Vec<_> = (0..5).map(|number| c.idle(&format!("c{number}"), &[])).collect();
        for round in 0..5 {
            c.kill_containerd();
            c.start_containerd();
            for (number, &pid) in pids.iter().enumerate() {
                assert_eq!(c.task(&format!("c{number}")), Some((pid, "RUNNING".to_owned())), "round {round}");
            }
        }
    });
}

#[test]
fn containerd_killed_in_the_middle_of_a_start_leaves_what_can_be_removed() {
    case(|c| {
        for topic in ["/tasks/create", "/tasks/start"] {
            let id = topic.trim_start_matches('/').replace('/', "-");
            let running = c.run(&id, ["sleep", "1000"]).spawn();
            c.event(topic, |event| event.topic == topic && event.text("container_id") == id);
            c.kill_containerd();
            running.wait();
            c.start_containerd();
            c.remove(&id);
        }
    });
}

#[test]
fn when_the_shim_is_killed_containerd_cleans_up() {
    case(|c| {
        let pid = c.idle("orphan", &[]);
        let shim = c.shim("orphan").identify("orphan").expect("connect").shim_pid;
        process::kill_hard(shim);
        assert_eq!(c.exit_status("orphan", "orphan"), 137);
        c.event("the delete", |event| event.topic == "/tasks/delete");
        process::wait_for_end(pid);
        eventually("the task to be gone", || c.task("orphan").is_none().then_some(()));
        if !c.subject.is_ours() {
            // The reference leaves the socket of a killed shim to the next start.
            fs::remove_file(c.socket("orphan")).expect("remove the socket");
        }
        // The id is free again.
        c.ctr(["container", "rm", "orphan"]).ok();
        assert_eq!(c.run("orphan", ["echo", "again"]).output().ok(), "again");
    });
}

#[test]
fn a_shim_killed_while_it_creates_leaves_nothing() {
    case_of_ours(|c| {
        let root = c.root_folder("root");
        let gate = c.path("gate");
        nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).expect("make a fifo");
        let mut spec = c.spec("unborn", &root, &["true"]);
        let wait = format!("echo > {0}.reached; read line < {0}", gate.display());
        spec["hooks"] = json!({ "createRuntime": [{ "path": "/bin/sh", "args": ["sh", "-c", wait] }] });
        let run = c.run_spec("unborn", &spec).spawn();
        let reached = gate.with_extension("reached");
        eventually("the hook to run", || reached.exists().then_some(()));
        process::kill_hard(c.shim("unborn").identify("unborn").expect("connect").shim_pid);
        assert_ne!(run.wait().code, 0);
        // The hook is a program of its own, and ends when it is done.
        fs::write(&gate, "go\n").expect("open the gate");
        assert_eq!(c.task("unborn"), None);
    });
}

#[test]
fn when_shim_and_containerd_are_killed_the_next_containerd_cleans_up() {
    case(|c| {
        let pid = c.idle("orphan", &[]);
        let shim = c.shim("orphan").identify("orphan").expect("connect").shim_pid;
        c.kill_containerd();
        process::kill_hard(shim);
        process::wait_for_end(shim);
        c.start_containerd();
        process::wait_for_end(pid);
        assert_eq!(c.task("orphan"), None);
        if !c.subject.is_ours() {
            fs::remove_file(c.socket("orphan")).expect("remove the socket");
        }
    });
}

#[test]
fn events_wait_for_a_receiver_and_come_once_and_in_order() {
    case_of_ours(|c| {
        c.idle("told", &[]);
        let shim = c.shim("told");
        c.kill_containerd();
        // Nobody listens: an exec is made by the shim alone, and killed, and then the container is.
        let process = serde_json::json!({
            "args": ["sleep", "1000"], "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 }
        });
        shim.exec("told", "exec", &process).expect("exec");
        shim.start("told", "exec").expect("start");
        shim.kill("told", "exec", 9, false).expect("kill the exec");
        shim.wait("told", "exec").expect("wait for the exec");
        shim.pause("told").expect("pause");
        shim.resume("told").expect("resume");
        shim.kill("told", "", 9, false).expect("kill the container");
        assert_eq!(shim.wait("told", "").expect("wait").exit_status, 137);

        let receiver = Receiver::new(&c.events_address());
        receiver.receive(3);
        // It goes away in the middle, and another comes.
        let first = receiver.finish(Duration::ZERO);
        let receiver = Receiver::new(&c.events_address());
        let expected =
            ["exec-added", "exec-started", "exit", "paused", "resumed", "exit"].map(|name| format!("/tasks/{name}"));
        receiver.receive(expected.len().saturating_sub(first.len()));
        let second = receiver.finish(Duration::from_secs(1));
        assert_eq!([first, second].concat(), expected);
        c.start_containerd();
    });
}

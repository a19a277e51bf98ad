//! What a shim may weigh. Times are measured by scripts/bench and asserted nowhere.

use std::fs;

use dunnage_tests::{Case, case, case_of_ours, process};

/// KiB that only this process has. Each shim is weighed beside a second one, as on any machine with two containers: what
/// both read from the same file is not private to either.
const PRIVATE: u64 = 512;
/// KiB in memory, shared pages included.
const RESIDENT: u64 = 3 * 1024;
/// Bytes of the shim's file.
const FILE: u64 = 5 << 20;
/// Open descriptors of a shim with one container: stdio, log, sockets, epoll, signals, and what a container needs.
const DESCRIPTORS: usize = 32;

/// Starts the two containers; the shim of the one that is weighed.
fn weighed(c: &Case) -> u32 {
    c.idle("other", &[]);
    c.idle("weighed", &[]);
    shim_of(c, "weighed")
}

fn shim_of(c: &Case, id: &str) -> u32 {
    c.shim(id).identify(id).expect("connect").shim_pid
}

/// What a shim weighs once it has given back what it needed to work, which must be within the budget.
fn settled(shim: u32) -> process::Memory {
    dunnage_tests::eventually("the shim to weigh no more than its budget", || {
        let memory = process::memory(shim);
        (memory.private <= PRIVATE && memory.rss <= RESIDENT).then_some(memory)
    })
}

#[test]
fn an_idle_shim_has_one_thread_and_little_memory() {
    case_of_ours(|c| {
        let shim = weighed(c);
        let memory = settled(shim);
        let descriptors = process::descriptors(shim);
        println!("{memory:?}, {} descriptors", descriptors.len());
        assert_eq!(process::status(shim, "Threads"), "1");
        assert!(descriptors.len() <= DESCRIPTORS, "{descriptors:#?}");
    });
}

#[test]
fn a_shim_that_has_worked_weighs_no_more() {
    case_of_ours(|c| {
        let shim = weighed(c);
        let descriptors = process::descriptors(shim).len();
        for number in 0..200 {
            let outcome = c.exec("weighed", &format!("exec-{number}"), ["sh", "-c", "echo out; exit 1"]).output();
            assert_eq!((outcome.code, outcome.stdout.as_str()), (1, "out\n"));
        }
        let memory = settled(shim);
        println!("{memory:?}");
        assert_eq!(process::status(shim, "Threads"), "1");
        dunnage_tests::eventually("the descriptors of the execs to be closed", || {
            (process::descriptors(shim).len() <= descriptors).then_some(())
        });
    });
}

#[test]
fn a_shim_that_keeps_a_log_weighs_no_more() {
    case_of_ours(|c| {
        let (log, attach) = (c.path("log"), c.path("attach"));
        let uri = format!("log://{}?attach={}&size=1000000&files=2", log.display(), attach.display());
        c.idle("other", &[]);
        let write = "seq 1 300000; sleep 1000";
        c.run("weighed", ["sh", "-c", write]).flags(["--log-uri", &uri]).detached().ok();
        dunnage_tests::eventually("the output to be kept", || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            text.ends_with(" stdout F 300000\n").then_some(())
        });
        let shim = shim_of(c, "weighed");
        let memory = settled(shim);
        let descriptors = process::descriptors(shim);
        println!("{memory:?}, {} descriptors", descriptors.len());
        assert_eq!(process::status(shim, "Threads"), "1");
        // Beside the others: the log, the attach socket, and a pipe for each output.
        assert!(descriptors.len() <= DESCRIPTORS + 4, "{descriptors:#?}");
        c.ctr(["task", "kill", "--signal", "SIGKILL", "weighed"]).ok();
        c.exit_status("weighed", "weighed");
        c.ctr(["task", "rm", "weighed"]).ok();
        assert!(!attach.exists(), "the attach socket goes with the container");
    });
}

#[test]
fn the_shim_is_one_small_file() {
    case_of_ours(|c| {
        let size = fs::metadata(c.subject.shim()).expect("the shim's file").len();
        println!("{size} bytes");
        assert!(size <= FILE, "{size} bytes");
        c.idle("alone", &[]);
        let maps = fs::read_to_string(format!("/proc/{}/maps", shim_of(c, "alone"))).expect("read maps");
        assert!(!maps.contains(".so"), "{maps}");
    });
}

#[test]
fn output_to_a_pipe_costs_the_shim_nothing() {
    case_of_ours(|c| {
        let write = "dd if=/dev/zero bs=1M count=256 2>/dev/null; echo done >&2; sleep 1000";
        let running = c.run("flow", ["sh", "-c", write]).spawn_to(std::process::Stdio::null());
        running.stderr().line("done");
        let shim = shim_of(c, "flow");
        // rchar: all that it read, from anything.
        let io = fs::read_to_string(format!("/proc/{shim}/io")).expect("read io");
        let read: u64 =
            io.lines().find_map(|line| line.strip_prefix("rchar: ")).expect("rchar").parse().expect("a number");
        assert!(read < 1 << 20, "the shim read {read} bytes of 256 MiB");
    });
}

#[test]
fn the_kernel_takes_the_shim_before_containerd_and_the_container_before_the_shim() {
    case(|c| {
        c.idle("scored", &[]);
        let score = |pid: u32| -> i32 {
            let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("read the score");
            text.trim().parse().expect("a number")
        };
        assert_eq!(score(shim_of(c, "scored")), (score(c.containerd()) + 1).min(1000));
    });
}

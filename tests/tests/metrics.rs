//! What a container uses, as containerd hears it, against what the kernel's files say.

use dunnage_tests::{case, cgroup, eventually, shim::code};
use serde_json::Value;

/// What `ctr` prints of the metrics.
fn metrics(c: &dunnage_tests::Case, id: &str) -> Value {
    serde_json::from_str(c.ctr(["task", "metrics", "--format", "json", id]).ok()).expect("metrics in JSON")
}

/// A number in `metrics`; one that is 0 is left out there.
fn number(metrics: &Value, path: &str) -> u64 {
    metrics.pointer(path).map_or(0, |value| value.as_u64().expect("a number"))
}

#[test]
fn metrics_are_what_the_cgroup_files_say() {
    case(|c| {
        // Some of everything, then nothing more: a paused container's numbers stand still.
        let work = "dd if=/dev/zero of=/tmp/file bs=1M count=8 2>/dev/null; i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done; echo ready; sleep 1000";
        let running = c.run("busy", ["sh", "-c", work]).flags(["--memory-limit", "67108864"]).spawn();
        running.stdout().line("ready");
        c.ctr(["task", "pause", "busy"]).ok();
        let group = c.cgroup("busy");
        let file = |controller: &str, v1: &str, v2: &str| group.read(controller, v1, v2);
        let key = |text: &str, key: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("no {key} in {text}")).parse().expect("a number")
        };
        type Read<'a> = Box<dyn Fn() -> u64 + 'a>;
        let pairs: Vec<(&str, Read<'_>)> = if cgroup::is_unified() {
            vec![
                ("/pids/current", Box::new(|| file("pids", "", "pids.current").parse().expect("a number"))),
                ("/cpu/usage_usec", Box::new(|| key(&file("cpu", "", "cpu.stat"), "usage_usec"))),
                ("/cpu/user_usec", Box::new(|| key(&file("cpu", "", "cpu.stat"), "user_usec"))),
                ("/memory/usage", Box::new(|| file("memory", "", "memory.current").parse().expect("a number"))),
                ("/memory/usage_limit", Box::new(|| file("memory", "", "memory.max").parse().expect("a number"))),
                ("/memory/anon", Box::new(|| key(&file("memory", "", "memory.stat"), "anon"))),
                ("/memory/file", Box::new(|| key(&file("memory", "", "memory.stat"), "file"))),
                ("/memory/pgfault", Box::new(|| key(&file("memory", "", "memory.stat"), "pgfault"))),
            ]
        } else {
            vec![
                ("/pids/current", Box::new(|| file("pids", "pids.current", "").parse().expect("a number"))),
                ("/cpu/usage/total", Box::new(|| file("cpuacct", "cpuacct.usage", "").parse().expect("a number"))),
                (
                    "/memory/usage/usage",
                    Box::new(|| file("memory", "memory.usage_in_bytes", "").parse().expect("a number")),
                ),
                (
                    "/memory/usage/limit",
                    Box::new(|| file("memory", "memory.limit_in_bytes", "").parse().expect("a number")),
                ),
                (
                    "/memory/usage/max",
                    Box::new(|| file("memory", "memory.max_usage_in_bytes", "").parse().expect("a number")),
                ),
                ("/memory/cache", Box::new(|| key(&file("memory", "memory.stat", ""), "cache"))),
                ("/memory/rss", Box::new(|| key(&file("memory", "memory.stat", ""), "rss"))),
                ("/memory/total_pg_fault", Box::new(|| key(&file("memory", "memory.stat", ""), "total_pgfault"))),
                (
                    "/memory/hierarchical_memory_limit",
                    Box::new(|| key(&file("memory", "memory.stat", ""), "hierarchical_memory_limit")),
                ),
            ]
        };
        for (path, read) in &pairs {
            // The kernel still moves memory between its own books for a moment.
            eventually(&format!("{path} and its file to agree"), || {
                let before = read();
                let told = number(&metrics(c, "busy"), path);
                (before == read() && told == before).then_some(())
            });
        }
        let all = metrics(c, "busy");
        let (cpu, memory) = if cgroup::is_unified() {
            ("/cpu/usage_usec", "/memory/usage")
        } else {
            ("/cpu/usage/total", "/memory/usage/usage")
        };
        assert!(number(&all, cpu) > 0 && number(&all, memory) > 8 << 20, "{all:#}");
        c.ctr(["task", "resume", "busy"]).ok();
    });
}

#[test]
fn the_pids_are_all_processes_and_execs_are_named() {
    case(|c| {
        c.run("crew", ["sh", "-c", "sleep 1000 & sleep 1000 & wait"]).detached().ok();
        let exec = c.exec("crew", "mate", ["sh", "-c", "echo up; sleep 1000; true"]).spawn();
        exec.stdout().line("up");
        let expected = eventually("all processes", || {
            let pids = c.cgroup("crew").processes();
            (pids.len() == 5).then_some(pids)
        });
        let list = c.ctr(["task", "ps", "crew"]);
        let lines: Vec<Vec<&str>> = list.ok().lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
        let mut pids: Vec<u32> = lines.iter().map(|line| line[0].parse().expect("a pid")).collect();
        pids.sort_unstable();
        let mut expected = expected;
        expected.sort_unstable();
        assert_eq!(pids, expected);
        let state = c.shim("crew").state("crew", "mate").expect("state");
        let named = lines.iter().find(|line| line[0] == state.pid.to_string()).expect("the exec's line");
        assert!(named[1..].join(" ").contains("mate"), "{named:?}");
    });
}

#[test]
fn a_container_that_is_gone_has_no_metrics() {
    case(|c| {
        c.idle("gone", &["--annotation", "io.containerd.runc.v2.group=pair"]);
        c.idle("stays", &["--annotation", "io.containerd.runc.v2.group=pair"]);
        c.may_leave_socket("pair");
        let shim = c.shim("stays");
        shim.stats("gone").expect("stats");
        c.remove("gone");
        assert_eq!(code(shim.stats("gone")), ttrpc::Code::NOT_FOUND);
        shim.stats("stays").expect("stats");
    });
}

//! OCI hooks.

use std::fs;

use dunnage_tests::{case, process};
use serde_json::{Value, json};

#[test]
fn the_six_hooks_run_in_order_each_with_the_state_of_its_moment() {
    case(|c| {
        let root = c.root_folder("root");
        // The folder is the root of the container, so the hook that runs inside writes to the same file.
        let hook = |name: &str, order: &str| {
            // One write for each, since two of them run at the same time.
            let line = format!("state=$(cat); echo \"{name} $state\" >> {order}");
            json!([{ "path": "/bin/sh", "args": ["sh", "-c", line], "env": ["PATH=/bin"] }])
        };
        let order = root.join("order");
        let outside = order.display().to_string();
        let mut spec = c.spec("hooked", &root, &["sh", "-c", "echo 'program {}' >> /order"]);
        spec["hooks"] = json!({
            "prestart": hook("prestart", &outside),
            "createRuntime": hook("createRuntime", &outside),
            "createContainer": hook("createContainer", &outside),
            "startContainer": hook("startContainer", "/order"),
            "poststart": hook("poststart", &outside),
            "poststop": hook("poststop", &outside),
        });
        spec["annotations"] = json!({ "ship.name": "dunnage" });
        c.run_spec("hooked", &spec).output().ok();
        let text = fs::read_to_string(&order).expect("read the order");
        let lines: Vec<(&str, Value)> = text
            .lines()
            .filter(|line| !line.is_empty())
            .map(|line| line.split_once(' ').expect("a name and a state"))
            .map(|(name, state)| (name, serde_json::from_str(state).unwrap_or_else(|_| panic!("no state in {text}"))))
            .collect();
        let names: Vec<_> =
            lines.iter().map(|(name, _)| *name).filter(|name| !["program", "poststart"].contains(name)).collect();
        assert_eq!(names, ["prestart", "createRuntime", "createContainer", "startContainer", "poststop"]);
        // These two run beside each other.
        let place =
            |name: &str| lines.iter().position(|(own, _)| *own == name).unwrap_or_else(|| panic!("no {name}: {text}"));
        assert!(place("program") > place("startContainer") && place("program") < place("poststop"));
        assert!(place("poststart") > place("createContainer") && place("poststart") < place("poststop"));
        // The reference does not wait for the program to be there.
        assert!(place("poststart") > place("startContainer") || !c.subject.is_ours());
        for (name, state) in &lines {
            if *name == "program" {
                continue;
            }
            assert_eq!(state["id"], "hooked", "{name}");
            assert_eq!(state["annotations"]["ship.name"], "dunnage", "{name}");
            assert!(state["bundle"].as_str().is_some_and(|bundle| bundle.ends_with("/hooked")), "{name}: {state}");
            let status = match *name {
                // It may come before the program has been let go, in the reference.
                "poststart" if !c.subject.is_ours() => continue,
                "prestart" | "createRuntime" | "createContainer" => "creating",
                "startContainer" => "created",
                "poststart" => "running",
                _ => "stopped",
            };
            assert_eq!(state["status"], status, "{name}");
            if status == "creating" && *name != "createContainer" {
                assert!(state["pid"].as_u64().is_some_and(|pid| pid > 0), "{name}: {state}");
            }
        }
    });
}

#[test]
fn a_hook_has_its_own_environment_and_no_stray_descriptors() {
    case(|c| {
        let root = c.root_folder("root");
        let (env, fds) = (c.path("env"), c.path("fds"));
        let hook = |line: String| json!({ "path": "/bin/sh", "args": ["sh", "-c", line], "env": ["ONE=1", "PATH=/bin:/usr/bin"] });
        let mut spec = c.spec("hooked", &root, &["true"]);
        spec["hooks"] = json!({ "createRuntime": [
            hook(format!("env | grep -v -E '^(PWD|SHLVL|_)=' > {}", env.display())),
            // The shell gives way, so that only `ls` has descriptors: three, and the folder it reads.
            hook(format!("exec ls /proc/self/fd > {}", fds.display())),
        ] });
        c.run_spec("hooked", &spec).output().ok();
        let env = fs::read_to_string(env).expect("read");
        let mut env: Vec<_> = env.lines().collect();
        env.sort_unstable();
        assert_eq!(env, ["ONE=1", "PATH=/bin:/usr/bin"]);
        assert_eq!(fs::read_to_string(fds).expect("read"), "0\n1\n2\n3\n");
    });
}

#[test]
fn a_hook_that_outlives_its_timeout_is_killed() {
    case(|c| {
        let root = c.root_folder("root");
        let mut spec = c.spec("hooked", &root, &["true"]);
        let pid = c.path("pid");
        let line = format!("echo $$ > {}; exec /bin/sleep 1000", pid.display());
        // Of a second, a busy machine may give it too little to come to its first line.
        let text = [1, 4, 16].into_iter().find_map(|timeout| {
            let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", &line], "timeout": timeout });
            spec["hooks"] = json!({ "createRuntime": [hook] });
            c.run_spec("hooked", &spec).output().refused();
            fs::read_to_string(&pid).ok().filter(|text| text.ends_with('\n'))
        });
        let pid = text.expect("what it wrote").trim().parse().expect("a pid");
        process::wait_for_end(pid);
    });
}

#[test]
fn a_failing_hook_after_the_end_does_not_keep_the_container() {
    case(|c| {
        let root = c.root_folder("root");
        let mut spec = c.spec("hooked", &root, &["sh", "-c", "exit 3"]);
        spec["hooks"] = json!({ "poststop": [{ "path": "/bin/false" }] });
        assert_eq!(c.run_spec("hooked", &spec).output().code, 3);
    });
}

#[test]
fn a_failing_hook_before_the_program_keeps_it_from_running() {
    case(|c| {
        let root = c.root_folder("root");
        let mut spec = c.spec("hooked", &root, &["sh", "-c", "echo > /ran"]);
        spec["hooks"] = json!({ "startContainer": [{ "path": "/bin/false" }] });
        c.run_spec("hooked", &spec).output().refused();
        assert!(!root.join("ran").exists());
    });
}

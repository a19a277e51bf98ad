//! The commands that show things: one supervisor seen through each of them, and the full screen in a terminal.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::Duration,
};

use dunnage_tests::{Alone, Foreground, Terminal, alone, eventually, process};
use nix::sys::signal::Signal;
use serde_json::Value;

/// What gives the terminal its first screen back (xterm's private mode 1049).
const FIRST_SCREEN: &str = "\x1b[?1049l";

fn json(world: &Alone, words: &[&str]) -> Value {
    let outcome = world.dunnage(words.iter().copied());
    serde_json::from_str(outcome.ok()).unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

#[test]
fn all_views_show_the_same_containers() {
    alone(|world| {
        world.idle("one");
        assert_eq!(world.dunnage(["run", "--name", "bad", "--", "sh", "-c", "exit 3"]).code, 3);
        let pid = world.container("one").pid.to_string();

        let text = world.dunnage(["ps"]);
        assert!(text.ok().contains("one") && text.ok().contains(&pid) && !text.ok().contains("bad"), "{}", text.stdout);
        assert!(!text.stdout.contains('\x1b'), "colours are for terminals: {}", text.stdout);
        let text = world.dunnage(["ps", "-a"]);
        assert!(text.ok().contains("exited (3)") && text.ok().contains("sh -c exit 3"), "{}", text.stdout);
        assert_eq!(world.dunnage(["ps", "-aq"]).ok(), "one\nbad");
        let both = world.dunnage(["ps", "-q", "--format", "json"]);
        assert!(both.code == 125 && both.refused().contains("cannot be used with"), "{both:?}");
        let listed = json(world, &["ps", "-a", "--format", "json"]);
        assert_eq!((&listed[0]["phase"], &listed[1]["phase"]), (&"running".into(), &"stopped".into()));
        assert_eq!((&listed[0]["exitStatus"], &listed[1]["exitStatus"]), (&Value::Null, &3.into()));
        let elsewhere = world.dunnage(["--namespace", "nobody-is-here", "ps", "-aq"]);
        assert_eq!(elsewhere.ok(), "");

        let inspected = json(world, &["inspect", "one", "--format", "json"]);
        assert_eq!(inspected[0]["pid"].to_string(), pid);
        assert_eq!(inspected[0]["spec"]["process"]["args"][0], "sh");
        assert!(inspected[0]["usage"]["pids"].as_u64() >= Some(1), "{inspected:#}");
        assert_eq!(world.dunnage(["inspect", "none"]).code, 1);

        let used = json(world, &["stats", "--no-stream", "--format", "json"]);
        assert_eq!(used[0]["id"], "one");
        assert!(used[0]["cpu"].is_number(), "measured between two readings: {used:#}");
        assert_eq!(used.as_array().map(Vec::len), Some(1), "what has ended uses nothing: {used:#}");
    });
}

#[test]
fn events_go_on_from_a_cursor() {
    alone(|world| {
        world.idle("one");
        // Events come when it has been answered.
        let follower = world.spawn(["events", "-f", "--from", "0"]);
        follower.stdout().line("started, pid");
        let all = world.dunnage(["events", "--format", "json"]);
        let all: Vec<Value> = all.ok().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let topics: Vec<_> = all.iter().map(|event| event["topic"].as_str().unwrap()).collect();
        assert_eq!(topics, ["/tasks/create", "/tasks/start"]);
        let cursor = all[0]["number"].to_string();
        let rest = world.dunnage(["events", "--from", &cursor]);
        assert_eq!(rest.ok().lines().count(), 1, "{}", rest.stdout);
        assert!(rest.stdout.contains("started, pid"), "{}", rest.stdout);

        // Also over the death of the supervisor, and nothing twice.
        world.kill();
        world.start();
        world.dunnage(["kill", "one"]).ok();
        follower.stdout().line("exited (137)");
        let told = follower.stdout().text();
        follower.kill();
        let numbers: Vec<u64> =
            told.lines().map(|line| line.split_whitespace().next().unwrap().parse().unwrap()).collect();
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "{told}");
    });
}

#[test]
fn a_reader_that_has_read_enough_ends_the_writer_in_silence() {
    alone(|world| {
        world.idle("one");
        let mut command = world.client(["events", "-f", "--from", "0"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("created"), "{line}");
        // Nothing more happens that it could fail to write.
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap()), (Some(141), String::new()));
    });
}

#[test]
fn a_trace_joins_supervisor_shim_and_container() {
    alone(|world| {
        world.idle("one");
        let trace = json(world, &["trace", "one", "--format", "json"]);
        let who = |name: &str| trace["spans"].as_array().unwrap().iter().filter(|span| span["who"] == name).count();
        for name in ["supervisor", "shim", "parent", "init"] {
            assert!(who(name) > 0, "no span of {name}: {trace:#}");
        }
        let offsets: Vec<_> = trace["spans"].as_array().unwrap().iter().map(|span| span["offsetNs"].as_u64()).collect();
        assert!(offsets.is_sorted() && offsets[0] == Some(0), "{offsets:?}");
        let chrome = json(world, &["trace", "one", "--format", "chrome"]);
        let drawn = chrome["traceEvents"].as_array().unwrap().iter().filter(|event| event["ph"] == "X").count();
        assert_eq!(drawn, offsets.len());
        let text = world.dunnage(["trace", "--all", "one"]);
        assert_eq!(text.ok().lines().count(), offsets.len() + 3, "{}", text.stdout);
        assert!(text.stdout.contains("mount proc at /proc"), "{}", text.stdout);
    });
}

#[test]
fn versions_are_told_with_and_without_a_supervisor() {
    alone(|world| {
        let told = json(world, &["version", "--format", "json"]);
        assert_eq!(told["supervisor"]["pid"], world.pid());
        world.kill();
        assert_eq!(json(world, &["version", "--format", "json"])["supervisor"], Value::Null);
        world.start();
    });
}

fn top(world: &Alone, terminal: &mut Terminal) -> Foreground {
    let top = world.spawn_on(terminal, ["top"]);
    terminal.expect("running");
    top
}

#[test]
fn top_shows_what_runs_and_gives_the_terminal_back() {
    alone(|world| {
        world.idle("one");
        let mut terminal = Terminal::new();
        let top = top(world, &mut terminal);
        terminal.expect("one");
        assert!(!terminal.echoes(), "keys are top's");
        // A second reading, with a rate.
        terminal.expect("%");
        terminal.resize(20, 60);
        process::signal(top.pid(), Signal::SIGWINCH);
        terminal.expect("select");
        // None of the keys harms a container.
        terminal.type_in("\x1b[B\x1b[Amcdnra");
        terminal.type_in("q");
        terminal.expect(FIRST_SCREEN);
        assert_eq!(top.wait().code, 0);
        assert!(terminal.echoes(), "given back");
        assert_eq!(world.dunnage(["ps", "-q"]).ok(), "one");
    });
}

#[test]
fn top_gives_the_terminal_back_when_it_is_told_to_end() {
    alone(|world| {
        for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129), (Signal::SIGINT, 130)] {
            let mut terminal = Terminal::new();
            let top = top(world, &mut terminal);
            process::signal(top.pid(), signal);
            terminal.expect(FIRST_SCREEN);
            assert_eq!(top.wait().code, code);
            assert!(terminal.echoes(), "given back after {signal}");
        }
    });
}

#[test]
fn top_outlives_its_supervisor() {
    alone(|world| {
        world.idle("one");
        let mut terminal = Terminal::new();
        let top = top(world, &mut terminal);
        terminal.expect("one");
        world.kill();
        terminal.expect("reconnecting");
        world.start();
        let pid = world.pid().to_string();
        // Redrawn from top to bottom: the supervisor that it is connected to now is in the first line.
        eventually("top found the new supervisor", || {
            terminal.type_in("\x0c");
            terminal.shows(&pid, Duration::from_millis(200)).then_some(())
        });
        terminal.type_in("q");
        assert_eq!(top.wait().code, 0);
    });
}

#[test]
fn top_is_refused_where_nobody_could_see_it() {
    alone(|world| {
        let refused = world.dunnage(["top"]);
        assert_eq!(refused.code, 1);
        assert!(refused.stderr.contains("top needs a terminal"), "{}", refused.stderr);
    });
}

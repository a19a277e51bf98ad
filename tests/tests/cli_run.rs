//! `dunnage run` and what follows it, without containerd: the real command line, the real supervisor, the real shim.

use std::{
    fs,
    io::Write as _,
    os::unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use dunnage_tests::{Alone, Terminal, alone, eventually, process};
use nix::{
    libc::O_NONBLOCK,
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};
use runtime_v2_api::supervisor::Phase;

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).expect("send a signal");
}

#[test]
fn exit_codes_are_the_programs_and_ours_are_dockers() {
    alone(|world| {
        let run = |words: &[&str]| world.dunnage(["run", "--rm"].iter().chain(words).copied());
        assert_eq!(run(&["--", "sh", "-c", "exit 7"]).code, 7);
        assert_eq!(run(&["--", "sh", "-c", "sleep 100 & kill -KILL $!; wait $!"]).code, 137);
        for (words, code, part) in [
            (&["--", "no-such-program"][..], 127, "executable file not found in $PATH"),
            (&["--", "/etc/passwd"], 126, "permission denied"),
            (&["--name", "a/b", "--", "true"], 125, "a/b"),
            (&["--no-such-flag", "--", "true"], 125, "--no-such-flag"),
            (&["--cap-add", "nope", "--", "true"], 125, "no capability \"nope\""),
            (&["-u", "nobody-knows", "--", "true"], 125, "no user \"nobody-knows\""),
        ] {
            let outcome = run(words);
            assert_eq!(outcome.code, code, "{words:?}: {}", outcome.stderr);
            assert!(outcome.stderr.contains(part), "{words:?}: {}", outcome.stderr);
        }
        for (flag, words) in [("-v", "/x/y:/z"), ("--mount", "src=/x/./y,dst=/z,ro")] {
            let refused = run(&[flag, words, "--", "true"]);
            let part = "there is no /x/y to show; `mkdir -p /x/y` makes a folder";
            assert!(refused.code == 125 && refused.refused().contains(part), "{flag}: {}", refused.stderr);
        }
        assert!(world.containers().is_empty(), "what never ran is not kept");
    });
}

#[test]
fn the_machines_root_is_seen_and_never_written_to() {
    alone(|world| {
        let probe = world.path("probe");
        let script = format!(
            "cat /etc/passwd; mkdir -p {}; echo x > /etc/dunnage-test && cat /etc/dunnage-test",
            probe.display()
        );
        let outcome = world.dunnage(["run", "--rm", "--", "sh", "-c", &script]);
        assert_eq!(outcome.ok(), fs::read_to_string("/etc/passwd").unwrap() + "x");
        assert!(!fs::exists("/etc/dunnage-test").unwrap() && !probe.exists());
        // What other containers have said is none of its business.
        let logs = format!("ls {}", world.root().display());
        assert_eq!(world.dunnage(["run", "--rm", "--", "sh", "-c", &logs]).stdout, "");
    });
}

#[test]
fn what_is_asked_for_is_what_the_program_sees() {
    alone(|world| {
        let data = world.path("data");
        fs::create_dir(&data).unwrap();
        fs::write(data.join("file"), "from outside\n").unwrap();
        let volume = format!("{}:/data:ro", data.display());
        let script = "id -u; pwd; hostname; echo $A; cat /data/file; touch /data/x 2>/dev/null || echo refused; \
                      touch /x 2>/dev/null || echo refused; grep -c . /proc/net/dev; df -k /cache | tail -1 | awk '{print $2}'; \
                      grep NoNewPrivs /proc/self/status | cut -f2; ulimit -n >/dev/null; tty";
        let words =
            ["run", "--rm", "-u", "65534:65534", "-w", "/tmp", "--hostname", "h1", "-e", "A=b c", "-v", &volume];
        let more = ["--mount", "type=tmpfs,dst=/cache,tmpfs-size=1m", "--read-only", "--", "sh", "-c", script];
        let outcome = world.dunnage(words.iter().chain(&more).copied());
        let lines = "65534\n/tmp\nh1\nb c\nfrom outside\nrefused\nrefused\n3\n1024\n1\nnot a tty\n";
        assert_eq!(outcome.stdout, lines, "{}", outcome.stderr);
    });
}

#[test]
fn a_folder_and_a_bundle_are_roots_too() {
    alone(|world| {
        fs::create_dir(world.path("bundle")).unwrap();
        let root = world.root_folder("bundle/rootfs");
        let outcome = world.dunnage(["run", "--rm", "--rootfs", root.to_str().unwrap(), "--", "ls", "/proc/self/exe"]);
        assert_eq!(outcome.ok(), "/proc/self/exe");
        let config = serde_json::json!({
            "ociVersion": "1.2.0", "root": {"path": "rootfs"},
            "process": {"args": ["/bin/sh", "-c", "echo $A-$B"], "env": ["A=config", "B=config"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
        });
        fs::write(world.path("bundle/config.json"), config.to_string()).unwrap();
        let bundle = world.path("bundle");
        let outcome = world.dunnage(["run", "--rm", "-e", "B=flag", "--bundle", bundle.to_str().unwrap()]);
        assert_eq!(outcome.ok(), "config-flag");
    });
}

#[test]
fn stdin_goes_in_and_both_outputs_come_out() {
    alone(|world| {
        let mut cat = world.spawn(["run", "--rm", "-i", "--", "sh", "-c", "cat; echo oops >&2"]);
        let text: String = (0..50_000).map(|line| format!("line {line}\n")).collect();
        cat.stdin().write_all(text.as_bytes()).unwrap();
        let outcome = cat.wait();
        assert!(outcome.stdout == text, "{} of {} bytes came back", outcome.stdout.len(), text.len());
        assert_eq!((outcome.stderr.as_str(), outcome.code), ("oops\n", 0));
    });
}

#[test]
fn signals_are_passed_on_and_the_third_request_is_enough() {
    alone(|world| {
        let heeds = world.spawn([
            "run",
            "--rm",
            "--",
            "sh",
            "-c",
            "trap 'echo got it; exit 4' INT; echo up; while :; do sleep 0.05; done",
        ]);
        heeds.stdout().line("up");
        signal(heeds.pid(), Signal::SIGINT);
        let outcome = heeds.wait();
        assert_eq!((outcome.code, outcome.stdout.as_str()), (4, "up\ngot it\n"));

        let counts = "n=0; trap 'n=$((n+1)); echo $n' INT; echo up; while :; do sleep 0.05; done";
        let stubborn = world.spawn(["run", "--name", "stubborn", "--", "sh", "-c", counts]);
        stubborn.stdout().line("up");
        for time in ["1\n", "2\n"] {
            signal(stubborn.pid(), Signal::SIGINT);
            stubborn.stdout().line(time.trim());
        }
        signal(stubborn.pid(), Signal::SIGINT);
        let outcome = stubborn.wait();
        assert_eq!(outcome.code, 130);
        assert!(outcome.stderr.contains("leaving stubborn, which goes on"), "{}", outcome.stderr);
        assert_eq!(world.container("stubborn").phase.enum_value_or_default(), Phase::RUNNING);
    });
}

#[test]
fn a_terminal_is_the_containers_until_it_is_given_back() {
    alone(|world| {
        let mut terminal = Terminal::new();
        let shell = world.spawn_on(&terminal, ["run", "-it", "--name", "shell", "--", "sh"]);
        terminal.expect("# ");
        assert!(!terminal.echoes(), "our side is raw");
        terminal.type_in("stty size\r");
        terminal.expect("40 100");
        terminal.resize(30, 90);
        signal(shell.pid(), Signal::SIGWINCH);
        terminal.type_in("while [ \"$(stty size)\" != '30 90' ]; do :; done; echo resi''zed\r");
        terminal.expect("resized");
        // Not to be taken for the one after the interrupt: what is typed before that has come, the shell forgets.
        terminal.expect("# ");
        // Its own interrupt key, which is not ours.
        terminal.type_in("sh -c 'echo slee''ping; exec sleep 1000'\r");
        // It has the terminal by then, or only the shell were interrupted.
        terminal.expect("sleeping");
        terminal.type_in("\x03");
        terminal.expect("# ");
        terminal.type_in("\x10\x11");
        assert_eq!(shell.wait().code, 0, "detached");
        assert!(terminal.echoes(), "given back");

        let again = world.spawn_on(&terminal, ["attach", "shell"]);
        terminal.type_in("echo back aga''in\r");
        terminal.expect("back again");
        terminal.type_in("exit 9\r");
        assert_eq!(again.wait().code, 9);
        assert!(terminal.echoes(), "given back");
    });
}

#[test]
fn a_terminal_is_given_back_when_we_are_told_to_end() {
    alone(|world| {
        let mut terminal = Terminal::new();
        let shell = world.spawn_on(&terminal, ["run", "-it", "--name", "shell", "--", "sh"]);
        terminal.expect("# ");
        signal(shell.pid(), Signal::SIGTERM);
        assert_eq!(shell.wait().code, 143);
        assert!(terminal.echoes());
        assert_eq!(world.container("shell").phase.enum_value_or_default(), Phase::RUNNING);
    });
}

#[test]
fn exec_runs_beside_and_tells_the_code() {
    alone(|world| {
        world.idle("one");
        let exec = |words: &[&str]| world.dunnage(["exec"].iter().chain(words).copied());
        assert_eq!(exec(&["one", "--", "sh", "-c", "echo out; echo err >&2; exit 3"]).code, 3);
        assert_eq!(
            exec(&["-u", "65534", "-w", "/tmp", "-e", "A=b", "one", "sh", "-c", "id -u; pwd; echo $A"]).ok(),
            "65534\n/tmp\nb"
        );
        assert_eq!(exec(&["one", "no-such-program"]).code, 127);
        assert_eq!(exec(&["one", "/etc/passwd"]).code, 126);
        assert_eq!(exec(&["two", "true"]).code, 1);
        for (words, part) in [
            (["--no-such-flag", "one", "true"].as_slice(), "--no-such-flag"),
            (&["-w", "tmp", "one", "true"], "'--workdir <DIR>': it must be an absolute path"),
            (&["-e", "=x", "one", "true"], "'--env <NAME[=VALUE]>': a variable has a name"),
        ] {
            let outcome = exec(words);
            assert!(outcome.code == 125 && outcome.stderr.contains(part), "{words:?}: {}", outcome.stderr);
        }
        let mut cat = world.spawn(["exec", "-i", "one", "cat"]);
        let text = "x".repeat(300_000);
        cat.stdin().write_all(text.as_bytes()).unwrap();
        assert!(cat.wait().stdout == text);
        let mut terminal = Terminal::new();
        let shell = world.spawn_on(&terminal, ["exec", "-it", "one", "sh"]);
        terminal.expect("# ");
        terminal.type_in("tty; exit 6\r");
        terminal.expect("/dev/pts/0");
        assert_eq!(shell.wait().code, 6);
        assert_eq!(exec(&["-d", "one", "sh", "-c", "sleep 0; touch /tmp/done"]).ok(), "");
        eventually("the detached exec's file", || (exec(&["one", "ls", "/tmp/done"]).code == 0).then_some(()));
        let left = fs::read_dir(world.state())
            .unwrap()
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().starts_with("exec-"));
        assert_eq!(left.count(), 0, "FIFOs are left");
        world.dunnage(["pause", "one"]).ok();
        assert!(exec(&["one", "true"]).refused().contains("one is paused"));
        world.dunnage(["resume", "one"]).ok();
    });
}

#[test]
fn a_name_may_be_short_and_a_wrong_one_gets_a_hint() {
    alone(|world| {
        for id in ["web-1", "web-2", "db"] {
            world.idle(id);
        }
        assert_eq!(world.dunnage(["stop", "d"]).ok(), "d");
        assert!(world.dunnage(["stop", "web"]).refused().contains("web-1, web-2"));
        assert!(world.dunnage(["stop", "x"]).refused().contains("`dunnage ps -a`"));
        // What goes wrong for one does not concern the others.
        let outcome = world.dunnage(["kill", "web-1", "x", "web-2"]);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (1, "web-1\nweb-2\n"));
        assert_eq!(world.dunnage(["wait", "web-1", "web-2"]).ok(), "137\n137");
        assert_eq!(world.dunnage(["wait", "db"]).ok(), "15");
        let waited = world.dunnage(["wait", "--format", "json", "d", "x", "web-1"]);
        let waited: serde_json::Value = serde_json::from_str(&waited.stdout).unwrap();
        let expected = serde_json::json!([{"id": "db", "exitStatus": 15}, {"id": "web-1", "exitStatus": 137}]);
        assert_eq!(waited, expected);
        assert_eq!(world.dunnage(["rm", "web-1", "web-2", "db"]).ok(), "web-1\nweb-2\ndb");
        assert!(world.containers().is_empty());
    });
}

#[test]
fn stop_kills_what_does_not_heed() {
    alone(|world| {
        world
            .dunnage([
                "run",
                "-d",
                "--name",
                "deaf",
                "--",
                "sh",
                "-c",
                "trap '' TERM; echo up; while :; do sleep 0.05; done",
            ])
            .ok();
        let log = world.spawn(["logs", "-f", "deaf"]);
        log.stdout().line("up");
        assert!(world.dunnage(["rm", "deaf"]).refused().contains("deaf"), "it runs");
        assert_eq!(world.dunnage(["stop", "-t", "0", "deaf"]).ok(), "deaf");
        assert_eq!(log.wait().ok(), "up", "following ends with the container");
        assert_eq!(world.dunnage(["wait", "deaf"]).ok(), "137");
    });
}

#[test]
fn logs_follow_over_rotation_and_lose_nothing() {
    alone(|world| {
        world.flags(["--config".into(), config(world, "[log]\nmax_size = '64KiB'\nmax_files = 100\n")]);
        world.stop();
        world.start();
        let script = "i=0; while [ $i -lt 6000 ]; do echo line $i of a log that is rotated while somebody reads it; i=$((i+1)); done";
        world.dunnage(["run", "-d", "--name", "talker", "--", "sh", "-c", script]).ok();
        let followed = world.spawn(["logs", "-f", "talker"]).wait();
        let expected: String =
            (0..6000).map(|i| format!("line {i} of a log that is rotated while somebody reads it\n")).collect();
        assert!(followed.stdout == expected, "{} of {} bytes", followed.stdout.len(), expected.len());
        assert!(world.dunnage(["logs", "talker"]).stdout == expected);
        let files =
            fs::read_dir(std::path::Path::new(&world.container("talker").log).parent().unwrap()).unwrap().count();
        assert!(files > 3, "{files} files");
        assert!(world.dunnage(["logs", "--tail", "1", "talker"]).ok().starts_with("line 5999"));
        let stamped = world.dunnage(["logs", "-t", "--tail", "1", "talker"]);
        let (time, rest) = stamped.ok().split_once(' ').unwrap();
        assert!(time.ends_with('Z') && rest.starts_with("line 5999"), "{time}");
        assert!(world.dunnage(["logs", "--tail", "all", "talker"]).stdout == expected);
        assert_eq!(world.dunnage(["logs", "--since", "2000-01-01", "--until", "2000-01-02", "talker"]).ok(), "");
    });
}

#[test]
fn following_a_log_ends_at_the_time_that_was_named() {
    alone(|world| {
        let script = "while echo tick; do sleep 0.05; done";
        world.dunnage(["run", "-d", "--name", "clock", "--", "sh", "-c", script]).ok();
        eventually("a line", || (!world.dunnage(["logs", "clock"]).ok().is_empty()).then_some(()));
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        for until in [now(), now() + Duration::from_secs(2)] {
            let bound = format!("{}", until.as_secs_f64());
            let followed = world.spawn(["logs", "-f", "-t", "--until", &bound, "clock"]).wait();
            // Without what was written before that time, and reached the log after it.
            let all = world.dunnage(["logs", "-t", "--until", &bound, "clock"]);
            assert!(!followed.ok().is_empty() && all.ok().starts_with(followed.ok()), "{followed:?}\n{all:?}");
        }
        assert_eq!(world.container("clock").phase.enum_value_or_default(), Phase::RUNNING);
    });
}

fn config(world: &Alone, text: &str) -> std::ffi::OsString {
    let path = world.path("dunnaged.toml");
    fs::write(&path, text).expect("write a file");
    path.into()
}

#[test]
fn limits_are_set_and_changed() {
    alone(|world| {
        world.dunnage(["run", "-d", "--name", "small", "--memory", "64m", "--pids", "50", "--", "sleep", "1000"]).ok();
        let of = |file: &str| {
            let find = format!("cat /sys/fs/cgroup/{file} /sys/fs/cgroup/*/{file} 2>/dev/null | head -1");
            world.dunnage(["exec", "small", "sh", "-c", &find]).stdout.trim().to_owned()
        };
        let memory = |of: &dyn Fn(&str) -> String| of("memory.max") + &of("memory.limit_in_bytes");
        assert_eq!((memory(&of), of("pids.max")), ((64 << 20).to_string(), "50".to_owned()));
        world.dunnage(["update", "--memory", "128m", "--pids", "60", "small"]).ok();
        assert_eq!((memory(&of), of("pids.max")), ((128 << 20).to_string(), "60".to_owned()));
        assert!(world.dunnage(["update", "small"]).refused().contains("nothing to change"));
    });
}

#[test]
fn rights_and_networks_are_as_asked() {
    alone(|world| {
        let run = |words: &[&str]| world.dunnage(["run", "--rm"].iter().chain(words).copied());
        let capabilities = "grep CapEff /proc/self/status | cut -f2";
        let effective = |words: &[&str]| {
            let outcome = run(&[words, &["--", "sh", "-c", capabilities]].concat());
            u64::from_str_radix(outcome.ok(), 16).expect("a set of capabilities")
        };
        let (usual, net_raw) = (effective(&[]), 1 << 13);
        assert_eq!(effective(&["--cap-drop", "ALL"]), 0);
        assert_eq!(effective(&["--cap-drop", "ALL", "--cap-add", "NET_RAW"]), net_raw);
        assert_eq!(effective(&["--cap-drop", "net_raw"]), usual & !net_raw);

        let profile = world.path("profile.json");
        let rules = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls":
            [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"#;
        fs::write(&profile, rules).unwrap();
        let refused = run(&["--seccomp", profile.to_str().unwrap(), "--", "mkdir", "/tmp/x"]);
        assert!(refused.code != 0 && refused.stderr.contains("No space left on device"), "{}", refused.stderr);
        let mode = ["--", "sh", "-c", "grep Seccomp: /proc/self/status | cut -f2"];
        assert_eq!(run(&[&["--seccomp", "unconfined"], &mode[..]].concat()).ok(), "0");
        assert_eq!(run(&mode).ok(), "2", "the usual profile");

        let network = ["--", "readlink", "/proc/self/ns/net"];
        let ours = fs::read_link("/proc/self/ns/net").unwrap();
        assert_eq!(run(&[&["--network", "host"], &network[..]].concat()).ok(), ours.to_str().unwrap());
        assert_ne!(run(&network).ok(), ours.to_str().unwrap());
    });
}

#[test]
fn other_detach_keys_and_signals_by_name() {
    alone(|world| {
        let mut terminal = Terminal::new();
        let words = ["run", "-it", "--name", "shell", "--detach-keys", "ctrl-a,d", "--", "sh"];
        let shell = world.spawn_on(&terminal, words);
        terminal.expect("# ");
        terminal.type_in("echo not de\x10\x11tached\r");
        terminal.type_in("\x01d");
        assert_eq!(shell.wait().code, 0, "detached");
        world
            .dunnage([
                "run",
                "-d",
                "--name",
                "heeds",
                "--",
                "sh",
                "-c",
                "trap 'exit 8' USR1; while :; do sleep 0.05; done",
            ])
            .ok();
        eventually("the trap to be set and sprung", || {
            drop(world.dunnage(["kill", "--signal", "USR1", "heeds"]));
            let phase = world.container("heeds").phase.enum_value_or_default();
            (phase == Phase::STOPPED).then_some(())
        });
        let code = world.dunnage(["wait", "heeds"]).ok().to_owned();
        assert!(["8", "138"].contains(&&*code), "{code}: before or after the trap was set");
        assert!(world.dunnage(["kill", "--signal", "NONSENSE", "shell"]).refused().contains("NONSENSE"));
    });
}

#[test]
fn a_client_outlives_its_supervisor() {
    alone(|world| {
        let mut run = world.spawn(["run", "--rm", "-i", "--", "sh", "-c", "echo up; read x; echo $x; exit 12"]);
        run.stdout().line("up");
        let waits = world.spawn(["wait", &world.containers()[0].id]);
        world.kill();
        // Connected to the shim, it does not need the supervisor to talk.
        run.stdin().write_all(b"hello\n").unwrap();
        run.stdout().line("hello");
        world.start();
        let outcome = run.wait();
        assert_eq!((outcome.code, outcome.stdout.as_str()), (12, "up\nhello\n"), "{}", outcome.stderr);
        drop(waits.wait());
        assert!(world.containers().is_empty());
    });
}

/// `--rm` is the supervisor's promise: whatever becomes of the client, and of a supervisor in between.
#[test]
fn a_container_is_removed_also_when_nobody_stays_with_it() {
    alone(|world| {
        let mut terminal = Terminal::new();
        let shell = |name| ["run", "--rm", "-it", "--name", name, "--", "sh"];
        let (detached, told) = (world.spawn_on(&terminal, shell("detached")), "# ");
        terminal.expect(told);
        terminal.type_in("\x10\x11");
        assert_eq!(detached.wait().code, 0);
        let ended = world.spawn_on(&terminal, shell("ended"));
        terminal.expect(told);
        signal(ended.pid(), Signal::SIGTERM);
        assert_eq!(ended.wait().code, 143);
        let deaf = "trap 'n=$n.; echo $n' INT; echo up; while :; do sleep 0.05; done";
        let left = world.spawn(["run", "--rm", "--name", "left", "--", "sh", "-c", deaf]);
        for line in ["up", ".", ".."] {
            left.stdout().line(line);
            signal(left.pid(), Signal::SIGINT);
        }
        assert_eq!(left.wait().code, 130);
        let killed = world.spawn(["run", "--rm", "--name", "killed", "--", "sh", "-c", "echo up; sleep 1000"]);
        killed.stdout().line("up");
        killed.kill();
        let names = ["detached", "ended", "left", "killed"];
        for name in names {
            assert_eq!(world.container(name).phase.enum_value_or_default(), Phase::RUNNING, "{name} goes on");
        }
        // What ends while there is no supervisor is the next one's.
        let (first, rest) = names.split_at(2);
        world.dunnage(["kill"].iter().chain(first).copied()).ok();
        let pids = rest.iter().map(|name| world.container(name).pid).collect::<Vec<_>>();
        world.kill();
        pids.into_iter().for_each(process::kill_hard);
        world.start();
        eventually("all of them to be removed", || world.containers().is_empty().then_some(()));
    });
}

#[test]
fn a_slow_reader_gets_all_and_the_code_of_a_container_that_is_to_be_removed() {
    alone(|world| {
        let script = "echo up; while [ ! -e /tmp/go ]; do sleep 0.05; done; \
                      i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; exit 5";
        let run = world.spawn(["run", "--rm", "--name", "talker", "--", "sh", "-c", script]);
        run.stdout().line("up");
        // From here on it neither reads, nor asks how the container ended.
        signal(run.pid(), Signal::SIGSTOP);
        // As the supervisor looks.
        let mut writes = fs::OpenOptions::new();
        let fifo = writes.write(true).custom_flags(O_NONBLOCK).open(attended(world, "talker"));
        drop(fifo.expect("it stays with the container"));
        drop(world.dunnage(["exec", "talker", "touch", "/tmp/go"]));
        let ended = || world.container("talker").phase.enum_value_or_default() == Phase::STOPPED;
        eventually("the end of the container", || ended().then_some(()));
        world.kill();
        world.start();
        assert_eq!(world.container("talker").exit_status, 5, "kept for its client");
        signal(run.pid(), Signal::SIGCONT);
        let outcome = run.wait();
        let expected: String = (0..2000).map(|line| format!("line {line}\n")).collect();
        assert!(outcome.stdout == format!("up\n{expected}"), "{} bytes", outcome.stdout.len());
        assert_eq!(outcome.code, 5, "{}", outcome.stderr);
        assert!(world.containers().is_empty());
    });
}

/// What a client that stays with the container reads from.
fn attended(world: &Alone, id: &str) -> PathBuf {
    Path::new(&world.container(id).log).with_file_name("attended")
}

#[test]
fn a_container_is_not_removed_while_a_client_stays_with_it() {
    alone(|world| {
        let script = "while [ ! -e /tmp/end ]; do sleep 0.05; done; exit 6";
        world.dunnage(["run", "-d", "--rm", "--name", "one", "--", "sh", "-c", script]).ok();
        mkfifo(&attended(world, "one"), Mode::S_IRWXU).expect("make a FIFO");
        let mut reads = fs::OpenOptions::new();
        let stays = reads.read(true).custom_flags(O_NONBLOCK).open(attended(world, "one")).expect("open a FIFO");
        // It may be killed by the container's end before its own.
        drop(world.dunnage(["exec", "one", "touch", "/tmp/end"]));
        for _ in 0..2 {
            let ended = || world.container("one").phase.enum_value_or_default() == Phase::STOPPED;
            eventually("the end of the container", || ended().then_some(()));
            // Of which the next supervisor knows as well.
            world.kill();
            world.start();
        }
        assert_eq!(world.dunnage(["wait", "one"]).ok(), "6");
        process::kill_hard(world.container("one").shim_pid);
        let lost = || world.container("one").phase.enum_value_or_default() == Phase::LOST;
        eventually("the end of its shim", || lost().then_some(()));
        world.kill();
        world.start();
        assert_eq!(world.container("one").exit_status, 6);
        drop(stays);
        eventually("it to be removed", || world.containers().is_empty().then_some(()));
    });
}

/// Of a container in the background nothing is kept for those who are attached; the journal tells them.
#[test]
fn the_code_of_a_container_that_is_gone_is_told_to_who_was_attached() {
    alone(|world| {
        let script = "while [ ! -e /tmp/end ]; do echo tick; sleep 0.05; done; exit 9";
        world.dunnage(["run", "-d", "--rm", "--name", "one", "--", "sh", "-c", script]).ok();
        let attach = world.spawn(["attach", "one"]);
        attach.stdout().line("tick");
        signal(attach.pid(), Signal::SIGSTOP);
        // It may be killed by the container's end before its own.
        drop(world.dunnage(["exec", "one", "touch", "/tmp/end"]));
        eventually("the container to be removed", || world.containers().is_empty().then_some(()));
        signal(attach.pid(), Signal::SIGCONT);
        let outcome = attach.wait();
        assert_eq!(outcome.code, 9, "{}", outcome.stderr);
    });
}

#[test]
fn a_container_whose_shim_is_killed_tells_its_client_the_code_and_is_removed() {
    alone(|world| {
        let run = world.spawn(["run", "--rm", "--name", "one", "--", "sh", "-c", "echo up; sleep 1000"]);
        run.stdout().line("up");
        process::kill_hard(world.container("one").shim_pid);
        let outcome = run.wait();
        assert_eq!(outcome.code, 137, "{}", outcome.stderr);
        eventually("it to be removed", || world.containers().is_empty().then_some(()));
    });
}

#[test]
fn nobody_reads_any_more() {
    alone(|world| {
        let mut command = world.client(["run", "--rm", "--", "sh", "-c", "while echo y; do :; done"]);
        let mut run = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        drop(run.stdout.take());
        assert!(!run.wait().unwrap().success());
        assert!(world.containers().is_empty(), "--rm removes it");
    });
}

/// In folders of its own, where none runs; whoever comes first starts it, and the others use it.
#[test]
fn a_supervisor_is_started_by_whoever_finds_none() {
    alone(|world| {
        world.stop();
        let client = |words: &[&str]| {
            let mut command = Command::new(world.program("dunnage"));
            command
                .args(words)
                .env_remove("DUNNAGE_ADDRESS")
                .env("DUNNAGE_STATE", world.state())
                .env("DUNNAGE_ROOT", world.root());
            command
                .env("DUNNAGE_NAMESPACE", &world.name)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            command.process_group(0).spawn().unwrap()
        };
        let all: Vec<_> = (0..4).map(|_| client(&["run", "--rm", "--", "echo", "hi"])).collect();
        let all: Vec<_> = all.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
        let complaints: String =
            all.iter().map(|output| String::from_utf8_lossy(&output.stderr).into_owned()).collect();
        assert!(all.iter().all(|output| output.stdout == b"hi\n" && output.status.success()), "{complaints}");
        let starts: Vec<&str> = complaints.split("started dunnaged, process ").skip(1).collect();
        let [start] = starts[..] else { panic!("{complaints}") };
        let pid: u32 = start.split(',').next().unwrap().parse().unwrap();
        let pidfd = process::Pidfd::open(pid).unwrap();
        process::terminate(pid);
        assert!(pidfd.ended_within(dunnage_tests::patience()));
        // One whose address is named is somebody else's to start.
        let outcome = world.dunnage(["wait", "x"]);
        assert!(outcome.refused().contains("no supervisor listens at"), "{}", outcome.stderr);
        world.start();
    });
}

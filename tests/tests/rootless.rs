//! What an ordinary user can do: the supervisor in a user namespace of theirs, with one id or with many, with cgroups of
//! their own where a systemd of theirs gives them some, and without.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::Stdio,
};

use dunnage_tests::{Alone, Terminal, User, alone_as, cgroup, eventually, process};

/// The process that a container began with.
fn first_process(world: &Alone, id: &str) -> u32 {
    world.container(id).pid
}

/// Its shim, the parent of that.
fn shim_of(world: &Alone, id: &str) -> u32 {
    process::status(first_process(world, id), "PPid").parse().expect("a number")
}

#[test]
fn containers_live_and_end_as_roots_do() {
    alone_as(User::unknown(), |world| {
        let run = |words: &[&str]| world.dunnage(["run", "--rm"].iter().chain(words).copied());
        let outcome = run(&["--", "sh", "-c", "echo out; echo err >&2; id -u; exit 7"]);
        assert_eq!((outcome.code, outcome.stdout.as_str(), outcome.stderr.as_str()), (7, "out\n0\n", "err\n"));
        assert_eq!(run(&["--", "no-such-program"]).code, 127);
        let refused = run(&["-u", "1000", "--", "true"]);
        assert!(refused.code == 125 && refused.stderr.contains("not mapped"), "{}", refused.stderr);

        let script = "trap 'echo asked; exit 15' TERM; echo begun; while :; do sleep 3600 & wait $!; done";
        for id in ["stopped", "killed", "forced"] {
            world.dunnage(["run", "-d", "--name", id, "--", "sh", "-c", script]).ok();
        }
        eventually("the containers are ready", || {
            let said = world.dunnage(["logs", "stopped"]).stdout == "begun\n";
            said.then_some(())
        });
        assert_eq!(world.dunnage(["ps", "-q"]).ok(), "stopped\nkilled\nforced");
        assert_eq!(world.dunnage(["stop", "stopped"]).ok(), "stopped");
        assert_eq!(world.dunnage(["wait", "stopped"]).ok(), "15");
        assert_eq!(world.dunnage(["logs", "stopped"]).ok(), "begun\nasked");
        assert_eq!(world.dunnage(["kill", "killed"]).ok(), "killed");
        assert_eq!(world.dunnage(["wait", "killed"]).ok(), "137");
        assert_eq!(world.dunnage(["rm", "stopped", "killed"]).ok(), "stopped\nkilled");
        // Without a cgroup to kill, its first process has to do.
        let (pid, log) = (first_process(world, "forced"), world.log().text().len());
        assert_eq!(world.dunnage(["rm", "-f", "forced"]).ok(), "forced");
        assert!(!process::lives(pid));
        assert!(!world.log().text()[log..].contains(" warn "), "{}", &world.log().text()[log..]);
    });
}

#[test]
fn who_finds_no_supervisor_starts_and_asks_the_one_that_is_configured() {
    alone_as(User::unknown(), |world| {
        world.stop();
        let (folder, state, root) = (world.path("home/.config/dunnage"), world.path("home/a"), world.path("home/b"));
        fs::create_dir_all(&folder).expect("make a folder");
        let text = format!("state = {state:?}\nroot = {root:?}\n");
        fs::write(folder.join("dunnaged.toml"), text).expect("write the configuration");
        let mut complaint = String::new();
        for (number, started) in [true, false].into_iter().enumerate() {
            let mut command = world.client(["run", "--rm", "--", "echo", &number.to_string()]);
            let output = command.env_remove("DUNNAGE_ADDRESS").output().expect("run dunnage");
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(
                (String::from_utf8_lossy(&output.stdout).trim(), output.status.code()),
                (&*number.to_string(), Some(0)),
                "{said}"
            );
            assert_eq!(said.contains("started dunnaged"), started, "{said}");
            complaint.push_str(&said);
        }
        assert!(state.join("dunnaged.sock").exists() && root.join("journal").is_dir());
        let pid = complaint.split_once("started dunnaged, process ").and_then(|(_, rest)| rest.split_once(','));
        let pid = pid.expect("who serves").0.parse().expect("a number");
        process::terminate(pid);
        process::wait_for_end(pid);
        world.start();
    });
}

#[test]
fn further_commands_run_beside_a_containers_own() {
    alone_as(User::unknown(), |world| {
        world.idle("one");
        let exec = |words: &[&str]| world.dunnage(["exec", "one"].iter().chain(words).copied());
        let outcome = exec(&["sh", "-c", "echo out; echo err >&2; exit 5"]);
        assert_eq!((outcome.code, outcome.stdout.as_str(), outcome.stderr.as_str()), (5, "out\n", "err\n"));
        assert_eq!(exec(&["no-such-program"]).code, 127);
        // It was born in the container, as the shim's child: its parent there is nobody.
        let inside =
            "grep -E '^(NSpid|PPid):' /proc/self/status | tr '\\t' ' '; readlink /proc/self/ns/pid /proc/1/ns/pid";
        let lines: Vec<String> = exec(&["sh", "-c", inside]).ok().lines().map(ToOwned::to_owned).collect();
        assert!(lines[0].starts_with("PPid: ") && lines[2] == lines[3], "{lines:?}");
        assert_eq!(world.dunnage(["exec", "-u", "1000", "one", "true"]).code, 1, "only root is there");

        // Ends are never lost, however soon they come.
        let mut running: Vec<_> =
            (0..12).map(|number| world.spawn(["exec", "one", "sh", "-c", &format!("exit {}", number + 10)])).collect();
        let codes: Vec<i32> = running.drain(..).map(|exec| exec.wait().code).collect();
        assert_eq!(codes, (10..22).collect::<Vec<i32>>());

        let mut terminal = Terminal::new();
        let shell =
            world.spawn_on(&terminal, ["exec", "-i", "-t", "one", "sh", "-c", "stty size; read line; exit $line"]);
        terminal.expect("40 100");
        terminal.type_in("9\n");
        assert_eq!(shell.wait().code, 9);
    });
}

#[test]
fn containers_outlive_the_supervisor_and_a_shim_takes_its_own_along() {
    alone_as(User::unknown(), |world| {
        world.idle("one");
        world.idle("two");
        let pid = first_process(world, "one");
        world.kill();
        assert!(process::lives(pid));
        // It is root of another user namespace than the one before, and the same user outside.
        world.start();
        assert_eq!(first_process(world, "one"), pid);
        assert_eq!(world.dunnage(["exec", "one", "echo", "still"]).ok(), "still");
        assert_eq!(world.dunnage(["stop", "one"]).ok(), "one");
        assert_eq!(world.dunnage(["wait", "one"]).ok(), "15");

        process::kill_hard(shim_of(world, "two"));
        eventually("the container is ended", || {
            world.dunnage(["ps", "-a"]).stdout.contains("lost: its shim").then_some(())
        });
        assert_eq!(world.dunnage(["rm", "-f", "two"]).ok(), "two");
    });
}

#[test]
fn with_ranges_of_ids_containers_have_many_users() {
    alone_as(User::with_ranges(), |world| {
        assert_eq!(
            world.dunnage(["run", "--rm", "-u", "1000:100", "--", "sh", "-c", "id -u; id -g"]).ok(),
            "1000\n100"
        );
        world.idle("one");
        let script = "touch /tmp/file && chown 7:8 /tmp/file && stat -c %u:%g /tmp/file; wc -l </proc/self/uid_map";
        assert_eq!(world.dunnage(["exec", "one", "sh", "-c", script]).ok(), "7:8\n2");
        let own = world.dunnage(["exec", "-u", "65534:65534", "one", "sh", "-c", "id -u; id -g; echo >&2"]);
        assert_eq!(own.ok(), "65534\n65534");
        // What one of them began ends too, though it is nobody's of the user's outside.
        world.dunnage(["exec", "-d", "-u", "1000", "one", "sleep", "1000"]).ok();
        let run = ["run", "-d", "--name", "two", "-u", "1000", "--", "sleep", "1000"];
        world.dunnage(run).ok();
        world.kill();
        world.start();
        assert_eq!(world.dunnage(["rm", "-f", "one", "two"]).ok(), "one\ntwo");
    });
}

#[test]
fn what_is_missing_is_said_in_one_line() {
    alone_as(User::unknown(), |world| {
        let state = world.path("home/state");
        let mut client = world.client(["run", "--rm", "--", "echo", "done"]);
        client.env_remove("DUNNAGE_ADDRESS").env("DUNNAGE_STATE", &state).env("DUNNAGE_ROOT", world.path("home/root"));
        client.env("DUNNAGE_TEST", &world.name).process_group(0);
        let mut client = client.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start dunnage");
        // The supervisor that it started has neither of its streams.
        let told: Vec<String> =
            BufReader::new(client.stderr.take().expect("stderr")).lines().map_while(Result::ok).collect();
        assert!(client.wait().expect("wait").success(), "{told:?}");
        let [started, missing] = &told[..] else { panic!("{told:?}") };
        let mut words = started.split(' ').skip_while(|word| *word != "process").skip(1);
        let pid: u32 = words.next().and_then(|pid| pid.trim_end_matches(',').parse().ok()).expect("a pid");
        assert!(missing.starts_with("dunnage: as an ordinary user: no user but root in containers"), "{missing}");
        assert!(missing.contains("; no limits, pause or stats"), "{missing}");
        let pidfd = process::Pidfd::open(pid).expect("it runs");
        process::terminate(pid);
        assert!(pidfd.ended_within(dunnage_tests::patience()));
        // And a limit that cannot be had is no container without one.
        let refused = world.dunnage(["run", "--rm", "--memory", "64m", "--", "true"]);
        assert!(refused.code == 125 && refused.stderr.contains("cgroup"), "{}", refused.stderr);
    });
}

/// The folder of a container's cgroup, which is the only one of that name.
fn folder(world: &Alone, id: &str) -> PathBuf {
    let found = cgroup::carrying(&world.name);
    let own = found.iter().find(|dir| dir.file_name().is_some_and(|name| name == id));
    own.unwrap_or_else(|| panic!("no cgroup of {id} in {found:?}")).clone()
}

#[test]
fn a_users_systemd_gives_limits_that_are_felt() {
    let Some(porter) = User::porter() else { return };
    alone_as(porter, |world| {
        let own = fs::read_to_string(format!("/proc/{}/cgroup", world.pid())).expect("read cgroup");
        assert!(own.contains("/user@1000.service/") && own.trim_end().ends_with(".scope/supervisor"), "{own}");
        let limits = ["--memory", "32m", "--pids", "20", "--cpus", "0.5"];
        let run = ["run", "-d", "--name", "one"].iter().chain(&limits).chain(&["--", "sleep", "1000"]);
        world.dunnage(run.copied()).ok();
        let dir = folder(world, "one");
        let file = |name: &str| fs::read_to_string(dir.join(name)).expect(name);
        assert_eq!((file("memory.max").trim(), file("pids.max").trim()), ("33554432", "20"));
        assert_eq!(file("cpu.max").trim(), "50000 100000");
        // It is in it, and sees nothing above it.
        assert_eq!(world.dunnage(["exec", "one", "cat", "/proc/self/cgroup"]).ok(), "0::/");
        let forks = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21; do sleep 100 >/dev/null 2>&1 & done; echo all";
        let forked = world.dunnage(["exec", "one", "sh", "-c", forks]);
        assert!(!forked.stdout.contains("all"), "{}", forked.stdout);
        let used = world.dunnage(["stats", "--no-stream", "--format", "json", "one"]);
        assert!(used.ok().contains("33554432"), "{}", used.stdout);
        world.dunnage(["pause", "one"]).ok();
        assert!(world.dunnage(["ps"]).ok().contains("paused") && file("cgroup.freeze").trim() == "1");
        world.dunnage(["resume", "one"]).ok();
        // One that is killed leaves its place to its containers; the next has one of its own. It can kill what is there by
        // the cgroup, though it is root of another user namespace.
        world.dunnage(["run", "-d", "--name", "two", "-u", "1000", "--", "sleep", "1000"]).ok();
        let shim = shim_of(world, "two");
        world.kill();
        process::kill_hard(shim);
        world.start();
        world.dunnage(["rm", "-f", "two"]).ok();
        world.dunnage(["update", "--memory", "48m", "one"]).ok();
        assert_eq!(file("memory.max").trim(), "50331648");
        world.dunnage(["rm", "-f", "one"]).ok();
        let scope = dir.ancestors().find(|dir| dir.to_string_lossy().ends_with(".scope")).expect("a scope");
        eventually("systemd to forget the scope", || (!scope.exists()).then_some(()));
    });
}

#[test]
fn a_users_containers_can_be_units_of_their_systemd() {
    let Some(porter) = User::porter() else { return };
    alone_as(porter, |world| {
        let config = world.path("dunnaged.toml");
        fs::write(&config, "[runtime]\nsystemd_cgroup = true\n").expect("write the configuration");
        world.stop();
        world.flags(["--config".into(), config.into_os_string()]);
        world.start();
        world.dunnage(["run", "-d", "--name", "one", "--memory", "32m", "--", "sleep", "1000"]).ok();
        let unit = format!("dunnage-{}-one.scope", world.name);
        let [dir] = &cgroup::carrying(&unit)[..] else { panic!("no cgroup of {unit}") };
        assert!(dir.to_string_lossy().contains("/user@1000.service/user.slice/"), "{}", dir.display());
        let limit = || fs::read_to_string(dir.join("memory.max")).expect("memory.max").trim().to_owned();
        assert_eq!(limit(), "33554432");
        assert_eq!(world.dunnage(["exec", "one", "cat", "/proc/self/cgroup"]).ok(), "0::/");
        world.dunnage(["update", "--memory", "48m", "one"]).ok();
        assert_eq!(limit(), "50331648");
        world.dunnage(["pause", "one"]).ok();
        world.dunnage(["resume", "one"]).ok();
        assert_eq!(world.dunnage(["stop", "-t", "0", "one"]).ok(), "one");
        world.dunnage(["rm", "one"]).ok();
        assert!(!dir.exists(), "systemd has been told");
    });
}

#[test]
fn a_users_container_out_of_memory_says_so() {
    let Some(porter) = User::porter() else { return };
    alone_as(porter, |world| {
        let script = "x=0123456789abcdef; while :; do x=$x$x; done";
        let run = ["run", "--name", "greedy", "--memory", "32m", "--", "sh", "-c", script];
        assert_eq!(world.dunnage(run).code, 137);
        let listed = world.dunnage(["ps", "-a"]);
        assert!(listed.ok().contains("out of memory"), "{}", listed.stdout);
        assert!(world.events().iter().any(|event| event.topic == "/tasks/oom"), "{:?}", world.events());
        // Many users too, since there are ranges.
        assert_eq!(world.dunnage(["run", "--rm", "-u", "1000", "--", "id", "-u"]).ok(), "1000");
    });
}

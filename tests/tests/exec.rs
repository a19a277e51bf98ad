//! Processes added to a running container.

use dunnage_tests::case;

#[test]
fn an_exec_sees_the_container_and_only_the_container() {
    case(|c| {
        let pid = c.idle("home", &[]);
        let namespaces = "for n in cgroup ipc mnt net pid uts; do readlink /proc/self/ns/$n; done";
        let inside = c.exec("home", "look", ["sh", "-c", namespaces]).output();
        let outside: Vec<_> = ["cgroup", "ipc", "mnt", "net", "pid", "uts"]
            .iter()
            .map(|kind| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("a namespace"))
            .map(|link| link.display().to_string())
            .collect();
        assert_eq!(inside.ok().lines().collect::<Vec<_>>(), outside);
        let group = c.exec("home", "group", ["cat", "/proc/self/cgroup"]).output();
        let own = c.exec("home", "own", ["cat", "/proc/1/cgroup"]).output();
        assert_eq!(group.ok(), own.ok());
    });
}

#[test]
fn an_exec_runs_in_the_folder_and_as_the_user_it_asks_for() {
    case(|c| {
        c.idle("home", &[]);
        assert_eq!(c.exec("home", "cwd", ["pwd"]).flags(["--cwd", "/home/porter"]).output().ok(), "/home/porter");
        assert_eq!(c.exec("home", "root", ["sh", "-c", "id -u; id -g"]).output().ok(), "0\n0");
        let by_name = c.exec("home", "name", ["sh", "-c", "id -u; id -g"]).flags(["--user", "porter"]).output();
        assert_eq!(by_name.ok(), "1000\n1000");
        let by_number = c.exec("home", "number", ["sh", "-c", "id -u; id -g"]).flags(["--user", "1234:5678"]).output();
        assert_eq!(by_number.ok(), "1234\n5678");
        // A user without rights has none left over from root.
        let caps = ["grep", "-E", "Cap(Prm|Eff):", "/proc/self/status"];
        let rights = c.exec("home", "caps", caps).flags(["--user", "porter"]).output();
        assert_eq!(rights.ok(), "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000");
    });
}

#[test]
fn an_exec_on_a_terminal_has_one() {
    case(|c| {
        c.idle("home", &[]);
        let mut terminal = dunnage_tests::Terminal::new();
        let exec = c.exec("home", "tty", ["sh", "-c", "tty; stty size; read word; exit $word"]).on(&terminal);
        assert!(terminal.expect("\n").contains("/dev/pts/"), "no terminal");
        // The client resizes after the start, so the first answer may be the kernel's default.
        terminal.expect("\n");
        terminal.type_in("7\n");
        assert_eq!(exec.wait().code, 7);
    });
}

#[test]
fn many_execs_at_once_each_get_their_own_output_and_code() {
    case(|c| {
        c.idle("home", &[]);
        let running: Vec<_> = (0..30)
            .map(|number| {
                let script = format!("echo out-{number}; echo err-{number} >&2; exit {number}");
                (number, c.exec("home", &format!("exec-{number}"), ["sh", "-c", &script]).spawn())
            })
            .collect();
        for (number, exec) in running {
            let outcome = exec.wait();
            assert_eq!(outcome.code, number, "{outcome:?}");
            assert_eq!(outcome.stdout, format!("out-{number}\n"));
            // ctr warns there too.
            assert!(outcome.stderr.contains(&format!("err-{number}\n")), "{outcome:?}");
        }
    });
}

#[test]
fn an_exec_whose_program_is_missing_fails_alone_and_says_so() {
    case(|c| {
        c.idle("home", &[]);
        let outcome = c.exec("home", "missing", ["/no/such/program"]).output();
        assert!(outcome.refused().contains("/no/such/program"), "{outcome:?}");
        assert!(outcome.refused().contains("no such file"), "{outcome:?}");
        assert_eq!(c.exec("home", "after", ["echo", "on"]).output().ok(), "on");
        let topics: Vec<_> = c.events().into_iter().filter(|event| event.text("exec_id") == "missing").collect();
        assert!(topics.iter().all(|event| event.topic != "/tasks/exec-started"), "{topics:?}");
    });
}

#[test]
fn an_exec_that_ends_with_its_container_is_reported_first() {
    case(|c| {
        c.idle("home", &[]);
        let long = c.exec("home", "long", ["sh", "-c", "echo here; sleep 1000"]).spawn();
        long.stdout().line("here");
        c.ctr(["task", "kill", "--signal", "SIGKILL", "home"]).ok();
        assert_eq!(c.exit_status("home", "home"), 137);
        assert_eq!(long.wait().code, 137);
        let exits: Vec<_> = c.events().into_iter().filter(|event| event.topic == "/tasks/exit").collect();
        let ids: Vec<_> = exits.iter().map(|event| event.text("id")).collect();
        assert_eq!(ids, ["long", "home"]);
    });
}

#[test]
fn an_exec_id_may_be_used_again_after_its_end_but_not_before() {
    case(|c| {
        c.idle("home", &[]);
        let first = c.exec("home", "twin", ["sh", "-c", "echo here; read line"]).spawn();
        first.stdout().line("here");
        let second = c.exec("home", "twin", ["true"]).output();
        assert!(second.refused().contains("already exists"), "{second:?}");
        c.ctr(["task", "kill", "--signal", "SIGKILL", "--exec-id", "twin", "home"]).ok();
        assert_eq!(first.wait().code, 137);
        c.exec("home", "twin", ["true"]).output().ok();
    });
}

#[test]
fn an_exec_in_a_stopped_container_is_refused() {
    case(|c| {
        c.run("ended", ["true"]).detached().ok();
        c.exit_status("ended", "ended");
        c.exec("ended", "late", ["true"]).output().refused();
    });
}

#[test]
fn an_exec_that_ignores_what_it_is_sent_keeps_no_one_waiting() {
    case(|c| {
        c.idle("home", &[]);
        // Its stdin stays open and full, and it never reads.
        let mut deaf = c.exec("home", "deaf", ["sleep", "1000"]).spawn();
        let stdin = deaf.stdin();
        nix::fcntl::fcntl(&stdin, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).expect("nonblock");
        while nix::unistd::write(&stdin, &[b'x'; 4096]).is_ok() {}
        assert_eq!(c.exec("home", "other", ["echo", "on"]).output().ok(), "on");
        c.event("the start", |event| event.topic == "/tasks/exec-started" && event.text("exec_id") == "deaf");
        c.ctr(["task", "kill", "--signal", "SIGKILL", "--exec-id", "deaf", "home"]).ok();
        assert_eq!(deaf.wait().code, 137);
    });
}

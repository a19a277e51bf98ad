//! `-t`: a container on a terminal.

use std::time::Duration;

use dunnage_tests::{Terminal, case, eventually, process};
use nix::sys::signal::Signal;

#[test]
fn a_container_on_a_terminal_talks_to_its_user() {
    case(|c| {
        let mut terminal = Terminal::new();
        // Not the shell's own prompt, which edits the line and asks the terminal questions.
        let ask = "while printf '# '; read -r line; do eval \"$line\"; done";
        let running = c.run("talk", ["sh", "-c", ask]).on(&terminal);
        terminal.expect("# ");
        terminal.type_in("tty\n");
        let answer = terminal.expect("# ");
        assert!(answer.contains("/dev/pts/0\r\n"), "{answer:?}");
        // Ends of lines are made for a terminal, and what is typed is shown.
        terminal.type_in("echo a$((1+1))b\n");
        assert!(terminal.expect("# ").contains("echo a$((1+1))b\r\na2b\r\n"));
        terminal.type_in("ls -l /dev/console | cut -c1; test -c /dev/console && echo console\n");
        assert!(terminal.expect("# ").contains("c\r\nconsole\r\n"));
        terminal.type_in("exit 5\n");
        assert_eq!(running.wait().code, 5);
    });
}

#[test]
fn the_terminal_has_the_size_of_the_users_window_and_follows_it() {
    case(|c| {
        let mut terminal = Terminal::new();
        let watch = "while :; do size=$(stty size); [ \"$size\" = \"$last\" ] || echo \"new:$size\"; last=$size; usleep 1000; done";
        let running = c.run("sized", ["sh", "-c", watch]).on(&terminal);
        terminal.expect("new:40 100\r\n");
        terminal.resize(50, 132);
        eventually("the new size", || {
            // The client may not listen yet, so it is told until it does.
            process::signal(running.pid(), Signal::SIGWINCH);
            terminal.shows("new:50 132\r\n", Duration::from_millis(50)).then_some(())
        });
        eventually("the new size", || {
            // The client may still be at the last signal, and do the same with the old size.
            c.shim("sized").resize("sized", "", 24, 80).expect("resize");
            terminal.shows("new:24 80\r\n", Duration::from_millis(50)).then_some(())
        });
        c.ctr(["task", "kill", "--signal", "SIGKILL", "sized"]).ok();
        assert_eq!(running.wait().code, 137);
    });
}

#[test]
fn the_keys_for_interrupt_and_end_of_file_work() {
    case(|c| {
        let mut terminal = Terminal::new();
        let running = c.run("keys", ["sh", "-c", "trap 'echo stopped' INT; cat; echo up; cat; exit 4"]).on(&terminal);
        // `cat` ends by the interrupt, the shell has a handler.
        terminal.type_in("x\n");
        terminal.expect("x\r\nx\r\n");
        terminal.type_in("\x03");
        terminal.expect("stopped\r\nup\r\n");
        terminal.type_in("\x04");
        assert_eq!(running.wait().code, 4);
    });
}

#[test]
fn a_terminal_loses_nothing_of_a_long_output() {
    case(|c| {
        let mut terminal = Terminal::new();
        // It stays until all is read: at a container's end ctr cancels its copies, with runc's shim too.
        let running = c.run("long", ["sh", "-c", "stty -echo; seq 1 20000; echo end; read word"]).on(&terminal);
        let text = terminal.expect("end\r\n");
        let expected: String = (1..=20000).map(|number| format!("{number}\r\n")).collect();
        assert!(text == expected + "end\r\n", "{} bytes", text.len());
        terminal.type_in("\n");
        running.wait().ok();
    });
}

#[test]
fn the_shim_holds_one_terminal_a_container_and_none_after() {
    case(|c| {
        c.idle("plain", &["--annotation", "io.containerd.runc.v2.group=pair"]);
        c.may_leave_socket("pair");
        let shim = c.shim("plain").identify("plain").expect("connect").shim_pid;
        let terminals = || process::descriptors(shim).iter().filter(|(_, target)| target.ends_with("/ptmx")).count();
        eventually("no terminal", || (terminals() == 0).then_some(()));
        let mut terminal = Terminal::new();
        let exec = c.exec("plain", "tty", ["sh", "-c", "echo up; read word"]).on(&terminal);
        terminal.expect("up\r\n");
        eventually("one terminal", || (terminals() == 1).then_some(()));
        terminal.type_in("\n");
        exec.wait().ok();
        eventually("the terminal to be closed", || (terminals() == 0).then_some(()));
    });
}

//! What goes into a container and comes out of it, to the byte.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write, pipe},
    os::fd::AsFd,
    time::Instant,
};

use dunnage_tests::{case, eventually, patience, process, readable};

#[test]
fn stdout_and_stderr_are_told_apart() {
    case(|c| {
        let outcome = c.run("both", ["sh", "-c", "echo out; echo err >&2; exit 3"]).output();
        assert_eq!((outcome.code, outcome.stdout.as_str()), (3, "out\n"));
        assert!(outcome.stderr.contains("err\n") && !outcome.stderr.contains("out"), "{outcome:?}");
    });
}

#[test]
fn stdin_is_read_to_its_end_by_a_container_and_by_an_exec() {
    case(|c| {
        let text: String = (0..100_000).map(|number| format!("line {number}\n")).collect();
        // It stays until all has been seen: containerd 1.6.20's ctr, when it hears of the end, drops what it has not read yet
        // (with runc's shim more often; as in docker/cli#4338).
        let read = ["sh", "-c", "echo up; cat; echo end; exec sleep 1000"];
        c.idle("host", &[]);
        let container = (c.run("reader", read).spawn(), vec!["reader"]);
        let exec = (c.exec("host", "reader", read).spawn(), vec!["--exec-id", "reader", "host"]);
        for (mut reader, which) in [container, exec] {
            reader.stdout().line("up");
            let mut stdin = reader.stdin();
            stdin.write_all(text.as_bytes()).expect("write to the container");
            drop(stdin);
            reader.stdout().line("end");
            c.ctr([vec!["task", "kill", "--signal", "SIGKILL"], which].concat()).ok();
            let outcome = reader.wait();
            assert_eq!(outcome.code, 137, "{}", outcome.stderr);
            let expected = format!("up\n{text}end\n");
            let same = outcome.stdout.bytes().zip(expected.bytes()).take_while(|(got, sent)| got == sent).count();
            let rest = &outcome.stdout[same..];
            assert!(rest.is_empty() && same == expected.len(), "after {same} bytes: {} more, {rest:.40}", rest.len());
        }
    });
}

#[test]
fn a_gibibyte_comes_out_byte_for_byte() {
    // 64 MiB in which every 8 bytes are their own place, so that no loss, swap or repeat looks right.
    const BLOCK: usize = 64 << 20;
    const BLOCKS: usize = 16;
    case(|c| {
        let block: Vec<u8> = (0..BLOCK as u64 / 8).flat_map(|at| (at ^ 0x5bd1_e995_9bd1_e995).to_le_bytes()).collect();
        let file = c.file("block", &block);
        let mount = format!("type=bind,src={},dst=/mnt,options=bind:ro", file.parent().expect("a folder").display());
        // It stays until all has been seen, as above.
        let write = format!("for i in $(seq {BLOCKS}); do cat /mnt/block; done; exec sleep 1000");
        let (mut reader, writer) = pipe().expect("a pipe");
        let running = c.run("spring", ["sh", "-c", &write]).flags(["--mount", &mount]).spawn_to(writer);
        let mut buffer = vec![0; 1 << 20];
        let mut at = 0;
        loop {
            assert!(readable(reader.as_fd(), Instant::now() + patience()), "no more output after {at} bytes");
            let count = reader.read(&mut buffer).expect("read the output");
            if count == 0 {
                break;
            }
            let mut left = &buffer[..count];
            while !left.is_empty() {
                let expected = &block[at % BLOCK..];
                let part = left.len().min(expected.len());
                assert!(left[..part] == expected[..part], "wrong between byte {at} and {}", at + part);
                at += part;
                left = &left[part..];
            }
            if at == BLOCK * BLOCKS {
                c.ctr(["task", "kill", "--signal", "SIGKILL", "spring"]).ok();
            }
        }
        assert_eq!(at, BLOCK * BLOCKS);
        assert_eq!(running.wait().code, 137);
    });
}

#[test]
fn output_goes_on_where_the_last_reader_stopped() {
    case(|c| {
        c.run("counter", ["sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; done"]).detached().ok();
        let fifo = c.shim("counter").state("counter", "").expect("state").stdout;
        let mut last = None;
        for _ in 0..3 {
            // Byte by byte, so that this reader takes nothing with it that it did not look at.
            let mut reader = BufReader::with_capacity(1, File::open(&fifo).expect("open the fifo"));
            let mut line = String::new();
            if last.is_none() {
                // The client that started the container read until it ended, perhaps in the middle of a line.
                reader.read_line(&mut line).expect("read the output");
            }
            for _ in 0..1000 {
                line.clear();
                reader.read_line(&mut line).expect("read the output");
                let number: u64 = line.trim_end().parse().expect("a number");
                assert!(last.is_none_or(|last| number == last + 1), "{number} after {last:?}");
                last = Some(number);
            }
        }
    });
}

#[test]
fn a_writer_is_not_hurt_when_its_reader_dies() {
    case(|c| {
        let write = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo $i; done; echo done > /tmp/done; sleep 1000";
        let reader = c.run("writer", ["sh", "-c", write]).spawn();
        reader.stdout().line("1");
        reader.kill();
        eventually("the writer to be done", || {
            (c.exec("writer", &unique(), ["test", "-e", "/tmp/done"]).output().code == 0).then_some(())
        });
        assert_eq!(c.task("writer").expect("the task").1, "RUNNING");
    });
}

fn unique() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("look-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

#[test]
fn a_client_attaches_to_a_running_container_and_talks_to_it() {
    case(|c| {
        let answer = "while read line; do echo got $line; done; echo end; exit 6";
        c.run("host", ["sh", "-c", answer]).detached().ok();
        let mut attached = c.attach("host");
        let mut stdin = attached.stdin();
        stdin.write_all(b"first\n").expect("write");
        attached.stdout().line("got first");
        attached.kill();
        // The end of one client is not the end of input.
        drop(stdin);
        let mut again = c.attach("host");
        let mut stdin = again.stdin();
        stdin.write_all(b"second\n").expect("write");
        again.stdout().line("got second");
        drop(stdin);
        c.shim("host").close_stdin("host", "").expect("close stdin");
        again.stdout().line("end");
        assert_eq!(again.wait().code, 6);
        assert_eq!(c.exit_status("host", "host"), 6);
    });
}

#[test]
fn without_stdio_a_container_has_dev_null() {
    case(|c| {
        c.run("quiet", ["sh", "-c", "cat; sleep 1000"]).flags(["--null-io"]).detached().ok();
        let pid = c.pid("quiet");
        let all: Vec<_> =
            (0..3).map(|fd| std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).expect("a descriptor")).collect();
        assert!(all.iter().all(|target| target.ends_with("dev/null")), "{all:?}");
    });
}

#[test]
fn output_can_go_to_a_file() {
    case(|c| {
        let log = c.path("logs/of/the/container.log");
        let uri = format!("file://{}", log.display());
        c.run("filed", ["sh", "-c", "echo out; echo err >&2"]).flags(["--log-uri", &uri]).detached().ok();
        c.exit_status("filed", "filed");
        c.ctr(["task", "rm", "filed"]).ok();
        let text = std::fs::read_to_string(log).expect("read the log");
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["err", "out"]);
    });
}

#[test]
fn output_can_go_to_a_logger_process() {
    case(|c| {
        let out = c.path("logged");
        // What is asked to end when the container is deleted may still have to write.
        // It has no PATH: its environment is the container's id and namespace, and nothing else.
        let lines = format!(
            "trap '' TERM\necho \"$1 $2 $CONTAINER_ID $CONTAINER_NAMESPACE\" > {0}.args\n\
             exec 5>&-\n/bin/busybox cat <&4 > {0}.err &\n/bin/busybox cat <&3 > {0}.out\nwait\necho > {0}.end",
            out.display()
        );
        let logger = c.script("logger", &lines);
        let uri = format!("binary://{}?key=value", logger.display());
        c.run("logged", ["sh", "-c", "echo out; echo err >&2"]).flags(["--log-uri", &uri]).detached().ok();
        c.exit_status("logged", "logged");
        c.ctr(["task", "rm", "logged"]).ok();
        let read = |end: &str| std::fs::read_to_string(out.with_extension(end)).unwrap_or_default();
        assert_eq!(read("args"), format!("key value logged {}\n", c.name));
        assert_eq!((read("out").as_str(), read("err").as_str()), ("out\n", "err\n"));
    });
}

#[test]
fn no_descriptor_strays_into_the_container() {
    case(|c| {
        let list = ["sh", "-c", "for f in /proc/$$/fd/*; do echo ${f##*/}; done"];
        // The shell opens the folder to list it, which takes the lowest free number.
        let expected = "0\n1\n2\n3";
        assert_eq!(c.run("clean", list).output().ok(), expected);
        c.idle("host", &[]);
        assert_eq!(c.exec("host", "clean", list).output().ok(), expected);
        let pid = c.pid("host");
        let all = process::descriptors(pid);
        let numbers: Vec<_> = all.iter().map(|(number, _)| *number).filter(|&number| number < 10).collect();
        assert_eq!(numbers, [0, 1, 2], "{all:?}");
    });
}

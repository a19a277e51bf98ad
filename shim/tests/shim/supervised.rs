//! What a supervisor asks of a shim: output kept in a log, clients attached to it, events that outlive the shim, time lines.

use std::{
    collections::HashMap,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::Signal,
};
use runtime_v2_api::{
    shim::{Span, TraceRequest},
    shim_ttrpc::ShimClient,
    task::{CloseIORequest, ResizePtyRequest},
    unheard,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use super::*;

const STDIN: u8 = 1;
const STDIN_END: u8 = 2;
const STDOUT: u8 = 3;
const STDERR: u8 = 4;
const END: u8 = 5;
const CUT_OFF: u8 = 6;

/// Wants the output; waits for everything.
const OUTPUT: u8 = 1;
const EVERYTHING: u8 = 1 | 4;

/// A client that is attached.
struct Attached(UnixStream);

impl Attached {
    async fn connect(path: &Path) -> Self {
        Self(UnixStream::connect(path).await.unwrap())
    }

    async fn hello(path: &Path, flags: u8) -> Self {
        let mut client = Self::connect(path).await;
        client.say(0, &[flags]).await;
        client
    }

    async fn say(&mut self, kind: u8, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_le_bytes();
        self.0.write_all(&[&[kind][..], &length, payload].concat()).await.unwrap();
    }

    async fn frame(&mut self) -> (u8, Vec<u8>) {
        let mut header = [0; 5];
        self.0.read_exact(&mut header).await.unwrap();
        let [kind, length @ ..] = header;
        let mut payload = vec![0; u32::from_le_bytes(length) as usize];
        assert!(payload.len() <= 65536);
        self.0.read_exact(&mut payload).await.unwrap();
        (kind, payload)
    }

    /// Reads until stdout has said `text`; all of it since the last call.
    async fn until(&mut self, text: &str) -> String {
        let mut all = String::new();
        while !all.contains(text) {
            let (kind, payload) = self.frame().await;
            assert_eq!(kind, STDOUT, "{all}");
            all.push_str(std::str::from_utf8(&payload).unwrap());
        }
        all
    }

    /// Reads to the end, whichever that is: stdout, stderr, the last frame.
    async fn rest(&mut self) -> (Vec<u8>, Vec<u8>, (u8, String)) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        loop {
            match self.frame().await {
                (STDOUT, bytes) => out.extend(bytes),
                (STDERR, bytes) => err.extend(bytes),
                (kind, text) => return (out, err, (kind, String::from_utf8(text).unwrap())),
            }
        }
    }

    async fn refused(&mut self) -> String {
        let (_, _, (kind, text)) = self.rest().await;
        assert_eq!(kind, CUT_OFF);
        assert_eq!(self.0.read(&mut [0]).await.unwrap_or(0), 0, "the connection is closed");
        text
    }
}

impl Shim {
    async fn supervised() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::start_in(folder, |command, folder| {
            command.env(unheard::VARIABLE, folder.join("unheard"));
        })
        .await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where its unheard events are.
    fn unheard(&self) -> PathBuf {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        let start = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap();
        self.path("unheard").join(unheard::source(self.process.id(), start))
    }

    /// A bundle whose output is kept in `log`, with clients attaching at `attach`.
    fn kept(&self, script: &str, more: &str) -> CreateTaskRequest {
        let folder = self.folder.path().display();
        let stdout = format!("log://{folder}/log?attach={folder}/attach&{more}");
        CreateTaskRequest { stdout, ..self.bundle("c", script) }
    }

    /// Runs a container with a client that is attached from the first byte on.
    async fn run_attached(&self, request: &CreateTaskRequest, flags: u8) -> Attached {
        self.task.create(context(), request).await.unwrap();
        let client = Attached::hello(&self.path("attach"), flags).await;
        self.start_created(request).await;
        client
    }

    async fn start_created(&self, request: &CreateTaskRequest) {
        let start = StartRequest { id: request.id.clone(), ..Default::default() };
        self.task.start(context(), &start).await.unwrap();
    }

    async fn end(self, id: &str, status: u32) {
        assert_eq!(self.wait(id, "").await, status);
        assert_eq!(self.delete(id, "").await, status);
        assert!(!self.path("attach").exists(), "the attach socket goes with the container");
        self.leave().await;
    }

    /// Numbers of one moment.
    fn status<const N: usize>(&self, names: [&str; N]) -> [u64; N] {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        names.map(|name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":")).unwrap();
            line.trim().trim_end_matches(" kB").parse().unwrap()
        })
    }
}

/// The stream, tag and text of each record.
fn records(log: &Path) -> Vec<(String, String, String)> {
    let text = fs::read(log).unwrap();
    assert!(text.is_empty() || text.ends_with(b"\n"));
    let lines = text.strip_suffix(b"\n").map(|text| text.split(|byte| *byte == b'\n'));
    let record = |line: &[u8]| {
        let line = String::from_utf8_lossy(line).into_owned();
        let [time, stream, tag, text] = line.splitn(4, ' ').collect::<Vec<_>>().try_into().expect("a record");
        assert!(time.len() == 30 && time.starts_with("20") && time.ends_with('Z'), "{time}");
        (stream.to_owned(), tag.to_owned(), text.to_owned())
    };
    lines.into_iter().flatten().map(record).collect()
}

/// What the process wrote to one stream, as a log has it.
fn logged(logs: &[PathBuf], stream: &str) -> Vec<u8> {
    let mut all = Vec::new();
    for (_, tag, text) in logs.iter().flat_map(|log| records(log)).filter(|(of, ..)| of == stream) {
        all.extend(text.as_bytes());
        all.extend((tag == "F").then_some(b'\n'));
    }
    all
}

/// A file system that is gone with this.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(path: &Path, options: &str) -> Self {
        mount(Some("none"), path, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
        Self(path.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Whatever became of the test, its folder must be free to go.
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let looks = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, looks).await.unwrap_or_else(|_| panic!("gave up waiting for {what}"));
}

#[test]
fn output_is_kept_and_sent_to_those_attached_who_bring_input() {
    test(|| async {
        let shim = Shim::supervised().await;
        let script = "echo out; echo err >&2; printf 'name? '; read name; echo hello $name; /bin/busybox cat; exit 3";
        let request = CreateTaskRequest { stdin: "attach:".into(), ..shim.kept(script, "size=100000&files=3") };
        shim.task.create(context(), &request).await.unwrap();
        let mode = |name: &str| fs::metadata(shim.path(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("attach"), mode("log")), (0o600, 0o600));
        let mut client = Attached::hello(&shim.path("attach"), EVERYTHING | 2).await;
        let mut other = Attached::hello(&shim.path("attach"), OUTPUT).await;
        shim.start_created(&request).await;

        // The prompt is there, in the log too, before the answer.
        let mut seen = HashMap::<u8, Vec<u8>>::new();
        while seen.values().map(Vec::len).sum::<usize>() < b"out\nname? err\n".len() {
            let (kind, bytes) = client.frame().await;
            seen.entry(kind).or_default().extend(bytes);
        }
        assert_eq!(seen, HashMap::from([(STDOUT, b"out\nname? ".to_vec()), (STDERR, b"err\n".to_vec())]));
        let prompt = records(&shim.path("log"));
        assert!(prompt.contains(&("stdout".into(), "P".into(), "name? ".into())), "{prompt:?}");

        client.say(STDIN, b"you\n").await;
        assert!(client.until("hello you\n").await.starts_with("hello you\n"));
        // Half of the input by one, the rest by another; and who only detaches ends nothing.
        other.say(STDIN, b"from the other\n").await;
        client.until("from the other\n").await;
        drop(other);
        client.say(STDIN, b"last words").await;
        client.say(STDIN_END, b"").await;
        let (out, err, last) = client.rest().await;
        assert_eq!((out, err, last), (b"last words".to_vec(), vec![], (END, String::new())));

        assert_eq!(shim.wait(&request.id, "").await, 3);
        let mut late = Attached::hello(&shim.path("attach"), OUTPUT).await;
        assert_eq!(late.frame().await, (END, vec![]));
        let out = logged(&[shim.path("log")], "stdout");
        assert_eq!(String::from_utf8(out).unwrap(), "out\nname? hello you\nfrom the other\nlast words");
        assert_eq!(logged(&[shim.path("log")], "stderr"), b"err\n");
        assert_eq!(shim.status(["Threads"]), [1]);
        shim.end(&request.id, 3).await;
    });
}

#[test]
fn stdin_can_be_closed_by_close_io_and_be_none_at_all() {
    test(|| async {
        let shim = Shim::supervised().await;
        let request = CreateTaskRequest { stdin: "attach:".into(), ..shim.kept("/bin/busybox cat; echo end", "") };
        shim.run(&request).await;
        let mut client = Attached::hello(&shim.path("attach"), EVERYTHING).await;
        client.say(STDIN, b"text ").await;
        client.until("text ").await;
        shim.task
            .close_io(context(), &CloseIORequest { id: request.id.clone(), stdin: true, ..Default::default() })
            .await
            .unwrap();
        client.until("end\n").await;
        // Nobody reads it any more; nobody minds.
        drop(client.0.write_all(&[STDIN, 1, 0, 0, 0, b'x']).await);
        assert_eq!(client.frame().await, (END, vec![]));
        shim.end(&request.id, 0).await;

        let shim = Shim::supervised().await;
        let request = shim.kept("/bin/busybox cat; read word; echo end $?", "");
        shim.task.create(context(), &request).await.unwrap();
        let mut client = Attached::hello(&shim.path("attach"), EVERYTHING | 2).await;
        client.say(STDIN, b"dropped").await;
        shim.start_created(&request).await;
        assert_eq!(client.rest().await, (b"end 1\n".to_vec(), vec![], (END, String::new())));
        shim.end(&request.id, 0).await;

        let shim = Shim::supervised().await;
        let request = CreateTaskRequest { stdin: "attach:".into(), ..shim.bundle("c", "") };
        let (code, text) = status(shim.task.create(context(), &request).await);
        assert!(code == Code::UNKNOWN && text.contains("nowhere to attach to"), "{text}");
        shim.leave().await;
    });
}

#[test]
fn a_terminal_can_be_attached_to() {
    test(|| async {
        let shim = Shim::supervised().await;
        let script = "while read line; do eval \"$line\"; done; echo end; exit 4";
        let request = CreateTaskRequest { stdin: "attach:".into(), terminal: true, ..shim.kept(script, "") };
        shim.task.create(context(), &request).await.unwrap();
        let mut client = Attached::hello(&shim.path("attach"), EVERYTHING | 2).await;
        let size = ResizePtyRequest { id: request.id.clone(), width: 99, height: 33, ..Default::default() };
        shim.task.resize_pty(context(), &size).await.unwrap();
        shim.start_created(&request).await;
        client.say(STDIN, b"/bin/busybox stty size\n").await;
        client.until("33 99\r\n").await;
        drop(client);
        let mut again = Attached::hello(&shim.path("attach"), EVERYTHING | 2).await;
        again.say(STDIN, b"echo a$((1+1))b >&2\n").await;
        again.until("a2b\r\n").await;
        again.say(STDIN_END, b"").await;
        let (out, err, last) = again.rest().await;
        assert!(out.ends_with(b"end\r\n") && err.is_empty(), "{}", String::from_utf8_lossy(&out));
        assert_eq!(last.0, END);
        let log = String::from_utf8(logged(&[shim.path("log")], "stdout")).unwrap();
        assert!(log.contains("33 99\r\n") && log.contains("a2b\r\n") && log.ends_with("end\r\n"), "{log}");
        shim.end(&request.id, 4).await;
    });
}

/// Lines of seven bytes, all different, and what writes them.
fn numbered(lines: usize) -> Vec<u8> {
    (0..lines).flat_map(|line| format!("{line:06}\n").into_bytes()).collect()
}

const COUNT: &str = "/bin/busybox seq -w 0";

#[test]
fn a_container_waits_for_one_who_wants_everything() {
    test(|| async {
        const LINES: usize = 500_000;
        let shim = Shim::supervised().await;
        let request = shim.kept(&format!("{COUNT} {}", LINES - 1), "size=1000000&files=100");
        let mut slow = shim.run_attached(&request, EVERYTHING).await;
        let logs = || -> Vec<PathBuf> {
            let aside = (1..100).rev().map(|number| shim.path(&format!("log.{number}")));
            aside.filter(|path| path.exists()).chain([shim.path("log")]).collect()
        };
        // One that is set aside at this moment is under neither name.
        let size = || logs().iter().filter_map(|log| Some(fs::metadata(log).ok()?.len())).sum::<u64>();
        // What the pipe, the shim and the socket hold; then it stands still.
        let (mut last, mut still) = (0, 0);
        eventually("the container to wait", || {
            still = if size() == last && last > 0 { still + 1 } else { 0 };
            last = size();
            still == 20
        })
        .await;
        assert!(size() < 6 << 20, "{} of 25 MB were written", size());
        assert_eq!(shim.state(&request.id, "").await.unwrap(), types::Status::RUNNING);

        let (out, err, last) = slow.rest().await;
        assert_eq!((err.len(), last), (0, (END, String::new())));
        assert!(out == numbered(LINES), "{} bytes", out.len());
        assert!(logged(&logs(), "stdout") == out, "every record is in one of {} files", logs().len());
        assert!(logs().len() > 5);
        shim.end(&request.id, 0).await;
    });
}

#[test]
fn who_is_too_far_behind_is_cut_off_and_the_others_get_everything() {
    test(|| async {
        const LINES: usize = 999_999;
        let shim = Shim::supervised().await;
        let request = shim.kept(&format!("{COUNT} {}", LINES - 1), "size=1000000&files=2");
        shim.task.create(context(), &request).await.unwrap();
        let mut lazy = Vec::new();
        for _ in 0..10 {
            lazy.push(Attached::hello(&shim.path("attach"), OUTPUT).await);
        }
        let mut good = Attached::hello(&shim.path("attach"), EVERYTHING).await;
        shim.start_created(&request).await;
        let (out, _, last) = good.rest().await;
        assert_eq!(last, (END, String::new()));
        let expected = numbered(LINES);
        assert!(out == expected, "{} bytes", out.len());
        for mut client in lazy {
            let (out, _, (kind, why)) = client.rest().await;
            assert_eq!(
                (kind, &*why),
                (CUT_OFF, "more than 1 MiB of output behind; what is missing here is in the log")
            );
            assert!(expected.starts_with(&out), "whole frames up to there: {} bytes", out.len());
        }
        // They shared what they were behind by. The rest of this is the binary itself, not stripped here; in an initramfs it
        // counts as shared memory.
        let [peak, file, shared] = shim.status(["VmHWM", "RssFile", "RssShmem"]);
        let peak = peak - file - shared;
        assert!(peak < 8 << 10, "{peak} KiB");
        shim.end(&request.id, 0).await;
    });
}

#[test]
fn clients_that_make_no_sense_harm_nobody() {
    test(|| async {
        let shim = Shim::supervised().await;
        let request = CreateTaskRequest { stdin: "attach:".into(), ..shim.kept("/bin/busybox cat", "") };
        shim.run(&request).await;
        let path = shim.path("attach");
        let mut good = Attached::hello(&path, EVERYTHING).await;

        let silent = Attached::connect(&path).await;
        let mut garbage = Attached::connect(&path).await;
        garbage.0.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert_eq!(garbage.refused().await, "frame of the unknown kind 71");
        for (kind, payload, why) in [
            (STDIN, &b"x"[..], "the first frame must be a Hello, and no other"),
            (0, b"", "a Hello has one byte of flags, not 0"),
            (0, b"\x09", "Hello with the unknown flags 0x09"),
            (END, b"", "frame of the unknown kind 5"),
        ] {
            let mut client = Attached::connect(&path).await;
            client.say(kind, payload).await;
            assert_eq!(client.refused().await, why);
        }
        let mut twice = Attached::hello(&path, OUTPUT).await;
        twice.say(0, &[OUTPUT]).await;
        assert_eq!(twice.refused().await, "the first frame must be a Hello, and no other");
        let mut huge = Attached::hello(&path, OUTPUT).await;
        huge.0.write_all(&[STDIN, 255, 255, 255, 255]).await.unwrap();
        assert_eq!(huge.refused().await, "frame of 4294967295 bytes; 65536 is the most");
        let mut half = Attached::hello(&path, 0).await;
        half.0.write_all(&[STDIN, 10, 0, 0, 0, b'h', b'a', b'l', b'f', b'\n']).await.unwrap();
        drop(half);
        // What a client said before it vanished was said.
        assert_eq!(good.until("half\n").await, "half\n");

        good.say(STDIN, &vec![b'z'; 65536]).await;
        let mut count = 0;
        while count < 65536 {
            count += good.frame().await.1.len();
        }
        drop(silent);
        good.say(STDIN_END, b"").await;
        assert_eq!(good.frame().await, (END, vec![]));
        shim.end(&request.id, 0).await;
    });
}

#[test]
fn no_more_clients_are_taken_than_there_is_room_for() {
    test(|| async {
        let shim = Shim::supervised().await;
        let request = CreateTaskRequest { stdin: "attach:".into(), ..shim.kept("exec /bin/busybox cat", "") };
        shim.run(&request).await;
        let path = shim.path("attach");
        let mut clients = Vec::new();
        for _ in 0..64 {
            clients.push(Attached::hello(&path, OUTPUT).await);
        }
        let mut one_more = Attached::connect(&path).await;
        assert_eq!(one_more.refused().await, "64 clients are attached, and that is the most");
        // A place that was left is free, once the shim has seen that.
        clients.pop();
        loop {
            let mut client = Attached::connect(&path).await;
            // Who is sent away may be so before it has said anything.
            let hello = [&[0, 1, 0, 0, 0, OUTPUT | 2][..], &[STDIN, 3, 0, 0, 0], b"in\n"].concat();
            drop(client.0.write_all(&hello).await);
            match client.frame().await {
                (STDOUT, said) if said == b"in\n" => break clients.push(client),
                (CUT_OFF, _) => {}
                said => panic!("{said:?}"),
            }
        }
        shim.kill(&request.id).await;
        for mut client in clients {
            assert_eq!(client.rest().await.2, (END, String::new()));
        }
        shim.end(&request.id, 137).await;
    });
}

/// Not a test: what `others_are_not_let_in` runs as somebody else.
#[test]
fn knock_as_somebody_else() {
    if let Some(path) = std::env::var_os("KNOCK_AT") {
        let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
        drop(std::io::Write::write_all(&mut stream, &[0, 1, 0, 0, 0, OUTPUT]));
        assert_eq!(std::io::Read::read(&mut stream, &mut [0]).unwrap_or(0), 0);
    }
}

#[test]
fn others_are_not_let_in() {
    test(|| async {
        let shim = Shim::supervised().await;
        let request = shim.kept("echo secret; /bin/busybox sleep 1000", "");
        shim.run(&request).await;
        // The mode of the socket is one lock; this is about the other.
        fs::set_permissions(shim.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(shim.path("attach"), fs::Permissions::from_mode(0o666)).unwrap();
        let knocker = shim.path("knocker");
        // By another process: nothing that we start meanwhile holds it open for writing, or it could not be executed.
        let copy = Command::new("cp").arg(std::env::current_exe().unwrap()).arg(&knocker).status().unwrap();
        assert!(copy.success());
        let mut knock = Command::new(&knocker);
        knock.args(["--exact", "supervised::knock_as_somebody_else"]).env("KNOCK_AT", shim.path("attach"));
        let output = knock.uid(65534).gid(65534).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        shim.kill(&request.id).await;
        shim.end(&request.id, 137).await;
    });
}

#[test]
fn a_full_disk_stops_neither_the_container_nor_those_attached() {
    test(|| async {
        let shim = Shim::supervised().await;
        let small = shim.path("small");
        fs::create_dir(&small).unwrap();
        let mounted = Mounted::tmpfs(&small, "size=256k");
        let folder = shim.folder.path().display();
        let script = format!("{COUNT} 099999; read line; echo $line");
        let request = CreateTaskRequest {
            stdout: format!("log://{folder}/small/log?attach={folder}/attach"),
            stdin: "attach:".into(),
            ..shim.bundle("c", &script)
        };
        fs::write(small.join("filler"), vec![0; 100_000]).unwrap();
        let mut client = shim.run_attached(&request, EVERYTHING).await;
        let all = client.until("099999\n").await;
        assert!(all.as_bytes() == numbered(100_000), "{} bytes", all.len());
        let kept = logged(&[small.join("log")], "stdout");
        assert!(all.as_bytes().starts_with(&kept) && kept.len() < all.len());

        fs::remove_file(small.join("filler")).unwrap();
        client.say(STDIN, b"again\n").await;
        assert_eq!(client.rest().await.0, b"again\n");
        let records = records(&small.join("log"));
        let [.., (stream, _, notice), last] = records.as_slice() else { panic!("{records:?}") };
        let lost = notice.strip_prefix("dunnage: ").unwrap().split(' ').next().unwrap();
        assert_eq!((&**stream, lost.parse().unwrap()), ("stderr", all.len() - kept.len()));
        assert_eq!(last.2, "again");
        drop(mounted); // or the folder, which goes with the shim, could not be removed
        shim.end(&request.id, 0).await;
    });
}

#[test]
fn events_that_nobody_took_outlive_a_shim_that_is_killed() {
    test(|| async {
        let mut shim = Shim::supervised().await;
        let request = shim.bundle("c", "exit 3");
        let file = shim.unheard();
        shim.run(&request).await;
        shim.wait(&request.id, "").await;
        for number in 1..=3 {
            let (metadata, _) = shim.heard.recv().await.unwrap();
            assert_eq!(metadata[unheard::SOURCE], [file.file_name().unwrap().to_str().unwrap()]);
            assert_eq!(metadata[unheard::NUMBER], [number.to_string()]);
        }
        eventually("the file to be empty", || fs::metadata(&file).unwrap().len() == 0).await;
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

        // Nobody takes any from now on.
        shim.containerd.shutdown().await.unwrap();
        fs::remove_file(shim.path("containerd.sock")).unwrap();
        shim.delete(&request.id, "").await;
        let pid = nix::unistd::Pid::from_raw(shim.process.id().cast_signed());
        nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
        shim.process.wait().unwrap();
        let bytes = fs::read(&file).unwrap();
        let (records, rest) = unheard::read(&bytes);
        assert_eq!((records.len(), records[0].number, rest), (1, 4, 0));
        let event = ForwardRequest::parse_from_bytes(records[0].request).unwrap().envelope.unwrap();
        assert_eq!((&*event.namespace, &*event.topic), ("tests", topic::TASK_DELETE));
    });
}

#[test]
fn execs_that_are_left_to_themselves_keep_no_descriptor_and_are_forgotten_in_time() {
    test(|| async {
        let shim = Shim::supervised().await;
        let request = shim.bundle("c", "while :; do /bin/busybox sleep 1; done");
        let id = request.id.clone();
        shim.run(&request).await;
        let descriptors = || fs::read_dir(format!("/proc/{}/fd", shim.process.id())).unwrap().count();
        let mut before = 0;
        for number in 0..260 {
            let exec = number.to_string();
            shim.task.exec(context(), &exec_request(&id, &exec, "exit 7")).await.unwrap();
            let start = StartRequest { id: id.clone(), exec_id: exec.clone(), ..Default::default() };
            shim.task.start(context(), &start).await.unwrap();
            assert_eq!(shim.wait(&id, &exec).await, 7);
            if number == 3 {
                before = descriptors();
            }
        }
        // The connection for events comes and goes beside.
        eventually("the descriptors of execs to be closed", || descriptors() <= before).await;
        assert_eq!(status(shim.state(&id, "3").await).0, Code::NOT_FOUND);
        assert_eq!(shim.delete(&id, "4").await, 7, "the latest can still be asked for");
        assert_eq!(shim.delete(&id, "259").await, 7);
        shim.kill(&id).await;
        assert_eq!(shim.wait(&id, "").await, 137);
        assert_eq!(shim.delete(&id, "").await, 137);
        shim.leave().await;
    });
}

#[test]
fn a_shim_that_leaves_takes_its_file_of_events_along() {
    test(|| async {
        let shim = Shim::supervised().await;
        let request = shim.bundle("c", "exit 0");
        shim.run(&request).await;
        shim.wait(&request.id, "").await;
        shim.delete(&request.id, "").await;
        let file = shim.unheard();
        assert!(file.exists());
        let folder = tempfile::tempdir().unwrap();
        let kept = folder.path().join("kept");
        fs::hard_link(&file, &kept).or_else(|_| fs::copy(&file, &kept).map(drop)).unwrap();
        shim.leave().await;
        assert!(!file.exists());
    });
}

#[test]
fn a_start_can_be_looked_at_afterwards() {
    test(|| async {
        let shim = Shim::supervised().await;
        let request = shim.bundle("c", "/bin/busybox sleep 1000");
        let trace = async || {
            let client = Client::connect(&format!("unix://{}", shim.path("shim.sock").display())).await.unwrap();
            let asked = TraceRequest { id: request.id.clone(), ..Default::default() };
            ShimClient::new(client).trace(context(), &asked).await
        };
        assert_eq!(status(trace().await).0, Code::NOT_FOUND);
        shim.task.create(context(), &request).await.unwrap();
        let at_gate = trace().await.unwrap().spans;
        let names = |spans: &[Span], who: &str| -> Vec<String> {
            spans.iter().filter(|span| span.who == who).map(|span| span.name.clone()).collect()
        };
        let own = ["mount the root filesystem", "read config.json and make the plan", "open the stdio", "create"];
        assert_eq!(names(&at_gate, "shim"), own);
        assert!(names(&at_gate, "init").contains(&"meet: created; wait for start".to_owned()), "{at_gate:#?}");
        shim.start_created(&request).await;
        let spans = trace().await.unwrap().spans;
        assert_eq!(names(&spans, "shim"), [&own[..], &["start"]].concat());
        assert!(spans.len() > at_gate.len() && !names(&spans, "parent").is_empty());
        for span in &spans {
            assert!(span.begin > 1_700_000_000_000_000_000 && span.begin <= span.end, "{span:?}");
        }
        let create = spans.iter().find(|span| span.name == "create").unwrap();
        let first = spans.iter().find(|span| span.who == "parent").unwrap();
        assert!(create.begin <= first.begin && first.end <= create.end, "{create:?} {first:?}");
        shim.kill(&request.id).await;
        shim.wait(&request.id, "").await;
        shim.delete(&request.id, "").await;
        shim.leave().await;

        // Nobody would ask a shim of containerd's, so it keeps none.
        let shim = Shim::start().await;
        let request = shim.bundle("c", "");
        shim.task.create(context(), &request).await.unwrap();
        let client = Client::connect(&format!("unix://{}", shim.path("shim.sock").display())).await.unwrap();
        let asked = TraceRequest { id: request.id.clone(), ..Default::default() };
        let refused = ShimClient::new(client).trace(context(), &asked).await;
        assert_eq!(status(refused).0, Code::FAILED_PRECONDITION);
        shim.delete(&request.id, "").await;
        shim.leave().await;
    });
}

/// The metadata of an event, and the event.
pub(super) type Heard = (HashMap<String, Vec<String>>, ForwardRequest);

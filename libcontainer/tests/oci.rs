//! The command line, from outside: what engines see of it. Needs root and busybox-static; what is compared with runc is
//! compared where runc is installed.

#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

#[path = "oci/systemd.rs"]
mod systemd;
use systemd::*;

const OURS: &str = env!("CARGO_BIN_EXE_dunnage-oci");

/// A test that runs containers. Skips loudly without root, unless `ROOT_TESTS=must`.
macro_rules! root_tests {
    ($($name:ident)*) => {
        mod as_root {
            $(#[test] fn $name() {
                if nix::unistd::geteuid().is_root() {
                    return super::$name();
                }
                assert!(std::env::var_os("ROOT_TESTS").is_none_or(|must| must != "must"), "ROOT_TESTS=must needs root");
                eprintln!("SKIPPED: {} needs root", stringify!($name));
            })*
        }
    };
}

root_tests! {
    run_ends_as_its_program_does
    a_container_is_created_by_one_command_and_started_by_another
    a_further_process_has_what_its_command_line_says
    what_cannot_be_executed_is_named_as_engines_expect
    signals_reach_the_program_of_a_foreground_run
    a_terminal_goes_to_the_console_socket_or_to_us
    descriptors_are_passed_on_and_no_others
    errors_are_told_to_people_and_to_engines
    one_of_many_creates_wins_and_many_deletes_agree
    a_create_that_is_killed_leaves_what_delete_removes
    our_binary_cannot_be_written_from_a_container
    documents_and_exit_codes_are_runcs
    a_created_container_with_another_spec_in_its_bundle_is_started_as_it_was_created
    a_container_is_a_scope_whose_limits_survive_a_reload
    a_unit_is_lived_with_as_any_container
    a_container_can_be_a_slice
    a_name_can_be_used_again_at_once
    a_unit_of_that_name_is_taken_only_if_it_has_failed
    what_dies_of_memory_leaves_no_failed_unit
    without_a_bus_systemd_is_asked_directly
    where_no_systemd_is_the_error_says_where_it_was_looked_for
    a_bus_that_says_nothing_holds_nobody_for_ever_and_nothing_is_left
}

/// A bundle with a busybox root, and a folder for the states of its containers.
struct Bundle {
    folder: tempfile::TempDir,
    id: String,
    config: Value,
}

impl Bundle {
    fn new(args: &[&str]) -> Bundle {
        let folder = tempfile::tempdir().unwrap();
        let bin = folder.path().join("rootfs/bin");
        fs::create_dir_all(&bin).unwrap();
        // By a process of its own: a child that another test makes meanwhile would have it open for writing, and nobody can
        // execute it then.
        let copied = Command::new("cp").arg("/bin/busybox").arg(&bin).status().unwrap();
        assert!(copied.success(), "busybox-static is installed");
        for name in ["sh", "cat", "id", "sleep", "ls", "true", "tty", "pwd", "env"] {
            symlink("busybox", bin.join(name)).unwrap();
        }
        let name = folder.path().file_name().unwrap().to_string_lossy().replace('.', "");
        let id = format!("oci-{}-{name}", std::process::id());
        let namespaces = ["pid", "ipc", "uts", "mount", "network"].map(|kind| json!({ "type": kind }));
        let config = json!({
            "ociVersion": "1.0.2",
            "root": { "path": "rootfs" },
            "process": { "args": args, "env": ["PATH=/bin"], "cwd": "/", "user": { "uid": 0, "gid": 0 } },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"] },
            ],
            "linux": {
                "namespaces": namespaces,
                "cgroupsPath": format!("/dunnage-test/{id}"),
            },
        });
        Bundle { folder, id, config }.save()
    }

    fn with(mut self, object: &str, key: &str, value: Value) -> Bundle {
        self.config.pointer_mut(object).expect("the object exists")[key] = value;
        self.save()
    }

    fn save(self) -> Bundle {
        fs::write(self.path("config.json"), self.config.to_string()).unwrap();
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn state_dir(&self) -> PathBuf {
        self.path("root").join(&self.id)
    }

    /// `binary` with its global options and these arguments, `ID` standing for the container's.
    fn command_of(&self, binary: &str, args: &[&str]) -> Command {
        let mut command = Command::new(binary);
        command.arg("--root").arg(self.path("root")).current_dir(self.folder.path()).stdin(Stdio::null());
        command.args(args.iter().map(|arg| if *arg == "ID" { &self.id } else { *arg }));
        command
    }

    fn command(&self, args: &[&str]) -> Command {
        self.command_of(OURS, args)
    }

    /// Runs it with its output in files, so that a container that keeps them does not keep us.
    fn run_as(&self, binary: &str, args: &[&str]) -> Output {
        let (mut out, mut err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let mut command = self.command_of(binary, args);
        let status = command.stdout(out.try_clone().unwrap()).stderr(err.try_clone().unwrap()).status().unwrap();
        Output { status, stdout: whole(&mut out), stderr: whole(&mut err) }
    }

    fn run(&self, args: &[&str]) -> Output {
        self.run_as(OURS, args)
    }

    /// What it prints; it must succeed.
    fn says(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it complains; it must fail.
    fn refuses(&self, args: &[&str]) -> (i32, String) {
        let output = self.run(args);
        assert!(!output.status.success(), "{args:?} succeeded: {}", String::from_utf8_lossy(&output.stdout));
        (output.status.code().expect("not killed"), String::from_utf8(output.stderr).unwrap())
    }

    fn state(&self) -> Value {
        serde_json::from_str(&self.says(&["state", "ID"])).unwrap()
    }

    fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_owned()
    }

    /// Kills the container and waits until the kernel has it stopped.
    fn kill(&self) {
        self.says(&["kill", "ID", "KILL"]);
        eventually("the container has stopped", || self.status() == "stopped");
    }

    fn nothing_is_left(&self) {
        assert!(!self.state_dir().exists(), "the state folder is left");
        let top = Path::new("/sys/fs/cgroup"); // on v2 the hierarchy itself
        let hierarchies = fs::read_dir(top).unwrap().flatten().map(|entry| entry.path()).chain([top.to_owned()]);
        let left = hierarchies.map(|dir| dir.join("dunnage-test").join(&self.id)).filter(|dir| dir.exists());
        assert_eq!(left.collect::<Vec<_>>(), Vec::<PathBuf>::new(), "cgroups are left");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&*self.folder.path().to_string_lossy()), "mounts are left");
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // After a test that failed half way; one that passed has left nothing.
        drop(self.run(&["delete", "--force", "ID"]));
    }
}

fn whole(file: &mut File) -> Vec<u8> {
    use std::io::Seek;
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Looks again and again, for what nobody tells us of.
fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !is() {
        assert!(Instant::now() < deadline, "not within two minutes: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn run_ends_as_its_program_does() {
    for (script, status) in [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("sh -c 'kill -9 $$'; exit $?", 137)] {
        let bundle = Bundle::new(&["sh", "-c", script]);
        assert_eq!(bundle.run(&["run", "ID"]).status.code(), Some(status), "{script}");
        bundle.nothing_is_left();
    }
    let bundle = Bundle::new(&["cat"]);
    let mut run = bundle.command(&["run", "ID"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    run.stdin.take().unwrap().write_all(b"through and through").unwrap();
    assert_eq!(run.wait_with_output().unwrap().stdout, b"through and through");
    let bundle = Bundle::new(&["sh", "-c", "echo ready; exec sleep 1000"]);
    let mut run = bundle.command(&["run", "ID"]).stdout(Stdio::piped()).spawn().unwrap();
    run.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    assert_eq!(bundle.status(), "running");
    bundle.says(&["kill", "ID", "9"]);
    assert_eq!(run.wait_with_output().unwrap().status.code(), Some(137));
    bundle.nothing_is_left();
    let bundle = Bundle::new(&["true"]);
    bundle.says(&["run", "--keep", "ID"]);
    assert_eq!(bundle.status(), "stopped");
    bundle.says(&["delete", "ID"]);
    bundle.nothing_is_left();
}

fn a_container_is_created_by_one_command_and_started_by_another() {
    let bundle = Bundle::new(&["sleep", "1000"]).with("", "annotations", json!({ "key": "value" }));
    assert_eq!(bundle.says(&["list", "-q"]), "");
    bundle.says(&["create", "--pid-file", "pid", "ID"]);
    let state = bundle.state();
    assert_eq!(state["pid"].to_string(), fs::read_to_string(bundle.path("pid")).unwrap());
    assert_eq!((&state["status"], &state["annotations"]["key"]), (&json!("created"), &json!("value")));
    assert_eq!(bundle.refuses(&["create", "ID"]).0, 1);
    bundle.says(&["start", "ID"]);
    assert_eq!(bundle.status(), "running");
    assert!(bundle.refuses(&["start", "ID"]).1.contains("cannot start an already running container"));
    assert!(bundle.refuses(&["delete", "ID"]).1.contains("that is not stopped: running"));
    assert_eq!(bundle.says(&["list", "-q"]), format!("{}\n", bundle.id));
    let list: Value = serde_json::from_str(&bundle.says(&["list", "-f", "json"])).unwrap();
    assert_eq!((&list[0]["id"], &list[0]["owner"]), (&json!(bundle.id), &json!("root")));
    assert_eq!(bundle.says(&["ps", "-f", "json", "ID"]), format!("[{}]\n", state["pid"]));
    let ps = bundle.says(&["ps", "ID"]);
    assert!(ps.lines().count() == 2 && ps.contains("sleep 1000"), "{ps}");
    bundle.kill();
    assert_eq!(bundle.state()["pid"], 0);
    assert!(bundle.refuses(&["kill", "ID"]).1.contains("container not running"));
    assert!(bundle.refuses(&["start", "ID"]).1.contains("cannot start a container that has stopped"));
    assert!(bundle.refuses(&["exec", "ID", "true"]).1.contains("cannot exec in a stopped container"));
    bundle.says(&["delete", "ID"]);
    bundle.nothing_is_left();
    // A created one is killed by delete, as runc does.
    bundle.says(&["create", "ID"]);
    bundle.says(&["delete", "ID"]);
    bundle.nothing_is_left();
}

fn a_created_container_with_another_spec_in_its_bundle_is_started_as_it_was_created() {
    let bundle = Bundle::new(&["sh", "-c", "exit 3"]);
    bundle.says(&["create", "--no-pivot", "ID"]);
    fs::write(bundle.path("config.json"), "{").unwrap();
    bundle.says(&["start", "ID"]);
    eventually("it has stopped", || bundle.status() == "stopped");
    bundle.says(&["delete", "ID"]);
    bundle.nothing_is_left();
}

fn a_further_process_has_what_its_command_line_says() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    bundle.says(&["run", "-d", "ID"]);
    assert_eq!(bundle.says(&["exec", "ID", "sh", "-c", "echo $$ $0 --tty", "-t"]).split(' ').nth(1), Some("-t"));
    let script = "id -u; id -g; id -G; pwd; echo $A $PATH";
    let said = bundle.says(&["exec", "-u", "5:6", "-g", "7", "--cwd", "/proc", "-e", "A=b", "ID", "sh", "-c", script]);
    assert_eq!(said, "5\n6\n6 7\n/proc\nb /bin\n");
    assert_eq!(bundle.run(&["exec", "ID", "sh", "-c", "exit 9"]).status.code(), Some(9));
    let process = json!({ "args": ["sh", "-c", "echo $B"], "env": ["PATH=/bin", "B=c"], "cwd": "/", "user": { "uid": 0, "gid": 0 } });
    fs::write(bundle.path("process.json"), process.to_string()).unwrap();
    assert_eq!(bundle.says(&["exec", "--process", "process.json", "ID"]), "c\n");
    bundle.says(&["exec", "-d", "--pid-file", "pid", "ID", "sleep", "1000"]);
    let pids: Vec<i32> = serde_json::from_str(&bundle.says(&["ps", "-f", "json", "ID"])).unwrap();
    let pid = fs::read_to_string(bundle.path("pid")).unwrap().parse().unwrap();
    assert!(pids.len() == 2 && pids.contains(&pid), "{pids:?} {pid}");
    bundle.says(&["kill", "--all", "ID", "KILL"]);
    bundle.says(&["delete", "--force", "ID"]);
    bundle.nothing_is_left();
}

fn what_cannot_be_executed_is_named_as_engines_expect() {
    let texts = [
        ("nope", "exec: \"nope\": executable file not found in $PATH"),
        ("/nope", "exec: \"/nope\": stat /nope: no such file or directory"),
        ("/proc/self/status", "exec: \"/proc/self/status\": permission denied"),
    ];
    let running = Bundle::new(&["sleep", "1000"]);
    running.says(&["run", "-d", "ID"]);
    for (program, text) in texts {
        let bundle = Bundle::new(&[program]);
        for command in [["create", "ID"].as_slice(), &["run", "ID"]] {
            let (status, said) = bundle.refuses(command);
            assert_eq!(status, 1);
            assert!(said.replace('\\', "").contains(text), "{said}");
            bundle.nothing_is_left();
        }
        let (status, said) = running.refuses(&["exec", "ID", program]);
        assert!(status == 255 && said.replace('\\', "").contains(text), "{status} {said}");
    }
    running.says(&["delete", "-f", "ID"]);
    running.nothing_is_left();
}

fn signals_reach_the_program_of_a_foreground_run() {
    let bundle = Bundle::new(&["sh", "-c", "trap 'exit 42' TERM; echo ready; while :; do sleep 0.01; done"]);
    let mut run = bundle.command(&["run", "ID"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = [0; 5];
    run.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    kill(Pid::from_raw(run.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(42));
    bundle.nothing_is_left();
}

fn a_terminal_goes_to_the_console_socket_or_to_us() {
    let bundle = Bundle::new(&["sh", "-c", "tty; sleep 1000"]).with("/process", "terminal", json!(true));
    assert!(bundle.refuses(&["create", "ID"]).1.contains("--console-socket"));
    let listener = UnixListener::bind(bundle.path("console")).unwrap();
    bundle.says(&["create", "--console-socket", "console", "ID"]);
    let (stream, _) = listener.accept().unwrap();
    let mut name = [0; 64];
    let (length, master) = libcontainer::sys::socket::receive(stream.as_fd(), &mut name, true).unwrap();
    assert_eq!(&name[..length], b"/dev/ptmx");
    bundle.says(&["start", "ID"]);
    let mut line = String::new();
    BufReader::new(File::from(master.unwrap())).read_line(&mut line).unwrap();
    assert!(line.starts_with("/dev/"), "{line}");
    bundle.says(&["delete", "-f", "ID"]);
    bundle.nothing_is_left();

    let bundle = Bundle::new(&["sh", "-c", "read line; echo got $line"]).with("/process", "terminal", json!(true));
    let mut run = bundle.command(&["run", "ID"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    run.stdin.take().unwrap().write_all(b"typed\n").unwrap();
    let output = run.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "typed\r\ngot typed\r\n");
    assert!(output.status.success());
    bundle.nothing_is_left();
}

fn descriptors_are_passed_on_and_no_others() {
    let bundle = Bundle::new(&["sh", "-c", "cat <&3; ls /proc/self/fd"]);
    fs::write(bundle.path("three"), "gift ").unwrap();
    let line = format!("exec {OURS} --root root run --preserve-fds \"$1\" {} 3<three 4<config.json", bundle.id);
    let run = |count: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-c", &line, "sh", count]).current_dir(bundle.folder.path()).output().unwrap()
    };
    // The last one is ls's own.
    assert_eq!(
        String::from_utf8_lossy(&run("1").stdout),
        "gift 0\n1\n2\n3\n4\n",
        "3 is given, 4 is the folder that ls reads"
    );
    assert_eq!(String::from_utf8_lossy(&run("2").stdout), "gift 0\n1\n2\n3\n4\n5\n");
    let refused = run("3");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("descriptor 5"), "{refused:?}");
    bundle.nothing_is_left();
}

fn errors_are_told_to_people_and_to_engines() {
    let bundle = Bundle::new(&["true"]);
    let (_, said) = bundle.refuses(&["state", "ID"]);
    assert!(said.contains("level=error msg=\"container does not exist\""), "{said}");
    let (_, said) = bundle.refuses(&["--log", "log", "--log-format", "json", "state", "ID"]);
    assert_eq!(said, "container does not exist\n");
    let log = fs::read_to_string(bundle.path("log")).unwrap();
    let line: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!((&line["level"], &line["msg"]), (&json!("error"), &json!("container does not exist")));
    assert!(bundle.refuses(&["--systemd-cgroup", "run", "ID"]).1.contains("slice:prefix:name"));
    bundle.says(&["--rootless", "false", "run", "ID"]);
    for config in ["", "{", "[]", "{\"ociVersion\":\"1.0.2\"}"] {
        fs::write(bundle.path("config.json"), config).unwrap();
        assert!(bundle.refuses(&["run", "ID"]).1.contains("config.json"), "{config:?}");
        bundle.nothing_is_left();
    }
    assert!(bundle.refuses(&["run", "-b", "/nowhere", "ID"]).1.contains("/nowhere"));
    assert!(bundle.refuses(&["state", "../ID"]).1.contains("invalid container id"));
}

fn one_of_many_creates_wins_and_many_deletes_agree() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    let all = |args: &[&str]| -> Vec<bool> {
        let spawn = || bundle.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let children: Vec<Child> = (0..8).map(|_| spawn()).collect();
        children.into_iter().map(|mut child| child.wait().unwrap().success()).collect()
    };
    for _ in 0..4 {
        assert_eq!(all(&["create", "ID"]).iter().filter(|created| **created).count(), 1);
        assert_eq!(all(&["start", "ID"]).iter().filter(|started| **started).count(), 1);
        assert_eq!(all(&["delete", "--force", "ID"]), [true; 8]);
        bundle.nothing_is_left();
    }
}

fn a_create_that_is_killed_leaves_what_delete_removes() {
    // Killed by a hook of its own: at a moment that is known.
    let hook = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "kill -9 $PPID"] }]);
    for moment in ["prestart", "createRuntime"] {
        let bundle = Bundle::new(&["sleep", "1000"]).with("", "hooks", json!({ moment: hook }));
        let output = bundle.run(&["create", "ID"]);
        assert!(output.status.code().is_none(), "{output:?}");
        assert!(bundle.refuses(&["create", "ID"]).1.contains("already exists"));
        bundle.says(&["delete", "--force", "ID"]);
        bundle.nothing_is_left();
    }
    // Killed while a hook keeps the container's first process from its gate.
    let bundle = Bundle::new(&["sleep", "1000"]);
    let script = format!("echo >{}; sleep 1000", bundle.path("reached").display());
    let hook = json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin"] }]);
    let bundle = bundle.with("", "hooks", json!({ "createContainer": hook }));
    let mut create = bundle.command(&["create", "ID"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the hook runs", || bundle.path("reached").exists());
    assert_eq!(bundle.status(), "creating");
    create.kill().unwrap();
    create.wait().unwrap();
    bundle.says(&["delete", "--force", "ID"]);
    bundle.nothing_is_left();
    // Killed by us: at moments spread over all it does.
    let bundle = Bundle::new(&["sleep", "1000"]);
    for round in 0..60 {
        let mut create = bundle.command(&["create", "ID"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(200 * round));
        create.kill().unwrap();
        create.wait().unwrap();
        bundle.says(&["delete", "--force", "ID"]);
        bundle.nothing_is_left();
    }
}

fn our_binary_cannot_be_written_from_a_container() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    bundle.says(&["create", "ID"]);
    // At its gate the container's first process is still a copy of ours.
    let exe = format!("/proc/{}/exe", bundle.state()["pid"]);
    let mount = nix::sys::statvfs::statvfs(exe.as_str()).unwrap();
    assert!(
        mount.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY),
        "{exe} is on a mount that can be written to"
    );
    bundle.says(&["delete", "-f", "ID"]);
    bundle.nothing_is_left();
}

fn documents_and_exit_codes_are_runcs() {
    let features: Value = serde_json::from_str(&Bundle::new(&[]).says(&["features"])).unwrap();
    let plan = Bundle::new(&["true"]).says(&["plan", "ID"]);
    assert!(plan.lines().last().unwrap().contains("execute true"), "{plan}");
    let Ok(runc) = which("runc") else {
        eprintln!("SKIPPED: no runc to compare with");
        return;
    };
    let theirs: Value = serde_json::from_slice(&Command::new(&runc).arg("features").output().unwrap().stdout).unwrap();
    for list in [
        "/hooks",
        "/mountOptions",
        "/linux/namespaces",
        "/linux/capabilities",
        "/linux/seccomp/actions",
        "/linux/seccomp/operators",
    ] {
        let ours = features.pointer(list).and_then(Value::as_array).unwrap();
        // Words that runc makes flags of, which the kernel ignores; from us the filesystem gets them.
        let words_of_filesystems = ["acl", "noacl"];
        let theirs = theirs.pointer(list).and_then(Value::as_array).into_iter().flatten();
        for item in theirs.filter(|item| !words_of_filesystems.contains(&item.as_str().unwrap_or_default())) {
            assert!(ours.contains(item), "{list} lacks {item}");
        }
    }
    for flavour in [["spec"].as_slice(), &["spec", "--rootless"]] {
        let spec = |binary: &str| {
            let bundle = Bundle::new(&[]);
            fs::remove_file(bundle.path("config.json")).unwrap();
            assert!(bundle.run_as(binary, flavour).status.success());
            let mut spec: Value = serde_json::from_slice(&fs::read(bundle.path("config.json")).unwrap()).unwrap();
            (spec["ociVersion"], spec["hostname"]) = (json!("any"), json!("any"));
            for mount in spec["mounts"].as_array_mut().unwrap() {
                if let Some(options) = mount["options"].as_array_mut() {
                    options.sort_by_key(Value::to_string);
                }
            }
            spec
        };
        assert_eq!(spec(OURS), spec(&runc));
    }
    // Of one level: the parent that others' containers share may go at any moment, which runc does not expect.
    let path = format!("/dunnage-runc-{}", std::process::id());
    let bundle = Bundle::new(&["sleep", "1000"]).with("/linux", "cgroupsPath", json!(path));
    let same = |args: &[&str]| {
        let (ours, theirs) = (bundle.run(args), bundle.run_as(&runc, args));
        let said = (String::from_utf8_lossy(&ours.stderr), String::from_utf8_lossy(&theirs.stderr));
        assert_eq!(ours.status.code(), theirs.status.code(), "{args:?}: {said:?}");
        ours.stdout
    };
    for args in [
        ["state", "ID"].as_slice(),
        &["kill", "ID"],
        &["start", "ID"],
        &["delete", "ID"],
        &["delete", "--force", "ID"],
        &["exec", "ID", "true"],
        &["ps", "ID"],
        &["run", "--bundle", "/nowhere", "ID"],
        &["kill", "ID", "NOPE"],
        &["list"],
    ] {
        same(args);
    }
    // The same container by both, one after the other: what they say of it has the same shape.
    let document = |binary: &str| {
        assert!(bundle.run_as(binary, &["create", "ID"]).status.success());
        let state: Value = serde_json::from_slice(&bundle.run_as(binary, &["state", "ID"]).stdout).unwrap();
        let table = String::from_utf8(bundle.run_as(binary, &["list"]).stdout).unwrap();
        assert!(bundle.run_as(binary, &["delete", "--force", "ID"]).status.success());
        let keys: Vec<String> = state.as_object().unwrap().keys().cloned().collect();
        let fixed = ["id", "status", "bundle", "rootfs", "owner"].map(|key| state[key].clone());
        (keys, fixed, table.lines().next().unwrap().split_whitespace().map(String::from).collect::<Vec<_>>())
    };
    assert_eq!(document(OURS), document(&runc));
}

fn which(name: &str) -> Result<String, ()> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let found = path.split(':').map(|dir| Path::new(dir).join(name)).find(|file| file.exists());
    found.map(|file| file.to_string_lossy().into_owned()).ok_or(())
}

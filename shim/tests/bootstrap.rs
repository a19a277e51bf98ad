//! What happens before and after the shim serves: `start`, `delete`, `-info`, `-v`, with the real binary.
//!
//! Only root sees all of it; what needs a cgroup or a mount says so when it cannot be tested.

#![expect(clippy::unwrap_used, reason = "a test ends at its first surprise")]

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{fs::PermissionsExt as _, net::UnixStream, process::ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use libcontainer::{
    cgroup::Saved,
    state::{Dir, Init, State},
    sys::process::pidfd_open,
};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, SealFlag, fcntl},
    mount::{MsFlags, mount},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::{AccessFlags, Pid, access, geteuid, getpgid},
};
use protobuf::{Message as _, MessageField};
use runtime_v2_api::{
    Any,
    bootstrap::{BootstrapParams, BootstrapResult, Extension},
    json, pack, runc,
    task::DeleteResponse,
    types::RuntimeInfo,
};
use tempfile::TempDir;

const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-dunnage-v2");

/// A folder with bundles and sockets. The shims that were started in it are killed at the end.
struct Host {
    folder: TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(host.sockets()).unwrap();
        host
    }

    /// Its name is in every id, so that our processes can be told from those of other tests.
    fn id(&self, name: &str) -> String {
        let folder = self.folder.path().file_name().unwrap().to_str().unwrap();
        format!("{}-{name}", folder.trim_start_matches('.'))
    }

    fn bundle(&self, name: &str) -> PathBuf {
        let bundle = self.folder.path().join(name);
        fs::create_dir_all(&bundle).unwrap();
        bundle
    }

    fn sockets(&self) -> PathBuf {
        self.folder.path().join("sockets")
    }

    fn command(&self, name: &str, action: &str) -> Command {
        let mut command = Command::new(SHIM);
        let id = self.id(name);
        command
            .args(["-namespace", "tests", "-address", "/run/none.sock", "-publish-binary", "", "-id", &id, action])
            .current_dir(self.bundle(name))
            .env("TTRPC_ADDRESS", self.folder.path().join("ttrpc"))
            .env("NOTIFY_SOCKET", "/run/systemd/notify")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs `start` as containerd 2.3 does, which is the one that says where sockets are to be.
    fn start(&self, name: &str, options: Option<runc::Options>) -> Output {
        feed(self.command(name, "start").spawn().unwrap(), &self.params(name, options))
    }

    fn params(&self, name: &str, options: Option<runc::Options>) -> Vec<u8> {
        let extension =
            |options| Extension { value: MessageField::some(pack(&options).unwrap()), ..Default::default() };
        let params = BootstrapParams {
            instance_id: self.id(name),
            namespace: "tests".into(),
            socket_dir: Some(self.sockets().to_str().unwrap().into()),
            extensions: options.map(extension).into_iter().collect(),
            ..Default::default()
        };
        params.write_to_bytes().unwrap()
    }

    fn delete(&self, name: &str) -> Output {
        self.command(name, "delete").stdin(Stdio::null()).output().unwrap()
    }

    /// The daemons, by their command lines.
    fn daemons(&self) -> Vec<Pid> {
        let ours = self.id("");
        let mut daemons = vec![];
        for entry in fs::read_dir("/proc").unwrap() {
            let path = entry.unwrap().path();
            let Ok(pid) = path.file_name().unwrap().to_str().unwrap().parse() else { continue };
            let argv = fs::read(path.join("cmdline")).unwrap_or_default();
            let mut arguments = argv.split(|byte| *byte == 0);
            if arguments.any(|argument| argument == b"-id")
                && arguments.next().is_some_and(|id| id.starts_with(ours.as_bytes()))
            {
                daemons.push(Pid::from_raw(pid));
            }
        }
        daemons
    }

    fn assert_nothing_left(&self) {
        assert_eq!(self.daemons(), []);
        assert!(fs::read_dir(self.sockets()).unwrap().next().is_none(), "a socket is left");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for daemon in self.daemons() {
            kill(daemon, Signal::SIGKILL).unwrap();
        }
    }
}

fn feed(mut child: Child, stdin: &[u8]) -> Output {
    // It may have failed before it read anything.
    drop(child.stdin.take().unwrap().write_all(stdin));
    child.wait_with_output().unwrap()
}

/// That it went well, and that nothing but the answer was printed.
fn answer(output: &Output) -> &[u8] {
    assert_eq!((String::from_utf8_lossy(&output.stderr).as_ref(), output.status.code()), ("", Some(0)));
    &output.stdout
}

/// The path of the socket that `start` printed.
fn address(output: &Output) -> PathBuf {
    let result = BootstrapResult::parse_from_bytes(answer(output)).unwrap();
    assert_eq!((result.version, &*result.protocol), (3, "ttrpc"));
    result.address.strip_prefix("unix://").unwrap().into()
}

/// What `delete` printed: pid and exit status.
fn deleted(output: &Output) -> (u32, u32) {
    let response = DeleteResponse::parse_from_bytes(answer(output)).unwrap();
    assert!(response.exited_at.seconds > 1_700_000_000);
    (response.pid, response.exit_status)
}

/// Why it failed, having printed nothing to stdout.
fn reason(output: &Output) -> String {
    assert_eq!((output.stdout.as_slice(), output.status.code()), (&b""[..], Some(1)));
    let reason = std::str::from_utf8(&output.stderr).unwrap();
    reason.strip_prefix("containerd-shim-dunnage-v2: ").unwrap().trim_end().to_owned()
}

fn kill_and_wait(pid: Pid) {
    let pidfd = pidfd_open(pid).unwrap();
    kill(pid, Signal::SIGKILL).unwrap();
    assert_eq!(poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::from(60_000_u16)), Ok(1));
}

fn is_root(what: &str) -> bool {
    let root = geteuid().is_root();
    if !root {
        assert!(
            std::env::var_os("ROOT_TESTS").is_none_or(|value| value != "must"),
            "{what} can only be tested by root"
        );
        eprintln!("skipped: {what} can only be tested by root");
    }
    root
}

#[test]
fn version_is_printed_without_any_other_flag() {
    let output = Command::new(SHIM).arg("-v").output().unwrap();
    let expected = format!("containerd-shim-dunnage-v2 {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8_lossy(answer(&output)), expected);
}

#[test]
fn start_leaves_a_daemon_that_holds_nothing_of_ours() {
    let host = Host::new();
    let path = address(&host.start("one", None));
    assert_eq!(path.parent(), Some(&*host.sockets()));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    UnixStream::connect(&path).unwrap();
    assert_eq!(fs::read_to_string(host.bundle("one").join("address")).unwrap(), format!("unix://{}", path.display()));

    let [daemon] = host.daemons()[..] else { panic!("one daemon, not {:?}", host.daemons()) };
    assert_eq!(getpgid(Some(daemon)), Ok(daemon));
    let proc = PathBuf::from(format!("/proc/{daemon}"));
    for fd in [0, 1, 2] {
        assert_eq!(fs::read_link(proc.join(format!("fd/{fd}"))).unwrap(), Path::new("/dev/null"));
    }
    assert_eq!(fs::read_link(proc.join("cwd")).unwrap(), host.bundle("one").canonicalize().unwrap());
    let environment = String::from_utf8_lossy(&fs::read(proc.join("environ")).unwrap()).into_owned();
    assert!(environment.contains("TTRPC_ADDRESS=") && !environment.contains("NOTIFY_SOCKET="));
    let score = |pid: &str| -> i32 {
        fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap()
    };
    assert_eq!(score(&daemon.to_string()), (score("self") + 1).min(1000));
}

#[test]
fn nobody_can_write_to_the_daemons_binary() {
    let host = Host::new();
    address(&host.start("one", None));
    let binary = format!("/proc/{}/exe", host.daemons()[0]);
    if geteuid().is_root() {
        assert_eq!(access(binary.as_str(), AccessFlags::W_OK), Err(Errno::EROFS));
    } else {
        let seals = fcntl(File::open(binary).unwrap(), FcntlArg::F_GET_SEALS).unwrap();
        assert!(SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_WRITE));
    }
}

#[test]
fn before_2_3_the_answer_is_a_bare_address() {
    if !is_root("the default folder for sockets") {
        return;
    }
    let host = Host::new();
    let output = feed(host.command("one", "start").spawn().unwrap(), b"");
    let path = Path::new(std::str::from_utf8(answer(&output)).unwrap().strip_prefix("unix://").unwrap());
    assert_eq!(path.parent(), Some(Path::new("/run/containerd/s")));
    UnixStream::connect(path).unwrap();
    fs::remove_file(path).unwrap();
}

#[test]
fn a_group_shares_one_shim_however_many_start_at_once() {
    let host = Host::new();
    let names: Vec<String> = (0..12).map(|number| format!("c{number}")).collect();
    for name in &names {
        let annotations = format!(r#"{{"annotations":{{"io.kubernetes.cri.sandbox-id":"{}"}}}}"#, host.id("pod"));
        fs::write(host.bundle(name).join("config.json"), annotations).unwrap();
    }
    // A dead shim's socket makes it harder: of those who find it, only one may replace it.
    let dead = address(&host.start(&names[0], None));
    kill_and_wait(host.daemons()[0]);
    let mut started: Vec<Child> = names.iter().map(|name| host.command(name, "start").spawn().unwrap()).collect();
    // They are all there, and wait for the end of their stdin.
    for (name, child) in names.iter().zip(&mut started) {
        child.stdin.take().unwrap().write_all(&host.params(name, None)).unwrap();
    }
    let outputs: Vec<Output> = started.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    for (name, output) in names.iter().zip(&outputs) {
        assert_eq!(address(output), dead);
        let written = fs::read_to_string(host.bundle(name).join("address")).unwrap();
        assert_eq!(written, format!("unix://{}", dead.display()));
    }
    assert_eq!(host.daemons().len(), 1);
    assert_ne!(address(&host.start("alone", None)), dead);
}

#[test]
fn the_socket_of_a_killed_shim_is_taken_over() {
    let host = Host::new();
    let path = address(&host.start("one", None));
    kill_and_wait(host.daemons()[0]);
    assert!(path.exists() && UnixStream::connect(&path).is_err());
    assert_eq!(address(&host.start("one", None)), path);
    UnixStream::connect(&path).unwrap();
}

#[test]
fn a_start_that_fails_leaves_nothing() {
    let host = Host::new();
    let foreign = runc::Options { binary_name: "no-runc".into(), ..Default::default() };
    let text = reason(&host.start("one", Some(foreign)));
    assert!(text.starts_with("cannot run \"no-runc\": "), "{text}");
    host.assert_nothing_left();

    let cgroup = runc::Options { shim_cgroup: format!("/{}", host.id("missing")), ..Default::default() };
    let text = reason(&host.start("one", Some(cgroup)));
    assert!(text.starts_with("ShimCgroup: there is no cgroup /"), "{text}");
    host.assert_nothing_left();

    fs::write(host.bundle("one").join("config.json"), "{\"annotations\": 7}").unwrap();
    let text = reason(&host.start("one", None));
    assert!(text.starts_with("read annotations from config.json: invalid type: integer `7`"), "{text}");
    host.assert_nothing_left();
    fs::remove_file(host.bundle("one").join("config.json")).unwrap();

    let output = host.command("one", "start").env_remove("TTRPC_ADDRESS").stdin(Stdio::null()).output().unwrap();
    assert!(reason(&output).starts_with("TTRPC_ADDRESS, the socket where containerd takes events: "));
    host.assert_nothing_left();

    let output = feed(host.command("one", "start").spawn().unwrap(), &[0x0a, 200]);
    assert!(reason(&output).starts_with("decode the options on stdin: "));
    host.assert_nothing_left();
}

#[test]
fn a_daemon_whose_address_cannot_be_told_is_killed() {
    let host = Host::new();
    let mut command = host.command("one", "start");
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = feed(command.stdout(Stdio::from(OwnedFd::from(full))).spawn().unwrap(), &host.params("one", None));
    assert_eq!(reason(&output), "write to stdout: No space left on device (os error 28)");
    host.assert_nothing_left();
}

#[test]
fn the_daemon_is_in_the_cgroup_it_was_given() {
    if !is_root("ShimCgroup") {
        return;
    }
    let host = Host::new();
    // Any hierarchy will do.
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut roots = table.lines().filter(|line| line.contains(" cgroup")).filter_map(|line| line.split(' ').nth(1));
    let made = roots.find_map(|root| {
        let group = Path::new(root).join(host.id("shims"));
        fs::create_dir(&group).ok().map(|()| group)
    });
    let group = made.expect("a hierarchy that root may make a cgroup in");
    let options = runc::Options { shim_cgroup: format!("/{}", host.id("shims")), ..Default::default() };
    address(&host.start("one", Some(options)));
    let daemon = host.daemons()[0];
    let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap();
    kill_and_wait(daemon);
    // A dead process is in its cgroup until init has reaped it.
    while let Err(error) = fs::remove_dir(&group) {
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        std::thread::yield_now();
    }
    assert_eq!(procs, format!("{daemon}\n"));
}

/// A process as a shim would have recorded it before it was killed itself.
fn recorded_container(host: &Host, name: &str) -> Child {
    let bundle = host.bundle(name);
    fs::write(bundle.join("options.json"), format!(r#"{{"root":"{}","new":1}}"#, host.folder.path().display()))
        .unwrap();
    let child = Command::new("sleep").arg("600").spawn().unwrap();
    fs::write(bundle.join("init.pid"), child.id().to_string()).unwrap();
    let init = Init::of(Pid::from_raw(child.id().cast_signed())).unwrap();
    let state = State {
        id: host.id(name),
        bundle,
        rootfs: "/".into(),
        created: "2026-11-21T00:00:00Z".into(),
        annotations: HashMap::new(),
        no_pivot: false,
        no_new_keyring: false,
        init: Some(init),
        creating: false,
        cgroup: Saved::default(),
        poststop: vec![],
    };
    Dir::create(&host.folder.path().join("tests").join(host.id(name))).unwrap().save(&state).unwrap();
    child
}

#[test]
fn delete_kills_what_a_killed_shim_left_and_only_that() {
    let host = Host::new();
    let (mut one, mut other) = (recorded_container(&host, "one"), recorded_container(&host, "other"));
    assert_eq!(deleted(&host.delete("one")), (one.id(), 137));
    assert_eq!(one.wait().unwrap().signal(), Some(libc::SIGKILL));
    assert!(!host.folder.path().join("tests").join(host.id("one")).exists());
    // It says the same again.
    assert_eq!(deleted(&host.delete("one")), (one.id(), 137));
    assert_eq!(other.try_wait().unwrap(), None);
    assert_eq!(deleted(&host.delete("other")), (other.id(), 137));
    other.wait().unwrap();
}

#[test]
fn delete_removes_the_socket_of_a_killed_shim_but_not_of_a_live_one() {
    let host = Host::new();
    let path = address(&host.start("one", None));
    deleted(&host.delete("one"));
    UnixStream::connect(&path).unwrap();
    kill_and_wait(host.daemons()[0]);
    deleted(&host.delete("one"));
    assert!(!path.exists());
    deleted(&host.delete("one"));
}

#[test]
fn delete_of_a_container_that_never_was_is_no_error() {
    let host = Host::new();
    assert_eq!(deleted(&host.delete("one")), (0, 137));
}

#[test]
fn delete_unmounts_the_root_filesystem() {
    if !is_root("mounts") {
        return;
    }
    let host = Host::new();
    let rootfs = host.bundle("one").join("rootfs");
    fs::create_dir(&rootfs).unwrap();
    let tmpfs = |path: &Path| mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    tmpfs(&rootfs);
    fs::create_dir(rootfs.join("below")).unwrap();
    tmpfs(&rootfs.join("below"));

    let used = File::open(rootfs.join("below")).unwrap();
    let output = host.delete("one");
    assert!(reason(&output).ends_with(": something still uses it"), "{}", reason(&output));
    drop(used);
    // Another test may just be starting a process, which has it open too until it executes.
    let gone = loop {
        let output = host.delete("one");
        if output.status.success() {
            break output;
        }
        assert!(reason(&output).ends_with(": something still uses it"), "{}", reason(&output));
    };
    assert_eq!(deleted(&gone), (0, 137));
    fs::remove_dir(&rootfs).unwrap();
}

#[test]
fn info_describes_the_runtime() {
    let info = |stdin: &[u8]| {
        let mut command = Command::new(SHIM);
        command.arg("-info").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        feed(command.spawn().unwrap(), stdin)
    };
    let described = RuntimeInfo::parse_from_bytes(answer(&info(b""))).unwrap();
    assert_eq!(described.name, "io.containerd.dunnage.v2");
    assert_eq!(described.version.version, env!("CARGO_PKG_VERSION"));
    assert_eq!((described.features.type_url.as_str(), described.options.is_some()), (json::FEATURES, false));
    let features: serde_json::Value = serde_json::from_slice(&described.features.value).unwrap();
    let has = |list: &serde_json::Value, name: &str| list.as_array().unwrap().iter().any(|item| item == name);
    // What CRI looks for.
    assert!(has(&features["mountOptions"], "rro") && has(&features["linux"]["namespaces"], "user"));
    assert_eq!(features["linux"]["mountExtensions"]["idmap"]["enabled"], true);

    let options = pack(&runc::Options { root: "/run/x".into(), ..Default::default() }).unwrap();
    let described = RuntimeInfo::parse_from_bytes(answer(&info(&options.write_to_bytes().unwrap()))).unwrap();
    assert_eq!(*described.options, options);
    let unknown = Any { type_url: "example.Options".into(), value: vec![1], ..Default::default() };
    let text = reason(&info(&unknown.write_to_bytes().unwrap()));
    assert_eq!(text, "runtime options of the unknown type \"example.Options\"");
}

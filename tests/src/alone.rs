//! A world without containerd: a `dunnaged` of its own, and `dunnage` to speak to it.

use std::{
    cell::{Cell, RefCell},
    env,
    ffi::OsString,
    fs::{self, OpenOptions},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{
            fs::{PermissionsExt as _, chown},
            net::{UnixDatagram, UnixListener},
            process::CommandExt as _,
        },
    },
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use runtime_v2_api::{
    Payload, events as wire, forward,
    supervisor::{Container, ListRequest, SubscribeRequest},
    supervisor_ttrpc::SupervisorClient,
    unpack,
};
use serde_json::json;
use tokio::{runtime::Runtime, time::timeout};
use ttrpc::{
    asynchronous::Client,
    context::{Context, with_duration},
};

use crate::{
    Event, Foreground, Outcome, Terminal, Transcript, case, client, events, image, patience,
    process::{self, Pidfd},
    readable, residue,
};

/// One test's world.
pub struct Alone {
    /// The namespace of the test's containers, which nothing else on the machine has.
    pub name: String,
    dir: PathBuf,
    /// Where the programs under test are.
    programs: PathBuf,
    daemon: RefCell<Option<Child>>,
    flags: RefCell<Vec<OsString>>,
    listener: RefCell<Option<UnixListener>>,
    scratch: Cell<u32>,
    heard_all: Cell<bool>,
    /// Whom supervisor and command line run as, if not as root.
    user: Option<User>,
}

/// An ordinary user.
#[derive(Clone, Debug)]
pub struct User {
    id: u32,
    /// /etc/passwd, /etc/subuid and /etc/subgid as the supervisor sees them, in a mount namespace of its own.
    known: bool,
    /// Instead of one in the folder of the case.
    runtime_dir: Option<PathBuf>,
}

impl User {
    /// One of whom the machine knows nothing but the number.
    pub fn unknown() -> Self {
        Self { id: fresh_id(), known: false, runtime_dir: None }
    }

    /// One who has a name, and ranges of further ids. Only the supervisor has ever heard of them.
    pub fn with_ranges() -> Self {
        Self { id: fresh_id(), known: true, runtime_dir: None }
    }

    /// The user `porter` of the guest of `scripts/vm systemd`, who has ranges of ids and a systemd of their own. Elsewhere
    /// there is none, which is said; `DUNNAGE_TEST_SYSTEMD=must` forbids that.
    pub fn porter() -> Option<Self> {
        let runtime_dir = PathBuf::from("/run/user/1000");
        if runtime_dir.join("systemd/private").exists() {
            return Some(Self { id: 1000, known: false, runtime_dir: Some(runtime_dir) });
        }
        let must = env::var_os("DUNNAGE_TEST_SYSTEMD").is_some_and(|value| value == "must");
        assert!(!must, "DUNNAGE_TEST_SYSTEMD=must, and user 1000 has no systemd");
        case::say_skipped(thread::current().name().unwrap_or("test"), "user 1000 has no systemd here");
        None
    }
}

/// The number of a user whom no other test has: a container without a cgroup carries no other sign of the case.
fn fresh_id() -> u32 {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    1_000_000 + 64 * std::process::id() + COUNT.fetch_add(1, Ordering::Relaxed)
}

/// Runs `test` in a world of its own, and judges what it left. Skips, and says so, where containers cannot be run at
/// all, unless `ROOT_TESTS=must` forbids it.
pub fn alone(test: impl FnOnce(&Alone)) {
    alone_as(None, test);
}

/// The same with a supervisor and a command line that an ordinary user runs.
pub fn alone_as(user: impl Into<Option<User>>, test: impl FnOnce(&Alone)) {
    let title = thread::current().name().unwrap_or("test").to_owned();
    let Some(subject) = case::subject(&title) else { return };
    if !subject.is_ours() {
        return case::say_skipped(&title, &format!("{} has no supervisor", subject.runtime));
    }
    let dir = tempfile::Builder::new().prefix("dunnage-").tempdir().expect("make the folder of the case");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).expect("open the folder of the case");
    let alone = Alone {
        name: dir.path().file_name().unwrap_or_default().to_string_lossy().into_owned(),
        dir: dir.path().to_owned(),
        programs: subject.shim().parent().unwrap_or(Path::new("/")).to_owned(),
        daemon: RefCell::default(),
        flags: RefCell::default(),
        listener: RefCell::default(),
        scratch: Cell::new(0),
        heard_all: Cell::new(true),
        user: user.into(),
    };
    if let Some(user) = &alone.user {
        user.move_in(&alone);
    }
    fs::write(alone.log_path(), "").expect("make a transcript");
    let result = catch_unwind(AssertUnwindSafe(|| {
        alone.start();
        test(&alone);
        alone.judge();
    }));
    let record = alone.record();
    alone.kill();
    alone.users_processes().iter().for_each(|process| process::kill_hard(process.pid));
    residue::sweep_named(&alone.name);
    if let Err(panic) = result {
        println!("{record}");
        drop(dir.close());
        resume_unwind(panic);
    }
    dir.close().expect("remove the folder of the case");
}

impl User {
    /// Folders of the user's own, and the programs where they can be reached whoever's the checkout is.
    fn move_in(&self, world: &Alone) {
        for name in ["home", "state", "root", "run"] {
            fs::create_dir(world.path(name)).expect("make a folder");
            chown(world.path(name), Some(self.id), Some(self.id)).expect("give a folder away");
            fs::set_permissions(world.path(name), fs::Permissions::from_mode(0o700)).expect("close a folder");
        }
        world.copy_programs();
        fs::create_dir(world.path("etc")).expect("make a folder");
        let passwd = fs::read_to_string("/etc/passwd").expect("read /etc/passwd");
        fs::write(world.path("etc/passwd"), format!("{passwd}stevedore:x:{0}:{0}::/:/bin/sh\n", self.id))
            .expect("write");
        for name in ["etc/subuid", "etc/subgid"] {
            fs::write(world.path(name), "stevedore:300000:65536\n").expect("write");
        }
    }

    /// Runs a command as this user.
    fn dress(&self, world: &Alone, command: &mut Command) {
        let run = self.runtime_dir.clone().unwrap_or_else(|| world.path("run"));
        command.env("HOME", world.path("home")).env("XDG_RUNTIME_DIR", run).current_dir("/");
        if !self.known {
            command.uid(self.id).gid(self.id);
        }
    }

    /// The same for one that is to see the user's entries in /etc: a command before the command.
    fn introduce(&self, world: &Alone, program: &Path) -> Command {
        if !self.known {
            return Command::new(program);
        }
        let mut command = Command::new("unshare");
        let script = "mount --make-rprivate / && for file in passwd subuid subgid; do \
                      mount --bind \"$0/$file\" /etc/$file || exit; done && exec setpriv \"$@\"";
        command.args(["--mount", "sh", "-c", script]).arg(world.path("etc"));
        let ids = [format!("--reuid={}", self.id), format!("--regid={}", self.id), "--clear-groups".to_owned()];
        command.args(ids).arg(program);
        command
    }

    /// Makes this thread one of the user's, for good.
    fn become_it(&self) {
        let (uid, gid) = (rustix::process::Uid::from_raw(self.id), rustix::process::Gid::from_raw(self.id));
        rustix::thread::set_thread_groups(&[]).expect("drop the groups");
        rustix::thread::set_thread_res_gid(gid, gid, gid).expect("become the user's group");
        rustix::thread::set_thread_res_uid(uid, uid, uid).expect("become the user");
    }
}

impl Alone {
    /// A path in the case's own folder.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    /// The supervisor's state folder.
    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// The supervisor's root folder.
    pub fn root(&self) -> PathBuf {
        self.path("root")
    }

    /// The supervisor's socket.
    pub fn socket(&self) -> PathBuf {
        self.path("state/dunnaged.sock")
    }

    /// One of the programs under test.
    pub fn program(&self, name: &str) -> PathBuf {
        let path = if self.user.is_some() { self.path("bin").join(name) } else { self.programs.join(name) };
        assert!(path.is_file(), "no {}: build it with scripts/test", path.display());
        path
    }

    /// A folder with busybox and the usual names for it.
    pub fn root_folder(&self, name: &str) -> PathBuf {
        let dir = self.path(name);
        image::unpack(&dir);
        dir
    }

    /// Further flags for the supervisor, from its next start on.
    pub fn flags<S: Into<OsString>>(&self, flags: impl IntoIterator<Item = S>) {
        *self.flags.borrow_mut() = flags.into_iter().map(Into::into).collect();
    }

    /// A socket that the supervisor gets as systemd gives it one (sd_listen_fds(3)), from its next start on.
    pub fn activate_with(&self, listener: Option<UnixListener>) {
        *self.listener.borrow_mut() = listener;
    }

    /// The supervisor's command, not started.
    pub fn daemon(&self) -> Command {
        let program = self.program("dunnaged");
        let mut command =
            self.user.as_ref().map_or_else(|| Command::new(&program), |user| user.introduce(self, &program));
        let shim = self.program("containerd-shim-dunnage-v2");
        command.arg("--state").arg(self.state()).arg("--root").arg(self.root()).arg("--shim").arg(shim);
        command.args(&*self.flags.borrow());
        // What a service manager gives, and no more; the name of the case marks what is started from there.
        command.env_clear().env("PATH", env::var_os("PATH").unwrap_or_default()).env("DUNNAGE_TEST", &self.name);
        command.process_group(0).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
        if let Some(user) = &self.user {
            user.dress(self, &mut command);
        }
        match &*self.listener.borrow() {
            Some(listener) => activated(&command, listener),
            None => command,
        }
    }

    /// Starts a supervisor, and returns when it says that it is ready.
    pub fn start(&self) {
        let ready = self.path(format!("notify-{}", self.next()));
        let notified = UnixDatagram::bind(&ready).expect("listen for readiness");
        fs::set_permissions(&ready, fs::Permissions::from_mode(0o666)).expect("let everybody say so");
        let log = OpenOptions::new().append(true).open(self.log_path()).expect("open the log");
        let mut command = self.daemon();
        let child = command.env("NOTIFY_SOCKET", &ready).stderr(log).spawn().expect("start dunnaged");
        let pid = child.id();
        assert!(self.daemon.borrow_mut().replace(child).is_none(), "a supervisor runs already");
        let deadline = Instant::now() + patience();
        let mut message = [0; 4096];
        loop {
            assert!(readable(notified.as_fd(), deadline), "dunnaged never got ready: {}", self.log().text());
            let length = notified.recv(&mut message).expect("read a notification");
            if message[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                break;
            }
            assert!(process::lives(pid), "dunnaged ended: {}", self.log().text());
        }
        fs::remove_file(ready).expect("remove the notification socket");
    }

    /// The supervisor's pid.
    pub fn pid(&self) -> u32 {
        self.daemon.borrow().as_ref().expect("a supervisor runs").id()
    }

    /// Ends the supervisor with SIGKILL, if one runs.
    pub fn kill(&self) {
        if let Some(mut child) = self.daemon.borrow_mut().take() {
            child.kill().expect("kill dunnaged");
            child.wait().expect("wait for dunnaged");
        }
    }

    /// Ends the supervisor as an operator does.
    pub fn stop(&self) {
        let mut child = self.daemon.borrow_mut().take().expect("a supervisor runs");
        let pidfd = Pidfd::open(child.id()).expect("dunnaged runs");
        process::terminate(child.id());
        let ended = pidfd.ended_within(patience());
        if !ended {
            child.kill().expect("kill dunnaged");
        }
        let status = child.wait().expect("wait for dunnaged");
        assert!(ended && status.success(), "dunnaged ends on SIGTERM: {status}, {}", self.log().text());
    }

    /// What the supervisor has logged.
    pub fn log(&self) -> Transcript {
        Transcript::new(&self.log_path())
    }

    fn log_path(&self) -> PathBuf {
        self.path("dunnaged.log")
    }

    fn next(&self) -> u32 {
        self.scratch.set(self.scratch.get() + 1);
        self.scratch.get()
    }

    /// `dunnage`, in the namespace of the case, not started.
    pub fn client<S: Into<OsString>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.cli().command(words);
        if let Some(user) = &self.user {
            User { known: false, ..user.clone() }.dress(self, &mut command);
        }
        command
    }

    /// What it takes to run `dunnage`, for other threads.
    pub fn cli(&self) -> Cli {
        Cli { program: self.program("dunnage"), socket: self.socket(), namespace: self.name.clone() }
    }

    /// `dunnage`, to its end.
    pub fn dunnage<S: Into<OsString>>(&self, words: impl IntoIterator<Item = S>) -> Outcome {
        let place = self.path(format!("out-{}", self.next()));
        fs::create_dir(&place).expect("make a folder");
        client::output(self.client(words), place)
    }

    /// `dunnage`, which goes on. Its stdin is a pipe.
    pub fn spawn<S: Into<OsString>>(&self, words: impl IntoIterator<Item = S>) -> Foreground {
        let place = self.path(format!("out-{}", self.next()));
        fs::create_dir(&place).expect("make a folder");
        let mut command = self.client(words);
        command.stdin(Stdio::piped());
        client::spawn(command, place)
    }

    /// `dunnage` on a terminal, which goes on.
    pub fn spawn_on<S: Into<OsString>>(&self, terminal: &Terminal, words: impl IntoIterator<Item = S>) -> Foreground {
        let place = self.path(format!("out-{}", self.next()));
        fs::create_dir(&place).expect("make a folder");
        client::spawn_on(self.client(words), terminal, place)
    }

    /// A container in the background that does nothing until it is killed.
    pub fn idle(&self, id: &str) {
        let script = "trap 'exit 15' TERM; while :; do sleep 3600 & wait $!; done";
        self.dunnage(["run", "-d", "--name", id, "--", "sh", "-c", script]).ok();
        let pid = self.container(id).pid;
        process::wait_for_trap(pid);
    }

    /// Asks the supervisor itself.
    pub fn ask<T: Send>(
        &self,
        call: impl AsyncFnOnce(&SupervisorClient, Context) -> ttrpc::Result<T> + Send,
    ) -> ttrpc::Result<T> {
        let (socket, name, user) = (self.socket(), self.name.clone(), self.user.clone());
        let ask = move || {
            let runtime = runtime();
            let client = runtime.block_on(Client::connect(&format!("unix://{}", socket.display())))?;
            let mut context = with_duration(patience());
            context.set("containerd-namespace-ttrpc".to_owned(), vec![name]);
            runtime.block_on(call(&SupervisorClient::new(client), context))
        };
        let Some(user) = user else { return ask() };
        // It answers nobody but its own user, not even root.
        thread::scope(|scope| {
            let asked = scope.spawn(|| {
                user.become_it();
                ask()
            });
            asked.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// All containers, of all namespaces.
    pub fn containers(&self) -> Vec<Container> {
        let request = ListRequest { all_namespaces: true, ..ListRequest::default() };
        self.ask(async |supervisor, context| supervisor.list(context, &request).await).expect("list").containers
    }

    /// A container that must be there.
    pub fn container(&self, id: &str) -> Container {
        self.containers().into_iter().find(|one| one.id == id).unwrap_or_else(|| panic!("no container {id}"))
    }

    /// The events after number `after`, with their numbers, until now.
    pub fn events_after(&self, after: u64) -> Vec<(u64, Event)> {
        let mut request = SubscribeRequest { until_now: true, all_namespaces: true, ..SubscribeRequest::default() };
        request.set_after(after);
        let read = async |supervisor: &SupervisorClient, context: Context| {
            let mut stream = supervisor.subscribe(context, &request).await?;
            let mut events = Vec::new();
            while let Some(message) = stream.recv().await? {
                let number = message.number;
                events.extend(message.envelope.into_option().map(|envelope| (number, event(&envelope))));
            }
            Ok(events)
        };
        self.ask(read).expect("read the events")
    }

    /// All events that are kept.
    pub fn events(&self) -> Vec<Event> {
        self.events_after(0).into_iter().map(|(_, event)| event).collect()
    }

    /// Do not check at the end that no event is missing.
    pub fn some_events_are_gone(&self) {
        self.heard_all.set(false);
    }

    /// Removes what containers there are, and fails unless nothing is left and the events are in order.
    fn judge(&self) {
        for container in self.containers() {
            let namespace = ["--namespace", &container.namespace];
            let removed = self.dunnage(namespace.into_iter().chain(["rm", "--force", &container.id]));
            // The last restart may just have undone its launch.
            let is_there = || self.containers().iter().any(|other| other.id == container.id);
            assert!(removed.code == 0 || !is_there(), "{}: {}", container.id, removed.stderr);
        }
        let residue = self.residue();
        assert!(residue.is_empty(), "left behind:\n{}", residue.join("\n"));
        if self.heard_all.get() {
            let numbered = self.events_after(0);
            let numbers: Vec<u64> = numbered.iter().map(|(number, _)| *number).collect();
            assert!(numbers.is_sorted_by(|a, b| a + 1 == *b), "numbers with gaps or repetitions: {numbers:?}");
            let events: Vec<Event> = numbered.into_iter().map(|(_, event)| event).collect();
            let faults = events::check(&self.name, &events);
            assert!(faults.is_empty(), "events out of order:\n{}", faults.join("\n"));
        }
        self.stop();
        assert!(!self.socket().exists(), "the socket is left behind");
    }

    /// What should not be there when no container is.
    pub fn residue(&self) -> Vec<String> {
        let daemon: Vec<u32> = self.daemon.borrow().iter().map(Child::id).collect();
        let mut found = residue::find_named(&self.name, &daemon);
        let others = residue::left(residue::grace(), || {
            let mut found = self.users_processes();
            found.retain(|process| !daemon.contains(&process.pid));
            found
        });
        found.extend(others.iter().map(ToString::to_string));
        let folders = ["state/book", "state/bundles", "state/runtime", "state/s", "state/unheard", "root/logs"];
        for folder in folders {
            found.extend(files(&self.path(folder)).iter().map(|path| format!("file {}", path.display())));
        }
        found
    }

    /// Puts our programs into the folder `bin`, where others can execute them whoever's the checkout is.
    pub fn copy_programs(&self) {
        fs::create_dir(self.path("bin")).expect("make a folder");
        for name in ["dunnage", "dunnaged", "containerd-shim-dunnage-v2"] {
            let from = self.programs.join(name);
            // By another process: nothing that we start meanwhile holds it open for writing, or it could not be executed.
            let copied = Command::new("cp").arg(&from).arg(self.path("bin").join(name)).status().expect("run cp");
            assert!(copied.success(), "cannot copy {}", from.display());
        }
    }

    /// The processes of a user whom only this world has.
    fn users_processes(&self) -> Vec<process::Process> {
        let own = self.user.as_ref().filter(|user| user.runtime_dir.is_none());
        own.map(|user| process::of_user(user.id)).unwrap_or_default()
    }

    fn record(&self) -> String {
        let mut text = format!("--- dunnaged\n{}\n", self.log().text());
        for process in process::carrying(&self.name) {
            text.push_str(&format!("{process}\n"));
        }
        text
    }
}

/// How to reach a supervisor, from any thread.
#[derive(Clone, Debug)]
pub struct Cli {
    program: PathBuf,
    socket: PathBuf,
    namespace: String,
}

impl Cli {
    /// `dunnage`, in the namespace of the case, not started.
    pub fn command<S: Into<OsString>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words.into_iter().map(Into::into)).stdin(Stdio::null());
        command.env("DUNNAGE_ADDRESS", &self.socket).env("DUNNAGE_NAMESPACE", &self.namespace);
        command
    }

    /// Adds the events to `heard` as they come, each once, over any number of lives of the supervisor, until `enough`.
    pub fn follow(&self, heard: &mut Vec<(u64, Event)>, enough: impl Fn(&[(u64, Event)]) -> bool) {
        let runtime = runtime();
        while !enough(heard) {
            // Fails while there is no supervisor, and when it is killed.
            drop(runtime.block_on(self.hear(heard, &enough)));
            // Nobody tells when the next one listens.
            thread::sleep(Duration::from_millis(5));
        }
    }

    async fn hear(&self, heard: &mut Vec<(u64, Event)>, enough: impl Fn(&[(u64, Event)]) -> bool) -> ttrpc::Result<()> {
        let client = Client::connect(&format!("unix://{}", self.socket.display())).await?;
        let mut request = SubscribeRequest { all_namespaces: true, ..SubscribeRequest::default() };
        request.set_after(heard.last().map_or(0, |(number, _)| *number));
        let mut stream = SupervisorClient::new(client).subscribe(Context::default(), &request).await?;
        while !enough(heard) {
            // Now and then, to look whether it is enough.
            let Ok(message) = timeout(Duration::from_millis(50), stream.recv()).await else { continue };
            let Some(message) = message? else { return Ok(()) };
            assert_eq!(message.lost, 0, "events are gone");
            heard.extend(message.envelope.into_option().map(|envelope| (message.number, event(&envelope))));
        }
        Ok(())
    }
}

/// The same command with the socket in descriptor 3; only a shell knows the number of the process before it is one.
fn activated(command: &Command, listener: &UnixListener) -> Command {
    let mut shell = Command::new("sh");
    let script = "exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$0\" \"$@\"";
    shell.args(["-c", script]).arg(command.get_program()).args(command.get_args()).env_clear();
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.process_group(0).current_dir("/").stdin(OwnedFd::from(listener.try_clone().expect("duplicate a socket")));
    shell.stdout(Stdio::null());
    shell
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a tokio runtime")
}

/// All files and sockets below a folder; empty folders are nothing.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            _ => found.push(entry.path()),
        }
    }
    found
}

/// An event as the recorder of containerd's events would have read it.
fn event(envelope: &forward::Envelope) -> Event {
    fn read<M: Payload>(envelope: &forward::Envelope) -> M {
        let message = unpack(&envelope.event).expect("a message of the right type");
        message.unwrap_or_else(|| panic!("{} with {}", envelope.topic, envelope.event.type_url))
    }
    let message = match envelope.topic.rsplit('/').next() {
        Some("create") => json!({ "container_id": read::<wire::TaskCreate>(envelope).container_id }),
        Some("start") => json!({ "container_id": read::<wire::TaskStart>(envelope).container_id }),
        Some("oom") => json!({ "container_id": read::<wire::TaskOOM>(envelope).container_id }),
        Some("paused") => json!({ "container_id": read::<wire::TaskPaused>(envelope).container_id }),
        Some("resumed") => json!({ "container_id": read::<wire::TaskResumed>(envelope).container_id }),
        Some("exec-added") => {
            let event: wire::TaskExecAdded = read(envelope);
            json!({ "container_id": event.container_id, "exec_id": event.exec_id })
        }
        Some("exec-started") => {
            let event: wire::TaskExecStarted = read(envelope);
            json!({ "container_id": event.container_id, "exec_id": event.exec_id })
        }
        Some("exit") => {
            let event: wire::TaskExit = read(envelope);
            json!({ "container_id": event.container_id, "id": event.id, "exit_status": event.exit_status })
        }
        Some("delete") => {
            let event: wire::TaskDelete = read(envelope);
            json!({ "container_id": event.container_id, "id": event.id, "exit_status": event.exit_status })
        }
        _ => json!({}),
    };
    Event { namespace: envelope.namespace.clone(), topic: envelope.topic.clone(), message }
}

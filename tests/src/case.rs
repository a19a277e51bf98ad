//! One test: its containerd, what it runs there, and the judgement at the end.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    env,
    ffi::OsString,
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    Foreground, IMAGE, Outcome, Run, Subject, cgroup,
    cgroup::Cgroup,
    client,
    daemon::{Daemon, Layout},
    events::{self, Event},
    image, process, residue,
    shim::Shim,
    subject::find_program,
    wait::Transcript,
};

/// One test's world.
pub struct Case {
    /// What is under test.
    pub subject: Subject,
    /// The containerd namespace, which nothing else on the machine has: also the name of the cgroups above the containers.
    pub name: String,
    layout: Layout,
    daemon: RefCell<Daemon>,
    descriptors: RefCell<BTreeMap<String, usize>>,
    /// The ids that had a shim, or the names of groups of them: each may have left a socket.
    ids: RefCell<BTreeSet<String>>,
    scratch: Cell<u32>,
    heard_all: Cell<bool>,
}

/// Runs `test` in a world of its own, and judges what it left. Skips, and says so, where containers cannot be run at
/// all, unless `ROOT_TESTS=must` forbids it.
pub fn case(test: impl FnOnce(&Case)) {
    let name = thread::current().name().unwrap_or("test").to_owned();
    let Some(subject) = subject(&name) else { return };
    let dir = tempfile::Builder::new().prefix("dunnage-").tempdir().expect("make the folder of the case");
    let case = Case::new(&dir, subject);
    let result = catch_unwind(AssertUnwindSafe(|| {
        test(&case);
        case.remove_all();
        case.judge();
        case.daemon.borrow_mut().stop();
    }));
    let ids: Vec<_> = case.ids.borrow().iter().cloned().collect();
    let (layout, name, record) = (case.layout.clone(), case.name.clone(), case.record());
    drop(case);
    residue::sweep(&layout, &name, &ids);
    if let Err(panic) = result {
        println!("{record}");
        drop(dir.close());
        resume_unwind(panic);
    }
    dir.close().expect("remove the folder of the case");
}

/// What is under test; none, and it is said so, where containers cannot be run at all.
pub(crate) fn subject(test: &str) -> Option<Subject> {
    match Subject::from_environment().and_then(|subject| able().map(|()| subject)) {
        Ok(subject) => Some(subject),
        Err(reason) if env::var_os("ROOT_TESTS").is_some_and(|value| value == "must") => {
            panic!("{test} cannot run, and ROOT_TESTS=must: {reason}")
        }
        Err(reason) => {
            say_skipped(test, &reason);
            None
        }
    }
}

/// For a promise that only our shim makes: runs as [`case`], and against a reference says that it did not.
pub fn case_of_ours(test: impl FnOnce(&Case)) {
    match Subject::from_environment() {
        Ok(subject) if !subject.is_ours() => {
            say_skipped(
                thread::current().name().unwrap_or("test"),
                &format!("{} does not promise this", subject.runtime),
            );
        }
        _ => case(test),
    }
}

/// For what systemd does: runs as [`case_of_ours`] where it runs the host.
pub fn case_under_systemd(test: impl FnOnce(&Case)) {
    if under_systemd() {
        case_of_ours(test);
    }
}

/// Whether systemd runs the host; if not, it is said that the test is skipped. `DUNNAGE_TEST_SYSTEMD=must` says that it does.
pub fn under_systemd() -> bool {
    if Path::new("/run/systemd/system").is_dir() {
        return true;
    }
    let must = env::var_os("DUNNAGE_TEST_SYSTEMD").is_some_and(|value| value == "must");
    assert!(!must, "DUNNAGE_TEST_SYSTEMD=must, and systemd does not run this host");
    say_skipped(thread::current().name().unwrap_or("test"), "systemd does not run this host");
    false
}

/// Says it past the test runner, which keeps the output of tests that pass to itself.
pub(crate) fn say_skipped(test: &str, reason: &str) {
    writeln!(io::stderr(), "SKIPPED {test}: {reason}").expect("write to stderr");
}

/// Whether containers can be run here at all.
fn able() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("needs root".to_owned());
    }
    ["containerd", "ctr", "busybox"].into_iter().try_for_each(|name| find_program(name).map(drop))
}

impl Case {
    fn new(dir: &TempDir, subject: Subject) -> Self {
        // Root of a user namespace is somebody else out here, and must get through.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).expect("open the folder of the case");
        let layout = Layout { dir: dir.path().to_owned() };
        let name = dir.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let daemon = Daemon::new(layout.clone(), &subject);
        let case = Self {
            subject,
            name,
            layout,
            daemon: RefCell::new(daemon),
            descriptors: RefCell::default(),
            ids: RefCell::default(),
            scratch: Cell::new(0),
            heard_all: Cell::new(true),
        };
        let archive = case.path("image.tar");
        fs::write(&archive, image::archive()).expect("write the image");
        case.ctr(["image".as_ref(), "import".as_ref(), archive.as_os_str()]).ok();
        fs::remove_file(archive).expect("remove the image");
        case.remember_descriptors();
        case
    }

    /// A path in the case's own folder.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.layout.dir.join(name)
    }

    /// Writes a file into the case's own folder.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).expect("write a file");
        path
    }

    /// An executable script in the case's own folder.
    pub fn script(&self, name: &str, lines: &str) -> PathBuf {
        let path = self.file(name, format!("#!/bin/sh\n{lines}\n"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make a script executable");
        path
    }

    /// A fresh folder for the output of one command.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.scratch.set(self.scratch.get() + 1);
        let path = self.path(format!("out-{}", self.scratch.get()));
        fs::create_dir(&path).expect("make a folder");
        path
    }

    pub(crate) fn client(&self) -> Command {
        let mut command = Command::new(find_program("ctr").expect("ctr"));
        command.arg("--address").arg(self.layout.address()).args(["--namespace", &self.name]);
        command
    }

    /// Any `ctr` command, to its end.
    pub fn ctr<S: Into<OsString>>(&self, words: impl IntoIterator<Item = S>) -> Outcome {
        let mut command = self.client();
        command.args(words.into_iter().map(Into::into));
        client::output(command, self.scratch())
    }

    /// `ctr run` of the image: in the foreground the container is removed at its end, detached it stays.
    pub fn run<S: Into<OsString>>(&self, id: &str, command: impl IntoIterator<Item = S>) -> Run<'_> {
        let run = self.runner(id, &["run"], &["--rm"]).flags(["--runtime", &self.subject.runtime]);
        run.arguments([IMAGE, id]).arguments(command)
    }

    /// `ctr run --config`: the container that `spec` describes. Its root is [`Self::root_folder`], or what it says.
    pub fn run_spec(&self, id: &str, spec: &Value) -> Run<'_> {
        let file = self.scratch().join("config.json");
        fs::write(&file, spec.to_string()).expect("write a spec");
        let run = self.runner(id, &["run"], &["--rm"]).flags(["--runtime", &self.subject.runtime]);
        run.flags(["--config".into(), file.into_os_string()]).arguments([id])
    }

    /// `ctr task exec`.
    pub fn exec<S: Into<OsString>>(&self, id: &str, exec: &str, command: impl IntoIterator<Item = S>) -> Run<'_> {
        let run = self.runner(id, &["task", "exec"], &[]).flags(["--exec-id", exec]);
        run.arguments([id]).arguments(command)
    }

    /// `ctr task attach`.
    pub fn attach(&self, id: &str) -> Foreground {
        Run::new(self, &["task", "attach"], &[]).arguments([id]).spawn()
    }

    fn runner(&self, id: &str, verb: &'static [&'static str], last: &'static [&'static str]) -> Run<'_> {
        self.may_leave_socket(id);
        Run::new(self, verb, last).flags(["--fifo-dir".into(), self.layout.fifos().into_os_string()])
    }

    /// Says that a shim may be found under the name `id`, so that its socket is looked for at the end.
    pub fn may_leave_socket(&self, id: &str) {
        self.ids.borrow_mut().insert(id.to_owned());
    }

    /// Starts a container in the background that does nothing until it is killed; the pid of its process.
    pub fn idle(&self, id: &str, flags: &[&str]) -> u32 {
        // The shell, being process 1, would ignore SIGTERM without the trap.
        self.run(id, ["sh", "-c", "trap 'exit 15' TERM; while :; do sleep 3600 & wait $!; done"])
            .flags(flags)
            .detached()
            .ok();
        let pid = self.pid(id);
        process::wait_for_trap(pid);
        pid
    }

    /// The pid of a task's first process.
    pub fn pid(&self, id: &str) -> u32 {
        self.task(id).unwrap_or_else(|| panic!("no task {id}")).0
    }

    /// The pid and the status (as `RUNNING`) of a task.
    pub fn task(&self, id: &str) -> Option<(u32, String)> {
        let list = self.ctr(["task", "ls"]);
        list.ok().lines().find_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some(id)).then_some(())?;
            Some((words.next()?.parse().ok()?, words.next()?.to_owned()))
        })
    }

    /// Kills a container if it runs, and removes it.
    pub fn remove(&self, id: &str) {
        self.ctr(["task", "kill", "--signal", "SIGKILL", "--all", id]);
        if self.task(id).is_some() {
            crate::wait::eventually("the task to stop", || {
                self.task(id).is_none_or(|(_, status)| status == "STOPPED" || status == "CREATED").then_some(())
            });
            // The exit code of the command is the container's.
            let removed = self.ctr(["task", "rm", "--force", id]);
            assert!(self.task(id).is_none(), "remove the task {id}: {}", removed.stderr);
        }
        self.ctr(["container", "rm", id]).ok();
    }

    fn remove_all(&self) {
        for id in self.ctr(["container", "ls", "--quiet"]).ok().lines() {
            self.remove(id);
        }
    }

    /// Asks the shim of a container itself.
    pub fn shim(&self, id: &str) -> Shim {
        Shim::connect(&self.bundle(id))
    }

    /// The bundle of a container.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.layout.state().join("io.containerd.runtime.v2.task").join(&self.name).join(id)
    }

    /// The socket that the shim of `id` must have.
    pub fn socket(&self, id: &str) -> PathBuf {
        residue::socket(&self.layout.address(), &self.name, id)
    }

    /// Where shims send their events.
    pub fn events_address(&self) -> PathBuf {
        self.layout.events_address()
    }

    /// The cgroup `ctr` gives a container.
    pub fn cgroup(&self, id: &str) -> Cgroup {
        Cgroup::at(&format!("/{}/{id}", self.name))
    }

    /// A folder with the image's files, for [`Self::run_spec`].
    pub fn root_folder(&self, name: &str) -> PathBuf {
        let dir = self.path(name);
        image::unpack(&dir);
        dir
    }

    /// The spec `ctr` would make for the image, running `command` in the folder `root`.
    pub fn spec(&self, id: &str, root: &Path, command: &[&str]) -> Value {
        let mut spec: Value = serde_json::from_str(self.ctr(["oci", "spec"]).ok()).expect("the default spec");
        spec["root"] = serde_json::json!({ "path": root });
        spec["process"]["args"] = command.into();
        spec["process"]["env"] = ["PATH=/bin"].as_slice().into();
        spec["linux"]["cgroupsPath"] = format!("/{}/{id}", self.name).into();
        spec
    }

    /// The events published until now.
    pub fn events(&self) -> Vec<Event> {
        self.daemon.borrow_mut().drain_events();
        Event::parse_all(&Transcript::new(&self.layout.events()).text())
    }

    /// Waits for an event of this case.
    pub fn event(&self, what: &str, is: impl Fn(&Event) -> bool) -> Event {
        Transcript::new(&self.layout.events()).find(what, |text| {
            Event::parse_all(text).into_iter().find(|event| event.namespace == self.name && is(event))
        })
    }

    /// Waits for the exit of a process; its exit status.
    pub fn exit_status(&self, container: &str, id: &str) -> u64 {
        self.event(&format!("the exit of {id}"), |event| event.is_exit_of(container, id)).number("exit_status")
    }

    /// What containerd has logged, and the shims through it.
    pub fn log(&self) -> Transcript {
        Transcript::new(&self.layout.log())
    }

    /// The pid of the case's containerd.
    pub fn containerd(&self) -> u32 {
        self.daemon.borrow().pid()
    }

    /// Ends containerd with SIGKILL. Until it is started again nobody hears events.
    pub fn kill_containerd(&self) {
        self.heard_all.set(false);
        self.daemon.borrow_mut().kill();
    }

    /// Starts containerd again after [`Self::kill_containerd`].
    pub fn start_containerd(&self) {
        self.daemon.borrow_mut().start();
    }

    /// Takes the present descriptors of containerd as those it may have at the end.
    pub fn remember_descriptors(&self) {
        *self.descriptors.borrow_mut() = residue::kinds_of_descriptors(self.containerd(), &self.name);
    }

    /// What should not be there, once what is ending has ended.
    pub fn residue(&self) -> Vec<String> {
        self.residue_after(residue::grace())
    }

    /// What should not be there, for things that have `grace` to go.
    pub fn residue_after(&self, grace: Duration) -> Vec<String> {
        let daemon = self.daemon.borrow();
        residue::find(&residue::Expected {
            layout: &self.layout,
            name: &self.name,
            ids: self.ids.borrow().iter().cloned().collect(),
            ours: daemon.pids(),
            containerd: daemon.pid(),
            descriptors: &self.descriptors.borrow(),
            grace,
        })
    }

    /// Fails unless nothing is left and the events are in order.
    fn judge(&self) {
        let residue = self.residue();
        assert!(residue.is_empty(), "left behind:\n{}", residue.join("\n"));
        if self.heard_all.get() {
            let faults = events::check(&self.name, &self.events());
            assert!(faults.is_empty(), "events out of order:\n{}", faults.join("\n"));
        }
    }

    /// What there is to read about a test that failed.
    fn record(&self) -> String {
        let text = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
        let log = text(self.layout.log());
        let log: Vec<_> = log.lines().filter(|line| !line.contains("loading plugin")).collect();
        let events = text(self.layout.events());
        let events: Vec<_> = events.lines().filter(|line| line.contains(" /tasks/")).collect();
        let groups: Vec<_> = cgroup::carrying(&self.name).iter().map(|dir| dir.display().to_string()).collect();
        let processes: Vec<_> = process::carrying(&self.name).iter().map(ToString::to_string).collect();
        [
            ("containerd and its shims", log.join("\n")),
            ("events", events.join("\n")),
            ("processes", processes.join("\n")),
            ("cgroups", groups.join("\n")),
        ]
        .map(|(title, text)| format!("--- {title}\n{text}\n"))
        .concat()
    }
}

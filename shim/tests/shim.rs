//! The running shim, driven over its socket as containerd does, with a containerd that only takes events.
//!
//! Containers need root, and a program to run: a busybox that is linked statically.

#![expect(clippy::unwrap_used, reason = "a test ends at its first surprise")]

use std::{
    fs::{self, OpenOptions},
    future::Future,
    io::Read as _,
    os::unix::{
        fs::{FileExt as _, OpenOptionsExt as _},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, geteuid, mkfifo},
};
use protobuf::{Message as _, MessageField};
use runtime_v2_api::{
    Any, Empty, events,
    forward::ForwardRequest,
    forward_ttrpc::{Events, create_events},
    pack, runc,
    task::{
        ConnectRequest, CreateTaskRequest, DeleteRequest, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest,
        ShutdownRequest, StartRequest, StateRequest, StatsRequest, WaitRequest,
    },
    task_v2::TaskClient,
    topic, types,
};
use serde_json::json;
use tempfile::TempDir;
use tokio::{runtime::Builder, sync::mpsc, time::timeout};
use ttrpc::{
    Code, Error,
    r#async::{Client, Server, TtrpcContext},
    context::{Context, with_duration},
};

#[path = "shim/supervised.rs"]
mod supervised;

const BUSYBOX: &str = "/usr/bin/busybox";
/// Long enough for a machine that is busy with something else, or interpreted (scripts/vm).
const PATIENCE: Duration = Duration::from_secs(60);

/// Takes events, and passes them on to the test.
struct Containerd(mpsc::UnboundedSender<supervised::Heard>);

#[async_trait::async_trait]
impl Events for Containerd {
    async fn forward(&self, context: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        self.0.send((context.metadata.clone(), request)).unwrap();
        Ok(Empty::new())
    }
}

/// A shim, and what it needs to run containers.
struct Shim {
    folder: TempDir,
    process: Child,
    task: TaskClient,
    heard: mpsc::UnboundedReceiver<supervised::Heard>,
    containerd: Server,
}

impl Shim {
    async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), |_, _| {}).await
    }

    async fn start_in(folder: TempDir, configure: impl FnOnce(&mut Command, &Path)) -> Self {
        let bin = folder.path().join("rootfs/bin");
        for name in ["bin", "proc", "dev/pts", "sys"] {
            fs::create_dir_all(folder.path().join("rootfs").join(name)).unwrap();
        }
        // By a process of its own: a child that another test makes meanwhile would have it open for writing, and nobody can
        // execute it then.
        assert!(Command::new("cp").arg(BUSYBOX).arg(&bin).status().unwrap().success());

        let events_socket = folder.path().join("containerd.sock");
        let (tell, heard) = mpsc::unbounded_channel();
        let mut containerd = Server::new()
            .bind(&format!("unix://{}", events_socket.display()))
            .unwrap()
            .register_service(create_events(Arc::new(Containerd(tell))));
        containerd.start().await.unwrap();

        let socket = folder.path().join("shim.sock");
        let mut command = Command::new(env!("CARGO_BIN_EXE_containerd-shim-dunnage-v2"));
        command
            .args(["-namespace", "tests", "-address", "/run/none.sock", "-id", "pod", "-socket"])
            .arg(&socket)
            .current_dir(folder.path())
            .env("TTRPC_ADDRESS", &events_socket)
            .env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}", folder.path().join("bus").display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        configure(&mut command, folder.path());
        let process = command.spawn().unwrap();
        let address = format!("unix://{}", socket.display());
        let client = loop {
            match Client::connect(&address).await {
                Ok(client) => break client,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        Self { folder, process, task: TaskClient::new(client), heard, containerd }
    }

    /// A second connection.
    async fn connection(&self) -> TaskClient {
        let socket = self.folder.path().join("shim.sock");
        TaskClient::new(Client::connect(&format!("unix://{}", socket.display())).await.unwrap())
    }

    /// A name that no other test uses: cgroups are everybody's.
    fn id(&self, name: &str) -> String {
        let folder = self.folder.path().file_name().unwrap().to_str().unwrap();
        format!("{}-{name}", folder.trim_start_matches('.'))
    }

    /// A bundle whose program is this shell script.
    fn bundle(&self, name: &str, script: &str) -> CreateTaskRequest {
        let bundle = self.folder.path().join(name);
        fs::create_dir(&bundle).unwrap();
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {"args": ["/bin/busybox", "sh", "-c", script], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "root": {"path": self.folder.path().join("rootfs"), "readonly": true},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]},
            ],
            "linux": {
                "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}],
                "cgroupsPath": format!("/dunnage-shim-tests/{}", self.id(name)),
            },
        });
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        CreateTaskRequest { id: self.id(name), bundle: bundle.to_str().unwrap().into(), ..Default::default() }
    }

    /// The same, in a cgroup that systemd is to make.
    fn bundle_of_systemd(&self, name: &str, script: &str) -> CreateTaskRequest {
        let request = self.bundle(name, script);
        let config = self.folder.path().join(name).join("config.json");
        let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        spec["linux"]["cgroupsPath"] = format!("dunnage.slice:tests:{}", request.id).into();
        fs::write(config, spec.to_string()).unwrap();
        let options = pack(&runc::Options { systemd_cgroup: true, ..Default::default() }).unwrap();
        CreateTaskRequest { options: MessageField::some(options), ..request }
    }

    fn fifo(&self, name: &str) -> String {
        let path = self.folder.path().join(name);
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        path.to_str().unwrap().into()
    }

    async fn run(&self, request: &CreateTaskRequest) -> u32 {
        let pid = self.task.create(context(), request).await.unwrap().pid;
        let start = StartRequest { id: request.id.clone(), ..Default::default() };
        assert_eq!(self.task.start(context(), &start).await.unwrap().pid, pid);
        pid
    }

    async fn wait(&self, id: &str, exec_id: &str) -> u32 {
        let wait = WaitRequest { id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        let waited = self.task.wait(context(), &wait).await.unwrap();
        assert!(waited.exited_at.seconds > 1_700_000_000);
        waited.exit_status
    }

    async fn delete(&self, id: &str, exec_id: &str) -> u32 {
        let delete = DeleteRequest { id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        self.task.delete(context(), &delete).await.unwrap().exit_status
    }

    async fn kill(&self, id: &str) {
        let kill = KillRequest { id: id.into(), signal: 9, ..Default::default() };
        self.task.kill(context(), &kill).await.unwrap();
    }

    async fn state(&self, id: &str, exec_id: &str) -> Result<types::Status, Error> {
        let state = StateRequest { id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        Ok(self.task.state(context(), &state).await?.status.unwrap())
    }

    /// The next event, as its topic and message.
    async fn event(&mut self) -> (String, Any) {
        let envelope = self.heard.recv().await.unwrap().1.envelope.unwrap();
        assert_eq!(envelope.namespace, "tests");
        (envelope.topic, envelope.event.unwrap())
    }

    async fn topics(&mut self, expected: &[&str]) {
        for topic in expected {
            assert_eq!(self.event().await.0, *topic);
        }
    }

    /// Asks it to leave, and waits until it has: with its socket, and with the cgroups of all its containers.
    async fn leave(mut self) {
        self.task.shutdown(context(), &ShutdownRequest { id: "pod".into(), ..Default::default() }).await.unwrap();
        let status = loop {
            match self.process.try_wait().unwrap() {
                Some(status) => break status,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        assert!(status.success(), "{status}");
        assert!(!self.folder.path().join("shim.sock").exists());
        let ours = self.id("");
        // On v2 the hierarchy itself, elsewhere the folder of all hierarchies.
        let top = PathBuf::from("/sys/fs/cgroup");
        let inner = fs::read_dir(&top).unwrap().map(|hierarchy| hierarchy.unwrap().path());
        for root in inner.chain([top.clone()]) {
            let groups = fs::read_dir(root.join("dunnage-shim-tests")).into_iter().flatten();
            let left: Vec<PathBuf> = groups
                .map(|group| group.unwrap())
                .filter(|group| group.file_name().to_str().unwrap().starts_with(&ours))
                .map(|group| group.path())
                .collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        // A test that failed; the container's processes then go with their cgroup's last look.
        if let Ok(None) = self.process.try_wait() {
            self.process.kill().unwrap();
            self.process.wait().unwrap();
        }
    }
}

fn context() -> Context {
    with_duration(PATIENCE)
}

/// Runs the test if it can be run here.
fn test<F: Future<Output = ()>>(body: impl FnOnce() -> F) {
    let linked = |path: &str| fs::read(path).is_ok_and(|elf| elf.windows(6).any(|word| word == b"/lib64"));
    let reason = if !geteuid().is_root() {
        "it needs root"
    } else if !PathBuf::from(BUSYBOX).exists() || linked(BUSYBOX) {
        "it needs a busybox that is linked statically"
    } else {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(async { timeout(4 * PATIENCE, body()).await.expect("must not hang") });
    };
    assert!(std::env::var_os("ROOT_TESTS").is_none_or(|must| must != "must"), "cannot be tested: {reason}");
    eprintln!("skipped: {reason}");
}

fn status<T: std::fmt::Debug>(refused: Result<T, Error>) -> (Code, String) {
    match refused {
        Err(Error::RpcStatus(status)) => (status.code.unwrap(), status.message),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_systemd_that_does_not_answer_holds_up_nobody_else() {
    test(|| async {
        let shim = Shim::start().await;
        let listener = UnixListener::bind(shim.folder.path().join("bus")).unwrap();
        let held = shim.bundle_of_systemd("held", "exit 0");
        let (task, request) = (shim.connection().await, held.clone());
        let create = tokio::spawn(async move { task.create(context(), &request).await });
        // It is under way: it has connected, and waits for an answer.
        listener.set_nonblocking(true).unwrap();
        let silent = loop {
            match listener.accept() {
                Ok((connection, _)) => break connection,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let other = shim.bundle("other", "exit 4");
        shim.run(&other).await;
        assert_eq!(shim.wait(&other.id, "").await, 4);
        assert_eq!(shim.delete(&other.id, "").await, 4);
        assert!(!create.is_finished(), "it was not held up at all");
        // The client has less patience than the shim.
        create.abort();
        assert!(create.await.unwrap_err().is_cancelled());
        // What there was of it goes: the name is free again when nothing is left.
        while shim.folder.path().join("held/init.pid").exists() || is_known(&shim, &held.id).await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop((silent, listener));
        // A file refuses who connects, whoever else has the listener for a moment: a process that another test starts.
        fs::remove_file(shim.folder.path().join("bus")).unwrap();
        fs::write(shim.folder.path().join("bus"), "").unwrap();
        let (code, text) = status(shim.task.create(context(), &held).await);
        assert_eq!(code, Code::UNKNOWN);
        assert!(text.contains("start unit tests-") && text.contains("there is no systemd to ask ("), "{text}");
        shim.leave().await;
    });
}

/// Whether the shim has something under this name, if only on its way.
async fn is_known(shim: &Shim, id: &str) -> bool {
    let request = CreateTaskRequest { id: id.into(), bundle: "/nowhere".into(), ..Default::default() };
    status(shim.task.create(context(), &request).await).0 == Code::ALREADY_EXISTS
}

#[test]
fn a_container_lives_and_its_events_come_in_order() {
    test(|| async {
        let mut shim = Shim::start().await;
        let request = shim.bundle("c", "exit 3");
        let pid = shim.run(&request).await;
        assert_eq!(shim.wait(&request.id, "").await, 3);
        assert_eq!(shim.state(&request.id, "").await.unwrap(), types::Status::STOPPED);
        // A container without processes would be taken for a leftover, and its exit lost.
        let pids = PidsRequest { id: request.id.clone(), ..Default::default() };
        assert_eq!(shim.task.pids(context(), &pids).await.unwrap().processes[0].pid, pid);
        assert_eq!(shim.delete(&request.id, "").await, 3);
        shim.topics(&[topic::TASK_CREATE, topic::TASK_START]).await;
        let (topic, event) = shim.event().await;
        assert_eq!(topic, topic::TASK_EXIT);
        let exit = events::TaskExit::parse_from_bytes(&event.value).unwrap();
        assert_eq!((exit.container_id, exit.id, exit.pid, exit.exit_status), (request.id.clone(), request.id, pid, 3));
        let (topic, event) = shim.event().await;
        assert_eq!(topic, topic::TASK_DELETE);
        let delete = events::TaskDelete::parse_from_bytes(&event.value).unwrap();
        assert_eq!((delete.id, delete.exited_at), (String::new(), exit.exited_at));
        shim.leave().await;
    });
}

fn exec_request(id: &str, exec_id: &str, script: &str) -> ExecProcessRequest {
    let process = json!({"args": ["/bin/busybox", "sh", "-c", script], "cwd": "/", "user": {"uid": 0, "gid": 0}});
    let spec = Any { value: process.to_string().into(), ..Default::default() };
    let (id, exec_id) = (id.to_owned(), exec_id.to_owned());
    ExecProcessRequest { id, exec_id, spec: MessageField::some(spec), ..Default::default() }
}

#[test]
fn execs_of_a_container_end_before_it() {
    test(|| async {
        let mut shim = Shim::start().await;
        let request = shim.bundle("c", "while :; do /bin/busybox sleep 1; done");
        let id = request.id.clone();
        shim.run(&request).await;
        let exec = |exec_id: &str, script: &str| exec_request(&id, exec_id, script);
        let start = |exec_id: &str| StartRequest { id: id.clone(), exec_id: exec_id.into(), ..Default::default() };
        for (exec_id, script) in [("short", "exit 7"), ("long", "/bin/busybox sleep 1000")] {
            shim.task.exec(context(), &exec(exec_id, script)).await.unwrap();
            shim.task.start(context(), &start(exec_id)).await.unwrap();
        }
        assert_eq!(status(shim.task.exec(context(), &exec("long", "")).await).0, Code::ALREADY_EXISTS);
        assert_eq!(shim.wait(&id, "short").await, 7);
        assert_eq!(shim.delete(&id, "short").await, 7);
        let gone = status(shim.state(&id, "short").await);
        assert_eq!(gone, (Code::NOT_FOUND, "process does not exist short: not found".into()));

        let threads = fs::read_dir(format!("/proc/{}/task", shim.process.id())).unwrap().count();
        assert_eq!(threads, 1, "the shim forks");

        shim.kill(&id).await;
        assert_eq!(shim.wait(&id, "").await, 137);
        assert_eq!(shim.state(&id, "long").await.unwrap(), types::Status::STOPPED);
        assert_eq!(shim.delete(&id, "").await, 137);
        let mut exits = Vec::new();
        while exits.last() != Some(&id) {
            let (topic, event) = shim.event().await;
            if topic == topic::TASK_EXIT {
                exits.push(events::TaskExit::parse_from_bytes(&event.value).unwrap().id);
            }
        }
        assert_eq!(exits, ["short", "long", &id]);
        shim.topics(&[topic::TASK_DELETE]).await;
        shim.leave().await;
    });
}

#[test]
fn a_create_that_hangs_holds_up_nobody() {
    test(|| async {
        let shim = Shim::start().await;
        let path = shim.fifo("out");
        let late = CreateTaskRequest { stdout: path.clone(), ..shim.bundle("late", "echo hello") };
        let create = shim.task.create(context(), &late);
        let meanwhile = async {
            let request = shim.bundle("c", "exit 0");
            shim.run(&request).await;
            assert_eq!(shim.wait(&request.id, "").await, 0);
            assert_eq!(shim.delete(&request.id, "").await, 0);
            assert_eq!(status(shim.state(&late.id, "").await).0, Code::NOT_FOUND);
            // Now the client opens its end, and the other Create goes on.
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap()
        };
        let (created, mut output) = tokio::join!(create, meanwhile);
        created.unwrap();
        let start = StartRequest { id: late.id.clone(), ..Default::default() };
        shim.task.start(context(), &start).await.unwrap();
        assert_eq!(shim.wait(&late.id, "").await, 0);
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello\n");
        shim.delete(&late.id, "").await;
        shim.leave().await;
    });
}

#[test]
fn a_create_whose_client_leaves_is_undone() {
    test(|| async {
        let mut shim = Shim::start().await;
        let request = CreateTaskRequest { stdout: shim.fifo("out"), ..shim.bundle("c", "exit 0") };
        let client = shim.connection().await;
        let gave_up = client.create(with_duration(Duration::from_millis(200)), &request).await;
        assert!(gave_up.is_err(), "{gave_up:?}");
        drop(client);
        // The same name is free again, and whatever was made before is gone.
        let created = loop {
            let again = CreateTaskRequest { stdout: String::new(), ..request.clone() };
            match shim.task.create(context(), &again).await {
                Ok(created) => break created.pid,
                refused => assert_eq!(status(refused).0, Code::ALREADY_EXISTS),
            }
        };
        assert!(created > 0);
        assert_eq!(shim.delete(&request.id, "").await, 137, "killed at its gate");
        shim.topics(&[topic::TASK_CREATE, topic::TASK_EXIT, topic::TASK_DELETE]).await;
        shim.leave().await;
    });
}

#[test]
fn a_copy_that_failed_before_the_shim_heard_of_it_fails_its_create() {
    test(|| async {
        let shim = Shim::start().await;
        let mut holder = Command::new(BUSYBOX);
        let mut holder = holder.args(["unshare", "-U", "-r", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
        let of_holder = |file: &str| PathBuf::from(format!("/proc/{}/{file}", holder.id()));
        while fs::read_to_string(of_holder("gid_map")).unwrap().split_whitespace().ne(["0", "0", "1"]) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let pid = Pid::from_raw(shim.process.id().cast_signed());
        let children = fs::File::open(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        for attempt in 0..10 {
            // In a user namespace that exists, in others of its own: it goes on in a copy, of which a message tells.
            let name = format!("c{attempt}");
            let request = shim.bundle(&name, "exit 0");
            let config = shim.folder.path().join(name).join("config.json");
            let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
            let user = json!({"type": "user", "path": of_holder("ns/user")});
            spec["linux"]["namespaces"].as_array_mut().unwrap().push(user);
            spec["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
            spec["linux"]["gidMappings"] = spec["linux"]["uidMappings"].clone();
            spec["mounts"] = json!([{"destination": "/sys", "type": "tmpfs", "source": "x", "options": ["size=wide"]}]);
            fs::write(config, spec.to_string()).unwrap();

            let task = shim.task.clone();
            let create = tokio::spawn(async move { task.create(context(), &request).await });
            // Until it is sent. From then on nothing may come between the look at its children and the signal.
            tokio::time::sleep(Duration::from_micros(100)).await;
            let sent = Instant::now();
            while children.read_at(&mut [0], 0).unwrap() == 0 && sent.elapsed() < Duration::from_millis(100) {}
            // Busy for a while with something else, it finds the message and the end of the copy at the same time.
            kill(pid, Signal::SIGSTOP).unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            kill(pid, Signal::SIGCONT).unwrap();
            let (_, text) = status(create.await.unwrap());
            assert!(text.contains("wide"), "{text}");
        }
        drop(holder.stdin.take());
        holder.wait().unwrap();
        shim.leave().await;
    });
}

#[test]
fn a_container_that_cannot_start_has_ended_and_can_be_deleted() {
    test(|| async {
        let mut shim = Shim::start().await;
        let request = shim.bundle("c", "exit 0");
        let path = PathBuf::from(&request.bundle).join("config.json");
        let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        spec["hooks"] = json!({"startContainer": [{"path": "/bin/busybox", "args": ["false"]}]});
        fs::write(&path, spec.to_string()).unwrap();
        shim.task.create(context(), &request).await.unwrap();
        let start = StartRequest { id: request.id.clone(), ..Default::default() };
        let (code, text) = status(shim.task.start(context(), &start).await);
        assert_eq!(code, Code::UNKNOWN);
        assert!(text.starts_with("OCI runtime start failed: ") && text.contains("startContainer"), "{text}");
        shim.wait(&request.id, "").await;
        shim.delete(&request.id, "").await;
        shim.topics(&[topic::TASK_CREATE, topic::TASK_EXIT, topic::TASK_DELETE]).await;
        shim.leave().await;
    });
}

#[test]
fn what_cannot_be_done_says_so_in_containerds_codes() {
    test(|| async {
        let mut shim = Shim::start().await;
        let unknown = (Code::NOT_FOUND, "container not created: not found".to_owned());
        assert_eq!(status(shim.state("nobody", "").await), unknown);
        let connect = ConnectRequest { id: "nobody".into(), ..Default::default() };
        let connected = shim.task.connect(context(), &connect).await.unwrap();
        assert_eq!((connected.shim_pid, connected.task_pid), (shim.process.id(), 0));

        let broken = shim.bundle("broken", "");
        fs::write(PathBuf::from(&broken.bundle).join("config.json"), "{").unwrap();
        let (code, text) = status(shim.task.create(context(), &broken).await);
        assert_eq!(code, Code::UNKNOWN);
        assert!(text.starts_with("OCI runtime create failed: "), "{text}");

        let request = shim.bundle("c", "/bin/busybox sleep 1000");
        shim.task.create(context(), &request).await.unwrap();
        assert_eq!(status(shim.task.create(context(), &request).await).0, Code::ALREADY_EXISTS);
        let pause = PauseRequest { id: request.id.clone(), ..Default::default() };
        assert_eq!(status(shim.task.pause(context(), &pause).await).0, Code::UNKNOWN);
        let start = StartRequest { id: request.id.clone(), ..Default::default() };
        shim.task.start(context(), &start).await.unwrap();
        let again = status(shim.task.start(context(), &start).await);
        assert_eq!(again, (Code::UNKNOWN, "cannot start a running process".into()));
        let delete = DeleteRequest { id: request.id.clone(), ..Default::default() };
        let refused = status(shim.task.delete(context(), &delete).await);
        assert_eq!(refused, (Code::UNKNOWN, "cannot delete a running process".into()));
        let stats = StatsRequest { id: request.id.clone(), ..Default::default() };
        let url = shim.task.stats(context(), &stats).await.unwrap().stats.type_url.clone();
        assert!(url.starts_with("io.containerd.cgroups.v"), "{url}");
        let checkpoint = runtime_v2_api::task::CheckpointTaskRequest { id: request.id.clone(), ..Default::default() };
        assert_eq!(status(shim.task.checkpoint(context(), &checkpoint).await).0, Code::UNIMPLEMENTED);

        shim.kill(&request.id).await;
        assert_eq!(shim.wait(&request.id, "").await, 137);
        let kill = KillRequest { id: request.id.clone(), signal: 15, ..Default::default() };
        let finished = status(shim.task.kill(context(), &kill).await);
        assert_eq!(finished, (Code::NOT_FOUND, "process already finished: not found".into()));
        shim.delete(&request.id, "").await;
        // A Create that failed has published nothing.
        shim.topics(&[topic::TASK_CREATE, topic::TASK_START, topic::TASK_EXIT, topic::TASK_DELETE]).await;
        shim.leave().await;
    });
}

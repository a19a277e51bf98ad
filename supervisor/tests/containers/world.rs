//! A `dunnaged` of a test's own, with folders of its own, and the client's side of its socket.

use std::{
    fs,
    io::Read as _,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use protobuf::MessageField;
use runtime_v2_api::{
    supervisor::{
        Container, GetRequest, LaunchRequest, ListRequest, MachineRoot, Phase, RemoveRequest, SubscribeRequest,
    },
    supervisor_ttrpc::SupervisorClient,
    task,
    task_v3::TaskClient,
};
use tokio::runtime::{Builder, Runtime};
use ttrpc::{Code, asynchronous::Client, context::Context};

/// What takes longer than this never happens.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct World {
    dir: tempfile::TempDir,
    daemon: Option<Child>,
    shim: PathBuf,
    config: Option<PathBuf>,
    runtime: Runtime,
    client: Option<Client>,
}

/// A world, unless containers cannot be run here, which `ROOT_TESTS=must` does not allow.
pub(crate) fn world() -> Option<World> {
    let daemon = Path::new(env!("CARGO_BIN_EXE_dunnaged"));
    let shim = daemon.with_file_name("containerd-shim-dunnage-v2");
    let missing = if !nix::unistd::geteuid().is_root() {
        "needs root"
    } else if !shim.is_file() {
        "needs the shim beside dunnaged: cargo build -p dunnage-shim"
    } else {
        ""
    };
    if !missing.is_empty() {
        assert_ne!(std::env::var("ROOT_TESTS").as_deref(), Ok("must"), "{missing}");
        println!("SKIPPED: {missing}");
        return None;
    }
    let dir = tempfile::Builder::new().prefix("dunnage-core-").tempdir().unwrap();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let mut world = World { dir, daemon: None, shim, config: None, runtime, client: None };
    world.start();
    Some(world)
}

impl World {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Another program in the place of the shim, from the next start on.
    pub(crate) fn replace_shim(&mut self, script: &str) {
        self.shim = self.path("shim");
        fs::write(&self.shim, script).unwrap();
        fs::set_permissions(&self.shim, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }

    /// A configuration file, from the next start on.
    pub(crate) fn configure(&mut self, file: &Path) {
        self.config = Some(file.to_owned());
    }

    pub(crate) fn real_shim() -> PathBuf {
        Path::new(env!("CARGO_BIN_EXE_dunnaged")).with_file_name("containerd-shim-dunnage-v2")
    }

    pub(crate) fn start(&mut self) {
        let notify = self.path("notify");
        let notified = UnixDatagram::bind(&notify).unwrap();
        notified.set_read_timeout(Some(PATIENCE)).unwrap();
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_dunnaged"));
        command
            .arg("--state")
            .arg(self.path("state"))
            .arg("--root")
            .arg(self.path("root"))
            .arg("--shim")
            .arg(&self.shim);
        command.args(self.config.iter().flat_map(|file| ["--config".as_ref(), file.as_os_str()]));
        command.args(["--log-level", "debug"]).env("NOTIFY_SOCKET", &notify).env_remove("LISTEN_FDS");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.daemon = Some(command.spawn().unwrap());
        let mut message = [0; 1024];
        loop {
            let length = notified.recv(&mut message).unwrap_or_else(|error| panic!("{error}: {}", self.log()));
            if message[..length].starts_with(b"READY=1") {
                break;
            }
        }
        fs::remove_file(notify).unwrap();
        self.connect();
    }

    fn connect(&mut self) {
        self.client = Some(self.runtime.block_on(Client::connect(&self.address())).unwrap());
    }

    pub(crate) fn address(&self) -> String {
        format!("unix://{}", self.path("state/dunnaged.sock").display())
    }

    /// A launch by a client of its own.
    pub(crate) fn launch_at(address: &str, request: &LaunchRequest) -> Result<(), Refusal> {
        Self::ask_at(address, async |client| client.launch(context(), request).await.map(drop))
    }

    /// A launch by a client that goes away, before it has an answer, when that is `enough`.
    pub(crate) fn launch_until(address: &str, request: &LaunchRequest, enough: impl Fn() -> bool) {
        let gone = Self::ask_at(address, async |client| {
            let looks = async {
                while !enough() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            };
            Ok(tokio::select! {
                answer = client.launch(context(), request) => Some(answer),
                () = looks => None,
            })
        });
        assert!(gone.unwrap().is_none(), "it was to be waited for");
    }

    /// A removal by a client of its own.
    pub(crate) fn remove_at(address: &str, id: &str) -> Result<(), Refusal> {
        let request = RemoveRequest { id: id.to_owned(), force: true, ..Default::default() };
        Self::ask_at(address, async |client| client.remove(context(), &request).await.map(drop))
    }

    fn ask_at<T>(address: &str, call: impl AsyncFnOnce(&SupervisorClient) -> ttrpc::Result<T>) -> Result<T, Refusal> {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let called = runtime.block_on(async { call(&SupervisorClient::new(Client::connect(address).await?)).await });
        called.map_err(Refusal::from)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    /// SIGKILL, and again from the book.
    pub(crate) fn kill(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    pub(crate) fn log(&self) -> String {
        let mut text = String::new();
        fs::File::open(self.path("log")).unwrap().read_to_string(&mut text).unwrap();
        text
    }

    pub(crate) fn ask<T>(
        &self,
        call: impl AsyncFnOnce(&SupervisorClient, Context) -> ttrpc::Result<T>,
    ) -> Result<T, Refusal> {
        let client = SupervisorClient::new(self.client.clone().unwrap());
        let done = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, call(&client, context())).await });
        done.expect("an answer").map_err(Refusal::from)
    }

    pub(crate) fn task<T>(
        &self,
        call: impl AsyncFnOnce(&TaskClient, Context) -> ttrpc::Result<T>,
    ) -> Result<T, Refusal> {
        let client = TaskClient::new(self.client.clone().unwrap());
        let done = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, call(&client, context())).await });
        done.expect("an answer").map_err(Refusal::from)
    }

    pub(crate) fn launch(&self, request: &LaunchRequest) -> Result<Container, Refusal> {
        let launched = self.ask(async |client, context| client.launch(context, request).await)?;
        Ok(launched.container.unwrap_or_default())
    }

    pub(crate) fn get(&self, id: &str) -> Result<Container, Refusal> {
        let request = GetRequest { id: id.to_owned(), ..Default::default() };
        self.ask(async |client, context| client.get(context, &request).await)
    }

    pub(crate) fn list(&self) -> (Vec<Container>, Vec<String>) {
        let request = ListRequest { all_namespaces: true, ..Default::default() };
        let listed = self.ask(async |client, context| client.list(context, &request).await).unwrap();
        (listed.containers, listed.troubles)
    }

    pub(crate) fn remove(&self, id: &str, force: bool) -> Result<(), Refusal> {
        let request = RemoveRequest { id: id.to_owned(), force, ..Default::default() };
        self.ask(async |client, context| client.remove(context, &request).await).map(drop)
    }

    pub(crate) fn start_task(&self, id: &str) {
        let request = task::StartRequest { id: id.to_owned(), ..Default::default() };
        self.task(async |client, context| client.start(context, &request).await).unwrap();
    }

    /// Waits for a container's end by itself, and returns its exit status.
    pub(crate) fn wait_task(&self, id: &str) -> u32 {
        let request = task::WaitRequest { id: id.to_owned(), ..Default::default() };
        self.task(async |client, context| client.wait(context, &request).await).unwrap().exit_status
    }

    /// Waits until the container is so.
    pub(crate) fn until(&self, what: &str, mut so: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !so(self) {
            assert!(Instant::now() < deadline, "never {what}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn phase(&self, id: &str) -> Phase {
        self.get(id).map_or(Phase::UNKNOWN, |container| container.phase.enum_value_or_default())
    }

    /// The topics of all events so far, of all containers, without `/tasks/`.
    pub(crate) fn events(&self) -> Vec<String> {
        let mut request = SubscribeRequest { until_now: true, all_namespaces: true, ..Default::default() };
        request.set_after(0);
        let read = async |client: &SupervisorClient, context: Context| {
            let mut stream = client.subscribe(context, &request).await?;
            let mut topics = Vec::new();
            while let Some(message) = stream.recv().await? {
                topics.extend(message.envelope.into_option().map(|envelope| envelope.topic));
            }
            Ok(topics)
        };
        let topics = self.ask(read).unwrap();
        topics.into_iter().map(|topic| topic.trim_start_matches("/tasks/").to_owned()).collect()
    }

    /// Nothing is left of any container: files, mounts, processes.
    pub(crate) fn is_clean(&self) -> Result<(), String> {
        let place = self.dir.path().to_str().unwrap();
        for folder in ["state/book", "state/bundles", "state/runtime", "state/s", "state/unheard", "root/logs"] {
            let found = files(&self.path(folder));
            if !found.is_empty() {
                return Err(format!("{found:?}"));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        if let Some(mount) = mounts.lines().find(|line| line.contains(place)) {
            return Err(mount.to_owned());
        }
        let ours = self.daemon.as_ref().map(Child::id);
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
            if Some(pid) != ours && String::from_utf8_lossy(&command).contains(place) {
                return Err(format!("process {pid}: {}", String::from_utf8_lossy(&command)));
            }
        }
        Ok(())
    }

    /// The end of a test: nothing is left.
    pub(crate) fn close(self) {
        for container in self.list().0 {
            self.remove(&container.id, true).unwrap();
        }
        if let Err(left) = self.is_clean() {
            panic!("left behind: {left}\n{}", self.log());
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A test that failed must not leave its containers either.
        if std::thread::panicking() && self.daemon.is_some() {
            let request = ListRequest { all_namespaces: true, ..Default::default() };
            let listed = self.ask(async |client, context| client.list(context, &request).await).unwrap_or_default();
            for container in listed.containers {
                drop(self.remove(&container.id, true));
            }
            println!("{}", self.log());
        }
        if self.daemon.is_some() {
            self.kill();
        }
    }
}

fn context() -> Context {
    ttrpc::context::with_duration(PATIENCE)
}

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

/// Why a call failed.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) code: Code,
    pub(crate) text: String,
}

impl From<ttrpc::Error> for Refusal {
    fn from(error: ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) => Self { code: status.code(), text: status.message },
            other => Self { code: Code::UNAVAILABLE, text: other.to_string() },
        }
    }
}

/// A container on the machine's own root that runs a command of a shell.
pub(crate) fn shell(id: &str, script: &str) -> LaunchRequest {
    // Other tests of this program have containers of that name.
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let spec = serde_json::json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {
            "cwd": "/", "user": {"uid": 0, "gid": 0}, "args": ["/bin/sh", "-c", script],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}],
            "cgroupsPath": format!("/dunnage-core-{}-{number}-{id}", std::process::id())
        }
    });
    LaunchRequest {
        id: id.to_owned(),
        spec: spec.to_string().into_bytes(),
        machine_root: MessageField::some(MachineRoot { size: 16 << 20, ..Default::default() }),
        ..Default::default()
    }
}

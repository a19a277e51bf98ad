//! Talking to a shim without containerd between: what `ctr` cannot ask, and a receiver of events that fails on demand.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use runtime_v2_api::{
    Any, Empty, forward, forward_ttrpc, json,
    task::{
        CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, DeleteRequest, ExecProcessRequest,
        KillRequest, PauseRequest, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StateRequest,
        StateResponse, StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
    },
    task_v2::TaskClient,
};
use tokio::{runtime::Runtime, sync::Notify, time::timeout};
use ttrpc::{
    asynchronous::{Client, Server, TtrpcContext},
    context::{Context, with_duration},
};

use crate::wait::patience;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a tokio runtime")
}

/// A connection to a shim, second to containerd's.
pub struct Shim {
    runtime: Runtime,
    task: TaskClient,
}

impl Shim {
    /// Connects to the shim whose address is in `bundle`.
    pub fn connect(bundle: &Path) -> Self {
        Self::at(&fs::read_to_string(bundle.join("address")).expect("read the shim's address"))
    }

    /// Connects to the shim at `address`, which begins with `unix://`.
    pub fn at(address: &str) -> Self {
        let runtime = runtime();
        let client = runtime.block_on(Client::connect(address)).expect("connect to the shim");
        Self { runtime, task: TaskClient::new(client) }
    }

    /// Calls any method.
    pub fn ask<T>(&self, call: impl AsyncFnOnce(&TaskClient, Context) -> ttrpc::Result<T>) -> ttrpc::Result<T> {
        self.runtime.block_on(call(&self.task, with_duration(patience())))
    }

    /// `State` of a container, or of the exec `exec` in it.
    pub fn state(&self, id: &str, exec: &str) -> ttrpc::Result<StateResponse> {
        let request = StateRequest { id: id.into(), exec_id: exec.into(), ..StateRequest::default() };
        self.ask(async |task, context| task.state(context, &request).await)
    }

    /// `Connect`: the pids of the shim and of the task.
    pub fn identify(&self, id: &str) -> ttrpc::Result<ConnectResponse> {
        let request = ConnectRequest { id: id.into(), ..ConnectRequest::default() };
        self.ask(async |task, context| task.connect(context, &request).await)
    }

    /// `Update` with the `linux.resources` of an OCI spec.
    pub fn update(&self, id: &str, resources: &serde_json::Value) -> ttrpc::Result<Empty> {
        let value = resources.to_string().into_bytes();
        let resources = Any { type_url: json::LINUX_RESOURCES.into(), value, ..Any::default() };
        let request =
            UpdateTaskRequest { id: id.into(), resources: Some(resources).into(), ..UpdateTaskRequest::default() };
        self.ask(async |task, context| task.update(context, &request).await)
    }

    /// `Stats`.
    pub fn stats(&self, id: &str) -> ttrpc::Result<StatsResponse> {
        let request = StatsRequest { id: id.into(), ..StatsRequest::default() };
        self.ask(async |task, context| task.stats(context, &request).await)
    }

    /// `Wait` for a container, or for the exec `exec` in it.
    pub fn wait(&self, id: &str, exec: &str) -> ttrpc::Result<WaitResponse> {
        let request = WaitRequest { id: id.into(), exec_id: exec.into(), ..WaitRequest::default() };
        self.ask(async |task, context| task.wait(context, &request).await)
    }

    /// `Kill`.
    pub fn kill(&self, id: &str, exec: &str, signal: u32, all: bool) -> ttrpc::Result<Empty> {
        let request = KillRequest { id: id.into(), exec_id: exec.into(), signal, all, ..KillRequest::default() };
        self.ask(async |task, context| task.kill(context, &request).await)
    }

    /// `Exec` with the `process` object of an OCI spec, and no stdio.
    pub fn exec(&self, id: &str, exec: &str, process: &serde_json::Value) -> ttrpc::Result<Empty> {
        let value = process.to_string().into_bytes();
        let spec = Any { type_url: json::PROCESS.into(), value, ..Any::default() };
        let request = ExecProcessRequest {
            id: id.into(),
            exec_id: exec.into(),
            spec: Some(spec).into(),
            ..ExecProcessRequest::default()
        };
        self.ask(async |task, context| task.exec(context, &request).await)
    }

    /// `Start` of a container, or of the exec `exec` in it; the pid.
    pub fn start(&self, id: &str, exec: &str) -> ttrpc::Result<u32> {
        let request = StartRequest { id: id.into(), exec_id: exec.into(), ..StartRequest::default() };
        self.ask(async |task, context| Ok(task.start(context, &request).await?.pid))
    }

    /// `Create` of the container in `bundle`, without stdio; the pid.
    pub fn create(&self, id: &str, bundle: &Path) -> ttrpc::Result<u32> {
        let bundle = bundle.display().to_string();
        let request = CreateTaskRequest { id: id.into(), bundle, ..CreateTaskRequest::default() };
        self.ask(async |task, context| Ok(task.create(context, &request).await?.pid))
    }

    /// `Delete` of a container, or of the exec `exec` in it; its exit status.
    pub fn delete(&self, id: &str, exec: &str) -> ttrpc::Result<u32> {
        let request = DeleteRequest { id: id.into(), exec_id: exec.into(), ..DeleteRequest::default() };
        self.ask(async |task, context| Ok(task.delete(context, &request).await?.exit_status))
    }

    /// `Shutdown`. The shim may be gone before its answer is read.
    pub fn shutdown(&self, id: &str) {
        let request = ShutdownRequest { id: id.into(), ..ShutdownRequest::default() };
        drop(self.ask(async |task, context| task.shutdown(context, &request).await));
    }

    /// `Pause`.
    pub fn pause(&self, id: &str) -> ttrpc::Result<Empty> {
        let request = PauseRequest { id: id.into(), ..PauseRequest::default() };
        self.ask(async |task, context| task.pause(context, &request).await)
    }

    /// `Resume`.
    pub fn resume(&self, id: &str) -> ttrpc::Result<Empty> {
        let request = ResumeRequest { id: id.into(), ..ResumeRequest::default() };
        self.ask(async |task, context| task.resume(context, &request).await)
    }

    /// `ResizePty`.
    pub fn resize(&self, id: &str, exec: &str, rows: u32, columns: u32) -> ttrpc::Result<Empty> {
        let request = ResizePtyRequest {
            id: id.into(),
            exec_id: exec.into(),
            width: columns,
            height: rows,
            ..ResizePtyRequest::default()
        };
        self.ask(async |task, context| task.resize_pty(context, &request).await)
    }

    /// `CloseIO` of stdin.
    pub fn close_stdin(&self, id: &str, exec: &str) -> ttrpc::Result<Empty> {
        let request = CloseIORequest { id: id.into(), exec_id: exec.into(), stdin: true, ..CloseIORequest::default() };
        self.ask(async |task, context| task.close_io(context, &request).await)
    }
}

/// The status code of an error that a shim answered with.
#[track_caller]
pub fn code<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> ttrpc::Code {
    match result.expect_err("an error") {
        ttrpc::Error::RpcStatus(status) => status.code(),
        other => panic!("no answer: {other}"),
    }
}

/// Stands in for containerd's end of the event connection: keeps what it is sent.
///
/// It serves only while the test waits in it; in between, what shims send waits in the socket.
pub struct Receiver {
    runtime: Runtime,
    server: Server,
    kept: Arc<Kept>,
}

#[derive(Default)]
struct Kept {
    topics: Mutex<Vec<String>>,
    more: Notify,
}

impl Receiver {
    /// Listens at `address`, where a containerd was.
    pub fn new(address: &Path) -> Self {
        // What the killed containerd left there.
        if address.exists() {
            fs::remove_file(address).expect("remove the old socket");
        }
        let runtime = runtime();
        let kept = Arc::new(Kept::default());
        let service = forward_ttrpc::create_events(Arc::new(Forward { kept: kept.clone() }));
        let server = runtime.block_on(async {
            let server = Server::new().bind(&format!("unix://{}", address.display())).expect("listen for events");
            let mut server = server.register_service(service);
            server.start().await.expect("serve events");
            server
        });
        Self { runtime, server, kept }
    }

    /// Waits until `count` events have come; their topics, in the order they came.
    pub fn receive(&self, count: usize) -> Vec<String> {
        let enough = async {
            loop {
                let more = self.kept.more.notified();
                if self.topics().len() >= count {
                    return;
                }
                more.await;
            }
        };
        let waited = self.runtime.block_on(async { timeout(patience(), enough).await });
        assert!(waited.is_ok(), "gave up waiting for {count} events: {:?}", self.topics());
        self.topics()
    }

    /// Serves for `time` more, for events that should not come, and goes.
    pub fn finish(mut self, time: Duration) -> Vec<String> {
        self.runtime.block_on(async {
            tokio::time::sleep(time).await;
            self.server.disconnect().await;
        });
        self.topics()
    }

    fn topics(&self) -> Vec<String> {
        self.kept.topics.lock().expect("no panic while it was locked").clone()
    }
}

struct Forward {
    kept: Arc<Kept>,
}

#[async_trait::async_trait]
impl forward_ttrpc::Events for Forward {
    async fn forward(&self, _: &TtrpcContext, request: forward::ForwardRequest) -> ttrpc::Result<Empty> {
        self.kept.topics.lock().expect("no panic while it was locked").push(request.envelope.topic.clone());
        self.kept.more.notify_one();
        Ok(Empty::new())
    }
}

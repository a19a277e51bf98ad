//! The Task service, versions 2 and 3 alike.

use async_trait::async_trait;
use runtime_v2_api::{Empty, task as wire, task_v2::Task};
use ttrpc::r#async::TtrpcContext;

use super::{Call, Calls};

/// Hands every request to the owner of the containers and waits for its answer.
///
/// When the client's deadline passes or its connection closes, ttrpc drops the waiting here; what the owner makes of that
/// is its decision.
pub(crate) struct TaskService(pub(crate) Calls);

macro_rules! asks {
    ($($method:ident($request:ident) -> $response:ty = $call:ident;)*) => {
        #[async_trait]
        impl Task for TaskService {
            $(async fn $method(&self, _: &TtrpcContext, request: wire::$request) -> ttrpc::Result<$response> {
                self.0.ask(Call::$call, request).await
            })*
        }
    };
}

asks! {
    state(StateRequest) -> wire::StateResponse = State;
    create(CreateTaskRequest) -> wire::CreateTaskResponse = Create;
    start(StartRequest) -> wire::StartResponse = Start;
    delete(DeleteRequest) -> wire::DeleteResponse = Delete;
    pids(PidsRequest) -> wire::PidsResponse = Pids;
    pause(PauseRequest) -> Empty = Pause;
    resume(ResumeRequest) -> Empty = Resume;
    checkpoint(CheckpointTaskRequest) -> Empty = Checkpoint;
    kill(KillRequest) -> Empty = Kill;
    exec(ExecProcessRequest) -> Empty = Exec;
    resize_pty(ResizePtyRequest) -> Empty = ResizePty;
    close_io(CloseIORequest) -> Empty = CloseIo;
    update(UpdateTaskRequest) -> Empty = Update;
    wait(WaitRequest) -> wire::WaitResponse = Wait;
    stats(StatsRequest) -> wire::StatsResponse = Stats;
    connect(ConnectRequest) -> wire::ConnectResponse = Connect;
    shutdown(ShutdownRequest) -> Empty = Shutdown;
}

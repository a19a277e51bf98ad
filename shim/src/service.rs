//! What clients ask over ttrpc, as calls to the one owner of all containers, and its answers as replies and status codes.
//! Nothing is decided here.

mod task;
mod trace;

use protobuf::MessageField;
use runtime_v2_api::{Empty, Timestamp, shim, task as wire};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use ttrpc::Code;

pub(crate) use task::TaskService;
pub(crate) use trace::ShimService;

use crate::{options::OptionsError, reap::Exit, task::Refused};

/// A request, and where its answer goes.
pub(crate) enum Call {
    State(wire::StateRequest, Reply<wire::StateResponse>),
    Create(wire::CreateTaskRequest, Reply<wire::CreateTaskResponse>),
    Start(wire::StartRequest, Reply<wire::StartResponse>),
    Delete(wire::DeleteRequest, Reply<wire::DeleteResponse>),
    Pids(wire::PidsRequest, Reply<wire::PidsResponse>),
    Pause(wire::PauseRequest, Reply<Empty>),
    Resume(wire::ResumeRequest, Reply<Empty>),
    Checkpoint(wire::CheckpointTaskRequest, Reply<Empty>),
    Kill(wire::KillRequest, Reply<Empty>),
    Exec(wire::ExecProcessRequest, Reply<Empty>),
    ResizePty(wire::ResizePtyRequest, Reply<Empty>),
    CloseIo(wire::CloseIORequest, Reply<Empty>),
    Update(wire::UpdateTaskRequest, Reply<Empty>),
    Wait(wire::WaitRequest, Reply<wire::WaitResponse>),
    Stats(wire::StatsRequest, Reply<wire::StatsResponse>),
    Connect(wire::ConnectRequest, Reply<wire::ConnectResponse>),
    Shutdown(wire::ShutdownRequest, Reply<Empty>),
    Trace(shim::TraceRequest, Reply<shim::TraceResponse>),
}

/// The way to the owner of the containers.
#[derive(Clone)]
pub(crate) struct Calls(pub(crate) mpsc::UnboundedSender<Call>);

impl Calls {
    async fn ask<Q, A>(&self, call: fn(Q, Reply<A>) -> Call, request: Q) -> ttrpc::Result<A> {
        let gone = || ttrpc::Error::RpcStatus(ttrpc::get_status(Code::UNAVAILABLE, "the shim is shutting down"));
        let (reply, answer) = oneshot::channel();
        self.0.send(call(request, Reply(reply))).map_err(|_| gone())?;
        Ok(answer.await.map_err(|_| gone())??)
    }
}

/// Where an answer goes.
pub(crate) struct Reply<T>(oneshot::Sender<Result<T, Fault>>);

impl<T> Reply<T> {
    /// Answers. False if whoever asked is no longer there.
    pub(crate) fn send(self, answer: Result<T, Fault>) -> bool {
        self.0.send(answer).is_ok()
    }

    /// Whether whoever asked no longer waits.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.0.is_closed()
    }

    /// Resolves when whoever asked no longer waits: its deadline has passed, or its connection is closed.
    pub(crate) async fn abandoned(&mut self) {
        self.0.closed().await;
    }
}

/// Why a request failed. Clients compare some of the texts, and all of the codes.
#[derive(Debug, Error)]
pub(crate) enum Fault {
    #[error("container not created: not found")]
    NoContainer,
    #[error("container {0}: already exists")]
    Exists(String),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Options(#[from] OptionsError),
    #[error("cgroup does not exist: not found")]
    NoCgroup,
    #[error("container {0}: its start was not traced; a shim does that if a supervisor started it (DUNNAGE_UNHEARD)")]
    Untraced(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}: not implemented")]
    Unimplemented(&'static str),
    /// It was tried and went wrong; the text says all there is to say.
    #[error("{0}")]
    Failed(String),
}

impl Fault {
    fn code(&self) -> Code {
        match self {
            Self::NoContainer | Self::NoCgroup => Code::NOT_FOUND,
            Self::Refused(refused) => match refused {
                Refused::Finished | Refused::NoProcess(_) => Code::NOT_FOUND,
                Refused::NotStarted | Refused::NoInit(_) => Code::FAILED_PRECONDITION,
                Refused::Exists(_) => Code::ALREADY_EXISTS,
                Refused::State { .. } | Refused::ContainerState { .. } => Code::UNKNOWN,
            },
            Self::Exists(_) => Code::ALREADY_EXISTS,
            Self::Options(_) | Self::Invalid(_) => Code::INVALID_ARGUMENT,
            Self::Untraced(_) => Code::FAILED_PRECONDITION,
            Self::Unimplemented(_) => Code::UNIMPLEMENTED,
            Self::Failed(_) => Code::UNKNOWN,
        }
    }
}

impl From<Fault> for ttrpc::Error {
    fn from(fault: Fault) -> Self {
        Self::RpcStatus(ttrpc::get_status(fault.code(), fault.to_string()))
    }
}

/// A time as it goes over the wire.
pub(crate) fn timestamp(exit: Option<Exit>) -> MessageField<Timestamp> {
    // What has not exited, exited in the year 1: Go's zero time, which containerd tests for.
    const GO_ZERO: i64 = -62_135_596_800;
    MessageField::some(exit.map_or(Timestamp { seconds: GO_ZERO, ..Timestamp::default() }, |exit| exit.at.into()))
}

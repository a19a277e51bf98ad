//! Why a request failed: the text for people, the code for programs.

use ttrpc::{Code, Status, get_status};

/// Why a request failed.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("container {0}: not found")]
    NotFound(String),
    #[error("{0}")]
    Exists(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Precondition(String),
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    Deadline(String),
    #[error("{0}")]
    Failed(String),
    /// What a shim answered.
    #[error("{}", .0.message)]
    Status(Status),
}

impl Fault {
    /// The answer that the client gets.
    pub(crate) fn status(self) -> Status {
        let code = match &self {
            Self::NotFound(_) => Code::NOT_FOUND,
            Self::Exists(_) => Code::ALREADY_EXISTS,
            Self::Invalid(_) => Code::INVALID_ARGUMENT,
            Self::Precondition(_) => Code::FAILED_PRECONDITION,
            Self::Unavailable(_) => Code::UNAVAILABLE,
            Self::Deadline(_) => Code::DEADLINE_EXCEEDED,
            Self::Failed(_) => Code::UNKNOWN,
            Self::Status(_) => Code::UNKNOWN,
        };
        match self {
            Self::Status(status) => status,
            other => get_status(code, other.to_string()),
        }
    }
}

impl From<Fault> for ttrpc::Error {
    fn from(fault: Fault) -> Self {
        Self::RpcStatus(fault.status())
    }
}

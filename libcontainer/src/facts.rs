//! What a container says of itself to others: the state document of the runtime-spec.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::hooks::Moment;

/// The version of the runtime-spec whose documents we write.
pub const OCI_VERSION: &str = "1.2.0";

/// The facts of the state document (runtime-spec, "State").
#[derive(Debug, Clone)]
pub(crate) struct StateFacts {
    id: String,
    bundle: PathBuf,
    annotations: HashMap<String, String>,
    /// Init's pid as the runtime sees it; 0 until it exists.
    pub(crate) pid: i32,
}

impl StateFacts {
    pub(crate) fn new(id: &str, bundle: &Path, annotations: HashMap<String, String>) -> StateFacts {
        StateFacts { id: id.to_owned(), bundle: bundle.to_owned(), annotations, pid: 0 }
    }

    /// The container's id.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The bundle folder.
    pub(crate) fn bundle(&self) -> CString {
        CString::new(self.bundle.as_os_str().as_bytes()).unwrap_or_default()
    }

    /// The document as a hook of this moment reads it.
    pub(crate) fn json(&self, moment: Moment) -> Vec<u8> {
        let status = match moment {
            Moment::Prestart | Moment::CreateRuntime | Moment::CreateContainer => "creating",
            Moment::StartContainer => "created",
            Moment::Poststart => "running",
            Moment::Poststop => "stopped",
        };
        self.document(status).to_string().into_bytes()
    }

    fn document(&self, status: &str) -> serde_json::Value {
        json!({
            "ociVersion": OCI_VERSION,
            "id": self.id,
            "status": status,
            "pid": self.pid,
            "bundle": self.bundle,
            "annotations": self.annotations,
        })
    }

    /// What a seccomp agent reads beside the descriptor (runtime-spec, "The Container Process State").
    pub(crate) fn seccomp_json(&self, metadata: &str) -> Vec<u8> {
        let state = json!({
            "ociVersion": OCI_VERSION,
            "fds": ["seccompFd"],
            "pid": self.pid,
            "metadata": metadata,
            "state": self.document("creating"),
        });
        state.to_string().into_bytes()
    }
}

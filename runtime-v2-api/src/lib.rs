//! containerd's runtime v2 wire: what it says to a shim and hears from it, and nothing we think about it. Beside it, what
//! Dunnage's own programs say to each other: the supervisor's service and the shim's own.
//!
//! The sources are in `proto/`, one file a service; everything is generated from them at build time, without reflection.
//! What protobuf does not carry stands here: the topics of events, and the type URLs of what travels inside an [`Any`].

use std::{collections::HashMap, sync::Arc};

mod any;
pub mod unheard;

pub use any::{Payload, json, pack, unpack};
pub use generated::{
    bootstrap, cgroups_v1, cgroups_v2, events, forward, forward_ttrpc, runc, runctypes, runtimeoptions, shim,
    shim_ttrpc, supervisor, supervisor_ttrpc, task, task_v2_ttrpc as task_v2, task_v3_ttrpc as task_v3, types,
};
pub use protobuf::well_known_types::{any::Any, empty::Empty, timestamp::Timestamp};

/// What the build script made of `proto/`.
#[allow(
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    reason = "generated: each file switches off the lints its generator knows of, without a word"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/mod.rs"));
}

/// The full name of version 3 of the Task service.
const TASK_V3: &str = "containerd.task.v3.Task";

/// Registers one Task service under both of its names, which is all that sets its versions 2 and 3 apart.
pub fn task_services(service: Arc<dyn task_v2::Task + Send + Sync>) -> HashMap<String, ttrpc::r#async::Service> {
    let mut services = task_v2::create_task(service.clone());
    services.extend(task_v2::create_task(service).into_values().map(|methods| (TASK_V3.to_owned(), methods)));
    services
}

/// The topics that a shim's events are published under.
pub mod topic {
    /// [`TaskCreate`](super::events::TaskCreate)
    pub const TASK_CREATE: &str = "/tasks/create";
    /// [`TaskStart`](super::events::TaskStart)
    pub const TASK_START: &str = "/tasks/start";
    /// [`TaskExit`](super::events::TaskExit)
    pub const TASK_EXIT: &str = "/tasks/exit";
    /// [`TaskDelete`](super::events::TaskDelete)
    pub const TASK_DELETE: &str = "/tasks/delete";
    /// [`TaskExecAdded`](super::events::TaskExecAdded)
    pub const TASK_EXEC_ADDED: &str = "/tasks/exec-added";
    /// [`TaskExecStarted`](super::events::TaskExecStarted)
    pub const TASK_EXEC_STARTED: &str = "/tasks/exec-started";
    /// [`TaskOOM`](super::events::TaskOOM)
    pub const TASK_OOM: &str = "/tasks/oom";
    /// [`TaskPaused`](super::events::TaskPaused)
    pub const TASK_PAUSED: &str = "/tasks/paused";
    /// [`TaskResumed`](super::events::TaskResumed)
    pub const TASK_RESUMED: &str = "/tasks/resumed";
}

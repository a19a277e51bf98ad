//! Messages inside an `Any`, with containerd's bare type names: it compares them as they are, so a
//! `type.googleapis.com/` in front would make it refuse them.

use protobuf::Message;

use crate::{Any, cgroups_v1, cgroups_v2, events, runc, runctypes, runtimeoptions};

/// A message that travels inside an [`Any`].
pub trait Payload: Message {
    /// Its full name, which is all there is to containerd's type URLs.
    const TYPE_URL: &'static str;
}

macro_rules! payloads {
    ($($message:ty => $url:literal),* $(,)?) => {
        $(impl Payload for $message {
            const TYPE_URL: &'static str = $url;
        })*
    };
}

payloads! {
    cgroups_v1::Metrics => "io.containerd.cgroups.v1.Metrics",
    cgroups_v2::Metrics => "io.containerd.cgroups.v2.Metrics",
    events::TaskCreate => "containerd.events.TaskCreate",
    events::TaskDelete => "containerd.events.TaskDelete",
    events::TaskExecAdded => "containerd.events.TaskExecAdded",
    events::TaskExecStarted => "containerd.events.TaskExecStarted",
    events::TaskExit => "containerd.events.TaskExit",
    events::TaskOOM => "containerd.events.TaskOOM",
    events::TaskPaused => "containerd.events.TaskPaused",
    events::TaskResumed => "containerd.events.TaskResumed",
    events::TaskStart => "containerd.events.TaskStart",
    runc::CheckpointOptions => "containerd.runc.v1.CheckpointOptions",
    runc::Options => "containerd.runc.v1.Options",
    runc::ProcessDetails => "containerd.runc.v1.ProcessDetails",
    runctypes::CreateOptions => "containerd.linux.runc.CreateOptions",
    runtimeoptions::Options => "runtimeoptions.v1.Options",
}

/// Type URLs of values that are JSON documents of the OCI runtime specification.
pub mod json {
    /// The `process` object of config.json: what an exec is to run.
    pub const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
    /// The `linux.resources` object of config.json: what an update is to set.
    pub const LINUX_RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
    /// The features document that `-info` answers with.
    pub const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
}

/// Wraps `message` under its bare type name.
///
/// # Errors
/// When the message is larger than protobuf allows, which is 2 GiB.
pub fn pack<M: Payload>(message: &M) -> protobuf::Result<Any> {
    Ok(Any { type_url: M::TYPE_URL.to_owned(), value: message.write_to_bytes()?, ..Any::default() })
}

/// The message inside `any`, or `None` if it is of another type. A prefix that ends in `/` is tolerated.
///
/// # Errors
/// When the type is right and the bytes are not.
pub fn unpack<M: Payload>(any: &Any) -> protobuf::Result<Option<M>> {
    let name = any.type_url.rsplit_once('/').map_or(any.type_url.as_str(), |(_, name)| name);
    if name == M::TYPE_URL { M::parse_from_bytes(&any.value).map(Some) } else { Ok(None) }
}

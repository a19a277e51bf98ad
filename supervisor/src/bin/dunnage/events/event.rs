//! What an envelope brings: containerd's messages, for programs and in words.

use runtime_v2_api::events::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused, TaskResumed, TaskStart,
};
use runtime_v2_api::forward::Envelope;
use runtime_v2_api::{Any, Payload, Timestamp, unpack};
use serde::Serialize;

use crate::paper::Tone;
use crate::words::{self, short};

/// Serialized, the fields of containerd's message; which message it is the topic says.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(untagged, rename_all_fields = "camelCase")]
pub(super) enum Event {
    Create { container_id: String, bundle: String, pid: u32 },
    Start { container_id: String, pid: u32 },
    ExecAdded { container_id: String, exec_id: String },
    ExecStarted { container_id: String, exec_id: String, pid: u32 },
    Exit { container_id: String, id: String, pid: u32, exit_status: u32, exited_at: Option<String> },
    Delete { container_id: String, id: String, pid: u32, exit_status: u32, exited_at: Option<String> },
    Oom { container_id: String },
    Paused { container_id: String },
    Resumed { container_id: String },
}

impl Event {
    /// Nothing if it is none of those, or not what its type says.
    pub(super) fn of(envelope: &Envelope) -> Option<Event> {
        let any = envelope.event.as_ref()?;
        read(any, |e: TaskCreate| Event::Create { container_id: e.container_id, bundle: e.bundle, pid: e.pid })
            .or_else(|| read(any, |e: TaskStart| Event::Start { container_id: e.container_id, pid: e.pid }))
            .or_else(|| read(any, |e: TaskOOM| Event::Oom { container_id: e.container_id }))
            .or_else(|| read(any, |e: TaskPaused| Event::Paused { container_id: e.container_id }))
            .or_else(|| read(any, |e: TaskResumed| Event::Resumed { container_id: e.container_id }))
            .or_else(|| read(any, exec_added))
            .or_else(|| read(any, exec_started))
            .or_else(|| read(any, exit))
            .or_else(|| read(any, delete))
    }

    /// Of which container.
    pub(super) fn container(&self) -> &str {
        match self {
            Event::Create { container_id, .. }
            | Event::Start { container_id, .. }
            | Event::ExecAdded { container_id, .. }
            | Event::ExecStarted { container_id, .. }
            | Event::Exit { container_id, .. }
            | Event::Delete { container_id, .. }
            | Event::Oom { container_id }
            | Event::Paused { container_id }
            | Event::Resumed { container_id } => container_id,
        }
    }

    /// In words, without the container's name.
    pub(super) fn told(&self) -> (Tone, String) {
        match self {
            Event::Create { pid, .. } => (Tone::Plain, format!("created, pid {pid}")),
            Event::Start { pid, .. } => (Tone::Good, format!("started, pid {pid}")),
            Event::ExecAdded { exec_id, .. } => (Tone::Faint, format!("exec {} added", short(exec_id))),
            Event::ExecStarted { exec_id, pid, .. } => {
                (Tone::Plain, format!("exec {} started, pid {pid}", short(exec_id)))
            }
            Event::Exit { container_id, id, pid, exit_status, .. } => {
                let exec = if id == container_id { String::new() } else { format!("exec {} ", short(id)) };
                let tone = if *exit_status == 0 { Tone::Plain } else { Tone::Bad };
                (tone, format!("{exec}exited ({exit_status}), pid {pid}"))
            }
            Event::Delete { .. } => (Tone::Faint, "deleted".to_owned()),
            Event::Oom { .. } => (Tone::Bad, "out of memory: the kernel has killed in it".to_owned()),
            Event::Paused { .. } => (Tone::Warning, "paused".to_owned()),
            Event::Resumed { .. } => (Tone::Good, "resumed".to_owned()),
        }
    }
}

fn read<M: Payload>(any: &Any, event: fn(M) -> Event) -> Option<Event> {
    unpack(any).ok().flatten().map(event)
}

fn exec_added(e: TaskExecAdded) -> Event {
    Event::ExecAdded { container_id: e.container_id, exec_id: e.exec_id }
}

fn exec_started(e: TaskExecStarted) -> Event {
    Event::ExecStarted { container_id: e.container_id, exec_id: e.exec_id, pid: e.pid }
}

fn exit(e: TaskExit) -> Event {
    let (container_id, exited_at) = (e.container_id, time(e.exited_at.as_ref()));
    Event::Exit { container_id, id: e.id, pid: e.pid, exit_status: e.exit_status, exited_at }
}

fn delete(e: TaskDelete) -> Event {
    let (container_id, exited_at) = (e.container_id, time(e.exited_at.as_ref()));
    Event::Delete { container_id, id: e.id, pid: e.pid, exit_status: e.exit_status, exited_at }
}

fn time(stamp: Option<&Timestamp>) -> Option<String> {
    words::time(stamp).map(words::rfc3339)
}

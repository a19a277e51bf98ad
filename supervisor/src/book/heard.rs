//! What events say about containers.

use runtime_v2_api::{Payload, events, forward::Envelope, supervisor::Phase, topic, unpack};

use super::{Entry, Exit, Name, nanos};

/// What happened to a container.
pub(super) enum News {
    Created(u32),
    /// With the time.
    Started(u32, u64),
    Exited(Exit),
    Deleted,
    Oom,
    Paused,
    Resumed,
}

/// What the event says and of whom; `None` if it is not about a container's own life.
pub(super) fn read(envelope: &Envelope) -> Option<(Name, News)> {
    let (id, news) = match &*envelope.topic {
        topic::TASK_CREATE => {
            let event: events::TaskCreate = event(envelope)?;
            (event.container_id, News::Created(event.pid))
        }
        topic::TASK_START => {
            let event: events::TaskStart = event(envelope)?;
            (event.container_id, News::Started(event.pid, nanos(&envelope.timestamp)))
        }
        topic::TASK_EXIT => {
            let event: events::TaskExit = event(envelope)?;
            if event.id != event.container_id {
                return None;
            }
            (event.container_id, News::Exited(Exit { status: event.exit_status, at: nanos(&event.exited_at) }))
        }
        topic::TASK_DELETE => (event::<events::TaskDelete>(envelope)?.container_id, News::Deleted),
        topic::TASK_OOM => (event::<events::TaskOOM>(envelope)?.container_id, News::Oom),
        topic::TASK_PAUSED => (event::<events::TaskPaused>(envelope)?.container_id, News::Paused),
        topic::TASK_RESUMED => (event::<events::TaskResumed>(envelope)?.container_id, News::Resumed),
        _ => return None,
    };
    Some((Name { namespace: envelope.namespace.as_str().into(), id: id.into() }, news))
}

fn event<M: Payload>(envelope: &Envelope) -> Option<M> {
    let event = unpack(&envelope.event);
    if !matches!(event, Ok(Some(_))) {
        log::warn!("an event {} in namespace {} is not what it says", envelope.topic, envelope.namespace);
    }
    event.ok()?
}

impl News {
    /// Writes it down. Whether it is something that must be known after a restart.
    pub(super) fn apply(self, entry: &mut Entry) -> bool {
        match self {
            Self::Created(pid) => {
                entry.pid = pid;
                // Not if it comes late, and more has been answered since.
                if matches!(entry.phase, Phase::UNKNOWN | Phase::LAUNCHING) {
                    entry.phase = Phase::CREATED;
                }
            }
            Self::Started(pid, at) => {
                entry.pid = pid;
                entry.started = at;
                entry.phase = Phase::RUNNING;
            }
            // The first counts, should one be made up for a shim whose own comes late.
            Self::Exited(exit) => drop(entry.exit.get_or_insert(exit)),
            Self::Deleted => entry.deleted = true,
            Self::Oom => entry.oom = true,
            Self::Paused => {
                entry.phase = Phase::PAUSED;
                return false;
            }
            Self::Resumed => {
                entry.phase = Phase::RUNNING;
                return false;
            }
        }
        true
    }
}

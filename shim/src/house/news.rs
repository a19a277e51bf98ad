//! What the house tells those who listen, as containerd's events.

use nix::unistd::Pid;
use protobuf::MessageField;
use runtime_v2_api::{events, task as wire, topic};

use super::{House, number};
use crate::{service::timestamp, task::News};

impl House {
    pub(super) fn publish(&self, container_id: String, news: News) {
        let publisher = &self.publisher;
        match news {
            News::Start(pid) => publisher.publish(
                topic::TASK_START,
                &events::TaskStart { container_id, pid: number(pid), ..Default::default() },
            ),
            News::Exit(exec, pid, exit) => publisher.publish(
                topic::TASK_EXIT,
                &events::TaskExit {
                    id: exec.unwrap_or_else(|| container_id.clone()),
                    container_id,
                    pid: number(pid),
                    exit_status: exit.status(),
                    exited_at: timestamp(Some(exit)),
                    ..Default::default()
                },
            ),
            News::Delete(pid, exit) => publisher.publish(
                topic::TASK_DELETE,
                &events::TaskDelete {
                    container_id,
                    pid: number(pid),
                    exit_status: exit.status(),
                    exited_at: timestamp(Some(exit)),
                    ..Default::default()
                },
            ),
            News::ExecAdded(exec_id) => publisher.publish(
                topic::TASK_EXEC_ADDED,
                &events::TaskExecAdded { container_id, exec_id, ..Default::default() },
            ),
            News::ExecStarted(exec_id, pid) => publisher.publish(
                topic::TASK_EXEC_STARTED,
                &events::TaskExecStarted { container_id, exec_id, pid: number(pid), ..Default::default() },
            ),
            News::Paused => {
                publisher.publish(topic::TASK_PAUSED, &events::TaskPaused { container_id, ..Default::default() });
            }
            News::Resumed => {
                publisher.publish(topic::TASK_RESUMED, &events::TaskResumed { container_id, ..Default::default() });
            }
        }
    }
}

pub(super) fn create_event(request: &wire::CreateTaskRequest, pid: Pid) -> events::TaskCreate {
    events::TaskCreate {
        container_id: request.id.clone(),
        bundle: request.bundle.clone(),
        rootfs: request.rootfs.clone(),
        io: MessageField::some(events::TaskIO {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
            ..Default::default()
        }),
        checkpoint: request.checkpoint.clone(),
        pid: number(pid),
        ..Default::default()
    }
}

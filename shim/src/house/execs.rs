//! Further processes in a container.

use std::rc::Rc;

use runtime_v2_api::{Empty, task as wire};

use super::{Done, House, Process, answer, deleted};
use crate::{launch::Executed, service::Fault, stdio::Wanted, task::Event};

/// How many execs that have ended wait in each container for somebody to delete them.
const ENDED: usize = 256;

impl House {
    pub(super) fn exec(&mut self, request: wire::ExecProcessRequest) -> Result<Empty, Fault> {
        let mut spec = libcontainer::spec::process(&request.spec.value)
            .map_err(|error| Fault::Invalid(format!("process spec of exec {}: {error}", request.exec_id)))?;
        spec.set_terminal(Some(request.terminal));
        self.task(&request.id)?;
        self.happen(&request.id, Event::ExecAdd(&request.exec_id))?;
        let wanted =
            Wanted { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, terminal: request.terminal };
        let process = Process { wanted, spec: Some(Rc::new(spec)), ..Process::default() };
        self.task(&request.id)?.execs.insert(request.exec_id, process);
        Ok(Empty::new())
    }

    pub(super) fn executed(&mut self, id: &str, exec: &str, executed: Result<Executed, Fault>) -> Result<(), Fault> {
        let process = self.task(id)?.process(Some(exec))?;
        match executed {
            Ok(Executed { child, stdio }) => {
                process.settle(child.pidfd, stdio);
                process.spec = None;
                process.answer_starts(Ok(child.pid));
                let (chore_id, chore_exec) = (id.to_owned(), exec.to_owned());
                self.chore(async move { Done::Exited(chore_id, Some(chore_exec), child.exit.await) });
                self.happen(id, Event::ExecStarted(exec, child.pid))
            }
            Err(fault) => {
                process.answer_starts(Err(fault));
                self.happen(id, Event::ExecFailed(exec))
            }
        }
    }

    /// Those who leave an exec to itself do not delete it, where no containerd does: only the latest are kept.
    pub(super) fn forget_an_exec(&mut self, id: &str, ended: &str) -> Result<(), Fault> {
        if !self.ground.supervised {
            return Ok(());
        }
        let task = self.task(id)?;
        task.ended.push_back(ended.to_owned());
        if task.ended.len() <= ENDED {
            return Ok(());
        }
        let oldest = task.ended.pop_front().unwrap_or_default();
        self.happen(id, Event::ExecDelete(&oldest))
    }

    pub(super) fn exec_removed(&mut self, id: &str, exec: &str) -> Result<(), Fault> {
        let task = self.task(id)?;
        let response = deleted(task.life.seen(Some(exec))?);
        task.ended.retain(|ended| ended != exec);
        if let Some(process) = task.execs.remove(exec) {
            for reply in process.deletes {
                answer(reply, Ok(response.clone()));
            }
        }
        self.happen(id, Event::ExecDeleted(exec))
    }
}

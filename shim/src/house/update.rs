//! Changes of a container's limits.

use libcontainer::{
    cgroup::{Cgroup, Limits, Problem},
    spec,
};
use oci_spec::runtime::LinuxResources;
use runtime_v2_api::{Empty, task as wire};

use super::{Done, House, answer};
use crate::{
    launch::{self, Update},
    service::{Fault, Reply},
    task::{Event, Status},
};

impl House {
    pub(super) fn update(&mut self, request: &wire::UpdateTaskRequest, reply: Reply<Empty>) {
        let begun = self.begin_update(request).and_then(|update| Ok((update, self.task(&request.id)?)));
        let (update, task) = match begun {
            Ok(begun) => begun,
            Err(fault) => return answer(reply, Err(fault)),
        };
        let (id, body, turn, ground) =
            (request.id.clone(), task.body.clone(), task.update.clone(), self.ground.clone());
        self.chore(async move {
            // One after the other: while systemd is told of one, what it changes by the way is not to be kept by another.
            let _turn = turn.lock().await;
            let (frozen, updated) = launch::update(&ground, &body, update).await;
            Done::Updated(id, frozen, reply, updated)
        });
    }

    /// What an update is to change.
    fn begin_update(&mut self, request: &wire::UpdateTaskRequest) -> Result<Update, Fault> {
        self.happen(&request.id, Event::Update)?;
        let resources: LinuxResources = serde_json::from_slice(&request.resources.value)
            .map_err(|error| Fault::Invalid(format!("resources: {error}")))?;
        let ground = self.ground.clone();
        let layout = &ground.host().map_err(|error| Fault::Failed(error.to_string()))?.cgroups;
        let invalid = |problems: Vec<Problem>| {
            let problems: Vec<String> = problems.iter().map(|p| format!("{}: {}", p.field, p.text)).collect();
            Fault::Invalid(problems.join("; "))
        };
        let limits = Limits::compile_update(&resources, layout).map_err(invalid)?;
        let task = self.task(&request.id)?;
        let devices = match task.with_cgroup(|cgroup| Ok(cgroup.unit().is_some()))? && !layout.is_v2() {
            true => {
                let spec = spec::read(&task.remains.bundle).map_err(|error| Fault::Failed(error.to_string()))?;
                let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
                Limits::of_devices(resources, layout).map_err(invalid)?
            }
            false => Limits::default(),
        };
        Ok(Update { limits, devices })
    }

    pub(super) fn updated(
        &mut self,
        id: &str,
        frozen: bool,
        reply: Reply<Empty>,
        updated: Result<(), Fault>,
    ) -> Result<(), Fault> {
        let thawed = match self.task(id) {
            Ok(task) if frozen => match task.life.seen(None)?.status {
                // Somebody has paused it meanwhile, or it has ended.
                Status::Pausing | Status::Paused | Status::Stopped => Ok(()),
                Status::Created | Status::Running => task.with_cgroup(Cgroup::thaw),
            },
            _ => Ok(()),
        };
        answer(reply, updated.map(|()| Empty::new()));
        thawed
    }
}

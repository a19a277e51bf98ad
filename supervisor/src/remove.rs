//! A container's way out, whatever way it came to its end: removed by a client or by itself, undone before it was all
//! there, or lost with its shim.
//!
//! Every step can be done twice, and what is to come of it stands in the book before the first: killed anywhere, the next
//! start begins again at the top and finds less to do. One container goes its way out once at a time; who asks meanwhile
//! gets the same answer.

use std::{fs, io, sync::Arc, time::Duration};

use libcontainer::state::Init;
use protobuf::{Message as _, MessageField};
use runtime_v2_api::{
    Empty, Payload, Timestamp, events,
    forward::{Envelope, ForwardRequest},
    pack, supervisor as wire, task, topic, unheard,
};
use tokio::{sync::watch, time::timeout};

use crate::{
    book::{Entry, Exit, Name, Stage, now, timestamp},
    bundle, children,
    fault::Fault,
    ground::Ground,
    strays,
};

/// What a shim has for its answer. It does what takes no time, or what the kernel does.
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// What a container that is killed has until it has ended.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// What a shim that was told to leave has for it: it waits until its events are taken.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);
/// What the shim's `delete` has, which may have to kill processes and unmount.
const DELETE_LIMIT: Duration = Duration::from_secs(30);
/// As a shell tells of SIGKILL.
const KILLED: u32 = 128 + libc::SIGKILL.cast_unsigned();

impl Ground {
    /// Changes an entry, as a step of a request.
    pub(crate) fn change(&self, name: &Arc<Name>, change: impl FnOnce(&mut Entry)) -> Result<(), Fault> {
        let failed = |error| Fault::Failed(format!("write the entry of container {name}: {error}"));
        self.book.change(name, change).map_err(failed)
    }

    /// Removes a container with all that belongs to it, as a client asks for it.
    pub(crate) async fn remove(self: &Arc<Self>, name: &Arc<Name>, force: bool) -> Result<(), Fault> {
        let not_found = || Fault::NotFound(name.to_string());
        match self.book.look(name, |entry| entry.stage.clone()).ok_or_else(not_found)? {
            Stage::Launching if self.launches().contains(name) => {
                return Err(Fault::Precondition(format!("container {name} is being launched; try again when it is")));
            }
            Stage::Live if !force && self.runs(name).await? => {
                return Err(Fault::Precondition(format!(
                    "container {name} runs: stop it first, or remove it with force"
                )));
            }
            Stage::Launching | Stage::Live | Stage::Lost(_) | Stage::Removing => {}
        }
        self.change(name, |entry| {
            if entry.stage != Stage::Launching {
                entry.stage = Stage::Removing;
            }
        })?;
        self.end(name).await
    }

    /// Whether its first process has begun and not ended. The event may still be on its way, so this asks the shim.
    async fn runs(&self, name: &Arc<Name>) -> Result<bool, Fault> {
        if self.book.look(name, |entry| entry.exit.is_some()).unwrap_or(true) || !self.shims.lives(name) {
            return Ok(false);
        }
        use wire::Phase::{CREATED, STOPPED};
        match self.state(name).await {
            Ok((phase, _)) => Ok(!matches!(phase, CREATED | STOPPED)),
            Err(fault) if fault.is_not_found() => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    /// Brings a container to its end as the book says: lost, if it is live there, and otherwise gone. Its own task does it,
    /// whatever becomes of the caller.
    pub(crate) async fn end(self: &Arc<Self>, name: &Arc<Name>) -> Result<(), Fault> {
        let running = self.ends().get(name).cloned();
        let mut running = running.unwrap_or_else(|| {
            let (tell, told) = watch::channel(None);
            self.ends().insert(name.clone(), told.clone());
            let (ground, name) = (self.clone(), name.clone());
            tokio::spawn(async move {
                let ended = ground.go(&name).await;
                ground.ends().remove(&name);
                if let Err(fault) = &ended {
                    let what =
                        format!("clean up after container {name}: {fault}; it is tried again when it is removed");
                    ground.book.trouble(&name, Some(what));
                }
                tell.send_replace(Some(ended));
            });
            told
        });
        let ended = running.wait_for(Option::is_some).await.ok().and_then(|ended| ended.clone());
        ended.unwrap_or_else(|| Err(Fault::Unavailable("the supervisor ends".to_owned())))
    }

    async fn go(self: &Arc<Self>, name: &Arc<Name>) -> Result<(), Fault> {
        let known = self.book.look(name, |entry| (entry.stage.clone(), entry.shim));
        let Some((stage, shim)) = known else { return Ok(()) };
        match stage {
            Stage::Lost(_) => return Ok(()),
            Stage::Launching => self.end_launch(name).await?,
            Stage::Removing => self.leave(name).await?,
            // Only a shim that is gone brings it here.
            Stage::Live => {}
        }
        self.bury(name).await?;
        let failed = |error: io::Error| Fault::Failed(format!("remove container {name}: {error}"));
        let (places, created) = (self.places(), self.book.look(name, |entry| entry.created).unwrap_or_default());
        bundle::remove(&places.bundle(name)).map_err(failed)?;
        bundle::remove_file(&places.attach(created)).map_err(failed)?;
        // It may have been asked for meanwhile. From here on nothing waits.
        let lost = self.book.look(name, |entry| entry.stage == Stage::Live).unwrap_or(false);
        if lost {
            let mut reason = match shim {
                Some(shim) => {
                    format!("its shim, process {}, has ended; what was left of the container was killed", shim.pid)
                }
                None => "its shim has ended".to_owned(),
            };
            let said = places.shim_log(name);
            if said.exists() {
                reason += &format!("; what the shim had to say is in {}", said.display());
            }
            log::warn!("container {name} is lost: {reason}");
            self.book.trouble(name, None);
            return self.change(name, |entry| entry.stage = Stage::Lost(reason.into()));
        }
        bundle::remove_folder(&places.logs(name)).map_err(failed)?;
        log::info!("removed container {name}");
        self.book.forget(name).map_err(failed)
    }

    /// Ends every process of a launch that has not come to its end.
    async fn end_launch(&self, name: &Arc<Name>) -> Result<(), Fault> {
        let failed =
            |error: &dyn std::fmt::Display| Fault::Failed(format!("end the launch of container {name}: {error}"));
        self.kill_shim(name).await?;
        // It is only watched from a certain point on.
        self.shims.remove(name);
        let strays = strays::end(name, &self.places().bundle(name)).await.map_err(|error| failed(&error))?;
        for stray in strays {
            self.import(&stray).map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    /// Has a shim end its container and itself; if it does not, ends it.
    async fn leave(&self, name: &Arc<Name>) -> Result<(), Fault> {
        if !self.shims.lives(name) {
            return Ok(());
        }
        match self.dismiss(name).await {
            Ok(()) if timeout(LEAVE_LIMIT, self.shims.gone(name)).await.is_ok() => return Ok(()),
            Ok(()) => log::warn!("the shim of container {name} does not leave; it is killed"),
            Err(fault) => log::warn!("the shim of container {name} does not end it ({fault}); it is killed"),
        }
        self.kill_shim(name).await
    }

    async fn kill_shim(&self, name: &Arc<Name>) -> Result<(), Fault> {
        let failed = |why: String| Fault::Failed(format!("kill the shim of container {name}: {why}"));
        if self.shims.kill(name).map_err(|error| failed(error.to_string()))? {
            let gone = timeout(KILL_LIMIT, self.shims.gone(name)).await;
            gone.map_err(|_| failed(format!("it has not ended in {KILL_LIMIT:?}")))?;
        }
        Ok(())
    }

    async fn dismiss(&self, name: &Arc<Name>) -> Result<(), Fault> {
        let id = || name.id.to_string();
        match self.end_container(name).await {
            // Somebody has deleted it past us.
            Err(fault) if fault.is_not_found() => {}
            ended => ended?,
        }
        let shutdown = task::ShutdownRequest { id: id(), ..Default::default() };
        self.shims.ask::<Empty>(name, "Shutdown", &shutdown, ASK_LIMIT).await.map(drop)
    }

    async fn end_container(&self, name: &Arc<Name>) -> Result<(), Fault> {
        let id = || name.id.to_string();
        if self.state(name).await?.0 != wire::Phase::STOPPED {
            let signal = libc::SIGKILL.cast_unsigned();
            let kill = task::KillRequest { id: id(), signal, all: true, ..Default::default() };
            match self.shims.ask::<Empty>(name, "Kill", &kill, ASK_LIMIT).await {
                // It has ended by itself, just now.
                Err(fault) if fault.is_not_found() => {}
                killed => drop(killed?),
            }
            let wait = task::WaitRequest { id: id(), ..Default::default() };
            self.shims.ask::<task::WaitResponse>(name, "Wait", &wait, KILL_LIMIT).await?;
        }
        let delete = task::DeleteRequest { id: id(), ..Default::default() };
        self.shims.ask::<task::DeleteResponse>(name, "Delete", &delete, DELETE_LIMIT).await?;
        self.change(name, |entry| entry.deleted = true)
    }

    /// What the shim says of its container: how it is, and its first process.
    pub(crate) async fn state(&self, name: &Arc<Name>) -> Result<(wire::Phase, u32), Fault> {
        use runtime_v2_api::types::Status;
        let request = task::StateRequest { id: name.id.to_string(), ..Default::default() };
        let state: task::StateResponse = self.shims.ask(name, "State", &request, ASK_LIMIT).await?;
        let phase = match state.status.enum_value_or_default() {
            Status::CREATED => wire::Phase::CREATED,
            Status::RUNNING => wire::Phase::RUNNING,
            Status::PAUSED | Status::PAUSING => wire::Phase::PAUSED,
            Status::STOPPED => wire::Phase::STOPPED,
            Status::UNKNOWN => wire::Phase::UNKNOWN,
        };
        Ok((phase, state.pid))
    }

    /// The shim is gone: takes what it still had to tell, has its leftovers removed, and tells what it cannot tell any more.
    async fn bury(&self, name: &Arc<Name>) -> Result<(), Fault> {
        let failed =
            |error: &dyn std::fmt::Display| Fault::Failed(format!("take the last events of container {name}: {error}"));
        if let Some(shim) = self.book.look(name, |entry| entry.shim).flatten() {
            self.import(&shim).map_err(|error| failed(&error))?;
        }
        // Read again: the events may have told of it.
        if !self.book.look(name, |entry| entry.deleted).unwrap_or(true) {
            let last = self.clean_up(name).await?;
            self.make_up(name, last).map_err(|error| failed(&error))?;
            self.change(name, |entry| entry.deleted = true)?;
        }
        let address = self.book.look(name, |entry| entry.address.clone()).unwrap_or_default();
        let swept = bundle::remove_file(address.as_ref().as_ref());
        swept.map_err(|error| Fault::Failed(format!("clean up after container {name}: {error}")))
    }

    /// The shim's `delete`, with its answer; `None` if there is no bundle for it.
    async fn clean_up(&self, name: &Arc<Name>) -> Result<Option<task::DeleteResponse>, Fault> {
        if !self.places().bundle(name).join("config.json").exists() {
            return Ok(None);
        }
        let failed = |why: String| Fault::Failed(format!("clean up after container {name}: {why}"));
        let _one_of_few = self.at_once.acquire().await;
        let command = self.shim(name, "delete").map_err(failed)?;
        let answer = children::run(&self.reaper, command, &[], DELETE_LIMIT).await.map_err(failed)?;
        let answer = task::DeleteResponse::parse_from_bytes(&answer);
        answer.map(Some).map_err(|error| failed(format!("decode the answer of the shim's delete: {error}")))
    }

    /// The events that a shim which was killed owes to those who heard of the container's creation.
    fn make_up(&self, name: &Arc<Name>, last: Option<task::DeleteResponse>) -> io::Result<()> {
        let known = self.book.look(name, |entry| (entry.pid, entry.exit));
        let Some((pid @ 1.., exit)) = known else { return Ok(()) };
        let last = last.unwrap_or_default();
        let (id, namespace) = (name.id.to_string(), &*name.namespace);
        let exit = match exit {
            Some(exit) => exit,
            None => {
                let at = last.exited_at.as_ref().map_or_else(now, crate::book::nanos);
                let exit = Exit { status: if last.exit_status == 0 { KILLED } else { last.exit_status }, at };
                let event = events::TaskExit {
                    container_id: id.clone(),
                    id: id.clone(),
                    pid,
                    exit_status: exit.status,
                    exited_at: timestamp(exit.at),
                    ..Default::default()
                };
                self.publish(namespace, topic::TASK_EXIT, &event)?;
                exit
            }
        };
        let event = events::TaskDelete {
            container_id: id,
            pid,
            exit_status: exit.status,
            exited_at: timestamp(exit.at),
            ..Default::default()
        };
        self.publish(namespace, topic::TASK_DELETE, &event)
    }

    fn publish(&self, namespace: &str, topic: &str, event: &impl Payload) -> io::Result<()> {
        let envelope = Envelope {
            timestamp: MessageField::some(Timestamp::from(std::time::SystemTime::now())),
            namespace: namespace.to_owned(),
            topic: topic.to_owned(),
            event: MessageField::some(pack(event)?),
            ..Default::default()
        };
        self.relay.take(None, &envelope)
    }

    /// Takes the events that a shim which is gone had not got rid of.
    pub(crate) fn import(&self, shim: &Init) -> io::Result<()> {
        let source = unheard::source(shim.pid.cast_unsigned(), shim.start_time);
        let path = self.places().unheard().join(&source);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(io::Error::new(error.kind(), format!("read {}: {error}", path.display()))),
        };
        let (records, rest) = unheard::read(&bytes);
        if rest > 0 {
            log::debug!("{}: the last {rest} bytes are of an event that was never sent", path.display());
        }
        for record in records {
            let request = ForwardRequest::parse_from_bytes(record.request)?;
            match self.relay.take(Some((&source, record.number)), &request.envelope) {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    log::error!("an event of the shim {source} is refused for good: {error}");
                }
                taken => taken?,
            }
        }
        bundle::remove_file(&path)
    }
}

//! What every command that needs a supervisor begins with: connect, and find the containers that were named.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use dunnage_supervisor::client::{CallError, Client};
use dunnage_supervisor::config::{Config, Flags};
use dunnage_supervisor::paths::Paths;
use dunnage_supervisor::rootless;
use dunnage_supervisor::start::{Folders, Started, start};
use futures::future::join_all;
use runtime_v2_api::Empty;
use runtime_v2_api::supervisor::{Container, ListRequest};
use runtime_v2_api::task::{ExecProcessRequest, StartRequest, StateRequest};
use runtime_v2_api::types::Status;
use ttrpc::Code;

use crate::args::{Global, Ids};
use crate::{complain, print};

/// A supervisor, and the namespace that the command is about.
pub(crate) struct Session {
    pub(crate) client: Client,
}

/// Runs a command in the only thread there is.
pub(crate) fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    runtime.context("cannot set up the event loop")?.block_on(command)
}

impl Global {
    /// Where the supervisor listens.
    pub(crate) fn socket(&self) -> anyhow::Result<PathBuf> {
        match (&self.address, &self.state, Paths::of_this_user()) {
            (Some(address), _, _) => Ok(address.clone()),
            // There is no configuration either.
            (None, Some(state), Err(_)) => Ok(Paths::socket(state)),
            (None, _, paths) => Ok(self.config(&paths?)?.address),
        }
    }

    /// What a supervisor that is started from here reads too: flags and their variables over the file over defaults.
    fn config(&self, paths: &Paths) -> anyhow::Result<Config> {
        let flags = Flags { state: self.state.clone(), root: self.root.clone(), ..Flags::default() };
        Ok(Config::read(&flags, paths)?)
    }
}

impl Session {
    /// Connects to the supervisor, or starts one if none runs.
    pub(crate) async fn open(global: &Global) -> anyhow::Result<Session> {
        let socket = global.socket()?;
        let client = match Client::connect(&socket, &global.namespace).await {
            // An address that was named is somebody else's to serve.
            Err(CallError::NotRunning { .. }) if global.address.is_none() => {
                let named = global.state.is_some() || global.root.is_some();
                let folders = Folders::new(global.config(&Paths::of_this_user()?)?, named);
                if let Started::Ours(pid) = start(&folders).await? {
                    let log = folders.log();
                    complain(&format!(
                        "no supervisor was running: started dunnaged, process {pid}, log {}",
                        log.display()
                    ));
                }
                let client = Client::await_and_connect(&socket, &global.namespace).await?;
                if !nix::unistd::geteuid().is_root() {
                    let version = client.repeat(async |on, with| on.supervisor.version(with, &Empty::default()).await);
                    complain(&rootless::shortcomings(version.await?.pid));
                }
                Ok(client)
            }
            client => client,
        };
        Ok(Session { client: client? })
    }

    /// All containers of the namespace.
    pub(crate) async fn containers(&self) -> anyhow::Result<Vec<Container>> {
        let request = ListRequest::default();
        let list = self.client.repeat(async |on, context| on.supervisor.list(context, &request).await).await;
        Ok(list.context("list the containers")?.containers)
    }

    /// The container that `name` names, in full or by its beginning.
    pub(crate) async fn find(&self, name: &str) -> anyhow::Result<Container> {
        pick(self.containers().await?, name)
    }

    /// Does something to each of the containers named, all at the same time, and prints the names of those it was done
    /// to. What fails for one does not concern the others.
    pub(crate) async fn each(
        &self,
        ids: &Ids,
        act: impl AsyncFn(&Session, &Container) -> anyhow::Result<()>,
    ) -> anyhow::Result<ExitCode> {
        let all = self.containers().await?;
        let acts = ids.ids.iter().map(async |name| {
            let container = pick(all.clone(), name)?;
            act(self, &container).await.with_context(|| container.id.clone())
        });
        let mut code = ExitCode::SUCCESS;
        for (name, done) in ids.ids.iter().zip(join_all(acts).await) {
            match done {
                Ok(()) => print(format!("{name}\n").as_bytes())?,
                Err(error) => {
                    complain(&error);
                    code = ExitCode::FAILURE;
                }
            }
        }
        Ok(code)
    }
}

/// Starts a container, or the exec `exec` in it. If the supervisor goes away before it answers, the next is asked: the shim
/// has both share one start, and refuses the second where the first has come to its end.
pub(crate) async fn start_task(client: &Client, id: &str, exec: &str) -> Result<(), CallError> {
    let request = StartRequest { id: id.to_owned(), exec_id: exec.to_owned(), ..StartRequest::default() };
    let mut again = false;
    loop {
        match client.call(async |on, context| on.task.start(context, &request).await).await {
            Err(CallError::Gone { .. }) => again = true,
            Err(error) if again && error.code() == Some(Code::UNKNOWN) => {
                let started = status(client, id, exec).await? != Status::CREATED;
                return if started { Ok(()) } else { Err(error) };
            }
            answer => return answer.map(drop),
        }
    }
}

/// Adds an exec, in the same way.
pub(crate) async fn add_exec(client: &Client, request: &ExecProcessRequest) -> Result<(), CallError> {
    loop {
        match client.call(async |on, context| on.task.exec(context, request).await).await {
            Err(CallError::Gone { .. }) => {}
            answer => return answer.map(drop),
        }
        match status(client, &request.id, &request.exec_id).await {
            Err(error) if error.is_not_found() => {}
            found => return found.map(drop),
        }
    }
}

async fn status(client: &Client, id: &str, exec: &str) -> Result<Status, CallError> {
    let request = StateRequest { id: id.to_owned(), exec_id: exec.to_owned(), ..StateRequest::default() };
    let state = client.repeat(async |on, context| on.task.state(context, &request).await).await?;
    Ok(state.status.enum_value_or_default())
}

/// The one whose id is `name`, or else the only one whose id begins with it.
pub(crate) fn pick(containers: Vec<Container>, name: &str) -> anyhow::Result<Container> {
    if let Some(at) = containers.iter().position(|container| container.id == name) {
        return containers.into_iter().nth(at).context("a place just found");
    }
    let mut fit: Vec<Container> = containers.into_iter().filter(|one| one.id.starts_with(name)).collect();
    match (name, fit.len()) {
        ("", _) => bail!("an empty name names no container"),
        (_, 0) => bail!("no container {name}; `dunnage ps -a` shows those there are"),
        (_, 1) => fit.pop().context("the only one"),
        (_, _) => {
            let ids: Vec<&str> = fit.iter().map(|one| one.id.as_str()).collect();
            bail!("{name} is the beginning of more than one name: {}", ids.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_its_container_or_the_only_one_that_begins_so() {
        let container = |id: &str| Container { id: id.to_owned(), ..Container::default() };
        let all = || ["web", "web-1", "db-1", "db-2"].map(container).to_vec();
        let pick = |name: &str| pick(all(), name).map(|one| one.id).map_err(|error| error.to_string());
        assert_eq!(pick("web"), Ok("web".to_owned()));
        assert_eq!(pick("web-"), Ok("web-1".to_owned()));
        assert_eq!(pick("db"), Err("db is the beginning of more than one name: db-1, db-2".to_owned()));
        assert_eq!(pick("x"), Err("no container x; `dunnage ps -a` shows those there are".to_owned()));
        assert_eq!(pick(""), Err("an empty name names no container".to_owned()));
    }
}

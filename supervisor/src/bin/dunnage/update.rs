//! `update`.

use std::process::ExitCode;

use anyhow::{Context, bail};
use libcontainer::cgroup::Layout;
use runtime_v2_api::task::UpdateTaskRequest;
use runtime_v2_api::{Any, json};

use crate::args::{Global, Ids};
use crate::limits::Limits;
use crate::session::Session;
use crate::{complain, swap};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    ids: Ids,
}

pub(crate) async fn update(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    if args.limits.is_empty() {
        bail!("nothing to change: name a limit, such as --memory 256m; `dunnage update --help` lists them");
    }
    let layout = Layout::detect().context("cannot tell how this machine has its cgroups")?;
    let swap_counted = swap::is_counted(&layout.hierarchies);
    args.limits.without_swap().filter(|_| !swap_counted).iter().for_each(|what| complain(what));
    let value = serde_json::to_vec(&args.limits.resources(swap_counted))?;
    let resources = Any { type_url: json::LINUX_RESOURCES.to_owned(), value, ..Any::default() };
    let session = Session::open(global).await?;
    let update = async |session: &Session, container: &runtime_v2_api::supervisor::Container| {
        let resources = Some(resources.clone()).into();
        let request = UpdateTaskRequest { id: container.id.clone(), resources, ..UpdateTaskRequest::default() };
        // The same limits twice are the same limits.
        Ok(session.client.repeat(async |on, context| on.task.update(context, &request).await).await.map(drop)?)
    };
    session.each(&args.ids, update).await
}

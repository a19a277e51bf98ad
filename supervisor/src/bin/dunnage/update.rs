//! `update`.

use std::process::ExitCode;

use anyhow::bail;
use runtime_v2_api::task::UpdateTaskRequest;
use runtime_v2_api::{Any, json};

use crate::args::{Global, Ids};
use crate::limits::Limits;
use crate::session::Session;

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
    let value = serde_json::to_vec(&args.limits.resources())?;
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

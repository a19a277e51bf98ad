//! `rm`.

use std::process::ExitCode;

use runtime_v2_api::supervisor::{Container, RemoveRequest};

use crate::args::{Global, Ids};
use crate::session::Session;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also those that run: they are killed
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    ids: Ids,
}

pub(crate) async fn rm(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let session = Session::open(global).await?;
    session.each(&args.ids, async |session, container| remove(session, container, args.force).await).await
}

/// Removes a container and everything of it.
pub(crate) async fn remove(session: &Session, container: &Container, force: bool) -> anyhow::Result<()> {
    let request = RemoveRequest { id: container.id.clone(), force, ..RemoveRequest::default() };
    match session.client.repeat(async |on, context| on.supervisor.remove(context, &request).await).await {
        // Done by a call whose answer was lost, or by somebody else.
        Err(error) if error.is_not_found() => Ok(()),
        done => Ok(done.map(drop)?),
    }
}

//! `kill`.

use std::process::ExitCode;

use runtime_v2_api::supervisor::Container;
use runtime_v2_api::task::KillRequest;

use crate::args::{Global, Ids};
use crate::session::Session;
use crate::signal::Signal;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The signal, by name or number
    #[arg(short, long, default_value = "KILL")]
    signal: Signal,
    #[command(flatten)]
    ids: Ids,
}

pub(crate) async fn kill(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let session = Session::open(global).await?;
    session.each(&args.ids, async |session, container| send(session, container, args.signal).await).await
}

/// Sends `signal` to the container's first process.
pub(crate) async fn send(session: &Session, container: &Container, signal: Signal) -> anyhow::Result<()> {
    let request = KillRequest { id: container.id.clone(), signal: signal.0, ..KillRequest::default() };
    // Never repeated: a process may count the signals it gets.
    Ok(session.client.call(async |on, context| on.task.kill(context, &request).await).await.map(drop)?)
}

//! `stop`: the polite way, and then the other.

use std::process::ExitCode;
use std::time::Duration;

use nix::libc::SIGKILL;
use runtime_v2_api::supervisor::Container;
use tokio::time::timeout;

use crate::args::{Global, Ids};
use crate::session::Session;
use crate::signal::Signal;
use crate::{kill, wait};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The signal that asks the container to end
    #[arg(short, long, default_value = "TERM")]
    signal: Signal,
    /// Seconds until it is killed; -1 for never
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10, allow_hyphen_values = true)]
    time: i64,
    #[command(flatten)]
    ids: Ids,
}

pub(crate) async fn stop(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let session = Session::open(global).await?;
    session.each(&args.ids, async |session, container| stop_one(session, container, &args).await).await
}

async fn stop_one(session: &Session, container: &Container, args: &Args) -> anyhow::Result<()> {
    if wait::has_ended(container) {
        return Ok(());
    }
    let ended = wait::exit_code(session, container);
    tokio::pin!(ended);
    if let Err(error) = kill::send(session, container, args.signal).await {
        // It may have ended meanwhile, by itself.
        return if session.find(&container.id).await.is_ok_and(|now| wait::has_ended(&now)) {
            Ok(())
        } else {
            Err(error)
        };
    }
    let Ok(grace) = u64::try_from(args.time) else { return ended.await.map(drop) };
    match timeout(Duration::from_secs(grace), &mut ended).await {
        Ok(ended) => ended.map(drop),
        Err(_) => {
            kill::send(session, container, Signal(SIGKILL as u32)).await?;
            ended.await.map(drop)
        }
    }
}

//! `wait`.

use std::process::ExitCode;

use anyhow::Context;
use futures::future::join_all;
use runtime_v2_api::supervisor::{Container, GetRequest, Phase};
use runtime_v2_api::task::WaitRequest;
use ttrpc::Code;

use crate::args::{Global, Ids};
use crate::session::Session;
use crate::{complain, print};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    ids: Ids,
}

pub(crate) async fn wait(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let session = Session::open(global).await?;
    let waits = args.ids.ids.iter().map(async |name| {
        let container = session.find(name).await?;
        exit_code(&session, &container).await.with_context(|| container.id.clone())
    });
    let mut code = ExitCode::SUCCESS;
    for ended in join_all(waits).await {
        match ended {
            Ok(status) => print(format!("{status}\n").as_bytes())?,
            Err(error) => {
                complain(&error);
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

/// Whether there is no process of it any more.
pub(crate) fn has_ended(container: &Container) -> bool {
    matches!(container.phase.enum_value_or_default(), Phase::STOPPED | Phase::LOST)
}

/// Waits for the container's end.
pub(crate) async fn exit_code(session: &Session, container: &Container) -> anyhow::Result<u32> {
    if has_ended(container) {
        return Ok(container.exit_status);
    }
    let request = WaitRequest { id: container.id.clone(), ..WaitRequest::default() };
    let ended = session.client.repeat(async |on, context| on.task.wait(context, &request).await).await;
    match ended {
        Ok(ended) => Ok(ended.exit_status),
        // Its shim may be gone, and the supervisor knows how the container ended.
        Err(error) if matches!(error.code(), Some(Code::UNAVAILABLE | Code::FAILED_PRECONDITION)) => {
            let request = GetRequest { id: container.id.clone(), ..GetRequest::default() };
            let now = session.client.repeat(async |on, context| on.supervisor.get(context, &request).await).await?;
            if has_ended(&now) { Ok(now.exit_status) } else { Err(error.into()) }
        }
        Err(error) => Err(error.into()),
    }
}

//! `wait`.

use std::process::ExitCode;

use anyhow::Context;
use dunnage_supervisor::client::CallError;
use futures::future::join_all;
use runtime_v2_api::events::{TaskDelete, TaskExit};
use runtime_v2_api::supervisor::subscribe_request::From;
use runtime_v2_api::supervisor::{Container, GetRequest, Phase, SubscribeRequest};
use runtime_v2_api::task::WaitRequest;
use runtime_v2_api::{topic, unpack};
use serde::Serialize;
use ttrpc::Code;

use crate::args::{Format, Global, Ids};
use crate::record::document;
use crate::session::Session;
use crate::{complain, print, words};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How to print them; as JSON, with the containers' names
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    #[command(flatten)]
    ids: Ids,
}

/// The end of a container as programs read it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ended {
    id: String,
    exit_status: u32,
}

pub(crate) async fn wait(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let session = Session::open(global).await?;
    let waits = args.ids.ids.iter().map(async |name| {
        let container = session.find(name).await?;
        let exit_status = exit_code(&session, &container).await.with_context(|| container.id.clone())?;
        anyhow::Ok(Ended { id: container.id, exit_status })
    });
    let (mut code, mut known) = (ExitCode::SUCCESS, Vec::new());
    for ended in join_all(waits).await {
        match ended {
            Ok(ended) => known.push(ended),
            Err(error) => {
                complain(&error);
                code = ExitCode::FAILURE;
            }
        }
    }
    let text = match args.format {
        Format::Json => document(&known)?,
        Format::Table => known.iter().map(|ended| format!("{}\n", ended.exit_status)).collect(),
    };
    print(text.as_bytes()).map(|()| code)
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
    let error = match ended {
        Ok(ended) => return Ok(ended.exit_status),
        Err(error) => error,
    };
    // Its shim is gone, or with --rm all of it. The supervisor knows how it ended, or will once it has cleaned up.
    if !matches!(error.code(), Some(Code::UNAVAILABLE | Code::FAILED_PRECONDITION | Code::NOT_FOUND)) {
        return Err(error.into());
    }
    let request = GetRequest { id: container.id.clone(), ..GetRequest::default() };
    let is_there = match session.client.repeat(async |on, context| on.supervisor.get(context, &request).await).await {
        Ok(now) if has_ended(&now) => return Ok(now.exit_status),
        Ok(_) => true,
        Err(gone) if gone.is_not_found() => false,
        Err(failed) => return Err(failed.into()),
    };
    let told = told(session, container, !is_there).await.context("look in the journal how the container ended")?;
    told.ok_or_else(|| error.into())
}

/// How the container ended, by the journal: as far as that goes, or from now on too.
async fn told(session: &Session, container: &Container, until_now: bool) -> Result<Option<u32>, CallError> {
    let request = SubscribeRequest { from: Some(From::After(0)), until_now, ..SubscribeRequest::default() };
    let created = words::time(container.created_at.as_ref());
    let told = session.client.follow(async |on, context| {
        let mut stream = on.supervisor.subscribe(context, &request).await?;
        while let Some(message) = stream.recv().await? {
            // Not an exec's, nor of an earlier container of that name.
            let Some(envelope) = message.envelope.as_ref() else { continue };
            if words::time(envelope.timestamp.as_ref()) < created {
                continue;
            }
            match &*envelope.topic {
                topic::TASK_EXIT => {
                    let exit = unpack::<TaskExit>(&envelope.event).ok().flatten();
                    let ours = exit.filter(|exit| exit.container_id == container.id && exit.id == container.id);
                    if let Some(exit) = ours {
                        return Ok(Some(exit.exit_status));
                    }
                }
                topic::TASK_DELETE => {
                    let delete = unpack::<TaskDelete>(&envelope.event).ok().flatten();
                    // It never ran.
                    if delete.is_some_and(|delete| delete.container_id == container.id && delete.id.is_empty()) {
                        return Ok(None);
                    }
                }
                _ => {}
            }
        }
        Ok(None)
    });
    told.await
}

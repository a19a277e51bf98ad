//! `wait`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use dunnage_supervisor::client::CallError;
use futures::future::join_all;
use runtime_v2_api::events::TaskExit;
use runtime_v2_api::supervisor::subscribe_request::From;
use runtime_v2_api::supervisor::{Container, GetRequest, Phase, SubscribeRequest};
use runtime_v2_api::task::WaitRequest;
use runtime_v2_api::{topic, unpack};
use serde::Serialize;
use tokio::time::sleep;
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

/// What the supervisor has for cleaning up after a shim that was killed: more than it takes for that.
const CLEANING_UP: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(100);

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
    let mut until = None;
    loop {
        let ended = session.client.repeat(async |on, context| on.task.wait(context, &request).await).await;
        let error = match ended {
            Ok(ended) => return Ok(ended.exit_status),
            Err(error) => error,
        };
        match error.code() {
            // Its shim may be gone, and the supervisor knows how the container ended, or will.
            Some(Code::UNAVAILABLE | Code::FAILED_PRECONDITION) => {
                let request = GetRequest { id: container.id.clone(), ..GetRequest::default() };
                match session.client.repeat(async |on, context| on.supervisor.get(context, &request).await).await {
                    Ok(now) if has_ended(&now) => return Ok(now.exit_status),
                    Ok(_) if Instant::now() < *until.get_or_insert_with(|| Instant::now() + CLEANING_UP) => {
                        sleep(AGAIN).await
                    }
                    Ok(_) => return Err(error.into()),
                    Err(gone) if gone.is_not_found() => return told(session, container, error).await,
                    Err(failed) => return Err(failed.into()),
                }
            }
            // All of it is gone, with --rm.
            Some(Code::NOT_FOUND) => return told(session, container, error).await,
            _ => return Err(error.into()),
        }
    }
}

/// How the container ended, by the journal; `gone` if that does not say.
async fn told(session: &Session, container: &Container, gone: CallError) -> anyhow::Result<u32> {
    let request = SubscribeRequest { from: Some(From::After(0)), until_now: true, ..SubscribeRequest::default() };
    let created = words::time(container.created_at.as_ref());
    let exit = session.client.follow(async |on, context| {
        let mut stream = on.supervisor.subscribe(context, &request).await?;
        let mut exit = None;
        while let Some(message) = stream.recv().await? {
            let envelope = message.envelope.as_ref().filter(|envelope| envelope.topic == topic::TASK_EXIT);
            let event = envelope.and_then(|envelope| unpack::<TaskExit>(envelope.event.as_ref()?).ok().flatten());
            // Not an exec's, nor that of an earlier container of that name.
            exit = event
                .filter(|event| event.container_id == container.id && event.id == container.id)
                .filter(|event| words::time(event.exited_at.as_ref()) >= created)
                .map(|event| event.exit_status)
                .or(exit);
        }
        Ok(exit)
    });
    exit.await.context("look in the journal how the container ended")?.ok_or_else(|| gone.into())
}

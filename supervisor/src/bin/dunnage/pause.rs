//! `pause` and `resume`.

use std::process::ExitCode;

use runtime_v2_api::supervisor::Container;
use runtime_v2_api::task::{PauseRequest, ResumeRequest};

use crate::args::{Global, Ids};
use crate::session::Session;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    ids: Ids,
}

pub(crate) async fn pause(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let pause = async |session: &Session, container: &Container| {
        let request = PauseRequest { id: container.id.clone(), ..PauseRequest::default() };
        Ok(session.client.call(async |on, context| on.task.pause(context, &request).await).await.map(drop)?)
    };
    Session::open(global).await?.each(&args.ids, pause).await
}

pub(crate) async fn resume(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let resume = async |session: &Session, container: &Container| {
        let request = ResumeRequest { id: container.id.clone(), ..ResumeRequest::default() };
        Ok(session.client.call(async |on, context| on.task.resume(context, &request).await).await.map(drop)?)
    };
    Session::open(global).await?.each(&args.ids, resume).await
}

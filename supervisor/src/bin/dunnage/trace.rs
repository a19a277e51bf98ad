//! `trace`: where the time of a container's start went. Supervisor and shim tell their spans ([`timeline`]); they are
//! drawn as text ([`waterfall`]) or written for a trace viewer ([`chrome`]).

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::ValueEnum;
use dunnage_supervisor::client::CallError;
use runtime_v2_api::shim::TraceRequest;

use self::timeline::Timeline;
use crate::args::Global;
use crate::paper::Paper;
use crate::record::document;
use crate::session::Session;
use crate::{complain, print};

mod chrome;
mod timeline;
mod waterfall;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "To look at it in a browser: dunnage trace --format chrome CONTAINER >start.json, and open that \
                        file in https://ui.perfetto.dev"
)]
pub(crate) struct Args {
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Each step in a line of its own, also the short ones; programs get them always
    #[arg(long)]
    all: bool,
    /// The container
    #[arg(value_name = "CONTAINER")]
    id: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// For programs
    Json,
    /// For trace viewers: Perfetto, chrome://tracing
    Chrome,
}

pub(crate) async fn trace(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let session = Session::open(global).await?;
    let container = session.find(&args.id).await?;
    let request = TraceRequest { id: container.id.clone(), ..TraceRequest::default() };
    let inside = session.client.repeat(async |on, context| on.shim.trace(context, &request).await).await;
    let inside = match inside {
        Ok(trace) => trace.spans,
        // The shim of one that is lost is gone, and an older one does not know the question. The supervisor's part remains.
        Err(CallError::Refused { message, .. }) => {
            complain(&format!("without the part of the shim of {}, which says: {message}", container.id));
            Vec::new()
        }
        Err(error) => return Err(error).context("ask for the timeline"),
    };
    let Some(timeline) = Timeline::new(&container, &inside) else {
        bail!("nothing is known of the start of {}", container.id);
    };
    let text = match args.format {
        Format::Table => waterfall::waterfall(&timeline, args.all, Paper::of_stdout()),
        Format::Json => document(&timeline)?,
        Format::Chrome => chrome::chrome(&timeline)?,
    };
    print(text.as_bytes()).map(|()| ExitCode::SUCCESS)
}

//! `upgrade`: a newer supervisor in the place of the running one.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use runtime_v2_api::supervisor::UpgradeRequest;
use serde::Serialize;

use crate::args::{Format, Global};
use crate::print;
use crate::record::document;
use crate::session::Session;
use crate::version::{self, Supervisor};

#[derive(Debug, clap::Args)]
#[command(after_help = "The supervisor executes its successor in its own process; containers, their shims and open \
                        connections stay as they are. A successor that cannot take over is refused, and nothing changes.")]
pub(crate) struct Args {
    /// How to print what came of it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// The new dunnaged [default: the file that the running one was started from]
    binary: Option<PathBuf>,
}

/// What programs read.
#[derive(Debug, Serialize)]
struct Change {
    before: Supervisor,
    after: Supervisor,
}

pub(crate) async fn upgrade(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let binary = match &args.binary {
        // The supervisor has a working directory of its own.
        Some(path) => std::fs::canonicalize(path).with_context(|| format!("find {}", path.display()))?,
        None => PathBuf::new(),
    };
    let binary = binary.into_os_string().into_string().ok().context("the path of the binary is not UTF-8")?;
    let session = Session::open(global).await?;
    let before = version::of(&session.client).await?;
    let request = UpgradeRequest { binary, ..UpgradeRequest::default() };
    let after = session.client.call(async |on, context| on.supervisor.upgrade(context, &request).await).await;
    let after = after.with_context(|| format!("upgrade dunnaged {} (pid {})", before.version, before.pid))?;
    let text = match args.format {
        Format::Json => document(&Change { before: before.into(), after: after.into() })?,
        Format::Table => format!("dunnaged {} -> {} (pid {})\n", before.version, after.version, after.pid),
    };
    print(text.as_bytes()).map(|()| ExitCode::SUCCESS)
}

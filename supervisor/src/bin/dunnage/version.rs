//! `version`: ours, and that of the supervisor that runs.

use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context;
use dunnage_supervisor::client::{CallError, Client};
use runtime_v2_api::Empty;
use runtime_v2_api::supervisor::VersionResponse;
use serde::Serialize;

use crate::args::{Format, Global};
use crate::record::document;
use crate::{print, words};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// What programs read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    version: &'static str,
    oci_version: &'static str,
    /// Null if none runs.
    supervisor: Option<Supervisor>,
}

/// The supervisor that runs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Supervisor {
    pub(crate) version: String,
    pub(crate) pid: u32,
    pub(crate) started_at: Option<String>,
    pub(crate) upgrades: u32,
    pub(crate) state: String,
    pub(crate) root: String,
    pub(crate) last_event: u64,
    pub(crate) troubles: Vec<String>,
}

impl From<VersionResponse> for Supervisor {
    fn from(said: VersionResponse) -> Self {
        Supervisor {
            started_at: words::time(said.started_at.as_ref()).map(words::rfc3339),
            version: said.version,
            pid: said.pid,
            upgrades: said.upgrades,
            state: said.state,
            root: said.root,
            last_event: said.last_event,
            troubles: said.troubles,
        }
    }
}

/// Starts no supervisor: whoever asks for its version wants to know whether it runs, too.
pub(crate) async fn version(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let socket = global.socket();
    let said = match &socket {
        Ok(socket) => ask(global, socket).await?,
        // A user who has no place for a supervisor has none that runs.
        Err(_) => None,
    };
    let (version, oci_version) = (env!("CARGO_PKG_VERSION"), libcontainer::OCI_VERSION);
    let text = match args.format {
        Format::Json => document(&Versions { version, oci_version, supervisor: said.map(Supervisor::from) })?,
        Format::Table => {
            let supervisor = match (&said, &socket) {
                (Some(said), _) => told(said, SystemTime::now()),
                (None, Ok(socket)) => format!("dunnaged does not run (nobody listens at {})\n", socket.display()),
                (None, Err(why)) => format!("dunnaged does not run ({why})\n"),
            };
            format!("dunnage {version} (OCI runtime-spec {oci_version})\n{supervisor}")
        }
    };
    print(text.as_bytes()).map(|()| ExitCode::SUCCESS)
}

async fn ask(global: &Global, socket: &std::path::Path) -> anyhow::Result<Option<VersionResponse>> {
    let client = match Client::connect(socket, &global.namespace).await {
        Ok(client) => client,
        Err(CallError::NotRunning { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    of(&client).await.map(Some)
}

/// The version of the supervisor that `client` speaks with.
pub(crate) async fn of(client: &Client) -> anyhow::Result<VersionResponse> {
    let said = client.repeat(async |on, context| on.supervisor.version(context, &Empty::new()).await).await;
    said.context("ask the supervisor for its version")
}

fn told(said: &VersionResponse, now: SystemTime) -> String {
    let up = words::time(said.started_at.as_ref())
        .map_or(String::new(), |then| format!(", up {}", words::rough(words::since(then, now))));
    let upgrades = match said.upgrades {
        0 => String::new(),
        1 => ", upgraded in place once".to_owned(),
        n => format!(", upgraded in place {n} times"),
    };
    let mut text = format!("dunnaged {} (pid {}{up}{upgrades})\n", said.version, said.pid);
    text += &format!("  state {}\n  root  {}\n  last event {}\n", said.state, said.root, said.last_event);
    said.troubles.iter().for_each(|trouble| text += &format!("  trouble: {}\n", crate::table::printable(trouble)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::tests::{now, stamp};

    #[test]
    fn a_supervisor_tells_how_it_is() {
        let said = VersionResponse {
            version: "0.1.0".to_owned(),
            pid: 612,
            started_at: stamp(7300),
            upgrades: 1,
            state: "/run/dunnage/supervisor".to_owned(),
            root: "/var/lib/dunnage".to_owned(),
            last_event: 4711,
            troubles: vec!["the journal's disk is full".to_owned()],
            ..VersionResponse::default()
        };
        let expected = "\
dunnaged 0.1.0 (pid 612, up 2h, upgraded in place once)
  state /run/dunnage/supervisor
  root  /var/lib/dunnage
  last event 4711
  trouble: the journal's disk is full
";
        assert_eq!(told(&said, now()), expected);
    }
}

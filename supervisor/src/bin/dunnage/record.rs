//! A container as programs read it: the JSON of `ps` and `inspect`. Fields are never removed and never change their
//! meaning; what there is not is null.

use std::collections::BTreeMap;

use dunnage_supervisor::metrics;
use runtime_v2_api::{Timestamp, supervisor::Container};
use serde::Serialize;

use crate::words;

/// The command line that a container was started with, as its user typed it; `dunnage run` sets it.
pub(crate) const COMMAND: &str = "dunnage.command";
/// Where the container's root comes from: "machine", or "rootfs DIR", or "bundle DIR".
pub(crate) const ROOT: &str = "dunnage.root";

/// One container.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record<'a> {
    namespace: &'a str,
    id: &'a str,
    phase: &'static str,
    /// Why it is lost or unknown.
    reason: Option<&'a str>,
    pid: Option<u32>,
    shim_pid: Option<u32>,
    created_at: Option<String>,
    started_at: Option<String>,
    exited_at: Option<String>,
    exit_status: Option<u32>,
    oom_killed: bool,
    command: Option<&'a str>,
    terminal: bool,
    stdin: bool,
    auto_remove: bool,
    address: Option<&'a str>,
    bundle: Option<&'a str>,
    log: Option<&'a str>,
    attach: Option<&'a str>,
    labels: BTreeMap<&'a str, &'a str>,
}

impl<'a> From<&'a Container> for Record<'a> {
    fn from(container: &'a Container) -> Self {
        let text = |text: &'a String| (!text.is_empty()).then_some(text.as_str());
        let time = |stamp: Option<&Timestamp>| words::time(stamp).map(words::rfc3339);
        let exited_at = time(container.exited_at.as_ref());
        Record {
            namespace: &container.namespace,
            id: &container.id,
            phase: metrics::state(words::phase(container)),
            reason: text(&container.reason),
            pid: Some(container.pid).filter(|pid| *pid > 0),
            shim_pid: Some(container.shim_pid).filter(|pid| *pid > 0),
            created_at: time(container.created_at.as_ref()),
            started_at: time(container.started_at.as_ref()),
            exit_status: exited_at.is_some().then_some(container.exit_status),
            exited_at,
            oom_killed: container.oom_killed,
            command: container.labels.get(COMMAND).map(String::as_str),
            terminal: container.terminal,
            stdin: container.stdin,
            auto_remove: container.auto_remove,
            address: text(&container.address),
            bundle: text(&container.bundle),
            log: text(&container.log),
            attach: text(&container.attach),
            labels: container.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect(),
        }
    }
}

/// A document for programs, indented for whoever looks over their shoulder.
pub(crate) fn document(value: &impl Serialize) -> serde_json::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// A document on a line of its own, for what goes on and on.
pub(crate) fn line(value: &impl Serialize) -> serde_json::Result<String> {
    Ok(serde_json::to_string(value)? + "\n")
}

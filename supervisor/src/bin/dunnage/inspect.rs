//! `inspect`: everything there is to know about containers.

use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context;
use runtime_v2_api::supervisor::{Container, Usage};
use serde::Serialize;
use serde_json::Value;

use crate::args::{Format, Global, Ids};
use crate::paper::{Paper, Tone};
use crate::record::{COMMAND, ROOT, Record, document};
use crate::session::{Session, pick};
use crate::table::printable;
use crate::usage::{self, Reading};
use crate::{complain, print, words};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    ids: Ids,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// What programs read: what `ps` says, what the container uses, and its config.json.
#[derive(Debug, Serialize)]
struct Inspected<'a> {
    #[serde(flatten)]
    record: Record<'a>,
    /// Null if it has ended.
    usage: Option<Reading>,
    /// Null if it cannot be read.
    spec: Option<Value>,
}

pub(crate) async fn inspect(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let session = Session::open(global).await?;
    let all = session.containers().await?;
    let mut code = ExitCode::SUCCESS;
    let mut found = Vec::new();
    for name in &args.ids.ids {
        match pick(all.clone(), name) {
            Ok(container) => found.push(container),
            Err(error) => {
                complain(&error);
                code = ExitCode::FAILURE;
            }
        }
    }
    let ids: Vec<String> = found.iter().filter(|one| words::lives(one)).map(|one| one.id.clone()).collect();
    let usages = match usage::read(&session.client, session.client.namespace(), &ids).await {
        Ok(usages) => usages,
        Err(error) => {
            complain(&error);
            code = ExitCode::FAILURE;
            Vec::new()
        }
    };
    let usage = |container: &Container| usages.iter().find(|usage| usage.id == container.id);
    let text = match args.format {
        Format::Json => {
            let inspect = |container| Inspected {
                record: Record::from(container),
                usage: usage(container).map(|usage| Reading::of(usage, None)),
                spec: spec(container),
            };
            document(&found.iter().map(inspect).collect::<Vec<_>>())?
        }
        Format::Table => {
            let (paper, now) = (Paper::of_stdout(), SystemTime::now());
            let sheets: Vec<_> = found.iter().map(|container| sheet(container, usage(container), paper, now)).collect();
            sheets.join("\n")
        }
    };
    print(text.as_bytes()).map(|()| code)
}

/// The container's config.json, which is in its bundle.
fn spec(container: &Container) -> Option<Value> {
    let read = || {
        let text = std::fs::read(Path::new(&container.bundle).join("config.json")).context("read")?;
        serde_json::from_slice(&text).context("understand")
    };
    if container.bundle.is_empty() {
        return None;
    }
    read().map_err(|error| complain(&error.context(format!("the config.json of {}", container.id)))).ok()
}

/// A line for each thing there is.
fn sheet(container: &Container, usage: Option<&Usage>, paper: Paper, now: SystemTime) -> String {
    let mut text = paper.paint(Tone::Strong, &printable(&container.id)) + "\n";
    let mut line = |name: &str, tone: Tone, value: String| {
        if !value.is_empty() {
            text += &format!("  {name:<9} {}\n", paper.paint(tone, &printable(&value)));
        }
    };
    let (tone, status) = words::status(container, now);
    let when = |stamp| {
        let told = |then| {
            format!("{} ({} ago)", humantime::format_rfc3339_seconds(then), words::rough(words::since(then, now)))
        };
        words::time(stamp).map(told).unwrap_or_default()
    };
    let label = |name: &str| container.labels.get(name).cloned().unwrap_or_default();
    let pid = |pid: u32| if pid > 0 { pid.to_string() } else { String::new() };
    let flags =
        [(container.terminal, "terminal"), (container.stdin, "stdin"), (container.auto_remove, "removed at its end")];
    line("status", tone, status);
    line("because", tone, container.reason.clone());
    line("command", Tone::Plain, label(COMMAND));
    line("root", Tone::Plain, label(ROOT));
    line("with", Tone::Plain, flags.iter().filter(|(is, _)| *is).map(|(_, name)| *name).collect::<Vec<_>>().join(", "));
    line("created", Tone::Plain, when(container.created_at.as_ref()));
    line("started", Tone::Plain, when(container.started_at.as_ref()));
    line("ended", Tone::Plain, when(container.exited_at.as_ref()));
    line("pid", Tone::Plain, pid(container.pid));
    line("shim", Tone::Plain, pid(container.shim_pid));
    if let Some(usage) = usage {
        line("cpu", Tone::Plain, format!("{} used", words::fine(usage.cpu_total)));
        line("memory", Tone::Plain, of(usage.memory_working_set, usage.memory_limit, words::size));
        line("pids", Tone::Plain, of(usage.pids, usage.pids_limit, |number| number.to_string()));
        let (read, written) = (words::size(usage.io_read_bytes), words::size(usage.io_write_bytes));
        line("disks", Tone::Plain, format!("{read} read, {written} written"));
    }
    line("bundle", Tone::Plain, container.bundle.clone());
    line("log", Tone::Plain, container.log.clone());
    let shim_log = Path::new(&container.log).with_file_name("shim.log");
    if shim_log.exists() {
        line("shim log", Tone::Plain, shim_log.display().to_string());
    }
    line("attach", Tone::Plain, container.attach.clone());
    line("socket", Tone::Plain, container.address.clone());
    let mut labels: Vec<_> =
        container.labels.iter().filter(|(key, _)| ![COMMAND, ROOT].contains(&key.as_str())).collect();
    labels.sort();
    for (key, value) in labels {
        line("label", Tone::Plain, format!("{key}={value}"));
    }
    text
}

/// "5 of 10", or only what there is where there is no limit.
fn of(used: u64, limit: u64, told: impl Fn(u64) -> String) -> String {
    if limit == 0 { told(used) } else { format!("{} of {}", told(used), told(limit)) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use runtime_v2_api::supervisor::Phase;

    use super::*;
    use crate::words::tests::{now, stamp};

    #[test]
    fn a_sheet_has_a_line_for_each_thing_there_is() {
        let labels = [(COMMAND, "sleep inf"), (ROOT, "machine"), ("team", "blue")];
        let container = Container {
            id: "web".to_owned(),
            phase: Phase::RUNNING.into(),
            pid: 4123,
            shim_pid: 4119,
            stdin: true,
            auto_remove: true,
            created_at: stamp(7300),
            started_at: stamp(200),
            bundle: "/run/b".to_owned(),
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            ..Container::default()
        };
        let usage = Usage {
            cpu_total: 1_230_000_000,
            memory_working_set: 3 << 20,
            memory_limit: 64 << 20,
            pids: 2,
            ..Usage::default()
        };
        let expected = "\
web
  status    up 3m
  command   sleep inf
  root      machine
  with      stdin, removed at its end
  created   2027-01-15T05:58:20Z (2h ago)
  started   2027-01-15T07:56:40Z (3m ago)
  pid       4123
  shim      4119
  cpu       1.23 s used
  memory    3.0 MiB of 64.0 MiB
  pids      2
  disks     0 B read, 0 B written
  bundle    /run/b
  label     team=blue
";
        assert_eq!(sheet(&container, Some(&usage), Paper::PLAIN, now()), expected);
        let lost =
            Container { id: "x".to_owned(), labels: HashMap::new(), phase: Phase::LOST.into(), ..Container::default() };
        assert_eq!(sheet(&lost, None, Paper::PLAIN, now()), "x\n  status    lost\n");
    }
}

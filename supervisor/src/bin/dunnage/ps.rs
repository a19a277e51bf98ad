//! `ps`: the containers there are, and how they are.

use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context;
use runtime_v2_api::supervisor::{Container, ListRequest, ListResponse};

use crate::args::{Format, Global};
use crate::paper::{Paper, Tone};
use crate::record::{COMMAND, ROOT, Record, document};
use crate::session::Session;
use crate::table::{Cell, Table};
use crate::{complain, print, words};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also those that have ended
    #[arg(short, long)]
    all: bool,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only the names, one a line
    #[arg(short, long, conflicts_with = "format")]
    quiet: bool,
    /// How to print them
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

pub(crate) async fn ps(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let session = Session::open(global).await?;
    let ListResponse { mut containers, troubles, .. } = list(&session, args.all_namespaces).await?;
    troubles.iter().for_each(|trouble| complain(&format!("the supervisor is in trouble: {trouble}")));
    // A lost one has ended too, and is shown all the same: somebody has to know, and to remove it.
    containers.retain(|container| args.all || words::lives(container) || is_lost(container));
    let text = match args.format {
        _ if args.quiet => containers.iter().map(|container| container.id.clone() + "\n").collect(),
        Format::Json => document(&containers.iter().map(Record::from).collect::<Vec<_>>())?,
        Format::Table => table(&containers, args.all_namespaces, SystemTime::now()).render(Paper::of_stdout()),
    };
    print(text.as_bytes()).map(|()| ExitCode::SUCCESS)
}

/// The containers of the namespace, or of all, and the supervisor's own troubles.
pub(crate) async fn list(session: &Session, all_namespaces: bool) -> anyhow::Result<ListResponse> {
    let request = ListRequest { all_namespaces, ..ListRequest::default() };
    let list = session.client.repeat(async |on, context| on.supervisor.list(context, &request).await).await;
    list.context("list the containers")
}

fn is_lost(container: &Container) -> bool {
    words::phase(container) == runtime_v2_api::supervisor::Phase::LOST
}

fn table(containers: &[Container], namespaces: bool, now: SystemTime) -> Table {
    let titles: &[&str] = match namespaces {
        true => &["NAMESPACE", "NAME", "STATUS", "PID", "CREATED", "ROOT", "COMMAND"],
        false => &["NAME", "STATUS", "PID", "CREATED", "ROOT", "COMMAND"],
    };
    let mut table = Table::new(titles).numbers(&["PID"]);
    for container in containers {
        let (tone, status) = words::status(container, now);
        let label = |name| container.labels.get(name).map_or("-", String::as_str);
        let cells = [
            Cell::new(Tone::Strong, words::short(&container.id)),
            Cell::new(tone, status),
            pid(container).into(),
            created(container, now).into(),
            Cell::new(Tone::Faint, label(ROOT)),
            label(COMMAND).into(),
        ];
        table.row(namespaces.then(|| Cell::from(&container.namespace)).into_iter().chain(cells));
    }
    table
}

fn pid(container: &Container) -> String {
    let there = words::lives(container) && container.pid > 0;
    if there { container.pid.to_string() } else { "-".to_owned() }
}

fn created(container: &Container, now: SystemTime) -> String {
    let created = words::time(container.created_at.as_ref());
    created.map_or("-".to_owned(), |then| words::rough(words::since(then, now)) + " ago")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use runtime_v2_api::supervisor::Phase;
    use serde_json::{Value, json};

    use super::*;
    use crate::words::tests::{now, stamp};

    fn containers() -> [Container; 4] {
        let labels = |command: &str, root: &str| {
            HashMap::from([(COMMAND.to_owned(), command.to_owned()), (ROOT.to_owned(), root.to_owned())])
        };
        [
            Container {
                namespace: "default".to_owned(),
                id: "web".to_owned(),
                phase: Phase::RUNNING.into(),
                pid: 4123,
                shim_pid: 4119,
                created_at: stamp(7300),
                started_at: stamp(200),
                labels: labels("busybox httpd -f", "machine"),
                ..Container::default()
            },
            Container {
                namespace: "default".to_owned(),
                id: "5f3a".repeat(16),
                phase: Phase::CREATED.into(),
                pid: 77,
                created_at: stamp(3),
                ..Container::default()
            },
            Container {
                namespace: "test".to_owned(),
                id: "batch".to_owned(),
                phase: Phase::STOPPED.into(),
                pid: 99,
                created_at: stamp(400_000),
                exited_at: stamp(360),
                exit_status: 137,
                oom_killed: true,
                labels: labels("sort\n/big", "rootfs /srv/root"),
                ..Container::default()
            },
            Container {
                namespace: "test".to_owned(),
                id: "db".to_owned(),
                phase: Phase::LOST.into(),
                created_at: stamp(90),
                reason: "the shim was killed".to_owned(),
                labels: labels("postgres", "bundle /srv/db"),
                ..Container::default()
            },
        ]
    }

    #[test]
    fn a_line_says_what_there_is_to_know() {
        let expected = "\
NAMESPACE  NAME          STATUS                               PID  CREATED  ROOT              COMMAND
default    web           up 3m                               4123  2h ago   machine           busybox httpd -f
default    5f3a5f3a5f3a  created                               77  3s ago   -                 -
test       batch         exited (137, out of memory) 6m ago     -  4d ago   rootfs /srv/root  sort\\n/big
test       db            lost: the shim was killed              -  90s ago  bundle /srv/db    postgres
";
        assert_eq!(table(&containers(), true, now()).render(Paper::PLAIN), expected);
    }

    #[test]
    fn programs_read_the_whole_id_and_exact_times() {
        let records: Value =
            serde_json::from_str(&document(&containers().each_ref().map(Record::from)).unwrap()).unwrap();
        let stopped = json!({
            "namespace": "test", "id": "batch", "phase": "stopped", "reason": null, "pid": 99, "shimPid": null,
            "createdAt": "2027-01-10T16:53:20.000000000Z", "startedAt": null,
            "exitedAt": "2027-01-15T07:54:00.000000000Z", "exitStatus": 137, "oomKilled": true,
            "command": "sort\n/big", "terminal": false, "stdin": false, "autoRemove": false, "address": null,
            "bundle": null, "log": null, "attach": null,
            "labels": {"dunnage.command": "sort\n/big", "dunnage.root": "rootfs /srv/root"},
        });
        assert_eq!(records[2], stopped);
        assert_eq!(records[1]["id"].as_str().unwrap().len(), 64);
        assert_eq!((&records[0]["phase"], &records[3]["phase"]), (&json!("running"), &json!("lost")));
        assert_eq!(records[0]["exitStatus"], Value::Null);
    }
}

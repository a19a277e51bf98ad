//! state, list, ps: what there is.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use libcontainer::OCI_VERSION;
use libcontainer::container::{Container, Status};
use serde::Serialize;
use std::collections::BTreeMap;

use crate::args::{Format, Global, List, Ps};

/// One container, as `state` and `list` print it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    oci_version: &'static str,
    id: &'a str,
    /// 0 once it has stopped.
    pid: i32,
    status: String,
    bundle: &'a Path,
    rootfs: &'a Path,
    created: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'a str, &'a str>,
    owner: String,
}

impl Row<'_> {
    fn of<'a>(container: &'a Container, owner: String) -> anyhow::Result<Row<'a>> {
        let (state, status) = (container.state(), container.status()?);
        let pid = state.init.filter(|_| status != Status::Stopped).map_or(0, |init| init.pid);
        Ok(Row {
            oci_version: OCI_VERSION,
            id: &state.id,
            pid,
            status: status.to_string(),
            bundle: &state.bundle,
            rootfs: &state.rootfs,
            created: &state.created,
            annotations: state.annotations.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect(),
            owner,
        })
    }
}

/// `state`.
pub(crate) fn state(global: &Global, id: &str) -> anyhow::Result<()> {
    let container = Container::load(&global.folder(id)?)?;
    print(&(serde_json::to_string_pretty(&Row::of(&container, String::new())?)? + "\n"))
}

/// `list`.
pub(crate) fn list(global: &Global, options: &List) -> anyhow::Result<()> {
    let folders = match fs::read_dir(&global.root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        folders => folders
            .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>())
            .with_context(|| format!("cannot list {}", global.root.display()))?,
    };
    let mut containers = Vec::new();
    for folder in folders {
        match Container::load(&folder) {
            Ok(container) => containers.push((container, owner(&folder))),
            // One that is being made or deleted, or what is left of one: no reason to hide the others.
            Err(error) => log::warn!("{error}"),
        }
    }
    containers.sort_by(|(a, _), (b, _)| a.state().id.cmp(&b.state().id));
    if options.quiet {
        return print(&containers.iter().map(|(container, _)| container.state().id.clone() + "\n").collect::<String>());
    }
    let rows = containers.iter().map(|(container, owner)| Row::of(container, owner.clone()));
    let rows = rows.collect::<anyhow::Result<Vec<_>>>()?;
    match options.format {
        Format::Json => print(&(serde_json::to_string(&rows)? + "\n")),
        Format::Table => {
            let mut lines = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(String::from)];
            lines.extend(rows.iter().map(|row| {
                let bundle = row.bundle.display().to_string();
                [
                    row.id.to_owned(),
                    row.pid.to_string(),
                    row.status.clone(),
                    bundle,
                    row.created.to_owned(),
                    row.owner.clone(),
                ]
            }));
            print(&table(&lines))
        }
    }
}

/// Columns at least 12 wide and 3 apart, as runc's are.
fn table<const N: usize>(lines: &[[String; N]]) -> String {
    let width =
        |column: usize| lines.iter().map(|line| line[column].chars().count() + 3).max().unwrap_or_default().max(12);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for line in lines {
        for (field, width) in line[..N - 1].iter().zip(widths) {
            text += &format!("{field:width$}");
        }
        text += &line[N - 1];
        text.push('\n');
    }
    text
}

/// The user a folder belongs to, by name if that is in the file (a static binary cannot ask further).
fn owner(folder: &Path) -> String {
    let Ok(uid) = fs::metadata(folder).map(|meta| meta.uid().to_string()) else { return String::new() };
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1) == Some(&uid)).then(|| name.to_owned())
    });
    name.unwrap_or(format!("#{uid}"))
}

/// `ps`: the lines of ps(1) about processes of the container.
pub(crate) fn ps(global: &Global, options: &Ps) -> anyhow::Result<()> {
    let pids = Container::load(&global.folder(&options.of.id)?)?.pids()?;
    if options.format == Format::Json {
        return print(&(serde_json::to_string(&pids.iter().map(|pid| pid.as_raw()).collect::<Vec<_>>())? + "\n"));
    }
    let mut ps = Command::new("ps");
    if options.options.is_empty() {
        ps.arg("-ef")
    } else {
        ps.args(&options.options)
    };
    let output = ps.output().context("cannot run ps")?;
    if !output.status.success() {
        bail!("ps: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let head = lines.next().unwrap_or_default();
    let column = head.split_whitespace().position(|name| name == "PID").context("ps printed no PID column")?;
    let ours = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|field| field.parse::<i32>().ok());
        pid.is_some_and(|pid| pids.iter().any(|ours| ours.as_raw() == pid))
    };
    print(&[head].into_iter().chain(lines.filter(ours)).map(|line| format!("{line}\n")).collect::<String>())
}

/// To stdout, and an error if nobody can read it: a script must not take half a list for the whole.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("cannot write to stdout")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_looks_like_runcs() {
        let lines =
            [["ID", "BUNDLE", "OWNER"], ["web-1", "/a/rather/long/path", "root"]].map(|line| line.map(String::from));
        let text = "ID          BUNDLE                OWNER\nweb-1       /a/rather/long/path   root\n";
        assert_eq!(table(&lines), text);
    }
}

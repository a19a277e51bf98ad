//! spec, features, plan: what could be done.

use std::fs::OpenOptions;
use std::io::Write;

use anyhow::Context;
use libcontainer::OCI_VERSION;
use libcontainer::cgroup::Layout;
use libcontainer::features::features as supported;
use nix::unistd::{getegid, geteuid};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxNamespaceType, LinuxResources, Spec as Config};
use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{PrettyFormatter, Serializer};

use crate::args::{Create, Global, Spec};
use crate::list::print;
use crate::lives;

/// `spec`.
pub(crate) fn spec(options: &Spec) -> anyhow::Result<()> {
    let path = options.bundle.join("config.json");
    // Never over one that is there: somebody may have worked on it.
    let file = OpenOptions::new().write(true).create_new(true).open(&path);
    let text = indented(&InOrder::of(&config(options.rootless, Layout::detect()?.is_v2())?)?)?;
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The parts of a config.json in the order people read them, each always the same: oci-spec keeps capabilities in no order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InOrder {
    oci_version: Value,
    process: Value,
    root: Value,
    hostname: Value,
    mounts: Value,
    linux: Value,
}

impl InOrder {
    fn of(config: &Config) -> anyhow::Result<InOrder> {
        let mut all = serde_json::to_value(config)?;
        let sets = all.pointer_mut("/process/capabilities").and_then(Value::as_object_mut);
        for set in sets.into_iter().flat_map(|sets| sets.values_mut()).filter_map(Value::as_array_mut) {
            set.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        }
        let mut part = |name: &str| all[name].take();
        Ok(InOrder {
            oci_version: part("ociVersion"),
            process: part("process"),
            root: part("root"),
            hostname: part("hostname"),
            mounts: part("mounts"),
            linux: part("linux"),
        })
    }
}

/// oci-spec's idea of a container, as runc has it: with a terminal, no devices but the default ones, nothing inheritable,
/// and a cgroup namespace where the container could otherwise see the host's tree.
fn config(rootless: bool, cgroup_v2: bool) -> anyhow::Result<Config> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let mut config = if rootless { Config::rootless(uid, gid) } else { Config::default() };
    config.set_version(OCI_VERSION.to_owned()).set_hostname(Some("dunnage".to_owned())).set_annotations(None);
    let process = config.process_mut().as_mut().context("no process")?;
    process.set_terminal(Some(true));
    let mut sets = process.capabilities().clone().unwrap_or_default();
    sets.set_inheritable(None);
    process.set_capabilities(Some(sets));
    let linux = config.linux_mut().as_mut().context("no linux")?;
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    namespaces.retain(|namespace| cgroup_v2 || namespace.typ() != LinuxNamespaceType::Cgroup);
    linux.set_namespaces(Some(namespaces));
    if !rootless {
        let mut deny = LinuxDeviceCgroup::default();
        deny.set_allow(false).set_access(Some("rwm".to_owned()));
        let mut resources = LinuxResources::default();
        resources.set_devices(Some(vec![deny]));
        linux.set_resources(Some(resources));
    }
    Ok(config)
}

/// `features`.
pub(crate) fn features() -> anyhow::Result<()> {
    print(&(indented(&supported())? + "\n"))
}

/// `plan`.
pub(crate) fn plan(global: &Global, options: &Create) -> anyhow::Result<()> {
    global.folder(&options.of.id)?;
    print(&lives::plan(global, options)?.to_string())
}

fn indented(value: &impl Serialize) -> anyhow::Result<String> {
    let mut text = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b"\t")))?;
    Ok(String::from_utf8(text)?)
}

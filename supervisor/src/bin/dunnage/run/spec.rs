//! The container as the runtime-spec has it, made of the command line and facts about the machine. Touches nothing.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use anyhow::Context;
use oci_spec::runtime::{
    BoxBuilder, Capabilities, Capability, LinuxCapabilities, LinuxNamespace, LinuxNamespaceType, LinuxResources,
    LinuxSeccomp, Mount, Process, Spec,
};

use super::args::{Args, Network};
use super::seccomp;
use super::user::User;

/// What must be known beside the command line.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    /// The container's name.
    pub(crate) id: String,
    pub(crate) namespace: String,
    /// Relative paths count from here.
    pub(crate) cwd: PathBuf,
    /// `-u`, or root, as the container's files have them.
    pub(crate) user: User,
    /// For `-e` without a value, and for what is passed on.
    pub(crate) environment: Vec<(String, String)>,
    /// The machine has cgroup v2, in which a cgroup namespace hides the rest.
    pub(crate) cgroup_v2: bool,
    /// The kernel can limit swap.
    pub(crate) swap_counted: bool,
    /// Columns and rows of our terminal.
    pub(crate) window: Option<(u16, u16)>,
    /// The machine's name.
    pub(crate) hostname: String,
    /// All capabilities that the kernel has.
    pub(crate) capabilities: Vec<String>,
    /// Files that a container in the machine's network needs, and where: for names to be found.
    pub(crate) network_files: Vec<(PathBuf, PathBuf)>,
    /// With the machine's own root.
    pub(crate) machine: Option<Machine>,
    /// The supervisor is an ordinary user's. With the machine's own root, what is in `/`: the kernel lets a user show it, and
    /// lay nothing over it.
    pub(crate) rootless: Option<Vec<PathBuf>>,
    /// `--seccomp FILE`.
    pub(crate) seccomp: Option<LinuxSeccomp>,
}

/// What belongs to the machine's own root.
#[derive(Debug, Clone, Default)]
pub(crate) struct Machine {
    /// Where other disks are mounted.
    pub(crate) disks: Vec<PathBuf>,
    /// Folders with what is no container's business.
    pub(crate) ours: Vec<PathBuf>,
}

/// What starts from nothing but the defaults, or from a bundle's config.json with `bundle`.
pub(crate) fn spec(args: &Args, facts: &Facts, bundle: Option<Spec>) -> anyhow::Result<Spec> {
    let given = bundle.is_some();
    let mut spec = match bundle {
        Some(spec) => spec,
        None => serde_json::from_str(include_str!("spec.json"))?,
    };
    process(&mut spec, args, facts, given)?;
    let capabilities = capabilities(&mut spec, args, facts, given)?;
    root(&mut spec, args, facts)?;
    mounts(&mut spec, args, facts, given);
    names(&mut spec, args, facts, given);
    let linux = spec.linux_mut().as_mut().context("config.json: it has no linux")?;
    match (&args.confinement.seccomp, &facts.seccomp) {
        (Some(_), profile) => drop(linux.set_seccomp(profile.clone())),
        (None, _) if !given => drop(linux.set_seccomp(Some(seccomp::profile(&capabilities)?))),
        (None, _) => {}
    }
    if !args.limits.is_empty() {
        let mut resources = linux.resources().clone().unwrap_or_default();
        limit(&mut resources, args.limits.resources(facts.swap_counted));
        linux.set_resources(Some(resources));
    }
    if linux.cgroups_path().is_none() {
        // A user's cgroups are somewhere below: relative, it counts from the supervisor's own.
        let top = if facts.rootless.is_some() { "dunnage" } else { "/dunnage" };
        linux.set_cgroups_path(Some(Path::new(top).join(&facts.namespace).join(&facts.id)));
    }
    Ok(spec)
}

fn process(spec: &mut Spec, args: &Args, facts: &Facts, given: bool) -> anyhow::Result<()> {
    let process = spec.process_mut().as_mut().context("config.json: it has no process")?;
    if !args.command.is_empty() {
        process.set_args(Some(args.command.clone()));
    }
    let mut environment = process.env().clone().unwrap_or_default();
    if !given {
        // The machine's root has descriptions of the terminals that the machine has seen; others have those of old.
        let own = facts.environment.iter().find(|(name, _)| name == "TERM" && facts.machine.is_some());
        let terminal = own.map_or("xterm", |(_, value)| value);
        environment.extend(args.setting.tty.then(|| format!("TERM={terminal}")));
        environment.push(format!("HOME={}", facts.user.home));
        // Not what the supervisor has from its unit, with which the kernel would take any other process before this one. An
        // ordinary user may not have less than they were started with.
        process.set_oom_score_adj(facts.rootless.is_none().then_some(0));
    }
    merge(&mut environment, &args.setting.env, &facts.environment);
    process.set_env(Some(environment));
    shape(process, args.setting.tty, facts.window);
    if args.setting.user.is_some() || !given {
        become_user(process, &facts.user);
    }
    if let Some(folder) = &args.setting.workdir {
        process.set_cwd(folder.clone());
    }
    Ok(())
}

/// A terminal or none.
pub(crate) fn shape(process: &mut Process, tty: bool, window: Option<(u16, u16)>) {
    process.set_terminal(Some(tty));
    let window = window
        .filter(|_| tty)
        .and_then(|(width, height)| BoxBuilder::default().width(width).height(height).build().ok());
    process.set_console_size(window);
}

/// The user with their groups. Capabilities are for root: others have them as a bound only, as after an exec by root.
pub(crate) fn become_user(process: &mut Process, user: &User) {
    let mut whom = oci_spec::runtime::User::default();
    whom.set_uid(user.uid).set_gid(user.gid);
    whom.set_additional_gids((!user.groups.is_empty()).then(|| user.groups.clone()));
    process.set_user(whom);
}

/// Lays `wanted` over the variables that are there. One without a value takes that of `ours`, or is left out.
pub(crate) fn merge(environment: &mut Vec<String>, wanted: &[String], ours: &[(String, String)]) {
    let name =
        |variable: &str| variable.split_once('=').map_or_else(|| variable.to_owned(), |(name, _)| name.to_owned());
    for variable in wanted {
        let known = environment.iter().position(|other| name(other) == name(variable));
        let value = match variable.contains('=') {
            true => Some(variable.clone()),
            false => ours.iter().find(|(own, _)| own == variable).map(|(own, value)| format!("{own}={value}")),
        };
        match (known, value) {
            (Some(at), Some(value)) => environment[at] = value,
            (Some(at), None) => drop(environment.remove(at)),
            (None, value) => environment.extend(value),
        }
    }
}

/// Returns the names of those in the bounding set, in order.
fn capabilities(spec: &mut Spec, args: &Args, facts: &Facts, given: bool) -> anyhow::Result<Vec<String>> {
    let process = spec.process_mut().as_mut().context("config.json: it has no process")?;
    let sets = process.capabilities().clone().unwrap_or_default();
    let mut bounding: BTreeSet<String> = sets.bounding().iter().flatten().map(|own| format!("CAP_{own}")).collect();
    let (add, drop) = (&args.confinement.cap_add, &args.confinement.cap_drop);
    let all = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case("all"));
    if all(drop) {
        bounding.clear();
    }
    if all(add) {
        bounding = facts.capabilities.iter().cloned().collect();
    }
    for name in drop.iter().filter(|name| !name.eq_ignore_ascii_case("all")) {
        bounding.remove(&known(name)?);
    }
    for name in add.iter().filter(|name| !name.eq_ignore_ascii_case("all")) {
        bounding.insert(known(name)?);
    }
    if !given || !add.is_empty() || !drop.is_empty() {
        let set: Capabilities = bounding.iter().filter_map(|name| capability(name)).collect::<HashSet<_>>();
        // As after an exec by root, or by somebody else.
        let held = if process.user().uid() == 0 { set.clone() } else { Capabilities::default() };
        let mut sets = LinuxCapabilities::default();
        sets.set_bounding(Some(set)).set_effective(Some(held.clone())).set_permitted(Some(held));
        sets.set_inheritable(None).set_ambient(None);
        process.set_capabilities(Some(sets));
    }
    Ok(bounding.into_iter().collect())
}

/// The full name of a capability, which may be written without its prefix.
fn known(name: &str) -> anyhow::Result<String> {
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    capability(&full).with_context(|| format!("there is no capability {name:?}; capabilities(7) lists them"))?;
    Ok(full)
}

fn capability(name: &str) -> Option<Capability> {
    name.strip_prefix("CAP_")?.parse().ok()
}

fn root(spec: &mut Spec, args: &Args, facts: &Facts) -> anyhow::Result<()> {
    let mut root = spec.root().clone().unwrap_or_default();
    if let Some(folder) = &args.root.rootfs {
        root.set_path(facts.cwd.join(folder));
    } else if let Some(bundle) = &args.root.bundle {
        // The supervisor's own bundle is elsewhere.
        root.set_path(facts.cwd.join(bundle).join(root.path()));
    }
    if args.root.read_only || args.root.bundle.is_none() {
        root.set_readonly(Some(args.root.read_only));
    }
    spec.set_root(Some(root));
    Ok(())
}

fn mounts(spec: &mut Spec, args: &Args, facts: &Facts, given: bool) {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    if let Some(entries) = facts.rootless.as_ref().filter(|_| !given) {
        mounts = as_a_user(mounts, args, facts, entries);
    }
    if let Some(machine) = &facts.machine {
        let own = |place: &str, mode: &str| mount(place, "tmpfs", "tmpfs", &["nosuid", "nodev", mode]);
        // What the machine's own processes keep there is theirs.
        mounts.extend([own("/run", "mode=755"), own("/tmp", "mode=1777")]);
        let disks = machine.disks.iter().filter(|_| facts.rootless.is_none());
        mounts.extend(disks.map(|disk| mount(disk, "bind", disk, &["bind", "rprivate", "ro", "nodev"])));
    }
    if args.confinement.network == Some(Network::Host) && !given {
        let files = facts.network_files.iter();
        mounts.extend(files.map(|(from, to)| mount(to, "bind", from, &["bind", "rprivate", "ro"])));
    }
    let mut wanted: Vec<Mount> = args.root.wanted().map(|wanted| wanted.mount(&facts.cwd)).collect();
    // What is mounted below another comes after it.
    wanted.sort_by_key(|mount| mount.destination().components().count());
    mounts.retain(|mount| wanted.iter().all(|other| other.destination() != mount.destination()));
    mounts.extend(wanted);
    spec.set_mounts(Some(mounts));
}

/// What the kernel lets an ordinary user mount, in place of what it lets root.
fn as_a_user(mounts: Vec<Mount>, args: &Args, facts: &Facts, entries: &[PathBuf]) -> Vec<Mount> {
    // Below what is shown of the machine, the container's own.
    let shown = entries.iter().filter(|_| facts.machine.is_some());
    let mut all: Vec<Mount> = shown.map(|entry| mount(entry, "bind", entry, &["rbind", "rprivate", "rro"])).collect();
    for mut own in mounts {
        match own.destination().to_str() {
            // The group of terminals is nobody in a user's namespace.
            Some("/dev/pts") => {
                let options = own.options().iter().flatten().filter(|option| !option.starts_with("gid=")).cloned();
                let options = options.collect();
                own.set_options(Some(options));
            }
            // The network's owner may mount it only.
            Some("/sys") if args.confinement.network == Some(Network::Host) => {
                own = mount("/sys", "bind", "/sys", &["rbind", "rprivate", "rro"]);
            }
            Some("/sys/fs/cgroup") if !facts.cgroup_v2 => continue,
            _ => {}
        }
        all.push(own);
    }
    all
}

fn mount(destination: impl AsRef<Path>, kind: &str, source: impl AsRef<Path>, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount.set_destination(destination.as_ref().to_owned()).set_typ(Some(kind.to_owned()));
    mount.set_source(Some(source.as_ref().to_owned()));
    mount.set_options(Some(options.iter().map(ToString::to_string).collect()));
    mount
}

/// Namespaces, and the names that are seen in them.
fn names(spec: &mut Spec, args: &Args, facts: &Facts, given: bool) {
    let network = args.confinement.network.or((!given).then_some(Network::None));
    if let Some(name) = &args.hostname {
        spec.set_hostname(Some(name.clone()));
    } else if !given {
        // The kernel's limit is 64 bytes.
        let own = if network == Some(Network::Host) { &facts.hostname } else { &facts.id };
        spec.set_hostname(Some(own.chars().take(63).collect()));
    }
    let Some(linux) = spec.linux_mut() else { return };
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    let make = |namespaces: &mut Vec<LinuxNamespace>, kind| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind);
        namespaces.push(namespace);
    };
    if network.is_some() {
        namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Network);
    }
    if network == Some(Network::None) {
        make(&mut namespaces, LinuxNamespaceType::Network);
    }
    if !given && facts.cgroup_v2 {
        make(&mut namespaces, LinuxNamespaceType::Cgroup);
    }
    linux.set_namespaces(Some(namespaces));
    if let Some(machine) = &facts.machine {
        let mut masked = linux.masked_paths().clone().unwrap_or_default();
        masked.extend(machine.ours.iter().map(|path| path.display().to_string()));
        linux.set_masked_paths(Some(masked));
    }
}

/// Lays the limits of the command line over those of a config.json.
fn limit(resources: &mut LinuxResources, limits: LinuxResources) {
    if limits.memory().is_some() {
        resources.set_memory(*limits.memory());
    }
    if limits.cpu().is_some() {
        resources.set_cpu(limits.cpu().clone());
    }
    if limits.pids().is_some() {
        resources.set_pids(*limits.pids());
    }
}

#[cfg(test)]
mod tests;

//! What there is on this host. Only gathered here; [`super::judge`] says what it means.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::slice;

use anyhow::Context;
use caps::{CapSet, Capability};
use libcontainer::cgroup::{Hierarchies, Hierarchy};
use libcontainer::features::features;
use libcontainer::host::Host;
use libcontainer::probe::{self, Answer, SystemCall};
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access, geteuid};
use oci_spec::runtime::LinuxSeccompAction;

use crate::swap;

use super::programs::{Daemon, Program, Shim, executable, own_path};

/// The user whom root tries for, whether ordinary users may do a thing: nobody.
const ORDINARY: u32 = 65534;

/// The filesystems that containers are made of.
const FILESYSTEMS: [&str; 6] = ["overlay", "proc", "sysfs", "tmpfs", "devpts", "mqueue"];

/// The numbers in /proc/sys that bound how many containers there can be, and the switches for user namespaces. A kernel
/// does not have all of them.
const SETTINGS: [&str; 16] = [
    "user.max_cgroup_namespaces",
    "user.max_ipc_namespaces",
    "user.max_mnt_namespaces",
    "user.max_net_namespaces",
    "user.max_pid_namespaces",
    "user.max_time_namespaces",
    "user.max_user_namespaces",
    "user.max_uts_namespaces",
    "kernel.keys.maxkeys",
    "kernel.keys.root_maxkeys",
    "kernel.pid_max",
    "kernel.threads-max",
    "fs.inotify.max_user_instances",
    "fs.inotify.max_user_watches",
    "kernel.unprivileged_userns_clone",
    "kernel.apparmor_restrict_unprivileged_userns",
];

/// Where containerd keeps what containers' roots are made of.
const IMAGES: &str = "/var/lib/containerd";

/// Everything the judgement is made from.
#[derive(Debug)]
pub(super) struct Facts {
    /// The kernel's release, as in `uname -r`.
    pub(super) kernel: String,
    pub(super) system_calls: Vec<SystemCall>,
    /// Each kind by its name in /proc/self/ns.
    pub(super) namespaces: Vec<(&'static str, Answer)>,
    /// Whether ordinary users may make user namespaces.
    pub(super) ordinary_userns: Answer,
    pub(super) filesystems: Vec<(&'static str, Answer)>,
    /// Whether what is on the filesystem of this folder can be mounted with other ids.
    pub(super) idmapped: (PathBuf, Answer),
    /// What libcontainer knows of this machine, or why it cannot find out and so cannot work.
    pub(super) host: Result<Host, String>,
    /// The seccomp actions libcontainer can compile.
    pub(super) seccomp_actions: Vec<LinuxSeccompAction>,
    /// Tops of cgroup hierarchies that we cannot make cgroups in, and why.
    pub(super) closed_cgroups: Vec<(PathBuf, Errno)>,
    /// The pids limit at the top of the hierarchy, where a container around us has set one.
    pub(super) pids_limit: Option<u64>,
    /// The kernel can limit swap.
    pub(super) swap_counted: bool,
    /// Whether a device filter can be loaded, where cgroup v2 needs one.
    pub(super) device_filter: Option<Answer>,
    /// Effective capabilities.
    pub(super) capabilities: Vec<Capability>,
    /// Numbers in /proc/sys, as sysctl(8) names them.
    pub(super) settings: BTreeMap<&'static str, u64>,
    pub(super) rootless: Rootless,
    /// Whether `/` can lie below an overlay; nothing if we may not try.
    pub(super) overlay_on_root: Option<Answer>,
    pub(super) standalone: Standalone,
    /// The containerd that runs.
    pub(super) daemon: Option<Daemon>,
    /// The containerd that is installed.
    pub(super) containerd: Option<Program>,
    pub(super) shim: Option<Shim>,
    /// Other OCI runtimes: where they are.
    pub(super) runtimes: Vec<PathBuf>,
}

/// What there is for containers without containerd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Standalone {
    /// The supervisor that `dunnage` would start.
    pub(super) dunnaged: Option<Program>,
    /// Where it listens, or why this user has no place for one.
    pub(super) socket: Result<PathBuf, String>,
    /// Somebody listens there; else what the kernel said.
    pub(super) listens: Result<(), Errno>,
}

/// What lets an ordinary user map more than their own id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rootless {
    pub(super) newuidmap: bool,
    pub(super) newgidmap: bool,
    /// This user has ranges in /etc/subuid and /etc/subgid.
    pub(super) ranges: bool,
}

impl Facts {
    /// Asks the kernel, reads /proc and /sys, and runs a few programs for their versions. Changes nothing. For a process
    /// with one thread ([`probe`]).
    ///
    /// # Errors
    /// When the kernel does not even tell who we are.
    pub(super) fn gather(socket: Result<PathBuf, String>) -> anyhow::Result<Facts> {
        let host = Host::detect().map_err(|error| error.to_string());
        let capabilities = caps::read(None, CapSet::Effective).context("cannot read our capabilities (capget)")?;
        let capable = capabilities.contains(&Capability::CAP_SYS_ADMIN);
        let namespaces = probe::namespaces(!capable);
        let own_userns = namespaces.iter().find(|(name, _)| *name == "user").map(|(_, answer)| *answer);
        let ordinary_userns = match own_userns {
            Some(answer) if !geteuid().is_root() => answer,
            _ => probe::user_namespace_for(ORDINARY),
        };
        let settings = SETTINGS.iter().filter_map(|name| Some((*name, setting(name)?))).collect();
        let images = Path::new(IMAGES).ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let hierarchies = host.as_ref().ok().map(|host| &host.cgroups.hierarchies);
        let daemon = Daemon::find();
        let own_path = own_path();
        let containerd = match &daemon {
            Some(daemon) => Some(Program::ask(daemon.program.clone(), "--version")),
            None => Program::find("containerd", &own_path),
        };
        let path = daemon.as_ref().map_or(&own_path, |daemon| &daemon.path);
        let shim = Shim::find(path, containerd.as_ref().map(|program| program.path.as_path()));
        let mut sorted: Vec<_> = capabilities.into_iter().collect();
        sorted.sort_by_key(Capability::index);
        let kernel = nix::sys::utsname::uname().context("cannot read the kernel's version (uname)")?;
        Ok(Facts {
            kernel: kernel.release().to_string_lossy().into_owned(),
            system_calls: probe::system_calls(),
            namespaces,
            ordinary_userns,
            filesystems: FILESYSTEMS.map(|kind| (kind, probe::filesystem(kind))).to_vec(),
            idmapped: (images.to_owned(), probe::idmapped_mount(images)),
            seccomp_actions: known_actions(),
            closed_cgroups: hierarchies.map(closed).unwrap_or_default(),
            pids_limit: hierarchies.and_then(pids_limit),
            swap_counted: hierarchies.is_some_and(swap::is_counted),
            device_filter: matches!(hierarchies, Some(Hierarchies::V2(_))).then(probe::device_filter),
            host,
            capabilities: sorted,
            settings,
            rootless: Rootless::find(&own_path),
            overlay_on_root: capable.then(probe::overlay_on_root),
            standalone: Standalone::find(socket, &own_path),
            containerd,
            daemon,
            shim,
            // Not asked for their versions: crun sets itself up for work even then.
            runtimes: ["runc", "crun"].iter().filter_map(|name| executable(name, &own_path)).collect(),
        })
    }
}

fn known_actions() -> Vec<LinuxSeccompAction> {
    let features = features();
    let seccomp = features.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    seccomp.and_then(|seccomp| seccomp.actions().clone()).unwrap_or_default()
}

fn setting(name: &str) -> Option<u64> {
    fs::read_to_string(Path::new("/proc/sys").join(name.replace('.', "/"))).ok()?.trim().parse().ok()
}

/// The hierarchies with controllers, or the one of v2.
fn mounted(hierarchies: &Hierarchies) -> &[Hierarchy] {
    match hierarchies {
        Hierarchies::V1 { controllers, .. } => controllers,
        Hierarchies::V2(hierarchy) => slice::from_ref(hierarchy),
    }
}

/// Those where no cgroup can be made, neither at the top, where absolute paths are, nor where relative ones are: below
/// our own on v1, beside our own on v2.
fn closed(hierarchies: &Hierarchies) -> Vec<(PathBuf, Errno)> {
    let v2 = matches!(hierarchies, Hierarchies::V2(_));
    // A user's systemd gives the supervisor a place.
    let own_systemd = std::env::var_os("XDG_RUNTIME_DIR").map(|folder| Path::new(&folder).join("systemd/private"));
    if v2 && !geteuid().is_root() && own_systemd.is_some_and(|socket| socket.exists()) {
        return Vec::new();
    }
    let refused = |hierarchy: &Hierarchy| {
        let own =
            hierarchy.mount.join(if v2 { hierarchy.own.parent().unwrap_or(&hierarchy.own) } else { &hierarchy.own });
        let at_top = access(&hierarchy.mount, AccessFlags::W_OK).err();
        at_top.filter(|_| access(&own, AccessFlags::W_OK).is_err()).map(|errno| (hierarchy.mount.clone(), errno))
    };
    mounted(hierarchies).iter().filter_map(refused).collect()
}

fn pids_limit(hierarchies: &Hierarchies) -> Option<u64> {
    // "max" is no number, and the true top of a hierarchy has no such file.
    mounted(hierarchies)
        .iter()
        .find_map(|hierarchy| fs::read_to_string(hierarchy.mount.join("pids.max")).ok()?.trim().parse().ok())
}

impl Standalone {
    fn find(socket: Result<PathBuf, String>, path: &std::ffi::OsStr) -> Standalone {
        let beside =
            std::env::current_exe().ok().map(|own| own.with_file_name("dunnaged")).filter(|file| file.is_file());
        let dunnaged = beside.or_else(|| executable("dunnaged", path)).map(|path| Program::ask(path, "--version"));
        let connect = |socket: &PathBuf| UnixStream::connect(socket).map(drop);
        let errno = |error: std::io::Error| error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
        let listens = socket.as_ref().map_or(Err(Errno::ENOENT), |socket| connect(socket).map_err(errno));
        Standalone { dunnaged, socket, listens }
    }
}

impl Rootless {
    fn find(path: &std::ffi::OsStr) -> Rootless {
        let uid = geteuid().to_string();
        let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
        // A static binary cannot ask further than this file.
        let name = users.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1) == Some(&uid)).then_some(name)
        });
        let listed = |file: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            text.lines().filter_map(|line| line.split(':').next()).any(|owner| Some(owner) == name || owner == uid)
        };
        let found = |program| executable(program, path).is_some();
        Rootless {
            newuidmap: found("newuidmap"),
            newgidmap: found("newgidmap"),
            ranges: listed("/etc/subuid") && listed("/etc/subgid"),
        }
    }
}

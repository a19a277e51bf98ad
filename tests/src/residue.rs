//! What a test left behind. Only things that carry the case's own name are looked at: others run containers here too.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::mount::{MntFlags, umount2};
use sha2::{Digest, Sha256};

use crate::{cgroup, daemon::Layout, process, wait::slowly};

/// Where containerd 1.6 to 2.2 has its shims' sockets, whatever its `state` setting says.
const SOCKETS: &str = "/run/containerd/s";

/// How long things may take to be gone after the last reply of containerd: a shim ends after it has answered.
pub(crate) fn grace() -> Duration {
    slowly(Duration::from_secs(15))
}

/// The socket of the shim that runs `id` (or the group of that name): the address is a hash, by the contract.
pub fn socket(address: &Path, namespace: &str, id: &str) -> PathBuf {
    let name = format!("{}/{namespace}/{id}", address.display());
    Path::new(SOCKETS).join(format!("{:x}", Sha256::digest(name)))
}

/// What there may be: containerd and the recorder, and the descriptors containerd had at the start.
pub(crate) struct Expected<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) name: &'a str,
    pub(crate) ids: Vec<String>,
    pub(crate) ours: Vec<u32>,
    pub(crate) containerd: u32,
    pub(crate) descriptors: &'a BTreeMap<String, usize>,
    pub(crate) grace: Duration,
}

/// Looks everywhere; each text is one thing that should not be there.
pub(crate) fn find(expected: &Expected<'_>) -> Vec<String> {
    let name = expected.name;
    let mut found = find_in_kernel(name, &expected.ours, expected.grace);
    for id in &expected.ids {
        let socket = socket(&expected.layout.address(), name, id);
        if socket.exists() {
            found.push(format!("socket of {id}: {}", socket.display()));
        }
    }
    let work = expected.layout.root().join("io.containerd.runtime.v2.task").join(name);
    let bundles = expected.layout.state().join("io.containerd.runtime.v2.task").join(name);
    for dir in [work, bundles].into_iter().chain(runtime_folders(name)) {
        found.extend(entries(&dir).iter().map(|path| format!("file {}", path.display())));
    }
    found.extend(descriptors(expected));
    found
}

/// Processes, mounts and cgroups that carry `name`.
pub(crate) fn find_named(name: &str, ours: &[u32]) -> Vec<String> {
    find_in_kernel(name, ours, grace())
}

fn find_in_kernel(name: &str, ours: &[u32], grace: Duration) -> Vec<String> {
    let processes = left(grace, || {
        let mut found = process::carrying(name);
        found.retain(|process| !ours.contains(&process.pid));
        found
    });
    let mut found: Vec<String> = processes.iter().map(ToString::to_string).collect();
    found.extend(mounts(name).iter().map(|path| format!("mount on {path}")));
    let groups = cgroup::carrying(name);
    let inner = groups.iter().filter(|dir| dir.file_name().is_none_or(|own| own != name));
    found.extend(inner.map(|dir| format!("cgroup {}", dir.display())));
    found
}

/// Waits for the processes that `look` finds to be gone; those that stay.
pub(crate) fn left(grace: Duration, look: impl Fn() -> Vec<process::Process>) -> Vec<process::Process> {
    let deadline = Instant::now() + grace;
    loop {
        let left = look();
        let Some(first) = left.first() else { return left };
        if let Some(pidfd) = process::Pidfd::open(first.pid)
            && !pidfd.ended_within(deadline.saturating_duration_since(Instant::now()))
        {
            return left;
        }
    }
}

fn mounts(name: &str) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
    let points = table.lines().filter(|line| line.contains(name)).filter_map(|line| line.split(' ').nth(4));
    points.map(ToOwned::to_owned).collect()
}

/// Folders of the case's containerd namespace under `/run`, where runtimes keep their state.
fn runtime_folders(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut level = vec![PathBuf::from("/run")];
    for _ in 0..3 {
        level = level.iter().flat_map(|dir| entries(dir)).filter(|path| path.is_dir() && !path.is_symlink()).collect();
        found.extend(level.iter().filter(|dir| dir.file_name().is_some_and(|own| own == name)).cloned());
    }
    found
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// How many pipes, sockets and files of the case containerd has open, by what they are.
pub(crate) fn kinds_of_descriptors(containerd: u32, name: &str) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for (_, target) in process::descriptors(containerd) {
        let kind = match target.split_once(":[") {
            Some((kind @ ("pipe" | "socket"), _)) => kind.to_owned(),
            _ if target.contains(name) => target,
            _ => continue,
        };
        *kinds.entry(kind).or_default() += 1;
    }
    kinds
}

/// Descriptors that containerd has now and did not have at the start. It closes some after its reply, so it gets a while.
fn descriptors(expected: &Expected<'_>) -> Vec<String> {
    let deadline = Instant::now() + expected.grace;
    loop {
        let now = kinds_of_descriptors(expected.containerd, expected.name);
        let more: Vec<_> = now
            .iter()
            .filter_map(|(kind, count)| {
                let before = expected.descriptors.get(kind).copied().unwrap_or_default();
                (*count > before).then(|| format!("containerd has {count} of {kind}, had {before}"))
            })
            .collect();
        if more.is_empty() || Instant::now() > deadline {
            return more;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Removes what carries `name`, by force: after a failed test, and the empty folders of the namespace after each.
pub(crate) fn sweep(layout: &Layout, name: &str, ids: &[String]) {
    sweep_named(name);
    for id in ids {
        fs::remove_file(socket(&layout.address(), name, id)).ok();
    }
}

/// The same where there was no containerd.
pub(crate) fn sweep_named(name: &str) {
    let left = process::carrying(name);
    left.iter().for_each(|process| process::kill_hard(process.pid));
    for process in left {
        if process::Pidfd::open(process.pid).is_some_and(|pidfd| !pidfd.ended_within(slowly(Duration::from_secs(1)))) {
            println!("still there after SIGKILL: {process}");
        }
    }
    for path in mounts(name).iter().rev() {
        // What cannot be removed here was reported by the test, which is what matters.
        umount2(path.as_str(), MntFlags::MNT_DETACH).ok();
    }
    for dir in cgroup::carrying(name) {
        fs::remove_dir(dir).ok();
    }
    for dir in runtime_folders(name) {
        fs::remove_dir_all(dir).ok();
    }
}

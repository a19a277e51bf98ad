//! The cgroup files of a container as the kernel shows them, on v1, v2 and both.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A mounted hierarchy.
struct Hierarchy {
    /// The controllers of a v1 hierarchy; nothing for the unified one.
    controllers: Option<Vec<String>>,
    mount: PathBuf,
}

fn hierarchies() -> Vec<Hierarchy> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
    let mut all = Vec::new();
    for line in mounts.lines() {
        let Some((place, kind)) = line.split_once(" - ") else { continue };
        let (Some(root), Some(mount)) = (place.split(' ').nth(3), place.split(' ').nth(4)) else { continue };
        let mut kind = kind.split(' ');
        let controllers = match (kind.next(), kind.nth(1)) {
            (Some("cgroup2"), _) => None,
            (Some("cgroup"), Some(options)) => Some(options.split(',').map(ToOwned::to_owned).collect()),
            _ => continue,
        };
        if root == "/" {
            all.push(Hierarchy { controllers, mount: mount.into() });
        }
    }
    all
}

/// Every cgroup called `name`, with what is in it, deepest first. An ordinary user's are far below the root.
pub fn carrying(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for hierarchy in hierarchies() {
        let mut level = vec![hierarchy.mount];
        while !level.is_empty() {
            level = level.iter().flat_map(|dir| folders(dir)).collect();
            for dir in level.iter().filter(|dir| dir.file_name().is_some_and(|own| own == name)) {
                descend(dir, &mut found);
            }
        }
    }
    found
}

fn folders(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn descend(dir: &Path, found: &mut Vec<PathBuf>) {
    for inner in folders(dir) {
        descend(&inner, found);
    }
    found.push(dir.to_owned());
}

/// Whether the controllers of this machine are in the unified hierarchy.
pub fn is_unified() -> bool {
    !hierarchies().iter().flat_map(|hierarchy| hierarchy.controllers.iter().flatten()).any(|name| name == "memory")
}

/// The files of one container's cgroup.
pub struct Cgroup {
    path: String,
}

impl Cgroup {
    /// The group at `path` (as `/namespace/id`) of every hierarchy.
    pub fn at(path: &str) -> Self {
        Self { path: path.trim_start_matches('/').to_owned() }
    }

    /// The folder where `controller` has this group: in its v1 hierarchy, else in the unified one.
    pub fn folder(&self, controller: &str) -> PathBuf {
        let all = hierarchies();
        let has = |hierarchy: &&Hierarchy| {
            hierarchy.controllers.as_ref().is_some_and(|names| names.iter().any(|name| name == controller))
        };
        let found = all.iter().find(has).or_else(|| all.iter().find(|hierarchy| hierarchy.controllers.is_none()));
        found.unwrap_or_else(|| panic!("no cgroup hierarchy with {controller}")).mount.join(&self.path)
    }

    /// The text of `v1` or, where the controller is unified, of `v2`.
    pub fn read(&self, controller: &str, v1: &str, v2: &str) -> String {
        let file = self.folder(controller).join(if is_unified() { v2 } else { v1 });
        fs::read_to_string(&file).unwrap_or_else(|error| panic!("read {}: {error}", file.display())).trim().to_owned()
    }

    /// Whether the kernel says that the group stands still: the freezer of v1 or, on hybrid too, that of v2.
    pub fn is_frozen(&self) -> bool {
        let all = hierarchies();
        let texts = all.iter().flat_map(|hierarchy| {
            ["freezer.state", "cgroup.events"]
                .map(|file| fs::read_to_string(hierarchy.mount.join(&self.path).join(file)))
        });
        texts.flatten().any(|text| text.lines().any(|line| line == "FROZEN" || line == "frozen 1"))
    }

    /// The processes in the group.
    pub fn processes(&self) -> Vec<u32> {
        let text = self.read("pids", "cgroup.procs", "cgroup.procs");
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

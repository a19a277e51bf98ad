//! Whether this kernel counts swap, and so can limit it. Not every one does: `swapaccount=0`, or a v1 kernel of Debian or
//! Ubuntu that was not booted with `swapaccount=1`.

use std::fs;
use std::path::Path;

use libcontainer::cgroup::Hierarchies;

/// Looks for the file that a container would be limited by, in cgroups that there are.
pub(crate) fn is_counted(hierarchies: &Hierarchies) -> bool {
    match hierarchies {
        Hierarchies::V1 { controllers, .. } => {
            let memory = controllers.iter().find(|one| one.controllers.iter().any(|name| name == "memory"));
            memory.is_some_and(|memory| memory.mount.join("memory.memsw.limit_in_bytes").exists())
        }
        // The top has no limits. All others with the controller have the same files.
        Hierarchies::V2(unified) => {
            let own = below(&unified.mount.join(&unified.own));
            // Where none has it yet, it is ours to enable.
            own.or_else(|| nearest(&unified.mount)).unwrap_or_else(|| Path::new("/proc/swaps").exists())
        }
    }
}

/// The first answer among the cgroups right below `cgroup`.
fn nearest(cgroup: &Path) -> Option<bool> {
    let folders = fs::read_dir(cgroup).into_iter().flatten().flatten();
    folders.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).find_map(|entry| below(&entry.path()))
}

/// By a cgroup's own files; nothing if it has no controller for memory.
fn below(cgroup: &Path) -> Option<bool> {
    cgroup.join("memory.max").exists().then(|| cgroup.join("memory.swap.max").exists())
}

#[cfg(test)]
mod tests {
    use super::*;
    use libcontainer::cgroup::Hierarchy;

    fn with(files: &[&str], look: impl Fn(&Path) -> Hierarchies) -> bool {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let file = folder.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "max\n").unwrap();
        }
        is_counted(&look(folder.path()))
    }

    fn hierarchy(mount: &Path, own: &str) -> Hierarchy {
        Hierarchy { controllers: vec!["memory".to_owned()], mount: mount.to_owned(), own: own.into() }
    }

    #[test]
    fn v1_tells_at_its_top() {
        let v1 = |mount: &Path| Hierarchies::V1 { controllers: vec![hierarchy(mount, "a")], unified: None };
        assert!(with(&["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"], v1));
        assert!(!with(&["memory.limit_in_bytes"], v1));
        assert!(!with(&[], |_| Hierarchies::V1 { controllers: Vec::new(), unified: None }));
    }

    #[test]
    fn v2_tells_in_any_cgroup_with_the_controller() {
        let of = |own: &'static str| move |mount: &Path| Hierarchies::V2(hierarchy(mount, own));
        assert!(with(&["own/memory.max", "own/memory.swap.max"], of("own")));
        assert!(!with(&["own/memory.max", "x/memory.max", "x/memory.swap.max"], of("own")));
        // Ours has no such controller, or is the top.
        for own in ["own", ""] {
            assert!(with(&["own/cgroup.procs", "x/memory.max", "x/memory.swap.max"], of(own)));
            assert!(!with(&["own/cgroup.procs", "x/memory.max"], of(own)));
            assert_eq!(with(&["own/cgroup.procs"], of(own)), Path::new("/proc/swaps").exists());
        }
    }
}

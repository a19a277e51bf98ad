//! How cgroups are mounted on this machine and where the runtime itself sits in them.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use cgroups_rs::fs::hugetlb::HugeTlbController;

/// The cgroup facts of this machine, read once by [`Layout::detect`] and then only looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// What is mounted.
    pub hierarchies: Hierarchies,
    /// The page sizes the hugetlb controller names its files by, such as `2MB`.
    pub hugepage_sizes: Vec<String>,
    /// The runtime is in a user namespace of its own: the kernel lets it set no device rules.
    pub user_namespace: bool,
}

/// The mounted hierarchies of one of the two designs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hierarchies {
    /// Controllers are in v1 hierarchies. A hybrid machine has a (usually controller-less) v2 mount as well, which we
    /// use for what v1 cannot do: a kill and a freeze that never fail, and a notice when the last process is gone.
    V1 {
        /// Every mounted v1 hierarchy that has a controller, and `name=systemd`.
        controllers: Vec<Hierarchy>,
        /// The v2 mount of a hybrid machine.
        unified: Option<Hierarchy>,
    },
    /// All controllers are in the one v2 hierarchy.
    V2(Hierarchy),
}

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// v1: the co-mounted controllers, or the one entry `name=systemd`. v2: the controllers the mount's top offers; none
    /// on a hybrid machine.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// The runtime's own cgroup, relative to the mount; empty when that is the mount's top.
    pub own: PathBuf,
}

/// This machine's cgroups cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A file of procfs or cgroupfs could not be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Neither design is mounted.
    #[error("no cgroup hierarchy is mounted: mount cgroup2 on /sys/fs/cgroup (mount -t cgroup2 none /sys/fs/cgroup)")]
    NotMounted,
}

impl Layout {
    /// Reads the facts from procfs, cgroupfs and sysfs.
    ///
    /// # Errors
    /// When procfs is not readable or no cgroup hierarchy is mounted.
    pub fn detect() -> Result<Layout, LayoutError> {
        let mut layout = Layout::parse(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?)?;
        // What a hybrid machine's v2 mount offers beside v1 we leave to whoever runs the machine: using it would mean to
        // enable it for everybody at the mount's top.
        if let Hierarchies::V2(hierarchy) = &mut layout.hierarchies {
            let offered = read(hierarchy.mount.join("cgroup.controllers"))?;
            hierarchy.controllers = offered.split_whitespace().map(str::to_owned).collect();
        }
        // The whole range of ids mapped to itself is what the initial namespace shows (user_namespaces(7)).
        layout.user_namespace = match read("/proc/self/uid_map") {
            Ok(map) => map.split_whitespace().ne(["0", "0", "4294967295"]),
            // A kernel without user namespaces.
            Err(LayoutError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        layout.hugepage_sizes = hugepage_sizes();
        Ok(layout)
    }

    /// The mounts from the text of `/proc/self/mountinfo` and `/proc/self/cgroup`; the controllers of a v2 mount stand
    /// in neither and are left empty.
    fn parse(mountinfo: &str, own: &str) -> Result<Layout, LayoutError> {
        let mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::parse).collect();
        let (mut v1, mut v2) = (Vec::new(), None);
        for line in own.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(names), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
            let controllers: Vec<String> = names.split(',').filter(|n| !n.is_empty()).map(str::to_owned).collect();
            let of_this = |mount: &&Mount| match controllers.is_empty() {
                true => mount.v2,
                false => !mount.v2 && controllers.iter().all(|name| mount.options.split(',').any(|o| o == name)),
            };
            // A hierarchy no one mounted is none of ours, nor is a named one that only its owner understands.
            let Some(mount) = mounts.iter().find(of_this) else { continue };
            let hierarchy = Hierarchy { own: mount.below(path), mount: mount.point.clone(), controllers };
            match hierarchy.controllers.first() {
                None => v2 = Some(hierarchy),
                Some(name) if name.starts_with("name=") && name != "name=systemd" => {}
                Some(_) => v1.push(hierarchy),
            }
        }
        let v1_has_controllers = v1.iter().any(|h| !h.controllers.iter().any(|name| name.starts_with("name=")));
        let hierarchies = match v2 {
            // systemd's rule: what is mounted on /sys/fs/cgroup itself says which design is in use.
            Some(v2) if !v1_has_controllers || v2.mount == Path::new("/sys/fs/cgroup") => Hierarchies::V2(v2),
            unified if v1_has_controllers => Hierarchies::V1 { controllers: v1, unified },
            _ => return Err(LayoutError::NotMounted),
        };
        Ok(Layout { hierarchies, hugepage_sizes: Vec::new(), user_namespace: false })
    }

    /// Whether a controller can be used here.
    pub fn has(&self, controller: &str) -> bool {
        match &self.hierarchies {
            Hierarchies::V1 { controllers, .. } => controllers.iter().any(|h| h.has(controller)),
            Hierarchies::V2(hierarchy) => hierarchy.has(controller),
        }
    }

    /// Whether the controllers are those of cgroup v2.
    pub fn is_v2(&self) -> bool {
        matches!(self.hierarchies, Hierarchies::V2(_))
    }
}

impl Hierarchy {
    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }
}

/// The page sizes by which hugetlb files are named on this machine.
pub(super) fn hugepage_sizes() -> Vec<String> {
    HugeTlbController::new(PathBuf::new(), PathBuf::new(), false).get_sizes()
}

struct Mount {
    v2: bool,
    root: PathBuf,
    point: PathBuf,
    options: String,
}

impl Mount {
    /// One line of mountinfo (proc_pid_mountinfo(5)), if it is a cgroup mount.
    fn parse(line: &str) -> Option<Mount> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut filesystem = filesystem.split(' ');
        let v2 = match filesystem.next()? {
            "cgroup" => false,
            "cgroup2" => true,
            _ => return None,
        };
        let options = filesystem.nth(1)?.to_owned();
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (unescape(mount.next()?), unescape(mount.next()?));
        Some(Mount { v2, root, point, options })
    }

    /// A path as `/proc/self/cgroup` shows it, relative to this mount. In a container without a cgroup namespace the
    /// mount shows only the subtree `root`. A process outside of that subtree counts as being at its top: it is the
    /// highest place it could use.
    fn below(&self, path: &str) -> PathBuf {
        let inside = Path::new(path).strip_prefix(&self.root).unwrap_or(Path::new(""));
        match inside.starts_with("..") {
            true => PathBuf::new(),
            false => inside.to_owned(),
        }
    }
}

/// Undoes mountinfo's octal escapes (`\040` for a blank).
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match escaped.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

fn read(path: impl AsRef<Path>) -> Result<String, LayoutError> {
    fs::read_to_string(&path).map_err(|source| LayoutError::Read { path: path.as_ref().to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:39 / /sys/fs/cgroup/elogind rw,relatime - cgroup cgroup rw,name=elogind
42 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    fn hierarchy(controllers: &[&str], mount: &str, own: &str) -> Hierarchy {
        let controllers = controllers.iter().map(|&name| name.to_owned()).collect();
        Hierarchy { controllers, mount: mount.into(), own: own.into() }
    }

    #[test]
    fn hybrid_keeps_v1_controllers_and_the_v2_mount() {
        let own = "5:name=elogind:/x\n4:cpu,cpuacct:/\n3:memory:/a/b\n2:pids:/\n1:name=systemd:/s\n0::/u\n";
        let layout = Layout::parse(V1, own).unwrap();
        let expected = Hierarchies::V1 {
            controllers: vec![
                hierarchy(&["cpu", "cpuacct"], "/sys/fs/cgroup/cpu,cpuacct", ""),
                hierarchy(&["memory"], "/sys/fs/cgroup/memory", "a/b"),
                hierarchy(&["name=systemd"], "/sys/fs/cgroup/systemd", "s"),
            ],
            unified: Some(hierarchy(&[], "/sys/fs/cgroup/unified", "u")),
        };
        assert_eq!(layout.hierarchies, expected);
        assert!(layout.has("memory") && !layout.has("pids") && !layout.is_v2());
    }

    #[test]
    fn cgroup2_on_the_usual_place_is_v2() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate";
        let layout = Layout::parse(mounts, "0::/system.slice/x.service\n").unwrap();
        assert_eq!(layout.hierarchies, Hierarchies::V2(hierarchy(&[], "/sys/fs/cgroup", "system.slice/x.service")));
    }

    #[test]
    fn inside_a_container_paths_are_relative_to_the_mounted_subtree() {
        let mounts = "30 23 0:26 /docker/abc /sys/fs/my\\040cgroup rw - cgroup2 cgroup2 rw";
        for (own, expected) in [("0::/docker/abc/x", "x"), ("0::/docker/abc", ""), ("0::/../other", "")] {
            let layout = Layout::parse(mounts, own).unwrap();
            assert_eq!(layout.hierarchies, Hierarchies::V2(hierarchy(&[], "/sys/fs/my cgroup", expected)), "{own}");
        }
    }

    #[test]
    fn nothing_mounted_is_said() {
        assert!(matches!(Layout::parse("", "0::/\n"), Err(LayoutError::NotMounted)));
    }
}

//! The machine's own `/` as a container's root. The supervisor lays the overlay, which shows the root filesystem alone;
//! what else of the machine belongs to it is shown by mounts, decided here.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Where a container has filesystems of its own, or should see none of the machine's.
pub(crate) const OWN: [&str; 5] = ["/dev", "/proc", "/run", "/sys", "/tmp"];

/// Filesystems without files of anybody's: views of the kernel, and memory. An overlay below / is another container's root.
const NO_DISKS: [&str; 26] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fuse.lxcfs",
    "fuse.portal",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nfsd",
    "nsfs",
    "overlay",
    "proc",
    "pstore",
    "ramfs",
    "rpc_pipefs",
    "securityfs",
    "sysfs",
    "tmpfs",
    "tracefs",
];

/// A line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
struct Mounted {
    id: u32,
    parent: u32,
    point: PathBuf,
    kind: String,
}

/// Where other filesystems with files are mounted below `/`, each after those it is mounted on. `ours` are folders whose
/// contents no container should see: what is mounted there is left out.
pub(crate) fn disks(mountinfo: &str, ours: &[PathBuf]) -> Vec<PathBuf> {
    let all: HashMap<u32, Mounted> = mountinfo.lines().filter_map(mounted).map(|mount| (mount.id, mount)).collect();
    let hidden = |path: &Path| {
        OWN.iter().map(Path::new).chain(ours.iter().map(PathBuf::as_path)).any(|own| path.starts_with(own))
    };
    let disks = all.values().filter(|mount| {
        mount.point != Path::new("/")
            && !NO_DISKS.contains(&&*mount.kind)
            && !hidden(&mount.point)
            && is_seen(mount, &all)
    });
    let mut points: Vec<PathBuf> = disks.map(|mount| mount.point.clone()).collect();
    points.sort();
    points.dedup();
    points
}

/// Whether it is what its path leads to: nothing was mounted over it, or over a folder on the way.
fn is_seen(mount: &Mounted, all: &HashMap<u32, Mounted>) -> bool {
    let on_it = |other: &Mounted| other.parent == mount.id && other.id != mount.id && other.point == mount.point;
    is_reached(mount, all) && !all.values().any(on_it)
}

fn is_reached(mount: &Mounted, all: &HashMap<u32, Mounted>) -> bool {
    let beside = all.values().filter(|other| other.parent == mount.parent && other.id != mount.id);
    let mut on_the_way = beside.filter(|other| mount.point != other.point && mount.point.starts_with(&other.point));
    // The first of all has a parent that is nobody's, or its own.
    let parent = all.get(&mount.parent).filter(|parent| parent.id != mount.id);
    on_the_way.next().is_none() && parent.is_none_or(|parent| is_reached(parent, all))
}

fn mounted(line: &str) -> Option<Mounted> {
    let mut fields = line.split(' ');
    let (id, parent) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let point = unescape(fields.nth(2)?);
    let kind = fields.skip_while(|field| *field != "-").nth(1)?.to_owned();
    Some(Mounted { id, parent, point, kind })
}

/// Blanks and backslashes are written as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(value) if byte == b'\\' => {
                bytes.push(value);
                rest = &after[3..];
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(mountinfo: &str, ours: &[&str]) -> Vec<String> {
        let ours: Vec<PathBuf> = ours.iter().map(PathBuf::from).collect();
        disks(mountinfo, &ours).iter().map(|point| point.display().to_string()).collect()
    }

    #[test]
    fn partitions_are_shown_and_what_is_no_disk_is_not() {
        let table = "\
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
28 27 0:21 / /proc rw - proc proc rw
29 27 0:22 / /run rw - tmpfs tmpfs rw
30 29 8:1 / /run/media/stick rw - vfat /dev/sdb1 rw
31 27 8:2 / /home rw - xfs /dev/sda2 rw
32 31 8:3 / /home/a\\040b rw master:3 - btrfs /dev/sda3 rw
33 27 0:50 / /var/lib/docker/overlay2/x/merged rw - overlay overlay rw
34 27 8:4 / /var/lib/dunnage rw - ext4 /dev/sda4 rw
35 27 0:60 / /mnt/nfs rw - nfs4 server:/ rw
36 27 8:0 /etc/hosts /etc/hosts rw - ext4 /dev/vda rw
broken line
";
        let expected = ["/etc/hosts", "/home", "/home/a b", "/mnt/nfs", "/var/lib/dunnage"];
        assert_eq!(points(table, &[]), expected);
        assert_eq!(points(table, &["/var/lib/dunnage", "/home"]), ["/etc/hosts", "/mnt/nfs"]);
    }

    #[test]
    fn what_is_mounted_over_is_not_there() {
        let table = "\
1 1 0:1 / / rw - rootfs rootfs rw
2 1 8:1 / / rw - ext4 /dev/sda1 rw
3 2 8:2 / /mnt/disk rw - ext4 /dev/sda2 rw
4 2 0:9 / /mnt rw - tmpfs tmpfs rw
5 4 8:3 / /mnt/new rw - ext4 /dev/sda3 rw
6 2 8:4 / /srv rw - ext4 /dev/sda4 rw
7 6 0:8 / /srv rw - tmpfs none rw
8 1 8:5 / /old rw - ext4 /dev/sda5 rw
";
        assert_eq!(points(table, &[]), ["/mnt/new"]);
    }
}

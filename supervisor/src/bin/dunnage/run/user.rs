//! Users by name, as the container's own /etc/passwd and /etc/group have them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

/// Whom a process runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Other groups.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// The two files' contents, empty if there are none.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names {
    passwd: String,
    group: String,
}

/// More than any machine's; a container may have made the file.
const MOST: u64 = 16 << 20;

impl Names {
    /// Reads the files below `root`, whatever links are in it: none leads out.
    pub(crate) fn read(root: &Path) -> anyhow::Result<Names> {
        let folder = open(root, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
        let folder = folder.with_context(|| format!("cannot open the container's root {}", root.display()))?;
        let read = |path: &str| {
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
            let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
            let file = match openat2(&folder, path, OpenHow::new().flags(flags).resolve(resolve)) {
                Ok(fd) => File::from(fd),
                Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(String::new()),
                Err(errno) => bail!("cannot open {path} in {}: {errno}", root.display()),
            };
            let mut bytes = Vec::new();
            file.take(MOST).read_to_end(&mut bytes).with_context(|| format!("cannot read {path} in the container"))?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        Ok(Names { passwd: read("etc/passwd")?, group: read("etc/group")? })
    }

    /// Finds `USER[:GROUP]`, each a name or a number. A number need not be in the files.
    pub(crate) fn find(&self, text: &str) -> anyhow::Result<User> {
        let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        let entry = self.passwd.lines().map(fields).find(|entry| entry[0] == user && !user.is_empty());
        let number = user.parse::<u32>().ok();
        let entry =
            entry.or_else(|| self.passwd.lines().map(fields).find(|e| number.is_some() && e[2].parse().ok() == number));
        let uid = match (entry.and_then(|entry| entry[2].parse().ok()), number) {
            (Some(uid), _) | (None, Some(uid)) => uid,
            (None, None) => bail!("there is no user {user:?} in the container's /etc/passwd"),
        };
        let groups = self.group.lines().map(fields);
        let gid = match group {
            Some(group) => {
                let named = groups.clone().find(|entry| entry[0] == group).and_then(|entry| entry[2].parse().ok());
                let found = named.or_else(|| group.parse().ok());
                found.with_context(|| format!("there is no group {group:?} in the container's /etc/group"))?
            }
            None => entry.and_then(|entry| entry[3].parse().ok()).unwrap_or_default(),
        };
        // With a group of one's own choice, those of the file do not count.
        let name = entry.filter(|_| group.is_none()).map(|entry| entry[0]);
        let others = groups.filter(|entry| name.is_some_and(|name| entry[3].split(',').any(|member| member == name)));
        let mut groups: Vec<u32> =
            others.filter_map(|entry| entry[2].parse().ok()).filter(|other| *other != gid).collect();
        groups.sort_unstable();
        groups.dedup();
        let home = entry.map(|entry| entry[5]).filter(|home| !home.is_empty()).unwrap_or("/");
        Ok(User { uid, gid, groups, home: home.to_owned() })
    }
}

/// The columns of passwd(5) or group(5).
fn fields(line: &str) -> [&str; 7] {
    let mut columns = line.split(':');
    std::array::from_fn(|_| columns.next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number() {
        let names = Names {
            passwd: "root:x:0:0::/root:/bin/sh\nann:x:1000:100::/home/ann:\n# odd\n7:x:70:71::/seven:\n".to_owned(),
            group: "root:x:0:\nwheel:x:10:root,ann\nusers:x:100:ann\ndup:x:10:ann\n".to_owned(),
        };
        let user =
            |uid, gid, groups: &[u32], home: &str| User { uid, gid, groups: groups.to_vec(), home: home.to_owned() };
        for (text, expected) in [
            ("root", user(0, 0, &[10], "/root")),
            ("0", user(0, 0, &[10], "/root")),
            ("ann", user(1000, 100, &[10], "/home/ann")),
            ("1000:wheel", user(1000, 10, &[], "/home/ann")),
            ("ann:5", user(1000, 5, &[], "/home/ann")),
            ("4711", user(4711, 0, &[], "/")),
            ("4711:users", user(4711, 100, &[], "/")),
            ("7", user(70, 71, &[], "/seven")),
        ] {
            assert_eq!(names.find(text).unwrap(), expected, "{text}");
        }
        for text in ["bob", "", ":", "ann:nobody", "-1", "ann:"] {
            assert!(names.find(text).is_err(), "{text}");
        }
    }

    #[test]
    fn links_in_the_root_do_not_lead_out_of_it() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("etc/passwd")).unwrap();
        assert!(Names::read(root.path()).is_err(), "a link to itself");
        std::fs::remove_file(root.path().join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("../../../../../real", root.path().join("etc/passwd")).unwrap();
        std::fs::write(root.path().join("real"), "ann:x:5:6::/h:\n").unwrap();
        assert_eq!(Names::read(root.path()).unwrap().find("ann").unwrap().uid, 5);
    }
}

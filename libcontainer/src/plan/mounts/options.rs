//! The words of `mounts[].options`, and what they mean: those of mount(8), those of the OCI spec, and for all others the
//! filesystem is asked.

use std::ffi::{CStr, CString};

use nix::mount::MsFlags;

use crate::step::mount::{Flags, Param, Propagation, PropagationKind};
use crate::sys::mount::{FSCONFIG_VALUE_MAX, MountAttr, attr};

/// nix does not name it (Linux 5.10).
const NOSYMFOLLOW: MsFlags = MsFlags::from_bits_retain(256);

/// Flags of the filesystem, which fsconfig(2) takes by these names (fs/fs_context.c).
const SUPERBLOCK_FLAGS: [(MsFlags, &CStr); 5] = [
    (MsFlags::MS_RDONLY, FLAG_WORDS[0]),
    (MsFlags::MS_SYNCHRONOUS, FLAG_WORDS[1]),
    (MsFlags::MS_DIRSYNC, FLAG_WORDS[2]),
    (MsFlags::MS_MANDLOCK, FLAG_WORDS[3]),
    (MsFlags::MS_LAZYTIME, FLAG_WORDS[4]),
];

/// The names of those flags: words for the kernel, not for the filesystem.
pub(super) const FLAG_WORDS: [&CStr; 5] = [c"ro", c"sync", c"dirsync", c"mand", c"lazytime"];

/// What one word does.
enum Word {
    Set(MsFlags),
    Clear(MsFlags),
    Propagate(PropagationKind, bool),
    /// For every mount of a tree: the value, in the field of bits it belongs to.
    All {
        field: u64,
        value: u64,
    },
    CopyUp,
    IdMap {
        recursive: bool,
    },
}

/// The table. Contradictions are settled as runc does: the last word wins, bit by bit.
#[rustfmt::skip]
const WORDS: &[(&str, Word)] = {
    use PropagationKind::*;
    use Word::*;
    &[
        ("async", Clear(MsFlags::MS_SYNCHRONOUS)),
        ("atime", Clear(MsFlags::MS_NOATIME)),
        ("bind", Set(MsFlags::MS_BIND)),
        ("defaults", Set(MsFlags::empty())),
        ("dev", Clear(MsFlags::MS_NODEV)),
        ("diratime", Clear(MsFlags::MS_NODIRATIME)),
        ("dirsync", Set(MsFlags::MS_DIRSYNC)),
        ("exec", Clear(MsFlags::MS_NOEXEC)),
        ("iversion", Set(MsFlags::MS_I_VERSION)),
        ("lazytime", Set(MsFlags::MS_LAZYTIME)),
        ("loud", Clear(MsFlags::MS_SILENT)),
        ("mand", Set(MsFlags::MS_MANDLOCK)),
        ("noatime", Set(MsFlags::MS_NOATIME)),
        ("nodev", Set(MsFlags::MS_NODEV)),
        ("nodiratime", Set(MsFlags::MS_NODIRATIME)),
        ("noexec", Set(MsFlags::MS_NOEXEC)),
        ("noiversion", Clear(MsFlags::MS_I_VERSION)),
        ("nolazytime", Clear(MsFlags::MS_LAZYTIME)),
        ("nomand", Clear(MsFlags::MS_MANDLOCK)),
        ("norelatime", Clear(MsFlags::MS_RELATIME)),
        ("nostrictatime", Clear(MsFlags::MS_STRICTATIME)),
        ("nosuid", Set(MsFlags::MS_NOSUID)),
        ("nosymfollow", Set(NOSYMFOLLOW)),
        ("rbind", Set(MsFlags::MS_BIND.union(MsFlags::MS_REC))),
        ("relatime", Set(MsFlags::MS_RELATIME)),
        ("remount", Set(MsFlags::MS_REMOUNT)),
        ("ro", Set(MsFlags::MS_RDONLY)),
        ("rw", Clear(MsFlags::MS_RDONLY)),
        ("silent", Set(MsFlags::MS_SILENT)),
        ("strictatime", Set(MsFlags::MS_STRICTATIME)),
        ("suid", Clear(MsFlags::MS_NOSUID)),
        ("symfollow", Clear(NOSYMFOLLOW)),
        ("sync", Set(MsFlags::MS_SYNCHRONOUS)),

        ("private", Propagate(Private, false)),
        ("rprivate", Propagate(Private, true)),
        ("rshared", Propagate(Shared, true)),
        ("rslave", Propagate(Slave, true)),
        ("runbindable", Propagate(Unbindable, true)),
        ("shared", Propagate(Shared, false)),
        ("slave", Propagate(Slave, false)),
        ("unbindable", Propagate(Unbindable, false)),

        ("ratime", All { field: attr::ATIME, value: 0 }),
        ("rdev", All { field: attr::NODEV, value: 0 }),
        ("rdiratime", All { field: attr::NODIRATIME, value: 0 }),
        ("rexec", All { field: attr::NOEXEC, value: 0 }),
        ("rnoatime", All { field: attr::ATIME, value: attr::NOATIME }),
        ("rnodev", All { field: attr::NODEV, value: attr::NODEV }),
        ("rnodiratime", All { field: attr::NODIRATIME, value: attr::NODIRATIME }),
        ("rnoexec", All { field: attr::NOEXEC, value: attr::NOEXEC }),
        ("rnorelatime", All { field: 0, value: 0 }),
        ("rnostrictatime", All { field: attr::ATIME, value: 0 }),
        ("rnosuid", All { field: attr::NOSUID, value: attr::NOSUID }),
        ("rnosymfollow", All { field: attr::NOSYMFOLLOW, value: attr::NOSYMFOLLOW }),
        ("rrelatime", All { field: attr::ATIME, value: 0 }),
        ("rro", All { field: attr::RDONLY, value: attr::RDONLY }),
        ("rrw", All { field: attr::RDONLY, value: 0 }),
        ("rstrictatime", All { field: attr::ATIME, value: attr::STRICTATIME }),
        ("rsuid", All { field: attr::NOSUID, value: 0 }),
        ("rsymfollow", All { field: attr::NOSYMFOLLOW, value: 0 }),

        ("idmap", IdMap { recursive: false }),
        ("ridmap", IdMap { recursive: true }),
        ("tmpcopyup", CopyUp),
    ]
};

/// Every option that is not handed to the filesystem, sorted: what `features` lists as `mountOptions`.
pub fn known_options() -> Vec<&'static str> {
    let mut names: Vec<_> = WORDS.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    names
}

/// The options of one mount, understood.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    set: Bits,
    cleared: Bits,
    pub(super) propagation: Vec<Propagation>,
    /// For every mount of the tree: `None` without such an option.
    pub(super) all: Option<MountAttr>,
    pub(super) copy_up: bool,
    /// An id mapping is asked for, of the whole tree or of its top.
    pub(super) idmap: Option<bool>,
    /// What is left for the filesystem.
    pub(super) data: Vec<String>,
}

/// [`MsFlags`] has no default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bits(MsFlags);

impl Default for Bits {
    fn default() -> Self {
        Self(MsFlags::empty())
    }
}

impl Options {
    pub(super) fn read(words: &[String]) -> Self {
        let mut options = Self::default();
        for word in words {
            let known = WORDS.iter().find(|(name, _)| name == word).map(|(_, meaning)| meaning);
            match known {
                Some(Word::Set(flags)) => {
                    options.set.0.insert(*flags);
                    options.cleared.0.remove(*flags);
                }
                Some(Word::Clear(flags)) => {
                    options.set.0.remove(*flags);
                    options.cleared.0.insert(*flags);
                }
                Some(Word::Propagate(kind, recursive)) => {
                    options.propagation.push(Propagation { kind: *kind, recursive: *recursive });
                }
                Some(Word::All { field, value }) => {
                    let all = options.all.get_or_insert_default();
                    all.clear |= field;
                    all.set = all.set & !field | value;
                }
                Some(Word::CopyUp) => options.copy_up = true,
                Some(Word::IdMap { recursive }) => options.idmap = Some(*recursive),
                None if word.is_empty() => {}
                None => options.data.extend(words_of(word)),
            }
        }
        options
    }

    pub(super) fn is_bind(&self) -> bool {
        self.set.0.contains(MsFlags::MS_BIND)
    }

    pub(super) fn is_recursive(&self) -> bool {
        self.set.0.contains(MsFlags::MS_REC)
    }

    pub(super) fn is_remount(&self) -> bool {
        self.set.0.contains(MsFlags::MS_REMOUNT)
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.attrs() & attr::RDONLY != 0
    }

    /// The `MOUNT_ATTR_*` bits of a new mount. Where several access times are named, the kernel's order of strictness
    /// decides, as in mount(2).
    pub(super) fn attrs(&self) -> u64 {
        let own = attrs_of(self.set.0);
        // On a single mount, options for a whole tree mean just that mount.
        self.all.map_or(own, |all| own & !all.clear | all.set)
    }

    /// The attributes of a bind mount; `None` if no option speaks of any, which keeps those of the source.
    pub(super) fn flags(&self) -> Option<Flags> {
        let how = MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_REMOUNT;
        if (self.set.0 - how).is_empty() && self.cleared.0.is_empty() {
            return None;
        }
        let atimes = MsFlags::MS_NOATIME | MsFlags::MS_NODIRATIME | MsFlags::MS_RELATIME | MsFlags::MS_STRICTATIME;
        let atime = self.set.0.intersects(atimes);
        Some(Flags { set: attrs_of(self.set.0), cleared: attrs_of(self.cleared.0), atime })
    }

    /// What the filesystem is told: the flags that are its own business, then the data.
    pub(super) fn params(&self) -> Result<Vec<Param>, std::ffi::NulError> {
        let flags = SUPERBLOCK_FLAGS.iter().filter(|(flag, _)| self.set.0.contains(*flag));
        let flags = flags.map(|(_, name)| Ok((CString::from(*name), None)));
        let data = self.data.iter().map(|word| {
            Ok(match word.split_once('=') {
                Some((key, value)) => (CString::new(key)?, Some(CString::new(value)?)),
                None => (CString::new(word.as_str())?, None),
            })
        });
        flags.chain(data).collect()
    }

    /// What fsconfig(2) has no words for is left to mount(2): values longer than it takes, and `iversion`.
    /// (`silent` keeps the kernel's log quiet about a failure; the new calls never write there.)
    pub(super) fn needs_mount_2(&self) -> Option<MsFlags> {
        let long = self.data.iter().any(|word| word.split_once('=').is_some_and(|(_, v)| v.len() > FSCONFIG_VALUE_MAX));
        let needed = long || self.set.0.contains(MsFlags::MS_I_VERSION);
        needed.then(|| self.set.0 - MsFlags::MS_REC)
    }
}

/// One string may hold several words, as in fstab; commas in double quotes do not count (SELinux contexts have them).
fn words_of(text: &str) -> impl Iterator<Item = String> {
    let mut quoted = false;
    let between = move |c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    };
    text.split(between).filter(|word| !word.is_empty()).map(|word| word.replace('"', ""))
}

fn attrs_of(flags: MsFlags) -> u64 {
    let mut attrs = 0;
    for (flag, bit) in [
        (MsFlags::MS_RDONLY, attr::RDONLY),
        (MsFlags::MS_NOSUID, attr::NOSUID),
        (MsFlags::MS_NODEV, attr::NODEV),
        (MsFlags::MS_NOEXEC, attr::NOEXEC),
        (MsFlags::MS_NODIRATIME, attr::NODIRATIME),
        (NOSYMFOLLOW, attr::NOSYMFOLLOW),
    ] {
        attrs |= if flags.contains(flag) { bit } else { 0 };
    }
    attrs |= match (flags.contains(MsFlags::MS_STRICTATIME), flags.contains(MsFlags::MS_NOATIME)) {
        (true, _) => attr::STRICTATIME,
        (false, true) => attr::NOATIME,
        (false, false) => 0,
    };
    attrs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Options {
        Options::read(&words.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn the_last_word_wins() {
        for (words, attrs) in [
            (&["ro", "rw"][..], 0),
            (&["rw", "ro"], attr::RDONLY),
            (&["nosuid", "nodev", "noexec", "dev"], attr::NOSUID | attr::NOEXEC),
            (&["noatime", "atime"], 0),
            (&["strictatime", "nostrictatime"], 0),
            (&["nosymfollow"], attr::NOSYMFOLLOW),
            (&["ro", "rrw"], 0),
        ] {
            assert_eq!(read(words).attrs(), attrs, "{words:?}");
        }
    }

    #[test]
    fn of_several_access_times_the_strictest_counts() {
        assert_eq!(read(&["strictatime", "noatime", "relatime"]).attrs(), attr::STRICTATIME);
        assert_eq!(read(&["noatime", "relatime", "nodiratime"]).attrs(), attr::NOATIME | attr::NODIRATIME);
    }

    #[test]
    fn a_bind_mount_keeps_its_attributes_unless_one_is_named() {
        assert_eq!(read(&["rbind", "rprivate"]).flags(), None);
        assert_eq!(read(&["bind", "ro"]).flags(), Some(Flags { set: attr::RDONLY, cleared: 0, atime: false }));
        assert_eq!(read(&["bind", "rw"]).flags(), Some(Flags { set: 0, cleared: attr::RDONLY, atime: false }));
        assert_eq!(read(&["bind", "noatime"]).flags(), Some(Flags { set: attr::NOATIME, cleared: 0, atime: true }));
        // Only options that set an access time change it; mount(2) keeps the old one otherwise.
        assert_eq!(read(&["bind", "atime"]).flags().map(|f| f.atime), Some(false));
    }

    #[test]
    fn options_for_the_whole_tree_are_apart() {
        let options = read(&["rbind", "rro", "rnosuid", "rnoatime", "rstrictatime", "rexec"]);
        let field = attr::RDONLY | attr::NOSUID | attr::ATIME | attr::NOEXEC;
        let set = attr::RDONLY | attr::NOSUID | attr::STRICTATIME;
        assert_eq!(options.all, Some(MountAttr { set, clear: field, ..MountAttr::default() }));
        assert_eq!(options.flags(), None);
    }

    #[test]
    fn the_filesystem_is_told_the_rest() {
        let options = read(&["nosuid", "size=64k,mode=1777", "ro", "sync", "hidepid=2", "nr_inodes=5", "acl", "x="]);
        let params: Vec<_> = options
            .params()
            .expect("no NUL")
            .into_iter()
            .map(|(key, value)| {
                let text = |c: CString| c.into_string().expect("UTF-8");
                (text(key), value.map(text))
            })
            .collect();
        let expected = [
            ("ro", None),
            ("sync", None),
            ("size", Some("64k")),
            ("mode", Some("1777")),
            ("hidepid", Some("2")),
            ("nr_inodes", Some("5")),
            ("acl", None),
            ("x", Some("")),
        ];
        let expected: Vec<_> = expected.iter().map(|(k, v)| (k.to_string(), v.map(str::to_string))).collect();
        assert_eq!(params, expected);
    }

    #[test]
    fn what_the_new_calls_cannot_say_is_left_to_mount_2() {
        assert_eq!(read(&["size=1", "ro"]).needs_mount_2(), None);
        assert!(read(&[&format!("lowerdir={}", "x".repeat(256))]).needs_mount_2().is_some());
        assert!(read(&["iversion"]).needs_mount_2().is_some());
        assert!(read(&["iversion", "noiversion"]).needs_mount_2().is_none());
    }

    #[test]
    fn no_word_is_listed_twice() {
        let names = known_options();
        assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "{names:?}");
    }
}

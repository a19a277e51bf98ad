//! `linux.cgroupsPath`: which directories a container's cgroup is.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Problem;
use super::layout::{Hierarchies, Hierarchy, Layout};

/// A checked `linux.cgroupsPath`: it names a directory below the mount and can never climb above it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupPath {
    absolute: bool,
    path: PathBuf,
}

/// One directory of a container's cgroup: on v1 there is one for each hierarchy, on v2 just one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The directory is in the v2 hierarchy.
    pub v2: bool,
    /// v1: the controllers of the hierarchy, or the one entry `name=systemd`. v2: what the mount's top offers;
    /// none on a hybrid machine.
    pub controllers: Vec<String>,
    /// Where the hierarchy is mounted.
    pub mount: PathBuf,
    /// The container's directory: an absolute path below `mount`.
    pub dir: PathBuf,
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.absolute { "/" } else { "" }, self.path.display())
    }
}

impl CgroupPath {
    /// Reads `linux.cgroupsPath` by its text alone, as the runtime specification and runc have it:
    /// - an absolute path counts from the mount point of each hierarchy;
    /// - a relative one from the runtime's own cgroup in each v1 hierarchy; on v2 from that cgroup's parent, because a
    ///   cgroup that has processes (the runtime) can give no controllers to cgroups below it;
    /// - none, or an empty one, is `/<id>`.
    ///
    /// `..` is resolved in the text and stops at the top.
    ///
    /// # Errors
    /// When the path names the top itself, whose limits and processes are not ours.
    pub fn new(cgroups_path: Option<&Path>, id: &str) -> Result<CgroupPath, Problem> {
        let given = cgroups_path.filter(|path| !path.as_os_str().is_empty());
        let absolute = given.is_none_or(Path::is_absolute);
        let mut path = PathBuf::new();
        for component in given.unwrap_or(Path::new(id)).components() {
            match component {
                Component::Normal(name) => path.push(name),
                Component::ParentDir => drop(path.pop()),
                Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
            }
        }
        match path.as_os_str().is_empty() {
            true => Err(Problem {
                field: "linux.cgroupsPath".into(),
                text: "it names the top of the hierarchy; give the container a cgroup of its own, such as /<id>".into(),
            }),
            false => Ok(CgroupPath { absolute, path }),
        }
    }

    /// That of a unit of systemd, which counts from the mount points.
    pub(super) fn at(path: PathBuf) -> CgroupPath {
        CgroupPath { absolute: true, path }
    }

    /// The directories this path means on a machine; on a hybrid one the v2 directory comes last.
    pub fn places(&self, layout: &Layout) -> Vec<Place> {
        match &layout.hierarchies {
            Hierarchies::V2(hierarchy) => {
                vec![self.place(hierarchy, true, hierarchy.own.parent().unwrap_or(Path::new("")))]
            }
            Hierarchies::V1 { controllers, unified } => {
                let v1 = controllers.iter().map(|hierarchy| self.place(hierarchy, false, &hierarchy.own));
                v1.chain(unified.iter().map(|hierarchy| self.place(hierarchy, true, &hierarchy.own))).collect()
            }
        }
    }

    fn place(&self, hierarchy: &Hierarchy, v2: bool, base: &Path) -> Place {
        let mut dir = hierarchy.mount.clone();
        if !self.absolute && !base.as_os_str().is_empty() {
            dir.push(base);
        }
        dir.push(&self.path);
        Place { v2, controllers: hierarchy.controllers.clone(), mount: hierarchy.mount.clone(), dir }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v1(own: &str) -> Layout {
        let hierarchy = Hierarchy { controllers: vec!["pids".into()], mount: "/m/pids".into(), own: own.into() };
        let unified = Some(Hierarchy { controllers: vec![], mount: "/m/unified".into(), own: "u".into() });
        let hierarchies = Hierarchies::V1 { controllers: vec![hierarchy], unified };
        Layout { hierarchies, hugepage_sizes: vec![], user_namespace: false }
    }

    fn v2(own: &str) -> Layout {
        let hierarchy = Hierarchy { controllers: vec!["pids".into()], mount: "/m".into(), own: own.into() };
        Layout { hierarchies: Hierarchies::V2(hierarchy), hugepage_sizes: vec![], user_namespace: false }
    }

    fn dirs(path: Option<&str>, layout: &Layout) -> Vec<String> {
        let path = CgroupPath::new(path.map(Path::new), "web-1").unwrap();
        path.places(layout).into_iter().map(|place| place.dir.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn each_kind_of_path_starts_where_runc_starts_it() {
        for (given, on_v1, on_v1_unified, on_v2) in [
            (None, "/m/pids/web-1", "/m/unified/web-1", "/m/web-1"),
            (Some(""), "/m/pids/web-1", "/m/unified/web-1", "/m/web-1"),
            (Some("/a/b"), "/m/pids/a/b", "/m/unified/a/b", "/m/a/b"),
            (Some("a/b"), "/m/pids/x/y/a/b", "/m/unified/u/a/b", "/m/x/a/b"),
        ] {
            assert_eq!(dirs(given, &v1("x/y")), [on_v1, on_v1_unified]);
            assert_eq!(dirs(given, &v2("x/y")), [on_v2]);
        }
    }

    #[test]
    fn dots_never_climb_above_the_starting_point() {
        for given in ["/../../a", "../../../a", "/b/../a", "./a/.", "//a//"] {
            let path = CgroupPath::new(Some(Path::new(given)), "id").unwrap();
            assert_eq!(path.path, Path::new("a"), "{given}");
        }
    }

    #[test]
    fn the_top_is_refused() {
        for given in ["/", "..", "/a/..", "."] {
            let problem = CgroupPath::new(Some(Path::new(given)), "id").unwrap_err();
            assert_eq!(problem.field, "linux.cgroupsPath", "{given}");
        }
        assert!(CgroupPath::new(None, "").is_err());
    }
}

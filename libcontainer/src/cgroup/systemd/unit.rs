//! `linux.cgroupsPath` under systemd: `slice:prefix:name`.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::properties::{self, Property};
use super::{CgroupPath, Layout, Limits, SavedUnit, annotation};
use crate::cgroup::devices::Allowed;
use crate::cgroup::{Hierarchies, Problem};
use crate::host::Host;

/// What stands before the id in the name of a unit that nobody has named.
const PREFIX: &str = "dunnage";
/// The longest name of a unit, in bytes (systemd.unit(5)).
const LONGEST: usize = 255;
const FIELD: &str = "linux.cgroupsPath";

/// Which systemd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Manager {
    /// That of the host, pid 1.
    System,
    /// That of the user (`systemd --user`).
    User,
}

/// A container as a unit of systemd.
#[derive(Debug)]
pub struct Unit {
    name: String,
    slice: String,
    manager: Manager,
    path: CgroupPath,
    properties: Vec<Property>,
    /// v1: the devices that may be used. systemd writes its own list at every reload, and it allows all unless told.
    devices: Vec<Allowed>,
}

impl Manager {
    /// The one that makes units for this process: for root, pid 1.
    pub fn of(host: &Host) -> Manager {
        if host.privileged && !host.in_user_namespace { Manager::System } else { Manager::User }
    }

    /// The slice of units that name none.
    pub(super) fn slice(self) -> &'static str {
        match self {
            Manager::System => "system.slice",
            Manager::User => "user.slice",
        }
    }
}

impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Manager::System => "systemd",
            Manager::User => "systemd --user",
        })
    }
}

impl Unit {
    /// Reads `linux.cgroupsPath`: `slice:prefix:name`, of which slice and prefix may be empty. A `name` that ends in
    /// `.slice` is the unit; else it is `prefix-name.scope`. Without a path it is `dunnage-<id>.scope`.
    ///
    /// # Errors
    /// When the path has another form, or cannot be the name of a unit.
    pub fn new(cgroups_path: Option<&Path>, id: &str, manager: Manager, layout: &Layout) -> Result<Unit, Problem> {
        let problem = |text: String| Problem { field: FIELD.into(), text };
        let given = cgroups_path.filter(|path| !path.as_os_str().is_empty());
        let default = format!(":{PREFIX}:{id}");
        let text = given.map_or(Some(default.as_str()), Path::to_str).unwrap_or_default();
        let [slice, prefix, name] = text.split(':').collect::<Vec<_>>()[..] else {
            return Err(problem(format!(
                "{text:?} names no unit of systemd (slice:prefix:name): name one, or turn the systemd cgroup driver off"
            )));
        };
        let slice = if slice.is_empty() { manager.slice() } else { slice };
        let name = match (prefix, name) {
            (_, "") => return Err(problem(format!("{text:?} has no name after its last colon"))),
            (_, slice) if slice.ends_with(".slice") => slice.to_owned(),
            ("", name) => format!("{name}.scope"),
            (prefix, name) => format!("{prefix}-{name}.scope"),
        };
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
        if name.len() > LONGEST || !name.bytes().all(allowed) {
            return Err(problem(format!(
                "{name:?} cannot be the name of a unit: letters, digits and : - _ . \\ @ only, at most {LONGEST}"
            )));
        }
        let expanded =
            |slice: &str| expand(slice).ok_or_else(|| problem(format!("{slice:?} is not the name of a slice")));
        let mut path = match manager {
            Manager::System => PathBuf::new(),
            Manager::User => match of_user_manager(layout).map_err(problem)? {
                Ok(path) => path,
                // Where a scope is, its process shows once it is in there.
                Err(_) if !name.ends_with(".slice") => PathBuf::new(),
                Err(own) => {
                    let own = own.display();
                    return Err(problem(format!(
                        "this process, in cgroup /{own}, is in no session of a user of systemd, so it cannot be told where \
                         {name} would be; name a scope, or start this from a session of the user's"
                    )));
                }
            },
        };
        let parent = expanded(slice)?;
        path.push(if name.ends_with(".slice") { expanded(&name)? } else { parent.join(&name) });
        Ok(Unit {
            slice: slice.to_owned(),
            name,
            manager,
            path: CgroupPath::at(path),
            properties: Vec::new(),
            devices: Vec::new(),
        })
    }

    /// Decides what systemd is told of a container with these annotations and limits.
    ///
    /// # Errors
    /// Every annotation `org.systemd.property.*` that cannot be one.
    pub fn compile<'a>(
        &mut self,
        id: &str,
        annotations: impl IntoIterator<Item = (&'a String, &'a String)>,
        limits: &Limits,
        layout: &Layout,
    ) -> Result<(), Vec<Problem>> {
        self.properties = properties::of_new(id, self, limits, layout);
        self.devices = limits.allowed_devices().unwrap_or_default();
        let mut problems = Vec::new();
        let mut given: Vec<_> = annotations.into_iter().collect();
        given.sort();
        for (name, value) in given {
            match annotation::property(name, value) {
                Ok(Some(property)) => {
                    self.properties.retain(|other| other.name != property.name);
                    self.properties.push(property);
                }
                Ok(None) => {}
                Err(text) => problems.push(Problem { field: format!("annotations[{name}]").into(), text }),
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The slice it is in.
    pub fn slice(&self) -> &str {
        &self.slice
    }

    /// Whose it is.
    pub fn manager(&self) -> Manager {
        self.manager
    }

    /// Where its cgroup will be.
    pub fn path(&self) -> &CgroupPath {
        &self.path
    }

    /// A slice, which holds units, and no process that systemd knows of.
    pub fn is_slice(&self) -> bool {
        self.name.ends_with(".slice")
    }

    /// What systemd is told of it.
    pub fn properties(&self) -> &[Property] {
        &self.properties
    }

    pub(super) fn devices(&self) -> &[Allowed] {
        &self.devices
    }

    /// What to remember of it.
    pub fn saved(&self) -> SavedUnit {
        SavedUnit { name: self.name.clone(), manager: self.manager }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.name, self.manager)
    }
}

/// Where a slice is: `a-b.slice` is in `a.slice`, and `-.slice` is the top (systemd.slice(5)).
fn expand(slice: &str) -> Option<PathBuf> {
    let name = slice.strip_suffix(".slice").filter(|name| !name.contains('/'))?;
    let (mut path, mut end) = (PathBuf::new(), 0);
    if name == "-" {
        return Some(path);
    }
    for part in name.split('-') {
        if part.is_empty() {
            return None;
        }
        end += part.len();
        path.push(format!("{}.slice", &name[..end]));
        end += 1;
    }
    Some(path)
}

/// The cgroup of the user's manager, from where this process is: inside of it, or in a session beside it. Where this process
/// is, if it is neither: a service of the host's, say, with the address of the user's bus.
fn of_user_manager(layout: &Layout) -> Result<Result<PathBuf, &Path>, String> {
    let Hierarchies::V2(hierarchy) = &layout.hierarchies else {
        return Err("the systemd of a user has units to give on cgroup v2 only".to_owned());
    };
    let mut path = PathBuf::new();
    for component in hierarchy.own.components() {
        let Component::Normal(name) = component else { continue };
        let name = name.to_string_lossy();
        path.push(&*name);
        if name.starts_with("user@") && name.ends_with(".service") {
            return Ok(Ok(path));
        }
        let uid = name.strip_prefix("user-").and_then(|name| name.strip_suffix(".slice"));
        if let Some(uid) = uid.filter(|uid| uid.bytes().all(|byte| byte.is_ascii_digit())) {
            let manager = format!("user@{uid}.service");
            if !hierarchy.own.starts_with(path.join(&manager)) {
                return Ok(Ok(path.join(manager)));
            }
        }
    }
    Ok(Err(&hierarchy.own))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Hierarchy;

    fn v2(own: &str) -> Layout {
        let hierarchy = Hierarchy { controllers: vec![], mount: "/m".into(), own: own.into() };
        Layout { hierarchies: Hierarchies::V2(hierarchy), hugepage_sizes: vec![], user_namespace: false }
    }

    fn read(path: Option<&str>, manager: Manager, own: &str) -> Result<(String, String), String> {
        let layout = v2(own);
        let unit = Unit::new(path.map(Path::new), "web-1", manager, &layout).map_err(|problem| problem.to_string())?;
        Ok((unit.name.clone(), unit.path.places(&layout)[0].dir.to_str().unwrap().to_owned()))
    }

    #[test]
    fn each_kind_of_path_means_what_it_means_to_runc() {
        for (given, name, dir) in [
            (None, "dunnage-web-1.scope", "/m/system.slice/dunnage-web-1.scope"),
            (Some("::c"), "c.scope", "/m/system.slice/c.scope"),
            (Some(":docker:c"), "docker-c.scope", "/m/system.slice/docker-c.scope"),
            (
                Some("kubepods-burstable-poda1.slice:cri-containerd:c"),
                "cri-containerd-c.scope",
                "/m/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poda1.slice/cri-containerd-c.scope",
            ),
            (Some("-.slice:p:c"), "p-c.scope", "/m/p-c.scope"),
            (Some("a.slice:p:a-b.slice"), "a-b.slice", "/m/a.slice/a-b.slice"),
        ] {
            let (found, at) = read(given, Manager::System, "init.scope").unwrap();
            assert_eq!((found.as_str(), at.as_str()), (name, dir), "{given:?}");
        }
    }

    #[test]
    fn what_is_no_unit_is_refused() {
        for (given, why) in [
            ("/kubepods/pod/c", "slice:prefix:name"),
            ("a.slice:p:c:d", "slice:prefix:name"),
            ("a.slice:p:", "no name"),
            ("a.service:p:c", "not the name of a slice"),
            ("a--b.slice:p:c", "not the name of a slice"),
            ("-a.slice:p:c", "not the name of a slice"),
            ("a/b.slice:p:c", "not the name of a slice"),
            (".slice:p:c", "not the name of a slice"),
            ("a.slice:p:c d", "cannot be the name"),
            ("a.slice:p:../c", "cannot be the name"),
        ] {
            let error = read(Some(given), Manager::System, "").unwrap_err();
            assert!(error.starts_with(FIELD) && error.contains(why), "{given}: {error}");
        }
        let long = format!("::{}", "x".repeat(256));
        assert!(read(Some(&long), Manager::System, "").is_err());
    }

    #[test]
    fn a_users_units_are_below_his_manager() {
        let expected = "/m/user.slice/user-1000.slice/user@1000.service/user.slice/dunnage-web-1.scope";
        for own in [
            "user.slice/user-1000.slice/session-3.scope",
            "user.slice/user-1000.slice/user@1000.service/app.slice/x.scope",
        ] {
            assert_eq!(read(None, Manager::User, own).unwrap().1, expected, "{own}");
        }
        let elsewhere = "system.slice/cron.service";
        assert_eq!(read(None, Manager::User, elsewhere).unwrap().0, "dunnage-web-1.scope", "it will show where it is");
        let nobody = read(Some("::a.slice"), Manager::User, elsewhere).unwrap_err();
        assert!(nobody.contains("/system.slice/cron.service"), "{nobody}");
        let v1 = Layout { hierarchies: Hierarchies::V1 { controllers: vec![], unified: None }, ..v2("") };
        assert!(Unit::new(None, "web-1", Manager::User, &v1).unwrap_err().text.contains("cgroup v2 only"));
    }
}

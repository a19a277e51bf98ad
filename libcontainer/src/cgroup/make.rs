//! How the directories of a container's cgroup come to be, and to be usable.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::Mode;
use nix::unistd::{Uid, mkdir};

use super::dir::Dir;
use super::path::Place;
use super::{Cgroup, CgroupError, Group, Limits, Withheld, failed, remove_children, remove_dir};

impl Group {
    pub(super) fn make(&mut self, limits: &Limits) -> Result<(), CgroupError> {
        let (mount, path) = (self.place.mount.clone(), self.place.dir.clone());
        let fresh = make_dir(&path, &mount, &mut self.made)?;
        if !fresh && clear(&path)? && !make_dir(&path, &mount, &mut self.made)? {
            return Err(CgroupError::InUse { dir: path, processes: 0 }); // it was faster
        }
        let dir = Dir::open(&path).map_err(failed("open cgroup", &path))?;
        if self.place.v2 {
            self.withheld = enable_controllers(&self.place, &dir)?;
            takes_processes(&dir, &path)?;
        } else if self.place.controllers.iter().any(|name| name == "cpuset") {
            inherit_cpuset(&path, &mount, &dir, limits)?;
        }
        self.dir = Some(dir);
        Ok(())
    }
}

impl Cgroup {
    /// v2: gives the container's directory to a user, who may then make cgroups below it and arrange the processes in
    /// them, but not change the container's limits. v1 cannot delegate safely (cgroups(7)), so nothing is given there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delegate(&self, to: Uid) -> Result<(), CgroupError> {
        // What the kernel itself says may be given away (Linux 4.15); the runtime specification asks for this list.
        let files = match std::fs::read_to_string("/sys/kernel/cgroup/delegate") {
            Ok(files) => files,
            Err(_) => "cgroup.procs\ncgroup.threads\ncgroup.subtree_control\n".to_owned(),
        };
        for group in self.groups.iter().filter(|group| group.place.v2) {
            let Some(dir) = &group.dir else { continue };
            for file in [""].into_iter().chain(files.lines()) {
                match dir.give(file, to) {
                    // A file of a controller that is not here.
                    Ok(()) | Err(Errno::ENOENT) => {}
                    Err(errno) => return Err(failed("delegate cgroup", group.place.dir.join(file))(errno)),
                }
            }
        }
        Ok(())
    }
}

/// Removes a directory that was there before, if nothing lives in it; says whether it did. It could be kept but for
/// two things. It has the limits, counters and device filters of whom it was made for. And if that container ended by
/// `cgroup.kill`, nobody can be born in it: `clone3` compares its count of kills with that of the *parent's* cgroup, and
/// kills the child when they differ (Linux 6.14, and what stable kernels took from it).
fn clear(path: &Path) -> Result<bool, CgroupError> {
    let dir = match Dir::open(path) {
        Err(Errno::ENOENT) => return Ok(true),
        dir => dir.map_err(failed("open cgroup", path))?,
    };
    let (mut processes, mut buffer) = (0, Vec::new());
    let counted = dir.walk(&mut |dir| match dir.read("cgroup.procs", &mut buffer) {
        Ok(text) => {
            processes += text.lines().count();
            Ok(())
        }
        // Removed meanwhile; or threaded, and its processes are listed above.
        Err(Errno::ENOENT | Errno::ENODEV | Errno::EOPNOTSUPP) => Ok(()),
        Err(errno) => Err(errno),
    });
    counted.map_err(failed("read cgroup.procs of", path))?;
    if processes > 0 {
        return Err(CgroupError::InUse { dir: path.to_owned(), processes });
    }
    match remove_children(&dir).and_then(|()| remove_dir(path)) {
        Ok(()) => Ok(true),
        // It was made for us by somebody to whom the directory above belongs.
        Err(Errno::EACCES | Errno::EPERM) => thawed(&dir, path).map(|()| false),
        Err(Errno::EBUSY | Errno::ENOTEMPTY) => Err(CgroupError::Busy { dir: path.to_owned() }),
        Err(errno) => Err(failed("remove cgroup", path)(errno)),
    }
}

/// Refuses a directory that is frozen: nothing put into it would ever run.
fn thawed(dir: &Dir, path: &Path) -> Result<(), CgroupError> {
    let buffer = &mut Vec::new();
    for file in ["freezer.state", "cgroup.freeze"] {
        match dir.read(file, buffer).map(str::trim) {
            Ok("THAWED" | "0") | Err(Errno::ENOENT /* not the freezer's hierarchy */) => {}
            Ok(_) => return Err(CgroupError::Frozen { dir: path.to_owned() }),
            Err(errno) => return Err(failed("read the freezer of", path)(errno)),
        }
    }
    Ok(())
}

/// Refuses a v2 directory below threaded ones (cgroups(7), thread mode). It could be made threaded as well, but would then
/// have neither memory nor io limits, nor `cgroup.procs`, nor `cgroup.kill`.
fn takes_processes(dir: &Dir, path: &Path) -> Result<(), CgroupError> {
    match dir.read("cgroup.type", &mut Vec::new()).map(str::trim) {
        Ok("threaded" | "domain invalid") => Err(CgroupError::Threaded { dir: path.to_owned() }),
        Ok(_) | Err(Errno::ENOENT /* Linux before 4.14 */) => Ok(()),
        Err(errno) => Err(failed("read cgroup.type of", path)(errno)),
    }
}

/// Makes a directory and those missing above it, noting each; says whether it did not exist before.
fn make_dir(dir: &Path, mount: &Path, made: &mut Vec<PathBuf>) -> Result<bool, CgroupError> {
    // Another container's removal may take a parent away between two of our calls, so this is tried more than once; but
    // not for ever.
    for _ in 0..16 {
        match (mkdir(dir, Mode::from_bits_retain(0o755)), dir.parent()) {
            (Ok(()), _) => {
                made.push(dir.to_owned());
                return Ok(true);
            }
            (Err(Errno::EEXIST), _) => return Ok(false),
            (Err(Errno::ENOENT), Some(parent)) if parent != mount => drop(make_dir(parent, mount, made)?),
            (Err(errno), _) => return Err(failed("create cgroup", dir)(errno)),
        }
    }
    Err(failed("create cgroup", dir)(Errno::ENOENT))
}

/// Hands the controllers of the v2 mount down to a new cgroup, level by level. Says which it cannot have: whoever needs a
/// limit of such a one hears of it when the limit is written, the others only lack its statistics.
pub(super) fn enable_controllers(place: &Place, dir: &Dir) -> Result<Vec<Withheld>, CgroupError> {
    let buffer = &mut Vec::new();
    let there = dir.read("cgroup.controllers", buffer).map_err(failed("read cgroup.controllers of", &place.dir))?;
    let mut missing = lacking(&place.controllers, there);
    let below_mount = place.dir.strip_prefix(&place.mount).unwrap_or(Path::new(""));
    let mut level = place.mount.clone();
    let mut withheld = Vec::new();
    for name in below_mount.components() {
        if missing.is_empty() {
            break;
        }
        let parent = Dir::open(&level).map_err(failed("open cgroup", &level))?;
        let enabled =
            parent.read("cgroup.subtree_control", buffer).map_err(failed("read subtree_control of", &level))?;
        let wanted = lacking(&missing, enabled);
        let refused = if wanted.is_empty() { None } else { enable(&parent, &wanted).err() };
        for controller in wanted {
            let errno = match refused {
                None => break,
                // It has processes of its own, or is for threads.
                Some(errno @ (Errno::EBUSY | Errno::EOPNOTSUPP)) => errno,
                // Taken or refused as a whole; so one by one. ENOENT: this level does not have it itself. EINVAL (cpu): a
                // realtime process is below. EACCES: not delegated to us.
                Some(_) => match enable(&parent, std::slice::from_ref(&controller)) {
                    Ok(()) => continue,
                    Err(errno) => errno,
                },
            };
            missing.retain(|other| *other != controller);
            withheld.push(Withheld { controller, level: level.clone(), errno });
        }
        level.push(name);
    }
    Ok(withheld)
}

/// Enables controllers for the cgroups below, all in one write.
fn enable(level: &Dir, controllers: &[String]) -> Result<(), Errno> {
    // Processes are in the way but at the very top (which has no type). The kernel says so of most controllers; cpu, cpuset
    // and pids it would enable, and from then on take threads below this level but no processes.
    if level.has("cgroup.type") && !level.read("cgroup.procs", &mut Vec::new())?.is_empty() {
        return Err(Errno::EBUSY);
    }
    let all: Vec<String> = controllers.iter().map(|controller| format!("+{controller}")).collect();
    level.write("cgroup.subtree_control", &all.join(" "))
}

/// Those of `wanted` that a list of names does not have.
fn lacking(wanted: &[String], there: &str) -> Vec<String> {
    wanted.iter().filter(|name| !there.split_whitespace().any(|other| other == *name)).cloned().collect()
}

/// A new v1 cpuset has no CPUs and no memory nodes, and lets no process in until it has both: takes the parent's.
fn inherit_cpuset(path: &Path, mount: &Path, dir: &Dir, limits: &Limits) -> Result<(), CgroupError> {
    let given = path.parent().unwrap_or(mount);
    let values = cpuset_of(given, mount, &mut Vec::new())?;
    for (file, value) in CPUSET.into_iter().zip(values) {
        if !limits.sets(file) {
            dir.write(file, &value).map_err(failed("inherit cpuset in", path))?;
        }
    }
    Ok(())
}

const CPUSET: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// The CPUs and nodes of a cpuset directory; if it has none yet, first gives it its parent's.
fn cpuset_of(path: &Path, mount: &Path, buffer: &mut Vec<u8>) -> Result<[String; 2], CgroupError> {
    let dir = Dir::open(path).map_err(failed("open cgroup", path))?;
    let mut values = [String::new(), String::new()];
    for (file, value) in CPUSET.into_iter().zip(&mut values) {
        dir.read(file, buffer).map_err(failed("read cpuset of", path))?.trim().clone_into(value);
    }
    if path != mount && values.iter().any(String::is_empty) {
        let inherited = cpuset_of(path.parent().unwrap_or(mount), mount, buffer)?;
        for ((file, value), parent) in CPUSET.into_iter().zip(&mut values).zip(inherited) {
            if value.is_empty() {
                dir.write(file, &parent).map_err(failed("inherit cpuset in", path))?;
                *value = parent;
            }
        }
    }
    Ok(values)
}

//! The limits of a container: what they are, and how they are written and changed. `compile` makes them of
//! `linux.resources`.

use std::borrow::Cow;
use std::fmt::{self, Display, Formatter};

use nix::errno::Errno;
use oci_spec::runtime::LinuxResources;

use super::devices::{Allowed, Devices};
use super::dir::Dir;
use super::layout::Layout;
use super::{Cgroup, CgroupError, Group, Withheld};

mod compile;
#[cfg(test)]
mod tests;

use compile::{Compiler, controller_of};

/// The limits of one container, ready to be written. `Display` prints one line for each value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    writes: Vec<Write>,
    /// `None` leaves the devices as they are.
    pub(super) devices: Option<Devices>,
    /// v2, `checkBeforeUpdate`: refuse when more than so many bytes are in use (memory, memory + swap).
    refuse_above: Option<(Option<i64>, Option<i64>)>,
}

/// One value for one cgroup file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Whose file it is.
    pub controller: Cow<'static, str>,
    /// Its name in the container's directory of that controller.
    pub file: Cow<'static, str>,
    /// What is written.
    pub value: String,
    /// The field of the configuration that asks for it.
    pub field: Cow<'static, str>,
    absent: Absent,
    rest: Rest,
}

/// v2 has one file where v1 has two. An update that gives one of the two is completed with what is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// The value is complete.
    None,
    /// A period is given: the quota before it.
    Quota,
    /// Memory and swap together are given: less the memory limit.
    MemoryLimit,
}

/// What it means when a file is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Absent {
    /// The limit cannot be set.
    Refuse,
    /// The kernel lacks what the value would switch off anyway.
    Skip,
    /// This kernel has it under another name and in another range.
    Instead(&'static str, String),
}

/// Something in the configuration that cannot be done here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {text}")]
pub struct Problem {
    /// The field, as a path: `linux.resources.memory.limit`.
    pub field: Cow<'static, str>,
    /// What is wrong with it and what to do.
    pub text: String,
}

impl Limits {
    /// The limits of a new container. Devices are always restricted: to those the configuration lists and the few that
    /// every container has; unless the runtime is in a user namespace, where the kernel lets no one set device rules.
    ///
    /// # Errors
    /// Everything that cannot be done on this machine, all at once.
    pub fn compile(resources: &LinuxResources, layout: &Layout) -> Result<Limits, Vec<Problem>> {
        let mut compiler = Compiler::new(layout, false);
        let devices = match layout.user_namespace {
            true => None,
            false => compiler.devices(resources),
        };
        compiler.all(resources);
        compiler.finish(devices)
    }

    /// The limits of an update: only what is given. A list of devices takes the place of the former one, on v2, where that
    /// is one step; on v1 the container would for a moment be without any, so there (as with runc) they stay.
    ///
    /// # Errors
    /// As [`Limits::compile`].
    pub fn compile_update(resources: &LinuxResources, layout: &Layout) -> Result<Limits, Vec<Problem>> {
        let mut compiler = Compiler::new(layout, true);
        let given = resources.devices().as_ref().is_some_and(|rules| !rules.is_empty());
        let devices = match given && layout.is_v2() && !layout.user_namespace {
            true => compiler.devices(resources),
            false => None,
        };
        compiler.all(resources);
        compiler.finish(devices)
    }

    /// What systemd takes for its own at every change of the unit, so that it is to be written again: the devices of a new
    /// container, on v1.
    ///
    /// # Errors
    /// As [`Limits::compile`].
    pub fn of_devices(resources: Option<&LinuxResources>, layout: &Layout) -> Result<Limits, Vec<Problem>> {
        if layout.is_v2() || layout.user_namespace {
            return Ok(Limits::default());
        }
        let mut compiler = Compiler::new(layout, false);
        let devices = compiler.devices(resources.unwrap_or(&LinuxResources::default()));
        compiler.finish(devices)
    }

    /// Adds a value for a file that is there.
    pub(super) fn write(&mut self, file: &'static str, value: &str) {
        self.writes.push(Write {
            controller: controller_of(file).into(),
            file: file.into(),
            value: value.to_owned(),
            field: "linux.resources".into(),
            absent: Absent::Refuse,
            rest: Rest::None,
        });
    }

    /// The values, in the order they are written.
    pub fn writes(&self) -> &[Write] {
        &self.writes
    }

    /// The devices that may be used, where cgroup v1 says so.
    pub(super) fn allowed_devices(&self) -> Option<Vec<Allowed>> {
        self.devices.as_ref()?.allowed()
    }

    pub(super) fn sets(&self, file: &str) -> bool {
        self.writes.iter().any(|write| write.file == file)
    }
}

impl Write {
    /// The file and the value that take the place of these on kernels that have it under another name.
    pub(super) fn instead(&self) -> Option<(&str, &str)> {
        match &self.absent {
            Absent::Instead(file, value) => Some((file, value)),
            Absent::Refuse | Absent::Skip => None,
        }
    }
}

impl Display for Limits {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for write in &self.writes {
            writeln!(f, "{write}")?;
        }
        if let Some(devices) = &self.devices {
            write!(f, "{devices}")?;
        }
        Ok(())
    }
}

impl Display for Write {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (before, after) = match self.rest {
            Rest::None => ("", ""),
            Rest::Quota => ("(quota) ", ""),
            Rest::MemoryLimit => ("", " - (memory limit)"),
        };
        write!(f, "{} = {before}{}{after}", self.file, self.value)?;
        match &self.absent {
            Absent::Refuse => Ok(()),
            Absent::Skip => f.write_str(" (if there)"),
            Absent::Instead(file, value) => write!(f, " (or {file} = {value})"),
        }
    }
}

impl Cgroup {
    /// Changes the limits of a container that may be running.
    ///
    /// # Errors
    /// The first value the kernel refused. Those before it are in force: to undo them, update with the limits from
    /// before.
    pub fn update(&self, limits: &Limits) -> Result<(), CgroupError> {
        self.check(limits)?;
        self.apply(limits)
    }

    /// Refuses limits that must not be enforced by killing.
    pub(super) fn check(&self, limits: &Limits) -> Result<(), CgroupError> {
        match limits.refuse_above {
            Some((memory, with_swap)) => self.refuse_above(memory, with_swap),
            None => Ok(()),
        }
    }

    pub(super) fn apply(&self, limits: &Limits) -> Result<(), CgroupError> {
        // Some pairs (limit and memory+swap, quota and period, shares and idle) must be raised in one order and lowered
        // in the other, which depends on what is in force. The kernel is asked rather than second-guessed: what it
        // calls invalid is tried again after the others, as long as that gets anywhere.
        let mut pending: Vec<&Write> = limits.writes.iter().collect();
        while !pending.is_empty() {
            let before = pending.len();
            let (mut refused, mut first) = (Vec::new(), None);
            for write in pending {
                match self.write(write) {
                    Ok(()) => {}
                    Err(error @ CgroupError::Limit { errno: Errno::EINVAL, .. }) => {
                        first.get_or_insert(error);
                        refused.push(write);
                    }
                    Err(error) => return Err(error),
                }
            }
            match first {
                Some(error) if refused.len() == before => return Err(error),
                _ => pending = refused,
            }
        }
        match &limits.devices {
            Some(devices) => devices.apply(self),
            None => Ok(()),
        }
    }

    /// The limits of an update once they are written, with what it left as it was: where one file or one property of
    /// systemd holds two values, an update may give one of them.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(super) fn completed(&self, limits: &Limits) -> Result<Limits, CgroupError> {
        let mut limits = limits.clone();
        // One that is idle no longer has the default weight again. The kernel takes none for an idle one.
        let awake = |write: &&Write| write.file == "cpu.idle" && write.value.trim() == "0";
        if let (Some(awake), false) = (limits.writes.iter().find(awake), limits.sets("cpu.weight")) {
            limits.writes.push(Write { file: "cpu.weight".into(), ..awake.clone() });
        }
        let pairs: [&[&'static str]; 4] =
            [&["cpu.max"], &["cpu.cfs_period_us", "cpu.cfs_quota_us"], &["memory.swap.max"], &["cpu.weight"]];
        for files in pairs {
            let Some(given) = limits.writes.iter().find(|write| files.contains(&write.file.as_ref())).cloned() else {
                continue;
            };
            limits.writes.retain(|write| !files.contains(&write.file.as_ref()));
            for &file in files {
                if let Some(value) = self.value(file)? {
                    limits.writes.push(Write { file: file.into(), value, rest: Rest::None, ..given.clone() });
                }
            }
        }
        Ok(limits)
    }

    /// What a file of limits says; none where there is no such file.
    pub(super) fn value(&self, file: &str) -> Result<Option<String>, CgroupError> {
        let Some(group) = self.of(controller_of(file)) else { return Ok(None) };
        let Some(dir) = &group.dir else { return Ok(None) };
        match dir.read(file, &mut Vec::new()) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(super::failed("read", group.place.dir.join(file))(errno)),
        }
    }

    /// The directory whose files have this prefix; `cgroup` is no controller, but every v2 directory's own.
    fn of(&self, controller: &str) -> Option<&Group> {
        match controller {
            "cgroup" => self.groups.iter().find(|group| group.place.v2),
            controller => self.with(controller),
        }
    }

    fn write(&self, write: &Write) -> Result<(), CgroupError> {
        let mut file = write.file.as_ref();
        let group = self.of(&write.controller);
        let refused = |file: &str, value: &str, errno| {
            let dir = group.map(|group| group.place.dir.clone()).unwrap_or_default();
            let withheld = group.and_then(|group| group.withheld.iter().find(|w| w.controller == write.controller));
            let hint = match (errno, write.controller.as_ref()) {
                (Errno::ENOENT, _) => ": this kernel or this cgroup does not offer it; remove the field",
                (Errno::EBUSY, "memory") => {
                    ": more than this is in use and could not be reclaimed; choose a higher limit"
                }
                (Errno::EINVAL, "memory") => ": the limit must not be above memory+swap",
                (Errno::EINVAL, "cpu") if file == "cpu.weight" => ": it has no weight while it is idle (cpu.idle)",
                (Errno::EINVAL, "cpu") => ": outside of what the parent cgroup or the kernel allows",
                (Errno::EINVAL | Errno::EACCES | Errno::ERANGE, "cpuset") => {
                    ": these CPUs or nodes do not exist or the parent cgroup lacks them"
                }
                (Errno::ENODEV, "blkio" | "io") => ": no such block device; give a whole disk, not a partition",
                _ => "",
            };
            let hint = withheld.filter(|_| errno == Errno::ENOENT).map_or(hint.into(), |w| w.to_string().into());
            let field = write.field.to_string();
            CgroupError::Limit { field, value: value.to_owned(), file: dir.join(file), errno, hint }
        };
        let dir = group.and_then(|group| group.dir.as_ref());
        let Some(dir) = dir else { return Err(refused(file, &write.value, Errno::ENOENT)) };
        let completed = write.completed(dir).map_err(|errno| refused(file, &write.value, errno))?;
        let mut value = completed.as_ref();
        let mut result = dir.write(file, value);
        match (&write.absent, result) {
            (Absent::Skip, Err(Errno::ENOENT)) => result = Ok(()),
            (Absent::Instead(other, converted), Err(Errno::ENOENT)) => {
                (file, value) = (other, converted);
                result = dir.write(file, value);
            }
            _ => {}
        }
        result.map_err(|errno| refused(file, value, errno))
    }

    fn refuse_above(&self, memory: Option<i64>, with_swap: Option<i64>) -> Result<(), CgroupError> {
        let Some(group) = self.with("memory") else { return Ok(()) };
        let (Some(dir), file) = (&group.dir, "memory.current") else { return Ok(()) };
        let path = group.place.dir.join(file);
        let buffer = &mut Vec::new();
        let text = dir.read(file, buffer).map_err(super::failed("read", &path))?;
        let used: i64 = text.trim().parse().map_err(|_| super::failed("read", &path)(Errno::ERANGE))?;
        for (limit, field) in [(with_swap, "linux.resources.memory.swap"), (memory, "linux.resources.memory.limit")] {
            if let Some(limit) = limit.filter(|&limit| limit > 0 && used > limit) {
                return Err(CgroupError::Limit {
                    field: field.to_owned(),
                    value: limit.to_string(),
                    file: path,
                    errno: Errno::EBUSY,
                    hint: ": more than this is in use, and checkBeforeUpdate asks not to kill for it".into(),
                });
            }
        }
        Ok(())
    }
}

impl Write {
    /// The value, with what it needs of that which is in force.
    fn completed(&self, dir: &Dir) -> Result<Cow<'_, str>, Errno> {
        let buffer = &mut Vec::new();
        match self.rest {
            Rest::None => Ok(Cow::Borrowed(&self.value)),
            Rest::Quota => {
                let quota = dir.read("cpu.max", buffer)?.split_whitespace().next().ok_or(Errno::ENODATA)?;
                Ok(Cow::Owned(format!("{quota} {}", self.value)))
            }
            Rest::MemoryLimit => match (dir.read("memory.max", buffer)?.trim(), self.value.parse::<i64>()) {
                ("max", _) => Ok(Cow::Borrowed(&self.value)), // as for one that is unlimited from the start
                (limit, Ok(with_swap)) => {
                    let swap = with_swap - limit.parse::<i64>().map_err(|_| Errno::ERANGE)?;
                    if swap < 0 { Err(Errno::EINVAL) } else { Ok(Cow::Owned(swap.to_string())) }
                }
                (_, Err(_)) => Err(Errno::ERANGE),
            },
        }
    }
}

impl Display for Withheld {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Withheld { controller, level, errno } = self;
        write!(f, ": the {controller} controller could not be had from {}: {errno}", level.display())?;
        f.write_str(match errno {
            Errno::EBUSY => {
                ": it has processes of its own; move them to a cgroup below it, or choose another linux.cgroupsPath"
            }
            Errno::ENOENT => ": it does not have it itself; enable it in the cgroup.subtree_control above",
            Errno::EACCES | Errno::EPERM => ": have this subtree delegated to you, with this controller",
            Errno::EOPNOTSUPP => ": it is threaded, and this controller is not for threads",
            _ => "",
        })
    }
}

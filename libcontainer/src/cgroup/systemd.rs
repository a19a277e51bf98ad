//! systemd as the manager of a container's cgroup: the container is a transient unit, a scope nearly always.
//!
//! A scope is made around a process that exists. So the child is cloned first and waits (`Meeting::Placed`) while the
//! runtime has systemd make the unit with the child in it ([`Call::start`]), and on v1 puts it into the hierarchies that
//! systemd leaves alone; then the limits are written to the files of the cgroup, too, because systemd knows only some of
//! them and rounds others. What it does know it is told ([`Unit::compile`]), because it writes its own idea of them again
//! whenever its units are reloaded. Devices it is told of on v1 only: on v2 it leaves our filter alone as long as it has no
//! list of its own.
//!
//! Of the D-Bus a container needs little, and it must never wait: a [`Call`] is a small machine over a socket that does
//! not block, which names what it waits for and when its patience ends. It opens a connection of its own and closes it
//! when it is done. One that is kept would cost each shim a descriptor and buffers, here and in the bus, and the system bus
//! gives one user 256 connections by default, root too, which is fewer than there are shims on a node.
//!
//! What if we are killed on the way: the child ends by itself at the meeting, and a scope without processes ends by
//! itself too, and is forgotten even if it failed (`CollectMode`).

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::dir::Dir;
use super::make::enable_controllers;
use super::{Cgroup, CgroupError, CgroupPath, Group, Layout, Limits, Place, failed};

mod annotation;
mod bus;
mod call;
mod hold;
mod properties;
mod unit;
mod wire;

pub use call::{Call, SystemdError, Why};
pub use hold::InForce;
pub use properties::{Property, changes};
pub use unit::{Manager, Unit};

/// What to remember of a unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedUnit {
    /// Its name, such as `dunnage-web.scope`.
    pub name: String,
    /// Whose it is.
    pub manager: Manager,
}

impl Cgroup {
    /// That of a unit, with nothing in it yet.
    pub(crate) fn of_unit(unit: SavedUnit) -> Cgroup {
        Cgroup { groups: Vec::new(), guard: true, unit: Some(unit), above: Vec::new() }
    }

    /// Takes on the directories of a unit that was started with the process `pid` in it, and writes the limits.
    ///
    /// # Errors
    /// When systemd has put the process somewhere else, a directory cannot be opened, or the kernel refuses a limit.
    pub(crate) fn adopt(
        &mut self,
        unit: &Unit,
        places: &[Place],
        limits: &Limits,
        pid: Pid,
    ) -> Result<(), CgroupError> {
        let proc = PathBuf::from(format!("/proc/{pid}/cgroup"));
        let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
        let text = fs::read_to_string(&proc).map_err(|error| failed("read", &proc)(errno(error)))?;
        for place in places.iter().filter(|place| is_systemds(place)) {
            let mut place = place.clone();
            if !unit.is_slice() {
                let there = position(&text, &place).filter(|path| path.ends_with(unit.name()));
                let elsewhere = || failed("started its unit, but the process is not in", &place.dir)(Errno::ESRCH);
                place.dir = place.mount.join(there.ok_or_else(elsewhere)?);
            }
            let dir = Dir::open(&place.dir).map_err(failed("open cgroup", &place.dir))?;
            // Those that systemd does not know (hugetlb, rdma, misc), as far as we may.
            let withheld = if place.v2 { enable_controllers(&place, &dir)? } else { Vec::new() };
            if unit.is_slice() {
                // systemd puts no process into a slice.
                let entered = dir.write("cgroup.procs", &pid.to_string());
                entered.map_err(failed("put the process into cgroup", &place.dir))?;
            }
            self.groups.push(Group { made: vec![place.dir.clone()], place, dir: Some(dir), withheld });
        }
        for place in places.iter().filter(|place| !is_systemds(place)) {
            self.enter_beside_systemd(place, &text, pid)?;
        }
        self.note_hits_above();
        self.apply(limits)
    }

    /// Puts the process into a hierarchy of v1, where systemd may have done so, or made the directory, or neither: which ones
    /// it takes differs from version to version.
    ///
    /// Only now that the unit is there: an empty directory in a slice is one that systemd removes whenever another unit of
    /// that slice, the last with such a controller, ends.
    fn enter_beside_systemd(&mut self, place: &Place, text: &str, pid: Pid) -> Result<(), CgroupError> {
        let inside = position(text, place).is_some_and(|path| place.mount.join(path) == place.dir);
        self.groups.push(Group { place: place.clone(), made: Vec::new(), dir: None, withheld: Vec::new() });
        let Some(group) = self.groups.last_mut() else { return Ok(()) };
        if inside {
            group.dir = Some(Dir::open(&place.dir).map_err(failed("open cgroup", &place.dir))?);
            group.made.push(place.dir.clone());
            return Ok(());
        }
        group.make(&Limits::default())?;
        let entered = group.dir.as_ref().map_or(Ok(()), |dir| dir.write("cgroup.procs", &pid.to_string()));
        entered.map_err(failed("put the process into cgroup", &place.dir))
    }

    /// What systemd is to be told of limits that [`Cgroup::update`] has written; nothing where it did not make the cgroup
    /// or knows of none of them. In this order, so that it is not told what the kernel refuses, and is told as a whole
    /// what an update gives half of. It then writes to the files, which [`Cgroup::hold`] undoes.
    ///
    /// # Errors
    /// When what is in force cannot be read.
    pub fn tell_systemd(&self, limits: &Limits, layout: &Layout) -> Result<Option<Call>, CgroupError> {
        let Some(unit) = &self.unit else { return Ok(None) };
        let properties = changes(&self.completed(limits)?, layout);
        Ok((!properties.is_empty()).then(|| Call::set(unit, properties)))
    }

    /// The unit that the cgroup belongs to, where systemd made it. It is to be stopped ([`Call::stop`]) once
    /// [`Cgroup::remove`] has succeeded: it is empty then, which systemd notices by itself, but only a little later, and
    /// the name may be wanted again at once.
    pub fn unit(&self) -> Option<&SavedUnit> {
        self.unit.as_ref()
    }
}

/// In the hierarchies by which systemd tracks its units it makes the directories itself.
fn is_systemds(place: &Place) -> bool {
    place.v2 || place.controllers.iter().any(|name| name == "name=systemd")
}

/// Where a process is in the hierarchy of `place`, relative to the mount, by the text of its `/proc/<pid>/cgroup`.
pub(super) fn position<'t>(text: &'t str, place: &Place) -> Option<&'t Path> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let ours = match place.v2 {
            true => controllers.is_empty(),
            false => place.controllers.iter().any(|name| controllers.split(',').any(|other| other == name)),
        };
        ours.then(|| Path::new(path.trim_start_matches('/')))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(v2: bool, controllers: &[&str]) -> Place {
        let controllers = controllers.iter().map(ToString::to_string).collect();
        Place { v2, controllers, mount: "/m".into(), dir: "/m/x".into() }
    }

    #[test]
    fn a_process_is_found_in_each_hierarchy() {
        let text = "4:cpu,cpuacct:/a\n1:name=systemd:/system.slice/x.scope\n0::/system.slice/y.scope\n";
        assert_eq!(position(text, &place(true, &["cpu"])), Some(Path::new("system.slice/y.scope")));
        assert_eq!(position(text, &place(false, &["name=systemd"])), Some(Path::new("system.slice/x.scope")));
        assert_eq!(position(text, &place(false, &["cpu", "cpuacct"])), Some(Path::new("a")));
        assert_eq!(position(text, &place(false, &["memory"])), None);
    }
}

//! What a container uses, read from the kernel's files: the numbers of containerd's cgroup metrics, v1 and v2, field by
//! field under the same names.
//!
//! Files that are not there leave their fields at zero (or their part at `None`), so a cgroup that is gone yields zeros
//! and no error.

use nix::errno::Errno;

use super::dir::Dir;
use super::{Cgroup, CgroupError, failed};

/// What one container uses.
#[derive(Clone, Debug, PartialEq)]
pub enum Stats {
    /// As `io.containerd.cgroups.v1.Metrics` has it.
    V1(Box<v1::Metrics>),
    /// As `io.containerd.cgroups.v2.Metrics` has it.
    V2(Box<v2::Metrics>),
}

/// Declares a struct of numbers and, for those that stand in a keyed file (`<key> <number>` a line), which key sets them.
macro_rules! numbers {
    ($(#[$attribute:meta])* $name:ident { $($(#[$field_attribute:meta])* $field:ident $(= $($key:literal)|+)?,)* }) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_attribute])* #[allow(missing_docs, reason = "named by the kernel's key")]
            pub $field: u64,)*
        }

        impl $name {
            /// Several keys add up.
            pub(super) fn read(&mut self, text: &str) {
                for (key, value) in keyed(text) {
                    match key {
                        $($($($key)|+ => self.$field += value,)?)*
                        _ => {}
                    }
                }
            }
        }
    };
}

pub mod v1;
pub mod v2;

/// RDMA devices: what is in use and what may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rdma {
    /// `rdma.current`.
    pub current: Vec<RdmaEntry>,
    /// `rdma.max`.
    pub limit: Vec<RdmaEntry>,
}

/// One RDMA device; `u32::MAX` is unlimited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RdmaEntry {
    /// Its name.
    pub device: String,
    /// Handles.
    pub hca_handles: u32,
    /// Objects.
    pub hca_objects: u32,
}

impl Cgroup {
    /// Reads all numbers.
    ///
    /// # Errors
    /// When a file that is there cannot be read.
    pub fn stats(&self) -> Result<Stats, CgroupError> {
        match self.groups.iter().all(|group| group.place.v2) {
            true => Ok(Stats::V2(Box::new(self.stats_v2()?))),
            false => Ok(Stats::V1(Box::new(self.stats_v1()?))),
        }
    }

    fn reader(&self, controller: &str) -> Option<Reader<'_>> {
        let group = self.with(controller)?;
        Some(Reader { dir: group.dir.as_ref(), path: &group.place.dir, buffer: Vec::new() })
    }
}

/// Reads the files of one directory into one buffer.
struct Reader<'a> {
    dir: Option<&'a Dir>,
    path: &'a std::path::Path,
    buffer: Vec<u8>,
}

impl Reader<'_> {
    /// A whole file; nothing if it is not there, or no more, or (pressure) switched off.
    fn text(&mut self, file: &str) -> Result<&str, CgroupError> {
        let Some(dir) = self.dir else { return Ok("") };
        match dir.read(file, &mut self.buffer) {
            Ok(text) => Ok(text),
            Err(Errno::ENOENT | Errno::ENODEV | Errno::EOPNOTSUPP) => Ok(""),
            Err(errno) => Err(failed("read the statistics of", self.path.join(file))(errno)),
        }
    }

    fn number(&mut self, file: &str) -> Result<u64, CgroupError> {
        Ok(number(self.text(file)?.trim()))
    }

    fn rdma(&mut self) -> Result<Rdma, CgroupError> {
        Ok(Rdma { current: rdma(self.text("rdma.current")?), limit: rdma(self.text("rdma.max")?) })
    }
}

/// The lines `<key> <number>` of a text.
fn keyed(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}

/// A number, or `max`; what is neither is taken as absent, 0.
fn number(text: &str) -> u64 {
    match text {
        "max" => u64::MAX,
        text => text.parse().unwrap_or(0),
    }
}

fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// `mlx4_0 hca_handle=2 hca_object=max`
fn rdma(text: &str) -> Vec<RdmaEntry> {
    let number = |value: &str| if value == "max" { u32::MAX } else { value.parse().unwrap_or(0) };
    let entry = |line: &str| {
        let mut fields = line.split_whitespace();
        let mut entry = RdmaEntry { device: fields.next()?.to_owned(), ..RdmaEntry::default() };
        for (key, value) in fields.filter_map(|field| field.split_once('=')) {
            match key {
                "hca_handle" => entry.hca_handles = number(value),
                "hca_object" => entry.hca_objects = number(value),
                _ => {}
            }
        }
        Some(entry)
    };
    text.lines().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_is_the_largest_number_and_nonsense_is_none() {
        assert_eq!([number("max"), number("12"), number(""), number("-1")], [u64::MAX, 12, 0, 0]);
    }
}

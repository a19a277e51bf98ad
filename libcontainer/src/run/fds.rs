//! The descriptors, and the few words, that cross from one step to a later one.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sched::CloneFlags;

use crate::cgroup;
use crate::facts::StateFacts;
use crate::sys::{Call, Failed};

/// What the runtime opens for the child, and what a step leaves for a later one. The child closes everything else.
#[derive(Debug)]
pub struct Fds {
    /// The wire to the runtime.
    pub(crate) wire: OwnedFd,
    /// A listening socket to wait at for `start`, where the runtime does not stay.
    pub(crate) gate: Option<OwnedFd>,
    /// Standard input, output and error.
    pub(crate) stdio: [Option<OwnedFd>; 3],
    /// The way into the container's cgroups.
    pub(crate) cgroup: Option<cgroup::Entry>,
    /// A pidfd of the running container's init.
    pub(crate) container: Option<OwnedFd>,
    /// Namespaces to join.
    pub(crate) namespaces: Vec<(CloneFlags, OwnedFd)>,
    /// Detached mounts, one slot for each bind mount.
    pub(crate) sources: Vec<Option<OwnedFd>>,
    /// The container's root: every path inside resolves from here.
    pub(crate) root: Option<OwnedFd>,
    /// The verified procfs of the container.
    pub(crate) proc: Option<OwnedFd>,
    /// The container's end of its terminal.
    pub(crate) terminal: Option<OwnedFd>,
    /// What a filesystem said about the options it was given, in its own words.
    pub(crate) complaint: Option<String>,
    /// The file to execute.
    pub(crate) program: Option<CString>,
    /// A HOME line for an environment without one.
    pub(crate) home: Option<CString>,
    /// How many descriptors from 3 on are the caller's gift.
    pub(crate) preserved: u32,
    /// Where the container's own hooks complain; the runtime reads it when one failed.
    pub(crate) hook_stderr: Option<File>,
    /// What hooks are told.
    pub(crate) state: StateFacts,
}

impl Fds {
    pub(crate) fn new(wire: OwnedFd, state: StateFacts) -> Fds {
        Fds {
            wire,
            gate: None,
            stdio: [None, None, None],
            cgroup: None,
            container: None,
            namespaces: Vec::new(),
            sources: Vec::new(),
            root: None,
            proc: None,
            terminal: None,
            complaint: None,
            program: None,
            home: None,
            preserved: 0,
            hook_stderr: None,
            state,
        }
    }

    /// What an earlier step of the plan must have left here.
    pub(crate) fn have<T>(kept: Option<T>) -> Result<T, Failed> {
        kept.ok_or(Failed { call: Call::Open, errno: Errno::EBADF })
    }

    /// The opened namespace of this kind.
    pub(crate) fn namespace(&self, kind: CloneFlags) -> Option<BorrowedFd<'_>> {
        self.namespaces.iter().find(|(flag, _)| *flag == kind).map(|(_, fd)| fd.as_fd())
    }

    /// The opened namespace of this kind, to be used once.
    pub(crate) fn take_namespace(&mut self, kind: CloneFlags) -> Result<OwnedFd, Failed> {
        let place = self.namespaces.iter().position(|(flag, _)| *flag == kind);
        Fds::have(place.map(|place| self.namespaces.swap_remove(place).1))
    }

    /// The numbers of all descriptors here that are not standard streams, in order.
    pub(crate) fn kept(&self) -> Vec<RawFd> {
        let single = [&self.gate, &self.container, &self.root, &self.proc, &self.terminal];
        let mut numbers = vec![self.wire.as_raw_fd()];
        numbers.extend(single.into_iter().chain(&self.stdio).chain(&self.sources).flatten().map(AsRawFd::as_raw_fd));
        numbers.extend(self.namespaces.iter().map(|(_, fd)| fd.as_raw_fd()));
        numbers.extend(self.cgroup.iter().flat_map(cgroup::Entry::fds).map(|fd| fd.as_raw_fd()));
        numbers.extend(self.hook_stderr.iter().map(AsRawFd::as_raw_fd));
        numbers.extend(3..3 + self.preserved as RawFd);
        numbers.retain(|number| *number > 2);
        numbers.sort_unstable();
        numbers
    }
}

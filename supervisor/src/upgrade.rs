//! The supervisor replaces itself: it executes its successor in the same process, so that its pid, its children and what
//! it holds open stay.
//!
//! What travels are the listening socket (connections that come meanwhile wait in its queue), the locks on the folders
//! (so that no third can come in between), the parked descriptors, and the connections with what their clients still wait
//! for. Everything else the successor reads from the disk, as after a kill.

use std::{
    convert::Infallible,
    env,
    ffi::{CString, OsStr, OsString},
    fs,
    io::{self, Seek as _, Write as _},
    os::{
        fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
        unix::ffi::OsStringExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
    unistd::execve,
};
use serde::{Deserialize, Serialize};

use crate::{
    children::{self, Reaper},
    fdstore::FdStore,
    sys,
};

/// The number of a descriptor from which the successor reads what the others are, as JSON.
const HANDOVER: &str = "DUNNAGED_HANDOVER";
/// What a binary has to say what it is.
const TRIAL: Duration = Duration::from_secs(10);

/// What our former self has left us.
#[derive(Debug)]
pub(crate) struct Inheritance {
    pub(crate) listener: OwnedFd,
    /// On the state folder and the root folder.
    pub(crate) locks: [OwnedFd; 2],
    /// Each with the bytes that are to be read before those that come from it.
    pub(crate) connections: Vec<(OwnedFd, Vec<u8>)>,
    pub(crate) facts: Facts,
}

/// What stays true of the process.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// The socket's file is the supervisor's to remove.
    pub(crate) bound: bool,
    /// The limit of open files that it was started with.
    pub(crate) files: u64,
    /// How often it has been replaced.
    pub(crate) upgrades: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct Handover {
    listener: RawFd,
    locks: [RawFd; 2],
    parked: Vec<(String, String, RawFd)>,
    connections: Vec<(RawFd, Vec<u8>)>,
    facts: Facts,
}

impl Inheritance {
    /// Takes it over, if there is one; the parked descriptors go to `store`.
    pub(crate) fn claim(store: &FdStore) -> Result<Option<Self>> {
        let Some(number) = env::var_os(HANDOVER) else { return Ok(None) };
        let handover = read(&number).with_context(|| format!("read what ${HANDOVER} names"))?;
        let take = |what: &str, number| sys::inherited(number).with_context(|| format!("take over the {what}"));
        let [state, root] = handover.locks;
        for (owner, name, number) in handover.parked {
            match take(&name, number) {
                Ok(fd) => store.insert(owner, name, fd),
                // One less is better than no supervisor at all.
                Err(error) => log::error!("what {owner} has parked is lost: {error:#}"),
            }
        }
        let connections = handover.connections.into_iter();
        Ok(Some(Self {
            listener: take("socket", handover.listener)?,
            locks: [take("lock", state)?, take("lock", root)?],
            connections: connections
                .map(|(number, bytes)| Ok((take("connection", number)?, bytes)))
                .collect::<Result<_>>()?,
            facts: handover.facts,
        }))
    }
}

fn read(number: &OsStr) -> Result<Handover> {
    let number = number.to_str().and_then(|number| number.parse().ok()).context("it is no number")?;
    let mut file = fs::File::from(sys::inherited(number)?);
    file.rewind()?;
    Ok(serde_json::from_reader(file)?)
}

/// The binary to go on as: the named one, or what is now at the place the running one was started from.
///
/// # Errors
/// When it is no program that says of itself, with our configuration, that it is a supervisor.
pub(crate) async fn check(reaper: &Reaper, binary: &str) -> Result<PathBuf> {
    let binary = match binary {
        "" => own_place()?,
        named => fs::canonicalize(named).with_context(|| format!("find {named}"))?,
    };
    let mut trial = Command::new(&binary);
    trial.args(env::args_os().skip(1)).arg("--check");
    let refused = || format!("{} is no supervisor that can go on here", binary.display());
    let said = children::run(reaper, trial, &[], TRIAL).await.map_err(|why| anyhow!("{}: {why}", refused()))?;
    if !said.starts_with(b"dunnaged ") {
        bail!(refused());
    }
    Ok(binary)
}

fn own_place() -> Result<PathBuf> {
    let exe = fs::read_link("/proc/self/exe").context("read /proc/self/exe")?.into_os_string().into_vec();
    // The kernel says so of a file that was replaced, which is just what an upgrade is about.
    let place = exe.strip_suffix(b" (deleted)").unwrap_or(&exe);
    Ok(PathBuf::from(OsString::from_vec(place.to_vec())))
}

/// What is handed over.
pub(crate) struct Possessions<'a> {
    pub(crate) listener: BorrowedFd<'a>,
    pub(crate) locks: [BorrowedFd<'a>; 2],
    /// As `(owner, name, descriptor)`.
    pub(crate) parked: &'a [(&'a str, &'a str, BorrowedFd<'a>)],
    pub(crate) connections: &'a [(BorrowedFd<'a>, Vec<u8>)],
    pub(crate) facts: Facts,
}

/// Becomes `binary`. Returns only if that fails, and then everything is as before.
pub(crate) fn execute(binary: &Path, held: &Possessions<'_>) -> io::Error {
    let handover = Handover {
        listener: held.listener.as_raw_fd(),
        locks: held.locks.map(|lock| lock.as_raw_fd()),
        parked: held
            .parked
            .iter()
            .map(|(owner, name, fd)| ((*owner).to_owned(), (*name).to_owned(), fd.as_raw_fd()))
            .collect(),
        connections: held.connections.iter().map(|(fd, bytes)| (fd.as_raw_fd(), bytes.clone())).collect(),
        facts: held.facts,
    };
    let parked = held.parked.iter().map(|(_, _, fd)| *fd);
    let connections = held.connections.iter().map(|(fd, _)| *fd);
    let fds: Vec<_> = [held.listener].into_iter().chain(held.locks).chain(parked).chain(connections).collect();
    let outcome = fds.iter().try_for_each(|fd| set_cloexec(*fd, false)).and_then(|()| become_binary(binary, &handover));
    for fd in fds {
        if let Err(error) = set_cloexec(fd, true) {
            log::error!("keep descriptor {} from what we execute: {error}", fd.as_raw_fd());
        }
    }
    match outcome {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn set_cloexec(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    let flags = if on { FdFlag::FD_CLOEXEC } else { FdFlag::empty() };
    fcntl(fd, FcntlArg::F_SETFD(flags))?;
    Ok(())
}

fn become_binary(binary: &Path, handover: &Handover) -> io::Result<Infallible> {
    // Not in the environment, where the kernel limits the length of a text (execve(2)). Without close-on-exec.
    let mut file = fs::File::from(memfd_create(c"dunnaged-handover", MFdFlags::empty())?);
    file.write_all(&serde_json::to_vec(handover)?)?;
    let argument = |text: OsString| CString::new(text.into_vec()).map_err(io::Error::from);
    let argv = env::args_os().map(argument).collect::<io::Result<Vec<_>>>()?;
    let kept = env::vars_os().filter(|(name, _)| name != HANDOVER);
    let handover = (HANDOVER.into(), file.as_raw_fd().to_string().into());
    let variable = |(name, value): (OsString, OsString)| {
        let mut variable = name;
        variable.push("=");
        variable.push(value);
        argument(variable)
    };
    let environment = kept.chain([handover]).map(variable).collect::<io::Result<Vec<_>>>()?;
    Ok(execve(&argument(binary.into())?, &argv, &environment)?)
}

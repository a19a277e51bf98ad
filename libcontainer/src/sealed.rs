//! Keeps our own binary out of the containers' reach.
//!
//! The container's first process is a copy of ours until it executes, and a program in the container that is a link to
//! `/proc/self/exe` makes it execute us once more, now under the container's control. Either way somebody inside can hold
//! our binary through `/proc/<pid>/exe` and, being root, write to the host's file (CVE-2019-5736). So whoever makes
//! containers first executes itself again from a place that has no writer: a read-only mount that is in no namespace, or
//! where such a mount is not allowed, a sealed copy in memory.

use crate::sys::{Call, Failed, exec, io_failed, memory};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::prctl;
use nix::sys::statvfs::{FsFlags, statvfs};
use std::env;
use std::ffi::{CStr, CString, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

const SELF: &CStr = c"/proc/self/exe";

/// Whether nobody can write to the binary this process executes, through `/proc/<pid>/exe` or otherwise.
pub fn is_sealed() -> Result<bool, Failed> {
    // The flags of the mount it was executed from, not of any mount of today.
    if statvfs(SELF).map_err(Call::Statfs.failed())?.flags().contains(FsFlags::ST_RDONLY) {
        return Ok(true);
    }
    let binary = File::open("/proc/self/exe").map_err(io_failed(Call::Open))?;
    match fcntl(&binary, FcntlArg::F_GET_SEALS) {
        Ok(seals) => Ok(SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_WRITE)),
        Err(Errno::EINVAL) => Ok(false), // not a memory file
        Err(errno) => Err(Call::Fcntl.failed()(errno)),
    }
}

/// Our own binary to execute with [`exec::execute`], sealed. Close-on-exec.
pub fn binary() -> Result<OwnedFd, Failed> {
    match exec::read_only_view(SELF) {
        // Mounting is not for everybody, nor possible on everything (a binary deleted meanwhile, another mount namespace).
        Err(failed @ Failed { errno: Errno::EPERM | Errno::EINVAL | Errno::ENOENT | Errno::ENOSYS, .. }) => {
            log::debug!("executing a sealed copy in memory, because there is no read-only mount: {failed}");
            let bytes = std::fs::read("/proc/self/exe").map_err(io_failed(Call::Read))?;
            memory::sealed_program(c"dunnage", &bytes).map(OwnedFd::from)
        }
        view => view,
    }
}

/// Executes this program again, sealed, with the same arguments and environment; returns if it already is.
/// To be called before anything else is opened or started: nothing of this process survives but its descriptors.
pub fn ensure() -> Result<(), Failed> {
    if is_sealed()? {
        // Executed by descriptor, the kernel has named us after its number.
        return name_process();
    }
    let argv: Vec<CString> = env::args_os().filter_map(c_string).collect();
    let variables = env::vars_os().map(|(mut variable, value)| {
        variable.push("=");
        variable.push(value);
        variable
    });
    let env: Vec<CString> = variables.filter_map(c_string).collect();
    match exec::execute(binary()?.as_fd(), &argv, &env)? {}
}

/// Sets the name in `/proc/self/comm` to the one we were called by, as an ordinary exec does.
fn name_process() -> Result<(), Failed> {
    let Some(path) = env::args_os().next() else { return Ok(()) };
    let name = Path::new(&path).file_name().map(OsString::from).and_then(c_string);
    name.map_or(Ok(()), |name| prctl::set_name(&name).map_err(Call::Prctl.failed()))
}

/// What came from our own argv and environment has no NUL inside.
fn c_string(string: OsString) -> Option<CString> {
    CString::new(string.into_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::os::fd::AsRawFd;

    #[test]
    fn nobody_can_write_to_a_sealed_binary() {
        let memory = memory::sealed_program(c"test", b"#!/bin/sh\n").unwrap();
        for binary in [binary().unwrap(), OwnedFd::from(memory)] {
            let path = format!("/proc/self/fd/{}", binary.as_raw_fd());
            let denied =
                OpenOptions::new().write(true).open(&path).map(|mut file| std::io::Write::write(&mut file, b"x"));
            // A mount refuses to be opened for writing; memory can be opened, and refuses the write.
            assert!(matches!(denied, Err(_) | Ok(Err(_))), "{denied:?}");
        }
    }
}

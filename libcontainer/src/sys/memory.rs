//! Files that exist only in memory: what a hook reads, what it complains to, and the binary we run from.

use super::{Call, Failed, io_failed};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::ffi::CStr;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Linux 6.3; without one of the two flags the kernel warns, and `vm.memfd_noexec=2` refuses.
const NOEXEC_SEAL: MFdFlags = MFdFlags::from_bits_retain(0x8);

/// Linux 6.3: the opposite.
const EXEC: MFdFlags = MFdFlags::from_bits_retain(0x10);

/// An empty, close-on-exec memory file that can never be executed. Linux 3.17.
pub fn file(name: &CStr) -> Result<File, Failed> {
    create(name, NOEXEC_SEAL)
}

/// A memory file that holds `bytes`, read from its start, and that nobody can change any more.
pub fn sealed(name: &CStr, bytes: &[u8]) -> Result<File, Failed> {
    fill(file(name)?, bytes)
}

/// As [`sealed`], for bytes that are to be executed.
pub fn sealed_program(name: &CStr, bytes: &[u8]) -> Result<File, Failed> {
    fill(create(name, EXEC)?, bytes)
}

fn fill(file: File, bytes: &[u8]) -> Result<File, Failed> {
    // At offset 0 and not through the file position, which its reader inherits.
    file.write_all_at(bytes, 0).map_err(io_failed(Call::Write))?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(Call::Fcntl.failed())?;
    Ok(file)
}

/// `memfd_create(2)` with `exec` (a flag of Linux 6.3) if the kernel knows it: older ones have no such policy to satisfy.
fn create(name: &CStr, exec: MFdFlags) -> Result<File, Failed> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = match memfd_create(name, flags | exec) {
        Err(Errno::EINVAL) => memfd_create(name, flags),
        answer => answer,
    };
    Ok(File::from(fd.map_err(Call::MemfdCreate.failed())?))
}

#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper in nix or libc")]
//! bpf(2), as far as the device filter of cgroup v2 needs it: load, attach, replace, list.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const PROG_QUERY: libc::c_int = 16;

const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const F_ALLOW_MULTI: u32 = 1 << 1;
const F_REPLACE: u32 = 1 << 2;

/// The leading members of the kernel's `union bpf_attr` for each command; it takes what follows them as zero.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replaced: u32,
}

#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Default)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_int, attr: &mut T) -> Result<RawFd, Errno> {
    // SAFETY: `attr` is a live, exclusive reference of the given size; the pointers inside it are the callers' to justify.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    Errno::result(result).map(|fd| fd as RawFd)
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    // A descriptor is never negative.
    fd.as_raw_fd() as u32
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel just made this descriptor for us, close-on-exec, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Loads a device filter (`BPF_PROG_TYPE_CGROUP_DEVICE`, Linux 4.15). EPERM without `CAP_BPF`/`CAP_SYS_ADMIN`;
/// EINVAL or EACCES when the verifier refuses the program.
pub(crate) fn load_device_filter(instructions: &[u64]) -> Result<OwnedFd, Errno> {
    let mut attr = Load {
        kind: PROG_TYPE_CGROUP_DEVICE,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        name: *b"dunnage_devices\0", // what bpftool(8) shows
        ..Load::default()
    };
    loop {
        match bpf(PROG_LOAD, &mut attr) {
            // The verifier was interrupted by a signal, which has been taken by now (Linux 5.0).
            Err(Errno::EAGAIN) => {}
            loaded => return loaded.map(owned),
        }
    }
}

/// Attaches a filter beside those that are there, or in the place of `replaced` in one step (Linux 5.6).
pub(crate) fn attach_device_filter(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replaced: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let mut attr = Attach {
        target: number(cgroup),
        program: number(program),
        kind: ATTACH_CGROUP_DEVICE,
        flags: F_ALLOW_MULTI | if replaced.is_some() { F_REPLACE } else { 0 },
        replaced: replaced.map_or(0, number),
    };
    bpf(PROG_ATTACH, &mut attr).map(drop)
}

/// Takes one filter off a cgroup.
pub(crate) fn detach_device_filter(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut attr =
        Attach { target: number(cgroup), program: number(program), kind: ATTACH_CGROUP_DEVICE, ..Attach::default() };
    bpf(PROG_DETACH, &mut attr).map(drop)
}

/// The filters attached to this very cgroup (its ancestors' are not listed). The kernel allows 64 of them.
pub(crate) fn device_filters(cgroup: BorrowedFd<'_>) -> Result<Vec<OwnedFd>, Errno> {
    let mut ids = [0u32; 64];
    let mut attr = Query {
        target: number(cgroup),
        kind: ATTACH_CGROUP_DEVICE,
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        ..Query::default()
    };
    bpf(PROG_QUERY, &mut attr)?;
    let mut programs = Vec::new();
    for id in ids.iter().take(attr.count as usize) {
        programs.push(owned(bpf(PROG_GET_FD_BY_ID, &mut ById { id: *id, ..ById::default() })?));
    }
    Ok(programs)
}

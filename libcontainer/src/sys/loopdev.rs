//! Loop devices: an image file as a block device (loop(4)).
#![expect(unsafe_code, reason = "ioctls that nix has no wrapper for")]

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::{Call, Failed, check, io_failed};

const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4c0a;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `struct loop_info64` (linux/loop.h).
#[repr(C)]
struct Info {
    numbers: [u64; 5],
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// Attaches `image` to a free loop device, which goes when its last user does: the returned descriptor until the
/// filesystem is mounted, then the mount. Linux 5.8.
pub(crate) fn attach(image: &Path, read_only: bool, direct_io: bool) -> Result<(PathBuf, OwnedFd), Failed> {
    /// Each try lost means that somebody else got a device, so this ends.
    const TRIES: u32 = 100;

    let open = |path: &Path| OpenOptions::new().read(true).write(!read_only).open(path).map_err(io_failed(Call::Open));
    let image = open(image)?;
    let control = File::open("/dev/loop-control").map_err(io_failed(Call::Open))?;
    let mut flags = LO_FLAGS_AUTOCLEAR;
    flags |= if read_only { LO_FLAGS_READ_ONLY } else { 0 };
    flags |= if direct_io { LO_FLAGS_DIRECT_IO } else { 0 };
    let info = Info {
        numbers: [0; 5],
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    let config = Config { fd: image.as_fd().as_raw_fd().unsigned_abs(), block_size: 0, info, reserved: [0; 8] };
    for _ in 0..TRIES {
        // SAFETY: an ioctl without an argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
        let number = check(Call::Ioctl, libc::c_long::from(number))?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = open(&path)?;
        // SAFETY: `config` is a live struct of the layout this ioctl reads.
        let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) };
        match check(Call::Ioctl, libc::c_long::from(done)) {
            Ok(_) => return Ok((path, device.into())),
            Err(failed) if failed.errno == Errno::EBUSY => {}
            Err(failed) => return Err(failed),
        }
    }
    Err(Call::Ioctl.failed()(Errno::EBUSY))
}

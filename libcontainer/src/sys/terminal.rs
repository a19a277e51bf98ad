//! Terminals, where nix has no wrapper.
#![expect(unsafe_code, reason = "ioctls with a pointer")]

use super::{Call, Failed};
use std::os::fd::{AsRawFd, BorrowedFd};

nix::ioctl_read_bad!(
    /// `TIOCGWINSZ`: the size of a terminal, in characters.
    tiocgwinsz,
    libc::TIOCGWINSZ,
    libc::winsize
);

/// Width and height of the terminal behind `fd`, in characters.
pub fn window_size(fd: BorrowedFd<'_>) -> Result<(u16, u16), Failed> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the struct is live, and written by the kernel.
    unsafe { tiocgwinsz(fd.as_raw_fd(), &raw mut size) }.map_err(Call::Ioctl.failed())?;
    Ok((size.ws_col, size.ws_row))
}

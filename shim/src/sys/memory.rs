//! Memory that an idle process has and does not need.
#![expect(unsafe_code, reason = "library calls that nobody wraps, and a promise about our own code's pages")]

use std::{ffi::c_void, ptr::NonNull};

use nix::sys::mman::{MmapAdvise, madvise};

unsafe extern "C" {
    /// Where the program begins in memory, by the linker's word: headers and constants, or code.
    #[link_name = "__executable_start"]
    static START: u8;
    /// Where its code ends. Nothing between the two is ever written to, not even by the relocation at start.
    #[link_name = "etext"]
    static END: u8;
}

/// Gives back to the kernel the heap's free pages, and the pages of the program itself: of three megabytes of code an idle
/// shim runs a few hundred kilobytes, and what was only needed to make a container would stay for as long as that lives.
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number and is always allowed.
    unsafe {
        libc::malloc_trim(0);
    }
    let (start, end) = (&raw const START, &raw const END);
    let Some(first) = NonNull::new(start.cast::<c_void>().cast_mut()) else { return };
    // The last page may hold something else too; the kernel counts a part as a whole.
    let length = (end.addr() & !0xfff).saturating_sub(start.addr());
    // SAFETY: these are pages of the executable's file that were only ever read, so that the kernel finds the same again
    // when they are next used; this very function among them.
    if let Err(errno) = unsafe { madvise(first, length, MmapAdvise::MADV_DONTNEED) } {
        log::debug!("give back the pages of the program: {errno}");
    }
}

//! Memory that a process shares with the child it makes.
#![expect(unsafe_code, reason = "a mapping is memory behind a bare pointer")]

use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::{Call, Failed};

/// A shared row of numbers, all 0 at first (mmap(2), `MAP_SHARED | MAP_ANONYMOUS`).
#[derive(Debug)]
pub struct SharedNumbers {
    start: NonNull<AtomicU64>,
    bytes: NonZeroUsize,
}

// SAFETY: the mapping belongs to this value alone, and its numbers are atomic.
unsafe impl Send for SharedNumbers {}

impl SharedNumbers {
    /// At least `count` numbers.
    pub fn new(count: usize) -> Result<SharedNumbers, Failed> {
        let bytes = NonZeroUsize::MIN.saturating_add((count * size_of::<AtomicU64>()).saturating_sub(1));
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { mmap_anonymous(None, bytes, protection, MapFlags::MAP_SHARED) };
        Ok(SharedNumbers { start: start.map_err(Call::Mmap.failed())?.cast(), bytes })
    }

    fn slot(&self, index: usize) -> Option<&AtomicU64> {
        if (index + 1) * size_of::<AtomicU64>() > self.bytes.get() {
            return None;
        }
        // SAFETY: the index is within the mapping, as checked above.
        let slot = unsafe { self.start.add(index) };
        // SAFETY: the mapping is zeroed, aligned and lives as long as `self`.
        Some(unsafe { slot.as_ref() })
    }

    /// Sets a number; one that is not there stays so.
    pub fn store(&self, index: usize, value: u64) {
        if let Some(slot) = self.slot(index) {
            slot.store(value, Ordering::Relaxed);
        }
    }

    /// Reads a number; 0 where there is none.
    pub fn load(&self, index: usize) -> u64 {
        self.slot(index).map_or(0, |slot| slot.load(Ordering::Relaxed))
    }
}

impl Drop for SharedNumbers {
    fn drop(&mut self) {
        // SAFETY: nobody can hold a reference into the mapping any more.
        if let Err(errno) = unsafe { munmap(self.start.cast(), self.bytes.get()) } {
            log::debug!("cannot unmap the shared page: {errno}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_within_their_page() {
        let numbers = SharedNumbers::new(3).unwrap();
        numbers.store(2, 7);
        numbers.store(3, 8);
        assert_eq!((numbers.load(2), numbers.load(3)), (7, 0));
    }
}

//! An array that both halves read and write as words, mapped into this process's memory.

use std::{fmt, io, num::NonZeroUsize, os::fd::BorrowedFd, ptr::NonNull, sync::atomic::AtomicU64};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// The words of an array that was made to be mapped.
pub(super) struct MappedWords {
    memory: NonNull<[AtomicU64]>,
}

// SAFETY: the memory belongs to no thread, and is only used through atomics.
unsafe impl Send for MappedWords {}

impl MappedWords {
    /// Maps the first `count` words of a map's values, which lie one behind the other. It has to have so many: of less, not
    /// all could be mapped.
    pub(super) fn map(map: BorrowedFd<'_>, count: usize) -> io::Result<Self> {
        let size = NonZeroUsize::new(count * size_of::<AtomicU64>())
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: the kernel chooses the address, so nothing that is there is replaced.
        let memory = unsafe {
            mmap(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, map, 0)?
        };
        Ok(Self { memory: NonNull::slice_from_raw_parts(memory.cast(), count) })
    }

    /// Returns the words.
    pub(super) fn words(&self) -> &[AtomicU64] {
        // SAFETY: mapped, aligned to a page and of this size until `self` is dropped. Whoever else writes it, any bits
        // are a value.
        unsafe { self.memory.as_ref() }
    }
}

impl Drop for MappedWords {
    fn drop(&mut self) {
        let size = self.memory.len() * size_of::<AtomicU64>();
        // SAFETY: mapped by `map` with this size; nothing refers to it any more.
        let unmapped = unsafe { munmap(self.memory.cast(), size) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

impl fmt::Debug for MappedWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self.memory.len();
        f.debug_struct("MappedWords").field("words", &words).finish()
    }
}

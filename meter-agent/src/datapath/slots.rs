//! `SLOTS`, the array that programs read without a look-up: made so that it can be mapped, and mapped here.

use std::{
    fmt, io,
    num::NonZeroUsize,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use meter_ebpf::abi::{SLOT_ENTRIES, SlotRef, map};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::{
    open::{OpenError, load_error, path_error},
    sys,
};

/// Bytes of the map's one value.
pub(super) const SIZE: usize = SLOT_ENTRIES as usize * size_of::<SlotRef>();

/// The map, in this process's memory.
pub(super) struct SlotTable {
    memory: NonNull<[AtomicU64; SLOT_ENTRIES as usize]>,
}

// SAFETY: the memory belongs to no thread, and is only used through atomics.
unsafe impl Send for SlotTable {}

impl SlotTable {
    /// Opens the map that is pinned, which has to be checked before.
    pub(super) fn open(pin: &Path) -> Result<Self, OpenError> {
        let map = sys::open_pin(pin).map_err(|source| path_error("open the pinned map", pin, source))?;
        Self::map(map.as_fd()).map_err(|source| path_error("map into memory", pin, source))
    }

    /// Makes the map and pins it. aya would make one that can't be mapped.
    pub(super) fn make(pin: &Path) -> Result<Self, OpenError> {
        let map = sys::create_array(map::SLOTS, SIZE, sys::BPF_F_MMAPABLE)
            .map_err(|error| load_error(&format!("make map {}", map::SLOTS), &error))?;
        sys::pin(map.as_fd(), pin).map_err(|source| path_error("pin map", pin, source))?;
        Self::map(map.as_fd()).map_err(|source| path_error("map into memory", pin, source))
    }

    /// Makes a map that goes when it is dropped.
    pub(super) fn unpinned() -> Result<Self, OpenError> {
        let failed = |error: io::Error| load_error(&format!("make map {}", map::SLOTS), &error);
        let map = sys::create_array(map::SLOTS, SIZE, sys::BPF_F_MMAPABLE).map_err(failed)?;
        Self::map(map.as_fd()).map_err(failed)
    }

    /// The map's value is of [`SIZE`] bytes: of less, not all could be mapped.
    fn map(map: BorrowedFd<'_>) -> io::Result<Self> {
        let size = const { NonZeroUsize::new(SIZE).unwrap() };
        // SAFETY: the kernel chooses the address, so nothing that is there is replaced.
        let memory = unsafe {
            mmap(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, map, 0)?
        };
        Ok(Self { memory: memory.cast() })
    }

    fn places(&self) -> &[AtomicU64] {
        // SAFETY: mapped, aligned to a page and of this size until `self` is dropped. Programs only read it; whoever
        // else writes it, any bits are a value.
        unsafe { self.memory.as_ref() }
    }

    /// Returns the place of an ifindex; `None` for one that the map does not reach.
    fn place(&self, ifindex: u32) -> Option<&AtomicU64> {
        self.places().get(usize::try_from(ifindex).ok()?)
    }

    /// Returns what the map holds.
    pub(super) fn bits(&self) -> Vec<u64> {
        self.places().iter().map(|place| place.load(Ordering::Relaxed)).collect()
    }

    /// Returns where the netdev's counters are; `None` for an ifindex that the map does not reach.
    pub(super) fn get(&self, ifindex: u32) -> Option<SlotRef> {
        Some(SlotRef::from_bits(self.place(ifindex)?.load(Ordering::Relaxed)))
    }

    /// Says where the netdev's counters are, from the next frame on; returns whether the map reaches the ifindex.
    pub(super) fn set(&self, ifindex: u32, slot: SlotRef) -> bool {
        self.place(ifindex).map(|place| place.store(slot.bits(), Ordering::Relaxed)).is_some()
    }
}

impl Drop for SlotTable {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this size; nothing refers to it any more.
        let unmapped = unsafe { munmap(self.memory.cast(), SIZE) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

impl fmt::Debug for SlotTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotTable").finish_non_exhaustive()
    }
}

//! `SLOTS`, the array that programs read without a look-up: made so that it can be mapped, and mapped here.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use meter_ebpf::abi::{SLOT_ENTRIES, SlotRef, map};

use super::{
    mapped::MappedWords,
    open::{OpenError, load_error, path_error},
    sys,
};

/// Bytes of the map's one value.
pub(super) const SIZE: usize = WORDS * size_of::<SlotRef>();
const WORDS: usize = SLOT_ENTRIES as usize;

/// The map, in this process's memory.
#[derive(Debug)]
pub(super) struct SlotTable(MappedWords);

impl SlotTable {
    /// Opens the map that is pinned, which has to be checked before.
    pub(super) fn open(pin: &Path) -> Result<Self, OpenError> {
        let map = sys::open_pin(pin).map_err(|source| path_error("open the pinned map", pin, source))?;
        let mapped = MappedWords::map(map.as_fd(), WORDS);
        mapped.map(Self).map_err(|source| path_error("map into memory", pin, source))
    }

    /// Makes the map and pins it. aya would make one that can't be mapped.
    pub(super) fn make(pin: &Path) -> Result<Self, OpenError> {
        let map = sys::create_array(map::SLOTS, SIZE, sys::BPF_F_MMAPABLE)
            .map_err(|error| load_error(&format!("make map {}", map::SLOTS), &error))?;
        sys::pin(map.as_fd(), pin).map_err(|source| path_error("pin map", pin, source))?;
        let mapped = MappedWords::map(map.as_fd(), WORDS);
        mapped.map(Self).map_err(|source| path_error("map into memory", pin, source))
    }

    /// Makes a map that goes when both are dropped.
    pub(super) fn unpinned() -> Result<(Self, OwnedFd), OpenError> {
        let failed = |error: io::Error| load_error(&format!("make map {}", map::SLOTS), &error);
        let map = sys::create_array(map::SLOTS, SIZE, sys::BPF_F_MMAPABLE).map_err(failed)?;
        let mapped = MappedWords::map(map.as_fd(), WORDS).map_err(failed)?;
        Ok((Self(mapped), map))
    }

    /// Returns the place of an ifindex; `None` for one that the map does not reach.
    fn place(&self, ifindex: u32) -> Option<&AtomicU64> {
        self.0.words().get(usize::try_from(ifindex).ok()?)
    }

    /// Returns what the map holds.
    pub(super) fn bits(&self) -> Vec<u64> {
        self.0.words().iter().map(|place| place.load(Ordering::Relaxed)).collect()
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

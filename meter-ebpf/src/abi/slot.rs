//! Which counters a netdev has.

use super::{SLOTS_PER_BLOCK, SlotCounters};

/// How many ifindexes the array `SLOTS` has a place for; those from here on are in `SLOTS_HIGH`.
pub const SLOT_ENTRIES: u32 = 65_536;

/// Where the counters of a netdev are, and which uplink it is, if any.
///
/// All zero, as the kernel makes it, means that nobody claimed the netdev: its frames land in slot 0, the bucket of
/// unbound netdevs.
///
/// One number, so that a program that reads it while user space writes it sees the old one or the new one: the block
/// of the slot, above it where the slot begins in its block, above that the uplink. So the programs need not divide.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct SlotRef(u64);

const OFFSET_SHIFT: u32 = 32;
const UPLINK_SHIFT: u32 = 48;
const SLOT_SIZE: u32 = 64;
/// The last place of a slot in its block.
const OFFSET_MASK: u32 = (SLOTS_PER_BLOCK - 1) * SLOT_SIZE;

impl SlotRef {
    /// A netdev that nobody claimed.
    pub const UNBOUND: Self = Self(0);

    /// `slot` is the index of the [`SlotCounters`], `uplink` that of the uplink, for its buckets and its tunnels, or 0
    /// for none. An uplink has 16 bits: see [`MAX_UPLINKS`](super::MAX_UPLINKS).
    #[must_use]
    pub const fn new(slot: u32, uplink: u32) -> Self {
        let block = slot / SLOTS_PER_BLOCK;
        let offset = slot % SLOTS_PER_BLOCK * SLOT_SIZE;
        Self(block as u64 | (offset as u64) << OFFSET_SHIFT | (uplink as u64) << UPLINK_SHIFT)
    }

    /// Returns what a program or another process has written.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Returns what to write where programs read it.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Returns the index of the slot.
    #[must_use]
    pub const fn slot(self) -> u32 {
        self.block() * SLOTS_PER_BLOCK + self.offset() / SLOT_SIZE
    }

    /// Returns the index of the uplink, 0 for none.
    #[must_use]
    #[inline(always)]
    pub const fn uplink(self) -> u32 {
        (self.0 >> UPLINK_SHIFT) as u32
    }

    /// Returns the index of the value of `COUNTERS`.
    #[must_use]
    #[inline(always)]
    pub const fn block(self) -> u32 {
        (self.0 & 0xffff_ffff) as u32
    }

    /// Returns at which byte of that value the slot begins: always one where a slot begins, whatever the bits are.
    #[must_use]
    #[inline(always)]
    pub const fn offset(self) -> u32 {
        (self.0 >> OFFSET_SHIFT) as u32 & OFFSET_MASK
    }
}

const _: () = {
    assert!(size_of::<SlotRef>() == 8 && size_of::<SlotCounters>() == SLOT_SIZE as usize);
    assert!(SLOT_SIZE.is_power_of_two() && OFFSET_MASK <= u16::MAX as u32);
    assert!(super::MAX_UPLINKS <= u16::MAX as u32);
    let slot = SlotRef::new(SLOTS_PER_BLOCK * 3 + 5, 7);
    assert!(slot.slot() == SLOTS_PER_BLOCK * 3 + 5 && slot.block() == 3 && slot.uplink() == 7);
    assert!(SlotRef::new(0, 0).0 == SlotRef::UNBOUND.0);
};

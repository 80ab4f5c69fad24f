//! Netdevs of other network namespaces: which counters they have, and which namespace it was.

use super::{SLOTS_PER_BLOCK, SlotRef};

/// Numbers of namespaces, the host's own included, which is 0. Twice as many as are followed at a time: those that have
/// just gone keep theirs until nothing is attached in them.
pub const NAMESPACES: u32 = 2_048;

/// Netdevs of one namespace that can be metered at a time; a power of two.
pub const NAMESPACE_NETDEVS: u32 = 64;

/// Where the counters of one netdev of a namespace are.
///
/// One number, so that a program that reads it while user space writes it sees the old one or the new one: the ifindex
/// above the slot. All zero is a place that nobody has: no netdev has the ifindex 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct NamespacePlace(u64);

impl NamespacePlace {
    /// A place that nobody has.
    pub const FREE: Self = Self(0);

    /// Says in which slot a netdev counts.
    #[must_use]
    pub const fn new(ifindex: u32, slot: u32) -> Self {
        Self((ifindex as u64) << 32 | slot as u64)
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

    /// Returns whose place it is.
    #[must_use]
    #[inline(always)]
    pub const fn ifindex(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Returns the slot; no netdev of a namespace is an uplink.
    #[must_use]
    #[inline(always)]
    pub const fn slot(self) -> SlotRef {
        SlotRef::new((self.0 & 0xffff_ffff) as u32, 0)
    }
}

/// Returns the place at which to look for a netdev first, second, …: those behind one another, from one that the ifindex
/// tells.
#[must_use]
#[inline(always)]
pub const fn namespace_place(ifindex: u32, attempt: u32) -> u32 {
    ifindex.wrapping_add(attempt) % NAMESPACE_NETDEVS
}

/// One value of `NAMESPACES`: one network namespace, by its number.
///
/// Programs read the places. The rest is user space's: what tells the namespace from others across its own restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct NamespaceTable {
    /// Its netdevs.
    pub places: [NamespacePlace; NAMESPACE_NETDEVS as usize],
    /// Number of the device of nsfs; 0 where nobody has this number.
    pub device: u64,
    /// Its inode there, which another namespace may get after it.
    pub inode: u64,
    /// `SO_NETNS_COOKIE`, which no other namespace gets before the host reboots; 0 before Linux 5.14.
    pub cookie: u64,
    /// Always 0.
    pub padding: u64,
}

const _: () = {
    assert!(size_of::<NamespaceTable>() == 544 && NAMESPACE_NETDEVS.is_power_of_two());
    let place = NamespacePlace::new(7, SLOTS_PER_BLOCK + 5);
    assert!(place.ifindex() == 7 && place.slot().slot() == SLOTS_PER_BLOCK + 5);
    assert!(namespace_place(63, 1) == 0 && namespace_place(u32::MAX, 1) == 0);
};

//! Which overlay network a netdev's frames are of.

/// Value of `NETWORKS`, by slot: what a tunnel netdev says of the frames inside its tunnels. All zero is no tunnel netdev.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Network(u32);

const TUNNEL: u32 = 1 << 31;
const KNOWN: u32 = 1 << 30;
const EXTERNAL: u32 = 1 << 29;
/// Above the bits that a key has beside the VNI: those of `TUNNEL` and `KNOWN`.
const KEPT_SHIFT: u32 = 30;
const VNI_BITS: u32 = 24;
const VNI: u32 = (1 << VNI_BITS) - 1;

impl Network {
    /// That of a netdev that is no tunnel's.
    pub const NONE: Self = Self(0);
    /// Those of a tunnel netdev in external mode: each frame's metadata has its own.
    pub const EXTERNAL: Self = Self(TUNNEL | EXTERNAL);
    /// One in a tunnel of which no VNI is known.
    pub const UNKNOWN: Self = Self(TUNNEL);

    /// Returns the one with this VNI, or GRE key; without one where that has more than 24 bits, which no VNI has.
    #[must_use]
    #[inline(always)]
    pub const fn new(vni: u32) -> Self {
        if vni <= VNI { Self(TUNNEL | KNOWN | vni) } else { Self::UNKNOWN }
    }

    /// Returns what a program or another process has written.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// Returns it as a number.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Returns whether frames are inside a tunnel.
    #[must_use]
    #[inline(always)]
    pub const fn is_tunnel(self) -> bool {
        self.0 & TUNNEL != 0
    }

    /// Returns whether each frame has to be asked.
    #[must_use]
    #[inline(always)]
    pub const fn is_external(self) -> bool {
        self.0 & EXTERNAL != 0
    }

    /// Returns the VNI where it is known.
    #[must_use]
    #[inline(always)]
    pub const fn vni(self) -> Option<u32> {
        if self.0 & KNOWN != 0 { Some(self.0 & VNI) } else { None }
    }

    /// Returns the bits by which rules tell one from another, in the order of the number: [`NETWORK_BITS`] of them.
    #[must_use]
    #[inline(always)]
    pub const fn key(self) -> u64 {
        ((self.0 >> KEPT_SHIFT) << VNI_BITS | self.0 & VNI) as u64
    }

    /// Returns the one that has this [`key`](Self::key).
    #[must_use]
    #[inline(always)]
    pub const fn from_key(key: u64) -> Self {
        let key = (key & 0xffff_ffff) as u32;
        Self((key >> VNI_BITS) << KEPT_SHIFT | key & VNI)
    }
}

/// Bits of [`Network::key`].
pub const NETWORK_BITS: u32 = VNI_BITS + 32 - KEPT_SHIFT;

const _: () = {
    assert!(Network::new(VNI).key() < 1 << NETWORK_BITS);
    assert!(Network::from_key(Network::new(7).key()).0 == Network::new(7).0);
    assert!(!Network::UNKNOWN.is_external() && Network::EXTERNAL.is_tunnel() && !Network::NONE.is_tunnel());
};

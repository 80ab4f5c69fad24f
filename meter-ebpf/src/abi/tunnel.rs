//! Tunnels: their keys, their places, their counters.

/// Which encapsulation a tunnel uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Encap {
    /// RFC 7348.
    Vxlan = 1,
    /// RFC 8926.
    Geneve = 2,
    /// RFC 2784 and 2890, and NVGRE (RFC 7637).
    Gre = 3,
}

impl Encap {
    /// Every encapsulation, in the order of its number.
    pub const ALL: [Self; 3] = [Self::Vxlan, Self::Geneve, Self::Gre];

    /// Returns the encapsulation with this number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Vxlan),
            2 => Some(Self::Geneve),
            3 => Some(Self::Gre),
            _ => None,
        }
    }

    /// Returns the kernel's word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::Geneve => "geneve",
            Self::Gre => "gre",
        }
    }
}

/// An IPv6 address, or an IPv4 address as `::ffff:a.b.c.d`: its 16 bytes in network order, held as two words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Address {
    /// The bytes, eight to a word as they lie in memory.
    pub words: [u64; 2],
}

impl Address {
    /// Makes it of an IPv4 address, its four bytes as they lie in memory.
    #[inline(always)]
    #[must_use]
    pub const fn v4(bytes: u32) -> Self {
        let low = if cfg!(target_endian = "little") {
            (bytes as u64) << 32 | 0xffff_0000
        } else {
            (bytes as u64) | 0xffff_0000_0000
        };
        Self { words: [0, low] }
    }

    /// Returns the IPv4 address, its four bytes as they lie in memory; `None` for an IPv6 address.
    #[inline(always)]
    #[must_use]
    pub const fn as_v4(&self) -> Option<u32> {
        let [_, _, _, _, a, b, c, d] = self.words[1].to_ne_bytes();
        let bytes = u32::from_ne_bytes([a, b, c, d]);
        let mapped = Self::v4(bytes);
        if mapped.words[0] == self.words[0] && mapped.words[1] == self.words[1] { Some(bytes) } else { None }
    }

    /// Returns the 16 bytes.
    #[must_use]
    pub const fn bytes(&self) -> [u8; 16] {
        let [a, b, c, d, e, f, g, h] = self.words[0].to_ne_bytes();
        let [i, j, k, l, m, n, o, p] = self.words[1].to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }
}

/// Key of `TUNNELS`: one tunnel at one hook of one uplink.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct TunnelKey {
    /// Outer source address.
    pub src: Address,
    /// Outer destination address.
    pub dst: Address,
    /// From the lowest bit: VNI of 24 bits or GRE key of 32 (0 for a GRE packet without a key), uplink * 2 +
    /// direction in 16, number of the [`Encap`] in 8, zeros.
    pub labels: u64,
}

impl TunnelKey {
    /// Makes the key of a tunnel at one hook (uplink * 2 + direction).
    #[inline(always)]
    #[must_use]
    pub const fn new(src: Address, dst: Address, vni: u32, encap: Encap, hook: u16) -> Self {
        Self { src, dst, labels: Self::new_labels(vni, encap, hook) }
    }

    /// Makes the labels of a key.
    #[inline(always)]
    #[must_use]
    pub const fn new_labels(vni: u32, encap: Encap, hook: u16) -> u64 {
        (((hook as u32) | (encap as u32) << 16) as u64) << 32 | (vni as u64)
    }

    /// Returns the VNI or GRE key.
    #[must_use]
    pub const fn vni(&self) -> u32 {
        let [a, b, c, d, ..] = self.labels.to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    /// Returns uplink * 2 + direction.
    #[must_use]
    pub const fn hook(&self) -> u16 {
        let [_, _, _, _, low, high, ..] = self.labels.to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    /// Returns the encapsulation.
    #[must_use]
    pub const fn encap(&self) -> Option<Encap> {
        Encap::from_number(self.labels.to_le_bytes()[6])
    }

    /// Returns the key as five words, for hashing and comparing.
    #[inline(always)]
    #[must_use]
    pub const fn words(&self) -> [u64; 5] {
        [self.src.words[0], self.src.words[1], self.dst.words[0], self.dst.words[1], self.labels]
    }
}

/// Traffic of one tunnel at one hook, in wire units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TunnelCounter {
    /// Outer frames.
    pub packets: u64,
    /// Bytes of the frames inside, as MidoNet counts them.
    pub inner_bytes: u64,
    /// Bytes of the outer frames.
    pub outer_bytes: u64,
}

impl TunnelCounter {
    /// Adds another counter to this one.
    pub const fn add(&mut self, other: &Self) {
        self.packets = self.packets.wrapping_add(other.packets);
        self.inner_bytes = self.inner_bytes.wrapping_add(other.inner_bytes);
        self.outer_bytes = self.outer_bytes.wrapping_add(other.outer_bytes);
    }
}

/// A tunnel and its counter on one CPU: one cache line.
///
/// A tunnel keeps the place that it was given, and has it on every CPU. So what a frame costs is one look-up by the
/// hash of its tunnel: where the place is another tunnel's, or not yet known on this CPU, `TUNNELS` says where to go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TunnelPlace {
    /// The [`TunnelKey::labels`], with [`LONG_ADDRESSES`] where they are long; 0 (no encapsulation has that number)
    /// until a frame of the tunnel comes on this CPU.
    pub labels: u64,
    /// The source and the destination, two words each; of two IPv4 addresses, both in the first word.
    pub addresses: [u64; 4],
    /// What this CPU counted.
    pub counter: TunnelCounter,
}

/// In [`TunnelPlace::labels`]: the addresses are not both IPv4.
pub const LONG_ADDRESSES: u64 = 1 << 56;

/// Places in one value of `TUNNEL_COUNTERS` (16 KiB).
pub const TUNNELS_PER_BLOCK: u32 = 256;

/// One value of `TUNNEL_COUNTERS`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct TunnelBlock {
    /// The places of this block, by `place % TUNNELS_PER_BLOCK`.
    pub places: [TunnelPlace; TUNNELS_PER_BLOCK as usize],
}

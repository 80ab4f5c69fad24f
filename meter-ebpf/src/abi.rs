//! Map names, keys, values and reasons: everything that both halves must agree on.
//!
//! All integers are in host byte order unless a field says otherwise; addresses are in network byte order.
//! Counters wrap modulo 2^64, which no host reaches.

/// Version of everything in this module; part of the pin path.
pub const VERSION: u32 = 1;

/// Names of the maps, as the kernel shows them (15 characters at most).
pub mod map {
    /// Array: ifindex to [`SlotRef`](super::SlotRef).
    pub const SLOTS: &str = "SLOTS";
    /// Hash: ifindex to [`SlotRef`](super::SlotRef), for the ifindexes beyond [`SLOTS`].
    pub const SLOTS_HIGH: &str = "SLOTS_HIGH";
    /// Per-CPU array of [`SlotBlock`](super::SlotBlock).
    pub const COUNTERS: &str = "COUNTERS";
    /// Hash: port UUID to [`PortRecord`](super::PortRecord). Only user space reads and writes it.
    pub const PORTS: &str = "PORTS";
    /// Hash: [`MemberKey`](super::MemberKey) to [`Member`](super::Member). Only user space reads and writes it.
    pub const MEMBERS: &str = "MEMBERS";
    /// Hash: [`TunnelKey`](super::TunnelKey) to the tunnel's index (`u32`).
    pub const TUNNELS: &str = "TUNNELS";
    /// Queue of the tunnel indexes (`u32`) that are free.
    pub const TUNNEL_FREE: &str = "TUNNEL_FREE";
    /// Per-CPU array: direct-mapped cache of [`TunnelCacheEntry`](super::TunnelCacheEntry) before `TUNNELS`.
    pub const TUNNEL_CACHE: &str = "TUNNEL_CACHE";
    /// Per-CPU array of [`TunnelBlock`](super::TunnelBlock).
    pub const TUNNEL_COUNTERS: &str = "TUNNEL_COUNTER";
    /// Per-CPU array: uplink * 2 + direction to [`Buckets`](super::Buckets).
    pub const BUCKETS: &str = "BUCKETS";
    /// Per-CPU array of one [`Faults`](super::Faults).
    pub const FAULTS: &str = "FAULTS";
    /// Array of one [`Meta`](super::Meta).
    pub const META: &str = "META";
}

/// Which hook of a netdev, from the host's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Direction {
    /// Frames that the netdev received: a tap's ingress is what its guest sends.
    Ingress = 0,
    /// Frames that the host offers to the netdev.
    Egress = 1,
}

impl Direction {
    /// Both directions, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];
}

/// Packets and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counter {
    /// Number of frames.
    pub packets: u64,
    /// L2 bytes: Ethernet header and VLAN tags in, FCS out.
    pub bytes: u64,
}

/// Traffic seen at one hook.
///
/// Kept as two parts that only grow, so that the plain frame costs two additions: what the kernel itself would count,
/// and what a super-packet or an accelerated VLAN tag adds to it on the wire. Wire units are the sum of both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct HookCounter {
    /// Socket buffers (skbs), or XDP frames.
    pub skb_packets: u64,
    /// Sum of their lengths.
    pub skb_bytes: u64,
    /// Frames on the wire beyond `skb_packets`.
    pub extra_packets: u64,
    /// Bytes on the wire beyond `skb_bytes`: repeated headers, VLAN tags kept outside the skb's data.
    pub extra_bytes: u64,
}

impl HookCounter {
    /// Returns frames and bytes as they are on the wire.
    #[must_use]
    pub const fn wire(&self) -> Counter {
        Counter {
            packets: self.skb_packets.wrapping_add(self.extra_packets),
            bytes: self.skb_bytes.wrapping_add(self.extra_bytes),
        }
    }

    /// Returns packets and bytes as the kernel's own netdev statistics would count them.
    #[must_use]
    pub const fn skb(&self) -> Counter {
        Counter { packets: self.skb_packets, bytes: self.skb_bytes }
    }

    /// Subtracts another counter from this one.
    pub const fn sub(&mut self, other: &Self) {
        self.skb_packets = self.skb_packets.wrapping_sub(other.skb_packets);
        self.skb_bytes = self.skb_bytes.wrapping_sub(other.skb_bytes);
        self.extra_packets = self.extra_packets.wrapping_sub(other.extra_packets);
        self.extra_bytes = self.extra_bytes.wrapping_sub(other.extra_bytes);
    }

    /// Adds another counter to this one.
    pub const fn add(&mut self, other: &Self) {
        self.skb_packets = self.skb_packets.wrapping_add(other.skb_packets);
        self.skb_bytes = self.skb_bytes.wrapping_add(other.skb_bytes);
        self.extra_packets = self.extra_packets.wrapping_add(other.extra_packets);
        self.extra_bytes = self.extra_bytes.wrapping_add(other.extra_bytes);
    }
}

impl Counter {
    /// Subtracts another counter from this one.
    pub const fn sub(&mut self, other: &Self) {
        self.packets = self.packets.wrapping_sub(other.packets);
        self.bytes = self.bytes.wrapping_sub(other.bytes);
    }

    /// Adds another counter to this one.
    pub const fn add(&mut self, other: &Self) {
        self.packets = self.packets.wrapping_add(other.packets);
        self.bytes = self.bytes.wrapping_add(other.bytes);
    }
}

/// Where the counters of a netdev are: the value of `SLOTS`.
///
/// All zero, as the kernel makes it, means that nobody claimed the netdev: its frames land in slot 0, the bucket of
/// unbound netdevs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SlotRef {
    /// Index of the [`SlotCounters`], 0 for none.
    pub slot: u32,
    /// Index of the uplink, for its buckets and its tunnels; 0 for none.
    pub uplink: u32,
}

/// The slot of frames on netdevs that nobody claimed.
pub const UNBOUND_SLOT: u32 = 0;

/// Both directions of one netdev: one cache line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SlotCounters {
    /// The hooks, by [`Direction`].
    pub hooks: [HookCounter; 2],
}

impl SlotCounters {
    /// Adds other counters to these.
    pub const fn add(&mut self, other: &Self) {
        self.hooks[0].add(&other.hooks[0]);
        self.hooks[1].add(&other.hooks[1]);
    }

    /// Subtracts other counters from these.
    pub const fn sub(&mut self, other: &Self) {
        self.hooks[0].sub(&other.hooks[0]);
        self.hooks[1].sub(&other.hooks[1]);
    }

    /// Returns the hook of this direction.
    #[must_use]
    pub const fn hook(&self, direction: Direction) -> &HookCounter {
        &self.hooks[direction as usize]
    }
}

/// Slots in one value of `COUNTERS`. A block is 16 KiB, so that 10,000 netdevs are read by 40 system calls.
pub const SLOTS_PER_BLOCK: u32 = 256;

/// One value of `COUNTERS`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct SlotBlock {
    /// The slots of this block, by `slot % SLOTS_PER_BLOCK`.
    pub slots: [SlotCounters; SLOTS_PER_BLOCK as usize],
}

/// Key of `PORTS`: the UUID as its 16 bytes, in the order in which it is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct PortUuid {
    /// The bytes.
    pub uuid: [u8; 16],
}

/// What user space remembers of a metered netdev across its own restarts.
///
/// A total is `saved` plus the slot's counters, modulo 2^64; without a slot it is `saved` alone. A slot is never
/// zeroed, since that could not be done beside programs that count: whoever gets it next subtracts what it holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PortRecord {
    /// Index of the counters; [`UNBOUND_SLOT`] for none. A port keeps its slot after its netdev has gone, until
    /// another port needs it.
    pub slot: u32,
    /// Index of the uplink's buckets, 0 for none.
    pub uplink: u32,
    /// The netdev that carries it now, 0 for none.
    pub ifindex: u32,
    /// 0 port, 1 uplink, 2 tunnel netdev.
    pub class: u32,
    /// How it is attached: see [`hooks`].
    pub hooks: u32,
    /// Always 0.
    pub padding: u32,
    /// When the first packet could be counted: nanoseconds since the Unix epoch.
    pub created_ns: u64,
    /// What to add to the slot's counters.
    pub saved: SlotCounters,
    /// The device that the port belongs to, zeros for none.
    pub device: PortUuid,
}

/// Bits of [`PortRecord::hooks`].
pub mod hooks {
    /// Ingress is a TCX link.
    pub const INGRESS_TCX: u32 = 1;
    /// Ingress is a clsact filter.
    pub const INGRESS_CLSACT: u32 = 2;
    /// Ingress is an XDP link.
    pub const INGRESS_XDP: u32 = 4;
    /// Egress is a TCX link.
    pub const EGRESS_TCX: u32 = 8;
    /// Egress is a clsact filter.
    pub const EGRESS_CLSACT: u32 = 16;
    /// The clsact qdisc is ours: it was not there before.
    pub const CLSACT_OURS: u32 = 32;
}

/// Key of `MEMBERS`: a port's time in a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct MemberKey {
    /// The port.
    pub port: PortUuid,
    /// The device.
    pub device: PortUuid,
}

/// What came into a device through one of its ports.
///
/// While the port belongs to the device that is `accrued` plus the port's ingress less `base`, modulo 2^64; after it
/// has left it is `accrued`. Both fields are written at once, so that a crash at any point changes no sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Member {
    /// Wire units that came in until `base`.
    pub accrued: Counter,
    /// The port's ingress in wire units when `accrued` was written.
    pub base: Counter,
}

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
        Self { src, dst, labels: (vni as u64) | (hook as u64) << 32 | (encap as u64) << 48 }
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

    /// Makes the key of its [`TunnelKey::words`].
    #[inline(always)]
    #[must_use]
    pub const fn from_words([a, b, c, d, labels]: [u64; 5]) -> Self {
        Self { src: Address { words: [a, b] }, dst: Address { words: [c, d] }, labels }
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
    /// Always 0.
    pub padding: u64,
}

/// Tunnels in one value of `TUNNEL_COUNTERS` (16 KiB).
pub const TUNNELS_PER_BLOCK: u32 = 512;

/// One value of `TUNNEL_COUNTERS`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct TunnelBlock {
    /// The tunnels of this block, by `index % TUNNELS_PER_BLOCK`.
    pub tunnels: [TunnelCounter; TUNNELS_PER_BLOCK as usize],
}

/// One entry of `TUNNEL_CACHE`; a key of zeros (no encapsulation has the number 0) is an empty entry.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct TunnelCacheEntry {
    /// The tunnel.
    pub key: TunnelKey,
    /// Its index.
    pub index: u32,
    /// Always 0.
    pub padding: u32,
}

/// Declares an enum of reasons whose numbers are array indexes, whose names are label values and whose doc
/// sentences are HELP texts.
macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident { $($(#[doc = $help:literal])+ $variant:ident = $label:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum $name { $($(#[doc = $help])+ $variant,)+ }

        impl $name {
            /// Every reason, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Returns the reason with this number.
            #[must_use]
            pub const fn from_number(number: u32) -> Option<Self> {
                if (number as usize) < Self::ALL.len() { Some(Self::ALL[number as usize]) } else { None }
            }

            /// Returns the label value.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }

            /// Returns the sentence that explains it to an operator.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => concat!($($help),+),)+ }
            }
        }
    };
}

reasons! {
    /// Why a frame at an uplink is in no tunnel's meter. For each uplink and direction the tunnels and these buckets
    /// add up to what the hook saw.
    Bucket {
        /// No tunnel header: ordinary traffic of the underlay.
        Plain = "plain",
        /// The frame ends inside its outer headers.
        TruncatedHeader = "truncated_header",
        /// A later fragment of an outer packet: the tunnel header is in the first one.
        OuterFragment = "outer_fragment",
        /// The tunnel header is not valid, such as a VXLAN header without a VNI.
        BadTunnelHeader = "bad_tunnel_header",
        /// A kind of tunnel header that has no meter, such as GRE version 1.
        UnknownEncapsulation = "unknown_encapsulation",
        /// More VLAN tags or IPv6 extension headers than are followed.
        TooManyHeaders = "too_many_headers",
        /// The table of tunnels is full; raise tunnels.max_tunnels and `meter-agent detach`, which ends all totals.
        TunnelTableFull = "tunnel_table_full",
    }
}

reasons! {
    /// Why a super-packet was counted as one frame. These frames are in their port's meter as well.
    Fault {
        /// The headers of a super-packet end beyond the frame.
        GsoTruncated = "gso_truncated",
        /// A super-packet of a protocol whose headers are not known.
        GsoUnknownProtocol = "gso_unknown_protocol",
        /// A super-packet with more nested headers than are followed.
        GsoTooManyHeaders = "gso_too_many_headers",
        /// A super-packet without a number of segments.
        GsoNoSegments = "gso_no_segments",
    }
}

/// Room for reasons in [`Buckets`] and [`Faults`]; more than there are, so that adding one does not change a size.
pub const MAX_REASONS: usize = 16;

/// Frames at one hook of one uplink that no tunnel meter counts, by [`Bucket`], in wire units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Buckets {
    /// By the number of the [`Bucket`].
    pub reasons: [Counter; MAX_REASONS],
}

/// Frames that were counted, but not in full, by [`Fault`]; bytes are skb bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Faults {
    /// By the number of the [`Fault`].
    pub reasons: [Counter; MAX_REASONS],
}

/// Uplinks that can have buckets, the unused index 0 included.
pub const MAX_UPLINKS: u32 = 64;

/// What user space remembers about the maps themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Meta {
    /// [`VERSION`] of the agent that made the maps.
    pub version: u32,
    /// 1 once `TUNNEL_FREE` holds every index.
    pub tunnels_ready: u32,
}

/// How many UDP ports can carry VXLAN.
pub const VXLAN_PORTS: usize = 8;
/// How many UDP ports can carry GENEVE.
pub const GENEVE_PORTS: usize = 4;

/// The configuration of the programs: set once, when they are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// UDP destination ports that carry VXLAN; 0 behind the last.
    pub vxlan_ports: [u16; VXLAN_PORTS],
    /// UDP destination ports that carry GENEVE; 0 behind the last.
    pub geneve_ports: [u16; GENEVE_PORTS],
    /// Entries of `TUNNEL_CACHE` less one; the number of entries is a power of two.
    pub cache_mask: u32,
    /// 1 when GRE packets that carry Ethernet are NVGRE: the VNI is the upper 24 bits of the key.
    pub nvgre: u32,
}

impl Settings {
    /// The ports of RFC 7348 and of Linux before it, MidoNet's, and the port of RFC 8926.
    pub const DEFAULT: Self = Self {
        vxlan_ports: [4789, 8472, 6677, 0, 0, 0, 0, 0],
        geneve_ports: [6081, 0, 0, 0],
        cache_mask: 8192 - 1,
        nvgre: 0,
    };
}

const _: () = {
    assert!(size_of::<Counter>() == 16);
    assert!(size_of::<HookCounter>() == 32);
    assert!(size_of::<SlotCounters>() == 64);
    assert!(size_of::<SlotBlock>() == 16 * 1024);
    assert!(size_of::<SlotRef>() == 8);
    assert!(size_of::<PortUuid>() == 16);
    assert!(size_of::<PortRecord>() == 112);
    assert!(size_of::<MemberKey>() == 32);
    assert!(size_of::<Member>() == 32);
    assert!(size_of::<TunnelKey>() == 40);
    assert!(size_of::<TunnelCounter>() == 32);
    assert!(size_of::<TunnelBlock>() == 16 * 1024);
    assert!(size_of::<TunnelCacheEntry>() == 48);
    assert!(size_of::<Buckets>() == 256);
    assert!(size_of::<Faults>() == 256);
    assert!(size_of::<Settings>() == 32);
    assert!(Bucket::ALL.len() <= MAX_REASONS && Fault::ALL.len() <= MAX_REASONS);
};

#[cfg(not(target_arch = "bpf"))]
mod pod {
    use super::{
        Buckets, Faults, Member, MemberKey, Meta, PortRecord, PortUuid, Settings, SlotBlock, SlotRef,
        TunnelBlock, TunnelCacheEntry, TunnelKey,
    };

    macro_rules! pod {
        ($($type:ty),+) => { $(
            // SAFETY: `repr(C)`, only integers and arrays of them, and no padding: the sizes above are the sums of
            // the fields. Every bit pattern is a value.
            unsafe impl aya::Pod for $type {}
        )+ };
    }

    pod!(Buckets, Faults, Member, MemberKey, Meta, PortRecord, PortUuid, Settings, SlotBlock, SlotRef);
    pod!(TunnelBlock, TunnelCacheEntry, TunnelKey);
}

//! Map names, keys, values and reasons: everything that both halves must agree on.
//!
//! All integers are in host byte order unless a field says otherwise; addresses are in network byte order.
//! Counters wrap modulo 2^64, which no host reaches.

pub mod connection;
mod namespace;
mod network;
mod port;
mod reason;
pub mod rules;
mod slot;
mod tunnel;

pub use self::{
    namespace::{NAMESPACE_NETDEVS, NAMESPACES, NamespacePlace, NamespaceTable, namespace_place},
    network::{NETWORK_BITS, Network},
    port::{Member, MemberKey, PortRecord, PortUuid, hooks},
    reason::{Bucket, Buckets, Fault, Faults, MAX_REASONS},
    slot::{SLOT_ENTRIES, SlotRef},
    tunnel::{
        Address, Encap, LONG_ADDRESSES, TUNNELS_PER_BLOCK, TunnelBlock, TunnelCounter, TunnelKey, TunnelPlace,
    },
};

/// Version of everything in this module; part of the pin path.
pub const VERSION: u32 = 1;

/// Names of the maps, as the kernel shows them (15 characters at most).
pub mod map {
    /// Array of one value: ifindex to [`SlotRef`](super::SlotRef), for [`SLOT_ENTRIES`](super::SLOT_ENTRIES) of them.
    /// The programs read it without a look-up, and user space writes it by `mmap(2)`.
    pub const SLOTS: &str = "SLOTS";
    /// Where the object has [`SLOTS`]: what programs read without a look-up is a section of theirs.
    pub const SLOTS_SECTION: &str = ".bss.SLOTS";
    /// Hash: ifindex to [`SlotRef`](super::SlotRef), for the ifindexes beyond [`SLOTS`].
    pub const SLOTS_HIGH: &str = "SLOTS_HIGH";
    /// Per-CPU array of [`SlotBlock`](super::SlotBlock).
    pub const COUNTERS: &str = "COUNTERS";
    /// Hash: port UUID to [`PortRecord`](super::PortRecord). Only user space reads and writes it.
    pub const PORTS: &str = "PORTS";
    /// Hash: [`MemberKey`](super::MemberKey) to [`Member`](super::Member). Only user space reads and writes it.
    pub const MEMBERS: &str = "MEMBERS";
    /// Hash: [`TunnelKey`](super::TunnelKey) to the tunnel's place (`u32`).
    pub const TUNNELS: &str = "TUNNELS";
    /// Hash: a place (`u32`) that a tunnel's hash leads to, once it is taken.
    pub const TUNNEL_TAKEN: &str = "TUNNEL_TAKEN";
    /// Queue of the spare places (`u32`) that are free.
    pub const TUNNEL_SPARE: &str = "TUNNEL_SPARE";
    /// Per-CPU array of [`TunnelBlock`](super::TunnelBlock).
    pub const TUNNEL_COUNTERS: &str = "TUNNEL_COUNTER";
    /// Per-CPU array: uplink * 2 + direction to [`Buckets`](super::Buckets).
    pub const BUCKETS: &str = "BUCKETS";
    /// Per-CPU array of one [`Faults`](super::Faults).
    pub const FAULTS: &str = "FAULTS";
    /// Hash: [`TunnelKey`](super::TunnelKey) to [`TunnelCounter`](super::TunnelCounter): what tunnels had counted when these
    /// maps were made. Only user space reads and writes it.
    pub const TUNNEL_SAVED: &str = "TUNNEL_SAVED";
    /// Hash: uplink * 2 + direction, or a number of [`saved`](super::saved), to [`Buckets`](super::Buckets): the same for
    /// all other counters. Only user space reads and writes it.
    pub const SAVED: &str = "SAVED";
    /// Array of one [`Meta`](super::Meta).
    pub const META: &str = "META";
    /// Array of one array of one [`RuleTables`](super::rules::RuleTables), or of none: the rules of user-defined meters.
    pub const RULES: &str = "RULES";
    /// Array of one per-CPU array of [`VerdictBlock`](super::rules::VerdictBlock), or of none.
    pub const VERDICTS: &str = "VERDICTS";
    /// Hash: [`MeterName`](super::rules::MeterName) to [`MeterRecord`](super::rules::MeterRecord). Only user space reads
    /// and writes it.
    pub const METERS: &str = "METERS";
    /// Array: the number of a network namespace to [`NamespaceTable`](super::NamespaceTable). Pinned only where namespaces
    /// are or were followed. User space writes it by `mmap(2)`.
    pub const NAMESPACES: &str = "NAMESPACES";
    /// Array: slot to [`Network`](super::Network).
    pub const NETWORKS: &str = "NETWORKS";
    /// Per-CPU array of [`MeterBlock`](super::rules::MeterBlock).
    pub const METER_COUNTERS: &str = "METER_COUNTERS";
    /// Array of [`Connection`](super::connection::Connection), in their places. User space maps it.
    pub const CONNECTIONS: &str = "CONNECTIONS";
    /// Hash: [`ConnectionKey`](super::connection::ConnectionKey) to the connection's place (`u32`).
    pub const CONNECTION_KEYS: &str = "CONNECTION_KEYS";
    /// Queue of the places (`u32`) that are free.
    pub const CONNECTION_FREE: &str = "CONNECTION_FREE";
    /// Array of one [`ConnectionHints`](super::connection::ConnectionHints).
    pub const CONNECTION_HINTS: &str = "CONNECTION_HINT";
    /// Array of [`Handshake`](super::connection::Handshake), by the connection's place. User space maps it.
    pub const CONNECTION_TIMES: &str = "CONNECTION_TIME";
    /// Array: slot to [`Capture`](super::connection::Capture). User space maps it.
    pub const CAPTURES: &str = "CAPTURES";
    /// Hash: [`PortUuid`](super::PortUuid) to [`SavedCapture`](super::connection::SavedCapture). Only user space reads and
    /// writes it.
    pub const CAPTURE_SAVED: &str = "CAPTURE_SAVED";
    /// Array of one array of one [`RuleTables`](super::rules::RuleTables), or of none: the rules that say which connections
    /// are counted.
    pub const CAPTURE_RULES: &str = "CAPTURE_RULES";
    /// Array of one per-CPU array of [`VerdictBlock`](super::rules::VerdictBlock), or of none: what those rules said.
    pub const CAPTURE_VERDICTS: &str = "CAPTURE_VERDICT";
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

/// Uplinks that can have buckets, the unused index 0 included.
pub const MAX_UPLINKS: u32 = 64;

/// What user space remembers about the maps themselves. Agents of other versions read it: it stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Meta {
    /// [`VERSION`] of the agent that made the maps.
    pub version: u32,
    /// 1 once `TUNNEL_SPARE` holds every spare place.
    pub tunnels_ready: u32,
    /// 1 once everything is here that the maps of an earlier version held.
    pub carried: u32,
}

/// Keys of `SAVED` beside those of hooks.
pub mod saved {
    /// The [`Faults`](super::Faults).
    pub const FAULTS: u32 = 1 << 16;
    /// The slot of frames that nobody claimed: of each hook what it counted, and what that is beyond skbs.
    pub const UNBOUND: u32 = FAULTS + 1;
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
    /// Places of tunnels that their hashes lead to, less one; their number is a power of two. Behind them are the
    /// spare ones.
    pub tunnel_mask: u32,
    /// 1 when GRE packets that carry Ethernet are NVGRE: the VNI is the upper 24 bits of the key.
    pub nvgre: u32,
}

impl Settings {
    /// The ports of RFC 7348 and of Linux before it, MidoNet's, and the port of RFC 8926.
    pub const DEFAULT: Self = Self {
        vxlan_ports: [4789, 8472, 6677, 0, 0, 0, 0, 0],
        geneve_ports: [6081, 0, 0, 0],
        tunnel_mask: 8192 - 1,
        nvgre: 0,
    };
}

const _: () = {
    assert!(size_of::<Counter>() == 16);
    assert!(size_of::<HookCounter>() == 32);
    assert!(size_of::<SlotCounters>() == 64);
    assert!(size_of::<SlotBlock>() == 16 * 1024);
    assert!(size_of::<Network>() == 4);
    assert!(size_of::<PortUuid>() == 16);
    assert!(size_of::<PortRecord>() == 112);
    assert!(size_of::<MemberKey>() == 32);
    assert!(size_of::<Member>() == 32);
    assert!(size_of::<TunnelKey>() == 40);
    assert!(size_of::<TunnelCounter>() == 24);
    assert!(size_of::<TunnelPlace>() == 64);
    assert!(size_of::<TunnelBlock>() == 16 * 1024);
    assert!(size_of::<Buckets>() == 256);
    assert!(size_of::<Faults>() == 256);
    assert!(size_of::<Settings>() == 32);
    assert!(Bucket::ALL.len() <= MAX_REASONS && Fault::ALL.len() <= MAX_REASONS);
};

#[cfg(not(target_arch = "bpf"))]
mod pod {
    use super::{
        Buckets, Faults, Member, MemberKey, Meta, NamespaceTable, Network, PortRecord, PortUuid, Settings,
        SlotBlock, SlotRef, TunnelBlock, TunnelCounter, TunnelKey,
        connection::{Capture, Connection, ConnectionHints, ConnectionKey, Handshake, SavedCapture},
        rules::{MeterBlock, MeterName, MeterRecord, RuleTables, Verdict},
    };

    macro_rules! pod {
        ($($type:ty),+) => { $(
            // SAFETY: `repr(C)`, only integers and arrays of them, and no padding: the sizes above are the sums of
            // the fields. Every bit pattern is a value.
            unsafe impl aya::Pod for $type {}
        )+ };
    }

    pod!(Buckets, Faults, Member, MemberKey, Meta, PortRecord, PortUuid, Settings, SlotBlock, SlotRef);
    pod!(NamespaceTable, Network, TunnelBlock, TunnelCounter, TunnelKey);
    pod!(Capture, Connection, ConnectionHints, ConnectionKey, Handshake, SavedCapture);
    pod!(MeterBlock, MeterName, MeterRecord, RuleTables, Verdict);
}

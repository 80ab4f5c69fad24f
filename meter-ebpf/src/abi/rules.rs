//! User-defined meters: the compiled rules, what a verdict depends on, and the meters' counters.
//!
//! A rule is a bit. Each field of a frame leads through a trie of half bytes to a vector that has the bits of the rules
//! that the field satisfies; the rules that match are the conjunction of all vectors. How
//! [`classify`](crate::rules::classify) combines them is the meaning of the tables.

use super::{Counter, NETWORK_BITS};
#[cfg(doc)]
use super::{Direction, Network};

/// Rules of all meters together at most.
pub const MAX_RULES: usize = 1_024;
/// Words of a vector: a bit for each rule.
pub const RULE_WORDS: usize = MAX_RULES / 64;
/// One bit for each rule.
pub type RuleVector = [u64; RULE_WORDS];
/// Nodes of all tries together at most. A power of two: an index is masked.
pub const MAX_NODES: usize = 32_768;
/// Different vectors at most. A power of two: an index is masked.
pub const MAX_VECTORS: usize = 16_384;
/// Marks a place of a trie that leads to a vector; without it, it leads to a node.
pub const LEAF: u16 = 0x8000;
/// The vector of all rules.
pub const EVERY_RULE: u16 = 0;
/// Steps of the deepest trie: the half bytes of an IPv6 address.
pub const MAX_DEPTH: u32 = 32;
/// Counters of meters. Twice [`MAX_RULES`], so that a new set always fits beside the one that counts.
pub const METER_COUNTERS: u32 = 2_048;
/// How many [`Field`]s there are.
pub const FIELDS: usize = 21;
/// Bits of the generation of a set, above which the word of a [`FlowKey`] has the overlay network.
pub const GENERATION_BITS: u32 = 64 - NETWORK_BITS;
/// Words of a [`FlowKey`].
pub const KEY_WORDS: usize = 9;

/// Fields with a trie of their own. Addresses have one for each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Field {
    /// Slot of the port through which a frame came in.
    InPort,
    /// Slot of the port through which it goes out.
    OutPort,
    /// Slot of the port through which it came in, for the devices that this says were traversed.
    TraversedIn,
    /// The same for the port through which it goes out.
    TraversedOut,
    /// Ethertype.
    Ethertype,
    /// VLAN id.
    Vlan,
    /// IP protocol or ARP operation.
    Proto,
    /// TOS byte or traffic class.
    Tos,
    /// Source port or ICMP type.
    SrcPort,
    /// Destination port or ICMP code.
    DstPort,
    /// Source MAC address.
    HwSrc,
    /// Destination MAC address.
    HwDst,
    /// Source address, IPv4.
    Src4,
    /// Source address, IPv6.
    Src6,
    /// Destination address, IPv4.
    Dst4,
    /// Destination address, IPv6.
    Dst6,
    /// Slot of the port through which a frame came in, for the routers that are on its bridge.
    RouterIn,
    /// The same for the port through which it goes out.
    RouterOut,
    /// Destination MAC address of a frame without a VLAN tag, for the routers that have it.
    RouterDst,
    /// The same for its source.
    RouterSrc,
    /// VNI of the tunnel that it is in.
    Vni,
}

impl Field {
    /// All fields, in the order of their numbers.
    pub const ALL: [Self; FIELDS] = [
        Self::InPort,
        Self::OutPort,
        Self::TraversedIn,
        Self::TraversedOut,
        Self::Ethertype,
        Self::Vlan,
        Self::Proto,
        Self::Tos,
        Self::SrcPort,
        Self::DstPort,
        Self::HwSrc,
        Self::HwDst,
        Self::Src4,
        Self::Src6,
        Self::Dst4,
        Self::Dst6,
        Self::RouterIn,
        Self::RouterOut,
        Self::RouterDst,
        Self::RouterSrc,
        Self::Vni,
    ];

    /// Returns how many bits its values have.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::InPort
            | Self::OutPort
            | Self::TraversedIn
            | Self::TraversedOut
            | Self::RouterIn
            | Self::RouterOut => 32,
            Self::Ethertype | Self::Vlan | Self::SrcPort | Self::DstPort => 16,
            Self::Proto | Self::Tos => 8,
            Self::Vni => 24,
            Self::HwSrc | Self::HwDst | Self::RouterDst | Self::RouterSrc => 48,
            Self::Src4 | Self::Dst4 => 32,
            Self::Src6 | Self::Dst6 => 128,
        }
    }
}

/// What a verdict depends on: the fields of a frame that rules look at, and the set of rules.
///
/// By words: source and destination address, two each (IPv4 in the upper half of the first); ports, ethertype and VLAN
/// id; MAC addresses, each with 16 bits of others above it (protocol and TOS, then [`present`] and the rest); the slots
/// of the ports; the generation of the set, with the overlay network above it ([`Network::key`]).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowKey {
    /// The words.
    pub words: [u64; KEY_WORDS],
}

/// Bits of a [`FlowKey`] that say which fields a frame has.
pub mod present {
    /// An ethertype.
    pub const ETHERTYPE: u64 = 1 << 48;
    /// A VLAN tag.
    pub const VLAN: u64 = 1 << 49;
    /// A protocol.
    pub const PROTO: u64 = 1 << 50;
    /// A TOS byte.
    pub const TOS: u64 = 1 << 51;
    /// A source port.
    pub const SRC_PORT: u64 = 1 << 52;
    /// A destination port.
    pub const DST_PORT: u64 = 1 << 53;
    /// Both MAC addresses.
    pub const HW: u64 = 1 << 54;
    /// A source address.
    pub const SRC: u64 = 1 << 55;
    /// A destination address.
    pub const DST: u64 = 1 << 56;
    /// Its addresses are of IPv6.
    pub const IPV6: u64 = 1 << 57;
    /// It is at a hook of egress.
    pub const EGRESS: u64 = 1 << 58;
    /// Where the part of a fragmented packet begins.
    pub const FRAGMENT_SHIFT: u32 = 59;
    /// It goes against the first packet of its connection.
    pub const RETURN: u64 = 1 << 61;
}

/// Which of [`RuleTables::starts`] are of frames that have a field.
pub const HAS_FIELD: usize = 0;
/// The same of frames that lack it.
pub const LACKS_FIELD: usize = 1;

/// A compiled set of rules. Never changed once programs see it: another set is another map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct RuleTables {
    /// Number of the set, never 0, of [`GENERATION_BITS`].
    pub generation: u64,
    /// Which bits of a [`FlowKey`] its rules look at.
    pub key_mask: FlowKey,
    /// Counter of the meter of each rule. Rules of one meter follow each other.
    pub counters: [u16; MAX_RULES],
    /// Where to begin with each [`Field`]: of frames that have it ([`HAS_FIELD`]) at the field's trie, and of those without it
    /// ([`LACKS_FIELD`]) at their vector, a [`LEAF`].
    pub starts: [[u16; FIELDS]; 2],
    /// The vector of what follows from the hook alone, by [`Direction`]: attributes as any other.
    pub always: [u16; 2],
    /// The vector of the rules that count at a hook, by [`Direction`]: first those of ports, then those of tunnel netdevs.
    pub counted: [u16; 4],
    /// The vector of the rules that are about a part of a fragmented packet, by its number.
    pub fragments: [u16; 4],
    /// The vector of the rules that a packet's direction in its connection satisfies: forward, then return.
    pub flows: [u16; 2],
    /// The vector of the rules that are inverted.
    pub inverted: u16,
    /// The vector of the rules of which the traversed device is inverted.
    pub traversed_inverted: u16,
    /// The nodes: what the next half byte leads to.
    pub nodes: [[u16; 16]; MAX_NODES],
    /// The vectors.
    pub vectors: [RuleVector; MAX_VECTORS],
}

/// Meters that a verdict in the cache has at most; a frame that more count is classified each time.
pub const MAX_CACHED: usize = 8;

/// A verdict that a CPU remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Verdict {
    /// For which frames. Generation 0 is none.
    pub key: FlowKey,
    /// The counters of the meters.
    pub counters: [u16; MAX_CACHED],
    /// How many there are.
    pub count: u64,
}

/// Verdicts in one value of `VERDICTS`.
pub const VERDICTS_PER_BLOCK: u32 = 256;
/// Values of `VERDICTS`.
pub const VERDICT_BLOCKS: u32 = 16;

/// One value of `VERDICTS`: the verdicts, by the lower bits of a hash. An array, and no structure, for kernels to which that
/// makes a difference: see `RULES` in the object.
pub type VerdictBlock = [Verdict; VERDICTS_PER_BLOCK as usize];

/// Meters in one value of `METER_COUNTERS`.
pub const METERS_PER_BLOCK: u32 = 1_024;

/// One value of `METER_COUNTERS`, in wire units.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct MeterBlock {
    /// The counters of this block.
    pub counters: [Counter; METERS_PER_BLOCK as usize],
}

/// Bytes of a [`MeterName`].
pub const METER_NAME: usize = 256;

/// Key of `METERS`: a meter's name, zeros behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct MeterName {
    /// The bytes.
    pub bytes: [u8; METER_NAME],
}

impl Default for MeterName {
    fn default() -> Self {
        Self { bytes: [0; METER_NAME] }
    }
}

/// What user space remembers of a user-defined meter across its own restarts.
///
/// Its total is `saved` plus the counter, as a port's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct MeterRecord {
    /// Its counter; [`NO_COUNTER`] for none.
    pub counter: u32,
    /// 1 while the programs may count it.
    pub active: u32,
    /// Total at the time when the meter got its counter, less what that held.
    pub saved: Counter,
    /// When counting began: nanoseconds since the Unix epoch.
    pub created_ns: u64,
    /// Since when no program counts it: nanoseconds since the Unix epoch.
    pub retired_ns: u64,
}

/// No counter.
pub const NO_COUNTER: u32 = u32::MAX;

const _: () = {
    assert!(size_of::<FlowKey>() == 72);
    // What programs find without a branch.
    assert!(HAS_FIELD == 0 && LACKS_FIELD == 1);
    assert!(Field::Src6 as usize == Field::Src4 as usize + 1);
    assert!(Field::Dst6 as usize == Field::Dst4 as usize + 1);
    assert!(size_of::<Verdict>() == 96);
    // Per-CPU values are of 32 KiB at most.
    assert!(size_of::<VerdictBlock>() == 24 * 1024);
    assert!(size_of::<MeterBlock>() == 16 * 1024);
    assert!(size_of::<MeterRecord>() == 40);
    assert!(MAX_NODES.is_power_of_two() && MAX_NODES <= LEAF as usize);
    assert!(MAX_VECTORS.is_power_of_two() && MAX_VECTORS <= LEAF as usize);
    assert!(MAX_RULES.is_power_of_two() && METER_COUNTERS as usize == 2 * MAX_RULES);
    assert!(METER_COUNTERS.is_multiple_of(METERS_PER_BLOCK));
    assert!(size_of::<RuleTables>() == 80 + 2 * MAX_RULES + 112 + MAX_NODES * 32 + MAX_VECTORS * 128);
    // A value of an array has 4 MiB at most before Linux 5.16.
    assert!(size_of::<RuleTables>() < 4 << 20);
};

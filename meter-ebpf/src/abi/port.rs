//! Ports and devices: what user space keeps beside the counters, across its own restarts.

#[cfg(doc)]
use super::UNBOUND_SLOT;
use super::{Counter, SlotCounters};

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
    /// The number of the network namespace that the netdev is in, 0 for the host's: see
    /// [`NamespaceTable`](super::NamespaceTable).
    pub namespace: u32,
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

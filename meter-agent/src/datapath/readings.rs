//! What the kernel half has counted, as plain values: everything that one reading gives.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use meter_ebpf::abi::{Buckets, Counter, Direction, Encap, Faults, SlotCounters};

use super::Class;
use crate::{
    meter::{DeviceId, FlowStats, PortId},
    netdev::NetdevId,
};

/// Totals of one metered netdev, attached or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortReading {
    /// Whose they are.
    pub port: PortId,
    /// The family.
    pub class: Class,
    /// The netdev that carries it now.
    pub netdev: Option<NetdevId>,
    /// The device that it belongs to, or did when its netdev went.
    pub device: Option<DeviceId>,
    /// When counting began: nanoseconds since the Unix epoch.
    pub created_ns: u64,
    /// Both hooks, since `created_ns`.
    pub totals: SlotCounters,
}

/// The total of one user-defined meter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UserMeter {
    /// In wire units, since `created_ns`.
    pub stats: FlowStats,
    /// When counting began: nanoseconds since the Unix epoch.
    pub created_ns: u64,
}

impl From<FlowStats> for UserMeter {
    /// A total that began at a time that nobody knows.
    fn from(stats: FlowStats) -> Self {
        Self { stats, created_ns: 0 }
    }
}

/// Totals of one tunnel at one hook of one uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelReading {
    /// The uplink.
    pub uplink: PortId,
    /// Which hook.
    pub direction: Direction,
    /// Outer source.
    pub src: IpAddr,
    /// Outer destination.
    pub dst: IpAddr,
    /// VNI or GRE key.
    pub vni: u32,
    /// The encapsulation.
    pub encap: Encap,
    /// Frames, the same number inside and outside.
    pub packets: u64,
    /// Bytes of the frames inside.
    pub inner_bytes: u64,
    /// Bytes of the outer frames.
    pub outer_bytes: u64,
}

/// Frames of one uplink and direction that no tunnel counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketReading {
    /// The uplink.
    pub uplink: PortId,
    /// Which hook.
    pub direction: Direction,
    /// By reason.
    pub buckets: Buckets,
}

/// A connection at the netdev of a port, as long as the table has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionReading {
    /// The port.
    pub port: PortId,
    /// The IP protocol.
    pub protocol: u8,
    /// The tunnel that it is inside of: the encapsulation, and the VNI or GRE key.
    pub overlay: Option<(Encap, u32)>,
    /// Who began it; of ICMP the port is the identifier.
    pub initiator: SocketAddr,
    /// To whom.
    pub target: SocketAddr,
    /// What the initiator and what the target sent, by [`Direction`], in wire units.
    pub counts: [[Counter; 2]; 2],
    /// How long the answer to its first packet took, in nanoseconds; 0 where the handshake was not seen.
    pub rtt_ns: u64,
    /// When its first frame came: seconds since the host was started.
    pub began_s: u32,
    /// Seconds since its last frame.
    pub idle_s: u32,
    /// Whether it began in a second before that in which this agent did, so that an earlier one may have shown it.
    pub left: bool,
    /// Whether `idle_s` is as long as a connection of its kind may be idle.
    pub timed_out: bool,
    /// Whether the target has sent.
    pub answered: bool,
    /// Whether both ends have said their last, or one has reset it.
    pub ended: bool,
}

/// Frames of a port whose connections are counted that are in no connection of the table, by [`Direction`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureReading {
    /// The port.
    pub port: PortId,
    /// Those that were in none.
    pub other: [Counter; 2],
    /// Those of connections that are not in the table any more.
    pub ended: [Counter; 2],
}

/// How full a map is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapUsage {
    /// Name of the map.
    pub map: &'static str,
    /// Entries in use.
    pub entries: u64,
    /// Entries that fit.
    pub capacity: u64,
    /// Kernel memory in bytes, all CPUs together.
    pub memory_bytes: u64,
}

/// What was done at the start about pins that were not as an earlier agent had left them; and since then about those of
/// hooks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Repairs {
    /// What was pinned where ours belong and is not ours: moved away.
    pub set_aside: u64,
    /// Maps whose pins were gone, found at the programs that count and pinned again: nothing is lost.
    pub restored: u64,
    /// Maps that were gone and are made anew, without what they held.
    pub lost: u64,
    /// Totals from before, of a reboot or of an earlier version, for which there was no room.
    pub unrestored: u64,
}

impl Repairs {
    /// Adds what was done elsewhere.
    pub const fn add(&mut self, other: Self) {
        self.set_aside += other.set_aside;
        self.restored += other.restored;
        self.lost += other.lost;
        self.unrestored += other.unrestored;
    }
}

/// Everything that the kernel half has counted, summed over CPUs.
///
/// Not one instant: CPUs go on counting while it is read. Each number by itself only grows from one reading to the
/// next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// Ports, uplinks and tunnel netdevs, in the order of their UUIDs.
    pub ports: Vec<PortReading>,
    /// Devices: what came in through their ports, those that have left included.
    pub devices: Vec<(DeviceId, FlowStats)>,
    /// Tunnels, in no order.
    pub tunnels: Vec<TunnelReading>,
    /// One for each attached uplink and direction.
    pub buckets: Vec<BucketReading>,
    /// What each user-defined meter of the present set counted, by name.
    pub user_meters: BTreeMap<String, UserMeter>,
    /// The connections that are counted, in no order.
    pub connections: Vec<ConnectionReading>,
    /// What else there is of the ports whose connections are or were counted.
    pub captures: Vec<CaptureReading>,
    /// Frames that were counted, but not in full.
    pub faults: Faults,
    /// Frames at hooks whose netdev nobody claimed.
    pub unbound: SlotCounters,
    /// The maps.
    pub maps: Vec<MapUsage>,
    /// What was done about their pins.
    pub repairs: Repairs,
}

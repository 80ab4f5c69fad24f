//! The seam to the kernel: what the agent asks of it, in plain values.
//!
//! Two implementations: [`kernel`] loads the object and attaches it; `fake` counts what a test sends and fails when
//! told to.

mod bind;
mod captures;
mod carried;
mod clsact;
mod connections;
pub mod examine;
mod failure;
#[cfg(test)]
pub mod fake;
mod grace;
mod here;
mod hook;
mod hooks;
pub mod kernel;
mod ledger;
mod mapped;
mod maps;
mod meters;
mod migrate;
mod namespaces;
mod numbers;
mod object;
mod open;
mod others;
mod pins;
mod places;
mod reading;
mod record;
mod remove;
mod saved;
mod slots;
mod softirq;
mod sys;
mod takeover;
mod tunnels;
mod unrecorded;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use meter_ebpf::abi::{
    Buckets, Counter, Direction, Encap, Faults, Network, SlotCounters, connection::Course,
};

pub use self::others::is_shared;
use crate::{
    meter::{DeviceId, FlowStats, PortId},
    netdev::{
        NamespaceId, NetdevId,
        namespaces::{Entrance, Identity},
    },
    rules::MeterSet,
    totals::Totals,
};

/// In which family a netdev's traffic is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A virtual port.
    Port,
    /// An underlay netdev.
    Uplink,
    /// A VXLAN, GENEVE or GRE netdev.
    Tunnel,
}

impl Class {
    /// Returns the word that operators see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Port => "port",
            Self::Uplink => "uplink",
            Self::Tunnel => "tunnel",
        }
    }
}

/// The program type that counts a netdev's ingress.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IngressHook {
    /// TCX or clsact.
    #[default]
    Tc,
    /// Native XDP.
    Xdp,
}

/// Which way of attaching TC programs to use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TcMode {
    /// TCX where the kernel has it, else clsact.
    #[default]
    Auto,
    /// TCX only (Linux 6.6).
    Tcx,
    /// clsact only.
    Clsact,
}

/// User-defined meters can't be counted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MetersError(pub String);

/// Of which netdevs connections are counted, and which.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capture {
    /// The ports that the netdevs carry.
    pub ports: BTreeSet<PortId>,
    /// Which protocols: bits of [`meter_ebpf::abi::connection::capture`].
    pub bits: u32,
    /// Connections that one netdev has at most.
    pub share: u32,
    /// Seconds without a frame after which one is taken out of the table.
    pub idle_s: u32,
    /// The same once both ends have said their last, or one has reset it.
    pub ended_s: u32,
}

impl Capture {
    /// Returns how many seconds a connection may be idle.
    const fn idle_limit(&self, course: Course) -> u32 {
        if course.has_ended() && self.ended_s < self.idle_s { self.ended_s } else { self.idle_s }
    }
}

/// What is set once, when the kernel half is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The version of the maps' layout: [`meter_ebpf::abi::VERSION`] but for tests of what comes after it.
    pub version: u32,
    /// Directory on a bpffs for everything that outlives the agent.
    pub pin_path: PathBuf,
    /// How to attach TC programs.
    pub tc: TcMode,
    /// Ports that are remembered, with or without a netdev.
    pub max_ports: u32,
    /// Netdevs that can be metered at a time.
    pub max_netdevs: u32,
    /// Tunnels, by source, destination, VNI, uplink and direction.
    pub max_tunnels: u32,
    /// Connections that are known at a time.
    pub max_connections: u32,
    /// UDP destination ports of VXLAN, at most [`meter_ebpf::abi::VXLAN_PORTS`].
    pub vxlan_ports: Vec<u16>,
    /// UDP destination ports of GENEVE, at most [`meter_ebpf::abi::GENEVE_PORTS`].
    pub geneve_ports: Vec<u16>,
    /// Whether GRE keys of packets that carry Ethernet are NVGRE's.
    pub nvgre: bool,
}

/// How a program hangs on a netdev.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookKind {
    /// A TCX link (Linux 6.6).
    Tcx,
    /// A filter of a clsact qdisc.
    Clsact,
    /// An XDP link in the driver.
    Xdp,
}

impl HookKind {
    /// Returns the word that operators see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::Xdp => "xdp",
        }
    }
}

impl fmt::Display for HookKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A netdev that should be metered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The netdev.
    pub id: NetdevId,
    /// Its name, for messages and for attaching.
    pub netdev: String,
    /// The name of its namespace, for messages; empty for the host's.
    pub netns: String,
    /// Whose counters it feeds.
    pub port: PortId,
    /// The family of its meters.
    pub class: Class,
    /// The device that the port belongs to.
    pub device: Option<DeviceId>,
    /// Whether tunnel headers are read here: true for every uplink, and for a port that is one as well.
    pub underlay: bool,
    /// Which hook counts ingress.
    pub ingress: IngressHook,
    /// The overlay network of its frames, where it is a tunnel netdev.
    pub network: Network,
}

/// A netdev that is metered, and by what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// What was asked for.
    pub target: Target,
    /// The hook of ingress.
    pub ingress: HookKind,
    /// The hook of egress.
    pub egress: HookKind,
    /// Whether a hook of them has vanished, so that it has to be attached again.
    pub lost: bool,
}

impl Target {
    /// Returns the netdev as messages name it: `eth0 (ifindex 2)`, and its namespace where that is not the host's.
    #[must_use]
    pub fn describe(&self) -> String {
        let Self { netdev, netns, id, .. } = self;
        let place = if netns.is_empty() { String::new() } else { format!(" of namespace {netns}") };
        format!("{netdev} (ifindex {}){place}", id.ifindex)
    }
}

impl Attachment {
    /// Returns the kinds of both hooks: ingress and egress.
    #[must_use]
    pub const fn kinds(&self) -> [HookKind; 2] {
        [self.ingress, self.egress]
    }

    /// Returns the kind of one hook.
    #[must_use]
    pub const fn kind(&self, direction: Direction) -> HookKind {
        self.kinds()[direction as usize]
    }

    /// Returns what is attached once these hooks, as they are, count for the port of another target.
    #[must_use]
    pub fn with_port_of(&self, target: &Target) -> Target {
        let Target { port, class, device, .. } = *target;
        Target { port, class, device, ..self.target.clone() }
    }
}

/// A hook that was attached and is not there any more, though its netdev is: another tool removed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// What was attached.
    pub target: Target,
    /// Which of its hooks.
    pub direction: Direction,
    /// Of which kind it was.
    pub kind: HookKind,
}

/// What to do about a failed attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Try again later.
    Later,
    /// The netdev has gone: a normal thing.
    Gone,
    /// Only another kernel, netdev or configuration helps.
    Never,
}

/// A netdev could not be attached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct AttachError {
    /// What was being done, to what, why it failed and what to do.
    pub message: String,
    /// A bounded word for the metric, such as `xdp_busy`.
    pub reason: &'static str,
    /// Whether another attempt makes sense.
    pub retry: Retry,
}

/// The maps could not be read.
#[derive(Debug, thiserror::Error)]
#[error("read map {map}: {source}")]
pub struct ReadError {
    /// Name of the map.
    pub map: &'static str,
    /// What the kernel said.
    pub source: std::io::Error,
}

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

/// The kernel half, as the agent sees it: the one owner of what is attached.
///
/// A netdev carries one port at a time, and a port is on one netdev.
pub trait Datapath {
    /// Returns what is attached; at first what an earlier agent left attached, without the netdevs' names.
    fn attached(&self) -> &BTreeMap<NetdevId, Attachment>;

    /// Returns the number of a network namespace whose netdevs will be attached, that which it has or had.
    ///
    /// # Errors
    ///
    /// There are as many as can be.
    fn enter(&mut self, identity: Identity, entrance: Entrance) -> Result<NamespaceId, AttachError>;

    /// Lets go of a namespace in which nothing is attached any more: it may end now, and another get its number.
    fn leave(&mut self, namespace: NamespaceId);

    /// Prepares for the attaches of these targets, which follow: what takes the same work for one and for all is done for all
    /// at once. Nothing that is attached changes.
    fn prepare(&mut self, targets: &[Target]);

    /// Binds the target's counters, then makes both hooks what they should be, those of the same kind atomically.
    ///
    /// Another netdev that carries the port is detached. A netdev that carried another port goes on to this one at once,
    /// and no frame is nobody's. A port that comes to another device takes its past totals along, but the old device
    /// keeps what came in so far.
    ///
    /// # Errors
    ///
    /// What is attached is not what was asked for: [`Datapath::attached`] tells what is. Hooks that counted before count
    /// on, for the target's port, if they can't be changed; and where there is no room for its device or its tunnels the
    /// port counts without them. Where the port can't be had at all nothing is left of the netdev's hooks. The port keeps
    /// its totals.
    fn attach(&mut self, target: &Target) -> Result<(), AttachError>;

    /// Lets attached netdevs exchange their ports: each goes on with the port of its target at once, with the hooks that
    /// it has (see [`Attachment::with_port_of`]).
    ///
    /// # Errors
    ///
    /// Some may have their new port and some their old one.
    fn exchange(&mut self, targets: &[Target]) -> Result<(), AttachError>;

    /// Detaches a netdev that was attached and saves its totals on its port. A netdev that has gone is no error.
    ///
    /// # Errors
    ///
    /// The hooks may still count; the attachment stays known and detaching again is safe.
    fn detach(&mut self, id: NetdevId) -> Result<(), AttachError>;

    /// Looks whether every hook that is attached is still there; returns those that are not, each once, and marks what is
    /// attached as [`Attachment::lost`] until it is attached again.
    fn verify(&mut self) -> Vec<Lost>;

    /// Does what is due about once in a second: forgets connections that are idle.
    fn tend(&mut self);

    /// Lets these user-defined meters count from now on, in place of those before: each frame sees the old set or the
    /// new one, as a whole. A meter whose name was there before goes on from its totals, whatever its rules are now, also
    /// where an earlier agent counted it.
    ///
    /// # Errors
    ///
    /// Why the set can't be counted. The one before counts on, be it an earlier agent's.
    fn set_meters(&mut self, meters: &MeterSet) -> Result<(), MetersError>;

    /// Returns whether the set counts that was given last, and nothing else. It may end to by itself: where the rules of a
    /// port can't follow it to another slot, no meter counts until a set is given again.
    fn meters_in_force(&self) -> bool;

    /// Lets the connections of these ports' netdevs be counted from now on, and no others: those that were counted before
    /// go on. A netdev that is attached later counts from its first frame.
    ///
    /// # Errors
    ///
    /// Why not. What was counted before is counted on.
    fn set_capture(&mut self, capture: &Capture) -> Result<(), MetersError>;

    /// Returns every total, to be written down for the time after a reboot; the name of this boot is not in it.
    ///
    /// # Errors
    ///
    /// The first map that could not be read.
    fn totals(&mut self) -> Result<Totals, ReadError>;

    /// Reads everything.
    ///
    /// # Errors
    ///
    /// The first map that could not be read.
    fn read(&mut self) -> Result<Reading, ReadError>;
}

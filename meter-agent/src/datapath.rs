//! The seam to the kernel: what the agent asks of it, in plain values.
//!
//! Two implementations: [`kernel`] loads the object and attaches it; `fake` counts what a test sends and fails when
//! told to.

mod admission;
mod bind;
mod captures;
mod carried;
mod clsact;
mod connections;
mod directories;
pub mod examine;
mod failure;
#[cfg(test)]
pub mod fake;
mod grace;
mod here;
mod home;
mod hook;
mod hooks;
pub mod kernel;
mod ledger;
mod limit;
mod links;
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
mod readings;
mod recipe;
mod record;
mod remove;
mod saved;
mod slots;
mod softirq;
mod specs;
mod store;
mod sys;
mod tables;
mod takeover;
mod tunnels;
mod unpinned;
mod unrecorded;
mod work;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    sync::Arc,
};

use meter_ebpf::abi::{Direction, Network, connection::Course};

pub use self::{
    others::is_shared,
    readings::{
        BucketReading, CaptureReading, ConnectionReading, MapUsage, PortReading, Reading, Repairs,
        TunnelReading, UserMeter,
    },
};
use crate::{
    meter::{DeviceId, PortId},
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
    /// Ports of which it is not known yet: what is counted of their connections stays as it is.
    pub undecided: BTreeSet<PortId>,
    /// Whether one of the netdevs is of those whose frames may be in tunnels.
    pub underlay: bool,
    /// Which protocols, and whether inside of tunnels at uplinks: bits of [`meter_ebpf::abi::connection::capture`].
    pub bits: u32,
    /// Rules of which one has to match a frame so that its connection is counted from then on; without one, no matter.
    pub rules: Arc<MeterSet>,
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
    /// Whether they may run an earlier agent's programs: they count, and are to be replaced.
    pub earlier: bool,
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
    /// Makes one whose hooks, of ingress and of egress, are there and run this agent's programs.
    #[must_use]
    pub const fn new(target: Target, [ingress, egress]: [HookKind; 2]) -> Self {
        Self { target, ingress, egress, lost: false, earlier: false }
    }

    /// Returns whether the hooks are to be attached again, also where they count for the right port.
    #[must_use]
    pub const fn is_stale(&self) -> bool {
        self.lost || self.earlier
    }

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

    /// Returns the same where the programs can't become those of the other target's class: they count on as they do, and only
    /// ports count for a device. The netdev has the other target's names, which an earlier agent's had not.
    #[must_use]
    pub fn on_to(&self, target: &Target) -> Target {
        let Target { class, port, device, .. } = self.target;
        let device = match (class == target.class, port == target.port) {
            (true, _) => target.device,
            (false, true) => device,
            (false, false) => None,
        };
        let (netdev, netns) = (target.netdev.clone(), target.netns.clone());
        Target { netdev, netns, class, device, ..self.with_port_of(target) }
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

/// The kernel half, as the agent sees it: the one owner of what is attached.
///
/// A netdev carries one port at a time, and a port is on one netdev.
pub trait Datapath {
    /// Returns what is attached; at first what an earlier agent left attached, without the netdevs' names.
    fn attached(&self) -> &BTreeMap<NetdevId, Attachment>;

    /// Returns why the counters are not pinned, and so end with the agent; `None` where they are.
    fn unpinned(&self) -> Option<&str>;

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
    /// Why not. Connections that are counted are counted on; others begin by the rules from before, or not at all.
    fn set_capture(&mut self, capture: &Capture) -> Result<(), MetersError>;

    /// Returns whether connections are counted as was said last. It may end to by itself: where the rules of a port can't
    /// follow it to another slot, no connection begins until it is said again.
    fn capture_in_force(&self) -> bool;

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

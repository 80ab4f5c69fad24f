//! One immutable picture of all totals with the names that go with them: what every interface prints.
//!
//! Pure: built by the agent from a reading and what it knows; readers share it.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use meter_ebpf::abi::{Buckets, Counter, Direction, Encap, Faults, HookCounter};

use crate::{
    audit::Report,
    binding::Source,
    datapath::{CaptureReading, Class, ConnectionReading, HookKind, MapUsage, Repairs, UserMeter},
    definitions::Definition,
    meter::{DeviceId, FlowStats, MeterKey, PortId},
    netdev::{NetdevId, NetdevState},
};

/// A port, an uplink or a tunnel netdev with its totals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its identity.
    pub port: PortId,
    /// Its family.
    pub class: Class,
    /// When counting began: nanoseconds since the Unix epoch.
    pub created_ns: u64,
    /// Frames that the netdev received: the port's rx.
    pub ingress: HookCounter,
    /// Frames offered to the netdev: the port's tx.
    pub egress: HookCounter,
    /// The device that it belongs to, or did when its netdev went.
    pub device: Option<DeviceId>,
    /// What carries it now; `None` after its netdev has gone.
    pub carrier: Option<Carrier>,
}

/// Since when a netdev's frames count for its port, without a time: what an audit needs to know of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Since {
    /// Differs after each attach behind which counting began anew; 0 where an earlier agent's hooks count on.
    pub attach: u64,
    /// Times that a hook was missing or changed since then, so that frames may be in no meter.
    pub gaps: u64,
}

/// The netdev that carries a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carrier {
    /// Which netdev.
    pub id: NetdevId,
    /// Its name.
    pub netdev: String,
    /// The name of its namespace, empty for the host's.
    pub netns: String,
    /// Its kind, by the kernel's word.
    pub kind: String,
    /// Its alias.
    pub alias: Option<String>,
    /// Its hardware address, as `52:54:00:12:34:56`.
    pub mac: Option<String>,
    /// What the device is called on this host, such as a bridge's name.
    pub device_name: Option<String>,
    /// Fixed VNI of a tunnel netdev.
    pub vni: Option<u32>,
    /// Who said which port it is.
    pub source: Source,
    /// The hooks: ingress and egress.
    pub hooks: (HookKind, HookKind),
    /// Since when it counts.
    pub since: Since,
}

/// Totals of one tunnel in one direction, over all uplinks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TunnelTotals {
    /// Frames.
    pub packets: u64,
    /// Bytes of the frames inside.
    pub inner_bytes: u64,
    /// Bytes of the outer frames.
    pub outer_bytes: u64,
}

/// Which tunnel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TunnelId {
    /// Outer source.
    pub src: IpAddr,
    /// Outer destination.
    pub dst: IpAddr,
    /// VNI or GRE key.
    pub vni: u32,
    /// The encapsulation.
    pub encap: Encap,
}

/// One netdev as `meter-agent ls` shows it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NetdevStatus {
    /// Its ifindex.
    pub ifindex: u32,
    /// Its name.
    pub netdev: String,
    /// The name of its namespace, empty for the host's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub netns: String,
    /// Its kind, by the kernel's word.
    pub kind: String,
    /// `port`, `uplink`, `tunnel`, or `-` where it is not metered.
    pub role: String,
    /// The port's UUID.
    pub port: Option<String>,
    /// The device's UUID.
    pub device: Option<String>,
    /// Who said so.
    pub source: Option<String>,
    /// `tcx`, `clsact`, `xdp`; `None` where not attached.
    pub ingress: Option<String>,
    /// The same for egress.
    pub egress: Option<String>,
    /// Why it is metered as it is, or why not.
    pub reason: String,
}

/// What the agent knows of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Times the kernel dropped netlink messages.
    pub netlink_overruns: u64,
    /// Complete dumps taken.
    pub netlink_dumps: u64,
    /// Changes of netdevs announced.
    pub netlink_events: u64,
    /// Failed attaches by reason.
    pub attach_failures: BTreeMap<&'static str, u64>,
    /// Netdevs that are not metered, or not as they should be, now.
    pub attach_pending: u64,
    /// Hooks that were found to have been removed by another tool.
    pub hooks_lost: u64,
    /// Named network namespaces that are followed; `None` where that is switched off.
    pub namespaces: Option<u64>,
    /// Why named namespaces that should be followed are not, by name.
    pub namespaces_failed: BTreeMap<String, String>,
    /// Times the maps could not be read.
    pub read_failures: u64,
    /// Times that totals could not be written to the state file.
    pub state_failures: u64,
    /// Whether the last reload of the configuration was taken; true before the first.
    pub config_reload_ok: bool,
    /// When the configuration in force was read: seconds since the Unix epoch.
    pub config_loaded_s: u64,
    /// Whether the user-defined meters that are wanted count, all of them and no other.
    pub user_meters_in_force: bool,
    /// Times that the datapath refused a set of user-defined meters.
    pub user_meter_refusals: u64,
    /// Why the counters are not pinned, and so end with the agent; `None` where they are.
    pub unpinned: Option<String>,
    /// Whether everything found at the start has been attached or has failed for a reason.
    pub ready: bool,
    /// Whether the same is true of what is known and wanted now.
    pub settled: bool,
}

/// All totals at one time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Counts up with each reading; 0 before the first.
    pub generation: u64,
    /// Which host this is.
    pub host: String,
    /// Ports, uplinks and tunnel netdevs, in the order of their UUIDs.
    pub ports: Vec<Port>,
    /// Devices: what came in through their ports, those that have left included.
    pub devices: BTreeMap<DeviceId, FlowStats>,
    /// What the user-defined meters counted that count now, by name.
    pub user_meters: BTreeMap<String, UserMeter>,
    /// The user-defined meters that are wanted, whether they count or not.
    pub definitions: Arc<[Definition]>,
    /// Tunnels by which the host sends: seen at an uplink's egress.
    pub tunnels_transmit: BTreeMap<TunnelId, TunnelTotals>,
    /// Tunnels by which the host receives: seen at an uplink's ingress.
    pub tunnels_receive: BTreeMap<TunnelId, TunnelTotals>,
    /// What the tunnels of each attached uplink and its buckets add up to, in wire units.
    pub parts: BTreeMap<(PortId, Direction), Counter>,
    /// What no tunnel counts, by uplink and direction.
    pub buckets: BTreeMap<(PortId, Direction), Buckets>,
    /// The connections that are counted, in no order.
    pub connections: Arc<[ConnectionReading]>,
    /// What else there is of the ports whose connections are or were counted.
    pub captures: Vec<CaptureReading>,
    /// Frames counted, but not in full.
    pub faults: Faults,
    /// Frames at hooks of netdevs that nobody claimed: ingress and egress.
    pub unbound: [HookCounter; 2],
    /// The maps.
    pub maps: Vec<MapUsage>,
    /// What was done about their pins.
    pub repairs: Repairs,
    /// The kernel's statistics of metered netdevs, and their addresses, as they were some seconds ago; empty where nobody asked.
    pub netdev_states: Arc<BTreeMap<NetdevId, NetdevState>>,
    /// Every netdev of the host, metered or not.
    pub netdevs: Vec<NetdevStatus>,
    /// The agent itself.
    pub health: Health,
    /// What the last audit found; `None` before the first.
    pub audit: Option<Arc<Report>>,
}

/// How readers share a snapshot.
pub type SharedSnapshot = Arc<Snapshot>;

impl Snapshot {
    /// Returns every meter that MidoNet's interfaces list.
    ///
    /// A device's meter is the sum of its ports' rx; a port is a device as well, with rx + tx, as MidoNet lists it. A
    /// tunnel's meter holds inner bytes over all VNIs; a host that only forwards a tunnel sees each frame twice, at
    /// one uplink's ingress and another's egress, and the larger of the two counts.
    #[must_use]
    pub fn meters(&self) -> BTreeMap<MeterKey, FlowStats> {
        let mut meters: BTreeMap<MeterKey, FlowStats> = BTreeMap::new();
        for port in self.ports.iter().filter(|port| port.class == Class::Port) {
            let rx = flow_stats(&port.ingress);
            let tx = flow_stats(&port.egress);
            *meters.entry(MeterKey::PortRx(port.port)).or_default() += rx;
            *meters.entry(MeterKey::PortTx(port.port)).or_default() += tx;
            let own = meters.entry(MeterKey::Device(port.port.0)).or_default();
            *own += rx;
            *own += tx;
        }
        for (device, &stats) in &self.devices {
            *meters.entry(MeterKey::Device(device.0)).or_default() += stats;
        }
        let receive = by_end_points(&self.tunnels_receive);
        let transmit = by_end_points(&self.tunnels_transmit);
        for (&(src, dst), &stats) in receive.iter().chain(&transmit) {
            let meter = meters.entry(MeterKey::Tunnel { src, dst }).or_default();
            meter.packets = meter.packets.max(stats.packets);
            meter.bytes = meter.bytes.max(stats.bytes);
        }
        let users = self.user_meters.iter();
        meters.extend(users.map(|(name, meter)| (MeterKey::User(name.clone()), meter.stats)));
        meters
    }
}

fn flow_stats(hook: &HookCounter) -> FlowStats {
    let wire = hook.wire();
    FlowStats { packets: wire.packets, bytes: wire.bytes }
}

fn by_end_points(tunnels: &BTreeMap<TunnelId, TunnelTotals>) -> BTreeMap<(IpAddr, IpAddr), FlowStats> {
    let mut sums: BTreeMap<_, FlowStats> = BTreeMap::new();
    for (id, totals) in tunnels {
        *sums.entry((id.src, id.dst)).or_default() +=
            FlowStats { packets: totals.packets, bytes: totals.inner_bytes };
    }
    sums
}

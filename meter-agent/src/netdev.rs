//! What the kernel says exists: netdevs, their addresses and the default routes.
//!
//! Pure: filled by [`monitor`], or by a test.

mod id;
pub mod monitor;
pub mod namespaces;
mod pattern;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

pub use self::{
    id::{Namespace, NamespaceId, NetdevId, Netdevs},
    pattern::{Glob, ParsePatternError, Pattern},
};

/// A netdev's hardware address.
pub type MacAddress = [u8; 6];

/// What a netdev is, by the kernel's own word (`IFLA_INFO_KIND`) and, where that leaves a choice, its details.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// No `IFLA_INFO_KIND` and an Ethernet address: a physical or virtio NIC.
    Physical,
    /// The loopback netdev.
    Loopback,
    /// A tap: Ethernet frames of a guest.
    Tap,
    /// A tun, or any other netdev without an Ethernet header: no L2 bytes to count.
    Layer3,
    /// One end of a veth pair.
    Veth {
        /// Whether the other end is in another network namespace (`IFLA_LINK_NETNSID`).
        peer_elsewhere: bool,
    },
    /// A VXLAN, GENEVE or GRE netdev that carries Ethernet frames.
    Tunnel(TunnelNetdev),
    /// A bridge.
    Bridge,
    /// A bond or team.
    Bond,
    /// An 802.1Q netdev on top of `Netdev::lower`.
    Vlan,
    /// A macvlan or macvtap on top of `Netdev::lower`.
    Macvlan,
    /// A dummy netdev.
    Dummy,
    /// Anything else, by the kernel's word.
    Other(String),
}

impl Kind {
    /// Returns the kernel's word for it, as `ip -d link` shows it.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Physical => "physical",
            Self::Loopback => "loopback",
            Self::Tap => "tap",
            Self::Layer3 => "layer3",
            Self::Veth { .. } => "veth",
            Self::Tunnel(tunnel) => &tunnel.kind,
            Self::Bridge => "bridge",
            Self::Bond => "bond",
            Self::Vlan => "vlan",
            Self::Macvlan => "macvlan",
            Self::Dummy => "dummy",
            Self::Other(kind) => kind,
        }
    }
}

/// What is known of a tunnel netdev.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelNetdev {
    /// `vxlan`, `geneve`, `gretap`, `ip6gretap`.
    pub kind: String,
    /// Its fixed VNI or key; `None` for an external (collect metadata) netdev, which carries many.
    pub vni: Option<u32>,
    /// The VTEP address that it sends from, where it is configured.
    pub local: Option<IpAddr>,
    /// UDP destination port, where the kind has one.
    pub udp_port: Option<u16>,
}

/// One netdev.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Netdev {
    /// Unique in its network namespace while the netdev exists.
    pub ifindex: u32,
    /// `IFLA_IFNAME`, made valid UTF-8.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The kernel driver of a physical netdev, such as `virtio_net`; `None` where the kind says it all.
    pub driver: Option<String>,
    /// `None` where the address is not six bytes.
    pub mac: Option<MacAddress>,
    /// `IFLA_IFALIAS`.
    pub alias: Option<String>,
    /// Alternative names.
    pub altnames: Vec<String>,
    /// The ifindex of the bridge, bond or OVS datapath that it belongs to.
    pub master: Option<u32>,
    /// The ifindex of the netdev below (`IFLA_LINK`), where that one is in this namespace.
    pub lower: Option<u32>,
    /// Administratively up.
    pub up: bool,
    /// Maximum transmission unit, in bytes of L3.
    pub mtu: u32,
}

#[cfg(test)]
impl Netdev {
    /// Returns a netdev of which nothing else is known: what tests begin with.
    pub(crate) fn bare(ifindex: u32, name: &str, kind: Kind) -> Self {
        Self {
            ifindex,
            name: name.to_owned(),
            kind,
            driver: None,
            mac: None,
            alias: None,
            altnames: Vec::new(),
            master: None,
            lower: None,
            up: true,
            mtu: 1500,
        }
    }
}

/// All netdevs of one network namespace with what decides their role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetdevTable {
    /// By ifindex.
    pub netdevs: BTreeMap<u32, Netdev>,
    /// Addresses, by ifindex.
    pub addresses: BTreeMap<u32, BTreeSet<IpAddr>>,
    /// The netdevs that a default route (IPv4 or IPv6, main table) leaves by.
    pub default_routes: BTreeSet<u32>,
}

impl NetdevTable {
    /// Finds the netdev with this name.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<&Netdev> {
        self.netdevs.values().find(|netdev| netdev.name == name)
    }

    /// Takes a change over. A netdev that is gone takes its addresses and its part of the default routes with it.
    pub fn apply(&mut self, event: NetdevEvent) {
        match event {
            NetdevEvent::All(table) => *self = table,
            NetdevEvent::New(netdev) => {
                self.netdevs.insert(netdev.ifindex, netdev);
            }
            NetdevEvent::Gone(ifindex) => {
                self.netdevs.remove(&ifindex);
                self.addresses.remove(&ifindex);
                self.default_routes.remove(&ifindex);
            }
            NetdevEvent::Overrun => {}
        }
    }
}

/// What the kernel counts of a netdev: `struct rtnl_link_stats64`, as far as something here needs it.
///
/// In the kernel's own units, which differ by driver: see [`crate::audit`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetdevStats {
    /// Received.
    pub rx_packets: u64,
    /// Bytes of them.
    pub rx_bytes: u64,
    /// Received, and dropped by the kernel before or behind the hook.
    pub rx_dropped: u64,
    /// Sent.
    pub tx_packets: u64,
    /// Bytes of them.
    pub tx_bytes: u64,
    /// Dropped instead of being sent.
    pub tx_dropped: u64,
    /// Received with an error.
    pub rx_errors: u64,
    /// Not sent for an error.
    pub tx_errors: u64,
    /// Missed by the device for want of room.
    pub rx_missed_errors: u64,
    /// Collisions.
    pub collisions: u64,
}

/// A netdev's statistics and addresses at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetdevState {
    /// What the kernel counted since the netdev exists.
    pub stats: NetdevStats,
    /// Its first IPv4 address with its prefix length, in the kernel's order.
    pub ipv4: Option<(IpAddr, u8)>,
    /// The same of IPv6.
    pub ipv6: Option<(IpAddr, u8)>,
}

/// The statistics of one netdev at one moment, and what explains them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetdevSample {
    /// What the kernel counted since the netdev exists.
    pub stats: NetdevStats,
    /// What the other end of a veth received: packets and bytes; `None` where it can't be asked.
    pub peer_received: Option<(u64, u64)>,
    /// Packets that the queueing discipline dropped. Wraps.
    pub queue_dropped: u32,
    /// Packets that wait in the queueing discipline.
    pub queue_waiting: u32,
    /// Packets that the driver's own queue holds at most, as far as the kernel knows.
    pub queue_limit: u32,
    /// Whether an XDP program hangs on it.
    pub has_xdp: bool,
    /// Whether it is a port of a hardware switch, which may forward frames that no hook sees.
    pub is_switched: bool,
}

/// A change that the kernel announced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetdevEvent {
    /// A complete dump: at the start, after an overrun, and now and then.
    All(NetdevTable),
    /// A netdev is new or has changed.
    New(Netdev),
    /// The netdev with this ifindex is gone.
    Gone(u32),
    /// The kernel dropped messages (`ENOBUFS`). A complete dump follows.
    Overrun,
}

//! What a netdev is to the meters in a namespace that is not the host's: a port, a tunnel netdev, or nothing.
//!
//! Nothing is an uplink there: tunnel headers are read where a frame leaves the host, in the host's own namespace. A
//! router's way to the outside carries a default route as an uplink does, and is a port of the virtual network all the same.

use super::{Role, Rules, named_port, unless_unmetered};
use crate::{
    binding::Bound,
    datapath::Class,
    netdev::{Kind, Netdev},
};

/// How Neutron and OVN name what they put into a namespace: each is a port, whatever its kind.
const PORT_PREFIXES: [&str; 8] = ["qr-", "qg-", "sg-", "ha-", "fg-", "rfp-", "fpr-", "tap"];

pub(super) fn role(netdev: &Netdev, bound: &Bound, rules: &Rules) -> Role {
    unless_unmetered(netdev, rules, || {
        if let Kind::Tunnel(_) = netdev.kind {
            return Role::of(Class::Tunnel, "tunnel netdev: inner frames of its VNI");
        }
        match named_port(netdev, bound, rules) {
            Some(port) => Role::of(Class::Port, port),
            None => by_kind(netdev),
        }
    })
}

fn by_kind(netdev: &Netdev) -> Role {
    let is_below = netdev.lower.is_some();
    match &netdev.kind {
        Kind::Tap => Role::of(Class::Port, "tap: a guest's netdev"),
        Kind::Veth { peer_elsewhere: true } => {
            Role::of(Class::Port, "veth: its peer is in another namespace")
        }
        Kind::Veth { peer_elsewhere: false } => {
            Role::none("veth within this namespace: its frames pass another netdev as well")
        }
        Kind::Physical => Role::of(Class::Port, "a NIC that was given to this namespace"),
        Kind::Bridge => Role::none("bridge: its frames are counted at its ports"),
        Kind::Bond => Role::none("bond: its frames are counted at its members"),
        Kind::Vlan | Kind::Macvlan if is_below => Role::none("its frames are counted at the netdev below"),
        Kind::Vlan | Kind::Macvlan => {
            Role::of(Class::Port, format!("{}: what it lies on is in another namespace", netdev.kind.name()))
        }
        Kind::Other(kind) if kind == "openvswitch" => {
            Role::of(Class::Port, "an internal port of Open vSwitch")
        }
        kind => match PORT_PREFIXES.iter().find(|prefix| netdev.name.starts_with(**prefix)) {
            Some(prefix) => Role::of(Class::Port, format!("its name begins with {prefix}")),
            None => Role::none(format!("{}: no port is bound to it", kind.name())),
        },
    }
}

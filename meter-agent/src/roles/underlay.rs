//! From a netdev that packets are routed to, down to those that put them on the wire.

use std::collections::BTreeSet;

use crate::netdev::{Kind, NetdevTable};

/// The kernel's word for the netdevs of an Open vSwitch datapath.
const OPENVSWITCH: &str = "openvswitch";

/// Returns the netdevs at the bottom: a VLAN netdev's lower one, a bond's members, a bridge's or switch's physical ones.
/// A netdev without anything below is its own bottom; loopbacks, tunnels and netdevs without Ethernet have none.
pub(super) fn lowest(table: &NetdevTable, ifindex: u32) -> BTreeSet<u32> {
    let mut netdevs = all_below(table, ifindex);
    netdevs.insert(ifindex);
    netdevs.retain(|&netdev| below(table, netdev).is_empty() && is_bottom(table, netdev));
    netdevs
}

/// Returns every netdev on whose frames this one's lie, itself left out.
pub(super) fn all_below(table: &NetdevTable, ifindex: u32) -> BTreeSet<u32> {
    let mut seen = BTreeSet::new();
    let mut waiting = below(table, ifindex);
    while let Some(netdev) = waiting.pop() {
        // Netdevs can't be stacked in a circle; a dump taken while they change might show one.
        if netdev != ifindex && seen.insert(netdev) {
            waiting.extend(below(table, netdev));
        }
    }
    seen
}

fn is_bottom(table: &NetdevTable, ifindex: u32) -> bool {
    table
        .netdevs
        .get(&ifindex)
        .is_some_and(|netdev| !matches!(netdev.kind, Kind::Loopback | Kind::Layer3 | Kind::Tunnel(_)))
}

fn below(table: &NetdevTable, ifindex: u32) -> Vec<u32> {
    let Some(netdev) = table.netdevs.get(&ifindex) else { return Vec::new() };
    match &netdev.kind {
        Kind::Vlan | Kind::Macvlan => {
            netdev.lower.filter(|lower| table.netdevs.contains_key(lower)).into_iter().collect()
        }
        Kind::Bond => members(table, |master| master == ifindex, |_| true),
        Kind::Bridge => members(table, |master| master == ifindex, carries_the_underlay),
        // An internal port of a switch is joined to the physical ones in the switch's own tables, which netlink does
        // not show.
        Kind::Other(kind) if kind == OPENVSWITCH => {
            let is_switch = |master| {
                table
                    .netdevs
                    .get(&master)
                    .is_some_and(|master| matches!(&master.kind, Kind::Other(kind) if kind == OPENVSWITCH))
            };
            members(table, is_switch, carries_the_underlay)
        }
        _ => Vec::new(),
    }
}

fn members(table: &NetdevTable, of: impl Fn(u32) -> bool, wanted: impl Fn(&Kind) -> bool) -> Vec<u32> {
    table
        .netdevs
        .values()
        .filter(|netdev| netdev.master.is_some_and(&of) && wanted(&netdev.kind))
        .map(|netdev| netdev.ifindex)
        .collect()
}

/// Returns whether a member of a bridge leads to the underlay; taps and veths lead to guests.
const fn carries_the_underlay(kind: &Kind) -> bool {
    matches!(kind, Kind::Physical | Kind::Bond | Kind::Vlan)
}

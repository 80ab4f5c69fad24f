//! What each netdev is to the meters: a port, an uplink, a tunnel netdev, or nothing; and why.
//!
//! Pure. Each frame is counted at one netdev of each family: an uplink is the lowest netdev of its path,
//! and what only passes frames on (a bridge, a bond, a VLAN netdev) is not counted.

mod inside;
mod underlay;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use self::underlay::{all_below, lowest};
use crate::{
    binding::{Bound, Conflict, Source},
    datapath::{Class, IngressHook},
    netdev::{Kind, NamespaceId, Netdev, NetdevId, NetdevTable, Pattern},
};

/// What the operator says of roles. Where nothing is said, the netdevs' kinds, addresses and routes decide.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Netdevs that are left alone, whatever else matches.
    pub ignore: Vec<Pattern>,
    /// Netdevs that are ports although their kind does not say so.
    pub ports: Vec<Pattern>,
    /// The uplinks; empty to find them by VTEP addresses and default routes.
    pub uplinks: Vec<Pattern>,
    /// Which hook counts the ingress of uplinks.
    pub uplink_ingress: IngressHook,
}

/// What a netdev is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// Its family; `None` where it is not metered.
    pub class: Option<Class>,
    /// Whether tunnel headers are read here: an uplink, or a port that is one as well.
    pub underlay: bool,
    /// Which hook counts ingress.
    pub ingress: IngressHook,
    /// Why, in words for the operator.
    pub reason: String,
}

impl Role {
    fn none(reason: impl Into<String>) -> Self {
        Self { class: None, underlay: false, ingress: IngressHook::Tc, reason: reason.into() }
    }

    fn of(class: Class, reason: impl Into<String>) -> Self {
        Self { class: Some(class), ..Self::none(reason) }
    }
}

/// Says what the netdevs of a table are.
#[derive(Debug)]
pub struct Judge<'a> {
    table: &'a NetdevTable,
    rules: &'a Rules,
    namespace: NamespaceId,
    uplinks: BTreeMap<u32, String>,
}

impl<'a> Judge<'a> {
    /// Looks at the whole table of a namespace: what is an uplink depends on more than the netdev itself. Uplinks are the
    /// host's alone.
    #[must_use]
    pub fn new(namespace: NamespaceId, table: &'a NetdevTable, rules: &'a Rules) -> Self {
        let is_host = namespace == NamespaceId::HOST;
        let uplinks = if is_host { uplinks(table, rules) } else { BTreeMap::new() };
        Self { table, rules, namespace, uplinks }
    }

    /// Returns whether a netdev is metered if it carries this port.
    #[must_use]
    pub fn is_metered(&self, netdev: &Netdev, bound: &Bound) -> bool {
        self.role(netdev, bound).class.is_some()
    }

    /// Says of each netdev what it is. `bound` is [`crate::binding::Bindings::resolve`]'s answer.
    #[must_use]
    pub fn roles(&self, bound: &BTreeMap<NetdevId, Result<Bound, Conflict>>) -> BTreeMap<NetdevId, Role> {
        let id = |netdev: &Netdev| NetdevId { namespace: self.namespace, ifindex: netdev.ifindex };
        let role = |netdev: &Netdev| match bound.get(&id(netdev)) {
            Some(Ok(bound)) => self.role(netdev, bound),
            Some(Err(conflict)) => unless_unmetered(netdev, self.rules, || Role::none(conflict.to_string())),
            None => Role::none("not looked at yet"),
        };
        self.table.netdevs.values().map(|netdev| (id(netdev), role(netdev))).collect()
    }

    fn role(&self, netdev: &Netdev, bound: &Bound) -> Role {
        if self.namespace != NamespaceId::HOST {
            return inside::role(netdev, bound, self.rules);
        }
        role(netdev, bound, self.rules, self.uplinks.get(&netdev.ifindex))
    }
}

/// Returns the role that `or_else` says, except for netdevs that no rule makes anything of.
fn unless_unmetered(netdev: &Netdev, rules: &Rules, or_else: impl FnOnce() -> Role) -> Role {
    if let Some(pattern) = rules.ignore.iter().find(|pattern| pattern.matches(netdev)) {
        return Role::none(format!("ports.ignore has \"{pattern}\""));
    }
    match netdev.kind {
        Kind::Loopback => Role::none("loopback: its frames never leave the host"),
        Kind::Layer3 => Role::none("has no Ethernet header, so no L2 bytes to count"),
        _ => or_else(),
    }
}

fn role(netdev: &Netdev, bound: &Bound, rules: &Rules, uplink: Option<&String>) -> Role {
    unless_unmetered(netdev, rules, || {
        let named_port = named_port(netdev, bound, rules);
        match (&netdev.kind, named_port, uplink) {
            (Kind::Tunnel(_), ..) => Role::of(Class::Tunnel, "tunnel netdev: inner frames of its VNI"),
            (_, Some(port), Some(uplink)) => {
                Role { underlay: true, ..Role::of(Class::Port, format!("{port}; also an uplink: {uplink}")) }
            }
            (_, None, Some(uplink)) => uplink_role(netdev, uplink, rules),
            (_, Some(port), None) => Role::of(Class::Port, port),
            (_, None, None) if rules.uplinks.iter().any(|pattern| pattern.matches(netdev)) => {
                Role::none("uplinks.netdevs names a netdev below it as well, where its frames are counted")
            }
            (kind, None, None) => by_kind(kind),
        }
    })
}

fn uplink_role(netdev: &Netdev, why: &str, rules: &Rules) -> Role {
    let uplink = Role { underlay: true, ..Role::of(Class::Uplink, why) };
    match rules.uplink_ingress {
        IngressHook::Tc => uplink,
        IngressHook::Xdp if netdev.kind == Kind::Physical => Role { ingress: IngressHook::Xdp, ..uplink },
        // On a veth or a tap native XDP costs more than it measures: the driver has an skb already.
        IngressHook::Xdp => {
            Role { reason: format!("{why}; ingress by tc: XDP is for physical netdevs"), ..uplink }
        }
    }
}

/// Returns why somebody said that this is a port; `None` where nobody did.
fn named_port(netdev: &Netdev, bound: &Bound, rules: &Rules) -> Option<String> {
    if bound.source == Source::Config {
        return Some("a [[binding]] names its port".to_owned());
    }
    if let Some(pattern) = rules.ports.iter().find(|pattern| pattern.matches(netdev)) {
        return Some(format!("ports.netdevs has \"{pattern}\""));
    }
    // The UUID on a bridge names the device, not a port.
    let names_a_device = matches!(netdev.kind, Kind::Bridge | Kind::Bond);
    match bound.source {
        Source::Alias if !names_a_device => Some("its alias names its port".to_owned()),
        Source::Altname if !names_a_device => Some("an alternative name of it names its port".to_owned()),
        _ => None,
    }
}

fn by_kind(kind: &Kind) -> Role {
    match kind {
        Kind::Tap => Role::of(Class::Port, "tap: a guest's netdev"),
        Kind::Veth { peer_elsewhere: true } => {
            Role::of(Class::Port, "veth: its peer is in another namespace")
        }
        Kind::Veth { peer_elsewhere: false } => {
            Role::none("veth within this namespace: its frames pass another netdev as well")
        }
        Kind::Physical => {
            Role::none("carries no VTEP address and no default route, and no port is bound to it")
        }
        Kind::Bridge => Role::none("bridge: its frames are counted at its ports"),
        Kind::Bond => Role::none("bond: its frames are counted at its members"),
        Kind::Vlan | Kind::Macvlan => Role::none("its frames are counted at the netdev below"),
        other => Role::none(format!("{}: no port is bound to it", other.name())),
    }
}

/// Returns the uplinks by ifindex, each with why it is one.
fn uplinks(table: &NetdevTable, rules: &Rules) -> BTreeMap<u32, String> {
    if !rules.uplinks.is_empty() {
        let mut named = named_uplinks(table, rules);
        let names: BTreeSet<u32> = named.keys().copied().collect();
        // A frame passes both a netdev and what it lies on, and would be counted at each.
        named.retain(|&ifindex, _| all_below(table, ifindex).is_disjoint(&names));
        return named;
    }
    let mut uplinks = BTreeMap::new();
    for (ifindex, why) in underlay_netdevs(table) {
        let upper = table.netdevs.get(&ifindex).map(|netdev| netdev.name.as_str()).unwrap_or_default();
        for below in lowest(table, ifindex) {
            let why = if below == ifindex { why.clone() } else { format!("below {upper}, which {why}") };
            uplinks.entry(below).or_insert(why);
        }
    }
    uplinks
}

/// Returns the netdevs that the configuration names as uplinks, whatever lies on what.
fn named_uplinks(table: &NetdevTable, rules: &Rules) -> BTreeMap<u32, String> {
    let named = table.netdevs.values().filter_map(|netdev| {
        let pattern = rules.uplinks.iter().find(|pattern| pattern.matches(netdev))?;
        Some((netdev.ifindex, format!("uplinks.netdevs has \"{pattern}\"")))
    });
    named.collect()
}

/// Returns the netdevs that tunnel packets are routed to, each with why; the strongest reason first.
fn underlay_netdevs(table: &NetdevTable) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    let tunnels = || {
        table.netdevs.values().filter_map(|netdev| match &netdev.kind {
            Kind::Tunnel(tunnel) => Some((netdev, tunnel)),
            _ => None,
        })
    };
    let vteps: BTreeSet<IpAddr> = tunnels().filter_map(|(_, tunnel)| tunnel.local).collect();
    for (&ifindex, addresses) in &table.addresses {
        if let Some(vtep) = addresses.iter().find(|address| vteps.contains(address)) {
            found.push((ifindex, format!("carries the VTEP address {vtep}")));
        }
    }
    for (netdev, _) in tunnels() {
        if let Some(lower) = netdev.lower {
            found.push((lower, format!("is what {} sends through", netdev.name)));
        }
    }
    found.extend(table.default_routes.iter().map(|&ifindex| (ifindex, "carries a default route".to_owned())));
    found
}

/// Tunnel netdevs that are there once their kernel module is, and used by nobody mostly.
const MADE_BY_MODULES: [&str; 3] = ["gretap0", "erspan0", "ip6gretap0"];

/// Returns the names of the tunnel netdevs that don't tell by which netdev their packets leave, where the rules don't either:
/// GENEVE's, and those in external mode, such as Open vSwitch's, mostly.
#[must_use]
pub fn without_underlay<'a>(table: &'a NetdevTable, rules: &Rules) -> Vec<&'a str> {
    if !rules.uplinks.is_empty() {
        return Vec::new();
    }
    let is_wire = |ifindex: u32| {
        let kind = table.netdevs.get(&ifindex).map(|netdev| &netdev.kind);
        kind.is_some_and(|kind| *kind != Kind::Dummy)
    };
    let leads_out = |address: &IpAddr| {
        let holders = table.addresses.iter().filter(|(_, addresses)| addresses.contains(address));
        holders.flat_map(|(&ifindex, _)| lowest(table, ifindex)).any(is_wire)
    };
    let silent = table.netdevs.values().filter(|netdev| match &netdev.kind {
        Kind::Tunnel(tunnel) => netdev.lower.is_none() && !tunnel.local.as_ref().is_some_and(leads_out),
        _ => false,
    });
    silent.map(|netdev| netdev.name.as_str()).filter(|name| !MADE_BY_MODULES.contains(name)).collect()
}

#[cfg(test)]
mod tests;

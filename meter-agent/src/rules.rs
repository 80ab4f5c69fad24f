//! User-defined meters: which packets each counts, by the conditions of MidoNet's chain rules.
//!
//! A meter counts a packet once if one of its rules matches, however many do. (MidoNet adds a packet for each; its own
//! tests leave that open, and a meter that counts twice can't be billed from.) What MidoNet then does to the packet
//! (accept, drop, translate) is no part of a meter: a condition is evaluated on the frame that a hook sees.
//!
//! # What a condition means
//!
//! 1. The fragment policy comes first. A packet that it isn't about is not matched, inverted rule or not.
//! 2. Every attribute that is set must hold. `!` inverts one comparison.
//! 3. An attribute that isn't set holds, even if its inversion flag is set (`!None` in a rule line). An empty list of
//!    ports isn't set.
//! 4. `inverted` inverts the result of 2.
//! 5. A field that the packet doesn't have is equal to nothing, so that its inversion holds; but what has no L4 ports is
//!    in every range of ports, so that a range that is inverted fails.
//! 6. Of ARP, `src` and `dst` are the sender's and the target's protocol address and `proto` is the operation; of ICMP
//!    and ICMPv6, `src-port` is the type and `dst-port` the code. A later fragment has neither ports nor types.
//!
//! Where MidoNet's manual says something else, this follows its code: `tos` is the whole byte and not the six bits of
//! DSCP; `header` becomes the default fragment policy with a port, not with an address, and `unfragmented` may be set in
//! its place; a port group is that of the port on which the packet came into the virtual network. Two things are
//! more than MidoNet had: `src`, `dst` and address groups take IPv6 and CIDRs, and the ports of SCTP and the types of
//! ICMPv6 are read (for MidoNet such packets had none, and were in every range).
//!
//! A number that a packet doesn't have (`proto`, `tos`, a port) was `null` to MidoNet's `Condition`, which rule 5 is
//! from; later versions of its `FlowMatch` hold integers, and yield 0.
//!
//! # Where a packet counts
//!
//! A hook of a port sees the packets of one direction, and each rule counts at the hooks of one direction
//! ([`Condition::counts_at`]), so that a packet that comes in through a port and goes out through another of the same host
//! counts once:
//!
//! - A rule with `direction` counts there; one with `out-ports` or `out-port-group` counts where packets go out to a port,
//!   since only there it is known to which. Inverting them or the whole rule doesn't change that.
//! - Every other rule counts where packets come into the virtual network through a port. What comes to a host through a
//!   tunnel was counted where it came in; to count what goes out to a port in any case, say `direction tx`.
//! - Where a packet goes out, the port that it came in through is that of the netdev on which the host received it, if it
//!   is one of its ports; that is also the one on which it came into the virtual network, as far as is known here. It has
//!   traversed both ports and the devices that they belong to.
//! - A rule with `vni` counts at the hooks of tunnel netdevs, and no other there; hooks of uplinks count for none, and neither
//!   do those of XDP.
//! - Rules of `[connections]` count nothing: they are asked at both hooks of every netdev whose connections are counted
//!   ([`compile_everywhere`]).
//! - `flow` is a packet's direction in its connection, told at each port by itself: see [`Flows`]. The programs know
//!   `connections.max_entries` connections, and forget one that is idle. What has no room counts as forward, but the answer to
//!   a SYN as return (`meter_agent_untracked_packets_total`).
//!
//! # What a compiled form must obey
//!
//! - It counts a packet for a meter exactly if [`matches()`] says so of one of the meter's rules that count at the hook: the differential test
//!   compares them packet by packet.
//! - A packet counts for each of its meters once, in wire units, on the CPU that it is on.
//! - What a verdict depends on is all of [`Packet`], and nothing else. A cache of verdicts has every field in its key
//!   that any rule of the set looks at, and an entry is of one set: a swap makes all entries of the old one void.
//! - A packet sees the old set or the new one. Meters that are in both keep their counters.
//! - Prefixes and ranges mean the same with bits set behind the prefix, and with open ends.

mod attribute;
mod compile;
mod condition;
mod draft;
mod explain;
mod extract;
mod flows;
mod line;
mod matcher;
mod packet;
mod routers;
mod table;
#[cfg(test)]
pub(crate) mod tests;
mod value;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use uuid::Uuid;

pub use self::{
    attribute::Attribute,
    compile::{CompileError, SlotPort, Tables, compile, compile_everywhere},
    condition::{Condition, Direction, Flow, FragmentPolicy, MacMatch, PortRange, Prefix, Test},
    explain::explain,
    extract::{fields, tcp_flags},
    flows::Flows,
    line::{LineError, RuleLine},
    matcher::{Outcome, matches, outcome},
    packet::Packet,
    routers::{Router, router_of},
    table::RuleTable,
    value::{group_name, meter_name, prefix},
};
use crate::meter::PortId;

pub use meter_ebpf::abi::rules::MAX_RULES;

/// One user-defined meter: `meters:user:<name>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meter {
    /// Free text on one line.
    pub name: String,
    /// It counts what one of them matches; at least one.
    pub rules: Vec<Condition>,
}

/// All user-defined meters, with the groups that their rules name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MeterSet {
    /// In the order of the configuration; each name once.
    pub meters: Vec<Meter>,
    /// What the rules' groups hold.
    pub groups: Groups,
    /// Each device once.
    pub routers: Vec<Router>,
}

impl MeterSet {
    /// Returns the ports and devices that its rules tell from others.
    #[must_use]
    pub fn names(&self) -> BTreeSet<Uuid> {
        let of_group =
            |group: &Test<String>| group.value.as_ref().and_then(|name| self.groups.ports.get(name));
        let mut names = BTreeSet::new();
        for rule in self.meters.iter().flat_map(|meter| &meter.rules) {
            let ports = [&rule.in_ports, &rule.out_ports].into_iter().filter_map(|test| test.value.as_ref());
            let groups = [&rule.port_group, &rule.in_port_group, &rule.out_port_group];
            names.extend(ports.chain(groups.into_iter().filter_map(of_group)).flatten().map(|port| port.0));
            names.extend(rule.traversed_device.value);
        }
        names.extend(self.routers.iter().flat_map(|router| &router.bridges).map(|bridge| bridge.0));
        names
    }

    /// Returns these rules as those of one meter without a name, with the groups and the routers of this set.
    #[must_use]
    pub fn with_rules(&self, rules: Vec<Condition>) -> Self {
        let meters = vec![Meter { name: String::new(), rules }];
        Self { meters, groups: self.groups.clone(), routers: self.routers.clone() }
    }

    /// Returns the meters that count a packet at its hook.
    pub fn counting<'s>(&'s self, packet: &Packet) -> impl Iterator<Item = &'s Meter> {
        let counts = |rule: &Condition| rule.counts(packet) && matches(rule, packet, &self.groups);
        self.meters.iter().filter(move |meter| meter.rules.iter().any(counts))
    }
}

/// Groups of ports and of addresses, by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Groups {
    /// Port groups.
    pub ports: BTreeMap<String, BTreeSet<PortId>>,
    /// Address groups. MidoNet's hold single addresses, these prefixes as well.
    pub addresses: BTreeMap<String, Vec<Prefix>>,
}

impl Groups {
    /// Returns whether a group has a port. An unknown group has none.
    fn has_port(&self, group: &str, port: Option<PortId>) -> bool {
        port.is_some_and(|port| self.ports.get(group).is_some_and(|ports| ports.contains(&port)))
    }

    /// Returns whether a group has an address. An unknown group has none.
    fn has_address(&self, group: &str, address: Option<IpAddr>) -> bool {
        let has = |address| {
            self.addresses.get(group).is_some_and(|all| all.iter().any(|prefix| prefix.contains(address)))
        };
        address.is_some_and(has)
    }

    /// Returns the groups that a condition names and that don't exist.
    #[must_use]
    pub fn missing<'c>(&self, condition: &'c Condition) -> Vec<(Attribute, &'c str)> {
        use Attribute as A;
        let ports = [
            (A::PortGroup, &condition.port_group),
            (A::InPortGroup, &condition.in_port_group),
            (A::OutPortGroup, &condition.out_port_group),
        ];
        let addresses = [
            (A::IpAddressGroupSrc, &condition.ip_address_group_src),
            (A::IpAddressGroupDst, &condition.ip_address_group_dst),
        ];
        let named =
            |(attribute, test): (Attribute, &'c Test<String>)| Some((attribute, test.value.as_deref()?));
        let ports = ports.into_iter().filter_map(named).filter(|(_, name)| !self.ports.contains_key(*name));
        let addresses =
            addresses.into_iter().filter_map(named).filter(|(_, name)| !self.addresses.contains_key(*name));
        ports.chain(addresses).collect()
    }
}

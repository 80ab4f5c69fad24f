//! The reference: whether a condition matches a packet, in the order and the words of MidoNet's `Condition`.
//!
//! Slow and plain. Whatever a datapath does, it counts what this function says.

use super::{Groups, attribute::Attribute, condition::Condition, packet::Packet};

/// What comes of a condition and a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The fragment policy is not about this part of a packet. No inversion reaches that.
    Fragment,
    /// This attribute, the first of those that are compared, doesn't hold.
    Fails(Attribute),
    /// Every attribute holds.
    Holds,
}

/// Returns whether a condition matches a packet.
#[must_use]
pub fn matches(condition: &Condition, packet: &Packet, groups: &Groups) -> bool {
    match outcome(condition, packet, groups) {
        Outcome::Fragment => false,
        Outcome::Fails(_) => condition.inverted,
        Outcome::Holds => !condition.inverted,
    }
}

/// Compares a packet with a condition, attribute by attribute.
#[must_use]
pub fn outcome(condition: &Condition, packet: &Packet, groups: &Groups) -> Outcome {
    use Attribute as A;
    let Condition { flow, no_vlan, vlan, direction, .. } = condition;
    if !condition.fragment_policy.accepts(packet.fragment) {
        return Outcome::Fragment;
    }
    // A field that the packet doesn't have is equal to nothing and in no set, which an inversion turns into true. The
    // exception is a port range: what has no ports is in it.
    let attributes = [
        (A::Flow, flow.is_none_or(|flow| packet.flow == flow)),
        (A::NoVlan, !no_vlan || packet.vlan.is_none()),
        (A::Vlan, vlan.is_none_or(|id| packet.vlan == Some(id))),
        (A::PortGroup, condition.port_group.holds(|group| groups.has_port(group, packet.origin_port))),
        (A::InPortGroup, condition.in_port_group.holds(|group| groups.has_port(group, packet.in_port))),
        (A::OutPortGroup, condition.out_port_group.holds(|group| groups.has_port(group, packet.out_port))),
        (
            A::InPorts,
            condition.in_ports.holds(|ports| packet.in_port.is_some_and(|port| ports.contains(&port))),
        ),
        (
            A::OutPorts,
            condition.out_ports.holds(|ports| packet.out_port.is_some_and(|port| ports.contains(&port))),
        ),
        (A::Ethertype, condition.ethertype.holds(|&ethertype| packet.ethertype == Some(ethertype))),
        (A::HwSrc, condition.hw_src.holds(|value| packet.hw_src.is_some_and(|mac| value.contains(mac)))),
        (A::HwDst, condition.hw_dst.holds(|value| packet.hw_dst.is_some_and(|mac| value.contains(mac)))),
        (A::Tos, condition.tos.holds(|&tos| packet.tos == Some(tos))),
        (A::Proto, condition.proto.holds(|&proto| packet.proto == Some(proto))),
        (A::Src, condition.src.holds(|prefix| packet.src.is_some_and(|address| prefix.contains(address)))),
        (A::Dst, condition.dst.holds(|prefix| packet.dst.is_some_and(|address| prefix.contains(address)))),
        (
            A::SrcPort,
            condition.src_port.holds(|range| packet.src_port.is_none_or(|port| range.contains(port))),
        ),
        (
            A::DstPort,
            condition.dst_port.holds(|range| packet.dst_port.is_none_or(|port| range.contains(port))),
        ),
        (
            A::IpAddressGroupSrc,
            condition.ip_address_group_src.holds(|group| groups.has_address(group, packet.src)),
        ),
        (
            A::IpAddressGroupDst,
            condition.ip_address_group_dst.holds(|group| groups.has_address(group, packet.dst)),
        ),
        (A::TraversedDevice, condition.traversed_device.holds(|device| packet.traversed.contains(device))),
        (A::Vni, condition.vni.holds(|&vni| packet.network.vni() == Some(vni))),
        (A::Direction, direction.is_none_or(|direction| packet.direction == Some(direction))),
    ];
    let failing = attributes.into_iter().find(|(_, holds)| !holds);
    failing.map_or(Outcome::Holds, |(attribute, _)| Outcome::Fails(attribute))
}

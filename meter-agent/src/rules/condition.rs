//! A condition: what a packet must be like, and the values that say so.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use meter_ebpf::packet::Fragment;
use uuid::Uuid;

use super::{attribute::Attribute, packet::Packet, value};
use crate::{meter::PortId, netdev::MacAddress};

/// What a rule asks of a packet: MidoNet's `Condition`, with VNI and direction beside it.
///
/// Every attribute that is set must hold; an attribute that isn't holds for every packet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Condition {
    /// Whether the result of all other attributes but the fragment policy is inverted.
    pub inverted: bool,
    /// Which parts of a fragmented packet. No inversion reaches it.
    pub fragment_policy: FragmentPolicy,
    /// Direction of the connection.
    pub flow: Option<Flow>,
    /// Whether the packet must be without a VLAN tag.
    pub no_vlan: bool,
    /// Id of the outermost VLAN tag, 1 to 4094.
    pub vlan: Option<u16>,
    /// Group of the port on which the packet came into the virtual network.
    pub port_group: Test<String>,
    /// Group of the port through which it comes into the device.
    pub in_port_group: Test<String>,
    /// Group of the port through which it leaves the device.
    pub out_port_group: Test<String>,
    /// Ports through which it comes into the device; never an empty set.
    pub in_ports: Test<BTreeSet<PortId>>,
    /// Ports through which it leaves the device; never an empty set.
    pub out_ports: Test<BTreeSet<PortId>>,
    /// Ethertype behind all VLAN tags, from 0x600.
    pub ethertype: Test<u16>,
    /// Source MAC address.
    pub hw_src: Test<MacMatch>,
    /// Destination MAC address.
    pub hw_dst: Test<MacMatch>,
    /// The whole TOS byte or traffic class: DSCP and ECN.
    pub tos: Test<u8>,
    /// IP protocol, or an ARP operation.
    pub proto: Test<u8>,
    /// Source address.
    pub src: Test<Prefix>,
    /// Destination address.
    pub dst: Test<Prefix>,
    /// Source port, or an ICMP type.
    pub src_port: Test<PortRange>,
    /// Destination port, or an ICMP code.
    pub dst_port: Test<PortRange>,
    /// Group of the source address.
    pub ip_address_group_src: Test<String>,
    /// Group of the destination address.
    pub ip_address_group_dst: Test<String>,
    /// A port or device that the packet has come through.
    pub traversed_device: Test<Uuid>,
    /// Overlay network id, 24 bits.
    pub vni: Test<u32>,
    /// Which way the packet goes through the port.
    pub direction: Option<Direction>,
}

/// An attribute that can be inverted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Test<T> {
    /// What the packet's field is compared with; `None` is an attribute that isn't set.
    pub value: Option<T>,
    /// Whether the comparison must fail. Means nothing where there is no value: MidoNet keeps the flag apart.
    pub inverted: bool,
}

impl<T> Default for Test<T> {
    fn default() -> Self {
        Self { value: None, inverted: false }
    }
}

impl<T> Test<T> {
    /// Returns whether the attribute holds, given the comparison with its value.
    pub(super) fn holds(&self, compare: impl FnOnce(&T) -> bool) -> bool {
        self.value.as_ref().is_none_or(|value| self.inverted != compare(value))
    }
}

/// A MAC address, and which of its bits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MacMatch {
    /// As it was given: bits outside the mask may be set.
    pub address: MacAddress,
    /// All ones where none was given.
    pub mask: MacAddress,
}

impl MacMatch {
    /// Returns whether an address is equal in the bits that count.
    #[must_use]
    pub fn contains(&self, address: MacAddress) -> bool {
        let mut octets = self.address.iter().zip(address).zip(self.mask);
        octets.all(|((own, other), mask)| own & mask == other & mask)
    }
}

/// A range of addresses in CIDR notation, of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    /// As it was given: bits behind the prefix may be set.
    pub address: IpAddr,
    /// Bits that count: at most 32, or 128 for IPv6.
    pub length: u8,
}

impl Prefix {
    /// Returns whether it has an address. Those of the other family it has not, whatever its length.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let length = u32::from(self.length);
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let mask = u32::MAX.checked_shl(32 - length).unwrap_or_default();
                (own.to_bits() ^ other.to_bits()) & mask == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let mask = u128::MAX.checked_shl(128 - length).unwrap_or_default();
                (own.to_bits() ^ other.to_bits()) & mask == 0
            }
            _ => false,
        }
    }

    /// Returns the prefix that has this address only.
    #[must_use]
    pub fn host(address: IpAddr) -> Self {
        Self { address, length: if address.is_ipv4() { 32 } else { 128 } }
    }
}

impl fmt::Display for Prefix {
    /// Writes an address alone without its length, as `midonet-cli` does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)?;
        if *self == Self::host(self.address) { Ok(()) } else { write!(f, "/{}", self.length) }
    }
}

/// L4 ports, or ICMP types or codes, from one to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// The first; `None` where the range is open below.
    pub start: Option<u16>,
    /// The last; `None` where the range is open above. Not both are open.
    pub end: Option<u16>,
}

impl PortRange {
    /// Returns whether a port is in it.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.start.is_none_or(|start| start <= port) && self.end.is_none_or(|end| port <= end)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.start, self.end) {
            (Some(start), Some(end)) if start == end => start.fmt(f),
            (Some(start), Some(end)) => write!(f, "{start}-{end}"),
            (Some(start), None) => write!(f, "{start}-"),
            (None, Some(end)) => write!(f, "-{end}"),
            (None, None) => f.write_str("-"),
        }
    }
}

/// Which parts of a fragmented packet a condition is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FragmentPolicy {
    /// Every packet.
    #[default]
    Any,
    /// What has an L4 header: whole packets and first fragments.
    Header,
    /// Later fragments.
    Nonheader,
    /// Whole packets.
    Unfragmented,
}

impl FragmentPolicy {
    pub(super) const WORDS: &[(&str, Self)] = &[
        ("any", Self::Any),
        ("header", Self::Header),
        ("nonheader", Self::Nonheader),
        ("unfragmented", Self::Unfragmented),
    ];

    /// Returns whether it is about this part of a packet.
    #[must_use]
    pub const fn accepts(self, fragment: Fragment) -> bool {
        match self {
            Self::Any => true,
            Self::Header => matches!(fragment, Fragment::Whole | Fragment::First),
            Self::Nonheader => matches!(fragment, Fragment::Later),
            Self::Unfragmented => matches!(fragment, Fragment::Whole),
        }
    }
}

/// Direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flow {
    /// As its first packet, and everything that has no connection.
    #[default]
    Forward,
    /// Against its first packet.
    Return,
}

impl Flow {
    pub(super) const WORDS: &[(&str, Self)] = &[("fwd-flow", Self::Forward), ("return-flow", Self::Return)];
}

/// Which way a packet goes through a port, from the virtual network's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Into the virtual network: the netdev's ingress.
    Rx,
    /// Out of it: the netdev's egress.
    Tx,
}

impl Direction {
    pub(super) const WORDS: &[(&str, Self)] = &[("rx", Self::Rx), ("tx", Self::Tx)];
}

impl Condition {
    /// Returns at which hooks of ports it counts: where packets go out if it says so or names the ports, else where they
    /// come in.
    #[must_use]
    pub fn counts_at(&self) -> Direction {
        let names_out = self.out_ports.value.is_some() || self.out_port_group.value.is_some();
        self.direction.unwrap_or(if names_out { Direction::Tx } else { Direction::Rx })
    }

    /// Returns whether it is about an overlay network: it counts at the hooks of tunnel netdevs then, and else at those of
    /// ports.
    #[must_use]
    pub const fn is_of_network(&self) -> bool {
        self.vni.value.is_some()
    }

    /// Returns whether it counts at the hook of a packet. Of a packet without a direction that is left open.
    #[must_use]
    pub fn counts(&self, packet: &Packet) -> bool {
        packet.direction.is_none_or(|direction| direction == self.counts_at())
            && packet.network.is_tunnel() == self.is_of_network()
    }

    /// Returns an attribute's value as it stands in a rule line, with its `!`; `None` where it isn't set.
    ///
    /// An attribute that has only its inversion flag is `!None`, as `midonet-cli` writes it.
    #[must_use]
    pub fn value_of(&self, attribute: Attribute) -> Option<String> {
        use Attribute as A;
        match attribute {
            A::HwSrc => written(&self.hw_src, |value| value::mac_text(value.address)),
            A::HwDst => written(&self.hw_dst, |value| value::mac_text(value.address)),
            A::HwSrcMask => mask_text(&self.hw_src),
            A::HwDstMask => mask_text(&self.hw_dst),
            A::Ethertype => written(&self.ethertype, ToString::to_string),
            A::Src => written(&self.src, ToString::to_string),
            A::Dst => written(&self.dst, ToString::to_string),
            A::Proto => written(&self.proto, |&value| value::byte_text(value)),
            A::Tos => written(&self.tos, |&value| value::byte_text(value)),
            A::SrcPort => written(&self.src_port, ToString::to_string),
            A::DstPort => written(&self.dst_port, ToString::to_string),
            A::Flow => self.flow.map(|flow| value::word_of(Flow::WORDS, flow).to_owned()),
            A::PortGroup => written(&self.port_group, Clone::clone),
            A::InPortGroup => written(&self.in_port_group, Clone::clone),
            A::OutPortGroup => written(&self.out_port_group, Clone::clone),
            A::IpAddressGroupSrc => written(&self.ip_address_group_src, Clone::clone),
            A::IpAddressGroupDst => written(&self.ip_address_group_dst, Clone::clone),
            A::InPorts => written(&self.in_ports, |ports| value::list_text(ports)),
            A::OutPorts => written(&self.out_ports, |ports| value::list_text(ports)),
            A::FragmentPolicy => Some(value::word_of(FragmentPolicy::WORDS, self.fragment_policy).to_owned()),
            A::NoVlan => self.no_vlan.then(|| "true".to_owned()),
            A::Vlan => self.vlan.map(|id| id.to_string()),
            A::TraversedDevice => written(&self.traversed_device, ToString::to_string),
            A::Vni => written(&self.vni, ToString::to_string),
            A::Direction => self.direction.map(|to| value::word_of(Direction::WORDS, to).to_owned()),
            A::Inverted => self.inverted.then(|| "true".to_owned()),
        }
    }
}

fn written<T>(test: &Test<T>, write: impl FnOnce(&T) -> String) -> Option<String> {
    match (&test.value, test.inverted) {
        (None, false) => None,
        (None, true) => Some("!None".to_owned()),
        (Some(value), inverted) => Some(format!("{}{}", if inverted { "!" } else { "" }, write(value))),
    }
}

fn mask_text(test: &Test<MacMatch>) -> Option<String> {
    test.value
        .as_ref()
        .filter(|value| value.mask != value::ALL_ONES)
        .map(|value| value::mask_text(value.mask))
}

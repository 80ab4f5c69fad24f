//! What a connection is called where it is shown.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use meter_ebpf::{
    abi::Encap,
    packet::numbers::{IP_ICMP, IP_ICMPV6, IP_SCTP, IP_TCP, IP_UDP},
};

use super::{Classifier, Tag};
use crate::{datapath::ConnectionReading, meter::PortId, rules::Prefix};

/// A label that can be left out. The port's is always there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Label {
    /// The address of the initiator.
    InitiatorIp,
    /// Its port.
    InitiatorPort,
    /// The address of the target.
    TargetIp,
    /// Its port.
    TargetPort,
    /// The protocol.
    Protocol,
    /// The encapsulation that it is in.
    Encap,
    /// The VNI or GRE key there.
    Vni,
}

impl Label {
    /// All labels with their names.
    pub const ALL: [(&'static str, Self); 7] = [
        ("initiator_ip", Self::InitiatorIp),
        ("initiator_port", Self::InitiatorPort),
        ("target_ip", Self::TargetIp),
        ("target_port", Self::TargetPort),
        ("protocol", Self::Protocol),
        ("encap", Self::Encap),
        ("vni", Self::Vni),
    ];
}

/// How connections are shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Connections, or groups of them, that have a name of their own at most.
    pub most: usize,
    /// Labels that are left out: what differs in nothing else is one group.
    pub drop: BTreeSet<Label>,
    /// Networks of which the addresses are one group: the first that has an address.
    pub networks: Vec<Prefix>,
    /// What is inside; `None` where nothing is said of it.
    pub classifier: Option<Classifier>,
    /// Which connections have no name of their own.
    pub exclude: BTreeSet<Tag>,
}

/// An address, or the network that stands for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// Left out.
    Any,
    /// An address.
    One(IpAddr),
    /// All of a network.
    Network(IpAddr, u8),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => Ok(()),
            Self::One(address) => write!(f, "{address}"),
            Self::Network(address, length) => write!(f, "{address}/{length}"),
        }
    }
}

/// A connection, or a group of them, by what it is called.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Series {
    /// The port where it is seen.
    pub port: PortId,
    /// The IP protocol.
    pub protocol: Option<u8>,
    /// Who began it.
    pub initiator: (Address, Option<u16>),
    /// To whom.
    pub target: (Address, Option<u16>),
    /// Which way it goes.
    pub tag: Option<Tag>,
    /// The encapsulation that it is in.
    pub encap: Option<Encap>,
    /// The VNI or GRE key there.
    pub vni: Option<u32>,
}

impl View {
    /// Returns what a connection is called; `None` where it has no name of its own.
    #[must_use]
    pub fn series(&self, connection: &ConnectionReading) -> Option<Series> {
        let ConnectionReading { port, protocol, initiator, target, timed_out, overlay, .. } = connection;
        if *timed_out {
            return None;
        }
        let tag = self.classifier.as_ref().map(|classifier| classifier.tag(initiator.ip(), target.ip()));
        if tag.is_some_and(|tag| self.exclude.contains(&tag)) {
            return None;
        }
        let number = |label, number| (!self.drop.contains(&label)).then_some(number);
        Some(Series {
            port: *port,
            protocol: (!self.drop.contains(&Label::Protocol)).then_some(*protocol),
            initiator: (
                self.address(Label::InitiatorIp, initiator.ip()),
                number(Label::InitiatorPort, initiator.port()),
            ),
            target: (self.address(Label::TargetIp, target.ip()), number(Label::TargetPort, target.port())),
            tag,
            encap: overlay.map(|(encap, _)| encap).filter(|_| !self.drop.contains(&Label::Encap)),
            vni: overlay.map(|(_, vni)| vni).filter(|_| !self.drop.contains(&Label::Vni)),
        })
    }

    fn address(&self, label: Label, address: IpAddr) -> Address {
        if self.drop.contains(&label) {
            return Address::Any;
        }
        let network = self.networks.iter().find(|network| network.contains(address));
        network.map_or(Address::One(address), |network| Address::Network(network.address, network.length))
    }
}

/// Returns the name of a protocol that connections have, as Skydive writes it.
#[must_use]
pub const fn protocol_name(protocol: u8) -> &'static str {
    match protocol {
        IP_TCP => "TCP",
        IP_UDP => "UDP",
        IP_SCTP => "SCTP",
        IP_ICMP => "ICMP",
        IP_ICMPV6 => "ICMPv6",
        _ => "other",
    }
}

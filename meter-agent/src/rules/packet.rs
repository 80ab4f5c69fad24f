//! What a rule sees of a packet.

use std::{collections::BTreeSet, net::IpAddr};

use meter_ebpf::{
    abi::Network,
    packet::{
        Fragment,
        numbers::{ETH_IPV4, ETH_IPV6},
    },
};
use uuid::Uuid;

use super::{
    attribute::Attribute,
    condition::{Direction, Flow},
    value,
};
use crate::{meter::PortId, netdev::MacAddress};

/// The fields of one packet at one hook. `None` is a field that the packet doesn't have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Source MAC address.
    pub hw_src: Option<MacAddress>,
    /// Destination MAC address.
    pub hw_dst: Option<MacAddress>,
    /// Ethertype behind all VLAN tags. An 802.3 length is none.
    pub ethertype: Option<u16>,
    /// Id of the outermost VLAN tag; 0 of a tag that has only a priority.
    pub vlan: Option<u16>,
    /// Source address; of ARP the sender's.
    pub src: Option<IpAddr>,
    /// Destination address; of ARP the target's.
    pub dst: Option<IpAddr>,
    /// IP protocol behind all extension headers; of ARP the operation.
    pub proto: Option<u8>,
    /// TOS byte or traffic class.
    pub tos: Option<u8>,
    /// Source port of TCP, UDP and SCTP; type of ICMP and ICMPv6. None of a later fragment.
    pub src_port: Option<u16>,
    /// Destination port of TCP, UDP and SCTP; code of ICMP and ICMPv6. None of a later fragment.
    pub dst_port: Option<u16>,
    /// Which part of an IP packet it is. What isn't IP is whole.
    pub fragment: Fragment,
    /// Direction of its connection.
    pub flow: Flow,
    /// Port through which it comes into the device.
    pub in_port: Option<PortId>,
    /// Port through which it leaves the device.
    pub out_port: Option<PortId>,
    /// Port on which it came into the virtual network.
    pub origin_port: Option<PortId>,
    /// Ports and devices that it has come through, with the current ones.
    pub traversed: BTreeSet<Uuid>,
    /// Overlay network that it is in, at the hook of a tunnel netdev.
    pub network: Network,
    /// Which way it goes through the port.
    pub direction: Option<Direction>,
}

impl Default for Packet {
    fn default() -> Self {
        Self {
            hw_src: None,
            hw_dst: None,
            ethertype: None,
            vlan: None,
            src: None,
            dst: None,
            proto: None,
            tos: None,
            src_port: None,
            dst_port: None,
            fragment: Fragment::Whole,
            flow: Flow::Forward,
            in_port: None,
            out_port: None,
            origin_port: None,
            traversed: BTreeSet::new(),
            network: Network::NONE,
            direction: None,
        }
    }
}

const FRAGMENT: &str = "fragment";
const FRAGMENTS: &[(&str, Fragment)] =
    &[("none", Fragment::Whole), ("first", Fragment::First), ("later", Fragment::Later)];

impl Packet {
    /// Sets fields to what words and values by turns say: the attributes of a rule, and `fragment none|first|later`.
    ///
    /// What isn't said follows where it can: the ethertype from an address; from ports the direction, since only a packet
    /// that goes out to a port has an `out-ports`, and that they are traversed; and the one in `in-ports` is the one on
    /// which the packet came into the virtual network.
    ///
    /// # Errors
    ///
    /// What is wrong with the first word or value that is.
    pub fn set_words<'w>(&mut self, words: impl IntoIterator<Item = &'w str>) -> Result<(), String> {
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let value = words.next().ok_or_else(|| format!("{word}: has no value"))?;
            let attribute = Attribute::of_word(word);
            let set = match attribute {
                None if word == FRAGMENT => value::word(value, FRAGMENTS).map(|part| self.fragment = part),
                None => {
                    return Err(format!(
                        "unknown field {}; known are: {}",
                        value::quote(word),
                        known_fields()
                    ));
                }
                Some(attribute) => self.set(attribute, value),
            };
            set.map_err(|what| format!("{word}: {what}"))?;
        }
        if self.ethertype.is_none() {
            self.ethertype =
                self.src.or(self.dst).map(|address| if address.is_ipv4() { ETH_IPV4 } else { ETH_IPV6 });
        }
        let direction = self.out_port.map(|_| Direction::Tx).or(self.in_port.map(|_| Direction::Rx));
        self.direction = self.direction.or(direction);
        self.origin_port = self.origin_port.or(self.in_port);
        self.traversed.extend(self.in_port.into_iter().chain(self.out_port).map(|port| port.0));
        Ok(())
    }

    fn set(&mut self, attribute: Attribute, text: &str) -> Result<(), String> {
        use Attribute as A;
        match attribute {
            A::HwSrc => self.hw_src = Some(value::mac(text)?),
            A::HwDst => self.hw_dst = Some(value::mac(text)?),
            A::Ethertype => self.ethertype = Some(value::ethertype(text)?),
            A::Src => self.src = Some(value::address(text)?),
            A::Dst => self.dst = Some(value::address(text)?),
            A::Proto => self.proto = Some(value::byte(text)?),
            A::Tos => self.tos = Some(value::byte(text)?),
            A::SrcPort => self.src_port = Some(value::short(text, 0, u16::MAX)?),
            A::DstPort => self.dst_port = Some(value::short(text, 0, u16::MAX)?),
            A::Flow => self.flow = value::word(text, Flow::WORDS)?,
            A::InPorts => self.in_port = Some(PortId(value::uuid(text)?)),
            A::OutPorts => self.out_port = Some(PortId(value::uuid(text)?)),
            A::NoVlan => {
                if value::boolean(text)? {
                    self.vlan = None;
                }
            }
            A::Vlan => self.vlan = Some(value::short(text, 0, 4095)?),
            A::TraversedDevice => {
                for device in text.split(',') {
                    self.traversed.insert(value::uuid(device)?);
                }
            }
            A::Vni => self.network = Network::new(value::number(text, 0, 0xff_ffff)?),
            A::Direction => self.direction = Some(value::word(text, Direction::WORDS)?),
            A::PortGroup | A::InPortGroup | A::OutPortGroup => {
                return Err(
                    "follows from in-ports or out-ports and the groups of the configuration".to_owned()
                );
            }
            A::IpAddressGroupSrc | A::IpAddressGroupDst => {
                return Err("follows from src or dst and the groups of the configuration".to_owned());
            }
            A::HwSrcMask | A::HwDstMask | A::FragmentPolicy | A::Inverted => {
                return Err("belongs to a rule, a packet has none".to_owned());
            }
        }
        Ok(())
    }

    /// Returns what the packet has of an attribute, as a rule line has it; `None` where it has nothing.
    #[must_use]
    pub fn value_of(&self, attribute: Attribute) -> Option<String> {
        use Attribute as A;
        match attribute {
            A::HwSrc | A::HwSrcMask => self.hw_src.map(value::mac_text),
            A::HwDst | A::HwDstMask => self.hw_dst.map(value::mac_text),
            A::Ethertype => self.ethertype.map(|ethertype| ethertype.to_string()),
            A::Src | A::IpAddressGroupSrc => self.src.map(|address| address.to_string()),
            A::Dst | A::IpAddressGroupDst => self.dst.map(|address| address.to_string()),
            A::Proto => self.proto.map(|proto| proto.to_string()),
            A::Tos => self.tos.map(|tos| tos.to_string()),
            A::SrcPort => self.src_port.map(|port| port.to_string()),
            A::DstPort => self.dst_port.map(|port| port.to_string()),
            A::Flow => Some(value::word_of(Flow::WORDS, self.flow).to_owned()),
            A::PortGroup => self.origin_port.map(|port| port.to_string()),
            A::InPorts | A::InPortGroup => self.in_port.map(|port| port.to_string()),
            A::OutPorts | A::OutPortGroup => self.out_port.map(|port| port.to_string()),
            A::FragmentPolicy => Some(value::word_of(FRAGMENTS, self.fragment).to_owned()),
            A::NoVlan | A::Vlan => self.vlan.map(|id| id.to_string()),
            A::TraversedDevice if self.traversed.is_empty() => None,
            A::TraversedDevice => Some(value::list_text(&self.traversed)),
            A::Vni => self.network.vni().map(|vni| vni.to_string()),
            A::Direction => self.direction.map(|to| value::word_of(Direction::WORDS, to).to_owned()),
            A::Inverted => None,
        }
    }
}

/// Attributes that are fields of a packet, once each.
const FIELDS: [Attribute; 17] = [
    Attribute::HwSrc,
    Attribute::HwDst,
    Attribute::Ethertype,
    Attribute::Vlan,
    Attribute::Src,
    Attribute::Dst,
    Attribute::Proto,
    Attribute::Tos,
    Attribute::SrcPort,
    Attribute::DstPort,
    Attribute::Flow,
    Attribute::InPorts,
    Attribute::OutPorts,
    Attribute::TraversedDevice,
    Attribute::Vni,
    Attribute::Direction,
    Attribute::NoVlan,
];

fn known_fields() -> String {
    let words = FIELDS.map(Attribute::word);
    format!("{}, {FRAGMENT}", words.join(", "))
}

impl std::fmt::Display for Packet {
    /// Writes the words that [`Packet::set_words`] reads; what every packet has only where it is out of the ordinary.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let is_ordinary = |attribute: Attribute| match attribute {
            Attribute::Flow => self.flow == Flow::Forward,
            attribute => attribute == Attribute::NoVlan,
        };
        let fields = FIELDS.into_iter().filter(|&attribute| !is_ordinary(attribute));
        let fields =
            fields.filter_map(|attribute| Some(format!("{attribute} {}", self.value_of(attribute)?)));
        let fragment = value::word_of(FRAGMENTS, self.fragment);
        let fragment = (self.fragment != Fragment::Whole).then(|| format!("{FRAGMENT} {fragment}"));
        f.write_str(&fields.chain(fragment).collect::<Vec<_>>().join(" "))
    }
}

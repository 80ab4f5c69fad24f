//! The words that a condition is made of.

use std::fmt;

/// One attribute of a condition, as `midonet-cli` names it, in the order in which it lists them; then those that it
/// doesn't list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Attribute {
    /// Source MAC address.
    HwSrc,
    /// Which bits of the source MAC address count.
    HwSrcMask,
    /// Destination MAC address.
    HwDst,
    /// Which bits of the destination MAC address count.
    HwDstMask,
    /// Ethertype behind all VLAN tags.
    Ethertype,
    /// Source address, a prefix. Of ARP, the sender's.
    Src,
    /// Destination address, a prefix. Of ARP, the target's.
    Dst,
    /// IP protocol. Of ARP, the operation.
    Proto,
    /// The whole TOS byte, or IPv6's traffic class.
    Tos,
    /// Source port, a range. Of ICMP, the type.
    SrcPort,
    /// Destination port, a range. Of ICMP, the code.
    DstPort,
    /// Direction of the connection.
    Flow,
    /// A group that the port has on which the packet came into the virtual network.
    PortGroup,
    /// A group of addresses that has the source.
    IpAddressGroupSrc,
    /// A group of addresses that has the destination.
    IpAddressGroupDst,
    /// Ports through which the packet comes into the device.
    InPorts,
    /// Ports through which the packet leaves the device.
    OutPorts,
    /// Which parts of a fragmented packet.
    FragmentPolicy,
    /// No VLAN tag.
    NoVlan,
    /// Id of the outermost VLAN tag.
    Vlan,
    /// A group that has the port through which the packet comes into the device.
    InPortGroup,
    /// A group that has the port through which the packet leaves the device.
    OutPortGroup,
    /// A port or device that the packet has come through.
    TraversedDevice,
    /// Overlay network id.
    Vni,
    /// From the port into the virtual network, or out to the port.
    Direction,
    /// Inversion of the whole rule.
    Inverted,
}

use Attribute as A;

impl Attribute {
    /// All of them.
    pub const ALL: [Self; 26] = [
        A::HwSrc,
        A::HwSrcMask,
        A::HwDst,
        A::HwDstMask,
        A::Ethertype,
        A::Src,
        A::Dst,
        A::Proto,
        A::Tos,
        A::SrcPort,
        A::DstPort,
        A::Flow,
        A::PortGroup,
        A::IpAddressGroupSrc,
        A::IpAddressGroupDst,
        A::InPorts,
        A::OutPorts,
        A::FragmentPolicy,
        A::NoVlan,
        A::Vlan,
        A::InPortGroup,
        A::OutPortGroup,
        A::TraversedDevice,
        A::Vni,
        A::Direction,
        A::Inverted,
    ];

    /// Returns the word for it in a rule line.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            A::HwSrc => "hw-src",
            A::HwSrcMask => "hw-src-mask",
            A::HwDst => "hw-dst",
            A::HwDstMask => "hw-dst-mask",
            A::Ethertype => "ethertype",
            A::Src => "src",
            A::Dst => "dst",
            A::Proto => "proto",
            A::Tos => "tos",
            A::SrcPort => "src-port",
            A::DstPort => "dst-port",
            A::Flow => "flow",
            A::PortGroup => "port-group",
            A::IpAddressGroupSrc => "ip-address-group-src",
            A::IpAddressGroupDst => "ip-address-group-dst",
            A::InPorts => "in-ports",
            A::OutPorts => "out-ports",
            A::FragmentPolicy => "fragment-policy",
            A::NoVlan => "no-vlan",
            A::Vlan => "vlan",
            A::InPortGroup => "in-port-group",
            A::OutPortGroup => "out-port-group",
            A::TraversedDevice => "traversed-device",
            A::Vni => "vni",
            A::Direction => "direction",
            A::Inverted => "inverted",
        }
    }

    /// Returns the key for it in a table of the configuration: the word with underscores.
    #[must_use]
    pub fn key(self) -> String {
        self.word().replace('-', "_")
    }

    /// Returns the attribute of a word.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|attribute| attribute.word() == word)
    }

    /// Returns the attribute of a key.
    #[must_use]
    pub fn of_key(key: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|attribute| attribute.key() == key)
    }

    /// Returns whether a value may have a `!` before it: MidoNet's inversion flags, and [`Attribute::Vni`].
    #[must_use]
    pub const fn is_invertible(self) -> bool {
        !matches!(
            self,
            A::HwSrcMask
                | A::HwDstMask
                | A::Flow
                | A::FragmentPolicy
                | A::NoVlan
                | A::Vlan
                | A::Direction
                | A::Inverted
        )
    }
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::Attribute;

    #[test]
    fn words_and_keys_read_back() {
        for attribute in Attribute::ALL {
            assert_eq!(Attribute::of_word(attribute.word()), Some(attribute));
            assert_eq!(Attribute::of_key(&attribute.key()), Some(attribute));
        }
        assert_eq!(Attribute::of_word("hw_src"), None);
        assert_eq!(Attribute::of_key("hw-src"), None);
    }
}

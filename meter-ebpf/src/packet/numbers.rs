//! Numbers by which headers say what follows, and that both halves know.

/// Ethertype of IPv4.
pub const ETH_IPV4: u16 = 0x0800;
/// Ethertype of ARP.
pub const ETH_ARP: u16 = 0x0806;
/// Transparent Ethernet bridging: a frame inside GRE or GENEVE.
pub const ETH_TEB: u16 = 0x6558;
/// A VLAN tag, IEEE 802.1Q.
pub const ETH_VLAN: u16 = 0x8100;
/// Ethertype of IPv6.
pub const ETH_IPV6: u16 = 0x86dd;
/// An outer VLAN tag, IEEE 802.1ad.
pub const ETH_QINQ: u16 = 0x88a8;
/// The least ethertype: what is less is a length, by IEEE 802.3.
pub const ETH_LEAST: u16 = 0x600;

/// The beginning of an ARP packet of IPv4 over Ethernet: both kinds of address and their lengths.
pub const ARP_HEAD: [u8; 6] = [0, 1, 0x08, 0, 6, 4];

/// IPv6 hop-by-hop options.
pub const IP_HOP_BY_HOP: u8 = 0;
/// ICMP.
pub const IP_ICMP: u8 = 1;
/// IPv4 in IP.
pub const IP_IPV4: u8 = 4;
/// TCP.
pub const IP_TCP: u8 = 6;
/// UDP.
pub const IP_UDP: u8 = 17;
/// IPv6 in IP.
pub const IP_IPV6: u8 = 41;
/// IPv6 routing header.
pub const IP_ROUTING: u8 = 43;
/// IPv6 fragment header.
pub const IP_FRAGMENT: u8 = 44;
/// GRE.
pub const IP_GRE: u8 = 47;
/// Authentication header.
pub const IP_AUTHENTICATION: u8 = 51;
/// ICMP for IPv6.
pub const IP_ICMPV6: u8 = 58;
/// IPv6 destination options.
pub const IP_DESTINATION: u8 = 60;
/// SCTP.
pub const IP_SCTP: u8 = 132;

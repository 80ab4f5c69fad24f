//! The fields of a frame, from its bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use meter_ebpf::packet::{
    Fragment, Frame as _,
    numbers::{
        ARP_HEAD, ETH_ARP, ETH_IPV4, ETH_LEAST, ETH_QINQ, ETH_VLAN, IP_ICMP, IP_ICMPV6, IP_SCTP, IP_TCP,
        IP_UDP,
    },
};

use super::packet::Packet;

/// Where the ethertype of a frame without a tag is.
const ETHERTYPE: u32 = 12;

/// Reads the fields of an Ethernet frame that begins with its header.
///
/// What can't be read, because the frame ends or has more tags or extension headers than are followed, the packet
/// doesn't have. Of a tunnel packet these are the outer fields.
#[must_use]
pub fn fields(frame: &[u8]) -> Packet {
    let mut packet = Packet {
        hw_dst: frame.read(0),
        hw_src: frame.read(6),
        vlan: outermost_tag(frame),
        ..Packet::default()
    };
    let Ok(ethernet) = frame.ethernet(0) else { return packet };
    packet.ethertype = Some(ethernet.ethertype).filter(|&ethertype| ethertype >= ETH_LEAST);
    if ethernet.ethertype == ETH_ARP {
        arp(frame, ethernet.payload, &mut packet);
    } else {
        ip(frame, ethernet.ethertype, ethernet.payload, &mut packet);
    }
    packet
}

/// Returns the flags of TCP; `None` of what has none.
#[must_use]
pub fn tcp_flags(frame: &[u8]) -> Option<u8> {
    let ethernet = frame.ethernet(0).ok()?;
    let ip = frame.ip(ethernet.ethertype, ethernet.payload).ok()?;
    let has_header = ip.protocol == IP_TCP && ip.fragment != Fragment::Later;
    frame.read(ip.payload + 13).map(|[flags]| flags).filter(|_| has_header)
}

fn outermost_tag(frame: &[u8]) -> Option<u16> {
    let [a, b, c, d] = frame.read(ETHERTYPE)?;
    let is_tag = matches!(u16::from_be_bytes([a, b]), ETH_VLAN | ETH_QINQ);
    is_tag.then(|| u16::from_be_bytes([c, d]) & 0x0fff)
}

fn arp(frame: &[u8], start: u32, packet: &mut Packet) {
    if frame.read(start) != Some(ARP_HEAD) {
        return;
    }
    let address = |offset| frame.read::<4>(start + offset).map(|octets| IpAddr::V4(Ipv4Addr::from(octets)));
    let operation = frame.read(start + 6).map(u16::from_be_bytes);
    packet.proto = operation.and_then(|operation| operation.try_into().ok());
    packet.src = address(14);
    packet.dst = address(24);
}

fn ip(frame: &[u8], ethertype: u16, start: u32, packet: &mut Packet) {
    let Ok(ip) = frame.ip(ethertype, start) else { return };
    if ethertype == ETH_IPV4 {
        let address =
            |offset| frame.read::<4>(start + offset).map(|octets| IpAddr::V4(Ipv4Addr::from(octets)));
        packet.src = address(12);
        packet.dst = address(16);
        packet.tos = frame.read(start + 1).map(|[tos]| tos);
    } else {
        let address =
            |offset| frame.read::<16>(start + offset).map(|octets| IpAddr::V6(Ipv6Addr::from(octets)));
        packet.src = address(8);
        packet.dst = address(24);
        // Version, traffic class and flow label share the first word.
        packet.tos = frame.read(start).map(|[high, low]| high << 4 | low >> 4);
    }
    packet.proto = Some(ip.protocol);
    packet.fragment = ip.fragment;
    if ip.fragment == Fragment::Later {
        return;
    }
    match ip.protocol {
        IP_TCP | IP_UDP | IP_SCTP => {
            packet.src_port = frame.read(ip.payload).map(u16::from_be_bytes);
            packet.dst_port = frame.read(ip.payload + 2).map(u16::from_be_bytes);
        }
        IP_ICMP | IP_ICMPV6 => {
            packet.src_port = frame.read(ip.payload).map(|[kind]| u16::from(kind));
            packet.dst_port = frame.read(ip.payload + 1).map(|[code]| u16::from(code));
        }
        _ => {}
    }
}

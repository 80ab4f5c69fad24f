//! Frames, written down header by header. Lengths are right, and so is the checksum of IPv4, without which a bridge
//! with netfilter drops a packet; those of TCP and UDP are zero.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lab::mac::Mac;

/// Ethertype of IPv4.
pub(crate) const IPV4: u16 = 0x0800;
/// Ethertype of IPv6.
pub(crate) const IPV6: u16 = 0x86dd;
/// Ethertype of Ethernet inside GRE or GENEVE.
pub(crate) const TEB: u16 = 0x6558;
/// Protocol numbers.
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const GRE: u8 = 47;

/// The outer addresses of every packet here, source first.
pub(crate) const ADDRESSES_4: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
/// The same for IPv6.
pub(crate) const ADDRESSES_6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)];

/// Returns the addresses of one family.
pub(crate) fn addresses(six: bool) -> [IpAddr; 2] {
    if six { ADDRESSES_6.map(IpAddr::V6) } else { ADDRESSES_4.map(IpAddr::V4) }
}

fn length(bytes: usize) -> [u8; 2] {
    // BIG TCP says 0 where the length does not fit.
    u16::try_from(bytes).unwrap_or(0).to_be_bytes()
}

/// A frame from station 2 to station 1, with tags from the outermost (tag protocol and id).
pub(crate) fn ethernet(tags: &[(u16, u16)], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    between(Mac::local(2), Mac::local(1), tags, ethertype, payload)
}

/// A frame between two stations.
pub(crate) fn between(src: Mac, dst: Mac, tags: &[(u16, u16)], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [dst.0, src.0].concat();
    for (protocol, id) in tags {
        frame.extend(protocol.to_be_bytes());
        frame.extend(id.to_be_bytes());
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IPv4 packet.
pub(crate) fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    ipv4_with(&[], 0, protocol, payload)
}

/// An IPv4 packet with options (whole words) and the field of flags and fragment offset.
pub(crate) fn ipv4_with(options: &[u8], fragment: u16, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let words = 5 + u8::try_from(options.len() / 4).unwrap();
    let total = length(20 + options.len() + payload.len());
    let fragment = fragment.to_be_bytes();
    let head = [0x40 | words, 0, total[0], total[1], 0, 0, fragment[0], fragment[1], 64, protocol, 0, 0];
    let mut header = [&head[..], &ADDRESSES_4[0].octets(), &ADDRESSES_4[1].octets(), options].concat();
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    header.extend(payload);
    header
}

/// An IPv6 packet.
pub(crate) fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let size = length(payload.len());
    let head = [0x60, 0, 0, 0, size[0], size[1], next, 64];
    [&head[..], &ADDRESSES_6[0].octets(), &ADDRESSES_6[1].octets(), payload].concat()
}

/// An IPv6 extension header of 8 bytes before its payload: hop-by-hop, routing or destination options.
pub(crate) fn extension(next: u8, payload: &[u8]) -> Vec<u8> {
    [&[next, 0, 1, 4, 0, 0, 0, 0][..], payload].concat()
}

/// An IPv6 fragment header: offset and flag as they are in the header.
pub(crate) fn fragment_header(next: u8, field: u16, payload: &[u8]) -> Vec<u8> {
    let [high, low] = field.to_be_bytes();
    [&[next, 0, high, low, 0, 0, 0, 1][..], payload].concat()
}

/// A UDP packet to a port.
pub(crate) fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    let size = length(8 + payload.len());
    [&[0x12, 0x34, high, low, size[0], size[1], 0, 0][..], payload].concat()
}

/// A TCP segment with this many bytes of options.
pub(crate) fn tcp(options: usize, payload: &[u8]) -> Vec<u8> {
    let words = 5 + u8::try_from(options / 4).unwrap();
    let mut segment =
        vec![0x12, 0x34, 0x13, 0x89, 0, 0, 0, 1, 0, 0, 0, 1, words << 4, 0x10, 0xff, 0xff, 0, 0, 0, 0];
    // No operation.
    segment.extend(vec![1; options]);
    segment.extend(payload);
    segment
}

/// A VXLAN packet, from its UDP header on.
pub(crate) fn vxlan(port: u16, vni: u32, inner: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = vni.to_be_bytes();
    udp(port, &[&[0x08, 0, 0, 0, a, b, c, 0][..], inner].concat())
}

/// A GENEVE packet, from its UDP header on, with this many words of options.
pub(crate) fn geneve(vni: u32, words: u8, ethertype: u16, inner: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = vni.to_be_bytes();
    let [high, low] = ethertype.to_be_bytes();
    let options = vec![0; usize::from(words) * 4];
    udp(6081, &[&[words, 0, high, low, a, b, c, 0][..], &options, inner].concat())
}

/// The bits of a GRE header.
pub(crate) const CHECKSUM: u8 = 0x80;
pub(crate) const KEY: u8 = 0x20;
pub(crate) const SEQUENCE: u8 = 0x10;

/// A GRE packet with the fields that its bits announce.
pub(crate) fn gre(bits: u8, key: u32, ethertype: u16, inner: &[u8]) -> Vec<u8> {
    let [high, low] = ethertype.to_be_bytes();
    let mut packet = vec![bits, 0, high, low];
    if bits & CHECKSUM != 0 {
        packet.extend([0; 4]);
    }
    if bits & KEY != 0 {
        packet.extend(key.to_be_bytes());
    }
    if bits & SEQUENCE != 0 {
        packet.extend([0, 0, 0, 1]);
    }
    packet.extend(inner);
    packet
}

//! A second opinion on frames: a plain parser that owes nothing to the one under test.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    count::{Encap, Flow, Stations, TunnelKey},
    mac::Mac,
};

/// UDP destination ports that carry tunnels.
#[derive(Debug, Clone)]
pub(crate) struct UdpPorts {
    pub(crate) vxlan: Vec<u16>,
    pub(crate) geneve: Vec<u16>,
}

/// A frame inside a tunnel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tunnelled {
    pub(crate) key: TunnelKey,
    pub(crate) inner_bytes: u64,
    /// `None` where the inner frame has no Ethernet header.
    pub(crate) stations: Option<Stations>,
}

fn bytes<const N: usize>(frame: &[u8], at: usize) -> Option<[u8; N]> {
    frame.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn be16(frame: &[u8], at: usize) -> Option<u16> {
    bytes(frame, at).map(u16::from_be_bytes)
}

/// Returns source and destination of a frame's Ethernet header.
pub(crate) fn stations(frame: &[u8]) -> Option<Stations> {
    Some((Mac(bytes(frame, 6)?), Mac(bytes(frame, 0)?)))
}

/// Returns the EtherType behind any VLAN tags, and where its payload starts.
fn network(frame: &[u8]) -> Option<(u16, usize)> {
    let mut at = 12;
    loop {
        match be16(frame, at)? {
            0x8100 | 0x88a8 | 0x9100 => at += 4,
            ethertype => return Some((ethertype, at + 2)),
        }
    }
}

struct Transport {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    at: usize,
}

/// Returns the transport header of an IP packet; `None` for later fragments, which have none.
fn transport(frame: &[u8]) -> Option<Transport> {
    let (ethertype, at) = network(frame)?;
    match ethertype {
        0x0800 => {
            let header = usize::from(bytes::<1>(frame, at)?[0] & 0x0f) * 4;
            if be16(frame, at + 6)? & 0x1fff != 0 {
                return None;
            }
            Some(Transport {
                src: Ipv4Addr::from(bytes::<4>(frame, at + 12)?).into(),
                dst: Ipv4Addr::from(bytes::<4>(frame, at + 16)?).into(),
                protocol: bytes::<1>(frame, at + 9)?[0],
                at: at + header,
            })
        }
        0x86dd => {
            let src = Ipv6Addr::from(bytes::<16>(frame, at + 8)?).into();
            let dst = Ipv6Addr::from(bytes::<16>(frame, at + 24)?).into();
            let mut protocol = bytes::<1>(frame, at + 6)?[0];
            let mut at = at + 40;
            loop {
                let [next, length] = match protocol {
                    // Hop-by-hop options, routing, destination options.
                    0 | 43 | 60 => bytes::<2>(frame, at)?,
                    44 => {
                        if be16(frame, at + 2)? & 0xfff8 != 0 {
                            return None;
                        }
                        [bytes::<1>(frame, at)?[0], 0]
                    }
                    _ => return Some(Transport { src, dst, protocol, at }),
                };
                protocol = next;
                at += (usize::from(length) + 1) * 8;
            }
        }
        _ => None,
    }
}

/// Returns from where to where a frame goes, if it has ports; of an echo request or reply each port is its identifier.
pub(crate) fn flow(frame: &[u8]) -> Option<Flow> {
    let Transport { src, dst, protocol, at } = transport(frame)?;
    let [src_port, dst_port] = match protocol {
        6 | 17 | 132 => [be16(frame, at)?, be16(frame, at + 2)?],
        1 if matches!(bytes::<1>(frame, at)?, [0 | 8]) => [be16(frame, at + 4)?; 2],
        58 if matches!(bytes::<1>(frame, at)?, [128 | 129]) => [be16(frame, at + 4)?; 2],
        _ => return None,
    };
    Some((protocol, (src, src_port).into(), (dst, dst_port).into()))
}

/// Returns what a frame carries, if it is a tunnel packet.
pub(crate) fn tunnelled(frame: &[u8], ports: &UdpPorts) -> Option<Tunnelled> {
    let Transport { src, dst, protocol, at } = transport(frame)?;
    let (encap, vni, inner_at, ethernet) = match protocol {
        17 => {
            let port = be16(frame, at + 2)?;
            let [flags, _, b2, b3, v0, v1, v2, _] = bytes::<8>(frame, at + 8)?;
            let vni = u32::from_be_bytes([0, v0, v1, v2]);
            if ports.vxlan.contains(&port) && flags & 0x08 != 0 {
                (Encap::Vxlan, vni, at + 16, true)
            } else if ports.geneve.contains(&port) && flags >> 6 == 0 {
                let ethernet = [b2, b3] == [0x65, 0x58];
                (Encap::Geneve, vni, at + 16 + usize::from(flags & 0x3f) * 4, ethernet)
            } else {
                return None;
            }
        }
        47 => {
            let [flags, version, p0, p1] = bytes::<4>(frame, at)?;
            if version & 0x07 != 0 {
                return None;
            }
            let mut end = at + 4;
            if flags & 0x80 != 0 {
                end += 4;
            }
            let mut key = 0;
            if flags & 0x20 != 0 {
                key = u32::from_be_bytes(bytes(frame, end)?);
                end += 4;
            }
            if flags & 0x10 != 0 {
                end += 4;
            }
            (Encap::Gre, key, end, [p0, p1] == [0x65, 0x58])
        }
        _ => return None,
    };
    let inner = frame.get(inner_at..)?;
    Some(Tunnelled {
        key: TunnelKey { src, dst, vni, encap },
        inner_bytes: u64::try_from(inner.len()).ok()?,
        stations: if ethernet { stations(inner) } else { None },
    })
}

/// The header before each frame that a guest and its host exchange: `struct virtio_net_hdr`, 10 bytes, in the
/// byte order of the machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VnetHeader {
    gso_type: u8,
    gso_size: u16,
    csum_start: u16,
}

impl VnetHeader {
    pub(crate) const LEN: usize = 10;

    /// Splits what was read from a tap into the header and the frame.
    pub(crate) fn split(data: &[u8]) -> Option<(Self, &[u8])> {
        let (header, frame) = data.split_at_checked(Self::LEN)?;
        let field = |at| bytes(header, at).map(u16::from_ne_bytes);
        Some((Self { gso_type: header[1], gso_size: field(4)?, csum_start: field(6)? }, frame))
    }

    pub(crate) const fn is_super_packet(self) -> bool {
        self.gso_type != 0
    }

    /// Returns how many frames a frame with this header is on a wire, and their bytes; `None` where the kind of
    /// super-packet is unknown.
    pub(crate) fn on_the_wire(self, frame: &[u8]) -> Option<(u64, u64)> {
        const ECN: u8 = 0x80;
        let length = frame.len();
        let l4 = usize::from(self.csum_start);
        let header = match self.gso_type & !ECN {
            0 => return Some((1, u64::try_from(length).ok()?)),
            // TCP over IPv4 and over IPv6: the data offset counts words.
            1 | 4 => l4 + usize::from(bytes::<1>(frame, l4 + 12)?[0] >> 4) * 4,
            // UDP, each segment a datagram.
            5 => l4 + 8,
            _ => return None,
        };
        let payload = length.checked_sub(header)?;
        let mut frames = 0;
        let mut left = payload;
        let mut total = 0;
        while left > 0 {
            let segment = left.min(usize::from(self.gso_size).max(1));
            left -= segment;
            frames += 1;
            total += header + segment;
        }
        Some((frames, u64::try_from(total).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::{Encap, Mac, Tunnelled, UdpPorts, VnetHeader, stations, tunnelled};

    fn ports() -> UdpPorts {
        UdpPorts { vxlan: vec![4789], geneve: vec![6081] }
    }

    /// A frame from station 2 to station 1.
    fn ethernet(ethertype: &[u8], payload: &[u8]) -> Vec<u8> {
        [&Mac::local(1).0[..], &Mac::local(2).0, ethertype, payload].concat()
    }

    fn ipv4(protocol: u8, fragment: [u8; 2], payload: &[u8]) -> Vec<u8> {
        let head = [0x45, 0, 0, 0, 0, 0, fragment[0], fragment[1], 64, protocol, 0, 0];
        [&head[..], &[192, 0, 2, 1], &[192, 0, 2, 2], payload].concat()
    }

    fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
        let [high, low] = port.to_be_bytes();
        [&[0x12, 0x34, high, low, 0, 0, 0, 0][..], payload].concat()
    }

    #[test]
    fn vxlan_behind_two_tags_is_found_with_its_inner_bytes() {
        let inner = ethernet(&[0x08, 0x00], &[0; 46]);
        let vxlan = [&[0x08, 0, 0, 0, 0x01, 0x02, 0x03, 0][..], &inner].concat();
        let tags = [0x88, 0xa8, 0, 5, 0x81, 0x00, 0, 6, 0x08, 0x00];
        let frame = ethernet(&tags, &ipv4(17, [0, 0], &udp(4789, &vxlan)));
        let found = tunnelled(&frame, &ports()).unwrap();
        assert_eq!(found.key.vni, 0x01_02_03);
        assert_eq!(found.key.encap, Encap::Vxlan);
        assert_eq!(found.inner_bytes, 60);
        assert_eq!(found.stations, stations(&inner));
        for end in 0..frame.len() - inner.len() {
            assert_eq!(tunnelled(&frame[..end], &ports()), None, "{end} bytes");
        }
    }

    #[test]
    fn gre_with_checksum_key_and_sequence_is_walked() {
        let inner = ethernet(&[0x08, 0x00], &[0; 46]);
        let gre = [&[0xb0, 0, 0x65, 0x58][..], &[0; 4], &[0, 0, 1, 0], &[0; 4], &inner].concat();
        let frame = ethernet(&[0x08, 0x00], &ipv4(47, [0, 0], &gre));
        let found = tunnelled(&frame, &ports()).unwrap();
        assert_eq!((found.key.encap, found.key.vni, found.inner_bytes), (Encap::Gre, 256, 60));
    }

    #[test]
    fn geneve_options_are_not_inner_bytes() {
        let inner = ethernet(&[0x08, 0x00], &[0; 46]);
        let geneve = [&[2, 0, 0x65, 0x58, 0, 0, 9, 0][..], &[0; 8], &inner].concat();
        let frame = ethernet(&[0x08, 0x00], &ipv4(17, [0, 0], &udp(6081, &geneve)));
        let found = tunnelled(&frame, &ports()).unwrap();
        assert_eq!((found.key.encap, found.key.vni, found.inner_bytes), (Encap::Geneve, 9, 60));
    }

    #[test]
    fn later_fragment_and_other_ports_are_no_tunnel() {
        let vxlan = [&[0x08, 0, 0, 0, 0, 0, 7, 0][..], &[0; 60]].concat();
        let none: Option<Tunnelled> = None;
        let later = ethernet(&[0x08, 0x00], &ipv4(17, [0, 1], &udp(4789, &vxlan)));
        assert_eq!(tunnelled(&later, &ports()), none);
        let other = ethernet(&[0x08, 0x00], &ipv4(17, [0, 0], &udp(4790, &vxlan)));
        assert_eq!(tunnelled(&other, &ports()), none);
    }

    #[test]
    fn super_packet_is_as_many_frames_as_its_payload_needs() {
        let tcp = [&[0; 12][..], &[0x80, 0, 0, 0, 0, 0, 0, 0], &[0; 12], &[1; 3000]].concat();
        let frame = ethernet(&[0x08, 0x00], &ipv4(6, [0, 0], &tcp));
        let mut data = vec![1, 1];
        for field in [66_u16, 1448, 34, 16] {
            data.extend(field.to_ne_bytes());
        }
        data.extend(&frame);
        let (header, rest) = VnetHeader::split(&data).unwrap();
        assert!(header.is_super_packet());
        assert_eq!(rest.len(), 3066);
        assert_eq!(header.on_the_wire(rest), Some((3, 3 * 66 + 3000)));
    }
}

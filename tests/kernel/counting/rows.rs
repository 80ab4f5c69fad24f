//! The table of frames, and frames from a seed.
#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

use meter_ebpf::abi::{Bucket, Encap, Fault};

use super::{
    super::support::frames::{
        CHECKSUM, GRE, IPV4, IPV6, KEY, SEQUENCE, TCP, TEB, UDP, ethernet, extension, fragment_header,
        geneve, gre, ipv4, ipv4_with, ipv6, tcp, udp, vxlan,
    },
    Case, Row, length, row,
};

const VLAN: (u16, u16) = (0x8100, 5);
const QINQ: (u16, u16) = (0x88a8, 6);
const VXLAN: u16 = 4789;

/// A frame inside a tunnel, of 78 bytes.
fn inner() -> Vec<u8> {
    ethernet(&[], IPV4, &ipv4(UDP, &udp(53, &[0; 36])))
}

/// A frame of one IPv4 packet.
fn v4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    ethernet(&[], IPV4, &ipv4(protocol, payload))
}

/// A frame of one IPv6 packet.
fn v6(protocol: u8, payload: &[u8]) -> Vec<u8> {
    ethernet(&[], IPV6, &ipv6(protocol, payload))
}

/// Frames that are one frame on the wire.
pub(super) fn frames() -> Vec<Row> {
    [plain(), vxlans(), geneves(), gres(), fragments()].concat()
}

fn plain() -> Vec<Row> {
    let tags = |tags: &[(u16, u16)]| ethernet(tags, IPV4, &ipv4(TCP, &tcp(12, &[0; 100])));
    vec![
        row("TCP over IPv4", v4(TCP, &tcp(12, &[0; 100]))),
        row("UDP over IPv6", v6(UDP, &udp(53, &[0; 100]))),
        row("ARP", ethernet(&[], 0x0806, &[0; 46])),
        row("802.3 with a length", ethernet(&[], 38, &[0; 46])),
        row("one tag", tags(&[VLAN])),
        row("two tags", tags(&[QINQ, VLAN])),
        row("three tags", tags(&[QINQ, VLAN, VLAN])),
        row("four tags", tags(&[QINQ, VLAN, VLAN, VLAN])).bucket(Bucket::TooManyHeaders),
        row("IPv4 ethertype, version 6", ethernet(&[], IPV4, &ipv6(UDP, &vxlan(VXLAN, 7, &inner())))),
        row("another UDP port", v4(UDP, &vxlan(4790, 7, &inner()))),
        row("largest for a page", v4(UDP, &udp(53, &[0; 2_500]))),
    ]
}

fn vxlans() -> Vec<Row> {
    let inner = inner();
    let bytes = length(&inner);
    let vxlan4 = |name, frame| row(name, frame).tunnel(Encap::Vxlan, false, 7, bytes);
    let vxlan6 = |name, frame| row(name, frame).tunnel(Encap::Vxlan, true, 7, bytes);
    let packet = ipv4(UDP, &vxlan(VXLAN, 7, &inner));
    let tagged = ethernet(&[QINQ, VLAN], IPV4, &ipv4(UDP, &udp(53, &[0; 36])));
    let mut without_vni = v4(UDP, &vxlan(VXLAN, 7, &inner));
    without_vni[42] = 0;
    let mut six_headers = vxlan(VXLAN, 7, &inner);
    let mut next = UDP;
    for _ in 0..6 {
        six_headers = extension(next, &six_headers);
        next = 60;
    }
    let seven_headers = extension(next, &six_headers);
    vec![
        vxlan4("VXLAN to 4789", v4(UDP, &vxlan(4789, 7, &inner))),
        vxlan4("VXLAN to 8472", v4(UDP, &vxlan(8472, 7, &inner))),
        vxlan4("VXLAN to 6677", v4(UDP, &vxlan(6677, 7, &inner))),
        vxlan6("VXLAN over IPv6 to 4789", v6(UDP, &vxlan(4789, 7, &inner))),
        vxlan6("VXLAN over IPv6 to 8472", v6(UDP, &vxlan(8472, 7, &inner))),
        vxlan6("VXLAN over IPv6 to 6677", v6(UDP, &vxlan(6677, 7, &inner))),
        row("largest VNI", v4(UDP, &vxlan(VXLAN, 0xff_ffff, &inner))).tunnel(
            Encap::Vxlan,
            false,
            0xff_ffff,
            bytes,
        ),
        vxlan4(
            "VXLAN behind IP options",
            ethernet(&[], IPV4, &ipv4_with(&[1; 8], 0, UDP, &vxlan(VXLAN, 7, &inner))),
        ),
        vxlan6("VXLAN behind an extension header", v6(0, &extension(UDP, &vxlan(VXLAN, 7, &inner)))),
        vxlan6("VXLAN behind six extension headers", v6(60, &six_headers)),
        row("VXLAN behind seven extension headers", v6(60, &seven_headers)).bucket(Bucket::TooManyHeaders),
        vxlan4("VXLAN behind a tag", ethernet(&[VLAN], IPV4, &packet)),
        vxlan4("VXLAN behind two tags", ethernet(&[QINQ, VLAN], IPV4, &packet)),
        vxlan6("VXLAN over IPv6 behind a tag", ethernet(&[VLAN], IPV6, &ipv6(UDP, &vxlan(VXLAN, 7, &inner)))),
        row("tags inside VXLAN", v4(UDP, &vxlan(VXLAN, 7, &tagged))).tunnel(
            Encap::Vxlan,
            false,
            7,
            length(&tagged),
        ),
        row("VXLAN with nothing inside", v4(UDP, &vxlan(VXLAN, 7, &[]))).tunnel(Encap::Vxlan, false, 7, 0),
        row("VXLAN without the I flag", without_vni).bucket(Bucket::BadTunnelHeader),
    ]
}

fn geneves() -> Vec<Row> {
    let inner = inner();
    let geneve_row = |name, six, frame| row(name, frame).tunnel(Encap::Geneve, six, 9, length(&inner));
    let bare = ipv4(UDP, &udp(53, &[0; 36]));
    let mut version_1 = v4(UDP, &geneve(9, 0, TEB, &inner));
    version_1[42] = 0x40;
    vec![
        geneve_row("GENEVE", false, v4(UDP, &geneve(9, 0, TEB, &inner))),
        geneve_row("GENEVE with options", false, v4(UDP, &geneve(9, 3, TEB, &inner))),
        geneve_row("GENEVE with all options", false, v4(UDP, &geneve(9, 63, TEB, &inner))),
        geneve_row("GENEVE over IPv6 with options", true, v6(UDP, &geneve(9, 2, TEB, &inner))),
        row("IP inside GENEVE", v4(UDP, &geneve(9, 0, IPV4, &bare))).tunnel(
            Encap::Geneve,
            false,
            9,
            length(&bare),
        ),
        row("GENEVE of version 1", version_1).bucket(Bucket::BadTunnelHeader),
    ]
}

fn gres() -> Vec<Row> {
    let inner = inner();
    let gre_row = |name, vni, frame| row(name, frame).tunnel(Encap::Gre, false, vni, length(&inner));
    let key = 0x1234_5678;
    let mut version_1 = v4(GRE, &gre(KEY, key, 0x880b, &[0; 40]));
    version_1[35] = 1;
    let bare = ipv4(UDP, &udp(53, &[]));
    let mut padded = v4(GRE, &gre(0, 0, IPV4, &bare[..20]));
    padded.resize(60, 0);
    vec![
        gre_row("GRE", 0, v4(GRE, &gre(0, 0, TEB, &inner))),
        gre_row("GRE with a key", key, v4(GRE, &gre(KEY, key, TEB, &inner))),
        gre_row("GRE with a checksum", 0, v4(GRE, &gre(CHECKSUM, 0, TEB, &inner))),
        gre_row("GRE with a sequence number", 0, v4(GRE, &gre(SEQUENCE, 0, TEB, &inner))),
        gre_row("GRE with everything", key, v4(GRE, &gre(CHECKSUM | KEY | SEQUENCE, key, TEB, &inner))),
        row("GRE over IPv6 with a key", v6(GRE, &gre(KEY, key, TEB, &inner))).tunnel(
            Encap::Gre,
            true,
            key,
            length(&inner),
        ),
        row("IP inside GRE", v4(GRE, &gre(KEY, key, IPV4, &bare))).tunnel(
            Encap::Gre,
            false,
            key,
            length(&bare),
        ),
        row("GRE with padding behind it", padded).tunnel(Encap::Gre, false, 0, 20),
        row("GRE of version 1", version_1).bucket(Bucket::UnknownEncapsulation),
        row("GRE with a route", v4(GRE, &gre(0x40, 0, TEB, &inner))).bucket(Bucket::UnknownEncapsulation),
    ]
}

fn fragments() -> Vec<Row> {
    let inner = inner();
    let packet = vxlan(VXLAN, 7, &inner);
    let first4 = ethernet(&[], IPV4, &ipv4_with(&[], 0x2000, UDP, &packet[..48]));
    let later4 = ethernet(&[], IPV4, &ipv4_with(&[], 6, UDP, &packet[48..]));
    let middle4 = ethernet(&[], IPV4, &ipv4_with(&[], 0x2006, UDP, &packet[48..]));
    let later_tcp = ethernet(&[], IPV4, &ipv4_with(&[], 6, TCP, &[0; 48]));
    let first6 = v6(44, &fragment_header(UDP, 1, &packet[..48]));
    let later6 = v6(44, &fragment_header(UDP, 48, &packet[48..]));
    let atomic = v6(44, &fragment_header(UDP, 0, &packet));
    vec![
        // The inner frame counts whole with the first fragment, and later ones count for no tunnel.
        row("first fragment", first4).tunnel(Encap::Vxlan, false, 7, length(&inner)),
        row("middle fragment", middle4).bucket(Bucket::OuterFragment),
        row("last fragment", later4).bucket(Bucket::OuterFragment),
        row("later fragment of TCP", later_tcp),
        row("first fragment of IPv6", first6).tunnel(Encap::Vxlan, true, 7, length(&inner)),
        row("last fragment of IPv6", later6).bucket(Bucket::OuterFragment),
        row("atomic fragment of IPv6", atomic).tunnel(Encap::Vxlan, true, 7, length(&inner)),
    ]
}

/// Frames that stand for several.
pub(super) fn super_packets() -> Vec<Row> {
    let stream = tcp(12, &[0; 2_500]);
    let plain4 = v4(TCP, &stream);
    let plain6 = v6(TCP, &stream);
    let tagged = ethernet(&[QINQ, VLAN], IPV4, &ipv4(TCP, &stream));
    let datagrams = v4(UDP, &udp(53, &[0; 2_500]));
    let options = ethernet(&[], IPV4, &ipv4_with(&[1; 4], 0, TCP, &stream));
    // IPv6's length is 0 when the packet has more than 64 KiB, and a hop-by-hop header says how many.
    let mut big = v6(0, &[&[TCP, 0, 0xc2, 4, 0, 1, 0, 0][..], &stream].concat());
    big[18..20].copy_from_slice(&[0, 0]);
    let no_segments = v4(132, &[0; 500]);
    let mut rows = vec![
        row("TCP over IPv4", plain4.clone()).gso(1_000, 3, 3, 66),
        row("TCP over IPv4 of a guest", plain4.clone()).gso(1_000, 0, 3, 66),
        row("TCP over IPv6", plain6.clone()).gso(1_000, 3, 3, 86),
        row("TCP over IPv6 of a guest", plain6).gso(1_000, 0, 3, 86),
        row("TCP behind IP options", options).gso(1_000, 0, 3, 70),
        row("TCP behind two tags", tagged).gso(1_000, 0, 3, 74),
        row("whole segments only", v4(TCP, &tcp(12, &[0; 2_000]))).gso(1_000, 0, 2, 66),
        row("one segment", v4(TCP, &tcp(12, &[0; 700]))).gso(1_000, 0, 1, 66),
        row("TCP without payload", v4(TCP, &tcp(12, &[]))).gso(1_000, 0, 1, 66),
        row("UDP", datagrams.clone()).gso(500, 5, 5, 42),
        row("UDP of a guest", datagrams).gso(400, 0, 7, 42),
        row("UDP over IPv6", v6(UDP, &udp(53, &[0; 2_500]))).gso(500, 0, 5, 62),
        row("unknown protocol", v4(50, &[0; 500])).fault(100, 5, Fault::GsoUnknownProtocol),
        row("unknown ethertype", ethernet(&[], 0x88f7, &[0; 500])).fault(100, 5, Fault::GsoUnknownProtocol),
        row("four tags", ethernet(&[VLAN; 4], IPV4, &ipv4(TCP, &stream)))
            .bucket(Bucket::TooManyHeaders)
            .fault(100, 0, Fault::GsoTooManyHeaders),
        row("segments of their own lengths", no_segments).fault(0xffff, 0, Fault::GsoNoSegments),
    ];
    let mut jumbo = row("BIG TCP", big).gso(1_000, 3, 3, 86);
    // Its hop-by-hop header is on no wire.
    jumbo.wire.bytes -= 8;
    rows.push(jumbo);
    rows.extend(tunnelled());
    rows
}

fn tunnelled() -> Vec<Row> {
    let stream = tcp(12, &[0; 2_500]);
    let (inner4, inner6) = (v4(TCP, &stream), v6(TCP, &stream));
    // Three frames inside: the inner headers repeat, and so do the outer ones.
    let inner_bytes = |inner: &[u8], header: u64| length(inner) + 2 * header;
    let tagged = ethernet(&[VLAN], IPV4, &ipv4(TCP, &stream));
    let gso = |row: Row, header| row.gso(1_000, 0, 3, header);
    // Datagrams of VXLAN, merged: each frame has its own inner headers in the payload.
    let one = vxlan(VXLAN, 7, &v4(UDP, &udp(53, &[0; 100])));
    let two = [&one[8..], &one[8..]].concat();
    let merged = v4(UDP, &udp(VXLAN, &two));
    let segment = u32::try_from(one.len() - 8).unwrap();
    vec![
        gso(row("TCP in VXLAN", v4(UDP, &vxlan(VXLAN, 7, &inner4))), 50 + 66).tunnel(
            Encap::Vxlan,
            false,
            7,
            inner_bytes(&inner4, 66),
        ),
        gso(row("TCP over IPv6 in VXLAN", v4(UDP, &vxlan(VXLAN, 7, &inner6))), 50 + 86).tunnel(
            Encap::Vxlan,
            false,
            7,
            inner_bytes(&inner6, 86),
        ),
        gso(row("TCP in VXLAN over IPv6", v6(UDP, &vxlan(VXLAN, 7, &inner4))), 70 + 66).tunnel(
            Encap::Vxlan,
            true,
            7,
            inner_bytes(&inner4, 66),
        ),
        gso(row("TCP over IPv6 in VXLAN over IPv6", v6(UDP, &vxlan(VXLAN, 7, &inner6))), 70 + 86).tunnel(
            Encap::Vxlan,
            true,
            7,
            inner_bytes(&inner6, 86),
        ),
        gso(row("TCP behind a tag in VXLAN", v4(UDP, &vxlan(VXLAN, 7, &tagged))), 50 + 70).tunnel(
            Encap::Vxlan,
            false,
            7,
            inner_bytes(&tagged, 70),
        ),
        gso(row("TCP in GENEVE", v4(UDP, &geneve(7, 2, TEB, &inner4))), 58 + 66).tunnel(
            Encap::Geneve,
            false,
            7,
            inner_bytes(&inner4, 66),
        ),
        gso(row("TCP in GRE", v4(GRE, &gre(KEY, 7, TEB, &inner4))), 42 + 66).tunnel(
            Encap::Gre,
            false,
            7,
            inner_bytes(&inner4, 66),
        ),
        row("VXLAN packets that were merged", merged).gso(segment, 2, 2, 42).tunnel(
            Encap::Vxlan,
            false,
            7,
            2 * (100 + 42),
        ),
    ]
}

/// GRE with keys where they are NVGRE's.
pub(super) fn nvgre() -> Vec<Row> {
    let inner = inner();
    let bare = ipv4(UDP, &udp(53, &[0; 36]));
    vec![
        row("NVGRE", v4(GRE, &gre(KEY, 0x0001_02ff, TEB, &inner))).tunnel(
            Encap::Gre,
            false,
            0x0102,
            length(&inner),
        ),
        row("NVGRE behind a tag", ethernet(&[VLAN], IPV4, &ipv4(GRE, &gre(KEY, 0x0001_02ff, TEB, &inner))))
            .tunnel(Encap::Gre, false, 0x0102, length(&inner)),
        row("no Ethernet inside", v4(GRE, &gre(KEY, 0x0102_03ff, IPV4, &bare))).tunnel(
            Encap::Gre,
            false,
            0x0102_03ff,
            length(&bare),
        ),
        row("no key", v4(GRE, &gre(0, 0, TEB, &inner))).tunnel(Encap::Gre, false, 0, length(&inner)),
    ]
}

/// Numbers from a seed (xorshift64*).
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns a number below `bound`.
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).unwrap() % bound
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap()
    }
}

/// Returns a frame of the table with bytes changed, cut or none of it, or one of bytes without a sense.
pub(super) fn random_case(random: &mut Random) -> Case {
    let table = if random.below(2) == 0 { frames() } else { super_packets() };
    let mut frame = table[random.below(table.len())].frame.clone();
    match random.below(8) {
        0 => frame = (0..15 + random.below(120)).map(|_| random.byte()).collect(),
        1 => frame.truncate(15 + random.below(frame.len() - 15)),
        _ => {
            // Headers lie in the first 120 bytes.
            for _ in 0..random.below(4) {
                let at = 12 + random.below(frame.len().min(120) - 12);
                frame[at] =
                    if random.below(2) == 0 { random.byte() } else { frame[at] ^ 1 << random.below(8) };
            }
        }
    }
    let sizes = [1, 100, 536, 1_448, 0xffff];
    let gso = match random.below(3) {
        0 => Some((u32::try_from(sizes[random.below(5)]).unwrap(), u32::try_from(random.below(4)).unwrap())),
        _ => None,
    };
    Case { frame, gso }
}

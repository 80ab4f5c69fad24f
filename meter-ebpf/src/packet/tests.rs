use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest},
};

use super::{
    gso::{self, GsoHeader},
    tunnel::{FoundV4, Inner, Tunnel, TunnelV4, outer, outer_fast, outer_fast_v4},
};
use crate::abi::{Address, Bucket, Encap, Fault, Settings};

const SETTINGS: Settings = Settings { nvgre: 1, ..Settings::DEFAULT };

const OUTER: [u8; 8] = [192, 0, 2, 1, 192, 0, 2, 2];

fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2], &ethertype.to_be_bytes()[..], payload].concat()
}

fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    [&[0x45, 0, high, low, 0, 0, 0, 0, 64, protocol, 0, 0], &OUTER[..], payload].concat()
}

fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&[0x60, 0, 0, 0, high, low, next, 64], &[0x20; 32][..], payload].concat()
}

fn tcp(payload: usize) -> Vec<u8> {
    let mut segment = vec![0; 20 + payload];
    segment[12] = 0x50;
    segment
}

fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    [&[0x80, 0], &port.to_be_bytes()[..], &[0; 4], payload].concat()
}

fn vxlan(port: u16, vni: u32, inner: &[u8]) -> Vec<u8> {
    udp(port, &[&[8, 0, 0, 0], &(vni << 8).to_be_bytes()[..], inner].concat())
}

fn geneve(options: u8, vni: u32, inner: &[u8]) -> Vec<u8> {
    let header = [&[options, 0, 0x65, 0x58], &(vni << 8).to_be_bytes()[..]].concat();
    udp(6081, &[header, vec![0; usize::from(options) * 4], inner.to_vec()].concat())
}

fn gre(key: u32, inner: &[u8]) -> Vec<u8> {
    [&[0x20, 0, 0x65, 0x58], &key.to_be_bytes()[..], inner].concat()
}

/// Frames of every kind that a path knows, with what may stand where a length or a flag does.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let inner = prop_oneof![
        (0..64_usize).prop_map(|size| ethernet(0x0800, &ipv4(6, &tcp(size)))),
        (0..64_usize).prop_map(|size| ethernet(0x86dd, &ipv6(6, &tcp(size)))),
        vec(any::<u8>(), 0..64),
    ];
    let ports = prop_oneof![Just(4789_u16), Just(8472), Just(6677), Just(53)];
    let l4 = (inner, ports, any::<u32>(), 0..6_u8).prop_flat_map(|(inner, port, vni, options)| {
        prop_oneof![
            Just((17, vxlan(port, vni & 0xff_ffff, &inner))),
            Just((17, geneve(options, vni & 0xff_ffff, &inner))),
            Just((47, gre(vni, &inner))),
            Just((6, tcp(inner.len()))),
        ]
    });
    (l4, any::<bool>(), 0..20_usize).prop_map(|((protocol, l4), six, padding)| {
        let mut frame =
            if six { ethernet(0x86dd, &ipv6(protocol, &l4)) } else { ethernet(0x0800, &ipv4(protocol, &l4)) };
        frame.extend(vec![0; padding]);
        frame
    })
}

/// The same with a few bytes overwritten, and cut off anywhere.
fn hostile_frames() -> impl Strategy<Value = Vec<u8>> {
    (frames(), vec((any::<usize>(), any::<u8>()), 0..4), any::<usize>()).prop_map(
        |(mut frame, changes, cut)| {
            for (at, byte) in changes {
                let at = at % frame.len();
                frame[at] = byte;
            }
            // Every other frame is whole.
            if cut % 2 == 0 {
                frame.truncate(cut / 2 % (frame.len() + 1));
            }
            frame
        },
    )
}

/// Does nothing with a tunnel.
struct Keep;

impl FoundV4 for Keep {
    type Output = TunnelV4;

    fn found(&self, tunnel: TunnelV4) -> TunnelV4 {
        tunnel
    }
}

fn length(frame: &[u8]) -> u32 {
    u32::try_from(frame.len()).unwrap()
}

proptest! {
    #[test]
    fn fast_paths_answer_as_the_walk_does(frame in hostile_frames(), gso in any::<bool>()) {
        let frame = frame.as_slice();
        let walked = outer(frame, &SETTINGS, gso);
        if let Some(fast) = outer_fast(frame, &SETTINGS, gso) {
            prop_assert_eq!(fast, walked);
        }
        if let Some(fast) = outer_fast_v4(frame, &SETTINGS, &Keep) {
            prop_assert_eq!(fast.map(Tunnel::from), outer(frame, &SETTINGS, false));
        }
        if let Some(fast) = gso::header_fast(frame) {
            prop_assert_eq!(Ok(fast), gso::header(frame, &SETTINGS));
        }
    }

    /// No frame makes a walk read past it (a slice would panic), and what it finds lies inside.
    #[test]
    fn nothing_lies_outside_the_frame(
        frame in prop_oneof![hostile_frames(), vec(any::<u8>(), 0..200)],
        gso in any::<bool>(),
    ) {
        let frame = frame.as_slice();
        if let Ok(tunnel) = outer(frame, &SETTINGS, gso) {
            prop_assert!(tunnel.inner.offset + tunnel.inner.trailer <= length(frame));
        }
        if let Ok(header) = gso::header(frame, &SETTINGS) {
            prop_assert!(header.removed <= header.length);
        }
    }

    /// What the segments of a super-packet weigh on the wire, cut one by one.
    #[test]
    fn super_packet_is_the_sum_of_its_segments(
        payload in 0..70_000_u32,
        header in 54..120_u32,
        size in 1..1500_u32,
        known in any::<bool>(),
    ) {
        let (mut segments, mut bytes, mut left) = (0_u32, 0_u64, payload);
        while segments == 0 || left > 0 {
            let part = left.min(size);
            segments += 1;
            bytes += u64::from(header + part);
            left -= part;
        }
        let length = header + payload;
        let header = GsoHeader { length: header, removed: 0 };
        let extra = gso::extra(length, header, size, if known { segments } else { 0 }).unwrap();
        prop_assert_eq!(extra.packets + 1, u64::from(segments));
        prop_assert_eq!(extra.bytes + u64::from(length), bytes);
    }
}

#[test]
fn vxlan_is_found_in_each_way_of_looking() {
    let inner = ethernet(0x0800, &ipv4(6, &tcp(10)));
    let frame = ethernet(0x0800, &ipv4(17, &vxlan(4789, 7, &inner)));
    let frame = frame.as_slice();
    let [a, b, c, d, e, f, g, h] = OUTER;
    let tunnel = Tunnel {
        src: Address::v4(u32::from_ne_bytes([a, b, c, d])),
        dst: Address::v4(u32::from_ne_bytes([e, f, g, h])),
        vni: 7,
        encap: Encap::Vxlan,
        inner: Inner { offset: 50, trailer: 0, fragmented: 0 },
    };
    assert_eq!(outer(frame, &SETTINGS, false), Ok(tunnel));
    assert_eq!(outer_fast(frame, &SETTINGS, false), Some(Ok(tunnel)));
    assert_eq!(outer_fast_v4(frame, &SETTINGS, &Keep).map(|fast| fast.map(Tunnel::from)), Some(Ok(tunnel)));
    let header = GsoHeader { length: 50 + 54, removed: 0 };
    assert_eq!(gso::header(frame, &SETTINGS), Ok(header));
}

#[test]
fn what_cannot_be_followed_has_its_reason() {
    let inner = ethernet(0x0800, &ipv4(6, &tcp(10)));
    let mut no_vni = ethernet(0x0800, &ipv4(17, &vxlan(4789, 7, &inner)));
    no_vni[42] = 0;
    let mut later = ethernet(0x0800, &ipv4(17, &vxlan(4789, 7, &inner)));
    later[21] = 1;
    for (frame, expected) in [
        (ethernet(0x0806, &[0; 28]), Bucket::Plain),
        (ethernet(0x0800, &ipv4(6, &tcp(0))), Bucket::Plain),
        (no_vni, Bucket::BadTunnelHeader),
        (later, Bucket::OuterFragment),
        (ethernet(0x0800, &ipv4(17, &[0, 0])), Bucket::TruncatedHeader),
        (Vec::new(), Bucket::TruncatedHeader),
    ] {
        assert_eq!(outer(frame.as_slice(), &SETTINGS, false), Err(expected), "{frame:02x?}");
    }
    let unknown = ethernet(0x0800, &ipv4(99, &[0; 40]));
    assert_eq!(gso::header(unknown.as_slice(), &SETTINGS), Err(Fault::GsoUnknownProtocol));
    let empty: &[u8] = &[];
    assert_eq!(gso::header(empty, &SETTINGS), Err(Fault::GsoTruncated));
    let header = GsoHeader { length: 60, removed: 0 };
    assert_eq!(gso::extra(59, header, 1000, 0), Err(Fault::GsoTruncated));
    assert_eq!(gso::extra(60, header, 0, 0), Err(Fault::GsoNoSegments));
}

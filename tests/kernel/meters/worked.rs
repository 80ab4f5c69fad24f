//! The worked examples of MidoNet's manuals, each rule of a chain with a meter of its own, through the real programs.
//!
//! A meter counts what its rule's condition matches, whatever an earlier rule of the chain would have done to the packet.

use meter_agent::rules::Direction;

use super::{World, meters};
use crate::support::{
    frames::{IPV4, TCP, UDP, ethernet, ipv4_with, tcp, udp},
    ready,
};

/// Runs frames into the first port, one of each after the other; returns which meters count each.
fn counted<const N: usize>(label: &str, lines: &[(&str, &str)], frames: [Vec<u8>; N]) -> [Vec<String>; N] {
    let mut counted = [const { Vec::new() }; N];
    World::with(label, |world| {
        world.meter.set_meters(&meters(lines));
        for (frame, counted) in frames.iter().zip(&mut counted) {
            let before = world.meter.meters();
            world.run(frame, Direction::Rx, None, 0);
            let bytes = u64::try_from(frame.len()).unwrap();
            for (name, after) in world.meter.meters() {
                let [packets, of_bytes] = before[&name];
                if after != before[&name] {
                    assert_eq!(after, [packets + 1, of_bytes + bytes], "{name}");
                    counted.push(name);
                }
            }
        }
    });
    counted
}

/// An IPv4 packet of UDP between these addresses.
fn between(src: [u8; 4], dst: [u8; 4]) -> Vec<u8> {
    let mut frame = ethernet(&[], IPV4, &ipv4_with(&[], 0, UDP, &udp(9, &[1; 8])));
    frame[26..30].copy_from_slice(&src);
    frame[30..34].copy_from_slice(&dst);
    frame
}

#[test]
fn chapter_7_example_1_inverted_source_then_destination() {
    if !ready() {
        return;
    }
    let lines = [
        ("drop", "ethertype 2048 src !10.0.0.0/16 pos 1 type drop"),
        ("accept", "dst 10.0.5.0/24 pos 2 type accept"),
        ("last", "pos 3 type drop"),
    ];
    let six = ethernet(&[], 0x86dd, &crate::support::frames::ipv6(UDP, &udp(9, &[])));
    let frames = [
        between([10, 1, 0, 1], [10, 0, 5, 1]),
        between([10, 0, 0, 1], [10, 0, 5, 1]),
        between([10, 0, 0, 1], [10, 0, 6, 1]),
        six,
    ];
    let expected = [&["accept", "drop", "last"][..], &["accept", "last"], &["last"], &["last"]];
    assert_eq!(counted("worked1", &lines, frames), expected);
}

#[test]
fn chapter_7_example_2_two_accepts_and_a_drop_of_ipv4() {
    if !ready() {
        return;
    }
    let lines = [
        ("first", "ethertype 2048 src 10.0.0.0/16 proto 0 tos 0 fragment-policy any pos 1 type accept"),
        ("second", "ethertype 2048 dst 10.0.5.0/24 proto 0 tos 0 fragment-policy any pos 2 type accept"),
        ("third", "ethertype 2048 proto 0 tos 0 fragment-policy any pos 3 type drop"),
    ];
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend([0, 0, 0, 0, 0, 1, 10, 0, 1, 2, 0, 0, 0, 0, 0, 2, 10, 0, 1, 3]);
    let frames = [
        between([10, 0, 1, 2], [8, 8, 8, 8]),
        between([8, 8, 8, 8], [10, 0, 5, 7]),
        between([8, 8, 8, 8], [10, 0, 6, 7]),
        ethernet(&[], 0x0806, &arp),
    ];
    let expected = [&["first", "third"][..], &["second", "third"], &["third"], &[]];
    assert_eq!(counted("worked2", &lines, frames), expected);
}

#[test]
fn chapter_11_vendors_and_multicast_but_not_broadcast() {
    if !ready() {
        return;
    }
    let lines = [
        ("vendor", "hw-src !12:34:56:78:90:ab hw-src-mask ffff.ff00.0000 type drop"),
        ("broadcast", "hw-dst ff:ff:ff:ff:ff:ff type accept"),
        ("multicast", "hw-dst 01:00:00:00:00:00 hw-dst-mask 0100.0000.0000 type drop"),
    ];
    let frame = |src: [u8; 6], dst: [u8; 6]| [&dst[..], &src, &[0x88, 0xb5], &[0; 50]].concat();
    let (own, other) = ([0x12, 0x34, 0x56, 0, 0, 1], [0x12, 0x34, 0x57, 0x78, 0x90, 0xab]);
    let frames = [
        frame(own, [0xff; 6]),
        frame(own, [1, 0, 0x5e, 0, 0, 1]),
        frame(own, [0x52, 0x54, 0, 0, 0, 1]),
        frame(other, [0x52, 0x54, 0, 0, 0, 1]),
    ];
    let expected = [&["broadcast", "multicast"][..], &["multicast"], &[], &["vendor"]];
    assert_eq!(counted("worked3", &lines, frames), expected);
}

#[test]
fn chapter_12_four_packets_and_their_fragments() {
    if !ready() {
        return;
    }
    let lines = [
        ("web", "proto 6 dst-port 80 pos 1 type accept"),
        ("header", "fragment-policy header pos 2 type drop"),
        ("any", "fragment-policy any pos 3 type accept"),
    ];
    let mut web = tcp(0, &[1; 20]);
    web[2..4].copy_from_slice(&80_u16.to_be_bytes());
    let frame = |fragment: u16, proto: u8, payload: &[u8]| {
        ethernet(&[], IPV4, &ipv4_with(&[], fragment, proto, payload))
    };
    let frames = [
        frame(0, TCP, &web),
        frame(0x2000, TCP, &web),
        // Its first bytes look like a header with port 80, and are none.
        frame(3, TCP, &web),
        frame(0, TCP, &tcp(0, &[])),
        frame(0x2000, UDP, &udp(80, &[])),
    ];
    let expected = [
        &["any", "header", "web"][..],
        &["any", "header", "web"],
        &["any"],
        &["any", "header"],
        &["any", "header"],
    ];
    assert_eq!(counted("worked4", &lines, frames), expected);
}

#[test]
fn chapter_14_meter_of_a_traversed_device() {
    if !ready() {
        return;
    }
    // The device of the second port.
    let line = "rule rule0 proto 0 tos 0 traversed-device 00000000-0000-0000-0000-000000000004 \
                fragment-policy any pos 1 type accept meter my-meter";
    World::with("worked5", |world| {
        world.meter.set_meters(&meters(&[("my-meter", line)]));
        let frame = between([10, 0, 0, 1], [10, 0, 0, 2]);
        let bytes = u64::try_from(frame.len()).unwrap();
        for (own, packets) in [(0, 0), (1, 1), (2, 1), (1, 2)] {
            world.run(&frame, Direction::Rx, None, own);
            assert_eq!(world.meter.meters()["my-meter"], [packets, packets * bytes], "{own}");
        }
        // Where it goes out it has been counted.
        world.run(&frame, Direction::Tx, Some(1), 0);
        assert_eq!(world.meter.meters()["my-meter"], [2, 2 * bytes]);
    });
}

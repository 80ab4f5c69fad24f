//! Fields from bytes: what each kind of frame has, and what it lacks.

use super::*;

const MACS: [u8; 12] = [0x52, 0x54, 0, 0, 0, 1, 0x52, 0x54, 0, 0, 0, 2];
/// The words of those addresses.
const HW: &str = "hw-src 52:54:00:00:00:02 hw-dst 52:54:00:00:00:01";

fn frame(parts: &[&[u8]]) -> Vec<u8> {
    [MACS.as_slice(), &parts.concat()].concat()
}

/// An IPv4 header of 20 bytes, from 10.0.0.1 to 10.0.0.2.
fn ipv4(protocol: u8, tos: u8, fragment: u16) -> Vec<u8> {
    let [high, low] = fragment.to_be_bytes();
    vec![0x45, tos, 0, 40, 0, 1, high, low, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]
}

/// An IPv6 header, from 2001:db8::1 to 2001:db8::2, of traffic class 0xb8.
fn ipv6(next_header: u8) -> Vec<u8> {
    let mut header = vec![0x6b, 0x80, 0, 0, 0, 40, next_header, 64];
    for last in [1, 2] {
        header.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    header
}

fn arp(operation: u16) -> Vec<u8> {
    let [high, low] = operation.to_be_bytes();
    let mut packet = vec![0, 1, 8, 0, 6, 4, high, low];
    packet.extend([2, 0, 0, 0, 0, 1, 10, 0, 0, 1]);
    packet.extend([0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
    packet
}

#[test]
fn frame_has_the_fields_of_its_headers_and_no_others() {
    let ports: &[u8] = &[0x9c, 0x40, 0, 80, 0, 0, 0, 0];
    let v4 = "src 10.0.0.1 dst 10.0.0.2";
    let v6 = "ethertype 34525 src 2001:db8::1 dst 2001:db8::2";
    for (bytes, words) in [
        (
            frame(&[&[8, 0], &ipv4(6, 0x28, 0x4000), ports]),
            format!("{HW} ethertype 2048 {v4} proto 6 tos 40 src-port 40000 dst-port 80"),
        ),
        (
            frame(&[&[0x81, 0, 0xa0, 7, 8, 0], &ipv4(17, 0, 0), ports]),
            format!("{HW} ethertype 2048 vlan 7 {v4} proto 17 tos 0 src-port 40000 dst-port 80"),
        ),
        (
            frame(&[&[0x88, 0xa8, 0, 9, 0x81, 0, 0, 7, 8, 0], &ipv4(132, 0, 0), ports]),
            format!("{HW} ethertype 2048 vlan 9 {v4} proto 132 tos 0 src-port 40000 dst-port 80"),
        ),
        (
            frame(&[&[8, 0], &ipv4(1, 0, 0), &[8, 0]]),
            format!("{HW} ethertype 2048 {v4} proto 1 tos 0 src-port 8 dst-port 0"),
        ),
        (frame(&[&[8, 0], &ipv4(47, 0, 0), ports]), format!("{HW} ethertype 2048 {v4} proto 47 tos 0")),
        (
            frame(&[&[8, 0], &ipv4(6, 0, 0x2000), ports]),
            format!("{HW} ethertype 2048 {v4} proto 6 tos 0 src-port 40000 dst-port 80 fragment first"),
        ),
        (
            frame(&[&[8, 0], &ipv4(6, 0, 1), ports]),
            format!("{HW} ethertype 2048 {v4} proto 6 tos 0 fragment later"),
        ),
        (
            frame(&[&[0x86, 0xdd], &ipv6(0), &[58, 0, 0, 0, 0, 0, 0, 0], &[135, 0]]),
            format!("{HW} {v6} proto 58 tos 184 src-port 135 dst-port 0"),
        ),
        (
            frame(&[&[0x86, 0xdd], &ipv6(44), &[17, 0, 0, 8, 0, 0, 0, 1], ports]),
            format!("{HW} {v6} proto 17 tos 184 fragment later"),
        ),
        (frame(&[&[8, 6], &arp(2)]), format!("{HW} ethertype 2054 {v4} proto 2")),
        (frame(&[&[8, 6], &arp(300)]), format!("{HW} ethertype 2054 {v4}")),
        (frame(&[&[8, 6], &[0, 6, 8, 0, 6, 4, 0, 1]]), format!("{HW} ethertype 2054")),
        // The frame ends, or is nothing that has more.
        (
            frame(&[&[8, 0], &ipv4(6, 0, 0), &[1, 2, 3]]),
            format!("{HW} ethertype 2048 {v4} proto 6 tos 0 src-port 258"),
        ),
        (frame(&[&[8, 0], &[0x45, 0, 0]]), format!("{HW} ethertype 2048")),
        (frame(&[&[8, 0], &ipv6(6)]), format!("{HW} ethertype 2048")),
        (frame(&[&[0x01, 0x00], &[0; 40]]), HW.to_owned()),
        (frame(&[&[0x81, 0, 0, 7]]), format!("{HW} vlan 7")),
        (MACS.to_vec(), HW.to_owned()),
        (MACS[..6].to_vec(), "hw-dst 52:54:00:00:00:01".to_owned()),
        (Vec::new(), String::new()),
    ] {
        let read = fields(&bytes);
        let mut expected = packet(&words);
        // Words bring along the ethertype of an address, bytes never do.
        expected.ethertype = expected.ethertype.filter(|_| words.contains("ethertype"));
        assert_eq!(read, expected, "{words}: {bytes:02x?}");
    }
}

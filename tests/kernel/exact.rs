//! Real traffic, with the offloads on: every meter equals an independent count on the wire, to the byte.
//!
//! The independent counts are those of the lab: of the wire, where each read is one frame, and of the guest's relay.

mod connections;
mod iperf;
mod meters;
mod networks;
mod restarts;
mod site;
mod unpinned;

use std::net::IpAddr;

use lab::{
    mac::Mac,
    netns::Netns,
    require,
    traffic::{RawSocket, Sender, tcp, udp, udp_gso},
};

use super::support::{
    WITHIN,
    frames::{IPV4, IPV6, TCP, UDP, between, ipv4, ipv6, tcp as segment, udp as datagram},
    ready,
};
use site::{End, Path, Site};

/// Payload of a stream: no whole number of segments.
fn stream() -> u64 {
    lab::amount("METER_TEST_STREAM", 1_500_001, 300_001).try_into().unwrap()
}

/// Everything that two ends exchange: streams, single datagrams and datagrams from one system call.
fn exchange(client: &End<'_>, server: &End<'_>, mtu: u32) {
    let segment = u16::try_from(mtu - 300).unwrap();
    for address in server.addresses {
        let to = (address, 5001).into();
        for sender in [Sender::Client, Sender::Server] {
            let moved = tcp(client.netns, server.netns, to, stream(), sender, WITHIN).unwrap();
            assert_eq!(moved.received.bytes, stream());
        }
        udp(client.netns, server.netns, to, &[1, 100, usize::from(segment)], WITHIN).unwrap();
    }
    // Before Linux 6.11 a netdev that computes no checksums takes no datagrams of one system call.
    let segments = |end: &End<'_>| end.checksums || require::is_kernel(6, 11);
    for (from, to) in [(client, server), (server, client)].into_iter().filter(|(from, _)| segments(from)) {
        for address in to.addresses {
            let payload = 6 * usize::from(segment) + 1;
            udp_gso(from.netns, to.netns, (address, 5001).into(), (payload, segment), 3, WITHIN).unwrap();
        }
    }
}

/// Every pair of ends of a site exchanges everything.
fn exchange_all(path: Path, mtu: u32, gro: bool) {
    let site = Site::new(path, mtu, gro);
    let counted = site.measure(|ends| {
        let [vm, container, far] = ends;
        exchange(&vm, &far, site.guest_mtu);
        exchange(&container, &far, site.guest_mtu);
        exchange(&vm, &container, site.guest_mtu);
    });
    let row = format!("{path:?}, mtu {mtu}, gro {gro}");
    // It was offloads that were tested.
    assert!(counted.guest.from_guest.super_packets > 0, "{row}");
    assert!(counted.merged(site::VETH_IN), "{row}: {:?}", counted.table);
    assert!(counted.merged(site::UPLINK_OUT), "{row}: {:?}", counted.table);
    assert_eq!(counted.merged(site::UPLINK_IN), gro, "{row}: {:?}", counted.table);
}

#[test]
fn streams_and_datagrams_over_a_bridge() {
    if ready() {
        exchange_all(Path::Bridge, 1_500, true);
    }
}

#[test]
fn streams_and_datagrams_over_a_bridge_without_gro() {
    if ready() {
        exchange_all(Path::Bridge, 1_500, false);
    }
}

#[test]
fn jumbo_frames_over_a_bridge() {
    if ready() {
        exchange_all(Path::Bridge, 9_000, true);
    }
}

#[test]
fn streams_and_datagrams_in_vxlan_over_ipv4() {
    if ready() {
        exchange_all(Path::Vxlan { six: false }, 1_500, true);
    }
}

#[test]
fn streams_and_datagrams_in_vxlan_over_ipv6() {
    if ready() {
        exchange_all(Path::Vxlan { six: true }, 1_500, true);
    }
}

#[test]
fn jumbo_frames_in_vxlan_over_ipv4() {
    if ready() {
        exchange_all(Path::Vxlan { six: false }, 9_000, true);
    }
}

#[test]
fn jumbo_frames_in_vxlan_over_ipv6() {
    if ready() {
        exchange_all(Path::Vxlan { six: true }, 9_000, true);
    }
}

#[test]
fn streams_over_vlan_netdevs() {
    if !ready() || !require::netdev_kind("vlan") {
        return;
    }
    for path in [Path::Bridge, Path::Vxlan { six: false }] {
        let site = Site::new(path, 1_500, true);
        site.measure(|ends| {
            let [vm, container, far] = ends;
            for (number, end) in [(1, &vm), (2, &container), (9, &far)] {
                end.netns.vlan("tagged0", end.netdev, 5).unwrap();
                if path != Path::Bridge {
                    // Room for the tag, or the tunnel's packets would be fragments.
                    end.netns.ip(&format!("link set tagged0 mtu {}", site.guest_mtu - 4)).unwrap();
                }
                end.netns.address("tagged0", IpAddr::from([10, 8, 0, number]), 24).unwrap();
            }
            for (netns, number, mac) in [
                (vm.netns, 9, far.mac),
                (vm.netns, 2, container.mac),
                (container.netns, 9, far.mac),
                (container.netns, 1, vm.mac),
                (far.netns, 1, vm.mac),
                (far.netns, 2, container.mac),
            ] {
                netns.neighbour("tagged0", IpAddr::from([10, 8, 0, number]), mac).unwrap();
            }
            for (client, server, number) in [(&vm, &far, 9), (&container, &far, 9), (&vm, &container, 2)] {
                let to = (IpAddr::from([10, 8, 0, number]), 5001).into();
                for sender in [Sender::Client, Sender::Server] {
                    tcp(client.netns, server.netns, to, stream(), sender, WITHIN).unwrap();
                }
            }
        });
    }
}

/// Sends frames and super-packets with these tags in the frame. A netdev that receives them keeps the outermost tag
/// in the skb's metadata from then on.
fn send_tagged(netns: &Netns, netdev: &str, (src, dst): (Mac, Mac), tags: &[(u16, u16)], size: u16) {
    let socket = RawSocket::open(netns, netdev).unwrap().with_vnet_header().unwrap();
    let ethernet = 14 + 4 * u16::try_from(tags.len()).unwrap();
    let payload = |segments: u16| vec![0x5a; usize::from(size * segments) - 7];
    let stream = |segments| segment(12, &payload(segments));
    let datagrams = |segments| datagram(5_001, &payload(segments));
    for segments in [1, 2, 20] {
        // `VIRTIO_NET_HDR_GSO_TCPV4`, `_TCPV6`, `_UDP_L4`; where TCP or UDP starts, and where its checksum is there.
        for (kind, ethertype, packet, l4, checksum) in [
            (1, IPV4, ipv4(TCP, &stream(segments)), 20, 16),
            (4, IPV6, ipv6(TCP, &stream(segments)), 40, 16),
            (5, IPV4, ipv4(UDP, &datagrams(segments)), 20, 6),
            (5, IPV6, ipv6(UDP, &datagrams(segments)), 40, 6),
        ] {
            if kind == 5 && segments > 1 && !require::is_kernel(6, 2) {
                // The header of such a super-packet of UDP came with Linux 6.2.
                continue;
            }
            let (kind, size) = if segments == 1 { (0, 0) } else { (kind, size) };
            let mut data = vec![1, kind];
            for field in [0, size, ethernet + l4, checksum] {
                data.extend(field.to_ne_bytes());
            }
            data.extend(between(src, dst, tags, ethertype, &packet));
            socket.send(&data).unwrap();
        }
    }
}

#[test]
fn tags_in_the_frame_and_in_the_metadata() {
    if !ready() {
        return;
    }
    let (vlan, qinq) = ((0x8100, 5), (0x88a8, 6));
    for (path, mtu) in [
        (Path::Bridge, 1_500),
        (Path::Bridge, 9_000),
        (Path::Vxlan { six: false }, 1_500),
        (Path::Vxlan { six: true }, 1_500),
    ] {
        let site = Site::new(path, mtu, true);
        // Room for two tags inside a tunnel.
        let size = if mtu == 1_500 { 1_300 } else { 3_000 };
        let counted = site.measure(|ends| {
            for tags in [&[][..], &[vlan], &[qinq, vlan]] {
                for from in &ends {
                    for to in ends.iter().filter(|to| to.mac != from.mac) {
                        send_tagged(from.netns, from.netdev, (from.mac, to.mac), tags, size);
                    }
                }
                if path == Path::Bridge {
                    // From the host itself: the egress hook of its uplink sees the tags in the frame.
                    send_tagged(site.host(), "eth0", (Mac::local(0x77), ends[2].mac), tags, size);
                }
            }
        });
        assert!(counted.merged(site::VETH_IN), "{path:?}: {:?}", counted.table);
        assert!(counted.merged(site::VETH_OUT), "{path:?}: {:?}", counted.table);
        assert!(counted.merged(site::UPLINK_OUT), "{path:?}: {:?}", counted.table);
    }
}

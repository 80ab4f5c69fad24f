//! The wire counts what really crossed it.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::{net::IpAddr, time::Duration};

use lab::{
    count::{Count, Encap, TunnelKey},
    mac::Mac,
    netdev::{NetdevStats, Tunnel, TunnelKind, TunnelMode},
    netns::Netns,
    require,
    traffic::{RawSocket, Sender, tcp, udp_gso},
    wire::{End, Wire, WireCounts, WireOptions},
};

const STILL: Duration = Duration::from_millis(300);
const WITHIN: Duration = Duration::from_secs(20);
const MACS: [Mac; 2] = [Mac::local(0xa), Mac::local(0xb)];
/// Ethernet, IP and TCP with its time stamps; a SYN has 8 bytes more of options.
const TCP4: u64 = 14 + 20 + 32;
const TCP6: u64 = 14 + 40 + 32;

struct Hosts {
    a: Netns,
    b: Netns,
    wire: Wire,
    addresses: [IpAddr; 2],
}

fn hosts(options: &WireOptions, addresses: [&str; 2]) -> Hosts {
    let (a, b) = (Netns::new("a").unwrap(), Netns::new("b").unwrap());
    let end = |netns, mac| End { netns, netdev: "eth0", mac };
    let wire = Wire::new(end(&a, MACS[0]), end(&b, MACS[1]), options).unwrap();
    let addresses = addresses.map(|address| address.parse::<IpAddr>().unwrap());
    let prefix = if addresses[0].is_ipv4() { 24 } else { 64 };
    a.address("eth0", addresses[0], prefix).unwrap();
    b.address("eth0", addresses[1], prefix).unwrap();
    a.neighbour("eth0", addresses[1], MACS[1]).unwrap();
    b.neighbour("eth0", addresses[0], MACS[0]).unwrap();
    Hosts { a, b, wire, addresses }
}

impl Hosts {
    fn measure(&self, traffic: impl FnOnce()) -> WireCounts {
        let before = self.wire.wait_until_quiet(STILL, WITHIN).unwrap();
        traffic();
        self.wire.wait_until_quiet(STILL, WITHIN).unwrap().since(&before)
    }
}

#[test]
fn tcp_is_counted_segment_by_segment() {
    if !require::root() {
        return;
    }
    const PAYLOAD: u64 = 5_000_001;
    for (gro, mtu, addresses, header) in [
        (false, 1500, ["192.0.2.1", "192.0.2.2"], TCP4),
        (true, 1500, ["192.0.2.1", "192.0.2.2"], TCP4),
        (false, 1500, ["2001:db8::1", "2001:db8::2"], TCP6),
        (true, 9000, ["2001:db8::1", "2001:db8::2"], TCP6),
    ] {
        let row = format!("gro {gro}, mtu {mtu}, {addresses:?}");
        let hosts = hosts(&WireOptions { mtu, gro, ..WireOptions::default() }, addresses);
        let mut before = NetdevStats::default();
        let counts = hosts.measure(|| {
            before = hosts.b.stats("eth0").unwrap();
            let server = (hosts.addresses[1], 5001).into();
            let moved = tcp(&hosts.a, &hosts.b, server, PAYLOAD, Sender::Client, WITHIN).unwrap();
            assert_eq!(moved.received.bytes, PAYLOAD, "{row}");
        });
        let after = hosts.b.stats("eth0").unwrap();
        let segment = u64::from(mtu) + 14 - header;
        let there = &counts.a_to_b;
        assert!(there.total.frames >= PAYLOAD.div_ceil(segment), "{row}: {there:?}");
        assert_eq!(there.total.bytes, PAYLOAD + there.total.frames * header + 8, "{row}: {there:?}");
        assert_eq!(there.longest, u64::from(mtu) + 14, "{row}");
        let back = &counts.b_to_a;
        assert_eq!(back.total.bytes, back.total.frames * header + 8, "{row}: {back:?}");
        assert_eq!(there.stations, [((MACS[0], MACS[1]), there.total)].into(), "{row}");
        assert_eq!(there.tunnels, [].into(), "{row}");
        assert_eq!((there.write_errors, back.write_errors), (0, 0), "{row}");
        assert_eq!((after.tx_dropped, after.rx_dropped), (0, 0), "{row}");
        // The netdev counts at the file descriptor, before GRO merges.
        let kernel =
            Count { frames: after.rx_packets - before.rx_packets, bytes: after.rx_bytes - before.rx_bytes };
        assert_eq!(kernel, there.total, "{row}");
    }
}

#[test]
fn vxlan_is_counted_inside_and_outside() {
    if !require::root() {
        return;
    }
    const PAYLOAD: u64 = 3_000_000;
    for (addresses, udp_port, outer) in
        [(["192.0.2.1", "192.0.2.2"], 4789, 50), (["2001:db8::1", "2001:db8::2"], 8472, 70)]
    {
        let hosts = hosts(&WireOptions::default(), addresses);
        let inner: [IpAddr; 2] = [[10, 7, 0, 1].into(), [10, 7, 0, 2].into()];
        let stations = [Mac::local(0x7a), Mac::local(0x7b)];
        for (here, there, netns) in [(0, 1, &hosts.a), (1, 0, &hosts.b)] {
            let (local, remote) = (hosts.addresses[here], hosts.addresses[there]);
            netns
                .tunnel(&Tunnel {
                    name: "vxlan7",
                    encap: TunnelKind::Vxlan { udp_port },
                    mode: TunnelMode::Fixed { vni: 7, local, remote },
                    mtu: 1500 - outer,
                })
                .unwrap();
            netns.ip(&format!("link set vxlan7 address {}", stations[here])).unwrap();
            netns.address("vxlan7", inner[here], 24).unwrap();
            netns.neighbour("vxlan7", inner[there], stations[there]).unwrap();
        }
        let counts = hosts.measure(|| {
            let server = (inner[1], 5001).into();
            tcp(&hosts.a, &hosts.b, server, PAYLOAD, Sender::Server, WITHIN).unwrap();
            // 40 datagrams of 1,200 and one of 77, five times.
            udp_gso(&hosts.a, &hosts.b, server, (40 * 1200 + 77, 1200), 5, WITHIN).unwrap();
        });
        let key = |here: usize, there: usize| TunnelKey {
            src: hosts.addresses[here],
            dst: hosts.addresses[there],
            vni: 7,
            encap: Encap::Vxlan,
        };
        let there = &counts.a_to_b;
        let tunnel = there.tunnels[&key(0, 1)];
        let inner = there.inner_stations[&(stations[0], stations[1])];
        assert_eq!(there.tunnels.len(), 1);
        assert_eq!(tunnel.frames, there.total.frames);
        assert_eq!(tunnel.outer_bytes, there.total.bytes);
        assert_eq!(tunnel.outer_bytes, tunnel.inner_bytes + tunnel.frames * u64::from(outer));
        assert_eq!(Count { frames: tunnel.frames, bytes: tunnel.inner_bytes }, inner);
        // Acknowledgements and one SYN of TCP, and the datagrams.
        let datagrams = 5 * 41;
        let datagram_bytes = 5 * (40 * 1200 + 77) + datagrams * (14 + 20 + 8);
        assert_eq!(inner.bytes - datagram_bytes, (inner.frames - datagrams) * TCP4 + 8);

        let back = counts.b_to_a.tunnels[&key(1, 0)];
        assert_eq!(back.inner_bytes, PAYLOAD + back.frames * TCP4 + 8);
        assert_eq!(back.outer_bytes, back.inner_bytes + back.frames * u64::from(outer));
        assert_eq!(back.frames, counts.b_to_a.total.frames);
    }
}

#[test]
fn idle_wire_is_silent() {
    if !require::root() {
        return;
    }
    let hosts = hosts(&WireOptions::default(), ["2001:db8::1", "2001:db8::2"]);
    let counts = hosts.measure(|| std::thread::sleep(Duration::from_secs(2)));
    assert_eq!(counts.a_to_b.total.frames + counts.b_to_a.total.frames, 0, "{counts:?}");
}

#[test]
fn raw_frames_cross_as_they_were_sent() {
    if !require::root() {
        return;
    }
    let hosts = hosts(&WireOptions::default(), ["192.0.2.1", "192.0.2.2"]);
    let counts = hosts.measure(|| {
        let socket = RawSocket::open(&hosts.a, "eth0").unwrap();
        for tags in [&[][..], &[0x81, 0, 0, 5], &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6]] {
            let frame = [&MACS[1].0[..], &MACS[0].0, tags, &[0x88, 0xb5], &[0; 100]].concat();
            socket.send(&frame).unwrap();
        }
        assert!(socket.send(&[0; 10]).is_err(), "shorter than an Ethernet header");
    });
    assert_eq!(counts.a_to_b.total, Count { frames: 3, bytes: 3 * 114 + 4 + 8 });
    assert_eq!(counts.b_to_a.total, Count::default());
}

#[test]
fn frames_for_a_netdev_that_is_down_are_write_errors() {
    if !require::root() {
        return;
    }
    let hosts = hosts(&WireOptions::default(), ["192.0.2.1", "192.0.2.2"]);
    hosts.b.ip("link set eth0 down").unwrap();
    let counts = hosts.measure(|| {
        let socket = RawSocket::open(&hosts.a, "eth0").unwrap();
        socket.send(&[0; 60]).unwrap();
    });
    assert_eq!((counts.a_to_b.total.frames, counts.a_to_b.write_errors), (1, 1));
}

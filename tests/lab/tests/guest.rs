//! A guest behind a tap hands its host super-packets, as a virtual machine does.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::{net::IpAddr, time::Duration};

use lab::{
    count::Count,
    guest::{Guest, GuestCounts, GuestOptions, NETDEV, VethGuest},
    mac::Mac,
    netns::Netns,
    require,
    traffic::{Sender, tcp, udp, udp_gso},
    wire::{End, Wire, WireCounts, WireOptions},
};

const STILL: Duration = Duration::from_millis(300);
const WITHIN: Duration = Duration::from_secs(20);

/// A guest and a host of its own, bridged to a far host by a wire.
struct Bridged {
    guest: Guest,
    host: Netns,
    far: Netns,
    wire: Wire,
    server: IpAddr,
}

impl Bridged {
    fn new(addresses: [&str; 2], gro: bool) -> Self {
        let (host, far) = (Netns::new("host").unwrap(), Netns::new("far").unwrap());
        let macs = [Mac::local(1), Mac::local(2)];
        let options = GuestOptions { label: "vm", host_netdev: "tap1", mac: macs[0], mtu: 1500 };
        let guest = Guest::new(&host, &options).unwrap();
        let wire = Wire::new(
            End { netns: &host, netdev: "eth0", mac: Mac::local(9) },
            End { netns: &far, netdev: "eth0", mac: macs[1] },
            &WireOptions { gro, ..WireOptions::default() },
        )
        .unwrap();
        host.add_bridge("br0", 1500).unwrap();
        host.enslave_static("tap1", "br0", &macs[..1]).unwrap();
        host.enslave_static("eth0", "br0", &macs[1..]).unwrap();
        let addresses = addresses.map(|address| address.parse::<IpAddr>().unwrap());
        let prefix = if addresses[0].is_ipv4() { 24 } else { 64 };
        for (netns, here, there) in [(guest.netns(), 0, 1), (&far, 1, 0)] {
            netns.address("eth0", addresses[here], prefix).unwrap();
            netns.neighbour("eth0", addresses[there], macs[there]).unwrap();
        }
        Self { guest, host, far, wire, server: addresses[1] }
    }

    fn counts(&self) -> (GuestCounts, WireCounts) {
        let guest = self.guest.wait_until_quiet(STILL, WITHIN).unwrap();
        (guest, self.wire.wait_until_quiet(STILL, WITHIN).unwrap())
    }
}

#[test]
fn super_packets_stand_for_the_frames_that_the_kernel_makes_of_them() {
    if !require::root() {
        return;
    }
    for (addresses, gro) in
        [(["10.0.0.1", "10.0.0.2"], true), (["fd00::1", "fd00::2"], true), (["10.0.0.1", "10.0.0.2"], false)]
    {
        let row = format!("{addresses:?}, gro {gro}");
        let lab = Bridged::new(addresses, gro);
        let before = lab.counts();
        let server = (lab.server, 5001).into();
        for sender in [Sender::Client, Sender::Server] {
            let moved = tcp(lab.guest.netns(), &lab.far, server, 4_000_000, sender, WITHIN).unwrap();
            assert_eq!(moved.received.bytes, 4_000_000, "{row}");
        }
        udp(lab.guest.netns(), &lab.far, server, &[1, 100, 1400], WITHIN).unwrap();
        udp_gso(lab.guest.netns(), &lab.far, server, (20 * 1000 + 1, 1000), 3, WITHIN).unwrap();
        let after = lab.counts();
        let (guest, wire) = (after.0.since(&before.0), after.1.since(&before.1));
        for (crossed, on_the_wire) in [(&guest.from_guest, &wire.a_to_b), (&guest.to_guest, &wire.b_to_a)] {
            assert_eq!(crossed.total, on_the_wire.total, "{row}");
            assert_eq!(crossed.stations, on_the_wire.stations, "{row}");
            assert_eq!((crossed.unknown, crossed.write_errors), (0, 0), "{row}");
        }
        let sent = &guest.from_guest;
        assert!(sent.super_packets > 0 && sent.longest > 10_000, "{row}: {sent:?}");
        assert!(sent.skbs.frames < sent.total.frames, "{row}: {sent:?}");
        assert_eq!(guest.to_guest.super_packets > 0, gro, "{row}: {:?}", guest.to_guest);
        assert_eq!(lab.host.stats("tap1").unwrap().tx_dropped, 0, "{row}");
    }
}

#[test]
fn guests_of_one_host_reach_each_other() {
    if !require::root() {
        return;
    }
    let host = Netns::new("host").unwrap();
    let options = |label, host_netdev, n| GuestOptions { label, host_netdev, mac: Mac::local(n), mtu: 1500 };
    let vm = Guest::new(&host, &options("vm", "tap1", 1)).unwrap();
    let container = VethGuest::new(&host, &options("ct", "veth2", 2)).unwrap();
    host.add_bridge("br0", 1500).unwrap();
    host.enslave_static("tap1", "br0", &[vm.mac()]).unwrap();
    host.enslave_static("veth2", "br0", &[container.mac()]).unwrap();
    for (netns, here, there, station) in
        [(vm.netns(), 1, 2, container.mac()), (container.netns(), 2, 1, vm.mac())]
    {
        netns.address(NETDEV, [10, 0, 0, here].into(), 24).unwrap();
        netns.neighbour(NETDEV, [10, 0, 0, there].into(), station).unwrap();
    }
    let server = (IpAddr::from([10, 0, 0, 2]), 5001).into();
    let before = vm.wait_until_quiet(STILL, WITHIN).unwrap();
    let moved = tcp(vm.netns(), container.netns(), server, 3_000_000, Sender::Server, WITHIN).unwrap();
    assert_eq!(moved.received.bytes, 3_000_000);
    let sent = udp_gso(vm.netns(), container.netns(), server, (20 * 1000 + 1, 1000), 3, WITHIN).unwrap();
    assert_eq!(sent.sent, Count { frames: 3 * 21, bytes: 3 * (20 * 1000 + 1) });
    let counts = vm.wait_until_quiet(STILL, WITHIN).unwrap().since(&before);
    assert!(counts.to_guest.super_packets > 0, "{counts:?}");
    let pair = (vm.mac(), container.mac());
    assert_eq!(counts.from_guest.stations, [(pair, counts.from_guest.total)].into());
    assert_eq!(counts.to_guest.stations, [((pair.1, pair.0), counts.to_guest.total)].into());
}

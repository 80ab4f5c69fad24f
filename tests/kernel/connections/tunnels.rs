//! Connections inside of tunnel packets, at an uplink where that is asked for.

use std::collections::BTreeSet;

use meter_agent::datapath::{ConnectionReading, Datapath as _, Reading};
use meter_ebpf::abi::{Direction, Encap, connection::capture};

use super::{ACK, SYN, World, capture_of, of, packets, segment};
use crate::support::{
    frames::{GRE, IPV4, IPV6, KEY, TEB, UDP, ethernet, geneve, gre, ipv4, ipv4_with, ipv6, tcp, udp, vxlan},
    programs::named,
    ready,
};

/// A connection: the tunnel that it is in, its initiator and target, and the packets and bytes of both.
type Row = (Option<(Encap, u32)>, String, String, [[u64; 2]; 2]);

fn rows(reading: &Reading) -> BTreeSet<Row> {
    let row = |connection: &ConnectionReading| {
        let sum = |end: usize| {
            let [one, other] = connection.counts[end];
            [one.packets + other.packets, one.bytes + other.bytes]
        };
        let ConnectionReading { overlay, initiator, target, .. } = connection;
        (*overlay, initiator.to_string(), target.to_string(), [sum(0), sum(1)])
    };
    reading.connections.iter().map(row).collect()
}

impl World<'_> {
    /// Lets a frame come in at the uplink, or go out.
    fn run_up(&self, frame: &[u8], direction: Direction) {
        let name = match direction {
            Direction::Ingress => "meter_conn_uin",
            Direction::Egress => "meter_conn_uout",
        };
        self.programs.run_between(named(name), frame, [0, self.netdevs[0]]);
    }

    fn look_inside(&mut self, inside: bool) {
        let bits = |selection: &mut meter_agent::connections::Selection| {
            selection.bits |= if inside { capture::INSIDE } else { 0 };
        };
        self.meter.datapath.set_capture(&capture_of(&[1, 2], bits)).unwrap();
    }
}

/// A world whose first netdev is an uplink.
fn with_uplink(label: &str, work: impl FnOnce(World<'_>) + Send) {
    World::with_uplink(label, |mut world| {
        world.meter.datapath.tend_at(1_000);
        work(world);
    });
}

#[test]
fn what_tunnel_packets_hold_is_told_by_tunnel() {
    if !ready() {
        return;
    }
    with_uplink("conn-inside", |mut world| {
        world.look_inside(true);
        let inner = segment(1, false, SYN);
        let six = ethernet(&[], IPV6, &ipv6(UDP, &udp(53, &[0; 30])));
        let tagged = ethernet(&[(0x8100, 5)], IPV4, &ipv4(UDP, &udp(53, &[0; 30])));
        let v4 = |protocol, payload: &[u8]| ethernet(&[], IPV4, &ipv4(protocol, payload));
        let frames = [
            (v4(UDP, &vxlan(4789, 7, &inner)), Some((Encap::Vxlan, 7))),
            (v4(UDP, &vxlan(4789, 8, &inner)), Some((Encap::Vxlan, 8))),
            (ethernet(&[], IPV6, &ipv6(UDP, &vxlan(4789, 0, &inner))), Some((Encap::Vxlan, 0))),
            (v4(UDP, &geneve(7, 2, TEB, &inner)), Some((Encap::Geneve, 7))),
            // A packet without its Ethernet header.
            (v4(UDP, &geneve(9, 0, IPV4, &inner[14..])), Some((Encap::Geneve, 9))),
            (v4(GRE, &gre(KEY, u32::MAX, TEB, &inner)), Some((Encap::Gre, u32::MAX))),
            (v4(GRE, &gre(0, 0, TEB, &inner)), Some((Encap::Gre, 0))),
        ];
        let mut expected = BTreeSet::new();
        let ends = ("192.0.2.1:1".to_owned(), "192.0.2.2:80".to_owned());
        for (frame, overlay) in &frames {
            world.run_up(frame, Direction::Ingress);
            let bytes = u64::try_from(frame.len()).unwrap();
            expected.insert((*overlay, ends.0.clone(), ends.1.clone(), [[1, bytes], [0, 0]]));
        }
        // The other end answers, and the tunnel with it.
        let mut answer = v4(UDP, &vxlan(4789, 7, &segment(1, true, SYN | ACK)));
        answer[26..34].copy_from_slice(&[192, 0, 2, 2, 192, 0, 2, 1]);
        world.run_up(&answer, Direction::Egress);
        let reading = world.reading();
        let seven = reading.connections.iter().find(|one| one.overlay == Some((Encap::Vxlan, 7))).unwrap();
        assert!(seven.rtt_ns > 0 && seven.answered, "{seven:?}");
        let length = u64::try_from(answer.len()).unwrap();
        let row = (Some((Encap::Vxlan, 7)), ends.0.clone(), ends.1.clone());
        assert!(expected.remove(&(row.0, row.1.clone(), row.2.clone(), [[1, length], [0, 0]])));
        expected.insert((row.0, row.1, row.2, [[1, length], [1, length]]));
        assert_eq!(rows(&reading), expected);

        // IPv6 and a tag inside; ARP inside, a later fragment, and a tunnel's packet that holds nothing are of none.
        world.run_up(&v4(UDP, &vxlan(4789, 7, &six)), Direction::Ingress);
        world.run_up(&v4(UDP, &vxlan(4789, 7, &tagged)), Direction::Ingress);
        for none in [
            v4(UDP, &vxlan(4789, 7, &ethernet(&[], 0x0806, &[0; 28]))),
            v4(UDP, &vxlan(4789, 7, &[])),
            ethernet(&[], IPV4, &ipv4_with(&[], 1, UDP, &vxlan(4789, 7, &inner))),
        ] {
            world.run_up(&none, Direction::Ingress);
        }
        let reading = world.reading();
        assert_eq!((reading.connections.len(), of(&reading, 1).other.map(packets)), (9, [3, 0]));
        let inside = |end: &str| {
            rows(&reading)
                .into_iter()
                .filter(|row| row.0 == Some((Encap::Vxlan, 7)) && row.2.ends_with(end))
                .count()
        };
        assert_eq!(inside(":53"), 2);

        // What is no tunnel's is what it was.
        world.run_up(&segment(3, false, SYN), Direction::Ingress);
        world.run_up(&v4(UDP, &udp(4_790, &[0; 60])), Direction::Ingress);
        world.run_up(&v4(6, &tcp(12, &[0; 60])), Direction::Ingress);
        let reading = world.reading();
        assert_eq!(reading.connections.iter().filter(|one| one.overlay.is_none()).count(), 3);
    });
}

#[test]
fn tunnel_packets_are_connections_themselves_where_nobody_asks_for_more() {
    if !ready() {
        return;
    }
    with_uplink("conn-outer", |mut world| {
        let packet = ethernet(&[], IPV4, &ipv4(UDP, &vxlan(4789, 7, &segment(1, false, SYN))));
        world.run_up(&packet, Direction::Egress);
        let outer =
            |reading: &Reading| reading.connections.iter().filter(|one| one.overlay.is_none()).count();
        let reading = world.reading();
        assert_eq!((reading.connections.len(), outer(&reading)), (1, 1));
        // Asked for while it runs: the outer one stays until it is idle.
        world.look_inside(true);
        world.run_up(&packet, Direction::Egress);
        let reading = world.reading();
        assert_eq!((reading.connections.len(), outer(&reading)), (2, 1));
        // A guest's own tunnels are its own.
        world.run(&packet, Direction::Ingress, 1);
        let reading = world.reading();
        assert_eq!((reading.connections.len(), outer(&reading)), (3, 2));
        world.look_inside(false);
        world.run_up(&packet, Direction::Egress);
        let reading = world.reading();
        let counts: Vec<u64> = reading
            .connections
            .iter()
            .filter(|one| one.overlay.is_none())
            .map(|one| one.counts[0][1].packets)
            .collect();
        assert_eq!((counts.iter().sum::<u64>(), of(&reading, 1).other.map(packets)), (2, [0, 0]));
    });
}

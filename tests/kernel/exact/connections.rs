//! Connections of real traffic: what each end of each sent is what crossed the wire, to the byte, and all of them with what
//! is in none are what the port has.

use std::collections::{BTreeMap, BTreeSet};

use lab::count::{Count, Flow};
use meter_agent::{
    connections::{EVERYTHING, Selection},
    datapath::{Capture, Reading},
    meter::PortId,
};
use meter_ebpf::abi::{Counter, Direction, Encap, connection::capture};
use uuid::Uuid;

use super::{
    exchange,
    site::{Counted, End, Path, Site, TAP, UPLINK, VNI},
};
use crate::support::ready;

fn tap() -> PortId {
    PortId(Uuid::from_u128(TAP))
}

/// Returns what each end of each connection of a port sent, by hook.
fn by_flow(reading: &Reading, port: PortId) -> [BTreeMap<Flow, Count>; 2] {
    let mut sums = [BTreeMap::new(), BTreeMap::new()];
    for connection in reading.connections.iter().filter(|connection| connection.port == port) {
        let (initiator, target) = (connection.initiator, connection.target);
        for (ends, counts) in [(initiator, target), (target, initiator)].into_iter().zip(connection.counts) {
            for (sums, Counter { packets, bytes }) in sums.iter_mut().zip(counts) {
                if packets != 0 {
                    let count = Count { frames: packets, bytes };
                    assert_eq!(
                        sums.insert((connection.protocol, ends.0, ends.1), count),
                        None,
                        "{connection:?}"
                    );
                }
            }
        }
    }
    sums
}

/// All connections, those that ended and what is in none add up to the port's total.
fn assert_closed(reading: &Reading, port: PortId) {
    let of_port = |other: &PortId| *other == port;
    let [capture] = &reading.captures.iter().filter(|capture| of_port(&capture.port)).collect::<Vec<_>>()[..]
    else {
        panic!("{:?}", reading.captures);
    };
    let total = reading.ports.iter().find(|port| of_port(&port.port)).unwrap().totals;
    for direction in Direction::ALL {
        let at = direction as usize;
        let mut sum = capture.other[at];
        sum.add(&capture.ended[at]);
        for connection in reading.connections.iter().filter(|connection| of_port(&connection.port)) {
            connection.counts.iter().for_each(|counts| sum.add(&counts[at]));
        }
        assert_eq!(sum, total.hook(direction).wire(), "{direction:?}");
    }
}

pub(super) fn measure(site: &Site) -> (Counted, Reading) {
    measure_at(site, |[vm, container, far]| {
        exchange(&vm, &far, site.guest_mtu);
        exchange(&far, &vm, site.guest_mtu);
        exchange(&vm, &container, site.guest_mtu);
        for address in far.addresses {
            vm.netns.run("ping", &["-c", "3", "-i", "0.01", "-s", "1000", &address.to_string()]).unwrap();
        }
    })
}

/// Lets `traffic` happen; each connection of the machine's port is what the relay counted of it.
pub(super) fn measure_at(site: &Site, traffic: impl FnOnce([End<'_>; 3])) -> (Counted, Reading) {
    let capture = Selection { ports: BTreeSet::from([tap()]), ..Selection::default() };
    let capture: Capture = capture.of(BTreeSet::from([tap()]), BTreeSet::new());
    assert_eq!(capture.bits, EVERYTHING);
    let (counted, reading) = site.measure_connections(&capture, traffic);
    let expected = [counted.guest.from_guest.flows.clone(), counted.guest.to_guest.flows.clone()];
    assert_eq!(by_flow(&reading, tap()), expected);
    assert_closed(&reading, tap());
    assert!(counted.guest.from_guest.super_packets > 0);
    (counted, reading)
}

#[test]
fn each_connection_is_what_crossed_the_wire() {
    if !ready() {
        return;
    }
    let (_, reading) = measure(&Site::new(Path::Bridge, 1_500, true));
    let of = |protocol| reading.connections.iter().filter(move |connection| connection.protocol == protocol);
    // Both families, two senders, three pairs of ends; each stream began with a handshake that was seen.
    assert!(of(6).count() >= 12, "{:?}", reading.connections);
    for connection in of(6) {
        assert!(connection.rtt_ns > 0 && connection.ended && connection.answered, "{connection:?}");
        assert_eq!(connection.target.port(), 5001, "{connection:?}");
    }
    for connection in of(17) {
        assert_eq!((connection.rtt_ns, connection.ended), (0, false), "{connection:?}");
    }
    for connection in of(1).chain(of(58)) {
        assert!(connection.rtt_ns > 0 && connection.answered, "{connection:?}");
    }
    assert_eq!((of(1).count(), of(58).count()), (1, 1));
}

/// Connections inside of the tunnel, at the uplink: what the relay counted of each, and the tunnel's headers.
fn measure_inside(six: bool) {
    let site = Site::new(Path::Vxlan { six }, 1_500, true);
    let uplink = PortId(Uuid::from_u128(UPLINK));
    let selection = Selection { bits: EVERYTHING | capture::INSIDE, ..Selection::default() };
    let capture: Capture = selection.of(BTreeSet::from([uplink]), BTreeSet::new());
    let (counted, reading) = site.measure_connections(&capture, |[vm, _, far]| {
        exchange(&vm, &far, site.guest_mtu);
        exchange(&far, &vm, site.guest_mtu);
    });
    let headers = if six { 70 } else { 50 };
    let outer = |flows: &BTreeMap<Flow, Count>| {
        let grown = flows.iter().map(|(flow, count)| {
            (*flow, Count { frames: count.frames, bytes: count.bytes + headers * count.frames })
        });
        grown.collect::<BTreeMap<_, _>>()
    };
    let expected = [outer(&counted.guest.to_guest.flows), outer(&counted.guest.from_guest.flows)];
    assert!(expected[0].len() > 10, "{expected:?}");
    assert_eq!(by_flow(&reading, uplink), expected, "IPv6 {six}");
    assert!(reading.connections.iter().all(|connection| connection.overlay == Some((Encap::Vxlan, VNI))));
    assert_closed(&reading, uplink);
}

#[test]
fn each_connection_inside_of_a_tunnel_is_what_crossed_the_wire() {
    if ready() {
        measure_inside(false);
        measure_inside(true);
    }
}

#[test]
fn each_connection_is_what_crossed_the_wire_through_vxlan() {
    if ready() {
        measure(&Site::new(Path::Vxlan { six: false }, 1_500, true));
        measure(&Site::new(Path::Vxlan { six: true }, 9_000, false));
    }
}

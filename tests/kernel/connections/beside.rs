//! Connections that are counted beside user-defined meters, and those that are not wanted any more.

use std::collections::BTreeSet;

use meter_agent::{
    connections::Selection,
    datapath::{Class, Datapath as _, Target},
};
use meter_ebpf::abi::{Direction, Fault, connection::capture};

use super::{ACK, FIN, RST, SYN, World, capture_of, of, packets, probe, segment};
use crate::support::{meters, ready};

#[test]
fn rules_with_flow_give_no_connection_more_room_and_no_frame_two_faults() {
    if !ready() {
        return;
    }
    World::with(
        "conn-flow",
        |options| options.max_connections = 100,
        |mut world| {
            world.meter.set_meters(&meters(&[
                ("forward", "flow fwd-flow direction rx"),
                ("return", "flow return-flow direction rx"),
            ]));
            world.meter.datapath.set_capture(&capture_of(&[1, 2], |selection| selection.share = 60)).unwrap();
            world.meter.datapath.tend_at(1_000);
            for _ in 0..2 {
                for number in 0..1_000 {
                    world.run(&probe(number), Direction::Ingress, 0);
                }
            }
            // An answer without room says so of itself.
            world.run(&segment(7, true, SYN | ACK), Direction::Ingress, 0);
            let reading = world.reading();
            assert_eq!((reading.connections.len(), of(&reading, 1).other.map(packets)), (60, [1_881, 0]));
            assert_eq!(reading.faults.reasons[Fault::ConnectionTableFull as usize].packets, 1_881);
            let meters = world.meter.meters();
            assert_eq!(["forward", "return"].map(|name| meters[name][0]), [2_000, 1]);
        },
    );
}

#[test]
fn connections_that_only_rules_ask_for_are_not_shown_and_take_no_share() {
    if !ready() {
        return;
    }
    World::with(
        "conn-only",
        |_| {},
        |mut world| {
            world.meter.set_meters(&meters(&[("forward", "flow fwd-flow")]));
            let udp = |selection: &mut Selection| {
                selection.bits = capture::UDP | capture::IPV4;
                selection.share = 1;
            };
            world.meter.datapath.set_capture(&capture_of(&[1, 2], udp)).unwrap();
            world.meter.datapath.tend_at(1_000);
            for number in 0..5 {
                world.run(&segment(number, false, SYN), Direction::Ingress, 0);
            }
            world.pass(1_001..=1_002);
            let mut frame = segment(9, false, 0);
            frame[23] = 17;
            world.run(&frame, Direction::Ingress, 0);
            let reading = world.reading();
            assert_eq!((reading.connections.len(), of(&reading, 1).other.map(packets)), (1, [5, 0]));
            assert_eq!(reading.connections[0].protocol, 17);
        },
    );
}

/// A program that counts connections asks rules where its netdev is a port's, whether its connections are wanted or not.
#[test]
fn frames_count_in_meters_as_the_netdev_says_whatever_is_captured() {
    if !ready() {
        return;
    }
    World::with(
        "conn-rules",
        |_| {},
        |mut world| {
            world.meter.set_meters(&meters(&[("all", "direction rx")]));
            let uplink: Target = world.host.target("d2", 2, Class::Uplink);
            world.meter.attach(&uplink);
            let mut frame = 0;
            let mut counted = |world: &mut World<'_>| {
                frame += 1;
                for netdev in [0, 1] {
                    world.run(&segment(frame, false, SYN), Direction::Ingress, netdev);
                }
                world.meter.meters()["all"][0]
            };
            assert_eq!(counted(&mut world), 1);
            // The programs of the test runs stay, as those of a netdev do until they are changed.
            let none = Selection::default().of(BTreeSet::new(), BTreeSet::new());
            world.meter.datapath.set_capture(&none).unwrap();
            assert_eq!(counted(&mut world), 2);
        },
    );
}

#[test]
fn round_trip_is_of_the_answer_and_of_the_connection_that_is() {
    if !ready() {
        return;
    }
    World::with(
        "conn-rtt",
        |_| {},
        |mut world| {
            world.meter.datapath.tend_at(1_000);
            let rtt = |world: &mut World<'_>| {
                let [connection] = &world.reading().connections[..] else { panic!("one connection") };
                connection.rtt_ns
            };
            // Whoever asked gives up: that is no answer.
            world.run(&segment(1, false, SYN), Direction::Ingress, 0);
            world.run(&segment(1, false, RST), Direction::Ingress, 0);
            assert_eq!(rtt(&mut world), 0);
            // The same ends once more, answered this time, and ended.
            world.run(&segment(1, false, SYN), Direction::Ingress, 0);
            world.run(&segment(1, true, SYN | ACK), Direction::Egress, 0);
            assert_ne!(rtt(&mut world), 0);
            for back in [false, true] {
                world.run(&segment(1, back, FIN | ACK), Direction::Ingress, 0);
            }
            assert_ne!(rtt(&mut world), 0);
            // Once more, and not answered yet.
            world.run(&segment(1, false, SYN), Direction::Ingress, 0);
            assert_eq!(rtt(&mut world), 0);
        },
    );
}

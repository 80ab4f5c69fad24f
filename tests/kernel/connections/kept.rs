//! What connections have moved, over agents that are killed and slots that others get.

use std::collections::BTreeSet;

use aya::maps::{Array, HashMap, MapData};
use meter_agent::{
    connections::Selection,
    datapath::{Class, Datapath as _, Target},
    meter::PortId,
};
use meter_ebpf::abi::{
    Counter, Direction, PortRecord, PortUuid,
    connection::{Capture as Place, Connection},
    map,
};

use super::{ACK, FIN, SYN, World, of, packets, port, segment};
use crate::support::{frames::ethernet, pinned_map, ready};

#[test]
fn agent_that_is_killed_while_a_connection_ends_counts_it_once() {
    if !ready() {
        return;
    }
    World::with(
        "conn-killed",
        |_| {},
        |mut world| {
            for number in 0..4 {
                world.run(&segment(number, false, SYN), Direction::Ingress, 0);
            }
            let before = of(&world.reading(), 1);
            // One is marked. Another is in the journal: it is added already, and has still all that it counted.
            let mut world = world.reopen(|options| {
                let mut places: Array<MapData, Connection> = pinned_map(&options.pin_path, map::CONNECTIONS);
                let mut captures: Array<MapData, Place> = pinned_map(&options.pin_path, map::CAPTURES);
                let occupied: Vec<u32> =
                    (1..1_025).filter(|number| places.get(number, 0).unwrap().key.words[5] != 0).collect();
                assert_eq!(occupied.len(), 4);
                for number in &occupied[..2] {
                    let mut place = places.get(number, 0).unwrap();
                    place.course.leaving = 1;
                    places.set(*number, place, 0).unwrap();
                }
                let leaving = places.get(&occupied[1], 0).unwrap();
                let slot = u32::try_from(leaving.key.words[4] & 0xffff_ffff).unwrap();
                let mut own = captures.get(&slot, 0).unwrap();
                let [counts, _] = leaving.counts[0];
                let other_end = leaving.counts[1][0];
                own.ended[0].add(&counts);
                own.ended[0].add(&other_end);
                captures.set(slot, own, 0).unwrap();
                let mut journal = captures.get(&0, 0).unwrap();
                journal.ended = own.ended;
                journal.other[0] = Counter { packets: slot.into(), bytes: occupied[1].into() };
                captures.set(0, journal, 0).unwrap();
            });
            let reading = world.reading();
            assert_eq!(of(&reading, 1).other, before.other);
            assert_eq!(of(&reading, 1).ended.map(packets), [2, 0]);
            world.meter.datapath.tend();
            world.meter.datapath.tend();
            let reading = world.reading();
            assert_eq!((reading.connections.len(), of(&reading, 1).ended.map(packets)), (2, [2, 0]));
        },
    );
}

#[test]
fn port_whose_counters_another_gets_keeps_what_its_connections_had() {
    if !ready() {
        return;
    }
    World::with(
        "conn-slots",
        |options| options.max_ports = 600,
        |mut world| {
            world.run(&segment(1, false, SYN), Direction::Ingress, 0);
            world.run(&ethernet(&[], 0x0806, &[0; 28]), Direction::Egress, 0);
            let before = world.reading();
            assert_eq!((before.connections.len(), of(&before, 1).other.map(packets)), (1, [0, 1]));
            // As many others as there are slots, and one more, on the same netdev after it.
            let target = |world: &World<'_>, number: u128| world.host.target("d1", number, Class::Port);
            let all: BTreeSet<PortId> = (1..=300).map(port).collect();
            world.meter.datapath.set_capture(&Selection::default().of(all, BTreeSet::new())).unwrap();
            for number in 3..=258 {
                let target: Target = target(&world, number);
                world.meter.attach(&target);
            }
            world.run(&segment(9, false, FIN), Direction::Ingress, 0);
            let reading = world.reading();
            assert_eq!(reading.connections.iter().filter(|one| one.port == port(1)).count(), 0);
            let first = of(&reading, 1);
            assert_eq!((first.other.map(packets), first.ended.map(packets)), ([0, 1], [1, 0]));
            // It goes on from there, also after the agent was gone.
            let own = target(&world, 1);
            world.meter.attach(&own);
            world.run(&segment(1, false, ACK), Direction::Ingress, 0);
            let mut world = world.reopen(|_| {});
            let first = of(&world.reading(), 1);
            assert_eq!((first.other.map(packets), first.ended.map(packets)), ([0, 1], [1, 0]));
        },
    );
}

#[test]
fn port_whose_record_is_gone_begins_anew_with_its_connections() {
    if !ready() {
        return;
    }
    World::with(
        "conn-forgot",
        |_| {},
        |mut world| {
            for direction in Direction::ALL {
                world.run(&segment(1, false, SYN), direction, 0);
                world.run(&ethernet(&[], 0x0806, &[0; 28]), direction, 1);
            }
            // One has a place and connections, the other is only saved.
            world.meter.datapath.set_capture(&super::capture_of(&[1], |_| {})).unwrap();
            assert_eq!(world.reading().captures.len(), 2);
            let mut world = world.reopen(|options| {
                let mut ports: HashMap<MapData, PortUuid, PortRecord> =
                    pinned_map(&options.pin_path, map::PORTS);
                let uuids: Vec<PortUuid> = ports.keys().collect::<Result<_, _>>().unwrap();
                uuids.iter().for_each(|uuid| ports.remove(uuid).unwrap());
            });
            let reading = world.reading();
            for number in [1, 2] {
                let capture = of(&reading, number);
                assert_eq!((capture.other.map(packets), capture.ended.map(packets)), ([0, 0], [0, 0]));
            }
            assert_eq!(reading.connections, []);
            world.run(&segment(2, false, SYN), Direction::Ingress, 0);
            let reading = world.reading();
            assert_eq!((reading.connections.len(), of(&reading, 1).other.map(packets)), (1, [0, 0]));
            // Whose qdiscs of clsact are was written down with the ports.
            let host = world.host;
            drop(world);
            host.remove_qdiscs();
        },
    );
}

#[test]
fn connections_that_an_agent_left_leave_where_the_next_counts_none() {
    if !ready() {
        return;
    }
    World::with(
        "conn-left",
        |_| {},
        |world| {
            for number in 0..3 {
                world.run(&segment(number, false, SYN), Direction::Ingress, 0);
            }
            let mut world = world.reopen(|_| {});
            world
                .meter
                .datapath
                .set_capture(&Selection::default().of(BTreeSet::new(), BTreeSet::new()))
                .unwrap();
            // With no agent the clock stood still: from the first tick on it runs.
            world.pass(200_000_000..=200_000_001);
            assert_eq!(world.reading().connections.len(), 3);
            world.pass(200_000_002..=200_000_062);
            let reading = world.reading();
            assert_eq!((reading.connections.len(), of(&reading, 1).ended.map(packets)), (0, [3, 0]));
        },
    );
}

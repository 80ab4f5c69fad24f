//! Random rules and random frames through the programs that count connections: a connection is counted from the first frame
//! on that the plain matcher says a rule matches, and every other frame is in none.

use std::collections::{BTreeMap, BTreeSet};

use meter_agent::{
    connections::Selection,
    datapath::Datapath as _,
    meter::PortId,
    rules::{self, Condition, Flow, Flows, Meter, MeterSet, Packet, matches},
};
use meter_ebpf::{
    abi::{Counter, Direction as Hook, connection::capture},
    packet::numbers::{IP_SCTP, IP_TCP, IP_UDP},
};
use proptest::test_runner::TestRunner;
use uuid::Uuid;

use super::{
    NETDEVS, World, device_of,
    differential::{sample, seen, sets},
};
use crate::support::{programs::named, ready};

/// Frames for each set of rules.
const FRAMES: usize = 80;

/// A connection: the port, the protocol, and both ends in their order.
type Key = (PortId, u8, [(std::net::IpAddr, u16); 2]);

/// Returns the connection of a packet.
fn key_of(port: PortId, packet: &Packet) -> Option<Key> {
    let protocol = packet.proto.filter(|proto| [IP_TCP, IP_UDP, IP_SCTP].contains(proto))?;
    if !matches!(packet.ethertype, Some(0x800 | 0x86dd)) {
        return None;
    }
    let mut ends = [(packet.src?, packet.src_port?), (packet.dst?, packet.dst_port?)];
    ends.sort();
    Some((port, protocol, ends))
}

#[test]
fn connections_are_those_that_the_matcher_admits() {
    if !ready() {
        return;
    }
    let program = |direction| match direction {
        rules::Direction::Rx => named("meter_conn_in"),
        rules::Direction::Tx => named("meter_conn_out"),
    };
    World::with_programs(
        "admission",
        program,
        |options| options.max_connections = 20_000,
        |mut world| {
            let ports: BTreeSet<PortId> = NETDEVS
                .into_iter()
                .filter(|(_, port, ..)| *port != 0)
                .map(|(_, port, ..)| PortId(Uuid::from_u128(port)))
                .collect();
            // So that frames of connections that are not counted have places, for their direction.
            let returns = Meter {
                name: "return".to_owned(),
                rules: vec![Condition { flow: Some(Flow::Return), ..Condition::default() }],
            };
            let meters = MeterSet { meters: vec![returns], ..MeterSet::default() };
            world.meter.set_meters(&meters);
            let mut runner = TestRunner::default();
            let (mut flows, mut before) = (Flows::default(), Packet::default());
            let mut connections: BTreeMap<Key, Counter> = BTreeMap::new();
            let mut others: BTreeMap<PortId, Counter> = BTreeMap::new();
            let (mut counted, mut refused, mut returned) = (0, 0, 0);
            let rounds = lab::amount("METER_TEST_ADMISSION_SETS", 60, 15);
            for number in 0..rounds {
                let set = sample(&mut runner, &sets());
                // Few rules, so that some frames match none.
                let conditions = set.meters.iter().flat_map(|meter| meter.rules.clone()).take(1 + number % 3);
                let conditions = conditions.map(|rule| Condition { flow: None, ..rule }).collect();
                let set = set.with_rules(conditions);
                let selection = Selection {
                    bits: capture::TCP | capture::UDP | capture::SCTP | capture::IPV4 | capture::IPV6,
                    rules: set.clone().into(),
                    ..Selection::default()
                };
                world.meter.datapath.set_capture(&selection.of(ports.clone(), BTreeSet::new())).unwrap();
                for _ in 0..FRAMES {
                    let seen = sample(&mut runner, &seen());
                    let frame = seen.frame(&mut before);
                    let (_, port, ..) = NETDEVS[seen.own];
                    if port == 0 || !program(seen.direction).takes(&frame, None) {
                        continue;
                    }
                    // Once by the rules, and once from what the CPU remembers.
                    for _ in 0..2 {
                        let mut packet = world.run(&frame, seen.direction, seen.came, seen.own);
                        let port = PortId(Uuid::from_u128(port));
                        set.meet_routers(&mut packet, device_of);
                        packet.flow = flows.note(Some(port), &packet, rules::tcp_flags(&frame));
                        returned += u64::from(meters.counting(&packet).count() == 1);
                        let admits =
                            set.meters[0].rules.iter().any(|rule| matches(rule, &packet, &set.groups));
                        let one = Counter { packets: 1, bytes: frame.len().try_into().unwrap() };
                        match key_of(port, &packet) {
                            Some(key) if admits || connections.contains_key(&key) => {
                                connections.entry(key).or_default().add(&one);
                                counted += 1;
                            }
                            key => {
                                others.entry(port).or_default().add(&one);
                                refused += usize::from(key.is_some());
                            }
                        }
                    }
                }
                let reading = world.meter.reading();
                let found: BTreeMap<Key, Counter> = reading
                    .connections
                    .iter()
                    .map(|connection| {
                        let mut ends =
                            [connection.initiator, connection.target].map(|end| (end.ip(), end.port()));
                        ends.sort();
                        let mut sum = Counter::default();
                        connection.counts.as_flattened().iter().for_each(|count| sum.add(count));
                        ((connection.port, connection.protocol, ends), sum)
                    })
                    .collect();
                assert_eq!(found, connections, "{set:#?}");
                for capture in &reading.captures {
                    let mut sum = Counter::default();
                    Hook::ALL.into_iter().for_each(|hook| sum.add(&capture.other[hook as usize]));
                    assert_eq!(sum, others.get(&capture.port).copied().unwrap_or_default(), "{set:#?}");
                }
                assert_eq!(world.meter.meters()["return"][0], returned);
            }
            assert!(
                counted > rounds && refused > rounds / 3,
                "{counted} frames counted and {refused} refused: nothing is compared"
            );
        },
    );
}

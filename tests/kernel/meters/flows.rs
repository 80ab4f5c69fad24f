//! The direction of connections: what the programs say of packet after packet, beside the plain tracker.

use std::{collections::BTreeSet, ops::RangeInclusive};

use aya::maps::{Array, HashMap, MapData};
use meter_agent::{
    datapath::Datapath as _,
    rules::{self, Direction, Flow, Flows},
};
use meter_ebpf::abi::{
    Fault,
    connection::{CONNECTION_LABELS, Connection, ConnectionKey},
    map,
};
use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};

use super::{NETDEVS, World, meters, program};
use crate::support::{
    frames::{IPV4, IPV6, ethernet, ipv4_with, ipv6},
    pinned_map, ready,
};

/// Packets of each sequence, and sequences.
const PACKETS: usize = 300;
const SEQUENCES: usize = 12;

/// Meters that each packet is counted in by one of, and how they are told.
const LINES: [(&str, &str); 4] = [
    ("rx forward", "flow fwd-flow direction rx"),
    ("rx return", "flow return-flow direction rx"),
    ("tx forward", "flow fwd-flow direction tx"),
    ("tx return", "flow return-flow direction tx"),
];

fn line_of(direction: Direction, flow: Flow) -> &'static str {
    let place = usize::from(direction == Direction::Tx) * 2 + usize::from(flow == Flow::Return);
    LINES[place].0
}

/// A packet between few ends, so that they meet again.
#[derive(Debug, Clone)]
struct Sent {
    six: bool,
    protocol: u8,
    /// By number: which addresses, and which ports.
    ends: [(u8, u8); 2],
    flags: u8,
    fragment: u16,
    direction: Direction,
    own: usize,
}

prop_compose! {
    fn sent()(
        six in any::<bool>(),
        protocol in prop::sample::select(vec![6, 6, 6, 17, 132, 1, 58, 47]),
        ends in prop::array::uniform2((0..2_u8, 0..2_u8)),
        // FIN, SYN, RST, ACK, alone and together.
        flags in prop::sample::select(vec![2, 18, 16, 24, 17, 4, 20, 0, 1, 3, 6, 255]),
        fragment in prop::sample::select(vec![0, 0, 0, 0, 0x2000, 1]),
        direction in prop::sample::select(vec![Direction::Rx, Direction::Tx]),
        own in prop::sample::select(vec![0, 0, 1, 3]),
    ) -> Sent {
        Sent { six, protocol, ends, flags, fragment, direction, own }
    }
}

impl Sent {
    fn frame(&self) -> Vec<u8> {
        let [(src, src_port), (dst, dst_port)] = self.ends;
        // The types of ICMP that matter, where ports are for others.
        let head = match (self.protocol, src_port) {
            (1, kind) => vec![kind * 8, 0, dst_port, 0],
            (58, kind) => vec![128 + kind, 0, dst_port, 0],
            _ => vec![0, src_port, 0x13, dst_port],
        };
        let payload =
            [&head[..], &[0, 0, 0, 1, 0, 0, 0, 1, 0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]].concat();
        if self.six {
            let mut frame = ethernet(&[], IPV6, &ipv6(self.protocol, &payload));
            (frame[37], frame[53]) = (src, dst);
            return frame;
        }
        let mut frame = ethernet(&[], IPV4, &ipv4_with(&[], self.fragment, self.protocol, &payload));
        (frame[29], frame[33]) = (src, dst);
        frame
    }
}

/// Sends packets one after the other; each has to be counted in the one meter that the plain tracker says.
fn follow(world: &mut World<'_>, flows: &mut Flows, packets: impl IntoIterator<Item = Sent>) {
    for sent in packets {
        let frame = sent.frame();
        if !program(sent.direction).takes(&frame, None) {
            continue;
        }
        let mut expected = world.meter.meters();
        let packet = world.run(&frame, sent.direction, None, sent.own);
        let (_, port, ..) = NETDEVS[sent.own];
        let at = packet.in_port.or(packet.out_port).filter(|_| port != 0);
        let flow = flows.note(at, &packet, rules::tcp_flags(&frame));
        let [packets, bytes] = expected.get_mut(line_of(sent.direction, flow)).unwrap();
        *packets += 1;
        *bytes += u64::try_from(frame.len()).unwrap();
        assert_eq!(world.meter.meters(), expected, "{sent:?} is {flow:?}");
    }
}

#[test]
fn programs_follow_connections_as_the_plain_tracker_does() {
    if !ready() {
        return;
    }
    World::with("flows", |world| {
        world.meter.set_meters(&meters(&LINES));
        let mut runner = TestRunner::default();
        let mut flows = Flows::default();
        for _ in 0..SEQUENCES {
            let packets = prop::collection::vec(sent(), PACKETS).new_tree(&mut runner).unwrap().current();
            follow(world, &mut flows, packets);
        }
        let counted = world.meter.meters();
        assert!(counted.values().all(|[packets, _]| *packets > 100), "{counted:?}");
        assert_eq!(world.meter.reading().faults.reasons[Fault::ConnectionTableFull as usize].packets, 0);
    });
}

/// A UDP packet of connection `number`, from its initiator or to it.
fn datagram(number: u16, back: bool) -> Vec<u8> {
    let [high, low] = number.to_be_bytes();
    let mut ports = [[high, low], [0, 53]];
    if back {
        ports.swap(0, 1);
    }
    let payload = [&ports.concat()[..], &[0, 12, 0, 0, 1, 2, 3, 4]].concat();
    let mut frame = ethernet(&[], IPV4, &ipv4_with(&[], 0, 17, &payload));
    if back {
        let (src, dst) = ([192, 0, 2, 2], [192, 0, 2, 1]);
        frame[26..30].copy_from_slice(&src);
        frame[30..34].copy_from_slice(&dst);
    }
    frame
}

/// Returns how many connections the maps say there are, and how many places are free.
fn used(world: &mut World<'_>) -> [u64; 2] {
    let maps = world.meter.reading().maps;
    let entries = |name| maps.iter().find(|usage| usage.map == name).unwrap().entries;
    [entries(map::CONNECTION_KEYS), entries(map::CONNECTION_FREE)]
}

/// Lets these seconds pass, each with its tick.
fn pass(world: &mut World<'_>, seconds: RangeInclusive<u32>) {
    seconds.for_each(|now| world.meter.datapath.tend_at(now));
}

fn counts(world: &mut World<'_>) -> [u64; 2] {
    let meters = world.meter.meters();
    ["rx forward", "tx return"].map(|name| meters[name][0])
}

#[test]
fn full_table_keeps_those_that_are_there_and_idle_ones_make_room() {
    if !ready() {
        return;
    }
    World::with_options(
        "flows-full",
        |options| options.max_connections = 100,
        |mut world| {
            let world = &mut world;
            world.meter.set_meters(&meters(&LINES));
            let untracked = |world: &mut World<'_>| {
                world.meter.reading().faults.reasons[Fault::ConnectionTableFull as usize]
            };
            world.meter.datapath.tend_at(1_000);
            for number in 0..100 {
                world.run(&datagram(number, false), Direction::Rx, None, 0);
                world.run(&datagram(number, true), Direction::Tx, None, 0);
            }
            assert_eq!(counts(world), [100, 100]);
            assert_eq!(untracked(world).packets, 0);

            // A scan finds no room, disturbs nobody, and is counted.
            for number in 1_000..3_000 {
                world.run(&datagram(number, false), Direction::Rx, None, 0);
            }
            let frame = u64::try_from(datagram(0, false).len()).unwrap();
            assert_eq!((untracked(world).packets, untracked(world).bytes), (2_000, 2_000 * frame));
            for number in 0..100 {
                world.run(&datagram(number, true), Direction::Tx, None, 0);
            }
            assert_eq!(counts(world), [2_100, 200]);
            assert_eq!(untracked(world).packets, 2_000);

            // Nothing goes before its time: the agent that first looks at it takes what it finds for alive.
            pass(world, 1_001..=1_299);
            assert_eq!(used(world), [100, 0]);
            world.run(&datagram(7, true), Direction::Tx, None, 0);
            world.meter.datapath.tend_at(1_300);
            assert_eq!(used(world)[0], 1, "all but the one that was not idle");
            // Whoever comes now is another connection, as soon as a place is free.
            world.run(&datagram(8, true), Direction::Tx, None, 0);
            assert_eq!(untracked(world).packets, 2_001);
            world.meter.datapath.tend_at(1_301);
            for number in 0..99 {
                world.run(&datagram(2_000 + number, false), Direction::Rx, None, 0);
            }
            assert_eq!(untracked(world).packets, 2_001);
            world.run(&datagram(5_000, false), Direction::Rx, None, 0);
            assert_eq!(untracked(world).packets, 2_002);
            // Those that nobody answered go sooner.
            pass(world, 1_302..=1_361);
            assert_eq!(used(world)[0], 1);
            world.meter.datapath.tend_at(1_362);
            assert_eq!(used(world), [1, 99]);
        },
    );
}

#[test]
fn connections_outlive_the_agent() {
    if !ready() {
        return;
    }
    World::with_options(
        "flows-restart",
        |_| {},
        |mut world| {
            world.meter.set_meters(&meters(&LINES));
            for number in 0..3 {
                world.run(&datagram(number, false), Direction::Rx, None, 0);
            }
            let mut world = world.reopen();
            let world = &mut world;
            world.meter.set_meters(&meters(&LINES));
            // With no agent the clock of the programs stood still.
            world.meter.datapath.tend();
            world.meter.datapath.tend();
            assert_eq!(used(world), [3, 1_021]);
            for number in 0..4 {
                world.run(&datagram(number, true), Direction::Tx, None, 0);
            }
            let meters = world.meter.meters();
            assert_eq!(
                LINES.map(|(name, _)| meters[name][0]),
                [3, 0, 1, 3],
                "the fourth begins with what the others answer"
            );
        },
    );
}

#[test]
fn connections_outlive_a_clock_that_stood_still() {
    if !ready() {
        return;
    }
    World::with("flows-clock", |world| {
        world.meter.set_meters(&meters(&LINES));
        world.run(&datagram(0, false), Direction::Rx, None, 0);
        // The agent hears nothing for a day.
        world.meter.datapath.tend_at(200_000_000);
        assert_eq!(used(world)[0], 1);
        world.run(&datagram(0, true), Direction::Tx, None, 0);
        world.meter.datapath.tend_at(200_086_400);
        world.run(&datagram(0, true), Direction::Tx, None, 0);
        assert_eq!(counts(world), [1, 2]);
    });
}

#[test]
fn agent_that_is_killed_while_it_takes_connections_out_leaves_each_place_to_one() {
    if !ready() {
        return;
    }
    const PLACES: u32 = 16;
    World::with_options(
        "flows-killed",
        |options| options.max_connections = PLACES,
        |mut world| {
            world.meter.set_meters(&meters(&LINES));
            for number in 0..3 {
                world.run(&datagram(number, false), Direction::Rx, None, 0);
            }
            // One is marked; of another the key is gone as well, and of the third nothing is left but the mark.
            let options = world.options.clone();
            let mut places: Array<MapData, Connection> = pinned_map(&options.pin_path, map::CONNECTIONS);
            let mut keys: HashMap<MapData, ConnectionKey, u32> =
                pinned_map(&options.pin_path, map::CONNECTION_KEYS);
            let taken: Vec<(ConnectionKey, u32)> = keys.iter().collect::<Result<_, _>>().unwrap();
            assert_eq!(taken.len(), 3);
            for (done, (key, number)) in taken.iter().enumerate() {
                let mut place = places.get(number, 0).unwrap();
                place.course.leaving = 1;
                if done > 0 {
                    keys.remove(key).unwrap();
                }
                if done > 1 {
                    place.key.words[CONNECTION_LABELS] = 0;
                }
                places.set(*number, place, 0).unwrap();
            }
            let mut world = world.reopen();
            let world = &mut world;
            world.meter.set_meters(&meters(&LINES));
            world.meter.datapath.tend();
            world.meter.datapath.tend();
            assert_eq!(used(world), [0, u64::from(PLACES)]);
            for number in 100..120 {
                world.run(&datagram(number, false), Direction::Rx, None, 0);
            }
            let found: Vec<(ConnectionKey, u32)> = keys.iter().collect::<Result<_, _>>().unwrap();
            let places: BTreeSet<u32> = found.iter().map(|(_, place)| *place).collect();
            assert_eq!((found.len(), places), (16, (1..=PLACES).collect()));
            assert_eq!(world.meter.reading().faults.reasons[Fault::ConnectionTableFull as usize].packets, 4);
        },
    );
}

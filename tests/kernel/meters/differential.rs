//! Random rules and random frames through the real programs: each meter counts what the plain matcher says.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use meter_agent::{
    meter::{DeviceId, PortId},
    rules::{
        self, Condition, Direction, Flow, Flows, FragmentPolicy, Groups, MacMatch, Meter, MeterSet, Packet,
        PortRange, Prefix, Router, Test,
    },
};
use meter_ebpf::packet::Fragment;
use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};
use uuid::Uuid;

use super::{NETDEVS, World, device_of, program};
use crate::support::ready;

#[path = "../../../meter-agent/src/rules/tests/strategies.rs"]
mod strategies;

/// Pairs of a rule and a frame at least; `METER_RULE_PAIRS` sets another number.
const PAIRS: usize = 20_000;
/// Frames for each set.
const FRAMES: usize = 60;

prop_compose! {
    pub(super) fn sets()(
        rules in prop::collection::vec(prop::collection::vec(strategies::conditions(), 1..4), 1..80),
        groups in strategies::every_group(),
        routers in strategies::routers(),
    ) -> MeterSet {
        // Of each set one rule at least asks for the direction of connections, so that none of their packets is missed.
        let flow = Meter {
            name: "flow".to_owned(),
            rules: vec![Condition { flow: Some(Flow::Return), ..Condition::default() }],
        };
        let meters = (0..).zip(rules).map(|(number, rules): (usize, _)| {
            Meter { name: format!("meter {number}: \"é\""), rules }
        });
        MeterSet { meters: meters.chain([flow]).collect(), groups, routers }
    }
}

/// A frame, and at which hook it is.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    packet: Packet,
    /// Whether it is the answer to the packet before instead.
    answers: bool,
    more: Vec<u8>,
    inner: Option<u16>,
    cut: Option<usize>,
    pub(super) direction: Direction,
    pub(super) came: Option<usize>,
    pub(super) own: usize,
}

prop_compose! {
    pub(super) fn seen()(
        packet in strategies::packets(),
        answers in any::<bool>(),
        more in prop::collection::vec(any::<u8>(), 0..60),
        inner in prop::option::weighted(0.2, 0..5_u16),
        cut in prop::option::weighted(0.1, 0..80_usize),
        came in prop::option::of(0..NETDEVS.len()),
        own in 0..NETDEVS.len(),
    ) -> Seen {
        let direction = packet.direction.unwrap_or(Direction::Rx);
        Seen { packet, answers, more, inner, cut, direction, came, own }
    }
}

impl Seen {
    /// Returns its frame, and makes its packet the one before the next.
    pub(super) fn frame(&self, before: &mut Packet) -> Vec<u8> {
        let packet = if self.answers { answer(before) } else { self.packet.clone() };
        let mut frame = frame(&packet, self.inner, &self.more);
        if let Some(cut) = self.cut {
            frame.truncate(cut.max(14));
        }
        *before = packet;
        frame
    }
}

fn answer(packet: &Packet) -> Packet {
    Packet {
        src: packet.dst,
        dst: packet.src,
        src_port: packet.dst_port,
        dst_port: packet.src_port,
        ..packet.clone()
    }
}

/// Writes a frame that has about the fields of a packet. What it really has the matcher reads from the frame.
fn frame(packet: &Packet, inner_tag: Option<u16>, more: &[u8]) -> Vec<u8> {
    let mut frame = [packet.hw_dst.unwrap_or_default(), packet.hw_src.unwrap_or_default()].concat();
    if let Some(id) = packet.vlan {
        frame.extend([0x81, 0]);
        frame.extend((id | 0x2000).to_be_bytes());
    }
    if let Some(id) = inner_tag {
        frame.extend([0x88, 0xa8]);
        frame.extend(id.to_be_bytes());
    }
    let address = |address: Option<IpAddr>| address.unwrap_or(IpAddr::from([1, 0, 0, 1]));
    let four = |wanted: Option<IpAddr>| match address(wanted) {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => address.octets()[..4].try_into().unwrap(),
    };
    let six = |wanted: Option<IpAddr>| match address(wanted) {
        IpAddr::V4(address) => address.to_ipv6_compatible().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    let (proto, tos) = (packet.proto.unwrap_or(132), packet.tos.unwrap_or(7));
    let field: u16 = match packet.fragment {
        Fragment::Whole => 0,
        Fragment::First => 1,
        Fragment::Later => 9 << 3,
    };
    let ports = [packet.src_port.unwrap_or(3), packet.dst_port.unwrap_or(4)].map(u16::to_be_bytes).concat();
    match packet.ethertype {
        None => frame.extend([0, 40]),
        Some(0x806) => {
            frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, tos & 1, proto]);
            frame.extend(packet.hw_src.unwrap_or_default());
            frame.extend(four(packet.src));
            frame.extend([0; 6]);
            frame.extend(four(packet.dst));
        }
        Some(0x86dd) => {
            let next = if field == 0 { proto } else { 44 };
            frame.extend([0x86, 0xdd, 0x60 | tos >> 4, tos << 4, 0, 0, 0, 40, next, 64]);
            frame.extend(six(packet.src));
            frame.extend(six(packet.dst));
            if field != 0 {
                frame.extend([proto, 0]);
                frame.extend(field.to_be_bytes());
                frame.extend([0, 0, 0, 1]);
            }
            frame.extend(ports);
        }
        Some(_) => {
            // The flag of more fragments is another bit here, and offsets are in units of 8 bytes.
            let field = if field == 1 { 0x2000 } else { field >> 3 };
            frame.extend([0x08, 0x00, 0x45, tos, 0, 60, 0, 0]);
            frame.extend(field.to_be_bytes());
            frame.extend([64, proto, 0, 0]);
            frame.extend(four(packet.src));
            frame.extend(four(packet.dst));
            frame.extend(ports);
        }
    }
    frame.extend(more);
    frame
}

pub(super) fn sample<T: std::fmt::Debug>(runner: &mut TestRunner, strategy: &impl Strategy<Value = T>) -> T {
    strategy.new_tree(runner).unwrap().current()
}

#[test]
fn programs_count_what_the_matcher_says() {
    if !ready() {
        return;
    }
    let wanted = lab::amount("METER_RULE_PAIRS", PAIRS, 2_000);
    World::with_options(
        "meters",
        |options| options.max_connections = 60_000,
        |mut world| {
            let mut flows = Flows::default();
            let mut before = Packet::default();
            let mut runner = TestRunner::default();
            let (mut pairs, mut matched) = (0, 0);
            // One set after another, however many rules the first has.
            let mut sets_before = 0;
            while pairs < wanted || sets_before < 3 {
                sets_before += 1;
                let set = sample(&mut runner, &sets());
                world.meter.set_meters(&set);
                let mut expected = world.meter.meters();
                assert!(
                    expected.keys().eq(set.meters.iter().map(|meter| &meter.name).collect::<BTreeSet<_>>())
                );
                for _ in 0..FRAMES {
                    let seen = sample(&mut runner, &seen());
                    let frame = seen.frame(&mut before);
                    if !program(seen.direction).takes(&frame, None) {
                        continue;
                    }
                    // Once by the rules, and once from what the CPU remembers.
                    for _ in 0..2 {
                        let mut packet = world.run(&frame, seen.direction, seen.came, seen.own);
                        let (_, port, ..) = NETDEVS[seen.own];
                        let at = (port != 0).then(|| PortId(Uuid::from_u128(port)));
                        set.meet_routers(&mut packet, device_of);
                        packet.flow = flows.note(at, &packet, rules::tcp_flags(&frame));
                        for meter in set.counting(&packet) {
                            let [packets, bytes] = expected.get_mut(&meter.name).unwrap();
                            *packets += 1;
                            *bytes += u64::try_from(frame.len()).unwrap();
                            matched += 1;
                        }
                        let found = world.meter.meters();
                        let differing: BTreeMap<_, _> = found
                            .iter()
                            .filter(|(name, stats)| expected.get(*name) != Some(stats))
                            .map(|(name, stats)| {
                                (
                                    set.meters.iter().find(|meter| meter.name == *name).unwrap(),
                                    (stats, &expected[name]),
                                )
                            })
                            .map(|(meter, stats)| (&meter.name, (stats, &meter.rules)))
                            .collect();
                        assert!(
                            differing.is_empty(),
                            "{packet}: {seen:?}: {frame:02x?}: {differing:#?} {:?}",
                            set.groups
                        );
                    }
                    pairs += set.meters.iter().map(|meter| meter.rules.len()).sum::<usize>();
                }
            }
            assert!(matched * 200 > pairs, "of {pairs} pairs only {matched} match: nothing is compared");
        },
    );
}

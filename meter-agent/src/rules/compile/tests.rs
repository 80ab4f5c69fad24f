use std::collections::{BTreeMap, BTreeSet};

use meter_ebpf::{
    abi::rules::{KEY_WORDS, present},
    rules::{Matched, Matches, classify, counter_of},
};
use proptest::prelude::*;

use super::{super::tests::strategies, *};
use crate::rules::{Meter, Packet};

/// Ports 1 to 4 of the strategies' world, three of which have a slot; two of them belong to devices.
fn slots() -> BTreeMap<u32, SlotPort> {
    let port = |port: u128, device: Option<u128>| SlotPort {
        port: PortId(Uuid::from_u128(port)),
        device: device.map(|device| DeviceId(Uuid::from_u128(device))),
    };
    BTreeMap::from([(1, port(1, None)), (17, port(2, Some(4))), (70_000, port(3, Some(1)))])
}

/// Lists what matches, as the programs do.
struct Listed(Matched);

impl Matches for Listed {
    fn add(&mut self, word: u32, bits: u64) {
        self.0.list(word, bits);
    }
}

/// Returns the counters that a frame with this key counts in, in the order of the rules.
fn counters(tables: &RuleTables, key: &FlowKey) -> Vec<u32> {
    let mut listed = Listed(Matched::default());
    classify(tables, key, &mut listed);
    let rules: Vec<u16> = (0..MAX_RULES).map_while(|place| listed.0.rule(place)).collect();
    let counters = rules.into_iter().map(|rule| counter_of(tables, rule));
    counters.filter(|counter| listed.0.note(*counter)).collect()
}

/// Makes the key of a packet that a hook can see, with the slots of its ports.
fn key(packet: &Packet, [in_slot, out_slot]: [u32; 2]) -> FlowKey {
    let mut key = FlowKey { words: [0; KEY_WORDS] };
    let six = |address: Option<IpAddr>| address.is_some_and(|address| address.is_ipv6());
    let mut bits = 0;
    let address = |address: IpAddr| match address {
        IpAddr::V4(address) => [u64::from(address.to_bits()) << 32, 0],
        IpAddr::V6(address) => {
            let [a, b] = [address.to_bits() >> 64, address.to_bits() & u128::from(u64::MAX)];
            [u64::try_from(a).unwrap(), u64::try_from(b).unwrap()]
        }
    };
    if let Some(src) = packet.src {
        [key.words[0], key.words[1]] = address(src);
        bits |= present::SRC;
    }
    if let Some(dst) = packet.dst {
        [key.words[2], key.words[3]] = address(dst);
        bits |= present::DST;
    }
    if six(packet.src) || six(packet.dst) {
        bits |= present::IPV6;
    }
    let mut number = |value: Option<u16>, shift: u32, bit: u64| {
        bits |= if value.is_some() { bit } else { 0 };
        u64::from(value.unwrap_or_default()) << shift
    };
    key.words[4] = number(packet.src_port, 48, present::SRC_PORT)
        | number(packet.dst_port, 32, present::DST_PORT)
        | number(packet.ethertype, 16, present::ETHERTYPE)
        | number(packet.vlan, 0, present::VLAN);
    key.words[5] = number(packet.proto.map(u16::from), 48, present::PROTO)
        | number(packet.tos.map(u16::from), 56, present::TOS);
    let mac = |[a, b, c, d, e, f]: [u8; 6]| u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
    if let (Some(src), Some(dst)) = (packet.hw_src, packet.hw_dst) {
        key.words[5] |= mac(src);
        key.words[6] |= mac(dst);
        bits |= present::HW;
    }
    key.words[6] |= bits | (packet.fragment as u64) << present::FRAGMENT_SHIFT;
    let hook = if packet.direction == Some(Direction::Tx) { Hook::Egress } else { Hook::Ingress };
    key.set_hook(hook, in_slot, out_slot);
    key.set_network(packet.network);
    if packet.flow == Flow::Return {
        key.set_return();
    }
    key
}

/// Makes any packet one that a hook can see, and returns it with the slots of its ports.
fn at_a_hook(mut packet: Packet, in_slot: Option<u32>, out_slot: u32) -> (Packet, [u32; 2]) {
    let slots = slots();
    let egress = packet.direction == Some(Direction::Tx);
    let came = in_slot.unwrap_or(if egress { 0 } else { 99 });
    let went = if egress { out_slot } else { 0 };
    packet.direction = Some(if egress { Direction::Tx } else { Direction::Rx });
    let [in_port, out_port] = [came, went].map(|slot| slots.get(&slot).copied());
    packet.in_port = in_port.map(|port| port.port);
    packet.origin_port = packet.in_port;
    packet.out_port = out_port.map(|port| port.port);
    let ports = in_port.into_iter().chain(out_port);
    packet.traversed =
        ports.flat_map(|port| [Some(port.port.0), port.device.map(|device| device.0)]).flatten().collect();
    // A frame has both addresses of a kind, of one family, or none.
    if let (Some(src), Some(dst)) = (packet.src, packet.dst)
        && src.is_ipv4() != dst.is_ipv4()
    {
        packet.dst = Some(src);
    }
    if packet.hw_src.is_none() || packet.hw_dst.is_none() {
        (packet.hw_src, packet.hw_dst) = (None, None);
    }
    (packet, [came, went])
}

/// Returns the meters that the tables say, and those of the plain matcher. Meter `n` has counter `1000 - n`.
fn both(
    set: &MeterSet,
    tables: &RuleTables,
    packet: &Packet,
    of_ports: [u32; 2],
) -> (BTreeSet<usize>, BTreeSet<usize>) {
    let mut key = key(packet, of_ports);
    key.restrict(tables);
    // Inside a tunnel a program asks only rules of overlay networks.
    let asks = !packet.network.is_tunnel() || tables.key_mask.asks_for_network();
    let counted = if asks { counters(tables, &key) } else { Vec::new() };
    let found: BTreeSet<usize> =
        counted.iter().map(|counter| 1_000 - usize::try_from(*counter).unwrap()).collect();
    assert_eq!(found.len(), counted.len(), "a meter counts twice");
    let expected = set.counting(packet).map(|meter| meter.name.parse().unwrap()).collect();
    (found, expected)
}

prop_compose! {
    fn sets()(
        rules in prop::collection::vec(
            prop::collection::vec(strategies::conditions(), 1..4),
            0..40,
        ),
        groups in strategies::groups(),
        routers in strategies::routers(),
    ) -> MeterSet {
        let meters = (0..).zip(rules).map(|(number, rules): (usize, _)| Meter { name: number.to_string(), rules });
        MeterSet { meters: meters.collect(), groups, routers }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn compiled_rules_say_what_the_matcher_says(
        set in sets(),
        packets in prop::collection::vec(
            (
                strategies::packets(),
                prop::option::of(prop::sample::select(vec![1, 17, 70_000])),
                prop::sample::select(vec![1, 5, 17, 70_000]),
            ),
            1..20,
        ),
    ) {
        let counters: Vec<u16> = (0..set.meters.len()).map(|n| u16::try_from(1_000 - n).unwrap()).collect();
        let tables = compile(&set, &counters, &slots(), 7).unwrap();
        for (packet, in_slot, out_slot) in packets {
            let (mut packet, of_ports) = at_a_hook(packet, in_slot, out_slot);
            let slots = slots();
            let device = |port| slots.values().find(|slot| slot.port == port).and_then(|slot| slot.device);
            set.meet_routers(&mut packet, device);
            let (found, expected) = both(&set, &tables[0], &packet, of_ports);
            prop_assert_eq!(found, expected, "{:?}", packet);
        }
    }

    #[test]
    fn a_range_is_the_numbers_in_it(bounds in any::<[u16; 2]>(), number in any::<u16>()) {
        let [start, end] = [bounds[0].min(bounds[1]), bounds[0].max(bounds[1])];
        let patterns = Pattern::range(start, end);
        prop_assert!(patterns.len() <= 30);
        for number in [number, start, end, start.wrapping_sub(1), end.wrapping_add(1)] {
            let exact = Pattern::exact(number.into(), 16);
            let found = patterns.iter().filter(|pattern| pattern.has(&exact)).count();
            prop_assert_eq!(found, usize::from((start..=end).contains(&number)));
        }
    }
}

fn meter(rules: Vec<Condition>) -> MeterSet {
    MeterSet { meters: vec![Meter { name: "0".to_owned(), rules }], ..MeterSet::default() }
}

#[test]
fn a_thousand_rules_of_every_kind_fit() {
    let rule = |number: u32| Condition {
        src: Test {
            value: Some(Prefix::host(IpAddr::from(number.wrapping_mul(0x9e37_79b9).to_be_bytes()))),
            inverted: false,
        },
        dst: Test {
            value: Some(Prefix {
                address: IpAddr::from(
                    u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834).to_be_bytes(),
                ),
                length: 64,
            }),
            inverted: true,
        },
        dst_port: Test {
            value: Some(PortRange {
                start: u16::try_from(number * 60).ok(),
                end: u16::try_from(number * 61).ok(),
            }),
            inverted: false,
        },
        hw_src: Test {
            value: Some(MacMatch {
                address: (u64::from(number) * 0x1_0001).to_be_bytes()[2..].try_into().unwrap(),
                mask: [0xff; 6],
            }),
            inverted: number.is_multiple_of(2),
        },
        ..Condition::default()
    };
    let rules = u32::try_from(MAX_RULES).unwrap();
    compile(&meter((0..rules).map(rule).collect()), &[5], &BTreeMap::new(), 1).unwrap();
    let error = compile(&meter((0..=rules).map(rule).collect()), &[5], &BTreeMap::new(), 1).unwrap_err();
    assert_eq!(error, CompileError::Rules { rules: MAX_RULES + 1 });
}

#[test]
fn what_cannot_be_counted_is_refused_and_named() {
    // Masks that have nothing in common: each packet may match any of them.
    let mask = |number: u64| {
        let mask = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
        let mask: [u8; 6] = mask[..6].try_into().unwrap();
        let hw_src = Test { value: Some(MacMatch { address: mask, mask }), inverted: false };
        Condition { hw_src, ..Condition::default() }
    };
    let error = compile(&meter((1..200).map(mask).collect()), &[5], &BTreeMap::new(), 1).unwrap_err();
    assert_eq!(error, CompileError::Room { what: "hw-src" });
}

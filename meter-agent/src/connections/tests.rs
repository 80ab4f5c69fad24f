//! Laws of what is shown.

use std::{collections::BTreeMap, net::SocketAddr};

use meter_ebpf::abi::{Counter, Encap};
use proptest::prelude::*;
use uuid::Uuid;

use super::{
    Address, Board, Classifier, Label, Selection, Shown, Tag, View,
    list::{Question, table},
    protocol_name,
};
use crate::{
    datapath::{CaptureReading, ConnectionReading},
    meter::PortId,
    rules::{self, MeterSet, RuleLine},
};

fn port(number: u8) -> PortId {
    PortId(Uuid::from_u128(number.into()))
}

fn connection(number: u8, counts: [[u64; 2]; 2]) -> ConnectionReading {
    let end = |host: u8, port: u16| SocketAddr::from(([10, 0, host, number], port));
    ConnectionReading {
        port: port(number % 2),
        protocol: 6,
        overlay: None,
        initiator: end(1, 40_000 + u16::from(number)),
        target: end(2, 80),
        counts: counts.map(|counts| counts.map(|bytes| Counter { packets: bytes.div_ceil(100), bytes })),
        rtt_ns: u64::from(number) + 1,
        began_s: 1,
        idle_s: 0,
        left: false,
        timed_out: false,
        answered: true,
        ended: false,
    }
}

fn view(most: usize) -> View {
    View { most, ..View::default() }
}

/// A table, and what there is beside it.
#[derive(Debug, Default)]
struct World {
    live: BTreeMap<u8, ConnectionReading>,
    captures: BTreeMap<PortId, CaptureReading>,
    /// So that the same ends have another connection later.
    now: u32,
}

#[derive(Debug, Clone)]
enum Event {
    Send {
        number: u8,
        end: usize,
        hook: usize,
        bytes: u64,
    },
    End {
        number: u8,
    },
    Other {
        number: u8,
        hook: usize,
        bytes: u64,
    },
    /// The other end begins it anew.
    Turn {
        number: u8,
    },
    /// Another agent shows from now on.
    Restart,
    Show,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (0..12_u8, 0..2_usize, 0..2_usize, 1..100_000_u64)
            .prop_map(|(number, end, hook, bytes)| Event::Send { number, end, hook, bytes }),
        1 => (0..12_u8).prop_map(|number| Event::End { number }),
        1 => (0..12_u8, 0..2_usize, 1..10_000_u64)
            .prop_map(|(number, hook, bytes)| Event::Other { number, hook, bytes }),
        1 => (0..12_u8).prop_map(|number| Event::Turn { number }),
        1 => prop::bool::weighted(0.2).prop_map(|yes| if yes { Event::Restart } else { Event::Show }),
        2 => Just(Event::Show),
    ];
    prop::collection::vec(event, 1..80)
}

impl World {
    fn capture(&mut self, number: u8) -> &mut CaptureReading {
        let port = port(number % 2);
        self.captures.entry(port).or_insert(CaptureReading {
            port,
            other: [Counter::default(); 2],
            ended: [Counter::default(); 2],
        })
    }

    fn take(&mut self, event: &Event) {
        self.now += 1;
        match *event {
            Event::Send { number, end, hook, bytes } => {
                self.capture(number);
                let began_s = self.now;
                let known = self
                    .live
                    .entry(number)
                    .or_insert_with(|| ConnectionReading { began_s, ..connection(number, [[0; 2]; 2]) });
                known.counts[end][hook].add(&Counter { packets: 1, bytes });
            }
            Event::End { number } => {
                if let Some(ended) = self.live.remove(&number) {
                    let capture = self.capture(number);
                    for counts in ended.counts {
                        capture.ended.iter_mut().zip(&counts).for_each(|(sum, count)| sum.add(count));
                    }
                }
            }
            Event::Other { number, hook, bytes } => {
                self.capture(number).other[hook].add(&Counter { packets: 1, bytes });
            }
            Event::Turn { number } => {
                if let Some(known) = self.live.get_mut(&number) {
                    std::mem::swap(&mut known.initiator, &mut known.target);
                    known.counts.reverse();
                }
            }
            Event::Restart | Event::Show => {}
        }
    }

    fn show(&self, board: &mut Board, view: &View) -> Shown {
        let connections: Vec<_> = self.live.values().cloned().collect();
        let captures: Vec<_> = self.captures.values().cloned().collect();
        board.update(view, self.now.into(), &connections, &captures)
    }

    /// All that was counted, by port and hook.
    fn totals(&self) -> BTreeMap<PortId, [Counter; 2]> {
        let mut totals: BTreeMap<PortId, [Counter; 2]> = BTreeMap::new();
        for capture in self.captures.values() {
            let total = totals.entry(capture.port).or_default();
            for counts in [&capture.other, &capture.ended] {
                total.iter_mut().zip(counts).for_each(|(sum, count)| sum.add(count));
            }
        }
        for connection in self.live.values() {
            let total = totals.entry(connection.port).or_default();
            connection.counts.iter().for_each(|counts| {
                total.iter_mut().zip(counts).for_each(|(sum, count)| sum.add(count));
            });
        }
        totals
    }
}

fn views() -> impl Strategy<Value = View> {
    (0..8_usize, any::<bool>(), any::<bool>()).prop_map(|(most, drops, groups)| View {
        drop: if drops { [Label::InitiatorPort, Label::TargetIp].into() } else { [].into() },
        networks: if groups { vec![rules::prefix("10.0.1.0/30").unwrap()] } else { Vec::new() },
        ..view(most)
    })
}

proptest! {
    #[test]
    fn what_is_shown_adds_up_and_never_goes_back(events in events(), view in views()) {
        let (mut world, mut board) = (World::default(), Board::default());
        let mut before = Shown::default();
        for event in &events {
            world.take(event);
            match event {
                Event::Show => {}
                Event::Restart => {
                    board = Board::default();
                    world.live.values_mut().for_each(|connection| connection.left = true);
                    before.rows.clear();
                    continue;
                }
                _ => continue,
            }
            let shown = world.show(&mut board, &view);
            prop_assert!(shown.rows.len() <= view.most);
            let mut sums: BTreeMap<PortId, [Counter; 2]> = shown.others.iter().copied().collect();
            for row in &shown.rows {
                let sum = sums.get_mut(&row.series.port).unwrap();
                row.counts.iter().for_each(|counts| {
                    sum.iter_mut().zip(counts).for_each(|(sum, count)| sum.add(count));
                });
            }
            prop_assert_eq!(&sums, &world.totals());
            let is_less = |now: &Counter, then: &Counter| now.packets < then.packets || now.bytes < then.bytes;
            for (port, others) in &before.others {
                let now = shown.others.iter().find(|(now, _)| now == port).unwrap().1;
                prop_assert!(!now.iter().zip(others).any(|(now, then)| is_less(now, then)), "{:?}", shown);
            }
            for row in &before.rows {
                let Some(now) = shown.rows.iter().find(|now| now.series == row.series) else { continue };
                let mut pairs = now.counts.as_flattened().iter().zip(row.counts.as_flattened());
                prop_assert!(!pairs.any(|(now, then)| is_less(now, then)), "{:?} then {:?}", row, now);
            }
            before = shown;
        }
    }
}

fn named(shown: &Shown) -> Vec<u16> {
    shown.rows.iter().filter_map(|row| row.series.initiator.1).map(|port| port - 40_000).collect()
}

#[test]
fn the_largest_are_named_and_a_little_more_takes_no_name() {
    let mut board = Board::default();
    let update = |board: &mut Board, generation, sizes: &[(u8, u64)]| {
        let one = |(number, bytes): &(u8, u64)| ConnectionReading {
            left: *number == 2,
            ..connection(*number, [[*bytes, 0], [0, 0]])
        };
        let connections: Vec<_> = sizes.iter().map(one).collect();
        board.update(&view(2), generation, &connections, &[])
    };
    // What an earlier agent may have shown has no name.
    let shown = update(&mut board, 1, &[(2, 200)]);
    assert_eq!((named(&shown), shown.rows[0].counts[0][0].bytes), (vec![2], 0));
    assert_eq!(shown.others, [(port(0), [Counter { packets: 2, bytes: 200 }, Counter::default()])]);
    let shown = update(&mut board, 2, &[(0, 100), (2, 300), (4, 200)]);
    assert_eq!((named(&shown), shown.over), (vec![2, 4], 1));
    // Half as much again as the least, and no more.
    let shown = update(&mut board, 3, &[(0, 300), (2, 300), (4, 200)]);
    assert_eq!(named(&shown), [2, 4]);
    // An older picture changes nothing.
    assert_eq!(update(&mut board, 1, &[(0, 9_999)]), shown);
    let shown = update(&mut board, 4, &[(0, 301), (2, 300), (4, 200)]);
    assert_eq!(named(&shown), [0, 2]);
    // It shows what came since it has a name; what came before is in what has none.
    let of = |shown: &Shown| shown.rows[0].counts[0][0].bytes;
    assert_eq!((of(&shown), shown.rows[0].live[0][0].bytes), (1, 301));
    assert_eq!(shown.others, [(port(0), [Counter { packets: 7, bytes: 700 }, Counter::default()])]);
    let shown = update(&mut board, 5, &[(0, 401), (2, 300), (4, 200)]);
    assert_eq!(of(&shown), 101);
}

#[test]
fn ends_are_inside_or_not() {
    let networks = ["10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32"].map(|text| rules::prefix(text).unwrap());
    let classifier = Classifier(networks.to_vec());
    let (inside, outside) =
        (["10.1.2.3", "192.0.2.9", "2001:db8::1"], ["11.1.2.3", "192.0.3.1", "2001:db9::1"]);
    for (a, b, tag) in [
        (inside, inside, Tag::Internal),
        (inside, outside, Tag::Egress),
        (outside, inside, Tag::Ingress),
        (outside, outside, Tag::Other),
    ] {
        for a in a {
            for b in b {
                assert_eq!(classifier.tag(a.parse().unwrap(), b.parse().unwrap()), tag, "{a} {b}");
            }
        }
    }
    // Without networks all is other.
    assert_eq!(
        Classifier::default().tag("10.1.2.3".parse().unwrap(), "10.1.2.4".parse().unwrap()),
        Tag::Other
    );
    assert_eq!(Tag::ALL.map(Tag::name), ["internal", "ingress", "egress", "other"]);
}

#[test]
fn what_is_left_out_or_of_one_network_is_one() {
    let networks = vec![rules::prefix("10.0.1.0/24").unwrap()];
    let drop = [Label::InitiatorPort, Label::TargetPort, Label::Protocol, Label::TargetIp].into();
    let classifier = Some(Classifier(networks.clone()));
    let exclude = [Tag::Other].into();
    let view = View { networks, drop, classifier, exclude, ..view(9) };
    let series = view.series(&connection(4, [[1; 2]; 2])).unwrap();
    assert_eq!(series.initiator.0.to_string(), "10.0.1.0/24");
    assert_eq!((series.target, series.protocol, series.tag), ((Address::Any, None), None, Some(Tag::Egress)));
    assert_eq!(Some(series), view.series(&connection(6, [[1; 2]; 2])));
    let elsewhere = ConnectionReading { initiator: "[::1]:1".parse().unwrap(), ..connection(4, [[1; 2]; 2]) };
    assert_eq!(view.series(&elsewhere), None);
    let idle = ConnectionReading { timed_out: true, ..connection(4, [[1; 2]; 2]) };
    assert_eq!(view.series(&idle), None);
    assert_eq!([6, 17, 132, 1, 58].map(protocol_name), ["TCP", "UDP", "SCTP", "ICMP", "ICMPv6"]);
}

#[test]
fn the_list_is_what_was_asked_for() {
    let mut connections: Vec<_> =
        (0..6_u8).map(|number| connection(number, [[u64::from(number) * 100, 0], [0, 50]])).collect();
    connections[3].protocol = 17;
    let ask = |query: &str| -> Vec<u16> {
        let question = Question::parse(query).unwrap();
        assert_eq!(Question::parse(&question.query()), Ok(question.clone()));
        let answer = question
            .answer(&connections, |port| (port == super::tests::port(0)).then(|| "tap\u{1b}".to_owned()));
        answer.iter().map(|status| status.initiator.port - 40_000).collect()
    };
    assert_eq!(ask(""), [5, 4, 3, 2, 1, 0]);
    assert_eq!(ask("limit=2&sort=packets"), [5, 4]);
    assert_eq!(ask(&format!("port={}", port(1))), [5, 3, 1]);
    assert_eq!(ask("protocol=UDP"), [3]);
    assert_eq!(ask("address=10.0.1.2/31"), [3, 2]);
    assert_eq!(ask("address=10.0.2.4"), [4]);
    assert_eq!(ask("number=40001&sort=age"), [1]);
    for (query, what) in [
        ("sort=size", "\"size\" is no order; expected one of bytes, packets, rtt, age, idle"),
        ("limit=-1", "limit: \"-1\" is no number"),
        (
            "protocol=gre",
            "\"gre\" is no protocol of connections; expected one of tcp, udp, sctp, icmp, icmpv6",
        ),
        ("x", "unknown key \"x\""),
    ] {
        assert_eq!(Question::parse(query), Err(what.to_owned()));
    }
    connections.truncate(2);
    connections.iter_mut().filter(|connection| connection.port != port(0)).for_each(|connection| {
        connection.overlay = Some((Encap::Vxlan, 7));
    });
    let all = Question::default()
        .answer(&connections, |port| (port == super::tests::port(0)).then(|| "tap\u{1b}".to_owned()));
    assert_eq!(
        table(&all),
        "\
PORT                                  OVERLAY  PROTO  INITIATOR       TARGET       SENT_BYTES  RECEIVED_BYTES  RTT_US  IDLE  STATE
00000000-0000-0000-0000-000000000001  vxlan:7  TCP    10.0.1.1:40001  10.0.2.1:80  100         50              0       0s    open
tap\u{fffd}                                  -        TCP    10.0.1.0:40000  10.0.2.0:80  0           50              0       0s    open
"
    );
}

#[test]
fn rules_go_where_a_port_may_ask_for_them() {
    let rule = RuleLine::parse("proto 6").unwrap().condition;
    let selection =
        Selection { rules: MeterSet::default().with_rules(vec![rule]).into(), ..Selection::default() };
    let asked = |ports: &[PortId], undecided: &[PortId]| {
        let capture = selection.of(ports.iter().copied().collect(), undecided.iter().copied().collect());
        capture.rules == selection.rules
    };
    assert_eq!([asked(&[port(1)], &[]), asked(&[], &[port(1)]), asked(&[], &[])], [true, true, false]);
}

//! Rules that say which connections are counted.

use std::{collections::BTreeSet, fs, sync::Arc};

use meter_agent::{
    connections::Selection,
    datapath::{Class, ConnectionReading, Datapath as _, Reading},
    rules::{MAX_RULES, MeterSet},
};
use meter_ebpf::abi::{Direction, Fault, VERSION, connection::capture, map};

use super::{ACK, FIN, SYN, World, capture_of, of, packets, probe, segment};
use crate::support::{
    frames::{IPV4, UDP, ethernet, ipv4, ipv4_with, vxlan},
    leads_nowhere, meters,
    programs::named,
    ready, rules,
};

fn uptime() -> u32 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).unwrap();
    now.tv_sec().try_into().unwrap()
}

impl World<'_> {
    fn admit(&mut self, rules: &Arc<MeterSet>) {
        self.capture(|selection| selection.rules = Arc::clone(rules));
    }

    /// Their memory is given back.
    fn assert_no_rules(&self) {
        for name in [map::CAPTURE_RULES, map::CAPTURE_VERDICTS] {
            assert!(leads_nowhere(&self.options.pin_path, name), "{name}");
        }
    }

    fn capture(&mut self, change: impl FnOnce(&mut Selection)) {
        self.meter.datapath.set_capture(&capture_of(&[1, 2], change)).unwrap();
    }
}

/// Returns the ports of the initiators of connections, with the packets of each, and the packets that are in none, in and out.
fn found(reading: &Reading) -> (Vec<(u16, u64)>, [u64; 2]) {
    let row = |connection: &ConnectionReading| {
        let counts = connection.counts.as_flattened();
        (connection.initiator.port(), counts.iter().map(|count| count.packets).sum())
    };
    let mut rows: Vec<_> = reading.connections.iter().map(row).collect();
    rows.sort_unstable();
    (rows, of(reading, 1).other.map(packets))
}

#[test]
fn connection_counts_from_the_frame_that_a_rule_matches() {
    if !ready() {
        return;
    }
    World::with(
        "conn-ruled",
        |options| options.max_connections = 100,
        |mut world| {
            world.admit(&rules(&["proto 6 src 192.0.2.1 src-port 1", "proto 6 src-port 80 dst-port 3"]));
            world.meter.datapath.tend_at(1_000);
            for number in 1..=3 {
                world.run(&segment(number, false, SYN), Direction::Ingress, 0);
                world.run(&segment(number, true, SYN | ACK), Direction::Egress, 0);
                world.run(&segment(number, false, ACK), Direction::Ingress, 0);
            }
            let reading = world.reading();
            // Of the third, the answer is what matches.
            assert_eq!(found(&reading), (vec![(1, 3), (3, 2)], [3, 1]));
            let rtt = |port: u16| {
                reading.connections.iter().find(|one| one.initiator.port() == port).unwrap().rtt_ns
            };
            assert!(rtt(1) > 0 && rtt(3) == 0);
            // What no rule matches takes no room, and lacks none.
            for number in 0..1_000 {
                world.run(&probe(number), Direction::Ingress, 0);
            }
            let reading = world.reading();
            assert_eq!(found(&reading), (vec![(1, 3), (3, 2)], [1_003, 1]));
            assert_eq!(reading.faults.reasons[Fault::ConnectionTableFull as usize].packets, 0);
        },
    );
}

#[test]
fn other_rules_are_for_connections_that_begin() {
    if !ready() {
        return;
    }
    World::with(
        "conn-rerule",
        |_| {},
        |mut world| {
            let in_use = |reading: &Reading| {
                [map::CAPTURE_RULES, map::CAPTURE_VERDICTS].map(|name| {
                    let usage = reading.maps.iter().find(|usage| usage.map == name).unwrap();
                    (usage.entries, usage.memory_bytes > 100_000)
                })
            };
            assert_eq!(in_use(&world.reading()), [(0, false); 2]);
            world.meter.datapath.tend_at(1_000);
            let both = |world: &World<'_>| {
                world.run(&segment(1, false, ACK), Direction::Ingress, 0);
                world.run(&segment(2, false, ACK), Direction::Ingress, 0);
            };
            world.admit(&rules(&["src-port 1"]));
            both(&world);
            let reading = world.reading();
            assert_eq!((found(&reading), in_use(&reading)), ((vec![(1, 1)], [1, 0]), [(1, true); 2]));
            world.admit(&rules(&["src-port 2"]));
            both(&world);
            assert_eq!(found(&world.reading()), (vec![(1, 2), (2, 1)], [1, 0]));
            // A third is refused until there are no rules any more.
            world.run(&segment(3, false, ACK), Direction::Ingress, 0);
            assert_eq!(found(&world.reading()), (vec![(1, 2), (2, 1)], [2, 0]));
            world.admit(&Arc::default());
            world.run(&segment(3, false, ACK), Direction::Ingress, 0);
            both(&world);
            let reading = world.reading();
            assert_eq!(found(&reading), (vec![(1, 3), (2, 2), (3, 1)], [2, 0]));
            assert_eq!(in_use(&reading), [(0, false); 2]);
            world.assert_no_rules();
            // Of no protocol all frames are in none.
            world.capture(|selection| selection.bits = 0);
            both(&world);
            assert_eq!(found(&world.reading()), (vec![(1, 3), (2, 2), (3, 1)], [4, 0]));
        },
    );
}

#[test]
fn rules_hold_over_agents_and_pins_that_are_lost() {
    if !ready() {
        return;
    }
    World::with(
        "conn-rulekept",
        |_| {},
        |mut world| {
            let only = rules(&["src-port 1"]);
            world.admit(&only);
            let mut expected = (1, 1);
            for lost in [false, true] {
                // The agent is gone, and the programs go by its rules.
                let change = |selection: &mut Selection| selection.rules = Arc::clone(&only);
                let mut next = world.reopen_with(change, |options, run| {
                    run(&segment(1, false, ACK));
                    run(&segment(2, false, ACK));
                    for name in [map::CAPTURE_RULES, map::CAPTURE_VERDICTS].into_iter().filter(|_| lost) {
                        let maps = options.pin_path.join(format!("v{VERSION}/maps"));
                        fs::remove_file(maps.join(format!("{name}_NOW"))).unwrap();
                    }
                });
                assert_eq!(found(&next.reading()), (vec![(1, expected.0)], [expected.1, 0]));
                next.run(&segment(2, false, ACK), Direction::Ingress, 0);
                next.run(&segment(1, false, ACK), Direction::Ingress, 0);
                assert_eq!(found(&next.reading()), (vec![(1, expected.0 + 1)], [expected.1 + 1, 0]));
                expected = (expected.0 + 2, expected.1 + 2);
                world = next;
            }
            // The next has none, and gives back their memory.
            let mut world = world.reopen_with(
                |_| {},
                |_, run| [1, 2].into_iter().for_each(|number| run(&segment(number, false, ACK))),
            );
            let usage = world.reading().maps;
            let of_rules = usage.iter().filter(|usage| usage.map.starts_with("CAPTURE_RULES"));
            assert_eq!(of_rules.map(|usage| usage.entries).collect::<Vec<_>>(), [0]);
            world.assert_no_rules();
            world.run(&segment(2, false, ACK), Direction::Ingress, 0);
            assert_eq!(found(&world.reading()), (vec![(1, expected.0), (2, 1)], [expected.1, 0]));
        },
    );
}

#[test]
fn rules_name_ports_wherever_those_are() {
    if !ready() {
        return;
    }
    World::with(
        "conn-ruleport",
        |options| options.max_ports = 600,
        |mut world| {
            let one = uuid::Uuid::from_u128(1);
            let all = (1..=300).map(super::port).collect();
            let selection = Selection { rules: rules(&[&format!("in-ports {one}")]), ..Selection::default() };
            world.meter.datapath.set_capture(&selection.of(all, BTreeSet::new())).unwrap();
            for netdev in [0, 1] {
                world.run(&segment(1, false, ACK), Direction::Ingress, netdev);
            }
            let reading = world.reading();
            assert_eq!(found(&reading), (vec![(1, 1)], [0, 0]));
            assert_eq!(of(&reading, 2).other.map(packets), [1, 0]);
            // Others get its slot, and it gets another one.
            for number in 3..=258 {
                world.meter.attach(&world.host.target("d1", number, Class::Port));
                world.run(&segment(9, false, ACK), Direction::Ingress, 0);
            }
            let reading = world.reading();
            assert_eq!(reading.connections.len(), 0);
            assert_eq!(of(&reading, 258).other.map(packets), [1, 0]);
            world.meter.attach(&world.host.target("d1", 1, Class::Port));
            world.run(&segment(9, false, ACK), Direction::Ingress, 0);
            assert_eq!(found(&world.reading()), (vec![(9, 1)], [0, 0]));
            assert!(world.meter.datapath.capture_in_force());
        },
    );
}

/// Rules of meters ask for directions of connections that rules of connections refuse.
#[test]
fn refused_connection_has_a_direction_all_the_same() {
    if !ready() {
        return;
    }
    World::with(
        "conn-ruleflow",
        |_| {},
        |mut world| {
            let of_meters =
                [("forward", "flow fwd-flow direction rx"), ("return", "flow return-flow direction rx")];
            world.meter.set_meters(&meters(&of_meters));
            world.admit(&rules(&["src-port 7"]));
            world.meter.datapath.tend_at(1_000);
            for number in [1, 7] {
                for back in [false, true, true] {
                    world.run(&segment(number, back, ACK), Direction::Ingress, 0);
                }
            }
            let reading = world.reading();
            assert_eq!(found(&reading), (vec![(7, 3)], [3, 0]));
            let counted = world.meter.meters();
            assert_eq!(["forward", "return"].map(|name| counted[name][0]), [2, 4]);
            // The same ends begin another connection: it is asked for anew, and has the way of its own SYN.
            for (back, flags) in [(false, FIN | ACK), (true, FIN | ACK), (true, SYN), (false, SYN | ACK)] {
                world.run(&segment(1, back, flags), Direction::Ingress, 0);
            }
            let counted = world.meter.meters();
            assert_eq!(["forward", "return"].map(|name| counted[name][0]), [2 + 2, 4 + 2]);
            assert_eq!(found(&world.reading()), (vec![(7, 3)], [7, 0]));
            // Once a rule matches it is counted where it is.
            world.admit(&rules(&["src-port 7", "src-port 1"]));
            world.run(&segment(1, true, ACK), Direction::Ingress, 0);
            world.run(&segment(1, false, ACK), Direction::Ingress, 0);
            assert_eq!(found(&world.reading()), (vec![(7, 3), (80, 1)], [8, 0]));
            world.pass(1_001..=1_003);
            assert_eq!(found(&world.reading()), (vec![(7, 3), (80, 1)], [8, 0]));
        },
    );
}

#[test]
fn rules_see_what_is_inside_and_its_tunnel() {
    if !ready() {
        return;
    }
    World::with_uplink("conn-rulein", |mut world| {
        world.capture(|selection| {
            selection.bits |= capture::INSIDE;
            selection.rules = rules(&[
                "vni 7 src-port 1 ethertype 2048 no-vlan true",
                "vni 8 src-port 2 hw-src 00:00:00:00:00:09",
                "src-port 3 hw-src !00:00:00:00:00:09",
                "vlan 5",
                "src-port 5",
            ]);
        });
        let up = |world: &World<'_>, frame: &[u8]| {
            world.programs.run_between(named("meter_conn_uin"), frame, [0, world.netdevs[0]]);
        };
        let inside = |number: u16| {
            let mut inner = segment(number, false, SYN);
            inner[6..12].copy_from_slice(&[0, 0, 0, 0, 0, 9]);
            inner
        };
        let through = |vni: u32, inner: &[u8]| {
            up(&world, &ethernet(&[], IPV4, &ipv4(UDP, &vxlan(4789, vni, inner))));
        };
        for vni in [7, 8] {
            [1, 2, 3].into_iter().for_each(|number| through(vni, &inside(number)));
        }
        let mut tagged = inside(4);
        tagged.splice(12..12, [0x81, 0, 0, 5]);
        through(7, &tagged);
        // What is in no tunnel has no VNI.
        for number in [1, 5] {
            up(&world, &segment(number, false, SYN));
        }
        let reading = world.reading();
        assert_eq!(found(&reading), (vec![(1, 1), (2, 1), (4, 1), (5, 1)], [5, 0]));
        let overlays: Vec<Option<u32>> = [1, 2, 4, 5]
            .map(|number| {
                let one = reading.connections.iter().find(|one| one.initiator.port() == number);
                one.unwrap().overlay.map(|(_, vni)| vni)
            })
            .into();
        assert_eq!(overlays, [Some(7), Some(8), Some(7), None]);
    });
}

#[test]
fn rules_that_are_refused_cost_no_connection_and_no_frame() {
    if !ready() {
        return;
    }
    World::with(
        "conn-rulebad",
        |_| {},
        |mut world| {
            let too_many = rules(&["proto 17"; MAX_RULES + 1]);
            world.admit(&rules(&["src-port 1"]));
            world.meter.datapath.tend_at(uptime());
            world.run(&segment(1, false, ACK), Direction::Ingress, 0);
            // By an agent that has others, and by one that has none.
            for number in [2, 3] {
                let capture = capture_of(&[1, 2], |selection| selection.rules = Arc::clone(&too_many));
                let taken = if number == 2 {
                    world.meter.datapath.set_capture(&capture)
                } else {
                    let (next, taken) = world.reopen_as(&capture, |_, _| {});
                    world = next;
                    taken
                };
                let error = taken.unwrap_err().to_string();
                assert!(error.contains("there are 1025 rules"), "{error}");
                assert!(!world.meter.datapath.capture_in_force());
                let now = uptime();
                world.pass(now..=now + 2);
                world.run(&segment(1, false, ACK), Direction::Ingress, 0);
                world.run(&segment(number, false, ACK), Direction::Ingress, 0);
                let counted = u64::from(number);
                assert_eq!(found(&world.reading()), (vec![(1, counted)], [counted - 1, 0]));
            }
            world.admit(&rules(&["src-port 3"]));
            assert!(world.meter.datapath.capture_in_force());
            world.run(&segment(3, false, ACK), Direction::Ingress, 0);
            assert_eq!(found(&world.reading()), (vec![(1, 3), (3, 1)], [2, 0]));
        },
    );
}

#[test]
fn without_rules_nothing_is_refused_where_it_is_not_known_what_is_wanted() {
    if !ready() {
        return;
    }
    World::with(
        "conn-ruleopen",
        |_| {},
        |mut world| {
            world.admit(&rules(&["src-port 1"]));
            let undecided = Selection::default().of([super::port(1)].into(), [super::port(2)].into());
            world.meter.datapath.set_capture(&undecided).unwrap();
            for netdev in [0, 1] {
                world.run(&segment(2, false, ACK), Direction::Ingress, netdev);
            }
            assert_eq!(found(&world.reading()), (vec![(2, 1), (2, 1)], [0, 0]));
        },
    );
}

#[test]
fn echo_is_refused_by_its_type_and_leaves_with_the_rules_that_asked_for_directions() {
    if !ready() {
        return;
    }
    World::with(
        "conn-ruleecho",
        |_| {},
        |mut world| {
            world.meter.set_meters(&meters(&[("return", "flow return-flow")]));
            world.admit(&rules(&["proto 1 src-port 8 src 192.0.2.1"]));
            let now = uptime();
            world.meter.datapath.tend_at(now);
            let echo = |from_target: bool, identifier: u8| {
                let kind = if from_target { 0 } else { 8 };
                let body = [kind, 0, 0, 0, 7, identifier, 0, 1];
                let mut frame = ethernet(&[], IPV4, &ipv4_with(&[], 0, 1, &body));
                if from_target {
                    frame[26..34].copy_from_slice(&[192, 0, 2, 2, 192, 0, 2, 1]);
                }
                frame
            };
            // Of the second only the answer is seen, which no rule matches.
            world.run(&echo(false, 9), Direction::Ingress, 0);
            world.run(&echo(true, 9), Direction::Egress, 0);
            world.run(&echo(true, 10), Direction::Egress, 0);
            world.run(&segment(1, false, ACK), Direction::Ingress, 0);
            let reading = world.reading();
            assert_eq!(found(&reading), (vec![(7 << 8 | 9, 2)], [1, 1]));
            assert!(reading.connections[0].rtt_ns > 0);
            let places = |world: &mut World<'_>| {
                let maps = world.reading().maps;
                maps.iter().find(|usage| usage.map == map::CONNECTION_KEYS).unwrap().entries
            };
            world.pass(now + 1..=now + 1);
            assert_eq!(places(&mut world), 2, "one of them for its direction");
            world.meter.set_meters(&meters(&[("all", "direction rx")]));
            world.pass(now + 2..=now + 2);
            assert_eq!(places(&mut world), 1);
        },
    );
}

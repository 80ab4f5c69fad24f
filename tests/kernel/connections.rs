//! Connections that are counted: the table when it is full, when what is in it ends, and when an agent is killed over it.

mod beside;
mod kept;
mod rules;
mod tunnels;

use std::collections::BTreeSet;

use meter_agent::{
    connections::Selection,
    datapath::{
        Capture, CaptureReading, Class, ConnectionReading, Datapath as _, MetersError, Reading,
        kernel::Options,
    },
    meter::PortId,
};
use meter_ebpf::abi::{Counter, Direction, Fault, connection::capture};
use uuid::Uuid;

use crate::support::{
    Host, Meter,
    frames::{IPV4, IPV6, ethernet, ipv4_with, ipv6},
    programs::{Program, Programs, named},
    ready,
};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// A host with a netdev that nothing comes through but test runs.
struct World<'h> {
    host: &'h Host,
    options: Options,
    meter: Meter<'h>,
    programs: Programs,
    netdevs: [u32; 2],
}

fn port(number: u128) -> PortId {
    PortId(Uuid::from_u128(number))
}

fn capture_of(ports: &[u128], change: impl FnOnce(&mut Selection)) -> Capture {
    let mut selection = Selection::default();
    change(&mut selection);
    selection.of(ports.iter().map(|number| port(*number)).collect(), BTreeSet::new())
}

fn program(direction: Direction) -> Program {
    named(match direction {
        Direction::Ingress => "meter_conn_in",
        Direction::Egress => "meter_conn_out",
    })
}

impl<'h> World<'h> {
    /// Runs `work` in the namespace of a new world, where the connections of both netdevs are counted.
    fn with(label: &str, change: impl FnOnce(&mut Options), work: impl FnOnce(World<'_>) + Send) {
        Self::with_programs(label, &["meter_conn_in", "meter_conn_out"], change, work);
    }

    /// The same, where the first netdev is an uplink.
    fn with_uplink(label: &str, work: impl FnOnce(World<'_>) + Send) {
        let programs = ["meter_conn_in", "meter_conn_out", "meter_conn_uin", "meter_conn_uout"];
        Self::with_programs(
            label,
            &programs,
            |_| {},
            |mut world| {
                world.meter.detach(world.netdevs[0]);
                world.meter.attach(&world.host.target("d1", 1, Class::Uplink));
                work(world);
            },
        );
    }

    fn with_programs(
        label: &str,
        programs: &[&str],
        change: impl FnOnce(&mut Options),
        work: impl FnOnce(World<'_>) + Send,
    ) {
        let host = Host::new(label);
        host.netns.ip("link add d1 type veth peer name d2").unwrap();
        let mut options = host.options();
        change(&mut options);
        let mut meter = host.open_with(&options);
        let programs = Programs::load(&options, programs.iter().map(|name| named(name)));
        let netdevs = ["d1", "d2"].map(|netdev| host.ifindex(netdev));
        meter.datapath.set_capture(&capture_of(&[1, 2], |_| {})).unwrap();
        let mut world = World { host: &host, options, meter, programs, netdevs };
        world.attach();
        host.netns.run_in(|| work(world)).unwrap();
    }

    fn attach(&mut self) {
        for (netdev, number) in [("d1", 1), ("d2", 2)] {
            self.meter.attach(&self.host.target(netdev, number, Class::Port));
        }
    }

    /// Ends the agent's half, does something to what it left, and opens it again.
    fn reopen(self, meanwhile: impl FnOnce(&Options)) -> Self {
        self.reopen_with(|_| {}, |options, _| meanwhile(options))
    }

    /// The same where other connections are counted; `meanwhile` may let frames come in.
    fn reopen_with(
        self,
        change: impl FnOnce(&mut Selection),
        meanwhile: impl FnOnce(&Options, &dyn Fn(&[u8])),
    ) -> Self {
        let (world, taken) = self.reopen_as(&capture_of(&[1, 2], change), meanwhile);
        taken.unwrap();
        world
    }

    /// The same where what is to be counted may be refused.
    fn reopen_as(
        self,
        capture: &Capture,
        meanwhile: impl FnOnce(&Options, &dyn Fn(&[u8])),
    ) -> (Self, Result<(), MetersError>) {
        let Self { host, options, meter, programs, netdevs } = self;
        drop(meter);
        let run = |frame: &[u8]| {
            programs.run_between(program(Direction::Ingress), frame, [0, netdevs[0]]);
        };
        meanwhile(&options, &run);
        let mut meter = host.open_with(&options);
        let taken = meter.datapath.set_capture(capture);
        let mut world = Self { host, options, meter, programs, netdevs };
        world.attach();
        (world, taken)
    }

    /// Lets a frame come in through a netdev, or go out.
    fn run(&self, frame: &[u8], direction: Direction, netdev: usize) {
        self.programs.run_between(program(direction), frame, [0, self.netdevs[netdev]]);
    }

    fn reading(&mut self) -> Reading {
        let reading = self.meter.reading();
        assert_closed(&reading);
        reading
    }

    /// Lets these seconds pass, each with its tick.
    fn pass(&mut self, seconds: std::ops::RangeInclusive<u32>) {
        seconds.for_each(|now| self.meter.datapath.tend_at(now));
    }
}

/// Each port's connections, those that ended and what is in none add up to its total.
fn assert_closed(reading: &Reading) {
    for CaptureReading { port, other, ended } in &reading.captures {
        let total = reading.ports.iter().find(|reading| reading.port == *port).unwrap().totals;
        for direction in Direction::ALL {
            let at = direction as usize;
            let mut sum = other[at];
            sum.add(&ended[at]);
            for connection in reading.connections.iter().filter(|connection| connection.port == *port) {
                connection.counts.iter().for_each(|counts| sum.add(&counts[at]));
            }
            assert_eq!(sum, total.hook(direction).wire(), "{port} {direction:?}");
        }
    }
}

fn of(reading: &Reading, number: u128) -> CaptureReading {
    reading.captures.iter().find(|capture| capture.port == port(number)).unwrap().clone()
}

/// A packet of TCP between port `number` of one end and port 80 of another; `back` is from the latter.
fn segment(number: u16, back: bool, flags: u8) -> Vec<u8> {
    let [high, low] = number.to_be_bytes();
    let mut ports = [[high, low], [0, 80]];
    if back {
        ports.swap(0, 1);
    }
    let rest = [0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0];
    let mut frame = ethernet(&[], IPV4, &ipv4_with(&[], 0, 6, &[&ports.concat()[..], &rest].concat()));
    if back {
        frame[26..34].copy_from_slice(&[192, 0, 2, 2, 192, 0, 2, 1]);
    }
    frame
}

/// The first packet of connection `number` of a scan.
fn probe(number: u32) -> Vec<u8> {
    let [a, b, c, d] = number.to_be_bytes();
    let mut frame = segment(u16::from_be_bytes([c, d]), false, SYN);
    frame[26..30].copy_from_slice(&[10, 1, a, b]);
    frame
}

/// A connection: its protocol and ends; whether its handshake was timed, it was answered, and it ended; and the packets of the
/// initiator and the target, in and out.
type Row = (u8, String, String, bool, bool, bool, [u64; 4]);

fn packets(counter: Counter) -> u64 {
    counter.packets
}

#[test]
fn what_a_connection_is_and_what_is_none() {
    if !ready() {
        return;
    }
    World::with(
        "conn-kinds",
        |_| {},
        |mut world| {
            world.meter.datapath.tend_at(1_000);
            // A handshake that is seen, from the netdev's side, and one whose answer is the first that is.
            world.run(&segment(1, false, SYN), Direction::Ingress, 0);
            world.run(&segment(1, false, SYN), Direction::Ingress, 0);
            world.run(&segment(1, true, SYN | ACK), Direction::Egress, 0);
            world.run(&segment(1, false, ACK), Direction::Ingress, 0);
            world.run(&segment(2, true, SYN | ACK), Direction::Egress, 0);
            world.run(&segment(3, false, SYN), Direction::Ingress, 0);
            world.run(&segment(3, true, RST | ACK), Direction::Egress, 0);
            // Echo, by either version.
            let echo = |kind: u8| ethernet(&[], IPV4, &ipv4_with(&[], 0, 1, &[kind, 0, 0, 0, 7, 9, 0, 1]));
            let mut reply = echo(0);
            reply[26..34].copy_from_slice(&[192, 0, 2, 2, 192, 0, 2, 1]);
            world.run(&echo(8), Direction::Ingress, 0);
            world.run(&reply, Direction::Egress, 0);
            world.run(&ethernet(&[], IPV6, &ipv6(58, &[128, 0, 0, 0, 7, 10, 0, 1])), Direction::Egress, 0);
            // ARP, GRE, another ICMP, a later fragment.
            for frame in [
                ethernet(&[], 0x0806, &[0; 28]),
                ethernet(&[], IPV4, &ipv4_with(&[], 0, 47, &[0; 20])),
                ethernet(&[], IPV4, &ipv4_with(&[], 0, 1, &[3, 0, 0, 0, 7, 9, 0, 1])),
                ethernet(&[], IPV4, &ipv4_with(&[], 1, 17, &[0; 20])),
            ] {
                world.run(&frame, Direction::Ingress, 0);
            }
            let reading = world.reading();
            let seen: BTreeSet<Row> = reading
                .connections
                .iter()
                .map(|connection| {
                    let ConnectionReading { protocol, initiator, target, counts: [forward, back], .. } =
                        connection;
                    let counts = [forward[0], forward[1], back[0], back[1]].map(packets);
                    let (timed, answered, ended) =
                        (connection.rtt_ns > 0, connection.answered, connection.ended);
                    (*protocol, initiator.to_string(), target.to_string(), timed, answered, ended, counts)
                })
                .collect();
            let row = |protocol, from: &str, to: &str, [timed, answered, ended]: [bool; 3], counts| {
                (protocol, from.to_owned(), to.to_owned(), timed, answered, ended, counts)
            };
            let echo_six: Vec<_> = seen.iter().filter(|row| row.0 == 58).cloned().collect();
            assert_eq!((echo_six.len(), echo_six[0].6), (1, [0, 1, 0, 0]), "{echo_six:?}");
            assert!(echo_six[0].1.ends_with(":1802") && echo_six[0].2.ends_with(":1802"), "{echo_six:?}");
            let rest: BTreeSet<_> = seen.into_iter().filter(|row| row.0 != 58).collect();
            let expected = BTreeSet::from([
                row(6, "192.0.2.1:1", "192.0.2.2:80", [true, true, false], [3, 0, 0, 1]),
                row(6, "192.0.2.1:2", "192.0.2.2:80", [false, true, false], [0, 0, 0, 1]),
                row(6, "192.0.2.1:3", "192.0.2.2:80", [true, true, true], [1, 0, 0, 1]),
                row(1, "192.0.2.1:1801", "192.0.2.2:1801", [true, true, false], [1, 0, 0, 1]),
            ]);
            assert_eq!(rest, expected);
            let none = of(&reading, 1);
            assert_eq!((none.other.map(packets), none.ended.map(packets)), ([4, 0], [0, 0]));

            // What is not wanted any more is in none; those that are in the table and wanted go on.
            world
                .meter
                .datapath
                .set_capture(&capture_of(&[1, 2], |selection| selection.bits = capture::TCP | capture::IPV4))
                .unwrap();
            world.run(&echo(8), Direction::Ingress, 0);
            world.run(&segment(1, false, ACK), Direction::Ingress, 0);
            let reading = world.reading();
            assert_eq!(of(&reading, 1).other.map(packets), [5, 0]);
            assert_eq!(reading.connections.len(), 5);

            // Each leaves at its time, and what it had stays with the port.
            world.pass(1_001..=1_009);
            assert_eq!(world.reading().connections.len(), 5);
            world.pass(1_010..=1_010);
            assert_eq!(world.reading().connections.len(), 4, "one was reset");
            world.pass(1_011..=1_060);
            let reading = world.reading();
            assert_eq!(reading.connections.len(), 0);
            assert_eq!(of(&reading, 1).ended.map(packets), [6, 5]);
            // The same ends again are another connection.
            world.pass(1_061..=1_061);
            world.run(&segment(1, true, SYN), Direction::Egress, 0);
            let reading = world.reading();
            let [again] = &reading.connections[..] else { panic!("{:?}", reading.connections) };
            assert_eq!(
                (again.initiator.port(), again.rtt_ns, again.counts.map(|counts| counts.map(packets))),
                (80, 0, [[0, 1], [0, 0]])
            );
        },
    );
}

#[test]
fn full_table_disturbs_nobody_and_every_frame_is_somewhere() {
    if !ready() {
        return;
    }
    const ENTRIES: u32 = 10_000;
    const ESTABLISHED: u16 = 1_000;
    let scan = u32::try_from(lab::amount("METER_TEST_SCAN", 100_000, 20_000)).unwrap();
    World::with(
        "conn-full",
        |options| options.max_connections = ENTRIES,
        |mut world| {
            world.meter.datapath.tend_at(1_000);
            for number in 0..ESTABLISHED {
                world.run(&segment(number, false, SYN), Direction::Ingress, 0);
                world.run(&segment(number, true, SYN | ACK), Direction::Egress, 0);
            }
            let memory =
                |reading: &Reading| -> u64 { reading.maps.iter().map(|usage| usage.memory_bytes).sum() };
            let before = world.reading();
            for number in 0..scan {
                world.run(&probe(number), Direction::Ingress, 0);
                if number % 1_000 == 0 {
                    world.run(
                        &segment(u16::try_from(number / 1_000 % 1_000).unwrap(), false, ACK),
                        Direction::Ingress,
                        0,
                    );
                }
            }
            let reading = world.reading();
            assert_eq!(reading.connections.len(), ENTRIES as usize);
            assert_eq!(memory(&reading), memory(&before));
            let free = u64::from(ENTRIES) - u64::from(ESTABLISHED);
            assert_eq!(of(&reading, 1).other.map(packets), [u64::from(scan) - free, 0]);
            let untracked = reading.faults.reasons[Fault::ConnectionTableFull as usize].packets;
            assert_eq!(untracked, u64::from(scan) - free);
            let established: Vec<&ConnectionReading> =
                reading.connections.iter().filter(|connection| connection.answered).collect();
            assert_eq!(established.len(), usize::from(ESTABLISHED));
            let forward: u64 = established.iter().map(|connection| connection.counts[0][0].packets).sum();
            assert_eq!(forward, u64::from(ESTABLISHED) + u64::from(scan.div_ceil(1_000)));
            // What the scan left goes; the others stay while they have traffic.
            for now in 1_001..=1_080 {
                world.meter.datapath.tend_at(now);
                for number in (0..ESTABLISHED).filter(|_| now % 20 == 0) {
                    world.run(&segment(number, true, ACK), Direction::Egress, 0);
                }
            }
            let reading = world.reading();
            assert_eq!(reading.connections.len(), usize::from(ESTABLISHED));
            assert_eq!(of(&reading, 1).ended.map(packets), [free, 0]);
        },
    );
}

#[test]
fn no_netdev_gets_more_than_its_share() {
    if !ready() {
        return;
    }
    World::with(
        "conn-share",
        |options| options.max_connections = 100,
        |mut world| {
            world.meter.datapath.set_capture(&capture_of(&[1, 2], |selection| selection.share = 60)).unwrap();
            world.meter.datapath.tend_at(1_000);
            for number in 0..1_000 {
                world.run(&probe(number), Direction::Ingress, 0);
            }
            for number in 0..1_000 {
                world.run(&probe(number), Direction::Ingress, 1);
            }
            let reading = world.reading();
            let other = [1, 2].map(|number| of(&reading, number).other.map(packets));
            assert_eq!(other, [[940, 0], [960, 0]]);
            // A tick counts them anew, and those that went make room.
            world.pass(1_001..=1_061);
            for number in 0..1_000 {
                world.run(&probe(number), Direction::Ingress, 0);
            }
            let reading = world.reading();
            assert_eq!((reading.connections.len(), of(&reading, 1).other.map(packets)), (60, [1_880, 0]));
            assert_eq!(of(&reading, 2).ended.map(packets), [40, 0]);
        },
    );
}

//! What each program makes of a frame: the hook's counter, the tunnel or the bucket, the fault, and nothing else.
//!
//! By `BPF_PROG_TEST_RUN`, over the maps of a real datapath, read by its user half.

mod rows;

use lab::traffic::RawSocket;
use meter_agent::datapath::{Class, kernel::Options};
use meter_ebpf::{
    abi::{Bucket, Counter, Direction, Encap, Fault, Settings, map},
    packet,
};

use super::support::{
    Host, Meter,
    frames::{self, IPV4, IPV6, ethernet, ipv4, ipv6, vxlan},
    programs::{Gso, PLAIN, PROGRAMS, Program, Programs},
    ready,
    table::{Table, Tunnel},
};

/// The port whose netdev is the loopback, on which test runs happen.
const PORT: u128 = 1;

/// A frame and what it has to count.
#[derive(Debug, Clone)]
struct Row {
    name: &'static str,
    frame: Vec<u8>,
    gso: Option<Gso>,
    /// Frames and bytes on the wire.
    wire: Counter,
    place: Place,
    fault: Option<Fault>,
}

/// Where an uplink counts a frame.
#[derive(Debug, Clone, Copy)]
enum Place {
    Bucket(Bucket),
    Tunnel { tunnel: Tunnel, inner_bytes: u64 },
}

/// An ordinary frame of no tunnel.
fn row(name: &'static str, frame: Vec<u8>) -> Row {
    let wire = Counter { packets: 1, bytes: length(&frame) };
    Row { name, frame, gso: None, wire, place: Place::Bucket(Bucket::Plain), fault: None }
}

impl Row {
    fn bucket(mut self, bucket: Bucket) -> Self {
        self.place = Place::Bucket(bucket);
        self
    }

    /// Of a tunnel between the addresses of [`frames`].
    fn tunnel(mut self, encap: Encap, six: bool, vni: u32, inner_bytes: u64) -> Self {
        let [src, dst] = frames::addresses(six);
        self.place = Place::Tunnel { tunnel: Tunnel { encap, src, dst, vni }, inner_bytes };
        self
    }

    /// A super-packet that stands for so many frames, each with these bytes of headers.
    fn gso(mut self, size: u32, segments: u32, frames: u64, header: u64) -> Self {
        self.gso = Some((size, segments));
        self.wire = Counter { packets: frames, bytes: length(&self.frame) + (frames - 1) * header };
        self
    }

    /// A super-packet that is counted as one frame.
    fn fault(mut self, size: u32, segments: u32, fault: Fault) -> Self {
        self.gso = Some((size, segments));
        self.fault = Some(fault);
        self
    }

    /// Returns what the program has to count.
    fn expected(&self, program: Program) -> Table {
        let skb = Counter { packets: 1, bytes: length(&self.frame) };
        let mut table = Table::default().hook(PORT, program.direction, self.wire, skb);
        if program.underlay {
            table = match self.place {
                Place::Bucket(bucket) => table.bucket(PORT, program.direction, bucket, self.wire),
                Place::Tunnel { tunnel, inner_bytes } => {
                    let numbers = [self.wire.packets, inner_bytes, self.wire.bytes];
                    table.tunnel(PORT, program.direction, tunnel, numbers)
                }
            };
        }
        self.fault.into_iter().fold(table, |table, fault| table.fault(fault, skb))
    }
}

fn length(bytes: &[u8]) -> u64 {
    bytes.len().try_into().unwrap()
}

/// Runs `work` with the loopback as an uplink, in its namespace, and with these programs.
fn with_programs(
    label: &str,
    programs: &[Program],
    change: impl Fn(&mut Options),
    work: impl FnOnce(&mut Meter<'_>, &Programs) + Send,
) {
    let host = Host::new(label);
    let mut options = host.options();
    change(&mut options);
    let mut meter = host.open_with(&options);
    let programs = Programs::load(&options, programs.iter().copied());
    meter.attach(&host.target("lo", PORT, Class::Uplink));
    host.netns.run_in(|| work(&mut meter, &programs)).unwrap();
}

fn check(meter: &mut Meter<'_>, programs: &Programs, rows: &[Row]) {
    let mut before = meter.table();
    for row in rows {
        for program in programs.that_take(&row.frame, row.gso) {
            programs.run(program, &row.frame, row.gso);
            let after = meter.table();
            let moved = after.since(&before);
            before = after;
            let expected = row.expected(program);
            assert_eq!(moved, expected, "{} by {}: {:02x?}", row.name, program.name, row.frame);
            if program.underlay {
                moved.assert_closed(PORT, program.direction);
            }
        }
    }
}

#[test]
fn frame_counts_in_its_port_and_in_one_tunnel_or_bucket() {
    if !ready() {
        return;
    }
    with_programs("frames", &PROGRAMS, |_| (), |meter, programs| check(meter, programs, &rows::frames()));
}

#[test]
fn super_packet_counts_as_the_frames_it_stands_for() {
    if !ready() {
        return;
    }
    with_programs(
        "super",
        &PROGRAMS,
        |_| (),
        |meter, programs| check(meter, programs, &rows::super_packets()),
    );
}

#[test]
fn nvgre_has_its_vni_in_the_upper_bits_of_the_key() {
    if !ready() {
        return;
    }
    let nvgre = |options: &mut Options| options.nvgre = true;
    with_programs("nvgre", &PLAIN, nvgre, |meter, programs| check(meter, programs, &rows::nvgre()));
}

#[test]
fn tunnel_without_room_in_the_table_counts_in_its_bucket() {
    if !ready() {
        return;
    }
    let inner = ethernet(&[], IPV4, &[0; 46]);
    let frame = |vni| ethernet(&[], IPV4, &ipv4(frames::UDP, &vxlan(4789, vni, &inner)));
    let mut rows = vec![];
    // Six places, of which both hooks take one for each tunnel.
    for vni in 1..=3 {
        rows.push(row("fits", frame(vni)).tunnel(Encap::Vxlan, false, vni, length(&inner)));
    }
    let full: Vec<Row> =
        (4..8).map(|vni| row("does not fit", frame(vni)).bucket(Bucket::TunnelTableFull)).collect();
    rows.extend(full);
    // Those that have an entry keep it.
    rows.push(row("known", frame(2)).tunnel(Encap::Vxlan, false, 2, length(&inner)));
    with_programs(
        "full",
        &PLAIN,
        |options| options.max_tunnels = 6,
        |meter, programs| check(meter, programs, &rows),
    );
}

#[test]
fn as_many_tunnels_as_are_allowed_count_apart() {
    if !ready() {
        return;
    }
    const TUNNELS: u32 = 512;
    let inner = ethernet(&[], IPV4, &[0; 46]);
    // Two hooks each, both families: by now many have no place that their hash leads to.
    let cases: Vec<Case> = (0..TUNNELS / 2)
        .map(|vni| match vni % 2 {
            0 => ethernet(&[], IPV4, &ipv4(frames::UDP, &vxlan(4789, vni, &inner))),
            _ => ethernet(&[], IPV6, &ipv6(frames::UDP, &vxlan(4789, vni, &inner))),
        })
        .map(|frame| Case { frame, gso: None })
        .collect();
    with_programs(
        "many",
        &PLAIN,
        |options| options.max_tunnels = TUNNELS,
        |meter, programs| {
            agree(meter, programs, &cases);
            let mut usage = |name: &str| {
                let maps = meter.reading().maps;
                let found = maps.iter().find(|usage| usage.map == name).unwrap();
                (found.entries, found.capacity)
            };
            assert_eq!(usage(map::TUNNELS), (TUNNELS.into(), TUNNELS.into()));
            let (taken, places) = usage(map::TUNNEL_TAKEN);
            let (free, spares) = usage(map::TUNNEL_SPARE);
            assert_eq!((places, spares, taken + spares - free), (512, 256, 512));
            assert!(free < spares, "no tunnel had to take a spare place");
            agree(meter, programs, &cases);
        },
    );
}

#[test]
fn truncated_tunnel_packet_of_any_length_counts_once() {
    if !ready() {
        return;
    }
    let inner = ethernet(&[], IPV4, &ipv4(frames::UDP, &frames::udp(53, &[0; 20])));
    let whole = [
        ethernet(&[], IPV4, &ipv4(frames::UDP, &vxlan(4789, 7, &inner))),
        ethernet(&[], IPV6, &ipv6(frames::UDP, &vxlan(8472, 7, &inner))),
        ethernet(&[(0x88a8, 5), (0x8100, 6)], IPV4, &ipv4(frames::UDP, &vxlan(6677, 7, &inner))),
        ethernet(
            &[],
            IPV6,
            &ipv6(
                0,
                &frames::extension(60, &frames::extension(17, &frames::geneve(7, 3, frames::TEB, &inner))),
            ),
        ),
        ethernet(&[], IPV4, &ipv4(frames::GRE, &frames::gre(0xb0, 7, frames::TEB, &inner))),
    ];
    with_programs(
        "cut",
        &PLAIN,
        |_| (),
        |meter, programs| {
            for frame in &whole {
                // The kernel takes no frame that ends with its Ethernet header for a test run.
                for end in 15..frame.len() {
                    agree(meter, programs, &[Case { frame: frame[..end].to_vec(), gso: None }]);
                    agree(meter, programs, &[Case { frame: frame[..end].to_vec(), gso: Some((8, 0)) }]);
                }
            }
        },
    );
}

#[test]
fn truncated_frame_on_a_netdev_counts_once_at_each_hook() {
    if !ready() {
        return;
    }
    let host = Host::new("short");
    let mut meter = host.open();
    meter.attach(&host.target("lo", PORT, Class::Uplink));
    let socket = RawSocket::open(&host.netns, "lo").unwrap();
    let inner = ethernet(&[], IPV4, &[0; 20]);
    let before = meter.table();
    let mut expected = Table::default();
    for (ethertype, packet) in [
        (IPV4, ipv4(frames::UDP, &vxlan(4789, 7, &inner))),
        (IPV6, ipv6(frames::UDP, &vxlan(4789, 7, &inner))),
    ] {
        let frame = ethernet(&[], ethertype, &packet);
        for end in 14..=frame.len() {
            socket.send(&frame[..end]).unwrap();
            let row = Case { frame: frame[..end].to_vec(), gso: None }.row();
            // What leaves by the loopback comes back by it.
            for program in &PLAIN[2..4] {
                expected = expected.plus(&row.expected(*program));
            }
        }
    }
    meter.expect(&before, &expected, "frames on lo");
    let moved = meter.table().since(&before);
    Direction::ALL.into_iter().for_each(|direction| moved.assert_closed(PORT, direction));
}

/// A frame of which the header walk on the byte slice says what it has to count.
#[derive(Debug, Clone)]
struct Case {
    frame: Vec<u8>,
    gso: Option<Gso>,
}

impl Case {
    /// Returns the row that the header walk of the library makes of it.
    fn row(&self) -> Row {
        let frame = self.frame.as_slice();
        let mut row = row("as the walk on the slice", self.frame.clone());
        row.gso = self.gso;
        if let Some((size, segments)) = self.gso {
            let extra = packet::gso::header(frame, &Settings::DEFAULT).and_then(|header| {
                packet::gso::extra(u32::try_from(frame.len()).unwrap(), header, size, segments)
            });
            match extra {
                Ok(extra) => {
                    row.wire.packets += extra.packets;
                    row.wire.bytes = row.wire.bytes.wrapping_add(extra.bytes);
                }
                Err(fault) => row.fault = Some(fault),
            }
        }
        row.place = match packet::tunnel::outer(frame, &Settings::DEFAULT, self.gso.is_some()) {
            Err(bucket) => Place::Bucket(bucket),
            Ok(tunnel) => {
                let ip = |address: meter_ebpf::abi::Address| {
                    std::net::Ipv6Addr::from(address.bytes()).to_canonical()
                };
                Place::Tunnel {
                    tunnel: Tunnel {
                        encap: tunnel.encap,
                        src: ip(tunnel.src),
                        dst: ip(tunnel.dst),
                        vni: tunnel.vni,
                    },
                    inner_bytes: tunnel.inner.bytes(row.wire, 0),
                }
            }
        };
        row
    }
}

/// Runs every program on all cases and compares the sum of what they counted.
fn agree(meter: &mut Meter<'_>, programs: &Programs, cases: &[Case]) {
    let before = meter.table();
    let mut expected = Table::default();
    for case in cases {
        let row = case.row();
        for program in programs.that_take(&row.frame, row.gso) {
            programs.run(program, &row.frame, row.gso);
            expected = expected.plus(&row.expected(program));
        }
    }
    let moved = meter.table().since(&before);
    if moved != expected && cases.len() > 1 {
        cases.iter().for_each(|case| agree(meter, programs, std::slice::from_ref(case)));
    }
    assert_eq!(moved, expected, "{cases:02x?}");
}

#[test]
fn programs_count_any_frame_as_the_header_walk_on_bytes_does() {
    if !ready() {
        return;
    }
    with_programs(
        "random",
        &PROGRAMS,
        |options| options.max_tunnels = 16_384,
        |meter, programs| {
            let mut random = rows::Random::new(0x6d65_7465_7221);
            for _ in 0..lab::amount("METER_TEST_FRAMES", 250, 50) {
                let cases: Vec<Case> = (0..16).map(|_| rows::random_case(&mut random)).collect();
                agree(meter, programs, &cases);
            }
        },
    );
}

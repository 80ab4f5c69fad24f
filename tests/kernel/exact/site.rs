//! A host with a virtual machine and a container, bridged to a far host by a wire or by VXLAN over it; and what its
//! meters have to say after traffic.

use std::{collections::BTreeMap, net::IpAddr, sync::Mutex};

use lab::{
    count::{Count, Stations},
    guest::{Guest, GuestCounts, GuestOptions, NETDEV, VethGuest},
    mac::Mac,
    netdev::{Tunnel, TunnelKind, TunnelMode},
    netns::Netns,
    wire::{self, DirectionCounts, Wire, WireCounts, WireOptions},
};
use meter_agent::{
    datapath::{
        Capture, Class, Datapath as _, Reading, Target, UserMeter,
        kernel::{Options, TcMode},
    },
    meter::DeviceId,
    rules::MeterSet,
};
use meter_ebpf::abi::{Bucket, Counter, Direction, Encap, Network};
use uuid::Uuid;

use super::super::support::{
    Host, Meter, STILL, WITHIN,
    table::{self, Table},
};

/// The ports: the machine's tap, the container's veth, the tunnel netdev and the uplink.
pub(crate) const TAP: u128 = 1;
pub(crate) const VETH: u128 = 2;
pub(crate) const TUNNEL: u128 = 7;
pub(crate) const UPLINK: u128 = 9;
/// The device that both ports belong to.
const DEVICE: u128 = 5;

/// Hooks, for [`Counted::merged`].
pub(crate) const VETH_IN: (u128, Direction) = (VETH, Direction::Ingress);
pub(crate) const VETH_OUT: (u128, Direction) = (VETH, Direction::Egress);
pub(crate) const UPLINK_IN: (u128, Direction) = (UPLINK, Direction::Ingress);
pub(crate) const UPLINK_OUT: (u128, Direction) = (UPLINK, Direction::Egress);

pub(crate) const VNI: u32 = 7;

/// How frames get from the host's bridge to the far host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    /// The uplink is a port of the bridge.
    Bridge,
    /// By VXLAN over IPv4 or IPv6.
    Vxlan { six: bool },
}

/// One that sends and receives.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End<'a> {
    pub(crate) netns: &'a Netns,
    pub(crate) netdev: &'static str,
    pub(crate) mac: Mac,
    /// IPv4 and IPv6.
    pub(crate) addresses: [IpAddr; 2],
    /// Whether its netdev computes checksums; the end of a wire does not.
    pub(crate) checksums: bool,
}

const MACS: [Mac; 3] = [Mac::local(1), Mac::local(2), Mac::local(9)];

fn addresses(end: usize) -> [IpAddr; 2] {
    let number = [1, 2, 9][end];
    [[10, 7, 0, number].into(), [0xfd07, 0, 0, 0, 0, 0, 0, u16::from(number)].into()]
}

/// The whole of it. Fields are dropped in this order: the host looks at its netdevs while they are there.
pub(crate) struct Site {
    host: Host,
    tc: TcMode,
    path: Path,
    /// MTU of the guests.
    pub(crate) guest_mtu: u32,
    vm: Guest,
    container: VethGuest,
    wire: Wire,
    far: Netns,
}

impl Site {
    pub(crate) fn new(path: Path, mtu: u32, gro: bool) -> Self {
        Self::on(Host::new(&label(path)), TcMode::Auto, path, mtu, gro)
    }

    /// Makes one where nothing can be pinned.
    pub(crate) fn unpinned(path: Path, tc: TcMode) -> Self {
        Self::on(Host::without_pins(&label(path)), tc, path, 1_500, true)
    }

    fn on(host: Host, tc: TcMode, path: Path, mtu: u32, gro: bool) -> Self {
        let overhead = match path {
            Path::Bridge => 0,
            Path::Vxlan { six: false } => 50,
            Path::Vxlan { six: true } => 70,
        };
        let far = Netns::new("far").unwrap();
        let guest_mtu = mtu - overhead;
        let options = |label, host_netdev, mac| GuestOptions { label, host_netdev, mac, mtu: guest_mtu };
        let vm = Guest::new(&host.netns, &options("vm", "tap1", MACS[0])).unwrap();
        let container = VethGuest::new(&host.netns, &options("ct", "veth2", MACS[1])).unwrap();
        let uplink_mac = if path == Path::Bridge { MACS[2] } else { Mac::local(0xb) };
        let wire = Wire::new(
            wire::End { netns: &host.netns, netdev: "eth0", mac: Mac::local(0xa) },
            wire::End { netns: &far, netdev: "eth0", mac: uplink_mac },
            &WireOptions { mtu, gro, ..WireOptions::default() },
        )
        .unwrap();
        let site = Self { host, tc, path, guest_mtu, vm, container, wire, far };
        if let Path::Vxlan { six } = path {
            site.make_tunnel(six);
        }
        site.make_bridge();
        site
    }

    fn make_tunnel(&self, six: bool) {
        let addresses = underlay(six);
        for (netns, here, there, mac) in
            [(&self.host.netns, 0, 1, Mac::local(0xb)), (&self.far, 1, 0, Mac::local(0xa))]
        {
            netns.address("eth0", addresses[here], if six { 64 } else { 24 }).unwrap();
            netns.neighbour("eth0", addresses[there], mac).unwrap();
            let mode = TunnelMode::Fixed { vni: VNI, local: addresses[here], remote: addresses[there] };
            let encap = TunnelKind::Vxlan { udp_port: 4789 };
            netns.tunnel(&Tunnel { name: "vxlan7", encap, mode, mtu: self.guest_mtu }).unwrap();
        }
        self.far.ip(&format!("link set vxlan7 address {}", MACS[2])).unwrap();
    }

    fn make_bridge(&self) {
        let host = &self.host.netns;
        host.add_bridge("br0", self.guest_mtu).unwrap();
        let way_out = self.far_netdev();
        for (netdev, mac) in ["tap1", "veth2", way_out].into_iter().zip(MACS) {
            host.enslave_static(netdev, "br0", &[mac]).unwrap();
        }
        let ends = self.ends();
        for (here, end) in ends.iter().enumerate() {
            for (address, prefix) in end.addresses.into_iter().zip([24, 64]) {
                end.netns.address(end.netdev, address, prefix).unwrap();
            }
            for (_, other) in ends.iter().enumerate().filter(|(there, _)| *there != here) {
                for address in other.addresses {
                    end.netns.neighbour(end.netdev, address, other.mac).unwrap();
                }
            }
        }
    }

    fn far_netdev(&self) -> &'static str {
        if self.path == Path::Bridge { "eth0" } else { "vxlan7" }
    }

    /// The machine, the container and the far host.
    fn ends(&self) -> [End<'_>; 3] {
        let ends =
            [(self.vm.netns(), NETDEV), (self.container.netns(), NETDEV), (&self.far, self.far_netdev())];
        let mut index = 0;
        ends.map(|(netns, netdev)| {
            let checksums = index != 2 || self.path != Path::Bridge;
            let end = End { netns, netdev, mac: MACS[index], addresses: addresses(index), checksums };
            index += 1;
            end
        })
    }

    /// The host's namespace.
    pub(crate) fn host(&self) -> &Netns {
        &self.host.netns
    }

    /// Meters everything, lets `traffic` happen, and asserts that every meter equals the independent counts.
    pub(crate) fn measure(&self, traffic: impl FnOnce([End<'_>; 3])) -> Counted {
        self.measure_meters(&MeterSet::default(), traffic)
    }

    /// The same beside user-defined meters.
    pub(crate) fn measure_meters(&self, set: &MeterSet, traffic: impl FnOnce([End<'_>; 3])) -> Counted {
        let mut meter = self.host.open_with(&Options { tc: self.tc, ..self.host.options() });
        self.attach_all(&mut meter);
        meter.set_meters(set);
        let before = (self.quiet(), meter.reading());
        traffic(self.ends());
        self.compare(before, &mut meter)
    }

    /// The same while the connections of these ports are counted; what was counted of them comes second.
    pub(crate) fn measure_connections(
        &self,
        capture: &Capture,
        traffic: impl FnOnce([End<'_>; 3]),
    ) -> (Counted, Reading) {
        let mut meter = self.host.open_with(&Options { tc: self.tc, ..self.host.options() });
        meter.datapath.set_capture(capture).unwrap();
        self.attach_all(&mut meter);
        let before = (self.quiet(), meter.reading());
        traffic(self.ends());
        let counted = self.compare(before, &mut meter);
        (counted, meter.reading())
    }

    /// As [`Site::measure`], while agents that hook by `tc` may come and go: the datapath is free meanwhile.
    pub(crate) fn measure_agents(&self, tc: TcMode, work: impl FnOnce([End<'_>; 3], &Host)) -> Counted {
        let options = Options { tc, ..self.host.options() };
        let mut meter = self.host.open_with(&options);
        self.attach_all(&mut meter);
        let before = (self.quiet(), meter.reading());
        drop(meter);
        work(self.ends(), &self.host);
        self.compare(before, &mut self.host.open_with(&options))
    }

    /// Returns what an agent's configuration says for the same meters.
    pub(crate) fn bindings(&self) -> String {
        let bindings = self.metered().into_iter().map(|(netdev, port, class)| {
            let port = Uuid::from_u128(port);
            let device = match class {
                Class::Port => format!("device = \"{}\"\n", Uuid::from_u128(DEVICE)),
                Class::Uplink | Class::Tunnel => String::new(),
            };
            format!("[[binding]]\nnetdev = \"{netdev}\"\nport = \"{port}\"\n{device}")
        });
        bindings.chain(["[uplinks]\nnetdevs = [\"eth0\"]\n".to_owned()]).collect()
    }

    /// Returns what is metered: the netdev, its port and its class.
    fn metered(&self) -> Vec<(&'static str, u128, Class)> {
        let mut metered =
            vec![("tap1", TAP, Class::Port), ("veth2", VETH, Class::Port), ("eth0", UPLINK, Class::Uplink)];
        if self.path != Path::Bridge {
            metered.push(("vxlan7", TUNNEL, Class::Tunnel));
        }
        metered
    }

    fn attach_all(&self, meter: &mut Meter<'_>) {
        for (netdev, port, class) in self.metered() {
            let device = (class == Class::Port).then_some(DeviceId(Uuid::from_u128(DEVICE)));
            let network = if class == Class::Tunnel { Network::new(VNI) } else { Network::NONE };
            meter.attach(&Target { device, network, ..self.host.target(netdev, port, class) });
        }
    }

    /// Compares what the meters and the independent counts say since then.
    fn compare(&self, before: ((GuestCounts, WireCounts), Reading), meter: &mut Meter<'_>) -> Counted {
        let after = (self.quiet(), meter.reading());
        let (guest, wire) = (after.0.0.since(&before.0.0), after.0.1.since(&before.0.1));
        for (netdev, ..) in self.metered() {
            assert_eq!(self.host.netns.stats(netdev).unwrap().tx_dropped, 0, "{netdev}");
        }
        let table = Table::of(&after.1).since(&Table::of(&before.1));
        let expected = self.expected(&guest, &wire);
        assert_eq!(table.clone().on_the_wire(), expected, "{:?} mtu {}", self.path, self.guest_mtu);
        for direction in Direction::ALL {
            table.assert_closed(UPLINK, direction);
        }
        // Each skb that the guest sent was one at the hook.
        let [skbs, ..] = table.get(&format!("port {TAP} Ingress skb"));
        assert_eq!(skbs, guest.from_guest.skbs.frames);
        assert_eq!((guest.from_guest.unknown, guest.to_guest.unknown), (0, 0));
        let meters = after.1.user_meters.into_iter().map(|(name, UserMeter { stats, .. })| {
            let earlier = before.1.user_meters.get(&name).map(|meter| meter.stats).unwrap_or_default();
            (name, [stats.packets - earlier.packets, stats.bytes - earlier.bytes])
        });
        Counted { table, guest, meters: meters.collect() }
    }

    fn quiet(&self) -> (GuestCounts, WireCounts) {
        let guest = self.vm.wait_until_quiet(STILL, WITHIN).unwrap();
        (guest, self.wire.wait_until_quiet(STILL, WITHIN).unwrap())
    }

    /// What the independent counts say that the meters have to say.
    fn expected(&self, guest: &GuestCounts, wire: &WireCounts) -> Table {
        let [vm, container, far] = MACS;
        let stations = |direction: &DirectionCounts| {
            if self.path == Path::Bridge {
                direction.stations.clone()
            } else {
                direction.inner_stations.clone()
            }
        };
        let (out, back) = (stations(&wire.a_to_b), stations(&wire.b_to_a));
        // What crossed both the relay and the wire is the same on both.
        assert_eq!(at(&guest.from_guest.stations, (vm, far)), at(&out, (vm, far)));
        assert_eq!(at(&guest.to_guest.stations, (far, vm)), at(&back, (far, vm)));
        let from_container = [at(&out, (container, far)), at(&guest.to_guest.stations, (container, vm))];
        let to_container = [at(&back, (far, container)), at(&guest.from_guest.stations, (vm, container))];
        let from_container: Count = from_container.into_iter().sum();
        let mut into_device = guest.from_guest.total;
        into_device += from_container;
        let mut table = Table::default()
            .row(&format!("device {DEVICE}"), [into_device.frames, into_device.bytes, 0])
            .wire(TAP, Direction::Ingress, counter(guest.from_guest.total))
            .wire(TAP, Direction::Egress, counter(guest.to_guest.total))
            .wire(VETH, Direction::Ingress, counter(from_container))
            .wire(VETH, Direction::Egress, counter(to_container.into_iter().sum()));
        for (direction, counts) in [(Direction::Egress, &wire.a_to_b), (Direction::Ingress, &wire.b_to_a)] {
            let total = counter(counts.total);
            table = table.wire(UPLINK, direction, total);
            if self.path == Path::Bridge {
                table = table.bucket(UPLINK, direction, Bucket::Plain, total);
                continue;
            }
            for (key, count) in &counts.tunnels {
                let tunnel = table::Tunnel { encap: Encap::Vxlan, src: key.src, dst: key.dst, vni: key.vni };
                let numbers = [count.frames, count.inner_bytes, count.outer_bytes];
                table = table.tunnel(UPLINK, direction, tunnel, numbers);
                let inner = Counter { packets: count.frames, bytes: count.inner_bytes };
                table = table.wire(TUNNEL, direction, inner);
            }
        }
        table
    }
}

fn at(stations: &BTreeMap<Stations, Count>, pair: Stations) -> Count {
    stations.get(&pair).copied().unwrap_or_default()
}

fn counter(count: Count) -> Counter {
    Counter { packets: count.frames, bytes: count.bytes }
}

fn underlay(six: bool) -> [IpAddr; 2] {
    super::super::support::frames::addresses(six)
}

/// Returns another label for each call: sites of one process have labels of their own.
fn label(path: Path) -> String {
    static NEXT: Mutex<u32> = Mutex::new(0);
    let mut next = NEXT.lock().unwrap();
    *next += 1;
    let way = match path {
        Path::Bridge => "plain",
        Path::Vxlan { six: false } => "vxlan4",
        Path::Vxlan { six: true } => "vxlan6",
    };
    format!("{way}-{next}")
}

/// What was counted, and by whom.
pub(crate) struct Counted {
    /// By the meters.
    pub(crate) table: Table,
    /// By the guest's relay.
    pub(crate) guest: GuestCounts,
    /// By the user-defined meters: packets and bytes.
    pub(crate) meters: BTreeMap<String, [u64; 2]>,
}

impl Counted {
    /// Returns the frames of all hooks together.
    pub(crate) fn frames(&self) -> u64 {
        let ports = [TAP, VETH, TUNNEL, UPLINK].into_iter();
        let hooks =
            ports.flat_map(|port| Direction::ALL.map(|direction| format!("port {port} {direction:?}")));
        hooks.map(|hook| self.table.get(&hook)[0]).sum()
    }

    /// Returns whether a hook saw super-packets.
    pub(crate) fn merged(&self, (port, direction): (u128, Direction)) -> bool {
        let [wire, ..] = self.table.get(&format!("port {port} {direction:?}"));
        let [skbs, ..] = self.table.get(&format!("port {port} {direction:?} skb"));
        wire > skbs
    }
}

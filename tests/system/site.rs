//! Guests of this machine, a tunnel to another host, traffic, and what each meter must have counted by it.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use lab::{
    count::Count,
    guest::{Guest, GuestOptions, NETDEV, VethGuest},
    load::{Datagrams, Load, Pace},
    mac::Mac,
    netdev::{Tunnel, TunnelKind, TunnelMode},
    netns::Netns,
    wire::{End, Wire, WireOptions},
};

use super::machine::{CONFIGURATION, eventually, output};

/// Totals by the names of `mm-meter`.
pub(crate) type Totals = BTreeMap<String, Count>;

const UNDERLAY: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
const OVERLAY: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(10, 7, 0, 1)),
    IpAddr::V4(Ipv4Addr::new(10, 7, 0, 2)),
    IpAddr::V4(Ipv4Addr::new(10, 7, 0, 3)),
];
const STATIONS: [Mac; 3] = [Mac::local(1), Mac::local(2), Mac::local(3)];
const ENDS: [Mac; 2] = [Mac::local(0xa), Mac::local(0xb)];
const VNI: u32 = 7;
/// Of the overlay: below that of the underlay by what VXLAN takes.
const MTU: u32 = 1450;

/// UUIDs of the ports behind the tap and the veth, and of the bridge.
pub(crate) const TAP: &str = "00000007-1ab0-4000-8000-000000000001";
pub(crate) const VETH: &str = "00000007-1ab0-4000-8000-000000000002";
pub(crate) const DEVICE: &str = "00000007-1ab0-4000-8000-000000000000";

/// Payload of each datagram of the steady traffic, and the frame's bytes around it.
const PAYLOAD: u16 = 1000;
const HEADERS: u64 = 14 + 20 + 8;

/// How long nothing must have moved, and how long that may take.
const STILL: Duration = Duration::from_secs(1);
const WITHIN: Duration = Duration::from_secs(60);

/// Returns an address as a name of `mm-meter` has it: MidoNet's signed number.
pub(crate) fn number(address: Ipv4Addr) -> String {
    address.to_bits().cast_signed().to_string()
}

/// The other host is dropped last: the netdevs go before the namespaces that they are in.
pub(crate) struct Site {
    tap: Guest,
    veth: VethGuest,
    wire: Wire,
    far: Netns,
    /// This machine's own namespace, the agent's.
    pub(crate) host: Netns,
}

impl Site {
    /// Has udev leave hardware addresses alone. It replaces the random one that a tap is made with, but a while later, when the
    /// tap may have been given its own.
    pub(crate) fn prepare() {
        let directory = Path::new("/etc/systemd/network");
        fs::create_dir_all(directory).unwrap();
        let text = "[Match]\nOriginalName=*\n\n[Link]\nMACAddressPolicy=none\n";
        fs::write(directory.join("10-site.link"), text).unwrap();
        output("udevadm", &["control", "--reload"]);
    }

    /// Makes all of it. Every station is known before the first frame: nothing is said but what a test sends.
    pub(crate) fn new() -> Self {
        let (host, far) = (Netns::of_this_process("host").unwrap(), Netns::new("far").unwrap());
        let wire = Wire::new(
            End { netns: &host, netdev: "eth0", mac: ENDS[0] },
            End { netns: &far, netdev: "eth0", mac: ENDS[1] },
            &WireOptions::default(),
        )
        .unwrap();
        for (netns, [own, other], peer) in
            [(&host, [UNDERLAY[0], UNDERLAY[1]], ENDS[1]), (&far, [UNDERLAY[1], UNDERLAY[0]], ENDS[0])]
        {
            let [own, other] = [own, other].map(IpAddr::from);
            netns.address("eth0", own, 24).unwrap();
            netns.neighbour("eth0", other, peer).unwrap();
            let (mode, encap) = (
                TunnelMode::Fixed { vni: VNI, local: own, remote: other },
                TunnelKind::Vxlan { udp_port: 4789 },
            );
            netns.tunnel(&Tunnel { name: "vxlan7", encap, mode, mtu: MTU }).unwrap();
        }
        host.add_bridge("br7", MTU).unwrap();
        let options = |label, host_netdev, mac| GuestOptions { label, host_netdev, mac, mtu: MTU };
        let tap = Guest::new(&host, &options("vm", "tap7", STATIONS[0])).unwrap();
        let veth = VethGuest::new(&host, &options("ct", "veth7", STATIONS[1])).unwrap();
        far.ip(&format!("link set vxlan7 address {}", STATIONS[2])).unwrap();
        for (netdev, station) in ["tap7", "veth7", "vxlan7"].into_iter().zip(STATIONS) {
            host.enslave_static(netdev, "br7", &[station]).unwrap();
        }
        for (index, (netns, netdev)) in
            [(tap.netns(), NETDEV), (veth.netns(), NETDEV), (&far, "vxlan7")].into_iter().enumerate()
        {
            netns.address(netdev, OVERLAY[index], 24).unwrap();
            for (other, (address, station)) in OVERLAY.into_iter().zip(STATIONS).enumerate() {
                if other != index {
                    netns.neighbour(netdev, address, station).unwrap();
                }
            }
        }
        // Both ways to say which port it is: what a cloud's hook would do, and the configuration.
        host.ip(&format!("link set tap7 alias {TAP}")).unwrap();
        // The one that a neighbour outside knows, and that no bridge stands before.
        output("udevadm", &["settle"]);
        let mac = fs::read_to_string("/sys/class/net/eth0/address").unwrap();
        assert_eq!(mac.trim(), ENDS[0].to_string());
        Self { tap, veth, wire, far, host }
    }

    /// Removes all of it; what was counted ends with it, and another can be made.
    pub(crate) fn end(self) {
        let Self { tap, veth, wire, far, host } = self;
        host.ip("link del vxlan7\nlink del br7\nlink del veth7").unwrap();
        drop((tap, veth, wire, far));
        eventually("the netdevs are gone", || match &host.netdevs().unwrap()[..] {
            [_] => Ok(()),
            more => Err(more.join(" ")),
        });
    }

    /// Adds to the agent's configuration what binds the ports.
    pub(crate) fn configure() {
        let text = fs::read_to_string(CONFIGURATION).unwrap();
        let bindings = format!(
            "\n[[binding]]\nnetdev = \"tap7\"\ndevice = \"{DEVICE}\"\n\n\
             [[binding]]\nnetdev = \"veth7\"\nport = \"{VETH}\"\ndevice = \"{DEVICE}\"\n"
        );
        fs::write(CONFIGURATION, text + &bindings).unwrap();
    }

    /// Starts a stream and datagrams, cut into frames by the kernel, between all three.
    pub(crate) fn talk(&self) -> Vec<Load> {
        let stream = Pace { burst: 64 * 1024, pause: Duration::from_millis(50) };
        let segmented = Pace { burst: 10 * 1300 + 123, pause: Duration::from_millis(50) };
        let at = |index: usize, port| SocketAddr::from((OVERLAY[index], port));
        let (tap, veth, far) = (self.tap.netns(), self.veth.netns(), &self.far);
        vec![
            Load::tcp(tap, far, at(2, 5001), stream).unwrap(),
            Load::tcp(far, veth, at(1, 5002), stream).unwrap(),
            Load::tcp(veth, tap, at(0, 5003), stream).unwrap(),
            Load::udp(veth, far, at(2, 6001), Datagrams::Segmented(1300), segmented).unwrap(),
            Load::udp(far, tap, at(0, 6002), Datagrams::Segmented(1300), segmented).unwrap(),
        ]
    }

    /// Starts datagrams of one size from the tap's guest through the tunnel.
    pub(crate) fn steady(&self) -> Load {
        let pace = Pace { burst: 2 * usize::from(PAYLOAD), pause: Duration::from_millis(20) };
        let server = (OVERLAY[2], 7001).into();
        Load::udp(self.tap.netns(), &self.far, server, Datagrams::Single(PAYLOAD), pace).unwrap()
    }

    /// Stops the steady traffic; returns the frames of what the kernel took from the sender.
    pub(crate) fn stop(load: Load) -> Count {
        let sent = load.finish().unwrap();
        let frames = sent / u64::from(PAYLOAD);
        Count { frames, bytes: sent + frames * HEADERS }
    }

    /// Waits until nothing moves; returns what every meter must say then that has counted anything.
    pub(crate) fn expected(&self) -> Totals {
        let tap = self.tap.wait_until_quiet(STILL, WITHIN).unwrap();
        let wire = self.wire.wait_until_quiet(STILL, WITHIN).unwrap();
        let [of_tap, of_veth, of_far] = STATIONS;
        let seen = |stations: &BTreeMap<_, Count>, pair| stations.get(&pair).copied().unwrap_or_default();
        let veth_rx: Count = [
            seen(&wire.a_to_b.inner_stations, (of_veth, of_far)),
            seen(&tap.to_guest.stations, (of_veth, of_tap)),
        ]
        .into_iter()
        .sum();
        let veth_tx: Count = [
            seen(&wire.b_to_a.inner_stations, (of_far, of_veth)),
            seen(&tap.from_guest.stations, (of_tap, of_veth)),
        ]
        .into_iter()
        .sum();
        let inner = |counts: &lab::wire::DirectionCounts| {
            let counts = counts.tunnels.values();
            counts.map(|count| Count { frames: count.frames, bytes: count.inner_bytes }).sum::<Count>()
        };
        let [near, far] = UNDERLAY.map(number);
        let totals = [
            (format!("meters:port:rx:{TAP}"), tap.from_guest.total),
            (format!("meters:port:tx:{TAP}"), tap.to_guest.total),
            (format!("meters:port:rx:{VETH}"), veth_rx),
            (format!("meters:port:tx:{VETH}"), veth_tx),
            (format!("meters:device:{DEVICE}"), [tap.from_guest.total, veth_rx].into_iter().sum()),
            (format!("meters:tunnel:{near}:{far}"), inner(&wire.a_to_b)),
            (format!("meters:tunnel:{far}:{near}"), inner(&wire.b_to_a)),
        ];
        totals.into_iter().filter(|(_, count)| *count != Count::default()).collect()
    }
}

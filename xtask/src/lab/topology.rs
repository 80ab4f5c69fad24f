//! The hosts, the overlays between them, the guests on them, and the traffic.
//!
//! Every station is known before the first frame: neighbours and forwarding entries are static and nothing floods. So
//! each frame has one way, and what each port must have counted follows from what the wire and the taps saw.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use anyhow::Result;
use lab::{
    count::{Count, Encap, settled},
    guest::{Guest, GuestCounts, GuestOptions, NETDEV, VethGuest},
    load::{Datagrams, Load, Pace},
    mac::Mac,
    netdev::{Tunnel, TunnelKind, TunnelMode, kind_exists},
    netns::Netns,
    wire::{End, Wire, WireCounts, WireOptions},
};

/// The netdev of each host that the wire ends in.
pub(super) const UPLINK: &str = "eth0";

const UNDERLAY_MTU: u32 = 1500;

/// One virtual network.
#[derive(Debug, Clone, Copy)]
pub(super) struct Overlay {
    pub(super) vni: u32,
    pub(super) encap: Encap,
    kind: TunnelKind,
    /// Whether tunnel packets are IPv6.
    outer_v6: bool,
    /// Whether guests speak IPv6.
    inner_v6: bool,
}

const OVERLAYS: [Overlay; 3] = [
    Overlay {
        vni: 7,
        encap: Encap::Vxlan,
        kind: TunnelKind::Vxlan { udp_port: 4789 },
        outer_v6: false,
        inner_v6: false,
    },
    Overlay {
        vni: 42,
        encap: Encap::Vxlan,
        kind: TunnelKind::Vxlan { udp_port: 8472 },
        outer_v6: true,
        inner_v6: true,
    },
    Overlay {
        vni: 99,
        encap: Encap::Geneve,
        kind: TunnelKind::Geneve { udp_port: 6081 },
        outer_v6: false,
        inner_v6: false,
    },
];

impl Overlay {
    /// The tunnel netdev on every host.
    pub(super) fn netdev(&self) -> String {
        format!("{}{}", self.encap, self.vni)
    }

    fn bridge(&self) -> String {
        format!("br{}", self.vni)
    }

    /// The virtual bridge, which is one over both hosts.
    pub(super) fn device(&self) -> String {
        uuid(self.vni, 0)
    }

    fn mtu(&self) -> u32 {
        // Outer IP and UDP, the tunnel header, and the inner Ethernet header.
        UNDERLAY_MTU - if self.outer_v6 { 40 } else { 20 } - 8 - 8 - 14
    }

    fn address(&self, number: u8) -> IpAddr {
        let [_, _, _, vni] = self.vni.to_be_bytes();
        if self.inner_v6 {
            Ipv6Addr::new(0xfd00, vni.into(), 0, 0, 0, 0, 0, number.into()).into()
        } else {
            Ipv4Addr::new(172, 16, vni, number).into()
        }
    }
}

/// A UUID that shows whose it is: the VNI in front, the guest's number at the end, 0 for the bridge.
fn uuid(vni: u32, number: u8) -> String {
    format!("{vni:08x}-1ab0-4000-8000-{number:012x}")
}

/// Both kinds of guest.
#[derive(Debug)]
enum Carrier {
    Tap(Guest),
    Veth(VethGuest),
}

/// A guest's port.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) overlay: Overlay,
    pub(super) netdev: String,
    pub(super) uuid: String,
    pub(super) mac: Mac,
    address: IpAddr,
    carrier: Carrier,
}

impl Port {
    fn netns(&self) -> &Netns {
        match &self.carrier {
            Carrier::Tap(guest) => guest.netns(),
            Carrier::Veth(guest) => guest.netns(),
        }
    }

    /// Whether frames are counted between the guest and its tap.
    pub(super) const fn is_tap(&self) -> bool {
        matches!(self.carrier, Carrier::Tap(_))
    }
}

/// A host; its guests go before it does.
#[derive(Debug)]
pub(super) struct Host {
    /// `a` or `b`.
    pub(super) name: &'static str,
    /// Outer addresses, IPv4 and IPv6.
    pub(super) addresses: [IpAddr; 2],
    pub(super) ports: Vec<Port>,
    pub(super) netns: Netns,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [v4, v6] = self.addresses;
        let ports: Vec<&str> = self.ports.iter().map(|port| port.netdev.as_str()).collect();
        write!(f, "{}: {UPLINK} {v4} {v6}, guests behind {}", self.netns.name(), ports.join(" "))
    }
}

/// The lab's network.
#[derive(Debug)]
pub(super) struct Topology {
    pub(super) hosts: [Host; 2],
    pub(super) overlays: Vec<Overlay>,
    /// What this kernel can't make.
    pub(super) skipped: Vec<String>,
    wire: Wire,
}

/// What was counted without the agents: on the wire, and between each guest and its tap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Witness {
    pub(super) wire: WireCounts,
    /// By the guest's address; guests behind taps only.
    pub(super) guests: BTreeMap<Mac, GuestCounts>,
}

impl Topology {
    /// Makes everything.
    pub(super) fn new() -> Result<Self> {
        let (overlays, skipped): (Vec<_>, Vec<_>) =
            OVERLAYS.into_iter().partition(|overlay| kind_exists(&overlay.encap.to_string()));
        let mut hosts = [Host::new("a", 1)?, Host::new("b", 2)?];
        let [end_a, end_b] = [1, 2].map(|n: u32| Mac::local(n));
        let wire = Wire::new(
            End { netns: &hosts[0].netns, netdev: UPLINK, mac: end_a },
            End { netns: &hosts[1].netns, netdev: UPLINK, mac: end_b },
            &WireOptions { mtu: UNDERLAY_MTU, ..WireOptions::default() },
        )?;
        let [a, b] = hosts.each_ref().map(|host| host.addresses);
        hosts[0].join_underlay(b, end_b)?;
        hosts[1].join_underlay(a, end_a)?;
        for overlay in &overlays {
            hosts[0].add_guests(overlay, 0x10)?;
            hosts[1].add_guests(overlay, 0x20)?;
            let [a, b] = &hosts;
            a.join_overlay(overlay, b)?;
            b.join_overlay(overlay, a)?;
        }
        let skipped = skipped.iter().map(Overlay::netdev).collect();
        Ok(Self { hosts, overlays, skipped, wire })
    }

    /// Returns what was counted so far.
    pub(super) fn witness(&self) -> Witness {
        let guests = self.ports().filter_map(|port| match &port.carrier {
            Carrier::Tap(guest) => Some((port.mac, guest.counts())),
            Carrier::Veth(_) => None,
        });
        Witness { wire: self.wire.counts(), guests: guests.collect() }
    }

    /// Waits until nothing has moved for as long as `still`.
    pub(super) fn wait_until_quiet(&self, still: Duration, within: Duration) -> Result<Witness> {
        Ok(settled("the lab's traffic", still, within, || self.witness())?)
    }

    fn ports(&self) -> impl Iterator<Item = &Port> {
        self.hosts.iter().flat_map(|host| &host.ports)
    }

    /// Starts the traffic of every overlay: streams and datagrams, between hosts and within one, from taps and veths.
    /// Pauses are this many times longer than they are on a machine that is fast.
    pub(super) fn start_traffic(&self, slower: u32) -> Result<Vec<Load>> {
        let stream = Pace { burst: 64 * 1024, pause: Duration::from_millis(25) * slower };
        let trickle = Pace { burst: 600, pause: Duration::from_millis(10) * slower };
        // 30 datagrams of 1,300 and a shorter one.
        let segmented = Pace { burst: 30 * 1300 + 123, pause: Duration::from_millis(25) * slower };
        let mut loads = Vec::new();
        for overlay in &self.overlays {
            let [a_tap, a_veth] = self.hosts[0].guests(overlay);
            let [b_tap, b_veth] = self.hosts[1].guests(overlay);
            for (port, (from, to)) in (5001..).zip([
                (a_tap, b_tap),
                (b_veth, a_tap),
                (b_tap, a_veth),
                (a_veth, a_tap),
                (b_tap, b_veth),
            ]) {
                loads.push(Load::tcp(from.netns(), to.netns(), (to.address, port).into(), stream)?);
            }
            for (port, (from, to)) in (6001..).zip([(a_tap, b_veth), (b_veth, a_veth), (a_tap, a_veth)]) {
                let server = (to.address, port).into();
                loads.push(Load::udp(
                    from.netns(),
                    to.netns(),
                    server,
                    Datagrams::Segmented(1300),
                    segmented,
                )?);
            }
            let server = (a_veth.address, 7001).into();
            loads.push(Load::udp(b_tap.netns(), a_veth.netns(), server, Datagrams::Single(60), trickle)?);
        }
        Ok(loads)
    }

    /// Returns the netdevs of the hosts that dropped frames instead of sending them, and how many.
    pub(super) fn drops(&self) -> Result<Vec<(String, u64)>> {
        let mut drops = Vec::new();
        for host in &self.hosts {
            for netdev in host.netns.netdevs()? {
                let dropped = host.netns.stats(&netdev)?.tx_dropped;
                if dropped > 0 {
                    drops.push((format!("{netdev} of {}", host.netns.name()), dropped));
                }
            }
        }
        Ok(drops)
    }
}

impl Host {
    fn new(name: &'static str, number: u8) -> Result<Self> {
        let addresses = [
            Ipv4Addr::new(192, 0, 2, number).into(),
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()).into(),
        ];
        Ok(Self { name, addresses, ports: Vec::new(), netns: Netns::new(name)? })
    }

    fn join_underlay(&self, peer: [IpAddr; 2], peer_mac: Mac) -> Result<()> {
        for (address, prefix) in self.addresses.into_iter().zip([24, 64]) {
            self.netns.address(UPLINK, address, prefix)?;
        }
        for address in peer {
            self.netns.neighbour(UPLINK, address, peer_mac)?;
        }
        Ok(())
    }

    fn add_guests(&mut self, overlay: &Overlay, base: u8) -> Result<()> {
        let vni = overlay.vni;
        self.netns.add_bridge(&overlay.bridge(), overlay.mtu())?;
        for (kind, netdev, number) in [("vm", "tap", base + 1), ("ct", "veth", base + 2)] {
            let mac = Mac::local(vni << 8 | u32::from(number));
            let netdev = format!("{netdev}{vni}");
            let label = format!("{}-{kind}{vni}", self.name);
            let options = GuestOptions { label: &label, host_netdev: &netdev, mac, mtu: overlay.mtu() };
            let carrier = if kind == "vm" {
                Carrier::Tap(Guest::new(&self.netns, &options)?)
            } else {
                Carrier::Veth(VethGuest::new(&self.netns, &options)?)
            };
            self.netns.enslave_static(&netdev, &overlay.bridge(), &[mac])?;
            let address = overlay.address(number);
            let port = Port { overlay: *overlay, netdev, uuid: uuid(vni, number), mac, address, carrier };
            port.netns().address(NETDEV, address, if overlay.inner_v6 { 64 } else { 24 })?;
            self.ports.push(port);
        }
        Ok(())
    }

    fn join_overlay(&self, overlay: &Overlay, peer: &Self) -> Result<()> {
        let family = usize::from(overlay.outer_v6);
        self.netns.tunnel(&Tunnel {
            name: &overlay.netdev(),
            encap: overlay.kind,
            mode: TunnelMode::Fixed {
                vni: overlay.vni,
                local: self.addresses[family],
                remote: peer.addresses[family],
            },
            mtu: overlay.mtu(),
        })?;
        let far = peer.guests(overlay).map(|port| port.mac);
        self.netns.enslave_static(&overlay.netdev(), &overlay.bridge(), &far)?;
        let near = self.guests(overlay);
        for guest in near {
            for other in near.into_iter().chain(peer.guests(overlay)) {
                if other.mac != guest.mac {
                    guest.netns().neighbour(NETDEV, other.address, other.mac)?;
                }
            }
        }
        Ok(())
    }

    /// Returns this host's guests in an overlay: the one behind a tap, and the one behind a veth.
    fn guests(&self, overlay: &Overlay) -> [&Port; 2] {
        let mut guests = self.ports.iter().filter(|port| port.overlay.vni == overlay.vni);
        std::array::from_fn(|_| guests.next().expect("each overlay has two guests on each host"))
    }
}

impl Witness {
    /// Returns what came after `earlier`.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        let guests = self.guests.iter().map(|(mac, counts)| (*mac, counts.since(&earlier.guests[mac])));
        Self { wire: self.wire.since(&earlier.wire), guests: guests.collect() }
    }

    /// Returns the frames from one guest to another, as counted on their way; the hosts by their index.
    pub(super) fn between(&self, (from_host, from): (usize, &Port), (to_host, to): (usize, &Port)) -> Count {
        let stations = (from.mac, to.mac);
        let seen = match (from_host, to_host) {
            (0, 1) => &self.wire.a_to_b.inner_stations,
            (1, 0) => &self.wire.b_to_a.inner_stations,
            _ if from.is_tap() => &self.guests[&from.mac].from_guest.stations,
            _ if to.is_tap() => &self.guests[&to.mac].to_guest.stations,
            // No traffic between two veths of one host: nobody could count it but the agent.
            _ => return Count::default(),
        };
        seen.get(&stations).copied().unwrap_or_default()
    }
}

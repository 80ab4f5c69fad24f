//! User-defined meters of overlay networks, by the VNI: of a tunnel netdev that has one of its own, and of one that takes
//! each frame's from its metadata.

use lab::{
    mac::Mac,
    netdev::{Tunnel, TunnelKind, TunnelMode},
    netns::Netns,
    wire::{self, DirectionCounts, Wire, WireOptions},
};
use meter_agent::datapath::{Class, Target};
use meter_ebpf::abi::{Direction, Network};

use super::{
    meters::{begin, of, set, sum},
    site::{End, Path, Site, TAP, TUNNEL, VETH},
    stream,
};
use crate::support::{Host, STILL, WITHIN, frames, ready};

/// Rules of an overlay network, and of the port beside it.
const OF_NETWORK: [(&str, &str); 9] = [
    ("from it", "vni 7"),
    ("from others", "vni !7"),
    ("of another", "vni 8"),
    ("not of another", "vni !8"),
    ("to it", "vni 7 direction tx"),
    ("to it from the machine", "vni 7 direction tx in-ports TAP"),
    ("to it from elsewhere", "vni 7 direction tx in-ports !TAP"),
    ("in", "in-ports TAP"),
    ("of any other port", "in-ports !TAP proto 6"),
];

#[test]
fn frames_of_an_overlay_network_count_where_it_comes_in_and_goes_out() {
    if !ready() {
        return;
    }
    for six in [false, true] {
        let site = Site::new(Path::Vxlan { six }, 1_500, true);
        let counted = site.measure_meters(&set(&OF_NETWORK), |[vm, container, far]| {
            begin(&vm, &far);
            begin(&far, &container);
            begin(&vm, &container);
        });
        let wire = |port: u128, direction: Direction| {
            let [packets, bytes, _] = counted.table.get(&format!("port {port} {direction:?}"));
            [packets, bytes]
        };
        let of = |name: &str| of(&counted.meters, name);
        let (came, went) = (wire(TUNNEL, Direction::Ingress), wire(TUNNEL, Direction::Egress));
        assert!(came[1] > stream() && went[1] > stream(), "{came:?} {went:?}");
        for name in ["from it", "not of another"] {
            assert_eq!(of(name), came, "{name}: {:?}", counted.meters);
        }
        for name in ["from others", "of another"] {
            assert_eq!(of(name), [0, 0], "{name}: {:?}", counted.meters);
        }
        assert_eq!(of("to it"), went, "{:?}", counted.meters);
        let parts = ["to it from the machine", "to it from elsewhere"];
        assert_eq!(sum(&counted.meters, parts), went, "{:?}", counted.meters);
        assert!(parts.iter().all(|part| of(part)[1] > stream()), "{:?}", counted.meters);
        // What names no VNI counts at ports, and not once more at the tunnel netdev.
        assert_eq!(of("in"), wire(TAP, Direction::Ingress), "{:?}", counted.meters);
        let [_, bytes] = of("of any other port");
        assert!(bytes > 0 && bytes <= wire(VETH, Direction::Ingress)[1], "{:?}", counted.meters);
    }
}

/// Rules of two overlay networks that come through one netdev.
const OF_TWO: [(&str, &str); 6] = [
    ("from 7", "vni 7"),
    ("from 8", "vni 8"),
    ("not from 8", "vni !8"),
    ("to 7", "vni 7 direction tx"),
    ("to 8", "vni 8 direction tx"),
    ("to neither", "vni !7 direction tx proto 6 dst-port 5002"),
];

const VNIS: [u32; 2] = [7, 8];

/// Returns the address of one end in the overlay network, of both families, with their text.
fn inside(vni: u32, end: u16) -> [String; 2] {
    [format!("10.8.{vni}.{end}"), format!("fd08:{vni}::{end}")]
}

/// Makes the far host's two netdevs, one for each network, and the host's one for both, which routes lead to.
fn make_networks(host: &Netns, far: &Netns) {
    let underlay = frames::addresses(false);
    for (netns, here, mac) in [(host, 0, Mac::local(0xb)), (far, 1, Mac::local(0xa))] {
        netns.address("eth0", underlay[here], 24).unwrap();
        netns.neighbour("eth0", underlay[1 - here], mac).unwrap();
    }
    let (encap, mtu) = (TunnelKind::Vxlan { udp_port: 4789 }, 1_450);
    host.tunnel(&Tunnel { name: "vxlan0", encap, mode: TunnelMode::External, mtu }).unwrap();
    let lladdr = Mac::local(0x70);
    host.ip(&format!("link set vxlan0 address {lladdr}")).unwrap();
    for vni in VNIS {
        let name = format!("vxlan{vni}");
        let mode = TunnelMode::Fixed { vni, local: underlay[1], remote: underlay[0] };
        far.tunnel(&Tunnel { name: &name, encap, mode, mtu }).unwrap();
        let station = Mac::local(vni);
        far.ip(&format!("link set {name} address {station}")).unwrap();
        for ((near, there), prefix) in
            inside(vni, 1).into_iter().zip(inside(vni, 9)).zip([(32, 24), (128, 64)])
        {
            let (alone, network) = prefix;
            host.address("vxlan0", near.parse().unwrap(), alone).unwrap();
            far.address(&name, there.parse().unwrap(), network).unwrap();
            far.neighbour(&name, near.parse().unwrap(), lladdr).unwrap();
            host.neighbour("vxlan0", there.parse().unwrap(), station).unwrap();
            let to = underlay[1];
            host.ip(&format!("route add {there}/{alone} encap ip id {vni} dst {to} dev vxlan0 src {near}"))
                .unwrap();
        }
    }
}

#[test]
fn frames_of_two_overlay_networks_of_one_netdev_count_by_their_metadata() {
    if !ready() {
        return;
    }
    let (host, far) = (Host::new("external"), Netns::new("far").unwrap());
    let wire = Wire::new(
        wire::End { netns: &host.netns, netdev: "eth0", mac: Mac::local(0xa) },
        wire::End { netns: &far, netdev: "eth0", mac: Mac::local(0xb) },
        &WireOptions::default(),
    )
    .unwrap();
    make_networks(&host.netns, &far);
    let mut meter = host.open();
    let network = Network::EXTERNAL;
    meter.attach(&Target { network, ..host.target("vxlan0", TUNNEL, Class::Tunnel) });
    meter.set_meters(&set(&OF_TWO));
    assert!(meter.meters_in_force());
    let before = wire.wait_until_quiet(STILL, WITHIN).unwrap();
    let end = |netns, netdev, addresses: [String; 2]| End {
        netns,
        netdev,
        mac: Mac::local(0),
        addresses: addresses.map(|address| address.parse().unwrap()),
        checksums: true,
    };
    for (vni, rounds) in VNIS.into_iter().zip([1, 2]) {
        let near = end(&host.netns, "vxlan0", inside(vni, 1));
        let there = end(&far, "eth0", inside(vni, 9));
        (0..rounds).for_each(|_| begin(&near, &there));
    }
    let counted = wire.wait_until_quiet(STILL, WITHIN).unwrap().since(&before);
    let of_wire = |direction: &DirectionCounts, vni: u32| {
        let tunnels = direction.tunnels.iter().filter(|(key, _)| key.vni == vni);
        tunnels.fold([0, 0], |sum, (_, count)| [sum[0] + count.frames, sum[1] + count.inner_bytes])
    };
    let (went, came) = (&counted.a_to_b, &counted.b_to_a);
    let expected = [
        ("from 7", of_wire(came, 7)),
        ("from 8", of_wire(came, 8)),
        ("not from 8", of_wire(came, 7)),
        ("to 7", of_wire(went, 7)),
        ("to 8", of_wire(went, 8)),
        ("to neither", [0, 0]),
    ];
    let expected = expected.map(|(name, count)| (name.to_owned(), count)).into();
    assert_eq!(meter.meters(), expected);
    assert!(["from 7", "to 8"].iter().all(|name| expected[*name][1] > stream()), "{expected:?}");
}

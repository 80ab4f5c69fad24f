//! User-defined meters of real traffic: what rules say of it adds up to what was on the wire.

use lab::traffic::{Sender, tcp, udp};
use meter_agent::rules::{Meter, MeterSet, RuleLine};
use meter_ebpf::abi::Direction;
use uuid::Uuid;

use super::{
    STREAM, WITHIN,
    site::{Counted, End, Path, Site, TAP, TUNNEL, VETH},
};
use crate::support::ready;

/// Makes meters of one rule line each; `TAP` stands for the port of the virtual machine.
fn set(lines: &[(&str, &str)]) -> MeterSet {
    let tap = Uuid::from_u128(TAP).to_string();
    let meter = |(name, line): &(&str, &str)| {
        let rule = RuleLine::parse(&line.replace("TAP", &tap)).unwrap();
        Meter { name: (*name).to_owned(), rules: vec![rule.condition] }
    };
    MeterSet { meters: lines.iter().map(meter).collect(), ..MeterSet::default() }
}

/// Rules of the machine's port, and of the same with the opposite.
const LINES: [(&str, &str); 10] = [
    ("in", "in-ports TAP direction rx"),
    ("in forward", "in-ports TAP direction rx flow fwd-flow"),
    ("in return", "in-ports TAP direction rx flow return-flow"),
    ("in tcp forward", "in-ports TAP direction rx flow fwd-flow proto 6"),
    ("in tcp", "in-ports TAP direction rx proto 6"),
    ("in not tcp", "in-ports TAP direction rx proto !6"),
    ("out", "out-ports TAP"),
    ("out forward", "out-ports TAP flow fwd-flow"),
    ("out return", "out-ports TAP flow return-flow"),
    ("out tcp forward", "out-ports TAP flow fwd-flow proto 6"),
];

fn of(counted: &Counted, name: &str) -> [u64; 2] {
    counted.meters[name]
}

fn sum(counted: &Counted, names: [&str; 2]) -> [u64; 2] {
    let [a, b] = names.map(|name| of(counted, name));
    [a[0] + b[0], a[1] + b[1]]
}

/// Streams of both families, in both directions, and datagrams, begun by one end.
fn begin(client: &End<'_>, server: &End<'_>) {
    for address in server.addresses {
        let to = (address, 5001).into();
        for sender in [Sender::Client, Sender::Server] {
            tcp(client.netns, server.netns, to, STREAM, sender, WITHIN).unwrap();
        }
        udp(client.netns, server.netns, to, &[1, 100, 1_000], WITHIN).unwrap();
    }
}

/// Lets one end begin all connections, and holds the meters that there are against the port's, which are held against the
/// wire.
fn measure(path: Path, begins: impl FnOnce([End<'_>; 3])) -> Counted {
    let counted = Site::new(path, 1_500, true).measure_meters(&set(&LINES), begins);
    for (whole, direction, parts) in [
        ("in", Direction::Ingress, ["in forward", "in return"]),
        ("in", Direction::Ingress, ["in tcp", "in not tcp"]),
        ("out", Direction::Egress, ["out forward", "out return"]),
    ] {
        let [packets, bytes, _] = counted.table.get(&format!("port {TAP} {direction:?}"));
        assert_eq!(of(&counted, whole), [packets, bytes], "{:?}", counted.meters);
        assert_eq!(sum(&counted, parts), [packets, bytes], "{parts:?}: {:?}", counted.meters);
    }
    assert!(of(&counted, "in tcp")[1] > STREAM, "{:?}", counted.meters);
    counted
}

#[test]
fn connections_that_the_machine_begins() {
    if !ready() {
        return;
    }
    for path in [Path::Bridge, Path::Vxlan { six: false }] {
        let counted = measure(path, |[vm, container, far]| {
            begin(&vm, &far);
            begin(&vm, &container);
        });
        assert_eq!(of(&counted, "in return"), [0, 0], "{:?}", counted.meters);
        assert_eq!(of(&counted, "out tcp forward"), [0, 0], "{:?}", counted.meters);
    }
}

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
        let (came, went) = (wire(TUNNEL, Direction::Ingress), wire(TUNNEL, Direction::Egress));
        assert!(came[1] > STREAM && went[1] > STREAM, "{came:?} {went:?}");
        for name in ["from it", "not of another"] {
            assert_eq!(of(&counted, name), came, "{name}: {:?}", counted.meters);
        }
        for name in ["from others", "of another"] {
            assert_eq!(of(&counted, name), [0, 0], "{name}: {:?}", counted.meters);
        }
        assert_eq!(of(&counted, "to it"), went, "{:?}", counted.meters);
        let parts = ["to it from the machine", "to it from elsewhere"];
        assert_eq!(sum(&counted, parts), went, "{:?}", counted.meters);
        assert!(parts.iter().all(|part| of(&counted, part)[1] > STREAM), "{:?}", counted.meters);
        // What names no VNI counts at ports, and not once more at the tunnel netdev.
        assert_eq!(of(&counted, "in"), wire(TAP, Direction::Ingress), "{:?}", counted.meters);
        let [_, bytes] = of(&counted, "of any other port");
        assert!(bytes > 0 && bytes <= wire(VETH, Direction::Ingress)[1], "{:?}", counted.meters);
    }
}

#[test]
fn connections_that_others_begin() {
    if !ready() {
        return;
    }
    for path in [Path::Bridge, Path::Vxlan { six: true }] {
        let counted = measure(path, |[vm, container, far]| {
            begin(&far, &vm);
            begin(&container, &vm);
        });
        assert_eq!(of(&counted, "in tcp forward"), [0, 0], "{:?}", counted.meters);
        let [packets, bytes] = of(&counted, "out tcp forward");
        assert!(packets > 0 && bytes > STREAM, "{:?}", counted.meters);
    }
}

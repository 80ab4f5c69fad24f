//! User-defined meters of real traffic: what rules say of it adds up to what was on the wire.

use std::collections::BTreeMap;

use lab::traffic::{Sender, tcp, udp};
use meter_agent::rules::MeterSet;
use meter_ebpf::abi::Direction;
use uuid::Uuid;

use super::{
    WITHIN,
    site::{Counted, End, Path, Site, TAP},
    stream,
};
use crate::support::{meters, ready};

/// Makes meters of one rule line each; `TAP` stands for the port of the virtual machine.
pub(super) fn set(lines: &[(&str, &str)]) -> MeterSet {
    let tap = Uuid::from_u128(TAP).to_string();
    let named: Vec<_> = lines.iter().map(|(name, line)| (*name, line.replace("TAP", &tap))).collect();
    meters(&named.iter().map(|(name, line)| (*name, line.as_str())).collect::<Vec<_>>())
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

pub(super) fn of(meters: &BTreeMap<String, [u64; 2]>, name: &str) -> [u64; 2] {
    meters[name]
}

pub(super) fn sum(meters: &BTreeMap<String, [u64; 2]>, names: [&str; 2]) -> [u64; 2] {
    let [a, b] = names.map(|name| of(meters, name));
    [a[0] + b[0], a[1] + b[1]]
}

/// Streams of both families, in both directions, and datagrams, begun by one end.
pub(super) fn begin(client: &End<'_>, server: &End<'_>) {
    for address in server.addresses {
        let to = (address, 5001).into();
        for sender in [Sender::Client, Sender::Server] {
            tcp(client.netns, server.netns, to, stream(), sender, WITHIN).unwrap();
        }
        udp(client.netns, server.netns, to, &[1, 100, 1_000], WITHIN).unwrap();
    }
}

/// Lets one end begin all connections, and holds the meters that there are against the port's, which are held against the
/// wire.
pub(super) fn measure(site: &Site, begins: impl FnOnce([End<'_>; 3])) -> Counted {
    let counted = site.measure_meters(&set(&LINES), begins);
    for (whole, direction, parts) in [
        ("in", Direction::Ingress, ["in forward", "in return"]),
        ("in", Direction::Ingress, ["in tcp", "in not tcp"]),
        ("out", Direction::Egress, ["out forward", "out return"]),
    ] {
        let [packets, bytes, _] = counted.table.get(&format!("port {TAP} {direction:?}"));
        assert_eq!(of(&counted.meters, whole), [packets, bytes], "{:?}", counted.meters);
        assert_eq!(sum(&counted.meters, parts), [packets, bytes], "{parts:?}: {:?}", counted.meters);
    }
    assert!(of(&counted.meters, "in tcp")[1] > stream(), "{:?}", counted.meters);
    counted
}

#[test]
fn connections_that_the_machine_begins() {
    if !ready() {
        return;
    }
    for path in [Path::Bridge, Path::Vxlan { six: false }] {
        let counted = measure(&Site::new(path, 1_500, true), |[vm, container, far]| {
            begin(&vm, &far);
            begin(&vm, &container);
        });
        assert_eq!(of(&counted.meters, "in return"), [0, 0], "{:?}", counted.meters);
        assert_eq!(of(&counted.meters, "out tcp forward"), [0, 0], "{:?}", counted.meters);
    }
}

#[test]
fn connections_that_others_begin() {
    if !ready() {
        return;
    }
    for path in [Path::Bridge, Path::Vxlan { six: true }] {
        let counted = measure(&Site::new(path, 1_500, true), |[vm, container, far]| {
            begin(&far, &vm);
            begin(&container, &vm);
        });
        assert_eq!(of(&counted.meters, "in tcp forward"), [0, 0], "{:?}", counted.meters);
        let [packets, bytes] = of(&counted.meters, "out tcp forward");
        assert!(packets > 0 && bytes > stream(), "{:?}", counted.meters);
    }
}

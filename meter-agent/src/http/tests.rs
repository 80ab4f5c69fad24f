//! What the tests of the pages share: a snapshot with something in every family, and the golden files.

use std::{collections::BTreeMap, env, fs, path::PathBuf, sync::Arc};

use meter_ebpf::abi::{Buckets, Counter, Direction, Encap, Faults, HookCounter};
use uuid::Uuid;

use crate::{
    audit::{Cause, Closure, Drift, Dropped, Report, Row},
    binding::Source,
    datapath::{CaptureReading, Class, ConnectionReading, HookKind, MapUsage, Repairs, UserMeter},
    meter::{DeviceId, FlowStats, PortId},
    netdev::{NetdevId, NetdevState, NetdevStats},
    snapshot::{Carrier, Health, Port, Since, Snapshot, TunnelId, TunnelTotals},
};

/// A bridge's UUID.
const BRIDGE: Uuid = Uuid::from_u128(0x845a_54bf_b702_4dc2_8958_bbe7_156b_c4ef);

/// Compares a text with a file of `tests/fixtures/prometheus`, or writes the file where `METER_BLESS` is set.
pub(super) fn compare(file: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/prometheus").join(file);
    if env::var_os("METER_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap();
    let differs = text.lines().zip(golden.lines()).find(|(line, golden)| line != golden);
    assert_eq!(
        differs, None,
        "{file}: the first line that differs, and the golden one; METER_BLESS=1 writes it"
    );
    assert!(text == golden, "{file}: one is the beginning of the other; METER_BLESS=1 writes it");
}

/// Returns a port that is carried, with totals that all differ.
pub(super) fn port(class: Class, id: u128, netdev: &str) -> Port {
    let seed = u64::try_from(id % 1000).unwrap();
    let hook = |seed: u64| HookCounter {
        skb_packets: seed,
        skb_bytes: 1000 * seed,
        extra_packets: 2 * seed,
        extra_bytes: 66 * seed,
    };
    Port {
        port: PortId(Uuid::from_u128(id)),
        class,
        created_ns: 1_789_000_000_250_000_000 + seed,
        ingress: hook(seed),
        egress: hook(seed + 1),
        device: None,
        carrier: Some(Carrier {
            id: u32::try_from(seed).unwrap().into(),
            netns: String::new(),
            netdev: netdev.to_owned(),
            kind: "veth".to_owned(),
            alias: None,
            mac: Some("52:54:00:12:34:56".to_owned()),
            device_name: None,
            vni: None,
            source: Source::Derived,
            hooks: (HookKind::Tcx, HookKind::Tcx),
            since: Since { attach: 1, gaps: 0 },
        }),
    }
}

fn connections() -> Arc<[ConnectionReading]> {
    let counts = |packets: u64| [Counter { packets, bytes: packets * 100 }, Counter::default()];
    let tcp = ConnectionReading {
        port: PortId(Uuid::from_u128(0x3f2a_0000_0000_4000_8000_0000_0000_0067)),
        protocol: 6,
        overlay: None,
        initiator: "10.0.0.5:40312".parse().unwrap(),
        target: "10.0.0.6:5201".parse().unwrap(),
        counts: [counts(10_485), counts(3)],
        rtt_ns: 1_250_000,
        began_s: 7,
        idle_s: 1,
        left: false,
        timed_out: false,
        answered: true,
        ended: false,
    };
    let echo = ConnectionReading {
        protocol: 58,
        overlay: Some((Encap::Vxlan, 7)),
        initiator: "[2001:db8::5]:7".parse().unwrap(),
        target: "[2001:db8::6]:7".parse().unwrap(),
        counts: [counts(1), counts(0)],
        rtt_ns: 0,
        answered: false,
        ..tcp.clone()
    };
    [tcp, echo].into()
}

/// Returns a snapshot with something in every family.
pub(super) fn snapshot() -> Snapshot {
    Snapshot {
        connections: connections(),
        captures: vec![CaptureReading {
            port: PortId(Uuid::from_u128(0x3f2a_0000_0000_4000_8000_0000_0000_0067)),
            other: [Counter { packets: 4, bytes: 400 }, Counter::default()],
            ended: [Counter { packets: 1, bytes: 60 }, Counter { packets: 2, bytes: 1_514 }],
        }]
        .into_iter()
        .chain([CaptureReading {
            port: PortId(Uuid::from_u128(1)),
            other: [Counter { packets: 3, bytes: 200 }, Counter::default()],
            ended: [Counter::default(); 2],
        }])
        .collect(),
        generation: 7,
        host: "compute-1".to_owned(),
        ports: ports(),
        devices: [
            (DeviceId(BRIDGE), FlowStats { packets: 309, bytes: 109_798 }),
            (DeviceId(Uuid::from_u128(9)), FlowStats { packets: 1, bytes: 60 }),
        ]
        .into(),
        user_meters: [
            ("other", 3, 180),
            ("web", 20, 2000),
            ("Straße: \"a b\" C:\\net {}=,# HELP", u64::MAX, u64::MAX - 1),
        ]
        .map(|(name, packets, bytes)| {
            let stats = FlowStats { packets, bytes };
            (name.to_owned(), UserMeter { stats, created_ns: 1_789_000_000_250_000_000 })
        })
        .into(),
        definitions: Arc::default(),
        tunnels_transmit: [tunnel([10, 0, 0, 9], [192, 168, 1, 1], 7777, 5)].into(),
        tunnels_receive: [
            tunnel([192, 168, 1, 1], [10, 0, 0, 9], 7777, 6),
            (
                TunnelId {
                    src: "2001:db8::1".parse().unwrap(),
                    dst: "2001:db8::2".parse().unwrap(),
                    vni: u32::MAX,
                    encap: Encap::Gre,
                },
                TunnelTotals { packets: u64::MAX, inner_bytes: u64::MAX - 1, outer_bytes: u64::MAX - 2 },
            ),
        ]
        .into(),
        parts: BTreeMap::new(),
        buckets: buckets(),
        faults: Faults { reasons: counters(100) },
        unbound: [HookCounter::default(), HookCounter { skb_packets: 1, skb_bytes: 60, ..<_>::default() }],
        maps: vec![
            MapUsage { map: "COUNTERS", entries: 5, capacity: 16_384, memory_bytes: 2_097_152 },
            MapUsage { map: "TUNNELS", entries: 3, capacity: 65_536, memory_bytes: 8_388_608 },
        ],
        netdev_states: Arc::new(netdev_states()),
        netdevs: Vec::new(),
        repairs: Repairs { set_aside: 1, restored: 2, lost: 3, unrestored: 4 },
        health: Health {
            netlink_overruns: 1,
            netlink_dumps: 3,
            netlink_events: 40,
            attach_failures: [("netdev_gone", 2), ("xdp_busy", 1)].into(),
            attach_pending: 1,
            hooks_lost: 2,
            namespaces: None,
            namespaces_failed: BTreeMap::new(),
            state_failures: 5,
            read_failures: 4,
            config_reload_ok: true,
            config_loaded_s: 1_789_000_000,
            user_meters_in_force: true,
            user_meter_refusals: 5,
            unpinned: None,
            ready: true,
            settled: true,
        },
        audit: Some(Arc::new(audit())),
    }
}

/// Returns the statistics of two netdevs.
fn netdev_states() -> BTreeMap<NetdevId, NetdevState> {
    let stats = NetdevStats {
        rx_packets: 1,
        rx_bytes: 2_000_000,
        rx_dropped: 3,
        tx_packets: 4,
        tx_bytes: 5,
        tx_dropped: 6,
        rx_errors: 7,
        tx_errors: 8,
        rx_missed_errors: 9,
        collisions: 10,
    };
    let ipv4 = Some(([10, 0, 0, 5].into(), 24));
    let ipv6 = Some(("fe80::1".parse().unwrap(), 64));
    [
        (4.into(), NetdevState { stats, ipv4, ipv6 }),
        (775.into(), NetdevState { stats: NetdevStats::default(), ipv4: None, ipv6: None }),
    ]
    .into()
}

/// Returns an audit with every shape of a row.
fn audit() -> Report {
    let row = |class: Class, id: u128, direction: &str, drifts: &[(Cause, i64, i64)]| Row {
        id: Uuid::from_u128(id).to_string(),
        class: class.name().to_owned(),
        netdev: "netdev".to_owned(),
        netns: String::new(),
        ifindex: 7,
        direction: direction.to_owned(),
        ours: 100,
        kernel: 107,
        drifts: drifts.iter().map(|&(cause, packets, bytes)| Drift { cause, packets, bytes }).collect(),
    };
    let closure = |direction: &str, packets| Closure {
        id: Uuid::from_u128(4).to_string(),
        netdev: "eth0".to_owned(),
        direction: direction.to_owned(),
        packets,
        bytes: 60 * packets,
    };
    let dropped = |class: Class, id: u128, packets| Dropped {
        id: Uuid::from_u128(id).to_string(),
        class: class.name().to_owned(),
        packets,
    };
    Report {
        at_s: 1_789_000_123,
        rows: vec![
            row(Class::Port, 5, "receive", &[(Cause::AttachedLater, 10, 1000), (Cause::Unknown, -3, -180)]),
            row(Class::Port, 5, "transmit", &[]),
            row(Class::Tunnel, 3, "transmit", &[(Cause::Copies, 12, 960)]),
            row(Class::Uplink, 4, "receive", &[(Cause::DriverUnits, 0, 400)]),
        ],
        closures: vec![closure("receive", 0), closure("transmit", -2)],
        transmit_dropped: vec![
            dropped(Class::Port, 1, 6),
            dropped(Class::Uplink, 4, 9),
            dropped(Class::Port, 5, 0),
        ],
    }
}

fn ports() -> Vec<Port> {
    let mut tap = port(Class::Port, 0x3f2a_0000_0000_4000_8000_0000_0000_0067, "tap3f2a");
    tap.device = Some(DeviceId(BRIDGE));
    let carrier = tap.carrier.as_mut().unwrap();
    carrier.kind = "tun".to_owned();
    carrier.alias = Some("web \"front\" C:\\net\nzweite Zeile: Straße, 端口 {}=,# HELP".to_owned());
    carrier.device_name = Some("br-lan".to_owned());
    carrier.source = Source::Alias;

    let mut gone = port(Class::Port, 1, "");
    gone.device = Some(DeviceId(BRIDGE));
    gone.carrier = None;
    gone.created_ns = 0;
    gone.ingress = HookCounter { skb_packets: u64::MAX, skb_bytes: u64::MAX - 1, ..<_>::default() };

    let mut geneve = port(Class::Tunnel, 3, "geneve7");
    let carrier = geneve.carrier.as_mut().unwrap();
    carrier.kind = "geneve".to_owned();
    carrier.vni = Some(7777);
    carrier.hooks = (HookKind::Clsact, HookKind::Clsact);

    let mut uplink = port(Class::Uplink, 4, "eth0");
    let carrier = uplink.carrier.as_mut().unwrap();
    carrier.kind = "physical".to_owned();
    carrier.hooks = (HookKind::Xdp, HookKind::Tcx);

    let port_and_uplink = port(Class::Port, 5, "eth1");
    vec![gone, geneve, uplink, port_and_uplink, tap]
}

fn tunnel(src: [u8; 4], dst: [u8; 4], vni: u32, packets: u64) -> (TunnelId, TunnelTotals) {
    let id = TunnelId { src: src.into(), dst: dst.into(), vni, encap: Encap::Vxlan };
    (id, TunnelTotals { packets, inner_bytes: 100 * packets, outer_bytes: 150 * packets })
}

/// Buckets of the uplink in both directions, and of the port that is one as well.
fn buckets() -> BTreeMap<(PortId, Direction), Buckets> {
    let id = |number| PortId(Uuid::from_u128(number));
    [
        ((id(4), Direction::Ingress), Buckets { reasons: counters(1) }),
        ((id(4), Direction::Egress), Buckets::default()),
        ((id(5), Direction::Egress), Buckets { reasons: counters(20) }),
    ]
    .into()
}

fn counters(from: u64) -> [Counter; 16] {
    let mut packets = from;
    [(); 16].map(|()| {
        packets += 1;
        Counter { packets, bytes: 60 * packets }
    })
}

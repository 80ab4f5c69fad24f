//! Ports, devices, user-defined meters, tunnels, tunnel netdevs and uplinks: what the product is for.

use std::{collections::BTreeMap, fmt};

use meter_ebpf::abi::{Bucket, Buckets, Counter, Direction, HookCounter};

use super::{
    budget::{Choice, OTHER, Pool},
    families::{Families, Family, Labels, Value},
};
use crate::{
    datapath::Class,
    meter::{DeviceId, FlowStats, PortId},
    snapshot::{Port, Snapshot, TunnelId, TunnelTotals},
};

/// Writes every family of traffic.
pub(super) fn write(families: &mut Families<'_>, snapshot: &Snapshot, choice: &Choice) -> fmt::Result {
    netdevs(families, snapshot, choice, Class::Port)?;
    devices(families, snapshot, &choice.devices)?;
    user_meters(families, snapshot, &choice.user_meters)?;
    tunnels(families, Direction::Egress, &snapshot.tunnels_transmit, &choice.tunnels_transmit)?;
    tunnels(families, Direction::Ingress, &snapshot.tunnels_receive, &choice.tunnels_receive)?;
    netdevs(families, snapshot, choice, Class::Tunnel)?;
    netdevs(families, snapshot, choice, Class::Uplink)?;
    buckets(families, &snapshot.buckets)
}

/// Returns the label value of a direction, which the names of families hold as well: that of the netdev's hook.
pub(super) const fn word(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "receive",
        Direction::Egress => "transmit",
    }
}

const PACKETS: &str = "Wire units: a GSO or GRO super-packet counts as the frames it stands for.";
const BYTES: &str = "Wire units: Ethernet header and VLAN tags in, FCS out, a super-packet's headers once for each \
    frame it stands for.";
const SKB: &str = "Units of the kernel's own netdev statistics: a super-packet counts once, a VLAN tag beside the data \
    not at all. For audits only.";

/// How the families of a class are called: their prefix, the label with the identity, and whose they are.
pub(super) struct Naming {
    pub(super) prefix: &'static str,
    pub(super) label: &'static str,
    receive: &'static str,
    transmit: &'static str,
}

pub(super) const fn naming(class: Class) -> Naming {
    match class {
        Class::Port => Naming {
            prefix: "meter_port",
            label: "port",
            receive: "that entered the virtual network through the port (its rx), at the ingress hook of its netdev",
            transmit: "offered to the port (its tx), at the egress hook of its netdev, before its queue",
        },
        Class::Tunnel => Naming {
            prefix: "meter_tunnel_netdev",
            label: "tunnel_netdev",
            receive: "that came out of tunnels, at the ingress hook of the tunnel netdev; they are inner frames",
            transmit: "that go into tunnels, at the egress hook of the tunnel netdev; they are inner frames",
        },
        Class::Uplink => Naming {
            prefix: "meter_uplink",
            label: "uplink",
            receive: "that the underlay netdev received, at its ingress hook; a netdev that is a port as well is only \
                in meter_port",
            transmit: "offered to the underlay netdev, at its egress hook, before its queue; a netdev that is a port as \
                well is only in meter_port",
        },
    }
}

/// Writes the totals and the descriptions of one class.
fn netdevs(families: &mut Families<'_>, snapshot: &Snapshot, choice: &Choice, class: Class) -> fmt::Result {
    let Naming { prefix, label, receive, transmit } = naming(class);
    let pool = choice.netdevs(class);
    let is_shown = move |port: &&Port| port.class == class && pool.is_named(&port.port);
    let ports = || snapshot.ports.iter().filter(is_shown);
    for (direction, seen) in [(Direction::Ingress, receive), (Direction::Egress, transmit)] {
        let name = format!("{prefix}_{}", word(direction));
        let first = match direction {
            Direction::Ingress => 0,
            Direction::Egress => 4,
        };
        let mut write = |place: usize, family: &Family, value: fn(&HookCounter) -> u64| {
            let samples = ports().map(|port| {
                let hook = match direction {
                    Direction::Ingress => &port.ingress,
                    Direction::Egress => &port.egress,
                };
                (Labels([(label, Value::Uuid(port.port.0))]), value(hook), port.created_ns)
            });
            let other = pool.other().map(|other| {
                (Labels([(label, Value::Text(OTHER))]), other.values[first + place], other.created_ns)
            });
            families.counters_since(family, samples.chain(other))
        };
        write(0, &Family::new(format!("{name}_packets"), format!("Frames {seen}. {PACKETS}")), |hook| {
            hook.wire().packets
        })?;
        write(1, &Family::bytes(&name, format!("Bytes of frames {seen}. {BYTES}")), |hook| {
            hook.wire().bytes
        })?;
        write(2, &Family::new(format!("{name}_skb_packets"), format!("Packets {seen}. {SKB}")), |hook| {
            hook.skb().packets
        })?;
        write(3, &Family::bytes(format!("{name}_skb"), format!("Bytes of packets {seen}. {SKB}")), |hook| {
            hook.skb().bytes
        })?;
    }
    let help = format!("What carries the {} now; gone while nothing does.", label.replace('_', " "));
    families.infos(&Family::new(prefix, help), ports().filter_map(|port| info(label, port)))
}

/// Returns what describes a port, an uplink or a tunnel netdev while a netdev carries it.
fn info<'a>(label: &'static str, port: &'a Port) -> Option<Labels<'a, 13>> {
    let carrier = port.carrier.as_ref()?;
    let (ingress, egress) = carrier.hooks;
    Some(Labels([
        (label, Value::Uuid(port.port.0)),
        ("netdev", Value::Text(&carrier.netdev)),
        ("netns", Value::Text(&carrier.netns)),
        ("ifindex", Value::Number(carrier.id.ifindex)),
        ("kind", Value::Text(&carrier.kind)),
        ("vni", carrier.vni.map_or(Value::Text(""), Value::Number)),
        ("mac", Value::text(carrier.mac.as_deref())),
        ("alias", Value::text(carrier.alias.as_deref())),
        ("device", port.device.map_or(Value::Text(""), |device| Value::Uuid(device.0))),
        ("device_name", Value::text(carrier.device_name.as_deref())),
        ("source", Value::Text(carrier.source.name())),
        ("ingress_hook", Value::Text(ingress.name())),
        ("egress_hook", Value::Text(egress.name())),
    ]))
}

/// Writes what came into devices, and their names.
fn devices(families: &mut Families<'_>, snapshot: &Snapshot, pool: &Pool<DeviceId, 2>) -> fmt::Result {
    const SEEN: &str = "that came into the device through its ports, those that have left it included: the sum of \
        their rx while they belonged to it";
    let device = |id: &DeviceId| ("device", Value::Uuid(id.0));
    let devices = || snapshot.devices.iter().filter(|(id, _)| pool.is_named(id));
    let mut write = |place: usize, family: &Family, value: fn(&FlowStats) -> u64| {
        let samples = devices().map(|(id, stats)| (Labels([device(id)]), value(stats)));
        let other = pool.other().map(|other| (Labels([("device", Value::Text(OTHER))]), other.values[place]));
        families.counters(family, samples.chain(other))
    };
    write(0, &Family::new("meter_device_receive_packets", format!("Frames {SEEN}. {PACKETS}")), |stats| {
        stats.packets
    })?;
    write(1, &Family::bytes("meter_device_receive", format!("Bytes of frames {SEEN}. {BYTES}")), |stats| {
        stats.bytes
    })?;
    let mut names: BTreeMap<DeviceId, &str> = BTreeMap::new();
    for port in &snapshot.ports {
        let name = port.carrier.as_ref().and_then(|carrier| carrier.device_name.as_deref());
        if let (Some(device), Some(name)) = (port.device, name) {
            // One series for each device, also where its ports say different things.
            names.entry(device).or_insert(name);
        }
    }
    families.infos(
        &Family::new("meter_device", "What the device is called on this host."),
        devices().map(|(id, _)| Labels([device(id), ("device_name", Value::text(names.get(id).copied()))])),
    )
}

/// Writes what the user-defined meters counted.
fn user_meters(families: &mut Families<'_>, snapshot: &Snapshot, pool: &Pool<String, 2>) -> fmt::Result {
    const SEEN: &str =
        "that one of the rules of the user-defined meter matches, each once, however many of them do";
    let mut write = |place: usize, family: &Family, value: fn(&FlowStats) -> u64| {
        let named = snapshot.user_meters.iter().filter(|(name, _)| pool.is_named(name));
        let samples = named.map(|(name, meter)| {
            (Labels([("meter", Value::Text(name))]), value(&meter.stats), meter.created_ns)
        });
        let other = pool
            .other()
            .map(|other| (Labels([("meter", Value::Text(OTHER))]), other.values[place], other.created_ns));
        families.counters_since(family, samples.chain(other))
    };
    write(0, &Family::new("meter_user_packets", format!("Frames {SEEN}. {PACKETS}")), |stats| stats.packets)?;
    write(1, &Family::bytes("meter_user", format!("Bytes of frames {SEEN}. {BYTES}")), |stats| stats.bytes)
}

/// Writes the tunnels of one direction.
fn tunnels(
    families: &mut Families<'_>,
    direction: Direction,
    tunnels: &BTreeMap<TunnelId, TunnelTotals>,
    pool: &Pool<TunnelId, 3>,
) -> fmt::Result {
    let seen = match direction {
        Direction::Egress => "that the host sent through the tunnel, at the egress hooks of its uplinks",
        Direction::Ingress => {
            "that the host received through the tunnel, at the ingress hooks of its uplinks"
        }
    };
    let name = format!("meter_tunnel_{}", word(direction));
    let mut write = |place: usize, family: &Family, value: fn(&TunnelTotals) -> u64| {
        let shown = tunnels.iter().filter(|(id, _)| pool.is_named(id));
        let other = pool.other().map(|other| (OTHERS, other.values[place]));
        families.counters(family, shown.map(|(id, totals)| (tunnel(id), value(totals))).chain(other))
    };
    write(0, &Family::new(format!("{name}_packets"), format!("Frames {seen}. {PACKETS}")), |totals| {
        totals.packets
    })?;
    write(
        1,
        &Family::bytes(format!("{name}_inner"), format!("Bytes of the inner frames {seen}. {BYTES}")),
        |totals| totals.inner_bytes,
    )?;
    write(
        2,
        &Family::bytes(format!("{name}_outer"), format!("Bytes of the outer frames {seen}. {BYTES}")),
        |totals| totals.outer_bytes,
    )
}

/// The labels of all tunnels without series of their own.
const OTHERS: Labels<'static, 4> = Labels([
    ("src", Value::Text(OTHER)),
    ("dst", Value::Text(OTHER)),
    ("vni", Value::Text(OTHER)),
    ("encap", Value::Text(OTHER)),
]);

const fn tunnel(id: &TunnelId) -> Labels<'static, 4> {
    Labels([
        ("src", Value::Address(id.src)),
        ("dst", Value::Address(id.dst)),
        ("vni", Value::Number(id.vni)),
        ("encap", Value::Text(id.encap.name())),
    ])
}

/// Writes what no tunnel counts: every reason, also at zero, so that an alert has something to look at.
fn buckets(families: &mut Families<'_>, buckets: &BTreeMap<(PortId, Direction), Buckets>) -> fmt::Result {
    let reasons = reasons_help(Bucket::ALL.iter().map(|reason| (reason.label(), reason.help())));
    let seen = format!(
        "at an uplink that are in no tunnel, by reason; with the tunnels they add up to what the uplink's hook saw. \
         Where the uplink is a port as well, its label is the port. {reasons}"
    );
    let mut write = |family: &Family, value: fn(&Counter) -> u64| {
        let samples = buckets.iter().flat_map(|((uplink, direction), buckets)| {
            Bucket::ALL.iter().zip(&buckets.reasons).map(move |(reason, counter)| {
                let labels = Labels([
                    ("uplink", Value::Uuid(uplink.0)),
                    ("direction", Value::Text(word(*direction))),
                    ("reason", Value::Text(reason.label())),
                ]);
                (labels, value(counter))
            })
        });
        families.counters(family, samples)
    };
    write(&Family::new("meter_uplink_bucket_packets", format!("Frames {seen} {PACKETS}")), |counter| {
        counter.packets
    })?;
    write(&Family::bytes("meter_uplink_bucket", format!("Bytes of frames {seen} {BYTES}")), |counter| {
        counter.bytes
    })
}

/// Returns the sentences that explain reasons, in one line.
pub(super) fn reasons_help(reasons: impl Iterator<Item = (&'static str, &'static str)>) -> String {
    let sentences: Vec<_> = reasons
        .map(|(label, help)| format!("{label}: {}", help.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect();
    sentences.join(" ")
}

//! A reading of the counters and what is known of the host, put together to a [`Snapshot`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::Arc,
};

use meter_ebpf::abi::{Counter, Direction};

use super::{attaches::Attaches, failures::Failures};
use crate::{
    audit::Report,
    datapath::{Attachment, BucketReading, PortReading, Reading, TunnelReading},
    definitions::Definition,
    meter::PortId,
    netdev::{Kind, MacAddress, NetdevId, NetdevState, Netdevs},
    snapshot::{Carrier, Health, Port, Snapshot, TunnelId, TunnelTotals},
    survey::Survey,
};

/// What the agent knows beside the counters.
pub(super) struct Known<'a> {
    pub(super) netdevs: &'a Netdevs,
    pub(super) survey: &'a Survey,
    pub(super) attached: &'a BTreeMap<NetdevId, Attachment>,
    pub(super) failures: &'a Failures,
    pub(super) health: &'a Health,
    pub(super) definitions: &'a Arc<[Definition]>,
    pub(super) attaches: &'a Attaches,
    pub(super) audit: Option<&'a Arc<Report>>,
    pub(super) netdev_states: &'a Arc<BTreeMap<NetdevId, NetdevState>>,
    pub(super) host: &'a str,
}

/// Makes the snapshot with this generation.
pub(super) fn snapshot(generation: u64, reading: Reading, known: &Known<'_>) -> Snapshot {
    let (receive, transmit): (Vec<_>, Vec<_>) =
        reading.tunnels.into_iter().partition(|tunnel| tunnel.direction == Direction::Ingress);
    let uplinks: BTreeSet<PortId> = known
        .attached
        .values()
        .filter(|attachment| attachment.target.underlay)
        .map(|attachment| attachment.target.port)
        .collect();
    let buckets = reading.buckets.iter().filter(|bucket| uplinks.contains(&bucket.uplink));
    let parts = parts(buckets, receive.iter().chain(&transmit));
    let netdevs = known.survey.statuses(known.netdevs, known.attached, |id| known.failures.reason(id));
    Snapshot {
        generation,
        host: known.host.to_owned(),
        ports: reading.ports.into_iter().map(|port| with_carrier(port, known)).collect(),
        devices: reading.devices.into_iter().collect(),
        user_meters: reading.user_meters,
        definitions: Arc::clone(known.definitions),
        tunnels_transmit: over_uplinks(transmit),
        tunnels_receive: over_uplinks(receive),
        parts,
        buckets: reading
            .buckets
            .into_iter()
            .map(|bucket| ((bucket.uplink, bucket.direction), bucket.buckets))
            .collect(),
        connections: reading.connections.into(),
        captures: reading.captures,
        faults: reading.faults,
        unbound: reading.unbound.hooks,
        maps: reading.maps,
        repairs: reading.repairs,
        netdev_states: Arc::clone(known.netdev_states),
        netdevs,
        health: known.health.clone(),
        audit: known.audit.cloned(),
    }
}

/// Adds up the tunnels and buckets of each of these uplinks.
fn parts<'a>(
    buckets: impl Iterator<Item = &'a BucketReading>,
    tunnels: impl Iterator<Item = &'a TunnelReading>,
) -> BTreeMap<(PortId, Direction), Counter> {
    let sum = |bucket: &BucketReading| {
        bucket.buckets.reasons.iter().fold(Counter::default(), |mut sum, reason| {
            sum.add(reason);
            sum
        })
    };
    let mut parts: BTreeMap<_, _> =
        buckets.map(|bucket| ((bucket.uplink, bucket.direction), sum(bucket))).collect();
    for tunnel in tunnels {
        if let Some(part) = parts.get_mut(&(tunnel.uplink, tunnel.direction)) {
            part.add(&Counter { packets: tunnel.packets, bytes: tunnel.outer_bytes });
        }
    }
    parts
}

/// Adds up what the uplinks saw of each tunnel.
fn over_uplinks(tunnels: Vec<TunnelReading>) -> BTreeMap<TunnelId, TunnelTotals> {
    let mut sums: BTreeMap<TunnelId, TunnelTotals> = BTreeMap::new();
    for tunnel in tunnels {
        let id = TunnelId { src: tunnel.src, dst: tunnel.dst, vni: tunnel.vni, encap: tunnel.encap };
        let sum = sums.entry(id).or_default();
        sum.packets = sum.packets.wrapping_add(tunnel.packets);
        sum.inner_bytes = sum.inner_bytes.wrapping_add(tunnel.inner_bytes);
        sum.outer_bytes = sum.outer_bytes.wrapping_add(tunnel.outer_bytes);
    }
    sums
}

fn with_carrier(reading: PortReading, known: &Known<'_>) -> Port {
    Port {
        port: reading.port,
        class: reading.class,
        created_ns: reading.created_ns,
        ingress: *reading.totals.hook(Direction::Ingress),
        egress: *reading.totals.hook(Direction::Egress),
        device: reading.device,
        carrier: reading.netdev.and_then(|id| carrier(&reading, id, known)),
    }
}

/// Describes the netdev that carries a port; `None` where it went and the datapath was not told yet.
fn carrier(reading: &PortReading, id: NetdevId, known: &Known<'_>) -> Option<Carrier> {
    let netdev = known.netdevs.get(id)?;
    let attachment = known.attached.get(&id)?;
    let bound = known.survey.bound.get(&id)?.as_ref().ok().filter(|bound| bound.port == reading.port)?;
    Some(Carrier {
        id,
        netdev: netdev.name.clone(),
        netns: known.netdevs.name(id.namespace).to_owned(),
        kind: netdev.kind.name().to_owned(),
        alias: netdev.alias.clone(),
        mac: netdev.mac.map(mac_text),
        device_name: bound.device_name.clone(),
        vni: match &netdev.kind {
            Kind::Tunnel(tunnel) => tunnel.vni,
            _ => None,
        },
        source: bound.source,
        hooks: (attachment.ingress, attachment.egress),
        since: known.attaches.of(id),
    })
}

fn mac_text(mac: MacAddress) -> String {
    let mut text = String::with_capacity(17);
    for (index, byte) in mac.into_iter().enumerate() {
        let separator = if index == 0 { "" } else { ":" };
        write!(text, "{separator}{byte:02x}").expect("a string takes everything");
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn hardware_addresses_are_written_as_the_kernel_writes_them() {
        assert_eq!(super::mac_text([0x52, 0x54, 0, 0x12, 0x34, 0xff]), "52:54:00:12:34:ff");
    }
}

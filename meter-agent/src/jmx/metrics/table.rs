//! Which metrics there are.

use meter_ebpf::abi::{Bucket, Counter, Fault};

use super::{Kind, Metric};
use crate::{datapath::Class, snapshot::Snapshot};

/// The prefix of most of MidoNet's names.
const MIDOLMAN: &str = "org.midonet.midolman.monitoring.metrics";
/// The prefix of its netlink metrics.
const NETLINK: &str = "org.midonet.netlink";
/// The prefix of what only this agent has.
const OWN: &str = "meter-agent";

type Number = fn(&Snapshot) -> u64;

/// Returns every metric.
#[must_use]
pub fn all() -> Vec<Metric> {
    let mut metrics = Vec::new();
    for (prefix, name, help, read) in METERS {
        metrics.push(metric(prefix, name, help, Kind::Meter(Box::new(read))));
    }
    for (prefix, name, help, read) in GAUGES {
        metrics.push(metric(prefix, name, help, Kind::Gauge(Box::new(read))));
    }
    for (index, bucket) in Bucket::ALL.iter().enumerate() {
        let (label, help) = (bucket.label(), bucket.help());
        let of = "of the uplinks that are in no tunnel";
        metrics.push(metric(
            OWN,
            &format!("BucketMeter.{label}.packets"),
            &format!("Frames {of}. {help}"),
            Kind::Meter(Box::new(move |snapshot| bucketed(snapshot, index).packets)),
        ));
        metrics.push(metric(
            OWN,
            &format!("BucketCounter.{label}.bytes"),
            &format!("Bytes of frames {of}. {help}"),
            Kind::Counter(Box::new(move |snapshot| bucketed(snapshot, index).bytes)),
        ));
    }
    for (index, fault) in Fault::ALL.iter().enumerate() {
        let what = if fault.is_of_super_packet() {
            "Super-packets that were counted as one frame."
        } else {
            "Frames whose connection is not known to rules with flow."
        };
        metrics.push(metric(
            OWN,
            &format!("FaultMeter.{}.packets", fault.label()),
            &format!("{what} {}", fault.help()),
            Kind::Meter(Box::new(move |snapshot| snapshot.faults.reasons[index].packets)),
        ));
    }
    let help = "Requests of Jolokia clients, a bulk being one, and how long their answers took to make.";
    metrics.push(metric(OWN, "JolokiaTimer.requests", help, Kind::Requests));
    metrics
}

fn metric(prefix: &str, name: &str, help: &str, kind: Kind) -> Metric {
    // The sentences of reasons are doc comments, whose lines begin with a blank.
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    Metric { name: format!("{prefix}.{name}"), help, kind }
}

const METERS: [(&str, &str, &str, Number); 11] = [
    (NETLINK, "NetlinkMeter.notifications", "Changes of netdevs that the kernel announced.", |snapshot| {
        snapshot.health.netlink_events
    }),
    (
        NETLINK,
        "NetlinkMeter.errors",
        "Times that the kernel dropped netlink messages; each is followed by a complete dump.",
        |snapshot| snapshot.health.netlink_overruns,
    ),
    (
        MIDOLMAN,
        "DatapathMeter.flows.created",
        "Flows that the kernel's tables of tunnels have taken in.",
        flows,
    ),
    (
        MIDOLMAN,
        "DatapathMeter.flows.createErrors",
        "Frames whose flow the kernel's table of tunnels had no room for.",
        |snapshot| bucketed(snapshot, Bucket::TunnelTableFull as usize).packets,
    ),
    (
        MIDOLMAN,
        "DatapathMeter.flows.deleted",
        "Always 0: the kernel's tables of tunnels forget no flow.",
        |_| 0,
    ),
    (
        MIDOLMAN,
        "FlowTablesMeter.worker-0.datapathFlowsCreated",
        "Flows that the kernel's tables of tunnels have taken in.",
        flows,
    ),
    (
        MIDOLMAN,
        "FlowTablesMeter.worker-0.datapathFlowsRemoved",
        "Always 0: the kernel's tables of tunnels forget no flow.",
        |_| 0,
    ),
    (OWN, "NetlinkMeter.dumps", "Complete dumps of the netdevs.", |snapshot| snapshot.health.netlink_dumps),
    (OWN, "AttachMeter.failures", "Attempts to attach to a netdev that failed.", |snapshot| {
        snapshot.health.attach_failures.values().sum()
    }),
    (OWN, "ReadingMeter.readings", "Times that all maps were read.", |snapshot| snapshot.generation),
    (OWN, "ReadingMeter.failures", "Times that the maps could not be read.", |snapshot| {
        snapshot.health.read_failures
    }),
];

const GAUGES: [(&str, &str, &str, Number); 7] = [
    (
        MIDOLMAN,
        "FlowTablesGauge.worker-0.currentDatapathFlows",
        "Flows that are in the kernel's tables of tunnels.",
        flows,
    ),
    (MIDOLMAN, "VirtualTopologyGauge.devices", "Ports and the devices that they belong to.", |snapshot| {
        ports(snapshot) + size(snapshot.devices.len())
    }),
    (MIDOLMAN, "VirtualTopologyGauge.devices.Port", "Ports.", ports),
    (OWN, "AttachGauge.netdevs", "Netdevs that are metered.", |snapshot| {
        size(snapshot.ports.iter().filter(|port| port.carrier.is_some()).count())
    }),
    (OWN, "AttachGauge.pending", "Netdevs that should be metered and are not, now.", |snapshot| {
        snapshot.health.attach_pending
    }),
    (
        OWN,
        "AgentGauge.ready",
        "1 once every netdev found at the start is attached or has failed for a reason.",
        |snapshot| u64::from(snapshot.health.ready),
    ),
    (
        OWN,
        "AgentGauge.configReloadSuccessful",
        "1 when the last reload of the configuration was taken, 0 when the one before stays in force.",
        |snapshot| u64::from(snapshot.health.config_reload_ok),
    ),
];

fn flows(snapshot: &Snapshot) -> u64 {
    size(snapshot.tunnels_receive.len() + snapshot.tunnels_transmit.len())
}

fn ports(snapshot: &Snapshot) -> u64 {
    size(snapshot.ports.iter().filter(|port| port.class == Class::Port).count())
}

fn size(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// Adds up what no tunnel counts for one reason, over all uplinks.
fn bucketed(snapshot: &Snapshot, reason: usize) -> Counter {
    snapshot.buckets.values().map(|buckets| buckets.reasons[reason]).fold(Counter::default(), |sum, one| {
        Counter { packets: sum.packets.wrapping_add(one.packets), bytes: sum.bytes.wrapping_add(one.bytes) }
    })
}

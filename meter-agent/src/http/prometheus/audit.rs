//! What the last audit found.

use std::{collections::BTreeMap, fmt};

use uuid::Uuid;

use super::{
    budget::{Choice, OTHER},
    families::{Families, Family, Labels, Value},
    traffic::naming,
};
use crate::{
    audit::{Cause, Drift, Report},
    datapath::Class,
    meter::PortId,
    snapshot::Snapshot,
};

const CLASSES: [Class; 3] = [Class::Port, Class::Tunnel, Class::Uplink];

/// A series of drift: the label of its netdev with its value, the direction and the cause.
type Key<'a> = (&'static str, Option<Uuid>, &'a str, Cause);

/// Writes every family of the audit; none before the first.
pub(super) fn write(
    families: &mut Families<'_>,
    snapshot: &Snapshot,
    choice: &Choice,
    started_ns: u64,
) -> fmt::Result {
    let Some(report) = &snapshot.audit else { return Ok(()) };
    dropped(families, report, choice, started_ns)?;
    drift(families, report, choice)?;
    closure(families, report)?;
    families.gauge(
        &Family::new(
            "meter_audit_netdevs",
            "Netdevs that the last audit compared with the kernel. One that is in no sample of meter_audit_drift_packets \
             has no drift.",
        ),
        u64::try_from(report.rows.len() / 2).unwrap_or(u64::MAX),
    )?;
    families.gauge(
        &Family::seconds(
            "meter_audit_last_run_timestamp",
            "When the last audit was made, since the Unix epoch.",
        ),
        report.at_s,
    )
}

/// Writes what the kernel dropped beside what was offered.
fn dropped(families: &mut Families<'_>, report: &Report, choice: &Choice, started_ns: u64) -> fmt::Result {
    for class in CLASSES {
        let names = naming(class);
        let mut sums: BTreeMap<Option<Uuid>, u64> = BTreeMap::new();
        for dropped in report.transmit_dropped.iter().filter(|dropped| dropped.class == class.name()) {
            let sum = sums.entry(named(choice, class, &dropped.id)).or_default();
            *sum = sum.wrapping_add(dropped.packets);
        }
        let help = "Packets that the netdev dropped after its egress hook had counted them as offered: the kernel's \
            tx_dropped, in its own units, over all netdevs that carried it since the agent started. As old as the last audit; \
            what a netdev dropped after its last one is not in it.";
        families.counters_since(
            &Family::new(format!("{}_transmit_dropped_packets", names.prefix), help),
            sums.into_iter().map(|(id, packets)| (Labels([(names.label, value(id))]), packets, started_ns)),
        )?;
    }
    Ok(())
}

fn drift(families: &mut Families<'_>, report: &Report, choice: &Choice) -> fmt::Result {
    let mut sums: BTreeMap<Key<'_>, Drift> = BTreeMap::new();
    for class in CLASSES {
        for row in report.rows.iter().filter(|row| row.class == class.name()) {
            for drift in &row.drifts {
                let key =
                    (naming(class).label, named(choice, class, &row.id), row.direction.as_str(), drift.cause);
                let sum = sums.entry(key).or_insert(Drift { cause: drift.cause, packets: 0, bytes: 0 });
                sum.packets = sum.packets.wrapping_add(drift.packets);
                sum.bytes = sum.bytes.wrapping_add(drift.bytes);
            }
        }
    }
    let causes: Vec<String> =
        Cause::ALL.iter().map(|cause| format!("{}: {}", cause.name(), cause.sentence())).collect();
    let help = format!(
        "that the kernel counts and the hook does not, negative the other way round, by what explains it; the causes add up \
         to the whole difference, and a netdev without one has no sample. {}",
        causes.join(" ")
    );
    let mut write = |family: &Family, number: fn(&Drift) -> i64| {
        let samples = sums.iter().map(|((label, id, direction, cause), drift)| {
            let labels = Labels([
                (*label, value(*id)),
                ("direction", Value::Text(direction)),
                ("cause", Value::Text(cause.name())),
            ]);
            (labels, number(drift))
        });
        families.gauges(family, samples)
    };
    write(&Family::new("meter_audit_drift_packets", format!("Packets {help}")), |drift| drift.packets)?;
    write(
        &Family::bytes("meter_audit_drift", "Bytes of meter_audit_drift_packets, where they are known."),
        |drift| drift.bytes,
    )
}

fn closure(families: &mut Families<'_>, report: &Report) -> fmt::Result {
    families.gauges(
        &Family::new(
            "meter_audit_closure_packets",
            "Frames at an uplink's hook that are in no tunnel and in no bucket, negative where there are too many in these; \
             anything but 0 is a fault of the meter.",
        ),
        report.closures.iter().map(|closure| {
            let labels = Labels([
                ("uplink", Value::Text(&closure.id)),
                ("direction", Value::Text(&closure.direction)),
            ]);
            (labels, closure.packets)
        }),
    )
}

/// Returns whose series something is in; `None` for that of all that have none of their own.
fn named(choice: &Choice, class: Class, id: &str) -> Option<Uuid> {
    let id = Uuid::try_parse(id).ok()?;
    choice.netdevs(class).is_named(&PortId(id)).then_some(id)
}

const fn value(id: Option<Uuid>) -> Value<'static> {
    match id {
        Some(id) => Value::Uuid(id),
        None => Value::Text(OTHER),
    }
}

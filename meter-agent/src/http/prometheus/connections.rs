//! The connections that are counted.

use std::fmt;

use meter_ebpf::abi::{Counter, Direction, Encap};

use super::{
    budget::{OTHER, Other, Pool},
    families::{Families, Family, Labels, Value},
    traffic::word,
};
use crate::{
    connections::{Row, Series, Shown, Tag, protocol_name},
    meter::PortId,
};

/// The labels of a connection: whose, of what protocol, from whom to whom, and which way.
type RowLabels<'r> = [(&'static str, Value<'r>); 10];

/// Label values of both ends, as [`Row`]s are sent by them.
const DIRECTIONS: [&str; 2] = ["initiator_to_target", "target_to_initiator"];

/// What an address is written as.
struct Ends {
    initiator: String,
    target: String,
}

/// Writes every family of connections; `pool` has the ports whose rest has no series of its own.
pub(super) fn write(families: &mut Families<'_>, shown: &Shown, pool: &Pool<PortId, 4>) -> fmt::Result {
    const SEEN: &str = "of the connection at the netdev of the port, by which end sent them. A connection that is not named, or is not in \
        the table, is in meter_connection_other. Wire units, as meter_port";
    let rows: Vec<(&Row, Ends)> = shown
        .rows
        .iter()
        .map(|row| {
            let Series { initiator, target, .. } = &row.series;
            (row, Ends { initiator: initiator.0.to_string(), target: target.0.to_string() })
        })
        .collect();
    let counters = |value: fn(&Counter) -> u64| {
        rows.iter().flat_map(move |(row, ends)| {
            DIRECTIONS.into_iter().zip(row.counts).map(move |(direction, hooks)| {
                let sum = hooks.iter().fold(0_u64, |sum, hook| sum.wrapping_add(value(hook)));
                (Labels(labels(row, ends, direction)), sum)
            })
        })
    };
    let family = Family::new("meter_connection_packets", format!("Frames {SEEN}."));
    families.counters(&family, counters(|counter| counter.packets))?;
    let family = Family::bytes("meter_connection", format!("Bytes of frames {SEEN}."));
    families.counters(&family, counters(|counter| counter.bytes))?;
    let family = Family::seconds(
        "meter_connection_rtt",
        "Time from the first SYN to its answer, or from an echo request to its reply, where both were seen.",
    );
    let timed = rows.iter().filter(|(row, _)| row.rtt_ns != 0);
    families.gauges(
        &family,
        timed.map(|(row, ends)| (Labels(labels(row, ends, DIRECTIONS[0])), seconds(row.rtt_ns))),
    )?;

    const REST: &str = "of a port whose connections are counted that are in no series of meter_connection: of no connection, not wanted, \
        without room or name, or of connections that have left. With those they are all that the port has since its connections are \
        counted. By the hook of the netdev; wire units, as meter_port. Ports beyond \
        metrics.max_series share the port other";
    let others = |value: fn(&Counter) -> u64| {
        let named = shown.others.iter().filter(|(port, _)| pool.is_named(port));
        let named = named.map(|(port, hooks)| (Value::Uuid(port.0), *hooks));
        let pooled =
            pool.other().map(|Other { values: [packets_in, packets_out, bytes_in, bytes_out], .. }| {
                let ingress = Counter { packets: packets_in, bytes: bytes_in };
                (Value::Text(OTHER), [ingress, Counter { packets: packets_out, bytes: bytes_out }])
            });
        named.chain(pooled).flat_map(move |(port, hooks)| {
            Direction::ALL.map(|direction| {
                let labels = [("port", port), ("direction", Value::Text(word(direction)))];
                (Labels(labels), value(&hooks[direction as usize]))
            })
        })
    };
    let family = Family::new("meter_connection_other_packets", format!("Frames {REST}."));
    families.counters(&family, others(|counter| counter.packets))?;
    let family = Family::bytes("meter_connection_other", format!("Bytes of frames {REST}."));
    families.counters(&family, others(|counter| counter.bytes))
}

fn labels<'r>(row: &Row, ends: &'r Ends, direction: &'static str) -> RowLabels<'r> {
    let Series { port, protocol, initiator, target, tag, encap, vni } = &row.series;
    let number = |number: Option<u16>| number.map_or(Value::Text(""), |number| Value::Number(number.into()));
    [
        ("port", Value::Uuid(port.0)),
        ("protocol", Value::Text(protocol.map_or("", protocol_name))),
        ("initiator_ip", Value::Text(&ends.initiator)),
        ("initiator_port", number(initiator.1)),
        ("target_ip", Value::Text(&ends.target)),
        ("target_port", number(target.1)),
        ("class", Value::Text(tag.map_or("", Tag::name))),
        ("direction", Value::Text(direction)),
        ("encap", Value::Text(encap.map_or("", Encap::name))),
        ("vni", vni.map_or(Value::Text(""), Value::Number)),
    ]
}

#[expect(clippy::cast_precision_loss, reason = "a round trip of 104 days is exact to the nanosecond")]
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

//! The families of the Skydive-Prometheus connector, as it wrote them: gauges all, with its HELP texts and its labels.
//!
//! Each connection shows its totals from its beginning, and leaves with its series. What else there is of a port is not here.

use std::fmt::{self, Write as _};

use meter_ebpf::{
    abi::Counter,
    packet::numbers::{IP_SCTP, IP_TCP, IP_UDP},
};

use crate::{
    connections::{Row, Shown, View, protocol_name},
    datapath::ConnectionReading,
    snapshot::Snapshot,
};

/// Returns how connections are shown here: one by one, and those that the classifier doesn't filter out.
pub(super) fn view(native: &View) -> View {
    View { drop: [].into(), networks: Vec::new(), ..native.clone() }
}

/// Returns those that the connector showed: it skipped what has no transport layer.
pub(super) fn with_transport(connections: &[ConnectionReading]) -> Vec<ConnectionReading> {
    let has_transport =
        |connection: &&ConnectionReading| matches!(connection.protocol, IP_TCP | IP_UDP | IP_SCTP);
    connections.iter().filter(has_transport).cloned().collect()
}

/// Writes all of it.
pub(super) fn write(out: &mut String, shown: &Shown, snapshot: &Snapshot) {
    let value = |value: fn(&Counter) -> u64| {
        move |hooks: &[Counter; 2]| hooks.iter().fold(0_u64, |sum, hook| sum.wrapping_add(value(hook)))
    };
    let mut family = |name: &str, help: &str, both: bool, value: &dyn Fn(&Row, usize) -> u64| {
        if shown.rows.is_empty() {
            return;
        }
        let name = format!("skydive_network_connection_{name}");
        put(out, format_args!("# HELP {name} {help}\n# TYPE {name} gauge\n"));
        for row in &shown.rows {
            for (end, direction) in ["initiator_to_target", "target_to_initiator"].into_iter().enumerate() {
                if end == 0 || both {
                    let value = Float(value(row, end));
                    put(out, format_args!("{name}{{{}}} {value}\n", Labels { row, direction }));
                }
            }
        }
    };
    let rtt = "Round Trip Time of packets that have been transmitted on this connection";
    family("rtt_nanoseconds", rtt, false, &|row, _| row.rtt_ns);
    let (bytes, packets) = (value(|counter| counter.bytes), value(|counter| counter.packets));
    // The misspelling is the connector's.
    let help = "Number of bytes that have been transmmitted on this connection";
    family("total_bytes", help, true, &|row, end| bytes(&row.live[end]));
    let help = "Number of packets that have been transmmitted on this connection";
    family("total_packets", help, true, &|row, end| packets(&row.live[end]));
    interfaces(out, snapshot);
}

/// Writes what the netdevs of ports received and sent whose connections are counted, in the kernel's units.
fn interfaces(out: &mut String, snapshot: &Snapshot) {
    let captured =
        snapshot.captures.iter().map(|capture| capture.port).collect::<std::collections::BTreeSet<_>>();
    let netdevs: Vec<_> = snapshot
        .ports
        .iter()
        .filter(|port| captured.contains(&port.port))
        .filter_map(|port| Some((port, port.carrier.as_ref()?)))
        .collect();
    if netdevs.is_empty() {
        return;
    }
    for (name, what, egress, value) in [
        (
            "rx_bytes",
            "bytes that have been received on",
            false,
            (|counter| counter.bytes) as fn(&Counter) -> u64,
        ),
        ("rx_packets", "packets that have been received on", false, |counter| counter.packets),
        ("tx_bytes", "bytes that have been transmitted by", true, |counter| counter.bytes),
        ("tx_packets", "packets that have been transmitted by", true, |counter| counter.packets),
    ] {
        let name = format!("skydive_network_interface_{name}");
        put(out, format_args!("# HELP {name} Number of {what} this interface\n# TYPE {name} gauge\n"));
        for (port, carrier) in &netdevs {
            let hook = if egress { &port.egress } else { &port.ingress };
            let (host, netdev, kind) =
                (Escaped(&snapshot.host), Escaped(&carrier.netdev), Escaped(kind_of(&carrier.kind)));
            put(
                out,
                format_args!(
                    "{name}{{host=\"{host}\",interface_name=\"{netdev}\",interface_type=\"{kind}\",ipv4=\"\",ipv6=\"\",\
                     node_tid=\"{}\"}} {}\n",
                    port.port,
                    Float(value(&hook.skb()))
                ),
            );
        }
    }
}

/// Returns Skydive's word for a kind of netdev.
fn kind_of(kind: &str) -> &str {
    if kind == "physical" { "device" } else { kind }
}

fn put(out: &mut String, line: fmt::Arguments<'_>) {
    // Writing to a `String` can't fail.
    out.write_fmt(line).unwrap_or_default();
}

struct Labels<'r> {
    row: &'r Row,
    direction: &'static str,
}

impl fmt::Display for Labels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let series = &self.row.series;
        let number = |number: Option<u16>| number.unwrap_or_default();
        write!(
            f,
            "direction=\"{}\",initiator_ip=\"{}\",initiator_port=\"{}\",node_tid=\"{}\",protocol=\"{}\",target_ip=\"{}\",\
             target_port=\"{}\"",
            self.direction,
            series.initiator.0,
            number(series.initiator.1),
            series.port,
            series.protocol.map_or("", protocol_name),
            series.target.0,
            number(series.target.1),
        )
    }
}

/// The value of a label.
struct Escaped<'t>(&'t str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\\' => f.write_str("\\\\"),
            '"' => f.write_str("\\\""),
            '\n' => f.write_str("\\n"),
            c => f.write_char(c),
        })
    }
}

/// A number as Go's `strconv` writes the shortest that is the same: with an exponent from a million on.
struct Float(u64);

impl fmt::Display for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 1_000_000 {
            return write!(f, "{}", self.0);
        }
        #[expect(clippy::cast_precision_loss, reason = "the connector's numbers were doubles")]
        let text = format!("{:e}", self.0 as f64);
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        write!(f, "{digits}e+{exponent:0>2}")
    }
}

#[cfg(test)]
mod tests {
    use super::Float;

    #[test]
    fn numbers_are_written_as_go_does() {
        for (number, text) in [
            (0, "0"),
            (999_999, "999999"),
            (1_000_000, "1e+06"),
            (1_048_576, "1.048576e+06"),
            (12_345_678_901, "1.2345678901e+10"),
            (u64::MAX, "1.8446744073709552e+19"),
        ] {
            assert_eq!(Float(number).to_string(), text);
        }
    }
}

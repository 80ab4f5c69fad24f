//! The families of the Skydive-Prometheus connector, as it wrote them: gauges all, with its HELP texts and its labels.
//!
//! Each connection shows its totals from its beginning, and leaves with its series. What else there is of a port is not here.
//! A netdev shows the kernel's statistics since it exists.

use std::{
    fmt::{self, Write as _},
    net::IpAddr,
};

use meter_ebpf::{
    abi::Counter,
    packet::numbers::{IP_SCTP, IP_TCP, IP_UDP},
};

use crate::{
    connections::{Label, Row, Shown, View, protocol_name},
    datapath::ConnectionReading,
    netdev::{NetdevState, NetdevStats},
    snapshot::{Carrier, Port, Snapshot},
};

/// Returns how connections are shown here: one by one, but for those of the same ends in several overlay networks, and those that the classifier doesn't filter out.
pub(super) fn view(native: &View) -> View {
    View { drop: [Label::Encap, Label::Vni].into(), networks: Vec::new(), ..native.clone() }
}

/// Returns those that the connector showed: it skipped what has no transport layer.
pub(super) fn with_transport(connections: &[ConnectionReading]) -> Vec<ConnectionReading> {
    let has_transport =
        |connection: &&ConnectionReading| matches!(connection.protocol, IP_TCP | IP_UDP | IP_SCTP);
    connections.iter().filter(has_transport).cloned().collect()
}

/// Writes all of it; `limit` is how many netdevs there may be.
pub(super) fn write(out: &mut String, shown: &Shown, snapshot: &Snapshot, limit: usize) {
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
    interfaces(out, snapshot, limit);
}

/// What the kernel says of a netdev: how the family's name ends, what it counts, and where that is.
type Statistic = (&'static str, &'static str, fn(&NetdevStats) -> u64);

const STATISTICS: [Statistic; 11] = [
    ("collisions", "collisions reported on", |stats| stats.collisions),
    ("rx_bytes", "bytes that have been received on", |stats| stats.rx_bytes),
    ("rx_dropped", "received packets that have been dropped by", |stats| stats.rx_dropped),
    ("rx_errors", "errors on received packets on", |stats| stats.rx_errors),
    ("rx_missed_errors", "missed errors on received packets on", |stats| stats.rx_missed_errors),
    ("rx_packets", "packets that have been received on", |stats| stats.rx_packets),
    ("tx_bytes", "bytes that have been transmitted by", |stats| stats.tx_bytes),
    ("tx_dropped", "transmitted packets that have been dropped on", |stats| stats.tx_dropped),
    ("tx_errors", "errors on transmitted packets on", |stats| stats.tx_errors),
    // Skydive had none, so the connector's was 0.
    ("tx_missed_errors", "missed errors on transmitted packets on", |_| 0),
    ("tx_packets", "packets that have been transmitted by", |stats| stats.tx_packets),
];

/// Writes what the kernel says of metered netdevs, at most so many: those of the ports that are there longest.
fn interfaces(out: &mut String, snapshot: &Snapshot, limit: usize) {
    let mut netdevs: Vec<(&Port, &NetdevState, String)> = snapshot
        .ports
        .iter()
        .filter_map(|port| {
            let carrier = port.carrier.as_ref()?;
            let state = snapshot.netdev_states.get(&carrier.id)?;
            Some((port, state, interface_labels(&snapshot.host, port, carrier, state)))
        })
        .collect();
    netdevs.sort_by_key(|(port, ..)| (port.created_ns, port.port));
    netdevs.truncate(limit);
    if netdevs.is_empty() {
        return;
    }
    for (name, what, value) in STATISTICS {
        let name = format!("skydive_network_interface_{name}");
        put(out, format_args!("# HELP {name} Number of {what} this interface\n# TYPE {name} gauge\n"));
        for (_, state, labels) in &netdevs {
            put(out, format_args!("{name}{{{labels}}} {}\n", Float(value(&state.stats))));
        }
    }
}

fn interface_labels(host: &str, port: &Port, carrier: &Carrier, state: &NetdevState) -> String {
    let address = |address: Option<(IpAddr, u8)>| {
        address.map(|(address, prefix)| format!("{address}/{prefix}")).unwrap_or_default()
    };
    format!(
        "host=\"{}\",interface_name=\"{}\",interface_type=\"{}\",ipv4=\"{}\",ipv6=\"{}\",node_tid=\"{}\"",
        Escaped(host),
        Escaped(&carrier.netdev),
        Escaped(kind_of(&carrier.kind)),
        address(state.ipv4),
        address(state.ipv6),
        port.port,
    )
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

//! The live table: redrawn each second on a terminal, a line now and then elsewhere.

use std::{collections::BTreeMap, io::Write, time::Duration};

use anyhow::{Context as _, Result};

use super::{exposition::Exposition, topology::Topology};

/// Packets and bytes at the last look.
type Last = BTreeMap<String, u64>;

/// What was shown before, and how.
#[derive(Debug)]
pub(super) struct View {
    terminal: bool,
    /// Lines of the table that is on the terminal now.
    lines: usize,
    last: Last,
    last_at: Duration,
}

impl View {
    pub(super) const fn new(terminal: bool) -> Self {
        Self { terminal, lines: 0, last: Last::new(), last_at: Duration::ZERO }
    }

    /// How long one picture stands.
    pub(super) const fn interval(&self) -> Duration {
        Duration::from_secs(if self.terminal { 1 } else { 5 })
    }

    /// Shows the agents' counts, one exposition for each host, this long after the start of the traffic.
    pub(super) fn show(
        &mut self,
        out: &mut impl Write,
        topology: &Topology,
        readings: &[Exposition],
        at: Duration,
    ) -> Result<()> {
        let elapsed = at.saturating_sub(self.last_at);
        self.last_at = at;
        let text = if self.terminal {
            self.table(topology, readings, elapsed)
        } else {
            self.line(readings, at, elapsed)
        };
        if self.lines > 0 {
            // Up to the first line of the last table, and clear from there.
            write!(out, "\x1b[{}A\x1b[J", self.lines).context("write to standard output")?;
        }
        if self.terminal {
            self.lines = text.lines().count();
        }
        write!(out, "{text}").and_then(|()| out.flush()).context("write to standard output")
    }

    fn table(&mut self, topology: &Topology, readings: &[Exposition], elapsed: Duration) -> String {
        let row = |what: &str, columns: [&str; 6]| {
            let [a, b, c, d, e, g] = columns;
            format!("{what:<50} {a:>10} {b:>9} {c:>8} | {d:>10} {e:>9} {g:>8}\n")
        };
        let mut text = row("host port", ["rx packets", "bytes", "bit/s", "tx packets", "bytes", "bit/s"]);
        for (host, reading) in topology.hosts.iter().zip(readings) {
            for port in &host.ports {
                let what = format!("{}    {:7} {}", host.name, port.netdev, port.uuid);
                let [rx, tx] = ["receive", "transmit"].map(|direction| {
                    let family = format!("meter_port_{direction}");
                    self.numbers(&what, reading, &family, "bytes", &[("port", &port.uuid)], elapsed)
                });
                text += &row(&what, [&rx[0], &rx[1], &rx[2], &tx[0], &tx[1], &tx[2]]);
            }
        }
        text += &row("host tunnel", ["packets", "inner", "bit/s", "", "outer", "bit/s"]);
        for (host, reading) in topology.hosts.iter().zip(readings) {
            for (direction, sign) in [("transmit", "tx"), ("receive", "rx")] {
                let family = format!("meter_tunnel_{direction}");
                for (found, _) in reading.family(&format!("{family}_packets_total")) {
                    let labels = ["src", "dst", "vni", "encap"]
                        .map(|key| (key, found.get(key).map(String::as_str).unwrap_or_default()));
                    let [(_, src), (_, dst), (_, vni), (_, encap)] = labels;
                    let what = format!("{}    {sign} {src} > {dst} {encap} {vni}", host.name);
                    let inner = self.numbers(&what, reading, &family, "inner_bytes", &labels, elapsed);
                    let outer = self.numbers(&what, reading, &family, "outer_bytes", &labels, elapsed);
                    text += &row(&what, [&inner[0], &inner[1], &inner[2], "", &outer[1], &outer[2]]);
                }
            }
        }
        text
    }

    /// Returns packets, bytes and bits a second of one meter.
    fn numbers(
        &mut self,
        what: &str,
        reading: &Exposition,
        family: &str,
        bytes: &str,
        labels: &[(&str, &str)],
        elapsed: Duration,
    ) -> [String; 3] {
        let packets = reading.sum(&format!("{family}_packets_total"), labels);
        let total = reading.sum(&format!("{family}_{bytes}_total"), labels);
        let rate = self.rate(format!("{what} {family} {bytes}"), total, elapsed);
        [packets.to_string(), scaled(total, "B"), scaled(rate, "")]
    }

    /// Returns bits a second since the last look.
    fn rate(&mut self, what: String, bytes: u64, elapsed: Duration) -> u64 {
        let before = self.last.insert(what, bytes).unwrap_or(bytes);
        let bits = u128::from(bytes.saturating_sub(before)) * 8 * 1000;
        u64::try_from(bits / elapsed.as_millis().max(1)).unwrap_or(u64::MAX)
    }

    fn line(&mut self, readings: &[Exposition], at: Duration, elapsed: Duration) -> String {
        let sum = |family: &str| readings.iter().map(|reading| reading.sum(family, &[])).sum::<u64>();
        let packets = sum("meter_port_receive_packets_total");
        let bytes = sum("meter_port_receive_bytes_total");
        let tunnelled = sum("meter_tunnel_transmit_packets_total");
        let inner = sum("meter_tunnel_transmit_inner_bytes_total");
        let outer = sum("meter_tunnel_transmit_outer_bytes_total");
        let rate = self.rate("ports".to_owned(), bytes, elapsed);
        format!(
            "{:>4} s: ports rx {packets} packets {} {}bit/s; tunnels tx {tunnelled} packets, inner {}, outer {}\n",
            at.as_secs(),
            scaled(bytes, "B"),
            scaled(rate, ""),
            scaled(inner, "B"),
            scaled(outer, "B"),
        )
    }
}

/// Writes a number with three or four digits and a decimal prefix.
fn scaled(number: u64, unit: &str) -> String {
    const PREFIXES: [&str; 5] = ["", "k", "M", "G", "T"];
    let mut tenths = u128::from(number) * 10;
    let mut prefixes = PREFIXES.into_iter();
    let mut prefix = prefixes.next().unwrap_or_default();
    while tenths >= 10_000 {
        let Some(next) = prefixes.next() else { break };
        prefix = next;
        tenths /= 1000;
    }
    if prefix.is_empty() {
        return format!("{number} {unit}");
    }
    format!("{}.{} {prefix}{unit}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::scaled;

    #[test]
    fn large_numbers_get_a_prefix() {
        assert_eq!(scaled(999, "B"), "999 B");
        assert_eq!(scaled(1000, "B"), "1.0 kB");
        assert_eq!(scaled(12_345_678, "B"), "12.3 MB");
        assert_eq!(scaled(u64::MAX, ""), "18446744.0 T");
    }
}

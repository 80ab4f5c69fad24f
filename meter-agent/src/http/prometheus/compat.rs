//! The families of MidoNet's agent and of the JMX scraper that stood before Prometheus, as those wrote them.
//!
//! Text 0.0.4 is theirs to the byte. OpenMetrics, which they did not speak, gets the same series: a counter without
//! `_total` can only be declared as of unknown type there. Two things are ours: label values are escaped, and what has
//! no name of its own (see [`super::budget`]) is summed to one meter of its kind, which is called `other`.

mod java;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Write as _},
};

use self::java::Double;
use super::{
    Format, Stopwatch,
    budget::{METER_KINDS, MeterPools, OTHER, meter_kind},
};
use crate::meter::{FlowStats, MeterKey};

/// MidoNet's meters, to be written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Compat<'a> {
    pub(super) meters: &'a BTreeMap<MeterKey, FlowStats>,
    pub(super) pools: &'a MeterPools,
    pub(super) format: Format,
}

/// A meter of the pool, or one that has a name.
#[derive(Debug, Clone, Copy)]
enum Name<'a> {
    Key(&'a MeterKey),
    /// The others of this kind.
    Other(usize),
}

/// Returns a number of a meter.
type Number = fn(&FlowStats) -> u64;

const PACKETS: Number = |stats| stats.packets;
const BYTES: Number = |stats| stats.bytes;

impl<'a> Compat<'a> {
    /// Writes what MidoNet's agent served at `:7300/metrics`.
    ///
    /// It had a registry for each of its workers, and each meter in each of them; here there is one.
    pub(super) fn midonet(self, out: &mut String) {
        let declared = match self.format {
            Format::Text => [("midonet_packets_total", "counter"), ("midonet_packets_bytes", "counter")],
            Format::OpenMetrics => [("midonet_packets", "counter"), ("midonet_packets_bytes", "unknown")],
        };
        let families =
            [("midonet_packets_total", "packets", PACKETS), ("midonet_packets_bytes", "bytes", BYTES)];
        for ((family, kind), (name, what, number)) in declared.into_iter().zip(families) {
            write(out, format_args!("# HELP {family} Total number of {what} processed.\n"));
            write(out, format_args!("# TYPE {family} {kind}\n"));
            for (key, stats) in (0..METER_KINDS.len()).flat_map(|kind| self.kind(kind)) {
                let (key, value) = (Escaped::label(key), number(&stats));
                write(out, format_args!("{name}{{key=\"{key}\",registry=\"0\"}} {value}\n"));
            }
        }
    }

    /// Writes what the scraper served; `agent` is how it calls this agent.
    ///
    /// It had no family for user meters.
    pub(super) fn scraper(self, out: &mut String, agent: &str, stopwatch: Stopwatch) {
        for (kind, prefix) in ["mndev", "mnport_rx", "mnport_tx", "mntun"].into_iter().enumerate() {
            for (unit, number) in [("pkts", PACKETS), ("bytes", BYTES)] {
                self.scraped(out, kind, &format!("{prefix}_{unit}"), unit, number, agent);
            }
        }
        let took = Double(stopwatch.elapsed().as_secs_f64());
        for (family, help, value) in [
            ("jmx_scrape_duration_seconds", "Time this JMX scrape took, in seconds.", took),
            ("jmx_scrape_error", "Non-zero if this scrape failed.", Double(0.0)),
        ] {
            write(out, format_args!("# HELP {family} {help}\n# TYPE {family} gauge\n{family} {value}\n"));
        }
    }

    /// Writes one family of the scraper, if it has a meter.
    fn scraped(self, out: &mut String, kind: usize, family: &str, unit: &str, number: Number, agent: &str) {
        let mut meters = self.kind(kind).peekable();
        let Some((first, _)) = meters.peek() else { return };
        // The rule of its configuration that the first meter matched.
        let rule = format_args!("{first}<hostPort={agent}, type={unit}><>Value");
        write(out, format_args!("# HELP {family} Description ({})\n", Escaped::help(rule, self.format)));
        let agent = Escaped::label(agent);
        // Its library ends a list of labels with a comma, which OpenMetrics has no room for.
        let (declared, end) = match self.format {
            Format::Text => ("counter", ","),
            Format::OpenMetrics => ("unknown", ""),
        };
        write(out, format_args!("# TYPE {family} {declared}\n"));
        for (name, stats) in meters {
            #[expect(clippy::cast_precision_loss, reason = "the scraper's numbers were Java's doubles")]
            let value = Double(number(&stats) as f64);
            match name {
                Name::Key(MeterKey::Tunnel { src, dst }) => {
                    let labels = format_args!("dst=\"{dst}\",src=\"{src}\",mn_agent=\"{agent}\"{end}");
                    write(out, format_args!("{family}{{{labels}}} {value}\n"));
                }
                Name::Other(3) => {
                    let labels = format_args!("dst=\"{OTHER}\",src=\"{OTHER}\",mn_agent=\"{agent}\"{end}");
                    write(out, format_args!("{family}{{{labels}}} {value}\n"));
                }
                Name::Key(MeterKey::PortRx(port) | MeterKey::PortTx(port)) => {
                    let labels = format_args!("mn_agent=\"{agent}\",mn_id=\"{port}\"{end}");
                    write(out, format_args!("{family}{{{labels}}} {value}\n"));
                }
                Name::Key(MeterKey::Device(device)) => {
                    let labels = format_args!("mn_agent=\"{agent}\",mn_id=\"{device}\"{end}");
                    write(out, format_args!("{family}{{{labels}}} {value}\n"));
                }
                Name::Other(_) | Name::Key(MeterKey::User(_)) => {
                    let labels = format_args!("mn_agent=\"{agent}\",mn_id=\"{OTHER}\"{end}");
                    write(out, format_args!("{family}{{{labels}}} {value}\n"));
                }
            }
        }
    }

    /// Returns the meters of a kind, those that have a name and then the others' sum.
    fn kind(self, kind: usize) -> impl Iterator<Item = (Name<'a>, FlowStats)> {
        let pool = &self.pools[kind];
        let named = self.meters.iter().filter(move |(key, _)| meter_kind(key) == kind && pool.is_named(key));
        let other = pool.other().map(|other| {
            let [packets, bytes] = other.values;
            (Name::Other(kind), FlowStats { packets, bytes })
        });
        named.map(|(key, stats)| (Name::Key(key), *stats)).chain(other)
    }
}

impl Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => key.fmt(f),
            Self::Other(3) => write!(f, "{}:{OTHER}:{OTHER}", METER_KINDS[3]),
            Self::Other(kind) => write!(f, "{}:{OTHER}", METER_KINDS[*kind]),
        }
    }
}

/// A text in which these characters are escaped.
#[derive(Debug, Clone, Copy)]
struct Escaped<T>(T, &'static [char]);

impl<T> Escaped<T> {
    /// The value of a label, the same in both formats.
    const fn label(value: T) -> Self {
        Self(value, &['\\', '"', '\n'])
    }

    /// A HELP, in which text 0.0.4 has no escape for quotes: there, one ends the whole scrape.
    const fn help(text: T, format: Format) -> Self {
        match format {
            Format::Text => Self(text, &['\\', '\n']),
            Format::OpenMetrics => Self::label(text),
        }
    }
}

impl<T: Display> Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Escapes<'a, 'f>(&'a mut fmt::Formatter<'f>, &'static [char]);
        impl fmt::Write for Escapes<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                for piece in text.split_inclusive(self.1) {
                    let plain = piece.strip_suffix(self.1).unwrap_or(piece);
                    let escape = match &piece[plain.len()..] {
                        "\\" => "\\\\",
                        "\"" => "\\\"",
                        "\n" => "\\n",
                        _ => "",
                    };
                    self.0.write_str(plain)?;
                    self.0.write_str(escape)?;
                }
                Ok(())
            }
        }
        write!(Escapes(f, self.1), "{}", self.0)
    }
}

fn write(out: &mut String, arguments: fmt::Arguments<'_>) {
    out.write_fmt(arguments).expect("a string takes everything");
}

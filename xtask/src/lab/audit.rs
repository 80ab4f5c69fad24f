//! The comparison at the end: each meter of each agent beside a count that no agent made.

use std::{collections::BTreeSet, fmt};

use lab::{count::Count, wire::DirectionCounts};

use super::{
    Moment,
    exposition::Exposition,
    topology::{Host, Topology, UPLINK, Witness},
};

/// One meter.
#[derive(Debug)]
struct Row {
    host: &'static str,
    meter: String,
    /// Whether the lab's traffic must have moved it.
    of_port: bool,
    agent: Count,
    witness: Count,
}

/// Every meter of the lab with its independent count.
#[derive(Debug)]
pub(super) struct Audit {
    rows: Vec<Row>,
    super_packets: u64,
    longest: u64,
}

/// What an agent counted between two moments.
struct Reading<'a> {
    before: &'a Exposition,
    after: &'a Exposition,
}

impl Reading<'_> {
    fn sum(&self, family: &str, labels: &[(&str, &str)]) -> u64 {
        // A counter that went back shows as a difference, not as a panic.
        self.after.sum(family, labels).wrapping_sub(self.before.sum(family, labels))
    }

    /// Reads the families `<name>_packets_total` and `<name>_<bytes>_total`.
    fn count(&self, name: &str, bytes: &str, labels: &[(&str, &str)]) -> Count {
        Count {
            frames: self.sum(&format!("{name}_packets_total"), labels),
            bytes: self.sum(&format!("{name}_{bytes}_total"), labels),
        }
    }

    /// Returns the identity under which an info metric describes this netdev; empty, and so without samples, where
    /// none does.
    fn identity(&self, info: &str, label: &str, netdev: &str) -> String {
        self.after.describe(info, ("netdev", netdev), label).unwrap_or_default().to_owned()
    }
}

impl Audit {
    /// Compares what was counted between the two moments.
    pub(super) fn new(topology: &Topology, before: &Moment, after: &Moment) -> Self {
        let witness = after.witness.since(&before.witness);
        let mut rows = Vec::new();
        for (index, host) in topology.hosts.iter().enumerate() {
            let reading = Reading { before: &before.agents[index], after: &after.agents[index] };
            let (transmitted, received) = match index {
                0 => (&witness.wire.a_to_b, &witness.wire.b_to_a),
                _ => (&witness.wire.b_to_a, &witness.wire.a_to_b),
            };
            let mut host_rows = HostRows { host, reading, rows: &mut rows };
            host_rows.ports(topology, index, &witness);
            host_rows.devices(topology, index, &witness);
            for (direction, wire) in [("transmit", transmitted), ("receive", received)] {
                host_rows.tunnels(direction, wire);
                host_rows.tunnel_netdevs(topology, direction, wire);
                host_rows.uplink(direction, wire);
            }
        }
        let crossed = || witness.guests.values().flat_map(|guest| [&guest.from_guest, &guest.to_guest]);
        Self {
            rows,
            super_packets: crossed().map(|counts| counts.super_packets).sum(),
            longest: crossed().map(|counts| counts.longest).max().unwrap_or_default(),
        }
    }

    /// Returns a port at which nothing moved, if there is one.
    pub(super) fn idle(&self) -> Option<String> {
        let row = self.rows.iter().find(|row| row.of_port && row.witness.frames == 0)?;
        Some(format!("{} of host {}", row.meter, row.host))
    }

    /// How many meters were compared.
    pub(super) fn meters(&self) -> usize {
        self.rows.len()
    }

    /// How many of them differ.
    pub(super) fn differences(&self) -> usize {
        self.rows.iter().filter(|row| row.agent != row.witness).count()
    }
}

struct HostRows<'a> {
    host: &'a Host,
    reading: Reading<'a>,
    rows: &'a mut Vec<Row>,
}

impl HostRows<'_> {
    fn push(&mut self, meter: String, agent: Count, witness: Count) {
        let of_port = meter.starts_with("port ");
        self.rows.push(Row { host: self.host.name, meter, of_port, agent, witness });
    }

    fn ports(&mut self, topology: &Topology, index: usize, witness: &Witness) {
        for port in &self.host.ports {
            let (rx, tx) = traffic_of(topology, index, port, witness);
            for (name, direction, expected) in [("rx", "receive", rx), ("tx", "transmit", tx)] {
                let counted =
                    self.reading.count(&format!("meter_port_{direction}"), "bytes", &[("port", &port.uuid)]);
                self.push(format!("port {} {name}", port.netdev), counted, expected);
            }
        }
    }

    fn devices(&mut self, topology: &Topology, index: usize, witness: &Witness) {
        for overlay in &topology.overlays {
            let ports = self.host.ports.iter().filter(|port| port.overlay.vni == overlay.vni);
            let expected = ports.map(|port| traffic_of(topology, index, port, witness).0).sum();
            let device = overlay.device();
            let counted = self.reading.count("meter_device_receive", "bytes", &[("device", &device)]);
            self.push(format!("device of VNI {}", overlay.vni), counted, expected);
        }
    }

    /// Tunnels that the wire saw, and tunnels that only the agent saw.
    fn tunnels(&mut self, direction: &str, wire: &DirectionCounts) {
        let name = format!("meter_tunnel_{direction}");
        let tunnels: BTreeSet<[String; 4]> = wire
            .tunnels
            .keys()
            .map(|key| [key.src.to_string(), key.dst.to_string(), key.vni.to_string(), key.encap.to_string()])
            .chain(self.reading.after.family(&format!("{name}_packets_total")).map(|(labels, _)| {
                ["src", "dst", "vni", "encap"].map(|key| labels.get(key).cloned().unwrap_or_default())
            }))
            .collect();
        for [src, dst, vni, encap] in tunnels {
            let labels = [("src", &*src), ("dst", &dst), ("vni", &vni), ("encap", &encap)];
            let seen = wire.tunnels.iter().find(|(key, _)| {
                key.src.to_string() == src
                    && key.dst.to_string() == dst
                    && key.vni.to_string() == vni
                    && key.encap.to_string() == encap
            });
            let seen = seen.map(|(_, count)| *count).unwrap_or_default();
            for (part, bytes, expected) in
                [("inner", "inner_bytes", seen.inner_bytes), ("outer", "outer_bytes", seen.outer_bytes)]
            {
                let counted = self.reading.count(&name, bytes, &labels);
                let meter = format!("tunnel {src} > {dst} {encap} {vni} {direction}, {part}");
                self.push(meter, counted, Count { frames: seen.frames, bytes: expected });
            }
        }
    }

    fn tunnel_netdevs(&mut self, topology: &Topology, direction: &str, wire: &DirectionCounts) {
        for overlay in &topology.overlays {
            let netdev = overlay.netdev();
            let id = self.reading.identity("meter_tunnel_netdev_info", "tunnel_netdev", &netdev);
            let name = format!("meter_tunnel_netdev_{direction}");
            let counted = self.reading.count(&name, "bytes", &[("tunnel_netdev", &id)]);
            let expected = wire
                .tunnels
                .iter()
                .filter(|(key, _)| key.vni == overlay.vni && key.encap == overlay.encap)
                .map(|(_, count)| Count { frames: count.frames, bytes: count.inner_bytes })
                .sum();
            self.push(format!("tunnel netdev {netdev} {direction}"), counted, expected);
        }
    }

    /// The uplink as a whole, and what of it is in no tunnel.
    fn uplink(&mut self, direction: &str, wire: &DirectionCounts) {
        let id = self.reading.identity("meter_uplink_info", "uplink", UPLINK);
        let counted = self.reading.count(&format!("meter_uplink_{direction}"), "bytes", &[("uplink", &id)]);
        self.push(format!("uplink {UPLINK} {direction}"), counted, wire.total);
        let tunnelled: Count =
            wire.tunnels.values().map(|count| Count { frames: count.frames, bytes: count.outer_bytes }).sum();
        let labels = [("uplink", &*id), ("direction", direction)];
        let counted = self.reading.count("meter_uplink_bucket", "bytes", &labels);
        self.push(format!("uplink {UPLINK} {direction}, in no tunnel"), counted, wire.total.since(tunnelled));
    }
}

/// Returns what a port received from its guest, and what it transmitted to it.
///
/// Behind a tap every frame was seen. Behind a veth it is the sum over the other guests, each of whose exchanges with
/// it were seen on the wire or at the other's tap.
fn traffic_of(
    topology: &Topology,
    index: usize,
    port: &super::topology::Port,
    witness: &Witness,
) -> (Count, Count) {
    if port.is_tap() {
        let counts = &witness.guests[&port.mac];
        return (counts.from_guest.total, counts.to_guest.total);
    }
    let here = (index, port);
    let others = || {
        topology
            .hosts
            .iter()
            .enumerate()
            .flat_map(|(index, host)| host.ports.iter().map(move |port| (index, port)))
            .filter(|(_, other)| other.mac != port.mac)
    };
    (
        others().map(|other| witness.between(here, other)).sum(),
        others().map(|other| witness.between(other, here)).sum(),
    )
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|row| row.meter.len()).max().unwrap_or_default();
        writeln!(
            f,
            "host {:width$} {:>11} {:>14} | {:>11} {:>14} equal",
            "meter", "packets", "bytes", "independent", "count"
        )?;
        for row in &self.rows {
            let Row { host, meter, agent, witness, .. } = row;
            writeln!(
                f,
                "{host:4} {meter:width$} {:>11} {:>14} | {:>11} {:>14} {}",
                agent.frames,
                agent.bytes,
                witness.frames,
                witness.bytes,
                if agent == witness { "yes" } else { "NO" }
            )?;
        }
        writeln!(
            f,
            "{} super-packets crossed the taps, the longest of {} bytes",
            self.super_packets, self.longest
        )?;
        let (meters, differences) = (self.meters(), self.differences());
        if differences == 0 {
            writeln!(f, "the totals add up: {meters} meters, 0 differences")
        } else {
            writeln!(f, "the totals do not add up: {meters} meters, {differences} differences")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use lab::{count::Count, load::Load, require};

    use super::{Audit, Exposition, Moment, Topology, traffic_of};

    const STILL: Duration = Duration::from_millis(700);
    const WITHIN: Duration = Duration::from_secs(20);

    fn moment(topology: &Topology) -> Moment {
        let nothing = || Exposition::parse("").unwrap();
        let witness = topology.wait_until_quiet(STILL, WITHIN).unwrap();
        Moment { agents: vec![nothing(), nothing()], witness }
    }

    #[test]
    fn each_frame_enters_one_port_and_leaves_one() {
        if !require::root() {
            return;
        }
        let topology = Topology::new().unwrap();
        let before = moment(&topology);
        let loads = topology.start_traffic(1).unwrap();
        thread::sleep(Duration::from_secs(1));
        Load::stop_all(loads).unwrap();
        let after = moment(&topology);
        let witness = after.witness.since(&before.witness);
        let (mut entered, mut left) = (Count::default(), Count::default());
        for (index, host) in topology.hosts.iter().enumerate() {
            for port in &host.ports {
                let (rx, tx) = traffic_of(&topology, index, port, &witness);
                assert!(rx.frames > 0 && tx.frames > 0, "{}", port.netdev);
                entered += rx;
                left += tx;
            }
        }
        assert_eq!(entered, left);
        assert_eq!(topology.drops().unwrap(), []);
        let audit = Audit::new(&topology, &before, &after);
        assert_eq!(audit.idle(), None);
        // Agents that counted nothing are right only about what is in no tunnel, where nothing was.
        assert_eq!(audit.differences(), audit.meters() - 4);
        assert!(audit.super_packets > 0 && audit.longest > 1514, "{audit}");
    }
}

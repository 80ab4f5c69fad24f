//! A reading as a table of named numbers, so that a test can say what moved and that nothing else did.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use meter_agent::{datapath::Reading, meter::PortId};
use meter_ebpf::abi::{Bucket, Counter, Direction, Encap, Fault};

/// Rows that are not zero, each with up to three numbers.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Table(BTreeMap<String, [u64; 3]>);

/// A tunnel as it is written in a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tunnel {
    pub(crate) encap: Encap,
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) vni: u32,
}

impl Table {
    /// Returns every counter of a reading.
    pub(crate) fn of(reading: &Reading) -> Self {
        let mut table = Self::default();
        let faults = reading.faults.reasons;
        for port in &reading.ports {
            let number = number(port.port);
            for direction in Direction::ALL {
                let hook = port.totals.hook(direction);
                table = table.hook(number, direction, hook.wire(), hook.skb());
            }
        }
        for (device, stats) in &reading.devices {
            table = table.row(&format!("device {}", device.0.as_u128()), [stats.packets, stats.bytes, 0]);
        }
        for tunnel in &reading.tunnels {
            let key = Tunnel { encap: tunnel.encap, src: tunnel.src, dst: tunnel.dst, vni: tunnel.vni };
            let numbers = [tunnel.packets, tunnel.inner_bytes, tunnel.outer_bytes];
            table = table.tunnel(number(tunnel.uplink), tunnel.direction, key, numbers);
        }
        for buckets in &reading.buckets {
            for (reason, counter) in Bucket::ALL.iter().zip(buckets.buckets.reasons) {
                table = table.bucket(number(buckets.uplink), buckets.direction, *reason, counter);
            }
        }
        for (reason, counter) in Fault::ALL.iter().zip(faults) {
            table = table.fault(*reason, counter);
        }
        for direction in Direction::ALL {
            let hook = reading.unbound.hook(direction);
            table = table.hook(0, direction, hook.wire(), hook.skb());
        }
        table
    }

    /// Adds numbers to a row.
    pub(crate) fn row(mut self, name: &str, numbers: [u64; 3]) -> Self {
        if numbers != [0; 3] {
            let row = self.0.entry(name.to_owned()).or_default();
            row.iter_mut().zip(numbers).for_each(|(sum, number)| *sum += number);
        }
        self
    }

    /// Adds to a hook in wire units and in skbs; port 0 is what nobody claimed.
    pub(crate) fn hook(self, port: u128, direction: Direction, wire: Counter, skb: Counter) -> Self {
        self.wire(port, direction, wire)
            .row(&format!("port {port} {direction:?} skb"), [skb.packets, skb.bytes, 0])
    }

    /// Adds to a hook in wire units.
    pub(crate) fn wire(self, port: u128, direction: Direction, wire: Counter) -> Self {
        self.row(&format!("port {port} {direction:?}"), [wire.packets, wire.bytes, 0])
    }

    /// Adds frames that are on the wire as they are in the skb.
    pub(crate) fn frames(self, port: u128, direction: Direction, packets: u64, bytes: u64) -> Self {
        let counter = Counter { packets, bytes };
        self.hook(port, direction, counter, counter)
    }

    /// Adds frames, inner and outer bytes to a tunnel.
    pub(crate) fn tunnel(
        self,
        uplink: u128,
        direction: Direction,
        tunnel: Tunnel,
        numbers: [u64; 3],
    ) -> Self {
        let Tunnel { encap, src, dst, vni } = tunnel;
        self.row(&format!("port {uplink} {direction:?} {} {src} > {dst} id {vni}", encap.name()), numbers)
    }

    /// Adds to a bucket of an uplink.
    pub(crate) fn bucket(self, uplink: u128, direction: Direction, reason: Bucket, counter: Counter) -> Self {
        let name = format!("port {uplink} {direction:?} bucket {}", reason.label());
        self.row(&name, [counter.packets, counter.bytes, 0])
    }

    /// Adds to a fault.
    pub(crate) fn fault(self, reason: Fault, counter: Counter) -> Self {
        self.row(&format!("fault {}", reason.label()), [counter.packets, counter.bytes, 0])
    }

    /// Returns a row by its name.
    pub(crate) fn get(&self, name: &str) -> [u64; 3] {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// Leaves out what is in skbs, where nobody but the meter knows their number.
    pub(crate) fn on_the_wire(mut self) -> Self {
        self.0.retain(|name, _| !name.ends_with(" skb"));
        self
    }

    /// Returns what came after `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let mut table = Self::default();
        for (name, numbers) in &self.0 {
            let before = earlier.0.get(name).copied().unwrap_or_default();
            let mut moved = *numbers;
            for (number, before) in moved.iter_mut().zip(before) {
                *number = number.checked_sub(before).unwrap_or_else(|| panic!("{name} went back"));
            }
            table = table.row(name, moved);
        }
        assert!(earlier.0.keys().all(|name| self.0.contains_key(name)), "a row has gone");
        table
    }

    /// Asserts that what an uplink's tunnels and buckets count is what its hook saw, in packets and in bytes.
    pub(crate) fn assert_closed(&self, uplink: u128, direction: Direction) {
        let hook = format!("port {uplink} {direction:?}");
        let mut sum = [0; 2];
        for (name, [packets, bytes, outer_bytes]) in &self.0 {
            match name.strip_prefix(&hook) {
                None | Some("" | " skb") => {}
                Some(bucket) if bucket.starts_with(" bucket") => sum = [sum[0] + packets, sum[1] + bytes],
                Some(_) => sum = [sum[0] + packets, sum[1] + outer_bytes],
            }
        }
        let seen = self.get(&hook);
        assert_eq!(sum, seen[..2], "{hook}: {self:?}");
    }

    /// Adds every row of another table.
    pub(crate) fn plus(self, other: &Self) -> Self {
        other.0.iter().fold(self, |sum, (name, numbers)| sum.row(name, *numbers))
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, [a, b, c]) in &self.0 {
            write!(f, "\n    {name:<60} {a:>10} {b:>12} {c:>12}")?;
        }
        writeln!(f)
    }
}

/// Returns the number whose UUID the port has.
fn number(port: PortId) -> u128 {
    port.0.as_u128()
}

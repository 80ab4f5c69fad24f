//! Base lines: what the difference of two counters was when nothing was lost.

use meter_ebpf::abi::{Counter, Direction, HookCounter};

use super::{Drift, judge::Bracket};
use crate::netdev::NetdevSample;

/// Bytes by which a driver may count less of each packet than we do: none, the Ethernet header, or the other way round
/// the FCS.
pub(super) const HEADERS: [i64; 3] = [0, 14, -4];
/// Places in [`HEADERS`].
pub(super) const WHOLE: usize = 0;
pub(super) const NO_ETHERNET: usize = 1;
pub(super) const FCS: usize = 2;

/// Units of packets: places in [`Relations::packets`].
pub(super) const SKB: usize = 0;
pub(super) const WIRE: usize = 1;

/// Where a number was, both ends included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) low: i64,
    pub(super) high: i64,
}

impl Range {
    /// Returns where `kernel - ours` was while the four were read; see the law.
    pub(super) const fn difference(kernel: [u64; 2], ours: [u64; 2]) -> Self {
        Self {
            low: kernel[0].wrapping_sub(ours[1]).cast_signed(),
            high: kernel[1].wrapping_sub(ours[0]).cast_signed(),
        }
    }

    /// Returns by how much this has moved away from a base line.
    pub(super) const fn since(self, base: Self) -> Self {
        Self { low: self.low.wrapping_sub(base.high), high: self.high.wrapping_sub(base.low) }
    }

    /// Returns the number in it that is the nearest to zero.
    pub(super) const fn nearest(self) -> i64 {
        if self.low > 0 {
            self.low
        } else if self.high < 0 {
            self.high
        } else {
            0
        }
    }

    pub(super) const fn is_zero(self) -> bool {
        self.nearest() == 0
    }

    /// Makes a base line narrower by an interval that agrees with it.
    fn narrow(&mut self, seen: Self) {
        if seen.since(*self).is_zero() {
            self.low = self.low.max(seen.low);
            self.high = self.high.min(seen.high);
        }
    }
}

/// What the kernel's counters and ours can have to do with one another, in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Relations {
    /// Packets, against ours in skb units and in wire units.
    pub(super) packets: [Range; 2],
    /// Bytes, against ours in both units, for each of [`HEADERS`].
    pub(super) bytes: [[Range; 3]; 2],
}

impl Relations {
    pub(super) fn of(bracket: &Bracket<'_>, direction: Direction) -> Self {
        let kernel = bracket.kernel.map(|sample| received_or_sent(sample, direction));
        let hooks = [bracket.first, bracket.second].map(|metered| &metered.hooks[direction as usize]);
        let units: [fn(&HookCounter) -> Counter; 2] = [HookCounter::skb, HookCounter::wire];
        let packets = units.map(|unit| {
            Range::difference(kernel.map(|(packets, _)| packets), hooks.map(|hook| unit(hook).packets))
        });
        let bytes = units.map(|unit| {
            HEADERS.map(|header| {
                let with_header = |(packets, bytes): (u64, u64)| {
                    bytes.wrapping_add(packets.wrapping_mul(header.cast_unsigned()))
                };
                Range::difference(kernel.map(with_header), hooks.map(|hook| unit(hook).bytes))
            })
        });
        Self { packets, bytes }
    }

    /// Returns how all have moved away from a base line.
    pub(super) fn since(&self, base: &Self) -> Self {
        Self {
            packets: std::array::from_fn(|unit| self.packets[unit].since(base.packets[unit])),
            bytes: std::array::from_fn(|unit| {
                std::array::from_fn(|header| self.bytes[unit][header].since(base.bytes[unit][header]))
            }),
        }
    }

    fn narrow(&mut self, seen: &Self) {
        for unit in [SKB, WIRE] {
            self.packets[unit].narrow(seen.packets[unit]);
            for (base, seen) in self.bytes[unit].iter_mut().zip(seen.bytes[unit]) {
                base.narrow(seen);
            }
        }
    }
}

pub(super) const fn received_or_sent(sample: &NetdevSample, direction: Direction) -> (u64, u64) {
    match direction {
        Direction::Ingress => (sample.stats.rx_packets, sample.stats.rx_bytes),
        Direction::Egress => (sample.stats.tx_packets, sample.stats.tx_bytes),
    }
}

/// The base line of one netdev, from one attach on.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) relations: [Relations; 2],
    /// What the other end of a veth received beyond what this end sent: packets and bytes.
    pub(super) beyond: Option<[Range; 2]>,
    /// What an uplink's hook saw beyond its tunnels and buckets: packets and bytes, by direction.
    pub(super) open: Option<[[Range; 2]; 2]>,
    /// The kernel's statistics.
    pub(super) kernel: NetdevSample,
    /// What the kernel had counted before the hooks: packets and bytes, by direction. `None` where nobody knows.
    pub(super) before: Option<[(i64, i64); 2]>,
    /// The kernel's `tx_dropped` when it was looked at last.
    pub(super) dropped: u64,
    /// Times that a hook had been missing when it was looked at last.
    pub(super) gaps: u64,
    /// Who was blamed while they were there, by direction: a program that has gone took what it took.
    pub(super) blamed: [Vec<Drift>; 2],
}

impl Base {
    /// Begins one. Where the netdev was not metered before, `totals` is what the port had when it was on no netdev, or on
    /// another.
    pub(super) fn new(bracket: &Bracket<'_>, totals: Option<&[HookCounter; 2]>) -> Self {
        let kernel = *bracket.kernel[0];
        let before = |totals: &[HookCounter; 2]| {
            Direction::ALL.map(|direction| {
                let (packets, bytes) = received_or_sent(&kernel, direction);
                let mut since = bracket.second.hooks[direction as usize];
                since.sub(&totals[direction as usize]);
                // At least that much: what came meanwhile is left out, and what the kernel counts otherwise.
                let beyond = |kernel: u64, ours: u64| kernel.wrapping_sub(ours).cast_signed().max(0);
                (beyond(packets, since.wire().packets), beyond(bytes, since.wire().bytes))
            })
        };
        Self {
            relations: Direction::ALL.map(|direction| Relations::of(bracket, direction)),
            beyond: bracket.beyond(),
            open: bracket.open(),
            kernel,
            before: totals.map(before),
            gaps: bracket.first.gaps,
            dropped: kernel.stats.tx_dropped,
            blamed: [Vec::new(), Vec::new()],
        }
    }

    /// Makes every base line narrower that a sample agrees with.
    pub(super) fn narrow(&mut self, bracket: &Bracket<'_>) {
        for direction in Direction::ALL {
            self.relations[direction as usize].narrow(&Relations::of(bracket, direction));
        }
        if let (Some(base), Some(seen)) = (&mut self.beyond, bracket.beyond()) {
            base.iter_mut().zip(seen).for_each(|(base, seen)| base.narrow(seen));
        } else if self.beyond.is_none() {
            self.beyond = bracket.beyond();
        }
        if let (Some(base), Some(seen)) = (&mut self.open, bracket.open()) {
            base.iter_mut()
                .flatten()
                .zip(seen.into_iter().flatten())
                .for_each(|(base, seen)| base.narrow(seen));
        } else {
            // It became an uplink, or is none any more.
            self.open = bracket.open();
        }
    }
}

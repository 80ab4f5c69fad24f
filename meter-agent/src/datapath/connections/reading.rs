//! The table of connections, read.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use meter_ebpf::abi::{
    Counter,
    connection::{CONNECTION_LABELS, ConnectionKey, End},
};

use super::{Connections, HANDSHAKE, TIMES, halves, index, load, lower};
use crate::datapath::{ConnectionReading, captures::Captures};

impl Connections {
    /// Reads every connection of ports whose connections are counted; `now` is the time.
    pub(in crate::datapath) fn read(&self, captures: &Captures, now: u32) -> Vec<ConnectionReading> {
        if captures.len() == 0 {
            return Vec::new();
        }
        let since = self.since.unwrap_or(now);
        let occupied = (1..=self.last()).filter(|place| self.word(*place, CONNECTION_LABELS) != 0);
        let readings = occupied.filter_map(|place| {
            let port = captures.owner(self.slot(place)).filter(|_| self.has_counted(place))?;
            let key = self.key(place);
            let course = self.course(place);
            let (first_seen, last_seen) = halves(self.word(place, TIMES));
            let from_high = course.initiator == End::High as u8;
            let (mut ends, mut counts) = (ends(&key), self.counts(place));
            if from_high {
                ends.reverse();
                counts.reverse();
            }
            let [initiator, target] = ends;
            let idle_s = now.saturating_sub(last_seen.max(since));
            Some(ConnectionReading {
                port,
                protocol: protocol(&key),
                overlay: key.overlay(),
                initiator,
                target,
                counts,
                rtt_ns: self.handshakes.words().get(index(place) * HANDSHAKE + 1).map_or(0, load),
                began_s: first_seen,
                idle_s,
                left: first_seen < self.opened_s,
                timed_out: idle_s >= captures.wanted().idle_limit(course),
                answered: course.answered != 0,
                ended: course.has_ended(),
            })
        });
        readings.collect()
    }

    /// Returns what the connections have that are being taken out, by slot and direction.
    pub(in crate::datapath) fn leaving(&self) -> BTreeMap<u32, [Counter; 2]> {
        let mut leaving: BTreeMap<u32, [Counter; 2]> = BTreeMap::new();
        for place in &self.leaving {
            let sums = leaving.entry(self.slot(*place)).or_default();
            sums.iter_mut().zip(self.by_direction(*place)).for_each(|(sum, count)| sum.add(&count));
        }
        leaving
    }
}

/// Returns both ends, the lesser one first.
fn ends(key: &ConnectionKey) -> [SocketAddr; 2] {
    let [low_high, low_low, high_high, high_low, ports, labels] = key.words;
    let address = |high: u64, low: u64| -> IpAddr {
        if labels & 0xff == 0 {
            return Ipv4Addr::from_bits(lower(high >> 32)).into();
        }
        Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low)).into()
    };
    let [_, _, _, _, a, b, c, d] = ports.to_le_bytes();
    let [high_port, low_port] = [u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])];
    [(address(low_high, low_low), low_port).into(), (address(high_high, high_low), high_port).into()]
}

const fn protocol(key: &ConnectionKey) -> u8 {
    let [_, protocol, ..] = key.words[CONNECTION_LABELS].to_le_bytes();
    protocol
}

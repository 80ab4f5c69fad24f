//! Which connections have a name of their own: a bound on how many, and sums that stay exact.
//!
//! Named are those that moved most bytes; what has no name is in its port's `other`. The law of it:
//!
//! 1. For each port and direction of its netdev: what the named ones show and `other` add up to all that was counted, always.
//! 2. What is named shows what was counted of it since it is: nothing that `other` has shown before. So `other` goes back only
//!    by what comes with a port's beginning anew, which is never. What a connection had
//!    moved that an earlier agent left is `other`'s, and so is what one had whose ends change places.
//! 3. What is named keeps its name while one of its connections is in the table, unless another without a name has moved half as
//!    much again as the least of them. What it has shown is `other`'s from then on.
//! 4. A group is one series, in which a connection that ended stays for as long as another of the group lives.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
};

use meter_ebpf::abi::{Counter, Encap};

use super::{Series, View};
use crate::{
    datapath::{CaptureReading, ConnectionReading},
    meter::PortId,
};

/// What both ends sent, the initiator first, by the direction of the hook.
type Counts = [[Counter; 2]; 2];

/// Which connection, also where the same ends have another one later: by the lesser end and the other, whoever began it.
type Id = (PortId, u8, Option<(Encap, u32)>, SocketAddr, SocketAddr, u32);

/// One that has a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What it is called.
    pub series: Series,
    /// What it shows.
    pub counts: Counts,
    /// All that its connections in the table have, from their beginning.
    pub live: Counts,
    /// The round trip of its latest handshake that was seen, in nanoseconds; 0 for none.
    pub rtt_ns: u64,
}

/// What there is to show.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shown {
    /// In the order of what they are called.
    pub rows: Vec<Row>,
    /// What of each port no row shows, by the direction of its netdev's hook.
    pub others: Vec<(PortId, [Counter; 2])>,
    /// How many are not named because all names are taken.
    pub over: usize,
}

/// What has been shown.
#[derive(Debug, Default)]
pub struct Board {
    named: BTreeMap<Series, Counts>,
    /// What each connection had, the lesser end first.
    seen: HashMap<Id, Counts>,
    generation: u64,
    shown: Shown,
}

/// The connections that are called the same.
#[derive(Debug, Default)]
struct Group {
    new: Counts,
    live: Counts,
    bytes: u64,
    rtt_ns: u64,
    latest_s: u32,
}

impl Board {
    /// Takes up what there is; an older picture than the last changes nothing.
    pub fn update(
        &mut self,
        view: &View,
        generation: u64,
        connections: &[ConnectionReading],
        captures: &[CaptureReading],
    ) -> Shown {
        if generation > self.generation {
            if self.generation == 0 {
                self.seen = connections.iter().filter(|connection| connection.left).map(canonical).collect();
            }
            self.generation = generation;
            self.shown = self.next(view, connections, captures);
        }
        self.shown.clone()
    }

    fn next(&mut self, view: &View, connections: &[ConnectionReading], captures: &[CaptureReading]) -> Shown {
        let mut totals: BTreeMap<PortId, [Counter; 2]> = BTreeMap::new();
        for CaptureReading { port, other, ended } in captures {
            let total = totals.entry(*port).or_default();
            for counts in [other, ended] {
                total.iter_mut().zip(counts).for_each(|(sum, count)| sum.add(count));
            }
        }
        let mut groups: BTreeMap<Series, Group> = BTreeMap::new();
        let before = std::mem::take(&mut self.seen);
        for connection in connections {
            let total = totals.entry(connection.port).or_default();
            for counts in &connection.counts {
                total.iter_mut().zip(counts).for_each(|(sum, count)| sum.add(count));
            }
            let (id, counts) = canonical(connection);
            let mut new = counts;
            if let Some(seen) = before.get(&id) {
                each(&mut new, seen, Counter::sub);
            }
            self.seen.insert(id, counts);
            turn(&mut new, connection);
            let Some(series) = view.series(connection) else { continue };
            let group = groups.entry(series).or_default();
            each(&mut group.new, &new, Counter::add);
            each(&mut group.live, &connection.counts, Counter::add);
            group.bytes = bytes(&group.live);
            if connection.rtt_ns != 0 && connection.began_s >= group.latest_s {
                (group.rtt_ns, group.latest_s) = (connection.rtt_ns, connection.began_s);
            }
        }
        self.named.retain(|series, _| groups.contains_key(series));
        self.name(view.most, &groups);
        let mut shown = Shown { over: groups.len() - self.named.len(), ..Shown::default() };
        for (series, counts) in &mut self.named {
            let Some(group) = groups.get(series) else { continue };
            each(counts, &group.new, Counter::add);
            if let Some(rest) = totals.get_mut(&series.port) {
                for counts in &*counts {
                    rest.iter_mut().zip(counts).for_each(|(rest, count)| rest.sub(count));
                }
            }
            shown.rows.push(Row {
                series: series.clone(),
                counts: *counts,
                live: group.live,
                rtt_ns: group.rtt_ns,
            });
        }
        shown.others = totals.into_iter().collect();
        shown
    }

    /// Gives names to those that have moved most.
    fn name(&mut self, most: usize, groups: &BTreeMap<Series, Group>) {
        let mut unnamed: Vec<(&Series, u64)> = groups
            .iter()
            .filter(|(series, _)| !self.named.contains_key(*series))
            .map(|(series, group)| (series, group.bytes))
            .collect();
        unnamed.sort_by(|one, other| (other.1, one.0).cmp(&(one.1, other.0)));
        let mut unnamed = unnamed.into_iter();
        for (series, _) in unnamed.by_ref().take(most.saturating_sub(self.named.len())) {
            self.named.insert(series.clone(), Counts::default());
        }
        let mut named: Vec<(u64, Series)> = self
            .named
            .iter()
            .filter_map(|(series, shown)| {
                // What a group shows does not fall when one of it leaves.
                Some((groups.get(series)?.bytes.max(bytes(shown)), series.clone()))
            })
            .collect();
        named.sort();
        for ((series, moved), (least, leaves)) in unnamed.zip(named) {
            if moved <= least.saturating_add(least / 2) {
                break;
            }
            self.named.remove(&leaves);
            self.named.insert(series.clone(), Counts::default());
        }
    }
}

/// Returns which connection it is, and what it has, the lesser end first.
fn canonical(connection: &ConnectionReading) -> (Id, Counts) {
    let ConnectionReading { port, protocol, overlay, initiator, target, began_s, mut counts, .. } =
        *connection;
    turn(&mut counts, connection);
    ((port, protocol, overlay, initiator.min(target), initiator.max(target), began_s), counts)
}

/// Changes between counts of the initiator first and of the lesser end first.
fn turn(counts: &mut Counts, connection: &ConnectionReading) {
    if connection.initiator > connection.target {
        counts.reverse();
    }
}

fn each(to: &mut Counts, from: &Counts, change: impl Fn(&mut Counter, &Counter)) {
    to.as_flattened_mut().iter_mut().zip(from.as_flattened()).for_each(|(to, from)| change(to, from));
}

fn bytes(counts: &Counts) -> u64 {
    counts.as_flattened().iter().fold(0, |sum, count| sum.wrapping_add(count.bytes))
}

//! What was counted before the maps were made: totals of an earlier boot, or of an earlier version of the layout.
//!
//! Counters that programs write can't be written beside them, so what tunnels, buckets and faults had is in maps of its
//! own and added when they are read. What ports and meters had is in their records.

use std::collections::BTreeMap;

use aya::maps::{HashMap, MapData};
use meter_ebpf::abi::{
    Address, Buckets, Counter, HookCounter, MAX_REASONS, Member, MemberKey, PortRecord, PortUuid,
    SlotCounters, TunnelCounter, TunnelKey, UNBOUND_SLOT, map, saved,
};
use uuid::Uuid;

use super::{
    ReadError,
    ledger::Write,
    maps::{Maps, unreadable},
    meters::Meters,
};
use crate::totals::{SavedPort, Totals};

/// What is in `TUNNEL_SAVED` and `SAVED`.
#[derive(Debug, Default)]
pub(super) struct Carried {
    /// By the words of their keys.
    tunnels: BTreeMap<[u64; 5], TunnelCounter>,
    others: BTreeMap<u32, Buckets>,
}

impl Carried {
    pub(super) fn read(
        tunnels: &HashMap<MapData, TunnelKey, TunnelCounter>,
        others: &HashMap<MapData, u32, Buckets>,
    ) -> Result<Self, ReadError> {
        let tunnels = tunnels.iter().map(|entry| entry.map(|(key, counter)| (key.words(), counter)));
        Ok(Self {
            tunnels: tunnels.collect::<Result<_, _>>().map_err(unreadable(map::TUNNEL_SAVED))?,
            others: others.iter().collect::<Result<_, _>>().map_err(unreadable(map::SAVED))?,
        })
    }

    /// Returns what tunnels had counted.
    pub(super) fn tunnels(&self) -> impl Iterator<Item = (TunnelKey, &TunnelCounter)> {
        self.tunnels.iter().map(|(words, counter)| (tunnel_key(*words), counter))
    }

    /// Returns what a tunnel had counted.
    pub(super) fn tunnel(&self, key: &TunnelKey) -> TunnelCounter {
        self.tunnels.get(&key.words()).copied().unwrap_or_default()
    }

    /// Returns how many entries are in use: of tunnels, and of everything else.
    pub(super) fn len(&self) -> [usize; 2] {
        [self.tunnels.len(), self.others.len()]
    }

    /// Returns what was counted by reason under this key.
    pub(super) fn reasons(&self, key: u32) -> &[Counter] {
        self.others.get(&key).map_or(&[], |buckets| &buckets.reasons)
    }

    /// Returns what came where nobody claimed it.
    pub(super) fn unbound(&self) -> SlotCounters {
        let mut reasons = self.reasons(saved::UNBOUND).iter().copied();
        let mut pair = || reasons.next().map_or([0, 0], |counter| [counter.packets, counter.bytes]);
        let hooks = [[pair(), pair()], [pair(), pair()]];
        SlotCounters { hooks: hooks.map(|[skb, extra]| hook([skb[0], skb[1], extra[0], extra[1]])) }
    }
}

/// Puts totals into maps that count from zero, which records of ports may say of their slots; returns how many there was
/// no room for. Whoever was killed here does the same again: nothing is added, everything is set.
pub(super) fn carry(maps: &mut Maps, meters: &mut Meters, state: &Totals) -> Result<usize, ReadError> {
    let mut refused = 0;
    let mut count = |done: bool| {
        refused += usize::from(!done);
        done
    };
    let mut devices: BTreeMap<Uuid, Vec<Uuid>> = BTreeMap::new();
    for member in &state.members {
        let key = MemberKey { port: uuid(member.port), device: uuid(member.device) };
        let record = Member { accrued: counter(member.accrued), base: counter(member.base) };
        if count(maps.write(&Write::Member(key, record)).is_ok()) {
            devices.entry(member.port).or_default().push(member.device);
        }
    }
    let known = maps.port_records()?;
    for port in &state.ports {
        let none = PortRecord { slot: UNBOUND_SLOT, uplink: port.uplink, ..PortRecord::default() };
        let before = known.get(&uuid(port.port)).copied().unwrap_or(none);
        // What comes into a device that has no record of the port would be in none.
        let has_member = devices.get(&port.port).is_some_and(|devices| devices.contains(&port.device));
        let device = if has_member { uuid(port.device) } else { PortUuid::default() };
        let record = carried_record(port, device, before);
        count(maps.write(&Write::Port(uuid(port.port), record)).is_ok());
    }
    for tunnel in &state.tunnels {
        let [packets, inner_bytes, outer_bytes] = tunnel.counts;
        let counter = TunnelCounter { packets, inner_bytes, outer_bytes };
        count(maps.tunnel_saved.insert(tunnel_key(tunnel.key), counter, 0).is_ok());
    }
    for (hook, reasons) in &state.buckets {
        count(maps.saved.insert(hook, filled(reasons), 0).is_ok());
    }
    count(maps.saved.insert(saved::FAULTS, filled(&state.faults), 0).is_ok());
    let unbound = state.unbound.as_flattened().as_chunks().0;
    count(maps.saved.insert(saved::UNBOUND, filled(unbound), 0).is_ok());
    maps.read_carried()?;
    Ok(refused + meters.carry(&state.meters))
}

fn carried_record(port: &SavedPort, device: PortUuid, before: PortRecord) -> PortRecord {
    let saved = SlotCounters { hooks: port.hooks.map(hook) };
    PortRecord { class: port.class, created_ns: port.created_ns, saved, device, ..before }
}

const fn hook([skb_packets, skb_bytes, extra_packets, extra_bytes]: [u64; 4]) -> HookCounter {
    HookCounter { skb_packets, skb_bytes, extra_packets, extra_bytes }
}

fn filled(saved: &[[u64; 2]]) -> Buckets {
    let mut buckets = Buckets { reasons: [Counter::default(); MAX_REASONS] };
    buckets.reasons.iter_mut().zip(saved).for_each(|(reason, saved)| *reason = counter(*saved));
    buckets
}

const fn tunnel_key([a, b, c, d, labels]: [u64; 5]) -> TunnelKey {
    TunnelKey { src: Address { words: [a, b] }, dst: Address { words: [c, d] }, labels }
}

const fn uuid(id: Uuid) -> PortUuid {
    PortUuid { uuid: *id.as_bytes() }
}

const fn counter([packets, bytes]: [u64; 2]) -> Counter {
    Counter { packets, bytes }
}

//! Totals that outlive a reboot: read out of the maps, and put into new ones.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues},
};
use meter_ebpf::abi::{
    Address, Buckets, Counter, Direction, Faults, HookCounter, Member, MemberKey, PortRecord, PortUuid,
    SlotCounters, TUNNELS_PER_BLOCK, TunnelBlock, TunnelCounter, TunnelKey, UNBOUND_SLOT, map,
};
use uuid::Uuid;

use super::{
    ReadError,
    kernel::KernelDatapath,
    ledger::{Write, total},
    maps::{self, Maps},
    open::OpenError,
};
use crate::totals::{SavedMember, SavedPort, SavedTunnel, Totals};

impl KernelDatapath {
    /// Returns every total. The boot is left for the caller to name.
    pub(super) fn saved(&self) -> Result<Totals, ReadError> {
        let slots = self.maps.slot_counters(self.ledger.last_slot())?;
        let id = |uuid: PortUuid| Uuid::from_bytes(uuid.uuid);
        let ports = self.ledger.records().iter().map(|(port, record)| SavedPort {
            port: id(*port),
            class: record.class,
            uplink: record.uplink,
            created_ns: record.created_ns,
            device: id(record.device),
            hooks: total(record, &slots)
                .hooks
                .map(|hook| [hook.skb_packets, hook.skb_bytes, hook.extra_packets, hook.extra_bytes]),
        });
        let members = self.ledger.member_records().iter().map(|(key, member)| SavedMember {
            port: id(key.port),
            device: id(key.device),
            accrued: pair(&member.accrued),
            base: pair(&member.base),
        });
        let uplinks =
            self.ledger.records().values().map(|record| record.uplink).filter(|uplink| *uplink != 0);
        let hooks = uplinks.flat_map(|uplink| Direction::ALL.map(|direction| uplink * 2 + direction as u32));
        let buckets =
            hooks.map(|hook| Ok((hook, self.maps.buckets(hook)?.reasons.iter().map(pair).collect())));
        Ok(Totals {
            boot_id: String::new(),
            ports: ports.collect(),
            members: members.collect(),
            tunnel_places: self.tunnel_places,
            tunnels: self.saved_tunnels()?,
            buckets: buckets.collect::<Result<_, ReadError>>()?,
            faults: self.maps.faults()?.reasons.iter().map(pair).collect(),
        })
    }

    fn saved_tunnels(&self) -> Result<Vec<SavedTunnel>, ReadError> {
        let mut tunnels = self.maps.tunnel_entries()?;
        tunnels.sort_unstable_by_key(|(_, place)| *place);
        let block = |place: u32| place / TUNNELS_PER_BLOCK;
        let mut saved = Vec::with_capacity(tunnels.len());
        for tunnels in tunnels.chunk_by(|(_, one), (_, next)| block(*one) == block(*next)) {
            let counters = self.maps.tunnel_block(block(tunnels[0].1))?;
            saved.extend(tunnels.iter().filter_map(|(key, place)| {
                let counter = counters.get(usize::try_from(place % TUNNELS_PER_BLOCK).ok()?)?;
                let counts = [counter.packets, counter.inner_bytes, counter.outer_bytes];
                Some(SavedTunnel { key: key.words(), place: *place, counts })
            }));
        }
        Ok(saved)
    }
}

/// Puts totals into maps that no agent has used yet, as many as there is room for. One that was killed here leaves them so, and the next does the same
/// again. `places` are all places of tunnels, of which hashes lead to the first `hashed`.
pub(super) fn restore(
    maps: &mut Maps,
    state: &Totals,
    pins: &Path,
    (hashed, places): (u32, u32),
) -> Result<(), OpenError> {
    let mut refused = 0;
    let uuid = |id: Uuid| PortUuid { uuid: *id.as_bytes() };
    let failed = |map: &'static str| move |source: MapError| OpenError::Write { map, source };
    for port in &state.ports {
        let hooks = port.hooks.map(|[skb_packets, skb_bytes, extra_packets, extra_bytes]| HookCounter {
            skb_packets,
            skb_bytes,
            extra_packets,
            extra_bytes,
        });
        let record = PortRecord {
            slot: UNBOUND_SLOT,
            uplink: port.uplink,
            class: port.class,
            created_ns: port.created_ns,
            saved: SlotCounters { hooks },
            device: uuid(port.device),
            ..PortRecord::default()
        };
        refused += usize::from(maps.write(&Write::Port(uuid(port.port), record)).is_err());
    }
    for member in &state.members {
        let key = MemberKey { port: uuid(member.port), device: uuid(member.device) };
        let member = Member { accrued: counter(member.accrued), base: counter(member.base) };
        refused += usize::from(maps.write(&Write::Member(key, member)).is_err());
    }
    refused += restore_tunnels(state, pins, (hashed, places))?;
    if refused > 0 {
        tracing::error!(
            refused,
            "some totals from before the reboot have no room; raise max_ports or max_tunnels"
        );
    }
    let mut buckets: PerCpuArray<MapData, Buckets> = pinned(pins, map::BUCKETS)?;
    for (hook, reasons) in &state.buckets {
        put(&mut buckets, *hook, |value| fill(&mut value.reasons, reasons)).map_err(failed(map::BUCKETS))?;
    }
    let mut faults: PerCpuArray<MapData, Faults> = pinned(pins, map::FAULTS)?;
    put(&mut faults, 0, |value| fill(&mut value.reasons, &state.faults)).map_err(failed(map::FAULTS))
}

fn restore_tunnels(state: &Totals, pins: &Path, (hashed, places): (u32, u32)) -> Result<usize, OpenError> {
    let failed = |map: &'static str| move |source: MapError| OpenError::Write { map, source };
    let mut refused = 0;
    let mut tunnels: HashMap<MapData, TunnelKey, u32> = pinned(pins, map::TUNNELS)?;
    let mut taken: HashMap<MapData, u32, u32> = pinned(pins, map::TUNNEL_TAKEN)?;
    let mut counters: PerCpuArray<MapData, TunnelBlock> = pinned(pins, map::TUNNEL_COUNTERS)?;
    // Where hashes lead elsewhere than they did, any place will do: a tunnel is found by its entry then.
    let keeps = state.tunnel_places == hashed;
    let mut free: BTreeSet<u32> = (0..places).collect();
    for tunnel in &state.tunnels {
        let place = if keeps { free.take(&tunnel.place) } else { None };
        let Some(place) = place.or_else(|| free.pop_last()) else {
            refused += 1;
            continue;
        };
        let [a, b, c, d, labels] = tunnel.key;
        let key = TunnelKey { src: Address { words: [a, b] }, dst: Address { words: [c, d] }, labels };
        if tunnels.insert(key, place, 0).is_err() {
            free.insert(place);
            refused += 1;
            continue;
        }
        let [packets, inner_bytes, outer_bytes] = tunnel.counts;
        put(&mut counters, place / TUNNELS_PER_BLOCK, |block| {
            let place = usize::try_from(place % TUNNELS_PER_BLOCK).unwrap_or_default();
            block.places[place].counter = TunnelCounter { packets, inner_bytes, outer_bytes };
        })
        .map_err(failed(map::TUNNEL_COUNTERS))?;
        if place < hashed {
            taken.insert(place, 1, 0).map_err(failed(map::TUNNEL_TAKEN))?;
        }
    }
    Ok(refused)
}

/// Returns whether these maps may get totals from before: no port of this boot is in them.
pub(super) fn is_untouched(records: &BTreeMap<PortUuid, PortRecord>) -> bool {
    records.values().all(|record| record.slot == UNBOUND_SLOT && record.ifindex == 0)
}

/// Changes the value of the first CPU; the others stay.
fn put<T: Pod>(
    array: &mut PerCpuArray<MapData, T>,
    index: u32,
    change: impl FnOnce(&mut T),
) -> Result<(), MapError> {
    let mut values = array.get(&index, 0)?.to_vec();
    if let Some(first) = values.first_mut() {
        change(first);
    }
    array.set(index, PerCpuValues::try_from(values)?, 0)
}

fn fill(reasons: &mut [Counter], saved: &[[u64; 2]]) {
    reasons.iter_mut().zip(saved).for_each(|(reason, saved)| *reason = counter(*saved));
}

const fn pair(counter: &Counter) -> [u64; 2] {
    [counter.packets, counter.bytes]
}

const fn counter([packets, bytes]: [u64; 2]) -> Counter {
    Counter { packets, bytes }
}

fn pinned<T>(pins: &Path, name: &'static str) -> Result<T, OpenError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = MapData::from_pin(pins.join(name)).and_then(Map::from_map_data).and_then(T::try_from);
    map.map_err(|source| OpenError::Read(maps::unreadable(name)(source)))
}

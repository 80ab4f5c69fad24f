//! Every total in plain numbers, to be written down or to be put into other maps.

use std::collections::BTreeMap;

use meter_ebpf::abi::{
    Counter, Direction, HookCounter, Member, MemberKey, PortRecord, PortUuid, TUNNELS_PER_BLOCK,
    TunnelCounter, UNBOUND_SLOT,
};
use uuid::Uuid;

use super::{Datapath as _, ReadError, kernel::KernelDatapath, ledger::total, maps::Maps};
use crate::totals::{SavedMember, SavedMeter, SavedPort, SavedTunnel, Totals};

impl KernelDatapath {
    /// Returns every total. The boot is left for the caller to name.
    pub(super) fn saved(&self) -> Result<Totals, ReadError> {
        let (records, members) = (self.ledger.records(), self.ledger.member_records());
        let totals = totals(&self.maps, records, members, self.meters.saved()?)?;
        Ok(Totals { unpinned: self.unpinned().is_some(), ..totals })
    }
}

/// Returns every total of these maps, whose records and meters these are.
pub(super) fn totals(
    maps: &Maps,
    records: &BTreeMap<PortUuid, PortRecord>,
    members: &BTreeMap<MemberKey, Member>,
    meters: Vec<SavedMeter>,
) -> Result<Totals, ReadError> {
    let last = records.values().map(|record| record.slot).max().unwrap_or(UNBOUND_SLOT);
    let slots = maps.slot_counters(last)?;
    let id = |uuid: PortUuid| Uuid::from_bytes(uuid.uuid);
    let ports = records.iter().map(|(port, record)| SavedPort {
        port: id(*port),
        class: record.class,
        uplink: record.uplink,
        created_ns: record.created_ns,
        device: id(record.device),
        hooks: total(record, &slots).hooks.map(hook),
    });
    let members = members.iter().map(|(key, member)| SavedMember {
        port: id(key.port),
        device: id(key.device),
        accrued: pair(&member.accrued),
        base: pair(&member.base),
    });
    let uplinks = records.values().map(|record| record.uplink).filter(|uplink| *uplink != 0);
    let hooks = uplinks.flat_map(|uplink| Direction::ALL.map(|direction| uplink * 2 + direction as u32));
    let buckets = hooks.map(|hook| Ok((hook, maps.buckets(hook)?.reasons.iter().map(pair).collect())));
    Ok(Totals {
        boot_id: String::new(),
        unpinned: false,
        ports: ports.collect(),
        members: members.collect(),
        tunnels: tunnels(maps)?,
        buckets: buckets.collect::<Result<_, ReadError>>()?,
        faults: maps.faults()?.reasons.iter().map(pair).collect(),
        unbound: maps.unbound(&slots).hooks.map(hook),
        meters,
    })
}

/// Returns what each tunnel counted, in the order of their keys.
fn tunnels(maps: &Maps) -> Result<Vec<SavedTunnel>, ReadError> {
    let mut places = maps.tunnel_entries()?;
    places.sort_unstable_by_key(|(_, place)| *place);
    let mut sums: BTreeMap<[u64; 5], TunnelCounter> =
        maps.carried().tunnels().map(|(key, counter)| (key.words(), *counter)).collect();
    let block = |place: u32| place / TUNNELS_PER_BLOCK;
    for places in places.chunk_by(|(_, one), (_, next)| block(*one) == block(*next)) {
        let counters = maps.tunnel_block(block(places[0].1))?;
        for (key, place) in places {
            let place = usize::try_from(place % TUNNELS_PER_BLOCK).unwrap_or_default();
            sums.entry(key.words()).or_default().add(&counters[place]);
        }
    }
    let tunnel = |(key, TunnelCounter { packets, inner_bytes, outer_bytes })| SavedTunnel {
        key,
        counts: [packets, inner_bytes, outer_bytes],
    };
    Ok(sums.into_iter().map(tunnel).collect())
}

/// Returns whether maps may get totals from before: no port of this boot is in them.
pub(super) fn is_untouched(records: &BTreeMap<PortUuid, PortRecord>) -> bool {
    records.values().all(|record| record.slot == UNBOUND_SLOT && record.ifindex == 0)
}

const fn hook(counter: HookCounter) -> [u64; 4] {
    [counter.skb_packets, counter.skb_bytes, counter.extra_packets, counter.extra_bytes]
}

const fn pair(counter: &Counter) -> [u64; 2] {
    [counter.packets, counter.bytes]
}

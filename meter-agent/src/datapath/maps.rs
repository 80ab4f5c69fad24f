//! The maps, open: read and written as typed values.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    io,
    ops::Range,
    os::fd::AsFd,
};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, Queue},
};
use meter_ebpf::abi::{
    Address, Buckets, Counter, Faults, Member, MemberKey, Meta, NAMESPACE_NETDEVS, Network, PortRecord,
    PortUuid, SLOTS_PER_BLOCK, SlotBlock, SlotCounters, SlotRef, TUNNELS_PER_BLOCK, TunnelBlock,
    TunnelCounter, TunnelKey, UNBOUND_SLOT, map, saved,
};

use super::{
    MapUsage, ReadError,
    carried::Carried,
    grace::Grace,
    ledger::{Slots, Write},
    open::OpenError,
    places::PlaceTable,
    slots::SlotTable,
    specs::{Spec, capacity, memory},
    sys,
};
use crate::netdev::{NamespaceId, NetdevId};

/// Tunnels that one system call looks up.
const TUNNEL_CHUNK: usize = 4_096;

/// The maps, open.
pub(super) struct Maps {
    slots: SlotTable,
    slots_high: HashMap<MapData, u32, SlotRef>,
    /// The netdevs of namespaces, where any are or were followed.
    pub(super) places: Option<PlaceTable>,
    networks: Array<MapData, Network>,
    counters: PerCpuArray<MapData, SlotBlock>,
    ports: HashMap<MapData, PortUuid, PortRecord>,
    members: HashMap<MapData, MemberKey, Member>,
    tunnels: MapData,
    tunnel_spare: Queue<MapData, u32>,
    tunnel_counters: PerCpuArray<MapData, TunnelBlock>,
    buckets: PerCpuArray<MapData, Buckets>,
    faults: PerCpuArray<MapData, Faults>,
    pub(super) tunnel_saved: HashMap<MapData, TunnelKey, TunnelCounter>,
    pub(super) saved: HashMap<MapData, u32, Buckets>,
    /// What the last two hold.
    carried: Carried,
    meta: Array<MapData, Meta>,
    /// Every map's number of entries, and its memory in bytes where it is known.
    sizes: Vec<(&'static str, u32, u64)>,
}

impl Maps {
    /// Takes the maps from where they are, all but `SLOTS`.
    pub(super) fn take(
        mut from: impl FnMut(&'static str) -> Result<Map, OpenError>,
        specs: &[Spec],
        slots: SlotTable,
    ) -> Result<Self, OpenError> {
        let sizes = specs.iter().map(|spec| (spec.name, capacity(spec), memory(spec))).collect();
        let mut maps = Self {
            slots,
            places: None,
            slots_high: typed(&mut from, map::SLOTS_HIGH)?,
            networks: typed(&mut from, map::NETWORKS)?,
            counters: typed(&mut from, map::COUNTERS)?,
            ports: typed(&mut from, map::PORTS)?,
            members: typed(&mut from, map::MEMBERS)?,
            tunnels: match from(map::TUNNELS)? {
                Map::HashMap(data) => data,
                _ => return Err(OpenError::Object(format!("map {} is not a hash", map::TUNNELS))),
            },
            tunnel_spare: typed(&mut from, map::TUNNEL_SPARE)?,
            tunnel_counters: typed(&mut from, map::TUNNEL_COUNTERS)?,
            buckets: typed(&mut from, map::BUCKETS)?,
            faults: typed(&mut from, map::FAULTS)?,
            tunnel_saved: typed(&mut from, map::TUNNEL_SAVED)?,
            saved: typed(&mut from, map::SAVED)?,
            carried: Carried::default(),
            meta: typed(&mut from, map::META)?,
            sizes,
        };
        maps.read_carried()?;
        Ok(maps)
    }

    /// Takes up what was counted before these maps were made.
    pub(super) fn read_carried(&mut self) -> Result<(), ReadError> {
        self.carried = Carried::read(&self.tunnel_saved, &self.saved)?;
        Ok(())
    }

    /// Returns what was counted before these maps were made.
    pub(super) const fn carried(&self) -> &Carried {
        &self.carried
    }

    /// Returns whether no agent has finished making them.
    pub(super) fn are_new(&self) -> Result<bool, ReadError> {
        let meta = self.meta.get(&0, 0).map_err(unreadable(map::META))?;
        Ok(meta.tunnels_ready != 1)
    }

    /// Returns whether everything is here that the maps of an earlier version held.
    pub(super) fn have_carried(&self) -> Result<bool, ReadError> {
        Ok(self.meta.get(&0, 0).map_err(unreadable(map::META))?.carried == 1)
    }

    /// Remembers that it is.
    pub(super) fn set_carried(&mut self) -> Result<(), OpenError> {
        let failed = |source: MapError| OpenError::Write { map: map::META, source };
        let meta = self.meta.get(&0, 0).map_err(failed)?;
        self.meta.set(0, Meta { carried: 1, ..meta }, 0).map_err(failed)
    }

    /// Brings new maps into their first state; finishes what an agent that was killed here left undone.
    ///
    /// `spares` are the places behind those that the tunnels' hashes lead to.
    pub(super) fn prepare(&mut self, version: u32, spares: Range<u32>) -> Result<(), OpenError> {
        let failed = |map: &'static str| move |source: MapError| OpenError::Write { map, source };
        let mut meta = self.meta.get(&0, 0).map_err(failed(map::META))?;
        if meta.tunnels_ready == 1 {
            return Ok(());
        }
        while self.tunnel_spare.pop(0).is_ok() {}
        let used: BTreeSet<u32> = self
            .tunnel_entries()
            .map_err(|error| OpenError::Object(error.to_string()))?
            .into_iter()
            .map(|(_, place)| place)
            .collect();
        for place in spares.filter(|place| !used.contains(place)) {
            self.tunnel_spare.push(place, 0).map_err(failed(map::TUNNEL_SPARE))?;
        }
        meta.version = version;
        meta.tunnels_ready = 1;
        self.meta.set(0, meta, 0).map_err(failed(map::META))
    }

    /// Returns where the netdev's counters are.
    pub(super) fn slot(&self, id: NetdevId) -> Result<SlotRef, MapError> {
        let ifindex = id.ifindex;
        if id.namespace != NamespaceId::HOST {
            return Ok(self.places.as_ref().map_or(SlotRef::UNBOUND, |places| places.get(id)));
        }
        self.slots.get(ifindex).map_or_else(|| self.slots_high.get(&ifindex, 0), Ok)
    }

    /// Says where the netdev's counters are; the default for nowhere.
    pub(super) fn set_slot(&mut self, id: NetdevId, slot: SlotRef) -> Result<(), MapError> {
        let ifindex = id.ifindex;
        if id.namespace != NamespaceId::HOST {
            let is_set = self.places.as_ref().is_some_and(|places| places.set(id, slot));
            let full = MapError::OutOfBounds { index: NAMESPACE_NETDEVS, max_entries: NAMESPACE_NETDEVS };
            return if is_set || slot == SlotRef::UNBOUND { Ok(()) } else { Err(full) };
        }
        if self.slots.set(ifindex, slot) {
            return Ok(());
        }
        if slot != SlotRef::UNBOUND {
            return self.slots_high.insert(ifindex, slot, 0);
        }
        match self.slots_high.remove(&ifindex) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the overlay network of the netdev that counts in a slot.
    pub(super) fn network(&self, slot: u32) -> Network {
        self.networks.get(&slot, 0).unwrap_or_default()
    }

    /// Says which overlay network that is.
    pub(super) fn set_network(&mut self, slot: u32, network: Network) -> Result<(), MapError> {
        if self.network(slot) == network { Ok(()) } else { self.networks.set(slot, network, 0) }
    }

    /// Returns every netdev that has counters, as far as `SLOTS` reaches.
    pub(super) fn bound(&self) -> Vec<(NetdevId, SlotRef)> {
        let slots = (0_u32..).zip(self.slots.bits());
        let slots = slots.map(|(ifindex, bits)| (ifindex.into(), SlotRef::from_bits(bits)));
        let others = self.places.iter().flat_map(PlaceTable::bound);
        slots.filter(|(_, slot)| *slot != SlotRef::UNBOUND).chain(others).collect()
    }

    /// Returns where the counters of every netdev are.
    pub(super) fn all_bound(&self) -> Result<Vec<(NetdevId, SlotRef)>, ReadError> {
        let mut bound = self.bound();
        for entry in self.slots_high.iter() {
            let (ifindex, slot) = entry.map_err(unreadable(map::SLOTS_HIGH))?;
            bound.push((ifindex.into(), slot));
        }
        Ok(bound)
    }

    /// Writes one record of the ledger.
    pub(super) fn write(&mut self, write: &Write) -> Result<(), MapError> {
        match write {
            Write::Port(port, record) => self.ports.insert(port, record, 0),
            Write::Member(key, member) => self.members.insert(key, member, 0),
        }
    }

    /// Returns every port's record.
    pub(super) fn port_records(&self) -> Result<BTreeMap<PortUuid, PortRecord>, ReadError> {
        batch(self.ports_fd(), map::PORTS)
    }

    /// Returns every member's record.
    pub(super) fn member_records(&self) -> Result<BTreeMap<MemberKey, Member>, ReadError> {
        batch(self.members_fd(), map::MEMBERS)
    }

    fn ports_fd(&self) -> &HashMap<MapData, PortUuid, PortRecord> {
        &self.ports
    }

    fn members_fd(&self) -> &HashMap<MapData, MemberKey, Member> {
        &self.members
    }

    /// Returns every tunnel with its place.
    pub(super) fn tunnel_entries(&self) -> Result<Vec<(TunnelKey, u32)>, ReadError> {
        sys::lookup_batch(self.tunnels.fd().as_fd(), TUNNEL_CHUNK)
            .map_err(|source| ReadError { map: map::TUNNELS, source })
    }

    /// Returns the counters of the tunnels of one block, by place.
    pub(super) fn tunnel_block(&self, block: u32) -> Result<Vec<TunnelCounter>, ReadError> {
        let values = self.tunnel_counters.get(&block, 0).map_err(unreadable(map::TUNNEL_COUNTERS))?;
        let mut sums = vec![TunnelCounter::default(); TUNNELS_PER_BLOCK as usize];
        for value in values.iter() {
            for (sum, place) in sums.iter_mut().zip(&value.places) {
                sum.add(&place.counter);
            }
        }
        Ok(sums)
    }

    /// Returns the buckets of one uplink and direction (`uplink * 2 + direction`).
    pub(super) fn buckets(&self, hook: u32) -> Result<Buckets, ReadError> {
        let values = self.buckets.get(&hook, 0).map_err(unreadable(map::BUCKETS))?;
        let mut sum = Buckets::default();
        values.iter().for_each(|value| add_reasons(&mut sum.reasons, &value.reasons));
        add_reasons(&mut sum.reasons, self.carried.reasons(hook));
        Ok(sum)
    }

    /// Returns the faults.
    pub(super) fn faults(&self) -> Result<Faults, ReadError> {
        let values = self.faults.get(&0, 0).map_err(unreadable(map::FAULTS))?;
        let mut sum = Faults::default();
        values.iter().for_each(|value| add_reasons(&mut sum.reasons, &value.reasons));
        add_reasons(&mut sum.reasons, self.carried.reasons(saved::FAULTS));
        Ok(sum)
    }

    /// Returns what came where nobody claimed it.
    pub(super) fn unbound(&self, slots: &SlotSums) -> SlotCounters {
        let mut sum = slots.counters(UNBOUND_SLOT);
        sum.add(&self.carried.unbound());
        sum
    }

    /// Reads the slots up to and with `last`.
    pub(super) fn slot_counters(&self, last: u32) -> Result<SlotSums, ReadError> {
        let mut slots = Vec::new();
        for block in 0..=last / SLOTS_PER_BLOCK {
            slots.append(&mut self.slot_block(block)?);
        }
        Ok(SlotSums(slots))
    }

    fn slot_block(&self, block: u32) -> Result<Vec<SlotCounters>, ReadError> {
        let values = self.counters.get(&block, 0).map_err(unreadable(map::COUNTERS))?;
        let mut sums = vec![SlotCounters::default(); SLOTS_PER_BLOCK as usize];
        for value in values.iter() {
            sums.iter_mut().zip(&value.slots).for_each(|(sum, slot)| sum.add(slot));
        }
        Ok(sums)
    }

    /// Returns how full the maps are.
    pub(super) fn usage(&self, used: impl Fn(&str, u32) -> u64) -> Vec<MapUsage> {
        self.sizes
            .iter()
            .map(|&(map, capacity, memory_bytes)| MapUsage {
                map,
                entries: used(map, capacity),
                capacity: u64::from(capacity),
                memory_bytes,
            })
            .collect()
    }
}

/// The slots' sums over CPUs at one reading.
pub(super) struct SlotSums(Vec<SlotCounters>);

impl Slots for SlotSums {
    fn counters(&self, slot: u32) -> SlotCounters {
        usize::try_from(slot).ok().and_then(|slot| self.0.get(slot)).copied().unwrap_or_default()
    }

    // What was read stays as it was.
    fn settle(&self) {}
}

/// The slots as they are at each call. Remembers the first error, since the arithmetic that asks has no use for it.
pub(super) struct LiveSlots<'a> {
    maps: &'a Maps,
    grace: &'a Grace,
    error: RefCell<Option<ReadError>>,
}

impl<'a> LiveSlots<'a> {
    pub(super) fn new(maps: &'a Maps, grace: &'a Grace) -> Self {
        Self { maps, grace, error: RefCell::new(None) }
    }

    /// Returns the error that a call met.
    pub(super) fn into_result(self) -> Result<(), ReadError> {
        self.error.into_inner().map_or(Ok(()), Err)
    }

    fn or_default<T: Default>(&self, result: Result<T, ReadError>) -> T {
        result.unwrap_or_else(|error| {
            self.error.borrow_mut().get_or_insert(error);
            T::default()
        })
    }
}

impl Slots for LiveSlots<'_> {
    fn counters(&self, slot: u32) -> SlotCounters {
        SlotSums(self.or_default(self.maps.slot_block(slot / SLOTS_PER_BLOCK)))
            .counters(slot % SLOTS_PER_BLOCK)
    }

    fn settle(&self) {
        let waited = self.grace.wait();
        self.or_default(waited.map_err(|source| ReadError { map: map::COUNTERS, source }));
    }
}

fn add_reasons(sums: &mut [Counter], values: &[Counter]) {
    sums.iter_mut().zip(values).for_each(|(sum, value)| sum.add(value));
}

pub(super) fn unreadable(map: &'static str) -> impl Fn(MapError) -> ReadError {
    move |error| ReadError {
        map,
        source: match error {
            MapError::SyscallError(error) => error.io_error,
            other => io::Error::other(other),
        },
    }
}

pub(super) fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, OpenError> {
    ebpf.take_map(name).ok_or_else(|| OpenError::Object(format!("map {name} is missing")))
}

pub(super) fn typed<T>(
    mut from: impl FnMut(&'static str) -> Result<Map, OpenError>,
    name: &'static str,
) -> Result<T, OpenError>
where
    T: TryFrom<Map>,
    T::Error: std::fmt::Display,
{
    T::try_from(from(name)?).map_err(|error| OpenError::Object(format!("map {name}: {error}")))
}

fn batch<K: Pod + Default + Ord, V: Pod + Default>(
    map: &HashMap<MapData, K, V>,
    name: &'static str,
) -> Result<BTreeMap<K, V>, ReadError> {
    map.iter().collect::<Result<_, _>>().map_err(unreadable(name))
}

/// Returns an address of the kernel half in its usual form.
pub(super) fn ip_address(address: &Address) -> std::net::IpAddr {
    std::net::Ipv6Addr::from(address.bytes()).to_canonical()
}

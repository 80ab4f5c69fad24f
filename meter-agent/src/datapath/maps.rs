//! The pinned maps: checked before they are taken over, then read and written as typed values.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs, io,
    ops::Range,
    os::fd::AsFd,
    path::Path,
};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, Map, MapData, MapError, MapInfo, MapType, PerCpuArray, Queue},
};
use meter_ebpf::abi::{
    Address, Buckets, Counter, Faults, MAX_UPLINKS, Member, MemberKey, Meta, NAMESPACE_NETDEVS, NAMESPACES,
    NamespaceTable, Network, PortRecord, PortUuid, SLOT_ENTRIES, SLOTS_PER_BLOCK, SlotBlock, SlotCounters,
    SlotRef, TUNNELS_PER_BLOCK, TunnelBlock, TunnelCounter, TunnelKey, UNBOUND_SLOT,
    connection::{Capture, Connection, ConnectionHints, ConnectionKey, Handshake, SavedCapture},
    map,
    rules::{METER_COUNTERS, METERS_PER_BLOCK, MeterBlock, MeterName, MeterRecord},
    saved,
};

use super::{
    MapUsage, Options, ReadError,
    carried::Carried,
    grace::Grace,
    ledger::{Slots, Write},
    meters::METER_NAMES,
    open::{OpenError, pin_error},
    places::PlaceTable,
    slots::{self, SlotTable},
    sys, tunnels,
};
use crate::netdev::{NamespaceId, NetdevId};

/// Netdevs whose ifindex `SLOTS` does not reach.
const SLOT_HIGH_ENTRIES: u32 = 65_536;
/// Hooks of uplinks, and what else is saved.
const SAVED_ENTRIES: u32 = 2 * MAX_UPLINKS + 2;
/// Tunnels that one system call looks up.
const TUNNEL_CHUNK: usize = 4_096;

/// Maps that user space has in its memory.
const MAPPED: [&str; 5] =
    [map::SLOTS, map::CONNECTIONS, map::CONNECTION_TIMES, map::CAPTURES, map::NAMESPACES];

/// What a map must be like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spec {
    pub(super) name: &'static str,
    pub(super) kind: MapType,
    pub(super) key_size: usize,
    pub(super) value_size: usize,
    /// How many entries a new one gets. One that is pinned already may have another number.
    pub(super) max_entries: u32,
}

/// Returns what every map must be like.
pub(super) fn specs(options: &Options) -> Vec<Spec> {
    use MapType::{Array as A, ArrayOfMaps as M, Hash as H, PerCpuArray as P, Queue as Q};
    let slot_blocks = options.max_netdevs.saturating_add(1).div_ceil(SLOTS_PER_BLOCK);
    let (tunnel_places, tunnel_spares) = tunnels::places(options.max_tunnels);
    let tunnel_blocks = (tunnel_places + tunnel_spares).div_ceil(TUNNELS_PER_BLOCK);
    let rows: [(&'static str, MapType, usize, usize, u32); 26] = [
        (map::SLOTS, A, 4, slots::SIZE, 1),
        (map::SLOTS_HIGH, H, 4, size_of::<SlotRef>(), SLOT_HIGH_ENTRIES),
        (map::COUNTERS, P, 4, size_of::<SlotBlock>(), slot_blocks),
        (map::PORTS, H, size_of::<PortUuid>(), size_of::<PortRecord>(), options.max_ports),
        (map::MEMBERS, H, size_of::<MemberKey>(), size_of::<Member>(), options.max_ports),
        (map::TUNNELS, H, size_of::<TunnelKey>(), 4, options.max_tunnels),
        (map::TUNNEL_TAKEN, H, 4, 4, tunnel_places),
        (map::TUNNEL_SPARE, Q, 0, 4, tunnel_spares),
        (map::TUNNEL_COUNTERS, P, 4, size_of::<TunnelBlock>(), tunnel_blocks),
        (map::BUCKETS, P, 4, size_of::<Buckets>(), 2 * MAX_UPLINKS),
        (map::FAULTS, P, 4, size_of::<Faults>(), 1),
        (map::TUNNEL_SAVED, H, size_of::<TunnelKey>(), size_of::<TunnelCounter>(), options.max_tunnels),
        (map::SAVED, H, 4, size_of::<Buckets>(), SAVED_ENTRIES),
        (map::META, A, 4, size_of::<Meta>(), 1),
        (map::RULES, M, 4, 4, 1),
        (map::VERDICTS, M, 4, 4, 1),
        (map::METERS, H, size_of::<MeterName>(), size_of::<MeterRecord>(), METER_NAMES),
        (map::METER_COUNTERS, P, 4, size_of::<MeterBlock>(), METER_COUNTERS / METERS_PER_BLOCK),
        // Place 0 is no connection's.
        (map::CONNECTIONS, A, 4, size_of::<Connection>(), options.max_connections + 1),
        (map::CONNECTION_KEYS, H, size_of::<ConnectionKey>(), 4, options.max_connections),
        (map::CONNECTION_FREE, Q, 0, 4, options.max_connections),
        (map::CONNECTION_HINTS, A, 4, size_of::<ConnectionHints>(), 1),
        (map::CONNECTION_TIMES, A, 4, size_of::<Handshake>(), options.max_connections + 1),
        (map::NETWORKS, A, 4, size_of::<Network>(), slot_blocks * SLOTS_PER_BLOCK),
        (map::CAPTURES, A, 4, size_of::<Capture>(), slot_blocks * SLOTS_PER_BLOCK),
        (map::CAPTURE_SAVED, H, size_of::<PortUuid>(), size_of::<SavedCapture>(), options.max_ports),
    ];
    rows.into_iter()
        .map(|(name, kind, key_size, value_size, max_entries)| Spec {
            name,
            kind,
            key_size,
            value_size,
            max_entries,
        })
        .collect()
}

/// Returns what the map of namespaces must be like, which is made only where one is followed.
pub(super) const fn namespaces_spec() -> Spec {
    Spec {
        name: map::NAMESPACES,
        kind: MapType::Array,
        key_size: 4,
        value_size: size_of::<NamespaceTable>(),
        max_entries: NAMESPACES,
    }
}

/// Checks what is pinned for this map, and returns its number of entries; `None` where nothing is pinned.
///
/// aya takes over whatever it finds at a pin path. A map of other sizes would end in a verifier error, or in numbers
/// read from the wrong place.
pub(super) fn check_pin(spec: &Spec, path: &Path) -> Result<Option<u32>, OpenError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(OpenError::Path { action: "look at", path: path.to_owned(), source });
        }
        Ok(_) => {}
    }
    let info = MapInfo::from_pin(path).map_err(|error| pin_error(spec.name, path, &error))?;
    is_as(spec, &info).map_err(|found| OpenError::ForeignPin {
        path: path.to_owned(),
        map: spec.name,
        found,
    })?;
    Ok(Some(info.max_entries()))
}

/// Returns what is found where a map is not of the type and the sizes of this one.
pub(super) fn is_as(spec: &Spec, info: &MapInfo) -> Result<(), String> {
    let found = (
        info.map_type().map_err(|error| error.to_string())?,
        usize::try_from(info.key_size()).unwrap_or(usize::MAX),
        usize::try_from(info.value_size()).unwrap_or(usize::MAX),
    );
    if found != (spec.kind, spec.key_size, spec.value_size) {
        return Err(format!(
            "a map of type {:?} with keys of {} and values of {} bytes, not {:?} with {} and {}",
            found.0, found.1, found.2, spec.kind, spec.key_size, spec.value_size
        ));
    }
    let is_mapped = MAPPED.contains(&spec.name);
    if is_mapped && info.map_flags() & sys::BPF_F_MMAPABLE == 0 {
        return Err("a map that can't be mapped into memory".to_owned());
    }
    Ok(())
}

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

/// Returns how many entries a map can have.
fn capacity(spec: &Spec) -> u32 {
    if spec.name == map::SLOTS { SLOT_ENTRIES } else { spec.max_entries }
}

/// Estimates the kernel memory of a map: its values, and for a hash its keys and links.
fn memory(spec: &Spec) -> u64 {
    let cpus = u64::try_from(aya::util::nr_cpus().unwrap_or(1)).unwrap_or(1);
    let entries = u64::from(spec.max_entries);
    let value = u64::try_from(spec.value_size.next_multiple_of(8)).unwrap_or(u64::MAX);
    let key = u64::try_from(spec.key_size).unwrap_or(u64::MAX);
    match spec.kind {
        MapType::PerCpuArray => entries * (8 + cpus * value),
        // `struct htab_elem` and a bucket.
        MapType::Hash => entries * (key.next_multiple_of(8) + value + 48 + 16),
        _ => entries * value,
    }
}

/// Returns an address of the kernel half in its usual form.
pub(super) fn ip_address(address: &Address) -> std::net::IpAddr {
    std::net::Ipv6Addr::from(address.bytes()).to_canonical()
}

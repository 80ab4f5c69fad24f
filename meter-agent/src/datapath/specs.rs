//! What each map must be like, and whether what is pinned for it is so: checked before it is taken over.

use std::{fs, io, path::Path};

use aya::maps::{MapInfo, MapType};
use meter_ebpf::abi::{
    Buckets, Faults, MAX_UPLINKS, Member, MemberKey, Meta, NAMESPACES, NamespaceTable, Network, PortRecord,
    PortUuid, SLOT_ENTRIES, SLOTS_PER_BLOCK, SlotBlock, SlotRef, TUNNELS_PER_BLOCK, TunnelBlock,
    TunnelCounter, TunnelKey,
    connection::{Capture, Connection, ConnectionHints, ConnectionKey, Handshake, SavedCapture},
    map,
    rules::{METER_COUNTERS, METERS_PER_BLOCK, MeterBlock, MeterName, MeterRecord},
};

use super::{
    Options,
    meters::METER_NAMES,
    open::{OpenError, pin_error},
    slots, sys, tunnels,
};

/// Netdevs whose ifindex `SLOTS` does not reach.
const SLOT_HIGH_ENTRIES: u32 = 65_536;
/// Hooks of uplinks, and what else is saved.
const SAVED_ENTRIES: u32 = 2 * MAX_UPLINKS + 2;
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
    let rows: [(&'static str, MapType, usize, usize, u32); 28] = [
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
        (map::CAPTURE_RULES, M, 4, 4, 1),
        (map::CAPTURE_VERDICTS, M, 4, 4, 1),
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

/// Returns how many entries a map can have.
pub(super) fn capacity(spec: &Spec) -> u32 {
    if spec.name == map::SLOTS { SLOT_ENTRIES } else { spec.max_entries }
}

/// Returns how many CPUs the host could have: a per-CPU map has room for each.
pub(super) fn cpus() -> u64 {
    u64::try_from(aya::util::nr_cpus().unwrap_or(1)).unwrap_or(1)
}

/// Estimates the kernel memory of a map: its values, and for a hash its keys and links.
pub(super) fn memory(spec: &Spec) -> u64 {
    let cpus = cpus();
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

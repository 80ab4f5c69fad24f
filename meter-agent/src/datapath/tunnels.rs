//! The tunnels' places: how many there are, and what is read from them.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use meter_ebpf::abi::{Direction, TUNNELS_PER_BLOCK, TunnelCounter, TunnelKey};

use super::{
    ReadError, TunnelReading,
    ledger::Ledger,
    maps::{self, Maps},
    record::port_id,
};
use crate::meter::PortId;

/// Returns how many places the hashes of tunnels lead to, a power of two, and how many there are to spare.
///
/// A hash leads to two places. With as many tunnels as are allowed, at most 27 in 100 find both taken.
pub(super) fn places(max_tunnels: u32) -> (u32, u32) {
    let hashed = max_tunnels.next_power_of_two().max(2);
    (hashed, hashed / 2)
}

/// What the tunnels use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Use {
    /// Places that a hash leads to.
    pub(super) hashed: usize,
    /// Spare places.
    pub(super) spare: usize,
    /// Blocks with a tunnel in them.
    pub(super) blocks: usize,
}

impl Use {
    /// Counts what these tunnels use, of which places from `hashed` on are spare.
    pub(super) fn of(tunnels: &[(TunnelKey, u32)], hashed: u32) -> Self {
        let spare = tunnels.iter().filter(|(_, place)| *place >= hashed).count();
        let blocks: BTreeSet<u32> = tunnels.iter().map(|(_, place)| place / TUNNELS_PER_BLOCK).collect();
        Self { hashed: tunnels.len() - spare, spare, blocks: blocks.len() }
    }
}

/// Reads the counters of these tunnels, block by block; a block without a tunnel is not read.
pub(super) fn readings(
    maps: &Maps,
    mut tunnels: Vec<(TunnelKey, u32)>,
    ledger: &Ledger,
) -> Result<Vec<TunnelReading>, ReadError> {
    let records = ledger.records().iter().filter(|(_, record)| record.uplink != 0);
    let uplinks: BTreeMap<u32, PortId> =
        records.map(|(uuid, record)| (record.uplink, port_id(*uuid))).collect();
    let block = |place: u32| place / TUNNELS_PER_BLOCK;
    tunnels.sort_unstable_by_key(|(_, place)| *place);
    let mut readings = Vec::with_capacity(tunnels.len());
    let carried = maps.carried();
    let counted: HashSet<[u64; 5]> = match carried.len() {
        [0, _] => HashSet::new(),
        _ => tunnels.iter().map(|(key, _)| key.words()).collect(),
    };
    // Those that have counted nothing since.
    let idle = carried.tunnels().filter(|(key, _)| !counted.contains(&key.words()));
    readings.extend(idle.filter_map(|(key, counter)| reading(&key, counter, &uplinks)));
    for tunnels in tunnels.chunk_by(|(_, one), (_, next)| block(*one) == block(*next)) {
        let counters = maps.tunnel_block(block(tunnels[0].1))?;
        readings.extend(tunnels.iter().filter_map(|(key, place)| {
            let mut counter = *counters.get(usize::try_from(place % TUNNELS_PER_BLOCK).ok()?)?;
            counter.add(&carried.tunnel(key));
            reading(key, &counter, &uplinks)
        }));
    }
    Ok(readings)
}

/// `None` for the tunnel of an uplink that no record names.
fn reading(
    key: &TunnelKey,
    counter: &TunnelCounter,
    uplinks: &BTreeMap<u32, PortId>,
) -> Option<TunnelReading> {
    Some(TunnelReading {
        uplink: *uplinks.get(&u32::from(key.hook() / 2))?,
        direction: if key.hook().is_multiple_of(2) { Direction::Ingress } else { Direction::Egress },
        src: maps::ip_address(&key.src),
        dst: maps::ip_address(&key.dst),
        vni: key.vni(),
        encap: key.encap()?,
        packets: counter.packets,
        inner_bytes: counter.inner_bytes,
        outer_bytes: counter.outer_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::{TunnelKey, Use, places};

    #[test]
    fn there_is_a_place_for_every_tunnel() {
        assert_eq!(
            [1, 2, 3, 8192, 1_000_000].map(places),
            [(2, 1), (2, 1), (4, 2), (8192, 4096), (1_048_576, 524_288)]
        );
    }

    #[test]
    fn use_is_counted_by_place() {
        let tunnels = [0, 1, 255, 256, 1024, 1030].map(|place| (TunnelKey::default(), place));
        assert_eq!(Use::of(&tunnels, 1024), Use { hashed: 4, spare: 2, blocks: 3 });
        assert_eq!(Use::of(&[], 1024), Use { hashed: 0, spare: 0, blocks: 0 });
    }
}

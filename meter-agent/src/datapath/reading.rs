//! Everything that the kernel half has counted, read and named.

use std::collections::BTreeMap;

use meter_ebpf::abi::{Direction, SLOT_ENTRIES, map};
use uuid::Uuid;

use super::{
    BucketReading, MapUsage, PortReading, ReadError, Reading,
    kernel::{KernelDatapath, uptime_s},
    record::{port_id, port_reading},
    specs::namespaces_spec,
    tunnels,
};
use crate::{
    meter::{DeviceId, FlowStats},
    netdev::{NamespaceId, NetdevId},
    rules::router_of,
};

impl KernelDatapath {
    /// Reads everything.
    pub(super) fn read_all(&mut self) -> Result<Reading, ReadError> {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
        let slots = self.maps.slot_counters(self.ledger.last_slot())?;
        let tunnels = self.maps.tunnel_entries()?;
        let mut buckets = Vec::new();
        for (uuid, record) in self.ledger.records().iter().filter(|(_, record)| record.uplink != 0) {
            for direction in Direction::ALL {
                let hook = record.uplink * 2 + direction as u32;
                buckets.push(BucketReading {
                    uplink: port_id(*uuid),
                    direction,
                    buckets: self.maps.buckets(hook)?,
                });
            }
        }
        let ports: Vec<PortReading> =
            self.ledger.records().iter().map(|(uuid, record)| port_reading(*uuid, record, &slots)).collect();
        let (of_routers, user_meters): (BTreeMap<_, _>, BTreeMap<_, _>) =
            self.meters.read()?.into_iter().partition(|(name, _)| router_of(name).is_some());
        let mut devices: BTreeMap<DeviceId, FlowStats> = self
            .ledger
            .devices(&slots)
            .into_iter()
            .map(|(device, sum)| {
                let stats = FlowStats { packets: sum.packets, bytes: sum.bytes };
                (DeviceId(Uuid::from_bytes(device.uuid)), stats)
            })
            .collect();
        for (name, meter) in of_routers {
            if let Some(router) = router_of(&name) {
                *devices.entry(router).or_default() += meter.stats;
            }
        }
        let tunnel_use = tunnels::Use::of(&tunnels, self.tunnel_places);
        let mut usage = self.maps.usage(|name, capacity| match name {
            map::SLOTS => count(self.attached.range(..NetdevId::from(SLOT_ENTRIES)).count()),
            map::SLOTS_HIGH => count(
                self.attached
                    .range(NetdevId::from(SLOT_ENTRIES)..NetdevId { namespace: NamespaceId(1), ifindex: 0 })
                    .count(),
            ),
            map::COUNTERS => {
                count(self.ledger.slots_used()).div_ceil(u64::from(meter_ebpf::abi::SLOTS_PER_BLOCK))
            }
            map::PORTS => count(self.ledger.records().len()),
            map::MEMBERS => count(self.ledger.members()),
            map::TUNNELS => count(tunnel_use.hashed + tunnel_use.spare),
            map::TUNNEL_TAKEN => count(tunnel_use.hashed),
            map::TUNNEL_SPARE => u64::from(capacity).saturating_sub(count(tunnel_use.spare)),
            map::TUNNEL_COUNTERS => count(tunnel_use.blocks),
            map::TUNNEL_SAVED => count(self.maps.carried().len()[0]),
            map::SAVED => count(self.maps.carried().len()[1]),
            map::CAPTURES => count(self.captures.len()),
            map::CAPTURE_SAVED => count(self.captures.saved_len()),
            map::CONNECTIONS | map::CONNECTION_KEYS | map::CONNECTION_TIMES => {
                count(self.connections.count())
            }
            map::CONNECTION_FREE => u64::from(capacity).saturating_sub(count(self.connections.count())),
            name => {
                let of_rules = self.usage_of_rules(name).map(|[entries, _]| entries);
                of_rules.or_else(|| self.meters.usage(name)).unwrap_or(u64::from(capacity))
            }
        });
        if let Some(places) = &self.maps.places {
            let spec = namespaces_spec();
            usage.push(MapUsage {
                map: spec.name,
                entries: count(places.identities().count()),
                // Number 0 is the host's.
                capacity: u64::from(spec.max_entries - 1),
                memory_bytes: u64::from(spec.max_entries) * count(spec.value_size),
            });
        }
        for map in &mut usage {
            map.memory_bytes += self.usage_of_rules(map.map).map_or(0, |[_, bytes]| bytes);
        }
        Ok(Reading {
            ports,
            devices: devices.into_iter().collect(),
            tunnels: tunnels::readings(&self.maps, tunnels, &self.ledger)?,
            buckets,
            user_meters,
            connections: self.connections.read(&self.captures, uptime_s()),
            captures: self.captures.read(&self.connections.leaving()),
            faults: self.maps.faults()?,
            unbound: self.maps.unbound(&slots),
            maps: usage,
            repairs: self.repairs,
        })
    }

    /// Returns how many entries of a map of rules or verdicts are in use, and the bytes that it leads to; `None` for others.
    fn usage_of_rules(&self, name: &str) -> Option<[u64; 2]> {
        self.meters.rules_usage(name).or_else(|| self.admission.usage(name))
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

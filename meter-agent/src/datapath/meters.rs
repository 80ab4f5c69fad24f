//! User-defined meters in the kernel: their rules, their programs and what they counted.
//!
//! A set of rules is a map of its own, which takes the place of the one before in one write: a frame sees one of them as a
//! whole. The programs that ask for rules hang on ports only while there are meters.

mod ledger;
mod tables;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError, PerCpuArray},
};
use meter_ebpf::abi::{
    Counter, PortUuid, UNBOUND_SLOT, map,
    rules::{
        METER_COUNTERS, METERS_PER_BLOCK, MeterBlock, MeterName, MeterRecord, NO_COUNTER, RuleTables,
        VERDICT_BLOCKS, VerdictBlock,
    },
};

pub(super) use self::ledger::METER_NAMES;
use self::{
    ledger::{MeterLedger, Write, total},
    tables::Tables,
};
use super::{
    Attachment, Class, HookKind, MetersError, ReadError, Retry, Target, UserMeter,
    bind::now_ns,
    failure::describe,
    hooks,
    kernel::{KernelDatapath, uptime_s},
    maps::{LiveSlots, take, typed, unreadable},
    namespaces::loaded,
    object::{METER_PROGRAMS, load_programs},
    open::OpenError,
    record::{class_number, class_of, port_id, port_uuid, reported_device},
};
use crate::{
    meter::{DeviceId, FlowStats},
    netdev::NetdevId,
    rules::{MeterSet, SlotPort},
    totals::SavedMeter,
};

/// The meters.
pub(super) struct Meters {
    tables: Tables,
    names: HashMap<MapData, MeterName, MeterRecord>,
    counters: PerCpuArray<MapData, MeterBlock>,
    ledger: MeterLedger,
    /// What this agent has set, and the counters of it.
    set: MeterSet,
    counters_of_set: Vec<u16>,
    /// The ports that its rules were compiled for.
    slots: BTreeMap<u32, SlotPort>,
    /// The devices that ports will belong to when they are attached.
    expected: BTreeMap<PortUuid, Option<DeviceId>>,
    /// Times that rules were compiled and put in force.
    pub(super) puts: u64,
    /// Whether programs count by `set` as it has to be now, and by nothing else.
    in_force: bool,
    /// Whether ports have the programs that ask for rules.
    pub(super) on: bool,
}

impl Meters {
    /// Takes the maps out of the loaded object, with the meters that an earlier agent left counting; `pins` is where maps
    /// are pinned, if they are, and `lost` names those that are made anew.
    pub(super) fn take(
        ebpf: &mut Ebpf,
        pins: Option<&Path>,
        lost: &BTreeSet<&'static str>,
    ) -> Result<Self, OpenError> {
        let names: HashMap<MapData, MeterName, MeterRecord> = typed(|name| take(ebpf, name), map::METERS)?;
        let records = names.iter().collect::<Result<_, _>>().map_err(unreadable(map::METERS))?;
        let ledger = MeterLedger::new(records);
        let on = ledger.active().next().is_some();
        let [rules, verdicts] = [map::RULES, map::VERDICTS].map(|name| match take(ebpf, name)? {
            Map::ArrayOfMaps(data) => Ok(data),
            _ => Err(OpenError::Object(format!("map {name} is not an array of maps"))),
        });
        let mut meters = Self {
            tables: Tables::new(rules?, verdicts?, pins),
            names,
            counters: typed(|name| take(ebpf, name), map::METER_COUNTERS)?,
            ledger,
            set: MeterSet::default(),
            counters_of_set: Vec::new(),
            slots: BTreeMap::new(),
            expected: BTreeMap::new(),
            puts: 0,
            in_force: false,
            on,
        };
        let failed = |error: MetersError| OpenError::Object(error.to_string());
        if lost.contains(map::METERS) {
            // Whose counters the rules name is not known any more.
            meters.tables.clear().map_err(failed)?;
        } else if lost.contains(map::METER_COUNTERS) {
            let mut writes = Vec::new();
            meters.ledger.counters_lost(now_ns(), &mut writes);
            meters.write(&writes).map_err(failed)?;
        }
        Ok(meters)
    }

    /// Reads every meter's total, by name; those of routers as well.
    pub(super) fn read(&self) -> Result<BTreeMap<String, UserMeter>, ReadError> {
        if !self.on {
            return Ok(BTreeMap::new());
        }
        let counters = self.sums()?;
        let stats = self.ledger.active().map(|(name, record)| {
            let Counter { packets, bytes } = total(record, |counter| at(&counters, counter));
            let stats = FlowStats { packets, bytes };
            (text(name), UserMeter { stats, created_ns: record.created_ns })
        });
        Ok(stats.collect())
    }

    /// Returns the bytes of the map to which one of the meters' maps leads.
    pub(super) fn memory_below(&self, name: &str) -> u64 {
        let cpus = aya::util::nr_cpus().unwrap_or(1);
        let bytes = match name {
            map::RULES if self.on => size_of::<RuleTables>(),
            map::VERDICTS if self.on => VERDICT_BLOCKS as usize * size_of::<VerdictBlock>() * cpus,
            _ => 0,
        };
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// Returns whether a rule asks for the direction of a connection.
    pub(super) fn asks_for_flow(&self) -> bool {
        asks_for_flow(&self.set)
    }

    /// Returns how many entries of a map are in use; `None` for maps of others.
    pub(super) fn usage(&self, name: &str) -> Option<u64> {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        match name {
            map::RULES | map::VERDICTS => Some(self.on.into()),
            map::METERS => Some(count(self.ledger.len())),
            map::METER_COUNTERS => Some(u64::from(self.on)),
            _ => None,
        }
    }

    /// Returns every counter, summed over CPUs.
    fn sums(&self) -> Result<Vec<Counter>, ReadError> {
        sums(&self.counters)
    }

    /// Returns every meter's total, those that don't count any more included.
    pub(super) fn saved(&self) -> Result<Vec<SavedMeter>, ReadError> {
        Ok(saved(self.ledger.records(), &self.sums()?))
    }

    /// Takes up what totals an earlier version or boot had; these meters count from zero by now, if at all. Returns how
    /// many there was no room for.
    pub(super) fn carry(&mut self, totals: &[SavedMeter]) -> usize {
        let mut refused = 0;
        for SavedMeter { name, created_ns, counts: [packets, bytes] } in totals {
            let name = meter_name(name);
            let none = MeterRecord { counter: NO_COUNTER, ..MeterRecord::default() };
            let before = self.ledger.records().get(&name).copied().unwrap_or(none);
            let saved = Counter { packets: *packets, bytes: *bytes };
            let record = MeterRecord { saved, created_ns: *created_ns, ..before };
            if self.names.insert(name, record, 0).is_ok() {
                self.ledger.put(name, record);
            } else {
                refused += 1;
            }
        }
        refused
    }

    /// Writes records.
    fn write(&mut self, writes: &[Write]) -> Result<(), MetersError> {
        write(&mut self.names, &mut self.ledger, writes)
    }

    /// Lets programs count by no rules.
    fn stop(&mut self) -> Result<(), MetersError> {
        self.in_force = false;
        self.slots.clear();
        self.tables.clear()
    }
}

impl KernelDatapath {
    /// Lets another set of meters count.
    pub(super) fn change_meters(&mut self, set: &MeterSet) -> Result<(), MetersError> {
        let set = &set.with_routers();
        let names: Vec<MeterName> = set.meters.iter().map(|meter| meter_name(&meter.name)).collect();
        if names.is_empty() {
            self.end_meters()?;
        } else {
            self.count_meters(set, &names)?;
        }
        self.meters.set = set.clone();
        let retired = self.retire_meters(&names);
        self.meters.in_force = retired.is_ok();
        retired
    }

    fn count_meters(&mut self, set: &MeterSet, names: &[MeterName]) -> Result<(), MetersError> {
        load_programs(&mut self.ebpf, &METER_PROGRAMS, &mut self.programs)
            .map_err(|error| MetersError(error.to_string()))?;
        let counted = self.meters.sums().map_err(|error| MetersError(error.to_string()))?;
        let mut ledger = self.meters.ledger.clone();
        let mut writes = Vec::new();
        let counters = ledger
            .claim(names, now_ns(), |counter| at(&counted, counter), &mut writes)
            .map_err(|ledger::Full| MetersError("too many meters at a time".to_owned()))?;
        let slots = self.slots_of(set);
        if self.meters.on && !self.meters.tables.are_held() {
            // What can't be held must not be in use when it is replaced.
            self.end_meters()?;
        }
        if asks_for_flow(set) {
            // What programs note from now on says when it came.
            self.connections.set_clock(uptime_s());
        }
        // A counter has its meter before a program counts there.
        let Meters { tables, names: map, ledger: kept, .. } = &mut self.meters;
        let put = tables.put(set, &counters, &slots, || {
            *kept = ledger;
            write(map, kept, &writes)
        });
        if let Err(error) = put {
            let before: Vec<MeterName> =
                self.meters.set.meters.iter().map(|meter| meter_name(&meter.name)).collect();
            // Without a set of its own, an agent doesn't know which meters the one before left counting.
            if !before.is_empty() {
                self.retire_meters(&before)?;
            }
            return Err(error);
        }
        self.meters.counters_of_set = counters;
        self.meters.slots = slots;
        if !self.meters.on {
            self.meters.on = true;
            self.swap_programs();
        }
        Ok(())
    }

    /// Lets no meter count.
    fn end_meters(&mut self) -> Result<(), MetersError> {
        if self.meters.on {
            self.meters.on = false;
            self.swap_programs();
            // Programs that run still read the rules.
            self.grace.wait().map_err(|error| MetersError(format!("wait for programs: {error}")))?;
        }
        self.meters.stop()
    }

    fn retire_meters(&mut self, names: &[MeterName]) -> Result<(), MetersError> {
        let mut writes = Vec::new();
        self.meters.ledger.retire(names, now_ns(), &mut writes);
        self.meters.write(&writes)
    }

    /// Returns whether programs count by the set that was given last, and by nothing else.
    pub(super) const fn meters_are_in_force(&self) -> bool {
        self.meters.in_force
    }

    /// Gives the ports of these targets that rules name their slots, and compiles the rules for all of them at once.
    pub(super) fn prepare_meters(&mut self, targets: &[Target]) {
        self.meters.expected.clear();
        if !self.meters.in_force || self.meters.set.meters.is_empty() {
            return;
        }
        let named = self.meters.set.names();
        let is_named = |target: &&Target| {
            target.class != Class::Uplink
                && (named.contains(&target.port.0)
                    || target.device.is_some_and(|device| named.contains(&device.0)))
        };
        for target in targets.iter().filter(is_named) {
            let port = port_uuid(target.port);
            let live = LiveSlots::new(&self.maps, &self.grace);
            let reserved = self.ledger.reserve(port, class_number(target.class), now_ns(), &live);
            // Where that can't be, the rules are compiled when the port is bound.
            if live.into_result().is_ok()
                && let Some(reserved) = reserved
                && self.write(target, &reserved.writes).is_ok()
            {
                self.ledger.take_up(&reserved);
            }
            // One that has a netdev counts for the device that it belongs to until it is attached anew.
            if self.ledger.records().get(&port).is_some_and(|record| record.ifindex == 0) {
                self.meters.expected.insert(port, target.device);
            }
        }
        self.meter_ports_changed();
    }

    /// What the rules expected of a port has come, or something else.
    pub(super) fn meters_expect_no_more(&mut self, target: &Target) {
        self.meters.expected.remove(&port_uuid(target.port));
    }

    /// Returns how often rules were compiled since, for ports that changed.
    #[must_use]
    pub const fn rules_compiled(&self) -> u64 {
        self.meters.puts
    }

    /// Compiles the rules anew where they name a port that has got another slot, or another device. Where that fails no
    /// rules are in force: those from before would count a port for another.
    pub(super) fn meter_ports_changed(&mut self) {
        if !self.meters.in_force || self.meters.set.meters.is_empty() {
            return;
        }
        let slots = self.slots_of(&self.meters.set);
        if slots == self.meters.slots {
            return;
        }
        let Meters { tables, set, counters_of_set, .. } = &mut self.meters;
        match tables.put(set, counters_of_set, &slots, || Ok(())) {
            Ok(()) => {
                self.meters.slots = slots;
                self.meters.puts += 1;
            }
            Err(error) => {
                tracing::error!(error = %error, "a port of the user-defined meters has changed, and no meter counts until they are set again");
                if let Err(error) = self.meters.stop() {
                    tracing::error!(error = %error, "taking the programs of meters away instead");
                    self.meters.on = false;
                    self.swap_programs();
                }
            }
        }
    }

    /// Returns the ports with a slot that a set's rules tell from others.
    fn slots_of(&self, set: &MeterSet) -> BTreeMap<u32, SlotPort> {
        let named = set.names();
        let ports = self
            .ledger
            .records()
            .iter()
            .filter(|(_, record)| record.slot != UNBOUND_SLOT && class_of(record.class) != Class::Uplink);
        ports
            .map(|(uuid, record)| {
                let expected = self.meters.expected.get(uuid).copied();
                let device = expected.unwrap_or_else(|| reported_device(record.device));
                (record.slot, SlotPort { port: port_id(*uuid), device })
            })
            .filter(|(_, port)| {
                named.contains(&port.port.0) || port.device.is_some_and(|device| named.contains(&device.0))
            })
            .collect()
    }

    /// Puts the programs that ports now need into the place of those that they have, each atomically.
    fn swap_programs(&mut self) {
        let attached: BTreeSet<NetdevId> = self.attached.keys().copied().collect();
        attached.into_iter().for_each(|id| self.swap_programs_of(id));
    }

    /// The same for one netdev. One whose programs can't be changed is taken for lost, and attached anew later.
    pub(super) fn swap_programs_of(&mut self, id: NetdevId) {
        let Some(attachment) = self.attached.get(&id).filter(|attachment| !attachment.lost) else {
            return;
        };
        if !self.namespaces.is_known(id.namespace) {
            // It is attached anew, with the programs that it needs then, once its namespace is followed.
            return;
        }
        let attachment = attachment.clone();
        let target = &attachment.target;
        let changed = self.prepare_programs(target).and_then(|()| {
            let swapped = self.within(target, |this| {
                let site = hooks::Site {
                    links: &this.links,
                    meters: this.meters.on,
                    captured: &this.captures.wanted().ports,
                };
                let mut loaded = loaded(&mut this.ebpf, &this.namespaces, target);
                hooks::both(target, site).into_iter().try_for_each(|hook| {
                    match attachment.kind(hook.direction) {
                        // A program of XDP asks for no rules.
                        HookKind::Xdp => Ok(()),
                        kind => hook.attach(&mut loaded, kind),
                    }
                })
            })?;
            // A namespace that has gone took its hooks along.
            swapped.unwrap_or(Ok(()))
        });
        match changed {
            Ok(()) => {}
            Err(error) if error.retry == Retry::Gone => {}
            Err(error) => {
                tracing::error!(error = %error, "programs not changed");
                self.attached.insert(id, Attachment { lost: true, ..attachment });
            }
        }
    }
}

/// Returns every counter, summed over CPUs.
fn sums(counters: &PerCpuArray<MapData, MeterBlock>) -> Result<Vec<Counter>, ReadError> {
    let mut sums = Vec::new();
    for block in 0..METER_COUNTERS / METERS_PER_BLOCK {
        let values = counters.get(&block, 0).map_err(unreadable(map::METER_COUNTERS))?;
        let mut of_block = vec![Counter::default(); METERS_PER_BLOCK as usize];
        for value in values.iter() {
            of_block.iter_mut().zip(&value.counters).for_each(|(sum, counter)| sum.add(counter));
        }
        sums.append(&mut of_block);
    }
    Ok(sums)
}

fn saved(records: &BTreeMap<MeterName, MeterRecord>, sums: &[Counter]) -> Vec<SavedMeter> {
    let saved = records.iter().map(|(name, record)| {
        let Counter { packets, bytes } = total(record, |counter| at(sums, counter));
        SavedMeter { name: text(name), created_ns: record.created_ns, counts: [packets, bytes] }
    });
    saved.collect()
}

/// Reads the totals of an earlier version's maps.
pub(super) fn earlier(
    mut from: impl FnMut(&'static str) -> Result<Map, OpenError>,
) -> Result<Vec<SavedMeter>, OpenError> {
    let names: HashMap<MapData, MeterName, MeterRecord> = typed(&mut from, map::METERS)?;
    let records: BTreeMap<_, _> = names.iter().collect::<Result<_, _>>().map_err(unreadable(map::METERS))?;
    let sums = sums(&typed(&mut from, map::METER_COUNTERS)?)?;
    Ok(saved(&records, &sums))
}

/// Writes records that a ledger has already.
fn write(
    names: &mut HashMap<MapData, MeterName, MeterRecord>,
    ledger: &mut MeterLedger,
    writes: &[Write],
) -> Result<(), MetersError> {
    let failed = |error: MapError| write_error(map::METERS, &error);
    let written = writes.iter().try_for_each(|(name, record)| match record {
        Some(record) => names.insert(name, record, 0).map_err(failed),
        None => names.remove(name).map_err(failed),
    });
    if written.is_err() {
        // What is written down is what the next agent goes by, and so has this one to.
        *ledger = MeterLedger::new(names.iter().collect::<Result<_, _>>().map_err(failed)?);
    }
    written
}

fn asks_for_flow(set: &MeterSet) -> bool {
    set.meters.iter().flat_map(|meter| &meter.rules).any(|rule| rule.flow.is_some())
}

fn at(counters: &[Counter], counter: u32) -> Counter {
    usize::try_from(counter).ok().and_then(|counter| counters.get(counter)).copied().unwrap_or_default()
}

fn write_error(map: &'static str, error: &MapError) -> MetersError {
    MetersError(format!("write map {map}: {}", describe(error)))
}

/// Returns the key of a meter. A name has at most 255 bytes, and none of them is zero.
fn meter_name(name: &str) -> MeterName {
    let mut key = MeterName::default();
    key.bytes.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
    key
}

fn text(name: &MeterName) -> String {
    let length = name.bytes.iter().position(|byte| *byte == 0).unwrap_or(name.bytes.len());
    String::from_utf8_lossy(&name.bytes[..length]).into_owned()
}

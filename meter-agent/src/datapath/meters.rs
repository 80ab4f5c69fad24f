//! User-defined meters in the kernel: their rules, their programs and what they counted.
//!
//! A set of rules is a map of its own, which takes the place of the one before in one write: a frame sees one of them as a
//! whole. The programs that ask for rules hang on ports only while there are meters.

mod ledger;
mod swap;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError, PerCpuArray},
};
use meter_ebpf::abi::{
    Counter, PortUuid, map,
    rules::{METER_COUNTERS, METERS_PER_BLOCK, MeterBlock, MeterName, MeterRecord, NO_COUNTER},
};

pub(super) use self::ledger::METER_NAMES;
use self::ledger::{MeterLedger, Write, total};
use super::{
    MetersError, ReadError, UserMeter,
    bind::now_ns,
    maps::{take, typed, unreadable},
    open::OpenError,
    tables::{Tables, write_error},
};
use crate::{
    meter::{DeviceId, FlowStats},
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
        let mut meters = Self {
            tables: Tables::take(ebpf, [map::RULES, map::VERDICTS], pins)?,
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

    /// Returns how many entries of a map of rules are in use, and the bytes that it leads to; `None` for other maps.
    pub(super) fn rules_usage(&self, name: &str) -> Option<[u64; 2]> {
        self.tables.usage(name)
    }

    /// Returns whether a rule asks for the direction of a connection.
    pub(super) fn asks_for_flow(&self) -> bool {
        asks_for_flow(&self.set)
    }

    /// Returns how many entries of a map are in use; `None` for maps of others.
    pub(super) fn usage(&self, name: &str) -> Option<u64> {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        match name {
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

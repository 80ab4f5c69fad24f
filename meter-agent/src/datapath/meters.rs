//! User-defined meters in the kernel: their rules, their programs and what they counted.
//!
//! A set of rules is a map of its own, which takes the place of the one before in one write: a frame sees one of them as a
//! whole. The programs that ask for rules hang on ports only while there are meters.

mod ledger;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsFd as _,
};

use aya::{
    Ebpf,
    maps::{Array, ArrayOfMaps, HashMap, Map, MapData, MapError, PerCpuArray},
};
use meter_ebpf::abi::{
    Counter, UNBOUND_SLOT, map,
    rules::{
        METER_COUNTERS, METERS_PER_BLOCK, MeterBlock, MeterName, MeterRecord, RuleTables, VERDICT_BLOCKS,
        VerdictBlock,
    },
};

pub(super) use self::ledger::METER_NAMES;
use self::ledger::{MeterLedger, Write, total};
use super::{
    Attachment, Class, HookKind, MetersError, ReadError, Retry,
    bind::now_ns,
    failure::describe,
    hooks,
    kernel::{KernelDatapath, METER_PROGRAMS, load_programs},
    maps::{take, typed, unreadable},
    namespaces::loaded,
    open::OpenError,
    record::{class_of, port_id, reported_device},
    sys,
};
use crate::{
    meter::FlowStats,
    netdev::NetdevId,
    rules::{MeterSet, SlotPort, compile},
};

/// The meters.
pub(super) struct Meters {
    rules: Map,
    verdicts: Map,
    names: HashMap<MapData, MeterName, MeterRecord>,
    counters: PerCpuArray<MapData, MeterBlock>,
    ledger: MeterLedger,
    /// What this agent has set, and the counters of it.
    set: MeterSet,
    counters_of_set: Vec<u16>,
    /// The ports that its rules were compiled for.
    slots: BTreeMap<u32, SlotPort>,
    /// The number of the last rules.
    generation: u64,
    /// The maps to which `rules` and `verdicts` lead, once this agent has made them. Held until others are in their place
    /// or none: before Linux 5.10.214, 6.1.75 and 6.6.14 one that nobody holds is freed under programs that still read it
    /// (CVE-2023-52447).
    current: Option<Array<MapData, RuleTables>>,
    remembered: Option<PerCpuArray<MapData, VerdictBlock>>,
    /// Whether ports have the programs that ask for rules.
    pub(super) on: bool,
}

impl Meters {
    /// Takes the maps out of the loaded object, with the meters that an earlier agent left counting.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, OpenError> {
        let names: HashMap<MapData, MeterName, MeterRecord> = typed(ebpf, map::METERS)?;
        let records = names.iter().collect::<Result<_, _>>().map_err(unreadable(map::METERS))?;
        let ledger = MeterLedger::new(records);
        let on = ledger.active().next().is_some();
        Ok(Self {
            rules: take(ebpf, map::RULES)?,
            verdicts: take(ebpf, map::VERDICTS)?,
            names,
            counters: typed(ebpf, map::METER_COUNTERS)?,
            ledger,
            set: MeterSet::default(),
            counters_of_set: Vec::new(),
            slots: BTreeMap::new(),
            generation: 0,
            current: None,
            remembered: None,
            on,
        })
    }

    /// Reads every meter's total, by name; those of routers as well.
    pub(super) fn read(&self) -> Result<BTreeMap<String, FlowStats>, ReadError> {
        if !self.on {
            return Ok(BTreeMap::new());
        }
        let counters = self.sums()?;
        let stats = self.ledger.active().map(|(name, record)| {
            let Counter { packets, bytes } = total(record, |counter| at(&counters, counter));
            (text(name), FlowStats { packets, bytes })
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
        self.set.meters.iter().flat_map(|meter| &meter.rules).any(|rule| rule.flow.is_some())
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
        let mut sums = Vec::new();
        for block in 0..METER_COUNTERS / METERS_PER_BLOCK {
            let values = self.counters.get(&block, 0).map_err(unreadable(map::METER_COUNTERS))?;
            let mut of_block = vec![Counter::default(); METERS_PER_BLOCK as usize];
            for value in values.iter() {
                of_block.iter_mut().zip(&value.counters).for_each(|(sum, counter)| sum.add(counter));
            }
            sums.append(&mut of_block);
        }
        Ok(sums)
    }

    /// Writes records.
    fn write(&mut self, writes: &[Write]) -> Result<(), MetersError> {
        let failed = |error: MapError| write_error(map::METERS, &error);
        let written = writes.iter().try_for_each(|(name, record)| match record {
            Some(record) => self.names.insert(name, record, 0).map_err(failed),
            None => self.names.remove(name).map_err(failed),
        });
        if written.is_err() {
            // What is written down is what the next agent goes by, and so has this one to.
            self.ledger = MeterLedger::new(self.names.iter().collect::<Result<_, _>>().map_err(failed)?);
        }
        written
    }

    /// Compiles rules, and lets programs count by them from now on. Those before are out of use when this returns.
    fn put(
        &mut self,
        set: &MeterSet,
        counters: &[u16],
        slots: &BTreeMap<u32, SlotPort>,
        before: impl FnOnce(&mut Self) -> Result<(), MetersError>,
    ) -> Result<(), MetersError> {
        // Never one that a verdict of an earlier agent has.
        let generation = now_ns().max(self.generation + 1);
        let tables =
            compile(set, counters, slots, generation).map_err(|error| MetersError(error.to_string()))?;
        let failed = |error: MapError| write_error(map::RULES, &error);
        let mut rules: Array<MapData, RuleTables> = Array::create(1, 0).map_err(failed)?;
        let tables: &RuleTables = &tables[0];
        rules.set(0, tables, 0).map_err(failed)?;
        if self.remembered.is_none() {
            let failed = |error: MapError| write_error(map::VERDICTS, &error);
            let verdicts = PerCpuArray::<MapData, VerdictBlock>::create(VERDICT_BLOCKS, 0).map_err(failed)?;
            let mut outer: ArrayOfMaps<_, PerCpuArray<MapData, VerdictBlock>> =
                (&mut self.verdicts).try_into().map_err(failed)?;
            outer.set(0, &verdicts, 0).map_err(failed)?;
            self.remembered = Some(verdicts);
        }
        before(self)?;
        let mut outer: ArrayOfMaps<_, Array<MapData, RuleTables>> =
            (&mut self.rules).try_into().map_err(failed)?;
        outer.set(0, &rules, 0).map_err(failed)?;
        self.current = Some(rules);
        self.generation = generation;
        Ok(())
    }

    /// Gives back the memory of the rules and of the verdicts.
    fn clear(&mut self) {
        for (name, outer) in [(map::RULES, &self.rules), (map::VERDICTS, &self.verdicts)] {
            let Map::ArrayOfMaps(outer) = outer else { continue };
            match sys::delete_entry(outer.fd().as_fd(), 0) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => tracing::warn!(map = name, error = %error, "memory not given back"),
            }
        }
        self.current = None;
        self.remembered = None;
        self.slots.clear();
    }
}

impl KernelDatapath {
    /// Lets another set of meters count.
    pub(super) fn change_meters(&mut self, set: &MeterSet) -> Result<(), MetersError> {
        let set = &set.with_routers();
        let names: Vec<MeterName> = set.meters.iter().map(|meter| meter_name(&meter.name)).collect();
        if names.is_empty() {
            if self.meters.on {
                self.meters.on = false;
                self.swap_programs();
                self.meters.clear();
            }
            self.meters.set = set.clone();
            return self.retire_meters(&names);
        }
        load_programs(&mut self.ebpf, &METER_PROGRAMS, &mut self.programs)
            .map_err(|error| MetersError(error.to_string()))?;
        let counted = self.meters.sums().map_err(|error| MetersError(error.to_string()))?;
        let mut ledger = self.meters.ledger.clone();
        let mut writes = Vec::new();
        let counters = ledger
            .claim(&names, |counter| at(&counted, counter), &mut writes)
            .map_err(|ledger::Full| MetersError("too many meters at a time".to_owned()))?;
        let slots = self.slots_of(set);
        // A counter has its meter before a program counts there.
        let put = self.meters.put(set, &counters, &slots, |meters| {
            meters.ledger = ledger;
            meters.write(&writes)
        });
        if let Err(error) = put {
            let before: Vec<MeterName> =
                self.meters.set.meters.iter().map(|meter| meter_name(&meter.name)).collect();
            // Without a set of its own, an agent doesn't know which meters the one before left counting.
            if self.meters.remembered.is_some() && !before.is_empty() {
                self.retire_meters(&before)?;
            }
            return Err(error);
        }
        self.meters.set = set.clone();
        self.meters.counters_of_set = counters;
        self.meters.slots = slots;
        if !self.meters.on {
            self.meters.on = true;
            self.swap_programs();
        }
        self.retire_meters(&names)
    }

    fn retire_meters(&mut self, names: &[MeterName]) -> Result<(), MetersError> {
        let mut writes = Vec::new();
        self.meters.ledger.retire(names, &mut writes);
        self.meters.write(&writes)
    }

    /// Compiles the rules anew where they name a port that has got another slot, or another device.
    pub(super) fn meter_ports_changed(&mut self) {
        if !self.meters.on || self.meters.set.meters.is_empty() {
            return;
        }
        let slots = self.slots_of(&self.meters.set);
        if slots == self.meters.slots {
            return;
        }
        let set = self.meters.set.clone();
        let counters = self.meters.counters_of_set.clone();
        match self.meters.put(&set, &counters, &slots, |_| Ok(())) {
            Ok(()) => self.meters.slots = slots,
            Err(error) => {
                tracing::error!(error = %error, "user-defined meters do not know a port");
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
            .filter(|(_, record)| record.slot != UNBOUND_SLOT && class_of(record.class) == Class::Port);
        ports
            .map(|(uuid, record)| {
                (record.slot, SlotPort { port: port_id(*uuid), device: reported_device(record.device) })
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
        let attachment = attachment.clone();
        let target = &attachment.target;
        let changed = self.prepare(target).and_then(|()| {
            let swapped = self.within(target, |this| {
                let site = hooks::Site { links: &this.links, meters: this.meters.on };
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

//! Rules of user-defined meters, as many as a row wants, and rules of connections.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    maps::{Array, ArrayOfMaps, MapData, PerCpuArray},
};
use meter_agent::rules::{
    Condition, Meter, MeterSet, PortRange, Prefix, Tables, Test, compile, compile_everywhere,
};
use meter_ebpf::abi::{
    map,
    rules::{RuleTables, VERDICT_BLOCKS, VerdictBlock},
};

/// How many rules the rows have.
pub(crate) const RULES: [u32; 5] = [0, 1, 10, 100, 1_000];
/// Sources of the rows in which no CPU remembers a verdict: many more than it could remember.
pub(crate) const SOURCES: u32 = 60_000;

/// Makes rules of the usual kind, each of a meter of its own: a protocol, a prefix of sources and one of destinations, and
/// ports. The frames of the bench match one of ten of them at most.
fn set(rules: u32) -> MeterSet {
    let rule = |number: u32| {
        let [.., high, low] = number.to_be_bytes();
        let prefix = |address: [u8; 4], length| Test {
            value: Some(Prefix { address: IpAddr::from(address), length }),
            inverted: false,
        };
        let port = u16::try_from(number).unwrap_or_default();
        Condition {
            src: prefix([10, 1, high * 64 + low / 4, low << 6], 26),
            dst: prefix([10, 0, high, low], if number.is_multiple_of(10) { 8 } else { 32 }),
            proto: Test { value: Some(6), inverted: false },
            dst_port: Test {
                value: Some(PortRange { start: Some(port), end: Some(port.saturating_add(100)) }),
                inverted: !number.is_multiple_of(10),
            },
            ..Condition::default()
        }
    };
    let meter = |number: u32| Meter { name: number.to_string(), rules: vec![rule(number)] };
    MeterSet { meters: (0..rules).map(meter).collect(), ..MeterSet::default() }
}

/// Lets the programs ask ten rules which connections are counted, of which no frame of the bench matches one.
pub(crate) fn refuse(meter: &mut Ebpf) -> Result<()> {
    let mut set = set(10);
    let rules = set.meters.iter_mut().flat_map(|meter| &mut meter.rules);
    rules.for_each(|rule| rule.proto.value = Some(17));
    let compiled = compile_everywhere(&set, &BTreeMap::new(), 1)?;
    put(meter, map::CAPTURE_RULES, &tables(&compiled)?)?;
    remember(meter, map::CAPTURE_VERDICTS)
}

/// Makes a map of compiled rules.
fn tables(compiled: &Tables) -> Result<Array<MapData, RuleTables>> {
    let tables: &RuleTables = compiled.first().context("tables")?;
    let mut map: Array<MapData, RuleTables> = Array::create(1, 0)?;
    map.set(0, tables, 0)?;
    Ok(map)
}

/// Gives the object an empty memory of verdicts.
fn remember(meter: &mut Ebpf, name: &'static str) -> Result<()> {
    let mut outer: ArrayOfMaps<&mut MapData, PerCpuArray<MapData, VerdictBlock>> =
        meter.map_mut(name).context(name)?.try_into()?;
    Ok(outer.set(0, &PerCpuArray::create(VERDICT_BLOCKS, 0)?, 0)?)
}

/// Lets the programs ask compiled rules.
fn put(meter: &mut Ebpf, name: &'static str, tables: &Array<MapData, RuleTables>) -> Result<()> {
    let mut outer: ArrayOfMaps<&mut MapData, Array<MapData, RuleTables>> =
        meter.map_mut(name).context(name)?.try_into()?;
    Ok(outer.set(0, tables, 0)?)
}

/// Compiled rules, by their number.
pub(crate) struct Sets(BTreeMap<u32, Array<MapData, RuleTables>>);

impl Sets {
    /// Compiles all sets, and gives the object an empty memory of verdicts.
    pub(crate) fn make(meter: &mut Ebpf) -> Result<Self> {
        remember(meter, map::VERDICTS)?;
        let mut sets = BTreeMap::new();
        for rules in RULES {
            let counters: Vec<u16> = (0..u16::try_from(rules)?).collect();
            let compiled = compile(&set(rules), &counters, &BTreeMap::new(), u64::from(rules) + 1)?;
            sets.insert(rules, tables(&compiled)?);
        }
        Ok(Self(sets))
    }

    /// Lets the programs ask so many rules.
    pub(crate) fn put(&self, meter: &mut Ebpf, rules: u32) -> Result<()> {
        put(meter, map::RULES, self.0.get(&rules).context("a number of rules that no row has")?)
    }
}

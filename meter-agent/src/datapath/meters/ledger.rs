//! Which user-defined meter has which counter, and what each one's total is.
//!
//! Pure, as the ports' [`ledger`](super::super::ledger): it computes the records; what writes them to the pinned map
//! writes one at a time, and each is right by itself.

use std::collections::{BTreeMap, BTreeSet};

use meter_ebpf::abi::{
    Counter,
    rules::{METER_COUNTERS, MeterName, MeterRecord, NO_COUNTER},
};

/// Meters that are remembered, those that have been removed included.
pub(in super::super) const METER_NAMES: u32 = 4_096;

/// All records, as the pinned map holds them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct MeterLedger {
    records: BTreeMap<MeterName, MeterRecord>,
}

/// A record to write, in this order; without one, a record to remove.
pub(super) type Write = (MeterName, Option<MeterRecord>);

/// There is no counter or no record for a meter. Not so with a set of at most [`MAX_RULES`] meters, unless agents were
/// killed in the middle of many changes.
///
/// [`MAX_RULES`]: meter_ebpf::abi::rules::MAX_RULES
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

impl MeterLedger {
    /// Takes up what the map holds.
    pub(super) const fn new(records: BTreeMap<MeterName, MeterRecord>) -> Self {
        Self { records }
    }

    /// Returns how many meters are remembered.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// Returns every record.
    pub(super) const fn records(&self) -> &BTreeMap<MeterName, MeterRecord> {
        &self.records
    }

    /// Takes up a record that is written.
    pub(super) fn put(&mut self, name: MeterName, record: MeterRecord) {
        self.records.insert(name, record);
    }

    /// Returns the meters that programs may count.
    pub(super) fn active(&self) -> impl Iterator<Item = (&MeterName, &MeterRecord)> {
        self.records.iter().filter(|(_, record)| record.active != 0)
    }

    /// Gives each meter a counter, before programs count it; returns the counters in the order of the names.
    ///
    /// A meter that is known keeps its total. One that programs may count keeps its counter, whether it is among the names
    /// or not, until it is retired; `counted` tells what a counter holds now.
    pub(super) fn claim(
        &mut self,
        names: &[MeterName],
        now_ns: u64,
        counted: impl Fn(u32) -> Counter,
        writes: &mut Vec<Write>,
    ) -> Result<Vec<u16>, Full> {
        let wanted: BTreeSet<&MeterName> = names.iter().collect();
        let mut free: BTreeSet<u32> = (0..METER_COUNTERS).collect();
        for record in self.records.values() {
            free.remove(&record.counter);
        }
        let mut counters = Vec::new();
        for name in names {
            let mut record = match self.records.get(name) {
                Some(record) => *record,
                None => {
                    self.make_room(&wanted, &mut free, writes)?;
                    MeterRecord { counter: NO_COUNTER, created_ns: now_ns, ..MeterRecord::default() }
                }
            };
            if record.counter == NO_COUNTER {
                record.counter = match free.pop_first() {
                    Some(counter) => counter,
                    None => self.take(&wanted, &counted, writes)?,
                };
                // The total stays what it was: the counter may hold another meter's past.
                record.saved.sub(&counted(record.counter));
            }
            record.active = 1;
            self.write(*name, record, writes);
            counters.push(u16::try_from(record.counter).map_err(|_| Full)?);
        }
        Ok(counters)
    }

    /// Lets go of the meters that programs don't count any more: all but these.
    pub(super) fn retire(&mut self, names: &[MeterName], now_ns: u64, writes: &mut Vec<Write>) {
        let kept: BTreeSet<&MeterName> = names.iter().collect();
        let gone: Vec<MeterName> =
            self.active().map(|(name, _)| *name).filter(|name| !kept.contains(name)).collect();
        for name in gone {
            let record = self.records.get(&name).copied().unwrap_or_default();
            self.write(name, MeterRecord { active: 0, retired_ns: now_ns, ..record }, writes);
        }
    }

    /// Lets every meter with a counter begin anew at this time, since what the counters held is lost. What is saved of one
    /// without is its whole total, and stays.
    pub(super) fn counters_lost(&mut self, now_ns: u64, writes: &mut Vec<Write>) {
        for (name, record) in self.records.iter_mut().filter(|(_, record)| record.counter != NO_COUNTER) {
            *record = MeterRecord { saved: Counter::default(), created_ns: now_ns, ..*record };
            writes.push((*name, Some(*record)));
        }
    }

    fn write(&mut self, name: MeterName, record: MeterRecord, writes: &mut Vec<Write>) {
        if self.records.insert(name, record) != Some(record) {
            writes.push((name, Some(record)));
        }
    }

    /// Returns the meter that has not been counted for the longest time, of those for which this holds.
    fn longest_retired(
        &self,
        holds: impl Fn(&MeterName, &MeterRecord) -> bool,
    ) -> Option<(MeterName, MeterRecord)> {
        let idle = self.records.iter().filter(|(name, record)| record.active == 0 && holds(name, record));
        idle.min_by_key(|(_, record)| record.retired_ns).map(|(name, record)| (*name, *record))
    }

    /// Takes the counter of a meter that is not counted and not wanted; it keeps its total.
    fn take(
        &mut self,
        wanted: &BTreeSet<&MeterName>,
        counted: impl Fn(u32) -> Counter,
        writes: &mut Vec<Write>,
    ) -> Result<u32, Full> {
        let idle =
            self.longest_retired(|name, record| record.counter != NO_COUNTER && !wanted.contains(name));
        let (name, record) = idle.ok_or(Full)?;
        let saved = total(&record, &counted);
        self.write(name, MeterRecord { counter: NO_COUNTER, saved, ..record }, writes);
        Ok(record.counter)
    }

    /// Forgets a meter that is not counted and not wanted, where there is no room for another one.
    fn make_room(
        &mut self,
        wanted: &BTreeSet<&MeterName>,
        free: &mut BTreeSet<u32>,
        writes: &mut Vec<Write>,
    ) -> Result<(), Full> {
        if self.records.len() < METER_NAMES as usize {
            return Ok(());
        }
        let (name, _) = self.longest_retired(|name, _| !wanted.contains(name)).ok_or(Full)?;
        if let Some(record) = self.records.remove(&name)
            && record.counter != NO_COUNTER
        {
            free.insert(record.counter);
        }
        writes.push((name, None));
        Ok(())
    }
}

/// Returns the total of a meter.
pub(super) fn total(record: &MeterRecord, counted: impl Fn(u32) -> Counter) -> Counter {
    let mut total = record.saved;
    if record.counter != NO_COUNTER {
        total.add(&counted(record.counter));
    }
    total
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn name(number: usize) -> MeterName {
        let mut name = MeterName::default();
        name.bytes[..8].copy_from_slice(&number.to_be_bytes());
        name
    }

    fn names(numbers: std::ops::Range<usize>) -> Vec<MeterName> {
        numbers.map(name).collect()
    }

    /// Swaps to a set and lets each of its meters count one packet of its number's bytes.
    struct World {
        ledger: MeterLedger,
        counters: RefCell<Vec<Counter>>,
        /// Swaps so far, which is the time.
        swaps: u64,
    }

    impl World {
        fn swap(&mut self, numbers: std::ops::Range<usize>) {
            let names = names(numbers.clone());
            let mut writes = Vec::new();
            let counted = |counter: u32| self.counters.borrow()[counter as usize];
            self.swaps += 1;
            let counters = self.ledger.claim(&names, self.swaps, counted, &mut writes).unwrap();
            let distinct: BTreeSet<&u16> = counters.iter().collect();
            assert_eq!(distinct.len(), counters.len());
            self.ledger.retire(&names, self.swaps, &mut writes);
            assert!(self.ledger.active().map(|(name, _)| *name).eq(names.iter().copied()));
            for (number, counter) in numbers.zip(counters) {
                let bytes = number.try_into().unwrap();
                self.counters.borrow_mut()[usize::from(counter)].add(&Counter { packets: 1, bytes });
            }
        }

        fn total(&self, number: usize) -> Option<Counter> {
            let record = self.ledger.records.get(&name(number))?;
            Some(total(record, |counter| self.counters.borrow()[counter as usize]))
        }
    }

    #[test]
    fn totals_go_on_whatever_counters_the_meters_have() {
        let counters = RefCell::new(vec![Counter::default(); METER_COUNTERS as usize]);
        let mut world = World { ledger: MeterLedger::default(), counters, swaps: 0 };
        // More names than counters: each set takes the counters of those that are not counted.
        for start in [0, 1_000, 500, 2_000, 0, 2_500] {
            world.swap(start..start + 1_000);
        }
        for (number, packets) in [(0, 2), (499, 2), (500, 3), (1_400, 2), (1_999, 1), (2_600, 2), (3_400, 1)]
        {
            let bytes = packets * u64::try_from(number).unwrap();
            assert_eq!(world.total(number), Some(Counter { packets, bytes }), "{number}");
        }
        assert_eq!(world.ledger.len(), 3_500);
        // Names are remembered up to a number, and those that are counted in any case.
        world.swap(3_500..4_500);
        assert_eq!(world.ledger.len(), METER_NAMES as usize);
        assert_eq!(world.total(3_500), Some(Counter { packets: 1, bytes: 3_500 }));
        assert_eq!(world.total(2_600), Some(Counter { packets: 2, bytes: 5_200 }));
        // Those that were forgotten had not been counted for the longest time.
        assert_eq!((world.total(1_500), world.total(1_903)), (None, None));
        assert_eq!(world.total(0), Some(Counter { packets: 2, bytes: 0 }));
        assert_eq!(world.total(1_904), Some(Counter { packets: 1, bytes: 1_904 }));
    }

    #[test]
    fn meters_whose_counters_are_lost_begin_anew_and_those_without_one_stay() {
        let saved = Counter { packets: 3, bytes: 300 };
        let mut minus = Counter::default();
        minus.sub(&Counter { packets: 9, bytes: 900 });
        let kept = MeterRecord { counter: NO_COUNTER, saved, created_ns: 1, ..MeterRecord::default() };
        // Its counter held more than it when it got it.
        let lost =
            MeterRecord { counter: 4, active: 1, saved: minus, created_ns: 2, ..MeterRecord::default() };
        let mut ledger = MeterLedger::new([(name(1), kept), (name(2), lost)].into());
        let mut writes = Vec::new();
        ledger.counters_lost(7, &mut writes);
        let anew = MeterRecord { saved: Counter::default(), created_ns: 7, ..lost };
        assert_eq!(writes, [(name(2), Some(anew))]);
        assert_eq!(ledger.records, [(name(1), kept), (name(2), anew)].into());
        assert_eq!(total(&anew, |_| Counter::default()), Counter::default());
    }

    #[test]
    fn a_set_that_changes_nothing_writes_nothing() {
        let mut ledger = MeterLedger::default();
        let mut writes = Vec::new();
        let first = ledger.claim(&names(0..3), 1, |_| Counter::default(), &mut writes).unwrap();
        assert_eq!((first.as_slice(), writes.len()), (&[0, 1, 2][..], 3));
        writes.clear();
        let again = ledger.claim(&names(0..3), 1, |_| Counter::default(), &mut writes).unwrap();
        ledger.retire(&names(0..3), 2, &mut writes);
        assert_eq!((again, writes), (first, Vec::new()));
    }
}

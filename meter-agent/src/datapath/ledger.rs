//! Who owns which slot, and what each port's and device's total is.
//!
//! Pure: it computes the records; [`super::kernel`] writes them to the pinned maps, one at a time. Each record is
//! right by itself, so that an agent that is killed between two writes changes no total.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use meter_ebpf::abi::{
    Counter, Direction, MAX_UPLINKS, Member, MemberKey, PortRecord, PortUuid, SlotCounters, SlotRef,
    UNBOUND_SLOT,
};

/// Something that a port needs has run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// Every slot is in use by a netdev.
    Slots,
    /// There is no room for another port's record.
    Ports,
    /// There is no room for another port in a device.
    Members,
    /// Every index of an uplink is taken.
    Uplinks,
}

/// A port that is to be carried by a netdev.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claim {
    pub(crate) port: PortUuid,
    pub(crate) class: u32,
    pub(crate) ifindex: u32,
    pub(crate) device: PortUuid,
    pub(crate) underlay: bool,
}

/// A record to write, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    Port(PortUuid, PortRecord),
    Member(MemberKey, Member),
}

/// What the maps hold: slots' counters, summed over CPUs.
pub(crate) trait Slots {
    /// Returns the counters of a slot, now.
    fn counters(&self, slot: u32) -> SlotCounters;
}

/// How many of each thing fit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Capacity {
    /// Slots, [`UNBOUND_SLOT`] included.
    pub(crate) slots: u32,
    pub(crate) ports: usize,
    pub(crate) members: usize,
}

/// All records, as the pinned maps hold them.
#[derive(Debug)]
pub(crate) struct Ledger {
    records: BTreeMap<PortUuid, PortRecord>,
    members: BTreeMap<MemberKey, Member>,
    capacity: Capacity,
    free: BTreeSet<u32>,
    /// Ports with a slot and no netdev, the one that lost its netdev first in front.
    idle: VecDeque<PortUuid>,
}

impl Ledger {
    /// Takes up what the maps hold.
    pub(crate) fn new(
        records: BTreeMap<PortUuid, PortRecord>,
        members: BTreeMap<MemberKey, Member>,
        capacity: Capacity,
    ) -> Self {
        let mut free: BTreeSet<u32> = (UNBOUND_SLOT + 1..capacity.slots).collect();
        for record in records.values() {
            free.remove(&record.slot);
        }
        let idle = records
            .iter()
            .filter(|(_, record)| record.ifindex == 0 && record.slot != UNBOUND_SLOT)
            .map(|(port, _)| *port)
            .collect();
        Self { records, members, capacity, free, idle }
    }

    /// Returns the record of every port.
    pub(crate) fn records(&self) -> &BTreeMap<PortUuid, PortRecord> {
        &self.records
    }

    /// Returns how many ports are or were in a device.
    pub(crate) fn members(&self) -> usize {
        self.members.len()
    }

    /// Returns how many slots are in use.
    pub(crate) fn slots_used(&self) -> usize {
        self.records.values().filter(|record| record.slot != UNBOUND_SLOT).count()
    }

    /// Returns the highest slot in use.
    pub(crate) fn last_slot(&self) -> u32 {
        self.records.values().map(|record| record.slot).max().unwrap_or(UNBOUND_SLOT)
    }

    /// Gives the port a slot, its device and its netdev. The records are changed only if everything fits.
    pub(crate) fn claim(
        &mut self,
        claim: &Claim,
        now_ns: u64,
        slots: &impl Slots,
    ) -> Result<(SlotRef, Vec<Write>), Full> {
        let known = self.records.get(&claim.port).copied();
        if known.is_none() && self.records.len() >= self.capacity.ports {
            return Err(Full::Ports);
        }
        let mut record = known.unwrap_or(PortRecord { created_ns: now_ns, ..PortRecord::default() });
        if claim.underlay && record.uplink == 0 {
            record.uplink = self.free_uplink().ok_or(Full::Uplinks)?;
        }
        let joins = claim.device != record.device && claim.device != PortUuid::default();
        let member_key = MemberKey { port: claim.port, device: claim.device };
        if joins && !self.members.contains_key(&member_key) && self.members.len() >= self.capacity.members {
            return Err(Full::Members);
        }

        let mut writes = Vec::new();
        if record.slot == UNBOUND_SLOT {
            record.slot = self.take_slot(slots, &mut writes)?;
            // The total stays what it was: `saved` was all of it, and the slot may hold another port's past.
            record.saved.sub(&slots.counters(record.slot));
        }
        if claim.device != record.device {
            let ingress = total(&record, slots).hook(Direction::Ingress).wire();
            self.change_device(&record, claim, ingress, &mut writes);
            record.device = claim.device;
        }
        record.class = claim.class;
        record.ifindex = claim.ifindex;
        self.idle.retain(|port| *port != claim.port);
        self.records.insert(claim.port, record);
        writes.push(Write::Port(claim.port, record));
        Ok((SlotRef { slot: record.slot, uplink: if claim.underlay { record.uplink } else { 0 } }, writes))
    }

    /// Remembers how the port's netdev is attached.
    pub(crate) fn set_hooks(&mut self, port: PortUuid, hooks: u32) -> Option<Write> {
        let record = self.records.get_mut(&port)?;
        record.hooks = hooks;
        Some(Write::Port(port, *record))
    }

    /// Takes this netdev away from the port; nothing changes if another one carries it by now. The port keeps its
    /// slot, so what a program on another CPU counts at this moment is counted for it.
    pub(crate) fn release(&mut self, port: PortUuid, ifindex: u32) -> Option<Write> {
        let record = self.records.get_mut(&port)?;
        if record.ifindex == 0 || record.ifindex != ifindex {
            return None;
        }
        record.ifindex = 0;
        record.hooks = 0;
        self.idle.push_back(port);
        Some(Write::Port(port, *record))
    }

    /// Returns every device with what came in through its ports.
    pub(crate) fn devices(&self, slots: &impl Slots) -> BTreeMap<PortUuid, Counter> {
        let mut devices: BTreeMap<PortUuid, Counter> = BTreeMap::new();
        for (key, member) in &self.members {
            let sum = devices.entry(key.device).or_default();
            sum.add(&member.accrued);
            if let Some(record) = self.records.get(&key.port)
                && record.device == key.device
            {
                sum.add(&total(record, slots).hook(Direction::Ingress).wire());
                sum.sub(&member.base);
            }
        }
        devices
    }

    fn change_device(
        &mut self,
        record: &PortRecord,
        claim: &Claim,
        ingress: Counter,
        writes: &mut Vec<Write>,
    ) {
        let old = MemberKey { port: claim.port, device: record.device };
        if let Some(member) = self.members.get_mut(&old) {
            member.accrued.add(&ingress);
            member.accrued.sub(&member.base);
            member.base = ingress;
            writes.push(Write::Member(old, *member));
        }
        if claim.device != PortUuid::default() {
            let new = MemberKey { port: claim.port, device: claim.device };
            let member = self.members.entry(new).or_default();
            member.base = ingress;
            writes.push(Write::Member(new, *member));
        }
    }

    fn take_slot(&mut self, slots: &impl Slots, writes: &mut Vec<Write>) -> Result<u32, Full> {
        if let Some(slot) = self.free.pop_first() {
            return Ok(slot);
        }
        let port = self.idle.pop_front().ok_or(Full::Slots)?;
        let record = self.records.get_mut(&port).ok_or(Full::Slots)?;
        record.saved = total(record, slots);
        let slot = std::mem::replace(&mut record.slot, UNBOUND_SLOT);
        writes.push(Write::Port(port, *record));
        Ok(slot)
    }

    fn free_uplink(&self) -> Option<u32> {
        let taken: BTreeSet<u32> = self.records.values().map(|record| record.uplink).collect();
        (1..MAX_UPLINKS).find(|index| !taken.contains(index))
    }
}

/// Returns the total of a port.
pub(crate) fn total(record: &PortRecord, slots: &impl Slots) -> SlotCounters {
    let mut total = record.saved;
    if record.slot != UNBOUND_SLOT {
        total.add(&slots.counters(record.slot));
    }
    total
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use meter_ebpf::abi::HookCounter;
    use proptest::prelude::{Strategy, any, prop_assert_eq, prop_oneof, proptest};

    use super::{
        BTreeMap, Capacity, Claim, Counter, Full, Ledger, PortUuid, SlotCounters, Slots, UNBOUND_SLOT, Write,
        total,
    };

    #[derive(Default)]
    struct FakeSlots(RefCell<BTreeMap<u32, SlotCounters>>);

    impl Slots for FakeSlots {
        fn counters(&self, slot: u32) -> SlotCounters {
            self.0.borrow().get(&slot).copied().unwrap_or_default()
        }
    }

    impl FakeSlots {
        fn receive(&self, slot: u32, packets: u64, bytes: u64) {
            let hook = HookCounter { skb_packets: packets, skb_bytes: bytes, ..HookCounter::default() };
            self.0.borrow_mut().entry(slot).or_default().hooks[0].add(&hook);
        }
    }

    const CAPACITY: Capacity = Capacity { slots: 4, ports: 6, members: 8 };

    fn uuid(number: u8) -> PortUuid {
        PortUuid { uuid: [number; 16] }
    }

    fn claim(port: u8, device: u8) -> Claim {
        Claim { port: uuid(port), class: 0, ifindex: u32::from(port), device: uuid(device), underlay: false }
    }

    fn empty() -> Ledger {
        Ledger::new(BTreeMap::new(), BTreeMap::new(), CAPACITY)
    }

    #[test]
    fn slot_of_a_port_that_went_serves_another_and_both_keep_their_totals() {
        let slots = FakeSlots::default();
        let mut ledger = empty();
        for port in 1..=3 {
            let (slot, _) = ledger.claim(&claim(port, 0), 7, &slots).unwrap();
            slots.receive(slot.slot, 1, 100 * u64::from(port));
        }
        assert_eq!(ledger.claim(&claim(4, 0), 7, &slots).unwrap_err(), Full::Slots);
        ledger.release(uuid(2), 2);
        let (slot, writes) = ledger.claim(&claim(4, 0), 7, &slots).unwrap();
        assert!(matches!(writes[0], Write::Port(port, _) if port == uuid(2)), "the old owner is saved first");
        slots.receive(slot.slot, 5, 5);
        let bytes: Vec<u64> =
            ledger.records().values().map(|record| total(record, &slots).hooks[0].wire().bytes).collect();
        assert_eq!(bytes, [100, 200, 300, 5]);
    }

    #[test]
    fn port_that_changes_its_device_leaves_what_came_in_behind() {
        let slots = FakeSlots::default();
        let mut ledger = empty();
        let (slot, _) = ledger.claim(&claim(1, 10), 7, &slots).unwrap();
        slots.receive(slot.slot, 1, 60);
        ledger.claim(&claim(1, 11), 7, &slots).unwrap();
        slots.receive(slot.slot, 1, 40);
        ledger.claim(&claim(1, 10), 7, &slots).unwrap();
        slots.receive(slot.slot, 1, 1);
        let devices = ledger.devices(&slots);
        assert_eq!(
            devices,
            BTreeMap::from([
                (uuid(10), Counter { packets: 2, bytes: 61 }),
                (uuid(11), Counter { packets: 1, bytes: 40 }),
            ])
        );
    }

    #[derive(Debug, Clone)]
    enum Action {
        Claim(u8, u8),
        Release(u8),
        Receive(u8, u64),
    }

    fn actions() -> impl Strategy<Value = Vec<Action>> {
        let action = prop_oneof![
            (1..6u8, 0..3u8).prop_map(|(port, device)| Action::Claim(port, device)),
            (1..6u8).prop_map(Action::Release),
            (1..6u8, 0..2000u64).prop_map(|(port, bytes)| Action::Receive(port, bytes)),
        ];
        proptest::collection::vec(action, 0..80)
    }

    proptest! {
        /// The totals are the sums of what each port and device received, whatever the slots went through, and an
        /// agent that is killed after any single write and starts again finds the same totals.
        #[test]
        fn totals_are_the_sums_of_what_was_received(actions in actions(), cut in any::<usize>()) {
            let slots = FakeSlots::default();
            let mut ledger = empty();
            let mut ports: BTreeMap<PortUuid, u64> = BTreeMap::new();
            let mut devices: BTreeMap<PortUuid, u64> = BTreeMap::new();
            let mut written: (BTreeMap<_, _>, BTreeMap<_, _>) = Default::default();
            for (step, action) in actions.iter().enumerate() {
                let writes = match *action {
                    Action::Claim(port, device) => match ledger.claim(&claim(port, device), 1, &slots) {
                        Ok((_, writes)) => writes,
                        Err(_) => continue,
                    },
                    Action::Release(port) => ledger.release(uuid(port), u32::from(port)).into_iter().collect(),
                    Action::Receive(port, bytes) => {
                        if let Some(record) = ledger.records().get(&uuid(port))
                            && record.ifindex != 0
                        {
                            slots.receive(record.slot, 1, bytes);
                            *ports.entry(uuid(port)).or_default() += bytes;
                            if record.device != PortUuid::default() {
                                *devices.entry(record.device).or_default() += bytes;
                            }
                        }
                        continue;
                    }
                };
                let crash = step == cut % actions.len();
                let kept = if crash { cut % (writes.len() + 1) } else { writes.len() };
                for write in &writes[..kept] {
                    match *write {
                        Write::Port(port, record) => drop(written.0.insert(port, record)),
                        Write::Member(key, member) => drop(written.1.insert(key, member)),
                    }
                }
                if crash {
                    ledger = Ledger::new(written.0.clone(), written.1.clone(), CAPACITY);
                }
            }
            for (port, record) in ledger.records() {
                let bytes = total(record, &slots).hooks[0].wire().bytes;
                prop_assert_eq!(bytes, ports.get(port).copied().unwrap_or_default());
                prop_assert!(record.slot < CAPACITY.slots);
            }
            for (device, counter) in ledger.devices(&slots) {
                prop_assert_eq!(counter.bytes, devices.get(&device).copied().unwrap_or_default());
            }
            let mut owned: Vec<u32> =
                ledger.records().values().map(|r| r.slot).filter(|slot| *slot != UNBOUND_SLOT).collect();
            let before = owned.len();
            owned.sort_unstable();
            owned.dedup();
            prop_assert_eq!(before, owned.len(), "no slot has two owners");
        }
    }
    use proptest::prop_assert;
}

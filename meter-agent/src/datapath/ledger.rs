//! Who owns which slot, and what each port's and device's total is.
//!
//! Pure: it computes the records; [`super::kernel`] writes them to the pinned maps, one at a time. Each record is
//! right by itself, so that an agent that is killed between two writes changes no total.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use meter_ebpf::abi::{
    Counter, Direction, MAX_UPLINKS, Member, MemberKey, PortRecord, PortUuid, SlotCounters, SlotRef,
    UNBOUND_SLOT,
};

use super::record::netdev_of;
use crate::netdev::{NamespaceId, NetdevId};

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
    pub(crate) netdev: NetdevId,
    pub(crate) device: PortUuid,
    pub(crate) underlay: bool,
}

/// What a port got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claimed {
    /// Where its netdev counts. The uplink is the one that the port has or had, whether its program reads tunnels or not.
    pub(crate) slot: SlotRef,
    /// Whether tunnel headers can be read: false where that was not asked for.
    pub(crate) underlay: bool,
    /// The device that what comes in now counts for.
    pub(crate) device: PortUuid,
    /// What it does without.
    pub(crate) lacks: Vec<Full>,
    /// Whether that took [`Slots::settle`].
    pub(crate) settled: bool,
    /// What to write.
    pub(crate) writes: Vec<Write>,
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

    /// Waits until no program counts any more in a slot that its netdev has left: one that read where to count before
    /// that, on another CPU, may still do so.
    fn settle(&self);
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
    /// Those of them in whose slots a program may still count.
    unsettled: BTreeSet<PortUuid>,
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
        let idle: VecDeque<PortUuid> = records
            .iter()
            .filter(|(_, record)| record.ifindex == 0 && record.slot != UNBOUND_SLOT)
            .map(|(port, _)| *port)
            .collect();
        let unsettled = idle.iter().copied().collect();
        Self { records, members, capacity, free, idle, unsettled }
    }

    /// Leaves each netdev to one port: where an agent was killed while a netdev went from one port to another, both have
    /// it. `slot_of` tells at which slot a netdev counts.
    ///
    /// Also returns the ports that are left without.
    pub(crate) fn one_port_each(&mut self, slot_of: impl Fn(NetdevId) -> u32) -> (Vec<Write>, Vec<PortUuid>) {
        let carried = self.records.iter().filter(|(_, record)| record.ifindex != 0);
        let mut ports: BTreeMap<NetdevId, Vec<PortUuid>> = BTreeMap::new();
        carried.for_each(|(port, record)| ports.entry(netdev_of(record)).or_default().push(*port));
        ports.retain(|_, ports| ports.len() > 1);
        let (mut writes, mut left) = (Vec::new(), Vec::new());
        for (netdev, ports) in ports {
            let counts =
                |port: &PortUuid| self.records.get(port).map(|record| record.slot) == Some(slot_of(netdev));
            let keeper = ports.iter().copied().find(counts).unwrap_or(ports[0]);
            let others = ports.into_iter().filter(|port| *port != keeper);
            for port in others {
                writes.extend(self.release(port, netdev));
                left.push(port);
            }
        }
        (writes, left)
    }

    /// Returns the port without a netdev that has this slot.
    pub(crate) fn idle_port_of(&self, slot: u32) -> Option<PortUuid> {
        self.idle
            .iter()
            .copied()
            .find(|port| self.records.get(port).is_some_and(|record| record.slot == slot))
    }

    /// Lets an idle port with a slot be carried by a netdev, as it is; `None` where it is not so.
    pub(crate) fn carry(&mut self, port: PortUuid, netdev: NetdevId, hooks: u32) -> Option<(SlotRef, Write)> {
        let idle = self.idle.iter().position(|idle| *idle == port)?;
        let record = self.records.get_mut(&port)?;
        self.idle.remove(idle);
        set_netdev(record, netdev);
        record.hooks = hooks;
        Some((SlotRef::new(record.slot, record.uplink), Write::Port(port, *record)))
    }

    /// Lets every port with a slot begin anew at this time, since what the slots held is lost. What is saved of a port
    /// without one is its whole total, and stays; so does what came into devices before their ports joined them last.
    pub(crate) fn counters_lost(&mut self, now_ns: u64) -> Vec<Write> {
        let mut writes = Vec::new();
        for (&port, record) in self.records.iter_mut().filter(|(_, record)| record.slot != UNBOUND_SLOT) {
            record.saved = SlotCounters::default();
            record.created_ns = now_ns;
            let key = MemberKey { port, device: record.device };
            if let Some(member) = self.members.get_mut(&key) {
                member.base = Counter::default();
                writes.push(Write::Member(key, *member));
            }
            writes.push(Write::Port(port, *record));
        }
        writes
    }

    /// Takes every port out of its device, since what came into devices is lost: as one that joins, it begins there anew.
    pub(crate) fn members_lost(&mut self) -> Vec<Write> {
        let none = PortUuid::default();
        let records = self.records.iter_mut().filter(|(_, record)| record.device != none);
        let writes = records.map(|(&port, record)| {
            record.device = none;
            Write::Port(port, *record)
        });
        writes.collect()
    }

    /// Returns the record of every port.
    pub(crate) fn records(&self) -> &BTreeMap<PortUuid, PortRecord> {
        &self.records
    }

    /// Returns what came into each device through each of its ports.
    pub(crate) fn member_records(&self) -> &BTreeMap<MemberKey, Member> {
        &self.members
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

    /// Returns what gives the port a slot, its device and its netdev, once it is written and [taken up](Self::take_up).
    /// Without room for its device or its tunnels it counts without them.
    pub(crate) fn claim(&self, claim: &Claim, now_ns: u64, slots: &impl Slots) -> Result<Claimed, Full> {
        let mut record = self.record_for(claim.port, now_ns)?;
        let (claim, lacks) = self.what_fits(claim, &mut record);

        let mut writes = Vec::new();
        let mut settled = false;
        if record.slot == UNBOUND_SLOT {
            (record.slot, settled) = self.find_slot(slots, &mut writes)?;
            // The total stays what it was: `saved` was all of it, and the slot may hold another port's past.
            record.saved.sub(&slots.counters(record.slot));
        }
        if claim.device != record.device {
            let ingress = total(&record, slots).hook(Direction::Ingress).wire();
            self.change_device(&record, &claim, ingress, &mut writes);
            record.device = claim.device;
        }
        record.class = claim.class;
        set_netdev(&mut record, claim.netdev);
        writes.push(Write::Port(claim.port, record));
        Ok(Claimed {
            slot: SlotRef::new(record.slot, record.uplink),
            underlay: claim.underlay,
            device: claim.device,
            lacks,
            settled,
            writes,
        })
    }

    /// Returns what gives a port without a slot one that nobody has, before it is claimed; `None` where it has one, or there is
    /// none.
    pub(crate) fn reserve(
        &self,
        port: PortUuid,
        class: u32,
        now_ns: u64,
        slots: &impl Slots,
    ) -> Option<Claimed> {
        let mut record = self.record_for(port, now_ns).ok()?;
        if record.slot != UNBOUND_SLOT || record.ifindex != 0 {
            return None;
        }
        record.slot = *self.free.first()?;
        record.saved.sub(&slots.counters(record.slot));
        record.class = class;
        let slot = SlotRef::new(record.slot, record.uplink);
        let writes = vec![Write::Port(port, record)];
        Some(Claimed {
            slot,
            underlay: false,
            device: record.device,
            lacks: Vec::new(),
            settled: false,
            writes,
        })
    }

    /// Takes up a claim that was written to the maps.
    pub(crate) fn take_up(&mut self, claimed: &Claimed) {
        if claimed.settled {
            self.unsettled.clear();
        }
        for write in &claimed.writes {
            match *write {
                Write::Member(key, member) => drop(self.members.insert(key, member)),
                Write::Port(port, record) => {
                    self.idle.retain(|idle| *idle != port);
                    self.free.remove(&record.slot);
                    if record.ifindex == 0 && record.slot != UNBOUND_SLOT {
                        self.idle.push_back(port);
                    }
                    self.records.insert(port, record);
                }
            }
        }
    }

    /// Returns the record of a port, or a new one where there is room for it.
    fn record_for(&self, port: PortUuid, now_ns: u64) -> Result<PortRecord, Full> {
        match self.records.get(&port) {
            Some(record) => Ok(*record),
            None if self.records.len() >= self.capacity.ports => Err(Full::Ports),
            None => Ok(PortRecord { created_ns: now_ns, ..PortRecord::default() }),
        }
    }

    /// Gives the record an uplink's index where it needs one; returns what is left of the claim, and what there was no
    /// room for.
    fn what_fits(&self, claim: &Claim, record: &mut PortRecord) -> (Claim, Vec<Full>) {
        let mut claim = *claim;
        let mut lacks = Vec::new();
        if claim.underlay && record.uplink == 0 {
            record.uplink = self.free_uplink().unwrap_or_default();
            if record.uplink == 0 {
                claim.underlay = false;
                lacks.push(Full::Uplinks);
            }
        }
        let joins = claim.device != record.device && claim.device != PortUuid::default();
        let member_key = MemberKey { port: claim.port, device: claim.device };
        if joins && !self.members.contains_key(&member_key) && self.members.len() >= self.capacity.members {
            claim.device = PortUuid::default();
            lacks.push(Full::Members);
        }
        (claim, lacks)
    }

    /// Remembers how the port's netdev is attached.
    pub(crate) fn set_hooks(&mut self, port: PortUuid, hooks: u32) -> Option<Write> {
        let record = self.records.get_mut(&port)?;
        record.hooks = hooks;
        Some(Write::Port(port, *record))
    }

    /// Takes this netdev away from the port; nothing changes if another one carries it by now. The port keeps its
    /// slot, so what a program on another CPU counts at this moment is counted for it.
    pub(crate) fn release(&mut self, port: PortUuid, netdev: NetdevId) -> Option<Write> {
        let record = self.records.get_mut(&port)?;
        if record.ifindex == 0 || netdev_of(record) != netdev {
            return None;
        }
        set_netdev(record, NetdevId::default());
        record.hooks = 0;
        self.idle.push_back(port);
        self.unsettled.insert(port);
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

    fn change_device(&self, record: &PortRecord, claim: &Claim, ingress: Counter, writes: &mut Vec<Write>) {
        let old = MemberKey { port: claim.port, device: record.device };
        if let Some(&(mut member)) = self.members.get(&old) {
            member.accrued.add(&ingress);
            member.accrued.sub(&member.base);
            member.base = ingress;
            writes.push(Write::Member(old, member));
        }
        if claim.device != PortUuid::default() {
            let new = MemberKey { port: claim.port, device: claim.device };
            let before = self.members.get(&new).copied().unwrap_or_default();
            writes.push(Write::Member(new, Member { base: ingress, ..before }));
        }
    }

    /// Returns a slot that nobody has, or that of the port whose netdev went first: its total is saved then. Also returns
    /// whether it had to [settle](Slots::settle).
    fn find_slot(&self, slots: &impl Slots, writes: &mut Vec<Write>) -> Result<(u32, bool), Full> {
        if let Some(slot) = self.free.first() {
            return Ok((*slot, false));
        }
        let port = *self.idle.front().ok_or(Full::Slots)?;
        let record = *self.records.get(&port).ok_or(Full::Slots)?;
        let settles = self.unsettled.contains(&port);
        if settles {
            slots.settle();
        }
        let saved = total(&record, slots);
        writes.push(Write::Port(port, PortRecord { slot: UNBOUND_SLOT, saved, ..record }));
        Ok((record.slot, settles))
    }

    fn free_uplink(&self) -> Option<u32> {
        let taken: BTreeSet<u32> = self.records.values().map(|record| record.uplink).collect();
        (1..MAX_UPLINKS).find(|index| !taken.contains(index))
    }
}

fn set_netdev(record: &mut PortRecord, NetdevId { namespace: NamespaceId(number), ifindex }: NetdevId) {
    record.namespace = number;
    record.ifindex = ifindex;
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
mod tests;

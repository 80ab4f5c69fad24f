use std::cell::RefCell;

use meter_ebpf::abi::{HookCounter, MAX_UPLINKS, Member, MemberKey, PortRecord};
use proptest::prelude::{Strategy, any, prop_assert_eq, prop_oneof, proptest};

use super::{
    BTreeMap, Capacity, Claim, Claimed, Counter, Full, Ledger, PortUuid, SlotCounters, Slots, UNBOUND_SLOT,
    Write, total,
};

#[derive(Default)]
struct FakeSlots {
    counters: RefCell<BTreeMap<u32, SlotCounters>>,
    /// What programs count that have read their slot already: slot, packets, bytes.
    on_the_way: RefCell<Vec<(u32, u64, u64)>>,
}

impl Slots for FakeSlots {
    fn counters(&self, slot: u32) -> SlotCounters {
        self.counters.borrow().get(&slot).copied().unwrap_or_default()
    }

    fn settle(&self) {
        for (slot, packets, bytes) in self.on_the_way.take() {
            self.receive(slot, packets, bytes);
        }
    }
}

impl Ledger {
    /// Claims, as when it was written.
    fn claimed(&mut self, claim: &Claim, now_ns: u64, slots: &FakeSlots) -> Result<Claimed, Full> {
        let claimed = self.claim(claim, now_ns, slots)?;
        self.take_up(&claimed);
        Ok(claimed)
    }
}

impl FakeSlots {
    fn receive(&self, slot: u32, packets: u64, bytes: u64) {
        let hook = HookCounter { skb_packets: packets, skb_bytes: bytes, ..HookCounter::default() };
        self.counters.borrow_mut().entry(slot).or_default().hooks[0].add(&hook);
    }
}

const CAPACITY: Capacity = Capacity { slots: 4, ports: 6, members: 8 };

fn uuid(number: u8) -> PortUuid {
    PortUuid { uuid: [number; 16] }
}

fn claim(port: u8, device: u8) -> Claim {
    Claim {
        port: uuid(port),
        class: 0,
        netdev: u32::from(port).into(),
        device: uuid(device),
        underlay: false,
    }
}

fn empty() -> Ledger {
    Ledger::new(BTreeMap::new(), BTreeMap::new(), CAPACITY)
}

#[test]
fn slot_of_a_port_that_went_serves_another_and_both_keep_their_totals() {
    let slots = FakeSlots::default();
    let mut ledger = empty();
    for port in 1..=3 {
        let claimed = ledger.claimed(&claim(port, 0), 7, &slots).unwrap();
        slots.receive(claimed.slot.slot(), 1, 100 * u64::from(port));
    }
    assert_eq!(ledger.claimed(&claim(4, 0), 7, &slots).unwrap_err(), Full::Slots);
    ledger.release(uuid(2), 2.into());
    let Claimed { slot, writes, .. } = ledger.claimed(&claim(4, 0), 7, &slots).unwrap();
    assert!(matches!(writes[0], Write::Port(port, _) if port == uuid(2)), "the old owner is saved first");
    slots.receive(slot.slot(), 5, 5);
    let bytes: Vec<u64> =
        ledger.records().values().map(|record| total(record, &slots).hooks[0].wire().bytes).collect();
    assert_eq!(bytes, [100, 200, 300, 5]);
}

#[test]
fn frame_that_is_on_the_way_to_a_slot_counts_for_the_port_that_had_it() {
    let slots = FakeSlots::default();
    let mut ledger = empty();
    for port in 1..=3 {
        ledger.claimed(&claim(port, 0), 7, &slots).unwrap();
    }
    let slot = ledger.records()[&uuid(2)].slot;
    slots.on_the_way.borrow_mut().push((slot, 1, 60));
    ledger.release(uuid(2), 2.into());
    assert_eq!(ledger.claimed(&claim(4, 0), 7, &slots).unwrap().slot.slot(), slot);
    let bytes = [2, 4].map(|port| total(&ledger.records()[&uuid(port)], &slots).hooks[0].wire().bytes);
    assert_eq!(bytes, [60, 0]);
}

#[test]
fn claim_that_is_not_taken_up_changes_nothing() {
    let slots = FakeSlots::default();
    let mut ledger = empty();
    for port in 1..=3 {
        ledger.claimed(&claim(port, 10), 7, &slots).unwrap();
    }
    ledger.release(uuid(2), 2.into());
    let known = |ledger: &Ledger| (ledger.records().clone(), ledger.member_records().clone());
    let before = known(&ledger);
    // Where the counters can't be read, or the records not be written.
    let refused = [claim(4, 11), claim(1, 12)].map(|claim| ledger.claim(&claim, 7, &slots).unwrap());
    assert_eq!(known(&ledger), before);
    let again = [claim(4, 11), claim(1, 12)].map(|claim| ledger.claim(&claim, 7, &slots).unwrap());
    assert_eq!(again, refused);
}

#[test]
fn port_that_changes_its_device_leaves_what_came_in_behind() {
    let slots = FakeSlots::default();
    let mut ledger = empty();
    let slot = ledger.claimed(&claim(1, 10), 7, &slots).unwrap().slot;
    slots.receive(slot.slot(), 1, 60);
    ledger.claimed(&claim(1, 11), 7, &slots).unwrap();
    slots.receive(slot.slot(), 1, 40);
    ledger.claimed(&claim(1, 10), 7, &slots).unwrap();
    slots.receive(slot.slot(), 1, 1);
    let devices = ledger.devices(&slots);
    assert_eq!(
        devices,
        BTreeMap::from([
            (uuid(10), Counter { packets: 2, bytes: 61 }),
            (uuid(11), Counter { packets: 1, bytes: 40 }),
        ])
    );
}

#[test]
fn ports_begin_anew_without_what_their_slots_held() {
    let mut slots = FakeSlots::default();
    let mut ledger = empty();
    for port in 1..=3 {
        let slot = ledger.claimed(&claim(port, 10), 7, &slots).unwrap().slot;
        slots.receive(slot.slot(), 1, 100 * u64::from(port));
    }
    // The slot of the first goes to another port, and what it counted is saved.
    ledger.release(uuid(1), 1.into());
    ledger.claimed(&claim(4, 11), 7, &slots).unwrap();
    ledger.claimed(&claim(2, 11), 7, &slots).unwrap();
    slots = FakeSlots::default();
    let writes = ledger.counters_lost(9);
    assert_eq!(writes.len(), 6, "the records of three ports and what their devices know of them: {writes:?}");
    let ports = |slots: &FakeSlots, ledger: &Ledger| -> Vec<(u64, u64)> {
        let records = ledger.records().values();
        records.map(|record| (total(record, slots).hooks[0].wire().bytes, record.created_ns)).collect()
    };
    assert_eq!(ports(&slots, &ledger), [(100, 7), (0, 9), (0, 9), (0, 9)]);
    // The first is still of its device; the second had left it.
    let devices = |bytes: [u64; 2], packets: [u64; 2]| {
        let counter = |i: usize| Counter { packets: packets[i], bytes: bytes[i] };
        BTreeMap::from([(uuid(10), counter(0)), (uuid(11), counter(1))])
    };
    assert_eq!(ledger.devices(&slots), devices([300, 0], [2, 0]));
    slots.receive(ledger.records()[&uuid(2)].slot, 1, 7);
    assert_eq!(ports(&slots, &ledger), [(100, 7), (7, 9), (0, 9), (0, 9)]);
    assert_eq!(ledger.devices(&slots), devices([300, 7], [2, 1]));
}

#[test]
fn ports_join_their_devices_anew_without_what_devices_held() {
    let slots = FakeSlots::default();
    let mut ledger = empty();
    let slot = ledger.claimed(&claim(1, 10), 7, &slots).unwrap().slot;
    slots.receive(slot.slot(), 1, 60);
    let mut ledger = Ledger::new(ledger.records().clone(), BTreeMap::new(), CAPACITY);
    assert_eq!(ledger.members_lost().len(), 1);
    ledger.claimed(&claim(1, 10), 8, &slots).unwrap();
    slots.receive(slot.slot(), 1, 40);
    assert_eq!(ledger.devices(&slots), BTreeMap::from([(uuid(10), Counter { packets: 1, bytes: 40 })]));
    let record = &ledger.records()[&uuid(1)];
    assert_eq!(total(record, &slots).hooks[0].wire(), Counter { packets: 2, bytes: 100 });
}

#[test]
fn port_without_room_for_its_device_counts_without_it() {
    let slots = FakeSlots::default();
    let members = (0..CAPACITY.members)
        .map(|number| {
            let device = uuid(100 + u8::try_from(number).unwrap());
            (MemberKey { port: uuid(9), device }, Member::default())
        })
        .collect();
    let mut ledger = Ledger::new(BTreeMap::new(), members, CAPACITY);
    let claimed = ledger.claimed(&claim(1, 10), 7, &slots).unwrap();
    assert_eq!((claimed.device, claimed.lacks), (PortUuid::default(), vec![Full::Members]));
    slots.receive(claimed.slot.slot(), 1, 60);
    assert_eq!(total(&ledger.records()[&uuid(1)], &slots).hooks[0].wire().bytes, 60);
    assert!(ledger.devices(&slots).values().all(|sum| *sum == Counter::default()));
}

#[test]
fn uplink_without_an_index_counts_without_its_tunnels() {
    let slots = FakeSlots::default();
    let record = |uplink| PortRecord { uplink, ..PortRecord::default() };
    let records = (1..MAX_UPLINKS).map(|uplink| (uuid(u8::try_from(uplink).unwrap()), record(uplink)));
    let mut ledger = Ledger::new(records.collect(), BTreeMap::new(), Capacity { ports: 200, ..CAPACITY });
    let claim = Claim { underlay: true, ..claim(200, 0) };
    let claimed = ledger.claimed(&claim, 7, &slots).unwrap();
    assert_eq!((claimed.underlay, claimed.lacks), (false, vec![Full::Uplinks]));
    assert_eq!((claimed.slot.slot(), claimed.slot.uplink()), (1, 0));
}

#[test]
fn netdev_of_two_ports_stays_with_the_one_that_it_counts_for() {
    let slots = FakeSlots::default();
    let mut ledger = empty();
    let [first, second] = [1, 2].map(|port| {
        let claim = Claim { netdev: 5.into(), ..claim(port, 0) };
        ledger.claimed(&claim, 7, &slots).unwrap().slot.slot()
    });
    assert_ne!(first, second);
    let (writes, left) = ledger.one_port_each(|netdev| if netdev == 5.into() { second } else { 0 });
    assert_eq!((writes.len(), left), (1, vec![uuid(1)]));
    let netdevs: Vec<u32> = ledger.records().values().map(|record| record.ifindex).collect();
    assert_eq!(netdevs, [0, 5]);
    assert_eq!(ledger.one_port_each(|_| 0), (Vec::new(), Vec::new()));
    // The one that is left may have another netdev, and once only.
    assert_eq!(ledger.idle_port_of(first), Some(uuid(1)));
    let (slot, write) = ledger.carry(uuid(1), 6.into(), 9).unwrap();
    assert_eq!((slot.slot(), write), (first, Write::Port(uuid(1), ledger.records()[&uuid(1)])));
    assert_eq!(ledger.records()[&uuid(1)].ifindex, 6);
    assert_eq!((ledger.idle_port_of(first), ledger.carry(uuid(1), 7.into(), 9)), (None, None));
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
                Action::Claim(port, device) => match ledger.claimed(&claim(port, device), 1, &slots) {
                    Ok(claimed) => claimed.writes,
                    Err(_) => continue,
                },
                Action::Release(port) => ledger.release(uuid(port), u32::from(port).into()).into_iter().collect(),
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

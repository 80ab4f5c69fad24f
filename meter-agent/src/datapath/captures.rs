//! Which netdevs' connections are counted, and what of their frames no connection in the table has.
//!
//! All of a port's is in its slot's place of `CAPTURES`; what it had there is saved by its UUID when another port gets the
//! slot. For each port and direction: its connections, those that ended, and the frames that were in none add up to what its
//! programs counted since they count connections.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsFd as _,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData},
};
use meter_ebpf::abi::{
    Counter, PortUuid, UNBOUND_SLOT,
    connection::{Capture as Place, SavedCapture, capture},
    map,
};

use super::{
    Capture, CaptureReading, Class, MetersError,
    connections::{halves, index, joined},
    failure::describe,
    kernel::{KernelDatapath, uptime_s},
    mapped::MappedWords,
    maps::{take, typed, unreadable},
    object::CONNECTION_PROGRAMS,
    open::{OpenError, load_error},
    record::{class_of, port_id},
};
use crate::meter::PortId;

/// Words of a slot's place.
const PLACE: usize = size_of::<Place>() / size_of::<u64>();
const WANTED: usize = std::mem::offset_of!(Place, wanted) / 8;
const LIVE: usize = std::mem::offset_of!(Place, live) / 8;
const OTHER: usize = std::mem::offset_of!(Place, other) / 8;
const ENDED: usize = std::mem::offset_of!(Place, ended) / 8;
const PORT: usize = std::mem::offset_of!(Place, port) / 8;
const OWNED: usize = std::mem::offset_of!(Place, owned) / 8;

/// In the place of the slot that is nobody's: what is being added to what ended, so that an agent that is killed over it
/// leaves it to the next one. The connection's place comes last there, and is 0 for none.
const JOURNAL: u32 = UNBOUND_SLOT;
const JOURNAL_SLOT: usize = OTHER;
const JOURNAL_PLACE: usize = OTHER + 1;
const JOURNAL_ENDED: usize = ENDED;

/// The table.
pub(super) struct Captures {
    places: MappedWords,
    /// Held for as long as it is mapped.
    _map: Map,
    saved: HashMap<MapData, PortUuid, SavedCapture>,
    /// What `saved` holds.
    without_slot: BTreeMap<PortUuid, SavedCapture>,
    /// Whose each slot's place is.
    owners: BTreeMap<u32, PortUuid>,
    wanted: Capture,
}

impl Captures {
    /// Takes the maps out of the loaded object; `slots` is how many slots there are.
    pub(super) fn take(ebpf: &mut Ebpf, slots: u32) -> Result<Self, OpenError> {
        let map = take(ebpf, map::CAPTURES)?;
        let Map::Array(data) = &map else {
            return Err(OpenError::Object(format!("map {} is not an array", map::CAPTURES)));
        };
        let places = MappedWords::map(data.fd().as_fd(), index(slots) * PLACE)
            .map_err(|error| load_error(&format!("map {} into memory", map::CAPTURES), &error))?;
        let saved: HashMap<MapData, PortUuid, SavedCapture> =
            typed(|name| take(ebpf, name), map::CAPTURE_SAVED)?;
        let without_slot = saved.iter().collect::<Result<_, _>>().map_err(unreadable(map::CAPTURE_SAVED))?;
        let mut captures = Self {
            places,
            _map: map,
            saved,
            without_slot,
            owners: BTreeMap::new(),
            // What an earlier agent counted stays until it is said for how long.
            wanted: Capture { idle_s: u32::MAX, ended_s: u32::MAX, ..Capture::default() },
        };
        for slot in UNBOUND_SLOT + 1..slots {
            if captures.word(slot, OWNED) == 0 {
                continue;
            }
            let port = captures.port(slot);
            captures.owners.insert(slot, port);
        }
        Ok(captures)
    }

    /// Returns what is wanted.
    pub(super) const fn wanted(&self) -> &Capture {
        &self.wanted
    }

    /// Returns whether the connections of a port's netdev are counted.
    pub(super) fn wants(&self, port: PortId) -> bool {
        self.wanted.ports.contains(&port)
    }

    /// Returns whose connections a slot has.
    pub(super) fn owner(&self, slot: u32) -> Option<PortId> {
        self.owners.get(&slot).copied().map(port_id)
    }

    /// Returns the slot in which a port's place is.
    fn slot_of(&self, port: PortUuid) -> Option<u32> {
        self.owners.iter().find(|(_, owner)| **owner == port).map(|(slot, _)| *slot)
    }

    /// Returns how many slots have a port's.
    pub(super) fn len(&self) -> usize {
        self.owners.len()
    }

    /// Returns how many ports have something saved.
    pub(super) fn saved_len(&self) -> usize {
        self.without_slot.len()
    }

    /// Takes note of how many connections each slot has; one that is not named has none.
    pub(super) fn set_live(&self, live: &BTreeMap<u32, u64>) {
        for slot in self.owners.keys() {
            self.store(*slot, LIVE, live.get(slot).copied().unwrap_or_default());
        }
    }

    /// Adds what a connection had to what ended of its slot, once whatever happens; `clear` takes it from the connection.
    pub(super) fn fold(&self, place: u32, slot: u32, counts: [Counter; 2], clear: impl FnOnce()) {
        let mut ended = self.counters(slot, ENDED);
        ended.iter_mut().zip(&counts).for_each(|(sum, count)| sum.add(count));
        self.set_counters(JOURNAL, JOURNAL_ENDED, ended);
        self.store(JOURNAL, JOURNAL_SLOT, slot.into());
        self.store(JOURNAL, JOURNAL_PLACE, place.into());
        self.set_counters(slot, ENDED, ended);
        clear();
        self.store(JOURNAL, JOURNAL_PLACE, 0);
    }

    /// Does the rest of what an agent that was killed had begun; `clear` takes from the connection what it had.
    pub(super) fn finish(&self, clear: impl FnOnce(u32)) {
        let Ok(place) = u32::try_from(self.word(JOURNAL, JOURNAL_PLACE)) else { return };
        if let Ok(slot) = u32::try_from(self.word(JOURNAL, JOURNAL_SLOT))
            && place != 0
        {
            self.set_counters(slot, ENDED, self.counters(JOURNAL, JOURNAL_ENDED));
            clear(place);
            self.store(JOURNAL, JOURNAL_PLACE, 0);
        }
    }

    /// Reads what no connection in the table has; `leaving` is what is about to be added to what ended, by slot.
    pub(super) fn read(&self, leaving: &BTreeMap<u32, [Counter; 2]>) -> Vec<CaptureReading> {
        let mut readings: BTreeMap<PortUuid, CaptureReading> = self
            .without_slot
            .iter()
            .map(|(port, SavedCapture { other, ended })| {
                (*port, CaptureReading { port: port_id(*port), other: *other, ended: *ended })
            })
            .collect();
        for (slot, port) in &self.owners {
            let mut ended = self.counters(*slot, ENDED);
            for (sum, count) in ended.iter_mut().zip(leaving.get(slot).into_iter().flatten()) {
                sum.add(count);
            }
            let reading = CaptureReading { port: port_id(*port), other: self.counters(*slot, OTHER), ended };
            readings.insert(*port, reading);
        }
        readings.into_values().collect()
    }

    /// Says what of a slot's frames is counted from now on.
    fn set_wanted(&self, slot: u32, wanted: u32) {
        self.store(slot, WANTED, joined(wanted, self.wanted.share));
    }

    /// Leaves these bits of what is counted, at every netdev.
    pub(super) fn restrict(&self, bits: u32) {
        for slot in self.owners.keys() {
            let (wanted, share) = halves(self.word(*slot, WANTED));
            self.store(*slot, WANTED, joined(wanted & bits, share));
        }
    }

    /// Lets a port have a slot's place, with what it had elsewhere. The place is nobody's.
    fn adopt(&mut self, slot: u32, port: PortUuid) {
        let SavedCapture { other, ended } = self.without_slot.get(&port).copied().unwrap_or_default();
        self.set_counters(slot, OTHER, other);
        self.set_counters(slot, ENDED, ended);
        self.store(slot, LIVE, 0);
        for (number, word) in words(port).into_iter().enumerate() {
            self.store(slot, PORT + number, word);
        }
        // Last: until then the place is nobody's, whatever it holds.
        self.store(slot, OWNED, 1);
        self.owners.insert(slot, port);
    }

    /// Saves what a slot's port has, and takes the place from it. No program writes there any more.
    fn save(&mut self, slot: u32) -> Result<(), MetersError> {
        let Some(port) = self.owners.get(&slot).copied() else { return Ok(()) };
        let saved = SavedCapture { other: self.counters(slot, OTHER), ended: self.counters(slot, ENDED) };
        self.saved.insert(port, saved, 0).map_err(|error| {
            MetersError(format!("write map {}: {}", map::CAPTURE_SAVED, describe(&error)))
        })?;
        self.without_slot.insert(port, saved);
        self.store(slot, OWNED, 0);
        self.owners.remove(&slot);
        Ok(())
    }

    /// Drops what is saved of a port.
    fn forget(&mut self, port: PortUuid) -> Result<(), MetersError> {
        self.without_slot.remove(&port);
        self.saved.remove(&port).map_err(|error| {
            MetersError(format!("remove from map {}: {}", map::CAPTURE_SAVED, describe(&error)))
        })
    }

    fn port(&self, slot: u32) -> PortUuid {
        let mut uuid = [0; 16];
        let words = [self.word(slot, PORT), self.word(slot, PORT + 1)];
        uuid.iter_mut().zip(words.map(u64::to_ne_bytes).as_flattened()).for_each(|(to, from)| *to = *from);
        PortUuid { uuid }
    }

    fn counters(&self, slot: u32, first: usize) -> [Counter; 2] {
        let word = |number: usize| self.word(slot, first + number);
        [Counter { packets: word(0), bytes: word(1) }, Counter { packets: word(2), bytes: word(3) }]
    }

    fn set_counters(&self, slot: u32, first: usize, counters: [Counter; 2]) {
        for (number, Counter { packets, bytes }) in counters.into_iter().enumerate() {
            self.store(slot, first + 2 * number, packets);
            self.store(slot, first + 2 * number + 1, bytes);
        }
    }

    fn at(&self, slot: u32, word: usize) -> Option<&AtomicU64> {
        self.places.words().get(index(slot) * PLACE + word)
    }

    fn word(&self, slot: u32, word: usize) -> u64 {
        self.at(slot, word).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn store(&self, slot: u32, word: usize, bits: u64) {
        if let Some(word) = self.at(slot, word) {
            word.store(bits, Ordering::Release);
        }
    }
}

impl KernelDatapath {
    /// Lets the connections of other ports' netdevs be counted. Those that are counted before and after go on.
    pub(super) fn change_capture(&mut self, wanted: &Capture) -> Result<(), MetersError> {
        if *wanted == self.captures.wanted && self.admission.is_as(&wanted.rules) {
            return Ok(());
        }
        let [first, underlay] = CONNECTION_PROGRAMS;
        let programs = [first, underlay].into_iter().zip([!wanted.ports.is_empty(), wanted.underlay]);
        let programs = programs.filter(|(_, is_wanted)| *is_wanted).flat_map(|(programs, _)| programs);
        self.load_changed(programs, self.meters.on, &wanted.ports)?;
        if !wanted.ports.is_empty() && self.captures.wanted.ports.is_empty() {
            // What programs note from now on says when it came.
            self.connections.set_clock(uptime_s());
        }
        // Where other rules are refused those from before go on, and everything else is as it is wanted.
        let refused = self.begin_admission(&wanted.rules);
        let before = std::mem::replace(&mut self.captures.wanted, wanted.clone());
        // Each place is right before a program counts there.
        let ports: Vec<PortUuid> = self.ledger.records().keys().copied().collect();
        ports.into_iter().for_each(|port| self.capture_port(port));
        let changed: BTreeSet<PortId> = before.ports.symmetric_difference(&wanted.ports).copied().collect();
        let netdevs: Vec<_> = self
            .attached
            .iter()
            .filter(|(_, attachment)| changed.contains(&attachment.target.port))
            .map(|(id, _)| *id)
            .collect();
        netdevs.into_iter().for_each(|id| self.swap_programs_of(id));
        refused?;
        if wanted.rules.meters.is_empty() { self.end_admission() } else { Ok(()) }
    }

    /// Makes the place of a port's slot what it should be. A port for which that can't be is not captured.
    pub(super) fn capture_port(&mut self, port: PortUuid) {
        let Some(record) = self.ledger.records().get(&port) else { return };
        let (slot, class, is_uplink) = (record.slot, record.class, record.uplink != 0);
        if slot == UNBOUND_SLOT {
            return;
        }
        let wanted = self.captures.wants(port_id(port));
        if self.captures.wanted.undecided.contains(&port_id(port)) {
            return;
        }
        let owner = self.captures.owners.get(&slot).copied();
        if owner.is_some_and(|owner| owner != port)
            && let Err(error) = self.end_capture(slot)
        {
            tracing::error!(port = %port_id(port), error = %error, "connections of the port are not counted");
            return;
        }
        let meters = if class_of(class) != Class::Uplink { capture::METERS } else { 0 };
        if !wanted {
            // A program that counts connections may be there a little longer, or a little before.
            self.captures.set_wanted(slot, meters);
            return;
        }
        if owner != Some(port) {
            if let Some(other) = self.captures.slot_of(port)
                && let Err(error) = self.end_capture(other)
            {
                tracing::error!(port = %port_id(port), error = %error, "connections of the port are not counted");
                return;
            }
            self.captures.adopt(slot, port);
        }
        let mut bits = self.captures.wanted.bits | meters | capture::ON;
        if !self.captures.wanted.rules.meters.is_empty() {
            bits |= capture::RULES;
        }
        if !is_uplink {
            // What a guest tunnels is its own.
            bits &= !capture::INSIDE;
        }
        self.captures.set_wanted(slot, bits);
    }

    /// Drops what is there of ports of which the maps have no record any more: with their totals it would add up to nothing.
    pub(super) fn forget_captures(&mut self) {
        let records = self.ledger.records();
        let unknown = |port: &&PortUuid| !records.contains_key(*port);
        let slots = self.captures.owners.iter().filter(|(_, port)| unknown(port)).map(|(slot, _)| *slot);
        let slots: Vec<u32> = slots.collect();
        let ended: Result<(), MetersError> = slots.into_iter().try_for_each(|slot| self.end_capture(slot));
        let records = self.ledger.records();
        let ports = self.captures.without_slot.keys().filter(|port| !records.contains_key(*port));
        let ports: Vec<PortUuid> = ports.copied().collect();
        if let Err(error) =
            ended.and_then(|()| ports.into_iter().try_for_each(|port| self.captures.forget(port)))
        {
            tracing::error!(error = %error, "connections of ports that are not known any more are not forgotten");
        }
    }

    /// Ends the connections of a slot, and saves what its port has.
    fn end_capture(&mut self, slot: u32) -> Result<(), MetersError> {
        self.captures.set_wanted(slot, 0);
        let Self { connections, captures, grace, .. } = self;
        connections.end_slot(slot, captures, || grace.wait()).map_err(|error| {
            MetersError(format!("end the connections of the port that had its counters before: {error}"))
        })?;
        captures.save(slot)
    }
}

fn words(port: PortUuid) -> [u64; 2] {
    let PortUuid { uuid: [a, b, c, d, e, f, g, h, rest @ ..] } = port;
    [u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from_ne_bytes(rest)]
}

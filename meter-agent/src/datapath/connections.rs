//! The table of connections: what the programs put there, and what has been idle for long enough to be taken out.
//!
//! What a connection has moved is added to what ended of its slot before its place is another's. A place is given back in two steps with a grace period between them, so that no program still writes to it when another
//! connection gets it.

mod reading;

use std::{
    collections::BTreeMap,
    io,
    os::fd::AsFd as _,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError, Queue},
};
use meter_ebpf::{
    abi::{
        Counter,
        connection::{
            CONNECTION_LABELS, CONNECTION_PORTS, CONNECTION_WORDS, Connection, ConnectionKey, Course,
            Handshake,
        },
        map,
    },
    packet::numbers::IP_TCP,
};

use super::{
    captures::Captures,
    kernel::uptime_s,
    mapped::MappedWords,
    maps::{take, typed},
    open::{OpenError, load_error},
};

/// Seconds without a frame after which TCP's connection is taken for gone where both ends have sent: 2 hours and 4 minutes.
/// <https://www.rfc-editor.org/rfc/rfc5382#section-5> (REQ-5)
const TCP_IDLE: u32 = 7_440;
/// The same for other protocols: 5 minutes.
/// <https://www.rfc-editor.org/rfc/rfc4787#section-4.3> (REQ-5)
const OTHER_IDLE: u32 = 300;
/// The same where only one end has sent. Longer than the first five repetitions of a SYN take, which wait 1, 2, 4, 8 and 16
/// seconds.
const UNANSWERED_IDLE: u32 = 60;
/// The same once both ends have said their last, or one has reset the connection: what Linux' connection tracking waits.
/// <https://www.kernel.org/doc/html/latest/networking/nf_conntrack-sysctl.html> (`nf_conntrack_tcp_timeout_close`)
const ENDED_IDLE: u32 = 10;

/// Seconds that the clock may be behind when it is set.
const LATE: u32 = 2;
/// Connections that are taken out at one tick at most.
const LEAVING_AT_ONCE: usize = 4_096;

/// Words of a place: the course is behind the key, and the times are behind it.
const PLACE: usize = size_of::<Connection>() / size_of::<u64>();
const COURSE: usize = CONNECTION_WORDS;
const TIMES: usize = COURSE + 1;
const COUNTS: usize = TIMES + 1;
/// Words of a place in the table of handshakes.
const HANDSHAKE: usize = size_of::<Handshake>() / size_of::<u64>();
/// In the place of no connection: the map was brought into its first state. Stands where others have their first frame's time.
const READY: u32 = 1;
/// The maps.
pub(super) const MAPS: [&str; 5] = [
    map::CONNECTIONS,
    map::CONNECTION_KEYS,
    map::CONNECTION_FREE,
    map::CONNECTION_HINTS,
    map::CONNECTION_TIMES,
];

/// The table.
pub(super) struct Connections {
    keys: HashMap<MapData, ConnectionKey, u32>,
    free: Queue<MapData, u32>,
    places: MappedWords,
    handshakes: MappedWords,
    /// Held for as long as they are mapped.
    _maps: [Map; 2],
    /// Places that were taken from their connections and that nobody may have yet.
    leaving: Vec<u32>,
    /// Connections at the last tick.
    count: usize,
    /// When they were taken over or made, by the agent's clock.
    opened_s: u32,
    /// Since when the clock has run: what came before, and said nothing of when, is taken to have come then.
    since: Option<u32>,
}

impl Connections {
    /// Takes the maps out of the loaded object; all of them are new or none. `places` is how many connections there may be.
    pub(super) fn take(ebpf: &mut Ebpf, places: u32, captures: &Captures) -> Result<Self, OpenError> {
        let mut mapped = |name, words| {
            let map = take(ebpf, name)?;
            let Map::Array(data) = &map else {
                return Err(OpenError::Object(format!("map {name} is not an array")));
            };
            let mapped = MappedWords::map(data.fd().as_fd(), (index(places) + 1) * words)
                .map_err(|error| load_error(&format!("map {name} into memory"), &error))?;
            Ok((map, mapped))
        };
        let (map, mapped_places) = mapped(map::CONNECTIONS, PLACE)?;
        let (times, handshakes) = mapped(map::CONNECTION_TIMES, HANDSHAKE)?;
        let mut table = Self {
            keys: typed(|name| take(ebpf, name), map::CONNECTION_KEYS)?,
            free: typed(|name| take(ebpf, name), map::CONNECTION_FREE)?,
            places: mapped_places,
            handshakes,
            _maps: [map, times],
            leaving: Vec::new(),
            count: 0,
            opened_s: uptime_s(),
            since: None,
        };
        captures.finish(|place| table.clear(place));
        table.prepare()?;
        Ok(table)
    }

    /// Lets the programs have every place that is nobody's.
    fn prepare(&mut self) -> Result<(), OpenError> {
        let failed = |source: MapError| OpenError::Write { map: map::CONNECTION_FREE, source };
        let (ready, clock) = halves(self.word(0, TIMES));
        if ready == READY {
            // What an agent that was killed was giving back is free at the next tick. One that it had unmarked may be in
            // the queue already, and is left: a place less is better than two connections in one.
            for place in 1..=self.last() {
                if self.course(place).leaving != 0 {
                    self.part(place).map_err(failed)?;
                } else if self.word(place, CONNECTION_LABELS) != 0 {
                    self.count += 1;
                }
            }
            return Ok(());
        }
        // No program has hung on a hook with these maps.
        while self.free.pop(0).is_ok() {}
        for place in 1..=self.last() {
            self.free.push(place, 0).map_err(failed)?;
        }
        self.store(0, TIMES, joined(READY, clock));
        Ok(())
    }

    /// Tells the programs the time, in seconds, and takes out what is idle; `in_use` says whether programs ask for
    /// connections, and `wait` waits until every program has ended that runs now. Costs next to nothing while programs don't
    /// ask and there are no connections.
    pub(super) fn tend(
        &mut self,
        now: u32,
        in_use: InUse,
        captures: &Captures,
        wait: impl FnOnce() -> io::Result<()>,
    ) {
        if let Err(error) = self.give_back_all(captures, wait) {
            tracing::warn!(error = %error, "places of idle connections are not free yet");
        }
        let InUse { capture, flow } = in_use;
        let in_use = capture || flow;
        if !in_use && self.count == 0 {
            return;
        }
        let (_, clock) = halves(self.word(0, TIMES));
        if self.since.is_none() || now.saturating_sub(clock) > LATE {
            // What came while the clock stood still says an earlier time than it came at.
            self.since = Some(now);
        }
        let since = self.since.unwrap_or(now);
        self.set_clock(now);
        self.count = 0;
        let mut live = BTreeMap::new();
        for place in 1..=self.last() {
            let labels = self.word(place, CONNECTION_LABELS);
            if labels == 0 {
                continue;
            }
            let (_, last_seen) = halves(self.word(place, TIMES));
            let idle = now.saturating_sub(last_seen.max(since));
            let (slot, course) = (self.slot(place), self.course(place));
            let owned = captures.owner(slot).is_some();
            let is_captured = owned && self.has_counted(place);
            let limit = match (is_captured, flow) {
                // There for its direction alone, and nobody asks.
                (false, false) if owned && course.uncounted != 0 => 0,
                (false, _) => idle_limit(labels, course),
                (true, false) => captures.wanted().idle_limit(course),
                (true, true) => captures.wanted().idle_limit(course).max(idle_limit(labels, course)),
            };
            if idle < limit || self.leaving.len() >= LEAVING_AT_ONCE {
                self.count += 1;
                if is_captured {
                    *live.entry(slot).or_default() += 1;
                }
            } else if let Err(error) = self.take_out(place) {
                tracing::warn!(place, error = %error, "an idle connection stays in the table");
            }
        }
        captures.set_live(&live);
    }

    /// Takes out all connections of a slot, with what they have moved.
    pub(super) fn end_slot(
        &mut self,
        slot: u32,
        captures: &Captures,
        wait: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        for place in 1..=self.last() {
            if self.word(place, CONNECTION_LABELS) != 0 && self.slot(place) == slot {
                self.take_out(place).map_err(io::Error::other)?;
            }
        }
        // Also where there are none: a program may still count what is in no connection.
        wait()?;
        self.give_back_all(captures, || Ok(()))
    }

    /// Returns how many connections there were at the last tick.
    pub(super) const fn count(&self) -> usize {
        self.count
    }

    /// Takes a place from its connection.
    fn take_out(&mut self, place: u32) -> Result<(), MapError> {
        let course = self.course(place);
        self.store(place, COURSE, Course { leaving: 1, ..course }.bits());
        self.part(place).inspect_err(|_| self.store(place, COURSE, course.bits()))
    }

    /// Does it for a place that is marked.
    fn part(&mut self, place: u32) -> Result<(), MapError> {
        // The key first: a program that comes now finds the place until its labels are gone, and then makes another.
        if self.word(place, CONNECTION_LABELS) != 0 {
            let key = self.key(place);
            forget(&mut self.keys, &key)?;
        }
        self.store(place, CONNECTION_LABELS, 0);
        self.leaving.push(place);
        Ok(())
    }

    /// Lets programs have the places that were taken from their connections, once none of them uses one any more.
    fn give_back_all(
        &mut self,
        captures: &Captures,
        wait: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        if self.leaving.is_empty() {
            return Ok(());
        }
        wait()?;
        for place in std::mem::take(&mut self.leaving) {
            if let Err(error) = self.give_back(place, captures) {
                tracing::warn!(place, error = %error, "a connection's place is not free again");
            }
        }
        Ok(())
    }

    /// Tells the programs the time.
    pub(super) fn set_clock(&self, now: u32) {
        self.store(0, TIMES, joined(READY, now));
    }

    /// Lets a program have a place, once what the connection had is where it stays.
    fn give_back(&mut self, place: u32, captures: &Captures) -> Result<(), MapError> {
        if self.has_counted(place) {
            captures.fold(place, self.slot(place), self.by_direction(place), || self.clear(place));
        } else {
            self.clear(place);
        }
        self.store(place, COURSE, 0);
        self.free.push(place, 0)
    }

    fn last(&self) -> u32 {
        u32::try_from(self.places.words().len() / PLACE).unwrap_or(u32::MAX).saturating_sub(1)
    }

    /// Takes from a place what its connection has counted.
    fn clear(&self, place: u32) {
        (COUNTS..PLACE).for_each(|word| self.store(place, word, 0));
        let first = index(place) * HANDSHAKE;
        let words = self.handshakes.words().get(first..first + HANDSHAKE).into_iter().flatten();
        words.for_each(|word| word.store(0, Ordering::Release));
    }

    /// Returns what each end has sent, by direction.
    fn counts(&self, place: u32) -> [[Counter; 2]; 2] {
        let counter = |number: usize| {
            let word = COUNTS + 2 * number;
            Counter { packets: self.word(place, word), bytes: self.word(place, word + 1) }
        };
        [[counter(0), counter(1)], [counter(2), counter(3)]]
    }

    /// Returns what both ends have sent, by direction.
    fn by_direction(&self, place: u32) -> [Counter; 2] {
        let [mut sums, high] = self.counts(place);
        sums.iter_mut().zip(&high).for_each(|(sum, count)| sum.add(count));
        sums
    }

    /// Returns whether frames of a connection were counted: of one that only rules with `flow` asked for, none were.
    fn has_counted(&self, place: u32) -> bool {
        self.by_direction(place) != [Counter::default(); 2]
    }

    /// Returns the slot in which a connection was seen; that of the last one where there is none now.
    fn slot(&self, place: u32) -> u32 {
        lower(self.word(place, CONNECTION_PORTS))
    }

    fn key(&self, place: u32) -> ConnectionKey {
        ConnectionKey { words: std::array::from_fn(|word| self.word(place, word)) }
    }

    fn course(&self, place: u32) -> Course {
        Course::from_bits(self.word(place, COURSE))
    }

    fn at(&self, place: u32, word: usize) -> Option<&AtomicU64> {
        self.places.words().get(index(place) * PLACE + word)
    }

    fn word(&self, place: u32, word: usize) -> u64 {
        self.at(place, word).map_or(0, load)
    }

    fn store(&self, place: u32, word: usize, bits: u64) {
        if let Some(word) = self.at(place, word) {
            word.store(bits, Ordering::Release);
        }
    }
}

/// Returns how many seconds a connection may be idle.
fn idle_limit(labels: u64, course: Course) -> u32 {
    let is_tcp = labels >> 8 & 0xff == u64::from(IP_TCP);
    match (course.has_ended(), course.answered != 0) {
        (true, _) => ENDED_IDLE,
        (false, false) => UNANSWERED_IDLE,
        (false, true) if is_tcp => TCP_IDLE,
        (false, true) => OTHER_IDLE,
    }
}

fn forget(keys: &mut HashMap<MapData, ConnectionKey, u32>, key: &ConnectionKey) -> Result<(), MapError> {
    match keys.remove(key) {
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() != Some(libc::ENOENT) => {
            Err(MapError::SyscallError(error))
        }
        _ => Ok(()),
    }
}

/// Who asks programs for connections.
#[derive(Debug, Clone, Copy)]
pub(super) struct InUse {
    /// They are counted.
    pub(super) capture: bool,
    /// Rules of user-defined meters.
    pub(super) flow: bool,
}

/// Returns the lower half of a word.
const fn lower(word: u64) -> u32 {
    let [a, b, c, d, ..] = word.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn load(word: &AtomicU64) -> u64 {
    word.load(Ordering::Relaxed)
}

pub(super) fn index(place: u32) -> usize {
    usize::try_from(place).unwrap_or(usize::MAX)
}

/// Returns the numbers that lie in the first and the second half of a word.
pub(super) const fn halves(word: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]))
}

pub(super) const fn joined(first: u32, second: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

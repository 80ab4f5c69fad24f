//! The table of connections: what the programs put there, and what has been idle for long enough to be taken out.
//!
//! A place is given back in two steps with a grace period between them, so that no program still writes to it when another
//! connection gets it.

use std::{
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
        connection::{CONNECTION_LABELS, CONNECTION_WORDS, Connection, ConnectionKey, Course},
        map,
    },
    packet::numbers::IP_TCP,
};

use super::{
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
/// In the place of no connection: the map was brought into its first state. Stands where others have their first frame's time.
const READY: u32 = 1;
/// In a course's filling: the place is being given back.
const LEAVING: u8 = 1;

/// The maps.
pub(super) const MAPS: [&str; 4] =
    [map::CONNECTIONS, map::CONNECTION_KEYS, map::CONNECTION_FREE, map::CONNECTION_HINTS];

/// The table.
pub(super) struct Connections {
    keys: HashMap<MapData, ConnectionKey, u32>,
    free: Queue<MapData, u32>,
    places: MappedWords,
    /// Held for as long as it is mapped.
    _map: Map,
    /// Places that were taken from their connections and that nobody may have yet.
    leaving: Vec<u32>,
    /// Connections at the last tick.
    count: usize,
    /// Since when the clock has run: what came before, and said nothing of when, is taken to have come then.
    since: Option<u32>,
}

impl Connections {
    /// Takes the maps out of the loaded object; all of them are new or none. `places` is how many connections there may be.
    pub(super) fn take(ebpf: &mut Ebpf, places: u32) -> Result<Self, OpenError> {
        let map = take(ebpf, map::CONNECTIONS)?;
        let Map::Array(data) = &map else {
            return Err(OpenError::Object(format!("map {} is not an array", map::CONNECTIONS)));
        };
        let words = (index(places) + 1) * PLACE;
        let mapped = MappedWords::map(data.fd().as_fd(), words)
            .map_err(|error| load_error(&format!("map {} into memory", map::CONNECTIONS), &error))?;
        let mut table = Self {
            keys: typed(|name| take(ebpf, name), map::CONNECTION_KEYS)?,
            free: typed(|name| take(ebpf, name), map::CONNECTION_FREE)?,
            places: mapped,
            _map: map,
            leaving: Vec::new(),
            count: 0,
            since: None,
        };
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
                if self.course(place).padding[0] == LEAVING {
                    self.part(place).map_err(failed)?;
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
    pub(super) fn tend(&mut self, now: u32, in_use: bool, wait: impl FnOnce() -> io::Result<()>) {
        if !self.leaving.is_empty() {
            self.give_back_all(wait);
        }
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
        for place in 1..=self.last() {
            let labels = self.word(place, CONNECTION_LABELS);
            if labels == 0 {
                continue;
            }
            let (_, last_seen) = halves(self.word(place, TIMES));
            let idle = now.saturating_sub(last_seen.max(since));
            if idle < idle_limit(labels, self.course(place)) || self.leaving.len() >= LEAVING_AT_ONCE {
                self.count += 1;
            } else if let Err(error) = self.take_out(place) {
                tracing::warn!(place, error = %error, "an idle connection stays in the table");
            }
        }
    }

    /// Returns how many connections there were at the last tick.
    pub(super) const fn count(&self) -> usize {
        self.count
    }

    /// Takes a place from its connection.
    fn take_out(&mut self, place: u32) -> Result<(), MapError> {
        let course = self.course(place);
        self.store(place, COURSE, Course { padding: [LEAVING, 0], ..course }.bits());
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
    fn give_back_all(&mut self, wait: impl FnOnce() -> io::Result<()>) {
        if let Err(error) = wait() {
            tracing::warn!(error = %error, "places of idle connections are not free yet");
            return;
        }
        for place in std::mem::take(&mut self.leaving) {
            if let Err(error) = self.give_back(place) {
                tracing::warn!(place, error = %error, "a connection's place is not free again");
            }
        }
    }

    /// Tells the programs the time.
    pub(super) fn set_clock(&self, now: u32) {
        self.store(0, TIMES, joined(READY, now));
    }

    /// Lets a program have a place.
    fn give_back(&mut self, place: u32) -> Result<(), MapError> {
        self.store(place, COURSE, 0);
        self.free.push(place, 0)
    }

    fn last(&self) -> u32 {
        u32::try_from(self.places.words().len() / PLACE).unwrap_or(u32::MAX).saturating_sub(1)
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
        self.at(place, word).map_or(0, |word| word.load(Ordering::Relaxed))
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

fn index(place: u32) -> usize {
    usize::try_from(place).unwrap_or(usize::MAX)
}

/// Returns the numbers that lie in the first and the second half of a word.
const fn halves(word: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]))
}

const fn joined(first: u32, second: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

//! The table of connections: where each has its place, and what its frames leave there.
//!
//! Common to every `unsafe` block here: a place is shared by all CPUs and by user space, so its parts are read and written
//! by single volatile loads and stores of what is aligned to its size; any bits of them are a value. A place belongs to
//! nobody between its being taken from the queue and its labels' being written, and again after user space has cleared
//! those.

mod captured;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::{Array, HashMap, Queue},
    helpers::bpf_ktime_get_ns,
    macros::btf_map,
};
use meter_ebpf::{
    abi::{
        Fault, PortUuid,
        connection::{
            CONNECTION_LABELS, CONNECTION_WORDS, Capture, Connection, ConnectionHints, ConnectionKey, Course,
            HINTS, Handshake, SavedCapture,
        },
    },
    connection::{Seen, is_return_alone},
};

pub(crate) use self::captured::{Asked, Captured, Counted, Echo, Packet};
use crate::maps;

// Sizes in the object; user space sets those that its configuration names before it loads.
#[btf_map]
static CONNECTIONS: Array<Connection, 16_385, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
static CONNECTION_KEYS: HashMap<ConnectionKey, u32, 16_384> = HashMap::new();
#[btf_map]
static CONNECTION_FREE: Queue<u32, 16_384> = Queue::new();
#[btf_map]
static CONNECTION_HINT: Array<ConnectionHints, 1> = Array::new();

#[btf_map]
static CONNECTION_TIME: Array<Handshake, 16_385, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
static CAPTURES: Array<Capture, 4_352, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
static CAPTURE_SAVED: HashMap<PortUuid, SavedCapture, 65_536, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// The place that is no connection's.
const NO_PLACE: u32 = 0;

/// Notes a frame of a connection; returns whether it goes against the connection's first. `flags` are TCP's.
///
/// One that has no place any more in the table is told by what it says of itself.
#[inline(always)]
pub(crate) fn note(seen: &Seen, flags: u8, length: u32) -> bool {
    let Ok(place) = find(seen, flags, || Beginning::Uncounted) else {
        maps::count_fault(Fault::ConnectionTableFull, length);
        return is_return_alone(flags);
    };
    place.follow(place.course(), seen, flags).is_return(seen.from)
}

/// What becomes of a connection that is not counted so far.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beginning {
    /// It is counted from now on.
    Counted,
    /// It has a place for its direction alone.
    Uncounted,
    /// The rules are to be asked first.
    Undecided,
    /// No rule matches.
    Refused,
    /// There is no room.
    Full,
}

/// Writes the parts that changed.
#[inline(always)]
fn write_course(place: *mut Connection, before: Course, after: Course) {
    // SAFETY: see the module.
    unsafe {
        let course = &raw mut (*place).course;
        if after.initiator != before.initiator {
            (&raw mut (*course).initiator).write_volatile(after.initiator);
        }
        if after.answered != before.answered {
            (&raw mut (*course).answered).write_volatile(after.answered);
        }
        if after.opened != before.opened {
            (&raw mut (*course).opened).write_volatile(after.opened);
        }
        if after.reset != before.reset {
            (&raw mut (*course).reset).write_volatile(after.reset);
        }
        if after.finished[0] != before.finished[0] {
            (&raw mut (*course).finished[0]).write_volatile(after.finished[0]);
        }
        if after.finished[1] != before.finished[1] {
            (&raw mut (*course).finished[1]).write_volatile(after.finished[1]);
        }
    }
}

/// Returns the present by the agent's clock.
#[inline(always)]
fn now() -> u32 {
    let Some(clock) = CONNECTIONS.get_ptr_mut(NO_PLACE) else { return 0 };
    // SAFETY: see the module.
    unsafe { (&raw const (*clock).last_seen).read_volatile() }
}

/// A connection's place.
#[derive(Clone, Copy)]
struct Place {
    number: u32,
    at: *mut Connection,
    /// Whether the connection got it just now.
    is_new: bool,
}

impl Place {
    /// Returns how far its connection is.
    #[inline(always)]
    fn course(self) -> Course {
        // SAFETY: see the module; `find` returned a place of the map.
        Course::from_bits(unsafe { (&raw const (*self.at).course).cast::<u64>().read_volatile() })
    }

    /// Notes a frame of its connection; returns how far that is by now.
    #[inline(always)]
    fn follow(self, before: Course, seen: &Seen, flags: u8) -> Course {
        let after = before.follow(seen.from, flags);
        if after.bits() != before.bits() {
            write_course(self.at, before, after);
        }
        let now = now();
        // SAFETY: as above.
        let last_seen = unsafe { &raw mut (*self.at).last_seen };
        // SAFETY: as above.
        unsafe {
            if last_seen.read_volatile() != now {
                last_seen.write_volatile(now);
            }
        }
        after
    }

    /// Says that frames of its connection are counted from now on.
    #[inline(always)]
    fn set_counted(self) {
        // SAFETY: as above.
        unsafe {
            (&raw mut (*self.at).first_seen).write_volatile(now());
            (&raw mut (*self.at).course.uncounted).write_volatile(0);
        }
    }

    /// Takes the time of what begins a round trip. A repeated one is not the first; one that begins the connection `anew` is.
    #[inline(always)]
    fn asked(self, anew: bool) {
        let Some(handshake) = CONNECTION_TIME.get_ptr_mut(self.number) else { return };
        // SAFETY: see the module; the helper takes nothing.
        unsafe {
            let asked = &raw mut (*handshake).asked_ns;
            if anew {
                (&raw mut (*handshake).rtt_ns).write_volatile(0);
            }
            if anew || asked.read_volatile() == 0 {
                asked.write_volatile(bpf_ktime_get_ns());
            }
        }
    }

    /// Takes the time of what ends it.
    #[inline(always)]
    fn answered(self) {
        let Some(handshake) = CONNECTION_TIME.get_ptr_mut(self.number) else { return };
        // SAFETY: see the module; the helper takes nothing.
        unsafe {
            let asked_ns = (&raw const (*handshake).asked_ns).read_volatile();
            let rtt = &raw mut (*handshake).rtt_ns;
            if asked_ns != 0 && rtt.read_volatile() == 0 {
                rtt.write_volatile(bpf_ktime_get_ns() - asked_ns);
            }
        }
    }
}

/// Returns a connection's place: where the hint says, or as the table has it. One that has none gets it if that is its
/// beginning, if there is room; or else the error is what it would have been.
#[inline(always)]
fn find(seen: &Seen, flags: u8, beginning: impl FnOnce() -> Beginning) -> Result<Place, Beginning> {
    let hint = hint_of(&seen.key).ok_or(Beginning::Full)?;
    // SAFETY: see the module.
    let number = unsafe { hint.read_volatile() };
    if let Some(at) = CONNECTIONS.get_ptr_mut(number)
        && is_of(at, &seen.key)
    {
        return Ok(Place { number, at, is_new: false });
    }
    let beginning = beginning();
    let found = resolve(seen, flags, beginning);
    if found < 0 {
        return Err(beginning);
    }
    let number = found as u32;
    // SAFETY: see the module.
    unsafe { hint.write_volatile(number) };
    let at = CONNECTIONS.get_ptr_mut(number).ok_or(Beginning::Full)?;
    Ok(Place { number, at, is_new: found & NEW != 0 })
}

#[inline(always)]
fn hint_of(key: &ConnectionKey) -> Option<*mut u32> {
    let hints = CONNECTION_HINT.get_ptr_mut(0)?;
    let index = key.hash() as usize & (HINTS - 1);
    // SAFETY: the index is below the array's length.
    Some(unsafe { (&raw mut (*hints).places).cast::<u32>().add(index) })
}

#[inline(always)]
fn is_of(place: *mut Connection, key: &ConnectionKey) -> bool {
    let mut differs = 0;
    for word in 0..CONNECTION_WORDS {
        // SAFETY: see the module.
        differs |= unsafe { (&raw const (*place).key.words[word]).read_volatile() } ^ key.words[word];
    }
    differs == 0
}

/// Above a place's number: its connection got it just now.
const NEW: i64 = 1 << 32;

/// Looks a connection's place up in the table, and gives it one there if this is its beginning; negative where it has none.
#[inline(never)]
fn resolve(seen: &Seen, flags: u8, beginning: Beginning) -> i64 {
    // SAFETY: a connection's place stays its own while the table has it.
    if let Some(place) = unsafe { CONNECTION_KEYS.get(&seen.key) } {
        return i64::from(*place);
    }
    let uncounted = match beginning {
        Beginning::Counted => 0,
        Beginning::Uncounted => 1,
        _ => return -1,
    };
    let Ok(Some(number)) = CONNECTION_FREE.pop() else { return -1 };
    let Some(place) = CONNECTIONS.get_ptr_mut(number) else { return -1 };
    let now = now();
    let course = Course { uncounted, ..Course::begin(seen.from, flags) }.bits();
    // SAFETY: the place is nobody's (see the module).
    unsafe {
        for word in 0..CONNECTION_LABELS {
            (&raw mut (*place).key.words[word]).write_volatile(seen.key.words[word]);
        }
        (&raw mut (*place).course).cast::<u64>().write_volatile(course);
        (&raw mut (*place).first_seen).write_volatile(now);
        (&raw mut (*place).last_seen).write_volatile(now);
    }
    if CONNECTION_KEYS.insert(seen.key, number, u64::from(BPF_NOEXIST)).is_ok() {
        // Last: whoever finds the key whole finds all of it. The table's lock was held in between.
        // SAFETY: as above.
        unsafe {
            (&raw mut (*place).key.words[CONNECTION_LABELS])
                .write_volatile(seen.key.words[CONNECTION_LABELS]);
        }
        return i64::from(number) | NEW;
    }
    // Another CPU was faster, or the table refused. That the place goes back can't fail: it was taken from there.
    let _ = CONNECTION_FREE.push(number, 0);
    // SAFETY: as above.
    match unsafe { CONNECTION_KEYS.get(&seen.key) } {
        Some(place) => i64::from(*place),
        None => -1,
    }
}

//! Netdevs whose connections are counted: which, and what is counted of them.
//!
//! Common to every `unsafe` block here: as in the module above, a netdev's value is shared by all CPUs and by user space, so
//! its parts are read by single volatile loads of what is aligned to its size, and added to by single instructions.

use core::arch::asm;

use meter_ebpf::{
    abi::{
        Counter, Fault,
        connection::{Capture, capture},
    },
    connection::{Seen, answers, asks, is_return_alone},
    packet::numbers::{IP_SCTP, IP_TCP, IP_UDP},
    rules::Ends,
};

use super::{Beginning, CAPTURES, find};
use crate::maps;

/// What is counted of a netdev's connections.
#[derive(Clone, Copy)]
pub(crate) struct Captured(*mut Capture);

impl Captured {
    /// Returns it of a slot's netdev.
    #[inline(always)]
    pub(crate) fn of(slot: u32) -> Option<Self> {
        CAPTURES.get_ptr_mut(slot).map(Self)
    }

    /// Returns whether connections are counted at all.
    #[inline(always)]
    pub(crate) fn counts_connections(self) -> bool {
        self.wanted() & capture::ON != 0
    }

    #[inline(always)]
    fn wanted(self) -> u32 {
        // SAFETY: see the module; non-null, since `of` made it.
        unsafe { (&raw const (*self.0).wanted).read_volatile() }
    }

    /// Returns whether frames count in user-defined meters as well.
    #[inline(always)]
    pub(crate) fn counts_meters(self) -> bool {
        self.wanted() & capture::METERS != 0
    }

    /// Returns whether what tunnel packets hold is counted, and not they.
    #[inline(always)]
    pub(crate) fn looks_inside(self) -> bool {
        self.wanted() & capture::INSIDE != 0
    }

    /// Returns whether connections of a packet's sort are counted.
    #[inline(always)]
    fn wants(self, packet: Packet) -> bool {
        self.wanted() & packet.sort == packet.sort
    }

    /// Returns what becomes of a frame's connection that is not counted so far.
    #[inline(always)]
    fn beginning(self, asked: Asked) -> Beginning {
        if self.wanted() & capture::RULES != 0 {
            match asked {
                Asked::Not => return Beginning::Undecided,
                Asked::Refused => return Beginning::Refused,
                Asked::Matched => {}
            }
        }
        // SAFETY: as in `wanted`.
        let (live, share) = unsafe {
            ((&raw const (*self.0).live).read_volatile(), (&raw const (*self.0).share).read_volatile())
        };
        if live < u64::from(share) { Beginning::Counted } else { Beginning::Full }
    }

    /// Counts a frame that is in no connection.
    #[inline(always)]
    pub(crate) fn count_other(self, direction: usize, wire: &Counter) {
        // SAFETY: as in `wanted`; the caller's direction is 0 or 1.
        add(unsafe { (&raw mut (*self.0).other).cast::<Counter>().add(direction & 1) }, wire);
    }

    /// Counts a frame in its connection, where that is wanted and has room, or else in none.
    #[inline(always)]
    pub(crate) fn count(
        self,
        seen: &Seen,
        packet: Packet,
        asked: Asked,
        direction: usize,
        wire: &Counter,
        length: u32,
    ) -> Counted {
        let Packet { flags, echo, .. } = packet;
        if !self.wants(packet) {
            self.count_other(direction, wire);
            return Counted::Unknown;
        }
        let place = match find(seen, flags, || self.beginning(asked)) {
            Ok(place) => place,
            Err(beginning) => return self.count_without_place(beginning, flags, direction, wire, length),
        };
        let before = place.course();
        let is_counted = if place.is_new {
            self.increase_live();
            true
        } else if before.uncounted == 0 {
            true
        } else {
            match self.beginning(asked) {
                Beginning::Undecided => return Counted::UndecidedInPlace,
                Beginning::Counted => {
                    place.set_counted();
                    self.increase_live();
                    true
                }
                Beginning::Full => {
                    maps::count_fault(Fault::ConnectionTableFull, length);
                    false
                }
                Beginning::Refused | Beginning::Uncounted => false,
            }
        };
        let is_return = place.follow(before, seen, flags).is_return(seen.from);
        if !is_counted {
            self.count_other(direction, wire);
            return Counted::of(is_return);
        }
        if asks(flags) || matches!(echo, Echo::Request) {
            place.asked(before.has_ended());
        } else if is_return && (answers(flags) || matches!(echo, Echo::Reply)) {
            place.answered();
        }
        let index = (seen.from as usize & 1) * 2 + (direction & 1);
        // SAFETY: see the module; there are four counters.
        add(unsafe { (&raw mut (*place.at).counts).cast::<Counter>().add(index) }, wire);
        Counted::of(is_return)
    }

    /// Counts a frame whose connection has no place.
    #[inline(always)]
    fn count_without_place(
        self,
        beginning: Beginning,
        flags: u8,
        direction: usize,
        wire: &Counter,
        length: u32,
    ) -> Counted {
        match beginning {
            Beginning::Undecided => Counted::Undecided,
            // It may have one for its direction.
            Beginning::Refused => {
                self.count_other(direction, wire);
                Counted::Unknown
            }
            Beginning::Counted | Beginning::Uncounted | Beginning::Full => {
                maps::count_fault(Fault::ConnectionTableFull, length);
                self.count_other(direction, wire);
                Counted::of(is_return_alone(flags))
            }
        }
    }

    /// Says that the netdev has one more connection.
    #[inline(always)]
    fn increase_live(self) {
        // SAFETY: as in `wanted`.
        increase(unsafe { &raw mut (*self.0).live }, 1);
    }
}

/// What a packet is to its connection, but for its ends.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Packet {
    /// Its protocol and its version of IP, as bits of what a netdev wants.
    sort: u32,
    /// TCP's.
    flags: u8,
    pub(crate) echo: Echo,
}

impl Packet {
    /// A packet between such ends.
    #[inline(always)]
    pub(crate) fn between(ends: &Ends, flags: u8, echo: Echo) -> Self {
        let protocol = match ends.protocol {
            IP_TCP => capture::TCP,
            IP_UDP => capture::UDP,
            IP_SCTP => capture::SCTP,
            _ => capture::ICMP,
        };
        let sort = protocol | if ends.ipv6 { capture::IPV6 } else { capture::IPV4 };
        Self { sort, flags, echo }
    }
}

/// What the rules said of a frame whose connection is not counted so far.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Asked {
    /// They were not asked.
    Not,
    /// One matches.
    Matched,
    /// None does.
    Refused,
}

impl Asked {
    /// Returns the one with a number.
    #[inline(always)]
    pub(crate) const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Not,
            1 => Self::Matched,
            _ => Self::Refused,
        }
    }
}

/// What became of a frame.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    /// Nothing so far: the rules are to be asked.
    Undecided,
    /// The same; its connection has a place for its direction.
    UndecidedInPlace,
    /// It is counted; which way it goes in its connection was not asked.
    Unknown,
    /// It is counted, and goes the way of its connection's first.
    Forward,
    /// It is counted, and goes against it.
    Return,
}

impl Counted {
    #[inline(always)]
    const fn of(is_return: bool) -> Self {
        if is_return { Self::Return } else { Self::Forward }
    }
}

/// What a frame is to a round trip of ICMP.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(crate) enum Echo {
    /// Nothing: it is of another protocol.
    None,
    /// It asks.
    Request,
    /// It answers.
    Reply,
}

/// Counts in a counter that all CPUs share.
#[inline(always)]
fn add(counter: *mut Counter, wire: &Counter) {
    // SAFETY: the callers' counters are of a map.
    let (packets, bytes) = unsafe { (&raw mut (*counter).packets, &raw mut (*counter).bytes) };
    increase(packets, wire.packets);
    increase(bytes, wire.bytes);
}

/// Adds to a number that all CPUs share. By hand, since the compiler takes the target for one without such instructions.
#[inline(always)]
fn increase(number: *mut u64, by: u64) {
    // SAFETY: the callers' numbers are of a map, aligned, and programs write them by this instruction only.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) number, in(reg) by, options(nostack)) };
}

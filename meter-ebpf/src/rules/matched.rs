//! The rules that match a frame, listed, and the meters that they come to.

use crate::abi::rules::{MAX_CACHED, MAX_RULES, Verdict};

/// What is done about the rules that match a frame.
pub trait Matches {
    /// Takes those of one word of a vector; at least one bit is set.
    fn add(&mut self, word: u32, bits: u64);
}

/// Whether any rule matches a frame.
#[derive(Debug, Clone, Copy, Default)]
pub struct Anything(bool);

impl Anything {
    /// Returns whether one does.
    #[inline(always)]
    #[must_use]
    pub const fn is_found(self) -> bool {
        self.0
    }
}

impl Matches for Anything {
    #[inline(always)]
    fn add(&mut self, _: u32, _: u64) {
        self.0 = true;
    }
}

/// The rules that match a frame, and the meters that they come to.
#[derive(Debug)]
#[repr(C)]
pub struct Matched {
    rules: [u16; MAX_RULES],
    /// How many there are.
    number: u32,
    /// The counters of the meters, as many as a verdict has.
    counters: [u16; MAX_CACHED],
    /// How many meters there are.
    meters: u32,
    /// The counter of the rule before.
    last: u32,
    /// How often it began.
    turn: u32,
}

impl Default for Matched {
    fn default() -> Self {
        Self {
            rules: [0; MAX_RULES],
            number: 0,
            counters: [0; MAX_CACHED],
            meters: 0,
            last: u32::MAX,
            turn: 0,
        }
    }
}

impl Matched {
    /// Begins with none; returns which turn that is.
    #[inline(always)]
    pub fn clear(&mut self) -> u32 {
        self.turn = self.turn.wrapping_add(1);
        self.number = 0;
        self.meters = 0;
        self.last = u32::MAX;
        self.turn
    }

    /// Returns whether no other turn began since, as by a program that interrupts this one where a kernel lets it.
    #[inline(always)]
    #[must_use]
    pub const fn is_at(&self, turn: u32) -> bool {
        self.turn == turn
    }

    /// Adds the rules whose bits are set in one word of a vector.
    #[inline(always)]
    pub fn list(&mut self, word: u32, mut bits: u64) {
        let mut number = self.number;
        for _ in 0..64 {
            if bits == 0 {
                break;
            }
            let rule = word * 64 + bits.trailing_zeros();
            self.rules[number as usize & (MAX_RULES - 1)] = (rule & 0xffff) as u16;
            number += 1;
            bits &= bits - 1;
        }
        self.number = number;
    }

    /// Returns one of the rules.
    #[inline(always)]
    #[must_use]
    pub fn rule(&self, place: usize) -> Option<u16> {
        if place < self.number as usize { Some(self.rules[place]) } else { None }
    }

    /// Notes the meter of the next rule, by its counter; returns whether that is another one than of the rule before, and has
    /// to count.
    #[inline(always)]
    pub fn note(&mut self, counter: u32) -> bool {
        if self.last == counter {
            return false;
        }
        self.last = counter;
        let place = self.meters as usize;
        if place < MAX_CACHED {
            self.counters[place] = (counter & 0xffff) as u16;
        }
        self.meters += 1;
        true
    }

    /// Lets a verdict have the meters of a turn. With more than it has places for it is void, and where another turn began
    /// meanwhile.
    #[inline(always)]
    pub fn remember(&self, turn: u32, verdict: &mut Verdict) {
        for (to, from) in verdict.counters.iter_mut().zip(&self.counters) {
            *to = *from;
        }
        verdict.count = self.meters.into();
        if self.meters as usize > MAX_CACHED || !self.is_at(turn) {
            verdict.key.make_void();
        }
    }
}

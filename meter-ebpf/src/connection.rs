//! Which connection a packet is of ([`Seen::of`]), and who began it ([`Course`]).
//!
//! TCP, UDP and SCTP over IPv4 and IPv6 have connections: all packets between the same two pairs of address and port.
//! The initiator is the sender of TCP's SYN where that was seen, and else of the first packet.

use crate::abi::{
    Encap,
    connection::{CONNECTION_LABELS, ConnectionKey, Course, End},
    rules::FlowKey,
};
use crate::rules::Ends;

/// Bits of TCP's flags.
/// <https://www.rfc-editor.org/rfc/rfc9293#section-3.1>
mod tcp {
    pub(super) const FIN: u8 = 0x01;
    pub(super) const SYN: u8 = 0x02;
    pub(super) const RST: u8 = 0x04;
    pub(super) const ACK: u8 = 0x10;
}

/// A packet's connection, and the end that sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The connection.
    pub key: ConnectionKey,
    /// The end.
    pub from: End,
}

impl Seen {
    /// Returns the connection of a packet, by its fields and the slot of the port where it is seen; `None` for what is of
    /// none.
    #[inline(always)]
    #[must_use]
    pub fn of(fields: &FlowKey, slot: u32) -> Option<Self> {
        Some(Self::between(&fields.ends()?, slot))
    }

    /// Returns the connection between these ends, of a packet that the source sent.
    #[inline(always)]
    #[must_use]
    pub fn between(ends: &Ends, slot: u32) -> Self {
        let [src_high, src_low, dst_high, dst_low] = ends.addresses;
        let (src_port, dst_port) = (ends.ports >> 16, ends.ports & 0xffff);
        let from_high = if src_high == dst_high && src_low == dst_low {
            src_port > dst_port
        } else if src_high == dst_high {
            src_low > dst_low
        } else {
            src_high > dst_high
        };
        let labels = u64::from(ends.protocol) << 8 | u64::from(ends.ipv6);
        let slot = u64::from(slot);
        if from_high {
            let ports = u64::from(dst_port << 16 | src_port) << 32 | slot;
            Self {
                key: ConnectionKey { words: [dst_high, dst_low, src_high, src_low, ports, labels] },
                from: End::High,
            }
        } else {
            let ports = u64::from(ends.ports) << 32 | slot;
            Self {
                key: ConnectionKey { words: [src_high, src_low, dst_high, dst_low, ports, labels] },
                from: End::Low,
            }
        }
    }

    /// Says in which tunnel it is: [`Inside::labels`](crate::packet::tunnel::Inside::labels), 0 for none.
    #[inline(always)]
    #[must_use]
    pub const fn inside(mut self, labels: u64) -> Self {
        self.key.words[CONNECTION_LABELS] |= labels;
        self
    }
}

impl ConnectionKey {
    /// Returns the encapsulation that it is in, and the VNI or GRE key there.
    #[must_use]
    pub const fn overlay(&self) -> Option<(Encap, u32)> {
        let [_, _, encap, _, a, b, c, d] = self.words[CONNECTION_LABELS].to_le_bytes();
        match Encap::from_number(encap) {
            Some(encap) => Some((encap, u32::from_le_bytes([a, b, c, d]))),
            None => None,
        }
    }

    /// Mixes all words into one number.
    #[inline(always)]
    #[must_use]
    pub fn hash(&self) -> u32 {
        let mut hash = 0_u64;
        for word in self.words {
            hash = (hash.rotate_left(29) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        (hash >> 40) as u32
    }
}

impl Course {
    /// Returns how a connection begins with a packet of this end; `flags` are TCP's, 0 for another protocol.
    ///
    /// A SYN with ACK is the answer to one that was not seen.
    #[inline(always)]
    #[must_use]
    pub fn begin(from: End, flags: u8) -> Self {
        let answer = flags & (tcp::SYN | tcp::ACK) == tcp::SYN | tcp::ACK;
        let initiator = if answer { from.other() } else { from };
        let opened = u8::from(flags & tcp::SYN != 0);
        Self { initiator: initiator as u8, opened, ..Self::default() }.follow(from, flags)
    }

    /// Returns how it goes on with a packet of this end.
    ///
    /// A SYN begins it anew where the one before has ended, or began without one that was seen: the same ends use the same
    /// ports again.
    #[inline(always)]
    #[must_use]
    pub fn follow(self, from: End, flags: u8) -> Self {
        let mut next = self;
        if flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN {
            if self.opened == 0 || self.has_ended() {
                let Self { leaving, uncounted, .. } = self;
                return Self { initiator: from as u8, opened: 1, leaving, uncounted, ..Self::default() };
            }
        } else {
            if flags & tcp::RST != 0 {
                next.reset = 1;
            }
            if flags & tcp::FIN != 0 {
                match from {
                    End::Low => next.finished[0] = 1,
                    End::High => next.finished[1] = 1,
                }
            }
        }
        if from as u8 != self.initiator {
            next.answered = 1;
        }
        next
    }

    /// Returns whether no more than acknowledgements is to be expected.
    #[inline(always)]
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        self.reset != 0 || (self.finished[0] != 0 && self.finished[1] != 0)
    }

    /// Returns whether a packet of this end goes against the connection's first.
    #[inline(always)]
    #[must_use]
    pub const fn is_return(&self, from: End) -> bool {
        self.initiator != from as u8
    }

    /// Returns the course as one word.
    #[inline(always)]
    #[must_use]
    pub const fn bits(self) -> u64 {
        u64::from_ne_bytes([
            self.initiator,
            self.answered,
            self.opened,
            self.reset,
            self.finished[0],
            self.finished[1],
            self.leaving,
            self.uncounted,
        ])
    }

    /// Returns the course that a word is.
    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        let [initiator, answered, opened, reset, low, high, leaving, uncounted] = bits.to_ne_bytes();
        Self { initiator, answered, opened, reset, finished: [low, high], leaving, uncounted }
    }
}

/// Returns whether a packet asks for an answer whose time is the connection's round trip: TCP's SYN.
#[inline(always)]
#[must_use]
pub const fn asks(flags: u8) -> bool {
    flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN
}

/// Returns whether a packet is the answer: of TCP, to the SYN.
#[inline(always)]
#[must_use]
pub const fn answers(flags: u8) -> bool {
    flags & tcp::RST != 0 || flags & (tcp::SYN | tcp::ACK) == tcp::SYN | tcp::ACK
}

/// Returns whether a packet of no known connection goes against the first of one, by what it says of itself: the second
/// packet of TCP's handshake does.
#[inline(always)]
#[must_use]
pub const fn is_return_alone(flags: u8) -> bool {
    flags & (tcp::SYN | tcp::ACK) == tcp::SYN | tcp::ACK
}

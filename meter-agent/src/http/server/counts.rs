//! What became of connections, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a connection was ended by the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Its request's head took too long.
    Head,
    /// Nothing was asked for long.
    Idle,
    /// The client took nothing of its answer for long.
    Stalled,
    /// The client took its answer too slowly.
    Slow,
    /// Another connection needed the place or the memory.
    Displaced,
    /// TLS could not be agreed upon.
    Handshake,
}

/// Why a connection was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The peer has all the places that it may have, and each waits for the server.
    Peer,
    /// All places are taken, and none of those who have the most waits for its client.
    Full,
}

macro_rules! labelled {
    ($kind:ident { $($variant:ident = $label:literal),+ $(,)? }) => {
        impl $kind {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Returns the word that stands for it in a label.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label),+ }
            }
        }
    };
}

labelled!(Cut {
    Head = "head_timeout",
    Idle = "idle",
    Stalled = "write_stalled",
    Slow = "write_timeout",
    Displaced = "displaced",
    Handshake = "tls_handshake",
});
labelled!(Refused { Peer = "peer_full", Full = "full" });

/// Counts that only grow.
#[derive(Debug, Default)]
pub(super) struct Counts {
    accepted: AtomicU64,
    cut: [AtomicU64; Cut::ALL.len()],
    refused: [AtomicU64; Refused::ALL.len()],
}

/// What a server has seen, to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// Connections that are open now.
    pub open: usize,
    /// Connections that were let in.
    pub accepted: u64,
    /// Connections that the server ended, by reason.
    pub cut: Vec<(Cut, u64)>,
    /// Connections that were not let in, by reason.
    pub refused: Vec<(Refused, u64)>,
}

impl Stats {
    /// Returns how many connections were ended for a reason.
    #[must_use]
    pub fn cut(&self, reason: Cut) -> u64 {
        self.cut.iter().find(|(cut, _)| *cut == reason).map_or(0, |(_, count)| *count)
    }

    /// Returns how many connections were refused for a reason.
    #[must_use]
    pub fn refused(&self, reason: Refused) -> u64 {
        self.refused.iter().find(|(refused, _)| *refused == reason).map_or(0, |(_, count)| *count)
    }
}

impl Counts {
    pub(super) fn accepted(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn cut(&self, reason: Cut) {
        count(Cut::ALL, &self.cut, reason);
    }

    pub(super) fn refused(&self, reason: Refused) {
        count(Refused::ALL, &self.refused, reason);
    }

    pub(super) fn stats(&self, open: usize) -> Stats {
        Stats {
            open,
            accepted: self.accepted.load(Ordering::Relaxed),
            cut: shown(Cut::ALL, &self.cut),
            refused: shown(Refused::ALL, &self.refused),
        }
    }
}

fn count<R: PartialEq>(all: &[R], counts: &[AtomicU64], reason: R) {
    for (_, count) in all.iter().zip(counts).filter(|(known, _)| **known == reason) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

fn shown<R: Copy>(all: &[R], counts: &[AtomicU64]) -> Vec<(R, u64)> {
    all.iter().copied().zip(counts.iter().map(|count| count.load(Ordering::Relaxed))).collect()
}

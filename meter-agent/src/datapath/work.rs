//! That the datapath goes on, for whoever can't wait until it is done.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// For how many netdevs a change of their hooks was begun so far. A change of all of them, with programs to load for each of hundreds of
/// namespaces, takes longer than a watchdog waits.
#[derive(Debug, Clone, Default)]
pub struct Work(Arc<AtomicU64>);

impl Work {
    /// Counts one netdev more.
    pub(super) fn step(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how many there were.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

//! What happens over time: the rates of all events, and how long requests took.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{durations::Durations, rates::Rates};

/// The rates, moved on by one task and read by all. The mutex is held for no await and no system call.
#[derive(Debug)]
pub struct Activity {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rates: Vec<Rates>,
    requests: Requests,
}

/// The requests that were answered.
#[derive(Debug, Clone, Default)]
pub struct Requests {
    /// How many.
    pub count: u64,
    /// How many a second.
    pub rates: Rates,
    /// How long they took.
    pub durations: Durations,
}

impl Activity {
    /// Makes room for the rates of as many kinds of events.
    #[must_use]
    pub fn new(kinds: usize) -> Self {
        let state = State { rates: vec![Rates::default(); kinds], requests: Requests::default() };
        Self { state: Mutex::new(state) }
    }

    /// Moves all rates on. `counts` has how many events of each kind there have been.
    pub fn tick(&self, counts: impl Iterator<Item = u64>, now: Duration) {
        let mut state = self.state();
        for (rates, count) in state.rates.iter_mut().zip(counts) {
            rates.tick(count, now);
        }
        let requests = &mut state.requests;
        requests.rates.tick(requests.count, now);
    }

    /// Adds a request that took so long.
    pub fn request(&self, took: Duration) {
        let mut state = self.state();
        state.requests.count += 1;
        state.requests.durations.add(took);
    }

    /// Returns the rates of one kind.
    #[must_use]
    pub fn rates(&self, kind: usize) -> Rates {
        self.state().rates.get(kind).copied().unwrap_or_default()
    }

    /// Returns the requests.
    #[must_use]
    pub fn requests(&self) -> Requests {
        self.state().requests.clone()
    }

    /// Numbers stay numbers where a thread panicked between two of them.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

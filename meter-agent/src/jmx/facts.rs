//! What beans read: one snapshot for all requests that are answered together.

use std::{collections::BTreeMap, sync::OnceLock, time::Duration};

use crate::{
    meter::{FlowStats, MeterKey},
    process::Process,
    snapshot::{SharedSnapshot, Snapshot},
};

/// Meters by their names.
pub type Registry = BTreeMap<MeterKey, FlowStats>;

/// The facts of one moment. What takes work is worked out when it is asked for, once.
#[derive(Debug)]
pub struct Facts {
    snapshot: SharedSnapshot,
    now: Duration,
    registries: OnceLock<Vec<Registry>>,
    consolidated: OnceLock<Registry>,
    process: OnceLock<Process>,
}

impl Facts {
    /// Makes the facts of a snapshot. `now` is the time since the Unix epoch.
    #[must_use]
    pub fn new(snapshot: SharedSnapshot, now: Duration) -> Self {
        Self {
            snapshot,
            now,
            registries: OnceLock::new(),
            consolidated: OnceLock::new(),
            process: OnceLock::new(),
        }
    }

    /// Sets what the registries hold, as MidoNet had one for each worker.
    #[must_use]
    pub fn with_registries(mut self, registries: Vec<Registry>) -> Self {
        self.registries = registries.into();
        self
    }

    /// Sets what the kernel says of the process.
    #[must_use]
    pub fn with_process(mut self, process: Process) -> Self {
        self.process = process.into();
        self
    }

    /// Returns the snapshot.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Returns the time since the Unix epoch.
    #[must_use]
    pub const fn now(&self) -> Duration {
        self.now
    }

    /// Returns the registries of meters. This agent has one; MidoNet had one for each worker.
    #[must_use]
    pub fn registries(&self) -> &[Registry] {
        self.registries.get_or_init(|| vec![self.snapshot.meters()])
    }

    /// Returns every meter, summed over the registries.
    #[must_use]
    pub fn meters(&self) -> &Registry {
        match self.registries() {
            [only] => only,
            several => self.consolidated.get_or_init(|| {
                let mut sums = Registry::new();
                for (key, &stats) in several.iter().flatten() {
                    *sums.entry(key.clone()).or_default() += stats;
                }
                sums
            }),
        }
    }

    /// Returns what the kernel says of the process.
    #[must_use]
    pub fn process(&self) -> &Process {
        self.process.get_or_init(Process::read)
    }
}

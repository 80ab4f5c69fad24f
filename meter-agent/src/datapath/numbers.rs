//! Numbers of namespaces that nobody else may have yet: filters that know themselves by them may hang on netdevs still.
//!
//! A filter keeps its program, and a program says which maps it uses. So a number is free for sure once no program of
//! another agent uses the map of namespaces.

use std::collections::{BTreeMap, BTreeSet};

use aya::programs::loaded_programs;

use super::{
    failure::describe, kernel::KernelDatapath, namespaces::ALL_NAMESPACE_PROGRAMS, places::PlaceTable,
};
use crate::netdev::{NamespaceId, namespaces::Identity};

/// Seconds from one look at the programs to the next: it takes a few system calls for each that is loaded.
const REST: u32 = 60;

/// The numbers that wait, and the namespaces whose they were.
#[derive(Debug, Default)]
pub(super) struct Kept {
    numbers: BTreeMap<NamespaceId, Identity>,
    /// Those of namespaces in which filters could not be removed.
    doubted: BTreeSet<NamespaceId>,
    /// Ticks since programs were looked at.
    ticks: u32,
}

impl Kept {
    /// Says that filters may be left in a namespace.
    pub(super) fn doubt(&mut self, number: NamespaceId) {
        if number != NamespaceId::HOST {
            self.doubted.insert(number);
        }
    }

    /// Gives a number back, or keeps it where filters may be left.
    pub(super) fn give_back(&mut self, number: NamespaceId, places: &PlaceTable) {
        if self.doubted.remove(&number) {
            self.keep(number, places);
        } else {
            places.free(number);
        }
    }

    /// Keeps a number.
    pub(super) fn keep(&mut self, number: NamespaceId, places: &PlaceTable) {
        if let Some(identity) = places.identity(number) {
            self.numbers.insert(number, identity);
        }
    }

    /// Does not wait with a number any more that its own namespace has again. What may hang there still may.
    pub(super) fn taken(&mut self, number: NamespaceId) {
        self.numbers.remove(&number);
    }
}

impl KernelDatapath {
    /// Lets a second pass, and frees the numbers that wait where nothing counts by them any more.
    pub(super) fn tend_numbers(&mut self) {
        self.kept.ticks = (self.kept.ticks + 1) % REST;
        if self.kept.ticks == 1 {
            self.free_numbers();
        }
    }

    /// Frees the numbers that wait, where nothing counts by them any more.
    pub fn free_numbers(&mut self) {
        let Some(places) = &self.maps.places else { return };
        if self.kept.numbers.is_empty() {
            return;
        }
        match strangers(places.map(), &self.namespaces.program_ids()) {
            Ok(false) => {
                for (number, identity) in std::mem::take(&mut self.kept.numbers) {
                    if places.identity(number) == Some(identity) {
                        places.free(number);
                    }
                }
            }
            Ok(true) => {
                tracing::debug!(
                    numbers = self.kept.numbers.len(),
                    "filters of an earlier agent are left in namespaces"
                );
            }
            Err(error) => tracing::debug!(error, "programs can't be asked for"),
        }
    }
}

/// Returns whether a program of namespaces that is none of `ours` uses this map.
fn strangers(map: u32, ours: &BTreeSet<u32>) -> Result<bool, String> {
    let names = ALL_NAMESPACE_PROGRAMS.as_flattened();
    for program in loaded_programs() {
        let program = program.map_err(|error| describe(&error))?;
        let is_of_namespaces = program.name_as_str().is_some_and(|name| names.contains(&name));
        if !is_of_namespaces || ours.contains(&program.id()) {
            continue;
        }
        let maps = program.map_ids().map_err(|error| describe(&error))?;
        if maps.unwrap_or_default().contains(&map) {
            return Ok(true);
        }
    }
    Ok(false)
}

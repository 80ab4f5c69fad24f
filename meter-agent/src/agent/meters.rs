//! The user-defined meters: what the datapath is given, and what happens where it refuses.
//!
//! What counts is always a set that this agent gave, or none. Where that is less than what is wanted, all of it is given
//! again later and later, as with netdevs.

use std::{collections::BTreeSet, sync::Arc};

use super::Agent;
use crate::{
    datapath::Datapath,
    definitions::{
        Change, ChangeError, Definition, Definitions,
        state::{Found, Prepared, State},
    },
    rules::MeterSet,
};

/// Ticks before the second attempt; each further one waits twice as long.
const FIRST_WAIT: u32 = 1;
/// Ticks that an attempt waits at most.
const LONGEST_WAIT: u32 = 64;

/// What is wanted, and where changes of it are kept.
#[derive(Debug)]
pub(super) struct Meters {
    wanted: Definitions,
    state: State,
    list: Arc<[Definition]>,
    /// Whether the datapath took what is wanted, all but those that it refuses.
    given: bool,
    /// Those of run time that it refuses, by name.
    refused: BTreeSet<String>,
    /// Ticks until it is given again, where it does not count; 0 when that is due.
    wait: u32,
    /// How long to wait after that.
    next_wait: u32,
}

impl Meters {
    pub(super) fn new(configured: MeterSet, added: Found) -> Self {
        let wanted = Definitions::new(configured, added.meters);
        let list = wanted.list().into();
        Self {
            list,
            wanted,
            state: added.state,
            given: false,
            refused: BTreeSet::new(),
            wait: 0,
            next_wait: FIRST_WAIT,
        }
    }

    /// Returns what operators see.
    pub(super) const fn list(&self) -> &Arc<[Definition]> {
        &self.list
    }

    fn want(&mut self, wanted: Definitions) {
        self.list = wanted.list().into();
        self.wanted = wanted;
        self.taken();
    }

    /// Remembers that the datapath took what is wanted, but for what it refuses.
    fn taken(&mut self) {
        self.given = true;
        let Self { refused, wanted, .. } = self;
        refused.retain(|name| wanted.shown().any(|meter| meter.name == *name));
        if refused.is_empty() {
            self.wait = 0;
            self.next_wait = FIRST_WAIT;
        }
    }

    /// Lets some time pass before all is given again.
    fn refuse(&mut self) {
        self.wait = self.next_wait;
        self.next_wait = (self.next_wait * 2).min(LONGEST_WAIT);
    }
}

impl<D: Datapath> Agent<D> {
    /// Lets everything count that is wanted at the start. Of a set that is refused, what the configuration has counts, and
    /// those of run time beside which there is nothing wrong; or nothing: what an earlier agent left in force is nobody's
    /// otherwise.
    pub(super) fn start_meters(&mut self) {
        warn_of(&self.meters.wanted);
        let Err(error) = self.give_wanted() else { return self.meters.taken() };
        let meters = self.meters.list.len();
        tracing::error!(meters, error = %error, "user-defined meters refused; will retry");
        self.meters.refuse();
        let wanted = self.meters.wanted.clone();
        let added: Vec<&str> = wanted.shown().map(|meter| meter.name.as_str()).collect();
        self.meters.refused = added.iter().map(|name| (*name).to_owned()).collect();
        // It was tried just now where nothing was added.
        let alone = if added.is_empty() { Err(error) } else { self.give_wanted() };
        match alone {
            Ok(()) => {
                self.find_refused(&added);
                self.meters.taken();
                for name in &self.meters.refused {
                    tracing::error!(
                        meter = name,
                        "refused beside the others: it is kept, and does not count"
                    );
                }
            }
            Err(error) => {
                tracing::error!(error = %error, "the configuration's meters don't count, everything else does");
                self.meters.refused.clear();
                if let Err(error) = self.give_meters(&MeterSet::default()) {
                    tracing::error!(error = %error, "meters of an earlier agent can't be ended");
                }
            }
        }
    }

    /// Finds out which of these meters the datapath takes, beside those that count, and lets them count: halves of a list
    /// that is refused are tried by themselves.
    fn find_refused(&mut self, names: &[&str]) {
        let (first, second) = names.split_at(names.len() / 2);
        for half in [first, second].into_iter().filter(|half| !half.is_empty()) {
            let before = self.meters.refused.clone();
            self.meters.refused.retain(|name| !half.contains(&name.as_str()));
            if self.give_wanted().is_err() {
                self.meters.refused = before;
                if half.len() > 1 {
                    self.find_refused(half);
                }
            }
        }
    }

    /// Gives the datapath what is wanted, but for what it refuses.
    fn give_wanted(&mut self) -> Result<(), ChangeError> {
        let set = self.meters.wanted.set_without(&self.meters.refused)?;
        self.give_meters(&set)
    }

    /// Returns whether all meters count that are wanted.
    pub(super) fn meters_count(&self) -> bool {
        self.meters.given && self.meters.refused.is_empty() && self.datapath.meters_in_force()
    }

    /// Lets a second pass; returns whether the meters are to be given once more.
    pub(super) fn tick_meters(&mut self) -> bool {
        if self.meters_count() {
            return false;
        }
        self.meters.wait = self.meters.wait.saturating_sub(1);
        self.meters.wait == 0
    }

    /// Gives the meters once more, where they don't count and it is time to.
    pub(super) fn retry_meters(&mut self) {
        if self.meters_count() || self.meters.wait > 0 {
            return;
        }
        let refused = std::mem::take(&mut self.meters.refused);
        match self.give_wanted() {
            Ok(()) => {
                self.meters.taken();
                tracing::info!(meters = self.meters.list.len(), "all user-defined meters count again");
            }
            Err(error) => {
                tracing::debug!(error = %error, "user-defined meters refused again");
                self.meters.refused = refused;
                self.meters.refuse();
                if !self.datapath.meters_in_force() && self.give_wanted().is_ok() {
                    self.meters.given = true;
                }
            }
        }
    }

    /// Lets the meters of another configuration count, beside those that were added; returns whether they do. Where they
    /// don't, those before count on.
    pub(super) fn configure_meters(&mut self, configured: MeterSet) -> bool {
        let wanted = self.meters.wanted.reconfigured(configured);
        let set = wanted.set_without(&self.meters.refused);
        if let Err(error) = set.and_then(|set| self.give_meters(&set)) {
            tracing::error!(error = %error, "user-defined meters refused; the old configuration stays in force");
            return false;
        }
        warn_of(&wanted);
        self.meters.want(wanted);
        true
    }

    /// Changes the meters that were added at run time: what counts and what is kept, or neither.
    pub(super) fn change_meters(&mut self, change: &Change) -> Result<(), ChangeError> {
        let wanted = self.meters.wanted.changed(change)?;
        // What the datapath refused before it may take with other rules.
        let mut refused = self.meters.refused.clone();
        refused.remove(change.name());
        let set = wanted.set_without(&refused)?;
        let not_kept = |error: &dyn std::error::Error| ChangeError::NotKept(error.to_string());
        let kept = self.meters.state.prepare(wanted.added()).map_err(|error| not_kept(&error))?;
        self.give_meters(&set)?;
        if let Err(error) = kept.commit() {
            self.meters.given = self.give_wanted().is_ok();
            // The new file may be in its place all the same, where only syncing the directory failed.
            drop(self.meters.state.prepare(self.meters.wanted.added()).and_then(Prepared::commit));
            return Err(not_kept(&error));
        }
        self.meters.refused = refused;
        match change {
            Change::Add { meter, replace } => {
                tracing::info!(meter = %meter.name, rules = meter.rules.len(), replace, "meter added at run time");
            }
            Change::Remove(name) => tracing::info!(meter = %name, "meter removed at run time"),
        }
        self.meters.want(wanted);
        Ok(())
    }

    fn give_meters(&mut self, set: &MeterSet) -> Result<(), ChangeError> {
        self.datapath.set_meters(set).map_err(|error| {
            self.health.user_meter_refusals += 1;
            ChangeError::Refused(error.to_string())
        })
    }
}

/// Logs what an operator may not expect of meters that were added at run time.
fn warn_of(wanted: &Definitions) {
    for meter in wanted.hidden() {
        tracing::warn!(
            meter = %meter.name,
            "the configuration has a meter of this name; the one that was added at run time doesn't count meanwhile"
        );
    }
    for (meter, group) in wanted.missing_groups() {
        tracing::warn!(
            meter,
            group,
            "a meter that was added at run time names a group that the configuration doesn't have; it has no members"
        );
    }
}

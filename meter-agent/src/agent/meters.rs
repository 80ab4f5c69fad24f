//! The user-defined meters: what the datapath is given, and what happens where it refuses.

use std::sync::Arc;

use super::Agent;
use crate::{
    datapath::Datapath,
    definitions::{
        Change, ChangeError, Definition, Definitions,
        state::{Found, Prepared, State},
    },
    rules::MeterSet,
};

/// What is wanted, and where changes of it are kept.
#[derive(Debug)]
pub(super) struct Meters {
    wanted: Definitions,
    state: State,
    list: Arc<[Definition]>,
}

impl Meters {
    pub(super) fn new(configured: MeterSet, added: Found) -> Self {
        let wanted = Definitions::new(configured, added.meters);
        Self { list: wanted.list().into(), wanted, state: added.state }
    }

    /// Returns what operators see.
    pub(super) const fn list(&self) -> &Arc<[Definition]> {
        &self.list
    }

    fn want(&mut self, wanted: Definitions) {
        self.list = wanted.list().into();
        self.wanted = wanted;
    }
}

impl<D: Datapath> Agent<D> {
    /// Lets everything count that is wanted at the start; of a set that is refused, what the configuration has.
    pub(super) fn start_meters(&mut self) {
        warn_of(&self.meters.wanted);
        let wanted = self.meters.wanted.clone();
        let given = wanted.set().and_then(|set| self.give_meters(&set));
        self.health.user_meters_in_force = given.is_ok();
        let Err(error) = given else { return };
        let meters = self.meters.list.len();
        tracing::error!(meters, error = %error, "user-defined meters refused; they don't count, everything else does");
        if wanted.list().len() > wanted.configured().meters.len() {
            match self.give_meters(wanted.configured()) {
                Ok(()) => tracing::warn!(
                    "the configuration's meters count without those that were added at run time"
                ),
                Err(error) => tracing::error!(error = %error, "nor do the configuration's meters alone"),
            }
        }
    }

    /// Lets the meters of another configuration count, beside those that were added; returns whether they do. Where they
    /// don't, those before count on.
    pub(super) fn configure_meters(&mut self, configured: MeterSet) -> bool {
        let wanted = self.meters.wanted.reconfigured(configured);
        if let Err(error) = wanted.set().and_then(|set| self.give_meters(&set)) {
            tracing::error!(error = %error, "user-defined meters refused; the old configuration stays in force");
            return false;
        }
        warn_of(&wanted);
        self.health.user_meters_in_force = true;
        self.meters.want(wanted);
        true
    }

    /// Changes the meters that were added at run time: what counts and what is kept, or neither.
    pub(super) fn change_meters(&mut self, change: &Change) -> Result<(), ChangeError> {
        let wanted = self.meters.wanted.changed(change)?;
        let set = wanted.set()?;
        let not_kept = |error: &dyn std::error::Error| ChangeError::NotKept(error.to_string());
        let kept = self.meters.state.prepare(wanted.added()).map_err(|error| not_kept(&error))?;
        self.give_meters(&set)?;
        if let Err(error) = kept.commit() {
            let before = self.meters.wanted.set().and_then(|set| self.give_meters(&set));
            self.health.user_meters_in_force = before.is_ok();
            // The new file may be in its place all the same, where only syncing the directory failed.
            drop(self.meters.state.prepare(self.meters.wanted.added()).and_then(Prepared::commit));
            return Err(not_kept(&error));
        }
        self.health.user_meters_in_force = true;
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

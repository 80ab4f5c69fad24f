//! The user-defined meters that are wanted: those of the configuration, and those that were added at run time.
//!
//! A name of the configuration is the configuration's: nobody adds or removes it at run time, and a meter that was added
//! before under the same name is hidden until the configuration gives the name up. [`state`] keeps what was added.

pub mod state;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::rules::{self, Attribute, MAX_RULES, Meter, MeterSet, RuleLine};

/// Where a meter comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// `[[meter]]`.
    Configuration,
    /// `meter-agent meter add`.
    RunTime,
}

impl Origin {
    /// Returns the words that operators see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::RunTime => "run time",
        }
    }
}

/// One meter that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// Its name.
    pub name: String,
    /// Its rules, as rule lines.
    pub rules: Vec<String>,
    /// Who wants it.
    pub origin: Origin,
}

/// A change at run time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A meter more.
    Add {
        /// The meter.
        meter: Meter,
        /// Whether one that was added under this name gets these rules, and keeps its totals.
        replace: bool,
    },
    /// A meter less, by its name.
    Remove(String),
}

impl Change {
    /// Returns the name of the meter that it is about.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Add { meter, .. } => &meter.name,
            Self::Remove(name) => name,
        }
    }
}

/// Why the meters stay as they are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// The name is the configuration's.
    #[error("meter {0:?} is in the configuration file; change it there, and reload the agent")]
    Configured(String),
    /// Somebody added it before.
    #[error("meter {0:?} is there already; --replace gives it other rules and keeps its totals")]
    Exists(String),
    /// Nobody added it.
    #[error("no meter {0:?} was added at run time; meter-agent meter list says which were")]
    Unknown(String),
    /// A rule names a group that isn't there.
    #[error("rule {rule}: {attribute}: the configuration has no group with the name {group:?}")]
    NoGroup {
        /// The rule, counted from 1.
        rule: usize,
        /// The attribute that names it.
        attribute: Attribute,
        /// Its name.
        group: String,
    },
    /// There would be more rules than a set may have, those of routers included.
    #[error("{0} rules of all meters and routers together are too many: at most {MAX_RULES} are possible")]
    TooManyRules(usize),
    /// The datapath can't count them.
    #[error("the datapath refuses these meters: {0}")]
    Refused(String),
    /// It would be forgotten at the next start.
    #[error("can't be kept across restarts, and the meters stay as they were: {0}")]
    NotKept(String),
}

/// All meters that are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Definitions {
    configured: MeterSet,
    added: Vec<Meter>,
}

impl Definitions {
    /// Puts together what the configuration has and what was added at run time.
    #[must_use]
    pub const fn new(configured: MeterSet, added: Vec<Meter>) -> Self {
        Self { configured, added }
    }

    /// Returns the same with another configuration.
    #[must_use]
    pub fn reconfigured(&self, configured: MeterSet) -> Self {
        Self { configured, added: self.added.clone() }
    }

    /// Returns what the configuration has.
    #[must_use]
    pub const fn configured(&self) -> &MeterSet {
        &self.configured
    }

    /// Returns what was added at run time, hidden meters included.
    #[must_use]
    pub fn added(&self) -> &[Meter] {
        &self.added
    }

    /// Returns the meters that were added and whose names are the configuration's now.
    pub fn hidden(&self) -> impl Iterator<Item = &Meter> {
        self.added.iter().filter(|meter| self.is_configured(&meter.name))
    }

    /// Returns the groups that meters added at run time name and that the configuration doesn't have (any more), with the
    /// meters' names. Such a group has no members.
    pub fn missing_groups(&self) -> impl Iterator<Item = (&str, &str)> {
        self.shown().flat_map(|meter| {
            let missing = meter.rules.iter().flat_map(|rule| self.configured.groups.missing(rule));
            missing.map(|(_, group)| (meter.name.as_str(), group))
        })
    }

    /// Returns the set to count.
    ///
    /// # Errors
    ///
    /// [`ChangeError::TooManyRules`].
    pub fn set(&self) -> Result<MeterSet, ChangeError> {
        self.set_without(&BTreeSet::new())
    }

    /// Returns the set to count, without the meters that were added at run time under these names.
    ///
    /// # Errors
    ///
    /// [`ChangeError::TooManyRules`].
    pub fn set_without(&self, names: &BTreeSet<String>) -> Result<MeterSet, ChangeError> {
        let mut set = self.configured.clone();
        set.meters.extend(self.shown().filter(|meter| !names.contains(&meter.name)).cloned());
        let rules = set.rules();
        if rules > MAX_RULES { Err(ChangeError::TooManyRules(rules)) } else { Ok(set) }
    }

    /// Returns what operators see: the configuration's meters first, in its order.
    #[must_use]
    pub fn list(&self) -> Vec<Definition> {
        let definition = |origin| {
            move |meter: &Meter| Definition {
                name: meter.name.clone(),
                rules: meter.rules.iter().map(ToString::to_string).collect(),
                origin,
            }
        };
        let configured = self.configured.meters.iter().map(definition(Origin::Configuration));
        configured.chain(self.shown().map(definition(Origin::RunTime))).collect()
    }

    /// Returns what a change makes of it.
    ///
    /// # Errors
    ///
    /// Why it can't be.
    pub fn changed(&self, change: &Change) -> Result<Self, ChangeError> {
        let name = change.name();
        if self.is_configured(name) {
            return Err(ChangeError::Configured(name.to_owned()));
        }
        let mut added = self.added.clone();
        let place = added.iter().position(|meter| meter.name == name);
        match (change, place) {
            (Change::Add { meter, .. }, None) => {
                self.check_groups(meter)?;
                added.push(meter.clone());
            }
            (Change::Add { meter, replace: true }, Some(place)) => {
                self.check_groups(meter)?;
                added[place] = meter.clone();
            }
            (Change::Add { replace: false, .. }, Some(_)) => {
                return Err(ChangeError::Exists(name.to_owned()));
            }
            (Change::Remove(_), Some(place)) => drop(added.remove(place)),
            (Change::Remove(_), None) => return Err(ChangeError::Unknown(name.to_owned())),
        }
        Ok(Self { configured: self.configured.clone(), added })
    }

    fn is_configured(&self, name: &str) -> bool {
        self.configured.meters.iter().any(|meter| meter.name == name)
    }

    /// Returns the meters that were added and are not hidden.
    pub fn shown(&self) -> impl Iterator<Item = &Meter> {
        self.added.iter().filter(|meter| !self.is_configured(&meter.name))
    }

    fn check_groups(&self, meter: &Meter) -> Result<(), ChangeError> {
        for (rule, condition) in (1..).zip(&meter.rules) {
            if let Some((attribute, group)) = self.configured.groups.missing(condition).first() {
                let group = (*group).to_owned();
                return Err(ChangeError::NoGroup { rule, attribute: *attribute, group });
            }
        }
        Ok(())
    }
}

/// Reads a meter from its name and its rule lines.
///
/// # Errors
///
/// Everything that is wrong with it, one line for each mistake: `rule 2: column 7: dst-port: …`.
pub fn meter(name: &str, lines: &[String]) -> Result<Meter, Vec<String>> {
    let mut mistakes = Vec::new();
    let name = rules::meter_name(name).map_err(|what| mistakes.push(format!("name: {what}"))).ok();
    if lines.is_empty() {
        mistakes.push("rules: has no rules; say what it counts".to_owned());
    }
    if lines.len() > MAX_RULES {
        return Err(vec![ChangeError::TooManyRules(lines.len()).to_string()]);
    }
    let mut read = Vec::new();
    for (number, line) in (1..).zip(lines) {
        match RuleLine::parse_for(line, name.as_deref()) {
            Ok(condition) => read.push(condition),
            Err(errors) => {
                mistakes.extend(errors.into_iter().map(|error| format!("rule {number}: {error}")));
            }
        }
    }
    match name {
        Some(name) if mistakes.is_empty() => Ok(Meter { name, rules: read }),
        _ => Err(mistakes),
    }
}

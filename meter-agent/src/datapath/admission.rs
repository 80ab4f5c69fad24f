//! The rules that say which connections are counted, where the configuration has some.
//!
//! They are asked when a connection begins, and of one that they refused at each of its frames: what is in the table pays
//! nothing for them. Each frame sees one set as a whole; a set takes the place of the one before in one write.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use aya::Ebpf;
use meter_ebpf::abi::{connection::capture, map};

use super::{MetersError, kernel::KernelDatapath, open::OpenError, tables::Tables};
use crate::rules::{MeterSet, SlotPort, compile_everywhere};

/// The rules.
pub(super) struct Admission {
    tables: Tables,
    set: Arc<MeterSet>,
    /// The ports that they were compiled for.
    slots: BTreeMap<u32, SlotPort>,
    /// Whether programs go by `set` as it has to be now.
    in_force: bool,
}

impl Admission {
    /// Takes the maps out of the loaded object; `pins` is where maps are pinned, if they are.
    pub(super) fn take(ebpf: &mut Ebpf, pins: Option<&Path>) -> Result<Self, OpenError> {
        Ok(Self {
            tables: Tables::take(ebpf, [map::CAPTURE_RULES, map::CAPTURE_VERDICTS], pins)?,
            set: Arc::default(),
            slots: BTreeMap::new(),
            in_force: false,
        })
    }

    /// Returns the rules, as those of one meter without a name.
    pub(super) fn set(&self) -> &MeterSet {
        &self.set
    }

    /// Returns whether programs go by these rules, and where these are none, whether there are none.
    pub(super) fn is_as(&self, rules: &Arc<MeterSet>) -> bool {
        if rules.meters.is_empty() { !self.tables.are_used() } else { self.in_force && self.set == *rules }
    }

    /// Returns how many entries of a map of these are in use, and the bytes that it leads to; `None` for other maps.
    pub(super) fn usage(&self, name: &str) -> Option<[u64; 2]> {
        self.tables.usage(name)
    }
}

impl KernelDatapath {
    /// Puts rules in force before any program asks for them.
    pub(super) fn begin_admission(&mut self, rules: &Arc<MeterSet>) -> Result<(), MetersError> {
        if rules.meters.is_empty() || self.admission.is_as(rules) {
            return Ok(());
        }
        if !self.admission.tables.are_held() {
            // What can't be held must not be in use when it is replaced. Meanwhile all frames are in no connection.
            self.captures.restrict(capture::METERS | capture::ON);
            self.grace.wait().map_err(|error| MetersError(format!("wait for programs: {error}")))?;
        }
        let slots = self.slots_of(rules, true);
        let Admission { tables, set, slots: kept, in_force } = &mut self.admission;
        if let Err(error) = tables.put(|generation| compile_everywhere(rules, &slots, generation), || Ok(()))
        {
            if !*in_force {
                // An earlier agent's, which may take another port for one of theirs by now.
                tables.clear()?;
            }
            return Err(error);
        }
        set.clone_from(rules);
        *kept = slots;
        *in_force = true;
        Ok(())
    }

    /// Lets no program ask for rules, and gives back their memory.
    pub(super) fn end_admission(&mut self) -> Result<(), MetersError> {
        self.admission.set = Arc::default();
        self.admission.slots.clear();
        self.admission.in_force = false;
        if !self.admission.tables.are_used() {
            return Ok(());
        }
        // Also those of ports that are not looked at yet.
        self.captures.restrict(!capture::RULES);
        self.grace.wait().map_err(|error| MetersError(format!("wait for programs: {error}")))?;
        self.admission.tables.clear()
    }

    /// Compiles the rules anew where they name a port that has got another slot, or another device. Where that fails no
    /// connection begins: by those from before a port's would be taken for another's.
    pub(super) fn admission_ports_changed(&mut self) {
        if !self.admission.in_force {
            return;
        }
        let slots = self.slots_of(&self.admission.set, true);
        if slots == self.admission.slots {
            return;
        }
        let Admission { tables, set, .. } = &mut self.admission;
        match tables.put(|generation| compile_everywhere(set, &slots, generation), || Ok(())) {
            Ok(()) => self.admission.slots = slots,
            Err(error) => {
                tracing::error!(error = %error, "a port of the rules of connections has changed, and no connection begins until they are set again");
                self.admission.in_force = false;
                if let Err(error) = self.admission.tables.clear() {
                    tracing::error!(error = %error, "they are in force as they were");
                }
            }
        }
    }
}

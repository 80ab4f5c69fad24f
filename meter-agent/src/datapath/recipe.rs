//! What loading the programs of one more namespace takes: the object once more, over the maps that count.

use std::collections::BTreeMap;

use meter_ebpf::abi::{NAMESPACES, Settings, map};

use super::{
    hooks::ProgramIds,
    namespaces::{Loaded, Programs, pin},
    object::{OBJECT, loader},
    open::{OpenError, load_error, program_error},
    places::PlaceTable,
    specs::Spec,
    store::{Store, stand_in},
};
use crate::netdev::NamespaceId;

/// What loading the programs of one more namespace takes.
#[derive(Debug)]
pub(super) struct Recipe {
    pub(super) specs: Vec<Spec>,
    pub(super) settings: Settings,
    /// Where the maps are that count.
    pub(super) store: Store,
    /// The same maps, by name and number, where they are pinned.
    pub(super) maps: Vec<(&'static str, u32)>,
}

impl Recipe {
    /// Makes the map of namespaces.
    pub(super) fn make_places(&mut self) -> Result<PlaceTable, OpenError> {
        match &mut self.store {
            Store::Pinned(pins) => PlaceTable::make(&pin(pins)),
            Store::Held(held) => {
                let (places, map) = PlaceTable::unpinned()?;
                held.insert(map::NAMESPACES, map);
                Ok(places)
            }
        }
    }

    /// Loads the object once more, over the same maps and with the namespace's number, and keeps these programs of it.
    pub(super) fn load(
        &self,
        namespace: NamespaceId,
        names: &[&'static str],
        programs: &mut Programs,
    ) -> Result<(), OpenError> {
        let mut loader = loader();
        let pins = match &self.store {
            Store::Pinned(pins) => Some(pins),
            Store::Held(_) => None,
        };
        // `SLOTS` is not theirs, and what aya makes for it goes with the object.
        let specs = self.specs.iter().filter(|spec| spec.name != map::SLOTS);
        let maps = specs.map(|spec| (spec.name, spec.max_entries)).chain([(map::NAMESPACES, NAMESPACES)]);
        for (name, entries) in maps {
            // What aya makes for maps that are held goes at once.
            loader.map_max_entries(name, if pins.is_some() { entries } else { 1 });
            if let Some(pins) = pins {
                loader.map_pin_path(name, pins.join(name));
            }
        }
        loader.override_global("SETTINGS", &self.settings, true);
        loader.override_global("NAMESPACE", &namespace.0, true);
        let mut ebpf =
            loader.load(OBJECT).map_err(|error| load_error("load the object for a namespace", &error))?;
        if let Store::Held(held) = &self.store {
            stand_in(&ebpf, held)?;
        }
        let (mut ids, mut fds) = (ProgramIds::new(), BTreeMap::new());
        for &name in names {
            let fd = Loaded::Host(&mut ebpf, &mut ids)
                .tc_program(name)
                .map_err(|error| program_error(name, &error))?
                .ok_or_else(|| OpenError::Object(format!("program {name} is missing")))?
                .try_clone_to_owned()
                .map_err(|error| OpenError::Object(format!("keep program {name}: {error}")))?;
            fds.insert(name, fd);
        }
        programs.fds.append(&mut fds);
        programs.ids.append(&mut ids);
        Ok(())
    }
}

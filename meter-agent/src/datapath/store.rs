//! Where maps are kept: pinned, so that they outlive the agent, or held by it where nothing can be pinned.
//!
//! aya takes over a map that is pinned, and no other. So where maps are held, it makes its own ones as small as can be;
//! then their descriptors stand for the maps that are held, before any program is loaded by them.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use meter_ebpf::abi::map;

use super::{
    open::{OpenError, load_error},
    specs::Spec,
    sys,
};

/// The maps that count.
#[derive(Debug)]
pub(super) enum Store {
    /// Pinned in this directory.
    Pinned(PathBuf),
    /// Held by descriptors.
    Held(HeldMaps),
}

/// Maps that go with the process, by name.
pub(super) type HeldMaps = BTreeMap<&'static str, OwnedFd>;

/// Holds the maps of an object that is loaded, beside those that are held.
pub(super) fn hold(ebpf: &Ebpf, specs: &[Spec], mut held: HeldMaps) -> Result<Store, OpenError> {
    for spec in specs {
        if !held.contains_key(spec.name) {
            let made = descriptor(ebpf, spec.name)?;
            held.insert(spec.name, made.try_clone_to_owned().map_err(|error| not_held(spec.name, &error))?);
        }
    }
    Ok(Store::Held(held))
}

/// Has an object that was loaded go by the maps that are held, as far as it has them. To be called before its programs
/// are loaded, and before its maps are taken.
pub(super) fn stand_in(ebpf: &Ebpf, held: &HeldMaps) -> Result<(), OpenError> {
    for (name, map) in held {
        let made = descriptor(ebpf, name)?;
        sys::stand_for(made, map.as_fd()).map_err(|error| not_held(name, &error))?;
    }
    Ok(())
}

fn not_held(name: &str, error: &io::Error) -> OpenError {
    load_error(&format!("hold map {name}"), error)
}

/// Returns the descriptor of a map of the object.
fn descriptor<'a>(ebpf: &'a Ebpf, name: &str) -> Result<BorrowedFd<'a>, OpenError> {
    let section = if name == map::SLOTS { map::SLOTS_SECTION } else { name };
    let data: Option<&MapData> = match ebpf.map(section) {
        Some(
            Map::Array(data)
            | Map::ArrayOfMaps(data)
            | Map::HashMap(data)
            | Map::PerCpuArray(data)
            | Map::Queue(data),
        ) => Some(data),
        _ => None,
    };
    data.map(|data| data.fd().as_fd()).ok_or_else(|| OpenError::Object(format!("map {name} is missing")))
}

//! Removing everything that this agent or an earlier one made, and nothing else.

use std::{fs, io, path::Path};

use aya::maps::{HashMap, Map, MapData};
use meter_ebpf::abi::{Direction, PortRecord, PortUuid, hooks, map};

use super::{
    clsact,
    directories::{Directories, versions},
    failure::describe,
    hooks::remove_qdisc,
    links::remove_link,
    namespaces,
    open::{OpenError, lock, path_error, pin_error},
    pins, unpinned,
};
use crate::netdev::namespaces::{DIRECTORY, open};

/// A record's bits of filters.
const FILTERS: u32 = hooks::INGRESS_CLSACT | hooks::EGRESS_CLSACT;

/// What [`remove_all`] removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Hooks, by links or filters.
    pub hooks: usize,
    /// Maps.
    pub maps: usize,
}

/// Detaches every hook of ours and removes every pin below `pin_path`, of all versions; the filters of an agent that could
/// pin nothing there and was killed as well.
///
/// # Errors
///
/// The first thing that could not be removed; the rest may be gone already, and calling again is safe.
pub fn remove_all(pin_path: &Path) -> Result<Removed, OpenError> {
    let versions = versions(pin_path).map_err(|source| path_error("list the pins in", pin_path, source))?;
    let mut removed = Removed::default();
    // Links of an agent without pins are its own.
    let alone = unpinned::lock(pin_path)?;
    if alone.is_some() {
        removed.hooks += unpinned::sweep(pin_path).map_err(clsact_error("remove a filter"))?;
    }
    removed.hooks += sweep_namespaces(pin_path)?;
    for version in versions {
        remove_version(&Directories::new(pin_path, version), &mut removed)?;
    }
    if pin_path.exists() {
        remove_directory(pin_path)?;
    }
    Ok(removed)
}

/// Removes the filters of an agent without pins from every namespace that has a name, as far as they can be entered.
fn sweep_namespaces(pin_path: &Path) -> Result<usize, OpenError> {
    let mut removed = 0;
    for name in fs::read_dir(DIRECTORY).into_iter().flatten().flatten() {
        let entrance = name.file_name().to_str().and_then(|name| open(Path::new(DIRECTORY), name));
        // Who may not enter one had nothing attached in it either.
        let swept = entrance.and_then(|entrance| entrance.enter(|| unpinned::sweep_there(pin_path)).ok());
        removed += swept.unwrap_or(Ok(0)).map_err(clsact_error("remove a filter"))?;
    }
    Ok(removed)
}

fn clsact_error(doing: &'static str) -> impl Fn(io::Error) -> OpenError {
    move |error| OpenError::Object(format!("{doing} of clsact: {error}"))
}

fn remove_version(directories: &Directories, removed: &mut Removed) -> Result<(), OpenError> {
    let Directories { maps: map_pins, links } = directories;
    if !map_pins.exists() {
        return Ok(());
    }
    let lock = lock(map_pins)?;
    let ports = map_pins.join(map::PORTS);
    if ports.exists() {
        let records = match pinned_records(&ports) {
            Err(OpenError::ForeignPin { path, .. }) => {
                pins::set_aside(&path).map_err(|source| path_error("set aside", &path, source))?;
                Vec::new()
            }
            other => other?,
        };
        removed.hooks += remove_clsact(records.iter().filter(|record| record.namespace == 0))?;
        for (number, entrance) in namespaces::entrances(map_pins)? {
            let there = || records.iter().filter(|record| record.namespace == number.0);
            let has_filters = there().any(|record| record.hooks & FILTERS != 0);
            let entered = entrance.and_then(|entrance| match entrance {
                Some(entrance) => entrance.enter(|| remove_clsact(there())).map(Some),
                None => Ok(None),
            });
            match entered {
                Ok(Some(hooks)) => removed.hooks += hooks?,
                Ok(None) if has_filters => tracing::warn!(
                    namespace = number.0,
                    "nothing leads to the namespace any more; if it lives on, so do the filters in it"
                ),
                // Links need no namespace to be entered.
                Ok(None) => {}
                Err(error) if !has_filters => {
                    tracing::debug!(namespace = number.0, error = %error, "namespace not looked at");
                }
                // What tells where they are has to stay.
                Err(source) => {
                    let action =
                        "remove the filters in a namespace (which takes CAP_SYS_ADMIN) that is known by";
                    return Err(OpenError::Path { action, path: map_pins.join(map::NAMESPACES), source });
                }
            }
        }
    }
    removed.hooks += remove_files(links, remove_link)?;
    removed.maps += remove_files(map_pins, |path| fs::remove_file(path))?;
    drop(lock);
    let version = map_pins.parent().unwrap_or(map_pins);
    [links, map_pins, version].into_iter().try_for_each(remove_directory)
}

fn remove_directory(directory: &Path) -> Result<(), OpenError> {
    match fs::remove_dir(directory) {
        // Somebody else's pins.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(|source| path_error("remove", directory, source)),
    }
}

fn pinned_records(path: &Path) -> Result<Vec<PortRecord>, OpenError> {
    let foreign = |found: String| OpenError::ForeignPin { path: path.to_owned(), map: map::PORTS, found };
    let data = MapData::from_pin(path).map_err(|error| pin_error(map::PORTS, path, &error))?;
    let map: HashMap<MapData, PortUuid, PortRecord> =
        Map::from_map_data(data).and_then(TryInto::try_into).map_err(|error| foreign(describe(&error)))?;
    let records = map.iter().map(|entry| entry.map(|(_, record)| record));
    records.collect::<Result<_, _>>().map_err(|error| foreign(describe(&error)))
}

/// Removes our filters wherever they are in this network namespace, whatever the records tell of them, and the qdiscs
/// that they say are ours; returns how many filters.
fn remove_clsact<'a>(records: impl Iterator<Item = &'a PortRecord>) -> Result<usize, OpenError> {
    let mut removed = 0;
    for ifindex in clsact::netdevs().map_err(clsact_error("list the qdiscs"))? {
        for direction in Direction::ALL {
            let is_ours =
                clsact::remove_filter(ifindex, direction).map_err(clsact_error("remove a filter"))?;
            removed += usize::from(is_ours);
        }
    }
    for record in records.filter(|record| record.hooks & hooks::CLSACT_OURS != 0) {
        remove_qdisc(record.ifindex);
    }
    Ok(removed)
}

fn remove_files(directory: &Path, remove: impl Fn(&Path) -> io::Result<()>) -> Result<usize, OpenError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(source) => return Err(path_error("list", directory, source)),
    };
    let mut removed = 0;
    for entry in entries {
        let path = entry.map_err(|source| path_error("list", directory, source))?.path();
        remove(&path).map_err(|source| path_error("remove", &path, source))?;
        removed += 1;
    }
    Ok(removed)
}

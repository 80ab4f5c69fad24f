//! What is pinned, before it is trusted: what is not ours is set aside, a map that has lost its pin is found again at the
//! programs that count, and what is lost is said.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::{
    maps::{MapData, MapInfo},
    programs::loaded_programs,
};
use meter_ebpf::abi::{Direction, SLOTS_PER_BLOCK, map};

use super::{
    Repairs, clsact, connections,
    directories::{Directories, versions},
    failure::describe,
    open::{OpenError, path_error, pin_error},
    specs::{self, Spec},
    sys,
};

/// Where things go that are not ours, below the pin path.
const ASIDE: &str = "aside";
/// Names that are tried for one of them.
const ASIDE_NAMES: usize = 1_000;

/// What became of the pinned maps.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// What was done.
    pub(super) repairs: Repairs,
    /// Maps that an earlier agent had and that are made anew.
    pub(super) lost: BTreeSet<&'static str>,
}

/// Looks at what is pinned for each map, so that everything that is pinned afterwards is ours; sets the numbers of entries
/// to those of the maps that are there.
///
/// # Errors
///
/// What can't be looked at, or not be set aside.
pub(super) fn settle(specs: &mut [Spec], directories: &Directories) -> Result<Settled, OpenError> {
    let Directories { maps: pins, links } = directories;
    let mut settled = Settled::default();
    let mut missing = BTreeSet::new();
    for spec in specs.iter_mut() {
        let pin = pins.join(spec.name);
        match specs::check_pin(spec, &pin) {
            Ok(Some(entries)) => keep_size(spec, entries),
            Ok(None) => {
                missing.insert(spec.name);
            }
            Err(OpenError::ForeignPin { path, map, found }) => {
                let to = set_aside(&pin).map_err(|source| path_error("set aside", &path, source))?;
                tracing::error!(map, pin = %path.display(), found, aside = %to.display(), "not our map; set aside");
                settled.repairs.set_aside += 1;
                missing.insert(spec.name);
            }
            Err(error) => return Err(error),
        }
    }
    if missing.is_empty() {
        return Ok(settled);
    }
    // An agent that was killed while it made the maps had nothing to lose.
    let is_first = !directories.have_links() && directories.are_complete() != Some(true);
    let mut running = running_maps(links).unwrap_or_else(|error| {
        tracing::warn!(error, "the maps of the programs that count can't be asked for");
        Vec::new()
    });
    // Programs of another version may count at the same hooks.
    let others = numbers_of_other_versions(pins);
    running.retain(|info| !others.contains(&info.id()));
    for spec in specs.iter_mut() {
        if !missing.contains(spec.name) {
            continue;
        }
        let pin = pins.join(spec.name);
        match running.iter().find(|info| specs::is_as(spec, info).is_ok() && is_named(info, spec.name)) {
            Some(info) => {
                pin_again(info, &pin)?;
                tracing::warn!(map = spec.name, pin = %pin.display(), "the pin was gone; the map is pinned again");
                settled.repairs.restored += 1;
                keep_size(spec, info.max_entries());
                missing.remove(spec.name);
            }
            None if is_first => {}
            None => {
                let lost = what_it_held(spec.name);
                tracing::error!(map = spec.name, lost, "the pinned map is gone; made anew");
                settled.repairs.lost += 1;
            }
        }
    }
    drop_what_means_nothing_alone(specs, &mut missing, pins)?;
    agree(specs, &missing);
    settled.lost = missing;
    Ok(settled)
}

/// Has these maps, by name and number, pinned under their names, whatever is there by now: what is not one of them is set
/// aside, and a pin that has gone is made again.
///
/// # Errors
///
/// What can't be looked at, not be set aside, or not be pinned.
pub(super) fn keep(
    maps: impl IntoIterator<Item = (&'static str, u32)>,
    pins: &Path,
    repairs: &mut Repairs,
) -> Result<(), OpenError> {
    for (name, id) in maps {
        let pin = pins.join(name);
        match fs::symlink_metadata(&pin) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(path_error("look at", &pin, source)),
            Ok(_) => {
                if MapInfo::from_pin(&pin).is_ok_and(|found| found.id() == id) {
                    continue;
                }
                let aside = set_aside(&pin).map_err(|source| path_error("set aside", &pin, source))?;
                tracing::error!(map = name, pin = %pin.display(), aside = %aside.display(), "not the map that counts; set aside");
                repairs.set_aside += 1;
            }
        }
        let info = MapInfo::from_id(id)
            .map_err(|error| path_error("pin again at", &pin, io::Error::other(describe(&error))))?;
        pin_again(&info, &pin)?;
        tracing::warn!(map = name, pin = %pin.display(), "the pin was gone; the map is pinned again");
        repairs.restored += 1;
    }
    Ok(())
}

/// Returns the numbers of maps that are pinned.
pub(super) fn numbers<'a>(
    specs: impl IntoIterator<Item = &'a Spec>,
    pins: &Path,
) -> Result<Vec<(&'static str, u32)>, OpenError> {
    let number = |spec: &Spec| {
        let pin = pins.join(spec.name);
        let info = MapInfo::from_pin(&pin).map_err(|error| pin_error(spec.name, &pin, &error))?;
        Ok((spec.name, info.id()))
    };
    specs.into_iter().map(number).collect()
}

/// Pins a map again that programs of namespaces use beside this one, where its own pin has gone; returns whether there is
/// one.
pub(super) fn restore_beside(
    spec: &Spec,
    pins: &Path,
    beside: u32,
    programs: &[&str],
) -> Result<bool, OpenError> {
    let found = used_beside(beside, programs).and_then(|ids| {
        let infos = ids.into_iter().map(|id| MapInfo::from_id(id).map_err(|error| describe(&error)));
        infos.collect::<Result<Vec<_>, _>>()
    });
    let found = found.unwrap_or_else(|error| {
        tracing::debug!(error, "the maps of the programs that count can't be asked for");
        Vec::new()
    });
    let Some(info) = found.iter().find(|info| specs::is_as(spec, info).is_ok() && is_named(info, spec.name))
    else {
        return Ok(false);
    };
    let pin = pins.join(spec.name);
    pin_again(info, &pin)?;
    tracing::warn!(map = spec.name, pin = %pin.display(), "the pin was gone; the map is pinned again");
    Ok(true)
}

/// Returns the maps of every loaded program of these names that uses a map.
fn used_beside(map: u32, names: &[&str]) -> Result<BTreeSet<u32>, String> {
    let mut ids = BTreeSet::new();
    for program in loaded_programs() {
        let program = program.map_err(|error| describe(&error))?;
        if !program.name_as_str().is_some_and(|name| names.contains(&name)) {
            continue;
        }
        let used = program.map_ids().map_err(|error| describe(&error))?.unwrap_or_default();
        if used.contains(&map) {
            ids.extend(used);
        }
    }
    Ok(ids)
}

fn keep_size(spec: &mut Spec, entries: u32) {
    // What was saved has room for more where an earlier version had more to save.
    let is_more = spec.name == map::TUNNEL_SAVED && entries > spec.max_entries;
    if is_more {
        spec.max_entries = entries;
    }
    if entries != spec.max_entries {
        tracing::warn!(
            map = spec.name,
            entries,
            configured = spec.max_entries,
            "pinned map keeps its size until `meter-agent detach`"
        );
        spec.max_entries = entries;
    }
}

/// Moves what is pinned at this path, which is below `<pin path>/v<version>/<kind>`, to `<pin path>/aside`; returns where
/// it is.
pub(super) fn set_aside(pin: &Path) -> io::Result<PathBuf> {
    let (Some(base), Some(name)) = (pin.ancestors().nth(3), pin.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let directory = base.join(ASIDE);
    match fs::create_dir(&directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // bpffs refuses dots.
    let name = name.to_string_lossy();
    let free = (1..=ASIDE_NAMES).map(|n| directory.join(format!("{name}_{n}"))).find(|to| !to.exists());
    let to = free.ok_or_else(|| io::Error::from(io::ErrorKind::AlreadyExists))?;
    fs::rename(pin, &to)?;
    Ok(to)
}

/// Removes the pins of maps that mean nothing, or something else, without one that is missing.
fn drop_what_means_nothing_alone(
    specs: &[Spec],
    missing: &mut BTreeSet<&'static str>,
    pins: &Path,
) -> Result<(), OpenError> {
    if connections::MAPS.iter().any(|map| missing.contains(map)) {
        // A place would be two connections', or of a table of another size.
        remove_pins(&connections::MAPS, missing, pins)?;
    }
    let with: Vec<&'static str> = if missing.contains(map::PORTS) {
        // Whose slots and whose tunnels they are is not known: another port would go on from their totals.
        specs.iter().map(|spec| spec.name).collect()
    } else if missing.contains(map::TUNNELS) || missing.contains(map::TUNNEL_TAKEN) {
        // Tunnels would share places.
        vec![map::TUNNELS, map::TUNNEL_TAKEN, map::TUNNEL_SPARE, map::TUNNEL_COUNTERS, map::META]
    } else if missing.contains(map::TUNNEL_SPARE) {
        // The spare places are known from the tunnels, and are filled in again.
        vec![map::META]
    } else {
        return Ok(());
    };
    remove_pins(&with, missing, pins)
}

/// Has maps that are made anew as many entries as those beside them tell.
fn agree(specs: &mut [Spec], missing: &BTreeSet<&'static str>) {
    let entries =
        |specs: &[Spec], name| specs.iter().find(|spec| spec.name == name).map_or(0, |spec| spec.max_entries);
    // All of them are there or none.
    let connections = entries(specs, map::CONNECTION_KEYS);
    // Of each slot there is one.
    let of_slots = [map::COUNTERS, map::CAPTURES, map::NETWORKS];
    let known = of_slots.into_iter().find(|name| !missing.contains(name)).unwrap_or(map::COUNTERS);
    let per_entry = |name| if name == map::COUNTERS { SLOTS_PER_BLOCK } else { 1 };
    let slots = entries(specs, known) * per_entry(known);
    for spec in specs.iter_mut().filter(|spec| missing.contains(spec.name)) {
        spec.max_entries = match spec.name {
            map::CONNECTIONS | map::CONNECTION_TIMES => connections + 1,
            map::CONNECTION_FREE => connections,
            name if of_slots.contains(&name) => slots / per_entry(name),
            _ => continue,
        };
    }
}

fn remove_pins(
    maps: &[&'static str],
    missing: &mut BTreeSet<&'static str>,
    pins: &Path,
) -> Result<(), OpenError> {
    for name in maps.iter().copied() {
        let pin = pins.join(name);
        match fs::remove_file(&pin) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(path_error("remove", &pin, error));
            }
            _ => missing.insert(name),
        };
    }
    Ok(())
}

/// Says what can't be known without the map.
fn what_it_held(name: &str) -> &'static str {
    match name {
        map::PORTS => "all totals: nothing tells any more whose they are",
        map::COUNTERS => "the totals of all ports that have a netdev",
        map::MEMBERS => "the totals of devices",
        map::TUNNELS | map::TUNNEL_TAKEN | map::TUNNEL_COUNTERS => "the totals of tunnels",
        map::BUCKETS => "the totals of uplinks' buckets",
        map::FAULTS => "the counts of faults",
        map::TUNNEL_SAVED => "what tunnels had counted when the maps were made",
        map::SAVED => "what buckets and faults had counted when the maps were made",
        map::METERS => "the totals of user-defined meters: nothing tells any more whose they are",
        map::METER_COUNTERS => "the totals of user-defined meters that were counted last",
        map::NAMESPACES => "which netdevs of namespaces count for which port",
        map::CONNECTIONS | map::CONNECTION_KEYS => {
            "who began the connections that are on, and what those had moved that are counted"
        }
        map::CAPTURES | map::CAPTURE_SAVED => "what ports had beside the connections that are counted",
        map::NETWORKS => "the VNIs of tunnel netdevs, until they are attached anew",
        _ => "nothing",
    }
}

fn is_named(info: &MapInfo, name: &str) -> bool {
    let found = info.name_as_str().unwrap_or_default();
    found == name || (name == map::SLOTS && found == map::SLOTS_SECTION)
}

fn pin_again(info: &MapInfo, pin: &Path) -> Result<(), OpenError> {
    let pinned = MapData::from_id(info.id()).map_err(|error| describe(&error));
    let pinned = pinned.and_then(|data| data.pin(pin).map_err(|error| describe(&error)));
    pinned.map_err(|error| path_error("pin again at", pin, io::Error::other(error)))
}

/// Returns the maps of the programs that run at our hooks: of the pinned links, and of our filters in this network
/// namespace.
///
/// The kernel opens them for CAP_SYS_ADMIN only.
fn running_maps(links: &Path) -> Result<Vec<MapInfo>, String> {
    let programs = running_programs(links);
    if programs.is_empty() {
        return Ok(Vec::new());
    }
    let mut ids = BTreeSet::new();
    for program in loaded_programs() {
        let program = program.map_err(|error| describe(&error))?;
        if programs.contains(&program.id()) {
            ids.extend(program.map_ids().map_err(|error| describe(&error))?.unwrap_or_default());
        }
    }
    ids.into_iter().map(|id| MapInfo::from_id(id).map_err(|error| describe(&error))).collect()
}

/// Returns the ids of the maps that are pinned for other versions than that whose maps are in `pins`.
fn numbers_of_other_versions(pins: &Path) -> BTreeSet<u32> {
    let Some(pin_path) = pins.parent().and_then(Path::parent) else { return BTreeSet::new() };
    let versions = versions(pin_path).unwrap_or_default().into_iter();
    let others = versions.map(|version| Directories::new(pin_path, version).maps).filter(|maps| maps != pins);
    let entries = others.flat_map(|maps| fs::read_dir(maps).into_iter().flatten().flatten());
    entries.filter_map(|entry| MapInfo::from_pin(entry.path()).ok()).map(|info| info.id()).collect()
}

/// Returns the ids of the programs at our hooks, as far as they can be seen.
pub(super) fn running_programs(links: &Path) -> BTreeSet<u32> {
    let pins = fs::read_dir(links).into_iter().flatten().flatten().map(|entry| entry.path());
    let linked = pins.filter_map(|pin| {
        let link = sys::open_pin(&pin).ok().filter(|link| sys::is_link(link.as_fd()))?;
        sys::link_program(link.as_fd()).ok()
    });
    let netdevs = clsact::netdevs().unwrap_or_default().into_iter();
    let filters = netdevs.flat_map(|ifindex| {
        Direction::ALL.map(|direction| clsact::filter_program(ifindex, direction).ok().flatten())
    });
    linked.chain(filters.flatten()).collect()
}

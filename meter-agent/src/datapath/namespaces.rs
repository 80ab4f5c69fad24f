//! Netdevs in other network namespaces: the programs that each namespace has, and the way in.
//!
//! Everything that attaches, detaches or looks at a hook does it in the netdev's namespace, on a thread that ends with it.
//! Where nobody follows a namespace nothing of this is made or loaded.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
};

use aya::{Ebpf, programs::ProgramError};
use meter_ebpf::abi::{Direction, NAMESPACE_NETDEVS, NAMESPACES, PortRecord, PortUuid, map};

use super::{
    AttachError, Repairs, Retry, Target,
    failure::{describe, netdev_error},
    hook::link_name,
    hooks::ProgramIds,
    kernel::KernelDatapath,
    ledger::Ledger,
    links::Links,
    maps::Maps,
    numbers::Kept,
    object::{load_program, tc_program},
    open::{OpenError, path_error},
    pins::{self, set_aside},
    places::PlaceTable,
    recipe::Recipe,
    record::netdev_of,
    specs::{check_pin, namespaces_spec},
    store::Store,
    unpinned,
};
use crate::netdev::{
    NamespaceId, NetdevId,
    namespaces::{DIRECTORY, Entrance, Identity, find},
};

#[cfg(test)]
mod tests;

/// Programs of ports in namespaces, and the same beside user-defined meters.
pub(super) const NAMESPACE_PROGRAMS: [&str; 2] = ["meter_ns_in", "meter_ns_out"];
pub(super) const NAMESPACE_METER_PROGRAMS: [&str; 2] = ["meter_user_nin", "meter_user_nout"];
/// The same where connections are counted.
pub(super) const NAMESPACE_CONNECTION_PROGRAMS: [&str; 2] = ["meter_conn_nin", "meter_conn_nout"];
/// Every program that has the number of a namespace in it.
pub(super) const ALL_NAMESPACE_PROGRAMS: [[&str; 2]; 3] =
    [NAMESPACE_PROGRAMS, NAMESPACE_METER_PROGRAMS, NAMESPACE_CONNECTION_PROGRAMS];

/// The programs of one namespace.
#[derive(Debug, Default)]
pub(super) struct Programs {
    pub(super) fds: BTreeMap<&'static str, OwnedFd>,
    pub(super) ids: ProgramIds,
}

/// Where the programs of a netdev come from.
pub(super) enum Loaded<'a> {
    /// The host's own namespace: the object, and what of it is loaded.
    Host(&'a mut Ebpf, &'a mut ProgramIds),
    /// Another one.
    Namespace(&'a Programs),
}

impl Loaded<'_> {
    /// Returns a TC program, loaded now where it isn't yet and can be; `None` where there is none.
    pub(super) fn tc_program(&mut self, name: &'static str) -> Result<Option<BorrowedFd<'_>>, ProgramError> {
        match self {
            Self::Host(ebpf, ids) => {
                let Some(program) = tc_program(ebpf, name) else { return Ok(None) };
                if !ids.contains_key(name) {
                    ids.insert(name, load_program(program)?);
                }
                program.fd().map(|fd| Some(fd.as_fd()))
            }
            Self::Namespace(programs) => Ok(programs.fds.get(name).map(|fd| fd.as_fd())),
        }
    }
}

/// One namespace that is followed.
#[derive(Debug)]
struct Known {
    entrance: Entrance,
    programs: Programs,
}

/// The namespaces that are followed.
#[derive(Debug)]
pub(super) struct Namespaces {
    recipe: Recipe,
    known: BTreeMap<NamespaceId, Known>,
    none: Programs,
    /// The one that the calling thread is in, and the way back to the host's from another.
    inside: NamespaceId,
    host: Option<Entrance>,
}

impl Namespaces {
    pub(super) fn new(recipe: Recipe) -> Self {
        let (known, none) = (BTreeMap::new(), Programs::default());
        Self { recipe, known, none, inside: NamespaceId::HOST, host: None }
    }

    /// Returns the programs of a namespace that is not the host's.
    pub(super) fn programs(&self, namespace: NamespaceId) -> &Programs {
        self.known.get(&namespace).map_or(&self.none, |known| &known.programs)
    }

    /// Returns whether the namespace is followed, or could be found.
    pub(super) fn is_known(&self, namespace: NamespaceId) -> bool {
        namespace == NamespaceId::HOST || self.known.contains_key(&namespace)
    }

    /// Returns the ids of all programs of namespaces.
    pub(super) fn program_ids(&self) -> BTreeSet<u32> {
        self.known.values().flat_map(|known| known.programs.ids.values().copied()).collect()
    }

    /// Loads the programs that a netdev of the namespace takes, those that aren't yet.
    fn prepare(
        &mut self,
        namespace: NamespaceId,
        meters: bool,
        captured: bool,
        places: u32,
        repairs: &mut Repairs,
    ) -> Result<(), OpenError> {
        let Some(known) = self.known.get_mut(&namespace) else { return Ok(()) };
        let wanted = [
            NAMESPACE_PROGRAMS.as_slice(),
            if meters { &NAMESPACE_METER_PROGRAMS } else { &[] },
            if captured { &NAMESPACE_CONNECTION_PROGRAMS } else { &[] },
        ];
        let missing: Vec<&'static str> =
            wanted.concat().into_iter().filter(|name| !known.programs.fds.contains_key(name)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        if let Store::Pinned(pins) = &self.recipe.store {
            // Whoever loads over a pin that has gone gets another map.
            let maps = self.recipe.maps.iter().copied().chain([(map::NAMESPACES, places)]);
            pins::keep(maps, pins, repairs)?;
        }
        self.recipe.load(namespace, &missing, &mut known.programs)
    }
}

/// Returns where the map of namespaces is pinned.
pub(super) fn pin(map_pins: &Path) -> PathBuf {
    map_pins.join(map::NAMESPACES)
}

impl KernelDatapath {
    /// Gives a namespace a number, that which it had under an earlier agent if it had one.
    pub(super) fn enter_namespace(
        &mut self,
        identity: Identity,
        entrance: Entrance,
    ) -> Result<NamespaceId, AttachError> {
        let error = |why: String, reason| AttachError { message: why, reason, retry: Retry::Later };
        if self.maps.places.is_none() {
            let made = self.namespaces.recipe.make_places();
            self.maps.places = Some(made.map_err(|why| error(why.to_string(), "namespaces"))?);
        }
        let number = self.maps.places.as_ref().and_then(|places| places.number(identity));
        let full = || {
            error(format!("{} namespaces have a number, and no more can", NAMESPACES - 1), "namespaces_full")
        };
        let number = number.ok_or_else(full)?;
        self.kept.taken(number);
        match self.namespaces.known.get_mut(&number) {
            Some(known) => known.entrance = entrance,
            None => {
                if let Err(why) = entrance.enter(|| unpinned::report(unpinned::sweep_there(&self.pin_path))) {
                    // What comes next says what that costs.
                    tracing::debug!(error = %why, "namespace not entered");
                }
                self.namespaces.known.insert(number, Known { entrance, programs: Programs::default() });
            }
        }
        Ok(number)
    }

    /// Lets go of a namespace, and gives its number back where nothing is attached under it, and nothing can be.
    pub(super) fn leave_namespace(&mut self, namespace: NamespaceId) {
        if self.attached.keys().any(|id| id.namespace == namespace) {
            return;
        }
        self.namespaces.known.remove(&namespace);
        if let Some(places) = &self.maps.places {
            self.kept.give_back(namespace, places);
        }
    }

    /// Returns the way into a namespace: one that is followed, or one of an earlier agent that can be found.
    fn entrance(&self, namespace: NamespaceId) -> io::Result<Option<Entrance>> {
        if let Some(known) = self.namespaces.known.get(&namespace) {
            return Ok(Some(known.entrance.clone()));
        }
        let identity = self.maps.places.as_ref().and_then(|places| places.identity(namespace));
        identity.map_or(Ok(None), |identity| find(Path::new(DIRECTORY), identity))
    }

    /// Returns what `work` returns in the namespace of a netdev, wherever the calling thread is; `None` where nothing leads
    /// there any more.
    pub(super) fn within<T: Send>(
        &mut self,
        target: &Target,
        work: impl FnOnce(&mut Self) -> T + Send,
    ) -> Result<Option<T>, AttachError> {
        let there = target.id.namespace;
        if there == self.namespaces.inside {
            return Ok(Some(work(self)));
        }
        let failed = |error: io::Error| {
            let why = match error.raw_os_error() {
                Some(libc::EPERM) => {
                    "entering its namespace is not permitted: it takes CAP_SYS_ADMIN".to_owned()
                }
                _ => format!("enter its namespace: {error}"),
            };
            netdev_error(target, &why, "namespace", Retry::Later)
        };
        if self.namespaces.inside == NamespaceId::HOST {
            self.namespaces.host = Some(Entrance::own().map_err(failed)?);
        }
        let entrance = match there {
            NamespaceId::HOST => self.namespaces.host.clone(),
            there => self.entrance(there).map_err(failed)?,
        };
        let Some(entrance) = entrance else { return Ok(None) };
        let before = std::mem::replace(&mut self.namespaces.inside, there);
        // Whoever goes on after a panic is where it was before.
        let done = panic::catch_unwind(AssertUnwindSafe(|| entrance.enter(|| work(self))));
        self.namespaces.inside = before;
        done.unwrap_or_else(|panic| panic::resume_unwind(panic)).map(Some).map_err(failed)
    }

    /// Finds the namespaces in which an earlier agent left something attached.
    pub(super) fn find_namespaces(&mut self) {
        let left: BTreeSet<NamespaceId> = self.attached.keys().map(|id| id.namespace).collect();
        for number in left.into_iter().filter(|number| !self.namespaces.is_known(*number)).collect::<Vec<_>>()
        {
            // What can't be entered is said where it is to be.
            if let Ok(Some(entrance)) = self.entrance(number) {
                self.namespaces.known.insert(number, Known { entrance, programs: Programs::default() });
            }
        }
    }

    /// Has the programs for a netdev of another namespace, and a place for its counters.
    pub(super) fn prepare_programs(&mut self, target: &Target) -> Result<(), AttachError> {
        if target.id.namespace == NamespaceId::HOST {
            return Ok(());
        }
        let Some(places) = self.maps.places.as_ref().filter(|places| places.has_room(target.id)) else {
            let why = format!(
                "{NAMESPACE_NETDEVS} netdevs of its namespace are metered, and no more can be; ignore some"
            );
            return Err(netdev_error(target, &why, "namespace_full", Retry::Later));
        };
        let meters = self.meters.on;
        self.namespaces
            .prepare(
                target.id.namespace,
                meters,
                self.captures.wants(target.port),
                places.map(),
                &mut self.repairs,
            )
            .map_err(|error| netdev_error(target, &describe(&error), load_reason(&error), Retry::Later))
    }
}

/// Returns the reason for which programs could not be loaded.
const fn load_reason(error: &OpenError) -> &'static str {
    match error {
        OpenError::Permission { .. } | OpenError::Forbidden(_) => "permission",
        OpenError::Path { .. } | OpenError::ForeignPin { .. } => "pin",
        OpenError::Object(_) | OpenError::NoObject => "object",
        OpenError::Write { .. } => "map_write",
        _ => "verifier",
    }
}

/// Returns the programs of a target's namespace.
pub(super) fn loaded<'a>(
    ebpf: &'a mut Ebpf,
    ids: &'a mut ProgramIds,
    namespaces: &'a Namespaces,
    target: &Target,
) -> Loaded<'a> {
    match target.id.namespace {
        NamespaceId::HOST => Loaded::Host(ebpf, ids),
        namespace => Loaded::Namespace(namespaces.programs(namespace)),
    }
}

/// Opens the map of namespaces where an earlier agent has left one. Where only its pin has gone it is found at programs
/// that count in it, and in `counters`.
pub(super) fn places(
    map_pins: &Path,
    counters: u32,
    repairs: &mut Repairs,
) -> Result<Option<PlaceTable>, OpenError> {
    let pin = pin(map_pins);
    let spec = namespaces_spec();
    let found = match check_pin(&spec, &pin) {
        Ok(None) => None,
        Ok(Some(entries)) if entries == spec.max_entries => return PlaceTable::open(&pin).map(Some),
        Ok(Some(entries)) => Some(format!("a map of {entries} entries")),
        Err(OpenError::ForeignPin { found, .. }) => Some(found),
        Err(error) => return Err(error),
    };
    if let Some(found) = found {
        let aside = set_aside(&pin).map_err(|source| path_error("set aside", &pin, source))?;
        tracing::error!(pin = %pin.display(), found, aside = %aside.display(), "not our map; set aside");
        repairs.set_aside += 1;
    }
    if !pins::restore_beside(&spec, map_pins, counters, ALL_NAMESPACE_PROGRAMS.as_flattened())? {
        return Ok(None);
    }
    repairs.restored += 1;
    PlaceTable::open(&pin).map(Some)
}

/// Puts right what an agent that was killed, or a map that has gone, left undone: a netdev whose namespace nobody knows is
/// given up, and a number under which nothing is attached is kept until it is free for sure.
pub(super) fn settle(maps: &mut Maps, ledger: &mut Ledger, links: &Links) -> Result<Kept, OpenError> {
    let is_elsewhere = |record: &&PortRecord| record.ifindex != 0 && record.namespace != 0;
    let records = ledger.records().iter().filter(|(_, record)| is_elsewhere(record));
    let netdevs: Vec<(PortUuid, NetdevId)> =
        records.map(|(port, record)| (*port, netdev_of(record))).collect();
    let known: BTreeSet<NamespaceId> =
        maps.places.iter().flat_map(PlaceTable::identities).map(|(number, _)| number).collect();
    for (port, id) in netdevs.iter().filter(|(_, id)| !known.contains(&id.namespace)) {
        tracing::error!(netdev = %id, "nothing tells any more which namespace it was in; detached");
        for direction in Direction::ALL {
            let link = link_name(*id, direction);
            match links.remove(&link) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(path_error("remove", Path::new(&links.place(&link)), error));
                }
                _ => {}
            }
        }
        let failed = |source| OpenError::Write { map: map::PORTS, source };
        ledger.release(*port, *id).map_or(Ok(()), |write| maps.write(&write)).map_err(failed)?;
    }
    let used: BTreeSet<NamespaceId> = netdevs.iter().map(|(_, id)| id.namespace).collect();
    let mut kept = Kept::default();
    if let Some(places) = &maps.places {
        known.difference(&used).for_each(|number| kept.keep(*number, places));
    }
    Ok(kept)
}

/// The way into a namespace, if there is one.
type Way = io::Result<Option<Entrance>>;

/// Returns the ways into the namespaces of an earlier agent, by number.
pub(super) fn entrances(map_pins: &Path) -> Result<Vec<(NamespaceId, Way)>, OpenError> {
    let pin = pin(map_pins);
    let places = match check_pin(&namespaces_spec(), &pin) {
        Ok(Some(NAMESPACES)) => PlaceTable::open(&pin)?,
        Ok(None) => return Ok(Vec::new()),
        Ok(Some(_)) | Err(OpenError::ForeignPin { .. }) => {
            set_aside(&pin).map_err(|source| path_error("set aside", &pin, source))?;
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let known = places.identities();
    Ok(known.map(|(number, identity)| (number, find(Path::new(DIRECTORY), identity))).collect())
}

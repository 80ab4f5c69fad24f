//! From an earlier version's maps to this one's, under traffic and whatever happens meanwhile.
//!
//! 1. The new maps get the ports with the slots that they have, all at zero, and the pins of the links.
//! 2. The programs of each hook are replaced atomically: a frame counts in the old maps or in the new ones.
//! 3. After a grace period nothing counts in the old maps. Their totals are final, and go into the new ones.
//! 4. The new maps say that they have them, and the old pins are removed.
//!
//! Nothing is added, everything is set, so an agent that was killed at any point is followed by one that begins at 1, or
//! does the rest of 4.
//!
//! Each version from 1 to this one is read by the structures of [`meter_ebpf::abi`]: none has changed so far. Whoever
//! changes one keeps the old one here, and reads an earlier version by it.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use aya::maps::{Map, MapData};
use meter_ebpf::abi::{Direction, PortRecord, SlotCounters, SlotRef, map};
use nix::fcntl::Flock;

use super::{
    Attachment, HookKind, Options, Repairs, Retry,
    bind::now_ns,
    carried::carry,
    directories::{self, Directories, Found, entries},
    failure::describe,
    hook::link_name,
    hooks,
    kernel::KernelDatapath,
    ledger::Write,
    links::{Links, remove_link},
    maps::Maps,
    meters,
    namespaces::{self, loaded},
    open::{OpenError, load_error, lock, path_error},
    pins::{self, Settled},
    places::PlaceTable,
    saved,
    slots::SlotTable,
    specs::{self, Spec},
    sys,
    takeover::ledger_of,
};
use crate::{netdev::NetdevId, totals::Totals};

/// Maps of an earlier version.
pub(super) struct Earlier {
    version: u32,
    directories: Directories,
    specs: Vec<Spec>,
    /// What was done about their pins, and which maps are lost.
    settled: Settled,
    /// Held until they are gone: no agent of that version writes to them.
    _lock: Flock<OwnedFd>,
}

impl Earlier {
    /// Finds the maps of the last version before this one.
    ///
    /// # Errors
    ///
    /// There are pins of a later version, or another agent uses those that are found.
    pub(super) fn find(options: &Options) -> Result<Option<Self>, OpenError> {
        let pin_path = &options.pin_path;
        let Found { earlier, begun } = directories::find(pin_path, options.version)?;
        for found in begun {
            if !Directories::new(pin_path, found).give_up()? {
                return Err(directories::newer(pin_path, found, options.version));
            }
            tracing::warn!(
                version = found,
                "an agent of a later version did not get to count; its maps are removed"
            );
        }
        let Some(version) = earlier else { return Ok(None) };
        let directories = Directories::new(pin_path, version);
        let lock = lock(&directories.maps)?;
        let mut specs = specs::specs(options);
        let mut settled = pins::settle(&mut specs, &directories)?;
        let numbers = pins::numbers(pinned(&specs, &directories.maps), &directories.maps)?;
        let counters = numbers.iter().find(|(name, _)| *name == map::COUNTERS).map_or(0, |(_, id)| *id);
        namespaces::places(&directories.maps, counters, &mut settled.repairs)?;
        Ok(Some(Self { version, directories, specs, settled, _lock: lock }))
    }

    /// Returns what was done about the pins of its maps.
    pub(super) const fn repairs(&self) -> Repairs {
        self.settled.repairs
    }

    /// Lets new maps have as many entries as the earlier ones; and what was saved of tunnels, as many as have ever been
    /// counted.
    pub(super) fn keep_sizes(&self, specs: &mut [Spec], pins: &Path) -> Result<(), OpenError> {
        let [saved, _] = self.maps()?.carried().len();
        let saved = u32::try_from(saved).unwrap_or(u32::MAX);
        let tunnels =
            self.specs.iter().find(|spec| spec.name == map::TUNNELS).map_or(0, |spec| spec.max_entries);
        for (spec, earlier) in specs.iter_mut().zip(&self.specs) {
            if pins.join(spec.name).exists() {
                continue;
            }
            spec.max_entries = spec.max_entries.max(earlier.max_entries);
            if spec.name == map::TUNNEL_SAVED {
                spec.max_entries = spec.max_entries.max(tunnels.saturating_add(saved));
            }
        }
        Ok(())
    }

    /// Makes the map of namespaces where the earlier version has one.
    pub(super) fn make_places(&self, maps: &mut Maps, directories: &Directories) -> Result<(), OpenError> {
        if maps.places.is_none() && namespaces::pin(&self.directories.maps).exists() {
            maps.places = Some(PlaceTable::make(&namespaces::pin(&directories.maps))?);
        }
        Ok(())
    }

    /// Brings the ports into the new maps, with their slots, their netdevs and how they are attached, and the namespaces
    /// with their numbers; and the pins of the links to where the new version has them.
    pub(super) fn bind(&self, maps: &mut Maps, directories: &Directories) -> Result<(), OpenError> {
        let Directories { links, .. } = directories;
        let earlier = self.maps()?;
        if let Some(places) = &earlier.places {
            for (number, identity) in places.identities() {
                maps.places.iter().for_each(|places| places.assign(number, identity));
            }
        }
        let known = maps.port_records()?;
        let failed = |map| move |source| OpenError::Write { map, source };
        for (port, record) in earlier.port_records()? {
            if !known.contains_key(&port) {
                let record = PortRecord { saved: SlotCounters::default(), ..record };
                maps.write(&Write::Port(port, record)).map_err(failed(map::PORTS))?;
            }
        }
        for (netdev, slot) in earlier.all_bound()? {
            if maps.slot(netdev).is_ok_and(|known| known != SlotRef::UNBOUND) {
                continue;
            }
            maps.set_network(slot.slot(), earlier.network(slot.slot())).map_err(failed(map::NETWORKS))?;
            maps.set_slot(netdev, slot).map_err(failed(map::SLOTS))?;
        }
        for (name, path) in entries(&self.directories.links)? {
            let to = links.join(name);
            fs::rename(&path, &to).map_err(|source| path_error("move the pin of a link", &path, source))?;
        }
        Ok(())
    }

    /// Returns the totals, which are final only when nothing counts any more.
    fn totals(&self) -> Result<Totals, OpenError> {
        let maps = self.maps()?;
        let meters = meters::earlier(|name| self.map(name))?;
        let mut ledger = ledger_of(&maps, &self.specs)?;
        if self.settled.lost.contains(map::COUNTERS) {
            ledger.counters_lost(now_ns());
        }
        if self.settled.lost.contains(map::MEMBERS) {
            ledger.members_lost();
        }
        Ok(saved::totals(&maps, ledger.records(), ledger.member_records(), meters)?)
    }

    fn maps(&self) -> Result<Maps, OpenError> {
        let pin = self.directories.maps.join(map::SLOTS);
        let slots = if pin.exists() {
            SlotTable::open(&pin)?
        } else {
            SlotTable::unpinned().map(|(slots, _)| slots)?
        };
        let mut maps = Maps::take(|name| self.map(name), &self.specs, slots)?;
        let places = namespaces::pin(&self.directories.maps);
        if places.exists() {
            maps.places = Some(PlaceTable::open(&places)?);
        }
        Ok(maps)
    }

    /// Opens a map; one that is lost is empty.
    fn map(&self, name: &'static str) -> Result<Map, OpenError> {
        let pin = self.directories.maps.join(name);
        let action = "open a map of the version before";
        let failed =
            |error: &dyn std::error::Error| path_error(action, &pin, io::Error::other(describe(error)));
        let data = if pin.exists() {
            MapData::from_pin(&pin).map_err(|error| failed(&error))?
        } else {
            let spec = self.specs.iter().find(|spec| spec.name == name);
            let spec = spec.ok_or_else(|| OpenError::Object(format!("there is no map {name}")))?;
            let size = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
            let sizes = [size(spec.key_size), size(spec.value_size), spec.max_entries];
            let made = sys::create_map(name, spec.kind as u32, sizes);
            MapData::from_fd(made.map_err(|error| load_error("make an empty map", &error))?)
                .map_err(|error| failed(&error))?
        };
        Map::from_map_data(data).map_err(|error| failed(&error))
    }

    /// Moves the pins of the maps to where nothing uses them.
    fn set_aside(&self) -> Result<(), OpenError> {
        for (_, pin) in entries(&self.directories.maps)? {
            let aside = pins::set_aside(&pin).map_err(|source| path_error("set aside", &pin, source))?;
            tracing::error!(pin = %pin.display(), aside = %aside.display(), "not every total has room; map set aside");
        }
        Ok(())
    }
}

impl KernelDatapath {
    /// Lets this version's programs count, and takes over what the earlier version's had counted.
    pub(super) fn migrate(&mut self, earlier: Earlier) -> Result<(), OpenError> {
        if !self.maps.have_carried()? {
            self.swap_all();
            self.grace.wait().map_err(|error| load_error("wait for programs that count", &error))?;
            let totals = earlier.totals()?;
            let refused = carry(&mut self.maps, &mut self.meters, &totals)?;
            self.repairs.unrestored += u64::try_from(refused).unwrap_or(u64::MAX);
            self.maps.set_carried()?;
            let (ports, tunnels) = (totals.ports.len(), totals.tunnels.len());
            tracing::info!(
                version = earlier.version,
                ports,
                tunnels,
                refused,
                "totals of an earlier version"
            );
            if refused > 0 {
                earlier.set_aside()?;
            }
        }
        earlier.directories.remove()
    }

    /// Puts this version's programs into the places of those that count, on the host and in namespaces. A hook for which
    /// that can't be is removed: what it counted would be lost.
    fn swap_all(&mut self) {
        self.find_namespaces();
        for attachment in self.attached.values().cloned().collect::<Vec<_>>() {
            let target = &attachment.target;
            let swapped = self
                .prepare_programs(target)
                .and_then(|()| self.within(target, |this| this.swap_here(&attachment)));
            let why = match swapped {
                Ok(Some(true)) => continue,
                Ok(Some(false)) => None,
                Ok(None) => Some("nothing leads to its namespace any more".to_owned()),
                Err(error) => Some(error.to_string()),
            };
            if let Some(why) = why {
                tracing::error!(netdev = %target.id, error = why, "hooks of an earlier version can't be taken over; its links are removed, and what filters count from now on is lost");
                self.kept.doubt(target.id.namespace);
                for hook in hooks::both(target, self.site()) {
                    if let Err(error) = hook.unlink() {
                        tracing::error!(error = %error, "link not removed");
                    }
                }
            }
            self.attached.insert(target.id, Attachment { lost: true, ..attachment.clone() });
        }
        self.remove_strays();
    }

    /// The same for a netdev of the calling thread's namespace; returns whether all its hooks are this version's.
    fn swap_here(&mut self, attachment: &Attachment) -> bool {
        let Attachment { target, .. } = attachment;
        let captured = self.captures.wanted().ports.clone();
        let site = hooks::Site { links: &self.links, meters: self.meters.on, captured: &captured };
        let mut swapped = true;
        for hook in hooks::both(target, site) {
            let kind = attachment.kind(hook.direction);
            // What is not there must not come to be there: its netdev may be another's by now.
            if kind != HookKind::Xdp && !hook.is_there(kind, None).unwrap_or(true) {
                continue;
            }
            let Err(error) =
                hook.attach(&mut loaded(&mut self.ebpf, &mut self.programs, &self.namespaces, target), kind)
            else {
                continue;
            };
            if error.retry == Retry::Gone {
                continue;
            }
            tracing::error!(error = %error, "a hook of an earlier version can't be taken over; it is removed");
            if let Err(error) = hook.detach() {
                tracing::error!(error = %error, "nor can it be removed");
            }
            swapped = false;
        }
        swapped
    }

    /// Removes links of netdevs that no record names.
    fn remove_strays(&self) {
        let Links::Pinned(links) = &self.links else { return };
        let names = |id: &NetdevId| Direction::ALL.map(|direction| link_name(*id, direction));
        let known: BTreeSet<String> = self.attached.keys().flat_map(names).collect();
        for (name, path) in entries(links).unwrap_or_default() {
            let is_link = || sys::open_pin(&path).is_ok_and(|link| sys::is_link(link.as_fd()));
            if known.contains(&name) || !is_link() {
                continue;
            }
            match remove_link(&path) {
                Ok(()) => tracing::warn!(pin = %path.display(), "a link without a port is removed"),
                Err(error) => tracing::error!(pin = %path.display(), error = %error, "link not removed"),
            }
        }
    }
}

/// Returns the maps that are pinned, of these.
fn pinned<'a>(specs: &'a [Spec], pins: &'a Path) -> impl Iterator<Item = &'a Spec> {
    specs.iter().filter(move |spec| pins.join(spec.name).exists())
}

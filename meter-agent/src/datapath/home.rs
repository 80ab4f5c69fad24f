//! Where everything is kept that counts: pinned on a bpffs, or, where that can't be, by this process.

use std::{os::fd::OwnedFd, path::Path};

use aya::Ebpf;
use meter_ebpf::abi::map;
use nix::fcntl::Flock;

use super::{
    Options,
    directories::{Directories, pins_anything},
    links::Links,
    migrate::Earlier,
    object::Over,
    open::{self, OpenError, make_directory, try_pin},
    pins::{self, Settled},
    slots::SlotTable,
    specs::Spec,
    store::{self, HeldMaps, Store},
    unpinned::{self, Alone, Unpinned},
};

/// The home of maps and links.
#[derive(Debug)]
pub(super) enum Home {
    /// On a bpffs, which outlives the agent.
    Pinned {
        /// Where.
        directories: Directories,
        /// Held while the agent lives: nobody else writes to the maps.
        _lock: Flock<OwnedFd>,
        /// And nobody without these pins, of another mount namespace, takes the hooks.
        _alone: Alone,
    },
    /// In this process.
    Unpinned(Unpinned),
}

impl Home {
    /// Finds it, with the maps of an earlier version. What an agent without pins left behind is removed.
    ///
    /// # Errors
    ///
    /// What keeps an agent from counting, which that nothing can be pinned does not.
    pub(super) fn find(options: &Options) -> Result<(Self, Option<Earlier>), OpenError> {
        let pin_path = &options.pin_path;
        match Pinned::find(options) {
            Ok(found) => Ok(found.home(unpinned::lock(pin_path)?, pin_path)),
            Err(error) => {
                let unpinned = Unpinned::after(error, options)?;
                // A detach that was at work is over now.
                if let Ok(found) = Pinned::find(options) {
                    return Ok(found.home(unpinned.alone, pin_path));
                }
                tracing::error!(
                    error = unpinned.why,
                    "counters are not pinned: they end with this agent, nothing counts until the next one, and that begins \
                     anew, or from the last state.totals_file where one is set; have a bpffs that the agent may write to \
                     (mount -t bpf bpf /sys/fs/bpf; in a unit ReadWritePaths= or BindPaths=), and restart the agent"
                );
                unpinned::sweep_here(pin_path, &unpinned.alone);
                Ok((Self::Unpinned(unpinned), None))
            }
        }
    }

    /// Returns where things are pinned.
    pub(super) const fn directories(&self) -> Option<&Directories> {
        match self {
            Self::Pinned { directories, .. } => Some(directories),
            Self::Unpinned(_) => None,
        }
    }

    /// Returns where maps are pinned.
    pub(super) fn map_pins(&self) -> Option<&Path> {
        self.directories().map(|directories| directories.maps.as_path())
    }

    /// Looks at what is pinned ([`pins::settle`]).
    pub(super) fn settle(&self, specs: &mut [Spec]) -> Result<Settled, OpenError> {
        self.directories().map_or(Ok(Settled::default()), |directories| pins::settle(specs, directories))
    }

    /// Returns `SLOTS`, taken over or made, and the maps that are held so far.
    pub(super) fn slots(&self) -> Result<(SlotTable, HeldMaps), OpenError> {
        let Some(pins) = self.map_pins() else {
            let (slots, map) = SlotTable::unpinned()?;
            return Ok((slots, HeldMaps::from([(map::SLOTS, map)])));
        };
        let pin = pins.join(map::SLOTS);
        let slots = if pin.exists() { SlotTable::open(&pin) } else { SlotTable::make(&pin) }?;
        Ok((slots, HeldMaps::new()))
    }

    /// Returns what the object is loaded over; `slots` is what `SLOTS` holds.
    pub(super) fn over<'a>(&'a self, slots: &'a [u64], held: &'a HeldMaps) -> Over<'a> {
        self.map_pins().map_or(Over::Held(held), |maps| Over::Pinned { maps, slots })
    }

    /// Returns where the maps of the object are now.
    pub(super) fn store(&self, ebpf: &Ebpf, specs: &[Spec], held: HeldMaps) -> Result<Store, OpenError> {
        match self.map_pins() {
            Some(pins) => Ok(Store::Pinned(pins.to_owned())),
            None => store::hold(ebpf, specs, held),
        }
    }

    /// Returns where links are kept.
    pub(super) fn links(&self, pin_path: &Path) -> Links {
        let pinned = self.directories().map(|directories| Links::Pinned(directories.links.clone()));
        pinned.unwrap_or_else(|| Links::held(pin_path))
    }

    /// Returns why nothing is pinned; `None` where it is.
    pub(super) fn unpinned(&self) -> Option<&str> {
        match self {
            Self::Pinned { .. } => None,
            Self::Unpinned(unpinned) => Some(&unpinned.why),
        }
    }
}

/// Pins that this process may write to, and the maps of an earlier version.
struct Pinned {
    directories: Directories,
    lock: Flock<OwnedFd>,
    earlier: Option<Earlier>,
}

impl Pinned {
    fn find(options: &Options) -> Result<Self, OpenError> {
        let pin_path = &options.pin_path;
        let directories = Directories::new(pin_path, options.version);
        let earlier = Earlier::find(options)?;
        make_directory(&directories.maps, pin_path)?;
        make_directory(&directories.links, pin_path)?;
        let lock = open::lock(&directories.maps)?;
        if !pins_anything(pin_path) {
            try_pin(&directories.maps)?;
        }
        Ok(Self { directories, lock, earlier })
    }

    /// Returns the home that they are, without what an agent without pins left behind.
    fn home(self, alone: Alone, pin_path: &Path) -> (Home, Option<Earlier>) {
        let Self { directories, lock, earlier } = self;
        unpinned::sweep_here(pin_path, &alone);
        (Home::Pinned { directories, _lock: lock, _alone: alone }, earlier)
    }
}

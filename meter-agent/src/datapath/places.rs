//! `NAMESPACES`, the array that the programs of namespaces read: mapped here.

use std::{
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use meter_ebpf::abi::{
    NAMESPACE_NETDEVS, NAMESPACES, NamespacePlace, NamespaceTable, SlotRef, map, namespace_place,
};

use super::{
    mapped::MappedWords,
    open::{OpenError, load_error, path_error},
    sys,
};
use crate::netdev::{NamespaceId, NetdevId, namespaces::Identity};

/// Numbers of eight bytes in one value: the places, and what tells the namespace.
const WORDS: usize = size_of::<NamespaceTable>() / 8;
const DEVICE: usize = std::mem::offset_of!(NamespaceTable, device) / 8;
const INODE: usize = std::mem::offset_of!(NamespaceTable, inode) / 8;
const COOKIE: usize = std::mem::offset_of!(NamespaceTable, cookie) / 8;
const ALL: usize = WORDS * NAMESPACES as usize;

/// The map, in this process's memory.
#[derive(Debug)]
pub(super) struct PlaceTable {
    words: MappedWords,
    /// The map's number.
    map: u32,
}

impl PlaceTable {
    /// Opens the map that is pinned, which has to be checked before.
    pub(super) fn open(pin: &Path) -> Result<Self, OpenError> {
        let map = sys::open_pin(pin).map_err(|source| path_error("open the pinned map", pin, source))?;
        Self::of(map.as_fd(), pin)
    }

    /// Makes the map and pins it.
    pub(super) fn make(pin: &Path) -> Result<Self, OpenError> {
        let map = create()?;
        // The pin comes last: one without a table would be in the way of the next attempt.
        let table = Self::of(map.as_fd(), pin)?;
        sys::pin(map.as_fd(), pin).map_err(|source| path_error("pin map", pin, source))?;
        Ok(table)
    }

    /// Makes a map that goes when both are dropped.
    pub(super) fn unpinned() -> Result<(Self, OwnedFd), OpenError> {
        let map = create()?;
        Ok((Self::of(map.as_fd(), Path::new(map::NAMESPACES))?, map))
    }

    fn of(map: BorrowedFd<'_>, pin: &Path) -> Result<Self, OpenError> {
        let failed = |action| move |source| path_error(action, pin, source);
        let words = MappedWords::map(map, ALL).map_err(failed("map into memory"))?;
        Ok(Self { words, map: sys::map_id(map).map_err(failed("ask for the number of"))? })
    }

    /// Returns the map's number.
    pub(super) const fn map(&self) -> u32 {
        self.map
    }

    /// Returns the words of a namespace; none for a number beyond the map.
    fn words(&self, namespace: NamespaceId) -> &[AtomicU64] {
        let number = usize::try_from(namespace.0).unwrap_or(usize::MAX);
        self.words.words().chunks_exact(WORDS).nth(number).unwrap_or_default()
    }

    fn places(&self, namespace: NamespaceId) -> &[AtomicU64] {
        self.words(namespace).get(..NAMESPACE_NETDEVS as usize).unwrap_or_default()
    }

    /// Returns the namespace that has this number.
    pub(super) fn identity(&self, namespace: NamespaceId) -> Option<Identity> {
        let words = self.words(namespace);
        let word = |index: usize| words.get(index).map(|word| word.load(Ordering::Relaxed));
        let identity = Identity { device: word(DEVICE)?, inode: word(INODE)?, cookie: word(COOKIE)? };
        (identity.device != 0 || identity.inode != 0).then_some(identity)
    }

    /// Returns every namespace that has a number.
    pub(super) fn identities(&self) -> impl Iterator<Item = (NamespaceId, Identity)> {
        (1..NAMESPACES).map(NamespaceId).filter_map(|number| Some((number, self.identity(number)?)))
    }

    /// Returns the number of a namespace: the one that it has, or a free one.
    pub(super) fn number(&self, identity: Identity) -> Option<NamespaceId> {
        let known = self.identities().find(|(_, known)| *known == identity).map(|(number, _)| number);
        if known.is_some() {
            return known;
        }
        let free = (1..NAMESPACES).map(NamespaceId).find(|number| self.identity(*number).is_none())?;
        self.assign(free, identity);
        Some(free)
    }

    /// Gives a namespace the number that it has in another table.
    pub(super) fn assign(&self, number: NamespaceId, identity: Identity) {
        let words = self.words(number);
        for (index, value) in [(COOKIE, identity.cookie), (INODE, identity.inode), (DEVICE, identity.device)]
        {
            if let Some(word) = words.get(index) {
                word.store(value, Ordering::Relaxed);
            }
        }
    }

    /// Gives a number back, with all places.
    pub(super) fn free(&self, namespace: NamespaceId) {
        self.words(namespace).iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    /// Returns the place that a netdev has.
    fn place(&self, id: NetdevId, ifindex: u32) -> Option<&AtomicU64> {
        let places = self.places(id.namespace);
        let mut tried = (0..NAMESPACE_NETDEVS)
            .filter_map(|attempt| places.get(usize::try_from(namespace_place(id.ifindex, attempt)).ok()?));
        tried.find(|place| NamespacePlace::from_bits(place.load(Ordering::Relaxed)).ifindex() == ifindex)
    }

    /// Returns where the netdev's counters are.
    pub(super) fn get(&self, id: NetdevId) -> SlotRef {
        let place = self.place(id, id.ifindex).map(|place| place.load(Ordering::Relaxed));
        NamespacePlace::from_bits(place.unwrap_or_default()).slot()
    }

    /// Returns whether the netdev has a place, or can have one.
    pub(super) fn has_room(&self, id: NetdevId) -> bool {
        self.place(id, id.ifindex).or_else(|| self.place(id, 0)).is_some()
    }

    /// Says where the netdev's counters are, from the next frame on; returns whether there was a place.
    pub(super) fn set(&self, id: NetdevId, slot: SlotRef) -> bool {
        let known = self.place(id, id.ifindex);
        if slot == SlotRef::UNBOUND {
            if let Some(place) = known {
                place.store(NamespacePlace::FREE.bits(), Ordering::Relaxed);
            }
            return true;
        }
        let place = known.or_else(|| self.place(id, 0));
        let bits = NamespacePlace::new(id.ifindex, slot.slot()).bits();
        place.map(|place| place.store(bits, Ordering::Relaxed)).is_some()
    }

    /// Returns every netdev that has counters.
    pub(super) fn bound(&self) -> impl Iterator<Item = (NetdevId, SlotRef)> {
        self.identities().flat_map(|(namespace, _)| {
            let places = self.places(namespace).iter();
            places.filter_map(move |place| {
                let place = NamespacePlace::from_bits(place.load(Ordering::Relaxed));
                let id = NetdevId { namespace, ifindex: place.ifindex() };
                (id.ifindex != 0).then(|| (id, place.slot()))
            })
        })
    }
}

fn create() -> Result<OwnedFd, OpenError> {
    sys::create_mapped_array(map::NAMESPACES, size_of::<NamespaceTable>(), NAMESPACES)
        .map_err(|error| load_error(&format!("make map {}", map::NAMESPACES), &error))
}

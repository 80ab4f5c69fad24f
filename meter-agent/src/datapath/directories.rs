//! Where each version of the layout has its pins.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use aya::maps::{Array, Map, MapData};
use meter_ebpf::abi::{Meta, map};

use super::open::{OpenError, lock, path_error};

/// Where one version of the layout has its pins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Directories {
    pub(super) maps: PathBuf,
    pub(super) links: PathBuf,
}

impl Directories {
    pub(super) fn new(pin_path: &Path, version: u32) -> Self {
        let base = pin_path.join(format!("v{version}"));
        Self { maps: base.join("maps"), links: base.join("links") }
    }

    /// Removes them with the pins of maps.
    pub(super) fn remove(&self) -> Result<(), OpenError> {
        let Self { maps, links } = self;
        for (_, path) in entries(maps)? {
            fs::remove_file(&path).map_err(|source| path_error("remove", &path, source))?;
        }
        let base = maps.parent().unwrap_or(maps);
        for directory in [links, maps, base] {
            match fs::remove_dir(directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(path_error("remove", directory, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes what an agent began to make here, while nobody uses it; returns whether it is gone. What is finished is left.
    pub(super) fn give_up(&self) -> Result<bool, OpenError> {
        if !self.is_begun()? {
            return Ok(false);
        }
        let _lock = self.maps.exists().then(|| lock(&self.maps)).transpose()?;
        let is_begun = self.is_begun()?;
        if is_begun {
            self.remove()?;
        }
        Ok(is_begun)
    }

    /// Returns whether an agent began to make maps here, and did not come to count in them.
    pub(super) fn is_begun(&self) -> Result<bool, OpenError> {
        Ok(self.are_complete() == Some(false) && entries(&self.links)?.is_empty())
    }

    /// Returns whether an agent had finished making the maps; `None` where that can't be told.
    pub(super) fn are_complete(&self) -> Option<bool> {
        let meta = self.maps.join(map::META);
        if fs::symlink_metadata(&meta).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return Some(false);
        }
        let data = MapData::from_pin(meta).ok()?;
        let array = Array::<MapData, Meta>::try_from(Map::from_map_data(data).ok()?).ok()?;
        Some(array.get(&0, 0).ok()?.tunnels_ready == 1)
    }

    /// Returns whether something is pinned where links are.
    pub(super) fn have_links(&self) -> bool {
        fs::read_dir(&self.links).is_ok_and(|mut entries| entries.next().is_some())
    }
}

/// Returns what is in a directory, by name; nothing where it is not there.
pub(super) fn entries(directory: &Path) -> Result<Vec<(String, PathBuf)>, OpenError> {
    let list = || -> io::Result<Vec<_>> {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        entries
            .map(|entry| entry.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())))
            .collect()
    };
    list().map_err(|source| path_error("list", directory, source))
}

/// Returns the versions that have pins here, in order.
///
/// # Errors
///
/// What keeps the directory from being listed; that it is not there does not.
pub(super) fn versions(pin_path: &Path) -> io::Result<BTreeSet<u32>> {
    let entries = match fs::read_dir(pin_path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(BTreeSet::new());
        }
        entries => entries?,
    };
    let mut versions = BTreeSet::new();
    for entry in entries {
        let name = entry?.file_name();
        versions.extend(name.to_str().and_then(|name| name.strip_prefix('v')?.parse::<u32>().ok()));
    }
    Ok(versions)
}

/// What an agent finds of other versions.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The one whose maps it takes over from.
    pub(super) earlier: Option<u32>,
    /// Later ones that an agent began to make, and did not come to count in.
    pub(super) begun: Vec<u32>,
}

/// Looks for the pins of other versions than this one, and changes nothing.
///
/// # Errors
///
/// There are those of a later version, or of two earlier ones.
pub(super) fn find(pin_path: &Path, version: u32) -> Result<Found, OpenError> {
    let mut versions =
        versions(pin_path).map_err(|source| path_error("list the pins in", pin_path, source))?;
    let later = versions.split_off(&(version + 1));
    let has_maps = |version: &u32| Directories::new(pin_path, *version).maps.exists();
    // The maps that an agent takes over from go last: once they have, its own hold all totals, whatever they look like.
    let is_left = versions.iter().any(has_maps);
    for &found in &later {
        if !(is_left && Directories::new(pin_path, found).is_begun()?) {
            return Err(newer(pin_path, found, version));
        }
    }
    let mut earlier = versions.into_iter().filter(|found| *found < version && has_maps(found));
    let first = earlier.next();
    if let (Some(first), Some(second)) = (first, earlier.next()) {
        // Only the agent in between knows what it has taken over.
        return Err(OpenError::UnfinishedPins { path: pin_path.to_owned(), found: [first, second] });
    }
    Ok(Found { earlier: first, begun: later.into_iter().collect() })
}

/// Returns the error over maps that only a later agent knows.
pub(super) fn newer(pin_path: &Path, found: u32, known: u32) -> OpenError {
    OpenError::NewerPins { path: pin_path.to_owned(), found, known }
}

/// Returns whether maps are pinned here, of whichever version. What is there and may not be looked at is taken for them.
pub(super) fn pins_anything(pin_path: &Path) -> bool {
    let has_entries = |version: u32| match fs::read_dir(Directories::new(pin_path, version).maps) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    };
    match versions(pin_path) {
        Ok(versions) => versions.into_iter().any(has_entries),
        Err(_) => fs::symlink_metadata(pin_path).is_ok(),
    }
}

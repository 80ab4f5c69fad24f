//! The maps to which outer ones lead: compiled rules, and the verdicts that CPUs remember of them.
//!
//! Before Linux 5.10.214, 6.1.75 and 6.6.14 an inner map that nobody holds is freed under programs that still read it
//! (CVE-2023-52447). So whatever is in an outer map is held by a descriptor until another is in its place, or none: that
//! call returns when no program uses the old one any more. So that the next agent can hold what this one put there it is
//! pinned as well, since opening a map by its id takes CAP_SYS_ADMIN, which the agent's unit doesn't give.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::{Array, IterableMap as _, Map, MapData, MapError, PerCpuArray},
};
use meter_ebpf::abi::rules::{GENERATION_BITS, RuleTables, VERDICT_BLOCKS, VerdictBlock};

use super::{MetersError, bind::now_ns, failure::describe, maps::take, open::OpenError, sys};
use crate::rules::{self, CompileError};

/// What stands behind the name of an outer map for what it leads to, and for what takes its place next.
const PINS: [&str; 2] = ["_NOW", "_NEXT"];

/// Returns the number of the rules that follow those of a number: by the time, about a millisecond a number, which comes
/// round in eight years.
fn generation_after(last: u64, now_ns: u64) -> u64 {
    let mask = (1 << GENERATION_BITS) - 1;
    match (now_ns >> 20 & mask).max(last + 1) & mask {
        // No rules have that number.
        0 => 1,
        number => number,
    }
}

/// A set of rules, and the verdicts on it.
pub(super) struct Tables {
    rules: Outer,
    verdicts: Outer,
    /// Whether verdicts are remembered in a map that this agent made.
    own_verdicts: bool,
    /// The number of the last rules.
    generation: u64,
}

impl Tables {
    /// Takes the outer maps with these names out of the loaded object; `pins` is where maps are pinned, if they are.
    pub(super) fn take(
        ebpf: &mut Ebpf,
        names: [&'static str; 2],
        pins: Option<&Path>,
    ) -> Result<Self, OpenError> {
        let [rules, verdicts] = names;
        let mut outer = |name, inner_bytes| match take(ebpf, name)? {
            Map::ArrayOfMaps(data) => Ok(Outer::new(name, data, pins, inner_bytes)),
            _ => Err(OpenError::Object(format!("map {name} is not an array of maps"))),
        };
        let of_a_cpu = VERDICT_BLOCKS as usize * size_of::<VerdictBlock>();
        Ok(Self {
            rules: outer(rules, size_of::<RuleTables>())?,
            verdicts: outer(verdicts, of_a_cpu * aya::util::nr_cpus().unwrap_or(1))?,
            own_verdicts: false,
            generation: 0,
        })
    }

    /// Returns how many entries of a map of these are in use, and the bytes that it leads to; `None` for maps of others.
    pub(super) fn usage(&self, name: &str) -> Option<[u64; 2]> {
        let outer = [&self.rules, &self.verdicts].into_iter().find(|outer| outer.name == name)?;
        let is_used = u64::from(outer.is_used);
        Some([is_used, is_used * outer.inner_bytes])
    }

    /// Returns whether there are rules or verdicts.
    pub(super) fn are_used(&self) -> bool {
        self.rules.is_used || self.verdicts.is_used
    }

    /// Returns whether what programs use now can be replaced while they use it.
    pub(super) fn are_held(&self) -> bool {
        self.rules.is_held() && self.verdicts.is_held()
    }

    /// Compiles rules, given their number, and lets programs go by them from now on. Those before are out of use when this
    /// returns. `before` is done when nothing but the last step is left.
    pub(super) fn put(
        &mut self,
        compile: impl FnOnce(u64) -> Result<rules::Tables, CompileError>,
        before: impl FnOnce() -> Result<(), MetersError>,
    ) -> Result<(), MetersError> {
        // Never one that a verdict of an earlier agent has.
        let generation = generation_after(self.generation, now_ns());
        let tables = compile(generation).map_err(|error| MetersError(error.to_string()))?;
        let failed = |error: MapError| write_error(self.rules.name, &error);
        let mut rules: Array<MapData, RuleTables> = Array::create(1, 0).map_err(failed)?;
        let tables: &RuleTables = &tables[0];
        rules.set(0, tables, 0).map_err(failed)?;
        if !self.own_verdicts {
            let failed = |error: MapError| write_error(self.verdicts.name, &error);
            let verdicts = PerCpuArray::<MapData, VerdictBlock>::create(VERDICT_BLOCKS, 0).map_err(failed)?;
            self.verdicts.put(verdicts.map().fd().as_fd())?;
            self.own_verdicts = true;
        }
        before()?;
        self.rules.put(rules.map().fd().as_fd())?;
        self.generation = generation;
        Ok(())
    }

    /// Lets programs go by no rules, and gives back the memory of the rules and of the verdicts.
    ///
    /// # Errors
    ///
    /// Programs may go by the rules from before.
    pub(super) fn clear(&mut self) -> Result<(), MetersError> {
        self.own_verdicts = false;
        self.rules.clear()?;
        if let Err(error) = self.verdicts.clear() {
            tracing::warn!(error = %error, "memory not given back");
        }
        Ok(())
    }
}

/// An array of one map, or of none.
struct Outer {
    name: &'static str,
    map: MapData,
    /// Where what it leads to is pinned, if anything can be.
    pins: Option<[PathBuf; 2]>,
    /// What it leads to, and what it may lead to.
    held: Vec<OwnedFd>,
    /// Whether it leads to anything, or may. Before Linux 6.8 whoever looks waits for a grace period of RCU.
    /// <https://git.kernel.org/torvalds/c/c26f2a8901393c9f81909da0a4324587092bd3a3>
    is_used: bool,
    /// The memory of what it leads to.
    inner_bytes: u64,
}

impl Outer {
    fn new(name: &'static str, map: MapData, pins: Option<&Path>, inner_bytes: usize) -> Self {
        let inner_bytes = u64::try_from(inner_bytes).unwrap_or(u64::MAX);
        let pins = pins.map(|pins| PINS.map(|suffix| pins.join(format!("{name}{suffix}"))));
        let mut outer = Self { name, map, held: Vec::new(), is_used: false, pins, inner_bytes };
        outer.held.extend(outer.pins.iter().flatten().filter_map(|pin| sys::open_pin(pin).ok()));
        let inner = outer.inner();
        outer.is_used = !outer.held.is_empty() || !matches!(inner, Ok(None));
        if !outer.holds(&inner) {
            let by_id = inner.ok().flatten().map_or(Ok(None), |id| sys::open_map(id).map(Some));
            match by_id {
                Ok(inner) => outer.held.extend(inner),
                Err(error) => {
                    tracing::warn!(map = name, error = %error, "the pin of what it leads to is gone, and it can't be opened");
                }
            }
        }
        outer
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.map.fd().as_fd()
    }

    /// Returns the id of what it leads to.
    fn inner(&self) -> io::Result<Option<u32>> {
        sys::inner_map(self.fd(), 0)
    }

    /// Returns whether it leads to nothing, or to what is held.
    fn is_held(&self) -> bool {
        self.holds(&self.inner())
    }

    /// The same where that is what it leads to.
    fn holds(&self, inner: &io::Result<Option<u32>>) -> bool {
        let is_held =
            |id| self.held.iter().any(|held| sys::map_id(held.as_fd()).is_ok_and(|held| held == id));
        inner.as_ref().is_ok_and(|inner| inner.is_none_or(is_held))
    }

    /// Lets it lead to another map, once that is pinned. Without a pin it is the next agent that may have to do without.
    fn put(&mut self, inner: BorrowedFd<'_>) -> Result<(), MetersError> {
        let failed = |what: &str, error: &io::Error| {
            MetersError(format!("{what} what map {} leads to: {error}", self.name))
        };
        let held = inner.try_clone_to_owned().map_err(|error| failed("hold", &error))?;
        let pinned = self.pins.as_ref().map(|[_, next]| remove(next).and_then(|()| sys::pin(inner, next)));
        sys::set_inner_map(self.fd(), 0, inner).map_err(|error| {
            // As it would be the next time.
            drop(self.pins.as_ref().map(|[_, next]| remove(next)));
            failed("replace", &error)
        })?;
        // An agent that comes after a crash in between holds both.
        let renamed = self.pins.as_ref().zip(pinned);
        let renamed = renamed.map(|([now, next], pinned)| pinned.and_then(|()| fs::rename(next, now)));
        if let Some(Err(error)) = renamed {
            tracing::warn!(map = self.name, error = %error, "what it leads to is not pinned");
        }
        self.held = vec![held];
        self.is_used = true;
        Ok(())
    }

    /// Lets it lead to nothing.
    fn clear(&mut self) -> Result<(), MetersError> {
        match sys::delete_entry(self.fd(), 0) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => {
                return Err(MetersError(format!("empty map {}: {error}", self.name)));
            }
        }
        for pin in self.pins.iter().flatten() {
            if let Err(error) = remove(pin) {
                tracing::warn!(pin = %pin.display(), error = %error, "memory not given back");
            }
        }
        self.held.clear();
        self.is_used = false;
        Ok(())
    }
}

fn remove(pin: &Path) -> io::Result<()> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Says that a map can't be written.
pub(super) fn write_error(map: &'static str, error: &MapError) -> MetersError {
    MetersError(format!("write map {map}: {}", describe(error)))
}

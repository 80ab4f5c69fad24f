//! The memory that this process may take, held against that of the maps before they are made: beyond it the kernel ends the
//! process, or has no memory for what is to be counted.

#[cfg(test)]
mod tests;

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    open::{OpenError, major_minor},
    specs::{self, Spec},
};

/// The first kernel that counts the memory of maps as the process's; before, it is locked memory.
const COUNTED_SINCE: (u32, u32) = (5, 11);
/// What the process takes beside the maps, with a thousand ports.
const PROCESS: u64 = 32 << 20;
/// The tables of up to 1,024 rules, and the verdicts that each CPU remembers.
const RULES: u64 = 3 << 20;
const VERDICTS: u64 = 400 << 10;

/// Checks that maps fit, which are to be made, on a kernel of this release; `rules` says whether those of user-defined meters
/// come on top. (Of those of connections nobody knows yet.)
///
/// # Errors
///
/// They don't.
pub(super) fn check<'a>(
    release: &str,
    specs: impl Iterator<Item = &'a Spec>,
    rules: bool,
) -> Result<(), OpenError> {
    if major_minor(release) < Some(COUNTED_SINCE) {
        return Ok(());
    }
    // Without control groups there is no limit.
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let found = lowest(&groups, Path::new("/sys/fs/cgroup"));
    let Some((limit, group)) = found else { return Ok(()) };
    let maps: u64 = specs.map(specs::memory).sum();
    let of_rules = RULES + VERDICTS * specs::cpus();
    fit(if rules && maps > 0 { maps + of_rules } else { maps }, limit, group)
}

fn fit(needed: u64, limit: u64, group: PathBuf) -> Result<(), OpenError> {
    if needed == 0 || needed.saturating_add(PROCESS) <= limit {
        return Ok(());
    }
    Err(OpenError::MemoryLimit { needed: needed.div_ceil(1 << 20), limit: limit >> 20, group })
}

/// Returns the lowest limit of the control groups that a process is in, given its `/proc/<pid>/cgroup`, and whose it is.
///
/// Of version 2, as systemd has them since Debian 11 and RHEL 9.
fn lowest(groups: &str, mounted: &Path) -> Option<(u64, PathBuf)> {
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let own = mounted.join(own);
    let up = own.ancestors().take_while(|group| group.starts_with(mounted));
    let limited = up.filter_map(|group| {
        let limit = fs::read_to_string(group.join("memory.max")).ok()?;
        // The word for none is no number.
        Some((limit.trim().parse().ok()?, group.to_owned()))
    });
    limited.min()
}

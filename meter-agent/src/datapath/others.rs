//! Whether our hook shares its place with programs of other tools.

use meter_ebpf::abi::Direction;

use super::{HookKind, clsact, sys};

/// Returns whether another TC program is on this side of a netdev, before our hook or behind it. What can't be found out
/// is taken not to be there.
#[must_use]
pub fn is_shared(ifindex: u32, direction: Direction, ours: HookKind) -> bool {
    // Before Linux 6.6 there is nothing to ask for.
    let links = sys::tcx_programs(ifindex, direction).unwrap_or_default();
    let filters = clsact::other_filters(ifindex, direction).unwrap_or_default();
    links > u32::from(ours == HookKind::Tcx) || filters > 0
}

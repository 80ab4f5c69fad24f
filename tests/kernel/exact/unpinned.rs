//! The same where nothing can be pinned: ports, tunnels, user-defined meters and connections, to the byte.

use lab::require;
use meter_agent::datapath::TcMode;

use super::{
    connections,
    meters::{begin, measure},
    site::{Path, Site},
};
use crate::support::ready;

fn everything(tc: TcMode) {
    for path in [Path::Bridge, Path::Vxlan { six: false }] {
        measure(&Site::unpinned(path, tc), |[vm, container, far]| {
            begin(&vm, &far);
            begin(&vm, &container);
        });
        connections::measure(&Site::unpinned(path, tc));
    }
}

#[test]
fn everything_is_exact_without_pins_by_tcx() {
    if ready() && require::kernel(6, 6, "TCX") {
        everything(TcMode::Tcx);
    }
}

#[test]
fn everything_is_exact_without_pins_by_clsact() {
    if ready() {
        everything(TcMode::Clsact);
    }
}

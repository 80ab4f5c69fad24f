//! The table of MidoNet's agent: one meter a line, `key <TAB> packets <TAB> bytes`.

use std::fmt::Write as _;

use crate::snapshot::Snapshot;

/// Writes every meter under MidoNet's name, in the order of the names' kinds.
///
/// MidoNet repeated a meter for each of its workers; this agent has one total for each.
#[must_use]
pub fn render(snapshot: &Snapshot) -> String {
    let mut table = String::new();
    for (key, stats) in snapshot.meters() {
        writeln!(table, "{key}\t{}\t{}", stats.packets, stats.bytes).expect("a string takes everything");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::render;
    use crate::{http::tests as fixture, snapshot::Snapshot};

    #[test]
    fn each_meter_is_a_line_under_midonets_name() {
        fixture::compare("device_stats.txt", &render(&fixture::snapshot()));
    }

    #[test]
    fn no_meters_are_no_lines() {
        assert_eq!(render(&Snapshot::default()), "");
    }
}

//! A report as people read it.

use std::{collections::BTreeSet, fmt::Write as _};

use super::{Cause, Report, Row};
use crate::columns::{self, printable};

const HEAD: [&str; 8] = ["NETDEV", "NETNS", "DIRECTION", "OURS", "KERNEL", "DRIFT", "CAUSE", "BYTES"];

/// Writes a report as a table: a line for each netdev and direction, or for each cause where there are more; then what
/// the causes mean, and uplinks whose tunnels and buckets do not add up.
#[must_use]
pub fn table(report: &Report) -> String {
    let mut rows = vec![HEAD.map(ToOwned::to_owned).to_vec()];
    rows.extend(report.rows.iter().flat_map(lines).map(Vec::from));
    // The column of namespaces is there where a netdev is in one.
    if report.rows.iter().all(|row| row.netns.is_empty()) {
        rows.iter_mut().for_each(|row| drop(row.remove(1)));
    }
    let columns = rows[0].len();
    let mut text = columns::table(&rows, |column| matches!(columns - column, 3..=5));
    for closure in report.closures.iter().filter(|closure| (closure.packets, closure.bytes) != (0, 0)) {
        writeln!(
            text,
            "\n{} {}: {} packets ({} bytes) at the hook are in no tunnel and no bucket. Report it with this line.",
            printable(&closure.netdev),
            closure.direction,
            closure.packets,
            closure.bytes
        )
        .unwrap_or_default();
    }
    let causes: BTreeSet<Cause> =
        report.rows.iter().flat_map(|row| row.drifts.iter().map(|drift| drift.cause)).collect();
    for cause in causes {
        write!(text, "\n{}: {}", cause.name(), cause.sentence()).unwrap_or_default();
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

fn lines(row: &Row) -> Vec<[String; 8]> {
    let line = |drift: i64, cause: &str, bytes: i64| {
        let signed = |number: i64| if number == 0 { "0".to_owned() } else { format!("{number:+}") };
        [
            printable(&row.netdev),
            if row.netns.is_empty() { "-".to_owned() } else { printable(&row.netns) },
            row.direction.clone(),
            row.ours.to_string(),
            row.kernel.to_string(),
            signed(drift),
            cause.to_owned(),
            signed(bytes),
        ]
    };
    if row.drifts.is_empty() {
        return vec![line(0, "-", 0)];
    }
    row.drifts.iter().map(|drift| line(drift.packets, drift.cause.name(), drift.bytes)).collect()
}

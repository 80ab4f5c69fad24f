//! Tables as people read them at the shell.

use std::fmt::Write as _;

/// Writes rows of as many cells each as lines, columns as wide as their widest cell. `is_number` tells which columns stand
/// at the right; the last one has no width.
pub(crate) fn table(rows: &[Vec<String>], is_number: impl Fn(usize) -> bool) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            // Writing to a `String` can't fail.
            let written = if column + 1 == widths.len() {
                writeln!(text, "{cell}")
            } else if is_number(column) {
                write!(text, "{cell:>width$}  ")
            } else {
                write!(text, "{cell:width$}  ")
            };
            written.unwrap_or_default();
        }
    }
    text
}

/// Replaces control characters, which the kernel allows in a name and a terminal would obey.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

//! What xtask tells the developer: lines on standard error that begin with `xtask:`.

use std::{fmt::Display, io::Write as _};

/// Says one thing. Continuation lines are indented, so that each block begins with one `xtask:`.
pub(crate) fn say(message: impl Display) {
    let text = message.to_string().replace('\n', "\n    ");
    // A closed standard error leaves nobody to tell.
    drop(writeln!(std::io::stderr().lock(), "xtask: {text}"));
}

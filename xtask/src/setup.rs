//! `cargo xtask setup`: everything that the other commands would set up when they need it, at once.

use anyhow::Result;

use crate::{
    clients,
    console::say,
    toolchain::Toolchain,
    tools::{self, TESTS},
};

/// Sets up the test tools and the tool chain.
pub(crate) fn run() -> Result<()> {
    tools::install(TESTS)?;
    clients::install()?;
    Toolchain::ready()?;
    say("compiler, linker and test tools are there");
    Ok(())
}

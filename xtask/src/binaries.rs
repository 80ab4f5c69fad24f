//! The release binaries, with an object that is up to date inside the agent.

use std::path::PathBuf;

use anyhow::Result;

use crate::{console::say, ebpf, executable, workspace};

/// Where the binaries are.
pub(crate) struct Binaries {
    /// The daemon.
    pub(crate) agent: PathBuf,
    /// The operator's tool.
    pub(crate) mm_meter: PathBuf,
}

/// Builds for a developer who asked for just that.
pub(crate) fn run() -> Result<()> {
    let binaries = build()?;
    say(format_args!("built {} and {}", binaries.agent.display(), binaries.mm_meter.display()));
    Ok(())
}

/// Builds the object, then both binaries.
pub(crate) fn build() -> Result<Binaries> {
    let mut command = workspace::cargo();
    command.args(["build", "--release", "--package", "meter-agent", "--bins"]);
    ebpf::provide_to(&mut command)?;
    executable::run(&mut command)?;
    Ok(Binaries {
        agent: workspace::release_binary("meter-agent")?,
        mm_meter: workspace::release_binary("mm-meter")?,
    })
}

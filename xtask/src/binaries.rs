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

/// Builds the object, then both binaries.
pub(crate) fn build() -> Result<Binaries> {
    let mut command = workspace::cargo();
    command.args(["build", "--release", "--package", "meter-agent", "--bins"]);
    ebpf::provide_to(&mut command)?;
    executable::run(&mut command)?;
    let binaries = Binaries {
        agent: workspace::release_binary("meter-agent")?,
        mm_meter: workspace::release_binary("mm-meter")?,
    };
    say(format_args!("built {} and {}", binaries.agent.display(), binaries.mm_meter.display()));
    Ok(binaries)
}

//! The binaries, with an object that is up to date inside the agent.

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

/// Builds the object, then both release binaries.
pub(crate) fn build() -> Result<Binaries> {
    build_as("release")
}

/// Builds the object, then both binaries as the tests have them, hardly optimized.
pub(crate) fn build_unoptimized() -> Result<Binaries> {
    build_as("debug")
}

/// `profile` is the directory of cargo's profile.
fn build_as(profile: &str) -> Result<Binaries> {
    let mut command = workspace::cargo();
    command.args(["build", "--package", "meter-agent", "--bins"]);
    if profile == "release" {
        command.arg("--release");
    }
    ebpf::provide_to(&mut command)?;
    executable::run(&mut command)?;
    Ok(Binaries {
        agent: workspace::binary(profile, "meter-agent")?,
        mm_meter: workspace::binary(profile, "mm-meter")?,
    })
}

//! `cargo xtask bench`: what our programs and a scrape cost, beside what the cheapest and the usual ones cost in the
//! same run.

use std::ffi::OsString;

use anyhow::{Result, bail};

use crate::{
    ebpf::{self, Object},
    executable, workspace,
};

/// Where the bench finds the floor programs.
const FLOORS: &str = "METER_FLOORS_OBJECT";

/// Builds both objects and runs the benches with these arguments.
pub(crate) fn run(arguments: &[OsString]) -> Result<()> {
    if !workspace::is_root() {
        bail!("running eBPF programs needs root: {}", workspace::as_root("bench"));
    }
    let mut command = workspace::cargo();
    // What one of them finds does not keep the other from running.
    command.args([
        "bench",
        "--package",
        "meter-agent",
        "--bench",
        "datapath",
        "--bench",
        "scrape",
        "--no-fail-fast",
    ]);
    ebpf::provide_to(&mut command)?;
    command.env(FLOORS, ebpf::build(Object::Floors)?);
    if !arguments.is_empty() {
        command.arg("--").args(arguments);
    }
    executable::run(&mut command)
}

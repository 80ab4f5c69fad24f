//! Two hosts in network namespaces, an agent on each.

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, bail};

/// What the lab runs, and for how long.
#[derive(Debug)]
pub(crate) struct LabOptions {
    /// The daemon.
    pub(crate) agent: PathBuf,
    /// The operator's tool.
    pub(crate) mm_meter: PathBuf,
    /// Until when; until Ctrl-C where there is none.
    pub(crate) duration: Option<Duration>,
}

/// Runs the lab to its end.
pub(crate) fn run(options: &LabOptions) -> Result<()> {
    let LabOptions { agent, mm_meter, duration } = options;
    let duration = duration.map_or_else(|| "until Ctrl-C".to_owned(), |time| format!("for {time:?}"));
    bail!("the lab is not available: {} and {} {duration}", agent.display(), mm_meter.display())
}

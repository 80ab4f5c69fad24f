//! `cargo xtask run`: the agent on this host, or two of them in a lab.

use std::{ffi::OsString, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};

use crate::{
    binaries, executable,
    lab::{self, LabOptions},
    tools, workspace,
};

/// Where to run, for how long and with what.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Run two hosts in network namespaces, with guests, a tunnel and real traffic between them
    #[arg(long, conflicts_with = "flags")]
    pub(crate) lab: bool,
    /// Stop after this time, such as 20s or 1m30s
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) duration: Option<Duration>,
    /// Build as a package has it, which takes minutes more, in place of as the tests have it
    #[arg(long)]
    pub(crate) release: bool,
    /// Flags of meter-agent
    #[arg(last = true)]
    pub(crate) flags: Vec<OsString>,
}

/// Builds, then runs.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !workspace::is_root() {
        let flags = [(options.lab, " --lab"), (options.release, " --release")];
        let flags: String = flags.iter().filter_map(|&(is_given, flag)| is_given.then_some(flag)).collect();
        bail!(
            "loading eBPF programs needs root: {}\n\
             What needs no root (--version, --check-config) is target/release/meter-agent's after cargo xtask build",
            workspace::as_root(&format!("run{flags}"))
        );
    }
    if options.lab {
        tools::install(tools::LAB)?;
    }
    let binaries = if options.release { binaries::build() } else { binaries::build_unoptimized() }?;
    if options.lab {
        return lab::run(&LabOptions {
            agent: binaries.agent,
            mm_meter: binaries.mm_meter,
            duration: options.duration,
            slower: 1,
        });
    }
    let mut agent = match options.duration {
        None => Command::new(binaries.agent),
        // The agent's exit status stays its own: it ends well when it is told to.
        Some(duration) => {
            let mut timeout = Command::new("timeout");
            timeout.args(["--foreground", "--preserve-status", "--signal=TERM"]);
            timeout.arg(format!("{}s", duration.as_secs_f64())).arg(binaries.agent);
            timeout
        }
    };
    Err(executable::exec(agent.args(&options.flags)))
}

/// Reads `500ms`, `20s`, `1m30s`, `2h`: whole numbers, each with its unit, the larger first.
pub(crate) fn parse_duration(text: &str) -> Result<Duration> {
    const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("ms", 1), ("m", 60_000), ("s", 1000)];
    let mut total = 0_u64;
    let mut finest = u64::MAX;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let unit = UNITS.iter().find(|(name, _)| tail.starts_with(name));
        let &(name, milliseconds) = unit.context("a number needs a unit: h, m, s or ms, as in 20s")?;
        let number: u64 = number.parse().context("a unit needs a whole number, as in 20s")?;
        if milliseconds >= finest {
            bail!("units go from the larger to the smaller, each once, as in 1m30s");
        }
        finest = milliseconds;
        let part = number.checked_mul(milliseconds).and_then(|part| total.checked_add(part));
        total = part.context("too long")?;
        rest = tail.strip_prefix(name).unwrap_or_default();
    }
    if total == 0 {
        bail!("no time at all");
    }
    Ok(Duration::from_millis(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, expected) in [
            ("20s", Some(20_000)),
            ("500ms", Some(500)),
            ("1m30s", Some(90_000)),
            ("2h", Some(7_200_000)),
            ("1h1m1s1ms", Some(3_661_001)),
            ("", None),
            ("0s", None),
            ("20", None),
            ("s", None),
            ("1.5s", None),
            ("-1s", None),
            ("30s1m", None),
            ("1s1s", None),
            ("1d", None),
            ("20s ", None),
            ("99999999999999999999s", None),
            ("9999999999999999h", None),
        ] {
            assert_eq!(parse_duration(text).ok(), expected.map(Duration::from_millis), "{text:?}");
        }
    }
}

//! `cargo xtask test`: every ring of tests that this user can run.

use std::{collections::BTreeSet, ffi::OsString, fs, path::Path};

use anyhow::{Context, Result};
use lab::require::{SKIPS, VARIABLE};

use crate::{
    clients,
    console::say,
    ebpf, executable,
    tools::{self, TESTS},
    vm, workspace,
};

/// Where the tests find the guest that they boot.
const GUEST: &str = "METER_TEST_GUEST";

/// Sets up what the tests take and runs them.
///
/// As root nothing may be skipped for want of root, the object or a tool: that is a failure. Another user gets the
/// logic and process tests, and is told what was left out.
pub(crate) fn run(arguments: &[OsString]) -> Result<()> {
    let mut command = workspace::cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]).args(arguments);
    let skips = workspace::target().join("skipped-tests");
    fs::create_dir_all(workspace::target())
        .and_then(|()| fs::write(&skips, ""))
        .with_context(|| format!("cannot write {}", skips.display()))?;
    command.env(SKIPS, &skips);
    if workspace::is_root() {
        tools::install(TESTS)?;
        clients::install()?;
        ebpf::provide_to(&mut command)?;
        command.env("PATH", tools::path()?).env(VARIABLE, required());
        command.env(clients::VARIABLE, clients::directory());
        command.env(GUEST, vm::guest()?);
        executable::run(&mut command)?;
        summarize(&skips)?;
        say("every test passed, the kernel tests among them");
    } else {
        executable::run(&mut command)?;
        summarize(&skips)?;
        say(format_args!(
            "the logic and process tests passed; the kernel tests were not run, they need root: {}",
            workspace::as_root("test")
        ));
    }
    Ok(())
}

/// Says at the end what was skipped: among hundreds of lines nobody sees it.
fn summarize(path: &Path) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let skips: BTreeSet<&str> = text.lines().collect();
    if !skips.is_empty() {
        say(format_args!("{} checks were skipped, since this machine lacks what they need:", skips.len()));
        skips.iter().for_each(|skip| say(format_args!("  {skip}")));
    }
    Ok(())
}

fn required() -> String {
    let words = ["root", "object", "guest"].into_iter().chain(TESTS.iter().map(|tool| tool.command));
    words.chain(clients::REQUIREMENTS).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_skips_nothing_that_was_set_up() {
        assert_eq!(
            required(),
            "root,object,guest,ip,python3,pip3,ping,ethtool,bpftool,iperf3,promtool,prometheus,pypi-clients,npm-clients"
        );
    }
}

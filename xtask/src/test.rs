//! `cargo xtask test`: every ring of tests that this user can run.

use std::ffi::OsString;

use anyhow::Result;

use crate::{
    clients,
    console::say,
    ebpf, executable,
    tools::{self, TESTS},
    workspace,
};

/// What a test may ask for, by name, and no longer skips for when it is named here.
const REQUIRE: &str = "METER_TEST_REQUIRE";

/// Sets up what the tests take and runs them.
///
/// As root nothing may be skipped for want of root, the object or a tool: that is a failure. Another user gets the
/// logic and process tests, and is told what was left out.
pub(crate) fn run(arguments: &[OsString]) -> Result<()> {
    let mut command = workspace::cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]).args(arguments);
    if workspace::is_root() {
        tools::install(TESTS)?;
        clients::install()?;
        ebpf::provide_to(&mut command)?;
        command.env("PATH", tools::path()?).env(REQUIRE, required());
        command.env(clients::VARIABLE, clients::directory());
        executable::run(&mut command)?;
        say("every test passed, the kernel tests among them");
    } else {
        executable::run(&mut command)?;
        say(format_args!(
            "the logic and process tests passed; the kernel tests were not run, they need root: {}",
            workspace::as_root("test")
        ));
    }
    Ok(())
}

fn required() -> String {
    let words = ["root", "object"].into_iter().chain(TESTS.iter().map(|tool| tool.command));
    words.chain(clients::REQUIREMENTS).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_skips_nothing_that_was_set_up() {
        assert_eq!(
            required(),
            "root,object,ip,python3,pip3,ping,ethtool,bpftool,promtool,prometheus,pypi-clients,npm-clients"
        );
    }
}

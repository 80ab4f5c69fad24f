//! Programs that the lab, the tests and the guests take, and where they come from.

mod beside;

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{apt, clients, console::say, executable, workspace};

/// A program and the Debian package that has it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tool {
    /// What is run.
    pub(crate) command: &'static str,
    package: &'static str,
    from: From,
}

/// How a tool comes out of its package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    /// By installing the package.
    Install,
    /// By installing the package; where apt would remove others for it, by unpacking it with what it needs ([`beside`]).
    Beside,
    /// By unpacking it under `target/`: installed, it would start a service.
    Unpack,
}

const IP: Tool = Tool { command: "ip", package: "iproute2", from: From::Install };

/// What runs a guest.
pub(crate) const QEMU: &str = "qemu-system-x86_64";

/// What the lab runs.
pub(crate) const LAB: &[Tool] = &[IP];

/// What the tests run, the lab among them.
pub(crate) const TESTS: &[Tool] = &[
    IP,
    Tool { command: "python3", package: "python3", from: From::Install },
    Tool { command: "pip3", package: "python3-pip", from: From::Install },
    Tool { command: "ping", package: "iputils-ping", from: From::Install },
    Tool { command: "ethtool", package: "ethtool", from: From::Install },
    Tool { command: "bpftool", package: "bpftool", from: From::Install },
    Tool { command: "iperf3", package: "iperf3", from: From::Install },
    Tool { command: "promtool", package: "prometheus", from: From::Unpack },
    Tool { command: "prometheus", package: "prometheus", from: From::Unpack },
];

/// What boots a guest.
pub(crate) const GUESTS: &[Tool] = &[
    Tool { command: QEMU, package: "qemu-system-x86", from: From::Beside },
    Tool { command: "busybox", package: "busybox-static", from: From::Install },
    Tool { command: "depmod", package: "kmod", from: From::Install },
    Tool { command: "strip", package: "binutils", from: From::Install },
];

/// What makes and checks the packages and the disk of their guest.
pub(crate) const PACKAGES: &[Tool] = &[
    Tool { command: "mmdebstrap", package: "mmdebstrap", from: From::Install },
    Tool { command: "mke2fs", package: "e2fsprogs", from: From::Install },
    Tool { command: "lintian", package: "lintian", from: From::Install },
    Tool { command: "rpm", package: "rpm", from: From::Install },
];

/// Sets up the tools that are missing.
///
/// # Errors
///
/// What is missing and the command that installs it.
pub(crate) fn install(tools: &[Tool]) -> Result<()> {
    let missing = missing(tools);
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.iter().map(|tool| tool.command).collect::<Vec<_>>().join(", ");
    let packages = |from| -> Vec<&str> {
        let mut packages: Vec<_> =
            missing.iter().filter(|tool| tool.from == from).map(|tool| tool.package).collect();
        packages.dedup();
        packages
    };
    if !apt::is_here() {
        bail!("{names}: not found; install what has them");
    }
    let to_install = packages(From::Install);
    if !to_install.is_empty() {
        apt::install(&to_install).with_context(|| format!("{names}: not found"))?;
    }
    for tool in missing.iter().filter(|tool| tool.from == From::Beside) {
        install_or_unpack(tool).with_context(|| format!("{}: not found", tool.command))?;
    }
    let to_unpack = packages(From::Unpack);
    if !to_unpack.is_empty() {
        apt::unpack(&to_unpack, &directory()).with_context(|| format!("{names}: not found"))?;
    }
    match self::missing(tools).first() {
        None => Ok(()),
        Some(tool) => bail!("{}: not found, though package {} is there", tool.command, tool.package),
    }
}

/// Installs a tool; where apt refuses, since it would have to remove something, unpacks it beside what is there.
fn install_or_unpack(tool: &Tool) -> Result<()> {
    let Err(error) = apt::install(&[tool.package]) else { return Ok(()) };
    let Ok(apt::Transaction { installs, removes }) = apt::transaction(&[tool.package]) else {
        return Err(error);
    };
    if !workspace::is_root() || removes.is_empty() {
        return Err(error);
    }
    say(format_args!(
        "{} would remove {}: it is unpacked under target/ instead",
        tool.package,
        removes.join(", ")
    ));
    beside::provide(tool.command, &installs, &directory())
}

/// Returns where a tool is.
///
/// # Errors
///
/// It isn't set up.
pub(crate) fn find(command: &str) -> Result<PathBuf> {
    let paths = directories().into_iter().map(|directory| directory.join(command));
    paths
        .into_iter()
        .find(|path| executable::is_executable(path))
        .with_context(|| format!("{command}: not found"))
}

/// Returns a `PATH` on which all tools are found.
pub(crate) fn path() -> Result<OsString> {
    env::join_paths(directories()).context("PATH holds a directory with a colon")
}

fn missing(tools: &[Tool]) -> Vec<&Tool> {
    let directories = directories();
    let is_in = |directory: &PathBuf, tool: &Tool| executable::is_executable(&directory.join(tool.command));
    tools.iter().filter(|tool| !directories.iter().any(|directory| is_in(directory, tool))).collect()
}

fn directories() -> Vec<PathBuf> {
    let mut directories = executable::search_path();
    directories.push(directory().join("usr/bin"));
    directories.push(clients::programs());
    directories
}

fn directory() -> PathBuf {
    workspace::target().join(Path::new("tools"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_found_is_missing() {
        let shell = Tool { command: "sh", package: "dash", from: From::Install };
        let nothing = Tool { command: "no-such-command", package: "none", from: From::Install };
        assert_eq!(
            missing(&[shell, nothing]).iter().map(|tool| tool.command).collect::<Vec<_>>(),
            ["no-such-command"]
        );
    }
}

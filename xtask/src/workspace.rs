//! Where things are in this workspace, and the cargo that started xtask.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

/// Returns the directory of the workspace's manifest.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a directory of the workspace")
}

/// Returns the workspace's own target directory, whatever `CARGO_TARGET_DIR` says: the objects are here, where the
/// agent's build script looks for them.
pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// Returns the path of a binary; `profile` is the directory of cargo's profile, such as `release`.
///
/// It is built where xtask was, wherever cargo's configuration puts that: `<somewhere>/debug/xtask` beside
/// `<somewhere>/release/<name>`.
pub(crate) fn binary(profile: &str, name: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("cannot tell where xtask itself is")?;
    let directory = own.parent().and_then(Path::parent).context("xtask is in no target directory")?;
    Ok(directory.join(profile).join(name))
}

/// Returns the cargo that started xtask, working in the workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Returns whether this process may do what the agent needs.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Returns how to run a command of xtask as root, keeping rustup's programs in reach.
pub(crate) fn as_root(subcommand: &str) -> String {
    format!("sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask {subcommand}")
}

//! `cargo xtask dist`: the packages, a .deb and an .rpm, from the same files.
//!
//! `meter-agent/Cargo.toml` lists the files. What is not in the tree is made below `target/dist`: [`stage`]. What a
//! package holds in the end is read back and compared: [`contents`].

mod contents;
mod packagers;
mod stage;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    binaries::{self, Binaries},
    console::say,
    executable, workspace,
};

/// Both packages.
pub(crate) struct Packages {
    /// Debian's.
    pub(crate) deb: PathBuf,
    /// RPM's.
    pub(crate) rpm: PathBuf,
}

/// Builds everything and makes both packages.
pub(crate) fn run() -> Result<Packages> {
    let packages = make(&binaries::build()?, env!("CARGO_PKG_VERSION"))?;
    lint(&packages.deb)?;
    for package in [&packages.deb, &packages.rpm] {
        let bytes = fs::metadata(package).with_context(|| format!("look at {}", package.display()))?.len();
        say(format_args!("made {} ({} kB)", package.display(), bytes / 1000));
    }
    Ok(packages)
}

/// Makes both packages of these binaries, in place of those that were made before.
pub(crate) fn make(binaries: &Binaries, version: &str) -> Result<Packages> {
    let packagers = packagers::install()?;
    stage::fill(binaries, version)?;
    let deb = packagers.deb(version)?;
    contents::check_deb(&deb)?;
    let rpm = packagers.rpm(version)?;
    contents::check_rpm(&rpm)?;
    Ok(Packages { deb, rpm })
}

/// Lets lintian look at it, where there is one.
fn lint(deb: &Path) -> Result<()> {
    let Some(lintian) = executable::find("lintian") else {
        say("lintian is not here: apt-get install lintian");
        return Ok(());
    };
    let mut command = std::process::Command::new(lintian);
    // It would rather not run as root, as the system test does.
    command.args(["--allow-root", "--fail-on", "error,warning"]);
    // That is for Debian's own archive, where a first upload closes the request for the package.
    command.args(["--suppress-tags", "initial-upload-closes-no-bugs"]).arg(deb);
    executable::run(command.current_dir(workspace::root()))
}

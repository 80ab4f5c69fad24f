//! `cargo xtask dist`: the packages, a .deb and an .rpm, from the same files.
//!
//! `meter-agent/Cargo.toml` lists the files. What is not in the tree is made below `target/dist`: [`stage`]. What a
//! package holds in the end is read back and compared: [`contents`].

mod contents;
mod packagers;
mod stage;

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use crate::{binaries, console::say, executable, workspace};

/// Builds everything and makes both packages.
pub(crate) fn run() -> Result<()> {
    let packagers = packagers::install()?;
    let binaries = binaries::build()?;
    stage::fill(&binaries)?;
    let deb = packagers.deb()?;
    contents::check_deb(&deb)?;
    lint(&deb)?;
    let rpm = packagers.rpm()?;
    contents::check_rpm(&rpm)?;
    for package in [&deb, &rpm] {
        let bytes = fs::metadata(package).with_context(|| format!("look at {}", package.display()))?.len();
        say(format_args!("made {} ({} kB)", package.display(), bytes / 1000));
    }
    Ok(())
}

/// Lets lintian look at it, where there is one.
fn lint(deb: &Path) -> Result<()> {
    let Some(lintian) = executable::find("lintian") else {
        say("lintian is not here: apt-get install lintian");
        return Ok(());
    };
    let mut command = std::process::Command::new(lintian);
    // It would rather not run as root, where the gate does.
    command.args(["--allow-root", "--fail-on", "error,warning"]);
    // That is for Debian's own archive, where a first upload closes the request for the package.
    command.args(["--suppress-tags", "initial-upload-closes-no-bugs"]).arg(deb);
    executable::run(command.current_dir(workspace::root()))
}

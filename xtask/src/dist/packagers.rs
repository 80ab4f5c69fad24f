//! The programs that write packages: of these versions, below `target/tools`, nowhere else.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::stage;
use crate::{console::say, executable, workspace};

/// Each with its release.
const PACKAGERS: [(&str, &str); 2] = [("cargo-deb", "3.8.0"), ("cargo-generate-rpm", "0.21.1")];

/// The packagers that are there.
pub(super) struct Packagers {
    directory: PathBuf,
}

/// Builds the packagers that are not there yet.
pub(super) fn install() -> Result<Packagers> {
    let directory = workspace::target().join("tools/packagers");
    for (name, version) in PACKAGERS {
        let program = directory.join(format!("{name}-{version}/bin/{name}"));
        if executable::is_executable(&program) {
            continue;
        }
        say(format_args!("building {name} {version}, once, into {} (some minutes)", directory.display()));
        let build = workspace::target().join("tools/packagers-build");
        let mut command = workspace::cargo();
        command
            .args(["install", name, "--version", version, "--locked", "--root"])
            .arg(directory.join(format!("{name}-{version}")))
            .arg("--target-dir")
            .arg(&build)
            // They run for seconds; building them faster is worth more.
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
            .env("CARGO_PROFILE_RELEASE_LTO", "off");
        executable::run(&mut command)?;
        std::fs::remove_dir_all(&build)?;
    }
    Ok(Packagers { directory })
}

impl Packagers {
    /// Makes the Debian package.
    pub(super) fn deb(&self, version: &str) -> Result<PathBuf> {
        let output = package_path("deb");
        let mut command = self.command(0);
        command.args(["deb", "--package", "meter-agent", "--quiet", "--no-build", "--no-strip"]);
        command.args(["--deb-version", &format!("{version}-1"), "--output"]).arg(&output);
        run(&mut command, &output)
    }

    /// Makes the RPM package.
    pub(super) fn rpm(&self, version: &str) -> Result<PathBuf> {
        let output = package_path("rpm");
        let mut command = self.command(1);
        command
            .args(["generate-rpm", "--package", "meter-agent", "--auto-req", "builtin", "--output"])
            .arg(&output);
        command.args(["--source-date", &stage::time()?.to_string()]);
        command.args(["--set-metadata", &format!("version = {version:?}")]);
        run(&mut command, &output)
    }

    fn command(&self, index: usize) -> std::process::Command {
        let (name, version) = PACKAGERS[index];
        let program = self.directory.join(format!("{name}-{version}/bin/{name}"));
        let mut command = std::process::Command::new(program);
        command.current_dir(workspace::root());
        if let Ok(time) = stage::time() {
            command.env("SOURCE_DATE_EPOCH", time.to_string());
        }
        command
    }
}

fn package_path(kind: &str) -> PathBuf {
    stage::directory().join(format!("meter-agent.{kind}"))
}

fn run(command: &mut std::process::Command, output: &Path) -> Result<PathBuf> {
    executable::run(command)?;
    ensure!(output.is_file(), "{} is not there, though it was made", output.display());
    Ok(output.to_owned())
}

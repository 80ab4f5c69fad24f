//! Real clients against the server: jolokia.js with `@jolokia.js/simple` of npm, pyjolokia and jolokia of PyPI.
//!
//! Each runs a script that makes the calls that its users make and prints what they gave; the whole of it is compared.
//! The scripts and what they print are in `tests/fixtures/jolokia/clients`.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use lab::require;
use serde_json::Value;

use crate::served::{Served, snapshot};

/// The environment variable with the directory that `cargo xtask setup` puts the clients into.
const CLIENTS: &str = "METER_TEST_CLIENTS";

fn clients() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/clients");
    std::env::var_os(CLIENTS).map_or_else(|| PathBuf::from(default), PathBuf::from)
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/jolokia/clients").join(name)
}

/// Runs a script's interpreter to its end and compares what it printed with the fixture of this name.
fn assert_prints(command: &mut Command, expected: &str) {
    let output = command.output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    let printed: Value = serde_json::from_str(&printed).unwrap();
    let expected: Value = serde_json::from_reader(File::open(fixture(expected)).unwrap()).unwrap();
    let (printed, expected) = (printed.as_object().unwrap(), expected.as_object().unwrap());
    for (call, answer) in printed {
        assert_eq!(Some(answer), expected.get(call), "{call}");
    }
    assert_eq!(printed.len(), expected.len());
}

#[test]
fn clients_of_npm_get_what_they_ask_for() {
    let directory = clients().join("npm");
    let found = directory.join("node_modules/@jolokia.js/simple").exists()
        && Command::new("node").arg("--version").output().is_ok();
    if !require::met("npm-clients", found, "jolokia.js of npm, or node (cargo xtask setup)") {
        return;
    }
    for base in ["/jolokia", "/jolokia/"] {
        let served = Served::start(snapshot());
        // A script from standard input finds the packages of the directory that it runs in.
        let mut node = Command::new("node");
        node.args(["--input-type=module", "-"]).current_dir(&directory);
        node.env("JOLOKIA_URL", format!("http://127.0.0.1:{}{base}", served.port));
        node.stdin(File::open(fixture("npm.mjs")).unwrap());
        assert_prints(&mut node, "npm.json");
    }
}

#[test]
fn clients_of_pypi_get_what_they_ask_for() {
    let directory = clients().join("pypi");
    let found = directory.join("pyjolokia.py").exists()
        && directory.join("jolokia").exists()
        && Command::new("python3").arg("--version").output().is_ok();
    if !require::met("pypi-clients", found, "pyjolokia and jolokia of PyPI, or python3 (cargo xtask setup)") {
        return;
    }
    for base in ["/jolokia", "/jolokia/"] {
        let served = Served::start(snapshot());
        let mut python = Command::new("python3");
        python.arg(fixture("pypi.py")).arg(format!("http://127.0.0.1:{}{base}", served.port));
        python.env("PYTHONPATH", &directory).env("PYTHONDONTWRITEBYTECODE", "1");
        assert_prints(&mut python, "pypi.json");
    }
}

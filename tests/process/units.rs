//! The units of the package, as systemd's own tool finds them.

use std::{
    fs,
    process::{Command, Output},
};

use lab::require;

const PACKAGING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging");

/// Runs `systemd-analyze`; `None` where there is none.
fn systemd_analyze(arguments: &[&str]) -> Option<Output> {
    let found = Command::new("systemd-analyze").arg("--version").output().is_ok();
    let is_met = require::met("systemd-analyze", found, "systemd-analyze (apt-get install systemd)");
    is_met.then(|| Command::new("systemd-analyze").args(arguments).output().unwrap())
}

fn read(name: &str) -> String {
    fs::read_to_string(format!("{PACKAGING}/{name}")).unwrap()
}

#[test]
fn service_exposes_little() {
    // Tenths: 2.0 at most.
    let unit = format!("{PACKAGING}/meter-agent.service");
    if let Some(output) = systemd_analyze(&["security", "--offline=yes", "--threshold=20", &unit]) {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn units_are_well_formed() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str, text: String| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    // The program is where it was built; the unit's place for it is the package's.
    let unit = read("meter-agent.service").replace("/usr/bin/meter-agent", env!("CARGO_BIN_EXE_meter-agent"));
    let service = place("meter-agent.service", unit);
    let others = ["meter-agent.socket", "meter-agent-pins.service"].map(|unit| place(unit, read(unit)));
    if let Some(output) = systemd_analyze(&["verify", "--man=no", &service, &others[0], &others[1]]) {
        let said = String::from_utf8_lossy(&output.stderr);
        // Units of the machine are its own matter.
        let ours: Vec<&str> = said.lines().filter(|line| line.contains("meter-agent")).collect();
        assert_eq!(ours, [""; 0], "{said}");
    }
}

#[test]
fn service_has_the_user_and_the_directories_that_the_package_makes() {
    let unit = read("meter-agent.service");
    let value = |key: &str| {
        let line = unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("{key}: not set"))
    };
    let user = value("User");
    assert!(read("meter-agent.sysusers").contains(&format!("\nu {user} ")));
    // Where it is not there, the agent starts all the same.
    let pins = value("BindPaths").strip_prefix('-').unwrap();
    let owned = format!("\nd {pins} 0700 {user} {} ", value("Group"));
    assert!(read("meter-agent.tmpfiles").contains(&owned), "{owned}");
    assert!(read("meter-agent.toml").contains(&format!("\n#pin_path = \"{pins}\"\n")));
    let control = format!("\n#socket = \"/run/{}/meter-agent.sock\"\n", value("RuntimeDirectory"));
    assert!(read("meter-agent.toml").contains(&control), "{control}");
    let state = format!("\n#directory = \"/var/lib/{}\"\n", value("StateDirectory"));
    assert!(read("meter-agent.toml").contains(&state), "{state}");
    assert_eq!(value("AmbientCapabilities"), value("CapabilityBoundingSet"));
    assert_eq!(value("RestartPreventExitStatus"), "2 3");
    // systemd gives its read-only mount of /sys/fs/bpf the preference over that of the unit.
    assert!(!unit.contains("\nProtectKernelTunables="));
}

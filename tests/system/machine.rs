//! This machine: commands, units, and what is on the file system and in the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// The service under test.
pub(crate) const SERVICE: &str = "meter-agent.service";

/// Its configuration.
pub(crate) const CONFIGURATION: &str = "/etc/meter-agent/meter-agent.toml";

/// How long anything may take that is not measured: all of it is computed by software.
pub(crate) const WITHIN: Duration = Duration::from_secs(300);

/// Directories that change while a machine runs, whatever is installed on it.
const RESTLESS: [&str; 10] = [
    "/mnt",
    "/root",
    "/tmp",
    "/var/cache",
    "/var/lib/dpkg",
    "/var/lib/prometheus",
    "/var/lib/rpm",
    "/var/lib/systemd/timers",
    "/var/log",
    "/var/tmp",
];

/// Runs a command to its end; returns what it wrote to standard output.
pub(crate) fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{out}{err}", output.status);
    out
}

/// Says which step begins.
pub(crate) fn step(name: &str) {
    eprintln!("step: {name}, {:.1} s after the boot", uptime());
}

/// Says what was measured; who started the machine repeats it.
pub(crate) fn figure(text: &str) {
    eprintln!("figure: {text}");
}

/// Waits until there is something.
pub(crate) fn eventually<T>(what: &str, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + WITHIN;
    loop {
        match probe() {
            Ok(found) => return found,
            Err(error) => assert!(Instant::now() < deadline, "{what}: not within {WITHIN:?}: {error}"),
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Returns the seconds since the boot.
pub(crate) fn uptime() -> f64 {
    let text = fs::read_to_string("/proc/uptime").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// Returns what systemd knows of the service.
pub(crate) fn properties(names: &[&str]) -> BTreeMap<String, String> {
    properties_of(SERVICE, names)
}

/// Returns what systemd knows of a unit.
pub(crate) fn properties_of(unit: &str, names: &[&str]) -> BTreeMap<String, String> {
    let text = output("systemctl", &["show", "--property", &names.join(","), unit]);
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Returns one of these properties.
pub(crate) fn property(name: &str) -> String {
    properties(&[name]).remove(name).unwrap_or_else(|| panic!("the service has no {name}"))
}

/// Waits until the service has said that it is ready, as another process than `earlier`; returns its id.
pub(crate) fn ready_after(earlier: u32) -> u32 {
    eventually("the service is ready", || {
        let found = properties(&["ActiveState", "SubState", "Type", "MainPID"]);
        let pid: u32 = found["MainPID"].parse().unwrap();
        let is_ready = found["ActiveState"] == "active" && found["SubState"] == "running";
        assert!(found["Type"].starts_with("notify"));
        if is_ready && pid != earlier && pid != 0 { Ok(pid) } else { Err(format!("{found:?}")) }
    })
}

/// Restarts the service; returns the id of its process.
pub(crate) fn restart() -> u32 {
    output("systemctl", &["restart", SERVICE]);
    ready_after(0)
}

/// Replaces a part of the configuration; returns what it was as a whole.
pub(crate) fn reconfigure(from: &str, to: &str) -> String {
    let text = fs::read_to_string(CONFIGURATION).unwrap();
    assert_eq!(text.matches(from).count(), 1, "{from}");
    fs::write(CONFIGURATION, text.replace(from, to)).unwrap();
    text
}

/// Starts the service, which must end with this exit status and not be started again.
pub(crate) fn is_refused(status: &str) {
    let started = Command::new("systemctl").args(["restart", SERVICE]).status().unwrap();
    assert!(!started.success());
    // No start again that would end in the same.
    let state = properties(&["ActiveState", "ExecMainStatus", "NRestarts"]);
    assert_eq!((&*state["ActiveState"], &*state["ExecMainStatus"]), ("failed", status), "{state:?}");
    output("systemctl", &["reset-failed", SERVICE]);
}

/// A drop-in of the service's unit, in force from its next start on.
pub(crate) struct DropIn(PathBuf);

impl DropIn {
    /// Writes it.
    pub(crate) fn new(name: &str, text: &str) -> Self {
        let directory = Path::new("/etc/systemd/system/meter-agent.service.d");
        fs::create_dir_all(directory).unwrap();
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        output("systemctl", &["daemon-reload"]);
        Self(path)
    }

    /// Copies one of those that the package has.
    pub(crate) fn of_package(name: &str) -> Self {
        let text = fs::read_to_string(Path::new("/usr/share/doc/meter-agent/examples").join(name));
        Self::new(name, &text.unwrap())
    }

    /// Takes it away.
    pub(crate) fn remove(self) {
        let Self(path) = self;
        fs::remove_file(&path).unwrap();
        fs::remove_dir(path.parent().unwrap()).unwrap();
        output("systemctl", &["daemon-reload"]);
    }
}

/// Waits until the service runs this program file, the one that is installed now.
pub(crate) fn runs_installed_program(pid: u32) {
    let running = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    // A program that was replaced has a word behind its name.
    assert_eq!(running, Path::new("/usr/bin/meter-agent"));
}

/// Returns the ids of all programs in the kernel that count.
pub(crate) fn programs() -> BTreeSet<u64> {
    let text = output("bpftool", &["--json", "prog", "show"]);
    let programs: serde_json::Value = serde_json::from_str(&text).unwrap();
    let counting =
        |program: &&serde_json::Value| ["sched_cls", "xdp"].iter().any(|kind| program["type"] == *kind);
    programs
        .as_array()
        .unwrap()
        .iter()
        .filter(counting)
        .map(|program| program["id"].as_u64().unwrap())
        .collect()
}

/// Returns every path of the root file system that only an installation or a removal changes.
pub(crate) fn files() -> BTreeSet<String> {
    // The roots of other file systems are named, and nothing in them.
    let text = output("find", &["/", "-xdev", "-print"]);
    let is_restless = |path: &&str| {
        !RESTLESS.iter().any(|place| path.strip_prefix(place).is_some_and(|rest| rest.starts_with('/')))
    };
    text.lines().filter(is_restless).map(str::to_owned).collect()
}

/// Fails where anything of the agent is in the kernel.
pub(crate) fn assert_kernel_is_clean() {
    assert_eq!(programs(), BTreeSet::new());
    assert!(!Path::new("/sys/fs/bpf/meter-agent").exists());
    let qdiscs = output("tc", &["qdisc", "show"]);
    assert!(!qdiscs.contains("clsact"), "{qdiscs}");
}

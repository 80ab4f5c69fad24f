//! What systemd does with the daemon: it listens to what it says, and gives it as little as the unit says.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt as _, chown},
        net::UnixDatagram,
    },
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use lab::{netns::Netns, require};
use meter_ebpf::abi::Direction;
use nix::sys::signal::Signal;

use super::{Daemon, Guests, Host, PORT, WITHIN, bound, ready, rx_tx, sum};
use crate::support::{auto_kind, foreign::Foreign};

/// The service manager's end of `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    status: String,
    fed: u32,
    _directory: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(WITHIN)).unwrap();
        Self { socket, path, status: String::new(), fed: 0, _directory: directory }
    }

    fn start(&self, daemon: &mut Daemon<'_>) {
        daemon.start_with(&[], |command| {
            command.env("NOTIFY_SOCKET", &self.path).env("WATCHDOG_USEC", "400000");
        });
    }

    /// Returns the next change of state. Keeps what is said of the status, and counts what the watchdog gets.
    fn next(&mut self) -> String {
        loop {
            let mut buffer = [0; 4096];
            let length = self.socket.recv(&mut buffer).unwrap();
            let mut state = None;
            for line in std::str::from_utf8(&buffer[..length]).unwrap().lines() {
                match line.split_once('=').unwrap() {
                    ("STATUS", status) => status.clone_into(&mut self.status),
                    ("WATCHDOG", "1") => self.fed += 1,
                    ("MONOTONIC_USEC", time) => assert!(time.parse::<u64>().unwrap() > 0, "{line}"),
                    _ => assert_eq!(state.replace(line.to_owned()), None),
                }
            }
            if let Some(state) = state {
                return state;
            }
        }
    }

    /// Listens until something holds of what was said.
    fn until(&mut self, holds: impl Fn(&Self) -> bool) {
        self.socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        while !holds(self) {
            let mut buffer = [0; 4096];
            let length = self.socket.recv(&mut buffer).unwrap();
            let text = std::str::from_utf8(&buffer[..length]).unwrap().trim_end();
            match text.split_once('=').unwrap() {
                ("STATUS", status) => status.clone_into(&mut self.status),
                ("WATCHDOG", "1") => self.fed += 1,
                _ => panic!("{text}"),
            }
        }
        self.socket.set_read_timeout(Some(WITHIN)).unwrap();
    }
}

#[test]
fn service_manager_hears_what_the_daemon_does() {
    if !ready() {
        return;
    }
    let host = Host::new("notify");
    let _guests = Guests::new(&host.netns);
    let mut manager = Manager::new();
    let mut daemon = Daemon::new(&host, "");
    manager.start(&mut daemon);
    assert_eq!(manager.next(), "READY=1");
    let kind = auto_kind().name();
    let attached = [format!("tap1 {kind} egress"), format!("veth2 {kind} ingress")];
    let hooks = host.hooks();
    assert!(attached.iter().all(|hook| hooks.iter().any(|other| other.starts_with(hook))), "{hooks:?}");
    manager.until(|manager| manager.status.starts_with("metering 2 ports, 0 uplinks"));
    let fed = manager.fed;
    manager.until(|manager| manager.fed >= fed + 3);

    daemon.configure(&bound("tap1"));
    daemon.signal(Signal::SIGHUP);
    assert_eq!(manager.next(), "RELOADING=1");
    assert_eq!(manager.next(), "READY=1");
    assert!(daemon.port(PORT).is_some(), "ready means that the new configuration is in force");

    daemon.configure("[ports]\nignor = []\n");
    daemon.signal(Signal::SIGHUP);
    assert_eq!(manager.next(), "RELOADING=1");
    assert_eq!(manager.next(), "READY=1");
    manager.until(|manager| manager.status.ends_with("the configuration on disk is wrong and not in force"));

    daemon.signal(Signal::SIGTERM);
    assert_eq!(manager.next(), "STOPPING=1");
    daemon.stop();
}

/// A user of no rights: the unit's own is on no test's machine.
const USER: u32 = 65_534;

/// What the unit lets the agent see of the bpffs, and the user with the capabilities that `$CAPS` names.
const AS_THE_UNIT: &str = r#"
set -e
place=$(mktemp -d)
mount --bind "$PINS" "$place"
mount -t tmpfs -o mode=0755 none /sys/fs/bpf
mkdir "$PINS"
mount --move "$place" "$PINS"
mount -o remount,ro,bind /sys/fs/bpf
rmdir "$place"
shift
exec setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs --bounding-set="-all,$CAPS" \
    --inh-caps="-all,$CAPS" --ambient-caps="-all,$CAPS" "$PROGRAM" "$@"
"#;

pub(super) const LINE: &[&str] = &["unshare", "--mount", "sh", "-c", AS_THE_UNIT, "sh"];
pub(super) const NEEDED: [&str; 3] = ["bpf", "net_admin", "perfmon"];

/// Returns whether capabilities can be given to a user here.
pub(super) fn can_give() -> bool {
    let lists = Command::new("setpriv").arg("--list-caps").output();
    let knows = lists.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("perfmon"));
    require::met("setpriv", knows, "a setpriv that knows CAP_PERFMON (util-linux 2.37)")
}

/// What the service user needs to find: a program that it may run, pins and a directory of its own.
pub(super) struct Place {
    program: PathBuf,
    pins: PathBuf,
    _directory: tempfile::TempDir,
}

impl Place {
    pub(super) fn new(host: &Host, daemon: &Daemon<'_>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let program = directory.path().join("meter-agent");
        fs::copy(env!("CARGO_BIN_EXE_meter-agent"), &program).unwrap();
        fs::create_dir_all(&host.pins).unwrap();
        fs::set_permissions(&host.pins, fs::Permissions::from_mode(0o700)).unwrap();
        chown(&host.pins, Some(USER), Some(USER)).unwrap();
        daemon.give_to(USER);
        Self { program, pins: host.pins.clone(), _directory: directory }
    }

    pub(super) fn prepare(&self, command: &mut Command, capabilities: &[&str]) {
        let capabilities: Vec<String> =
            capabilities.iter().map(|capability| format!("+{capability}")).collect();
        command.env("PINS", &self.pins).env("PROGRAM", &self.program).env("CAPS", capabilities.join(","));
    }
}

/// Returns whether a process handles a signal.
fn handles(process: u32, signal: Signal) -> bool {
    let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let mask = text.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() & 1 << (signal as u32 - 1) != 0
}

#[test]
fn reload_that_comes_during_the_start_is_kept() {
    if !ready() {
        return;
    }
    let host = Host::new("early");
    let mut daemon = Daemon::new(&host, "");
    // It takes the signals that end it when it is about to count. The time before is short: it may be missed.
    let is_early = (0..10).any(|_| {
        daemon.kill();
        daemon.configure("");
        daemon.start();
        let id = daemon.id();
        let deadline = Instant::now() + WITHIN;
        while !handles(id, Signal::SIGHUP) {
            assert!(Instant::now() < deadline, "{}", daemon.log());
        }
        // What it reads then is wrong.
        daemon.configure("no_such_key = 1");
        daemon.signal(Signal::SIGHUP);
        !handles(id, Signal::SIGTERM)
    });
    assert!(is_early, "no signal came during a start");
    daemon.wait("it serves", |daemon| daemon.try_get("/-/ready").is_ok());
    assert!([Signal::SIGTERM, Signal::SIGINT].into_iter().all(|signal| handles(daemon.id(), signal)));
    daemon.wait("it has read its configuration again", |daemon| {
        daemon.sample("meter_agent_config_last_reload_successful") == Some(0)
    });
    daemon.stop();
}

/// An uplink beside the guests, so that every program is attached.
fn with_uplink(host: &Netns) {
    host.ip("link add eth0 type veth peer name eth0-peer").unwrap();
    host.ip("link set eth0 up").unwrap();
    host.ip("link set eth0-peer up").unwrap();
}

#[test]
fn three_capabilities_are_enough_and_each_is_needed() {
    if !ready() || !can_give() {
        return;
    }
    let host = Host::new("least");
    let guests = Guests::new(&host.netns);
    with_uplink(&host.netns);
    // Another's programs are a matter of other capabilities; they must not get in the way.
    let mut foreign = Foreign::load(&host.netns);
    if require::is_kernel(6, 6) {
        foreign.tcx("tap1", Direction::Ingress);
    }
    let mut daemon = Daemon::new(&host, &format!("[uplinks]\nnetdevs = [\"eth0\"]\n{}", bound("tap1")));
    let place = Place::new(&host, &daemon);

    for missing in NEEDED {
        let others: Vec<&str> = NEEDED.into_iter().filter(|&other| other != missing).collect();
        let mut command = daemon.command(LINE, &[]);
        place.prepare(&mut command, &others);
        let output = crate::support::daemon::output(&mut command);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "without {missing}: {said}");
        let expected = format!("not permitted without CAP_{}", missing.to_uppercase());
        assert!(said.contains(&expected), "without {missing}: {said}");
    }

    let before = guests.counts();
    let mut zero = None;
    // Each start takes over what the one before left, and moves the hooks.
    let kind = auto_kind().name();
    for (tc, kind) in [("auto", kind), ("clsact", "clsact"), ("auto", kind)] {
        let flags = ["--datapath-tc", tc];
        daemon.start_flags(LINE, &flags, |command| place.prepare(command, &NEEDED));
        daemon.wait_until_ready();
        let found = host.hooks();
        for hook in [format!("tap1 {kind} ingress"), format!("eth0 {kind} egress")] {
            assert!(found.iter().any(|other| other.starts_with(&hook)), "{tc}: {found:?}");
        }
        let is_hook = |hook: &&String| hook.starts_with("tap1 ") && hook.contains("ingress");
        let theirs = usize::from(require::is_kernel(6, 6));
        assert_eq!(found.iter().filter(is_hook).count(), 1 + theirs, "{tc}: {found:?}");
        let zero = zero.get_or_insert_with(|| daemon.port(PORT).unwrap());
        guests.talk();
        let moved = rx_tx(&guests.counts().since(&before));
        assert_eq!(daemon.port(PORT), Some(sum(*zero, moved)), "{tc}");
        let metrics = daemon.get("/metrics");
        assert!(!metrics.contains("meter_agent_attach_failures_total{"), "{metrics}");
        daemon.stop();
    }
}

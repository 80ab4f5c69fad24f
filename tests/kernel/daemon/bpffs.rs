//! The file system of the pins: missing, or read-only.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use lab::{netns::Process, require};

use super::{Daemon, Guests, Host, PORT, bound, ready, rx_tx, sum};
use crate::support::daemon::output;

/// The bpffs is there, and nobody can write to it.
pub(super) const READ_ONLY: &str =
    "mount --bind -o ro /sys/fs/bpf /sys/fs/bpf && mount -o remount,bind,ro /sys/fs/bpf";
/// There is none.
pub(super) const MISSING: &str = "while umount /sys/fs/bpf 2>/dev/null; do :; done";

/// The mount namespace is that of the first process, as far as processes can tell.
pub(super) const FIRST: &str = "mount --bind /proc/$$ /proc/1";

/// Returns whether a test can have a mount namespace of its own.
pub(super) fn can_mount() -> bool {
    let unshare = Command::new("unshare").arg("--version").output().is_ok();
    require::met("unshare", unshare, "unshare and mount (util-linux)")
}

/// Runs the rest of the line in a mount namespace of its own, after `prepare`, through `with`.
pub(super) fn line(prepare: &str, with: &str) -> Vec<String> {
    let script = format!("{prepare}; exec {with} \"$@\"");
    ["unshare", "--mount", "sh", "-c", &script, "sh"].map(str::to_owned).into()
}

/// Borrows the words of a line.
pub(super) fn words(line: &[String]) -> Vec<&str> {
    line.iter().map(String::as_str).collect()
}

/// Waits until the hooks have gone with their pins; filters of clsact, which need none, stay and are removed.
fn wait_until_gone(daemon: &Daemon<'_>, host: &Host) {
    if !require::is_kernel(6, 6) {
        assert!(host.hooks().iter().any(|hook| hook.contains(" clsact ingress ")), "{:?}", host.hooks());
        host.remove_qdiscs();
    }
    daemon.wait("the hooks are gone", |_| host.hooks().is_empty());
}

#[test]
fn bpffs_that_is_missing_is_mounted() {
    if !ready() || !can_mount() {
        return;
    }
    let host = Host::new("bpffs");
    let guests = Guests::new(&host.netns);
    let mut daemon = Daemon::new(&host, &bound("tap1"));
    daemon.start_with(&words(&line(&format!("{MISSING}; {FIRST}"), "")), |_| {});
    daemon.wait_until_ready();
    assert!(daemon.log().contains("mounted a bpffs"), "{}", daemon.log());
    assert_eq!(daemon.sample("meter_agent_counters_pinned"), Some(1));
    let zero = daemon.port(PORT).unwrap();
    let before = guests.counts();
    guests.talk();
    assert_eq!(daemon.port(PORT), Some(sum(zero, rx_tx(&guests.counts().since(&before)))));
    daemon.stop();
    // The pins went with the only namespace that had them; where a whole host has them they stay.
    wait_until_gone(&daemon, &host);
}

#[test]
fn bpffs_is_not_mounted_where_it_would_not_stay() {
    if !ready() || !can_mount() {
        return;
    }
    let host = Host::new("stays");
    let guests = Guests::new(&host.netns);
    let mut daemon = Daemon::new(&host, &bound("tap1"));
    daemon.start_with(&words(&line(MISSING, "")), |_| {});
    daemon.wait_until_ready();
    let log = daemon.log();
    assert!(
        log.contains("counters are not pinned") && log.contains("goes with this mount namespace"),
        "{log}"
    );
    assert_eq!(daemon.sample("meter_agent_counters_pinned"), Some(0));
    let zero = daemon.port(PORT).unwrap();
    let before = guests.counts();
    guests.talk();
    assert_eq!(daemon.port(PORT), Some(sum(zero, rx_tx(&guests.counts().since(&before)))));
    daemon.stop();
    assert_eq!(host.hooks(), [""; 0], "removed at its end");
}

/// A mount namespace that has a bpffs of its own, for agents that come and go.
struct Mounts {
    process: Process,
}

impl Mounts {
    fn new(host: &Host) -> Self {
        let mut command = host.netns.command("unshare").unwrap();
        let script = "mount -t bpf bpf /sys/fs/bpf && echo mounted && exec sleep infinity";
        command.args(["--mount", "sh", "-c", script]).stdout(Stdio::piped());
        let mut process = host.netns.spawn(command).unwrap();
        let mut said = String::new();
        BufReader::new(process.child().stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "mounted\n");
        Self { process }
    }

    /// Returns a line that runs the rest of it in there.
    fn line(&self) -> Vec<String> {
        let id = self.process.id().to_string();
        ["nsenter", "--mount", "--target", &id].map(str::to_owned).into()
    }

    fn run(&self, words: &[&str]) {
        let line = self.line();
        let output = output(Command::new(&line[0]).args(&line[1..]).args(words));
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn pins_that_can_not_be_opened_for_writing_are_left_to_count() {
    if !ready() || !can_mount() {
        return;
    }
    let host = Host::new("read-only-pins");
    let guests = Guests::new(&host.netns);
    let mounts = Mounts::new(&host);
    let mut daemon = Daemon::new(&host, &bound("tap1"));
    let line = mounts.line();
    daemon.start_with(&words(&line), |_| {});
    daemon.wait_until_ready();
    let zero = daemon.port(PORT).unwrap();
    let before = guests.counts();
    daemon.stop();
    let hooks = host.hooks();

    mounts.run(&["mount", "-o", "remount,ro", "/sys/fs/bpf"]);
    let failed = output(&mut daemon.command(&words(&line), &[]));
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert_eq!(failed.status.code(), Some(1), "{said}");
    assert!(said.contains("Read-only") && !said.contains("counters are not pinned"), "{said}");
    let doctor = output(&mut daemon.command(&words(&line), &["doctor"]));
    let report = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert_eq!(doctor.status.code(), Some(1), "{report}");
    assert!(report.contains("\nBAD     bpffs         write to /sys/fs/bpf"), "{report}");
    assert_eq!(host.hooks(), hooks);
    guests.talk();

    // Nothing is lost meanwhile.
    mounts.run(&["mount", "-o", "remount,rw", "/sys/fs/bpf"]);
    daemon.start_with(&words(&line), |_| {});
    daemon.wait_until_ready();
    assert_eq!(daemon.port(PORT), Some(sum(zero, rx_tx(&guests.counts().since(&before)))));
    daemon.stop();
    drop(mounts);
    wait_until_gone(&daemon, &host);
}

#[test]
fn pins_below_a_read_only_mount_are_taken_over_and_a_new_netdev_is_said_not_to_be_metered() {
    if !ready() || !can_mount() || !require::kernel(6, 6, "TCX") {
        return;
    }
    let host = Host::new("read-only-mount");
    let guests = Guests::new(&host.netns);
    let mut daemon = Daemon::started(&host, &bound("tap1"));
    let zero = daemon.port(PORT).unwrap();
    let before = guests.counts();
    daemon.stop();
    guests.talk();
    daemon.start_with(&words(&line(READ_ONLY, "")), |_| {});
    daemon.wait_until_ready();
    assert_eq!(daemon.sample("meter_agent_counters_pinned"), Some(1));
    guests.talk();
    assert_eq!(daemon.port(PORT), Some(sum(zero, rx_tx(&guests.counts().since(&before)))));
    host.netns.ip("tuntap add dev late0 mode tap").unwrap();
    daemon.wait("it can't be metered", |daemon| {
        daemon.sample("meter_agent_attach_failures_total{reason=\"pin\"}") > Some(0)
    });
    assert!(daemon.log().contains("Read-only file system"), "{}", daemon.log());
    assert!(!host.hooks().iter().any(|hook| hook.starts_with("late")), "{:?}", host.hooks());
    daemon.stop();
}

//! The state file: totals that outlive a reboot, a file that is broken, and a disk that is full.

use std::{
    fs,
    path::{Path, PathBuf},
};

use lab::require;
use meter_agent::totals::Totals;

use super::{Daemon, Guests, Host, PORT, bound, ready, rx_tx, sum};

/// Starts a daemon that takes this for another boot of the host.
const REBOOTED: &str = "echo 11111111-2222-3333-4444-555555555555 >\"$1\" && \
                        mount --bind \"$1\" /proc/sys/kernel/random/boot_id && shift && exec \"$@\"";

/// Makes a daemon that keeps its totals in this file.
fn keeps<'a>(host: &'a Host, file: &Path, interval: &str) -> Daemon<'a> {
    let daemon = Daemon::new(host, &bound("tap1"));
    daemon.configure_state(&format!("totals_file = {file:?}\ntotals_interval = {interval:?}"));
    daemon
}

/// Removes everything, the totals for the next boot too; returns where those are then.
fn detach(daemon: &Daemon<'_>, file: &Path) -> PathBuf {
    let output = daemon.run(&["detach"]);
    assert!(output.status.success(), "{output:?}");
    assert!(!file.exists());
    file.with_extension("detached")
}

/// Removes what a reboot does: all but the file.
fn lose_everything(daemon: &Daemon<'_>, file: &Path) {
    fs::rename(detach(daemon, file), file).unwrap();
}

#[test]
fn totals_outlive_a_reboot_and_a_detach_ends_them() {
    let unshare = std::process::Command::new("unshare").arg("--version").output().is_ok();
    if !ready() || !require::met("unshare", unshare, "unshare and mount (util-linux)") {
        return;
    }
    let host = Host::new("reboot");
    let guests = Guests::new(&host.netns);
    let directory = tempfile::tempdir().unwrap();
    let (file, boot_id) = (directory.path().join("state"), directory.path().join("boot_id"));
    let mut daemon = keeps(&host, &file, "0s");
    daemon.start();
    daemon.wait_until_ready();
    let zero = daemon.port(PORT).unwrap();
    let before = guests.counts();
    guests.talk();
    daemon.stop();
    let total = sum(zero, rx_tx(&guests.counts().since(&before)));
    lose_everything(&daemon, &file);
    guests.talk();

    let line = ["unshare", "--mount", "sh", "-c", REBOOTED, "sh", boot_id.to_str().unwrap()];
    daemon.start_with(&line, |_| {});
    daemon.wait_until_ready();
    // What went meanwhile nobody counted: the host was off.
    let now = daemon.port(PORT).unwrap();
    let before = guests.counts();
    assert_eq!(now, total);
    guests.talk();
    assert_eq!(daemon.port(PORT), Some(sum(total, rx_tx(&guests.counts().since(&before)))));
    daemon.stop();
    assert_eq!(
        Totals::decode(&fs::read(&file).unwrap()).unwrap().boot_id,
        "11111111-2222-3333-4444-555555555555"
    );

    // That of the boot before is there as well.
    let previous = Totals::decode(&fs::read(file.with_extension("previous")).unwrap()).unwrap();
    assert_ne!(previous.boot_id, "11111111-2222-3333-4444-555555555555");

    // A detach ends all totals, in this boot and in the next.
    assert!(detach(&daemon, &file).exists());
    daemon.start();
    daemon.wait_until_ready();
    assert_eq!(daemon.port(PORT), Some([(0, 0); 2]));
}

#[test]
fn broken_state_file_is_set_aside() {
    if !ready() {
        return;
    }
    let host = Host::new("broken-state");
    let _guests = Guests::new(&host.netns);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("state");
    let broken = b"meter-agent-totals 1 2 00000000\n{}";
    fs::write(&file, broken).unwrap();
    let mut daemon = keeps(&host, &file, "0s");
    daemon.start();
    daemon.wait_until_ready();
    let log = daemon.log();
    assert!(log.contains("the state file is broken") && log.contains("its checksum is wrong"), "{log}");
    assert_eq!(fs::read(directory.path().join("state.broken")).unwrap(), broken);
    assert!(!file.exists());
    daemon.stop();
    assert_eq!(Totals::decode(&fs::read(&file).unwrap()).unwrap().ports.len(), 2);
}

#[test]
fn state_file_stays_when_the_disk_is_full() {
    if !ready() {
        return;
    }
    let host = Host::new("full-disk");
    let guests = Guests::new(&host.netns);
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().to_str().unwrap();
    // A disk of 64 KiB, which only the daemon sees.
    let line = "mount -t tmpfs -o size=64k tmpfs \"$1\" && shift && exec \"$@\"";
    let file = directory.path().join("state");
    let mut daemon = keeps(&host, &file, "1s");
    daemon.start_with(&["unshare", "--mount", "sh", "-c", line, "sh", place], |_| {});
    daemon.wait_until_ready();
    let inside = Path::new("/proc").join(daemon.id().to_string()).join("root").join(&place[1..]);
    let read = || fs::read(inside.join("state")).ok().and_then(|text| Totals::decode(&text).ok());
    guests.talk();
    let packets = |state: &Totals| state.ports[0].hooks[0][0];
    daemon.wait("it is written", |_| read().is_some_and(|state| packets(&state) > 0));

    // As full as it gets; the rest is written in pieces.
    let filler = inside.join("filler");
    drop(fs::write(&filler, vec![0; 1 << 17]));
    let failures = "meter_agent_state_write_failures_total";
    daemon.wait("it says so", |daemon| daemon.sample(failures) > Some(1));
    let said = daemon.log().matches("the state file can't be written").count();
    assert_eq!(said, 1, "{}", daemon.log());
    let old = read().unwrap();
    assert!(!inside.join("state.new").exists());
    guests.talk();
    let before = daemon.sample(failures);
    daemon.wait("it is tried again", |daemon| daemon.sample(failures) > before);
    assert_eq!(read(), Some(old.clone()), "the one from before is whole");

    fs::remove_file(filler).unwrap();
    daemon.wait("it is written again", |_| read().is_some_and(|state| packets(&state) > packets(&old)));
    daemon.stop();
}

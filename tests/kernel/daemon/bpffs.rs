//! The file system of the pins: missing, or read-only.

use lab::require;

use super::{Daemon, Guests, Host, PORT, bound, ready, rx_tx, sum};
use crate::support::daemon::output;

/// Runs the rest of the line in a mount namespace of its own, after `prepare`.
fn line(prepare: &str) -> Vec<String> {
    let script = format!("{prepare}; exec \"$@\"");
    ["unshare", "--mount", "sh", "-c", &script, "sh"].map(str::to_owned).into()
}

#[test]
fn bpffs_that_is_missing_is_mounted_and_one_that_is_read_only_is_an_error() {
    let unshare = std::process::Command::new("unshare").arg("--version").output().is_ok();
    if !ready() || !require::met("unshare", unshare, "unshare and mount (util-linux)") {
        return;
    }
    let host = Host::new("bpffs");
    let guests = Guests::new(&host.netns);
    let mut daemon = Daemon::new(&host, &bound("tap1"));
    let words = line("mount --bind -o ro /sys/fs/bpf /sys/fs/bpf && mount -o remount,bind,ro /sys/fs/bpf");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let failed = output(&mut daemon.command(&words, &[]));
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    let last = said.lines().last().unwrap_or_default();
    assert_eq!(failed.status.code(), Some(1), "{said}");
    assert!(
        last.starts_with("meter-agent: make directory /sys/fs/bpf/") && last.contains("Read-only"),
        "{said}"
    );
    assert_eq!(host.hooks(), [""; 0]);

    let words = line("while umount /sys/fs/bpf 2>/dev/null; do :; done");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    daemon.start_with(&words, |_| {});
    daemon.wait_until_ready();
    assert!(daemon.log().contains("mounted a bpffs"), "{}", daemon.log());
    let zero = daemon.port(PORT).unwrap();
    let before = guests.counts();
    guests.talk();
    assert_eq!(daemon.port(PORT), Some(sum(zero, rx_tx(&guests.counts().since(&before)))));
    daemon.stop();
    // The pins went with the only namespace that had them; where a whole host has them they stay.
    daemon.wait("the hooks are gone", |_| host.hooks().is_empty());
}

//! What can't be looked at is not gone.

use std::process::Command;

use lab::netns::Netns;

use super::{Daemon, Host, Router, cross, follow, port_of, ready, started, wait_for_frames, wait_for_port};

/// A file in the place of `/run/netns`, for the process alone.
const UNREADABLE: &str = "mount -t tmpfs none /run && touch /run/netns && exec \"$0\" \"$@\"";

#[test]
fn directory_that_can_not_be_read_costs_the_host_nothing() {
    if !ready() {
        return;
    }
    let host = Host::new("nsu");
    let outside = Netns::new("beyond").unwrap();
    host.netns.veth("eth0", &outside, "eth0-there", 1_500).unwrap();
    let red = Router::new("nsu-red");
    let mut daemon = started(&host, &follow("nsu"));
    let (of_host, of_red) =
        (port_of(&daemon, "", "eth0").unwrap(), wait_for_port(&daemon, &red.netns, "eth0"));
    red.cross("eth0", 1, 2);
    daemon.stop();
    let hooks = red.hooks("eth0");
    let line = ["unshare", "--mount", "sh", "-c", UNREADABLE];
    daemon.start_with(&line, |_| {});
    daemon.wait_until_ready();
    cross(&host.netns, "eth0", &outside, "eth0-there", 3, 5);
    red.cross("eth0", 10, 20);
    let all = [(&of_host, [3, 5]), (&of_red, [11, 22])];
    wait_for_frames(&daemon, &all, "what is in namespaces is left as it is");
    assert_eq!(red.hooks("eth0"), hooks);
    assert_eq!(daemon.sample("meter_agent_namespaces_failed"), Some(1));
    let said = "look at /run/netns: Not a directory";
    assert_eq!(daemon.log().matches(said).count(), 1, "{}", daemon.log());
    let mut doctor = daemon.command(&line, &["doctor"]);
    let output = crate::support::daemon::output(&mut doctor);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.lines().any(|line| line.starts_with("BAD") && line.contains("/run/netns can't be looked at")),
        "{text}"
    );
}

fn limit(daemon: &Daemon<'_>, files: &str) {
    let status = Command::new("prlimit")
        .args(["--pid", &daemon.id().to_string(), &format!("--nofile={files}:")])
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn agent_without_a_descriptor_left_takes_no_namespace_for_gone() {
    if !ready() {
        return;
    }
    let host = Host::new("nse");
    let red = Router::new("nse-red");
    let daemon = started(&host, &follow("nse"));
    let port = wait_for_port(&daemon, &red.netns, "eth0");
    limit(&daemon, "3");
    // It is looked at anew for this one.
    let blue = Router::new("nse-blue");
    daemon.wait("it says so", |daemon| daemon.log().contains("Too many open files"));
    red.cross("eth0", 3, 5);
    limit(&daemon, "1024");
    let other = wait_for_port(&daemon, &blue.netns, "eth0");
    wait_for_frames(&daemon, &[(&port, [3, 5]), (&other, [0, 0])], "it counts on");
    assert!(!daemon.log().contains("namespace gone"), "{}", daemon.log());
    assert_eq!(daemon.sample("meter_agent_namespaces"), Some(2));
}

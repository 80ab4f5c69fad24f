//! Without CAP_SYS_ADMIN no namespace can be entered: that is said, and the host's own netdevs go on.

use lab::netns::Netns;

use super::{
    super::service::{LINE, NEEDED, Place, can_give},
    Daemon, Host, Router, cross, follow, frames, port_of, ready, wait_for_port,
};

#[test]
fn without_the_capability_the_host_goes_on_and_the_reason_is_said() {
    if !ready() || !can_give() {
        return;
    }
    let host = Host::new("nsr");
    let outside = Netns::new("beyond").unwrap();
    host.netns.veth("eth0", &outside, "eth0-there", 1_500).unwrap();
    let red = Router::new("nsr-red");
    let mut daemon = Daemon::new(&host, &follow("nsr"));
    let place = Place::new(&host, &daemon);
    daemon.start_flags(LINE, &[], |command| place.prepare(command, &NEEDED));
    daemon.wait_until_ready();
    let port = port_of(&daemon, "", "eth0").unwrap();
    cross(&host.netns, "eth0", &outside, "eth0-there", 3, 5);
    daemon.wait("the host counts", |daemon| frames(daemon).get(&port) == Some(&[3, 5]));
    assert_eq!(daemon.sample("meter_agent_namespaces"), Some(0));
    assert_eq!(daemon.sample("meter_agent_namespaces_failed"), Some(1));
    let said = "not permitted to enter it: that takes CAP_SYS_ADMIN; install the drop-in namespaces.conf";
    assert_eq!(daemon.log().matches(said).count(), 1, "said once\n{}", daemon.log());
    assert_eq!(red.hooks("eth0"), [""; 0]);

    // The doctor says the same, with the same rights.
    let mut command = daemon.command(LINE, &["doctor"]);
    place.prepare(&mut command, &NEEDED);
    let output = crate::support::daemon::output(&mut command);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.contains("namespaces")).unwrap_or_default();
    assert!(line.starts_with("BAD") && line.contains(red.netns.name()) && line.contains(said), "{text}");
    // And so it does with all of them: it asks the agent.
    let text = String::from_utf8_lossy(&daemon.run(&["doctor"]).stdout).into_owned();
    assert!(text.contains(line), "{text}");
    daemon.stop();

    // With it, as the drop-in gives it, the same user follows.
    let with: Vec<&str> = NEEDED.into_iter().chain(["sys_admin"]).collect();
    daemon.start_flags(LINE, &[], |command| place.prepare(command, &with));
    daemon.wait_until_ready();
    let there = wait_for_port(&daemon, &red.netns, "eth0");
    red.cross("eth0", 7, 9);
    daemon.wait("it counts there", |daemon| frames(daemon).get(&there) == Some(&[7, 9]));
    let mut command = daemon.command(LINE, &["doctor"]);
    place.prepare(&mut command, &with);
    let output = crate::support::daemon::output(&mut command);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("ok      namespaces"), "{text}");
    daemon.stop();
}

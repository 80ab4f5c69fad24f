//! Namespaces that lose their name and live on, and those that can't be entered: what hangs in them never counts for another.

use std::{fs, process::Stdio};

use super::{
    super::service::{LINE, NEEDED, Place, can_give},
    Daemon, Host, Router, follow, ready, start, started, wait_for_frames, wait_for_port,
};

/// A namespace whose name goes while something else keeps it is left alone, and its hooks are taken away.
fn loses_its_name(label: &str, tc: &str) {
    let host = Host::new(label);
    let daemon = started(&host, &format!("tc = \"{tc}\"\n{}", follow(label)));
    let red = Router::new(&format!("{label}-red"));
    let port = wait_for_port(&daemon, &red.netns, "eth0");
    red.cross("eth0", 1, 1);
    wait_for_frames(&daemon, &[(&port, [1, 1])], "before");
    // The test's own descriptor keeps it.
    lab_ip(&["netns", "del", red.netns.name()]);
    daemon.wait("it is not followed", |daemon| daemon.sample("meter_agent_namespaces") == Some(0));
    daemon.wait("its hooks are gone", |_| red.hooks("eth0").is_empty());
    red.cross("eth0", 5, 5);
    wait_for_frames(&daemon, &[(&port, [1, 1])], "and count no more");
    // So that the lab finds what it is to remove.
    lab_ip(&["netns", "add", red.netns.name()]);
}

fn lab_ip(arguments: &[&str]) {
    let status = std::process::Command::new("ip").args(arguments).status().unwrap();
    assert!(status.success(), "ip {arguments:?}");
}

#[test]
fn namespace_without_a_name_is_left_alone() {
    if ready() {
        loses_its_name("nsl", "auto");
        loses_its_name("nslc", "clsact");
    }
}

const UNBOUND: &str = "meter_agent_unbound_packets_total{direction=\"receive\"}";

/// The name goes while no agent runs, and nothing that can be seen leads to the namespace: its filters count on, for
/// nobody, and its number is no other's.
fn is_not_found(label: &str, more: &str) {
    let host = Host::new(label);
    let red = Router::new(&format!("{label}-red"));
    let mut daemon = started(&host, &format!("tc = \"clsact\"\n{}{more}", follow(label)));
    let port = wait_for_port(&daemon, &red.netns, "eth0");
    red.cross("eth0", 1, 2);
    wait_for_frames(&daemon, &[(&port, [1, 2])], "before");
    for restarts in 0..2 {
        daemon.kill();
        if restarts == 0 {
            // The test's own descriptor keeps it.
            lab_ip(&["netns", "del", red.netns.name()]);
        }
        start(&mut daemon);
        assert!(!red.hooks("eth0").is_empty(), "nothing leads there");
        let blue = Router::new(&format!("{label}-blue"));
        let other = wait_for_port(&daemon, &blue.netns, "eth0");
        assert_eq!(red.ifindex("eth0"), blue.ifindex("eth0"));
        let before = daemon.sample(UNBOUND).unwrap();
        red.cross("eth0", 10, 10);
        blue.cross("eth0", 3, 5);
        let so_far = [3, 5].map(|frames| frames * (restarts + 1));
        wait_for_frames(&daemon, &[(&port, [1, 2]), (&other, so_far)], "each in its own port");
        daemon.wait("and the others are nobody's", |daemon| daemon.sample(UNBOUND) == Some(before + 10));
    }
    // So that the lab finds what it is to remove.
    lab_ip(&["netns", "add", red.netns.name()]);
}

#[test]
fn filters_in_a_namespace_that_is_not_found_count_for_nobody() {
    if ready() {
        is_not_found("nsx", "");
    }
}

#[test]
fn filters_that_count_connections_in_a_namespace_that_is_not_found_count_for_nobody() {
    if ready() {
        is_not_found("nsxc", "[connections]\nroles = [\"port\"]\n");
    }
}

/// The same, where a process is in the namespace: it is found by that, and its filters are removed.
#[test]
fn namespace_without_a_name_is_found_by_its_processes() {
    if !ready() {
        return;
    }
    let host = Host::new("nsp");
    let red = Router::new("nsp-red");
    let mut daemon = started(&host, &format!("tc = \"clsact\"\n{}", follow("nsp")));
    let port = wait_for_port(&daemon, &red.netns, "eth0");
    red.cross("eth0", 1, 2);
    wait_for_frames(&daemon, &[(&port, [1, 2])], "before");
    let mut command = red.netns.command("sleep").unwrap();
    command.arg("600").stdin(Stdio::null());
    let process = red.netns.spawn(command).unwrap();
    daemon.kill();
    lab_ip(&["netns", "del", red.netns.name()]);
    start(&mut daemon);
    daemon.wait("its hooks are gone", |_| red.hooks("eth0").is_empty());
    red.cross("eth0", 10, 10);
    wait_for_frames(&daemon, &[(&port, [1, 2])], "and count no more");
    drop(process);
    lab_ip(&["netns", "add", red.netns.name()]);
}

/// An agent that may not enter a namespace leaves filters there as they are, and so does `meter-agent detach`: they count
/// on for their port.
#[test]
fn namespace_that_may_not_be_entered_is_not_taken_for_gone() {
    if !ready() || !can_give() {
        return;
    }
    let host = Host::new("nsf");
    let red = Router::new("nsf-red");
    let mut daemon = Daemon::new(&host, &format!("tc = \"clsact\"\n{}", follow("nsf")));
    let place = Place::new(&host, &daemon);
    let with: Vec<&str> = NEEDED.into_iter().chain(["sys_admin"]).collect();
    let flags = ["--log-level", "info"];
    daemon.start_flags(LINE, &flags, |command| place.prepare(command, &with));
    daemon.wait_until_ready();
    let port = wait_for_port(&daemon, &red.netns, "eth0");
    red.cross("eth0", 1, 2);
    wait_for_frames(&daemon, &[(&port, [1, 2])], "before");
    daemon.stop();
    let hooks = red.hooks("eth0");

    daemon.start_flags(LINE, &flags, |command| place.prepare(command, &NEEDED));
    daemon.wait_until_ready();
    let said = "entering its namespace is not permitted";
    daemon.wait("it says so", |daemon| daemon.log().contains(said));
    assert_eq!(red.hooks("eth0"), hooks);
    red.cross("eth0", 10, 20);
    wait_for_frames(&daemon, &[(&port, [11, 22])], "the filters count for their port");
    assert_eq!(daemon.log().matches(said).count(), 1, "said once\n{}", daemon.log());
    daemon.stop();

    let mut command = daemon.command(LINE, &["detach"]);
    place.prepare(&mut command, &NEEDED);
    let output = crate::support::daemon::output(&mut command);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("which takes CAP_SYS_ADMIN"), "{text}");
    let pins = host.pins.join(format!("v{}/maps", meter_ebpf::abi::VERSION));
    assert!(fs::read_dir(pins).unwrap().count() > 20, "what tells where the filters are is there");
    assert_eq!(red.hooks("eth0"), hooks);

    daemon.start_flags(LINE, &flags, |command| place.prepare(command, &with));
    daemon.wait_until_ready();
    assert_eq!(wait_for_port(&daemon, &red.netns, "eth0"), port);
    red.cross("eth0", 100, 200);
    wait_for_frames(&daemon, &[(&port, [111, 222])], "and go on");
    daemon.stop();
    let detached = daemon.run(&["detach"]);
    assert!(detached.status.success(), "{detached:?}");
    assert_eq!(red.hooks("eth0"), [""; 0]);
}

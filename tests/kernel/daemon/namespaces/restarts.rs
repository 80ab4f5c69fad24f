//! Namespaces that go and come back, and agents that do.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use lab::{mac::Mac, netns::Netns, traffic::RawSocket};

use super::{Daemon, Host, Router, follow, port_of, ready, start, started, wait_for_frames, wait_for_port};
use crate::support::{auto_kind, frames::between};

/// Waits until a namespace ends: nothing of the agent keeps it.
fn wait_for_end(daemon: &Daemon<'_>, peer: &Netns, netdev: &str) {
    daemon.wait("the namespace ends, and its netdevs with it", |_| {
        !peer.netdevs().unwrap().iter().any(|other| other == netdev)
    });
}

/// A namespace goes and comes back under its name.
fn made_again(label: &str, tc: &str) {
    let host = Host::new(label);
    let daemon = started(&host, &format!("tc = \"{tc}\"\n{}", follow(label)));
    let red = Router::new(&format!("{label}-red"));
    let port = wait_for_port(&daemon, &red.netns, "eth0");
    red.cross("eth0", 4, 6);
    wait_for_frames(&daemon, &[(&port, [4, 6])], "before");
    let name = red.netns.name().to_owned();
    let Router { netns, outside } = red;
    drop(netns);
    wait_for_end(&daemon, &outside, "eth0-there");
    daemon.wait("the port has no netdev", |daemon| port_of(daemon, &name, "eth0").is_none());
    wait_for_frames(&daemon, &[(&port, [4, 6])], "its total stays");
    assert_eq!(daemon.sample("meter_agent_namespaces"), Some(0));

    let again = Router { netns: Netns::new(&format!("{label}-red")).unwrap(), outside };
    assert_eq!(again.netns.name(), name);
    again.plug("eth0");
    assert_eq!(wait_for_port(&daemon, &again.netns, "eth0"), port);
    again.cross("eth0", 10, 20);
    wait_for_frames(&daemon, &[(&port, [14, 26])], "it goes on");
    let links = host.pins.join(format!("v{}/links", meter_ebpf::abi::VERSION));
    let expected = if auto_kind().name() == "tcx" && tc == "auto" { 2 } else { 0 };
    assert_eq!(std::fs::read_dir(links).unwrap().count(), expected, "no dead link is left");
}

#[test]
fn namespace_that_is_made_again_goes_on_from_its_totals() {
    if ready() {
        made_again("nsa", "auto");
    }
}

#[test]
fn namespace_that_is_made_again_goes_on_from_its_totals_by_clsact() {
    if ready() {
        made_again("nsac", "clsact");
    }
}

/// The agent is killed and started again while frames go in and out of two namespaces: none is lost or counted twice.
fn killed(label: &str, tc: &str) {
    let host = Host::new(label);
    let config = format!("tc = \"{tc}\"\n{}", follow(label));
    let routers = ["red", "blue"].map(|name| Router::new(&format!("{label}-{name}")));
    let mut daemon = started(&host, &config);
    let ports = routers.each_ref().map(|router| wait_for_port(&daemon, &router.netns, "eth0"));
    let stop = AtomicBool::new(false);
    let sent = [const { AtomicU64::new(0) }; 2];
    thread::scope(|scope| {
        for (router, sent) in routers.iter().zip(&sent) {
            let stop = &stop;
            scope.spawn(move || {
                let frame = between(Mac::local(1), Mac::local(2), &[], 0x88b5, &[0; 100]);
                let inward = RawSocket::open(&router.outside, "eth0-there").unwrap();
                let outward = RawSocket::open(&router.netns, "eth0").unwrap();
                while !stop.load(Ordering::Relaxed) {
                    inward.send(&frame).unwrap();
                    outward.send(&frame).unwrap();
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..lab::amount("METER_TEST_NAMESPACE_KILLS", 3, 1) {
            daemon.kill();
            start(&mut daemon);
        }
        // The other one is there again too.
        stop.store(true, Ordering::Relaxed);
    });
    let sent = sent.map(AtomicU64::into_inner);
    assert!(sent.iter().all(|sent| *sent > 100), "{sent:?}");
    let all = [(&ports[0], [sent[0]; 2]), (&ports[1], [sent[1]; 2])];
    wait_for_frames(&daemon, &all, "while agents were killed");
    for (router, port) in routers.iter().zip(&ports) {
        assert_eq!(port_of(&daemon, router.netns.name(), "eth0").as_ref(), Some(port));
    }
    // One that goes while no agent looks is put away by the next.
    daemon.kill();
    let [red, blue] = routers;
    drop(red.netns);
    start(&mut daemon);
    daemon.wait("one is left", |daemon| daemon.sample("meter_agent_namespaces") == Some(1));
    wait_for_end(&daemon, &red.outside, "eth0-there");
    blue.cross("eth0", 1, 1);
    let all = [(&ports[0], [sent[0]; 2]), (&ports[1], [sent[1] + 1; 2])];
    wait_for_frames(&daemon, &all, "the other goes on");

    // Without namespaces in its configuration an agent takes its hooks away from them.
    daemon.stop();
    daemon.configure(&format!("tc = \"{tc}\"\n"));
    start(&mut daemon);
    daemon.wait("its hooks are gone", |_| blue.hooks("eth0").is_empty());
    assert_eq!(daemon.sample("meter_agent_namespaces"), None);
}

#[test]
fn agent_that_is_killed_loses_nothing_in_namespaces() {
    if ready() {
        killed("nsk", "auto");
    }
}

#[test]
fn agent_that_is_killed_loses_nothing_in_namespaces_by_clsact() {
    if ready() {
        killed("nskc", "clsact");
    }
}

/// Meters of one's own that an agent is given at its start reach namespaces once these are followed; until then their netdevs
/// are as they were, and not lost.
#[test]
fn meters_that_come_with_a_start_cost_no_hook_in_namespaces() {
    if !ready() {
        return;
    }
    let host = Host::new("nsw");
    let red = Router::new("nsw-red");
    let mut daemon = started(&host, &follow("nsw"));
    let port = wait_for_port(&daemon, &red.netns, "eth0");
    red.cross("eth0", 2, 3);
    daemon.stop();
    let meter = "[[meter]]\nname = \"all\"\nrules = [\"ethertype 34997\"]\n";
    daemon.configure(&format!("{}{meter}", follow("nsw")));
    start(&mut daemon);
    red.cross("eth0", 5, 7);
    wait_for_frames(&daemon, &[(&port, [7, 10])], "no frame is missed");
    let counted = "meter_user_packets_total{meter=\"all\"}";
    daemon.wait("by the meter too", |daemon| daemon.sample(counted) == Some(5));
    let log = daemon.log();
    assert!(!log.contains("programs not changed") && !log.contains("lacks the program"), "{log}");
    assert_eq!(daemon.sample("meter_agent_hooks_lost_total"), Some(0));
}

//! Namespaces that come and go by the hundred: nothing grows.
//!
//! `METER_TEST_CHURN_NETNS` says how many.

use std::fs;

use lab::netns::Netns;

use super::{Daemon, Host, Router, follow, frames, port_of, ready, started, wait_for_port};

/// Namespaces of one burst, which have the same names each time.
const BURST: usize = 10;

/// What may grow where something is left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    threads: usize,
    links: usize,
}

fn held(daemon: &Daemon<'_>, host: &Host) -> Held {
    let entries = |path: String| fs::read_dir(path).unwrap().count();
    let links = host.pins.join(format!("v{}/links", meter_ebpf::abi::VERSION));
    Held {
        descriptors: entries(format!("/proc/{}/fd", daemon.id())),
        threads: entries(format!("/proc/{}/task", daemon.id())),
        links: fs::read_dir(links).unwrap().count(),
    }
}

fn hooks(daemon: &Daemon<'_>) -> u64 {
    let count = |kind| daemon.sample(&format!("meter_agent_attached_hooks{{kind=\"{kind}\"}}")).unwrap();
    ["tcx", "clsact"].map(count).iter().sum()
}

/// Returns the memory that is the process's own, in KiB.
fn memory(daemon: &Daemon<'_>) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Lets namespaces come, each with a netdev that counts, and go.
fn burst(daemon: &Daemon<'_>, host: &Host, round: u64) {
    let outside = Netns::new("beyond").unwrap();
    let routers: Vec<Netns> = (0..BURST).map(|n| Netns::new(&format!("nsc-{n}")).unwrap()).collect();
    for (n, netns) in routers.iter().enumerate() {
        netns.veth("eth0", &outside, &format!("there{n}"), 1_500).unwrap();
    }
    let ports: Vec<String> = routers.iter().map(|netns| wait_for_port(daemon, netns, "eth0")).collect();
    for (n, netns) in routers.iter().enumerate() {
        super::cross(netns, "eth0", &outside, &format!("there{n}"), 2, 3);
    }
    let expected = [2 * (round + 1), 3 * (round + 1)];
    daemon.wait("every port goes on from its total", |daemon| {
        let frames = frames(daemon);
        ports.iter().all(|port| frames.get(port) == Some(&expected))
    });
    drop(routers);
    // A namespace is left after the last of its netdevs.
    daemon.wait("all are gone", |daemon| {
        held(daemon, host).links == 0
            && hooks(daemon) == 0
            && daemon.sample("meter_agent_namespaces") == Some(0)
    });
}

#[test]
fn namespaces_that_come_and_go_leave_nothing() {
    if !ready() {
        return;
    }
    let namespaces: usize = lab::amount("METER_TEST_CHURN_NETNS", 100, 40);
    let host = Host::new("nsc");
    let daemon = started(&host, &follow("nsc"));
    let mut first = None;
    for round in 0..namespaces.div_ceil(BURST) {
        burst(&daemon, &host, u64::try_from(round).unwrap());
        if round + 1 == namespaces.div_ceil(2 * BURST) {
            first = Some((held(&daemon, &host), memory(&daemon)));
        }
    }
    let (before, memory_before) = first.unwrap();
    let (after, memory_after) = (held(&daemon, &host), memory(&daemon));
    eprintln!("{namespaces} namespaces: {before:?} then {after:?}, {memory_before} then {memory_after} KiB");
    assert_eq!(after.links, 0);
    // Connections come and go, and an audit has a thread of its own for a moment; each namespace would leave one at least.
    assert!(after.descriptors < before.descriptors + 10, "{before:?} then {after:?}");
    assert!(after.threads < before.threads + 5, "{before:?} then {after:?}");
    // One object of a namespace that stays is 1.8 MB.
    assert!(memory_after < memory_before + 4_096, "{memory_before} then {memory_after} KiB");
}

#[test]
fn many_namespaces_at_a_time_are_metered() {
    if !ready() {
        return;
    }
    let many: usize = lab::amount("METER_TEST_NETNS", 40, 8);
    let host = Host::new("nsn");
    let routers: Vec<Router> = (0..many).map(|n| Router::new(&format!("nsn-{n}"))).collect();
    let began = std::time::Instant::now();
    let daemon = started(&host, &follow("nsn"));
    let took = began.elapsed();
    let held = held(&daemon, &host);
    eprintln!("{many} namespaces attached in {took:?}: {held:?}, {} KiB", memory(&daemon));
    assert_eq!(daemon.sample("meter_agent_namespaces"), Some(u64::try_from(many).unwrap()));
    assert!(held.threads < 16, "no thread for each: {held:?}");
    for router in &routers {
        assert!(port_of(&daemon, router.netns.name(), "eth0").is_some(), "{}", router.netns.name());
    }
}

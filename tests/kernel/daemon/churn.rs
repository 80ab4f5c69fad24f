//! Netdevs that come, are renamed, carry other ports, leave for other namespaces and go: nothing grows, and no total is
//! lost.
//!
//! `METER_TEST_CHURN` says how many.

use std::fs;

use lab::{mac::Mac, netns::Netns, traffic::RawSocket};
use nix::sys::signal::Signal;

use super::{
    Daemon, Host, PORT, bound,
    bpffs::{READ_ONLY, can_mount, line, words},
    ready,
};
use crate::support::frames::between;

/// Netdevs of one burst: each is a port of its own by its name, and the names come back.
const BURST: usize = 20;
/// Bytes of a frame.
const BYTES: u64 = 114;

/// What may grow where something is left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    links: usize,
    records: u64,
    slots: u64,
    attached: u64,
}

fn held(daemon: &Daemon<'_>, host: &Host) -> Held {
    let entries = |path: String| fs::read_dir(path).unwrap().count();
    let sample = |series: &str| daemon.sample(series).unwrap();
    let kinds = ["tcx", "clsact", "xdp"];
    let hooks = |kind: &str| sample(&format!("meter_agent_attached_hooks{{kind=\"{kind}\"}}"));
    let links = host.pins.join(format!("v{}/links", meter_ebpf::abi::VERSION));
    Held {
        descriptors: entries(format!("/proc/{}/fd", daemon.id())),
        // Without pins they are among the descriptors.
        links: fs::read_dir(links).map_or(0, Iterator::count),
        records: sample("meter_agent_map_entries{map=\"PORTS\"}"),
        slots: sample("meter_agent_map_entries{map=\"COUNTERS\"}"),
        attached: kinds.into_iter().map(hooks).sum(),
    }
}

/// Returns the memory that is the process's own, in KiB.
fn memory(daemon: &Daemon<'_>) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Makes veths and taps, renames them, lets some of them leave for another namespace, and removes all.
fn burst(host: &Host, peer: &Netns, elsewhere: &Netns) {
    let mut lines = String::new();
    let mut gone = String::new();
    for n in 0..BURST {
        if n % 2 == 0 {
            lines += &format!("link add c{n} type veth peer name p{n} netns {}\n", peer.name());
        } else {
            lines += &format!("tuntap add dev c{n} mode tap\n");
        }
        lines +=
            &format!("link set c{n} up\nlink set c{n} down\nlink set c{n} name r{n}\nlink set r{n} up\n");
        if n % 4 < 2 {
            lines += &format!("link set r{n} netns {}\n", elsewhere.name());
            gone += &format!("link del r{n}\n");
        } else {
            lines += &format!("link del r{n}\n");
        }
    }
    host.netns.ip(&lines).unwrap();
    elsewhere.ip(&gone).unwrap();
}

/// Lets the port come on a new netdev, count and go; returns what it has then.
fn replug(daemon: &Daemon<'_>, host: &Host, peer: &Netns, total: u64) -> u64 {
    host.netns.veth("eth9", peer, "peer9", 1_500).unwrap();
    let info = format!("meter_port_info{{port=\"{PORT}\"");
    daemon.wait("the port is back", |daemon| daemon.get("/metrics").contains(&info));
    let socket = RawSocket::open(peer, "peer9").unwrap();
    let frame = between(Mac::local(1), Mac::local(2), &[], 0x88b5, &[0; 100]);
    (0..10).for_each(|_| socket.send(&frame).unwrap());
    let total = total + 10;
    let rx = (total, total * BYTES);
    daemon.wait("it goes on from its total", |daemon| daemon.port(PORT).is_some_and(|[is, _]| is == rx));
    host.netns.ip("link del eth9").unwrap();
    daemon.wait("the port is gone", |daemon| !daemon.get("/metrics").contains(&info));
    assert_eq!(daemon.port(PORT).unwrap()[0], rx, "and keeps its total");
    total
}

/// `line` is how the daemon starts.
fn churn(label: &str, tc: &str, line: &[String]) {
    let netdevs: usize = lab::amount("METER_TEST_CHURN", 300, 120);
    let host = Host::new(label);
    let [peer, elsewhere] = ["peer", "elsewhere"].map(|label| Netns::new(label).unwrap());
    // A record for each name that comes: there are 40 of them.
    let mut daemon = Daemon::new(&host, &format!("tc = \"{tc}\"\n{}", bound("eth9")));
    daemon.start_with(&words(line), |_| {});
    daemon.wait_until_ready();
    assert_eq!(daemon.sample("meter_agent_counters_pinned"), Some(line.is_empty().into()));
    let settled = || daemon.wait("settled", |daemon| daemon.sample("meter_agent_attach_pending") == Some(0));
    let mut total = 0;
    let mut first = None;
    for round in 0..netdevs.div_ceil(BURST) {
        burst(&host, &peer, &elsewhere);
        if round % 5 == 0 {
            total = replug(&daemon, &host, &peer, total);
        }
        if round == 2 {
            // Every name has come by now.
            daemon.wait("all are gone", |daemon| held(daemon, &host).attached == 0);
            first = Some((held(&daemon, &host), memory(&daemon)));
        }
    }
    settled();
    daemon.wait("all are gone", |daemon| held(daemon, &host).attached == 0);
    let (before, memory_before) = first.unwrap();
    let after = held(&daemon, &host);
    assert!(after.records <= 41 && after.slots <= 1, "{after:?}");
    assert_eq!((after.links, after.attached), (0, 0));
    // Connections come and go, and an audit has some of its own; each netdev would leave one at least.
    assert!(after.descriptors < before.descriptors + 10, "{before:?} then {after:?}");
    let memory_after = memory(&daemon);
    eprintln!("{tc}: {netdevs} netdevs, {before:?} then {after:?}, {memory_before} then {memory_after} KiB");
    assert!(memory_after < memory_before + 4_096, "{memory_before} then {memory_after} KiB");
    assert_eq!(daemon.port(PORT).unwrap()[0], (total, total * BYTES));
    assert_eq!(host.hooks(), [""; 0]);
}

#[test]
fn netdevs_that_come_and_go_leave_nothing_by_tcx() {
    if ready() && lab::require::kernel(6, 6, "TCX") {
        churn("churn", "tcx", &[]);
    }
}

#[test]
fn netdevs_that_come_and_go_leave_nothing_without_pins_by_tcx() {
    if ready() && can_mount() && lab::require::kernel(6, 6, "TCX") {
        churn("churn-bare", "tcx", &line(READ_ONLY, ""));
    }
}

#[test]
fn netdevs_that_come_and_go_leave_nothing_without_pins_by_clsact() {
    if ready() && can_mount() {
        churn("churn-bare-clsact", "clsact", &line(READ_ONLY, ""));
    }
}

#[test]
fn netdevs_that_come_and_go_leave_nothing_by_clsact() {
    if ready() {
        churn("churn-clsact", "clsact", &[]);
    }
}

#[test]
fn netlink_messages_that_the_kernel_dropped_cost_no_netdev() {
    if !ready() {
        return;
    }
    let host = Host::new("overrun-agent");
    let peer = Netns::new("peer").unwrap();
    let daemon = Daemon::started(&host, &bound("eth9"));
    let total = replug(&daemon, &host, &peer, 0);
    daemon.signal(Signal::SIGSTOP);
    host.netns.veth("eth0", &peer, "peer0", 1_500).unwrap();
    // More changes than any buffer holds while nobody reads.
    let changes = "link set eth0 mtu 1400\nlink set eth0 mtu 1500\n".repeat(20_000);
    host.netns.ip(&changes).unwrap();
    host.netns.veth("eth9", &peer, "peer9", 1_500).unwrap();
    daemon.signal(Signal::SIGCONT);
    daemon.wait("it is told", |daemon| daemon.sample("meter_agent_netlink_overruns_total") > Some(0));
    let hooked = |netdev: &str| host.hooks().iter().any(|hook| hook.starts_with(netdev));
    daemon.wait("both are metered", |_| hooked("eth0 ") && hooked("eth9 "));
    host.netns.ip("link del eth9").unwrap();
    let info = format!("meter_port_info{{port=\"{PORT}\"");
    daemon.wait("the port is gone", |daemon| !daemon.get("/metrics").contains(&info));
    replug(&daemon, &host, &peer, total);
}

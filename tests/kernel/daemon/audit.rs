//! The audit: nothing to say of traffic, whatever the netdev, and the name of whoever takes frames away.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use lab::{
    load::{Datagrams, Load, Pace},
    mac::Mac,
    netdev::{Tunnel, TunnelKind, TunnelMode, kind_exists},
    netns::Netns,
    require,
    traffic::RawSocket,
};
use meter_agent::{
    audit::{Cause, Report, Row},
    datapath::{HookKind, is_shared},
};
use meter_ebpf::abi::Direction;

use super::{Daemon, Guests, Host, PORT, bound, ready};
use crate::support::{
    STILL, WITHIN,
    foreign::Foreign,
    frames::between,
    raw::{Place, drop_all, redirect_peer},
};

/// Runs `meter-agent audit`; returns its exit code and what it found.
fn audit(daemon: &Daemon<'_>) -> (i32, Report) {
    let output = daemon.run(&["audit", "--json"]);
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}\n{}", daemon.log()));
    (output.status.code().unwrap(), report)
}

/// Returns the drift of each netdev and direction that has some, but for what was before: `eth0 receive xdp`, packets and
/// bytes.
fn drifts(report: &Report) -> BTreeMap<String, (i64, i64)> {
    let all = report.rows.iter().flat_map(|row| row.drifts.iter().map(move |drift| (row, drift)));
    all.filter(|(_, drift)| drift.cause != Cause::AttachedLater)
        .map(|(row, drift)| {
            let key = format!("{} {} {}", row.netdev, row.direction, drift.cause.name());
            (key, (drift.packets, drift.bytes))
        })
        .collect()
}

/// Returns what the kernel counted at a netdev since the hooks are there.
fn kernel(report: &Report, netdev: &str, direction: &str) -> i64 {
    let row = report.rows.iter().find(|row| row.netdev == netdev && row.direction == direction);
    row.unwrap_or_else(|| panic!("{netdev} {direction} in {report:?}")).kernel
}

/// Returns how many packets the kernel has to count at each netdev and direction: `METER_AUDIT_PACKETS`, or few enough for
/// every day.
fn least_packets() -> i64 {
    lab::amount("METER_AUDIT_PACKETS", 20_000, 2_000).try_into().unwrap()
}

/// Waits until all netdevs have their base line.
fn wait_for_base(daemon: &Daemon<'_>, netdevs: u64) {
    daemon.wait("the base lines are there", |daemon| daemon.sample("meter_audit_netdevs") == Some(netdevs));
}

/// A host with `eth0`, and whoever is at the other end.
struct Pair {
    host: Host,
    peer: Netns,
}

impl Pair {
    fn new(label: &str) -> Self {
        let pair = Self { host: Host::new(label), peer: Netns::new("peer").unwrap() };
        pair.host.netns.veth("eth0", &pair.peer, "peer0", 1_500).unwrap();
        pair
    }

    /// Sends frames of 114 bytes to the host, or from it.
    fn send(&self, to_host: bool, frames: u32) {
        let (netns, netdev) = if to_host { (&self.peer, "peer0") } else { (&self.host.netns, "eth0") };
        let socket = RawSocket::open(netns, netdev).unwrap();
        let frame = between(Mac::local(1), Mac::local(2), &[], 0x88b5, &[0; 100]);
        // Who sends what is dropped at once is told so, as a full buffer.
        (0..frames).for_each(|_| drop(socket.send(&frame)));
    }
}

/// Gives both namespaces a VXLAN netdev over `eth0` and `peer0`, with addresses.
fn tunnel(pair: &Pair) {
    let ends = [(&pair.host.netns, "eth0", 1, 2), (&pair.peer, "peer0", 2, 1)];
    for (netns, netdev, here, there) in ends {
        netns.address(netdev, [10, 1, 0, here].into(), 24).unwrap();
        let mode =
            TunnelMode::Fixed { vni: 7, local: [10, 1, 0, here].into(), remote: [10, 1, 0, there].into() };
        let encap = TunnelKind::Vxlan { udp_port: 4789 };
        netns.tunnel(&Tunnel { name: "vxlan7", encap, mode, mtu: 1450 }).unwrap();
        netns.address("vxlan7", [10, 9, 0, here].into(), 24).unwrap();
    }
}

#[test]
fn traffic_with_offloads_is_no_drift_on_any_kind_of_netdev() {
    if !ready() || !require::met("vxlan", kind_exists("vxlan"), "a kernel with vxlan") {
        return;
    }
    let pair = Pair::new("audit");
    tunnel(&pair);
    let guests = Guests::new(&pair.host.netns);
    let daemon = Daemon::started(&pair.host, &bound("tap1"));
    wait_for_base(&daemon, 4);
    let pace = Pace { burst: 1 << 18, pause: Duration::from_millis(1) };
    let small = Pace { burst: 1 << 14, pause: Duration::from_millis(2) };
    let loads = |client: &Netns, server: &Netns, address: [u8; 4]| {
        [
            Load::tcp(client, server, (address, 5001).into(), pace).unwrap(),
            Load::udp(client, server, (address, 5002).into(), Datagrams::Single(200), small).unwrap(),
            Load::udp(client, server, (address, 5003).into(), Datagrams::Segmented(1000), small).unwrap(),
        ]
    };
    let mut running = Vec::new();
    let (vm, container) = (guests.vm.netns(), guests.container.netns());
    running.extend(loads(vm, container, [10, 0, 0, 2]));
    running.extend(loads(container, vm, [10, 0, 0, 1]));
    running.extend(loads(&pair.host.netns, &pair.peer, [10, 9, 0, 2]));
    running.extend(loads(&pair.peer, &pair.host.netns, [10, 9, 0, 1]));
    let least = least_packets();
    let deadline = Instant::now() + WITHIN * u32::try_from(least / 100_000 + 1).unwrap();
    loop {
        assert!(Instant::now() < deadline, "{least} packets take too long");
        thread::sleep(Duration::from_millis(100));
        let (code, report) = audit(&daemon);
        let found = drifts(&report);
        let strange =
            found.keys().filter(|key| !key.ends_with("dropped") && !key.ends_with("queued")).count();
        assert_eq!((code, strange), (0, 0), "{found:?} in {report:?}");
        let is_enough = |row: &Row| row.kernel >= least;
        if report.rows.iter().all(is_enough) {
            break;
        }
    }
    // A stream that datagrams have starved for ten seconds is no concern of the audit's.
    drop(Load::stop_all(running));
    // A tap's reader may be behind.
    let deadline = Instant::now() + WITHIN;
    let report = loop {
        let (code, report) = audit(&daemon);
        let mut found = drifts(&report);
        let before = found.len();
        found.retain(|key, _| !key.ends_with("dropped"));
        if found.len() < before {
            // Whether super-packets or their frames were dropped nobody knows; the rest looks as if it waited.
            found.retain(|key, _| !key.ends_with("queued"));
        }
        if code == 0 && found.is_empty() {
            break report;
        }
        assert!(Instant::now() < deadline, "{code}: {found:?} in {report:?}");
        thread::sleep(STILL);
    };
    assert!(report.closures.iter().all(|closure| (closure.packets, closure.bytes) == (0, 0)), "{report:?}");
    assert_eq!(report.closures.len(), 2, "{report:?}");
    println!("{}", meter_agent::audit::table(&report));
}

#[test]
fn whoever_takes_frames_away_is_named_with_how_many() {
    if !ready() || !require::met("tcx", require::is_kernel(6, 6), "TCX (Linux 6.6)") {
        return;
    }
    for tc in ["tcx", "clsact"] {
        frames_are_taken_away(tc);
    }
}

fn frames_are_taken_away(tc: &str) {
    let pair = Pair::new(&format!("takers-{tc}"));
    let daemon = Daemon::started(&pair.host, &format!("tc = \"{tc}\"\n{}", bound("eth0")));
    wait_for_base(&daemon, 1);
    let (netns, ifindex) = (&pair.host.netns, pair.host.ifindex("eth0"));
    let mut expected = BTreeMap::new();
    let mut check = |what: &str, packets: i64, bytes: i64| {
        let (code, report) = audit(&daemon);
        if packets != 0 {
            expected.insert(format!("eth0 {what}"), (packets, bytes));
        }
        assert_eq!((code, drifts(&report)), (0, expected.clone()), "{what}");
    };
    pair.send(true, 50);
    pair.send(false, 50);
    check("nobody", 0, 0);
    {
        let _dropper = drop_all(netns, ifindex, Place::FirstOfIngress);
        pair.send(true, 30);
        check("receive foreign_program", 30, 30 * 114);
    }
    {
        let _dropper = drop_all(netns, ifindex, Place::LastOfEgress);
        pair.send(false, 20);
        // Our hook is behind every other one of egress, but for one that came later.
        let is_seen = daemon.port(PORT).unwrap()[1].0 == 70;
        check("transmit foreign_program", if is_seen { -20 } else { 0 }, if is_seen { -20 * 114 } else { 0 });
    }
    pair.send(true, 50);
    check("nobody any more", 0, 0);
    let table = daemon.run(&["audit"]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("foreign_program: another TC program"), "{table}");
    let series = format!(
        "meter_audit_drift_packets{{port=\"{PORT}\",direction=\"receive\",cause=\"foreign_program\"}}"
    );
    assert_eq!(daemon.sample(&series), Some(30));
}

#[test]
fn programs_of_others_are_told_from_ours() {
    if !ready() {
        return;
    }
    let pair = Pair::new("others");
    let mut foreign = Foreign::load(&pair.host.netns);
    let ifindex = pair.host.ifindex("eth0");
    let others = |ours| {
        let shared = |direction| is_shared(ifindex, direction, ours);
        pair.host.netns.run_in(|| Direction::ALL.map(shared)).unwrap()
    };
    {
        let daemon = Daemon::started(&pair.host, &format!("tc = \"clsact\"\n{}", bound("eth0")));
        daemon.wait("it is metered", |daemon| daemon.port(PORT).is_some());
        assert_eq!(others(HookKind::Clsact), [false, false]);
        foreign.clsact("eth0", Direction::Egress, 3);
        assert_eq!(others(HookKind::Clsact), [false, true]);
    }
    if require::is_kernel(6, 6) {
        let _daemon = Daemon::started(&pair.host, &format!("tc = \"tcx\"\n{}", bound("eth0")));
        assert_eq!(others(HookKind::Tcx), [false, true]);
        foreign.tcx("eth0", Direction::Ingress);
        assert_eq!(others(HookKind::Tcx), [true, true]);
    }
    drop(foreign);
    // Ours, but with another's filter in it when we left it.
    pair.host.netns.run("tc", &["qdisc", "del", "dev", "eth0", "clsact"]).unwrap();
}

#[test]
fn xdp_program_that_drops_is_named() {
    if !ready() {
        return;
    }
    let pair = Pair::new("dropper");
    let daemon = Daemon::started(&pair.host, &bound("eth0"));
    wait_for_base(&daemon, 1);
    let _dropper = drop_all(&pair.host.netns, pair.host.ifindex("eth0"), Place::Xdp);
    pair.send(true, 40);
    daemon.wait("it is named", |daemon| {
        let (code, report) = audit(daemon);
        (code, drifts(&report)) == (0, [("eth0 receive xdp".to_owned(), (40, 40 * 114))].into())
    });
}

#[test]
fn redirect_past_a_veth_is_named() {
    if !ready()
        || !require::met("redirect", require::is_kernel(6, 8), "counted bpf_redirect_peer (Linux 6.8)")
    {
        return;
    }
    let pair = Pair::new("redirect");
    let outside = Netns::new("outside").unwrap();
    pair.host.netns.veth("eth1", &outside, "out1", 1_500).unwrap();
    let daemon = Daemon::started(&pair.host, &bound("eth0"));
    wait_for_base(&daemon, 2);
    let (from, to) = (pair.host.ifindex("eth1"), pair.host.ifindex("eth0"));
    let _redirect = redirect_peer(&pair.host.netns, from, to);
    let socket = RawSocket::open(&outside, "out1").unwrap();
    let frame = between(Mac::local(1), Mac::local(2), &[], 0x88b5, &[0; 100]);
    (0..25).for_each(|_| socket.send(&frame).unwrap());
    let mut last = None;
    daemon.wait("it is named", |daemon| {
        let (code, report) = audit(daemon);
        let found = drifts(&report);
        let packets = found.get("eth0 transmit redirect_peer").map(|drift| drift.0);
        last = Some(format!("{report:?}"));
        code == 0 && packets == Some(25) && found.len() == 1
    });
    drop(last);
}

#[test]
fn traffic_from_before_and_of_another_agent_is_not_ours_to_lose() {
    if !ready() {
        return;
    }
    let pair = Pair::new("before");
    pair.send(true, 60);
    let mut daemon = Daemon::started(&pair.host, &bound("eth0"));
    wait_for_base(&daemon, 1);
    let before = |report: &Report| {
        let row = report.rows.iter().find(|row| row.direction == "receive").unwrap();
        let drift = row.drifts.iter().find(|drift| drift.cause == Cause::AttachedLater);
        drift.map(|drift| (drift.packets, drift.bytes))
    };
    let (code, report) = audit(&daemon);
    assert_eq!(
        (code, before(&report), drifts(&report)),
        (0, Some((60, 60 * 114)), BTreeMap::new()),
        "{report:?}"
    );
    pair.send(true, 40);
    daemon.kill();
    pair.send(true, 30);
    daemon.start();
    daemon.wait_until_ready();
    wait_for_base(&daemon, 1);
    pair.send(true, 20);
    let (code, report) = audit(&daemon);
    assert_eq!((code, before(&report), drifts(&report)), (0, None, BTreeMap::new()), "{report:?}");
    assert_eq!(kernel(&report, "eth0", "receive"), 20);
}

#[test]
fn gap_of_a_hook_that_another_tool_removed_is_reported() {
    if !ready() {
        return;
    }
    let pair = Pair::new("gap");
    let daemon = Daemon::started(&pair.host, &format!("tc = \"clsact\"\n{}", bound("eth0")));
    wait_for_base(&daemon, 1);
    pair.send(true, 10);
    pair.host.netns.run("tc", &["qdisc", "del", "dev", "eth0", "clsact"]).unwrap();
    pair.send(true, 15);
    pair.send(false, 5);
    // A change of addresses has the daemon look at everything.
    pair.host.netns.ip("address add 192.0.2.1/24 dev eth0").unwrap();
    daemon.wait("it is noticed", |daemon| daemon.sample("meter_agent_hooks_lost_total") == Some(2));
    pair.send(true, 20);
    let expected = [("receive", 15), ("transmit", 5)]
        .map(|(direction, packets)| (format!("eth0 {direction} hook_lost"), (packets, packets * 114)));
    daemon.wait("the gap is told", |daemon| {
        let (code, report) = audit(daemon);
        (code, drifts(&report)) == (0, expected.clone().into())
    });
}

#[test]
fn audit_without_an_agent_is_an_error() {
    if !ready() {
        return;
    }
    let host = Host::new("nobody");
    let daemon = Daemon::new(&host, "");
    let output = daemon.run(&["audit"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no agent runs"), "{output:?}");
}

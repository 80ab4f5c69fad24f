//! What the kernel announces of netdevs, addresses and routes, against what a dump says afterwards.

mod bursts;
mod kinds;
mod watch;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use lab::{netns::Netns, require};
use meter_agent::netdev::{Kind, Netdev, NetdevEvent, monitor::Monitor};

use self::{
    kinds::netdev,
    watch::{DEADLINE, Watch, gone, has_dump, ifindex},
};

#[test]
fn each_change_of_a_netdev_is_an_event_and_no_dump() {
    if !require::root() {
        return;
    }
    let netns = Netns::new("events").unwrap();
    let mut watch = Watch::new(&netns);
    let mut port = netdev(20, "port", Kind::Bridge);
    type Change = fn(&mut Netdev);
    let steps: [(&str, Change); 10] = [
        ("link add port index 20 address 02:00:00:00:00:01 mtu 1400 type bridge", |_| {}),
        ("link set port up", |port| port.up = true),
        ("link set port alias one", |port| port.alias = Some("one".to_owned())),
        ("link property add dev port altname two altname three", |port| {
            port.altnames = vec!["two".to_owned(), "three".to_owned()];
        }),
        ("link property del dev port altname two", |port| drop(port.altnames.remove(0))),
        ("link set port address 02:00:00:00:00:02 mtu 1450", |port| {
            port.mac = Some([2, 0, 0, 0, 0, 2]);
            port.mtu = 1450;
        }),
        ("link set port down", |port| port.up = false),
        ("link set port name renamed", |port| port.name = "renamed".to_owned()),
        ("link set renamed up", |port| port.up = true),
        ("link set renamed alias \"\"", |port| port.alias = None),
    ];
    for (line, change) in steps {
        change(&mut port);
        let events = watch.ip(line);
        assert_eq!(events.last(), Some(&NetdevEvent::New(port.clone())), "{line}");
        assert!(gone(&events).is_empty() && !has_dump(&events), "{line}: {events:?}");
    }
    // What changes nothing is no event.
    assert_eq!(watch.ip("link set renamed up"), []);
    let events = watch.ip("link del renamed");
    assert_eq!(events.last(), Some(&NetdevEvent::Gone(20)));
    assert!(!has_dump(&events), "{events:?}");
}

#[test]
fn netdev_that_joins_or_leaves_a_bridge_is_not_gone() {
    if !require::root() {
        return;
    }
    let netns = Netns::new("bridge").unwrap();
    netns.run("ip", &["tuntap", "add", "port", "mode", "tap"]).unwrap();
    netns.ip("link add br0 index 20 type bridge").unwrap();
    let port = ifindex(&netns, "port");
    let mut watch = Watch::new(&netns);
    let master = |watch: &Watch<'_>| watch.table.netdevs[&port].master;
    for _ in 0..3 {
        let events = watch.ip("link set port master br0");
        assert!(gone(&events).is_empty() && !has_dump(&events), "{events:?}");
        assert_eq!(master(&watch), Some(20));
        let events = watch.ip("link set port nomaster");
        assert!(gone(&events).is_empty() && !has_dump(&events), "{events:?}");
        assert_eq!(master(&watch), None);
    }
    watch.ip("link set port master br0");
    let events = watch.ip("link del br0");
    assert_eq!(gone(&events), [20]);
    assert_eq!(master(&watch), None);
}

#[test]
fn netdev_that_moves_away_is_gone_and_its_peer_is_told_apart() {
    if !require::root() {
        return;
    }
    let (netns, other) = (Netns::new("move").unwrap(), Netns::new("move-away").unwrap());
    netns.ip("link add eth0 index 20 type veth peer name eth1 index 21").unwrap();
    let mut watch = Watch::new(&netns);
    let elsewhere = |watch: &Watch<'_>| watch.table.netdevs[&20].kind == Kind::Veth { peer_elsewhere: true };
    assert!(!elsewhere(&watch));

    let events = watch.ip(&format!("link set eth1 netns {}", other.name()));
    assert_eq!(gone(&events), [21]);
    watch.until("the peer is elsewhere", elsewhere);

    other.ip(&format!("link set eth1 netns {}", netns.name())).unwrap();
    watch.until("the peer is back", |watch| !elsewhere(watch) && watch.table.by_name("eth1").is_some());
    let events = watch.settle("move back");
    assert!(gone(&events).is_empty(), "{events:?}");

    // Made from the other side, as a container runtime does.
    other.ip(&format!("link add eth2 type veth peer name eth3 netns {}", netns.name())).unwrap();
    let d = |watch: &Watch<'_>| watch.table.by_name("eth3").map(|d| (d.kind.clone(), d.lower));
    watch.until("a pair with one end here", |watch| {
        d(watch) == Some((Kind::Veth { peer_elsewhere: true }, None))
    });
    watch.settle("a pair with one end here");
}

#[test]
fn addresses_and_default_routes_end_in_a_dump() {
    if !require::root() {
        return;
    }
    let netns = Netns::new("routes").unwrap();
    netns
        .ip("link add eth0 index 20 type veth peer name eth1 index 21\nlink set eth0 up\nlink set eth1 up")
        .unwrap();
    for key in ["eth0", "eth1"] {
        netns.sysctl(&format!("net/ipv6/conf/{key}/disable_ipv6"), "0").unwrap();
    }
    let mut watch = Watch::new(&netns);
    let addresses =
        |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<BTreeSet<IpAddr>>();
    for (line, of_a, routes) in [
        ("addr add 192.0.2.1/24 dev eth0", &["192.0.2.1"][..], &[][..]),
        ("addr add 198.51.100.1 peer 198.51.100.2 dev eth0", &["192.0.2.1", "198.51.100.1"], &[]),
        ("addr del 198.51.100.1 peer 198.51.100.2 dev eth0", &["192.0.2.1"], &[]),
        ("route add default via 192.0.2.2", &["192.0.2.1"], &[20]),
        ("route add default via 192.0.2.2 table 100", &["192.0.2.1"], &[20]),
        ("route add 203.0.113.0/24 dev eth1", &["192.0.2.1"], &[20]),
        ("route del default", &["192.0.2.1"], &[]),
        ("route add default nexthop via 192.0.2.2 dev eth0 nexthop dev eth1", &["192.0.2.1"], &[20, 21]),
        ("route replace default dev eth1", &["192.0.2.1"], &[21]),
        // Its routes go with it, unannounced.
        ("link set eth1 down", &["192.0.2.1"], &[]),
        ("link set eth1 up", &["192.0.2.1"], &[]),
        ("addr add 2001:db8::1/64 dev eth0 nodad", &["192.0.2.1", "2001:db8::1"], &[]),
        ("-6 route add default via 2001:db8::2", &["192.0.2.1", "2001:db8::1"], &[20]),
        ("-6 route add unreachable default metric 9", &["192.0.2.1", "2001:db8::1"], &[20]),
        ("-6 route del default via 2001:db8::2", &["192.0.2.1", "2001:db8::1"], &[]),
        ("nexthop add id 1 via 192.0.2.2 dev eth0", &["192.0.2.1", "2001:db8::1"], &[]),
        ("route add default nhid 1", &["192.0.2.1", "2001:db8::1"], &[20]),
        ("route del default", &["192.0.2.1", "2001:db8::1"], &[]),
        ("addr flush dev eth0", &[], &[]),
    ] {
        let expected = (addresses(of_a), routes.iter().copied().collect::<BTreeSet<u32>>());
        // `ip -batch` takes no `-6`.
        let args: Vec<&str> = line.split(' ').collect();
        netns.run("ip", &args).unwrap();
        watch.until(line, |watch| {
            let of_a = watch.table.addresses.get(&20).cloned().unwrap_or_default();
            (of_a, watch.table.default_routes.clone()) == expected
        });
        watch.settle(line);
    }
}

#[test]
fn monitor_ends_when_it_is_told_or_nobody_listens() {
    if !require::root() {
        return;
    }
    let netns = Netns::new("stop").unwrap();
    let (mut monitor, guard) = netns.run_in(Monitor::new).unwrap().unwrap();
    let (send, events) = mpsc::channel();
    let thread = thread::spawn(move || monitor.run(|event| send.send(event).is_ok()));
    events.recv_timeout(DEADLINE).unwrap();
    let told = Instant::now();
    drop(guard);
    thread.join().unwrap().unwrap();
    assert!(told.elapsed() < Duration::from_secs(1), "{:?}", told.elapsed());

    let (mut monitor, _guard) = netns.run_in(Monitor::new).unwrap().unwrap();
    monitor.run(|_| false).unwrap();
}

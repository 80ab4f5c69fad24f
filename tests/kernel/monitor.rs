//! What the kernel announces of netdevs, addresses and routes, against what a dump says afterwards.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    net::IpAddr,
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use lab::{mac::Mac, netns::Netns, require, tap::Tap, tap::TapMode, tap::TapOptions};
use meter_agent::netdev::{
    Kind, Netdev, NetdevEvent, NetdevTable, TunnelNetdev,
    monitor::{self, Monitor, MonitorError, StopGuard},
};

const DEADLINE: Duration = Duration::from_secs(20);

fn dump(netns: &Netns) -> NetdevTable {
    netns.run_in(monitor::dump).unwrap().unwrap()
}

fn ifindex(netns: &Netns, name: &str) -> u32 {
    dump(netns).by_name(name).unwrap().ifindex
}

/// A monitor at work, and what a receiver makes of its events.
struct Watch<'a> {
    netns: &'a Netns,
    events: Receiver<NetdevEvent>,
    log: Vec<NetdevEvent>,
    table: NetdevTable,
    guard: Option<StopGuard>,
    thread: Option<JoinHandle<Result<(), MonitorError>>>,
}

impl<'a> Watch<'a> {
    /// The receiver takes each event at once.
    fn new(netns: &'a Netns) -> Self {
        let (send, events) = mpsc::channel();
        let (monitor, guard) = netns.run_in(Monitor::new).unwrap().unwrap();
        Self::start(netns, monitor, guard, events, move |event| send.send(event).is_ok())
    }

    /// The receiver holds the monitor up at each event until the test takes it.
    fn held_back(netns: &'a Netns, receive_buffer: usize) -> Self {
        let (send, events) = mpsc::sync_channel(0);
        let opened = netns.run_in(|| Monitor::with_receive_buffer(receive_buffer)).unwrap();
        let (monitor, guard) = opened.unwrap();
        Self::start(netns, monitor, guard, events, move |event| send.send(event).is_ok())
    }

    fn start(
        netns: &'a Netns,
        mut monitor: Monitor,
        guard: StopGuard,
        events: Receiver<NetdevEvent>,
        send: impl FnMut(NetdevEvent) -> bool + Send + 'static,
    ) -> Self {
        let thread = Some(thread::spawn(move || monitor.run(send)));
        let (log, table) = (Vec::new(), NetdevTable::default());
        let mut watch = Self { netns, events, log, table, guard: Some(guard), thread };
        watch.until("the first dump", |watch| !watch.log.is_empty());
        assert_eq!(watch.log, [NetdevEvent::All(dump(netns))]);
        watch.log.clear();
        watch
    }

    /// Takes events until this holds.
    fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}; events: {:#?}", self.log);
            match self.events.recv_timeout(Duration::from_millis(50)) {
                Ok(event) => {
                    self.table.apply(event.clone());
                    self.log.push(event);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(error) => panic!("{what}: {error}"),
            }
        }
    }

    /// Takes events until the table is what a dump says, and returns them.
    fn settle(&mut self, what: &str) -> Vec<NetdevEvent> {
        self.until(what, |watch| watch.table == dump(watch.netns));
        std::mem::take(&mut self.log)
    }

    /// Runs lines of `ip -batch`, and returns the events until the table is what a dump says.
    fn ip(&mut self, batch: &str) -> Vec<NetdevEvent> {
        self.netns.ip(batch).unwrap();
        self.settle(batch)
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            return;
        }
        drop(self.guard.take());
        let ended = self.thread.take().unwrap().join();
        ended.unwrap().unwrap();
    }
}

fn gone(events: &[NetdevEvent]) -> Vec<u32> {
    let gone = |event: &NetdevEvent| match event {
        NetdevEvent::Gone(ifindex) => Some(*ifindex),
        _ => None,
    };
    events.iter().filter_map(gone).collect()
}

fn has_dump(events: &[NetdevEvent]) -> bool {
    events.iter().any(|event| matches!(event, NetdevEvent::All(_)))
}

fn netdev(ifindex: u32, name: &str, kind: Kind) -> Netdev {
    Netdev {
        ifindex,
        name: name.to_owned(),
        kind,
        driver: None,
        mac: Some([2, 0, 0, 0, 0, 1]),
        alias: None,
        altnames: Vec::new(),
        master: None,
        lower: None,
        up: false,
        mtu: 1400,
    }
}

fn loopback() -> Netdev {
    Netdev { mac: Some([0; 6]), up: true, mtu: 65536, ..netdev(1, "lo", Kind::Loopback) }
}

fn loopback_addresses() -> BTreeSet<IpAddr> {
    ["127.0.0.1", "::1"].map(|address| address.parse().unwrap()).into()
}

fn tunnel(kind: &str, vni: Option<u32>, local: Option<&str>, udp_port: Option<u16>) -> Kind {
    let local = local.map(|local| local.parse().unwrap());
    Kind::Tunnel(TunnelNetdev { kind: kind.to_owned(), vni, local, udp_port })
}

#[test]
fn every_kind_that_this_kernel_has_is_known_for_what_it_is() {
    if !require::root() {
        return;
    }
    let (here, there) = (Netns::new("kinds").unwrap(), Netns::new("kinds-peer").unwrap());
    here.ip("link add base index 10 address 02:00:00:00:00:01 mtu 1400 type bridge").unwrap();
    let mut netdevs = BTreeMap::from([(1, loopback()), (10, netdev(10, "base", Kind::Bridge))]);

    let above = |kind| Netdev { lower: Some(10), ..netdev(0, "", kind) };
    let alone = |kind| netdev(0, "", kind);
    let layer3 = || Netdev { mac: None, ..netdev(0, "", Kind::Layer3) };
    let other = |word: &str| netdev(0, "", Kind::Other(word.to_owned()));
    for (word, details, expected) in [
        ("dummy", "", alone(Kind::Dummy)),
        ("bond", "", alone(Kind::Bond)),
        ("team", "", alone(Kind::Bond)),
        ("ifb", "", other("ifb")),
        ("vrf", "table 10", other("vrf")),
        ("vlan", "id 5", above(Kind::Vlan)),
        ("macvlan", "mode private", above(Kind::Macvlan)),
        ("macvtap", "mode private", above(Kind::Macvlan)),
        (
            "vxlan",
            "id 5 local 192.0.2.1 dstport 4789",
            alone(tunnel("vxlan", Some(5), Some("192.0.2.1"), Some(4789))),
        ),
        (
            "vxlan",
            "id 6 local 2001:db8::1 dstport 4790",
            alone(tunnel("vxlan", Some(6), Some("2001:db8::1"), Some(4790))),
        ),
        ("vxlan", "external dstport 8472", alone(tunnel("vxlan", None, None, Some(8472)))),
        (
            "vxlan",
            "id 7 dev base local 192.0.2.1 dstport 4791",
            above(tunnel("vxlan", Some(7), Some("192.0.2.1"), Some(4791))),
        ),
        ("geneve", "id 7 remote 192.0.2.2", alone(tunnel("geneve", Some(7), None, Some(6081)))),
        ("geneve", "external dstport 6082", alone(tunnel("geneve", None, None, Some(6082)))),
        (
            "gretap",
            "local 192.0.2.1 remote 192.0.2.2 key 9",
            alone(tunnel("gretap", Some(9), Some("192.0.2.1"), None)),
        ),
        (
            "gretap",
            "local 192.0.2.1 remote 192.0.2.3",
            alone(tunnel("gretap", Some(0), Some("192.0.2.1"), None)),
        ),
        ("gretap", "external", alone(tunnel("gretap", None, None, None))),
        (
            "ip6gretap",
            "local 2001:db8::1 remote 2001:db8::2 key 9",
            alone(tunnel("ip6gretap", Some(9), Some("2001:db8::1"), None)),
        ),
        ("gre", "local 192.0.2.1 remote 192.0.2.2", layer3()),
        ("ipip", "local 192.0.2.1 remote 192.0.2.2", layer3()),
        ("sit", "local 192.0.2.1 remote 192.0.2.2", layer3()),
        ("wireguard", "", layer3()),
    ] {
        let ifindex = 20 + u32::try_from(netdevs.len()).unwrap();
        let name = format!("{word}{ifindex}");
        let address = if expected.mac.is_some() { "address 02:00:00:00:00:01" } else { "" };
        let on = if matches!(word, "vlan" | "macvlan" | "macvtap") { "link base" } else { "" };
        let line =
            format!("link add {on} name {name} index {ifindex} {address} mtu 1400 type {word} {details}");
        match here.ip(&line) {
            Ok(()) => drop(netdevs.insert(ifindex, Netdev { ifindex, name, ..expected })),
            Err(error) => {
                let known = require::met(word, false, &format!("netdevs of kind {word} ({error})"));
                assert!(!known);
            }
        }
    }

    let veth = |elsewhere| Kind::Veth { peer_elsewhere: elsewhere };
    let place = there.name();
    here.ip(&format!(
        "link add a index 100 address 02:00:00:00:00:01 mtu 1400 type veth \
         peer name b index 101 address 02:00:00:00:00:01 mtu 1400\n\
         link add c index 102 address 02:00:00:00:00:01 mtu 1400 type veth peer name c netns {place}"
    ))
    .unwrap();
    netdevs.insert(100, Netdev { lower: Some(101), ..netdev(100, "a", veth(false)) });
    netdevs.insert(101, Netdev { lower: Some(100), ..netdev(101, "b", veth(false)) });
    netdevs.insert(102, netdev(102, "c", veth(true)));

    let options = TapOptions { name: "tap0", mode: TapMode::Wire, mac: Mac([2, 0, 0, 0, 0, 1]), mtu: 1400 };
    let _tap = Tap::new(&here, &options).unwrap();
    here.run("ip", &["tuntap", "add", "tun0", "mode", "tun"]).unwrap();
    let (tap, tun) = (ifindex(&here, "tap0"), ifindex(&here, "tun0"));
    netdevs.insert(tap, Netdev { up: true, ..netdev(tap, "tap0", Kind::Tap) });
    netdevs.insert(tun, Netdev { mac: None, mtu: 1500, ..netdev(tun, "tun0", Kind::Layer3) });

    let mut found = dump(&here);
    // Modules bring netdevs of their own, such as `gre0`.
    found.netdevs.retain(|ifindex, netdev| netdevs.contains_key(ifindex) || !is_fallback(&netdev.name));
    let expected = NetdevTable {
        netdevs,
        addresses: BTreeMap::from([(1, loopback_addresses())]),
        default_routes: BTreeSet::new(),
    };
    assert_eq!(found, expected);
}

/// Netdevs that a module makes in every namespace.
fn is_fallback(name: &str) -> bool {
    ["gre0", "gretap0", "erspan0", "ip6gre0", "ip6tnl0", "sit0", "tunl0", "ip_vti0", "ip6_vti0"]
        .contains(&name)
}

#[test]
fn physical_netdev_has_the_driver_that_sysfs_shows() {
    let table = monitor::dump().unwrap();
    for netdev in table.netdevs.values().filter(|netdev| netdev.kind == Kind::Physical) {
        let link = fs::read_link(format!("/sys/class/net/{}/device/driver", netdev.name)).ok();
        let expected = link.map(|link| link.file_name().unwrap().to_str().unwrap().to_owned());
        assert_eq!(netdev.driver, expected, "{}", netdev.name);
    }
}

#[test]
fn each_change_of_a_netdev_is_an_event_and_no_dump() {
    if !require::root() {
        return;
    }
    let netns = Netns::new("events").unwrap();
    let mut watch = Watch::new(&netns);
    let mut port = Netdev { ..netdev(20, "port", Kind::Bridge) };
    let steps: [(&str, fn(&mut Netdev)); 10] = [
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
        ("link set renamed alias \"\"", |port| port.alias = None),
        ("link set renamed up", |port| port.up = true),
    ];
    for (line, change) in steps {
        change(&mut port);
        let events = watch.ip(line);
        assert_eq!(events.last(), Some(&NetdevEvent::New(port.clone())), "{line}");
        assert!(gone(&events).is_empty() && !has_dump(&events), "{line}: {events:?}");
    }
    // What changes nothing is no event.
    assert_eq!(watch.ip("link set renamed up"), []);
    assert_eq!(watch.ip("link del renamed"), [NetdevEvent::Gone(20)]);
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
    netns.ip("link add a index 20 type veth peer name b index 21").unwrap();
    let mut watch = Watch::new(&netns);
    let elsewhere = |watch: &Watch<'_>| watch.table.netdevs[&20].kind == Kind::Veth { peer_elsewhere: true };
    assert!(!elsewhere(&watch));

    let events = watch.ip(&format!("link set b netns {}", other.name()));
    assert_eq!(gone(&events), [21]);
    watch.until("the peer is elsewhere", elsewhere);

    other.ip(&format!("link set b netns {}", netns.name())).unwrap();
    watch.until("the peer is back", |watch| !elsewhere(watch) && watch.table.by_name("b").is_some());
    let events = watch.settle("move back");
    assert!(gone(&events).is_empty(), "{events:?}");

    // Made from the other side, as a container runtime does.
    other.ip(&format!("link add c type veth peer name d netns {}", netns.name())).unwrap();
    let d = |watch: &Watch<'_>| watch.table.by_name("d").map(|d| (d.kind.clone(), d.lower));
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
    netns.ip("link add a index 20 type veth peer name b index 21\nlink set a up\nlink set b up").unwrap();
    for key in ["a", "b"] {
        netns.sysctl(&format!("net/ipv6/conf/{key}/disable_ipv6"), "0").unwrap();
    }
    let mut watch = Watch::new(&netns);
    let addresses =
        |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<BTreeSet<IpAddr>>();
    for (line, of_a, routes) in [
        ("addr add 192.0.2.1/24 dev a", &["192.0.2.1"][..], &[][..]),
        ("addr add 198.51.100.1 peer 198.51.100.2 dev a", &["192.0.2.1", "198.51.100.1"], &[]),
        ("addr del 198.51.100.1 peer 198.51.100.2 dev a", &["192.0.2.1"], &[]),
        ("route add default via 192.0.2.2", &["192.0.2.1"], &[20]),
        ("route add default via 192.0.2.2 table 100", &["192.0.2.1"], &[20]),
        ("route add 203.0.113.0/24 dev b", &["192.0.2.1"], &[20]),
        ("route del default", &["192.0.2.1"], &[]),
        ("route add default nexthop via 192.0.2.2 dev a nexthop dev b", &["192.0.2.1"], &[20, 21]),
        ("route replace default dev b", &["192.0.2.1"], &[21]),
        // Its routes go with it, unannounced.
        ("link set b down", &["192.0.2.1"], &[]),
        ("link set b up", &["192.0.2.1"], &[]),
        ("addr add 2001:db8::1/64 dev a nodad", &["192.0.2.1", "2001:db8::1"], &[]),
        ("-6 route add default via 2001:db8::2", &["192.0.2.1", "2001:db8::1"], &[20]),
        ("-6 route add unreachable default metric 9", &["192.0.2.1", "2001:db8::1"], &[20]),
        ("-6 route del default via 2001:db8::2", &["192.0.2.1", "2001:db8::1"], &[]),
        ("nexthop add id 1 via 192.0.2.2 dev a", &["192.0.2.1", "2001:db8::1"], &[]),
        ("route add default nhid 1", &["192.0.2.1", "2001:db8::1"], &[20]),
        ("addr flush dev a", &[], &[]),
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
fn burst_of_addresses_ends_in_few_dumps() {
    if !require::root() {
        return;
    }
    let netns = Netns::new("addresses").unwrap();
    netns.ip("link add br0 type bridge").unwrap();
    let mut watch = Watch::new(&netns);
    let mut batch = String::new();
    for n in 1..=200 {
        writeln!(batch, "addr add 10.0.0.{n}/32 dev br0").unwrap();
    }
    let events = watch.ip(&batch);
    let dumps = events.iter().filter(|event| matches!(event, NetdevEvent::All(_))).count();
    assert_eq!(dumps, events.len());
    assert!(dumps <= 20, "{dumps} dumps");
}

#[test]
fn overrun_is_told_and_then_a_dump_that_has_everything() {
    if !require::root() {
        return;
    }
    let netns = Netns::new("overrun").unwrap();
    netns.ip("link add br0 index 20 type bridge").unwrap();
    let mut watch = Watch::held_back(&netns, 4096);
    let mut batch = String::new();
    for n in 1..=300 {
        writeln!(batch, "link set br0 alias number-{n}").unwrap();
    }
    batch.push_str("link add br1 type bridge\nlink add br2 type bridge\nlink del br1\n");
    netns.ip(&batch).unwrap();
    watch.until("the overrun", |watch| watch.log.contains(&NetdevEvent::Overrun));
    watch.until("the dump after it", |watch| matches!(watch.log.last(), Some(NetdevEvent::All(_))));
    assert_eq!(watch.table, dump(&netns));
    let at = watch.log.iter().position(|event| *event == NetdevEvent::Overrun);
    assert!(at < watch.log.iter().rposition(|event| matches!(event, NetdevEvent::All(_))), "{:?}", watch.log);
    let alias = watch.table.netdevs[&20].alias.clone();
    assert_eq!(alias.as_deref(), Some("number-300"));
}

#[test]
fn burst_of_veths_ends_in_what_a_dump_says() {
    if !require::root() {
        return;
    }
    let netns = Netns::new("burst").unwrap();
    let mut watch = Watch::new(&netns);
    let mut batch = String::new();
    for n in 0..500 {
        writeln!(batch, "link add a{n} group 7 type veth peer name b{n}").unwrap();
    }
    watch.ip(&batch);
    assert_eq!(watch.table.netdevs.len(), 1001);
    batch.clear();
    for n in 0..50 {
        writeln!(batch, "link del a{n}\nlink add a{n} group 7 type veth peer name c{n}").unwrap();
    }
    batch.push_str("link del group 7\n");
    watch.ip(&batch);
    assert_eq!(watch.table.netdevs, BTreeMap::from([(1, loopback())]));
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

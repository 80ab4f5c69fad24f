//! The daemon keeps its hooks, whatever is done to its netdevs.

use lab::{mac::Mac, netns::Netns, traffic::RawSocket};
use nix::sys::signal::Signal;

use super::{Daemon, Host, PORT, bound, ready};
use crate::support::frames::between;

/// Another port.
const OTHER: &str = "33333333-0000-4000-8000-000000000003";

/// A host with a port, `eth0`, and whoever is at the other end.
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

    /// Sends so many frames each way and asserts that the port counts exactly these.
    fn count(&self, daemon: &Daemon<'_>, frames: u64) {
        let zero = daemon.port(PORT).unwrap();
        for (netns, netdev) in [(&self.peer, "peer0"), (&self.host.netns, "eth0")] {
            let socket = RawSocket::open(netns, netdev).unwrap();
            let frame = between(Mac::local(1), Mac::local(2), &[], 0x88b5, &[0; 100]);
            (0..frames).for_each(|_| socket.send(&frame).unwrap());
        }
        let expected = zero.map(|(packets, bytes)| (packets + frames, bytes + frames * 114));
        daemon.wait("the frames are through", |daemon| daemon.port(PORT) == Some(expected));
    }
}

#[test]
fn hooks_that_another_tool_removed_come_back() {
    if !ready() {
        return;
    }
    let pair = Pair::new("removed");
    let daemon = Daemon::started(&pair.host, &format!("tc = \"clsact\"\n{}", bound("eth0")));
    pair.count(&daemon, 5);
    let all = pair.host.hooks();
    pair.host.netns.run("tc", &["qdisc", "del", "dev", "eth0", "clsact"]).unwrap();
    assert_eq!(pair.host.hooks(), [""; 0]);
    // A change of addresses has the daemon look at everything.
    pair.host.netns.ip("address add 192.0.2.1/24 dev eth0").unwrap();
    daemon.wait("the hooks are back", |_| pair.host.hooks() == all);
    daemon.wait("it says so", |daemon| daemon.sample("meter_agent_hooks_lost_total") == Some(2));
    let said = daemon.log().lines().filter(|line| line.contains("another tool removed the hook")).count();
    assert_eq!(said, 2, "{}", daemon.log());
    pair.count(&daemon, 7);
}

#[test]
fn netdev_that_is_another_under_the_same_number_and_name_is_metered() {
    if !ready() {
        return;
    }
    for tc in ["auto", "clsact"] {
        let pair = Pair::new(&format!("renewed-{tc}"));
        let daemon = Daemon::started(&pair.host, &format!("tc = \"{tc}\"\n{}", bound("eth0")));
        pair.count(&daemon, 5);
        let all = pair.host.hooks();
        let (ifindex, peer) = (pair.host.ifindex("eth0"), pair.peer.name());
        for _ in 0..3 {
            pair.host
                .netns
                .ip(&format!(
                    "link del eth0\nlink add eth0 index {ifindex} type veth peer name peer0 netns {peer}\n\
                     link set eth0 up"
                ))
                .unwrap();
            pair.peer.ip("link set peer0 up").unwrap();
            daemon.wait("it is hooked", |_| pair.host.hooks() == all);
            pair.count(&daemon, 7);
        }
        let elsewhere = Netns::new("elsewhere").unwrap();
        pair.host.netns.ip(&format!("link set eth0 netns {}", elsewhere.name())).unwrap();
        elsewhere.ip(&format!("link set eth0 netns {}", pair.host.netns.name())).unwrap();
        pair.host.netns.ip("link set eth0 up").unwrap();
        let log = |daemon: &Daemon<'_>| daemon.log().matches(" attached ").count();
        daemon.wait("it is hooked", |daemon| pair.host.hooks() == all && log(daemon) == 5);
        pair.count(&daemon, 7);
    }
}

#[test]
fn bindings_that_change_places_lose_no_frame() {
    if !ready() {
        return;
    }
    let pair = Pair::new("places");
    pair.host.netns.veth("eth1", &pair.peer, "peer1", 1_500).unwrap();
    let bindings = |ports: [&str; 2]| -> String {
        let netdevs = ["eth0", "eth1"].into_iter().zip(ports);
        netdevs
            .map(|(netdev, port)| format!("[[binding]]\nnetdev = \"{netdev}\"\nport = \"{port}\"\n"))
            .collect()
    };
    let daemon = Daemon::started(&pair.host, &bindings([PORT, OTHER]));
    let received = |daemon: &Daemon<'_>| -> u64 {
        [PORT, OTHER].iter().map(|port| daemon.port(port).unwrap()[0].0).sum()
    };
    let (all, before) = (pair.host.hooks(), received(&daemon));
    let socket = RawSocket::open(&pair.peer, "peer0").unwrap();
    let frame = between(Mac::local(1), Mac::local(2), &[], 0x88b5, &[0; 100]);
    let mut frames = 0;
    let info = |port: &str, netdev: &str| format!("meter_port_info{{port=\"{port}\",netdev=\"{netdev}\"");
    for ports in [[OTHER, PORT], [PORT, OTHER]] {
        daemon.configure(&bindings(ports));
        daemon.signal(Signal::SIGHUP);
        daemon.wait("the ports have changed places", |daemon| {
            (0..500).for_each(|_| socket.send(&frame).unwrap());
            frames += 500;
            let text = daemon.get("/metrics");
            ports.iter().zip(["eth0", "eth1"]).all(|(port, netdev)| text.contains(&info(port, netdev)))
        });
        assert_eq!(pair.host.hooks(), all);
    }
    daemon.wait("the frames are through", |daemon| received(daemon) >= before + frames);
    assert_eq!(received(&daemon), before + frames);
    assert_eq!(daemon.sample("meter_agent_unbound_packets_total{direction=\"receive\"}"), Some(0));
    assert!(!daemon.log().contains("detached"), "{}", daemon.log());
    assert_eq!(daemon.log().matches("exchanged ports").count(), 4, "{}", daemon.log());
}

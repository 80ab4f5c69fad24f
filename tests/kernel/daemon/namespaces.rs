//! Netdevs in named network namespaces: one agent on the host, the real namespaces, and what crossed to the frame.

mod churn;
mod errors;
mod nameless;
mod pins;
mod restarts;
mod rights;

use std::{collections::BTreeMap, path::Path, thread, time::Duration};

use lab::{
    mac::Mac,
    netdev::{Tunnel, TunnelKind, TunnelMode},
    netns::Netns,
    traffic::RawSocket,
};

use super::{Daemon, Host, bound, ready};
use crate::support::{
    auto_kind,
    frames::{IPV4, UDP, between, ethernet, ipv4, udp},
};

/// Bytes of a frame.
const BYTES: u64 = 114;

/// Says that the namespaces of a test are followed, all but those whose label ends in `out`.
fn follow(label: &str) -> String {
    let pid = std::process::id();
    format!("[namespaces]\ninclude = [\"meter-lab-{pid}-{label}-*\"]\nexclude = [\"*-out\"]\n")
}

/// Starts a daemon, and waits until everything is attached.
fn started<'a>(host: &'a Host, more: &str) -> Daemon<'a> {
    let mut daemon = Daemon::new(host, more);
    start(&mut daemon);
    daemon
}

fn start(daemon: &mut Daemon<'_>) {
    daemon.start();
    daemon.wait_until_ready();
}

/// A namespace with a netdev `eth0`, whose other end is in a namespace of its own.
pub(super) struct Router {
    netns: Netns,
    outside: Netns,
}

impl Router {
    fn new(label: &str) -> Self {
        let router = Self { netns: Netns::new(label).unwrap(), outside: Netns::new("beyond").unwrap() };
        router.plug("eth0");
        router
    }

    fn plug(&self, netdev: &str) {
        self.netns.veth(netdev, &self.outside, &format!("{netdev}-there"), 1_500).unwrap();
    }

    /// Lets frames come in and go out at a netdev.
    fn cross(&self, netdev: &str, in_frames: u64, out_frames: u64) {
        cross(&self.netns, netdev, &self.outside, &format!("{netdev}-there"), in_frames, out_frames);
    }

    fn ifindex(&self, netdev: &str) -> u32 {
        self.netns.run_in(|| nix::net::if_::if_nametoindex(netdev)).unwrap().unwrap()
    }

    /// Returns what hangs on a netdev: `tcx ingress meter_ns_in` and the like.
    fn hooks(&self, netdev: &str) -> Vec<String> {
        crate::support::hooks::hooks_in(&self.netns, netdev).unwrap()
    }
}

fn cross(here: &Netns, netdev: &str, there: &Netns, peer: &str, in_frames: u64, out_frames: u64) {
    let frame = between(Mac::local(1), Mac::local(2), &[], 0x88b5, &[0; 100]);
    for (netns, netdev, frames) in [(there, peer, in_frames), (here, netdev, out_frames)] {
        let socket = RawSocket::open(netns, netdev).unwrap();
        (0..frames).for_each(|_| socket.send(&frame).unwrap());
    }
}

/// Returns the port of a netdev of a namespace, by its `_info`.
fn port_of(daemon: &Daemon<'_>, netns: &str, netdev: &str) -> Option<String> {
    let text = daemon.get("/metrics");
    let place = if netns.is_empty() { String::new() } else { format!("netns=\"{netns}\",") };
    let labels = format!("netdev=\"{netdev}\",{place}ifindex=");
    let infos = text.lines().filter_map(|line| line.strip_prefix("meter_port_info{port=\""));
    let mut ports = infos.filter_map(|line| line.split_once("\","));
    ports.find(|(_, rest)| rest.starts_with(&labels)).map(|(port, _)| port.to_owned())
}

pub(super) fn wait_for_port(daemon: &Daemon<'_>, netns: &Netns, netdev: &str) -> String {
    daemon.wait("the netdev is metered", |daemon| port_of(daemon, netns.name(), netdev).is_some());
    port_of(daemon, netns.name(), netdev).unwrap()
}

/// Frames in and out, by port.
type Frames = BTreeMap<String, [u64; 2]>;

/// Returns the frames of every port; each has [`BYTES`].
fn frames(daemon: &Daemon<'_>) -> Frames {
    let text = daemon.get("/metrics");
    let mut frames = Frames::new();
    for (place, direction) in ["receive", "transmit"].into_iter().enumerate() {
        let value = |what: &str| -> BTreeMap<String, u64> {
            let prefix = format!("meter_port_{direction}_{what}_total{{port=\"");
            let lines = text.lines().filter_map(|line| line.strip_prefix(&prefix)?.split_once("\"} "));
            lines.map(|(port, value)| (port.to_owned(), value.parse().unwrap())).collect()
        };
        let bytes = value("bytes");
        for (port, packets) in value("packets") {
            assert_eq!(bytes[&port], packets * BYTES, "{port} {direction}");
            frames.entry(port).or_default()[place] = packets;
        }
    }
    frames
}

fn wait_for_frames(daemon: &Daemon<'_>, expected: &[(&String, [u64; 2])], what: &str) {
    let expected: Frames = expected.iter().map(|(port, frames)| ((*port).clone(), *frames)).collect();
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    while frames(daemon) != expected && std::time::Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(frames(daemon), expected, "{what}\n{}", daemon.log());
}

/// The host's netdev and those of two namespaces, one of which comes later, have the same number and name.
fn discover(label: &str, tc: &str, kind: &str) {
    let host = Host::new(label);
    let outside = Netns::new("beyond").unwrap();
    host.netns.veth("eth0", &outside, "eth0-there", 1_500).unwrap();
    let red = Router::new(&format!("{label}-red"));
    let left_out = Router::new(&format!("{label}-out"));
    let daemon = started(&host, &format!("tc = \"{tc}\"\n{}", follow(label)));
    let of_host = port_of(&daemon, "", "eth0").unwrap();
    let of_red = port_of(&daemon, red.netns.name(), "eth0").expect("ready is when it is attached");
    let blue = Router::new(&format!("{label}-blue"));
    let of_blue = wait_for_port(&daemon, &blue.netns, "eth0");
    assert_eq!([red.ifindex("eth0"), blue.ifindex("eth0")], [host.ifindex("eth0"); 2]);
    assert_eq!(daemon.sample("meter_agent_namespaces"), Some(2));
    assert_eq!(daemon.sample("meter_agent_namespaces_failed"), Some(0));
    let direction = |netdev: &str, direction: &str| format!("{netdev} {kind} {direction}");
    for router in [&red, &blue] {
        let hooks = router.hooks("eth0");
        for way in ["ingress", "egress"] {
            assert!(hooks.iter().any(|hook| hook.starts_with(&direction("eth0", way))), "{hooks:?}");
        }
    }
    assert_eq!(left_out.hooks("eth0"), [""; 0]);

    left_out.cross("eth0", 9, 9);
    red.cross("eth0", 3, 5);
    blue.cross("eth0", 70, 110);
    cross(&host.netns, "eth0", &outside, "eth0-there", 1_300, 1_700);
    let all = [(&of_host, [1_300, 1_700]), (&of_red, [3, 5]), (&of_blue, [70, 110])];
    wait_for_frames(&daemon, &all, "each in its own port");

    // A second netdev is plugged into one of them, and the first one is unplugged.
    red.plug("eth1");
    let second = wait_for_port(&daemon, &red.netns, "eth1");
    red.cross("eth1", 2, 1);
    red.netns.ip("link del eth0").unwrap();
    daemon.wait("it is gone", |daemon| port_of(daemon, red.netns.name(), "eth0").is_none());
    let all = [(&of_host, [1_300, 1_700]), (&of_red, [3, 5]), (&of_blue, [70, 110]), (&second, [2, 1])];
    wait_for_frames(&daemon, &all, "a netdev that has gone leaves its total");
    assert_eq!(daemon.sample("meter_agent_unbound_packets_total{direction=\"receive\"}"), Some(0));
    assert!(!daemon.get("/metrics").contains("meter_agent_attach_failures_total{"), "{}", daemon.log());

    let listed = String::from_utf8(daemon.run(&["ls"]).stdout).unwrap();
    let is_row =
        |line: &&str| line.starts_with("eth0 ") && line.contains(&format!(" {} ", blue.netns.name()));
    let row = listed.lines().find(is_row).unwrap_or_default();
    assert!(listed.starts_with("NETDEV  ") && listed.contains("  NETNS  "), "{listed}");
    assert!(row.contains(&format!(" {kind} ")) && row.contains(&of_blue), "{listed}");
    let json: serde_json::Value = serde_json::from_slice(&daemon.run(&["ls", "--json"]).stdout).unwrap();
    let in_blue = |netdev: &&serde_json::Value| netdev["netns"] == blue.netns.name();
    let blues: Vec<_> = json.as_array().unwrap().iter().filter(in_blue).collect();
    let eth0 = blues.iter().find(|netdev| netdev["netdev"] == "eth0").unwrap();
    assert_eq!((eth0["port"].as_str(), eth0["ingress"].as_str()), (Some(&*of_blue), Some(kind)));

    // `meter-agent audit` looks there too.
    let audit = daemon.run(&["audit"]);
    let said = String::from_utf8_lossy(&audit.stdout).into_owned();
    assert!(audit.status.success(), "{said}");
    let rows = said.lines().filter(|line| line.contains(blue.netns.name())).count();
    assert_eq!(rows, 2, "{said}");

    drop(daemon);
    // What is detached is gone from the namespaces as well.
    let detached = Daemon::new(&host, &follow(label)).run(&["detach"]);
    assert!(detached.status.success(), "{detached:?}");
    assert_eq!([red.hooks("eth1"), blue.hooks("eth0")], [[""; 0]; 2]);
}

#[test]
fn namespaces_are_discovered_and_never_mixed() {
    if ready() {
        discover("nsd", "auto", auto_kind().name());
    }
}

#[test]
fn namespaces_are_discovered_and_never_mixed_by_clsact() {
    if ready() {
        discover("nsdc", "clsact", "clsact");
    }
}

#[test]
fn meters_of_ones_own_count_in_namespaces() {
    if !ready() {
        return;
    }
    let host = Host::new("nsm");
    let red = Router::new("nsm-red");
    red.plug("eth1");
    let meter = |name: &str, rule: &str| format!("[[meter]]\nname = \"{name}\"\nrules = [\"{rule}\"]\n");
    let first = follow("nsm");
    let daemon = started(&host, &first);
    let [eth0, eth1] = ["eth0", "eth1"].map(|netdev| wait_for_port(&daemon, &red.netns, netdev));
    red.cross("eth0", 1, 0);
    let rules = [
        meter("in", &format!("ethertype 34997 in-ports {eth0}")),
        meter("out", &format!("ethertype 34997 out-ports {eth1}")),
        meter("other", "ethertype 34998"),
    ];
    daemon.configure(&format!("{first}{}", rules.concat()));
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    daemon.wait("they count", |daemon| daemon.get("/metrics").contains("{meter=\"other\"}"));
    let hooked = |netdev: &str| red.hooks(netdev).iter().any(|hook| hook.contains("meter_user_nin"));
    if auto_kind().name() == "tcx" {
        daemon.wait("by their programs", |_| hooked("eth0") && hooked("eth1"));
    }
    red.cross("eth0", 7, 11);
    red.cross("eth1", 13, 17);
    let count = |name: &str| daemon.sample(&format!("meter_user_packets_total{{meter=\"{name}\"}}"));
    daemon.wait("all have crossed", |daemon| {
        frames(daemon) == Frames::from([(eth0.clone(), [8, 11]), (eth1.clone(), [13, 17])])
    });
    assert_eq!(["in", "out", "other"].map(count), [Some(7), Some(17), Some(0)]);
    // Netdevs that come now have these programs at once.
    red.plug("eth2");
    let eth2 = wait_for_port(&daemon, &red.netns, "eth2");
    red.cross("eth2", 2, 2);
    daemon.wait("it counts", |daemon| frames(daemon).get(&eth2) == Some(&[2, 2]));
    assert_eq!(["in", "out", "other"].map(count), [Some(7), Some(17), Some(0)]);
    daemon.configure(&first);
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    if auto_kind().name() == "tcx" {
        daemon.wait("they have gone", |_| !hooked("eth0") && !hooked("eth2"));
    }
    red.cross("eth0", 1, 1);
    daemon.wait("the port counts on", |daemon| frames(daemon).get(&eth0) == Some(&[9, 12]));
}

#[test]
fn rules_of_connections_name_ports_of_namespaces() {
    if !ready() {
        return;
    }
    let host = Host::new("nsadm");
    let red = Router::new("nsadm-red");
    red.plug("eth1");
    let first = follow("nsadm");
    let daemon = started(&host, &first);
    let ports = ["eth0", "eth1"].map(|netdev| wait_for_port(&daemon, &red.netns, netdev));
    let rules = format!("[connections]\nroles = [\"port\"]\nrules = [\"proto 17 in-ports {}\"]\n", ports[0]);
    daemon.configure(&format!("{first}{rules}"));
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    let others = |daemon: &Daemon<'_>| {
        let family = "meter_connection_other_packets_total";
        ports
            .each_ref()
            .map(|port| daemon.sample(&format!("{family}{{port=\"{port}\",direction=\"receive\"}}")))
    };
    daemon.wait("connections are counted", |daemon| others(daemon) == [Some(0); 2]);
    for (netdev, frames) in [("eth0", 3), ("eth1", 5)] {
        let frame = ethernet(&[], IPV4, &ipv4(UDP, &udp(53, &[0; 60])));
        let socket = RawSocket::open(&red.outside, &format!("{netdev}-there")).unwrap();
        (0..frames).for_each(|_| socket.send(&frame).unwrap());
    }
    daemon.wait("one is refused", |daemon| others(daemon) == [Some(0), Some(5)]);
    let text = daemon.get("/metrics");
    let mut named = text.lines().filter(|line| line.starts_with("meter_connection_packets_total{"));
    let line = named.find(|line| line.contains("initiator_to_target")).unwrap();
    assert!(line.contains(&ports[0]) && line.ends_with(" 3"), "{text}");
    assert!(!text.contains(&format!("meter_connection_packets_total{{port=\"{}\"", ports[1])), "{text}");
}

/// A tunnel that ends where it begins: what goes into it comes out of it.
#[test]
fn overlay_networks_of_namespaces_count_by_their_vni() {
    if !ready() {
        return;
    }
    let (host, red) = (Host::new("nsv"), Netns::new("nsv-red").unwrap());
    red.ip("link set lo up").unwrap();
    let here = std::net::Ipv4Addr::LOCALHOST.into();
    let mode = TunnelMode::Fixed { vni: 7, local: here, remote: here };
    let encap = TunnelKind::Vxlan { udp_port: 4789 };
    red.tunnel(&Tunnel { name: "vxlan7", encap, mode, mtu: 1_400 }).unwrap();
    let rules =
        [("from", "vni 7"), ("to", "vni 7 direction tx"), ("other", "vni !7"), ("any", "ethertype 34997")];
    let meter = |(name, rule)| format!("[[meter]]\nname = \"{name}\"\nrules = [\"{rule}\"]\n");
    let daemon = started(&host, &format!("{}{}", follow("nsv"), rules.map(meter).concat()));
    let of_tunnel = |daemon: &Daemon<'_>| {
        ["receive", "transmit"].map(|direction| {
            let family = format!("meter_tunnel_netdev_{direction}_packets_total{{");
            let text = daemon.get("/metrics");
            text.lines()
                .find(|line| line.starts_with(&family))
                .and_then(|line| line.rsplit(' ').next()?.parse().ok())
        })
    };
    daemon.wait("the netdev is metered", |daemon| of_tunnel(daemon) == [Some(0), Some(0)]);
    let frame = between(Mac::local(1), Mac::local(2), &[], 0x88b5, &[0; 100]);
    let socket = RawSocket::open(&red, "vxlan7").unwrap();
    (0..5).for_each(|_| socket.send(&frame).unwrap());
    daemon.wait("all went into it and came out of it", |daemon| of_tunnel(daemon) == [Some(5), Some(5)]);
    let count = |(name, _)| daemon.sample(&format!("meter_user_packets_total{{meter=\"{name}\"}}"));
    assert_eq!(rules.map(count), [Some(5), Some(5), Some(0), Some(0)]);
}

#[test]
fn bindings_name_netdevs_of_namespaces() {
    if !ready() {
        return;
    }
    let host = Host::new("nsb");
    let red = Router::new("nsb-red");
    let binding =
        bound("eth0").replace("[[binding]]\n", &format!("[[binding]]\nnetns = \"{}\"\n", red.netns.name()));
    let outside = Netns::new("beyond").unwrap();
    host.netns.veth("eth0", &outside, "eth0-there", 1_500).unwrap();
    let daemon = started(&host, &format!("{}{binding}", follow("nsb")));
    let of_red = wait_for_port(&daemon, &red.netns, "eth0");
    assert_eq!(of_red, super::PORT);
    let of_host = port_of(&daemon, "", "eth0").unwrap();
    red.cross("eth0", 3, 4);
    wait_for_frames(&daemon, &[(&of_red, [3, 4]), (&of_host, [0, 0])], "the port that it was given");
    // An alias is heard of at once there too.
    let other = "33333333-0000-4000-8000-000000000003";
    red.plug("eth1");
    red.netns.ip(&format!("link set eth1 alias {other}")).unwrap();
    daemon.wait("the alias names its port", |daemon| {
        port_of(daemon, red.netns.name(), "eth1").as_deref() == Some(other)
    });
}

#[test]
fn two_names_of_one_namespace_are_one() {
    if !ready() {
        return;
    }
    let host = Host::new("nst");
    let red = Router::new("nst-red");
    let alias = format!("{}-too", red.netns.name());
    let path = Path::new("/run/netns").join(&alias);
    let daemon = started(&host, &follow("nst"));
    let port = wait_for_port(&daemon, &red.netns, "eth0");
    std::fs::write(&path, "").unwrap();
    // A name on which nothing is mounted yet is none; then it is one that is known.
    nix::mount::mount(
        Some(&red.netns.path()),
        &path,
        None::<&str>,
        nix::mount::MsFlags::MS_BIND,
        None::<&str>,
    )
    .unwrap();
    let green = Router::new("nst-green");
    let other = wait_for_port(&daemon, &green.netns, "eth0");
    red.cross("eth0", 3, 5);
    wait_for_frames(&daemon, &[(&port, [3, 5]), (&other, [0, 0])], "once");
    assert_eq!(daemon.sample("meter_agent_namespaces"), Some(2));
    nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH).unwrap();
    std::fs::remove_file(&path).unwrap();
    red.cross("eth0", 1, 1);
    wait_for_frames(&daemon, &[(&port, [4, 6]), (&other, [0, 0])], "and goes on without the second name");
}

//! What a dump makes of each kind of netdev.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
};

use lab::{
    mac::Mac,
    netns::Netns,
    require,
    tap::{Tap, TapMode, TapOptions},
};
use meter_agent::netdev::{Kind, Netdev, NetdevTable, TunnelNetdev, monitor};

use super::watch::{dump, ifindex, load_modules};

/// Returns a netdev as the tests make them.
pub(crate) fn netdev(ifindex: u32, name: &str, kind: Kind) -> Netdev {
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

/// Returns the loopback netdev of a lab's namespace.
pub(crate) fn loopback() -> Netdev {
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
    let _loading = load_modules();
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
            // The netdev below takes its part of the MTU.
            Netdev { mtu: 1350, ..above(tunnel("vxlan", Some(7), Some("192.0.2.1"), Some(4791))) },
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
                assert!(error.to_string().contains("Unknown device type"), "{error}");
                assert!(!require::met(word, false, &format!("a kernel with netdevs of kind {word}")));
            }
        }
    }

    let veth = |elsewhere| Kind::Veth { peer_elsewhere: elsewhere };
    let place = there.name();
    here.ip(&format!(
        "link add veth0 index 100 address 02:00:00:00:00:01 mtu 1400 type veth \
         peer name veth1 index 101 address 02:00:00:00:00:01 mtu 1400\n\
         link add veth2 index 102 address 02:00:00:00:00:01 mtu 1400 type veth peer name veth2 netns {place}"
    ))
    .unwrap();
    netdevs.insert(100, Netdev { lower: Some(101), ..netdev(100, "veth0", veth(false)) });
    netdevs.insert(101, Netdev { lower: Some(100), ..netdev(101, "veth1", veth(false)) });
    netdevs.insert(102, netdev(102, "veth2", veth(true)));

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
        // Nothing to compare with where /sys is another namespace's.
        let Ok(link) = fs::read_link(format!("/sys/class/net/{}/device/driver", netdev.name)) else {
            continue;
        };
        assert_eq!(netdev.driver.as_deref(), link.file_name().unwrap().to_str(), "{}", netdev.name);
    }
}

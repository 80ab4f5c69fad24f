use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use uuid::Uuid;

use super::{Judge, Role, Rules, without_underlay};
use crate::{
    binding::{Binding, Bindings},
    datapath::{Class, IngressHook},
    meter::PortId,
    netdev::{Kind, Namespace, NamespaceId, Netdev, NetdevId, NetdevTable, Netdevs, Pattern, TunnelNetdev},
};

/// A host, netdev by netdev.
#[derive(Default)]
struct Host {
    table: NetdevTable,
    configured: Vec<Binding>,
    rules: Rules,
}

impl Host {
    fn netdev(mut self, ifindex: u32, name: &str, kind: Kind) -> Self {
        self.table.netdevs.insert(ifindex, Netdev::bare(ifindex, name, kind));
        self
    }

    fn change(mut self, ifindex: u32, change: impl FnOnce(&mut Netdev)) -> Self {
        change(self.table.netdevs.get_mut(&ifindex).unwrap());
        self
    }

    fn master(self, member: u32, master: u32) -> Self {
        self.change(member, |netdev| netdev.master = Some(master))
    }

    fn lower(self, upper: u32, lower: u32) -> Self {
        self.change(upper, |netdev| netdev.lower = Some(lower))
    }

    fn address(mut self, ifindex: u32, address: &str) -> Self {
        let address: IpAddr = address.parse().unwrap();
        self.table.addresses.entry(ifindex).or_default().insert(address);
        self
    }

    fn default_route(mut self, ifindex: u32) -> Self {
        self.table.default_routes.insert(ifindex);
        self
    }

    fn roles(&self) -> BTreeMap<NetdevId, Role> {
        let bindings = Bindings { configured: self.configured.clone(), host_id: Uuid::from_u128(1) };
        let judge = Judge::new(NamespaceId::HOST, &self.table, &self.rules);
        let netdevs = self.table.clone().into();
        judge.roles(&bindings.resolve(&netdevs, |_, netdev, bound| judge.is_metered(netdev, bound)))
    }

    /// The roles as words: `uplink`, `port`, `port+underlay`, `tunnel`, `-`, each with `/xdp` where so.
    fn words(&self) -> Vec<String> {
        self.roles().values().map(word).collect()
    }
}

fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn word(role: &Role) -> String {
    let class = role.class.map_or("-", Class::name);
    let underlay = if role.underlay && role.class != Some(Class::Uplink) { "+underlay" } else { "" };
    let xdp = if role.ingress == IngressHook::Xdp { "/xdp" } else { "" };
    format!("{class}{underlay}{xdp}")
}

fn vxlan(local: Option<&str>) -> Kind {
    Kind::Tunnel(TunnelNetdev {
        kind: "vxlan".to_owned(),
        vni: Some(7),
        local: local.map(|local| local.parse().unwrap()),
        udp_port: Some(4789),
    })
}

const GUEST_VETH: Kind = Kind::Veth { peer_elsewhere: true };

#[test]
fn each_kind_has_its_role() {
    let host = Host::default()
        .netdev(1, "lo", Kind::Loopback)
        .netdev(2, "eth0", Kind::Physical)
        .netdev(3, "tap0", Kind::Tap)
        .netdev(4, "veth0", GUEST_VETH)
        .netdev(5, "veth1", Kind::Veth { peer_elsewhere: false })
        .netdev(6, "br0", Kind::Bridge)
        .netdev(7, "vxlan7", vxlan(None))
        .netdev(8, "wg0", Kind::Layer3)
        .netdev(9, "bond0", Kind::Bond)
        .netdev(10, "eth0.5", Kind::Vlan)
        .netdev(11, "dummy0", Kind::Dummy)
        .netdev(12, "ovs-system", Kind::Other("openvswitch".to_owned()));
    let expected = ["-", "-", "port", "port", "-", "-", "tunnel", "-", "-", "-", "-", "-"];
    assert_eq!(host.words(), expected);
    assert!(host.roles().values().all(|role| !role.reason.is_empty()));
}

#[test]
fn uplink_is_the_lowest_netdev_under_the_vtep_address_or_the_default_route() {
    let tunnel = |host: Host| host.netdev(20, "vxlan7", vxlan(Some("192.0.2.1")));
    for (name, host, expected) in [
        (
            "address on the netdev itself, be it a tap",
            tunnel(Host::default().netdev(2, "eth0", Kind::Tap)).address(2, "192.0.2.1"),
            &["uplink", "tunnel"][..],
        ),
        (
            "default route of a container's veth",
            Host::default().netdev(2, "eth0", GUEST_VETH).default_route(2),
            &["uplink"],
        ),
        (
            "VLAN netdev on a bond",
            tunnel(
                Host::default()
                    .netdev(2, "eth0", Kind::Physical)
                    .netdev(3, "eth1", Kind::Physical)
                    .netdev(4, "bond0", Kind::Bond)
                    .netdev(5, "bond0.9", Kind::Vlan)
                    .master(2, 4)
                    .master(3, 4)
                    .lower(5, 4),
            )
            .address(5, "192.0.2.1"),
            &["uplink", "uplink", "-", "-", "tunnel"],
        ),
        (
            "bridge with a NIC and a guest",
            Host::default()
                .netdev(2, "eth0", Kind::Physical)
                .netdev(3, "tap0", Kind::Tap)
                .netdev(4, "br-ex", Kind::Bridge)
                .master(2, 4)
                .master(3, 4)
                .default_route(4),
            &["uplink", "port", "-"],
        ),
        (
            "bridge without a NIC",
            Host::default()
                .netdev(3, "tap0", Kind::Tap)
                .netdev(4, "br0", Kind::Bridge)
                .master(3, 4)
                .default_route(4),
            &["port", "uplink"],
        ),
        (
            "internal port of Open vSwitch",
            Host::default()
                .netdev(2, "eth0", Kind::Physical)
                .netdev(3, "ovs-system", Kind::Other("openvswitch".to_owned()))
                .netdev(4, "br-ex", Kind::Other("openvswitch".to_owned()))
                .master(2, 3)
                .default_route(4),
            &["uplink", "-", "-"],
        ),
        (
            "netdev that a tunnel sends through",
            Host::default().netdev(2, "eth0", Kind::Physical).netdev(20, "vxlan7", vxlan(None)).lower(20, 2),
            &["uplink", "tunnel"],
        ),
        (
            "default route through a tunnel or a tun is none",
            Host::default()
                .netdev(2, "wg0", Kind::Layer3)
                .netdev(3, "vxlan7", vxlan(None))
                .default_route(2)
                .default_route(3),
            &["-", "tunnel"],
        ),
        (
            "netdevs that seem to lie on one another",
            Host::default()
                .netdev(2, "a", Kind::Vlan)
                .netdev(3, "b", Kind::Vlan)
                .lower(2, 3)
                .lower(3, 2)
                .default_route(2),
            &["-", "-"],
        ),
    ] {
        assert_eq!(host.words(), expected, "{name}");
    }
}

#[test]
fn configuration_overrides_what_the_kinds_say() {
    let netdevs = || {
        Host::default()
            .netdev(2, "eth0", Kind::Physical)
            .netdev(3, "eth1", Kind::Physical)
            .netdev(4, "tap0", Kind::Tap)
            .netdev(5, "dummy0", Kind::Dummy)
            .default_route(2)
    };
    let rules = |rules: Rules| Host { rules, ..netdevs() };
    assert_eq!(netdevs().words(), ["uplink", "-", "port", "-"]);
    let named = rules(Rules { uplinks: patterns(&["eth1"]), ..Rules::default() });
    assert_eq!(named.words(), ["-", "uplink", "port", "-"]);
    let ignored = rules(Rules { ignore: patterns(&["tap*", "eth0"]), ..Rules::default() });
    assert_eq!(ignored.words(), ["-", "-", "-", "-"]);
    let ports = rules(Rules { ports: patterns(&["kind:dummy", "eth0"]), ..Rules::default() });
    assert_eq!(ports.words(), ["port+underlay", "-", "port", "port"]);
    let xdp = rules(Rules { uplink_ingress: IngressHook::Xdp, ..Rules::default() });
    assert_eq!(xdp.words(), ["uplink/xdp", "-", "port", "-"]);
    let bound = Host {
        configured: vec![Binding {
            netdev: Some("eth1".parse().unwrap()),
            mac: None,
            netns: None,
            port: Some(PortId(Uuid::from_u128(9))),
            device: None,
        }],
        ..netdevs()
    };
    assert_eq!(bound.words(), ["uplink", "port", "port", "-"]);
}

#[test]
fn named_uplinks_that_lie_on_one_another_count_once() {
    let host = Host {
        rules: Rules { uplinks: vec!["*".parse().unwrap()], ..Rules::default() },
        ..Host::default()
            .netdev(2, "eth0", Kind::Physical)
            .netdev(3, "bond0", Kind::Bond)
            .netdev(4, "bond0.9", Kind::Vlan)
            .netdev(5, "br0", Kind::Bridge)
            .netdev(6, "eth1", Kind::Physical)
            .master(2, 3)
            .lower(4, 3)
            .master(4, 5)
    };
    assert_eq!(host.words(), ["uplink", "-", "-", "-", "uplink"]);
    assert!(host.roles()[&5.into()].reason.contains("below it"), "{}", host.roles()[&5.into()].reason);
    let upper = Host { rules: Rules { uplinks: vec!["br0".parse().unwrap()], ..Rules::default() }, ..host };
    assert_eq!(upper.words(), ["-", "-", "-", "uplink", "-"], "the operator's word where nothing overlaps");
}

#[test]
fn xdp_is_for_physical_netdevs_and_the_reason_says_so() {
    let host = Host {
        rules: Rules { uplink_ingress: IngressHook::Xdp, ..Rules::default() },
        ..Host::default().netdev(2, "eth0", GUEST_VETH).default_route(2)
    };
    assert_eq!(host.words(), ["uplink"]);
    assert!(host.roles()[&2.into()].reason.contains("XDP"), "{}", host.roles()[&2.into()].reason);
}

#[test]
fn alias_makes_a_port_of_anything_but_a_bridge() {
    let uuid = "3f2a7c1e-0000-4000-8000-000000000001";
    let host = Host::default()
        .netdev(2, "dummy0", Kind::Dummy)
        .netdev(3, "br0", Kind::Bridge)
        .change(2, |netdev| netdev.alias = Some(format!("port {uuid}")))
        .change(3, |netdev| netdev.alias = Some("3f2a7c1e-0000-4000-8000-000000000002".to_owned()));
    assert_eq!(host.words(), ["port", "-"]);
}

#[test]
fn second_netdev_of_a_port_is_not_metered_and_says_who_is() {
    let uuid = "3f2a7c1e-0000-4000-8000-000000000001";
    let host = Host::default()
        .netdev(2, "tap0", Kind::Tap)
        .netdev(3, "tap1", Kind::Tap)
        .change(2, |netdev| netdev.alias = Some(uuid.to_owned()))
        .change(3, |netdev| netdev.altnames = vec![uuid.to_owned()]);
    assert_eq!(host.words(), ["port", "-"]);
    assert_eq!(
        host.roles()[&3.into()].reason,
        format!("its port {uuid} (by altname) is carried by tap0; give one of them another")
    );
    let ifindexes: BTreeSet<u32> = host.roles().into_keys().map(|id| id.ifindex).collect();
    assert_eq!(ifindexes, BTreeSet::from([2, 3]));
}

#[test]
fn netdev_that_is_not_metered_keeps_no_other_from_its_port() {
    let uuid = "3f2a7c1e-0000-4000-8000-000000000001";
    let claims = |netdev: &mut Netdev| netdev.alias = Some(uuid.to_owned());
    // Each claims it by its alias, and was there before the tap, which names it by an altname.
    let host = Host {
        rules: Rules { ignore: vec!["virbr*".parse().unwrap()], ..Rules::default() },
        ..Host::default()
    }
    .netdev(1, "lo", Kind::Loopback)
    .change(1, claims)
    .netdev(2, "virbr0-nic", Kind::Tap)
    .change(2, claims)
    .netdev(3, "tun0", Kind::Layer3)
    .change(3, claims)
    .netdev(4, "br0", Kind::Bridge)
    .change(4, claims)
    .netdev(5, "tap0", Kind::Tap)
    .change(5, |netdev| netdev.altnames = vec![uuid.to_owned()]);
    assert_eq!(host.words(), ["-", "-", "-", "-", "port"]);
    // Of two that are metered one is told of the other.
    let host = host.netdev(6, "tap1", Kind::Tap).change(6, claims);
    assert_eq!(host.words(), ["-", "-", "-", "-", "-", "port"]);
    assert!(host.roles()[&5.into()].reason.contains("is carried by tap1"), "{:?}", host.roles()[&5.into()]);
}

#[test]
fn in_a_namespace_what_leads_out_of_it_is_a_port_and_nothing_is_an_uplink() {
    let table = Host::default()
        .netdev(1, "lo", Kind::Loopback)
        .netdev(2, "qr-3f2a1b6c-0d", Kind::Other("openvswitch".to_owned()))
        .netdev(3, "eth0", Kind::Veth { peer_elsewhere: true })
        .netdev(4, "qg-5c", Kind::Dummy)
        .netdev(5, "dummy0", Kind::Dummy)
        .netdev(6, "inner0", Kind::Veth { peer_elsewhere: false })
        .netdev(7, "net1", Kind::Macvlan)
        .netdev(8, "eth0.7", Kind::Vlan)
        .lower(8, 3)
        .netdev(9, "br0", Kind::Bridge)
        .netdev(10, "vxlan7", vxlan(Some("192.0.2.1")))
        .netdev(11, "ens3", Kind::Physical)
        .netdev(12, "tun0", Kind::Layer3)
        .address(11, "192.0.2.1")
        .default_route(3)
        .table;
    let rules = Rules { uplinks: patterns(&["eth0"]), ignore: patterns(&["net*"]), ..Rules::default() };
    let words = |rules: &Rules| -> Vec<String> {
        let namespace = Namespace { name: "red".to_owned(), table: table.clone() };
        let netdevs = Netdevs { namespaces: [(NamespaceId(1), namespace)].into(), ..Netdevs::default() };
        let judge = Judge::new(NamespaceId(1), &table, rules);
        let bindings = Bindings { configured: Vec::new(), host_id: Uuid::from_u128(1) };
        let bound = bindings.resolve(&netdevs, |_, netdev, bound| judge.is_metered(netdev, bound));
        judge.roles(&bound).values().map(word).collect()
    };
    let all = ["-", "port", "port", "port", "-", "-", "port", "-", "-", "tunnel", "port", "-"];
    assert_eq!(words(&Rules::default()), all);
    let ignored = ["-", "port", "port", "port", "-", "-", "-", "-", "-", "tunnel", "port", "-"];
    assert_eq!(words(&rules), ignored);
}

#[test]
fn tunnel_netdevs_that_do_not_tell_their_uplink_are_named() {
    let tunnel = |local: Option<&str>| {
        Kind::Tunnel(TunnelNetdev {
            local: local.map(|local| local.parse().unwrap()),
            kind: "vxlan".to_owned(),
            vni: None,
            udp_port: None,
        })
    };
    let host = Host::default()
        .netdev(2, "eth0", Kind::Physical)
        .address(2, "192.0.2.1")
        .netdev(3, "vxlan7", tunnel(Some("192.0.2.1")))
        .netdev(4, "vxlan8", tunnel(None))
        .lower(4, 2)
        .netdev(5, "genev_sys_6081", tunnel(None))
        .netdev(6, "vxlan9", tunnel(Some("192.0.2.9")))
        .netdev(1, "lo", Kind::Loopback)
        .address(1, "192.0.2.10")
        .netdev(7, "vxlan10", tunnel(Some("192.0.2.10")))
        .netdev(8, "dummy0", Kind::Dummy)
        .address(8, "192.0.2.11")
        .netdev(9, "vxlan11", tunnel(Some("192.0.2.11")))
        .netdev(10, "gretap0", tunnel(None));
    let expected = ["genev_sys_6081", "vxlan9", "vxlan10", "vxlan11"];
    assert_eq!(without_underlay(&host.table, &host.rules), expected);
    let named = Rules { uplinks: vec!["eth0".parse().unwrap()], ..Rules::default() };
    assert_eq!(without_underlay(&host.table, &named), [""; 0]);
}

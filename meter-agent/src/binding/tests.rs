use std::collections::BTreeMap;

use uuid::Uuid;

use super::{Binding, Bindings, Bound, Conflict, Source, only_uuid};
use crate::{
    meter::{DeviceId, PortId},
    netdev::{Glob, Kind, Namespace, NamespaceId, Netdev, NetdevId, NetdevTable, Netdevs},
};

const FIRST: &str = "3f2a7c1e-0000-4000-8000-000000000001";
const SECOND: &str = "3f2a7c1e-0000-4000-8000-000000000002";

fn netdev(ifindex: u32, name: &str, kind: Kind) -> Netdev {
    let mac = Some([2, 0, 0, 0, 0, u8::try_from(ifindex).unwrap()]);
    Netdev { mac, ..Netdev::bare(ifindex, name, kind) }
}

fn table(netdevs: impl IntoIterator<Item = Netdev>) -> NetdevTable {
    let netdevs = netdevs.into_iter().map(|netdev| (netdev.ifindex, netdev)).collect();
    NetdevTable { netdevs, ..NetdevTable::default() }
}

fn bindings(configured: Vec<Binding>) -> Bindings {
    Bindings { configured, host_id: Uuid::from_u128(7) }
}

fn binding(netdev: &str, port: Option<u128>, device: Option<u128>) -> Binding {
    Binding {
        netdev: Some(netdev.parse().unwrap()),
        mac: None,
        netns: None,
        port: port.map(|port| PortId(Uuid::from_u128(port))),
        device: device.map(|device| DeviceId(Uuid::from_u128(device))),
    }
}

#[test]
fn strongest_source_names_the_port() {
    let mut tap = netdev(3, "tap0", Kind::Tap);
    let resolve = |tap: &Netdev, configured| {
        let bound = bindings(configured)
            .resolve(&table([tap.clone()]).into(), |_, _, _| true)
            .remove(&3.into())
            .unwrap()
            .unwrap();
        (bound.port.0.to_string(), bound.source)
    };
    let (derived, source) = resolve(&tap, vec![]);
    assert_eq!(source, Source::Derived);
    assert_eq!(derived, resolve(&tap, vec![]).0, "the same on every start");
    tap.altnames = vec!["web".to_owned(), SECOND.to_owned()];
    assert_eq!(resolve(&tap, vec![]), (SECOND.to_owned(), Source::Altname));
    tap.alias = Some(format!("web ({FIRST})"));
    assert_eq!(resolve(&tap, vec![]), (FIRST.to_owned(), Source::Alias));
    let configured = vec![binding("eth*", Some(1), None), binding("tap?", Some(2), None)];
    assert_eq!(resolve(&tap, configured), (Uuid::from_u128(2).to_string(), Source::Config));
    let by_mac = Binding { netdev: None, mac: tap.mac, ..binding("x", Some(4), None) };
    assert_eq!(resolve(&tap, vec![by_mac]), (Uuid::from_u128(4).to_string(), Source::Config));
}

#[test]
fn device_is_the_bindings_or_the_bridge() {
    let mut bridge = netdev(2, "br0", Kind::Bridge);
    let mut tap = netdev(3, "tap0", Kind::Tap);
    let device = |tap: &Netdev, bridge: &Netdev, configured| {
        let resolved =
            bindings(configured).resolve(&table([bridge.clone(), tap.clone()]).into(), |_, _, _| true);
        let bound = resolved[&3.into()].clone().unwrap();
        (bound.device, bound.device_name)
    };
    assert_eq!(device(&tap, &bridge, vec![]), (None, None));
    tap.master = Some(2);
    let (derived, name) = device(&tap, &bridge, vec![]);
    assert!(derived.is_some());
    assert_eq!(name.as_deref(), Some("br0"));
    bridge.alias = Some(FIRST.to_owned());
    let named = DeviceId(FIRST.parse().unwrap());
    assert_eq!(device(&tap, &bridge, vec![]), (Some(named), Some("br0".to_owned())));
    let configured = vec![binding("tap0", None, Some(5))];
    let expected = (Some(DeviceId(Uuid::from_u128(5))), Some("br0".to_owned()));
    assert_eq!(device(&tap, &bridge, configured), expected);
    bridge.kind = Kind::Other("openvswitch".to_owned());
    assert_eq!(device(&tap, &bridge, vec![]), (None, None), "what is in a switch is not in one device");
}

#[test]
fn stronger_claim_to_a_port_wins_and_the_other_hears_of_it() {
    let mut first = netdev(3, "tap0", Kind::Tap);
    let mut second = netdev(4, "tap1", Kind::Tap);
    first.altnames = vec![FIRST.to_owned()];
    second.alias = Some(FIRST.to_owned());
    let port = PortId(FIRST.parse().unwrap());
    let table = table([first, second]).into();
    let resolved = bindings(vec![]).resolve(&table, |_, _, _| true);
    let bound = Bound { port, device: None, device_name: None, source: Source::Alias };
    let conflict = Conflict { port, holder: "tap1".to_owned(), source: Source::Altname };
    assert_eq!(resolved, BTreeMap::from([(3.into(), Err(conflict)), (4.into(), Ok(bound.clone()))]));
    // One that is not metered keeps nobody from a port.
    let resolved = bindings(vec![]).resolve(&table, |_, netdev, _| netdev.name != "tap1");
    let first = Bound { source: Source::Altname, ..bound.clone() };
    assert_eq!(resolved, BTreeMap::from([(3.into(), Ok(first)), (4.into(), Ok(bound))]));
}

#[test]
fn uuid_among_other_words_is_found_unless_there_are_two() {
    let uuid = FIRST.parse().unwrap();
    for (text, expected) in [
        (FIRST.to_owned(), Some(uuid)),
        (format!("port:{FIRST}"), Some(uuid)),
        (format!("web, {} of tenant", FIRST.to_uppercase()), Some(uuid)),
        (format!("{FIRST} {FIRST}"), Some(uuid)),
        (format!("{FIRST} {SECOND}"), None),
        (format!("{FIRST}0"), None),
        (format!("a{FIRST}"), None),
        (FIRST.replace('-', ""), None),
        ("00000000-0000-0000-0000-000000000000".to_owned(), None),
        (String::new(), None),
    ] {
        assert_eq!(only_uuid(&text), expected, "{text:?}");
    }
}

/// A host and two namespaces, each with the same netdev.
fn everywhere(netdev: &Netdev) -> Netdevs {
    let table = table([netdev.clone()]);
    let namespace = |name: &str| Namespace { name: name.to_owned(), table: table.clone() };
    let namespaces = [(1, "red"), (2, "blue")].map(|(number, name)| (NamespaceId(number), namespace(name)));
    Netdevs { host: table.clone(), namespaces: namespaces.into() }
}

fn ports(netdevs: &Netdevs, configured: Vec<Binding>) -> Vec<Result<Bound, Conflict>> {
    bindings(configured).resolve(netdevs, |_, _, _| true).into_values().collect()
}

#[test]
fn derived_port_is_another_in_each_namespace_and_the_same_on_every_start() {
    let netdevs = everywhere(&netdev(2, "eth0", Kind::Tap));
    let derived: Vec<PortId> = ports(&netdevs, vec![]).into_iter().map(|bound| bound.unwrap().port).collect();
    assert_eq!(BTreeMap::from_iter(derived.iter().map(|port| (port, ()))).len(), 3);
    let named = |text: &str| PortId(Uuid::new_v5(&Uuid::from_u128(7), text.as_bytes()));
    assert_eq!(derived, [named("port:eth0"), named("port:red:eth0"), named("port:blue:eth0")]);
}

#[test]
fn binding_is_about_the_host_or_about_the_namespaces_that_it_names() {
    let netdevs = everywhere(&netdev(2, "eth0", Kind::Tap));
    let sources = |netns: Option<&str>| -> Vec<Source> {
        let netns = netns.map(Glob::new);
        let configured = vec![Binding { netns, ..binding("eth0", Some(1), None) }];
        let bound = bindings(configured).resolve(&netdevs, |_, _, _| false);
        bound.into_values().map(|bound| bound.unwrap().source).collect()
    };
    use Source::{Config as C, Derived as D};
    assert_eq!(sources(None), [C, D, D]);
    assert_eq!(sources(Some("blue")), [D, D, C]);
    assert_eq!(sources(Some("*")), [D, C, C]);
}

#[test]
fn port_that_two_namespaces_claim_is_the_first_ones_and_the_message_says_where() {
    let alias = Some(FIRST.to_owned());
    let mut netdevs = everywhere(&Netdev { alias, ..netdev(2, "eth0", Kind::Tap) });
    netdevs.host = NetdevTable::default();
    let conflict = ports(&netdevs, vec![])[1].clone().unwrap_err();
    assert_eq!(
        conflict.to_string(),
        format!("its port {FIRST} (by alias) is carried by eth0 of namespace red; give one of them another")
    );
    let resolved = bindings(vec![]).resolve(&netdevs, |id, _, _| id.namespace != NamespaceId(1));
    let second = NetdevId { namespace: NamespaceId(2), ifindex: 2 };
    assert!(resolved[&second].is_ok(), "one that is not metered keeps nobody from a port");
}

use std::collections::BTreeMap;

use uuid::Uuid;

use super::{Binding, Bindings, Bound, Conflict, Source, only_uuid};
use crate::{
    meter::{DeviceId, PortId},
    netdev::{Kind, Netdev, NetdevTable},
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
        port: port.map(|port| PortId(Uuid::from_u128(port))),
        device: device.map(|device| DeviceId(Uuid::from_u128(device))),
    }
}

#[test]
fn strongest_source_names_the_port() {
    let mut tap = netdev(3, "tap0", Kind::Tap);
    let resolve = |tap: &Netdev, configured| {
        let bound =
            bindings(configured).resolve(&table([tap.clone()]), |_, _| true).remove(&3).unwrap().unwrap();
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
        let resolved = bindings(configured).resolve(&table([bridge.clone(), tap.clone()]), |_, _| true);
        let bound = resolved[&3].clone().unwrap();
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
    let table = table([first, second]);
    let resolved = bindings(vec![]).resolve(&table, |_, _| true);
    let bound = Bound { port, device: None, device_name: None, source: Source::Alias };
    let conflict = Conflict { port, holder: "tap1".to_owned(), source: Source::Altname };
    assert_eq!(resolved, BTreeMap::from([(3, Err(conflict)), (4, Ok(bound.clone()))]));
    // One that is not metered keeps nobody from a port.
    let resolved = bindings(vec![]).resolve(&table, |netdev, _| netdev.name != "tap1");
    let first = Bound { source: Source::Altname, ..bound.clone() };
    assert_eq!(resolved, BTreeMap::from([(3, Ok(first)), (4, Ok(bound))]));
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

use proptest::prelude::{any, prop, prop_assert, proptest};

use super::*;
use crate::netdev::{Kind, TunnelNetdev};

const ETHERNET: u16 = 1;
const LOOPBACK: u16 = 772;
const IPGRE: u16 = 778;
const NONE: u16 = 0xfffe;

fn attribute(number: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap();
    let mut bytes = [length.to_ne_bytes(), number.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn number(attribute_number: u16, value: u32) -> Vec<u8> {
    attribute(attribute_number, &value.to_ne_bytes())
}

fn link_message(family: u8, hardware: u16, ifindex: u32, flags: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = vec![family, 0];
    bytes.extend(hardware.to_ne_bytes());
    for field in [ifindex, flags, 0] {
        bytes.extend(field.to_ne_bytes());
    }
    bytes.extend(attributes.concat());
    bytes
}

/// A netdev `n7` of this kind and nothing else.
fn of_kind(word: Option<&str>, hardware: u16, data: &[Vec<u8>], elsewhere: bool) -> Vec<u8> {
    let mut attributes = vec![attribute(IFLA_IFNAME, b"n7\0")];
    if let Some(word) = word {
        let info = [attribute(IFLA_INFO_KIND, word.as_bytes()), attribute(IFLA_INFO_DATA, &data.concat())];
        attributes.push(attribute(IFLA_LINKINFO, &info.concat()));
    }
    if elsewhere {
        attributes.push(number(IFLA_LINK_NETNSID, 0));
    }
    link_message(0, hardware, 7, 0, &attributes)
}

fn n7(kind: Kind) -> Netdev {
    Netdev { up: false, mtu: 0, ..Netdev::bare(7, "n7", kind) }
}

fn netdev(payload: &[u8]) -> Result<Message, Malformed> {
    message(libc::RTM_NEWLINK, payload)
}

fn tunnel(kind: &str, vni: Option<u32>, local: Option<&str>, udp_port: Option<u16>) -> Kind {
    let local = local.map(|local| local.parse().unwrap());
    Kind::Tunnel(TunnelNetdev { kind: kind.to_owned(), vni, local, udp_port })
}

#[test]
fn kind_is_the_kernels_word_with_its_details() {
    let v6 = "2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().octets();
    let vxlan = [number(1, 5), attribute(4, &[192, 0, 2, 1]), attribute(15, &[0x12, 0xb5])];
    let vxlan6 = [number(1, 5), attribute(17, &v6), attribute(15, &[0x12, 0xb5]), attribute(25, &[0])];
    let external = [number(1, 0), attribute(4, &[0; 4]), attribute(15, &[0x21, 0x18]), attribute(25, &[1])];
    let geneve = [number(1, 6), attribute(5, &[0x17, 0xc1])];
    let geneve_external = [number(1, 0), attribute(5, &[0x17, 0xc1]), attribute(6, &[])];
    let gre = [
        attribute(2, &[0, 0]),
        attribute(3, &[0x20, 0]),
        attribute(4, &[0, 0, 0, 8]),
        attribute(5, &[0, 0, 0, 9]),
        attribute(6, &[192, 0, 2, 1]),
    ];
    let gre_expects = [attribute(2, &[0x20, 0]), attribute(4, &[0, 0, 0, 8]), attribute(6, &v6)];
    let other = |word: &str| Kind::Other(word.to_owned());
    for (word, hardware, data, kind) in [
        (None, ETHERNET, &[][..], Kind::Physical),
        (None, LOOPBACK, &[], Kind::Loopback),
        (None, NONE, &[], Kind::Layer3),
        (Some("tun"), ETHERNET, &[attribute(3, &[2])], Kind::Tap),
        (Some("tun"), NONE, &[attribute(3, &[1])], Kind::Layer3),
        (Some("tun"), ETHERNET, &[attribute(3, &[1])], Kind::Layer3),
        (Some("tun"), ETHERNET, &[], Kind::Tap),
        (Some("tun"), NONE, &[], Kind::Layer3),
        (Some("veth"), ETHERNET, &[], Kind::Veth { peer_elsewhere: false }),
        (Some("vxlan"), ETHERNET, &vxlan, tunnel("vxlan", Some(5), Some("192.0.2.1"), Some(4789))),
        (Some("vxlan"), ETHERNET, &vxlan6, tunnel("vxlan", Some(5), Some("2001:db8::1"), Some(4789))),
        (Some("vxlan"), ETHERNET, &external, tunnel("vxlan", None, None, Some(8472))),
        (Some("vxlan"), NONE, &vxlan, Kind::Layer3),
        (Some("geneve"), ETHERNET, &geneve, tunnel("geneve", Some(6), None, Some(6081))),
        (Some("geneve"), ETHERNET, &geneve_external, tunnel("geneve", None, None, Some(6081))),
        (Some("gretap"), ETHERNET, &gre, tunnel("gretap", Some(9), Some("192.0.2.1"), None)),
        (Some("ip6gretap"), ETHERNET, &gre_expects, tunnel("ip6gretap", Some(8), Some("2001:db8::1"), None)),
        (Some("erspan"), ETHERNET, &gre, tunnel("erspan", Some(9), Some("192.0.2.1"), None)),
        (Some("gretap"), ETHERNET, &[], tunnel("gretap", Some(0), None, None)),
        (Some("gretap"), ETHERNET, &[attribute(18, &[])], tunnel("gretap", None, None, None)),
        (Some("gre"), IPGRE, &gre, Kind::Layer3),
        (Some("wireguard"), NONE, &[], Kind::Layer3),
        (Some("bridge"), ETHERNET, &[], Kind::Bridge),
        (Some("bond"), ETHERNET, &[], Kind::Bond),
        (Some("team"), ETHERNET, &[], Kind::Bond),
        (Some("vlan"), ETHERNET, &[], Kind::Vlan),
        (Some("macvlan"), ETHERNET, &[], Kind::Macvlan),
        (Some("macvtap"), ETHERNET, &[], Kind::Macvlan),
        (Some("dummy"), ETHERNET, &[], Kind::Dummy),
        (Some("openvswitch"), ETHERNET, &[], other("openvswitch")),
        (Some("vrf"), ETHERNET, &[], other("vrf")),
    ] {
        let expected = Message::Netdev(Link { netdev: n7(kind), parent: None });
        assert_eq!(netdev(&of_kind(word, hardware, data, false)), Ok(expected), "{word:?} {hardware}");
    }
    let elsewhere = Message::Netdev(Link { netdev: n7(Kind::Veth { peer_elsewhere: true }), parent: None });
    assert_eq!(netdev(&of_kind(Some("veth"), ETHERNET, &[], true)), Ok(elsewhere));
}

#[test]
fn vxlan_netdev_that_names_its_underlay_lies_on_it() {
    let data = [number(1, 5), number(3, 2)];
    let kind =
        Kind::Tunnel(TunnelNetdev { kind: "vxlan".to_owned(), vni: Some(5), local: None, udp_port: None });
    for (elsewhere, lower) in [(false, Some(2)), (true, None)] {
        let expected = Message::Netdev(Link { netdev: Netdev { lower, ..n7(kind.clone()) }, parent: None });
        assert_eq!(netdev(&of_kind(Some("vxlan"), ETHERNET, &data, elsewhere)), Ok(expected));
    }
}

fn whole() -> Vec<u8> {
    let altnames = [
        attribute(IFLA_ALT_IFNAME, b"first\0"),
        attribute(IFLA_ALT_IFNAME, b"\xffsecond\0"),
        attribute(60, b"no name"),
    ];
    link_message(
        0,
        ETHERNET,
        7,
        0x1_1043,
        &[
            attribute(IFLA_IFNAME, b"b\xe9b\xe9\0"),
            number(IFLA_MTU, 1400),
            number(IFLA_MASTER, 3),
            number(IFLA_LINK, 2),
            attribute(IFLA_ADDRESS, &[2, 0, 0, 0, 0, 1]),
            attribute(IFLA_IFALIAS, b"an alias"),
            attribute(IFLA_PROP_LIST | 0x8000, &altnames.concat()),
            attribute(IFLA_PARENT_DEV_NAME, b"0000:00:03.0\0"),
            attribute(IFLA_PARENT_DEV_BUS_NAME, b"pci\0"),
            attribute(0x3ff0, &[1; 7]),
        ],
    )
}

#[test]
fn every_field_is_read_and_made_valid_utf8() {
    let expected = Netdev {
        name: "b\u{fffd}b\u{fffd}".to_owned(),
        mac: Some([2, 0, 0, 0, 0, 1]),
        alias: Some("an alias".to_owned()),
        altnames: vec!["first".to_owned(), "\u{fffd}second".to_owned()],
        master: Some(3),
        lower: Some(2),
        up: true,
        mtu: 1400,
        ..n7(Kind::Physical)
    };
    let parent = Parent { bus: "pci".to_owned(), name: "0000:00:03.0".to_owned() };
    assert_eq!(netdev(&whole()), Ok(Message::Netdev(Link { netdev: expected, parent: Some(parent) })));
}

#[test]
fn absent_empty_and_odd_fields_are_none() {
    let attributes = [
        attribute(IFLA_IFNAME, b"n7\0"),
        attribute(IFLA_IFALIAS, b"\0"),
        attribute(IFLA_ADDRESS, &[192, 0, 2, 1]),
        number(IFLA_MASTER, 0),
        number(IFLA_LINK, 0),
        attribute(IFLA_PROP_LIST, &[9, 0]),
        attribute(IFLA_PARENT_DEV_NAME, b"virtio2\0"),
    ];
    let expected = Message::Netdev(Link { netdev: n7(Kind::Physical), parent: None });
    assert_eq!(netdev(&link_message(0, ETHERNET, 7, 0, &attributes)), Ok(expected.clone()));
    // The number of a netdev in another namespace means nothing here, nor does its own.
    let own = link_message(0, ETHERNET, 7, 0, &[attribute(IFLA_IFNAME, b"n7\0"), number(IFLA_LINK, 7)]);
    assert_eq!(netdev(&own), Ok(expected));
    let elsewhere = [attribute(IFLA_IFNAME, b"n7\0"), number(IFLA_LINK, 3), number(IFLA_LINK_NETNSID, 0)];
    let elsewhere = link_message(0, ETHERNET, 7, 0, &elsewhere);
    assert_eq!(netdev(&elsewhere), netdev(&of_kind(None, ETHERNET, &[], true)));
}

#[test]
fn only_what_is_said_of_a_netdev_of_this_namespace_counts() {
    const BRIDGE: u8 = 7;
    let name = || attribute(IFLA_IFNAME, b"n7\0");
    let gone = |moved| Ok(Message::NetdevGone { ifindex: 7, moved });
    for (what, message_type, payload, expected) in [
        ("gone", libc::RTM_DELLINK, link_message(0, ETHERNET, 7, 0, &[name()]), gone(false)),
        (
            "moved",
            libc::RTM_DELLINK,
            link_message(0, ETHERNET, 7, 0, &[name(), number(IFLA_NEW_NETNSID, 0)]),
            gone(true),
        ),
        (
            "left its bridge",
            libc::RTM_DELLINK,
            link_message(BRIDGE, ETHERNET, 7, 0, &[name()]),
            Ok(Message::Other),
        ),
        (
            "joined a bridge",
            libc::RTM_NEWLINK,
            link_message(BRIDGE, ETHERNET, 7, 0, &[name()]),
            Ok(Message::Other),
        ),
        (
            "elsewhere",
            libc::RTM_NEWLINK,
            link_message(0, ETHERNET, 7, 0, &[name(), number(IFLA_TARGET_NETNSID, 0)]),
            Ok(Message::Other),
        ),
        (
            "gone elsewhere",
            libc::RTM_DELLINK,
            link_message(0, ETHERNET, 7, 0, &[name(), number(IFLA_TARGET_NETNSID, 0)]),
            Ok(Message::Other),
        ),
        ("another message", 28, vec![1], Ok(Message::Other)),
    ] {
        assert_eq!(message(message_type, &payload), expected, "{what}");
    }
}

#[test]
fn address_is_the_local_one_and_not_the_peers() {
    let of =
        |family, attributes: &[Vec<u8>]| [&[family, 24, 0, 0, 7, 0, 0, 0][..], &attributes.concat()].concat();
    let v6 = "2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap();
    let (address, local) = (attribute(1, &[192, 0, 2, 1]), attribute(2, &[192, 0, 2, 2]));
    for (what, payload, expected) in [
        ("local", of(2, &[address.clone(), local]), Some("192.0.2.2")),
        ("no local", of(2, &[address]), Some("192.0.2.1")),
        ("IPv6", of(10, &[attribute(1, &v6.octets())]), Some("2001:db8::1")),
        ("another family", of(28, &[]), None),
    ] {
        let said = |says: fn(u32, IpAddr) -> Message| {
            Ok(expected.map_or(Message::Other, |address| says(7, address.parse().unwrap())))
        };
        assert_eq!(message(libc::RTM_NEWADDR, &payload), said(Message::Address), "{what}");
        assert_eq!(message(libc::RTM_DELADDR, &payload), said(Message::AddressGone), "{what}");
    }
    let malformed = Err(Malformed { message_type: libc::RTM_NEWADDR });
    assert_eq!(message(libc::RTM_NEWADDR, &of(2, &[])), malformed);
    assert_eq!(message(libc::RTM_NEWADDR, &of(2, &[attribute(2, &[1; 5])])), malformed);
}

#[test]
fn default_routes_of_the_main_table_give_their_netdevs() {
    const MAIN: u8 = 254;
    const UNICAST: u8 = 1;
    const UNREACHABLE: u8 = 7;
    let of = |family, prefix, table, route_type, flags: u32, attributes: &[Vec<u8>]| {
        let head = [family, prefix, 0, 0, table, 4, 0, route_type];
        [&head[..], &flags.to_ne_bytes(), &attributes.concat()].concat()
    };
    let hop =
        |ifindex: u8| [&[16, 0, 0, 0, ifindex, 0, 0, 0][..], &attribute(5, &[192, 0, 2, ifindex])].concat();
    let multipath = attribute(9, &[hop(3), hop(4)].concat());
    for (what, payload, expected) in [
        ("IPv4", of(2, 0, MAIN, UNICAST, 0, &[number(15, 254), number(4, 2)]), Some(vec![2])),
        ("IPv6", of(10, 0, MAIN, UNICAST, 0, &[number(4, 2)]), Some(vec![2])),
        ("multipath", of(2, 0, MAIN, UNICAST, 0, &[multipath]), Some(vec![3, 4])),
        ("by a nexthop object alone", of(2, 0, MAIN, UNICAST, 0, &[number(30, 1)]), Some(vec![])),
        (
            "endless hop",
            of(2, 0, MAIN, UNICAST, 0, &[attribute(9, &[0, 0, 0, 0, 3, 0, 0, 0])]),
            Some(vec![3]),
        ),
        ("a network", of(2, 24, MAIN, UNICAST, 0, &[number(4, 2)]), None),
        ("another table", of(2, 0, 100, UNICAST, 0, &[number(4, 2)]), None),
        ("another table with a large number", of(2, 0, 252, UNICAST, 0, &[number(15, 1000)]), None),
        ("unreachable", of(10, 0, MAIN, UNREACHABLE, 0, &[number(4, 1)]), None),
        ("cache", of(10, 0, MAIN, UNICAST, RTM_F_CLONED, &[number(4, 2)]), None),
        ("another family", of(28, 0, MAIN, UNICAST, 0, &[number(4, 2)]), None),
    ] {
        let there = expected.clone().map_or(Message::Other, Message::DefaultRoute);
        let gone = expected.map_or(Message::Other, |_| Message::DefaultRouteGone);
        assert_eq!(message(libc::RTM_NEWROUTE, &payload), Ok(there), "{what}");
        assert_eq!(message(libc::RTM_DELROUTE, &payload), Ok(gone), "{what}");
    }
}

#[test]
fn message_without_name_or_with_wrong_lengths_is_malformed() {
    let malformed = Err(Malformed { message_type: libc::RTM_NEWLINK });
    assert_eq!(netdev(&link_message(0, ETHERNET, 7, 0, &[number(IFLA_MTU, 1500)])), malformed);
    assert_eq!(netdev(&link_message(0, ETHERNET, 7, 0, &[attribute(IFLA_IFNAME, b"\0")])), malformed);
    let unreadable_kind = [attribute(IFLA_IFNAME, b"n7\0"), attribute(IFLA_LINKINFO, &[99, 0, 1, 0])];
    assert_eq!(netdev(&link_message(0, ETHERNET, 7, 0, &unreadable_kind)), malformed);
    let message = whole();
    let boundaries = (0..message.len()).filter(|&end| netdev(&message[..end]).is_ok()).count();
    // It can end after each of its nine attributes, with or without the padding of the last; not elsewhere.
    assert!(boundaries < 30, "{boundaries}");
}

/// Holds for whatever bytes come.
fn is_sound(message_type: u16, read: &Result<Message, Malformed>) -> bool {
    match read {
        Ok(Message::Netdev(Link { netdev, .. })) => !netdev.name.is_empty() && !netdev.name.contains('\0'),
        Ok(_) => true,
        Err(malformed) => malformed.message_type == message_type,
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(
        message_type in 14_u16..30,
        payload in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        prop_assert!(is_sound(message_type, &message(message_type, &payload)));
    }

    #[test]
    fn netdev_with_a_wrong_byte_is_read_or_refused(at in 0_usize..200, byte in any::<u8>()) {
        let mut payload = whole();
        let at = at % payload.len();
        payload[at] = byte;
        prop_assert!(is_sound(libc::RTM_NEWLINK, &netdev(&payload)));
    }
}

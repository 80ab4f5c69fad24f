//! How a message changes what is known, and when it leaves a doubt that only a complete dump can settle.
//!
//! Pure.

use super::parse::{Link, Message};
use crate::netdev::{Kind, Netdev, NetdevEvent, NetdevTable};

/// What follows from a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// What the receiver has to know; `None` where the message says nothing new.
    pub(super) event: Option<NetdevEvent>,
    /// More may have changed than the message says.
    pub(super) doubt: bool,
}

/// Takes a message over into the table. `complete` finds what a link message doesn't tell.
pub(super) fn follow(
    table: &mut NetdevTable,
    message: Message,
    complete: impl FnOnce(Link) -> Netdev,
) -> Change {
    let (event, doubt) = match message {
        Message::Netdev(link) => {
            let netdev = complete(link);
            if table.netdevs.get(&netdev.ifindex) == Some(&netdev) {
                return Change::default();
            }
            let doubt = leaves_doubt(table, &netdev);
            (Some(NetdevEvent::New(netdev)), doubt)
        }
        // A veth's other end is not told that this one has moved.
        Message::NetdevGone { ifindex, moved } => {
            (table.netdevs.contains_key(&ifindex).then_some(NetdevEvent::Gone(ifindex)), moved)
        }
        Message::Address(ifindex, address) => (None, !has_address(table, ifindex, address)),
        Message::AddressGone(ifindex, address) => (None, has_address(table, ifindex, address)),
        Message::DefaultRoute(_) | Message::DefaultRouteGone => (None, true),
        Message::Other => (None, false),
    };
    if let Some(event) = &event {
        table.apply(event.clone());
    }
    Change { event, doubt }
}

fn has_address(table: &NetdevTable, ifindex: u32, address: std::net::IpAddr) -> bool {
    table.addresses.get(&ifindex).is_some_and(|addresses| addresses.contains(&address))
}

fn leaves_doubt(table: &NetdevTable, netdev: &Netdev) -> bool {
    // The kernel removes the IPv4 routes of a netdev that goes down, and announces none of that.
    let lost_its_route = !netdev.up && table.default_routes.contains(&netdev.ifindex);
    let veth = match (&netdev.kind, netdev.lower) {
        // The first end of a pair is announced before the kernel has tied the other one to it.
        (Kind::Veth { peer_elsewhere: false }, None) => true,
        // What we know of the other end is older than this pair.
        (Kind::Veth { .. }, Some(peer)) => {
            table.netdevs.get(&peer).is_some_and(|peer| peer.lower != Some(netdev.ifindex))
        }
        _ => false,
    };
    lost_its_route || veth
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn netdev(ifindex: u32, kind: Kind, lower: Option<u32>) -> Netdev {
        Netdev {
            ifindex,
            name: format!("n{ifindex}"),
            kind,
            driver: None,
            mac: Some([2, 0, 0, 0, 0, 1]),
            alias: None,
            altnames: Vec::new(),
            master: None,
            lower,
            up: true,
            mtu: 1500,
        }
    }

    fn veth(ifindex: u32, lower: Option<u32>, peer_elsewhere: bool) -> Netdev {
        netdev(ifindex, Kind::Veth { peer_elsewhere }, lower)
    }

    fn table() -> NetdevTable {
        let netdevs = [
            netdev(1, Kind::Physical, None),
            netdev(2, Kind::Tap, None),
            veth(3, Some(4), false),
            veth(4, Some(3), false),
            veth(5, None, true),
        ];
        NetdevTable {
            netdevs: netdevs.map(|netdev| (netdev.ifindex, netdev)).into(),
            addresses: BTreeMap::from([(1, BTreeSet::from(["192.0.2.1".parse().unwrap()]))]),
            default_routes: BTreeSet::from([1]),
        }
    }

    #[test]
    fn message_gives_an_event_if_it_is_news_and_a_doubt_if_it_is_not_all() {
        let down = |netdev: Netdev| Netdev { up: false, ..netdev };
        let link = |netdev| Message::Netdev(Link { netdev, parent: None });
        let new = |netdev| Some(NetdevEvent::New(netdev));
        let ip = |text: &str| text.parse().unwrap();
        for (what, message, event, doubt) in [
            ("known", link(netdev(2, Kind::Tap, None)), None, false),
            (
                "uplink down",
                link(down(netdev(1, Kind::Physical, None))),
                new(down(netdev(1, Kind::Physical, None))),
                true,
            ),
            (
                "tap down",
                link(down(netdev(2, Kind::Tap, None))),
                new(down(netdev(2, Kind::Tap, None))),
                false,
            ),
            ("veth of an unknown pair", link(veth(6, Some(7), false)), new(veth(6, Some(7), false)), false),
            ("veth without a peer", link(veth(6, None, false)), new(veth(6, None, false)), true),
            ("veth with a peer elsewhere", link(veth(6, None, true)), new(veth(6, None, true)), false),
            (
                "veth that came back to its peer",
                link(veth(6, Some(5), false)),
                new(veth(6, Some(5), false)),
                true,
            ),
            ("gone", Message::NetdevGone { ifindex: 2, moved: false }, Some(NetdevEvent::Gone(2)), false),
            ("moved", Message::NetdevGone { ifindex: 3, moved: true }, Some(NetdevEvent::Gone(3)), true),
            ("unknown is gone", Message::NetdevGone { ifindex: 9, moved: false }, None, false),
            ("known address", Message::Address(1, ip("192.0.2.1")), None, false),
            ("new address", Message::Address(1, ip("192.0.2.2")), None, true),
            ("address of another", Message::Address(2, ip("192.0.2.1")), None, true),
            ("address is gone", Message::AddressGone(1, ip("192.0.2.1")), None, true),
            ("unknown address is gone", Message::AddressGone(1, ip("192.0.2.2")), None, false),
            ("default route", Message::DefaultRoute(vec![1]), None, true),
            ("default route is gone", Message::DefaultRouteGone, None, true),
            ("other", Message::Other, None, false),
        ] {
            let mut changed = table();
            let mut expected = table();
            if let Some(event) = event.clone() {
                expected.apply(event);
            }
            let change = follow(&mut changed, message, |link| link.netdev);
            assert_eq!(change, Change { event, doubt }, "{what}");
            assert_eq!(changed, expected, "{what}");
        }
    }
}

//! Netdevs of named namespaces: the same number in two of them, and namespaces that come and go.

use std::collections::BTreeMap;

use super::{Bench, Event, NetdevEvent, NetdevTable, left, nothing_added, tap};
use crate::{
    datapath::{
        Attachment, Retry,
        fake::{FakeDatapath, error},
    },
    netdev::{
        NamespaceId, NetdevId,
        namespaces::{Entrance, Identity, NamespaceEvent},
    },
    rules::MeterSet,
};

fn identity(inode: u64) -> Identity {
    Identity { device: 4, inode, cookie: 0 }
}

impl Bench {
    fn following(attached: BTreeMap<NetdevId, Attachment>) -> Self {
        Self::on(FakeDatapath::adopting(attached), MeterSet::default(), nothing_added(), true)
    }

    fn here(&mut self, inode: u64, name: &str) -> &mut Self {
        let entrance = Entrance::own().unwrap();
        let (identity, name) = (identity(inode), name.to_owned());
        self.send(Event::Namespace(NamespaceEvent::Here { identity, name, entrance }))
    }

    fn dumped(&mut self, inode: u64, netdevs: &[(u32, &str)]) -> &mut Self {
        let netdevs = netdevs.iter().map(|&(ifindex, name)| (ifindex, tap(ifindex, name))).collect();
        self.within(inode, NetdevEvent::All(NetdevTable { netdevs, ..NetdevTable::default() }))
    }

    fn within(&mut self, inode: u64, event: NetdevEvent) -> &mut Self {
        self.send(Event::Namespace(NamespaceEvent::Netdev(identity(inode), event)))
    }

    fn gone(&mut self, inode: u64) -> &mut Self {
        self.send(Event::Namespace(NamespaceEvent::Gone(identity(inode))))
    }

    fn looked(&mut self) -> &mut Self {
        self.send(Event::Namespace(NamespaceEvent::Looked(BTreeMap::new())))
    }

    /// Ports that a netdev carries: namespace, netdev and received bytes.
    fn carried(&mut self) -> Vec<(String, String, u64)> {
        self.settle();
        let snapshot = self.snapshot();
        let carried = snapshot.ports.iter().filter_map(|port| {
            let carrier = port.carrier.as_ref()?;
            Some((carrier.netns.clone(), carrier.netdev.clone(), port.ingress.wire().bytes))
        });
        let mut carried: Vec<_> = carried.collect();
        carried.sort();
        carried
    }
}

fn id(namespace: u32, ifindex: u32) -> NetdevId {
    NetdevId { namespace: NamespaceId(namespace), ifindex }
}

fn row(netns: &str, netdev: &str, bytes: u64) -> (String, String, u64) {
    (netns.to_owned(), netdev.to_owned(), bytes)
}

#[test]
fn same_number_and_name_in_three_namespaces_are_three_ports() {
    let mut bench = Bench::following(BTreeMap::new());
    bench.netdevs(&[(2, "eth0")]).here(7, "red").dumped(7, &[(2, "eth0")]);
    bench.here(8, "blue").dumped(8, &[(2, "eth0")]).looked().settle();
    for (netdev, bytes) in [(id(0, 2), 1), (id(1, 2), 20), (id(2, 2), 300)] {
        bench.agent.datapath.receive(netdev, 1, bytes);
    }
    let rows = [row("", "eth0", 1), row("blue", "eth0", 300), row("red", "eth0", 20)];
    assert_eq!(bench.carried(), rows);
    let listed: Vec<(String, String)> =
        bench.snapshot().netdevs.iter().map(|row| (row.netns.clone(), row.role.clone())).collect();
    let port = |netns: &str| (netns.to_owned(), "port".to_owned());
    assert_eq!(listed, [port(""), port("red"), port("blue")]);
    assert_eq!(bench.snapshot().health.namespaces, Some(2));
    assert!(bench.snapshot().health.ready);
}

#[test]
fn ready_is_when_the_namespaces_are_attached_too() {
    let mut bench = Bench::following(BTreeMap::new());
    bench.netdevs(&[(2, "eth0")]).settle();
    assert!(!bench.snapshot().health.ready, "no namespace was looked at");
    bench.here(7, "red").looked().settle();
    assert!(!bench.snapshot().health.ready, "nor what is in it");
    bench.dumped(7, &[]).settle();
    assert!(bench.snapshot().health.ready);
}

#[test]
fn namespace_made_again_under_its_name_goes_on_from_its_total() {
    let mut bench = Bench::following(BTreeMap::new());
    bench.netdevs(&[]).here(7, "red").dumped(7, &[(2, "eth0"), (3, "eth1")]).looked().settle();
    bench.agent.datapath.receive(id(1, 2), 1, 100);
    assert_eq!(bench.calls(), ["attach eth0", "attach eth1"]);
    bench.gone(7).settle();
    assert_eq!(bench.calls(), ["detach 2 of 1", "detach 3 of 1", "leave 1"]);
    assert_eq!(bench.carried(), []);
    assert_eq!(bench.snapshot().ports.len(), 2, "the ports stay");
    // Another number, and other numbers in it.
    bench.here(9, "red").dumped(9, &[(5, "eth0")]).settle();
    bench.agent.datapath.receive(id(1, 5), 1, 11);
    assert_eq!(bench.carried(), [row("red", "eth0", 111)]);
}

#[test]
fn netdev_that_goes_in_one_namespace_stays_in_the_others() {
    let mut bench = Bench::following(BTreeMap::new());
    bench.netdevs(&[(2, "eth0")]).here(7, "red").dumped(7, &[(2, "eth0")]).looked().settle();
    assert_eq!(bench.calls(), ["attach eth0", "attach eth0"]);
    bench.within(7, NetdevEvent::Gone(2)).settle();
    assert_eq!(bench.calls(), ["detach 2 of 1"]);
    bench.within(7, NetdevEvent::New(tap(4, "eth4"))).settle();
    assert_eq!(bench.calls(), ["attach eth4"]);
    assert_eq!(bench.carried(), [row("", "eth0", 0), row("red", "eth4", 0)]);
}

#[test]
fn renamed_namespace_carries_other_ports() {
    let mut bench = Bench::following(BTreeMap::new());
    bench.netdevs(&[]).here(7, "red").dumped(7, &[(2, "eth0")]).looked().settle();
    bench.agent.datapath.receive(id(1, 2), 1, 100);
    bench.here(7, "green").settle();
    assert_eq!(bench.carried(), [row("green", "eth0", 0)]);
}

#[test]
fn what_an_earlier_agent_left_in_a_namespace_waits_until_all_are_known() {
    let attached = [id(1, 2), id(2, 2)].map(|netdev| (netdev, left(netdev)));
    let mut bench = Bench::following(attached.into());
    bench.agent.datapath.entered = [(NamespaceId(1), identity(7)), (NamespaceId(2), identity(8))].into();
    bench.netdevs(&[]).settle();
    assert_eq!(bench.calls(), [""; 0]);
    let undecided = |bench: &Bench| bench.agent.datapath.capture.undecided.len();
    assert_eq!(undecided(&bench), 1, "and its connections count as they did");
    bench.here(7, "red").settle();
    assert_eq!(bench.calls(), [""; 0], "what is in it is not known");
    bench.looked().settle();
    assert_eq!(bench.calls(), ["detach 2 of 2", "leave 2"], "nobody follows this one any more");
    bench.dumped(7, &[(2, "eth0")]).settle();
    assert_eq!(bench.calls(), ["attach eth0"]);
    assert_eq!(undecided(&bench), 0);
}

#[test]
fn what_is_left_in_namespaces_is_put_away_where_none_are_followed() {
    let mut bench = Bench::adopting([(id(3, 2), left(id(3, 2)))].into());
    bench.netdevs(&[]).settle();
    assert_eq!(bench.calls(), ["detach 2 of 3", "leave 3"]);
    assert_eq!(bench.snapshot().health.namespaces, None);
}

#[test]
fn names_that_can_not_be_followed_are_known() {
    let mut bench = Bench::following(BTreeMap::new());
    let failed = BTreeMap::from([("red".to_owned(), "not permitted".to_owned())]);
    bench.netdevs(&[(2, "eth0")]).send(Event::Namespace(NamespaceEvent::Looked(failed.clone()))).settle();
    let health = &bench.snapshot().health;
    assert_eq!((&health.namespaces_failed, health.ready), (&failed, true), "the host's netdevs go on");
    assert_eq!(health.attach_pending, 1);
}

#[test]
fn namespace_that_was_refused_is_tried_again_and_what_it_said_meanwhile_holds() {
    let mut bench = Bench::following(BTreeMap::new());
    bench.agent.datapath.enter_errors = (0..2).map(|_| error("namespaces_full", Retry::Later)).collect();
    bench.netdevs(&[]).here(7, "red").looked().dumped(7, &[(2, "eth0")]);
    bench.within(7, NetdevEvent::New(tap(3, "eth1"))).settle();
    let failed = BTreeMap::from([("red".to_owned(), "attach failed for namespaces_full".to_owned())]);
    assert_eq!(bench.snapshot().health.namespaces_failed, failed);
    assert_eq!((bench.snapshot().health.ready, bench.calls()), (true, Vec::new()));
    bench.ticks(1);
    assert_eq!(bench.calls(), [""; 0], "refused again");
    bench.ticks(1);
    assert_eq!(bench.calls(), [""; 0], "it waits for longer");
    bench.ticks(1);
    assert_eq!(bench.calls(), ["attach eth0", "attach eth1"]);
    assert_eq!(bench.carried(), [row("red", "eth0", 0), row("red", "eth1", 0)]);
    let health = &bench.snapshot().health;
    assert_eq!((health.namespaces, health.namespaces_failed.len(), health.settled), (Some(1), 0, true));
    // One that goes before it could be followed is nothing that waits.
    bench.agent.datapath.enter_errors = [error("namespaces_full", Retry::Later)].into();
    bench.here(8, "blue").settle();
    bench.gone(8).ticks(3);
    assert_eq!(bench.snapshot().health.namespaces_failed, BTreeMap::new());
    assert_eq!(bench.agent.datapath.entered.len(), 1);
}

#[test]
fn directory_that_can_not_be_read_keeps_nothing_from_being_ready_and_takes_nothing_away() {
    let mut bench = Bench::following([(id(1, 2), left(id(1, 2)))].into());
    bench.agent.datapath.entered = [(NamespaceId(1), identity(7))].into();
    bench.netdevs(&[(2, "eth0")]);
    bench.send(Event::Namespace(NamespaceEvent::NotLooked("not permitted".to_owned()))).settle();
    assert_eq!(bench.calls(), ["attach eth0"], "what is in namespaces is not known");
    let health = bench.snapshot().health.clone();
    let failed = BTreeMap::from([("/run/netns".to_owned(), "not permitted".to_owned())]);
    assert_eq!((health.ready, health.namespaces_failed, health.attach_pending), (true, failed, 1));
    bench.looked().settle();
    assert_eq!(bench.calls(), ["detach 2 of 1", "leave 1"]);
    assert_eq!(bench.snapshot().health.namespaces_failed, BTreeMap::new());
}

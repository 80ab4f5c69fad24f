//! Whatever happens in whatever order.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::{Just, Strategy, any, prop_assert_eq, prop_oneof, proptest};

use super::{Bench, Event, NetdevEvent, PortId, Retry, Target, binding, error, policy, port, read, tap};
use crate::{datapath::fake::NO_PORT, netdev::NetdevId};

/// What may happen to a host with four netdevs.
#[derive(Debug, Clone)]
enum Happening {
    /// A netdev comes, or is there with another binding.
    Here(u32),
    Gone(u32),
    /// Gone and here again before the agent looks.
    Replaced(u32),
    /// The bindings' ports, by netdev; 0 leaves it to its name.
    Bound([u128; 4]),
    Removed(u32),
    Fails(u32, bool),
    Dump,
    Ticks,
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let netdev = || 0..4u32;
    let happening = prop_oneof![
        netdev().prop_map(Happening::Here),
        netdev().prop_map(Happening::Here),
        netdev().prop_map(Happening::Gone),
        netdev().prop_map(Happening::Replaced),
        [0..5u128, 0..5u128, 0..5u128, 0..5u128].prop_map(Happening::Bound),
        netdev().prop_map(Happening::Removed),
        (netdev(), any::<bool>()).prop_map(|(netdev, port)| Happening::Fails(netdev, port)),
        Just(Happening::Dump),
        Just(Happening::Ticks),
    ];
    proptest::collection::vec(happening, 0..40)
}

fn ifname(netdev: u32) -> String {
    format!("tap{netdev}")
}

/// Lets one thing happen, and the agent do what follows.
fn happen(bench: &mut Bench, here: &mut BTreeSet<u32>, happening: Happening) {
    match happening {
        Happening::Here(netdev) => {
            here.insert(netdev);
            bench.send(Event::Netdev(NetdevEvent::New(tap(netdev + 2, &ifname(netdev)))));
        }
        Happening::Gone(netdev) => {
            here.remove(&netdev);
            bench.send(Event::Netdev(NetdevEvent::Gone(netdev + 2)));
        }
        Happening::Replaced(netdev) => {
            if here.contains(&netdev) {
                if bench.agent.datapath.attached.contains_key(&(netdev + 2).into()) {
                    bench.agent.datapath.removed.insert((netdev + 2).into());
                }
                bench.send(Event::Netdev(NetdevEvent::Gone(netdev + 2)));
                bench.send(Event::Netdev(NetdevEvent::New(tap(netdev + 2, &ifname(netdev)))));
            }
        }
        Happening::Bound(ports) => {
            let bound = (0..4u32).zip(ports).filter(|(_, number)| *number != 0);
            let bound = bound.map(|(netdev, number)| binding(&ifname(netdev), port(number)));
            bench.send(read(policy(bound.collect()), 9));
        }
        Happening::Removed(netdev) => {
            if bench.agent.datapath.attached.contains_key(&(netdev + 2).into()) {
                bench.agent.datapath.removed.insert((netdev + 2).into());
            }
        }
        Happening::Fails(netdev, port) => {
            let reason = if port { NO_PORT } else { "busy" };
            let errors = &mut bench.agent.datapath.attach_errors;
            errors.entry(ifname(netdev)).or_default().push_back(error(reason, Retry::Later));
        }
        Happening::Dump => {
            let netdevs: Vec<(u32, String)> =
                here.iter().map(|netdev| (netdev + 2, ifname(*netdev))).collect();
            let netdevs: Vec<(u32, &str)> = netdevs.iter().map(|(i, name)| (*i, name.as_str())).collect();
            bench.netdevs(&netdevs);
        }
        Happening::Ticks => drop(bench.ticks(11)),
    }
    bench.settle();
}

/// Asserts that no port is on two netdevs, and that every interface says of each netdev what the datapath does.
fn books_agree(bench: &mut Bench) {
    bench.settle();
    let attached = &bench.agent.datapath.attached;
    let ports: BTreeSet<PortId> = attached.values().map(|is| is.target.port).collect();
    assert_eq!(ports.len(), attached.len(), "a port is on one netdev: {attached:?}");
    let snapshot = bench.snapshot();
    let listed: Vec<NetdevId> =
        snapshot.netdevs.iter().filter(|row| row.ingress.is_some()).map(|row| row.ifindex.into()).collect();
    assert_eq!(listed, attached.keys().copied().collect::<Vec<_>>());
    for port in &snapshot.ports {
        if let Some(carrier) = &port.carrier {
            assert_eq!(attached[&carrier.id].target.port, port.port);
        }
    }
}

proptest! {
    /// Whatever comes, moves, vanishes or fails: at every time what is said is what is attached, and in the end
    /// everything is attached as it should be and counts for its port.
    #[test]
    fn what_is_said_is_what_is_attached(happenings in happenings()) {
        let mut bench = Bench::new();
        let mut here = BTreeSet::new();
        bench.netdevs(&[]).settle();
        for happening in happenings {
            happen(&mut bench, &mut here, happening);
            books_agree(&mut bench);
        }
        bench.agent.datapath.attach_errors.clear();
        happen(&mut bench, &mut here, Happening::Dump);
        bench.ticks(70);
        books_agree(&mut bench);
        let targets: BTreeMap<NetdevId, Target> =
            bench.agent.datapath.attached.iter().map(|(i, is)| (*i, is.target.clone())).collect();
        prop_assert_eq!(&targets, &bench.agent.survey.desired);
        let received = |bench: &mut Bench| -> BTreeMap<PortId, u64> { bench.received().into_iter().collect() };
        let before = received(&mut bench);
        targets.keys().for_each(|&id| bench.agent.datapath.receive(id, 1, 1 << id.ifindex));
        let after = received(&mut bench);
        let gained: BTreeMap<PortId, u64> = after
            .into_iter()
            .map(|(port, bytes)| (port, bytes - before.get(&port).copied().unwrap_or_default()))
            .filter(|(_, bytes)| *bytes > 0)
            .collect();
        let expected: BTreeMap<PortId, u64> =
            targets.iter().map(|(id, target)| (target.port, 1 << id.ifindex)).collect();
        prop_assert_eq!(gained, expected);
    }
}

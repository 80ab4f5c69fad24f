use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};
use uuid::Uuid;

use super::{Step, plan as plan_with};
use crate::{
    datapath::{Attachment, Class, HookKind, IngressHook, Target},
    meter::PortId,
    netdev::NetdevId,
};

fn target(ifindex: u32, port: u8, underlay: bool) -> Target {
    Target {
        id: ifindex.into(),
        netns: String::new(),
        netdev: format!("tap{ifindex}"),
        port: PortId(Uuid::from_u128(port.into())),
        class: if underlay { Class::Uplink } else { Class::Port },
        device: None,
        underlay,
        ingress: IngressHook::Tc,
        network: meter_ebpf::abi::Network::NONE,
    }
}

fn by_ifindex(targets: impl IntoIterator<Item = Target>) -> BTreeMap<NetdevId, Target> {
    targets.into_iter().map(|target| (target.id, target)).collect()
}

fn attached(targets: &BTreeMap<NetdevId, Target>) -> BTreeMap<NetdevId, Attachment> {
    targets
        .iter()
        .map(|(&ifindex, target)| {
            let target = target.clone();
            (ifindex, Attachment::new(target, [HookKind::Tcx; 2]))
        })
        .collect()
}

/// What is to be done where no netdev is known to be gone.
fn plan(desired: &BTreeMap<NetdevId, Target>, attached: &BTreeMap<NetdevId, Attachment>) -> Vec<Step> {
    plan_with(desired, attached, &BTreeSet::new())
}

#[test]
fn detaches_come_first_and_uplinks_before_ports() {
    let is = attached(&by_ifindex([target(9, 1, false), target(5, 2, false)]));
    let should = by_ifindex([target(2, 1, false), target(5, 2, false), target(7, 3, true)]);
    assert_eq!(
        plan(&should, &is),
        [Step::Detach { id: 9.into() }, Step::Attach(target(7, 3, true)), Step::Attach(target(2, 1, false)),]
    );
}

#[test]
fn whatever_differs_is_attached_again() {
    let is = attached(&by_ifindex([target(2, 1, false)]));
    for changed in [
        Target { netdev: "renamed".to_owned(), ..target(2, 1, false) },
        Target { port: PortId(Uuid::from_u128(8)), ..target(2, 1, false) },
        Target { ingress: IngressHook::Xdp, ..target(2, 1, false) },
        target(2, 1, true),
    ] {
        let should = by_ifindex([changed.clone()]);
        assert_eq!(plan(&should, &is), [Step::Attach(changed)]);
    }
}

#[test]
fn port_is_left_before_it_is_taken() {
    let is = attached(&by_ifindex([target(2, 1, false), target(3, 2, false)]));
    // 2 takes the port of 3, which takes a new one; 1 is new and takes the one that 2 leaves.
    let should = by_ifindex([target(1, 1, false), target(2, 2, false), target(3, 3, false)]);
    let order = [3, 2, 1].map(|ifindex| Step::Attach(should[&NetdevId::from(ifindex)].clone()));
    assert_eq!(plan(&should, &is), order);
}

#[test]
fn ports_that_go_in_a_circle_are_exchanged() {
    let is = attached(&by_ifindex([target(2, 1, false), target(3, 2, false), target(4, 3, false)]));
    let renamed = Target { netdev: "renamed".to_owned(), ..target(3, 3, false) };
    let should = by_ifindex([target(2, 2, false), renamed.clone(), target(4, 1, false)]);
    let circle = vec![target(2, 2, false), renamed.clone(), target(4, 1, false)];
    assert_eq!(plan(&should, &is), [Step::Exchange(circle), Step::Attach(renamed)]);
}

#[test]
fn netdev_that_is_gone_is_detached_whoever_has_its_number() {
    let should = by_ifindex([target(2, 1, false), target(3, 2, false)]);
    let is = attached(&should);
    let steps = [Step::Detach { id: 2.into() }, Step::Attach(target(2, 1, false))];
    assert_eq!(plan_with(&should, &is, &BTreeSet::from([2.into(), 9.into()])), steps);
}

#[test]
fn lost_hooks_and_those_of_an_earlier_agent_are_attached_again() {
    let targets = [target(2, 1, false), target(3, 2, false), target(4, 3, false)];
    let should = by_ifindex(targets.clone());
    let mut is = attached(&should);
    is.get_mut(&3.into()).unwrap().lost = true;
    is.get_mut(&4.into()).unwrap().earlier = true;
    let [_, lost, earlier] = targets;
    assert_eq!(plan(&should, &is), [lost, earlier].map(Step::Attach));
}

/// Netdevs with a port each, which no two of them share.
fn tables() -> impl Strategy<Value = BTreeMap<NetdevId, Target>> {
    let row = (1..9u32, 0..10u8, any::<bool>());
    proptest::collection::vec(row, 0..12).prop_map(|rows| {
        let ports: BTreeMap<u8, (u32, bool)> =
            rows.into_iter().map(|(ifindex, port, underlay)| (port, (ifindex, underlay))).collect();
        by_ifindex(ports.into_iter().map(|(port, (ifindex, underlay))| target(ifindex, port, underlay)))
    })
}

/// Takes the steps by the datapath's law; no step takes a port from a netdev that stays.
fn take(steps: Vec<Step>, is: &mut BTreeMap<NetdevId, Attachment>) {
    for step in steps {
        match step {
            Step::Attach(target) => {
                let holder = is.values().find(|is| is.target.port == target.port);
                assert!(holder.is_none_or(|is| is.target.id == target.id), "{target:?} {holder:?}");
                is.extend(attached(&by_ifindex([target])));
            }
            Step::Exchange(targets) => {
                let exchanged = targets.iter().map(|target| {
                    let before = is[&target.id].clone();
                    (target.id, Attachment { target: before.with_port_of(target), ..before })
                });
                let exchanged: Vec<_> = exchanged.collect();
                let ports = |targets: &mut dyn Iterator<Item = PortId>| targets.collect::<BTreeSet<_>>();
                assert_eq!(
                    ports(&mut targets.iter().map(|target| is[&target.id].target.port)),
                    ports(&mut targets.iter().map(|target| target.port))
                );
                is.extend(exchanged);
            }
            Step::Detach { id } => drop(is.remove(&id)),
        }
    }
}

proptest! {
    /// Taking all steps leads to what should be, and then there is nothing left to do. Only what should not be attached,
    /// or is gone, is detached.
    #[test]
    fn steps_lead_to_what_should_be(
        before in tables(),
        should in tables(),
        gone in proptest::collection::btree_set(1..9u32, 0..3),
    ) {
        let mut is = attached(&before);
        let gone = gone.into_iter().map(NetdevId::from).collect();
        let steps = plan_with(&should, &is, &gone);
        for step in &steps {
            if let Step::Detach { id } = step {
                prop_assert!(!should.contains_key(id) || gone.contains(id));
            }
        }
        take(steps, &mut is);
        prop_assert_eq!(&is, &attached(&should));
        prop_assert_eq!(plan(&should, &is), []);
    }
}

use std::collections::BTreeMap;

use proptest::prelude::{Strategy, any, prop_assert_eq, proptest};
use uuid::Uuid;

use super::{Step, plan};
use crate::{
    datapath::{Attachment, Class, HookKind, IngressHook, Target},
    meter::PortId,
};

fn target(ifindex: u32, port: u8, underlay: bool) -> Target {
    Target {
        ifindex,
        netdev: format!("tap{ifindex}"),
        port: PortId(Uuid::from_u128(port.into())),
        class: if underlay { Class::Uplink } else { Class::Port },
        device: None,
        underlay,
        ingress: IngressHook::Tc,
    }
}

fn by_ifindex(targets: impl IntoIterator<Item = Target>) -> BTreeMap<u32, Target> {
    targets.into_iter().map(|target| (target.ifindex, target)).collect()
}

fn attached(targets: &BTreeMap<u32, Target>) -> BTreeMap<u32, Attachment> {
    targets
        .iter()
        .map(|(&ifindex, target)| {
            let target = target.clone();
            (ifindex, Attachment { target, ingress: HookKind::Tcx, egress: HookKind::Tcx })
        })
        .collect()
}

#[test]
fn detaches_come_first_and_uplinks_before_ports() {
    let is = attached(&by_ifindex([target(9, 1, false), target(5, 2, false)]));
    let should = by_ifindex([target(2, 1, false), target(5, 2, false), target(7, 3, true)]);
    assert_eq!(
        plan(&should, &is),
        [Step::Detach { ifindex: 9 }, Step::Attach(target(7, 3, true)), Step::Attach(target(2, 1, false)),]
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

fn tables() -> impl Strategy<Value = BTreeMap<u32, Target>> {
    let row =
        (1..12u32, any::<u8>(), any::<bool>()).prop_map(|(i, port, underlay)| target(i, port, underlay));
    proptest::collection::vec(row, 0..10).prop_map(by_ifindex)
}

proptest! {
    /// Taking all steps leads to what should be, and then there is nothing left to do.
    #[test]
    fn steps_lead_to_what_should_be(before in tables(), should in tables()) {
        let mut is = attached(&before);
        for step in plan(&should, &is) {
            match step {
                Step::Attach(target) => {
                    is.extend(attached(&by_ifindex([target])));
                }
                Step::Detach { ifindex } => drop(is.remove(&ifindex)),
            }
        }
        prop_assert_eq!(&is, &attached(&should));
        prop_assert_eq!(plan(&should, &is), []);
    }
}

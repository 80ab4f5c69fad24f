//! What is refused costs nothing that counts, and is tried again in its time.

use meter_ebpf::abi::{Buckets, Direction};

use super::*;
use crate::{
    datapath::{BucketReading, MetersError, fake::NO_PROGRAM},
    meter::DeviceId,
};

#[test]
fn refused_change_keeps_what_counts_and_is_tried_again() {
    let mut bench = Bench::new();
    let errors = VecDeque::from([error("xdp_busy", Retry::Later), error("xdp_busy", Retry::Later)]);
    bench.netdevs(&[(2, "eth0")]);
    let mut uplinks = policy(vec![]);
    uplinks.rules.uplinks = vec!["eth0".parse().unwrap()];
    bench.send(read(uplinks.clone(), 9)).settle();
    let eth0 = Netdev::bare(2, "eth0", Kind::Physical);
    bench.send(Event::Netdev(NetdevEvent::New(eth0))).settle();
    bench.agent.datapath.attach_errors.insert("eth0".to_owned(), errors);
    uplinks.rules.uplink_ingress = IngressHook::Xdp;
    bench.send(read(uplinks, 10)).settle();
    bench.agent.datapath.receive(2, 1, 100);
    bench.settle();
    let snapshot = bench.snapshot();
    assert_eq!(snapshot.ports.iter().map(|port| port.ingress.wire().bytes).sum::<u64>(), 100);
    let row = &snapshot.netdevs[0];
    assert_eq!((row.ingress.as_deref(), &*row.reason), (Some("tcx"), "attach failed for xdp_busy"));
    assert_eq!(snapshot.health.attach_pending, 1);
    bench.ticks(3);
    assert_eq!(bench.snapshot().netdevs[0].ingress.as_deref(), Some("xdp"));
    assert_eq!(bench.snapshot().health.attach_pending, 0);
    assert!(bench.calls().iter().all(|call| call == "attach eth0"), "never detached");
}

#[test]
fn hooks_that_are_removed_after_a_refusal_for_good_are_made_again_as_they_were() {
    let mut bench = Bench::new();
    bench.netdevs(&[(2, "tap0"), (3, "tap1")]).settle();
    bench.agent.datapath.refused = Some(Class::Uplink);
    let mut rules = policy(vec![]);
    rules.rules.uplinks = vec!["tap0".parse().unwrap()];
    bench.send(read(rules, 9)).settle();
    bench.calls();
    bench.ticks(59);
    assert_eq!(bench.calls(), [""; 0], "refused for good");
    bench.agent.datapath.removed.insert(2.into());
    bench.agent.datapath.attach_errors.insert("tap0".to_owned(), [error("qdisc", Retry::Later)].into());
    bench.ticks(60);
    assert_eq!(bench.calls(), ["attach tap0", "attach tap0"], "made again, at the second attempt");
    let is = &bench.agent.datapath.attached[&2.into()];
    assert_eq!((is.target.class, is.lost), (Class::Port, false));
    bench.agent.datapath.receive(2, 1, 100);
    bench.ticks(1);
    let snapshot = bench.snapshot();
    assert_eq!(snapshot.ports.iter().map(|port| port.ingress.wire().bytes).sum::<u64>(), 100);
    assert_eq!((snapshot.health.hooks_lost, snapshot.health.attach_pending), (1, 1));
    assert_eq!(snapshot.netdevs[0].reason, format!("attach failed for {NO_PROGRAM}"));
}

#[test]
fn hooks_that_are_removed_before_a_refusal_for_good_are_made_again_as_they_were() {
    let mut bench = Bench::new();
    bench.netdevs(&[(2, "tap0")]).settle();
    bench.agent.datapath.refused = Some(Class::Uplink);
    bench.agent.datapath.removed.insert(2.into());
    let mut rules = policy(vec![]);
    rules.rules.uplinks = vec!["tap0".parse().unwrap()];
    bench.calls();
    bench.send(read(rules, 9)).settle();
    assert_eq!(bench.calls(), ["attach tap0", "attach tap0"], "what should be, and what was there");
    bench.agent.datapath.receive(2, 1, 100);
    bench.ticks(1);
    let snapshot = bench.snapshot();
    assert_eq!(snapshot.ports.iter().map(|port| port.ingress.wire().bytes).sum::<u64>(), 100);
    assert_eq!((snapshot.ports[0].class, snapshot.health.attach_pending), (Class::Port, 1));
}

#[test]
fn what_an_earlier_agent_left_is_attached_as_it_was_where_its_change_is_refused() {
    let mut bench = Bench::adopting([(2.into(), left(2.into()))].into());
    bench.agent.datapath.refused = Some(Class::Uplink);
    let mut uplink = policy(vec![]);
    uplink.rules.uplinks = vec!["tap0".parse().unwrap()];
    bench.send(read(uplink, 9)).netdevs(&[(2, "tap0")]).settle();
    assert_eq!(
        bench.calls(),
        ["attach tap0", "attach tap0"],
        "the change, and this agent's programs for what it is"
    );
    let is = &bench.agent.datapath.attached[&2.into()];
    assert_eq!((&*is.target.netdev, is.target.class, is.is_stale()), ("tap0", Class::Port, false));
    let snapshot = bench.snapshot();
    assert_eq!((snapshot.ports.len(), snapshot.health.attach_pending), (1, 1));
    // Another configuration may help.
    bench.agent.datapath.refused = None;
    bench.send(read(policy(vec![binding("tap0", port(3))]), 10)).settle();
    assert_eq!((bench.calls(), bench.snapshot().health.attach_pending), (vec!["attach tap0".to_owned()], 0));
}

#[test]
fn refused_netdev_stays_what_it_was() {
    let target = |number: u128, class: Class, device: Option<u128>| Target {
        id: 2.into(),
        netdev: "eth0".to_owned(),
        netns: String::new(),
        port: port(number),
        class,
        device: device.map(|device| DeviceId(Uuid::from_u128(device))),
        underlay: class == Class::Uplink,
        ingress: IngressHook::Tc,
        network: meter_ebpf::abi::Network::NONE,
    };
    let (port, uplink) = (Class::Port, Class::Uplink);
    for (is, wanted, expected) in [
        // Another port is had by any program, and with it the port's device.
        (target(5, port, Some(7)), target(6, port, Some(8)), target(6, port, Some(8))),
        (target(5, port, Some(7)), target(5, uplink, None), target(5, port, Some(7))),
        (target(5, port, Some(7)), target(6, uplink, None), target(6, port, None)),
        (target(5, uplink, None), target(5, port, Some(7)), target(5, uplink, None)),
    ] {
        // What an earlier agent left has no names.
        let is = Target { netdev: String::new(), ..is };
        let attachment = Attachment::new(is, [HookKind::Tcx; 2]);
        assert_eq!(attachment.on_to(&wanted), expected);
    }
}

#[test]
fn retries_that_are_refused_are_no_gaps() {
    let mut bench = Bench::new();
    bench.netdevs(&[(2, "tap0")]).settle();
    let gaps = |bench: &mut Bench| bench.settle().snapshot().ports[0].carrier.as_ref().unwrap().since.gaps;
    let id = NetdevId::from(2);
    // Hooks that count, with a change to come that is refused.
    bench.agent.datapath.attached.get_mut(&id).unwrap().lost = true;
    let refused = || error("verifier", Retry::Later);
    bench.agent.datapath.attach_errors.insert("tap0".to_owned(), [refused(), refused()].into());
    bench.netdevs(&[(2, "tap0")]);
    assert_eq!(gaps(&mut bench), 0);
    bench.ticks(1);
    assert_eq!(gaps(&mut bench), 0);
    bench.ticks(2);
    assert!(!bench.agent.datapath.attached[&id].lost);
    assert_eq!(gaps(&mut bench), 1, "what was missing may have been frames");
}

#[test]
fn refused_capture_is_not_tried_at_each_change_of_a_netdev() {
    let mut bench = Bench::new();
    let refused = || MetersError("refused".to_owned());
    bench.agent.datapath.capture_errors = [refused(), refused()].into();
    let left = |bench: &Bench| bench.agent.datapath.capture_errors.len();
    bench.netdevs(&[(2, "tap0")]).settle();
    assert_eq!(left(&bench), 1);
    bench.netdevs(&[(2, "tap0"), (3, "tap1")]).settle();
    bench.ticks(9);
    assert_eq!(left(&bench), 1);
    bench.ticks(1);
    assert_eq!(left(&bench), 0, "refused again");
    // Another is another question.
    let mut selected = policy(vec![]);
    selected.connections.netdevs = vec!["tap0".parse().unwrap()];
    bench.send(read(selected, 9)).settle();
    assert_eq!(bench.agent.datapath.capture.ports.len(), 1);
    assert_eq!(bench.snapshot().health.attach_failures, [("connections", 2)].into());
}

#[test]
fn only_what_is_an_uplink_now_is_held_to_its_parts() {
    let mut bench = Bench::new();
    bench.netdevs(&[(2, "eth0")]);
    let eth0 = Netdev::bare(2, "eth0", Kind::Physical);
    bench.send(Event::Netdev(NetdevEvent::New(eth0)));
    let mut rules = policy(vec![binding("eth0", port(5))]);
    rules.rules.uplinks = vec!["eth0".parse().unwrap()];
    bench.send(read(rules.clone(), 9)).settle();
    bench.agent.datapath.buckets = Direction::ALL
        .map(|direction| BucketReading { uplink: port(5), direction, buckets: Buckets::default() })
        .into();
    let parts = |bench: &mut Bench| {
        let snapshot = bench.settle().snapshot();
        assert_eq!(snapshot.buckets.len(), 2, "totals stay");
        snapshot.parts.len()
    };
    bench.ticks(1);
    assert_eq!(parts(&mut bench), 2);
    rules.rules.uplinks.clear();
    bench.send(read(rules, 10));
    assert_eq!(parts(&mut bench), 0);
}

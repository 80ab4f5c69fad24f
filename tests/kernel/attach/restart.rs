//! An agent ends, in whatever way, and the next one goes on: nothing is lost and nothing counts twice.

use super::{
    super::support::{STILL, auto_kind, becomes, tc_modes, until},
    Class, HookKind, IngressHook, Meter, Options, PORT, Pair, Table, Target, TcMode, hooks, moved, ready,
};

/// An agent dies, its hooks go on, and the next one adopts them.
fn die_and_go_on(label: &str, tc: TcMode, target: impl Fn(&Pair) -> Target, kinds: [HookKind; 2]) {
    let pair = Pair::new(label);
    let options = pair.options(tc);
    let target = target(&pair);
    let mut meter = pair.host.open_with(&options);
    meter.attach(&target);
    pair.count(&mut meter, target.class, "the first agent");
    let before = meter.table();
    let all = pair.host.hooks();
    drop(meter);

    assert_eq!(pair.host.hooks(), all);
    pair.send(3, 5);
    let mut meter = pair.host.open_with(&options);
    meter.expect(&before, &moved(target.class, 3, 5), "between the agents");
    let adopted = &meter.attached()[&target.id];
    assert_eq!([adopted.ingress, adopted.egress], kinds);
    assert_eq!(adopted.target, Target { netdev: String::new(), ..target.clone() });
    pair.count(&mut meter, target.class, "adopted");

    let attachment = meter.attach(&target);
    assert_eq!([attachment.ingress, attachment.egress], kinds);
    assert_eq!(pair.host.hooks(), all);
    pair.count(&mut meter, target.class, "attached again");

    // Agents come and go under traffic.
    let before = meter.table();
    drop(meter);
    let (frames, ()) = pair.while_sending(|| {
        for _ in 0..3 {
            pair.host.open_with(&options).attach(&target);
        }
    });
    let mut meter = pair.host.open_with(&options);
    let total = |meter: &mut Meter<'_>| {
        let moved = meter.table().since(&before);
        ["Ingress", "Egress"].map(|direction| moved.get(&format!("port {PORT} {direction}"))[0])
    };
    becomes(|| total(&mut meter), [frames; 2]);

    // What an earlier agent attached can be detached without being attached first.
    let before = meter.table();
    meter.detach(target.id);
    assert_eq!(pair.host.hooks(), [""; 0]);
    assert_eq!(meter.table(), before);
    drop(meter);
    assert_eq!(pair.host.open_with(&options).table(), before, "totals outlive everything");
}

#[test]
fn next_agent_adopts_tcx() {
    if ready() && lab::require::kernel(6, 6, "TCX") {
        die_and_go_on("adopt-tcx", TcMode::Auto, Pair::port, [HookKind::Tcx; 2]);
    }
}

#[test]
fn next_agent_adopts_clsact() {
    if ready() {
        die_and_go_on("adopt-clsact", TcMode::Clsact, Pair::port, [HookKind::Clsact; 2]);
    }
}

#[test]
fn next_agent_adopts_xdp() {
    if ready() {
        let uplink = |pair: &Pair| pair.uplink(IngressHook::Xdp);
        die_and_go_on("adopt-xdp", TcMode::Auto, uplink, [HookKind::Xdp, auto_kind()]);
    }
}

#[test]
fn change_of_the_hooks_between_agents_counts_nothing_twice() {
    if !ready() || !lab::require::kernel(6, 6, "TCX") {
        return;
    }
    let pair = Pair::new("modes");
    let (tc, xdp) = (IngressHook::Tc, IngressHook::Xdp);
    let mut expected = Table::default();
    for (mode, ingress, kinds) in [
        (TcMode::Tcx, tc, [HookKind::Tcx; 2]),
        (TcMode::Clsact, tc, [HookKind::Clsact; 2]),
        (TcMode::Auto, tc, [HookKind::Tcx; 2]),
        (TcMode::Auto, xdp, [HookKind::Xdp, HookKind::Tcx]),
        (TcMode::Clsact, tc, [HookKind::Clsact; 2]),
        (TcMode::Clsact, xdp, [HookKind::Xdp, HookKind::Clsact]),
        (TcMode::Tcx, tc, [HookKind::Tcx; 2]),
    ] {
        let what = format!("{mode:?} {ingress:?}");
        let mut meter = pair.host.open_with(&pair.options(mode));
        assert_eq!(meter.table(), expected, "{what}");
        let attachment = meter.attach(&pair.uplink(ingress));
        assert_eq!([attachment.ingress, attachment.egress], kinds, "{what}");
        pair.count(&mut meter, Class::Uplink, &what);
        expected = expected.plus(&moved(Class::Uplink, 3, 5));
        if kinds[0] == kinds[1] {
            assert_eq!(pair.host.hooks(), hooks(kinds[0], Class::Uplink), "{what}");
        }
    }
}

#[test]
fn change_of_the_hooks_under_traffic_counts_no_frame_twice() {
    if !ready() || !lab::require::kernel(6, 6, "TCX") {
        return;
    }
    let pair = Pair::new("modes-traffic");
    pair.host.open().attach(&pair.port());
    for mode in [TcMode::Clsact, TcMode::Tcx].into_iter().cycle().take(8) {
        let before = pair.host.open().table();
        let (changing, ()) = pair.while_sending(|| {
            pair.host.open_with(&pair.options(mode)).attach(&pair.port());
        });
        let mut meter = pair.host.open_with(&pair.options(mode));
        pair.send(3, 5);
        let counted = |meter: &mut Meter<'_>| {
            let moved = meter.table().since(&before);
            ["Ingress", "Egress"].map(|direction| moved.get(&format!("port {PORT} {direction}"))[0])
        };
        // Frames between two hooks are not counted, however many those are; and none is counted by both.
        let all = [changing + 3, changing + 5];
        until_still(|| counted(&mut meter));
        let [ingress, egress] = counted(&mut meter);
        assert!(ingress <= all[0] && egress <= all[1], "{mode:?}: {ingress}, {egress} of {all:?}");
        assert!(ingress > 3 && egress > 5, "{mode:?}: {ingress}, {egress}");

        // With the hooks in their new place each frame is.
        let before = meter.table();
        let (frames, ()) = pair.while_sending(|| std::thread::sleep(std::time::Duration::from_millis(20)));
        meter.expect(&before, &moved(Class::Port, frames, frames), "with the hooks changed");
    }
}

/// Waits until a value has not changed for a while.
fn until_still<T: PartialEq>(mut value: impl FnMut() -> T) {
    let mut last = value();
    until(|| {
        std::thread::sleep(STILL);
        let before = std::mem::replace(&mut last, value());
        before == last
    });
}

#[test]
fn number_that_another_netdev_got_meanwhile_counts_for_that_one() {
    if !ready() {
        return;
    }
    for &tc in tc_modes() {
        let pair = Pair::new(if tc == TcMode::Auto { "reuse" } else { "reuse-clsact" });
        let options = pair.options(tc);
        let mut meter = pair.host.open_with(&options);
        meter.attach(&pair.host.target("eth0", 2, Class::Port));
        drop(meter);
        let ifindex = pair.host.ifindex("eth0");
        let peer = pair.peer.name();
        pair.host
            .netns
            .ip(&format!(
                "link del eth0\nlink add eth0 index {ifindex} type veth peer name peer0 netns {peer}\n\
                 link set eth0 up"
            ))
            .unwrap();
        pair.peer.ip("link set peer0 up").unwrap();
        let mut meter = pair.host.open_with(&options);
        meter.attach(&pair.port());
        assert_eq!(meter.table(), Table::default());
        pair.count(&mut meter, Class::Port, "the new netdev");
        meter.detach(ifindex);
        assert_eq!(pair.host.hooks(), [""; 0]);
    }
}

#[test]
fn pinned_maps_keep_their_sizes() {
    if !ready() {
        return;
    }
    let pair = Pair::new("sizes");
    let mut meter = pair.host.open();
    meter.attach(&pair.port());
    pair.count(&mut meter, Class::Port, "small");
    let before = meter.table();
    drop(meter);
    let larger = Options { max_ports: 1_000, max_netdevs: 1_000, max_tunnels: 4_096, ..pair.host.options() };
    let mut meter = pair.host.open_with(&larger);
    assert_eq!(meter.table(), before);
    let capacity = |meter: &mut Meter<'_>| -> Vec<u64> {
        meter.reading().maps.iter().map(|usage| usage.capacity).collect()
    };
    let kept = capacity(&mut meter);
    meter.attach(&pair.port());
    pair.count(&mut meter, Class::Port, "larger options");
    drop(meter);
    assert_eq!(capacity(&mut pair.host.open()), kept);
}

//! What others attached stays as it is, in its order, and sees its frames.

use meter_agent::datapath::examine;

use super::{
    super::support::{auto_kind, becomes, foreign::Foreign, tc_modes},
    Class, Direction, HookKind, IngressHook, Options, Pair, Retry, TcMode, hooks, moved, ready,
};

/// Returns how the doctor says that XDP would be attached.
fn foreseen(pair: &Pair, tc: TcMode) -> Result<[HookKind; 2], &'static str> {
    let ours = examine::ours(&pair.host.pins);
    let target = pair.uplink(IngressHook::Xdp);
    let looked = pair.host.netns.run_in(|| {
        let foreign = examine::foreign(target.id.ifindex, "eth0", None, &ours);
        let has_foreign = foreign.iter().any(|what| what.starts_with("XDP: program "));
        (examine::foresee(&target, tc, auto_kind() == HookKind::Tcx, &ours), has_foreign)
    });
    let (foreseen, has_foreign) = looked.unwrap();
    assert_eq!(foreseen.is_err(), has_foreign);
    foreseen.map(|attachment| attachment.kinds()).map_err(|error| error.reason)
}

/// Sends both ways and asserts that the foreign programs saw it.
fn foreign_sees(pair: &Pair, programs: &[&Foreign<'_>]) {
    let seen = || -> Vec<[u64; 2]> {
        programs.iter().map(|program| Direction::ALL.map(|direction| program.seen(direction))).collect()
    };
    let expected: Vec<_> = seen().into_iter().map(|[ingress, egress]| [ingress + 3, egress + 5]).collect();
    pair.send(3, 5);
    becomes(seen, expected);
}

#[test]
fn tcx_programs_of_others_keep_their_order() {
    if !ready() || !lab::require::kernel(6, 6, "TCX") {
        return;
    }
    let pair = Pair::new("foreign-tcx");
    let [mut before, mut after] = [(); 2].map(|()| Foreign::load(&pair.host.netns));
    Direction::ALL.iter().for_each(|&direction| before.tcx("eth0", direction));
    let mut meter = pair.host.open();
    meter.attach(&pair.uplink(IngressHook::Tc));
    // We are first on ingress and last on egress, unless somebody comes after us.
    let two = |direction: &str, names: [&str; 2]| names.map(|name| format!("eth0 tcx {direction} {name}"));
    assert_eq!(
        pair.host.hooks(),
        [two("ingress", ["meter_up_in", "meter_in"]), two("egress", ["meter_out", "meter_up_out"])].concat()
    );
    after.tcx_first("eth0", Direction::Ingress);
    after.tcx("eth0", Direction::Egress);
    let three = |direction: &str, names: [&str; 3]| names.map(|name| format!("eth0 tcx {direction} {name}"));
    let all = [
        three("ingress", ["meter_in", "meter_up_in", "meter_in"]),
        three("egress", ["meter_out", "meter_up_out", "meter_out"]),
    ]
    .concat();
    assert_eq!(pair.host.hooks(), all);
    foreign_sees(&pair, &[&before, &after]);
    pair.count(&mut meter, Class::Uplink, "beside others");

    // The next agent replaces our programs where they are.
    drop(meter);
    let mut meter = pair.host.open();
    meter.attach(&pair.uplink(IngressHook::Tc));
    assert_eq!(pair.host.hooks(), all);
    pair.count(&mut meter, Class::Uplink, "beside others, again");

    meter.detach(pair.host.ifindex("eth0"));
    assert_eq!(
        pair.host.hooks(),
        [two("ingress", ["meter_in"; 2]), two("egress", ["meter_out"; 2])].concat()
    );
    foreign_sees(&pair, &[&before, &after]);
}

#[test]
fn ingress_qdisc_of_another_is_refused_and_left_in_place() {
    if !ready() {
        return;
    }
    let pair = Pair::new("foreign-ingress");
    let netns = &pair.host.netns;
    netns.run("tc", &["qdisc", "add", "dev", "eth0", "ingress"]).unwrap();
    let mut meter = pair.host.open_with(&pair.options(TcMode::Clsact));
    let error = meter.try_attach(&pair.port()).unwrap_err();
    assert_eq!((error.reason, error.retry), ("foreign_qdisc", Retry::Later));
    assert!(error.message.contains("eth0") && error.message.contains("kind ingress"), "{error}");
    let qdiscs = || netns.run("tc", &["qdisc", "show", "dev", "eth0"]).unwrap();
    assert!(qdiscs().contains("qdisc ingress ffff:"), "{}", qdiscs());
    for direction in ["ingress", "egress"] {
        assert_eq!(netns.run("tc", &["filter", "show", "dev", "eth0", direction]).unwrap(), "");
    }
    netns.run("tc", &["qdisc", "del", "dev", "eth0", "ingress"]).unwrap();
    meter.attach(&pair.port());
    pair.count(&mut meter, Class::Port, "once it has gone");
}

#[test]
fn clsact_and_its_filters_of_others_stay() {
    if !ready() {
        return;
    }
    let pair = Pair::new("foreign-clsact");
    let netns = &pair.host.netns;
    netns.run("tc", &["qdisc", "add", "dev", "eth0", "clsact"]).unwrap();
    let theirs = [
        "eth0 clsact ingress 1",
        "eth0 clsact ingress 10",
        "eth0 clsact egress 1",
        "eth0 clsact egress 65010",
        "eth0 qdisc clsact",
    ];
    let mut foreign = Foreign::load(netns);
    for (direction, priorities) in [(Direction::Ingress, [1, 10]), (Direction::Egress, [1, 65_010])] {
        priorities.iter().for_each(|&priority| foreign.clsact("eth0", direction, priority));
    }
    assert_eq!(pair.host.hooks(), theirs);
    let mut meter = pair.host.open_with(&pair.options(TcMode::Clsact));
    meter.attach(&pair.uplink(IngressHook::Tc));
    assert_eq!(
        pair.host.hooks(),
        [
            "eth0 clsact ingress 1",
            "eth0 clsact ingress 2",
            "eth0 clsact ingress 10",
            "eth0 clsact egress 1",
            "eth0 clsact egress 65000",
            "eth0 clsact egress 65010",
            "eth0 qdisc clsact",
        ]
    );
    pair.count(&mut meter, Class::Uplink, "beside others");
    meter.detach(pair.host.ifindex("eth0"));
    assert_eq!(pair.host.hooks(), theirs);
    drop(foreign);

    // The qdisc stays when it is empty, too: it is not ours.
    meter.attach(&pair.port());
    meter.detach(pair.host.ifindex("eth0"));
    assert_eq!(pair.host.hooks(), ["eth0 qdisc clsact"]);
    netns.run("tc", &["qdisc", "del", "dev", "eth0", "clsact"]).unwrap();
}

#[test]
fn clsact_of_ours_stays_while_others_use_it() {
    if !ready() {
        return;
    }
    let pair = Pair::new("ours-clsact");
    let mut meter = pair.host.open_with(&pair.options(TcMode::Clsact));
    meter.attach(&pair.port());
    let mut foreign = Foreign::load(&pair.host.netns);
    foreign.clsact("eth0", Direction::Egress, 7);
    meter.detach(pair.host.ifindex("eth0"));
    assert_eq!(pair.host.hooks(), ["eth0 clsact egress 7", "eth0 qdisc clsact"]);
    drop(foreign);
    pair.host.netns.run("tc", &["qdisc", "del", "dev", "eth0", "clsact"]).unwrap();
}

#[test]
fn clsact_of_ours_goes_with_the_next_agent_too() {
    if !ready() {
        return;
    }
    let pair = Pair::new("next-clsact");
    let options = pair.options(TcMode::Clsact);
    let mut meter = pair.host.open_with(&options);
    meter.attach(&pair.port());
    drop(meter);
    // This one finds a qdisc that the first one made.
    let mut meter = pair.host.open_with(&options);
    meter.attach(&pair.port());
    assert_eq!(pair.host.hooks(), hooks(HookKind::Clsact, Class::Port));
    meter.detach(pair.host.ifindex("eth0"));
    assert_eq!(pair.host.hooks(), [""; 0]);
}

#[test]
fn xdp_program_of_another_is_left_in_place() {
    if !ready() {
        return;
    }
    let attaches = lab::amount("METER_TEST_ATTACHES", 20, 4);
    let ways = [("busy", TcMode::Auto, auto_kind()), ("busy-clsact", TcMode::Clsact, HookKind::Clsact)];
    for (label, tc, kind) in ways.into_iter().filter(|(_, tc, _)| tc_modes().contains(tc)) {
        let pair = Pair::new(label);
        let mut foreign = Foreign::load(&pair.host.netns);
        foreign.xdp("eth0");
        let mut meter = pair.host.open_with(&Options { tc, ..pair.host.options() });
        let refused = |meter: &mut super::Meter<'_>| {
            let error = meter.try_attach(&pair.uplink(IngressHook::Xdp)).unwrap_err();
            assert_eq!((error.reason, error.retry), ("xdp_busy", Retry::Later), "{error}");
            let message = &error.message;
            assert!(message.contains("eth0") && message.contains("left in place"), "{message}");
        };
        refused(&mut meter);
        assert_eq!(pair.host.hooks(), ["eth0 xdp"], "nothing of a failed attach remains");
        assert_eq!(foreseen(&pair, tc), Err("xdp_busy"));

        // By TC it can be metered all the same; and a change to XDP that is refused costs no frame.
        meter.attach(&pair.uplink(IngressHook::Tc));
        pair.count(&mut meter, Class::Uplink, "beside XDP");
        let mut all = hooks(kind, Class::Uplink);
        all.push("eth0 xdp".to_owned());
        assert_eq!(pair.host.hooks(), all);
        let before = meter.table();
        let (frames, ()) = pair.while_sending(|| (0..attaches).for_each(|_| refused(&mut meter)));
        assert!(frames > 0);
        meter.expect(&before, &moved(Class::Uplink, frames, frames), "while XDP is refused");
        assert_eq!(pair.host.hooks(), all, "the hooks from before are kept");
        let kept = &meter.attached()[&pair.host.ifindex("eth0").into()];
        assert_eq!((&kept.target, kept.kinds()), (&pair.uplink(IngressHook::Tc), [kind; 2]));

        let seen = foreign.seen(Direction::Ingress);
        pair.send(3, 0);
        becomes(|| foreign.seen(Direction::Ingress), seen + 3);
        meter.attach(&pair.uplink(IngressHook::Tc));
        pair.count(&mut meter, Class::Uplink, "beside XDP, again");
        drop(foreign);

        // What is ours is in nobody's way.
        meter.attach(&pair.uplink(IngressHook::Xdp));
        assert_eq!(foreseen(&pair, tc), Ok([HookKind::Xdp, kind]));
        meter.detach(pair.host.ifindex("eth0"));
    }
}

//! Hooks that vanish behind the agent's back are noticed, and made again.

use std::path::PathBuf;

use super::{
    super::support::{auto_kind, foreign::detach_link, tc_modes},
    Class, HookKind, IngressHook, Netns, PORT, Pair, TcMode, hooks, ready,
};

/// How to attach, and what comes of it.
type Hooks = (TcMode, IngressHook, [HookKind; 2]);
/// What another tool does.
type Removal = fn(&Pair);

impl Pair {
    /// The pin of the hook's link, `in` or `out`.
    fn link(&self, direction: &str) -> PathBuf {
        self.host.pins.join(format!(
            "v{}/links/{}_{direction}",
            meter_ebpf::abi::VERSION,
            self.host.ifindex("eth0")
        ))
    }

    /// Removes the egress hook as another tool does.
    pub(super) fn remove_egress(&self, kind: HookKind) {
        match kind {
            HookKind::Clsact => self.tc("filter del dev eth0 egress pref 65000"),
            HookKind::Tcx | HookKind::Xdp => detach_link(&self.link("out")),
        }
    }

    fn tc(&self, arguments: &str) {
        self.host.netns.run("tc", &arguments.split(' ').collect::<Vec<_>>()).unwrap();
    }
}

#[test]
fn hook_that_another_tool_removed_is_noticed_and_made_again() {
    if !ready() {
        return;
    }
    let clsact = (TcMode::Clsact, IngressHook::Tc, [HookKind::Clsact; 2]);
    let xdp = (TcMode::Auto, IngressHook::Xdp, [HookKind::Xdp, auto_kind()]);
    let mut ways: Vec<(Hooks, Removal, &[&str])> = vec![
        (clsact, |pair| pair.tc("filter del dev eth0 ingress pref 2"), &["eth0 Ingress clsact"]),
        (clsact, |pair| pair.remove_egress(HookKind::Clsact), &["eth0 Egress clsact"]),
        (clsact, |pair| pair.tc("qdisc del dev eth0 clsact"), &["eth0 Ingress clsact", "eth0 Egress clsact"]),
        (xdp, |pair| detach_link(&pair.link("in")), &["eth0 Ingress xdp"]),
    ];
    if auto_kind() == HookKind::Tcx {
        let tcx = (TcMode::Auto, IngressHook::Tc, [HookKind::Tcx; 2]);
        ways.push((tcx, |pair| detach_link(&pair.link("in")), &["eth0 Ingress tcx"]));
        ways.push((tcx, |pair| pair.remove_egress(HookKind::Tcx), &["eth0 Egress tcx"]));
        ways.push((tcx, |pair| std::fs::remove_file(pair.link("in")).unwrap(), &["eth0 Ingress tcx"]));
    }
    for (way, ((mode, ingress, kinds), remove, lost)) in ways.into_iter().enumerate() {
        let pair = Pair::new(&format!("lost-{way}"));
        let mut meter = pair.host.open_with(&pair.options(mode));
        let target = if ingress == IngressHook::Xdp { pair.uplink(ingress) } else { pair.port() };
        meter.attach(&target);
        let all = pair.host.hooks();
        assert_eq!(meter.verify(), [""; 0], "way {way}");
        remove(&pair);
        assert_eq!(meter.verify(), lost, "way {way}");
        assert!(meter.attached()[&target.id].lost, "way {way}");
        assert_eq!(meter.verify(), [""; 0], "said once");

        assert_eq!(meter.attach(&target).kinds(), kinds);
        assert_eq!(pair.host.hooks(), all, "way {way}");
        assert_eq!(meter.verify(), [""; 0], "way {way}");
        pair.count(&mut meter, target.class, "made again");
        meter.detach(target.id);
        assert_eq!(pair.host.hooks(), [""; 0], "way {way}");
    }
}

#[test]
fn filter_that_runs_another_program_is_not_ours() {
    if !ready() {
        return;
    }
    let pair = Pair::new("lost-other");
    let options = pair.options(TcMode::Clsact);
    let mut meter = pair.host.open_with(&options);
    meter.attach(&pair.port());
    // Another agent, with maps of its own, puts its program into our filter's place.
    let other = super::super::support::Host::new("lost-other-agent");
    {
        let mut thief = other.open_with(&super::Options { tc: TcMode::Clsact, ..other.options() });
        pair.host
            .netns
            .run_in(|| {
                use meter_agent::datapath::Datapath as _;
                thief.datapath.attach(&pair.port()).unwrap();
            })
            .unwrap();
    }
    assert_eq!(meter.verify(), ["eth0 Ingress clsact", "eth0 Egress clsact"]);
    meter.attach(&pair.port());
    pair.count(&mut meter, Class::Port, "ours again");
}

#[test]
fn qdisc_that_replaced_ours_stays() {
    if !ready() {
        return;
    }
    let pair = Pair::new("lost-qdisc");
    let mut meter = pair.host.open_with(&pair.options(TcMode::Clsact));
    meter.attach(&pair.port());
    pair.tc("qdisc del dev eth0 clsact");
    pair.tc("qdisc add dev eth0 clsact");
    assert_eq!(meter.verify(), ["eth0 Ingress clsact", "eth0 Egress clsact"]);
    meter.attach(&pair.port());
    assert_eq!(pair.host.hooks(), hooks(HookKind::Clsact, Class::Port));
    pair.count(&mut meter, Class::Port, "on their qdisc");
    meter.detach(pair.host.ifindex("eth0"));
    assert_eq!(pair.host.hooks(), ["eth0 qdisc clsact"]);
    pair.tc("qdisc del dev eth0 clsact");
}

#[test]
fn netdev_that_came_again_with_its_number_or_was_away_is_hooked_again() {
    if !ready() {
        return;
    }
    let again = |pair: &Pair| {
        let (ifindex, peer) = (pair.host.ifindex("eth0"), pair.peer.name());
        pair.host
            .netns
            .ip(&format!(
                "link del eth0\nlink add eth0 index {ifindex} type veth peer name peer0 netns {peer}\n\
                 link set eth0 up"
            ))
            .unwrap();
        pair.peer.ip("link set peer0 up").unwrap();
    };
    // A namespace in which its number is free, so that it keeps it.
    let elsewhere = Netns::new("elsewhere").unwrap();
    let away = |pair: &Pair| {
        let ifindex = pair.host.ifindex("eth0");
        pair.host.netns.ip(&format!("link set eth0 netns {}", elsewhere.name())).unwrap();
        elsewhere.ip(&format!("link set eth0 netns {}", pair.host.netns.name())).unwrap();
        pair.host.netns.ip("link set eth0 up").unwrap();
        assert_eq!(pair.host.ifindex("eth0"), ifindex);
    };
    for label in ["again", "away"] {
        let way = |pair: &Pair| if label == "again" { again(pair) } else { away(pair) };
        let ways = [
            (TcMode::Auto, IngressHook::Tc),
            (TcMode::Auto, IngressHook::Xdp),
            (TcMode::Clsact, IngressHook::Tc),
        ];
        for (tc, ingress) in ways.into_iter().filter(|(tc, _)| tc_modes().contains(tc)) {
            let pair = Pair::new(&format!("{label}-{tc:?}-{ingress:?}"));
            let mut meter = pair.host.open_with(&pair.options(tc));
            let target = pair.uplink(ingress);
            let kinds = meter.attach(&target).kinds();
            let all = pair.host.hooks();
            pair.count(&mut meter, Class::Uplink, "before");
            way(&pair);
            let lost = meter.verify();
            // A link stays with a netdev that goes to another namespace, a qdisc doesn't.
            let goes = |kind: &&HookKind| label == "again" || **kind == HookKind::Clsact;
            assert_eq!(lost.len(), kinds.iter().filter(goes).count(), "{label} {lost:?}");
            assert_eq!(meter.attach(&target).kinds(), kinds);
            assert_eq!(pair.host.hooks(), all);
            pair.count(&mut meter, Class::Uplink, "after");
            // Nobody has to have looked: attaching looks by itself.
            way(&pair);
            meter.attach(&target);
            assert_eq!(pair.host.hooks(), all);
            pair.count(&mut meter, Class::Uplink, "without having looked");
            assert_eq!(meter.table().get(&format!("port {PORT} Ingress"))[0], 9);
            meter.detach(target.id);
            assert_eq!(pair.host.hooks(), [""; 0]);
        }
    }
}

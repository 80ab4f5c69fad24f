//! A change that can't be made leaves what counted counting, and a table that is full costs only what it holds.

use aya::maps::{HashMap, Map, MapData};
use meter_agent::meter::DeviceId;
use meter_ebpf::abi::{MAX_UPLINKS, PortRecord, PortUuid, VERSION, map};
use uuid::Uuid;

use super::{
    super::support::{Meter, becomes, table::Table, tc_modes},
    BYTES, Class, Direction, HookKind, IngressHook, Options, PORT, Pair, Retry, Target, TcMode, hooks, moved,
    ready,
};

#[test]
fn driver_without_xdp_goes_on_by_tc() {
    if !ready() {
        return;
    }
    for &tc in tc_modes() {
        let pair = Pair::new(if tc == TcMode::Auto { "no-xdp" } else { "no-xdp-clsact" });
        pair.host.netns.add_bridge("br0", 1_500).unwrap();
        let mut meter = pair.host.open_with(&pair.options(tc));
        let uplink = pair.host.target("br0", PORT, Class::Uplink);
        meter.attach(&uplink);
        let all = pair.host.hooks();
        let error = meter.try_attach(&Target { ingress: IngressHook::Xdp, ..uplink.clone() }).unwrap_err();
        assert_eq!((error.reason, error.retry), ("xdp_unsupported", Retry::Never), "{error}");
        assert_eq!(pair.host.hooks(), all);
        assert_eq!(meter.attached()[&uplink.id].target, uplink);
    }
}

#[test]
fn refused_change_to_clsact_keeps_xdp_and_tcx() {
    if !ready() || !lab::require::kernel(6, 6, "TCX") {
        return;
    }
    let pair = Pair::new("keep-xdp");
    let uplink = pair.uplink(IngressHook::Xdp);
    pair.host.open().attach(&uplink);
    let all = pair.host.hooks();
    pair.host.netns.run("tc", &["qdisc", "add", "dev", "eth0", "ingress"]).unwrap();
    let mut meter = pair.host.open_with(&pair.options(TcMode::Clsact));
    let before = meter.table();
    let (frames, ()) = pair.while_sending(|| {
        for ingress in [IngressHook::Xdp, IngressHook::Tc] {
            let error = meter.try_attach(&pair.uplink(ingress)).unwrap_err();
            assert_eq!((error.reason, error.retry), ("foreign_qdisc", Retry::Later), "{error}");
        }
    });
    meter.expect(&before, &moved(Class::Uplink, frames, frames), "while it is refused");
    assert_eq!(pair.host.hooks(), all);
    assert_eq!(meter.attached()[&uplink.id].kinds(), [HookKind::Xdp, HookKind::Tcx]);

    pair.host.netns.run("tc", &["qdisc", "del", "dev", "eth0", "ingress"]).unwrap();
    meter.attach(&pair.uplink(IngressHook::Tc));
    assert_eq!(pair.host.hooks(), hooks(HookKind::Clsact, Class::Uplink));
    pair.count(&mut meter, Class::Uplink, "once it is let");
}

#[test]
fn port_without_room_for_its_device_counts_on() {
    if !ready() {
        return;
    }
    let pair = Pair::new("members-full");
    let mut meter = pair.host.open_with(&Options { max_ports: 2, ..pair.options(TcMode::Auto) });
    let of = |device: u128| Target { device: Some(DeviceId(Uuid::from_u128(device))), ..pair.port() };
    let devices = |meter: &mut Meter<'_>| -> Vec<(u128, u64)> {
        meter.reading().devices.iter().map(|(id, stats)| (id.0.as_u128(), stats.packets)).collect()
    };
    let counts = |meter: &mut Meter<'_>, expected: &[(u128, u64)]| {
        pair.send(3, 5);
        becomes(|| devices(meter), expected.to_vec());
    };
    meter.attach(&of(11));
    counts(&mut meter, &[(11, 3)]);
    meter.attach(&of(12));
    counts(&mut meter, &[(11, 3), (12, 3)]);
    let error = meter.try_attach(&of(13)).unwrap_err();
    assert_eq!((error.reason, error.retry), ("members_full", Retry::Later), "{error}");
    assert!(error.message.contains("it counts, but not for its device"), "{error}");
    pair.count(&mut meter, Class::Port, "of no device");
    assert_eq!(devices(&mut meter), [(11, 3), (12, 3)]);
    assert_eq!(meter.attached()[&pair.host.ifindex("eth0").into()].target, pair.port());
    meter.attach(&of(11));
    counts(&mut meter, &[(11, 6), (12, 3)]);
    let [packets, ..] = meter.table().get(&format!("port {PORT} Ingress"));
    assert_eq!(packets, 12, "the port's total misses none");
}

#[test]
fn uplink_without_room_for_its_tunnels_counts_on() {
    if !ready() {
        return;
    }
    let pair = Pair::new("uplinks-full");
    let mut meter = pair.host.open_with(&Options { max_ports: 100, ..pair.options(TcMode::Auto) });
    for port in 1..MAX_UPLINKS {
        meter.attach(&pair.host.target("eth0", 100 + u128::from(port), Class::Uplink));
    }
    let error = meter.try_attach(&pair.uplink(IngressHook::Tc)).unwrap_err();
    assert_eq!((error.reason, error.retry), ("uplinks_full", Retry::Later), "{error}");
    assert!(error.message.contains("it counts, but not its tunnels"), "{error}");
    let before = meter.table();
    pair.send(3, 5);
    let expected = Table::default().frames(PORT, Direction::Ingress, 3, 3 * BYTES).frames(
        PORT,
        Direction::Egress,
        5,
        5 * BYTES,
    );
    meter.expect(&before, &expected, "without tunnels");
    let is = &meter.attached()[&pair.host.ifindex("eth0").into()].target;
    assert_eq!((is.class, is.underlay), (Class::Uplink, false));
}

#[test]
fn name_that_is_another_netdevs_by_now_hooks_neither() {
    if !ready() {
        return;
    }
    for &tc in tc_modes() {
        let pair = Pair::new(if tc == TcMode::Auto { "swapped" } else { "swapped-clsact" });
        pair.host.netns.veth("eth1", &pair.peer, "peer1", 1_500).unwrap();
        let mut meter = pair.host.open_with(&pair.options(tc));
        let target = pair.port();
        let rename = ["eth0 name old0", "eth1 name eth0", "old0 name eth1"]
            .map(|rename| {
                let (from, _) = rename.split_once(' ').unwrap();
                format!("link set {from} down\nlink set {rename}")
            })
            .join("\n");
        pair.host.netns.ip(&rename).unwrap();
        let error = meter.try_attach(&target).unwrap_err();
        assert_eq!((error.reason, error.retry), ("renamed", Retry::Later), "{error}");
        assert_eq!(pair.host.hooks(), [""; 0]);
        assert!(meter.attached().is_empty());
    }
}

#[test]
fn filters_that_no_record_tells_of_are_removed() {
    if !ready() {
        return;
    }
    let pair = Pair::new("unrecorded");
    let mut meter = pair.host.open_with(&pair.options(TcMode::Clsact));
    meter.attach(&pair.port());
    drop(meter);
    // As if the agent had been killed before it wrote anything down.
    let pin = pair.host.pins.join(format!("v{VERSION}/maps/{}", map::PORTS));
    let data = Map::from_map_data(MapData::from_pin(pin).unwrap()).unwrap();
    let mut records: HashMap<MapData, PortUuid, PortRecord> = data.try_into().unwrap();
    let ports: Vec<PortUuid> = records.keys().map(Result::unwrap).collect();
    ports.iter().for_each(|port| records.remove(port).unwrap());
    pair.host.netns.run_in(|| meter_agent::datapath::kernel::remove_all(&pair.host.pins)).unwrap().unwrap();
    assert_eq!(pair.host.hooks(), ["eth0 qdisc clsact"]);
    pair.host.netns.run("tc", &["qdisc", "del", "dev", "eth0", "clsact"]).unwrap();
}

//! Pins that others removed or replaced: what still counts is found again, and what is lost is said and begins anew.

use std::{fs, path::PathBuf};

use meter_agent::{
    datapath::{
        Repairs,
        kernel::{Options, remove_all},
    },
    meter::DeviceId,
};
use meter_ebpf::abi::{SLOTS_PER_BLOCK, VERSION, map};
use uuid::Uuid;

use super::{
    super::support::{
        WITHIN, auto_kind, becomes,
        foreign::Foreign,
        frames::{IPV4, UDP, ethernet, ipv4, vxlan},
        holds_within, meters, tc_modes, until,
    },
    Class, HookKind, IngressHook, Meter, PORT, Pair, RawSocket, Table, Target, TcMode, hooks, moved, ready,
};

/// The maps that programs use.
const COUNTING: [&str; 9] = [
    map::SLOTS,
    map::SLOTS_HIGH,
    map::COUNTERS,
    map::TUNNELS,
    map::TUNNEL_TAKEN,
    map::TUNNEL_SPARE,
    map::TUNNEL_COUNTERS,
    map::BUCKETS,
    map::FAULTS,
];
/// The device of the port.
const DEVICE: u128 = 11;

impl Pair {
    fn pin(&self, map: &str) -> PathBuf {
        self.host.pins.join(format!("v{VERSION}/maps/{map}"))
    }

    /// Sends plain frames both ways, and tunnelled ones of so many tunnels to the host.
    fn send_tunnelled(&self, tunnels: u32) {
        self.send(3, 5);
        let socket = RawSocket::open(&self.peer, "peer0").unwrap();
        for vni in 0..tunnels {
            socket.send(&ethernet(&[], IPV4, &ipv4(UDP, &vxlan(4789, vni, &[0; 60])))).unwrap();
        }
    }

    fn in_device(&self) -> Target {
        Target { device: Some(DeviceId(Uuid::from_u128(DEVICE))), ..self.port() }
    }
}

/// Waits until everything that was counted is `expected`.
fn reach(meter: &mut Meter<'_>, expected: &Table, what: &[&str]) {
    holds_within(WITHIN, || meter.table() == *expected);
    assert_eq!(&meter.table(), expected, "{what:?}");
}

#[test]
fn map_whose_pin_was_removed_is_found_at_the_programs() {
    if !ready() {
        return;
    }
    for &tc in tc_modes() {
        let pair = Pair::new(if tc == TcMode::Auto { "unpinned" } else { "unpinned-clsact" });
        let options = pair.options(tc);
        let mut meter = pair.host.open_with(&options);
        meter.attach(&pair.uplink(IngressHook::Tc));
        pair.send_tunnelled(7);
        until(|| meter.table().get(&format!("port {PORT} Ingress"))[0] == 10);
        let first = meter.table();
        drop(meter);
        // How they hang makes no difference to any of them alone.
        let alone = if tc == TcMode::Auto { &COUNTING[..] } else { &COUNTING[..1] };
        let alone = alone.iter().map(|map| vec![*map]);
        for (round, maps) in alone.chain([COUNTING.to_vec()]).enumerate() {
            maps.iter().for_each(|map| fs::remove_file(pair.pin(map)).unwrap());
            pair.send_tunnelled(7);
            let mut meter = pair.host.open_with(&options);
            let times = u64::try_from(round).unwrap() + 2;
            let expected = (1..times).fold(first.clone(), |sum, _| sum.plus(&first));
            reach(&mut meter, &expected, &maps);
            let restored = u64::try_from(maps.len()).unwrap();
            assert_eq!(meter.reading().repairs, Repairs { restored, ..Repairs::default() }, "{maps:?}");
            assert_eq!(pair.host.hooks().len(), hooks(meter_kind(tc), Class::Uplink).len());
            // The programs that are put in their places use the same maps.
            meter.attach(&pair.uplink(IngressHook::Tc));
            reach(&mut meter, &expected, &maps);
        }
    }
}

fn meter_kind(tc: TcMode) -> HookKind {
    if tc == TcMode::Clsact { HookKind::Clsact } else { auto_kind() }
}

#[test]
fn another_map_at_the_pin_makes_room_for_the_one_that_counts() {
    if !ready() {
        return;
    }
    let pair = Pair::new("replaced");
    let mut meter = pair.host.open();
    meter.attach(&pair.port());
    pair.count(&mut meter, Class::Port, "before");
    let before = meter.table();
    drop(meter);
    let path = pair.pin(map::COUNTERS);
    fs::remove_file(&path).unwrap();
    Foreign::load(&pair.host.netns).pin(&path);
    pair.send(3, 5);
    let mut meter = pair.host.open();
    meter.expect(&before, &moved(Class::Port, 3, 5), "meanwhile");
    assert_eq!(meter.reading().repairs, Repairs { set_aside: 1, restored: 1, ..Repairs::default() });
    meter.attach(&pair.port());
    pair.count(&mut meter, Class::Port, "after");
    drop(meter);
    assert!(pair.host.pins.join("aside/COUNTERS_1").exists());
    fs::remove_dir_all(pair.host.pins.join("aside")).unwrap();
}

#[test]
fn maps_that_belong_together_are_made_anew_of_one_size() {
    if !ready() {
        return;
    }
    let pair = Pair::new("sizes");
    let options = pair.options(TcMode::Auto);
    for more in [false, true] {
        for lost in [map::CONNECTION_TIMES, map::CONNECTION_FREE, map::CAPTURES, map::NETWORKS, map::COUNTERS]
        {
            drop(pair.host.open_with(&options));
            fs::remove_file(pair.pin(lost)).unwrap();
            let other = |number: u32| if more { number * 3 } else { number / 3 };
            let options = Options {
                max_connections: other(options.max_connections),
                max_netdevs: other(options.max_netdevs),
                ..options.clone()
            };
            let mut meter = pair.host.open_with(&options);
            let maps = meter.reading().maps;
            let entries = |name| maps.iter().find(|usage| usage.map == name).unwrap().capacity;
            let connections = entries(map::CONNECTION_KEYS);
            assert_eq!(
                [map::CONNECTIONS, map::CONNECTION_TIMES, map::CONNECTION_FREE].map(entries),
                [connections + 1, connections + 1, connections],
                "{lost}"
            );
            let slots = entries(map::COUNTERS) * u64::from(SLOTS_PER_BLOCK);
            assert_eq!([map::CAPTURES, map::NETWORKS].map(entries), [slots; 2], "{lost}");
        }
    }
}

#[test]
fn link_pin_that_is_no_link_is_set_aside() {
    if !ready() || !lab::require::kernel(6, 6, "TCX") {
        return;
    }
    let pair = Pair::new("no-link");
    let path = pair.host.pins.join(format!("v{VERSION}/links/{}_in", pair.host.ifindex("eth0")));
    let mut meter = pair.host.open();
    Foreign::load(&pair.host.netns).pin(&path);
    meter.attach(&pair.port());
    assert_eq!(pair.host.hooks(), hooks(HookKind::Tcx, Class::Port));
    pair.count(&mut meter, Class::Port, "beside it");
    drop(meter);
    fs::remove_dir_all(pair.host.pins.join("aside")).unwrap();
}

#[test]
fn what_nothing_counts_in_any_more_begins_anew() {
    if !ready() {
        return;
    }
    let pair = Pair::new("begins-anew");
    let ifindex = pair.host.ifindex("eth0");
    let socket = RawSocket::open(&pair.peer, "peer0").unwrap();
    let frames = meters(&[("frames", "ethertype 0x88b5")]);
    // Packets of the port, of its tunnels, of its device, of a user-defined meter.
    let counts = |meter: &mut Meter<'_>| {
        let table = meter.table();
        let tunnels = meter.reading().tunnels.iter().map(|tunnel| tunnel.packets).sum();
        [
            table.get(&format!("port {PORT} Ingress"))[0],
            tunnels,
            table.get(&format!("device {DEVICE}"))[0],
            meter.meters().get("frames").map_or(0, |[packets, _]| *packets),
        ]
    };
    let created = |meter: &mut Meter<'_>| meter.reading().user_meters["frames"].created_ns;
    // 7 tunnels, two of the last round among them, to an uplink; and then 3 frames to the port of a device.
    let count = |meter: &mut Meter<'_>, round: u32| {
        let [port, tunnels, device, user] = counts(meter);
        meter.attach(&pair.uplink(IngressHook::Tc));
        for vni in 0..7 {
            let vni = round * 5 + vni;
            socket.send(&ethernet(&[], IPV4, &ipv4(UDP, &vxlan(4789, vni, &[0; 60])))).unwrap();
        }
        becomes(|| counts(meter), [port + 7, tunnels + 7, device, user]);
        meter.attach(&pair.in_device());
        pair.send(3, 0);
        becomes(|| counts(meter), [port + 10, tunnels + 7, device + 3, user + 3]);
        let places: Vec<u64> = meter.reading().tunnels.iter().map(|tunnel| tunnel.packets).collect();
        assert!(places.iter().all(|packets| *packets <= 2), "tunnels share a place: {places:?}");
        // Nothing counts any more, so that nothing knows a map but its pin.
        meter.detach(ifindex);
    };
    let mut meter = pair.host.open();
    meter.set_meters(&frames);
    count(&mut meter, 0);
    // What is left of the four.
    let all: fn([u64; 4]) -> [u64; 4] = |counts| counts;
    let losses = [
        (map::SLOTS, all),
        (map::SLOTS_HIGH, all),
        // What the device had of the port before this round was put aside when the port left it.
        (map::COUNTERS, |[_, tunnels, device, user]| [0, tunnels, device - 3, user]),
        (map::PORTS, |_| [0; 4]),
        (map::MEMBERS, |[port, tunnels, _, user]| [port, tunnels, 0, user]),
        (map::TUNNELS, |[port, _, device, user]| [port, 0, device, user]),
        (map::TUNNEL_TAKEN, |[port, _, device, user]| [port, 0, device, user]),
        (map::TUNNEL_SPARE, all),
        (map::TUNNEL_COUNTERS, |[port, _, device, user]| [port, 0, device, user]),
        (map::BUCKETS, all),
        (map::FAULTS, all),
        (map::META, all),
        (map::RULES, all),
        (map::VERDICTS, all),
        (map::METERS, |[port, tunnels, device, _]| [port, tunnels, device, 0]),
        (map::METER_COUNTERS, |[port, tunnels, device, _]| [port, tunnels, device, 0]),
    ];
    for (round, (lost, left)) in (1..).zip(losses) {
        let (before, began) = (counts(&mut meter), created(&mut meter));
        drop(meter);
        fs::remove_file(pair.pin(lost)).unwrap();
        meter = pair.host.open();
        // Without it nobody can tell that there was an agent before; and it held nothing.
        let repairs = Repairs { lost: u64::from(lost != map::META), ..Repairs::default() };
        assert_eq!(meter.reading().repairs, repairs, "{lost}");
        meter.set_meters(&frames);
        assert_eq!(counts(&mut meter), left(before), "{lost}");
        assert_eq!(created(&mut meter) == began, left(before)[3] == before[3], "{lost}");
        count(&mut meter, round);
    }
}

#[test]
fn another_map_for_the_records_does_not_keep_hooks_from_being_removed() {
    if !ready() {
        return;
    }
    let pair = Pair::new("detach-foreign");
    pair.host.open_with(&pair.options(TcMode::Clsact)).attach(&pair.port());
    let path = pair.pin(map::PORTS);
    fs::remove_file(&path).unwrap();
    Foreign::load(&pair.host.netns).pin(&path);
    pair.host.netns.run_in(|| remove_all(&pair.host.pins)).unwrap().unwrap();
    // Whose the qdisc is was in the records.
    assert_eq!(pair.host.hooks(), ["eth0 qdisc clsact"]);
    pair.host.netns.run("tc", &["qdisc", "del", "dev", "eth0", "clsact"]).unwrap();
    fs::remove_file(pair.host.pins.join("aside/PORTS_1")).unwrap();
    fs::remove_dir_all(&pair.host.pins).unwrap();
}

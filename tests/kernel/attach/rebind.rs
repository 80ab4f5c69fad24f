//! Netdevs that go from one port to another under traffic: each frame counts for one of them, and for nobody else.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use aya::maps::{Array, HashMap, MapData};
use lab::traffic::RawSocket;
use meter_ebpf::abi::{Direction, PortRecord, PortUuid, SLOT_ENTRIES, SlotRef, map};

use super::{
    super::support::{Meter, becomes, pinned_map, table::Table},
    BYTES, Class, HookKind, PORT, Pair, Target, TcMode, auto_kind, frame, hooks, ready, tc_modes,
};

/// The other port.
const OTHER: u128 = 2;

/// What came in at both ports since, in packets, and what is nobody's.
fn sums(meter: &mut Meter<'_>, before: &Table) -> [[u64; 2]; 2] {
    let moved = meter.table().since(before);
    let sum = |ports: &[u128], direction: &str| {
        ports.iter().map(|port| moved.get(&format!("port {port} {direction}"))[0]).sum()
    };
    [&[PORT, OTHER][..], &[0]].map(|ports| ["Ingress", "Egress"].map(|direction| sum(ports, direction)))
}

#[test]
fn netdev_that_goes_to_another_port_loses_no_frame() {
    if !ready() {
        return;
    }
    for &tc in tc_modes() {
        let pair = Pair::new(if tc == TcMode::Auto { "rebind" } else { "rebind-clsact" });
        let mut meter = pair.host.open_with(&pair.options(tc));
        let ports = [PORT, OTHER].map(|port| pair.host.target("eth0", port, Class::Port));
        meter.attach(&ports[0]);
        let before = meter.table();
        let (frames, ()) = pair.while_sending(|| {
            for target in ports.iter().cycle().skip(1).take(200) {
                meter.attach(target);
            }
        });
        becomes(|| sums(&mut meter, &before), [[frames; 2], [0; 2]]);
        let kind = if tc == TcMode::Auto { auto_kind() } else { HookKind::Clsact };
        assert_eq!(pair.host.hooks(), hooks(kind, Class::Port));
    }
}

#[test]
fn netdevs_that_exchange_their_ports_lose_no_frame() {
    if !ready() {
        return;
    }
    for &tc in tc_modes() {
        let pair = Pair::new(if tc == TcMode::Auto { "exchange" } else { "exchange-clsact" });
        pair.host.netns.veth("eth1", &pair.peer, "peer1", 1_500).unwrap();
        let mut meter = pair.host.open_with(&pair.options(tc));
        let targets = |ports: [u128; 2]| -> Vec<Target> {
            let netdevs = ["eth0", "eth1"].into_iter().zip(ports);
            netdevs.map(|(netdev, port)| pair.host.target(netdev, port, Class::Port)).collect()
        };
        let [straight, crossed] = [[PORT, OTHER], [OTHER, PORT]].map(targets);
        straight.iter().for_each(|target| drop(meter.attach(target)));
        let (before, all) = (meter.table(), pair.host.hooks());

        let stop = AtomicBool::new(false);
        let (first, second) = thread::scope(|scope| {
            let second = scope.spawn(|| {
                let socket = RawSocket::open(&pair.peer, "peer1").unwrap();
                let mut frames = 0;
                while !stop.load(Ordering::Relaxed) {
                    socket.send(&frame()).unwrap();
                    frames += 1;
                }
                frames
            });
            let (first, ()) = pair.while_sending(|| {
                for targets in [&crossed, &straight].into_iter().cycle().take(201) {
                    meter.exchange(targets);
                }
            });
            stop.store(true, Ordering::Relaxed);
            (first, second.join().unwrap())
        });
        let frames: [u64; 2] = [first + second, first];
        becomes(|| sums(&mut meter, &before), [frames, [0; 2]]);
        assert_eq!(pair.host.hooks(), all);
        let is: Vec<&Target> = meter.attached().values().map(|is| &is.target).collect();
        assert_eq!(is, crossed.iter().collect::<Vec<_>>());

        // The next agent finds it so.
        let before = meter.table();
        drop(meter);
        let mut meter = pair.host.open_with(&pair.options(tc));
        crossed.iter().for_each(|target| drop(meter.attach(target)));
        pair.send(3, 5);
        let expected = Table::default().frames(OTHER, Direction::Ingress, 3, 3 * BYTES).frames(
            OTHER,
            Direction::Egress,
            5,
            5 * BYTES,
        );
        meter.expect(&before, &expected, "after the exchange");
        crossed.iter().for_each(|target| meter.detach(target.id));
        assert_eq!(pair.host.hooks(), [""; 0]);
    }
}

/// Changes a pinned record as an agent would have, before it was killed.
fn with_records(pair: &Pair, change: impl FnOnce(&mut HashMap<MapData, PortUuid, PortRecord>)) {
    change(&mut pinned_map(&pair.host.pins, map::PORTS));
}

/// Writes where a netdev counts.
fn set_slot(pair: &Pair, ifindex: u32, slot: u32) {
    let pins = pair.host.pins.clone();
    let write = move || {
        let mut slots: Array<MapData, [u64; SLOT_ENTRIES as usize]> = pinned_map(&pins, map::SLOTS);
        let mut values = slots.get(&0, 0).unwrap();
        values[usize::try_from(ifindex).unwrap()] = SlotRef::new(slot, 0).bits();
        slots.set(0, values, 0).unwrap();
    };
    // The one value of the map is half a megabyte, and is on the stack a few times.
    thread::Builder::new().stack_size(1 << 24).spawn(write).unwrap().join().unwrap();
}

#[test]
fn agent_that_was_killed_in_an_exchange_leaves_no_netdev_without_a_port() {
    if !ready() {
        return;
    }
    for &tc in tc_modes() {
        // Before the netdev counts for its new port, and after.
        for counts in [false, true] {
            let name = if tc == TcMode::Auto { "cut" } else { "cut-clsact" };
            let pair = Pair::new(&format!("{name}-{counts}"));
            pair.host.netns.veth("eth1", &pair.peer, "peer1", 1_500).unwrap();
            let options = pair.options(tc);
            let mut meter = pair.host.open_with(&options);
            meter.attach(&pair.host.target("eth0", PORT, Class::Port));
            meter.attach(&pair.host.target("eth1", OTHER, Class::Port));
            let all = pair.host.hooks();
            drop(meter);
            let [eth0, eth1] = ["eth0", "eth1"].map(|netdev| pair.host.ifindex(netdev));
            let other = PortUuid { uuid: OTHER.to_be_bytes() };
            with_records(&pair, |records| {
                let record = records.get(&other, 0).unwrap();
                records.insert(other, PortRecord { ifindex: eth0, ..record }, 0).unwrap();
                if counts {
                    set_slot(&pair, eth0, record.slot);
                }
            });

            let mut meter = pair.host.open_with(&options);
            let ports = if counts { [OTHER, PORT] } else { [PORT, OTHER] };
            let kind = if tc == TcMode::Auto { auto_kind() } else { HookKind::Clsact };
            for (ifindex, port) in [eth0, eth1].into_iter().zip(ports) {
                let is = &meter.attached()[&ifindex.into()];
                assert_eq!((is.target.port.0.as_u128(), is.kinds()), (port, [kind; 2]), "{tc:?} {counts}");
            }
            let before = meter.table();
            let sockets = ["peer0", "peer1"].map(|netdev| RawSocket::open(&pair.peer, netdev).unwrap());
            for (socket, frames) in sockets.iter().zip([3, 5]) {
                (0..frames).for_each(|_| socket.send(&frame()).unwrap());
            }
            let expected = Table::default().frames(ports[0], Direction::Ingress, 3, 3 * BYTES).frames(
                ports[1],
                Direction::Ingress,
                5,
                5 * BYTES,
            );
            meter.expect(&before, &expected, "each for its own");
            assert_eq!(pair.host.hooks(), all);
            meter.detach(eth0);
            meter.detach(eth1);
            let left: Vec<String> =
                pair.host.hooks().into_iter().filter(|hook| !hook.ends_with("qdisc clsact")).collect();
            assert_eq!(left, [""; 0]);
            drop(meter);
            if kind == HookKind::Clsact {
                // Whose the qdisc of that netdev is was not written down.
                pair.host.netns.run("tc", &["qdisc", "del", "dev", "eth1", "clsact"]).unwrap();
            }
        }
    }
}

#[test]
fn netdev_that_goes_through_more_ports_than_there_are_slots_loses_no_frame() {
    /// More than a block of slots has.
    const PORTS: u128 = 600;
    if !ready() {
        return;
    }
    let pair = Pair::new("slots-reused");
    let mut meter = pair.host.open_with(&super::Options { max_ports: 1_024, ..pair.host.options() });
    meter.attach(&pair.port());
    let (frames, ()) = pair.while_sending(|| {
        (1..=PORTS).for_each(|port| drop(meter.attach(&pair.host.target("eth0", port, Class::Port))));
    });
    let sum = |meter: &mut Meter<'_>| {
        let table = meter.table();
        ["Ingress", "Egress"].map(|direction| -> u64 {
            (1..=PORTS).map(|port| table.get(&format!("port {port} {direction}"))[0]).sum()
        })
    };
    becomes(|| sum(&mut meter), [frames; 2]);
    let slots = meter.reading().maps.iter().find(|usage| usage.map == map::COUNTERS).unwrap().clone();
    assert_eq!((slots.entries, slots.capacity), (1, 1), "all of them in one block");
}

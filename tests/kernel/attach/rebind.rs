//! Netdevs that go from one port to another under traffic: each frame counts for one of them, and for nobody else.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use lab::traffic::RawSocket;

use super::{
    super::support::{Meter, table::Table, until},
    BYTES, Class, HookKind, PORT, Pair, Target, TcMode, auto_kind, frame, hooks, ready,
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
    for tc in [TcMode::Auto, TcMode::Clsact] {
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
        until(|| sums(&mut meter, &before)[0] == [frames; 2]);
        assert_eq!(sums(&mut meter, &before), [[frames; 2], [0; 2]], "{tc:?}");
        let kind = if tc == TcMode::Auto { auto_kind() } else { HookKind::Clsact };
        assert_eq!(pair.host.hooks(), hooks(kind, Class::Port));
    }
}

#[test]
fn netdevs_that_exchange_their_ports_lose_no_frame() {
    if !ready() {
        return;
    }
    for tc in [TcMode::Auto, TcMode::Clsact] {
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
        until(|| sums(&mut meter, &before)[0] == frames);
        assert_eq!(sums(&mut meter, &before), [frames, [0; 2]], "{tc:?}");
        assert_eq!(pair.host.hooks(), all);
        let is: Vec<&Target> = meter.attached().values().map(|is| &is.target).collect();
        assert_eq!(is, crossed.iter().collect::<Vec<_>>());

        // The next agent finds it so.
        let before = meter.table();
        drop(meter);
        let mut meter = pair.host.open_with(&pair.options(tc));
        crossed.iter().for_each(|target| drop(meter.attach(target)));
        pair.send(3, 5);
        let expected = Table::default()
            .frames(OTHER, meter_ebpf::abi::Direction::Ingress, 3, 3 * BYTES)
            .frames(OTHER, meter_ebpf::abi::Direction::Egress, 5, 5 * BYTES);
        meter.expect(&before, &expected, "after the exchange");
        crossed.iter().for_each(|target| meter.detach(target.ifindex));
        assert_eq!(pair.host.hooks(), [""; 0]);
    }
}

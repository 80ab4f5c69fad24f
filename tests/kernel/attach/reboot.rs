//! What was written down goes on in the maps that are made after a reboot.

use meter_agent::{
    datapath::{Datapath as _, kernel::remove_all},
    meter::DeviceId,
    totals::Totals,
};
use uuid::Uuid;

use super::{
    super::support::{
        frames::{IPV4, UDP, ethernet, ipv4, vxlan},
        until,
    },
    Class, IngressHook, Meter, Options, PORT, Pair, RawSocket, Table, Target, TcMode, ready,
};

/// Sends frames in seven tunnels and plain ones both ways through the uplink, and some to a port of a device.
fn send(pair: &Pair, meter: &mut Meter<'_>, expected: Option<&Table>) -> Table {
    let device = Some(DeviceId(Uuid::from_u128(11)));
    meter.attach(&pair.uplink(IngressHook::Tc));
    meter.attach(&Target { device, ..pair.host.target("eth1", 2, Class::Port) });
    pair.send(3, 5);
    let sockets = ["peer0", "peer1"].map(|netdev| RawSocket::open(&pair.peer, netdev).unwrap());
    for vni in 0..7 {
        let frame = ethernet(&[], IPV4, &ipv4(UDP, &vxlan(4789, vni, &[0; 60])));
        sockets.iter().for_each(|socket| socket.send(&frame).unwrap());
    }
    let packets = |table: &Table, port: u128| table.get(&format!("port {port} Ingress"))[0];
    let [uplink, port] = [PORT, 2].map(|port| expected.map_or(0, |table| packets(table, port) / 2));
    until(|| {
        let table = meter.table();
        packets(&table, PORT) == uplink + 10 && packets(&table, 2) == port + 7
    });
    meter.table()
}

#[test]
fn totals_go_on_after_a_reboot() {
    if !ready() {
        return;
    }
    let pair = Pair::new("reboot");
    pair.host.netns.veth("eth1", &pair.peer, "peer1", 1_500).unwrap();
    let options = pair.options(TcMode::Auto);
    let mut meter = pair.host.open_with(&options);
    let first = send(&pair, &mut meter, None);
    let created: Vec<u64> = meter.reading().ports.iter().map(|port| port.created_ns).collect();
    let state = Totals { boot_id: "before".to_owned(), ..meter.datapath.totals().unwrap() };
    assert_eq!((state.ports.len(), state.members.len(), state.tunnels.len()), (2, 1, 7));
    for max_tunnels in [options.max_tunnels, 16, 4_096] {
        drop(meter);
        pair.host.netns.run_in(|| remove_all(&pair.host.pins)).unwrap().unwrap();
        meter = pair.host.open_after(&Options { max_tunnels, ..options.clone() }, &state);
        assert_eq!(meter.table(), first, "{max_tunnels}");
        assert_eq!(meter.attached().len(), 0);
        let again: Vec<u64> = meter.reading().ports.iter().map(|port| port.created_ns).collect();
        assert_eq!(again, created, "counting began when it began");
        let both = first.clone().plus(&first);
        assert_eq!(send(&pair, &mut meter, Some(&both)), both, "{max_tunnels}");
        // Another agent of this boot does not begin with it again.
        drop(meter);
        meter = pair.host.open_after(&options, &state);
        assert_eq!(meter.table(), both, "{max_tunnels}");
    }
    // What there is no room for costs the rest nothing.
    drop(meter);
    pair.host.netns.run_in(|| remove_all(&pair.host.pins)).unwrap().unwrap();
    let meter = &mut pair.host.open_after(&Options { max_ports: 1, max_tunnels: 4, ..options }, &state);
    let row = format!("port {PORT} Ingress");
    assert_eq!(meter.table().get(&row), first.get(&row));
    let reading = meter.reading();
    assert_eq!((reading.ports.len(), reading.tunnels.len()), (1, 4));
    assert_eq!(reading.repairs.unrestored, 1 + 3, "a port and three tunnels");
}

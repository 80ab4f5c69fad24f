//! Netdevs in namespaces go on under a later version as those of the host do.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use lab::{netns::Netns, traffic::RawSocket};
use meter_agent::{
    datapath::Datapath as _,
    netdev::{
        NamespaceId, NetdevId,
        namespaces::{Identity, open},
    },
};
use meter_ebpf::abi::map;

use super::{
    super::super::support::{Host, Meter, becomes, hooks::hooks_in, ready},
    Class, Options, Pair, Target, TcMode, later, meters,
};

/// The port of `eth0` in the namespace; that of the host is [`super::UPLINK`].
const PORT: u128 = 5;

fn enter(meter: &mut Meter<'_>, netns: &Netns) -> NamespaceId {
    let path = netns.path();
    let found = fs::metadata(&path).unwrap();
    let identity = Identity { device: found.dev(), inode: found.ino(), cookie: 0 };
    let entrance = open(path.parent().unwrap(), netns.name()).unwrap();
    meter.datapath.enter(identity, entrance).unwrap()
}

fn target(host: &Host, netns: &Netns, namespace: NamespaceId) -> Target {
    let ifindex = netns.run_in(|| nix::net::if_::if_nametoindex("eth0")).unwrap().unwrap();
    let id = NetdevId { namespace, ifindex };
    Target { id, netns: netns.name().to_owned(), ..host.target("eth0", PORT, Class::Port) }
}

/// `eth0` of the host and `eth0` of a namespace have the same number, and count through a change of the version, with meters
/// of one's own or without.
fn goes_on(label: &str, tc: TcMode, with_meters: bool) {
    let pair = Pair::new(label);
    let (red, beyond) = (Netns::new("red").unwrap(), Netns::new("beyond").unwrap());
    red.veth("eth0", &beyond, "there0", 1_500).unwrap();
    let options = pair.options(tc);
    let mut meter = pair.host.open_with(&options);
    if with_meters {
        meter.set_meters(&meters());
    }
    let number = enter(&mut meter, &red);
    meter.attach(&pair.port());
    meter.attach(&target(&pair.host, &red, number));
    let stop = AtomicBool::new(false);
    let last = Options { version: options.version + 2, ..options.clone() };
    let mut meter = Some(meter);
    let rounds = thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let ends =
                [(&red, "eth0"), (&beyond, "there0"), (&pair.peer, "peer0"), (&pair.host.netns, "eth0")];
            let sockets = ends.map(|(netns, netdev)| RawSocket::open(netns, netdev).unwrap());
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                sockets.iter().for_each(|socket| socket.send(&super::super::frame()).unwrap());
                rounds += 1;
            }
            rounds
        });
        drop(meter.take());
        // Once by an agent that goes at once, and once by one that follows the namespace.
        drop(pair.host.open_with(&later(&options)));
        let mut last = pair.host.open_with(&last);
        if with_meters {
            last.set_meters(&meters());
        }
        assert_eq!(enter(&mut last, &red), number, "it has its number still");
        last.attach(&target(&pair.host, &red, number));
        meter = Some(last);
        stop.store(true, Ordering::Relaxed);
        sender.join().unwrap()
    });
    let mut meter = meter.unwrap();
    assert!(rounds > 50, "{rounds}");
    for port in [PORT, super::UPLINK] {
        for direction in ["Ingress", "Egress"] {
            becomes(|| meter.table().get(&format!("port {port} {direction}"))[0], rounds);
        }
    }
    assert_eq!(meter.table().get("port 0 Ingress"), [0; 3], "nobody's");
    assert_eq!(meter.verify(), [""; 0]);
    let usage = meter.reading().maps;
    let namespaces = usage.iter().find(|usage| usage.map == map::NAMESPACES).unwrap();
    assert_eq!((namespaces.entries, namespaces.capacity), (1, 2_047));
    drop(meter);
    drop(pair);
    assert_eq!(hooks_in(&red, "eth0").unwrap(), [""; 0]);
}

#[test]
fn later_version_goes_on_from_the_totals_of_namespaces_by_tcx() {
    if ready() && lab::require::kernel(6, 6, "TCX") {
        goes_on("migrate-ns", TcMode::Tcx, false);
        goes_on("migrate-nsm", TcMode::Tcx, true);
    }
}

#[test]
fn later_version_goes_on_from_the_totals_of_namespaces_by_clsact() {
    if ready() {
        goes_on("migrate-nsc", TcMode::Clsact, false);
        goes_on("migrate-nscm", TcMode::Clsact, true);
    }
}

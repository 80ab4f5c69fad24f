//! Work in a namespace leaves the right one behind, however it ends. Takes root and the object.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
};

use lab::{netns::Netns, require};
use uuid::Uuid;

use super::super::{
    Class, Datapath as _, IngressHook, Network, Options, Retry, Target, TcMode, kernel::KernelDatapath,
    object::OBJECT, remove::remove_all,
};
use crate::{
    meter::PortId,
    netdev::{
        NamespaceId,
        namespaces::{Entrance, Identity},
    },
};

/// Returns the namespace that the calling thread is in.
fn here() -> PathBuf {
    fs::read_link("/proc/thread-self/ns/net").unwrap()
}

fn target(namespace: NamespaceId) -> Target {
    Target {
        id: crate::netdev::NetdevId { namespace, ifindex: 1 },
        netdev: "lo".to_owned(),
        netns: String::new(),
        port: PortId(Uuid::nil()),
        class: Class::Port,
        device: None,
        underlay: false,
        ingress: IngressHook::Tc,
        network: Network::NONE,
    }
}

#[test]
fn work_in_a_namespace_leaves_the_right_one_behind_however_it_ends() {
    if !require::root() || !require::met("object", !OBJECT.is_empty(), "the eBPF object") {
        return;
    }
    let [host, one, other] = ["within-host", "within-one", "within-other"].map(|l| Netns::new(l).unwrap());
    host.run_in(|| walk(&one, &other)).unwrap();
}

fn walk(one: &Netns, other: &Netns) {
    let options = Options {
        version: meter_ebpf::abi::VERSION,
        pin_path: format!("/sys/fs/bpf/meter-test-within-{}", std::process::id()).into(),
        tc: TcMode::Auto,
        max_ports: 4,
        max_netdevs: 4,
        max_tunnels: 4,
        max_connections: 4,
        vxlan_ports: vec![4789],
        geneve_ports: vec![6081],
        nvgre: false,
    };
    let mut datapath = KernelDatapath::open(&options).unwrap();
    let at_home = here();
    let [(one, in_one), (other, in_other)] = [(one, 1), (other, 2)].map(|(netns, inode)| {
        let (entrance, place) = netns.run_in(|| (Entrance::own().unwrap(), here())).unwrap();
        let number = datapath.enter(Identity { device: 1, inode, cookie: 0 }, entrance).unwrap();
        (target(number), place)
    });
    let home = target(NamespaceId::HOST);
    // What follows is where it should be, in each of them, from each of them.
    let is_right = |datapath: &mut KernelDatapath, place: &PathBuf, target: &Target| {
        assert_eq!(here(), *place);
        assert_eq!(datapath.within(target, |_| here()).unwrap().as_ref(), Some(place), "without a way");
        for (target, place) in [(&one, &in_one), (&other, &in_other), (&home, &at_home)] {
            assert_eq!(datapath.within(target, |_| here()).unwrap().as_ref(), Some(place));
        }
        assert_eq!(here(), *place);
    };
    is_right(&mut datapath, &at_home, &home);
    datapath.within(&one, |inner| is_right(inner, &in_one, &one)).unwrap().unwrap();

    let failed = datapath.within(&one, |inner| {
        // Also where what fails is further in.
        let failed = inner.within(&other, |_| Err::<(), _>("no")).unwrap();
        is_right(inner, &in_one, &one);
        failed.unwrap()
    });
    assert_eq!(failed.unwrap(), Some(Err("no")));
    is_right(&mut datapath, &at_home, &home);

    let panicked = datapath.within(&one, |inner| {
        let panicked = catch_unwind(AssertUnwindSafe(|| inner.within(&other, |_| panic!("further in"))));
        is_right(inner, &in_one, &one);
        panicked.is_err()
    });
    assert_eq!(panicked.unwrap(), Some(true));
    let panicked = catch_unwind(AssertUnwindSafe(|| datapath.within(&one, |_| panic!("there"))));
    assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"there"));
    is_right(&mut datapath, &at_home, &home);

    // A namespace that nothing leads to is not entered, and nothing else is in its place.
    let nowhere = target(NamespaceId(77));
    assert_eq!(datapath.within(&nowhere, |_| here()).unwrap(), None);
    is_right(&mut datapath, &at_home, &home);
    let refused = datapath.attach(&nowhere).unwrap_err();
    assert_eq!((refused.reason, refused.retry), ("gone", Retry::Gone));
    is_right(&mut datapath, &at_home, &home);
    drop(datapath);
    remove_all(&options.pin_path).unwrap();
}

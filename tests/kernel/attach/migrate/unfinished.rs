//! What an agent that was ended, or somebody who removed pins, left of earlier versions.

use std::fs;

use meter_agent::datapath::kernel::{KernelDatapath, OpenError};
use meter_ebpf::abi::{VERSION, map};

use super::{
    super::super::support::{
        becomes,
        capabilities::{Capability, without},
        ready,
    },
    IngressHook, Options, Pair, RawSocket, TcMode, World, later, tunnelled,
};

/// The maps of two versions are there: only the agent of the later one knows what it has of the earlier one.
#[test]
fn version_that_has_not_taken_over_is_not_passed_over() {
    if !ready() {
        return;
    }
    let world = World::new("unfinished", TcMode::Auto);
    let mut meter = world.open(&world.options);
    world.attach(&mut meter, IngressHook::Tc);
    world.pair.send(3, 5);
    becomes(|| meter.table().get("port 1 Ingress")[0], 3);
    drop(meter);
    // As one that was killed before it had the totals, and after it had made its maps.
    let maps = world.pair.host.pins.join(format!("v{}/maps", VERSION + 1));
    fs::create_dir_all(&maps).unwrap();
    let last = Options { version: VERSION + 2, ..world.options.clone() };
    let hooks = world.pair.host.hooks();
    let refused = world.pair.host.netns.run_in(|| KernelDatapath::open(&last)).unwrap().unwrap_err();
    assert!(
        matches!(refused, OpenError::UnfinishedPins { found, .. } if found == [VERSION, VERSION + 1]),
        "{refused}"
    );
    assert!(refused.lasts() && refused.to_string().contains("start that one once more"), "{refused}");
    assert_eq!(world.pair.host.hooks(), hooks, "they count on");
    drop(world.open(&later(&world.options)));
    let mut meter = world.open(&last);
    becomes(|| meter.table().get("port 1 Ingress")[0], 3);
}

/// The kernel refuses a later version's maps or programs: the version before goes on, as if the later one had never been there.
#[test]
fn version_that_is_refused_does_not_keep_the_one_before_from_going_on() {
    if !ready() {
        return;
    }
    let world = World::new("migrate-refused", TcMode::Clsact);
    let mut meter = world.open(&world.options);
    world.attach(&mut meter, IngressHook::Tc);
    drop(meter);
    let hooks = world.pair.host.hooks();
    // On Linux before 5.19 nothing of the earlier version can be opened without CAP_BPF, so that nothing is begun.
    for (capability, frames) in [(Capability::NetAdmin, 3), (Capability::Bpf, 6)] {
        let missing = [Capability::SysAdmin, capability];
        let open = || without(&missing, || KernelDatapath::open(&later(&world.options)));
        let refused = world.pair.host.netns.run_in(open).unwrap().unwrap_err();
        assert!(matches!(refused, OpenError::Permission { .. }), "{refused}");
        assert_eq!(world.pair.host.hooks(), hooks, "they count on");
        let begun = [format!("v{VERSION}"), format!("v{}", VERSION + 1)];
        assert!(matches!(capability, Capability::Bpf) || world.versions() == begun, "{:?}", world.versions());
        world.pair.send(3, 5);
        let mut meter = world.open(&world.options);
        assert_eq!(world.versions(), [format!("v{VERSION}")], "{capability:?}");
        becomes(|| meter.table().get("port 1 Ingress")[0], frames);
    }
    // Maps that hold all totals are not taken for begun, whatever is missing of them.
    drop(world.open(&later(&world.options)));
    let meta = world.pair.host.pins.join(format!("v{}/maps/{}", VERSION + 1, map::META));
    fs::remove_file(meta).unwrap();
    let refused = world.pair.host.netns.run_in(|| KernelDatapath::open(&world.options)).unwrap().unwrap_err();
    assert!(matches!(refused, OpenError::NewerPins { .. }), "{refused}");
}

/// A map of the earlier version has gone, with what it held: that is said, and counting began anew then.
#[test]
fn map_that_is_lost_before_a_later_version_takes_over_is_said_to_be() {
    if !ready() {
        return;
    }
    let pair = Pair::new("migrate-lost");
    let options = pair.options(TcMode::Auto);
    let mut meter = pair.host.open_with(&options);
    meter.attach(&pair.port());
    pair.send(3, 5);
    becomes(|| meter.table().get("port 1 Ingress")[0], 3);
    let created = meter.reading().ports[0].created_ns;
    // Nothing counts in it any more, so that nothing keeps it.
    meter.detach(pair.host.ifindex("eth0"));
    drop(meter);
    fs::remove_file(pair.host.pins.join(format!("v{VERSION}/maps/{}", map::COUNTERS))).unwrap();
    let mut meter = pair.host.open_with(&later(&options));
    let reading = meter.reading();
    assert_eq!(reading.repairs.lost, 1);
    assert_eq!(meter.table().get("port 1 Ingress"), [0; 3]);
    assert!(reading.ports[0].created_ns > created, "counting began when the totals were lost");
}

/// As many tunnels before a change of the version as there is room for, and as many others after it: the next version has
/// room for both.
#[test]
fn tunnels_of_all_versions_before_have_room() {
    const TUNNELS: u32 = 48;
    if !ready() {
        return;
    }
    let pair = Pair::new("migrate-union");
    let socket = RawSocket::open(&pair.peer, "peer0").unwrap();
    let mut options = Options { max_tunnels: 64, ..pair.options(TcMode::Auto) };
    let mut all = 0;
    for round in 0..3 {
        let mut meter = pair.host.open_with(&options);
        meter.attach(&pair.uplink(IngressHook::Tc));
        (0..TUNNELS).for_each(|vni| socket.send(&tunnelled(1_000 * round + vni)).unwrap());
        all += u64::from(TUNNELS);
        becomes(|| meter.reading().tunnels.iter().map(|tunnel| tunnel.packets).sum::<u64>(), all);
        drop(meter);
        options = later(&options);
    }
    let mut meter = pair.host.open_with(&options);
    let reading = meter.reading();
    assert_eq!((reading.tunnels.len(), reading.repairs.unrestored), (3 * TUNNELS as usize, 0));
    let aside = pair.host.pins.join("aside");
    assert!(!aside.exists(), "nothing had to be kept");
}

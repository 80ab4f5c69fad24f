//! Totals for which the maps of a later version have no room.

use std::{collections::BTreeSet, fs, path::Path};

use aya::maps::{HashMap, Map, MapData};
use meter_agent::datapath::kernel::KernelDatapath;
use meter_ebpf::abi::{TunnelKey, map};

use super::{
    super::super::support::becomes, BYTES, IngressHook, Options, PORT, RawSocket, TcMode, UPLINK, World,
    later, ready, tunnelled,
};

/// Tunnels of the earlier version.
const TUNNELS: u32 = 3;

/// Returns what is pinned in a directory.
fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn totals_that_a_later_version_has_no_room_for_are_kept_aside() {
    if !ready() {
        return;
    }
    let world = World::new("no-room", TcMode::Auto);
    let pins = &world.pair.host.pins;
    let mut meter = world.open(&world.options);
    world.attach(&mut meter, IngressHook::Tc);
    let socket = RawSocket::open(&world.pair.peer, "peer0").unwrap();
    (0..TUNNELS).for_each(|vni| (0..=vni).for_each(|_| socket.send(&tunnelled(vni)).unwrap()));
    let other = RawSocket::open(&world.pair.peer, "peer1").unwrap();
    other.send(&super::super::frame()).unwrap();
    let tunnel = u64::try_from(tunnelled(0).len()).unwrap();
    let uplink = [6, 6 * tunnel];
    let total = |meter: &mut super::Meter<'_>, port: u128| {
        let [packets, bytes, _] = meter.table().get(&format!("port {port} Ingress"));
        [packets, bytes]
    };
    becomes(|| (total(&mut meter, UPLINK), total(&mut meter, PORT)), (uplink, [1, BYTES]));
    assert_eq!(meter.reading().tunnels.len(), 3);
    drop(meter);
    let earlier = pins.join(format!("v{}/maps", world.options.version));
    let maps = names(&earlier);

    // Maps of the later version are there already, made for one tunnel: by an agent that was killed then.
    let options = later(&world.options);
    let elsewhere =
        Path::new(pins).with_file_name(format!("{}-small", pins.file_name().unwrap().to_str().unwrap()));
    let small = Options { pin_path: elsewhere.clone(), max_tunnels: 1, ..options.clone() };
    drop(world.pair.host.netns.run_in(|| KernelDatapath::open(&small)).unwrap().unwrap());
    let version = format!("v{}", options.version);
    fs::rename(elsewhere.join(&version), pins.join(&version)).unwrap();
    fs::remove_dir(&elsewhere).unwrap();

    let mut meter = world.open(&options);
    assert_eq!(meter.reading().repairs.unrestored, 2);
    let left: Vec<u64> = meter.reading().tunnels.iter().map(|tunnel| tunnel.packets).collect();
    assert!(matches!(left[..], [1..=3]), "{left:?}");
    // Everything else is there, and nothing of what is not is lost.
    assert_eq!((total(&mut meter, UPLINK), total(&mut meter, PORT)), (uplink, [1, BYTES]));
    assert_eq!(world.versions(), ["aside", &version]);
    let aside = pins.join("aside");
    assert_eq!(names(&aside), maps.iter().map(|name| format!("{name}_1")).collect());
    let data = MapData::from_pin(aside.join(format!("{}_1", map::TUNNELS))).unwrap();
    let kept: HashMap<MapData, TunnelKey, u32> = Map::from_map_data(data).unwrap().try_into().unwrap();
    assert_eq!(kept.iter().count(), 3);
    drop(meter);

    // The next agent has nothing left to do, and what is aside stays.
    let mut meter = world.open(&options);
    assert_eq!(meter.reading().repairs.unrestored, 0);
    assert_eq!((total(&mut meter, UPLINK), total(&mut meter, PORT)), (uplink, [1, BYTES]));
    assert_eq!(names(&aside).len(), maps.len());
    drop(meter);
    fs::remove_dir_all(aside).unwrap();
}

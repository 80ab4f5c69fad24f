//! Pins that somebody removed while namespaces are metered: all count in the same maps.

use std::{collections::BTreeSet, fs, path::Path};

use meter_ebpf::abi::{VERSION, map};

use super::{Host, Router, follow, ready, start, started, wait_for_frames, wait_for_port};

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn namespace_that_comes_when_pins_are_gone_counts_in_the_maps_that_count() {
    if !ready() {
        return;
    }
    let host = Host::new("nsq");
    let red = Router::new("nsq-red");
    let daemon = started(&host, &follow("nsq"));
    let first = wait_for_port(&daemon, &red.netns, "eth0");
    let pins = host.pins.join(format!("v{VERSION}/maps"));
    let before = names(&pins);
    for name in &before {
        fs::remove_file(pins.join(name)).unwrap();
    }
    let blue = Router::new("nsq-blue");
    let second = wait_for_port(&daemon, &blue.netns, "eth0");
    red.cross("eth0", 1, 2);
    blue.cross("eth0", 30, 50);
    wait_for_frames(&daemon, &[(&first, [1, 2]), (&second, [30, 50])], "all are read");
    assert_eq!(names(&pins), before, "they are pinned again");
    let restored = daemon.sample("meter_agent_pin_repairs_total{kind=\"restored\"}");
    assert_eq!(restored, u64::try_from(before.len()).ok());
}

/// The map of namespaces loses its pin while no agent runs: it is found at the programs in the namespaces.
fn restored(label: &str, tc: &str) {
    let host = Host::new(label);
    let red = Router::new(&format!("{label}-red"));
    let mut daemon = started(&host, &format!("tc = \"{tc}\"\n{}", follow(label)));
    let port = wait_for_port(&daemon, &red.netns, "eth0");
    red.cross("eth0", 1, 2);
    daemon.kill();
    let pin = host.pins.join(format!("v{VERSION}/maps/{}", map::NAMESPACES));
    fs::remove_file(&pin).unwrap();
    red.cross("eth0", 10, 20);
    start(&mut daemon);
    assert!(pin.exists());
    assert_eq!(wait_for_port(&daemon, &red.netns, "eth0"), port);
    red.cross("eth0", 100, 200);
    wait_for_frames(&daemon, &[(&port, [111, 222])], "nothing is lost");
    assert_eq!(daemon.sample("meter_agent_pin_repairs_total{kind=\"restored\"}"), Some(1));
}

#[test]
fn map_of_namespaces_whose_pin_was_removed_is_found_at_the_programs() {
    if ready() {
        restored("nsz", "auto");
        restored("nszc", "clsact");
    }
}

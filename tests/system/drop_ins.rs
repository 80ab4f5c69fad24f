//! What the service does with the drop-ins of the package; the one for ports below 1024 is with what it listens on.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use lab::{netns::Netns, require};

use super::{
    machine::{
        CONFIGURATION, DropIn, SERVICE, eventually, output, property, ready_after, reconfigure, restart, step,
    },
    site::Site,
};

/// The path of the pins as the unit, the configuration and systemd-tmpfiles have it, and the drop-in's.
const PINS: &str = "/sys/fs/bpf/meter-agent";
const ELSEWHERE: &str = "/sys/fs/bpf/another-path";

/// systemd's version that has a reload which is waited for.
const NOTIFIES_OF_RELOADS: u32 = 253;

/// Has the counters pinned at another path, and then again where they were.
pub(crate) fn pin_path() {
    step("another path of pins, by the drop-in");
    let lines = fs::read_to_string("/usr/lib/tmpfiles.d/meter-agent.conf").unwrap();
    let own_lines = "/etc/tmpfiles.d/meter-agent.conf";

    output("systemctl", &["stop", SERVICE]);
    output("meter-agent", &["detach"]);
    let [from, to] = [format!("#pin_path = \"{PINS}\""), format!("pin_path = \"{ELSEWHERE}\"")];
    let text = reconfigure(&from, &to);
    fs::write(own_lines, lines.replace(PINS, ELSEWHERE)).unwrap();
    let drop_in = DropIn::of_package("pin-path.conf");
    restart();
    let maps = maps_at(ELSEWHERE);
    assert!(!maps.is_empty());
    restart();
    assert_eq!(maps_at(ELSEWHERE), maps, "they outlive the agent");
    assert!(!Path::new(PINS).exists());

    output("systemctl", &["stop", SERVICE]);
    output("meter-agent", &["detach"]);
    assert!(!Path::new(ELSEWHERE).exists());
    drop_in.remove();
    fs::remove_file(own_lines).unwrap();
    fs::write(CONFIGURATION, text).unwrap();
    restart();
    assert!(!maps_at(PINS).is_empty());
}

/// Returns the maps that are pinned for any layout: names and ids.
fn maps_at(pins: &str) -> BTreeMap<String, u64> {
    let text = output("find", &[pins, "-path", "*/maps/*"]);
    let id = |path: &str| {
        let text = output("bpftool", &["--json", "map", "show", "pinned", path]);
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["id"].as_u64().unwrap()
    };
    text.lines().map(|path| (path.to_owned(), id(path))).collect()
}

/// Reloads as systemd does it where it waits: the command is not done before the agent is, and then the new configuration
/// holds.
pub(crate) fn reload() {
    let version = output("systemctl", &["--version"]);
    let digits = version.split(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty());
    let found: u32 = digits.unwrap().parse().unwrap();
    let missing = format!("Type=notify-reload (requires systemd >= {NOTIFIES_OF_RELOADS}, this is {found})");
    if !require::met("notify-reload", found >= NOTIFIES_OF_RELOADS, &missing) {
        return;
    }
    let drop_in = DropIn::of_package("notify-reload.conf");
    let pid = restart();
    assert_eq!(property("Type"), "notify-reload");
    let text = fs::read_to_string(CONFIGURATION).unwrap();
    let has_meter = || {
        let list = output("mm-meter", &["list"]);
        list.lines().any(|name| name == "meters:user:reloaded")
    };
    let more = "\n[[meter]]\nname = \"reloaded\"\nrules = [{vni = 4242}]\n";
    for (configuration, is_there) in [(text.clone() + more, true), (text, false)] {
        fs::write(CONFIGURATION, configuration).unwrap();
        output("systemctl", &["kill", "--signal", "STOP", SERVICE]);
        let mut reload = Command::new("systemctl").args(["reload", SERVICE]).spawn().unwrap();
        eventually("systemd waits", || match property("ActiveState") {
            state if state == "reloading" => Ok(()),
            state => Err(state),
        });
        assert_eq!(reload.try_wait().unwrap(), None);
        output("systemctl", &["kill", "--signal", "CONT", SERVICE]);
        assert!(reload.wait().unwrap().success());
        assert_eq!(has_meter(), is_there);
        assert_eq!(ready_after(0), pid, "no restart");
    }
    drop_in.remove();
    restart();
}

/// Follows a namespace as the service may with the drop-in, and finds it again by its process once it has lost its name.
pub(crate) fn namespaces(site: &Site) {
    let drop_in = DropIn::of_package("namespaces.conf");
    let red = Netns::new("red").unwrap();
    site.host.ip(&format!("link add red0 type veth peer name eth0 netns {}", red.name())).unwrap();
    let text = reconfigure("\n#include = []\n", &format!("\ninclude = [\"{}\"]\n", red.name()));
    restart();
    let hooks = eventually("the netdev in the namespace is metered", || {
        let list = output("meter-agent", &["ls"]);
        let words = list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut own = words.filter(|words| words.starts_with(&["eth0", red.name()]));
        let hooks =
            own.find_map(|words| words.get(5).filter(|&&hooks| hooks != "-").map(ToString::to_string));
        hooks.ok_or(list)
    });
    let filters = || red.run("tc", &["filter", "show", "dev", "eth0", "ingress"]).unwrap();
    assert_eq!(hooks == "clsact", !filters().is_empty(), "{hooks}");

    let mut sleep = red.command("sleep").unwrap();
    sleep.arg("600").stdin(Stdio::null());
    let process = red.spawn(sleep).unwrap();
    output("systemctl", &["stop", SERVICE]);
    output("ip", &["netns", "del", red.name()]);
    output("systemctl", &["start", SERVICE]);
    ready_after(0);
    eventually("its filters are gone", || Some(()).filter(|()| filters().is_empty()).ok_or(filters()));
    site.host.ip("link del red0").unwrap();
    drop(process);
    // So that the lab finds what it is to remove.
    output("ip", &["netns", "add", red.name()]);
    drop(red);
    drop_in.remove();
    fs::write(CONFIGURATION, text).unwrap();
    restart();
}

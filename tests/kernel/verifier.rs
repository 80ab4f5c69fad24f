//! The object loads, its maps are what the ABI says, and what is in the way gets a clear error.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use aya::maps::{MapInfo, MapType};
use meter_agent::datapath::{
    Repairs,
    kernel::{KernelDatapath, OpenError, Options, remove_all},
};
use meter_ebpf::abi::{
    Buckets, Faults, MAX_UPLINKS, Member, MemberKey, Meta, PortRecord, PortUuid, SlotBlock, SlotRef,
    TunnelBlock, TunnelCounter, TunnelKey, VERSION,
    connection::{Capture, Connection, ConnectionHints, ConnectionKey, Handshake, SavedCapture},
    map,
    rules::{MeterBlock, MeterName, MeterRecord},
};

use super::support::{
    self, Host,
    daemon::output,
    foreign::Foreign,
    programs::{OF_NAMESPACES, PROGRAMS, Programs},
    ready,
    table::Table,
};

#[test]
fn every_program_loads_and_every_map_is_the_abis() {
    if !ready() {
        return;
    }
    let host = Host::new("maps");
    let options = Options {
        max_ports: 77,
        max_netdevs: 300,
        max_tunnels: 1_000,
        max_connections: 50,
        ..host.options()
    };
    let mut meter = host.open_with(&options);
    Programs::load(&options, PROGRAMS.into_iter().chain(OF_NAMESPACES));
    let size = |bytes: usize| u32::try_from(bytes).unwrap();
    let (array, hash, per_cpu) = (MapType::Array, MapType::Hash, MapType::PerCpuArray);
    let mut expected = vec![
        (map::SLOTS, array, 4, 65_536 * size(size_of::<SlotRef>()), 1),
        (map::SLOTS_HIGH, hash, 4, size(size_of::<SlotRef>()), 65_536),
        // Blocks of 256, of which one slot is for what nobody claimed.
        (map::COUNTERS, per_cpu, 4, size(size_of::<SlotBlock>()), 2),
        (map::PORTS, hash, size(size_of::<PortUuid>()), size(size_of::<PortRecord>()), 77),
        (map::MEMBERS, hash, size(size_of::<MemberKey>()), size(size_of::<Member>()), 77),
        (map::TUNNELS, hash, size(size_of::<TunnelKey>()), 4, 1_000),
        // As many places as hashes lead to, and half as many to spare, in blocks of 256.
        (map::TUNNEL_TAKEN, hash, 4, 4, 1_024),
        (map::TUNNEL_SPARE, MapType::Queue, 0, 4, 512),
        (map::TUNNEL_COUNTERS, per_cpu, 4, size(size_of::<TunnelBlock>()), 6),
        (map::BUCKETS, per_cpu, 4, size(size_of::<Buckets>()), 2 * MAX_UPLINKS),
        (map::FAULTS, per_cpu, 4, size(size_of::<Faults>()), 1),
        (map::META, array, 4, size(size_of::<Meta>()), 1),
        (map::RULES, MapType::ArrayOfMaps, 4, 4, 1),
        (map::VERDICTS, MapType::ArrayOfMaps, 4, 4, 1),
        (map::METERS, hash, size(size_of::<MeterName>()), size(size_of::<MeterRecord>()), 4_096),
        (map::METER_COUNTERS, per_cpu, 4, size(size_of::<MeterBlock>()), 2),
        (map::TUNNEL_SAVED, hash, size(size_of::<TunnelKey>()), size(size_of::<TunnelCounter>()), 1_000),
        (map::SAVED, hash, 4, size(size_of::<Buckets>()), 2 * MAX_UPLINKS + 2),
        (map::CONNECTIONS, array, 4, size(size_of::<Connection>()), 51),
        (map::CONNECTION_KEYS, hash, size(size_of::<ConnectionKey>()), 4, 50),
        (map::CONNECTION_FREE, MapType::Queue, 0, 4, 50),
        (map::CONNECTION_HINTS, array, 4, size(size_of::<ConnectionHints>()), 1),
        (map::CONNECTION_TIMES, array, 4, size(size_of::<Handshake>()), 51),
        (map::NETWORKS, array, 4, 4, 512),
        (map::CAPTURES, array, 4, size(size_of::<Capture>()), 512),
        (map::CAPTURE_SAVED, hash, size(size_of::<PortUuid>()), size(size_of::<SavedCapture>()), 77),
        (map::CAPTURE_RULES, MapType::ArrayOfMaps, 4, 4, 1),
        (map::CAPTURE_VERDICTS, MapType::ArrayOfMaps, 4, 4, 1),
    ];
    expected.sort_by_key(|row| row.0);
    let mut pins: Vec<String> = fs::read_dir(maps(&host))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    pins.sort();
    let found: Vec<_> = pins
        .iter()
        .map(|name| {
            let info = MapInfo::from_pin(maps(&host).join(name)).unwrap();
            assert_eq!(info.name_as_str(), Some(name.as_str()));
            let sizes = (info.key_size(), info.value_size(), info.max_entries());
            (name.as_str(), info.map_type().unwrap(), sizes.0, sizes.1, sizes.2)
        })
        .collect();
    assert_eq!(found, expected);
    assert_eq!(Table::of(&meter.reading()), Table::default());
    assert_eq!(meter.reading().ports, []);
}

fn maps(host: &Host) -> PathBuf {
    host.pins.join(format!("v{VERSION}")).join("maps")
}

#[test]
fn one_datapath_at_a_time_has_the_maps() {
    if !ready() {
        return;
    }
    let host = Host::new("locked");
    let first = host.open();
    let error = KernelDatapath::open(&host.options()).unwrap_err();
    assert!(matches!(&error, OpenError::Locked { path } if path.starts_with(&host.pins)), "{error}");
    assert!(error.to_string().contains("another agent uses"), "{error}");
    drop(first);
    host.open();
}

#[test]
fn foreign_pin_is_set_aside_and_left_alone() {
    if !ready() {
        return;
    }
    let host = Host::new("foreign");
    drop(host.open());
    let path = maps(&host).join(map::SLOTS);
    let aside = host.pins.join("aside");
    let info = |path: &Path| {
        let info = MapInfo::from_pin(path).unwrap();
        (info.id(), info.map_type().unwrap(), info.key_size(), info.value_size())
    };
    let ours = |info: (u32, MapType, u32, u32)| (info.1, info.2, info.3);
    let kind = ours(info(&path));
    for (number, (kind_of, value)) in [
        // The right sizes, but another type; then the right type of a wrong size.
        ("hash", "8"),
        ("array", "16"),
    ]
    .into_iter()
    .enumerate()
    {
        fs::remove_file(&path).unwrap();
        let args = ["key", "4", "value", value, "entries", "65536", "name", "SLOTS"];
        let pin = path.to_str().unwrap();
        host.netns.run("bpftool", &[&["map", "create", pin, "type", kind_of][..], &args].concat()).unwrap();
        let before = info(&path);
        let repairs = host.open().reading().repairs;
        assert_eq!(repairs, Repairs { set_aside: 1, lost: 1, ..Repairs::default() }, "{kind_of}");
        assert_eq!(ours(info(&path)), kind);
        assert_eq!(info(&aside.join(format!("SLOTS_{}", number + 1))), before);
    }
    // A program where a map belongs.
    fs::remove_file(&path).unwrap();
    Foreign::load(&host.netns).pin(&path);
    host.open();
    assert_eq!(ours(info(&path)), kind);
    assert!(aside.join("SLOTS_3").exists());
    assert_eq!(host.open().reading().repairs, Repairs::default());

    // It is not ours, and so it stays when everything of ours goes.
    remove_all(&host.pins).unwrap();
    assert_eq!(fs::read_dir(&aside).unwrap().count(), 3);
    assert_eq!(fs::read_dir(&host.pins).unwrap().count(), 1);
    fs::remove_dir_all(&aside).unwrap();
    fs::remove_dir(&host.pins).unwrap();
}

fn open_at(host: &Host, pin_path: PathBuf) -> Result<KernelDatapath, OpenError> {
    host.netns.run_in(|| KernelDatapath::open(&Options { pin_path, ..host.options() })).unwrap()
}

/// Pins may be where it should have led to.
#[test]
fn pin_path_that_leads_past_the_bpffs_is_an_error() {
    if !ready() {
        return;
    }
    let host = Host::new("elsewhere");
    let directory = tempfile::tempdir().unwrap();
    let pin_path = directory.path().join("meter");
    let error = open_at(&host, pin_path.clone()).unwrap_err();
    assert!(matches!(error, OpenError::NoBpffs { .. }), "{error:?}");
    let why = error.to_string();
    assert!(why.starts_with(pin_path.to_str().unwrap()) && why.contains("mount -t bpf"), "{why}");
    assert!(!pin_path.exists());
}

#[test]
fn pin_path_with_a_dot_is_an_error_with_that_reason() {
    if !ready() {
        return;
    }
    let host = Host::new("dot");
    let why = open_at(&host, format!("{}.d", host.pins.display()).into()).unwrap_err().to_string();
    assert!(why.contains("bpffs refuses names with a dot"), "{why}");
}

/// The environment variable that makes a test [`open_as_nobody`], with the pin path to use.
const NOBODYS_PIN_PATH: &str = "METER_TEST_NOBODYS_PIN_PATH";

#[test]
fn without_privileges_the_error_says_which_are_needed() {
    if let Some(pin_path) = std::env::var_os(NOBODYS_PIN_PATH) {
        return open_as_nobody(pin_path.into());
    }
    if !ready() {
        return;
    }
    let host = Host::new("nobody");
    // In a process of its own, which is this test again: what the library finds out about the kernel without privileges,
    // it remembers.
    let open = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let own_name = "verifier::without_privileges_the_error_says_which_are_needed";
        command.args(["--exact", "--nocapture", own_name]);
        let output = output(command.env(NOBODYS_PIN_PATH, &host.pins));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        text
    };
    // A directory of its own it can make; programs it can't load.
    let message = open();
    assert!(message.contains("CAP_BPF") && message.contains("root"), "{message}");
    fs::remove_dir_all(&host.pins).unwrap();

    // What root made it can't use.
    drop(host.open());
    let message = open();
    assert!(message.contains(host.pins.to_str().unwrap()) && message.contains("root"), "{message}");
}

/// Gives up every privilege for good, and says what opening then ends in.
fn open_as_nobody(pin_path: PathBuf) {
    const NOBODY: libc::uid_t = 65_534;
    let options = Options { pin_path, ..support::small_options() };
    // SAFETY: the system call takes numbers only. Called by number, it changes the calling thread alone.
    let result = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    let error = KernelDatapath::open(&options).unwrap_err();
    assert!(matches!(error, OpenError::Permission { .. }), "{error}");
    eprintln!("{error}");
}

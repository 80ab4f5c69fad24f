//! An agent whose maps are of a later version goes on from the totals of the one before, under traffic, and whenever it is
//! killed while it does so.

mod namespaces;
mod room;
mod unfinished;

use std::{
    env, fs,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, IterableMap as _, MapData};
use lab::netns::Netns;
use meter_agent::{
    datapath::kernel::{Before, KernelDatapath, OpenError, remove_all},
    meter::DeviceId,
    rules::MeterSet,
};
use meter_ebpf::abi::{Direction, PortRecord, PortUuid, VERSION, map};
use uuid::Uuid;

use super::{
    super::support::{
        self, WITHIN, becomes,
        frames::{IPV4, UDP, ethernet, ipv4, vxlan},
        holds_within, ready,
    },
    BYTES, Class, IngressHook, Meter, Options, Pair, RawSocket, Target, TcMode,
};

/// The port of a device, with user-defined meters, and the uplink.
const PORT: u128 = 2;
const UPLINK: u128 = super::PORT;
/// Its pin path, for a process that is killed while it opens the datapath.
const CHILD: &str = "METER_TEST_MIGRATE";

fn later(options: &Options) -> Options {
    Options { version: options.version + 1, ..options.clone() }
}

fn meters() -> MeterSet {
    let port = Uuid::from_u128(PORT);
    support::meters(&[
        ("frames", "ethertype 0x88b5"),
        ("by port", &format!("in-ports {port}")),
        ("out", "direction tx"),
    ])
}

/// `eth0` is an uplink and `eth1` a port.
struct World {
    pair: Pair,
    options: Options,
}

impl World {
    fn new(label: &str, tc: TcMode) -> Self {
        let pair = Pair::new(label);
        pair.host.netns.veth("eth1", &pair.peer, "peer1", 1_500).unwrap();
        let options = pair.options(tc);
        Self { pair, options }
    }

    fn attach(&self, meter: &mut Meter<'_>, ingress: IngressHook) {
        let device = Some(DeviceId(Uuid::from_u128(11)));
        meter.attach(&self.pair.uplink(ingress));
        meter.attach(&Target { device, ..self.pair.host.target("eth1", PORT, Class::Port) });
    }

    fn open(&self, options: &Options) -> Meter<'_> {
        self.pair.host.open_before(options, Before { meters: Some(&meters()), ..Before::default() })
    }

    fn versions(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.pair.host.pins).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Sends through all four ends, tunnelled frames among them, until told to stop; returns how many rounds.
fn send(host: &Netns, peer: &Netns, stop: &std::sync::atomic::AtomicBool) -> u64 {
    let socket = |netns, netdev| RawSocket::open(netns, netdev).unwrap();
    let plain = [(peer, "peer0"), (host, "eth0"), (peer, "peer1"), (host, "eth1")];
    let plain = plain.map(|(netns, netdev)| socket(netns, netdev));
    let frame = super::frame();
    let tunnels: Vec<_> = (0..3).map(tunnelled).collect();
    let mut rounds = 0;
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        plain.iter().for_each(|socket| socket.send(&frame).unwrap());
        plain[0].send(&tunnels[usize::try_from(rounds % 3).unwrap()]).unwrap();
        rounds += 1;
    }
    rounds
}

fn tunnelled(vni: u32) -> Vec<u8> {
    ethernet(&[], IPV4, &ipv4(UDP, &vxlan(4789, vni, &[0; 60])))
}

/// What so many rounds count everywhere.
fn expected(rounds: u64) -> (Vec<(String, [u64; 3])>, [u64; 3]) {
    let row = |name: String, packets: u64, bytes: u64| (name, [packets, bytes, 0]);
    let tunnel = u64::try_from(tunnelled(0).len()).unwrap();
    let mut rows = vec![
        row(format!("port {UPLINK} Ingress"), 2 * rounds, rounds * (BYTES + tunnel)),
        row(format!("port {UPLINK} Egress"), rounds, rounds * BYTES),
        row(format!("port {PORT} Ingress"), rounds, rounds * BYTES),
        row(format!("port {PORT} Egress"), rounds, rounds * BYTES),
        row("device 11".to_owned(), rounds, rounds * BYTES),
        row("user by port".to_owned(), rounds, rounds * BYTES),
        row("user frames".to_owned(), rounds, rounds * BYTES),
        row("user out".to_owned(), rounds, rounds * BYTES),
    ];
    rows.sort();
    (rows, std::array::from_fn(|vni| (rounds + 2 - u64::try_from(vni).unwrap()) / 3))
}

/// The same as it is counted.
fn counted(meter: &mut Meter<'_>) -> (Vec<(String, [u64; 3])>, [u64; 3]) {
    let table = meter.table();
    let names = [
        format!("port {UPLINK} Ingress"),
        format!("port {UPLINK} Egress"),
        format!("port {PORT} Ingress"),
        format!("port {PORT} Egress"),
        "device 11".to_owned(),
    ];
    let mut rows: Vec<_> = names
        .into_iter()
        .map(|name| {
            let [packets, bytes, _] = table.get(&name);
            (name, [packets, bytes, 0])
        })
        .collect();
    let users = meter.meters().into_iter();
    rows.extend(users.map(|(name, [packets, bytes])| (format!("user {name}"), [packets, bytes, 0])));
    rows.sort();
    let mut tunnels = [0; 3];
    for tunnel in meter.reading().tunnels {
        tunnels[usize::try_from(tunnel.vni).unwrap()] += tunnel.packets;
    }
    (rows, tunnels)
}

/// Lets `work` happen under traffic and asserts that every meter is exact afterwards, under a version that is so much
/// later.
fn exact(world: &World, steps: u32, work: impl FnOnce()) {
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (host, peer) = (&world.pair.host.netns, &world.pair.peer);
    let rounds = thread::scope(|scope| {
        let sender = scope.spawn(|| send(host, peer, &stop));
        work();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        sender.join().unwrap()
    });
    assert!(rounds > 50, "{rounds}");
    let options = Options { version: world.options.version + steps, ..world.options.clone() };
    let mut meter = world.open(&options);
    meter.set_meters(&meters());
    becomes(|| counted(&mut meter), expected(rounds));
    assert_eq!(meter.reading().repairs.unrestored, 0);
    assert_eq!(meter.table().get("port 0 Ingress"), [0; 3], "nobody's");
    Direction::ALL.into_iter().for_each(|direction| meter.table().assert_closed(UPLINK, direction));
    assert_eq!(
        world.versions(),
        [format!("v{}", options.version)],
        "the pins of the version before are gone"
    );
    // It goes on as ever, also with what it attaches anew.
    world.attach(&mut meter, IngressHook::Tc);
    assert_eq!(meter.verify(), [""; 0]);
    let stop = std::sync::atomic::AtomicBool::new(true);
    assert_eq!(send(host, peer, &stop), 0);
    world.pair.send(2, 0);
    becomes(|| meter.table().get(&format!("port {UPLINK} Ingress"))[0], 2 * rounds + 2);
}

fn goes_on(label: &str, tc: TcMode, ingress: IngressHook) {
    let world = World::new(label, tc);
    let mut meter = world.open(&world.options);
    meter.set_meters(&meters());
    world.attach(&mut meter, ingress);
    let created: Vec<u64> = meter.reading().ports.iter().map(|port| port.created_ns).collect();
    let before = meter.reading().user_meters["out"].created_ns;
    exact(&world, 2, || {
        drop(meter);
        // Once without an agent in between, and once more with one that does not know the meters.
        thread::sleep(Duration::from_millis(50));
        let options = later(&world.options);
        let mut meter = world.open(&options);
        let again: Vec<u64> = meter.reading().ports.iter().map(|port| port.created_ns).collect();
        assert_eq!(again, created, "counting began when it began");
        assert_eq!(meter.reading().user_meters["out"].created_ns, before);
        world.attach(&mut meter, ingress);
        meter.set_meters(&meters());
        drop(meter);
        drop(world.open(&later(&options)));
    });
}

#[test]
fn later_version_goes_on_from_every_total_by_tcx() {
    if ready() && lab::require::kernel(6, 6, "TCX") {
        goes_on("migrate-tcx", TcMode::Tcx, IngressHook::Tc);
    }
}

#[test]
fn later_version_goes_on_from_every_total_by_clsact() {
    if ready() {
        goes_on("migrate-clsact", TcMode::Clsact, IngressHook::Tc);
    }
}

#[test]
fn later_version_goes_on_from_every_total_by_xdp() {
    if ready() {
        goes_on("migrate-xdp", TcMode::Auto, IngressHook::Xdp);
    }
}

/// What an agent leaves that is killed after it made the first of its maps.
fn begun(label: &str, tc: TcMode) {
    let world = World::new(label, tc);
    let mut meter = world.open(&world.options);
    meter.set_meters(&meters());
    world.attach(&mut meter, IngressHook::Tc);
    exact(&world, 1, || {
        drop(meter);
        let maps = world.pair.host.pins.join(format!("v{}/maps", VERSION + 1));
        fs::create_dir_all(&maps).unwrap();
        let ports: HashMap<MapData, PortUuid, PortRecord> =
            HashMap::create(world.options.max_ports, 0).unwrap();
        ports.map().pin(maps.join(map::PORTS)).unwrap();
        drop(world.open(&later(&world.options)));
    });
}

#[test]
fn maps_of_the_version_before_are_not_taken_for_those_that_are_missing_by_tcx() {
    if ready() && lab::require::kernel(6, 6, "TCX") {
        begun("migrate-begun", TcMode::Tcx);
    }
}

#[test]
fn maps_of_the_version_before_are_not_taken_for_those_that_are_missing_by_clsact() {
    if ready() {
        begun("migrate-begun-clsact", TcMode::Clsact);
    }
}

/// Not a test: a process of its own that takes over from an earlier version, to be killed.
#[test]
fn process_that_migrates() {
    let Ok(words) = env::var(CHILD) else { return };
    let (pins, tc) = words.split_once(' ').unwrap();
    let tc = if tc == "clsact" { TcMode::Clsact } else { TcMode::Auto };
    let options = Options { pin_path: pins.into(), tc, ..support::small_options() };
    let meters = meters();
    drop(
        KernelDatapath::open_after(&later(&options), Before { meters: Some(&meters), ..Before::default() })
            .unwrap(),
    );
}

/// Kills agents that take over from an earlier version, each a little later than the one before, until one has done so.
fn killed(label: &str, tc: TcMode, word: &str) {
    // Agents that are killed before one may end.
    let most = u32::try_from(lab::amount("METER_TEST_KILLS", 24, 4)).unwrap();
    let world = World::new(label, tc);
    let since = Instant::now();
    let mut meter = world.open(&world.options);
    meter.set_meters(&meters());
    world.attach(&mut meter, IngressHook::Tc);
    // About what another takes, and more than that where there is less to share the machine with.
    let whole = since.elapsed().mul_f64(1.2);
    let pins = world.pair.host.pins.clone();
    let done = || !pins.join(format!("v{VERSION}")).exists();
    let start = || {
        let mut command = world.pair.host.netns.command(env::current_exe().unwrap()).unwrap();
        command.args(["--exact", "attach::migrate::process_that_migrates"]);
        command.env(CHILD, format!("{} {word}", pins.display())).stdout(Stdio::null()).stderr(Stdio::null());
        world.pair.host.netns.spawn(command).unwrap()
    };
    let mut kills = 0;
    exact(&world, 1, || {
        drop(meter);
        while kills < most && !done() {
            let since = Instant::now();
            let child = start();
            while since.elapsed() < whole * kills / most && !done() {
                thread::sleep(Duration::from_micros(200));
            }
            drop(child);
            kills += 1;
        }
        let mut last = start();
        assert!(holds_within(WITHIN, || last.try_wait().unwrap().is_some()));
        assert!(last.try_wait().unwrap().is_some_and(|status| status.success()));
    });
    eprintln!("{word}: {kills} agents killed while they took over, every meter exact");
    assert!(kills * 4 >= most, "{kills} of {most}");
}

#[test]
fn agents_that_are_killed_while_they_migrate_lose_nothing_by_tcx() {
    if ready() && lab::require::kernel(6, 6, "TCX") {
        killed("migrate-killed", TcMode::Auto, "tcx");
    }
}

#[test]
fn agents_that_are_killed_while_they_migrate_lose_nothing_by_clsact() {
    if ready() {
        killed("migrate-killed-clsact", TcMode::Clsact, "clsact");
    }
}

#[test]
fn pins_of_a_later_version_are_refused() {
    if !ready() {
        return;
    }
    let world = World::new("newer", TcMode::Auto);
    let mut meter = world.pair.host.open_with(&later(&world.options));
    world.attach(&mut meter, IngressHook::Tc);
    drop(meter);
    let hooks = world.pair.host.hooks();
    let refused = world.pair.host.netns.run_in(|| KernelDatapath::open(&world.options)).unwrap().unwrap_err();
    assert!(
        matches!(refused, OpenError::NewerPins { found, known, .. } if (found, known) == (VERSION + 1, VERSION))
    );
    assert!(refused.lasts());
    let said = refused.to_string();
    assert!(said.contains("start the newer agent again"), "{said}");
    assert_eq!((world.pair.host.hooks(), world.versions()), (hooks, vec![format!("v{}", VERSION + 1)]));
    // Detaching is of all versions.
    world.pair.host.netns.run_in(|| remove_all(&world.pair.host.pins)).unwrap().unwrap();
    assert_eq!(world.pair.host.hooks(), [""; 0]);
}

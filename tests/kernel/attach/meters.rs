//! User-defined meters on real netdevs: they come, change and go under traffic, and outlive the agent.

mod exact;
mod force;

use meter_agent::rules::MAX_RULES;

use super::{
    super::support::{auto_kind, becomes, meters, until},
    BYTES, Class, Direction, HookKind, Meter, PORT, Pair, TcMode, hooks, ready,
};

/// A rule of the frames that are sent here, and its inversion.
const RULE: (&str, &str) = ("experiments", "ethertype 0x88b5");
const INVERSE: (&str, &str) = ("the rest", "ethertype 0x88b5 inverted");
const OUT: (&str, &str) = ("out", "direction tx");

fn counted(meter: &mut Meter<'_>, name: &str) -> [u64; 2] {
    meter.meters().get(name).copied().unwrap_or_default()
}

/// Returns frames and bytes that the port counted, as they were on the wire.
fn of_port(meter: &mut Meter<'_>, direction: Direction) -> [u64; 2] {
    let [packets, bytes, _] = meter.table().get(&format!("port {PORT} {direction:?}"));
    [packets, bytes]
}

fn sum(a: [u64; 2], b: [u64; 2]) -> [u64; 2] {
    [a[0] + b[0], a[1] + b[1]]
}

/// The hooks of `eth0` while there are meters.
fn user_hooks(kind: HookKind) -> Vec<String> {
    let plain = hooks(kind, Class::Port);
    plain.into_iter().map(|hook| hook.replace("meter_", "meter_user_")).collect()
}

/// Meters come and go beside a port that counts, by one kind of hook.
fn come_and_go(label: &str, tc: TcMode, kind: HookKind) {
    let pair = Pair::new(label);
    let mut meter = pair.host.open_with(&pair.options(tc));
    meter.set_meters(&meters(&[]));
    meter.attach(&pair.port());
    assert_eq!(pair.host.hooks(), hooks(kind, Class::Port));
    pair.count(&mut meter, Class::Port, "without meters");
    assert_eq!(meter.meters(), [].into());

    meter.set_meters(&meters(&[RULE, INVERSE, OUT]));
    assert_eq!(pair.host.hooks(), user_hooks(kind));
    pair.count(&mut meter, Class::Port, "with meters");
    let expected = |n: u64| [("experiments", 3 * n), ("out", 5 * n), ("the rest", 0)];
    let table = |rows: [(&str, u64); 3]| {
        rows.map(|(name, packets)| (name.to_owned(), [packets, packets * BYTES])).into()
    };
    assert_eq!(meter.meters(), table(expected(1)));
    assert_eq!(meter.verify(), [""; 0]);
    // Attached again, and by the same programs.
    meter.attach(&pair.port());
    assert_eq!(pair.host.hooks(), user_hooks(kind));
    pair.count(&mut meter, Class::Port, "attached again");
    assert_eq!(meter.meters(), table(expected(2)));

    // A meter that goes and comes back has its total.
    meter.set_meters(&meters(&[INVERSE]));
    pair.count(&mut meter, Class::Port, "with one meter");
    assert_eq!(meter.meters(), [("the rest".to_owned(), [0, 0])].into());
    meter.set_meters(&meters(&[]));
    assert_eq!(pair.host.hooks(), hooks(kind, Class::Port));
    pair.count(&mut meter, Class::Port, "without meters again");
    assert_eq!((meter.meters(), meter.verify()), ([].into(), Vec::new()));
    meter.set_meters(&meters(&[OUT, RULE, INVERSE]));
    assert_eq!(meter.meters(), table(expected(2)));

    // They come and go under traffic, and the port loses nothing.
    let before = meter.table();
    let (frames, ()) = pair.while_sending(|| {
        for _ in 0..5 {
            meter.set_meters(&meters(&[]));
            meter.set_meters(&meters(&[RULE, OUT]));
        }
    });
    becomes(|| meter.table().since(&before), super::moved(Class::Port, frames, frames));
    meter.detach(pair.port().id);
    assert_eq!(pair.host.hooks(), [""; 0]);
}

#[test]
fn meters_come_and_go_by_tcx() {
    if ready() && lab::require::kernel(6, 6, "TCX") {
        come_and_go("meters-tcx", TcMode::Auto, HookKind::Tcx);
    }
}

#[test]
fn meters_come_and_go_by_clsact() {
    if ready() {
        come_and_go("meters-clsact", TcMode::Clsact, HookKind::Clsact);
    }
}

#[test]
fn a_rule_and_its_inversion_are_the_port() {
    if !ready() {
        return;
    }
    let pair = Pair::new("sums");
    let (host, peer) = (&pair.host.netns, &pair.peer);
    let addresses = ["192.0.2.1", "192.0.2.2"].map(|address| address.parse::<std::net::IpAddr>().unwrap());
    let mut meter = pair.host.open();
    meter.set_meters(&meters(&[
        ("web", "proto 6 dst-port 5001"),
        ("not web", "proto 6 dst-port 5001 inverted"),
        ("back", "proto 6 src-port 5001 direction tx"),
        ("not back", "proto 6 src-port 5001 direction tx inverted"),
    ]));
    meter.attach(&pair.port());
    host.address("eth0", addresses[0], 24).unwrap();
    peer.address("peer0", addresses[1], 24).unwrap();
    transfer(&pair, std::net::SocketAddr::new(addresses[0], 5_001));
    pair.send(7, 5);
    let still = |meter: &mut Meter<'_>| {
        let before = meter.table();
        std::thread::sleep(super::super::support::STILL);
        meter.table() == before
    };
    until(|| still(&mut meter));
    let sums = |meter: &mut Meter<'_>| {
        let of = |meter: &mut Meter<'_>, a, b| sum(counted(meter, a), counted(meter, b));
        [of(meter, "web", "not web"), of(meter, "back", "not back")]
    };
    let ports = Direction::ALL.map(|direction| of_port(&mut meter, direction));
    assert_eq!(sums(&mut meter), ports);
    // Super-packets count as the frames that they stand for.
    let [packets, bytes] = counted(&mut meter, "web");
    assert!(bytes > 4_000_000 && bytes / packets < 1_600, "{packets} packets, {bytes} bytes");
    assert!(counted(&mut meter, "not web")[0] >= 7 && counted(&mut meter, "back")[0] > 0);
}

/// Sends four megabytes over TCP from the peer to the host.
fn transfer(pair: &Pair, server: std::net::SocketAddr) {
    use std::io::{Read as _, Write as _};
    let listener = pair.host.netns.run_in(|| std::net::TcpListener::bind(server)).unwrap().unwrap();
    let mut client = pair.peer.run_in(|| std::net::TcpStream::connect(server)).unwrap().unwrap();
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        received.len()
    });
    client.write_all(&vec![7; 4_000_000]).unwrap();
    drop(client);
    assert_eq!(receiver.join().unwrap(), 4_000_000);
}

#[test]
fn meters_count_on_without_an_agent_and_under_the_next() {
    if !ready() {
        return;
    }
    let pair = Pair::new("outlive");
    let kind = auto_kind();
    let ours = meters(&[RULE, ("by port", "in-ports 00000000-0000-0000-0000-000000000001"), OUT]);
    let mut meter = pair.host.open();
    meter.set_meters(&ours);
    // The rules name a port that has no netdev yet.
    meter.attach(&pair.port());
    let expected = |n: u64| {
        let rows = [("by port", 3 * n), ("experiments", 3 * n), ("out", 5 * n)];
        rows.map(|(name, packets)| (name.to_owned(), [packets, packets * BYTES])).into()
    };
    pair.count(&mut meter, Class::Port, "the first agent");
    assert_eq!(meter.meters(), expected(1));
    let before = meter.table();
    drop(meter);
    pair.send(3, 5);

    // The next agent counts on by the rules that it found, also with programs of its own.
    let mut meter = pair.host.open();
    meter.expect(&before, &super::moved(Class::Port, 3, 5), "between the agents");
    assert_eq!(meter.meters(), expected(2));
    meter.attach(&pair.port());
    assert_eq!(pair.host.hooks(), user_hooks(kind));
    pair.count(&mut meter, Class::Port, "attached, without a set");
    assert_eq!(meter.meters(), expected(3));
    meter.set_meters(&ours);
    pair.count(&mut meter, Class::Port, "with its own set");
    assert_eq!(meter.meters(), expected(4));

    // One without meters ends them, and their totals are kept.
    drop(meter);
    let mut meter = pair.host.open();
    meter.attach(&pair.port());
    meter.set_meters(&meters(&[]));
    assert_eq!(pair.host.hooks(), hooks(kind, Class::Port));
    pair.count(&mut meter, Class::Port, "without meters");
    assert_eq!(meter.meters(), [].into());
    drop(meter);
    let mut meter = pair.host.open();
    assert_eq!(meter.meters(), [].into());
    meter.set_meters(&ours);
    assert_eq!(meter.meters(), expected(4));
}

#[test]
fn a_set_that_cannot_be_counted_is_refused_and_the_other_counts_on() {
    if !ready() {
        return;
    }
    let pair = Pair::new("refused-set");
    let mut meter = pair.host.open();
    meter.set_meters(&meters(&[RULE, OUT]));
    meter.attach(&pair.port());
    pair.count(&mut meter, Class::Port, "before");
    let mut many = meters(&[("new", "proto 6"), ("many", "proto 17")]);
    many.meters[1].rules = vec![many.meters[1].rules[0].clone(); MAX_RULES];
    let error = meter.try_set_meters(&many).unwrap_err();
    assert!(error.to_string().contains("there are 1025 rules, at most 1024"), "{error}");
    pair.count(&mut meter, Class::Port, "after");
    let expected = [("experiments", 6), ("out", 10)];
    assert_eq!(meter.meters(), expected.map(|(name, n)| (name.to_owned(), [n, n * BYTES])).into());
}

//! Hooks come, are replaced and go, and every frame counts once meanwhile.

mod foreign;
mod loaded;
mod meters;
mod migrate;
mod pins;
mod rebind;
mod reboot;
mod refused;
mod restart;
mod vanished;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use lab::{mac::Mac, netns::Netns, traffic::RawSocket};
use meter_agent::datapath::{
    Class, HookKind, IngressHook, Retry, Target,
    kernel::{Options, TcMode},
};
use meter_ebpf::abi::{Bucket, Counter, Direction};

use super::support::{Host, Meter, auto_kind, frames::between, ready, table::Table, tc_modes};

/// The port of `eth0`.
const PORT: u128 = 1;
/// Bytes of every frame here.
const BYTES: u64 = 114;

/// A host with one netdev, `eth0`, and whoever is at the other end of it.
struct Pair {
    host: Host,
    peer: Netns,
}

impl Pair {
    fn new(label: &str) -> Self {
        let pair = Self { host: Host::new(label), peer: Netns::new("peer").unwrap() };
        pair.host.netns.veth("eth0", &pair.peer, "peer0", 1_500).unwrap();
        pair
    }

    fn options(&self, tc: TcMode) -> Options {
        Options { tc, ..self.host.options() }
    }

    /// Returns the target for `eth0` as a port.
    fn port(&self) -> Target {
        self.host.target("eth0", PORT, Class::Port)
    }

    /// Returns the target for `eth0` as an uplink.
    fn uplink(&self, ingress: IngressHook) -> Target {
        Target { ingress, ..self.host.target("eth0", PORT, Class::Uplink) }
    }

    /// Sends frames of [`BYTES`] both ways: what the netdev receives, and what it sends.
    fn send(&self, ingress: u64, egress: u64) {
        for (netns, netdev, frames) in
            [(&self.peer, "peer0", ingress), (&self.host.netns, self.netdev(), egress)]
        {
            let socket = RawSocket::open(netns, netdev).unwrap();
            (0..frames).for_each(|_| socket.send(&frame()).unwrap());
        }
    }

    /// The netdev's name, which tests change.
    fn netdev(&self) -> &'static str {
        let netdevs = self.host.netns.netdevs().unwrap();
        if netdevs.iter().any(|netdev| netdev == "eth0") { "eth0" } else { "renamed0" }
    }

    /// Sends, and asserts that exactly that was counted, at this port and nowhere else.
    fn count(&self, meter: &mut Meter<'_>, class: Class, what: &str) {
        let before = meter.table();
        self.send(3, 5);
        meter.expect(&before, &moved(class, 3, 5), what);
    }

    /// Sends, and asserts that nothing was counted anywhere.
    fn count_nothing(&self, meter: &mut Meter<'_>) {
        let before = meter.table();
        self.send(3, 5);
        // The same frames again by the same way: once the peer has them, the host's hooks are behind us.
        let seen = || self.peer.stats("peer0").unwrap().rx_packets;
        let (deadline, there) = (std::time::Instant::now() + super::support::WITHIN, seen());
        self.send(0, 1);
        while seen() == there && std::time::Instant::now() < deadline {
            thread::yield_now();
        }
        assert_eq!(meter.table().since(&before), Table::default());
    }

    /// Sends both ways for as long as `work` runs; returns how many frames each way.
    fn while_sending<T>(&self, work: impl FnOnce() -> T) -> (u64, T) {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let sockets = [(&self.peer, "peer0"), (&self.host.netns, "eth0")]
                    .map(|(netns, netdev)| RawSocket::open(netns, netdev).unwrap());
                let mut frames = 0;
                while !stop.load(Ordering::Relaxed) {
                    sockets.iter().for_each(|socket| socket.send(&frame()).unwrap());
                    frames += 1;
                }
                frames
            });
            let stopping = Stopping(&stop);
            let result = work();
            drop(stopping);
            (sender.join().unwrap(), result)
        })
    }
}

/// Ends what runs until it is set, also where the work beside it panics.
struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn frame() -> Vec<u8> {
    between(Mac::local(1), Mac::local(2), &[], 0x88b5, &[0; 100])
}

/// What so many frames count at the port, and in its buckets where it is an uplink.
fn moved(class: Class, ingress: u64, egress: u64) -> Table {
    let mut table = Table::default();
    for (direction, packets) in [(Direction::Ingress, ingress), (Direction::Egress, egress)] {
        table = table.frames(PORT, direction, packets, packets * BYTES);
        if class == Class::Uplink {
            let counter = Counter { packets, bytes: packets * BYTES };
            table = table.bucket(PORT, direction, Bucket::Plain, counter);
        }
    }
    table
}

/// Every hook that `eth0` has with this kind of attachment, for a port or for an uplink; beside XDP, the TC hook is
/// the one that [`TcMode::Auto`] takes.
fn hooks(kind: HookKind, class: Class) -> Vec<String> {
    let [ingress, egress] =
        if class == Class::Uplink { ["meter_up_in", "meter_up_out"] } else { ["meter_in", "meter_out"] };
    match kind {
        HookKind::Tcx => vec![format!("eth0 tcx ingress {ingress}"), format!("eth0 tcx egress {egress}")],
        HookKind::Clsact => ["eth0 clsact ingress 2", "eth0 clsact egress 65000", "eth0 qdisc clsact"]
            .map(str::to_owned)
            .into(),
        HookKind::Xdp if auto_kind() == HookKind::Tcx => {
            vec![format!("eth0 tcx egress {egress}"), "eth0 xdp".to_owned()]
        }
        HookKind::Xdp => {
            ["eth0 clsact egress 65000", "eth0 qdisc clsact", "eth0 xdp"].map(str::to_owned).into()
        }
    }
}

/// Attaches, replaces, counts and detaches by one kind of TC hook.
fn come_and_go(label: &str, tc: TcMode, kind: HookKind) {
    let pair = Pair::new(label);
    let mut meter = pair.host.open_with(&pair.options(tc));
    let attachment = meter.attach(&pair.port());
    assert_eq!((attachment.ingress, attachment.egress), (kind, kind));
    assert_eq!(pair.host.hooks(), hooks(kind, Class::Port));
    pair.count(&mut meter, Class::Port, "attached");

    meter.attach(&pair.port());
    assert_eq!(pair.host.hooks(), hooks(kind, Class::Port));
    pair.count(&mut meter, Class::Port, "attached again");

    // Programs of another kind replace those that are there, and no frame falls between.
    let before = meter.table();
    let (frames, ()) = pair.while_sending(|| {
        for _ in 0..20 {
            meter.attach(&pair.uplink(IngressHook::Tc));
            meter.attach(&pair.port());
        }
        meter.attach(&pair.uplink(IngressHook::Tc));
    });
    assert_eq!(pair.host.hooks(), hooks(kind, Class::Uplink));
    let total = |meter: &mut Meter<'_>| {
        let moved = meter.table().since(&before);
        ["Ingress", "Egress"].map(|direction| moved.get(&format!("port {PORT} {direction}"))[0])
    };
    super::support::becomes(|| total(&mut meter), [frames; 2]);
    assert!(frames > 100, "{frames}");
    pair.count(&mut meter, Class::Uplink, "replaced");

    let before = meter.table();
    meter.detach(pair.host.ifindex("eth0"));
    assert_eq!(pair.host.hooks(), [""; 0]);
    assert_eq!(meter.table(), before, "totals stay");
    pair.count_nothing(&mut meter);
    meter.detach(pair.host.ifindex("eth0"));
    meter.attach(&pair.port());
    pair.count(&mut meter, Class::Port, "attached after a time without");
}

#[test]
fn tcx_hooks_come_are_replaced_and_go() {
    if ready() && lab::require::kernel(6, 6, "TCX") {
        come_and_go("tcx", TcMode::Tcx, HookKind::Tcx);
    }
}

#[test]
fn clsact_hooks_come_are_replaced_and_go() {
    if ready() {
        come_and_go("clsact", TcMode::Clsact, HookKind::Clsact);
    }
}

#[test]
fn xdp_counts_an_uplinks_ingress_in_the_place_of_tc() {
    if !ready() {
        return;
    }
    let pair = Pair::new("xdp");
    let mut meter = pair.host.open();
    let tc = auto_kind();
    for _ in 0..2 {
        let attachment = meter.attach(&pair.uplink(IngressHook::Xdp));
        assert_eq!((attachment.ingress, attachment.egress), (HookKind::Xdp, tc));
        assert_eq!(pair.host.hooks(), hooks(HookKind::Xdp, Class::Uplink));
        pair.count(&mut meter, Class::Uplink, "XDP");

        let attachment = meter.attach(&pair.uplink(IngressHook::Tc));
        assert_eq!((attachment.ingress, attachment.egress), (tc, tc));
        assert_eq!(pair.host.hooks(), hooks(tc, Class::Uplink));
        pair.count(&mut meter, Class::Uplink, "TC after XDP");
    }
    meter.attach(&pair.uplink(IngressHook::Xdp));
    // A port is never metered by XDP.
    let port = Target { ingress: IngressHook::Xdp, ..pair.port() };
    assert_eq!(meter.attach(&port).ingress, tc);
    assert_eq!(pair.host.hooks(), hooks(tc, Class::Port));
    pair.count(&mut meter, Class::Port, "a port");
    meter.attach(&pair.uplink(IngressHook::Xdp));
    meter.detach(pair.host.ifindex("eth0"));
    assert_eq!(pair.host.hooks(), [""; 0]);
}

#[test]
fn xdp_counts_an_uplinks_ingress_beside_clsact() {
    if !ready() {
        return;
    }
    let pair = Pair::new("xdp-clsact");
    let mut meter = pair.host.open_with(&pair.options(TcMode::Clsact));
    for _ in 0..2 {
        let attachment = meter.attach(&pair.uplink(IngressHook::Tc));
        assert_eq!((attachment.ingress, attachment.egress), (HookKind::Clsact, HookKind::Clsact));
        assert_eq!(pair.host.hooks(), hooks(HookKind::Clsact, Class::Uplink));
        pair.count(&mut meter, Class::Uplink, "clsact");

        let attachment = meter.attach(&pair.uplink(IngressHook::Xdp));
        assert_eq!((attachment.ingress, attachment.egress), (HookKind::Xdp, HookKind::Clsact));
        assert_eq!(pair.host.hooks(), ["eth0 clsact egress 65000", "eth0 qdisc clsact", "eth0 xdp"]);
        pair.count(&mut meter, Class::Uplink, "XDP");
    }
    meter.detach(pair.host.ifindex("eth0"));
    assert_eq!(pair.host.hooks(), [""; 0]);
}

#[test]
fn netdev_that_has_gone_is_gone_and_its_totals_stay() {
    if !ready() {
        return;
    }
    for &tc in tc_modes() {
        let pair = Pair::new(if tc == TcMode::Auto { "gone" } else { "gone-clsact" });
        let mut meter = pair.host.open_with(&pair.options(tc));
        let target = pair.port();
        meter.attach(&target);
        pair.count(&mut meter, Class::Port, "before");
        let before = meter.table();
        pair.host.netns.ip("link del eth0").unwrap();

        let error = meter.try_attach(&Target { ingress: IngressHook::Tc, underlay: true, ..target.clone() });
        let error = error.unwrap_err();
        assert_eq!((error.retry, error.reason), (Retry::Gone, "gone"), "{error}");
        assert!(error.message.contains("eth0"), "{error}");
        meter.detach(target.id);
        assert_eq!(meter.table(), before);
        assert_eq!(meter.reading().ports[0].netdev, None);

        // It comes back under another number, and the port goes on.
        pair.host.netns.veth("eth0", &pair.peer, "peer0", 1_500).unwrap();
        assert_ne!(pair.host.ifindex("eth0"), target.id.ifindex);
        meter.attach(&pair.port());
        assert_eq!(meter.table(), before);
        pair.count(&mut meter, Class::Port, "after");
    }
}

#[test]
fn renamed_netdev_goes_on_counting() {
    if !ready() {
        return;
    }
    for &tc in tc_modes() {
        let pair = Pair::new(if tc == TcMode::Auto { "rename" } else { "rename-clsact" });
        let mut meter = pair.host.open_with(&pair.options(tc));
        let before = pair.port();
        meter.attach(&before);
        pair.host.netns.ip("link set eth0 down\nlink set eth0 name renamed0\nlink set renamed0 up").unwrap();
        pair.count(&mut meter, Class::Port, "renamed");

        let after = pair.host.target("renamed0", PORT, Class::Port);
        assert_eq!(after.id, before.id);
        assert_eq!(meter.attach(&after).target, after);
        pair.count(&mut meter, Class::Port, "attached under the new name");
        // The old name names nobody, or somebody else.
        let error = meter.try_attach(&Target { underlay: true, ..before.clone() }).unwrap_err();
        assert_eq!(error.retry, Retry::Gone, "{error}");
        meter.attach(&after);
        pair.count(&mut meter, Class::Port, "attached once more");
        meter.detach(after.id);
        assert_eq!(pair.host.hooks(), [""; 0]);
    }
}

#[test]
fn second_port_of_a_netdev_takes_over_from_the_first() {
    if !ready() {
        return;
    }
    for &tc in tc_modes() {
        let pair = Pair::new(if tc == TcMode::Auto { "takeover" } else { "takeover-clsact" });
        let mut meter = pair.host.open_with(&pair.options(tc));
        meter.attach(&pair.host.target("eth0", 2, Class::Port));
        pair.send(4, 4);
        let four = Table::default().frames(2, Direction::Ingress, 4, 4 * BYTES).frames(
            2,
            Direction::Egress,
            4,
            4 * BYTES,
        );
        meter.expect(&Table::default(), &four, "the first");
        meter.attach(&pair.port());
        pair.count(&mut meter, Class::Port, "the second");
        meter.detach(pair.host.ifindex("eth0"));
        assert_eq!(meter.table(), four.plus(&moved(Class::Port, 3, 5)));
        assert_eq!(pair.host.hooks(), [""; 0]);
    }
}

#[test]
fn port_that_moves_to_another_netdev_leaves_the_first() {
    if !ready() {
        return;
    }
    for &tc in tc_modes() {
        let pair = Pair::new(if tc == TcMode::Auto { "move" } else { "move-clsact" });
        pair.host.netns.veth("eth1", &pair.peer, "peer1", 1_500).unwrap();
        let mut meter = pair.host.open_with(&pair.options(tc));
        meter.attach(&pair.host.target("eth1", PORT, Class::Port));
        meter.attach(&pair.port());
        pair.count(&mut meter, Class::Port, "on the second netdev");
        assert_eq!(meter.attached().len(), 1);
        let kind = if tc == TcMode::Auto { auto_kind() } else { HookKind::Clsact };
        assert_eq!(pair.host.hooks(), hooks(kind, Class::Port));
        meter.detach(pair.host.ifindex("eth1"));
        pair.count(&mut meter, Class::Port, "after the first was detached again");
    }
}

#[test]
fn port_without_room_leaves_nothing_attached() {
    if !ready() {
        return;
    }
    for &tc in tc_modes() {
        let pair = Pair::new(if tc == TcMode::Auto { "full" } else { "full-clsact" });
        let mut meter = pair.host.open_with(&Options { max_ports: 1, ..pair.options(tc) });
        meter.attach(&pair.port());
        pair.count(&mut meter, Class::Port, "the first");
        let error = meter.try_attach(&pair.host.target("eth0", 2, Class::Port)).unwrap_err();
        assert_eq!((error.reason, error.retry), ("ports_full", Retry::Later), "{error}");
        assert!(error.message.contains("datapath.max_ports"), "{error}");
        assert_eq!(pair.host.hooks(), [""; 0]);
        assert!(meter.attached().is_empty());
        pair.count_nothing(&mut meter);
        meter.attach(&pair.port());
        pair.count(&mut meter, Class::Port, "the first again");
    }
}

#[test]
fn hook_is_gone_when_detach_returns() {
    if !ready() {
        return;
    }
    let pair = Pair::new("at-once");
    let mut meter = pair.host.open();
    for round in 0..lab::amount("METER_TEST_ATTACHES", 20, 4) {
        // A frame at a hook that is still there would count for nobody.
        let ingress = if round % 2 == 0 { IngressHook::Tc } else { IngressHook::Xdp };
        meter.attach(&pair.uplink(ingress));
        let (_, ()) = pair.while_sending(|| meter.detach(pair.host.ifindex("eth0")));
        assert_eq!(pair.host.hooks(), [""; 0]);
    }
    for direction in ["Ingress", "Egress"] {
        assert_eq!(meter.table().get(&format!("port 0 {direction}")), [0; 3], "{direction}");
    }
}

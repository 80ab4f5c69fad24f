mod meters;
mod namespaces;
mod refused;
mod sequences;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
};

use arc_swap::ArcSwap;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{Agent, Configured, Event};
use crate::{
    binding::{Binding, Bindings},
    connections::Selection,
    datapath::{
        Attachment, Class, HookKind, IngressHook, Retry, Target,
        fake::{FakeDatapath, error},
    },
    definitions::state::{Found, State},
    meter::PortId,
    netdev::{Kind, Netdev, NetdevEvent, NetdevId, NetdevTable},
    roles::Rules,
    rules::MeterSet,
    snapshot::{Health, SharedSnapshot, Snapshot},
    survey::Policy,
};

/// An agent on a fake datapath, with the channel in a test's hand.
struct Bench {
    agent: Agent<FakeDatapath>,
    events: Sender<Event>,
    channel: Receiver<Event>,
    latest: Arc<ArcSwap<Snapshot>>,
}

impl Bench {
    fn new() -> Self {
        Self::adopting(BTreeMap::new())
    }

    fn adopting(attached: BTreeMap<NetdevId, Attachment>) -> Self {
        let datapath = FakeDatapath::adopting(attached);
        Self::on(datapath, MeterSet::default(), nothing_added(), false)
    }

    /// Makes one with these user-defined meters.
    fn on(datapath: FakeDatapath, meters: MeterSet, added: Found, follows: bool) -> Self {
        let latest = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
        let configured = Configured { policy: policy(vec![]), meters, read_s: 7 };
        let agent = Agent::new(datapath, configured, added, "host".to_owned(), follows, Arc::clone(&latest));
        let (events, channel) = channel();
        Self { agent, events, channel, latest }
    }

    fn send(&mut self, event: Event) -> &mut Self {
        self.events.send(event).unwrap();
        self
    }

    fn netdevs(&mut self, netdevs: &[(u32, &str)]) -> &mut Self {
        let netdevs = netdevs.iter().map(|&(ifindex, name)| (ifindex, tap(ifindex, name))).collect();
        self.send(Event::Netdev(NetdevEvent::All(NetdevTable { netdevs, ..NetdevTable::default() })))
    }

    /// Takes the events that were sent, and all steps that follow from them.
    fn settle(&mut self) -> &mut Self {
        // An event that changes nothing wakes the agent where nothing was sent.
        self.send(Event::Refresh(oneshot::channel().0));
        self.agent.turn(&self.channel);
        while !self.agent.steps.is_empty() || self.agent.stale {
            self.agent.turn(&self.channel);
        }
        self
    }

    fn ticks(&mut self, count: usize) -> &mut Self {
        for _ in 0..count {
            self.send(Event::Tick).settle();
        }
        self
    }

    fn calls(&mut self) -> Vec<String> {
        std::mem::take(&mut self.agent.datapath.calls)
    }

    fn snapshot(&self) -> SharedSnapshot {
        self.latest.load_full()
    }

    /// Ports and their received bytes.
    fn received(&mut self) -> Vec<(PortId, u64)> {
        self.settle();
        self.snapshot().ports.iter().map(|port| (port.port, port.ingress.wire().bytes)).collect()
    }
}

fn policy(configured: Vec<Binding>) -> Policy {
    Policy {
        bindings: Bindings { configured, host_id: Uuid::from_u128(1) },
        rules: Rules::default(),
        connections: Selection::default(),
    }
}

/// The configuration was read again, without meters.
fn read(policy: Policy, read_s: u64) -> Event {
    Event::Configured(Box::new(Configured { policy, meters: MeterSet::default(), read_s }))
}

fn nothing_added() -> Found {
    Found { state: State::nowhere(), meters: Vec::new(), trouble: None }
}

fn port(number: u128) -> PortId {
    PortId(Uuid::from_u128(number))
}

fn binding(netdev: &str, port: PortId) -> Binding {
    Binding { netdev: Some(netdev.parse().unwrap()), mac: None, netns: None, port: Some(port), device: None }
}

fn tap(ifindex: u32, name: &str) -> Netdev {
    Netdev::bare(ifindex, name, Kind::Tap)
}

/// What an earlier agent left on a netdev, for the port of its number.
fn left(netdev: NetdevId) -> Attachment {
    let target = Target {
        id: netdev,
        netdev: String::new(),
        netns: String::new(),
        port: port(netdev.ifindex.into()),
        class: Class::Port,
        device: None,
        underlay: false,
        ingress: IngressHook::Tc,
        network: meter_ebpf::abi::Network::NONE,
    };
    Attachment { earlier: true, ..Attachment::new(target, [HookKind::Tcx; 2]) }
}

#[test]
fn everything_of_the_first_dump_is_attached_and_then_the_agent_is_ready() {
    let mut bench = Bench::new();
    bench.send(Event::Tick).settle();
    assert!(!bench.snapshot().health.ready, "before the first dump nothing is known");
    bench.netdevs(&[(2, "tap0"), (3, "tap1")]).settle();
    assert_eq!(bench.calls(), ["attach tap0", "attach tap1"]);
    let snapshot = bench.snapshot();
    assert!(snapshot.health.ready);
    assert_eq!(snapshot.ports.len(), 2);
    assert!(snapshot.ports.iter().all(|port| port.carrier.is_some()));
    let shown: Vec<_> =
        snapshot.netdevs.iter().map(|n| (&*n.netdev, &*n.role, n.ingress.as_deref())).collect();
    assert_eq!(shown, [("tap0", "port", Some("tcx")), ("tap1", "port", Some("tcx"))]);
    bench.netdevs(&[(2, "tap0"), (3, "tap1")]).settle();
    assert_eq!(bench.calls(), [""; 0], "a dump that shows nothing new changes nothing");
}

#[test]
fn reader_is_answered_between_two_steps() {
    let mut bench = Bench::new();
    bench.netdevs(&[(2, "tap0"), (3, "tap1"), (4, "tap2")]);
    bench.agent.turn(&bench.channel);
    let (wish, mut answer) = oneshot::channel();
    bench.send(Event::Refresh(wish));
    bench.agent.turn(&bench.channel);
    assert_eq!(answer.try_recv().unwrap().ports.len(), 2);
    assert!(!bench.agent.health.ready, "one netdev still waits");
}

#[test]
fn failed_attach_is_tried_later_and_later_and_costs_the_others_nothing() {
    let mut bench = Bench::new();
    let busy = || error("busy", Retry::Later);
    let errors = VecDeque::from([busy(), busy(), busy()]);
    bench.agent.datapath.attach_errors.insert("tap0".to_owned(), errors);
    bench.netdevs(&[(2, "tap0"), (3, "tap1")]).settle();
    assert_eq!(bench.calls(), ["attach tap0", "attach tap1"]);
    let snapshot = bench.snapshot();
    assert!(snapshot.health.ready, "it failed for a reason");
    assert_eq!(snapshot.health.attach_pending, 1);
    assert_eq!(snapshot.health.attach_failures, BTreeMap::from([("busy", 1)]));
    assert_eq!(snapshot.netdevs[0].reason, "attach failed for busy");
    let waits: Vec<usize> =
        (0..3).map(|_| (1..).find(|_| !bench.ticks(1).calls().is_empty()).unwrap()).collect();
    assert_eq!(waits, [1, 2, 4], "seconds between attempts");
    let health = bench.snapshot().health.clone();
    assert_eq!((health.attach_pending, &health.attach_failures["busy"]), (0, &3));
}

#[test]
fn netdev_whose_port_another_one_carries_is_pending_like_one_that_failed() {
    let mut bench = Bench::new();
    let alias = Some("00000000-0000-4000-8000-000000000007".to_owned());
    let named = |ifindex, name| (ifindex, Netdev { alias: alias.clone(), ..tap(ifindex, name) });
    let table = |netdevs: &[(u32, Netdev)]| {
        let netdevs = netdevs.iter().cloned().collect();
        Event::Netdev(NetdevEvent::All(NetdevTable { netdevs, ..NetdevTable::default() }))
    };
    bench.send(table(&[named(2, "tap0"), named(3, "tap1")])).settle();
    let snapshot = bench.snapshot();
    assert_eq!((snapshot.health.attach_pending, snapshot.health.ready), (1, true));
    assert!(snapshot.netdevs[1].reason.contains("is carried by tap0"), "{:?}", snapshot.netdevs);
    bench.send(table(&[named(2, "tap0"), (3, tap(3, "tap1"))])).settle();
    assert_eq!(bench.snapshot().health.attach_pending, 0);
    assert_eq!(bench.calls(), ["attach tap0", "attach tap1"]);
}

#[test]
fn what_only_another_configuration_helps_waits_for_one() {
    let mut bench = Bench::new();
    let errors = VecDeque::from([error("xdp_unsupported", Retry::Never)]);
    bench.agent.datapath.attach_errors.insert("tap0".to_owned(), errors);
    bench.netdevs(&[(2, "tap0")]).settle().ticks(200);
    assert_eq!(bench.calls(), ["attach tap0"]);
    bench.send(read(policy(vec![]), 9)).settle();
    assert_eq!(bench.calls(), ["attach tap0"]);
    assert_eq!(bench.snapshot().health.attach_pending, 0);
}

#[test]
fn port_goes_on_from_its_total_on_another_netdev() {
    let mut bench = Bench::new();
    let bindings = vec![binding("tap*", port(5))];
    bench.send(read(policy(bindings), 9)).netdevs(&[(2, "tap0")]).settle();
    bench.agent.datapath.receive(2, 1, 100);
    bench.send(Event::Netdev(NetdevEvent::Gone(2)));
    assert_eq!(bench.received(), [(port(5), 100)]);
    assert_eq!(bench.snapshot().ports[0].carrier, None);
    bench.send(Event::Netdev(NetdevEvent::New(tap(9, "tap7")))).settle();
    bench.agent.datapath.receive(9, 1, 11);
    assert_eq!(bench.received(), [(port(5), 111)]);
    assert_eq!(bench.snapshot().ports[0].carrier.as_ref().unwrap().netdev, "tap7");
    assert_eq!(bench.calls(), ["attach tap0", "detach 2", "attach tap7"]);
}

#[test]
fn wrong_configuration_leaves_the_old_one_in_force() {
    let mut bench = Bench::new();
    bench.send(read(policy(vec![binding("tap0", port(5))]), 9));
    bench.netdevs(&[(2, "tap0")]).settle();
    bench.send(Event::Misconfigured).settle();
    let snapshot = bench.snapshot();
    assert!(!snapshot.health.config_reload_ok);
    assert_eq!(snapshot.health.config_loaded_s, 9);
    assert_eq!(snapshot.ports[0].port, port(5));
    bench.send(read(policy(vec![binding("tap0", port(6))]), 12)).settle();
    let snapshot = bench.snapshot();
    assert_eq!((snapshot.health.config_reload_ok, snapshot.health.config_loaded_s), (true, 12));
    assert_eq!(bench.calls(), ["attach tap0", "attach tap0"], "the same hooks, another port");
}

#[test]
fn what_an_earlier_agent_left_is_taken_over_or_put_away() {
    let mut bench = Bench::adopting([2, 8].map(|ifindex| (ifindex.into(), left(ifindex.into()))).into());
    bench.send(Event::Tick).settle();
    assert_eq!(bench.calls(), [""; 0], "before the first dump everything would look gone");
    bench.netdevs(&[(2, "tap0")]).settle();
    assert_eq!(bench.calls(), ["detach 8", "attach tap0"]);
}

#[test]
fn failed_detach_is_tried_again() {
    let mut bench = Bench::new();
    bench.netdevs(&[(2, "tap0")]).settle();
    bench.agent.datapath.detach_fails = true;
    bench.netdevs(&[]).settle();
    bench.agent.datapath.detach_fails = false;
    bench.ticks(1);
    assert_eq!(bench.calls(), ["attach tap0", "detach 2", "detach 2"]);
    assert_eq!(bench.agent.datapath.attached, BTreeMap::new());
}

#[test]
fn reader_gets_the_last_totals_where_the_maps_cannot_be_read() {
    let mut bench = Bench::new();
    bench.netdevs(&[(2, "tap0")]).settle();
    let generation = bench.snapshot().generation;
    bench.agent.datapath.read_fails = true;
    let (wish, mut answer) = oneshot::channel();
    bench.send(Event::Refresh(wish)).settle();
    assert!(answer.try_recv().is_err(), "the wish is dropped, so its reader takes the last snapshot");
    assert_eq!(bench.snapshot().generation, generation);
    bench.agent.datapath.read_fails = false;
    bench.settle();
    assert_eq!(bench.snapshot().health.read_failures, 1, "one reading for all who waited");
}

#[test]
fn reader_hears_that_the_maps_cannot_be_read_while_they_cannot() {
    let mut bench = Bench::new();
    bench.agent.datapath.read_fails = true;
    bench.netdevs(&[(2, "tap0")]).settle();
    let Snapshot { generation, health, .. } = &*bench.snapshot();
    assert_eq!((*generation, health.ready), (0, false), "what was never read is not ready");
    bench.agent.datapath.read_fails = false;
    bench.agent.datapath.receive(2, 1, 100);
    let ask = |bench: &mut Bench| {
        bench.send(Event::Refresh(oneshot::channel().0)).settle();
        bench.snapshot()
    };
    let good = ask(&mut bench);
    assert!(good.generation > 0 && good.health.ready);
    bench.agent.datapath.read_fails = true;
    for failures in 1..=2 {
        let health = Health { read_failures: good.health.read_failures + failures, ..good.health.clone() };
        assert_eq!(*ask(&mut bench), Snapshot { health, ..Snapshot::clone(&good) });
    }
}

#[test]
fn last_totals_are_published_when_the_agent_ends() {
    let mut bench = Bench::new();
    bench.netdevs(&[(2, "tap0")]).settle();
    bench.agent.datapath.receive(2, 1, 100);
    bench.send(Event::Shutdown);
    let Bench { agent, channel, latest, .. } = bench;
    let datapath = agent.run(&channel);
    assert_eq!(latest.load().ports[0].ingress.wire().bytes, 100);
    assert_eq!(datapath.attached.len(), 1, "counting goes on without the agent");
}

#[test]
fn number_that_another_netdev_got_while_the_agent_was_busy_is_attached_anew() {
    let mut bench = Bench::new();
    bench.netdevs(&[(2, "tap0")]).settle();
    bench.calls();
    bench.send(Event::Netdev(NetdevEvent::Gone(2))).send(Event::Netdev(NetdevEvent::New(tap(2, "tap0"))));
    bench.settle();
    assert_eq!(bench.calls(), ["detach 2", "attach tap0"], "its hooks went with the first");
    bench.settle();
    assert_eq!(bench.calls(), [""; 0]);
}

#[test]
fn number_is_not_attached_before_what_had_it_is_detached() {
    let mut bench = Bench::new();
    bench.netdevs(&[(2, "tap0")]).settle();
    bench.agent.datapath.detach_fails = true;
    bench.send(Event::Netdev(NetdevEvent::Gone(2))).send(Event::Netdev(NetdevEvent::New(tap(2, "tap0"))));
    bench.settle();
    bench.agent.datapath.detach_fails = false;
    bench.ticks(1);
    assert_eq!(bench.calls(), ["attach tap0", "detach 2", "detach 2", "attach tap0"]);
}

#[test]
fn hook_that_another_tool_removed_is_noticed_at_the_next_dump() {
    let mut bench = Bench::new();
    let netdevs = [(2, "tap0"), (3, "tap1")];
    bench.netdevs(&netdevs).settle();
    bench.agent.datapath.removed.insert(3.into());
    bench.ticks(10);
    assert_eq!(bench.calls(), ["attach tap0", "attach tap1"], "nobody has looked yet");
    bench.netdevs(&netdevs).settle();
    assert_eq!(bench.calls(), ["attach tap1"]);
    assert_eq!(bench.snapshot().health.hooks_lost, 1);
    // A second dump at once doesn't look again at once.
    bench.agent.datapath.removed.insert(2.into());
    bench.netdevs(&netdevs).settle();
    assert_eq!(bench.calls(), [""; 0]);
    bench.ticks(10);
    assert_eq!(bench.calls(), ["attach tap0"]);
    assert_eq!(bench.snapshot().health.hooks_lost, 2);
    // Without any dump it takes a minute.
    bench.agent.datapath.removed.insert(2.into());
    let ticks = (1..).find(|_| !bench.ticks(1).calls().is_empty()).unwrap();
    assert_eq!(ticks, 60);
}

#[test]
fn bindings_that_change_places_detach_nothing() {
    let mut bench = Bench::new();
    let bound = |ports: [u128; 3]| {
        let names = ["tap0", "tap1", "tap2"].into_iter().zip(ports);
        policy(names.map(|(name, number)| binding(name, port(number))).collect())
    };
    bench.send(read(bound([5, 6, 7]), 9));
    bench.netdevs(&[(2, "tap0"), (3, "tap1"), (4, "tap2")]).settle();
    bench.calls();
    bench.send(read(bound([6, 5, 7]), 10)).settle();
    assert_eq!(bench.calls(), ["exchange tap0 tap1"]);
    // 6 goes on to the last one, which takes a new port in its place.
    bench.send(read(bound([8, 6, 5]), 11)).settle();
    assert_eq!(bench.calls(), ["attach tap0", "attach tap1", "attach tap2"]);
}

#[test]
fn capture_that_is_not_in_force_any_more_is_said_again() {
    let mut bench = Bench::new();
    bench.netdevs(&[(3, "tap0")]).settle();
    bench.agent.datapath.capture_lost = true;
    bench.ticks(2);
    assert!(!bench.agent.datapath.capture_lost);
}

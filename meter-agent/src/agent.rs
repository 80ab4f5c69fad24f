//! The event loop: one thread that owns all mutable state.
//!
//! Level-triggered: every event only changes what is known or wanted. After it, [`Survey`] says how each netdev should
//! be attached, [`reconcile::plan`] says what that takes, and the steps are taken one at a time, so that a reader who
//! asks for totals waits for one attach at most. A step that fails stays wanted and is tried again, later and later.
//!
//! An ordinary thread on a channel, not a task: the datapath's system calls block.

mod attaches;
mod compose;
mod connections;
mod failures;
mod meters;
mod namespaces;
mod steps;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc,
        mpsc::{Receiver, RecvError, TryRecvError},
    },
};

use arc_swap::ArcSwap;
use tokio::sync::oneshot;

use self::{attaches::Attaches, compose::Known, failures::Failures, meters::Meters, namespaces::Namespaces};
use crate::{
    audit::Report,
    datapath::{Datapath, Lost, ReadError},
    definitions::{Change, ChangeError, state::Found},
    netdev::{NamespaceId, NetdevEvent, NetdevId, NetdevState, Netdevs, namespaces::NamespaceEvent},
    publish::Refresh,
    reconcile::{self, Step},
    rules::MeterSet,
    snapshot::{Health, Snapshot},
    survey::{Policy, Survey},
    totals::Totals,
};

/// Events that are taken from the channel before the next step; bounds how long a flood of them delays it.
const BATCH: usize = 4_096;

/// Ticks from one look at the hooks to the next at least, however many dumps there are: each hook takes a few system
/// calls.
const VERIFY_REST: u32 = 10;
/// Ticks without a dump after which they are looked at all the same. The kernel announces a hook that goes to nobody, or
/// only among every change of every filter.
const VERIFY_EVERY: u32 = 60;

/// What a configuration says that the agent takes up while it runs.
#[derive(Debug, Clone)]
pub struct Configured {
    /// Which netdev is what.
    pub policy: Policy,
    /// The user-defined meters.
    pub meters: MeterSet,
    /// When it was read: seconds since the Unix epoch.
    pub read_s: u64,
}

/// Everything that happens to the agent.
#[derive(Debug)]
pub enum Event {
    /// The kernel announced something.
    Netdev(NetdevEvent),
    /// Something happened to a named namespace, or in it.
    Namespace(NamespaceEvent),
    /// The configuration was read again.
    Configured(Box<Configured>),
    /// The configuration was read again and is wrong; the old one stays in force.
    Misconfigured,
    /// An operator changes the user-defined meters, and waits for how that ends.
    Change(Change, oneshot::Sender<Result<(), ChangeError>>),
    /// A reader wants totals.
    Refresh(Refresh),
    /// An audit has ended.
    Audited(Arc<Report>),
    /// The kernel told the statistics and addresses of metered netdevs.
    NetdevStates(Arc<BTreeMap<NetdevId, NetdevState>>),
    /// Somebody wants all totals, to write them down.
    Totals(oneshot::Sender<Result<Totals, ReadError>>),
    /// Totals could not be written down.
    TotalsFailed,
    /// A second has passed.
    Tick,
    /// The agent ends.
    Shutdown,
}

/// The agent's state.
#[derive(Debug)]
pub struct Agent<D> {
    datapath: D,
    policy: Policy,
    meters: Meters,
    netdevs: Netdevs,
    namespaces: Namespaces,
    capture_refusal: connections::Refusal,
    survey: Survey,
    /// Netdevs that the kernel said are gone and that are not detached yet. Their numbers may be other netdevs' by now.
    gone: BTreeSet<NetdevId>,
    failures: Failures,
    attaches: Attaches,
    audit: Option<Arc<Report>>,
    netdev_states: Arc<BTreeMap<NetdevId, NetdevState>>,
    /// Whether there was a dump since the hooks were looked at.
    unverified: bool,
    /// Ticks since then.
    verified_before: u32,
    steps: VecDeque<Step>,
    wishes: Vec<Refresh>,
    /// Whether something changed that may change the plan.
    stale: bool,
    /// Whether the first complete dump is in.
    dumped: bool,
    health: Health,
    host: String,
    generation: u64,
    latest: Arc<ArcSwap<Snapshot>>,
}

impl<D: Datapath> Agent<D> {
    /// Makes an agent that counts through `datapath` and publishes to `latest`.
    ///
    /// `follows` says whether named namespaces are followed: what an earlier agent left attached in them waits for the
    /// first look then. `added` is what was added to the configuration's meters at run time before, and where that is kept; `host` is the
    /// host's name. Meters that the datapath refuses are logged and don't count; everything else does.
    pub fn new(
        datapath: D,
        configured: Configured,
        added: Found,
        host: String,
        follows: bool,
        latest: Arc<ArcSwap<Snapshot>>,
    ) -> Self {
        let Configured { policy, meters, read_s } = configured;
        let health = Health {
            config_reload_ok: true,
            config_loaded_s: read_s,
            namespaces: follows.then_some(0),
            unpinned: datapath.unpinned().map(ToOwned::to_owned),
            ..Health::default()
        };
        let left = datapath.attached().keys().map(|id| id.namespace).collect();
        let mut agent = Self {
            datapath,
            policy,
            meters: Meters::new(meters, added),
            netdevs: Netdevs::default(),
            namespaces: Namespaces::new(follows, &left),
            capture_refusal: connections::Refusal::default(),
            survey: Survey::default(),
            gone: BTreeSet::new(),
            failures: Failures::default(),
            attaches: Attaches::default(),
            audit: None,
            netdev_states: Arc::default(),
            unverified: false,
            verified_before: VERIFY_REST,
            steps: VecDeque::new(),
            wishes: Vec::new(),
            stale: false,
            dumped: false,
            health,
            host,
            generation: 0,
            latest,
        };
        agent.start_meters();
        agent
    }

    /// Runs until [`Event::Shutdown`], or until nobody can send an event any more; returns the datapath, attached.
    pub fn run(mut self, events: &Receiver<Event>) -> D {
        while self.turn(events) {}
        // What counted until now is there for whoever still reads.
        self.publish();
        self.datapath
    }

    /// Takes what is in the channel, answers readers, and takes one step; returns whether to go on.
    fn turn(&mut self, events: &Receiver<Event>) -> bool {
        if self.steps.is_empty() && !self.stale {
            // Nothing to do before something happens.
            match events.recv() {
                Ok(Event::Shutdown) | Err(RecvError) => return false,
                Ok(event) => self.apply(event),
            }
        }
        for _ in 0..BATCH {
            match events.try_recv() {
                Ok(Event::Shutdown) | Err(TryRecvError::Disconnected) => return false,
                Ok(event) => self.apply(event),
                Err(TryRecvError::Empty) => break,
            }
        }
        self.verify();
        if self.stale {
            self.plan();
        }
        let planned = !self.steps.is_empty();
        if let Some(step) = self.steps.pop_front() {
            self.take(step);
            self.leave_namespaces();
        }
        let is_done = self.steps.is_empty() && !self.stale;
        let caught_up = self.dumped && self.namespaces.are_looked_at() && is_done;
        let became_ready = caught_up && !self.health.ready;
        self.health.ready |= caught_up;
        self.health.settled = caught_up;
        // The last of a run of steps shows at once, without a reader's asking.
        if became_ready || (planned && self.steps.is_empty()) || !self.wishes.is_empty() {
            self.publish();
        }
        true
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Netdev(event) => self.apply_netdev(event),
            Event::Namespace(event) => self.apply_namespace(event),
            Event::Configured(configured) => self.configure(*configured),
            Event::Misconfigured => self.health.config_reload_ok = false,
            Event::Change(change, answer) => {
                // Whoever went away meanwhile finds it in the log.
                drop(answer.send(self.change_meters(&change)));
            }
            Event::Refresh(wish) => self.wishes.push(wish),
            // Who does not wait any more has no use for it.
            Event::Totals(wish) => drop(wish.send(self.datapath.totals())),
            Event::TotalsFailed => self.health.state_failures += 1,
            Event::Audited(report) => self.audit = Some(report),
            Event::NetdevStates(states) => self.netdev_states = states,
            Event::Tick => {
                self.stale |= self.failures.tick() | self.tick_meters();
                self.tick_namespaces();
                self.tick_capture();
                self.verified_before = self.verified_before.saturating_add(1);
                self.datapath.tend();
            }
            // Handled where events are taken from the channel.
            Event::Shutdown => {}
        }
    }

    /// Takes up a configuration as a whole, or nothing of it.
    fn configure(&mut self, configured: Configured) {
        let Configured { policy, meters, read_s } = configured;
        self.health.config_reload_ok = self.configure_meters(meters);
        if !self.health.config_reload_ok {
            return;
        }
        self.policy = policy;
        self.health.config_loaded_s = read_s;
        // What only another configuration could help may be helped now.
        self.failures.forget_all();
        self.stale = true;
        tracing::info!("configuration reloaded");
    }

    fn apply_netdev(&mut self, event: NetdevEvent) {
        self.dumped |= matches!(event, NetdevEvent::All(_));
        self.note(NamespaceId::HOST, &event);
        self.netdevs.host.apply(event);
    }

    /// Takes note of what follows from an event beside the tables.
    fn note(&mut self, namespace: NamespaceId, event: &NetdevEvent) {
        self.stale = true;
        match event {
            NetdevEvent::All(_) => {
                self.health.netlink_dumps += 1;
                self.unverified = true;
            }
            NetdevEvent::New(netdev) => {
                self.health.netlink_events += 1;
                tracing::debug!(netdev = %netdev.name, ifindex = netdev.ifindex, "netdev announced");
            }
            NetdevEvent::Gone(ifindex) => {
                self.health.netlink_events += 1;
                let id = NetdevId { namespace, ifindex: *ifindex };
                tracing::debug!(netdev = %id, "netdev gone");
                self.failures.forget(id);
                if self.datapath.attached().contains_key(&id) {
                    self.gone.insert(id);
                }
            }
            NetdevEvent::Overrun => {
                self.health.netlink_overruns += 1;
                tracing::warn!("the kernel dropped netlink messages; taking a complete dump");
            }
        }
    }

    /// Looks at the hooks where that is due. What another tool removed is attached again.
    fn verify(&mut self) {
        let rest = if self.unverified { VERIFY_REST } else { VERIFY_EVERY };
        if !self.dumped || self.verified_before < rest {
            return;
        }
        self.unverified = false;
        self.verified_before = 0;
        for Lost { target, direction, kind } in self.datapath.verify() {
            self.health.hooks_lost += 1;
            self.stale = true;
            tracing::warn!(
                netdev = %target.netdev,
                netns = target.netns,
                ifindex = target.id.ifindex,
                port = %target.port,
                ?direction,
                %kind,
                "another tool removed the hook; attaching it again"
            );
        }
    }

    /// Compares what is with what should be.
    fn plan(&mut self) {
        self.stale = false;
        if !self.dumped {
            // Before the first dump everything would look gone.
            return;
        }
        self.retry_meters();
        let survey = Survey::new(&self.netdevs, &self.policy);
        for (id, conflict) in survey.conflicts() {
            let before = self.survey.bound.get(&id).and_then(|bound| bound.as_ref().err());
            if before != Some(conflict) {
                let netdev = self.netdevs.get(id).map_or("", |netdev| &netdev.name);
                let netns = self.netdevs.name(id.namespace);
                tracing::error!(netdev, netns, ifindex = id.ifindex, error = %conflict, "not metered");
            }
        }
        self.survey = survey;
        self.capture();
        self.failures.keep(&self.survey.desired);
        let possible = self.failures.possible(&self.survey.desired);
        let steps = reconcile::plan(&possible, self.datapath.attached(), &self.gone);
        self.steps = steps.into_iter().filter(|step| self.is_due(step)).collect();
        let attaches = self.steps.iter().filter_map(|step| match step {
            Step::Attach(target) => Some(target.clone()),
            Step::Exchange(_) | Step::Detach { .. } => None,
        });
        let attaches: Vec<_> = attaches.collect();
        if !attaches.is_empty() {
            self.datapath.prepare(&attaches);
        }
        self.leave_namespaces();
        self.health.attach_pending = self.pending();
    }

    /// Returns how many netdevs should be metered and are not, because they could not be attached or have another's port,
    /// and how many namespaces can't be followed.
    fn pending(&self) -> u64 {
        let netdevs = self.failures.len() + self.survey.conflicts().count();
        u64::try_from(netdevs + self.health.namespaces_failed.len()).unwrap_or(u64::MAX)
    }

    /// Returns whether a step is to be taken now; one that failed waits for its time.
    fn is_due(&self, step: &Step) -> bool {
        match step {
            Step::Exchange(targets) => targets.iter().all(|target| self.failures.is_due(target)),
            Step::Attach(target) => self.failures.is_due(target),
            // Before everything has been looked at, what is in a namespace would look gone.
            Step::Detach { id } => self.namespaces.is_known(id.namespace) || self.gone.contains(id),
        }
    }

    /// Reads the totals, makes a snapshot of them, and hands it to whoever waits.
    fn publish(&mut self) {
        self.health.user_meters_in_force = self.meters_count();
        match self.datapath.read() {
            Ok(reading) => {
                self.generation += 1;
                let known = Known {
                    netdevs: &self.netdevs,
                    survey: &self.survey,
                    attached: self.datapath.attached(),
                    failures: &self.failures,
                    health: &self.health,
                    definitions: self.meters.list(),
                    attaches: &self.attaches,
                    audit: self.audit.as_ref(),
                    netdev_states: &self.netdev_states,
                    host: &self.host,
                };
                let snapshot = Arc::new(compose::snapshot(self.generation, reading, &known));
                self.latest.store(Arc::clone(&snapshot));
                for wish in self.wishes.drain(..) {
                    // A reader who went away meanwhile has no use for it.
                    drop(wish.send(Arc::clone(&snapshot)));
                }
            }
            Err(error) => {
                self.health.read_failures += 1;
                tracing::error!(error = %error, "reading the counters failed; readers get the last totals");
                self.publish_health();
                self.wishes.clear();
            }
        }
    }

    /// Shows how the agent is beside the last totals, which only so are known to be old. Nothing is ready that was never
    /// read.
    fn publish_health(&self) {
        let last = self.latest.load();
        let ready = self.health.ready && last.generation > 0;
        let health = Health { ready, ..self.health.clone() };
        self.latest.store(Arc::new(Snapshot { health, ..Snapshot::clone(&last) }));
    }
}

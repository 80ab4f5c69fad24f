//! When audits are made, and what is read for them.
//!
//! A task of its own, so that the agent's thread waits for none of it. A new netdev gets its base line within a second of
//! its being attached, or later on a busy host: the task rests between two samples [`REST`] times as long as one took.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use meter_ebpf::abi::Direction;
use tokio::{
    sync::{mpsc, oneshot},
    task::block_in_place,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use crate::{
    audit::{Auditor, Metered, Report, Sample},
    control::Audits,
    datapath::{HookKind, is_shared},
    netdev::{
        NamespaceId, NetdevId, NetdevSample,
        monitor::{MonitorError, Sampler},
        namespaces,
    },
    publish::SnapshotReader,
    snapshot::{Carrier, Port, SharedSnapshot, Snapshot},
};

/// Between the kernel's counters and ours: longer than a frame takes from the one to the other.
const PAUSE: Duration = Duration::from_millis(20);
/// What is unexplained is looked at again after this: a frame may have waited for a CPU.
const SECOND_LOOK: Duration = Duration::from_millis(300);
/// How often it is looked whether an audit is due.
const TICK: Duration = Duration::from_secs(1);
/// Samples take at most one part in so many of the time, but for those that were asked for.
const REST: u32 = 20;
/// Wishes that wait.
const WISHES: usize = 16;

/// Starts to audit at this interval, `None` for only when asked; `publish` is told each result. Returns how to ask.
pub(super) fn start(
    every: Option<Duration>,
    reader: SnapshotReader,
    publish: impl Fn(Arc<Report>) + Send + Sync + 'static,
) -> Audits {
    let (ask, asked) = mpsc::channel(WISHES);
    let task = Task {
        every,
        reader,
        publish: Box::new(publish),
        auditor: Auditor::default(),
        sampler: None,
        last_error: String::new(),
        due: Instant::now(),
        rested: Instant::now(),
        _open: ask.clone(),
    };
    tokio::spawn(task.run(asked));
    ask
}

struct Task {
    every: Option<Duration>,
    reader: SnapshotReader,
    publish: Box<dyn Fn(Arc<Report>) + Send + Sync>,
    auditor: Auditor,
    sampler: Option<Sampler>,
    last_error: String,
    /// When the next audit is due.
    due: Instant,
    /// When the next base line may be taken.
    rested: Instant,
    /// Without a control socket nobody else keeps the channel open.
    _open: Audits,
}

impl Task {
    async fn run(mut self, mut asked: mpsc::Receiver<oneshot::Sender<Arc<Report>>>) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let wish = tokio::select! {
                wish = asked.recv() => match wish {
                    Some(wish) => Some(wish),
                    None => return,
                },
                _ = tick.tick() => None,
            };
            if wish.is_none() && !self.is_due() {
                continue;
            }
            let report = self.audit().await;
            if let (Some(wish), Some(report)) = (wish, report) {
                // Whoever went away meanwhile has no use for it.
                drop(wish.send(report));
            }
        }
    }

    fn is_due(&self) -> bool {
        let now = Instant::now();
        let Some(_) = self.every else { return false };
        now >= self.due
            || (now >= self.rested && self.auditor.lacks(&metered(&self.reader.latest()).collect::<Vec<_>>()))
    }

    async fn audit(&mut self) -> Option<Arc<Report>> {
        let began = Instant::now();
        let mut report = self.look().await;
        if report.as_ref().is_some_and(|report| !report.is_explained()) {
            sleep(SECOND_LOOK).await;
            report = self.look().await.or(report);
        }
        let took = began.elapsed();
        self.rested = Instant::now() + took * REST;
        self.due = began + self.every.unwrap_or_default().max(took * REST);
        let report = Arc::new(report?);
        if !report.is_explained() {
            tracing::warn!("the audit found drift that nothing explains; meter-agent audit shows it");
        }
        tracing::debug!(netdevs = report.rows.len() / 2, elapsed_ms = took.as_millis(), "audited");
        (self.publish)(Arc::clone(&report));
        Some(report)
    }

    /// Takes a sample and judges it; `None` where it could not be taken.
    async fn look(&mut self) -> Option<Report> {
        let known: BTreeMap<NetdevId, String> =
            metered(&self.reader.latest()).map(|metered| (metered.netdev_id, metered.netns)).collect();
        let kernel_first = self.kernel(&known)?;
        let before = self.reader.latest().generation;
        sleep(PAUSE).await;
        let ours_first = self.reader.fresh().await;
        let ours_second = self.reader.fresh().await;
        sleep(PAUSE).await;
        let kernel_second = self.kernel(&known)?;
        if ours_first.generation <= before {
            tracing::debug!("the agent is busy; no audit now");
            return None;
        }
        let at_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let sample = Sample {
            at_s,
            kernel_first,
            ours_first: metered(&ours_first).collect(),
            ours_second: metered(&ours_second).collect(),
            kernel_second,
        };
        let is_shared = |id: NetdevId, direction| {
            let Some(ours) = hook(&ours_second, id, direction) else { return false };
            let ask = || is_shared(id.ifindex, direction, ours);
            match known.get(&id) {
                Some(netns) if !netns.is_empty() => in_namespace(netns, ask).unwrap_or(false),
                _ => ask(),
            }
        };
        Some(block_in_place(|| self.auditor.judge(&sample, &is_shared)))
    }

    fn kernel(&mut self, netdevs: &BTreeMap<NetdevId, String>) -> Option<BTreeMap<NetdevId, NetdevSample>> {
        let mut by_namespace: BTreeMap<NamespaceId, (&str, BTreeSet<u32>)> = BTreeMap::new();
        for (id, netns) in netdevs {
            by_namespace.entry(id.namespace).or_insert((netns, BTreeSet::new())).1.insert(id.ifindex);
        }
        let (_, here) = by_namespace.remove(&NamespaceId::HOST).unwrap_or_default();
        let sampled = block_in_place(|| -> Result<_, MonitorError> {
            let mut sampler = match self.sampler.take() {
                Some(sampler) => sampler,
                None => Sampler::open()?,
            };
            let sample = sampler.sample(&here)?;
            self.sampler = Some(sampler);
            let mut all: BTreeMap<NetdevId, NetdevSample> =
                sample.into_iter().map(|(ifindex, sample)| (ifindex.into(), sample)).collect();
            for (namespace, (netns, there)) in by_namespace {
                // A socket that stays would keep the namespace alive. One that has gone is left to the next audit.
                match in_namespace(netns, || Sampler::open()?.sample(&there)) {
                    Some(Ok(sample)) => {
                        let id = |ifindex| NetdevId { namespace, ifindex };
                        all.extend(sample.into_iter().map(|(ifindex, sample)| (id(ifindex), sample)));
                    }
                    Some(Err(error)) => tracing::debug!(netns, error = %error, "namespace not audited"),
                    None => {}
                }
            }
            Ok(all)
        });
        match sampled {
            Ok(sample) => {
                self.last_error.clear();
                Some(sample)
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                let text = format!("{error}: {cause}");
                if text != self.last_error {
                    tracing::warn!(error = %text, "no audit: the kernel does not tell its statistics; will retry");
                }
                self.last_error = text;
                None
            }
        }
    }
}

/// Returns what `ask` returns in a named namespace; `None` where that is gone or can't be entered.
pub(super) fn in_namespace<T: Send>(name: &str, ask: impl FnOnce() -> T + Send) -> Option<T> {
    let entrance = namespaces::open(Path::new(namespaces::DIRECTORY), name)?;
    entrance.enter(ask).inspect_err(|error| tracing::debug!(netns = name, error = %error, "not entered")).ok()
}

/// Returns what is metered now.
fn metered(snapshot: &Snapshot) -> impl Iterator<Item = Metered> {
    snapshot.ports.iter().filter_map(|port| Some(one(snapshot, port, port.carrier.as_ref()?)))
}

fn one(snapshot: &Snapshot, port: &Port, carrier: &Carrier) -> Metered {
    let part = |direction| snapshot.parts.get(&(port.port, direction)).copied();
    let parts = part(Direction::Ingress).zip(part(Direction::Egress));
    Metered {
        port: port.port,
        class: port.class,
        netdev_id: carrier.id,
        netdev: carrier.netdev.clone(),
        netns: carrier.netns.clone(),
        kind: carrier.kind.clone(),
        attach: carrier.since.attach,
        gaps: carrier.since.gaps,
        by_xdp: carrier.hooks.0 == HookKind::Xdp,
        hooks: [port.ingress, port.egress],
        parts: parts.map(|(ingress, egress)| [ingress, egress]),
    }
}

fn hook(snapshot: &SharedSnapshot, id: NetdevId, direction: Direction) -> Option<HookKind> {
    let carriers = snapshot.ports.iter().filter_map(|port| port.carrier.as_ref());
    let hooks = carriers.filter(|carrier| carrier.id == id).map(|carrier| carrier.hooks).next()?;
    Some(match direction {
        Direction::Ingress => hooks.0,
        Direction::Egress => hooks.1,
    })
}

//! The exposition of a snapshot: OpenMetrics 1.0 and Prometheus' text format 0.0.4.
//!
//! Names, labels and HELP are an API: `tests/fixtures/prometheus` holds them. Every sample is written straight from
//! the snapshot, in one pass for each family, because a family's samples stand together.

mod agent;
mod audit;
mod budget;
mod compat;
mod connections;
mod families;
mod format;
mod lines;
mod servers;
mod skydive;
#[cfg(test)]
mod tests;
mod traffic;

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use prometheus_client::{
    collector::Collector, encoding::DescriptorEncoder, encoding::text::encode_registry, registry::Registry,
};

pub use self::format::Format;
use self::{
    budget::{Budget, Choice, METER_KINDS, Pool},
    compat::Compat,
    families::Families,
    lines::{Created, Lines},
};
use super::{
    process::Process,
    server::{self, Published},
};
use crate::{
    connections::{Board, Shown, View},
    meter::PortId,
    snapshot::{SharedSnapshot, Snapshot},
};

/// About how many bytes a port and a tunnel take, so that the buffer seldom grows.
const BYTES_PER_PORT: usize = 1900;
const BYTES_PER_TUNNEL: usize = 450;

/// What the operator decides of the exposition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Series of a family that have a name of their own; the others are summed to one more.
    pub max_series: usize,
    /// Whether `/metrics` holds the families of MidoNet's agent as well.
    pub midonet: bool,
    /// Whether it holds those of the JMX scraper as well.
    pub scraper: bool,
    /// What the scraper's families call this agent: their label `mn_agent`.
    pub scraper_agent: String,
    /// How connections are shown.
    pub connections: View,
    /// Whether `/metrics` holds the families of the Skydive-Prometheus connector as well.
    pub skydive: bool,
}

/// How long an answer has taken.
#[derive(Debug, Clone, Copy)]
pub enum Stopwatch {
    /// It began then.
    Running(Instant),
    /// So long, whenever it is looked at.
    Stopped(Duration),
}

impl Stopwatch {
    fn elapsed(self) -> Duration {
        match self {
            Self::Running(since) => since.elapsed(),
            Self::Stopped(duration) => duration,
        }
    }
}

/// What writes expositions. Remembers which series it has shown, so that each keeps its name.
#[derive(Debug)]
pub struct Exposition {
    options: Options,
    budget: Mutex<Budget>,
    connections: Mutex<Board>,
    skydive: Mutex<Board>,
}

impl Exposition {
    /// Makes one that has shown nothing yet.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self { options, budget: Mutex::default(), connections: Mutex::default(), skydive: Mutex::default() }
    }

    /// Writes everything that `/metrics` shows.
    #[must_use]
    pub fn render(
        &self,
        snapshot: &SharedSnapshot,
        process: Process,
        format: Format,
        stopwatch: Stopwatch,
    ) -> String {
        self.render_with(snapshot, process, server::published(), format, stopwatch)
    }

    /// Writes everything, with what these servers say of themselves.
    fn render_with(
        &self,
        snapshot: &SharedSnapshot,
        process: Process,
        servers: Vec<Published>,
        format: Format,
        stopwatch: Stopwatch,
    ) -> String {
        let Options { max_series, midonet, scraper, skydive, ref scraper_agent, ref connections } =
            self.options;
        let connections = {
            let Snapshot { generation, connections: readings, captures, .. } = &**snapshot;
            lock(&self.connections).update(connections, *generation, readings, captures)
        };
        let created = Created::default();
        let capacity = 64 * 1024
            + snapshot.ports.len() * BYTES_PER_PORT
            + (snapshot.tunnels_receive.len() + snapshot.tunnels_transmit.len()) * BYTES_PER_TUNNEL;
        let mut lines = Lines::new(format, created.clone(), capacity);
        let meters = (midonet || scraper).then(|| snapshot.meters());
        let (choice, others, meter_pools, over) = {
            let mut budget = self.budget();
            let pools =
                meters.as_ref().map(|meters| budget.choose_meters(max_series, &snapshot.ports, meters));
            let choice = budget.choose(max_series, snapshot);
            let mut over = over(&choice, budget.meters_over());
            let others = budget.choose_others(max_series, &snapshot.ports, &connections.others);
            if !snapshot.captures.is_empty() {
                over.extend([
                    ("meter_connection", connections.over),
                    ("meter_connection_other", others.len()),
                ]);
            }
            (choice, others, pools, over)
        };
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Scrape {
            snapshot: SharedSnapshot::clone(snapshot),
            choice,
            connections,
            others,
            series: Series { limit: max_series, over },
            process,
            servers,
            format,
            created,
            stopwatch,
        }));
        encode_registry(&mut lines, &registry).expect("a string takes everything");
        if let (Some(meters), Some(pools)) = (&meters, &meter_pools) {
            let compat = Compat { meters, pools, format };
            if midonet {
                compat.midonet(lines.raw());
            }
            if scraper {
                compat.scraper(lines.raw(), scraper_agent, stopwatch);
            }
        }
        if skydive {
            self.skydive(lines.raw(), snapshot);
        }
        lines.finish()
    }

    /// Writes what the JMX scraper showed on its own port, in text 0.0.4.
    #[must_use]
    pub fn render_scraper(&self, snapshot: &Snapshot, stopwatch: Stopwatch) -> String {
        let meters = snapshot.meters();
        let pools = self.budget().choose_meters(self.options.max_series, &snapshot.ports, &meters);
        let mut text = String::new();
        let compat = Compat { meters: &meters, pools: &pools, format: Format::Text };
        compat.scraper(&mut text, &self.options.scraper_agent, stopwatch);
        text
    }

    /// Writes what the Skydive-Prometheus connector showed on its own port, in text 0.0.4.
    #[must_use]
    pub fn render_skydive(&self, snapshot: &Snapshot) -> String {
        let mut text = String::new();
        self.skydive(&mut text, snapshot);
        text
    }

    fn skydive(&self, out: &mut String, snapshot: &Snapshot) {
        let view = skydive::view(&self.options.connections);
        let readings = skydive::with_transport(&snapshot.connections);
        let shown = lock(&self.skydive).update(&view, snapshot.generation, &readings, &[]);
        skydive::write(out, &shown, snapshot, self.options.max_series);
    }

    fn budget(&self) -> MutexGuard<'_, Budget> {
        lock(&self.budget)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whatever was admitted before a panic stays admitted.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the agent says of the number of its series.
#[derive(Debug)]
struct Series {
    /// How many a family may name.
    limit: usize,
    /// How many things have no series of their own, by how the names of their families or meters begin.
    over: Vec<(&'static str, usize)>,
}

/// `meters` are MidoNet's beyond the limit, wherever they were shown last.
fn over(choice: &Choice, meters: Option<[usize; METER_KINDS.len()]>) -> Vec<(&'static str, usize)> {
    let meters = METER_KINDS.into_iter().zip(meters.into_iter().flatten());
    choice.over().into_iter().chain(meters).collect()
}

/// What one scrape shows.
#[derive(Debug)]
struct Scrape {
    snapshot: SharedSnapshot,
    choice: Choice,
    connections: Shown,
    others: Pool<PortId, 4>,
    series: Series,
    process: Process,
    servers: Vec<Published>,
    format: Format,
    created: Created,
    stopwatch: Stopwatch,
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let created = (self.format == Format::OpenMetrics).then(|| self.created.clone());
        let mut families = Families::new(encoder, created);
        traffic::write(&mut families, &self.snapshot, &self.choice)?;
        connections::write(&mut families, &self.connections, &self.others)?;
        audit::write(&mut families, &self.snapshot, &self.choice, agent::started_ns(&self.process))?;
        agent::write(&mut families, &self.snapshot, &self.process)?;
        servers::write(&mut families, &self.servers)?;
        agent::exposition(&mut families, &self.series, self.stopwatch)
    }
}

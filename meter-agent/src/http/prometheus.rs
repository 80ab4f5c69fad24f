//! The exposition of a snapshot: OpenMetrics 1.0 and Prometheus' text format 0.0.4.
//!
//! Names, labels and HELP are an API: `tests/fixtures/prometheus` holds them. Every sample is written straight from
//! the snapshot, in one pass for each family, because a family's samples stand together.

mod agent;
mod families;
mod format;
mod lines;
#[cfg(test)]
mod tests;
mod traffic;

use std::fmt;

use prometheus_client::{
    collector::Collector, encoding::DescriptorEncoder, encoding::text::encode_registry, registry::Registry,
};

pub use self::format::Format;
use self::{
    families::Families,
    lines::{Created, Lines},
};
use super::process::Process;
use crate::snapshot::SharedSnapshot;

/// About how many bytes a port takes, so that the buffer seldom grows.
const BYTES_PER_PORT: usize = 1900;

/// Writes everything that `/metrics` shows.
#[must_use]
pub fn render(snapshot: SharedSnapshot, process: Process, format: Format) -> String {
    let created = Created::default();
    let mut lines = Lines::new(format, created.clone(), 64 * 1024 + snapshot.ports.len() * BYTES_PER_PORT);
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape { snapshot, process, format, created }));
    encode_registry(&mut lines, &registry).expect("a string takes everything");
    lines.finish()
}

/// What one scrape shows.
#[derive(Debug)]
struct Scrape {
    snapshot: SharedSnapshot,
    process: Process,
    format: Format,
    created: Created,
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let created = (self.format == Format::OpenMetrics).then(|| self.created.clone());
        let mut families = Families::new(encoder, created);
        traffic::write(&mut families, &self.snapshot)?;
        agent::write(&mut families, &self.snapshot, &self.process)
    }
}

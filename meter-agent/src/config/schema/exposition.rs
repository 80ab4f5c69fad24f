//! `[metrics]`, `[compat]` and `[audit]`: what Prometheus and those who asked MidoNet are shown, and what proves it.

use std::{net::SocketAddr, time::Duration};

use super::{
    super::{Compat, Flags, Metrics},
    Document, Report, check, or,
};

const DEFAULT_MAX_SERIES: u32 = 20_000;

pub(super) fn metrics(document: &Document<'_>, report: &mut Report<'_>) -> Metrics {
    let section = document.section("metrics", report);
    let max_series = section.one(report, "max_series", check::integer(1..=super::MAX_ENTRIES));
    Metrics { max_series: or(max_series, DEFAULT_MAX_SERIES).value }
}

const DEFAULT_AUDIT: Duration = Duration::from_secs(60);
const LEAST_AUDIT: Duration = Duration::from_secs(1);
const MOST_AUDIT: Duration = Duration::from_secs(24 * 3600);

pub(super) fn audit_interval(document: &Document<'_>, report: &mut Report<'_>) -> Option<Duration> {
    let section = document.section("audit", report);
    let interval = check::interval(LEAST_AUDIT..=MOST_AUDIT);
    or(section.one(report, "interval", check::string(interval)), Some(DEFAULT_AUDIT)).value
}

/// Reads the table without its addresses, which are checked with all others.
pub(super) fn compat(
    document: &Document<'_>,
    host_name: &str,
    [scraper_listen, skydive_listen]: [Vec<SocketAddr>; 2],
    flags: &Flags,
    report: &mut Report<'_>,
) -> Compat {
    let section = document.section("compat", report);
    let switch = |key, report: &mut Report<'_>| section.one(report, key, check::boolean);
    let midonet = switch("midonet", report);
    let device_stats = switch("device_stats", report);
    let scraper = switch("scraper", report);
    let skydive = switch("skydive", report);
    let agent = section.one(report, "scraper_agent", check::string(check::agent));
    Compat {
        midonet: or(midonet, false).value,
        device_stats: or(device_stats, true).value,
        scraper: or(scraper, false).value,
        scraper_listen,
        skydive: flags.compat_skydive || or(skydive, false).value,
        skydive_listen,
        scraper_agent: agent.map_or_else(|| format!("{host_name}:7200"), |agent| agent.value),
    }
}

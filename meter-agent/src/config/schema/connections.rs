//! `[connections]`: of which netdevs connections are counted, and which.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    time::Duration,
};

use meter_ebpf::abi::connection::capture;

use super::{MAX_ENTRIES, MAX_PATTERNS, conditions::condition, or, values};
use crate::{
    config::{check, document::Document, report::Report},
    connections::{Classifier, Label, Selection, Tag, View},
    datapath::Class,
    meter::PortId,
    rules::{self, MAX_RULES, MeterSet, RuleLine, compile_everywhere},
};

const ROLES: &[(&str, Class)] =
    &[("port", Class::Port), ("uplink", Class::Uplink), ("tunnel", Class::Tunnel)];
const PROTOCOLS: &[(&str, u32)] =
    &[("tcp", capture::TCP), ("udp", capture::UDP), ("sctp", capture::SCTP), ("icmp", capture::ICMP)];
/// Ports that can be named one by one.
const MAX_PORTS: usize = 4096;
/// After how long a connection may be taken out of the table.
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
const DEFAULT_MAX_ENTRIES: u32 = 16_384;

/// Returns how many connections the table has room for.
pub(super) fn max_entries(document: &Document<'_>, report: &mut Report<'_>) -> u32 {
    let section = document.section("connections", report);
    or(section.one(report, "max_entries", check::integer(1..=MAX_ENTRIES)), DEFAULT_MAX_ENTRIES).value
}

/// Reads of which netdevs connections are counted.
pub(super) fn selection(document: &Document<'_>, max_entries: u32, report: &mut Report<'_>) -> Selection {
    let section = document.section("connections", report);
    let default = Selection::default();
    let netdevs = section.list(report, "netdevs", MAX_PATTERNS, check::string(check::pattern));
    let port = check::string(|text| check::uuid(text).map(PortId));
    let ports = section.list(report, "ports", MAX_PORTS, port);
    let roles = section.list(report, "roles", ROLES.len(), check::string(check::word(ROLES)));
    let protocols = section.list(report, "protocols", PROTOCOLS.len(), check::string(check::word(PROTOCOLS)));
    let versions = section.list(report, "ip_versions", 2, check::integer(4..=6_u8));
    let mut bits = default.bits;
    if let Some(protocols) = protocols {
        bits &= capture::IPV4 | capture::IPV6;
        bits |= protocols.iter().fold(0, |all, protocol| all | protocol.value);
    }
    if let Some(versions) = versions {
        bits &= !(capture::IPV4 | capture::IPV6);
        for version in versions {
            match version.value {
                4 => bits |= capture::IPV4,
                6 => bits |= capture::IPV6,
                other => report.key(
                    version.origin,
                    "connections.ip_versions",
                    format_args!("there is no version {other} of IP; expected 4 or 6"),
                ),
            }
        }
    }
    let inside = section.one(report, "inside_tunnels", check::boolean);
    if or(inside, false).value {
        bits |= capture::INSIDE;
    }
    let seconds = |key, default: u32, report: &mut Report<'_>| {
        let read = |text: &str| {
            let timeout = check::interval(TIMEOUTS)(text)?;
            timeout.ok_or_else(|| "is zero; a connection without traffic has to leave some time".to_owned())
        };
        let timeout = section.one(report, key, check::string(read));
        let seconds = timeout.map(|timeout| timeout.value.as_secs());
        seconds.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(default)
    };
    let idle_s = seconds("timeout", default.idle_s, report);
    let ended_s = seconds("ended_timeout", default.ended_s, report);
    let share = section.one(report, "max_entries_of_netdev", check::integer(1..=MAX_ENTRIES));
    Selection {
        netdevs: values(netdevs.unwrap_or_default()),
        ports: values(ports.unwrap_or_default()).into_iter().collect(),
        roles: values(roles.unwrap_or_default()).into_iter().collect(),
        bits,
        rules: default.rules,
        // So that no guest alone fills the table.
        share: or(share, max_entries.div_ceil(2)).value,
        idle_s,
        ended_s,
    }
}

/// Reads the rules that say which connections are counted, with the groups and routers that they name.
pub(super) fn rules(document: &Document<'_>, set: &MeterSet, report: &mut Report<'_>) -> MeterSet {
    const KEY: &str = "connections.rules";
    let section = document.section("connections", report);
    let items = section.items(report, "rules", usize::MAX).unwrap_or_default();
    if let Some(item) = items.get(MAX_RULES) {
        let what = format!("is one rule too many: at most {MAX_RULES} are possible");
        report.key(item.origin, KEY, what);
        return MeterSet::default();
    }
    let mut conditions = Vec::new();
    for item in &items {
        let condition = condition(item, KEY, &set.groups, report, RuleLine::parse_alone);
        let Some(condition) = condition else { continue };
        if condition.flow.is_some() {
            report.key(item.origin, KEY, "flow: a connection is counted in both directions; leave it out");
        }
        conditions.push(condition);
    }
    if conditions.is_empty() {
        return MeterSet::default();
    }
    let rules = set.with_rules(conditions);
    if let Err(error) = compile_everywhere(&rules, &BTreeMap::new(), 1) {
        report.key(section.origin, KEY, error);
    }
    rules
}

const LABELS: &[(&str, Label)] = &Label::ALL;
const CLASSES: &[(&str, Tag)] = &[
    (Tag::Internal.name(), Tag::Internal),
    (Tag::Ingress.name(), Tag::Ingress),
    (Tag::Egress.name(), Tag::Egress),
    (Tag::Other.name(), Tag::Other),
];
const DEFAULT_MAX_SERIES: u32 = 10_000;
const MAX_NETWORKS: usize = 256;

/// Reads how connections are shown.
pub(super) fn view(document: &Document<'_>, report: &mut Report<'_>) -> View {
    let section = document.section("connections", report);
    let max_series = section.one(report, "max_series", check::integer(1..=MAX_ENTRIES));
    let drop = section.list(report, "drop_labels", LABELS.len(), check::string(check::word(LABELS)));
    let networks = |key, report: &mut Report<'_>| {
        let list = section.list(report, key, MAX_NETWORKS, check::string(rules::prefix));
        list.map(values)
    };
    let groups = networks("group_networks", report);
    let internal = networks("internal_networks", report);
    let exclude = section.list(report, "exclude_classes", CLASSES.len(), check::string(check::word(CLASSES)));
    let exclude: BTreeSet<Tag> = values(exclude.unwrap_or_default()).into_iter().collect();
    let internal = internal.filter(|networks| !networks.is_empty()).map(Classifier);
    // Without networks every connection is of the class other, which may be one that is excluded.
    let classifier = internal.or_else(|| (!exclude.is_empty()).then(Classifier::default));
    View {
        // Each has a series for either direction in a family.
        most: usize::try_from(or(max_series, DEFAULT_MAX_SERIES).value / 2).unwrap_or(usize::MAX),
        drop: values(drop.unwrap_or_default()).into_iter().collect(),
        networks: groups.unwrap_or_default(),
        classifier,
        exclude,
    }
}

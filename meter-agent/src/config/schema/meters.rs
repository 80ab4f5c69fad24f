//! `[[meter]]`, `[[port_group]]` and `[[ip_address_group]]`: what the user-defined meters count.

use std::collections::{BTreeMap, HashMap};

use toml::de::DeValue;

use super::conditions::condition;
use crate::{
    config::{
        check,
        document::{Document, Section},
        report::{Origin, Placed, Report, quote},
    },
    meter::PortId,
    rules::{self, Groups, MAX_RULES, Meter, MeterSet, RuleLine},
};

/// Members that one group has at most.
const MAX_MEMBERS: usize = 4096;

/// Reads all meters, and the groups that their rules name.
pub(super) fn read(document: &Document<'_>, report: &mut Report<'_>) -> MeterSet {
    let port = check::string(|text| check::uuid(text).map(PortId));
    let ports = groups(document, report, "port_group", "ports", port);
    let addresses = groups(document, report, "ip_address_group", "addresses", check::string(rules::prefix));
    let groups = Groups {
        ports: ports.into_iter().map(|(name, ports)| (name, ports.into_iter().collect())).collect(),
        addresses,
    };
    let meters = meters(document, &groups, report);
    MeterSet { meters, groups, routers: Vec::new() }
}

/// Reads the groups of one kind.
fn groups<T>(
    document: &Document<'_>,
    report: &mut Report<'_>,
    table: &'static str,
    members: &'static str,
    read: impl Fn(&DeValue<'_>) -> Result<T, String>,
) -> BTreeMap<String, Vec<T>> {
    let mut names = Names::default();
    let mut groups = BTreeMap::new();
    for section in document.sections(table, report) {
        let name = names.read(&section, report, rules::group_name);
        let list = section.list(report, members, MAX_MEMBERS, &read).unwrap_or_default();
        // What is named twice or not at all has been reported.
        groups
            .entry(name.unwrap_or_default())
            .or_insert(list.into_iter().map(|member| member.value).collect());
    }
    groups
}

fn meters(document: &Document<'_>, groups: &Groups, report: &mut Report<'_>) -> Vec<Meter> {
    let mut names = Names::default();
    let mut meters = Vec::new();
    let mut left = MAX_RULES;
    for section in document.sections("meter", report) {
        let name = names.read(&section, report, rules::meter_name);
        let items = section.items(report, "rules", usize::MAX);
        if items.as_ref().map_or(!section.has("rules"), Vec::is_empty) {
            report.key(section.origin, "meter", "has no rules; say what it counts");
        }
        let items = items.unwrap_or_default();
        if items.len() > left {
            let what = format!("is one rule too many: at most {MAX_RULES} of all meters are possible");
            report.key(items.get(left).map_or(section.origin, |item| item.origin), "meter.rules", what);
            return meters;
        }
        left -= items.len();
        let rules = items.iter().filter_map(|item| {
            condition(item, "meter.rules", groups, report, |text| RuleLine::parse_for(text, name.as_deref()))
        });
        let rules = rules.collect();
        meters.push(Meter { name: name.unwrap_or_default(), rules });
    }
    meters
}

/// Names that were read, and where each was first.
#[derive(Default)]
struct Names(HashMap<String, Origin>);

impl Names {
    /// Reads a table's name, which no other has.
    fn read(
        &mut self,
        section: &Section<'_>,
        report: &mut Report<'_>,
        read: impl Fn(&str) -> Result<String, String>,
    ) -> Option<String> {
        if !section.has("name") {
            report.key(section.origin, section.name, "has no name");
            return None;
        }
        let Placed { value: name, origin } = section.one(report, "name", check::string(read))?;
        if let Some(Origin::File(first)) = self.0.get(&name) {
            let line = report.line(*first);
            let what = format!("{} is the name of the one in line {line} already", quote(&name));
            report.key(origin, &section.full_name("name"), what);
        } else {
            self.0.insert(name.clone(), origin);
        }
        Some(name)
    }
}

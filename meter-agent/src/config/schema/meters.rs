//! `[[meter]]`, `[[port_group]]` and `[[ip_address_group]]`: what the user-defined meters count.

use std::collections::{BTreeMap, HashMap};

use toml::de::DeValue;

use crate::{
    config::{
        check,
        document::{self, Document, Item, Section, type_of},
        report::{Mistake, Origin, Place, Placed, Report, quote, shorten},
    },
    meter::PortId,
    rules::{self, Attribute, Condition, Groups, MAX_RULES, Meter, MeterSet, RuleLine, RuleTable},
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
        let rules = items.iter().filter_map(|item| rule(item, name.as_deref(), groups, report)).collect();
        meters.push(Meter { name: name.unwrap_or_default(), rules });
    }
    meters
}

/// Reads one rule, in whichever form it is.
fn rule(
    item: &Placed<Item<'_>>,
    meter: Option<&str>,
    groups: &Groups,
    report: &mut Report<'_>,
) -> Option<Condition> {
    let mut places = HashMap::new();
    let condition = match &item.value {
        Item::Text(text) => RuleLine::parse_for(text, meter).map_err(|errors| {
            for error in errors {
                report.key(item.origin, "meter.rules", error);
            }
        }),
        Item::Table(keys) => table(keys, &mut places, report),
    };
    let condition = condition.ok()?;
    for (attribute, group) in groups.missing(&condition) {
        let table = match attribute {
            Attribute::IpAddressGroupSrc | Attribute::IpAddressGroupDst => "ip_address_group",
            _ => "port_group",
        };
        let what = format!("{attribute}: there is no [[{table}]] with the name {}", quote(group));
        report.key(places.get(&attribute).copied().unwrap_or(item.origin), "meter.rules", what);
    }
    Some(condition)
}

/// Reads a table of attributes. What is wrong has been reported where there is no condition.
fn table(
    keys: &[(&str, Origin, &DeValue<'_>)],
    places: &mut HashMap<Attribute, Origin>,
    report: &mut Report<'_>,
) -> Result<Condition, ()> {
    let mut table = RuleTable::default();
    let mut is_right = true;
    for &(key, origin, value) in keys {
        let Some(attribute) = Attribute::of_key(key) else {
            let known = Attribute::ALL.map(Attribute::key).join(", ");
            report.key(origin, "meter.rules", format_args!("unknown key {}; known are: {known}", quote(key)));
            is_right = false;
            continue;
        };
        places.insert(attribute, origin);
        if let Err(what) = text_of(attribute, value).and_then(|text| table.set(attribute, &text)) {
            report.key(origin, &format!("meter.rules.{key}"), what);
            is_right = false;
        }
    }
    let condition = table.finish().map_err(|mistakes| {
        for (attribute, what) in mistakes {
            let origin = places.get(&attribute).copied().unwrap_or(Origin::Default);
            report.key(origin, &format!("meter.rules.{}", attribute.key()), what);
        }
    })?;
    if is_right { Ok(condition) } else { Err(()) }
}

/// Reads a rule that is a table by itself: `{proto = 6, dst_port = "80-90"}`.
///
/// # Errors
///
/// Everything that is wrong with it, in the order of the text.
pub fn rule_table(text: &str) -> Result<Condition, Vec<String>> {
    let mut report = Report::new("", text);
    let (value, errors) = DeValue::parse_recoverable(text);
    // What follows the first mistake is mostly its consequence.
    if let Some(error) = errors.first() {
        let at = error.span().unwrap_or_default().start;
        report.text(at, format_args!("not TOML: {}", error.message().replace('\n', " ")));
    }
    let condition = match value.get_ref() {
        _ if !errors.is_empty() => None,
        DeValue::Table(keys) => table(&document::keys(keys), &mut HashMap::new(), &mut report).ok(),
        other => {
            report.text(0, format_args!("expected a table, found {}", type_of(other)));
            None
        }
    };
    let said = |Mistake { place, message }: Mistake| {
        let message = message
            .strip_prefix("meter.rules")
            .map_or(&*message, |rest| rest.trim_start_matches(['.', ':', ' ']));
        match place {
            Place::Position { column, .. } => format!("column {column}: {message}"),
            Place::File | Place::Flag(_) => message.to_owned(),
        }
    };
    match condition {
        Some(condition) if report.is_clean() => Ok(condition),
        _ => Err(report.finish().list.into_iter().map(said).collect()),
    }
}

/// Returns what would stand in a rule line for a value.
fn text_of(attribute: Attribute, value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Boolean(value) => Ok(value.to_string()),
        DeValue::Integer(integer) => {
            let number = i128::from_str_radix(integer.as_str(), integer.radix());
            Ok(number.map_or_else(|_| shorten(&integer.to_string()), |number| number.to_string()))
        }
        DeValue::Array(items) if matches!(attribute, Attribute::InPorts | Attribute::OutPorts) => {
            let strings = items.iter().map(|item| match item.get_ref() {
                DeValue::String(text) => Ok(&**text),
                other => Err(format!("expected an array of strings, found {} in it", type_of(other))),
            });
            Ok(strings.collect::<Result<Vec<_>, _>>()?.join(","))
        }
        other => Err(format!("expected a string, an integer or a boolean, found {}", type_of(other))),
    }
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

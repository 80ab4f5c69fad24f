//! Rules in the configuration: as lines, and as tables.

use std::collections::HashMap;

use toml::de::DeValue;

use crate::{
    config::{
        document::{self, Item, type_of},
        report::{Mistake, Origin, Place, Placed, Report, quote, shorten},
    },
    rules::{Attribute, Condition, Groups, LineError, RuleTable},
};

/// What stands before a mistake in a rule that is no list's, and is taken away from there.
const RULES: &str = "rules";

/// Reads one rule of the list with this key, in whichever form it is; `line` reads it as a rule line.
pub(super) fn condition(
    item: &Placed<Item<'_>>,
    key: &str,
    groups: &Groups,
    report: &mut Report<'_>,
    line: impl FnOnce(&str) -> Result<Condition, Vec<LineError>>,
) -> Option<Condition> {
    let mut places = HashMap::new();
    let condition = match &item.value {
        Item::Text(text) => line(text).map_err(|errors| {
            for error in errors {
                report.key(item.origin, key, error);
            }
        }),
        Item::Table(keys) => table(keys, key, &mut places, report),
    };
    let condition = condition.ok()?;
    for (attribute, group) in groups.missing(&condition) {
        let table = match attribute {
            Attribute::IpAddressGroupSrc | Attribute::IpAddressGroupDst => "ip_address_group",
            _ => "port_group",
        };
        let what = format!("{attribute}: there is no [[{table}]] with the name {}", quote(group));
        report.key(places.get(&attribute).copied().unwrap_or(item.origin), key, what);
    }
    Some(condition)
}

/// Reads a table of attributes. What is wrong has been reported where there is no condition.
fn table(
    keys: &[(&str, Origin, &DeValue<'_>)],
    list: &str,
    places: &mut HashMap<Attribute, Origin>,
    report: &mut Report<'_>,
) -> Result<Condition, ()> {
    let mut table = RuleTable::default();
    let mut is_right = true;
    for &(key, origin, value) in keys {
        let Some(attribute) = Attribute::of_key(key) else {
            let known = Attribute::ALL.map(Attribute::key).join(", ");
            report.key(origin, list, format_args!("unknown key {}; known are: {known}", quote(key)));
            is_right = false;
            continue;
        };
        places.insert(attribute, origin);
        if let Err(what) = text_of(attribute, value).and_then(|text| table.set(attribute, &text)) {
            report.key(origin, &format!("{list}.{key}"), what);
            is_right = false;
        }
    }
    let condition = table.finish().map_err(|mistakes| {
        for (attribute, what) in mistakes {
            let origin = places.get(&attribute).copied().unwrap_or(Origin::Default);
            report.key(origin, &format!("{list}.{}", attribute.key()), what);
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
        DeValue::Table(keys) => table(&document::keys(keys), RULES, &mut HashMap::new(), &mut report).ok(),
        other => {
            report.text(0, format_args!("expected a table, found {}", type_of(other)));
            None
        }
    };
    let said = |Mistake { place, message }: Mistake| {
        let message =
            message.strip_prefix(RULES).map_or(&*message, |rest| rest.trim_start_matches(['.', ':', ' ']));
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

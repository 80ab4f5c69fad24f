//! The TOML document: which tables and keys there are, and values of the right type with their places.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue},
};

use super::report::{Origin, Placed, Report, quote};

/// The top level's name in [`TABLES`].
const TOP: &str = "";

/// Every key of a configuration, by table; the top level's own and its tables first.
pub(super) const TABLES: &[(&str, &[&str])] = &[
    (
        TOP,
        &[
            "host_id",
            "host_name",
            "datapath",
            "tunnels",
            "connections",
            "uplinks",
            "ports",
            "namespaces",
            "http",
            "jolokia",
            "metrics",
            "compat",
            "audit",
            "control",
            "state",
            "log",
            "binding",
            "meter",
            "router",
            "port_group",
            "ip_address_group",
        ],
    ),
    ("datapath", &["pin_path", "tc", "max_ports", "max_netdevs"]),
    ("tunnels", &["vxlan_ports", "geneve_ports", "nvgre", "max_tunnels"]),
    (
        "connections",
        &[
            "netdevs",
            "ports",
            "roles",
            "protocols",
            "ip_versions",
            "inside_tunnels",
            "rules",
            "timeout",
            "ended_timeout",
            "max_entries",
            "max_entries_of_netdev",
            "max_series",
            "drop_labels",
            "group_networks",
            "internal_networks",
            "exclude_classes",
        ],
    ),
    ("uplinks", &["netdevs", "ingress"]),
    ("ports", &["netdevs", "ignore"]),
    ("namespaces", &["include", "exclude"]),
    ("http", &["listen", "config_file"]),
    ("jolokia", &["listen"]),
    ("metrics", &["max_series"]),
    (
        "compat",
        &[
            "midonet",
            "device_stats",
            "scraper",
            "scraper_listen",
            "scraper_agent",
            "skydive",
            "skydive_listen",
        ],
    ),
    ("audit", &["interval"]),
    ("control", &["socket"]),
    ("state", &["directory", "totals_file", "totals_interval"]),
    ("log", &["level", "format"]),
    ("binding", &["netdev", "mac", "netns", "port", "device"]),
    ("meter", &["name", "rules"]),
    ("router", &["id", "macs", "bridges"]),
    ("port_group", &["name", "ports"]),
    ("ip_address_group", &["name", "addresses"]),
];

/// A whole file whose syntax is right.
#[derive(Debug)]
pub(super) struct Document<'a> {
    root: DeTable<'a>,
}

/// One table of it, present or not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Section<'d> {
    pub(super) name: &'static str,
    table: Option<&'d DeTable<'d>>,
    /// Where the table begins.
    pub(super) origin: Origin,
}

/// A value of an array that may hold strings and tables.
#[derive(Debug)]
pub(super) enum Item<'d> {
    /// A string.
    Text(&'d str),
    /// A table: its keys with their places and values, in no order.
    Table(Vec<(&'d str, Origin, &'d DeValue<'d>)>),
}

impl<'a> Document<'a> {
    /// Reads a text. Where its syntax is wrong the report says so, and the document is empty.
    pub(super) fn read(text: &'a str, report: &mut Report<'_>) -> Self {
        let (root, mut errors) = DeTable::parse_recoverable(text);
        errors.sort_by_key(|error| error.span().map(|span| span.start));
        let mut is_toml = true;
        // What follows a mistake in the same line is mostly its consequence.
        let mut last_line = 0;
        for error in errors {
            let span = error.span().unwrap_or_default();
            let line = report.line(span.start);
            let is_duplicate = error.message() == "duplicate key";
            is_toml &= is_duplicate;
            if is_duplicate {
                // The name is looked for in the text above; not for each of many thousands.
                let name = if report.is_full() { String::new() } else { full_name(text, span.clone()) };
                report.text(span.start, format_args!("{name}: is set twice"));
            } else if line != last_line {
                let what = bare_word(text, span.start).unwrap_or_else(|| error.message().replace('\n', " "));
                report.text(span.start, format_args!("not TOML: {what}"));
            }
            last_line = line;
        }
        // Of a key that is set twice the first value is checked with all others.
        let document = Self { root: if is_toml { root.into_inner() } else { DeTable::new() } };
        document.top().reject_unknown(report);
        document
    }

    /// Returns the top level.
    pub(super) fn top(&self) -> Section<'_> {
        Section { name: TOP, table: Some(&self.root), origin: Origin::File(0) }
    }

    /// Returns a table; an absent one has no keys.
    pub(super) fn section(&self, name: &'static str, report: &mut Report<'_>) -> Section<'_> {
        let absent = Section { name, table: None, origin: Origin::Default };
        let Some((key, value)) = self.root.get_key_value(name) else { return absent };
        match value.get_ref() {
            DeValue::Table(table) => {
                let section = Section { table: Some(table), origin: start(value), ..absent };
                section.reject_unknown(report);
                section
            }
            other => {
                let what = format!("expected a table, found {}; write [{name}]", type_of(other));
                report.key(start(key), name, what);
                absent
            }
        }
    }

    /// Returns the tables of an array of tables, in the order of the file.
    pub(super) fn sections(&self, name: &'static str, report: &mut Report<'_>) -> Vec<Section<'_>> {
        let Some((key, value)) = self.root.get_key_value(name) else { return Vec::new() };
        let DeValue::Array(items) = value.get_ref() else {
            let found = type_of(value.get_ref());
            let what = format!("expected an array of tables, found {found}; write [[{name}]]");
            report.key(start(key), name, what);
            return Vec::new();
        };
        let mut sections = Vec::new();
        for item in items.iter() {
            if let DeValue::Table(table) = item.get_ref() {
                let section = Section { name, table: Some(table), origin: start(item) };
                section.reject_unknown(report);
                sections.push(section);
            } else {
                let found = type_of(item.get_ref());
                report.key(
                    start(item),
                    name,
                    format_args!("expected a table, found {found}; write [[{name}]]"),
                );
            }
        }
        sections
    }
}

impl Section<'_> {
    /// Returns a key's full name.
    pub(super) fn full_name(&self, key: &str) -> String {
        if self.name == TOP { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    /// Returns whether a key is set, to whatever value.
    pub(super) fn has(&self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    /// Returns whether a key is set to an array of nothing.
    pub(super) fn is_empty_array(&self, key: &'static str) -> bool {
        self.value(key).is_some_and(|(_, value)| matches!(value, DeValue::Array(items) if items.is_empty()))
    }

    /// Returns a key's value, read by a function that says what is wrong with it.
    pub(super) fn one<T>(
        &self,
        report: &mut Report<'_>,
        key: &'static str,
        read: impl Fn(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<Placed<T>> {
        let (origin, value) = self.value(key)?;
        match read(value) {
            Ok(value) => Some(Placed { value, origin }),
            Err(what) => {
                report.key(origin, &self.full_name(key), what);
                None
            }
        }
    }

    /// Returns a key's list without the values that are wrong.
    pub(super) fn list<T>(
        &self,
        report: &mut Report<'_>,
        key: &'static str,
        most: usize,
        read: impl Fn(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<Vec<Placed<T>>> {
        let name = self.full_name(key);
        let mut list = Vec::new();
        for item in self.array(report, key, most)? {
            match read(item.get_ref()) {
                Ok(value) => list.push(Placed { value, origin: start(item) }),
                Err(what) => report.key(start(item), &name, what),
            }
        }
        Some(list)
    }

    /// Returns the strings and tables of a key's array.
    pub(super) fn items(
        &self,
        report: &mut Report<'_>,
        key: &'static str,
        most: usize,
    ) -> Option<Vec<Placed<Item<'_>>>> {
        let name = self.full_name(key);
        let mut list = Vec::new();
        for item in self.array(report, key, most)? {
            let value = match item.get_ref() {
                DeValue::String(text) => Item::Text(text),
                DeValue::Table(table) => Item::Table(keys(table)),
                other => {
                    report.key(
                        start(item),
                        &name,
                        format_args!("expected a string or a table, found {}", type_of(other)),
                    );
                    continue;
                }
            };
            list.push(Placed { value, origin: start(item) });
        }
        Some(list)
    }

    /// Returns the values of a key's array, unless they are too many.
    fn array(&self, report: &mut Report<'_>, key: &'static str, most: usize) -> Option<&DeArray<'_>> {
        let (origin, value) = self.value(key)?;
        let DeValue::Array(items) = value else {
            let found = type_of(value);
            report.key(origin, &self.full_name(key), format_args!("expected an array, found {found}"));
            return None;
        };
        if items.len() > most {
            let what = format!("has {} values, at most {most} are possible", items.len());
            report.key(origin, &self.full_name(key), what);
            return None;
        }
        Some(items)
    }

    /// Returns where a key is, and its value.
    fn value(&self, key: &'static str) -> Option<(Origin, &DeValue<'_>)> {
        debug_assert!(known(self.name).contains(&key), "{key} is not in TABLES");
        self.table?.get_key_value(key).map(|(key, value)| (start(key), value.get_ref()))
    }

    fn reject_unknown(&self, report: &mut Report<'_>) {
        let known = known(self.name);
        for (key, _) in self.table.into_iter().flatten() {
            let Origin::File(offset) = start(key) else { continue };
            let key: &str = key.get_ref();
            if !known.contains(&key) {
                let name = self.full_name(&shown(key));
                report.text(offset, format_args!("unknown key {name}; known are: {}", known.join(", ")));
            }
        }
    }
}

fn known(table: &str) -> &'static [&'static str] {
    TABLES.iter().find(|(name, _)| *name == table).map_or(&[], |(_, keys)| keys)
}

/// Returns the keys of a table with their places and values, in no order.
pub(super) fn keys<'d>(table: &'d DeTable<'_>) -> Vec<(&'d str, Origin, &'d DeValue<'d>)> {
    table.iter().map(|(key, value)| (&**key.get_ref(), start(key), value.get_ref())).collect()
}

fn start<T>(spanned: &Spanned<T>) -> Origin {
    Origin::File(spanned.span().start)
}

/// Returns a key as it stands in a file, on one line.
fn shown(key: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !key.is_empty() && key.len() <= 60 && key.chars().all(is_bare) { key.to_owned() } else { quote(key) }
}

/// Returns what to say of a value without quotes, of which the parser would say that it is a bad float or boolean.
fn bare_word(text: &str, start: usize) -> Option<String> {
    let (before, rest) = text.split_at_checked(start)?;
    let is_value = before.trim_end_matches([' ', '\t']).ends_with(['=', ',']);
    let word = rest.split(|c: char| c.is_whitespace() || matches!(c, ',' | ']' | '}' | '#')).next()?;
    let is_word = word.starts_with(char::is_alphabetic);
    (is_value && is_word).then(|| format!("a string is written in quotes: {}", quote(word)))
}

/// Returns the full name of a key that the parser refused, as far as the text around it tells.
fn full_name(text: &str, key: Range<usize>) -> String {
    let before = text.get(..key.start).unwrap_or_default();
    let key = text.get(key).unwrap_or_default();
    let (above, line) = before.rsplit_once('\n').unwrap_or(("", before));
    let line = line.trim_start();
    if let Some(parents) = line.strip_prefix('[') {
        return format!("{}{}", parents.trim_start_matches('['), shown(key));
    }
    let mut parents = Vec::new();
    if let Some(header) = above.lines().rev().find_map(|line| line.trim_start().strip_prefix('[')) {
        parents.push(header.trim_start_matches('[').split(']').next().unwrap_or_default().trim());
    }
    // In an inline table, the key that it is the value of.
    if let Some((parent, _)) = line.split_once('=') {
        parents.push(parent.trim());
    }
    let shown_key = shown(key);
    parents.push(&shown_key);
    parents.join(".")
}

/// Returns what a value is, with its article.
pub(super) fn type_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

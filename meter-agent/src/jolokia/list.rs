//! `list`: what the beans say of themselves, as a tree of domains, names and sections.

use std::borrow::Cow;

use super::{
    request::parameters::{ListOptions, Options},
    response::Failure,
};
use crate::jmx::{
    BeanServer,
    bean::{AttributeInfo, Bean, JavaType, OperationInfo},
    name::ObjectName,
    open_type::{KEY, OpenType},
    value::Value,
};

type Items = Vec<(Cow<'static, str>, Value)>;

/// What stands for what `maxDepth` leaves out.
const CUT: Value = Value::Int(1);

/// Returns the tree, or the part of it that a path leads to: domain, keys, section.
///
/// A path may lead on into a section, as in Jolokia 1. One with a pattern selects, and keeps the levels above.
///
/// # Errors
///
/// That there is no such bean or section, or nothing where the path leads.
pub fn list(server: &BeanServer, path: &[String], options: &Options) -> Result<Value, Failure> {
    let Options { max_depth, list, .. } = *options;
    let keys = path.get(1).map_or("*", String::as_str);
    let selected = match path.first() {
        Some(domain) => Some(ObjectName::parse(&format!("{domain}:{keys}"))?),
        None => None,
    };
    let exact = selected.as_ref().filter(|name| !name.is_pattern());
    if let (Some(name), true) = (exact, path.len() > 1) {
        let found = server.get(name);
        found
            .map_err(|_| Failure::no_bean(format!("InstanceNotFoundException for MBean {name} ({name})")))?;
    }
    let beans: Vec<&Bean> = match &selected {
        Some(pattern) => server.matching(pattern).collect(),
        None => server.matching(&ObjectName::parse("*:*")?).collect(),
    };
    let mut domains = Items::new();
    for bean in beans {
        let value = if max_depth == 1 || max_depth == 2 {
            CUT
        } else {
            match info(bean, list, path.get(2).map(String::as_str))? {
                Value::Map(sections) if sections.is_empty() => continue,
                sections => sections,
            }
        };
        let domain = entry(&mut domains, bean.name.domain());
        if max_depth == 1 {
            *domain = CUT;
        } else if let Value::Map(names) = domain {
            names.push((bean.name.properties().into(), value));
        }
    }
    let tree = Value::Map(domains);
    if list.cache && exact.is_none() {
        return Ok(Value::map([("cache", Value::Map(Vec::new())), ("domains", tree)]));
    }
    let has_domain_pattern = path.first().is_some_and(|domain| domain.contains(['*', '?']));
    let is_pattern = has_domain_pattern || (path.len() > 1 && exact.is_none());
    let found = if is_pattern { tree } else { follow(tree, path)? };
    Ok(if max_depth > 0 { truncated(found, max_depth) } else { found })
}

/// Returns the map under a domain, which it makes where there is none.
fn entry<'a>(domains: &'a mut Items, domain: &str) -> &'a mut Value {
    let index = match domains.iter().position(|(known, _)| known == domain) {
        Some(index) => index,
        None => {
            domains.push((domain.to_owned().into(), Value::Map(Vec::new())));
            domains.len() - 1
        }
    };
    &mut domains[index].1
}

/// Returns what a path leads to. What was cut off stays that, wherever the path would lead.
fn follow(tree: Value, path: &[String]) -> Result<Value, Failure> {
    let mut value = tree;
    for (level, segment) in path.iter().enumerate() {
        value = match value {
            Value::Int(_) => return Ok(value),
            // A domain without beans, and a section without anything in it.
            Value::Map(items) if items.is_empty() && level < 3 => return Ok(Value::Map(items)),
            // One domain, and one name in it, which may have its keys in another order than the path.
            Value::Map(items) if level < 2 && items.len() == 1 => {
                items.into_iter().next().map_or(Value::Null, |(_, value)| value)
            }
            Value::Map(items) => {
                found(items.into_iter().find(|(key, _)| key == segment).map(|(_, value)| value))?
            }
            Value::List(mut values) => {
                let index = segment.parse().ok().filter(|index| *index < values.len());
                found(index.map(|index| values.swap_remove(index)))?
            }
            _ => found(None)?,
        };
    }
    Ok(value)
}

fn found(value: Option<Value>) -> Result<Value, Failure> {
    value.ok_or_else(|| Failure::bad_request("Path given but extracted value is empty"))
}

/// Cuts off the maps below a number of levels. What is no map stays.
fn truncated(value: Value, levels: usize) -> Value {
    match value {
        Value::Map(_) if levels == 0 => CUT,
        Value::Map(items) => {
            Value::Map(items.into_iter().map(|(key, value)| (key, truncated(value, levels - 1))).collect())
        }
        other => other,
    }
}

/// Returns what a bean says of itself, or one section of that. Sections that are empty are left out.
fn info(bean: &Bean, list: ListOptions, section: Option<&str>) -> Result<Value, Failure> {
    let mut sections = Items::new();
    let mut is_known = section.is_none();
    for (name, is_wanted) in [
        ("op", true),
        ("attr", true),
        ("notif", true),
        ("class", true),
        ("desc", true),
        ("keys", list.keys),
        ("interfaces", list.interfaces),
    ] {
        if !is_wanted || section.is_some_and(|section| section != name) {
            continue;
        }
        is_known = true;
        let value = match name {
            "op" => operations(bean.info.operations, list),
            "attr" => {
                let attributes = bean.info.attributes.iter();
                Value::Map(attributes.map(|info| (info.name.into(), attribute(info, list))).collect())
            }
            "notif" => Value::Map(Vec::new()),
            "class" => Value::text(bean.info.class),
            "desc" => Value::text(bean.description()),
            "keys" => {
                let keys = bean.name.keys().iter();
                Value::Map(
                    keys.map(|(key, value)| (key.clone().into(), Value::text(value.as_str()))).collect(),
                )
            }
            _ => Value::List(vec![Value::text(bean.info.interface)]),
        };
        if value != Value::Map(Vec::new()) {
            sections.push((name.into(), value));
        }
    }
    if !is_known {
        let section = section.unwrap_or_default();
        return Err(Failure::bad_request(format!("Illegal path element for updater selection: {section}")));
    }
    Ok(Value::Map(sections))
}

fn attribute(info: &AttributeInfo, list: ListOptions) -> Value {
    let mut items: Items = vec![
        ("r".into(), Value::Bool(true)),
        ("w".into(), Value::Bool(false)),
        ("rw".into(), Value::Bool(false)),
        ("is".into(), Value::Bool(info.is)),
        ("type".into(), Value::text(info.of.name)),
        ("desc".into(), Value::text(info.name)),
    ];
    items.extend(open("openType", info.of, list));
    Value::Map(items)
}

/// Returns the operations by their names; those that share one as an array.
fn operations(all: &[OperationInfo], list: ListOptions) -> Value {
    let mut names: Vec<&'static str> = Vec::new();
    for info in all {
        if !names.contains(&info.name) {
            names.push(info.name);
        }
    }
    let of_name = |name: &'static str| {
        let mut same: Vec<_> =
            all.iter().filter(|info| info.name == name).map(|info| operation(info, list)).collect();
        let value = if same.len() == 1 { same.swap_remove(0) } else { Value::List(same) };
        (Cow::Borrowed(name), value)
    };
    Value::Map(names.into_iter().map(of_name).collect())
}

fn operation(info: &OperationInfo, list: ListOptions) -> Value {
    let arguments = info.parameters.iter().enumerate().map(|(index, of)| {
        let name = format!("p{index}");
        let mut items: Items = vec![
            ("name".into(), Value::text(name.as_str())),
            ("type".into(), Value::text(of.name)),
            ("desc".into(), Value::text(name)),
        ];
        items.extend(open("openType", *of, list));
        Value::Map(items)
    });
    let mut items: Items = vec![
        ("args".into(), Value::List(arguments.collect())),
        ("ret".into(), Value::text(info.returns.name)),
        ("desc".into(), Value::text(info.name)),
    ];
    items.extend(open("openRet", info.returns, list));
    Value::Map(items)
}

fn open(key: &'static str, of: JavaType, list: ListOptions) -> Option<(Cow<'static, str>, Value)> {
    let open = of.open.filter(|_| list.open_types)?;
    Some((key.into(), described(open)))
}

/// Returns an open type: a simple one by its name, another as a tree.
fn described(of: OpenType) -> Value {
    let common = |kind: &'static str, description: String| -> Items {
        vec![
            ("kind".into(), Value::text(kind)),
            ("type".into(), Value::text(of.name())),
            ("class".into(), Value::text(of.class())),
            ("desc".into(), Value::text(description)),
        ]
    };
    match of {
        OpenType::Array(element) => {
            let mut items = common("array", format!("1-dimension array of {}", element.class()));
            items.extend([
                ("dimension".into(), Value::Int(1)),
                ("primitive".into(), Value::Bool(false)),
                ("elemType".into(), described(*element)),
            ]);
            Value::Map(items)
        }
        OpenType::Composite(composite) => {
            let mut items = common("composite", of.name());
            let own = composite.items.iter().map(|(name, item)| (Cow::Borrowed(*name), described(*item)));
            items.push(("items".into(), Value::Map(own.collect())));
            Value::Map(items)
        }
        OpenType::Table(table) => {
            let mut items = common("tabular", of.name());
            items.extend([
                ("index".into(), Value::List(vec![Value::text(KEY)])),
                ("rowType".into(), described(OpenType::Composite(table.row))),
            ]);
            Value::Map(items)
        }
        simple => Value::text(simple.class()),
    }
}

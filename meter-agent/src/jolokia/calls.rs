//! Calls of beans: `read`, `write`, `exec` and `search`, over one bean or over all that a pattern matches.

use std::{borrow::Cow, collections::BTreeSet};

use serde_json::{Map, Value as Json};

use super::{
    request::{Attributes, parameters::Options},
    response::Failure,
};
use crate::jmx::{
    BeanServer,
    bean::{Bean, Exception, OperationInfo},
    facts::Facts,
    name::ObjectName,
    value::Value,
};

/// Reads attributes. Those of a pattern's beans stand below their names, be it one bean and one attribute.
///
/// A bean of a pattern may lack attributes that are asked for, as long as one has one of them.
///
/// # Errors
///
/// That there is no such bean or attribute.
pub(super) fn read(
    server: &BeanServer,
    facts: &Facts,
    beans: &ObjectName,
    attributes: &Attributes,
    options: &Options,
) -> Result<Value, Failure> {
    if !beans.is_pattern() {
        let bean = server.get(beans)?;
        return match attributes {
            Attributes::One(name) => Ok(bean.read(name, facts)?),
            Attributes::Several(names) => several(bean, names.iter().map(String::as_str), facts, options),
            Attributes::All => several(bean, names_of(bean), facts, options),
        };
    }
    let mut items = Vec::new();
    for bean in matching(server, beans, "READ")? {
        let has = |name: &&str| names_of(bean).any(|known| known == *name);
        let value = match attributes {
            Attributes::One(name) => {
                several(bean, std::iter::once(name.as_str()).filter(has), facts, options)?
            }
            Attributes::Several(names) => {
                several(bean, names.iter().map(String::as_str).filter(has), facts, options)?
            }
            Attributes::All => several(bean, names_of(bean), facts, options)?,
        };
        if value != Value::Map(Vec::new()) {
            items.push((Cow::Owned(bean.name.canonical()), value));
        }
    }
    if items.is_empty() {
        let message = format!("No attribute found for any MBean matching {beans} pattern");
        return Err(Exception::no_attribute(message).into());
    }
    Ok(Value::Map(items))
}

fn names_of(bean: &Bean) -> impl Iterator<Item = &'static str> {
    bean.info.attributes.iter().map(|attribute| attribute.name)
}

fn several<'a>(
    bean: &Bean,
    names: impl Iterator<Item = &'a str>,
    facts: &Facts,
    options: &Options,
) -> Result<Value, Failure> {
    let mut items = Vec::new();
    // A set, because an object has each key once, however often it is asked for.
    for name in names.collect::<BTreeSet<_>>() {
        let value = match bean.read(name, facts) {
            Ok(value) => value,
            Err(exception) if options.ignore_errors => Value::Text(Failure::from(exception).as_text()),
            Err(exception) => return Err(exception.into()),
        };
        items.push((Cow::Owned(name.to_owned()), value));
    }
    Ok(Value::Map(items))
}

/// Refuses to write an attribute: nothing of this agent can be written.
#[must_use]
pub(super) fn write(server: &BeanServer, bean: &ObjectName, attribute: &str) -> Failure {
    match server.get(bean) {
        Ok(bean) => bean.write(attribute).into(),
        Err(exception) => exception.into(),
    }
}

/// Returns the names of the beans that a pattern matches.
#[must_use]
pub(super) fn search(server: &BeanServer, beans: &ObjectName) -> Value {
    Value::List(server.matching(beans).map(|bean| Value::text(bean.name.canonical())).collect())
}

/// A call of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Exec<'a> {
    /// Which beans.
    pub(super) beans: &'a ObjectName,
    /// The operation, perhaps with its signature.
    pub(super) operation: &'a str,
    /// Its arguments.
    pub(super) arguments: &'a [Json],
}

impl Exec<'_> {
    /// Returns how many of the arguments the operation takes. As in Jolokia 2, the others are an inner path.
    #[must_use]
    pub(super) fn taken(&self, server: &BeanServer) -> usize {
        let mut found = server.matching(self.beans).filter_map(|bean| bean.operation(self.operation).ok());
        found.next().map_or(self.arguments.len(), |info| info.parameters.len().min(self.arguments.len()))
    }

    /// Calls it. Of a pattern's beans, those that don't have it are left out as long as one has.
    ///
    /// # Errors
    ///
    /// That there is no such bean or operation, that the arguments are too few, or what the operation says.
    pub(super) fn call(&self, server: &BeanServer, facts: &Facts) -> Result<Value, Failure> {
        let arguments = &self.arguments[..self.taken(server)];
        let call = |bean: &Bean| -> Result<Value, Failure> {
            let info = bean.operation(self.operation)?;
            Ok(bean.invoke(info, &converted(arguments, info), facts)?)
        };
        if !self.beans.is_pattern() {
            return call(server.get(self.beans)?);
        }
        let mut items = Vec::new();
        for bean in matching(server, self.beans, "EXEC")? {
            if bean.operation(self.operation).is_ok() {
                items.push((Cow::Owned(bean.name.canonical()), call(bean)?));
            }
        }
        if items.is_empty() {
            return Err(Exception::no_operation(self.operation).into());
        }
        Ok(Value::Map(items))
    }
}

/// Changes the echo of a call whose last arguments are an inner path, and returns that.
pub(super) fn rest_as_path(arguments: &[Json], taken: usize, echo: &mut Map<String, Json>) -> Vec<String> {
    let segments: Vec<String> = arguments[taken..].iter().map(text).collect();
    if segments.is_empty() {
        return segments;
    }
    if taken == 0 {
        echo.remove("arguments");
    } else {
        echo.insert("arguments".to_owned(), arguments[..taken].into());
    }
    let path = super::request::join_path(segments.iter().cloned());
    // A path that was given as well comes behind it.
    let path = path.into_iter().chain(echo.get("path").and_then(Json::as_str).map(ToOwned::to_owned));
    let path = path.collect::<Vec<_>>().join("/");
    echo.insert("path".to_owned(), path.into());
    segments
}

/// Makes Java's values of arguments: whatever is not null becomes a text where the parameter is one.
fn converted(arguments: &[Json], info: &OperationInfo) -> Vec<Value> {
    let of = |index: usize| info.parameters.get(index).map_or("", |of| of.name);
    let convert = |(index, argument): (usize, &Json)| match argument {
        Json::Null => Value::Null,
        Json::Bool(value) if of(index) == "boolean" => Value::Bool(*value),
        Json::Number(number) if of(index) == "long" => number.as_i64().map_or(Value::Null, Value::Long),
        other => Value::Text(text(other)),
    };
    arguments.iter().enumerate().map(convert).collect()
}

fn text(argument: &Json) -> String {
    argument.as_str().map_or_else(|| argument.to_string(), ToOwned::to_owned)
}

/// Returns the beans that a pattern matches, at least one.
fn matching<'a>(server: &'a BeanServer, pattern: &ObjectName, kind: &str) -> Result<Vec<&'a Bean>, Failure> {
    let found: Vec<_> = server.matching(pattern).collect();
    if found.is_empty() {
        return Err(Failure::no_bean(format!("No MBean with pattern {pattern} found for {kind} request")));
    }
    Ok(found)
}

#[cfg(test)]
mod tests;

//! A part of a value, within limits: inner paths, and the parameters that make an answer smaller.

use std::borrow::Cow;

use super::{request::parameters::Options, response::Failure};
use crate::jmx::value::Value;

/// What stands for a value beyond `maxObjects`.
const TOO_MANY: &str = "[Object limit exceeded]";

/// Returns what a path leads to, cut off at the limits.
///
/// A path has keys of maps, indices of arrays, and `*` for each of a level, which is kept; what the rest of the path
/// does not lead to is left out of it. Where nothing is left, the value is null.
///
/// # Errors
///
/// That the path asks a composite for an item without a name.
pub fn extract(value: Value, path: &[String], options: &Options) -> Result<Value, Failure> {
    let is_whole = path.is_empty();
    if is_whole && [options.max_depth, options.max_collection_size, options.max_objects] == [0; 3] {
        return Ok(value);
    }
    match (Extraction { options, depth: 0, objects: 0 }).value(value, path) {
        Ok(value) => Ok(value),
        Err(Stop::Nothing) => Ok(Value::Null),
        Err(Stop::Failed(failure)) => Err(failure),
    }
}

/// Why there is no value.
enum Stop {
    /// The path leads to nothing.
    Nothing,
    /// The request fails.
    Failed(Failure),
}

struct Extraction<'a> {
    options: &'a Options,
    /// Levels above the value.
    depth: usize,
    /// Composites, tables, maps and arrays so far.
    objects: usize,
}

impl Extraction<'_> {
    fn value(&mut self, value: Value, path: &[String]) -> Result<Value, Stop> {
        let Options { max_depth, max_objects, .. } = *self.options;
        if max_depth > 0 && self.depth >= max_depth && value != Value::Null {
            return Ok(Value::Text(value.to_java_text()));
        }
        if max_objects > 0 && self.objects > max_objects {
            return Ok(Value::text(TOO_MANY));
        }
        self.depth += 1;
        let inner = self.inner(value, path);
        self.depth -= 1;
        inner
    }

    fn inner(&mut self, value: Value, path: &[String]) -> Result<Value, Stop> {
        match value {
            Value::List(values) => {
                self.objects += 1;
                self.list(values, path)
            }
            Value::Composite(of, items) => {
                self.objects += 1;
                if path.first().is_some_and(String::is_empty) {
                    let message = "Argument key cannot be a null or empty String.";
                    return Err(Stop::Failed(Failure::unexpected(
                        "java.lang.IllegalArgumentException",
                        message,
                    )));
                }
                let names = of.items.iter().map(|(name, _)| Cow::Borrowed(*name));
                self.map(names.zip(items).collect(), path)
            }
            Value::Table(_, rows) => {
                self.objects += 1;
                self.map(rows.into_iter().map(|(key, value)| (Cow::Owned(key), value)).collect(), path)
            }
            Value::Map(items) => {
                self.objects += 1;
                self.map(items, path)
            }
            simple if path.is_empty() => Ok(simple),
            _ => Err(Stop::Nothing),
        }
    }

    fn map(&mut self, items: Vec<(Cow<'static, str>, Value)>, path: &[String]) -> Result<Value, Stop> {
        let rest = match path.split_first() {
            Some((first, rest)) if first != "*" => {
                let found = items.into_iter().find(|(key, _)| key == first);
                return self.value(found.ok_or(Stop::Nothing)?.1, rest);
            }
            Some((_, rest)) => rest,
            None => &[],
        };
        let is_empty = items.is_empty();
        let mut kept = Vec::with_capacity(items.len());
        for (key, value) in items {
            match self.value(value, rest) {
                Ok(value) => kept.push((key, value)),
                Err(Stop::Nothing) => {}
                Err(failed @ Stop::Failed(_)) => return Err(failed),
            }
        }
        if kept.is_empty() && !is_empty { Err(Stop::Nothing) } else { Ok(Value::Map(kept)) }
    }

    fn list(&mut self, mut values: Vec<Value>, path: &[String]) -> Result<Value, Stop> {
        let rest = match path.split_first() {
            Some((first, rest)) if first != "*" => {
                let index = first.parse().ok().filter(|index| *index < values.len());
                return self.value(values.swap_remove(index.ok_or(Stop::Nothing)?), rest);
            }
            Some((_, rest)) => rest,
            None => &[],
        };
        if self.options.max_collection_size > 0 {
            values.truncate(self.options.max_collection_size);
        }
        let is_empty = values.is_empty();
        let mut kept = Vec::with_capacity(values.len());
        for value in values {
            match self.value(value, rest) {
                Ok(value) => kept.push(value),
                Err(Stop::Nothing) => {}
                Err(failed @ Stop::Failed(_)) => return Err(failed),
            }
        }
        if kept.is_empty() && !is_empty { Err(Stop::Nothing) } else { Ok(Value::List(kept)) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Options, extract};
    use crate::jmx::value::Value;

    fn registries() -> Value {
        let registry = |index| Value::map([("index", Value::Int(index)), ("meters", Value::Map(Vec::new()))]);
        Value::List(vec![registry(0), registry(1)])
    }

    fn path(text: &str) -> Vec<String> {
        text.split_terminator('/').map(ToOwned::to_owned).collect()
    }

    #[test]
    fn path_leads_through_keys_indices_and_stars() {
        for (given, expected) in [
            ("", registries()),
            ("1/index", Value::Int(1)),
            ("*/index", Value::List(vec![Value::Int(0), Value::Int(1)])),
            ("*/meters/*", Value::List(vec![Value::Map(Vec::new()), Value::Map(Vec::new())])),
            ("*/nope", Value::Null),
            ("2", Value::Null),
            ("-1", Value::Null),
            ("index", Value::Null),
            ("0/index/deeper", Value::Null),
        ] {
            assert_eq!(extract(registries(), &path(given), &Options::default()), Ok(expected), "{given}");
        }
    }

    #[test]
    fn levels_of_a_path_count_as_depth() {
        let options = |max_depth| Options { max_depth, ..Options::default() };
        for (max_depth, expected) in
            [(1, Value::text("{index=1, meters={}}")), (2, Value::text("1")), (3, Value::Int(1))]
        {
            assert_eq!(
                extract(registries(), &path("1/index"), &options(max_depth)),
                Ok(expected),
                "{max_depth}"
            );
        }
    }
}

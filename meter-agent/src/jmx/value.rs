//! Values of beans.

use std::{
    borrow::Cow,
    fmt::{self, Write as _},
};

use super::open_type::{CompositeType, KEY, OpenType, TableType, VALUE};

/// A value that an attribute has, or an operation takes or returns.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing.
    Null,
    /// `java.lang.Boolean`.
    Bool(bool),
    /// `java.lang.Integer`.
    Int(i32),
    /// `java.lang.Long`.
    Long(i64),
    /// `java.lang.Double`.
    Double(f64),
    /// `java.lang.String`.
    Text(String),
    /// `javax.management.ObjectName`.
    Name(String),
    /// An array.
    List(Vec<Self>),
    /// A composite's items, in the order of its type's.
    Composite(&'static CompositeType, Vec<Self>),
    /// A table's rows by their keys.
    Table(&'static TableType, Vec<(String, Self)>),
    /// A map that no bean has: what holds the values of several attributes, or of several beans.
    Map(Vec<(Cow<'static, str>, Self)>),
}

/// Bytes of a value's text, about. A table of 100,000 rows would have a hundred million.
const MAX_TEXT: usize = 256 * 1024;

impl Value {
    /// Makes a Long of a counter, which stays at [`i64::MAX`] above it: Java has no greater number.
    #[must_use]
    pub fn count(count: u64) -> Self {
        Self::Long(i64::try_from(count).unwrap_or(i64::MAX))
    }

    /// Makes a text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// Makes a map of a fixed set of keys.
    #[must_use]
    pub fn map<const N: usize>(items: [(&'static str, Self); N]) -> Self {
        Self::Map(items.into_iter().map(|(name, value)| (Cow::Borrowed(name), value)).collect())
    }

    /// Returns whether it is a value of this type. Null is one of any.
    #[must_use]
    pub fn is_of(&self, open_type: &OpenType) -> bool {
        match (self, open_type) {
            (Self::Null, _)
            | (Self::Bool(_), OpenType::Boolean)
            | (Self::Int(_), OpenType::Integer)
            | (Self::Long(_), OpenType::Long)
            | (Self::Double(_), OpenType::Double)
            | (Self::Text(_), OpenType::Text)
            | (Self::Name(_), OpenType::Name) => true,
            (Self::List(values), OpenType::Array(element)) => values.iter().all(|value| value.is_of(element)),
            (Self::Composite(own, items), OpenType::Composite(composite)) => {
                own == composite
                    && items.len() == own.items.len()
                    && items.iter().zip(own.items).all(|(item, (_, of))| item.is_of(of))
            }
            (Self::Table(own, rows), OpenType::Table(table)) => {
                own == table && rows.iter().all(|(_, value)| value.is_of(&own.value()))
            }
            _ => false,
        }
    }

    /// Returns it as Java's `toString` writes it, cut off where it grows beyond a quarter of a MiB.
    #[must_use]
    pub fn to_java_text(&self) -> String {
        let mut text = Bounded(String::new());
        if write!(text, "{}", Java(self)).is_err() {
            text.0.push_str("...");
        }
        text.0
    }
}

/// A text that takes no more once it is long.
struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() > MAX_TEXT {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

struct Java<'a>(&'a Value);

impl fmt::Display for Java<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::Null => f.write_str("null"),
            Value::Bool(value) => value.fmt(f),
            Value::Int(value) => value.fmt(f),
            Value::Long(value) => value.fmt(f),
            Value::Double(value) => fmt::Debug::fmt(value, f),
            Value::Text(value) | Value::Name(value) => f.write_str(value),
            Value::List(values) => {
                let items = values.iter().map(|value| ("", Java(value)));
                joined(f, "[", items, "]")
            }
            Value::Composite(of, items) => {
                write!(f, "javax.management.openmbean.CompositeDataSupport(compositeType={of},contents=")?;
                let items = of.items.iter().zip(items).map(|((name, _), item)| (*name, Java(item)));
                joined(f, "{", items, "}")?;
                f.write_str(")")
            }
            Value::Table(of, rows) => {
                let row = of.row;
                write!(f, "javax.management.openmbean.TabularDataSupport(tabularType={of},contents={{")?;
                for (index, (key, value)) in rows.iter().enumerate() {
                    let comma = if index > 0 { ", " } else { "" };
                    write!(
                        f,
                        "{comma}[{key}]=javax.management.openmbean.CompositeDataSupport(compositeType={row},\
                         contents={{{KEY}={key}, {VALUE}={}}})",
                        Java(value)
                    )?;
                }
                f.write_str("})")
            }
            Value::Map(items) => {
                joined(f, "{", items.iter().map(|(key, value)| (key.as_ref(), Java(value))), "}")
            }
        }
    }
}

fn joined<'a>(
    f: &mut fmt::Formatter<'_>,
    open: &str,
    items: impl Iterator<Item = (&'a str, Java<'a>)>,
    close: &str,
) -> fmt::Result {
    f.write_str(open)?;
    for (index, (key, value)) in items.enumerate() {
        let comma = if index > 0 { ", " } else { "" };
        let equals = if key.is_empty() { "" } else { "=" };
        write!(f, "{comma}{key}{equals}{value}")?;
    }
    f.write_str(close)
}

#[cfg(test)]
mod tests {
    use super::{MAX_TEXT, Value};

    #[test]
    fn counter_beyond_java_stays_at_javas_greatest() {
        assert_eq!(Value::count(u64::MAX), Value::Long(i64::MAX));
        assert_eq!(Value::count(9_007_199_254_740_993), Value::Long(9_007_199_254_740_993));
    }

    #[test]
    fn long_text_is_cut_off() {
        let text = Value::List(vec![Value::Int(7); MAX_TEXT]).to_java_text();
        assert!(text.starts_with("[7, 7, ") && text.ends_with("..."));
        assert!(text.len() < MAX_TEXT + 100, "{}", text.len());
    }

    #[test]
    fn simple_values_are_written_as_java_writes_them() {
        let map =
            Value::map([("a", Value::Null), ("b", Value::List(vec![Value::Bool(true), Value::Double(1.0)]))]);
        assert_eq!(map.to_java_text(), "{a=null, b=[true, 1.0]}");
    }
}

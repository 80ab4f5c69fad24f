//! Values as JMX has them, what can go wrong, and the envelope that both travel in.

use std::borrow::Cow;

use serde::{
    Serialize, Serializer,
    ser::{SerializeMap as _, SerializeSeq as _},
};
use serde_json::{Map, Value as Json};

/// A value of a bean, of the types that an MXBean maps its own to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Nothing.
    Null,
    /// `java.lang.Boolean`.
    Bool(bool),
    /// `java.lang.Integer`.
    Int(i32),
    /// `java.lang.Long`, of which a counter uses the positive half.
    ///
    /// Written in full, never as a float. Above [`i64::MAX`], where Java has no number, it stays at [`i64::MAX`].
    Long(u64),
    /// `java.lang.String`.
    Text(String),
    /// An array.
    List(Vec<Self>),
    /// A composite's items or a table's rows by their key.
    Map(Vec<(Cow<'static, str>, Self)>),
}

impl Value {
    /// Makes the items of a composite.
    #[must_use]
    pub fn composite<const N: usize>(items: [(&'static str, Self); N]) -> Self {
        Self::Map(items.into_iter().map(|(name, value)| (Cow::Borrowed(name), value)).collect())
    }

    /// Returns what a path leads to: keys of maps, indices of lists, `*` for each of a level.
    ///
    /// `None` where there is no such key or index. A `*` keeps its level and leaves out what the rest of the path
    /// doesn't lead to.
    #[must_use]
    pub fn at(self, path: &[String]) -> Option<Self> {
        let Some((first, rest)) = path.split_first() else { return Some(self) };
        match self {
            Self::Map(items) if first == "*" => Some(Self::Map(
                items.into_iter().filter_map(|(key, value)| Some((key, value.at(rest)?))).collect(),
            )),
            Self::List(items) if first == "*" => {
                Some(Self::List(items.into_iter().filter_map(|value| value.at(rest)).collect()))
            }
            Self::Map(items) => items.into_iter().find(|(key, _)| key == first)?.1.at(rest),
            Self::List(mut items) => {
                let index: usize = first.parse().ok()?;
                (index < items.len()).then(|| items.swap_remove(index))?.at(rest)
            }
            _ => None,
        }
    }
}

/// How longs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LongForm {
    /// As JSON integers.
    #[default]
    Number,
    /// As texts, for readers whose numbers are floats.
    Text,
}

/// A value on its way to JSON.
struct Printed<'a>(&'a Value, LongForm);

impl Serialize for Printed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(value, form) = *self;
        match value {
            Value::Null => serializer.serialize_unit(),
            Value::Bool(value) => serializer.serialize_bool(*value),
            Value::Int(value) => serializer.serialize_i32(*value),
            Value::Long(value) => {
                let value = (*value).min(i64::MAX.unsigned_abs());
                match form {
                    LongForm::Number => serializer.serialize_u64(value),
                    LongForm::Text => serializer.collect_str(&value),
                }
            }
            Value::Text(value) => serializer.serialize_str(value),
            Value::List(values) => {
                let mut list = serializer.serialize_seq(Some(values.len()))?;
                for value in values {
                    list.serialize_element(&Printed(value, form))?;
                }
                list.end()
            }
            Value::Map(items) => {
                let mut map = serializer.serialize_map(Some(items.len()))?;
                for (key, value) in items {
                    map.serialize_entry(key, &Printed(value, form))?;
                }
                map.end()
            }
        }
    }
}

/// Why a request has no value, in the words of the Java agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The status in the envelope.
    pub status: u16,
    /// The class of the exception that the Java agent would throw.
    pub class: &'static str,
    /// What is wrong.
    pub message: String,
}

impl Failure {
    /// The request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self { status: 400, class: "java.lang.IllegalArgumentException", message: message.into() }
    }

    /// There is no such bean.
    pub fn no_bean(name: impl Into<String>) -> Self {
        Self { status: 404, class: "javax.management.InstanceNotFoundException", message: name.into() }
    }

    /// The bean has no such attribute, or not for this use.
    pub fn no_attribute(message: impl Into<String>) -> Self {
        Self { status: 404, class: "javax.management.AttributeNotFoundException", message: message.into() }
    }

    /// The bean has no such operation.
    pub fn no_operation(name: impl Into<String>) -> Self {
        Self { status: 500, class: "java.lang.NoSuchMethodException", message: name.into() }
    }

    /// The operation was called with null for something that must be there.
    #[must_use]
    pub fn null_argument() -> Self {
        let class = "java.lang.NullPointerException";
        Self { status: 500, class, message: class.to_owned() }
    }

    /// The answer would be too long.
    pub fn too_long(message: impl Into<String>) -> Self {
        Self { status: 500, class: "java.lang.IllegalStateException", message: message.into() }
    }

    /// The agent doesn't do this, though the protocol knows it.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self { status: 500, class: "java.lang.UnsupportedOperationException", message: message.into() }
    }

    /// Returns the error as one text, which takes a value's place where errors are to be ignored.
    #[must_use]
    pub fn as_text(&self) -> String {
        to_json(&self.fields())
    }

    fn fields(&self) -> ErrorFields<'_> {
        ErrorFields {
            error_type: self.class,
            marker: true,
            error_type_jmx: self.class.starts_with("javax.management.").then_some(self.class),
            error: &self.message,
        }
    }
}

#[derive(Serialize)]
struct ErrorFields<'a> {
    error_type: &'a str,
    #[serde(rename = ".error")]
    marker: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_type_jmx: Option<&'a str>,
    error: &'a str,
}

#[derive(Serialize)]
struct SuccessEnvelope<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<&'a Map<String, Json>>,
    value: Printed<'a>,
    status: u16,
    timestamp: u64,
}

#[derive(Serialize)]
struct ErrorEnvelope<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<&'a Map<String, Json>>,
    #[serde(flatten)]
    fields: ErrorFields<'a>,
    status: u16,
}

/// Returns the envelope of one answer. `echo` is what it answers, `timestamp` seconds since the Unix epoch.
#[must_use]
pub fn envelope(
    echo: Option<&Map<String, Json>>,
    outcome: &Result<Value, Failure>,
    long_form: LongForm,
    timestamp: u64,
) -> String {
    match outcome {
        Ok(value) => to_json(&SuccessEnvelope {
            request: echo,
            value: Printed(value, long_form),
            status: 200,
            timestamp,
        }),
        Err(failure) => {
            to_json(&ErrorEnvelope { request: echo, fields: failure.fields(), status: failure.status })
        }
    }
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("keys are texts, and a text takes every byte")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};
    use serde_json::json;

    use super::{Failure, LongForm, Value, envelope};

    fn registries() -> Value {
        let registry =
            |index| Value::composite([("index", Value::Int(index)), ("meters", Value::Map(Vec::new()))]);
        Value::List(vec![registry(0), registry(1)])
    }

    fn path(text: &str) -> Vec<String> {
        text.split_terminator('/').map(ToOwned::to_owned).collect()
    }

    #[test]
    fn path_leads_through_keys_indices_and_stars() {
        for (given, expected) in [
            ("", Some(registries())),
            ("1/index", Some(Value::Int(1))),
            ("*/index", Some(Value::List(vec![Value::Int(0), Value::Int(1)]))),
            ("*/nope", Some(Value::List(vec![]))),
            ("2", None),
            ("-1", None),
            ("index", None),
            ("0/index/deeper", None),
        ] {
            assert_eq!(registries().at(&path(given)), expected, "{given}");
        }
    }

    #[test]
    fn long_beyond_java_stays_at_javas_greatest() {
        let outcome =
            Ok(Value::List(vec![Value::Long(u64::MAX), Value::Long(9_007_199_254_740_993), Value::Int(-1)]));
        assert_eq!(
            envelope(None, &outcome, LongForm::Number, 7),
            r#"{"value":[9223372036854775807,9007199254740993,-1],"status":200,"timestamp":7}"#
        );
        assert_eq!(
            envelope(None, &outcome, LongForm::Text, 7),
            r#"{"value":["9223372036854775807","9007199254740993",-1],"status":200,"timestamp":7}"#
        );
    }

    #[test]
    fn error_names_its_class_twice_only_where_it_is_jmxs() {
        assert_eq!(
            Failure::no_attribute("No such attribute: Nope").as_text(),
            r#"{"error_type":"javax.management.AttributeNotFoundException",".error":true,"error_type_jmx":"javax.management.AttributeNotFoundException","error":"No such attribute: Nope"}"#
        );
        let echo = json!({"type": "exec"});
        let answer = envelope(echo.as_object(), &Err(Failure::no_operation("nope")), LongForm::Number, 7);
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&answer).unwrap(),
            json!({"request": {"type": "exec"}, "error_type": "java.lang.NoSuchMethodException", ".error": true,
                "error": "nope", "status": 500})
        );
    }

    proptest! {
        #[test]
        fn every_long_of_java_is_exact(value in any::<i64>()) {
            let value = value.unsigned_abs().min(i64::MAX.unsigned_abs());
            let answer = envelope(None, &Ok(Value::Long(value)), LongForm::Number, 0);
            prop_assert_eq!(&answer, &format!(r#"{{"value":{value},"status":200,"timestamp":0}}"#));
        }
    }
}

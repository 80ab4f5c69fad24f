//! What can go wrong, and the envelope that errors and values travel in.

use serde::{
    Serialize, Serializer,
    ser::{SerializeMap as _, SerializeSeq as _},
};
use serde_json::{Map, Value as Json};

use super::request::parameters::Options;
use crate::jmx::{bean::Exception, open_type::CompositeType, value::Value};

/// How longs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LongForm {
    /// As JSON integers.
    #[default]
    Number,
    /// As texts, for readers whose numbers are floats.
    Text,
}

/// Which errors have a stack trace: an empty one, since there is no Java stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StackTrace {
    /// None.
    #[default]
    Never,
    /// Those that Java code need not declare.
    Runtime,
    /// All.
    Always,
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
            Value::Long(value) => match form {
                LongForm::Number => serializer.serialize_i64(*value),
                LongForm::Text => serializer.collect_str(value),
            },
            Value::Double(value) => serializer.serialize_f64(*value),
            Value::Text(value) => serializer.serialize_str(value),
            Value::Name(name) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("objectName", name)?;
                map.end()
            }
            Value::List(values) => {
                let mut list = serializer.serialize_seq(Some(values.len()))?;
                for value in values {
                    list.serialize_element(&Printed(value, form))?;
                }
                list.end()
            }
            Value::Composite(CompositeType { items: of, .. }, items) => {
                entries(serializer, of.iter().map(|(name, _)| *name).zip(items), form)
            }
            Value::Table(_, rows) => {
                entries(serializer, rows.iter().map(|(key, value)| (key.as_str(), value)), form)
            }
            Value::Map(items) => {
                entries(serializer, items.iter().map(|(key, value)| (key.as_ref(), value)), form)
            }
        }
    }
}

fn entries<'a, S: Serializer>(
    serializer: S,
    items: impl Iterator<Item = (&'a str, &'a Value)>,
    form: LongForm,
) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(None)?;
    for (key, value) in items {
        map.serialize_entry(key, &Printed(value, form))?;
    }
    map.end()
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
        Exception::illegal_argument(message).into()
    }

    /// There is no such bean.
    pub fn no_bean(message: impl Into<String>) -> Self {
        Exception::no_bean(message).into()
    }

    /// A parameter is no number, or none that an int of Java's holds.
    #[must_use]
    pub fn no_number(text: &str) -> Self {
        Self::unexpected("java.lang.NumberFormatException", format!("For input string: \"{text}\""))
    }

    /// Something that the Java agent doesn't foresee either.
    pub fn unexpected(class: &'static str, message: impl Into<String>) -> Self {
        Self { status: 500, class, message: message.into() }
    }

    /// The client may not ask.
    #[must_use]
    pub fn denied() -> Self {
        Self { status: 403, class: "java.lang.Exception", message: "Access Denied".to_owned() }
    }

    /// Returns the error as one text, which takes a value's place where errors are to be ignored.
    #[must_use]
    pub fn as_text(&self) -> String {
        to_json(&self.fields())
    }

    fn is_of_jmx(&self) -> bool {
        self.class.starts_with("javax.management.")
    }

    fn fields(&self) -> ErrorFields<'_> {
        ErrorFields {
            error_type: self.class,
            marker: true,
            error_type_jmx: self.is_of_jmx().then_some(self.class),
            error: &self.message,
        }
    }
}

impl From<Exception> for Failure {
    fn from(exception: Exception) -> Self {
        let Exception { class, message } = exception;
        let status = match class {
            "javax.management.InstanceNotFoundException" | "javax.management.AttributeNotFoundException" => {
                404
            }
            "java.lang.IllegalArgumentException" => 400,
            _ => 500,
        };
        Self { status, class, message }
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
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Printed<'a>>,
    status: u16,
    timestamp: u64,
}

#[derive(Serialize)]
struct ErrorEnvelope<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<&'a Map<String, Json>>,
    #[serde(flatten)]
    fields: ErrorFields<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_value: Option<ErrorValue<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stacktrace: Option<&'a str>,
    status: u16,
}

/// The exception as a value.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorValue<'a> {
    message: &'a str,
    localized_message: &'a str,
    cause: Option<&'a str>,
    suppressed: [&'a str; 0],
}

/// Returns the envelope of one answer; nothing as its value says that it is not modified.
///
/// `echo` is the request that it repeats, `timestamp` seconds since the Unix epoch.
#[must_use]
pub fn envelope(
    echo: Option<&Map<String, Json>>,
    outcome: &Result<Option<Value>, Failure>,
    options: &Options,
    timestamp: u64,
) -> String {
    let failure = match outcome {
        Ok(value) => {
            let status = if value.is_some() { 200 } else { 304 };
            let value = value.as_ref().map(|value| Printed(value, options.long_form));
            return to_json(&SuccessEnvelope { request: echo, value, status, timestamp });
        }
        Err(failure) => failure,
    };
    let error_value = options.serialize_exception.then_some(ErrorValue {
        message: &failure.message,
        localized_message: &failure.message,
        cause: None,
        suppressed: [],
    });
    let has_trace = match options.stack_trace {
        StackTrace::Never => false,
        StackTrace::Runtime => !failure.is_of_jmx(),
        StackTrace::Always => true,
    };
    let stacktrace = has_trace.then_some("");
    to_json(&ErrorEnvelope {
        request: echo,
        fields: failure.fields(),
        error_value,
        stacktrace,
        status: failure.status,
    })
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("keys are texts, and a text takes every byte")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};
    use serde_json::json;

    use super::{Exception, Failure, LongForm, Options, Value, envelope};

    #[test]
    fn longs_are_numbers_or_texts_and_always_exact() {
        let outcome = Ok(Some(Value::List(vec![
            Value::count(u64::MAX),
            Value::Long(9_007_199_254_740_993),
            Value::Int(-1),
            Value::Double(0.5),
            Value::Double(f64::NAN),
        ])));
        assert_eq!(
            envelope(None, &outcome, &Options::default(), 7),
            r#"{"value":[9223372036854775807,9007199254740993,-1,0.5,null],"status":200,"timestamp":7}"#
        );
        let options = Options { long_form: LongForm::Text, ..Options::default() };
        assert_eq!(
            envelope(None, &outcome, &options, 7),
            r#"{"value":["9223372036854775807","9007199254740993",-1,0.5,null],"status":200,"timestamp":7}"#
        );
    }

    #[test]
    fn what_is_not_modified_has_no_value_and_null_is_one() {
        let options = Options::default();
        assert_eq!(envelope(None, &Ok(None), &options, 7), r#"{"status":304,"timestamp":7}"#);
        let null = envelope(None, &Ok(Some(Value::Null)), &options, 7);
        assert_eq!(null, r#"{"value":null,"status":200,"timestamp":7}"#);
    }

    #[test]
    fn error_names_its_class_twice_only_where_it_is_jmxs() {
        assert_eq!(
            Failure::from(Exception::no_attribute("No such attribute: Nope")).as_text(),
            r#"{"error_type":"javax.management.AttributeNotFoundException",".error":true,"error_type_jmx":"javax.management.AttributeNotFoundException","error":"No such attribute: Nope"}"#
        );
        let echo = json!({"type": "exec"});
        let outcome = Err(Failure::from(Exception::no_operation("nope")));
        let answer = envelope(echo.as_object(), &outcome, &Options::default(), 7);
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&answer).unwrap(),
            json!({"request": {"type": "exec"}, "error_type": "java.lang.NoSuchMethodException", ".error": true,
                "error": "nope", "status": 500})
        );
    }

    proptest! {
        #[test]
        fn every_long_of_java_is_exact(value in any::<i64>()) {
            let answer = envelope(None, &Ok(Some(Value::Long(value))), &Options::default(), 0);
            prop_assert_eq!(&answer, &format!(r#"{{"value":{value},"status":200,"timestamp":0}}"#));
        }
    }
}

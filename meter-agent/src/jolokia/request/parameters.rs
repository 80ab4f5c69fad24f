//! Processing parameters: how a request is to be answered.

use percent_encoding::percent_decode_str;
use serde_json::Value as Json;

use super::super::response::{Failure, LongForm, StackTrace};

/// The processing parameters. Those of the body win over those of the query, and unknown ones are ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// `maxDepth`: levels of a value that are written out; 0 for all.
    pub max_depth: usize,
    /// `maxCollectionSize`: elements of an array that are written; 0 for all.
    pub max_collection_size: usize,
    /// `maxObjects`: composites, tables and arrays that are written out; 0 for all.
    pub max_objects: usize,
    /// `ifModifiedSince`: seconds since the Unix epoch, as the client wrote them.
    pub if_modified_since: Option<String>,
    /// `serializeLong`: how longs are written.
    pub long_form: LongForm,
    /// `includeStackTrace`: which errors have one.
    pub stack_trace: StackTrace,
    /// `serializeException`: whether an error has the exception as a value.
    pub serialize_exception: bool,
    /// `ignoreErrors`: where several attributes are read, an error stands in for the value that it concerns.
    pub ignore_errors: bool,
    /// `includeRequest`: whether the answer repeats the request.
    pub include_request: bool,
    /// `canonicalNaming`: whether the answer repeats a name with its keys in order. Names of beans always are so.
    pub canonical_naming: bool,
    /// What a list says beside the usual.
    pub list: ListOptions,
    /// The first number of the body that is none; it fails what limits concern.
    pub broken: Option<Failure>,
}

/// What a list says beside the usual.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// `listKeys`: the keys of each name, taken apart.
    pub keys: bool,
    /// `listCache`: the beans below `domains`, beside a `cache` of what several share (nothing).
    pub cache: bool,
    /// `listInterfaces`: the Java interfaces of each bean.
    pub interfaces: bool,
    /// `openTypes`: the open types of attributes, parameters and results.
    pub open_types: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_depth: 0,
            max_collection_size: 0,
            max_objects: 0,
            if_modified_since: None,
            long_form: LongForm::Number,
            stack_trace: StackTrace::Never,
            serialize_exception: false,
            ignore_errors: false,
            include_request: true,
            canonical_naming: false,
            list: ListOptions::default(),
            broken: None,
        }
    }
}

impl Options {
    /// Reads the parameters of a query.
    ///
    /// # Errors
    ///
    /// Which one has a value that it can't have.
    pub fn from_query(query: Option<&str>) -> Result<Self, Failure> {
        let mut options = Self::default();
        for (name, value) in pairs(query.unwrap_or_default()) {
            let invalid = || Failure::bad_request(format!("Invalid value of {name} parameter"));
            if let Some(flag) = options.flag(&name) {
                *flag = value.to_ascii_lowercase().parse().map_err(|_| invalid())?;
            } else if let Some(limit) = options.limit(&name) {
                *limit = number(&value).ok_or_else(invalid)?;
            } else if name == "ifModifiedSince" {
                if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err(invalid());
                }
                options.if_modified_since = Some(value);
            } else {
                options.word(&name, &value);
            }
        }
        Ok(options)
    }

    /// Takes over the `config` of a body, whose values may be texts as well.
    #[must_use]
    pub fn with_config(mut self, config: Option<&Json>) -> Self {
        for (name, value) in config.and_then(Json::as_object).into_iter().flatten() {
            let value = match value {
                Json::Null => continue,
                Json::String(text) => text.clone(),
                other => other.to_string(),
            };
            if let Some(flag) = self.flag(name) {
                *flag = value.eq_ignore_ascii_case("true");
            } else if let Some(limit) = self.limit(name) {
                match number(&value) {
                    Some(given) => *limit = given,
                    None => self.broken = self.broken.or_else(|| Some(Failure::no_number(&value))),
                }
            } else if name == "ifModifiedSince" {
                self.if_modified_since = Some(value);
            } else {
                self.word(name, &value);
            }
        }
        self
    }

    fn flag(&mut self, name: &str) -> Option<&mut bool> {
        Some(match name {
            "serializeException" => &mut self.serialize_exception,
            "ignoreErrors" => &mut self.ignore_errors,
            "includeRequest" => &mut self.include_request,
            "canonicalNaming" => &mut self.canonical_naming,
            "listKeys" => &mut self.list.keys,
            "listCache" => &mut self.list.cache,
            "listInterfaces" => &mut self.list.interfaces,
            "openTypes" => &mut self.list.open_types,
            _ => return None,
        })
    }

    fn limit(&mut self, name: &str) -> Option<&mut usize> {
        Some(match name {
            "maxDepth" => &mut self.max_depth,
            "maxCollectionSize" => &mut self.max_collection_size,
            "maxObjects" => &mut self.max_objects,
            _ => return None,
        })
    }

    fn word(&mut self, name: &str, value: &str) {
        match name {
            "serializeLong" if value.eq_ignore_ascii_case("string") => self.long_form = LongForm::Text,
            "serializeLong" => self.long_form = LongForm::Number,
            "includeStackTrace" if value.eq_ignore_ascii_case("true") => {
                self.stack_trace = StackTrace::Always
            }
            "includeStackTrace" if value.eq_ignore_ascii_case("runtime") => {
                self.stack_trace = StackTrace::Runtime
            }
            "includeStackTrace" => self.stack_trace = StackTrace::Never,
            _ => {}
        }
    }
}

/// Reads an int of Java's; a negative one is no limit.
fn number(text: &str) -> Option<usize> {
    let number: i32 = text.parse().ok()?;
    Some(usize::try_from(number).unwrap_or(0))
}

/// How the whole answer is sent: parameters of the query only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Form {
    /// `callback`: the JavaScript function that the answer is an argument of.
    pub callback: Option<String>,
    /// `mimeType` is `text/plain`.
    pub plain: bool,
}

impl Form {
    /// Reads the parameters of a query.
    ///
    /// # Errors
    ///
    /// Which one has a value that it can't have.
    pub fn from_query(query: Option<&str>) -> Result<Self, Failure> {
        let mut form = Self::default();
        for (name, value) in pairs(query.unwrap_or_default()) {
            match (name.as_str(), value.as_str()) {
                ("mimeType", "text/plain") => form.plain = true,
                ("mimeType", "application/json") => form.plain = false,
                ("mimeType", _) => {
                    let message = format!("Invalid mime type '{value}': application/json or text/plain");
                    return Err(Failure::bad_request(message));
                }
                ("callback", function) if is_function(function) => form.callback = Some(value),
                ("callback", _) => {
                    return Err(Failure::bad_request(
                        "Invalid callback name given, which must be a valid javascript function name",
                    ));
                }
                _ => {}
            }
        }
        Ok(form)
    }
}

/// Returns whether a text can be nothing but the name of a function, perhaps an object's: it becomes a part of a script.
fn is_function(name: &str) -> bool {
    name.split('.').all(|part| {
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == '$')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '$')
    })
}

/// Returns the names and values of a query.
pub(super) fn pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    query.split('&').map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name), decode(value))
    })
}

/// Takes the percent encoding off. A plus sign stays one; what isn't UTF-8 becomes a replacement character.
pub(super) fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

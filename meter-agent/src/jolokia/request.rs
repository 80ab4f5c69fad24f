//! Requests: from the path of a GET or the JSON of a POST, single or in bulk.

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value as Json};

use super::{
    name::ObjectName,
    response::{Failure, LongForm},
};

/// Requests in one bulk. More is answered with an error before any is looked at.
pub const MAX_BULK: usize = 10_000;

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The call itself.
    pub call: Call,
    /// The request as the answer repeats it, by which some clients tell what it answers.
    pub echo: Map<String, Json>,
    /// How to answer.
    pub options: Options,
}

/// A call with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// What the agent is.
    Version,
    /// Attributes of a bean, or of each bean that a pattern matches.
    Read {
        /// Which beans.
        beans: ObjectName,
        /// Which attributes.
        attributes: Attributes,
        /// Where in the value.
        path: Vec<String>,
    },
    /// An operation of a bean, or of each bean that a pattern matches.
    Exec {
        /// Which beans.
        beans: ObjectName,
        /// Its name, perhaps with its signature.
        operation: String,
        /// Its arguments.
        arguments: Vec<Json>,
        /// Where in the value.
        path: Vec<String>,
    },
    /// The names of beans that a pattern matches.
    Search {
        /// The pattern.
        beans: ObjectName,
    },
    /// A type of the protocol that this agent doesn't answer.
    Unanswered(&'static str),
}

/// Attributes of one bean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attributes {
    /// One, whose value stands alone.
    One(String),
    /// Several, each under its name.
    Several(Vec<String>),
    /// All, each under its name.
    All,
}

/// How to answer: the processing parameters that this agent knows. Others are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// `serializeLong`: how longs are written.
    pub long_form: LongForm,
    /// `ignoreErrors`: where several attributes are read, an error stands in for the value that it concerns.
    pub ignore_errors: bool,
    /// `includeRequest`: whether the answer repeats the request.
    pub include_request: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { long_form: LongForm::Number, ignore_errors: false, include_request: true }
    }
}

impl Options {
    fn from_query(query: Option<&str>) -> Self {
        let mut options = Self::default();
        for (name, value) in pairs(query.unwrap_or_default()) {
            options.set(&name, &value);
        }
        options
    }

    fn with_config(mut self, config: Option<&Json>) -> Self {
        for (name, value) in config.and_then(Json::as_object).into_iter().flatten() {
            match value {
                Json::String(text) => self.set(name, text),
                Json::Null => {}
                other => self.set(name, &other.to_string()),
            }
        }
        self
    }

    fn set(&mut self, name: &str, value: &str) {
        let yes = value.eq_ignore_ascii_case("true");
        match name {
            "serializeLong" if value.eq_ignore_ascii_case("string") => self.long_form = LongForm::Text,
            "serializeLong" => self.long_form = LongForm::Number,
            "ignoreErrors" => self.ignore_errors = yes,
            "includeRequest" => self.include_request = yes,
            _ => {}
        }
    }
}

/// A request, or why it is none.
pub type Parsed = Result<Request, Failure>;

/// The requests of one body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Posted {
    /// One, answered alone.
    One(Box<Parsed>),
    /// An array, answered by an array of the same length and order.
    Bulk(Vec<Parsed>),
}

/// Reads the request of a GET: `path` is what follows the agent's base, percent-encoded as it came.
///
/// # Errors
///
/// What is wrong with it.
pub fn from_path(path: &str, query: Option<&str>) -> Parsed {
    let alternative = pairs(query.unwrap_or_default()).find(|(name, _)| name == "p");
    let text = match alternative {
        Some((_, text)) => text,
        None => decode(path),
    };
    let mut segments = split_path(&text).into_iter();
    let mut fields = Fields::new(Method::Get, segments.next().unwrap_or_else(|| "version".to_owned()));
    match fields.kind.as_str() {
        "read" => {
            fields.mbean = segments.next();
            fields.attributes = segments.next().map_or(Attributes::All, |text| match text.as_str() {
                "*" => Attributes::All,
                several if several.contains(',') => Attributes::Several(
                    several.split(',').filter(|name| !name.is_empty()).map(ToOwned::to_owned).collect(),
                ),
                _ => Attributes::One(text),
            });
            fields.path = join_path(segments);
        }
        "exec" => {
            fields.mbean = segments.next();
            fields.operation = segments.next();
            fields.arguments = segments.map(argument).collect();
        }
        "search" => fields.mbean = segments.next(),
        _ => {}
    }
    fields.into_request(Options::from_query(query))
}

/// Reads the body of a POST.
///
/// # Errors
///
/// That it isn't JSON, not an object or an array, or an array of too many.
pub fn from_body(body: &[u8], query: Option<&str>) -> Result<Posted, Failure> {
    // serde_json ends at a depth of 128, which bounds what a hostile body makes of the stack.
    let json: Json = serde_json::from_slice(body)
        .map_err(|error| Failure::bad_request(format!("Invalid JSON request: {error}")))?;
    let options = Options::from_query(query);
    match json {
        Json::Object(object) => Ok(Posted::One(Box::new(from_object(&object, options)))),
        Json::Array(items) if items.len() > MAX_BULK => Err(Failure::bad_request(format!(
            "{} requests in one bulk: at most {MAX_BULK} are answered; split it",
            items.len()
        ))),
        Json::Array(items) => Ok(Posted::Bulk(
            items
                .iter()
                .map(|item| match item {
                    Json::Object(object) => from_object(object, options),
                    _ => Err(Failure::bad_request("Invalid JSON Request. Expected Object")),
                })
                .collect(),
        )),
        _ => Err(Failure::bad_request("Invalid JSON Request. Expected Object or Array")),
    }
}

fn from_object(object: &Map<String, Json>, options: Options) -> Parsed {
    let kind = text_of(object, "type")?.ok_or_else(|| Failure::bad_request("No type given"))?;
    let mut fields = Fields::new(Method::Post, kind);
    fields.mbean = text_of(object, "mbean")?;
    fields.operation = text_of(object, "operation")?;
    fields.attributes = match object.get("attribute") {
        None | Some(Json::Null) => Attributes::All,
        Some(Json::String(name)) => Attributes::One(name.clone()),
        Some(Json::Array(names)) if names.is_empty() => Attributes::All,
        Some(Json::Array(names)) => Attributes::Several(texts(names, "attribute")?),
        Some(_) => return Err(Failure::bad_request("attribute must be a text or an array of texts")),
    };
    fields.path = match object.get("path") {
        None | Some(Json::Null) => None,
        Some(Json::String(path)) => Some(path.clone()).filter(|path| !path.is_empty()),
        Some(Json::Array(segments)) => join_path(texts(segments, "path")?.into_iter()),
        Some(_) => return Err(Failure::bad_request("path must be a text")),
    };
    fields.arguments = match object.get("arguments") {
        None | Some(Json::Null) => Vec::new(),
        Some(Json::Array(arguments)) => arguments.clone(),
        Some(_) => return Err(Failure::bad_request("arguments must be an array")),
    };
    fields.into_request(options.with_config(object.get("config")))
}

fn text_of(object: &Map<String, Json>, key: &str) -> Result<Option<String>, Failure> {
    match object.get(key) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(Failure::bad_request(format!("{key} must be a text"))),
    }
}

fn texts(items: &[Json], key: &str) -> Result<Vec<String>, Failure> {
    let text = |item: &Json| item.as_str().map(ToOwned::to_owned);
    let all: Option<Vec<_>> = items.iter().map(text).collect();
    all.ok_or_else(|| Failure::bad_request(format!("each element of {key} must be a text")))
}

/// How a request came, which its error messages name.
#[derive(Debug, Clone, Copy)]
enum Method {
    Get,
    Post,
}

impl Method {
    const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
        }
    }
}

/// What a request of either form may hold.
#[derive(Debug)]
struct Fields {
    method: Method,
    kind: String,
    mbean: Option<String>,
    attributes: Attributes,
    operation: Option<String>,
    arguments: Vec<Json>,
    path: Option<String>,
}

impl Fields {
    fn new(method: Method, kind: String) -> Self {
        Self {
            method,
            kind: kind.to_ascii_lowercase(),
            mbean: None,
            attributes: Attributes::All,
            operation: None,
            arguments: Vec::new(),
            path: None,
        }
    }

    fn into_request(self, options: Options) -> Parsed {
        let mut echo = Map::new();
        let path = || split_path(self.path.as_deref().unwrap_or_default());
        let call = match self.kind.as_str() {
            "version" => Call::Version,
            "read" => {
                let beans = self.beans(&mut echo, "Read", "an ObjectName to read from (may be a pattern)")?;
                let attribute = match &self.attributes {
                    Attributes::One(name) => Json::from(name.as_str()),
                    Attributes::Several(names) => Json::from(names.as_slice()),
                    Attributes::All => Json::Array(Vec::new()),
                };
                echo.insert("attribute".to_owned(), attribute);
                Call::Read { beans, attributes: self.attributes.clone(), path: path() }
            }
            "exec" => {
                let beans = self.beans(&mut echo, "Exec", "an ObjectName to invoke an operation of")?;
                let operation = self
                    .operation
                    .clone()
                    .ok_or_else(|| self.incomplete("Exec", "an operation name to invoke"))?;
                echo.insert("operation".to_owned(), operation.as_str().into());
                if !self.arguments.is_empty() {
                    echo.insert("arguments".to_owned(), self.arguments.clone().into());
                }
                Call::Exec { beans, operation, arguments: self.arguments.clone(), path: path() }
            }
            "search" => Call::Search { beans: self.beans(&mut echo, "Search", "an ObjectName pattern")? },
            "list" => Call::Unanswered("list"),
            "write" => Call::Unanswered("write"),
            "notification" => Call::Unanswered("notification"),
            "config" => Call::Unanswered("config"),
            other => return Err(Failure::bad_request(format!("No type with name '{other}' exists"))),
        };
        if let (Some(path), Call::Read { .. } | Call::Exec { .. }) = (self.path, &call) {
            echo.insert("path".to_owned(), path.into());
        }
        echo.insert("type".to_owned(), self.kind.into());
        Ok(Request { call, echo, options })
    }

    fn beans(&self, echo: &mut Map<String, Json>, kind: &str, what: &str) -> Result<ObjectName, Failure> {
        let text = self.mbean.as_deref().ok_or_else(|| self.incomplete(kind, what))?;
        echo.insert("mbean".to_owned(), text.into());
        ObjectName::parse(text)
    }

    fn incomplete(&self, kind: &str, what: &str) -> Failure {
        Failure::bad_request(format!("{kind} {} requests require {what}", self.method.name()))
    }
}

/// Reads the two arguments of a GET that a segment can't hold as they are.
fn argument(segment: String) -> Json {
    match segment.as_str() {
        "[null]" => Json::Null,
        "\"\"" => Json::from(""),
        _ => Json::String(segment),
    }
}

/// Splits at slashes. `!` takes the special meaning from the character after it; empty segments are none.
fn split_path(text: &str) -> Vec<String> {
    let mut segments = vec![String::new()];
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '/' => segments.push(String::new()),
            '!' => segments.last_mut().expect("never empty").extend(characters.next()),
            other => segments.last_mut().expect("never empty").push(other),
        }
    }
    segments.retain(|segment| !segment.is_empty());
    segments
}

/// Joins segments into a text that [`split_path`] splits into the same; `None` where there are none.
fn join_path(segments: impl Iterator<Item = String>) -> Option<String> {
    let quoted: Vec<_> = segments.map(|segment| segment.replace('!', "!!").replace('/', "!/")).collect();
    (!quoted.is_empty()).then(|| quoted.join("/"))
}

fn pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    query.split('&').map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name), decode(value))
    })
}

/// Takes the percent encoding off. A plus sign stays one; what isn't UTF-8 becomes a replacement character.
fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests;

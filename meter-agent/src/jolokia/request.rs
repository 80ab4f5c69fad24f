//! Requests: from the path of a GET or the JSON of a POST, single or in bulk.

pub mod parameters;

use serde_json::{Map, Value as Json};

use self::parameters::{Options, decode, pairs};
use super::response::Failure;
use crate::jmx::name::ObjectName;

/// Requests in one bulk. More is answered with an error before any is looked at.
pub const MAX_BULK: usize = 10_000;

/// Attributes that one request may name: more than any bean has. Each that is missing may be an error in the answer, so a
/// body of them would hold up everybody else.
pub const MAX_ATTRIBUTES: usize = 1_000;

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The call itself.
    pub call: Call,
    /// The request as the answer repeats it, by which some clients tell what it answers.
    pub echo: Map<String, Json>,
    /// How to answer.
    pub options: Options,
    /// Whether it is for another agent, which this one would have to ask.
    pub is_for_target: bool,
}

/// A call with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// What the agent is.
    Version,
    /// How the agent is to be talked to.
    Config,
    /// Attributes of a bean, or of each bean that a pattern matches.
    Read {
        /// Which beans.
        beans: ObjectName,
        /// Which attributes.
        attributes: Attributes,
        /// Where in the value.
        path: Vec<String>,
    },
    /// A new value for an attribute.
    Write {
        /// Which bean.
        bean: ObjectName,
        /// Which attribute.
        attribute: String,
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
    /// What the beans say of themselves.
    List {
        /// Domain, keys, section, and further.
        path: Vec<String>,
    },
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
    let options = Options::from_query(query)?;
    let alternative = pairs(query.unwrap_or_default()).find(|(name, _)| name == "p");
    let text = match alternative {
        Some((_, text)) => text,
        None => decode(path),
    };
    let mut segments = split_path(&text).into_iter().filter(|segment| !segment.is_empty());
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
        "write" => {
            fields.mbean = segments.next();
            fields.attributes = segments.next().map_or(Attributes::All, Attributes::One);
            fields.value = segments.next().map_or(Json::Null, argument);
            fields.path = join_path(segments);
        }
        "exec" => {
            fields.mbean = segments.next();
            fields.operation = segments.next();
            fields.arguments = segments.map(argument).collect();
        }
        "search" => fields.mbean = segments.next(),
        "list" => fields.path = join_path(segments),
        _ => {}
    }
    fields.into_request(options)
}

/// Reads the body of a POST.
///
/// # Errors
///
/// That it isn't JSON, not an object or an array, or an array of too many; or what is wrong with the query.
pub fn from_body(body: &[u8], query: Option<&str>) -> Result<Posted, Failure> {
    let options = Options::from_query(query)?;
    // serde_json ends at a depth of 128, which bounds what a hostile body makes of the stack.
    let json: Json = serde_json::from_slice(body)
        .map_err(|error| Failure::bad_request(format!("Invalid JSON request: {error}")))?;
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
                    Json::Object(object) => from_object(object, options.clone()),
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
    if fields.kind == "read" && object.get("mbean") == Some(&Json::Null) {
        // A key that is there without a name is a pattern of all names; one that is not there is an error.
        fields.mbean = Some("*:*".to_owned());
    }
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
    fields.value = object.get("value").cloned().unwrap_or_default();
    fields.is_for_target = object.get("target").is_some_and(|target| !target.is_null());
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

/// What a request of either form may hold.
#[derive(Debug)]
struct Fields {
    method: Method,
    kind: String,
    mbean: Option<String>,
    attributes: Attributes,
    operation: Option<String>,
    arguments: Vec<Json>,
    value: Json,
    path: Option<String>,
    is_for_target: bool,
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
            value: Json::Null,
            path: None,
            is_for_target: false,
        }
    }

    fn into_request(self, options: Options) -> Parsed {
        let mut echo = Map::new();
        let call = self.call(&mut echo, options.canonical_naming)?;
        if let (Some(path), false) =
            (self.path, matches!(call, Call::Version | Call::Config | Call::Search { .. }))
        {
            echo.insert("path".to_owned(), path.into());
        }
        echo.insert("type".to_owned(), self.kind.into());
        Ok(Request { call, echo, options, is_for_target: self.is_for_target })
    }

    fn call(&self, echo: &mut Map<String, Json>, canonical: bool) -> Result<Call, Failure> {
        let path = || inner_path(self.path.as_deref().unwrap_or_default());
        Ok(match self.kind.as_str() {
            "version" => Call::Version,
            "config" => Call::Config,
            "read" => {
                let beans = self.beans(echo, canonical, "Read", "to read from (may be a pattern)")?;
                if let Attributes::Several(names) = &self.attributes
                    && names.len() > MAX_ATTRIBUTES
                {
                    return Err(Failure::bad_request(format!(
                        "{} attributes in one request: at most {MAX_ATTRIBUTES} are read; split it",
                        names.len()
                    )));
                }
                let attribute = match &self.attributes {
                    Attributes::One(name) => Json::from(name.as_str()),
                    Attributes::Several(names) => Json::from(names.as_slice()),
                    Attributes::All => Json::Array(Vec::new()),
                };
                echo.insert("attribute".to_owned(), attribute);
                Call::Read { beans, attributes: self.attributes.clone(), path: path() }
            }
            "write" => {
                let bean = self.beans(echo, canonical, "Write", "to write to")?;
                let Attributes::One(attribute) = &self.attributes else {
                    return Err(self.incomplete("Write", "an attribute name to write"));
                };
                echo.insert("attribute".to_owned(), attribute.as_str().into());
                if !self.value.is_null() {
                    echo.insert("value".to_owned(), self.value.clone());
                }
                Call::Write { bean, attribute: attribute.clone() }
            }
            "exec" => {
                let beans = self.beans(echo, canonical, "Exec", "to invoke an operation of")?;
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
            "search" => Call::Search { beans: self.beans(echo, canonical, "Search", "pattern")? },
            "list" => Call::List { path: path() },
            // `notification` among them, as in Jolokia 1: no bean of this agent sends any.
            other => return Err(Failure::bad_request(format!("No type with name '{other}' exists"))),
        })
    }

    fn beans(
        &self,
        echo: &mut Map<String, Json>,
        canonical: bool,
        kind: &str,
        what: &str,
    ) -> Result<ObjectName, Failure> {
        let Some(text) = self.mbean.as_deref() else {
            let what = match self.method {
                Method::Get => {
                    let what = what.trim_end_matches(" (may be a pattern)");
                    format!("at least 1 path element for ObjectName {what}")
                }
                Method::Post => format!("an ObjectName {what}"),
            };
            return Err(self.incomplete(kind, &what));
        };
        let name = ObjectName::parse(text)?;
        echo.insert("mbean".to_owned(), if canonical { name.canonical().into() } else { text.into() });
        Ok(name)
    }

    fn incomplete(&self, kind: &str, what: &str) -> Failure {
        let method = match self.method {
            Method::Get => "GET",
            Method::Post => "POST",
        };
        Failure::bad_request(format!("{kind} {method} requests require {what}"))
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

/// Splits an inner path. Empty segments at its end are none.
fn inner_path(text: &str) -> Vec<String> {
    let mut segments = split_path(text);
    while segments.last().is_some_and(String::is_empty) {
        segments.pop();
    }
    segments
}

/// Splits at slashes. `!` takes the special meaning from the character after it.
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
    segments
}

/// Joins segments into a text that [`split_path`] splits into the same; `None` where there are none.
pub(super) fn join_path(segments: impl Iterator<Item = String>) -> Option<String> {
    let quoted: Vec<_> = segments.map(|segment| segment.replace('!', "!!").replace('/', "!/")).collect();
    (!quoted.is_empty()).then(|| quoted.join("/"))
}

#[cfg(test)]
mod tests;

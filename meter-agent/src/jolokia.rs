//! The Jolokia protocol: JMX as JSON over HTTP, for everything that used to ask MidoNet's agent by JMX.
//!
//! A request is parsed by [`request`], dispatched here over the [`bean`]s by name, and answered in the envelope of
//! [`response`]. [`metering`] is the bean that MidoNet had, [`client`] the side that `mm-meter` is.
//!
//! Answered are `read`, `exec`, `search` and `version`, by GET and by POST, single and in bulk, with inner paths and
//! patterns, and of the processing parameters `serializeLong`, `ignoreErrors` and `includeRequest`; others are
//! ignored, as unknown ones are by the protocol. `list`, `write`, `notification` and `config` get an error of class
//! `java.lang.UnsupportedOperationException`. All values of one HTTP request are of one snapshot.
//!
//! Errors are worded as Jolokia 2 words them and, as Jolokia 1 does, always sent with HTTP status 200 and their own
//! in the body: so one bad request of a bulk costs only its own answer. An argument too many is such an error, as
//! in Jolokia 1; Jolokia 2 takes it for an inner path and answers null.
//!
//! Bounds: the body and the time for an answer, by [`crate::http::server::Limits`]; the body's depth, 128; a bulk's
//! length, [`request::MAX_BULK`], and its answer's, [`MAX_ANSWER`].

pub mod bean;
pub mod client;
pub mod metering;
pub mod name;
pub mod request;
pub mod response;

use std::{
    borrow::Cow,
    collections::BTreeSet,
    time::{SystemTime, UNIX_EPOCH},
};

use bean::{Bean, Totals};
use metering::METERING;
use name::ObjectName;
use request::{Attributes, Call, Options, Parsed, Posted, Request};
use response::{Failure, LongForm, Value};

use crate::{
    http::{self, Response, StatusCode},
    publish::SnapshotReader,
};

/// The path that everything is served below.
pub const BASE: &str = "/jolokia";

/// Bytes of a bulk's answer. The request that would make it longer, and all after it, get an error instead.
pub const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// The protocol's version that `version` claims: Jolokia 1.7's. What 8 adds is mostly in `list`.
const PROTOCOL: &str = "7.2";

const CONTENT_TYPE: &str = "application/json; charset=utf-8";

const BEANS: &[Bean] = &[METERING];

/// What `version` says of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentInfo {
    /// Which agent it is: the host's name, say.
    pub id: String,
    /// The agent's own version.
    pub version: String,
}

/// Answers one HTTP request.
pub async fn answer(reader: &SnapshotReader, request: http::Request, info: &AgentInfo) -> Response {
    let Some(path) = below_base(&request.path) else {
        let line = format!("nothing here: the Jolokia protocol is served below {BASE}/, try {BASE}/version");
        return Response::text(StatusCode::NOT_FOUND, &line);
    };
    let query = request.query.as_deref();
    let posted = match request.method.as_str() {
        "GET" | "HEAD" => Ok(Posted::One(Box::new(request::from_path(path, query)))),
        "POST" => request::from_body(&request.body, query),
        other => {
            let line = format!("HTTP method {other} is not supported: GET or POST");
            return Response::text(StatusCode::METHOD_NOT_ALLOWED, &line);
        }
    };
    let posted = posted.unwrap_or_else(|failure| Posted::One(Box::new(Err(failure))));
    let parsed = match &posted {
        Posted::One(one) => std::slice::from_ref(&**one),
        Posted::Bulk(all) => all.as_slice(),
    };
    let totals = if parsed.iter().flatten().any(asks_for_totals) {
        Totals::fresh(reader).await
    } else {
        Totals::latest(reader)
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
    let agent = Agent { totals: &totals, info, now };
    let body = match posted {
        Posted::One(one) => agent.envelope(&one),
        Posted::Bulk(all) => agent.bulk(&all, MAX_ANSWER).await,
    };
    Response::ok(CONTENT_TYPE, body)
}

/// Returns what follows the base; `None` for a path elsewhere.
fn below_base(path: &str) -> Option<&str> {
    let rest = path.strip_prefix(BASE)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

fn asks_for_totals(request: &Request) -> bool {
    matches!(request.call, Call::Read { .. } | Call::Exec { .. })
}

/// What the requests of one HTTP request are answered from.
struct Agent<'a> {
    totals: &'a Totals,
    info: &'a AgentInfo,
    /// Seconds since the Unix epoch.
    now: u64,
}

impl Agent<'_> {
    async fn bulk(&self, all: &[Parsed], max: usize) -> String {
        let mut body = String::from("[");
        let mut full = false;
        for (index, parsed) in all.iter().enumerate() {
            if index > 0 {
                body.push(',');
            }
            // The rest of a bulk that is too long isn't even worked out.
            let one = if full { None } else { Some(self.envelope(parsed)) };
            match one.filter(|one| body.len() + one.len() <= max) {
                Some(one) => body.push_str(&one),
                None => {
                    full = true;
                    let message = format!("the answer to this bulk is longer than {max} bytes; split it");
                    let echo = parsed.as_ref().ok().map(|request| &request.echo);
                    let failure = Err(Failure::too_long(message));
                    body.push_str(&response::envelope(echo, &failure, LongForm::Number, self.now));
                }
            }
            // Others have their turn, and the server its chance to end what takes too long.
            tokio::task::yield_now().await;
        }
        body.push(']');
        body
    }

    fn envelope(&self, parsed: &Parsed) -> String {
        match parsed {
            Ok(request) => {
                let echo = request.options.include_request.then_some(&request.echo);
                response::envelope(echo, &self.outcome(request), request.options.long_form, self.now)
            }
            Err(failure) => response::envelope(None, &Err(failure.clone()), LongForm::Number, self.now),
        }
    }

    fn outcome(&self, request: &Request) -> Result<Value, Failure> {
        match &request.call {
            Call::Version => Ok(self.version()),
            Call::Read { beans, attributes, path } => {
                // A pattern's beans each have their attributes under their names, be it one.
                let attributes = match attributes {
                    Attributes::One(name) if beans.is_pattern() => Attributes::Several(vec![name.clone()]),
                    as_asked => as_asked.clone(),
                };
                let read = |bean: &Bean| self.read(bean, &attributes, request.options);
                Ok(over_beans(beans, &request.echo, "READ", read)?.at(path).unwrap_or(Value::Null))
            }
            Call::Exec { beans, operation, arguments, path } => {
                let call = |bean: &Bean| bean.call(operation, arguments, self.totals);
                Ok(over_beans(beans, &request.echo, "EXEC", call)?.at(path).unwrap_or(Value::Null))
            }
            Call::Search { beans } => {
                Ok(Value::List(matching(beans).map(|bean| Value::Text(bean.name.to_owned())).collect()))
            }
            Call::Unanswered(kind) => Err(Failure::unsupported(format!(
                "{kind} requests are not answered by this agent: read, exec, search and version are"
            ))),
        }
    }

    fn read(&self, bean: &Bean, attributes: &Attributes, options: Options) -> Result<Value, Failure> {
        // A set, because an object has each key once, however often it is asked for.
        let names: BTreeSet<&str> = match attributes {
            Attributes::One(name) => return Ok((bean.attribute(name)?.read)(self.totals)),
            Attributes::Several(names) => names.iter().map(String::as_str).collect(),
            Attributes::All => bean.attributes.iter().map(|attribute| attribute.name).collect(),
        };
        let mut items = Vec::with_capacity(names.len());
        for name in names {
            let value = match bean.attribute(name) {
                Ok(attribute) => (attribute.read)(self.totals),
                Err(failure) if options.ignore_errors => Value::Text(failure.as_text()),
                Err(failure) => return Err(failure),
            };
            items.push((Cow::Owned(name.to_owned()), value));
        }
        Ok(Value::Map(items))
    }

    fn version(&self) -> Value {
        let text = |text: &str| Value::Text(text.to_owned());
        Value::composite([
            ("agent", text(&self.info.version)),
            ("protocol", text(PROTOCOL)),
            ("id", text(&self.info.id)),
            (
                "details",
                Value::composite([
                    ("agent_id", text(&self.info.id)),
                    ("agent_version", text(&self.info.version)),
                    ("server_product", text("meter-agent")),
                    ("secured", Value::Bool(false)),
                ]),
            ),
            ("config", Value::Map(Vec::new())),
            ("info", Value::Map(Vec::new())),
        ])
    }
}

fn matching(pattern: &ObjectName) -> impl Iterator<Item = &'static Bean> {
    BEANS.iter().filter(|bean| ObjectName::parse(bean.name).is_ok_and(|name| pattern.matches(&name)))
}

/// Returns what one bean gives or, for a pattern, what each that matches gives, under its name.
fn over_beans(
    beans: &ObjectName,
    echo: &serde_json::Map<String, serde_json::Value>,
    kind: &str,
    ask: impl Fn(&Bean) -> Result<Value, Failure>,
) -> Result<Value, Failure> {
    let asked = || echo.get("mbean").and_then(serde_json::Value::as_str).unwrap_or_default();
    if !beans.is_pattern() {
        let bean = matching(beans).next().ok_or_else(|| Failure::no_bean(asked()))?;
        return ask(bean);
    }
    let mut items = Vec::new();
    for bean in matching(beans) {
        items.push((Cow::Borrowed(bean.name), ask(bean)?));
    }
    if items.is_empty() {
        return Err(Failure::no_bean(format!("No MBean with pattern {} found for {kind} request", asked())));
    }
    Ok(Value::Map(items))
}

#[cfg(test)]
mod tests;

//! The Jolokia protocol: JMX as JSON over HTTP, for everything that used to ask MidoNet's agent by JMX.
//!
//! A request is parsed by [`request`], dispatched here to the [beans](crate::jmx), whose values [`mod@extract`] makes
//! smaller, and answered in the envelope of [`response`]. [`client`] is the side that `mm-meter` is.
//!
//! Spoken is what Jolokia 2 speaks, protocol 8.2: `read`, `exec`, `search`, `list`, `version` and `config` by GET and
//! by POST, single and in bulk, with inner paths, patterns and all processing parameters. `write` gets the answer that
//! an attribute that can't be written gets, `notification` the one of Jolokia 1, which has none, and a `target`
//! (another agent that this one would ask) an error. All values of one HTTP request are of one snapshot.
//!
//! Errors are worded as Jolokia 2 words them and, as Jolokia 1 does, always sent with HTTP status 200 and their own
//! in the body: so one bad request of a bulk costs only its own answer, and every answer is JSON. A list's path may
//! lead into a section, as in Jolokia 1.
//!
//! Bounds: the body and the time for an answer, by [`crate::http::server::Limits`]; the body's depth, 128; a bulk's
//! length, [`request::MAX_BULK`], and its answer's, [`MAX_ANSWER`]; attributes of one request,
//! [`request::MAX_ATTRIBUTES`].

mod calls;
pub mod client;
pub mod extract;
pub mod list;
pub mod request;
pub mod response;

use std::time::{Instant, SystemTime};

use calls::Exec;
use extract::extract;
use request::{
    Call, Parsed, Posted, Request,
    parameters::{Form, Options},
};
use response::Failure;
use serde_json::{Map, Value as Json};

use crate::{
    http::{self, Response, StatusCode},
    jmx::{BeanServer, facts::Facts, value::Value},
    publish::SnapshotReader,
};

/// The path that everything is served below.
pub const BASE: &str = "/jolokia";

/// Bytes of a bulk's answer. The request that would make it longer, and all after it, get an error instead.
pub const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// The protocol's version that `version` claims.
const PROTOCOL: &str = "8.2";

const JSON: &str = "application/json; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Answers one HTTP request from totals that are read after it came, where it asks for any.
pub async fn answer(server: &BeanServer, reader: &SnapshotReader, request: http::Request) -> Response {
    let started = Instant::now();
    let posted = match parse(&request) {
        Ok(posted) => posted,
        Err(page) => return *page,
    };
    let is_fresh = match &posted {
        Ok(Posted::One(one)) => asks_for_totals(one),
        Ok(Posted::Bulk(all)) => all.iter().any(asks_for_totals),
        Err(_) => false,
    };
    let snapshot = if is_fresh { reader.fresh().await } else { reader.latest() };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let response = respond(server, &Facts::new(snapshot, now), posted, request.query.as_deref()).await;
    server.answered_in(started.elapsed());
    response
}

/// Answers one HTTP request from given facts.
pub async fn answer_from(server: &BeanServer, facts: &Facts, request: http::Request) -> Response {
    match parse(&request) {
        Ok(posted) => respond(server, facts, posted, request.query.as_deref()).await,
        Err(page) => *page,
    }
}

/// Reads what is asked; or returns what is said where nothing of the protocol is.
fn parse(request: &http::Request) -> Result<Result<Posted, Failure>, Box<Response>> {
    let Some(path) = below_base(&request.path) else {
        let line = format!("nothing here: the Jolokia protocol is served below {BASE}/, try {BASE}/version");
        return Err(Box::new(Response::text(StatusCode::NOT_FOUND, &line)));
    };
    let query = request.query.as_deref();
    match request.method.as_str() {
        "GET" | "HEAD" | "POST" if is_embedded(request) => Ok(Err(Failure::denied())),
        "GET" | "HEAD" => Ok(Ok(Posted::One(Box::new(request::from_path(path, query))))),
        "POST" => Ok(request::from_body(&request.body, query)),
        other => {
            let line = format!("HTTP Method {other} is not supported: use GET or POST.");
            Err(Box::new(Response::text(StatusCode::METHOD_NOT_ALLOWED, &line)))
        }
    }
}

/// Returns what follows the base; `None` for a path elsewhere.
fn below_base(path: &str) -> Option<&str> {
    let rest = path.strip_prefix(BASE)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

/// Returns whether a browser asks for another site's page, in a way that the page could not read the answer of anyhow.
fn is_embedded(request: &http::Request) -> bool {
    request.header("sec-fetch-site") == Some("cross-site")
        && request.header("sec-fetch-mode") == Some("no-cors")
}

fn asks_for_totals(parsed: &Parsed) -> bool {
    match parsed.as_ref().map(|request| &request.call) {
        Ok(Call::Read { beans, .. } | Call::Exec { beans, .. }) => beans.domain() != "java.lang",
        _ => false,
    }
}

/// Writes the answer in the form that the query asks for.
async fn respond(
    server: &BeanServer,
    facts: &Facts,
    posted: Result<Posted, Failure>,
    query: Option<&str>,
) -> Response {
    let agent = Agent { server, facts };
    let (posted, form) = match Form::from_query(query) {
        Ok(form) => (posted, form),
        Err(failure) => (Err(failure), Form::default()),
    };
    let body = match posted {
        Ok(Posted::One(one)) => agent.envelope(&one),
        Ok(Posted::Bulk(all)) => agent.bulk(&all, MAX_ANSWER).await,
        Err(failure) => agent.envelope(&Err(failure)),
    };
    match form {
        Form { callback: Some(function), .. } => Response::ok(SCRIPT, format!("{function}({body});")),
        Form { plain: true, .. } => Response::ok(PLAIN, body),
        Form { .. } => Response::ok(JSON, body),
    }
}

/// What the requests of one HTTP request are answered from.
struct Agent<'a> {
    server: &'a BeanServer,
    facts: &'a Facts,
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
                    let failure = Failure::unexpected("java.lang.IllegalStateException", message);
                    let echo = parsed.as_ref().ok().map(|request| &request.echo);
                    body.push_str(&self.written(echo, &Err(failure), &Options::default()));
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
                let mut echo = request.echo.clone();
                let outcome = self.outcome(request, &mut echo);
                let echo = request.options.include_request.then_some(&echo);
                self.written(echo, &outcome, &request.options)
            }
            Err(failure) => self.written(None, &Err(failure.clone()), &Options::default()),
        }
    }

    fn written(
        &self,
        echo: Option<&Map<String, Json>>,
        outcome: &Result<Option<Value>, Failure>,
        options: &Options,
    ) -> String {
        response::envelope(echo, outcome, options, self.facts.now().as_secs())
    }

    /// Returns the value, or nothing where it is not modified.
    fn outcome(&self, request: &Request, echo: &mut Map<String, Json>) -> Result<Option<Value>, Failure> {
        let Request { call, options, .. } = request;
        if request.is_for_target {
            let message = "this agent answers for itself only: leave out the target, or ask that itself";
            return Err(Failure::unexpected("java.lang.UnsupportedOperationException", message));
        }
        if let Some(failure) = &options.broken {
            return Err(failure.clone());
        }
        let (value, path) = match call {
            Call::Version => (self.version(), Vec::new()),
            Call::Config => (self.config(), Vec::new()),
            Call::Search { beans } => (calls::search(self.server, beans), Vec::new()),
            Call::Write { bean, attribute } => return Err(calls::write(self.server, bean, attribute)),
            Call::Read { beans, attributes, path } => {
                (calls::read(self.server, self.facts, beans, attributes, options)?, path.clone())
            }
            Call::Exec { beans, operation, arguments, path } => {
                let exec = Exec { beans, operation, arguments };
                let mut inner = calls::rest_as_path(arguments, exec.taken(self.server), echo);
                inner.extend_from_slice(path);
                (exec.call(self.server, self.facts)?, inner)
            }
            Call::List { path } => {
                if self.is_unmodified(options)? {
                    return Ok(None);
                }
                (list::list(self.server, path, options)?, Vec::new())
            }
        };
        extract(value, &path, options).map(Some)
    }

    /// Returns whether the client knows all beans already: they are the same for as long as the agent runs.
    fn is_unmodified(&self, options: &Options) -> Result<bool, Failure> {
        let Some(text) = &options.if_modified_since else { return Ok(false) };
        // The Java agent reads an int, and says so after 2038.
        let since: i32 = text.parse().map_err(|_| Failure::no_number(text))?;
        Ok(u64::try_from(since).is_ok_and(|since| since >= self.server.since().as_secs()))
    }

    fn id(&self) -> Value {
        let identity = self.server.identity();
        Value::text(format!("{}-{}", identity.host, identity.pid))
    }

    fn version(&self) -> Value {
        let version = || Value::text(self.server.identity().version.as_str());
        let none = || Value::Map(Vec::new());
        Value::map([
            ("agent", version()),
            ("protocol", Value::text(PROTOCOL)),
            ("decorators", none()),
            ("id", self.id()),
            (
                "details",
                Value::map([
                    ("agent_id", self.id()),
                    ("agent_version", version()),
                    ("server_product", Value::text("meter-agent")),
                    ("secured", Value::Bool(false)),
                ]),
            ),
            ("config", none()),
            ("info", Value::map([("jmx", none())])),
        ])
    }

    fn config(&self) -> Value {
        Value::map([
            ("agent", Value::text(self.server.identity().version.as_str())),
            ("protocol", Value::text(PROTOCOL)),
            ("security", Value::map([("authentication", Value::List(Vec::new()))])),
            ("id", self.id()),
        ])
    }
}

#[cfg(test)]
mod tests;

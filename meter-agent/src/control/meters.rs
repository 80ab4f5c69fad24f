//! User-defined meters at run time.
//!
//! `GET /meters` lists them, `PUT /meters/NAME` adds one with the rule lines of a JSON object (`{"rules": ["proto 6"]}`; with
//! `"replace": true` also in place of one that was added before), and `DELETE /meters/NAME` removes one. The name is
//! percent-encoded. What is refused is said in a line of text for each mistake.

use std::path::Path;

use hyper::{Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::{AskError, Desk, LONG_PATIENCE, METERS, ask, get, json, send};
use crate::{
    definitions::{Change, ChangeError, Definition, Origin, meter},
    http::{Request, Response, client::Call},
    snapshot::Snapshot,
};

/// One user-defined meter as `meter-agent meter list` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeterStatus {
    /// Its name.
    pub name: String,
    /// Where it comes from.
    pub origin: Origin,
    /// Its rules, as rule lines.
    pub rules: Vec<String>,
    /// Frames; `None` where it doesn't count.
    pub packets: Option<u64>,
    /// L2 bytes of them.
    pub bytes: Option<u64>,
}

/// The body of a `PUT`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Addition {
    rules: Vec<String>,
    #[serde(default)]
    replace: bool,
}

/// Answers a request below `/meters`.
pub(super) async fn answer(desk: &Desk, request: &Request) -> Response {
    let name = request.path.strip_prefix(METERS).and_then(|rest| rest.strip_prefix('/'));
    match (&request.method, name) {
        (&Method::GET, None) => json(&list(&*desk.reader.fresh().await)),
        (&Method::PUT | &Method::DELETE, Some(name)) => match read(request, name) {
            Ok(change) => made(desk, change).await,
            Err(what) => Response::text(StatusCode::BAD_REQUEST, &what),
        },
        _ => Response::text(
            StatusCode::METHOD_NOT_ALLOWED,
            &format!("only GET {METERS}, PUT {METERS}/NAME and DELETE {METERS}/NAME"),
        ),
    }
}

/// Reads a change.
fn read(request: &Request, name: &str) -> Result<Change, String> {
    let name =
        percent_decode_str(name).decode_utf8().map_err(|error| format!("the name is not UTF-8: {error}"))?;
    if request.method == Method::DELETE {
        return Ok(Change::Remove(name.into_owned()));
    }
    let Addition { rules, replace } =
        serde_json::from_slice(&request.body).map_err(|error| format!("the body: {error}"))?;
    let meter = meter(&name, &rules).map_err(|mistakes| mistakes.join("\n"))?;
    Ok(Change::Add { meter, replace })
}

/// Lets a change be made, and says how that ended.
async fn made(desk: &Desk, change: Change) -> Response {
    let (answer, answered) = oneshot::channel();
    (desk.change)(change, answer);
    let status = match answered.await {
        Ok(Ok(())) => return Response::new(StatusCode::NO_CONTENT, "text/plain; charset=utf-8", ""),
        Ok(Err(error)) => (status(&error), error.to_string()),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the agent is ending".to_owned()),
    };
    Response::text(status.0, &status.1)
}

const fn status(error: &ChangeError) -> StatusCode {
    match error {
        ChangeError::Configured(_) | ChangeError::Exists(_) => StatusCode::CONFLICT,
        ChangeError::Unknown(_) => StatusCode::NOT_FOUND,
        ChangeError::NoGroup { .. } | ChangeError::TooManyRules(_) => StatusCode::UNPROCESSABLE_ENTITY,
        ChangeError::Refused(_) | ChangeError::NotKept(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn list(snapshot: &Snapshot) -> Vec<MeterStatus> {
    let status = |definition: &Definition| {
        let counted = snapshot.user_meters.get(&definition.name);
        MeterStatus {
            name: definition.name.clone(),
            origin: definition.origin,
            rules: definition.rules.clone(),
            packets: counted.map(|meter| meter.stats.packets),
            bytes: counted.map(|meter| meter.stats.bytes),
        }
    };
    snapshot.definitions.iter().map(status).collect()
}

/// Asks the agent behind a socket for its user-defined meters.
///
/// # Errors
///
/// [`AskError::NoAgent`] where none runs.
pub async fn meters(path: &Path) -> Result<Vec<MeterStatus>, AskError> {
    ask(path, get(METERS)).await
}

/// Lets the agent behind a socket add a meter with these rule lines; with `replace` also in place of one that was added
/// before, whose totals it keeps.
///
/// # Errors
///
/// [`AskError::Wrong`] with what is wrong, [`AskError::Refused`] with why it can't be, [`AskError::Unsure`] where the agent
/// does not say in time, [`AskError::NoAgent`] where none runs.
pub async fn add(path: &Path, name: &str, rules: Vec<String>, replace: bool) -> Result<(), AskError> {
    let body = serde_json::to_vec(&Addition { rules, replace });
    let body = body.map_err(|error| AskError::Refused(error.to_string()))?;
    change(path, Method::PUT, name, body).await
}

/// Lets the agent behind a socket remove a meter that was added at run time.
///
/// # Errors
///
/// [`AskError::Refused`] with what is wrong, [`AskError::NoAgent`] where none runs.
pub async fn remove(path: &Path, name: &str) -> Result<(), AskError> {
    change(path, Method::DELETE, name, Vec::new()).await
}

async fn change(path: &Path, method: Method, name: &str, body: Vec<u8>) -> Result<(), AskError> {
    let target = format!("{METERS}/{}", utf8_percent_encode(name, NON_ALPHANUMERIC));
    let call = Call { method, target: &target, host: "localhost", body: body.into(), timeout: LONG_PATIENCE };
    let answer = send(path, call).await.map_err(|error| match error {
        AskError::Exchange { path, source } => AskError::Unsure { path, source },
        other => other,
    })?;
    let said = |body: &[u8]| String::from_utf8_lossy(body).trim_end().to_owned();
    match answer {
        (StatusCode::NO_CONTENT, _) => Ok(()),
        (StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY, body) => {
            Err(AskError::Wrong(said(&body)))
        }
        (_, body) => Err(AskError::Refused(said(&body))),
    }
}

/// Writes a list for people: a line for each meter, and one for each rule.
#[must_use]
pub fn table(meters: &[MeterStatus]) -> String {
    let mut text = String::new();
    for MeterStatus { name, origin, rules, packets, bytes } in meters {
        let counted = match (packets, bytes) {
            (Some(packets), Some(bytes)) => format!("{packets} packets, {bytes} bytes"),
            _ => "not counted; the agent's log says why".to_owned(),
        };
        text += &format!("{name}: {}, {counted}\n", origin.name());
        for rule in rules {
            text += &format!("  {rule}\n");
        }
    }
    text
}

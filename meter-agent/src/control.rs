//! The local socket: what the agent tells those who may ask it on its own host.
//!
//! HTTP on a Unix socket, so that curl can ask too: `GET /netdevs` is what `meter-agent ls` prints, as JSON, and `GET
//! /audit` makes an audit and returns what `meter-agent audit` prints. `GET /connections` lists connections, as its query asks
//! for them ([`Question`]), and `GET /agent` says how the agent itself is. [`meters`] has what there is for user-defined meters.

pub mod meters;

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
};

use crate::{
    audit::Report,
    connections::list::{ConnectionStatus, Question},
    definitions::{Change, ChangeError},
    http::{
        Request, Response,
        client::{Call, ClientError, exchange},
    },
    meter::PortId,
    publish::SnapshotReader,
    snapshot::{Health, NetdevStatus, Snapshot},
};

/// The paths of what is served.
const NETDEVS: &str = "/netdevs";
const AUDIT: &str = "/audit";
const METERS: &str = "/meters";
const CONNECTIONS: &str = "/connections";
const AGENT: &str = "/agent";
/// How long an agent may take to answer; it may be attaching.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same where it reads all counters several times first, or writes to a disk.
const LONG_PATIENCE: Duration = Duration::from_secs(25);

/// Where an audit is asked for; the answer is dropped where none could be made.
pub type Audits = mpsc::Sender<oneshot::Sender<Arc<Report>>>;
/// How a change of the user-defined meters ends; the sender is dropped where the agent ends first.
pub type Changed = oneshot::Sender<Result<(), ChangeError>>;

/// What answers are made from. Cheap to clone.
#[derive(Clone)]
pub struct Desk {
    reader: SnapshotReader,
    audits: Audits,
    change: Arc<dyn Fn(Change, Changed) + Send + Sync>,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("reader", &self.reader).finish_non_exhaustive()
    }
}

impl Desk {
    /// Makes one; `change` hands a change of the meters to whoever makes it.
    pub fn new(
        reader: SnapshotReader,
        audits: Audits,
        change: impl Fn(Change, Changed) + Send + Sync + 'static,
    ) -> Self {
        Self { reader, audits, change: Arc::new(change) }
    }
}

/// How the agent itself is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Why its counters are not pinned, and so end with it; nothing where they are.
    pub unpinned: Option<String>,
    /// How many named network namespaces it follows; nothing where that is switched off.
    #[serde(default)]
    pub namespaces: Option<u64>,
    /// Why it does not follow others that it should, by name.
    #[serde(default)]
    pub namespaces_failed: BTreeMap<String, String>,
    /// How many of these and of netdevs are not metered, or not as they should be.
    #[serde(default)]
    pub attach_pending: u64,
}

impl AgentStatus {
    fn of(health: &Health) -> Self {
        Self {
            unpinned: health.unpinned.clone(),
            namespaces: health.namespaces,
            namespaces_failed: health.namespaces_failed.clone(),
            attach_pending: health.attach_pending,
        }
    }

    /// Returns what whoever lists netdevs ought to know.
    #[must_use]
    pub fn notice(&self) -> Option<String> {
        let unpinned = self.unpinned.as_ref()?;
        Some(format!("the counters are not pinned, and end with the agent: {unpinned}"))
    }
}

/// The socket can't be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another agent answers there.
    #[error("{0}: another agent listens here; stop it, or set control.socket")]
    InUse(PathBuf),
    /// Something that is not a socket is there.
    #[error("{0} is there and is no socket; remove it, or set control.socket")]
    NotASocket(PathBuf),
    /// A system call failed.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("no agent runs with the socket {0}")]
    NoAgent(PathBuf),
    /// The socket is there but can't be used.
    #[error("connect to {path}: {source}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There was no answer.
    #[error("ask the agent at {path}: {source}")]
    Exchange {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: ClientError,
    },
    /// The agent has not said how a change ended.
    #[error(
        "the agent at {path} has not said how that ended ({source}): it may still be made; see \
         `meter-agent meter list` before you try again"
    )]
    Unsure {
        /// The socket.
        path: PathBuf,
        /// Why there is no answer.
        source: ClientError,
    },
    /// What was asked for is wrong, as the agent says.
    #[error("{0}")]
    Wrong(String),
    /// The agent refused, and says why.
    #[error("{0}")]
    Refused(String),
    /// The agent could not make an audit.
    #[error("the agent at {0} could make no audit now; its log says why")]
    NoAudit(PathBuf),
    /// The answer is another one than this version's.
    #[error("the agent at {path} answers {found}; is it another version?")]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What came.
        found: String,
    },
}

/// Listens on a socket that only this user may open. One that an agent left which was killed is replaced.
///
/// # Errors
///
/// When another agent listens, or the place can't be used.
pub fn bind(path: &Path) -> Result<UnixListener, BindError> {
    let failed = |action| move |source| BindError::Io { action, path: path.to_owned(), source };
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed("make the directory of"))?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(BindError::NotASocket(path.to_owned())),
        Ok(_) => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(BindError::InUse(path.to_owned()));
            }
            fs::remove_file(path).map_err(failed("remove the old socket"))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at")(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed("listen on"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed("restrict"))?;
    Ok(listener)
}

/// Answers one request.
pub async fn answer(desk: &Desk, request: Request) -> Response {
    if request.path.strip_prefix(METERS).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
        return meters::answer(desk, &request).await;
    }
    if !matches!(request.path.as_str(), NETDEVS | AUDIT | CONNECTIONS | AGENT) {
        let there_is =
            format!("not found; there are {NETDEVS}, {AUDIT}, {CONNECTIONS}, {METERS} and {AGENT}");
        return Response::text(StatusCode::NOT_FOUND, &there_is);
    }
    if request.method != Method::GET {
        return Response::text(StatusCode::METHOD_NOT_ALLOWED, "only GET");
    }
    if request.path == NETDEVS {
        return json(&desk.reader.fresh().await.netdevs);
    }
    if request.path == AGENT {
        return json(&AgentStatus::of(&desk.reader.latest().health));
    }
    if request.path == CONNECTIONS {
        return match Question::parse(request.query.as_deref().unwrap_or_default()) {
            Ok(question) => json(&connections_of(&*desk.reader.fresh().await, &question)),
            Err(what) => Response::text(StatusCode::BAD_REQUEST, &what),
        };
    }
    let (wish, answer) = oneshot::channel();
    let asked = desk.audits.send(wish).await;
    match answer.await {
        Ok(report) if asked.is_ok() => json(&*report),
        _ => Response::text(
            StatusCode::SERVICE_UNAVAILABLE,
            "no audit could be made; the agent's log says why",
        ),
    }
}

/// Returns the connections that are asked for.
fn connections_of(snapshot: &Snapshot, question: &Question) -> Vec<ConnectionStatus> {
    let netdevs: BTreeMap<PortId, &str> = snapshot
        .ports
        .iter()
        .filter_map(|port| Some((port.port, port.carrier.as_ref()?.netdev.as_str())))
        .collect();
    question.answer(&snapshot.connections, |port| netdevs.get(&port).map(|netdev| (*netdev).to_owned()))
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => Response::ok("application/json", body),
        Err(error) => Response::text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// Asks the agent behind a socket for its netdevs.
///
/// # Errors
///
/// [`AskError::NoAgent`] where none runs.
pub async fn netdevs(path: &Path) -> Result<Vec<NetdevStatus>, AskError> {
    ask(path, Call { timeout: PATIENCE, ..get(NETDEVS) }).await
}

/// Asks the agent behind a socket how it is.
///
/// # Errors
///
/// [`AskError::NoAgent`] where none runs.
pub async fn agent(path: &Path) -> Result<AgentStatus, AskError> {
    ask(path, Call { timeout: PATIENCE, ..get(AGENT) }).await
}

/// Asks the agent behind a socket for an audit.
///
/// # Errors
///
/// [`AskError::NoAgent`] where none runs, [`AskError::NoAudit`] where it could make none.
pub async fn audit(path: &Path) -> Result<Report, AskError> {
    ask(path, get(AUDIT)).await
}

/// Asks the agent behind a socket for connections.
///
/// # Errors
///
/// [`AskError::NoAgent`] where none runs.
pub async fn connections(path: &Path, question: &Question) -> Result<Vec<ConnectionStatus>, AskError> {
    ask(path, get(&format!("{CONNECTIONS}?{}", question.query()))).await
}

/// Returns a question that the agent may think about.
fn get(target: &str) -> Call<'_> {
    Call { method: Method::GET, target, host: "localhost", body: bytes::Bytes::new(), timeout: LONG_PATIENCE }
}

async fn ask<T: DeserializeOwned>(path: &Path, call: Call<'_>) -> Result<T, AskError> {
    let (status, body) = send(path, call).await?;
    let other = |found| AskError::Answer { path: path.to_owned(), found };
    if status == StatusCode::SERVICE_UNAVAILABLE {
        return Err(AskError::NoAudit(path.to_owned()));
    }
    if status != StatusCode::OK {
        return Err(other(status.to_string()));
    }
    serde_json::from_slice(&body).map_err(|error| other(error.to_string()))
}

async fn send(path: &Path, call: Call<'_>) -> Result<(StatusCode, bytes::Bytes), AskError> {
    let stream = UnixStream::connect(path).await.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AskError::NoAgent(path.to_owned()),
        _ => AskError::Connect { path: path.to_owned(), source },
    })?;
    exchange(stream, call).await.map_err(|source| AskError::Exchange { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, os::unix::fs::PermissionsExt as _, sync::Arc};

    use tokio::sync::mpsc;

    use super::{AgentStatus, AskError, BindError, Desk, agent, answer, audit, bind, netdevs};
    use crate::{
        audit::Report,
        http::server::{Limits, serve},
        publish::SnapshotReader,
        snapshot::{Health, NetdevStatus, Snapshot},
    };

    fn status() -> NetdevStatus {
        NetdevStatus {
            ifindex: 3,
            netns: String::new(),
            netdev: "tap \"0\"".to_owned(),
            kind: "tap".to_owned(),
            role: "port".to_owned(),
            port: Some("3f2a7c1e-0000-4000-8000-000000000001".to_owned()),
            device: None,
            source: Some("derived".to_owned()),
            ingress: Some("tcx".to_owned()),
            egress: None,
            reason: "tap".to_owned(),
        }
    }

    #[tokio::test]
    async fn netdevs_and_audits_come_through_the_socket_as_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/agent.sock");
        assert!(matches!(netdevs(&path).await, Err(AskError::NoAgent(_))));
        let listener = bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let namespaces_failed = BTreeMap::from([("red".to_owned(), "not permitted".to_owned())]);
        let unpinned = Some("read-only".to_owned());
        let of_agent = AgentStatus { unpinned, namespaces: Some(3), namespaces_failed, attach_pending: 2 };
        let AgentStatus { unpinned, namespaces, namespaces_failed, attach_pending } = of_agent.clone();
        let health = Health { unpinned, namespaces, namespaces_failed, attach_pending, ..Health::default() };
        let reader =
            SnapshotReader::fixed(Snapshot { netdevs: vec![status()], health, ..Snapshot::default() });
        let (audits, mut asked) = mpsc::channel(1);
        let desk = Desk::new(reader, audits, |_, _| ());
        let server = tokio::spawn(serve(listener, Limits::default(), move |request| {
            let desk = desk.clone();
            async move { answer(&desk, request).await }
        }));
        assert_eq!(netdevs(&path).await.unwrap(), [status()]);
        assert_eq!(agent(&path).await.unwrap(), of_agent);
        let report = Report { at_s: 7, ..Report::default() };
        let made = Arc::new(report.clone());
        tokio::spawn(async move {
            asked.recv().await.unwrap().send(made).unwrap();
            drop(asked.recv().await);
        });
        assert_eq!(audit(&path).await.unwrap(), report);
        assert!(matches!(audit(&path).await, Err(AskError::NoAudit(_))));
        assert!(matches!(bind(&path), Err(BindError::InUse(_))));
        server.abort();
        drop(server.await);
        assert!(matches!(netdevs(&path).await, Err(AskError::NoAgent(_))));
        bind(&path).unwrap();
    }

    #[tokio::test]
    async fn what_is_no_socket_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path), Err(BindError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }
}

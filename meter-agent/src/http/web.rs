//! The web configuration: TLS, users and headers, in the format of Prometheus' exporters (`web.config.file`).
//!
//! The file and those that it names are looked at once a second while connections come, and read again when one of them
//! has changed. What is wrong with them is logged; what was in force stays in force. A connection keeps what it began
//! with, but for the users and the headers.

mod clients;
mod document;
mod rate;
mod san;
mod tls;
mod users;

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use hyper::{
    StatusCode,
    header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE},
};
use rustls::ServerConfig;

use self::{document::Source, rate::Limiter, users::Users};
use super::Response;
use crate::yaml::Mistake;

/// Bytes of the longest file that is read.
const MAX_FILE: u64 = 1024 * 1024;
/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// A web configuration that can't be used: a line for each mistake, with the file, the line, the column and the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", lines.join("\n"))]
pub struct WebError {
    lines: Vec<String>,
}

/// A web configuration that is kept up to date.
#[derive(Debug)]
pub struct Web {
    path: PathBuf,
    current: ArcSwap<Settings>,
    seen: Mutex<Seen>,
    is_looking: AtomicBool,
    is_ok: AtomicBool,
    loaded_s: AtomicU64,
}

#[derive(Debug)]
struct Seen {
    /// When the files were last looked at.
    at: Instant,
    files: Files,
}

/// The files that were last read, or should have been, as they were just before.
type Files = Vec<(PathBuf, Stamp)>;

/// What a change of a file changes: device, inode, size, and the times of content and attributes. `None` without a file.
type Stamp = Option<[i128; 5]>;

/// How the last reading of the files went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WebStatus {
    /// Whether what the files say now is in force.
    pub is_ok: bool,
    /// When what is in force was read, in seconds since the Unix epoch.
    pub loaded_s: u64,
}

/// What one reading of the files says.
#[derive(Debug)]
pub(super) struct Settings {
    /// Plain HTTP where there is none.
    pub(super) tls: Option<Arc<ServerConfig>>,
    headers: HeaderMap,
    users: Option<Users>,
    limiter: Option<Limiter>,
}

impl Web {
    /// Reads a file and those that it names.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it.
    pub fn load(path: &Path) -> Result<Self, WebError> {
        let mut files = Files::new();
        let settings = Settings::load(path, &mut files)?;
        let seen = Mutex::new(Seen { at: Instant::now(), files });
        Ok(Self {
            path: path.to_owned(),
            current: ArcSwap::from_pointee(settings),
            seen,
            is_looking: AtomicBool::new(false),
            is_ok: AtomicBool::new(true),
            loaded_s: AtomicU64::new(now_s()),
        })
    }

    /// Returns how the last reading went.
    #[must_use]
    pub fn status(&self) -> WebStatus {
        WebStatus {
            is_ok: self.is_ok.load(Ordering::Relaxed),
            loaded_s: self.loaded_s.load(Ordering::Relaxed),
        }
    }

    /// Returns what is in force, after a look at the files where the last one is too long ago.
    pub(super) async fn current(self: &Arc<Self>) -> Arc<Settings> {
        if let Some(look) = self.is_due().then(|| Looking::begin(self)).flatten() {
            let done = tokio::task::spawn_blocking(move || look.web.look());
            // Files that take longer, as those of a server that is gone, are not waited for.
            if let Ok(Err(error)) = tokio::time::timeout(LOOK, done).await {
                tracing::error!(error = %error, "web configuration");
            }
        }
        self.current.load_full()
    }

    /// Returns whether the files have not been looked at for long enough.
    fn is_due(&self) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = seen.at.elapsed() >= LOOK;
        if is_due {
            seen.at = Instant::now();
        }
        is_due
    }

    /// Reads the files again if one has changed.
    fn look(&self) {
        // Nobody waits for the lock while the file system is asked.
        let before = self.seen.lock().unwrap_or_else(PoisonError::into_inner).files.clone();
        if before.iter().all(|(path, before)| stamp(path) == *before) {
            return;
        }
        let mut files = Files::new();
        let read = Settings::load(&self.path, &mut files);
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).files = files;
        match read {
            Ok(settings) => {
                self.current.store(Arc::new(settings));
                self.is_ok.store(true, Ordering::Relaxed);
                self.loaded_s.store(now_s(), Ordering::Relaxed);
                tracing::info!(file = %self.path.display(), "web configuration read again");
            }
            Err(error) => {
                self.is_ok.store(false, Ordering::Relaxed);
                for line in &error.lines {
                    tracing::error!(
                        error = line,
                        "the web configuration is wrong; the old one stays in force"
                    );
                }
            }
        }
    }
}

/// The one look at the files that is going on.
struct Looking {
    web: Arc<Web>,
}

impl Looking {
    /// Begins to look, if nobody does.
    fn begin(web: &Arc<Web>) -> Option<Self> {
        let is_free = !web.is_looking.swap(true, Ordering::Acquire);
        is_free.then(|| Self { web: Arc::clone(web) })
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        self.web.is_looking.store(false, Ordering::Release);
    }
}

impl Settings {
    /// Reads a file and those that it names; `files` are these, whether or not they can be read.
    fn load(path: &Path, files: &mut Files) -> Result<Self, WebError> {
        let name = path.display();
        files.push((path.to_owned(), stamp(path)));
        let text = read(path).map_err(|what| WebError { lines: vec![format!("{name}: {what}")] })?;
        let shown = |mistakes: Vec<Mistake>| WebError {
            lines: mistakes
                .iter()
                .map(|Mistake { place, message }| {
                    format!("{name}:{}:{}: {message}", place.line, place.column)
                })
                .collect(),
        };
        let directory = path.parent().unwrap_or(Path::new("."));
        let document = document::read(&text, directory).map_err(shown)?;
        let mut tls = None;
        if let Some(section) = &document.tls {
            let pems = [Some(&section.certificate), Some(&section.key), section.client_ca.as_ref()];
            files.extend(pems.into_iter().flatten().filter_map(|pem| match &pem.source {
                Source::File(path) => Some((path.clone(), stamp(path))),
                Source::Inline(_) => None,
            }));
            tls = Some(Arc::new(tls::config(section).map_err(|mistake| shown(vec![mistake]))?));
        }
        let users =
            Users::new(document.users).map_err(|what| WebError { lines: vec![format!("{name}: {what}")] })?;
        Ok(Self { tls, headers: document.headers, users, limiter: document.rate.map(Limiter::new) })
    }

    /// Returns whether a request may be answered without more ado: from anybody, or with a password that was right before.
    pub(super) fn is_known(&self, headers: &HeaderMap) -> bool {
        self.users.as_ref().is_none_or(|users| users.is_known(headers))
    }

    /// Returns what to say instead of an answer where there are too many requests.
    pub(super) fn limit(&self) -> Option<Response> {
        let limiter = self.limiter.as_ref()?;
        (!limiter.allow()).then(|| Response::text(StatusCode::TOO_MANY_REQUESTS, "Too Many Requests"))
    }

    /// Returns what to say instead of an answer to a request from somebody who may not ask.
    pub(super) async fn refuse(&self, headers: &HeaderMap) -> Option<Response> {
        let users = self.users.as_ref()?;
        if users.allow(headers).await {
            return None;
        }
        let mut response = Response::text(StatusCode::UNAUTHORIZED, "Unauthorized");
        response.headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic"));
        Some(response)
    }

    /// Adds the headers that every answer has.
    pub(super) fn decorate(&self, headers: &mut HeaderMap) {
        headers.extend(self.headers.clone());
    }
}

fn read(path: &Path) -> Result<String, String> {
    let failed = |error: io::Error| error.to_string();
    // Opening a FIFO waits for a writer otherwise.
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err("is not a file".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if u64::try_from(bytes.len()).map_or(true, |length| length > MAX_FILE) {
        return Err(format!("is longer than {MAX_FILE} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())
}

fn stamp(path: &Path) -> Stamp {
    let found = fs::metadata(path).ok()?;
    let time = |seconds: i64, nanoseconds: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    Some([
        found.dev().into(),
        found.ino().into(),
        found.size().into(),
        time(found.mtime(), found.mtime_nsec()),
        time(found.ctime(), found.ctime_nsec()),
    ])
}

/// Seconds since the Unix epoch.
fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        time::{Duration, Instant},
    };

    use super::{LOOK, Looking, Web};

    #[tokio::test]
    async fn files_that_take_long_keep_nobody_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("web.yml");
        std::fs::write(&file, "").unwrap();
        let web = Arc::new(Web::load(&file).unwrap());
        let looking = Looking::begin(&web).unwrap();
        std::fs::write(&file, "wrong").unwrap();
        let due = || web.seen.lock().unwrap().at = Instant::now() - LOOK;
        due();
        // One look at a time: threads would pile up with the clients that come.
        assert!(Looking::begin(&web).is_none());
        tokio::time::timeout(Duration::from_secs(20), web.current()).await.unwrap();
        assert!(web.status().is_ok);
        drop(looking);
        due();
        web.current().await;
        assert!(!web.status().is_ok);
    }
}
